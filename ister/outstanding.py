"""Requests without an answer, across lost connections: to be sent, sent, or to be sent again.

Keeps the books; what is sent and how answers are read is in `clientsession.py`. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ister.errors import IsterError


@dataclass(slots=True, eq=False)
class Request:
    """A REQUEST and its outcome; kept over reconnects until it is answered."""

    operation: str
    arguments: dict[str, Any]
    result: Any = None
    error: IsterError | None = None
    done: bool = False
    resent: bool = False  # sent more than once, so that it may have been carried out twice
    trouble: IsterError | None = None  # why it is being tried again
    failures: int = 0
    due: float = field(default=0.0)


class Outstanding:
    """The requests of one session that are not answered."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []  # not sent, or to be sent again
        self._sent: dict[int, Request] = {}  # by REF

    def __bool__(self) -> bool:
        """Whether any are to be sent, now or later."""
        return bool(self._waiting)

    def add(self, request: Request) -> None:
        """Add a request that is to be sent."""
        self._waiting.append(request)

    def due(self, now: float) -> list[Request]:
        """Return the requests that are to be sent now."""
        return [request for request in self._waiting if request.due <= now]

    def next_due(self) -> float:
        """Return when the next one is to be sent, in the clock's seconds; there is one."""
        return min(request.due for request in self._waiting)

    def sent(self, ref: int, request: Request) -> None:
        """Record that a request, which was to be sent, is sent with this REF."""
        self._sent[ref] = request
        self._waiting.remove(
            request
        )  # afterwards: an exception in between has it sent twice, and loses nothing

    def answered(self, ref: int) -> Request | None:
        """Return the request that an answer is for, which is not outstanding any more; None if it was withdrawn."""
        return self._sent.pop(ref, None)

    def again(self, request: Request, error: IsterError, due: float) -> None:
        """Have a request that was answered sent again at that time, because of that error."""
        request.trouble = error
        request.due = due
        request.failures += 1
        self._waiting.append(request)

    def withdraw(self, request: Request) -> list[int]:
        """Forget a request, and return the REFs it was sent with."""
        if request in self._waiting:
            self._waiting.remove(request)
        refs = [ref for ref, sent in self._sent.items() if sent is request]
        for ref in refs:
            del self._sent[ref]
        return refs

    def on_lost(self, reason: IsterError) -> None:
        """The connection is lost: every request that was sent is to be sent again, and may be carried out twice."""
        for request in self._sent.values():
            request.resent = True
            request.trouble = reason
            self._waiting.append(request)
        self._sent.clear()

    def fail(self, reason: IsterError) -> None:
        """End every request with this error."""
        for request in [*self._sent.values(), *self._waiting]:
            request.error = reason
            request.done = True
        self._sent.clear()
        self._waiting.clear()
