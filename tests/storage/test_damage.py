"""Tests of damage inside a log: readers stop at it, it is reported, skipped by decision only, found by verifying."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import pytest

from ister.errors import DamagedError, StorageError
from ister.storage.damage import SKIPS_NAME, damage, load_skips, skip_damaged
from ister.storage.producers import Duplicate
from ister.storage.ranges import RangeSet
from ister.storage.reader import Reader
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.verify import VerifyProgress, VerifyReport, verify_log
from ister.storage.wal import Wal

Open = Callable[..., Wal]
Put = Callable[..., int]


@pytest.fixture
def simulated() -> SimulatedDisk:
    """Return a disk in memory."""
    return SimulatedDisk()


@pytest.fixture
def wal(open_log: Open, put: Put, simulated: SimulatedDisk) -> Wal:
    """Return a log of 100 batches of two messages over several segments, committed one by one."""
    wal = open_log(simulated)
    for number in range(100):
        put(wal, b"%04d" % number + b"x" * 900, b"y", producer_id=6, sequence=2 * number)
        wal.commit()
    assert len(wal.sealed()) > 4
    return wal


def flip(disk: SimulatedDisk, wal: Wal, *batches: int) -> None:
    """Flip a bit in the body of batches."""
    for batch in batches:
        for name in disk.listdir(wal.folder):
            path = f"{wal.folder}/{name}"
            at = disk.read(path).find(b"%04dxxx" % batch)
            if at >= 0:
                file = disk.open(path)
                file.pwritev((b"z",), at + 50)
                file.datasync()
                file.close()


def read_all(reader: Reader, end: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the first offsets that are served, and the ranges at which a reader stops."""
    found, stopped = [], []
    while reader.offset < end:
        try:
            found += [record.first_offset for record in reader.read(end, 1 << 20)]
        except DamagedError as error:
            stopped.append((error.first or 0, error.end or 0))
            reader.seek(error.end or 0)
    return found, stopped


def verified(disk: SimulatedDisk, wal: Wal, durable_end: int | None = None) -> VerifyReport:
    """Return the report of a verification."""
    *progress, report = verify_log(disk, wal.folder, wal.incarnation, durable_end=durable_end)
    assert isinstance(report, VerifyReport)
    assert all(isinstance(one, VerifyProgress) for one in progress)
    return report


def test_only_the_damaged_batches_are_not_served(wal: Wal, simulated: SimulatedDisk) -> None:
    """Reading stops at each damaged batch with exactly its offsets, and all others are served."""
    flip(simulated, wal, 0, 17, 18, 50, 99)
    reader = Reader(SegmentMaps(simulated), wal.folder, wal.incarnation, 0)
    found, stopped = read_all(reader, 200)
    # 17 and 18 are adjacent: if they are in one segment, they are one range
    assert RangeSet(stopped) == RangeSet([(0, 2), (34, 38), (100, 102), (198, 200)])
    assert found == [2 * number for number in range(100) if number not in (0, 17, 18, 50, 99)]
    wal.close()


def test_damage_is_skipped_by_decision_only_and_reported(wal: Wal, simulated: SimulatedDisk) -> None:
    """A reader skips exactly the ranges decided on, reports them, and stops at all others."""
    flip(simulated, wal, 17, 50)
    reader = Reader(SegmentMaps(simulated), wal.folder, wal.incarnation, 0)
    for _ in range(2):
        with pytest.raises(DamagedError):
            list(iter(lambda: reader.read(200, 1 << 20), []))
        assert reader.offset == 34
    skips = skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200, first=0, end=40)
    assert list(skips) == [(34, 36)]
    simulated = simulated.power_loss(Random(1))
    reader = Reader(SegmentMaps(simulated), wal.folder, wal.incarnation, 0)
    found, stopped = read_all(reader, 200)
    assert stopped == [(100, 102)]
    assert reader.take_skipped() == [(34, 36)]
    assert reader.take_skipped() == []
    assert len(found) == 98
    assert list(skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200)) == [
        (34, 36),
        (100, 102),
    ]
    reader.seek(0)
    assert read_all(reader, 200) == (found, [])
    wal.close()


def test_only_what_is_damaged_can_be_skipped(wal: Wal, simulated: SimulatedDisk) -> None:
    """A decision about intact records has no effect, one about a part of a damaged range counts for all of it."""
    assert list(skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200)) == []
    flip(simulated, wal, 17)
    assert list(skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200, first=35, end=190)) == [
        (34, 36)
    ]
    wal.close()


