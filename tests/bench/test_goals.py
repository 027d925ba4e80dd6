"""Tests of the table of goals: which way a ratio points, and what is said of what was not measured."""

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
def goals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, imported as Python finds it when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("goals")


def entry(system: str, name: str, **figures: tuple[float, ...]) -> dict[str, Any]:
    """Return a result with the rounds of its figures."""
    rounds = [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]
    return result(name, "", rounds, group="latency", durability="fsync", system=system)


def row(goals: Any, what: str, results: list[dict[str, Any]]) -> list[str]:
    """Return the cells of the first goal of that name."""
    goal = next(each for each in goals.GOALS if each.what == what)
    return goals.cells(goal, goals.by_name(results))  # type: ignore[no-any-return]


def test_rounds_that_do_not_agree_are_said_not_to(goals: Any) -> None:
    """A median on one side of the goal says little where a round lies on the other."""
    results = [
        entry("Ister", "lone fsync", messages_per_second=(100.0, 200.0, 300.0)),
        entry("Redis always", "lone", messages_per_second=(200.0, 200.0, 200.0)),
    ]
    assert row(goals, "one at a time, fsync", results)[-1] == "reached, but not in every round"


def test_a_latency_is_held_against_the_better_of_the_peers(goals: Any) -> None:
    """Ahead of the slower one only is not ahead."""
    results = [
        entry("Ister", "latency fsync", receipt_p50_us=(300.0, 310.0, 320.0)),
        entry("JetStream fsync", "latency", receipt_p50_us=(900.0, 910.0, 920.0)),
        entry("Redis always", "latency", receipt_p50_us=(155.0, 155.0, 320.0)),
    ]
    assert row(goals, "receipt latency p50, fsync", results)[1:] == [
        "Redis always", "310", "155", "2.00", "1.00 to 2.00", "<= 1", "<= 0.8", "missed, but not in every round",
    ]  # fmt: skip


def test_a_rate_reaches_a_goal_by_being_higher(goals: Any) -> None:
    """At least for rates, at most for latencies; the aim is told apart from the goal."""
    for rate, word in ((80.0, "missed"), (100.0, "reached"), (130.0, "reached, also the aim")):
        results = [
            entry("Ister", "lone fsync", messages_per_second=(rate,)),
            entry("Redis always", "lone", messages_per_second=(100.0,)),
        ]
        assert row(goals, "one at a time, fsync", results)[-1] == word


def test_what_was_not_measured_is_said_not_to_be(goals: Any) -> None:
    """A peer that is missing may be the better one: nothing is reached without it."""
    assert row(goals, "one at a time, fsync", [])[2] == "not measured"
    results = [
        entry("Ister", "latency fsync", receipt_p50_us=(300.0,)),
        entry("Redis always", "latency", receipt_p50_us=(900.0,)),
    ]
    assert row(goals, "receipt latency p50, fsync", results)[-1] == "without JetStream fsync"


def test_goals_of_rows_that_did_not_run_are_counted_not_listed(goals: Any) -> None:
    """One row is measured without a page of lines that say nothing."""
    lines = goals.lines_of([entry("Ister", "lone fsync", messages_per_second=(100.0,))])
    assert (
        len(lines) == 3
    )  # a head, the goal beside Redis, the rest; nothing beside a bare exchange that did not run
    assert "not measured" in lines[1]
    assert lines[-1] == "  not measured: 10 goals of rows that did not run"


def test_every_goal_names_systems_and_figures_that_are_measured(goals: Any) -> None:
    """A renamed peer or row must not leave its goal unmeasured for ever."""
    servers, systems = (importlib.import_module(name) for name in ("peer_servers", "peer_systems"))
    peers = {each.name for each in servers.PEERS} | {systems.Bare(level).name for level in ("fsync", "none")}
    for goal in goals.GOALS:
        name, _, _ = goal.ours.partition(" ")
        assert goal.row == name
        kinds = systems.ROWS[name]
        assert goal.figure in kinds.figures
        assert {*goal.theirs} <= peers
        assert goal.ours in {
            " ".join(filter(None, (name, one.level, one.api))) for one in systems.ours_of(kinds)
        }


@pytest.mark.process
def test_the_table_can_be_made_again_from_a_file_of_results(tmp_path: Path) -> None:
    """What was measured last month is held against today's goals."""
    file = tmp_path / "peers.json"
    results = [
        entry("Ister", "lone fsync", messages_per_second=(100.0,)),
        entry("Redis always", "lone", messages_per_second=(100.0,)),
    ]
    file.write_text(json.dumps(document({}, results)), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "goals.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    (line,) = [
        each for each in done.stdout.splitlines() if "one at a time, fsync" in each and "Redis" in each
    ]
    assert line.endswith("reached")
