"""Tests that the smallest clients, written from PROTOCOL.md, work against a broker."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable

import pytest

import ister
from ister import testing
from ister.wire import Type
from tests.conformance_clients import drivers

PROGRAM = drivers.CLIENTS / "python-minimal" / "minimal.py"
PROGRAMS = {
    "python-minimal": [sys.executable, str(PROGRAM)],
    "ruby-minimal": ["ruby", str(drivers.CLIENTS / "ruby-minimal" / "minimal.rb")],
    "perl-minimal": ["perl", str(drivers.CLIENTS / "perl-minimal" / "minimal.pl")],
}
LINES_MAX = 60

Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=PROGRAMS)
def play(request: pytest.FixtureRequest) -> Play:
    """Run one of the programs."""
    if (why := drivers.named(request.param).why_not()) is not None:
        pytest.skip(why)

    def run(endpoint: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*PROGRAMS[request.param], endpoint, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    return run


@pytest.mark.requirement("14-1", "7.5-2")
def test_it_publishes_and_consumes(broker: testing.Broker, play: Play) -> None:
    """They receive and acknowledge what they published."""
    done = play(broker.endpoint, "greetings", "hello", "world")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "published at offset 0",
        "published at offset 1",
        "received 0 hello",
        "received 1 world",
    ]
    kinds = [kind for kind, _ in broker.heard]
    assert kinds[-2:] == [Type.CLOSE, Type.BYE]
    with ister.connect(broker.endpoint) as client:
        with client.consumer("greetings", subscription="minimal", type="shared") as consumer:
            assert consumer.receive(0.1) is None


@pytest.mark.requirement("14-1")
def test_it_follows_moved(broker: testing.Broker, play: Play) -> None:
    """They work with several workers too."""
    with ister.connect(broker.endpoint) as there:
        there.create_topic("greetings")
    with testing.Broker(moved={"greetings": broker.endpoint}) as first:
        done = play(first.endpoint, "greetings", "hello")
    assert done.stdout.splitlines() == ["published at offset 0", "received 0 hello"]


def test_it_is_small_and_imports_nothing_of_ister() -> None:
    """A client needs sixty lines, the standard library, zmq and cbor2."""
    text = PROGRAM.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    imported = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names == {"zmq", "cbor2"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(text)))
