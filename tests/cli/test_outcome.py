"""Tests of how commands end: exit codes and advice."""

from __future__ import annotations

import json

import pytest

from ister.cli import outcome
from ister.errors import (
    CODES,
    ConnectionLostError,
    IsterError,
    LockedError,
    RemoteError,
    SettingsError,
    StorageError,
    TimeoutExpiredError,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RemoteError("unknown-topic", "there is no topic 'x'"), 1),
        (RemoteError("topic-deleted", "gone"), 1),
        (RemoteError("busy", "a queue is full"), 75),
        (UsageError("wrong"), 2),
        (ConnectionLostError("nobody"), 69),
        (TimeoutExpiredError("too long"), 75),
        (UsageError("taken", code="address-in-use"), 71),
        (StorageError("read-only"), 73),
        (LockedError("held"), 75),
        (SettingsError("unknown"), 78),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error: IsterError, code: int) -> None:
    """A script can tell from the exit code whether to try again, to correct its call, or to give up."""
    assert outcome.exit_code_of(error) == code


def test_an_error_may_bring_its_own_exit_code() -> None:
    """A broker that gave up exits with the code that its failed process had."""
    error = IsterError("it gave up")
    error.exit_code = 78  # type: ignore[attr-defined]
    assert outcome.exit_code_of(error) == 78


def test_every_error_of_the_broker_is_followed_by_what_to_do() -> None:
    """Every code comes with a next step."""
    for code, action in CODES.items():
        assert len(outcome.hint_of(RemoteError(code, "text", action))) > 15


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """The text, the code, the advice, and nothing on stdout."""
    outcome.print_error(RemoteError("unknown-topic", "there is no topic 'x'"), as_json=False)
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first == "ister: there is no topic 'x' (unknown-topic)"
    assert second.startswith("  fix: ")
    assert printed.out == ""


def test_with_json_an_error_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that asked for JSON gets the error as JSON too, on stderr."""
    outcome.print_error(RemoteError("busy", "a queue is full"), as_json=True)
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["action"], error["text"]) == ("busy", "retry", "a queue is full")
