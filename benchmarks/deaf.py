"""What do clients that stop reading cost a worker, each with the largest credit?

    python benchmarks/deaf.py [--readers 100] [--seconds 10]

A broker of its own with one worker, and 150 MB in a topic (or sent while they are there, of a non-reliable one).
`--readers` consumers, each with a connection and a subscription of its own, open with the largest credit and never
read. A row for each strategy: the worker's anonymous memory before and at most (MB), its descriptors, and how many
messages per second a healthy consumer beside them gets from a reliable topic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any, Final, Literal

import cbor2
import zmq
from arguments import above_zero, whole
from soak import sample_of

import ister
from ister.ownbroker import OwnBroker
from ister.wire import Key, Type

MESSAGES, MESSAGE_BYTES = 3_000, 50_000
ALL_MESSAGES, ALL_BYTES = 1_000_000, 64 << 20
HELLO: Final = cbor2.dumps({int(Key.TYPE): int(Type.HELLO), int(Key.VERSION): [1], int(Key.CLIENT): "deaf"})


def fill(client: ister.Client, topic: str) -> None:
    """Send messages that they do not read."""
    with client.producer(topic) as producer:
        for _ in range(MESSAGES):
            receipt = producer.send(bytes(MESSAGE_BYTES))
        receipt.result(timeout=120)


def open_deaf(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, topic: str, number: int
) -> zmq.Socket[bytes]:
    """Open a consumer that never reads; return its socket, which must be kept."""
    dealer = context.socket(zmq.DEALER)
    dealer.linger, dealer.rcvhwm, dealer.rcvbuf = 0, 1, 64 << 10
    dealer.connect(endpoint)
    dealer.send(HELLO)
    dealer.recv()
    header = {
        Key.TYPE: int(Type.OPEN_CONSUMER),
        Key.REF: 1,
        Key.HANDLE: 1,
        Key.TOPIC: topic,
        Key.SUBSCRIPTION: f"deaf-{number}",
        Key.SUBSCRIPTION_TYPE: "shared",
        Key.MESSAGES: ALL_MESSAGES,
        Key.BYTES: ALL_BYTES,
        Key.START: "earliest",
    }
    dealer.send(cbor2.dumps({int(key): value for key, value in header.items()}))
    return dealer


def healthy(client: ister.Client, topic: str) -> float:
    """Return how many messages per second a consumer gets that reads."""
    began, taken = time.monotonic(), 0
    with client.consumer(topic, subscription="healthy", type="shared", start="earliest") as consumer:
        while taken < MESSAGES and (message := consumer.receive(timeout=20)) is not None:
            consumer.ack(message)
            taken += 1
    return taken / (time.monotonic() - began)


def measure(dispatch: Literal["reliable", "non-reliable"], readers: int, seconds: float) -> dict[str, Any]:
    """Measure one strategy and return its row."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with (
        tempfile.TemporaryDirectory() as folder,
        OwnBroker(f"{folder}/data", f"{folder}/log", workers=1) as broker,
        ister.connect(broker.endpoint) as client,
    ):
        [pid] = [each["pid"] for each in client.status()["processes"] if each["node"] == "worker-0"]
        client.create_topic("t", dispatch=dispatch)
        if dispatch == "reliable":
            fill(client, "t")
        before = sample_of(pid)
        deaf = [open_deaf(context, broker.endpoint, "t", number) for number in range(readers)]
        if dispatch == "non-reliable":
            time.sleep(1)
            fill(client, "t")
        until, most = time.monotonic() + seconds, before
        while time.monotonic() < until:
            most = max(most, sample_of(pid), key=lambda sample: sample.anon_mb)
            time.sleep(0.2)
        row = {"dispatch": dispatch, "readers": readers, "before_mb": before.anon_mb, "most_mb": most.anon_mb}
        row["descriptors"] = most.descriptors
        if dispatch == "reliable":
            row["healthy_per_s"] = healthy(client, "t")
        for dealer in deaf:
            dealer.close()
        context.destroy(linger=0)
        return row


def main() -> None:
    """Measure both strategies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=whole, default=100)
    parser.add_argument("--seconds", type=above_zero, default=10.0)
    given = parser.parse_args()
    print(json.dumps(measure("reliable", given.readers, given.seconds)), flush=True)
    print(json.dumps(measure("non-reliable", given.readers, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
