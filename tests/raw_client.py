"""Raw clients for tests: they send frames as in `transport/PROTOCOL.md`, without the client library.

`Speaker` has the frames; `RawClient` sends them over a ZeroMQ socket, `tests.stage.StagedClient` in one thread.
"""

from __future__ import annotations

import itertools
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import cbor2
import zmq

from ister.wire import Key, Type

PATIENCE_S = 30.0  # for one answer, on a machine that does other things too


class Frame(NamedTuple):
    """One message from the broker."""

    header: dict[int, Any]
    body: list[bytes]

    @property
    def kind(self) -> int:
        """The frame's type."""
        return int(self.header[Key.TYPE])

    @property
    def code(self) -> str:
        """The code of an ERROR or EVENT, else ""."""
        return str(self.header.get(Key.CODE, ""))

    @property
    def result(self) -> Any:
        """The body of a RESULT."""
        return cbor2.loads(self.body[0])

    def messages(self) -> list[tuple[int, bytes]]:
        """The (offset, payload) pairs of a DELIVER."""
        return list(zip(self.offsets(), split(self.body[0], self.body[1]), strict=True))

    def offsets(self) -> list[int]:
        """The offsets of a DELIVER."""
        first, flat = self.header[Key.OFFSET], self.header.get(Key.RANGES)
        if flat is None:
            return list(range(first, first + self.header[Key.COUNT]))
        return [
            offset for low, high in zip(flat[::2], flat[1::2], strict=True) for offset in range(low, high)
        ]

    def column(self, bit: int) -> list[bytes]:
        """One column of a DELIVER, by its bit."""
        at = 2 if bit == 1 or not self.header.get(Key.COLUMNS, 0) & 1 else 3
        count = self.header[Key.COUNT]
        return split(self.body[at][: 4 * count], self.body[at][4 * count :])


def split(table: bytes, items: bytes) -> list[bytes]:
    """Split items that lie end to end."""
    found, at = [], 0
    for (length,) in struct.iter_unpack("<I", table):
        found.append(items[at : at + length])
        at += length
    assert at == len(items), (at, len(items))
    return found


def table_of(items: Sequence[bytes]) -> bytes:
    """Return the length table of items."""
    return struct.pack(f"<{len(items)}I", *map(len, items))


def batch(payloads: Sequence[bytes], *columns: Sequence[bytes]) -> list[bytes]:
    """Return the body frames of a batch."""
    return [table_of(payloads), b"".join(payloads), *(table_of(each) + b"".join(each) for each in columns)]


