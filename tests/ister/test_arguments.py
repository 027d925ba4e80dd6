"""Tests of the check of arguments: a clear error before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from ister import arguments, bodies
from ister.errors import RemoteError, UsageError


@pytest.mark.parametrize("value", [-1, "5", True, float("nan"), float("inf"), b""])
def test_a_timeout_is_seconds_or_none(value: Any) -> None:
    """NaN is refused."""
    with pytest.raises(UsageError, match="timeout"):
        arguments.timeout(value)


def test_good_timeouts_pass() -> None:
    """None means no limit, 0 means do not wait."""
    assert arguments.timeout(None) is None
    assert arguments.timeout(0) == 0
    assert arguments.timeout(0.5) == 0.5


def test_text_for_a_payload_says_what_to_do() -> None:
    """The most common mistake has the most helpful error."""
    with pytest.raises(UsageError, match="encode"):
        arguments.data("text", "payload")


@pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab"), b"ab"])
def test_other_buffers_are_taken_as_bytes(value: Any) -> None:
    """Any buffer that can be copied is accepted."""
    assert arguments.data(value, "payload") == b"ab"
    assert type(arguments.data(value, "payload")) is bytes


@pytest.mark.parametrize("value", [None, 5, [b"a"]])
def test_what_is_no_buffer_is_refused(value: Any) -> None:
    """The error has the name of the type."""
    with pytest.raises(UsageError, match=type(value).__name__):
        arguments.data(value, "payload")


def test_attributes_are_text_to_text() -> None:
    """Anything else might not be readable in another language."""
    assert arguments.attributes(None) == b""
    assert bodies.decode_attributes(arguments.attributes({"a": "b"})) == {"a": "b"}
    for wrong in ({"a": 1}, {1: "a"}, {"a": b"b"}, 5, ["a"]):
        with pytest.raises(UsageError):
            arguments.attributes(wrong)


def test_numbers_choices_texts_and_starts_are_checked() -> None:
    """Each error says what would be right."""
    assert arguments.number(3, "n", 1) == 3
    assert arguments.choice("a", "c", ("a", "b")) == "a"
    assert arguments.start(7) == 7
    calls: list[Callable[[], object]] = [
        lambda: arguments.number(0, "n", 1),
        lambda: arguments.number(True, "n"),
        lambda: arguments.choice("c", "c", ("a", "b")),
        lambda: arguments.text(5, "t"),
        lambda: arguments.start(-1),
        lambda: arguments.start("begin"),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()


def test_sizes_and_troubles_are_written_for_people() -> None:
    """In units that people use."""
    assert arguments.in_words(100) == "100 bytes"
    assert arguments.in_words(12_700_000) == "12.1 MiB"
    assert arguments.in_words(64 << 10) == "64.0 KiB"
    assert arguments.in_trouble(None) == ""
    assert "disk-full" in arguments.in_trouble(RemoteError("disk-full", "no space"))


def test_a_place_is_a_name_an_offset_or_a_time() -> None:
    """A datetime is sent as Unix milliseconds, whatever its time zone."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert arguments.start(moment) == "time:1767225600000"
    assert arguments.start(moment.astimezone(timezone(timedelta(hours=5)))) == "time:1767225600000"
    assert arguments.start("time:5") == "time:5"
    assert arguments.start(7) == 7
    for wrong in ("soon", -1, True, 1.5, None, date(2026, 1, 1), datetime(1960, 1, 1, tzinfo=UTC)):
        with pytest.raises(UsageError):
            arguments.start(wrong)


def test_a_time_of_delivery_is_said_in_one_of_three_ways() -> None:
    """As Unix milliseconds, a datetime, or a delay; none of them, or a delay of 0, means at once."""

    def now_ms() -> int:
        return 1_000_000

    assert arguments.due(None, None, now_ms) == 0
    assert arguments.due(None, 0, now_ms) == 0
    assert arguments.due(None, 1.5, now_ms) == 1_001_500
    assert arguments.due(77, None, now_ms) == 77
    assert arguments.due(datetime(2026, 1, 1, tzinfo=UTC), None, now_ms) == 1_767_225_600_000
    nanoseconds = 1_767_225_600_000_000_000
    for at, delay in (
        (5, 1),
        (1.5, None),
        (nanoseconds, None),
        (-1, None),
        (None, -1),
        (None, 1e10),
        ("x", None),
    ):
        with pytest.raises(UsageError):
            arguments.due(at, delay, now_ms)


def test_a_duration_is_seconds_or_text_with_a_unit_or_a_timedelta() -> None:
    """The same in Python as on the command line; the error shows an example."""
    given: list[Any] = [90, "90", "90s", "1.5m", timedelta(seconds=90)]
    assert [arguments.duration(each, "a delay") for each in given] == [90.0] * 5
    assert arguments.milliseconds("7d", "retention") == 7 * 86_400_000
    assert (arguments.milliseconds(0, "x"), arguments.milliseconds(0.0001, "x")) == (0, 1)
    for wrong in ("7 days", "", "-1s", -1, True, None, timedelta(seconds=-1)):
        with pytest.raises(UsageError, match="retention"):
            arguments.duration(wrong, "retention")


def test_a_size_just_over_its_limit_does_not_read_as_the_limit() -> None:
    """Sizes that would be the same words are told in bytes."""
    assert arguments.compared(5 << 20, 4 << 20) == ("5.0 MiB", "4.0 MiB")
    assert arguments.compared((4 << 20) + 1, 4 << 20) == ("4194305 bytes", "4194304 bytes")
