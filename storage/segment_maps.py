"""Maps of segment files, shared by the readers of a process.

- A view that was handed out keeps its map alive; dropping a map from the cache, or the file's name, cannot hurt it.
- A footer ends a file. No byte after it is touched: the file may have been cut there since it was mapped.

A `SegmentMaps` belongs to one thread. Which records are read, and what damage means, is for its users (`reader.py`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from itertools import islice
from typing import Final

from ister.storage.disk import Disk
from ister.storage.index import SparseIndex
from ister.storage.record import BATCH, Header, parse_header, salt_of
from ister.storage.recovery import damaged
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    Footer,
    base_of,
    footer_at_end,
    parse_segment_header,
    segment_name,
)

# Readers near the end of the log share a map or two; only replays need more.
MAPS_MAX: Final = 128
# Of the maps used last so many keep their pages, which count as memory of the process.
RESIDENT_MAX: Final = 4
# Folders whose listing is remembered, and segments (8 MiB each) noted for a folder that is never listed.
FOLDERS_MAX: Final = 1024
NOTED_MAX: Final = 16_384
# Bytes copied out of maps that all users of a process's readers may keep.
COPIED_BYTES_MAX: Final = 128 << 20
# How far apart the places are that a map remembers, so that going back does not walk the whole segment.
MARK_BYTES: Final = 64 << 10


class SegmentMap:
    """One mapped segment: checked headers, and the places of some records, from its index or as they were read."""

    __slots__ = (
        "_disk",
        "_indexed",
        "base",
        "checked",
        "marks",
        "offsets",
        "path",
        "resident",
        "salt",
        "size",
        "view",
    )

    def __init__(self, disk: Disk, path: str, incarnation: bytes, base: int) -> None:
        self._disk = disk
        self._indexed = False
        self.resident = True  # its pages may be counted as this process's memory
        self.path = path
        self.base = base
        self.salt = salt_of(incarnation, base)
        self.checked = disk.map(path)
        self.view = self.checked.view
        self.size = len(self.view)
        header = parse_segment_header(self.view[:SEGMENT_HEADER_BYTES])
        if isinstance(header, str):
            if header.startswith("format version"):
                raise damaged(path, 0, header)
        # A header that is not whole proves nothing; the CRC of each record shows that the record belongs here.
        elif header.incarnation != incarnation or header.base != base:
            raise damaged(path, 0, "it belongs to another topic, or to another place in this one")
        self.offsets = [base]
        self.marks = [SEGMENT_HEADER_BYTES]

    def mark(self, offset: int, position: int) -> None:
        """Remember where the record at `offset` begins, unless a position near it is known."""
        if position - self.marks[-1] >= MARK_BYTES:
            self.offsets.append(offset)
            self.marks.append(position)

    def nearest(self, offset: int) -> tuple[int, int]:
        """Return offset and position of the last remembered record that begins at or before `offset`."""
        if not self._indexed and len(self.marks) == 1:
            self._load_index()
        at = bisect_right(self.offsets, offset) - 1
        if at and not self._is_at(self.offsets[at], self.marks[at]):
            self.offsets, self.marks, at = [self.base], [SEGMENT_HEADER_BYTES], 0
        return self.offsets[at], self.marks[at]

    def _is_at(self, offset: int, position: int) -> bool:
        header = self.header(position)
        return header is not None and header[1] == BATCH and header[7] == offset

    def _load_index(self) -> None:
        found = read_index(self._disk, self.path, self.salt)
        if found is not None:
            self._indexed = True
            self.offsets += found.offsets
            self.marks += found.positions

    def header(self, position: int) -> Header | None:
        """Return the header at `position`, or None if there is no valid one."""
        return parse_header(self.view, position, self.salt)


def read_footer(disk: Disk, path: str, salt: int) -> Footer | None:
    """Return the footer of a sealed segment, None if it has none. Raises FileNotFoundError."""
    size = disk.size(path)
    return footer_at_end(disk.read(path, max(0, size - FOOTER_BYTES), FOOTER_BYTES), size, salt)


def read_index(disk: Disk, path: str, salt: int) -> SparseIndex | None:
    """Return the index of a sealed segment, None if it has no intact one."""
    try:
        footer = read_footer(disk, path, salt)
        if footer is None or not footer.index_bytes:
            return None
        # Read, not mapped: the file may have been cut after its footer since it was mapped.
        start = max(0, footer.bytes - FOOTER_BYTES - footer.index_bytes)
        record = disk.read(path, start, footer.index_bytes)
    except FileNotFoundError:
        return None
    header = parse_header(record, 0, salt)
    return None if header is None else SparseIndex.decode(record, header, salt)


class SegmentMaps:
    """The maps of a process, shared by its readers; the least recently opened ones are dropped.

    `copied_bytes` counts bytes that users copied out of maps and keep. Each user adds its own, and keeps less while
    `copied_too_much`.
    """

    def __init__(self, disk: Disk, maps_max: int = MAPS_MAX) -> None:
        self.disk = disk
        self._maps_max = maps_max
        self._maps: OrderedDict[tuple[str, bytes, int], SegmentMap] = OrderedDict()
        self._bases: OrderedDict[str, list[int]] = (
            OrderedDict()
        )  # by folder: segments that are known to exist, or to have existed
        self.copied_bytes = 0

    @property
    def copied_too_much(self) -> bool:
        """Return whether more copied bytes are kept than a process should keep."""
        return self.copied_bytes > COPIED_BYTES_MAX

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, folder: str, incarnation: bytes, base: int, *, fresh: bool = False) -> SegmentMap:
        """Return the map of the segment at `base`; `fresh`: map it again, because the file has grown.

        Raises FileNotFoundError, DamagedError.
        """
        key = (folder, incarnation, base)
        found = None if fresh else self._maps.get(key)
        if found is None:
            path = f"{folder}/{segment_name(base)}"
            if self.disk.size(path) < SEGMENT_HEADER_BYTES:
                raise damaged(path, 0, "it is shorter than a segment's header")
            found = self._maps[key] = SegmentMap(self.disk, path, incarnation, base)
            if len(self._maps) > self._maps_max:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(key)
            found.resident = True
        if len(self._maps) > RESIDENT_MAX:
            self._behind(next(islice(reversed(self._maps.values()), RESIDENT_MAX, None)))
        return found

    @staticmethod
    def _behind(segment: SegmentMap) -> None:
        """Give back the pages of a segment that readers have left; who still reads it maps them again."""
        if segment.resident:
            segment.resident = False
            segment.checked.give_back()

    def rest(self) -> None:
        """Give back the pages of all maps: to be called now and then."""
        for segment in self._maps.values():
            segment.checked.give_back()

    def bases(self, folder: str) -> list[int]:
        """List a folder, and return the bases of its segments, in order. Raises FileNotFoundError."""
        found = [base for name in self.disk.listdir(folder) if (base := base_of(name)) is not None]
        self._bases[folder] = found
        self._bases.move_to_end(folder)
        if len(self._bases) > FOLDERS_MAX:
            self._bases.popitem(last=False)
        return found

    def known_bases(self, folder: str) -> list[int]:
        """Return the bases found when a folder was listed last, and those noted since; the folder is not listed."""
        return self._bases.get(folder, [])

    def note(self, folder: str, base: int) -> None:
        """Note that a folder has the segment at `base`."""
        known = self._bases.setdefault(folder, [])
        at = bisect_left(known, base)
        if known[at : at + 1] != [base]:
            known.insert(at, base)
            if len(known) > NOTED_MAX:
                del known[0]
        if len(self._bases) > FOLDERS_MAX:
            self._bases.popitem(last=False)

    def gone(self, folder: str, base: int) -> None:
        """Note that the segment at `base` is gone."""
        known = self._bases.get(folder, [])
        if base in known:
            known.remove(base)

    def drop(self, folder: str, incarnation: bytes, base: int) -> None:
        """Forget one segment, whose file is of no use."""
        self._maps.pop((folder, incarnation, base), None)
        self.gone(folder, base)

    def forget(self, folder: str) -> None:
        """Drop all maps of one log, because it was deleted."""
        self._bases.pop(folder, None)
        for key in [key for key in self._maps if key[0] == folder]:
            del self._maps[key]

    def drop_deleted(self) -> None:
        """Drop the maps of deleted files: a mapped file keeps its space on the disk."""
        for key, segment in list(self._maps.items()):
            if not self.disk.exists(segment.path):
                del self._maps[key]

    def clear(self) -> None:
        """Drop all maps."""
        self._maps.clear()
        self._bases.clear()
