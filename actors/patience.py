"""Requests that cannot be answered yet, but soon: they wait for a while, and are refused after that.

After its start a broker has workers that are not up yet, and a store that has not been listed yet. Requests then wait a
moment instead of being refused. Pure except for the timer it is given.

Invariants
- waiting requests are tried again in the order of arrival whenever something changed
- no request waits longer than `WAIT_S`, and no more than `WAITING_MAX` wait
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ister.errors import IsterError, RemoteError

WAIT_S: Final = 5.0  # seconds; a process that was killed is back sooner
WAITING_MAX: Final = 10_000  # some 500 bytes each

T = TypeVar("T")


class NotYetError(RemoteError):
    """What is needed for the answer is not available yet, and about to be."""

    def __init__(self, text: str) -> None:
        super().__init__("unavailable", text)


class Patience(Generic[T]):
    """Tries requests, and again where it was too early.

    `attempt(question)` carries out a request or raises; `refuse(question, error)` answers it with an error.
    """

    def __init__(
        self,
        attempt: Callable[[T], None],
        refuse: Callable[[T, IsterError], None],
        *,
        now_s: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._attempt = attempt
        self._refuse = refuse
        self._now_s = now_s
        self._call_later = call_later
        # (when it is refused, the request, the last error)
        self._waiting: deque[tuple[float, T, NotYetError]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, question: T) -> None:
        """Carry out a request now, or as soon as possible."""
        if self._try(question, self._now_s() + WAIT_S):
            self._call_later(WAIT_S, self._give_up)

    def changed(self) -> None:
        """Try again what waits: something has changed."""
        waiting, self._waiting = self._waiting, deque()
        for due_s, question, _ in waiting:
            self._try(question, due_s)

    def _try(self, question: T, due_s: float) -> bool:
        """Carry out a request or refuse it; return True if it has to wait."""
        try:
            self._attempt(question)
        except NotYetError as error:
            if len(self._waiting) >= WAITING_MAX:
                self._refuse(question, error)
                return False
            self._waiting.append((due_s, question, error))
            return True
        except IsterError as error:
            self._refuse(question, error)
        return False

    def _give_up(self) -> None:
        now_s = self._now_s()
        while self._waiting and self._waiting[0][0] <= now_s:
            _, question, error = self._waiting.popleft()
            text = f"{error.text} (waited {WAIT_S:g} s)"
            self._refuse(question, RemoteError(error.code, text))
