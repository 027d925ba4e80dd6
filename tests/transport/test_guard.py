"""Tests of the guard of connections: little time and few bytes without a session, and a limit on frames."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ister.clock import SystemClock
from ister.transport.frames import FRAMES_MAX, SKIP_FRAMES, FrameReader, TooManyFramesError
from ister.transport.guard import ANSWERED_S_MAX, STRANGER_BYTES_MAX, STRANGER_S_MAX, Guard
from ister.transport.hidden import MUCH_S, HiddenWork
from ister.transport.outgoing import QUEUED_BYTES_MAX

PATIENCE_S = 20.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


class MovedClock(SystemClock):
    """The machine's clock, plus what a test adds."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class House:
    """A ROUTER with its connections."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.clock = MovedClock()
        self.short = False
        self.heard_at_s = 0.0
        self.monitor = self.router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.guard = Guard(self.clock, lambda: self.short)
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.frames = FrameReader(self.router)
        self.raw: list[socket.socket] = []

    def stranger(self) -> socket.socket:
        """Connect, complete the handshake, and send nothing."""
        known = len(self.guard)
        raw = socket.create_connection(("127.0.0.1", self.port))
        raw.settimeout(PATIENCE_S)
        self.raw.append(raw)
        raw.sendall(GREETING)
        read_exactly(raw, 64)
        raw.sendall(b"\x04" + bytes([len(READY)]) + READY)
        read_exactly(raw, read_exactly(raw, 2)[1])
        self.until(lambda: len(self.guard) > known)
        return raw

    def until(self, done: Callable[[], bool]) -> None:
        """Check the connections until a condition is true."""
        until = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < until, "it never happens"
            self.look()
            time.sleep(0.01)

    def look(self) -> None:
        """Read the monitor's events, and check the connections."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            tell = self.guard.accepted if event["event"] == zmq.EVENT_ACCEPTED else self.guard.closed
            tell(int(event["value"]))
        self.guard.look(drained=not self.router.poll(0))

    def next_message(self) -> list[bytes]:
        """Return the next message."""
        until = time.monotonic() + PATIENCE_S
        while (parts := self.frames.take()) is None:
            assert time.monotonic() < until, "nothing comes"
            self.router.poll(100)
        return parts

    def close(self) -> None:
        for raw in self.raw:
            raw.close()
        # closes the monitor's other end first; in the other order it may wait for ever
        self.router.disable_monitor()
        self.context.destroy(linger=0)


@pytest.fixture
def house() -> Iterator[House]:
    """Return a ROUTER with its connections."""
    house = House()
    yield house
    house.close()


def read_exactly(raw: socket.socket, size: int) -> bytes:
    """Read so many bytes, however they come."""
    found = b""
    while len(found) < size:
        more = raw.recv(size - len(found))
        assert more, "the connection was ended"
        found += more
    return found


def is_ended(raw: socket.socket) -> bool:
    """Return whether the other side has closed a connection."""
    raw.settimeout(0.05)
    try:
        while raw.recv(4096):  # what was sent before
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def empty_frames(number: int) -> bytes:
    """Return a message of so many empty frames."""
    return b"\x01\x00" * (number - 1) + b"\x00\x00"


@pytest.mark.requirement("1.3-5")
def test_a_message_of_too_many_frames_is_refused_and_the_next_is_whole(house: House) -> None:
    """It is reported once, with its sender; its rest is dropped in steps, and the next message comes unchanged."""
    raw = house.stranger()
    raw.sendall(empty_frames(SKIP_FRAMES * 3 + 100) + b"\x01\x01a\x00\x01b")
    with pytest.raises(TooManyFramesError) as refused:
        house.next_message()
    assert refused.value.fd > 0
    waits = 0
    while (parts := house.frames.take()) is None:
        waits += 1
    assert waits == 3
    assert parts == [refused.value.routing, b"a", b"b"]
    assert house.frames.source == refused.value.fd


