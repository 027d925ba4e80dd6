"""What the clients of a crash campaign know together: messages, topics, subscriptions and who is attached. Pure.

The oracle keeps it, and says what must not be.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from ister.subscriptions import SubscriptionType
from tests.crash.keys import Holders
from tests.crash.message import Identity

DELIVERED: Final = 1
ACKNOWLEDGED: Final = 2  # a client asked for it: it may come again, or not
CONFIRMED: Final = 4  # the broker said that it is written
DELAYED: Final = 8  # a client gave it back, to come later: also behind those that follow it
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
        """Return what is set now."""
        return Flags(self._bits)

    @classmethod
    def below(cls, end: int, flags: int) -> Flags:
        """Return flags that are set for everything below `end`, and for nothing else."""
        return cls(bytes([flags]) * end)


class ReadBack:
    """One reading of a topic, from an offset on, in order; `once`: nothing of it may come again."""

    def __init__(self, topic: str, start: int = 0, *, once: bool = False) -> None:
        self.topic = topic
        self.once = once
        self.next = start
        self.last: dict[int, int] = {}
        self.places: dict[Identity, int] = {}


@dataclass(slots=True)
class Topic:
    """What is believed of a topic."""

    sent: dict[Identity, Sent] = field(default_factory=dict)
    at: dict[int, Identity] = field(default_factory=dict)
    by_key: defaultdict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # ascending
    poison: list[int] = field(default_factory=list)
    waiting: list[Identity] = field(default_factory=list)  # receipts not read back yet
    end: int = 0  # behind the highest offset that anybody has seen


class Attached:
    """One consumer of one subscription, from its opening to its close."""

    __slots__ = ("before", "given", "mark", "name", "reached", "subscription", "unconfirmed")

    def __init__(self, subscription: Subscription, name: str) -> None:
        self.subscription = subscription
        self.name = name
        self.before = subscription.flags.copy()
        self.given = Flags()
        self.reached = 0  # everything below was given to it, or acknowledged by somebody
        self.unconfirmed: list[int] = []
        self.mark = 0  # what `holders` had found when `unconfirmed` was taken


class Subscription:
    """What the clients of one subscription know together; `max_deliveries`: its consumers refuse what is poison."""

    def __init__(self, topic: str, name: str, kind: SubscriptionType, *, max_deliveries: int = 0) -> None:
        self.topic = topic
        self.name = name
        self.kind = kind
        self.max_deliveries = max_deliveries
        self.in_order = kind in ("exclusive", "failover")
        self.timed = kind in ("shared", "key-shared")  # times of delivery count
        self.holders = Holders() if kind == "key-shared" else None
        self.flags = Flags()
        self._confirmed_below = 0
        self._acknowledged_below = 0

    def moved(self, offset: int) -> None:
        """It goes on there: everything below is done with, nothing else is."""
        self.flags = Flags.below(offset, DELIVERED | ACKNOWLEDGED | CONFIRMED)
        self._confirmed_below = self._acknowledged_below = offset

    def unconfirmed(self, end: int) -> list[int]:
        """Return what is below `end`, and not known to be written down as acknowledged."""
        while self._confirmed_below < end and self.flags[self._confirmed_below] & CONFIRMED:
            self._confirmed_below += 1
        return [o for o in range(self._confirmed_below, end) if not self.flags[o] & CONFIRMED]

    def unacknowledged(self, end: int) -> list[int]:
        """Return what is below `end`, and nobody ever acknowledged."""
        while self._acknowledged_below < end and self.flags[self._acknowledged_below] & ACKNOWLEDGED:
            self._acknowledged_below += 1
        return [o for o in range(self._acknowledged_below, end) if not self.flags[o] & ACKNOWLEDGED]

    def __str__(self) -> str:
        return f"{self.topic}/{self.name}"
