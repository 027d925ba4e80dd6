"""Tests of consumers, subscriptions and topics that end unexpectedly, and of readers that come back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from ister.actors.messages import Deliver, Trimmed
from ister.actors.subscription.log_access import LogAccess
from ister.errors import DamagedError
from ister.storage.wholereader import NotHereError
from ister.wire import Key, Type
from tests.actors.scenes import Scene, consumer_of, events, heard, offsets, part, reader, subscription
from tests.stage import Stage, held_up, inbox_holds


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that keeps the session of a silent client for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


def test_exactly_what_a_lost_consumer_was_never_given_comes_again(stage: Stage) -> None:
    """Also if its messages are not consecutive."""
    scene = Scene(stage, type="key-shared")
    first, second = scene.consumer(), scene.consumer()
    for number in range(40):
        scene.producer.publish_keyed(1, scene.sent, (b"k%d" % number, b"0"), (b"k%d" % (number + 1), b"1"))
        scene.sent += 2
    scene.producer.receipts(1, 40)
    stage.settle()
    mine, others = offsets(first), offsets(second)
    assert mine
    assert others
    consumer = consumer_of(scene)
    first.ack(1, *((offset, offset + 1) for offset in mine))
    second.ack(1, *((offset, offset + 1) for offset in others))
    with held_up(consumer):
        messages = [(b"k%d" % number, b"x") for number in range(40)]
        scene.producer.publish_keyed(1, scene.sent, *messages)
        scene.producer.receipts(1, 1)
        assert inbox_holds(consumer, Deliver)
        (deliver,) = [each for each in consumer.inbox._queue if isinstance(each, Deliver)]
        assert deliver.piece.ranges
        consumer.fail(RuntimeError("on purpose"))
        stage.failures.clear()
    assert sorted(offsets(second)) == list(range(80, 120))


def test_acknowledgments_for_a_subscription_that_failed_do_not_hurt_the_next(stage: Stage) -> None:
    """Its consumers' acknowledgments may reach the next actor before that knows where its topic stands."""
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2")
    assert offsets(client) == [0, 1, 2]
    actor, consumer = subscription(scene), consumer_of(scene)
    node = actor.system.node
    topic_node = scene.stage.actor("topic", "orders").system.node
    with held_up(consumer):
        client.ack(1, (0, 1), confirm=False)
        client.nack(1, (1, 2))
        stage.loop.turns_until(lambda: len(consumer.inbox) >= 2)
        actor.fail(RuntimeError("on purpose"))
        stage.failures.clear()
        stage.workers[int(node[-1])].subscription(actor.topic, actor.meta, topic_node)
    stage.settle()
    assert stage.failures == []
    again = scene.consumer()
    got = heard(again)
    assert sorted(row[0] for row in got) == sorted({row[0] for row in got}), "each is in one place"
    assert {row[0] for row in got} >= {1, 2}


def test_a_reader_whose_place_was_trimmed_goes_on_where_the_history_begins(stage: Stage) -> None:
    """It is told what it missed, and no message still in the log is skipped."""
    scene = Scene(stage)
    scene.publish(*(b"%d" % n for n in range(4)))
    scene.publish(*(b"%d" % n for n in range(4, 8)))
    client = reader(scene)
    assert offsets(client) == list(range(8))
    client.disconnect()
    actor = scene.stage.actor("subscription", "orders", "r-1")
    actor.ref.tell(Trimmed(4))
    stage.settle()
    client.reconnect()
    assert client.open_consumer(1, "orders", "r-1", "reader", start=2).kind == Type.OPENED
    assert offsets(client) == [4, 5, 6, 7]
    (trimmed,) = [event for event in events(client) if event.code == "trimmed"]
    assert (trimmed.header[Key.OFFSET], trimmed.header[Key.COUNT]) == (2, 2)


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_a_reader_of_a_topic_that_is_deleted_is_told(stage: Stage, dispatch: str) -> None:
    """Otherwise it would wait for ever."""
    scene = Scene(stage, dispatch=dispatch)
    client = reader(scene)
    scene.publish(b"0")
    assert len(offsets(client)) == 1
    stage.client().request("topic.delete", topic="orders")
    stage.advance(15)
    told = client.expect(Type.ERROR)
    assert (told.header[Key.CLOSED], told.header[Key.ACTION]) == (True, "stop")
    assert stage.actors("subscription") == []


def test_who_comes_to_a_damaged_log_is_told(stage: Stage) -> None:
    """Like the consumers that were there when the damage was found."""
    scene = Scene(stage)
    client = scene.consumer()
    error = DamagedError("broken")
    error.first, error.end = 0, 1
    part(scene, LogAccess)._stall(error)
    assert [event.code for event in events(client)] == ["log-damaged"]
    assert [event.code for event in events(scene.consumer())] == ["log-damaged"]


def test_what_is_to_be_brought_back_is_asked_for_again(stage: Stage) -> None:
    """The mail may be lost."""
    scene = Scene(stage)
    scene.consumer()
    access = part(scene, LogAccess)
    asked: list[object] = []
    access._fetcher = SimpleNamespace(tell=asked.append, address=access._fetcher.address)
    access.fetch(NotHereError(0, 1))
    stage.advance(1.1)
    assert len(asked) == 2


@pytest.mark.requirement("7.3-6", "7.5-3")
def test_the_place_of_a_consumer_that_was_killed_is_free_soon(make_stage: Callable[..., Stage]) -> None:
    """The broker sees the closed connection: after a short grace what the consumer held counts as failed."""
    stage = make_stage(protocol__session_timeout_ms=3_600_000, protocol__resume_within_ms=2_000)
    scene = Scene(stage, type="exclusive")
    first = scene.consumer()
    scene.publish(b"0")
    assert offsets(first) == [0]
    first.die()
    stage.advance(1.9)
    second = stage.at_subscription("orders", "s")
    assert second.open_consumer(1, "orders", "s", "exclusive").code == "subscription-busy"
    stage.advance(1.2)
    assert second.open_consumer(2, "orders", "s", "exclusive").kind == Type.OPENED
    assert heard(second) == [(0, b"0", 2)]


def test_a_connection_that_broke_costs_nothing_when_the_client_comes_back(
    make_stage: Callable[..., Stage],
) -> None:
    """The session is resumed: it keeps what it held, and no attempt counts as failed."""
    stage = make_stage(protocol__session_timeout_ms=3_600_000, protocol__resume_within_ms=2_000)
    scene = Scene(stage, type="exclusive")
    client = scene.consumer()
    scene.publish(b"0")
    assert offsets(client) == [0]
    client.die()
    stage.advance(1.5)
    assert client.reconnect().header[Key.RESUMED]
    client.ack(1, (0, 1))
    stage.advance(3_000)
    assert scene.shown()["consumers"] == 1
    assert scene.shown()["pending"] == []
