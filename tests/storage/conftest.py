"""Fixtures for the storage's tests: a small log, and batches to append to it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ister.storage.disk import Disk, LocalDisk
from ister.storage.wal import Wal, WalSettings

INCARNATION = bytes(range(16))


class StillClock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def monotonic(self) -> float:
        return self.now_ms / 1000

    def time_ms(self) -> int:
        return self.now_ms


def frames_of(payloads: Sequence[bytes]) -> list[bytes]:
    """Return length table and payloads of a batch."""
    return [array("I", map(len, payloads)).tobytes(), b"".join(payloads)]


@pytest.fixture
def frames() -> Callable[[Sequence[bytes]], list[bytes]]:
    """Return the frames of payloads as they are on the wire."""
    return frames_of


@pytest.fixture
def clock() -> StillClock:
    """Return a clock that stands still."""
    return StillClock()


@pytest.fixture
def disk() -> LocalDisk:
    """Return the machine's disk."""
    return LocalDisk()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Return the path of a log."""
    return str(tmp_path / "log")


@pytest.fixture
def open_log(folder: str, clock: StillClock) -> Callable[..., Wal]:
    """Return a function that opens the test's log, by default one of 16 KiB segments on the machine's disk."""

    def opened(disk: Disk | None = None, **changes: Any) -> Wal:
        settings: dict[str, Any] = {"segment_bytes_max": 16 << 10, "producers_max": 32}
        settings.update({key: changes.pop(key) for key in list(changes) if key in WalSettings.__slots__})
        place = changes.pop("folder", folder)
        given = {"topic": "orders", "incarnation": INCARNATION, "clock": clock, **changes}
        return Wal.open(disk or LocalDisk(), place, settings=WalSettings(**settings), **given)

    return opened


@pytest.fixture
def put() -> Callable[..., int]:
    """Return a function that appends payloads to a log as one batch."""

    def appended(
        wal: Wal, *payloads: bytes, producer_id: int = 0, sequence: int = 0, timestamp_ms: int = 1
    ) -> int:
        return wal.append(
            count=len(payloads),
            producer_id=producer_id,
            sequence=sequence,
            columns=0,
            frames=frames_of(payloads),
            timestamp_ms=timestamp_ms,
        )

    return appended


@pytest.fixture
def incarnation() -> bytes:
    """Return the incarnation of the test's log."""
    return INCARNATION
