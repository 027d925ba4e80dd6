"""Request and reply through a broker of real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import ister
import ister.aio
from ister.ownbroker import OwnBroker

pytestmark = pytest.mark.process


@pytest.fixture
def client(broker: OwnBroker) -> Iterator[ister.Client]:
    """Return a client of the broker."""
    with ister.connect(broker.endpoint) as connected:
        yield connected


@contextmanager
def served(endpoint: str, topic: str, answer: Callable[[ister.Message], None]) -> Iterator[None]:
    """Let a client of its own answer the messages of a topic, in a thread."""
    with ister.connect(endpoint) as client:
        client.create_topic(topic, dispatch="non-reliable", exist_ok=True)
        consumer = client.consumer(topic, "servers", type="shared")

        def serve() -> None:
            for message in consumer:
                answer(message)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        consumer.close()
        thread.join(10)
        assert not thread.is_alive()


def double(message: ister.Message) -> None:
    """Reply with twice the payload."""
    message.reply(message.payload * 2, key=message.key, attributes={"by": "double"})


@pytest.mark.requirement("10.6-3")
def test_a_request_is_answered(client: ister.Client, broker: OwnBroker) -> None:
    """Payload, key and attributes of the reply are the server's; its topic is the client's inbox."""
    with served(broker.endpoint, "sums", double):
        reply = client.request("sums", b"12", key=b"k", attributes={"a": "b"})
    assert (reply.payload, reply.key, reply.attributes["by"]) == (b"1212", b"k", "double")
    assert reply.topic.startswith("_inbox/")
    assert reply.topic not in [topic["topic"] for topic in client.topics()]


def test_the_first_request_of_every_client_is_answered(broker: OwnBroker) -> None:
    """The inbox is open before the request is sent."""
    with served(broker.endpoint, "firsts", double):
        for number in range(15):
            with ister.connect(broker.endpoint) as fresh:
                assert fresh.request("firsts", b"%d" % number, timeout=40).payload == b"%d" % number * 2


def test_many_requests_from_many_threads_each_get_their_own_reply(
    client: ister.Client, broker: OwnBroker
) -> None:
    """Eight threads, two servers, replies in any order: each request gets its own."""
    with served(broker.endpoint, "crowd", double), served(broker.endpoint, "crowd", double):

        def ask(thread: int) -> None:
            for number in range(100):
                text = b"%d.%d," % (thread, number)
                assert client.request("crowd", text).payload == text * 2

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))


def test_a_request_that_nobody_answers_says_whether_somebody_is_there(
    client: ister.Client, broker: OwnBroker
) -> None:
    """Without a consumer and with a silent one the errors differ; an unknown topic is an error at once."""
    client.create_topic("empty-room", dispatch="non-reliable")
    with pytest.raises(ister.TimeoutExpiredError, match=r"within 0.2 s: no consumer"):
        client.request("empty-room", b"?", timeout=0.2)
    with served(broker.endpoint, "silence", lambda message: None):
        with pytest.raises(ister.TimeoutExpiredError, match="1 consumer is connected"):
            client.request("silence", b"?", timeout=0.2)
    with pytest.raises(ister.RemoteError, match="nowhere"):
        client.request("nowhere", b"?")
    client.create_topic("nowhere", dispatch="non-reliable")
    with served(broker.endpoint, "nowhere", double):
        assert client.request("nowhere", b"now").payload == b"nownow"


def test_a_late_reply_is_dropped_and_disturbs_nobody(client: ister.Client, broker: OwnBroker) -> None:
    """A client that does not wait any more gets nothing, and neither does the next request."""
    late = threading.Event()

    def answer(message: ister.Message) -> None:
        if message.payload == b"slow":
            assert late.wait(10)
        double(message)

    with served(broker.endpoint, "late", answer):
        with pytest.raises(ister.TimeoutExpiredError):
            client.request("late", b"slow", timeout=0.2)
        late.set()
        assert client.request("late", b"quick").payload == b"quickquick"


@pytest.mark.requirement("10.6-4")
def test_whoever_asked_and_left_does_not_disturb_the_server(broker: OwnBroker) -> None:
    """A reply to an inbox that is gone is dropped, and the server continues."""
    hold = threading.Event()

    def answer(message: ister.Message) -> None:
        if message.payload == b"leaves":
            assert hold.wait(10)
            time.sleep(0.3)
        double(message)
        double(message)

    with served(broker.endpoint, "left", answer):
        with ister.connect(broker.endpoint) as fickle, pytest.raises(ister.TimeoutExpiredError):
            fickle.request("left", b"leaves", timeout=0.2)
        hold.set()
        with ister.connect(broker.endpoint) as patient:
            for _ in range(3):
                assert patient.request("left", b"x").payload == b"xx"


def test_a_message_that_asks_for_nothing_cannot_be_answered(client: ister.Client) -> None:
    """The error names the message."""
    client.create_topic("plain")
    with client.producer("plain") as producer:
        producer.send(b"x").result(5)
    with client.reader("plain", start="earliest") as reader:
        message = reader.receive(5)
    assert message is not None
    with pytest.raises(ister.UsageError, match="offset 0 of 'plain' does not ask for a reply"):
        message.reply(b"")


def test_a_reliable_topic_works_too(client: ister.Client, broker: OwnBroker) -> None:
    """Then the request survives a server that dies, if the client waits for long enough."""
    client.create_topic("durable")
    client.create_subscription("durable", "servers", type="shared")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.request, "durable", b"x", timeout=40)
        time.sleep(0.2)
        with (
            served(broker.endpoint, "elsewhere", double),
            client.consumer("durable", "servers", type="shared") as c,
        ):
            message = c.receive(10)
            assert message is not None
            double(message)
            c.ack(message)
        assert asked.result(10).payload == b"xx"


def test_asyncio_asks_and_answers(client: ister.Client, broker: OwnBroker) -> None:
    """A hundred requests at a time in one loop, answered by a coroutine; timeouts and errors are the same."""
    client.create_topic("tasks", dispatch="non-reliable")

    async def serve(consumer: ister.aio.Consumer) -> None:
        async for message in consumer:
            await message.reply(message.payload * 2)

    async def run() -> None:
        async with ister.aio.connect(broker.endpoint) as asker, ister.aio.connect(broker.endpoint) as server:
            with pytest.raises(ister.TimeoutExpiredError, match="no consumer"):
                await asker.request("tasks", b"?", timeout=0.2)
            async with server.consumer("tasks", "servers", type="shared") as consumer:
                serving = asyncio.create_task(serve(consumer))
                for _ in range(3):
                    payloads = [b"%d," % number for number in range(100)]
                    replies = await asyncio.gather(*(asker.request("tasks", each) for each in payloads))
                    assert [reply.payload for reply in replies] == [each * 2 for each in payloads]
                serving.cancel()
            with pytest.raises(ister.RemoteError, match="nirgends"):
                await asker.request("nirgends", b"?")

    asyncio.run(run())


@pytest.mark.requirement("10.6-4")
def test_a_lost_session_costs_the_reply_and_nothing_more(client: ister.Client, broker: OwnBroker) -> None:
    """The inbox was lost with the workers: waiting requests fail at once, and the next one has a new inbox."""
    got = threading.Event()

    def answer(message: ister.Message) -> None:
        got.set()
        if message.payload != b"lost":
            double(message)

    with served(broker.endpoint, "lost", answer), ThreadPoolExecutor(1) as pool:
        first = client.request("lost", b"x").topic
        got.clear()
        asked = pool.submit(client.request, "lost", b"lost", timeout=30)
        assert got.wait(10)
        for process in client.status()["processes"]:
            if process["role"] == "worker":
                os.kill(process["pid"], signal.SIGKILL)
        with pytest.raises(ister.ConnectionLostError, match="the session was lost"):
            asked.result(20)
        deadline = time.monotonic() + 20
        while True:
            try:
                reply = client.request("lost", b"y", timeout=2)
                break
            except ister.IsterError:  # the server's consumer is not connected again yet
                assert time.monotonic() < deadline
        assert (reply.payload, reply.topic != first) == (b"yy", True)
