"""How many messages a second get their receipts from the object store (durability cloud), and how long do they wait?

    python benchmarks/cloud_receipts.py [--store file|gcs] [--bytes 1024,16384] [--load message] [--rounds 5] [--json]
    python benchmarks/cloud_receipts.py --against OTHER_CHECKOUT    the same with another version, alternating

One broker with one worker and a topic with durability cloud, one producer in a process of its own.

- rate: messages a second, from the first one sent until the last receipt, as fast as the producer may; a load is
  `message` (one call a message), `batch` (calls of 64 KiB), `keyed` (one call, a key and an attribute), `mixed` (one
  call, from a tenth of the size to nearly twice it), or `two` (two producers of one topic)
- lone: the receipt of a message that nothing follows, one every `LONE_EVERY_S`
- trickle: objects an hour, while small messages come every `TRICKLE_EVERY_S`

`file` is a folder beside the data. `gcs` is fake-gcs-server in memory on this machine, and takes its share of the same
cores. A checkout needs a `.venv` of its own. A first round does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from arguments import above_zero, made_folder, wholes
from workloads import mixed

HERE: Final = Path(__file__).resolve().parents[1]
TOPIC: Final = "receipts"
LONE_EVERY_S: Final = 0.6
LONE: Final = 12
TRICKLE_EVERY_S: Final = 0.05
TRICKLE_S: Final = 6.0
SECONDS: Final = 3.0  # of the rate, about
BYTES_MAX: Final = 1 << 30
LOADS: Final = ("message", "batch", "keyed", "mixed", "two")


def loads(text: str) -> list[str]:
    """Return the loads that a command names; for argparse."""
    for name in text.split(","):
        if name not in LOADS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(LOADS)}")
    return text.split(",")


def sender(load: str, message_bytes: int, producers: Sequence[Any]) -> Callable[[], int]:
    """Return a function that sends some messages, about 64 KiB, and returns how many."""
    producer, count = producers[0], max(1, 65536 // message_bytes)
    payload = os.urandom(message_bytes)
    payloads = mixed(message_bytes) if load == "mixed" else [payload] * count

    def batch() -> int:
        producer.send_batch(payloads)
        return count

    def keyed() -> int:
        for number in range(count):
            producer.send(payload, key=b"key-%d" % number, attributes={"kind": "a"})
        return count

    def one_by_one() -> int:
        for each in producers:
            for one in payloads:
                each.send(one)
        return len(payloads) * len(producers)

    return {"batch": batch, "keyed": keyed}.get(load, one_by_one)


def produce(endpoint: str, message_bytes: int, load: str, seconds: float) -> dict[str, Any]:
    """Measure with the library of the checkout whose Python runs this."""
    import ister

    payload = os.urandom(message_bytes)
    found: dict[str, Any] = {}
    with ister.connect(endpoint, timeout=60) as client:
        for warming in (True, False):  # fresh memory costs more than used memory
            topic = f"{TOPIC}-{'warm' if warming else 'up'}"
            client.create_topic(topic, durability="cloud")
            with ExitStack() as stack:
                count = 2 if load == "two" else 1
                producers = [stack.enter_context(client.producer(topic)) for _ in range(count)]
                for producer in producers:
                    producer.send(payload).result(timeout=60)
                send = sender(load, message_bytes, producers)
                cpu, began, sent = time.process_time(), time.perf_counter(), 0
                while time.perf_counter() < began + seconds and sent * message_bytes < BYTES_MAX:
                    sent += sum(send() for _ in range(16))
                for producer in producers:
                    producer.flush(120)
                took = time.perf_counter() - began
                found["rate"] = round(sent / took)
                found["objects_mb"] = _objects(client, topic, sent * message_bytes / 1e6)
                found["producer_cpu_us"] = round((time.process_time() - cpu) / sent * 1e6, 2)
            client.delete_topic(topic)
    return found


def _objects(client: Any, topic: str, megabytes: float) -> float:
    """Return how large objects were on average, in MB."""
    return round(megabytes / max(1, _uploads(client, topic)), 2)


def _uploads(client: Any, topic: str) -> int:
    shown = client.topic(topic)
    return int(shown["segments"])


def trickle(endpoint: str, message_bytes: int) -> dict[str, Any]:
    """Measure lone messages and a trickle of them."""
    import ister

    payload = os.urandom(message_bytes)
    topic = f"{TOPIC}-slow"
    with ister.connect(endpoint, timeout=60) as client:
        client.create_topic(topic, durability="cloud")
        with client.producer(topic) as producer:
            producer.send(payload).result(timeout=60)
            lone = []
            for _ in range(LONE):
                time.sleep(LONE_EVERY_S)
                began = time.perf_counter()
                producer.send(payload).result(timeout=60)
                lone.append((time.perf_counter() - began) * 1000)
            before, began = _uploads(client, topic), time.perf_counter()
            while time.perf_counter() < began + TRICKLE_S:
                producer.send(payload)
                time.sleep(TRICKLE_EVERY_S)
            producer.flush(60)
            hours = (time.perf_counter() - began) / 3600
            objects = _uploads(client, topic) - before
        client.delete_topic(topic)
    return {
        "lone_ms_p50": round(statistics.median(lone), 1),
        "lone_ms_max": round(max(lone), 1),
        "trickle_objects_an_hour": round(objects / hours),
    }


def measure(
    checkout: Path, kind: str, message_bytes: int, load: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Start a broker of that checkout, and measure with a client of the same."""
    sys.path.insert(0, str(HERE))
    from benchmarks.cloud import store_at
    from ister.ownbroker import free_ports

    python = str(checkout / ".venv/bin/python")
    with tempfile.TemporaryDirectory(prefix="ister-cloud-", dir=given.data) as folder:
        with store_at(kind, folder) as store:
            environment = os.environ | {"PYTHONPATH": str(checkout)}
            endpoint = f"tcp://127.0.0.1:{free_ports(1)}"
            command = [python, "-m", "ister", "serve", "--json", "--die-with-parent", "--workers", "1"]
            command += ["--data", f"{folder}/data", "--listen", endpoint, "--store", store]
            for setting in given.set:
                command += ["--set", setting]
            with open(f"{folder}/log", "wb") as log:
                broker = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, cwd=checkout, env=environment, text=True
                )
            assert broker.stdout is not None
            try:
                if not broker.stdout.readline():
                    raise SystemExit(f"the broker did not start: {Path(folder, 'log').read_text()}")
                client = [
                    python,
                    __file__,
                    "--client",
                    endpoint,
                    "--bytes",
                    str(message_bytes),
                    "--load",
                    load,
                ]
                client += ["--seconds", str(given.seconds)] + (["--slow"] if given.slow else [])
                done = subprocess.run(client, stdout=subprocess.PIPE, check=True, env=environment, text=True)
                found: dict[str, Any] = json.loads(done.stdout)
                return found
            finally:
                broker.terminate()
                broker.wait()
                broker.stdout.close()


