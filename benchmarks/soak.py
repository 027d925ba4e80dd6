"""Does a broker that runs for long keep its descriptors, maps, memory and disk usage constant?

    python benchmarks/soak.py [--minutes 20] [--workers 2] [--every 60] [--data FOLDER] [--json FILE]

A broker of its own with a store in a folder, little of which stays in the local log, and clients beside it in this
process, all at once:

    large     messages of 200 KB with keys to three Key-Shared consumers, of which one is slow and one comes and goes
    small     batches of 1 KiB messages, Shared; consumers come and go, with what they hold
    ordered   4 KiB messages to an Exclusive subscription, and a reader that reads the history again and again
    live      a non-reliable topic with a consumer that stops reading for seconds
    brief     topics that are created, used with a subscription, and deleted

Every topic has a retention, so that nothing may keep growing. Every minute (`--every`, seconds) it prints a line for
each process: descriptors, maps of segments and how many of their files are deleted, RSS and its anonymous part (MB),
and the size of the data folder. At the end the median of the second quarter of the run is compared with that of the
last one: growth by a fifth, and a little more, is allowed. Exit code 1 if something grew by more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from arguments import above_zero, made_folder, output, whole

import ister
from ister.errors import IsterError
from ister.ownbroker import OwnBroker

MB: Final = 1 << 20
LARGE_BYTES, SMALL_BYTES, ORDERED_BYTES = 200_000, 1024, 4096
RETENTION: Final = {"large": 96 * MB, "small": 32 * MB, "ordered": 64 * MB}
SETTINGS: Final = {
    "log.local_bytes": 24 * MB,
    "log.segment_age_ms_max": 5_000,
    "tier.cache_bytes_max": 64 * MB,
    "tier.orphan_grace_ms": 60_000,
}
SAMPLE_S: Final = 5.0
# What may be added to a fifth: pools that fill only when all threads have been busy once, the allocator's own.
SLACK: Final = {
    "descriptors": 16,
    "maps": 48,
    "deleted": 24,
    "rss_mb": 48.0,
    "anon_mb": 32.0,
    "disk_mb": 96.0,
}


class Sample(NamedTuple):
    """The measurements of a process at a time."""

    descriptors: int
    maps: int
    deleted: int
    rss_mb: float
    anon_mb: float


def sample_of(pid: int) -> Sample:
    """Measure a process. Raises OSError if it is gone."""
    process = Path(f"/proc/{pid}")
    maps = [line for line in (process / "maps").read_text().splitlines() if ".seg" in line]
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Sample(
        len(list((process / "fd").iterdir())),
        len(maps),
        sum(line.endswith("(deleted)") for line in maps),
        int(status["VmRSS"].split()[0]) / 1024,
        int(status["RssAnon"].split()[0]) / 1024,
    )


def disk_mb(folder: str) -> float:
    """Return the disk usage of a folder."""
    total = 0
    for root, _, names in os.walk(folder):  # which skips folders that were just deleted
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_blocks * 512
    return total / MB


# ---- the load -------------------------------------------------------------------------------------------------------


class Load:
    """The clients, each a thread that starts over after an error, until it is stopped."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.stopped = threading.Event()
        self.counts: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[ister.Client, str], None]) -> None:
        """Run `work(client, name)` in a thread, again and again."""

        def run() -> None:
            while not self.stopped.is_set():
                try:
                    with ister.connect(self.endpoint) as client:
                        work(client, name)
                except IsterError as error:
                    text = f"{name}: {getattr(error, 'code', '')}"
                    self.errors[text] = self.errors.get(text, 0) + 1
                    self.stopped.wait(0.5)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def count(self, name: str, messages: int = 1) -> None:
        """Count what was done."""
        self.counts[name] = self.counts.get(name, 0) + messages

    def end(self) -> None:
        """Stop all threads."""
        self.stopped.set()
        for thread in self._threads:
            thread.join(20)


