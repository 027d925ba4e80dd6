"""`ister demo`: see a broker lose a worker and no message; the work is in `ister/demo`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ister.cli.command import Command
from ister.cli.options import json_option
from ister.cli.outcome import FAILED
from ister.extras import need
from ister.show import print_json

_HELP_END = """\b
Examples:
  ister demo
  ister demo --lines-max 50000 --json | jq .ok

Exit codes: 0 every acknowledged message arrived; 1 something is missing or broken; 2 wrong usage; 130 Ctrl-C."""


@click.command(cls=Command, epilog=_HELP_END)
@click.option("--lines-max", type=click.IntRange(min=1), metavar="N", help="Send at most this many lines.")
@click.option("--workers", type=click.IntRange(min=2, max=64), default=2, show_default=True)
@json_option
@click.pass_context
def demo(ctx: click.Context, lines_max: int | None, workers: int, as_json: bool) -> None:
    """Stream Python's standard library through a broker, break things half way, and verify every byte.

    Starts a broker of its own in a temporary folder. Every line of every source file goes into a reliable topic with an
    Exclusive, a Shared and a Failover subscription, and into a non-reliable topic. Half way the active consumer of the
    Failover subscription is stopped, and the worker process that has the reliable topic is killed with SIGKILL.
    """
    need("broker", "`ister demo`")
    from ister.demo.report import describe, print_outcome
    from ister.demo.run import Watcher, play

    with _watching(quiet=as_json) as (say, show):
        outcome = play(lines_max=lines_max, workers=workers, watcher=Watcher(say, show))
    if as_json:
        print_json(describe(outcome))
    else:
        print_outcome(outcome)
    for problem in outcome.problems:
        print(f"ister: {problem} (demo-failed)", file=sys.stderr)
    if outcome.problems:
        ctx.exit(FAILED)


@contextmanager
def _watching(*, quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Tell on stderr what is going on: bars on a terminal, a line a scene elsewhere, nothing with --json."""
    if not sys.stderr.isatty():
        yield (lambda text: None if quiet else print(text, file=sys.stderr, flush=True)), lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(row: str, done: int, total: int) -> None:
            if row not in tasks:
                tasks[row] = bars.add_task(row, total=total)
            bars.update(tasks[row], completed=min(done, total))

        yield (lambda text: bars.console.print(text, highlight=False)), show
