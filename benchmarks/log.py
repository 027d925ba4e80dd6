"""How long do append, commit, read and recovery of the log take, and what do prepared segments save?

    python benchmarks/log.py [--batch-bytes 65536] [--megabytes 256] [--group 4] [--folder DIR] [--json]
    python benchmarks/log.py --recovery-gib 2           how long do opening, searching, verifying and trimming take?
    python benchmarks/log.py --cursor-holes 1000000     what does a cursor with this many ranges cost?

Batches are appended in groups; a group is committed in a thread while the next is appended, as a topic does. The second
row is without spare segments. Everything is read back through memory maps twice, and the log is opened again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import tracemalloc
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import above_zero, made_folder, whole

from ister.clock import SystemClock
from ister.storage.cursor_journal import CursorJournal
from ister.storage.disk import LocalDisk
from ister.storage.reader import Reader
from ister.storage.segment_maps import SegmentMaps
from ister.storage.trim import remove_log
from ister.storage.verify import verify_log
from ister.storage.wal import Wal, WalSettings

MESSAGE_BYTES = 1024


def quantile(times: list[float], part: float) -> float:
    """Return a quantile of seconds, in microseconds."""
    return round(sorted(times)[int(len(times) * part)] * 1e6, 1) if times else 0.0


def measure(folder: str, batch_bytes: int, megabytes: int, group: int, spares: bool) -> dict[str, Any]:
    """Run one log from creation to reopening, and return the measurements."""
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


def drop_caches() -> bool:
    """Empty the page cache, if this user may; return whether it was."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        return False
    return True


def measure_recovery(folder: str, gib: float) -> dict[str, Any]:
    """Create a log of this many GiB, open it with and without a page cache, search a time, verify and trim it."""
    disk, clock, incarnation = LocalDisk(), SystemClock(), bytes(range(16))
    frames = [(array("I", [MESSAGE_BYTES]) * 64).tobytes(), os.urandom(64 * MESSAGE_BYTES)]

    def opened() -> Wal:
        return Wal.open(
            disk, folder, topic="bench", incarnation=incarnation, settings=WalSettings(), clock=clock
        )

    def timed(work: Any) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    wal = opened()
    batches = int(gib * (1 << 30)) // (64 * MESSAGE_BYTES)
    for number in range(batches):
        wal.append(
            count=64,
            producer_id=number % 50 + 1,
            sequence=number // 50 * 64,
            columns=0,
            frames=frames,
            timestamp_ms=number,
        )
        if number % 64 == 0:
            wal.commit()
    wal.commit()
    segments, size, end = len(wal.sealed()) + 1, sum(info.bytes for info in wal.sealed()), wal.durable_end
    wal.close()
    cold = drop_caches()
    row: dict[str, Any] = {
        "gib": round(size / (1 << 30), 2),
        "segments": segments,
        "page_cache_dropped": cold,
    }
    for name in ("open_s_first", "open_s_again"):
        began = time.perf_counter()
        wal = opened()
        row[name] = round(time.perf_counter() - began, 3)
        assert wal.next_offset == end
        if name == "open_s_first":
            wal.close()
    row["open_gb_per_second"] = round(size / row["open_s_first"] / 1e9, 1)
    row["bytes_scanned"] = wal.report.bytes_scanned
    maps = SegmentMaps(disk)
    times: list[float] = []
    for number in [*range(200), *range(200)]:  # the first 200 from the disk
        reader = Reader(maps, folder, incarnation, 0)
        wanted = batches * number // 200
        began = time.perf_counter()
        found = reader.seek_time(wanted, end)
        reader.read(end, 1)
        times.append(time.perf_counter() - began)
        assert found == 64 * wanted
    row["seek_time_us_p50_first"], row["seek_time_us_p50_again"] = (
        quantile(times[:200], 0.5),
        quantile(times[200:], 0.5),
    )
    maps.clear()
    drop_caches()
    row["verify_gb_per_second"] = round(
        size / timed(lambda: list(verify_log(disk, folder, incarnation))) / 1e9, 2
    )
    row["trim_all_s"] = round(timed(lambda: wal.trim(end)), 3)
    wal.close()
    remove_log(disk, folder)
    return row


def measure_cursor(folder: str, holes: int) -> dict[str, Any]:
    """Acknowledge every second message, a thousand per flush, and open the journal again."""
    disk, incarnation, path = LocalDisk(), bytes(range(16)), f"{folder}/cursor"
    journal = CursorJournal.open(disk, path, incarnation, 0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    longest = 0
    for number in range(holes):
        journal.note(2 * number + 1, 2 * number + 2)
        if number % 1000 == 999:
            journal.flush()
            journal.compact()
            longest = max(longest, journal.size)
    memory = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    journal.close()
    began = time.perf_counter()
    journal = CursorJournal.open(disk, path, incarnation, 0)
    again = time.perf_counter() - began
    assert len(journal.cursor.ranges) == holes
    rate = min(holes, 200_000)
    began = time.perf_counter()
    for number in range(rate):
        journal.note(2 * (holes + number) + 1, 2 * (holes + number) + 2)
    noted = time.perf_counter() - began
    journal.flush()
    began = time.perf_counter()
    journal.note(0, 2 * (holes + rate) + 2)  # the holes close
    closed = time.perf_counter() - began
    journal.flush()
    compacted = journal.compact()
    row = {
        "ranges": holes,
        "memory_bytes_per_range": round(memory / holes, 1),
        "journal_megabytes_max": round(longest / 1e6, 1),
        "open_s": round(again, 3),
        "note_ns": round(noted / rate * 1e9),
        "close_all_ms": round(closed * 1e3, 2),
        "journal_bytes_after": journal.size if compacted else None,
    }
    journal.close()
    return row


def main() -> None:
    """Measure with and without spare segments, or opening, or a cursor; print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-bytes", type=whole, default=64 << 10)
    parser.add_argument("--megabytes", type=whole, default=256)
    parser.add_argument("--group", type=whole, default=4, help="wait for the commit after so many batches")
    parser.add_argument("--folder", type=made_folder, default=".", help="where the log is made, and removed")
    parser.add_argument("--recovery-gib", type=above_zero, help="measure opening a log of this size instead")
    parser.add_argument("--cursor-holes", type=whole, help="measure a cursor of so many ranges instead")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-log-") as folder:
        if given.recovery_gib:
            rows = [measure_recovery(f"{folder}/log", given.recovery_gib)]
        elif given.cursor_holes:
            rows = [measure_cursor(folder, given.cursor_holes)]
        else:
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
