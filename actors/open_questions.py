"""What a Frontend has asked the Directory and was not answered yet: opens, requests, and attachments. Pure.

- A question is answered once, or is overdue `ANSWER_WITHIN_S` after it was asked.
- Questions are bounded, of one session and altogether.

What an answer leads to is decided by the Frontend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ister.errors import RemoteError
from ister.transport.session import Handle, Session
from ister.wire import Header

if TYPE_CHECKING:
    from ister.actors.messages import Attach, Deposit

# seconds; longer than the Directory waits before it can ask others, and then for them
ANSWER_WITHIN_S: Final = 12.0
# seconds; where something runs is asked again after that, then after twice as long: mail can be lost, both ways
AGAIN_S: Final = 1.0
AGAIN_MAX: Final = 100  # asked again at a time: a Directory that is merely slow must not get twice the work
PENDING_MAX: Final = 10_000  # a few hundred bytes each; the Directory answers thousands per second
REQUESTS_MAX: Final = 100  # of one session, so that it cannot keep the Directory from others


@dataclass(slots=True, frozen=True)
class Opening:
    """A handle that is to be opened where the Directory says."""

    handle: Handle
    generation: int
    header: Header


@dataclass(slots=True, frozen=True)
class Requesting:
    """An administrative request of a session."""

    session: Session
    ref: int


@dataclass(slots=True, frozen=True)
class Attaching:
    """A message to a topic that does not run here: the Directory is asked whether the topic still exists."""

    message: Attach | Deposit


Question = Opening | Requesting | Attaching


class OpenQuestions:
    """The questions without an answer, by ticket. Times are seconds of the monotonic clock."""

    __slots__ = ("_again", "_due_s", "_open", "_requests", "_tickets")

    def __init__(self) -> None:
        self._tickets = 0
        self._open: dict[int, Question] = {}  # oldest first
        self._due_s: dict[int, float] = {}  # of the same tickets
        # of those that may be asked twice: when that is due, and how long that was after the last time
        self._again: dict[int, tuple[float, float]] = {}
        self._requests: dict[Session, int] = {}  # how many requests of each session are open

    def __len__(self) -> int:
        return len(self._open)

    def check_session(self, session: Session) -> None:
        """Raise RemoteError `busy` if a session has as many open requests as it may."""
        if self._requests.get(session, 0) >= REQUESTS_MAX:
            raise RemoteError(
                "busy",
                f"{REQUESTS_MAX} requests of this session wait for an answer; try again",
            )

    def ask(self, question: Question, now_s: float) -> int:
        """Add a question, and return its ticket. Raises RemoteError `busy` if there are too many."""
        if len(self._open) >= PENDING_MAX:
            raise RemoteError("busy", f"{PENDING_MAX} opens and requests wait for an answer here; try again")
        self._tickets += 1
        ticket = self._tickets
        self._open[ticket] = question
        self._due_s[ticket] = now_s + ANSWER_WITHIN_S
        if isinstance(question, Requesting):
            self._requests[question.session] = self._requests.get(question.session, 0) + 1
        else:
            self._again[ticket] = now_s + AGAIN_S, AGAIN_S
        return ticket

    def answered(self, ticket: int) -> Question | None:
        """Remove the question that has an answer, or is given up; None if it is not open."""
        self._due_s.pop(ticket, None)
        self._again.pop(ticket, None)
        question = self._open.pop(ticket, None)
        if isinstance(question, Requesting):
            self._requests[question.session] -= 1
            if not self._requests[question.session]:
                del self._requests[question.session]
        return question

    def overdue(self, now_s: float) -> list[int]:
        """Return the tickets of questions that were not answered in time."""
        return [ticket for ticket, due_s in self._due_s.items() if due_s <= now_s]

    def unheard(self, now_s: float) -> list[tuple[int, Question, float]]:
        """Return what is to be asked again now: ticket, question, and when it was asked first.

        Only questions that change nothing, or nothing twice: where something runs. A request is not among them.
        """
        found: list[tuple[int, Question, float]] = []
        for ticket, (due_s, wait_s) in list(self._again.items()):
            if len(found) == AGAIN_MAX:
                break
            if due_s <= now_s:
                self._again[ticket] = now_s + 2 * wait_s, 2 * wait_s
                found.append((ticket, self._open[ticket], self._due_s[ticket] - ANSWER_WITHIN_S))
        return found
