"""Tests of gathered answers: a request that depends on others' answers is answered once, whatever happens to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ister.actors.directory.gathering import ANSWER_WITHIN_S, OPTIONAL_WITHIN_S, Answers, Gatherings
from ister.actors.messages import Answer, Refused
from ister.actors.runtime import Address
from ister.errors import RemoteError
from ister.wire import RESULT_BYTES_MAX, decode_result, encode_result

ASKER = Address("worker-0", "frontend")
ASKED = 77  # the ticket of the request that waits
ALL = {"partial": True, "takes_no": True}


class Table:
    """Gatherings with a clock, and the answers that were sent."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.told: list[Answer | Refused] = []
        self.finish: Callable[[Answers], dict[str, Any] | None] = self.said
        self.gatherings = Gatherings(call_later=self.call_later, tell=self.tell)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now_s + delay_s, call))

    def tell(self, reply: Address, answer: Answer | Refused) -> None:
        assert (reply, answer.ticket) == (ASKER, ASKED)
        self.told.append(answer)

    def ask(self, **options: Any) -> tuple[int, int]:
        """Ask two processes, a and b, and return the tickets."""
        tickets = self.gatherings.ticket(), self.gatherings.ticket()
        if options.pop("optional", False):
            options["optional"] = frozenset((tickets[1],))
        self.gatherings.gather(ASKER, ASKED, dict(zip(tickets, "ab", strict=True)), self.finish, **options)
        return tickets

    def said(self, answers: Answers) -> dict[str, Any] | None:
        """Answer with the answers, in the order of the questions."""
        return {"said": [each["said"] for each in answers.values()]}

    def answer(self, ticket: int, said: object) -> None:
        """Let one of the processes answer."""
        self.gatherings.answered(Answer(ticket, encode_result({"said": said})))

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        due, self.timers = (
            [each for each in self.timers if each[0] <= self.now_s],
            [each for each in self.timers if each[0] > self.now_s],
        )
        for _, call in sorted(due, key=lambda each: each[0]):
            call()

    def outcome(self) -> Any:
        """Return the answer to the request: the answers, or a code; None if there is none yet."""
        assert len(self.told) <= 1
        if not self.told:
            return None
        told = self.told[0]
        return told.code if isinstance(told, Refused) else decode_result(told.body)["said"]


def happens(table: Table, tickets: tuple[int, int], what: str) -> None:
    """Let something happen to the second process."""
    if what == "answer":
        table.answer(tickets[1], 2)
    elif what == "refusal":
        table.gatherings.refused(Refused(tickets[1], "store-failed", "no"))
    elif what == "gone":
        table.gatherings.node_gone("b")
    elif what == "late":
        table.passes(OPTIONAL_WITHIN_S)
    else:
        table.passes(ANSWER_WITHIN_S)


@pytest.mark.parametrize(
    ("options", "what", "expected"),
    [
        ({}, "answer", [1, 2]),
        ({}, "refusal", "store-failed"),
        ({}, "gone", "unavailable"),
        ({}, "late", None),
        ({}, "silence", "unavailable"),
        ({"partial": True}, "answer", [1, 2]),
        ({"partial": True}, "refusal", "store-failed"),
        ({"partial": True}, "gone", [1]),
        ({"partial": True}, "late", None),
        ({"partial": True}, "silence", [1]),
        (ALL, "answer", [1, 2]),
        (ALL, "refusal", [1]),
        (ALL, "gone", [1]),
        (ALL, "late", None),
        (ALL, "silence", [1]),
        ({"optional": True}, "answer", [1, 2]),
        ({"optional": True}, "refusal", "store-failed"),
        ({"optional": True}, "gone", [1]),
        ({"optional": True}, "late", [1]),
        ({"optional": True}, "silence", [1]),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_a_request_is_answered_with(
    first: bool, options: dict[str, Any], what: str, expected: object
) -> None:
    """One of two has answered; what happens to the other decides, and only the first thing that happens counts."""
    table = Table()
    tickets = table.ask(**options)
    if first:
        table.answer(tickets[0], 1)
    happens(table, tickets, what)
    if not first and what != "silence":
        table.answer(tickets[0], 1)
    if first or what != "silence":
        assert table.outcome() == expected
    for ticket in tickets:  # later events change nothing
        table.answer(ticket, 9)
        table.gatherings.refused(Refused(ticket, "internal", "late"))
    table.gatherings.node_gone("a")
    table.passes(2 * ANSWER_WITHIN_S)
    assert len(table.told) == 1
    assert table.gatherings.tickets() == []


def test_answers_come_in_the_order_of_the_questions() -> None:
    """Whoever answers first."""
    table = Table()
    first, second = table.ask()
    table.answer(second, "b")
    table.answer(first, "a")
    assert table.outcome() == ["a", "b"]


def test_a_question_to_nobody_is_answered_at_once() -> None:
    """If no process is up, there is nothing to wait for."""
    table = Table()
    table.gatherings.gather(ASKER, ASKED, {}, table.finish, partial=True)
    assert (table.outcome(), table.timers) == ([], [])


@pytest.mark.parametrize(
    ("makes", "code"),
    [
        (lambda _: (_ for _ in ()).throw(RemoteError("unknown-topic", "gone meanwhile")), "unknown-topic"),
        (lambda answers: answers[-1], "internal"),
        (lambda _: {"said": bytes(RESULT_BYTES_MAX)}, "limit-exceeded"),
    ],
)
def test_an_answer_that_cannot_be_made_is_a_refusal(makes: Callable[[Answers], Any], code: str) -> None:
    """Only the request fails, not the Directory."""
    table = Table()
    table.finish = makes
    for ticket in table.ask():
        table.answer(ticket, 0)
    assert table.outcome() == code


def test_an_answer_that_is_none_leaves_the_rest_to_another() -> None:
    """The first answers decide what is asked next, and that gives the answer."""
    table = Table()
    table.finish = lambda _: None
    for ticket in table.ask():
        table.answer(ticket, 0)
    assert (table.outcome(), table.gatherings.tickets()) == (None, [])


def test_an_answer_that_nobody_can_read_is_a_refusal() -> None:
    """A process may answer with more than an answer frame can hold."""
    table = Table()
    ticket, other = table.ask()
    table.gatherings.answered(Answer(ticket, b"\xff"))
    table.answer(other, 1)
    assert table.outcome() == "limit-exceeded"
