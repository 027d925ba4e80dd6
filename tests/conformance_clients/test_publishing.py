"""Scenarios of producers, for the clients of all languages."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ister.ownbroker import OwnBroker
from tests.conformance_clients.conftest import Play
from tests.conformance_clients.player import Player, payloads_of

pytestmark = pytest.mark.process

MESSAGE_BYTES_MAX = 4 << 20  # the broker's default


def test_what_is_published_comes_back_in_order(player: Player, broker: OwnBroker, topic: str) -> None:
    """Receipts say 0, 1, 2, ..., and a consumer gets the same bytes at the same offsets."""
    player.connect(broker.endpoint)
    player.topic(topic)
    sent = [b"", b"a", bytes(range(256)), b"\x00" * 1000]
    assert player.stored(topic, *sent) == [0, 1, 2, 3]
    consumer = player.consumer(topic, "all", "exclusive")
    came = player.receive(consumer, 4)
    assert [message["offset"] for message in came] == [0, 1, 2, 3]
    assert payloads_of(came) == sent
    player.ack(consumer, *came)
    player.close(consumer=consumer)
    player.close(client="c")
    assert player.driver.finish() == 0


def test_a_thousand_messages_without_waiting_keep_their_order(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """With hundreds of receipts outstanding, offsets follow the order of the calls."""
    player.need("pipeline")
    player.connect(broker.endpoint)
    player.topic(topic)
    sent = [b"%d" % number for number in range(1000)]
    assert player.offsets(player.publish_all(player.producer(topic), sent)) == list(range(1000))
    assert payloads_of(player.receive(player.consumer(topic, "all", "exclusive"), 1000)) == sent


def test_a_batch_has_one_receipt_and_consecutive_offsets(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """One call for many messages: each with its own key, attributes and payload, or without."""
    player.need("batch", "keys", "attributes")
    player.connect(broker.endpoint)
    player.topic(topic)
    messages: list[dict[str, Any]] = [
        {"payload": "", "key": "6b31"},
        {"payload": b"plain".hex()},
        {"payload": b"told".hex(), "attributes": {"colour": "blue", "größe": "ü", "": ""}},
    ]
    producer = player.producer(topic)
    player.receipt(player.publish(producer, b"before"))
    answered = player.receipt(player.publish_batch(producer, messages))
    assert (answered["offset"], answered["count"]) == (1, 3)
    _, *came = player.receive(player.consumer(topic, "all", "shared"), 4)
    assert [(each["payload"], each["key"], each["attributes"]) for each in came] == [
        (each["payload"], each.get("key"), each.get("attributes", {})) for each in messages
    ]


def test_the_largest_message_goes_through(player: Player, broker: OwnBroker, topic: str) -> None:
    """A payload of exactly MESSAGE_BYTES_MAX is accepted, stored and delivered unchanged."""
    player.connect(broker.endpoint)
    player.topic(topic)
    payload = bytes(range(256)) * (MESSAGE_BYTES_MAX // 256)
    assert player.stored(topic, payload, b"behind it") == [0, 1]
    large, small = player.receive(player.consumer(topic, "all", "exclusive"), 2)
    assert large["payload"] == payload.hex()
    assert payloads_of([small]) == [b"behind it"]


def test_a_message_over_the_limit_is_refused_before_it_is_sent(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """The worker would close the connection without an answer; the client raises `message-too-large` and continues."""
    player.need("pipeline")
    player.connect(broker.endpoint)
    player.topic(topic)
    producer = player.producer(topic)
    refused = player.refused(lambda: player.receipt(player.publish(producer, bytes(MESSAGE_BYTES_MAX + 1))))
    assert (refused.code, refused.action) == ("message-too-large", "fix")
    assert player.offsets([player.publish(producer, b"small")]) == [0]


def test_a_producer_with_a_name_goes_on_where_it_was(play: Play, broker: OwnBroker, topic: str) -> None:
    """A restarted program is told the next number, and what it sends under an old one is not stored again."""
    first = play()
    first.need("named-producer")
    first.connect(broker.endpoint)
    first.topic(topic)
    producer = first.producer(topic, name="loader")
    assert first.offsets([first.publish(producer, b"one"), first.publish(producer, b"two")]) == [0, 1]
    first.driver.kill()

    second = play()
    second.connect(broker.endpoint)
    opened = second.driver.ask("producer", client="c", producer="p", topic=topic, name="loader")
    assert opened["next_sequence"] in (2, None)
    assert second.receipt(second.publish("p", b"two", sequence=1))["duplicate"] in (True, None)
    assert second.receipt(second.publish("p", b"three", sequence=2))["offset"] == 2
    consumer = second.consumer(topic, "all", "exclusive")
    assert payloads_of(second.receive(consumer, 3)) == [b"one", b"two", b"three"]
    assert second.nothing(consumer)


def test_the_ids_of_named_producers_agree(player: Player, broker: OwnBroker, topic: str) -> None:
    """A name gives the same id in every language: another producer of that name is fenced."""
    import ister

    player.need("named-producer")
    player.connect(broker.endpoint)
    player.topic(topic)
    producer = player.producer(topic, name="lädt 1")
    assert player.receipt(player.publish(producer, b"one"))["offset"] == 0
    with ister.connect(broker.endpoint) as other, other.producer(topic, name="lädt 1") as taking_over:
        assert taking_over.last_sequence == 0
        refused = player.refused(lambda: player.receipt(player.publish(producer, b"late")))
        assert (refused.code, refused.action) == ("producer-fenced", "stop")


def test_a_message_waits_for_its_time(player: Player, broker: OwnBroker, topic: str) -> None:
    """It is delivered when its delivery time has come; later messages do not wait."""
    player.need("delivery-time")
    player.connect(broker.endpoint)
    player.topic(topic)
    producer = player.producer(topic)
    due = round(time.time() * 1000) + 1500
    player.offsets([player.publish(producer, b"later", deliver_at_ms=due), player.publish(producer, b"now")])
    consumer = player.consumer(topic, "all", "shared")
    now, later = player.receive(consumer, 2)
    assert payloads_of([now, later]) == [b"now", b"later"]
    assert (now["deliver_at_ms"], later["deliver_at_ms"]) == (None, due)
    assert time.time() * 1000 >= due


def test_an_error_of_the_broker_has_its_code(player: Player, broker: OwnBroker, topic: str) -> None:
    """A missing topic: `unknown-topic`, action `fix`; the client still works."""
    player.connect(broker.endpoint)
    refused = player.refused(lambda: player.producer("nowhere/" + topic))
    assert (refused.code, refused.action) == ("unknown-topic", "fix")
    player.topic(topic)
    refused = player.refused(lambda: player.topic(topic))
    assert (refused.code, refused.action) == ("topic-exists", "fix")
    refused = player.refused(lambda: player.topic("not a name"))
    assert refused.code == "invalid-name"
    assert player.stored(topic, b"well") == [0]


def test_closing_waits_for_the_receipts(play: Play, broker: OwnBroker, topic: str) -> None:
    """A producer that is closed with receipts outstanding has lost nothing when the call returns."""
    player = play()
    player.need("pipeline", "orderly-close")
    player.connect(broker.endpoint)
    player.topic(topic)
    producer = player.producer(topic)
    sent = [b"%d" % number for number in range(500)]
    receipts = player.publish_all(producer, sent)
    player.close(producer=producer)
    player.driver.kill()
    assert len(receipts) == 500

    other = play()
    other.connect(broker.endpoint)
    assert payloads_of(other.receive(other.consumer(topic, "all", "exclusive"), 500)) == sent


def test_a_program_that_ends_in_order_loses_nothing(play: Play, broker: OwnBroker, topic: str) -> None:
    """After all receipts it sends BYE and ends: everything is stored, and its place is free."""
    player = play()
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "only", "exclusive")
    player.stored(topic, b"one", b"two")
    one, _ = player.receive(consumer, 2)
    player.ack(consumer, one)
    player.close(consumer=consumer)
    player.close(client="c")
    assert player.driver.finish() == 0

    other = play()
    other.connect(broker.endpoint)
    [left] = other.receive(other.consumer(topic, "only", "exclusive", timeout_ms=None))
    assert payloads_of([left]) == [b"two"]


@pytest.mark.parametrize("batch", [0, 40], ids=["message", "batch"])
def test_what_a_driver_measures_is_sent_and_received(
    player: Player, broker: OwnBroker, topic: str, batch: int
) -> None:
    """Its loops send and take every message, whole, once; `benchmarks/clients.py` goes by them."""
    player.need("bench")
    player.connect(broker.endpoint)
    player.topic(topic)
    producer = player.producer(topic)
    sent = player.driver.ask(
        "bench_publish", producer=producer, messages=1_010, message_bytes=30, batch=batch, timeout_ms=30_000
    )
    consumer = player.consumer(topic, "all", "exclusive")
    came = player.driver.ask(
        "bench_receive", consumer=consumer, messages=1_010, batch=batch > 0, timeout_ms=30_000
    )
    assert sent["seconds"] > 0
    assert came["seconds"] > 0
    assert came["bytes"] == 1_010 * 30
    trips = player.driver.ask(
        "bench_round_trips",
        producer=producer,
        consumer=consumer,
        messages=20,
        message_bytes=30,
        timeout_ms=30_000,
    )
    assert 0 < trips["p50_us"] <= trips["p99_us"]
    player.close(consumer=consumer)
    left = player.consumer(topic, "all", "exclusive")
    assert player.driver.ask("receive", consumer=left, timeout_ms=300)["messages"] == []
