"""Tests of `ister bench`: its own broker, its own client processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run a small benchmark and return its JSON."""
    command = [sys.executable, "-m", "ister", "bench", "--json", "--data", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("api", ["message", "batch"])
@pytest.mark.parametrize("strategy", ["reliable", "non-reliable"])
def test_every_road_is_measured_whole(tmp_path: Path, strategy: str, api: str) -> None:
    """Both strategies, both APIs: everything arrives, and every promised figure is there."""
    report = bench(tmp_path, "--strategy", strategy, "--api", api, "--messages", "5000", "--warm-up", "500")
    assert report["strategy"] == strategy
    assert report["durability"] == ("fsync" if strategy == "reliable" else "none")
    assert (report["message_bytes"], report["messages"], report["received"]) == (1024, 5000, [5000])
    assert report["messages_per_second"] > 0
    assert report["megabytes_per_second"] > 0
    assert 0 < report["latency_us"]["p50"] <= report["latency_us"]["p99"] <= report["latency_us"]["p999"]
    assert report["cpu_seconds"].keys() >= {"producer", "consumer-1", "broker", "worker-0", "tier"}
    assert list(tmp_path.iterdir()) == []


def test_a_rate_is_kept(tmp_path: Path) -> None:
    """Sending at a fixed rate measures latency without a queue: every message has a time stamp."""
    report = bench(tmp_path, "--rate", "500", "--messages", "500", "--warm-up", "0", "--message-bytes", "100")
    assert report["latency_us"]["samples"] == 500
    assert 400 < report["messages_per_second"] < 520


def test_a_file_of_results_has_every_round_and_can_be_compared_and_drawn(tmp_path: Path) -> None:
    """What a measurement writes is what compare and page read."""
    file, data = tmp_path / "a.json", tmp_path / "data"
    data.mkdir()
    command = [sys.executable, "-m", "ister", "bench"]
    size = ["--messages", "500", "--warm-up", "0", "--rounds", "2", "--rate", "2000", "--data", str(data)]
    subprocess.run([*command, *size, "--json", str(file)], check=True, capture_output=True, timeout=50)
    (measured,) = json.loads(file.read_text())["results"]
    assert len(measured["figures"]["delivered_p50_us"]["rounds"]) == 2
    assert measured["curves"].keys() == {"receipt", "delivered"}
    subprocess.run([*command, "compare", str(file), str(file)], check=True, capture_output=True, timeout=50)
    page = tmp_path / "page.html"
    subprocess.run(
        [*command, "page", str(file), "--out", str(page)], check=True, capture_output=True, timeout=50
    )
    assert page.read_text().count("<svg") == 2
