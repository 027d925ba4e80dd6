"""Tests of reading a history from log and cache, without listing a folder for what the log no longer has."""

from __future__ import annotations

import pytest

from ister.errors import DamagedError
from ister.storage.damage import skip_damaged
from ister.storage.segment import base_of
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.wal import Wal, WalSettings
from ister.storage.wholereader import NotHereError, TieredReader
from tests.stage import StagedClock

INCARNATION = bytes(range(16))
LOG, CACHE = "/log", "/cache"
MESSAGES = 60


class Tiered:
    """A log of some segments, of which the oldest can be moved into the cache."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk()
        wal = Wal.open(
            self.disk,
            LOG,
            topic="orders",
            incarnation=INCARNATION,
            settings=WalSettings(segment_bytes_max=8192, producers_max=4),
            clock=StagedClock(),
        )
        for number in range(MESSAGES):
            frames = (b"\xe8\x03\0\0", b"%04d" % number + bytes(996))
            wal.append(count=1, producer_id=1, sequence=number, columns=0, frames=frames, timestamp_ms=number)
        wal.commit()
        wal.close()
        self.disk.makedirs(CACHE)
        self.maps = SegmentMaps(self.disk)
        self.listed: list[str] = []
        listdir = self.disk.listdir

        def watched(path: str) -> list[str]:
            self.listed.append(path)
            return listdir(path)

        self.disk.listdir = watched  # type: ignore[method-assign]

    def bases(self) -> list[int]:
        """Return the first offsets of the log's segments."""
        return [base for name in self.disk.listdir(LOG) if (base := base_of(name)) is not None]

    def bring(self, reader: TieredReader, base: int, *, keep: bool = False) -> None:
        """Put the segment at `base` into the cache; without `keep` the log no longer has it."""
        path = f"{LOG}/{base:020d}.seg"
        data = self.disk.read(path)
        file = self.disk.create(f"{CACHE}/{base:020d}.seg")
        file.pwritev((data,), 0)
        file.close()
        if not keep:
            self.disk.unlink(path)
        reader.brought(base)

    def reader(self, offset: int = 0) -> TieredReader:
        """Open a reader."""
        return TieredReader(self.maps, LOG, CACHE, INCARNATION, offset)

    def flip(self, base: int, number: int) -> None:
        """Flip a byte of a message in the log."""
        path = f"{LOG}/{base:020d}.seg"
        at = self.disk.read(path).index(b"%04d\0" % number)
        file = self.disk.open(path)
        file.pwritev((b"?",), at + 100)
        file.close()


def drained(reader: TieredReader, end: int = MESSAGES) -> list[int]:
    """Read up to an offset."""
    found: list[int] = []
    while reader.offset < end:
        found += [record.first_offset for record in reader.read(end, 3000)]
    return found


def test_cached_history_is_read_without_listing_a_folder() -> None:
    """With a log of thousands of segments, a listing takes longer than anything else on the loop."""
    tiered = Tiered()
    reader = tiered.reader()
    bases = tiered.bases()
    for base in bases[:4]:
        tiered.bring(reader, base)
    reader.read(MESSAGES, 1)  # the first read finds where the log begins
    tiered.listed.clear()
    assert drained(reader, bases[4]) == list(range(1, bases[4]))
    for offset in (bases[3], 2, bases[2] + 1, 0):  # in any order, as returned messages are read
        reader.seek(offset)
        assert reader.read(MESSAGES, 1)[0].first_offset == offset
    assert tiered.listed == []
    assert reader.from_store


