"""The state of the broker for tests, and its changes: topics, subscriptions, consumers, who gets what next.

It knows no names of others, no frames of the protocol and no clock: see `catalogue.py`, `handles.py`, `delivering.py`.
Pure, and not fast.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Final

from ister import wire
from ister.subscriptions import READER, TRAITS

DELIVER_MESSAGES_MAX: Final = 1000


@dataclass(slots=True)
class Record:
    """One message."""

    payload: bytes
    key: bytes
    attributes: bytes
    deliver_at: int
    timestamp: int


@dataclass(slots=True)
class Topic:
    """A topic: all its messages, and its producers."""

    name: str
    strategy: str
    durability: str
    records: list[Record] = field(default_factory=list)
    expected: dict[int, int] = field(default_factory=dict)  # producer id: next sequence
    placed: dict[tuple[int, int], int] = field(default_factory=dict)  # (producer id, sequence): first offset
    owners: dict[int, Producer] = field(default_factory=dict)
    number: int = 0  # tells it from others of that name
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    readers: list[Subscription] = field(default_factory=list)  # one per reader; they end with their consumer
    settings: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return its entry in a list."""
        return {
            "topic": self.name,
            "strategy": self.strategy,
            "durability": self.durability,
            "settings": self.settings,
            "next_offset": len(self.records),
            "durable_end": len(self.records),
        }

    def place(self, start: Any) -> int:
        """Return the offset that a START means."""
        if isinstance(start, int):
            return min(start, len(self.records))
        if start == "earliest":
            return 0
        moment = int(start[5:]) if start.startswith("time:") else float("inf")
        later = (offset for offset, record in enumerate(self.records) if record.timestamp >= moment)
        return next(later, len(self.records))


