"""Damage that an operator decided to skip: finding it, and the file that tells readers what to skip.

- Only real damage can be skipped, and only by a decision that outlasts the process; nothing is skipped automatically.
- A skips file with a wrong checksum is ignored: readers stop at damage as if there were none.

May touch: the Disk it is handed; one file in the log's folder. Reads whole segments: run it in a thread.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from ister.storage.apart import ALONE, CheckRules, verify_aside
from ister.storage.begin import replace_file
from ister.storage.checksum import extend
from ister.storage.disk import Disk
from ister.storage.ranges import RangeSet
from ister.storage.recovery import DamagedRange
from ister.storage.verify import VerifyReport

SKIPS_NAME: Final = "skips"
SKIPS_HEADER_BYTES: Final = 32
_MAGIC = b"ISTERSKP"
_VERSION: Final = 1
_HEADER = struct.Struct("<8sHH16s")
_CRC = struct.Struct("<I")


def damage(
    disk: Disk,
    folder: str,
    incarnation: bytes,
    *,
    durable_end: int | None = None,
    rules: CheckRules = ALONE,
) -> tuple[DamagedRange, ...]:
    """Return all damage of a log up to `durable_end`; reads every byte of it. Raises OSError."""
    for last in verify_aside(disk, folder, incarnation, durable_end=durable_end, rules=rules):
        if isinstance(last, VerifyReport):
            return last.damaged
    return ()


def encode_skips(incarnation: bytes, skips: RangeSet) -> bytes:
    """Return the contents of a skips file."""
    front, body = _HEADER.pack(_MAGIC, _VERSION, SKIPS_HEADER_BYTES, incarnation), skips.encode()
    return front + _CRC.pack(extend(extend(0, front), body)) + body


def decode_skips(contents: bytes, incarnation: bytes) -> RangeSet | None:
    """Return the ranges in a skips file, or None if it is damaged or belongs to another topic."""
    front, body = contents[: _HEADER.size], contents[SKIPS_HEADER_BYTES:]
    if front != _HEADER.pack(_MAGIC, _VERSION, SKIPS_HEADER_BYTES, incarnation) or len(body) % 16:
        return None
    if contents[_HEADER.size : SKIPS_HEADER_BYTES] != _CRC.pack(extend(extend(0, front), body)):
        return None
    return RangeSet.decode(body)


def load_skips(disk: Disk, folder: str, incarnation: bytes) -> RangeSet:
    """Return the ranges that readers of a log skip where they are damaged. Raises OSError."""
    try:
        contents = disk.read(f"{folder}/{SKIPS_NAME}")
    except FileNotFoundError:
        return RangeSet()
    return decode_skips(contents, incarnation) or RangeSet()


def skip_damaged(
    disk: Disk,
    folder: str,
    incarnation: bytes,
    *,
    durable_end: int | None = None,
    first: int | None = None,
    end: int | None = None,
    elsewhere: RangeSet | None = None,
    lost: Sequence[tuple[int, int]] = (),
    rules: CheckRules = ALONE,
) -> RangeSet:
    """Record durably that readers skip what is damaged in [first, end); return all ranges that are skipped now.

    A damaged range that lies in it only partly is skipped whole. Damage whose messages are whole `elsewhere` is not
    skipped; what is `lost` there is. Raises OSError, DiskFullError; then nothing has changed.
    """
    skips = load_skips(disk, folder, incarnation)
    there = RangeSet() if elsewhere is None else elsewhere.copy()
    for gap in lost:
        there.subtract(*gap)
        skips.add(*gap)
    for one in damage(disk, folder, incarnation, durable_end=durable_end, rules=rules):
        if (end is None or one.first < end) and (first is None or one.end > first):
            for gap in there.gaps(one.first, one.end):
                skips.add(*gap)
    path = f"{folder}/{SKIPS_NAME}"
    if disk.exists(path) and decode_skips(disk.read(path), incarnation) is None:
        number = 0
        while disk.exists(kept := f"{path}.damaged-{number}"):
            number += 1
        disk.rename(path, kept)
    replace_file(disk, folder, SKIPS_NAME, encode_skips(incarnation, skips))
    return skips


__all__ = ["DamagedRange", "damage", "load_skips", "skip_damaged"]
