"""Leaving an endpoint that does not come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ister

if TYPE_CHECKING:
    import pytest

    from ister.connection import Connection

GONE = "tcp://127.0.0.1:1"


def test_nothing_moves_to_a_connection_that_is_being_left(
    client: ister.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking one producer home may read the answer that sends another to the same endpoint; it must not be closed."""
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
