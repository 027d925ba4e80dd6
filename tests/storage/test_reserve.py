"""Tests of the reserve of disk space: acknowledgments, and what makes room, go on while the disk is full."""

from __future__ import annotations

import pytest

from ister.errors import DiskFullError
from ister.storage.cursor_journal import CursorJournal
from ister.storage.folderstore import FolderStore
from ister.storage.reserve import PIECE_BYTES, REFILL_S, Reserve
from ister.storage.simulated import SimulatedDisk

INCARNATION = b"i" * 16


class MovedClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ms(self) -> int:
        return int(self.now_s * 1000)


def with_reserve(pieces: int) -> tuple[SimulatedDisk, Reserve, MovedClock]:
    """Return a disk, and a reserve of so many pieces on it."""
    disk, clock = SimulatedDisk(), MovedClock()
    disk.makedirs("/data")
    reserve = Reserve(disk, "/data/reserve", clock, pieces * PIECE_BYTES)
    reserve.keep()
    return disk, reserve, clock


def test_a_reserve_is_given_in_pieces_and_is_whole_again_when_there_is_room() -> None:
    """Released pieces are the disk's; from time to time the reserve is filled again as far as possible."""
    disk, reserve, clock = with_reserve(3)
    assert reserve.held == disk.size("/data/reserve") == 3 * PIECE_BYTES
    disk.room = 0
    assert [reserve.give() for _ in range(4)] == [True, True, True, False]
    assert disk.room == 3 * PIECE_BYTES
    reserve.keep()
    assert reserve.held == 0
    disk.room = PIECE_BYTES + 5
    clock.now_s += REFILL_S
    reserve.keep()
    assert reserve.held == disk.size("/data/reserve") == PIECE_BYTES
    disk.room = None
    clock.now_s += REFILL_S
    reserve.keep()
    assert reserve.held == 3 * PIECE_BYTES
    assert Reserve(disk, "/data/reserve", clock, 3 * PIECE_BYTES).held == 3 * PIECE_BYTES
    disk.unlink("/data/reserve")
    assert not reserve.give()
    assert disk.open_files == 0


@pytest.mark.parametrize("greedy", [False, True])
def test_acknowledgments_go_on_while_the_disk_is_full(greedy: bool) -> None:
    """However many there are, the file is compacted; also if other files take the released space."""
    disk, reserve, _ = with_reserve(32)
    journal = CursorJournal.open(disk, "/data/billing", INCARNATION, 0)
    journal.reserve = reserve
    disk.room = 0
    for offset in range(5000):
        journal.note(offset, offset + 1)
        if offset % 3 == 0:
            journal.note(10_000 + offset % 60, 10_001 + offset % 60)
        assert journal.flush() > 0
        assert not journal.noted
        if greedy and offset % 200 == 0:
            disk.room = 0
    journal.note(5000, 5002)
    journal.flush()
    assert journal.size < 2 * PIECE_BYTES
    expected = journal.cursor.copy()
    journal.close()
    assert CursorJournal.open(disk, "/data/billing", INCARNATION, 0).cursor == expected
    assert reserve.held > 0


def test_with_nothing_in_reserve_acknowledgments_wait_and_are_not_lost() -> None:
    """They are written when there is room."""
    disk, reserve, _ = with_reserve(0)
    journal = CursorJournal.open(disk, "/data/billing", INCARNATION, 0)
    journal.reserve = reserve
    disk.room = 0
    journal.note(0, 5)
    with pytest.raises(DiskFullError):
        journal.flush()
    disk.room = None
    assert journal.flush() > 0
    journal.close()


def test_a_subscription_can_be_moved_on_a_full_disk() -> None:
    """A seek is one way to make room."""
    disk, reserve, _ = with_reserve(2)
    journal = CursorJournal.open(disk, "/data/billing", INCARNATION, 0)
    journal.reserve = reserve
    disk.room = 0
    journal.seek(700)
    journal.close()
    assert CursorJournal.open(disk, "/data/billing", INCARNATION, 0).cursor.low == 700


def test_a_store_on_a_full_disk_notes_what_must_be_noted_before_something_can_go() -> None:
    """Small objects, and segments that are already here, are stored; large new ones are refused."""
    disk, reserve, _ = with_reserve(4)
    store = FolderStore("/data/store", disk, reserve=reserve)
    file = disk.create("/data/segment")
    file.pwritev((b"x" * 500_000,), 0)
    file.close()
    disk.room = 0
    assert store.put_if_absent("v1/d/t/7", b"")
    assert store.put_file_if_absent("v1/d/s/0", "/data/segment")
    with pytest.raises(DiskFullError):
        store.put_if_absent("v1/d/s/1", b"x" * 500_000)
    assert [info.name for info in store.list("v1/")] == ["v1/d/s/0", "v1/d/t/7"]
