"""Tests of acknowledgments, nacks and other reports of consumers about their messages."""

from __future__ import annotations

from typing import Any

import pytest

from ister.actors.ledger import Held
from ister.actors.messages import (
    Acknowledged,
    AcknowledgedUntil,
    AckRefused,
    Confirmed,
    Idle,
    Left,
    Recall,
    Returned,
)
from ister.actors.pieces import cut
from ister.actors.subscription.acknowledgments import Acknowledgments
from ister.actors.subscription.failures import Failures
from ister.actors.subscription.remembered import Remembered
from ister.actors.subscription.schedule import Schedule
from ister.settings import SubscriptionSettings
from tests.actors.hosts import Bench, Told


class Acknowledging(Bench):
    """A bench with ten messages, whose consumers send reports."""

    def __init__(self, type_: str = "shared") -> None:
        super().__init__(type_)
        self.log.publish(*[b"x"] * 10)
        self.begin()
        source = self.access.source
        self.schedule = Schedule(self.host, self.queue, self.journal, source, Remembered(self.journal))
        failures = Failures(
            self.host,
            self.queue,
            self.journal,
            self.access,
            undertaker=Told,
            defaults=SubscriptionSettings(),
        )
        self.said = Acknowledgments(self.host, self.queue, self.journal, self.schedule, failures)

    def deliver(self, key: int, first: int, end: int) -> None:
        """Deliver messages to a consumer."""
        member = self.host.consumers.roster.get(key)
        assert member is not None
        piece = cut(self.log.batches[0], first, end, 1)
        self.host.consumers.roster.spend(member, piece.count, piece.bytes)
        self.said.delivered(member, piece)

    def held(self, key: int = 1) -> Any:
        """Return how many messages a consumer holds, and since when (in ms)."""
        member = self.host.consumers.roster.get(key)
        assert member is not None
        return member.outstanding, member.holds_since_ms


def test_what_is_acknowledged_is_done_once() -> None:
    """A repeated acknowledgment does no harm; it is answered once the journal has it."""
    bench = Acknowledging()
    consumer = bench.host.attach()
    bench.deliver(1, 0, 4)
    bench.said.on_acknowledged(Acknowledged(1, ((0, 2), (3, 4)), 7, 3))
    bench.said.on_acknowledged(Acknowledged(1, ((0, 2),), None, 0))
    assert bench.queue.settles == [(0, 2), (3, 4)]
    assert bench.queue.acknowledgments == 2
    assert bench.journal.cursor.pending(0, 4) == [(2, 3)]
    assert consumer.heard == [Confirmed(7)]
    assert bench.held()[0] == 1


def test_everything_up_to_an_offset_is_what_was_seen_of_it() -> None:
    """Acknowledging up to an offset covers messages that were delivered, not those waiting for a delivery time."""
    bench = Acknowledging("exclusive")
    bench.host.attach()
    bench.schedule.unseen.add(1, 3)
    bench.said.on_acknowledged_until(AcknowledgedUntil(1, 5, None, 3))
    assert bench.journal.cursor.pending(0, 5) == [(1, 3)]


def test_since_when_a_consumer_holds_something_is_known() -> None:
    """The time counts from the first delivery, or from the last acknowledgment of some of them."""
    bench = Acknowledging()
    bench.host.attach()
    begin = bench.host.time.time_ms()
    bench.deliver(1, 0, 2)
    bench.host.time.now_s += 5
    bench.deliver(1, 2, 4)
    assert bench.held() == (4, begin)
    bench.said.on_acknowledged(Acknowledged(1, ((0, 2),), None, 2, bench.host.time.monotonic() - 1))
    assert bench.held() == (2, begin + 4_000)
    (holder,) = bench.said.state()["holders"]
    assert (holder["consumer"], holder["messages"]) == (1, 2)


@pytest.mark.parametrize("until", [False, True])
def test_a_standby_acknowledges_nothing_new(until: bool) -> None:
    """Only the active consumer may acknowledge; a message that is acknowledged already may be acknowledged again."""
    bench = Acknowledging("failover")
    bench.host.attach(1)
    standby = bench.host.attach(2)
    standby.heard.clear()

    def say(end: int) -> None:
        if until:
            bench.said.on_acknowledged_until(AcknowledgedUntil(2, end, 7, 0))
        else:
            bench.said.on_acknowledged(Acknowledged(2, ((0, end),), 7, 0))

    say(2)
    assert bench.journal.cursor.low == 0
    assert [(refused.ref, refused.code) for refused in standby.take(AckRefused)] == [(7, "not-active")]
    bench.journal.note(0, 2)
    say(2)
    assert standby.heard == [Confirmed(7)]


def test_what_comes_back_goes_to_who_decides_what_becomes_of_it() -> None:
    """What a lost consumer held comes back at once; messages its program never had do not count as failed."""
    bench = Acknowledging()
    bench.host.attach()
    bench.deliver(1, 0, 6)
    bench.said.on_returned(Returned(1, (Held(0, 2, 1),), 5.0, "no flour", True))
    assert bench.held()[0] == 4
    bench.said.given_back(Left(1, (Held(2, 4, 1),), True, (Held(4, 6, 1),)))
    assert bench.queue.back == [
        (Held(0, 2, 2, 1), 5.0),
        (Held(4, 6, 2, 0), 0.0),
        (Held(2, 4, 2, 1), 0.0),
    ]


def test_what_an_actor_before_this_one_delivered_comes_through_the_log_alone() -> None:
    """Messages delivered before a restart are read from the log again, and not also returned by their consumer."""
    bench = Acknowledging()
    bench.said.on_returned(Returned(1, (Held(0, 2, 1),), 0.0, "no"))
    bench.said.given_back(Left(1, (Held(0, 2, 1),)))
    assert bench.queue.back == []


def test_an_idle_program_is_left_what_nobody_else_would_get() -> None:
    """If there are other consumers, the messages waiting for the idle program go to them."""
    bench = Acknowledging()
    consumer = bench.host.attach(1)
    bench.said.on_idle(Idle(1))
    assert consumer.heard == []
    bench.host.attach(2)
    bench.said.on_idle(Idle(1))
    assert consumer.heard == [Recall()]


def test_when_the_last_consumer_left_is_known() -> None:
    """`explain` shows when the last consumer left."""
    bench = Acknowledging()
    bench.host.attach()
    bench.said.consumer_left()
    assert bench.said.state()["consumer_left_ms"] is None
    bench.host.consumers.refs.clear()
    bench.said.consumer_left()
    assert bench.said.state()["consumer_left_ms"] == bench.host.time.time_ms()
