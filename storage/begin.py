"""The file that says where a log begins: the offset below which retention deleted everything.

It is written before the first segment is deleted. So messages that are missing without it are damaged, and were not
dropped by retention.

- A file with a wrong checksum is ignored.
- The file is replaced as a whole; after a crash there is either the previous or the new one.

May touch: the Disk it is handed; one file in the log's folder.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Final

from ister.errors import DiskFullError
from ister.storage.checksum import extend
from ister.storage.disk import Disk

BEGIN_NAME: Final = "begin"
_FRONT = struct.Struct("<8sHH16sQ")
_CRC = struct.Struct("<I")
BEGIN_BYTES: Final = _FRONT.size + _CRC.size
_MAGIC = b"ISTERBEG"
_VERSION: Final = 1


def encode_begin(incarnation: bytes, retained: int) -> bytes:
    """Return the contents of the file."""
    front = _FRONT.pack(_MAGIC, _VERSION, BEGIN_BYTES, incarnation, retained)
    return front + _CRC.pack(extend(0, front))


def decode_begin(contents: bytes, incarnation: bytes) -> int | None:
    """Return the offset in the file, or None if the file is damaged or belongs to another topic."""
    if len(contents) != BEGIN_BYTES:
        return None
    magic, version, size, owner, retained = _FRONT.unpack_from(contents)
    if (magic, version, size, owner) != (_MAGIC, _VERSION, BEGIN_BYTES, incarnation):
        return None
    if contents[_FRONT.size :] != _CRC.pack(extend(0, contents[: _FRONT.size])):
        return None
    return int(retained)


def load_begin(disk: Disk, folder: str, incarnation: bytes) -> int:
    """Return the offset below which retention deleted everything; 0 without a valid file. Raises OSError."""
    try:
        contents = disk.read(f"{folder}/{BEGIN_NAME}")
    except FileNotFoundError:
        return 0
    return decode_begin(contents, incarnation) or 0


def save_begin(disk: Disk, folder: str, incarnation: bytes, retained: int) -> None:
    """Record durably that retention deletes everything below `retained`. Raises OSError, DiskFullError."""
    replace_file(disk, folder, BEGIN_NAME, encode_begin(incarnation, retained))


def replace_file(disk: Disk, folder: str, name: str, contents: bytes) -> None:
    """Replace a small file, or create it, durably.

    Raises OSError, DiskFullError; then the old contents are in force, unless the disk does not accept that either.
    """
    path = f"{folder}/{name}"
    before = disk.read(path) if disk.exists(path) else None
    _write_new(disk, path, contents)
    disk.sync_folder(folder)  # if the folder cannot be synced, find that out before anything has changed
    disk.rename(f"{path}.new", path)
    try:
        disk.sync_folder(folder)
    except OSError:
        # The new name may or may not last: after an error it must not be in force.
        with contextlib.suppress(OSError, DiskFullError):
            if before is None:
                disk.unlink(path)
            else:
                _write_new(disk, path, before)
                disk.rename(f"{path}.new", path)
        raise


def _write_new(disk: Disk, path: str, contents: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(f"{path}.new")
    file = disk.create(f"{path}.new")
    try:
        file.pwritev((contents,), 0)
        file.datasync()
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(f"{path}.new")
        raise
    finally:
        file.close()


__all__ = ["BEGIN_NAME", "decode_begin", "encode_begin", "load_begin", "replace_file", "save_begin"]
