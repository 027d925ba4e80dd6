"""Tests of delivery from memory: a bounded buffer, and a count of the messages that did not fit."""

from __future__ import annotations

from typing import Any

import pytest

from ister.actors.messages import Attach, Attached, Batches, Detach, Lost, Seek, TopicFailed
from ister.actors.pieces import RelayedBatch
from ister.actors.subscription.from_memory import DROP_NOTICE_S, FromMemory, MemoryGiven
from ister.subscriptions import READER
from tests.actors.hosts import ASKER, StubHost, Told
from tests.raw_client import batch


class Fleeting:
    """A host, a relay, and a delivery from memory."""

    def __init__(self, type_: str = "shared", **settings: Any) -> None:
        self.host = StubHost(type_)
        self.host.meta.settings.update(settings)
        self.relay = Told("relay/orders")
        given = MemoryGiven(
            relay=lambda: self.relay, buffer_messages_max=10, buffer_bytes_max=1 << 20, drop="oldest"
        )
        self.host.delivery = self.delivery = FromMemory(self.host, given)
        self.host.parts = list(self.delivery.parts)
        self.end = 0
        self.delivery.expected()
        self.delivery.on_attached(Attached(0, 0))

    def publish(self, *counts: int) -> None:
        """Let the relay send batches of so many messages."""
        made = []
        for count in counts:
            made.append(RelayedBatch.of_frames(self.end, count, 1, 0, batch([b"x"] * count)))
            self.end += count
        self.delivery.on_batches(Batches(tuple(made)))

    def hand_out(self) -> list[tuple[int, int]]:
        """Dispatch once, and return what was delivered."""
        self.host.delivered.clear()
        self.delivery.hand_out()
        return [(piece.offset, piece.end) for piece in self.host.delivered]


def test_the_topic_is_asked_to_send_once_somebody_comes() -> None:
    """And to stop when the last consumer leaves; then nothing is kept."""
    bench = Fleeting()
    bench.delivery.expected()
    assert len(bench.relay.take(Attach)) == 1
    bench.publish(4)
    bench.delivery.abandoned()
    assert len(bench.relay.take(Detach)) == 1
    assert (bench.host.is_ready, bench.host.ended) == (False, False)
    assert bench.delivery.description()["buffered"] == 0
    assert bench.delivery.description()["dropped"] == 4


def test_what_comes_is_joined_or_cut_to_the_credit() -> None:
    """Each message is delivered once, in order."""
    bench = Fleeting()
    bench.publish(2, 2, 3)
    assert bench.delivery.backlog() == 7
    bench.host.consumers.roster.attach(1, priority=0, messages=5, bytes=1 << 20)
    assert bench.hand_out() == [(0, 4), (4, 5)]
    bench.host.consumers.roster.add_credit(1, 5, 0, messages_max=10, bytes_max=1 << 20)
    assert bench.hand_out() == [(5, 7)]
    assert bench.delivery.position() == 7


@pytest.mark.parametrize(("drop", "left"), [("oldest", [(8, 16)]), ("newest", [(0, 8)])])
def test_what_does_not_fit_is_dropped_by_the_policy(drop: str, left: list[tuple[int, int]]) -> None:
    """And counted."""
    bench = Fleeting(drop=drop)
    bench.publish(8, 8)
    bench.host.attach()
    assert bench.hand_out() == left
    assert bench.delivery.description()["dropped"] == 8


def test_losses_are_told_together() -> None:
    """One event per interval with the total so far: losses of the buffer, between workers, and on full connections."""
    bench = Fleeting()
    consumer = bench.host.attach()
    bench.end += 3  # lost between the workers
    bench.publish(1)
    bench.delivery.on_lost(Lost(2))
    assert consumer.heard == []
    bench.host.loop.advance(DROP_NOTICE_S)
    assert [(notice.code, notice.count) for notice in consumer.heard] == [("dropped", 5)]
    bench.host.loop.advance(10 * DROP_NOTICE_S)
    assert len(consumer.heard) == 1


def test_what_a_consumer_takes_it_holds_no_more() -> None:
    """Nothing is acknowledged: a consumer grants credit for what it took; one that reopens holds nothing."""
    bench = Fleeting()
    bench.host.attach()
    bench.publish(6)
    bench.hand_out()
    assert bench.host.consumers.roster.outstanding == 6
    bench.delivery.credited(1, 2)
    assert bench.host.consumers.roster.outstanding == 4
    bench.delivery.credited(1, None)
    assert bench.host.consumers.roster.outstanding == 0


def test_another_bound_holds_for_what_comes_next() -> None:
    """It comes with an update of the subscription's settings."""
    bench = Fleeting()
    bench.publish(4, 4)
    bench.host.meta.settings["buffer_messages_max"] = 5
    bench.delivery.settings_updated()
    assert bench.delivery.description()["buffered"] == 8
    bench.publish(1)
    assert bench.delivery.description()["buffered"] == 5


def test_nothing_can_be_delivered_again() -> None:
    """The error says why."""
    bench = Fleeting()
    bench.delivery.on_impossible(Seek("earliest", ASKER, 1))
    assert bench.host.answers == ["invalid-argument"]


def test_a_reader_ends_with_its_consumer_or_its_topic() -> None:
    """Other subscriptions remain, and are deleted with the topic."""
    for type_, ended, evicted in (("shared", False, []), (READER, True, ["topic-deleted"])):
        bench = Fleeting(type_)
        bench.delivery.topic_failed(TopicFailed("topic-deleted", "gone"))
        bench.delivery.abandoned()
        assert (bench.host.ended, bench.host.evicted) == (ended, evicted)
