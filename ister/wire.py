"""The wire, version 1: frame types, integer keys, and the codec; `transport/PROTOCOL.md` is its specification.

A ZeroMQ message of Ister is `[header, *body frames]`. The header is one CBOR map (RFC 8949) with small integer keys,
at most 8 KiB and decoded strictly: no tags, no indefinite lengths, no duplicate keys, depth 4, nothing trailing.
Payloads stay outside CBOR.

Invariants
- pure: bytes in, values out; no socket, clock or thread lives here
- nothing loops over the messages of a batch, except `split_*` and `pack_*`, which only clients call (times of
  delivery are one copy in C)
- whatever bytes come in, the only error that comes out is `RemoteProtocolError`
"""

from __future__ import annotations

import io
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final

import cbor2

from ister.errors import RemoteProtocolError
from ister.words import counted

PROTOCOL_VERSION: Final = 1
HEADER_BYTES_MAX: Final = (
    8192  # a header holds numbers and names; this bounds what a hostile one can cost to decode
)
HEADER_DEPTH_MAX: Final = 4
RESULT_BYTES_MAX: Final = 1 << 20  # listings are paged far below it
RANGES_MAX: Final = (
    400  # two 9-byte numbers a range: 7.2 KB, so that any such header stays under HEADER_BYTES_MAX
)
RECEIPTS_MAX: Final = 400  # the same bound for (sequence, offset) pairs
# What goes with a lone payload that reaches the limit of a batch (its length, key, attributes, time) may have so much
# beyond it, or a sixteenth of a small limit: a payload of exactly the limit has a length too, and perhaps a key.
AROUND_BYTES_MAX: Final = 65_536
AROUND_BYTES_MIN: Final = 64
MARK: Final = "ister."  # what the names of attributes begin with that the broker or a redrive adds
MARKED_BYTES_MAX: Final = 4_096  # of such, not counted: a dead letter has some 2 KB of them
CUT_AT_ONCE: Final = 64  # messages of one length that are cut out of a payload frame together
DELIVER_RECORDS_MAX: Final = 256  # records in one DELIVER, each a (count, timestamp) pair in its header
OFFSET_UNKNOWN: Final = (1 << 64) - 1  # a receipt for a duplicate so old that its offset is forgotten

Buffer = bytes | bytearray | memoryview
Header = dict[int, Any]


class Type:
    """The frame types (key 0 of every header); below 32 a client speaks, from 32 the broker."""

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
        39  # true: to be handed out one by one, each once the broker has confirmed that it is TAKEN
    )
    INSTANCE: Final = 40  # which of all the subscriptions that ever had this name it is


class Column:
    """Optional columns of a batch, in this order behind the payloads, one frame each."""

    KEYS: Final = 1
    ATTRIBUTES: Final = 2
    DELIVER_AT: Final = 4  # no length table: one u64 a message
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


_U64_MAX: Final = (1 << 64) - 1
_TABLED: Final = Column.KEYS | Column.ATTRIBUTES  # columns that begin with a length table

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

# What each frame must carry; other known keys are allowed where PROTOCOL.md says so, unknown keys are ignored.
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
    header = _decode_strict(data, HEADER_DEPTH_MAX)
    if type(header) is not dict:
        raise RemoteProtocolError(f"header is a CBOR {type(header).__name__}, not a map")
    for key, value in header.items():
        if type(key) is not int or key < 0:
            raise RemoteProtocolError(f"header key {key!r:.40} is not an unsigned integer")
        kind = _KINDS.get(key)
        if kind == "uint":
            if type(value) is not int or not 0 <= value <= _U64_MAX:
                raise RemoteProtocolError(f"header key {key} is not an unsigned integer of 64 bits")
        elif kind is not None:
            _check_kind(key, kind, value)
        elif not _is_plain(value):
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
    """Return what can be read of REF, HANDLE and SEQUENCE in a header that is wrong: its answer repeats them."""
    if len(data) > HEADER_BYTES_MAX:
        return {}
    try:
        header = _decode_strict(data, HEADER_DEPTH_MAX)
    except RemoteProtocolError:
        return {}
    if type(header) is not dict:
        return {}
    numbers = {key: header.get(key) for key in (Key.REF, Key.HANDLE, Key.SEQUENCE)}
    return {key: value for key, value in numbers.items() if type(value) is int and 0 <= value <= _U64_MAX}


