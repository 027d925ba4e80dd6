"""Bugs planted on purpose, one at a time, which the oracle must find: otherwise it proves nothing.

Each is a context manager that breaks the broker in one place, as a programmer might have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from ister.actors import stored_erasure, stored_retention, stored_settings, uploader
from ister.actors.consumer import Consumer
from ister.actors.lanes import Lane, Lanes
from ister.actors.messages import Trimmed
from ister.actors.publishers import Publishers
from ister.actors.stored_erasure import StoredErasure
from ister.actors.subscription.log_access import LogAccess
from ister.actors.watches import Watches, _Watcher
from ister.errors import DamagedError, IsterError
from ister.handing import Handing
from ister.members import Members
from ister.storage import numbered_objects, upload
from ister.storage.cursor import Cursor
from ister.storage.cursor_files import Compaction
from ister.storage.cursor_format import encode_journal
from ister.storage.cursor_journal import CursorJournal
from ister.storage.disk import File
from ister.storage.examining import Examination
from ister.storage.layout import Layout
from ister.storage.log_search import FoundTime
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectStore
from ister.storage.producers import ProducerTable
from ister.storage.reader import Reader
from ister.storage.retention import Retention, retention_of
from ister.storage.simulated import SimulatedFile


@contextmanager
def skipped_fsync() -> Iterator[None]:
    """Receipts are sent for what is only in the page cache."""

    def datasync(self: SimulatedFile) -> None:
        self._disk.happens("sync", self.path)
        if "/topics/" not in self.path:
            self._inode.sync()

    with patch.object(SimulatedFile, "datasync", datasync):
        yield


@contextmanager
def cursor_past_a_hole() -> Iterator[None]:
    """An acknowledgment above the cursor moves the cursor there, over unacknowledged messages in between."""

    def acknowledge(self: Cursor, first: int, end: int) -> int:
        new = original(self, first, end)
        self.low = max(self.low, end)
        self.ranges.pop_through(self.low)
        return new

    original = Cursor.acknowledge
    with patch.object(Cursor, "acknowledge", acknowledge):
        yield


@contextmanager
def forgotten_redelivery() -> Iterator[None]:
    """What a consumer with a lost connection holds is not returned when its session ends."""

    def leave(self: Consumer) -> None:
        if self.wire.handle.session.routing is None:
            self._release()
        original(self)

    original = Consumer._leave
    with patch.object(Consumer, "_leave", leave):
        yield


@contextmanager
def key_too_early() -> Iterator[None]:
    """A key moves to its next consumer while the one before still holds messages of it."""

    def queue(self: Lanes, lane: Lane) -> None:
        in_flight, lane.in_flight = lane.in_flight, 0
        original(self, lane)
        lane.in_flight = in_flight

    original = Lanes._queue
    with patch.object(Lanes, "_queue", queue):
        yield


@contextmanager
def fenced_writer_counted() -> Iterator[None]:
    """A writer that another broker has fenced continues to give receipts for what it uploads."""

    def never(_store: ObjectStore, _topic: TopicMeta, _epoch: int) -> None:
        return None

    with patch.object(upload, "check_fence", never), patch.object(numbered_objects, "check_fence", never):
        yield


@contextmanager
def dedup_forgotten() -> Iterator[None]:
    """A log that is opened again does not know the producers whose batches it has."""

    def producers(self: Examination, *_given: object) -> ProducerTable:
        return ProducerTable(self._producers_max)

    with patch.object(Examination, "_producers", producers):
        yield


@contextmanager
def failed_seek_in_force() -> Iterator[None]:
    """A journal that failed is opened again from what its file shows, perhaps a move that failed."""

    def seek(self: CursorJournal, offset: int) -> None:
        fresh = Compaction(self._disk, f"{self.path}.new", encode_journal(self.incarnation, Cursor(offset)))
        try:
            fresh.run()
            file = fresh.put(self.path)
        except OSError as error:
            raise self._fail("moved", error) from error
        self._file.close()
        self._file, self._end, self.cursor = file, fresh.size, Cursor(offset)

    def written_anew(self: CursorJournal) -> CursorJournal:
        anew = CursorJournal.open(self._disk, self.path, self.incarnation, self.cursor.start)
        anew.note(anew.cursor.low, self.cursor.low)
        for first, end in self.cursor.ranges:
            anew.note(first, end)
        self.close()
        return anew

    with (
        patch.object(CursorJournal, "seek", seek),
        patch.object(CursorJournal, "written_anew", written_anew),
    ):
        yield


@contextmanager
def settings_of_creation() -> Iterator[None]:
    """Changed settings of a topic never reach the store: a broker that takes it over has those of its creation."""
    with patch.object(stored_settings, "put_settings", lambda *_given: None):
        yield


@contextmanager
def lifted_retention_unheard() -> Iterator[None]:
    """The Uploader trims the store by the retention it was told first."""
    first: dict[bytes, Retention] = {}

    def retention(topic: TopicMeta) -> Retention:
        return first.setdefault(topic.incarnation, retention_of(topic))

    def on_start(self: uploader.Uploader) -> None:
        retention(self.writer.topic)
        original(self)

    original = uploader.Uploader.on_start
    with (
        patch.object(stored_retention, "retention_of", retention),
        patch.object(uploader.Uploader, "on_start", on_start),
    ):
        yield


@contextmanager
def raw_times() -> Iterator[None]:
    """A time is searched over the times of batches, as if no clock were ever set back."""

    def find_time(
        self: Reader, timestamp_ms: int, durable_end: int, _headers_max: object = None
    ) -> FoundTime:
        offset = self.offset
        self.seek(self.search.begins_at() or 0)
        places: list[tuple[int, int]] = []
        while records := self.read(durable_end, 1 << 20):
            places += [(record.first_offset, record.timestamp_ms) for record in records]
        self.seek(offset)
        at = bisect_left(places, timestamp_ms, key=lambda place: place[1])
        found = places[at][0] if at < len(places) else durable_end
        return FoundTime(found, found, True)

    with patch.object(Reader, "find_time", find_time):
        yield


@contextmanager
def takers_lose() -> Iterator[None]:
    """A receiver that takes one message drops what another has begun."""

    def grab(self: Handing, most: int | None) -> Any:
        self._in_hand = None
        return original(self, most)

    original = Handing.grab
    with patch.object(Handing, "grab", grab):
        yield


@contextmanager
def gaps_called_retention() -> Iterator[None]:
    """Messages that neither the log nor the store has are skipped, and reported as retention."""

    def stall(self: LogAccess, error: DamagedError) -> None:
        self.source.begins(error.end or 0)
        self.on_trimmed(Trimmed(error.end or 0))

    with (
        patch.object(LogAccess, "_stall", stall),
        patch.object(LogAccess, "_begins_at", lambda _self, _offset: False),
    ):
        yield


@contextmanager
def anybody_deletes() -> Iterator[None]:
    """A broker deletes a topic from the store that belongs to another one."""

    def erase(store: ObjectStore, topic: TopicMeta, _broker: str, _identity: str) -> int:
        names = [info.name for info in store.list(Layout(topic.name, topic.incarnation).prefix)]
        return sum(store.delete(name) for name in names)

    def begin(self: StoredErasure) -> None:
        self._not_ours = False
        original(self)

    original = StoredErasure.go_on
    with patch.object(stored_erasure, "erase", erase), patch.object(StoredErasure, "go_on", begin):
        yield


@contextmanager
def pattern_at_latest() -> Iterator[None]:
    """A pattern's consumer begins a topic that was created after it looked at `start`."""

    def follow(self: Members, answer: dict[str, Any], *, later: bool) -> None:
        plan = self._open_member
        self._open_member = lambda topic, *, later, **given: plan(topic, later=False, **given)
        try:
            original(self, answer, later=later)
        finally:
            self._open_member = plan

    original = Members._follow
    with patch.object(Members, "_follow", follow):
        yield


