"""The frames on a real broker's sockets match `transport/protocol.cddl`."""

from __future__ import annotations

from collections.abc import Sequence

import cbor2
import pytest

from ister.ownbroker import OwnBroker
from ister.wire import Key, Type
from tests.ister.test_cddl import NAMES, schema
from tests.raw_client import Frame, RawClient, follow

pytestmark = pytest.mark.process


class CheckedClient(RawClient):
    """A client that checks the header of every frame, sent or received, against the CDDL."""

    def __init__(self, endpoint: str) -> None:
        self.seen: set[int] = set()
        super().__init__(endpoint)

    def _check(self, data: bytes) -> None:
        kind = cbor2.loads(data)[Key.TYPE]
        schema(NAMES[kind]).validate_cbor(data)
        self.seen.add(kind)

    def put(self, parts: Sequence[bytes]) -> None:
        self._check(parts[0])
        super().put(parts)

    def take(self, timeout_s: float) -> list[bytes] | None:
        parts = super().take(timeout_s)
        if parts is not None:
            self._check(parts[0])
        return parts


def there(broker: OwnBroker, kind: str, topic: str) -> CheckedClient:
    """Return a client of the worker on which a topic's producer or consumer can be opened (tried as handle 9)."""

    def open_it(client: RawClient) -> Frame:
        if kind == "producer":
            return client.open_producer(9, topic, 1)
        return client.open_consumer(9, topic, "s", "failover")

    found, _ = follow(broker.endpoint, open_it)
    found.close_handle(9)
    found.close()
    return CheckedClient(found.endpoint)


def test_every_frame_type_goes_over_the_wire_as_the_cddl_says(broker: OwnBroker) -> None:
    """The whole life of a topic against real processes: each header is valid, and every frame type occurs."""
    first = CheckedClient(broker.endpoint)
    topics = [f"cddl-{number}" for number in range(20)]
    for topic in topics:  # some of them run on another worker
        first.request("topic.create", topic=topic, dispatch="reliable")
        first.open_producer(1, topic, 77)
        if Type.MOVED in first.seen:
            break
    producer, consumer = there(broker, "producer", topic), there(broker, "consumer", topic)
    producer.open_producer(1, topic, 77)
    producer.publish_keyed(1, 0, (b"k", b"one"), (b"", b"two"), attributes=[cbor2.dumps({"a": "b"}), b""])
    producer.receipt(1)
    consumer.open_consumer(1, topic, "s", "failover", sparse=True, tells=True)
    consumer.expect(Type.EVENT)
    consumer.deliveries(1, 2)
    consumer.taken(1, 2, alone=True)
    consumer.extend(1, (0, 2))
    consumer.nack(1, (1, 2), delay_ms=0, reason="again")
    consumer.deliveries(1, 1)
    consumer.ack(1, (0, 1))
    consumer.ack_until(1, 1)
    consumer.say({Key.TYPE: Type.PING, Key.REF: 1 << 40})
    consumer.expect(Type.PONG)
    assert consumer.ask("topic.show", topic="nowhere").code == "unknown-topic"
    consumer.close_handle(1)
    consumer.say({Key.TYPE: Type.BYE})
    seen = first.seen | producer.seen | consumer.seen
    assert {NAMES[kind] for kind in NAMES.keys() - seen} == set()
