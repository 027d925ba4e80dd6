"""Tests of what PROTOCOL.md says about a worker's socket, with a peer that speaks ZMTP by itself, and misusing ones."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import cbor2
import pytest
import zmq

from ister.transport import router as router_module
from ister.wire import Key, Type
from tests.transport.test_gateway import BATCH_BYTES_MAX, Served, until

PING_COMMAND = b"\x04PING"


class Peer:
    """A DEALER of ZMTP 3.0, written out: the least that a client's ZeroMQ library does."""

    connected: ClassVar[list[socket.socket]] = []  # closed by a fixture

    def __init__(self, served: Served, *, shakes_hands: bool = True) -> None:
        self.served = served
        host, port = served.endpoint.removeprefix("tcp://").rsplit(":", 1)
        self.tcp = socket.create_connection((host, int(port)))
        self.connected.append(self.tcp)
        self.buffer = b""
        self.closed = False
        if not shakes_hands:
            return
        self.tcp.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        self.read(64)
        ready = b"\x05READY" + b"".join(
            struct.pack("B", len(name)) + name + struct.pack(">I", len(value)) + value
            for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", b""))
        )
        self.tcp.sendall(struct.pack("BB", 4, len(ready)) + ready)
        assert self.frame()[0] == 4  # its READY

    def read(self, size: int) -> bytes:
        """Return so many bytes; run the gateway meanwhile."""
        until(self.served, lambda: self._has(size))
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def _has(self, size: int) -> bool:
        while len(self.buffer) < size and not self.closed and select.select([self.tcp], [], [], 0)[0]:
            try:
                found = self.tcp.recv(65_536)
            except ConnectionResetError:
                found = b""
            self.closed = not found
            self.buffer += found
        return len(self.buffer) >= size or self.closed

    def frame(self) -> tuple[int, bytes]:
        """Return the next frame's flags and bytes."""
        flags = self.read(1)[0]
        size = struct.unpack(">Q", self.read(8))[0] if flags & 2 else self.read(1)[0]
        return flags, self.read(size)

    def say(self, *frames: bytes) -> None:
        """Send one message."""
        for number, frame in enumerate(frames):
            more = number < len(frames) - 1
            self.tcp.sendall(struct.pack("BB", int(more), len(frame)) + frame)

    def pong(self, ping: bytes) -> None:
        """Answer a PING."""
        body = b"\x04PONG" + ping[7:]
        self.tcp.sendall(struct.pack("BB", 4, len(body)) + body)


@pytest.fixture
def make_served() -> Iterator[Callable[[], Served]]:
    """Return a function that makes a gateway on a port."""
    made: list[Served] = []
    Peer.connected.clear()

    def make() -> Served:
        made.append(Served())
        return made[-1]

    yield make
    for tcp in Peer.connected:
        tcp.close()
    for served in made:
        served.close()


@pytest.mark.requirement("1.1-1", "1.3-1", "1.3-2", "1.3-4", "16-4")
def test_the_workers_socket_is_what_the_document_says(make_served: Callable[[], Served]) -> None:
    """A ROUTER without a security mechanism, with limits on handshake, heartbeats and frames."""
    router = make_served().gateway.socket
    assert router.getsockopt(zmq.TYPE) == zmq.ROUTER
    assert router.getsockopt(zmq.MECHANISM) == zmq.NULL
    assert router.getsockopt(zmq.HANDSHAKE_IVL) == 5_000
    assert router.getsockopt(zmq.HEARTBEAT_IVL) == 5_000
    assert router.getsockopt(zmq.HEARTBEAT_TIMEOUT) == 15_000
    assert int(router.getsockopt(zmq.MAXMSGSIZE)) >= 2 * BATCH_BYTES_MAX


