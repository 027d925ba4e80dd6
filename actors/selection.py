"""The consumers of one subscription, and the choice of the next one; pure.

Invariants
- Exclusive has at most one consumer; a second is refused
- Failover has one active consumer: the lowest priority number, then the oldest
- Shared takes turns round-robin among the consumers with credit, one delivery per turn; asking in vain is no turn
- a consumer that holds far more unacknowledged messages than the others is passed over while one of them has credit, up
  to `PASSED_MAX` at a time
- a consumer without message credit or byte credit, or whose connection is full, is never chosen
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from ister.errors import RemoteError
from ister.subscriptions import TRAITS

# Why a consumer gets nothing: its connection is full or lost, it holds too many ranges, or it closes or reopens.
BlockedBy = Literal["", "full", "lost", "crowded", "leaving"]
# consumers passed over for one delivery, since of ten thousand thousands may hold too much
PASSED_MAX: Final = 32
HOARD_SPARE: Final = 64  # messages that a consumer may always hold, however few the others hold


@dataclass(slots=True, eq=False)
class Member:
    """One consumer as its subscription sees it: its credit in messages and bytes, and its rank."""

    key: int
    priority: int
    age: int
    messages: int
    bytes: int
    blocked: bool = False
    blocked_by: BlockedBy = ""  # the reason
    queued: bool = False  # whether it is in the round-robin queue
    sparse: bool = False  # it understands deliveries whose offsets are not consecutive
    client: str = ""  # the name that its client gave itself
    outstanding: int = 0  # messages it was given and has neither acknowledged nor returned
    holds_since_ms: int = 0  # since when it holds any (unix ms)
    # returns when its client last sent something, in monotonic seconds
    heard_s: Callable[[], float] = lambda: 0.0
    connected: Callable[[], bool] = lambda: True  # returns False when its connection is known to be lost

    @property
    def ready(self) -> bool:
        """Whether something may be delivered to it."""
        return self.messages > 0 and self.bytes > 0 and not self.blocked


class Roster:
    """The consumers of one subscription, in the order of their turns."""

    def __init__(self, subscription_type: str, name: str) -> None:
        traits = TRAITS[subscription_type]
        self.shares = traits.shares
        self._ordered = not traits.shares
        self._alone = not (traits.shares or traits.stands_by)
        self._name = name
        self._members: dict[int, Member] = {}
        self._turns: deque[Member] = deque()
        # a heap, for Exclusive and Failover; it may contain consumers that have left
        self._ranks: list[tuple[int, int, Member]] = []
        self._ages = 0
        self.active: Member | None = None  # for Exclusive and Failover
        self.outstanding = 0

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: int) -> bool:
        return key in self._members

    @property
    def members(self) -> list[Member]:
        """All of them, the oldest first."""
        return list(self._members.values())

    def get(self, key: int) -> Member | None:
        """Return a consumer, None if it is not attached."""
        return self._members.get(key)

    def attach(self, key: int, *, priority: int, messages: int, bytes: int, sparse: bool = False) -> Member:
        """Add a consumer; raises `RemoteError` subscription-busy if an Exclusive subscription has one."""
        if self._alone and self._members:
            raise RemoteError(
                "subscription-busy",
                f"subscription {self._name!r} is exclusive and has a consumer; try again when it has left",
            )
        self._ages += 1
        member = Member(key, priority, self._ages, messages, bytes, sparse=sparse)
        self._members[key] = member
        if self._ordered:
            heapq.heappush(self._ranks, (priority, member.age, member))
        self._elect()
        self._queue(member)
        return member

    def detach(self, key: int) -> None:
        """Remove a consumer, if it is attached."""
        member = self._members.pop(key, None)
        if member is not None:
            member.blocked = True
            if member.queued:
                self._turns.remove(member)
                member.queued = False
            self.outstanding -= member.outstanding
            self._elect()

    def add_credit(self, key: int, messages: int, bytes: int, *, messages_max: int, bytes_max: int) -> None:
        """Give a consumer more credit, up to the limits that WELCOME announced."""
        member = self._members.get(key)
        if member is not None:
            member.messages = min(member.messages + messages, messages_max)
            member.bytes = min(member.bytes + bytes, bytes_max)
            self._queue(member)

    def set_credit(self, key: int, messages: int, bytes: int) -> None:
        """Replace a consumer's credit, as a resumed consumer asks."""
        member = self._members.get(key)
        if member is not None:
            member.messages, member.bytes = messages, bytes
            member.blocked, member.blocked_by = False, ""
            self._queue(member)

    def block(self, key: int, blocked: bool, why: BlockedBy = "") -> None:
        """Note that a consumer gets nothing at present, and why, or that it may again."""
        member = self._members.get(key)
        if member is not None:
            member.blocked, member.blocked_by = blocked, why
            self._queue(member)

    def choose(self) -> Member | None:
        """Return the consumer whose turn it is, or None if none can take anything."""
        if self._ordered:
            active = self.active
            return active if active is not None and active.ready else None
        turns = self._turns
        passed = 0
        while turns:
            member = turns[0]
            if not member.ready:
                turns.popleft().queued = False
            elif passed < min(len(turns), PASSED_MAX) and self._hoards(member):
                turns.rotate(-1)
                passed += 1
            elif passed and self._hoards(member):
                turns.rotate(passed)  # all of them hold too much: the first one gets it
                return turns[0]
            else:
                return member
        return None

    def share(self, backlog: int) -> int:
        """Return how many of `backlog` messages are one consumer's fair share: few at low rates, all at high rates."""
        ready = max(1, len(self._turns))
        return max(1, -(-backlog // ready))

    def _hoards(self, member: Member) -> bool:
        others = len(self._members) - 1
        return (
            member.outstanding * others > 2 * (self.outstanding - member.outstanding) + HOARD_SPARE * others
        )

    def settle(self, key: int, messages: int) -> None:
        """Note that a consumer holds this many messages fewer."""
        member = self._members.get(key)
        if member is not None:
            messages = min(messages, member.outstanding)
            member.outstanding -= messages
            self.outstanding -= messages

    def spend(self, member: Member, messages: int, bytes: int) -> None:
        """Spend the credit of one delivery, whose bytes may exceed it once, and end the consumer's turn."""
        member.messages -= messages
        member.bytes -= bytes
        member.outstanding += messages
        self.outstanding += messages
        if self._turns and self._turns[0] is member:
            self._turns.rotate(-1)
            if not member.ready:  # consumers that cannot take anything are not counted for fair shares
                self._turns.pop().queued = False

    def _queue(self, member: Member) -> None:
        if member.ready and not member.queued and not self._ordered:
            member.queued = True
            self._turns.append(member)

    def _elect(self) -> None:
        if not self._ordered:
            return
        ranks = self._ranks
        if len(ranks) > 2 * len(self._members) + 64:
            ranks = self._ranks = [entry for entry in ranks if self._is_here(entry[2])]
            heapq.heapify(ranks)
        while ranks and not self._is_here(ranks[0][2]):
            heapq.heappop(ranks)
        self.active = ranks[0][2] if ranks else None

    def _is_here(self, member: Member) -> bool:
        return self._members.get(member.key) is member
