"""Topics: what the handles of producers and the subscriptions, or relays, say to them, and are told.

producer's handle --OpenProducer, Publish, CloseProducer--> Topic --Attached, Durable, Trimmed, ...--> Subscription
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ister.actors.mail import Frames, message
from ister.actors.pieces import Batch
from ister.actors.runtime import Address
from ister.storage.catalogue import TopicMeta
from ister.transport.session import Handle
from ister.wire import Buffer


@dataclass(frozen=True, slots=True)
class OpenProducer:
    """A handle asks to publish, its unresolved sequence numbers beginning at `sequence`."""

    handle: Handle
    generation: int
    ref: int
    producer_id: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Publish:
    """A checked batch; `frames` is `[lengths, payloads, keys?, attributes?]`."""

    handle: Handle
    sequence: int
    count: int
    columns: int
    frames: Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class CloseProducer:
    """A handle goes; with a ref, DONE is sent once everything before it has its receipt.

    `generation` is the handle's when it was closed: opened again since, it stays.
    """

    handle: Handle
    generation: int
    ref: int | None


@message
@dataclass(frozen=True, slots=True)
class Attach:
    """Tell me how far you are durable, from now on (Subscription or Relay -> Topic; answered by `Attached`)."""

    watcher: Address
    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Detach:
    """Tell me nothing any more."""

    watcher: Address


@message
@dataclass(frozen=True, slots=True)
class Attached:
    """The topic has offsets `start_offset` to before `durable_end`.

    Where it begins is None while the store, which may have what came before the log, has not said so; this is told
    again once it has. The store has it up to `stored_end`, None while nobody knows. On the local disk it is durable up
    to `log_end`: with durability cloud that proves what was acknowledged though the store has lost it.
    """

    start_offset: int | None
    durable_end: int
    stored_end: int | None = None
    log_end: int = 0


@message
@dataclass(frozen=True, slots=True)
class Durable:
    """Every offset below `durable_end` may be delivered."""

    durable_end: int


@message
@dataclass(frozen=True, slots=True)
class Trimmed:
    """The topic begins at `start_offset` now: what was below is gone by its retention."""

    start_offset: int


@message
@dataclass(frozen=True, slots=True)
class Repaired:
    """An operator decided that readers continue behind what is damaged: read again."""


@message
@dataclass(frozen=True, slots=True)
class TopicUpdated:
    """The topic's settings are these now (Topic -> Subscription, and to one that attaches with others)."""

    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class TopicFailed:
    """The topic cannot be opened, or its log failed; what is durable stays readable."""

    code: str
    text: str


@message
@dataclass(frozen=True, slots=True)
class Relayed:
    """Batches of a non-reliable topic (Topic -> Relay, once per worker).

    `heads` has four numbers a batch: first offset, count, unix ms, columns; `frames` their body frames, in order.
    """

    heads: list[int]
    frames: Frames


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a non-reliable topic (Relay -> Subscription)."""

    batches: Sequence[Batch]


@message
@dataclass(frozen=True, slots=True)
class Consumed:
    """This subscription will never need anything below `low` again (Subscription -> Topic, once that is on disk)."""

    subscription: str
    low: int


@message
@dataclass(frozen=True, slots=True)
class FoundDamage:
    """Offsets [first, end) cannot be read (Subscription -> Topic, which shows it).

    `asked` says whether the store was asked for them as well.
    """

    first: int
    end: int
    reason: str
    asked: bool


@message
@dataclass(frozen=True, slots=True)
class WhoSubscribes:
    """Which subscriptions does this topic have? Those not in `known` are started (Topic -> Directory)."""

    topic: str
    known: list[str]
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Subscribers:
    """The answer to `WhoSubscribes`."""

    names: list[str]
