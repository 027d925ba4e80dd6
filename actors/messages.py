"""Everything actors say to each other: reading this file is reading the system.

Those marked `@message` may cross processes, as CBOR with bulk bytes in frames of their own; the others stay inside one
worker, between the gateway's handles and the actors that stand behind them.

    client --> gateway --> Topic --(log)--> Subscription --> Consumer --> gateway --> client
                             |
                             +--> Uploader (tier process)            Directory (broker process): who lives where
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ister.actors.ledger import Held
from ister.actors.mail import Frames, message
from ister.actors.pieces import Batch, Piece
from ister.actors.runtime import Address, Ref
from ister.actors.selection import BlockedBy
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.storage.segment import SegmentInfo
from ister.transport.session import Handle, Session
from ister.wire import Buffer, Header

# ---- finding things: worker <-> Directory ------------------------------------------------------------------------


@message
@dataclass(frozen=True, slots=True)
class Locate:
    """Where does this topic live? (Frontend -> Directory; answered by `Located` or `Refused`)."""

    topic: str
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class LocateSubscription:
    """Where does this subscription live? It is created when it is new and `type` is given."""

    topic: str
    subscription: str
    type: str
    start: str
    options: dict[str, Any]  # as the client gave them: the Directory checks them
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class Located:
    """A topic, the node it lives on, and the node and endpoint of what was asked for: it, or a subscription of it."""

    ticket: int
    topic: TopicMeta
    topic_node: str
    endpoint: str
    node: str
    subscription: SubscriptionMeta | None = None


@message
@dataclass(frozen=True, slots=True)
class Refused:
    """No: with a code of `ister.errors.CODES`."""

    ticket: int
    code: str
    text: str


@message
@dataclass(frozen=True, slots=True)
class Ask:
    """An administrative request of a client (Frontend -> Directory; answered by `Answer` or `Refused`)."""

    operation: str
    arguments: bytes  # CBOR: a map
    reply: Address
    ticket: int
    session: int = 0  # of the client, as its worker numbers those that make ephemeral topics
    asked_s: float | None = None  # when, by the monotonic clock, which all processes of a machine share


@message
@dataclass(frozen=True, slots=True)
class KeptSessions:
    """Of the sessions here that made ephemeral topics these are there; the others are gone (Frontend -> Directory)."""

    node: str
    sessions: list[int]


@message
@dataclass(frozen=True, slots=True)
class Answer:
    """The result of an `Ask` or a `Describe`."""

    ticket: int
    body: bytes  # CBOR: the body of a RESULT


@message
@dataclass(frozen=True, slots=True)
class TopicTask:
    """Something to do to a topic (Directory -> its Frontend; answered by `Answer` or `Refused`)."""

    task: Literal["describe", "update", "verify", "repair", "ask-fenced", "delete"]
    topic: TopicMeta
    reply: Address
    ticket: int
    number: int | None = None  # of a verification, 0 for a new one


WITH_TOPIC: Final = "topic"  # the argument of a subscription's deletion: it goes with its topic


@message
@dataclass(frozen=True, slots=True)
class SubscriptionTask:
    """Something to do to a subscription (Directory -> the Frontend it lives with; answered likewise).

    `argument` says where to seek to, how to unblock, or whether a subscription is deleted with its topic.
    """

    task: Literal["start", "describe", "delete", "update", "seek", "unblock", "explain"]
    topic: TopicMeta
    subscription: SubscriptionMeta
    topic_node: str
    reply: Address
    ticket: int
    argument: str = ""


@message
@dataclass(frozen=True, slots=True)
class Describe:
    """Say what you know of yourself (-> any actor with something to say; answered by `Answer`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class StartSubscription:
    """Say when you are there, and have fixed where you begin (Frontend -> Subscription)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Update:
    """Your settings changed (Frontend -> Topic; answered by `Answer`)."""

    topic: TopicMeta
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class UpdateSubscription:
    """Your settings changed (Frontend -> Subscription; answered by `Answer`)."""

    meta: SubscriptionMeta
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Seek:
    """Continue at another place (Frontend -> Subscription; answered by `Answer`: a map with `position`, or `Refused`).

    `to` is "earliest", "latest", an offset in digits, or "time:<unix ms>".
    """

    to: str
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Unblock:
    """Continue behind the message that blocks you (Frontend -> Subscription; answered by a map with `messages`)."""

    action: str  # of `ister.actors.options.UNBLOCK_ACTIONS`
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Explain:
    """Say why you deliver nothing (Frontend -> Subscription; answered by the map `ister.actors.explain.State`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Verify every byte of your log, or say how far that is (Frontend -> Topic; answered by `Answer`).

    `number` is of the verification that is asked about, 0 for a new one; None: of whatever there is.
    """

    reply: Address
    ticket: int
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """Let readers continue behind what is damaged (Frontend -> Topic; answered by `Answer`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class AskFenced:
    """Has another broker taken you over? (Frontend -> Topic; answered by `Answer`: `fenced`, None if nobody knows)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Your topic, or your subscription, is deleted: tell your clients, and leave nothing (answered by `Answer`)."""

    reply: Address
    ticket: int
    with_topic: bool = False  # a subscription's: because its topic is


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A process is up, perhaps again: its next self knows nothing of what was said to the one before."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """A process is gone, with all actors in it."""

    node: str


# ---- topic <-> subscription --------------------------------------------------------------------------------------


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


# ---- dead letters ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that cannot be processed; `attributes` are its own and those that say where it comes from."""

    offset: int
    payload: Buffer
    key: bytes
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bury:
    """Put these into the dead-letter topic (Subscription -> DeadLetters; answered by `Buried`).

    It may be sent again: what is in hand already is ignored. What does not fit in hand is ignored too, so that it must
    be sent again.
    """

    letters: Sequence[Letter]
    topic: str = ""  # the dead-letter topic, where that has changed since DeadLetters was started


@dataclass(frozen=True, slots=True)
class Buried:
    """The letters of these offsets are durable in the dead-letter topic (DeadLetters -> Subscription)."""

    offsets: Sequence[int]


@dataclass(frozen=True, slots=True)
class BuryDelayed:
    """It does not work now, and is tried again (DeadLetters -> Subscription, for whoever asks)."""

    text: str


@dataclass(frozen=True, slots=True)
class Unburied:
    """The dead-letter topic does not take this letter, and why; others continue (DeadLetters -> Subscription)."""

    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class StopBurying:
    """Nothing more is to be done (Subscription -> DeadLetters)."""


@message
@dataclass(frozen=True, slots=True)
class Deposit:
    """A batch from inside the broker (DeadLetters -> Topic; answered by `Deposited` or `DepositRefused`).

    It takes the road of a client's batch. The sender has nothing unresolved below `sequence`.
    """

    topic: TopicMeta
    producer_id: int
    sequence: int
    count: int
    columns: int
    frames: Frames  # lengths, payloads, keys?, attributes?
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Deposited:
    """The batch is as durable as the topic promises (Topic -> DeadLetters)."""

    producer_id: int
    sequence: int


@message
@dataclass(frozen=True, slots=True)
class DepositRefused:
    """The batch was refused, or may be there or not: resend it (Topic, Frontend -> DeadLetters)."""

    producer_id: int
    sequence: int
    code: str
    text: str


# ---- the tier ----------------------------------------------------------------------------------------------------


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


# ---- a client's handle -> topic ----------------------------------------------------------------------------------


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


# ---- a client's handle -> consumer <-> subscription --------------------------------------------------------------


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
