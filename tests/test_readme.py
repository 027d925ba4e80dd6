"""Every example of README.md and other documents is run as it stands, twice: it also works the second time.

A comment before each block says how: `run: ...`, or `not run: ...` with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ister
from ister.ownbroker import OwnBroker, free_ports

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
BLOCK = re.compile(r"(?:<!-- (?P<how>[^\n]*) -->\n)?```(?P<language>sh|python)\n(?P<code>.*?)```", re.DOTALL)
ENDPOINT = "tcp://127.0.0.1:5555"
STORE = "gs://my-ister/production"
CLIENT = f'import ister\nclient = ister.connect("{ENDPOINT}")\n'


@dataclass(frozen=True)
class Example:
    """A block of a document."""

    document: str
    line: int
    how: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.document} line {self.line}"


def examples() -> list[Example]:
    """Return the blocks of all documents, in order."""
    found: list[Example] = []
    for path in [each for pattern in DOCUMENTS for each in sorted(ROOT.glob(pattern))]:
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start("code"))
            found.append(Example(name, line, block["how"] or "", block["language"], block["code"]))
    return found


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """Return the broker that the examples use, with the topics they assume."""
    folder = tmp_path_factory.mktemp("readme")
    settings = {"log.segment_age_ms_max": 300, "server.store": f"file://{folder}/store"}
    with OwnBroker(f"{folder}/data", f"{folder}/log", settings=settings) as broker:
        with ister.connect(broker.endpoint) as client:
            for topic in ("orders", "orders/eu"):
                client.create_topic(topic)
                client.create_subscription(topic, "billing", start="earliest", max_deliveries=1)
                with client.producer(topic) as producer:
                    producer.send_batch([b"%d" % number for number in range(1001)]).result(10)
            with client.consumer("orders", "billing") as consumer:
                message = consumer.receive(10)
                assert message is not None
                consumer.nack(message, reason="no flour")
                consumer.flush(10)
            while client.topic("orders")["uploaded_end"] < 1001:
                time.sleep(0.05)
        yield broker


def environment(broker: OwnBroker) -> dict[str, str]:
    """Return the environment for an example."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "ISTER_ENDPOINT": broker.endpoint, "PATH": path, "PYTHONUNBUFFERED": "1"}


def prepared(code: str, broker: OwnBroker) -> str:
    """Return an example with the test's broker and store in place of the reader's."""
    store = "file://" + str(Path(broker.log).parent / "store")
    return code.replace(ENDPOINT, broker.endpoint).replace(STORE, store)


def test_every_example_is_run_or_says_why_not() -> None:
    """Without such a comment, a block that stops working would not be noticed."""
    assert [str(each) for each in examples() if not each.how.startswith(("run: ", "not run: "))] == []


@pytest.mark.parametrize(
    "example", [each for each in examples() if each.how.startswith("run: commands")], ids=str
)
def test_the_commands_work_twice(example: Example, broker: OwnBroker, tmp_path: Path) -> None:
    """Line by line, as a reader types them, except lines that run for ever."""
    for _ in range(2):
        for line in prepared(example.code, broker).splitlines():
            if not line.strip() or "--follow" in line:
                continue
            type_in(line, broker, tmp_path, timeout_s=50)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "example", [each for each in examples() if each.how.startswith("run: checkout")], ids=str
)
def test_the_commands_for_a_checkout_work(example: Example, broker: OwnBroker) -> None:
    """Line by line, in the checkout."""
    for line in example.code.splitlines():
        type_in(line, broker, ROOT, timeout_s=300)


