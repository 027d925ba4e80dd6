"""The counts of a broker of real processes are what its clients send and receive."""

from __future__ import annotations

from typing import Literal

import pytest

import ister
from ister.ownbroker import OwnBroker

pytestmark = pytest.mark.process


@pytest.mark.parametrize("strategy", ["reliable", "non-reliable"])
def test_bytes_are_counted_once(broker: OwnBroker, strategy: Literal["reliable", "non-reliable"]) -> None:
    """Bytes in are payloads, bytes out are payloads with lengths of four bytes: of ten messages, not of twenty."""

    def counts(client: ister.Client) -> tuple[int, int]:
        processes = client.status()["processes"]
        return sum(each.get("bytes_in", 0) for each in processes), sum(
            each.get("bytes_out", 0) for each in processes
        )

    with ister.connect(broker.endpoint) as client:
        client.create_topic(f"counted-{strategy}", dispatch=strategy)
        with (
            client.consumer(f"counted-{strategy}", "s", start="earliest") as consumer,
            client.producer(f"counted-{strategy}") as producer,
        ):
            before = counts(client)
            producer.send_batch([bytes(1000)] * 10).result(10)
            received = 0
            while received < 10:
                batch = consumer.receive_batch(timeout=40)
                assert batch is not None
                received += len(batch.payloads)
            after = counts(client)
    assert after[0] - before[0] == 10_000
    assert 10_040 <= after[1] - before[1] < 15_000  # the answers about the status are included
