"""What the store has of a topic: what was listed when the topic was claimed, and what was uploaded since. Pure.

Invariants
- the watermark only grows over a contiguous prefix: everything below it is in the store, except for the gaps
- everything below `start` was trimmed from the store on purpose
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Iterator, Sequence
from typing import Final

from ister.storage.continuing import lost_below
from ister.storage.history import History, Piece, StoredSegment
from ister.storage.layout import UploadPlan
from ister.storage.segment import SegmentInfo

log = logging.getLogger("ister.uploader")

GAPS_TOLD_MAX: Final = 1000  # ranges; more of them would tell nothing more

Gaps = tuple[tuple[int, int], ...]


class StoredHistory:
    """The history of `topic` in the store, from the claim on, which continues at `claimed`."""

    def __init__(self, topic: str, history: History, claimed: int, parallel: int) -> None:
        self._topic = topic
        self.listed = history  # as it was when the topic was claimed
        self.claimed = claimed
        self.start = history.trimmed
        self.gaps: Gaps = lost_below(history, claimed)  # missing above the start, permanently
        self.plan = UploadPlan(claimed, parallel)
        self._pieces = pieces_below(history, claimed)  # the segments in the store, by offset
        self._partly = partly_in(self._pieces)

    @property
    def watermark(self) -> int:
        """Everything below is in the store, except for the gaps."""
        return self.plan.watermark

    def uploaded(self, piece: Piece) -> None:
        """Note that a segment was uploaded."""
        insort(self._pieces, piece, key=lambda each: each.start)
        if piece.segment.damaged:
            self._partly = partly_in(self._pieces)
        self.plan.done(piece.segment.base, piece.segment.end)

    def pass_gaps(self, missing: Gaps) -> None:
        """Continue after offsets that the log has lost: they will never be uploaded."""
        for first, end in missing:
            if first <= (watermark := self.watermark) < end:
                log.error("topic %s: offsets %d to before %d are lost", self._topic, watermark, end)
                self.gaps = (*self.gaps, (watermark, end))
                self.plan.go_on_behind(end)

    def surveyed(self, history: History, end: int) -> None:
        """Use a new listing, made when the watermark was `end`: objects may have been deleted by others."""
        self.gaps = lost_below(history, end)
        self.start = max(self.start, history.trimmed)

    def cut(self, point: int) -> None:
        """Note that everything below a point was trimmed."""
        self.start = point
        self.gaps = tuple((max(first, point), end) for first, end in self.gaps if end > point)
        self._pieces = [piece for piece in self._pieces if piece.end > point]
        self._partly = partly_in(self._pieces)

    def told(self) -> tuple[int, int, Gaps, Gaps]:
        """Return what the topic is told: start, watermark, gaps, and what the store has of damaged segments."""
        return self.start, self.watermark, self.gaps[:GAPS_TOLD_MAX], self._partly

    def segments(self) -> Iterator[SegmentInfo]:
        """Yield the part of each object below the watermark that counts, as a segment of a log."""
        for piece in self._pieces:
            stored = piece.segment
            if piece.end <= self.watermark:
                yield SegmentInfo(
                    stored.name,
                    piece.start,
                    piece.end,
                    stored.bytes,
                    stored.first_timestamp_ms,
                    stored.last_timestamp_ms,
                    piece.end - piece.start,
                    0,
                )

    def objects_below(self, point: int) -> list[str]:
        """Return the names of the objects that end below a point."""
        return [piece.segment.name for piece in self._pieces if piece.segment.end <= point]


def pieces_below(history: History, start: int) -> list[Piece]:
    """Return the parts of a history that count for a writer that continues at `start`."""
    return [
        Piece(piece.segment, piece.start, min(piece.end, start))
        for piece in history.pieces
        if piece.start < start
    ]


def partly_in(pieces: Sequence[Piece]) -> Gaps:
    """Return the offsets of which the store has what is left of a damaged segment."""
    partly = tuple((piece.start, piece.end) for piece in pieces if piece.segment.damaged)
    return partly[:GAPS_TOLD_MAX]


def piece_of(segment: SegmentInfo, name: str, first: int, epoch: int, *, damaged: bool = False) -> Piece:
    """Return the entry of the history for a segment that was just uploaded."""
    stored = StoredSegment(
        name,
        segment.base,
        segment.end,
        epoch,
        segment.bytes,
        segment.first_timestamp_ms,
        segment.last_timestamp_ms,
        damaged,
    )
    return Piece(stored, first, segment.end)
