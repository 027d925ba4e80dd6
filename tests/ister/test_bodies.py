"""Property tests of the body frames of batches: unpacking is the inverse of packing, and invalid ones are refused."""

from __future__ import annotations

import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import bodies
from ister.errors import RemoteProtocolError
from ister.wire import Column

LIMITS = {"message_bytes_max": 1000, "batch_bytes_max": 10_000}


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 7))
def test_any_body_frames_are_a_batch_or_a_protocol_error(frames: list[bytes], columns: int) -> None:
    """A batch that passes the check can be unpacked without errors."""
    try:
        count = bodies.check_batch(frames, columns, **LIMITS)
    except RemoteProtocolError:
        return
    assert len(bodies.split_payloads(frames[0], frames[1])) == count
    if columns & Column.DELIVER_AT:
        assert len(bodies.split_times(frames.pop(), count)) == count
    for column in frames[2:]:
        assert len(bodies.split_column(column, count)) == count


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [5000],
        [100_000],
        [0, 9000],
        [4096] * 3,
        [70_000, 0, 1, 9_000],
        [0, 0, 1],
        [16_384] * 70,
        [1024] * 130,
    ],
    ids=len,
)
def test_views_of_large_frames_come_apart_into_bytes(sizes: list[int]) -> None:
    """Whatever the sizes of the messages; a program never gets a view of ZeroMQ's memory."""
    payloads = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    lengths, joined = bodies.pack_lengths(payloads), bytearray(b"".join(payloads))
    for view in (memoryview(joined), memoryview(bytes(joined)), joined):
        found = bodies.split_payloads(lengths, view)
        assert found == payloads
        assert all(type(payload) is bytes for payload in found)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20))
def test_a_batch_comes_apart_as_it_was_put_together(payloads: list[bytes]) -> None:
    """Unpacking is the inverse of packing, also for empty messages."""
    lengths, joined = bodies.pack_lengths(payloads), b"".join(payloads)
    assert bodies.split_payloads(lengths, joined) == payloads
    assert bodies.split_payloads(memoryview(lengths), memoryview(joined)) == payloads
    assert bodies.split_column(bodies.pack_column(payloads), len(payloads)) == payloads
    assert bodies.check_batch([lengths, joined], 0, **LIMITS) == len(payloads)


@pytest.mark.parametrize("column", [b"", b"\0\0\0\0", b"\0\0\0\0\0\0\0"])
def test_a_column_with_too_few_lengths_is_refused(column: bytes) -> None:
    """A program that asks for the last key gets an error about the frame, not a missing item."""
    with pytest.raises(RemoteProtocolError, match="no lengths for 2 messages") as raised:
        bodies.split_column(column, 2)
    assert raised.value.code == "lengths-mismatch"


@given(length=st.integers(0, 5), count=st.integers(1, 300), odd=st.booleans())
def test_a_batch_of_one_length_comes_apart_too(length: int, count: int, *, odd: bool) -> None:
    """Batches of equal lengths are unpacked by a faster path; one message of another length uses the general one."""
    payloads = [bytes([number % 256]) * length for number in range(count)]
    if odd:
        payloads[count // 2] += b"x"
    lengths, joined = bodies.pack_lengths(payloads), b"".join(payloads)
    assert lengths == struct.pack(f"<{count}I", *map(len, payloads))
    assert bodies.split_payloads(lengths, joined) == payloads
    assert bodies.check_batch([lengths, joined], 0, **LIMITS) == count
    assert bodies.sum_of_lengths(memoryview(lengths)) == len(joined)
    for wrong in (joined + b"x", joined[:-1] if joined else b"y"):
        with pytest.raises(RemoteProtocolError):
            bodies.split_payloads(lengths, wrong)
        with pytest.raises(RemoteProtocolError):
            bodies.check_batch([lengths, wrong], 0, **LIMITS)
    for cut in (lengths[:-1], lengths[1:], lengths + b"x"):
        with pytest.raises(RemoteProtocolError):
            bodies.split_payloads(cut, joined)
        with pytest.raises(RemoteProtocolError):
            bodies.check_batch([cut, joined], 0, **LIMITS)


def test_the_length_table_is_little_endian_u32() -> None:
    """The byte layout is that of PROTOCOL.md, on every machine."""
    assert bodies.pack_lengths([b"abc", b""]) == bytes.fromhex("03000000 00000000")


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=20))
def test_times_of_delivery_come_back_as_they_were(times: list[int]) -> None:
    """Unpacking is the inverse of packing; a column of a wrong length is refused."""
    packed = bodies.pack_times(times)
    assert packed == struct.pack(f"<{len(times)}Q", *times)
    assert bodies.split_times(packed, len(times)).tolist() == times
    with pytest.raises(RemoteProtocolError):
        bodies.split_times(packed[:-1], len(times))


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5))
def test_attributes_come_back_as_they_were(attributes: dict[str, str]) -> None:
    """Any text survives; no attributes are no bytes."""
    assert bodies.decode_attributes(bodies.encode_attributes(attributes)) == attributes
    assert bodies.encode_attributes({}) == b""


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
    """The code tells a client what is wrong with its batch."""
    with pytest.raises(RemoteProtocolError) as caught:
        bodies.check_batch(frames, columns, **LIMITS)
    assert caught.value.code == code


@pytest.mark.requirement("2.3-2")
@pytest.mark.parametrize(
    "data",
    [b"\x01", b"\xa1\x01\x02", b"\xa1\x61a\x02", b"\xa1\x61a\x61b\x00", cbor2.dumps({"a": {"b": "c"}})],
)
def test_attributes_that_are_not_text_to_text_are_refused(data: bytes) -> None:
    """Invalid attributes raise a clear error when the program reads them."""
    with pytest.raises(RemoteProtocolError):
        bodies.decode_attributes(data)
