"""`pip install ister` installs enough for clients; everything else says which command installs what it needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ister
from ister.extras import EXTRAS, need

ROOT = Path(__file__).parents[1]
CORE = {"cbor2", "click", "pyzmq", "rich"}
# Blocks the modules of extras: a finder before all others refuses to import them.
BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in {blocked!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""
BROKER = ["google_crc32c", "msgspec", "pykka", "setproctitle"]
GCS = ["google"]
CLI = "from ister.cli import main\nsys.argv = ['ister', *sys.argv[1:]]\nmain()\n"
TESTED = """
import ister.aio, ister.store, ister.testing
with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
    client.create_topic("orders")
    with client.producer("orders") as producer, client.consumer("orders", "s", start="earliest") as consumer:
        producer.send(b"one").result(timeout=20)
        print(consumer.receive(timeout=20).payload.decode())
"""
STORE = """
import ister.store
try:
    {call}
except ImportError as error:
    assert isinstance(error, ister.IsterError)
    print(error)
"""


def run(blocked: list[str], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that cannot import blocked modules."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ISTER")}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=tuple(blocked)) + program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
    )


def requirements(of: list[str]) -> set[str]:
    """Return the names of the distributions in requirements."""
    return {re.split(r"[^A-Za-z0-9_-]", each)[0] for each in of}


def test_the_extras_are_those_of_the_package() -> None:
    """The lists in pyproject.toml and in ister/extras.py have the same names, and none that every client gets."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert requirements(project["dependencies"]) == CORE
    for extra, modules in EXTRAS.items():
        assert requirements(project["optional-dependencies"][extra]) == set(modules.values())
    assert project["optional-dependencies"]["all"] == [f"ister[{','.join(sorted(EXTRAS))}]"]


def test_the_version_is_that_of_the_package() -> None:
    """`ister.__version__` is the version that is built and installed."""
    assert ister.__version__ == importlib.metadata.version("ister")


@pytest.mark.process
def test_a_client_needs_no_extra() -> None:
    """Nor does the broker for tests, nor importing `ister.store` and `ister.aio`."""
    done = run(BROKER + GCS, TESTED)
    assert (done.stdout, done.stderr, done.returncode) == ("one\n", "", 0)


@pytest.mark.process
@pytest.mark.parametrize("arguments", ["--help", "--version", "serve --help", "store --help", "bench --help"])
def test_the_command_line_needs_no_extra_to_say_what_there_is(arguments: str) -> None:
    """Every command is listed and has its help."""
    done = run(BROKER + GCS, CLI, *arguments.split())
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.process
def test_commands_for_a_running_broker_need_no_extra() -> None:
    """They fail because no broker runs, and not for lack of a library."""
    done = run(BROKER + GCS, CLI, "topic", "list", "--endpoint", "tcp://127.0.0.1:9", "--timeout", "0.2")
    assert (done.returncode, "connection-lost" in done.stderr or "timeout" in done.stderr) == (69, True), done


@pytest.mark.process
@pytest.mark.parametrize(
    ("blocked", "arguments", "extra"),
    [
        (BROKER, "serve --data {tmp}/data", "broker"),
        (["pykka"], "serve --data {tmp}/data", "broker"),
        (GCS, "serve --data {tmp}/data --store gs://bucket/prefix", "gcs"),
        (BROKER, "demo --lines-max 1", "broker"),
        (BROKER, "bench --messages 1", "broker"),
        (BROKER, "store ls file://{tmp}", "broker"),
        (GCS, "store ls gs://bucket/prefix", "gcs"),
        (BROKER + GCS, "store cat gs://bucket/prefix orders", "gcs"),
    ],
)
def test_a_command_that_needs_an_extra_says_which(
    blocked: list[str], arguments: str, extra: str, tmp_path: Path
) -> None:
    """One line with the command to type, instead of a traceback; and nothing was started."""
    done = run(blocked, CLI, *arguments.format(tmp=tmp_path).split())
    assert f"pip install 'ister[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])


@pytest.mark.process
def test_what_is_missing_is_said_as_json_too(tmp_path: Path) -> None:
    """With a code that programs can use."""
    done = run(BROKER, CLI, "serve", "--data", f"{tmp_path}/data", "--json")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["action"]) == ("not-installed", "fix")


@pytest.mark.process
@pytest.mark.parametrize(
    "call",
    [
        "list(ister.store.topics({url!r}))",
        "ister.store.history({url!r}, 'orders')",
        "list(ister.store.read({url!r}, 'orders'))",
        "ister.store.verify({url!r}, 'orders')",
        "ister.store.Reader({url!r}, 'orders')",
    ],
)
@pytest.mark.parametrize(("url", "extra"), [("file:///tmp", "broker"), ("gs://bucket/prefix", "gcs")])
def test_reading_a_store_says_which_extra_it_needs(call: str, url: str, extra: str) -> None:
    """It is an Ister error and an ImportError, whichever way the store is opened."""
    done = run(BROKER + GCS, STORE.format(call=call.format(url=url)))
    assert f"pip install 'ister[{extra}]'" in done.stdout, done.stderr


def test_an_extra_that_is_there_is_not_complained_of() -> None:
    """Nothing is imported to find out."""
    program = (
        "import sys\nfrom ister.extras import need\nneed('broker', 'this')\nneed('gcs', 'this')\n"
        "print(*sorted({'msgspec', 'pykka', 'setproctitle', 'google.cloud.storage'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_only_what_is_needed_is_asked_for() -> None:
    """A store in a folder needs only the library for checksums."""
    need("broker", "this", ["google_crc32c"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_ister_is_light() -> None:
    """It takes less than 30 MB, and loads nothing of the command line, the broker or asyncio."""
    heavy = ["asyncio", "click", "multiprocessing", "rich", "sqlite3", "tomllib", "google", *BROKER]
    program = (
        "import sys, ister\n"
        f"print(*sorted(set({heavy!r}) & sys.modules.keys()))\n"
        "status = open('/proc/self/status').read()\n"
        "print(next(line.split()[1] for line in status.splitlines() if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    loaded, peak_kib = done.stdout.splitlines()
    assert (loaded, int(peak_kib) * 1024 < 30_000_000) == ("", True)
