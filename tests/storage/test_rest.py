"""Tests of idle logs: they release the space kept for appends, and take it again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ister.storage.disk import LocalDisk
from ister.storage.openfiles import OpenFiles, descriptors_used
from ister.storage.reader import Reader
from ister.storage.segment_maps import SegmentMaps
from ister.storage.spare import SPARE_NAME
from ister.storage.wal import Wal

Open = Callable[..., Wal]
Put = Callable[..., int]


def taken(folder: str) -> int:
    """Return the disk space of a folder's files in bytes."""
    return sum(path.stat().st_blocks * 512 for path in Path(folder).iterdir())


def payloads(reader: Reader, end: int) -> list[bytes]:
    """Return the payloads that a reader reads up to an offset."""
    found = []
    while records := reader.read(end, 1 << 20):
        found += [bytes(record.payload) for record in records]
    return found


def test_a_few_messages_take_a_few_blocks(open_log: Open, put: Put, folder: str) -> None:
    """A log with three messages takes kilobytes on the disk, not what a full segment will need."""
    wal = open_log(segment_bytes_max=8 << 20)
    for _ in range(3):
        put(wal, b"x" * 100)
        wal.commit()
    assert taken(folder) <= 40 << 10
    wal.close()


def test_a_log_at_rest_is_as_long_as_what_is_in_it(open_log: Open, put: Put, folder: str) -> None:
    """The next file, and the space after the last record, are released, and readers go on."""
    wal = open_log(segment_bytes_max=1 << 20)
    reader = Reader(SegmentMaps(LocalDisk()), wal.folder, wal.incarnation, 0)
    for number in range(6):
        put(wal, b"%d" % number * 50_000)
        wal.commit()
        if (work := wal.prepare_spare()) is not None:
            work()
    assert SPARE_NAME in os.listdir(folder)
    assert len(payloads(reader, wal.durable_end)) == 6
    assert wal.rest()
    wal.commit()
    assert SPARE_NAME not in os.listdir(folder)
    assert taken(folder) <= 310 << 10
    assert not wal.rest()
    assert wal.prepare_spare() is None
    for number in range(30):
        put(wal, b"%d" % number)
        wal.commit()
        assert payloads(reader, wal.durable_end) == [b"%d" % number]
    wal.close()
    wal = open_log(segment_bytes_max=1 << 20)
    assert (wal.next_offset, wal.report.torn_bytes, wal.report.damaged) == (36, 0, ())
    wal.close()


def test_a_log_at_rest_opens_after_a_crash(open_log: Open, put: Put, disk: LocalDisk, folder: str) -> None:
    """If the process ends while its log is idle, nothing is torn or missing."""
    wal = open_log(segment_bytes_max=1 << 20)
    put(wal, b"x" * 3000)
    wal.commit()
    assert wal.rest()
    wal = open_log(segment_bytes_max=1 << 20)
    assert (wal.next_offset, wal.report.torn_bytes, wal.report.damaged) == (1, 0, ())
    assert put(wal, b"y") == 1
    wal.commit()
    wal.close()


def test_two_hundred_logs_share_a_few_descriptors(open_log: Open, put: Put, tmp_path: Path) -> None:
    """Logs written in turn, one message and commit each, do not keep a descriptor each."""
    disk = LocalDisk(OpenFiles(16))
    before = descriptors_used()
    logs = [open_log(disk=disk, folder=f"{tmp_path}/{number}") for number in range(200)]
    for _ in range(3):
        for wal in logs:
            put(wal, b"x" * 100)
            wal.commit()
    assert descriptors_used() <= before + 17
    assert all(wal.durable_end == 3 for wal in logs)
    for wal in logs:
        wal.close()
    assert descriptors_used() == before
