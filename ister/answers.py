"""What a broker answers about topics, subscriptions and itself, as types.

They are what `client.topic`, `client.subscription`, `client.explain`, `client.status` and their like return.

A broker may say more than is here, an older one less. A key that is not always there is `NotRequired`, or in a class
that is `total=False`; what may be unknown is `None`. Times are unix milliseconds, sizes bytes, and `x_end` is the first
offset behind x. Tests hold all of it against what a broker answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired, TypedDict

from ister.subscriptions import SubscriptionType

Strategy = Literal["reliable", "non-reliable"]

# Settings that are yes or no. They travel as 1 and 0, and programs see booleans.
FLAGS: Final = ("retention_acknowledged", "dead_letters", "ephemeral", "paused")


class TopicSettings(TypedDict, total=False):
    """What a topic was given of its own; PROTOCOL.md, section 10."""

    retention_ms: int
    retention_bytes: int
    retention_acknowledged: bool
    message_ttl_ms: int
    dead_letters: bool  # it takes dead letters, and patterns do not follow it
    ephemeral: bool


class _Topic(TypedDict):
    """A topic, whatever was asked."""

    topic: str
    strategy: Strategy
    durability: Literal["fsync", "os", "cloud", "none"]
    settings: TopicSettings
    incarnation: str  # in hexadecimal: a topic of that name created again has another
    created_ms: int
    node: str  # the process that it lives in
    endpoint: str


class TopicInfo(_Topic, total=False):
    """A topic, as it is listed, created and updated."""

    settings_stored: bool  # of an update: whether the store has these settings too


class DamagedPlace(TypedDict):
    """Offsets that opening a log found damaged."""

    first: int
    end: int
    path: str
    reason: str


class Recovery(TypedDict):
    """What the last opening of a topic's log found."""

    topic: str
    start_offset: int
    next_offset: int
    segments: int
    records_scanned: int
    bytes_scanned: int
    torn_bytes: int
    rewritten_bytes: int
    discarded: list[str]
    finished: list[str]
    damaged: list[DamagedPlace]


class TopicDetail(TopicInfo, total=False):
    """A topic in detail: `client.topic`. What is said of the log is there while the log is open."""

    subscriptions: int
    producers: int
    messages_in: int  # since its actor was started, as is bytes_in
    bytes_in: int
    last_published_ms: int | None
    next_offset: int
    relays: int  # non-reliable: workers that it is relayed to
    commits: int
    failure: str | None  # why it takes nothing
    failure_code: str | None
    start_offset: int  # the first that can be read, here or from the store
    local_start: int
    stored_start: int
    behind_bytes: int  # sealed, and not in the store yet
    upload_failure: str | None
    uploads_stopped: bool  # until a person has looked at why
    missing: list[list[Any]]  # what is nowhere and should be: first offset, the offset behind
    missing_below: int  # where that is the beginning, up to where; 0: it is not
    durable_end: int
    uploaded_end: int
    segments: int
    sealed_bytes: int
    damaged: list[list[Any]]  # first offset, the offset behind, why
    damaged_here: list[list[Any]]  # the same of what is damaged in the local log, and served from the store
    recovery: Recovery


class SubscriptionSettings(TypedDict, total=False):
    """What a subscription was given of its own; PROTOCOL.md, section 10."""

    ack_timeout_ms: int
    backoff_ms_min: int
    backoff_ms_max: int
    max_deliveries: int
    poison: Literal["dead-letter", "drop", "block"]
    dead_letter_topic: str
    paused: bool
    buffer_messages_max: int
    buffer_bytes_max: int
    drop: Literal["oldest", "newest"]


class SubscriptionInfo(TypedDict):
    """A subscription, as it is listed, created and updated."""

    topic: str
    subscription: str
    type: SubscriptionType
    start: str | int  # where it began
    settings: SubscriptionSettings
    options: SubscriptionSettings  # what counts: its own settings, and the defaults of all others
    instance: str  # one of that name made anew has another
    created_ms: int
    node: str
    endpoint: str


class SubscriptionDetail(SubscriptionInfo, total=False):
    """A subscription in detail: `client.subscription`. What is said of the cursor is there once the topic answered."""

    strategy: Strategy
    consumers: int
    delivered: int
    redelivered: int
    failure: str | None
    paused: bool
    position: int  # the first offset never delivered
    durable_end: int
    trimmed: int  # messages that retention took unacknowledged
    skipped: int  # damaged ones that an operator skipped
    missing: int  # that are neither here nor in the store
    from_store: int
    from_log: int
    from_live: int
    fetching: int | None  # the offset that is being brought back from the store
    stalled: str | None  # the damage that it waits at
    ack_timeout_ms: int
    cursor: int  # everything below is acknowledged
    acknowledged_above: int
    unacknowledged: int
    pending: list[list[int]]  # the first ranges that are not acknowledged
    waiting_redelivery: int
    in_flight: int
    delayed: int
    dead_lettered: int
    dead_letter_topic: str
    burying: int  # on their way to the dead-letter topic
    dropped_poison: int
    expired: int
    blocked: bool
    waiting_for_key: int  # key-shared, as is left_in_log
    left_in_log: int
    dropped: int  # non-reliable, as is all that follows
    drop: Literal["oldest", "newest"]
    buffered: int
    buffer_messages_max: int
    buffer_bytes_max: int


class Reason(TypedDict):
    """One reason why messages of a subscription do not flow; it has numbers of its own besides."""

    code: str
    text: str


class ExplanationNumbers(TypedDict):
    """What an explanation was concluded from; the keys may change."""

    subscription: dict[str, Any]
    topic: dict[str, Any]


class Explanation(TypedDict):
    """Why messages of a subscription flow, or why they do not: `client.explain`."""

    state: NotRequired[Literal["flowing", "caught-up", "waiting", "stopped"]]
    flowing: bool
    reasons: list[Reason]
    numbers: ExplanationNumbers


class MailCounts(TypedDict):
    """Mail between processes."""

    sent: int
    received: int
    dropped: int


class Process(TypedDict, total=False):
    """One process of a broker: who it is, and what it has used so far. What is only some processes' is at the end."""

    node: str
    role: Literal["broker", "worker", "tier"]
    pid: int
    boot: int
    endpoint: str
    cpu_seconds: float
    rss_peak_bytes: int
    descriptors: int  # open now
    descriptors_max: int  # how many may be
    actors: dict[str, int]  # how many there are, by kind
    turns: int
    messages_handled: int
    mail: MailCounts
    restarts: int  # the broker's: of other processes
    sessions: int  # a worker's, as is all that follows
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    errors_out: int
    malformed: int
    damaged_ranges: int
    behind_bytes: int
    commits: int
    commits_together: int
    syncs_together: int


class Status(TypedDict):
    """How a broker is doing: `client.status`."""

    broker: Process
    processes: list[Process]


def as_flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they travel: what is yes or no as 1 or 0, which every broker takes."""
    return {
        name: int(value) if name in FLAGS and isinstance(value, bool) else value
        for name, value in options.items()
    }


def with_booleans(answer: dict[str, Any]) -> Any:
    """Return an answer about a topic or subscription with the flags among its settings as booleans."""
    for settings in (answer.get("settings"), answer.get("options")):
        if isinstance(settings, dict):
            for name in FLAGS:
                if settings.get(name) in (0, 1):
                    settings[name] = bool(settings[name])
    return answer
