"""How fast can batches travel on this machine, without anything else that a broker does?

Producer -> ROUTER -> log -> consumer, and nothing else: no topics, no sessions, no recovery, no credit beyond a window.
Three processes in Python over ZeroMQ, as in Ister, so that the difference is what Ister adds. A figure is valid for one
machine on one day; the ratio of Ister to this one, measured side by side (`ratio.py`), is valid longer.

    python benchmarks/road.py --mode walsync --bytes 1024 --messages 600000

Modes: mem (dispatch from memory), wal (from the page cache), walsync (one fdatasync per group before receipt and
dispatch). Prints the messages per second of the producer (until its last receipt), of the consumer (from its first
message on) and end to end (from the first batch made to the last one taken), and the CPU time of a message by process;
--json prints one object.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import struct
import tempfile
import threading
import time
from array import array
from collections import deque
from multiprocessing.queues import Queue
from typing import Any, Final, Literal, NamedTuple

import cbor2
import google_crc32c
import zmq
from arguments import made_folder, whole

Mode = Literal["mem", "wal", "walsync"]
Results = Queue  # of Told

PUBLISH, RECEIPT, CREDIT, DELIVER, SUBSCRIBE = range(1, 6)
RECORD: Final = struct.Struct(
    "<IIQIIQ"
)  # total bytes, crc32c, first offset, count, bytes of the length table, reserved
SEGMENT_BYTES: Final = 64 << 20
WINDOW_BATCHES: Final = 64  # batches without a receipt
CREDIT_MESSAGES: Final = 20_000
TURN_FRAMES_MAX: Final = 64  # read before their results are sent
CONNECT_S: Final = 0.3
RESULT_WITHIN_S: Final = 120


class Told(NamedTuple):
    """What a client's process says at its end: when it began and ended, in s, and its CPU time meanwhile, in ns."""

    name: str
    began: float
    ended: float
    cpu_ns: int


class Batch(NamedTuple):
    """A batch that waits for its consumer."""

    first: int
    messages: int
    lengths: bytes | memoryview
    payloads: bytes | memoryview


class Pending(NamedTuple):
    """A batch that waits for its receipt."""

    producer: bytes
    sequence: int
    batch: Batch


class Segment:
    """A preallocated file, appended with pwritev and read through a map."""

    def __init__(self, folder: str, first_offset: int) -> None:
        self.fd = os.open(f"{folder}/{first_offset:020d}", os.O_RDWR | os.O_CREAT, 0o644)
        os.posix_fallocate(self.fd, 0, SEGMENT_BYTES)
        self.view = memoryview(mmap.mmap(self.fd, SEGMENT_BYTES))
        self.end = 0

    def append(self, offset: int, count: int, lengths: bytes, payloads: bytes) -> Batch:
        """Write a record and return the batch as views of the map."""
        total = record_bytes(lengths, payloads)
        head = RECORD.pack(total, google_crc32c.value(payloads), offset, count, len(lengths), 0)
        os.pwritev(self.fd, (head, lengths, payloads), self.end)
        begin = self.end + RECORD.size
        split = begin + len(lengths)
        self.end += total
        return Batch(offset, count, self.view[begin:split], self.view[split : self.end])


def record_bytes(lengths: bytes, payloads: bytes) -> int:
    """Return the size of a record in bytes."""
    return RECORD.size + len(lengths) + len(payloads)


