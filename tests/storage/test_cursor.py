"""Tests of cursors and their journals."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.errors import DamagedError, DiskFullError, LogFailedError
from ister.storage.checksum import extend
from ister.storage.cursor import Cursor
from ister.storage.cursor_format import (
    ENTRY_HEADER_BYTES,
    JOURNAL_HEADER_BYTES,
    encode_journal,
    parse_journal,
)
from ister.storage.cursor_journal import COMPACT_BYTES_MIN, CursorJournal
from ister.storage.disk import LocalDisk
from ister.storage.ranges import RangeSet
from ister.storage.simulated import SimulatedDisk

INCARNATION = b"i" * 16


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return the path of a journal."""
    return str(tmp_path / "cursors" / "billing")


@given(st.integers(0, 10), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_a_cursor_knows_exactly_what_was_acknowledged(
    start: int, acknowledged: list[tuple[int, int]]
) -> None:
    """It is a set of numbers, kept as a low watermark and ranges; everything below the start is in it."""
    cursor, model = Cursor(start), set(range(start))
    for first, end in acknowledged:
        numbers = set(range(first, end))
        assert cursor.acknowledge(first, end) == len(numbers - model)
        model |= numbers
        assert cursor.ranges.first is None or cursor.ranges.first > cursor.low
        assert cursor.low == min(set(range(60)) - model)
    for offset in range(50):
        assert cursor.is_acknowledged(offset) == (offset in model)
    assert {n for first, end in cursor.pending(5, 35) for n in range(first, end)} == set(range(5, 35)) - model
    assert cursor.unacknowledged(45) == len(set(range(45)) - model)
    assert cursor.copy() == cursor


def test_a_journal_comes_back_as_it_was_left(disk: LocalDisk, path: str) -> None:
    """Everything flushed is there when it is opened again, with the start of the subscription."""
    journal = CursorJournal.open(disk, path, INCARNATION, 5)
    assert (journal.cursor.low, journal.cursor.start) == (5, 5)
    assert journal.note(7, 9) == 2
    assert journal.note(8, 10) == 1
    assert journal.noted
    assert journal.flush() > 0
    assert journal.flush() == 0
    journal.sync()
    journal.note(5, 6)
    journal.close()
    again = CursorJournal.open(disk, path, INCARNATION, 99)
    assert again.cursor == Cursor(5, 6, RangeSet([(7, 10)]))
    assert again.cursor.start == 5
    assert again.report.torn_bytes == 0
    again.close()
    with pytest.raises(LogFailedError):
        again.flush()


def test_a_journal_cut_at_any_length_repeats_and_never_skips(disk: LocalDisk, path: str) -> None:
    """Cut anywhere after its snapshot, a journal has the state of an earlier moment, and can be continued."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    moments = [journal.cursor.copy()]
    sizes = [journal.size]
    for first in (0, 4, 2, 9, 8):
        journal.note(first, first + 1)
        journal.flush()
        moments.append(journal.cursor.copy())
        sizes.append(journal.size)
    journal.close()
    whole = disk.read(path)
    for length in range(len(whole) + 1):
        Path(path).write_bytes(whole[:length])
        if length < sizes[0]:
            with pytest.raises(DamagedError):
                CursorJournal.open(disk, path, INCARNATION, 0)
            continue
        again = CursorJournal.open(disk, path, INCARNATION, 0)
        entries = max(number for number, size in enumerate(sizes) if size <= length)
        assert again.cursor == moments[entries]
        assert again.report.torn_bytes == length - sizes[entries]
        again.note(20, 21)
        again.close()
        again = CursorJournal.open(disk, path, INCARNATION, 0)
        assert again.cursor.is_acknowledged(20)
        assert again.report.torn_bytes == 0
        again.close()


def test_each_flipped_byte_only_repeats_or_is_reported(disk: LocalDisk, path: str, tmp_path: Path) -> None:
    """It never adds an acknowledgment; entries after it count, and the damaged file is kept."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    for first in (0, 4, 2):
        journal.note(first, first + 1)
        journal.flush()
    journal.close()
    whole = disk.read(path)
    snapshot_end = JOURNAL_HEADER_BYTES + ENTRY_HEADER_BYTES + 16
    acknowledged = {0, 4, 2}
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        Path(path).write_bytes(flipped)
        if position < snapshot_end:
            with pytest.raises(DamagedError, match="billing"):
                CursorJournal.open(disk, path, INCARNATION, 0)
            assert disk.read(path) == flipped
            continue
        again = CursorJournal.open(disk, path, INCARNATION, 0)
        found = {offset for offset in range(50) if again.cursor.is_acknowledged(offset)}
        assert len(found) == 2
        assert found < acknowledged
        if again.report.damaged_bytes:
            assert again.report.damaged_bytes == ENTRY_HEADER_BYTES + 16
            assert again.report.kept_as is not None
            assert disk.read(again.report.kept_as) == flipped
            disk.unlink(again.report.kept_as)
        else:
            assert again.report.torn_bytes == ENTRY_HEADER_BYTES + 16
        again.close()


def test_a_journal_of_another_topic_is_refused(disk: LocalDisk, path: str) -> None:
    """Acknowledgments of a deleted topic never apply to its successor."""
    CursorJournal.open(disk, path, INCARNATION, 0).close()
    with pytest.raises(DamagedError, match="another topic"):
        CursorJournal.open(disk, path, b"j" * 16, 0)
    Path(path).write_bytes(b"something else entirely, of some length that is enough")
    with pytest.raises(DamagedError, match="not a cursor's journal"):
        CursorJournal.open(disk, path, INCARNATION, 0)


def test_seeking_forgets_all_acknowledgments_at_once(disk: LocalDisk, path: str) -> None:
    """After a seek only later acknowledgments count, also after opening again."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    journal.note(0, 100)
    journal.flush()
    journal.note(200, 201)
    journal.seek(30)
    assert journal.cursor == Cursor(30)
    assert not journal.noted
    journal.note(31, 32)
    journal.close()
    again = CursorJournal.open(disk, path, INCARNATION, 0)
    assert again.cursor == Cursor(30, 30, RangeSet([(31, 32)]))
    again.close()


def test_a_long_journal_is_rewritten_and_nothing_noted_meanwhile_is_lost(disk: LocalDisk, path: str) -> None:
    """Compaction shortens the file; entries written while it runs are in the new file."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.begin_compaction() is None
    offset = 0
    while journal.size <= COMPACT_BYTES_MIN:
        for _ in range(500):
            journal.note(offset + 1, offset + 2)
            offset += 2
        journal.flush()
        journal.note(0, offset)
    compaction = journal.begin_compaction()
    assert compaction is not None
    assert journal.begin_compaction() is None
    with pytest.raises(ValueError, match="compaction is running"):
        journal.seek(0)
    journal.note(offset + 10, offset + 11)
    journal.flush()
    compaction.run()
    journal.note(offset + 20, offset + 21)
    journal.flush()
    assert journal.end_compaction(compaction, None)
    assert not journal.compacting
    assert journal.size < 1000
    journal.note(offset + 30, offset + 31)
    journal.flush()
    journal.sync()
    expected = journal.cursor.copy()
    assert len(expected.ranges) == 3
    journal.close()
    again = CursorJournal.open(disk, path, INCARNATION, 0)
    assert again.cursor == expected
    assert not again.compact()
    again.close()


def test_a_compaction_that_fails_changes_nothing(disk: LocalDisk, path: str) -> None:
    """If the new file cannot be written, the old one stays in use."""
    simulated = SimulatedDisk()
    journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    for offset in range(0, 100_000, 2):
        journal.note(offset + 1, offset + 2)
        if offset % 4 == 0:
            journal.flush()
    journal.note(0, 100_000)
    journal.flush()
    simulated.room = 0
    assert not journal.compact()
    assert not journal.compacting
    simulated.room = None
    journal.note(100_001, 100_002)
    journal.flush()
    assert journal.compact()
    expected = journal.cursor.copy()
    journal.close()
    again = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    assert again.cursor == expected
    again.close()
    assert simulated.open_files == 0


def test_a_full_disk_keeps_acknowledgments_noted(disk: LocalDisk) -> None:
    """Acknowledgments are kept in memory while the disk is full, and written when there is room."""
    simulated = SimulatedDisk()
    journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    simulated.room = 20
    journal.note(0, 5)
    with pytest.raises(DiskFullError):
        journal.flush()
    assert journal.note(7, 8) == 1
    with pytest.raises(DiskFullError):
        journal.flush()
    simulated.room = None
    journal.flush()
    journal.close()
    again = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    assert again.cursor == Cursor(0, 5, RangeSet([(7, 8)]))
    again.close()


def test_a_failed_write_or_sync_fails_the_journal(disk: LocalDisk) -> None:
    """After a failed write nothing more is written; opening again finds what was there before."""
    for failing in ("write", "sync"):
        simulated = SimulatedDisk()
        journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
        journal.note(0, 5)
        journal.flush()
        journal.sync()
        journal.note(5, 6)

        def fails(operation: str, path: str, failing: str = failing) -> None:
            if operation == failing:
                raise OSError(errno.EIO, "no")

        simulated.on_operation = fails

        def write_out(journal: CursorJournal = journal) -> None:
            journal.flush()
            journal.sync()

        with pytest.raises(LogFailedError):
            write_out()
        simulated.on_operation = None
        with pytest.raises(LogFailedError):
            journal.flush()
        journal.close()
        again = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
        assert again.cursor.low in (5, 6)
        again.close()


def test_power_loss_repeats_and_never_skips() -> None:
    """Whichever unsynced part survives, only acknowledged messages count, and nothing synced is lost."""
    for seed in range(150):
        random = Random(seed)
        disk = SimulatedDisk()
        journal = CursorJournal.open(disk, "/data/billing", INCARNATION, 10)
        acknowledged, synced = set(range(10)), set(range(10))
        for _ in range(random.randint(0, 40)):
            first = random.randrange(60)
            end = first + random.randint(1, 5)
            journal.note(first, end)
            acknowledged |= set(range(first, end))
            if random.random() < 0.5:
                journal.flush()
                if random.random() < 0.5:
                    journal.sync()
                    synced = set(acknowledged)
            if random.random() < 0.05:
                start = random.randrange(30)
                journal.seek(start)
                acknowledged, synced = set(range(start)), set(range(start))
        again = CursorJournal.open(disk.power_loss(random), "/data/billing", INCARNATION, 10)
        found = {offset for offset in range(100) if again.cursor.is_acknowledged(offset)}
        assert synced <= found <= acknowledged, seed
        again.close()


@given(st.integers(0, 2**40), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=9))
def test_a_snapshot_holds_the_whole_cursor(start: int, acknowledged: list[tuple[int, int]]) -> None:
    """Parsing is the inverse of encoding for a journal of one snapshot."""
    cursor = Cursor(start)
    for first, end in acknowledged:
        cursor.acknowledge(start + first, start + end)
    encoded = encode_journal(INCARNATION, cursor)
    again, report, end = parse_journal("x", encoded, INCARNATION)
    assert again == cursor
    assert (report.entries, report.torn_bytes, end) == (1, 0, len(encoded))


