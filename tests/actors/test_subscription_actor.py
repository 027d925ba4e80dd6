"""Tests of the Subscription actor alone, with its consumers and parts, and a delivery that reads from a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from ister.actors.messages import (
    AddCredit,
    Answer,
    AttachConsumer,
    Delete,
    Deliver,
    Describe,
    Evicted,
    Explain,
    Granted,
    Left,
    Notice,
    StartSubscription,
    TimeoutChanged,
    TopicUpdated,
    UpdateSubscription,
    Yield,
    Yielded,
)
from ister.actors.pieces import Piece, RelayedBatch, whole
from ister.actors.runtime import Ref, System, receives
from ister.actors.selection import Member
from ister.actors.subscription import Subscription
from ister.actors.subscription.parts import Delivery, Host, SubscriptionPart
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.transport.session import SessionLimits
from ister.wire import decode_result
from tests.actors.hosts import Told
from tests.raw_client import batch
from tests.stage import Recorder, StagedClock, StagedLoop

LIMITS = SessionLimits(1000, 1000, 10, 1000, 10_000, 10, 500, 1 << 20, 1000, 10)
HOOKS = [
    "start",
    "stop",
    "erase",
    "forget",
    "may_read",
    "topic_updated",
    "settings_updated",
    "consumer_left",
    "opened",
]


@dataclass(frozen=True)
class Ping:
    """A message that only a part receives."""


class Noting(SubscriptionPart):
    """A part that records which of its hooks were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pings = 0
        for hook in HOOKS:
            setattr(self, hook, lambda hook=hook: self.calls.append(hook))

    @receives(Ping)
    def on_ping(self, _ping: Ping) -> None:
        self.pings += 1

    def greet(self, consumer: Ref) -> None:
        consumer.tell(Notice("hello", 0, "from a part"))

    def description(self) -> Mapping[str, Any]:
        return {"noted": len(self.calls)}


class FromList(Delivery):
    """A delivery of the messages in a list, one per piece."""

    def __init__(self, subscription: Host) -> None:
        self.subscription = subscription
        self.messages: list[int] = []
        self.noting = Noting()
        self.parts = (self.noting, self)
        self.back: list[Left] = []
        self.gone = 0

    def hand_out(self) -> None:
        self.subscription.take_turns()

    def backlog(self) -> int:
        return len(self.messages)

    def next_piece(self, member: Member, messages_max: int) -> Piece | None:
        if not self.messages:
            return None
        frames = batch([b"x"])
        return whole(RelayedBatch.of_frames(self.messages.pop(0), 1, 1, 0, frames), 1)

    def position(self) -> int:
        return 7

    def given_back(self, command: Left) -> None:
        self.back.append(command)

    def abandoned(self) -> None:
        self.gone += 1


class Play:
    """A subscription that delivers from a list, and consumers that record their messages."""

    def __init__(self, type_: str, **settings: Any) -> None:
        self.loop = StagedLoop(StagedClock())
        self.system = System("here", self.loop, None, self.loop.clock, Random(1))
        self.failures: list[Exception] = []
        self.system.on_actor_failure = lambda _path, error: self.failures.append(error)
        self.topic = TopicMeta("orders", bytes(16), "reliable", "fsync", 1)
        self.meta = SubscriptionMeta("orders", "s", type_, "earliest", 1, settings)
        self.asker = self.system.spawn(Recorder, "asker")
        self.ref = self.system.spawn(
            Subscription,
            "s",
            self.topic,
            self.meta,
            limits=LIMITS,
            ack_timeout_ms=1000,
            deliver_by=FromList,
        )
        actor = self.system.find("s")
        assert isinstance(actor, Subscription)
        self.actor = actor
        assert isinstance(actor.delivery, FromList)
        self.delivery = actor.delivery
        self.loop.settle()

    def ready(self) -> None:
        """Let the topic answer."""
        self.actor.become_ready()
        self.loop.settle()

    def tell(self, *messages: object) -> None:
        """Send the subscription a message, and run it."""
        for message in messages:
            self.ref.tell(message)
        self.loop.settle()

    def attach(self, key: int, *, messages: int = 100, force: bool = False, priority: int = 0) -> Told:
        """Attach a consumer."""
        consumer = Told(f"consumer/{key}", "here")
        self.tell(AttachConsumer(consumer, key, priority, messages, 1 << 20, force=force))
        return consumer

    def deliver(self, *offsets: int) -> None:
        """Let the delivery deliver messages."""
        self.delivery.messages += offsets
        self.actor.wake()
        self.loop.settle()

    def answers(self) -> list[Any]:
        """Return the answers since the last call."""
        recorder = self.system.find("asker")
        assert isinstance(recorder, Recorder)
        return [decode_result(answer.body) for answer in recorder.take(Answer)]


def offsets(consumer: Told) -> list[int]:
    """Return the offsets delivered to a consumer since the last call."""
    return [message.piece.offset for message in consumer.take(Deliver)]


def test_who_comes_early_has_its_place_once_the_topic_has_answered() -> None:
    """It is also told the position, and what the parts have to report."""
    play = Play("shared")
    consumer = play.attach(1)
    play.tell(StartSubscription(play.asker.address, 1), Describe(play.asker.address, 2))
    assert (consumer.heard, play.answers()) == ([], [])
    play.ready()
    assert consumer.take(Granted)[0].position == 7
    assert [notice.code for notice in consumer.heard] == ["hello"]
    assert len(play.answers()) == 2


