"""Delivery to a reader: one consumer's place in a topic's log, kept in memory alone.

Runs in a worker process, as the delivery of a Subscription that is in no catalogue, one a reader. Nothing is
acknowledged, nothing comes back, and it ends with its consumer; retention does not wait for it.

Invariants
- its one consumer gets every message from its start on, once for each time it says where to begin
"""

from __future__ import annotations

from typing import ClassVar

from ister.actors.messages import ReadFrom, TopicFailed
from ister.actors.pieces import Piece
from ister.actors.runtime import receives
from ister.actors.selection import Member
from ister.actors.subscription.in_order import InOrder
from ister.errors import IsterError
from ister.storage.cursor import Cursor, CursorJournal
from ister.words import counted


class Reading(InOrder):
    """Delivers to one reader, to which all that was sent is done."""

    in_catalogue: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def delivered(self, member: Member, piece: Piece) -> None:
        """Take it as done."""
        super().delivered(member, piece)
        self._subscription.consumers.roster.settle(member.key, piece.count)
        self._journal.note(piece.offset, piece.end)

    @receives(ReadFrom)
    def on_read_from(self, command: ReadFrom) -> None:
        """Go on where the client says, for what was on its way to it is lost with its connection."""
        if not self._journal.is_open:
            return  # it begins with what it said first, as it has been given nothing
        start, begins = command.start, self._source.history_start
        missed = begins - int(start) if start.isdecimal() else 0
        try:
            offset = begins if missed > 0 else self._log.attaching.position_of(start)
        except IsterError:  # only the store could say: it goes on behind what it was given
            return
        self._journal.move(offset, lambda _error: None)
        self._subscription.forget()
        self._source.begin(offset)
        if missed > 0:
            text = f"retention took {counted(missed, 'message')}, between offset {start} and {begins}"
            self._log.access.count_trimmed(missed, text, int(start))
        self._subscription.wake()

    def topic_failed(self, failed: TopicFailed) -> None:
        """End where the topic was deleted: no catalogue says so to a reader."""
        if failed.code in ("topic-deleted", "unknown-topic"):
            self._subscription.evict_all("topic-deleted", failed.text)

    def abandoned(self) -> None:
        """End with the consumer."""
        self._log.attaching.detach()
        self._subscription.stop_now()


class MemoryJournal(CursorJournal):
    """A cursor that is written nowhere."""

    in_memory = True

    def __init__(self, start: int) -> None:
        self.cursor = Cursor(start)
        self.failed = None

    @property
    def noted(self) -> bool:
        """Nothing has to be written."""
        return False

    @property
    def busy(self) -> bool:
        """There is no file."""
        return False

    def note(self, first: int, end: int) -> int:
        """Move the cursor."""
        return self.cursor.acknowledge(first, end)

    def note_failed(self, *_failed: int) -> bool:
        """Nothing fails: nothing is acknowledged."""
        return False

    def flush(self) -> int:
        """Write nothing."""
        return 0

    def sync(self) -> None:
        """Sync nothing."""

    def begin_compaction(self) -> None:
        """There is no file."""

    def seek(self, offset: int) -> None:
        """Begin anew at an offset."""
        self.cursor = Cursor(offset)

    def close(self) -> None:
        """Close nothing."""
