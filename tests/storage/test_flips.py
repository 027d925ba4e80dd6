"""Tests of single wrong or missing bytes anywhere: the data is the same, or a tail is cut, or damage is reported.

The last segment and the cursor's journal have such tests of their own; here are sealed segments with an index, and the
catalogue. By default a sample of the places; all of them with -m slow.
"""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest

from ister.errors import DamagedError, StorageError
from ister.storage.catalogue import Catalogue
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.reader import Reader
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.verify import VerifyReport, verify_log
from ister.storage.wal import Wal, WalSettings

INCARNATION = bytes(range(16))
FOLDER = "/data/log"


class StillClock:
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 0.0

    def time_ms(self) -> int:
        return 1_700_000_000_000


def opened(disk: SimulatedDisk) -> Wal:
    """Open the log of these tests."""
    return Wal.open(
        disk,
        FOLDER,
        topic="orders",
        incarnation=INCARNATION,
        settings=WalSettings(segment_bytes_max=1 << 18, producers_max=8),
        clock=StillClock(),
    )


def sealed_log() -> tuple[SimulatedDisk, str, bytes, list[bytes]]:
    """Return a disk with a log of three segments, path and contents of the middle one, and all payloads."""
    disk = SimulatedDisk()
    wal = opened(disk)
    payloads: list[bytes] = []
    for segment in range(3):
        for size in (900, 70_000, 300, 66_000) if segment == 1 else (50, 60):
            payloads.append(bytes([65 + len(payloads)]) * size)
            wal.append(
                count=1,
                producer_id=3,
                sequence=len(payloads) - 1,
                columns=0,
                frames=[array("I", [size]).tobytes(), payloads[-1]],
                timestamp_ms=1000 + len(payloads),
            )
            wal.commit()
        wal.seal()
        wal.commit()
    info = wal.sealed()[1]
    assert info.bytes > 137_000
    wal.close()
    return disk, info.path, disk.read(info.path), payloads


def put_file(disk: SimulatedDisk, path: str, contents: bytes) -> None:
    """Replace a file."""
    disk.unlink(path)
    file = disk.create(path)
    file.pwritev((contents,), 0)
    file.close()


def check_log(disk: SimulatedDisk, path: str, payloads: list[bytes]) -> str:
    """Open, read, search and verify a log with one wrong file; return the outcome."""
    wal = opened(disk)
    assert wal.next_offset == len(payloads)
    reader = Reader(SegmentMaps(disk), FOLDER, INCARNATION, 0)
    missing: set[int] = set()
    while reader.offset < len(payloads):
        try:
            for record in reader.read(len(payloads), 1 << 20):
                assert bytes(record.payload) == payloads[record.first_offset]
        except DamagedError as error:
            first, end = error.first or 0, error.end or 0
            missing |= set(range(first, end))
            reader.seek(end if first == reader.offset else -1)
    for at in range(len(payloads)):
        found = reader.offset_at(1001 + at, len(payloads))
        assert found == at or at in missing
    *_, report = verify_log(disk, FOLDER, INCARNATION, durable_end=len(payloads))
    assert isinstance(report, VerifyReport)
    assert {offset for one in report.damaged for offset in range(one.first, one.end)} == missing
    assert {one.path for one in report.damaged} == {path}
    assert all(one.path == path for one in wal.damaged)
    wal.close()
    return "messages" if missing else "bookkeeping"


