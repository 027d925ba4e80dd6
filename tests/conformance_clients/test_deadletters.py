"""Scenarios of dead letters, for the clients of all languages."""

from __future__ import annotations

import time

import pytest

from ister.ownbroker import OwnBroker
from tests.conformance_clients.player import ANSWER_MS, Player, Shown, payloads_of

pytestmark = pytest.mark.process

OPTIONS = {"max_deliveries": 1, "backoff_ms_min": 0}


def letters(player: Player, topic: str, count: int, **more: int) -> list[Shown]:
    """Return the letters of the subscription `all`, once there are so many."""
    until = time.monotonic() + ANSWER_MS / 1000
    while True:
        asked = {"client": "c", "topic": topic, "subscription": "all", "timeout_ms": ANSWER_MS} | more
        found: list[Shown] = player.driver.ask("letters", **asked)["letters"]
        if len(found) >= count:
            return found
        assert time.monotonic() < until, f"{len(found)} letters, not {count}"
        time.sleep(0.05)


def given_up(player: Player, topic: str, *payloads: bytes) -> str:
    """Have messages given up by the subscription `all`, and return the name of its consumer."""
    player.topic(topic)
    consumer = player.consumer(topic, "all", "shared", options=OPTIONS)
    producer = player.producer(topic)
    for payload in payloads:
        player.receipt(player.publish(producer, payload, key=b"k".hex(), attributes={"from": "me"}))
    for message in player.receive(consumer, len(payloads)):
        player.driver.ask("nack", consumer=consumer, offsets=[message["offset"]], reason="bad")
    letters(player, topic, len(payloads))
    return consumer


def test_dead_letters_are_listed_with_what_happened_to_them(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """A letter is the message as it was published, where it was, how often it came, and why it was given up."""
    player.need("dead-letters", "nack", "options", "attributes", "keys")
    player.connect(broker.endpoint)
    topic = topic[:100]
    given_up(player, topic, b"one", b"two", b"three")
    for _ in range(2):  # listing removes nothing
        found = letters(player, topic, 3)
        assert payloads_of(found) == [b"one", b"two", b"three"]
        for number, letter in enumerate(found):
            assert (letter["topic"], letter["subscription"]) == (topic, "all")
            assert (letter["origin_offset"], letter["attempts"], letter["reason"]) == (number, 1, "bad")
            assert (letter["attributes"], letter["key"]) == ({"from": "me"}, b"k".hex())
    assert payloads_of(letters(player, topic, 2, max=2)) == [b"one", b"two"]


def test_dead_letters_are_sent_back_where_they_came_from(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """Those that are named, then the others; each is gone from the letters, and comes with its past."""
    player.need("dead-letters", "nack", "options", "attributes", "keys")
    player.connect(broker.endpoint)
    topic = topic[:100]
    consumer = given_up(player, topic, b"one", b"two", b"three")
    about = {"client": "c", "topic": topic, "subscription": "all", "timeout_ms": ANSWER_MS}
    found = letters(player, topic, 3)
    assert player.driver.ask("redrive", offsets=[found[1]["offset"]], **about) == {"messages": 1}
    [back] = player.receive(consumer)
    assert (payloads_of([back]), back["key"], back["attempt"]) == ([b"two"], b"k".hex(), 1)
    told = dict(back["attributes"])
    assert told.pop("from") == "me"
    assert told == {
        "ister.redriven_from": f"{topic}.all.dlq",
        "ister.redriven_offset": str(found[1]["offset"]),
        "ister.redriven_for": "all",
    }
    player.ack(consumer, back)
    assert payloads_of(letters(player, topic, 2)) == [b"one", b"three"]
    elsewhere = player.topic(f"{topic}-elsewhere")
    assert player.driver.ask("redrive", to=elsewhere, max=1, **about) == {"messages": 1}
    assert payloads_of(player.receive(player.consumer(elsewhere, "s", "shared"))) == [b"one"]
    assert player.driver.ask("redrive", **about) == {"messages": 1}
    assert payloads_of(player.receive(consumer)) == [b"three"]
    assert letters(player, topic, 0) == []
    assert player.driver.ask("redrive", **about) == {"messages": 0}


def test_dead_letters_are_deleted(player: Player, broker: OwnBroker, topic: str) -> None:
    """So many as were asked for, the oldest first, then all."""
    player.need("dead-letters", "nack", "options")
    player.connect(broker.endpoint)
    topic = topic[:100]
    consumer = given_up(player, topic, b"one", b"two", b"three")
    about = {"client": "c", "topic": topic, "subscription": "all", "timeout_ms": ANSWER_MS}
    assert player.driver.ask("purge", max=1, **about) == {"messages": 1}
    assert payloads_of(letters(player, topic, 2)) == [b"two", b"three"]
    assert player.driver.ask("purge", **about) == {"messages": 2}
    assert letters(player, topic, 0) == []
    assert player.nothing(consumer)
