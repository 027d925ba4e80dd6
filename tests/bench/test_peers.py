"""Tests of the comparison with peers: what is skipped is said, ratios point the right way. No peer is started here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ister.bench.page import page
from ister.bench.results import document, parse

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, imported as Python finds it when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peers: Any) -> Any:
    """The module that installs and starts peers, on a machine that has none of their programs."""
    module = importlib.import_module("peer_installing")
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(module, "DEBIAN", ())
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return module


def everything(peers: Any, row: Any) -> list[Any]:
    """Return all systems of a row, without starting anything."""
    systems = importlib.import_module("peer_systems")
    running = [systems.Running(each, None, []) for each in peers.PEERS]
    return peers.systems_of(row, running, [], 1.0)  # type: ignore[no-any-return]


def test_what_cannot_be_had_says_what_it_needs(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is missing is an error with the package to install, never a stand-in."""
    with pytest.raises(servers.MissingError, match="redis-server"):
        servers.program("redis-server", "redis-server")
    with pytest.raises(servers.MissingError, match="cc"):
        servers.c_driver("redis", "hiredis", "libhiredis-dev")
    with pytest.raises(servers.MissingError, match="cargo"):
        servers.rust_driver()
    with pytest.raises(servers.MissingError, match=r"no iggy-server.*README.md"):
        servers.iggy_server()
    monkeypatch.setenv("ISTER_BENCH_IGGY", "/nowhere/iggy-server")
    with pytest.raises(servers.MissingError, match="ISTER_BENCH_IGGY names /nowhere/iggy-server"):
        servers.iggy_server()


def test_a_peer_that_is_missing_is_skipped_visibly_and_the_others_run(
    peers: Any, servers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on without it, and its reason is printed and returned for the file of results."""
    wanted = peers.chosen_peers(["Redis always", "mosquitto QoS 0"], False)
    with ExitStack() as stack:
        running, skipped = peers.started(wanted, stack, str(tmp_path))
    assert running == []
    assert skipped.keys() == {"Redis always", "mosquitto QoS 0"}
    assert "SKIPPED: Redis always" in capsys.readouterr().err


def test_a_command_that_fails_is_a_reason_with_the_end_of_what_it_said(servers: Any) -> None:
    """Nobody has to look for a log to learn why a peer could not be built."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such crate')"]
    with pytest.raises(servers.MissingError, match="no such crate"):
        servers.run(command)


def test_ahead_means_more_messages_or_fewer_microseconds(peers: Any) -> None:
    """A ratio above 1 says that Ister is better, whatever the figure."""
    rates = [{"messages_per_second": 200}, {"messages_per_second": 300}]
    theirs = [{"messages_per_second": 100}, {"messages_per_second": 100}]
    assert peers.ahead(rates, theirs, "messages_per_second") == (2.5, 2.0, 3.0)
    fast, slow = [{"delivered_p50_us": 100.0}], [{"delivered_p50_us": 300.0}]
    assert peers.ahead(fast, slow, "delivered_p50_us") == (3.0, 3.0, 3.0)


def test_a_measurement_grows_until_it_takes_seconds(peers: Any) -> None:
    """A first run that is over at once says little: the next has at most ten times as many messages."""
    next_count = importlib.import_module("peer_systems").next_count
    assert next_count(2000, 0.001, 2_000_000, 2.0) == 20_000
    assert next_count(2000, 1.0, 2_000_000, 2.0) == 4000
    assert next_count(2000, 1.0, 3000, 2.0) == 3000
    assert next_count(2000, 40.0, 2_000_000, 2.0) == 100


def test_every_peer_has_its_durability_in_words_and_a_level_to_compare_with(peers: Any) -> None:
    """Nothing is compared without saying what an answer promises."""
    for peer in peers.PEERS:
        assert peer.durability
        assert peer.level in ("fsync", "os", "none")
    names = [peer.name for peer in peers.PEERS]
    assert len(set(names)) == len(names)


def test_results_of_peers_are_drawn_and_compared_like_ours(peers: Any) -> None:
    """The entries are those of a file of results, one for each system and workload, with the durability."""
    row = peers.ROWS["1k"]
    rounds = [{"messages": 200, "messages_per_second": 100, "cpu_us": {"server": 1.0, "producer": 2.0}}]
    entries = [peers.entry(row, each, rounds) for each in everything(peers, row)]
    assert {each["seconds"][0] for each in entries} == {2.0}
    made = document({"machine": "m"}, entries)
    assert parse(json.dumps(made), "peers.json") == made
    text = page(made)
    assert "fsync before each answer" in text
    assert "Redis always" in text


def test_the_table_has_the_durability_beside_every_figure(peers: Any) -> None:
    """Each line says what it was paid for."""
    row = peers.ROWS["lone"]
    rounds = [{"messages_per_second": 100, "cpu_us": {"server": 1.0}}]
    systems = everything(peers, row)
    lines = peers.lines_of(row, {each.name: rounds for each in systems}, systems)
    (redis,) = [line for line in lines if line.startswith("  Redis always  ")]
    assert redis.endswith("fsync before each answer")
    assert "fsync 1.00 (1.00 to 1.00)" in redis


