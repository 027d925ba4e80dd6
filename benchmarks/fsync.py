"""What does it cost to make batches of many topics durable: file by file, in threads, or all together?

    python benchmarks/fsync.py [--files 1,10,100,1000] [--bytes 100,4096,65536] [--beside MB] [--folder DIR] [--json]

Each round appends one batch to each of n files whose blocks were written before, as segments are; the time from there
until all of it is durable is measured. The ways:

- serial: fdatasync, one file after the other
- pool k: the same in k threads that take the next file from one queue
- syncfs: one syncfs(2) for the file system. Linux reports its write errors since 5.8. It also waits for unsynced writes
  of other programs: with `--beside` another process writes so many MB per second meanwhile.
- journal: the batches are written once more, into one file of the process's own, and that is synced; their own files
  are written back by the kernel later (which is not in the time, and slows down later rounds)

sync_file_range(2) is no alternative: it does not flush the disk's cache, so it promises nothing after a power failure.
Times are medians; writes and flushes are the disk's own counts (Linux), and CPU is the whole machine's, kernel threads
included, so both are useful only on an idle machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from arguments import above_zero, made_folder, wholes

REGION_BYTES: Final = 256 << 10  # of each file, overwritten again and again; 1,000 files are 256 MB
JOURNAL_BYTES: Final = 128 << 20
IOV_MAX: Final = 1024
ROUNDS_MAX: Final = 400
WARM_UP: Final = 3

Sync = Callable[[Sequence[int], bytes], None]


class Pool:
    """Threads that sync files, each taking the next one from a queue."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._work: SimpleQueue[deque[int] | None] = SimpleQueue()
        self._done = threading.Semaphore(0)
        for _ in range(threads):
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (left := self._work.get()) is not None:
            try:
                while True:
                    os.fdatasync(left.popleft())
            except IndexError:
                self._done.release()

    def sync(self, files: Sequence[int], _: bytes) -> None:
        """Sync all of them."""
        left, threads = deque(files), min(self.threads, len(files))
        for _thread in range(threads):
            self._work.put(left)
        for _thread in range(threads):
            self._done.acquire()

    def close(self) -> None:
        """End the threads."""
        for _ in range(self.threads):
            self._work.put(None)


class Journal:
    """One file for the batches of all topics; when it is full it starts again at its beginning, as a real one would."""

    def __init__(self, folder: str) -> None:
        self._fd = os.open(f"{folder}/journal", os.O_RDWR | os.O_CREAT, 0o644)
        for position in range(0, JOURNAL_BYTES, 1 << 20):
            os.pwrite(self._fd, bytes(1 << 20), position)
        os.fsync(self._fd)
        self._end = 0

    def sync(self, files: Sequence[int], batch: bytes) -> None:
        """Write one batch per file, and sync."""
        if self._end + len(files) * len(batch) > JOURNAL_BYTES:
            self._end = 0
        for first in range(0, len(files), IOV_MAX):
            some = [batch] * min(IOV_MAX, len(files) - first)
            self._end += os.pwritev(self._fd, some, self._end)
        os.fdatasync(self._fd)


def _serial(files: Sequence[int], _: bytes) -> None:
    for fd in files:
        os.fdatasync(fd)


def _syncfs(folder: str) -> Sync | None:
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        return None
    fd = os.open(folder, os.O_RDONLY)

    def sync(_files: Sequence[int], _: bytes) -> None:
        if library.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs failed")

    return sync


def device_of(folder: str) -> str | None:
    """Return the kernel's file with the counts of the disk below `folder`, or None."""
    device = os.stat(folder).st_dev
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    return path if Path(path).exists() else None


def _counts(device: str | None) -> tuple[int, int]:
    if device is None:
        return 0, 0
    fields = Path(device).read_text("ascii").split()
    return int(fields[4]), int(fields[15]) if len(fields) > 15 else 0


def _cpu_ms() -> float:
    """Return how long the machine's cores were busy, without waiting for disks."""
    if not Path("/proc/stat").exists():
        return time.process_time() * 1000
    fields = [int(field) for field in Path("/proc/stat").read_text("ascii").split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) * 1000 / os.sysconf("SC_CLK_TCK")


