"""Waiting longer each time something fails. Pure: chance is handed in.

A wait doubles with each failure in a row, up to a bound. Where many may fail together, it is shortened by chance to
between half and all of itself, so that they do not all come back in the same moment.
"""

from __future__ import annotations

from typing import Final, TypeVar

N = TypeVar("N", int, float)
DOUBLED_MAX: Final = 60  # times: beyond it every bound is reached, and a float would overflow some day


def doubled(first: N, last: N, times: int) -> N:
    """Return `first`, doubled so many times, and at most `last`; the unit is the caller's."""
    return min(last, first * (1 << min(times, DOUBLED_MAX)))


def jittered(wait: float, chance: float) -> float:
    """Return from half of a wait to all of it; `chance` is a random number from 0 to 1."""
    return wait * (0.5 + chance / 2)


class BackOff:
    """The waits of one thing that is tried again: `failed` returns the next, `succeeded` begins anew."""

    __slots__ = ("_failures", "_first", "_last")

    def __init__(self, first: float, last: float) -> None:
        self._first, self._last = first, last
        self._failures = 0

    @property
    def next(self) -> float:
        """How long the next wait is."""
        return doubled(self._first, self._last, self._failures)

    def failed(self) -> float:
        """Note a failure; return how long to wait."""
        wait = self.next
        self._failures += 1
        return wait

    def succeeded(self) -> None:
        """Record that it went well: the next wait is the first."""
        self._failures = 0
