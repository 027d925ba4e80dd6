"""Valid headers and batches, and others that are wrong in one way each."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import cbor2

from ister.bodies import encode_attributes
from ister.wire import Key, Type
from tests.raw_client import batch, table_of

PING: Final = Type.PING


class HeaderCase(NamedTuple):
    """A header's bytes, and why they matter to a client's author."""

    name: str
    data: bytes
    why: str


def _h(text: str) -> bytes:
    return bytes.fromhex(text)


def _nested(depth: int) -> bytes:
    """Return a PING whose unknown key 4000 has nested lists, so that the header has `depth` levels."""
    value: Any = [1]
    for _ in range(depth - 2):
        value = [value]
    return cbor2.dumps({Key.TYPE: PING, 4000: value})


def _sized(size: int) -> bytes:
    """Return a PING of that many bytes."""
    filler = size - len(cbor2.dumps({Key.TYPE: PING, 4000: b"x" * 300})) + 300
    return cbor2.dumps({Key.TYPE: PING, 4000: b"x" * filler})


def _consumer(**changed: Any) -> bytes:
    header: dict[int, Any] = {
        Key.TYPE: Type.OPEN_CONSUMER,
        Key.REF: 1,
        Key.HANDLE: 1,
        Key.TOPIC: "nowhere",
        Key.SUBSCRIPTION: "s",
        Key.SUBSCRIPTION_TYPE: "shared",
        Key.MESSAGES: 1,
        Key.BYTES: 1,
    }
    return cbor2.dumps(header | {getattr(Key, name.upper()): value for name, value in changed.items()})


def _ack(ranges: Any, **more: Any) -> bytes:
    header = {Key.TYPE: Type.ACK, Key.REF: 1, Key.HANDLE: 9, Key.RANGES: ranges}
    return cbor2.dumps(header | {getattr(Key, name.upper()): value for name, value in more.items()})


# Headers of a client; a broker answers, within a session.
TO_BROKER: Final = [
    HeaderCase("ping", _h("a10003"), "the shortest header there is"),
    HeaderCase("ping-with-ref", _h("a2000301182a"), "PONG repeats REF"),
    HeaderCase("keys-in-any-order", _h("a201182a0003"), "the order of keys says nothing"),
    HeaderCase(
        "map-length-in-1-byte", _h("b80100 03".replace(" ", "")), "a length may be longer than it need be"
    ),
    HeaderCase("integer-in-1-byte", _h("a218000301182a"), "any width of an integer: a key in two bytes"),
    HeaderCase("integer-in-2-bytes", _h("a2000301 19002a".replace(" ", "")), "any width of an integer"),
    HeaderCase("integer-in-4-bytes", _h("a20003011a0000002a"), "any width of an integer"),
    HeaderCase("integer-in-8-bytes", _h("a20003011b000000000000002a"), "any width of an integer"),
    HeaderCase("ref-of-54-bits", cbor2.dumps({0: PING, 1: 1 << 53}), "above what a double holds exactly"),
    HeaderCase(
        "largest-integer", cbor2.dumps({0: PING, 1: (1 << 64) - 1}), "2^64-1 is an integer like others"
    ),
    HeaderCase("unknown-key", cbor2.dumps({0: PING, 4000: "later"}), "unknown keys are ignored"),
    HeaderCase(
        "unknown-keys-of-all-kinds",
        cbor2.dumps({0: PING, 4000: -1, 4001: [1.5, None, True, b"x"], 4002: {1: "a", "b": 2}}),
        "an unknown key may hold whatever is plain",
    ),
    HeaderCase("four-levels", _nested(4), "the deepest that is read"),
    HeaderCase("8192-bytes", _sized(8192), "the largest header"),
    HeaderCase("no-ranges", _ack([]), "an empty list is a list: refused for the handle, not for its form"),
    HeaderCase(
        "400-ranges", _ack([n for each in range(400) for n in (2 * each, 2 * each + 1)]), "the most ranges"
    ),
    HeaderCase(
        "hello-again", cbor2.dumps({0: Type.HELLO, 22: [1]}), "begins a new session on this connection"
    ),
    HeaderCase("version-as-a-number", cbor2.dumps({0: Type.HELLO, 22: 1}), "one version need not be a list"),
    # refused
    HeaderCase("empty-frame", b"", "no empty delimiter before the header"),
    HeaderCase("indefinite-map", _h("bf0003ff"), "encoders of unknown sizes write these"),
    HeaderCase("indefinite-list", _h("a400090101020 90d9f0001ff".replace(" ", "")), "lists as well"),
    HeaderCase(
        "indefinite-text", _h("a300030101190fa07f616162 6162ff".replace(" ", "")), "text in pieces as well"
    ),
    HeaderCase("tag-259-map", _h("d90103a10003"), "some encoders mark maps that are no objects"),
    HeaderCase(
        "tag-64-bytes",
        cbor2.dumps({0: Type.HELLO, 22: [1], 20: cbor2.CBORTag(64, bytes(16))}),
        "some encoders mark typed arrays",
    ),
    HeaderCase("tag-on-an-unknown-key", _h("a20003190fa0c11a514b67b0"), "no tags at all, wherever"),
    HeaderCase("bignum-ref", _h("a2000301c2412a"), "an integer as a bignum is a tag"),
    HeaderCase("ref-over-64-bits", cbor2.dumps({0: PING, 1: 1 << 64}), "and is over 64 bits here"),
    HeaderCase("float-ref", _h("a2000301fb4045000000000000"), "42.0 is no integer"),
    HeaderCase("half-float-ref", _h("a2000301f95140"), "in whatever width"),
    HeaderCase("negative-ref", _h("a200030120"), "unsigned means from 0 on"),
    HeaderCase("text-ref", cbor2.dumps({0: PING, 1: "42"}), "a number is no text"),
    HeaderCase("null-ref", _h("a2000301f6"), "a key without a value is left out, not null"),
    HeaderCase("undefined-ref", _h("a2000301f7"), "nor undefined"),
    HeaderCase("bool-ref", cbor2.dumps({0: PING, 1: True}), "true is not 1"),
    HeaderCase("text-keys", cbor2.dumps({"0": PING}), "keys are integers"),
    HeaderCase("text-key-beside", cbor2.dumps({0: PING, "trace": 1}), "all of them"),
    HeaderCase("negative-key", cbor2.dumps({0: PING, -1: 1}), "unsigned ones"),
    HeaderCase("duplicate-key", _h("a3000301010102"), "a key comes once"),
    HeaderCase("trailing-byte", _h("a1000300"), "nothing behind the map"),
    HeaderCase("two-maps", _h("a10003a10003"), "nothing behind the map"),
    HeaderCase("cut-short", _h("a20003"), "the map says two keys"),
    HeaderCase("list-for-a-map", _h("820003"), "a header is a map"),
    HeaderCase("five-levels", _nested(5), "one level too deep"),
    HeaderCase("8193-bytes", _sized(8193), "one byte too large"),
    HeaderCase("no-type", cbor2.dumps({1: 42}), "key 0 is in every header"),
    HeaderCase("unknown-type", cbor2.dumps({0: 31, 1: 42}), "a frame type that this version has not"),
    HeaderCase("brokers-type", cbor2.dumps({0: Type.DONE, 1: 42}), "a client does not send DONE"),
    HeaderCase("missing-key", cbor2.dumps({0: Type.CLOSE, 1: 42}), "CLOSE has HANDLE too"),
    HeaderCase("odd-ranges", _ack([0]), "ranges are pairs"),
    HeaderCase("negative-range", _ack([-1, 1]), "of unsigned integers"),
    HeaderCase("ranges-in-lists", _ack([[0, 1]]), "flat"),
    HeaderCase(
        "401-ranges", _ack([n for each in range(401) for n in (2 * each, 2 * each + 1)]), "split them"
    ),
    HeaderCase(
        "known-key-of-another-kind",
        cbor2.dumps({0: PING, 1: 42, 3: 7}),
        "also where the frame has no use for it",
    ),
    HeaderCase("topic-as-bytes", cbor2.dumps({0: 4, 1: 42, 2: 1, 3: b"orders", 25: 1}), "text is not bytes"),
    HeaderCase("producer-0", cbor2.dumps({0: 4, 1: 42, 2: 1, 3: "nowhere", 25: 0}), "0 is no producer id"),
    HeaderCase("text-not-utf-8", _h("a60004010102010361ff181901") + b"\x05\0", "text is UTF-8"),
    HeaderCase("force-as-1", _consumer(force=1), "true is true"),
    HeaderCase("start-unknown", _consumer(start="yesterday"), "earliest, latest, an offset, time:<unix ms>"),
    HeaderCase("start-negative", _consumer(start=-1), "an offset is from 0 on"),
    HeaderCase("start-time-not-a-number", _consumer(start="time:1e9"), "digits only"),
    HeaderCase("session-of-15-bytes", cbor2.dumps({0: 1, 22: [1], 20: bytes(15)}), "a SESSION has 16 bytes"),
    HeaderCase("arguments-with-number-keys", _consumer(arguments={1: 2}), "its keys are text"),
    HeaderCase("reserved-length", _h("a1001c"), "additional information 28 to 30 has no meaning"),
]

_WELCOME: Final = {
    Key.TYPE: Type.WELCOME,
    Key.VERSION: 1,
    Key.SESSION: bytes(range(16)),
    Key.BOOT: (1 << 53) + 1,
    Key.LIMITS: {
        1: 10 << 20,
        2: 16 << 20,
        3: 256,
        4: 8 << 20,
        5: 15_000,
        6: 4096,
        7: 1 << 20,
        8: 1 << 30,
        99: 7,
    },
    Key.HEARTBEAT: 5_000,
    Key.RESUMED: True,
}

# Headers of a broker: a client reads them, or closes the connection.
TO_CLIENT: Final = [
    HeaderCase("welcome", cbor2.dumps(_WELCOME), "BOOT above 2^53; a limit of a later version, 99"),
    HeaderCase(
        "receipt-forgotten",
        cbor2.dumps({0: 35, 2: 1, 27: [0, (1 << 64) - 1]}),
        "stored, its offset forgotten",
    ),
    HeaderCase(
        "receipt-large-offset", cbor2.dumps({0: 35, 2: 1, 27: [1 << 40, 1 << 60]}), "offsets have 64 bits"
    ),
    HeaderCase("event-unknown-code", cbor2.dumps({0: 42, 2: 1, 16: "tomorrow"}), "ignored"),
    HeaderCase(
        "error-unknown-code", cbor2.dumps({0: 37, 1: 1, 16: "new", 17: "x", 18: "retry"}), "go by its action"
    ),
    HeaderCase(
        "error-of-the-connection",
        cbor2.dumps({0: 37, 16: "malformed", 17: "x", 18: "fix"}),
        "no REF, no HANDLE",
    ),
    HeaderCase("unknown-key", cbor2.dumps({0: 40, 1: 1, 4000: [1, {"a": -1.5}]}), "ignored"),
    HeaderCase(
        "wide-integers", _h("b90002 1800 1828 01 1b0000000000000001".replace(" ", "")), "a DONE, not shortest"
    ),
    HeaderCase("singly", cbor2.dumps({0: 36, 2: 1, 6: 0, 7: 1, 9: [1, 5], 10: 3, 39: True}), "one by one"),
    HeaderCase("clients-type", _h("a10003"), "a broker does not send PING"),
    HeaderCase("unknown-type", cbor2.dumps({0: 63}), "version 1 has no such frame"),
    HeaderCase("indefinite-map", _h("bf0018280101ff"), "not strict"),
    HeaderCase("duplicate-key", _h("a300182801010102"), "not strict"),
    HeaderCase("trailing-byte", _h("a2001828010100"), "not strict"),
    HeaderCase("tag", _h("a200182801c101"), "not strict"),
    HeaderCase("missing-key", cbor2.dumps({0: 40}), "DONE has REF"),
    HeaderCase("odd-receipts", cbor2.dumps({0: 35, 2: 1, 27: [0]}), "pairs"),
    HeaderCase("garbage", _h("deadbeef"), "not CBOR of ours"),
    HeaderCase("empty-frame", b"", "no header"),
]


class BatchCase(NamedTuple):
    """Body frames of a PUBLISH, and why they matter to a client's author."""

    name: str
    columns: int
    frames: list[bytes]
    why: str


