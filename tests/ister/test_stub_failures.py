"""Tests of the broker for tests: nacked messages wait, and become dead letters, as in a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import ister
import ister.testing
from ister.errors import RemoteError
from ister.wire import Key, Type
from tests.raw_client import RawClient


@pytest.fixture
def client() -> Iterator[ister.Client]:
    """Return a client of a broker for tests, with a topic of three messages."""
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.producer("orders") as producer:
            for number in range(3):
                producer.send(b"%d" % number, key=b"k", attributes={"own": "a"}).result(5)
        yield client


def refuse(consumer: ister.Consumer, reason: str, times: int = 1) -> None:
    """Nack the message at offset 1 so many times, and acknowledge the others."""
    while times:
        message = consumer.receive(10)
        assert message is not None
        if message.offset == 1:
            consumer.nack(message, delay=0, reason=reason)
            times -= 1
        else:
            consumer.ack(message)
    consumer.flush(5)


def test_what_failed_too_often_is_a_dead_letter(client: ister.Client) -> None:
    """With the attributes that a broker adds; it can be listed, redriven and purged."""
    with client.consumer("orders", "s", type="shared", start="earliest", max_deliveries=2) as consumer:
        refuse(consumer, "it is bad", times=2)
        letters = client.dead_letters("orders", "s")
        assert letters.count() == 1
        (letter,) = letters.list()
        assert (letter.payload, letter.key, letter.attributes) == (b"1", b"k", {"own": "a"})
        assert (letter.topic, letter.subscription, letter.origin_offset) == ("orders", "s", 1)
        assert (letter.attempts, letter.reason) == (2, "it is bad")
        assert letters.redrive() == 1
        again = consumer.receive(10)
        while again is not None and again.offset < 3:  # the other messages, in any order
            consumer.ack(again)
            again = consumer.receive(10)
        assert again is not None
        assert (again.payload, again.attributes["ister.redriven_for"]) == (b"1", "s")
        assert letters.count() == 0
    assert client.subscription("orders", "s")["dead_lettered"] == 1


def test_a_back_off_is_waited_for(client: ister.Client) -> None:
    """If the nack has no delay."""
    with client.consumer("orders", "s", type="shared", start="earliest", backoff_ms_min=60_000) as consumer:
        message = consumer.receive(10)
        assert message is not None
        consumer.nack(message)
        assert [each.offset for each in iter(lambda: consumer.receive(0.3), None)] == [1, 2]


@pytest.mark.parametrize("action", ["retry", "drop", "dead-letter"])
def test_poison_that_blocks_waits_for_a_word(client: ister.Client, action: str) -> None:
    """Nothing is delivered until an operator decides."""
    with client.consumer(
        "orders", "s", start="earliest", type="shared", max_deliveries=1, poison="block"
    ) as consumer:
        refuse(consumer, "bad")
        assert client.subscription("orders", "s")["blocked"]
        assert client.explain("orders", "s")["reasons"][0]["code"] == "poison-block"
        assert client.unblock("orders", "s", action) == 1  # type: ignore[arg-type]
        assert not client.subscription("orders", "s")["blocked"]
        found = [each.offset for each in iter(lambda: consumer.receive(0.3), None)]
        assert (1 in found) == (action == "retry")
    assert client.dead_letters("orders", "s").count() == (action == "dead-letter")


def test_patterns_do_not_follow_dead_letters(client: ister.Client) -> None:
    """Whatever the dead-letter topic is called."""
    client.create_topic("bills/a")
    client.create_subscription(
        "bills/a", "s", type="shared", max_deliveries=1, dead_letter_topic="bills/dead"
    )
    with client.consumer("bills/*", "s", type="shared") as consumer, client.producer("bills/a") as producer:
        producer.send(b"x").result(5)
        message = consumer.receive(10)
        assert message is not None
        consumer.nack(message)
        assert consumer.receive(0.5) is None
    assert [each["topic"] for each in client.topics()] == ["bills/a", "bills/dead", "orders"]


def test_other_options_are_refused_and_the_same_are_not(client: ister.Client) -> None:
    """As in a broker; a consumer that has it open continues when its options are changed."""
    client.create_subscription("orders", "s", type="shared", max_deliveries=3)
    for options in ({"max_deliveries": 3}, {"backoff_ms_max": 60_000}, {}):
        client.create_subscription("orders", "s", type="shared", exist_ok=True, **options)  # type: ignore[arg-type]
        client.consumer("orders", "s", type="shared", **options).close()  # type: ignore[arg-type]
    with pytest.raises(RemoteError, match="max_deliveries 3, not 4") as caught:
        client.consumer("orders", "s", type="shared", max_deliveries=4)
    assert caught.value.code == "subscription-options"
    with pytest.raises(RemoteError, match="max_deliveries 3, not 4") as caught:
        client.create_subscription("orders", "s", type="shared", exist_ok=True, max_deliveries=4)
    assert caught.value.code == "subscription-options"
    with pytest.raises(RemoteError, match="retention_ms 0, not 5") as caught:
        client.create_topic("orders", exist_ok=True, retention_ms=5)
    assert caught.value.code == "topic-options"


def test_a_consumer_that_had_it_open_goes_on_when_somebody_changed_the_options() -> None:
    """The subscription is the same, and the program need not do anything."""
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.consumer("orders", "s", type="shared", max_deliveries=3) as consumer:
            client.update_subscription("orders", "s", max_deliveries=9)
            broker.restart()
            with client.producer("orders") as producer:
                producer.send(b"x").result(10)
            message = consumer.receive(10)
            assert message is not None
            assert message.payload == b"x"
        assert client.subscription("orders", "s")["settings"]["max_deliveries"] == 9


@pytest.mark.parametrize(("kind", "given"), [("shared", {"priority": 1}), ("failover", {"force": True})])
def test_what_means_nothing_for_a_type_is_refused(
    client: ister.Client, kind: Any, given: dict[str, Any]
) -> None:
    """A priority is for Failover, force for Exclusive subscriptions."""
    with pytest.raises(ister.UsageError, match=next(iter(given))):
        client.consumer("orders", "s", type=kind, **given)


def test_an_operation_it_does_not_have_is_refused(client: ister.Client) -> None:
    """With the code that clients know, and the broker goes on."""
    for ask in (
        lambda: client.update_topic("orders", retention="1h"),
        lambda: client.verify_topic("orders"),
        lambda: client.repair_topic("orders", skip_damaged=True),
    ):
        with pytest.raises(RemoteError) as refused:
            ask()
        assert refused.value.code == "unknown-operation"
    assert client.topic("orders")["topic"] == "orders"


def test_what_is_on_its_way_during_a_seek_is_about_nothing_that_is_sent_again() -> None:
    """As in a real broker: the acknowledgment is of the delivery before, and no error either."""
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.producer("orders") as producer:
            for number in range(3):
                producer.send(b"%d" % number).result(5)
        raw = RawClient(broker.endpoint)
        opened = raw.open_consumer(1, "orders", "s", counts_moves=True)
        assert opened.header[Key.SOUGHT] == 0
        assert [offset for offset, _ in raw.deliveries(1, 3)] == [0, 1, 2]
        client.seek("orders", "s", "earliest")
        assert raw.expect(Type.EVENT, code="sought").header[Key.SOUGHT] == 1
        raw.ack(1, (0, 3))
        assert client.subscription("orders", "s")["unacknowledged"] == 3
        assert [offset for offset, _ in raw.deliveries(1, 3)] == [0, 1, 2]
        raw.ack(1, (0, 3), sought=1)
        assert client.subscription("orders", "s")["unacknowledged"] == 0
        raw.close()
