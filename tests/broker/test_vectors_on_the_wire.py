"""The recorded conversations also hold with a real broker over TCP, except for what varies from run to run.

One broker serves them one after the other; its topics are deleted in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ister.ownbroker import OwnBroker
from tests.raw_client import RawClient
from tests.vectors.notation import KEY_NAMES, VARIES, described

pytestmark = [pytest.mark.process, pytest.mark.slow]

FOLDER = Path(__file__).parents[1] / "vectors"
ELSEWHERE = {
    "moved": "needs two workers",
    "sizes": "needs other limits",
    "session-forgotten": "kills its worker",
    "silence-ends-a-session": "takes a session's timeout",
    "resume-and-resend": "loses its connection at one moment and no other",
    "handles": "which of two answers comes depends on who is faster",
    "publish-before-opened": "which answer comes depends on who is faster",
}
NAMES = sorted(
    path.stem.removeprefix("transcript-")
    for path in FOLDER.glob("transcript-*.json")
    if path.stem.removeprefix("transcript-") not in ELSEWHERE
)
VARYING_KEYS = {str(key) for key, name in KEY_NAMES.items() if name in VARIES}
VARYING_RESULTS = {"incarnation", "created_ms", "endpoint", "instance", "version"}


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """Return a broker of one worker with default settings."""
    folder = tmp_path_factory.mktemp("vectors")
    with OwnBroker(f"{folder}/data", f"{folder}/log", workers=1) as broker:
        yield broker


@pytest.fixture
def broker(own_broker: OwnBroker) -> Iterator[OwnBroker]:
    """Return the broker, and delete its topics afterwards."""
    yield own_broker
    client = RawClient(own_broker.endpoint)
    for topic in client.request("topic.list")["topics"]:
        client.request("topic.delete", topic=topic["topic"])
    client.close()


def essence(step: dict[str, Any]) -> str:
    """Return the part of a message that is the same in every run."""
    header = {key: value for key, value in step["header"].items() if key not in VARYING_KEYS}
    result = step.get("result")
    if isinstance(result, dict):
        result = {key: value for key, value in result.items() if key not in VARYING_RESULTS}
    return json.dumps([step["frame"], header, step.get("messages"), result], sort_keys=True)


class Run:
    """One conversation with a real broker."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.clients: dict[int, RawClient] = {}
        self.secrets: dict[bytes, bytes] = {}  # the recorded one, and that of this run

    def do(self, step: dict[str, Any]) -> None:
        """Take a step that is not an answer."""
        what, number = step.get("do"), step.get("connection", 0)
        if what == "connect":
            self.clients[number] = RawClient(self.endpoint, hello=False)
        elif what == "lose the connection and connect again":
            self.clients[number].reconnect()
        elif what == "hear nothing":
            assert self.clients[number].take(min(step["seconds"], 0.2)) is None
        elif "from" in step:
            header, *body = [bytes.fromhex(part) for part in step["frames"]]
            for recorded, mine in self.secrets.items():
                header = header.replace(recorded, mine)
            self.clients[number].put([header, *body])

    def hear(self, steps: list[dict[str, Any]]) -> None:
        """Read the frames of these steps, in whatever order frames of different handles come."""
        client = self.clients[steps[0]["connection"]]
        heard = []
        for step in steps:
            parts = client.take(20.0)
            assert parts is not None, step
            heard.append(described(parts))
            if step["frame"] == heard[-1]["frame"] == "WELCOME":
                recorded, mine = (each["header"]["20"]["bytes"] for each in (step, heard[-1]))
                self.secrets[bytes.fromhex(recorded)] = bytes.fromhex(mine)
        assert sorted(map(essence, heard)) == sorted(map(essence, steps))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_broker_holds_a_transcript(broker: OwnBroker, name: str) -> None:
    """The recorded frames of its clients get the recorded answers."""
    steps = json.loads((FOLDER / f"transcript-{name}.json").read_text(encoding="utf-8"))["steps"]
    run = Run(broker.endpoint)
    at = 0
    while at < len(steps):
        end = at
        while (
            end < len(steps)
            and steps[end].get("from") == "broker"
            and steps[end]["connection"] == steps[at]["connection"]
        ):
            end += 1
        if end > at:
            run.hear(steps[at:end])
        else:
            run.do(steps[at])
            end = at + 1
        at = end
    for client in run.clients.values():
        client.close()
