"""How a run's minutes are shared by its rows. Pure: the clock is handed in.

Invariants
- every row has its share of what is left when it begins: what a short one leaves, later ones have
- a row has at least one round; another begins only if one as long as the last fits into the share
"""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """The time of a run with `rows` rows; None: as long as it takes. `clock` tells seconds."""

    def __init__(self, minutes: float | None, rows: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = None if minutes is None else clock() + minutes * 60
        self._rows = rows
        self._until = 0.0

    def begin_row(self) -> None:
        """Give the next row its share."""
        if self._end is not None:
            now = self._clock()
            self._until = now + max(0.0, self._end - now) / max(1, self._rows)
        self._rows -= 1

    def enough(self, took: float) -> bool:
        """Return whether a round that takes as long as the last, `took` seconds, would not fit any more."""
        return self._end is not None and self._clock() + took > self._until
