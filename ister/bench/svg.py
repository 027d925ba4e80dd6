"""Plots as SVG text: points with the spread of their rounds, and lines, on logarithmic axes. Pure.

Small enough to be read, and a page that holds them needs no script, no font and no host: a plotting library would add
three megabytes to each page, or a picture nobody can select text in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
LEFT, RIGHT, TOP, BOTTOM = 64, 230, 12, 46
COLOURS: Final = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
ROW_HEIGHT: Final = 22
PLOT_HEIGHT: Final = 280
LETTER_WIDTH: Final = 6.6  # about, of the labels before a row
ROW_WIDTH: Final = 430  # of a row's plot and its value


@dataclass(frozen=True, slots=True)
class Span:
    """A value with the lowest and highest of its rounds, and a label."""

    label: str
    low: float
    middle: float
    high: float
    colour: str = COLOURS[0]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of points, with a label."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis between two powers of ten, drawn from `begin` to `end`."""

    low: int
    high: int
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Return where a value lies; what is not above 0 lies at the beginning."""
        part = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        return round(self.begin + max(0.0, min(1.0, part)) * (self.end - self.begin), 1)

    def ticks(self) -> Iterator[float]:
        """Yield the powers of ten."""
        for power in range(self.low, self.high + 1):
            yield 10.0**power


def axis(values: Sequence[float], begin: float, end: float) -> Axis:
    """Return an axis that holds all of the values above 0."""
    positive = [value for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)) + 1e-9)
    high = math.ceil(math.log10(max(positive)) - 1e-9)
    return Axis(low, max(high, low + 1), begin, end)


def short(value: float) -> str:
    """Return a number in few letters: 1.2M, 300k, 0.5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def spans(rows: Sequence[Span], unit: str) -> str:
    """Return a plot with a row for each value: a dot at the median, a line from the lowest round to the highest."""
    if not rows:
        return ""
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    labels = round(20 + LETTER_WIDTH * max(len(row.label) for row in rows))
    width = labels + ROW_WIDTH
    across = axis([value for row in rows for value in (row.low, row.middle, row.high)], labels, width - 70)
    parts = []
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(_rule(x, TOP, x, height - BOTTOM))
        parts.append(_text(x, height - BOTTOM + 16, short(tick), "middle"))
    parts.append(_text((labels + width - 70) / 2, height - 8, unit, "middle"))
    for number, row in enumerate(rows):
        y = TOP + ROW_HEIGHT * (number + 0.5)
        words = f"{row.label}: {short(row.middle)} ({short(row.low)} to {short(row.high)}) {unit}"
        parts.append(_text(labels - 10, y + 4, row.label, "end"))
        parts.append(
            f"<g><title>{escape(words)}</title>"
            f'<line x1="{across.at(row.low)}" y1="{y}" x2="{across.at(row.high)}" y2="{y}" stroke="{row.colour}" '
            f'stroke-width="3"/><circle cx="{across.at(row.middle)}" cy="{y}" r="5" fill="{row.colour}"/></g>'
        )
        parts.append(_text(across.at(row.high) + 9, y + 4, short(row.middle), "start"))
    return _svg(width, height, parts, f"{len(rows)} values in {unit}")


def lines(
    drawn: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_words: Callable[[float], str] = short,
) -> str:
    """Return a plot of lines; `x_ticks` are values and labels where powers of ten would say nothing."""
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    height = TOP + PLOT_HEIGHT + BOTTOM
    across = axis([x for line in drawn for x, _ in line.points], LEFT, WIDTH - RIGHT)
    if x_ticks:
        across = axis([value for value, _ in x_ticks], LEFT, WIDTH - RIGHT)
    up = axis([y for line in drawn for _, y in line.points], TOP + PLOT_HEIGHT, TOP)
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(_rule(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 4, short(tick), "end"))
    for value, label in x_ticks or [(tick, short(tick)) for tick in across.ticks()]:
        x = across.at(value)
        parts.append(_rule(x, TOP, x, TOP + PLOT_HEIGHT))
        parts.append(_text(x, TOP + PLOT_HEIGHT + 16, label, "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x_name, "middle"))
    parts.append(
        f'<text transform="translate(14 {TOP + PLOT_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    for number, line in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        dashes = ' stroke-dasharray="6 3"' if number >= len(COLOURS) else ""
        path = " ".join(f"{across.at(x)},{up.at(y)}" for x, y in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        for x, y in line.points:
            words = f"{line.label}, {x_words(x)}: {short(y)}"
            parts.append(
                f'<circle cx="{across.at(x)}" cy="{up.at(y)}" r="3" fill="{colour}">'
                f"<title>{escape(words)}</title></circle>"
            )
        y = TOP + 12 + 18 * number
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 12}" y1="{y - 4}" x2="{WIDTH - RIGHT + 30}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="3"{dashes}/>'
        )
        parts.append(_text(WIDTH - RIGHT + 36, y, line.label, "start"))
    return _svg(WIDTH, height, parts, f"{y_name} over {x_name}")


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="rule" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        + "\n".join(parts)
        + "</svg>"
    )
