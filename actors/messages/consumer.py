"""Consumers: messages from their handles, and between a consumer and its subscription.

handle --ConsumerFrame--> Consumer --AttachConsumer, Acknowledged, Returned, Left--> Subscription <------- Granted,
Deliver, Notice, Yield --------
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ister.actors.ledger import Held, Parcel
from ister.actors.pieces import Piece
from ister.actors.runtime import Ref
from ister.actors.selection import BlockedBy
from ister.transport.session import Handle, Session
from ister.wire import Header


@dataclass(frozen=True, slots=True)
class ConsumerFrame:
    """CREDIT, ACK, ACK_UNTIL, NACK or EXTEND of a client (gateway -> Consumer)."""

    header: Header


@dataclass(frozen=True, slots=True)
class Reopen:
    """The client reconnected and opened the handle again (gateway -> Consumer)."""

    handle: Handle
    generation: int
    header: Header


@dataclass(frozen=True, slots=True)
class CloseConsumer:
    """The client closed the handle, or, without `ref`, its session ended."""

    handle: Handle
    ref: int | None


@dataclass(frozen=True, slots=True)
class AttachConsumer:
    """A consumer asks to be attached (Consumer -> Subscription; answered by `Granted` or `Evicted`).

    `sparse`: it understands deliveries whose offsets are not consecutive. `force`: the present consumer of an Exclusive
    subscription is to be evicted.
    """

    consumer: Ref
    key: int
    priority: int
    messages: int
    bytes: int
    sparse: bool = False
    force: bool = False
    client: str = ""  # the name that the client gave itself
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """The consumer is attached; everything below `position` was delivered before, to some consumer.

    A message that may not fail again, after `failures_max` - 1 failures, is handed out alone (0: no limit).
    """

    position: int
    ack_timeout_ms: int
    failures_max: int = 0


@dataclass(frozen=True, slots=True)
class TimeoutChanged:
    """Later deliveries are to be acknowledged within this time (Subscription -> Consumer).

    `failures_max` as in `Granted`.
    """

    ack_timeout_ms: int
    failures_max: int = 0


@dataclass(frozen=True, slots=True)
class Evicted:
    """The consumer was refused or removed, with a code of `ister.errors.CODES`."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send this piece (Subscription -> Consumer); if the consumer is gone, it goes back to `subscription`."""

    piece: Piece
    subscription: Ref


@dataclass(frozen=True, slots=True)
class Notice:
    """Tell the client of an event; `transport/PROTOCOL.md` has the codes."""

    code: str
    count: int
    text: str
    offset: int | None = None  # the first offset that the event is about
    sought: int | None = None  # how often the subscription was moved so far


@dataclass(frozen=True, slots=True)
class AddCredit:
    """The client has room for more."""

    key: int
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SetCredit:
    """The client reconnected, and has room for this much."""

    key: int
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """The client's connection is full, or has room again."""

    key: int
    blocked: bool
    why: BlockedBy = ""


@dataclass(frozen=True, slots=True)
class Room:
    """A connection has room again, and it is your turn (Consumer -> the next one that waits for it)."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Send this consumer nothing more for now (Consumer -> Subscription; answered by `Paused`)."""

    consumer: Ref
    key: int


@dataclass(frozen=True, slots=True)
class Paused:
    """Everything that was sent to this consumer came before this message."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Give back what you hold (Subscription -> Consumer; answered by `Yielded`).

    Another consumer becomes active; or, if `moving`, all give back because the subscription is moved.
    """

    moving: bool = False


@dataclass(frozen=True, slots=True)
class Yielded:
    """What this consumer held was returned before this message."""

    key: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages of a non-reliable subscription that could not be sent to the client."""

    messages: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """These half-open ranges are acknowledged; with a ref, answer `Confirmed` once the journal has them.

    `settled` of their messages were in flight at this consumer. `since_s` is since when it holds its oldest message
    now. `parcels`: the ranges are those of these deliveries, one after the other.
    """

    key: int
    ranges: tuple[tuple[int, int], ...]
    ref: int | None
    settled: int
    since_s: float | None = field(default=None, compare=False)
    parcels: tuple[Parcel, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class AcknowledgedUntil:
    """Everything below `end` is acknowledged, whoever holds it; `settled` messages were in flight at this consumer."""

    key: int
    end: int
    ref: int | None
    settled: int
    since_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The journal has the acknowledgment with this ref (Subscription -> Consumer)."""

    ref: int


@dataclass(frozen=True, slots=True)
class AckRefused:
    """An acknowledgment was refused as a whole, with the reason (Subscription -> Consumer)."""

    ref: int | None
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Returned:
    """These messages were not acknowledged and are to be redelivered; `why` is for people.

    `failed`: they count toward `max_deliveries`. Without a delay, failed messages wait for their back-off.
    """

    key: int
    held: Sequence[Held]
    delay_s: float | None
    why: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """The consumer has left; what it held is to be redelivered. `failed`: it was lost, without a goodbye.

    `waiting` was not yet given to its program, and does not fail.
    """

    key: int
    held: Sequence[Held]
    failed: bool = False
    waiting: Sequence[Held] = ()


@dataclass(frozen=True, slots=True)
class Idle:
    """Delivered messages wait for a program that asks for none (Consumer -> Subscription, may answer `Recall`)."""

    key: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Return what waits for your program: other consumers can take it (Subscription -> Consumer)."""


@dataclass(frozen=True, slots=True)
class Sought:
    """The subscription continues at `offset`; deliveries before that do not count (Subscription -> Consumer)."""

    offset: int


@dataclass(frozen=True, slots=True)
class Stayed:
    """The subscription could not be moved: deliveries before count as always (Subscription -> Consumer)."""


@dataclass(frozen=True, slots=True)
class ReadFrom:
    """The client of a reader reconnected, and has handed out everything below `start` (Consumer -> Subscription)."""

    start: str
