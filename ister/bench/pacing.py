"""When each message of a given rate is due, and the loop that sends it then: a load without coordinated omission.

A generator that measures from the moment at which it really sent hides what a slow broker does: while one call to send
is held up, the messages that were due meanwhile are not sent, and their waiting is measured nowhere. Here a message's
time is the one at which it was due, whatever happened to those before it, and the schedule never moves.

Invariants
- message `n` is due at `began + n / rate`; a late message changes nothing for the next ones
- no message is sent before it is due
- the clock and the sleep are handed in; nothing else is touched

Timers wake late, on virtual machines by 50 to 100 us, which would be counted as the broker's delay. So the loop sleeps
until shortly before a message is due, and watches the clock for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

WATCH_NS: Final = 80_000  # before a message is due: the clock is watched, not slept through


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times at which messages are due: `rate` a second, from `began_ns` on."""

    began_ns: int
    rate: float

    def due(self, number: int) -> int:
        """Return when message `number` (from 0) is due, in ns."""
        return self.began_ns + int(number * 1e9 / self.rate)

    def ready(self, now_ns: int, sent: int, messages: int) -> int:
        """Return how many messages after the first `sent` are due by now, of `messages` in all."""
        passed = int((now_ns - self.began_ns) * self.rate / 1e9) + 2
        while (
            passed > 0 and self.due(passed - 1) > now_ns
        ):  # `due` rounds, so this one is at most two too many
            passed -= 1
        return max(0, min(passed, messages) - sent)


def send_on_time(
    schedule: Schedule,
    messages: int,
    send: Callable[[list[int]], None],
    *,
    now: Callable[[], int],
    sleep: Callable[[float], None],
    at_once: bool = False,
) -> list[int]:
    """Call `send` with the times at which messages are due, when they are; return how late each call was, in ns.

    With `at_once` a call gets all that are due by then; otherwise each message has a call of its own.
    """
    late: list[int] = []
    sent = 0
    while sent < messages:
        due = schedule.due(sent)
        wait = due - now()
        if wait > WATCH_NS:
            sleep((wait - WATCH_NS) / 1e9)
        while (at := now()) < due:
            pass
        count = schedule.ready(at, sent, messages) if at_once else 1
        late.append(at - due)
        send([schedule.due(sent + each) for each in range(count)])
        sent += count
    return late
