"""Tests of a request's arguments: they are checked strictly, and every refusal names what was wrong."""

from __future__ import annotations

from typing import Any

import pytest

from ister.actors.directory.arguments import PAGE_MAX, all_but, number, only, page, text
from ister.errors import UsageError


def test_what_is_right_is_returned() -> None:
    """Missing arguments get their defaults."""
    assert text({"topic": "orders"}, "topic") == "orders"
    assert text({}, "type", "shared") == "shared"
    assert all_but({"topic": "t", "drop": "oldest"}, "topic", "type") == {"drop": "oldest"}
    assert page({}) == ("", PAGE_MAX)
    assert page({"after": "a", "limit": 3}) == ("a", 3)
    assert [number({"n": value}, "n", "{}") for value in (None, 0, 7)] == [None, 0, 7]
    only({"topic": 1}, "topic", "to")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda: text({}, "topic"), "the argument 'topic' is missing, or is not text"),
        (lambda: text({"topic": b"x"}, "topic"), "the argument 'topic' is missing, or is not text"),
        (lambda: only({"colour": 1}, "topic", "to"), "no argument 'colour' here; known are topic, to"),
        (lambda: page({"limit": 0}), "limit 0 is not 1 to 500"),
        (lambda: page({"limit": PAGE_MAX + 1}), "limit 501 is not 1 to 500"),
        (lambda: page({"limit": True}), "limit True is not 1 to 500"),
        (lambda: page({"after": 5}), "the argument 'after' is missing, or is not text"),
        (lambda: number({"n": -1}, "n", "number {} is none"), "number -1 is none"),
        (lambda: number({"n": True}, "n", "number {} is none"), "number True is none"),
        (lambda: number({"n": "x" * 99}, "n", "number {} is none"), "number 'x{39} is none"),
    ],
)
def test_what_is_wrong_is_named(read: Any, said: str) -> None:
    """With the argument's name, its value if that is short, and the allowed values."""
    with pytest.raises(UsageError, match=said):
        read()
