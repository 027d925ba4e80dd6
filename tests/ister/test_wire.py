"""The codec: strict headers, batches that add up, and nothing but RemoteProtocolError whatever comes in."""

from __future__ import annotations

import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import wire
from ister.errors import RemoteProtocolError
from ister.wire import Column, Key, Type

LIMITS = {"message_bytes_max": 1000, "batch_bytes_max": 10_000}


def header_of(**keys: object) -> dict[int, object]:
    """Return a header from key names."""
    return {getattr(Key, name): value for name, value in keys.items()}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_protocol_error(data: bytes) -> None:
    """Hostile bytes cost an error frame, never the process."""
    try:
        header = wire.decode_header(data)
    except RemoteProtocolError:
        return
    assert header[Key.TYPE] in wire.REQUIRED


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 40) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.integers(0, 40), values, max_size=8))
def test_any_cbor_map_is_a_header_or_a_protocol_error(header: dict[int, object]) -> None:
    """Well-formed CBOR with wrong contents is refused in the same way."""
    try:
        wire.decode_header(cbor2.dumps(header))
    except RemoteProtocolError:
        pass


@given(values)
def test_any_cbor_value_is_a_result_or_a_protocol_error(value: object) -> None:
    """A result of any shape comes back as it was sent, or is refused."""
    data = cbor2.dumps(value)
    try:
        assert cbor2.dumps(wire.decode_result(data)) == data
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=60))
def test_any_bytes_are_a_result_or_a_protocol_error(data: bytes) -> None:
    """The same for bytes that are no CBOR."""
    try:
        wire.decode_result(data)
    except RemoteProtocolError:
        pass


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 7))
def test_any_body_frames_are_a_batch_or_a_protocol_error(frames: list[bytes], columns: int) -> None:
    """A batch that passes the check can be cut without surprises."""
    try:
        count = wire.check_batch(frames, columns, **LIMITS)
    except RemoteProtocolError:
        return
    assert len(wire.split_payloads(frames[0], frames[1])) == count
    if columns & Column.DELIVER_AT:
        assert len(wire.split_times(frames.pop(), count)) == count
    for column in frames[2:]:
        assert len(wire.split_column(column, count)) == count


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20))
def test_a_batch_comes_apart_as_it_was_put_together(payloads: list[bytes]) -> None:
    """Packing and splitting are inverse, empty messages included."""
    lengths, joined = wire.pack_lengths(payloads), b"".join(payloads)
    assert wire.split_payloads(lengths, joined) == payloads
    assert wire.split_payloads(memoryview(lengths), memoryview(joined)) == payloads
    assert wire.split_column(wire.pack_column(payloads), len(payloads)) == payloads
    assert wire.check_batch([lengths, joined], 0, **LIMITS) == len(payloads)


@pytest.mark.parametrize("column", [b"", b"\0\0\0\0", b"\0\0\0\0\0\0\0"])
def test_a_column_with_too_few_lengths_is_refused(column: bytes) -> None:
    """What it lacks is no item of the batch: a program that asks for the last key is told of the broken frame."""
    with pytest.raises(RemoteProtocolError, match="no lengths for 2 messages") as raised:
        wire.split_column(column, 2)
    assert raised.value.code == "lengths-mismatch"


@given(length=st.integers(0, 5), count=st.integers(1, 300), odd=st.booleans())
def test_a_batch_of_one_length_comes_apart_too(length: int, count: int, *, odd: bool) -> None:
    """Such a batch is cut many messages at a time; one message that differs changes nothing but that."""
    payloads = [bytes([number % 256]) * length for number in range(count)]
    if odd:
        payloads[count // 2] += b"x"
    lengths, joined = wire.pack_lengths(payloads), b"".join(payloads)
    assert lengths == struct.pack(f"<{count}I", *map(len, payloads))
    assert wire.split_payloads(lengths, joined) == payloads
    assert wire.check_batch([lengths, joined], 0, **LIMITS) == count
    assert wire.sum_of_lengths(memoryview(lengths)) == len(joined)
    for wrong in (joined + b"x", joined[:-1] if joined else b"y"):
        with pytest.raises(RemoteProtocolError):
            wire.split_payloads(lengths, wrong)
        with pytest.raises(RemoteProtocolError):
            wire.check_batch([lengths, wrong], 0, **LIMITS)
    for cut in (lengths[:-1], lengths[1:], lengths + b"x"):
        with pytest.raises(RemoteProtocolError):
            wire.split_payloads(cut, joined)
        with pytest.raises(RemoteProtocolError):
            wire.check_batch([cut, joined], 0, **LIMITS)


def test_the_length_table_is_little_endian_u32() -> None:
    """The byte layout is the one of PROTOCOL.md, on every machine."""
    assert wire.pack_lengths([b"abc", b""]) == bytes.fromhex("03000000 00000000")


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=20))
def test_times_of_delivery_come_back_as_they_were(times: list[int]) -> None:
    """Packing and splitting are inverse; a column of another length is refused."""
    packed = wire.pack_times(times)
    assert packed == struct.pack(f"<{len(times)}Q", *times)
    assert wire.split_times(packed, len(times)).tolist() == times
    with pytest.raises(RemoteProtocolError):
        wire.split_times(packed[:-1], len(times))


@pytest.mark.parametrize("start", ["earliest", "latest", 0, (1 << 64) - 1, "time:0", "time:1767225600000"])
def test_a_start_is_a_name_an_offset_or_a_time(start: str | int) -> None:
    """Every start of the document passes the decoder."""
    header = {Key.TYPE: Type.PONG, Key.START: start}
    assert wire.decode_header(cbor2.dumps(header))[Key.START] == start


