"""How do throughput and CPU time grow with workers, on many topics and on one hot topic with many subscriptions?

    python benchmarks/scaling.py [--workers 1,2,4,8,16] [--rounds 3] [--bytes 1024] [--json FILE]

Two modes, with producers and consumers in proportion to the workers:

- many topics: for each worker two topics, each with a producer's process and a consumer's process of its own
- hot topic: one topic with one producer, and for each worker two subscriptions, each in a process of its own

Throughput is of messages delivered in all, from the first message sent to the last one acknowledged. CPU seconds are of
all processes of a kind, for a million messages delivered. Without `--workers`, as many as leave a core for each worker
are measured, and always 1 and 2: with fewer cores than processes the throughput says what the machine can do, and only
the CPU seconds say how the broker scales. One topic is one worker's work, however many there are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from against import warm_memory
from arguments import made_folder, output, whole, wholes
from workloads import Child, Party

from ister.bench.about import about, in_words
from ister.bench.results import document, result
from ister.bench.run import file_system_of

WORKERS: Final = (1, 2, 4, 8, 16)
PER_WORKER: Final = 2
SUBSCRIPTIONS_MAX: Final = 64
MODES: Final = {
    "topics": "many topics, two for each worker",
    "hot": "one hot topic, two subscriptions for each worker",
}


def sensible(cores: int) -> list[int]:
    """Return the numbers of workers to measure on a machine: 1, 2, and those that leave cores for their clients."""
    return [count for count in WORKERS if count <= max(2, cores // 2)]


def consumers_of(workers: int) -> int:
    """Return how many consumers there are in both modes."""
    return min(PER_WORKER * workers, SUBSCRIPTIONS_MAX)


def run(mode: str, workers: int, messages: int, size: int, batch: int, data: str) -> dict[str, float]:
    """Measure a mode once, after a warm-up of a fifth; `messages` are what each producer sends."""
    pairs = PER_WORKER * workers
    with ExitStack() as stack:
        party = Party(stack, data, workers=workers)
        producers = [party.child("producer") for _ in range(pairs if mode == "topics" else 1)]
        consumers = [party.child("consumer") for _ in range(consumers_of(workers))]
        for turn, count in (("warm-up", max(100, messages // 5)), ("measured", messages)):
            topics = [f"{turn}/{number}" for number in range(len(producers))]
            for topic in topics:
                party.client.create_topic(topic)
            for number, consumer in enumerate(consumers):
                _consume(consumer, topics[number % len(topics)], f"s{number}", count, batch)
            for producer, topic in zip(producers, topics, strict=True):
                producer.tell("publish", topic=topic, messages=count, size=size, batch=batch)
                producer.answer()
            before = party.cpu()
            for producer in producers:
                producer.go()
            sent = [producer.answer() for producer in producers]
            got = [consumer.answer() for consumer in consumers]
            after = party.cpu()
            for consumer in consumers:
                consumer.go()
                consumer.answer()
            for topic in topics:
                party.client.delete_topic(topic)
    delivered = sum(each["messages"] for each in got)
    if delivered != messages * len(consumers):
        raise RuntimeError(f"{delivered} of {messages * len(consumers)} messages were delivered")
    seconds = (max(each["ended"] for each in got) - min(each["began"] for each in sent)) / 1e9
    used = {role: (after[role] - before[role]) / 1e9 for role in after}
    million = delivered / 1e6
    return {
        "messages_per_second": round(delivered / seconds),
        "cpu_seconds_per_million": round(sum(used.values()) / million, 3),
        **{f"cpu_{role}_us": round(seconds / million, 3) for role, seconds in used.items()},
    }


def _consume(consumer: Child, topic: str, subscription: str, messages: int, batch: int) -> None:
    consumer.tell(
        "consume", topic=topic, subscription=subscription, messages=messages, batch=batch > 0, paced=False
    )
    consumer.answer()


def main() -> int:
    """Measure, and print a table."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--workers", type=wholes, help="numbers of workers, with commas between")
    parse.add_argument("--rounds", type=whole, default=3)
    parse.add_argument("--messages", type=whole, default=100_000, help="of each producer")
    parse.add_argument("--bytes", type=whole, default=1024)
    parse.add_argument(
        "--batch", type=int, default=64, help="messages of a batch call; 0: one call a message"
    )
    parse.add_argument("--data", type=made_folder, default=".")
    parse.add_argument("--json", type=output, metavar="FILE")
    parse.add_argument("--no-warm-memory", action="store_true")
    given = parse.parse_args()
    cores = os.cpu_count() or 1
    workers = given.workers or sensible(cores)
    left_out = [count for count in WORKERS if count not in workers]
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if not given.no_warm_memory:
        warm_memory()
    told = about(file_system_of(given.data), rounds=given.rounds)
    print(in_words(told), flush=True)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    failed: set[tuple[str, int]] = set()
    for number in range(given.rounds):
        for count in workers if number % 2 == 0 else reversed(workers):
            for mode in MODES:
                if (mode, count) in failed:
                    continue
                try:
                    one = run(mode, count, given.messages, given.bytes, given.batch, given.data)
                except Exception as error:  # noqa: BLE001  (the others are measured all the same)
                    failed.add((mode, count))
                    print(
                        f"FAILED: {mode}, {count} workers: {error or repr(error)}",
                        file=sys.stderr,
                        flush=True,
                    )
                    continue
                found.setdefault((mode, count), []).append(one)
    head = f"{'workers':>8}{'delivered/s':>14}{'rounds':>26}{'CPU s a million':>18}"
    head += "  of which worker / producer / consumer"
    entries: list[dict[str, Any]] = []
    for mode, words in MODES.items():
        print(f"\n{words}\n{head}")
        for count in workers:
            if (mode, count) in failed:
                continue
            rounds = found[mode, count]
            middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
            rates = [each["messages_per_second"] for each in rounds]
            parts = " / ".join(
                f"{middle[f'cpu_{role}_us']:.2f}" for role in ("worker", "producer", "consumer")
            )
            spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
            print(
                f"{count:>8}{middle['messages_per_second']:>14,.0f}{spread:>26}"
                f"{middle['cpu_seconds_per_million']:>18.2f}  {parts}"
            )
            name = f"scaling {mode} {count}"
            what = f"{words}: {count} workers, {given.bytes:,} B"
            entries.append(
                result(
                    name,
                    what,
                    rounds,
                    group="scaling",
                    durability="fsync",
                    series=words,
                    x=count,
                    seconds=[
                        given.messages * consumers_of(count) / each["messages_per_second"] for each in rounds
                    ],
                )
            )
    if left_out:
        print(
            f"\nleft out: {', '.join(map(str, left_out))} workers, more than {cores} cores can show (--workers)"
        )
    if given.json:
        Path(given.json).write_text(json.dumps(document(told, entries), indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
