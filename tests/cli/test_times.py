"""Times and durations on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ister.cli.times import moment_of
from ister.durations import duration_s

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("500ms", 0.5), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("30s", 30)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    """A bare number means seconds, as everywhere."""
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "5 m", "5w", "1e3", "١"])
def test_what_is_no_duration_is_none(text: str) -> None:
    """Nothing is guessed."""
    assert duration_s(text) is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("-15m", datetime(2026, 3, 1, 11, 45, tzinfo=UTC)),
        ("+2h", datetime(2026, 3, 1, 14, 0, tzinfo=UTC)),
        ("2026-02-28T08:00:00Z", datetime(2026, 2, 28, 8, 0, tzinfo=UTC)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC)),
        ("2026-02-28T08:00:00+01:00", datetime(2026, 2, 28, 7, 0, tzinfo=UTC)),
    ],
)
def test_a_time_is_iso_8601_or_counted_from_now(text: str, moment: datetime) -> None:
    """Without a zone it is UTC, like everything that is printed."""
    assert moment_of(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "-", "-1", "15m", "20260301", "tomorrow", "2026-13-01"])
def test_what_is_no_time_is_none(text: str) -> None:
    """An offset, or a typing error, is not taken for a time."""
    assert moment_of(text, NOW) is None
