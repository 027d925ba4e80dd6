"""Tests of the producers that a restored topic begins with: read from the store's last segment, kept in a file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import google_crc32c
import pytest

from ister.errors import DamagedError
from ister.storage.folderstore import FolderStore
from ister.storage.history import History, Piece, StoredSegment
from ister.storage.known_producers import PRODUCERS_NAME, load_producers, save_producers
from ister.storage.producers import Duplicate, ProducerTable
from ister.storage.simulated import SimulatedDisk
from ister.storage.stored_producers import stored_producers
from ister.storage.wal import Wal
from tests.storage.conftest import INCARNATION

FOLDER = "/data/topics/orders"


def table() -> ProducerTable:
    """Return a table of two producers."""
    made = ProducerTable()
    made.advance(7, 0, 3, 100, 1000)
    made.advance(8, 5, 1, 103, 1001)
    return made


def test_a_log_begins_with_the_producers_in_its_file() -> None:
    """They know what was stored, by whom, and up to where."""
    disk = SimulatedDisk()
    assert load_producers(disk, FOLDER, INCARNATION, 104, 32) is None
    save_producers(disk, FOLDER, INCARNATION, 104, table().encode())
    loaded = load_producers(disk, FOLDER, INCARNATION, 104, 32)
    assert loaded is not None
    assert (loaded.next_sequence(7), loaded.next_sequence(8), loaded.next_sequence(9)) == (3, 6, None)
    assert loaded.check(7, 0, 3) == Duplicate(100)


def test_the_file_is_what_the_table_of_format_md_says() -> None:
    """Read with nothing but the table."""
    disk = SimulatedDisk()
    save_producers(disk, FOLDER, INCARNATION, 104, table().encode())
    contents = disk.read(f"{FOLDER}/{PRODUCERS_NAME}")
    assert struct.unpack_from("<8sHH16sQ", contents) == (b"ISTERPRD", 1, 36, INCARNATION, 104)
    assert struct.unpack_from("<I", contents, 36) == (2,)
    entries = [struct.unpack_from("<QQQQI", contents, 40 + 36 * number) for number in range(2)]
    assert entries == [(7, 0, 100, 1000, 3), (8, 5, 103, 1001, 1)]
    assert contents[40 + 72 :] == struct.pack("<I", google_crc32c.value(contents[: 40 + 72]))


@pytest.mark.parametrize("wrong", ["incarnation", "start", "flipped", "cut", "empty"])
def test_a_file_that_is_not_of_this_log_is_ignored(wrong: str) -> None:
    """Of another topic, of another place, or damaged."""
    disk = SimulatedDisk()
    save_producers(disk, FOLDER, INCARNATION, 104, table().encode())
    path = f"{FOLDER}/{PRODUCERS_NAME}"
    contents = disk.read(path)
    if wrong in ("flipped", "cut", "empty"):
        disk.unlink(path)
        file = disk.create(path)
        changed = {"flipped": contents[:40] + b"?" + contents[41:], "cut": contents[:-9], "empty": b""}[wrong]
        if changed:
            file.pwritev((changed,), 0)
        file.close()
    incarnation = bytes(16) if wrong == "incarnation" else INCARNATION
    assert load_producers(disk, FOLDER, incarnation, 105 if wrong == "start" else 104, 32) is None


def test_a_new_log_takes_them_over_and_one_that_has_segments_does_not(
    open_log: Callable[..., Wal], put: Callable[..., int]
) -> None:
    """The file counts once: afterwards the segments know better."""
    disk = SimulatedDisk()
    save_producers(disk, FOLDER, INCARNATION, 104, table().encode())
    wal = open_log(disk, folder=FOLDER, start_offset=104)
    assert wal.next_offset == 104
    assert wal.producers.check(7, 0, 3) == Duplicate(100)
    put(wal, b"x", producer_id=7, sequence=3)
    wal.commit()
    wal.close()
    again = open_log(disk, folder=FOLDER, start_offset=104)
    assert again.producers.next_sequence(7) == 4
    again.close()


def stored(
    open_log: Callable[..., Wal], put: Callable[..., int], tmp_path: Any
) -> tuple[FolderStore, Piece, bytes]:
    """Return a store with a segment of six batches, its piece of the history, and its bytes."""
    disk = SimulatedDisk()
    wal = open_log(disk, folder=FOLDER)
    for number in range(6):
        put(wal, b"x", producer_id=7, sequence=number, timestamp_ms=1000 + number)
    wal.seal()
    wal.commit()
    (info,) = wal.sealed()
    data = disk.read(info.path)
    store = FolderStore(str(tmp_path / "store"))
    store.put_if_absent("segment", data)
    segment = StoredSegment("segment", 0, 6, 1, len(data), 1000, 1005)
    return store, Piece(segment, 0, 6), data


def test_the_last_stored_segment_tells_its_producers(
    open_log: Callable[..., Wal], put: Callable[..., int], tmp_path: Any
) -> None:
    """Up to where it counts: what another writer superseded is not stored."""
    store, piece, data = stored(open_log, put, tmp_path)
    for end in (6, 4):
        history = History(0, end, (Piece(piece.segment, 0, end),))
        found = ProducerTable.decode(stored_producers(store, history, INCARNATION))
        assert found.next_sequence(7) == end
    assert stored_producers(store, History(0, 0, ()), INCARNATION) == b""
    store.put_if_absent("broken", data[:300] + bytes(len(data) - 300))
    broken = History(0, 6, (Piece(StoredSegment("broken", 0, 6, 1, len(data), 0, 0), 0, 6),))
    with pytest.raises(DamagedError, match="broken"):
        stored_producers(store, broken, INCARNATION)


def test_what_follows_a_gap_does_not_tell_of_producers(
    open_log: Callable[..., Wal], put: Callable[..., int], tmp_path: Any
) -> None:
    """Segments are uploaded side by side: what is missing between two may never have had a receipt, and is resent."""
    store, piece, _ = stored(open_log, put, tmp_path)
    beyond = StoredSegment("beyond", 8, 9, 1, 1, 1000, 1005)
    history = History(0, 9, (piece, Piece(beyond, 8, 9)))
    found = ProducerTable.decode(stored_producers(store, history, INCARNATION))
    assert found.next_sequence(7) == 6
    assert stored_producers(store, History(8, 9, (Piece(beyond, 8, 9),), trimmed=5), INCARNATION) == b""
