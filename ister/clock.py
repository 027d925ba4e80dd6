"""The clock: the only file in which Ister reads the machine's time.

Everything else is handed a `Clock`, so that a whole broker can run under virtual time.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time, handed to whatever needs one."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards, from an arbitrary start."""

    def time_ms(self) -> int:
        """Return the wall clock as milliseconds since 1970-01-01T00:00:00Z."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def time_ms() -> int:
        """Return the wall clock as milliseconds since 1970-01-01T00:00:00Z."""
        return time.time_ns() // 1_000_000


def processor_s() -> float:
    """Return how many seconds of processor time this process has used."""
    return time.process_time()
