"""Tests of a consumer's queue to its connection: order, full connections, and pauses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from ister.actors.consumer_wire import FULL_RETRY_S, FULL_RETRY_S_MAX, NOTICES_MAX, WirePlace
from ister.actors.messages import Block, Notice, Room
from ister.actors.pieces import Piece
from ister.actors.runtime import Ref
from ister.transport.gateway import Gateway, Sent
from ister.transport.session import Handle
from ister.wire import Key, Type


def piece(first: int) -> Piece:
    """Return one message."""
    return Piece(first, 1, 0, 1, (1, 0), (b"", b""), 0)


class Connection:
    """A connection that is full or gone when a test says so, and the consumers that share it."""

    def __init__(self) -> None:
        self.takes = Sent.OK
        self.sent: list[Any] = []  # (key, offset or code)
        self.session = SimpleNamespace(routing=b"client", waiting={}, handles={})

    def send(self, _session: object, header: Any, _frames: object = (), *, may_wait: bool = False) -> Sent:
        if self.takes is Sent.OK:
            what = header[Key.OFFSET] if header[Key.TYPE] == Type.DELIVER else header[Key.CODE]
            self.sent.append((header[Key.HANDLE], what))
        return self.takes


class Owner:
    """A consumer of a test, which records what its queue reports."""

    def __init__(self, connection: Connection, key: int) -> None:
        self.heard: list[Any] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.place = WirePlace(
            cast(Gateway, connection),
            cast(
                Handle,
                SimpleNamespace(number=key, session=connection.session, generation=1, state="consumer"),
            ),
            {},
            key,
            cast(Ref, self),
            call_later=lambda delay_s, call: self.timers.append((delay_s, call)),
            block=self.heard.append,
            is_last_chance=lambda piece: piece.offset == 7,
            on_sent=lambda piece, singly: self.heard.append((piece.offset, singly)),
            on_lost=lambda piece: self.heard.append(f"lost {piece.offset}"),
            on_clear=lambda: self.heard.append("clear"),
        )

    def tell(self, message: object) -> None:
        assert isinstance(message, Room)
        self.place.room()

    def look(self) -> float:
        """Run the timer that looks for room, and return how long it waited."""
        delay_s, call = self.timers.pop(0)
        call()
        return delay_s


def test_what_goes_out_is_said() -> None:
    """Reported with whether each is confirmed singly, where the client reports what it takes."""
    connection = Connection()
    owner = Owner(connection, 1)
    owner.place.send(piece(7))
    owner.place.tells = True
    owner.place.send(piece(7))
    owner.place.send(piece(8))
    assert owner.heard == [(7, False), (7, True), (8, False)]


def test_a_full_connection_is_looked_at_ever_less_often() -> None:
    """Queued pieces go out in order, with events in their place among them."""
    connection = Connection()
    owner = Owner(connection, 1)
    connection.takes = Sent.FULL
    owner.place.send(piece(1))
    owner.place.send(Notice("gap", 0, "lost"))
    owner.place.send(piece(2))
    assert owner.heard == [Block(1, True, "full")]
    waits = [owner.look() for _ in range(9)]
    assert waits[0] == FULL_RETRY_S
    assert waits == sorted(waits)
    assert waits[-1] == FULL_RETRY_S_MAX
    connection.takes = Sent.OK
    owner.look()
    assert connection.sent == [(1, 1), (1, "gap"), (1, 2)]
    assert owner.heard[-3:] == [(1, False), (2, False), "clear"]
    assert (owner.timers, connection.session.waiting) == ([], {})


def test_one_of_those_that_wait_for_a_connection_looks_for_all() -> None:
    """A consumer that found room, or leaves, lets the next one send."""
    connection = Connection()
    owners = [Owner(connection, key) for key in range(3)]
    connection.takes = Sent.FULL
    for owner in owners:
        owner.place.send(piece(owner.place.handle.number))
    assert [len(owner.timers) for owner in owners] == [1, 0, 0]
    connection.takes = Sent.OK
    owners[0].place.leave()
    assert connection.sent == [(1, 1), (2, 2)]
    assert connection.session.waiting == {}


def test_without_a_connection_events_wait_and_pieces_are_lost() -> None:
    """If the client comes back, it is sent them."""
    connection = Connection()
    owner = Owner(connection, 1)
    connection.takes = next(each for each in Sent if each not in (Sent.OK, Sent.FULL))
    owner.place.send(piece(1))
    owner.place.send(Notice("sought", 0, "moved"))
    assert owner.heard == [Block(1, True, "lost"), "lost 1", Block(1, True, "lost")]
    connection.takes = Sent.OK
    owner.place.retry()
    assert connection.sent == [(1, "sought")]


def test_nothing_goes_out_while_it_is_paused() -> None:
    """The queued pieces can be taken back; events stay, except those of a kind that is dropped."""
    connection = Connection()
    owner = Owner(connection, 1)
    assert owner.place.pause()
    assert not owner.place.pause()
    for what in (piece(1), Notice("gap", 0, "x"), Notice("recalled", 0, "y"), piece(2)):
        owner.place.send(what)
    owner.place.retry()
    assert connection.sent == []
    owner.place.go_on()
    assert [each.offset for each in owner.place.unsent()] == [1, 2]
    owner.place.drop_notices("recalled")
    owner.place.retry()
    assert connection.sent == [(1, "gap")]


def test_events_that_wait_are_bounded() -> None:
    """The oldest of a kind is dropped: the newest is what counts."""
    connection = Connection()
    owner = Owner(connection, 1)
    owner.place.pause()
    owner.place.send(Notice("sought", 0, "moved"))
    for number in range(2 * NOTICES_MAX):
        owner.place.send(Notice("gap", number, "lost"))
    waiting = [each for each in owner.place.backlog if isinstance(each, Notice)]
    assert len(waiting) == NOTICES_MAX
    assert (waiting[0].code, waiting[-1].count) == ("sought", 2 * NOTICES_MAX - 1)


def test_who_left_says_nothing_more() -> None:
    """The queue keeps no reference to its consumer, which is freed at once."""
    connection = Connection()
    owner = Owner(connection, 1)
    owner.place.leave()
    connection.takes = Sent.FULL
    owner.place.send(piece(1))
    assert owner.timers == []
