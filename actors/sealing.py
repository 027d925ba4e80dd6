"""When a topic with durability cloud seals the segment that it is writing; pure.

Its receipts wait until the segment is in the store, so waiting for more messages costs latency, and, once the windows
of its producers are full, throughput. Each segment is an object, and a store charges for each. So

- a segment is sealed at the latest `linger_s` after its first message, as long as that is, and whatever follows;
- it is sealed sooner while the store can take another one (fewer than `slots` of the topic's are on their way): when
  nothing has arrived for a moment (no producer has more, or none may send more), or when it has waited for as long as
  uploads take;
- but a small one only within a budget: one for each linger on average, and a few more after a pause.

Invariants
- in any time there are at most `BURST` + 1 small segments more than time / `linger_s`
- what is written is sealed within `linger_s`, or with the next look after it
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Smaller segments cost a store more by their number than by their bytes.
SMALL_BYTES: Final = 1 << 20
# Small segments that may be sealed early one after the other, after a pause: a program that waits for each of its
# receipts, and asks for a few, waits for no linger.
BURST: Final = 8
# How often to look, as a part of how long an upload takes: what is sealed a little too late costs little.
LOOKS_PER_UPLOAD: Final = 4
LOOK_S_MIN: Final = 0.002
LOOK_S_FIRST: Final = 0.005  # until an upload was measured
LOOKS_PER_LINGER: Final = 5  # at least
# A segment to which messages are still coming waits for so many uploads.
UPLOADS_WAITED: Final = 2.0
TICK_S: Final = 0.0001  # no timer is that exact: what is due so soon is due
SMOOTHING: Final = 0.25  # the weight of the last upload in the average


class Sealing:
    """Decides for one topic; times are seconds of one clock."""

    def __init__(self, linger_s: float, slots: int) -> None:
        self.linger_s = linger_s
        self.slots = slots
        self.upload_s: float | None = (
            None  # how long an upload takes, from sealing on, averaged; None: not known
        )
        self._base = -1  # where the segment that is being written begins, as last seen
        self._since = 0.0  # when it was first seen with a message
        self._end = -1  # where it ended when last seen
        self._tokens = float(BURST)
        self._tokens_at: float | None = None
        self._sealed: deque[tuple[int, float]] = deque()  # ends of segments that were sealed, and when

    @property
    def look_s(self) -> float:
        """How long nothing has to arrive."""
        look_s = LOOK_S_FIRST if self.upload_s is None else self.upload_s / LOOKS_PER_UPLOAD
        return min(max(look_s, LOOK_S_MIN), self.linger_s / LOOKS_PER_LINGER)

    def began(self, base: int, end: int, now: float) -> None:
        """Note that a segment has messages, after a time in which none had."""
        self._base, self._end, self._since = base, end, now

    def look(self, base: int, end: int, size: int, on_their_way: int, now: float) -> float:
        """Return after how many seconds to look again, 0 to seal now; for a segment with messages.

        It has offsets from `base` to before `end` in `size` bytes; so many of the topic's segments are sealed and not
        in the store yet. Follow a 0 with `seal`.
        """
        if base != self._base:  # the one before it was full
            self.began(base, -1, now)
        quiet, self._end = end == self._end, end
        age_s = now - self._since
        left_s = self.linger_s - age_s
        if left_s < TICK_S:
            return 0.0
        patience_s = self.linger_s if self.upload_s is None else UPLOADS_WAITED * self.upload_s
        early = on_their_way < self.slots and (quiet or age_s >= patience_s)
        if early and (size >= SMALL_BYTES or self._budget(now) >= 1):
            return 0.0
        return min(self.look_s, left_s)

    def seal(self, end: int, size: int, now: float) -> None:
        """Note that the segment is sealed."""
        if size < SMALL_BYTES:
            self._tokens = max(0.0, self._budget(now) - 1)
        self._sealed.append((end, now))
        self._base = -1

    def stored(self, watermark: int, now: float) -> None:
        """Note up to where the store has everything."""
        while self._sealed and self._sealed[0][0] <= watermark:
            # longer than the linger says no more: the store was away
            took_s = min(now - self._sealed.popleft()[1], self.linger_s)
            self.upload_s = (
                took_s if self.upload_s is None else self.upload_s + SMOOTHING * (took_s - self.upload_s)
            )

    def forget(self) -> None:
        """Note that the log was closed: what was on its way says nothing about uploads any more."""
        self._sealed.clear()
        self._base = -1

    def _budget(self, now: float) -> float:
        if self._tokens_at is not None:
            self._tokens = min(BURST, self._tokens + (now - self._tokens_at) / self.linger_s)
        self._tokens_at = now
        return self._tokens
