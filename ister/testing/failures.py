"""Failed messages in the broker for tests: options, back-off, and the contents of a dead letter. Pure."""

from __future__ import annotations

from typing import Any, Final

from ister import bodies
from ister import subscription_defaults as standard
from ister.backoff import doubled
from ister.testing.model import Record, Subscription, Topic

REDRIVE: Final = "redrive"
_SUFFIX: Final = ".dlq"


def options_of(subscription: Subscription) -> dict[str, Any]:
    """Return every option in force: the subscription's own, and the defaults for the others."""
    given, topic = subscription.settings, subscription.topic
    if topic.strategy != "reliable":
        return {
            "buffer_messages_max": standard.BUFFER_MESSAGES_MAX,
            "buffer_bytes_max": standard.BUFFER_BYTES_MAX,
            "drop": standard.DROP,
        } | given
    low, high = given.get("backoff_ms_min"), given.get("backoff_ms_max")
    if low is None:
        low = standard.BACKOFF_MS_MIN if high is None else min(standard.BACKOFF_MS_MIN, high)
    letters = topic.settings.get("dead_letters") or topic.name.endswith(_SUFFIX)
    return {
        "ack_timeout_ms": standard.ACK_TIMEOUT_MS,
        "backoff_ms_min": low,
        "backoff_ms_max": max(standard.BACKOFF_MS_MAX, low) if high is None else high,
        "max_deliveries": 0 if letters else standard.MAX_DELIVERIES,
        "poison": "dead-letter",
        "dead_letter_topic": f"{topic.name}.{subscription.name}{_SUFFIX}",
        "paused": 0,
    } | given


def wait_s(subscription: Subscription, offset: int, delay_ms: int | None) -> float | None:
    """Count a failure; return how long the message waits for redelivery, None if it is poison now."""
    options = options_of(subscription)
    failures = subscription.failures[offset] = subscription.failures.get(offset, 0) + 1
    if 0 < options["max_deliveries"] <= failures:
        return None
    if delay_ms is None:
        low, high = options["backoff_ms_min"], options["backoff_ms_max"]
        delay_ms = doubled(low, high, failures - 1) if low else 0
    return delay_ms / 1000


def letter_of(subscription: Subscription, offset: int, producer_id: int, reason: str, now_ms: int) -> Record:
    """Return a message as it is in the dead-letter topic."""
    record = subscription.topic.records[offset]
    told = {
        "topic": subscription.topic.name,
        "subscription": subscription.name,
        "offset": str(offset),
        "producer": f"{producer_id:016x}",
        "timestamp": str(record.timestamp),
        "attempts": str(subscription.attempts.get(offset, 1)),
        "reason": reason,
        "dead_lettered_at": str(now_ms),
    }
    attributes = bodies.decode_attributes(record.attributes) | {
        bodies.MARK + name: value for name, value in told.items()
    }
    return Record(record.payload, record.key, bodies.encode_attributes(attributes), 0, now_ms)


def make_ready(topic: Topic) -> None:
    """Make a topic a dead-letter topic: it is marked, and has the subscription that keeps its letters."""
    topic.settings["dead_letters"] = 1
    if REDRIVE not in topic.subscriptions:
        topic.subscriptions[REDRIVE] = Subscription(topic, REDRIVE, "exclusive", 0)


def producer_of(topic: Topic, offset: int) -> int:
    """Return the producer id of a message, 0 if it has none."""
    before = [(first, who) for (who, _), first in topic.placed.items() if first <= offset]
    return max(before, default=(0, 0))[1]
