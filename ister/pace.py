"""How many messages a consumer has ready for its program: as many as it processes in half a second. Pure.

The program's pace is what it takes in a round, divided by the time it was busy: from when it was handed something until
it asked for more, and while messages had arrived and waited for it. Time spent waiting for messages does not count. A
round is a window's worth of messages (at most a thousand), or half a second of work.

The window and the messages in hand together are then about a second of work. A slow program takes nothing away from
other consumers, and no message waits so long that its acknowledgment times out. A fast program has the largest window
after some milliseconds.

Invariants
- a window is from 1 to `most`, and grows at most `GROWTH` times per round
- a program that is handed messages one by one holds no more than its pace, after the round in which it became slow
"""

from __future__ import annotations

from typing import Final

START_SHARED: Final = 2  # one to work on, and one that is ready: the rest is left to other consumers
START_ALONE: Final = 100  # there are no other consumers
HOLD_S: Final = 0.5
# This much work is handed out at a time if the broker is told of it: a fast program costs one report for thousands
# of messages, and one that takes longer over a message has only that one in hand.
AT_ONCE_S: Final = 0.004
AT_ONCE_MAX: Final = 16_384
GROWTH: Final = 4  # from 2 to 65,536 in eight rounds
# A program that takes batches may spend time per batch rather than per message: writing a hundred rows takes as long
# as one. Larger batches then improve its pace, and the window grows; smaller ones make it worse, and the window goes
# back. Where the pace does not depend on the batches, the window continues to shrink. A pace that changed while the
# batches did not says nothing about them: some messages are more work than others.
BETTER: Final = 1.3
WORSE: Final = 0.75
LARGER: Final = 1.5
SMALLER: Final = 0.67
ROUND_MAX: Final = 1024  # messages in a round, however large the window: enough to know the pace
LEAST_S: Final = 1e-6  # the resolution of a clock


class Pace:
    """One program's pace, and the window that follows from it."""

    def __init__(self, start: int, most: int) -> None:
        """`start` is the first window, `most` the largest."""
        self.most = most
        self.window = min(start, most)
        self.at_once = 1  # how many messages are handed out at a time
        self._began: float | None = None  # since when the program has been busy with what it was handed
        self._done = float("-inf")  # when it last asked for more
        self._busy_s = 0.0
        self._taken = 0
        self._last = 0  # how many messages it was handed last
        self._fits = 0.0  # how many messages would have taken a moment, at the pace of the last ones
        self._batches = 0  # how many calls of the program that was, for a batch or a single message
        self._before = 0.0  # the pace of the round before
        self._size_before = 0.0  # the messages per batch in the round before

    def asked(self, now: float) -> None:
        """Note that the program asks for more: it is done with what it was handed."""
        if self._began is not None:
            took_s = max(now - self._began, LEAST_S)
            self._busy_s += took_s
            self._began = None
            self._look_at_moment(took_s)
        self._done = now
        if self._taken and (self._taken >= min(self.window, ROUND_MAX) or self._busy_s >= HOLD_S):
            self._end_round()

    def _look_at_moment(self, took_s: float) -> None:
        """Set how many messages take a moment of work; a single pause of the machine does not count."""
        before, self._fits = self._fits, self._last * AT_ONCE_S / took_s
        if self._fits >= self.at_once:
            self.at_once = int(min(self._fits, GROWTH * self.at_once, AT_ONCE_MAX))
        elif before < self.at_once:
            self.at_once = max(1, int(self._fits))

    def handed(self, count: int, came: float, now: float, *, together: bool = False) -> None:
        """Note that the program was handed this many messages, which arrived at that time; `together`: as one batch."""
        waited_since = max(came, self._done) if self._began is None else self._began
        self._busy_s += max(0.0, now - waited_since)
        self._taken += count
        self._batches += 1 if together else count
        self._last = count
        self._began = now

    def _end_round(self) -> None:
        pace = self._taken / max(self._busy_s, LEAST_S)
        window = pace * HOLD_S
        size = self._taken / self._batches
        if window < self._taken and self._taken > self._batches:
            paid = size > LARGER * self._size_before and pace > BETTER * self._before
            missed = size < SMALLER * self._size_before and pace < WORSE * self._before
            window = 2 * self.window if paid or missed else max(window, self.window / 2)
        self.window = max(1, min(int(min(window, GROWTH * self.window)), self.most))
        self._before, self._size_before = pace, size
        self._busy_s, self._taken, self._batches = 0.0, 0, 0
