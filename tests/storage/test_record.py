"""Tests of the codec of records."""

from __future__ import annotations

from array import array
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.storage.checksum import ADDRESSED_BYTES_MIN, Checked, crc32c
from ister.storage.record import (
    ATTRIBUTES,
    BATCH,
    DELIVER_AT,
    HEADER_BYTES,
    KEYS,
    Record,
    encode_header,
    parse_header,
    salt_of,
    slice_record,
    well_formed,
)

SALT = salt_of(bytes(16), 7)


def column(values: list[bytes]) -> bytes:
    """Return the frame of a column: lengths, then bytes."""
    return array("I", map(len, values)).tobytes() + b"".join(values)


def encode(
    payloads: list[bytes],
    keys: list[bytes] | None,
    attributes: list[bytes] | None,
    times: list[int] | None = None,
) -> bytes:
    """Return a whole record."""
    frames = [array("I", map(len, payloads)).tobytes(), b"".join(payloads)]
    columns = 0
    sizes: dict[str, Any] = {}
    if keys is not None:
        columns |= KEYS
        frames.append(column(keys))
        sizes["keys_bytes"] = len(frames[-1])
    if attributes is not None:
        columns |= ATTRIBUTES
        frames.append(column(attributes))
        sizes["attributes_bytes"] = len(frames[-1])
    if times is not None:
        columns |= DELIVER_AT
        frames.append(array("Q", times).tobytes())
    header = encode_header(
        SALT,
        BATCH,
        frames,
        first_offset=100,
        count=len(payloads),
        columns=columns,
        timestamp_ms=5,
        producer_id=2**64 - 1,
        sequence=3,
        **sizes,
    )
    return header + b"".join(frames)


def decode(encoded: bytes) -> Record:
    """Return the record of `encode`."""
    header = parse_header(encoded, 0, SALT)
    assert header is not None
    assert header[3] == len(encoded)
    assert well_formed(header)
    return Record(header, memoryview(encoded)[HEADER_BYTES:])


def cut(values: bytes | memoryview, count: int) -> list[bytes]:
    """Return the values of a column."""
    lengths = array("I", bytes(values[: 4 * count]))
    at, found = 4 * count, []
    for length in lengths:
        found.append(bytes(values[at : at + length]))
        at += length
    assert at == len(values)
    return found


payloads = st.lists(st.binary(max_size=20), min_size=1, max_size=12)


@given(payloads, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_what_is_encoded_is_read_and_any_part_of_it_can_be_cut_out(
    values: list[bytes], with_keys: bool, with_attributes: bool, with_times: bool, data: st.DataObject
) -> None:
    """Frames are decoded unchanged, and a slice has exactly its messages, in all columns."""
    keys = [value[:3] for value in values] if with_keys else None
    attributes = [value[::-1] for value in values] if with_attributes else None
    times = [2**64 - 1 - at for at in range(len(values))] if with_times else None
    record = decode(encode(values, keys, attributes, times))
    assert (record.first_offset, record.end_offset, record.count) == (100, 100 + len(values), len(values))
    assert (record.timestamp_ms, record.producer_id, record.sequence) == (5, 2**64 - 1, 3)
    assert bytes(record.payload) == b"".join(values)
    assert (record.keys is None, record.attributes is None) == (keys is None, attributes is None)
    assert (record.deliver_at is None) == (times is None)
    assert record.size == sum(map(len, record.frames()))
    low = data.draw(st.integers(0, len(values) - 1))
    high = data.draw(st.integers(low + 1, len(values)))
    lengths, body, *columns = slice_record(record, 100 + low, 100 + high)
    assert cut(bytes(lengths) + bytes(body), high - low) == values[low:high]
    if times is not None:
        assert list(array("Q", bytes(columns.pop()))) == times[low:high]
    expected = [one[low:high] for one in (keys, attributes) if one is not None]
    assert [cut(bytes(one), high - low) for one in columns] == expected


def test_times_of_delivery_that_do_not_fit_are_noticed() -> None:
    """A record without the 8 bytes per message that its columns promise is refused."""
    header = encode_header(SALT, BATCH, [bytes(8), bytes(15)], first_offset=0, count=2, columns=DELIVER_AT)
    parsed = parse_header(header, 0, SALT)
    assert parsed is not None
    assert not well_formed(parsed)
    header = encode_header(SALT, BATCH, [bytes(8), bytes(16)], first_offset=0, count=2, columns=DELIVER_AT)
    parsed = parse_header(header, 0, SALT)
    assert parsed is not None
    assert well_formed(parsed)


def test_a_whole_slice_copies_nothing() -> None:
    """A slice of a whole batch returns the stored frames themselves."""
    record = decode(encode([b"a", b"b"], [b"k", b""], None))
    assert slice_record(record, 100, 102) == record.frames()
    assert all(isinstance(frame, memoryview) for frame in slice_record(record, 100, 102))


@pytest.mark.parametrize(("first", "end"), [(99, 101), (100, 103), (101, 101), (102, 101)])
def test_a_slice_outside_its_batch_is_refused(first: int, end: int) -> None:
    """A range that is empty, or not inside the batch, is an error of the caller."""
    with pytest.raises(ValueError, match="not inside"):
        slice_record(decode(encode([b"a", b"b"], None, None)), first, end)


def test_any_flipped_bit_of_a_header_is_noticed() -> None:
    """The header's CRC covers all of it."""
    encoded = encode([b"a", b"bc"], None, None)
    for position in range(HEADER_BYTES):
        for bit in range(8):
            flipped = bytearray(encoded)
            flipped[position] ^= 1 << bit
            assert parse_header(flipped, 0, SALT) is None
    assert parse_header(encoded[: HEADER_BYTES - 1], 0, SALT) is None


def test_a_record_belongs_to_one_segment_of_one_incarnation() -> None:
    """The same bytes are not valid at another base, nor in another incarnation."""
    encoded = encode([b"a"], None, None)
    assert parse_header(encoded, 0, salt_of(bytes(16), 8)) is None
    assert parse_header(encoded, 0, salt_of(b"\1" + bytes(15), 7)) is None


@pytest.mark.parametrize("size", [0, 1, 100, 2047, 2048, 5000, 100_000])
def test_the_checksum_in_place_is_the_checksum_of_a_copy(size: int) -> None:
    """CRC32C over a part of a view is the same with and without copying, and continues from its seed."""
    contents = bytes(range(256)) * (size // 256 + 2)
    checked = Checked(memoryview(bytearray(contents)).toreadonly())
    assert checked.crc32c(3, 3 + size, 99) == crc32c(contents[3 : 3 + size], 99)
    assert crc32c(memoryview(contents)[3 : 3 + size], 99) == crc32c(bytearray(contents[3 : 3 + size]), 99)


@pytest.mark.parametrize("size", [0, 1, 1000, ADDRESSED_BYTES_MIN - 1, ADDRESSED_BYTES_MIN, 300_001])
def test_the_checksum_of_a_view_is_that_of_its_bytes(size: int) -> None:
    """Whether it is computed in place or of a copy, at any beginning, and also of what can be written to."""
    content = Random(size).randbytes(size + 3)
    for buffer in (memoryview(content)[3:], memoryview(bytearray(content))[3:], bytearray(content[3:])):
        assert crc32c(buffer, 7) == crc32c(content[3:], 7)


def test_the_checksum_is_crc32c() -> None:
    """With the check value of the standard."""
    assert crc32c(b"123456789") == 0xE3069283