def _check_kind(key: int, kind: str, value: Any) -> None:
    if kind == "text":
        good = type(value) is str
    elif kind == "uints":
        good = (
            type(value) is list
            and len(value) % 2 == 0
            and all(type(number) is int and 0 <= number <= _U64_MAX for number in value)
        )
    elif kind == "bytes":
        good = type(value) is bytes and len(value) == 16
    elif kind == "bool":
        good = type(value) is bool
    elif kind == "map":
        good = type(value) is dict and all(type(name) is str for name in value) and _is_plain(value)
    elif kind == "limits":
        good = type(value) is dict and all(type(k) is int and type(v) is int for k, v in value.items())
    elif kind == "start":
        good = type(value) in (str, int) and is_start(value)
    else:  # "version"
        versions = value if type(value) is list else [value]
        good = bool(versions) and all(type(version) is int and version >= 0 for version in versions)
    if not good:
        raise RemoteProtocolError(f"header key {key} has a value of the wrong kind, not {kind})")


def is_start(value: str | int) -> bool:
    """Return whether a value is a START: "earliest", "latest", "time:<unix ms>" or an offset."""
    if type(value) is int:
        return 0 <= value <= _U64_MAX
    if value in ("earliest", "latest"):
        return True
    digits = str(value).removeprefix("time:")
    return digits != value and _is_number(digits)


def _is_number(digits: str) -> bool:
    return 0 < len(digits) <= 20 and digits.isascii() and digits.isdigit() and int(digits) <= _U64_MAX


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(k) in (str, int) and _is_plain(v) for k, v in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is int:
        return bool(-(1 << 63) <= value <= _U64_MAX)
    return value is None or type(value) in (str, bytes, bool, float)


def encode_result(value: Any) -> bytes:
    """Return the body of a RESULT as CBOR bytes."""
    return cbor2.dumps(value)


def decode_result(data: bytes) -> Any:
    """Decode the body frame of a RESULT (at most 1 MiB, depth 8); raises `RemoteProtocolError`."""
    if len(data) > RESULT_BYTES_MAX:
        raise RemoteProtocolError(f"result of {len(data)} bytes is over the limit of {RESULT_BYTES_MAX}")
    value = _decode_strict(data, 8)
    if not _is_plain(value):
        raise RemoteProtocolError("result holds something other than maps, lists, text, bytes and numbers")
    return value


# ---- strict CBOR ------------------------------------------------------------------------------------------------


def _decode_strict(data: bytes, depth_max: int) -> Any:
    try:
        value = cbor2.loads(data, max_depth=depth_max, allow_indefinite=False, allow_duplicate_keys=False)
        if cbor2.dumps(value) == data:
            return value  # shortest form throughout: nothing trailing, and no tag but one that gives another type
    except Exception as error:  # noqa: BLE001  (bytes of a stranger: whatever the decoder finds wrong, it is theirs)
        raise RemoteProtocolError(f"not strict CBOR: {error}") from None
    if _skip_item(data, 0, depth_max) != len(data):  # a legal but longer form: look at every byte
        raise RemoteProtocolError("not strict CBOR: bytes after the end")
    return value


def _skip_item(data: bytes, at: int, depth: int) -> int:
    """Return the index behind the item at `at`; raise where it is no strict CBOR (RFC 8949, section 3)."""
    if depth < 0:
        raise RemoteProtocolError("not strict CBOR: too deep")
    try:
        major, low = data[at] >> 5, data[at] & 31
    except IndexError:
        raise RemoteProtocolError("not strict CBOR: ends too early") from None
    at += 1
    if low < 24:
        number = low
    elif low < 28:
        width = 1 << (low - 24)
        number = int.from_bytes(data[at : at + width])
        at += width
    else:
        raise RemoteProtocolError("not strict CBOR: indefinite or reserved length")
    if at > len(data):
        raise RemoteProtocolError("not strict CBOR: ends too early")
    if major == 6:
        raise RemoteProtocolError("not strict CBOR: tags are not allowed")
    if major in (2, 3):
        at += number
    elif major in (4, 5):
        for _ in range(number * (major - 3)):
            at = _skip_item(data, at, depth - 1)
    if at > len(data):
        raise RemoteProtocolError("not strict CBOR: ends too early")
    return at


# ---- batches ----------------------------------------------------------------------------------------------------


