"""Tests of the gateway: whatever a client sends, only that client gets an error, and no other notices."""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cbor2
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from ister.bodies import Buffer
from ister.clock import SystemClock
from ister.errors import CODES, RemoteError, UsageError
from ister.transport.gateway import Gateway, Sent
from ister.transport.session import Handle, Session, SessionLimits, Sessions
from ister.wire import HEADER_BYTES_MAX, Header, Key, Type
from tests.raw_client import Frame, RawClient, batch

MESSAGE_BYTES_MAX = 1000
BATCH_BYTES_MAX = 4000


class Heard:
    """Records what the gateway tells the broker; opens are answered at once."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.calls: list[tuple[Any, ...]] = []
        self.fails: Exception | None = None

    def _happens(self, *call: Any) -> None:
        self.calls.append(call)
        if self.fails is not None:
            raise self.fails

    def _open(self, handle: Handle, header: Header, state: Any) -> None:
        self._happens("open", state, handle.number)
        self.gateway.sessions.opened(handle, handle.generation, state)
        opened = {Key.TYPE: Type.OPENED, Key.REF: header[Key.REF], Key.HANDLE: handle.number}
        self.gateway.send(handle.session, opened)

    def open_producer(self, handle: Handle, header: Header) -> None:
        self._open(handle, header, "producer")

    def open_consumer(self, handle: Handle, header: Header) -> None:
        self._open(handle, header, "consumer")

    def publish(
        self, handle: Handle, sequence: int, count: int, columns: int, frames: Sequence[Buffer], /
    ) -> None:
        self._happens("publish", handle.number, sequence, count, columns, [bytes(frame) for frame in frames])

    def consumer_frame(self, handle: Handle, header: Header) -> None:
        self._happens("frame", handle.number, header[Key.TYPE])

    def close(self, handle: Handle, ref: int | None) -> None:
        self._happens("close", handle.number, ref)
        self.gateway.sessions.closed(handle)

    def request(self, session: Session, ref: int, operation: str, arguments: dict[str, object]) -> None:
        self._happens("request", ref, operation, arguments)

    def session_ended(self, session: Session) -> None:
        self._happens("ended", session.client)


class Served:
    """A gateway on a port of this machine, which runs whenever one of its clients waits."""

    def __init__(self, **changes: int) -> None:
        limits = {
            "message_bytes_max": MESSAGE_BYTES_MAX,
            "batch_bytes_max": BATCH_BYTES_MAX,
            "batches_in_flight_max": 64,
            "producer_window_bytes": 10_000,
            "session_timeout_ms": 15_000,
            "handles_max": 8,
            "credit_messages_max": 100,
            "credit_bytes_max": 1000,
            "heartbeat_ms": 5000,
            "sessions_max": 20,
        }
        tokens = itertools.count(1)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sessions = Sessions(5, SessionLimits(**(limits | changes)), lambda: next(tokens).to_bytes(16))
        self.gateway = Gateway(self.context, SystemClock(), sessions)
        self.heard = Heard(self.gateway)
        self.gateway.bind("tcp://127.0.0.1:*", self.heard)
        self.gateway.watch_connections()
        self.endpoint = self.gateway.socket.get_string(zmq.LAST_ENDPOINT)
        self.clients: list[ServedClient] = []

    def client(self, *, hello: bool = True) -> ServedClient:
        client = ServedClient(self, hello=hello)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.gateway.close()
        self.context.destroy(linger=0)


class ServedClient(RawClient):
    """A client that runs the gateway while it waits."""

    patience_s = 30.0

    def __init__(self, served: Served, *, hello: bool) -> None:
        self.served = served
        super().__init__(served.endpoint, hello=hello)

    def take(self, timeout_s: float) -> list[bytes] | None:
        until = time.monotonic() + timeout_s
        while True:
            self.served.gateway.read_connections()
            self.served.gateway.receive()
            if self.socket.poll(1):
                return self.socket.recv_multipart()
            if time.monotonic() >= until:
                return None

    def error(self) -> Frame:
        """Return the next frame, which must be an ERROR."""
        frame = self.hear()
        assert frame is not None
        assert frame.kind == Type.ERROR, frame
        assert frame.header[Key.ACTION] == CODES[frame.code]
        return frame

    def alive(self) -> None:
        """Check that the broker answers."""
        self.say({Key.TYPE: Type.PING, Key.REF: 4711})
        assert self.expect(Type.PONG, ref=4711)


@pytest.fixture
def served() -> Iterator[Served]:
    """Return a gateway with small limits."""
    served = Served()
    yield served
    served.close()


def until(served: Served, so: Callable[[], object]) -> None:
    """Run the gateway until a condition is true."""
    patience = time.monotonic() + 60
    while not so():
        assert time.monotonic() < patience, "it never is so"
        served.gateway.read_connections()
        served.gateway.receive()
        served.gateway.look_after_connections()
        served.gateway.sweep()
        time.sleep(0.001)


# ---- connections that are closed -------------------------------------------------------------------------------


@pytest.mark.requirement("7.3-6")
def test_a_client_that_is_gone_without_a_word_loses_its_session_soon() -> None:
    """The end of its connection shows it, long before the session times out; it counts as lost."""
    served = Served(session_timeout_ms=600_000, resume_within_ms=50)
    try:
        gone, stays = served.client(), served.client()
        sessions = {session.routing: session for session in served.gateway.sessions}
        gone.close()
        until(served, lambda: served.heard.calls)
        assert served.heard.calls == [("ended", "raw")]
        assert [session.lost for session in sessions.values()].count(True) == 1
        stays.alive()
        assert served.heard.calls == [("ended", "raw")]
    finally:
        served.close()


def test_a_client_that_comes_back_in_time_keeps_its_session() -> None:
    """A reconnect costs nothing, whether the broker sees the end or the new connection first."""
    served = Served(session_timeout_ms=600_000, resume_within_ms=1_500)
    try:
        client = served.client()
        for late in (False, True, False):
            client.reconnect()
            if late:
                until(served, lambda: [each.orphaned_at_s for each in served.gateway.sessions] != [None])
            assert client.hello(session=client.session).header[Key.RESUMED]
            (session,) = served.gateway.sessions
            assert session.orphaned_at_s is None
        pause = time.monotonic() + 2
        until(served, lambda: time.monotonic() > pause)
        client.alive()
        assert not served.heard.calls
    finally:
        served.close()


def test_what_was_said_before_the_end_is_heard_and_does_not_prolong_the_session() -> None:
    """A BYE that is read after the end of its connection counts as BYE."""
    served = Served(session_timeout_ms=600_000, resume_within_ms=600_000)
    try:
        client = served.client()
        client.say({Key.TYPE: Type.PING})
        client.say({Key.TYPE: Type.BYE})
        client.socket.close(linger=1000)
        (session,) = served.gateway.sessions
        patience = time.monotonic() + 20
        while session.orphaned_at_s is None and time.monotonic() < patience:
            served.gateway.read_connections()
            time.sleep(0.001)
        assert session.orphaned_at_s is not None
        until(served, lambda: served.heard.calls)
        assert not session.lost
    finally:
        served.close()


def test_a_hello_that_is_read_after_its_connection_was_closed_holds_no_session_for_long() -> None:
    """Otherwise a client that is gone would keep its consumers until the session times out."""
    served = Served(session_timeout_ms=600_000, resume_within_ms=0)
    try:
        client = served.client(hello=False)
        client.say({Key.TYPE: Type.HELLO, Key.VERSION: [1]})
        client.socket.close(linger=1000)
        served.clients.clear()
        patience = time.monotonic() + 20
        connections = served.gateway._connections
        while not connections._open and time.monotonic() < patience:
            served.gateway.read_connections()
        while connections._open and time.monotonic() < patience:
            served.gateway.read_connections()
        assert not served.heard.calls
        until(served, lambda: served.heard.calls == [("ended", "")])
    finally:
        served.close()


# ---- without faults --------------------------------------------------------------------------------------------


def test_hello_ping_and_bye(served: Served) -> None:
    """A session begins with HELLO, lives as long as the client sends, and ends with BYE."""
    client = served.client()
    assert client.boot == 5
    client.say({Key.TYPE: Type.PING})
    assert client.expect(Type.PONG).header == {Key.TYPE: Type.PONG, Key.BOOT: 5}
    client.say({Key.TYPE: Type.BYE})
    client.say({Key.TYPE: Type.PING})
    assert client.error().code == "hello-required"
    assert served.heard.calls == [("ended", "raw")]


def test_a_batch_reaches_the_broker_as_it_was_sent(served: Served) -> None:
    """Tables and payloads are passed on byte for byte; a single payload gets its table."""
    client = served.client()
    client.open_producer(1, "t", 7)
    frames = batch([b"a", b"", b"ccc"], [b"k", b"", b""], [b"", b"", b"\xa0"])
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0, Key.COLUMNS: 3}, *frames)
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 3}, b"lone")
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 4}, b"")
    client.alive()
    assert served.heard.calls[1:] == [
        ("publish", 1, 0, 3, 3, frames),
        ("publish", 1, 3, 1, 0, [struct.pack("<I", 4), b"lone"]),
        ("publish", 1, 4, 1, 0, [struct.pack("<I", 0), b""]),
    ]
    assert served.gateway.counts.malformed == 0


def test_frames_go_to_their_handles(served: Served) -> None:
    """Credit, acknowledgments, closes and requests reach the broker with their fields."""
    client = served.client()
    client.open_consumer(2, "t", "s")
    client.credit(2, 5)
    client.ack(2, (0, 1), confirm=False)
    client.nack(2, (1, 2))
    client.say({Key.TYPE: Type.ACK_UNTIL, Key.HANDLE: 2, Key.OFFSET: 3})
    client.say({Key.TYPE: Type.EXTEND, Key.HANDLE: 2, Key.RANGES: [4, 5]})
    client.say({Key.TYPE: Type.CLOSE, Key.REF: 9, Key.HANDLE: 2})
    client.say({Key.TYPE: Type.REQUEST, Key.REF: 8, Key.OPERATION: "status"})
    client.alive()
    kinds = (Type.CREDIT, Type.ACK, Type.NACK, Type.ACK_UNTIL, Type.EXTEND)
    assert served.heard.calls[1:] == [
        *(("frame", 2, kind) for kind in kinds),
        ("close", 2, 9),
        ("request", 8, "status", {}),
    ]


# ---- what clients do wrong -------------------------------------------------------------------------------------

PING = {Key.TYPE: Type.PING}
DEEP: Any = 0
for _ in range(6):
    DEEP = [DEEP]

MALFORMED = {
    "empty": b"",
    "no-cbor": b"hello",
    "cut-short": cbor2.dumps({Key.TYPE: Type.PING, Key.REF: 70_000})[:-1],
    "trailing": cbor2.dumps(PING) + b"\0",
    "two-maps": cbor2.dumps(PING) * 2,
    "a-list": cbor2.dumps([1, 2]),
    "a-number": cbor2.dumps(3),
    "indefinite-map": b"\xbf\x00\x03\xff",
    "indefinite-text": b"\xa2\x00\x03\x18\x1f\x7f\x61a\xff",
    "duplicate-key": b"\xa2\x00\x03\x00\x03",
    "false-for-zero": b"\xa2\x00\x03\xf4\x03",
    "float-for-zero": b"\xa2\x00\x03\xf9\x00\x00\x03",
    "tagged-map": b"\xc1" + cbor2.dumps(PING),
    "tagged-number": b"\xa1\x00\xc2\x41\x03",
    "tag-under-an-unknown-key": cbor2.dumps({Key.TYPE: Type.PING, 99: cbor2.CBORTag(6000, 1)}),
    "text-key": cbor2.dumps({Key.TYPE: Type.PING, "a": 1}),
    "negative-key": cbor2.dumps({Key.TYPE: Type.PING, -1: 1}),
    "too-deep": cbor2.dumps({Key.TYPE: Type.PING, 99: DEEP}),
    "too-long": cbor2.dumps({Key.TYPE: Type.PING, 99: bytes(HEADER_BYTES_MAX)}),
    "huge-array": b"\xa2\x00\x03\x18\x63\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    "huge-map": b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",
    "reserved-length": b"\xa1\x00\x1c",
    "bad-utf-8": b"\xa2\x00\x03\x18\x1f\x62\xff\xfe",
    "ref-is-text": cbor2.dumps({Key.TYPE: Type.PING, Key.REF: "1"}),
    "ref-is-true": cbor2.dumps({Key.TYPE: Type.PING, Key.REF: True}),
    "ref-is-negative": cbor2.dumps({Key.TYPE: Type.PING, Key.REF: -1}),
    "ref-is-65-bits": cbor2.dumps({Key.TYPE: Type.PING, Key.REF: 1 << 64}),
    "ref-is-a-float": cbor2.dumps({Key.TYPE: Type.PING, Key.REF: 1.0}),
    "no-type": cbor2.dumps({Key.REF: 1}),
    "type-is-none": cbor2.dumps({Key.TYPE: None}),
    "key-missing": cbor2.dumps({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1}),
    "odd-ranges": cbor2.dumps({Key.TYPE: Type.ACK, Key.HANDLE: 1, Key.RANGES: [1]}),
    "session-is-short": cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: 1, Key.SESSION: b"x"}),
    "start-is-noon": cbor2.dumps({Key.TYPE: Type.PING, Key.START: "noon"}),
    "arguments-with-a-tag": cbor2.dumps(
        {Key.TYPE: Type.REQUEST, Key.REF: 1, Key.OPERATION: "a", Key.ARGUMENTS: {"a": cbor2.CBORTag(6000, 1)}}
    ),
    "arguments-by-number": cbor2.dumps(
        {Key.TYPE: Type.REQUEST, Key.REF: 1, Key.OPERATION: "a", Key.ARGUMENTS: {1: 1}}
    ),
}


@pytest.mark.requirement("11.1-6")
@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_header_is_answered_and_counted(served: Served, header: bytes) -> None:
    """The client gets "malformed", its session goes on, and nothing reaches the broker."""
    client = served.client()
    client.put([header])
    refused = client.error()
    assert refused.code == "malformed", refused.header
    assert len(refused.header[Key.TEXT]) < 300
    client.alive()
    assert served.gateway.counts.malformed == 1
    assert served.heard.calls == []


@pytest.mark.requirement("2.2-14", "15-4")
@pytest.mark.parametrize("kind", [0, 14, 31, 32, 1 << 40])
def test_an_unknown_frame_is_an_unknown_operation(served: Served, kind: int) -> None:
    """A frame type of another version is refused with that code."""
    client = served.client()
    client.say({Key.TYPE: kind})
    assert client.error().code == "unknown-operation"
    client.alive()


def test_a_clients_frame_is_not_the_brokers(served: Served) -> None:
    """A frame type that only the broker sends is malformed from a client."""
    client = served.client()
    client.say({Key.TYPE: Type.DONE, Key.REF: 3})
    refused = client.error()
    assert (refused.code, refused.header[Key.REF]) == ("malformed", 3)


@pytest.mark.requirement("7.1-1")
def test_nothing_but_hello_is_taken_before_hello(served: Served) -> None:
    """Without a session every frame has the same answer, with the fields that identify the frame."""
    client = served.client(hello=False)
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 3, Key.SEQUENCE: 9}, b"x")
    refused = client.error()
    assert refused.code == "hello-required"
    assert (refused.header[Key.HANDLE], refused.header[Key.SEQUENCE]) == (3, 9)
    client.say({Key.TYPE: Type.REQUEST, Key.REF: 5, Key.OPERATION: "status"})
    assert client.error().header[Key.REF] == 5
    assert served.heard.calls == []


def test_a_message_without_frames_is_answered(served: Served) -> None:
    """An empty message is malformed."""
    client = served.client()
    client.socket.send(b"")
    assert client.error().code == "malformed"
    client.socket.send_multipart([b"", cbor2.dumps(PING)])  # as a REQ socket would send
    assert client.error().code == "malformed"
    client.alive()


LARGE = bytes(MESSAGE_BYTES_MAX)
BAD_BATCHES: dict[str, tuple[int, list[bytes], str]] = {
    "no-body": (0, [], "malformed"),
    "three-frames": (0, [*batch([b"a"]), b"x"], "malformed"),
    "column-missing": (1, batch([b"a"]), "malformed"),
    "lone-with-column": (1, [b"a"], "malformed"),
    "unknown-column": (8, [*batch([b"a"]), b"x"], "malformed"),
    "no-message": (0, [b"", b""], "malformed"),
    "table-cut-short": (0, [b"\1\0\0", b"a"], "lengths-mismatch"),
    "too-few-bytes": (0, [struct.pack("<2I", 1, 2), b"ab"], "lengths-mismatch"),
    "too-many-bytes": (0, [struct.pack("<I", 1), b"ab"], "lengths-mismatch"),
    "lengths-that-wrap": (0, [struct.pack("<2I", 0xFFFFFFFF, 2), b"a"], "lengths-mismatch"),
    "keys-too-short": (1, [*batch([b"a", b"b"]), struct.pack("<I", 0)], "lengths-mismatch"),
    "keys-do-not-add-up": (1, [*batch([b"a"]), struct.pack("<I", 2) + b"k"], "lengths-mismatch"),
    "keys-with-a-rest": (1, [*batch([b"a"]), struct.pack("<I", 1) + b"kk"], "lengths-mismatch"),
    "attributes-do-not-add-up": (2, [*batch([b"a"]), struct.pack("<I", 9)], "lengths-mismatch"),
    "lone-too-large": (0, [LARGE + b"x"], "message-too-large"),
    "one-too-large": (0, batch([b"a", LARGE + b"x"]), "message-too-large"),
    "batch-too-large": (0, batch([LARGE] * 4), "batch-too-large"),
    "keys-too-large": (1, batch([b"a"], [bytes(BATCH_BYTES_MAX)]), "batch-too-large"),
}


@pytest.mark.parametrize(("columns", "frames", "code"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_a_bad_batch_is_refused_by_its_sequence(
    served: Served, columns: int, frames: list[bytes], code: str
) -> None:
    """An invalid or too large batch is refused as a whole; the next one is accepted."""
    client = served.client()
    client.open_producer(1, "t", 7)
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 5, Key.COLUMNS: columns}, *frames)
    refused = client.error()
    assert (refused.code, refused.header[Key.HANDLE], refused.header[Key.SEQUENCE]) == (code, 1, 5)
    assert Key.CLOSED not in refused.header
    client.publish(1, 5, b"good")
    client.alive()
    assert [call[0] for call in served.heard.calls] == ["open", "publish"]


def test_the_largest_message_and_batch_are_taken(served: Served) -> None:
    """A message or batch exactly at the limit is accepted."""
    client = served.client()
    client.open_producer(1, "t", 7)
    client.publish(1, 0, LARGE)
    client.publish(1, 1, LARGE, LARGE, LARGE, bytes(MESSAGE_BYTES_MAX - 16))
    client.alive()
    assert [call[3] for call in served.heard.calls[1:]] == [1, 4]


@pytest.mark.requirement("1.3-4")
def test_a_frame_beyond_all_limits_costs_its_connection_alone(served: Served) -> None:
    """A far too large frame is not even received: that client is disconnected, and all others go on."""
    client, other = served.client(), served.client()
    client.open_producer(1, "t", 7)
    client.publish(1, 0, bytes(100 * BATCH_BYTES_MAX))
    assert client.silent(0.3)
    other.alive()
    again = served.client(hello=False)
    assert again.hello(session=client.session).header[Key.RESUMED] is True


@pytest.mark.requirement("2.1-2")
@pytest.mark.parametrize("kind", [Type.PING, Type.CREDIT, Type.REQUEST, Type.BYE, Type.CLOSE])
def test_only_a_batch_has_a_body(served: Served, kind: int) -> None:
    """A body where none belongs is malformed."""
    client = served.client()
    whole = {
        Key.TYPE: kind,
        Key.REF: 1,
        Key.HANDLE: 1,
        Key.OPERATION: "x",
        Key.MESSAGES: 1,
        Key.BYTES: 1,
    }
    client.say(whole, b"body")
    assert client.error().code == "malformed"
    assert served.heard.calls == []


def test_garbage_on_the_port_is_nobodys_business() -> None:
    """Bytes that are no ZeroMQ disturb no client, and leave no session behind."""
    served = Served()
    try:
        client = served.client()
        port = int(served.endpoint.rsplit(":", 1)[1])
        strangers = []
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0" * 200,
            b"\xff" * 11 + b"\x7f",
            bytes(range(256)) * 20,
            b"",
        ):
            stranger = socket.create_connection(("127.0.0.1", port))
            stranger.sendall(garbage)
            strangers.append(stranger)
        for _ in range(20):
            client.alive()
        assert len(served.gateway.sessions) == 1
        for stranger in strangers:
            stranger.close()
        client.alive()
    finally:
        served.close()


# ---- what the broker does wrong --------------------------------------------------------------------------------


def test_a_mistake_of_the_broker_is_an_error_to_that_client(served: Served) -> None:
    """An exception while a frame is handled is answered with "internal"; the gateway goes on."""
    client = served.client()
    served.heard.fails = ZeroDivisionError("a mistake")
    client.say({Key.TYPE: Type.REQUEST, Key.REF: 7, Key.OPERATION: "status"})
    refused = client.error()
    assert (refused.code, refused.header[Key.REF]) == ("internal", 7)
    served.heard.fails = None
    client.alive()


def test_a_refused_open_frees_its_handle(served: Served) -> None:
    """After the refusal the handle is as if it had never been opened."""
    client = served.client()
    served.heard.fails = UsageError("no such thing", code="invalid-name")
    refused = client.open_producer(1, "t", 7)
    assert (refused.code, refused.header[Key.HANDLE]) == ("invalid-name", 1)
    served.heard.fails = None
    assert client.open_consumer(1, "t", "s").kind == Type.OPENED


def test_an_open_again_that_is_refused_closes_what_stood_behind_it(served: Served) -> None:
    """A handle that is closed must not leave a producer or consumer behind."""
    client = served.client()
    client.open_producer(1, "t", 7)
    (session,) = served.gateway.sessions
    session.handles[1].target = object()
    served.heard.fails = RemoteError("busy", "too much at once")
    served.heard.calls.clear()
    ref = client.say_open_producer(1, "t", 7)
    assert client.expect(Type.ERROR, ref=ref).code in ("busy", "internal")
    assert [call[0] for call in served.heard.calls] == ["open", "close"]


# ---- clients that do not read ----------------------------------------------------------------------------------


def flooded(served: Served, client: ServedClient) -> Session:
    """Send to a client that does not read until its queue is full, and return its session."""
    session: Session = next(each for each in served.gateway.sessions if each.token == client.session)
    piece = {Key.TYPE: Type.DELIVER, Key.HANDLE: 1, Key.OFFSET: 0, Key.COUNT: 1, Key.TIMESTAMPS: [1, 0]}
    body = batch([bytes(100_000)])
    for _ in range(20_000):
        if served.gateway.send(session, piece, body, may_wait=True) is Sent.FULL:
            time.sleep(0.05)  # the connection may take some more of it meanwhile
            if served.gateway.send(session, piece, body, may_wait=True) is Sent.FULL:
                return session
    raise AssertionError("it is never full")


@pytest.fixture
def small_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client's queue hold few messages."""
    monkeypatch.setattr("ister.transport.router.SEND_HWM", 50)


