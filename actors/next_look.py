"""When an actor looks after its affairs next: one timer at most, and none while nothing can become due.

Thousands of actors at rest then cost nothing. What is due at a time of day is looked at again when the clock was set.

Runs on a loop, as a part of an actor. May touch the loop's timers, and its clock through `ClockSteps`.

Invariants
- a look is never later than the last `after`, or the soonest `within` since
- an actor has at most one timer for its looks
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from ister.actors.runtime import LoopActor, Timer

# seconds; after the clock was set, thousands of actors look within this time, and not in one turn
STEPPED_WITHIN_S: Final = 10.0


class NextLook:
    """The next call of `look` for `host`."""

    __slots__ = ("_host", "_look", "_timer", "_watches")

    def __init__(self, host: LoopActor, look: Callable[[], None]) -> None:
        self._host = host
        self._look = look
        self._timer: Timer | None = None
        self._watches = False  # the steps of the wall clock

    def after(self, seconds: float, *, by_wall_clock: bool = False) -> None:
        """Look in so many seconds, instead of when it was said before; if that is infinite, not until `within`.

        `by_wall_clock`: that was computed from a time of day.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds == math.inf else self._host.call_later(seconds, self._due)
        if by_wall_clock != self._watches:
            self._watches = by_wall_clock
            steps = self._host.system.clock_steps
            if by_wall_clock:
                steps.watch(self._host.path, self._stepped)
            else:
                steps.unwatch(self._host.path)

    def within(self, seconds: float) -> None:
        """Look in so many seconds at the latest: something has changed."""
        timer = self._timer
        if timer is None or timer.due > self._host.clock.monotonic() + seconds:
            if timer is not None:
                timer.cancel()
            self._timer = self._host.call_later(seconds, self._due)

    def end(self) -> None:
        """Look no more: the actor has ended."""
        self.after(math.inf)

    def _due(self) -> None:
        self._timer = None
        self._look()

    def _stepped(self) -> None:
        self.within(STEPPED_WITHIN_S * self._host.system.random.random())