@pytest.mark.requirement("1.1-2", "1.3-2", "1.3-3")
def test_a_peer_of_zmtp_3_0_is_served_and_hears_pings(
    make_served: Callable[[], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.0 is enough; PING comes as a command, flags 4, and never as a message. Who answers it stays."""
    monkeypatch.setattr(router_module, "ZMTP_HEARTBEAT_MS", 200)
    peer = Peer(make_served())
    peer.say(cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: [1]}))
    flags, data = peer.frame()
    while flags & 4:
        peer.pong(data)
        flags, data = peer.frame()
    assert cbor2.loads(data)[Key.TYPE] == Type.WELCOME
    for _ in range(5):  # longer than a connection without PONG lives
        flags, data = peer.frame()
        assert flags & 4
        assert data.startswith(PING_COMMAND)
        peer.pong(data)
    peer.say(cbor2.dumps({Key.TYPE: Type.PING, Key.REF: 7}))
    flags, data = peer.frame()
    while flags & 4:
        peer.pong(data)
        flags, data = peer.frame()
    assert cbor2.loads(data)[Key.TYPE] == Type.PONG


@pytest.mark.requirement("1.3-2")
def test_a_peer_that_answers_no_ping_is_cut_off(
    make_served: Callable[[], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three intervals without a byte from it, and its connection is closed."""
    monkeypatch.setattr(router_module, "ZMTP_HEARTBEAT_MS", 100)
    peer = Peer(make_served())
    until(peer.served, lambda: peer._has(1 << 30))
    assert peer.closed


@pytest.mark.requirement("1.3-2")
def test_a_peer_that_never_shakes_hands_is_cut_off(
    make_served: Callable[[], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake has its time."""
    monkeypatch.setattr(router_module, "HANDSHAKE_MS", 100)
    peer = Peer(make_served(), shakes_hands=False)
    until(peer.served, lambda: peer._has(1 << 30))
    assert peer.closed


@pytest.mark.requirement("1.2-4", "7.1-1")
def test_a_socket_that_reconnects_by_itself_has_no_session(make_served: Callable[[], Served]) -> None:
    """What is sent over ZeroMQ's new connection is answered with hello-required; what was lost is not reported."""
    served = make_served()
    client = served.client()
    (session,) = served.gateway.sessions
    connection = session.connection
    served.gateway.guard.end(connection, "a test")  # type: ignore[union-attr]
    answer = None
    patience = time.monotonic() + 60
    while (
        answer is None and time.monotonic() < patience
    ):  # messages sent before it has reconnected may be lost
        client.say({Key.TYPE: Type.PING, Key.REF: 1})
        answer = client.hear(0.2)
    assert answer is not None
    assert answer.code == "hello-required"
    client.say({Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.SESSION: client.session})
    assert client.expect(Type.WELCOME).header[Key.RESUMED] is True  # after the answers to other pings


@pytest.mark.requirement("1.3-5")
@pytest.mark.parametrize("frames", [15, 16])
def test_fifteen_frames_are_the_most(make_served: Callable[[], Served], frames: int) -> None:
    """A message of 15 frames is malformed, and its connection goes on; one of 16 closes the connection."""
    served = make_served()
    client = served.client()
    client.put([cbor2.dumps({Key.TYPE: Type.PING, Key.REF: 5}), *[b""] * (frames - 1)])
    error = client.error()
    assert error.code == "malformed"
    assert (Key.REF in error.header) is (frames == 15)
    guard = served.gateway.guard
    assert guard is not None
    if frames == 15:
        client.alive()
        assert guard.ended == 0
    else:
        until(served, lambda: guard.ended == 1)


@pytest.mark.requirement("1.3-5")
def test_who_sends_many_such_messages_is_answered_once(make_served: Callable[[], Served]) -> None:
    """What else comes before its connection ends gets no answer."""
    served = make_served()
    client = served.client()
    for _ in range(100):
        client.put([b""] * 17)
    until(served, lambda: served.gateway.counts.malformed >= 100 or served.gateway.guard.ended)  # type: ignore[union-attr]
    until(served, lambda: served.gateway.guard.ended == 1)  # type: ignore[union-attr]
    assert served.gateway.counts.by_code == {"malformed": 1}
