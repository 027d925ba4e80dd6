"""The Rust client as a crate: it is linted, its own tests pass, and its README's programs run from the packed crate."""

from __future__ import annotations

import re
import tarfile
from functools import partial
from pathlib import Path

import pytest

from ister import testing
from tests.conformance_clients import drivers, packages

FOLDER = drivers.CLIENTS / "rust"
TARGET = FOLDER / "build"
WHY_NOT = drivers.named("rust").lacks()
PATIENCE_S = 300  # the first build of a machine compiles all of the libraries
PROGRAMS = packages.programs(FOLDER, "rust")
DEPENDENCIES = re.compile(r"```toml\n\[dependencies\]\n(.*?)```", re.DOTALL)

pytestmark = packages.marks(PATIENCE_S, WHY_NOT)
attempt = partial(packages.attempt, patience_s=PATIENCE_S, environment={"CARGO_TARGET_DIR": str(TARGET)})
run = partial(packages.run, patience_s=PATIENCE_S, environment={"CARGO_TARGET_DIR": str(TARGET)})


@pytest.fixture(scope="module")
def fetched() -> None:
    """Have the libraries that Cargo.lock names; skip where there is no registry."""
    done = attempt(FOLDER, "cargo", "fetch", "--locked")
    if done.returncode != 0:
        pytest.skip(f"rust: the libraries cannot be had: {done.stderr.strip().splitlines()[-1]}")


def test_it_is_formatted_and_linted(fetched: None) -> None:
    """The language's own formatter and linter have nothing to say."""
    run(FOLDER, "cargo", "fmt", "--all", "--check")
    run(
        FOLDER,
        "cargo",
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    )


def test_its_own_tests_pass(fetched: None) -> None:
    """The protocol without a socket, the guards against its libraries, and the vectors."""
    run(FOLDER, "cargo", "test", "--quiet", "--locked", "--workspace")


def test_its_lock_names_no_registry_but_the_public_one() -> None:
    """Cargo.lock is of use on every machine."""
    sources = re.findall(
        r'^source = "(.*)"$', (FOLDER / "Cargo.lock").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(sources) == {"registry+https://github.com/rust-lang/crates.io-index"}


@pytest.fixture(scope="module")
def project(fetched: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the crate, and build the README's programs in an empty project that has nothing but the packed one."""
    run(FOLDER, "cargo", "package", "--quiet", "--locked", "--allow-dirty", "--no-verify", "-p", "ister")
    folder = tmp_path_factory.mktemp("empty")
    with tarfile.open(TARGET / "package" / "ister-0.1.0.crate") as packed:
        packed.extractall(folder, filter="data")
    crate = folder / "ister-0.1.0"
    for source in crate.rglob("*.rs"):
        source.touch()  # all packed files are of 2006: cargo would take an earlier build of this path for this one
    assert not (crate / "driver").exists()
    wanted = DEPENDENCIES.search((FOLDER / "README.md").read_text(encoding="utf-8"))
    assert wanted is not None
    manifest = '[package]\nname = "empty"\nversion = "0.1.0"\nedition = "2021"\n\n[dependencies]\n'
    manifest += wanted[1].replace("/path/to/ister/clients/rust", str(crate))
    (folder / "Cargo.toml").write_text(manifest, encoding="utf-8")
    (folder / "src" / "bin").mkdir(parents=True)
    for number, (_, _, program) in enumerate(PROGRAMS):
        (folder / "src" / "bin" / f"example{number}.rs").write_text(program, encoding="utf-8")
    done = attempt(folder, "cargo", "generate-lockfile")
    if done.returncode != 0:
        pytest.skip(f"rust: there is no registry: {done.stderr.strip().splitlines()[-1]}")
    run(folder, "cargo", "build", "--quiet")
    return folder


@pytest.mark.parametrize("number", range(5))
def test_a_program_of_the_readme_runs_in_an_empty_project(
    number: int, project: Path, memory_broker: testing.Broker
) -> None:
    """As the README says: the dependencies, the program, run; and run again, where the topics exist."""
    assert len(PROGRAMS) == 5
    printed, _, _ = PROGRAMS[number]
    program = ("cargo", "run", "--quiet", "--bin", f"example{number}", memory_broker.endpoint)
    assert run(project, *program).strip() == printed
    run(project, *program)
