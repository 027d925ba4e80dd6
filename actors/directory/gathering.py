"""Gathering answers: requests that others have to answer first. Part of the Directory, in the broker process.

Owns the tickets by which answers are told apart, and what waits for them. It knows neither topics nor the catalogue;
pure but for its timer.

Invariants
- a request that waits is answered once: with what its `finish` makes of the answers, or with a coded error
- nothing waits longer than `ANSWER_WITHIN_S`, and nothing for a process that is known to be gone
- whatever `finish` raises costs the one request
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ister.actors.messages import Answer, Refused
from ister.actors.runtime import Address
from ister.errors import IsterError, RemoteError, RemoteProtocolError
from ister.wire import RESULT_BYTES_MAX, decode_result, encode_result

log = logging.getLogger("ister.directory")

ANSWER_WITHIN_S: Final = 5.0  # a worker that is being restarted is back sooner, one that hangs is not
OPTIONAL_WITHIN_S: Final = 1.5  # what only the store has to say is waited for so long

Answers = Mapping[int, dict[str, Any]]  # by ticket, those asked first before those asked later
# What an answer is made of; None where another gathering is to answer. Raises IsterError for a refusal.
Finish = Callable[[Answers], dict[str, Any] | None]


def the_answer(answers: Answers) -> dict[str, Any]:
    """Return the one answer of a question that one was asked."""
    (answer,) = answers.values()
    return answer


@dataclass(slots=True, eq=False)
class _Gathering:
    """A request that waits for the answers of others."""

    reply: Address
    ticket: int
    finish: Finish
    waiting: dict[int, str]  # ticket -> the node that is to answer
    partial: bool  # better what there is than no answer
    takes_no: bool  # a refusal is as good as no answer
    optional: frozenset[int]  # tickets that are waited for only so long
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)


class Gatherings:
    """What waits for answers; `tell(address, answer)` reaches who asked."""

    def __init__(
        self,
        *,
        call_later: Callable[[float, Callable[[], None]], object],
        tell: Callable[[Address, Answer | Refused], None],
    ) -> None:
        self._call_later = call_later
        self._tell = tell
        self._tickets = 0
        self._waiting: dict[int, _Gathering] = {}  # by each ticket it waits for

    def ticket(self) -> int:
        """Return the ticket of a question that is about to be asked."""
        self._tickets += 1
        return self._tickets

    def tickets(self) -> list[int]:
        """Return the tickets whose answers are waited for."""
        return list(self._waiting)

    def gather(
        self,
        reply: Address,
        ticket: int,
        nodes: Mapping[int, str],
        finish: Finish,
        *,
        partial: bool = False,
        takes_no: bool = False,
        optional: frozenset[int] = frozenset(),
    ) -> None:
        """Answer `ticket` of `reply` with `finish(answers)` once the nodes of all tickets have answered.

        `partial`: after a while, with the answers there are. `takes_no`: a refusal is as good as no answer.
        `optional` tickets are waited for less long.
        """
        gathering = _Gathering(reply, ticket, finish, dict(nodes), partial, takes_no, optional)
        for each in gathering.waiting:
            self._waiting[each] = gathering
        if not gathering.waiting:
            self._finish(gathering)
            return
        self._call_later(ANSWER_WITHIN_S, lambda: self._give_up(gathering))
        if optional:
            self._call_later(OPTIONAL_WITHIN_S, lambda: self._give_up_optional(gathering))

    # ---- what comes back ----------------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        """One of those asked has answered."""
        gathering = self._waiting.pop(answer.ticket, None)
        if gathering is None:
            return
        del gathering.waiting[answer.ticket]
        try:
            gathering.answers[answer.ticket] = decode_result(answer.body)
        except RemoteProtocolError as error:
            self._forget(gathering)
            self._refuse(gathering, RemoteError("limit-exceeded", error.text))
            return
        if not gathering.waiting:
            self._finish(gathering)

    def refused(self, refused: Refused) -> None:
        """One of those asked says no: so does the answer, unless that is as good as none."""
        gathering = self._waiting.get(refused.ticket)
        if gathering is None:
            return
        if gathering.takes_no:
            self._do_without(refused.ticket, gathering)
        else:
            self._forget(gathering)
            self._tell(gathering.reply, Refused(gathering.ticket, refused.code, refused.text))

    def node_gone(self, node: str) -> None:
        """Nobody there will answer any more: not what is asked now, and who is there next knows of nothing."""
        for ticket, gathering in list(self._waiting.items()):
            if gathering.waiting.get(ticket) != node:
                continue
            if gathering.partial or ticket in gathering.optional:
                self._do_without(ticket, gathering)
            else:
                self._give_up(gathering)

    # ---- how it ends --------------------------------------------------------------------------------------------

    def _do_without(self, ticket: int, gathering: _Gathering) -> None:
        del self._waiting[ticket]
        del gathering.waiting[ticket]
        if not gathering.waiting:
            self._finish(gathering)

    def _give_up(self, gathering: _Gathering) -> None:
        if not gathering.waiting:
            return
        self._forget(gathering)
        if gathering.partial:
            self._finish(gathering)
        else:
            text = "a worker did not answer in time; it may be restarting: try again"
            self._refuse(gathering, RemoteError("unavailable", text))

    def _give_up_optional(self, gathering: _Gathering) -> None:
        for ticket in gathering.optional & gathering.waiting.keys():
            self._do_without(ticket, gathering)

    def _forget(self, gathering: _Gathering) -> None:
        for ticket in gathering.waiting:
            self._waiting.pop(ticket, None)
        gathering.waiting.clear()

    def _finish(self, gathering: _Gathering) -> None:
        """Answer with what the others said; no answer may end the Directory, for without it there is no broker."""
        try:
            found = gathering.finish(dict(sorted(gathering.answers.items())))
            body = b"" if found is None else encode_result(found)
        except IsterError as error:
            self._refuse(gathering, error)
            return
        except Exception:
            log.exception("an answer could not be encoded")
            text = "the broker failed to serve this request; see its log"
            self._refuse(gathering, RemoteError("internal", text))
            return
        if len(body) > RESULT_BYTES_MAX:
            text = f"the answer has {len(body)} bytes, over the limit of {RESULT_BYTES_MAX}"
            self._refuse(gathering, RemoteError("limit-exceeded", text))
        elif found is not None:
            self._tell(gathering.reply, Answer(gathering.ticket, body))

    def _refuse(self, gathering: _Gathering, error: IsterError) -> None:
        self._tell(gathering.reply, Refused(gathering.ticket, error.code, error.text))
