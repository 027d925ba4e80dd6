"""What a subscription has acknowledged, and the journal that keeps it. FORMAT.md has the byte tables.

- Everything below the low watermark is acknowledged; above it, exactly what the ranges hold.
- A journal is a snapshot and the acknowledgments since. An acknowledgment stays valid whatever happened to its
  neighbours, so entries behind a damaged one still count. What was lost is delivered again. Nothing is ever skipped.
- The number of failures of an unacknowledged message, and the end of its wait, are kept beside it, for a bounded
  number of messages. If some of this is lost, a message is tried more often, or sooner, never less.
- Seeking replaces the file: no acknowledgment from before can apply afterwards. If that fails, the previous file is
  restored.
- `flush` makes it survive the process, `sync` the machine.
- After a failure, and after a start, the content of a file does not prove that the disk has it: a page cache may show
  what a failed sync has lost. It is written once more before it counts as synced.

Threads: `Sync.run` and `Compaction.run` may run in any thread, one of them at a time; everything else on the owner's.
"""

from __future__ import annotations

import contextlib
import os.path
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from ister.errors import DamagedError, DiskFullError, LogFailedError, StorageError
from ister.storage.checksum import extend
from ister.storage.disk import Disk, File
from ister.storage.ranges import RangeSet
from ister.storage.reserve import Reserve
from ister.words import counted

T = TypeVar("T")

VERSION: Final = 2
VERSIONS: Final = (1, 2)  # 1 had no failures; a journal of it is rewritten when it is opened
JOURNAL_HEADER_BYTES: Final = 32
ENTRY_HEADER_BYTES: Final = 16
SNAPSHOT: Final = 1
ACKNOWLEDGED: Final = 2
FAILED: Final = 3
WAITING: Final = 4
FAILURES_MAX: Final = (
    20_000  # messages whose failures are kept: some 5 MB in memory, 64 bytes each on disk at most
)
# A journal is rewritten when it is longer than this and than twice what it would become.
COMPACT_BYTES_MIN: Final = 1 << 20
# On a full disk as soon as that gives a block back.
FULL_BYTES_MIN: Final = 4096

_MAGIC = b"ISTERCUR"
_HEADER = struct.Struct("<8sHH16s")
_ENTRY = struct.Struct("<IB7x")  # body bytes, kind; the entry's CRC stands before them
_CRC = struct.Struct("<I")
_PAIR = struct.Struct("<qq")
_FAILED = struct.Struct("<qqqq")  # first, end, deliveries, failures
_WAITING = struct.Struct("<qqqq")  # first, end, until when (unix ms; 0: no more), how long (ms; 0: not known)


