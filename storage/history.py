"""A topic's history from a listing of its objects: which object holds which offsets. Pure: no store, clock or disk.

The rule, position by position from the log's start:

- The **log start** is the highest `t/`; without one the lowest start of an `f/`; without one the lowest segment.
- An epoch is **superseded** at a position when an `f/` of a higher epoch starts at or below it: what the older writer
  has there does not count, whenever it was uploaded.
- The position belongs to the highest epoch whose `f/` starts at or below it. A segment of that epoch which covers the
  position is taken; without one, a segment of the next higher epoch that covers it (a later writer's copy of what was
  there when it began).
- A segment is read from the position on, which may lie inside it, up to its end or to where it is superseded.
- Where nothing covers the position and segments that count lie beyond it there is a **gap**: an upload that has not
  ended while a later one has, or a loss. The history continues after it; a reader never skips it by itself.
- Only a `t/` says that what is below was dropped on purpose: anything else that is missing before the first piece is a
  gap too.
- The history ends after the last segment that counts.
- An `f/` names in its metadata the claims (`void`) whose `f/` was not there when its writer listed: if one appears
  later, it does not count, because the writer has continued from a history without it. Nothing of such an epoch ever
  counted: its writer checks for newer claims before it counts anything.
- A claim `e/` without its `f/` leaves the newest segments **undecided** until the `f/` is there: whether its writer has
  listed them is unknown.

Segments must be listed before claims, starts and trims: then whatever supersedes a segment that was seen is seen too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ister.storage.layout import DAMAGED, Layout


class Listed(Protocol):
    """An object as a store lists it; `ister.storage.objectstore.ObjectInfo` is one."""

    @property
    def name(self) -> str:
        """The object's name."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata its writer gave it."""


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment in a store: offsets [base, end), and its uploader. Times are those of its first and last batch."""

    name: str
    base: int
    end: int
    epoch: int
    bytes: int
    first_timestamp_ms: int
    last_timestamp_ms: int
    damaged: bool = False  # it is what was left of a damaged file when it was uploaded


@dataclass(frozen=True, slots=True)
class Piece:
    """Offsets [start, end) of the history, to be read from one segment."""

    segment: StoredSegment
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class History:
    """A topic's offsets [start, end) in a store except for its gaps, and the objects that do not belong to it."""

    start: int
    end: int
    pieces: tuple[Piece, ...]
    unused: tuple[str, ...] = ()  # superseded, trimmed, or covered by others
    undecided: int | None = None  # an epoch that was claimed and has not recorded yet where it begins
    trimmed: int = 0  # everything below was dropped on purpose, as the highest `t/` says
    others: int | None = None  # from this offset on, another broker wrote it after the one that asks

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """Return the missing ranges [first, end) that no `t/` explains."""
        found, at = [], self.trimmed
        for piece in self.pieces:
            if piece.start > at:
                found.append((at, piece.start))
            at = piece.end
        return tuple(found)

    @property
    def unjoined(self) -> tuple[Piece, ...]:
        """Return the pieces after the first gap that is not at the history's beginning."""
        at = self.start
        for number, piece in enumerate(self.pieces):
            if piece.start > at:
                return self.pieces[number:]
            at = piece.end
        return ()

    @property
    def joined_end(self) -> int:
        """Return up to where offsets are contiguous from the start."""
        beyond = self.unjoined
        if not beyond:
            return self.end
        at = self.pieces.index(beyond[0])
        return self.pieces[at - 1].end if at else self.start

    def gap_at(self, offset: int) -> int | None:
        """Return the end of the gap that contains `offset`, None if no gap does."""
        return next((end for first, end in self.gaps if first <= offset < end), None)

    def from_offset(self, offset: int) -> tuple[Piece, ...]:
        """Return the pieces from `offset` on, the first one cut to begin there."""
        at = bisect_right(self.pieces, offset, key=lambda piece: piece.start) - 1
        if at < 0:
            return self.pieces
        first = self.pieces[at]
        rest = self.pieces[at + 1 :]
        return (Piece(first.segment, offset, first.end), *rest) if offset < first.end else rest


def stored_segment(layout: Layout, listed: Listed) -> StoredSegment | None:
    """Return a segment's entry of a listing; None for other objects, or if its metadata is invalid."""
    place = layout.parse_segment(listed.name)
    if place is None:
        return None
    base, epoch = place
    known = listed.metadata
    try:
        end = int(known["next"])
        first, last = int(known.get("first-timestamp", 0)), int(known.get("last-timestamp", 0))
    except (KeyError, ValueError):
        return None
    if end <= base:
        return None
    damaged = DAMAGED in listed.metadata
    return StoredSegment(listed.name, base, end, epoch, listed.size, first, last, damaged)


