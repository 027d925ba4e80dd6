"""Topics: messages from the handles of producers, and between a topic and its subscriptions or relays.

producer's handle --OpenProducer, Publish, CloseProducer--> Topic --Attached, Durable, Trimmed, ...--> Subscription
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ister.actors.mail import Frames, message
from ister.actors.pieces import Batch
from ister.actors.runtime import Address
from ister.bodies import Buffer
from ister.storage.meta import TopicMeta
from ister.transport.session import Handle


@dataclass(frozen=True, slots=True)
class OpenProducer:
    """A handle asks to publish; its unresolved sequence numbers begin at `sequence`."""

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
    """A handle is closed; with a ref, DONE is sent once everything before it has its receipt.

    `generation` is the handle's at the time of closing: if it was opened again since, it stays open.
    """

    handle: Handle
    generation: int
    ref: int | None


@message
@dataclass(frozen=True, slots=True)
class Attach:
    """Report from now on how far you are durable (Subscription or Relay -> Topic; answered by `Attached`)."""

    watcher: Address
    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Detach:
    """Stop reporting."""

    watcher: Address


@message
@dataclass(frozen=True, slots=True)
class Attached:
    """The topic has the offsets from `start_offset` up to, not including, `durable_end`.

    `start_offset` is None while the store, which may have older messages than the log, has not been listed; the message
    is sent again when it has. The store has the topic up to `stored_end`, None while unknown. The local log is durable
    up to `log_end`: with durability cloud this proves acknowledgments of messages that the store has lost. `repairs` is
    that of the last `Repaired`, which may have been lost.
    """

    start_offset: int | None
    durable_end: int
    stored_end: int | None = None
    log_end: int = 0
    repairs: int = 0


@message
@dataclass(frozen=True, slots=True)
class Durable:
    """Every offset below `durable_end` may be delivered."""

    durable_end: int


@message
@dataclass(frozen=True, slots=True)
class Trimmed:
    """The topic begins at `start_offset` now: retention removed everything below."""

    start_offset: int


@message
@dataclass(frozen=True, slots=True)
class Repaired:
    """An operator decided that readers continue after damaged offsets: read again.

    `repairs` counts such decisions since the topic's actor started.
    """

    repairs: int


@message
@dataclass(frozen=True, slots=True)
class TopicUpdated:
    """The topic's settings changed to these (Topic -> Subscription, also to one that attaches with older ones)."""

    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class TopicFailed:
    """The topic cannot be opened, or its log failed; what is durable can still be read."""

    code: str
    text: str


@message
@dataclass(frozen=True, slots=True)
class Relayed:
    """Batches of a non-reliable topic (Topic -> Relay, once per worker).

    `heads` has four numbers per batch: first offset, count, unix ms, columns; `frames` has their body frames, in order.
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
    """The subscription needs nothing below `low` any more (Subscription -> Topic, once that is on disk)."""

    subscription: str
    low: int


@message
@dataclass(frozen=True, slots=True)
class FoundDamage:
    """Offsets [first, end) cannot be read (Subscription -> Topic, which reports it).

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
