"""Checking a topic's history in a store: every byte of every segment that it is read from.

Nothing is written. Memory is bounded by the segments being read ahead. May touch: the ObjectStore it is handed, from
threads of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ister.errors import StoreError
from ister.storage.history import History, StoredSegment
from ister.storage.layout import Layout
from ister.storage.listing import read_history, read_segment
from ister.storage.objectstore import UNCHECKED, ObjectStore
from ister.storage.record import BATCH, Header, salt_of
from ister.storage.recovery import broken_ranges
from ister.storage.replay import PREFETCH
from ister.storage.segment import FOOTER_BYTES, footer_at_end, parse_segment_header


@dataclass(frozen=True, slots=True)
class StoreDamage:
    """Damage of an object: offsets [first, end) cannot be read because of it."""

    name: str
    first: int
    end: int
    reason: str


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The result of a check of a topic's history. All is well if `damaged` and `history.gaps` are empty."""

    topic: str
    incarnation: str
    history: History
    objects: int
    records: int
    bytes: int
    damaged: tuple[StoreDamage, ...]

    @property
    def sound(self) -> bool:
        """Return whether everything is intact and contiguous."""
        return not self.damaged and not self.history.gaps


def verify_history(
    store: ObjectStore,
    layout: Layout,
    *,
    progress: Callable[[int], object] | None = None,
    prefetch: int = PREFETCH,
) -> StoreReport:
    """Check every byte of every segment of a topic's history, also of those after a gap.

    `progress` is called with the bytes checked so far. Raises StoreError if the store fails.
    """
    history = read_history(store, layout)
    segments: dict[str, StoredSegment] = {piece.segment.name: piece.segment for piece in history.pieces}
    damaged: list[StoreDamage] = []
    records = checked = 0
    with ThreadPoolExecutor(prefetch, thread_name_prefix="ister-verify") as pool:
        waiting = iter(segments.values())
        coming: deque[tuple[StoredSegment, Future[bytes]]] = deque()
        while True:
            while len(coming) < prefetch and (segment := next(waiting, None)) is not None:
                coming.append((segment, pool.submit(store.get, segment.name)))
            if not coming:
                break
            segment, future = coming.popleft()
            try:
                data = future.result()
            except StoreError as error:
                if error.action != "stop":
                    for _, other in coming:
                        other.cancel()
                    raise
                if error.code not in UNCHECKED:
                    damaged.append(StoreDamage(segment.name, segment.base, segment.end, error.text))
                    continue
                data = read_segment(store, segment.name, segment.bytes)
                damaged.append(StoreDamage(segment.name, segment.base, segment.base, error.text))
            del future
            found, count = _verify_segment(data, layout, segment)
            damaged += found
            records += count
            checked += len(data)
            if progress is not None:
                progress(checked)
    return StoreReport(
        layout.topic, layout.incarnation.hex(), history, len(segments), records, checked, tuple(damaged)
    )


def _verify_segment(data: bytes, layout: Layout, segment: StoredSegment) -> tuple[list[StoreDamage], int]:
    """Return what is wrong with a segment's bytes, and how many batches are intact."""
    salt = salt_of(layout.incarnation, segment.base)
    counted = 0

    def count(header: Header) -> None:
        nonlocal counted
        counted += header[1] == BATCH

    broken = broken_ranges(segment.name, data, segment.base, segment.end, salt, sealed=True, on_record=count)
    found = [StoreDamage(one.path, one.first, one.end, one.reason) for one in broken]
    header = parse_segment_header(data)
    if not isinstance(header, str) and (
        header.incarnation != layout.incarnation or header.base != segment.base
    ):
        reason = "its header is of another topic, or of another place in this one"
        found.append(StoreDamage(segment.name, segment.base, segment.base, reason))
    footer = footer_at_end(data[max(0, len(data) - FOOTER_BYTES) :], len(data), salt)
    if footer is None:
        found.append(StoreDamage(segment.name, segment.end, segment.end, "it has no valid footer"))
    elif footer.next_offset != segment.end:
        reason = f"its footer says that it ends at offset {footer.next_offset}, its metadata {segment.end}"
        found.append(StoreDamage(segment.name, segment.end, segment.end, reason))
    if len(data) != segment.bytes:
        reason = f"it has {len(data)} bytes, and the listing says {segment.bytes}"
        found.append(StoreDamage(segment.name, segment.end, segment.end, reason))
    return found, counted