def _files(folder: str, count: int) -> list[int]:
    fds = []
    for number in range(count):
        fd = os.open(f"{folder}/{number:04}", os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(fd, bytes(REGION_BYTES), 0)
        fds.append(fd)
    os.sync()
    return fds


def measure(
    sync: Sync, files: Sequence[int], size: int, seconds: float, device: str | None
) -> dict[str, Any]:
    """Run rounds for `seconds` and return their figures, in milliseconds and counts per round."""
    times: list[float] = []
    position, batch = 0, os.urandom(size)
    until, before, cpu = 0.0, (0, 0), 0.0
    for turn in range(ROUNDS_MAX + WARM_UP):
        if turn == WARM_UP:
            until, before, cpu = time.perf_counter() + seconds, _counts(device), _cpu_ms()
        for fd in files:
            os.pwrite(fd, batch, position)
        position = (position + size) % (REGION_BYTES - size + 1)
        began = time.perf_counter()
        sync(files, batch)
        ended = time.perf_counter()
        if turn >= WARM_UP:
            times.append((ended - began) * 1000)
            if ended > until and len(times) >= 5:
                break
    after, rounds = _counts(device), len(times)
    return {
        "ms_p50": round(statistics.median(times), 3),
        "ms_max": round(max(times), 3),
        "writes": round((after[0] - before[0]) / rounds, 1),
        "flushes": round((after[1] - before[1]) / rounds, 1),
        "cpu_ms": round((_cpu_ms() - cpu) / rounds, 2),
        "rounds": rounds,
    }


def _write_beside(folder: str, megabytes: float) -> None:
    """Write so many MB per second into one file, and never sync, like a copy, a download or a backup."""
    fd = os.open(f"{folder}/beside", os.O_RDWR | os.O_CREAT, 0o644)
    chunk, position, began = os.urandom(1 << 20), 0, time.monotonic()
    while True:
        os.pwrite(fd, chunk, position % (1 << 30))
        position += len(chunk)
        time.sleep(max(0.0, began + position / 1e6 / megabytes - time.monotonic()))


@contextmanager
def beside(folder: str, megabytes: float) -> Iterator[None]:
    """Let another process write, if `megabytes` (per second) is not 0."""
    if not megabytes:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(
        target=_write_beside, args=(folder, megabytes), daemon=True
    )
    process.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        process.terminate()
        process.join()


def main() -> None:
    """Measure every way with every number of files and every size, and print one table."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--files", type=wholes, default=[1, 10, 100, 1000])
    parse.add_argument("--bytes", type=wholes, default=[100, 4096, 65536], help="of a batch")
    parse.add_argument("--threads", type=wholes, default=[2, 4, 8, 16])
    parse.add_argument("--seconds", type=above_zero, default=0.7, help="a figure")
    parse.add_argument("--beside", type=float, default=0.0, help="MB/s that another process writes meanwhile")
    parse.add_argument("--folder", type=made_folder, default=".", help="where the files are made")
    parse.add_argument("--json", action="store_true")
    given = parse.parse_args()
    counts, sizes = given.files, given.bytes
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="fsync-") as folder:
        pools = {f"pool {k}": Pool(k) for k in given.threads}
        ways: dict[str, Sync | None] = {"serial": _serial}
        ways |= {name: pool.sync for name, pool in pools.items()}
        ways |= {"syncfs": _syncfs(folder), "journal": Journal(folder).sync}
        fds, device = _files(folder, max(counts)), device_of(folder)
        with beside(folder, given.beside):
            for size in sizes:
                for count in counts:
                    for name, sync in ways.items():
                        if sync is not None:
                            figures = measure(sync, fds[:count], size, given.seconds, device)
                            rows.append({"bytes": size, "files": count, "way": name, **figures})
        for pool in pools.values():
            pool.close()
    if given.json:
        print(json.dumps({"beside_mb_s": given.beside, "rows": rows}))
        return
    print(
        f"{'bytes':>6} {'files':>5} {'way':8} {'ms':>9} {'max ms':>9} {'writes':>8} {'flushes':>8} {'CPU ms':>8}"
    )
    for row in rows:
        print(
            f"{row['bytes']:>6} {row['files']:>5} {row['way']:8} {row['ms_p50']:>9.3f} {row['ms_max']:>9.3f} "
            f"{row['writes']:>8.1f} {row['flushes']:>8.1f} {row['cpu_ms']:>8.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
