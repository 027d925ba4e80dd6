"""The journal that keeps one cursor: what is noted, when it is flushed, synced, rewritten and moved.

- `flush` makes what was noted survive the process, `sync` the machine.
- Seeking replaces the file: no acknowledgment from before can apply afterwards. If that fails, the previous file is
  restored.
- After a failure the journal is failed until `written_anew` has put all of it into a new file.

The cursor itself is in `cursor.py`, the bytes are in `cursor_format.py`, and the work on whole files, which may run in
other threads, is in `cursor_files.py`. Everything here runs on the owner's thread.
"""

from __future__ import annotations

import contextlib
import os.path
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ister.errors import DiskFullError, LogFailedError, StorageError
from ister.storage.cursor import FAILURES_MAX, Cursor
from ister.storage.cursor_files import Compaction, Sync, fresh_file, keep_damaged
from ister.storage.cursor_format import (
    ACKNOWLEDGED,
    FAILED,
    FAILED_RUN,
    WAITING,
    WAITING_RUN,
    CursorReport,
    encode_entry,
    encode_failures,
    encode_journal,
    encode_waits,
    encoded_bytes,
    is_current,
    parse_journal,
    salt_of_journal,
)
from ister.storage.disk import Disk, File
from ister.storage.ranges import RangeSet, encode_ranges
from ister.storage.reserve import Reserve

T = TypeVar("T")

# A journal is rewritten when it is longer than this and than twice what it would become.
COMPACT_BYTES_MIN: Final = 1 << 20
# On a full disk as soon as that gives a block back.
FULL_BYTES_MIN: Final = 4096
# Ranges that wait for a flush in the order in which they came; then they are joined.
NOTED_APART_MAX: Final = 65_536


