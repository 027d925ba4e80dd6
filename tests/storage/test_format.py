"""Tests of recorded bytes, parsed with the tables of FORMAT.md only: every later version must still read them."""

from __future__ import annotations

import re
import shutil
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from ister.storage import begin, cursor_format, damage, ending, known_producers, segment
from ister.storage.cursor_journal import CursorJournal
from ister.storage.damage import decode_skips, encode_skips
from ister.storage.disk import LocalDisk
from ister.storage.index import SparseIndex
from ister.storage.producers import Duplicate
from ister.storage.ranges import RangeSet
from ister.storage.reader import Reader
from ister.storage.record import parse_header, salt_of
from ister.storage.segment_maps import SegmentMaps
from ister.storage.wal import Wal

GOLDEN = Path(__file__).parents[1] / "golden"
SEALED = GOLDEN / "segment-1-sealed.seg"
OPEN = GOLDEN / "segment-1-open.seg"
CURSOR = GOLDEN / "cursor-2"
CURSOR_BEFORE = GOLDEN / "cursor-1"
INDEX = GOLDEN / "index-1"
SKIPS = GOLDEN / "skips-1"
TIMES = GOLDEN / "segment-1-times.seg"
INCARNATION = bytes(range(16))

PAYLOADS = [b"first", b"", b"third \xff\x00"]
KEYS = [b"k1", b"", b"k3"]
ATTRIBUTES = [b"", b"\xa1aab", b""]


def frame(values: list[bytes]) -> bytes:
    """Return a column as on the wire."""
    return array("I", map(len, values)).tobytes() + b"".join(values)


def write_log(open_log: Callable[..., Wal], **changes: Any) -> Wal:
    """Write the log of the golden segments: offsets 7 to 12, sealed at 11."""
    wal = open_log(start_offset=7, segment_bytes_max=4096, **changes)
    lengths, payloads = array("I", map(len, PAYLOADS)).tobytes(), b"".join(PAYLOADS)
    wal.append(
        count=3,
        producer_id=99,
        sequence=40,
        columns=3,
        frames=[lengths, payloads, frame(KEYS), frame(ATTRIBUTES)],
        timestamp_ms=1_700_000_000_001,
    )
    wal.commit()
    lone = [array("I", [4]).tobytes(), b"lone"]
    wal.append(count=1, producer_id=0, sequence=0, columns=0, frames=lone, timestamp_ms=1_700_000_000_002)
    wal.seal()
    wal.append(count=1, producer_id=99, sequence=43, columns=0, frames=lone, timestamp_ms=1_700_000_000_003)
    wal.commit()
    return wal


def test_what_is_written_today_is_what_was_written_then(
    open_log: Callable[..., Wal], disk: LocalDisk, tmp_path: Path
) -> None:
    """The same log gives the same bytes as when the golden files were made."""
    wal = write_log(open_log)
    assert disk.read(f"{wal.folder}/{7:020d}.seg") == SEALED.read_bytes()
    assert disk.read(f"{wal.folder}/{11:020d}.seg").rstrip(b"\0") == OPEN.read_bytes().rstrip(b"\0")
    wal.close()
    journal = CursorJournal.open(disk, str(tmp_path / "cursor"), INCARNATION, 7)
    journal.note(8, 9)
    journal.note(10, 11)
    journal.note_failed(12, 14, 3, 2)
    journal.flush()
    journal.note(7, 8)
    journal.flush()
    journal.close()
    assert disk.read(str(tmp_path / "cursor")) == CURSOR.read_bytes()


