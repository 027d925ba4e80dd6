"""What a subscription is made of: the interfaces between the Subscription actor, its parts, and its delivery.

The Subscription (`actor.py`) owns the consumers, their credit, and whose turn it is. A part owns one
matter, its messages (`@receives`) and its lines in what `show` and `explain` say; what concerns all parts comes by the
hooks of `SubscriptionPart`. One of the parts is the delivery: what is next, and what becomes of what comes back.

Invariants
- a part asks of the subscription only what `Host` has, of the delivery only what `Delivery` or `Queue` has
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from ister.actors.explain import State
from ister.actors.ledger import Held
from ister.actors.loop import Call, Scheduler, Timer
from ister.actors.messages import Left, NodeStarted, TopicFailed
from ister.actors.pieces import Piece
from ister.actors.runtime import Address, Part, Ref, System
from ister.actors.selection import Member
from ister.actors.subscription.consumers import Consumers
from ister.clock import Clock
from ister.errors import IsterError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta

# One turn of a subscription hands out at most this much before other actors and sockets get their turn: some 1 ms.
DISPATCH_BYTES_MAX: Final = 1 << 20


class Host(Protocol):
    """What the parts of a subscription may ask of it."""

    system: System
    path: str
    loop: Scheduler
    clock: Clock
    topic: TopicMeta  # as they are now
    meta: SubscriptionMeta
    consumers: Consumers
    ack_timeout_ms: int
    failure: IsterError | None  # why it serves nobody

    @property
    def ref(self) -> Ref:
        """A reference to the subscription."""

    @property
    def address(self) -> Address:
        """Where the subscription is."""

    @property
    def is_ready(self) -> bool:
        """Whether its topic answered, and its start is fixed."""

    @property
    def may_deliver(self) -> bool:
        """Whether anything may be delivered: nobody is to give back anything first, and it is not paused."""

    def call_later(self, delay_s: float, call: Call) -> Timer:
        """Make a call in so many seconds, unless the subscription is gone by then."""

    def call_soon(self, call: Call) -> None:
        """Make a call in the next turn."""

    def wake(self) -> None:
        """Dispatch once at the end of this turn."""

    def wake_at(self, due_s: float) -> None:
        """Dispatch at a time of the monotonic clock, if not before."""

    def take_turns(self) -> None:
        """Deliver what the delivery has next to whoever's turn it is, until one of the two is exhausted."""

    def deliver(self, member: Member, piece: Piece) -> None:
        """Send a consumer a piece."""

    def become_ready(self) -> None:
        """Serve those who wait."""

    def become_failed(self, error: IsterError) -> None:
        """Serve nobody, and tell those who wait why."""

    def evict_all(self, code: str, text: str) -> None:
        """Send everybody away, also who waits for a place."""

    def become_unready(self) -> None:
        """Let those who come wait until it is ready again."""

    def opened(self) -> None:
        """Tell the parts that the cursor is there."""

    def may_read(self) -> None:
        """Tell the parts that what could not be read may be read now."""

    def forget(self) -> None:
        """Have the parts forget what they know of single messages."""

    def stop_now(self) -> None:
        """End at once."""

    def answer(self, command: Any, body: Any) -> None:
        """Answer a question."""

    def refuse(self, command: Any, error: IsterError) -> None:
        """Answer a question with an error."""


class SubscriptionPart(Part):
    """One matter of a subscription. A part does in a hook what concerns it; the order is that of the parts."""

    def start(self) -> None:
        """The subscription begins."""

    def stop(self) -> None:
        """The subscription ends, or failed."""

    def erase(self) -> None:
        """The subscription was deleted: leave nothing."""

    def opened(self) -> None:
        """The cursor is there."""

    def forget(self) -> None:
        """The subscription goes on elsewhere: nothing that is known of single messages counts any more."""

    def may_read(self) -> None:
        """What could not be read may be read now."""

    def topic_updated(self) -> None:
        """The topic has other settings."""

    def topic_failed(self, failed: TopicFailed) -> None:
        """The topic failed, or is gone."""

    def settings_updated(self) -> None:
        """The subscription has other settings."""

    def node_started(self, started: NodeStarted) -> None:
        """A process was started again, and knows nothing of before."""

    def greet(self, consumer: Ref) -> None:
        """Tell a consumer that comes what those who are here were told."""

    def consumer_left(self) -> None:
        """A consumer is there no more."""

    def description(self) -> Mapping[str, Any]:
        """Return what `show` says of this matter."""
        return {}

    def state(self) -> State:
        """Return what `explain` goes by of this matter."""
        return {}


class Queue(Protocol):
    """What the parts that read the log ask of the delivery."""

    def settled(self, first: int, end: int) -> None:
        """These were acknowledged, or need not be any more."""

    def acknowledged(self) -> None:
        """Something was acknowledged: there may be room for more."""

    def again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Have messages delivered again, not before `ready_at_s`."""

    def hold(self, first: int, end: int) -> None:
        """These failed too often: their keys wait until they are settled, or come again."""

    def first_time(self, first: int, end: int, now_s: float) -> None:
        """Queue messages that may go now, and were delivered to nobody yet."""

    def take_due(self) -> None:
        """Let what is due be delivered, as much as there is room for."""


class Delivery(SubscriptionPart):
    """What is next, and for whom: the one part in which types of subscriptions differ."""

    parts: Sequence[SubscriptionPart]  # all of the subscription, this one among them
    always_there: ClassVar[bool] = False  # it can say what it is before its topic has answered
    takes_back: ClassVar[bool] = True  # what was delivered may come back

    # ---- what every delivery has --------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Deliver what can be delivered now: `Host.take_turns`, or in an order of its own."""
        raise NotImplementedError

    def backlog(self) -> int:
        """Return how many messages could be delivered now, about: what a fair share is a share of."""
        raise NotImplementedError

    def next_piece(self, member: Member, messages_max: int) -> Piece | None:
        """Take what is next, for a consumer whose turn it is."""
        raise NotImplementedError

    def delivered(self, member: Member, piece: Piece) -> None:
        """A piece was sent."""

    def position(self) -> int:
        """Return the first offset that was never delivered."""
        raise NotImplementedError

    # ---- what some have -----------------------------------------------------------------------------------------

    @property
    def failures_max(self) -> int:
        """How often a message may fail; 0: there is no limit."""
        return 0

    def expected(self) -> None:
        """Somebody comes."""

    def attached(self, member: Member) -> None:
        """A consumer has its place."""

    def detached(self, member: Member) -> None:
        """A consumer has its place no more."""

    def credited(self, key: int, messages: int | None) -> None:
        """A consumer takes so many messages more; None: it came back, and what it was given is with it, or lost."""

    def given_back(self, command: Left) -> None:
        """A consumer is gone, and this is what it held."""

    def abandoned(self) -> None:
        """Nobody is there, and nobody waits."""
