"""The write-ahead log of one topic: segments in a folder, one writer.

- Offsets are dense: a record begins where the one before it ended, in its segment or the one before that.
- Nothing counts before the commit that covers it has ended without error; `durable_end` never passes what is
  on disk.
- After a failed write or sync the log is failed permanently: it must be opened again, which re-reads what is
  there.
- A full disk is not a failure: nothing was written, the next append may succeed.
- Room for a segment's index and footer is made before each record, so that sealing cannot run out of it.
- Segments go from the oldest on, and never all of them: the log always knows where it continues.

Threads: everything runs on the one thread of the log's owner, except `Commit.run`, `Trim.run` and the
work that `prepare_spare` returns. The first touches only files, of which the owner closes none before `end_commit`;
the second only names of sealed segments; the third only its `Spare`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from ister.clock import Clock
from ister.errors import DiskFullError, LogFailedError, StorageError
from ister.storage.checksum import Buffer
from ister.storage.disk import Disk, File
from ister.storage.ending import write_end
from ister.storage.index import SparseIndex, index_bytes
from ister.storage.opening import Active, OpenedLog, WalSettings, open_log
from ister.storage.record import BATCH, HEADER_BYTES, PRODUCERS, encode_header, salt_of
from ister.storage.recovery import DamagedRange
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    Footer,
    SegmentHeader,
    SegmentInfo,
    encode_footer,
    encode_segment_header,
    segment_info,
    segment_name,
    topic_crc,
)
from ister.storage.spare import SPARE_NAME, Spare
from ister.storage.trim import Trim, droppable

# Overwriting blocks that were written before makes fdatasync faster (ext4, p50: 150 against 272 us for 256 bytes, 258
# against 330 us for 16 KiB), so zeros are written ahead: this far in a segment that fills slowly, all of it in a spare
# one. Each byte is then written twice, so it pays only while commits are small: at 64 KiB it made no difference, at
# 256 KiB it cost a quarter of the throughput.
ZERO_AHEAD_BYTES: Final = 256 << 10
# But no further than what the segment holds already, or this: of thousands of topics most have a few messages.
ZERO_AHEAD_BYTES_MIN: Final = 8 << 10
ZERO_AHEAD_COMMIT_BYTES_MAX: Final = 64 << 10
_ZEROS: Final = bytes(ZERO_AHEAD_BYTES)


class Commit:
    """Everything appended until it began; `run` makes it durable."""

    __slots__ = ("_active", "_disk", "_folder", "_written", "end_offset", "seals")

    def __init__(
        self,
        disk: Disk,
        folder: str | None,
        end_offset: int,
        seals: tuple[tuple[File, SegmentInfo], ...],
        active: File | None,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._active = active
        self._written = 0 if active is None else active.written
        self.end_offset = end_offset
        self.seals = seals

    def run(self) -> None:
        """Sync the files, and the folder if names changed; any thread.

        Raises OSError: then nothing of it counts.
        """
        for file, info in self.seals:
            file.truncate(info.bytes)
            file.datasync()
        if self._active is not None:
            self._active.datasync()
        if self._folder is not None:
            self._disk.sync_folder(self._folder)

    @property
    def path(self) -> str:
        """One of its files, or its folder."""
        if self._active is not None:
            return self._active.path
        return self.seals[0][1].path if self.seals else self._folder or ""

    def prepare(self) -> None:
        """Do all of `run` that is not a sync, before a sync of the whole file system in its place; any thread.

        Raises OSError: then nothing of it counts.
        """
        for file, info in self.seals:
            file.truncate(info.bytes)

    def settle(self) -> None:
        """Record that it is on the disk, however it came there."""
        if self._active is not None:
            self._active.settled(self._written)


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
        self.retained = opened.retained  # below this everything went by retention
        self.next_offset = opened.report.next_offset
        self.durable_end = opened.report.next_offset
        self.failed: StorageError | None = None
        self.closed = False
        self._proven_end = 0
        self._sealed = opened.sealed
        self._set_aside = opened.set_aside
        self._active = opened.active
        self._log_time_ms = opened.log_time_ms  # the highest batch time so far
        self._commit_bytes = 0.0  # of a commit, on average over the last few
        self._uncommitted_bytes = 0
        self._trim: Trim | None = None
        self._seals: list[tuple[File, SegmentInfo]] = []  # footers written since the last commit began
        self._active_dirty = False
        self._folder_dirty = False
        self._commit: Commit | None = None
        self._spare: Spare | None = None

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

        `known_end` is an offset up to which the log must reach, because it was seen durable up to there (a cursor,
        the store); what is missing below it is damage, however torn it looks.
        `start_offset` is where a log begins of which nothing is there yet. Behind damage the log continues where it is
        proven to have ended, and `.report.damaged` says what cannot be served. Raises DamagedError if nothing says
        where it ended, GapError for segments that overlap, DiskFullError, LogFailedError if the disk fails.
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

        `frames` are the wire's: length table, payloads, and the columns that the bits of `columns` say (1
        keys, 2 attributes, 4 times of delivery), in this order; that they add up was checked by whoever took
        them in. Raises DiskFullError (as if never called), StorageError `batch-too-large`, LogFailedError.
        """
        if self.failed is not None:
            raise self.failed
        total = HEADER_BYTES + sum(map(len, frames))
        active = self._active
        if active is None or (
            active.end + total + self._room_behind(active) > self.settings.segment_bytes_max
        ):
            active = self._roll(total)
        start, end = active.end, active.end + total
        zeros: tuple[Buffer, ...] = ()
        if (behind := end + self._room_behind(active)) > active.zeroed:
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
            # All of it but the room behind it may be there: it must not come back. The room for this was made before.
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

    @staticmethod
    def _room_behind(active: Active) -> int:
        """Return how much room index and footer need behind the next record."""
        return FOOTER_BYTES + index_bytes(len(active.index) + (active.end >= active.index.due))

    def _zero_ahead(self, active: Active, end: int, behind: int) -> None:
        """Write zeros behind the record that will end at `end`: its footer's room up to `behind`, and some more."""
        start = max(active.zeroed, end)
        ahead = min(ZERO_AHEAD_BYTES, max(ZERO_AHEAD_BYTES_MIN, end))
        stop = min(max(start + ahead, behind), self.settings.segment_bytes_max)
        if stop > start:
            self._write(active.file, (_ZEROS[: stop - start],), start)
        active.zeroed = stop

    def rest(self) -> bool:
        """Give back the room that is held for what nobody appends: the next file, and what is behind the last record.

        Return whether a commit has something to do for it. The next append takes the room again.
        """
        active = self._active
        if self._spare is not None and self._commit is None:
            self._spare.cancel()
            self._spare = None
        if active is None or active.cut or self.failed is not None or self.pending or self.committing:
            return False
        behind = active.end + self._room_behind(active)
        try:
            active.file.truncate(behind)
        except OSError as error:
            self._fail(f"cutting {active.file.path} at byte {behind}", error)
            return False
        active.zeroed, active.cut = behind, True
        self._active_dirty = True
        return True

    def _lengthen(self, active: Active) -> None:
        """Give a segment that was cut its full length again, so that a sync has no new length to write each time."""
        try:
            active.file.truncate(self.settings.segment_bytes_max)
        except OSError as error:
            raise self._fail(f"lengthening {active.file.path}", error) from error
        active.cut = False

    def _roll(self, total: int) -> Active:
        """Seal the active segment, if any, and begin the next for a record of `total` bytes."""
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
        salt = salt_of(self.incarnation, base)
        path = f"{self.folder}/{segment_name(base)}"
        file, zeroed = self._new_file(path)
        header = encode_segment_header(
            SegmentHeader(self.incarnation, base, self._clock.time_ms(), topic_crc(self.topic))
        )
        record = encode_header(
            salt, PRODUCERS, (snapshot,), first_offset=base, uncommitted=base - self.durable_end
        )
        end = SEGMENT_HEADER_BYTES + HEADER_BYTES + len(snapshot)
        try:
            self._write(file, (header, record, snapshot), 0)
            if zeroed == 0:
                self._write(file, (_ZEROS[:FOOTER_BYTES],), end)
        except StorageError as error:
            file.close()
            if isinstance(error, DiskFullError):
                self._unlink(path)
            raise
        self._folder_dirty = True
        self._active_dirty = True
        self._active = Active(file, base, salt, end, max(zeroed, end + FOOTER_BYTES), SparseIndex(end))
        return self._active

    def _unlink(self, path: str) -> None:
        try:
            self._disk.unlink(path)
        except OSError as error:
            raise self._fail(f"removing {path}", error) from error

    def _new_file(self, path: str) -> tuple[File, int]:
        """Return a file of zeros under the name `path`, and how far its blocks are written."""
        spare, size = self._spare, self.settings.segment_bytes_max
        try:
            if spare is not None and (file := spare.take()) is not None:
                self._spare = None
                try:
                    self._disk.rename(spare.path, path)
                except FileNotFoundError:  # it was removed meanwhile
                    file.close()
                else:
                    file.path = path
                    return file, size
            return self._disk.create(path, size), 0
        except OSError as error:
            raise self._fail(f"creating {path}", error) from error

    def seal_due(self, now_ms: int) -> bool:
        """Return whether the active segment holds something older than segment_age_ms_max.

        `now_ms` as in `append`.
        """
        active = self._active
        return (
            active is not None
            and active.records > 0
            and now_ms - active.first_timestamp_ms >= self.settings.segment_age_ms_max
        )

    def seal(self) -> None:
        """End the active segment, if it holds something; it is sealed once the next commit has ended."""
        active = self._active
        if active is None or self.failed is not None:
            return
        if active.records == 0:
            return
        uncommitted = self.next_offset - self.durable_end
        index = active.index.encode(active.salt, self.next_offset, uncommitted)
        footer = Footer(
            next_offset=self.next_offset,
            messages=self.next_offset - active.base,
            records=active.records,
            first_timestamp_ms=active.first_timestamp_ms,
            last_timestamp_ms=active.last_timestamp_ms,
            bytes=active.end + len(index) + FOOTER_BYTES,
            max_timestamp_ms=self._log_time_ms,
            index_bytes=len(index),
        )
        self._write(active.file, (index, encode_footer(active.salt, footer, uncommitted)), active.end)
        info = segment_info(active.file.path, active.base, footer)
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
        """Return whether a commit has begun and not ended."""
        return self._commit is not None

    def begin_commit(self) -> Commit | None:
        """Return the commit of everything appended so far; None if there is nothing, one is running, or it failed.

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
        """Take the outcome of `commit.run()` and return the durable end.

        After an error the log is `failed`.
        """
        if commit is not self._commit:
            raise ValueError("that commit is not running")
        self._commit = None
        for file, info in commit.seals:
            file.close()
            if error is None:
                self._sealed.append(info)
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

    def sealed(self) -> tuple[SegmentInfo, ...]:
        """Return the segments that are sealed and synced, oldest first."""
        return tuple(self._sealed)

    def set_aside(self) -> tuple[SegmentInfo, ...]:
        """Return the segments that are sealed and were found damaged when the log was opened, oldest first."""
        return tuple(self._set_aside)

    @property
    def sealed_end(self) -> int:
        """Return up to where the log is sealed, damaged or not."""
        return self.next_offset if self._active is None else self._active.base

    @property
    def damaged(self) -> tuple[DamagedRange, ...]:
        """Return what opening found that was promised and cannot be served."""
        return tuple(one for one in self.report.damaged if one.end > self.start_offset)

    def begin_trim(self, offset: int, retained: int = 0) -> Trim | None:
        """Return the work of deleting whole segments that end at or below `offset`; None if there are none.

        What is below `retained` goes by the topic's retention, which is written down.
        Call `run` on it in any thread, then `end_trim` here; all else may continue in between. The newest sealed
        segment stays until something behind it is durable.
        """
        if self._trim is not None or self.failed is not None:
            return None
        active = self._active
        # Were nothing left, the next opening would not know where offsets go on.
        rest_durable = active is not None and active.base < self.durable_end
        found = droppable(self._sealed, self._set_aside, min(offset, self.durable_end), rest_durable)
        if found:
            noted = min(retained, self.durable_end)
            self._trim = Trim(
                self._disk, self.folder, self.incarnation, found, noted if noted > self.retained else None
            )
        return self._trim

    def end_trim(self, trim: Trim, error: BaseException | None = None) -> tuple[SegmentInfo, ...]:
        """Take the outcome of `trim.run()`; return what was deleted, oldest first. The rest is tried again later."""
        if trim is not self._trim:
            raise ValueError("that trim is not running")
        self._trim = None
        if error is None and trim.retained is not None:
            self.retained = trim.retained
        # Whatever the error was: what was deleted is gone, in order.
        gone = tuple(trim.gone)
        if gone:
            end = gone[-1].end
            self._sealed = [info for info in self._sealed if info.base >= end]
            self._set_aside = [info for info in self._set_aside if info.base >= end]
            sealing = (*(self._commit.seals if self._commit is not None else ()), *self._seals)
            left = [
                info.base for info in (*self._sealed[:1], *self._set_aside[:1], *(one for _, one in sealing))
            ]
            active = self._active
            self.start_offset = min([*left, *([active.base] if active is not None else [])], default=end)
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
        """Return work for a thread that makes the next segment's file ahead of time, or None if none is wanted.

        It takes milliseconds and never raises. Worth asking after each commit. Under flood none is wanted: filling
        it would halve what the disk can take.
        """
        spare, active = self._spare, self._active
        if active is None or active.cut or self.failed is not None:
            return None
        if active.end < self.settings.segment_bytes_max // 4:
            return None
        if spare is not None and not spare.given_up:
            return None
        if self._commit_bytes > ZERO_AHEAD_COMMIT_BYTES_MAX:
            return None
        self._spare = Spare(self._disk, f"{self.folder}/{SPARE_NAME}", self.settings.segment_bytes_max)
        return self._spare

    def prove_end(self) -> None:
        """Leave beside the log up to where it is durable: what is found missing below that later is damage.

        Worth it before a clean close: nothing follows that would say so. A disk that does not take it leaves the log as
        sure of its end as after a crash.
        """
        if self.failed is None and self.durable_end > self._proven_end:
            with suppress(OSError, DiskFullError):
                write_end(self._disk, self.folder, self.incarnation, self.durable_end)
                self._proven_end = self.durable_end

    def close(self) -> None:
        """Close the files.

        What was not committed may or may not be there after; a running commit must end first.
        """
        if self._commit is not None or self._trim is not None:
            raise ValueError("a commit is running" if self._commit is not None else "a trim is running")
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.cancel()
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


def remove_log(disk: Disk, folder: str) -> None:
    """Delete a topic's log permanently, with its folder; a folder that is not there is deleted already."""
    try:
        names = disk.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        disk.unlink(f"{folder}/{name}")
    disk.rmdir(folder)


__all__ = ["Commit", "Trim", "Wal", "WalSettings", "remove_log"]
