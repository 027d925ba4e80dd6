"""Tests of `explain` for a live subscription in every state: a true sentence, with the right numbers.

A scene has a reliable topic and a subscription `s`; each line brings it into a state, and gives the expected answer.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ister.actors.messages import Block, Fenced
from ister.actors.subscription.attaching import Attaching
from ister.wire import Key, Type
from tests.actors.scenes import Scene, consumer_of, part, say_seek, subscription
from tests.stage import Stage, StagedClient


class Told(NamedTuple):
    """The answer expected in a state: the state, the first reason, and parts of its text."""

    bring: Callable[[Scene], object]
    state: str
    code: str
    words: tuple[str, ...]
    never: tuple[str, ...] = ()  # texts that would be untrue
    type: str = "shared"
    topic: dict[str, Any] = {}  # noqa: RUF012 - a constant


def made(scene: Scene, **options: Any) -> None:
    """Create the subscription, with ten messages in the topic."""
    scene.request("create", type=scene.type, start="earliest", **options)
    scene.publish(*(b"%d" % number for number in range(10)))


def consumes(scene: Scene, **options: Any) -> StagedClient:
    """Create the subscription, with ten messages in the topic and a consumer."""
    made(scene)
    client = scene.consumer(**options)
    scene.stage.settle()
    return client


def breathe(scene: Scene, seconds: float, *clients: StagedClient) -> None:
    """Let time pass in which only these clients send anything."""
    for _ in range(int(seconds * 2)):
        scene.stage.advance(0.5)
        for client in (scene.producer, *clients):
            client.say({Key.TYPE: Type.PING})
    scene.stage.settle()


def fully_acknowledged(scene: Scene) -> None:
    """All messages are delivered and acknowledged."""
    client = consumes(scene)
    client.deliveries(1, 10)
    client.ack(1, (0, 10))
    breathe(scene, 3, client)


def not_acknowledged(scene: Scene) -> None:
    """All messages are delivered, none acknowledged."""
    client = consumes(scene)
    client.deliveries(1, 10)
    breathe(scene, 3, client)


def killed(scene: Scene) -> None:
    """The consumer sends nothing any more, and its connection looks intact."""
    consumes(scene, messages=3)
    breathe(scene, 9)


def killed_and_noticed(scene: Scene) -> None:
    """The consumer is gone, and sending to it has failed."""
    client = consumes(scene, messages=3)
    client.credit(1, 1)
    client.disconnect()
    breathe(scene, 1)


def slow(scene: Scene) -> None:
    """The consumer is alive, and has no credit left."""
    client = consumes(scene, messages=3)
    breathe(scene, 9, client)


def deaf(scene: Scene) -> None:
    """The consumer has credit, and its connection is full."""
    made(scene)
    client = scene.stage.at_subscription("orders", "s")
    client.open_consumer(1, "orders", "s", scene.type, messages=0)
    client.router.full.add(client.routing)
    client.credit(1, 100)
    scene.stage.settle()


def paused(scene: Scene) -> None:
    """The subscription is paused."""
    consumes(scene)
    scene.update(paused=1)


def blocked(scene: Scene) -> None:
    """A message failed as often as allowed, and blocks."""
    made(scene, max_deliveries=1, poison="block", backoff_ms_min=0)
    client = scene.consumer()
    client.deliveries(1, 10)
    client.nack(1, (4, 5), reason="no such customer")
    scene.stage.settle()


def backing_off(scene: Scene) -> None:
    """One message failed and waits; the others are done."""
    client = consumes(scene)
    client.deliveries(1, 10)
    client.ack(1, (1, 10))
    client.nack(1, (0, 1), delay_ms=60_000)
    breathe(scene, 3, client)


def delayed(scene: Scene) -> None:
    """One message waits for its delivery time."""
    scene.request("create", type="shared", start="earliest")
    client = scene.consumer()
    scene.publish(b"later", deliver_at=[scene.now_ms() + 60_000])
    breathe(scene, 3, client)


def left(scene: Scene) -> None:
    """The only consumer has closed."""
    client = consumes(scene)
    client.close_handle(1)
    scene.stage.advance(4.0)


def stands_by(scene: Scene) -> None:
    """The active consumer has no credit left, and another stands by."""
    first = consumes(scene, messages=3)
    second = scene.consumer()
    breathe(scene, 9, first, second)


def key_is_held(scene: Scene) -> None:
    """A second consumer has been given keys of which the first still holds messages."""
    scene.request("create", type="key-shared", start="earliest")
    client = scene.consumer()
    for _ in range(2):
        for number in range(20):
            scene.publish(b"x", key=b"k%d" % number)
        if _ == 0:
            client.deliveries(1, 20)
            other = scene.consumer()
    breathe(scene, 3, client, other)


def full_of_pieces(scene: Scene) -> None:
    """The consumer holds as many separate ranges as it may."""
    client = consumes(scene, messages=3)
    consumer = consumer_of(scene)
    client.credit(1, 100)
    scene.stage.settle()
    scene.publish(b"more")
    subscription(scene).ref.tell(Block(consumer._key, True, "crowded"))
    scene.stage.settle()


def being_moved(scene: Scene) -> None:
    """A seek is running, and the consumer is slow to return what it holds."""
    consumes(scene)
    consumer_of(scene).inbox._scheduled = True  # it is slow to return what it holds
    asker = scene.stage.at_subscription("orders", "s")
    say_seek(asker, "earliest")
    scene.stage.settle()


def topic_is_fenced(scene: Scene) -> None:
    """Another broker has taken the topic over."""
    client = consumes(scene, messages=3)
    scene.stage.actor("topic", "orders").ref.tell(Fenced("claimed by another broker", None))
    client.credit(1, 1)
    breathe(scene, 3, client)


def log_fails(scene: Scene) -> None:
    """The topic's log failed, and there are undelivered durable messages."""
    client = consumes(scene, messages=3)

    def fail(operation: str, path: str) -> None:
        if "/topics/" in path and operation in ("write", "sync"):
            raise OSError(errno.EIO, "broken", path)

    scene.stage.disk.on_operation = fail
    scene.producer.publish(1, scene.sent, b"x")
    scene.stage.settle()
    client.credit(1, 100)
    scene.stage.settle()


