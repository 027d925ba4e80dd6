"""Encoding and decoding of records: batches as they are stored in a segment. Pure; FORMAT.md has the byte tables.

- A record is a 64-byte header and a body. The body of a batch is the wire's own frames, end to end and unchanged:
  length table, payloads, keys column, attributes column, times of delivery.
- The header has its own CRC32C, and the CRC32C of the body. Both begin with the segment's salt, which comes from the
  topic's incarnation and the segment's first offset: bytes that are left from another file never validate.
- A header says how many offsets before its first one were not durable yet when it was written. This distinguishes a
  torn tail from damage: everything below another record's durable offset had been acknowledged.
- Nothing here loops over messages.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Final

from ister.storage.checksum import Buffer, crc32c, extend

MAGIC: Final = 0x5249  # "IR"
MAGIC_BYTES: Final = b"IR"
BATCH: Final = 1
PRODUCERS: Final = 2
FOOTER: Final = 3
INDEX: Final = 4

KEYS: Final = 1
ATTRIBUTES: Final = 2
DELIVER_AT: Final = 4  # 8 bytes per message, so its size needs no field in the header

_FRONT = struct.Struct("<HBBIIIIQQQQII")
_HEADER = struct.Struct("<HBBIIIIQQQQIII")
_CRC = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES == 64
_FRONT_BYTES = _FRONT.size

UNCOMMITTED_MAX: Final = 0xFFFFFFFF

_unpack_header = _HEADER.unpack_from
_native = sys.byteorder == "little"

# What `parse_header` returns: magic, kind, columns, total bytes, body CRC, count, uncommitted, first offset,
# timestamp_ms, producer id, sequence, keys bytes, attributes bytes, header CRC.
Header = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int]


def salt_of(incarnation: bytes, base: int) -> int:
    """Return the number with which all CRCs of the segment at `base` begin."""
    return extend(0, incarnation + base.to_bytes(8, "little"))


def encode_header(
    salt: int,
    kind: int,
    frames: Sequence[Buffer],
    *,
    first_offset: int,
    count: int = 0,
    columns: int = 0,
    uncommitted: int = 0,
    timestamp_ms: int = 0,
    producer_id: int = 0,
    sequence: int = 0,
    keys_bytes: int = 0,
    attributes_bytes: int = 0,
) -> bytes:
    """Return the header of a record whose body is `frames`, end to end."""
    body_crc = salt
    total = HEADER_BYTES
    for frame in frames:  # two to five of them, for any number of messages
        body_crc = crc32c(frame, body_crc)
        total += len(frame)
    front = _FRONT.pack(
        MAGIC,
        kind,
        columns,
        total,
        body_crc,
        count,
        uncommitted if uncommitted < UNCOMMITTED_MAX else UNCOMMITTED_MAX,
        first_offset,
        timestamp_ms,
        producer_id,
        sequence,
        keys_bytes,
        attributes_bytes,
    )
    return front + _CRC.pack(extend(salt, front))


def parse_header(buffer: Buffer, position: int, salt: int) -> Header | None:
    """Return the header at `position`, or None if there is no valid one of this segment."""
    if position + HEADER_BYTES > len(buffer):
        return None
    header: Header = _unpack_header(buffer, position)
    if header[0] != MAGIC or header[13] != extend(salt, bytes(buffer[position : position + _FRONT_BYTES])):
        return None
    return header


class Record:
    """A batch as read: its offsets, its producer, and its frames as views of the segment's bytes."""

    __slots__ = (
        "attributes",
        "columns",
        "count",
        "deliver_at",
        "end_offset",
        "first_offset",
        "keys",
        "lengths",
        "payload",
        "producer_id",
        "sequence",
        "timestamp_ms",
    )

    def __init__(self, header: Header, body: memoryview) -> None:
        _, _, columns, _, _, count, _, first, timestamp_ms, producer_id, sequence, keys, attributes, _ = (
            header
        )
        self.columns = columns
        self.timestamp_ms = timestamp_ms
        self.producer_id = producer_id
        self.sequence = sequence
        self.first_offset = first
        self.count = count
        self.end_offset = first + count
        table = 4 * count
        self.lengths = body[:table]
        if columns:
            last = len(body) - (8 * count if columns & DELIVER_AT else 0)
            end = last - attributes
            middle = end - keys
            self.payload = body[table:middle]
            self.keys: memoryview | None = body[middle:end] if columns & KEYS else None
            self.attributes: memoryview | None = body[end:last] if columns & ATTRIBUTES else None
            self.deliver_at: memoryview | None = body[last:] if columns & DELIVER_AT else None
        else:
            self.payload = body[table:]
            self.keys = self.attributes = self.deliver_at = None

    @property
    def size(self) -> int:
        """The bytes of the frames: what sending the whole batch costs, without a header."""
        size = len(self.lengths) + len(self.payload)
        if self.columns:
            size += sum(len(column) for column in self._columns())
        return size

    def frames(self) -> list[memoryview]:
        """Return the whole batch as frames of the wire: lengths, payloads, and its columns."""
        found = [self.lengths, self.payload]
        return found + self._columns() if self.columns else found

    def _columns(self) -> list[memoryview]:
        columns = (self.keys, self.attributes, self.deliver_at)
        return [column for column in columns if column is not None]

    def __repr__(self) -> str:
        return f"Record([{self.first_offset}, {self.end_offset}), {len(self.payload)} payload bytes)"


def well_formed(header: Header) -> bool:
    """Return whether the parts of a batch add up to its total."""
    a_message = 12 if header[2] & DELIVER_AT else 4  # each message's length, and its delivery time
    return header[3] >= HEADER_BYTES + a_message * header[5] + header[11] + header[12]


def _table(lengths: Buffer) -> array[int]:
    table = array("I")
    table.frombytes(lengths)
    if not _native:
        table.byteswap()
    return table


def _cut_column(column: memoryview, count: int, first: int, end: int) -> bytes:
    """Return messages [first, end) of a column of `count`: their lengths, then their bytes."""
    table = _table(column[: 4 * count])
    start = 4 * count + sum(table[:first])
    return bytes(column[4 * first : 4 * end]) + bytes(column[start : start + sum(table[first:end])])


def slice_record(record: Record, first: int, end: int) -> list[Buffer]:
    """Return offsets [first, end) of a batch as frames of the wire: lengths, payloads, and its columns.

    The range must lie inside the batch. Lengths and payloads are views; a column is a single frame on the wire, so its
    part is copied.
    """
    low, high = first - record.first_offset, end - record.first_offset
    if not 0 <= low < high <= record.count:
        raise ValueError(f"[{first}, {end}) is not inside {record!r}")
    if low == 0 and high == record.count:
        return list(record.frames())
    table = _table(record.lengths)
    start = sum(table[:low])
    frames: list[Buffer] = [
        record.lengths[4 * low : 4 * high],
        record.payload[start : start + sum(table[low:high])],
    ]
    if record.keys is not None:
        frames.append(_cut_column(record.keys, record.count, low, high))
    if record.attributes is not None:
        frames.append(_cut_column(record.attributes, record.count, low, high))
    if record.deliver_at is not None:
        frames.append(record.deliver_at[8 * low : 8 * high])
    return frames