def lengths_of(table: Buffer) -> array[int]:
    """Return a length table (little-endian u32) as an array; raises `RemoteProtocolError` when it is cut short."""
    if len(table) % 4:
        raise RemoteProtocolError(
            f"length table of {counted(len(table), 'byte')} is not a multiple of 4", code="lengths-mismatch"
        )
    lengths = array("I")
    lengths.frombytes(table)
    if sys.byteorder == "big":
        lengths.byteswap()
    return lengths


def same_length(table: bytes) -> int | None:
    """Return the one length that all messages of a table have, None where they differ, or the table is empty or cut.

    Most topics hold messages of one kind, and then nothing needs to look at each of them.
    """
    if len(table) % 4 or not table or table[4:] != table[:-4]:
        return None
    return int.from_bytes(table[:4], "little")


def sum_of_lengths(table: Buffer) -> int:
    """Return what the lengths of a table add up to; raises `RemoteProtocolError` when it is cut short."""
    table = bytes(table)
    length = same_length(table)
    return sum(lengths_of(table)) if length is None else length * (len(table) // 4)


def pack_lengths(items: Iterable[Buffer]) -> bytes:
    """Return the length table of some buffers: their lengths as little-endian u32."""
    found = list(map(len, items))
    if found and found.count(found[0]) == len(found):
        return found[0].to_bytes(4, "little") * len(found)
    lengths = array("I", found)
    if sys.byteorder == "big":
        lengths.byteswap()
    return lengths.tobytes()


def pack_column(items: Sequence[bytes]) -> bytes:
    """Return a column frame: the length table of the items, then the items end to end (empty: absent)."""
    return pack_lengths(items) + b"".join(items)


def split_payloads(lengths: Buffer, payload: Buffer) -> list[bytes]:
    """Cut the payload frame of a batch into its messages.

    The buffers may be memoryviews; what comes back are bytes. Raises `RemoteProtocolError` when the lengths
    do not add up.
    """
    payload, lengths = bytes(payload), bytes(lengths)
    length = same_length(lengths)
    table = lengths_of(lengths) if length is None else repeat(length, len(lengths) // 4)
    total = sum(table) if length is None else length * (len(lengths) // 4)
    if total != len(payload):
        raise RemoteProtocolError("the lengths of a batch do not add up", code="lengths-mismatch")
    if length and len(payload) >= CUT_AT_ONCE * length:
        whole = len(payload) - len(payload) % (CUT_AT_ONCE * length)
        found = list(chain.from_iterable(_cutter(length)(memoryview(payload)[:whole])))
        found += map(io.BytesIO(payload[whole:]).read, repeat(length, (len(payload) - whole) // length))
        return found
    return list(map(io.BytesIO(payload).read, table))  # reads in C: 2.5 times faster than slices


@lru_cache(maxsize=64)
def _cutter(length: int) -> Callable[[Buffer], Iterator[tuple[bytes, ...]]]:
    """Return what cuts a buffer into items of one length, many at a time: as fast again as reading them."""
    return struct.Struct(f"{length}s" * CUT_AT_ONCE).iter_unpack


def split_column(column: Buffer, count: int) -> list[bytes]:
    """Cut a column frame of `count` items into the items; raises `RemoteProtocolError` when it does not add up."""
    if len(column) < 4 * count:
        raise RemoteProtocolError(
            f"a column of {counted(len(column), 'byte')} has no lengths for {counted(count, 'message')}",
            code="lengths-mismatch",
        )
    view = memoryview(column)
    return split_payloads(view[: 4 * count], view[4 * count :])


def pack_times(times: Iterable[int]) -> bytes:
    """Return the frame of a DELIVER_AT column: unix ms as little-endian u64, 0 for "at once"."""
    column = array("Q", times)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def split_times(column: Buffer, count: int) -> array[int]:
    """Return a DELIVER_AT column of `count` messages; raises `RemoteProtocolError` when it is not 8 bytes each."""
    if len(column) != 8 * count:
        raise RemoteProtocolError(
            f"{counted(count, 'time of delivery takes', 'times of delivery take')} {8 * count} bytes, "
            f"not {len(column)}",
            code="lengths-mismatch",
        )
    times = array("Q")
    times.frombytes(column)
    if sys.byteorder == "big":
        times.byteswap()
    return times


def latest_time(column: Buffer) -> int:
    """Return the latest of the times in a DELIVER_AT column that was checked."""
    return max(split_times(column, len(column) // 8))


def around_bytes_max(batch_bytes_max: int) -> int:
    """Return what a lone message may have beside its payload, however large that is."""
    return max(AROUND_BYTES_MIN, min(AROUND_BYTES_MAX, batch_bytes_max // 16))


def batch_fits(count: int, payload_bytes: int, around_bytes: int, batch_bytes_max: int) -> bool:
    """Return whether so many messages, bytes of payloads, and bytes of columns, fit in a batch."""
    if payload_bytes + around_bytes <= batch_bytes_max:
        return True
    most = around_bytes_max(batch_bytes_max)
    return count == 1 and payload_bytes <= batch_bytes_max and around_bytes <= most


def marked_bytes(attributes: Buffer) -> int:
    """Return how many bytes of one message's attributes its producer did not send: those that do not count.

    What cannot be read counts.
    """
    try:
        found = decode_attributes(bytes(attributes))
    except RemoteProtocolError:
        return 0
    marked = {name: value for name, value in found.items() if name.startswith(MARK)}
    return min(len(encode_attributes(marked)), MARKED_BYTES_MAX)


def check_batch(
    frames: Sequence[Buffer], columns: int, *, message_bytes_max: int, batch_bytes_max: int
) -> int:
    """Check the body frames of a PUBLISH and return its message count, without looking at single messages.

    `frames` is `[lengths, payloads, keys?, attributes?, times of delivery?]`. Raises `RemoteProtocolError` with the
    codes `malformed`, `lengths-mismatch`, `message-too-large` or `batch-too-large`.
    """
    expected = 2 + columns.bit_count()
    if columns & ~Column.ALL or len(frames) != expected:
        raise RemoteProtocolError(
            f"a batch with columns {columns} takes {expected} body frames, not {len(frames)}"
        )
    table = bytes(frames[0])
    count = len(table) // 4
    largest = same_length(table)
    if largest is None:
        lengths = lengths_of(table)
        total, largest = sum(lengths), max(lengths, default=0)
    else:
        total = count * largest
    if not count:
        raise RemoteProtocolError("a batch holds at least one message")
    if total != len(frames[1]):
        raise RemoteProtocolError(
            f"the lengths of {counted(count, 'message')} add up to {counted(total, 'byte')}, but the "
            f"payload frame has {len(frames[1])}",
            code="lengths-mismatch",
        )
    if largest > message_bytes_max:
        raise RemoteProtocolError(
            f"message of {largest} bytes is over message_bytes_max ({message_bytes_max})",
            code="message-too-large",
        )
    around = sum(map(len, frames)) - total
    if not batch_fits(count, total, around, batch_bytes_max):
        if count == 1 and columns & Column.ATTRIBUTES:
            around -= marked_bytes(memoryview(frames[2 + (columns & Column.KEYS)])[4:])
        if not batch_fits(count, total, around, batch_bytes_max):
            raise RemoteProtocolError(
                f"batch of {total + around} bytes, {around} of them beside its payloads, is over batch_bytes_max "
                f"({batch_bytes_max}; a lone message may have {around_bytes_max(batch_bytes_max)} beside its payload)",
                code="batch-too-large",
            )
    if columns & Column.DELIVER_AT and len(frames[-1]) != 8 * count:
        raise RemoteProtocolError(
            f"{counted(count, 'time of delivery takes', 'times of delivery take')} {8 * count} bytes, "
            f"not {len(frames[-1])}",
            code="lengths-mismatch",
        )
    for column in frames[2 : 2 + (columns & _TABLED).bit_count()]:
        view = memoryview(column)
        if len(view) < 4 * count or sum_of_lengths(view[: 4 * count]) != len(view) - 4 * count:
            raise RemoteProtocolError("the lengths of a column do not add up", code="lengths-mismatch")
    return count


def encode_attributes(attributes: Mapping[str, str]) -> bytes:
    """Return one message's attributes (text to text) as CBOR, empty bytes for none."""
    return cbor2.dumps(dict(attributes)) if attributes else b""


def decode_attributes(data: bytes) -> dict[str, str]:
    """Decode one message's attributes; raises `RemoteProtocolError` when they are no map of text to text."""
    if not data:
        return {}
    value = _decode_strict(data, 1)
    if type(value) is not dict or not all(type(k) is str and type(v) is str for k, v in value.items()):
        raise RemoteProtocolError("attributes are not a map of text to text")
    return value
