"""The store: what topics, subscriptions and the Directory tell the tier, and its answers.

Topic --Sealed, KeepTopic, Retain--> Uploader --Consult--> Directory     Subscription --Fetch--> Fetcher <--------
Uploaded ----------           <-Governs---               Directory --RestoreTopics--> Restorer
"""

from __future__ import annotations

from dataclasses import dataclass

from ister.actors.mail import Frames, message
from ister.actors.runtime import Address
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.segment import SegmentInfo


@message
@dataclass(frozen=True, slots=True)
class Sealed:
    """These segments are sealed (Topic -> Uploader; those told before need not be repeated).

    What is left of `damaged` ones is uploaded as it is, unless the store has something better. `missing` offsets are in
    no segment, and never will be.
    """

    topic: TopicMeta
    segments: tuple[SegmentInfo, ...]
    reply: Address
    damaged: tuple[SegmentInfo, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()


@message
@dataclass(frozen=True, slots=True)
class KeepTopic:
    """The topic exists: enter it in the store, claim its next epoch, and report what the store has (-> Uploader)."""

    topic: TopicMeta
    start: int  # the first offset of the local log
    end: int  # the log is sealed up to here: the store cannot have more
    reply: Address | None


@message
@dataclass(frozen=True, slots=True)
class Uploaded:
    """The store has the offsets from `start` up to, not including, `watermark`, except `gaps` (Uploader -> Topic).

    Offsets below `start` were dropped on purpose. At most GAPS_TOLD_MAX gaps are told. Of `damaged` offsets the store
    has only what was left in damaged files.
    """

    start: int
    watermark: int
    gaps: tuple[tuple[int, int], ...] = ()
    damaged: tuple[tuple[int, int], ...] = ()


@message
@dataclass(frozen=True, slots=True)
class Survey:
    """List the store, and report with `Uploaded` what it has of the topic now (Topic -> Uploader; then `Surveyed`)."""

    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Surveyed:
    """The store was listed, or could not be listed because of `trouble` (Uploader -> Topic)."""

    trouble: str


@message
@dataclass(frozen=True, slots=True)
class UploadDelayed:
    """The store refuses or does not answer; it is tried again (Uploader -> Topic, for `ister topic show`)."""

    text: str


@message
@dataclass(frozen=True, slots=True)
class UploadsStopped:
    """Nothing of this topic is uploaded until an operator has acted (Uploader -> Topic)."""

    text: str


@message
@dataclass(frozen=True, slots=True)
class Fenced:
    """Another broker has claimed this topic: this broker may not write to it any more (Uploader -> Topic).

    With `end`, only if the log is not sealed up to there: otherwise the Topic answers with `KeepTopic`.
    """

    text: str
    end: int | None


@message
@dataclass(frozen=True, slots=True)
class Retain:
    """The topic's retention settings, and the offset below which all its subscriptions are done (Topic -> Uploader)."""

    topic: TopicMeta
    acknowledged: int | None


@message
@dataclass(frozen=True, slots=True)
class StoreCursor:
    """A subscription's cursor, as the first bytes of its journal would be (Subscription -> Uploader)."""

    topic: TopicMeta
    subscription: SubscriptionMeta
    journal: Frames


@message
@dataclass(frozen=True, slots=True)
class ForgetCursor:
    """The subscription is deleted (Subscription -> Uploader)."""

    topic: TopicMeta
    subscription: str


@message
@dataclass(frozen=True, slots=True)
class EraseStored:
    """The topic is deleted: delete its objects in the store if it is this broker's (Topic, Directory -> Uploader)."""

    topic: TopicMeta
    reply: Address  # the Directory's address
    fenced: bool = False  # it is known to belong to another broker


@message
@dataclass(frozen=True, slots=True)
class Erased:
    """The store has nothing of this topic any more; or the topic belongs to another broker there, and was kept.

    (Uploader -> Directory)
    """

    topic: TopicMeta
    kept: bool = False


@message
@dataclass(frozen=True, slots=True)
class LogErased:
    """Nothing of a deleted topic's log is on the disk any more.

    (ReliableTopic -> Directory)
    """

    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Consult:
    """What does the catalogue say about this topic now? (Uploader -> Directory; answered by `Governs`).

    Asked before the topic is claimed, and before retention deletes anything: other sources may be out of date.
    """

    topic: str
    incarnation: bytes
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Governs:
    """What the catalogue has about a topic (Directory -> Uploader): settings and subscriptions; None: no such topic.

    With a ticket, an `Answer` is expected once the store has these settings.
    """

    topic: TopicMeta | None
    subscriptions: list[str]
    reply: Address | None = None
    ticket: int = 0


@message
@dataclass(frozen=True, slots=True)
class Fetch:
    """Download the segment that holds `offset` (Subscription -> Fetcher; answered by `Fetched` or `NotFetched`).

    Asking again is harmless. `seen` is the `copy` of an earlier `Fetched` for this offset that was damaged, else 0.
    """

    topic: TopicMeta
    offset: int
    reply: Address
    seen: int = 0


@message
@dataclass(frozen=True, slots=True)
class DropCache:
    """The topic is deleted: delete its downloaded segments (Directory -> Fetcher)."""

    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Fetched:
    """The segment that holds `offset`, and begins at `base`, is in the cache; `copy` is the number of the download."""

    offset: int
    base: int
    copy: int = 0


@message
@dataclass(frozen=True, slots=True)
class NotFetched:
    """The segment could not be downloaded; `retry` says whether that may change.

    Offsets below `start` were dropped from the store on purpose. If the answer is final and `end` is not 0, the store
    has nothing readable of [offset, end).
    """

    offset: int
    text: str
    retry: bool
    start: int
    end: int = 0


@message
@dataclass(frozen=True, slots=True)
class StoredTopics:
    """All topics that the store has (tier -> Directory; answered by `RestoreTopics`)."""

    topics: tuple[TopicMeta, ...]
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class RestoreTopics:
    """Restore these topics, which are not on the local disk (Directory -> tier; answered by `Restored` for each)."""

    topics: tuple[TopicMeta, ...]


@message
@dataclass(frozen=True, slots=True)
class NotRestored:
    """The topic is not in the store any more, or never was (tier -> Directory)."""

    topic: str


@message
@dataclass(frozen=True, slots=True)
class TakeOver:
    """Restore the topic that the store has under this name (Directory -> tier; answered by `Restored`, then `Answer`).

    `Refused` if there is none, or the store is unreachable.
    """

    topic: str
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class Restored:
    """A restored topic with its subscriptions, as far as the store has them (tier -> Directory)."""

    topic: TopicMeta
    subscriptions: tuple[SubscriptionMeta, ...]
    text: str
