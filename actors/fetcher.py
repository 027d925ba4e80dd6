"""The Fetcher: downloads old segments from the store into a bounded cache on disk that all readers share.

Runs in the tier process, one actor. A cached segment is the object byte for byte, under the name its log gave it.

Invariants
- a file in the cache was checked against the store's checksum before it got its name; of an object that fails this
  check, intact records can be read by their own checksums
- the cache holds no more than `cache_bytes_max`, plus one segment; the segment not requested for longest is removed
  first
- a segment that a reader could not use is downloaded once more; after that it counts as damaged in the store. A reader
  that only heard nothing may ask again: it is answered once
- at most `parallel` segments are in transit, those requested before those that may be requested next
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ister.actors.messages import Answer, Describe, DropCache, Fetch, Fetched, NotFetched
from ister.actors.runtime import Address, LoopActor, System, receives
from ister.actors.threads import Purpose
from ister.errors import IsterError
from ister.storage.claiming import list_history
from ister.storage.disk import Disk
from ister.storage.folders import CACHE_FOLDER, cache_folder
from ister.storage.history import History, Piece
from ister.storage.layout import Layout
from ister.storage.listing import read_segment
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectStore
from ister.storage.segment import base_of, segment_name
from ister.wire import encode_result

log = logging.getLogger("ister.fetcher")

PREFETCH_SEGMENTS: Final = 2  # segments after the one requested: a reader is seldom faster than two downloads
# A listing that lacks what is requested is renewed, at most this often: readers request what the log has just
# dropped because the store has it.
LISTING_S: Final = 0.5
HISTORIES_MAX: Final = 64  # listings kept: one for each topic that is being read from its beginning
RETRY_S: Final = 1.0
TRIES_MAX: Final = 2  # how often a reader that requests the same offset again is given the same segment
READERS_MAX: Final = 10_000


@dataclass(slots=True, eq=False)
class _Listing:
    topic: TopicMeta
    history: History | None = None
    listed_at_s: float = 0.0
    listing: bool = False
    # (offset, who) waiting for the listing that runs, and waiting for the next one, in the order of arrival
    asked: dict[tuple[int, Address], None] = field(default_factory=dict)
    asked_late: dict[tuple[int, Address], None] = field(default_factory=dict)


class _Useless(NamedTuple):
    """What a reader could not use, for which offset, and how often in a row."""

    offset: int
    path: str
    times: int


class Fetcher(LoopActor):
    """Answers `Fetch`; keeps the cache in `data`."""

    def __init__(
        self,
        system: System,
        path: str,
        store: ObjectStore,
        disk: Disk,
        data: str,
        *,
        parallel: int,
        cache_bytes_max: int,
    ) -> None:
        super().__init__(system, path)
        self._store = store
        self._disk = disk
        self._data = data
        self._parallel = parallel
        self._cache_bytes_max = cache_bytes_max
        self._listings: OrderedDict[bytes, _Listing] = OrderedDict()
        self._cached: OrderedDict[str, int] = OrderedDict()  # path -> bytes, the one used longest ago first
        self._copies: dict[str, int] = {}  # path -> the number of the download that is in the file
        # the number of the last download; an earlier Fetcher's downloads, of which this process knows nothing, have
        # others
        self._copy = self.clock.time_ms() << 20
        self._cached_bytes = 0
        # by path of a segment in transit: (offset, who) waiting for it
        self._waiting: dict[str, dict[tuple[int, Address], None]] = {}
        self._refusing: set[tuple[int, Address]] = set()  # who will be refused in a moment
        self._queue: deque[tuple[_Listing, Piece]] = deque()
        self._under_way = 0
        self._deleted: set[str] = set()  # cache folders of deleted topics that have downloads in transit
        self._useless: dict[Address, _Useless] = {}  # by reader
        self.fetched_segments = 0
        self.fetched_bytes = 0

    def on_start(self) -> None:
        """Start with an empty cache: nothing is known about files that were left."""
        root = f"{self._data}/{CACHE_FOLDER}"
        self._disk.makedirs(root)
        for folder in self._disk.listdir(root):
            for name in self._disk.listdir(f"{root}/{folder}"):
                self._disk.unlink(f"{root}/{folder}/{name}")
            self._disk.rmdir(f"{root}/{folder}")

    # ---- asking -------------------------------------------------------------------------------------------------

    @receives(Fetch)
    def on_fetch(self, command: Fetch) -> None:
        """Download the segment that holds an offset, and those after it."""
        who = command.offset, command.reply
        if who in self._refusing:
            return  # the reader asked again, and its answer is on the way
        self._deleted.discard(cache_folder(self._data, command.topic))
        listing = self._listings.get(command.topic.incarnation)
        if listing is None:
            listing = self._listings[command.topic.incarnation] = _Listing(command.topic)
            while len(self._listings) > HISTORIES_MAX:
                self._listings.popitem(last=False)
        self._listings.move_to_end(command.topic.incarnation)
        history = listing.history
        if history is not None and piece_at(history, command.offset) is not None:
            self._bring(listing, command.offset, command.reply, command.seen)
            return
        old = self.clock.monotonic() - listing.listed_at_s > LISTING_S
        if (
            history is not None and not old and not listing.listing
        ):  # as many that ask at the same time wait for one listing
            self._refuse(listing, command.offset, command.reply, final=False)
            return
        if listing.listing:
            if who not in listing.asked:
                listing.asked_late[who] = None
        else:
            listing.asked[who] = None
            listing.listing = True
            layout = Layout(command.topic.name, command.topic.incarnation)
            self.offload(
                lambda: list_history(self._store, layout).history,
                lambda history, error: self._listed(listing, history, error),
                Purpose.STORE,
            )

    def _listed(self, listing: _Listing, history: History | None, error: BaseException | None) -> None:
        listing.listing = False
        asked, late = list(listing.asked), list(listing.asked_late)
        listing.asked, listing.asked_late = {}, {}
        if error is not None or history is None:
            log.warning("topic %s: the store could not be listed: %s", listing.topic.name, error)
            for offset, reply in asked + late:
                self._answer_later(
                    NotFetched(offset, f"the store could not be listed: {error}", True, 0), reply
                )
            return
        listing.history, listing.listed_at_s = history, self.clock.monotonic()
        for number, (offset, reply) in enumerate(asked + late):
            if piece_at(history, offset) is not None:
                self._bring(listing, offset, reply)
            else:
                self._refuse(listing, offset, reply, final=number < len(asked))

    def _refuse(self, listing: _Listing, offset: int, reply: Address, *, final: bool) -> None:
        """Answer that the store does not have an offset; finally only if it was listed after the request.

        The store had what the log has just dropped; and a writer that has not said where it begins may still do so.
        """
        assert listing.history is not None
        history = listing.history
        begins = history.trimmed
        if offset < begins:
            text = f"the store has topic {listing.topic.name!r} from offset {begins} on"
        elif (end := history.gap_at(offset)) is not None:
            text = f"the store has lost offsets {offset} to before {end} of topic {listing.topic.name!r}"
        else:
            text = f"the store has topic {listing.topic.name!r} up to offset {history.end} alone"
        retry = offset >= begins and (not final or history.undecided is not None)
        answer = NotFetched(offset, text, retry, begins, history.gap_at(offset) or 0)
        self._answer_later(answer, reply)

    def _answer_later(self, answer: NotFetched, reply: Address) -> None:
        """Answer a request in vain after a pause, so that a reader that asks again does not ask all the time."""
        who = answer.offset, reply

        def tell() -> None:
            self._refusing.discard(who)
            self.system.at(reply).tell(answer)

        self._refusing.add(who)
        self.call_later(RETRY_S, tell)

    # ---- bringing back ------------------------------------------------------------------------------------------

    def _bring(self, listing: _Listing, offset: int, reply: Address, seen: int = 0) -> None:
        """Tell a reader that its segment is cached, or download it; `seen` is a download that was of no use."""
        assert listing.history is not None
        piece = piece_at(listing.history, offset)
        assert piece is not None
        path = self._path(listing.topic, piece)
        useless = self._useless.get(reply)
        if useless is not None and useless[:2] != (offset, path):  # the reader has gone on meanwhile
            del self._useless[reply]
            useless = None
        if path in self._cached and self._copies[path] == seen:
            self._drop(path)
            times = 1 if useless is None else useless.times + 1
            if times >= TRIES_MAX:
                self._useless.pop(reply, None)
                text = f"what object {piece.segment.name} has there is damaged"
                answer = NotFetched(offset, text, False, listing.history.trimmed, piece.end)
                self._answer_later(answer, reply)
                return
            self._useless[reply] = _Useless(offset, path, times)
            while len(self._useless) > READERS_MAX:
                del self._useless[next(iter(self._useless))]
        if path in self._cached:
            self._cached.move_to_end(path)
            self._tell_fetched(offset, reply, path)
        else:
            waiting = self._waiting.get(path)
            if waiting is None:
                self._waiting[path] = {(offset, reply): None}
                self._queue.appendleft((listing, piece))
            else:
                waiting[offset, reply] = None
                if (queued := (listing, piece)) in self._queue:  # it was queued only as a prefetch
                    self._queue.remove(queued)
                    self._queue.appendleft(queued)
        self._prefetch(listing, piece)
        self._go_on()

    def _tell_fetched(self, offset: int, reply: Address, path: str) -> None:
        base = base_of(path.rpartition("/")[2])
        assert base is not None
        self.system.at(reply).tell(Fetched(offset, base, self._copies[path]))

    def _prefetch(self, listing: _Listing, piece: Piece) -> None:
        """Download the following segments as well, as far as the cache has room beside the requested one."""
        assert listing.history is not None
        size = piece.segment.bytes
        for _ in range(PREFETCH_SEGMENTS):
            following = piece_at(listing.history, piece.end)
            if following is None or (size := size + following.segment.bytes) > self._cache_bytes_max:
                return
            path = self._path(listing.topic, following)
            if path not in self._cached and path not in self._waiting:
                self._waiting[path] = {}
                self._queue.append((listing, following))
            piece = following

    def _path(self, topic: TopicMeta, piece: Piece) -> str:
        return f"{cache_folder(self._data, topic)}/{segment_name(piece.segment.base)}"

    def _go_on(self) -> None:
        while self._queue and self._under_way < self._parallel:
            listing, piece = self._queue.popleft()
            path = self._path(listing.topic, piece)
            self._under_way += 1
            name, size = piece.segment.name, piece.segment.bytes

            def work(name: str = name, path: str = path, size: int = size) -> None:
                data = read_segment(self._store, name, size, level=logging.ERROR)
                self._disk.makedirs(path.rpartition("/")[0])
                part = f"{path}.part"
                if self._disk.exists(part):
                    self._disk.unlink(part)
                file = self._disk.create(part)
                try:
                    file.pwritev((data,), 0)
                finally:
                    file.close()
                self._disk.rename(part, path)

            self.offload(
                work,
                lambda _, error, listing=listing, path=path, size=size: self._brought(  # type: ignore[misc]
                    listing, path, size, error
                ),
                Purpose.FETCHES,
            )

    def _brought(self, listing: _Listing, path: str, size: int, error: BaseException | None) -> None:
        self._under_way -= 1
        waiting = self._waiting.pop(path, {})
        if error is None:
            self.fetched_segments += 1
            self.fetched_bytes += size
            self._cached[path] = size
            self._copy += 1
            self._copies[path] = self._copy
            self._cached_bytes += size
            if (folder := path.rpartition("/")[0]) in self._deleted:
                self._drop(path)
                self._remove_folder(folder)
            while self._cached_bytes > self._cache_bytes_max and len(self._cached) > 1:
                self._drop(next(iter(self._cached)))
            for offset, reply in waiting:
                self._tell_fetched(offset, reply, path)
        else:
            log.warning("%s could not be downloaded from the store: %s", path, error)
            gone = isinstance(error, IsterError) and error.code == "object-missing"
            if gone:  # trimmed since it was listed: a new listing says where the history begins
                listing.history = None
            retry = gone or not isinstance(error, IsterError) or error.action != "stop"
            for offset, reply in waiting:
                self._answer_later(NotFetched(offset, str(error), retry, 0), reply)
        self._go_on()

    def _drop(self, path: str) -> None:
        self._cached_bytes -= self._cached.pop(path)
        del self._copies[path]
        try:
            self._disk.unlink(path)
        except OSError as error:
            log.warning("%s could not be deleted from the cache: %s", path, error)

    @receives(DropCache)
    def on_drop_cache(self, command: DropCache) -> None:
        """Delete the downloads of a deleted topic, and those in transit when they arrive."""
        folder = cache_folder(self._data, command.topic)
        self._listings.pop(command.topic.incarnation, None)
        self._queue = deque(
            entry for entry in self._queue if entry[0].topic.incarnation != command.topic.incarnation
        )
        for path in [path for path in self._cached if path.rpartition("/")[0] == folder]:
            self._drop(path)
        waiting = [path for path in self._waiting if path.rpartition("/")[0] == folder]
        if waiting and self._under_way:
            self._deleted.add(folder)
        for path in waiting:  # nobody waits for it any more
            del self._waiting[path]
        self._remove_folder(folder)

    def _remove_folder(self, folder: str) -> None:
        with suppress(OSError):  # a download is in transit into the folder, or it never existed
            self._disk.rmdir(folder)

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe the cache."""
        body = {
            "fetched_segments": self.fetched_segments,
            "fetched_bytes": self.fetched_bytes,
            "cached_segments": len(self._cached),
            "cached_bytes": self._cached_bytes,
        }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))


def piece_at(history: History, offset: int) -> Piece | None:
    """Return the piece of a history that holds an offset, or None."""
    at = bisect_right(history.pieces, offset, key=_start) - 1
    return history.pieces[at] if at >= 0 and offset < history.pieces[at].end else None


def _start(piece: Piece) -> int:
    return piece.start