@dataclass(slots=True, eq=False)
class Subscription:
    """A subscription, or the position of one reader."""

    topic: Topic
    name: str
    kind: str
    next: int  # everything from here on was never delivered
    again: list[int] = field(default_factory=list)  # to be redelivered, in order
    later: list[tuple[float, int]] = field(default_factory=list)  # refused with a delay
    attempts: dict[int, int] = field(default_factory=dict)
    acked: set[int] = field(default_factory=set)
    consumers: list[Consumer] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)  # how often messages were refused
    blocking: list[tuple[int, str]] = field(default_factory=list)  # poison that blocks it, with the reason
    dead_lettered: int = 0
    number: int = 0  # the number of the last topic created before it
    made: int = 0  # tells it from others of that name
    moves: int = 0  # how often it was moved

    def shown(self) -> dict[str, Any]:
        """Return its entry in a list."""
        pending = self.pending()
        shown: dict[str, Any] = {
            "topic": self.topic.name,
            "subscription": self.name,
            "type": self.kind,
            "settings": self.settings,
            "paused": self.settings.get("paused", 0),
            "in_flight": sum(len(consumer.held) for consumer in self.consumers),
            "position": self.next,
            "durable_end": len(self.topic.records),
            "unacknowledged": sum(end - first for first, end in pending),
            "waiting_redelivery": len(self.again) + len(self.later),
            "dead_lettered": self.dead_lettered,
            "blocked": bool(self.blocking),
        }
        if self.topic.strategy == "reliable":
            shown["pending"] = [list(pair) for pair in pending[:100]]
        return shown

    def pending(self) -> list[tuple[int, int]]:
        """Return the unacknowledged ranges."""
        left = {*range(self.next, len(self.topic.records)), *self.again} - self.acked
        left |= {offset for _, offset in self.later} | {o for each in self.consumers for o in each.held}
        left |= {offset for offset, _ in self.blocking}
        return runs(sorted(left))

    def seek(self, position: int) -> None:
        """Continue at an offset: everything below it is acknowledged, nothing from there on."""
        self.next = position
        self.moves += 1
        self.again, self.later, self.acked = [], [], set(range(position))
        self.attempts.clear()
        self.failures.clear()
        self.blocking.clear()
        for consumer in self.consumers:
            consumer.held.clear()

    def acknowledge(self, offsets: set[int]) -> None:
        """Mark messages as done, whichever consumer holds them; a reader acknowledges nothing."""
        if self.kind == READER:
            return
        self.acked |= offsets
        for each in self.consumers:
            each.held -= offsets
        self.again = [offset for offset in self.again if offset not in offsets]

    def detach(self, consumer: Consumer) -> None:
        """Detach a consumer: what it holds is redelivered."""
        if self in self.topic.readers:
            self.topic.readers.remove(self)
        self.again = sorted({*self.again, *consumer.held} - self.acked)
        for offset in consumer.held:
            self.attempts[offset] = self.attempts.get(offset, 1) + 1
        consumer.held.clear()
        if consumer in self.consumers:
            self.consumers.remove(consumer)

    def wake(self, now_s: float) -> None:
        """Queue what has waited long enough."""
        due = [offset for when, offset in self.later if when <= now_s]
        if due:
            self.later = [pair for pair in self.later if pair[0] > now_s]
            self.again = sorted({*self.again, *due} - self.acked)

    def explain(self) -> dict[str, Any]:
        """Return why messages flow or do not flow."""
        pending = sum(end - first for first, end in self.pending())
        reasons = []
        if self.blocking:
            text = f"the message at offset {self.blocking[0][0]} failed too often and blocks the subscription"
            reasons.append({"code": "poison-block", "text": text})
        if self.settings.get("paused"):
            reasons.append({"code": "paused", "text": "the subscription is paused"})
        if not self.consumers:
            reasons.append({"code": "no-consumers", "text": "no consumer is attached"})
        elif not any(consumer.messages > 0 and consumer.bytes > 0 for consumer in self.consumers):
            reasons.append({"code": "no-credit", "text": "no consumer has room for more"})
        if not pending:
            reasons.append({"code": "nothing-pending", "text": "everything is acknowledged"})
        numbers = {"consumers": len(self.consumers), "pending": pending}
        return {"flowing": not reasons, "reasons": reasons, "numbers": numbers}

    def take(self, consumer: Consumer, now_s: float, now_ms: int) -> list[int]:
        """Take the next messages for a consumer: ascending, of one attempt, and without gaps if it is not sparse."""
        most = min(DELIVER_MESSAGES_MAX, consumer.messages)
        self._look_ahead(len(self.topic.records) if TRAITS[self.kind].by_key else most, now_s, now_ms)
        taken: list[int] = []
        gaps = 0
        for offset in sorted(self.again):
            if len(taken) == most or gaps == wire.RANGES_MAX - 1:
                break
            if not self._is_for(consumer, self.topic.records[offset].key):
                continue
            if taken and self.attempts.get(offset, 1) != self.attempts.get(taken[0], 1):
                break
            if taken and offset != taken[-1] + 1:
                if not consumer.sparse:
                    break
                gaps += 1
            taken.append(offset)
        self.again = sorted({*self.again} - {*taken})
        return taken

    def _look_ahead(self, count: int, now_s: float, now_ms: int) -> None:
        while self.next < len(self.topic.records) and len(self.again) < count:
            wait_s = (self.topic.records[self.next].deliver_at - now_ms) / 1000
            if wait_s > 0 and TRAITS[self.kind].shares:
                self.later.append((now_s + wait_s, self.next))
            else:
                self.again.append(self.next)
            self.next += 1

    def _is_for(self, consumer: Consumer, key: bytes) -> bool:
        """Return whether a Key-Shared consumer may have a key: the holder of its messages, else by its hash."""
        if not TRAITS[self.kind].by_key or not key:
            return True
        for each in self.consumers:
            if any(self.topic.records[offset].key == key for offset in each.held):
                return each is consumer
        seats = sorted(self.consumers, key=lambda each: (each.session.secret, each.handle))
        return seats[zlib.crc32(key) % len(seats)] is consumer


@dataclass(slots=True, eq=False)
class Producer:
    """One producer's handle."""

    session: Session
    handle: int
    topic: Topic
    producer_id: int


@dataclass(slots=True, eq=False)
class Consumer:
    """One consumer's handle: its credit, and what it holds."""

    session: Session
    handle: int
    subscription: Subscription
    priority: int
    messages: int
    bytes: int
    sparse: bool = False
    held: set[int] = field(default_factory=set)
    told: bool | None = None  # whether it was told that it is active
    counts_moves: bool = False  # it says with its acknowledgments of how many moves it knows

    @property
    def topic(self) -> Topic:
        """The topic it reads."""
        return self.subscription.topic


@dataclass(slots=True, eq=False)
class Session:
    """One client's session."""

    secret: bytes
    peer: bytes
    handles: dict[int, Producer | Consumer] = field(default_factory=dict)


def runs(offsets: list[int]) -> list[tuple[int, int]]:
    """Return ascending offsets as half-open ranges."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found
