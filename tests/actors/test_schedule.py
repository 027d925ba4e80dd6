"""Tests of the delivery times of messages: which wait, which are due, and which have expired."""

from __future__ import annotations

import pytest

from ister.actors.subscription import schedule as module
from ister.actors.subscription.remembered import Remembered
from ister.actors.subscription.schedule import Schedule
from tests.actors.hosts import Bench

MINUTE_MS = 60_000


class Timed(Bench):
    """A bench with a schedule."""

    def __init__(self, type_: str = "shared", **topic: int) -> None:
        super().__init__(type_, **topic)
        source = self.access.source
        self.schedule = Schedule(self.host, self.queue, self.journal, source, Remembered(self.journal))
        self.host.parts.append(self.schedule)
        self.due: list[tuple[int, int]] = []
        self.queue.due = lambda: self.due.extend(self.schedule.take_due())

    def set_aside(self, number: int = 0) -> None:
        """Sort a batch by its messages' delivery times."""
        batch = self.log.batches[number]
        self.schedule.set_aside(batch, batch.first_offset)

    def later(self, *waits_ms: int) -> list[int]:
        """Return delivery times that are far in the future."""
        return [self.host.time.time_ms() + wait_ms for wait_ms in waits_ms]


def test_messages_of_a_batch_are_sorted_by_when_they_may_go() -> None:
    """A message without a time, or with one that had passed when it was published, is delivered at once."""
    bench = Timed()
    bench.log.publish(b"0", b"1", b"2", b"3", deliver_at=[0, *bench.later(5_000, 5_000), 1])
    bench.begin()
    bench.set_aside()
    assert bench.queue.first == [(0, 1), (3, 4)]
    assert bench.schedule.description()["delayed"] == 2
    assert bench.due == []


def test_what_failed_and_waits_was_given_to_somebody_before() -> None:
    """After a restart "everything up to here" includes it, although it has a delivery time and is set aside."""
    bench = Timed("exclusive")
    bench.log.publish(b"0", b"1", b"2", deliver_at=bench.later(1_000, 1_000, 1_000))
    bench.begin()
    bench.journal.cursor.failed[1] = (1, 1)
    bench.journal.cursor.waits[1] = (bench.host.time.time_ms() + 60_000, 60_000)
    bench.schedule.opened()
    bench.host.loop.advance(2)
    bench.set_aside()
    assert bench.due == [(0, 3)]
    assert list(bench.schedule.seen(0, 3)) == [(1, 2)]


def test_what_waits_comes_out_once_when_its_time_has_come() -> None:
    """And the subscription is woken for it."""
    bench = Timed()
    bench.log.publish(b"0", b"1", deliver_at=bench.later(5_000, 8_000))
    bench.begin()
    bench.set_aside()
    wakes = bench.host.wakes
    bench.host.loop.advance(5.01)
    assert bench.host.wakes == wakes + 1
    bench.schedule.look()
    bench.schedule.look()
    assert bench.due == [(0, 1)]


def test_what_is_far_away_is_read_again_as_it_comes_near() -> None:
    """It is kept as a range; its exact time is in the log."""
    bench = Timed()
    bench.log.publish(*[b"x"] * 4, deliver_at=bench.later(*[30 * MINUTE_MS] * 4))
    bench.begin()
    bench.set_aside()
    bench.access.source.reopen()  # the sheet is not kept
    bench.log.reads.clear()
    bench.host.loop.advance(29 * 60)
    bench.schedule.look()
    assert bench.log.reads == []
    bench.host.loop.advance(52)
    bench.schedule.look()
    assert bench.log.reads == [0]
    assert bench.due == []
    bench.host.loop.advance(9)
    bench.schedule.look()
    assert sorted(bench.due) == [(offset, offset + 1) for offset in range(4)]


def test_what_was_done_meanwhile_is_not_looked_for() -> None:
    """Its place in the log may have been deleted."""
    bench = Timed()
    bench.log.publish(b"0", b"1", deliver_at=bench.later(1_000, 1_000))
    bench.begin()
    bench.set_aside()
    bench.host.time.now_s += 2
    bench.queue.due = lambda: None
    bench.journal.note(0, 1)
    bench.schedule.look()
    assert bench.schedule.first_due() == (1, 2)
    bench.schedule.taken_due(2)
    assert bench.schedule.first_due() is None


