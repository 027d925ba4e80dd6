"""Finding drivers, talking to one, and the errors about a broken one."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.conformance_clients import drivers
from tests.conformance_clients.drivers import AnsweredError, Driver, DriverBrokenError, Kind
from tests.conformance_clients.play import read

pytestmark = pytest.mark.process

HELLO = '{"id": 1, "ok": {"protocol": 1, "language": "x", "client": "x", "capabilities": []}}'


def scripted(folder: Path, *lines: str) -> Kind:
    """Return a driver that says hello, and answers each command with one of these lines."""
    program = folder / "driver.py"
    program.write_text(
        f"import sys\nfor answer in {[HELLO, *lines]!r}:\n    sys.stdin.readline()\n    print(answer, flush=True)\n"
        "print('the last word', file=sys.stderr)\n"
    )
    return Kind("x", folder, ("{python}", "driver.py"))


def test_the_drivers_of_the_tree_are_found() -> None:
    """The Python client's comes first, and each one of this repository that needs nothing can be started."""
    kinds = drivers.find()
    assert kinds[0].name == "python"
    assert {kind.name for kind in kinds if not kind.needs} >= {"python", "python-minimal"}
    assert all(kind.why_not() is None for kind in kinds if not kind.needs and kind.built is None)


def test_a_driver_is_found_by_its_language() -> None:
    """Also as `python-driver`; another name is an error that lists all."""
    assert drivers.named("python-driver") == drivers.named("python")
    with pytest.raises(LookupError, match="no driver for 'cobol'; it has python"):
        drivers.named("cobol")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """A missing program, or a file that is not built, with the command that builds it."""
    folder = tmp_path / "go"
    folder.mkdir()
    said = {"language": "go", "command": ["build/driver"], "built": "build/driver", "build": ["true"]}
    (folder / "driver.json").write_text(json.dumps(said | {"needs": ["no-such-compiler"]}))
    [kind] = drivers.find(tmp_path)
    assert kind.why_not() == "go: this machine has no no-such-compiler"
    assert drivers.build([kind]) == ["SKIPPED go: this machine has no no-such-compiler"]
    (folder / "driver.json").write_text(json.dumps(said))
    [kind] = drivers.find(tmp_path)
    assert kind.why_not() == "go: clients/go/build/driver is not built: make build-clients"
    assert drivers.build([kind]) == ["built go: true"]


def test_an_answer_is_its_commands(tmp_path: Path) -> None:
    """Several commands may be in progress; an error of the client has its code, action and text."""
    refused = '{"id": 3, "error": {"code": "busy", "action": "retry", "text": "full"}}'
    with Driver(scripted(tmp_path, '{"id": 2, "ok": {"n": 1}}', refused)) as driver:
        first, second = driver.send("one"), driver.send("two")
        with pytest.raises(AnsweredError, match=r"two: busy \(retry\): full"):
            driver.answer(second)
        assert driver.answer(first) == {"n": 1}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("no json", "this is no answer: 'no json"),
        ("[]", "this is no answer"),
        ('{"id": 2, "error": {"code": "driver-failed", "action": "stop", "text": "KeyError"}}', "KeyError"),
        ('{"id": 2, "error": {"code": "unsupported", "action": "fix"}}', "unsupported"),
    ],
)
def test_a_driver_that_is_none_fails_the_test(tmp_path: Path, line: str, why: str) -> None:
    """Nonsense, and errors that are not the client's, are reported with what the driver wrote."""
    with Driver(scripted(tmp_path, line)) as driver, pytest.raises(DriverBrokenError, match=re.escape(why)):
        driver.ask("anything")


def test_a_driver_that_ends_fails_the_test(tmp_path: Path) -> None:
    """The error has its exit code and the end of its standard error."""
    with Driver(scripted(tmp_path)) as driver:
        with pytest.raises(DriverBrokenError, match=r"(?s)ended (before|without).*code 0.*the last word"):
            driver.ask("anything")


def test_a_driver_that_cannot_be_spoken_to_is_an_error(tmp_path: Path) -> None:
    """A driver of another version is refused when it says hello."""
    kind = scripted(tmp_path)
    program = tmp_path / "driver.py"
    program.write_text(program.read_text().replace('"protocol": 1', '"protocol": 2'))
    with pytest.raises(DriverBrokenError, match="driver protocol 1"):
        Driver(kind)


@pytest.mark.parametrize("name", ["python", "python-minimal"])
def test_the_reference_says_what_it_does_not_know(name: str) -> None:
    """An unknown command is `unsupported`, an unknown name `driver-failed`, and the end of input exit code 0."""
    with Driver(drivers.named(name)) as driver:
        with pytest.raises(DriverBrokenError, match="unsupported"):
            driver.ask("dance")
        with pytest.raises(DriverBrokenError, match="driver-failed"):
            driver.ask("receipt", receipt="never", a_word_of_a_later_version=True)
        driver.ask("hello", a_word_of_a_later_version=True)
        assert driver.finish() == 0


def test_a_typed_line_is_a_command() -> None:
    """Numbers and lists are JSON, everything else is text."""
    line = 'connect client=c endpoints=["tcp://127.0.0.1:5555"] timeout_ms=500'
    assert read(line) == (
        "connect",
        {"client": "c", "endpoints": ["tcp://127.0.0.1:5555"], "timeout_ms": 500},
    )


def test_everything_the_reference_does_is_documented() -> None:
    """DRIVER.md has every command and every capability."""
    text = (Path(__file__).parent / "DRIVER.md").read_text(encoding="utf-8")
    with Driver(drivers.named("python")) as driver:
        undocumented = [name for name in driver.capabilities if f"`{name}`" not in text]
    assert undocumented == []
    program = ast.parse((drivers.CLIENTS / "python" / "driver.py").read_text(encoding="utf-8"))
    [methods] = [
        each.body for each in program.body if isinstance(each, ast.ClassDef) and each.name == "Driver"
    ]
    commands = {each.name for each in methods if isinstance(each, ast.FunctionDef)}
    assert {name for name in commands if not name.startswith("_") and f"`{name}`" not in text} == set()
