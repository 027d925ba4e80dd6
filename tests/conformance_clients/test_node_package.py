"""The Node.js client as a package: linted, tested, and installed where its README's programs are run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

import ister
from ister import testing
from ister.ownbroker import OwnBroker
from tests.conformance_clients import drivers, packages

FOLDER = drivers.CLIENTS / "node"
WHY_NOT = drivers.named("node").why_not()
PATIENCE_S = 240
PROGRAMS = packages.programs(FOLDER, "js")
TSC = FOLDER / "node_modules" / "typescript" / "bin" / "tsc"

pytestmark = packages.marks(PATIENCE_S, WHY_NOT)
run = partial(packages.run, patience_s=PATIENCE_S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the client and install it into an empty project."""
    folder = tmp_path_factory.mktemp("node-project")
    [packed] = json.loads(run(FOLDER, "npm", "pack", "--json", "--silent", "--pack-destination", folder))
    names = {each["path"] for each in packed["files"]}
    assert {"package.json", "LICENSE", "README.md", "dist/index.js", "dist/index.d.ts"} <= names
    assert all(name.startswith("dist/") or "/" not in name for name in names), names
    (folder / "package.json").write_text('{"name": "empty", "private": true, "type": "module"}')
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(
        [*install, packed["filename"]], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        unreachable = re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", done.stderr)
        if unreachable:
            pytest.skip(f"the package's dependencies cannot be fetched: {unreachable.group()}")
        raise AssertionError(done.stdout + done.stderr)
    return folder


def test_it_is_formatted_and_linted() -> None:
    """The formatter, the linter and the compiler have nothing to say."""
    run(FOLDER, "npm", "run", "--silent", "check")


def test_its_own_tests_pass() -> None:
    """The protocol without a socket, the vectors, and what its libraries do that nobody would expect."""
    tests = sorted((FOLDER / "build" / "test").glob("*.test.js"))
    assert len(tests) >= 6
    run(FOLDER, "node", "--test", *tests)


def test_its_lock_file_names_no_host() -> None:
    """Packages are fetched from whatever registry a machine uses; what they must be is said by their hashes."""
    lock = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert [name for name, each in packages.items() if "resolved" in each] == []
    assert [name for name, each in packages.items() if "integrity" not in each] == []


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_of_the_readme_runs_in_an_empty_project(
    number: int, memory_broker: testing.Broker, project: Path
) -> None:
    """As the README says: install the packed file, and run; and run again, where the topics exist."""
    assert len(PROGRAMS) == 5
    printed, _, program = PROGRAMS[number]
    (project / "main.js").write_text(program, encoding="utf-8")
    assert run(project, "node", "main.js", memory_broker.endpoint).strip() == printed
    run(project, "node", "main.js", memory_broker.endpoint)


PATTERN = """
import { connect } from "ister";
const client = await connect(process.argv[2]);
const told = [];
await client.createTopic("a/1");
await client.createTopic("a/1.dlq");
await client.createTopic("b/1");
const consumer = await client.patternConsumer("a/*", "all", { start: "earliest" });
const send = async (topic, payload) => await (await client.producer(topic)).send(payload);
await send("a/1", "one");
await send("b/1", "never");
const [one] = await consumer.receiveBatch(10);
told.push(one.text());
await client.createTopic("a/2");
await send("a/2", "two");
const two = await consumer.receive();
told.push(two.text());
consumer.nack(two, { delayMs: 0 });
const again = await consumer.receive();
told.push(`${again.text()} ${again.attempt}`);
consumer.ack([one, again]);
await consumer.flush();
await client.deleteTopic("a/1");
while (consumer.topics.join() !== "a/2") await new Promise((resolve) => setTimeout(resolve, 20));
consumer.ack(one); // of a topic that is gone
await client.createTopic("a/1");
await send("a/1", "anew");
told.push((await consumer.receive()).text());
const loop = (async () => { for await (const message of consumer) told.push(message.text()); })();
await consumer.close();
await loop;
const next = await client.patternConsumer("a/*", "all");
told.push((await next.receive()).text()); // what was not acknowledged
await client.close();
console.log(told.join(", "));
"""


def test_the_topics_of_a_pattern_are_followed(project: Path, tmp_path: Path) -> None:
    """Those that come, those that go, and one of a name again; dead letters are not among them."""
    (project / "pattern.js").write_text(PATTERN, encoding="utf-8")
    with OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=2) as broker:
        printed = run(project, "node", "pattern.js", broker.endpoint)
    assert printed.strip() == "one, two, two 2, anew, anew"


