"""All drivers of the repository, one after the other, and brokers of real processes for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from ister import testing
from ister.ownbroker import OwnBroker, free_ports
from tests.conformance_clients import drivers, matrix
from tests.conformance_clients.drivers import Kind
from tests.conformance_clients.player import Player
from tests.crash.victim import Victim

ONLY: Final = os.environ.get("CLIENT", "")
LONG: Final = "CLIENTS_LONG" in os.environ

QUICK: Final = "CLIENTS_QUICK" in os.environ
LEFT_OUT: Final = pytest.mark.skip(reason="left out, for time (CLIENTS_QUICK): make test-clients runs it")

long = pytest.mark.skipif(
    not LONG, reason="takes long: set CLIENTS_LONG=1, or make test-clients CLIENTS_LONG=1"
)

SETTINGS: Final = {
    "protocol.heartbeat_ms": 500,
    "protocol.session_timeout_ms": 2_000,
    "log.segment_age_ms_max": 1_000,
    "supervision.restarts_max": 1_000,
    "supervision.restart_delay_ms_min": 10,
}

HERE: Final = Path(__file__).parent
PACKAGING: Final = ("_module.py", "_crate.py", "_package.py", "_library.py")
LONG_SESSIONS: Final = {"protocol.session_timeout_ms": 600_000}
ABOUT_SESSIONS: Final = ("test_failures.py", "test_wire.py")
CLIENT_PROPERTY: Final = "client"  # in a test's report: the client it was about
CELLS = pytest.StashKey[Mapping[tuple[str, str], str]]()  # (publisher, consumer): the outcome
LACKS = pytest.StashKey[Mapping[str, list[str]]]()  # the features that a client lacks

Play = Callable[[], Player]


def kinds() -> list[Kind]:
    """Return the requested drivers: all, or those that CLIENT names, separated by commas."""
    return [drivers.named(name) for name in ONLY.split(",")] if ONLY else drivers.find()


def parameter(kind: Kind) -> object:
    """Return a driver as a test's parameter; the test is skipped, with the reason, if the driver cannot be started."""
    why = kind.why_not()
    return pytest.param(kind, id=kind.name, marks=[] if why is None else pytest.mark.skip(reason=why))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With CLIENTS_QUICK, leave out of other languages what waits for brokers to fall and rise, and their packaging."""
    if not QUICK:
        return
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        falls = item.path.name == "test_failures.py" and "[python" not in item.name
        if falls or item.path.name.endswith(PACKAGING):
            item.add_marker(LEFT_OUT)


@pytest.fixture(params=[parameter(kind) for kind in kinds()])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return the drivers of all languages in turn."""
    found: Kind = request.param
    request.node.user_properties.append((CLIENT_PROPERTY, found.name))
    return found


@pytest.fixture
def _players() -> Iterator[list[Player]]:
    started: list[Player] = []
    yield started
    for player in started:
        player.driver.kill()


@pytest.fixture
def play(kind: Kind, _players: list[Player]) -> Play:
    """Return a function that starts a driver of the language; a scenario may have several."""
    return lambda: Player(kind, _players)


@pytest.fixture
def player(play: Play) -> Player:
    """Return one driver, not connected yet."""
    return play()


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """Return a broker with two workers that scenarios do not harm, each with topics of its own.

    The smallest clients send no heartbeats: where sessions are not what a scenario is about, theirs do not end.
    """
    folder = tmp_path_factory.mktemp("broker")
    settings = SETTINGS if request.path.name in ABOUT_SESSIONS else SETTINGS | LONG_SESSIONS
    with OwnBroker(f"{folder}/data", f"{folder}/log", workers=2, settings=settings) as running:
        yield running


@pytest.fixture
def memory_broker() -> Iterator[testing.Broker]:
    """Return a broker in memory."""
    with testing.Broker() as running:
        yield running


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    """Return a broker with one worker that may be killed and restarted."""
    killed = Victim(tmp_path / "data", tmp_path / "log", free_ports(2), SETTINGS)
    killed.start(1)
    yield killed
    killed.end()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """Return a topic name that no other scenario uses."""
    letters = [letter if letter.isalnum() else "-" for letter in request.node.name]
    return "".join(letters)[:150]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the outcome for each client, and the matrix, if they were tested."""
    outcomes: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, client in getattr(report, "user_properties", ()):
                if name == CLIENT_PROPERTY:
                    outcomes.setdefault(client, Counter())[outcome] += 1
    config = terminalreporter.config
    if not outcomes and CELLS not in config.stash:
        return
    terminalreporter.section("clients")
    for client, counts in sorted(outcomes.items()):
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        terminalreporter.write_line(f"{client}: {told}")
    if CELLS in config.stash:
        terminalreporter.write_line("")
        for line in matrix.table(config.stash[CELLS], config.stash[LACKS]):
            terminalreporter.write_line(line)
