"""Fixtures for the tests of the actors: a whole broker on a stage, with the settings a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stage import Stage


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Return a function that makes a broker in one thread: `make_stage(workers, section__setting=value)`."""
    made: list[Stage] = []

    def make(workers: int = 2, **flags: Any) -> Stage:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Stage(folder, workers, **flags))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker of two workers with the default settings."""
    return make_stage()
