"""A proxy before the emulator of an object store, which does to requests what networks and clouds do.

Faults come by script (`proxy.script(Fault(...), ...)`: each is applied once, to the first request it matches) or with a
probability, drawn from a seed, the request and its number, so that threads in another order draw the same.

    503, 429, 403, ...   the answer is this status, and nothing is done
    slow                 the answer comes `delay_s` later
    refused              the connection is reset before anything is done
    lost                 the request is done, and the connection is reset instead of an answer
    reset                the request is done, and the connection is reset in the middle of the answer
    truncated            the answer is half of what its Content-Length says
    cut                  the answer is half, and its Content-Length agrees
    corrupted            one bit of the answer is flipped
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, Self
from urllib.parse import unquote, urlsplit

# Faults for any request, and faults for downloads only: a listing has no checksum of its own.
TO_ANY = ("503", "429", "slow", "refused", "lost", "reset", "truncated")
TO_DOWNLOADS = ("cut", "corrupted")

_NOT_PASSED_ON = frozenset(
    ("connection", "transfer-encoding", "content-length", "keep-alive", "date", "server")
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What to do to a request of `method` (any if empty) whose decoded address contains `path`."""

    kind: str
    method: str = ""
    path: str = ""
    delay_s: float = 0.3

    def fits(self, method: str, path: str) -> bool:
        """Return whether it matches a request."""
        return self.method in ("", method) and self.path in path


class FaultProxy:
    """A proxy before `upstream`; as a context manager it runs until the end of the block."""

    def __init__(
        self,
        upstream: str,
        *,
        probability: float = 0.0,
        kinds: Sequence[str] = (*TO_ANY, *TO_DOWNLOADS),
        seed: int = 0,
        delay_s: float = 0.05,
    ) -> None:
        """Listen on a free port; with `probability` each request gets one of `kinds`."""
        parts = urlsplit(upstream)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.probability, self.kinds, self.seed, self.delay_s = probability, tuple(kinds), seed, delay_s
        self.done: Counter[str] = Counter()  # faults by kind
        self.requests: list[tuple[str, str]] = []
        self.edit: Callable[[bytes], bytes] = lambda answer: answer  # applied to every JSON answer
        self._script: list[Fault] = []
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def script(self, *faults: Fault) -> None:
        """Add faults; a request gets the oldest one that matches, once."""
        with self._lock:
            self._script += faults

    @property
    def left(self) -> list[Fault]:
        """Return scripted faults that matched no request yet."""
        with self._lock:
            return list(self._script)

    def choose(self, method: str, path: str) -> Fault | None:
        """Return what to do to a request, and count it."""
        with self._lock:
            self.requests.append((method, path))
            self._times[method, path] += 1
            chosen = next((fault for fault in self._script if fault.fits(method, path)), None)
            if chosen is not None:
                self._script.remove(chosen)
            else:
                chosen = self._drawn(method, path)
            if chosen is not None:
                self.done[chosen.kind] += 1
            return chosen

    def _drawn(self, method: str, path: str) -> Fault | None:
        random = Random(f"{self.seed} {method} {path} {self._times[method, path]}")
        if random.random() >= self.probability:
            return None
        download = method == "GET" and "alt=media" in path
        kinds = [kind for kind in self.kinds if kind not in TO_DOWNLOADS or download]
        return Fault(random.choice(kinds), delay_s=self.delay_s) if kinds else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: broken connections are intended."""


class _ResetError(Exception):
    """The connection is to be reset now."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        """Connect to the upstream server."""
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        proxy = self.server.proxy
        self._behind = http.client.HTTPConnection(proxy.host, proxy.port, timeout=30)

    def finish(self) -> None:
        """Close the connection to the upstream server."""
        self._behind.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Do nothing."""

    def _serve(self) -> None:
        try:
            self._pass_on()
        except (_ResetError, ConnectionError):
            self.close_connection = True
            with contextlib.suppress(OSError):  # linger for 0 s: a reset instead of an orderly close
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.request.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.choose(self.command, unquote(self.path))
        kind = "" if fault is None else fault.kind
        if kind == "refused":
            raise _ResetError
        if kind.isdecimal():
            self._answer_status(int(kind))
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
        self._behind.request(self.command, self.path, body or None, headers)
        response = self._behind.getresponse()
        answer = response.read()
        if "json" in (response.getheader("Content-Type") or ""):
            answer = self.server.proxy.edit(answer)
        if fault is not None and kind == "slow":
            time.sleep(fault.delay_s)
        if kind == "lost":
            raise _ResetError
        if kind == "corrupted" and answer:
            middle = len(answer) // 2
            answer = answer[:middle] + bytes((answer[middle] ^ 0x10,)) + answer[middle + 1 :]
        if kind == "cut":
            answer = answer[: len(answer) // 2]
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _NOT_PASSED_ON:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if kind in ("reset", "truncated"):
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            if kind == "reset":
                raise _ResetError
            self.close_connection = True
            return
        self.wfile.write(answer)

    def _answer_status(self, status: int) -> None:
        phrase = http.client.responses.get(status, "")
        told = {
            "error": {
                "code": status,
                "message": phrase,
                "errors": [{"message": phrase, "reason": "injected"}],
            }
        }
        answer = json.dumps(told).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextlib.contextmanager
def before(upstream: str, **given: Any) -> Iterator[FaultProxy]:
    """Run a proxy before `upstream`, and yield it."""
    with FaultProxy(upstream, **given) as proxy:
        yield proxy
