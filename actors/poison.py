"""What failed too often: buried as dead letters, dropped, or in the way of everything until an operator decides; pure.

Invariants
- a message is here from its last failure until it is buried (durable in the dead-letter topic), dropped, or tried again
- it is acknowledged after that, never before: what is here when the broker dies is delivered again
- what is here is ranges; single messages only while they are on their way, at most `IN_HAND_MAX`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ister.actors.ledger import Held
from ister.actors.options import effective_options
from ister.settings import SubscriptionSettings
from ister.storage.catalogue import SubscriptionMeta, TopicMeta

IN_HAND_MAX: Final = 500  # messages on their way to the dead-letter topic at a time
REASON_UNKNOWN: Final = "not acknowledged"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a subscription treats messages that fail."""

    max_deliveries: int  # 0: no limit
    poison: str  # "dead-letter", "drop" or "block"
    backoff_ms_min: int
    backoff_ms_max: int
    dead_letter_topic: str

    @classmethod
    def of(cls, topic: TopicMeta, meta: SubscriptionMeta, defaults: SubscriptionSettings) -> Policy:
        """Return the policy that a subscription's settings give it, and the broker's where it has none of its own."""
        options = effective_options(topic, meta, defaults)
        return cls(
            int(options["max_deliveries"]),
            str(options["poison"]),
            int(options["backoff_ms_min"]),
            int(options["backoff_ms_max"]),
            str(options["dead_letter_topic"]),
        )

    def is_poison(self, failures: int) -> bool:
        """Say whether what failed so often is to be delivered no more."""
        return 0 < self.max_deliveries <= failures


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Messages that failed too often: which, since when (unix ms), and what was said the last time."""

    held: Held
    since_ms: int
    reason: str


class Poison:
    """What failed too often of one subscription."""

    def __init__(self) -> None:
        self.blocking: list[Poisoned] = []  # oldest first
        self._waiting: deque[Poisoned] = deque()  # to be buried
        self._in_hand: dict[int, Poisoned] = {}  # on their way, by offset
        self._put_off: dict[int, Poisoned] = {}  # not taken by the dead-letter topic, for the time being
        self.messages = 0  # to be buried, in hand included

    @property
    def ranges(self) -> int:
        """How many entries are kept."""
        return len(self.blocking) + len(self._waiting) + len(self._in_hand) + len(self._put_off)

    def bury(self, poisoned: Poisoned) -> None:
        """Queue messages for the dead-letter topic."""
        self._waiting.append(poisoned)
        self.messages += poisoned.held.end - poisoned.held.first

    def take(self) -> tuple[int, Poisoned] | None:
        """Return the next message to be put on its way; it is in hand from now on. None: nothing, or too many are."""
        if not self._waiting or len(self._in_hand) >= IN_HAND_MAX:
            return None
        poisoned = self._waiting[0]
        offset = poisoned.held.first
        if offset + 1 >= poisoned.held.end:
            self._waiting.popleft()
        else:
            self._waiting[0] = Poisoned(
                poisoned.held._replace(first=offset + 1), poisoned.since_ms, poisoned.reason
            )
        self._in_hand[offset] = poisoned
        return offset, poisoned

    def put_back(self, offset: int) -> None:
        """Let a message in hand wait again: it could not be read now."""
        poisoned = self._in_hand.pop(offset)
        held = poisoned.held._replace(first=offset, end=offset + 1)
        self._waiting.appendleft(Poisoned(held, poisoned.since_ms, poisoned.reason))

    def put_off(self, offset: int) -> None:
        """Let a message in hand wait apart, in nobody's way: the dead-letter topic does not take it."""
        if (poisoned := self._in_hand.pop(offset, None)) is not None:
            held = poisoned.held._replace(first=offset, end=offset + 1)
            self._put_off[offset] = Poisoned(held, poisoned.since_ms, poisoned.reason)

    @property
    def has_put_off(self) -> bool:
        """Whether something was put off."""
        return bool(self._put_off)

    def take_up(self) -> None:
        """Try what was put off once more, behind everything else: its topic may take it now."""
        self._waiting.extend(self._put_off.values())
        self._put_off.clear()

    def in_hand(self) -> list[tuple[int, Poisoned]]:
        """Return what is on its way: it may have to be sent once more."""
        return list(self._in_hand.items())

    def done(self, offsets: Iterable[int]) -> list[int]:
        """Note that messages are buried, or need not be; return those that were in hand."""
        found = [offset for offset in offsets if self._in_hand.pop(offset, None) is not None]
        self.messages -= len(found)
        return found

    def unblock(self) -> list[Poisoned]:
        """Take out and return what blocks."""
        blocking, self.blocking = self.blocking, []
        return blocking
