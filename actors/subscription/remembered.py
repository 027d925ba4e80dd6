"""What a subscription's journal remembers of what an actor before this one delivered: failures, and waits; pure.

Invariants
- what is remembered of a message counts until it was delivered again: then the queue has it
- what waits since before is queued once, though the log is read past it later
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ister.actors.ledger import DELAY_MS_MAX
from ister.storage.ranges import RangeSet

if TYPE_CHECKING:
    from ister.actors.subscription.cursor_log import CursorLog


class Remembered:
    """What the journal of one subscription knew when it was opened."""

    def __init__(self, journal: CursorLog) -> None:
        self._journal = journal
        self._failed_end = 0  # behind the last message that had failed when the journal was opened
        self._queued = (
            RangeSet()
        )  # of these, what waits: it is queued already, and passed over where the log has it

    def begin(self, durable_end: int) -> None:
        """The journal is open: note up to where it knows of failures.

        Of messages that a power failure took from the log nothing counts: others have their offsets.
        """
        cursor = self._journal.cursor
        for offset in [offset for offset in cursor.failed if offset >= durable_end]:
            self._journal.note_failed(offset, offset + 1, 0, 0)
        self._failed_end = max(cursor.failed, default=-1) + 1

    def forget(self) -> None:
        """Nothing of it counts any more."""
        self._failed_end = 0
        self._queued = RangeSet()

    def knows(self, from_offset: int) -> bool:
        """Whether there is anything about messages from an offset on."""
        return self._failed_end > from_offset and bool(self._journal.cursor.failed or self._queued)

    def alike(self, first: int, end: int) -> tuple[int, int, int]:
        """Say up to where messages from `first` on failed as often as that one, how often it was delivered, and failed.

        For messages that this actor has delivered to nobody yet.
        """
        failed, until = self._journal.cursor.failed, min(end, self._failed_end)
        if first >= until:
            return end, 0, 0
        known = failed.get(first, (0, 0))
        stop = first + 1
        while stop < until and failed.get(stop, (0, 0)) == known:
            stop += 1
        if stop == until and known == (0, 0):
            stop = end
        return stop, *known

    def ready_s(self, offset: int, now_s: float, now_ms: int) -> float:
        """Return when a message may be delivered, which may wait until a time and was to wait so long; 0: at once.

        The clock may have been set back since, or another machine's wrote it: nothing waits longer than it was to.
        Where nobody noted how long that is, no message can have been asked to wait longer than `DELAY_MS_MAX`.
        """
        until_ms, asked_ms = self._journal.cursor.waits.get(offset, (0, 0))
        wait_ms = min(until_ms - now_ms, asked_ms or DELAY_MS_MAX)
        return now_s + wait_ms / 1000 if until_ms and wait_ms > 0 else 0.0

    def waiting(self, now_s: float, now_ms: int) -> Iterator[tuple[int, float]]:
        """Take out the messages that go on waiting, to be queued: each, and when it may be delivered."""
        for offset in sorted(self._journal.cursor.waits):
            if (ready_s := self.ready_s(offset, now_s, now_ms)) > now_s:
                self._queued.add(offset, offset + 1)
                yield offset, ready_s

    def fresh(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return what of [first, end) is neither acknowledged nor queued already since the journal was opened."""
        pending = self._journal.cursor.pending(first, end)
        queued = self._queued
        if not queued:
            return pending
        if (queued.end or 0) <= first:
            self._queued = RangeSet()
            return pending
        return [part for begin, stop in pending for part in queued.gaps(begin, stop)]
