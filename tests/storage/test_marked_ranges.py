"""Tests of the set of offsets that is added to in many small pieces, against a Python set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ister.storage import marked_ranges as module
from ister.storage.cursor import Cursor
from ister.storage.marked_ranges import MarkedRanges
from ister.storage.ranges import RangeSet

TOP = 60
ranges = st.tuples(st.integers(0, TOP), st.integers(0, TOP))
sets = st.sets(st.integers(0, TOP), min_size=1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), ranges),
        st.tuples(st.just("pop"), st.integers(0, TOP)),
        st.tuples(st.just("all"), sets),
        st.tuples(st.just("all"), sets),
    ),
    max_size=30,
)


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    """Let a stretch be 8 offsets, so that all its ends are met."""
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "CHUNK", 8)
    patch.setattr(module, "DENSE", 2)
    patch.setattr(module, "_ONES", bytes([1]) * 8)
    yield
    patch.undo()


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    """Return numbers as ranges."""
    return list(RangeSet((number, number + 1) for number in sorted(numbers)))


@settings(max_examples=400)
@given(steps, ranges)
def test_it_is_a_set_of_numbers_however_it_is_kept(
    steps: list[tuple[str, tuple[int, int] | int | set[int]]], asked: tuple[int, int]
) -> None:
    """Whatever is added in whatever pieces, and removed from below, it answers like a Python set."""
    found, model = MarkedRanges(), set[int]()
    for _what, given_ in steps:
        if isinstance(given_, tuple):
            numbers = set(range(*given_))
            assert found.add(*given_) == len(numbers - model)
            model |= numbers
        elif isinstance(given_, set):
            assert found.add_all(runs(given_)) == len(given_ - model)
            model |= given_
        else:
            raised = found.pop_through(given_)
            model = {number for number in model if number >= given_}
            expected = given_
            while expected in model:
                model.remove(expected)
                expected += 1
            assert raised == expected
        assert list(found.view()) == runs(model)
        assert bool(found) == bool(model)
        assert found.end == (max(model) + 1 if model else None)
        assert found.ranges_at_most >= len(found.view())
    first, end = asked
    assert (first in found) == (first in model)
    assert found.gaps(first, end) == runs(set(range(first, end)) - model)
    assert found.end_of(first) == min(set(range(first, TOP + 2)) - model)
    twin = found.copy()
    assert list(twin.view()) == list(found.view())
    twin.add(TOP + 5, TOP + 6)
    assert list(found.view()) == runs(model)


@given(st.integers(0, 10), st.lists(sets, max_size=10))
def test_a_cursor_takes_many_ranges_as_it_takes_one(start: int, acknowledged: list[set[int]]) -> None:
    """Together or one by one, the same is new, and the cursor is the same."""
    together, one_by_one = Cursor(start), Cursor(start)
    for numbers in acknowledged:
        new = sum(one_by_one.acknowledge(first, end) for first, end in runs(numbers))
        assert together.acknowledge_all(runs(numbers)) == new
        assert together == one_by_one
        assert together.end == one_by_one.end
        assert together.copy() == together
        assert [together.end_of(offset) for offset in range(TOP)] == [
            one_by_one.end_of(offset) for offset in range(TOP)
        ]


def test_a_stretch_that_is_full_is_a_range_again() -> None:
    """Where all of it is acknowledged in the end, nothing is left of the bytes."""
    found = MarkedRanges()
    assert found.add_all([(number, number + 1) for number in range(8, 32, 2)]) == 12
    assert found.is_dense
    assert found.add_all([(number, number + 1) for number in range(9, 32, 2)]) == 12
    assert not found.is_dense
    assert (list(found.view()), found.holes) == ([(8, 32)], 1)
