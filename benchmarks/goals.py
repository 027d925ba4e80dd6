"""What Ister should reach beside its peers, and what a file of results says of it.

    python benchmarks/goals.py build/bench/peers.json

`peers.py` prints the same table at its end. A ratio is Ister's figure over the other's, of medians measured in turn in
one run, with the lowest and the highest of a round: for rates it should be at least what stands there, for latencies at
most. Where two peers are named, the better one counts. The last rows have no goal: beside the bare exchange they show
what no broker in Python over this transport can be ahead of, as it does no more than that.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ister.bench.results import SYSTEM, parse
from ister.errors import UsageError
from ister.words import counted

Results = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Goal:
    """A ratio: a result of Ister over that of a peer, in one figure; `bound` and `aim` are None where none is set."""

    what: str
    ours: str
    row: str
    theirs: tuple[str, ...]
    figure: str
    bound: float | None = None
    aim: float | None = None

    @property
    def more(self) -> bool:
        """Whether more is better."""
        return self.figure.endswith("_per_second")


RATE: Final = "messages_per_second"
SYNCED: Final = ("JetStream fsync", "Redis always")
GOALS: Final = (
    Goal("receipt latency p50, fsync", "latency fsync", "latency", SYNCED, "receipt_p50_us", 1.0, 0.8),
    Goal("receipt latency p99, fsync", "latency fsync", "latency", SYNCED, "receipt_p99_us", 1.0, 0.8),
    Goal("end to end p50, fsync", "latency fsync", "latency", ("Iggy fsync",), "delivered_p50_us", 1.5, 1.0),
    Goal(
        "end to end p50, non-reliable",
        "latency none",
        "latency",
        ("NATS core",),
        "delivered_p50_us",
        2.0,
        1.3,
    ),
    Goal("one at a time, fsync", "lone fsync", "lone", ("Redis always",), RATE, 0.9, 1.2),
    Goal("1 KiB non-reliable, message calls", "1k none message", "1k", ("NATS core",), RATE, 0.8, 1.0),
    Goal("1 KiB non-reliable, batch calls", "1k none batch", "1k", ("NATS core",), RATE, 1.0, 1.2),
    Goal("16 KiB, batch calls, fsync", "16k fsync batch", "16k", ("RabbitMQ stream",), RATE, 0.6, 1.0),
    Goal("1 KiB fsync, message calls", "1k fsync message", "1k", ("bare transfer fsync",), RATE, 0.7, 0.9),
    Goal("1 KiB fsync, batch calls", "1k fsync batch", "1k", ("bare transfer fsync",), RATE, 0.85, 1.0),
    Goal("16 KiB fsync, batch calls", "16k fsync batch", "16k", ("bare transfer fsync",), RATE, 0.85, 0.95),
    Goal("receipt latency p50, fsync", "latency fsync", "latency", ("bare pyzmq fsync",), "receipt_p50_us"),
    Goal("receipt latency p99, fsync", "latency fsync", "latency", ("bare pyzmq fsync",), "receipt_p99_us"),
    Goal("end to end p50, fsync", "latency fsync", "latency", ("bare pyzmq fsync",), "delivered_p50_us"),
    Goal("end to end p50, non-reliable", "latency none", "latency", ("bare pyzmq none",), "delivered_p50_us"),
    Goal("one at a time, fsync", "lone fsync", "lone", ("bare pyzmq fsync",), RATE),
    Goal("one at a time, non-reliable", "lone none", "lone", ("bare pyzmq none",), RATE),
)


def by_name(results: Sequence[Mapping[str, Any]]) -> Results:
    """Return results by system and name."""
    return {(each["system"], each["name"]): each for each in results}


def that_ran(found: Results) -> list[Goal]:
    """Return the goals of rows that ran, and the comparisons without a goal whose both sides did."""
    return [
        goal
        for goal in GOALS
        if (SYSTEM, goal.ours) in found
        and (goal.bound is not None or any((name, goal.row) in found for name in goal.theirs))
    ]


def _rounds(found: Results, system: str, name: str, figure: str) -> list[float]:
    told = found.get((system, name), {}).get("figures", {}).get(figure)
    return list(told["rounds"]) if told else []


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of the medians, and the lowest and the highest of a round."""
    rounds = [a / b for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(ours) / statistics.median(theirs), min(rounds), max(rounds)


def cells(goal: Goal, found: Results) -> list[str]:
    """Return a goal's row of the table."""
    sign = ">=" if goal.more else "<="
    bound, aim = ("-" if each is None else f"{sign} {each:g}" for each in (goal.bound, goal.aim))
    ours = _rounds(found, SYSTEM, goal.ours, goal.figure)
    others = {name: rounds for name in goal.theirs if (rounds := _rounds(found, name, goal.row, goal.figure))}
    if not ours or not others:
        return [goal.what, " or ".join(goal.theirs), "not measured", "", "", "", bound, aim, ""]
    missing = [name for name in goal.theirs if name not in others]  # it may be the better one
    best = (max if goal.more else min)(others, key=lambda name: statistics.median(others[name]))
    middle, low, high = ratio(ours, others[best])
    return [
        goal.what,
        best,
        f"{statistics.median(ours):,.0f}",
        f"{statistics.median(others[best]):,.0f}",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        bound,
        aim,
        f"without {', '.join(missing)}"
        if missing and goal.bound is not None
        else verdict(middle, low, high, goal),
    ]


def verdict(middle: float, low: float, high: float, goal: Goal) -> str:
    """Return in a word whether a ratio reaches what is asked of it, and whether the rounds agree about that."""

    def within(limit: float, value: float) -> bool:
        return value >= limit if goal.more else value <= limit

    if goal.bound is None:
        return ""
    word = "reached" if within(goal.bound, middle) else "missed"
    if within(goal.bound, low) != within(goal.bound, high):
        return f"{word}, but not in every round"
    if goal.aim is not None and within(goal.aim, middle):
        return "reached, also the aim"
    return word


HEAD: Final = ["Ister", "beside", "Ister's", "the other's", "ratio", "rounds", "goal", "aim", ""]


def lines_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table, without the goals of rows that did not run."""
    found = by_name(results)
    ran = that_ran(found)
    rows = [HEAD, *(cells(goal, found) for goal in ran)] if ran else []
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) if rows else 0)]
    numbers = (2, 3, 4)
    left = sum(goal.bound is not None for goal in GOALS if goal not in ran)
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ] + ([f"  not measured: {counted(left, 'goal')} of rows that did not run"] if left else [])


def main() -> int:
    """Print the table of a file of results."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        asked = "--help" in sys.argv or "-h" in sys.argv
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    name = sys.argv[1]
    try:
        found = parse(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UsageError) as error:
        raise SystemExit(str(error)) from None
    print("\n".join(lines_of(found["results"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
