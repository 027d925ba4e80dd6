"""A broker controlled by a test: a ROUTER that follows PROTOCOL.md, records frames, and breaks rules on request.

It keeps what is published and delivers what the test says. Frames are built here by hand, without the codec of the
Python client, so that it can send what no codec would.

May touch: one socket, on a port of its own; one thread, which alone uses it.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import cbor2
import zmq

HELLO, BYE, PING, OPEN_PRODUCER, PUBLISH, CLOSE, OPEN_CONSUMER, CREDIT = range(1, 9)
ACK, NACK, ACK_UNTIL, REQUEST, EXTEND = range(9, 14)
WELCOME, OPENED, RECEIPT, DELIVER, ERROR, MOVED, RESULT, DONE, PONG, EVENT = range(33, 43)
NAMES: Final = {
    1: "HELLO",
    2: "BYE",
    3: "PING",
    4: "OPEN_PRODUCER",
    5: "PUBLISH",
    6: "CLOSE",
    7: "OPEN_CONSUMER",
}
TICK_MS: Final = 5
PATIENCE_S: Final = 20.0

Header = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """A message from the client."""

    header: Header
    body: list[bytes]
    at: float

    @property
    def kind(self) -> int:
        """The frame's type."""
        return int(self.header[0])

    @property
    def size(self) -> int:
        """The size of its body."""
        return sum(map(len, self.body))

    @property
    def count(self) -> int:
        """How many messages a PUBLISH has."""
        return len(self.body[0]) // 4 if len(self.body) > 1 else 1