class Speaker(ABC):
    """A client's side of the protocol; frames that were not asked for yet wait in `unread`, in order."""

    patience_s = PATIENCE_S
    # never used twice, because an answer may come over the session's next connection
    _refs = itertools.count(1)

    def __init__(self) -> None:
        self.unread: list[Frame] = []
        self.session: bytes | None = None
        self.boot: int | None = None
        self.limits: dict[int, int] = {}

    @abstractmethod
    def put(self, parts: Sequence[bytes]) -> None:
        """Send one message."""

    @abstractmethod
    def take(self, timeout_s: float) -> list[bytes] | None:
        """Return the next message, None if none comes in time."""

    def say(self, header: dict[int, Any], *body: bytes) -> None:
        """Send a frame."""
        self.put([cbor2.dumps(header), *body])

    def hear(self, timeout_s: float | None = None) -> Frame | None:
        """Return the next frame, waiting for it; None if none comes in time."""
        if self.unread:
            return self.unread.pop(0)
        parts = self.take(self.patience_s if timeout_s is None else timeout_s)
        return None if parts is None else Frame(cbor2.loads(parts[0]), parts[1:])

    def expect(self, *kinds: int, timeout_s: float | None = None, **where: Any) -> Frame:
        """Return the first frame of these kinds with these keys (`handle=2`); others stay unread."""
        keys = {getattr(Key, name.upper()): value for name, value in where.items()}
        skipped: list[Frame] = []
        until = time.monotonic() + (self.patience_s if timeout_s is None else timeout_s)
        try:
            while True:
                frame = self.hear(max(0.0, until - time.monotonic()))
                if frame is None:
                    raise AssertionError(f"no frame of type {kinds} with {where}; heard {skipped!r:.2000}")
                if frame.kind in kinds and all(frame.header.get(key) == value for key, value in keys.items()):
                    return frame
                skipped.append(frame)
        finally:
            self.unread[:0] = skipped

    def silent(self, seconds: float = 0.2) -> bool:
        """Return whether nothing is received for so long."""
        frame = self.hear(seconds)
        if frame is not None:
            self.unread.insert(0, frame)
        return frame is None

    def hello(self, *, session: bytes | None = None, **more: Any) -> Frame:
        """Send HELLO and return the answer."""
        header: dict[int, Any] = {Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.CLIENT: "raw"}
        if session is not None:
            header[Key.SESSION] = session
        self.say(header | more.get("keys", {}))
        answer = self.expect(Type.WELCOME, Type.ERROR)
        if answer.kind == Type.WELCOME:
            self.session, self.boot = answer.header[Key.SESSION], answer.header[Key.BOOT]
            self.limits = answer.header[Key.LIMITS]
        return answer

    def say_request(self, operation: str, **arguments: Any) -> int:
        """Send a request and return its REF."""
        ref = next(self._refs)
        self.say({Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: operation, Key.ARGUMENTS: arguments})
        return ref

    def ask(self, operation: str, **arguments: Any) -> Frame:
        """Send a request and return its RESULT or ERROR."""
        ref = self.say_request(operation, **arguments)
        return self.expect(Type.RESULT, Type.ERROR, ref=ref)

    def request(self, operation: str, **arguments: Any) -> Any:
        """Send a request and return its result; an error fails the test."""
        answer = self.ask(operation, **arguments)
        assert answer.kind == Type.RESULT, answer.header
        return answer.result

    def say_open_producer(self, handle: int, topic: str, producer: int, sequence: int = 0) -> int:
        """Ask for a producer and return the REF."""
        ref = next(self._refs)
        self.say(
            {
                Key.TYPE: Type.OPEN_PRODUCER,
                Key.REF: ref,
                Key.HANDLE: handle,
                Key.TOPIC: topic,
                Key.PRODUCER: producer,
                Key.SEQUENCE: sequence,
            }
        )
        return ref

    def open_producer(self, handle: int, topic: str, producer: int, sequence: int = 0) -> Frame:
        """Ask for a producer and return the answer."""
        ref = self.say_open_producer(handle, topic, producer, sequence)
        return self.expect(Type.OPENED, Type.MOVED, Type.ERROR, ref=ref)

    def say_open_consumer(
        self,
        handle: int,
        topic: str,
        subscription: str,
        type: str = "exclusive",
        *,
        start: str | int | None = "earliest",
        messages: int = 1000,
        bytes: int = 1 << 20,
        priority: int | None = None,
        sparse: bool = False,
        force: bool = False,
        tells: bool = False,
        instance: str | None = None,
        counts_moves: bool = False,
        **options: Any,
    ) -> int:
        """Ask for a consumer and return the REF.

        `tells`: it will say what its program takes; `instance`: it wants to know which of that name it gets;
        `counts_moves`: it will say of which moves of the subscription it has heard.
        """
        ref = next(self._refs)
        header: dict[int, Any] = {
            Key.TYPE: Type.OPEN_CONSUMER,
            Key.REF: ref,
            Key.HANDLE: handle,
            Key.TOPIC: topic,
            Key.SUBSCRIPTION: subscription,
            Key.SUBSCRIPTION_TYPE: type,
            Key.MESSAGES: messages,
            Key.BYTES: bytes,
        }
        if start is not None:
            header[Key.START] = start
        if priority is not None:
            header[Key.PRIORITY] = priority
        if sparse:
            header[Key.SPARSE] = True
        if force:
            header[Key.FORCE] = True
        if tells:
            header[Key.TAKEN] = 0
        if instance is not None:
            header[Key.INSTANCE] = instance
        if counts_moves:
            header[Key.SOUGHT] = 0
        if options:
            header[Key.ARGUMENTS] = options
        self.say(header)
        return ref

    def open_consumer(self, handle: int, topic: str, subscription: str, *args: Any, **options: Any) -> Frame:
        """Ask for a consumer and return the answer."""
        ref = self.say_open_consumer(handle, topic, subscription, *args, **options)
        return self.expect(Type.OPENED, Type.MOVED, Type.ERROR, ref=ref)

    def publish(self, handle: int, sequence: int, *payloads: bytes) -> None:
        """Publish payloads as one batch."""
        self.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: handle, Key.SEQUENCE: sequence}, *batch(payloads))

    def publish_keyed(
        self,
        handle: int,
        sequence: int,
        *messages: tuple[bytes, bytes],
        deliver_at: Sequence[int] = (),
        attributes: Sequence[bytes] = (),
    ) -> None:
        """Publish (key, payload) pairs as one batch, with delivery times and encoded attributes if there are any."""
        keys, payloads = [key for key, _ in messages], [payload for _, payload in messages]
        columns = (1 if any(keys) else 0) | (2 if attributes else 0) | (4 if deliver_at else 0)
        header = {Key.TYPE: Type.PUBLISH, Key.HANDLE: handle, Key.SEQUENCE: sequence, Key.COLUMNS: columns}
        body = batch(payloads, *([keys] if any(keys) else []), *([attributes] if attributes else []))
        if deliver_at:
            body.append(struct.pack(f"<{len(deliver_at)}Q", *deliver_at))
        self.say(header, *body)

    def receipt(self, handle: int, timeout_s: float | None = None) -> list[tuple[int, int]]:
        """Return the (sequence, offset) pairs of the next RECEIPT."""
        flat = self.expect(Type.RECEIPT, handle=handle, timeout_s=timeout_s).header[Key.RECEIPTS]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def receipts(self, handle: int, batches: int) -> dict[int, int]:
        """Return offsets by sequence, once this many batches have their receipts."""
        found: dict[int, int] = {}
        while len(found) < batches:
            found.update(self.receipt(handle))
        return found

    def deliveries(
        self, handle: int, messages: int, timeout_s: float | None = None
    ) -> list[tuple[int, bytes]]:
        """Return (offset, payload) of at least so many messages, in the order of arrival."""
        found: list[tuple[int, bytes]] = []
        while len(found) < messages:
            found += self.expect(Type.DELIVER, handle=handle, timeout_s=timeout_s).messages()
        return found

    def ack(self, handle: int, *ranges: tuple[int, int], confirm: bool = True, sought: int = 0) -> None:
        """Acknowledge ranges, after so many moves, and wait for the confirmation if asked to."""
        header: dict[int, Any] = {
            Key.TYPE: Type.ACK,
            Key.HANDLE: handle,
            Key.RANGES: [offset for each in ranges for offset in each],
        }
        if sought:
            header[Key.SOUGHT] = sought
        if not confirm:
            self.say(header)
            return
        ref = next(self._refs)
        self.say(header | {Key.REF: ref})
        answer = self.expect(Type.DONE, Type.ERROR, ref=ref)
        assert answer.kind == Type.DONE, answer.header

    def extend(self, handle: int, *ranges: tuple[int, int]) -> None:
        """Restart the acknowledgment timeout of ranges."""
        flat = [offset for each in ranges for offset in each]
        self.say({Key.TYPE: Type.EXTEND, Key.HANDLE: handle, Key.RANGES: flat})

    def nack(
        self, handle: int, *ranges: tuple[int, int], delay_ms: int | None = None, reason: str = ""
    ) -> None:
        """Refuse ranges."""
        header: dict[int, Any] = {
            Key.TYPE: Type.NACK,
            Key.HANDLE: handle,
            Key.RANGES: [offset for each in ranges for offset in each],
        }
        if delay_ms is not None:
            header[Key.DELAY] = delay_ms
        if reason:
            header[Key.REASON] = reason
        self.say(header)

    def ack_until(self, handle: int, offset: int) -> Frame:
        """Acknowledge everything up to and including an offset, and return the answer."""
        ref = next(self._refs)
        self.say({Key.TYPE: Type.ACK_UNTIL, Key.HANDLE: handle, Key.OFFSET: offset, Key.REF: ref})
        return self.expect(Type.DONE, Type.ERROR, ref=ref)

    def credit(self, handle: int, messages: int, bytes: int = 1 << 20) -> None:
        """Give credit."""
        self.say({Key.TYPE: Type.CREDIT, Key.HANDLE: handle, Key.MESSAGES: messages, Key.BYTES: bytes})

    def taken(self, handle: int, count: int, *, alone: bool = False) -> None:
        """Report that the program may have the first `count` messages; `alone`: with an answer for the last."""
        header: dict[int, Any] = {Key.TYPE: Type.CREDIT, Key.HANDLE: handle, Key.MESSAGES: 0, Key.BYTES: 0}
        header[Key.TAKEN] = count
        if not alone:
            self.say(header)
            return
        ref = next(self._refs)
        self.say(header | {Key.REF: ref})
        self.expect(Type.DONE, ref=ref)

    def close_handle(self, handle: int) -> Frame:
        """Close a handle and return the answer."""
        ref = next(self._refs)
        self.say({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: handle})
        return self.expect(Type.DONE, Type.ERROR, ref=ref)


