"""Tests of the states of a seek."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.actors.messages import Seek
from ister.actors.runtime import Address
from ister.actors.subscription.move import TABLE, Move, State, Step

COMMAND = Seek("5", Address("here", "asker"), 1)


def take(move: Move, step: Step) -> None:
    """Take a step."""
    if step == "ask":
        move.ask(COMMAND)
    elif step == "found":
        move.found(5)
    elif step == "yielded":
        move.yielded()
    else:
        assert move.end(moved=step == "moved") is COMMAND


def test_a_move_finds_its_place_then_waits_for_consumers_then_for_the_journal() -> None:
    """Afterwards it is idle again."""
    move = Move()
    states: list[State] = [move.state]
    steps: tuple[Step, ...] = ("ask", "found", "yielded", "moved")
    for step in steps:
        take(move, step)
        states.append(move.state)
    assert states == ["idle", "finding", "yielding", "moving", "idle"]


def test_every_state_can_be_left() -> None:
    """And the table names only states that exist."""
    assert {state for state, _ in TABLE} == {*get_args(State)} == {*TABLE.values()}
    assert {step for _, step in TABLE} == {*get_args(Step)}


@given(st.lists(st.sampled_from(get_args(Step)), max_size=12))
def test_only_the_steps_of_the_table_are_taken(steps: list[Step]) -> None:
    """Any other step is an error and changes nothing; command and target are present when a state needs them."""
    move = Move()
    for step in steps:
        before = (move.state, move.command, move.target)
        if (move.state, step) in TABLE:
            expected = TABLE[move.state, step]
            take(move, step)
            assert move.state == expected
        else:
            with pytest.raises(AssertionError, match=f"that is {move.state} cannot take the step '{step}'"):
                take(move, step)
            assert (move.state, move.command, move.target) == before
        assert (move.command is None) == (move.state == "idle")
        assert (move.target is None) == (move.state in ("idle", "finding"))
