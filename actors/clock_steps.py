"""Notifies actors that wait for a time of day when the wall clock was set, since the loop's timers know only durations.

Runs on a loop, one instance for all actors of it. May touch: the loop's clock and timers.

Invariants
- a step of the wall clock is noticed within `LOOK_S`, while any actor waits
- without waiting actors it costs nothing: when the last one stops waiting, the timer ends
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from ister.actors.loop import Scheduler, Timer

LOOK_S: Final = 0.5
# A smaller difference may be a clock that is being slewed, or a turn that took long between the two readings.
STEP_MS_MIN: Final = 50


class ClockSteps:
    """The steps of one loop's wall clock, reported to those that `watch`."""

    def __init__(self, loop: Scheduler) -> None:
        self._loop = loop
        self._watching: dict[Hashable, Callable[[], None]] = {}
        self._timer: Timer | None = None
        self._ahead_ms = 0.0

    def watch(self, key: Hashable, stepped: Callable[[], None]) -> None:
        """Call `stepped()` after each step of the wall clock, until `unwatch(key)`."""
        self._watching[key] = stepped
        if self._timer is None:
            self._ahead_ms = self._offset_ms()
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def unwatch(self, key: Hashable) -> None:
        """Stop waiting."""
        self._watching.pop(key, None)

    def _offset_ms(self) -> float:
        clock = self._loop.clock
        return clock.time_ms() - clock.monotonic() * 1000

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look) if self._watching else None
        ahead_ms = self._offset_ms()
        stepped = abs(ahead_ms - self._ahead_ms) >= STEP_MS_MIN
        self._ahead_ms = ahead_ms
        if stepped:
            for call in list(self._watching.values()):
                call()
