"""Which exceptions say that a program failed at its messages."""

from __future__ import annotations

import asyncio

import pytest

from ister.blame import REASON_MAX, reason_of
from ister.errors import ClosedError, RemoteError


def test_an_exception_of_the_program_is_a_failure() -> None:
    """Its type and its text are the reason, as much of it as a header takes."""
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
    """Nor is the broker's trouble the messages' fault, nor a pipe that nobody reads any more."""
    assert reason_of(error) == ""
