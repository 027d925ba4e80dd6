"""The open requests of a session, so that every frame with a REF is answered exactly once; pure.

The actor that knows the answer sends it. A request that no actor answers, because its handle ended or the actor is
gone, is answered here with an error. A later answer is dropped.

Invariants
- a request is open from `ask` until `answered` or `give_up`
- an answer after its request was given up is dropped, once
- at most `OPEN_MAX` requests are open; more are refused
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ister.errors import RemoteError

# Some 200 bytes each. Acknowledgments are answered in the turn in which they come, as long as the disk keeps up.
OPEN_MAX: Final = 10_000
GIVEN_UP_MAX: Final = 10_000  # refs; an answer that is later than this many others is sent


@dataclass(slots=True)
class Question:
    """A request with a REF about a handle; `times` counts how often the client used that REF again meanwhile."""

    ref: int
    handle: object
    kind: int  # the frame's type
    asked_s: float
    times: int = 1


class Questions:
    """The open requests of one session, the oldest first."""

    __slots__ = ("_given_up", "_of_handle", "_open")

    def __init__(self) -> None:
        self._open: OrderedDict[int, Question] = OrderedDict()
        self._of_handle: dict[object, dict[int, Question]] = {}
        self._given_up: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, ref: int, handle: object, kind: int, now_s: float) -> None:
        """Note a request. Raises `RemoteError` busy if too many are open."""
        known = self._open.get(ref)
        if known is not None:
            known.times += 1
            return
        if len(self._open) >= OPEN_MAX:
            raise RemoteError(
                "busy", f"{OPEN_MAX} questions of this session wait for an answer; wait for some of them"
            )
        question = self._open[ref] = Question(ref, handle, kind, now_s)
        self._of_handle.setdefault(handle, {})[ref] = question

    def answered(self, ref: int) -> bool:
        """Note that a request is about to be answered; return False if it was answered before."""
        question = self._open.get(ref)
        if question is None:
            return self._given_up.pop(ref, self) is self
        question.times -= 1
        if not question.times:
            self._close(question)
        return True

    def left(self, handle: object, *, but: Sequence[int] = ()) -> list[Question]:
        """Return the open requests about a handle, except frames of the types `but`."""
        return [question for question in self._of_handle.get(handle, {}).values() if question.kind not in but]

    def overdue(self, before_s: float) -> list[Question]:
        """Return the open requests from before a time."""
        found = []
        for question in self._open.values():
            if question.asked_s >= before_s:
                break
            found.append(question)
        return found

    def give_up(self, question: Question) -> None:
        """Note that a request is answered with an error in place of the actor that should have."""
        self._close(question)
        self._given_up[question.ref] = None
        if len(self._given_up) > GIVEN_UP_MAX:
            self._given_up.popitem(last=False)

    def forget(self) -> None:
        """Drop all requests: the connection they came over is gone, or the session has ended."""
        self._open.clear()
        self._of_handle.clear()
        self._given_up.clear()

    def _close(self, question: Question) -> None:
        del self._open[question.ref]
        of_handle = self._of_handle[question.handle]
        del of_handle[question.ref]
        if not of_handle:
            del self._of_handle[question.handle]
