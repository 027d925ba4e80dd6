"""One broker for all tests of client commands, and a way to run `ister`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ister.ownbroker import OwnBroker

Ister = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """A broker of two workers."""
    folder: Path = tmp_path_factory.mktemp("broker")
    with OwnBroker(f"{folder}/data", f"{folder}/log", workers=2) as broker:
        yield broker


@pytest.fixture
def ister(broker: OwnBroker, monkeypatch: pytest.MonkeyPatch) -> Ister:
    """Run `ister` with arguments (and `stdin` bytes) against the broker; the process is returned when it has ended."""
    monkeypatch.setenv("ISTER_ENDPOINT", broker.endpoint)

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "ister", *arguments], input=stdin, capture_output=True, timeout=30
        )

    return run
