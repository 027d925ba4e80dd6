"""The settings of a broker, section by section: each one's default, unit, limits and reason.

Only values live here; `ister/settings.py` reads them from a file, the environment and flags, and checks them.
Every unit is in the name (`_ms`, `_bytes`), every limit is inclusive.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from ister import subscription_defaults as standard

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# What a record may have beside its batch: header, length table, keys; a batch and a segment differ by at least this.
RECORD_OVERHEAD_BYTES_MAX: Final = 1 * MIB


def _number(unit: str, low: int, high: int, reason: str) -> Meta:
    return Meta(ge=low, le=high, extra={"unit": unit, "reason": reason})


def _text(unit: str, reason: str) -> Meta:
    return Meta(extra={"unit": unit, "reason": reason})


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all sections: frozen, keywords only."""


class ServerSettings(_Section, frozen=True, kw_only=True):
    """Where the broker listens and keeps its data."""

    data: Annotated[
        str,
        _text(
            "folder",
            "The log, the catalogue and the sockets between processes; one broker at a time holds it.",
        ),
    ] = "data"
    listen: Annotated[
        str,
        _text(
            "address",
            "Worker n listens on this port + n. Only this machine can reach the default.",
        ),
    ] = "tcp://127.0.0.1:5555"
    advertise: Annotated[
        str,
        _text(
            "host",
            "The host in the addresses that clients get, if they cannot use the one in listen (containers, NAT). "
            "Empty: the one in listen.",
        ),
    ] = ""
    workers: Annotated[
        int,
        _number(
            "processes",
            0,
            256,
            "A worker uses one core; more workers than cores only share them. 0: one per core.",
        ),
    ] = 0
    store: Annotated[
        str,
        _text(
            "address",
            "Where sealed segments go: file:///folder or gs://bucket/prefix. Empty: the folder store inside data.",
        ),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _text(
            "level",
            "The lowest level that is logged; debug is for finding faults, and slows down everything.",
        ),
    ] = "info"


class ProtocolSettings(_Section, frozen=True, kw_only=True):
    """What one client may use; told to it in WELCOME."""

    message_bytes_max: Annotated[
        int,
        _number(
            "bytes", 1, 7 * MIB, "The largest message; messages are never split, so it must fit a batch."
        ),
    ] = 4 * MIB
    batch_bytes_max: Annotated[
        int,
        _number(
            "bytes",
            1,
            7 * MIB,
            "The largest batch; it is one record, which must fit a segment of 8 MiB with its header and lengths.",
        ),
    ] = 4 * MIB
    batches_in_flight_max: Annotated[
        int,
        _number(
            "batches",
            1,
            65536,
            "Batches of a producer without a receipt; enough to cover one fdatasync (some ms) at full speed.",
        ),
    ] = 128
    producer_window_bytes: Annotated[
        int,
        _number(
            "bytes",
            1,
            GIB,
            "Bytes of a producer without a receipt; two batches of the largest size keep the pipeline full.",
        ),
    ] = 8 * MIB
    cloud_window_bytes: Annotated[
        int,
        _number(
            "bytes",
            1,
            GIB,
            "The same for durability cloud, if that is more: a producer uses what the store takes within a second, "
            "and keeps it in its memory. More than eight producers of a topic get less each.",
        ),
    ] = 64 * MIB
    heartbeat_ms: Annotated[
        int,
        _number(
            "ms", 100, 600_000, "How often an idle peer sends a heartbeat; three missed ones end a session."
        ),
    ] = 5_000
    session_timeout_ms: Annotated[
        int,
        _number(
            "ms",
            300,
            3_600_000,
            "Silence after which a session ends and its messages go to other consumers; longer tolerates more.",
        ),
    ] = 15_000
    resume_within_ms: Annotated[
        int,
        _number(
            "ms",
            0,
            3_600_000,
            "How long a session whose connection was closed may be resumed; its client tries at least every 2 s.",
        ),
    ] = 3_000
    sessions_max: Annotated[
        int,
        _number(
            "sessions",
            1,
            1_000_000,
            "Sessions of one worker; bounds the memory and descriptors that clients can use.",
        ),
    ] = 10_000
    handles_per_session_max: Annotated[
        int,
        _number(
            "handles",
            1,
            65536,
            "Producers and consumers of one session; bounds what one client can cost.",
        ),
    ] = 4096
    consumer_credit_messages_max: Annotated[
        int,
        _number(
            "messages",
            1,
            100_000_000,
            "The most messages a consumer may hold unacknowledged; they are tracked as ranges, in kilobytes.",
        ),
    ] = 1_000_000
    consumer_credit_bytes_max: Annotated[
        int,
        _number(
            "bytes",
            1,
            4 * GIB,
            "The most bytes in transit to one consumer; they may wait in the broker's memory.",
        ),
    ] = 64 * MIB