def test_failures_outlast_everything_but_the_acknowledgment(disk: LocalDisk, path: str) -> None:
    """The later of two entries for a message counts; seeks, acknowledgments and compaction drop what is not needed."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    journal.note_failed(3, 6, 1, 1)
    journal.note_failed(4, 5, 2, 2)
    journal.note(5, 6)
    journal.close()
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.cursor.failed == {3: (1, 1), 4: (2, 2)}
    assert parse_journal("x", encode_journal(INCARNATION, journal.cursor), INCARNATION)[0] == journal.cursor
    journal.note(0, 4)
    assert journal.cursor.failed == {4: (2, 2)}
    journal.seek(0)
    assert journal.cursor.failed == {}
    journal.close()
    assert CursorJournal.open(disk, path, INCARNATION, 0).cursor.failed == {}


def test_no_more_failures_are_kept_than_there_is_room_for(
    disk: LocalDisk, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages over the limit are tried more often, never less."""
    monkeypatch.setattr("ister.storage.cursor.FAILURES_MAX", 10)
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.note_failed(0, 8, 1, 1)
    assert not journal.note_failed(8, 12, 1, 1)
    assert journal.note_failed(8, 10, 1, 1)
    journal.note(0, 5)
    assert journal.note_failed(10, 15, 1, 1)
    assert sorted(journal.cursor.failed) == list(range(5, 15))


