"""Scenarios of consumers of patterns, for the clients of all languages."""

from __future__ import annotations

import time
from functools import partial

import pytest

from ister.ownbroker import OwnBroker
from tests.conformance_clients.conftest import Play
from tests.conformance_clients.player import ANSWER_MS, Player, Shown, payloads_of

pytestmark = pytest.mark.process


def ack(player: Player, consumer: str, *messages: Shown) -> None:
    """Acknowledge messages, each of its topic."""
    for each in messages:
        player.driver.ask("ack", consumer=consumer, topic=each["topic"], offsets=[each["offset"]])


def places(messages: list[Shown]) -> list[tuple[str, bytes]]:
    """Return where messages came from, and what they are, sorted."""
    return sorted((each["topic"], bytes.fromhex(each["payload"])) for each in messages)


def until_received(player: Player, consumer: str, wanted: set[bytes]) -> list[Shown]:
    """Receive and acknowledge until all of these have come; fail when others come."""
    came: list[Shown] = []
    until = time.monotonic() + ANSWER_MS / 1000
    while wanted - set(payloads_of(came)):
        assert time.monotonic() < until, f"never came: {wanted - set(payloads_of(came))}"
        for each in player.receive(consumer, timeout_ms=200):
            came.append(each)
            ack(player, consumer, each)
    assert set(payloads_of(came)) == wanted
    return came


@pytest.mark.parametrize("type", ["exclusive", "shared", "failover", "key-shared"])
def test_the_topics_of_a_pattern_are_received_as_one(
    play: Play, broker: OwnBroker, topic: str, type: str
) -> None:
    """Each message names its topic; an acknowledgment is for the topic of its message; others are left alone."""
    player = play()
    player.need("patterns")
    player.connect(broker.endpoint)
    for name in ("a", "b", "deep/c"):
        player.stored(player.topic(f"{topic}/{name}"), *(b"%s%d" % (name.encode(), n) for n in range(3)))
    consumer = player.consumer(f"{topic}/*", "all", type)
    came = player.receive(consumer, 6)
    wanted = [(f"{topic}/{name}", b"%s%d" % (name.encode(), n)) for name in "ab" for n in range(3)]
    assert places(came) == wanted
    for name in "ab":
        offsets = [each["offset"] for each in came if each["topic"] == f"{topic}/{name}"]
        assert offsets == [0, 1, 2]
    assert player.nothing(consumer)
    ack(player, consumer, *(each for each in came if payloads_of([each]) != [b"b1"]))
    player.close(consumer=consumer)
    player.close(client="c")

    other = play()
    other.connect(broker.endpoint)
    consumer = other.consumer(f"{topic}/>", "all", type)
    deep = f"{topic}/deep/c"
    again = other.receive(consumer, 4)
    assert places(again) == sorted([(f"{topic}/b", b"b1"), *((deep, b"deep/c%d" % n) for n in range(3))])


def test_topics_that_come_later_are_received_from_their_beginning(
    play: Play, broker: OwnBroker, topic: str
) -> None:
    """While the consumer is there, and while none is: nothing of a topic that matches is missed."""
    player, other = play(), play()
    player.need("patterns")
    player.connect(broker.endpoint)
    other.connect(broker.endpoint)
    other.stored(other.topic(f"{topic}/old"), b"before")
    consumer = player.consumer(f"{topic}/*", "all", "shared", start="latest")
    other.stored(f"{topic}/old", b"after")
    other.stored(other.topic(f"{topic}/new"), b"new 1", b"new 2")
    until_received(player, consumer, {b"after", b"new 1", b"new 2"})
    player.close(consumer=consumer)

    other.stored(other.topic(f"{topic}/meanwhile"), b"meanwhile")
    consumer = player.consumer(f"{topic}/*", "all", "shared", start="latest")
    until_received(player, consumer, {b"meanwhile"})


def test_topics_that_go_are_left(player: Player, broker: OwnBroker, topic: str) -> None:
    """A deleted topic is no error; created again under its name it is another, received from its beginning."""
    player.need("patterns", "admin")
    player.connect(broker.endpoint)
    for name in ("stays", "goes"):
        player.stored(player.topic(f"{topic}/{name}"), name.encode())
    consumer = player.consumer(f"{topic}/*", "all", "shared")
    until_received(player, consumer, {b"stays", b"goes"})
    player.admin("topic.delete", topic=f"{topic}/goes")
    player.stored(f"{topic}/stays", b"more")
    until_received(player, consumer, {b"more"})
    player.stored(player.topic(f"{topic}/goes"), b"again")
    until_received(player, consumer, {b"again"})


def test_dead_letters_are_not_among_the_topics_of_a_pattern(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """Otherwise a message that the program refuses would come to it again, as another topic's."""
    player.need("patterns", "options", "nack")
    player.connect(broker.endpoint)
    player.stored(player.topic(f"{topic[:100]}/a"), b"poison")
    player.topic(f"{topic[:100]}/by-hand.dlq")
    options = {"max_deliveries": 1, "backoff_ms_min": 0}
    consumer = player.consumer(f"{topic[:100]}/*", "all", "shared", options=options)
    [message] = player.receive(consumer)
    player.driver.ask("nack", consumer=consumer, topic=message["topic"], offsets=[message["offset"]])
    player.stored(f"{topic[:100]}/by-hand.dlq", b"by hand")
    assert player.receive(consumer, timeout_ms=1000) == []


def test_what_is_given_back_comes_again_from_its_topic(player: Player, broker: OwnBroker, topic: str) -> None:
    """A refusal is for the topic of its message, though others have messages with the same offset."""
    player.need("patterns", "nack", "attempts")
    player.connect(broker.endpoint)
    for name in "ab":
        player.stored(player.topic(f"{topic}/{name}"), name.encode())
    consumer = player.consumer(f"{topic}/*", "all", "shared")
    one, other = player.receive(consumer, 2)
    player.driver.ask("nack", consumer=consumer, topic=one["topic"], offsets=[0], delay_ms=0)
    ack(player, consumer, other)
    [again] = player.receive(consumer)
    assert (places([again]), again["attempt"]) == (places([one]), 2)
    assert player.nothing(consumer)


def test_no_topic_of_a_pattern_waits_for_another(player: Player, broker: OwnBroker, topic: str) -> None:
    """The topics take turns: a full one does not keep a single message of another waiting for long."""
    player.need("patterns", "pipeline")
    player.connect(broker.endpoint)
    player.topic(f"{topic}/full")
    producer = player.producer(f"{topic}/full")
    player.offsets(player.publish_all(producer, [b"x"] * 1500))
    player.stored(player.topic(f"{topic}/single"), b"single")
    consumer = player.consumer(f"{topic}/*", "all", "shared")
    before = 0
    while b"single" not in payloads_of(came := player.receive(consumer, 50)):
        before += len(came)
        assert before < 1500
    assert before < 1500


def test_what_is_no_pattern_is_refused(player: Player, broker: OwnBroker, topic: str) -> None:
    """`*` is a whole part of a name, and `>` the whole last one."""
    player.need("patterns")
    player.connect(broker.endpoint)
    for wrong in (f"{topic}/a*", f"{topic}/>/a", f"{topic}//*"):
        refused = player.refused(partial(player.consumer, wrong, "all", "shared"))
        assert (refused.code, refused.action) == ("invalid-name", "fix")