@pytest.mark.parametrize(
    "start", ["", "soon", "time:", "time:-1", "time:1.5", "time:٣", f"time:{1 << 64}", -1, True]
)
def test_another_start_is_refused(start: object) -> None:
    """A start that no broker could mean is malformed."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_header(cbor2.dumps({Key.TYPE: Type.PONG, Key.START: start}))


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5))
def test_attributes_come_back_as_they_were(attributes: dict[str, str]) -> None:
    """Text to text survives; no attributes are no bytes."""
    assert wire.decode_attributes(wire.encode_attributes(attributes)) == attributes
    assert wire.encode_attributes({}) == b""


@pytest.mark.requirement("2.2-1", "2.2-4", "2.2-5", "2.2-6")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa1",  # cut short
        b"\xbf\x00\x01\xff",  # indefinite map
        b"\xa2\x00\x02\x00\x02",  # duplicate key
        b"\xa1\x00\x02\x00",  # something behind it
        b"\xa1\x00\xc1\x02",  # a tag
        b"\xa2\x00\x02\x18\x18\x5f\xff",  # indefinite bytes
        b"\x02",  # no map
        b"\xa1\x61\x61\x02",  # a text key
        b"\xa1\x00\x18\x63",  # an unknown type
        b"\xa1\x01\x02",  # no type
        b"\xa1\x00\x05",  # PUBLISH without handle and sequence
        b"\xa1\x00\x21",  # a negative type
        b"\xa1\x00\xf5",  # a bool is no number
        cbor2.dumps({Key.TYPE: Type.BYE, 99: "x" * 9000}),  # over 8 KiB
        cbor2.dumps({Key.TYPE: Type.BYE, 99: [[[[1]]]]}),  # too deep
        cbor2.dumps({Key.TYPE: Type.ACK, Key.HANDLE: 1, Key.RANGES: [1]}),  # half a range
        cbor2.dumps({Key.TYPE: Type.ACK, Key.HANDLE: 1 << 64, Key.RANGES: []}),
        cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: []}),
        cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.SESSION: b"short"}),
    ],
)
def test_what_is_not_strict_is_refused(data: bytes) -> None:
    """Everything section 2 forbids is refused, so that two decoders never read two things in one header."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_header(data)


@pytest.mark.requirement("2.2-8")
def test_longer_encodings_of_numbers_are_accepted() -> None:
    """A client whose CBOR library does not write the shortest form is a good client."""
    assert wire.decode_header(b"\xa1\x18\x00\x19\x00\x02") == {Key.TYPE: Type.BYE}


@pytest.mark.requirement("2.2-3")
def test_four_levels_are_accepted() -> None:
    """The documented depth is the real one: a map, with a list, with a list, with a list."""
    header = {Key.TYPE: Type.BYE, 99: [[[1]]]}
    assert wire.decode_header(cbor2.dumps(header)) == header


@pytest.mark.requirement("2.2-12")
def test_unknown_keys_are_ignored() -> None:
    """A newer peer may say more than this side knows."""
    assert wire.decode_header(cbor2.dumps({Key.TYPE: Type.PING, 1000: "news"}))[Key.TYPE] == Type.PING


@pytest.mark.requirement("5.1-1", "5.1-3", "5.1-4")
@pytest.mark.parametrize(
    ("frames", "columns", "code"),
    [
        ([struct.pack("<I", 5), b"four"], 0, "lengths-mismatch"),
        ([b"\x01\x00\x00", b"x"], 0, "lengths-mismatch"),
        ([b"", b""], 0, "malformed"),
        ([struct.pack("<I", 1), b"x"], Column.KEYS, "malformed"),
        ([struct.pack("<I", 1), b"x"], Column.DELIVER_AT, "malformed"),
        ([struct.pack("<I", 1), b"x", bytes(7)], Column.DELIVER_AT, "lengths-mismatch"),
        ([struct.pack("<I", 1), b"x", bytes(16)], Column.DELIVER_AT, "lengths-mismatch"),
        ([struct.pack("<I", 1), b"x", bytes(8), struct.pack("<I", 0)], 5, "lengths-mismatch"),
        ([struct.pack("<I", 1), b"x", bytes(8)], 8, "malformed"),
        ([struct.pack("<I", 1001), bytes(1001)], 0, "message-too-large"),
        ([struct.pack("<11I", *[950] * 11), bytes(950 * 11)], 0, "batch-too-large"),
        ([struct.pack("<I", 1), b"x", struct.pack("<I", 3) + b"k"], Column.KEYS, "lengths-mismatch"),
    ],
)
def test_a_wrong_batch_is_refused_with_its_code(frames: list[bytes], columns: int, code: str) -> None:
    """A client learns what is wrong with its batch."""
    with pytest.raises(RemoteProtocolError) as caught:
        wire.check_batch(frames, columns, **LIMITS)
    assert caught.value.code == code


@pytest.mark.requirement("2.3-2")
@pytest.mark.parametrize(
    "data",
    [b"\x01", b"\xa1\x01\x02", b"\xa1\x61a\x02", b"\xa1\x61a\x61b\x00", cbor2.dumps({"a": {"b": "c"}})],
)
def test_attributes_that_are_not_text_to_text_are_refused(data: bytes) -> None:
    """What a broken producer wrote raises a clear error where it is looked at."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_attributes(data)


@pytest.mark.requirement("2.3-1", "12-2")
def test_a_result_over_its_limit_is_refused() -> None:
    """A broker cannot make a client decode without bound."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_result(cbor2.dumps(b"x" * wire.RESULT_BYTES_MAX))
