"""Tests of the note of where a log begins: it is written before retention deletes, and never believed when damaged."""

from __future__ import annotations

import pytest

from ister.errors import DiskFullError
from ister.storage.begin import BEGIN_NAME, decode_begin, encode_begin, load_begin, save_begin
from ister.storage.simulated import SimulatedDisk
from ister.storage.wal import Wal, WalSettings
from tests.stage import StagedClock

INCARNATION = bytes(range(16))
FOLDER = "/log"


def test_what_is_written_is_read_and_nothing_else() -> None:
    """A flipped byte, another length or another topic's file counts as no note."""
    contents = encode_begin(INCARNATION, 12_345)
    assert len(contents) == 40
    assert decode_begin(contents, INCARNATION) == 12_345
    assert decode_begin(contents, bytes(16)) is None
    assert decode_begin(contents + b"\0", INCARNATION) is None
    for at in range(len(contents)):
        flipped = contents[:at] + bytes((contents[at] ^ 1,)) + contents[at + 1 :]
        assert decode_begin(flipped, INCARNATION) is None


def test_it_is_replaced_as_a_whole() -> None:
    """Without a file retention deleted nothing; a file half-written before a crash does no harm."""
    disk = SimulatedDisk()
    disk.makedirs(FOLDER)
    assert load_begin(disk, FOLDER, INCARNATION) == 0
    disk.create(f"{FOLDER}/{BEGIN_NAME}.new").close()
    save_begin(disk, FOLDER, INCARNATION, 7)
    save_begin(disk, FOLDER, INCARNATION, 9)
    assert load_begin(disk, FOLDER, INCARNATION) == 9
    assert disk.listdir(FOLDER) == [BEGIN_NAME]


def opened(disk: SimulatedDisk) -> Wal:
    """Open the log."""
    return Wal.open(
        disk,
        FOLDER,
        topic="orders",
        incarnation=INCARNATION,
        settings=WalSettings(segment_bytes_max=8192, producers_max=4),
        clock=StagedClock(),
    )


def filled(disk: SimulatedDisk) -> Wal:
    """Open a log, and fill some segments."""
    wal = opened(disk)
    for number in range(20):
        frames = (b"\xe8\x03\0\0", bytes(1000))
        wal.append(count=1, producer_id=1, sequence=number, columns=0, frames=frames, timestamp_ms=number)
    wal.commit()
    return wal


def test_a_trim_by_retention_is_written_down_before_anything_goes() -> None:
    """A crash at any moment leaves the note or the segments, so that segments missing without a note are damage."""
    disk = SimulatedDisk()
    wal = filled(disk)
    end = wal.sealed()[1].end
    trim = wal.begin_trim(end, retained=end)
    assert trim is not None
    seen: list[int] = []
    unlink = disk.unlink

    def watched(path: str) -> None:
        if path.endswith(".seg"):
            seen.append(load_begin(disk, FOLDER, INCARNATION))
        unlink(path)

    disk.unlink = watched  # type: ignore[method-assign]
    trim.run()
    wal.end_trim(trim)
    assert seen == [end, end]
    assert (wal.retained, wal.start_offset) == (end, end)
    wal.close()
    again = opened(disk)
    assert (again.retained, again.start_offset) == (end, end)
    again.close()


def test_what_goes_because_the_store_has_it_is_no_retention() -> None:
    """No note is written: if the store loses them, that is damage."""
    disk = SimulatedDisk()
    wal = filled(disk)
    wal.trim(wal.sealed()[1].end)
    assert wal.retained == 0
    assert not disk.exists(f"{FOLDER}/{BEGIN_NAME}")
    wal.close()


def test_on_a_full_disk_the_first_segment_makes_room_for_the_note() -> None:
    """Retention can make room on a full disk."""
    disk = SimulatedDisk()
    wal = filled(disk)
    create, full = disk.create, True

    def refused(path: str, *given: int) -> object:
        if full and BEGIN_NAME in path:
            raise DiskFullError("full")
        return create(path, *given)

    unlink = disk.unlink

    def makes_room(path: str) -> None:
        nonlocal full
        full = full and not path.endswith(".seg")
        unlink(path)

    disk.create, disk.unlink = refused, makes_room  # type: ignore[assignment, method-assign]
    end = wal.sealed()[1].end
    wal.trim(end, end)
    assert (load_begin(disk, FOLDER, INCARNATION), wal.start_offset) == (end, end)
    wal.close()


def test_a_note_that_fails_leaves_the_log_as_it_was() -> None:
    """Nothing is deleted without it."""
    disk = SimulatedDisk()
    wal = filled(disk)
    segments = disk.listdir(FOLDER)

    def failing(_path: str, *_given: int) -> object:
        raise OSError("the disk fails")

    create, disk.create = disk.create, failing  # type: ignore[assignment, method-assign]
    with pytest.raises(OSError, match="the disk fails"):
        wal.trim(wal.sealed()[1].end, 5)
    disk.create = create  # type: ignore[method-assign]
    assert (wal.retained, disk.listdir(FOLDER)) == (0, segments)
    wal.close()