class Router:
    """One worker for one client; used in a `with` block."""

    def __init__(
        self,
        *,
        heartbeat_ms: int = 500,
        window_bytes: int = 1 << 20,
        batches_in_flight_max: int = 128,
        receipts: bool = True,
        takes: bool = False,
    ) -> None:
        """`takes`: what the client's program takes is to be said, where the client offers it (TAKEN)."""
        self.heard: list[Heard] = []
        self.receipts = receipts  # whether a PUBLISH is answered
        self.silent = False  # answers nothing at all
        self.confirms = True  # whether a question whose answer is DONE is answered
        self.credit = [0, 0]  # messages and bytes that may be sent to the consumer
        self.granted = 0  # messages, since the consumer was opened
        self._limits = {1: 1 << 20, 2: 1 << 20, 3: batches_in_flight_max, 4: window_bytes, 5: 10_000, 6: 64}
        self._limits |= {7: 1 << 20, 8: 1 << 30}
        self._takes = takes
        self._heartbeat_ms = heartbeat_ms
        self._window_bytes = window_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._bind("tcp://127.0.0.1:*")
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._peer = b""
        self._known = b""
        self._next_sequence = 0
        self._offset_of: dict[int, int] = {}  # by the first sequence of a batch
        self._stored = 0
        self._unanswered: list[list[int]] = []  # receipts that are held back
        self._handles: dict[int, int] = {}  # by handle: the type of the frame that opened it
        self._jobs: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._over = False
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join(PATIENCE_S)
        self._socket.close(0)
        self._context.term()
        if self._failed is not None:
            raise AssertionError("the router failed") from self._failed

    # ---- what a test says

    def say(self, *frames: bytes | Header) -> None:
        """Send the client a message, of raw bytes and of headers."""
        parts = [cbor2.dumps(each) if isinstance(each, dict) else each for each in frames]

        def send() -> None:
            self._socket.send_multipart([self._peer, *parts])

        self._in_thread(send)

    def deliver(self, first: int, *payloads: bytes, **more: Any) -> None:
        """Deliver messages to the consumer, and count its credit."""
        lengths = struct.pack(f"<{len(payloads)}I", *map(len, payloads))
        body = [lengths, b"".join(payloads)]
        self.credit[0] -= len(payloads)
        self.credit[1] -= sum(map(len, body))
        self.say(self.delivery(first, len(payloads)) | more.get("keys", {}), *body)

    def delivery(self, first: int, count: int) -> Header:
        """Return the header of a DELIVER to the consumer."""
        return {
            0: DELIVER,
            2: self.handle(OPEN_CONSUMER),
            6: first,
            7: count,
            9: [count, 1_700_000_000_000],
            10: 1,
        }

    @property
    def taken(self) -> int | None:
        """How many messages the program has taken since it opened the consumer, or may take, as far as was said."""
        said = [each.header[38] for each in self.of(CREDIT) if 38 in each.header]
        assert said == sorted(said), "TAKEN decreased"
        return said[-1] if said else None

    def handle(self, kind: int) -> int:
        """Return the handle that the client opened last with a frame of that type."""
        return [number for number, opened in self._handles.items() if opened == kind][-1]

    def answer_publishes(self, most: int | None = None) -> None:
        """Send the receipts that were held back, the oldest first; without `most`, also all later ones at once."""

        def give() -> None:
            if most is None:
                self.receipts = True
            for _ in range(len(self._unanswered) if most is None else most):
                self._reply({0: RECEIPT, 2: self.handle(OPEN_PRODUCER), 27: self._unanswered.pop(0)})

        self._in_thread(give)

    def disconnect(self) -> None:
        """Break the connection; the session stays known."""

        def again() -> None:
            self._socket.close(0)
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    self._socket = self._bind(self.endpoint)
                    return
                except zmq.ZMQError:  # the old socket is still being closed
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.005)

        self._in_thread(again)

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a condition on the received frames holds, or fail."""
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                heard = [NAMES.get(each.kind, each.kind) for each in self.heard[-20:]]
                raise AssertionError(f"{what} did not come; heard {heard}")
            time.sleep(0.01)

    def of(self, kind: int) -> list[Heard]:
        """Return the received frames of a type."""
        return [each for each in self.heard if each.kind == kind]

    @property
    def outstanding(self) -> list[Heard]:
        """Return the batches without a receipt."""
        waiting = {sequence for sequence, _ in self._unanswered}
        return [each for each in self.of(PUBLISH) if each.header[5] in waiting]

    # ---- the thread

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0
        try:
            socket.bind(endpoint)
        except zmq.ZMQError:
            socket.close(0)
            raise
        return socket

    def _in_thread(self, job: Callable[[], None]) -> None:
        done = threading.Event()
        self._jobs.append((job, done))
        assert done.wait(PATIENCE_S), "the router does not answer"

    def _run(self) -> None:
        try:
            while not self._over:
                while self._jobs:
                    job, done = self._jobs.popleft()
                    job()
                    done.set()
                if self._socket.poll(TICK_MS):
                    self._peer_says(self._socket.recv_multipart())
        except BaseException as error:  # noqa: BLE001 (told when the test leaves the block)
            self._failed = error

    def _reply(self, header: Header, *body: bytes) -> None:
        if not self.silent:
            self._socket.send_multipart([self._peer, cbor2.dumps(header), *body])

    def _peer_says(self, parts: Sequence[bytes]) -> None:
        self._peer = parts[0]
        header: Header = cbor2.loads(parts[1])
        heard = Heard(header, list(parts[2:]), time.monotonic())
        self.heard.append(heard)
        {
            HELLO: self._on_hello,
            PING: self._on_ping,
            OPEN_PRODUCER: self._on_open_producer,
            PUBLISH: self._on_publish,
            OPEN_CONSUMER: self._on_open_consumer,
            CREDIT: self._on_credit,
            REQUEST: self._on_request,
            BYE: self._on_nothing,
        }.get(heard.kind, self._on_others)(heard)

    def _echo(self, heard: Heard, *keys: int) -> Header:
        return {key: heard.header[key] for key in keys if key in heard.header}

    def _on_nothing(self, heard: Heard) -> None:
        pass

    def _on_hello(self, heard: Heard) -> None:
        resumed = heard.header.get(20) == self._known != b""
        self._known = self._known or bytes(range(16))
        told = {
            0: WELCOME,
            22: 1,
            20: self._known,
            21: 7,
            23: self._limits,
            33: self._heartbeat_ms,
            32: resumed,
        }
        self._reply(told)

    def _on_ping(self, heard: Heard) -> None:
        self._reply({0: PONG} | self._echo(heard, 1))

    def _on_others(self, heard: Heard) -> None:
        if 1 in heard.header and self.confirms:
            self._reply({0: DONE} | self._echo(heard, 1))

    def _on_request(self, heard: Heard) -> None:
        topic = {**heard.header.get(24, {}), "strategy": "reliable", "durability": "fsync"}
        self._reply({0: RESULT} | self._echo(heard, 1), cbor2.dumps(topic))

    def _on_open_producer(self, heard: Heard) -> None:
        self._handles.pop(heard.header[2], None)
        self._handles[heard.header[2]] = OPEN_PRODUCER
        self._next_sequence = max(self._next_sequence, heard.header.get(5, 0))
        told = {5: self._next_sequence, 12: self._window_bytes, 35: "reliable"}
        self._reply({0: OPENED} | self._echo(heard, 1, 2) | told)

    def _on_publish(self, heard: Heard) -> None:
        sequence = heard.header[5]
        if sequence not in self._offset_of:
            self._offset_of[sequence] = self._stored
            self._stored += heard.count
            self._next_sequence = sequence + heard.count
        pair = [sequence, self._offset_of[sequence]]
        if self.receipts:
            self._reply({0: RECEIPT, 2: heard.header[2], 27: pair})
        elif pair not in self._unanswered:
            self._unanswered.append(pair)

    def _on_open_consumer(self, heard: Heard) -> None:
        self._handles.pop(heard.header[2], None)
        self._handles[heard.header[2]] = OPEN_CONSUMER
        self.credit = [heard.header[11], heard.header[12]]
        self.granted = heard.header[11]
        taken = self._echo(heard, 38) if self._takes else {}
        self._reply({0: OPENED} | self._echo(heard, 1, 2) | {6: 0, 35: "reliable"} | taken)

    def _on_credit(self, heard: Heard) -> None:
        self.credit[0] += heard.header[11]
        self.credit[1] += heard.header[12]
        self.granted += heard.header[11]
        self._on_others(heard)
