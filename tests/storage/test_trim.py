"""Tests of deleting the beginning of a log."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

import pytest

from ister.errors import TrimmedError
from ister.storage.disk import LocalDisk
from ister.storage.pacing import AFTER_DELETION_S, AFTER_DELETION_S_MAX
from ister.storage.producers import Duplicate, Fresh
from ister.storage.reader import Reader
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.wal import Wal

Open = Callable[..., Wal]
Put = Callable[..., int]


def filled(wal: Wal, put: Put, batches: int = 100) -> None:
    """Append so many batches of two messages and 900 bytes, durably."""
    for number in range(batches):
        put(wal, b"%04d" % number + b"x" * 896, b"", producer_id=7, sequence=2 * number)
    wal.commit()


def test_whole_segments_go_from_the_oldest_on(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """Trimming deletes the segments that end at or below the offset, no other, and the log begins after them."""
    wal = open_log()
    filled(wal, put)
    before = wal.sealed()
    assert len(before) > 4
    assert wal.trim(before[0].end - 1) == ()
    assert wal.trim(before[1].end) == before[:2]
    assert wal.start_offset == before[2].base
    assert wal.sealed() == before[2:]
    assert [disk.exists(info.path) for info in before[:3]] == [False, False, True]
    assert wal.trim(before[1].end) == ()
    wal.close()
    wal = open_log()
    assert (wal.start_offset, wal.next_offset) == (before[2].base, 200)
    wal.close()


def test_what_is_written_or_not_durable_stays(open_log: Open, put: Put) -> None:
    """The active segment is never trimmed, and the newest sealed one only when something after it is durable."""
    wal = open_log()
    filled(wal, put, 40)
    wal.seal()
    wal.commit()
    newest = wal.sealed()[-1]
    assert newest not in wal.trim(1 << 40)
    assert wal.sealed() == (newest,)
    offset = put(wal, b"behind")
    assert wal.trim(1 << 40) == ()
    wal.commit()
    assert wal.trim(1 << 40) == (newest,)
    assert (wal.start_offset, wal.sealed()) == (offset, ())
    wal.close()
    wal = open_log()
    assert (wal.start_offset, wal.next_offset) == (offset, offset + 1)
    wal.close()


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_log_begins_at_the_segment_that_is_just_being_sealed(
    open_log: Open, put: Put, goes_on: bool
) -> None:
    """A segment that a running commit seals belongs to the log, also when all before it are deleted meanwhile."""
    wal = open_log()
    filled(wal, put, 40)
    put(wal, b"durable, and not sealed yet")
    wal.commit()
    base = wal.sealed()[-1].end
    trim = wal.begin_trim(base)
    assert trim is not None
    wal.seal()
    if goes_on:
        put(wal, b"in the next segment")
    commit = wal.begin_commit()
    assert commit is not None
    trim.run()
    assert wal.end_trim(trim)[-1].end == base
    assert wal.start_offset == base
    commit.run()
    wal.end_commit(commit, None)
    assert wal.sealed()[0].base == wal.start_offset
    wal.close()


def test_a_log_that_was_trimmed_to_nothing_and_lost_power_still_knows_its_end(
    open_log: Open, put: Put
) -> None:
    """However much is trimmed, and whatever a power failure takes, no offset is given twice."""
    for seed in range(60):
        random = Random(seed)
        disk = SimulatedDisk()
        wal = open_log(disk)
        filled(wal, put, 30)
        if random.random() < 0.5:
            wal.seal()
        if random.random() < 0.5:
            wal.commit()
        if random.random() < 0.5:
            put(wal, b"more")
        if random.random() < 0.5:
            wal.commit()
        durable = wal.durable_end
        trim = wal.begin_trim(random.randrange(1 << 10))
        if trim is not None:
            left = random.randrange(8)

            def stops(operation: str, path: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(errno.EIO, "not now")

            disk.on_operation = stops
            try:
                trim.run()
            except OSError as error:
                wal.end_trim(trim, error)
            else:
                wal.end_trim(trim)
            disk.on_operation = None
        start = wal.start_offset
        disk = disk.power_loss(random)
        wal = open_log(disk)
        assert wal.next_offset >= durable
        assert wal.start_offset <= start
        assert wal.damaged == ()
        reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, wal.start_offset)
        while reader.read(wal.next_offset, 1 << 20):
            pass
        assert reader.offset == wal.next_offset
        wal.close()


def test_a_trim_that_fails_in_the_middle_is_gone_on_with_later(open_log: Open, put: Put) -> None:
    """Segments deleted before the failure stay deleted, the rest goes with the next trim."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    filled(wal, put)
    before = wal.sealed()

    def fails(operation: str, path: str) -> None:
        if path == before[2].path:
            raise OSError(errno.EIO, "no")

    disk.on_operation = fails
    with pytest.raises(OSError, match="no"):
        wal.trim(before[3].end)
    assert wal.start_offset == before[2].base
    disk.on_operation = None
    assert wal.trim(before[3].end) == before[2:4]
    assert wal.failed is None
    wal.close()


