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
    module = importlib.import_module("peer_servers")
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(module, "DEBIAN", ())
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return module


def test_what_cannot_be_had_says_what_it_needs(servers: Any) -> None:
    """A peer that is missing is an error with the package to install, never a stand-in."""
    with pytest.raises(servers.MissingError, match="redis-server"):
        servers.program("redis-server", "redis-server")
    with pytest.raises(servers.MissingError, match="cc"):
        servers.c_driver("redis", "hiredis", "libhiredis-dev")
    with pytest.raises(servers.MissingError, match="cargo"):
        servers.rust_driver()
    with pytest.raises(servers.MissingError, match="iggy-server"):
        servers.iggy_server()


def test_a_peer_that_is_missing_is_skipped_visibly_and_the_others_run(
    peers: Any, servers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on without it, and its reason is printed and returned for the file of results."""
    with ExitStack() as stack:
        running, skipped = peers.started(["Redis always", "mosquitto QoS 0"], stack, str(tmp_path))
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
    assert peers.next_count(2000, 0.001, 2_000_000) == 20_000
    assert peers.next_count(2000, 1.0, 2_000_000) == 4000
    assert peers.next_count(2000, 1.0, 3000) == 3000
    assert peers.next_count(2000, 40.0, 2_000_000) == 100


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
    rounds = [{"messages_per_second": 100, "cpu_us": {"server": 1.0, "producer": 2.0}}]
    entries = [peers.entry(row, each.name, rounds, None, each.level) for each in peers.ours_of(row)]
    entries += [peers.entry(row, each.name, rounds, each, each.level) for each in peers.PEERS]
    made = document({"machine": "m"}, entries)
    assert parse(json.dumps(made), "peers.json") == made
    text = page(made)
    assert "fsync before each answer" in text
    assert "Redis always" in text


def test_the_table_has_the_durability_beside_every_figure(peers: Any) -> None:
    """Each line says what it was paid for."""
    row = peers.ROWS["lone"]
    rounds = [{"messages_per_second": 100, "cpu_us": {"server": 1.0}}]
    found = {each.name: rounds for each in [*peers.ours_of(row), *peers.PEERS]}
    lines = peers.lines_of(row, found, {each.name: each for each in peers.PEERS})
    (redis,) = [line for line in lines if line.lstrip().startswith("Redis always  ")]
    assert "fsync before each answer" in redis
    assert "fsync 1.00 (1.00 to 1.00)" in redis


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


@pytest.mark.process
def test_a_name_that_does_not_exist_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    """A misspelt peer must not measure nothing for an hour."""
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--systems", "Reddis"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path, env={**os.environ}
    )
    assert done.returncode == 1
    assert "'Reddis'" in done.stderr