def _times(*times: int) -> bytes:
    return struct.pack(f"<{len(times)}Q", *times)


_ATTRIBUTES: Final = encode_attributes({"trace": "4711", "größe": "groß"})

BATCHES: Final = [
    BatchCase("one-frame", 0, [b"hello"], "one message may leave the lengths out"),
    BatchCase("one-empty-frame", 0, [b""], "and may be empty"),
    BatchCase("one-with-length", 0, batch([b"hello"]), "or with the length"),
    BatchCase("three", 0, batch([b"a", b"", b"ccc"]), "end to end, lengths little-endian"),
    BatchCase("empty-payloads", 0, batch([b"", b""]), "the payload frame is empty then"),
    BatchCase("all-bytes", 0, batch([bytes(range(256))]), "payloads are bytes of any value"),
    BatchCase("many-of-one-length", 0, batch([b"%02d" % number for number in range(99)]), "99 messages"),
    BatchCase("keys", 1, batch([b"a", b"b"], [b"k", b""]), "a key of length 0 is no key"),
    BatchCase("attributes", 2, batch([b"a", b"b"], [_ATTRIBUTES, b""]), "nothing for no attributes"),
    BatchCase("times", 4, [*batch([b"a", b"b"]), _times(1_767_225_600_000, 0)], "u64, no length table"),
    BatchCase(
        "all-columns",
        7,
        [*batch([b"a", b"b"], [b"k", b"l"], [b"", _ATTRIBUTES]), _times(0, 1)],
        "keys, attributes, times: in this order",
    ),
    BatchCase("keys-and-times", 5, [*batch([b"a"], [b"k"]), _times(1)], "a column in between may be absent"),
    # refused
    BatchCase("no-body", 0, [], "a batch holds at least one message"),
    BatchCase("no-messages", 0, [b"", b""], "a batch holds at least one message"),
    BatchCase("sum-too-small", 0, [table_of([b"four"]), b"five!"], "lengths add up to the payloads"),
    BatchCase("sum-too-large", 0, [table_of([b"five!"]), b"four"], "lengths add up to the payloads"),
    BatchCase("big-endian-length", 0, [b"\0\0\0\1", b"x"], "the other byte order"),
    BatchCase("table-cut-short", 0, [b"\1\0\0", b"x"], "four bytes each"),
    BatchCase("column-not-announced", 0, batch([b"a"], [b"k"]), "COLUMNS says 0"),
    BatchCase("column-missing", 1, batch([b"a"]), "COLUMNS says keys"),
    BatchCase("one-frame-with-column", 1, [b"a"], "no lengths may be left out beside a column"),
    BatchCase("unknown-column", 8, batch([b"a"], [b"k"]), "bits 1, 2 and 4"),
    BatchCase("column-cut-short", 1, [*batch([b"a", b"b"]), b"\0\0\0\0"], "a length for each message"),
    BatchCase("column-too-long", 1, [*batch([b"a"]), b"\1\0\0\0kk"], "lengths add up to the keys"),
    BatchCase("times-cut-short", 4, [*batch([b"a", b"b"]), _times(0)], "eight bytes for each message"),
]

PRODUCERS: Final = [
    ("orders", "loader"),
    ("orders", "Zähler"),
    ("a/b", "x"),
    ("orders", ""),
    ("t" * 200, "long"),
    ("orders", "消息"),
]