def compare(kind: str, message_bytes: int, load: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure one size, this checkout and the other alternating; return medians and the ratio of the rates."""
    checkouts = {"here": HERE} | ({"other": Path(given.against).resolve()} if given.against else {})
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for number in range(given.rounds + 1):
        order = list(checkouts.items())
        for name, checkout in order if number % 2 else reversed(order):
            found = measure(checkout, kind, message_bytes, load, given)
            print(f"  {kind} {message_bytes} {load} {name}: {found}", file=sys.stderr)
            if number or not given.rounds:
                rounds[name].append(found)
    row: dict[str, Any] = {"store": kind, "bytes": message_bytes, "load": load}
    for name, found in rounds.items():
        row |= {f"{name}_{what}": statistics.median(each[what] for each in found) for what in found[0]}
    if given.against and not given.slow:
        pairs = zip(rounds["here"], rounds["other"], strict=True)
        ratios = [here["rate"] / other["rate"] for here, other in pairs]
        row |= {
            "ratio": round(statistics.median(ratios), 2),
            "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return row


def main() -> None:
    """Run it, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="file", help="file, gcs, or both with a comma between")
    parser.add_argument("--bytes", type=wholes, default=[1024, 16384], help="of a message")
    parser.add_argument(
        "--load", type=loads, default=["message"], help=f"{', '.join(LOADS)}; several with a comma between"
    )
    parser.add_argument("--against", help="another checkout to compare with")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how many count, after the first; 0: one round, which does"
    )
    parser.add_argument(
        "--seconds", type=above_zero, default=SECONDS, help="of sending, in each of two runs of a round"
    )
    parser.add_argument(
        "--slow", action="store_true", help="measure lone messages and the trickle instead of the rate"
    )
    parser.add_argument("--data", type=made_folder, default=".", help="where folders are made: a real disk")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the brokers"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = given.bytes
    if given.client:
        slow = given.slow
        print(
            json.dumps(
                trickle(given.client, sizes[0])
                if slow
                else produce(given.client, sizes[0], given.load[0], given.seconds)
            )
        )
        return
    rows = [
        compare(kind, size, load, given)
        for kind in given.store.split(",")
        for load in given.load
        for size in sizes
    ]
    if given.json:
        print(json.dumps(rows))
        return
    for name in rows[0]:
        print(f"{name:28}" + "".join(f"{row[name]!s:>18}" for row in rows))


if __name__ == "__main__":
    main()
