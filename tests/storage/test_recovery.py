"""Tests of opening a log after failures of any kind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ister.errors import DamagedError, LogFailedError, StorageError
from ister.storage.disk import LocalDisk
from ister.storage.producers import Duplicate, Fresh
from ister.storage.reader import Reader
from ister.storage.recovery import DamagedRange, RecoveryReport
from ister.storage.segment import FOOTER_BYTES, SEGMENT_HEADER_BYTES
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.wal import Wal

Open = Callable[..., Wal]
Put = Callable[..., int]
Batch = tuple[int, int, bytes]  # first offset, count, payload


def batches(wal: Wal, disk: Any) -> list[Batch]:
    """Return all batches of a log, and check that it contains nothing else."""
    reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, wal.start_offset)
    found: list[Batch] = []
    while records := reader.read(wal.next_offset, 1 << 20):
        found += [(record.first_offset, record.count, bytes(record.payload)) for record in records]
    assert reader.offset == wal.next_offset
    return found


def batches_and_damage(wal: Wal, disk: Any) -> tuple[list[Batch], list[tuple[int, int]]]:
    """Return all batches of a log, and the complete ranges at which reading it stops."""
    reader = Reader(SegmentMaps(disk), wal.folder, wal.incarnation, wal.start_offset)
    found: list[Batch] = []
    missing = []
    while reader.offset < wal.next_offset:
        try:
            records = reader.read(wal.next_offset, 1 << 20)
        except DamagedError as error:
            first, end = error.first or 0, error.end or 0
            missing.append((first, end))
            reader.seek(end)
            continue
        found += [(record.first_offset, record.count, bytes(record.payload)) for record in records]
    assert reader.offset == wal.next_offset
    assert all(first < end for first, end in missing)
    return found, missing


@pytest.mark.parametrize("age_sealed", [False, True])
def test_the_last_segment_cut_at_each_length_loses_only_whole_batches_from_its_end(
    open_log: Open, put: Put, age_sealed: bool
) -> None:
    """Whatever length the newest segment is cut to, its beginning is served, and the log continues after it."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    put(wal, b"before")
    wal.seal()
    written = [(0, 1, b"before")]
    for number in range(6):
        payload = bytes([65 + number]) * (20 * number)
        written.append((put(wal, payload, b"", producer_id=3, sequence=2 * number), 2, payload))
    wal.commit()
    assert wal._active is not None
    end = wal._active.end
    if age_sealed:
        wal.seal()
        wal.commit()
        end += FOOTER_BYTES
    path = f"{wal.folder}/{1:020d}.seg"
    wal.close()
    whole = disk.read(path)
    seen = set()
    for length in range(end + 1):
        if disk.exists(path):
            disk.unlink(path)
        file = disk.create(path)
        file.pwritev((whole[:length],), 0)
        file.close()
        wal = open_log(disk)
        held = batches(wal, disk)
        assert held == written[: len(held)]
        assert wal.report.kept == wal.next_offset == 1 + 2 * (len(held) - 1)
        seen.add(len(held))
        assert put(wal, b"on") == wal.next_offset - 1
        wal.commit()
        wal.close()
        wal = open_log(disk)
        assert batches(wal, disk) == [*held, (wal.next_offset - 1, 1, b"on")]
        wal.close()
        for name in disk.listdir(wal.folder)[1:]:
            disk.unlink(f"{wal.folder}/{name}")
    assert seen == set(range(1, 8))


def replace(disk: SimulatedDisk, path: str, contents: bytes) -> None:
    """Replace the file at a path by these contents, durably."""
    if disk.exists(path):
        disk.unlink(path)
    file = disk.create(path)
    file.pwritev((contents,), 0)
    file.datasync()
    file.close()
    disk.sync_folder(path.rpartition("/")[0])


