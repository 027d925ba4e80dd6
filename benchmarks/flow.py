"""What does a slow, stuck or greedy consumer cost the others, and do ten thousand of them cost them anything?

    python benchmarks/flow.py [--rate 4000] [--bytes 200] [--seconds 3] [--crowd 10000] [--only TEXT] [--json]

A broker of its own with one worker. A producer sends batches at a fixed rate to a topic (`--rate 0`: as fast as
possible); a healthy consumer of the client library reads and acknowledges. Beside it, in another process and without
the library, are

    stopped   a consumer with the largest credit, whose socket is not read
    second    one with a credit of 1,000 that reads a message a second
    tiny      one with a credit of one message, that reads and acknowledges at once
    silent    one that reads everything, gives credit, and never acknowledges
    all       all of them
    crowd     `--crowd` consumers over 40 connections, that read and acknowledge

in the healthy one's subscription, if several can share it, else each in its own; the crowd is in another subscription
of the same topic. `due` is the part of the messages that is the healthy one's: all, but for the keys of others. `kept`
is its rate as a part of what is due, and `p99_ms` the delay from send to handing out; `others` is what those beside
took (tiny ones in its subscription are as entitled as it is), `attach_s` how long they took to open. RSS (MB) and CPU
(cores) are the worker's; the first row warms memory up and is not shown. `dropped` is over all subscriptions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import cbor2
import zmq
from arguments import above_zero

import ister
from ister.ownbroker import OwnBroker
from ister.wire import Key, Type

CONNECTIONS: Final = 40  # of the crowd
OPENING_MAX: Final = 1_000  # opens of the crowd without an answer
PATIENCE_S: Final = 60.0
SETTLE_S: Final = 1.5  # seconds before the measurement begins
BATCHES_PER_SECOND: Final = 100
KEYS: Final = 1_000
ALL_MESSAGES, ALL_BYTES = 1_000_000, 64 << 20  # the largest credit that a broker gives, by default
PING_S: Final = 2.0
CREDIT: Final = {"stopped": ALL_MESSAGES, "second": 1_000, "tiny": 1, "silent": 10_000, "crowd": 100}
KINDS: Final = ("stopped", "second", "tiny", "silent")


# ---- those beside, in a process of their own ------------------------------------------------------------------------


class Others:
    """Consumers without the library, of each kind."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._sockets: list[zmq.Socket[bytes]] = []
        self._poller = zmq.Poller()
        self._kind: dict[zmq.Socket[bytes], str] = {}
        self._opening = self._opened = 0
        self._pinged_s = 0.0
        self._read_s: dict[zmq.Socket[bytes], float] = {}
        # (handle, offset) of unacknowledged messages
        self._queue: dict[zmq.Socket[bytes], deque[tuple[int, int]]] = {}
        self.received = 0

    def open(self, topic: str, type_: str, kind: str, subscription: str, count: int) -> float:
        """Open `count` consumers, and return the seconds until the last one was open."""
        connections = [self._connect(kind) for _ in range(min(count, CONNECTIONS))]
        began = time.perf_counter()
        self._opening, self._opened = count, 0
        asked = 0
        while self._opened < count:
            while asked < count and asked - self._opened < OPENING_MAX:
                self._say(
                    connections[asked % len(connections)],
                    {
                        Key.TYPE: Type.OPEN_CONSUMER,
                        Key.REF: asked + 1,
                        Key.HANDLE: asked + 1,
                        Key.TOPIC: topic,
                        Key.SUBSCRIPTION: subscription,
                        Key.SUBSCRIPTION_TYPE: type_,
                        Key.MESSAGES: CREDIT[kind],
                        Key.BYTES: ALL_BYTES if kind == "stopped" else 1 << 20,
                        Key.START: "latest",
                        Key.SPARSE: True,
                    },
                )
                asked += 1
            self._turn(everyone=True)
            if time.perf_counter() - began > PATIENCE_S:
                raise TimeoutError(f"{self._opened} of {count} consumers are open after {PATIENCE_S:g} s")
        return time.perf_counter() - began

    def _connect(self, kind: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        if kind == "stopped":
            socket.set(zmq.RCVHWM, 1)
            socket.set(zmq.RCVBUF, 64 << 10)
        socket.connect(self._endpoint)
        self._say(socket, {Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.CLIENT: kind})
        self._kind[socket] = kind
        self._sockets.append(socket)
        self._poller.register(socket, zmq.POLLIN)
        while cbor2.loads(socket.recv_multipart()[0])[Key.TYPE] != Type.WELCOME:
            pass
        return socket

    def _say(self, socket: zmq.Socket[bytes], header: dict[int, Any]) -> None:
        socket.send(cbor2.dumps(header))

    def run(self, until: Connection) -> None:
        """Read as each kind does, until a command arrives."""
        for socket, kind in self._kind.items():
            if kind == "stopped":
                self._poller.unregister(socket)
        while not until.poll(0):
            self._turn()

    def _turn(self, *, everyone: bool = False) -> None:
        now = time.perf_counter()
        if now - self._pinged_s > PING_S:
            self._pinged_s = now
            for socket in self._sockets:
                self._say(socket, {Key.TYPE: Type.PING})
        for socket, _ in self._poller.poll(20):
            kind = self._kind[socket]
            if kind == "second" and not everyone:
                self._read_one(socket, now)
                continue
            for _ in range(64):
                try:
                    self._take(socket, socket.recv_multipart(zmq.NOBLOCK))
                except zmq.Again:
                    break

    def _read_one(self, socket: zmq.Socket[bytes], now: float) -> None:
        """Read one message per second, and nothing more before all that arrived is read."""
        if now - self._read_s.get(socket, 0.0) < 1.0:
            return
        self._read_s[socket] = now
        queue = self._queue.setdefault(socket, deque())
        if not queue:
            header = cbor2.loads(socket.recv_multipart()[0])
            if header[Key.TYPE] != Type.DELIVER:
                return
            first = header[Key.OFFSET]
            flat = header.get(Key.RANGES, [first, first + header[Key.COUNT]])
            for low, high in zip(flat[::2], flat[1::2], strict=True):
                queue.extend((header[Key.HANDLE], offset) for offset in range(low, high))
        handle, offset = queue.popleft()
        self._done(socket, handle, [offset, offset + 1], 1, 1000)

    def _done(self, socket: zmq.Socket[bytes], handle: int, ranges: list[int], count: int, size: int) -> None:
        """Acknowledge and give credit."""
        self.received += count
        if self._kind[socket] != "silent":
            self._say(socket, {Key.TYPE: Type.ACK, Key.HANDLE: handle, Key.RANGES: ranges})
        self._say(socket, {Key.TYPE: Type.CREDIT, Key.HANDLE: handle, Key.MESSAGES: count, Key.BYTES: size})

    def _take(self, socket: zmq.Socket[bytes], parts: list[bytes]) -> None:
        header = cbor2.loads(parts[0])
        kind, what = self._kind[socket], header[Key.TYPE]
        if what == Type.OPENED:
            self._opened += 1
        elif what == Type.ERROR:
            raise RuntimeError(f"the broker answered {header}")
        elif what == Type.DELIVER and kind != "stopped":
            count, first = header[Key.COUNT], header[Key.OFFSET]
            ranges = header.get(Key.RANGES, [first, first + count])
            self._done(socket, header[Key.HANDLE], ranges, count, sum(map(len, parts[1:])))

    def close(self) -> None:
        """Close all consumers."""
        for socket in self._sockets:
            self._say(socket, {Key.TYPE: Type.BYE})
            socket.close(linger=1000)
        self.__init__(self._endpoint)  # type: ignore[misc]


def others(endpoint: str, told: Connection) -> None:
    """Run the process of the other consumers, following commands."""
    them = Others(endpoint)
    while (command := told.recv()) is not None:
        if command == "close":
            received = them.received
            them.close()
            told.send(received)
        elif command == "run":
            them.run(told)
        else:
            told.send(them.open(*command))


# ---- healthy consumers ----------------------------------------------------------------------------------------------


class Healthy:
    """A producer with a fixed rate and a consumer, each in a thread; every batch contains its time."""

    def __init__(self, endpoint: str, topic: str, type_: str, strategy: str, rate: int, size: int) -> None:
        self._client, self._sender = ister.connect(endpoint), ister.connect(endpoint)
        self._consumer = self._client.consumer(topic, "healthy", type=type_)  # type: ignore[arg-type]
        self._producer = self._sender.producer(topic)
        self._count = max(1, rate // BATCHES_PER_SECOND) if rate else 200
        self._paced = bool(rate)
        self._payload = bytes(max(0, size - 8))
        self._keys = [b"key-%d" % number for number in range(KEYS)] if type_ == "key-shared" else None
        self._reliable = strategy == "reliable"
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._send, self._receive)]
        self.sent = self.received = 0
        self.took: list[float] = []

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        due = time.perf_counter()
        while not self._ended.is_set():
            if self._paced:
                due += 1 / BATCHES_PER_SECOND
                time.sleep(max(0.0, due - time.perf_counter()))
            stamp = time.perf_counter_ns().to_bytes(8, "little")
            keys = None
            if self._keys is not None:
                keys = [self._keys[(self.sent + number) % KEYS] for number in range(self._count)]
            self._producer.send_batch([stamp + self._payload] * self._count, keys=keys)
            self.sent += self._count

    def _receive(self) -> None:
        while not self._ended.is_set():
            batch = self._consumer.receive_batch(timeout=0.1)
            if not batch:
                continue
            now = time.perf_counter_ns()
            self.received += len(batch)
            for message in batch:
                self.took.append((now - int.from_bytes(message.payload[:8], "little")) / 1e9)
            if self._reliable:
                self._consumer.ack(batch)

    def close(self) -> None:
        """Stop both threads."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._sender.close()


# ---- measuring ------------------------------------------------------------------------------------------------------


class Worker:
    """The worker's process, as Linux and the broker see it."""

    def __init__(self, client: ister.Client) -> None:
        self._client = client
        self._pid = next(row["pid"] for row in client.status()["processes"] if row["role"] == "worker")

    def rss_mb(self, field: str = "VmRSS") -> float:
        """Return its resident memory now, or (`VmHWM`) its peak since `forget_peak`."""
        text = Path(f"/proc/{self._pid}/status").read_text("ascii")
        return int(text.partition(field + ":")[2].split()[0]) / 1024

    def forget_peak(self) -> None:
        """Reset the peak."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5", "ascii")

    def cpu_s(self) -> float:
        """Return the CPU seconds it has used."""
        ticks = Path(f"/proc/{self._pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(ticks[11]) + int(ticks[12])) / 100


def dropped(client: ister.Client, topic: str) -> int:
    """Return how many messages the subscriptions of a topic have dropped."""
    rows = client.subscriptions(topic)
    return sum(int(client.subscription(topic, row["subscription"]).get("dropped", 0)) for row in rows)


@contextmanager
def topic_of(client: ister.Client, name: str, strategy: str) -> Iterator[str]:
    """Create a topic for a row, and delete it afterwards."""
    client.create_topic(name, dispatch=strategy)
    yield name
    client.delete_topic(name)


def measure(
    broker: OwnBroker, told: Connection, row: dict[str, Any], given: argparse.Namespace, number: int
) -> dict[str, Any]:
    """Run one row and return it with its figures."""
    strategy, type_, beside = row["strategy"], row["type"], row["beside"]
    with ister.connect(broker.endpoint) as client, topic_of(client, f"t{number}", strategy) as topic:
        worker = Worker(client)
        before = worker.rss_mb()
        worker.forget_peak()
        healthy_type = "exclusive" if row.get("crowd") else type_
        healthy = Healthy(broker.endpoint, topic, healthy_type, strategy, given.rate, given.bytes)
        attached, members = 0.0, 1
        for kind in KINDS if beside == "all" else () if beside == "nobody" else (beside,):
            if kind == "silent" and strategy == "non-reliable":
                continue
            own = type_ == "exclusive" or kind == "crowd"
            told.send((topic, type_, kind, kind if own else "healthy", row.get("crowd", 1)))
            attached += told.recv()
            members += not own
        told.send("run")
        healthy.start()
        time.sleep(SETTLE_S)
        began, sent, received, cpu = time.perf_counter(), healthy.sent, healthy.received, worker.cpu_s()
        healthy.took.clear()
        time.sleep(given.seconds)
        seconds = time.perf_counter() - began
        sent, received, cpu = healthy.sent - sent, healthy.received - received, worker.cpu_s() - cpu
        took = sorted(healthy.took)
        lost = dropped(client, topic) if strategy == "non-reliable" else 0
        healthy.close()
        told.send("close")
        theirs = told.recv()
        due = 1 / members if type_ == "key-shared" else 1.0
    time.sleep(0.3)
    return row | {
        "due": round(due, 2),
        "sent_s": round(sent / seconds),
        "received_s": round(received / seconds),
        "kept": round(received / max(1, sent * due), 2),
        "p50_ms": round(took[len(took) // 2] * 1000, 1) if took else None,
        "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 1) if took else None,
        "others": theirs,
        "attach_s": round(attached, 2),
        "cpu": round(cpu / seconds, 2),
        "rss_before": round(before),
        "rss_peak": round(worker.rss_mb("VmHWM")),
        "rss_after": round(worker.rss_mb()),
        "dropped": lost,
    }


def rows_of(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows to be measured, in order."""
    rows: list[dict[str, Any]] = []
    for strategy in ("reliable", "non-reliable"):
        for type_ in ("exclusive", "shared", "key-shared"):
            if (strategy, type_) == ("non-reliable", "key-shared"):
                continue
            besides = ["nobody", "stopped", "second", "tiny", "silent", "all"]
            if strategy == "non-reliable":
                besides.remove("silent")
            if type_ == "exclusive":
                besides = ["nobody", "stopped", "all"]
            rows += [{"strategy": strategy, "type": type_, "beside": beside} for beside in besides]
            if type_ != "exclusive" and given.crowd:
                rows.append({"strategy": strategy, "type": type_, "beside": "crowd", "crowd": given.crowd})
    return [row for row in rows if given.only in " ".join(map(str, row.values()))]


