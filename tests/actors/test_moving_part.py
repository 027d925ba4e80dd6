"""Tests of the part that carries out a seek: position, consumers and journal in their order."""

from __future__ import annotations

from collections.abc import Callable

from ister.actors.messages import Fetch, Seek, Sought, Stayed, StoreCursor, Yield
from ister.actors.subscription.moving import Moving
from ister.errors import DamagedError, RemoteError, StorageError
from ister.storage.wholereader import NotHereError
from tests.actors.hosts import ASKER, Bench


class Movable(Bench):
    """A bench that can seek, with ten messages."""

    def __init__(self) -> None:
        super().__init__()
        self.moving = Moving(self.host, self.journal, self.access, self.attaching)
        self.host.parts.append(self.moving)
        for number in range(10):
            self.log.publish(b"%d" % number)
        self.begin()

    def seek(self, to: str) -> None:
        """Request a seek."""
        self.moving.on_seek(Seek(to, ASKER, 1))


def test_without_consumers_it_is_there_at_once() -> None:
    """Journal, log access and store follow it."""
    bench = Movable()
    bench.uploader.heard.clear()
    bench.seek("7")
    assert bench.host.answers == [{"position": 7}]
    assert (bench.journal.cursor.low, bench.access.source.next) == (7, 7)
    assert len(bench.uploader.take(StoreCursor)) == 1
    assert bench.moving.move.state == "idle"


def test_every_consumer_gives_back_what_it_holds_first() -> None:
    """Until the last one has, nothing changes."""
    bench = Movable()
    consumers = [bench.host.attach(1), bench.host.attach(2)]
    bench.seek("7")
    assert [type(message) for consumer in consumers for message in consumer.heard] == [Yield, Yield]
    assert bench.moving.state() == {"seeking": "7"}
    bench.host.consumers.release(1)
    bench.moving.go_on()
    assert bench.host.answers == []
    bench.host.consumers.release(2)
    bench.moving.go_on()
    assert bench.host.answers == [{"position": 7}]
    assert [type(consumer.heard[-1]) for consumer in consumers] == [Sought, Sought]


def test_a_place_that_is_in_the_store_alone_is_asked_for() -> None:
    """Consumers continue meanwhile; the position is looked up again when there is something to read."""
    bench = Movable()
    consumer = bench.host.attach()
    bench.log.errors[0] = NotHereError(0, 5)
    bench.seek(f"time:{bench.host.time.time_ms()}")
    assert [fetch.offset for fetch in bench.fetcher.take(Fetch)] == [0]
    assert (consumer.heard, bench.moving.move.target) == ([], None)
    bench.log.errors.clear()
    bench.access.forget()
    bench.host.may_read()
    assert bench.moving.move.target is not None


def test_only_one_move_at_a_time() -> None:
    """A second request is refused, and so is one before the journal is open."""
    bench = Movable()
    bench.host.attach()
    bench.seek("7")
    bench.seek("8")
    assert bench.host.answers == ["busy"]
    early = Bench()
    moving = Moving(early.host, early.journal, early.access, early.attaching)
    moving.on_seek(Seek("7", ASKER, 1))
    early.host.failure = RemoteError("log-failed", "no")
    moving.on_seek(Seek("7", ASKER, 1))
    assert early.host.answers == ["unavailable", "log-failed"]


def test_a_place_that_there_is_not_changes_nothing() -> None:
    """The request is answered with an error."""
    bench = Movable()
    bench.journal.note(0, 2)
    bench.seek("11")
    assert bench.host.answers == ["offset-out-of-range"]
    assert (bench.journal.cursor.low, bench.moving.move.state) == (2, "idle")


def test_damage_on_the_way_there_concerns_only_who_wanted_to_go() -> None:
    """Once the position is found, damage concerns every consumer."""
    bench = Movable()
    bench.log.errors[0] = NotHereError(0, 5)
    bench.seek("time:0")
    assert bench.access.refuses(DamagedError("torn"))
    assert bench.host.answers == ["log-damaged"]
    assert not bench.access.refuses(DamagedError("torn"))
    bench.host.attach()
    bench.seek("7")
    assert not bench.access.refuses(DamagedError("torn"))


def test_a_journal_that_cannot_be_written_leaves_it_where_it_was() -> None:
    """The consumers are told that the position is unchanged."""
    bench = Movable()
    consumer = bench.host.attach()
    bench.journal.note(0, 2)
    forgotten: list[int] = []
    bench.moving.forget = lambda: forgotten.append(1)  # type: ignore[method-assign]

    def move(offset: int, done: Callable[[StorageError | None], None]) -> None:
        done(StorageError("no room", code="disk-full", action="retry"))

    bench.journal.move = move  # type: ignore[method-assign]
    bench.seek("7")
    bench.host.consumers.release(1)
    bench.moving.go_on()
    assert bench.host.answers == ["disk-full"]
    assert [type(message) for message in consumer.heard] == [Yield, Stayed]
    assert (bench.journal.cursor.low, bench.host.consumers.held, forgotten) == (2, set(), [])


def test_a_consumer_that_goes_is_not_waited_for() -> None:
    """It may have been the last one."""
    bench = Movable()
    bench.host.attach()
    bench.seek("7")
    bench.host.consumers.refs.clear()
    bench.host.consumers.release(1)
    bench.moving.consumer_left()
    assert bench.host.answers == [{"position": 7}]
