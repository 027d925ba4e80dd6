"""Tests of the suite behind `make bench`, and of the scaling mode: what they run, and what they make of it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ister.bench.page import page
from ister.bench.results import document, parse
from ister.errors import IsterError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the scripts as Python finds them when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    """Return a script as a module."""
    return importlib.import_module(name)


def fake(case: Any) -> dict[str, Any]:
    """Return what a case would find, without running it."""
    found = {"messages": 1500, "messages_per_second": 1000, "cpu_us": {"worker": 2.0, "producer": 1.0}}
    if case.group == "latency":
        raw = {"receipt": list(range(1000, 9000)), "delivered": list(range(2000, 9000))}
        found = {"receipt_p50_us": 5.0, "delivered_p50_us": 6.0, "cpu_us": {"worker": 200.0}, "raw": raw}
        found["seconds"] = 3.0
    return found


def test_every_workload_has_a_name_of_its_own_and_a_plot() -> None:
    """Two workloads of one name could not be compared."""
    suite = script("suite")
    assert len({case.name for case in suite.CASES}) == len(suite.CASES)
    groups = {case.group for case in suite.CASES}
    assert groups == {"throughput", "latency", "topics", "consumers", "subscriptions", "backlog"}
    assert {case.group for case in suite.chosen(False, None)} == {"throughput", "latency"}
    assert {case.durability for case in suite.chosen(True, None)} == {"fsync", "os", "cloud", "none"}


def test_a_word_chooses_a_group_or_names_and_one_that_is_nowhere_is_an_error() -> None:
    """`--only` must not run everything, or nothing, by a misspelling."""
    suite = script("suite")
    assert {case.group for case in suite.chosen(False, "topics,backlog")} == {"topics", "backlog"}
    with pytest.raises(SystemExit, match="nothing"):
        suite.chosen(False, "nothing")


def test_results_of_the_suite_are_printed_and_drawn() -> None:
    """Each group of the full suite has its plot on the page, and its lines in the terminal."""
    suite = script("suite")
    entries = [suite.entry(case, [fake(case), fake(case)]) for case in suite.CASES]
    made = document({"machine": "m"}, entries)
    assert parse(json.dumps(made), "suite.json") == made
    assert {tuple(each["seconds"]) for each in entries} == {(1.5, 1.5), (3.0, 3.0)}
    text = page(made)
    for words in ("Throughput", "Latency", "Topics", "Consumers", "Subscriptions", "Backlog"):
        assert f"<h2>{words}" in text
    lines = "\n".join(suite.lines_of(entries))
    assert "messages a second" in lines
    assert "by percentile" in lines
    assert not re.search(r"\)(messages_per_second|worker_rss_mb)", lines)
    assert "(fsync)" in lines


def test_a_workload_that_fails_is_left_out_visibly_and_the_others_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One broken row does not take two minutes of results with it."""
    suite = script("suite")

    def broken(_scale: float, _data: str) -> dict[str, Any]:
        raise IsterError("no messages came")  # such as a broker that does not start

    def works(_scale: float, _data: str) -> dict[str, Any]:
        return {"messages_per_second": 1, "cpu_us": {}}

    cases = [
        suite.Case("bad", "bad", "throughput", "fsync", broken),
        suite.Case("good", "good", "throughput", "fsync", works),
    ]
    found = suite.measured(cases, 2, 1.0, ".", lambda: False, lambda _text: None)
    assert [case.name for case in found] == ["good"]
    assert "FAILED: bad: no messages came" in capsys.readouterr().err


