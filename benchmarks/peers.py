"""How does Ister do beside its peers: the same workloads, each peer with its own fastest client, in turn in one run?

    python benchmarks/peers.py [--rows 1k,latency] [--systems "Redis always,NATS core"] [--rounds 5] [--json FILE]
    python benchmarks/peers.py --list

Servers and clients are the real ones (`peer_servers.py`); what cannot be had on this machine is skipped, and said to
be. Each round runs every system once, the order turns with the rounds, and only the server that is measured runs: the
others are stopped meanwhile. A measurement takes about `--seconds`: the number of messages of a peer follows from first
runs of it, which also warm its memory. Ister's broker is new each time, and warms up with three tenths of the load. The
row `latency` takes twice that, so that a p99 is that of 2,000 messages.

Beside the peers stand two things that are no brokers, and do the least that any broker in Python over this transport
must: the bare transfer (`road.py`) in the rows of throughput, and a bare exchange (`peers/python/bare.py`) in the rows
`latency` and `lone`.

The table has medians, the lowest and highest round, and by how much Ister is ahead of it at the same durability, with
the spread of the rounds' ratios: above 1, Ister is better. The durability of each is in its line. At the end stand the
goals, and what was measured of them (`goals.py`). No round of a row begins when its share of `--minutes` would not hold
it; what was left out then is said.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from against import warm_memory
from arguments import above_zero, made_folder, output, whole
from budget import Budget
from goals import lines_of as goals_of
from peer_installing import MissingError
from peer_servers import PEERS, PYTHON, Peer
from peer_systems import ROWS, Bare, Row, Running, ours_of
from workloads import seconds_of

from ister.bench.about import about, in_words
from ister.bench.results import curve_of, document, result
from ister.bench.run import file_system_of
from ister.words import counted

BARE: Final = {f"bare transfer {level}": level for level in ("fsync", "none")}


def chosen_peers(names: Sequence[str], python_clients: bool) -> list[Peer]:
    """Return the peers to run: those named, or all, of which the Python clients only on demand."""
    if names:
        return [peer for peer in PEERS if peer.name in names]
    return [peer for peer in PEERS if python_clients or not peer.name.endswith(PYTHON)]


def started(
    wanted: Sequence[Peer], stack: ExitStack, data: str, seconds: float = 1.0
) -> tuple[list[Running], dict[str, str]]:
    """Start the servers of the peers that are wanted; return them, and why others are skipped."""
    running, skipped = [], {}
    for peer in wanted:
        try:
            driver = peer.driver()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=data, prefix="peer-")))
            folder.chmod(0o755)
            server = peer.server(folder.resolve())
            server.start(folder.resolve())
        except MissingError as why:
            skipped[peer.name] = str(why)
            print(f"SKIPPED: {peer.name}: {why}", file=sys.stderr, flush=True)
            continue
        stack.callback(server.stop)
        server.pause()
        running.append(Running(peer, server, driver, seconds))
    return running, skipped


def systems_of(row: Row, running: Sequence[Running], names: Sequence[str], seconds: float) -> list[Any]:
    """Return what runs in a row: Ister, what is no broker, and the peers that can."""
    roads = []
    if row.kind == "flow":
        roads = [Bare(level, seconds) for name, level in BARE.items() if not names or name in names]
    return [*ours_of(row, seconds), *roads, *(each for each in running if row.kind in each.peer.kinds)]


def measured(
    row: Row,
    systems: Sequence[Any],
    rounds: int,
    data: str,
    enough: Callable[[float], bool] = lambda _: False,
) -> dict[str, list[dict[str, Any]]]:
    """Run a row `rounds` times with every system in turn; a system that fails is left out, visibly.

    `enough` is asked before each round but the first, with how long the one before took.
    """
    found: dict[str, list[dict[str, Any]]] = {each.name: [] for each in systems}
    failed: set[str] = set()
    took = 0.0
    for number in range(rounds):
        if number and enough(took):
            break
        began = time.monotonic()
        shift = number % len(systems)
        for system in [*systems[shift:], *systems[:shift]]:
            if system.name in failed:
                continue
            try:
                found[system.name].append(system.run(row, data))
            except Exception as error:  # noqa: BLE001  (a peer that fails must not take an hour of results with it)
                failed.add(system.name)
                print(f"FAILED: {row.name} with {system.name}: {error!r}", file=sys.stderr, flush=True)
            if sys.stderr.isatty():
                print(f"\r\x1b[K  {row.name} {number + 1}/{rounds} {system.name}", file=sys.stderr, end="")
        took = time.monotonic() - began
    if sys.stderr.isatty():
        print("\r\x1b[K", file=sys.stderr, end="")
    return {name: each for name, each in found.items() if name not in failed}


def ahead(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], figure: str
) -> tuple[float, float, float]:
    """Return by how much Ister is better: ratio of the medians, lowest and highest of the rounds."""
    more = figure.endswith("_per_second")
    pairs = [(one[figure], other[figure]) for one, other in zip(ours, theirs, strict=True)]
    ratios = [(a / b) if more else (b / a) for a, b in pairs]
    a, b = (statistics.median(each) for each in zip(*pairs, strict=True))
    return (a / b if more else b / a), min(ratios), max(ratios)


def lines_of(row: Row, found: Mapping[str, list[dict[str, Any]]], systems: Sequence[Any]) -> list[str]:
    """Return the table of a row."""
    ours = ours_of(row)
    names = [one.name for one in ours]
    beside = [each for each in systems if each.name in found and each.name not in names]
    lines = [f"\n{row.name}: {row.what}"]
    for figure in row.figures:
        rows = [
            (figure, "median", "rounds", "Ister ahead by (lowest to highest round)", "an answer promises")
        ]
        for each in [*(one for one in ours if one.name in found), *beside]:
            rounds = found[each.name]
            if figure not in rounds[0]:
                continue
            values = [one[figure] for one in rounds]
            parts = []
            for one in ours if each in beside else ():
                if one.level == each.level and figure in (found.get(one.name) or [{}])[0]:
                    ratio, low, high = ahead(found[one.name], rounds, figure)
                    parts.append(f"{one.api or one.level} {ratio:.2f} ({low:.2f} to {high:.2f})")
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            middle = f"{statistics.median(values):,.0f}"
            rows.append((each.name, middle, spread, ", ".join(parts), each.durability))
        widths = [max(len(cells[column]) for cells in rows) for column in range(5)]
        lines += [
            f"  {name:<{widths[0]}}  {middle:>{widths[1]}}  {spread:<{widths[2]}}  {parts:<{widths[3]}}  {level}"
            for name, middle, spread, parts, level in rows
        ]
    for name, rounds in found.items():
        if missing := sum(each.get("missing", 0) for each in rounds):
            lines.append(
                f"  {name} dropped {missing:,} of {sum(each['messages'] for each in rounds):,} messages"
            )
    lines.append("  CPU us a message:")
    lines += [f"    {name:<26}{_cpu(rounds)}" for name, rounds in found.items()]
    return lines


def _cpu(rounds: Sequence[Mapping[str, Any]]) -> str:
    roles = rounds[0]["cpu_us"]
    return ", ".join(
        f"{role} {statistics.median(each['cpu_us'][role] for each in rounds):.3g}" for role in roles
    )


def entry(row: Row, system: Any, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a system's rounds of a row as an entry of a file of results."""
    figures = [
        {figure: each[figure] for figure in row.figures if figure in each}
        | {f"cpu_{role}_us": value for role, value in each["cpu_us"].items()}
        for each in rounds
    ]
    raw: dict[str, list[int]] = {}
    if row.kind == "paced":
        for each in rounds:
            for curve, took in each.get("raw", {}).items():
                raw.setdefault(curve, []).extend(took)
    ours = system.name.startswith("Ister")
    api = system.api if ours else ""
    client = f" ({system.peer.client})" if isinstance(system, Running) else ""
    return result(
        " ".join(filter(None, (row.name, system.level, api))) if ours else row.name,
        row.what + (f", {api} calls" if api else ""),
        figures,
        group="latency" if row.kind == "paced" else "throughput",
        durability=system.durability,
        system="Ister" if ours else system.name,
        series=f"{system.name}{client}",
        curves={curve: curve_of(took) for curve, took in raw.items()},
        seconds=[seconds_of(each) for each in rounds],
    )


