"""Tests of the write-ahead log, as its owner uses it."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from ister.errors import DiskFullError, LogFailedError, StorageError
from ister.storage.disk import LocalDisk
from ister.storage.producers import Duplicate, Fresh
from ister.storage.reader import Reader
from ister.storage.segment import FOOTER_BYTES
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.trim import remove_log
from ister.storage.wal import Wal, WalSettings

Open = Callable[..., Wal]
Put = Callable[..., int]


def contents(wal: Wal, disk: Any = None) -> list[tuple[int, bytes]]:
    """Return first offset and payload bytes of all durable records."""
    reader = Reader(SegmentMaps(disk or LocalDisk()), wal.folder, wal.incarnation, wal.start_offset)
    found = []
    while records := reader.read(wal.durable_end, 1 << 20):
        found += [(record.first_offset, bytes(record.payload)) for record in records]
    return found


def test_offsets_are_dense_and_begin_at_zero(open_log: Open, put: Put) -> None:
    """Each batch begins where the one before it ended."""
    wal = open_log()
    assert [put(wal, b"a"), put(wal, b"b", b"c"), put(wal, b"")] == [0, 1, 3]
    assert wal.next_offset == 4
    wal.close()


def test_nothing_is_durable_before_its_commit_has_ended(open_log: Open, put: Put) -> None:
    """An append moves next_offset at once, and durable_end only when its commit has ended."""
    wal = open_log()
    put(wal, b"a")
    commit = wal.begin_commit()
    assert commit is not None
    put(wal, b"b")
    commit.run()
    assert wal.durable_end == 0
    assert wal.end_commit(commit, None) == 1
    assert wal.pending
    assert wal.commit() == 2
    assert not wal.pending
    wal.close()


def test_only_one_commit_runs_and_none_without_work(open_log: Open, put: Put) -> None:
    """begin_commit returns None when there is nothing to do, or a commit is running."""
    wal = open_log()
    assert wal.begin_commit() is None
    put(wal, b"a")
    commit = wal.begin_commit()
    put(wal, b"b")
    assert commit is not None
    assert wal.begin_commit() is None
    with pytest.raises(ValueError, match="commit is running"):
        wal.close()
    commit.run()
    wal.end_commit(commit, None)
    wal.close()


def test_a_log_goes_on_where_it_was_left(open_log: Open, put: Put) -> None:
    """Opening again finds every message, over several segments."""
    wal = open_log()
    written = [(put(wal, bytes([number]) * 1000), bytes([number]) * 1000) for number in range(100)]
    wal.commit()
    assert len(wal.sealed()) >= 5
    assert contents(wal) == written
    wal.close()
    wal = open_log()
    assert (wal.report.start_offset, wal.report.kept, wal.report.torn_bytes) == (0, 100, 0)
    assert contents(wal) == written
    assert put(wal, b"more") == 100
    wal.commit()
    assert contents(wal) == [*written, (100, b"more")]
    wal.close()


def test_a_sealed_segment_is_never_longer_than_allowed(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """A sealed file has exactly the length in its footer, and at most segment_bytes_max."""
    wal = open_log()
    for number in range(200):
        put(wal, b"x" * (number * 7 % 900))
    wal.commit()
    for info in wal.sealed():
        assert disk.size(info.path) == info.bytes <= 16 << 10
    joined = [info.end for info in wal.sealed()][:-1]
    assert joined == [info.base for info in wal.sealed()][1:]
    wal.close()


def test_the_biggest_batch_fits_and_one_byte_more_is_refused(open_log: Open, put: Put) -> None:
    """batch_bytes_max always fits into a segment; a larger batch is refused with a code, and does no harm."""
    settings = WalSettings(segment_bytes_max=16 << 10, producers_max=32)
    wal = open_log()
    for producer in range(1, 40):
        put(wal, b"x", producer_id=producer)
    assert put(wal, b"x" * (settings.batch_bytes_max - 4)) == 39
    before = wal.next_offset
    with pytest.raises(StorageError) as refused:
        put(wal, b"x" * (16 << 10))
    assert (refused.value.code, refused.value.action) == ("batch-too-large", "fix")
    assert put(wal, b"fine") == before
    wal.commit()
    wal.close()


def test_a_segment_is_sealed_by_age_only_if_something_is_in_it(open_log: Open, put: Put) -> None:
    """An idle log makes no segments; one message is sealed a minute later, and is offered after the next commit."""
    wal = open_log(segment_age_ms_max=60_000)
    assert wal.seal_due_in_ms(10**15) == math.inf
    put(wal, b"a", timestamp_ms=1_000)
    wal.commit()
    assert wal.seal_due_in_ms(60_999) == 1
    assert wal.seal_due_in_ms(61_000) == 0
    wal.seal()
    assert wal.sealed() == ()
    wal.commit()
    assert [(info.base, info.end, info.messages) for info in wal.sealed()] == [(0, 1, 1)]
    assert wal.seal_due_in_ms(10**15) == math.inf
    wal.seal()
    assert wal.begin_commit() is None
    assert put(wal, b"b") == 1
    wal.commit()
    assert [payload for _, payload in contents(wal)] == [b"a", b"b"]
    wal.close()


def test_a_log_that_was_sealed_last_opens_and_goes_on(open_log: Open, put: Put) -> None:
    """A sealed newest segment is not changed, and the next append begins another."""
    wal = open_log()
    put(wal, b"a")
    wal.seal()
    wal.commit()
    wal.close()
    wal = open_log()
    assert (wal.next_offset, len(wal.sealed())) == (1, 1)
    assert put(wal, b"b") == 1
    wal.commit()
    assert [payload for _, payload in contents(wal)] == [b"a", b"b"]
    wal.close()


def test_a_failed_sync_fails_the_log_for_good(open_log: Open, put: Put) -> None:
    """After a failed sync nothing is acknowledged or appended, although the same sync would succeed now."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    put(wal, b"a")
    wal.commit()
    put(wal, b"b")

    def fails(operation: str, path: str) -> None:
        if operation == "sync":
            raise OSError(errno.EIO, "the disk is gone")

    disk.on_operation = fails
    with pytest.raises(LogFailedError, match="disk is gone"):
        wal.commit()
    disk.on_operation = None
    assert wal.durable_end == 1
    assert wal.begin_commit() is None
    with pytest.raises(LogFailedError) as refused:
        put(wal, b"c")
    assert refused.value.action == "retry"
    wal.close()


