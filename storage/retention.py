"""Retention: how much of a log's beginning may be dropped. Pure.

A topic keeps everything unless it has a limit: an age, a number of bytes, or only messages that a subscription has not
acknowledged. Whole sealed segments are dropped from the oldest on; one exceeded limit suffices.

A segment's age is measured in log time: a clock that was set back counts as standing still. A segment written by a
clock that was ahead has a time in the future; it counts as being as old as the next one, and does not delay the
dropping of later segments.

Invariants
- nothing at or above `floor` is dropped: with a store, that is what is not uploaded yet
- a segment is dropped only after every one before it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ister.storage.meta import TopicMeta

if TYPE_CHECKING:
    from ister.storage.segment import SegmentInfo


@dataclass(frozen=True, slots=True)
class Retention:
    """The limits of a topic's retention; 0 and False: no limit."""

    ms: int = 0  # segments whose youngest batch is older are dropped
    bytes: int = 0  # of sealed segments; the active one is not counted
    acknowledged: bool = False  # drop what every subscription has acknowledged

    def __bool__(self) -> bool:
        return bool(self.ms or self.bytes or self.acknowledged)


def retention_of(topic: TopicMeta) -> Retention:
    """Return the limits in a topic's settings."""
    settings = topic.settings
    return Retention(
        int(settings.get("retention_ms", 0)),
        int(settings.get("retention_bytes", 0)),
        bool(settings.get("retention_acknowledged", 0)),
    )


def times_of(sealed: Sequence[SegmentInfo], now_ms: int) -> list[int]:
    """Return when each segment was ended, as far as known: ascending, and none of them in the future."""
    times: list[int] = []
    latest = 0
    for segment in sealed:
        own = (one for one in (segment.max_timestamp_ms, segment.last_timestamp_ms) if 0 < one <= now_ms)
        latest = max(latest, next(own, 0))
        times.append(latest)
    following = now_ms
    for at in range(len(sealed) - 1, -1, -1):
        segment = sealed[at]
        if min(segment.max_timestamp_ms or segment.last_timestamp_ms, segment.last_timestamp_ms) > now_ms:
            times[at] = following  # not later than the segments after it
        following = times[at]
    return times


def due_in_ms(sealed: Sequence[SegmentInfo], retention: Retention, now_ms: int) -> float:
    """Return in how many milliseconds the log may have something to drop although nothing else has changed.

    It is 0 if that cannot be told, and infinite if a change comes first: a segment is sealed, or is in the store.
    """
    if not sealed:
        return math.inf
    if retention.acknowledged:  # subscriptions come and go
        return 0
    if not retention.ms:
        return math.inf
    oldest = sealed[0]
    ended_ms = min(oldest.max_timestamp_ms or oldest.last_timestamp_ms, oldest.last_timestamp_ms)
    return max(0, ended_ms + retention.ms - now_ms)


def trim_point(
    sealed: Sequence[SegmentInfo],
    retention: Retention,
    *,
    now_ms: int,
    acknowledged: int | None,
    floor: int,
) -> int:
    """Return the offset below which the log may be dropped: 0, or the end of a sealed segment.

    `acknowledged` is the lowest cursor of all subscriptions, None if one of them is unknown. A topic without
    subscriptions keeps its messages for the first one.
    """
    total = sum(segment.bytes for segment in sealed)
    point = 0
    times = times_of(sealed, now_ms) if retention.ms else [now_ms] * len(sealed)
    for segment, time_ms in zip(sealed, times, strict=True):
        if segment.end > floor:
            break
        old = retention.ms > 0 and now_ms - time_ms > retention.ms
        over = retention.bytes > 0 and total > retention.bytes
        done = retention.acknowledged and acknowledged is not None and segment.end <= acknowledged
        if not (old or over or done):
            break
        point = segment.end
        total -= segment.bytes
    return point
