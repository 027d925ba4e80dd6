"""Tests of reading a log, in any process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ister.errors import DamagedError, GapError, TrimmedError
from ister.storage.disk import LocalDisk
from ister.storage.reader import Reader
from ister.storage.segment_maps import RESIDENT_MAX, SegmentMaps
from ister.storage.wal import Wal

Open = Callable[..., Wal]
Put = Callable[..., int]


@pytest.fixture
def wal(open_log: Open, put: Put) -> Wal:
    """Return a log of 200 batches of two messages, over several segments."""
    wal = open_log()
    for number in range(200):
        put(
            wal,
            b"%04d" % number,
            b"x" * (number % 400 + 150),
            timestamp_ms=number,
            producer_id=4,
            sequence=2 * number,
        )
    wal.commit()
    assert len(wal.sealed()) > 2
    return wal


@pytest.fixture
def maps(disk: LocalDisk) -> SegmentMaps:
    """Return maps of files on the machine's disk."""
    return SegmentMaps(disk, maps_max=2)


def test_all_is_read_in_order_from_anywhere(wal: Wal, maps: SegmentMaps) -> None:
    """From any offset, also inside a batch, its batch comes first, and all others follow."""
    for start in range(0, 400, 7):
        reader = Reader(maps, wal.folder, wal.incarnation, start)
        offset = start - start % 2
        while records := reader.read(wal.durable_end, 5000, 10):
            for record in records:
                assert (record.first_offset, record.end_offset) == (offset, offset + 2)
                assert bytes(record.payload[:4]) == b"%04d" % (offset // 2)
                assert (record.timestamp_ms, record.producer_id, record.sequence) == (offset // 2, 4, offset)
                offset += 2
            assert reader.offset == offset
        assert offset == 400
    wal.close()


def test_nothing_at_or_past_the_durable_end_is_returned(open_log: Open, put: Put, maps: SegmentMaps) -> None:
    """A reader does not see records that were appended and are not durable."""
    wal = open_log()
    put(wal, b"a")
    wal.commit()
    put(wal, b"b")
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    assert [bytes(record.payload) for record in reader.read(wal.durable_end, 1 << 20)] == [b"a"]
    assert reader.read(wal.durable_end, 1 << 20) == []
    wal.commit()
    assert [bytes(record.payload) for record in reader.read(wal.durable_end, 1 << 20)] == [b"b"]
    wal.close()


def test_a_reader_at_the_live_end_follows_into_the_next_segments(
    open_log: Open, put: Put, maps: SegmentMaps
) -> None:
    """A reader at the end gets each batch once while the log is written, through rolls, age seals and empty reads."""
    wal = open_log()
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    seen = []
    for number in range(150):
        put(wal, b"%d" % number, b"." * 300)
        if number % 7 == 0:
            wal.seal()
        if number % 3 == 0:
            wal.commit()
        seen += [bytes(record.payload).split(b".")[0] for record in reader.read(wal.durable_end, 1 << 20)]
    wal.commit()
    seen += [bytes(record.payload).split(b".")[0] for record in reader.read(wal.durable_end, 1 << 20)]
    assert seen == [b"%d" % number for number in range(150)]
    wal.close()


def test_limits_hold_but_one_record_is_always_returned(wal: Wal, maps: SegmentMaps) -> None:
    """bytes_max and records_max limit a read; a record larger than bytes_max is returned alone."""
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    assert len(reader.read(wal.durable_end, 1)) == 1
    assert len(reader.read(wal.durable_end, 1 << 20, records_max=3)) == 3
    for _ in range(10):
        records = reader.read(wal.durable_end, 2000)
        assert len(records) == 1 or sum(record.size for record in records) <= 2000
    wal.close()


def test_seeking_goes_anywhere_and_back(wal: Wal, maps: SegmentMaps) -> None:
    """A reader may be moved at any time, forwards and backwards."""
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    for offset in (399, 0, 200, 201, 10, 398):
        reader.seek(offset)
        (record,) = reader.read(wal.durable_end, 1)
        assert record.first_offset <= offset < record.end_offset
    wal.close()


def test_an_offset_that_is_not_in_the_log_is_said_to_be_trimmed_or_missing(
    wal: Wal, maps: SegmentMaps, disk: LocalDisk
) -> None:
    """Below the first segment reading raises TrimmedError, in a missing one DamagedError; both have the range."""
    first, second, third = wal.sealed()[:3]
    disk.unlink(first.path)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    with pytest.raises(TrimmedError, match=f"begins at offset {first.end}") as trimmed:
        reader.read(wal.durable_end, 1 << 20)
    assert (trimmed.value.first, trimmed.value.end) == (0, first.end)
    reader.seek(first.end)
    assert reader.read(wal.durable_end, 1)[0].first_offset == first.end
    disk.unlink(third.path)
    with pytest.raises(DamagedError, match="no segment begins") as missing:
        list(iter(lambda: reader.read(wal.durable_end, 1 << 20), []))
    assert (missing.value.first, missing.value.end) == (third.base, third.end)
    assert reader.offset <= second.end
    with pytest.raises(GapError):
        Reader(maps, f"{wal.folder}/..", wal.incarnation, 0).read(1, 1)
    wal.close()


def test_damaged_bytes_are_never_handed_out(wal: Wal, disk: LocalDisk) -> None:
    """A flipped byte raises an error when a reader gets to its record; earlier records are returned first."""
    info = wal.sealed()[0]
    contents = disk.read(info.path)
    position = contents.index(b"0003") - 4 * 2 - 64  # the header of the fourth batch
    for at in range(position, position + 64 + 8 + 4 + 3):
        flipped = bytearray(contents)
        flipped[at] ^= 0x10
        Path(info.path).write_bytes(flipped)
        reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, 0)
        assert [record.first_offset for record in reader.read(wal.durable_end, 1 << 20)] == [0, 2, 4]
        with pytest.raises((DamagedError, GapError)):
            reader.read(wal.durable_end, 1 << 20)
        assert reader.offset == 6
    wal.close()


def test_a_segment_of_another_topic_is_not_read(wal: Wal, maps: SegmentMaps) -> None:
    """A reader checks the segment's topic before it returns any record of it."""
    with pytest.raises(DamagedError, match="another topic"):
        Reader(maps, wal.folder, b"\7" * 16, 0).read(wal.durable_end, 1 << 20)
    wal.close()


def test_views_outlive_the_map_the_file_and_the_reader(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """Returned views stay readable when the cache has dropped the map and the file is deleted."""
    wal = open_log()
    for _ in range(40):
        put(wal, b"k" * 1500)
        wal.commit()
    maps = SegmentMaps(disk, maps_max=1)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    held = []
    while records := reader.read(wal.durable_end, 1 << 20):
        held += records
    wal.close()
    for name in disk.listdir(wal.folder):
        disk.unlink(f"{wal.folder}/{name}")
    maps.clear()
    del reader
    gc.collect()
    assert {bytes(record.payload) for record in held} == {b"k" * 1500}
    assert len(held) == 40


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count open files")
def test_reading_many_segments_leaks_no_files(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """However many segments are read, at most maps_max stay open, and none after clear."""
    wal = open_log(segment_bytes_max=4096)
    for _ in range(300):
        put(wal, b"k" * 3000)
    wal.commit()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    maps = SegmentMaps(disk, maps_max=8)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    count = 0
    while records := reader.read(wal.durable_end, 1 << 20):
        count += len(records)
        del records
        assert len(os.listdir("/proc/self/fd")) <= before + 8 + 2
    assert count == 300
    reader.close()
    maps.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    wal.close()


def test_a_file_that_grew_since_it_was_mapped_is_mapped_again(
    open_log: Open, put: Put, disk: LocalDisk, maps: SegmentMaps
) -> None:
    """A map made when the file was shorter does not hide later records."""
    wal = open_log()
    put(wal, b"a")
    wal.commit()
    path = f"{wal.folder}/{0:020d}.seg"
    assert wal._active is not None
    size, end = disk.size(path), wal._active.end
    file = disk.open(path)
    file.truncate(end)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    assert len(reader.read(1, 1 << 20)) == 1
    file.truncate(size)
    file.close()
    put(wal, b"b")
    wal.commit()
    assert [bytes(record.payload) for record in reader.read(2, 1 << 20)] == [b"b"]
    wal.close()


def test_going_back_into_a_segment_does_not_walk_all_of_it(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """A map remembers positions every 64 KiB, so that a seek walks headers from the nearest one."""
    wal = open_log(segment_bytes_max=1 << 20)
    for _ in range(200):
        put(wal, b"x" * 4000)
    wal.commit()
    maps = SegmentMaps(disk)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    while reader.read(wal.durable_end, 1 << 20):
        pass
    segment = maps.get(wal.folder, wal.incarnation, 0)
    assert len(segment.marks) >= 10
    offset, position = segment.nearest(150)
    assert 120 < offset <= 150
    header = segment.header(position)
    assert header is not None
    assert header[7] == offset
    wal.close()


def test_forgetting_a_log_drops_its_maps_only(wal: Wal, maps: SegmentMaps) -> None:
    """Maps of a deleted topic are closed at once."""
    Reader(maps, wal.folder, wal.incarnation, 0).read(wal.durable_end, 1)
    maps.forget("/somewhere/else")
    assert len(maps) == 1
    maps.forget(wal.folder)
    assert len(maps) == 0
    wal.close()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_a_reader_gives_back_the_memory_of_what_it_has_read(
    open_log: Callable[..., Wal], put: Callable[..., int]
) -> None:
    """Segments behind it stay mapped and in the page cache, and count no more as memory of the process."""
    wal = open_log(LocalDisk(), segment_bytes_max=1 << 20)
    for _ in range(40):
        put(wal, bytes(500_000))
    wal.commit()
    maps = SegmentMaps(LocalDisk())
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    views = []
    while records := reader.read(wal.durable_end, 1 << 20):
        views += [record.payload for record in records]
    assert len(maps) >= 20
    assert resident(wal.folder) <= (RESIDENT_MAX + 1) << 20
    assert all(bytes(view) == bytes(500_000) for view in views), "what was handed out can be read"
    assert resident(wal.folder) > 8 << 20
    maps.rest()
    assert resident(wal.folder) == 0
    reader.seek(3)
    assert reader.read(wal.durable_end, 1)[0].first_offset == 3
    wal.close()


def resident(folder: str) -> int:
    """Return how many bytes of maps of a folder's files count as memory of this process."""
    found, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mine = folder in line
        elif mine and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found