def test_each_flipped_byte_is_harmless_or_torn_or_reported_but_never_served(
    open_log: Open, put: Put, folder: str
) -> None:
    """A flipped byte gives the same data, a cut tail, or a reported range; never other data or a reused offset."""
    disk = SimulatedDisk()
    wal = open_log(disk)
    written = []
    for number in range(4):
        payload = bytes([65 + number]) * 30
        written.append((put(wal, payload, producer_id=3, sequence=number), 1, payload))
        wal.commit()
    assert wal._active is not None
    end = wal._active.end
    wal.close()
    path = f"{folder}/{0:020d}.seg"
    whole = disk.read(path)
    outcomes = {"same": 0, "torn": 0, "damage": 0}
    for position in range(end + 8):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        replace(disk, path, bytes(flipped))
        wal = open_log(disk)
        reported = [(one.first, one.end) for one in wal.report.damaged]
        held, missing = batches_and_damage(wal, disk)
        assert set(missing) == {one for one in reported if one[0] < one[1]}
        if reported:
            outcomes["damage"] += 1
            assert disk.read(path) == flipped
            assert held == [one for one in written if not any(a <= one[0] < b for a, b in reported)]
            assert wal.next_offset >= 3  # as far as is proven
        elif len(held) == 4:
            assert held == written
            outcomes["same"] += 1
        else:  # only the last batch was not yet proven durable by another file
            assert held == written[:3]
            assert wal.report.torn_bytes > 0
            outcomes["torn"] += 1
        wal.close()
        for name in disk.listdir(folder):
            disk.unlink(f"{folder}/{name}")
    assert sum(outcomes.values()) == end + 8
    assert outcomes["torn"] == 64 + 4 + 30
    assert outcomes["same"] == SEGMENT_HEADER_BYTES + 8  # everything in a segment header is known otherwise


def test_damage_below_what_somebody_saw_durable_is_no_torn_tail(
    open_log: Open, put: Put, disk: LocalDisk
) -> None:
    """If another file proves how far it was durable, recovery goes on there, reports what is missing, keeps it."""
    wal = open_log()
    put(wal, b"a")
    put(wal, b"b" * 50)
    wal.commit()
    wal.close()
    path = f"{wal.folder}/{0:020d}.seg"
    contents = bytearray(disk.read(path))
    contents[contents.index(b"b" * 50) + 7] ^= 1
    Path(path).write_bytes(contents)
    wal = open_log(known_end=2)
    assert [(one.first, one.end, one.path) for one in wal.damaged] == [(1, 2, path)]
    assert put(wal, b"c") == 2
    wal.commit()
    for _ in range(2):
        assert disk.read(path) == contents
        held, missing = batches_and_damage(wal, disk)
        assert ([first for first, _, _ in held], missing) == ([0, 2], [(1, 2)])
        wal.close()
        wal = open_log()
        assert wal.next_offset == 3
    wal.close()


def test_an_end_that_only_others_know_is_where_the_log_goes_on(
    open_log: Open, put: Put, disk: LocalDisk
) -> None:
    """Offsets that a cursor or the store has seen are not given again, although no segment has them."""
    wal = open_log()
    put(wal, b"a")
    wal.commit()
    wal.close()
    wal = open_log(known_end=5)
    assert [(one.first, one.end) for one in wal.damaged] == [(1, 5)]
    assert put(wal, b"f") == 5
    wal.commit()
    assert batches_and_damage(wal, disk) == ([(0, 1, b"a"), (5, 1, b"f")], [(1, 5)])
    wal.close()


