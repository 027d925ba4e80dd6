"""The bytes of a cursor's journal; FORMAT.md has the tables.

A journal is a snapshot of a cursor, and entries with what happened since. An acknowledgment stays valid whatever
happened to its neighbours, so entries after a damaged one still count. What was lost is delivered again. Nothing is
ever skipped.

Pure: no file is opened or written here (`cursor_files.py`, `cursor_journal.py`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ister.errors import DamagedError
from ister.storage.checksum import extend
from ister.storage.cursor import Cursor
from ister.storage.ranges import RangeSet

VERSION: Final = 2
VERSIONS: Final = (1, 2)  # 1 had no failures; a journal of it is rewritten when it is opened
JOURNAL_HEADER_BYTES: Final = 32
ENTRY_HEADER_BYTES: Final = 16
SNAPSHOT: Final = 1
ACKNOWLEDGED: Final = 2
FAILED: Final = 3
WAITING: Final = 4

FAILED_RUN: Final = struct.Struct("<qqqq")  # first, end, deliveries, failures
WAITING_RUN: Final = struct.Struct(
    "<qqqq"
)  # first, end, until (unix ms; 0: no more), wait (ms; 0: not known)

_MAGIC = b"ISTERCUR"
_HEADER = struct.Struct("<8sHH16s")
_ENTRY = struct.Struct("<IB7x")  # body bytes, kind; the entry's CRC stands before them
_CRC = struct.Struct("<I")
_PAIR = struct.Struct("<qq")


@dataclass(frozen=True, slots=True)
class CursorReport:
    """What opening a journal found.

    `torn_bytes` were cut off at its end. `damaged_bytes` lay between valid entries; the file was kept as
    `kept_as`.
    """

    entries: int = 0
    torn_bytes: int = 0
    damaged_bytes: int = 0
    kept_as: str | None = None


def encode_header(incarnation: bytes, version: int = VERSION) -> bytes:
    """Return the header of a journal."""
    front = _HEADER.pack(_MAGIC, version, JOURNAL_HEADER_BYTES, incarnation)
    return front + _CRC.pack(extend(0, front))


def salt_of_journal(incarnation: bytes) -> int:
    """Return what the checksums of a journal's entries start from: the CRC in its header."""
    salt: int
    (salt,) = _CRC.unpack(encode_header(incarnation)[-4:])
    return salt


def is_current(journal: bytes, incarnation: bytes) -> bool:
    """Return whether a journal has the header that would be written today."""
    return journal[:JOURNAL_HEADER_BYTES] == encode_header(incarnation)


def encode_entry(salt: int, kind: int, body: bytes) -> bytes:
    """Return an entry; the length of `body` is a multiple of 16."""
    front = _ENTRY.pack(len(body), kind)
    return _CRC.pack(extend(extend(salt, front), body)) + front + body


def encode_journal(incarnation: bytes, cursor: Cursor) -> bytes:
    """Return a journal that holds nothing but this cursor."""
    header = encode_header(incarnation)
    (salt,) = _CRC.unpack(header[-4:])
    body = _PAIR.pack(cursor.start, cursor.low) + cursor.ranges.encode()
    failed, waits = encode_failures(cursor), encode_waits(cursor)
    return b"".join(
        [
            header,
            encode_entry(salt, SNAPSHOT, body),
            encode_entry(salt, FAILED, failed) if failed else b"",
            encode_entry(salt, WAITING, waits) if waits else b"",
        ]
    )


def encode_failures(cursor: Cursor) -> bytes:
    """Return the body of a failed entry with all failures that are known, in runs."""
    return _encode_runs(FAILED_RUN, cursor.failed)


def encode_waits(cursor: Cursor) -> bytes:
    """Return the body of a waiting entry with everything that is known of waits, in runs."""
    return _encode_runs(WAITING_RUN, cursor.waits)


