"""Tests of the command line as a whole: help, version, what is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from ister.cli import ister as command_line

COMMANDS = ["serve", "topic", "subscription", "produce", "consume", "status", "demo", "bench"]


def test_help_lists_every_command_with_an_example_and_the_exit_codes() -> None:
    """A new user sees all commands."""
    result = CliRunner().invoke(command_line, ["--help"])
    assert result.exit_code == 0
    for expected in (*COMMANDS, "Examples:", "Exit codes:"):
        assert expected in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """Nobody has to read the source to use a command."""
    result = CliRunner().invoke(command_line, [command, "--help"])
    assert result.exit_code == 0
    assert f"ister {command}" in result.output
    assert "Examples:" in result.output


def test_help_imports_nothing_heavy() -> None:
    """Help is quick: tables, stores and the broker's own packages are not loaded for it."""
    program = (
        "import sys; from click.testing import CliRunner; from ister.cli import ister as c; "
        "assert CliRunner().invoke(c, ['--help']).exit_code == 0; "
        "print(*sorted({'rich', 'google', 'actors', 'storage', 'transport', 'msgspec'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_an_unknown_command_is_wrong_usage() -> None:
    """A misspelt command exits with 2, and the error says so."""
    result = CliRunner().invoke(command_line, ["prodcue"])
    assert result.exit_code == 2
    assert "No such command 'prodcue'" in result.output


@pytest.mark.parametrize("name", ["a b", "../x", "/x", "x/", "x//y", "x" * 201, "snow☃", "tab\tx", ""])
def test_a_bad_topic_name_is_refused_before_anything_is_sent(name: str) -> None:
    """An invalid name is an error at once, also when no broker runs."""
    result = CliRunner().invoke(command_line, ["topic", "create", name, "--endpoint", "tcp://127.0.0.1:9"])
    assert result.exit_code == 2
    assert "topic name" in result.output


@pytest.mark.parametrize("start", ["-1", "first", "1.5", "١"])
def test_a_bad_start_is_wrong_usage(start: str) -> None:
    """A subscription begins at earliest, latest or an offset, and at nothing else."""
    result = CliRunner().invoke(command_line, ["consume", "t", "--subscription", "s", f"--start={start}"])
    assert result.exit_code == 2
    assert "earliest" in result.output


def test_a_broker_that_is_not_there_is_exit_code_69() -> None:
    """Scripts can wait for a broker by this code; the error names the endpoint, and says what to do."""
    result = CliRunner().invoke(
        command_line, ["topic", "list", "--endpoint", "tcp://127.0.0.1:9", "--timeout", "0.3"]
    )
    assert result.exit_code == 69
    assert "tcp://127.0.0.1:9" in result.output
    assert "ister serve" in result.output


def test_the_version_is_printed() -> None:
    """`ister --version` is for bug reports."""
    result = CliRunner().invoke(command_line, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("ister ")