def test_a_log_is_not_closed_under_a_trim(open_log: Open, put: Put) -> None:
    """Only one trim runs at a time, appends and commits go on meanwhile, and closing waits for its end."""
    wal = open_log()
    filled(wal, put)
    trim = wal.begin_trim(100)
    assert trim is not None
    assert wal.begin_trim(100) is None
    put(wal, b"meanwhile")
    wal.commit()
    with pytest.raises(ValueError, match="trim is running"):
        wal.close()
    trim.run()
    assert wal.end_trim(trim)
    with pytest.raises(ValueError, match="not running"):
        wal.end_trim(trim)
    wal.close()


def test_who_reads_a_trimmed_segment_finishes_it_and_who_comes_later_is_told(
    open_log: Open, put: Put, disk: LocalDisk
) -> None:
    """A reader inside a segment reads it to its end; below the log, TrimmedError has the range that is gone."""
    wal = open_log()
    filled(wal, put)
    first, second = wal.sealed()[:2]
    maps = SegmentMaps(disk)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    held = reader.read(wal.durable_end, 1)
    wal.trim(second.end)
    while reader.offset < first.end:
        held += reader.read(wal.durable_end, 3000, 2)
    assert [bytes(record.payload[:4]) for record in held] == [b"%04d" % at for at in range(len(held))]
    for behind in (reader, Reader(maps, wal.folder, wal.incarnation, 0)):
        at = behind.offset
        with pytest.raises(TrimmedError) as trimmed:
            behind.read(wal.durable_end, 1 << 20)
        assert (trimmed.value.first, trimmed.value.end) == (at, second.end)
        behind.seek(trimmed.value.end)
        assert behind.read(wal.durable_end, 1)[0].first_offset == second.end
    wal.close()


def test_a_producer_is_known_after_its_segments_are_trimmed(open_log: Open, put: Put) -> None:
    """Deduplication survives trimming and reopening, because each segment begins with the table of producers."""
    wal = open_log()
    put(wal, b"once", producer_id=5, sequence=17)
    filled(wal, put)
    wal.trim(wal.sealed()[-1].base)
    assert wal.start_offset > 50
    for _ in range(2):
        assert wal.producers.check(5, 17, 1) == Duplicate(0)
        assert wal.producers.check(5, 18, 1) == Fresh()
        wal.close()
        wal = open_log()
    wal.close()


def test_a_long_trim_leaves_the_disk_to_others_in_between(
    open_log: Open, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each deleted segment it rests: freeing one keeps the syncs of all topics waiting."""
    wal = open_log(LocalDisk())
    for _ in range(60):
        put(wal, b"x" * 1000)
        wal.commit()
    rests: list[float] = []
    monkeypatch.setattr("ister.storage.disk.time.sleep", rests.append)
    deleted = wal.trim(wal.durable_end)
    assert len(deleted) >= 3
    assert len(rests) == len(deleted)
    assert all(AFTER_DELETION_S <= rest <= AFTER_DELETION_S_MAX for rest in rests)
    wal.close()