def test_who_comes_to_the_end_of_what_is_cached_takes_nothing_from_others() -> None:
    """Readers of a topic share the list of its cached segments; when one needs the next segment, others read on."""
    tiered = Tiered()
    one, other = tiered.reader(), tiered.reader()
    first, second, third, *_ = tiered.bases()
    for base in (first, second):
        tiered.bring(one, base)
    tiered.disk.unlink(f"{LOG}/{third:020d}.seg")
    assert drained(one, third) == list(range(third))
    other.seek(second + 1)
    with pytest.raises(NotHereError) as missing:
        one.read(MESSAGES, 1)
    assert (missing.value.offset, missing.value.damage) == (third, None)
    for offset in (second + 1, first + 1, second):
        other.seek(offset)
        assert other.read(MESSAGES, 1)[0].first_offset == offset


def test_a_damaged_copy_is_forgotten_and_no_other() -> None:
    """It is fetched again; other cached segments of the topic are read meanwhile."""
    tiered = Tiered()
    one, other = tiered.reader(), tiered.reader()
    first, second, *_ = tiered.bases()
    tiered.flip(first, 2)
    for base in (first, second):
        tiered.bring(one, base)
    one.seek(2)
    with pytest.raises(NotHereError) as missing:
        one.read(MESSAGES, 1)
    assert (missing.value.offset, missing.value.damage is None) == (2, False)
    assert tiered.maps.known_bases(CACHE) == [second]
    other.seek(second)
    assert other.read(MESSAGES, 1)[0].first_offset == second


def test_another_place_in_the_log_is_found_without_listing_it_again() -> None:
    """Returned messages are read from all over the log."""
    tiered = Tiered()
    reader = tiered.reader()
    assert drained(reader) == list(range(MESSAGES))
    reader.seek(30)
    reader.read(MESSAGES, 1)
    tiered.listed.clear()
    for offset in (3, 55, 17, 40):
        reader.seek(offset)
        assert reader.read(MESSAGES, 1)[0].first_offset == offset
    assert tiered.listed == []


def test_what_left_the_cache_is_asked_for_again() -> None:
    """A file that is gone is no error: it is fetched again, and nothing is skipped."""
    tiered = Tiered()
    reader = tiered.reader()
    first, second, *_ = tiered.bases()
    tiered.bring(reader, first)
    data = tiered.disk.read(f"{CACHE}/{first:020d}.seg")
    assert reader.read(MESSAGES, 1)[0].first_offset == 0
    tiered.disk.unlink(f"{CACHE}/{first:020d}.seg")
    tiered.maps.clear()
    reader.close()
    with pytest.raises(NotHereError) as missing:
        reader.read(MESSAGES, 1)
    assert (missing.value.offset, missing.value.until, missing.value.damage) == (1, second, None)
    file = tiered.disk.create(f"{CACHE}/{first:020d}.seg")
    file.pwritev((data,), 0)
    file.close()
    reader.brought(first)
    assert drained(reader) == list(range(1, MESSAGES))


def test_a_damaged_record_of_the_log_is_asked_of_the_store_and_only_that() -> None:
    """Records before and after it come from the log; if the store lacks it too, it is damage with its range."""
    tiered = Tiered()
    first = tiered.bases()[0]
    reader = tiered.reader()
    tiered.bring(reader, first, keep=True)
    tiered.flip(first, 3)
    assert drained(reader) == list(range(MESSAGES))
    tiered.maps.clear()
    alone = tiered.reader()
    alone.stored_end = 3
    assert drained(alone, 3) == [0, 1, 2]
    with pytest.raises(DamagedError) as damaged:
        alone.read(MESSAGES, 1)
    assert (damaged.value.first, damaged.value.end) == (3, 4)


def test_a_decision_to_skip_covers_what_is_neither_here_nor_there() -> None:
    """It is skipped and reported, exactly; what the cache has after all is not skipped."""
    tiered = Tiered()
    reader = tiered.reader()
    first, second, third, *_ = tiered.bases()
    tiered.bring(reader, first)
    tiered.disk.unlink(f"{LOG}/{second:020d}.seg")
    skip_damaged(tiered.disk, LOG, INCARNATION, lost=[(0, third)])
    assert drained(reader) == [*range(second), *range(third, MESSAGES)]
    assert reader.take_skipped() == [(second, third)]
