"""Tests of requests that come too early: they wait in order, for a limited time, in limited numbers."""

from __future__ import annotations

import pytest

from ister.actors import patience
from ister.actors.patience import WAIT_S, NotYetError, Patience
from ister.errors import IsterError, RemoteError


class Early:
    """Something that is not there yet, and the outcome of requests to it."""

    def __init__(self) -> None:
        self.there = False
        self.now_s = 100.0
        self.timers: list[float] = []
        self.done: list[int] = []
        self.refused: list[tuple[int, str, str]] = []
        self.patience: Patience[int] = Patience(
            self.attempt, self.refuse, now_s=lambda: self.now_s, call_later=self.call_later
        )

    def attempt(self, question: int) -> None:
        if question < 0:
            raise RemoteError("unknown-topic", "never")
        if not self.there:
            raise NotYetError("it is being started; try again")
        self.done.append(question)

    def refuse(self, question: int, error: IsterError) -> None:
        self.refused.append((question, error.code, error.text))

    def call_later(self, delay_s: float, call: object) -> None:
        self.timers.append(self.now_s + delay_s)
        self.call = call

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        while self.timers and self.timers[0] <= self.now_s:
            self.timers.pop(0)
            self.call()  # type: ignore[operator]


def test_what_is_early_is_done_in_order_once_that_is_possible() -> None:
    """First come, first served."""
    early = Early()
    for question in range(3):
        early.patience.take(question)
    early.patience.changed()
    assert early.done == []
    early.there = True
    early.patience.changed()
    assert (early.done, early.refused, len(early.patience)) == ([0, 1, 2], [], 0)
    early.passes(2 * WAIT_S)
    assert early.refused == []


def test_what_is_wrong_is_refused_at_once() -> None:
    """Only an error that may pass is waited for."""
    early = Early()
    early.patience.take(-1)
    assert [code for _, code, _ in early.refused] == ["unknown-topic"]


def test_nobody_waits_for_ever_and_whoever_came_later_waits_as_long() -> None:
    """Each request has its own time limit, however often it is retried meanwhile."""
    early = Early()
    early.patience.take(1)
    early.passes(WAIT_S - 1)
    early.patience.take(2)
    early.patience.changed()
    early.passes(1)
    assert [(question, code) for question, code, _ in early.refused] == [(1, "unavailable")]
    early.passes(WAIT_S - 1)
    assert [question for question, _, _ in early.refused] == [1, 2]
    assert f"waited {WAIT_S:g} s" in early.refused[0][2]


def test_no_more_wait_than_the_bound_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the queue is full, a request is refused as if there were no waiting."""
    monkeypatch.setattr(patience, "WAITING_MAX", 2)
    early = Early()
    for question in range(3):
        early.patience.take(question)
    assert [question for question, _, _ in early.refused] == [2]
    assert len(early.patience) == 2