def test_what_a_failed_sync_left_in_the_page_cache_does_not_count_until_written_again(
    open_log: Open, put: Put
) -> None:
    """Opening after a failed sync writes what it finds again, so that a power failure right after loses nothing."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    put(wal, b"a")
    wal.commit()
    put(wal, b"b")
    disk.on_operation = lambda operation, path: _raise_on("sync", operation)
    with pytest.raises(LogFailedError):
        wal.commit()
    disk.on_operation = None
    wal.close()
    wal = open_log(disk)
    shown = contents(wal, disk)
    for seed in range(20):
        after = disk.power_loss(Random(seed))
        again = open_log(after)
        assert contents(again, after) == shown
        again.close()
    wal.close()


def _raise_on(wanted: str, operation: str) -> None:
    if operation == wanted:
        raise OSError(errno.EIO, "no")


def test_a_failed_write_fails_the_log(open_log: Open, put: Put) -> None:
    """A write that fails for any reason but lack of room ends the log; durable records are there again."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    put(wal, b"a")
    wal.commit()
    disk.on_operation = lambda operation, path: _raise_on("write", operation)
    with pytest.raises(LogFailedError):
        put(wal, b"b")
    disk.on_operation = None
    with pytest.raises(LogFailedError):
        put(wal, b"b")
    wal.close()
    wal = open_log(disk)
    assert contents(wal, disk) == [(0, b"a")]
    assert put(wal, b"b") == 1
    wal.close()


