"""Tests of how often a cursor is written to an object store, where each call costs money."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ister.actors.cadence import Cadence


def writes(changes: list[float], first_s: float, bound_s: float) -> list[float]:
    """Return the times at which changes made at these times are written."""
    cadence = Cadence(first_s, bound_s)
    found: list[float] = []
    for at in changes:
        if not found or at >= found[-1]:  # else it is written with one before
            found.append(at + cadence.wait_s(at))
            cadence.written(found[-1])
    return found


def test_what_moves_after_a_rest_is_written_soon() -> None:
    """Each time, a change after a quiet period waits only for the first interval."""
    assert writes([0, 100, 200, 500], 10, 60) == [10, 110, 210, 510]


def test_what_moves_all_the_time_is_written_ever_less_often() -> None:
    """The time between writes doubles until it reaches the limit."""
    found = writes([float(at) for at in range(600)], 10, 60)
    between = [round(b - a) for a, b in pairwise(found)]
    assert between[:4] == [10, 20, 40, 60]
    assert set(between[3:]) == {60}


def test_a_bound_below_the_first_interval_is_the_interval() -> None:
    """With a limit of 200 ms, the cursor in the store is never more than 200 ms behind."""
    assert writes([0, 0.3, 0.6], 10, 0.2) == [0.2, 0.5, 0.8]


@given(st.lists(st.floats(0.0, 100.0), max_size=200), st.floats(0.1, 20.0), st.floats(0.1, 100.0))
def test_a_change_is_written_within_the_bound(gaps: list[float], first_s: float, bound_s: float) -> None:
    """No change waits longer than the limit, and no two writes come within the first interval."""
    at, changes = 0.0, []
    for gap in gaps:
        at += gap
        changes.append(at)
    found = writes(changes, first_s, bound_s)
    for change in changes:
        assert any(change <= when <= change + bound_s + 1e-6 for when in found)
    for before, after in pairwise(found):
        assert after - before >= min(first_s, bound_s) - 1e-6
