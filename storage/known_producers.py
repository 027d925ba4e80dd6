"""The producers that a restored topic begins with, so that what they resend is not stored a second time.

A local log that begins where the store's history ends has no segment to learn its producers from. The restorer of the
topic writes what the store knows of them (`stored_producers.py`) into a file in the log's folder, which the first
opening of the log reads. FORMAT.md has the byte table.

- The file counts for a log that has no segments and begins at the offset that the file names; else it is ignored.
- A file with a wrong checksum is ignored.

May touch: the Disk it is handed; one file in the log's folder.
"""

from __future__ import annotations

import struct
from typing import Final

from ister.storage.begin import replace_file
from ister.storage.checksum import extend
from ister.storage.disk import Disk
from ister.storage.producers import ProducerTable

PRODUCERS_NAME: Final = "producers"
_FRONT = struct.Struct("<8sHH16sQ")
_CRC = struct.Struct("<I")
_MAGIC: Final = b"ISTERPRD"
_VERSION: Final = 1


def save_producers(disk: Disk, folder: str, incarnation: bytes, start: int, snapshot: bytes) -> None:
    """Write the producers that a log in `folder` begins with at the offset `start`. Raises OSError, DiskFullError."""
    disk.makedirs(folder)
    front = _FRONT.pack(_MAGIC, _VERSION, _FRONT.size, incarnation, start) + snapshot
    replace_file(disk, folder, PRODUCERS_NAME, front + _CRC.pack(extend(0, front)))


def load_producers(
    disk: Disk, folder: str, incarnation: bytes, start: int, producers_max: int
) -> ProducerTable | None:
    """Return the producers that a log begins with at the offset `start`; None without a valid file. Raises OSError."""
    try:
        contents = disk.read(f"{folder}/{PRODUCERS_NAME}")
    except FileNotFoundError:
        return None
    front, crc = contents[: -_CRC.size], contents[-_CRC.size :]
    if len(front) < _FRONT.size or crc != _CRC.pack(extend(0, front)):
        return None
    if _FRONT.unpack_from(front) != (_MAGIC, _VERSION, _FRONT.size, incarnation, start):
        return None
    try:
        return ProducerTable.decode(front[_FRONT.size :], producers_max)
    except ValueError:
        return None
