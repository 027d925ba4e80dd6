"""Tests of the sparse index, which finds offsets and times without walking a segment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import Random

import pytest

from ister.storage.index import INDEX_STEP_BYTES, SparseIndex, index_bytes
from ister.storage.log_search import SearchGoesOnError
from ister.storage.reader import Reader
from ister.storage.record import parse_header, salt_of
from ister.storage.segment import FOOTER_BYTES, SEGMENT_HEADER_BYTES, segment_name
from ister.storage.segment_maps import SegmentMaps, read_index
from ister.storage.simulated import SimulatedDisk
from ister.storage.wal import Wal

Open = Callable[..., Wal]
Put = Callable[..., int]


def log_with_times(open_log: Open, put: Put, disk: SimulatedDisk, seed: int = 1) -> tuple[Wal, list[int]]:
    """Return a log of many 1 MiB segments, and the log time of each of its batches, one message each."""
    random = Random(seed)
    wal = open_log(disk, segment_bytes_max=1 << 20)
    times, now, high = [], 1000, 0
    for _ in range(700):
        now += random.choice((0, 1, 3, 50, -40))
        high = max(high, now)
        put(wal, b"x" * random.randrange(12_000), timestamp_ms=now)
        times.append(high)
        if random.random() < 0.02:
            wal.seal()
    wal.commit()
    return wal, times


def expected(times: list[int], wanted: int) -> int:
    """Return the offset of the first batch whose log time is `wanted` or later."""
    return next((at for at, time in enumerate(times) if time >= wanted), len(times))


def test_an_entry_is_made_each_64_kib_and_leads_to_its_record(open_log: Open, put: Put) -> None:
    """Each sealed segment's index has a record per step, with its offset and position."""
    disk = SimulatedDisk()
    wal, _ = log_with_times(open_log, put, disk)
    entries = 0
    for info in wal.sealed():
        salt = salt_of(wal.incarnation, info.base)
        index = read_index(disk, info.path, salt)
        if index is None:
            assert info.bytes < INDEX_STEP_BYTES + 15_000
            continue
        data = disk.read(info.path)
        entries += len(index)
        before = SEGMENT_HEADER_BYTES
        for offset, position in zip(index.offsets, index.positions, strict=True):
            header = parse_header(data, position, salt)
            assert header is not None
            assert header[7] == offset
            assert INDEX_STEP_BYTES <= position - before < INDEX_STEP_BYTES + 15_000
            before = position
        assert info.bytes - before < INDEX_STEP_BYTES + 15_000 + index_bytes(len(index)) + FOOTER_BYTES
    assert entries > 30
    wal.close()


def test_a_time_is_found_whatever_the_clock_did(open_log: Open, put: Put) -> None:
    """offset_at gives the first offset with a late enough log time, also if batch times step back."""
    disk = SimulatedDisk()
    wal, times = log_with_times(open_log, put, disk)
    reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, 0)
    for wanted in [0, *range(times[0] - 2, times[-1] + 3, 7), times[-1] + 1000]:
        assert reader.offset_at(wanted, 700) == expected(times, wanted)
        assert reader.offset_at(wanted, 333) == min(333, expected(times, wanted))
    assert reader.seek_time(times[400], 700) == reader.offset == expected(times, times[400])
    wal.close()
    wal = open_log(disk, segment_bytes_max=1 << 20)  # log time continues after reopening
    put(wal, b"stepped back", timestamp_ms=1)
    wal.seal()
    wal.commit()
    assert wal.sealed()[-1].max_timestamp_ms == times[-1]
    wal.close()


@pytest.mark.parametrize("how", ["index gone", "index wrong", "footer gone"])
def test_without_its_index_a_segment_is_walked(open_log: Open, put: Put, how: str) -> None:
    """A missing or wrong index costs time, and never changes the answer."""
    disk = SimulatedDisk()
    wal, times = log_with_times(open_log, put, disk)
    for info in wal.sealed():
        index = read_index(disk, info.path, salt_of(wal.incarnation, info.base))
        if index is None:
            continue
        at = info.bytes - FOOTER_BYTES - index_bytes(len(index))
        file = disk.open(info.path)
        if how == "index wrong":
            index.positions[-1] += 1
            index.offsets[0] += 1
            salt = salt_of(wal.incarnation, info.base)
            file.pwritev((index.encode(salt, info.end, 0),), at)
        else:
            file.pwritev((b"\1",), at + 70 if how == "index gone" else info.bytes - 3)
        file.close()
    maps = SegmentMaps(disk)
    reader = Reader(maps, wal.folder, wal.incarnation, 0)
    for wanted in range(times[0], times[-1], 301):
        assert reader.offset_at(wanted, 700) == expected(times, wanted)
    for offset in range(0, 700, 13):
        reader.seek(offset)
        assert reader.read(700, 1)[0].first_offset == offset
    wal.close()


