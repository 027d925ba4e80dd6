"""The store: what topics, subscriptions and the Directory say to the tier, and are told.

Topic --Sealed, KeepTopic, Retain--> Uploader --Consult--> Directory     Subscription --Fetch--> Fetcher
      <-------- Uploaded ----------           <-Governs---               Directory --RestoreTopics--> Restorer
"""

from __future__ import annotations

from dataclasses import dataclass

from ister.actors.mail import Frames, message
from ister.actors.runtime import Address
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.storage.segment import SegmentInfo


@message
@dataclass(frozen=True, slots=True)
class Sealed:
    """These segments will never change again (Topic -> Uploader; those told before need not be repeated).

    What is left of `damaged` ones goes to the store as it is, where that has nothing better. What is `missing` is in no
    segment, and none will come.
    """

    topic: TopicMeta
    segments: tuple[SegmentInfo, ...]
    reply: Address
    damaged: tuple[SegmentInfo, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()


@message
@dataclass(frozen=True, slots=True)
class KeepTopic:
    """This topic exists: enter it in the store, claim its next epoch, and say what the store has (-> Uploader)."""

    topic: TopicMeta
    start: int  # where the local log begins
    end: int  # up to where it is sealed: the store cannot have more
    reply: Address | None


@message
@dataclass(frozen=True, slots=True)
class Uploaded:
    """The store has the topic's offsets `start` to before `watermark`, but for `gaps` (Uploader -> Topic).

    What is below `start` was dropped on purpose; the first GAPS_TOLD_MAX of the gaps are told. Of what is `damaged`
    the store has only what was left of damaged files.
    """

    start: int
    watermark: int
    gaps: tuple[tuple[int, int], ...] = ()
    damaged: tuple[tuple[int, int], ...] = ()


@message
@dataclass(frozen=True, slots=True)
class Survey:
    """List the store, and say with `Uploaded` what it has of the topic now (Topic -> Uploader; then `Surveyed`)."""

    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Surveyed:
    """The store was listed, or could not be: `trouble` says why (Uploader -> Topic)."""

    trouble: str


@message
@dataclass(frozen=True, slots=True)
class UploadDelayed:
    """The store refuses or does not answer; it is tried again (Uploader -> Topic, for `ister topic show`)."""

    text: str


@message
@dataclass(frozen=True, slots=True)
class UploadsStopped:
    """Nothing of this topic is uploaded any more before a person has looked (Uploader -> Topic)."""

    text: str


@message
@dataclass(frozen=True, slots=True)
class Fenced:
    """Another broker has claimed this topic: nothing of ours counts any more (Uploader -> Topic).

    With `end`, only if the log is not sealed up to there: else the Uploader is to be told so.
    """

    text: str
    end: int | None


@message
@dataclass(frozen=True, slots=True)
class Retain:
    """What the topic keeps of its history, and what all its subscriptions are done with (Topic -> Uploader)."""

    topic: TopicMeta
    acknowledged: int | None


@message
@dataclass(frozen=True, slots=True)
class StoreCursor:
    """A subscription's cursor, as its journal would begin (Subscription -> Uploader)."""

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
    """The topic is deleted: delete what the store has of it, if it is ours there (Topic, Directory -> Uploader)."""

    topic: TopicMeta
    reply: Address  # of the Directory
    fenced: bool = False  # it is known not to be ours


@message
@dataclass(frozen=True, slots=True)
class Erased:
    """Nothing of this topic is in the store any more; or it is another broker's there, and was kept.

    (Uploader -> Directory)
    """

    topic: TopicMeta
    kept: bool = False


@message
@dataclass(frozen=True, slots=True)
class Consult:
    """What does the catalogue say of this topic now? (Uploader -> Directory; answered by `Governs`).

    Asked before the topic is claimed and before its retention deletes anything: what others say may be old.
    """

    topic: str
    incarnation: bytes
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Governs:
    """The catalogue's word on a topic (Directory -> Uploader): its settings and subscriptions; None: it has no such.

    With a ticket, an `Answer` is wanted once the store has these settings.
    """

    topic: TopicMeta | None
    subscriptions: list[str]
    reply: Address | None = None
    ticket: int = 0


@message
@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring back the segment that holds `offset` (Subscription -> Fetcher; answered by `Fetched` or `NotFetched`).

    To ask again does no harm. `seen` is the `copy` of a `Fetched` for this offset that was of no use, else 0.
    """

    topic: TopicMeta
    offset: int
    reply: Address
    seen: int = 0


@message
@dataclass(frozen=True, slots=True)
class DropCache:
    """The topic is deleted: nobody reads what was brought back of it (Directory -> Fetcher)."""

    topic: TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Fetched:
    """The segment that holds `offset`, and begins at `base`, is in the cache now; `copy` is the download's number."""

    offset: int
    base: int
    copy: int = 0


@message
@dataclass(frozen=True, slots=True)
class NotFetched:
    """It could not be brought back; `retry` says whether that may change.

    What is below `start` was dropped from the store on purpose. If it is final, and `end` is not 0, the store has
    nothing of [offset, end) that can be read.
    """

    offset: int
    text: str
    retry: bool
    start: int
    end: int = 0


@message
@dataclass(frozen=True, slots=True)
class StoredTopics:
    """The topics that the store knows of (tier -> Directory; answered by `RestoreTopics`)."""

    topics: tuple[TopicMeta, ...]
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class RestoreTopics:
    """Of these the local disk knows nothing: bring them back (Directory -> tier; answered by `Restored` for each)."""

    topics: tuple[TopicMeta, ...]


@message
@dataclass(frozen=True, slots=True)
class NotRestored:
    """A topic is no longer in the store, or was never (tier -> Directory)."""

    topic: str


@message
@dataclass(frozen=True, slots=True)
class TakeOver:
    """Bring back the topic that the store has of this name (Directory -> tier; answered by `Restored`, then `Answer`).

    `Refused` where there is none, or the store is away.
    """

    topic: str
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class Restored:
    """A topic and its subscriptions, as far as the store has them (tier -> Directory)."""

    topic: TopicMeta
    subscriptions: tuple[SubscriptionMeta, ...]
    text: str
