"""Tests of the tables that documents take from files of results."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ister.bench.results import document, result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, imported as Python finds it when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def entry(system: str, name: str, durability: str, **figures: float) -> dict[str, Any]:
    """Return a result with one round of some figures."""
    return result(
        name, "", [figures], group="throughput", durability=durability, system=system, series="many", x=2
    )


def test_a_line_of_a_system_has_all_its_rows_and_what_an_answer_promises(tables: Any) -> None:
    """Columns that nothing was measured for, and lines of systems that did not run, are left out."""
    found = document(
        {},
        [
            entry("Ister", "1k fsync message", "fsync before each answer", messages_per_second=241_234),
            entry("Ister", "1k fsync batch", "fsync before each answer", messages_per_second=283_000),
            entry("Ister", "lone fsync", "fsync before each answer", messages_per_second=1490),
            entry("Redis always", "1k", "fsync, always", messages_per_second=45_000),
            entry("Redis always", "latency", "fsync, always", receipt_p50_us=254.2, receipt_p99_us=547.0),
        ],
    )
    assert tables.peers(found) == [
        "| system | an answer promises | 1 KiB | one at a time | receipt p50 / p99, us |",
        "|---|---|---:|---:|---:|",
        "| **Ister**, message calls | fsync before each answer | 241,000 | 1,490 |  |",
        "| **Ister**, batch calls | fsync before each answer | 283,000 |  |  |",
        "| Redis always | fsync, always | 45,000 |  | 254 / 547 |",
    ]
    assert tables.goals(found)[2].startswith("| one at a time, fsync | Redis always | not measured |")


def test_workers_stand_with_their_cpu_time_by_process(tables: Any) -> None:
    """What a million messages cost in all, and where."""
    cpu = {"cpu_worker_us": 3.0, "cpu_producer_us": 1.0, "cpu_consumer_us": 1.5, "cpu_broker_us": 0.0}
    figures = {"messages_per_second": 250_000, "cpu_seconds_per_million": 5.5, **cpu}
    found = document({}, [entry("Ister", "scaling topics 2", "fsync", **figures) | {"group": "scaling"}])
    assert tables.table_of(found)[2:] == ["| many | 2 | 250,000 | 5.50 | 3.00 / 1.00 / 1.50 |"]


def test_two_builds_stand_with_ratio_spread_and_cpu(tables: Any) -> None:
    """The CPU of a row stands once, beside its first figure."""
    each = {"base": 100.0, "new": 150.0, "ratio": 1.5, "low": 1.4, "high": 1.6, "better": "higher"}
    row = {"row": "lone-none", "figures": {"messages_per_second": each, "worker_us": each}}
    found = {"about": {}, "rows": [row | {"cpu_us": {"worker": each, "tier": each}}]}
    assert tables.table_of(found)[2:] == [
        "| `lone-none`, messages_per_second | 100 | 150 | 1.50 (1.40 to 1.60) | worker 1.50 |",
        "| `lone-none`, worker_us | 100 | 150 | 1.50 (1.40 to 1.60) |  |",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (1_267_308, "1,270,000"), (15_796, "15,800"), (99.95, "100"), (4.0, "4"), (0.0312, "0.0312")],
)
def test_three_digits_count(tables: Any, value: float, words: str) -> None:
    """More would pretend to an exactness that no round has."""
    assert tables.rounded(value) == words


@pytest.mark.process
def test_a_file_of_ratios_is_printed_as_a_table(tmp_path: Path) -> None:
    """Every script that measures for a document writes a file that this one reads."""
    case = {
        "case": "reliable 1024 message",
        "ister": 241_000,
        "road": 494_000,
        "ratio": 0.488,
        "low": 0.47,
        "high": 0.5,
    }
    file = tmp_path / "ratio.json"
    file.write_text(json.dumps([case]), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "tables.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert "| reliable, 1 KiB, one call a message | 241,000 | 494,000 | 49% | 47% to 50% |" in done.stdout


@pytest.mark.process
@pytest.mark.parametrize("script", ["tables", "goals"])
def test_a_file_that_has_no_results_is_an_error_in_one_line(script: str, tmp_path: Path) -> None:
    """A name that is not there, and a file of something else."""
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")
    for file in (tmp_path / "nowhere.json", other):
        command = [sys.executable, str(BENCHMARKS / f"{script}.py"), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 1
        assert file.name in done.stderr
        assert "Traceback" not in done.stderr
