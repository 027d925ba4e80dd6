"""Consumers: what their handles say to them, and what they and their subscription say to each other.

handle --ConsumerFrame--> Consumer --AttachConsumer, Acknowledged, Returned, Left--> Subscription
                                   <------- Granted, Deliver, Notice, Yield --------
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ister.actors.ledger import Held
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
    """The client came back and opened the handle again (gateway -> Consumer)."""

    handle: Handle
    generation: int
    header: Header


@dataclass(frozen=True, slots=True)
class CloseConsumer:
    """The client closed the handle, or its session ended (no ref)."""

    handle: Handle
    ref: int | None


@dataclass(frozen=True, slots=True)
class AttachConsumer:
    """A consumer wants its share (Consumer -> Subscription; answered by `Granted` or `Evicted`).

    `sparse`: it understands deliveries of offsets that do not follow each other; `force`: whoever has an Exclusive
    subscription is to leave it.
    """

    consumer: Ref
    key: int
    priority: int
    messages: int
    bytes: int
    sparse: bool = False
    force: bool = False
    client: str = ""  # what the client calls itself
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """The consumer is attached; everything below `position` was delivered before, to somebody.

    What failed so often that one more failure is the last, of `failures_max`, is handed out singly (0: never).
    """

    position: int
    ack_timeout_ms: int
    failures_max: int = 0


@dataclass(frozen=True, slots=True)
class TimeoutChanged:
    """What is delivered from now on is to be acknowledged within this time (Subscription -> Consumer).

    `failures_max` as in `Granted`.
    """

    ack_timeout_ms: int
    failures_max: int = 0


@dataclass(frozen=True, slots=True)
class Evicted:
    """The consumer may not stay: with a code of `ister.errors.CODES`."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send this (Subscription -> Consumer); what finds no consumer goes back to `subscription`."""

    piece: Piece
    subscription: Ref


@dataclass(frozen=True, slots=True)
class Notice:
    """Tell the client of an event; `transport/PROTOCOL.md` has the codes."""

    code: str
    count: int
    text: str
    offset: int | None = None  # where what it tells of begins


@dataclass(frozen=True, slots=True)
class AddCredit:
    """The client has room for more."""

    key: int
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SetCredit:
    """The client came back: this is what it has room for."""

    key: int
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """The client's connection takes nothing for now, or takes again."""

    key: int
    blocked: bool
    why: BlockedBy = ""


@dataclass(frozen=True, slots=True)
class Room:
    """A connection takes again, so far: it is your turn (Consumer -> the next one that waits for this connection)."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Send this consumer nothing more: it goes, or starts again (Consumer -> Subscription; answered by `Paused`)."""

    consumer: Ref
    key: int


@dataclass(frozen=True, slots=True)
class Paused:
    """Whatever was for you came before this."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Give back what you hold (Subscription -> Consumer; answered by `Yielded`).

    Another is active now; or all are to do so because the subscription is `moving`.
    """

    moving: bool = False


@dataclass(frozen=True, slots=True)
class Yielded:
    """What this consumer held came before this."""

    key: int


@dataclass(frozen=True, slots=True)
class Lost:
    """These were for a consumer of a non-reliable subscription, and could not be sent."""

    messages: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """These half-open ranges are done; with a ref, say `Confirmed` once the journal has them.

    `settled` of their messages were in flight at this consumer; what it holds for longest now, since `since_s`.
    """

    key: int
    ranges: tuple[tuple[int, int], ...]
    ref: int | None
    settled: int
    since_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AcknowledgedUntil:
    """Everything below `end` is done, whoever holds it; `settled` messages were in flight at this consumer."""

    key: int
    end: int
    ref: int | None
    settled: int
    since_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The journal has the acknowledgment that carried this ref (Subscription -> Consumer)."""

    ref: int


@dataclass(frozen=True, slots=True)
class AckRefused:
    """Nothing of an acknowledgment counts, and why (Subscription -> Consumer)."""

    ref: int | None
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Returned:
    """These were not acknowledged, and are to be delivered again; `why` is for people.

    `failed`: that counts toward `max_deliveries`. Without a delay, what failed waits for its back-off.
    """

    key: int
    held: Sequence[Held]
    delay_s: float | None
    why: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """The consumer is gone; what it held is to be delivered again. `failed`: it was lost, it did not say goodbye.

    `waiting` is what its program never had: that does not fail.
    """

    key: int
    held: Sequence[Held]
    failed: bool = False
    waiting: Sequence[Held] = ()


@dataclass(frozen=True, slots=True)
class Idle:
    """What was delivered waits for a program that asks for nothing (Consumer -> Subscription, answered by `Recall`)."""

    key: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Others are there for what waits for your program (Subscription -> Consumer)."""


@dataclass(frozen=True, slots=True)
class Sought:
    """The subscription continues at `offset`; what was delivered before does not count (Subscription -> Consumer)."""

    offset: int


@dataclass(frozen=True, slots=True)
class Stayed:
    """The subscription could not be moved: what was delivered before counts as ever (Subscription -> Consumer)."""


@dataclass(frozen=True, slots=True)
class ReadFrom:
    """The client of a reader came back, and has handed out everything below `start` (Consumer -> Subscription)."""

    start: str