class LogSettings(_Section, frozen=True, kw_only=True):
    """The write-ahead log of reliable topics."""

    segment_bytes_max: Annotated[
        int,
        _number(
            "bytes",
            MIB + 1,
            8 * MIB,
            "A segment is sealed at this size; it is preallocated, and is the object that is uploaded in one request.",
        ),
    ] = 8 * MIB
    segment_age_ms_max: Annotated[
        int,
        _number(
            "ms",
            100,
            86_400_000,
            "A segment with messages is sealed at this age: the store is no further behind.",
        ),
    ] = 60_000
    cursor_flush_ms: Annotated[
        int,
        _number(
            "ms",
            1,
            60_000,
            "Acknowledgments are gathered this long before they are written to the cursor's journal.",
        ),
    ] = 20
    cursor_sync_ms: Annotated[
        int,
        _number(
            "ms",
            1,
            60_000,
            "How often a cursor's journal is synced: a power cut may redeliver this much, and never skips any.",
        ),
    ] = 1_000
    local_bytes: Annotated[
        int,
        _number(
            "bytes",
            0,
            1 << 50,
            "How much of each topic stays in the local log after the upload: reading it costs no request.",
        ),
    ] = GIB
    behind_bytes_max: Annotated[
        int,
        _number(
            "bytes",
            16 * MIB,
            1 << 50,
            "A topic with more than this not yet uploaded refuses publishes: an unavailable store fills no disk.",
        ),
    ] = 64 * GIB
    cloud_linger_ms: Annotated[
        int,
        _number(
            "ms",
            1,
            60_000,
            "Durability cloud: a segment is sealed and uploaded this long after its first message, or sooner. A store "
            "charges for each object: on average at most one of less than 1 MiB is made in this time.",
        ),
    ] = 250
    check_core_percent: Annotated[
        int,
        _number(
            "percent",
            1,
            100,
            "The share of a core that checking a log (topic verify, topic repair) may use; one log is checked at a "
            "time. While others need the cores it takes less, down to a tenth of this. 100: as fast as it goes, and "
            "receipts may wait for it.",
        ),
    ] = 25


