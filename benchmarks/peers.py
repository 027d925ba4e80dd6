"""How does Ister do beside its peers: the same workloads, each peer with its own fastest client, in turn in one run?

    python benchmarks/peers.py [--rows 1k,latency] [--systems "Redis always,Ister"] [--rounds 5] [--json FILE]
    python benchmarks/peers.py --list

Servers and clients are the real ones (`peer_servers.py`); what cannot be had on this machine is skipped, and said to
be. Each round runs every system once, the order turns with the rounds, and only the server that is measured runs: the
others are stopped meanwhile. The number of messages follows from a first run of the system, so that a measurement takes
some two seconds whatever the system's rate is; that run also warms its memory.

The table has medians, the lowest and highest round, and by how much Ister is ahead of it at the same durability, with
the spread of the rounds' ratios: above 1, Ister is better. The durability of each is in its line.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from against import warm_memory
from arguments import made_folder, output, whole
from peer_servers import PEERS, MissingError, Peer, Server
from workloads import SIZES, cpu_ns, flow, lone, per_message, percentiles

from ister.bench.about import about, in_words
from ister.bench.results import curve_of, document, result
from ister.bench.run import file_system_of

ANSWER_WITHIN_S: Final = 120.0
SECONDS: Final = 2.0  # of a measurement, about
BYTES_MAX: Final = 1 << 30  # of payload in one measurement
MESSAGES_MAX: Final = 2_000_000
SIZING_RUNS: Final = 5
PACED: Final = 3000  # messages at 1,000 a second
PACED_WARM: Final = 500
DURABILITY: Final = {"fsync": "fsync before each answer", "os": "page cache", "none": "memory"}


@dataclass(frozen=True)
class Row:
    """A workload: `kind` is "flow" (all together), "paced" (1,000 a second) or "lone" (each answer awaited)."""

    name: str
    what: str
    kind: str
    size: int
    figures: tuple[str, ...]


ROWS: Final = {
    row.name: row
    for row in (
        Row("100", "100 B, as fast as it goes", "flow", 100, ("messages_per_second",)),
        Row("1k", "1 KiB, as fast as it goes", "flow", 1024, ("messages_per_second",)),
        Row("16k", "16 KiB, as fast as it goes", "flow", 16384, ("messages_per_second",)),
        Row(
            "latency",
            "1,000 messages of 1 KiB a second",
            "paced",
            1024,
            ("receipt_p50_us", "receipt_p99_us", "delivered_p50_us", "delivered_p99_us"),
        ),
        Row("lone", "1 KiB, one at a time, the answer awaited", "lone", 1024, ("messages_per_second",)),
    )
}


# ---- Ister ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """Ister with one durability and one kind of calls."""

    level: str
    api: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"Ister {self.level}" + (f", {self.api}" if self.api else "")

    def run(self, row: Row, data: str) -> dict[str, Any]:
        """Run a row once, with a broker and processes of its own."""
        strategy = "non-reliable" if self.level == "none" else "reliable"
        durability = None if self.level == "none" else self.level
        how = {"strategy": strategy, "durability": durability, "raw": True}
        if row.kind == "lone":
            return lone(
                1.0, data, job="publish_lone", messages=10_000 if self.level != "fsync" else 3000, **how
            )
        if row.kind == "paced":
            return flow(1.0, data, messages=PACED, size=row.size, rate=1000, **how)
        size, reliable, non_reliable, batch = SIZES[row.name]
        messages = non_reliable if self.level == "none" else reliable
        return flow(1.0, data, messages=messages, size=size, batch=batch if self.api == "batch" else 0, **how)


def ours_of(row: Row) -> list[Ours]:
    """Return how Ister runs a row."""
    apis = ("message", "batch") if row.kind == "flow" else ("",)
    return [Ours(level, api) for level in ("fsync", "os", "none") for api in apis]


# ---- a peer -----------------------------------------------------------------------------------------------------


class Driver:
    """A peer's client: a process that says when it is ready, waits for a line, and prints one object."""

    def __init__(self, command: Sequence[str]) -> None:
        self.name = " ".join(command[-7:-5])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._read = b""
        self.cpu = 0

    def answer(self) -> Any:
        """Return what it prints next; raises RuntimeError with its reason if that does not come."""
        out = self._process.stdout
        assert out is not None
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise RuntimeError(
                    f"{self.name} did not answer within {ANSWER_WITHIN_S:.0f} s: messages were lost, or it hangs"
                )
            part = out.read1(1 << 20)  # type: ignore[attr-defined]
            if not part:
                raise RuntimeError(f"{self.name} ended: {self._why()}")
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _why(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip()[-500:]

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def cpu_ns(self) -> int:
        """Return its CPU time; what it was when it was last asked, if it has ended."""
        try:
            self.cpu = cpu_ns(self._process.pid)
        except OSError:
            pass
        return self.cpu

    def end(self) -> None:
        """Wait for its end, or end it."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


class Running:
    """A peer whose server runs; stopped between its measurements."""

    def __init__(self, peer: Peer, server: Server, driver: list[str]) -> None:
        self.peer = peer
        self._server = server
        self._driver = driver
        self._number = 0
        self._messages: dict[str, int] = {}

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.peer.name

    @property
    def level(self) -> str:
        """The durability of Ister that it is compared with."""
        return self.peer.level

    def run(self, row: Row, data: str) -> dict[str, Any]:  # noqa: ARG002  (as Ister's)
        """Run a row once, after a warm-up the first time."""
        self._server.pause(resume=True)
        try:
            if row.name not in self._messages:
                self._messages[row.name] = self._sized(row)
            return self._once(row, self._messages[row.name])
        finally:
            self._server.pause()

    def _sized(self, row: Row) -> int:
        """Return how many messages take some seconds; more each time, until a run takes a good part of that."""
        if row.kind == "paced":
            self._once(row, PACED_WARM)
            return PACED
        most = min(MESSAGES_MAX, BYTES_MAX // row.size)
        count = 200 if row.kind == "lone" else 2000
        for _ in range(SIZING_RUNS):
            took = count / self._once(row, count)["messages_per_second"]
            count = next_count(count, took, most)
            if took > SECONDS / 2:
                break
        return count

    def _start(self, role: str, topic: str, row: Row, messages: int) -> Driver:
        rate = {"flow": 0, "paced": 1000, "lone": -1}[row.kind]  # -1: nobody else creates the topic
        address = self._server.address
        return Driver(
            [*self._driver, self.peer.system, role, address, topic, str(messages), str(row.size), str(rate)]
        )

    def _once(self, row: Row, messages: int) -> dict[str, Any]:
        self._number += 1
        topic = f"bench{self._number}"
        with ExitStack() as stack:
            consumer = None
            if row.kind != "lone":
                consumer = self._start("consume", topic, row, messages)
                stack.callback(consumer.end)
                consumer.answer()
            role = {"flow": "publish", "paced": "paced", "lone": "lone"}[row.kind]
            producer = self._start(role, topic, row, messages)
            stack.callback(producer.end)
            producer.answer()
            before = {"server": self._server.cpu(), "producer": producer.cpu_ns()}
            if consumer is not None:
                before["consumer"] = consumer.cpu_ns()
            producer.go()
            sent = producer.answer()
            got = consumer.answer() if consumer is not None else None
            after = {"server": self._server.cpu(), "producer": producer.cpu_ns()}
            if consumer is not None:
                after["consumer"] = consumer.cpu_ns()
        self._remove(topic, row)
        told: dict[str, Any] = {"messages": messages, "cpu_us": per_message(before, after, messages)}
        if got is not None and (got["messages"], got["bytes"]) != (messages, messages * row.size):
            raise RuntimeError(f"{self.name} delivered {got['messages']} of {messages} messages")
        if row.kind == "paced":
            told["raw"] = {"delivered": got["took"]}
            if self.peer.paced_receipts:
                told["raw"]["receipt"] = sent["took"]
            for name, took in told["raw"].items():
                told |= percentiles(name, took)
            return told
        ended = sent["ended"] if got is None else got["ended"]
        told["messages_per_second"] = max(1, round(messages / ((ended - sent["began"]) / 1e9)))
        if sent.get("took"):
            told["raw"] = {"receipt": sent["took"]}
            told |= percentiles("receipt", sent["took"])
        return told

    def _remove(self, topic: str, row: Row) -> None:
        if self.peer.system == "redis":
            port = self._server.address.rpartition(":")[2]
            command = ["redis-cli", "-p", port, "DEL", topic]
        elif self.peer.system.startswith("mosquitto"):
            return
        else:
            command = [
                *self._driver,
                self.peer.system,
                "remove",
                self._server.address,
                topic,
                "0",
                str(row.size),
                "0",
            ]
        subprocess.run(command, capture_output=True, check=False, timeout=60)


def next_count(count: int, took_s: float, most: int) -> int:
    """Return how many messages take about `SECONDS`, after `count` took `took_s`: up to ten times as many.

    A short run says little about a system's rate: connecting, and timers that gather batches, are most of it.
    """
    return max(100, min(most, int(count * min(10.0, SECONDS / max(took_s, 1e-3)))))


# ---- the run ----------------------------------------------------------------------------------------------------


def started(wanted: Sequence[str], stack: ExitStack, data: str) -> tuple[list[Running], dict[str, str]]:
    """Start the servers of the peers that are wanted; return them, and why others are skipped."""
    running, skipped = [], {}
    for peer in PEERS:
        if wanted and peer.name not in wanted:
            continue
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
        running.append(Running(peer, server, driver))
    return running, skipped


def measured(row: Row, systems: Sequence[Any], rounds: int, data: str) -> dict[str, list[dict[str, Any]]]:
    """Run a row `rounds` times with every system in turn; a system that fails is left out, visibly."""
    found: dict[str, list[dict[str, Any]]] = {each.name: [] for each in systems}
    failed: set[str] = set()
    for number in range(rounds):
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
                print(f"  {row.name} {number + 1}/{rounds} {system.name:<24}", file=sys.stderr, end="\r")
    return {name: each for name, each in found.items() if len(each) == rounds}


def ahead(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], figure: str
) -> tuple[float, float, float]:
    """Return by how much Ister is better: ratio of the medians, lowest and highest of the rounds."""
    more = figure.endswith("_per_second")
    pairs = [(one[figure], other[figure]) for one, other in zip(ours, theirs, strict=True)]
    ratios = [(a / b) if more else (b / a) for a, b in pairs]
    a, b = (statistics.median(each) for each in zip(*pairs, strict=True))
    return (a / b if more else b / a), min(ratios), max(ratios)


def lines_of(row: Row, found: Mapping[str, list[dict[str, Any]]], peers: Mapping[str, Peer]) -> list[str]:
    """Return the table of a row."""
    ours = ours_of(row)
    lines = [f"\n{row.name}: {row.what}"]
    for figure in row.figures:
        lines.append(
            f"  {figure:<34}{'median':>10}  {'rounds':<22}{'Ister ahead by (lowest to highest round)'}"
        )
        for name, rounds in found.items():
            if figure not in rounds[0]:
                continue
            values = [each[figure] for each in rounds]
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            peer = peers.get(name)
            beside = ""
            if peer is not None:
                parts = []
                for one in ours:
                    if one.level == peer.level and figure in (found.get(one.name) or [{}])[0]:
                        ratio, low, high = ahead(found[one.name], rounds, figure)
                        parts.append(f"{one.api or one.level} {ratio:.2f} ({low:.2f} to {high:.2f})")
                beside = ", ".join(parts)
            level = peer.durability if peer else DURABILITY[next(o.level for o in ours if o.name == name)]
            lines.append(f"  {name:<34}{statistics.median(values):>10,.0f}  {spread:<22}{beside:<52} {level}")
    lines.append(
        "  CPU us a message: " + "; ".join(f"{name} {_cpu(rounds)}" for name, rounds in found.items())
    )
    return lines


def _cpu(rounds: Sequence[Mapping[str, Any]]) -> str:
    roles = rounds[0]["cpu_us"]
    return " / ".join(
        f"{role} {statistics.median(each['cpu_us'][role] for each in rounds):.3g}" for role in roles
    )


def entry(
    row: Row, name: str, rounds: Sequence[Mapping[str, Any]], peer: Peer | None, level: str
) -> dict[str, Any]:
    """Return a system's rounds of a row as an entry of a file of results."""
    figures = [
        {figure: each[figure] for figure in row.figures if figure in each}
        | {f"cpu_{role}_us": value for role, value in each["cpu_us"].items()}
        for each in rounds
    ]
    raw: dict[str, list[int]] = {}
    if row.kind != "flow":
        for each in rounds:
            for curve, took in each.get("raw", {}).items():
                raw.setdefault(curve, []).extend(took)
    api = "" if peer else name.partition(", ")[2]
    return result(
        " ".join(filter(None, (row.name, level, api))) if peer is None else row.name,
        row.what + (f", {api} calls" if api else ""),
        figures,
        group="latency" if row.kind == "paced" else "throughput",
        durability=peer.durability if peer else DURABILITY[level],
        system=peer.name if peer else "Ister",
        series=f"{name} ({peer.client})" if peer else name,
        curves={curve: curve_of(took) for curve, took in raw.items()} if row.kind == "paced" else None,
    )


def main() -> int:
    """Run it, print tables, and write results."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rows", default=",".join(ROWS), help="names, with commas between")
    parse.add_argument("--systems", default="", help="names of peers, with commas between; all if missing")
    parse.add_argument("--rounds", type=whole, default=5)
    parse.add_argument("--data", type=made_folder, default=".", help="where folders are made: a real disk")
    parse.add_argument(
        "--json", type=output, metavar="FILE", help="a file of results, for `ister bench page` and `compare`"
    )
    parse.add_argument("--list", action="store_true", help="say which peers and rows there are")
    given = parse.parse_args()
    if given.list:
        for peer in PEERS:
            print(f"{peer.name:18} {peer.durability}; {peer.client}")
        for row in ROWS.values():
            print(f"{row.name:18} {row.what}")
        return 0
    wanted = [each.strip() for each in given.systems.split(",") if each.strip()]
    unknown = [each for each in wanted if each not in {peer.name for peer in PEERS}]
    unknown += [each for each in given.rows.split(",") if each not in ROWS]
    if unknown:
        raise SystemExit(f"there is no {unknown[0]!r}; --list names the peers and the rows")
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # servers are stopped in order
    began = time.monotonic()
    warm_memory()
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        running, skipped = started(wanted, stack, given.data)
        told = about(file_system_of(given.data), skipped=skipped)
        print(in_words(told), flush=True)
        peers = {each.name: each.peer for each in running}
        for name in given.rows.split(","):
            row = ROWS[name]
            systems = [*ours_of(row), *(each for each in running if row.kind in each.peer.kinds)]
            found = measured(row, systems, given.rounds, given.data)
            print("\n".join(lines_of(row, found, peers)), flush=True)
            levels = {each.name: each.level for each in systems}
            results += [
                entry(row, system, rounds, peers.get(system), levels[system])
                for system, rounds in found.items()
            ]
            if given.json:
                text = json.dumps(document(told, results), indent=1)
                Path(given.json).write_text(text + "\n", encoding="utf-8")
    for name, why in skipped.items():
        print(f"SKIPPED: {name}: {why}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
