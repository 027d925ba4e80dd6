"""Delivery to a reader: the position of one consumer in a topic's log, kept only in memory.

Runs in a worker process, as the delivery of a Subscription that is in no catalogue; each reader has its own. Nothing is
acknowledged or returned, and it ends with its consumer. Retention does not wait for it.

Invariants
- the consumer gets every message from its start, once for each time it says where to start
"""

from __future__ import annotations

from typing import ClassVar

from ister.actors.messages import ReadFrom, TopicFailed
from ister.actors.pieces import Piece
from ister.actors.runtime import receives
from ister.actors.selection import Member
from ister.actors.subscription.in_order import InOrder
from ister.errors import IsterError
from ister.storage.cursor import Cursor
from ister.storage.cursor_journal import CursorJournal
from ister.words import counted


class Reading(InOrder):
    """Delivers to one reader; what was sent counts as done."""

    in_catalogue: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def delivered(self, member: Member, piece: Piece) -> None:
        """Mark the messages of a piece as done."""
        super().delivered(member, piece)
        self._subscription.consumers.roster.settle(member.key, piece.count)
        self._journal.note(piece.offset, piece.end)

    @receives(ReadFrom)
    def on_read_from(self, command: ReadFrom) -> None:
        """Continue where the client says: what was in transit to it is lost with its connection."""
        if not self._journal.is_open:
            return  # it was given nothing yet: it starts where it asked first
        start, begins = command.start, self._source.history_start
        missed = begins - int(start) if start.isdecimal() else 0
        try:
            offset = begins if missed > 0 else self._log.attaching.position_of(start, at_once=True)
        except IsterError:  # only the store could tell: continue after what was delivered
            return
        self._journal.move(offset, lambda _error: None)
        self._subscription.forget()
        self._source.begin(offset)
        if missed > 0:
            text = f"retention took {counted(missed, 'message')}, between offset {start} and {begins}"
            self._log.access.count_trimmed(missed, text, int(start))
        self._subscription.wake()

    def topic_failed(self, failed: TopicFailed) -> None:
        """End if the topic was deleted: the reader is in no catalogue that could tell it."""
        if failed.code in ("topic-deleted", "unknown-topic"):
            self._subscription.evict_all("topic-deleted", failed.text)

    def abandoned(self) -> None:
        """End with the consumer."""
        self._log.attaching.detach()
        self._subscription.stop_now()


class MemoryJournal(CursorJournal):
    """A cursor that is not written to disk."""

    in_memory = True

    def __init__(self, start: int) -> None:
        self.cursor = Cursor(start)
        self.failed = None

    @property
    def noted(self) -> bool:
        """Nothing is waiting to be written."""
        return False

    @property
    def busy(self) -> bool:
        """Whether the file is in use: there is none."""
        return False

    def note(self, first: int, end: int) -> int:
        """Move the cursor over [first, end)."""
        return self.cursor.acknowledge(first, end)

    def note_failed(self, *_failed: int) -> bool:
        """Ignore it: a reader's messages cannot fail."""
        return False

    def flush(self) -> int:
        """Do nothing: there is no file."""
        return 0

    def sync(self) -> None:
        """Do nothing: there is no file."""

    def begin_compaction(self) -> None:
        """Do nothing: there is no file."""

    def seek(self, offset: int) -> None:
        """Replace the cursor by an empty one at an offset."""
        self.cursor = Cursor(offset)

    def close(self) -> None:
        """Do nothing: there is no file."""
