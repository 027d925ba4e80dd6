"""Tests of back-off: longer waits after each failure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ister.backoff import BackOff, doubled, jittered


def test_a_wait_doubles_up_to_its_bound_and_begins_anew() -> None:
    """Each failure doubles it; a success resets it."""
    back_off = BackOff(0.5, 3)
    assert [back_off.failed() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    assert back_off.next == 3
    back_off.succeeded()
    assert (back_off.failed(), back_off.failed()) == (0.5, 1)


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6))
def test_a_wait_never_goes_beyond_its_bound_nor_back(first: int, more: int, times: int) -> None:
    """However often something failed; whole milliseconds stay whole."""
    last = first + more
    wait = doubled(first, last, times)
    assert isinstance(wait, int)
    assert first <= wait <= last
    assert wait <= doubled(first, last, times + 1)


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_chance_shortens_a_wait_to_half_at_most(wait: float, chance: float) -> None:
    """So that many clients that failed together do not return at the same moment."""
    assert wait / 2 <= jittered(wait, chance) <= wait
