"""Batches whose frames are large, through a real broker: they are read and passed on as views of ZeroMQ's memory."""

from __future__ import annotations

import os
from typing import Any

import pytest

import ister
from ister.ownbroker import OwnBroker
from ister.sockets import UNCOPIED_BYTES_MIN

COUNT = 10
PAYLOADS = [os.urandom(UNCOPIED_BYTES_MIN // 2 + number) for number in range(COUNT)]
KEYS = [b"%d" % (number % 5) * 4000 for number in range(COUNT)]
ATTRIBUTES = [{"x": f"{number:05}" * 900} for number in range(COUNT)]
TYPES: dict[str, tuple[Any, ...]] = {
    "reliable": ("exclusive", "shared", "key-shared"),
    "non-reliable": ("exclusive", "shared", "shared"),
}


@pytest.mark.parametrize("strategy", TYPES)
def test_large_batches_arrive_whole_whatever_they_go_through(broker: OwnBroker, strategy: Any) -> None:
    """The log, the mail to another worker, cutting for a consumer, and several subscriptions at once."""
    with ister.connect(broker.endpoint, timeout=30) as client:
        for number in range(4):  # some have subscriptions in another worker
            topic = f"large/{strategy}/{number}"
            client.create_topic(topic, dispatch=strategy)
            consumers = [
                client.consumer(topic, f"s{place}", type=kind, start="earliest")
                for place, kind in enumerate(TYPES[strategy])
            ]
            with client.producer(topic) as producer:
                producer.send_batch(PAYLOADS, keys=KEYS, attributes=ATTRIBUTES).result(30)
                producer.send_batch(PAYLOADS).result(30)
                producer.send(PAYLOADS[0] * 5, key=b"alone").result(30)
            for consumer in consumers:
                found: dict[int, tuple[bytes, bytes | None, dict[str, str]]] = {}
                while len(found) < 2 * COUNT + 1:
                    message = consumer.receive(30)
                    assert message is not None
                    found[message.offset] = (message.payload, message.key, message.attributes)
                    consumer.ack(message)
                consumer.close()
                rows = [found[offset] for offset in range(2 * COUNT + 1)]
                assert rows[:COUNT] == list(zip(PAYLOADS, KEYS, ATTRIBUTES, strict=True))
                assert rows[COUNT:] == [
                    *((payload, None, {}) for payload in PAYLOADS),
                    (PAYLOADS[0] * 5, b"alone", {}),
                ]
