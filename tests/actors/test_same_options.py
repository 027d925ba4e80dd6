"""Tests of options given for an existing topic or subscription: equal ones are accepted, others refused."""

from __future__ import annotations

from typing import Any

import pytest

from ister.wire import Key, Type
from tests.stage import Stage


@pytest.fixture
def asked(stage: Stage) -> Stage:
    """Return a broker with a subscription that has an option of its own."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    client.request("subscription.create", topic="orders", subscription="s", type="shared", max_deliveries=3)
    client.request("subscription.create", topic="quotes", subscription="s", type="shared", drop="newest")
    return stage


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("orders", {}),
        ("orders", {"max_deliveries": 3}),
        ("orders", {"max_deliveries": 3, "backoff_ms_min": 1_000, "backoff_ms_max": 60_000}),
        ("orders", {"ack_timeout_ms": 300_000, "poison": "dead-letter", "paused": 0}),
        ("orders", {"dead_letter_topic": "orders.s.dlq"}),
        ("quotes", {"drop": "newest", "buffer_messages_max": 100_000}),
    ],
)
def test_what_a_subscription_has_is_fine(asked: Stage, topic: str, options: dict[str, Any]) -> None:
    """Its own options, and the defaults it uses."""
    client = asked.at_subscription(topic, "s")
    assert client.open_consumer(1, topic, "s", "shared", **options).kind == Type.OPENED


@pytest.mark.requirement("9.1-2")
@pytest.mark.parametrize(
    ("topic", "options", "words"),
    [
        ("orders", {"max_deliveries": 4}, "has max_deliveries 3, not 4"),
        ("orders", {"backoff_ms_min": 5}, "has backoff_ms_min 1000, not 5"),
        ("orders", {"poison": "drop"}, "has poison 'dead-letter', not 'drop'"),
        ("orders", {"ack_timeout_ms": 1000}, "has ack_timeout_ms 300000, not 1000"),
        ("orders", {"paused": 1}, "has paused 0, not 1"),
        ("orders", {"dead_letter_topic": "bad"}, "has dead_letter_topic 'orders.s.dlq', not 'bad'"),
        ("quotes", {"drop": "oldest"}, "has drop 'newest', not 'oldest'"),
        ("quotes", {"buffer_bytes_max": 1}, "has buffer_bytes_max 16777216, not 1"),
    ],
)
def test_others_are_refused_with_both_values(
    asked: Stage, topic: str, options: dict[str, Any], words: str
) -> None:
    """Nothing is ignored: the client would rely on a value that is not in force."""
    client = asked.at_subscription(topic, "s")
    refused = client.open_consumer(1, topic, "s", "shared", **options)
    assert (refused.code, refused.header[Key.ACTION]) == ("subscription-options", "fix")
    assert words in refused.header[Key.TEXT]


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("orders", {"drop": "newest"}),
        ("orders", {"buffer_messages_max": 5}),
        ("quotes", {"max_deliveries": 5}),
        ("quotes", {"ack_timeout_ms": 500}),
    ],
)
def test_what_would_mean_nothing_is_refused(asked: Stage, topic: str, options: dict[str, Any]) -> None:
    """In a creation, in an open of an existing subscription, and in an update."""
    client = asked.client()
    for name in ("s", "new"):
        at = asked.at_subscription(topic, name)
        assert at.open_consumer(1, topic, name, "shared", **options).code == "invalid-argument"
    assert (
        client.ask("subscription.update", topic=topic, subscription="s", **options).code == "invalid-argument"
    )
    refused = client.ask("topic.create", topic="new", dispatch="non-reliable", durability="fsync")
    assert refused.code == "invalid-argument"


def test_a_broker_with_other_defaults_goes_by_these(stage: Stage, make_stage: Any) -> None:
    """A subscription without options has the broker's defaults."""
    other = make_stage(1, subscription__max_deliveries=7)
    client = other.client()
    client.request("topic.create", topic="orders")
    made = client.request("subscription.create", topic="orders", subscription="s", type="shared")
    assert made["settings"] == {}
    assert (made["options"]["max_deliveries"], made["options"]["backoff_ms_min"]) == (7, 1_000)
    assert client.open_consumer(1, "orders", "s", "shared", max_deliveries=20).code == "subscription-options"
    assert client.open_consumer(1, "orders", "s", "shared", max_deliveries=7).kind == Type.OPENED
