"""The loader continues after it was killed: every line of its file is stored exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ister
from ister.ownbroker import OwnBroker

pytestmark = pytest.mark.process

LOADER = Path(__file__).parents[2] / "examples" / "loader.py"
ROWS = 200_000
KILLED_AT = 132_295


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[OwnBroker]:
    """Return a broker of one worker."""
    with OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=1) as broker:
        yield broker


def row(number: int) -> bytes:
    """Return a line of the file."""
    return b"row %d" % number


def test_a_loader_that_is_killed_and_run_again_loads_every_row_once(
    broker: OwnBroker, tmp_path: Path
) -> None:
    """200,000 rows, killed at 132,295, run again: 200,000 messages; and another run changes nothing."""
    command = [sys.executable, str(LOADER), broker.endpoint, "rows"]
    environment = os.environ | {"PYTHONPATH": str(LOADER.parents[1])}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([*command, str(pipe)], env=environment) as killed:
        with pipe.open("wb") as lines:
            for number in range(KILLED_AT):
                lines.write(row(number) + b"\n")
            lines.flush()
            killed.kill()
    path = tmp_path / "rows"
    path.write_bytes(b"".join(row(number) + b"\n" for number in range(ROWS)))
    with ister.connect(broker.endpoint) as client:
        before = client.topic("rows")["durable_end"]
        assert before <= KILLED_AT
        for _ in range(2):
            subprocess.run([*command, str(path)], env=environment, timeout=120, check=True)
            assert client.topic("rows")["durable_end"] == ROWS
        with client.reader("rows", start="earliest") as reader:
            found: list[bytes] = []
            while len(found) < ROWS:
                batch = reader.receive_batch(timeout=20)
                assert batch is not None
                found += batch.payloads
        assert found == [row(number) for number in range(ROWS)]


def test_without_its_arguments_it_says_how_it_is_used() -> None:
    """It is the first program that a reader copies; a traceback would say nothing of its arguments."""
    done = subprocess.run([sys.executable, LOADER], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr.split(" ")[0]) == (1, "usage:")
