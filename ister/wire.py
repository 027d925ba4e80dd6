"""The wire, version 1: frame types, header keys, and the codec of headers; `transport/PROTOCOL.md` specifies it.

A ZeroMQ message of Ister is `[header, *body frames]`. The header is one CBOR map (RFC 8949) with small integer keys,
at most 8 KiB and decoded strictly: no tags, no indefinite lengths, no duplicate keys, depth 4, nothing trailing.
The body frames of batches are in `bodies.py`, the decoder in `strictcbor.py`; what a frame makes its receiver do is in
`clientsession.py` and the broker's `transport/session.py`.

Invariants
- pure: bytes in, values out; no socket, clock or thread lives here
- whatever bytes come in, the only error that comes out is `RemoteProtocolError`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import cbor2

from ister import strictcbor
from ister.errors import RemoteProtocolError
from ister.strictcbor import U64_MAX

PROTOCOL_VERSION: Final = 1
HEADER_BYTES_MAX: Final = (
    8192  # a header has numbers and names; this limits the cost of decoding a hostile one
)
HEADER_DEPTH_MAX: Final = 4
RESULT_BYTES_MAX: Final = 1 << 20  # lists are paged far below it
RANGES_MAX: Final = (
    400  # two 9-byte numbers per range: 7.2 KB, so that any such header stays under HEADER_BYTES_MAX
)
RECEIPTS_MAX: Final = 400  # the same bound for (sequence, offset) pairs
DELIVER_RECORDS_MAX: Final = 256  # records in one DELIVER, each a (count, timestamp) pair in its header
OFFSET_UNKNOWN: Final = (1 << 64) - 1  # in a receipt for a duplicate so old that its offset is forgotten

Header = dict[int, Any]


class Type:
    """The frame types (key 0 of every header); below 32 those of clients, from 32 those of the broker."""

    HELLO: Final = 1
    BYE: Final = 2
    PING: Final = 3
    OPEN_PRODUCER: Final = 4
    PUBLISH: Final = 5
    CLOSE: Final = 6
    OPEN_CONSUMER: Final = 7
    CREDIT: Final = 8
    ACK: Final = 9
    NACK: Final = 10
    ACK_UNTIL: Final = 11
    REQUEST: Final = 12
    EXTEND: Final = 13

    WELCOME: Final = 33
    OPENED: Final = 34
    RECEIPT: Final = 35
    DELIVER: Final = 36
    ERROR: Final = 37
    MOVED: Final = 38
    RESULT: Final = 39
    DONE: Final = 40
    PONG: Final = 41
    EVENT: Final = 42


class Key:
    """The header's integer keys; one key means one thing in every frame."""

    TYPE: Final = 0
    REF: Final = 1  # a number chosen by the asker; the answer repeats it
    HANDLE: Final = 2  # a producer's or consumer's number, chosen by the client, unique in its session
    TOPIC: Final = 3
    SUBSCRIPTION: Final = 4
    SEQUENCE: Final = 5  # the producer's number of the first message of a batch
    OFFSET: Final = 6
    COUNT: Final = 7
    COLUMNS: Final = 8  # bits of Column
    TIMESTAMPS: Final = 9  # flat list: count, unix ms, count, unix ms, ...
    ATTEMPT: Final = 10
    MESSAGES: Final = 11  # credit
    BYTES: Final = 12  # credit, or a producer's window
    RANGES: Final = 13  # flat list of half-open ranges: first, end, first, end, ...
    DELAY: Final = 14  # ms
    REASON: Final = 15
    CODE: Final = 16
    TEXT: Final = 17
    ACTION: Final = 18  # "retry", "fix" or "stop"
    ENDPOINT: Final = 19
    SESSION: Final = 20  # 16 bytes
    BOOT: Final = 21  # which start of the worker this is
    VERSION: Final = 22  # in HELLO a list, in WELCOME the one chosen
    LIMITS: Final = 23  # map of Limit
    ARGUMENTS: Final = 24  # map of text keys
    PRODUCER: Final = 25  # the producer id: 64 bits, not 0
    START: Final = 26  # "earliest", "latest", an offset or "time:<unix ms>"
    RECEIPTS: Final = 27  # flat list: sequence, first offset, sequence, first offset, ...
    SUBSCRIPTION_TYPE: Final = 28
    PRIORITY: Final = 29  # of a Failover consumer: lower is preferred
    OPERATION: Final = 30
    CLIENT: Final = 31  # name and version of the client library, for people
    RESUMED: Final = 32
    HEARTBEAT: Final = 33  # ms
    CLOSED: Final = 34  # true: the handle is closed by this error
    STRATEGY: Final = 35  # of the topic: "reliable" or "non-reliable"
    SPARSE: Final = 36  # true: this consumer understands a DELIVER with RANGES
    FORCE: Final = 37  # true: take an Exclusive subscription over
    TAKEN: Final = 38  # how many of the messages delivered since OPENED the program has, or may have by now
    SINGLY: Final = (
        39  # true: to be handed out one by one, each after the broker has confirmed that it is TAKEN
    )
    INSTANCE: Final = 40  # which of all the subscriptions that ever had this name it is
    SOUGHT: Final = 41  # how often the subscription was moved, as far as its consumer knows


