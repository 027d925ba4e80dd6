"""Bars for a terminal: one line a value, as long as its part of the largest. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
WIDTH: Final = 40


def bar(value: float, largest: float, width: int = WIDTH) -> str:
    """Return a bar of at most `width` columns, to an eighth of a column; something for all that is not nothing."""
    if value <= 0 or largest <= 0:
        return ""
    eighths = max(1, round(min(value, largest) / largest * width * 8))
    full, rest = divmod(eighths, 8)
    return EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")


def bars(rows: Sequence[tuple[str, float, str]], width: int = WIDTH) -> list[str]:
    """Return the lines of a plot: label, bar, and the value in words; empty for no rows."""
    if not rows:
        return []
    labels = max(len(label) for label, _, _ in rows)
    largest = max(value for _, value, _ in rows)
    return [
        f"  {label:<{labels}}  {bar(value, largest, width):<{width}}  {words}" for label, value, words in rows
    ]
