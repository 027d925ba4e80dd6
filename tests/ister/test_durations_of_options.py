"""Tests of the options of topics and subscriptions, as programs give them and as they are sent."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ister.errors import UsageError
from ister.requests import consumer_type, subscription_settings, topic_settings


def test_what_a_topic_keeps_is_given_in_any_unit() -> None:
    """Durations are sent in milliseconds, None is not sent, and 0 removes a limit."""
    assert topic_settings({"retention": "7d", "message_ttl": timedelta(hours=1)}) == {
        "retention_ms": 7 * 86_400_000,
        "message_ttl_ms": 3_600_000,
    }
    given = {"retention_ms": 5, "retention_acknowledged": True, "retention_bytes": 0, "message_ttl": None}
    assert topic_settings(given) == {"retention_ms": 5, "retention_acknowledged": 1, "retention_bytes": 0}


def test_how_long_a_subscription_waits_is_given_in_any_unit() -> None:
    """Seconds, text, or the milliseconds that the broker shows."""
    given = {"ack_timeout": "15m", "backoff_min": 0.5, "backoff_ms_max": 8_000}
    assert subscription_settings(given) == {
        "ack_timeout_ms": 900_000,
        "backoff_ms_min": 500,
        "backoff_ms_max": 8_000,
    }
    assert subscription_settings({"ack_timeout": 0, "backoff_min": 0}) == {
        "ack_timeout_ms": 1,
        "backoff_ms_min": 0,
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retention": 5, "retention_ms": 5000}, "either retention or retention_ms"),
        ({"retention_s": 5}, "no option 'retention_s'; it has message_ttl"),
        ({"retention": "a week"}, "'a week'"),
        ({"retention_ms": True}, "retention_ms is a whole number"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_before_anything_is_sent(
    options: dict[str, Any], says: str
) -> None:
    """The error has the options there are, or the values that conflict."""
    with pytest.raises(UsageError, match=says):
        topic_settings(options)


def test_a_consumer_shares_unless_it_says_otherwise() -> None:
    """In Python and on the command line; only with force the default is Exclusive."""
    assert consumer_type(None, force=False) == "shared"
    assert consumer_type(None, force=True) == "exclusive"
    assert consumer_type("failover", force=True) == "failover"