def _arguments() -> argparse.Namespace:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rows", default=",".join(ROWS), help="names, with commas between")
    parse.add_argument("--systems", default="", help="names of peers, with commas between; all if missing")
    parse.add_argument(
        "--python-clients", action="store_true", help="the peers' Python clients as well: half as long again"
    )
    parse.add_argument("--rounds", type=whole, default=5)
    parse.add_argument("--seconds", type=above_zero, default=1.0, help="of a measurement, about")
    parse.add_argument("--minutes", type=above_zero, default=30.0, help="of the whole run, at most about")
    parse.add_argument("--data", type=made_folder, default=".", help="where folders are made: a real disk")
    parse.add_argument(
        "--json", type=output, metavar="FILE", help="a file of results, for `ister bench page` and `compare`"
    )
    parse.add_argument("--list", action="store_true", help="say which peers and rows there are")
    given = parse.parse_args()
    given.systems = [each.strip() for each in given.systems.split(",") if each.strip()]
    given.rows = [each.strip() for each in given.rows.split(",") if each.strip()]
    unknown = [each for each in given.systems if each not in {*BARE, *(peer.name for peer in PEERS)}]
    unknown += [each for each in given.rows if each not in ROWS]
    if unknown:
        raise SystemExit(f"there is no {unknown[0]!r}; --list names the peers and the rows")
    return given


