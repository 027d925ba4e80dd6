"""Whole files of cursor journals: written anew beside the old one, put in its place, synced, kept when damaged.

After a failure, and after a start, the content of a file does not prove that the disk has it: a page cache may show
what a failed sync has lost. It is written once more before it counts as synced.

Threads: `Sync.run` and `Compaction.run` may run in any thread, one of them at a time; everything else runs on the
thread of the journal's owner. When a journal is written anew, synced or moved is decided in `cursor_journal.py`.
"""

from __future__ import annotations

import contextlib
import os.path

from ister.errors import DamagedError
from ister.storage.cursor import Cursor
from ister.storage.cursor_format import encode_journal, parse_journal
from ister.storage.disk import Disk, File


def highest_acknowledged(disk: Disk, folder: str, incarnation: bytes) -> int:
    """Return the highest end of what the journals in a topic's folder acknowledge: the log was durable up to there.

    Files that are damaged, or no journals of the topic, do not count. Raises OSError.
    """
    return max(acknowledged_by_journal(disk, folder, incarnation).values(), default=0)


def acknowledged_by_journal(disk: Disk, folder: str, incarnation: bytes) -> dict[str, int]:
    """Return for each journal in a topic's folder the end of what it acknowledges, like `highest_acknowledged`."""
    found = {}
    for name in disk.listdir(folder) if disk.exists(folder) else ():
        if not name.rpartition(".")[
            2
        ].isdecimal():  # a journal's name ends with its subscription's creation time
            continue
        try:
            cursor, *_ = parse_journal(name, disk.read(f"{folder}/{name}"), incarnation)
        except (DamagedError, FileNotFoundError):
            continue
        found[name] = cursor.end
    return found


class Compaction:
    """A new file with nothing but a cursor's snapshot; `run` writes it, in any thread."""

    __slots__ = ("_disk", "_encoded", "file", "path", "size")

    def __init__(self, disk: Disk, path: str, encoded: bytes) -> None:
        self._disk, self.path, self._encoded = disk, path, encoded
        self.size = len(encoded)
        self.file: File | None = None

    def run(self) -> None:
        """Write and sync the new file. Raises OSError, DiskFullError; the old one continues then."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self.path)
        file = self._disk.create(self.path)
        self.file = file
        try:
            file.pwritev((self._encoded,), 0)
            file.datasync()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Remove the new file: on a full disk every block counts."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
            with contextlib.suppress(OSError):
                self._disk.unlink(self.path)

    def put(self, path: str) -> File:
        """Give the new file the name `path`, durably, and return it. Raises OSError, DiskFullError."""
        file = self.file
        assert file is not None
        try:
            self._disk.rename(self.path, path)
        except BaseException:
            self.give_up()
            raise
        file.path = path
        try:
            self._disk.sync_folder(os.path.dirname(path))
        except BaseException:
            file.close()
            raise
        return file


class Sync:
    """Everything flushed until it began; `run` makes it durable, in any thread."""

    __slots__ = ("_disk", "_file", "_folder", "_path", "_unproven")

    def __init__(self, disk: Disk, path: str, file: File, *, folder: bool, unproven: bytes) -> None:
        self._disk, self._path, self._file = disk, path, file
        self._folder, self._unproven = folder, unproven

    def run(self) -> None:
        """Sync the file, and the folder if its names may not be on the disk. Raises OSError: nothing counts then."""
        if self._unproven:
            self._file.pwritev((self._unproven,), 0)
        self._file.datasync()
        if self._folder:
            self._disk.sync_folder(os.path.dirname(self._path))


def fresh_file(disk: Disk, path: str, incarnation: bytes, cursor: Cursor) -> tuple[File, int]:
    """Put a journal of nothing but `cursor` at `path`, durably; return the file and its length."""
    fresh = Compaction(disk, f"{path}.new", encode_journal(incarnation, cursor))
    fresh.run()
    return fresh.put(path), fresh.size


def keep_damaged(disk: Disk, path: str, contents: bytes) -> str:
    """Give a damaged journal a second name, durably, and return it; the first name stays until it is replaced."""
    number = 0
    while disk.exists(kept := f"{path}.damaged-{number}"):
        number += 1
    try:
        disk.link(path, kept)
    except OSError:  # some file systems have no links
        copy = disk.create(kept)
        try:
            copy.pwritev((contents,), 0)
            copy.datasync()
        except BaseException:
            disk.unlink(kept)
            raise
        finally:
            copy.close()
    return kept
