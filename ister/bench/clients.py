"""The processes that load a broker: a producer and a consumer, with one loop for each API of the library.

Runs in separate processes, started by `run.py` and controlled over a pipe. The same processes run the warm-up and the
measurement, so that both use the same memory.

Invariants
- the loops do what a program has to do and nothing else: one `send` or one `ack` per message with --api message, one
  call per batch with --api batch; every payload is read
- only one message per batch has the time of sending, so that measuring does not become the load; with --rate each has
  the time at which it was due
- times are CLOCK_MONOTONIC in nanoseconds: the same clock in every process of a machine
"""

from __future__ import annotations

import os
import struct
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

import ister
from ister.bench.load import STAMP_BYTES, Load
from ister.bench.pacing import Schedule, send_on_time
from ister.errors import ClosedError, IsterError

STAMP: Final = struct.Struct("<Q")
BEGIN_NS: Final = 1_000_000  # before the first message of a given rate is due
CONNECT_S: Final = 15.0
SUBSCRIPTION: Final = "bench"

now: Final = time.monotonic_ns


@dataclass(slots=True)
class Sent:
    """What the producer measured; times in ns."""

    messages: int
    began_ns: int
    ended_ns: int
    cpu_seconds: float
    receipts_ns: array[int] = field(default_factory=lambda: array("q"))  # with --rate: from when each was due
    late_ns: array[int] = field(
        default_factory=lambda: array("q")
    )  # with --rate: how late each call to send began


@dataclass(slots=True)
class Received:
    """What a consumer measured; times in ns, `latencies_ns` of the messages that have a time stamp."""

    messages: int = 0
    bytes: int = 0
    began_ns: int = 0
    ended_ns: int = 0
    cpu_seconds: float = 0.0
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class Run:
    """The command to run a load once, through this topic."""

    topic: str
    load: Load


READY: Final = "ready"
GO: Final = "go"
STOP: Final = "stop"


def producer_main(control: Connection, endpoint: str) -> None:
    """Run the producer's process: do every run that is requested."""
    with ister.connect(endpoint, timeout=CONNECT_S) as client:
        while True:
            _produce(control, client, control.recv())


def consumer_main(control: Connection, endpoint: str, number: int) -> None:
    """Run the process of the consumer of subscription `number`: do every run that is requested."""
    with ister.connect(endpoint, timeout=CONNECT_S) as client:
        while True:
            _consume(control, client, control.recv(), f"{SUBSCRIPTION}-{number}")


# ---- producing --------------------------------------------------------------------------------------------------


def _produce(control: Connection, client: ister.Client, run: Run) -> None:
    load = run.load
    with client.producer(run.topic, batch_bytes=load.batch_bytes, linger_ms=load.linger_ms) as producer:
        work: Callable[[ister.Producer, Load, Sent], None]
        if load.rate is not None:
            work = _send_at_rate
        else:
            work = _send_messages if load.api == "message" else _send_batches
        control.send(READY)
        control.recv()
        sent = Sent(load.messages, now(), 0, _cpu_seconds())
        work(producer, load, sent)
        producer.flush()
        sent.ended_ns, sent.cpu_seconds = now(), _cpu_seconds() - sent.cpu_seconds
        control.send(sent)


def _send_messages(producer: ister.Producer, load: Load, _sent: Sent) -> None:
    payload = bytes(load.message_bytes)
    rest = payload[STAMP_BYTES:]
    send = producer.send
    per_batch, left = load.messages_per_batch, load.messages
    while left > 0:
        send(STAMP.pack(now()) + rest if load.stamp_every else payload)
        for _ in range(min(per_batch, left) - 1):
            send(payload)
        left -= per_batch


def _send_batches(producer: ister.Producer, load: Load, _sent: Sent) -> None:
    payload = bytes(load.message_bytes)
    rest = payload[STAMP_BYTES:]
    per_batch, left = load.messages_per_batch, load.messages
    while left > 0:
        payloads = [payload] * min(per_batch, left)
        if load.stamp_every:
            payloads[0] = STAMP.pack(now()) + rest
        producer.send_batch(payloads)
        left -= per_batch