def plan_history(layout: Layout, listing: Iterable[Listed]) -> History:
    """Return a topic's history from the objects below its prefix, in any order."""
    segments: list[StoredSegment] = []
    starts: list[tuple[int, int]] = []  # (start, epoch)
    voids: dict[int, frozenset[int]] = {}
    trims: list[int] = []
    claimed = -1
    strange: list[str] = []
    for listed in listing:
        segment = stored_segment(layout, listed)
        if segment is not None:
            segments.append(segment)
        elif (begins := layout.parse_begins(listed.name)) is not None:
            starts.append((begins[1], begins[0]))
            voids[begins[0]] = parse_void(listed.metadata)
        elif (trim := layout.parse_trimmed(listed.name)) is not None:
            trims.append(trim)
        elif (claim := layout.parse_epoch(listed.name)) is not None:
            claimed = max(claimed, claim)
        elif layout.parse_segment(listed.name) is not None:
            strange.append(listed.name)
    void = voided(voids)
    starts = [each for each in starts if each[1] not in void]
    owners = _owners(starts)
    if trims:
        start = max(trims)
    elif starts:
        start = min(starts)[0]
    else:
        start = min((segment.base for segment in segments), default=0)
    pieces = _walk(segments, owners, start)
    used = {piece.segment.name for piece in pieces}
    return History(
        start,
        pieces[-1].end if pieces else start,
        tuple(pieces),
        tuple(sorted(strange + [segment.name for segment in segments if segment.name not in used])),
        claimed if claimed > max((epoch for _, epoch in starts), default=-1) else None,
        max(trims, default=0),
    )


def parse_void(metadata: Mapping[str, str]) -> frozenset[int]:
    """Return the epochs that the metadata of an `f/` declares void."""
    try:
        return frozenset(int(epoch, 16) for epoch in metadata.get("void", "").split())
    except ValueError:
        return frozenset()


def voided(voids: Mapping[int, frozenset[int]]) -> frozenset[int]:
    """Return the epochs that do not count, from what each epoch with an `f/` declares void: the newest first."""
    found: set[int] = set()
    for epoch in sorted(voids, reverse=True):
        if epoch not in found:
            found |= voids[epoch]
    return frozenset(found)


class _Owners:
    """The owner of each position: the highest epoch that begins at or below it."""

    def __init__(self, starts: Sequence[int], epochs: Sequence[int]) -> None:
        self.starts, self.epochs = starts, epochs

    def at(self, position: int) -> int:
        """Return the epoch that owns `position`, -1 below the first one."""
        found = bisect_right(self.starts, position) - 1
        return self.epochs[found] if found >= 0 else -1

    def superseded_from(self, epoch: int) -> int | None:
        """Return the lowest position from which `epoch` is superseded, None if nowhere."""
        found = bisect_right(self.epochs, epoch)
        return self.starts[found] if found < len(self.starts) else None


def _owners(starts: Iterable[tuple[int, int]]) -> _Owners:
    """Return the owners of the positions; both of its lists ascend."""
    rising: list[tuple[int, int]] = []
    for start, epoch in sorted(starts):
        if rising and epoch <= rising[-1][1]:
            continue
        rising.append((start, epoch))
    return _Owners([start for start, _ in rising], [epoch for _, epoch in rising])


def _walk(segments: list[StoredSegment], owners: _Owners, start: int) -> list[Piece]:
    """Return the pieces from `start` on, in order; between two there may be a gap."""
    segments = sorted(segments, key=lambda segment: (segment.base, segment.epoch))
    waiting = 0  # the index of the first segment that begins above the position
    open_: list[StoredSegment] = []  # segments before it that end above the position
    found: list[Piece] = []
    position = start
    while True:
        while waiting < len(segments) and segments[waiting].base <= position:
            open_.append(segments[waiting])
            waiting += 1
        owner = owners.at(position)
        open_ = [segment for segment in open_ if segment.end > position and segment.epoch >= owner]
        if not open_:
            if waiting == len(segments):
                return found
            position = segments[waiting].base
            continue
        # The owner's own segment, else that of the nearest epoch; of several the one that reaches furthest.
        taken = min(open_, key=lambda segment: (segment.epoch, -segment.end, -segment.base))
        end = taken.end
        stop = owners.superseded_from(taken.epoch)
        if stop is not None:
            end = min(end, stop)
        if taken.epoch > owner:  # only up to where a better one begins
            for segment in segments[waiting:]:
                if segment.base >= end:
                    break
                if owner <= segment.epoch < taken.epoch:
                    end = segment.base
                    break
        if found and found[-1].segment is taken and found[-1].end == position:
            found[-1] = Piece(taken, found[-1].start, end)
        else:
            found.append(Piece(taken, position, end))
        position = end


__all__ = [
    "History",
    "Listed",
    "Piece",
    "StoredSegment",
    "parse_void",
    "plan_history",
    "stored_segment",
    "voided",
]
