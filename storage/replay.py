"""Reading a topic straight from a store: every record, in order.

- Objects are only read; nothing is ever written.
- Segments are listed before claims, starts and trims, so that whatever supersedes a listed segment is listed too.
- A part is returned only after its record's CRCs were checked, and parts join: what is missing is an error, never a
  skip.
- Memory is bounded by the segments being read ahead: `prefetch` and one, each at most 8 MiB.
- A segment that was trimmed or superseded meanwhile is looked for again in a fresh listing, once.

Which topics there are is in `stored_topics.py`, checking a whole history in `verify_store.py`. May touch: the
ObjectStore it is handed, from threads of its own while reading ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from ister.errors import DamagedError, GapError, StoreError, TrimmedError, UsageError
from ister.storage.checksum import crc32c
from ister.storage.history import Piece, StoredSegment
from ister.storage.layout import Layout
from ister.storage.listing import read_history, read_segment
from ister.storage.objectstore import ObjectStore
from ister.storage.record import (
    BATCH,
    FOOTER,
    HEADER_BYTES,
    Header,
    Record,
    parse_header,
    salt_of,
    well_formed,
)
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    footer_at_end,
    parse_segment_header,
)

# One segment is fetched while the one before is read: that hides a store's latency, which is less than reading takes.
PREFETCH: Final = 2
# How long to wait for a gap before existing segments to be filled, since writers upload several at a time; and for a
# writer that has claimed an epoch and not recorded yet where it begins.
GAP_WAIT_S: Final = 2.0


class Part(NamedTuple):
    """Offsets [first, end) of a record: all of it, except in the first and last part of a piece."""

    record: Record
    first: int
    end: int


def parts_of(data: bytes, layout: Layout, piece: Piece) -> Iterator[Part]:
    """Yield the records of a piece from the bytes of its segment, each checked. Raises DamagedError."""
    segment = piece.segment
    header = parse_segment_header(data)
    if isinstance(header, str):
        raise _damaged(piece, piece.start, header)
    if header.incarnation != layout.incarnation or header.base != segment.base:
        raise _damaged(piece, piece.start, "it is of another topic, or of another place in this one")
    salt = salt_of(layout.incarnation, segment.base)
    view = memoryview(data)
    position, at = SEGMENT_HEADER_BYTES, segment.base
    while at < piece.end:
        found = parse_header(data, position, salt)
        if found is None or found[3] < HEADER_BYTES:
            raise _damaged(piece, at, f"there is no valid record at byte {position}")
        if found[1] == FOOTER:
            raise _damaged(piece, at, f"it ends at offset {at}")
        if found[1] == BATCH:
            end = at + found[5]
            if found[7] != at:
                raise _damaged(piece, at, f"offset {found[7]} is there")
            if end > piece.start:
                record = _checked(piece, view, position, found, salt)
                yield Part(record, max(at, piece.start), min(end, piece.end))
            at = end
        position += found[3]


def _checked(piece: Piece, view: memoryview, position: int, header: Header, salt: int) -> Record:
    body = view[position + HEADER_BYTES : position + header[3]]
    if len(body) != header[3] - HEADER_BYTES or crc32c(body, salt) != header[4]:
        raise _damaged(piece, header[7], "the record there does not match its checksum")
    if not well_formed(header):
        raise _damaged(piece, header[7], "the parts of the record there do not add up")
    return Record(header, body)


def _damaged(piece: Piece, at: int, reason: str) -> DamagedError:
    first = max(at, piece.start)
    error = DamagedError(f"offset {first} cannot be read from object {piece.segment.name}: {reason}")
    error.first, error.end = first, piece.end
    return error


class Replay:
    """A reader of one topic's history in a store, as it was when it was listed."""

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        *,
        prefetch: int = PREFETCH,
        gap_wait_s: float = GAP_WAIT_S,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """List the history; a claim that has not begun is waited for, up to `gap_wait_s`. Raises StoreError."""
        self._store = store
        self._layout = layout
        self._prefetch = max(1, prefetch)
        self._gap_wait_s = gap_wait_s
        self._wait = wait
        self.history = read_history(store, layout)
        if self.history.undecided is not None:
            wait(gap_wait_s)
            self.history = read_history(store, layout)

    def check(self, offset: int) -> int:
        """Return the offset to begin at: `offset`, or the log's start for 0.

        Raises TrimmedError if it is below the log's start, UsageError if it is after the end.
        """
        history = self.history
        if offset == 0:
            return history.start
        if offset < history.start:
            raise _trimmed(self._layout, offset, history.start)
        if offset > history.end:
            raise UsageError(
                f"offset {offset} of topic {self._layout.topic!r} is not in the store, which ends before {history.end}",
                code="offset-out-of-range",
            )
        return offset

    def read(self, offset: int) -> Generator[Part]:
        """Yield everything from `offset` on, in order, up to the end of what the store has.

        Raises GapError for missing offsets, TrimmedError for those deleted meanwhile, DamagedError, StoreError.
        """
        at = offset
        with ThreadPoolExecutor(self._prefetch, thread_name_prefix="ister-prefetch") as pool:
            again = False  # whether the piece at `at` was missing in the listing before
            while True:
                coming: deque[tuple[Piece, Future[bytes]]] = deque()
                pieces = _joining(self.history.from_offset(at), at)
                try:
                    while True:
                        while len(coming) < self._prefetch and (piece := next(pieces, None)) is not None:
                            coming.append((piece, pool.submit(_read, self._store, piece.segment)))
                        if not coming:
                            break
                        piece, future = coming.popleft()
                        try:
                            data = future.result()
                        except StoreError as error:
                            if error.code != "object-missing" or again:
                                raise
                            again = True
                            break
                        again = False
                        for part in parts_of(data, self._layout, piece):
                            at = part.end
                            yield part
                        del data, future
                finally:
                    for _, future in coming:
                        future.cancel()
                if again:
                    self.history = read_history(self._store, self._layout)
                    if at < self.history.start:
                        raise _trimmed(self._layout, at, self.history.start)
                elif not self._joined(at):
                    return

    def _joined(self, at: int) -> bool:
        """Look for more where the contiguous pieces end; return whether there is. Raises GapError if there is a gap."""
        if self.history.end <= at:
            return False
        self._wait(self._gap_wait_s)
        self.history = read_history(self._store, self._layout)
        if at < self.history.start:
            raise _trimmed(self._layout, at, self.history.start)
        following = next(iter(self.history.from_offset(at)), None)
        if following is None:
            return False
        if following.start <= at:
            return True
        error = GapError(
            f"offsets {at} to before {following.start} of topic {self._layout.topic!r} are not in the store, but "
            f"{following.segment.name} is: an upload has not ended, or an object is lost; what follows can be read "
            f"from offset {following.start} on",
            action="retry",
        )
        error.first, error.end = at, following.start
        raise error

    def offset_at(self, timestamp_ms: int) -> int:
        """Return the first offset whose log time is `timestamp_ms` or later, the end if there is none.

        Segments are searched by the log time in their footers, a few small reads. Raises StoreError, DamagedError.
        """
        pieces = self.history.pieces
        low, high = 0, len(pieces)
        while low < high:
            middle = (low + high) // 2
            if self._log_time(pieces[middle].segment) >= timestamp_ms:
                high = middle
            else:
                low = middle + 1
        for piece in pieces[low:]:
            for part in parts_of(_read(self._store, piece.segment), self._layout, piece):
                if part.record.timestamp_ms >= timestamp_ms:
                    return part.first
        return self.history.end

    def _log_time(self, segment: StoredSegment) -> int:
        tail = self._store.get_range(segment.name, max(0, segment.bytes - FOOTER_BYTES), FOOTER_BYTES)
        footer = footer_at_end(tail, segment.bytes, salt_of(self._layout.incarnation, segment.base))
        if footer is None:
            raise DamagedError(f"object {segment.name} has no valid footer")
        return footer.max_timestamp_ms


def _read(store: ObjectStore, segment: StoredSegment) -> bytes:
    return read_segment(store, segment.name, segment.bytes)


def _joining(pieces: Iterable[Piece], at: int) -> Iterator[Piece]:
    """Yield contiguous pieces from `at` on."""
    for piece in pieces:
        if piece.start > at:
            return
        yield piece
        at = piece.end


def _trimmed(layout: Layout, offset: int, start: int) -> TrimmedError:
    error = TrimmedError(
        f"offset {offset} of topic {layout.topic!r} is not in the store, which begins at offset {start}"
    )
    error.first, error.end = offset, start
    return error
