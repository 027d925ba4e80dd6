"""Consumers of the crash campaign: they acknowledge and refuse at random, close, and open again.

Each is a thread that tells the oracle what it received, what it is about to acknowledge, and what was confirmed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

import ister
from ister.consumer import Position
from ister.errors import ConnectionLostError, IsterError, RemoteError, TimeoutExpiredError
from ister.opening import CREDIT_MESSAGES
from tests.crash.model import Attached, ReadBack, Subscription
from tests.crash.oracle import POISON, Oracle
from tests.crash.producers import Signals

OPEN_WITHIN_S: Final = 30.0
CONFIRM_WITHIN_S: Final = 30.0
NACK_ONE_IN: Final = 40
FLUSH_ONE_IN: Final = 25
LEAVE_ONE_IN: Final = 400
LEAVE_SOON_ONE_IN: Final = 60  # a consumer that closes hands over its keys
UNTIL_ONE_IN: Final = 60
CREDITS: Final = (3, 100, CREDIT_MESSAGES)  # with little credit, most messages that wait are left in the log
MOVE_ONE_IN: Final = 150
MOVED_BACK_MAX: Final = 300  # messages
MOVE_WITHIN_S: Final = 30.0


class Taker:
    """A consumer, and what the oracle is told about it; it acknowledges a part of its messages (`acknowledge`, 0 to 1).

    A consumer that `moves` is the only one of its subscription, and seeks now and then.
    """

    def __init__(
        self,
        client: ister.Client,
        subscription: Subscription,
        oracle: Oracle,
        random: Random,
        *,
        name: str,
        acknowledge: float,
        priority: int = 0,
        moves: bool = False,
    ) -> None:
        self._moves = moves
        self._oracle = oracle
        self._random = random
        self._subscription = subscription
        # the last message's delivery, and the number of the consumer's opening in which it came
        self._delivery: object = None
        self._opening: int | None = None
        self._acknowledge = acknowledge
        self.attached: Attached = oracle.attach(subscription, name)
        self._consumer = client.consumer(
            subscription.topic,
            subscription=subscription.name,
            type=subscription.kind,
            start="earliest",
            priority=priority,
            credit_messages=random.choice(CREDITS),
            timeout=OPEN_WITHIN_S,
        )

    def take(self, timeout_s: float) -> bool:
        """Take a message, if there is one, and acknowledge it, refuse it or keep it, at random."""
        try:
            begun = self._consumer.attachment.begun
            message = self._consumer.receive(timeout_s)
            if message is None:
                return False
            if message.delivery is not self._delivery:
                self._delivery = message.delivery
                self._opening = begun if begun == self._consumer.attachment.begun else None
            key = message.key or b""
            self._oracle.delivered(self.attached, message.offset, message.payload, key, self._opening)
            self._decide(message)
            if self._moves and self._random.randrange(MOVE_ONE_IN) == 0:
                self._move(message.offset)
        except (ConnectionLostError, RemoteError) as error:
            self._complaint(error)
            return False
        if self._random.randrange(FLUSH_ONE_IN) == 0:
            self.confirm()
        return True

    def _decide(self, message: ister.Message) -> None:
        oracle, random = self._oracle, self._random
        if self._subscription.max_deliveries and POISON in message.attributes:
            oracle.given_back(self.attached, message.offset)
            self._consumer.nack(message, reason="it is poison")
        elif random.random() < self._acknowledge:
            if self._subscription.in_order and random.randrange(UNTIL_ONE_IN) == 0:
                oracle.acknowledged_until(self.attached, message.offset)
                self._consumer.ack_until(message)
            else:
                oracle.acknowledged(self.attached, (message.offset,))
                self._consumer.ack(message)
        elif random.randrange(NACK_ONE_IN) == 0:
            oracle.given_back(self.attached, message.offset)
            self._consumer.nack(message, delay=random.choice([0.0, 0.05, 0.3]), reason="by chance")

    def _move(self, offset: int) -> None:
        """Move the subscription to a random offset, and repeat the request until it is answered."""
        near = self._random.randint(max(0, offset - MOVED_BACK_MAX), offset)
        lately = datetime.now(UTC) - timedelta(seconds=1)
        place: Position = self._random.choice([near, near, "latest", lately])
        self._oracle.take_unconfirmed(self.attached)
        while True:
            try:
                self._oracle.moved(self.attached, self._consumer.seek(place, MOVE_WITHIN_S))
            except (ConnectionLostError, RemoteError) as error:
                if error.action != "retry":
                    raise
                self._oracle.counts[f"seek told {error.code}"] += 1
                time.sleep(0.1)
            else:
                return

    def _complaint(self, error: IsterError) -> None:
        """Handle a refused acknowledgment: whether those since the last confirmation are stored is unknown."""
        self._oracle.take_unconfirmed(self.attached)
        self._oracle.counts[f"consumer told {error.code}"] += 1
        if error.action == "stop" and error.code != "closed":
            self._oracle.violated("consumer-failed", f"{self.attached.name}: {error.code}: {error}")

    def confirm(self) -> None:
        """Wait until the acknowledgments are stored."""
        offsets = self._oracle.take_unconfirmed(self.attached)
        begun = self._consumer.attachment.begun
        try:
            self._consumer.flush(CONFIRM_WITHIN_S)
        except TimeoutExpiredError as error:
            self._oracle.violated("stuck", f"{self.attached.subscription} ({self.attached.name}): {error}")
        except (ConnectionLostError, RemoteError) as error:
            self._complaint(error)
        else:
            opening = begun if begun == self._consumer.attachment.begun else None
            self._oracle.confirmed(self.attached, offsets, opening)

    def leave(self) -> None:
        """Confirm and close."""
        self.confirm()
        self._oracle.left(self.attached)
        try:
            self._consumer.close()
        except TimeoutExpiredError:
            self._oracle.counts["closes without an answer"] += 1


class ConsumerThread(threading.Thread):
    """Opens a consumer, takes messages, closes, opens again; closes for every pause."""

    def __init__(
        self,
        name: str,
        oracle: Oracle,
        signals: Signals,
        random: Random,
        open_one: Callable[[], Taker],
        leave_one_in: int,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._oracle = oracle
        self._signals = signals
        self._random = random
        self._open_one = open_one
        self._leave_one_in = leave_one_in
        self.idle = threading.Event()

    def run(self) -> None:
        """Take messages until the end, with pauses."""
        try:
            while not self._signals.ended.is_set():
                if self._signals.running.is_set():
                    self.idle.clear()
                    self._sit()
                else:
                    self.idle.set()
                    self._signals.running.wait(0.2)
        except Exception as error:  # noqa: BLE001 (whatever ends a client is a finding)
            if not self._signals.ended.is_set():
                self._oracle.violated("client-failed", f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self.idle.set()

    def _sit(self) -> None:
        try:
            taker = self._open_one()
        except IsterError as error:
            if error.action != "retry":
                raise
            # the session of a killed worker may hold an Exclusive subscription until it times out
            self._oracle.counts[f"open told {error.code}"] += 1
            time.sleep(0.1)
            return
        while self._signals.running.is_set() and not self._signals.ended.is_set():
            if taker.take(0.1) and self._random.randrange(self._leave_one_in) == 0:
                break
        taker.leave()


class ReaderThread(threading.Thread):
    """Reads a topic from its first message on, through pauses and kills, with one reader that is never reopened."""

    def __init__(self, client: ister.Client, topic: str, oracle: Oracle, signals: Signals) -> None:
        super().__init__(name=f"reader of {topic}", daemon=True)
        self._client = client
        self._oracle = oracle
        self._signals = signals
        self.back = ReadBack(topic, once=True)

    def run(self) -> None:
        """Read until the end."""
        try:
            reader = self._client.reader(self.back.topic, start="earliest", timeout=OPEN_WITHIN_S)
            while not self._signals.ended.is_set():
                message = reader.receive(0.2)
                if message is not None:
                    self._oracle.read(self.back, message.offset, message.payload)
                    self._oracle.counts["read"] += 1
        except Exception as error:  # noqa: BLE001 (whatever ends a client is a finding)
            if not self._signals.ended.is_set():
                self._oracle.violated("client-failed", f"{self.name}: {type(error).__name__}: {error}")

    def caught_up(self, timeout_s: float) -> bool:
        """Wait until it has read all messages that clients know of; return whether it has."""
        deadline = time.monotonic() + timeout_s
        while self.back.next < self._oracle.end(self.back.topic):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True
