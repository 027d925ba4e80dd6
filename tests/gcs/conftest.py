"""One emulator for all tests of the Google store, emptied for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from ister.storage.gcs import GcsStore
from tests.faultproxy import FaultProxy
from tests.gcs.emulator import Emulator, find_program, running

BUCKET = "ister-test"


@pytest.fixture(scope="session")
def program() -> Iterator[Emulator]:
    """Return a running fake-gcs-server; skips if there is none."""
    if find_program() is None:
        pytest.skip("there is no fake-gcs-server for this machine")
    with running() as emulator:
        yield emulator


@pytest.fixture
def emulator(program: Emulator) -> Emulator:
    """Return the emulator with one empty bucket."""
    program.reset()
    program.make_bucket(BUCKET)
    return program


@pytest.fixture
def proxy(emulator: Emulator) -> Iterator[FaultProxy]:
    """Return a proxy before the emulator that does nothing until told to."""
    with FaultProxy(emulator.url) as proxy:
        yield proxy


MakeStore = Callable[..., GcsStore]


@pytest.fixture
def make_store() -> Iterator[MakeStore]:
    """Return a function that makes stores with retries after milliseconds; they are closed at the end."""
    made: list[GcsStore] = []

    def make(endpoint: str, **given: Any) -> GcsStore:
        settings: dict[str, Any] = {
            "deadline_s": 10.0,
            "timeout_s": (2.0, 2.0),
            "retry_s": (0.01, 0.1),
            "random": Random(1),
            **given,
        }
        store = GcsStore(
            settings.pop("bucket", BUCKET), settings.pop("prefix", "p"), endpoint=endpoint, **settings
        )
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