def _send_at_rate(producer: ister.Producer, load: Load, sent: Sent) -> None:
    """Send each message when it is due. Its time stamp says when that was, also if it is sent later.

    Receipts are measured from that time too. How late the generator itself was is noted beside them.
    """
    assert load.rate is not None
    rest = bytes(load.message_bytes)[STAMP_BYTES:]
    note = sent.receipts_ns.append

    def send(dues: list[int]) -> None:
        (due,) = dues
        receipt = producer.send(STAMP.pack(due) + rest)
        receipt.add_done_callback(lambda _receipt: note(now() - due))

    def send_batch(dues: list[int]) -> None:
        receipt = producer.send_batch([STAMP.pack(due) + rest for due in dues])
        receipt.add_done_callback(lambda _receipt: sent.receipts_ns.extend(now() - due for due in dues))

    batches = load.api == "batch"
    schedule = Schedule(now() + BEGIN_NS, load.rate)
    late = send_on_time(
        schedule, load.messages, send_batch if batches else send, now=now, sleep=time.sleep, at_once=batches
    )
    sent.late_ns.extend(late)


# ---- consuming --------------------------------------------------------------------------------------------------


def _consume(control: Connection, client: ister.Client, run: Run, subscription: str) -> None:
    load = run.load
    with client.consumer(run.topic, subscription=subscription, type=load.type, start="earliest") as consumer:
        control.send(READY)
        watch = threading.Thread(target=_close_when_told, args=(control, consumer), daemon=True)
        watch.start()
        cpu = _cpu_seconds()
        received = (_receive_messages if load.api == "message" else _receive_batches)(consumer, load)
        received.cpu_seconds = _cpu_seconds() - cpu
        control.send(received)
        watch.join()


def _close_when_told(control: Connection, consumer: ister.Consumer) -> None:
    """Wait for the command to close, which comes when this consumer has everything or never will."""
    try:
        control.recv()
        consumer.close()
    except (EOFError, OSError, IsterError):
        os._exit(1)


def _receive_messages(consumer: ister.Consumer, load: Load) -> Received:
    received = Received()
    last = load.messages - 1
    every = load.stamp_every or load.messages_per_batch
    note = received.latencies_ns.append
    ack = consumer.ack
    count = size = at = 0
    try:
        for message in consumer:
            count += 1
            size += len(message.payload)
            if not message.offset % every:
                at = now()
                received.began_ns = received.began_ns or at
                if load.stamp_every:
                    note(at - STAMP.unpack_from(message.payload)[0])
            ack(message)
            if message.offset == last:
                at = now()
                break
    except ClosedError:
        pass  # told to stop: the last message was dropped
    received.ended_ns = at  # closed before the last message arrived: the time of the last batch
    received.messages, received.bytes = count, size
    return received


def _receive_batches(consumer: ister.Consumer, load: Load) -> Received:
    received = Received()
    last = load.messages - 1
    every = load.stamp_every
    note = received.latencies_ns.append
    try:
        while True:
            batch = consumer.receive_batch()
            assert batch is not None
            payloads = batch.payloads
            received.ended_ns = at = now()
            received.began_ns = received.began_ns or at
            received.messages += len(payloads)
            received.bytes += sum(map(len, payloads))
            if every:
                for place in _stamped(batch, every):
                    note(at - STAMP.unpack_from(payloads[place])[0])
            consumer.ack(batch)
            if last in batch.offsets:
                break
    except ClosedError:
        pass  # told to stop: the last message was dropped
    return received


def _stamped(batch: ister.Batch, every: int) -> Sequence[int]:
    """Return the positions of the messages that have a time stamp."""
    offsets = batch.offsets
    if isinstance(offsets, range):
        return range(-offsets.start % every, len(offsets), every)
    return [place for place, offset in enumerate(offsets) if offset % every == 0]


def _cpu_seconds() -> float:
    return time.process_time()