class CursorJournal:
    """The file behind one cursor."""

    in_memory = False  # there is a file, which has to be synced
    reserve: Reserve | None = None  # space given up on a full disk, so that acknowledgments continue

    def __init__(
        self,
        disk: Disk,
        path: str,
        incarnation: bytes,
        cursor: Cursor,
        report: CursorReport,
        file: File,
        end: int,
        unproven: bytes = b"",
    ) -> None:
        self._disk = disk
        self.path = path
        self.incarnation = incarnation
        self.cursor = cursor
        self.report = report
        self._file = file
        self._end = end
        self._salt = salt_of_journal(incarnation)
        self._noted = RangeSet()
        self._noted_apart: list[tuple[int, int]] = []  # the same, of acknowledgments in many pieces
        self._failures: list[bytes] = []  # noted
        self._waits: list[bytes] = []  # the same
        self._since: list[bytes] | None = None  # entries flushed since a compaction began
        self._compaction: Compaction | None = None
        self._sync: Sync | None = None
        # The content found when it was opened, and the file's name, may be in the page cache alone.
        self._unproven = unproven
        self._folder_dirty = bool(unproven)
        self._closed = False
        self.failed: StorageError | None = None

    @classmethod
    def open(cls, disk: Disk, path: str, incarnation: bytes, start: int) -> CursorJournal:
        """Open the journal at `path`, or create one that begins at offset `start`; `.cursor` is what it holds.

        Raises DamagedError if the snapshot is lost, so that nobody knows what was acknowledged; DiskFullError;
        LogFailedError.
        """
        if len(incarnation) != 16:
            raise ValueError(f"an incarnation has 16 bytes, not {len(incarnation)}")
        try:
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(f"{path}.new")
            if not disk.exists(path):
                disk.makedirs(os.path.dirname(path))
                cursor = Cursor(start)
                placed = fresh_file(disk, path, incarnation, cursor)
                return cls(disk, path, incarnation, cursor, CursorReport(), *placed)
            journal = disk.read(path)
            cursor, report, end = parse_journal(path, journal, incarnation)
            if report.damaged_bytes:
                kept = keep_damaged(disk, path, journal)
                report = CursorReport(report.entries, report.torn_bytes, report.damaged_bytes, kept)
            if report.damaged_bytes or not is_current(journal, incarnation):
                placed = fresh_file(disk, path, incarnation, cursor)
                return cls(disk, path, incarnation, cursor, report, *placed)
            file = disk.open(path)
            try:
                if report.torn_bytes:
                    file.truncate(end)
            except BaseException:
                file.close()
                raise
            return cls(disk, path, incarnation, cursor, report, file, end, journal[:end])
        except OSError as error:
            raise LogFailedError(f"the cursor {path} cannot be opened: {error}") from error

    def written_anew(self) -> CursorJournal:
        """Return a journal of the same cursor in place of this one, which failed: rewritten from memory, and synced.

        Nothing is read, because after a failed sync or move the file may show what the disk does not have. Raises
        DiskFullError or LogFailedError; this journal is then unchanged, and still failed.
        """
        if self.busy:
            raise ValueError("a sync or a compaction is running")
        cursor, report = self.cursor, CursorReport()
        try:
            placed = self._with_reserve(lambda: fresh_file(self._disk, self.path, self.incarnation, cursor))
        except OSError as error:
            raise LogFailedError(f"the cursor {self.path} cannot be rewritten: {error}") from error
        self.close()
        anew = CursorJournal(self._disk, self.path, self.incarnation, cursor, report, *placed)
        anew.reserve = self.reserve
        return anew

    def note(self, first: int, end: int) -> int:
        """Acknowledge [first, end), in the next `flush`.

        Return how many of them were not acknowledged before.
        """
        new = self.cursor.acknowledge(first, end)
        if new:
            self._noted.add(first, end)
        return new

    def note_all(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Acknowledge many ranges, which ascend and do not overlap, in the next `flush`; return how many were new."""
        new = self.cursor.acknowledge_all(ranges)
        if new:
            self._noted_apart += ranges
            if len(self._noted_apart) > NOTED_APART_MAX:  # the disk takes nothing for a long time
                self._noted = RangeSet(sorted([*self._noted, *self._noted_apart]))
                self._noted_apart = []
        return new

    def note_failed(
        self, first: int, end: int, deliveries: int, failures: int, until_ms: int = 0, wait_ms: int = 0
    ) -> bool:
        """Record how often messages were delivered and failed, in the next `flush`.

        `until_ms` is when they may be delivered again (unix ms), `wait_ms` the length of that wait, which still holds
        if the clock is set before it is read. Return False if no more failures can be kept.
        """
        if not self.cursor.fail(first, end, deliveries, failures):
            return False
        if until_ms or self.cursor.waits:
            self.cursor.wait(first, end, until_ms, wait_ms)
            self._waits.append(WAITING_RUN.pack(first, end, until_ms, wait_ms))
            if len(self._waits) > 2 * FAILURES_MAX:
                self._waits = [encode_waits(self.cursor)]
        self._failures.append(FAILED_RUN.pack(first, end, deliveries, failures))
        # The disk takes nothing for a long time: the latest state of each message is enough.
        if len(self._failures) > 2 * FAILURES_MAX:
            self._failures = [encode_failures(self.cursor)]
        return True

    @property
    def noted(self) -> bool:
        """Return whether anything waits for a flush."""
        return bool(self._noted or self._noted_apart or self._failures)

    def _forget_noted(self) -> None:
        self._noted, self._noted_apart, self._failures, self._waits = RangeSet(), [], [], []

    def flush(self) -> int:
        """Write everything noted since, as an entry of each kind; return their bytes.

        Raises DiskFullError (all of it stays noted, for the next flush) and LogFailedError.
        """
        if self.failed is not None:
            raise self.failed
        if not self.noted:
            return 0
        noted = self._noted.encode() + encode_ranges(self._noted_apart)
        entry = encode_entry(self._salt, ACKNOWLEDGED, noted) if noted else b""
        if self._failures:
            entry += encode_entry(self._salt, FAILED, b"".join(self._failures))
        if self._waits:
            entry += encode_entry(self._salt, WAITING, b"".join(self._waits))
        try:
            appended = self._append(entry)
        except OSError as error:
            raise self._fail("written", error) from error
        if not appended:  # the file was rewritten, with all of it
            return len(entry)
        self._end += len(entry)
        self._forget_noted()
        if self._since is not None:
            self._since.append(entry)
        return len(entry)

    def _with_reserve(self, place: Callable[[], T]) -> T:
        while True:
            try:
                return place()
            except DiskFullError:
                if self.reserve is None or not self.reserve.give():
                    raise

    def _append(self, entry: bytes) -> bool:
        """Write an entry, on a full disk with space from the reserve; False if the file was rewritten instead."""
        reserve = self.reserve
        try:
            self._file.pwritev((entry,), self._end)
            if reserve is not None:
                reserve.keep()
            return True
        except DiskFullError:
            if reserve is None:
                raise
        while True:
            # Rewriting makes the file short, but needs a block before those of the old file are free.
            appends = self.busy or self._end <= max(FULL_BYTES_MIN, 2 * encoded_bytes(self.cursor))
            try:
                if appends:
                    self._file.pwritev((entry,), self._end)
                else:
                    self._put_anew()
            except DiskFullError:
                if not reserve.give():
                    raise
            else:
                return appends

    def _put_anew(self) -> None:
        file, self._end = fresh_file(self._disk, self.path, self.incarnation, self.cursor)
        self._file.close()
        self._file = file
        self._forget_noted()
        self._unproven, self._folder_dirty = b"", False

    def _fail(self, done: str, error: BaseException) -> LogFailedError:
        failed = LogFailedError(
            f"the cursor {self.path} cannot be {done}: {error}. Acknowledgments since may be forgotten; open it again"
        )
        self.failed = failed
        return failed

    def begin_sync(self) -> Sync | None:
        """Return the work that makes everything flushed durable; None while something runs, or if the journal failed.

        Call `run` on it in any thread, then `end_sync` here; notes and flushes may continue in between.
        """
        if self.busy or self.failed is not None:
            return None
        self._sync = Sync(
            self._disk, self.path, self._file, folder=self._folder_dirty, unproven=self._unproven
        )
        return self._sync

    def end_sync(self, sync: Sync, error: BaseException | None) -> None:
        """Record the outcome of `sync.run()`; after an error the journal is `failed`, and has to be rewritten."""
        if sync is not self._sync:
            raise ValueError("that sync is not running")
        self._sync = None
        if self._closed:
            self._file.close()
        elif error is not None:
            self._fail("synced", error)
        else:
            self._unproven, self._folder_dirty = b"", False

    def sync(self) -> None:
        """Return once everything flushed is on the disk, synchronously. Raises LogFailedError."""
        if self.busy:
            raise ValueError("a sync or a compaction is running")
        sync = self.begin_sync()
        if sync is not None:
            try:
                sync.run()
            except (OSError, StorageError) as error:
                self.end_sync(sync, error)
            else:
                self.end_sync(sync, None)
        if self.failed is not None:
            raise self.failed

    def begin_compaction(self) -> Compaction | None:
        """Return the work of rewriting a journal that has grown too long; None if none is due or something runs.

        Call `run` on it in any thread, then `end_compaction` here; notes and flushes may continue in between.
        """
        if self.busy or self.failed is not None or self._end <= COMPACT_BYTES_MIN:
            return None
        if self._end <= 2 * encoded_bytes(self.cursor):
            return None
        self._since = []
        self._compaction = Compaction(
            self._disk, f"{self.path}.new", encode_journal(self.incarnation, self.cursor)
        )
        return self._compaction

    def end_compaction(self, compaction: Compaction, error: BaseException | None) -> bool:
        """Put the new file in place of the old; return whether that was done. The next `sync` makes it durable."""
        if compaction is not self._compaction:
            raise ValueError("that compaction is not running")
        since, self._since, self._compaction = self._since or [], None, None
        file = compaction.file
        if self._closed:
            self._file.close()
        if error is not None or file is None or self.failed is not None:
            compaction.give_up()
            return False
        try:
            if since:
                file.pwritev((b"".join(since),), compaction.size)
            self._disk.rename(compaction.path, self.path)
        except (OSError, DiskFullError):
            compaction.give_up()
            return False
        self._file.close()
        file.path = self.path
        self._file = file
        self._end = compaction.size + sum(map(len, since))
        self._unproven, self._folder_dirty = b"", True
        return True

    def compact(self) -> bool:
        """Rewrite the journal synchronously if that is due; return whether it was."""
        compaction = self.begin_compaction()
        if compaction is None:
            return False
        try:
            compaction.run()
        except (OSError, DiskFullError) as error:
            return self.end_compaction(compaction, error)
        return self.end_compaction(compaction, None)

    def seek(self, offset: int) -> None:
        """Forget all acknowledgments and start again at `offset`, durably, synchronously.

        Raises DiskFullError and LogFailedError; the cursor is then where it was, here and in the file. The exception is
        a disk that takes neither the new file's name nor the old contents once more: a power failure may then show the
        new place.
        """
        if self.busy:
            raise ValueError("a sync or a compaction is running")
        if self.failed is not None:
            raise self.failed
        moved = Cursor(offset)
        fresh = Compaction(self._disk, f"{self.path}.new", encode_journal(self.incarnation, moved))
        try:
            self._with_reserve(fresh.run)
            # If the folder cannot be synced, this shows while nothing has changed yet.
            self._disk.sync_folder(os.path.dirname(self.path))
        except OSError as error:
            fresh.give_up()
            raise self._fail("moved", error) from error
        try:
            file = fresh.put(self.path)
        except OSError as error:
            # The new name may be there already: put the old place back.
            with contextlib.suppress(OSError, DiskFullError):
                file, self._end = fresh_file(self._disk, self.path, self.incarnation, self.cursor)
                self._file.close()
                self._file = file
            raise self._fail("moved", error) from error
        self._file.close()
        self._file, self._end = file, fresh.size
        self.cursor = moved
        self._forget_noted()
        self._unproven, self._folder_dirty = b"", False

    @property
    def busy(self) -> bool:
        """Return whether a sync or a compaction has begun and not ended."""
        return self._sync is not None or self._compaction is not None

    @property
    def compacting(self) -> bool:
        """Return whether a compaction has begun and not ended."""
        return self._compaction is not None

    @property
    def size(self) -> int:
        """Return the journal's length in bytes."""
        return self._end

    def close(self) -> None:
        """Flush what can be flushed, and close the file; if work runs on it, its end closes the file."""
        if self.failed is None:
            with contextlib.suppress(StorageError):
                self.flush()
            self.failed = LogFailedError(f"the cursor {self.path} is closed")
        self._closed = True
        if not self.busy:
            self._file.close()
