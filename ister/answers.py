"""The types of a broker's answers about topics, subscriptions and itself.

They are what `client.topic`, `client.subscription`, `client.explain`, `client.status` and their like return.

A newer broker may answer with more keys, an older one with fewer. A key that is not always there is `NotRequired`, or
in a class that is `total=False`; unknown values are `None`. Times are unix milliseconds, sizes are bytes, and `x_end`
is the first offset after x. Tests compare all of it with a broker's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired, TypedDict

from ister.subscriptions import SubscriptionType

Strategy = Literal["reliable", "non-reliable"]

# Settings that are true or false. They travel as 1 and 0, and programs see booleans.
FLAGS: Final = ("retention_acknowledged", "dead_letters", "ephemeral", "paused")


class TopicSettings(TypedDict, total=False):
    """A topic's own settings; PROTOCOL.md, section 10."""

    retention_ms: int
    retention_bytes: int
    retention_acknowledged: bool
    message_ttl_ms: int
    dead_letters: bool  # it takes dead letters, and patterns do not match it
    ephemeral: bool


class _Topic(TypedDict):
    """The keys of a topic in every answer."""

    topic: str
    strategy: Strategy
    durability: Literal["fsync", "os", "cloud", "none"]
    settings: TopicSettings
    incarnation: str  # in hexadecimal: a topic of that name created again has another
    created_ms: int
    node: str  # the process that it runs in
    endpoint: str


class TopicInfo(_Topic, total=False):
    """A topic, as it is listed, created and updated."""

    settings_stored: bool  # of an update: whether the store has these settings too


class DamagedPlace(TypedDict):
    """Offsets that were found damaged when a log was opened."""

    first: int
    end: int
    path: str
    reason: str


class Recovery(TypedDict):
    """The result of the last opening of a topic's log."""

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
    """A topic in detail: `client.topic`. The keys about the log are there while the log is open."""

    subscriptions: int
    producers: int
    messages_in: int  # since the topic's actor started, as is bytes_in
    bytes_in: int
    last_published_ms: int | None
    next_offset: int
    relays: int  # non-reliable: how many workers it is relayed to
    commits: int
    failure: str | None  # why it accepts nothing
    failure_code: str | None
    start_offset: int  # the first offset that can be read, here or from the store
    local_start: int
    stored_start: int
    behind_bytes: int  # sealed and not in the store yet
    upload_failure: str | None
    uploads_stopped: bool  # until an operator has acted
    # offsets that neither the log nor the store has, and should: first offset, offset after the last
    missing: list[list[Any]]
    missing_below: int  # if those are at the topic's beginning, their end; else 0
    durable_end: int
    uploaded_end: int
    segments: int
    sealed_bytes: int
    damaged: list[list[Any]]  # first offset, offset after the last, reason
    # the same for offsets that are damaged in the local log, and read from the store
    damaged_here: list[list[Any]]
    recovery: Recovery


class SubscriptionSettings(TypedDict, total=False):
    """A subscription's own settings; PROTOCOL.md, section 10."""

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
    start: str | int  # where it began to read
    settings: SubscriptionSettings
    options: SubscriptionSettings  # the options in force: its own settings, and the defaults of all others
    instance: str  # differs for one of that name that is created again
    created_ms: int
    node: str
    endpoint: str


class SubscriptionDetail(SubscriptionInfo, total=False):
    """A subscription in detail: `client.subscription`. The cursor's keys are there once the topic has answered."""

    strategy: Strategy
    consumers: int
    delivered: int
    redelivered: int
    failure: str | None
    paused: bool
    position: int  # the first offset that was never delivered
    durable_end: int
    trimmed: int  # messages that retention took before they were acknowledged
    skipped: int  # damaged messages that an operator skipped
    missing: int  # messages that neither the log nor the store has
    from_store: int
    from_log: int
    from_live: int
    fetching: int | None  # the offset that is being fetched from the store
    stalled: str | None  # the damage at which it waits
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
    burying: int  # in transit to the dead-letter topic
    dropped_poison: int
    expired: int
    blocked: bool
    waiting_for_key: int  # of key-shared subscriptions, as is left_in_log
    left_in_log: int
    dropped: int  # of non-reliable topics, as are the keys after it
    drop: Literal["oldest", "newest"]
    buffered: int
    buffer_messages_max: int
    buffer_bytes_max: int


class Reason(TypedDict):
    """A reason why messages of a subscription do not flow; further keys are the numbers it is about."""

    code: str
    text: str


class ExplanationNumbers(TypedDict):
    """The numbers that an explanation was concluded from; the keys may change."""

    subscription: dict[str, Any]
    topic: dict[str, Any]


class Explanation(TypedDict):
    """Why messages of a subscription flow or do not flow: `client.explain`."""

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
    """One process of a broker: its identity, and its use of resources. Keys of some processes are at the end."""

    node: str
    role: Literal["broker", "worker", "tier"]
    pid: int
    boot: int
    endpoint: str
    cpu_seconds: float
    rss_peak_bytes: int
    descriptors: int  # open at present
    descriptors_max: int  # the limit
    actors: dict[str, int]  # their number, by kind
    turns: int
    messages_handled: int
    mail: MailCounts
    restarts: int  # of the broker process: restarts of other processes
    sessions: int  # of workers, as are the keys after it
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
    """The state of a broker: `client.status`."""

    broker: Process
    processes: list[Process]


def as_flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they travel: true and false as 1 and 0, which every broker accepts."""
    return {
        name: int(value) if name in FLAGS and isinstance(value, bool) else value
        for name, value in options.items()
    }


def with_booleans(answer: dict[str, Any]) -> Any:
    """Return an answer about a topic or subscription with booleans in its settings."""
    for settings in (answer.get("settings"), answer.get("options")):
        if isinstance(settings, dict):
            for name in FLAGS:
                if settings.get(name) in (0, 1):
                    settings[name] = bool(settings[name])
    return answer