def type_in(line: str, broker: OwnBroker, folder: Path, *, timeout_s: float) -> None:
    """Run a line in a shell; it must succeed."""
    done = subprocess.run(
        ["bash", "-c", line],
        env=environment(broker),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def running(code: str, broker: OwnBroker) -> subprocess.Popen[str]:
    """Start a program of a document, with a client if it assumes one."""
    preamble = "" if re.search(r"^import ister$|^import signal", code, re.MULTILINE) else CLIENT
    if "ister.store" in code:
        preamble = ""
    return subprocess.Popen(
        [sys.executable, "-c", prepared(preamble + code, broker)],
        env=environment(broker),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(program: subprocess.Popen[str]) -> None:
    """End a program that runs for ever, with Ctrl-C."""
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=30)
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors


PROGRAMS = [each for each in examples() if each.how.startswith("run: program")]


@pytest.mark.parametrize("example", [each for each in PROGRAMS if "until" not in each.how], ids=str)
def test_the_programs_work_twice(example: Example, broker: OwnBroker) -> None:
    """As they stand, with a client if they assume one; requests are answered by the server that README shows next."""
    beside = None
    if "with the next one" in example.how:
        beside = running(
            next(
                each.code
                for each in PROGRAMS
                if each.document == example.document and each.line > example.line
            ),
            broker,
        )
        with ister.connect(broker.endpoint) as client:
            client.create_topic("prices", dispatch="non-reliable", exist_ok=True)
            deadline = time.monotonic() + 30
            while (
                not client.subscriptions("prices")
                or not client.subscription("prices", "servers")["consumers"]
            ):
                assert beside.poll() is None, beside.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
    for _ in range(2):
        program = running(example.code, broker)
        out, errors = program.communicate(timeout=50)
        assert (program.returncode, errors) == (0, ""), errors
        assert out or "print(" not in example.code or "letters" in example.code or "store" in example.code
    if beside is not None:
        stop(beside)


@pytest.mark.parametrize("example", [each for each in PROGRAMS if "until" in each.how], ids=str)
def test_the_programs_that_go_on_for_ever_can_be_stopped(example: Example, broker: OwnBroker) -> None:
    """They work, and Ctrl-C ends them."""
    with ister.connect(broker.endpoint) as client:
        client.create_topic("prices", dispatch="non-reliable", exist_ok=True)
        for topic in ("orders/eu", "prices"):
            if f'"{topic.partition("/")[0]}' in example.code:
                break
        program = running(example.code, broker)
        deadline = time.monotonic() + 30
        while not any(each.get("consumers") for each in shown(client, topic)):
            assert program.poll() is None, program.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stop(program)


def shown(client: ister.Client, topic: str) -> list[dict[str, object]]:
    """Return the subscriptions of a topic."""
    names = [each["subscription"] for each in client.subscriptions(topic)]
    return [dict(client.subscription(topic, name)) for name in names]


@pytest.mark.timeout(300)
def test_it_is_installed_as_it_says(tmp_path: Path) -> None:
    """In an environment made by the commands; the broker that they start is used and stopped."""
    (example,) = [each for each in examples() if each.how == "run: install"]
    lines = [line.partition("#")[0].strip() for line in example.code.splitlines()]
    *install, serve = lines
    assert install == [
        "python3 -m venv ister-env",
        ". ister-env/bin/activate",
        "pip install '.[broker]'",
    ]
    endpoint = f"tcp://127.0.0.1:{free_ports(1)}"
    script = [
        f"{shlex.quote(sys.executable)} -m venv ister-env",
        install[1],
        f"pip install --quiet --disable-pip-version-check {shlex.quote(f'{ROOT}[broker]')}",
        "ister --version",
        f"{serve} --listen {endpoint} --workers 1 --json & sleep 1",
        f"for try in $(seq 60); do ister status -e {endpoint} --timeout 1 >/dev/null 2>&1 && break; done",
        "kill %1 && wait %1",
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        ["bash", "-ec", "set -m\n" + "\n".join(script)],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if "No matching distribution" in done.stderr or "Temporary failure in name resolution" in done.stderr:
        pytest.skip("no package index can be reached from here: " + done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data" / "catalogue.sqlite").exists()
