"""When a connection's background thread leaves the socket to the threads of the program, and when it is called back.

Whoever sends a frame takes in what has arrived, and whoever waits for one reads the socket. So a program that sends all
the time, or waits, needs no other thread for that, and each turn of one would take the interpreter from it. But a
program that sends, and then rests, would hear of its receipts only when it sends again. So what counts is whether the
interpreter has time to spare: the background thread leaves for a while when a thread waits at the socket, or when
others move frames and use most of a core. Who sends and does not wait calls it back.

Pure. Invariants
- it judges by at least a tick of time, so that a short burst decides nothing
- without frames of others, and without a thread that waits, it never leaves
- calls back that are of no use, because it leaves again at once, become rare
"""

from __future__ import annotations

from typing import Final

from ister.backoff import BackOff

TICK_S: Final = 0.01
# Frames that others moved in a tick, above which they move enough of them.
TOUCHES_MAX: Final = 2
# Of a core, above which a program has no time to spare.
BUSY: Final = 0.5
# How long it is not called back after a call that was of no use.
RECALL_S: Final = 2 * TICK_S
RECALL_S_MAX: Final = 0.2


class Attendance:
    """Decides for one background thread; times are seconds of one clock."""

    __slots__ = ("_back_off", "_busy", "_processor_s", "_recall_from", "_recalled", "_since", "_touches")

    def __init__(self) -> None:
        self._busy = False
        self._touches = 0
        self._since = 0.0
        self._processor_s = 0.0
        self._recalled = False
        self._recall_from = 0.0
        self._back_off = BackOff(RECALL_S, RECALL_S_MAX)

    def leaves(self, touches: int, waits: bool, now: float, processor_s: float) -> bool:
        """Return whether it leaves the socket to others.

        Since the last call others moved frames `touches` times; `waits` says whether one waits at the socket now. The
        process has used `processor_s` seconds so far.
        """
        self._touches += touches
        took_s = now - self._since
        if took_s >= TICK_S:
            often = self._touches > TOUCHES_MAX * took_s / TICK_S
            self._busy = often and processor_s - self._processor_s > BUSY * took_s
            self._since, self._processor_s, self._touches = now, processor_s, 0
        leaves = waits or self._busy
        if self._recalled:
            self._recalled = False
            if leaves:
                self._recall_from = now + self._back_off.failed()
            else:
                self._back_off.succeeded()
        return leaves

    def recall(self, now: float) -> bool:
        """Return whether to call it back, because nobody waits at the socket and something is to come."""
        if self._recalled or now < self._recall_from:
            return False
        self._recalled = True
        return True
