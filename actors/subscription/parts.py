"""The interfaces between the Subscription actor, its parts, and its delivery.

The Subscription (`actor.py`) owns the consumers, their credit, and whose turn it is. Each part owns one subject: it
receives the actor messages that belong to it (`@receives`) and contributes to the answers of `show` and `explain`.
Events that concern several parts reach them through the hooks of `SubscriptionPart`. One part is the delivery: it
decides what is next, and what happens to returned messages.

Invariants
- a part uses only `Host` of the subscription, and only `Delivery` or `Queue` of the delivery
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from ister.actors.explain_state import State
from ister.actors.ledger import Held, Parcel
from ister.actors.loop import Call, Scheduler, Timer
from ister.actors.messages import Left, NodeStarted, TopicFailed
from ister.actors.pieces import Piece
from ister.actors.runtime import Address, Part, Ref, System
from ister.actors.selection import Member
from ister.actors.subscription.consumers import Consumers
from ister.clock import Clock
from ister.errors import IsterError
from ister.storage.meta import SubscriptionMeta, TopicMeta

# The most a subscription hands out in one turn before other actors and sockets are served: some 1 ms of work.
DISPATCH_BYTES_MAX: Final = 1 << 20


class Host(Protocol):
    """What the parts may use of their subscription."""

    system: System
    path: str
    loop: Scheduler
    clock: Clock
    topic: TopicMeta  # its settings are the latest known
    meta: SubscriptionMeta
    consumers: Consumers
    ack_timeout_ms: int
    failure: IsterError | None  # why no consumer can be served

    @property
    def ref(self) -> Ref:
        """The subscription's reference."""

    @property
    def address(self) -> Address:
        """The subscription's address."""

    @property
    def is_ready(self) -> bool:
        """Whether the topic has answered, and the start offset is fixed."""

    @property
    def may_deliver(self) -> bool:
        """Whether anything may be delivered: not while paused, or while a consumer has to give back messages."""

    def call_later(self, delay_s: float, call: Call) -> Timer:
        """Make a call after a delay in seconds, unless the subscription has ended by then."""

    def call_soon(self, call: Call) -> None:
        """Make a call in the next turn."""

    def wake(self) -> None:
        """Schedule one dispatch at the end of this turn."""

    def wake_at(self, due_s: float) -> None:
        """Schedule a dispatch for a time of the monotonic clock, in seconds, unless one comes earlier."""

    def take_turns(self) -> None:
        """Send pieces to consumers in turn, until nothing is left, nobody has credit, or the turn's budget is spent."""

    def deliver(self, member: Member, piece: Piece) -> None:
        """Send a piece to a consumer."""

    def become_ready(self) -> None:
        """Serve the consumers and questions that wait."""

    def become_failed(self, error: IsterError) -> None:
        """Serve no consumer; those that wait are refused with the error."""

    def evict_all(self, code: str, text: str) -> None:
        """Evict all consumers, also those that wait to be attached."""

    def become_unready(self) -> None:
        """Let new consumers wait until the subscription is ready again."""

    def opened(self) -> None:
        """Tell the parts that the cursor's journal is open."""

    def may_read(self) -> None:
        """Tell the parts that reading may succeed now where it failed before."""

    def forget(self) -> None:
        """Have the parts forget the state of single messages."""

    def stop_now(self) -> None:
        """End the actor at once."""

    def answer(self, command: Any, body: Any) -> None:
        """Answer a question; `body` is encoded as a RESULT."""

    def refuse(self, command: Any, error: IsterError) -> None:
        """Refuse a question with an error."""


class SubscriptionPart(Part):
    """One subject of a subscription. The hooks are called for all parts, in the order of the parts."""

    def start(self) -> None:
        """The subscription starts."""

    def stop(self) -> None:
        """The subscription ends or has failed."""

    def erase(self) -> None:
        """The subscription was deleted: delete what is stored of it."""

    def opened(self) -> None:
        """The cursor's journal is open."""

    def forget(self) -> None:
        """The subscription was moved: forget the state of single messages."""

    def may_read(self) -> None:
        """Reading may succeed now where it failed before."""

    def topic_updated(self) -> None:
        """The topic's settings changed."""

    def topic_failed(self, failed: TopicFailed) -> None:
        """The topic failed or was deleted."""

    def settings_updated(self) -> None:
        """The subscription's settings changed."""

    def node_started(self, started: NodeStarted) -> None:
        """A process was restarted, and has lost what it was told before."""

    def greet(self, consumer: Ref) -> None:
        """A consumer was attached: tell it what the others were told."""

    def consumer_left(self) -> None:
        """A consumer left."""

    def description(self) -> Mapping[str, Any]:
        """Return this part's entries of `show`."""
        return {}

    def state(self) -> State:
        """Return this part's entries of the state that `explain` uses."""
        return {}


class Queue(Protocol):
    """What the parts that read the log may use of the delivery."""

    def settled(self, first: int, end: int) -> None:
        """The messages [first, end) are acknowledged, or need no delivery any more."""

    def settled_all(self, ranges: Sequence[tuple[int, int]], parcels: Sequence[Parcel] = ()) -> None:
        """The same of many ranges, which ascend and do not overlap: if given, those of these deliveries."""

    def acknowledged(self) -> None:
        """Something was acknowledged: there may be room for more."""

    def again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Deliver messages again, not before `ready_at_s`."""

    def hold(self, first: int, end: int) -> None:
        """These messages failed too often: block their keys until they are settled or delivered again."""

    def first_time(self, first: int, end: int, now_s: float) -> None:
        """Queue messages that may be delivered now and were not delivered before."""

    def take_due(self) -> None:
        """Deliver what is due, as far as there is room."""


class Delivery(SubscriptionPart):
    """Decides what is next and for which consumer: the one part in which subscription types differ."""

    parts: Sequence[SubscriptionPart]  # all parts of the subscription, including this one
    always_there: ClassVar[bool] = False  # whether `show` can be answered before the topic has answered
    takes_back: ClassVar[bool] = True  # whether delivered messages may be returned

    # ---- what every delivery has --------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Deliver what can be delivered now, with `Host.take_turns` or in another order."""
        raise NotImplementedError

    def backlog(self) -> int:
        """Return about how many messages could be delivered now; consumers share them fairly."""
        raise NotImplementedError

    def next_piece(self, member: Member, messages_max: int) -> Piece | None:
        """Take the next piece, for a consumer whose turn it is; None when there is none."""
        raise NotImplementedError

    def delivered(self, member: Member, piece: Piece) -> None:
        """Note that a piece was sent to a consumer."""

    def position(self) -> int:
        """Return the first offset that was never delivered."""
        raise NotImplementedError

    # ---- what some have -----------------------------------------------------------------------------------------

    @property
    def failures_max(self) -> int:
        """Return how often a message may fail; 0: without a limit."""
        return 0

    def expected(self) -> None:
        """A consumer is about to be attached."""

    def attached(self, member: Member) -> None:
        """A consumer was attached."""

    def detached(self, member: Member) -> None:
        """A consumer was detached."""

    def credited(self, key: int, messages: int | None) -> None:
        """A consumer takes this many more messages; None: its client reconnected and needs nothing sent before."""

    def given_back(self, command: Left) -> None:
        """A consumer left; `left` has what it held."""

    def abandoned(self) -> None:
        """No consumer is attached or waits to be."""