def test_what_the_parts_receive_reaches_them_and_hooks_reach_all() -> None:
    """In their order; what they report about themselves is part of `show`."""
    play = Play("shared")
    play.ready()
    play.attach(1)
    play.tell(Ping(), TopicUpdated(play.topic), UpdateSubscription(play.meta, play.asker.address, 1))
    play.tell(Left(1, ()))
    assert play.delivery.noting.pings == 1
    assert play.delivery.noting.calls == ["start", "topic_updated", "settings_updated", "consumer_left"]
    play.answers()
    play.tell(Describe(play.asker.address, 2))
    assert play.answers()[0]["noted"] == 4
    play.tell(Delete(play.asker.address, 3, False))
    assert play.delivery.noting.calls[-2:] == ["erase", "stop"]
    assert play.system.find("s") is None


def test_turns_are_taken_as_long_as_there_is_credit() -> None:
    """The next messages wait for more credit."""
    play = Play("shared")
    play.ready()
    consumers = [play.attach(1, messages=2), play.attach(2, messages=1)]
    play.deliver(0, 1, 2, 3)
    assert [offsets(consumer) for consumer in consumers] == [[0, 2], [1]]
    play.tell(AddCredit(2, 1, 0))
    assert offsets(consumers[1]) == [3]


def test_a_second_consumer_of_an_exclusive_subscription_is_refused_or_takes_over() -> None:
    """The new one starts once the first has returned what it held."""
    play = Play("exclusive")
    play.ready()
    first = play.attach(1)
    assert play.attach(2).take(Evicted)[0].code == "subscription-busy"
    third = play.attach(3, force=True)
    assert first.take(Evicted)[0].code == "taken-over"
    play.deliver(0)
    assert offsets(third) == []
    play.tell(Left(1, ()))
    assert (offsets(third), len(play.delivery.back)) == ([0], 1)


def test_of_a_failover_another_is_active_once_the_one_before_holds_nothing() -> None:
    """The old one is told to return what it has, and becomes a standby."""
    play = Play("failover")
    play.ready()
    first = play.attach(1, priority=5)
    play.deliver(0)
    second = play.attach(2, priority=1)
    play.deliver(1)
    assert (offsets(first), offsets(second)) == ([0], [])
    play.actor.consumers.settle(1, 1)
    assert len(first.take(Yield)) == 1
    play.deliver()
    assert offsets(second) == []
    play.tell(Yielded(1))
    assert offsets(second) == [1]
    assert [notice.code for notice in first.take(Notice)] == ["hello", "active", "standby"]


def test_while_it_is_held_or_paused_nothing_is_delivered() -> None:
    """The consumers are told of a pause, also one that attaches during it."""
    play = Play("shared")
    play.ready()
    consumer = play.attach(1)
    play.actor.consumers.hold(0)
    play.deliver(0)
    assert offsets(consumer) == []
    play.actor.consumers.release(0)
    play.deliver()
    assert offsets(consumer) == [0]
    paused = SubscriptionMeta("orders", "s", "shared", "earliest", 1, {"paused": 1})
    play.tell(UpdateSubscription(paused, play.asker.address, 1))
    play.deliver(1)
    assert offsets(consumer) == []
    assert [notice.code for notice in consumer.take(Notice)] == ["hello", "paused"]
    play.tell(UpdateSubscription(play.meta, play.asker.address, 2))
    assert offsets(consumer) == [1]


def test_another_timeout_is_said_to_the_consumers_once() -> None:
    """An update that does not change it tells them nothing."""
    play = Play("shared")
    play.ready()
    consumer = play.attach(1)
    changed = SubscriptionMeta("orders", "s", "shared", "earliest", 1, {"ack_timeout_ms": 5000})
    for number in range(2):
        play.tell(UpdateSubscription(changed, play.asker.address, number))
    assert [change.ack_timeout_ms for change in consumer.take(TimeoutChanged)] == [5000]


def test_the_delivery_hears_when_nobody_is_left() -> None:
    """Not while a consumer waits to be attached."""
    play = Play("shared")
    play.attach(1)
    play.attach(2)
    play.tell(Left(1, ()))
    assert play.delivery.gone == 0
    play.tell(Left(2, ()))
    assert play.delivery.gone == 1


def test_an_actor_that_fails_sends_its_consumers_away_and_its_parts_write_down_what_they_know() -> None:
    """Their handles are closed, and the clients may open again at the next actor."""
    play = Play("shared")
    play.ready()
    consumer = play.attach(1)
    play.actor.fail(RuntimeError("on purpose"))
    assert [evicted.code for evicted in consumer.take(Evicted)] == ["internal"]
    assert play.delivery.noting.calls == ["start", "stop"]
    assert len(play.failures) == 1


@pytest.mark.parametrize("ready", [False, True])
def test_why_nothing_flows_is_said_at_any_time(ready: bool) -> None:
    """Also before the topic has answered."""
    play = Play("shared")
    if ready:
        play.ready()
    play.tell(Explain(play.asker.address, 1))
    (state,) = play.answers()
    assert (state["starting"], state["type"]) == (not ready, "shared")
