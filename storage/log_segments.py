"""The segments of one log, as readers find them: listed, mapped, and what comes after a broken record.

Any process may read what another one writes. Segments come and go meanwhile: a segment that is gone is told apart from
one that is damaged.

Used by `reader.py`, which reads records in order, and `log_search.py`, which looks for places. Belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from ister.errors import DamagedError, GapError, TrimmedError
from ister.storage.record import BATCH, salt_of
from ister.storage.recovery import next_record
from ister.storage.segment import Footer, segment_name
from ister.storage.segment_maps import SegmentMap, SegmentMaps, read_footer


class Unmapped(NamedTuple):
    """A segment that cannot be mapped: it is too short, or of another log."""

    path: str
    base: int
    salt: int


class BrokenError(Exception):
    """There is no intact record at `position` of `segment`, where offset `at` should be."""

    def __init__(self, segment: SegmentMap | Unmapped, position: int, at: int, reason: str) -> None:
        super().__init__(reason)
        self.segment, self.position, self.at, self.reason = segment, position, at, reason


class LogSegments:
    """The segments of the log in `folder`.

    With `listed` false the folder is never listed: only segments that `SegmentMaps.note` was told of are found.
    """

    __slots__ = ("folder", "incarnation", "listed", "maps")

    def __init__(self, maps: SegmentMaps, folder: str, incarnation: bytes, *, listed: bool) -> None:
        self.maps = maps
        self.listed = listed
        self.folder = folder
        self.incarnation = incarnation

    def bases(self) -> list[int]:
        """Return the offsets at which segments begin, in order. Raises FileNotFoundError."""
        return self.maps.bases(self.folder) if self.listed else self.maps.known_bases(self.folder)

    def trimmed(self, first: int, end: int) -> TrimmedError:
        """Return the error for offsets from `first` on, of a log that begins at `end`."""
        error = TrimmedError(
            f"offset {first} is not in the log in {self.folder}, which begins at offset {end}"
        )
        error.first, error.end = first, end
        return error

    def map(self, base: int, *, fresh: bool = False) -> SegmentMap:
        """Return the map of the segment at `base`. Raises TrimmedError, GapError; BrokenError for a damaged one."""
        try:
            return self.maps.get(self.folder, self.incarnation, base, fresh=fresh)
        except DamagedError as error:
            path = f"{self.folder}/{segment_name(base)}"
            unmapped = Unmapped(path, base, salt_of(self.incarnation, base))
            raise BrokenError(unmapped, 0, base, error.text) from None
        except FileNotFoundError:
            self.maps.gone(self.folder, base)
            bases = self.bases()
            if bases and base < bases[0]:
                raise self.trimmed(base, bases[0]) from None
            raise GapError(f"offset {base} is not in the log in {self.folder}: its segment is gone") from None

    def map_if_there(self, base: int) -> SegmentMap | None:
        """Return a new map of the segment at `base`, None if there is none that can be mapped."""
        try:
            return self.maps.get(self.folder, self.incarnation, base, fresh=True)
        except (FileNotFoundError, DamagedError):
            return None

    def behind(self, broken: BrokenError, wanted: int, durable_end: int) -> tuple[int | None, int]:
        """Return byte and offset of the next whole record after a broken one; no byte if it is in another segment.

        Raises TrimmedError for `wanted`, or what comes after it, if the broken record's segment is gone.
        """
        segment, at = broken.segment, broken.at
        bases = self.bases()
        if bases and at < bases[0]:
            raise self.trimmed(max(at, wanted), bases[0])
        try:
            data = self.maps.disk.read(segment.path)
        except FileNotFoundError:
            data = b""
        following = next_record(data, broken.position, at, segment.salt)
        after = bisect_right(bases, segment.base)
        limit = min(bases[after] if after < len(bases) else durable_end, durable_end)
        if following is not None and following[1][1] == BATCH and following[1][7] < limit:
            return following[0], following[1][7]
        return None, max(limit, at)

    def footer(self, base: int) -> Footer | None:
        """Return the footer of the segment at `base`, None if it is not sealed. Raises FileNotFoundError."""
        path = f"{self.folder}/{segment_name(base)}"
        return read_footer(self.maps.disk, path, salt_of(self.incarnation, base))
