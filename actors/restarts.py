"""When a process that died is started again, and when the broker gives up. Pure: times are handed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ister.backoff import BackOff


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a process that died is started again; all times in seconds."""

    delay_first_s: float = 0.1  # a chance crash delays clients little
    delay_max_s: float = 5.0  # a repeated crash costs the machine little
    steady_s: float = 30.0  # after running this long, the next death counts as the first
    restarts_max: int = 5  # this many restarts ...
    restarts_window_s: float = 60.0  # ... within this time; the next death makes the broker give up
    stop_grace_s: float = 5.0  # from SIGTERM to SIGKILL


class RestartHistory:
    """The deaths of one node, and what follows from the next one. Pure."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._deaths: deque[float] = deque(maxlen=policy.restarts_max + 1)  # one more than allowed
        self._delay = BackOff(policy.delay_first_s, policy.delay_max_s)

    def died(self, now: float, lived_s: float) -> float | None:
        """Note a death; return the seconds to wait before the next start, or None to give up."""
        policy = self._policy
        if lived_s >= policy.steady_s:
            self._delay.succeeded()
        self._deaths.append(now)
        if len(self._deaths) > policy.restarts_max and now - self._deaths[0] <= policy.restarts_window_s:
            return None
        return self._delay.failed()
