"""How often something that changes is written to a store that charges per call. Pure: no clock, no store.

The first change after a quiet period is written soon. While changes continue, the time between two writes doubles, up
to a bound. So what is stored is never older than the bound, and continuous changes cost one write per bound.

Invariants
- a change is written within the bound, whatever came before
- the time between two writes is never less than `first_s`, and while changes continue at least twice the time before,
  up to the bound
"""

from __future__ import annotations

from ister.backoff import doubled


class Cadence:
    """When to write next; times are seconds of any clock that does not run backwards."""

    __slots__ = ("_doublings", "_written_s", "bound_s", "first_s")

    def __init__(self, first_s: float, bound_s: float) -> None:
        self.bound_s = bound_s
        self.first_s = min(first_s, bound_s)
        self._doublings = 0  # of the time between two writes, while changes continue
        self._written_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Return how many seconds a change at `now_s` may wait to be written."""
        if self._written_s is None:
            return self.first_s
        since_s = now_s - self._written_s
        if since_s >= self.bound_s:
            self._doublings = 0
        interval_s = doubled(self.first_s, self.bound_s, self._doublings)
        return min(max(self.first_s, interval_s - since_s), self.bound_s)

    def written(self, now_s: float) -> None:
        """Record a write at `now_s`."""
        if self._written_s is not None:
            self._doublings += 1
        self._written_s = now_s
