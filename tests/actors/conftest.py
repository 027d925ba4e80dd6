"""What tests of the actors may use: a whole broker on a stage, made as a test wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stage import Stage


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Return what makes a broker in one thread: `make_stage(workers, section__setting=value)`."""
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
    """Return a broker of two workers with the settings it comes with."""
    return make_stage()
