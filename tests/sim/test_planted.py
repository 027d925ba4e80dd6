"""The oracle finds what it is for: each planted bug, within a few histories."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.campaign import live
from tests.sim.planted import PLANTED

# Where each is found quickly; how often over many seeds: `python -m tests.sim.campaign --plant NAME --seeds 1000`.
KNOWN = {
    "skipped-fsync": range(2, 17),
    "cursor-past-a-hole": range(4),
    "forgotten-redelivery": range(2),
    "dedup-forgotten": range(9, 10),
}


@pytest.fixture(autouse=True)
def _what_fails_on_purpose_is_not_told() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_planted_bug_is_found(name: str) -> None:
    """A broker broken on purpose breaks a promise, and the oracle says so."""
    assert any(live(seed, name).violations for seed in KNOWN[name])


def test_every_planted_bug_is_looked_for() -> None:
    """No bug is planted that no test finds."""
    assert KNOWN.keys() == PLANTED.keys()
