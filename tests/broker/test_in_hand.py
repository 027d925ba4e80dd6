"""Messages that a program has in hand or that wait for it: with a real broker, and killed or stuck programs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

import ister
from ister.ownbroker import OwnBroker

PATIENCE_S = 30.0
PROGRAM = """
import os, signal, sys, ister
with ister.connect(sys.argv[1]) as client, client.consumer(sys.argv[2], "workers", type="shared") as consumer:
    for message in consumer:
        if message.payload == b"poison":
            os.kill(os.getpid(), signal.SIGKILL)
        consumer.ack(message)
        if message.payload == b"last":
            consumer.flush(10)
            break
"""


@pytest.fixture
def client(broker: OwnBroker) -> Iterator[ister.Client]:
    """A client of the module's broker."""
    with ister.connect(broker.endpoint) as connected:
        yield connected


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_only_the_message_that_kills_its_consumer_becomes_a_dead_letter(
    broker: OwnBroker, client: ister.Client
) -> None:
    """It is killed at the moment it gets the message; the thousand around it were fetched, or done, and survive."""
    client.create_topic("deadly")
    client.create_subscription(
        "deadly", "workers", type="shared", start="earliest", max_deliveries=2, backoff_ms_min=0
    )
    with client.producer("deadly") as producer:
        producer.send_batch([b"good"] * 500 + [b"poison"] + [b"good"] * 500 + [b"last"]).result(10)
    for _ in range(15):
        command = [sys.executable, "-c", PROGRAM, broker.endpoint, "deadly"]
        if subprocess.run(command, timeout=60, check=False).returncode == 0:
            break
        wait_until(lambda: not client.subscription("deadly", "workers")["consumers"])
    else:
        pytest.fail("the message that kills was never given up")
    wait_until(lambda: not client.subscription("deadly", "workers")["burying"])
    shown = client.subscription("deadly", "workers")
    assert (shown["dead_lettered"], shown["pending"]) == (1, [])


FAILING = {
    "in the consumer's block": """
import sys, ister
with ister.connect(sys.argv[1]) as client, client.consumer(sys.argv[2], "workers") as consumer:
    for message in consumer:
        if message.payload == b"poison":
            raise ValueError("cannot read this")
        consumer.ack(message)
        if message.payload == b"last":
            break
""",
    "in the client's block": """
import sys, ister
with ister.connect(sys.argv[1]) as client:
    consumer = client.consumer(sys.argv[2], "workers")
    while message := consumer.receive():
        if message.payload == b"poison":
            raise ValueError("cannot read this")
        consumer.ack(message)
        if message.payload == b"last":
            break
""",
    "in no block": """
import sys, ister
consumer = ister.connect(sys.argv[1]).consumer(sys.argv[2], "workers")
for message in consumer:
    if message.payload == b"poison":
        raise ValueError("cannot read this")
    consumer.ack(message)
    if message.payload == b"last":
        consumer.close()
        break
""",
    "under asyncio": """
import asyncio, sys, ister.aio
async def main():
    async with (
        await ister.aio.connect(sys.argv[1]) as client,
        await client.consumer(sys.argv[2].replace("jobs", "*"), "workers") as consumer,
    ):
        async for message in consumer:
            if message.payload == b"poison":
                raise ValueError("cannot read this")
            consumer.ack(message)
            if message.payload == b"last":
                break
asyncio.run(main())
""",
}


@pytest.mark.parametrize("where", FAILING)
def test_a_program_that_ends_by_an_exception_fails_what_it_has_in_hand(
    broker: OwnBroker, client: ister.Client, where: str
) -> None:
    """Like a killed one: a message that breaks every program is given up, and those around it are not."""
    topic = f"broken-{where.replace(' ', '-').replace(chr(39), '')}/jobs"
    client.create_topic(topic)
    client.create_subscription(topic, "workers", start="earliest", max_deliveries=2, backoff_min=0)
    with client.producer(topic) as producer:
        producer.send_batch([b"good"] * 300 + [b"poison"] + [b"good"] * 300 + [b"last"]).result(10)
    for _ in range(8):
        command = [sys.executable, "-c", FAILING[where], broker.endpoint, topic]
        if subprocess.run(command, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            break
    else:
        pytest.fail("the message that breaks its consumer was never given up")
    wait_until(lambda: client.subscription(topic, "workers")["dead_lettered"] == 1)
    assert client.subscription(topic, "workers")["pending"] == []
    [letter] = client.dead_letters(topic, "workers").list()
    assert (letter.payload, letter.reason) == (b"poison", "ValueError: cannot read this")


@pytest.mark.requirement("7.5-2")
def test_what_was_acknowledged_is_said_when_a_client_is_closed(
    broker: OwnBroker, client: ister.Client
) -> None:
    """Also when its consumer was not closed before: acknowledgments gather for some milliseconds."""
    client.create_topic("parting")
    client.create_subscription("parting", "workers", start="earliest")
    with client.producer("parting") as producer:
        producer.send_batch([b"x"] * 200).result(10)
    with ister.connect(broker.endpoint) as other:
        consumer = other.consumer("parting", "workers")
        for _ in range(200):
            message = consumer.receive(PATIENCE_S)
            assert message is not None
            consumer.ack(message)
    wait_until(lambda: client.subscription("parting", "workers")["consumers"] == 0)
    assert client.subscription("parting", "workers")["pending"] == []


def test_what_waits_for_a_stuck_program_goes_to_others_and_did_not_fail(client: ister.Client) -> None:
    """A full buffer does not time out while the program takes from it; a stuck one keeps no message from others."""
    client.create_topic("stuck")
    client.create_subscription(
        "stuck", "workers", type="shared", start="earliest", ack_timeout_ms=500, max_deliveries=1
    )
    with client.producer("stuck") as producer:
        producer.send_batch([b"%d" % number for number in range(200)]).result(10)
    stuck = client.consumer("stuck", "workers", type="shared", credit_messages=100)
    first = stuck.receive(10)
    assert first is not None
    seen: set[int] = set()
    with (
        ister.connect(client._endpoints) as another,
        another.consumer("stuck", "workers", type="shared") as other,
    ):
        while len(seen) < 199:  # all but the one that the stuck program has in hand, which fails
            message = other.receive(PATIENCE_S)
            assert message is not None, len(seen)
            seen.add(message.offset)
            other.ack(message)
        other.flush(10)
    assert first.offset not in seen
    wait_until(lambda: client.subscription("stuck", "workers")["dead_lettered"] == 1)
    assert stuck.receive(0.2) is None  # what it had not looked at was recalled
    with client.producer("stuck") as producer:
        producer.send(b"more").result(10)
    again = stuck.receive(PATIENCE_S)
    assert again is not None
    assert (again.payload, again.attempt) == (b"more", 1)
    stuck.close()
