"""What the store has of a topic, as its Uploader reported, and what the Uploader was told; pure.

Invariants
- the watermark never falls: what the store had, it had
- before the store has answered it is unknown where the topic begins, and what is missing
- a segment is reported once; if the store does not have it after `TELL_AGAIN_S` it is reported again: mail can be lost
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ister.storage.ranges import RangeSet

if TYPE_CHECKING:
    from ister.actors.messages import Uploaded
    from ister.storage.recovery import DamagedRange
    from ister.storage.segment import SegmentInfo

TELL_AGAIN_S: Final = 10.0
TOLD_AGAIN_MAX: Final = 64  # segments; the tier uploads them in order


class News(NamedTuple):
    """News for the Uploader: sealed segments, and what is left of damaged ones."""

    sealed: tuple[SegmentInfo, ...]
    damaged: tuple[SegmentInfo, ...]


class StoreView:
    """One topic's view of the store."""

    def __init__(self) -> None:
        self.known = False  # whether the Uploader has said what the store has
        self.watermark = 0  # the store has everything below, from `start` on, except the gaps
        self.start = 0  # what is below was dropped by retention
        self.trouble: str | None = None  # why the store is behind, if known
        self.stopped = False  # nothing is uploaded any more until an operator has acted
        # bytes of sealed segments that the store does not have yet, and how many they are
        self.behind_bytes = self.behind_segments = 0
        self._gaps: tuple[tuple[int, int], ...] = ()  # what the store has lost
        # the offsets of damaged segments of which the store has what is left
        self._partly: tuple[tuple[int, int], ...] = ()
        self._told = 0  # the Uploader was told about segments up to here
        self._seen = (0, 0.0)  # the watermark last seen, and since when (monotonic seconds)

    # ---- what the Uploader says ---------------------------------------------------------------------------------

    def uploaded(self, said: Uploaded) -> None:
        """Note what the store has now."""
        self.known, self.trouble, self.stopped = True, None, False
        self.start, self._gaps, self._partly = said.start, said.gaps, said.damaged
        self.watermark = max(self.watermark, said.watermark)

    def delayed(self, why: str) -> None:
        """Note why the store is behind."""
        self.trouble = why

    def stops(self, why: str, *, refuses: bool) -> None:
        """Note that nothing is uploaded any more; `refuses`: why the topic therefore accepts nothing more."""
        self.trouble = why
        self.stopped = self.stopped or not refuses

    # ---- what follows from it -----------------------------------------------------------------------------------

    @property
    def answered(self) -> bool:
        """Whether the store has answered, or is known not to answer."""
        return self.known or self.stopped

    def begins(self, log_start: int, retained: int) -> int:
        """Return where the topic begins, given where its log begins and up to where retention dropped everything there.

        Below that everything was dropped by retention. What is missing above it is damage.
        """
        if not self.answered:
            return log_start
        return min(max(self.start, retained), log_start)

    def stored(self, damaged: Sequence[DamagedRange]) -> RangeSet:
        """Return what the store has; of damaged segments only what the log has not lost."""
        stored = RangeSet([(self.start, self.watermark)] if self.start < self.watermark else ())
        for gap in self._gaps:
            stored.subtract(*gap)
        for first, end in self._partly:
            for one in damaged:
                if first < one.end and one.first < end:
                    stored.subtract(max(first, one.first), min(end, one.end))
        return stored

    def note_behind(self, sealed: Sequence[SegmentInfo]) -> None:
        """Count the bytes of sealed segments that the store does not have yet."""
        first = bisect_left(sealed, self.watermark, key=_base)
        self.behind_bytes = sum(segment.bytes for segment in sealed[first:])
        self.behind_segments = len(sealed) - first

    # ---- what it is told ----------------------------------------------------------------------------------------

    def news(self, sealed: Sequence[SegmentInfo], damaged: Sequence[SegmentInfo]) -> News | None:
        """Return what the Uploader was not told yet, and count it as told; None if there is nothing."""
        news = News(
            tuple(sealed[bisect_left(sealed, self._told, key=_base) :]),
            tuple(segment for segment in damaged if segment.end > self._told),
        )
        if not any(news):
            return None
        self._told = max(segment.end for segment in news.sealed + news.damaged)
        return news

    def forget_told(self) -> None:
        """Note that the Uploader was restarted: what the store does not have is news to it."""
        self._told = self.watermark

    @property
    def has_all_told(self) -> bool:
        """Whether the store has all segments of which the Uploader was told."""
        return self._told <= self.watermark

    def waits_too_long(self, now_s: float) -> bool:
        """Return whether the watermark has not moved for so long that the Uploader is to be told again."""
        if self._seen[0] != self.watermark:
            self.look_again(now_s)
            return False
        if now_s - self._seen[1] < TELL_AGAIN_S:
            return False
        self.look_again(now_s)
        return True

    def look_again(self, now_s: float) -> None:
        """Start waiting again."""
        self._seen = (self.watermark, now_s)

    def not_taken(self, sealed: Sequence[SegmentInfo], damaged: Sequence[SegmentInfo]) -> News | None:
        """Return what was told and is not in the store, as much as the tier takes at once; None if nothing."""
        if self._told <= self.watermark:
            return None
        first = bisect_left(sealed, self.watermark, key=_base)
        behind = tuple(segment for segment in damaged if segment.end > self.watermark)
        news = News(tuple(sealed[first : first + TOLD_AGAIN_MAX]), behind[:TOLD_AGAIN_MAX])
        return news if any(news) else None


def lost_by_log(
    damaged: Sequence[DamagedRange], segments: Sequence[SegmentInfo]
) -> tuple[tuple[int, int], ...]:
    """Return the damaged ranges of a log that are in no segment at all: the log continues after them."""
    held = RangeSet((one.base, one.end) for one in segments)
    gaps = RangeSet()
    for one in damaged:
        for gap in held.gaps(one.first, one.end) if one.first < one.end else ():
            gaps.add(*gap)
    return tuple(gaps)[:TOLD_AGAIN_MAX]


def _base(segment: SegmentInfo) -> int:
    return segment.base