def test_messages_that_a_non_reliable_topic_dropped_are_said(peers: Any) -> None:
    """A rate is that of what came, and the rest must not be silent."""
    row = peers.ROWS["1k"]
    systems = everything(peers, row)
    one = {"messages": 100, "messages_per_second": 100, "cpu_us": {}}
    rounds = [one | {"missing": 7}, one | {"missing": 0}]
    lines = peers.lines_of(row, {"Ister none, batch": rounds}, systems)
    assert "  Ister none, batch dropped 7 of 200 messages" in lines


def test_the_cpu_time_of_a_server_never_goes_back(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that it started and that ends meanwhile keeps what it used: some servers start helpers."""
    servers = importlib.import_module("peer_servers")
    server = servers.Server(["some"], "", 0)
    living = {1: 100, 2: 50}
    monkeypatch.setattr(servers.Server, "pids", lambda _self: list(living))
    monkeypatch.setattr(servers, "cpu_ns", lambda pid: living[pid])
    assert server.cpu() == 150
    del living[2]
    living[1] = 130
    assert server.cpu() == 180


def test_a_system_that_fails_is_left_out_of_the_row_visibly(
    peers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One peer that breaks does not take the others' results with it, and is not measured again."""

    class System:
        def __init__(self, name: str, fails: bool) -> None:
            self.name, self.fails, self.runs = name, fails, 0

        def run(self, _row: Any, _data: str) -> dict[str, Any]:
            self.runs += 1
            if self.fails:
                raise IndexError("an answer without its numbers")
            return {"messages_per_second": 1}

    good, bad = System("good", False), System("bad", True)
    found = peers.measured(peers.ROWS["1k"], [good, bad], 3, ".")
    assert {name: len(rounds) for name, rounds in found.items()} == {"good": 3}
    assert (good.runs, bad.runs) == (3, 1)
    assert "FAILED: 1k with bad" in capsys.readouterr().err


def test_a_row_ends_when_its_time_would_not_hold_another_round(peers: Any) -> None:
    """Half an hour is half an hour, and every row has its share of it: at least one round."""

    class System:
        name = "some"

        def run(self, _row: Any, _data: str) -> dict[str, Any]:
            return {"messages_per_second": 1}

    asked: list[float] = []

    def enough(took: float) -> bool:
        asked.append(took)
        return len(asked) == 3

    found = peers.measured(peers.ROWS["1k"], [System()], 5, ".", enough)
    assert len(found["some"]) == 3
    assert min(asked) >= 0


def test_python_clients_run_on_demand_or_by_name(peers: Any) -> None:
    """The usual run has the fastest client of each; Ister's own is in Python all the same."""
    names = {each.name for each in peers.chosen_peers([], False)}
    assert {"Redis always", "bare pyzmq fsync"} <= names
    assert not any("(Python)" in name for name in names)
    assert "Redis always (Python)" in {each.name for each in peers.chosen_peers([], True)}
    assert [each.name for each in peers.chosen_peers(["NATS core (Python)"], False)] == ["NATS core (Python)"]


def test_what_is_no_broker_says_so_and_stands_in_its_rows(peers: Any) -> None:
    """The bare transfer bounds throughput, the bare exchange bounds latency."""
    flow, lone = ({each.name for each in everything(peers, peers.ROWS[name])} for name in ("1k", "lone"))
    assert "bare transfer fsync" in flow
    assert "bare pyzmq fsync" not in flow
    assert "bare pyzmq fsync" in lone
    assert "bare transfer fsync" not in lone
    for each in everything(peers, peers.ROWS["1k"]) + everything(peers, peers.ROWS["lone"]):
        assert each.durability.endswith("; no broker") is each.name.startswith("bare")


@pytest.mark.process
@pytest.mark.parametrize("durability", ["fsync", "none"])
def test_the_bare_exchange_answers_and_delivers(peers: Any, durability: str, tmp_path: Path) -> None:
    """It follows the protocol of the drivers, so that it is measured like every peer."""
    (peer,) = peers.chosen_peers([f"bare pyzmq {durability}"], False)
    with ExitStack() as stack:
        (running,), skipped = peers.started([peer], stack, str(tmp_path), 0.05)
        assert skipped == {}
        for name in peer.kinds:
            row = next(each for each in peers.ROWS.values() if each.kind == name)
            found = running.run(row, str(tmp_path))
            assert {*row.figures} <= found.keys()
            assert found["cpu_us"]["server"] > 0


@pytest.mark.process
def test_the_bare_transfer_tells_its_rate_and_its_cpu_time(peers: Any, tmp_path: Path) -> None:
    """It is measured end to end as the others are, by process."""
    bare = importlib.import_module("peer_systems").Bare("fsync", 0.005)
    found = bare.run(peers.ROWS["1k"], str(tmp_path))
    assert found["messages_per_second"] > 0
    assert min(found["cpu_us"].values()) > 0
    assert found["cpu_us"].keys() == {"server", "producer", "consumer"}


@pytest.mark.process
def test_a_name_that_does_not_exist_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    """A misspelt peer must not measure nothing for an hour."""
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--systems", "Reddis"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path, env={**os.environ}
    )
    assert done.returncode == 1
    assert "'Reddis'" in done.stderr