def main() -> int:
    """Run it, print tables, and write results."""
    given = _arguments()
    if given.list:
        for peer in PEERS:
            print(f"{peer.name:26} {peer.durability}; {peer.client}")
        for name, level in BARE.items():
            print(f"{name:26} {Bare(level).durability}; pyzmq")
        for row in ROWS.values():
            print(f"{row.name:26} {row.what}")
        return 0
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # servers are stopped in order
    began = time.monotonic()
    budget = Budget(given.minutes, len(given.rows), time.monotonic)
    warm_memory()
    results: list[dict[str, Any]] = []
    fewer: list[str] = []
    with ExitStack() as stack:
        wanted = chosen_peers(given.systems, given.python_clients)
        running, skipped = started(wanted, stack, given.data, given.seconds)
        told = about(file_system_of(given.data), skipped=skipped)
        print(in_words(told), flush=True)
        for name in given.rows:
            row = ROWS[name]
            systems = systems_of(row, running, given.systems, given.seconds)
            budget.begin_row()
            found = measured(row, systems, given.rounds, given.data, budget.enough)
            print("\n".join(lines_of(row, found, systems)), flush=True)
            results += [entry(row, each, found[each.name]) for each in systems if each.name in found]
            done = max((len(each) for each in found.values()), default=0)
            if done < given.rounds:
                fewer.append(f"{name} {counted(done, 'round')}")
            if given.json:
                text = json.dumps(document(told, results), indent=1)
                Path(given.json).write_text(text + "\n", encoding="utf-8")
    print("\ngoals: Ister's figure over the other's, of medians; lowest to highest of the rounds")
    print("\n".join(goals_of(results)))
    for name, why in skipped.items():
        print(f"SKIPPED: {name}: {why}")
    if fewer:
        print(f"fewer than {given.rounds} rounds for want of time (--minutes): {', '.join(fewer)}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
