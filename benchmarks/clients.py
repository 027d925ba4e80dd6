"""How fast are the clients of other languages, beside Python's?

    python benchmarks/clients.py [--clients go,rust] [--rounds 3] [--messages 1000000] [--data DIR] [--json]

Each client runs as two processes, a producer and a consumer, that speak the driver protocol
(`tests/conformance_clients/DRIVER.md`, `bench`), against a broker with one worker and a reliable topic (fsync). A round
measures every client on a case before the next case, Python's first in one round and last in the next. Each pair of
processes runs each case once unmeasured before it is measured, with a third of the messages: what is measured is a
program that runs for a while, and not its first second, in which a just-in-time compiler is at work. Messages per
second are from the first call that publishes to the answer that the last message was acknowledged; the ratio is to
Python in the same round. Round trips are one message at a time: published, received, acknowledged. Memory is the
resident set of the consumer's and the producer's process after the largest case, CPU the microseconds of both
processes for a message.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import made_folder, whole

import ister
from ister.ownbroker import OwnBroker
from ister.show import print_table
from tests.conformance_clients import drivers

CASES: Final = (
    (100, 0),
    (100, 655),
    (1024, 0),
    (1024, 64),
)  # bytes of a message; messages of a batch call, 0: none
ROUND_TRIPS: Final = 2_000
WARM_UP: Final = 3  # one part in so many, unmeasured
TIMEOUT_MS: Final = 300_000
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Pair:
    """A client's two processes, and what they have open."""

    def __init__(self, kind: drivers.Kind, endpoint: str) -> None:
        self.kind = kind
        self.producer, self.consumer = drivers.Driver(kind), drivers.Driver(kind)
        for each in (self.producer, self.consumer):
            each.ask("connect", client="c", endpoints=[endpoint])

    def close(self) -> None:
        """End both processes."""
        self.producer.finish()
        self.consumer.finish()

    @contextmanager
    def on(self, topic: str) -> Iterator[None]:
        """Have a consumer and a producer open on a topic."""
        _open_consumer(self.consumer, topic)
        self.producer.ask("producer", client="c", producer="p", topic=topic)
        yield
        self.producer.ask("close", producer="p")
        self.consumer.ask("close", consumer="k")

    def throughput(self, topic: str, messages: int, message_bytes: int, batch: int) -> dict[str, float]:
        """Send messages through the broker; return messages per second, and CPU seconds per message."""
        with self.on(topic):
            cpu = self._cpu_s()
            began = time.perf_counter()
            taken = self.consumer.send(
                "bench_receive", consumer="k", messages=messages, batch=batch > 0, timeout_ms=TIMEOUT_MS
            )
            sent = self.producer.send(
                "bench_publish",
                producer="p",
                messages=messages,
                message_bytes=message_bytes,
                batch=batch,
                timeout_ms=TIMEOUT_MS,
            )
            self.producer.answer(sent)
            received = self.consumer.answer(taken)
            seconds = time.perf_counter() - began
            if received["bytes"] != messages * message_bytes:
                raise SystemExit(f"{self.kind.name} received {received['bytes']} bytes, not all")
            return {"rate": messages / seconds, "cpu": (self._cpu_s() - cpu) / messages}

    def round_trips(self, topic: str) -> dict[str, float]:
        """Return p50 and p99 of the time from publishing a message to receiving it in the same process, in us."""
        one = self.producer
        _open_consumer(one, topic)
        one.ask("producer", client="c", producer="p", topic=topic)
        told = one.ask(
            "bench_round_trips",
            producer="p",
            consumer="k",
            messages=ROUND_TRIPS,
            message_bytes=100,
            timeout_ms=TIMEOUT_MS,
        )
        one.ask("close", producer="p")
        one.ask("close", consumer="k")
        return told

    def resident_mb(self) -> tuple[float, float]:
        """Return the resident memory of the producer's and the consumer's process, in MB."""
        return _resident_mb(self.producer.pid), _resident_mb(self.consumer.pid)

    def _cpu_s(self) -> float:
        return _cpu_s(self.producer.pid) + _cpu_s(self.consumer.pid)