class Broker:
    """The minimum of a broker: order, log, group commit, and batches for consumers with credit."""

    def __init__(self, port: int, mode: Mode, folder: str) -> None:
        self._mode = mode
        self._folder = folder
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set(zmq.SNDHWM, 0)
        self._router.bind(f"tcp://127.0.0.1:{port}")
        self._woken = self._context.socket(zmq.PAIR)
        self._woken.bind("inproc://synced")
        self._segment = Segment(folder, 0)
        self._offset = 0
        self._appended: list[Pending] = []
        self._dirty: set[int] = set()
        self._ready: deque[Batch] = deque()
        self._credit: dict[bytes, int] = {}
        self._syncing = False
        self._work: deque[tuple[set[int], list[Pending]]] = deque()
        self._synced: deque[list[Pending]] = deque()
        self._go = threading.Event()
        threading.Thread(target=self._sync_for_ever, daemon=True).start()

    def run(self) -> None:
        """Serve until the process is killed."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while True:
            poller.poll()
            self._take_in()
            if self._mode == "walsync":
                self._commit()
            else:
                self._durable(self._appended)
                self._appended = []
            self._dispatch()

    def _take_in(self) -> None:
        for _ in range(TURN_FRAMES_MAX):
            try:
                peer, header, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = cbor2.loads(header)
            if message[0] == PUBLISH:
                self._publish(peer, message[1], *frames)
            elif message[0] == CREDIT:
                self._credit[peer] += message[1]
            elif message[0] == SUBSCRIBE:
                self._credit[peer] = message[1]

    def _publish(self, peer: bytes, sequence: int, lengths: bytes, payloads: bytes) -> None:
        count = len(lengths) // 4
        if self._mode == "mem":
            batch = Batch(self._offset, count, lengths, payloads)
        else:
            if self._segment.end + record_bytes(lengths, payloads) > SEGMENT_BYTES:
                self._segment = Segment(self._folder, self._offset)
            batch = self._segment.append(self._offset, count, lengths, payloads)
            self._dirty.add(self._segment.fd)
        self._appended.append(Pending(peer, sequence, batch))
        self._offset += count

    def _commit(self) -> None:
        while self._woken.poll(0):
            self._woken.recv()
        while self._synced:
            self._syncing = False
            self._durable(self._synced.popleft())
        if self._appended and not self._syncing:
            self._work.append((self._dirty, self._appended))
            self._appended, self._dirty, self._syncing = [], set(), True
            self._go.set()

    def _sync_for_ever(self) -> None:
        wake = self._context.socket(zmq.PAIR)
        wake.connect("inproc://synced")
        while True:
            self._go.wait()
            self._go.clear()
            files, group = self._work.popleft()
            for fd in files:
                os.fdatasync(fd)
            self._synced.append(group)
            wake.send(b"")

    def _durable(self, group: list[Pending]) -> None:
        receipts = {}
        for producer, sequence, batch in group:
            receipts[producer] = sequence
            self._ready.append(batch)
        for producer, sequence in receipts.items():
            self._router.send_multipart((producer, cbor2.dumps({0: RECEIPT, 1: sequence})))

    def _dispatch(self) -> None:
        for peer in self._credit:
            while self._ready and self._credit[peer] > 0:
                batch = self._ready.popleft()
                header = cbor2.dumps({0: DELIVER, 1: batch.first, 2: batch.messages})
                self._router.send_multipart((peer, header, batch.lengths, batch.payloads), copy=False)
                self._credit[peer] -= batch.messages


def broker_main(port: int, mode: Mode, folder: str) -> None:
    """Run the broker's process."""
    Broker(port, mode, folder).run()


def producer_main(port: int, messages: int, message_bytes: int, per_batch: int, results: Results) -> None:
    """Run the producer's process: gather, send, and wait while the window is full."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    payload, sent, sequence, received = bytes(message_bytes), 0, 0, -1
    began, cpu = time.perf_counter(), time.process_time_ns()
    while sent < messages:
        gathered = []
        for _ in range(min(per_batch, messages - sent)):
            gathered.append(payload)  # noqa: PERF401  (what a program that sends one message at a time pays)
        sent += len(gathered)
        lengths = array("I", map(len, gathered)).tobytes()
        socket.send_multipart((cbor2.dumps({0: PUBLISH, 1: sequence}), lengths, b"".join(gathered)))
        sequence += 1
        while sequence - received > WINDOW_BATCHES:
            received = cbor2.loads(socket.recv())[1]
    while received < sequence - 1:
        received = cbor2.loads(socket.recv())[1]
    results.put(Told("produced", began, time.perf_counter(), time.process_time_ns() - cpu))


def consumer_main(port: int, messages: int, results: Results) -> None:
    """Run the consumer's process: check that offsets are contiguous, read every payload, return credit."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.set(zmq.RCVHWM, 0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(cbor2.dumps({0: SUBSCRIBE, 1: CREDIT_MESSAGES}))
    expected, back, began, cpu = 0, 0, 0.0, time.process_time_ns()
    while expected < messages:
        header, lengths, body = socket.recv_multipart()
        began = began or time.perf_counter()
        message = cbor2.loads(header)
        if message[1] != expected:
            raise AssertionError(f"offset {message[1]} where {expected} was next")
        expected += message[2]
        at = 0
        for length in array("I", lengths):
            _payload = body[at : at + length]
            at += length
        back += message[2]
        if back >= CREDIT_MESSAGES // 4:
            socket.send(cbor2.dumps({0: CREDIT, 1: back}))
            back = 0
    results.put(Told("consumed", began, time.perf_counter(), time.process_time_ns() - cpu))


