"""Tests of consumers of patterns, against the broker in memory, which can be made to fail."""

from __future__ import annotations

import os
import time

import pytest

import ister
from ister import testing
from ister.errors import ForkedError
from ister.wildcard import WildcardConsumer
from ister.wire import Key, Type


def sent(client: ister.Client, topic: str, *payloads: bytes) -> None:
    """Create a topic if necessary, and send."""
    client.create_topic(topic, exist_ok=True)
    with client.producer(topic) as producer:
        producer.send_batch(payloads)


def taken(consumer: ister.Consumer, count: int) -> list[tuple[str, bytes]]:
    """Receive and acknowledge so many messages."""
    found = []
    for _ in range(count):
        message = consumer.receive(5)
        assert message is not None
        consumer.ack(message)
        found.append((message.topic, message.payload))
    return found


def test_topics_that_match_now_and_later(client: ister.Client) -> None:
    """Programs that consume patterns can be tested without broker processes."""
    sent(client, "a/1", b"x")
    sent(client, "b/1", b"y")
    with client.consumer("a/*", "s", start="earliest") as consumer:
        assert taken(consumer, 1) == [("a/1", b"x")]
        sent(client, "a/2", b"z")
        assert taken(consumer, 1) == [("a/2", b"z")]
        assert consumer.topics == ["a/1", "a/2"]
        client.delete_topic("a/1")
        sent(client, "a/2", b"w")
        assert taken(consumer, 1) == [("a/2", b"w")]
        assert consumer.receive(0.1) is None
        assert consumer.topics == ["a/2"]


def test_topics_take_turns(client: ister.Client) -> None:
    """A topic with many waiting deliveries gives one at a time."""
    client.create_topic("t/a")
    client.create_topic("t/b")
    with client.consumer("t/*", "s", start="earliest", type="exclusive") as consumer:
        assert isinstance(consumer, WildcardConsumer)
        queues = [member.attachment.handing.queue for member in consumer.members.all()]
        for topic in ("t/a", "t/b"):
            for number in range(3):
                before = sum(map(len, queues))
                sent(client, topic, b"%d" % number)
                while sum(map(len, queues)) == before:
                    time.sleep(0.01)
        assert [topic for topic, _ in taken(consumer, 6)] == ["t/a", "t/b"] * 3


def test_a_lost_connection_is_survived_with_every_topic(client: ister.Client, broker: testing.Broker) -> None:
    """Whether sessions are kept or not, every topic continues, and new topics are still followed."""
    sent(client, "l/1", b"1")
    with client.consumer("l/*", "s", start="earliest") as consumer:
        assert taken(consumer, 1) == [("l/1", b"1")]
        consumer.flush(5)
        for number, breakage in enumerate((broker.disconnect, broker.restart, broker.expire), 2):
            breakage()
            sent(client, f"l/{number}", b"%d" % number)
            sent(client, "l/1", b"more")
            assert sorted(taken(consumer, 2)) == [("l/1", b"more"), (f"l/{number}", b"%d" % number)]
            consumer.flush(5)


def test_a_topic_that_fails_is_named_once_and_the_others_go_on(
    client: ister.Client, broker: testing.Broker
) -> None:
    """The error names the topic; it is not opened again until it was deleted."""
    sent(client, "f/1", b"1")
    sent(client, "f/2", b"2")
    with client.consumer("f/*", "s", start="earliest") as consumer:
        taken(consumer, 2)
        broker.fail("f/1", "taken-over")
        with pytest.raises(ister.RemoteError, match="topic 'f/1'"):
            consumer.receive(5)
        sent(client, "f/2", b"3")
        sent(client, "f/3", b"4")
        assert sorted(taken(consumer, 2)) == [("f/2", b"3"), ("f/3", b"4")]
        assert consumer.topics == ["f/2", "f/3"]


def test_what_cannot_be_opened_leaves_nothing_behind(client: ister.Client, broker: testing.Broker) -> None:
    """The error is raised, and the subscriptions opened before are free again."""
    sent(client, "n/1", b"1")
    sent(client, "n/2", b"2")
    broker.refuse(Type.OPEN_CONSUMER, "subscription-type")
    with pytest.raises(ister.RemoteError, match="topic 'n/1'"):
        client.consumer("n/*", "s")
    with client.consumer("n/*", "s") as consumer:
        assert consumer.topics == ["n/1", "n/2"]


def test_it_is_of_no_use_after_a_fork(client: ister.Client) -> None:
    """Like every consumer, it raises an error."""
    sent(client, "o/1", b"1", b"2")
    with client.consumer("o/*", "s", start="earliest") as consumer:
        message = consumer.receive(5)
        assert message is not None
        child = os.fork()
        if not child:
            consumer.forget_current()
            raised = 0
            try:
                consumer.receive(1)
            except ForkedError:
                raised += 1
            try:
                consumer.ack(message)
            except ForkedError:
                raised += 1
            os._exit(2 - raised)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_topics_made_while_the_program_was_away_are_received_from_their_beginning() -> None:
    """Like those created while it runs; topics older than its first run begin at the end."""
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        for topic in ("orders/a", "orders/b"):
            client.create_topic(topic)
            with client.producer(topic) as producer:
                producer.send(b"old").result(5)
        client.consumer("orders/*", "s", type="shared").close()
        client.create_topic("orders/c")
        with client.producer("orders/c") as producer:
            producer.send(b"meanwhile").result(5)
        with client.consumer("orders/*", "s", type="shared") as consumer:
            message = consumer.receive(10)
            assert message is not None
            assert (message.topic, message.payload) == ("orders/c", b"meanwhile")
            assert consumer.receive(0.3) is None


def test_a_broker_that_does_not_know_the_question_is_asked_without_it() -> None:
    """With an older broker everything else works as before."""
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders/a")
        broker.refuse(Type.REQUEST, "invalid-argument")
        with (
            client.consumer("orders/*", "s", type="shared") as consumer,
            client.producer("orders/a") as producer,
        ):
            producer.send(b"x").result(5)
            message = consumer.receive(10)
            assert message is not None
            assert message.payload == b"x"
        asked = [
            header[Key.ARGUMENTS] for _, header in broker.heard if header.get(Key.OPERATION) == "topic.watch"
        ]
        assert ["subscription" in each for each in asked][:2] == [True, False]
