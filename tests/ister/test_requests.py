"""Tests of the arguments and results of requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import wire
from ister.errors import UsageError
from ister.message import Batch, Delivery, Message
from ister.requests import PEEK_GAP, Peek, subscription_request, subscription_settings
from ister.wire import Key


def batch_of(first: int, count: int) -> Batch:
    """Return messages from an offset on."""
    header = {Key.OFFSET: first, Key.COUNT: count, Key.TIMESTAMPS: [count, 5]}
    return Batch(Delivery(None, "orders", 0, header, [bytes(4 * count), b""]), 0, count)


def test_options_travel_under_their_own_names() -> None:
    """Only the acknowledgment timeout may be given in seconds; options that are None are left to the broker."""
    assert subscription_settings(
        {"ack_timeout": 1.5, "max_deliveries": 3, "poison": None, "paused": True}
    ) == {
        "ack_timeout_ms": 1500,
        "max_deliveries": 3,
        "paused": 1,
    }
    assert subscription_settings({"ack_timeout_ms": 20, "dead_letter_topic": "dead"}) == {
        "ack_timeout_ms": 20,
        "dead_letter_topic": "dead",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"max_delivery": 3},
        {"max_deliveries": -1},
        {"max_deliveries": "3"},
        {"poison": "burn"},
        {"drop": "all"},
        {"ack_timeout": -1},
        {"dead_letter_topic": 3},
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(options: dict[str, object]) -> None:
    """A misspelt option must not be ignored."""
    with pytest.raises(UsageError):
        subscription_settings(options)


def test_a_reader_is_no_subscription_to_create() -> None:
    """A reader is opened, and ends with its program."""
    with pytest.raises(UsageError, match="key-shared"):
        subscription_request("orders", "s", "reader", "latest", {})


@given(
    st.lists(st.integers(0, 5 * PEEK_GAP), min_size=2, max_size=20, unique=True)
    .map(sorted)
    .map(lambda edges: list(zip(edges[::2], edges[1::2], strict=False))),
    st.integers(1, 50),
)
def test_a_look_finds_the_first_messages_that_nobody_acknowledged(
    pending: list[tuple[int, int]], count: int
) -> None:
    """However they lie, each once and in order; the peek reads little else."""
    shown = {"subscription": "s", "pending": [list(pair) for pair in pending]}
    peek: Peek[Message] = Peek(shown, count)
    read = 0
    for first, end in peek.places:
        at = first
        while True:
            read += 100
            batch = batch_of(at, 100)
            at += 100
            if not peek.take(batch, end):
                break
    wanted = [offset for first, end in pending for offset in range(first, end)][:count]
    assert [message.offset for message in peek.found] == wanted
    assert read <= (count + 1) * (PEEK_GAP + 200)


def test_there_is_nothing_to_look_at_where_nothing_is_kept() -> None:
    """A non-reliable subscription has no list of pending messages."""
    with pytest.raises(UsageError, match="keeps no messages"):
        Peek({"subscription": "s"}, 10)
    assert Peek({"subscription": "s", "pending": []}, 10).places == []
    assert wire.RANGES_MAX > 100  # the most that the broker lists
