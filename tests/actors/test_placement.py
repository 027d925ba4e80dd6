"""Tests of placement: every process computes the same one, and few names move when the number of workers changes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.actors.placement import subscription_key, topic_key, worker_of

KEYS = [topic_key(f"topic-{number}") for number in range(3000)]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_only_what_the_new_worker_takes_moves(workers: int) -> None:
    """With one more worker a name stays or moves to the new one: none moves between the old ones."""
    moved = 0
    for key in KEYS:
        before, after = worker_of(key, workers), worker_of(key, workers + 1)
        assert after in (before, workers)
        moved += after != before
    assert abs(moved / len(KEYS) - 1 / (workers + 1)) < 0.05


@pytest.mark.parametrize("workers", [2, 5, 16])
def test_names_spread_evenly(workers: int) -> None:
    """No worker has more than 125 % of the average."""
    counts = Counter(worker_of(key, workers) for key in KEYS)
    assert set(counts) == set(range(workers))
    assert max(counts.values()) < 1.25 * len(KEYS) / workers + 20


def test_the_subscriptions_of_one_topic_spread_too() -> None:
    """The subscriptions of a hot topic are spread over several workers."""
    assert {worker_of(subscription_key("hot", f"s{number}"), 4) for number in range(40)} == {0, 1, 2, 3}


def test_places_are_for_ever() -> None:
    """Clients and data folders rely on these placements: another hash would move every name."""
    assert [worker_of(topic_key("orders"), workers) for workers in range(1, 8)] == [0, 0, 0, 0, 0, 0, 0]
    assert [worker_of(subscription_key("orders", "billing"), workers) for workers in range(1, 8)] == [
        0,
        0,
        0,
        3,
        3,
        5,
        5,
    ]


_NAME = st.text("ab/-", min_size=1, max_size=4)


@given(st.tuples(_NAME, _NAME), st.tuples(_NAME, _NAME))
def test_two_names_are_two_keys(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Whatever topic and subscription are called, no two subscriptions share a placement key."""
    assert (subscription_key(*one) == subscription_key(*other)) == (one == other)
    assert subscription_key(*one) != topic_key(other[0])