@pytest.mark.requirement("1.3-5")
@pytest.mark.parametrize("number", [1, 2, FRAMES_MAX - 1])
def test_a_message_of_as_many_frames_as_are_allowed_comes_whole(house: House, number: int) -> None:
    """A message within the limit comes unchanged, with the routing id before it."""
    raw = house.stranger()
    raw.sendall(empty_frames(number))
    assert house.next_message()[1:] == [b""] * number


@pytest.mark.requirement("7.1-7", "16-3")
def test_a_stranger_that_sends_more_than_a_hello_takes_is_ended(house: House) -> None:
    """A message of millions of frames never becomes complete: its connection is closed meanwhile, others are not."""
    raw, other = house.stranger(), house.stranger()
    raw.settimeout(PATIENCE_S)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 200 * STRANGER_BYTES_MAX:
            sent += raw.send(b"\x01\x00" * 4096)
            house.look()
    house.until(lambda: house.guard.ended == 1)
    assert is_ended(raw)
    assert not is_ended(other)
    assert house.frames.take() is None


@pytest.mark.requirement("7.1-7")
def test_a_connection_without_a_session_has_a_while(house: House) -> None:
    """A connection without HELLO for long, or whose session ended long ago, is closed; one with a session stays."""
    silent, speaks = house.stranger(), house.stranger()
    speaks.sendall(empty_frames(1))
    house.next_message()
    known = house.guard.introduced(house.frames.source, house)
    house.clock.ahead_s = STRANGER_S_MAX + 1
    house.until(lambda: house.guard.ended == 1)
    assert is_ended(silent)
    assert not is_ended(speaks)
    house.guard.left(known)
    house.look()
    assert not is_ended(speaks)
    house.clock.ahead_s *= 2
    house.until(lambda: house.guard.ended == 2)
    assert is_ended(speaks)
    house.until(lambda: len(house.guard) == 0)


@pytest.mark.requirement("1.3-5")
def test_a_connection_is_ended_behind_its_answer(house: House) -> None:
    """However late ZeroMQ's thread sends the answer, it arrives before the end; and it is sent once."""
    raw, other = house.stranger(), house.stranger()
    raw.sendall(empty_frames(FRAMES_MAX + 1))
    with pytest.raises(TooManyFramesError) as refused:
        house.next_message()
    assert house.guard.end_behind_answer(refused.value.fd, "a test")
    assert not house.guard.end_behind_answer(refused.value.fd, "a test")
    assert not house.guard.is_quiet()
    for _ in range(5):
        house.look()
    assert house.guard.ended == 0
    house.router.send_multipart([refused.value.routing, b"the answer"])
    house.until(lambda: house.guard.ended == 1)
    assert read_exactly(raw, 12) == b"\x00\x0athe answer"
    assert is_ended(raw)
    assert not is_ended(other)
    house.until(lambda: len(house.guard) == 1)


def test_what_was_sent_before_is_not_the_answer(house: House) -> None:
    """Its acknowledgment may come late, and says nothing of the answer."""
    for _ in range(10):
        raw = house.stranger()
        raw.sendall(empty_frames(FRAMES_MAX + 1))
        with pytest.raises(TooManyFramesError) as refused:
            house.next_message()
        house.router.send_multipart([refused.value.routing, b"earlier"])
        assert raw.recv(100, socket.MSG_PEEK)
        ended = house.guard.ended
        house.guard.end_behind_answer(refused.value.fd, "a test")
        for _ in range(12):  # longer than an acknowledgment is delayed
            house.look()
            time.sleep(0.01)
        assert house.guard.ended == ended
        house.router.send_multipart([refused.value.routing, b"the answer"])
        house.until(lambda before=ended: house.guard.ended == before + 1)  # type: ignore[misc]
        assert read_exactly(raw, 21) == b"\x00\x07earlier\x00\x0athe answer"