def test_nothing_begins_after_the_time_is_over() -> None:
    """Two minutes are two minutes, also on a machine that is slow today."""
    suite = script("suite")
    ran: list[str] = []

    def run(_scale: float, _data: str) -> dict[str, Any]:
        ran.append("x")
        return {"messages_per_second": 1, "cpu_us": {}}

    cases = [suite.Case(str(number), "", "throughput", "fsync", run) for number in range(5)]
    found = suite.measured(cases, 3, 1.0, ".", lambda: len(ran) >= 7, lambda _text: None)
    assert len(ran) == 7
    assert sorted(len(rounds) for rounds in found.values()) == [1, 1, 1, 2, 2]
    assert suite.left_out(cases, found, 2) == [
        "fewer than 2 rounds, for want of time (--minutes) or by a failure: 0, 1, 2"
    ]
    assert suite.left_out(cases, {cases[1]: [1]}, 1) == [
        "not measured, for want of time (--minutes) or by a failure: 0, 2, 3, 4"
    ]
    assert suite.left_out(cases, found, 1) == []


def test_scaling_goes_on_after_a_failure_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One broker that does not start leaves the results of the others."""
    scaling = script("scaling")
    figures = {"messages_per_second": 1000, "cpu_seconds_per_million": 5.0}
    figures |= {f"cpu_{role}_us": 1.0 for role in ("worker", "producer", "consumer")}

    def run(mode: str, workers: int, *_more: Any) -> dict[str, float]:
        if (mode, workers) == ("hot", 1):
            raise IsterError("the broker did not come up")
        return figures

    file = tmp_path / "a.json"
    monkeypatch.setattr(scaling, "run", run)
    monkeypatch.setattr(
        sys, "argv", ["scaling.py", "--no-warm-memory", "--workers", "1,2", "--json", str(file)]
    )
    assert scaling.main() == 1
    assert [each["name"] for each in parse(file.read_text(), "a.json")["results"]] == [
        "scaling topics 1",
        "scaling topics 2",
        "scaling hot 2",
    ]
    assert "FAILED: hot, 1 workers: the broker did not come up" in capsys.readouterr().err


def test_ratios_go_on_after_a_failure_and_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A case that fails is named, and the table has the others."""
    ratio = script("ratio")

    def compare(case: Any, _rounds: int, _data: str, *, progress: bool) -> dict[str, Any]:
        if case.api == "batch":
            raise subprocess.CalledProcessError(1, ["road.py", str(progress)])
        numbers = {"road": 2, "ister": 1, "ratio": 0.9, "low": 0.9, "high": 0.9, "goal": 0.7}
        return {"case": case.name, **numbers, "reached": True, "dropped": 0}

    monkeypatch.setattr(ratio, "compare", compare)
    cases = [word for api in ("batch", "message") for word in ("--case", f"reliable 1024 {api}")]
    monkeypatch.setattr(sys, "argv", ["ratio.py", *cases])
    assert ratio.main() == 1
    said = capsys.readouterr()
    assert "FAILED: reliable 1024 batch: exit code 1 of road.py" in said.err
    assert "reliable 1024 message" in said.out


def test_scaling_measures_what_the_cores_can_show() -> None:
    """Eight workers on two cores would measure the scheduler; one and two are always measured."""
    scaling = script("scaling")
    assert scaling.sensible(1) == [1, 2]
    assert scaling.sensible(4) == [1, 2]
    assert scaling.sensible(16) == [1, 2, 4, 8]
    assert scaling.sensible(64) == [1, 2, 4, 8, 16]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_scaling_mode_delivers_everything_and_writes_results(tmp_path: Path) -> None:
    """Both modes run at one and two workers, and their CPU seconds are of all processes."""
    file = tmp_path / "a.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "scaling.py"),
        "--rounds",
        "1",
        "--messages",
        "500",
        "--no-warm-memory",
    ]
    command += ["--workers", "1,2", "--data", str(tmp_path), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr
    results = parse(file.read_text(), "a.json")["results"]
    assert [(each["series"], each["x"]) for each in results] == [
        (words, x) for words in script("scaling").MODES.values() for x in (1, 2)
    ]
    for each in results:
        figures = {name: figure["rounds"][0] for name, figure in each["figures"].items()}
        parts = sum(value for name, value in figures.items() if name.endswith("_us"))
        assert figures["cpu_seconds_per_million"] == pytest.approx(parts, rel=0.01)
