"""Tests of the arguments that the scripts of `benchmarks/` share: what is wrong is said before anything is measured."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTION = re.compile(r'add_argument\(\s*"(--data|--folder)"')
WITH_A_FOLDER = {
    path.stem: found[1]
    for path in sorted(BENCHMARKS.glob("*.py"))
    if (found := OPTION.search(path.read_text(encoding="utf-8")))
}


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the scripts import it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("arguments")


def test_a_folder_that_is_missing_is_made(arguments: Any, tmp_path: Path) -> None:
    """A measurement does not end because nobody made its folder before."""
    wanted = tmp_path / "a/b"
    assert arguments.made_folder(str(wanted)) == str(wanted)
    assert wanted.is_dir()


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(arguments: Any, tmp_path: Path) -> None:
    """A file in its place is said to be one."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(argparse.ArgumentTypeError, match=r"file/b.*Not a directory"):
        arguments.made_folder(str(tmp_path / "file/b"))
    with pytest.raises(argparse.ArgumentTypeError, match=r"/file.*File exists"):
        arguments.made_folder(str(tmp_path / "file"))


def test_results_have_a_place_before_they_are_measured(arguments: Any, tmp_path: Path) -> None:
    """The folder of a file of results is made, and a folder is not a file."""
    assert arguments.output(str(tmp_path / "new/a.json")) == str(tmp_path / "new/a.json")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder: name a file"):
        arguments.output(str(tmp_path / "new"))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "three", ""])
def test_a_number_of_rounds_is_whole_and_at_least_one(arguments: Any, text: str) -> None:
    """No round at all has no median, and half a round does not exist."""
    assert arguments.whole("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        arguments.whole(text)


@pytest.mark.parametrize("text", ["0", "-0.5", "inf", "nan", "much"])
def test_a_number_of_seconds_is_above_zero_and_finite(arguments: Any, text: str) -> None:
    """A load of no time, or of all time, measures nothing."""
    assert arguments.above_zero("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        arguments.above_zero(text)


def test_numbers_with_commas_between_are_a_list(arguments: Any) -> None:
    """One that is wrong is named."""
    assert arguments.wholes("1,10,100") == [1, 10, 100]
    with pytest.raises(argparse.ArgumentTypeError, match="'x'"):
        arguments.wholes("1,x")


def test_the_scripts_that_take_a_folder_are_found() -> None:
    """The test below is of all of them, and of those that come."""
    assert {
        "against",
        "peers",
        "ratio",
        "suite",
        "scaling",
        "fsync",
        "store",
        "workloads",
    } <= WITH_A_FOLDER.keys()


@pytest.mark.process
@pytest.mark.parametrize("script", WITH_A_FOLDER)
def test_a_script_refuses_a_folder_that_cannot_be_made_in_one_line(script: str, tmp_path: Path) -> None:
    """No traceback, and nothing is measured before."""
    (tmp_path / "file").write_text("x")
    command = [
        sys.executable,
        str(BENCHMARKS / f"{script}.py"),
        WITH_A_FOLDER[script],
        str(tmp_path / "file/b"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "no folder can be made at" in done.stderr
    assert "Traceback" not in done.stderr
