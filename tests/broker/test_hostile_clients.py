"""Clients that send anything, flood, or never read: they get errors, and no other client is affected."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from random import Random

import cbor2
import pytest

from ister.ownbroker import OwnBroker
from ister.wire import Key, Type
from tests.broker.frames import mutated, valid_frame
from tests.raw_client import RawClient, batch, follow

pytestmark = pytest.mark.process

_names = itertools.count()


class Control:
    """A stream of messages between a correct producer and consumer, to be checked while others misbehave."""

    def __init__(self, broker: OwnBroker) -> None:
        self.topic = f"control-{next(_names)}"
        self.admin = RawClient(broker.endpoint)
        self.admin.request("topic.create", topic=self.topic)
        self.producer, _ = follow(broker.endpoint, lambda c: c.open_producer(1, self.topic, 7))
        self.consumer, _ = follow(
            broker.endpoint, lambda c: c.open_consumer(2, self.topic, "s", messages=1000)
        )
        self.next = 0

    def goes_on(self, within_s: float = 30.0) -> None:
        """See that a message gets through, both ways, on the same connections."""
        payload = b"%d" % self.next
        self.producer.publish(1, self.next, payload)
        assert self.producer.receipt(1, timeout_s=within_s) == [(self.next, self.next)]
        assert self.consumer.deliveries(2, 1, timeout_s=within_s) == [(self.next, payload)]
        self.consumer.ack(2, (self.next, self.next + 1))
        self.consumer.credit(2, 1)
        self.next += 1

    def pids(self) -> dict[str, int]:
        """Return the pid of every process."""
        return {each["node"]: each["pid"] for each in self.admin.request("status")["processes"]}


@pytest.fixture
def control(broker: OwnBroker) -> Iterator[Control]:
    """Return a stream that must continue, on the same processes from beginning to end."""
    control = Control(broker)
    before = control.pids()
    control.goes_on()
    yield control
    control.goes_on()
    assert control.pids() == before, "a process died of it"
    assert not control.producer.unread
    assert not control.consumer.unread


@pytest.mark.requirement("16-2")
def test_everything_wrong_with_one_client_is_answered_and_nobody_elses_business(
    broker: OwnBroker, control: Control
) -> None:
    """Unknown operations, wrong versions, broken CBOR, wrong lengths: one coded error each, and work goes on."""
    client = RawClient(broker.endpoint, hello=False)
    client.say({Key.TYPE: Type.HELLO, Key.VERSION: [99]})
    assert client.expect(Type.ERROR).code == "unsupported-version"
    client.say({Key.TYPE: Type.PING})
    assert client.expect(Type.ERROR).code == "hello-required"
    client.hello()
    for header, code in (
        (b"", "malformed"),
        (b"not cbor", "malformed"),
        (cbor2.dumps({Key.TYPE: Type.PING})[:-1], "malformed"),
        (b"\xbf\x00\x03\xff", "malformed"),
        (cbor2.dumps({Key.TYPE: Type.PING, 99: bytes(9000)}), "malformed"),
        (cbor2.dumps({Key.TYPE: 77}), "unknown-operation"),
        (cbor2.dumps({Key.TYPE: Type.DELIVER, Key.HANDLE: 1}), "malformed"),
        (cbor2.dumps({Key.TYPE: Type.PUBLISH, Key.HANDLE: 9, Key.SEQUENCE: 0}), "unknown-handle"),
        (cbor2.dumps({Key.TYPE: Type.CLOSE, Key.REF: 5, Key.HANDLE: 9}), "unknown-handle"),
    ):
        client.put([header])
        assert client.expect(Type.ERROR).code == code
    control.goes_on()
    assert client.ask("no.such.thing").code == "unknown-operation"
    assert client.open_producer(1, "no-such-topic", 7).code == "unknown-topic"
    assert client.open_consumer(1, "no-such-topic", "s").code == "unknown-topic"
    for name in ("", "a b", "../x", "/x", "x/", "a//b", "n\0", "\u00e9", "x" * 300):
        assert client.open_producer(1, name, 7).code == "invalid-name"
        assert client.open_consumer(1, control.topic, name or " ").code == "invalid-name"
        assert client.ask("topic.create", topic=name).code == "invalid-name"
    assert client.open_producer(1, control.topic, 0).code == "invalid-argument"
    assert client.open_consumer(1, control.topic, "s", "sometimes").code == "invalid-argument"
    control.goes_on()
    topic = f"wrong-{next(_names)}"
    client.request("topic.create", topic=topic)
    producer, _ = follow(broker.endpoint, lambda c: c.open_producer(1, topic, 7))
    for frames, code in (
        ([b"\1\0\0", b"a"], "lengths-mismatch"),
        ([b"\2\0\0\0", b"a"], "lengths-mismatch"),
        ([*batch([b"a"]), b"x"], "malformed"),
        (batch([bytes(200_001)]), "message-too-large"),
        (batch([bytes(150_000)] * 3), "batch-too-large"),
    ):
        producer.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0}, *frames)
        refused = producer.expect(Type.ERROR, handle=1)
        assert (refused.code, refused.header[Key.SEQUENCE]) == (code, 0)
    producer.publish(1, 0, b"")
    assert producer.receipt(1) == [(0, 0)]
    consumer, _ = follow(broker.endpoint, lambda c: c.open_consumer(2, topic, "s"))
    assert consumer.deliveries(2, 1) == [(0, b"")]
    consumer.say({Key.TYPE: Type.ACK, Key.HANDLE: 2, Key.RANGES: [0, 2], Key.REF: 1 << 40})
    assert consumer.expect(Type.ERROR, ref=1 << 40).code == "ack-unknown"
    client.request("topic.delete", topic=topic)
    assert producer.expect(Type.ERROR, handle=1).code == "topic-deleted"
    assert consumer.expect(Type.ERROR, handle=2).code == "topic-deleted"
    producer.publish(1, 1, b"too late")
    assert producer.expect(Type.ERROR, handle=1).code == "unknown-handle"


def test_bytes_that_are_no_zeromq_disturb_nobody(broker: OwnBroker, control: Control) -> None:
    """Web browsers, random bytes, connections that say nothing, and connections that stop half way."""
    random = Random(1)
    ports = [int(endpoint.rsplit(":", 1)[1]) for endpoint in broker.ready["endpoints"]]
    greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(16) + bytes(1) + bytes(31)
    strangers = []
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"",
        bytes(4000),
        b"\xff" * 4000,
        random.randbytes(10_000),
        greeting[:30],
        greeting,
        greeting + b"\4\x19\5READY\x0bSocket-Type\0\0\0\6DEALER" + b"\2" + (1 << 62).to_bytes(8),
        greeting + random.randbytes(500),
    ):
        for port in ports:
            stranger = socket.create_connection(("127.0.0.1", port))
            strangers.append(stranger)
            try:
                stranger.sendall(garbage)
            except OSError:
                pass  # closed already
            control.goes_on()
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("seed", range(2))
def test_random_and_mutated_frames_disturb_nobody(broker: OwnBroker, control: Control, seed: int) -> None:
    """Thousands of frames, valid, mutated and random, in any order, against every worker."""
    random = Random(seed)
    topics = [f"fuzzed-{seed}-{number}" for number in range(2)]
    for number, topic in enumerate(topics):
        control.admin.request("topic.create", topic=topic, dispatch=["reliable", "non-reliable"][number])
    clients = [RawClient(endpoint) for endpoint in broker.ready["endpoints"] * 2]
    for number in range(3000):
        client = random.choice(clients)
        frames = valid_frame(random, random.choice([*topics, control.topic + "-not"]))
        if random.random() < 0.6:
            frames = mutated(random, frames)
        client.put(frames)
        if number % 100 == 0:
            control.goes_on()
            for each in clients:
                while (heard := each.hear(0)) is not None:
                    assert heard.kind >= 32
    for client in clients:
        client.reconnect()
        assert client.hello().kind == Type.WELCOME


def test_a_flood_of_requests_leaves_room_for_others(broker: OwnBroker, control: Control) -> None:
    """Tens of thousands of requests without reading an answer delay others a little, and no more."""
    flooder = RawClient(broker.endpoint)
    request = cbor2.dumps({Key.TYPE: Type.REQUEST, Key.REF: 1, Key.OPERATION: "topic.list"})
    for number in range(20_000):
        flooder.socket.send(request)
        if number % 5000 == 0:
            control.goes_on()
    control.goes_on()
    assert control.admin.request("topic.list")["topics"]


@pytest.mark.requirement("16-3")
def test_a_consumer_that_never_reads_costs_bounded_memory(broker: OwnBroker, control: Control) -> None:
    """What it is sent is bounded by its credit; its producer and all others continue."""
    topic = f"unread-{next(_names)}"
    control.admin.request("topic.create", topic=topic)
    producer, _ = follow(broker.endpoint, lambda c: c.open_producer(1, topic, 7))
    lazy, _ = follow(
        broker.endpoint, lambda c: c.open_consumer(2, topic, "s", messages=1 << 40, bytes=1 << 40)
    )
    payload = os.urandom(100_000)
    for number in range(1000):  # 100 MB, over its byte credit of 64 MiB
        producer.publish(1, number, payload)
        if number % 10 == 9:
            producer.receipts(1, 10)
            producer.unread.clear()
        if number % 200 == 0:
            control.goes_on()
    seen = 0
    until = time.monotonic() + 60
    while seen < 600 and time.monotonic() < until:
        frame = lazy.hear(1)
        seen += frame.header[Key.COUNT] if frame is not None and frame.kind == Type.DELIVER else 0
    assert 600 <= seen < 1000
    workers = [each for each in control.admin.request("status")["processes"] if each["role"] == "worker"]
    assert max(each["rss_peak_bytes"] for each in workers) < 500 << 20
