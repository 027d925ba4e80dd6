"""Producers of the crash campaign: the client library's, in bursts or one by one, and one that speaks raw frames.

Each is a thread that tells the oracle what it is about to send, and the answers.

Invariants
- a pause begins after the last receipt: nothing is in transit while `idle` is set
- no number is used for two messages
"""

from __future__ import annotations

import threading
import time
from functools import partial
from random import Random
from typing import Any, Final

import zmq

import ister
from ister.errors import IsterError, RemoteError, TimeoutExpiredError
from ister.receipts import Receipt
from ister.wire import Key, Type, decode_header, encode_header
from tests.crash.message import Identity, make_payload, random_body
from tests.crash.oracle import POISON, Oracle

STUCK_S: Final = 60.0  # seconds; no kill of this campaign makes a broker unavailable for so long
KEYS: Final = 40
TIMED_ONE_IN: Final = 6
SHORT_S: Final = 0.8  # seconds from sending to the delivery time, at most
LONG_S: Final = 3.0  # seconds, for a few messages
POISON_ONE_IN: Final = 60


class Recovery:
    """When each topic sent a receipt for a message that was sent after the last kill."""

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics
        self._changed = threading.Condition()
        self._killed_at = 0.0
        self._answered: dict[str, float] = {}

    def begin(self) -> None:
        """Note that a process was killed just now."""
        with self._changed:
            self._killed_at = time.monotonic()
            self._answered = {}

    def answered(self, topic: str, sent_at: float) -> None:
        """Note the receipt of a message that was sent at a time."""
        if topic in self._answered or sent_at < self._killed_at:
            return
        with self._changed:
            if sent_at >= self._killed_at:
                self._answered.setdefault(topic, time.monotonic())
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> float | None:
        """Return the seconds from the kill to the first receipt of the last topic, or None after `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._answered) == len(self._topics), timeout_s):
                return None
            return max(self._answered.values()) - self._killed_at

    def silent(self) -> list[str]:
        """Return the topics that have not sent a receipt yet."""
        return [topic for topic in self._topics if topic not in self._answered]


class Signals:
    """What the campaign tells its clients."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.running = threading.Event()  # cleared: wait for what is in transit, then pause


