"""Tests of cancellation in asyncio: any call, at any moment; no cancellation is swallowed, nothing is lost or left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

import ister.aio
from ister import testing
from ister.errors import IsterError
from ister.wire import Key, Type

Scene = Callable[[ister.aio.Client, testing.Broker], Awaitable[Any]]
HOPS = 8  # turns of the loop between an event and the cancellation: before, at, and after it


async def receiving(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for a message."""
    async with client.consumer("orders", subscription="s") as consumer:
        return await consumer.receive(20)


async def receiving_a_batch(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for a batch."""
    async with client.consumer("orders", subscription="s") as consumer:
        return await consumer.receive_batch(timeout=20)


async def iterating(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait in a loop."""
    async with client.consumer("orders", subscription="s") as consumer:
        return await anext(aiter(consumer))


async def awaiting_a_receipt(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for an answer, with a time-out."""
    async with client.producer("orders") as producer:
        return await (await producer.send(b"x")).result(timeout=20)


async def flushing(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for all answers."""
    async with client.producer("orders") as producer:
        await producer.send(b"x")
        await producer.flush(20)


async def sending_into_a_full_window(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for room."""
    async with client.producer("orders", window_bytes=100) as producer:
        for _ in range(5):
            await producer.send(b"x" * 90, timeout=20)


async def closing(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for what was sent, and for the broker's answer to the close."""
    producer = await client.producer("orders")
    await producer.send(b"x")
    await producer.close()


async def opening(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for what is opened."""
    await (await client.consumer("orders", subscription="s")).close()
    await (await client.reader("orders")).close()
    await (await client.producer("orders")).close()


async def seeking(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for a seek."""
    async with client.consumer("orders", subscription="s") as consumer:
        await consumer.seek("earliest", 20)


async def asking(client: ister.aio.Client, _broker: testing.Broker) -> Any:
    """Wait for an answer of the broker, and for another program's reply."""
    await client.topic("orders")
    await client.request("orders", b"?", timeout=20)


SCENES = [
    receiving,
    receiving_a_batch,
    iterating,
    awaiting_a_receipt,
    flushing,
    sending_into_a_full_window,
    closing,
    opening,
    seeking,
    asking,
]


def in_loop(broker: testing.Broker, scene: Callable[[ister.aio.Client], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine with a client that has the topic `orders`."""

    async def whole() -> None:
        async with asyncio.timeout(60), ister.aio.connect(broker.endpoint, timeout=20) as client:
            await client.create_topic("orders", exist_ok=True)
            await scene(client)

    asyncio.run(whole())


def test_a_receipt_that_comes_in_the_moment_of_the_cancellation_swallows_it_not(
    broker: testing.Broker,
) -> None:
    """A task cancelled while it waits for a receipt is cancelled, or was done before."""

    async def scene(client: ister.aio.Client) -> None:
        async with client.producer("orders") as producer:
            for hops in range(HOPS):
                receipt = await producer.send(b"x")
                waiting = asyncio.create_task(receipt.result(timeout=20))
                await asyncio.sleep(0)
                until = time.monotonic() + 20
                while not receipt.done() and time.monotonic() < until:
                    time.sleep(0.001)  # noqa: ASYNC251 - the loop must not see it yet
                for _ in range(hops):
                    await asyncio.sleep(0)
                if waiting.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await waiting

    in_loop(broker, scene)


@pytest.mark.parametrize("what", SCENES, ids=lambda what: what.__name__)
def test_whatever_is_awaited_can_be_cancelled_at_any_moment(broker: testing.Broker, what: Scene) -> None:
    """The task ends as cancelled, nothing of the call is left here or at the broker, and the client goes on."""

    async def scene(client: ister.aio.Client) -> None:
        inner = client._client
        session = inner.network.home.session
        for hops in range(30):
            task = asyncio.ensure_future(what(client, broker))
            for _ in range(hops):
                await asyncio.sleep(0.0005 if hops > 10 else 0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with suppress(IsterError):
                    await task
            async with asyncio.timeout(20):
                while client._waiters:  # noqa: ASYNC110 - an inbox may be on its way, and nothing tells
                    await asyncio.sleep(0.001)
        known = {producer.publication.handle for producer in inner.correspondence.outlets._producers.values()}
        known |= set() if client._inbox is None else {client._inbox.reader.attachment.handle}
        async with asyncio.timeout(20):
            while session.handles.keys() - known or broker_handles(broker) - known:
                await client.topic("orders")

    in_loop(broker, scene)


def broker_handles(broker: testing.Broker) -> set[int]:
    """Return the handles that are open at the broker: opened, and not closed since."""
    opened: set[int] = set()
    for kind, header in list(broker.heard):
        if kind in (Type.OPEN_CONSUMER, Type.OPEN_PRODUCER):
            opened.add(header[Key.HANDLE])
        elif kind == Type.CLOSE:
            opened.discard(header[Key.HANDLE])
    return opened


def test_a_loop_goes_on_after_a_time_out(broker: testing.Broker) -> None:
    """`anext` with a time-out, any number of times: a later message goes to the same iterator."""

    async def scene(client: ister.aio.Client) -> None:
        async with (
            client.consumer("orders", subscription="s") as consumer,
            client.producer("orders") as producer,
        ):
            messages = aiter(consumer)
            for number in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(messages), 0.01)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await anext(messages)
                await producer.send(b"%d" % number)
                assert (await asyncio.wait_for(anext(messages), 20)).payload == b"%d" % number

    in_loop(broker, scene)


def test_messages_survive_every_cancellation(broker: testing.Broker) -> None:
    """A message that arrives at the moment of cancellation goes to the next call: all of them come, in order."""

    async def scene(client: ister.aio.Client) -> None:
        got: list[bytes] = []
        async with (
            client.consumer("orders", subscription="s") as consumer,
            client.producer("orders") as producer,
        ):
            for number in range(100):
                waiting = asyncio.ensure_future((consumer.receive, consumer.__anext__)[number % 2]())
                await asyncio.sleep(0)
                receipt = await producer.send(b"%d" % number)
                for _ in range(number % HOPS):
                    await asyncio.sleep(0.001 if number % 3 else 0)
                if not waiting.cancel():
                    got += [each.payload for each in [waiting.result()] if each]
                else:
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                await receipt
            while len(got) < 100:
                message = await consumer.receive(20)
                assert message is not None
                got.append(message.payload)
        assert got == [b"%d" % number for number in range(100)]

    in_loop(broker, scene)


def test_a_move_that_was_cancelled_is_not_asked_for_again(broker: testing.Broker) -> None:
    """It must not be sent over the next connection, long after the program gave it up."""

    async def scene(client: ister.aio.Client) -> None:
        async with client.consumer("orders", subscription="s") as consumer:
            broker.silent = True
            task = asyncio.create_task(consumer.seek("earliest", 20))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            session = client._client.network.home.session
            assert not session._outstanding._sent
            assert not session._outstanding._waiting
            broker.silent = False

    in_loop(broker, scene)


def test_the_first_request_may_be_cancelled_and_makes_one_inbox_all_the_same(broker: testing.Broker) -> None:
    """Otherwise each cancelled request would leave a reply topic behind."""

    async def scene(client: ister.aio.Client) -> None:
        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0005):
                    await client.request("orders", b"?", timeout=20)
        made = [
            header
            for kind, header in broker.heard
            if kind == Type.REQUEST and header[Key.OPERATION] == "topic.create"
        ]
        assert len(made) <= 2  # `orders`, and the inbox

    in_loop(broker, scene)
