"""Tests of the options of topics and subscriptions."""

from __future__ import annotations

import pytest

from ister.actors.options import SUBSCRIPTION_OPTIONS, check_options, check_position, dead_letter_topic
from ister.errors import UsageError
from ister.storage.meta import SubscriptionMeta


def test_options_have_limits_that_their_errors_name() -> None:
    """An error about an option names the option, the value and the allowed range."""
    check_options(
        {"ack_timeout_ms": 10, "buffer_messages_max": 1, "drop": "newest", "dead_letter_topic": "a/b"},
        SUBSCRIPTION_OPTIONS,
        "subscription",
    )
    for options, text in (
        ({"ack_timeout_ms": 9}, "ack_timeout_ms is 9, which is not 10 to 86400000"),
        ({"drop": "both"}, "drop is 'both', which is not oldest or newest"),
        ({"poison": "eat"}, "poison is 'eat', which is not dead-letter or drop or block"),
        ({"paused": 2}, "paused is 2, which is not 0 to 1"),
        ({"max_deliveries": True}, "max_deliveries is True, which is not 0 to 1000000"),
        ({"dead_letter_topic": "a b"}, "dead_letter_topic: topic name 'a b' has ' '"),
        ({"dead_letter_topic": 7}, "dead_letter_topic: topic name must be text"),
        ({"colour": 7}, "a subscription has no setting 'colour'"),
    ):
        with pytest.raises(UsageError, match=text):
            check_options(options, SUBSCRIPTION_OPTIONS, "subscription")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("earliest", "earliest"),
        ("latest", "latest"),
        (5, 5),
        ("5", 5),
        ("007", 7),
        ("time:1700000000000", "time:1700000000000"),
        ("time:0", "time:0"),
    ],
)
def test_a_position_has_one_form(given: object, meant: str | int) -> None:
    """In whatever form a client gives it, the catalogue stores one form, which parses to the same position."""
    assert check_position(given, "start") == meant
    assert check_position(str(meant), "start") == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        ":",
        "time",
        "time:",
        "time:-1",
        "time:1:2",
        "Time:1",
        "-1",
        "1 ",
        "٣",
        "9" * 20,
        -1,
        True,
        None,
        1.5,
    ],
)
def test_whatever_is_no_position_is_refused(given: object) -> None:
    """A position is a word, an offset or a time; anything else is refused."""
    with pytest.raises(UsageError, match="neither 'earliest' nor 'latest'"):
        check_position(given, "start")


def test_dead_letters_have_a_topic_by_default() -> None:
    """Its name is made of topic and subscription, unless the subscription names another."""
    meta = SubscriptionMeta("orders/eu", "billing", "shared", 0, 1)
    assert dead_letter_topic(meta) == "orders/eu.billing.dlq"
    named = SubscriptionMeta("orders/eu", "billing", "shared", 0, 1, {"dead_letter_topic": "bad"})
    assert dead_letter_topic(named) == "bad"