class ProducerThread(threading.Thread):
    """The base of all producers: numbers, payloads, pauses."""

    def __init__(
        self, number: int, topic: str, oracle: Oracle, recovery: Recovery, signals: Signals, random: Random
    ) -> None:
        super().__init__(name=f"producer-{number}-{topic}", daemon=True)
        self.number = number
        self.topic = topic
        self.oracle = oracle
        self.recovery = recovery
        self.signals = signals
        self.random = random
        self.idle = threading.Event()
        self._next = 0

    def make(self, **features: Any) -> tuple[Identity, bytes]:
        """Return the next message, after telling the oracle; `features` are those of `Oracle.sent`."""
        payload = make_payload(self.number, self._next, random_body(self.random))
        identity = self.oracle.sent(self.topic, payload, **features)
        self._next += 1
        return identity, payload

    def run(self) -> None:
        """Send until the end, with pauses."""
        try:
            self.begin()
            while not self.signals.ended.is_set():
                if self.signals.running.is_set():
                    self.idle.clear()
                    self.send_some()
                    time.sleep(self.random.uniform(0.005, 0.03))
                else:
                    self.settle()
                    self.idle.set()
                    self.signals.running.wait(0.2)
        except Exception as error:  # noqa: BLE001 (whatever ends a client is a finding)
            if not self.signals.ended.is_set():
                self.oracle.violated("client-failed", f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self.idle.set()

    def begin(self) -> None:
        """Open the producer."""

    def send_some(self) -> None:
        """Send a few messages."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until everything is answered."""


class LibraryProducer(ProducerThread):
    """A named producer of the client library; it is closed and opened again now and then."""

    def __init__(self, client: ister.Client, lone: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._client = client
        self._lone = lone
        self._producer: ister.Producer | None = None

    def begin(self) -> None:
        self._producer = self._client.producer(self.topic, name=f"campaign-{self.number}", timeout=STUCK_S)

    def send_some(self) -> None:
        producer = self._producer
        assert producer is not None
        if self.random.randrange(60) == 0:
            self.settle()
            self._close(producer)
            self.begin()
            return
        for _ in range(1 if self._lone else self.random.randint(1, 12)):
            receipt, identity = self._send(producer)
            sent_at = time.monotonic()
            receipt.add_done_callback(partial(self._done, identity, sent_at))
            if self._lone:
                self._wait(receipt)

    def _send(self, producer: ister.Producer) -> tuple[Receipt, Identity]:
        identity, payload = self.make()
        return producer.send(payload, timeout=STUCK_S), identity

    def _close(self, producer: ister.Producer) -> None:
        try:
            producer.close(2.0)
        except TimeoutExpiredError:
            pass  # everything was answered before; it is closed in any case

    def _wait(self, receipt: Receipt) -> None:
        try:
            receipt.result(STUCK_S)
        except TimeoutExpiredError as error:
            self.oracle.violated("stuck", f"{self.name}: {error}")
        except IsterError:
            pass  # `_done` has reported it

    def _done(self, identity: Identity, sent_at: float, receipt: Receipt) -> None:
        try:
            offset = receipt.result(0).offset
        except RemoteError as error:
            self.oracle.refused(self.topic, identity, error.code)
        except IsterError:
            self.oracle.abandoned(self.topic, identity)
        else:
            self.oracle.receipted(self.topic, identity, offset)
            self.recovery.answered(self.topic, sent_at)

    def settle(self) -> None:
        assert self._producer is not None
        try:
            self._producer.flush(STUCK_S)
        except TimeoutExpiredError as error:
            self.oracle.violated("stuck", f"{self.name}: {error}")


class ParcelProducer(LibraryProducer):
    """A producer whose messages have keys and delivery times, some of them poison."""

    def _send(self, producer: ister.Producer) -> tuple[Receipt, Identity]:
        random = self.random
        # some keys are hot, and some messages have none
        key = b"" if random.randrange(10) == 0 else b"%d" % int(random.random() ** 2 * KEYS)
        wait_s = 0.0
        if random.randrange(TIMED_ONE_IN) == 0:
            wait_s = random.uniform(0.0, LONG_S if random.randrange(20) == 0 else SHORT_S)
        deliver_at_ms = round((time.time() + wait_s) * 1000) if wait_s else 0
        poison = random.randrange(POISON_ONE_IN) == 0
        identity, payload = self.make(key=key, deliver_at_ms=deliver_at_ms, poison=poison)
        receipt = producer.send(
            payload,
            key=key or None,
            attributes={POISON: "yes"} if poison else None,
            deliver_at=deliver_at_ms or None,
            timeout=STUCK_S,
        )
        return receipt, identity


class RawProducer(ProducerThread):
    """A producer with a bare socket: one message at a time, resent until there is a receipt."""

    def __init__(self, endpoints: list[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._endpoints = endpoints
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._producer_id = self.random.getrandbits(62) | 1
        self._sequence = 0

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    def _connect(self, endpoint: str) -> None:
        self._drop()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._ask({Key.TYPE: Type.HELLO, Key.VERSION: [1]}, Type.WELCOME)

    def _ask(self, header: dict[int, Any], wanted: int, *body: bytes) -> dict[int, Any]:
        """Send, and return the answer; raises TimeoutError if there is none, or one with action `retry`."""
        assert self._socket is not None
        self._socket.send_multipart([encode_header(header), *body])
        deadline = time.monotonic() + 1.0
        while (left := deadline - time.monotonic()) > 0 and self._socket.poll(int(left * 1000) + 1):
            answer = decode_header(self._socket.recv_multipart()[0])
            if answer[Key.TYPE] in (wanted, Type.MOVED):
                return answer
            if answer[Key.TYPE] == Type.ERROR:
                raise TimeoutError(answer[Key.CODE])
        raise TimeoutError("no answer")

    def _open(self) -> None:
        endpoint = self.random.choice(self._endpoints)
        while True:
            self._connect(endpoint)
            opened = {Key.TYPE: Type.OPEN_PRODUCER, Key.REF: 1, Key.HANDLE: 1, Key.TOPIC: self.topic}
            opened |= {Key.PRODUCER: self._producer_id, Key.SEQUENCE: self._sequence}
            answer = self._ask(opened, Type.OPENED)
            if answer[Key.TYPE] == Type.OPENED:
                return
            endpoint = answer[Key.ENDPOINT]

    def send_some(self) -> None:
        identity, payload = self.make()
        sent_at = time.monotonic()
        while True:
            if time.monotonic() - sent_at > STUCK_S:
                self.oracle.violated("stuck", f"{self.name}: no receipt for {identity} in {STUCK_S} s")
                self.oracle.abandoned(self.topic, identity)
                self._sequence += 1
                return
            try:
                if self._socket is None:
                    self._open()
                publish = {Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: self._sequence}
                pairs = self._ask(publish, Type.RECEIPT, payload)[Key.RECEIPTS]
            except TimeoutError:
                self._drop()
                time.sleep(0.05)
                continue
            [sequence, offset] = pairs
            if sequence != self._sequence:
                self.oracle.violated(
                    "wrong-receipt", f"{self.name}: for {sequence}, sent was {self._sequence}"
                )
            self._sequence += 1
            self.oracle.receipted(self.topic, identity, None if offset == (1 << 64) - 1 else offset)
            self.recovery.answered(self.topic, sent_at)
            return

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._drop()
            self._context.term()
