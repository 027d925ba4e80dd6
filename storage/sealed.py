"""The sealed segments of a log, oldest first, and their deletion from the oldest on.

- Segments go in order, and never all of them: the newest one stays until something after it is durable, so that the
  log always knows where it continues.
- One trim runs at a time. It deletes names, in any thread (`trim.py`); everything here runs on the thread of the log's
  owner.

What is being written, and what a commit is sealing, belongs to the log (`wal.py`).
"""

from __future__ import annotations

from ister.storage.disk import Disk
from ister.storage.segment import SegmentInfo
from ister.storage.trim import Trim, droppable


class SealedSegments:
    """What a log in `folder` has sealed; `set_aside` are segments of it that were found damaged when it was opened.

    Everything below `retained` went by the topic's retention.
    """

    __slots__ = ("_disk", "_folder", "_incarnation", "_trim", "retained", "set_aside", "whole")

    def __init__(
        self,
        disk: Disk,
        folder: str,
        incarnation: bytes,
        *,
        whole: list[SegmentInfo],
        set_aside: list[SegmentInfo],
        retained: int,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._incarnation = incarnation
        self._trim: Trim | None = None
        self.whole = whole
        self.set_aside = set_aside
        self.retained = retained

    @property
    def trimming(self) -> bool:
        """Return whether a trim has begun and not ended."""
        return self._trim is not None

    def add(self, info: SegmentInfo) -> None:
        """Add a segment that was sealed, and synced."""
        self.whole.append(info)

    def begins_at(self) -> int | None:
        """Return the offset of the oldest one, None if there is none."""
        return min([info.base for info in (*self.whole[:1], *self.set_aside[:1])], default=None)

    def begin_trim(self, offset: int, retained: int, *, rest_durable: bool) -> Trim | None:
        """Return the work of deleting segments that end at or below `offset`; None if there are none, or one runs.

        `rest_durable` says whether something after the newest one is durable.
        """
        if self._trim is not None:
            return None
        found = droppable(self.whole, self.set_aside, offset, rest_durable)
        if found:
            noted = retained if retained > self.retained else None
            self._trim = Trim(self._disk, self._folder, self._incarnation, found, noted)
        return self._trim

    def end_trim(self, trim: Trim, error: BaseException | None) -> tuple[SegmentInfo, ...]:
        """Take the outcome of `trim.run()`; return what was deleted, oldest first, whatever the error was."""
        if trim is not self._trim:
            raise ValueError("that trim is not running")
        self._trim = None
        if error is None and trim.retained is not None:
            self.retained = trim.retained
        gone = tuple(trim.gone)
        if gone:
            end = gone[-1].end
            self.whole = [info for info in self.whole if info.base >= end]
            self.set_aside = [info for info in self.set_aside if info.base >= end]
        return gone
