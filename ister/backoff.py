"""Waits that grow with each failure. Pure: the random number is a parameter.

A wait doubles with each failure in a row, up to a limit. Where many may fail together, it is shortened at random to
between half and all of its length, so that they do not all return at the same moment.
"""

from __future__ import annotations

from typing import Final, TypeVar

N = TypeVar("N", int, float)
DOUBLED_MAX: Final = 60  # doublings; every limit is reached before, and a float would overflow eventually


def doubled(first: N, last: N, times: int) -> N:
    """Return `first`, doubled `times` times, and at most `last`; the unit is the caller's."""
    return min(last, first * (1 << min(times, DOUBLED_MAX)))


def jittered(wait: float, chance: float) -> float:
    """Return a wait between half of `wait` and all of it; `chance` is a random number from 0 to 1."""
    return wait * (0.5 + chance / 2)


class BackOff:
    """The waits between attempts: `failed` returns the next, `succeeded` starts over."""

    __slots__ = ("_failures", "_first", "_last")

    def __init__(self, first: float, last: float) -> None:
        self._first, self._last = first, last
        self._failures = 0

    @property
    def next(self) -> float:
        """The length of the next wait."""
        return doubled(self._first, self._last, self._failures)

    def failed(self) -> float:
        """Note a failure; return how long to wait."""
        wait = self.next
        self._failures += 1
        return wait

    def succeeded(self) -> None:
        """Note a success: the next wait is the shortest again."""
        self._failures = 0