@pytest.mark.requirement("1.3-5", "16-3")
def test_who_does_not_take_its_answer_is_ended_all_the_same(house: House) -> None:
    """Closing waits only a short time for it."""
    raw = house.stranger()
    raw.sendall(empty_frames(FRAMES_MAX + 1))
    with pytest.raises(TooManyFramesError) as refused:
        house.next_message()
    house.guard.end_behind_answer(refused.value.fd, "a test")
    house.look()
    assert house.guard.ended == 0
    house.clock.ahead_s = ANSWERED_S_MAX
    house.look()
    assert house.guard.ended == 1
    assert is_ended(raw)


def test_a_connection_that_is_gone_is_no_other(house: House) -> None:
    """Descriptors are reused: news of the earlier connection does not affect the new one."""
    first = house.stranger()
    first.sendall(empty_frames(1))
    house.next_message()
    known = house.guard.introduced(house.frames.source, house)
    first.close()
    house.until(lambda: len(house.guard) == 0)
    second = house.stranger()
    second.sendall(empty_frames(1))
    house.next_message()
    assert house.guard.introduced(house.frames.source, house) not in (None, known)
    house.guard.left(known)
    house.clock.ahead_s = STRANGER_S_MAX + 1
    house.look()
    assert not is_ended(second)


def test_where_descriptors_are_short_strangers_go(house: House) -> None:
    """Connections without a session are closed, those with one stay, whichever came first."""
    speaks = house.stranger()
    speaks.sendall(empty_frames(1))
    house.next_message()
    assert house.guard.introduced(house.frames.source, house)
    strangers = [house.stranger() for _ in range(5)]
    house.short = True
    house.until(lambda: house.guard.ended == 5)
    assert all(is_ended(each) for each in strangers)
    assert not is_ended(speaks)


def test_a_message_that_is_gathered_for_long_ends_its_connection(house: House) -> None:
    """Also with a session: long work without a complete message is one of millions of frames; others stay."""
    raw, other = house.stranger(), house.stranger()
    for each in (raw, other):
        each.sendall(empty_frames(1))
        house.next_message()
        assert house.guard.introduced(house.frames.source, house)
    sender = threading.Thread(target=flood, args=(raw,), daemon=True)
    sender.start()
    house.until(lambda: house.guard.ended == 1)
    sender.join(PATIENCE_S)
    assert not sender.is_alive()
    assert not is_ended(other)
    assert house.frames.take() is None


def flood(raw: socket.socket) -> None:
    """Send twenty million frames."""
    raw.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        raw.sendall(b"\x01\x00" * 20_000_000)


def test_work_is_hidden_if_nothing_that_passed_explains_it() -> None:
    """Messages and bytes explain the thread's time, little is forgotten; without a clock there is no hidden work."""
    hidden = HiddenWork()
    assert not hidden.is_much(5.0, 0, 0)
    assert not hidden.is_much(5.1, 20_000, 0)
    assert not hidden.is_much(5.3, 20_000, 200 << 20)
    little = [hidden.is_much(5.3 + look * MUCH_S / 12, 20_000, 200 << 20) for look in range(100)]
    assert not any(little)
    assert hidden.is_much(5.3 + 100 * MUCH_S / 12 + MUCH_S, 20_000, 200 << 20)
    assert not hidden.is_much(None, 0, 0)


class Reading:
    """The session that uses a connection."""

    heard_at_s = 0.0


def test_what_was_sent_to_a_closed_connection_is_not_waited_for() -> None:
    """A session may learn late that its connection is closed: what it sends meanwhile fails nobody."""
    here, there = socket.socketpair()
    with here, there:
        guard = Guard(MovedClock(), lambda: False)
        guard.accepted(here.fileno())
        connection = guard.introduced(here.fileno(), Reading())
        assert connection is not None
        guard.closed(here.fileno())
        guard.outgoing.sent(connection, QUEUED_BYTES_MAX + 1)
        assert guard.outgoing.may_send(connection)
        assert guard.outgoing.queued == 0
        guard.end(connection, "it is closed already")