class Column:
    """Optional columns of a batch, in this order after the payloads, one frame each."""

    KEYS: Final = 1
    ATTRIBUTES: Final = 2
    DELIVER_AT: Final = 4  # no length table: one u64 per message
    ALL: Final = 7


class Limit:
    """Keys of WELCOME's map of limits."""

    MESSAGE_BYTES_MAX: Final = 1
    BATCH_BYTES_MAX: Final = 2
    BATCHES_IN_FLIGHT_MAX: Final = 3
    PRODUCER_WINDOW_BYTES: Final = 4
    SESSION_TIMEOUT_MS: Final = 5
    HANDLES_MAX: Final = 6
    CREDIT_MESSAGES_MAX: Final = 7
    CREDIT_BYTES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in WELCOME; defaults until it has come."""

    message_bytes_max: int = 10 << 20
    batch_bytes_max: int = 16 << 20
    batches_in_flight_max: int = 256
    producer_window_bytes: int = 8 << 20
    handles_max: int = 1 << 16
    credit_messages_max: int = 1 << 20
    credit_bytes_max: int = 1 << 30


_LIMIT_NAMES: Final = {
    Limit.MESSAGE_BYTES_MAX: "message_bytes_max",
    Limit.BATCH_BYTES_MAX: "batch_bytes_max",
    Limit.BATCHES_IN_FLIGHT_MAX: "batches_in_flight_max",
    Limit.PRODUCER_WINDOW_BYTES: "producer_window_bytes",
    Limit.HANDLES_MAX: "handles_max",
    Limit.CREDIT_MESSAGES_MAX: "credit_messages_max",
    Limit.CREDIT_BYTES_MAX: "credit_bytes_max",
}


def limits_of(told: Mapping[int, int]) -> Limits:
    """Return the limits that a WELCOME tells; unknown ones are ignored, and defaults stand for those it leaves out."""
    return Limits(**{name: told[key] for key, name in _LIMIT_NAMES.items() if key in told})


# What each key holds. "uint", "uints", "text", "bytes", "bool", "map", "limits", "start", "version".
_KINDS: Final[dict[int, str]] = {
    **dict.fromkeys(
        (
            Key.TYPE,
            Key.REF,
            Key.HANDLE,
            Key.SEQUENCE,
            Key.OFFSET,
            Key.COUNT,
            Key.COLUMNS,
            Key.ATTEMPT,
            Key.MESSAGES,
            Key.BYTES,
            Key.DELAY,
            Key.BOOT,
            Key.PRODUCER,
            Key.PRIORITY,
            Key.HEARTBEAT,
            Key.TAKEN,
            Key.SOUGHT,
        ),
        "uint",
    ),
    **dict.fromkeys((Key.TIMESTAMPS, Key.RANGES, Key.RECEIPTS), "uints"),
    **dict.fromkeys(
        (
            Key.TOPIC,
            Key.SUBSCRIPTION,
            Key.REASON,
            Key.CODE,
            Key.TEXT,
            Key.ACTION,
            Key.ENDPOINT,
            Key.SUBSCRIPTION_TYPE,
            Key.OPERATION,
            Key.CLIENT,
            Key.STRATEGY,
            Key.INSTANCE,
        ),
        "text",
    ),
    Key.SESSION: "bytes",
    Key.RESUMED: "bool",
    Key.CLOSED: "bool",
    Key.SPARSE: "bool",
    Key.FORCE: "bool",
    Key.SINGLY: "bool",
    Key.ARGUMENTS: "map",
    Key.LIMITS: "limits",
    Key.START: "start",
    Key.VERSION: "version",
}

# The required keys of each frame; other known keys are allowed as PROTOCOL.md says, unknown keys are ignored.
REQUIRED: Final[dict[int, frozenset[int]]] = {
    Type.HELLO: frozenset({Key.VERSION}),
    Type.BYE: frozenset(),
    Type.PING: frozenset(),
    Type.OPEN_PRODUCER: frozenset({Key.REF, Key.HANDLE, Key.TOPIC, Key.PRODUCER}),
    Type.PUBLISH: frozenset({Key.HANDLE, Key.SEQUENCE}),
    Type.CLOSE: frozenset({Key.REF, Key.HANDLE}),
    Type.OPEN_CONSUMER: frozenset(
        {Key.REF, Key.HANDLE, Key.TOPIC, Key.SUBSCRIPTION, Key.SUBSCRIPTION_TYPE, Key.MESSAGES, Key.BYTES}
    ),
    Type.CREDIT: frozenset({Key.HANDLE, Key.MESSAGES, Key.BYTES}),
    Type.ACK: frozenset({Key.HANDLE, Key.RANGES}),
    Type.NACK: frozenset({Key.HANDLE, Key.RANGES}),
    Type.ACK_UNTIL: frozenset({Key.HANDLE, Key.OFFSET}),
    Type.REQUEST: frozenset({Key.REF, Key.OPERATION}),
    Type.EXTEND: frozenset({Key.HANDLE, Key.RANGES}),
    Type.WELCOME: frozenset({Key.VERSION, Key.SESSION, Key.BOOT, Key.LIMITS, Key.HEARTBEAT}),
    Type.OPENED: frozenset({Key.REF, Key.HANDLE}),
    Type.RECEIPT: frozenset({Key.HANDLE, Key.RECEIPTS}),
    Type.DELIVER: frozenset({Key.HANDLE, Key.OFFSET, Key.COUNT, Key.TIMESTAMPS}),
    Type.ERROR: frozenset({Key.CODE, Key.TEXT, Key.ACTION}),
    Type.MOVED: frozenset({Key.REF, Key.HANDLE, Key.ENDPOINT}),
    Type.RESULT: frozenset({Key.REF}),
    Type.DONE: frozenset({Key.REF}),
    Type.PONG: frozenset(),
    Type.EVENT: frozenset({Key.HANDLE, Key.CODE}),
}


_INTEGERS: Final = frozenset({int})


def encode_header(header: Mapping[int, Any]) -> bytes:
    """Return a header as CBOR bytes."""
    return cbor2.dumps(header)


def decode_header(data: bytes) -> Header:
    """Decode and check one header.

    Raises `RemoteProtocolError`: over 8 KiB, not strict CBOR, not a map, no known type, a required key missing, or a
    value of another kind than `Key` says.
    """
    if len(data) > HEADER_BYTES_MAX:
        raise RemoteProtocolError(f"header of {len(data)} bytes is over the limit of {HEADER_BYTES_MAX}")
    header = strictcbor.decode(data, HEADER_DEPTH_MAX)
    if type(header) is not dict:
        raise RemoteProtocolError(f"header is a CBOR {type(header).__name__}, not a map")
    for key, value in header.items():
        if type(key) is not int or key < 0:
            raise RemoteProtocolError(f"header key {key!r:.40} is not an unsigned integer")
        kind = _KINDS.get(key)
        if kind == "uint":
            if type(value) is not int or not 0 <= value <= U64_MAX:
                raise RemoteProtocolError(f"header key {key} is not an unsigned integer of 64 bits")
        elif kind is not None:
            _check_kind(key, kind, value)
        elif not strictcbor.is_plain(value):
            raise RemoteProtocolError(f"header key {key} is unknown, and has a value that no header may have")
    if Key.TYPE not in header:
        raise RemoteProtocolError("header has no frame type (key 0)")
    required = REQUIRED.get(header[Key.TYPE])
    if required is None:
        raise RemoteProtocolError(
            f"unknown frame type {header.get(Key.TYPE)!r:.40}", code="unknown-operation"
        )
    if not required <= header.keys():
        missing = sorted(required - header.keys())
        raise RemoteProtocolError(f"frame of type {header[Key.TYPE]} lacks the header keys {missing}")
    return header


def readable_numbers(data: bytes) -> Header:
    """Return the readable values of REF, HANDLE and SEQUENCE in a malformed header: its answer repeats them."""
    if len(data) > HEADER_BYTES_MAX:
        return {}
    try:
        header = strictcbor.decode(data, HEADER_DEPTH_MAX)
    except RemoteProtocolError:
        return {}
    if type(header) is not dict:
        return {}
    numbers = {key: header.get(key) for key in (Key.REF, Key.HANDLE, Key.SEQUENCE)}
    return {key: value for key, value in numbers.items() if type(value) is int and 0 <= value <= U64_MAX}


def _check_kind(key: int, kind: str, value: Any) -> None:
    if kind == "text":
        good = type(value) is str
    elif kind == "uints":
        good = (
            type(value) is list
            and len(value) % 2 == 0
            and set(map(type, value)) <= _INTEGERS
            and (not value or (min(value) >= 0 and max(value) <= U64_MAX))
        )
    elif kind == "bytes":
        good = type(value) is bytes and len(value) == 16
    elif kind == "bool":
        good = type(value) is bool
    elif kind == "map":
        good = type(value) is dict and all(type(name) is str for name in value) and strictcbor.is_plain(value)
    elif kind == "limits":
        good = type(value) is dict and all(type(k) is int and type(v) is int for k, v in value.items())
    elif kind == "start":
        good = type(value) in (str, int) and is_start(value)
    else:  # "version"
        versions = value if type(value) is list else [value]
        good = bool(versions) and all(type(version) is int and version >= 0 for version in versions)
    if not good:
        raise RemoteProtocolError(f"header key {key} has a {type(value).__name__} where {kind} is expected")


def is_start(value: str | int) -> bool:
    """Return whether a value is a START: "earliest", "latest", "time:<unix ms>" or an offset."""
    if type(value) is int:
        return 0 <= value <= U64_MAX
    if value in ("earliest", "latest"):
        return True
    digits = str(value).removeprefix("time:")
    return digits != value and _is_number(digits)


def _is_number(digits: str) -> bool:
    return 0 < len(digits) <= 20 and digits.isascii() and digits.isdigit() and int(digits) <= U64_MAX


def encode_result(value: Any) -> bytes:
    """Return the body of a RESULT as CBOR bytes."""
    return cbor2.dumps(value)


def decode_result(data: bytes) -> Any:
    """Decode the body frame of a RESULT (at most 1 MiB, depth 8); raises `RemoteProtocolError`."""
    if len(data) > RESULT_BYTES_MAX:
        raise RemoteProtocolError(f"result of {len(data)} bytes is over the limit of {RESULT_BYTES_MAX}")
    value = strictcbor.decode(data, 8)
    if not strictcbor.is_plain(value):
        raise RemoteProtocolError("result holds something other than maps, lists, text, bytes and numbers")
    return value