def test_a_damaged_skips_file_skips_nothing(wal: Wal, simulated: SimulatedDisk) -> None:
    """Whichever byte of the file is wrong or missing, readers stop as without decisions; it is kept when replaced."""
    flip(simulated, wal, 17)
    skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200)
    path = f"{wal.folder}/{SKIPS_NAME}"
    whole = simulated.read(path)
    wrong = [bytes(whole[:length]) for length in range(len(whole))]
    wrong += [
        whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
        for at in range(len(whole))
        for bit in (1, 128)
    ]
    for contents in [*wrong, whole + bytes(16)]:
        simulated.unlink(path)
        file = simulated.create(path)
        file.pwritev((contents,), 0)
        file.close()
        assert list(load_skips(simulated, wal.folder, wal.incarnation)) == []
        with pytest.raises(DamagedError):
            Reader(SegmentMaps(simulated), wal.folder, wal.incarnation, 34).read(200, 1)
    assert list(skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200)) == [(34, 36)]
    assert f"{SKIPS_NAME}.damaged-0" in simulated.listdir(wal.folder)
    assert list(load_skips(simulated, wal.folder, bytes(16))) == []
    wal.close()


def test_verifying_finds_every_flipped_byte(open_log: Open, put: Put, simulated: SimulatedDisk) -> None:
    """A log of three segments verifies without damage, and with each single changed byte reports a place."""
    wal = open_log(simulated, segment_bytes_max=4096)
    for number in range(6):
        put(wal, b"%d" % number * 40, producer_id=1, sequence=number)
        if number % 2:
            wal.seal()
        wal.commit()
    wal.close()
    report = verified(simulated, wal)
    assert (report.records, report.messages, report.end_offset, report.damaged) == (6, 6, 6, ())
    path = f"{wal.folder}/{2:020d}.seg"
    whole = simulated.read(path)
    for at in range(len(whole)):
        file = simulated.open(path)
        file.pwritev((bytes([whole[at] ^ (1 << at % 8)]),), at)
        (one, *_) = verified(simulated, wal).damaged
        assert one.path == path
        assert one.position <= at
        file.pwritev((whole[at : at + 1],), at)
        file.close()
    assert verified(simulated, wal).damaged == ()


def test_a_log_that_is_written_can_be_verified(wal: Wal, put: Put, simulated: SimulatedDisk) -> None:
    """Records after the durable end are not read, whatever they are; progress ends at the total of bytes."""
    put(wal, b"not yet durable")
    assert wal._active is not None
    wal._active.file.pwritev((b"garbage",), wal._active.end)
    items = list(verify_log(simulated, wal.folder, wal.incarnation, durable_end=wal.durable_end))
    report, last = items[-1], items[-2]
    assert isinstance(report, VerifyReport)
    assert isinstance(last, VerifyProgress)
    assert (report.start_offset, report.end_offset, report.records, report.damaged) == (0, 200, 100, ())
    assert (last.segments, last.bytes) == (last.segments_total, last.bytes_total)
    wal.close()


def test_verifying_and_reading_agree(wal: Wal, simulated: SimulatedDisk) -> None:
    """For any set of damaged batches the reported ranges are those at which readers stop."""
    for seed in range(30):
        random = Random(seed)
        disk = simulated.power_loss(random)
        flip(disk, wal, *random.sample(range(100), random.randrange(1, 12)))
        ranges = [(one.first, one.end) for one in damage(disk, wal.folder, wal.incarnation, durable_end=200)]
        reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, 0)
        assert read_all(reader, 200)[1] == [one for one in ranges if one[0] < one[1]]
    wal.close()


def test_a_missing_segment_is_one_damaged_range(wal: Wal, simulated: SimulatedDisk, open_log: Open) -> None:
    """Opening, reading and verifying report a segment that is missing from the middle."""
    gone = wal.sealed()[2]
    wal.close()
    simulated.unlink(gone.path)
    wal = open_log(simulated)
    assert [(one.first, one.end) for one in wal.damaged] == [(gone.base, gone.end)]
    reader = Reader(SegmentMaps(simulated), wal.folder, wal.incarnation, 0)
    assert read_all(reader, 200)[1] == [(gone.base, gone.end)]
    assert [(one.first, one.end) for one in verified(simulated, wal, 200).damaged] == [(gone.base, gone.end)]
    skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200)
    reader.seek(0)
    assert read_all(reader, 200)[1] == []
    assert reader.take_skipped() == [(gone.base, gone.end)]
    reader.seek(gone.base + 3)  # into the missing range
    assert reader.read(200, 1)[0].first_offset == gone.end
    wal.close()


