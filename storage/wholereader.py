"""A reader over the whole history of a topic: from the log where that has it, otherwise from the store's cache.

What the local log no longer has, and what is damaged or missing in it, is read from a folder of downloaded segments
(the cache). What is not there either is requested. Offsets are contiguous, whichever side a record comes from.

Invariants
- each record is returned once, in order, whole and checked, whatever is trimmed, sealed or downloaded meanwhile
- nothing is skipped without an operator's decision: what cannot be read anywhere is reported, with its range
- while it reads what the log does not have, no folder is listed
"""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import itemgetter
from typing import Final

from ister.errors import DamagedError, GapError, TrimmedError
from ister.storage.damage import load_skips
from ister.storage.reader import Reader
from ister.storage.record import Record
from ister.storage.segment_maps import SegmentMaps

UNKNOWN: Final = 1 << 63  # how far the store has a topic, while that is unknown: above every offset


class NotHereError(GapError):
    """Offsets [offset, until) cannot be read here, but the store may have them: fetch them, and read again.

    `damage` is what is wrong with them here, None if they are only in the store.
    """

    code = "unavailable"
    action = "retry"

    def __init__(self, offset: int, until: int, damage: DamagedError | None = None) -> None:
        what = "is in the store alone" if damage is None else f"cannot be read here: {damage.text}"
        super().__init__(f"offset {offset} {what}")
        self.offset, self.until, self.damage = offset, until, damage


