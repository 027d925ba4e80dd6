"""The matrix: every client publishes, and every client reads what each other one has published, byte for byte.

One broker, and a topic for each client that publishes. Features that a client lacks are left out of the comparison, and
listed below the table that is printed at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import ister
from ister.ownbroker import OwnBroker
from tests.conformance_clients import matrix
from tests.conformance_clients.conftest import CELLS, LACKS, ONLY, kinds, parameter
from tests.conformance_clients.drivers import AnsweredError, Kind, named
from tests.conformance_clients.player import Player, Shown, payloads_of

pytestmark = pytest.mark.process

KINDS = list({kind.name: kind for kind in (*([named("python")] if ONLY else []), *kinds())}.values())


class Stage:
    """What each client has published, as the Python client reads it; each publishes once."""

    def __init__(self, broker: OwnBroker) -> None:
        self.broker = broker
        self.cells: dict[tuple[str, str], str] = {}
        self.lacks: dict[str, list[str]] = {}
        self.started: list[Player] = []
        self._players: dict[str, Player] = {}
        self._published: dict[str, list[Shown]] = {}

    def player(self, kind: Kind) -> Player:
        """Return the connected player of a language."""
        if kind.name not in self._players:
            player = self._players[kind.name] = Player(kind, self.started)
            player.connect(self.broker.endpoint)
            self.lacks[kind.name] = matrix.left_out(player.driver.capabilities)
        return self._players[kind.name]

    def topic(self, kind: Kind) -> str:
        """Return the topic of a language, whose name has every kind of character that names may have."""
        return f"matrix/{kind.name}/A-z_0.9"

    def published(self, kind: Kind) -> list[Shown]:
        """Return what a language has published, as it is stored."""
        if kind.name not in self._published:
            self._publish(self.player(kind), self.topic(kind))
            self._published[kind.name] = self._stored(self.topic(kind))
        return self._published[kind.name]

    def _publish(self, player: Player, topic: str) -> None:
        player.topic(topic)
        producer = player.producer(topic)
        offset = 0
        for group in matrix.GROUPS:
            messages = [matrix.as_sent(message, player.driver.capabilities) for message in group]
            if player.can("batch") and len(group) > 1:
                told = [player.receipt(player.publish_batch(producer, messages))]
            else:
                told = [
                    player.receipt(player.publish(producer, bytes.fromhex(message.pop("payload")), **message))
                    for message in messages
                ]
            assert told[0]["offset"] == offset
            offset += len(group)

    def _stored(self, topic: str) -> list[Shown]:
        stored: list[Shown] = []
        with ister.connect(self.broker.endpoint) as client, client.reader(topic) as reader:
            while len(stored) < len(matrix.MESSAGES):
                message = reader.receive(20)
                assert message is not None, f"{len(stored)} messages are stored"
                stored.append(
                    {
                        "offset": message.offset,
                        "payload": message.payload.hex(),
                        "key": None if message.key is None else message.key.hex(),
                        "attributes": message.attributes,
                        "deliver_at_ms": message.deliver_at,
                        "timestamp_ms": message.timestamp,
                        "attempt": 1,
                    }
                )
        return stored


@pytest.fixture(scope="module")
def stage(broker: OwnBroker, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Return the stage shared by all."""
    made = Stage(broker)
    request.config.stash[CELLS], request.config.stash[LACKS] = made.cells, made.lacks
    yield made
    for player in made.started:
        player.driver.kill()


@pytest.fixture(params=[parameter(kind) for kind in KINDS])
def publisher(request: pytest.FixtureRequest) -> Kind:
    """Return who publishes."""
    kind: Kind = request.param
    return kind


@pytest.fixture(params=[parameter(kind) for kind in KINDS])
def consumer(request: pytest.FixtureRequest) -> Kind:
    """Return who consumes."""
    kind: Kind = request.param
    return kind


def ways(player: Player, topic: str, subscription: str) -> Iterator[tuple[str, list[Shown]]]:
    """Read a topic in each way that a client has."""
    wanted = len(matrix.MESSAGES)
    yield "one by one", player.receive(player.consumer(topic, subscription, "exclusive"), wanted)
    if player.can("reader"):
        yield "as a reader", player.receive(player.reader(topic), wanted)
    if player.can("batch-receive"):
        found: list[Shown] = []
        name = player.consumer(topic, subscription + "-together", "shared")
        while len(found) < wanted and (more := player.receive(name, wanted, batch=True)):
            found += more
        yield "together", found


def differences(came: list[Shown], stored: list[Shown], player: Player) -> list[str]:
    """Return the differences from what is stored."""
    if [each["offset"] for each in came] != [each["offset"] for each in stored]:
        return [f"{len(came)} messages came, at other offsets than the {len(stored)} that are stored"]
    told = (
        (one["offset"], matrix.difference(one, other, player.driver.capabilities))
        for one, other in zip(stored, came, strict=True)
    )
    return [f"message {offset}: {why}" for offset, why in told if why is not None][:10]


def test_what_one_publishes_another_reads(publisher: Kind, consumer: Kind, stage: Stage) -> None:
    """Payloads, keys, attributes, times and offsets are the same, whichever way they are read."""
    cell = (publisher.name, consumer.name)
    stage.cells[cell] = "FAILED"
    stored, sending = stage.published(publisher), stage.player(publisher)
    expected: list[dict[str, Any]] = [
        matrix.as_sent(message, sending.driver.capabilities) for message in matrix.MESSAGES
    ]
    as_published = {"keys", "attributes", "delivery-time"}
    wrong = [
        f"message {number} as stored: {why}"
        for number, (one, other) in enumerate(zip(expected, stored, strict=True))
        if (why := matrix.difference(one, other, as_published)) is not None
    ]
    assert wrong[:10] == []
    reading = stage.player(consumer)
    for way, came in ways(reading, stage.topic(publisher), f"read-by-{consumer.name}"):
        assert (way, differences(came, stored, reading)) == (way, [])
    stage.cells[cell] = "ok"


def test_a_client_speaks_of_names_as_the_broker_does(consumer: Kind, stage: Stage) -> None:
    """The longest name is accepted; letters of other alphabets are refused by code, and nothing else happens."""
    player = stage.player(consumer)
    longest = f"{consumer.name}/" + "n" * (199 - len(consumer.name))
    player.topic(longest)
    assert player.stored(longest, b"there") == [0]
    for name in ("größe", "世界", "🌍", "with space", "a//b", "", "x" * 201):
        refused = player.refused(partial(player.topic, name))
        assert (refused.code, refused.action) == ("invalid-name", "fix"), name
    assert payloads_of(player.receive(player.consumer(longest, "all", "shared"))) == [b"there"]
    with pytest.raises(AnsweredError):
        player.consumer(longest, "größe", "shared", timeout_ms=None)
