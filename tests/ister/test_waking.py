"""Tests of waking: a call that waits is woken by what it waits for, and by nothing else."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

import ister
import ister.aio
from ister import testing
from ister.errors import ClosedError, ConnectionLostError
from ister.polling import Wake, poll
from ister.receiver import Receiver
from ister.waking import News, Waiters


def about(*keys: object, everything: bool = False) -> News:
    """Return news about a handle, a request or anything."""
    news = News()
    news.keys.update(keys)
    news.everything = everything
    return news


def test_a_wake_that_nobody_set_is_cleared_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading nothing is an exception, which every lone message would pay for."""
    wake = Wake()
    reads: list[int] = []
    read = os.read

    def counted(fd: int, size: int) -> bytes:
        reads.append(fd)
        return read(fd, size)

    monkeypatch.setattr(os, "read", counted)
    wake.clear()
    assert not reads
    wake.set()
    wake.clear()
    wake.clear()
    assert reads == [wake.fd]
    monkeypatch.undo()
    wake.close()


def test_a_wake_that_is_set_while_it_is_cleared_wakes_the_next_wait_at_most_once() -> None:
    """The flag and the descriptor may differ for a moment; what is left in the descriptor is read by the next poll."""
    wake, started = Wake(), time.monotonic()
    wake.set()
    wake._set = False
    wake.clear()
    poll(wake, (), 60)
    assert time.monotonic() - started < 50
    assert not select.select([wake.fd], [], [], 0)[0]
    wake.close()


def test_news_concern_those_who_wait_for_them() -> None:
    """Calls that wait for anything are woken by all news, and every call by news that may be about anything."""
    waiters: Waiters[str] = Waiters()
    for key, name in ((1, "a"), (1, "b"), (2, "c"), (None, "d")):
        waiters.add(key, name)
    assert len(waiters) == 4
    assert set(waiters.concerned(about(1))) == {"a", "b", "d"}
    assert set(waiters.concerned(about(2, 3, 4, 5, 6))) == {"c", "d"}
    assert set(waiters.concerned(about(everything=True))) == set("abcd")
    assert set(waiters.concerned(about(7))) == {"d"}
    waiters.discard(1, "a")
    waiters.discard(1, "a")
    waiters.discard(9, "z")
    assert waiters.first() == "b"
    assert set(waiters.concerned(about(1))) == {"b", "d"}


def test_news_are_taken_once() -> None:
    """And merged with others."""
    news = about(1)
    news.add(about(2, everything=True))
    taken = news.take()
    assert (taken.keys, taken.everything) == ({1, 2}, True)
    assert not news
    assert taken


def test_of_many_tasks_the_one_is_woken_that_is_meant(broker: testing.Broker) -> None:
    """A message for one of fifty consumers wakes one of their tasks."""

    async def scene() -> None:
        async with ister.aio.connect(broker.endpoint, timeout=20) as client:
            consumers = []
            for number in range(50):
                await client.create_topic(f"orders/{number}")
                consumers.append(await client.consumer(f"orders/{number}", "s"))
            looked: Counter[int] = Counter()

            def watch(number: int, inner: Receiver) -> None:
                look = inner.has_news

                def has_news() -> bool:
                    looked[number] += 1
                    return look()

                inner.has_news = has_news  # type: ignore[method-assign]

            for number, consumer in enumerate(consumers):
                watch(number, consumer._receiver)
            tasks = [asyncio.create_task(consumer.receive()) for consumer in consumers]
            async with client.producer("orders/7") as producer:
                await asyncio.sleep(0.1)
                looked.clear()
                await producer.send(b"x")
                message = await asyncio.wait_for(tasks[7], 20)
                assert message is not None
                await asyncio.sleep(0.1)
                assert set(looked) == {7}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scene())


def test_of_many_threads_the_one_is_woken_that_is_meant(
    broker: testing.Broker, client: ister.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply to one of thirty requests wakes its thread, and at most one more, which moves the frames."""
    woken: Counter[int] = Counter()
    wake = Wake.set

    def counted(self: Wake) -> None:
        woken[id(self)] += 1
        wake(self)

    with ister.connect(broker.endpoint, timeout=20) as other:
        client.create_topic("silence", dispatch="non-reliable")
        client.create_topic("echo", dispatch="non-reliable")

        def wait() -> None:
            with suppress(ClosedError, ConnectionLostError):
                client.request("silence", b"?", timeout=600)

        def serve(consumer: ister.Consumer) -> None:
            for message in consumer:
                message.reply(message.payload)

        with other.consumer("echo", "servers", type="shared") as consumer:
            server = threading.Thread(target=serve, args=(consumer,))
            server.start()
            client.request("echo", b"x", timeout=20)
            waiting = [threading.Thread(target=wait) for _ in range(30)]
            for thread in waiting:
                thread.start()
            while client._conversation._inbox is None or len(client._conversation._inbox) < 30:
                time.sleep(0.01)
            time.sleep(0.2)
            monkeypatch.setattr(Wake, "set", counted)
            for _ in range(10):
                client.request("echo", b"x", timeout=20)
            assert len(woken) < 20  # of thirty that wait, and some that do not
            monkeypatch.undo()
            client.close()
            for thread in waiting:
                thread.join(20)
                assert not thread.is_alive()
        server.join(20)


def test_a_receipt_is_noticed_after_a_thread_that_waited_has_gone(
    client: ister.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread left the socket to that thread for long, and who sends does not wait: it is called back."""
    monkeypatch.setattr("ister.connection.TICK_S", 600.0)
    monkeypatch.setattr("ister.connection.TICK_LAST_S", 600.0)
    monkeypatch.setattr("ister.attendance.BUSY", 1000.0)  # whatever else this machine does
    network = client.network
    with client.producer("orders", linger_ms=0) as producer:
        connection = network.connection_of(producer.publication)
        deadline = network.clock.monotonic() + 20
        while not connection.away:
            connection.background.set()  # it looks while this thread waits
            network.waits.wait(None, lambda: connection.away, network.clock.monotonic() + 0.02)
            assert network.clock.monotonic() < deadline
        for _ in range(3):
            noticed = threading.Event()
            producer.send(b"x").add_done_callback(lambda _, noticed=noticed: noticed.set())  # type: ignore[misc]
            assert noticed.wait(20)
