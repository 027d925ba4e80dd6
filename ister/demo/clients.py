"""The producers and consumers of the demonstration: ordinary clients, each a process of its own.

They do not know what is done to the broker, and do nothing about it: the demonstration shows what the client library
does by itself.

Invariants
- every receipt is checked; one that failed fails the demonstration
- a consumer writes a batch to its file before it acknowledges it
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, Literal

import ister
from ister.demo.source import SourceFile, lines_of
from ister.demo.spool import Spool
from ister.subscriptions import SubscriptionType

READY: Final = "ready"
GO: Final = "go"
HALF: Final = "half"  # half of the lines have their receipt
STOP: Final = "stop"  # acknowledge everything, and end
LEAVE: Final = "leave"  # end at once, with a batch in hand that is not acknowledged

BATCH_LINES: Final = 1_000
# seconds between batches of the second half until the failures are over, so that they happen under traffic
AMID_S: Final = 0.005
SAY_EVERY_NS: Final = 100_000_000
LOOK_EVERY_S: Final = 0.05
IN_HAND_WITHIN_S: Final = 1.0
CONNECT_S: Final = 30.0
RECEIPTS_WITHIN_S: Final = 60.0

now: Final = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Produced:
    """A producer's results: (line, offset, count) of each receipt; times in ns."""

    began_ns: int
    ended_ns: int
    receipts: list[tuple[int, int, int]]

    @property
    def messages(self) -> int:
        """How many messages have a receipt."""
        return sum(count for _, _, count in self.receipts)


@dataclass(frozen=True, slots=True)
class Consumed:
    """A consumer's results: messages received, and whether it was active (of a Failover subscription)."""

    messages: int
    active: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How many messages have their receipt, or were received, so far."""

    messages: int


@dataclass(frozen=True, slots=True)
class Seat:
    """A consumer's subscription and priority, and the file for what it receives."""

    topic: str
    subscription: str
    type: SubscriptionType
    priority: int
    spool: str


@contextmanager
def lost_connections_expected() -> Iterator[None]:
    """Suppress the client's warnings: the demonstration kills the worker, and reports that itself."""
    log = logging.getLogger("ister")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@lost_connections_expected()
def producer_main(
    control: Connection,
    endpoint: str,
    topic: str,
    files: tuple[SourceFile, ...],
    key: Literal["file", "number"],
    pace_s: float,
) -> None:
    """Send every line of the files, with `pace_s` between batches; the key is the file's name, or the line's number."""
    total = sum(file.count for file in files)
    with ister.connect(endpoint, timeout=CONNECT_S) as client, client.producer(topic) as producer:
        control.send(READY)
        control.recv()
        began = now()
        waiting: deque[tuple[int, ister.BatchReceipt]] = deque()
        receipts: list[tuple[int, int, int]] = []
        answered, line, half_told, hurry, told = 0, 0, False, False, began

        def settle(receipt: ister.BatchReceipt, at: int) -> int:
            published = receipt.result(RECEIPTS_WITHIN_S)
            receipts.append((at, -1 if published.offset is None else published.offset, published.count))
            return published.count

        for lines, keys in _batches(files, key):
            waiting.append((line, producer.send_batch(lines, keys=keys)))
            line += len(lines)
            while waiting and waiting[0][1].done():
                at, receipt = waiting.popleft()
                answered += settle(receipt, at)
            if not half_told and answered * 2 >= total:
                control.send(HALF)
                half_told = True
            if half_told and not hurry:
                hurry = control.poll(AMID_S)
            elif pace_s:
                time.sleep(pace_s)
            if now() - told > SAY_EVERY_NS:
                told = now()
                control.send(Progress(answered))
        if not half_told:
            control.send(HALF)
        while waiting:
            at, receipt = waiting.popleft()
            settle(receipt, at)
        control.send(Produced(began, now(), receipts))
        control.recv()


def _batches(
    files: tuple[SourceFile, ...], key: Literal["file", "number"]
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    payloads: list[bytes] = []
    keys: list[bytes] = []
    for file, lines in lines_of(files):
        payloads += lines
        if key == "file":
            keys += [file.name.encode()] * len(lines)
        else:
            keys += [number.to_bytes(8) for number in range(file.first, file.first + len(lines))]
        while len(payloads) >= BATCH_LINES:
            yield payloads[:BATCH_LINES], keys[:BATCH_LINES]
            del payloads[:BATCH_LINES], keys[:BATCH_LINES]
    if payloads:
        yield payloads, keys


@lost_connections_expected()
def consumer_main(control: Connection, endpoint: str, seat: Seat) -> None:
    """Receive, write down and acknowledge until told to stop or to leave."""
    spool = Spool(seat.spool)
    with (
        ister.connect(endpoint, timeout=CONNECT_S) as client,
        client.consumer(
            seat.topic,
            subscription=seat.subscription,
            type=seat.type,
            start="earliest",
            priority=seat.priority,
        ) as consumer,
    ):
        control.send(READY)
        received, told, word = 0, now(), ""
        while word == "":
            batch = consumer.receive_batch(timeout=LOOK_EVERY_S)
            if batch is not None:
                spool.write(now(), batch)
                received += len(batch)
                consumer.ack(batch)
            if now() - told > SAY_EVERY_NS:
                told = now()
                control.send(Progress(received))
            if control.poll():
                word = control.recv()
        if word == LEAVE:
            batch = consumer.receive_batch(timeout=IN_HAND_WITHIN_S)
            if batch is not None:
                spool.write(now(), batch)
                received += len(batch)
        active = consumer.active is True
    spool.close()
    control.send(Consumed(received, active))
    control.recv()