def test_what_lay_behind_a_torn_batch_never_comes_back(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """A valid record after a torn one stays deleted, also when another of the same length fills the hole."""
    wal = open_log()
    for payload in (b"a" * 50, b"b" * 50, b"c" * 50):
        put(wal, payload)
    wal.commit()
    wal.close()
    path = f"{wal.folder}/{0:020d}.seg"
    contents = bytearray(disk.read(path))
    contents[contents.index(b"b" * 50)] ^= 1
    Path(path).write_bytes(contents)
    wal = open_log()
    assert wal.next_offset == 1
    assert wal.report.torn_bytes == 2 * (64 + 4 + 50)
    put(wal, b"B" * 50)
    wal.commit()
    wal.close()
    wal = open_log()
    assert [payload for _, _, payload in batches(wal, disk)] == [b"a" * 50, b"B" * 50]
    wal.close()


def test_a_log_whose_files_are_gone_goes_on_behind_what_was_durable(open_log: Open, put: Put) -> None:
    """A log proven durable does not start over: no offset is given twice."""
    for start_offset in (0, 7):
        wal = open_log(known_end=7, start_offset=start_offset)
        assert (wal.start_offset, wal.next_offset) == (7, 7)
        wal.close()
    wal = open_log(known_end=7)
    put(wal, b"a")
    wal.commit()
    assert (wal.start_offset, wal.durable_end) == (7, 8)
    wal.close()


def test_a_torn_segment_that_is_in_the_store_is_damage(open_log: Open, put: Put, disk: LocalDisk) -> None:
    """A segment with a second name is an object of the store, and is never cut."""
    wal = open_log()
    put(wal, b"a" * 50)
    wal.seal()
    wal.commit()
    path = wal.sealed()[0].path
    wal.close()
    disk.link(path, f"{wal.folder}/object")
    contents = bytearray(disk.read(path))
    contents[-5] ^= 1
    Path(path).write_bytes(contents)
    disk.unlink(f"{wal.folder}/object")
    disk.link(path, f"{wal.folder}/object")
    with pytest.raises(DamagedError, match="in the store"):
        open_log()
    assert disk.read(path) == contents


@pytest.mark.parametrize("what", ["missing", "header", "footer", "head"])
def test_damage_in_an_older_segment_is_reported_and_the_file_is_not_touched(
    open_log: Open, put: Put, disk: LocalDisk, what: str
) -> None:
    """A log with a missing or damaged older segment opens; the intact part is served, the rest reported."""
    wal = open_log()
    for _ in range(60):
        put(wal, b"x" * 900)
        wal.commit()
    infos = wal.sealed()
    assert len(infos) >= 3
    wal.close()
    victim = infos[1]
    contents = bytearray(disk.read(victim.path))
    if what == "missing":
        disk.unlink(victim.path)
    else:
        contents[{"header": 20, "footer": -1, "head": 140}[what]] ^= 1
        Path(victim.path).write_bytes(contents)
    wal = open_log()
    assert wal.next_offset == 60
    lost = {"missing": (victim.base, victim.end), "head": (victim.base, victim.base + 1)}.get(what)
    held, missing = batches_and_damage(wal, disk)
    assert missing == ([lost] if lost else [])
    assert len(held) == 60 - (lost[1] - lost[0] if lost else 0)
    if what != "head":  # bodies are not read when a log is opened
        assert [(one.first, one.end) for one in wal.damaged] == [
            lost or (one.first, one.first) for one in wal.damaged
        ]
        assert [info.base for info in wal.sealed()] == [one.base for one in infos if one != victim]
    if what != "missing":
        assert disk.read(victim.path) == contents
    put(wal, b"on")
    wal.commit()
    wal.close()
    open_log().close()


def test_a_log_of_another_topic_or_an_older_incarnation_is_refused(open_log: Open, put: Put) -> None:
    """Files of another topic, or of an earlier one of the same name, are never served."""
    wal = open_log()
    put(wal, b"a")
    wal.commit()
    wal.close()
    with pytest.raises(DamagedError, match="another topic"):
        open_log(topic="invoices")
    with pytest.raises(DamagedError, match="another topic"):
        open_log(incarnation=b"\1" * 16)
    wal = open_log()
    assert wal.next_offset == 1
    wal.close()


def test_bytes_of_another_segment_are_not_taken_for_records(
    open_log: Open, put: Put, disk: LocalDisk
) -> None:
    """Whole valid records from a segment with another base are not valid after this one's records."""
    wal = open_log()
    put(wal, b"first segment" * 10)
    wal.commit()
    wal.seal()
    put(wal, b"second segment" * 10)
    wal.commit()
    assert wal._active is not None
    end = wal._active.end
    wal.close()
    first, second = (disk.read(f"{wal.folder}/{base:020d}.seg") for base in (0, 1))
    Path(f"{wal.folder}/{1:020d}.seg").write_bytes(second[:end] + first[SEGMENT_HEADER_BYTES:])
    wal = open_log()
    assert [payload for _, _, payload in batches(wal, disk)] == [
        b"first segment" * 10,
        b"second segment" * 10,
    ]
    assert wal.report.torn_bytes > 0
    wal.close()


def run_until_power_loss(
    seed: int, open_log: Open, put: Put, fail_sync: bool
) -> tuple[SimulatedDisk, list[Batch], int]:
    """Write with random commits, seals and spares, and lose power at a random operation."""
    random = Random(seed)
    disk = SimulatedDisk()
    wal = open_log(disk)
    written: list[Batch] = []
    acknowledged = 0
    for _ in range(random.randint(1, 4)):  # so many process lives
        left = random.randint(1, 120)

        def stops(operation: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0 and (not fail_sync or operation == "sync"):
                raise OSError(errno.EIO, "the power is gone")

        disk.on_operation = stops
        try:
            while True:
                count = random.randint(1, 3)
                payload = bytes([len(written) % 251]) * random.choice((0, 1, 100, 700, 3000))
                sequence = wal.next_offset  # one producer, so its sequences are the offsets
                offset = put(wal, payload, *[b""] * (count - 1), producer_id=1, sequence=sequence)
                written.append((offset, count, payload))
                if random.random() < 0.5:
                    commit = wal.begin_commit()
                    if commit is not None:
                        if random.random() < 0.3:
                            offset = put(wal, b"late", producer_id=1, sequence=wal.next_offset)
                            written.append((offset, 1, b"late"))
                        try:
                            commit.run()
                        except (OSError, StorageError) as error:
                            wal.end_commit(commit, error)
                            break
                        acknowledged = wal.end_commit(commit, None)
                if random.random() < 0.1:
                    wal.seal()
                if random.random() < 0.3 and (work := wal.prepare_spare()) is not None:
                    work()
        except LogFailedError:
            pass
        if wal.committing:
            assert wal._commit is not None
            wal.end_commit(wal._commit, OSError("never run"))
        disk.on_operation = None
        wal.close()
        if not fail_sync or random.random() < 0.5:
            disk = disk.power_loss(random)
        wal = open_log(disk)  # must never be refused: nothing was damaged
        held = batches(wal, disk)
        assert held == written[: len(held)], seed
        assert wal.next_offset >= acknowledged, seed
        acknowledged = wal.next_offset
        for first, count, _ in held[-20:]:
            assert wal.producers.check(1, first, count) == Duplicate(first)
        assert wal.producers.check(1, wal.next_offset, 1) == Fresh()
        written = held
    wal.close()
    assert disk.open_files == 0
    return disk, written, acknowledged


@pytest.mark.parametrize("fail_sync", [False, True], ids=["power loss", "failed sync"])
def test_nothing_acknowledged_is_lost_whatever_the_disk_forgets(
    open_log: Open, put: Put, fail_sync: bool
) -> None:
    """Power fails at any operation, any part of unsynced writes survives: the log opens with everything promised."""
    for seed in range(int(os.environ.get("ISTER_TEST_SEEDS", "250"))):
        run_until_power_loss(seed, open_log, put, fail_sync)


def test_a_disk_that_fails_while_a_log_is_opened_costs_nothing(open_log: Open, put: Put) -> None:
    """Opening may fail at any operation, with a coded error; the next opening finds everything."""
    disk, written, _ = run_until_power_loss(7, open_log, put, False)
    for last in range(200):
        left = last

        def stops(operation: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, "not now")

        disk.on_operation = stops
        try:
            wal = open_log(disk)
        except LogFailedError:
            disk.on_operation = None
            disk = disk.power_loss(Random(last))
            continue
        disk.on_operation = None
        assert batches(wal, disk) == written
        wal.close()
        return
    pytest.fail("the log never opened")


WRITER = """
import sys
from array import array
from ister.clock import SystemClock
from ister.storage.disk import LocalDisk
from ister.storage.wal import Wal, WalSettings
wal = Wal.open(LocalDisk(), sys.argv[1], topic="orders", incarnation=bytes(range(16)), clock=SystemClock(),
               settings=WalSettings(segment_bytes_max=64 << 10))
while True:
    first = wal.next_offset
    payload = first.to_bytes(8, "little") * (first % 500)
    frames = [array("I", [len(payload)]).tobytes(), payload]
    wal.append(count=1, producer_id=1, sequence=first, columns=0, frames=frames, timestamp_ms=first)
    if first % 3 == 0:
        print(wal.commit(), flush=True)
        if (work := wal.prepare_spare()) is not None:
            work()
"""


@pytest.mark.process
def test_a_killed_writer_leaves_a_log_with_all_it_acknowledged(
    tmp_path: Path, open_log: Open, disk: LocalDisk
) -> None:
    """After SIGKILL at any moment the log opens, has everything acknowledged, and continues; again and again."""
    acknowledged = 0
    for number in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "log")],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        with writer.stdout as output:
            line = output.readline()
            time.sleep(0.05 + 0.013 * number)
            writer.send_signal(signal.SIGKILL)
            lines = [line, *output.readlines()]
        writer.wait()
        acknowledged = max(acknowledged, *(int(line) for line in lines if line.endswith(b"\n")))
        wal = open_log(disk, segment_bytes_max=64 << 10)
        assert wal.next_offset >= acknowledged
        for offset, count, payload in batches(wal, disk):
            assert (count, payload) == (1, offset.to_bytes(8, "little") * (offset % 500))
        wal.close()
    assert acknowledged > 50


def test_what_opening_a_log_found_is_said_in_a_sentence() -> None:
    """The log line of an opened log says in plain words what is there, and what else was found."""
    plain = RecoveryReport("orders", 0, 3, 1, 0, 0)
    assert plain.in_words() == "its log has offsets 0 to before 3, in 1 segment"
    places = tuple(DamagedRange(first, first + 2, "", 0, "") for first in range(0, 50, 10))
    found = RecoveryReport("orders", 0, 60, 4, 0, 0, 1200, 0, ("a",), ("b", "c"), places)
    assert found.in_words() == (
        "its log has offsets 0 to before 60, in 4 segments; 1,200 bytes after its last whole batch were cut off; "
        "1 segment without a whole batch was deleted; 2 segments got the footer that was missing; "
        "damaged: 0 to before 2, 10 to before 12, 20 to before 22, and 2 more"
    )