def topic_is_silent(scene: Scene) -> None:
    """The topic has not answered."""
    scene.request("create", type=scene.type, start="earliest")
    actor = subscription(scene)
    actor._ready = False
    part(scene, Attaching)._timer.cancel()


def expired(scene: Scene) -> None:
    """All messages have expired."""
    scene.request("create", type="shared", start="earliest")
    scene.publish(b"a", b"b")
    breathe(scene, 20)
    client = scene.consumer()
    breathe(scene, 3, client)


STATES = {
    "caught up": Told(
        fully_acknowledged,
        "caught-up",
        "caught-up",
        ("every message below offset 10 is delivered and acknowledged", "nothing is left"),
    ),
    "nothing acknowledged": Told(
        not_acknowledged,
        "waiting",
        "unacknowledged",
        ("10 messages wait to be acknowledged", "consumer 1 (raw), 10 messages", "5 min after its delivery"),
    ),
    "killed": Told(
        killed,
        "stopped",
        "consumer-silent",
        ("was last heard of 9.0 s ago", "holds 3 messages", "15 s after its last word"),
        ("no room",),
    ),
    "killed and noticed": Told(
        killed_and_noticed,
        "stopped",
        "consumer-silent",
        ("its connection is lost", "holds 4 messages"),
        ("no room", "take nothing"),
    ),
    "slow": Told(
        slow,
        "stopped",
        "no-credit",
        ("no credit is left at 1 of 1 consumer", "3 messages are with consumers", "heard of within"),
        ("killed",),
    ),
    "deaf": Told(deaf, "stopped", "connection-full", ("the connections of 1 of 1 consumer accept nothing",)),
    "paused": Told(paused, "stopped", "paused", ("until somebody resumes it",)),
    "blocked": Told(
        blocked,
        "stopped",
        "poison-block",
        ("offset 4 failed 1 time and", "no such customer", "retry, drop or dead-letter"),
    ),
    "backing off": Told(
        backing_off,
        "waiting",
        "waiting-for-backoff",
        ("1 message failed, and waits", "the first is due in 57 s"),
    ),
    "delayed": Told(
        delayed,
        "waiting",
        "waiting-for-delay",
        ("1 message waits for its time of delivery", "57 s"),
    ),
    "no consumer": Told(
        left, "stopped", "no-consumer", ("the last one left 4.0 s ago", "start one of subscription 's'")
    ),
    "standby cannot help": Told(
        stands_by,
        "stopped",
        "no-credit",
        ("no credit is left at 1 of 2 consumers",),
        type="failover",
    ),
    "a key is held": Told(
        key_is_held,
        "waiting",
        "waiting-for-key",
        ("messages wait for an earlier one of their key", "with consumer 1 (raw)"),
        type="key-shared",
    ),
    "full of pieces": Told(
        full_of_pieces, "stopped", "too-many-pieces", ("the limit of pieces a consumer may hold",)
    ),
    "being moved": Told(
        being_moved,
        "stopped",
        "handing-over",
        ("moved to earliest", "1 of 1 consumer must still give back", "by itself"),
        ("was active",),
    ),
    "fenced": Told(
        topic_is_fenced,
        "stopped",
        "topic-failed",
        ("another broker has taken the topic over", "connect to that broker"),
        ("still delivered", "all the same"),
    ),
    "log failed": Told(
        log_fails,
        "flowing",
        "topic-failed",
        ("accepts no messages", "what was durable before is still delivered", "tried again by itself"),
    ),
    "starting": Told(
        topic_is_silent,
        "stopped",
        "starting",
        ("has not reported its offsets yet", "ister topic show"),
        ("flowing",),
    ),
    "expired": Told(
        expired,
        "caught-up",
        "caught-up",
        ("but for 2 that outlived the topic's time to live",),
        topic={"message_ttl_ms": 5000},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_each_state_is_told_truly(stage: Stage, name: str) -> None:
    """The first reason is what stops delivery; its text is true, and says what to do or what happens by itself."""
    told = STATES[name]
    stage.expects_failures = True
    scene = Scene(stage, type=told.type, **told.topic)
    told.bring(scene)
    stage.loop.advance(0.0)
    answer = scene.request("explain")
    assert answer["state"] == told.state, answer["reasons"]
    assert answer["flowing"] == (told.state in ("flowing", "caught-up"))
    first = answer["reasons"][0]
    assert first["code"] == told.code, answer["reasons"]
    for words in told.words:
        assert words in first["text"]
    everything = " ".join(reason["text"] for reason in answer["reasons"])
    for words in told.never:
        assert words not in everything
    stage.disk.on_operation = None


def test_a_subscription_of_a_deleted_topic_is_not_explained(stage: Stage) -> None:
    """The error names the topic."""
    scene = Scene(stage)
    made(scene)
    stage.client().request("topic.delete", topic="orders")
    refused = scene.ask("explain")
    assert (refused.code, "orders" in refused.header[Key.TEXT]) == ("unknown-topic", True)


def test_a_silent_consumer_beside_one_that_takes_stops_nothing(stage: Stage) -> None:
    """Only what it holds waits; the rest is delivered, and both are reported."""
    scene = Scene(stage)
    consumes(scene, messages=3)
    other = scene.consumer()
    breathe(scene, 9, other)
    scene.publish(b"more")
    answer = scene.request("explain")
    assert answer["flowing"]
    assert "consumer-silent" in [reason["code"] for reason in answer["reasons"]]
