"""What a listing of the store says of one topic: its history, in order, whoever wrote it. Pure.

Writers come and go, each under an epoch of its own; two may write at once while one of them does not know yet that it
is over. What counts is in the names alone (`Layout` in storage/tier.py): every epoch says where its data begins, and
from there on nothing of an older epoch counts, whenever it arrives.

Invariants
- at every offset the newest epoch that begins at or below it counts, and no other
- a history is contiguous: it ends where nothing counts that goes on
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from storage.store import ObjectInfo
from storage.tier import Layout


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment object: offsets [base, end), written by `epoch`; times are unix ms."""

    name: str
    base: int
    end: int
    epoch: int
    bytes: int
    first_timestamp_ms: int
    last_timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Offsets [first, end) of a topic, to be read from one segment, which may hold more than that."""

    first: int
    end: int
    segment: StoredSegment


@dataclass(frozen=True, slots=True)
class History:
    """A topic's history as the store has it: offsets [start, end), in stretches that join.

    `epoch` is the highest that anybody claimed, 0 for none; `stale` are segments that do not count.
    """

    start: int
    end: int
    epoch: int
    stretches: tuple[Stretch, ...]
    stale: tuple[StoredSegment, ...]

    def at(self, offset: int) -> Stretch | None:
        """Return the stretch that holds an offset, None if the history does not."""
        if not self.start <= offset < self.end:
            return None
        return self.stretches[bisect_right(self.stretches, offset, key=_first) - 1]


def _first(stretch: Stretch) -> int:
    return stretch.first


def plan_history(layout: Layout, objects: Iterable[ObjectInfo]) -> History:
    """Return what counts of the objects under `layout.prefix`; objects that are none of ours are passed over."""
    epochs = [0]
    begins: list[tuple[int, int]] = []  # (start, epoch)
    start = 0
    by_epoch: dict[int, list[StoredSegment]] = {}
    for info in objects:
        place = layout.parse_segment(info.name)
        if place is not None:
            base, epoch = place
            by_epoch.setdefault(epoch, []).append(_segment(info, base, epoch))
        elif (claimed := layout.parse_epoch(info.name)) is not None:
            epochs.append(claimed)
        elif (begun := layout.parse_begins(info.name)) is not None:
            begins.append((begun[1], begun[0]))
            epochs.append(begun[0])
        elif (trimmed := layout.parse_trimmed(info.name)) is not None:
            start = max(start, trimmed)
    for segments in by_epoch.values():
        segments.sort(key=_base)
    stretches, used = _walk(start, sorted(begins), by_epoch)
    stale = [
        segment
        for segments in by_epoch.values()
        for segment in segments
        if segment.name not in used and segment.end > start
    ]
    stale.sort(key=_base)
    end = stretches[-1].end if stretches else start
    return History(start, end, max(epochs), tuple(stretches), tuple(stale))


def _walk(
    start: int, begins: list[tuple[int, int]], by_epoch: dict[int, list[StoredSegment]]
) -> tuple[list[Stretch], set[str]]:
    stretches: list[Stretch] = []
    used: set[str] = set()
    at, number, epoch = start, 0, 0
    while True:
        while number < len(begins) and begins[number][0] <= at:
            epoch = max(epoch, begins[number][1])
            number += 1
        # Where a newer epoch begins, this one ends; one that began further down is superseded already.
        until = next((begun for begun, newer in begins[number:] if newer > epoch), None)
        segments = by_epoch.get(epoch, [])
        found = bisect_right(segments, at, key=_base) - 1
        if found < 0 or segments[found].end <= at:
            return stretches, used
        end = segments[found].end if until is None else min(segments[found].end, until)
        stretches.append(Stretch(at, end, segments[found]))
        used.add(segments[found].name)
        at = end


def _segment(info: ObjectInfo, base: int, epoch: int) -> StoredSegment:
    known = info.metadata
    return StoredSegment(
        info.name,
        base,
        int(known.get("next", base)),
        epoch,
        info.size,
        int(known.get("first-timestamp", 0)),
        int(known.get("last-timestamp", 0)),
    )


def _base(segment: StoredSegment) -> int:
    return segment.base
