"""Readers of reliable topics: one consumer's place in a topic, kept in memory alone.

Runs in a worker process, one actor a reader. Nothing is acknowledged, nothing comes back, and it ends with its
consumer; retention does not wait for it.

Invariants
- its one consumer gets every message from its start on, once for each time it says where to begin
"""

from __future__ import annotations

from typing import Any

from ister.actors.messages import Detach, Left, Lost, Notice, ReadFrom, Returned, TopicFailed
from ister.actors.pieces import Piece
from ister.actors.reliable_subscription import ReliableSubscription
from ister.actors.runtime import receives
from ister.actors.selection import Member
from ister.errors import IsterError
from ister.storage.cursor import Cursor, CursorJournal


class ReaderSubscription(ReliableSubscription):
    """The place of one reader."""

    def _deliver_to(self, member: Member, piece: Piece) -> None:
        super()._deliver_to(member, piece)
        self._roster.settle(member.key, piece.count)
        self._log.note(piece.offset, piece.end)

    @receives(ReadFrom)
    def on_read_from(self, command: ReadFrom) -> None:
        """Go on where the client says, for what was on its way to it is lost with its connection."""
        if not self._log.is_open:
            return  # it begins with what it said first, as it has been given nothing
        start, begins = command.start, self._source.history_start
        missed = begins - int(start) if start.isdecimal() else 0
        try:
            offset = begins if missed > 0 else self._position_of(start)
        except IsterError:  # only the store could say: it goes on behind what it was given
            return
        self._log.move(offset, lambda _error: None)
        self._forget_all()
        self._source.begin(offset)
        if missed > 0:
            self.trimmed += missed
            text = f"retention took {missed} messages, between offset {start} and {begins}"
            self._notify(Notice("trimmed", missed, text, int(start)))
        self._wake()

    def _position_of(self, place: str) -> int:
        """Return the offset that a place means now.

        One that the log has, and the store lost, was delivered once: there it waits until the store has it again.
        """
        known = self._attached_as
        if place.isdecimal() and known is not None and self._source.durable_end < int(place) <= known.log_end:
            return int(place)
        return super()._position_of(place)

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """End where the topic was deleted: no catalogue says so to a reader."""
        super().on_topic_failed(failed)
        if failed.code in ("topic-deleted", "unknown-topic"):
            self._evict_all("topic-deleted", failed.text)

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """End with the consumer."""
        super().on_left(command)
        if not self._consumers and not self._waiting:
            self._topic_ref.tell(Detach(self.address))
            self._deleted = True
            self.stop_now()

    @receives(Returned, Lost)
    def on_returned(self, _command: Any) -> None:
        """Nothing is delivered again."""

    def _store_cursor(self) -> None:
        """No store needs to know."""

    def _tell_consumed(self) -> None:
        """No retention waits for it."""

    def _undo_creation(self) -> None:
        """No catalogue has it."""


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
