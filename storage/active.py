"""The segment that is being written: its place, what it begins with, and what seals it.

Pure but for the file that it names: nothing is written here. Room for the index and the footer is reserved after the
last record at all times, so that sealing cannot run out of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ister.storage.disk import File
from ister.storage.index import SparseIndex, index_bytes
from ister.storage.record import HEADER_BYTES, PRODUCERS, encode_header, salt_of
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    Footer,
    SegmentHeader,
    SegmentInfo,
    encode_footer,
    encode_segment_header,
    segment_info,
    topic_crc,
)


@dataclass(slots=True)
class Active:
    """The segment that is being written."""

    file: File
    base: int
    salt: int
    end: int  # the byte after the last record
    zeroed: int  # blocks are written up to here
    index: SparseIndex
    records: int = 0
    first_timestamp_ms: int = 0
    last_timestamp_ms: int = 0
    cut: bool = False  # after the last record there is only the space for an index and a footer

    def room_behind(self) -> int:
        """Return how many bytes index and footer need after the next record."""
        return FOOTER_BYTES + index_bytes(len(self.index) + (self.end >= self.index.due))

    def ending(
        self, next_offset: int, log_time_ms: int, uncommitted: int
    ) -> tuple[bytes, bytes, SegmentInfo]:
        """Return the index record and the footer that seal it before `next_offset`, and what it is then."""
        index = self.index.encode(self.salt, next_offset, uncommitted)
        footer = Footer(
            next_offset=next_offset,
            messages=next_offset - self.base,
            records=self.records,
            first_timestamp_ms=self.first_timestamp_ms,
            last_timestamp_ms=self.last_timestamp_ms,
            bytes=self.end + len(index) + FOOTER_BYTES,
            max_timestamp_ms=log_time_ms,
            index_bytes=len(index),
        )
        info = segment_info(self.file.path, self.base, footer)
        return index, encode_footer(self.salt, footer, uncommitted), info


def beginning(
    incarnation: bytes, topic: str, base: int, created_ms: int, snapshot: bytes, uncommitted: int = 0
) -> tuple[bytes, bytes, bytes]:
    """Return what a segment begins with: its header, and the record of the producers in `snapshot`."""
    header = SegmentHeader(incarnation, base, created_ms, topic_crc(topic))
    record = encode_header(
        salt_of(incarnation, base), PRODUCERS, (snapshot,), first_offset=base, uncommitted=uncommitted
    )
    return encode_segment_header(header), record, snapshot


def begun(file: File, incarnation: bytes, base: int, snapshot_bytes: int, zeroed: int) -> Active:
    """Return a segment with nothing but its beginning; its blocks are written up to `zeroed`, or its footer's room."""
    end = SEGMENT_HEADER_BYTES + HEADER_BYTES + snapshot_bytes
    return Active(
        file, base, salt_of(incarnation, base), end, max(zeroed, end + FOOTER_BYTES), SparseIndex(end)
    )
