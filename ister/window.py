"""How much a producer may have on its way without a receipt: what the broker grants, and no more than it is good for.

Every producer may use the usual window of the broker's limits. If it was granted a larger one (durability cloud, where
a receipt comes when the object store has the message), it uses as much of it as is answered within `COVERED_S`: more
would only wait longer, in the program's memory. Pure: no clock; times are seconds of one clock.

Invariants
- `bytes` is never more than what was granted, nor than what the program allowed
- `batches` is in proportion to `bytes`, and never less than the usual number
"""

from __future__ import annotations

from typing import Final

from ister.wire import Limits

COVERED_S: Final = 1.0  # so much work the window holds at most, beyond the usual one
SPAN_S: Final = 0.1  # how long receipts are counted to know their rate
SHRINK: Final = 0.5  # what is left of the window after a slow span, at least: a single one may say little


class Window:
    """The window of one producer; the program may have set a lower bound, `own_bytes`."""

    __slots__ = (
        "_answered",
        "_most",
        "_own",
        "_since",
        "_usual",
        "_usual_batches",
        "batches",
        "bytes",
        "pressed",
    )

    def __init__(self, own_bytes: int | None) -> None:
        self.bytes = 0
        self.batches = 1
        self.pressed = False  # something waits for room; set by the producer
        self._own = own_bytes
        self._usual = 0
        self._usual_batches = 1
        self._most = 0
        self._answered = 0
        self._since: float | None = None

    def grant(self, granted: int, limits: Limits) -> None:
        """Take what the broker grants with OPENED, under the limits of its WELCOME."""
        most = granted if self._own is None else min(granted, self._own)
        usual = min(most, limits.producer_window_bytes)
        if (most, usual, limits.batches_in_flight_max) == (self._most, self._usual, self._usual_batches):
            return
        self._most, self._usual, self._usual_batches = most, usual, limits.batches_in_flight_max
        self._use(usual)

    def answered(self, size: int, now: float) -> None:
        """Count the bytes of batches that were answered."""
        if self._most == self._usual:
            return
        self._answered += size
        if self._since is None:
            self._since, self._answered = now, 0
            return
        took_s = now - self._since
        if took_s < SPAN_S:
            return
        if self.pressed:
            good = self._answered / took_s * COVERED_S
            self._use(int(max(self._usual, min(self._most, max(good, SHRINK * self.bytes)))))
        self._since, self._answered, self.pressed = now, 0, False

    def _use(self, size: int) -> None:
        self.bytes = size
        usual = max(1, self._usual)
        self.batches = self._usual_batches * max(1, size // usual)
