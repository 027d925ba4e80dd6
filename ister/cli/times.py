"""Times and durations as people type them, for options of commands.

Invariant: a time without a zone is UTC, as everything that is printed.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import click

from ister.durations import duration_s

# a relative time ends with a unit: `-1` is more likely a wrong offset than "one second ago"
UNITS_LAST: Final = ("s", "m", "h", "d")
OFFSET: Final = re.compile(r"\d{1,19}", re.ASCII)
DATE_LIKE: Final = re.compile(r"\d{4}-", re.ASCII)  # a date has dashes, so that `20260301` is an offset


def moment_of(text: str, now: datetime) -> datetime | None:
    """Return the time that text like `2026-03-01T08:00:00Z` or `-15m` stands for; None if it is no time."""
    if text[:1] in ("+", "-") and text[-1:] in UNITS_LAST and (seconds := duration_s(text[1:])) is not None:
        stamp = now.timestamp() + (seconds if text[0] == "+" else -seconds)
        return datetime.fromtimestamp(max(0.0, stamp), UTC)
    if DATE_LIKE.match(text):
        try:
            given = datetime.fromisoformat(text)
        except ValueError:
            return None
        return given if given.tzinfo else given.replace(tzinfo=UTC)
    return None


def now() -> datetime:
    """Return the time it is."""
    return datetime.fromtimestamp(time.time(), UTC)


class Position(click.ParamType[Any]):
    """A position to read from: `earliest`, `latest`, an offset, or a time."""

    name = "position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "earliest", "latest", an int or a datetime."""
        if not isinstance(value, str) or value in ("earliest", "latest"):
            return value
        if OFFSET.fullmatch(value):
            return int(value)
        moment = moment_of(value, now())
        if moment is None:
            self.fail(
                f"{value!r} is neither 'earliest' nor 'latest' nor an offset (0, 1, ...) nor a time "
                "(2026-03-01T08:00:00Z, or -15m: a quarter of an hour ago)",
                param,
                ctx,
            )
        return moment


class Moment(click.ParamType[Any]):
    """A time: ISO 8601, or from now on, like `+15m`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a datetime."""
        moment = moment_of(value, now()) if isinstance(value, str) else value
        if moment is None:
            self.fail(f"{value!r} is no time like 2026-03-01T08:00:00Z or +15m", param, ctx)
        return moment


class Duration(click.ParamType[Any]):
    """A duration: seconds, or with a unit, like `15m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return seconds."""
        seconds = duration_s(value) if isinstance(value, str) else value
        if seconds is None:
            self.fail(f"{value!r} is no duration like 90 (seconds), 500ms, 15m, 2h or 7d", param, ctx)
        return seconds
