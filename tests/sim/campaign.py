"""Many histories, one after the other or in several processes: `python -m tests.sim.campaign --seeds 1000`.

Question: in how many of these histories does the broker break a promise? It prints a table, and each failure with its
seed, which repeats it: `python -m tests.sim.campaign --first SEED --seeds 1 --verbose`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.sim.plans import Plan
from tests.sim.planted import PLANTED
from tests.sim.world import HistoryError, World

SHOWN = (
    "messages sent",
    "receipts",
    "deliveries",
    "messages handed out",
    "messages read",
    "messages trimmed",
    "operator topic.update",
    "operator topic.delete",
    "operator subscription.seek",
    "operator subscription.update",
    "operator subscription.unblock",
)


@dataclass(slots=True)
class Outcome:
    """The outcome of one history."""

    seed: int
    events: int
    digest: str
    violations: list[str] = field(default_factory=list)
    text: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)


def live(seed: int, plant: str = "", plan: Plan | None = None) -> Outcome:
    """Run one history, perhaps with a bug planted in the broker, perhaps with a given plan."""
    with PLANTED[plant]() if plant else nullcontext():
        world = World(seed, plan)
        violations, text = [], ""
        try:
            world.run()
        except HistoryError as error:
            violations, text = error.violations, str(error)
        except Exception as error:  # noqa: BLE001 - a history that cannot go on is one that failed, whatever it was
            violations, text = (
                [f"{type(error).__name__}: {error}"],
                f"seed {seed}: {error!r}\n{world.trace.last(60)}",
            )
    counts = world.counts + world.oracle.counts
    return Outcome(seed, world.trace.events, world.trace.digest, violations, text, world.faults_done, counts)


def _live(asked: tuple[int, str]) -> Outcome:
    logging.disable(logging.CRITICAL)  # failures that are caused on purpose are counted in the table
    gc.disable()  # a world has many reference cycles: they are collected between histories, not during one
    outcome = live(*asked)
    if asked[0] % 8 == 0:
        gc.collect()
    return outcome


def campaign(seeds: range, plant: str = "", jobs: int = 1) -> Iterator[Outcome]:
    """Yield the outcome of each seed, in any order."""
    asked = [(seed, plant) for seed in seeds]
    if jobs == 1:
        yield from map(_live, asked)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_live, asked, chunksize=8)


def main() -> int:
    """Run a campaign and print its outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--plant", choices=sorted(PLANTED), default="", help="a bug to plant in the broker")
    parser.add_argument("--failures", type=int, default=5, help="how many failures are printed")
    parser.add_argument("--verbose", action="store_true", help="print the last events of each failure")
    asked = parser.parse_args()
    console = Console(stderr=True)
    seeds = range(asked.first, asked.first + asked.seeds)
    outcomes: list[Outcome] = []
    failed: list[Outcome] = []
    began = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("histories", total=len(seeds))
        for outcome in campaign(seeds, asked.plant, min(asked.jobs, len(seeds))):
            outcomes.append(outcome)
            if outcome.violations:
                failed.append(outcome)
                progress.update(task, description=f"histories, [red]{len(failed)} failed")
            progress.advance(task)
    seconds = time.perf_counter() - began
    report(outcomes, failed, seconds, asked.plant, Console())
    for outcome in sorted(failed, key=lambda each: each.seed)[: asked.failures]:
        lines = (
            outcome.text if asked.verbose else "\n  ".join([f"seed {outcome.seed}:", *outcome.violations[:3]])
        )
        print(lines)
    if asked.plant:
        return 0 if failed else 1
    return 1 if failed else 0


def report(
    outcomes: list[Outcome], failed: list[Outcome], seconds: float, plant: str, console: Console
) -> None:
    """Print the table."""
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        faults += outcome.faults
        counts += outcome.counts
    events = sum(outcome.events for outcome in outcomes)
    table = Table(title=f"with '{plant}' planted" if plant else None)
    table.add_column("what", min_width=24)
    table.add_column("how many", justify="right")
    for what, number in (
        ("histories", len(outcomes)),
        ("events", events),
        *((f"  {what}", counts[what]) for what in SHOWN),
        ("faults", faults.total()),
        *((f"  {kind}", number) for kind, number in sorted(faults.items())),
        ("found in histories" if plant else "failures", len(failed)),
        ("events a second", round(events / seconds)),
        ("histories a minute", round(60 * len(outcomes) / seconds)),
    ):
        table.add_row(what, f"{number:,}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
