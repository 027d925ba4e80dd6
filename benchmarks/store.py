"""How fast is a history uploaded to a store and read back without a broker, next to the plain client download?

    python benchmarks/store.py [--segments 24] [--message-bytes 1024] [--threads 2] [--folder DIR] [--json]

Segments of 8 MiB with batches of 64 KiB are uploaded by some threads, then read: as plain objects (Google's client
alone for the emulator, files for the folder, by as many threads as read ahead), as batches, and message by message.
CPU is that of this process; the emulator (fake-gcs-server, in memory) has its own. Each reading is the best of three.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import made_folder, whole

import ister.store
from ister.clock import SystemClock
from ister.storage.addresses import open_store
from ister.storage.disk import LocalDisk
from ister.storage.layout import Layout, segment_metadata
from ister.storage.objectstore import ObjectStore
from ister.storage.segment import SegmentInfo
from ister.storage.wal import Wal, WalSettings
from tests.gcs.emulator import find_program, running

INCARNATION = bytes(range(16))
LAYOUT = Layout("bench", INCARNATION)
BUCKET = "bench"
ROUNDS = 3


def make_segments(folder: str, segments: int, message_bytes: int) -> list[SegmentInfo]:
    """Create a log of this many full segments and return them."""
    count = max(1, (64 << 10) // message_bytes)
    frames = [(array("I", [message_bytes]) * count).tobytes(), b"x" * (message_bytes * count)]
    wal = Wal.open(
        LocalDisk(),
        folder,
        topic="bench",
        incarnation=INCARNATION,
        settings=WalSettings(),
        clock=SystemClock(),
    )
    while len(wal.sealed()) < segments:
        wal.append(
            count=count,
            producer_id=1,
            sequence=wal.next_offset,
            columns=0,
            frames=frames,
            timestamp_ms=wal.next_offset,
        )
        wal.commit()
    wal.close()
    return list(wal.sealed())[:segments]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def best(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the best of several rounds."""
    return min(timed(work) for _ in range(ROUNDS))


def upload(store: ObjectStore, segments: list[SegmentInfo], threads: int) -> None:
    """Upload everything."""

    def one(segment: SegmentInfo) -> None:
        name = LAYOUT.segment(segment.base, 1)
        assert store.put_file_if_absent(name, segment.path, metadata=segment_metadata(segment, "bench"))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, segments))


def plain_download(url: str, endpoint: str | None, names: list[str], threads: int) -> None:
    """Download the same objects with the vendor's client alone, and discard them."""
    if endpoint is None:
        with ThreadPoolExecutor(threads) as pool:
            list(
                pool.map(lambda name: len(Path(f"{url.removeprefix('file://')}/{name}").read_bytes()), names)
            )
        return
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(
        project="bench", credentials=AnonymousCredentials(), client_options={"api_endpoint": endpoint}
    )
    bucket = client.bucket(BUCKET)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda name: len(bucket.blob(f"p/{name}").download_as_bytes()), names))
    client.close()


def measure(url: str, endpoint: str | None, segments: list[SegmentInfo], threads: int) -> dict[str, Any]:
    """Upload to one store, read it back in three ways, and return the measurements."""
    size = sum(segment.bytes for segment in segments)
    messages = sum(segment.messages for segment in segments)
    store = open_store(url)
    wall, cpu = timed(lambda: upload(store, segments, threads))
    store.close()
    row: dict[str, Any] = {
        "store": "emulator" if endpoint else "folder",
        "megabytes": round(size / 1e6),
        "upload MB/s": round(size / wall / 1e6),
        "upload CPU s/GiB": round(cpu / size * (1 << 30), 2),
    }
    names = [LAYOUT.segment(segment.base, 1) for segment in segments]
    found: list[int] = []

    def batches() -> None:
        found.append(
            sum(len(batch.payloads) for batch in ister.store.read_batches(url, "bench", prefetch=threads))
        )

    def single() -> None:
        found.append(
            sum(1 for message in ister.store.read(url, "bench", prefetch=threads) if message.payload)
        )

    ways = {
        "plain": lambda: plain_download(url, endpoint, names, threads),
        "batches": batches,
        "messages": single,
    }
    for way, work in ways.items():
        wall, cpu = best(work)
        row[f"{way} MB/s"] = round(size / wall / 1e6)
        row[f"{way} CPU s/GiB"] = round(cpu / size * (1 << 30), 2)
        if way != "plain":
            row[f"{way} 1000/s"] = round(messages / wall / 1e3)
    assert set(found) == {messages}
    row["batches to plain"] = round(row["batches MB/s"] / row["plain MB/s"], 2)
    return row


@contextlib.contextmanager
def stores(folder: str) -> Iterator[list[tuple[str, str | None]]]:
    """Yield the addresses of the stores to measure, with the emulator's own."""
    found: list[tuple[str, str | None]] = [(f"file://{folder}/store", None)]
    if find_program() is None:
        print("no fake-gcs-server for this machine: the folder alone", file=sys.stderr)
        yield found
        return
    with running() as emulator:
        emulator.make_bucket(BUCKET)
        os.environ["STORAGE_EMULATOR_HOST"] = emulator.url
        yield [*found, (f"gs://{BUCKET}/p", emulator.url)]


def main() -> None:
    """Measure each store, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--segments", type=whole, default=24)
    parser.add_argument("--message-bytes", type=whole, default=1024)
    parser.add_argument("--threads", type=whole, default=2, help="uploads at a time, and segments read ahead")
    parser.add_argument(
        "--folder", type=made_folder, default=".", help="where log and store are made, and removed"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-store-") as folder:
        path = str(Path(folder).absolute())
        segments = make_segments(f"{path}/log", given.segments, given.message_bytes)
        with stores(path) as found:
            rows = [measure(url, endpoint, segments, given.threads) for url, endpoint in found]
    if given.json:
        print(json.dumps({"store": rows}))
        return
    for name in rows[0]:
        print(f"{name:24}" + "".join(f"{row[name]!s:>14}" for row in rows))


if __name__ == "__main__":
    main()
