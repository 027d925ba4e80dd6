"""How long do append, commit, read and recovery of the log take, and does preparing segments ahead pay?

    python benchmarks/log.py [--batch-bytes 65536] [--megabytes 256] [--group 4] [--folder DIR] [--json]

Batches are appended in groups; a group is committed in a thread while the next is appended, as a topic does. The second
row does without spare segments. Everything is read back through maps twice, and the log is opened again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ister.clock import SystemClock
from storage.disk import LocalDisk
from storage.reader import Reader, SegmentMaps
from storage.wal import Wal, WalSettings, remove_log

MESSAGE_BYTES = 1024


def quantile(times: list[float], part: float) -> float:
    """Return a quantile of seconds, in microseconds."""
    return round(sorted(times)[int(len(times) * part)] * 1e6, 1) if times else 0.0


def measure(folder: str, batch_bytes: int, megabytes: int, group: int, spares: bool) -> dict[str, Any]:
    """Run one log through its life and return what it took."""
    disk, clock, incarnation = LocalDisk(), SystemClock(), bytes(range(16))
    count = max(1, batch_bytes // MESSAGE_BYTES)
    size = min(batch_bytes, MESSAGE_BYTES)
    frames = [(array("I", [size]) * count).tobytes(), b"x" * (size * count)]
    batches = max(group, megabytes * (1 << 20) // (size * count))
    settings = WalSettings()

    def opened() -> Wal:
        return Wal.open(disk, folder, topic="bench", incarnation=incarnation, settings=settings, clock=clock)

    wal = opened()
    appends: list[float] = []
    commits: list[float] = []
    sequence = 0
    running: tuple[Any, Future[float]] | None = None

    def timed(work: Any) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    with ThreadPoolExecutor(2) as pool:
        began = time.perf_counter()
        for number in range(batches):
            start = time.perf_counter()
            wal.append(
                count=count, producer_id=1, sequence=sequence, columns=0, frames=frames, timestamp_ms=number
            )
            appends.append(time.perf_counter() - start)
            sequence += count
            if running is not None and (running[1].done() or number % group == group - 1):
                commits.append(running[1].result())
                wal.end_commit(running[0], None)
                running = None
                if spares and (work := wal.prepare_spare()) is not None:
                    pool.submit(work)
            if running is None and (commit := wal.begin_commit()) is not None:
                running = (commit, pool.submit(timed, commit.run))
        if running is not None:
            commits.append(running[1].result())
            wal.end_commit(running[0], None)
        wal.commit()
        wrote = time.perf_counter() - began

    maps = SegmentMaps(disk)
    reads = []
    for _ in range(2):
        reader = Reader(maps, folder, incarnation, 0)
        began = time.perf_counter()
        found = 0
        while records := reader.read(wal.durable_end, 1 << 20):
            found += len(records)
        reads.append((time.perf_counter() - began) / found)
        assert found == batches
    wal.close()
    began = time.perf_counter()
    wal = opened()
    recovery = time.perf_counter() - began
    assert wal.next_offset == sequence
    wal.close()
    maps.clear()
    remove_log(disk, folder)
    return {
        "batch_bytes": size * count,
        "batches": batches,
        "spare_segments": spares,
        "append_us_p50": quantile(appends, 0.5),
        "append_us_p99": quantile(appends, 0.99),
        "commits": len(commits),
        "commit_us_p50": quantile(commits, 0.5),
        "commit_us_p99": quantile(commits, 0.99),
        "write_megabytes_per_second": round(batches * size * count / wrote / 1e6, 1),
        "read_us_first": round(reads[0] * 1e6, 2),
        "read_us_again": round(reads[1] * 1e6, 2),
        "recovery_ms": round(recovery * 1e3, 2),
    }


def main() -> None:
    """Measure with and without spare segments, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-bytes", type=int, default=64 << 10)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--group", type=int, default=4, help="wait for the commit after so many batches")
    parser.add_argument("--folder", default=".", help="where the log is made, and removed")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-log-") as folder:
        rows = [
            measure(f"{folder}/log", given.batch_bytes, given.megabytes, given.group, spares)
            for spares in (True, False)
        ]
    if given.json:
        print(json.dumps({"log": rows}))
        return
    for name in rows[0]:
        print(f"{name:30}" + "".join(f"{row[name]!s:>14}" for row in rows))


if __name__ == "__main__":
    main()