def run_road(
    mode: Mode, message_bytes: int, messages: int, *, batch_bytes: int = 64 << 10, data: str = "."
) -> dict[str, Any]:
    """Run once and return messages per second, and the CPU time of a message by process, in us."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=data, prefix="road-") as folder, zmq.Context() as context:
        with context.socket(zmq.ROUTER) as probe:
            port = probe.bind_to_random_port("tcp://127.0.0.1")
        results: Results = spawn.Queue()
        per_batch = max(1, batch_bytes // message_bytes)
        broker = spawn.Process(target=broker_main, args=(port, mode, folder), daemon=True)
        consumer = spawn.Process(target=consumer_main, args=(port, messages, results), daemon=True)
        producer = spawn.Process(
            target=producer_main, args=(port, messages, message_bytes, per_batch, results), daemon=True
        )
        for process in (broker, consumer):
            process.start()
            time.sleep(CONNECT_S)
        used = -_cpu_ns(broker.pid)
        producer.start()
        told = {each.name: each for each in (results.get(timeout=RESULT_WITHIN_S) for _ in range(2))}
        used += _cpu_ns(broker.pid)
        broker.terminate()
        for process in (broker, consumer, producer):
            process.join()
    return {
        "mode": mode,
        "message_bytes": message_bytes,
        "messages": messages,
        "consumed": round(messages / (told["consumed"].ended - told["consumed"].began)),
        "produced": round(messages / (told["produced"].ended - told["produced"].began)),
        "end_to_end": round(messages / (told["consumed"].ended - told["produced"].began)),
        "cpu_us": {
            name: round(ns / 1e3 / messages, 3)
            for name, ns in (
                ("server", used),
                ("producer", told["produced"].cpu_ns),
                ("consumer", told["consumed"].cpu_ns),
            )
        },
    }


def _cpu_ns(pid: int | None) -> int:
    return time.clock_gettime_ns((~(pid or 0) << 3) | 2)


def main() -> None:
    """Run once and print the result."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--mode", choices=("mem", "wal", "walsync"), default="walsync")
    parse.add_argument("--bytes", type=int, default=1024, help="of a message")
    parse.add_argument("--messages", type=whole, default=600_000)
    parse.add_argument("--batch-bytes", type=whole, default=64 << 10)
    parse.add_argument("--data", type=made_folder, default=".", help="where the folder of the log is made")
    parse.add_argument("--json", action="store_true")
    given = parse.parse_args()
    result = run_road(given.mode, given.bytes, given.messages, batch_bytes=given.batch_bytes, data=given.data)
    if given.json:
        print(json.dumps(result))
    else:
        print(f"{result['messages']:,} messages of {result['message_bytes']:,} bytes, {result['mode']}")
        print(f"  producer  {result['produced']:>12,} messages/s")
        print(f"  consumer  {result['consumed']:>12,} messages/s")
        print(f"  both      {result['end_to_end']:>12,} messages/s")
        print(f"  CPU us    {', '.join(f'{name} {us:g}' for name, us in result['cpu_us'].items())}")


if __name__ == "__main__":
    main()
