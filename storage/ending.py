"""The end of a log: a file that an orderly stop writes beside it as proof. FORMAT.md has the byte table.

- The log was durable up to this offset, and that stays true, because a log never becomes shorter. What is missing below
  it is damage, even if the newest file looks as if it had a torn tail.
- A file with a wrong checksum is ignored.

May touch: the Disk it is handed; one file in the log's folder.
"""

from __future__ import annotations

import struct
from typing import Final

from ister.storage.checksum import extend
from ister.storage.disk import Disk

END_NAME: Final = "end"
_MAGIC: Final = b"ISTEREND"
_VERSION: Final = 1
_END: Final = struct.Struct("<8sHH16sQ")
_CRC: Final = struct.Struct("<I")
END_BYTES: Final = _END.size + _CRC.size


def encode_end(incarnation: bytes, end: int) -> bytes:
    """Return the contents of the file for a log that is durable up to `end`."""
    front = _END.pack(_MAGIC, _VERSION, END_BYTES, incarnation, end)
    return front + _CRC.pack(extend(0, front))


def load_end(disk: Disk, folder: str, incarnation: bytes) -> int:
    """Return up to where a log is known to have been durable, 0 without a valid file. Raises OSError."""
    try:
        contents = disk.read(f"{folder}/{END_NAME}")
    except FileNotFoundError:
        return 0
    if len(contents) != END_BYTES:
        return 0
    *_, end = _END.unpack_from(contents)
    return int(end) if contents == encode_end(incarnation, end) else 0


def write_end(disk: Disk, folder: str, incarnation: bytes, end: int) -> None:
    """Record that a log is durable up to `end`. Raises OSError, DiskFullError; the log itself is not affected."""
    path = f"{folder}/{END_NAME}"
    new = not disk.exists(path)
    file = disk.create(path) if new else disk.open(path)
    try:
        file.pwritev(
            (encode_end(incarnation, end),), 0
        )  # in place: it is smaller than a sector, and only this file can be damaged
        file.datasync()
    finally:
        file.close()
    if new:
        disk.sync_folder(folder)
