"""What does one workload reach with the Ister that this Python imports: rate, latency, CPU time by process?

    python benchmarks/workloads.py --list
    python benchmarks/workloads.py message-1k [--scale 0.1] [--data DIR]

Runs one row once, with a broker, producer and consumers of its own, and prints one JSON object. It uses the public API
and the command line alone, so that the same file drives any version: `against.py` starts it with the Python of each
checkout. Every row warms up first with the same load, in the same processes.

CPU times are those of whole processes in nanoseconds, read from the process's CPU clock, over the measured part.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from arguments import above_zero, made_folder

import ister
from ister.ownbroker import OwnBroker

PATIENCE_S: Final = 300.0
STRAGGLER_S: Final = 10.0  # non-reliable: what has not come this long after the last was sent was dropped
SPIN_NS: Final = 80_000  # before a message is due: timers of virtual machines wake that late
BUFFER: Final = {  # a non-reliable run fits, so that transfer is measured, not drops
    "subscription.buffer_messages_max": 100_000_000,
    "subscription.buffer_bytes_max": 4 << 30,
}
now: Final = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what is measured, and which figures are compared; True: more is better."""

    name: str
    what: str
    figures: Mapping[str, bool]
    run: Callable[[float, str], dict[str, Any]] = field(compare=False)


# ---- processes --------------------------------------------------------------------------------------------------


def cpu_ns(pid: int) -> int:
    """Return the CPU time that a process has used, all its threads together (Linux: its CPU clock)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


class Child:
    """A client's process: does jobs, functions of this file, with a client of its own."""

    def __init__(self, endpoint: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, endpoint), daemon=True)
        self._process.start()
        theirs.close()
        self.answer()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def tell(self, job: str, **arguments: Any) -> None:
        """Start a job."""
        self.pipe.send((job, arguments))

    def go(self) -> None:
        """Let a job that is ready begin, or stop one that waits."""
        self.pipe.send("go")

    def answer(self, within_s: float = PATIENCE_S) -> Any:
        """Return what the job says next, or raise what it failed with."""
        if not self.pipe.poll(within_s):
            raise TimeoutError(f"a client's process said nothing for {within_s:.0f} s")
        said = self.pipe.recv()
        if isinstance(said, BaseException):
            raise said
        return said

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, endpoint: str) -> None:
    try:
        with ister.connect(endpoint, timeout=30) as client:
            pipe.send("up")
            while True:
                job, arguments = pipe.recv()
                try:
                    pipe.send(JOBS[job](pipe, client, **arguments))
                except Exception as error:  # noqa: BLE001  (told to the parent, which raises it)
                    pipe.send(RuntimeError(f"{job}: {error!r}"))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


class Party:
    """A broker, an administrator's client, and the processes of clients."""

    def __init__(self, stack: ExitStack, data: str, *, workers: int = 1, **settings: Any) -> None:
        self._stack = stack
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(dir=data, prefix="bench-"))
        named = {name.replace("__", "."): value for name, value in settings.items()}
        broker = OwnBroker(
            f"{self.folder}/data", f"{self.folder}/log", workers=workers, settings={**BUFFER, **named}
        )
        self.broker = stack.enter_context(broker)
        self.client = stack.enter_context(ister.connect(broker.endpoint, timeout=30))
        self.pids: dict[str, list[int]] = {}
        for process in self.client.status()["processes"]:
            self.pids.setdefault(process["role"], []).append(process["pid"])

    def child(self, role: str) -> Child:
        """Start a client's process."""
        child = Child(self.broker.endpoint)
        self._stack.callback(child.close)
        self.pids.setdefault(role, []).append(child.pid)
        return child

    def cpu(self) -> dict[str, int]:
        """Return the CPU time used so far, by role, in ns."""
        return {role: sum(map(cpu_ns, pids)) for role, pids in self.pids.items()}


@contextmanager
def _party(data: str, **settings: Any) -> Iterator[Party]:
    with ExitStack() as stack:
        yield Party(stack, data, **settings)


@contextmanager
def _emulated() -> Iterator[dict[str, str]]:
    """Run an emulator of Google Cloud Storage; yield the settings of a broker that stores there."""
    from tests.gcs.emulator import running  # of the checkout that is measured

    with running() as emulator:
        emulator.make_bucket("ister-bench")
        os.environ["STORAGE_EMULATOR_HOST"] = emulator.url
        try:
            yield {"server__store": "gs://ister-bench/bench"}
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]


