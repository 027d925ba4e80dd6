"""Tests of the asyncio client, against a broker in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ister.aio
from ister import testing
from ister.errors import ClosedError, ConnectionLostError, RemoteError, TimeoutExpiredError, UsageError
from ister.message import Event
from ister.wire import Type

Run = Callable[[Callable[[ister.aio.Client], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run(broker: testing.Broker) -> Run:
    """Run a coroutine with a client that has the topic `orders`."""

    def in_loop(scene: Callable[[ister.aio.Client], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with asyncio.timeout(20), ister.aio.connect(broker.endpoint, timeout=5) as client:
                await client.create_topic("orders", exist_ok=True)
                await scene(client)

        asyncio.run(whole())

    return in_loop


def test_a_message_travels(run: Run) -> None:
    """A first program: create, publish, consume, acknowledge."""

    async def scene(client: ister.aio.Client) -> None:
        async with client.producer("orders") as producer:
            receipt = await producer.send(b"hello", key=b"k", attributes={"a": "b"})
            assert (await receipt).offset == 0
        async with client.consumer("orders", subscription="s", start="earliest") as consumer:
            async for message in consumer:
                assert (message.payload, message.key, message.attributes) == (b"hello", b"k", {"a": "b"})
                consumer.ack(message)
                break
            await consumer.flush(5)

    run(scene)


def test_what_is_opened_can_be_awaited_too(run: Run) -> None:
    """Without `async with`, the program closes it."""

    async def scene(client: ister.aio.Client) -> None:
        producer = await client.producer("orders")
        assert (await (await producer.send_batch([b"a", b"b"])).result(5)).count == 2
        await producer.close()
        await producer.close()
        with pytest.raises(ClosedError):
            await producer.send(b"x")

    run(scene)


def test_many_tasks_share_a_producer(run: Run, broker: testing.Broker) -> None:
    """Thousands of tasks wait for the receipts of a few batches."""

    async def scene(client: ister.aio.Client) -> None:
        async with client.producer("orders") as producer:

            async def one(number: int) -> int | None:
                return (await (await producer.send(b"%d" % number)).result(10)).offset

            offsets = await asyncio.gather(*map(one, range(3000)))
        assert offsets == list(range(3000))

    run(scene)
    assert sum(kind == Type.PUBLISH for kind, _ in broker.heard) < 1500


def test_receiving_does_not_hold_the_loop_up(run: Run) -> None:
    """Other tasks run while one waits for a message."""

    async def scene(client: ister.aio.Client) -> None:
        async with (
            client.consumer("orders", subscription="s") as consumer,
            client.producer("orders") as producer,
        ):
            waiting = asyncio.create_task(consumer.receive(10))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await producer.send(b"x")
            message = await waiting
            assert message is not None
            assert message.payload == b"x"
            assert await consumer.receive(timeout=0.05) is None
            assert await consumer.receive_batch(timeout=0) is None

    run(scene)


def test_batches_are_received_whole_and_in_parts(run: Run) -> None:
    """As with the synchronous consumer."""

    async def scene(client: ister.aio.Client) -> None:
        async with client.producer("orders") as producer:
            await producer.send_batch([b"%d" % number for number in range(1000)])
        received: list[bytes] = []
        async with client.consumer(
            "orders", subscription="s", type="shared", start="earliest", credit_messages=1000
        ) as consumer:
            while len(received) < 980:
                batch = await consumer.receive_batch(70, timeout=5)
                assert batch is not None
                received += batch.payloads
                consumer.ack(batch)
            async for message in consumer:
                received.append(message.payload)
                if len(received) == 1000:
                    consumer.nack(message, reason="again")
                    break
            again = await consumer.receive(5)
            assert again is not None
            assert again.attempt == 2
            consumer.ack_until(again)
            await consumer.flush(5)
        assert received == [b"%d" % number for number in range(1000)]

    run(scene)


def test_a_full_window_holds_one_task_up_and_not_the_loop(run: Run, broker: testing.Broker) -> None:
    """Sending waits with an `await`."""

    async def scene(client: ister.aio.Client) -> None:
        async with client.producer("orders", batch_bytes=1000, window_bytes=3000) as producer:
            broker.silent = True

            async def fill() -> None:
                for _ in range(1000):
                    await producer.send(b"x" * 90, timeout=0.05)

            with pytest.raises(TimeoutExpiredError, match="window"):
                await fill()
            with pytest.raises(TimeoutExpiredError, match="window"):
                await producer.send_batch([b"x" * 2500], timeout=0.05)
            broker.silent = False
            sending = asyncio.create_task(producer.send_batch([b"y" * 2500], timeout=10))
            broker.disconnect()
            assert (await (await sending).result(5)).offset is not None

    run(scene)


def test_lost_connections_are_survived(run: Run, broker: testing.Broker) -> None:
    """As with the synchronous client."""

    async def scene(client: ister.aio.Client) -> None:
        async with (
            client.producer("orders") as producer,
            client.consumer("orders", subscription="s", start="earliest") as consumer,
        ):
            for round_ in range(3):
                receipts = [await producer.send(b"%d" % round_) for _ in range(100)]
                broker.disconnect() if round_ % 2 else broker.restart()
                assert [(await each.result(10)).offset for each in receipts] == list(
                    range(100 * round_, 100 * round_ + 100)
                )
            seen: set[int] = set()
            while len(seen) < 300:
                batch = await consumer.receive_batch(timeout=10)
                assert batch is not None
                seen.update(batch.offsets)
                consumer.ack(batch)

    run(scene)


def test_errors_are_the_same(run: Run, broker: testing.Broker) -> None:
    """The broker's coded errors, and the client's own."""

    async def scene(client: ister.aio.Client) -> None:
        with pytest.raises(RemoteError) as caught:
            await client.producer("nothing")
        assert caught.value.code == "unknown-topic"
        async with client.producer("orders") as producer:
            with pytest.raises(UsageError, match="encode"):
                await producer.send("text")  # type: ignore[arg-type]
            broker.refuse(Type.PUBLISH, "invalid-argument")
            with pytest.raises(RemoteError):
                await (await producer.send(b"x"))
            broker.silent = True
            with pytest.raises(TimeoutExpiredError):
                await (await producer.send(b"x")).result(0.05)
            broker.silent = False
            broker.disconnect()
        with pytest.raises(ConnectionLostError):
            await ister.aio.connect("tcp://127.0.0.1:1", timeout=0.2)

    run(scene)


def test_topics_and_subscriptions(run: Run) -> None:
    """Every request of the synchronous client can be made here."""

    async def scene(client: ister.aio.Client) -> None:
        await client.create_subscription("orders", "s", type="shared")
        await client.create_subscription("orders", "s", type="shared", exist_ok=True)
        assert [each["subscription"] for each in await client.subscriptions("orders")] == ["s"]
        assert (await client.subscription("orders", "s"))["type"] == "shared"
        await client.delete_subscription("orders", "s")
        assert [each["topic"] for each in await client.topics()] == ["orders"]
        assert (await client.topic("orders"))["strategy"] == "reliable"
        assert "broker" in await client.status()
        await client.delete_topic("orders")

    run(scene)


def test_events_are_told_in_the_loop(run: Run) -> None:
    """So that callbacks may use the same data as the program's tasks."""

    async def scene(client: ister.aio.Client) -> None:
        told: asyncio.Queue[Event] = asyncio.Queue()
        async with client.consumer(
            "orders", subscription="s", type="failover", on_event=told.put_nowait
        ) as consumer:
            assert (await told.get()).code == "active"
            assert consumer.active

    run(scene)


def test_a_cancelled_wait_leaves_nothing_behind(run: Run) -> None:
    """A task that stops waiting does not take a message with it."""

    async def scene(client: ister.aio.Client) -> None:
        async with (
            client.consumer("orders", subscription="s") as consumer,
            client.producer("orders") as producer,
        ):
            received = []
            for number in range(20):
                waiting = asyncio.create_task(consumer.receive(10))
                await asyncio.sleep(0)
                if not waiting.cancel():
                    received.append(waiting.result())
                await producer.send(b"%d" % number)
            while len(received) < 20:
                received.append(await consumer.receive(5))
            assert [each.payload for each in received if each] == [b"%d" % number for number in range(20)]

    run(scene)


def test_a_closed_consumer_ends_its_loop(run: Run) -> None:
    """Without an error, if this side closed it."""

    async def scene(client: ister.aio.Client) -> None:
        consumer = await client.consumer("orders", subscription="s")
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(consumer.close()))
        assert [message async for message in consumer] == []

    run(scene)
