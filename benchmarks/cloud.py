"""How fast does a broker upload to an object store, at what CPU cost, and how fast does a consumer read it back?

    python benchmarks/cloud.py [--megabytes 128] [--message-bytes 1000] [--store file|gcs|URL] [--json]

One broker with one reliable topic (durability fsync) that keeps nothing of what is uploaded in its local log.

- upload: from the first message published until the store has the last segment that was full; the one after it is
  sealed by age. CPU is what the tier process used meanwhile, for each GiB of segments, and what all processes did.
- catch-up: one consumer from the earliest message on, all of it from the store, acknowledging as it goes.
- client: the same objects read by the store's own client in this process, one after the other, to compare the catch-up
  with.

`gcs` is fake-gcs-server in memory on this machine (needs ister[test]); it takes its share of the same cores, and both
ends of the network are this machine. `file` is a folder beside the data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import whole

import ister
import ister.store
from ister.ownbroker import free_ports
from ister.storage.addresses import open_store

BUCKET: Final = "ister-bench"
TOPIC: Final = "orders"
PATIENCE_S: Final = 300.0


@contextlib.contextmanager
def store_at(kind: str, folder: str) -> Iterator[str]:
    """Yield the address of a store of that kind."""
    if kind == "file":
        yield f"file://{folder}/store"
        return
    if kind != "gcs":
        yield kind
        return
    from tests.gcs.emulator import running

    with running() as emulator:
        emulator.make_bucket(BUCKET)
        os.environ["STORAGE_EMULATOR_HOST"] = emulator.url
        yield f"gs://{BUCKET}/bench"


@contextlib.contextmanager
def broker_on(store: str, folder: str) -> Iterator[str]:
    """Yield the endpoint of a broker whose local log keeps nothing that the store has."""
    port = free_ports(1)
    command = [sys.executable, "-m", "ister", "serve", "--json", "--die-with-parent", "--workers", "1"]
    command += ["--data", f"{folder}/data", "--listen", f"tcp://127.0.0.1:{port}", "--store", store]
    for setting in ("log.local_bytes=0", "log.segment_age_ms_max=1000"):
        command += ["--set", setting]
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[1], text=True
        )
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise SystemExit(f"the broker did not start: {Path(folder, 'log').read_text()}")
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def cpu_of(client: ister.Client, role: str = "") -> float:
    """Return the CPU seconds that the broker's processes of a role, or all, have used so far."""
    processes = client.status()["processes"]
    return float(sum(each["cpu_seconds"] for each in processes if not role or each["role"] == role))


def wait_uploaded(client: ister.Client, end: int, *, trimmed: bool = False) -> list[tuple[float, int]]:
    """Wait until the store has everything; return when, and how many bytes it had.

    With `trimmed`, wait until the local log has dropped everything that it may.
    """
    until = time.monotonic() + PATIENCE_S
    reached: list[tuple[float, int]] = []
    while time.monotonic() < until:
        shown = client.topic(TOPIC)
        reached.append((time.perf_counter(), shown["uploaded_end"]))
        if shown["uploaded_end"] >= end and (not trimmed or shown["segments"] <= 2):
            return reached
        time.sleep(0.02)
    raise SystemExit(f"not uploaded within {PATIENCE_S:.0f} s")


def measure(kind: str, megabytes: int, message_bytes: int) -> dict[str, Any]:
    """Publish, wait for the upload, read it back through the broker and directly from the store."""
    count = megabytes * 1_000_000 // message_bytes
    payload = os.urandom(message_bytes)
    with tempfile.TemporaryDirectory(prefix="ister-cloud-") as folder, store_at(kind, folder) as store:
        with broker_on(store, folder) as endpoint, ister.connect(endpoint, timeout=60) as client:
            client.create_topic(TOPIC)
            tier, everything = cpu_of(client, "tier"), cpu_of(client)
            begun = time.perf_counter()
            with client.producer(TOPIC) as producer:
                for _ in range(count):
                    producer.send(payload)
                producer.flush(PATIENCE_S)
            published_s = time.perf_counter() - begun
            reached = wait_uploaded(client, count)
            tier, everything = cpu_of(client, "tier") - tier, cpu_of(client) - everything
            wait_uploaded(client, count, trimmed=True)
            history = ister.store.history(store, TOPIC)
            stored = sum(piece.segment.bytes for piece in history.pieces)
            full = history.pieces[:-1] or history.pieces
            uploaded_s = next(at for at, end in reached if end >= full[-1].end) - begun
            back = cpu_of(client)
            begun = time.perf_counter()
            with client.consumer(TOPIC, subscription="all", type="exclusive", start="earliest") as consumer:
                for number, message in enumerate(consumer):
                    consumer.ack(message)
                    if number == count - 1:
                        break
                consumer.flush()
            caught_up_s = time.perf_counter() - begun
            back = cpu_of(client) - back
            shown = client.subscription(TOPIC, "all")
        begun, cpu = time.perf_counter(), time.process_time()
        reader = open_store(store)
        for piece in history.pieces:
            reader.get(piece.segment.name)
        plain_s, plain_cpu = time.perf_counter() - begun, time.process_time() - cpu
        reader.close()
    gib = stored / (1 << 30)
    return {
        "store": kind,
        "messages": count,
        "message_bytes": message_bytes,
        "objects": len(history.pieces),
        "stored_bytes": stored,
        "publish_mb_s": round(stored / 1e6 / published_s, 1),
        "upload_mb_s": round(sum(piece.segment.bytes for piece in full) / 1e6 / uploaded_s, 1),
        "tier_cpu_s_per_gib": round(tier / gib, 2),
        "broker_cpu_s_per_gib": round(everything / gib, 2),
        "catch_up_messages_s": round(count / caught_up_s),
        "catch_up_mb_s": round(stored / 1e6 / caught_up_s, 1),
        "catch_up_broker_cpu_s_per_gib": round(back / gib, 2),
        "from_store": shown["from_store"],
        "client_mb_s": round(stored / 1e6 / plain_s, 1),
        "client_cpu_s_per_gib": round(plain_cpu / gib, 2),
    }


def main() -> None:
    """Run it, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=whole, default=128)
    parser.add_argument("--message-bytes", type=whole, default=1000)
    parser.add_argument("--store", default="file", help="file, gcs, or an address")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.store, given.megabytes, given.message_bytes)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32} {value:>16,}" if isinstance(value, int | float) else f"{name:32} {value:>16}")


if __name__ == "__main__":
    main()
