"""The systems that `peers.py` runs in turn: Ister, the bare transfer, and a peer with its server and its driver.

Each has a `name`, the `level` of durability at which it is compared, and `run(row, data)`, which measures a row once
and returns its figures, the CPU time of a message by process, and how long it was measured.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peer_servers import Peer, Server
from workloads import SIZES, cpu_ns, flow, lone, per_message, percentiles

ANSWER_WITHIN_S: Final = 120.0
WARM: Final = 0.3  # of Ister's load, before it is measured: its broker and processes are new each time
BYTES_MAX: Final = 1 << 30  # of payload in one measurement
MESSAGES_MAX: Final = 2_000_000
SIZING_RUNS: Final = 5
PACED_RATE: Final = 1000  # messages a second
PACED_TIMES: Final = 2  # as long as the other rows: their number is the base of the percentiles
PACED_WARM: Final = 500
ROAD: Final = Path(__file__).with_name("road.py")
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


def paced_messages(seconds: float) -> int:
    """Return how many messages the paced row has."""
    return max(100, int(PACED_RATE * PACED_TIMES * seconds))


@dataclass(frozen=True)
class Ours:
    """Ister with one durability and one kind of calls; a measurement takes about `seconds`."""

    level: str
    api: str
    seconds: float = 1.0

    @property
    def durability(self) -> str:
        """What an answer promises."""
        return DURABILITY[self.level]

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
            messages = 1500 if self.level == "fsync" else 3000
            return lone(self.seconds, data, job="publish_lone", messages=messages, **how)
        if row.kind == "paced":
            messages = paced_messages(self.seconds)
            return flow(1.0, data, messages=messages, size=row.size, rate=PACED_RATE, **how)
        size, reliable, non_reliable, batch = SIZES[row.name]
        messages = non_reliable if self.level == "none" else reliable
        batch = batch if self.api == "batch" else 0
        return flow(self.seconds, data, messages=messages, size=size, batch=batch, warm=WARM, **how)


class Bare:
    """The bare transfer (`road.py`): batches of 64 KiB through a ROUTER and a log, and nothing else of a broker."""

    MODES: Final = {"fsync": "walsync", "os": "wal", "none": "mem"}
    FASTER: Final = 1.5  # than Ister, about: as many more messages take as long

    def __init__(self, level: str, seconds: float = 1.0) -> None:
        self.level = level
        self.name = f"bare transfer {level}"
        self.durability = f"{DURABILITY[level]}; no broker"
        self._seconds = seconds
        self._warm: set[str] = set()

    def run(self, row: Row, data: str) -> dict[str, Any]:
        """Run a row once, after a short run the first time."""
        size, reliable, non_reliable, _ = SIZES[row.name]
        messages = (non_reliable if self.level == "none" else reliable) * self.FASTER * self._seconds
        if row.name not in self._warm:
            self._road(size, int(messages * WARM), data)
            self._warm.add(row.name)
        return self._road(size, int(messages), data)

    def _road(self, size: int, messages: int, data: str) -> dict[str, Any]:
        command = [sys.executable, str(ROAD), "--json", "--mode", self.MODES[self.level], "--data", data]
        command += ["--bytes", str(size), "--messages", str(max(100, messages))]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=2 * ANSWER_WITHIN_S
        )
        if done.returncode:
            raise RuntimeError(f"road.py failed: {done.stderr[-500:]}")
        told = json.loads(done.stdout)
        return {
            "messages": told["messages"],
            "messages_per_second": told["end_to_end"],
            "cpu_us": told["cpu_us"],
        }


def ours_of(row: Row, seconds: float = 1.0) -> list[Ours]:
    """Return how Ister runs a row."""
    apis = ("message", "batch") if row.kind == "flow" else ("",)
    return [Ours(level, api, seconds) for level in ("fsync", "os", "none") for api in apis]


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

    def __init__(self, peer: Peer, server: Server, driver: list[str], seconds: float = 1.0) -> None:
        self.peer = peer
        self._seconds = seconds
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

    @property
    def durability(self) -> str:
        """What an answer promises."""
        return self.peer.durability

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
        """Return how many messages take the time of a measurement: more each time, until a run takes a third of it."""
        if row.kind == "paced":
            self._once(row, PACED_WARM)
            return paced_messages(self._seconds)
        most = min(MESSAGES_MAX, BYTES_MAX // row.size)
        count = 200 if row.kind == "lone" else 2000
        for _ in range(SIZING_RUNS):
            took = count / self._once(row, count)["messages_per_second"]
            count = next_count(count, took, most, self._seconds)
            if took > self._seconds / 3:
                break
        return count

    def _start(self, role: str, topic: str, row: Row, messages: int) -> Driver:
        rate = {"flow": 0, "paced": PACED_RATE, "lone": -1}[row.kind]  # -1: nobody else creates the topic
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
            return {**told, "seconds": messages / PACED_RATE}
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


def next_count(count: int, took_s: float, most: int, seconds: float) -> int:
    """Return how many messages take about `seconds`, after `count` took `took_s`: up to ten times as many.

    A short run says little about a system's rate: connecting, and timers that gather batches, are most of it.
    """
    return max(100, min(most, int(count * min(10.0, seconds / max(took_s, 1e-3)))))
