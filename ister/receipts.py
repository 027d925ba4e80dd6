"""What became of the messages a program sent: receipts, as views of the shipment they left with.

A `Receipt` points into the `Shipment` of its batch, so that an answer is written down once per batch. Waiting is asked
of the producer. What is sent, and sent again, is in `publication.py`. No socket, clock or thread lives here.

Invariants
- a `Shipment` is resolved once, with an offset or an error, never both
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ister import wire
from ister.compiling import Unchecked
from ister.errors import IsterError, TimeoutExpiredError
from ister.published import Published, Waiter


class Shipment:
    """What becomes of one batch on the wire; every receipt of its messages points here."""

    __slots__ = ("callbacks", "error", "first", "holes", "observed", "resolved", "topic", "waiter")

    def __init__(self, topic: str, waiter: Waiter[Shipment] | None) -> None:
        self.topic = topic
        self.waiter = waiter
        self.resolved = False
        self.observed = False  # somebody has seen its error, or asked to be called
        self.first = 0
        self.error: IsterError | None = None
        self.callbacks: list[Callable[[], Any]] | None = None
        self.holes: Sequence[
            int
        ] = ()  # indexes, ascending, that no message has (see `lane.py`); nearly always none

    def index_of(self, place: int) -> int:
        """Return the index, as receipts have it, of the message at this place of the batch."""
        for hole in self.holes:
            place += hole <= place
        return place

    def published(self, index: int, count: int, timeout: float | Unchecked | None) -> Published:
        """Wait and return where `count` messages from `index` on are, or raise why they are nowhere."""
        if not self.resolved and self.waiter is not None:
            self.waiter.wait_for(self, timeout)
        return self.outcome(index, count, timeout)

    def outcome(self, index: int, count: int, timeout: float | Unchecked | None) -> Published:
        """Return where messages are, or raise why they are nowhere, or not yet; never waits."""
        if not self.resolved:
            why = "" if self.waiter is None else self.waiter.why_waiting()
            raise TimeoutExpiredError(f"no receipt from topic {self.topic!r} within {timeout} s{why}")
        if self.error is not None:
            self.observed = True
            raise self.error
        if self.first == wire.OFFSET_UNKNOWN:
            return Published(self.topic, None, count, duplicate=True)
        return Published(self.topic, self.first + index - bisect_left(self.holes, index), count)


class BatchReceipt:
    """The receipt of messages that were sent together; it is answered later."""

    __slots__ = ("count", "index", "shipment")

    def __init__(self, shipment: Shipment, index: int, count: int) -> None:
        self.shipment = shipment
        self.index = index
        self.count = count

    def done(self) -> bool:
        """Whether the broker has answered: stored as the topic promises, or refused."""
        return self.shipment.resolved

    def result(self, timeout: float | Unchecked | None = None) -> Published:
        """Wait up to `timeout` seconds (`None`: forever) and return where the messages are.

        Raises `TimeoutExpiredError`, or the error with which the broker refused them.
        """
        return self.shipment.published(self.index, self.count, timeout)

    def add_done_callback(self, call: Callable[[BatchReceipt], Any]) -> None:
        """Call `call(receipt)` once the broker has answered, in the thread that reads the answer; keep it short."""
        _call_when_done(self.shipment, lambda: call(self))


class Receipt:
    """The receipt of one message; it is answered later."""

    # Set by `receipt_of`, or by who cannot afford the call: one is made for every message, and calling an `__init__`
    # would take longer than all else.
    __slots__ = ("index", "shipment")

    shipment: Shipment
    index: int

    def done(self) -> bool:
        """Whether the broker has answered: stored as the topic promises, or refused."""
        return self.shipment.resolved

    def result(self, timeout: float | Unchecked | None = None) -> Published:
        """Wait up to `timeout` seconds (`None`: forever) and return where the message is.

        Raises `TimeoutExpiredError`, or the error with which the broker refused it.
        """
        return self.shipment.published(self.index, 1, timeout)

    def add_done_callback(self, call: Callable[[Receipt], Any]) -> None:
        """Call `call(receipt)` once the broker has answered, in the thread that reads the answer; keep it short."""
        _call_when_done(self.shipment, lambda: call(self))


def receipt_of(shipment: Shipment, index: int) -> Receipt:
    """Return the receipt of a message."""
    receipt = Receipt()
    receipt.shipment = shipment
    receipt.index = index
    return receipt


def _call_when_done(shipment: Shipment, call: Callable[[], Any]) -> None:
    with nullcontext() if shipment.waiter is None else shipment.waiter.lock:
        if not shipment.resolved:
            if shipment.callbacks is None:
                shipment.callbacks = []
            shipment.callbacks.append(call)
            return
    try:
        call()
    except Exception:
        logging.getLogger("ister").exception("a callback failed")
