"""Tests of the set of offsets, against a Python set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ister.storage.ranges import RangeSet

TOP = 40
ranges = st.tuples(st.integers(0, TOP), st.integers(0, TOP))
steps = st.lists(st.tuples(st.sampled_from(["add", "subtract", "pop"]), ranges), max_size=30)


def plain(found: RangeSet) -> set[int]:
    """Return the offsets, and check that the ranges are disjoint, ascending and never touch."""
    numbers: set[int] = set()
    before = -1
    for first, end in found:
        assert before < first < end
        before = end
        numbers.update(range(first, end))
    assert found.total == len(numbers)
    return numbers


@settings(max_examples=400)
@given(steps, ranges)
def test_it_is_a_set_of_numbers(steps: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]) -> None:
    """Whatever is added and removed, it answers like a Python set."""
    found, model = RangeSet(), set[int]()
    for what, (first, end) in steps:
        numbers = set(range(first, end))
        if what == "add":
            assert found.add(first, end) == len(numbers - model)
            model |= numbers
        elif what == "subtract":
            assert found.subtract(first, end) == len(numbers & model)
            model -= numbers
        else:
            raised = found.pop_through(first)
            model = {number for number in model if number >= first}
            expected = first
            while expected in model:
                model.remove(expected)
                expected += 1
            assert raised == expected
        assert plain(found) == model
    first, end = asked
    inside = set(range(first, end)) & model
    assert (first in found) == found.contains(first) == (first in model)
    assert found.overlap(first, end) == len(inside)
    assert found.covers(first, end) == (len(inside) == max(0, end - first))
    assert plain(RangeSet(found.within(first, end))) == inside
    assert plain(RangeSet(found.gaps(first, end))) == set(range(first, end)) - model
    assert (found.first, found.end) == ((min(model), max(model) + 1) if model else (None, None))
    assert RangeSet.decode(found.encode()) == found
    twin = found.copy()
    assert twin == found
    twin.add(TOP + 5, TOP + 6)
    assert twin != found
    assert plain(found) == model


def test_every_second_of_a_million_costs_megabytes() -> None:
    """Half a million ranges take 16 bytes each, and filling the holes leaves one range."""
    found = RangeSet()
    for offset in range(0, 200_000, 2):
        found.add(offset, offset + 1)
    assert len(found) == 100_000
    assert len(found.encode()) == 1_600_000
    assert found.add(0, 200_000) == 100_000
    assert list(found) == [(0, 200_000)]


def test_encoded_ranges_out_of_order_are_refused() -> None:
    """Bytes that are not ascending ranges are an error."""
    with pytest.raises(ValueError, match="ascending"):
        RangeSet.decode(RangeSet([(5, 6)]).encode() + RangeSet([(1, 2)]).encode())
    with pytest.raises(ValueError, match="bytes"):
        RangeSet.decode(b"123")
