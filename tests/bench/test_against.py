"""Tests of the comparison of two builds: what its rounds add up to. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def against(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, imported as Python finds it when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("against")


def test_a_comparison_has_medians_their_ratio_and_the_spread_of_the_rounds(against: Any) -> None:
    """One slow round moves the spread, not the ratio."""
    found = against.compared([100.0, 100.0, 50.0], [200.0, 210.0, 150.0])
    assert found == {"base": 100.0, "new": 200.0, "ratio": 2.0, "low": 2.0, "high": 3.0}


def test_what_costs_nothing_has_no_ratio(against: Any) -> None:
    """A process that used no CPU time in the base is shown, not divided by."""
    assert against.compared([0.0], [1.0])["ratio"] is None


def test_every_figure_of_a_row_and_every_process_is_summarised(against: Any) -> None:
    """A row's summary says which direction is better, and what each process paid."""
    row = against.ROWS["frame-none"]
    rounds = [
        (
            {"messages_per_second": 100, "worker_us": 10.0, "cpu_us": {"worker": 10.0, "producer": 5.0}},
            {"messages_per_second": 150, "worker_us": 5.0, "cpu_us": {"worker": 5.0, "producer": 5.0}},
        )
    ]
    found = against.summary(row, rounds)
    assert found["figures"]["messages_per_second"]["ratio"] == 1.5
    assert found["figures"]["messages_per_second"]["better"] == "higher"
    assert found["figures"]["worker_us"]["better"] == "lower"
    assert found["cpu_us"]["producer"]["ratio"] == 1.0
    assert any("1.50" in line for line in against.lines_of(found))


@pytest.mark.process
def test_the_broker_of_a_row_is_that_of_its_build(against: Any, tmp_path: Path) -> None:
    """A broker imports what lies in the current directory first; then a base would be measured with the new broker."""
    build = tmp_path / "build"
    for part in ("ister", "actors", "storage", "transport"):
        shutil.copytree(BENCHMARKS.parent / part, build / part, symlinks=True)
    main, began = build / "ister/__main__.py", tmp_path / "began"
    text = main.read_text(encoding="utf-8")
    mark = f"open({str(began)!r}, 'a').close()\n"
    main.write_text(text.replace("if __name__", mark + "if __name__"), encoding="utf-8")
    found = against.run(build.resolve(), "lone-none", 0.01, str(tmp_path))
    assert found["messages_per_second"] > 0
    assert began.exists()


def test_what_is_worse_than_the_floor_is_named_whichever_way_is_better(against: Any) -> None:
    """A table of thirty rows hides the one that got slower."""

    def row(name: str, figure: str, ratio: float | None, better: str, rounds: int = 2) -> dict[str, Any]:
        each = {"ratio": ratio, "low": ratio, "high": ratio, "better": better}
        return {"row": name, "figures": {figure: each}, "rounds": [None] * rounds}

    fine = [row("a", "messages_per_second", 0.98, "higher"), row("b", "worker_us", 0.5, "lower")]
    assert against.worse([*fine, row("c", "disk_mb", None, "lower")], 2) == [
        "nothing is worse than 0.97 of the base"
    ]
    found = against.worse(
        [*fine, row("c", "messages_per_second", 0.9, "higher"), row("d", "p50", 1.1, "lower", 1)], 2
    )
    assert found == [
        "worse than 0.97 of the base: c, messages_per_second: 0.90 (0.90 to 0.90)",
        "worse than 0.97 of the base: d, p50: 1.10 (1.10 to 1.10)",
        "fewer than 2 rounds, for want of time or by a failure: d 1",
    ]


@pytest.mark.process
def test_a_row_that_does_not_exist_is_an_error_that_names_it() -> None:
    """A misspelt row must not measure all of them."""
    command = [sys.executable, str(BENCHMARKS / "against.py"), "--base", ".", "--rows", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "'nothing'" in done.stderr


@pytest.mark.process
@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", ["message-100", "latency-none", "lone-none", "frame-fsync", "keys-8"])
def test_a_workload_runs_and_prints_what_its_row_promises(tmp_path: Path, row: str, against: Any) -> None:
    """Each figure that is compared is in the object that the workload prints."""
    command = [
        sys.executable,
        str(BENCHMARKS / "workloads.py"),
        row,
        "--scale",
        "0.01",
        "--data",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert against.ROWS[row].figures.keys() <= found.keys()
    assert found["cpu_us"]["worker"] > 0
    assert list(tmp_path.iterdir()) == []
