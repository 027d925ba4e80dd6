"""Tests of what a subscription keeps of the log it reads: a bounded number of bytes, and no deleted file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ister.actors.pieces import RelayedBatch
from ister.actors.source import SHEETS_BYTES_MAX, SHEETS_BYTES_MIN, Source
from ister.bodies import pack_column, pack_lengths
from ister.clock import SystemClock
from ister.errors import DamagedError
from ister.storage.disk import LocalDisk
from ister.storage.segment_maps import COPIED_BYTES_MAX, SegmentMaps
from ister.storage.wal import Wal, WalSettings
from ister.storage.wholereader import TieredReader

SIZE = 200_000
MESSAGES = 300


class Log:
    """A log on the disk with large keyed messages, and sources that read it."""

    def __init__(self, folder: Path) -> None:
        self.disk = LocalDisk()
        self.maps = SegmentMaps(self.disk)
        self.folder, self.incarnation = f"{folder}/log", bytes(16)
        self.wal = Wal.open(
            self.disk,
            self.folder,
            topic="t",
            incarnation=self.incarnation,
            settings=WalSettings(segment_bytes_max=1 << 20),
            clock=SystemClock(),
        )
        payload, key = bytes(SIZE), pack_column([b"k"])
        for number in range(MESSAGES):
            frames = [pack_lengths([payload]), payload, key]
            self.wal.append(
                count=1, producer_id=1, sequence=number, columns=1, frames=frames, timestamp_ms=1000
            )
        self.wal.commit()

    def source(self) -> Source:
        """Return a source at the beginning."""
        source = Source("t", self._reader, lambda _: None)
        source.durable_end = self.wal.durable_end
        source.begin(0)
        return source

    def _reader(self, offset: int) -> TieredReader:
        return TieredReader(self.maps, self.folder, f"{self.folder}-cache", self.incarnation, offset)

    def mapped(self) -> list[str]:
        """Return the segments that this process has mapped."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in lines if self.folder in line]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """Return a log of some sixty segments."""
    log = Log(tmp_path)
    yield log
    log.wal.close()


def read(source: Source, messages: int = MESSAGES) -> Iterator[bytes]:
    """Examine messages one by one, and yield their keys."""
    while messages and (batch := source.read_ahead()) is not None:
        yield source.keep_sheet(batch).keys[0]
        source.take_to(batch.first_offset + 1)
        messages -= 1


def test_what_is_kept_of_large_messages_is_bounded_in_bytes(log: Log) -> None:
    """Three hundred messages of 200 KB are 60 MB: a subscription that examines each keeps only a few of them."""
    source = log.source()
    assert list(read(source)) == [b"k"] * MESSAGES
    kept = source._sheets_bytes
    assert SHEETS_BYTES_MAX // 2 < kept <= SHEETS_BYTES_MAX
    assert log.maps.copied_bytes == kept
    again = source.sheet_at(0)  # what was dropped is read again
    assert again is not None
    assert again.keys == [b"k"]
    source.release()
    assert log.maps.copied_bytes == 0


def test_batches_are_opened_together_up_to_a_limit(log: Log) -> None:
    """A megabyte, or as many messages as are asked for; when the process keeps too much, as little as before."""
    source = log.source()
    assert source.read_ahead() is not None
    sheet = source.open_ahead(3)
    assert (sheet.first, sheet.end, sheet.keys) == (0, 3, [b"k"] * 3)
    source.take_through(sheet.end)
    assert source.next == 3
    assert source.read_ahead() is not None
    sheet = source.open_ahead(100)
    assert (sheet.first, sheet.end) == (3, 9)
    assert source.sheet_at(8) is sheet
    source.take_through(sheet.end)
    assert source.read_ahead() is not None
    log.maps.copied_bytes += COPIED_BYTES_MAX
    sheet = source.open_ahead(100)
    assert (sheet.first, sheet.end) == (9, 11)


@pytest.mark.parametrize(
    ("second", "end"),
    [
        ({}, 20),
        ({"first_offset": 11}, 10),  # a gap: an operator had something skipped
        ({"columns": 2, "keys": None, "attributes": bytes(40)}, 10),
        ({"timestamp_ms": 4}, 10),  # it has expired
    ],
)
def test_batches_that_differ_are_not_opened_together(log: Log, second: dict[str, Any], end: int) -> None:
    """Not those with other columns, not over a gap, and none that has expired."""
    source = log.source()
    one = RelayedBatch(0, 10, 5, 1, bytes(40), b"", bytes(40))
    source.ahead.extend([one, replace(one, **{"first_offset": 10, **second})])
    assert source.open_ahead(20, too_old_ms=4).end == end


def test_what_cannot_be_read_does_not_hold_up_what_was_read(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error when everything before it was taken."""
    source = log.source()
    assert source.read_ahead() is not None
    reader = source._reader
    assert reader is not None

    def fails(*_: object) -> list[Any]:
        raise DamagedError("broken")

    monkeypatch.setattr(reader, "read", fails)
    sheet = source.open_ahead(100)
    assert sheet.first == 0
    source.take_through(sheet.end)
    with pytest.raises(DamagedError):
        source.read_ahead()


def test_no_deleted_segment_is_kept(log: Log) -> None:
    """Segments deleted by retention are neither on the disk nor mapped, whatever was read of them."""
    source = log.source()
    list(read(source))
    log.wal.trim(MESSAGES - 2)
    source.trim(log.wal.start_offset)
    log.maps.drop_deleted()
    assert not [line for line in log.mapped() if line.endswith("(deleted)")]


def test_a_subscription_at_rest_holds_no_file(log: Log) -> None:
    """An idle subscription with messages read ahead drops them all, and continues at the same place."""
    source = log.source()
    assert list(read(source, 100)) == [b"k"] * 100
    source.batch_at(7)
    source.rest()
    assert source.ahead or source._sheets  # it was active just before
    source.rest()
    log.wal.trim(50)
    log.maps.clear()
    assert log.mapped() == []
    assert log.maps.copied_bytes == 0
    assert list(read(source)) == [b"k"] * (MESSAGES - 100)


def test_all_subscriptions_together_are_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a process is at its limit, each of its subscriptions keeps a batch or two."""
    monkeypatch.setattr("ister.storage.segment_maps.COPIED_BYTES_MAX", COPIED_BYTES_MAX // 8)
    sources = [log.source() for _ in range(10)]
    for source in sources:
        list(islice(read(source), MESSAGES))
    assert log.maps.copied_bytes <= COPIED_BYTES_MAX // 8 + 10 * (SHEETS_BYTES_MIN + 2 * SIZE)
