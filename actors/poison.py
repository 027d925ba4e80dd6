"""Poison messages: they failed too often, and are buried as dead letters, dropped, or block until an operator decides;
pure.

Invariants
- a message is here from its last failure until it is buried (durable in the dead-letter topic), dropped, or tried again
- it is acknowledged after that, never before: after a crash of the broker it is delivered again
- messages are kept as ranges; single ones only while they are in transit, at most `IN_HAND_MAX`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ister.actors.ledger import Held
from ister.actors.options import effective_options
from ister.settings import SubscriptionSettings
from ister.storage.meta import SubscriptionMeta, TopicMeta

IN_HAND_MAX: Final = 500  # messages in transit to the dead-letter topic at a time
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
        """Return the policy of a subscription's settings, with the broker's defaults for those it does not have."""
        options = effective_options(topic, meta, defaults)
        return cls(
            int(options["max_deliveries"]),
            str(options["poison"]),
            int(options["backoff_ms_min"]),
            int(options["backoff_ms_max"]),
            str(options["dead_letter_topic"]),
        )

    def is_poison(self, failures: int) -> bool:
        """Say whether a message with this many failures is poison."""
        return 0 < self.max_deliveries <= failures


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Messages that failed too often: their range, since when (unix ms), and the last reason."""

    held: Held
    since_ms: int
    reason: str


class Poison:
    """The poison messages of one subscription."""

    def __init__(self) -> None:
        self.blocking: list[Poisoned] = []  # oldest first
        self._waiting: deque[Poisoned] = deque()  # to be buried
        self._in_hand: dict[int, Poisoned] = {}  # in transit, by offset
        self._put_off: dict[int, Poisoned] = {}  # refused by the dead-letter topic for the present, by offset
        self.messages = 0  # to be buried, including those in transit

    @property
    def ranges(self) -> int:
        """How many entries are kept."""
        return len(self.blocking) + len(self._waiting) + len(self._in_hand) + len(self._put_off)

    def bury(self, poisoned: Poisoned) -> None:
        """Queue messages for the dead-letter topic."""
        self._waiting.append(poisoned)
        self.messages += poisoned.held.end - poisoned.held.first

    def take(self) -> tuple[int, Poisoned] | None:
        """Return the next message to be sent, then in transit; None if there is none, or too many are."""
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
        """Queue a message in transit again: it could not be read."""
        poisoned = self._in_hand.pop(offset)
        held = poisoned.held._replace(first=offset, end=offset + 1)
        self._waiting.appendleft(Poisoned(held, poisoned.since_ms, poisoned.reason))

    def put_off(self, offset: int) -> None:
        """Set a message in transit aside: the dead-letter topic refused it, and others continue."""
        if (poisoned := self._in_hand.pop(offset, None)) is not None:
            held = poisoned.held._replace(first=offset, end=offset + 1)
            self._put_off[offset] = Poisoned(held, poisoned.since_ms, poisoned.reason)

    @property
    def has_put_off(self) -> bool:
        """Whether a message was set aside."""
        return bool(self._put_off)

    def take_up(self) -> None:
        """Queue what was set aside again, after everything else: the topic may take it now."""
        self._waiting.extend(self._put_off.values())
        self._put_off.clear()

    def in_hand(self) -> list[tuple[int, Poisoned]]:
        """Return the messages in transit: they may have to be sent again."""
        return list(self._in_hand.items())

    def done(self, offsets: Iterable[int]) -> list[int]:
        """Note that messages are buried, or need not be; return those that were in transit."""
        found = [offset for offset in offsets if self._in_hand.pop(offset, None) is not None]
        self.messages -= len(found)
        return found

    def unblock(self) -> list[Poisoned]:
        """Take out and return what blocks."""
        blocking, self.blocking = self.blocking, []
        return blocking
