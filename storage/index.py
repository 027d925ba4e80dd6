"""The sparse index of a segment: positions and times of some of its records. Pure; FORMAT.md has the byte table.

- One entry for a record every 64 KiB or so: its offset, its byte, and the log time before it.
- Log time is the highest batch time so far: a clock that stepped back counts as standing still, so that log time can be
  searched like offsets.
- An index only says where to begin looking. A reader that uses an entry checks that the record is there; without an
  index it walks the segment from its beginning, with the same result.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from itertools import pairwise
from typing import Final

from ister.storage.checksum import extend
from ister.storage.record import HEADER_BYTES, INDEX, Header, encode_header

# A lookup walks the headers of this much at most; entries cost 0.04 % of a segment of 8 MiB.
INDEX_STEP_BYTES: Final = 64 << 10
_ENTRY = struct.Struct("<QQQ")


class SparseIndex:
    """The indexed positions of one segment, in order."""

    __slots__ = ("due", "offsets", "positions", "times")

    def __init__(self, start: int) -> None:
        """Begin an index of a segment whose first batch is at byte `start`."""
        self.offsets = array("Q")
        self.positions = array("Q")
        self.times = array("Q")
        self.due = start + INDEX_STEP_BYTES

    def __len__(self) -> int:
        return len(self.offsets)

    def note(self, offset: int, position: int, time_ms: int) -> None:
        """Add the record at `position`, which is at or after `due`; `time_ms` is the log time before it."""
        self.offsets.append(offset)
        self.positions.append(position)
        self.times.append(time_ms)
        self.due = position + INDEX_STEP_BYTES

    def raise_times(self, time_ms: int) -> None:
        """Take into account that log time was `time_ms` before this segment."""
        self.times = array("Q", [max(one, time_ms) for one in self.times])

    def before_time(self, time_ms: int) -> int | None:
        """Return the last entry before which log time was below `time_ms`, None if there is none."""
        found = bisect_left(self.times, time_ms) - 1
        return found if found >= 0 else None

    def encode(self, salt: int, next_offset: int, uncommitted: int) -> bytes:
        """Return the index's record; nothing if it has no entries."""
        if not len(self):
            return b""
        body = b"".join(map(_ENTRY.pack, self.offsets, self.positions, self.times))
        front = encode_header(salt, INDEX, (body,), first_offset=next_offset, uncommitted=uncommitted)
        return front + body

    @classmethod
    def decode(cls, record: bytes, header: Header, salt: int) -> SparseIndex | None:
        """Return the index in a complete record, or None if it is damaged."""
        body = record[HEADER_BYTES : header[3]]
        if header[1] != INDEX or len(body) % _ENTRY.size or extend(salt, body) != header[4]:
            return None
        found = cls(0)
        for offset, position, time_ms in _ENTRY.iter_unpack(body):
            found.note(offset, position, time_ms)
        rising = (found.offsets, found.positions)
        if any(after <= before for column in rising for before, after in pairwise(column)):
            return None
        return found


def index_bytes(entries: int) -> int:
    """Return the size in bytes of the record of an index with this many entries."""
    return HEADER_BYTES + entries * _ENTRY.size if entries else 0


__all__ = ["INDEX_STEP_BYTES", "SparseIndex", "index_bytes"]