@pytest.mark.requirement("7.3-7")
def test_what_a_full_queue_has_no_room_for_is_not_lost_unnoticed(small_queues: None, served: Served) -> None:
    """A receipt that cannot be sent closes the connection: the client notices, resumes, and asks again."""
    lazy, other = served.client(), served.client()
    session = flooded(served, lazy)
    assert session.routing is not None
    receipt = {Key.TYPE: Type.RECEIPT, Key.HANDLE: 1, Key.RECEIPTS: [0, 0]}
    assert served.gateway.send(session, receipt) is Sent.GONE
    assert session.routing is None
    other.alive()
    lazy.say(PING)
    assert other.silent(0.05)
    frames = 0
    while (frame := lazy.hear(2)) is not None and frame.kind == Type.DELIVER:
        frames += 1
    assert frames > 20
    lazy.say(PING)
    assert lazy.expect(Type.ERROR).code == "hello-required"
    assert lazy.hello(session=lazy.session).header[Key.RESUMED] is True
    assert served.gateway.send(session, receipt) is Sent.OK
    assert lazy.expect(Type.RECEIPT)


@pytest.mark.parametrize(
    ("batch_bytes", "messages"), [(1000, 1000), (1 << 20, 64), (4 << 20, 16), (7 << 20, 16)]
)
def test_what_one_connection_may_have_waiting_is_bounded_in_bytes(batch_bytes: int, messages: int) -> None:
    """ZeroMQ counts messages: the larger they may be, the fewer may wait; a flood of batches had filled a gigabyte."""
    served = Served(batch_bytes_max=batch_bytes)
    assert served.gateway.socket.get(zmq.RCVHWM) == messages
    served.close()


