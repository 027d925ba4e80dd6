"""The Java client as a library: checked and packed as it would be published, and its README's programs run."""

from __future__ import annotations

import os
import pwd
from functools import partial
from pathlib import Path

import pytest

from ister import testing
from tests.conformance_clients import drivers, packages

FOLDER = drivers.CLIENTS / "java"
WHY_NOT = drivers.named("java").lacks()
PATIENCE_S = 400  # the first build of a machine fetches the plugins
PROGRAMS = packages.programs(FOLDER, "java")
EMPTY_PROJECT = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>example.empty</groupId>
  <artifactId>project</artifactId>
  <version>1</version>
  <dependencies>
    DEPENDENCY
  </dependencies>
</project>
"""

pytestmark = packages.marks(PATIENCE_S, WHY_NOT)
USERS = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".m2"  # where Maven looks, whatever HOME says
run = partial(packages.run, patience_s=PATIENCE_S)


def repository(folder: Path) -> str:
    """Return the option for a repository in a folder that reads the user's, and keeps what is of this library."""
    run(FOLDER, "mvn", "-q", "-B", "-DskipTests", "package")  # fetches into the user's what is missing there
    for group in (USERS / "repository").iterdir():
        if group.name != "example":
            (folder / group.name).symlink_to(group)
    return f"-Dmaven.repo.local={folder}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return an empty project that the packed library was installed for, as the README says, and its class path."""
    local = repository(tmp_path_factory.mktemp("repository"))
    run(FOLDER, "mvn", "-q", "-B", local, "-DskipTests", "install")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    dependency = readme.split("```xml\n")[1].split("```")[0]
    folder = tmp_path_factory.mktemp("empty")
    (folder / "pom.xml").write_text(EMPTY_PROJECT.replace("DEPENDENCY", dependency), encoding="utf-8")
    run(folder, "mvn", "-q", "-B", local, "dependency:build-classpath", "-Dmdep.outputFile=classpath")
    return folder, (folder / "classpath").read_text(encoding="utf-8")


def test_nothing_of_it_is_left_in_the_users_repository(project: tuple[Path, str]) -> None:
    """The class path of the empty project names the one that was installed for it."""
    _, libraries = project
    [own] = [path for path in libraries.split(os.pathsep) if "ister-client" in path]
    assert not Path(own).is_relative_to(USERS)


def test_it_is_formatted() -> None:
    """google-java-format would change nothing; javac's warnings are errors in every build."""
    run(FOLDER, "mvn", "-q", "-B", "spotless:check")


def test_its_own_tests_pass() -> None:
    """The protocol without a socket, the vectors, and what guards against the libraries."""
    run(FOLDER, "mvn", "-q", "-B", "test")


def test_it_is_packed_as_its_registry_expects() -> None:
    """Beside the jar there are one of the sources and one of the documentation, which has no errors."""
    run(FOLDER, "mvn", "-q", "-B", "-Prelease", "-DskipTests", "package")
    for kind in ("", "-sources", "-javadoc"):
        assert (FOLDER / f"build/ister-client-0.1.0{kind}.jar").exists()


@pytest.mark.parametrize("number", [0, 1])
def test_a_program_of_the_readme_runs_in_an_empty_project(
    number: int, memory_broker: testing.Broker, project: tuple[Path, str], tmp_path: Path
) -> None:
    """Installed, named as a dependency, compiled with every warning on, and run; twice, as topics may exist."""
    _, libraries = project
    assert len(PROGRAMS) == 2
    printed, _, program = PROGRAMS[number]
    (tmp_path / "Main.java").write_text(program, encoding="utf-8")
    run(tmp_path, "javac", "-Xlint:all,-try", "-Werror", "-cp", libraries, "Main.java")
    command = ("java", "-cp", f".{os.pathsep}{libraries}", "Main", memory_broker.endpoint)
    assert run(tmp_path, *command).strip() == printed
    run(tmp_path, *command)
