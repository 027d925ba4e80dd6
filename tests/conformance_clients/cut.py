"""A TCP proxy between a client and a worker, whose connections a test can cut.

May touch: sockets of this machine, a thread for each direction of a connection.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Final, Self

CHUNK_BYTES: Final = 1 << 16


class Proxy:
    """Listens on a free port and forwards everything to `port`; used in a `with` block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0  # connections so far
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(5)

    def cut(self) -> None:
        """Reset every connection, as a network failure would."""
        with self._lock:
            taken, self._open = self._open, []
        for each in taken:
            with contextlib.suppress(OSError):  # linger for 0 s: a reset instead of an orderly close
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                worker = socket.create_connection(("127.0.0.1", self._port), 5)
                worker.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self.accepted += 1
                self._open += [client, worker]
            for pair in ((client, worker), (worker, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
