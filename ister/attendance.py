"""When a connection's background thread leaves the socket to the threads of the program; pure.

Whoever sends a frame takes in what has arrived, so a program that sends all the time needs no other thread for that,
and each turn of one would take the interpreter from it. But a program that sends, and then rests, would hear of its
receipts only when it sends again. So what counts is whether the interpreter has time to spare: the background thread
leaves when others move frames, and either wait for them themselves or leave it hardly any time.

Invariants
- it judges by at least a tick of time, so that a short burst decides nothing
- without frames of others it never leaves
"""

from __future__ import annotations

from typing import Final

TICK_S: Final = 0.01
# Frames that others moved in a tick, above which they move enough of them.
TOUCHES_MAX: Final = 2
# Of a core, above which a program has no time to spare.
BUSY: Final = 0.5


class Attendance:
    """Decides for one background thread; times are seconds of one clock."""

    __slots__ = ("_away", "_led", "_processor_s", "_since", "_touches")

    def __init__(self) -> None:
        self._away = False
        self._led = False
        self._touches = 0
        self._since = 0.0
        self._processor_s = 0.0

    def leaves(self, touches: int, led: bool, now: float, processor_s: float) -> bool:
        """Return whether it leaves the socket to others.

        Since the last call others moved frames `touches` times, and some waited for frames themselves if `led`. The
        process has used `processor_s` seconds so far.
        """
        self._touches += touches
        self._led = self._led or led
        took_s = now - self._since
        if took_s >= TICK_S:
            often = self._touches > TOUCHES_MAX * took_s / TICK_S
            busy = processor_s - self._processor_s > BUSY * took_s
            self._away = often and (self._led or busy)
            self._since, self._processor_s = now, processor_s
            self._touches, self._led = 0, False
        return self._away
