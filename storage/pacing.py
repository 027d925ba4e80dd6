"""The pace of long work: bursts of some hundred microseconds, each followed by a rest; pure but for what it is handed.

A burst is short, so that whoever needs the core never waits long for it, whatever the scheduler does; rests keep caches
and memory free for others. Work that meets others rests longer: after a burst in which it was interrupted its share is
halved, down to a tenth of what it may take, and after each undisturbed burst it grows by a step. So it is fast on an
idle machine, hardly felt on a busy one, and ends on both.

May touch: the clock, the sleep and the count of interruptions that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Rests shorter than this are gathered: a sleep takes some 60 us more than it is told to.
BURST_S: Final = 0.0005
# A burst that seems to have taken longer was interrupted by others, and needs no longer rest for that.
WORKED_S_MAX: Final = 2 * BURST_S
SLOWEST: Final = 0.1  # of the share: the part that is left while others need the cores all the time
STEPS: Final = (
    25  # undisturbed bursts from nothing to the whole share: a tenth of a second at a quarter of a core
)

# Freeing 8 MiB is some hundred changes of the file system's journal, which every sync waits for. While a hundred such
# files were deleted in a row, syncs took twice as long; with this rest after each, a fifth longer.
AFTER_DELETION_S: Final = 0.005
# A deletion that took long waited for a busy disk, or kept it busy: it leaves the disk to others for longer.
RESTS_PER_DELETION: Final = 4
AFTER_DELETION_S_MAX: Final = 0.1


def undisturbed() -> int:
    """Return how often work was interrupted that nothing interrupts."""
    return 0


class Pacing:
    """Call it between small steps of work: it rests, so that the work takes at most `percent` of a core.

    `interruptions()` is how often others have taken the core from it so far. With 100 percent it never rests.
    """

    __slots__ = ("_began", "_interrupted", "_interruptions", "_monotonic", "_most", "_share", "_sleep")

    def __init__(
        self,
        percent: int,
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
        interruptions: Callable[[], int] = undisturbed,
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._interruptions = interruptions
        self._most = self._share = percent / 100
        self._interrupted = interruptions()
        self._began = monotonic()

    def __call__(self) -> None:
        """Rest if a burst has ended."""
        worked = self._monotonic() - self._began
        if worked < BURST_S or self._most == 1:
            return
        interrupted = self._interruptions()
        if interrupted > self._interrupted:
            self._share = max(self._share / 2, self._most * SLOWEST)
        else:
            self._share = min(self._share + self._most / STEPS, self._most)
        self._sleep(min(worked, WORKED_S_MAX) * (1 - self._share) / self._share)
        self._interrupted = interrupted
        self._began = self._monotonic()


def unpaced() -> None:
    """Never rest."""


def rest_after_deletion(took_s: float) -> float:
    """Return for how many seconds to leave the disk to others after a large file was deleted in `took_s`."""
    return min(max(took_s * RESTS_PER_DELETION, AFTER_DELETION_S), AFTER_DELETION_S_MAX)
