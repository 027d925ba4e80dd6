"""Tests of several threads or tasks that use one consumer: each message goes to one of them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest

import ister
import ister.aio
from ister import testing
from ister.errors import ClosedError

THREADS = 6
SMALL = 20  # messages in a batch
BATCHES = 150
COUNT = SMALL * BATCHES

Take = Callable[[ister.Consumer, Callable[[ister.Message], None]], None]


def by_receive(consumer: ister.Consumer, see: Callable[[ister.Message], None]) -> None:
    """Take a message at a time."""
    while (message := consumer.receive(10)) is not None:
        see(message)


def by_iterating(consumer: ister.Consumer, see: Callable[[ister.Message], None]) -> None:
    """Take from the iterator."""
    for message in consumer:
        see(message)


def by_batches(consumer: ister.Consumer, see: Callable[[ister.Message], None]) -> None:
    """Take a few at a time."""
    while (batch := consumer.receive_batch(7, timeout=10)) is not None:
        for message in batch:
            see(message)


def in_turn(consumer: ister.Consumer, see: Callable[[ister.Message], None]) -> None:
    """Take with each method in turn."""
    while True:
        for message in consumer:
            see(message)
            break
        else:
            return
        batch = consumer.receive_batch(3, timeout=0.02)
        for message in batch or ():
            see(message)
        single = consumer.receive(0.02)
        if single is not None:
            see(single)


def publish(client: ister.Client, topic: str, batches: int) -> None:
    """Send many small batches."""
    with client.producer(topic) as producer:
        for number in range(batches):
            producer.send_batch([b"%d" % number] * SMALL)
        producer.flush(10)


@pytest.mark.parametrize("take", [by_receive, by_iterating, by_batches, in_turn])
@pytest.mark.parametrize("pattern", ["orders", "many/*"])
def test_threads_share_a_consumer(client: ister.Client, take: Take, pattern: str) -> None:
    """No message is lost or seen twice, and acknowledgments of all threads count."""
    topics = ["orders"] if pattern == "orders" else ["many/a", "many/b", "many/c"]
    for topic in topics:
        client.create_topic(topic, exist_ok=True)
    lock, over = threading.Lock(), threading.Event()
    seen: Counter[tuple[str, int]] = Counter()
    closed: list[threading.Thread] = []
    consumer = client.consumer(pattern, "s", type="shared", start="earliest")

    def see(message: ister.Message) -> None:
        consumer.ack(message)
        with lock:
            seen[message.topic, message.offset] += 1
            if len(seen) == COUNT:
                over.set()

    def work() -> None:
        try:
            take(consumer, see)
        except ClosedError:
            pass
        closed.append(threading.current_thread())

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for topic in topics:
        publish(client, topic, BATCHES // len(topics))
    assert over.wait(30), f"{len(seen)} of {COUNT} were seen"
    consumer.flush(10)
    consumer.close()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert len(closed) == THREADS
    assert seen.total() == COUNT
    with client.consumer(pattern, "s", type="shared") as after:
        assert after.receive(0.1) is None


@pytest.mark.parametrize("batches", [False, True])
def test_tasks_share_a_consumer(broker: testing.Broker, batches: bool) -> None:
    """As with threads."""

    async def scene() -> Counter[int]:
        seen: Counter[int] = Counter()
        over = asyncio.Event()
        async with asyncio.timeout(40), ister.aio.connect(broker.endpoint, timeout=5) as client:
            await client.create_topic("orders")
            consumer = await client.consumer("orders", "s", type="shared", start="earliest")

            def see(message: ister.BaseMessage) -> None:
                consumer.ack(message)
                seen[message.offset] += 1
                if len(seen) == COUNT:
                    over.set()

            async def work() -> None:
                try:
                    while True:
                        if batches:
                            for message in await consumer.receive_batch(7) or ():
                                see(message)
                        else:
                            found = await consumer.receive()
                            assert found is not None
                            see(found)
                        await asyncio.sleep(0)
                except ClosedError:
                    pass

            tasks = [asyncio.create_task(work()) for _ in range(THREADS)]
            async with client.producer("orders") as producer:
                for _ in range(BATCHES):
                    await (await producer.send_batch([b"x"] * SMALL))
            await over.wait()
            await consumer.close()
            await asyncio.gather(*tasks)
        return seen

    seen = asyncio.run(scene())
    assert (len(seen), seen.total()) == (COUNT, COUNT)


def test_a_thread_that_waits_hears_that_another_closed_the_consumer(
    broker: testing.Broker, client: ister.Client
) -> None:
    """Also if the broker no longer answers: no thread waits for a message that cannot come."""
    consumer = client.consumer("orders", "s")
    waiting, heard = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            consumer.receive()
        except ClosedError:
            heard.set()

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(5)
    broker.silent = True
    with pytest.raises(ister.TimeoutExpiredError):
        consumer.close(0.2)
    assert heard.wait(5)
    thread.join(5)
