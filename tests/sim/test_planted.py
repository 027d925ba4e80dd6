"""The oracle finds what it is for: each planted bug, within a few histories."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.campaign import live
from tests.sim.planted import PLANTED

# From which seed on to look, so that it is found at once as long as plans are drawn as they are now.
FIRST = {
    "skipped-fsync": 12,
    "cursor-past-a-hole": 0,
    "forgotten-redelivery": 0,
    "key-too-early": 25,
    "fenced-writer-counted": 8,
    "dedup-forgotten": 18,
}
SEEDS = 150  # how far to look


@pytest.fixture(autouse=True)
def _what_fails_on_purpose_is_not_told() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(FIRST))
def test_a_planted_bug_is_found(name: str) -> None:
    """A broker broken on purpose breaks a promise, and the oracle says so."""
    assert any(live(seed, name).violations for seed in range(FIRST[name], FIRST[name] + SEEDS))


def test_every_planted_bug_is_looked_for() -> None:
    """No bug is planted that no test finds."""
    assert FIRST.keys() == PLANTED.keys()