@contextmanager
def made_meanwhile_unheard() -> Iterator[None]:
    """A pattern's consumer that returns is not told which topics were created while it was away."""

    def tell(self: Watches, watcher: _Watcher) -> None:
        watcher.subscription = ""
        original(self, watcher)

    original = Watches._tell
    with patch.object(Watches, "_tell", tell):
        yield


@contextmanager
def waits_forgotten() -> Iterator[None]:
    """Until when a refused message waits is kept in memory only."""

    def note_failed(
        self: CursorJournal, first: int, end: int, deliveries: int, failures: int, *waits: int
    ) -> bool:
        del waits
        return original(self, first, end, deliveries, failures)

    original = CursorJournal.note_failed
    with patch.object(CursorJournal, "note_failed", note_failed):
        yield


@contextmanager
def deletion_untold() -> Iterator[None]:
    """Producers are not told that their topic is deleted."""

    def leave(self: Publishers, error: IsterError) -> None:
        if error.code != "topic-deleted":
            original(self, error)

    original = Publishers.send_away
    with patch.object(Publishers, "send_away", leave):
        yield


@contextmanager
def deleted_stays_stored() -> Iterator[None]:
    """The store keeps the objects of a deleted topic."""
    with patch.object(stored_erasure, "erase", lambda *_given: 0):
        yield


@contextmanager
def name_before_rename() -> Iterator[None]:
    """A file that was renamed and closed for a rest is looked for under its old name."""

    def put(self: Compaction, path: str) -> File:
        file = original(self, path)
        file.path = self.path
        return file

    original = Compaction.put
    with patch.object(Compaction, "put", put):
        yield


@contextmanager
def old_acknowledgments() -> Iterator[None]:
    """What was acknowledged before a subscription was moved counts for what is sent again."""
    with patch.object(Consumer, "_is_outdated", lambda _self, _header: False):
        yield


PLANTED: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "skipped-fsync": skipped_fsync,
    "cursor-past-a-hole": cursor_past_a_hole,
    "forgotten-redelivery": forgotten_redelivery,
    "key-too-early": key_too_early,
    "fenced-writer-counted": fenced_writer_counted,
    "dedup-forgotten": dedup_forgotten,
    "failed-seek-in-force": failed_seek_in_force,
    "settings-of-creation": settings_of_creation,
    "lifted-retention-unheard": lifted_retention_unheard,
    "raw-times": raw_times,
    "takers-lose": takers_lose,
    "anybody-deletes": anybody_deletes,
    "gaps-called-retention": gaps_called_retention,
    "pattern-at-latest": pattern_at_latest,
    "name-before-rename": name_before_rename,
    "deletion-untold": deletion_untold,
    "deleted-stays-stored": deleted_stays_stored,
    "waits-forgotten": waits_forgotten,
    "made-meanwhile-unheard": made_meanwhile_unheard,
    "old-acknowledgments": old_acknowledgments,
}
