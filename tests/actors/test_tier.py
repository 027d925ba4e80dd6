"""Tests of how the tier process is composed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from ister.actors.threads import Purpose
from ister.actors.tier import TierProcessSettings, run_tier
from ister.settings import Settings, TierSettings


def test_one_topic_does_not_take_all_threads_for_uploads(tmp_path: Path) -> None:
    """A topic whose uploads all hang leaves as many threads to the others."""
    data, sizes = tmp_path / "data", dict[Purpose, int]()
    data.mkdir()
    settings = Settings(tier=TierSettings(upload_parallel=3))
    context: Any = SimpleNamespace(
        settings=TierProcessSettings(settings, str(data), f"file://{tmp_path}/store"),
        loop=SimpleNamespace(
            threads=SimpleNamespace(resize=lambda purpose, size: sizes.update({purpose: size}))
        ),
        system=MagicMock(random=Random(1)),
        ready=MagicMock(),
    )
    run_tier(context)
    assert sizes == {Purpose.UPLOADS: 6, Purpose.FETCHES: 3}
