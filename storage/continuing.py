"""Whether a writer may continue what the store has of a topic, and where. Pure: no store, no clock, no disk.

- Nobody continues a topic whose store holds other messages than the local log at the same offsets.
- What is missing in the store and below the local log stays a gap.

The claim that follows is made in `claiming.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ister.errors import StoreError
from ister.storage.history import History, StoredSegment
from ister.storage.meta import TopicMeta
from ister.storage.segment import SegmentInfo


class FencedError(StoreError):
    """Another writer has claimed the topic: whatever this one uploads from now on does not count."""

    code = "fenced"
    action = "stop"


class AheadError(FencedError):
    """The store has the topic up to `end`, beyond what the local log has sealed as far as is known."""

    def __init__(self, text: str, end: int) -> None:
        super().__init__(text)
        self.end = end


def resume_at(history: History, begin: int | None) -> int:
    """Return where a writer continues a history: at the first offset that it lacks and the log, from `begin` on, has.

    What is missing below the log cannot be filled any more: it stays a gap, and everything after it counts.
    """
    if begin is None:
        return history.end
    for first, end in history.gaps:
        if end > begin:
            return max(first, begin)
    return max(history.end, begin)


def lost_below(history: History, start: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges below `start` that the store lacks permanently if a writer continues at `start`."""
    found = [(first, min(end, start)) for first, end in history.gaps if first < start]
    end = max(history.end, history.trimmed) if history.pieces else history.trimmed
    if end < start:
        found.append((end, start))
    return tuple(found)


def check_joins(
    topic: TopicMeta, history: History, log: Sequence[SegmentInfo], end: int, begin: int | None = None
) -> None:
    """Raise FencedError if the store's history is not that of a local log that is [begin, end).

    AheadError if it is only longer: perhaps the log has grown. `log` has sealed segments, not necessarily all;
    `end` is where they end; `begin` is None if there is no log, or its beginning is not known.
    """
    if history.others is not None and begin is not None and begin < history.trimmed:
        first, behind = max(begin, history.others), min(end, history.trimmed)
        if first < behind:  # retention deleted what would show the difference
            raise FencedError(
                f"another broker wrote offsets {first} to {behind} of topic {topic.name!r} in the store, and retention "
                "dropped them there: what the local log has there is something else"
            )
    stored_end = max(history.end, history.trimmed)  # what retention deleted was there
    if stored_end > end:
        raise AheadError(
            f"the store has had topic {topic.name!r} up to offset {stored_end}, the local log up to {end}: "
            "another broker continued it, or the local log lost its end",
            stored_end,
        )
    stored = {piece.segment.base: piece for piece in history.pieces}
    for segment in log:
        if segment.end <= history.start or segment.base >= history.end:
            continue
        piece = stored.get(segment.base)
        if piece is None and not any(
            each.start < segment.end and segment.base < each.end
            for each in history.from_offset(segment.base)[:1]
        ):
            continue  # the store lacks all of it
        if piece is None or piece.end != segment.end or not _same(piece.segment, segment):
            raise FencedError(
                f"offsets {segment.base} to {segment.end} of topic {topic.name!r} are other messages in the store than "
                "in the local log: another broker continued the topic"
            )


def _same(stored: StoredSegment, local: SegmentInfo) -> bool:
    return (stored.end, stored.bytes, stored.first_timestamp_ms, stored.last_timestamp_ms) == (
        local.end,
        local.bytes,
        local.first_timestamp_ms,
        local.last_timestamp_ms,
    )
