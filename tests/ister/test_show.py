"""Tests of the output of results."""

from __future__ import annotations

import json

import pytest

from ister import show


def test_a_table_in_a_pipe_has_no_colours_and_no_cut_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """Another program gets the whole text."""
    show.print_table(["name", "count"], [["x" * 150, 1_234_567], ["[bold]y", None]])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "x" * 150 in printed
    assert "1,234,567" in printed
    assert "[bold]y" in printed


def test_json_is_one_line_of_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    """A script reads one line with one value."""
    show.print_json({"name": "Дунай", "count": 1})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": "Дунай", "count": 1}
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5120.0 GiB")],
)
def test_sizes_are_in_the_unit_people_expect(size: int, words: str) -> None:
    """Bytes below a KiB, then KiB, MiB, GiB."""
    assert show.size_in_words(size) == words


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A log file gets no progress bars."""
    with show.progress("working", 10) as done, show.stage() as say:
        done(5)
        say("half way")
    assert capsys.readouterr() == ("", "")