FALLING = """
import { connect } from "ister";
const client = await connect(process.argv[2]);
await client.createTopic("orders");
const options = { max_deliveries: 1, dead_letter_topic: "dead" };
const consumer = await client.consumer("orders", "billing", { type: "exclusive", options });
const producer = await client.producer("orders");
await producer.sendBatch(["one", "two"]);
for await (const message of consumer) {
  throw new TypeError(`cannot read ${message.text()}`);
}
"""


def test_a_program_that_ends_by_an_exception_has_failed_over_what_it_had_in_hand(
    project: Path, tmp_path: Path
) -> None:
    """The broker is told why, the place is free at once, and the message it never saw has not failed."""
    (project / "falling.js").write_text(FALLING, encoding="utf-8")
    with (
        OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=1) as broker,
        ister.connect(broker.endpoint) as client,
    ):
        command = ["node", "falling.js", broker.endpoint]
        fallen = subprocess.run(
            command, cwd=project, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert fallen.returncode == 1
        assert "TypeError: cannot read one" in fallen.stderr
        consumer = client.consumer("orders", "billing", type="exclusive")
        left = consumer.receive(timeout=30)
        assert left is not None
        assert (left.payload, left.attempt) == (b"two", 2)
        letter = client.consumer("dead", "look", start="earliest").receive(timeout=30)
        assert letter is not None
        assert (letter.payload, letter.attributes["ister.reason"]) == (b"one", "TypeError: cannot read one")


LEAVING = """
import { connect } from "ister";
const client = await connect(process.argv[2]);
await client.createTopic("orders");
const consumer = await client.consumer("orders", "billing", { type: "exclusive", start: "earliest" });
await (await client.producer("orders")).sendBatch(["one", "two"]);
consumer.ack(await consumer.receive());
process.exit(0);
"""


def test_a_program_that_exits_says_goodbye(project: Path, tmp_path: Path) -> None:
    """Its acknowledgments are sent, and its Exclusive place is free at once, though it closed nothing."""
    (project / "leaving.js").write_text(LEAVING, encoding="utf-8")
    with (
        OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=1) as broker,
        ister.connect(broker.endpoint) as client,
    ):
        run(project, "node", "leaving.js", broker.endpoint)
        left = client.consumer("orders", "billing", type="exclusive").receive(timeout=30)
        assert left is not None
        assert left.payload == b"two"


def test_its_types_are_what_the_readme_says(project: Path) -> None:
    """The README's programs are right by the types of the packed file, as an editor would see them."""
    if not TSC.exists():
        pytest.skip("the TypeScript compiler is not installed in clients/node")
    for number, (_, _, program) in enumerate(PROGRAMS):
        typed = program.replace("process.argv[2]", '"tcp://127.0.0.1:5555"')
        (project / f"typed{number}.ts").write_text(typed, encoding="utf-8")
    shutil.copytree(
        FOLDER / "node_modules" / "@types", project / "node_modules" / "@types", dirs_exist_ok=True
    )
    if (FOLDER / "node_modules" / "undici-types").exists():
        types = "undici-types"
        shutil.copytree(FOLDER / "node_modules" / types, project / "node_modules" / types, dirs_exist_ok=True)
    options = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--types", "node"]
    run(project, "node", TSC, *options, *(f"typed{number}.ts" for number in range(len(PROGRAMS))))
