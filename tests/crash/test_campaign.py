"""The crash campaign itself: a few rounds of it in every run of the tests, many on demand (`make crash ROUNDS=...`)."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.conformance_clients.drivers import Kind, find
from tests.crash.campaign import run_campaign
from tests.crash.report import describe

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the broker's processes in /proc"),
]


def run(seed: int, rounds: int, client: Kind | None = None) -> None:
    """Run a campaign, and fail with its report."""
    result = run_campaign(seed, rounds, client=client)
    told = describe(result)
    assert not result.failed, json.dumps({**told, "history": told["history"][-10:]}, indent=1)
    assert told["rounds"] == rounds
    assert told["messages_with_receipt"] > 100 * rounds
    assert told["acknowledged_confirmed"] > 100 * rounds


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_few_kills_lose_nothing() -> None:
    """After three kills everything with a receipt is there, once and in order, and cursors neither skip nor forget."""
    run(seed=4, rounds=3)


@pytest.mark.slow
@pytest.mark.skipif(
    "CRASH_LONG" not in os.environ, reason="takes minutes: set CRASH_LONG=1, or make crash ROUNDS=40"
)
@pytest.mark.timeout(900)
def test_forty_kills_lose_nothing() -> None:
    """The same, long enough that every kind of kill occurs."""
    run(seed=40, rounds=40)


@pytest.mark.slow
@pytest.mark.skipif(
    "CRASH_LONG" not in os.environ, reason="takes minutes: set CRASH_LONG=1, or make crash CLIENT=python"
)
@pytest.mark.parametrize(
    "kind", [kind for kind in find() if not kind.name.endswith("-minimal")], ids=lambda kind: kind.name
)
@pytest.mark.timeout(900)
def test_clients_of_other_languages_lose_nothing(kind: Kind) -> None:
    """They run beside the Python client, through their drivers; the smallest ones do not survive a kill."""
    if (why := kind.why_not()) is not None:
        pytest.skip(why)
    run(seed=20, rounds=20, client=kind)
