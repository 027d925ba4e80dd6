"""The Go client as a module: it is vetted, its own tests pass, and its README's programs run in an empty project."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ister import testing
from tests.conformance_clients import drivers, packages

FOLDER = drivers.CLIENTS / "go"
WHY_NOT = drivers.named("go").lacks()
PATIENCE_S = 240  # the first build on a machine compiles all libraries
PROGRAMS = packages.programs(FOLDER, "go")

pytestmark = packages.marks(PATIENCE_S, WHY_NOT)
run = partial(packages.run, patience_s=PATIENCE_S)


def test_it_is_formatted_and_vetted() -> None:
    """The language's formatter and checker find nothing."""
    assert run(FOLDER, "gofmt", "-l", ".") == ""
    run(FOLDER, "go", "vet", "./...")


def test_its_own_tests_pass() -> None:
    """The protocol without a socket, and the vectors."""
    run(FOLDER, "go", "test", "./...")


def test_its_modules_are_what_it_uses() -> None:
    """`go mod tidy` changes nothing."""
    run(FOLDER, "go", "mod", "tidy", "-diff")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_program_of_the_readme_runs_in_an_empty_project(
    number: int, memory_broker: testing.Broker, tmp_path: Path
) -> None:
    """As the README says: require, replace, tidy, run; and run again, where the topics exist."""
    assert len(PROGRAMS) == 3
    printed, _, program = PROGRAMS[number]
    (tmp_path / "main.go").write_text(program, encoding="utf-8")
    run(tmp_path, "go", "mod", "init", "empty.example/project")
    run(
        tmp_path,
        *("go", "mod", "edit", "-require=ister.example/go@v0.1.0", f"-replace=ister.example/go={FOLDER}"),
    )
    run(tmp_path, "go", "mod", "tidy")
    assert run(tmp_path, "go", "run", ".", memory_broker.endpoint).strip() == printed
    run(tmp_path, "go", "run", ".", memory_broker.endpoint)