def test_failures_that_cannot_be_written_for_long_do_not_pile_up(
    disk: LocalDisk, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk only the last entry of each message is kept, and written once there is room."""
    monkeypatch.setattr("ister.storage.cursor_journal.FAILURES_MAX", 10)
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    for failures in range(1, 500):
        assert journal.note_failed(failures % 10, failures % 10 + 1, failures + 1, failures)
    assert len(journal._failures) < 30
    journal.flush()
    journal.close()
    again = CursorJournal.open(disk, path, INCARNATION, 0)
    assert again.cursor.failed == {number % 10: (number + 1, number) for number in range(490, 500)}
    again.close()


def failing(operation: str, *numbers: int) -> Callable[[str, str], None]:
    """Return a function that lets the given calls of an operation fail, counted from 0; none given: all of them."""
    count = iter(range(1 << 30))

    def fails(happening: str, path: str) -> None:
        if happening == operation and (next(count) in numbers or not numbers):
            raise OSError(errno.EIO, "no", path)

    return fails


@pytest.mark.parametrize("numbers", [(), (0,), (1,), (1, 2)])
@pytest.mark.parametrize("operation", ["sync_folder", "sync", "write", "rename"])
def test_a_move_that_fails_is_not_in_force_when_the_journal_is_opened_again(
    operation: str, numbers: tuple[int, ...]
) -> None:
    """Whichever write of a seek forward fails, and however often: unacknowledged messages are delivered."""
    simulated = SimulatedDisk()
    journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    journal.note(0, 5)
    journal.note(7, 9)
    journal.flush()
    journal.sync()
    simulated.on_operation = failing(operation, *numbers)
    try:
        journal.seek(100)
    except LogFailedError:
        expected = Cursor(0, 5, RangeSet([(7, 9)]))
    else:
        expected = Cursor(100)
    assert journal.cursor == expected
    journal.close()
    simulated.on_operation = None
    again = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    assert again.cursor == expected
    again.close()
    assert simulated.open_files == 0


def test_a_journal_written_anew_after_a_failed_sync_is_on_the_disk() -> None:
    """What the page cache shows after a failed sync is no proof: everything is written once more."""
    for seed in range(40):
        simulated = SimulatedDisk()
        journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
        journal.note(0, 5)
        journal.flush()
        simulated.on_operation = failing("sync")
        with pytest.raises(LogFailedError):
            journal.sync()
        simulated.on_operation = None
        journal = journal.written_anew()
        journal.note(5, 6)
        journal.flush()
        journal.sync()
        lost = simulated.power_loss(Random(seed))
        assert CursorJournal.open(lost, "/data/billing", INCARNATION, 0).cursor.low == 6
        journal.close()
        assert simulated.open_files == 0


def test_what_a_start_found_is_written_once_more_before_it_counts_as_synced() -> None:
    """The process before may have died of a failed sync, or before the file's name was durable."""
    for seed in range(40):
        simulated = SimulatedDisk()
        journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
        journal.note(0, 5)
        journal.flush()
        simulated.on_operation = failing("sync")
        with pytest.raises(LogFailedError):
            journal.sync()
        simulated.on_operation = None
        again = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
        again.sync()
        lost = simulated.power_loss(Random(seed))
        assert CursorJournal.open(lost, "/data/billing", INCARNATION, 0).cursor.low == 5


def test_one_thing_runs_on_a_journal_at_a_time() -> None:
    """The end of a compaction would close the file during the sync; closing a journal waits for both."""
    simulated = SimulatedDisk()
    journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
    for offset in range(0, 200_000, 2):
        journal.note(offset + 1, offset + 2)
        if offset % 100 == 0:
            journal.flush()
    journal.note(0, 200_000)
    journal.flush()
    sync = journal.begin_sync()
    assert sync is not None
    assert journal.begin_compaction() is None
    with pytest.raises(ValueError, match="a sync or a compaction is running"):
        journal.seek(0)
    sync.run()
    journal.end_sync(sync, None)
    compaction = journal.begin_compaction()
    assert compaction is not None
    assert journal.begin_sync() is None
    journal.close()
    compaction.run()
    assert not journal.end_compaction(compaction, None)
    assert simulated.open_files == 0
    assert simulated.listdir("/data") == ["billing"]


def test_a_damaged_journal_never_has_no_name(disk: LocalDisk) -> None:
    """A crash while it is renamed leaves the acknowledgments; without a journal the cursor would start over."""
    for step in range(12):
        simulated = SimulatedDisk()
        journal = CursorJournal.open(simulated, "/data/billing", INCARNATION, 0)
        for first in (0, 1, 2):
            journal.note(first, first + 1)
            journal.flush()
        journal.close()
        file = simulated.open("/data/billing")
        file.pwritev((b"\xff",), JOURNAL_HEADER_BYTES + ENTRY_HEADER_BYTES + 16 + 20)
        file.close()
        operations = iter(range(100))

        def dies(operation: str, path: str, step: int = step, operations: Iterator[int] = operations) -> None:
            if next(operations) == step:
                raise KeyboardInterrupt

        simulated.on_operation = dies
        try:
            CursorJournal.open(simulated, "/data/billing", INCARNATION, 99).close()
        except KeyboardInterrupt:
            pass
        simulated.on_operation = None
        again = CursorJournal.open(simulated, "/data/billing", INCARNATION, 99)
        assert not again.cursor.is_acknowledged(50)
        assert again.cursor.is_acknowledged(2)
        again.close()


def test_until_when_messages_wait_outlasts_everything_but_the_acknowledgment(
    disk: LocalDisk, path: str
) -> None:
    """The last entry counts, through flushes, compactions and reopening; a seek drops all of them."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.note_failed(3, 6, 1, 1, 1_000)
    journal.flush()
    assert journal.note_failed(4, 5, 2, 2, 7_000, 500)
    assert journal.note_failed(5, 6, 2, 2)
    journal.note(3, 4)
    journal.close()
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.cursor.waits == {4: (7_000, 500)}
    assert journal.cursor.failed == {4: (2, 2), 5: (2, 2)}
    assert parse_journal("", encode_journal(INCARNATION, journal.cursor), INCARNATION)[0] == journal.cursor
    journal.cursor.wait(4, 5, 0)
    assert journal.cursor.waits == {}
    journal.note_failed(4, 5, 2, 3, 9_000)
    journal.seek(2)
    journal.close()
    assert CursorJournal.open(disk, path, INCARNATION, 0).cursor == Cursor(2)


def test_an_older_journal_does_not_say_for_how_long_messages_wait(disk: LocalDisk, path: str) -> None:
    """Its waiting entries have a zero in that field, and are read as before."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.note_failed(3, 5, 1, 1, 1_000)
    journal.close()
    with open(path, "rb") as file:
        assert struct.pack("<qqqq", 3, 5, 1_000, 0) in file.read()
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert journal.cursor.waits == {3: (1_000, 0), 4: (1_000, 0)}
    assert parse_journal("", encode_journal(INCARNATION, journal.cursor), INCARNATION)[0] == journal.cursor
    journal.close()


def test_an_entry_of_a_kind_to_come_is_passed_over(disk: LocalDisk, path: str) -> None:
    """So that a broker older than the journal reads the rest of it."""
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    journal.note(0, 3)
    journal.flush()
    journal.close()
    with open(path, "r+b") as file:
        written = file.read()
        salt = struct.unpack("<I", written[JOURNAL_HEADER_BYTES - 4 : JOURNAL_HEADER_BYTES])[0]
        front = struct.pack("<IB7x", 16, 99)
        file.write(struct.pack("<I", extend(extend(salt, front), bytes(16))) + front + bytes(16))
    journal = CursorJournal.open(disk, path, INCARNATION, 0)
    assert (journal.cursor.low, journal.report.damaged_bytes, journal.report.torn_bytes) == (3, 0, 0)
    journal.close()
