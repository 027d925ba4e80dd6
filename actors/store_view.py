"""What the store has of a topic, as far as its Uploader says, and what it was told to take; pure.

Invariants
- the watermark never falls: what the store said it has, it had
- what the store was not asked about is not known: neither where the topic begins, nor what is missing
- a segment is told once; what the store has not taken for `TELL_AGAIN_S` is told again, for mail is no promise
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
TOLD_AGAIN_MAX: Final = 64  # segments; the tier takes them in order


class News(NamedTuple):
    """What the Uploader is to be told: segments that are sealed, and what is left of damaged ones."""

    sealed: tuple[SegmentInfo, ...]
    damaged: tuple[SegmentInfo, ...]


class StoreView:
    """One topic's view of the store."""

    def __init__(self) -> None:
        self.known = False  # the Uploader has said what the store has
        self.watermark = 0  # it has everything below, from `start` on, but for the gaps
        self.start = 0  # what is below went by retention
        self.trouble: str | None = None  # why it is behind, where that is known
        self.stopped = False  # nothing more goes there until a person has looked
        self.behind_bytes = 0  # of sealed segments that it has not taken yet
        self._gaps: tuple[tuple[int, int], ...] = ()  # what it has lost
        # What it has of damaged segments, as far as they are whole
        self._partly: tuple[tuple[int, int], ...] = ()
        self._told = 0  # the Uploader was told of segments up to here
        self._seen = (0, 0.0)  # the watermark that was seen last, and since when

    # ---- what the Uploader says ---------------------------------------------------------------------------------

    def uploaded(self, said: Uploaded) -> None:
        """Take in what the store has now."""
        self.known, self.trouble, self.stopped = True, None, False
        self.start, self._gaps, self._partly = said.start, said.gaps, said.damaged
        self.watermark = max(self.watermark, said.watermark)

    def delayed(self, why: str) -> None:
        """Note why it is behind."""
        self.trouble = why

    def stops(self, why: str, *, refuses: bool) -> None:
        """Record that nothing more goes there; `refuses`: and that therefore the topic takes nothing more."""
        self.trouble = why
        self.stopped = self.stopped or not refuses

    # ---- what follows from it -----------------------------------------------------------------------------------

    @property
    def answered(self) -> bool:
        """Whether the store has said what it has, or it is known that it will not."""
        return self.known or self.stopped

    def begins(self, log_start: int, retained: int) -> int:
        """Return where the topic begins, given where its log does, and below what retention took everything there.

        Below it everything went by retention. What is missing above it is damage.
        """
        if not self.answered:
            return log_start
        return min(max(self.start, retained), log_start)

    def stored(self, damaged: Sequence[DamagedRange]) -> RangeSet:
        """Return what the store has: of what it has of damaged segments only what the log has not lost."""
        stored = RangeSet([(self.start, self.watermark)] if self.start < self.watermark else ())
        for gap in self._gaps:
            stored.subtract(*gap)
        for first, end in self._partly:
            for one in damaged:
                if first < one.end and one.first < end:
                    stored.subtract(max(first, one.first), min(end, one.end))
        return stored

    def note_behind(self, sealed: Sequence[SegmentInfo]) -> None:
        """Count what of the sealed segments the store has not taken yet."""
        first = bisect_left(sealed, self.watermark, key=_base)
        self.behind_bytes = sum(segment.bytes for segment in sealed[first:])

    # ---- what it is told ----------------------------------------------------------------------------------------

    def news(self, sealed: Sequence[SegmentInfo], damaged: Sequence[SegmentInfo]) -> News | None:
        """Return what was not told yet, and count it as told; None where that is nothing."""
        news = News(
            tuple(sealed[bisect_left(sealed, self._told, key=_base) :]),
            tuple(segment for segment in damaged if segment.end > self._told),
        )
        if not any(news):
            return None
        self._told = max(segment.end for segment in news.sealed + news.damaged)
        return news

    def forget_told(self) -> None:
        """The Uploader was started again, and knows nothing: what the store has not taken is news to it."""
        self._told = self.watermark

    def waits_too_long(self, now_s: float) -> bool:
        """Return whether nothing became of what was told for so long that it is to be told again."""
        if self._seen[0] != self.watermark:
            self.look_again(now_s)
            return False
        if now_s - self._seen[1] < TELL_AGAIN_S:
            return False
        self.look_again(now_s)
        return True

    def look_again(self, now_s: float) -> None:
        """Begin to wait anew."""
        self._seen = (self.watermark, now_s)

    def not_taken(self, sealed: Sequence[SegmentInfo], damaged: Sequence[SegmentInfo]) -> News | None:
        """Return what was told and is not in the store, as much as the tier takes at once; None: nothing."""
        if self._told <= self.watermark:
            return None
        first = bisect_left(sealed, self.watermark, key=_base)
        behind = tuple(segment for segment in damaged if segment.end > self.watermark)
        news = News(tuple(sealed[first : first + TOLD_AGAIN_MAX]), behind[:TOLD_AGAIN_MAX])
        return news if any(news) else None


def lost_by_log(
    damaged: Sequence[DamagedRange], segments: Sequence[SegmentInfo]
) -> tuple[tuple[int, int], ...]:
    """Return what of a log's damaged places is in no segment at all: the log goes on behind it."""
    held = RangeSet((one.base, one.end) for one in segments)
    gaps = RangeSet()
    for one in damaged:
        for gap in held.gaps(one.first, one.end) if one.first < one.end else ():
            gaps.add(*gap)
    return tuple(gaps)[:TOLD_AGAIN_MAX]


def _base(segment: SegmentInfo) -> int:
    return segment.base
