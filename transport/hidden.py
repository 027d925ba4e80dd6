"""The CPU time that ZeroMQ's I/O thread uses without a visible result, such as for a message of millions of frames.

A message becomes visible when it is complete. Each of its frames costs ZeroMQ's thread a tenth of a microsecond to
gather, and the worker ten times that to discard; so the sender should be noticed while the message is gathered. The
traffic of the socket explains most of the thread's work; the rest is hidden work.

`HiddenWork` is pure; `IoThread` reads the thread's clock (Linux).
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Final

MUCH_S: Final = 0.015
# seconds of the I/O thread; more than a message costs it, with its frames and system calls
MESSAGE_S: Final = 10e-6
BYTE_S: Final = 2e-9
REST_S: Final = 0.002  # seconds; a tenth of what counts as much
NAMED_LOOKS: Final = 100  # a thread has its name shortly after it started
KEPT: Final = 0.9  # the part kept from check to check, so that small amounts never add up to much


class HiddenWork:
    """Adds up the CPU time that the traffic does not explain."""

    def __init__(self) -> None:
        self._cpu_s: float | None = None
        self._messages = self._bytes = 0
        self.hidden_s = 0.0

    def is_much(self, cpu_s: float | None, messages: int, bytes_: int) -> bool:
        """Return whether much CPU time is unexplained; `cpu_s` is the thread's clock, None if there is none."""
        before, self._cpu_s = self._cpu_s, cpu_s
        explained = (messages - self._messages) * MESSAGE_S + (bytes_ - self._bytes) * BYTE_S
        self._messages, self._bytes = messages, bytes_
        if before is None or cpu_s is None:
            return False
        self.hidden_s = max(0.0, self.hidden_s * KEPT + cpu_s - before - explained)
        return self.hidden_s >= MUCH_S


class IoThread:
    """The CPU time of ZeroMQ's I/O threads in this process; a worker has one."""

    def __init__(self) -> None:
        self._clocks: list[int] = []
        self._looks = 0
        self._seen_s = 0.0  # of the first one

    def _find(self) -> list[int]:
        found = []
        try:
            for task in Path("/proc/self/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
                    if (task / "comm").read_text().startswith("ZMQbg/IO"):
                        found.append((~int(task.name) << 3) | 6)  # clock_getcpuclockid(3), of a thread
        except OSError:  # no file descriptor is left for this
            return self._clocks
        return found

    @property
    def _seeks(self) -> bool:
        return not self._clocks and self._looks < NAMED_LOOKS

    def rests(self) -> bool:
        """Return whether it did next to nothing since the last call of `cpu_s`."""
        if self._seeks:
            return False
        try:
            return not self._clocks or time.clock_gettime(self._clocks[0]) - self._seen_s < REST_S
        except OSError:
            return False

    def cpu_s(self) -> float | None:
        """Return the CPU time in seconds; None if unknown, or if it is of other threads than before."""
        if sys.platform != "linux":
            return None
        self._looks += 1
        if (self._seeks or self._looks % 1000 == 0) and (found := self._find()) != self._clocks:
            self._clocks = found
            return None
        try:
            times = [time.clock_gettime(each) for each in self._clocks]
        except OSError:
            self._looks = 0
            return None
        self._seen_s = times[0] if times else 0.0
        return sum(times) if times else None
