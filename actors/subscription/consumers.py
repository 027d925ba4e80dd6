"""The consumers of one subscription: who is attached, who is active, and who is to give back what it holds.

Runs on the loop of its subscription, which has it, and whose parts ask it; it hears no messages of its own, and tells
consumers only what concerns their places.

Invariants
- a consumer is here from its place being given to its leaving, or to another one taking over
- where another consumer is to be active, it is not before the one that was holds nothing more, and has said so
- what is to be told while nobody is here is kept for the next one, the last few notices of it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ister.actors.messages import AttachConsumer, Evicted, Notice, Yield
from ister.actors.runtime import Ref
from ister.actors.selection import Member, Roster
from ister.subscriptions import TRAITS

NOTICES_KEPT: Final = 16  # while no consumer is there; the counts in `ister subscription show` have all of it


class Consumers:
    """Who is there. `wake()` has the subscription dispatch; `takes_back`: what was delivered may come back."""

    def __init__(self, type_: str, name: str, wake: Callable[[], None], *, takes_back: bool = True) -> None:
        self._name = name
        self._wake = wake
        self._takes_back = takes_back
        self._stands_by = TRAITS[type_].stands_by
        self.roster = Roster(type_, name)
        self.refs: dict[int, Ref] = {}
        self.active: Member | None = None  # of Exclusive and Failover
        self.held: set[int] = set()  # who is to give back what it holds; 0: the journal, which is being moved
        self._unseen: deque[Notice] = deque(maxlen=NOTICES_KEPT)

    def __len__(self) -> int:
        return len(self.refs)

    # ---- places -------------------------------------------------------------------------------------------------

    def attach(self, command: AttachConsumer) -> Member:
        """Give a consumer its place. Raises RemoteError where it gets none."""
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
        """Send the consumer of an Exclusive subscription away for another, which begins with what it gives back."""
        active = self.roster.active
        if active is None:
            return None
        self.roster.detach(active.key)
        self.held.add(active.key)
        text = f"another consumer took subscription {self._name!r} over"
        self.refs.pop(active.key).tell(Evicted("taken-over", text))
        return active

    def detach(self, key: int) -> Member | None:
        """Take a consumer's place from it, which has given back what it held; None if it has none."""
        member = self.roster.get(key)
        if member is not None:
            self.roster.detach(key)
        self.refs.pop(key, None)
        self.held.discard(key)
        return member

    # ---- handing over -------------------------------------------------------------------------------------------

    def elect(self) -> None:
        """Let a Failover's preferred consumer be active, once the one before has nothing left, and go on."""
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
        """Whether a consumer that was active still holds what nobody else may have meanwhile."""
        return self._takes_back and member is not None and member.key in self.refs and member.outstanding > 0

    @property
    def hands_over(self) -> bool:
        """Whether another consumer is to be active than the one that is."""
        return self.roster.active is not self.active

    @property
    def yielding(self) -> int:
        """How many are to give back what they hold."""
        return len(self.held) or int(self.hands_over)

    def hold(self, key: int) -> None:
        """Have nothing delivered until `release(key)`: somebody is to give back what it holds, or the journal moves."""
        self.held.add(key)

    def release(self, key: int) -> None:
        """Undo `hold`."""
        self.held.discard(key)

    def settle(self, key: int, messages: int) -> None:
        """Note that a consumer holds so many messages less; another may have waited for that."""
        self.roster.settle(key, messages)
        if self.roster.active is not self.active:
            self.elect()

    def gave(self, key: int) -> bool:
        """Say whether it was this subscription's actor that delivered to a consumer, not the one before it."""
        return not key or key in self.refs or key in self.held

    # ---- what they are told -------------------------------------------------------------------------------------

    def tell_unseen(self, consumer: Ref) -> None:
        """Tell a consumer what happened while nobody was here."""
        while self._unseen:
            consumer.tell(self._unseen.popleft())

    def notify(self, notice: Notice) -> None:
        """Tell all consumers, or the next one that comes."""
        self.tell_all(notice)
        if not self.refs:
            self._unseen.append(notice)

    def tell_all(self, message: object) -> None:
        """Tell all consumers that are here."""
        for consumer in self.refs.values():
            consumer.tell(message)