def test_a_step_of_the_wall_clock_is_noticed() -> None:
    """A timer measures durations only."""
    bench = Timed()
    bench.log.publish(b"0", deliver_at=bench.later(60 * MINUTE_MS))
    bench.begin()
    bench.set_aside()
    wakes = bench.host.wakes
    bench.host.time.stepped_ms = 61 * MINUTE_MS
    bench.host.loop.advance(1)
    assert bench.host.wakes > wakes
    bench.schedule.look()
    assert bench.due == [(0, 1)]


@pytest.mark.parametrize(("type_", "meant"), [("exclusive", [(0, 1), (2, 3)]), ("shared", [(0, 3)])])
def test_everything_up_to_an_offset_does_not_mean_what_waits(
    type_: str, meant: list[tuple[int, int]]
) -> None:
    """In a subscription with one active consumer; in a shared one an acknowledgment covers what the consumer holds."""
    bench = Timed(type_)
    bench.log.publish(b"0", b"1", b"2", deliver_at=[0, *bench.later(5_000), 0])
    bench.begin()
    bench.set_aside()
    assert bench.schedule.seen(0, 3) == meant
    bench.schedule.delivered(((1, 2),))
    assert bench.schedule.seen(0, 3) == [(0, 3)]


def test_so_many_single_messages_are_looked_at_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get a turn in between."""
    monkeypatch.setattr(module, "LOOKED_AT_MAX", 10)
    bench = Timed()
    bench.schedule.look_at(9)
    assert not bench.schedule.is_spent()
    bench.schedule.look_at(1)
    assert (bench.schedule.is_spent(), bench.host.wakes) == (True, 1)
    bench.schedule.begin_turn()
    assert not bench.schedule.is_spent()


def test_what_outlived_its_time_to_live_is_done_and_said_once() -> None:
    """Messages that expire together are reported in one event."""
    bench = Timed(message_ttl_ms=MINUTE_MS)
    bench.log.publish(b"0", b"1")
    bench.log.publish(b"2")
    bench.begin()
    batch = bench.log.batches[0]
    assert not bench.schedule.is_expired(batch)
    bench.host.time.now_s += 61
    assert bench.schedule.is_expired(batch)
    bench.schedule.expire(0, 2)
    bench.schedule.expire(2, 3)
    bench.schedule.expire(2, 3)
    bench.host.loop.settle()
    assert [(notice.code, notice.count) for notice in bench.host.notices] == [("expired", 3)]
    assert bench.journal.cursor.low == 3
    assert bench.queue.settles == [(0, 2), (2, 3), (2, 3)]


def test_what_nobody_looks_at_expires_all_the_same() -> None:
    """Without a consumer and with nothing in flight."""
    bench = Timed(message_ttl_ms=MINUTE_MS)
    for number in range(3):
        bench.log.publish(b"%d" % number)
    bench.begin()
    bench.schedule.start()
    bench.host.time.now_s += 61
    bench.log.publish(b"young")
    bench.access.source.advance(bench.log.end)
    bench.host.loop.advance(module.EXPIRE_S)
    assert bench.journal.cursor.low == 3


def test_another_time_to_live_holds_from_now_on() -> None:
    """It comes with the topic's settings."""
    bench = Timed()
    bench.log.publish(b"0")
    bench.begin()
    bench.host.time.now_s += 61
    assert not bench.schedule.is_expired(bench.log.batches[0])
    bench.host.topic.settings["message_ttl_ms"] = MINUTE_MS
    bench.schedule.topic_updated()
    assert bench.schedule.is_expired(bench.log.batches[0])


def test_nothing_waits_after_a_move() -> None:
    """Messages after the new position are read from the log again."""
    bench = Timed("exclusive")
    bench.log.publish(b"0", b"1", deliver_at=bench.later(1_000, 60 * MINUTE_MS))
    bench.begin()
    bench.set_aside()
    bench.schedule.forget()
    bench.host.time.now_s += 2
    bench.schedule.look()
    assert bench.due == []
    assert bench.schedule.seen(0, 2) == [(0, 2)]
    assert bench.schedule.description()["delayed"] == 0
