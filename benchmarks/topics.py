"""How long do receipts take when one, ten or a thousand reliable topics are written at the same time?

    python benchmarks/topics.py [--topics 1,10,1000] [--bytes 100] [--seconds 5] [--data DIR] [--json]

A broker of its own with one worker, and one client without a library: each round publishes one message to every topic
and waits for all receipts. Latency is from the send of a message to its receipt; with a thousand topics most of it is
the queue before the worker. `probe` is one more topic on another connection, written ten times a second meanwhile: the
delay of an uninvolved topic. Commits are counted by the topics, flushes by the disk (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import cbor2
import zmq
from arguments import above_zero, made_folder, wholes

import ister
from ister.ownbroker import OwnBroker
from ister.wire import Key, Type

PROBE_EVERY_S: Final = 0.1
PATIENCE_MS: Final = 30_000
WARM_UP_ROUNDS: Final = 5


class Producers:
    """One connection with a handle for each of its topics."""

    def __init__(self, endpoint: str, topics: Sequence[str]) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.connect(endpoint)
        self._say({Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.CLIENT: "benchmark"})
        self._hear(Type.WELCOME)
        self.handles = range(1, len(topics) + 1)
        self.sequence = 0
        for handle, topic in zip(self.handles, topics, strict=True):
            number = int.from_bytes(os.urandom(7), "little") + 1
            self._say(
                {
                    Key.TYPE: Type.OPEN_PRODUCER,
                    Key.REF: handle,
                    Key.HANDLE: handle,
                    Key.TOPIC: topic,
                    Key.PRODUCER: number,
                    Key.SEQUENCE: 0,
                }
            )
            self._hear(Type.OPENED)

    def _say(self, header: dict[int, Any]) -> None:
        self._socket.send(cbor2.dumps(header))

    def _hear(self, kind: int) -> dict[int, Any]:
        while self._socket.poll(PATIENCE_MS):
            header: dict[int, Any] = cbor2.loads(self._socket.recv_multipart()[0])
            if header[Key.TYPE] == kind:
                return header
            if header[Key.TYPE] in (Type.ERROR, Type.MOVED):
                raise RuntimeError(f"the broker answered {header}")
        raise TimeoutError(f"no frame of type {kind} within {PATIENCE_MS} ms")

    def round(self, payload: bytes) -> list[float]:
        """Publish `payload` once to each topic, and return how long each receipt took, in seconds."""
        sent: dict[int, float] = {}
        lengths = len(payload).to_bytes(4, "little")
        for handle in self.handles:
            header = {Key.TYPE: Type.PUBLISH, Key.HANDLE: handle, Key.SEQUENCE: self.sequence}
            sent[handle] = time.perf_counter()
            self._socket.send_multipart((cbor2.dumps(header), lengths, payload))
        self.sequence += 1
        took: list[float] = []
        while sent:
            receipt = self._hear(Type.RECEIPT)
            took.append(time.perf_counter() - sent.pop(receipt[Key.HANDLE]))
        return took

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Probe:
    """A topic that is written now and then, in a thread of its own."""

    def __init__(self, endpoint: str, topic: str, payload: bytes) -> None:
        self.took: list[float] = []
        self._producers = Producers(endpoint, [topic])
        self._payload = payload
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(PROBE_EVERY_S):
            self.took += self._producers.round(self._payload)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, after the last receipt."""
        self._end.set()
        self._thread.join()
        self._producers.close()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this part of the values is, in milliseconds."""
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000, 3)


def _flushes(folder: str) -> int:
    device = os.stat(folder).st_dev
    counts = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    fields = counts.read_text("ascii").split() if counts.exists() else []
    return int(fields[15]) if len(fields) > 15 else 0


def _commits(client: ister.Client, topics: Sequence[str]) -> int:
    return sum(int(client.topic(topic)["commits"]) for topic in topics)


def _worker_cpu(client: ister.Client) -> float:
    rows = client.status()["processes"]
    return sum(float(row["cpu_seconds"]) for row in rows if str(row["node"]).startswith("worker"))


def measure(endpoint: str, folder: str, count: int, size: int, seconds: float) -> dict[str, Any]:
    """Run rounds over `count` new topics for `seconds`, and return the figures."""
    topics = [f"b{count}-{number}" for number in range(count)]
    probe_topic = f"p{count}"
    payload = os.urandom(size)
    with ister.connect(endpoint) as client:
        for topic in (*topics, probe_topic):
            client.create_topic(topic)
        producers = Producers(endpoint, topics)
        for _ in range(WARM_UP_ROUNDS):
            producers.round(payload)
        commits, flushes, cpu = _commits(client, topics), _flushes(folder), _worker_cpu(client)
        took: list[float] = []
        rounds: list[float] = []
        with Probe(endpoint, probe_topic, payload) as probe:
            began = time.perf_counter()
            while time.perf_counter() < began + seconds:
                start = time.perf_counter()
                took += producers.round(payload)
                rounds.append(time.perf_counter() - start)
            elapsed = time.perf_counter() - began
        flushes, cpu = _flushes(folder) - flushes, _worker_cpu(client) - cpu
        commits = _commits(client, topics) - commits
        producers.close()
        for topic in (*topics, probe_topic):
            client.delete_topic(topic)
    return {
        "topics": count,
        "messages_s": round(len(took) / elapsed),
        "round_ms_p50": percentile(rounds, 0.5),
        "receipt_ms_p50": percentile(took, 0.5),
        "receipt_ms_p99": percentile(took, 0.99),
        "probe_ms_p50": percentile(probe.took, 0.5),
        "probe_ms_p99": percentile(probe.took, 0.99),
        "commits_per_message": round(commits / len(took), 3),
        "flushes_s": round(flushes / elapsed),
        "flushes_per_message": round(flushes / len(took), 4),
        "cpu_us_per_message": round(cpu / len(took) * 1e6, 1),
    }


def main() -> None:
    """Measure each number of topics and print one table."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--topics", type=wholes, default=[1, 10, 1000])
    parse.add_argument("--bytes", type=int, default=100, help="of a message")
    parse.add_argument("--seconds", type=above_zero, default=5.0, help="a row")
    parse.add_argument("--data", type=made_folder, default=".", help="where the broker's folder is made")
    parse.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the broker"
    )
    parse.add_argument("--json", action="store_true")
    given = parse.parse_args()
    settings = dict(text.split("=", 1) for text in given.set)
    with tempfile.TemporaryDirectory(dir=given.data, prefix="topics-") as folder:
        with OwnBroker(f"{folder}/data", f"{folder}/log", workers=1, settings=settings) as broker:
            rows = [
                measure(broker.endpoint, folder, count, given.bytes, given.seconds) for count in given.topics
            ]
    if given.json:
        print(json.dumps({"bytes": given.bytes, "rows": rows}))
        return
    width = max(len(name) for name in rows[0])
    for name in rows[0]:
        print(f"{name:<{width}}" + "".join(f"{row[name]:>12,}" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
