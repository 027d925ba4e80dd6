"""The C client as a library: it is formatted, its tests pass under sanitizers, its README's programs run installed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from ister import testing
from ister.ownbroker import OwnBroker
from tests.conformance_clients import drivers, packages

FOLDER = drivers.CLIENTS / "c"
WHY_NOT = drivers.named("c").lacks()
PATIENCE_S = 240
LINT_PATIENCE_S = 1200  # it follows every path through the library: some 90 s of a processor
PROGRAMS = packages.programs(FOLDER, "c", "cpp")

pytestmark = packages.marks(PATIENCE_S, WHY_NOT)
run = partial(packages.run, patience_s=PATIENCE_S)


def make(folder: Path, *targets: str) -> None:
    """Make targets in a copy of the client, so that no build of it is disturbed."""
    run(folder, "make", "--no-print-directory", *targets)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the client without what was built."""
    return shutil.copytree(
        FOLDER, tmp_path_factory.mktemp("c") / "client", ignore=shutil.ignore_patterns("build")
    )


def test_it_is_formatted(copied: Path) -> None:
    """The formatter would change nothing."""
    if shutil.which("clang-format") is None:
        pytest.skip("c: this machine has no clang-format")
    make(copied, "format-check")


@pytest.mark.timeout(LINT_PATIENCE_S + 60)
def test_it_has_no_finding_of_the_linter(copied: Path) -> None:
    """clang-tidy, by the rules of `.clang-tidy`, finds nothing in the library, its C++ wrapper, and the driver."""
    if shutil.which("clang-tidy") is None:
        pytest.skip("c: this machine has no clang-tidy")
    packages.run(copied, "make", "--no-print-directory", "lint", patience_s=LINT_PATIENCE_S)


def test_its_own_tests_pass(copied: Path) -> None:
    """The protocol without a socket; compiled without a warning."""
    make(copied, "check")


def test_its_own_tests_touch_no_memory_but_their_own(copied: Path) -> None:
    """The same, with the sanitizers for addresses and undefined behaviour."""
    make(copied, "sanitized")


def test_its_own_tests_leave_no_memory_behind(copied: Path) -> None:
    """The same under valgrind, which finds no leak and no uninitialised byte."""
    if shutil.which("valgrind") is None:
        pytest.skip("c: this machine has no valgrind")
    make(copied, "memory")


@pytest.mark.parametrize("sanitizer", ["sanitized", "threads"])
def test_what_programs_call_does_what_the_header_says(
    sanitizer: str, memory_broker: testing.Broker, copied: Path
) -> None:
    """Threads, functions that are called, interruptions, what outlives a client; nothing races, or is left behind."""
    make(copied, f"build/test_api_{sanitizer}")
    told = {"TSAN_OPTIONS": f"suppressions={copied / 'test' / 'threads.supp'}"}
    run(copied, f"build/test_api_{sanitizer}", memory_broker.endpoint, environment=told)


def test_what_the_wrapper_for_cpp_adds_does_what_it_says(copied: Path, tmp_path: Path) -> None:
    """Patterns and dead letters; an exception that ends a consumer is a failure of what the program has in hand."""
    if shutil.which("g++") is None:
        pytest.skip("c: this machine has no g++")
    make(copied, "build/test_wrapper", "CXX=g++")
    with OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=1) as broker:
        run(copied, "build/test_wrapper", broker.endpoint)


def test_it_exports_nothing_but_its_own_names(copied: Path) -> None:
    """A program that links it meets no name that does not begin with ister_."""
    make(copied, "all")
    told = run(copied, "nm", "--defined-only", "--extern-only", "build/libister.a")
    names = [
        line.split()[-1] for line in told.splitlines() if " T " in line or " D " in line or " B " in line
    ]
    assert names
    assert [name for name in names if not name.startswith("ister_")] == []


@pytest.mark.parametrize("linked", ["static", "shared"])
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_of_the_readme_runs_against_the_installed_library(
    number: int, linked: str, memory_broker: testing.Broker, copied: Path, tmp_path: Path
) -> None:
    """As the README says: install, ask pkg-config, compile, run; and run again, where the topics exist."""
    assert len(PROGRAMS) == 4
    printed, language, program = PROGRAMS[number]
    compiler, standard = {"c": ("gcc", "-std=c11"), "cpp": ("g++", "-std=c++17")}[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"c: this machine has no {compiler}")
    prefix = tmp_path / "installed"
    make(copied, "install", f"PREFIX={prefix}")
    (tmp_path / f"program.{language}").write_text(program, encoding="utf-8")
    found = {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    if linked == "shared":
        flags = run(tmp_path, "pkg-config", "--cflags", "--libs", "ister", environment=found).split()
        assert f"-L{prefix}/lib" in flags
    else:
        flags = [f"-I{prefix}/include", f"{prefix}/lib/libister.a", "-lzmq", "-lcbor"]
    warnings = [standard, "-Wall", "-Wextra", "-Werror", "-pthread"]
    run(tmp_path, compiler, *warnings, f"program.{language}", "-o", "program", *flags)
    libraries = str(prefix / "lib")
    assert (
        run(tmp_path, "./program", memory_broker.endpoint, environment={"LD_LIBRARY_PATH": libraries}).strip()
        == printed
    )
    run(tmp_path, "./program", memory_broker.endpoint, environment={"LD_LIBRARY_PATH": libraries})