def test_a_client_that_is_gone_is_noticed_when_it_is_told_something(served: Served) -> None:
    """Sending to it raises an error, and the session waits to be resumed."""
    client = served.client()
    (session,) = served.gateway.sessions
    client.socket.close(linger=0)
    until = time.monotonic() + 5
    while served.gateway.send(session, {Key.TYPE: Type.PONG}) is Sent.OK and time.monotonic() < until:
        time.sleep(0.01)
    assert session.routing is None
    assert served.gateway.send(session, {Key.TYPE: Type.PONG}) is Sent.GONE
    assert len(served.gateway.sessions) == 1
    assert served.heard.calls == []


def test_a_flood_of_hellos_uses_one_session(served: Served) -> None:
    """A client that repeats HELLO does not use up the sessions of others."""
    client = served.client()
    for _ in range(3 * served.gateway.sessions.limits.sessions_max):
        assert client.hello().kind == Type.WELCOME
    assert len(served.gateway.sessions) == 1
    served.client().alive()


def test_an_address_of_the_sixth_version_can_be_listened_on(served: Served) -> None:
    """Settings accept it, so the socket must."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    another = Gateway(served.context, SystemClock(), served.gateway.sessions)
    try:
        another.bind("tcp://[::1]:*", served.heard)
        assert another.socket.get_string(zmq.LAST_ENDPOINT).startswith("tcp://[::1]:")
    finally:
        another.close()


def test_a_port_that_is_taken_is_an_error_that_says_so(served: Served) -> None:
    """The second broker on an address is told which address it is."""
    second = Gateway(served.context, SystemClock(), served.gateway.sessions)
    with pytest.raises(UsageError, match=served.endpoint) as raised:
        second.bind(served.endpoint, served.heard)
    assert raised.value.code == "address-in-use"
    second.close()


# ---- anything at all -------------------------------------------------------------------------------------------

_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.text(max_size=5)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_HEADERS = st.binary(max_size=60) | st.builds(
    cbor2.dumps,
    st.dictionaries(st.integers(0, 36), _PLAIN, max_size=6).flatmap(
        lambda some: st.builds(lambda kind: {Key.TYPE: kind} | some | {Key.TYPE: kind}, st.integers(0, 43))
    ),
)
_MESSAGES = st.lists(
    st.tuples(_HEADERS, st.lists(st.binary(max_size=12), max_size=4)),
    min_size=1,
    max_size=20,
)


@pytest.fixture(scope="module")
def long_served() -> Iterator[Callable[[], Served]]:
    """Return one gateway for all examples."""
    served = Served(sessions_max=10_000)
    yield lambda: served
    served.close()


@pytest.mark.requirement("16-2")
@settings(max_examples=150)
@given(messages=_MESSAGES)
def test_whatever_comes_in_the_gateway_goes_on(
    long_served: Callable[[], Served], messages: list[tuple[bytes, list[bytes]]]
) -> None:
    """No bytes of a client raise an exception, end its session or stop the gateway."""
    served = long_served()
    router = _Loopback(served)
    for header, body in messages:
        router.receive([header, *body])
    assert all(Frame(cbor2.loads(parts[0]), parts[1:]).kind >= 32 for parts in router.answers)
    router.receive([cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: 1})])
    assert cbor2.loads(router.answers[-1][0])[Key.TYPE] == Type.WELCOME


class _Loopback:
    """Gives messages to a gateway as its socket would, and records the answers."""

    def __init__(self, served: Served) -> None:
        self.gateway = served.gateway
        self.answers: list[list[bytes]] = []

    def receive(self, parts: list[bytes]) -> None:
        real = self.gateway.socket
        self.gateway.socket = self  # type: ignore[assignment]
        try:
            self.gateway._take([b"loop", *parts], 0.0)
        finally:
            self.gateway.socket = real

    def send_multipart(self, parts: Sequence[Any], _flags: int = 0) -> None:
        self.answers.append([bytes(part) for part in parts[1:]])


@pytest.mark.requirement("2.2-14", "11.1-1")
@pytest.mark.parametrize(
    "header",
    [
        {Key.TYPE: Type.ACK, Key.REF: 7, Key.HANDLE: 3},  # without ranges
        {Key.TYPE: Type.ACK, Key.REF: 7, Key.HANDLE: 3, Key.RANGES: [1]},
        {Key.TYPE: Type.ACK, Key.REF: 7, Key.HANDLE: 3, Key.RANGES: "all"},
        {Key.TYPE: Type.OPEN_PRODUCER, Key.REF: 7, Key.HANDLE: 3, Key.TOPIC: 5},
        {Key.TYPE: 31, Key.REF: 7, Key.HANDLE: 3},
        {Key.REF: 7, Key.HANDLE: 3},
        {
            Key.TYPE: Type.DELIVER,
            Key.REF: 7,
            Key.HANDLE: 3,
            Key.OFFSET: 1,
            Key.COUNT: 1,
            Key.TIMESTAMPS: [1, 1],
        },
    ],
)
def test_a_header_that_is_wrong_is_answered_with_its_numbers(served: Served, header: dict[int, Any]) -> None:
    """The error has the fields that identify the frame, as far as they can be read."""
    client = served.client()
    client.say(header)
    answer = client.error()
    assert answer.code in ("malformed", "unknown-operation")
    assert (answer.header[Key.REF], answer.header[Key.HANDLE]) == (7, 3)


@pytest.mark.requirement("2.2-14", "11.1-5")
@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\x01", cbor2.dumps({1: -1, 2: 1 << 70}), cbor2.dumps({1: "a"})]
)
def test_what_cannot_be_read_is_answered_without_numbers(served: Served, data: bytes) -> None:
    """The error has no REF or handle that was not sent."""
    client = served.client()
    client.put([data])
    answer = client.error()
    assert answer.code == "malformed"
    assert not {Key.REF, Key.HANDLE} & answer.header.keys()


@pytest.mark.requirement("1.1-2")
def test_a_peer_of_an_older_zeromq_is_answered_like_any_other(served: Served) -> None:
    """ZMTP 1.0 does not tell which connection a message came over: that ends no worker."""
    client = served.client()
    port = int(served.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as old:
        old.sendall(b"\x01\x00" + b"\x02\x00x")  # no identity, then one frame
        until = time.monotonic() + 10
        while not served.gateway.counts.malformed and time.monotonic() < until:
            served.gateway.receive()
            time.sleep(0.01)
        assert served.gateway.counts.malformed == 1
    client.say({Key.TYPE: Type.PING, Key.REF: 1})
    assert client.expect(Type.PONG, ref=1)