def test_a_full_disk_refuses_and_service_returns_with_room(open_log: Open, put: Put) -> None:
    """After DiskFullError the log is as before the call, however much room there is; with room it goes on by itself."""
    for room in range(0, 3000, 97):
        disk = SimulatedDisk()
        wal = open_log(disk)
        put(wal, b"a" * 200)
        wal.commit()
        disk.room = room
        stored = []
        for number in range(200):
            try:
                stored.append((put(wal, bytes([number]) * 200), bytes([number]) * 200))
            except DiskFullError:
                break
        else:
            pytest.fail("the disk never filled up")
        with pytest.raises(DiskFullError) as refused:
            put(wal, b"b" * 200)
        assert refused.value.action == "retry"
        wal.seal()  # its room was reserved before
        wal.commit()
        disk.room = None
        offset = put(wal, b"back")
        assert offset == 1 + len(stored)
        wal.commit()
        expected = [(0, b"a" * 200), *stored, (offset, b"back")]
        assert contents(wal, disk) == expected
        wal.close()
        wal = open_log(disk)
        assert contents(wal, disk) == expected
        wal.close()


def test_a_full_disk_refuses_the_next_segment_too(open_log: Open, put: Put) -> None:
    """If a new segment cannot be made, the append is refused, no partial file stays, and a later append works."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    put(wal, b"a")
    wal.seal()
    wal.commit()
    disk.room = 0
    for _ in range(2):
        with pytest.raises(DiskFullError):
            put(wal, b"b")
    disk.room = 20
    with pytest.raises(DiskFullError):
        put(wal, b"b")
    disk.room = None
    assert put(wal, b"b") == 1
    wal.commit()
    assert [payload for _, payload in contents(wal, disk)] == [b"a", b"b"]
    wal.close()


def test_a_spare_segment_takes_over_without_a_new_file(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """A spare is asked for when a quarter of a segment is full, used by the next roll, and deleted by close."""
    wal = open_log()
    assert wal.prepare_spare() is None
    while (work := wal.prepare_spare()) is None:
        put(wal, b"x" * 500)
    assert wal.prepare_spare() is None
    work()
    assert "spare.tmp" in disk.listdir(wal.folder)
    while not wal.sealed():
        put(wal, b"y" * 500)
        wal.commit()
    assert "spare.tmp" not in disk.listdir(wal.folder)
    expected = contents(wal)
    while (work := wal.prepare_spare()) is None:
        expected.append((put(wal, b"z" * 500), b"z" * 500))
    wal.commit()
    wal.close()
    work()  # the thread came too late
    assert "spare.tmp" not in disk.listdir(wal.folder)
    wal = open_log()
    assert contents(wal) == expected
    wal.close()


def test_a_spare_that_cannot_be_made_is_no_failure(open_log: Open, put: Put) -> None:
    """Making a spare on a full disk leaves nothing behind, and the log goes on without it."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    while (work := wal.prepare_spare()) is None:
        put(wal, b"x" * 500)
    disk.room = 100
    work()
    assert "spare.tmp" not in disk.listdir(wal.folder)
    disk.room = None
    assert wal.failed is None
    assert wal.prepare_spare() is not None
    wal.close()
    assert disk.open_files == 0