def produce(load: Load, topic: str, size: int, each_s: float, burst: int, keys: int) -> Callable[..., None]:
    """Return work that sends bursts of messages to a topic at a fixed pace."""

    def work(client: ister.Client, name: str) -> None:
        payload, number = bytes(size), 0
        with client.producer(topic) as producer:
            while not load.stopped.wait(each_s):
                for _ in range(burst):
                    number += 1
                    receipt = producer.send(payload, key=f"{number % keys}".encode() if keys else None)
                receipt.result(timeout=60)
                load.count(name, burst)

    return work


def consume(
    load: Load, topic: str, subscription: str, kind: Any, *, stay_s: float = 1e9, slow_s: float = 0.0
) -> Callable[..., None]:
    """Return work that consumes for `stay_s` seconds, leaves with what it holds, and comes again."""

    def work(client: ister.Client, name: str) -> None:
        until = time.monotonic() + stay_s
        with client.consumer(topic, subscription=subscription, type=kind, start="earliest") as consumer:
            while time.monotonic() < until and not load.stopped.is_set():
                message = consumer.receive(timeout=0.5)
                if message is None:
                    continue
                load.count(name)
                if slow_s and load.stopped.wait(slow_s):
                    return
                consumer.ack(message)

    return work


def read_again(load: Load, topic: str) -> Callable[..., None]:
    """Return work that reads a topic from its beginning, again and again."""

    def work(client: ister.Client, name: str) -> None:
        with client.reader(topic, start="earliest") as reader:
            until = time.monotonic() + 10
            while time.monotonic() < until and not load.stopped.is_set():
                if reader.receive(timeout=0.5) is not None:
                    load.count(name)
        load.stopped.wait(2)

    return work


def brief_topics(load: Load) -> Callable[..., None]:
    """Return work that creates topics, uses them, and deletes them."""

    def work(client: ister.Client, name: str) -> None:
        number = 0
        while not load.stopped.wait(0.5):
            topic = f"brief-{number % 7}"
            number += 1
            client.create_topic(topic, exist_ok=True)
            with client.producer(topic) as producer:
                producer.send(bytes(1000)).result(timeout=60)
            with client.consumer(topic, subscription="once", type="shared", start="earliest") as consumer:
                message = consumer.receive(timeout=20)
                if message is not None:
                    consumer.ack(message)
            client.delete_topic(topic)
            load.count(name)

    return work


def begin(endpoint: str) -> Load:
    """Create the topics, and start all threads."""
    load = Load(endpoint)
    with ister.connect(endpoint) as client:
        for topic, most in RETENTION.items():
            client.create_topic(topic, retention_bytes=most)
        client.create_topic("live", dispatch="non-reliable")
    load.start("large in", produce(load, "large", LARGE_BYTES, 0.1, 4, 100))
    load.start("large out 1", consume(load, "large", "keys", "key-shared"))
    load.start("large out slow", consume(load, "large", "keys", "key-shared", slow_s=0.5))
    load.start("large out brief", consume(load, "large", "keys", "key-shared", stay_s=7))
    load.start("small in", produce(load, "small", SMALL_BYTES, 0.1, 200, 0))
    load.start("small out 1", consume(load, "small", "work", "shared"))
    load.start("small out brief", consume(load, "small", "work", "shared", stay_s=3))
    load.start("ordered in", produce(load, "ordered", ORDERED_BYTES, 0.1, 20, 10))
    load.start("ordered out", consume(load, "ordered", "all", "exclusive"))
    load.start("ordered again", read_again(load, "ordered"))
    load.start("live in", produce(load, "live", SMALL_BYTES, 0.05, 20, 0))
    load.start("live out", consume(load, "live", "ears", "shared"))
    load.start("live out slow", consume(load, "live", "ears", "shared", slow_s=2.0))
    load.start("brief", brief_topics(load))
    return load


# ---- the verdict ----------------------------------------------------------------------------------------------------


