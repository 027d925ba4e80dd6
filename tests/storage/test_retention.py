"""Tests of the age of segments, whatever the clock did when they were written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ister.storage.retention import Retention, due_in_ms, times_of, trim_point
from ister.storage.segment import SegmentInfo

DAY = 86_400_000
NOW = 1_700_000_000_000


def segments(*times: int | tuple[int, int]) -> list[SegmentInfo]:
    """Return segments that ended at these times, or from the first to the second of two."""
    found: list[SegmentInfo] = []
    log_time = 0
    for number, each in enumerate(times):
        highest, last = each if isinstance(each, tuple) else (each, each)
        log_time = max(log_time, highest)
        found.append(SegmentInfo(f"{number}", number, number + 1, 100, last, last, 1, 1, log_time))
    return found


def kept_from(found: Sequence[SegmentInfo], ms: int) -> int:
    """Return the first offset of a log with this maximal age."""
    return trim_point(found, Retention(ms=ms), now_ms=NOW, acknowledged=None, floor=1 << 60)


def test_a_segment_of_a_clock_that_was_ahead_holds_nothing_up() -> None:
    """It is as old as the segment written after it."""
    found = segments(NOW - 9 * DAY, NOW + 365 * DAY, NOW - 8 * DAY, NOW - 2 * DAY, NOW)
    assert times_of(found, NOW) == [NOW - 9 * DAY, NOW - 8 * DAY, NOW - 8 * DAY, NOW - 2 * DAY, NOW]
    assert kept_from(found, 7 * DAY) == 3


def test_the_newest_segment_of_a_clock_that_was_ahead_is_new() -> None:
    """No later segment says how old it is."""
    found = segments(NOW - 9 * DAY, NOW + 365 * DAY)
    assert times_of(found, NOW) == [NOW - 9 * DAY, NOW]
    assert kept_from(found, DAY) == 1


@pytest.mark.parametrize("back", [0, NOW - 30 * DAY])
def test_a_clock_that_stepped_back_makes_nothing_older(back: int) -> None:
    """Setting it back counts as standing still, between segments and within one."""
    found = segments(NOW - 2 * DAY, back, (NOW - DAY, back))
    assert times_of(found, NOW) == [NOW - 2 * DAY, NOW - 2 * DAY, NOW - DAY]
    assert kept_from(found, 7 * DAY) == 0


def test_it_is_known_when_age_drops_something_next() -> None:
    """Until then nothing is dropped, and right after that the oldest segment is."""
    found = segments(NOW - 9 * DAY, NOW - 8 * DAY, NOW)
    retention = Retention(ms=10 * DAY)
    due_ms = NOW + int(due_in_ms(found, retention, NOW))
    for later_ms, kept in ((NOW, 0), (due_ms, 0), (due_ms + 1, 1)):
        assert trim_point(found, retention, now_ms=later_ms, acknowledged=None, floor=1 << 60) == kept
    assert due_in_ms(found, Retention(ms=DAY), NOW) == 0


def test_other_limits_wait_for_a_change() -> None:
    """Bytes grow when a segment is sealed; only what subscriptions have acknowledged is to be asked for."""
    found = segments(NOW - 9 * DAY)
    assert due_in_ms(found, Retention(bytes=1), NOW) == math.inf
    assert due_in_ms(found, Retention(), NOW) == math.inf
    assert due_in_ms([], Retention(ms=1), NOW) == math.inf
    assert due_in_ms(found, Retention(acknowledged=True), NOW) == 0
