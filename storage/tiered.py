"""A reader over the whole history of a topic: from the store's cache, then from the log, then from its live end.

What the local log has no more is read from a folder of segments that were brought back (the cache); what is not there
either is asked for. Offsets join, whichever side a record comes from.

Invariants
- records come in order, each checked, whole and once, whatever is trimmed, sealed or brought back meanwhile
- nothing is skipped: what can be read nowhere is said, with its offset
"""

from __future__ import annotations

from ister.errors import DamagedError, GapError, TrimmedError
from storage.reader import Reader, SegmentMaps
from storage.record import Record


class NotHereError(GapError):
    """The record at `offset` is not on this machine, but the store has it: bring its segment back, and read again."""

    code = "unavailable"
    action = "retry"

    def __init__(self, offset: int) -> None:
        super().__init__(f"offset {offset} is in the store alone")
        self.offset = offset


class TieredReader:
    """A place in a topic's history; reads as `storage.reader.Reader` does.

    `start` is where the history begins, as the owner of the topic says; below it everything is trimmed. `from_store`
    says whether what was read last came out of the cache.
    """

    def __init__(
        self, maps: SegmentMaps, folder: str, cache_folder: str, incarnation: bytes, offset: int
    ) -> None:
        self._log = Reader(maps, folder, incarnation, offset)
        self._cache = Reader(maps, cache_folder, incarnation, offset)
        self._maps = maps
        self.start = 0
        self.from_store = False

    @property
    def offset(self) -> int:
        """Return the offset that is read next."""
        return self._log.offset

    def seek(self, offset: int) -> None:
        """Go to another offset, which may lie inside a batch."""
        self._log.seek(offset)

    def close(self) -> None:
        """Let go of the segments at hand; reading goes on where it was."""
        self._log.close()
        self._cache.close()

    def take_skipped(self) -> list[tuple[int, int]]:
        """Return the ranges that were jumped over since last asked, by an operator's decision."""
        return self._log.take_skipped()

    def read(self, durable_end: int, bytes_max: int, records_max: int = 256) -> list[Record]:
        """Return the next whole records, as `Reader.read`.

        Raises NotHereError for what must be brought back first, TrimmedError for what is gone for good, DamagedError.
        """
        try:
            records = self._log.read(durable_end, bytes_max, records_max)
        except TrimmedError as trimmed:
            if self.offset < self.start:
                gone = TrimmedError(f"offset {self.offset} is gone: the topic begins at {self.start}")
                gone.first, gone.end = self.offset, self.start
                raise gone from None
            return self._read_cache(min(durable_end, trimmed.end), bytes_max, records_max)
        except (GapError, FileNotFoundError):
            if self.offset < self.start or not self._log.is_empty():
                raise
            # It came back from the store, and has nothing of its own yet.
            return self._read_cache(durable_end, bytes_max, records_max)
        self.from_store = False
        return records

    def _read_cache(self, end: int, bytes_max: int, records_max: int) -> list[Record]:
        offset = self.offset
        self._cache.seek(offset)
        try:
            records = self._cache.read(end, bytes_max, records_max)
        except (GapError, FileNotFoundError):
            raise NotHereError(offset) from None
        except DamagedError:
            # The cache is only a copy: forget it, and let it be brought back again.
            self._maps.forget(self._cache.folder)
            self._cache.close()
            raise NotHereError(offset) from None
        if not records:
            raise NotHereError(offset)
        self.from_store = True
        self._log.seek(records[-1].end_offset)
        return records
