"""Tests of the questions that a session has to answer: each is answered once, by its actor or with an error."""

from __future__ import annotations

import pytest

from ister.errors import RemoteError
from ister.transport.questions import GIVEN_UP_MAX, OPEN_MAX, Questions
from ister.wire import Type

HANDLE, OTHER = object(), object()


def test_what_was_asked_about_a_handle_is_left_until_it_is_answered() -> None:
    """When a handle ends, its unanswered questions are returned, and none of other handles."""
    questions = Questions()
    questions.ask(1, HANDLE, Type.ACK, 0.0)
    questions.ask(2, HANDLE, Type.CLOSE, 0.0)
    questions.ask(3, OTHER, Type.ACK, 0.0)
    assert [question.ref for question in questions.left(HANDLE)] == [1, 2]
    assert [question.ref for question in questions.left(HANDLE, but=(Type.CLOSE,))] == [1]
    assert questions.answered(1)
    assert [question.ref for question in questions.left(HANDLE)] == [2]
    assert questions.answered(2)
    assert not questions.left(HANDLE)
    assert len(questions) == 1


def test_an_answer_that_comes_after_an_error_was_given_in_its_place_is_dropped_once() -> None:
    """A question gets one answer; its REF may be used again after that."""
    questions = Questions()
    questions.ask(1, HANDLE, Type.ACK, 0.0)
    questions.give_up(*questions.left(HANDLE))
    assert not questions.answered(1)
    assert questions.answered(1)


def test_an_answer_to_what_was_not_asked_here_is_sent() -> None:
    """Requests are answered by tickets of their own."""
    assert Questions().answered(7)


def test_a_number_that_is_used_again_too_early_is_answered_as_often() -> None:
    """A client should not reuse it; but it gets as many answers as it asked questions."""
    questions = Questions()
    questions.ask(1, HANDLE, Type.ACK, 0.0)
    questions.ask(1, HANDLE, Type.ACK, 1.0)
    assert questions.answered(1)
    assert [question.times for question in questions.left(HANDLE)] == [1]
    assert questions.answered(1)
    assert not questions.left(HANDLE)


def test_what_is_open_for_too_long_is_found_oldest_first() -> None:
    """Only overdue questions are looked at, and one more."""
    questions = Questions()
    for ref in range(5):
        questions.ask(ref, HANDLE, Type.ACK, float(ref))
    assert [question.ref for question in questions.overdue(3.0)] == [0, 1, 2]


def test_no_more_is_remembered_than_the_bounds_say() -> None:
    """The memory for a client that asks and never reads is bounded."""
    questions = Questions()
    for ref in range(OPEN_MAX):
        questions.ask(ref, HANDLE, Type.ACK, 0.0)
    with pytest.raises(RemoteError) as refused:
        questions.ask(OPEN_MAX, HANDLE, Type.ACK, 0.0)
    assert refused.value.code == "busy"
    for question in questions.left(HANDLE):
        questions.give_up(question)
    for ref in range(OPEN_MAX, OPEN_MAX + 10):
        questions.ask(ref, HANDLE, Type.ACK, 0.0)
        questions.give_up(*questions.left(HANDLE))
    assert len(questions._given_up) == GIVEN_UP_MAX
    questions.forget()
    assert not len(questions)
    assert not questions._given_up