class TieredReader:
    """A position in a topic's history; it reads like `ister.storage.reader.Reader`.

    `start` is where the history begins, as the topic says; below it everything is trimmed. `stored_end` is up to where
    the store has it: damage in the log at or after that is permanent. `from_store` says whether what was read last came
    from the cache.
    """

    def __init__(
        self, maps: SegmentMaps, folder: str, cache_folder: str, incarnation: bytes, offset: int
    ) -> None:
        self._log = Reader(maps, folder, incarnation, offset)
        self._folder, self._cache_folder, self._incarnation = folder, cache_folder, incarnation
        self._cache = Reader(maps, cache_folder, incarnation, offset, listed=False)
        self._absent: tuple[int, int, DamagedError | None] = (
            0,
            0,
            None,
        )  # the range [first, end) that the log does not have
        self._skipped: list[tuple[int, int]] = []
        self.maps = maps
        # (base, end, log time) of segments that were fetched for a search by time
        self._known: list[tuple[int, int, int]] = []
        self.start = 0
        self.stored_end = UNKNOWN
        self.from_store = False

    @property
    def offset(self) -> int:
        """The offset that is read next."""
        return self._log.offset

    def seek(self, offset: int) -> None:
        """Continue at another offset, which may lie inside a batch."""
        self._log.seek(offset)

    def close(self) -> None:
        """Release the segments in use; reading continues where it was."""
        self._log.close()
        self._cache.close()

    def brought(self, base: int) -> None:
        """Record that the segment at `base` is in the cache now."""
        self.maps.note(self._cache_folder, base)

    def take_skipped(self) -> list[tuple[int, int]]:
        """Return the ranges that were skipped since the last call, by an operator's decision."""
        skipped, self._skipped = self._skipped + self._log.take_skipped(), []
        return skipped

    def read(self, durable_end: int, bytes_max: int, records_max: int = 256) -> list[Record]:
        """Return the next complete records, like `Reader.read`.

        Raises NotHereError for what must be fetched first, TrimmedError for what was deleted, DamagedError.
        """
        while self.offset < durable_end:
            if self.offset < self.start:
                gone = TrimmedError(f"offset {self.offset} is gone: the topic begins at {self.start}")
                gone.first, gone.end = self.offset, self.start
                raise gone
            if not self._absent[0] <= self.offset < self._absent[1]:
                records = self._read_log(durable_end, bytes_max, records_max)
                if records is not None:
                    return records
            records = self._read_cache(durable_end, bytes_max, records_max)
            if records:
                return records
        return []

    def _read_log(self, durable_end: int, bytes_max: int, records_max: int) -> list[Record] | None:
        """Return what the log has, None if it has nothing here; then `_absent` is that range."""
        offset = self.offset
        try:
            records = self._log.read(durable_end, bytes_max, records_max)
        except TrimmedError as trimmed:  # the log's beginning has risen
            self._absent = (0, trimmed.end, None)
            return None
        except DamagedError as error:
            offset = self.offset  # after what an operator had skipped
            if error.end is None or offset >= min(error.end, self.stored_end):
                raise
            self._absent = (offset, error.end, error)
            return None
        except (GapError, FileNotFoundError):
            if self._log.search.begins_at() is not None:
                raise
            # It was fetched from the store, and has no records from `offset` on yet.
            self._absent = (offset, durable_end, None)
            return None
        self.from_store = False
        return records

    def offset_at(
        self, timestamp_ms: int, start: int, durable_end: int, headers_max: int | None = None
    ) -> int:
        """Return the first offset from `start` on whose log time is `timestamp_ms` or later, else `durable_end`.

        Log time is the highest batch time so far: a clock that was set back counts as standing still. The search is
        binary, by the log times in the segments' footers; segments that only the store has are each requested once
        (NotHereError) and remembered. Damage that may be that late is reported, instead of an offset after it. Raises
        DamagedError, and SearchGoesOnError where it may look at `headers_max` headers of the log at most.
        """
        local = self._log.search.begins_at()
        found = durable_end
        if local is not None:
            sought = self._log.find_time(timestamp_ms, durable_end, headers_max)
            if sought.certain or local <= start:
                return max(start, sought.offset)
            found = sought.offset
        low, high = start, durable_end if local is None else min(local, durable_end)
        begins, middle = None, high - 1  # the newest first: most searches are for recent times
        while low < high:
            base, end, log_time_ms = self._segment_at(middle)
            if log_time_ms >= timestamp_ms:
                begins, high = (base, end), max(low, base)
            else:
                low = end
            middle = (low + high) // 2
        if begins is None:
            return max(start, found)
        base, end = begins
        if self._cache.search.segment_at(base) is None:
            raise NotHereError(max(base, start), end)
        return max(start, self._cache.search.time_in(base, timestamp_ms, end))

    def _segment_at(self, offset: int) -> tuple[int, int, int]:
        """Return base, end and log time of the stored segment that contains an offset. Raises NotHereError."""
        at = bisect_right(self._known, offset, key=itemgetter(0)) - 1
        if at >= 0 and offset < self._known[at][1]:
            return self._known[at]
        there = self._cache.search.segment_at(offset)
        if there is None:
            raise NotHereError(offset, offset + 1)
        base, footer = there
        known = (base, footer.next_offset, footer.max_timestamp_ms)
        insort(self._known, known)
        return known

    def _read_cache(self, durable_end: int, bytes_max: int, records_max: int) -> list[Record]:
        """Return what the cache has; nothing if an operator had the offset skipped."""
        offset, (_, until, damage) = self.offset, self._absent
        records: list[Record] = []
        self._cache.seek(offset)
        try:
            records = self._cache.read(min(durable_end, until), bytes_max, records_max)
        except (GapError, FileNotFoundError):
            pass
        except DamagedError as error:
            # Where what is here ends, somebody else may be reading it. What is damaged is only a copy: forget that one,
            # and let it be brought back again.
            if (base := self._cache.search.useless_at(offset)) is not None:
                self.maps.drop(self._cache_folder, self._incarnation, base)
                damage = error if damage is None else damage
                until = min(until, error.end or until)
            self._cache.close()
        if records:
            self.from_store = True
            self._log.seek(records[-1].end_offset)
            return records
        skips = load_skips(self.maps.disk, self._folder, self._incarnation)
        behind = min(skips.end_of(offset), until)
        if behind <= offset:
            raise NotHereError(offset, until, damage)
        self._skipped.append((offset, behind))
        self._log.seek(behind)
        return []
