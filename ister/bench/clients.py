"""The processes that load a broker: a producer and a consumer, with one loop for each API of the library.

Runs in separate processes, started by `run.py` and controlled over a pipe. The same processes run the warm-up and the
measurement, so that both use the same memory.

Invariants
- the loops do what a program has to do and nothing else: one `send` or one `ack` per message with --api message, one
  call per batch with --api batch; every payload is read
- only one message per batch has the time of sending (with --rate: each one), so that measuring does not become the load
- times are CLOCK_MONOTONIC in nanoseconds: the same clock in every process of a machine
"""

from __future__ import annotations

import os
import struct
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

import ister
from ister.bench.load import STAMP_BYTES, Load
from ister.errors import ClosedError, IsterError

STAMP: Final = struct.Struct("<Q")
SLEEP_NS_LEAST: Final = 50_000  # a shorter sleep costs as much as the wait it saves
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
        if load.rate is not None:
            work = _send_at_rate
        else:
            work = _send_messages if load.api == "message" else _send_batches
        control.send(READY)
        control.recv()
        cpu = _cpu_seconds()
        began = now()
        work(producer, load)
        producer.flush()
        control.send(Sent(load.messages, began, now(), _cpu_seconds() - cpu))


def _send_messages(producer: ister.Producer, load: Load) -> None:
    payload = bytes(load.message_bytes)
    rest = payload[STAMP_BYTES:]
    send = producer.send
    per_batch, left = load.messages_per_batch, load.messages
    while left > 0:
        send(STAMP.pack(now()) + rest if load.stamp_every else payload)
        for _ in range(min(per_batch, left) - 1):
            send(payload)
        left -= per_batch


def _send_batches(producer: ister.Producer, load: Load) -> None:
    payload = bytes(load.message_bytes)
    rest = payload[STAMP_BYTES:]
    per_batch, left = load.messages_per_batch, load.messages
    while left > 0:
        payloads = [payload] * min(per_batch, left)
        if load.stamp_every:
            payloads[0] = STAMP.pack(now()) + rest
        producer.send_batch(payloads)
        left -= per_batch


def _send_at_rate(producer: ister.Producer, load: Load) -> None:
    """Send each message when it is due. Its time stamp says when it should have been sent.

    The machine's timer may wake late, which is not the broker's delay: after a sleep the stamp is not before its end.
    """
    assert load.rate is not None
    rest = bytes(load.message_bytes)[STAMP_BYTES:]
    gap_ns = 1e9 / load.rate
    began = woke = now()
    sent = 0
    while sent < load.messages:
        due = began + int(sent * gap_ns)
        wait = due - now()
        if wait > SLEEP_NS_LEAST:
            time.sleep(wait / 1e9)
            woke = now()
        elif wait > 0:
            while now() < due:
                pass
        if load.api == "message":
            producer.send(STAMP.pack(max(due, woke)) + rest)
            sent += 1
        else:
            ready = min(load.messages - sent, max(1, int((now() - began) / gap_ns) - sent))
            dues = [began + int((sent + at) * gap_ns) for at in range(ready)]
            producer.send_batch([STAMP.pack(max(each, woke)) + rest for each in dues])
            sent += ready


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
    times = os.times()
    return times.user + times.system
