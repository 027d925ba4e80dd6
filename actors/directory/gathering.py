"""Gathering answers: requests that need answers of other processes first. Part of the Directory, in the broker process.

It owns the tickets that tell answers apart, and the requests that wait for them. It knows neither topics nor the
catalogue, and is pure except for its timer.

Invariants
- a request that waits is answered once: with what its `finish` makes of the answers, or with a coded error
- no request waits longer than `ANSWER_WITHIN_S`, or for a process that is known to be down
- an exception in `finish` fails that one request only
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

# seconds; a worker that is being restarted is back sooner, one that hangs is not
ANSWER_WITHIN_S: Final = 5.0
OPTIONAL_WITHIN_S: Final = 1.5  # seconds; for answers that only the store can give

Answers = Mapping[int, dict[str, Any]]  # by ticket, in the order in which they were asked for
# Makes the result of the answers; None if another gathering answers. Raises IsterError to refuse.
Finish = Callable[[Answers], dict[str, Any] | None]


def the_answer(answers: Answers) -> dict[str, Any]:
    """Return the answer where only one was asked for."""
    (answer,) = answers.values()
    return answer


@dataclass(slots=True, eq=False)
class _Gathering:
    """A request that waits for answers of others."""

    reply: Address
    ticket: int
    finish: Finish
    waiting: dict[int, str]  # ticket -> the node that is to answer
    partial: bool  # after the time limit, finish with the answers there are
    takes_no: bool  # a refusal counts as an answer
    optional: frozenset[int]  # tickets that are waited for only OPTIONAL_WITHIN_S
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)


class Gatherings:
    """The requests that wait for answers. `tell(address, answer)` sends the result to the client's worker."""

    def __init__(
        self,
        *,
        call_later: Callable[[float, Callable[[], None]], object],
        tell: Callable[[Address, Answer | Refused], None],
    ) -> None:
        self._call_later = call_later
        self._tell = tell
        self._tickets = 0
        self._waiting: dict[int, _Gathering] = {}  # each request, by each ticket it waits for

    def ticket(self) -> int:
        """Return a new ticket, for a question that is about to be asked."""
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

        `partial`: after the time limit, finish with the answers there are. `takes_no`: a refusal counts as an answer.
        `optional` tickets are waited for only `OPTIONAL_WITHIN_S`.
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
        """Note an answer."""
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
        """Note a refusal: the request is refused with it, unless refusals count as answers."""
        gathering = self._waiting.get(refused.ticket)
        if gathering is None:
            return
        if gathering.takes_no:
            self._do_without(refused.ticket, gathering)
        else:
            self._forget(gathering)
            self._tell(gathering.reply, Refused(gathering.ticket, refused.code, refused.text))

    def node_gone(self, node: str) -> None:
        """Refuse or finish the requests that wait for a process that is down: its successor knows nothing of them."""
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
        """Answer a request with the result of its answers; no exception may end the Directory."""
        try:
            found = gathering.finish(dict(sorted(gathering.answers.items())))
            body = b"" if found is None else encode_result(found)
        except IsterError as error:
            self._refuse(gathering, error)
            return
        except Exception:
            log.exception("the answer to a request could not be made")
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