def grown(before: list[float], after: list[float], slack: float) -> bool:
    """Return whether the later values have grown by more than allowed."""
    return median(after) > 1.2 * median(before) + slack


def unflat(samples: dict[str, list[Sample]], disk: list[float]) -> list[str]:
    """Return a sentence for everything that grew from the second quarter of the run to the last."""
    found = []
    columns = {
        (node, field): [float(getattr(each, field)) for each in series]
        for node, series in samples.items()
        for field in Sample._fields
    } | {("data folder", "disk_mb"): disk}
    for (what, field), series in columns.items():
        quarter = max(1, len(series) // 4)
        before, after = series[quarter : 2 * quarter] or series, series[-quarter:]
        if grown(before, after, SLACK[field]):
            found.append(f"{what}: {field} grew from {median(before):.0f} to {median(after):.0f}")
    return found


def _print(elapsed_s: float, samples: dict[str, list[Sample]], disk: list[float], load: Load) -> None:
    handled = sum(load.counts.values())
    print(f"{elapsed_s / 60:6.1f} min  {handled:>10,} messages  data folder {disk[-1]:,.0f} MB", flush=True)
    for node, series in samples.items():
        last = series[-1]
        print(
            f"      {node:10} {last.descriptors:5} descriptors {last.maps:5} maps ({last.deleted} deleted)"
            f"  rss {last.rss_mb:7.1f} MB  anon {last.anon_mb:7.1f} MB",
            flush=True,
        )


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=above_zero, default=20.0)
    parser.add_argument("--workers", type=whole, default=2)
    parser.add_argument("--every", type=above_zero, default=60.0, help="seconds between lines")
    parser.add_argument(
        "--data", type=made_folder, help="a folder for the broker; a temporary one if not given"
    )
    parser.add_argument("--json", type=output, help="write all samples to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ister-soak-", ignore_cleanup_errors=True) as temporary:
        return _soak(given, given.data or temporary)


def _soak(given: argparse.Namespace, folder: str) -> int:
    samples: dict[str, list[Sample]] = {}
    disk: list[float] = []
    died: list[str] = []
    with OwnBroker(f"{folder}/data", f"{folder}/log", workers=given.workers, settings=SETTINGS) as broker:
        with ister.connect(broker.endpoint) as client:
            pids = {each["node"]: each["pid"] for each in client.status()["processes"]}
        load = begin(broker.endpoint)
        began, printed = time.monotonic(), -1e9
        while (elapsed := time.monotonic() - began) < given.minutes * 60 and not died:
            for node, pid in pids.items():
                try:
                    samples.setdefault(node, []).append(sample_of(pid))
                except OSError:
                    died.append(f"{node}: it died")
            disk.append(disk_mb(f"{folder}/data"))
            if elapsed - printed >= given.every:
                printed = elapsed
                _print(elapsed, samples, disk, load)
            time.sleep(SAMPLE_S)
        _print(time.monotonic() - began, samples, disk, load)
        load.end()
        log = Path(broker.log).read_text()
    tracebacks = log.count("Traceback")
    found = died + unflat(samples, disk)
    if tracebacks:
        found.append(f"the broker logged {tracebacks} tracebacks")
    silent = [
        name
        for name in ("large out 1", "small out 1", "ordered out", "live out", "brief")
        if not load.counts.get(name)
    ]
    found += [f"{name}: nothing came" for name in silent]
    print("messages:", ", ".join(f"{name} {count:,}" for name, count in sorted(load.counts.items())))
    if load.errors:
        print("errors:", ", ".join(f"{text} {count}" for text, count in sorted(load.errors.items())))
    if given.json:
        document = {
            "samples": samples,
            "disk_mb": disk,
            "counts": load.counts,
            "errors": load.errors,
            "grown": found,
        }
        Path(given.json).write_text(json.dumps(document))
    for line in found:
        print(f"NOT FLAT: {line}")
    if not found:
        print("flat")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
