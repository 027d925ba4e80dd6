"""Every implementation of the object store, empty for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ister.storage.folderstore import FolderStore
from ister.storage.gcs import GcsStore
from ister.storage.objectstore import ObjectStore
from tests.gcs.emulator import Emulator, find_program, running

BUCKET = "conformance"


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """Return a running fake-gcs-server; skips if there is none."""
    if find_program() is None:
        pytest.skip("there is no fake-gcs-server for this machine")
    with running() as emulator:
        yield emulator


@pytest.fixture(params=["folder", pytest.param("gcs", marks=pytest.mark.gcs)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """Return an empty store of each kind."""
    found: ObjectStore
    if request.param == "folder":
        found = FolderStore(str(tmp_path / "store"))
    else:
        emulator: Emulator = request.getfixturevalue("emulator")
        emulator.reset()
        emulator.make_bucket(BUCKET)
        found = GcsStore(BUCKET, "some/prefix", endpoint=emulator.url, deadline_s=10.0)
    yield found
    found.close()
