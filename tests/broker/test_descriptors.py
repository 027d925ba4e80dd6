"""A broker with few file descriptors: topics need none, and a client that uses up all of them shuts out no other."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ister
from ister.errors import IsterError
from ister.ownbroker import OwnBroker

LIMIT = 256
PATIENCE_S = 60.0


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnBroker]:
    """Return a broker of one worker whose processes may have 256 descriptors each."""
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -n {LIMIT}\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(limited))
        broker = OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=1)
        broker.start()
    yield broker
    broker.stop()


def descriptors(client: ister.Client) -> int:
    """Return how many descriptors the worker has open."""
    [worker] = [each for each in client.status()["processes"] if each["node"] == "worker-0"]
    assert worker["descriptors_max"] == LIMIT
    return int(worker["descriptors"])


def goes_on(client: ister.Client, topic: str) -> None:
    """Check that a message is stored, delivered and acknowledged."""
    with client.producer(topic) as producer:
        offset = producer.send(b"x").result(timeout=PATIENCE_S).offset
    with client.consumer(topic, subscription="s", type="shared", start="earliest") as consumer:
        message = consumer.receive(timeout=PATIENCE_S)
        assert message is not None
        assert message.offset == offset
        consumer.ack(message)


def test_topics_and_subscriptions_cost_no_descriptors(broker: OwnBroker) -> None:
    """Twice as many topics as descriptors, each with a message and a cursor, and the first one still works."""
    with ister.connect(broker.endpoint, timeout=PATIENCE_S) as client:
        for number in range(2 * LIMIT):
            client.create_topic(f"t-{number}")
            goes_on(client, f"t-{number}")
        assert descriptors(client) < LIMIT - 64
        goes_on(client, "t-0")
    assert "Too many open files" not in Path(broker.log).read_text()


def test_connections_without_a_session_shut_nobody_out(broker: OwnBroker) -> None:
    """Connections above the number of descriptors are closed; other clients continue, and new ones connect."""
    with ister.connect(broker.endpoint, timeout=PATIENCE_S) as client:
        client.create_topic("t")
        goes_on(client, "t")
        host, port = broker.endpoint.removeprefix("tcp://").rsplit(":", 1)
        nuisance = [socket.create_connection((host, int(port))) for _ in range(2 * LIMIT)]
        for _ in range(5):
            goes_on(client, "t")
        client.create_topic("new")
        goes_on(client, "new")
        comes(broker.endpoint)
        for each in nuisance:
            each.close()
        comes(broker.endpoint)


def test_sessions_are_as_many_as_there_are_descriptors_for(broker: OwnBroker) -> None:
    """One too many is refused, told to try again, and served once others have left; existing ones continue."""
    clients: list[ister.Client] = []
    with ister.connect(broker.endpoint, timeout=PATIENCE_S) as client:
        client.create_topic("t")
        try:
            with pytest.raises(IsterError) as refused:
                fill(broker.endpoint, clients)
            assert refused.value.action == "retry"
            assert 64 <= len(clients) < LIMIT
            goes_on(client, "t")
        finally:
            for each in clients:
                each.close()
        comes(broker.endpoint)


def fill(endpoint: str, clients: list[ister.Client]) -> None:
    """Connect again and again."""
    for _ in range(LIMIT):
        clients.append(ister.connect(endpoint, timeout=2))
        clients[-1].topic("t")


def comes(endpoint: str) -> None:
    """Check that a new client is served within a while."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with ister.connect(endpoint, timeout=5) as client:
                goes_on(client, "t")
                return
        except IsterError:
            assert time.monotonic() < until, "it is never served"
