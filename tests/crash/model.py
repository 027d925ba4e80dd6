"""What the clients of a crash campaign know: messages, topics, subscriptions and attached consumers. Pure.

The oracle keeps it up to date, and finds violations.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from ister.subscriptions import SubscriptionType
from tests.crash.keys import Holders
from tests.crash.message import Identity

DELIVERED: Final = 1
ACKNOWLEDGED: Final = 2  # a client asked for it: whether the message comes again is open
CONFIRMED: Final = 4  # the broker confirmed that it is stored
DELAYED: Final = 8  # a client refused it with a delay: it may come after later ones
BURIED: Final = 16  # it is in the dead-letter topic


@dataclass(slots=True)
class Sent:
    """A message, as its producer knows it."""

    checksum: int
    offset: int | None = None
    receipted: bool = False
    may_be_missing: bool = False  # its producer ended without an answer
    refused: str = ""
    key: bytes = b""
    deliver_at_ms: int = 0  # 0: at once
    poison: bool = False


class Flags:
    """A few bits for every offset from 0 on."""

    __slots__ = ("_bits",)

    def __init__(self, bits: bytes | bytearray = b"") -> None:
        self._bits = bytearray(bits)

    def __getitem__(self, offset: int) -> int:
        return self._bits[offset] if offset < len(self._bits) else 0

    def add(self, offset: int, flag: int) -> bool:
        """Set a flag; return whether it was not set before."""
        if offset >= len(self._bits):
            self._bits.extend(bytes(offset + 1 - len(self._bits)))
        fresh = not self._bits[offset] & flag
        self._bits[offset] |= flag
        return fresh

    def copy(self) -> Flags:
        """Return a copy of the present flags."""
        return Flags(self._bits)

    @classmethod
    def below(cls, end: int, flags: int) -> Flags:
        """Return flags that are set for every offset below `end`, and no other."""
        return cls(bytes([flags]) * end)


class ReadBack:
    """A reading of a topic, from an offset on, in order; `once`: no message may come twice."""

    def __init__(self, topic: str, start: int = 0, *, once: bool = False) -> None:
        self.topic = topic
        self.once = once
        self.next = start
        self.last: dict[int, int] = {}
        self.places: dict[Identity, int] = {}


@dataclass(slots=True)
class Topic:
    """What is known about a topic."""

    sent: dict[Identity, Sent] = field(default_factory=dict)
    at: dict[int, Identity] = field(default_factory=dict)
    by_key: defaultdict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # ascending
    poison: list[int] = field(default_factory=list)
    waiting: list[Identity] = field(default_factory=list)  # receipts that were not read back yet
    end: int = 0  # after the highest offset that any client has seen


class Attached:
    """One consumer of one subscription, from its opening to its close."""

    __slots__ = ("before", "given", "mark", "name", "reached", "subscription", "unconfirmed")

    def __init__(self, subscription: Subscription, name: str) -> None:
        self.subscription = subscription
        self.name = name
        self.before = subscription.flags.copy()
        self.given = Flags()
        self.reached = 0  # everything below was delivered to it, or acknowledged by some consumer
        self.unconfirmed: list[int] = []
        self.mark = 0  # the value of `holders.found` when `unconfirmed` was taken


class Subscription:
    """What the clients of one subscription know; `max_deliveries`: its consumers refuse poison messages."""

    def __init__(self, topic: str, name: str, kind: SubscriptionType, *, max_deliveries: int = 0) -> None:
        self.topic = topic
        self.name = name
        self.kind = kind
        self.max_deliveries = max_deliveries
        self.in_order = kind in ("exclusive", "failover")
        self.timed = kind in ("shared", "key-shared")  # delivery times are observed
        self.holders = Holders() if kind == "key-shared" else None
        self.flags = Flags()
        self._confirmed_below = 0
        self._acknowledged_below = 0

    def moved(self, offset: int) -> None:
        """The subscription continues at an offset: everything below is done, nothing else is."""
        self.flags = Flags.below(offset, DELIVERED | ACKNOWLEDGED | CONFIRMED)
        self._confirmed_below = self._acknowledged_below = offset

    def unconfirmed(self, end: int) -> list[int]:
        """Return the offsets below `end` whose acknowledgment is not confirmed."""
        while self._confirmed_below < end and self.flags[self._confirmed_below] & CONFIRMED:
            self._confirmed_below += 1
        return [o for o in range(self._confirmed_below, end) if not self.flags[o] & CONFIRMED]

    def unacknowledged(self, end: int) -> list[int]:
        """Return the offsets below `end` that no client ever acknowledged."""
        while self._acknowledged_below < end and self.flags[self._acknowledged_below] & ACKNOWLEDGED:
            self._acknowledged_below += 1
        return [o for o in range(self._acknowledged_below, end) if not self.flags[o] & ACKNOWLEDGED]

    def __str__(self) -> str:
        return f"{self.topic}/{self.name}"
