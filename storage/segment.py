"""A segment: one file of records, named by its first offset. FORMAT.md has the byte tables.

- [header, producers snapshot, batches..., index, footer]; a segment without footer is the one being written.
- After the last record of a segment that is being written there are zeros, up to its full length.
- A footer ends exactly at the end of its file, and says where the next segment begins.
- A sealed segment never changes; it is the object that is uploaded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ister.storage.checksum import Buffer, crc32c, extend
from ister.storage.record import FOOTER, HEADER_BYTES, Header, encode_header, parse_header

VERSION: Final = 1
# An object in the store is at most this long, because longer ones cannot be created atomically everywhere.
SEGMENT_BYTES_MAX: Final = 8 << 20
SEGMENT_HEADER_BYTES: Final = 64

_MAGIC = b"ISTERSEG"
_SEGMENT = struct.Struct("<8sHHI16sQQQI")
_SEGMENT_CRC = struct.Struct("<I")
_FOOTER = struct.Struct("<QQQQQQQQ")
FOOTER_BYTES: Final = HEADER_BYTES + _FOOTER.size
assert _SEGMENT.size + _SEGMENT_CRC.size == SEGMENT_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The header of a segment: its topic and its first offset."""

    incarnation: bytes
    base: int
    created_ms: int
    topic_crc: int


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer of a sealed segment, which describes its contents."""

    next_offset: int
    messages: int
    records: int
    first_timestamp_ms: int
    last_timestamp_ms: int
    bytes: int
    max_timestamp_ms: int  # log time: the highest batch time in the log up to here
    index_bytes: int  # the size of the index record before the footer, 0 if there is none


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A sealed segment: offsets [base, end), its length in bytes, and the times of its batches.

    `max_timestamp_ms` is the highest batch time in the log up to its end.
    """

    path: str
    base: int
    end: int
    bytes: int
    first_timestamp_ms: int
    last_timestamp_ms: int
    messages: int
    records: int
    max_timestamp_ms: int = 0


def segment_info(path: str, base: int, footer: Footer) -> SegmentInfo:
    """Return the segment at `path` as its footer describes it."""
    return SegmentInfo(
        path=path,
        base=base,
        end=footer.next_offset,
        bytes=footer.bytes,
        first_timestamp_ms=footer.first_timestamp_ms,
        last_timestamp_ms=footer.last_timestamp_ms,
        messages=footer.messages,
        records=footer.records,
        max_timestamp_ms=footer.max_timestamp_ms,
    )


def segment_name(base: int) -> str:
    """Return the file name of the segment that begins at offset `base`."""
    return f"{base:020d}.seg"


def base_of(name: str) -> int | None:
    """Return the first offset in a segment's file name, None for any other name."""
    if len(name) == 24 and name.endswith(".seg") and name[:20].isdecimal() and name.isascii():
        return int(name[:20])
    return None


def topic_crc(topic: str) -> int:
    """Return the CRC32C of the topic's name, which a segment's header contains."""
    return crc32c(topic.encode())


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the first 64 bytes of a segment."""
    front = _SEGMENT.pack(
        _MAGIC,
        VERSION,
        SEGMENT_HEADER_BYTES,
        0,
        header.incarnation,
        header.base,
        header.created_ms,
        0,
        header.topic_crc,
    )
    return front + _SEGMENT_CRC.pack(extend(0, front))


def parse_segment_header(buffer: Buffer) -> SegmentHeader | str:
    """Return a segment's header, or a few words about what is wrong with it."""
    if len(buffer) < SEGMENT_HEADER_BYTES:
        return f"only {len(buffer)} bytes"
    front = bytes(buffer[: _SEGMENT.size])
    (crc,) = _SEGMENT_CRC.unpack_from(buffer, _SEGMENT.size)
    if crc != extend(0, front):
        return "its header's CRC does not match"
    magic, version, header_bytes, _, incarnation, base, created_ms, _, topic = _SEGMENT.unpack(front)
    if magic != _MAGIC:
        return "not a segment"
    if version != VERSION or header_bytes != SEGMENT_HEADER_BYTES:
        return f"format version {version}; this broker reads version {VERSION}"
    return SegmentHeader(incarnation, base, created_ms, topic)


def encode_footer(salt: int, footer: Footer, uncommitted: int) -> bytes:
    """Return the record that ends a segment."""
    body = _FOOTER.pack(
        footer.next_offset,
        footer.messages,
        footer.records,
        footer.first_timestamp_ms,
        footer.last_timestamp_ms,
        footer.bytes,
        footer.max_timestamp_ms,
        footer.index_bytes,
    )
    front = encode_header(salt, FOOTER, (body,), first_offset=footer.next_offset, uncommitted=uncommitted)
    return front + body


def parse_footer(buffer: Buffer, position: int, header: Header, salt: int) -> Footer | None:
    """Return the footer whose header is at `position`, or None if its body is incomplete."""
    body = bytes(buffer[position + HEADER_BYTES : position + FOOTER_BYTES])
    if header[1] != FOOTER or header[3] != FOOTER_BYTES or len(body) != _FOOTER.size:
        return None
    if extend(salt, body) != header[4]:
        return None
    return Footer(*_FOOTER.unpack(body))


def footer_at_end(tail: Buffer, size: int, salt: int) -> Footer | None:
    """Return the footer in the last FOOTER_BYTES of a file of `size` bytes, None if it is not sealed."""
    if len(tail) != FOOTER_BYTES:
        return None
    header = parse_header(tail, 0, salt)
    if header is None:
        return None
    footer = parse_footer(tail, 0, header, salt)
    return footer if footer is not None and footer.bytes == size else None
