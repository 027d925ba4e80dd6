"""What a subscription's journal says about the deliveries of an earlier actor: failures and waits; pure.

Invariants
- what is remembered of a message counts until the log is read up to it; then the queue keeps its state
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ister.actors.ledger import DELAY_MS_MAX

if TYPE_CHECKING:
    from ister.actors.subscription.cursor_log import CursorLog


class Remembered:
    """What the journal of one subscription contained when it was opened."""

    def __init__(self, journal: CursorLog) -> None:
        self._journal = journal
        self._failed_end = 0  # the end of the last message that had failed when the journal was opened

    def begin(self, durable_end: int) -> None:
        """Note up to where the journal, now open, knows of failures.

        Entries about messages that a power failure took from the log do not count: other messages have their offsets.
        """
        cursor = self._journal.cursor
        for offset in [offset for offset in cursor.failed if offset >= durable_end]:
            self._journal.note_failed(offset, offset + 1, 0, 0)
        self._failed_end = max(cursor.failed, default=-1) + 1

    def forget(self) -> None:
        """Forget everything."""
        self._failed_end = 0

    def knows(self, from_offset: int) -> bool:
        """Say whether there is any entry about messages from an offset on."""
        return self._failed_end > from_offset and bool(self._journal.cursor.failed)

    def alike(self, first: int, end: int, now_ms: int = 0) -> tuple[int, int, int]:
        """Return up to where messages have the same counts as `first`, how often it was delivered, and how often it
        failed.

        For messages that this actor has not delivered yet. With a time, it stops before the next that still waits then.
        """
        failed, until = self._journal.cursor.failed, min(end, self._failed_end)
        waits = self._journal.cursor.waits if now_ms else {}
        if first >= until:
            return end, 0, 0
        known = failed.get(first, (0, 0))
        stop = first + 1
        while stop < until and failed.get(stop, (0, 0)) == known and waits.get(stop, (0, 0))[0] <= now_ms:
            stop += 1
        if stop == until and known == (0, 0):
            stop = end
        return stop, *known

    def ready_s(self, offset: int, now_s: float, now_ms: int) -> float:
        """Return the monotonic time in seconds from which a message may be delivered; 0: at once.

        The journal has the time on the wall clock and the length of the wait. The clock may have been set back since,
        or another machine may have written the entry, so a message never waits longer than that length. Entries without
        a length are limited to `DELAY_MS_MAX`.
        """
        until_ms, asked_ms = self._journal.cursor.waits.get(offset, (0, 0))
        wait_ms = min(until_ms - now_ms, asked_ms or DELAY_MS_MAX)
        return now_s + wait_ms / 1000 if until_ms and wait_ms > 0 else 0.0

    def run(self, first: int, end: int, now_s: float, now_ms: int) -> tuple[int, int, int, float]:
        """Return the same as `alike`, and the time from which these messages may be delivered; 0: at once.

        A message that still waits is alone.
        """
        if first >= self._failed_end or not self._journal.cursor.waits:
            return *self.alike(first, end), 0.0
        ready_s = self.ready_s(first, now_s, now_ms)
        return *self.alike(first, first + 1 if ready_s else end, now_ms), ready_s

    def waiting(self, first: int, end: int, now_ms: int) -> list[int]:
        """Return which messages of [first, end) still wait."""
        if not (waits := self._journal.cursor.waits):
            return []
        until = min(end, self._failed_end)
        return [offset for offset in range(first, until) if waits.get(offset, (0, 0))[0] > now_ms]