def per_message(before: Mapping[str, int], after: Mapping[str, int], messages: int) -> dict[str, float]:
    """Return the CPU time of a message by role, in us."""
    return {role: round((after[role] - before[role]) / 1e3 / messages, 3) for role in after}


def seconds_of(found: Mapping[str, Any]) -> float:
    """Return how long a row was measured, without its warm-up."""
    return float(found.get("seconds") or found["messages"] / max(1, found["messages_per_second"]))


def percentiles(name: str, ns: list[int]) -> dict[str, float]:
    """Return p50 and p99 of times in ns, in us; each was measured."""
    ns = sorted(ns)
    return {
        f"{name}_{label}_us": round(ns[min(len(ns) - 1, int(len(ns) * part))] / 1e3, 1)
        for label, part in (("p50", 0.5), ("p99", 0.99))
    }


# ---- jobs of clients' processes ---------------------------------------------------------------------------------


def _send_messages(producer: ister.Producer, payload: bytes, messages: int, _per_batch: int) -> None:
    send = producer.send
    for _ in range(messages):
        send(payload)


def mixed(size: int) -> list[bytes]:
    """Return payloads from a tenth of a size to nearly twice it, in an order that has nothing to do with batches."""
    longest = bytes(2 * size)
    return [longest[: size * (10 + 37 * number % 97 * 2) // 100] for number in range(97)]


def _send_mixed(producer: ister.Producer, payload: bytes, messages: int, _per_batch: int) -> None:
    send, payloads = producer.send, mixed(len(payload))
    for first in range(0, messages, len(payloads)):
        for each in payloads[: messages - first]:
            send(each)


def _send_batches(producer: ister.Producer, payload: bytes, messages: int, per_batch: int) -> None:
    for first in range(0, messages, per_batch):
        producer.send_batch([payload] * min(per_batch, messages - first))


def publish(
    pipe: Connection,
    client: ister.Client,
    topic: str,
    messages: int,
    size: int,
    batch: int,
    sizes: str = "one",
) -> dict[str, int]:
    """Send messages, one call each or one a batch of `batch`, and wait for all receipts."""
    with client.producer(topic) as producer:
        pipe.send("ready")
        pipe.recv()
        began = now()
        send = _send_mixed if sizes == "mixed" else _send_batches if batch else _send_messages
        send(producer, bytes(size), messages, batch)
        producer.flush(PATIENCE_S)
        return {"began": began, "ended": now()}


def publish_frames(
    _pipe: Connection, client: ister.Client, topic: str, messages: int, size: int
) -> dict[str, int]:
    """Send messages, each in a frame of its own, without waiting for receipts between them."""
    with client.producer(topic, batch_bytes=1, linger_ms=0) as producer:
        began = now()
        payload = bytes(size)
        for _ in range(messages):
            producer.send(payload)
        producer.flush(PATIENCE_S)
        return {"began": began, "ended": now()}


def publish_lone(
    _pipe: Connection, client: ister.Client, topic: str, messages: int, size: int
) -> dict[str, Any]:
    """Send a message, wait for its receipt, send the next."""
    with client.producer(topic) as producer:
        payload = bytes(size)
        took = []
        began = last = now()
        for _ in range(messages):
            producer.send(payload).result(30)
            at = now()
            took.append(at - last)
            last = at
        return {"began": began, "ended": last, "took": took}


def publish_paced(
    pipe: Connection, client: ister.Client, topic: str, messages: int, size: int, rate: float
) -> dict[str, Any]:
    """Send each message when it is due, with that time in it; note when its receipt comes."""
    rest = bytes(size - 8)
    took: list[int] = []
    note = took.append
    with client.producer(topic) as producer:
        pipe.send("ready")
        pipe.recv()
        began = now() + 1_000_000
        for number in range(messages):
            due = began + int(number * 1e9 / rate)
            wait = due - now() - SPIN_NS
            if wait > 0:
                time.sleep(wait / 1e9)
            while now() < due:
                pass
            receipt = producer.send(due.to_bytes(8, "little") + rest)
            receipt.add_done_callback(lambda _receipt, due=due: note(now() - due))
        producer.flush(PATIENCE_S)
    return {"took": took}


def publish_topics(
    pipe: Connection, client: ister.Client, topics: int, messages: int, size: int, batch: int
) -> dict[str, int]:
    """Send a batch to each topic in turn until `messages` are sent."""
    producers = [client.producer(f"t/{number}") for number in range(topics)]
    payloads = [bytes(size)] * batch
    for producer in producers:
        producer.send_batch(payloads).result(PATIENCE_S)
    pipe.send("ready")
    pipe.recv()
    began = now()
    for _ in range(messages // (topics * batch)):
        for producer in producers:
            producer.send_batch(payloads)
    for producer in producers:
        producer.flush(PATIENCE_S)
    ended = now()
    for producer in producers:
        producer.close()
    return {"began": began, "ended": ended}


def publish_once(_pipe: Connection, client: ister.Client, first: int, topics: int, size: int) -> str:
    """Create topics and send one message to each."""
    for number in range(first, first + topics):
        client.create_topic(f"many/{number}")
        with client.producer(f"many/{number}") as producer:
            producer.send(bytes(size)).result(PATIENCE_S)
    return "done"


def fill(
    _pipe: Connection, client: ister.Client, topic: str, messages: int, size: int, keys: int
) -> dict[str, int]:
    """Send keyed messages in batches of a thousand."""
    with client.producer(topic) as producer:
        for first in range(0, messages, 1000):
            count = min(1000, messages - first)
            names = [b"key-%d" % ((first + n) * 7919 % keys) for n in range(count)]
            producer.send_batch([bytes(size)] * count, keys=names)
        producer.flush(PATIENCE_S)
    return {}


def consume(
    pipe: Connection,
    client: ister.Client,
    topic: str,
    subscription: str,
    messages: int,
    batch: bool,
    paced: bool,
) -> dict[str, Any]:
    """Take and acknowledge messages until the last; told to go meanwhile, stop with what there is."""
    with client.consumer(topic, subscription, type="exclusive", start="earliest") as consumer:
        pipe.send("ready")
        done = threading.Event()
        threading.Thread(target=_stop_when_told, args=(pipe, consumer, done), daemon=True).start()
        take = _take_paced if paced else _take_batches if batch else _take_messages
        found = take(consumer, messages - 1)
        pipe.send(found)
        done.wait(PATIENCE_S)
    return {}


def _stop_when_told(pipe: Connection, consumer: ister.Consumer, done: threading.Event) -> None:
    try:
        pipe.recv()
        consumer.close()
    except (EOFError, OSError, ister.IsterError):
        pass
    done.set()


def _take_messages(consumer: ister.Consumer, last: int) -> dict[str, Any]:
    ack = consumer.ack
    count = size = 0
    try:
        for message in consumer:
            count += 1
            size += len(message.payload)
            ack(message)
            if message.offset == last:
                break
    except ister.errors.ClosedError:
        pass
    return {"messages": count, "ended": now()}


def _take_batches(consumer: ister.Consumer, last: int) -> dict[str, Any]:
    count = at = 0
    try:
        while True:
            batch = consumer.receive_batch()
            assert batch is not None
            payloads = batch.payloads
            count += len(payloads)
            sum(map(len, payloads))
            consumer.ack(batch)
            at = now()
            if last in batch.offsets:
                break
    except ister.errors.ClosedError:
        pass
    return {"messages": count, "ended": at}


def _take_paced(consumer: ister.Consumer, last: int) -> dict[str, Any]:
    took = []
    try:
        for message in consumer:
            took.append(now() - int.from_bytes(message.payload[:8], "little"))
            consumer.ack(message)
            if message.offset == last:
                break
    except ister.errors.ClosedError:
        pass
    return {"messages": len(took), "took": took}


def drain(
    _pipe: Connection,
    client: ister.Client,
    topic: str,
    subscription: str,
    kind: Any,
    consumers: int,
    messages: int,
) -> dict[str, Any]:
    """Drain a backlog with `consumers` consumers, each in a thread; acknowledge batches."""
    left = [messages]
    lock = threading.Lock()
    done = threading.Event()
    times: list[int] = []

    def run() -> None:
        with client.consumer(topic, subscription, type=kind, start="earliest") as consumer:
            while not done.is_set():
                batch = consumer.receive_batch(timeout=0.2)
                if not batch:
                    continue
                at = now()
                consumer.ack(batch)
                with lock:
                    times.append(at)
                    left[0] -= len(batch)
                    if left[0] <= 0:
                        done.set()

    threads = [threading.Thread(target=run) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    if not done.wait(PATIENCE_S):
        raise TimeoutError(f"{left[0]} messages never came")
    for thread in threads:
        thread.join()
    return {"began": min(times), "ended": max(times)}


JOBS: Final[dict[str, Callable[..., Any]]] = {
    each.__name__: each
    for each in (
        publish, publish_frames, publish_lone, publish_paced, publish_topics, publish_once, fill, consume, drain,
    )
}  # fmt: skip


# ---- rows -------------------------------------------------------------------------------------------------------


def flow(
    scale: float,
    data: str,
    *,
    messages: int,
    size: int,
    batch: int = 0,
    strategy: Any = "reliable",
    durability: Any = "fsync",
    subscriptions: int = 1,
    rate: float = 0,
    raw: bool = False,
    emulator: bool = False,
    warm: float = 1.0,
    sizes: str = "one",
) -> dict[str, Any]:
    """One producer, one topic, a consumer's process for each subscription; `raw` adds each latency, in ns.

    The unmeasured load before it is `warm` of the same; a fifth with a `rate`.

    With `emulator` the store is fake-gcs-server in memory instead of a folder; it shares the cores. `sizes` are `one`,
    or `mixed`: from a tenth of `size` to nearly twice it.
    """
    messages = max(100, int(messages * scale))
    with _emulated() if emulator else nullcontext({}) as store, _party(data, **store) as party:
        producer = party.child("producer")
        consumers = [party.child("consumer") for _ in range(subscriptions)]
        before_it = max(100, int(messages * (0.2 if rate else warm)))
        for topic, count in (("warm-up", before_it), ("measured", messages)):
            party.client.create_topic(
                topic, dispatch=strategy, durability=durability if strategy == "reliable" else None
            )
            for number, consumer in enumerate(consumers):
                arguments = {"messages": count, "batch": batch > 0, "paced": rate > 0}
                consumer.tell("consume", topic=topic, subscription=f"s{number}", **arguments)
                consumer.answer()
            if rate:
                producer.tell("publish_paced", topic=topic, messages=count, size=size, rate=rate)
            else:
                producer.tell("publish", topic=topic, messages=count, size=size, batch=batch, sizes=sizes)
            producer.answer()
            before = party.cpu()
            producer.go()
            sent = producer.answer()
            got = []
            for consumer in consumers:
                if strategy == "reliable" or consumer.pipe.poll(STRAGGLER_S):
                    got.append(consumer.answer())
                    consumer.go()
                else:
                    consumer.go()
                    got.append(consumer.answer())
            after = party.cpu()
            for consumer in consumers:
                consumer.answer()
            party.client.delete_topic(topic)
    received = sum(each["messages"] for each in got)
    if strategy == "reliable" and received < messages * subscriptions:
        raise RuntimeError(f"{received} of {messages * subscriptions} messages of a reliable topic came")
    cpu = per_message(before, after, messages)
    told: dict[str, Any] = {
        "messages": messages,
        "missing": messages * subscriptions - received,
        "cpu_us": cpu,
    }
    if rate:
        took = [each for one in got for each in one["took"]]
        if raw:
            told["raw"] = {"receipt": sent["took"], "delivered": took}
        told["seconds"] = round(messages / rate, 3)
        return {**told, **percentiles("receipt", sent["took"]), **percentiles("delivered", took)}
    seconds = (max(each["ended"] for each in got) - sent["began"]) / 1e9
    return {**told, "seconds": round(seconds, 3), "messages_per_second": round(received / seconds)}


def lone(
    scale: float,
    data: str,
    *,
    job: str,
    messages: int,
    size: int = 1024,
    strategy: Any = "reliable",
    durability: Any,
    raw: bool = False,
) -> dict[str, Any]:
    """One producer without a consumer: receipts awaited one at a time, or frames of one message."""
    messages = max(100, int(messages * scale))
    with _party(data) as party:
        producer = party.child("producer")
        for topic, count in (("warm-up", messages // 3), ("measured", messages)):
            party.client.create_topic(topic, dispatch=strategy, durability=durability)
            before = party.cpu()
            producer.tell(job, topic=topic, messages=count, size=size)
            sent = producer.answer()
            after = party.cpu()
    cpu = per_message(before, after, messages)
    rate = round(messages / ((sent["ended"] - sent["began"]) / 1e9))
    told = {"messages": messages, "messages_per_second": rate, "worker_us": cpu["worker"], "cpu_us": cpu}
    if raw:
        told["raw"] = {"receipt": sent["took"]}
    return told | (percentiles("receipt", sent["took"]) if "took" in sent else {})


def keys(
    scale: float, data: str, *, consumers: int, messages: int, kind: str = "key-shared"
) -> dict[str, Any]:
    """Drain a backlog of messages of 100 B with 1,000 keys, by consumers of one client."""
    messages = max(2000, int(messages * scale) // 1000 * 1000)
    with _party(data) as party:
        party.client.create_topic("backlog")
        producer, consumer = party.child("producer"), party.child("consumer")
        producer.tell("fill", topic="backlog", messages=messages, size=100, keys=1000)
        producer.answer()
        for subscription in ("warm-up", "measured"):
            before = party.cpu()
            consumer.tell(
                "drain",
                topic="backlog",
                subscription=subscription,
                kind=kind,
                consumers=consumers,
                messages=messages,
            )
            got = consumer.answer()
            after = party.cpu()
    cpu = per_message(before, after, messages)
    rate = round(messages / ((got["ended"] - got["began"]) / 1e9))
    return {"messages": messages, "messages_per_second": rate, "worker_us": cpu["worker"], "cpu_us": cpu}


def topics(scale: float, data: str, *, count: int, messages: int, batch: int) -> dict[str, Any]:
    """Batches of 100 B messages to many topics in turn, from one client."""
    messages = max(1, int(messages * scale) // (count * batch)) * count * batch
    with _party(data) as party:
        for number in range(count):
            party.client.create_topic(f"t/{number}")
        producer = party.child("producer")
        for _warm in (True, False):
            producer.tell("publish_topics", topics=count, messages=messages, size=100, batch=batch)
            producer.answer()
            before = party.cpu()
            producer.go()
            sent = producer.answer()
            after = party.cpu()
    cpu = per_message(before, after, messages)
    rate = round(messages / ((sent["ended"] - sent["began"]) / 1e9))
    return {"messages": messages, "messages_per_second": rate, "worker_us": cpu["worker"], "cpu_us": cpu}


AT_REST_S: Final = 75.0  # after its last message a topic is sealed within a minute, and then uploaded


def _blocks(folder: Path) -> int:
    """Return the bytes of the disk that a folder occupies: files, each once whatever names it has, and folders."""
    known: dict[int, int] = {}
    for each in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed or deleted meanwhile
            found = each.lstat()
            known[found.st_ino] = found.st_blocks * 512
    return sum(known.values())


def idle_topics(scale: float, data: str, *, count: int, seconds: float) -> dict[str, Any]:
    """Topics with one message each, at rest: their space on the disk, and what they cost an idle worker."""
    count = max(100, int(count * scale))
    settles_s = AT_REST_S if seconds >= 10 else seconds
    with _party(data) as party:
        children = [party.child("producer") for _ in range(4)]
        share = -(-count // len(children))
        for number, child in enumerate(children):
            child.tell("publish_once", first=number * share, topics=share, size=100)
        for child in children:
            child.answer()
        time.sleep(settles_s)
        before, began = party.cpu(), now()
        time.sleep(seconds)
        after, ended = party.cpu(), now()
        disk = _blocks(Path(party.folder, "data"))
        pss = _pss_mb(party.pids["worker"])
    return {
        "topics": share * len(children),
        "disk_mb": round(disk / 1e6, 1),
        "worker_cpu_percent": round((after["worker"] - before["worker"]) / (ended - began) * 100, 3),
        "tier_cpu_percent": round((after["tier"] - before["tier"]) / (ended - began) * 100, 3),
        "worker_pss_mb": pss,
    }


def memory(scale: float, data: str, *, workers: int) -> dict[str, Any]:
    """Proportional set size of all the broker's processes, idle."""
    with _party(data, workers=workers) as party:
        time.sleep(3 * scale)
        by_role = {role: _pss_mb(pids) for role, pids in party.pids.items()}
        pids = [pid for each in party.pids.values() for pid in each]
        before, began = sum(map(cpu_ns, pids)), now()
        time.sleep(5 * scale)
        cpu = (sum(map(cpu_ns, pids)) - before) / (now() - began) * 100
    return {
        "pss_mb": round(sum(by_role.values()), 1),
        "idle_cpu_percent": round(cpu, 3),
        "pss_mb_by_role": by_role,
    }


def backlog(scale: float, data: str, *, messages: int) -> dict[str, Any]:
    """Fill a topic with messages of 100 B, then read all: rate, CPU, and the worker's resident memory after it."""
    messages = max(1000, int(messages * scale))
    with _party(data) as party:
        party.client.create_topic("backlog")
        producer, consumer = party.child("producer"), party.child("consumer")
        producer.tell("publish", topic="backlog", messages=messages, size=100, batch=655)
        producer.answer()
        producer.go()
        producer.answer()
        arguments = {"topic": "backlog", "subscription": "s", "batch": True, "paced": False}
        before, began = party.cpu(), now()
        consumer.tell("consume", messages=messages, **arguments)
        consumer.answer()
        got = consumer.answer()
        after = party.cpu()
        resident = _field_mb(party.pids["worker"][0], "status", "VmRSS:")
        consumer.go()
        consumer.answer()
    return {
        "messages": got["messages"],
        "messages_per_second": round(messages / ((got["ended"] - began) / 1e9)),
        "worker_rss_mb": resident,
        "cpu_us": per_message(before, after, messages),
    }


def _pss_mb(pids: list[int]) -> float:
    return round(sum(_field_mb(pid, "smaps_rollup", "Pss:") for pid in pids), 1)


def _field_mb(pid: int, file: str, name: str) -> float:
    for line in Path(f"/proc/{pid}/{file}").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1000
    return 0.0


RATE: Final = {"messages_per_second": True}
COST: Final = {"messages_per_second": True, "worker_us": False}
LATENCY: Final = dict.fromkeys(
    ("receipt_p50_us", "receipt_p99_us", "delivered_p50_us", "delivered_p99_us"), False
)
LONE: Final = {**COST, "receipt_p50_us": False, "receipt_p99_us": False}
SIZES: Final = {  # bytes, messages reliable, messages non-reliable, messages of a batch of 64 KiB
    "100": (100, 1_500_000, 2_500_000, 655),
    "1k": (1024, 300_000, 500_000, 64),
    "16k": (16384, 20_000, 40_000, 4),
}


def _rows() -> Iterator[Row]:
    some = functools.partial
    memory_: dict[str, Any] = {"strategy": "non-reliable"}
    yield Row(
        "latency-fsync",
        "1,000 messages of 1 KiB a second, fsync",
        LATENCY,
        some(flow, messages=5000, size=1024, rate=1000),
    )
    yield Row(
        "latency-none",
        "the same, non-reliable",
        LATENCY,
        some(flow, messages=5000, size=1024, rate=1000, **memory_),
    )
    for level, strategy, durability in (
        ("fsync", "reliable", "fsync"),
        ("os", "reliable", "os"),
        ("none", "non-reliable", None),
    ):
        settings: dict[str, Any] = {"strategy": strategy, "durability": durability}
        yield Row(
            f"lone-{level}",
            f"1 KiB, one at a time, receipt awaited, {level}",
            LONE,
            some(lone, job="publish_lone", messages=3000 if level == "fsync" else 10_000, **settings),
        )
        yield Row(
            f"frame-{level}",
            f"1 KiB, one message a frame, pipelined, {level}",
            COST,
            some(lone, job="publish_frames", messages=60_000, **settings),
        )
    for name, (size, reliable, non_reliable, batch) in SIZES.items():
        for api, per_batch in (("message", 0), ("batch", batch)):
            call = "one call a message" if api == "message" else "batch calls"
            yield Row(
                f"{api}-{name}",
                f"{size} B, fsync, {call}",
                RATE,
                some(
                    flow,
                    messages=reliable * (2 if name == "100" and per_batch else 1),
                    size=size,
                    batch=per_batch,
                ),
            )
            yield Row(
                f"memory-{api}-{name}",
                f"{size} B, non-reliable, {call}",
                RATE,
                some(flow, messages=non_reliable, size=size, batch=per_batch, **memory_),
            )
    # as many as with fsync: the first tenths of a second, with the usual window, say little about what follows
    cloud: dict[str, Any] = {"durability": "cloud", "warm": 0.3}
    for name, (size, messages, _, batch) in SIZES.items():
        for kind, what, more in (
            ("", "one call a message", {}),
            ("-batch", "batch calls", {"batch": batch}),
            ("-mixed", "a tenth of that to nearly twice, one call a message", {"sizes": "mixed"}),
        ):
            yield Row(
                f"cloud{kind}-{name}",
                f"{size} B, durability cloud, store in a folder, {what}",
                RATE,
                some(flow, messages=messages, size=size, **cloud, **more),
            )
    for name, size, messages in (("1k", 1024, 100_000), ("16k", 16384, 6000)):
        yield Row(
            f"cloud-gcs-{name}",
            f"{size} B, durability cloud, store in an emulator of Google Cloud Storage",
            RATE,
            some(flow, messages=messages, size=size, durability="cloud", emulator=True),
        )
    for consumers, messages in ((8, 200_000), (100, 100_000)):
        yield Row(
            f"keys-{consumers}",
            f"Key-Shared, {consumers} consumers, 1,000 keys, 100 B, backlog",
            COST,
            some(keys, consumers=consumers, messages=messages),
        )
    yield Row(
        "topics-1000",
        "1,000 topics in turn, a message of 100 B each",
        COST,
        some(topics, count=1000, messages=100_000, batch=1),
    )
    yield Row(
        "topics-1000-batch",
        "1,000 topics in turn, a batch of 10 of 100 B each",
        COST,
        some(topics, count=1000, messages=300_000, batch=10),
    )
    yield Row(
        "fan-8",
        "1 -> 8 subscriptions, 1 KiB, delivered in all",
        RATE,
        some(flow, messages=100_000, size=1024, subscriptions=8),
    )
    yield Row(
        "idle-topics",
        "10,000 topics with a message each, idle",
        dict.fromkeys(("disk_mb", "worker_cpu_percent", "worker_pss_mb"), False),
        some(idle_topics, count=10_000, seconds=10.0),
    )
    yield Row(
        "idle-memory",
        "idle broker with two workers",
        dict.fromkeys(("pss_mb", "idle_cpu_percent"), False),
        some(memory, workers=2),
    )
    yield Row(
        "reader-memory",
        "a worker after 20 million messages of 100 B were read",
        {"worker_rss_mb": False, **RATE},
        some(backlog, messages=20_000_000),
    )


ROWS: Final = {row.name: row for row in _rows()}


def python_built() -> str:
    """Say which Python this is, and whether its build was guided by a profile."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    guided = "--enable-optimizations" in arguments
    return (
        f"Python {platform.python_version()}, {'with' if guided else 'without'} profile-guided optimisation"
    )


def broker_of() -> str:
    """Return the folder from which brokers that are started here import Ister, maybe another than this script."""
    where = "import os, ister; print(os.path.dirname(os.path.dirname(ister.__file__)))"
    done = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Run one row, and print what it reached."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("row", nargs="?", choices=ROWS)
    parse.add_argument("--list", action="store_true", help="say what there is")
    parse.add_argument("--scale", type=above_zero, default=1.0, help="of the numbers of messages and topics")
    parse.add_argument(
        "--data", type=made_folder, default=".", help="where folders of brokers are made: a real disk"
    )
    given = parse.parse_args()
    if given.list or given.row is None:
        for row in ROWS.values():
            print(f"{row.name:20} {row.what}")
        return
    found = ROWS[given.row].run(given.scale, given.data)
    where = os.path.dirname(os.path.dirname(ister.__file__))
    told = {"python": python_built(), "ister": where, "broker": broker_of()}
    print(json.dumps({"row": given.row, **found, **told}))


if __name__ == "__main__":
    main()