def test_the_golden_segment_is_what_the_tables_say() -> None:
    """Each field of a sealed segment, at its place in the tables."""
    golden = SEALED.read_bytes()
    crc = google_crc32c.extend
    assert golden[:8] == b"ISTERSEG"
    version, header_bytes, zero = struct.unpack_from("<HHI", golden, 8)
    assert (version, header_bytes, zero) == (1, 64, 0)
    assert golden[16:32] == INCARNATION
    base, created, zero, topic, header_crc = struct.unpack_from("<QQQII", golden, 32)
    assert (base, created, zero) == (7, 1_700_000_000_000, 0)
    assert topic == crc(0, b"orders")
    assert header_crc == crc(0, golden[:60])
    salt = crc(0, golden[16:40])

    at, records = 64, []
    while at < len(golden):
        assert golden[at : at + 2] == b"IR"
        kind, columns, total, body_crc, count, uncommitted = struct.unpack_from("<BBIIII", golden, at + 2)
        first, timestamp, producer, sequence = struct.unpack_from("<QQQQ", golden, at + 20)
        keys, attributes, header_crc = struct.unpack_from("<III", golden, at + 52)
        body = golden[at + 64 : at + total]
        assert header_crc == crc(salt, golden[at : at + 60])
        assert body_crc == crc(salt, body)
        records.append(
            (kind, columns, count, uncommitted, first, timestamp, producer, sequence, keys, attributes, body)
        )
        at += total
    assert at == len(golden)

    producers, batch, lone, footer = records
    assert producers == (2, 0, 0, 0, 7, 0, 0, 0, 0, 0, bytes(4))
    body = array("I", [5, 0, 8]).tobytes() + b"".join(PAYLOADS) + frame(KEYS) + frame(ATTRIBUTES)
    assert batch == (1, 3, 3, 0, 7, 1_700_000_000_001, 99, 40, 16, 16, body)
    assert lone == (1, 0, 1, 0, 10, 1_700_000_000_002, 0, 0, 0, 0, array("I", [4]).tobytes() + b"lone")
    assert footer[:5] == (3, 0, 0, 1, 11)
    times = (1_700_000_000_001, 1_700_000_000_002)
    assert struct.unpack("<8Q", footer[-1]) == (11, 4, 2, *times, len(golden), times[1], 0)

    second = OPEN.read_bytes()
    assert second[64 + 2] == 2
    snapshot = struct.unpack_from("<IQQQQI", second, 128)
    assert snapshot == (1, 99, 40, 7, 1_700_000_000_001, 3)


def test_the_golden_index_is_what_the_tables_say() -> None:
    """Each field of an index record, at its place in the tables; today's broker writes and reads the same."""
    index = SparseIndex(128)
    index.note(20, 65_700, 1_700_000_000_000)
    index.note(33, 140_000, 1_700_000_000_005)
    salt = salt_of(INCARNATION, 7)
    golden = INDEX.read_bytes()
    assert index.encode(salt, 40, 4) == golden
    kind, columns, total, body_crc, count, uncommitted = struct.unpack_from("<BBIIII", golden, 2)
    assert (golden[:2], kind, columns, total, count, uncommitted) == (b"IR", 4, 0, len(golden), 0, 4)
    assert struct.unpack_from("<Q", golden, 20) == (40,)
    assert body_crc == google_crc32c.extend(salt, golden[64:])
    entries = (20, 65_700, 1_700_000_000_000, 33, 140_000, 1_700_000_000_005)
    assert struct.unpack("<6Q", golden[64:]) == entries
    header = parse_header(golden, 0, salt)
    assert header is not None
    there = SparseIndex.decode(golden, header, salt)
    assert there is not None
    assert list(there.positions) == [65_700, 140_000]


def test_the_golden_skips_are_what_the_tables_say() -> None:
    """Each field of a skips file, at its place in the tables; today's broker writes and reads the same."""
    golden = SKIPS.read_bytes()
    assert golden[:8] == b"ISTERSKP"
    assert struct.unpack_from("<HH", golden, 8) == (1, 32)
    assert golden[12:28] == INCARNATION
    (crc,) = struct.unpack_from("<I", golden, 28)
    assert crc == google_crc32c.extend(google_crc32c.value(golden[:28]), golden[32:])
    assert struct.unpack("<4Q", golden[32:]) == (3, 5, 9, 10)
    skips = RangeSet([(3, 5), (9, 10)])
    assert decode_skips(golden, INCARNATION) == skips
    assert encode_skips(INCARNATION, skips) == golden


def test_the_golden_cursor_is_what_the_tables_say() -> None:
    """Each field of a journal, at its place in the tables."""
    golden = CURSOR.read_bytes()
    assert golden[:8] == b"ISTERCUR"
    assert struct.unpack_from("<HH", golden, 8) == (2, 32)
    assert golden[12:28] == INCARNATION
    (salt,) = struct.unpack_from("<I", golden, 28)
    assert salt == google_crc32c.value(golden[:28])
    at, entries = 32, []
    while at < len(golden):
        crc, size, kind = struct.unpack_from("<IIB", golden, at)
        assert golden[at + 9 : at + 16] == bytes(7)
        assert crc == google_crc32c.extend(salt, golden[at + 4 : at + 16 + size])
        entries.append((kind, struct.unpack_from(f"<{size // 8}Q", golden, at + 16)))
        at += 16 + size
    assert entries == [(1, (7, 7)), (2, (8, 9, 10, 11)), (3, (12, 14, 3, 2)), (2, (7, 8))]


@pytest.fixture
def golden_log(folder: str) -> str:
    """Return a folder with the golden log in it."""
    Path(folder).mkdir()
    shutil.copy(SEALED, f"{folder}/{7:020d}.seg")
    shutil.copy(OPEN, f"{folder}/{11:020d}.seg")
    return folder


