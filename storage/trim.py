"""Deleting the beginning of a log, whole segments, oldest first; and deleting all of it.

- Names are deleted in order, and a folder's changes become durable in order: after a crash in the middle, the log
  begins at the first remaining segment, and nothing is missing after it.
- What retention deletes is recorded first (`begin.py`); anything else that is missing is damage.
- A damaged file is not deleted. It is renamed, so that it is no segment any more, and kept for an operator to look at.
- Readers in other processes keep their memory maps; later readers are told where the log begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from ister.errors import DiskFullError
from ister.storage.begin import save_begin
from ister.storage.disk import Disk
from ister.storage.segment import SegmentInfo, base_of

DAMAGED_SUFFIX: Final = ".damaged"


def droppable(
    sealed: Sequence[SegmentInfo], set_aside: Sequence[SegmentInfo], offset: int, rest_durable: bool
) -> list[tuple[SegmentInfo, bool]]:
    """Return the segments that end at or below `offset`, oldest first, each with whether it is damaged.

    The newest one stays if what is being written is not durable yet.
    """
    found = [(info, False) for info in sealed] + [(info, True) for info in set_aside]
    found.sort(key=lambda one: one[0].base)
    if not rest_durable:
        found = found[:-1]
    ended = next((number for number, (info, _) in enumerate(found) if info.end > offset), len(found))
    return found[:ended]


class Trim:
    """Segments to be deleted: `run` deletes them, in any thread; `gone` lists those deleted so far."""

    __slots__ = ("_disk", "_folder", "_incarnation", "_segments", "gone", "retained")

    def __init__(
        self,
        disk: Disk,
        folder: str,
        incarnation: bytes,
        segments: Sequence[tuple[SegmentInfo, bool]],
        retained: int | None,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._incarnation = incarnation
        self._segments = segments
        self.gone: list[SegmentInfo] = []
        self.retained = retained  # retention deletes everything below; None: not recorded

    def run(self) -> None:
        """Delete the files and sync the folder. Raises OSError; then `gone` lists what was deleted."""
        segments = self._segments
        if self.retained is not None:
            try:
                save_begin(self._disk, self._folder, self._incarnation, self.retained)
            except DiskFullError:  # deleting the first files makes space for it
                self._delete(segments[:1])
                segments = segments[1:]
                save_begin(self._disk, self._folder, self._incarnation, self.retained)
        self._delete(segments)
        self._disk.sync_folder(self._folder)

    def _delete(self, segments: Sequence[tuple[SegmentInfo, bool]]) -> None:
        for info, damaged in segments:
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                if damaged:
                    self._disk.rename(info.path, self._free_name(info.path))
                else:
                    self._disk.unlink_large(info.path)
            self.gone.append(info)

    def _free_name(self, path: str) -> str:
        number = 0
        while self._disk.exists(name := f"{path}{DAMAGED_SUFFIX}-{number}"):
            number += 1
        return name


def remove_log(disk: Disk, folder: str) -> None:
    """Delete a topic's log permanently, with its folder; a missing folder counts as deleted. In a thread."""
    try:
        names = disk.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        if base_of(name) is None:
            disk.unlink(f"{folder}/{name}")
        else:
            disk.unlink_large(f"{folder}/{name}")
    disk.rmdir(folder)
