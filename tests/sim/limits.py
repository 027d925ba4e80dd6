"""What retention may have removed from a topic: its limits over time, and what the brokers' clocks showed. Pure.

A limit may be in force from when it was requested until another one was answered: in between, both may be. For a clock
that is set, the widest range that it showed counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

EPOCH_MS: Final = 1_700_000_000_000  # the unix ms at which the simulation's clock was at 0
SLACK_S: Final = 3.0  # seconds; for work that was in progress when a limit was removed
LIMITS: Final = ("message_ttl_ms", "retention_ms", "retention_bytes", "retention_acknowledged")
MESSAGE_BYTES: Final = 200  # per message, at most, of a record and of columns
SEGMENT_BYTES: Final = 1000  # per segment, at most, without its batches


class WallClock:
    """A machine's wall clock: by how much it was off, from when on."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = [(-1e9, 0)]  # (seconds, ms): from when on, by how much

    @property
    def off_ms(self) -> int:
        """By how many ms it is off now."""
        return self.steps[-1][1]

    def step(self, now_s: float, off_ms: int) -> None:
        """Set it."""
        self.steps.append((now_s, off_ms))

    def lowest_ms(self, since_s: float) -> int:
        """Return the earliest time that it showed from then on."""
        found = []
        for at, (begin_s, off_ms) in enumerate(self.steps):
            if at + 1 == len(self.steps) or self.steps[at + 1][0] >= since_s:
                found.append(wall_ms(max(begin_s, since_s), off_ms))
        return min(found)

    def highest_ms(self, since_s: float, until_s: float) -> int:
        """Return the latest time that it showed in between."""
        found = [-1]
        for at, (begin_s, off_ms) in enumerate(self.steps):
            end_s = self.steps[at + 1][0] if at + 1 < len(self.steps) else until_s
            if begin_s <= until_s and end_s >= since_s:
                found.append(wall_ms(min(end_s, until_s), off_ms))
        return max(found)


def wall_ms(now_s: float, off_ms: int = 0) -> int:
    """Return what a clock shows that is off by this much."""
    return EPOCH_MS + int(now_s * 1000) + off_ms


@dataclass(slots=True)
class Limit:
    """A value, and for how long it may have been in force."""

    value: int
    since_s: float
    until_s: float = float("inf")


@dataclass(slots=True)
class Limits:
    """All limits that a topic may have had."""

    of: dict[str, list[Limit]] = field(default_factory=dict)
    asked: int = 0  # changes that were not answered
    answered_s: float = -1e9
    now: dict[str, int] = field(default_factory=dict)  # as last answered

    def begin(self, settings: dict[str, int]) -> None:
        """The topic is created with these."""
        for name in LIMITS:
            if settings.get(name):
                self.now[name] = settings[name]
                self.of.setdefault(name, []).append(Limit(settings[name], -1e9))

    def ask(self, settings: dict[str, int], now_s: float) -> None:
        """These may be in force from now on."""
        self.asked += 1
        for name, value in settings.items():
            if name in LIMITS and value:
                self.of.setdefault(name, []).append(Limit(value, now_s))

    def answer(self, settings: dict[str, int], now_s: float, *, done: bool, everywhere: bool) -> None:
        """These were set, or perhaps not; `everywhere`: all actors apply them from now on."""
        self.asked -= 1
        if not done:
            return
        self.answered_s = now_s
        for name, value in settings.items():
            if name not in LIMITS:
                continue
            self.now[name] = value
            for limit in self.of.get(name, []) if everywhere and not self.asked else []:
                if limit.value != value and limit.until_s > now_s:
                    limit.until_s = min(limit.until_s, now_s + SLACK_S)

    def certain(self, name: str, now_s: float) -> int:
        """Return a limit that was certainly in force for a while, else 0."""
        return 0 if self.asked or now_s - self.answered_s < SLACK_S else self.now.get(name, 0)

    def __bool__(self) -> bool:
        return bool(self.of)

    def has(self, *names: str) -> bool:
        """Return whether one of these may ever have been in force."""
        return any(name in self.of for name in names)

    def too_old(self, name: str, sent_s: float, now_s: float, clocks: list[WallClock]) -> bool:
        """Return whether what was sent at a time may have been older than this limit while it was in force."""
        for limit in self.of.get(name, []):
            since_s, until_s = max(limit.since_s, sent_s), min(limit.until_s, now_s)
            if since_s > until_s:
                continue
            lowest = min(clock.lowest_ms(sent_s) for clock in clocks)
            if lowest + limit.value <= max(clock.highest_ms(since_s, until_s) for clock in clocks):
                return True
        return False

    def too_many(self, sent_s: float, bytes_behind: Callable[[float], int]) -> bool:
        """Return whether more bytes than a limit may have existed while it was in force, by `bytes_behind(until_s)`."""
        return any(
            sent_s <= limit.until_s and bytes_behind(limit.until_s) > limit.value
            for limit in self.of.get("retention_bytes", [])
        )

    def done_with(self, sent_s: float) -> bool:
        """Return whether acknowledged messages may have been dropped."""
        return any(sent_s <= limit.until_s for limit in self.of.get("retention_acknowledged", []))
