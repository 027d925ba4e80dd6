"""Tests of which exceptions mean that a program failed to process its messages."""

from __future__ import annotations

import asyncio

import pytest

from ister.blame import REASON_MAX, reason_of
from ister.errors import ClosedError, RemoteError


def test_an_exception_of_the_program_is_a_failure() -> None:
    """Its type and text become the reason, cut to fit into a header."""
    assert reason_of(ValueError("cannot read this")) == "ValueError: cannot read this"
    assert len(reason_of(KeyError("x" * 1000))) == REASON_MAX


@pytest.mark.parametrize(
    "error",
    [
        None,
        KeyboardInterrupt(),
        SystemExit(143),
        GeneratorExit(),
        asyncio.CancelledError(),
        ClosedError("the consumer is closed"),
        RemoteError("log-damaged", "offset 5 is damaged"),
        BrokenPipeError(),
    ],
)
def test_who_is_told_to_end_has_not_failed(error: BaseException | None) -> None:
    """An exit request, an error of the broker or a closed output pipe is no failure of a message."""
    assert reason_of(error) == ""
