"""A broker whose catalogue was lost restores everything from its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

import ister
from ister.ownbroker import BrokerNotUpError, OwnBroker

pytestmark = pytest.mark.process


def lose(data: Path) -> None:
    """Delete the catalogue."""
    for path in data.glob("catalogue.sqlite*"):
        path.unlink()


def test_a_consumer_that_opens_with_latest_finds_its_backlog(tmp_path: Path) -> None:
    """The subscription is the old one, with its settings; nothing is reported as lost."""
    data, log = tmp_path / "data", str(tmp_path / "log")
    with OwnBroker(str(data), log) as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders", retention_ms=86_400_000)
        client.create_subscription("orders", "billing", type="key-shared", start="earliest", max_deliveries=9)
        with client.producer("orders") as producer:
            for number in range(20):
                producer.send(b"%d" % number)
        with client.consumer("orders", subscription="billing", type="key-shared") as consumer:
            for _ in range(5):
                message = consumer.receive(10)
                assert message is not None
                consumer.ack(message)
            consumer.flush(10)
    lose(data)
    with OwnBroker(str(data), log) as broker, ister.connect(broker.endpoint) as client:
        assert not any("lost" in line for line in broker.ready["restored"])
        assert any("orders" in line for line in broker.ready["restored"])
        assert client.topic("orders")["settings"] == {"retention_ms": 86_400_000}
        with client.consumer("orders", subscription="billing", type="key-shared", start="latest") as consumer:
            found = [message.payload for _ in range(15) if (message := consumer.receive(10)) is not None]
        assert found == [b"%d" % number for number in range(5, 20)]
        assert client.subscription("orders", "billing")["settings"] == {"max_deliveries": 9}


def test_a_broker_does_not_begin_anew_over_what_nothing_describes(tmp_path: Path) -> None:
    """It says what to do."""
    data, log = tmp_path / "data", str(tmp_path / "log")
    with OwnBroker(str(data), log, workers=1) as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.producer("orders") as producer:
            producer.send(b"0")
    lose(data)
    for path in data.glob("topics/*/about"):
        path.unlink()
    with pytest.raises(BrokerNotUpError, match="--rebuild-catalogue"), OwnBroker(str(data), log, workers=1):
        pass
