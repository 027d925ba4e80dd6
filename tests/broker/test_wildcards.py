"""Consumers of patterns, on a broker of real processes: new and deleted topics, fairness, acknowledgments."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import ister
import ister.aio
from ister.ownbroker import OwnBroker

pytestmark = pytest.mark.process


@pytest.fixture
def client(broker: OwnBroker) -> Iterator[ister.Client]:
    """Return a client of the broker."""
    with ister.connect(broker.endpoint) as connected:
        yield connected


def fill(client: ister.Client, topic: str, *payloads: bytes) -> None:
    """Create a topic if it does not exist, and publish messages."""
    client.create_topic(topic, exist_ok=True)
    with client.producer(topic) as producer:
        if payloads:
            producer.send_batch(payloads)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds, at most ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def unacknowledged(client: ister.Client, topic: str, subscription: str = "s") -> int:
    """Return how many messages of a subscription are unacknowledged."""
    return int(client.subscription(topic, subscription)["unacknowledged"])


def test_a_pattern_stands_for_every_topic_that_matches(client: ister.Client) -> None:
    """`*` is one part, `>` one or more; messages name their topic, and are acknowledged there."""
    for topic in ("parts/a", "parts/b", "parts/c/d", "partsx/a"):
        fill(client, topic, topic.encode())
    with client.consumer("parts/*", "s", start="earliest") as consumer:
        got = {consumer.receive(10) for _ in range(2)}
        assert {(message.topic, message.payload) for message in got if message} == {
            ("parts/a", b"parts/a"),
            ("parts/b", b"parts/b"),
        }
        consumer.ack([message for message in got if message])
        consumer.flush(10)
        assert consumer.receive(0.1) is None
        assert unacknowledged(client, "parts/a") == unacknowledged(client, "parts/b") == 0
    with client.consumer("parts/>", "t", start="earliest") as consumer:
        messages = [consumer.receive(10) for _ in range(3)]
        assert {message.topic for message in messages if message} == {"parts/a", "parts/b", "parts/c/d"}


def test_a_star_within_a_part_is_an_error_that_says_so(client: ister.Client) -> None:
    """An incomplete pattern is never taken for a name."""
    with pytest.raises(ister.UsageError, match=r"'\*' is a whole part"):
        client.consumer("orders-*", "s")
    with pytest.raises(ister.UsageError, match="'>' the whole last one"):
        client.consumer(">/orders", "s")


def test_topics_created_later_are_followed_from_their_beginning(client: ister.Client) -> None:
    """Nothing that was sent before the consumer knew the topic is missed, also if nothing matched at first."""
    with client.consumer("later/*", "s", start="latest") as consumer:
        assert consumer.receive(0.05) is None
        for number in range(5):
            fill(client, f"later/{number}", b"first", b"second")
        messages = [consumer.receive(10) for _ in range(10)]
        assert Counter(message.topic for message in messages if message) == {
            f"later/{number}": 2 for number in range(5)
        }
        consumer.ack([message for message in messages if message])
        consumer.flush(10)
    assert unacknowledged(client, "later/3") == 0


def test_deleted_topics_go_and_the_others_go_on(client: ister.Client) -> None:
    """Messages in hand of a deleted topic can be acknowledged, without effect; a new topic of its name is followed."""
    fill(client, "going/a", b"a")
    fill(client, "going/b", b"b")
    with client.consumer("going/*", "s", start="earliest") as consumer:
        messages = [consumer.receive(10) for _ in range(2)]
        client.delete_topic("going/a")
        fill(client, "going/b", b"more")
        message = consumer.receive(10)
        assert message is not None
        assert (message.topic, message.payload) == ("going/b", b"more")
        consumer.ack([each for each in [*messages, message] if each])
        consumer.flush(10)
        fill(client, "going/a", b"new")
        message = consumer.receive(10)
        assert message is not None
        assert (message.topic, message.payload, message.offset) == ("going/a", b"new", 0)


def test_a_topic_made_anew_while_nobody_looked_is_another(client: ister.Client) -> None:
    """Deleted and created between two calls: no error, and no message of the new one is missed."""
    fill(client, "anew/a", b"old")
    with client.consumer("anew/*", "s", start="earliest") as consumer:
        assert consumer.receive(10) is not None
        client.delete_topic("anew/a")
        fill(client, "anew/a", b"new")
        message = consumer.receive(10)
        assert message is not None
        assert (message.payload, message.offset) == (b"new", 0)


def test_no_topic_starves_another(client: ister.Client) -> None:
    """One topic has 50,000 messages more than the others, whose messages still come soon."""
    fill(client, "fair/busy")
    with client.producer("fair/busy") as producer:
        for _ in range(50):
            producer.send_batch([b"x" * 200] * 1000)
    for number in range(5):
        fill(client, f"fair/quiet{number}", b"q")
    with client.consumer("fair/*", "s", start="earliest", credit_messages=6000) as consumer:
        found: set[str] = set()
        taken = 0
        while len(found) < 6:
            batch = consumer.receive_batch(timeout=40)
            assert batch is not None
            taken += len(batch)
            found.add(batch.topic)
            consumer.ack(batch)
        assert taken < 25_000


def test_credit_is_shared_by_the_topics(client: ister.Client) -> None:
    """A consumer that takes nothing holds no more than its credit, however many topics there are."""
    for number in range(10):
        fill(client, f"bounded/{number}", *[b"x"] * 300)
    with client.consumer("bounded/*", "s", type="shared", start="earliest", credit_messages=100) as consumer:

        def held() -> int:
            return sum(client.subscription(f"bounded/{number}", "s")["in_flight"] for number in range(10))

        eventually(lambda: held() == 100)
        time.sleep(0.2)
        assert held() == 100
        for _ in range(3000):
            message = consumer.receive(10)
            assert message is not None
            consumer.ack(message)
        consumer.flush(10)
    assert sum(unacknowledged(client, f"bounded/{number}") for number in range(10)) == 0


def test_a_flush_is_answered_at_once_for_all_topics(client: ister.Client) -> None:
    """Answers come over several connections, also while it looks: none waits until the next heartbeat."""
    for number in range(6):
        fill(client, f"flushed/{number}")
    producers = [client.producer(f"flushed/{number}") for number in range(6)]
    with client.consumer("flushed/*", "s", type="shared") as consumer:
        waited = 0.0
        for _ in range(30):
            for producer in producers:
                producer.send(b"x")
            for _ in producers:
                message = consumer.receive(10)
                assert message is not None
                consumer.ack(message)
            began = time.monotonic()
            consumer.flush(10)
            waited += time.monotonic() - began
    assert waited < 3


def test_what_is_refused_comes_again_and_dead_letters_do_not(client: ister.Client) -> None:
    """The dead-letter topic matches the pattern, and is left out."""
    fill(client, "poison/a", b"bad")
    with client.consumer("poison/*", "s", type="shared", start="earliest", max_deliveries=2) as consumer:
        for attempt in (1, 2):
            message = consumer.receive(10)
            assert message is not None
            assert (message.payload, message.attempt) == (b"bad", attempt)
            consumer.extend(message)
            consumer.nack(message, reason="bad")
        letters = client.dead_letters("poison/a", "s")
        eventually(lambda: letters.count() == 1)
        assert consumer.receive(0.5) is None
        assert consumer.topics == ["poison/a"]


def test_somebody_elses_message_is_not_acknowledged_here(client: ister.Client) -> None:
    """Nor can a consumer of many topics be moved, or have a single position."""
    fill(client, "mine/a", b"x")
    with (
        client.consumer("mine/a", "other", start="earliest") as other,
        client.consumer("mine/*", "s") as consumer,
    ):
        message = other.receive(10)
        assert message is not None
        for wrong in (message, [message], [7], 7):
            with pytest.raises(ister.UsageError):
                consumer.ack(wrong)  # type: ignore[arg-type]
        with pytest.raises(ister.UsageError, match=r"client\.seek"):
            consumer.seek("earliest")
        with pytest.raises(ister.UsageError):
            _ = consumer.position
    with pytest.raises(ister.ClosedError):
        consumer.receive(1)
    assert list(consumer) == []


def test_a_topic_whose_subscription_somebody_has_is_named(client: ister.Client) -> None:
    """At opening it is an error that names the topic, and nothing stays open."""
    fill(client, "taken/a")
    fill(client, "taken/b")
    with client.consumer("taken/b", "s", type="exclusive"):
        with pytest.raises(ister.RemoteError, match="topic 'taken/b'") as caught:
            client.consumer("taken/*", "s", type="exclusive")
        assert caught.value.code == "subscription-busy"
        with client.consumer("taken/a", "s", type="exclusive"):
            pass
    with client.consumer("taken/*", "s", type="exclusive") as consumer:
        client.delete_subscription("taken/a", "s")
        with pytest.raises(ister.RemoteError, match="topic 'taken/a'"):
            consumer.receive(10)
        fill(client, "taken/b", b"still")
        message = consumer.receive(10)
        assert message is not None
        assert message.payload == b"still"


def test_non_reliable_topics_can_be_consumed_so_too(client: ister.Client) -> None:
    """It gets what is published from now on, of both kinds of topics."""
    client.create_topic("mixed/air", dispatch="non-reliable")
    client.create_topic("mixed/log")
    with client.consumer("mixed/*", "s") as consumer:
        for topic in ("mixed/air", "mixed/log"):
            with client.producer(topic) as producer:
                producer.send(topic.encode()).result(5)
        messages = [consumer.receive(10) for _ in range(2)]
        assert {message.payload for message in messages if message} == {b"mixed/air", b"mixed/log"}
        consumer.ack([message for message in messages if message])
        consumer.flush(10)


def test_asyncio_consumes_patterns(client: ister.Client, broker: OwnBroker) -> None:
    """Topics of both workers, and one that is created while the loop waits."""
    for number in range(4):
        fill(client, f"loop/{number}", b"x")

    async def run() -> set[str]:
        found: set[str] = set()
        async with ister.aio.connect(broker.endpoint) as connected:
            async with connected.consumer("loop/*", "s", start="earliest") as consumer:
                async for message in consumer:
                    found.add(message.topic)
                    consumer.ack(message)
                    if len(found) == 4:
                        await connected.create_topic("loop/new")
                        async with connected.producer("loop/new") as producer:
                            await producer.send(b"new")
                    if len(found) == 5:
                        break
                await consumer.flush(10)
            with pytest.raises(ister.UsageError):
                await connected.consumer("loo*", "s")
        return found

    assert asyncio.run(run()) == {"loop/0", "loop/1", "loop/2", "loop/3", "loop/new"}
    assert unacknowledged(client, "loop/new") == 0


def test_workers_that_die_cost_nothing(client: ister.Client) -> None:
    """Every topic's consumer reconnects by itself, and so does the watch for new topics."""
    for number in range(4):
        fill(client, f"dying/{number}", b"before")
    with client.consumer("dying/*", "s", start="earliest") as consumer:
        first = [consumer.receive(10) for _ in range(4)]
        consumer.ack([message for message in first if message])
        consumer.flush(10)
        for process in client.status()["processes"]:
            if process["role"] == "worker":
                os.kill(process["pid"], signal.SIGKILL)
        for number in range(5):
            fill(client, f"dying/{number}", b"after")
        found: set[str] = set()
        while len(found) < 5:
            message = consumer.receive(20)
            assert message is not None
            consumer.ack(message)
            if message.payload == b"after":
                found.add(message.topic)