def _encode_runs(packed: struct.Struct, known: dict[int, tuple[int, int]]) -> bytes:
    runs: list[tuple[int, int, int, int]] = []
    for offset in sorted(known):
        what = known[offset]
        if runs and runs[-1][1:] == (offset, *what):
            runs[-1] = (runs[-1][0], offset + 1, *what)
        else:
            runs.append((offset, offset + 1, *what))
    return b"".join([packed.pack(*run) for run in runs])


def encoded_bytes(cursor: Cursor) -> int:
    """Return about how long `encode_journal` would make it."""
    ranges, failed = cursor.ranges_at_most, len(cursor.failed) + len(cursor.waits)
    return JOURNAL_HEADER_BYTES + 3 * ENTRY_HEADER_BYTES + 16 * (1 + ranges) + FAILED_RUN.size * failed


def _parse_entry(journal: bytes, position: int, salt: int) -> tuple[int, bytes] | None:
    """Return kind and body of the entry at `position`, or None if there is no valid one."""
    start = position + ENTRY_HEADER_BYTES
    if start > len(journal):
        return None
    (crc,) = _CRC.unpack_from(journal, position)
    body_bytes, kind = _ENTRY.unpack_from(journal, position + 4)
    if body_bytes % 16 or start + body_bytes > len(journal):
        return None
    if extend(salt, journal[position + 4 : start + body_bytes]) != crc:
        return None
    return kind, journal[start : start + body_bytes]


def parse_journal(path: str, journal: bytes, incarnation: bytes) -> tuple[Cursor, CursorReport, int]:
    """Return the cursor a journal holds, what was found, and the byte after its last valid entry.

    Raises DamagedError if it belongs to another topic, or if its snapshot is not what was written.
    """
    if journal[:JOURNAL_HEADER_BYTES] not in [encode_header(incarnation, version) for version in VERSIONS]:
        what = "belongs to another topic" if journal[:8] == _MAGIC else "is not a cursor's journal"
        raise DamagedError(f"{path} {what}, or its first {JOURNAL_HEADER_BYTES} bytes are damaged")
    (salt,) = _CRC.unpack_from(journal, JOURNAL_HEADER_BYTES - 4)
    position = end = JOURNAL_HEADER_BYTES
    cursor: Cursor | None = None
    entries = damaged_bytes = 0
    while position + ENTRY_HEADER_BYTES <= len(journal):
        found = _parse_entry(journal, position, salt)
        if found is None or (cursor is None) != (found[0] == SNAPSHOT):
            if cursor is None:
                raise DamagedError(
                    f"{path} is damaged at byte {position}: the cursor's snapshot does not match its checksum"
                )
            position += 16  # all lengths are multiples of 16, so the next entry can only begin at one
            continue
        kind, body = found
        if kind == SNAPSHOT:
            start, low = _PAIR.unpack_from(body)
            cursor = Cursor(start, low, RangeSet.decode(body[16:]))
        elif cursor is not None and kind == ACKNOWLEDGED:
            for first, stop in _PAIR.iter_unpack(body):
                cursor.acknowledge(first, stop)
        elif cursor is not None and kind == FAILED and len(body) % FAILED_RUN.size == 0:
            for first, stop, deliveries, failures in FAILED_RUN.iter_unpack(body):
                cursor.fail(first, stop, deliveries, failures)
        elif cursor is not None and kind == WAITING and len(body) % WAITING_RUN.size == 0:
            for first, stop, until_ms, wait_ms in WAITING_RUN.iter_unpack(body):
                cursor.wait(first, stop, until_ms, wait_ms)
        damaged_bytes += position - end
        entries += 1
        position += ENTRY_HEADER_BYTES + len(body)
        end = position
    if cursor is None:
        raise DamagedError(f"{path} is cut short: it holds no cursor")
    torn = len(journal) - end
    return cursor, CursorReport(entries=entries, torn_bytes=torn, damaged_bytes=damaged_bytes), end