def _open_consumer(driver: drivers.Driver, topic: str) -> None:
    driver.ask(
        "consumer",
        client="c",
        consumer="k",
        topic=topic,
        subscription="s",
        type="exclusive",
        start="earliest",
    )


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(kinds: list[drivers.Kind], rounds: int, messages: int, folder: str) -> list[dict[str, Any]]:
    """Return a row for each client and case, Python's first."""
    figures: dict[tuple[str, str], dict[str, list[float]]] = {}
    with (
        OwnBroker(f"{folder}/data", f"{folder}/log", workers=1) as broker,
        ister.connect(broker.endpoint) as admin,
    ):
        for number in range(rounds + 1):  # the first warms up
            pairs = [Pair(kind, broker.endpoint) for kind in (kinds if number % 2 else kinds[::-1])]
            for message_bytes, batch in CASES:
                for pair in pairs:
                    count = messages if message_bytes < 1024 else messages // 5
                    got = {}
                    for part in (WARM_UP, 1):
                        topic = f"t{number}.{pair.kind.name}.{message_bytes}.{batch}.{part}"
                        admin.create_topic(topic, dispatch="reliable")
                        some = count // part if number else count // 10
                        got = pair.throughput(topic, some, message_bytes, batch)
                        admin.delete_topic(topic)
                    if number:
                        case = f"{message_bytes} B, {'batch' if batch else 'message'}"
                        for name, value in got.items():
                            figures.setdefault((case, pair.kind.name), {}).setdefault(name, []).append(value)
            for pair in pairs:
                memory = pair.resident_mb()
                topic = f"t{number}.{pair.kind.name}.trips"
                admin.create_topic(topic, dispatch="reliable")
                pair.round_trips(topic)  # unmeasured
                got = pair.round_trips(topic)
                admin.delete_topic(topic)
                pair.close()
                if number:
                    trips = figures.setdefault(("round trip", pair.kind.name), {})
                    for name, value in (*got.items(), ("producer_mb", memory[0]), ("consumer_mb", memory[1])):
                        trips.setdefault(name, []).append(value)
    rows = []
    for (case, name), values in sorted(
        figures.items(), key=lambda each: (each[0][0] == "round trip", each[0])
    ):
        python = figures[case, "python"]
        row: dict[str, Any] = {"case": case, "client": name}
        if case == "round trip":
            names = ("p50_us", "p99_us", "producer_mb", "consumer_mb")  # a driver's answer has its own order
            row |= {name: round(statistics.median(values[name]), 1) for name in names}
            row["p50_ratio"] = round(_ratio(values["p50_us"], python["p50_us"]), 2)
        else:
            row |= {
                "messages_per_second": round(statistics.median(values["rate"])),
                "ratio": round(_ratio(values["rate"], python["rate"]), 2),
                "cpu_us": round(statistics.median(values["cpu"]) * 1e6, 2),
            }
        rows.append(row)
    return rows


def _ratio(mine: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", help="languages, with commas between; all that are built if missing")
    parser.add_argument("--rounds", type=whole, default=3)
    parser.add_argument(
        "--messages", type=whole, default=1_000_000, help="of 100 B; a fifth as many of 1 KiB"
    )
    parser.add_argument("--data", type=made_folder)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    wanted = None if given.clients is None else {"python", *given.clients.split(",")}
    kinds = []
    for kind in drivers.find():
        if wanted is not None and kind.name not in wanted:
            continue
        if (why := kind.why_not()) is not None:
            print(f"left out: {why}", file=sys.stderr)
            continue
        with drivers.Driver(kind) as driver:
            if "bench" in driver.capabilities:
                kinds.append(kind)
            else:
                print(f"left out: {kind.name}: its driver lacks: bench", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        rows = measure(kinds, given.rounds, given.messages, folder)
    if given.json:
        print(json.dumps(rows))
        return
    for trip in (False, True):
        table = [row for row in rows if (row["case"] == "round trip") is trip]
        print_table(list(table[0]), [list(each.values()) for each in table])
        print()


if __name__ == "__main__":
    main()