class SubscriptionSettings(_Section, frozen=True, kw_only=True):
    """What a subscription does by default."""

    ack_timeout_ms: Annotated[
        int,
        _number(
            "ms",
            10,
            86_400_000,
            "A message held longer without an acknowledgment is redelivered. A lost consumer is noticed by its "
            "session long before; this is for one that is stuck, so it must outlast the work on a message.",
        ),
    ] = standard.ACK_TIMEOUT_MS
    backoff_ms_min: Annotated[
        int,
        _number(
            "ms",
            0,
            86_400_000,
            "The wait of a message that failed once; it doubles with each failure. 0: it is redelivered at once, "
            "thousands of times a second if a program refuses everything.",
        ),
    ] = standard.BACKOFF_MS_MIN
    backoff_ms_max: Annotated[
        int,
        _number(
            "ms",
            0,
            86_400_000,
            "The longest of these waits: a dependency that is back is noticed within it.",
        ),
    ] = standard.BACKOFF_MS_MAX
    max_deliveries: Annotated[
        int,
        _number(
            "failures",
            0,
            1_000_000,
            "A message that failed this often is given up: by default it goes to the dead-letter topic. 0: it is tried "
            "forever. With the back-off 20 take a quarter of an hour, so that a dependency that is down for ten "
            "minutes makes no dead letters.",
        ),
    ] = standard.MAX_DELIVERIES
    buffer_messages_max: Annotated[
        int,
        _number(
            "messages",
            1,
            100_000_000,
            "Non-reliable: messages kept for a consumer without credit before any drop.",
        ),
    ] = standard.BUFFER_MESSAGES_MAX
    buffer_bytes_max: Annotated[
        int,
        _number(
            "bytes",
            1,
            4 * GIB,
            "Non-reliable: bytes kept for a consumer without credit; consumers times this is memory.",
        ),
    ] = standard.BUFFER_BYTES_MAX
    drop: Annotated[
        Literal["oldest", "newest"],
        _text(
            "end",
            "Non-reliable: which end of a full buffer is dropped; oldest keeps a slow consumer near the present.",
        ),
    ] = standard.DROP


class SupervisionSettings(_Section, frozen=True, kw_only=True):
    """How processes that die are handled."""

    restart_delay_ms_min: Annotated[
        int, _number("ms", 1, 60_000, "The wait before the first restart; doubled for each one that follows.")
    ] = 100
    restart_delay_ms_max: Annotated[
        int,
        _number("ms", 1, 600_000, "The longest wait before a restart: a mended fault is noticed within it."),
    ] = 5_000
    restarts_max: Annotated[
        int,
        _number("restarts", 0, 10_000, "More than this within the window, and the broker gives up, loudly."),
    ] = 5
    restarts_window_s: Annotated[
        int, _number("s", 1, 86_400, "Restarts are counted over this time; older ones are forgiven.")
    ] = 60
    stop_grace_ms: Annotated[
        int,
        _number(
            "ms",
            0,
            600_000,
            "How long a process may take to stop before it is killed; the log survives either.",
        ),
    ] = 5_000


class TierSettings(_Section, frozen=True, kw_only=True):
    """Uploading sealed segments to the store."""

    upload_parallel: Annotated[
        int,
        _number(
            "uploads",
            1,
            64,
            "Segments of a topic on their way to the store at once, and twice as many of all topics together. A store "
            "that takes long over each takes more with more; each that is being sent takes up to 40 MB of memory.",
        ),
    ] = 4
    upload_retry_ms_min: Annotated[
        int,
        _number("ms", 1, 60_000, "The wait after a first failed upload; doubled for each one that follows."),
    ] = 100
    upload_retry_ms_max: Annotated[
        int,
        _number(
            "ms", 1, 3_600_000, "The longest wait between tries: a store that is back is noticed within it."
        ),
    ] = 30_000
    cursor_upload_ms: Annotated[
        int,
        _number(
            "ms",
            100,
            3_600_000,
            "How far a subscription's cursor in the store may be behind: with the disk lost, so much comes again. "
            "One that moves after a rest is uploaded sooner, one that does not move never.",
        ),
    ] = 60_000
    cache_bytes_max: Annotated[
        int,
        _number(
            "bytes",
            16 * MIB,
            1 << 50,
            "Segments brought back from the store are kept on the local disk up to this, for all readers together.",
        ),
    ] = 2 * GIB
    orphan_grace_ms: Annotated[
        int,
        _number(
            "ms",
            1_000,
            10 * 365 * 86_400_000,
            "Objects of no topic are deleted so long after they were written: somebody may be at work.",
        ),
    ] = 86_400_000


class Settings(_Section, frozen=True, kw_only=True):
    """Every setting; `Settings()` is the defaults."""

    server: ServerSettings = ServerSettings()
    protocol: ProtocolSettings = ProtocolSettings()
    log: LogSettings = LogSettings()
    subscription: SubscriptionSettings = SubscriptionSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    tier: TierSettings = TierSettings()
