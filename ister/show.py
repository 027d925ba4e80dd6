"""How results are shown: tables and progress for people, JSON for scripts.

Invariants
- rich is imported only when a table or a progress bar is really drawn
- a progress bar is drawn on stderr, and only where that is a terminal
- what goes to a pipe is as wide as it needs to be, and holds no colour codes
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

_MOMENTS: Final = ("created_ms", "last_published_ms")  # fields that are times
PIPE_WIDTH: Final = 250  # columns of a table that no terminal limits


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print rows under their columns; numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for at, column in enumerate(columns):
        numbers = all(isinstance(row[at], int | float) or row[at] is None for row in listed)
        table.add_column(column, justify="right" if numbers and listed else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(shown(value)) for value in row))
    terminal = sys.stdout.isatty()
    drawn = io.StringIO()  # rich exits with 1 on a closed pipe
    console = Console(
        file=drawn, force_terminal=terminal, width=_columns() if terminal else PIPE_WIDTH, highlight=False
    )
    console.print(table)
    print("\n".join(line.rstrip() for line in drawn.getvalue().splitlines()).strip("\n"))


def _columns() -> int:
    return shutil.get_terminal_size().columns


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name:<{width}}  {moment(value) if name in _MOMENTS else shown(value)}")


def moment(unix_ms: int | None) -> str:
    """Return a time in unix milliseconds as text, `-` for None."""
    if unix_ms is None:
        return "-"
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def shown(value: Any) -> str:
    """Return a value as text: thousands separated, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "-"
    return str(value)


def size_in_words(size: float) -> str:
    """Return a number of bytes as text."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


@contextmanager
def progress(
    what: str, total: int | None, *, unit: str = "messages", wanted: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal; yields a function that takes how much is done."""
    if not wanted or not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, unit=unit)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def shares(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress of unknown total on a terminal; yields a function that takes (done, total)."""
    with progress(what, 100, unit="%") as show:
        yield lambda done, total: show(100 * done // total if total else 100)


@contextmanager
def stage() -> Iterator[Callable[[str], None]]:
    """Show the present step on a terminal; yields a function that takes its text."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(f"{text} ...")
