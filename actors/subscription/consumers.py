"""The consumers of one subscription: which are attached, which one is active, and which have to give back messages.

Runs on the loop of its subscription, which owns it. It receives no actor messages, and tells consumers only about their
places.

Invariants
- a consumer is in this list from when it is attached until it leaves or is taken over
- where another consumer is to become active, it does so only after the one before holds nothing and has said so
- notices that arise while no consumer is attached are kept for the next one, the last few of them
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ister.actors.messages import AttachConsumer, Evicted, Notice, Yield
from ister.actors.runtime import Ref
from ister.actors.selection import Member, Roster
from ister.subscriptions import TRAITS

NOTICES_KEPT: Final = 16  # while no consumer is attached; `ister subscription show` has the complete counts


class Consumers:
    """The attached consumers. `wake()` schedules a dispatch; `takes_back`: delivered messages may be returned."""

    def __init__(self, type_: str, name: str, wake: Callable[[], None], *, takes_back: bool = True) -> None:
        self._name = name
        self._wake = wake
        self._takes_back = takes_back
        self._stands_by = TRAITS[type_].stands_by
        self.roster = Roster(type_, name)
        self.refs: dict[int, Ref] = {}
        self.active: Member | None = None  # of Exclusive and Failover subscriptions
        # consumers that have to give back messages; 0: the journal is being moved
        self.held: set[int] = set()
        self._unseen: deque[Notice] = deque(maxlen=NOTICES_KEPT)

    def __len__(self) -> int:
        return len(self.refs)

    # ---- places -------------------------------------------------------------------------------------------------

    def attach(self, command: AttachConsumer) -> Member:
        """Attach a consumer. Raises RemoteError when the subscription's type does not allow another one."""
        member = self.roster.attach(
            command.key,
            priority=command.priority,
            messages=command.messages,
            bytes=command.bytes,
            sparse=command.sparse,
        )
        member.client = command.client
        session = command.session
        if session is not None:
            member.heard_s = lambda: session.heard_at_s
            member.connected = lambda: session.routing is not None
        self.refs[command.key] = command.consumer
        return member

    def take_over(self) -> Member | None:
        """Evict the consumer of an Exclusive subscription for a new one, which gets what it gives back; return it."""
        active = self.roster.active
        if active is None:
            return None
        self.roster.detach(active.key)
        self.held.add(active.key)
        text = f"another consumer took subscription {self._name!r} over"
        self.refs.pop(active.key).tell(Evicted("taken-over", text))
        return active

    def detach(self, key: int) -> Member | None:
        """Detach a consumer that has given back what it held; return None if it was not attached."""
        member = self.roster.get(key)
        if member is not None:
            self.roster.detach(key)
        self.refs.pop(key, None)
        self.held.discard(key)
        return member

    # ---- handing over -------------------------------------------------------------------------------------------

    def elect(self) -> None:
        """Make the preferred consumer of a Failover subscription active, once the one before holds nothing any more."""
        active = self.roster.active
        if active is not self.active and not self._is_busy(self.active):
            before, self.active = self.active, active
            if active is not None and self._stands_by:
                self.refs[active.key].tell(Notice("active", 0, "this consumer is active now"))
            if before is not None and before.key in self.refs:
                self.held.add(before.key)
                self.refs[before.key].tell(Notice("standby", 0, "another consumer is active"))
                self.refs[before.key].tell(Yield())
        self._wake()

    def _is_busy(self, member: Member | None) -> bool:
        """Whether a consumer that was active still holds messages that no other consumer may get meanwhile."""
        return self._takes_back and member is not None and member.key in self.refs and member.outstanding > 0

    @property
    def hands_over(self) -> bool:
        """Whether another consumer is to become active."""
        return self.roster.active is not self.active

    @property
    def yielding(self) -> int:
        """How many consumers have to give back what they hold."""
        return len(self.held) or int(self.hands_over)

    def hold(self, key: int) -> None:
        """Let nothing be delivered until `release(key)`: a consumer gives back messages, or the journal is moved."""
        self.held.add(key)

    def release(self, key: int) -> None:
        """Undo `hold(key)`."""
        self.held.discard(key)

    def settle(self, key: int, messages: int) -> None:
        """Note that a consumer holds this many messages fewer; another one may have waited for that."""
        self.roster.settle(key, messages)
        if self.roster.active is not self.active:
            self.elect()

    def gave(self, key: int) -> bool:
        """Say whether this actor delivered to a consumer, and not an earlier one that failed."""
        return not key or key in self.refs or key in self.held

    # ---- mail to them -------------------------------------------------------------------------------------------

    def tell_unseen(self, consumer: Ref) -> None:
        """Tell a new consumer the notices that arose while none was attached."""
        while self._unseen:
            consumer.tell(self._unseen.popleft())

    def notify(self, notice: Notice) -> None:
        """Send a notice to all consumers; without consumers it is kept for the next one."""
        self.tell_all(notice)
        if not self.refs:
            self._unseen.append(notice)

    def tell_all(self, message: object) -> None:
        """Send a message to all attached consumers."""
        for consumer in self.refs.values():
            consumer.tell(message)
