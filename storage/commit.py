"""One commit of a log: the files that have to be synced so that everything appended until it began is durable.

`run`, or `prepare` before a sync of the whole file system, touches only files, in any thread. The log's owner closes
none of them before it has taken the outcome (`Wal.end_commit`). Which commits run together is decided in
`actors/commits.py`.
"""

from __future__ import annotations

from ister.storage.disk import Disk, File
from ister.storage.segment import SegmentInfo


class Commit:
    """Everything that was appended until the commit began; `run` makes it durable."""

    __slots__ = ("_active", "_disk", "_folder", "_written", "end_offset", "seals")

    def __init__(
        self,
        disk: Disk,
        folder: str | None,
        end_offset: int,
        seals: tuple[tuple[File, SegmentInfo], ...],
        active: File | None,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._active = active
        self._written = 0 if active is None else active.written
        self.end_offset = end_offset
        self.seals = seals

    def run(self) -> None:
        """Sync the files, and the folder if names changed; any thread.

        Raises OSError; then nothing of it counts.
        """
        for file, info in self.seals:
            file.truncate(info.bytes)
            file.datasync()
        if self._active is not None:
            self._active.datasync()
        if self._folder is not None:
            self._disk.sync_folder(self._folder)

    @property
    def path(self) -> str:
        """One of its files, or its folder: what an error is about."""
        if self._active is not None:
            return self._active.path
        return self.seals[0][1].path if self.seals else self._folder or ""

    def prepare(self) -> None:
        """Do everything that `run` does besides syncing, before a sync of the whole file system; any thread.

        Raises OSError: then nothing of it counts.
        """
        for file, info in self.seals:
            file.truncate(info.bytes)

    def settle(self) -> None:
        """Record that everything is on the disk, whichever sync brought it there."""
        if self._active is not None:
            self._active.settled(self._written)