@pytest.mark.parametrize("headers_max", [1, 7, 100])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_search_in_parts_finds_what_one_at_once_does(
    open_log: Open, put: Put, headers_max: int, damaged: bool
) -> None:
    """Each part looks at so many headers and no more; the log grows meanwhile, and another search may come between."""
    disk = SimulatedDisk()
    wal = open_log(disk, segment_bytes_max=1 << 20)
    times: list[int] = []
    for number in range(300):
        put(wal, b"%d" % number, timestamp_ms=1000 + 2 * number)
        times.append(1000 + 2 * number)
        if number in (60, 90):
            wal.seal()
    wal.commit()
    if damaged:
        base = max(info.base for info in wal.sealed())
        path = f"{wal.folder}/{segment_name(base)}"
        file = disk.open(path)
        file.pwritev((b"?" * 40,), disk.read(path).find(b"75") - 60)
        file.close()
    maps = SegmentMaps(disk)
    whole = Reader(maps, wal.folder, wal.incarnation, 0)
    parts = Reader(maps, wal.folder, wal.incarnation, 0)
    for wanted in (0, 1000, 1100, 1140, 1179, 1181, 1400, 1599, 5000):
        expected_ = whole.find_time(wanted, 300)
        with contextlib.suppress(SearchGoesOnError):
            parts.find_time(1333, 300, headers_max)  # another search, left off
        tries = 0
        while True:
            tries += 1
            try:
                found = parts.find_time(wanted, 300, headers_max)
            except SearchGoesOnError:
                continue
            break
        assert found == expected_
        assert tries <= 300 // headers_max + 4
    with pytest.raises(SearchGoesOnError):
        parts.find_time(5000, 300, 50)
    put(wal, b"later", timestamp_ms=6000)
    wal.commit()
    tries = 0
    while tries < 10:
        try:
            assert parts.find_time(5000, 301, 50).whole == 300
            break
        except SearchGoesOnError:
            tries += 1
    assert 0 < tries < 8
    wal.close()


def test_a_seek_begins_at_the_nearest_entry(open_log: Open, put: Put) -> None:
    """A seek in a segment that was not read yet walks the headers of one step, not of the whole segment."""
    disk = SimulatedDisk()
    wal = open_log(disk, segment_bytes_max=1 << 20)
    while not wal.sealed():
        put(wal, b"x" * 500)
        if wal.next_offset % 100 == 0:
            wal.commit()
    info = wal.sealed()[0]
    maps = SegmentMaps(disk)
    segment = maps.get(wal.folder, wal.incarnation, 0)
    offset, position = segment.nearest(info.end - 2)
    assert info.end - offset < 2 * INDEX_STEP_BYTES // 500
    assert segment.header(position) is not None
    wal.close()


def test_an_index_that_is_not_ascending_is_not_believed() -> None:
    """An index with unordered entries is not used at all."""
    index = SparseIndex(100)
    index.note(5, 70_000, 1)
    index.note(4, 140_000, 1)
    encoded = index.encode(7, 9, 0)
    header = parse_header(encoded, 0, 7)
    assert header is not None
    assert SparseIndex.decode(encoded, header, 7) is None
    assert SparseIndex(0).encode(7, 9, 0) == b""


def test_a_segment_finished_by_recovery_has_its_index(open_log: Open, put: Put) -> None:
    """A footer written by recovery, or by the seal after it, comes with the same index as without a crash."""
    disk = SimulatedDisk()
    wal = open_log(disk, segment_bytes_max=1 << 20)
    for number in range(40):
        put(wal, b"x" * 10_000, timestamp_ms=number)
    wal.commit()
    wal.close()
    wal = open_log(disk, segment_bytes_max=1 << 20)
    put(wal, b"x" * 10_000, timestamp_ms=40)
    wal.seal()
    wal.commit()
    index = read_index(disk, wal.sealed()[0].path, salt_of(wal.incarnation, 0))
    assert index is not None
    assert list(index.offsets) == [7, 14, 21, 28, 35]
    assert list(index.times) == [6, 13, 20, 27, 34]
    wal.close()
