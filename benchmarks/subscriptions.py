"""How fast does each type of subscription drain a backlog, and what does it cost the broker?

    python benchmarks/subscriptions.py [--messages 200000] [--bytes 100] [--keys 1000] [--consumers 1,2,8] [--json]

A broker of its own with one worker; a reliable topic is filled once with keyed messages in batches, and drained by each
type in turn, by `--consumers` consumers of one client in a process of its own, which acknowledges each batch. `worker
us` is the CPU time of the worker process per message. The first drain of each type is a warm-up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from arguments import whole, wholes

import ister
from ister.ownbroker import OwnBroker

TYPES = ("exclusive", "shared", "key-shared")


def fill(endpoint: str, topic: str, messages: int, size: int, keys: int) -> None:
    """Publish keyed messages in batches of a thousand."""
    with ister.connect(endpoint) as client:
        client.create_topic(topic)
        with client.producer(topic) as producer:
            for first in range(0, messages, 1000):
                count = min(1000, messages - first)
                names = [b"key-%d" % ((first + n) * 7919 % keys) for n in range(count)]
                producer.send_batch([bytes(size)] * count, keys=names)
            producer.flush(60)


def drain(endpoint: str, topic: str, subscription: str, kind: str, consumers: int, messages: int) -> float:
    """Consume and acknowledge everything; return the seconds from the first message to the last."""
    left = [messages]
    lock = threading.Lock()
    times: list[float] = []
    done = threading.Event()

    def run(client: ister.Client) -> None:
        with client.consumer(topic, subscription, type=kind, start="earliest") as consumer:  # type: ignore[arg-type]
            while not done.is_set():
                batch = consumer.receive_batch(timeout=0.2)
                if not batch:
                    continue
                now = time.perf_counter()
                consumer.ack(batch)
                with lock:
                    times.append(now)
                    left[0] -= len(batch)
                    if left[0] <= 0:
                        done.set()

    with ister.connect(endpoint) as client:
        threads = [threading.Thread(target=run, args=(client,)) for _ in range(consumers)]
        for thread in threads:
            thread.start()
        if not done.wait(120):
            raise SystemExit(f"{left[0]} messages of {kind} never came")
        seconds = max(times) - min(times)
        for thread in threads:
            thread.join()
    return seconds


def worker_cpu(endpoint: str) -> float:
    """Return the CPU seconds that the worker has used."""
    with ister.connect(endpoint) as client:
        return float(next(p["cpu_seconds"] for p in client.status()["processes"] if p["role"] == "worker"))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=whole, default=200_000)
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument("--keys", type=whole, default=1000)
    parser.add_argument("--consumers", type=wholes, default=[1, 2, 8])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--drain", nargs=3, help=argparse.SUPPRESS)  # endpoint, type, consumers: the child
    given = parser.parse_args()
    if given.drain:
        endpoint, kind, consumers = given.drain
        name = f"{kind}-{consumers}-{time.time_ns()}"
        print(drain(endpoint, "backlog", name, kind, int(consumers), given.messages))
        return
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        OwnBroker(folder, str(Path(folder, "log")), workers=1) as broker,
    ):
        fill(broker.endpoint, "backlog", given.messages, given.bytes, given.keys)
        for kind in TYPES:
            for consumers in given.consumers:
                if kind == "exclusive" and consumers > 1:
                    continue
                command = [sys.executable, __file__, "--messages", str(given.messages)]
                command += ["--drain", broker.endpoint, kind, str(consumers)]
                found = []
                for _ in range(3):
                    before = worker_cpu(broker.endpoint)
                    seconds = float(
                        subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    )
                    found.append((seconds, worker_cpu(broker.endpoint) - before))
                seconds, cpu = sorted(found[1:])[0]
                rows.append(
                    {
                        "type": kind,
                        "consumers": consumers,
                        "messages_per_second": round(given.messages / seconds),
                        "worker_us": round(cpu / given.messages * 1e6, 2),
                    }
                )
                if not given.json:
                    row = rows[-1]
                    rate, cost = f"{row['messages_per_second']:>12,}/s", f"{row['worker_us']:>8} us"
                    print(f"{kind:<12} {consumers:>4} consumers {rate} {cost}", flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