def main() -> None:
    """Measure and print the table."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rate", type=int, default=4_000, help="messages a second; 0: as many as go")
    parse.add_argument("--bytes", type=int, default=200, help="of a message")
    parse.add_argument("--seconds", type=above_zero, default=2.5, help="a row")
    parse.add_argument("--crowd", type=int, default=10_000, help="consumers of a crowd; 0: none")
    parse.add_argument("--only", default="", help="rows whose words hold this: 'reliable shared crowd'")
    parse.add_argument("--json", action="store_true")
    given = parse.parse_args()
    spawn = multiprocessing.get_context("spawn")
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="flow-") as folder,
        OwnBroker(f"{folder}/data", f"{folder}/log", workers=1) as broker,
    ):
        told, hears = spawn.Pipe()
        process = spawn.Process(target=others, args=(broker.endpoint, hears), daemon=True)
        process.start()
        hears.close()  # so that the end of the other process is noticed
        rows = rows_of(given)
        for number, row in enumerate([rows[0], *rows]):
            result = measure(broker, told, row, given, number)
            if number:
                found.append(result)
                if not given.json:
                    show(result, head=number == 1)
        told.send(None)
        process.join(5)
    if given.json:
        print(json.dumps({"rate": given.rate, "bytes": given.bytes, "rows": found}))


def show(row: dict[str, Any], *, head: bool) -> None:
    """Print a row."""
    names = [name for name in row if name not in ("crowd", "sent_s")]
    widths = [max(len(name), 12 if name in ("strategy", "type") else 7) for name in names]
    if head:
        print("  ".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True)))
    print("  ".join(f"{row[name]!s:<{width}}" for name, width in zip(names, widths, strict=True)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