def check_places(places: Iterable[int], bits: Iterable[int]) -> set[str]:
    """Flip these bits at these places of a sealed segment, one at a time; return the outcomes."""
    disk, path, whole, payloads = sealed_log()
    outcomes = set()
    for at in places:
        for bit in bits:
            put_file(disk, path, whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            outcomes.add(check_log(disk, path, payloads))
    return outcomes


def interesting_places() -> list[int]:
    """Return each place of a sealed segment that is not in a payload."""
    _, _, whole, payloads = sealed_log()
    filling = {payload[0] for payload in payloads}
    return [at for at in range(1, len(whole)) if not (whole[at] in filling and whole[at - 1] == whole[at])]


def test_flipping_any_byte_of_a_sealed_segments_structure_is_reported() -> None:
    """A check covers each byte of headers, snapshot, index and footer, and a flip costs at most its record."""
    places = interesting_places()
    assert 600 < len(places) < 2000
    assert check_places(places[::5], [0]) == {"messages", "bookkeeping"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flipping_each_bit_of_a_sealed_segments_structure_is_reported() -> None:
    """The same for all places and all bits, and a sample of payload bytes."""
    places = interesting_places()
    assert check_places(places, range(8)) == {"messages", "bookkeeping"}
    assert check_places(range(300, 137_000, 997), [3]) == {"messages"}


def test_a_sealed_segment_cut_short_is_reported() -> None:
    """Whatever length a middle segment is cut to, the intact part is served, and the rest reported."""
    disk, path, whole, payloads = sealed_log()
    lengths = [*range(0, 1300, 31), *range(70_000, 72_000, 97), *range(len(whole) - 400, len(whole), 13)]
    for length in lengths:
        put_file(disk, path, whole[:length])
        check_log(disk, path, payloads)


TOPICS = [
    TopicMeta("orders/eu", b"1" * 16, "reliable", "fsync", 17, {"retention_ms": 5}),
    TopicMeta("invoices", b"2" * 16, "non-reliable", "os", 18, {}),
]
SUBSCRIPTIONS = [
    SubscriptionMeta("orders/eu", "billing", "shared", 44, 18, {"max_deliveries": 3}),
    SubscriptionMeta("orders/eu", "audit", "exclusive", "earliest", 19, {}),
]


def write_catalogue(path: str) -> bytes:
    """Write a small catalogue, and return its bytes."""
    catalogue = Catalogue(path)
    for topic in TOPICS:
        catalogue.create_topic(topic)
    for subscription in SUBSCRIPTIONS:
        catalogue.create_subscription(subscription)
    catalogue.close()
    return Path(path).read_bytes()


def check_catalogue(path: str, contents: bytes) -> str:
    """Open a catalogue with these bytes, and check that it is the same, or an error reports it."""
    Path(path).write_bytes(contents)
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)
    try:
        catalogue = Catalogue(path)
    except StorageError:
        return "damage"
    try:
        assert sorted(catalogue.topics(), key=lambda one: one.created_ms) == TOPICS
        assert sorted(catalogue.subscriptions(), key=lambda one: one.created_ms) == SUBSCRIPTIONS
    except StorageError:
        return "damage"
    finally:
        catalogue.close()
    return "same"


def used_places(contents: bytes) -> list[int]:
    """Return the places of a database file that hold data, and some that do not."""
    return [at for at in range(len(contents)) if contents[at] or at % 512 == 7]


def test_a_flipped_byte_of_the_catalogue_is_harmless_or_reported(tmp_path: Path) -> None:
    """No topic appears that was not created so, and none is missing without an error."""
    path = str(tmp_path / "catalogue.db")
    whole = write_catalogue(path)
    outcomes = [
        check_catalogue(path, whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        for at in used_places(whole)[::9]
    ]
    assert outcomes.count("damage") > outcomes.count("same") > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_flipped_byte_of_the_catalogue_is_harmless_or_reported(tmp_path: Path) -> None:
    """The same for all places, with three bits each."""
    path = str(tmp_path / "catalogue.db")
    whole = write_catalogue(path)
    for at in used_places(whole):
        for bit in (0, 3, 7):
            check_catalogue(path, whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])


def test_a_catalogue_cut_short_is_reported(tmp_path: Path) -> None:
    """A file of any other length is refused, except an empty one, which is a new catalogue."""
    path = str(tmp_path / "catalogue.db")
    whole = write_catalogue(path)
    for length in range(1, len(whole), 211):
        assert check_catalogue(path, whole[:length]) == "damage"


def test_a_row_changed_behind_the_catalogues_back_is_noticed(tmp_path: Path) -> None:
    """Only the catalogue's own changes keep its digest right; each kind of them does."""
    path = str(tmp_path / "catalogue.db")
    write_catalogue(path)
    catalogue = Catalogue(path)
    catalogue.update_topic("invoices", {"x": 1})
    catalogue.delete_subscription("orders/eu", "audit")
    catalogue.close()
    catalogue = Catalogue(path)
    catalogue.delete_topic("orders/eu")
    catalogue.close()
    Catalogue(path).close()
    database = sqlite3.connect(path)
    database.execute("UPDATE topics SET created_ms = 19")
    database.commit()
    database.close()
    with pytest.raises(DamagedError, match="do not match their checksum"):
        Catalogue(path)
