"""The write-ahead log of one topic: segments in a folder, one writer.

- Offsets are dense: a record begins where the one before it ended, in its segment or the one before that.
- Nothing counts before the commit that covers it has ended without error; `durable_end` never passes what is
  on disk.
- After a failed write or sync the log is failed permanently: it must be opened again, which re-reads what is
  there.
- A full disk is not a failure: nothing was written, the next append may succeed.
- Room for a segment's index and footer is made before each record, so that sealing cannot run out of it.

This file appends, seals and commits. The segment that is being written is `active.py`, the sealed ones and their
trimming `sealed.py`, the files of a commit `commit.py`, the next file `spare.py`, and opening a log `opening.py`.

Threads: everything runs on the one thread of the log's owner, except `Commit.run`, `Trim.run` and the
work that `prepare_spare` returns. The first touches only files, of which the owner closes none before `end_commit`;
the second only names of sealed segments; the third only its `Spare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from ister.clock import Clock
from ister.errors import DiskFullError, LogFailedError, StorageError
from ister.storage.active import Active, beginning, begun
from ister.storage.checksum import Buffer
from ister.storage.commit import Commit
from ister.storage.disk import Disk, File
from ister.storage.ending import write_end
from ister.storage.opening import OpenedLog, WalSettings, open_log
from ister.storage.record import BATCH, HEADER_BYTES, encode_header
from ister.storage.recovery import DamagedRange
from ister.storage.sealed import SealedSegments
from ister.storage.segment import FOOTER_BYTES, SEGMENT_HEADER_BYTES, SegmentInfo, segment_name
from ister.storage.spare import NextFile
from ister.storage.trim import Trim

# Overwriting blocks that were written before makes fdatasync faster (ext4, p50: 150 against 272 us for 256 bytes, 258
# against 330 us for 16 KiB), so zeros are written ahead: this far in a segment that fills slowly, all of it in a spare
# one. Each byte is then written twice, so it pays only while commits are small: at 64 KiB it made no difference, at
# 256 KiB it cost a quarter of the throughput.
ZERO_AHEAD_BYTES: Final = 256 << 10
# But no further than the segment's contents so far, or this: of thousands of topics most have a few messages.
ZERO_AHEAD_BYTES_MIN: Final = 8 << 10
ZERO_AHEAD_COMMIT_BYTES_MAX: Final = 64 << 10
_ZEROS: Final = bytes(ZERO_AHEAD_BYTES)


class Wal:
    """The log of one topic, open for writing by this process alone."""

    def __init__(
        self,
        disk: Disk,
        folder: str,
        *,
        topic: str,
        incarnation: bytes,
        settings: WalSettings,
        clock: Clock,
        opened: OpenedLog,
    ) -> None:
        self._disk = disk
        self.folder = folder
        self.topic = topic
        self.incarnation = incarnation
        self.settings = settings
        self._clock = clock
        self.report = opened.report
        self.producers = opened.producers
        self.start_offset = opened.report.start_offset
        self.next_offset = opened.report.next_offset
        self.durable_end = opened.report.next_offset
        self.failed: StorageError | None = None
        self.closed = False
        self._proven_end = 0
        self._segments = SealedSegments(
            disk,
            folder,
            incarnation,
            whole=opened.sealed,
            set_aside=opened.set_aside,
            retained=opened.retained,
        )
        self._active = opened.active
        self._log_time_ms = opened.log_time_ms  # the highest batch time so far
        self._commit_bytes = 0.0  # bytes per commit, averaged over the last few
        self._uncommitted_bytes = 0
        self._seals: list[tuple[File, SegmentInfo]] = []  # footers written since the last commit began
        self._active_dirty = False
        self._folder_dirty = False
        self._commit: Commit | None = None
        self._next_file = NextFile(disk, folder, settings.segment_bytes_max)

    @classmethod
    def open(
        cls,
        disk: Disk,
        folder: str,
        *,
        topic: str,
        incarnation: bytes,
        settings: WalSettings,
        clock: Clock,
        start_offset: int = 0,
        known_end: int = 0,
    ) -> Wal:
        """Open or create the log in `folder`; `.report` says what was found.

        `known_end` is an offset up to which a cursor or the store has seen the log durable; what is missing below it is
        damage, however torn it looks. `start_offset` is where a new log begins. Behind damage the log continues where
        it is proven to have ended, and `.report.damaged` says what cannot be served. Raises DamagedError if nothing
        says where it ended, GapError for segments that overlap, DiskFullError, LogFailedError if the disk fails.
        """
        opened = open_log(
            disk,
            folder,
            topic=topic,
            incarnation=incarnation,
            settings=settings,
            start_offset=start_offset,
            known_end=known_end,
        )
        return cls(
            disk,
            folder,
            topic=topic,
            incarnation=incarnation,
            settings=settings,
            clock=clock,
            opened=opened,
        )

    # writing

    def append(
        self,
        *,
        count: int,
        producer_id: int,
        sequence: int,
        columns: int,
        frames: Sequence[Buffer],
        timestamp_ms: int,
    ) -> int:
        """Append one batch and return the offset of its first message.

        `frames` are those of the wire: length table, payloads, and the columns named by the bits of `columns` (1 keys,
        2 attributes, 4 times of delivery), in this order; the gateway has checked that they add up. Raises
        DiskFullError (as if never called), StorageError `batch-too-large`, LogFailedError.
        """
        if self.failed is not None:
            raise self.failed
        total = HEADER_BYTES + sum(map(len, frames))
        active = self._active
        if active is None or (active.end + total + active.room_behind() > self.settings.segment_bytes_max):
            active = self._roll(total)
        start, end = active.end, active.end + total
        zeros: tuple[Buffer, ...] = ()
        if (behind := end + active.room_behind()) > active.zeroed:
            if active.cut:
                self._lengthen(active)
            if self._commit_bytes <= ZERO_AHEAD_COMMIT_BYTES_MAX:
                self._zero_ahead(active, end, behind)
            else:
                zeros = (_ZEROS[: behind - end],)
        first = self.next_offset
        header = encode_header(
            active.salt,
            BATCH,
            frames,
            first_offset=first,
            count=count,
            columns=columns,
            uncommitted=first - self.durable_end,
            timestamp_ms=timestamp_ms,
            producer_id=producer_id,
            sequence=sequence,
            keys_bytes=len(frames[2]) if columns & 1 else 0,
            attributes_bytes=len(frames[2 + (columns & 1)]) if columns & 2 else 0,
        )
        try:
            self._write(active.file, (header, *frames, *zeros), start)
        except DiskFullError:
            # The whole record may be there, without the room after it: it must not come back. Blocks for this write
            # exist already.
            self._write(active.file, (_ZEROS[:HEADER_BYTES],), start)
            raise
        active.end = end
        active.zeroed = max(active.zeroed, behind)
        if start >= active.index.due:
            active.index.note(first, start, self._log_time_ms)
        if timestamp_ms > self._log_time_ms:
            self._log_time_ms = timestamp_ms
        self._uncommitted_bytes += total
        if active.records == 0:
            active.first_timestamp_ms = timestamp_ms
        active.records += 1
        active.last_timestamp_ms = timestamp_ms
        self._active_dirty = True
        self.next_offset = first + count
        self.producers.advance(producer_id, sequence, count, first, timestamp_ms)
        return first

    def _write(self, file: File, buffers: Sequence[Buffer], position: int) -> None:
        try:
            file.pwritev(buffers, position)
        except OSError as error:
            raise self._fail(f"writing {file.path} at byte {position}", error) from error

    def _fail(self, doing: str, error: BaseException) -> LogFailedError:
        failed = LogFailedError(
            f"the log of topic {self.topic!r} failed while {doing}: {error}. "
            f"Nothing from offset {self.durable_end} on is acknowledged; it is opened again before it takes more"
        )
        self.failed = failed
        return failed

    def _zero_ahead(self, active: Active, end: int, behind: int) -> None:
        """Write zeros after the record that will end at `end`: up to `behind` for a footer, and some more."""
        start = max(active.zeroed, end)
        ahead = min(ZERO_AHEAD_BYTES, max(ZERO_AHEAD_BYTES_MIN, end))
        stop = min(max(start + ahead, behind), self.settings.segment_bytes_max)
        if stop > start:
            self._write(active.file, (_ZEROS[: stop - start],), start)
        active.zeroed = stop

    @property
    def at_rest(self) -> bool:
        """Return whether the log holds no disk space for further messages."""
        return self._active is None or self._active.cut

    def rest(self) -> bool:
        """Give back the disk space of a log that rests: the spare file, and the zeros after the last record.

        Return whether that needs a commit. The next append takes the space again.
        """
        active = self._active
        if self._commit is None:
            self._next_file.cancel()
        if active is None or active.cut or self.failed is not None or self.pending or self.committing:
            return False
        behind = active.end + active.room_behind()
        try:
            active.file.truncate(behind)
        except OSError as error:
            self._fail(f"cutting {active.file.path} at byte {behind}", error)
            return False
        active.zeroed, active.cut = behind, True
        self._active_dirty = True
        return True

    def _lengthen(self, active: Active) -> None:
        """Give a segment that was cut its full length again, so that not every sync has to write a new length."""
        try:
            active.file.truncate(self.settings.segment_bytes_max)
        except OSError as error:
            raise self._fail(f"lengthening {active.file.path}", error) from error
        active.cut = False

    def _roll(self, total: int) -> Active:
        """Seal the active segment, if any, and begin the next one for a record of `total` bytes."""
        snapshot = self.producers.encode()
        room = (
            self.settings.segment_bytes_max
            - SEGMENT_HEADER_BYTES
            - HEADER_BYTES
            - len(snapshot)
            - FOOTER_BYTES
        )
        if total > room:
            raise StorageError(
                f"batch of {total - HEADER_BYTES} bytes is over what a segment of topic {self.topic!r} has room for "
                f"({room - HEADER_BYTES} bytes)",
                code="batch-too-large",
                action="fix",
            )
        self.seal()
        base = self.next_offset
        path = f"{self.folder}/{segment_name(base)}"
        try:
            file, zeroed = self._next_file.take(path)
        except OSError as error:
            raise self._fail(f"creating {path}", error) from error
        uncommitted = base - self.durable_end
        begin = beginning(self.incarnation, self.topic, base, self._clock.time_ms(), snapshot, uncommitted)
        active = begun(file, self.incarnation, base, len(snapshot), zeroed)
        try:
            self._write(file, begin, 0)
            if zeroed == 0:
                self._write(file, (_ZEROS[:FOOTER_BYTES],), active.end)
        except StorageError as error:
            file.close()
            if isinstance(error, DiskFullError):
                self._unlink(path)
            raise
        self._folder_dirty = True
        self._active_dirty = True
        self._active = active
        return active

    def _unlink(self, path: str) -> None:
        try:
            self._disk.unlink(path)
        except OSError as error:
            raise self._fail(f"removing {path}", error) from error

    def seal_due_in_ms(self, now_ms: int) -> float:
        """Return how long the active segment may wait until a batch is older than segment_age_ms_max; 0: no longer."""
        active = self._active
        if active is None or active.records == 0:
            return math.inf
        return max(0, active.first_timestamp_ms + self.settings.segment_age_ms_max - now_ms)

    def seal(self) -> None:
        """End the active segment if it holds a batch; it is sealed once the next commit has ended."""
        active = self._active
        if active is None or self.failed is not None:
            return
        if active.records == 0:
            return
        uncommitted = self.next_offset - self.durable_end
        index, footer, info = active.ending(self.next_offset, self._log_time_ms, uncommitted)
        self._write(active.file, (index, footer), active.end)
        self._seals.append((active.file, info))
        self._active = None
        self._active_dirty = False

    # committing

    @property
    def pending(self) -> bool:
        """Return whether there is anything for a commit to do."""
        return self._active_dirty or self._folder_dirty or bool(self._seals)

    @property
    def committing(self) -> bool:
        """Return whether a commit is running."""
        return self._commit is not None

    def begin_commit(self) -> Commit | None:
        """Return the commit of everything appended so far; None if nothing is, one is running, or the log failed.

        Call `run` on it in any thread, then `end_commit` here; appends may continue in between.
        """
        if self._commit is not None or self.failed is not None or not self.pending:
            return None
        active = self._active
        self._commit = Commit(
            self._disk,
            self.folder if self._folder_dirty else None,
            self.next_offset,
            tuple(self._seals),
            active.file if active is not None and self._active_dirty else None,
        )
        self._seals.clear()
        self._active_dirty = self._folder_dirty = False
        self._commit_bytes += (self._uncommitted_bytes - self._commit_bytes) / 8
        self._uncommitted_bytes = 0
        return self._commit

    def end_commit(self, commit: Commit, error: BaseException | None) -> int:
        """Handle the outcome of `commit.run()` and return the durable end.

        After an error the log is `failed`.
        """
        if commit is not self._commit:
            raise ValueError("that commit is not running")
        self._commit = None
        for file, info in commit.seals:
            file.close()
            if error is None:
                self._segments.add(info)
        if error is not None:
            self._fail("syncing", error)
        elif self.failed is None:
            self.durable_end = commit.end_offset
            commit.settle()
        return self.durable_end

    def commit(self) -> int:
        """Commit everything synchronously, and return the durable end. Raises LogFailedError."""
        commit = self.begin_commit()
        if commit is not None:
            try:
                commit.run()
            except (OSError, StorageError) as error:
                self.end_commit(commit, error)
            else:
                self.end_commit(commit, None)
        if self.failed is not None:
            raise self.failed
        return self.durable_end

    # segments

    @property
    def retained(self) -> int:
        """Return below which offset everything went by the topic's retention."""
        return self._segments.retained

    def sealed(self) -> tuple[SegmentInfo, ...]:
        """Return the segments that are sealed and synced, oldest first."""
        return tuple(self._segments.whole)

    def set_aside(self) -> tuple[SegmentInfo, ...]:
        """Return the sealed segments that were found damaged when the log was opened, oldest first."""
        return tuple(self._segments.set_aside)

    @property
    def sealing(self) -> int:
        """Return how many segments have their end written, and are sealed once their commit has ended."""
        return len(self._seals) + (0 if self._commit is None else len(self._commit.seals))

    @property
    def unsealed_bytes(self) -> int:
        """Return how many bytes the segment that is being written has."""
        return 0 if self._active is None else self._active.end

    @property
    def sealed_end(self) -> int:
        """Return the offset after the sealed segments, damaged ones included."""
        return self.next_offset if self._active is None else self._active.base

    @property
    def damaged(self) -> tuple[DamagedRange, ...]:
        """Return the ranges, found at opening, that were acknowledged and cannot be served."""
        return tuple(one for one in self.report.damaged if one.end > self.start_offset)

    def begin_trim(self, offset: int, retained: int = 0) -> Trim | None:
        """Return the work of deleting whole segments that end at or below `offset`; None if there are none.

        That what is below `retained` goes by the topic's retention is recorded first. Call `run` on the work in any
        thread, then `end_trim` here; everything else may continue in between. The newest sealed segment stays until
        something after it is durable.
        """
        if self.failed is not None:
            return None
        active = self._active
        # If nothing were left, the next opening would not know where offsets continue.
        rest_durable = active is not None and active.base < self.durable_end
        return self._segments.begin_trim(
            min(offset, self.durable_end), min(retained, self.durable_end), rest_durable=rest_durable
        )

    def end_trim(self, trim: Trim, error: BaseException | None = None) -> tuple[SegmentInfo, ...]:
        """Handle the outcome of `trim.run()`; return what was deleted, oldest first. The rest is tried again later."""
        gone = self._segments.end_trim(trim, error)
        if gone:
            sealing = (*(self._commit.seals if self._commit is not None else ()), *self._seals)
            left = [self._segments.begins_at(), *(info.base for _, info in sealing)]
            left.append(None if self._active is None else self._active.base)
            self.start_offset = min((base for base in left if base is not None), default=gone[-1].end)
        return gone

    def trim(self, offset: int, retained: int = 0) -> tuple[SegmentInfo, ...]:
        """Delete whole segments that end at or below `offset`, synchronously; return them. Raises OSError."""
        trim = self.begin_trim(offset, retained)
        if trim is None:
            return ()
        try:
            trim.run()
        except BaseException as error:
            self.end_trim(trim, error)
            raise
        return self.end_trim(trim)

    def prepare_spare(self) -> Callable[[], None] | None:
        """Return work for a thread that makes the next segment's file ahead of time, None if none is wanted.

        It takes milliseconds and never raises. Ask after each commit. Under heavy load none is wanted: filling a spare
        would halve the throughput of the disk.
        """
        active = self._active
        if active is None or active.cut or self.failed is not None:
            return None
        if active.end < self.settings.segment_bytes_max // 4:
            return None
        if self._commit_bytes > ZERO_AHEAD_COMMIT_BYTES_MAX:
            return None
        return self._next_file.prepare()

    def prove_end(self) -> None:
        """Record beside the log up to where it is durable: what is missing below that later is damage.

        Done before a clean close, after which no record follows that would prove it. If the disk does not take it, the
        log's end is as well known as after a crash.
        """
        if self.failed is None and self.durable_end > self._proven_end:
            with suppress(OSError, DiskFullError):
                write_end(self._disk, self.folder, self.incarnation, self.durable_end)
                self._proven_end = self.durable_end

    def close(self) -> None:
        """Close the files.

        What was not committed may be there afterwards or not; a running commit must end first.
        """
        if self._commit is not None or self._segments.trimming:
            raise ValueError("a commit is running" if self._commit is not None else "a trim is running")
        self._next_file.cancel()
        for file, _ in self._seals:
            file.close()
        self._seals.clear()
        if self._active is not None:
            self._active.file.close()
            self._active = None
        if self.failed is None:
            self.failed = LogFailedError(f"the log of topic {self.topic!r} is closed")
        self.closed = True

    def __repr__(self) -> str:
        return f"Wal({self.topic!r}, [{self.start_offset}, {self.durable_end}) of {self.next_offset})"


__all__ = ["Wal", "WalSettings"]