def test_no_file_stays_open_when_a_log_is_closed(open_log: Open, put: Put) -> None:
    """A log has one open file while it is written, however many segments there are, and none when closed."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    for _ in range(300):
        put(wal, b"x" * 900)
    wal.commit()
    assert len(wal.sealed()) > 10
    assert disk.open_files == 1
    wal.close()
    wal.close()
    assert disk.open_files == 0
    wal = open_log(disk)
    assert disk.open_files == 1
    wal.close()


def test_producers_are_known_again_after_opening(open_log: Open, put: Put) -> None:
    """A resend after a restart is recognised, with its offset as far as the recent log reaches."""
    wal = open_log()
    offsets = [put(wal, b"x" * 300, b"y", producer_id=9, sequence=2 * number) for number in range(200)]
    wal.commit()
    assert len(wal.sealed()) > 3
    wal.close()
    wal = open_log()
    assert wal.producers.check(9, 398, 2) == Duplicate(offsets[-1])
    assert wal.producers.check(9, 200, 2) == Duplicate(offsets[100])
    assert wal.producers.check(9, 400, 2) == Fresh()
    wal.close()


def test_a_producer_survives_the_segment_its_batches_were_in(
    open_log: Open, put: Put, disk: LocalDisk
) -> None:
    """Each segment begins with the table of producers, so that old segments are not needed for it."""
    wal = open_log()
    put(wal, b"once", producer_id=5, sequence=17)
    wal.seal()
    wal.commit()
    put(wal, b"another")
    wal.commit()
    first = wal.sealed()[0]
    wal.close()
    disk.unlink(first.path)
    wal = open_log()
    assert wal.start_offset == 1
    assert wal.producers.check(5, 17, 1) == Duplicate(0)
    assert wal.producers.next_sequence(5) == 18
    wal.close()


def test_a_removed_log_leaves_nothing(open_log: Open, put: Put, disk: LocalDisk, folder: str) -> None:
    """Removing a log deletes its folder; removing it again is fine."""
    wal = open_log()
    put(wal, b"a")
    wal.commit()
    wal.close()
    remove_log(disk, folder)
    assert not disk.exists(folder)
    remove_log(disk, folder)


def test_a_new_log_may_begin_at_any_offset(open_log: Open, put: Put) -> None:
    """A log whose beginning is elsewhere starts at the given offset, and keeps that."""
    wal = open_log(start_offset=1000)
    assert (wal.start_offset, wal.next_offset, wal.durable_end) == (1000, 1000, 1000)
    assert put(wal, b"a") == 1000
    wal.commit()
    wal.close()
    wal = open_log()
    assert (wal.start_offset, wal.next_offset) == (1000, 1001)
    wal.close()


def test_the_room_for_a_footer_is_there_before_the_record(open_log: Open, put: Put) -> None:
    """Sealing never needs more room: it succeeds on a disk that is completely full."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    put(wal, b"a")
    disk.room = FOOTER_BYTES
    wal.seal()
    assert wal.commit() == 1
    wal.close()


def in_flood(wal: Wal) -> Wal:
    """Return a log that has seen large commits, and so writes no zeros ahead."""
    wal._commit_bytes = 1e6
    return wal


def test_a_refused_batch_does_not_come_back_with_the_next_start(open_log: Open, put: Put) -> None:
    """A batch that was refused because there was no room after it is gone, though all of it had been written."""
    for room in range(0, 700, 50):
        disk = SimulatedDisk()
        wal = in_flood(open_log(disk))
        put(wal, b"a")
        wal.commit()
        in_flood(wal)
        disk.room = room
        try:
            put(wal, b"b" * 500)
        except DiskFullError:
            expected = 1
        else:
            expected = 2
        wal.close()
        disk.room = None
        wal = open_log(disk)
        assert wal.next_offset == expected
        wal.close()
    assert expected == 2


def test_sealing_needs_no_room_whatever_was_written_ahead(open_log: Open, put: Put) -> None:
    """In a flood, too, there is room for index and footer after each record, and segments keep their length."""
    for seed in range(20):
        random = Random(seed)
        disk = SimulatedDisk()
        wal = in_flood(open_log(disk, segment_bytes_max=300_000))
        for _ in range(40):
            put(in_flood(wal), b"x" * random.randrange(30_000))
            if random.random() < 0.1:
                wal.commit()
        disk.room = 0
        wal.seal()
        end = wal.commit()
        assert end == wal.sealed()[-1].end
        assert all(disk.size(info.path) == info.bytes <= 300_000 for info in wal.sealed())
        assert contents(wal, disk)[-1][0] == end - 1
        wal.close()


def test_zeros_are_written_ahead_only_while_commits_are_small(open_log: Open, put: Put) -> None:
    """Single messages are written to existing blocks; a flood writes each byte once, and asks for no spare segment."""
    for size, ahead_min, ahead_max, spare in ((100, 2000, 300_000, True), (100_000, 128, 2000, False)):
        wal = open_log(SimulatedDisk(), segment_bytes_max=8 << 20)
        for _ in range(25):
            put(wal, b"x" * size)
            wal.commit()
        active = wal._active
        assert active is not None
        assert ahead_min <= active.zeroed - active.end <= ahead_max
        active.end = active.zeroed = 3 << 20
        assert (wal.prepare_spare() is not None) == spare
        wal.close()