def test_a_damaged_segment_is_not_offered_and_not_deleted(
    wal: Wal, put: Put, simulated: SimulatedDisk, open_log: Open
) -> None:
    """It is no longer among the sealed ones, and trimming renames its file instead of deleting it."""
    victim = wal.sealed()[1]
    wal.close()
    file = simulated.open(victim.path)
    file.pwritev((b"?",), victim.bytes - 2)
    file.close()
    contents = simulated.read(victim.path)
    wal = open_log(simulated)
    assert victim.base not in [info.base for info in wal.sealed()]
    put(wal, b"on")
    wal.commit()
    assert victim.base in [info.base for info in wal.trim(victim.end)]
    assert (wal.start_offset, wal.damaged) == (victim.end, ())
    assert simulated.read(f"{victim.path}.damaged-0") == contents
    wal.close()
    wal = open_log(simulated)
    assert (wal.start_offset, wal.next_offset, wal.damaged) == (victim.end, 201, ())
    wal.close()


def test_producers_are_known_behind_damage(
    wal: Wal, put: Put, simulated: SimulatedDisk, open_log: Open
) -> None:
    """If recovery meets damage in the newest segment, it still reads what producers sent after it."""
    wal.close()
    disk = simulated
    flip(disk, wal, 97)
    wal = open_log(disk)
    assert [(one.first, one.end) for one in wal.damaged] == [(194, 196)]
    assert wal.next_offset == 200
    assert wal.producers.check(6, 198, 2) == Duplicate(198)
    assert wal.producers.next_sequence(6) == 200
    put(wal, b"on", producer_id=6, sequence=200)
    wal.commit()
    wal.close()
    disk = disk.power_loss(Random(3))
    wal = open_log(disk)
    assert (wal.next_offset, wal.producers.next_sequence(6)) == (201, 201)
    assert wal.producers.check(6, 198, 2) == Duplicate(198)
    reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, 0)
    assert read_all(reader, 201)[1] == [(194, 196)]
    wal.close()


def test_a_log_that_is_damaged_again_and_again_goes_on(open_log: Open, put: Put) -> None:
    """Bytes change between openings, and power fails: nothing wrong is served, and losses are reported."""
    for seed in range(int(os.environ.get("ISTER_TEST_SEEDS", "60"))):
        random = Random(seed)
        disk = SimulatedDisk()
        written: dict[int, bytes] = {}
        acknowledged = 0
        for life in range(4):
            try:
                wal = open_log(disk, segment_bytes_max=4096, known_end=acknowledged)
            except StorageError as error:
                if error.action != "stop":
                    raise
                break  # no record says where it ended
            assert wal.next_offset >= acknowledged, seed
            lost = RangeSet((one.first, one.end) for one in wal.report.damaged if one.first < one.end)
            reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, wal.start_offset)
            while reader.offset < wal.next_offset:
                try:
                    records = reader.read(wal.next_offset, 1 << 20)
                except DamagedError as error:
                    lost.add(error.first or 0, error.end or 0)
                    reader.seek(error.end or 0)
                    continue
                assert all(bytes(record.payload) == written[record.first_offset] for record in records), seed
            *_, report = verify_log(disk, wal.folder, wal.incarnation, durable_end=wal.next_offset)
            assert isinstance(report, VerifyReport)
            for one in report.damaged:
                assert lost.covers(one.first, one.end), (seed, one)
            for number in range(random.randrange(25)):
                payload = b"%d/%d/" % (life, number) + b"x" * random.randrange(900)
                written[put(wal, payload, producer_id=1, sequence=wal.next_offset)] = payload
                if random.random() < 0.6:
                    acknowledged = wal.commit()
                if random.random() < 0.1:
                    wal.seal()
            acknowledged = wal.commit() if random.random() < 0.5 else acknowledged
            acknowledged = max(acknowledged, wal.durable_end)
            wal.close()
            if random.random() < 0.4:
                disk = disk.power_loss(random)
            for _ in range(random.randrange(3)):
                names = [name for name in disk.listdir(wal.folder) if name.endswith(".seg")]
                file = disk.open(f"{wal.folder}/{random.choice(names)}") if names else None
                if file is not None and file.size():
                    at = random.randrange(file.size())
                    file.pwritev((bytes([file.pread(1, at)[0] ^ 1 << random.randrange(8)]),), at)
                    file.datasync()
                    file.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_decision_that_failed_is_not_in_force(wal: Wal, simulated: SimulatedDisk, number: int) -> None:
    """The operator was told that nothing changed: readers stop at the damage as before."""
    flip(simulated, wal, 10, 60)
    decided = skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200, first=0, end=40)
    count = iter(range(100))

    def fails(operation: str, path: str) -> None:
        if operation == "sync_folder" and next(count) == number:
            raise OSError(5, "Input/output error", path)

    simulated.on_operation = fails
    with pytest.raises(OSError, match="Input"):
        skip_damaged(simulated, wal.folder, wal.incarnation, durable_end=200)
    simulated.on_operation = None
    assert load_skips(simulated, wal.folder, wal.incarnation) == decided
