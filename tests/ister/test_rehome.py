"""Tests of leaving an endpoint that does not come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ister
from ister import testing

if TYPE_CHECKING:
    from ister.connection import Connection

GONE = "tcp://127.0.0.1:1"


def test_nothing_moves_to_a_connection_that_is_being_left(
    client: ister.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one producer moves home, an answer may send another to the endpoint being left; it must not be closed."""
    network = client.network
    with network.lock:
        left = network._connection([GONE], first=False)
    first, second = (network_producer(client), network_producer(client))
    found: list[Connection] = []

    def moved_meanwhile() -> None:
        found.append(network._connection([GONE], first=False))

    with network.lock:
        for producer in (first, second):
            network._take(producer.publication, network.home, left)
        monkeypatch.setattr(network.home, "touch", moved_meanwhile)
        network.rehome(left)
        monkeypatch.undo()
    assert left.closed
    assert found
    assert left not in found
    assert all(producer.publication.error is None for producer in (first, second))


def network_producer(client: ister.Client) -> ister.Producer:
    """Return a producer of a topic that is there."""
    client.create_topic("orders", exist_ok=True)
    return client.producer("orders")


@pytest.mark.requirement("7.4-8")
def test_a_worker_that_comes_back_after_all_resumes_its_session() -> None:
    """The session holds the place of an Exclusive consumer: a new session would get `busy`."""
    with testing.Broker(heartbeat_ms=30_000) as there:
        with testing.Broker(heartbeat_ms=30_000, moved={"orders": there.endpoint}) as first:
            with ister.connect(there.endpoint) as maker:
                maker.create_topic("orders")
            with ister.connect(first.endpoint) as client:
                consumer = client.consumer("orders", subscription="s", start="earliest")
                network = client.network
                with network.lock:
                    connection = network.connection_of(consumer.attachment)
                    connection.interrupted(RuntimeError("the test"))
                    network.rehome(connection)
                with ister.connect(there.endpoint) as maker, maker.producer("orders") as producer:
                    producer.send(b"x").result(5)
                message = consumer.receive(5)
                assert message is not None
                assert message.payload == b"x"
                consumer.close()