def test_the_golden_log_is_read_and_goes_on(
    golden_log: str, open_log: Callable[..., Wal], put: Callable[..., int], disk: LocalDisk
) -> None:
    """Today's broker opens the recorded log, serves it, knows its producers, and appends."""
    wal = open_log(segment_bytes_max=4096)
    assert (wal.start_offset, wal.next_offset) == (7, 12)
    assert put(wal, b"new") == 12
    wal.commit()
    reader = Reader(SegmentMaps(disk), golden_log, INCARNATION, 7)
    batch, lone, second, new = reader.read(13, 1 << 20)
    assert bytes(batch.payload) == b"".join(PAYLOADS)
    assert batch.keys is not None
    assert batch.attributes is not None
    assert (bytes(batch.keys), bytes(batch.attributes)) == (frame(KEYS), frame(ATTRIBUTES))
    assert [bytes(record.payload) for record in (lone, second, new)] == [b"lone", b"lone", b"new"]
    assert wal.producers.check(99, 40, 3) == Duplicate(7)
    assert wal.producers.next_sequence(99) == 44
    wal.close()


def test_times_of_delivery_lie_behind_the_attributes(
    open_log: Callable[..., Wal], disk: LocalDisk, folder: str
) -> None:
    """A batch with all columns, parsed by the table of its body; opened again, it has its times of delivery."""
    wal = open_log(start_offset=7)
    frames = [array("I", map(len, PAYLOADS)).tobytes(), b"".join(PAYLOADS), frame(KEYS), frame(ATTRIBUTES)]
    times = struct.pack("<3Q", 0, 1_700_000_000_000, 2**64 - 1)
    wal.append(
        count=3,
        producer_id=99,
        sequence=40,
        columns=7,
        frames=[*frames, times],
        timestamp_ms=1_700_000_000_001,
    )
    wal.append(
        count=3,
        producer_id=99,
        sequence=43,
        columns=4,
        frames=[*frames[:2], times],
        timestamp_ms=1_700_000_000_002,
    )
    wal.commit()
    wal.close()
    assert disk.read(f"{folder}/{7:020d}.seg").rstrip(b"\0") == TIMES.read_bytes().rstrip(b"\0")
    stored = TIMES.read_bytes()[132:]
    columns, total = struct.unpack_from("<BI", stored, 3)
    keys, attributes = struct.unpack_from("<II", stored, 52)
    assert (columns, keys, attributes) == (7, len(frame(KEYS)), len(frame(ATTRIBUTES)))
    assert stored[64:total] == b"".join(frames) + times
    wal = open_log(start_offset=7)
    assert wal.next_offset == 13
    wal.close()
    both = Reader(SegmentMaps(disk), folder, INCARNATION, 7).read(13, 1 << 20)
    for record in both:
        assert record.deliver_at is not None
        assert bytes(record.deliver_at) == times
        assert bytes(record.payload) == b"".join(PAYLOADS)
    assert both[0].attributes is not None
    assert bytes(both[0].attributes) == frame(ATTRIBUTES)
    assert both[1].attributes is None


def test_the_golden_cursor_is_read(disk: LocalDisk, tmp_path: Path) -> None:
    """Today's broker opens the recorded cursor."""
    shutil.copy(CURSOR, tmp_path / "cursor")
    journal = CursorJournal.open(disk, str(tmp_path / "cursor"), INCARNATION, 0)
    assert (journal.cursor.start, journal.cursor.low, list(journal.cursor.ranges)) == (7, 9, [(10, 11)])
    assert journal.cursor.failed == {12: (3, 2), 13: (3, 2)}
    journal.close()


def test_the_golden_cursor_of_before_is_read_and_written_anew(disk: LocalDisk, tmp_path: Path) -> None:
    """A journal of version 1 has the same meaning, and has today's version after it was opened."""
    path = tmp_path / "cursor"
    shutil.copy(CURSOR_BEFORE, path)
    for _ in range(2):
        journal = CursorJournal.open(disk, str(path), INCARNATION, 0)
        assert (journal.cursor.start, journal.cursor.low, list(journal.cursor.ranges)) == (7, 9, [(10, 11)])
        journal.close()
        assert struct.unpack_from("<H", path.read_bytes(), 8) == (2,)


VERSIONS = {
    "segment header": segment.VERSION,
    "end": ending._VERSION,
    "skips": damage._VERSION,
    "begin": begin._VERSION,
    "producers": known_producers._VERSION,
    "journal header": cursor_format.VERSION,
}


def test_the_document_has_the_versions_that_are_written() -> None:
    """Each table of FORMAT.md for the beginning of a file has the version that this code writes."""
    text = (Path(segment.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    found = re.findall(
        r"\| at \| bytes \| ([a-z ]+) \|\n(?:\|[^\n]*\n)*?\| 8 \| 2 \| format version, (\d+)", text
    )
    assert {name: int(version) for name, version in found} == VERSIONS
