"""Tests of open questions: bounded, answered once, and overdue in time."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ister.actors.open_questions import (
    AGAIN_MAX,
    AGAIN_S,
    ANSWER_WITHIN_S,
    PENDING_MAX,
    REQUESTS_MAX,
    Attaching,
    OpenQuestions,
    Requesting,
)
from ister.errors import RemoteError
from ister.transport.session import Session


def session(name: str) -> Session:
    """Return an object that stands for a session."""
    return cast(Session, name)


def attaching() -> Attaching:
    """Return a question that belongs to no session."""
    return Attaching(cast(Any, None))


def test_a_question_is_answered_once() -> None:
    """A second answer, and one with an unknown ticket, finds no question."""
    questions = OpenQuestions()
    question = Requesting(session("a"), 7)
    ticket = questions.ask(question, 0.0)
    assert questions.answered(ticket) is question
    assert questions.answered(ticket) is None
    assert questions.answered(ticket + 1) is None
    assert len(questions) == 0


def test_what_is_not_answered_is_overdue_and_what_is_answered_never() -> None:
    """A ticket is overdue exactly `ANSWER_WITHIN_S` after its question."""
    questions = OpenQuestions()
    first, second = questions.ask(attaching(), 1.0), questions.ask(attaching(), 2.0)
    assert questions.overdue(1.0 + ANSWER_WITHIN_S - 0.1) == []
    assert questions.overdue(1.0 + ANSWER_WITHIN_S) == [first]
    questions.answered(first)
    assert questions.overdue(100.0) == [second]


def test_where_something_runs_is_asked_again_and_a_request_is_not() -> None:
    """After a second, then after twice as long each time; not after the answer, and only few at a time."""
    questions = OpenQuestions()
    questions.ask(Requesting(session("a"), 7), 0.0)
    question = attaching()
    ticket = questions.ask(question, 0.0)
    asked = [now for now in range(2 * int(ANSWER_WITHIN_S)) if questions.unheard(now / 2)]
    assert asked == [2, 6, 14]
    again = questions.ask(question, 20.0)
    questions.answered(ticket)
    assert questions.unheard(20.0 + AGAIN_S) == [(again, question, 20.0)]
    questions.answered(again)
    for _ in range(AGAIN_MAX + 5):
        questions.ask(question, 30.0)
    assert [len(questions.unheard(31.0)) for _ in range(3)] == [AGAIN_MAX, 5, 0]


def test_a_session_may_ask_again_once_it_was_answered() -> None:
    """The limit counts a session's open requests, and each session has its own."""
    questions = OpenQuestions()
    tickets = [questions.ask(Requesting(session("a"), ref), 0.0) for ref in range(REQUESTS_MAX)]
    with pytest.raises(RemoteError, match="of this session"):
        questions.check_session(session("a"))
    questions.check_session(session("b"))
    questions.answered(tickets[0])
    questions.check_session(session("a"))


def test_no_more_questions_are_open_than_may_be() -> None:
    """Over the limit a question is refused, and changes nothing."""
    questions = OpenQuestions()
    for _ in range(PENDING_MAX):
        questions.ask(attaching(), 0.0)
    with pytest.raises(RemoteError) as refused:
        questions.ask(Requesting(session("a"), 1), 0.0)
    assert (refused.value.code, len(questions)) == ("busy", PENDING_MAX)
    questions.check_session(session("a"))
