"""The built distributions are one package, and work beside a program with folders of the same names as its parts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import ister
from ister.ownbroker import free_ports

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
THEIRS = ("actors", "storage", "transport")
PROGRAM = """
import json
import sys

import actors
import storage.catalogue
import transport

import ister
import ister.store
import ister.testing

if __name__ == "__main__":
    found = {"theirs": [actors.MINE, storage.catalogue.MINE, transport.MINE], "ister": ister.__file__}
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("t")
        with client.producer("t") as producer, client.consumer("t", "s", start="earliest") as consumer:
            producer.send(b"tested").result(10)
            found["tested"] = consumer.receive(10).payload.decode()
    with ister.connect(sys.argv[1]) as client:
        with client.producer("orders") as producer:
            producer.send(b"sent").result(20)
        with client.consumer("orders", "s", start="earliest") as consumer:
            found["received"] = consumer.receive(20).payload.decode()
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and the sdist; return their folder."""
    out = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=50)
    return out


def test_a_wheel_has_one_package(built: Path) -> None:
    """With everything that its links lead to, its types and specifications, and nothing for tests only."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ister"}
    for folder in ("actors", "transport", "storage"):
        inside = {name.rsplit("/")[-1] for name in names if name.startswith(f"ister/{folder}/")}
        missing = {path.name for path in (ROOT / folder).glob("*.py")} - inside
        assert missing == ({"simulated.py"} if folder == "storage" else set())
    specified = {"transport/PROTOCOL.md", "transport/protocol.cddl", "storage/FORMAT.md"}
    assert {"ister/py.typed", *(f"ister/{name}" for name in specified)} <= set(names)


def test_a_wheel_asks_for_what_a_client_needs_and_has_the_rest_in_extras(built: Path) -> None:
    """Installing it installs no library of the broker or of Google; its version is the code's."""
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert {re.split("[^a-z0-9]", each)[0] for each in needed} == {"cbor2", "click", "pyzmq", "rich"}
    assert {"all", "broker", "gcs"} <= set(metadata.get_all("Provides-Extra", []))
    assert metadata["Version"] == ister.__version__


def test_an_sdist_has_what_a_wheel_and_its_tests_are_made_of(built: Path) -> None:
    """Each file once: the links are folders in it."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as found:
        names = {name.split("/", 1)[1] for name in found.getnames()}
    assert {
        "ister/actors/worker.py",
        "ister/storage/simulated.py",
        "tests/test_package.py",
        "Makefile",
    } <= names
    assert not [name for name in names if name.startswith(("actors/", "transport/", "storage/"))]


@pytest.fixture(params=["wheel", "sdist"])
def python(request: pytest.FixtureRequest, built: Path, tmp_path: Path) -> Path:
    """Return the Python of a clean environment with Ister from there, and its dependencies from this one."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=50)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (file,) = built.glob("*.whl" if request.param == "wheel" else "*.tar.gz")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    more = ["--disable-pip-version-check", "--no-build-isolation", "--ignore-installed", str(file)]
    subprocess.run([*pip, *more], check=True, capture_output=True, cwd=tmp_path, timeout=50)
    return python


@pytest.mark.timeout(180)
def test_it_works_beside_a_program_with_folders_of_the_same_names(python: Path, tmp_path: Path) -> None:
    """Serve, produce, consume, read the store, and the broker for tests, in a folder with `storage/` and so on."""
    theirs = tmp_path / "program"
    theirs.mkdir()
    for name in THEIRS:
        (theirs / name).mkdir()
        (theirs / name / "__init__.py").write_text("MINE = True\n")
        (theirs / name / "catalogue.py").write_text("MINE = True\n")
    (theirs / "main.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ISTER"))}

    def run(*arguments: str, **more: Any) -> str:
        done = subprocess.run(
            [str(python), *arguments],
            cwd=theirs,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            **more,
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return str(done.stdout)

    log = (tmp_path / "serve.log").open("w")
    serve = [
        str(python),
        "-m",
        "ister",
        "serve",
        "--workers",
        "1",
        "--listen",
        f"tcp://127.0.0.1:{free_ports(1)}",
    ]
    with (
        log,
        subprocess.Popen(
            [*serve, "--data", str(tmp_path / "data"), "--json"],
            cwd=theirs,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as broker,
    ):
        try:
            assert broker.stdout is not None
            endpoint = json.loads(broker.stdout.readline())["endpoints"][0]
            run("-m", "ister", "topic", "create", "orders", "--durability", "cloud", "--endpoint", endpoint)
            found = json.loads(run("main.py", endpoint))
            run("-m", "ister", "produce", "orders", "--endpoint", endpoint, input="a line\n")
        finally:
            broker.terminate()
    assert broker.returncode == 0
    assert found["theirs"] == [True, True, True]
    assert Path(found["ister"]).is_relative_to(python.parents[1])
    assert (found["tested"], found["received"]) == ("tested", "sent")
    read = "import ister.store; print([m.payload for m in ister.store.read(__import__('sys').argv[1], 'orders')])"
    store = f"file://{tmp_path / 'data' / 'store'}"
    assert run("-c", read, store).strip() == "[b'sent', b'a line']"
    shutil.rmtree(tmp_path / "data")