class RawClient(Speaker):
    """A client of one worker over TCP; it sends HELLO when created, unless told not to."""

    connected: ClassVar[set[RawClient]] = set()  # those not closed yet: a test's fixture closes them

    def __init__(self, endpoint: str, *, hello: bool = True) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.socket = self._socket()
        if hello:
            assert self.hello().kind == Type.WELCOME

    def _socket(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = 0
        socket.connect(self.endpoint)
        self.connected.add(self)
        return socket

    def reconnect(self) -> None:
        """Break the connection, and make another; unread frames are lost."""
        self.socket.close(linger=0)
        self.unread.clear()
        self.socket = self._socket()

    def put(self, parts: Sequence[bytes]) -> None:
        self.socket.send_multipart(parts)

    def take(self, timeout_s: float) -> list[bytes] | None:
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        return self.socket.recv_multipart()

    def close(self) -> None:
        """Close the socket, without a goodbye."""
        self.socket.close(linger=0)
        self.connected.discard(self)


def follow(endpoint: str, open: Any) -> tuple[RawClient, Frame]:
    """Return a client at the worker that answers `open(client)` with OPENED, following MOVED, and that answer."""
    for _ in range(5):
        client = RawClient(endpoint)
        answer = open(client)
        if answer.kind != Type.MOVED:
            return client, answer
        client.close()
        endpoint = answer.header[Key.ENDPOINT]
    raise AssertionError("moved five times")
