"""The pace of long work: bursts of some hundred microseconds, each followed by a rest.

A burst is short, so that whoever needs the core never waits long for it, whatever the scheduler does; rests keep caches
and memory free for others. May touch: the clock and the sleep it is handed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Rests shorter than this are gathered: a sleep takes some 60 us more than it is told to.
BURST_S: Final = 0.0005
# A burst that seems to have taken long was interrupted by others, and needs no longer rest for that.
REST_S_MAX: Final = 0.01


class Pacing:
    """Call it between small steps of work: it rests, so that the work takes at most `percent` of a core."""

    __slots__ = ("_began", "_monotonic", "_rest", "_sleep")

    def __init__(self, percent: int, monotonic: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._rest = (100 - percent) / percent  # seconds of rest for a second of work
        self._began = monotonic()

    def __call__(self) -> None:
        """Rest if a burst has ended."""
        worked = self._monotonic() - self._began
        if worked < BURST_S or not self._rest:
            return
        self._sleep(min(worked * self._rest, REST_S_MAX))
        self._began = self._monotonic()


def unpaced() -> None:
    """Never rest."""
