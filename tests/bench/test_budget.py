"""Tests of how rows share the minutes of a run, under a clock of their own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the scripts import it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("budget")


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def rounds_of(made: Any, clock: Clock, length: float, wanted: int) -> int:
    """Run rounds of a row until there is no time for another; return how many there were."""
    made.begin_row()
    for number in range(wanted):
        if number and made.enough(length):
            return number
        clock.at += length
    return wanted


def test_rows_share_the_time_and_none_gets_less_than_a_round(budget: Any) -> None:
    """A slow row takes its own share, not that of the rows behind it."""
    clock = Clock()
    made = budget.Budget(5, 3, clock)  # 100 s a row
    assert [rounds_of(made, clock, length, 5) for length in (30.0, 500.0, 1.0)] == [3, 1, 1]


def test_what_a_short_row_leaves_later_rows_have(budget: Any) -> None:
    """The time is used, and the end is kept."""
    clock = Clock()
    made = budget.Budget(5, 2, clock)  # 150 s a row
    assert rounds_of(made, clock, 2.0, 5) == 5
    assert rounds_of(made, clock, 58.0, 5) == 5
    assert clock.at == 400.0


def test_without_minutes_every_round_is_run(budget: Any) -> None:
    """As long as it takes."""
    clock = Clock()
    made = budget.Budget(None, 1, clock)
    assert rounds_of(made, clock, 1e6, 5) == 5