class Cursor:
    """What is acknowledged of one log: everything below `low`, and `ranges` above it."""

    __slots__ = ("failed", "low", "ranges", "start", "waits")

    def __init__(self, start: int, low: int | None = None, ranges: RangeSet | None = None) -> None:
        self.start = start
        self.low = start if low is None else low
        self.ranges = RangeSet() if ranges is None else ranges
        self.failed: dict[
            int, tuple[int, int]
        ] = {}  # offset: (deliveries, failures), of what is unacknowledged
        # offset: not before (unix ms), and how long that was when it was asked for (ms; 0: not known), of some of
        # what failed
        self.waits: dict[int, tuple[int, int]] = {}

    def acknowledge(self, first: int, end: int) -> int:
        """Acknowledge [first, end); return how many of them were not before."""
        low = self.low
        if end <= low:
            return 0
        if self.failed:
            self._forget_failures(first, end)
        if first <= low and (
            (above := self.ranges.first) is None or above > end
        ):  # in order, nothing above: the usual way
            self.low = end
            return end - low
        new = self.ranges.add(first if first > low else low, end)
        self.low = self.ranges.pop_through(low)
        return new

    def fail(self, first: int, end: int, deliveries: int, failures: int) -> bool:
        """Record how often messages were delivered and failed; False where so many have that no more are kept."""
        if len(self.failed) + end - first > FAILURES_MAX and (
            end - first > FAILURES_MAX
            or len(self.failed) + sum(offset not in self.failed for offset in range(first, end))
            > FAILURES_MAX
        ):
            return False
        for begin, stop in self.pending(first, end):
            for offset in range(begin, stop):
                self.failed[offset] = (deliveries, failures)
        return True

    def wait(self, first: int, end: int, until_ms: int, wait_ms: int = 0) -> None:
        """Record until when messages wait that failed (0: no more), and how long that is.

        Of others nothing is kept, so that it is bounded.
        """
        failed, waits = self.failed, self.waits
        for offset in range(first, end) if end - first <= len(failed) else sorted(failed):
            if until_ms and first <= offset < end and offset in failed:
                waits[offset] = until_ms, wait_ms
            elif first <= offset < end:
                waits.pop(offset, None)

    def _forget_failures(self, first: int, end: int) -> None:
        failed = self.failed
        if end - first <= len(failed):
            for offset in range(first, end):
                if failed.pop(offset, None) is not None:
                    self.waits.pop(offset, None)
        else:
            self.failed = {offset: known for offset, known in failed.items() if not first <= offset < end}
            self.waits = {offset: wait for offset, wait in self.waits.items() if not first <= offset < end}

    def is_acknowledged(self, offset: int) -> bool:
        """Return whether one offset is acknowledged."""
        return offset < self.low or offset in self.ranges

    def pending(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [first, end) that are not acknowledged."""
        return self.ranges.gaps(max(first, self.low), end)

    def unacknowledged(self, end: int) -> int:
        """Return how many offsets below `end` are not acknowledged."""
        return max(0, end - self.low - self.ranges.overlap(self.low, end))

    def copy(self) -> Cursor:
        """Return a cursor of its own in the same place."""
        twin = Cursor(self.start, self.low, self.ranges.copy())
        twin.failed, twin.waits = dict(self.failed), dict(self.waits)
        return twin

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cursor):
            return NotImplemented
        mine = (self.start, self.low, self.ranges, self.failed, self.waits)
        return mine == (other.start, other.low, other.ranges, other.failed, other.waits)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Cursor(low {self.low}, {counted(len(self.ranges), 'range')} above)"


@dataclass(frozen=True, slots=True)
class CursorReport:
    """What opening a journal found.

    `torn_bytes` were cut off at its end. `damaged_bytes` lay between valid entries; the file was kept as
    `kept_as`.
    """

    entries: int = 0
    torn_bytes: int = 0
    damaged_bytes: int = 0
    kept_as: str | None = None


def _entry(salt: int, kind: int, body: bytes) -> bytes:
    front = _ENTRY.pack(len(body), kind)
    return _CRC.pack(extend(extend(salt, front), body)) + front + body


def _file_header(incarnation: bytes, version: int = VERSION) -> bytes:
    front = _HEADER.pack(_MAGIC, version, JOURNAL_HEADER_BYTES, incarnation)
    return front + _CRC.pack(extend(0, front))


def encode_journal(incarnation: bytes, cursor: Cursor) -> bytes:
    """Return a journal that holds nothing but this cursor."""
    header = _file_header(incarnation)
    (salt,) = _CRC.unpack(header[-4:])
    body = _PAIR.pack(cursor.start, cursor.low) + cursor.ranges.encode()
    failed, waits = _failures_of(cursor), _waits_of(cursor)
    return b"".join(
        [
            header,
            _entry(salt, SNAPSHOT, body),
            _entry(salt, FAILED, failed) if failed else b"",
            _entry(salt, WAITING, waits) if waits else b"",
        ]
    )


def _failures_of(cursor: Cursor) -> bytes:
    """Return the body of an entry with all failures that are known, in runs."""
    runs: list[tuple[int, int, int, int]] = []
    for offset in sorted(cursor.failed):
        known = cursor.failed[offset]
        if runs and runs[-1][1] == offset and runs[-1][2:] == known:
            runs[-1] = (runs[-1][0], offset + 1, *known)
        else:
            runs.append((offset, offset + 1, *known))
    return b"".join([_FAILED.pack(*run) for run in runs])


def _waits_of(cursor: Cursor) -> bytes:
    """Return the body of an entry with all that is known of until when messages wait, in runs."""
    runs: list[tuple[int, int, int, int]] = []
    for offset in sorted(cursor.waits):
        wait = cursor.waits[offset]
        if runs and runs[-1][1:] == (offset, *wait):
            runs[-1] = (runs[-1][0], offset + 1, *wait)
        else:
            runs.append((offset, offset + 1, *wait))
    return b"".join([_WAITING.pack(*run) for run in runs])


def _parse_entry(journal: bytes, position: int, salt: int) -> tuple[int, bytes] | None:
    """Return kind and body of the entry at `position`, or None if there is no valid one."""
    start = position + ENTRY_HEADER_BYTES
    if start > len(journal):
        return None
    (crc,) = _CRC.unpack_from(journal, position)
    body_bytes, kind = _ENTRY.unpack_from(journal, position + 4)
    if body_bytes % 16 or start + body_bytes > len(journal):
        return None
    if extend(salt, journal[position + 4 : start + body_bytes]) != crc:
        return None
    return kind, journal[start : start + body_bytes]


def parse_journal(path: str, journal: bytes, incarnation: bytes) -> tuple[Cursor, CursorReport, int]:
    """Return the cursor a journal holds, what was found, and the byte behind its last valid entry.

    Raises DamagedError if it belongs to another topic, or if its snapshot is not what was written.
    """
    if journal[:JOURNAL_HEADER_BYTES] not in [_file_header(incarnation, version) for version in VERSIONS]:
        what = "belongs to another topic" if journal[:8] == _MAGIC else "is not a cursor's journal"
        raise DamagedError(f"{path} {what}, or its first {JOURNAL_HEADER_BYTES} bytes are damaged")
    (salt,) = _CRC.unpack_from(journal, JOURNAL_HEADER_BYTES - 4)
    position = end = JOURNAL_HEADER_BYTES
    cursor: Cursor | None = None
    entries = damaged_bytes = 0
    while position + ENTRY_HEADER_BYTES <= len(journal):
        found = _parse_entry(journal, position, salt)
        if found is None or (cursor is None) != (found[0] == SNAPSHOT):
            if cursor is None:
                raise DamagedError(
                    f"{path} is damaged at byte {position}: the cursor's snapshot does not match its checksum"
                )
            position += 16  # all lengths are multiples of 16, so the next entry can only begin at one
            continue
        kind, body = found
        if kind == SNAPSHOT:
            start, low = _PAIR.unpack_from(body)
            cursor = Cursor(start, low, RangeSet.decode(body[16:]))
        elif cursor is not None and kind == ACKNOWLEDGED:
            for first, stop in _PAIR.iter_unpack(body):
                cursor.acknowledge(first, stop)
        elif cursor is not None and kind == FAILED and len(body) % _FAILED.size == 0:
            for first, stop, deliveries, failures in _FAILED.iter_unpack(body):
                cursor.fail(first, stop, deliveries, failures)
        elif cursor is not None and kind == WAITING and len(body) % _WAITING.size == 0:
            for first, stop, until_ms, wait_ms in _WAITING.iter_unpack(body):
                cursor.wait(first, stop, until_ms, wait_ms)
        damaged_bytes += position - end
        entries += 1
        position += ENTRY_HEADER_BYTES + len(body)
        end = position
    if cursor is None:
        raise DamagedError(f"{path} is cut short: it holds no cursor")
    torn = len(journal) - end
    return cursor, CursorReport(entries=entries, torn_bytes=torn, damaged_bytes=damaged_bytes), end


def highest_acknowledged(disk: Disk, folder: str, incarnation: bytes) -> int:
    """Return the end of what the journals in a topic's folder acknowledge: the log was durable up to there.

    What is not a journal of the topic, or is damaged, says nothing. Raises OSError.
    """
    highest = 0
    for name in disk.listdir(folder) if disk.exists(folder) else ():
        if not name.rpartition(".")[2].isdecimal():  # its name ends with when the subscription was created
            continue
        try:
            cursor, *_ = parse_journal(name, disk.read(f"{folder}/{name}"), incarnation)
        except (DamagedError, FileNotFoundError):
            continue
        highest = max(highest, cursor.low, cursor.ranges.end or 0)
    return highest


class Compaction:
    """A shorter journal on its way: `run` writes it, in any thread."""

    __slots__ = ("_disk", "_encoded", "file", "path", "size")

    def __init__(self, disk: Disk, path: str, encoded: bytes) -> None:
        self._disk, self.path, self._encoded = disk, path, encoded
        self.size = len(encoded)
        self.file: File | None = None

    def run(self) -> None:
        """Write and sync the new file. Raises OSError, DiskFullError; the old one continues then."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self.path)
        file = self._disk.create(self.path)
        self.file = file
        try:
            file.pwritev((self._encoded,), 0)
            file.datasync()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Leave nothing of it, on a full disk least of all."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
            with contextlib.suppress(OSError):
                self._disk.unlink(self.path)

    def put(self, path: str) -> File:
        """Give the new file the name `path`, durably, and return it. Raises OSError, DiskFullError."""
        file = self.file
        assert file is not None
        try:
            self._disk.rename(self.path, path)
        except BaseException:
            self.give_up()
            raise
        file.path = path
        try:
            self._disk.sync_folder(os.path.dirname(path))
        except BaseException:
            file.close()
            raise
        return file


class Sync:
    """Everything flushed until it began; `run` makes it durable, in any thread."""

    __slots__ = ("_disk", "_file", "_folder", "_path", "_unproven")

    def __init__(self, disk: Disk, path: str, file: File, *, folder: bool, unproven: bytes) -> None:
        self._disk, self._path, self._file = disk, path, file
        self._folder, self._unproven = folder, unproven

    def run(self) -> None:
        """Sync the file, and the folder if its names may not be on the disk. Raises OSError: nothing counts then."""
        if self._unproven:
            self._file.pwritev((self._unproven,), 0)
        self._file.datasync()
        if self._folder:
            self._disk.sync_folder(os.path.dirname(self._path))


def _fresh_file(disk: Disk, path: str, incarnation: bytes, cursor: Cursor) -> tuple[File, int]:
    """Put a journal of nothing but `cursor` at `path`, durably; return the file and its length."""
    fresh = Compaction(disk, f"{path}.new", encode_journal(incarnation, cursor))
    fresh.run()
    return fresh.put(path), fresh.size


def _keep_damaged(disk: Disk, path: str, contents: bytes) -> str:
    """Give a damaged journal a second name, durably, and return that; the first stays until it is replaced."""
    number = 0
    while disk.exists(kept := f"{path}.damaged-{number}"):
        number += 1
    try:
        disk.link(path, kept)
    except OSError:  # there are file systems without links
        copy = disk.create(kept)
        try:
            copy.pwritev((contents,), 0)
            copy.datasync()
        except BaseException:
            disk.unlink(kept)
            raise
        finally:
            copy.close()
    return kept


class CursorJournal:
    """The file behind one cursor."""

    in_memory = False  # there is a file, which has to be synced
    reserve: Reserve | None = None  # what is given up where the disk is full: acknowledgments go on

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
        (self._salt,) = _CRC.unpack(_file_header(incarnation)[-4:])
        self._noted = RangeSet()
        self._failures: list[bytes] = []  # noted
        self._waits: list[bytes] = []  # the same
        self._since: list[bytes] | None = None  # entries flushed since a compaction began
        self._compaction: Compaction | None = None
        self._sync: Sync | None = None
        # What was found when it was opened, and its name, may be in the page cache alone.
        self._unproven = unproven
        self._folder_dirty = bool(unproven)
        self._closed = False
        self.failed: StorageError | None = None

    @classmethod
    def open(cls, disk: Disk, path: str, incarnation: bytes, start: int) -> CursorJournal:
        """Open the journal at `path`, or create one that begins at offset `start`; `.cursor` is what it holds.

        Raises DamagedError if nobody can say any more what was acknowledged, DiskFullError, LogFailedError.
        """
        if len(incarnation) != 16:
            raise ValueError(f"an incarnation has 16 bytes, not {len(incarnation)}")
        try:
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(f"{path}.new")
            if not disk.exists(path):
                disk.makedirs(os.path.dirname(path))
                cursor = Cursor(start)
                return cls(
                    disk,
                    path,
                    incarnation,
                    cursor,
                    CursorReport(),
                    *_fresh_file(disk, path, incarnation, cursor),
                )
            journal = disk.read(path)
            cursor, report, end = parse_journal(path, journal, incarnation)
            if report.damaged_bytes:
                kept = _keep_damaged(disk, path, journal)
                report = CursorReport(report.entries, report.torn_bytes, report.damaged_bytes, kept)
            if report.damaged_bytes or journal[:JOURNAL_HEADER_BYTES] != _file_header(incarnation):
                return cls(
                    disk, path, incarnation, cursor, report, *_fresh_file(disk, path, incarnation, cursor)
                )
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
        """Return a journal of the same cursor in place of this one, which failed: all of it rewritten, and synced.

        Nothing is read: what a file shows after a failed sync, or a failed move, is not what the disk has, nor what
        counts. Raises DiskFullError, LogFailedError: this one is as it was then, and failed still.
        """
        if self.busy:
            raise ValueError("a sync or a compaction is running")
        cursor, report = self.cursor, CursorReport()
        try:
            placed = self._with_reserve(lambda: _fresh_file(self._disk, self.path, self.incarnation, cursor))
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

    def note_failed(
        self, first: int, end: int, deliveries: int, failures: int, until_ms: int = 0, wait_ms: int = 0
    ) -> bool:
        """Record how often messages were delivered and failed, in the next `flush`.

        And until when they wait (unix ms), and how long that is: a clock may be set before anybody reads it.
        Return False where so many have failed that no more are kept.
        """
        if not self.cursor.fail(first, end, deliveries, failures):
            return False
        if until_ms or self.cursor.waits:
            self.cursor.wait(first, end, until_ms, wait_ms)
            self._waits.append(_WAITING.pack(first, end, until_ms, wait_ms))
            if len(self._waits) > 2 * FAILURES_MAX:
                self._waits = [_waits_of(self.cursor)]
        self._failures.append(_FAILED.pack(first, end, deliveries, failures))
        if (
            len(self._failures) > 2 * FAILURES_MAX
        ):  # nothing can be written for long: the last word of each is enough
            self._failures = [_failures_of(self.cursor)]
        return True

    @property
    def noted(self) -> bool:
        """Return whether there is anything to flush."""
        return bool(self._noted or self._failures)

    def flush(self) -> int:
        """Write everything noted since, as an entry of each kind; return their bytes.

        Raises DiskFullError (all of it stays noted, for the next flush) and LogFailedError.
        """
        if self.failed is not None:
            raise self.failed
        if not self.noted:
            return 0
        entry = _entry(self._salt, ACKNOWLEDGED, self._noted.encode()) if self._noted else b""
        if self._failures:
            entry += _entry(self._salt, FAILED, b"".join(self._failures))
        if self._waits:
            entry += _entry(self._salt, WAITING, b"".join(self._waits))
        try:
            appended = self._append(entry)
        except OSError as error:
            raise self._fail("written", error) from error
        if not appended:  # the file was rewritten, with all of it
            return len(entry)
        self._end += len(entry)
        self._noted, self._failures, self._waits = RangeSet(), [], []
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
        """Write an entry, on a full disk with what is in reserve; False where the file was rewritten instead."""
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
            # rewriting it needs a block before those of the old file are free, and makes it short.
            appends = self.busy or self._end <= max(FULL_BYTES_MIN, 2 * self._needed())
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
        file, self._end = _fresh_file(self._disk, self.path, self.incarnation, self.cursor)
        self._file.close()
        self._file = file
        self._noted, self._failures, self._waits = RangeSet(), [], []
        self._unproven, self._folder_dirty = b"", False

    def _needed(self) -> int:
        """Return about how long the file would be if it were rewritten."""
        ranges, failed = len(self.cursor.ranges), len(self.cursor.failed) + len(self.cursor.waits)
        return JOURNAL_HEADER_BYTES + 3 * ENTRY_HEADER_BYTES + 16 * (1 + ranges) + _FAILED.size * failed

    def _fail(self, done: str, error: BaseException) -> LogFailedError:
        failed = LogFailedError(
            f"the cursor {self.path} cannot be {done}: {error}. Acknowledgments since may be forgotten; open it again"
        )
        self.failed = failed
        return failed

    def begin_sync(self) -> Sync | None:
        """Return the work of making everything flushed last; None while something runs, and where the journal failed.

        Call `run` on it in any thread, then `end_sync` here; notes and flushes may continue in between.
        """
        if self.busy or self.failed is not None:
            return None
        self._sync = Sync(
            self._disk, self.path, self._file, folder=self._folder_dirty, unproven=self._unproven
        )
        return self._sync

    def end_sync(self, sync: Sync, error: BaseException | None) -> None:
        """Take the outcome of `sync.run()`; after an error the journal is `failed`, and has to be rewritten."""
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
        """Return the work of rewriting a journal that has grown too long, None if that is not due or something runs.

        Call `run` on it in any thread, then `end_compaction` here; notes and flushes may continue in between.
        """
        if self.busy or self.failed is not None or self._end <= COMPACT_BYTES_MIN:
            return None
        if self._end <= 2 * self._needed():
            return None
        self._since = []
        self._compaction = Compaction(
            self._disk, f"{self.path}.new", encode_journal(self.incarnation, self.cursor)
        )
        return self._compaction

    def end_compaction(self, compaction: Compaction, error: BaseException | None) -> bool:
        """Put the new file in place of the old; say whether it was. `sync` makes that last too."""
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
        """Rewrite the journal synchronously if that is due; say whether it was."""
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

        Raises DiskFullError and LogFailedError: the cursor is where it was then, here and in the file; only where the
        disk takes neither the new file's name nor the old contents once more may a power failure show the new place.
        """
        if self.busy:
            raise ValueError("a sync or a compaction is running")
        if self.failed is not None:
            raise self.failed
        moved = Cursor(offset)
        fresh = Compaction(self._disk, f"{self.path}.new", encode_journal(self.incarnation, moved))
        try:
            self._with_reserve(fresh.run)
            # A folder that cannot be synced is found out while nothing has changed.
            self._disk.sync_folder(os.path.dirname(self.path))
        except OSError as error:
            fresh.give_up()
            raise self._fail("moved", error) from error
        try:
            file = fresh.put(self.path)
        except OSError as error:
            with contextlib.suppress(
                OSError, DiskFullError
            ):  # perhaps the name is there: put the old place back
                file, self._end = _fresh_file(self._disk, self.path, self.incarnation, self.cursor)
                self._file.close()
                self._file = file
            raise self._fail("moved", error) from error
        self._file.close()
        self._file, self._end = file, fresh.size
        self.cursor = moved
        self._noted, self._failures, self._waits = RangeSet(), [], []
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
        """Flush what can be, and close the file, which waits for what runs on it."""
        if self.failed is None:
            with contextlib.suppress(StorageError):
                self.flush()
            self.failed = LogFailedError(f"the cursor {self.path} is closed")
        self._closed = True
        if not self.busy:
            self._file.close()
