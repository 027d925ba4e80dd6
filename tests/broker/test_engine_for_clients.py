"""What programs can do with subscriptions, through the client library, with real processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import ister
import ister.aio
from ister.errors import RemoteError, UsageError
from ister.ownbroker import OwnBroker

pytestmark = pytest.mark.process

_names = itertools.count()


@pytest.fixture
def client(broker: OwnBroker) -> Iterator[ister.Client]:
    """Return a client of the shared broker."""
    with ister.connect(broker.endpoint, timeout=40) as connected:
        yield connected


@pytest.fixture
def topic(client: ister.Client) -> str:
    """Return the name of a new reliable topic; its subscriptions may run on either worker."""
    name = f"engine/topic-{next(_names)}"
    client.create_topic(name)
    return name


def fill(client: ister.Client, topic: str, count: int, **more: Any) -> None:
    """Publish numbered messages."""
    with client.producer(topic) as producer:
        producer.send_batch([b"%d" % number for number in range(count)], **more).result(10)


def taken(receiver: ister.Reader | ister.Consumer, count: int) -> list[int]:
    """Receive messages, and return their offsets."""
    found: list[int] = []
    for _ in range(count):
        message = receiver.receive(10)
        assert message is not None, found
        found.append(message.offset)
    return found


def wait_for(so: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Return what `so()` returns once that is true."""
    until = time.monotonic() + within_s
    while not (found := so()):
        assert time.monotonic() < until, "it never is so"
        time.sleep(0.02)
    return found


def kill_workers(client: ister.Client) -> None:
    """Kill every worker, and wait until all are back."""
    before = {each["node"]: each["pid"] for each in client.status()["processes"] if each["role"] == "worker"}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        now = {each["node"]: each["pid"] for each in client.status()["processes"] if each["role"] == "worker"}
        return now.keys() == before.keys() and all(
            now[node] not in (0, None, before[node]) for node in before
        )

    wait_for(back)


# ---- readers and looks -------------------------------------------------------------------------------------------


def test_a_reader_goes_on_over_the_death_of_every_worker(client: ister.Client, topic: str) -> None:
    """It reads every message once and in order, and leaves nothing behind."""
    fill(client, topic, 4000)
    seen: list[int] = []
    with client.reader(topic, start="earliest", credit_messages=300) as reader:
        for message in reader:
            seen.append(message.offset)
            if len(seen) == 1500:
                kill_workers(client)
            if len(seen) == 4000:
                break
        fill(client, topic, 2)
        assert taken(reader, 2) == [4000, 4001]
    assert seen == list(range(4000))
    assert client.subscriptions(topic) == []


def test_a_reader_begins_at_a_time(client: ister.Client, topic: str) -> None:
    """It begins at the first batch that was received then or later."""
    fill(client, topic, 3)
    time.sleep(0.05)
    between = datetime.now(UTC)
    time.sleep(0.05)
    fill(client, topic, 3)
    with client.reader(topic, start=between) as reader:
        assert reader.position == 3
        assert taken(reader, 3) == [3, 4, 5]
    with client.reader(topic, start=datetime.now(UTC) + timedelta(days=1)) as reader:
        assert reader.position == 6


def test_a_reader_of_a_non_reliable_topic_gets_what_comes(client: ister.Client) -> None:
    """It gets what is published from now on; such a topic refuses delivery times."""
    name = f"engine/news-{next(_names)}"
    client.create_topic(name, dispatch="non-reliable")
    with client.reader(name) as reader, client.producer(name) as producer:
        until = time.monotonic() + 10
        message = None
        while message is None and time.monotonic() < until:
            producer.send(b"x").result(5)
            message = reader.receive(0.1)
        assert message is not None
        assert message.payload == b"x"
        with pytest.raises(UsageError):
            producer.send(b"x", delay=1)


def test_a_look_shows_what_nobody_acknowledged(client: ister.Client, topic: str) -> None:
    """Whichever consumer holds them; and it changes nothing."""
    fill(client, topic, 5000)
    with client.consumer(topic, "s", type="shared", start="earliest") as consumer:
        acknowledged: set[int] = set()
        while len(acknowledged) < 4000:
            batch = consumer.receive_batch(timeout=40)
            assert batch is not None
            some = [message for message in batch if message.offset % 1000]
            acknowledged |= {message.offset for message in some}
            consumer.ack(some)
        consumer.flush(10)
        assert [message.offset for message in client.peek(topic, "s", 4)] == [0, 1000, 2000, 3000]
    shown = client.subscription(topic, "s")
    assert [message.offset for message in client.peek(topic, "s", 4)] == [0, 1000, 2000, 3000]
    assert client.subscription(topic, "s")["pending"] == shown["pending"]


# ---- moving, pausing, explaining ---------------------------------------------------------------------------------


def test_a_subscription_is_moved_while_it_is_consumed(client: ister.Client, topic: str) -> None:
    """By its consumer, and by another client; backwards, forwards, and to a time."""
    fill(client, topic, 3000)
    with client.consumer(topic, "s", start="earliest", credit_messages=100) as consumer:
        first = taken(consumer, 50)
        assert consumer.seek(2500) == 2500
        assert taken(consumer, 500) == list(range(2500, 3000))
        assert consumer.seek("earliest") == 0
        assert taken(consumer, 50) == first
        assert client.seek(topic, "s", 1000) == 1000
        wait_for(
            lambda: consumer.receive(0.05) and [event.code for event in consumer.events].count("sought") == 3
        )
        assert consumer.seek(datetime(2020, 1, 1, tzinfo=UTC)) == 0
        assert taken(consumer, 3000) == list(range(3000))
        assert consumer.seek("latest") == 3000
        assert consumer.receive(0.1) is None


def test_acknowledgments_are_about_what_came_since_the_move(client: ister.Client, topic: str) -> None:
    """A late acknowledgment of a message from before does not take it from those who read it again."""
    fill(client, topic, 20)
    with client.consumer(topic, "s", start="earliest") as consumer:
        old = [consumer.receive(10) for _ in range(10)]
        consumer.seek(5)
        consumer.ack([message for message in old if message])
        consumer.flush(10)
    assert client.subscription(topic, "s")["pending"] == [[5, 20]]


def test_paused_is_explained_and_ends(client: ister.Client, topic: str) -> None:
    """Nothing is delivered until it is resumed, and `explain` says why."""
    fill(client, topic, 10)
    with client.consumer(topic, "s", start="earliest", paused=1) as consumer:
        assert consumer.receive(0.2) is None
        why = client.explain(topic, "s")
        assert not why["flowing"]
        assert "paused" in [reason["code"] for reason in why["reasons"]]
        client.resume(topic, "s")
        assert taken(consumer, 10) == list(range(10))
        client.pause(topic, "s")
        fill(client, topic, 1)
        assert consumer.receive(0.2) is None
        client.resume(topic, "s")
        assert taken(consumer, 1) == [10]
        assert [event.code for event in consumer.events][-2:] == ["paused", "resumed"]


# ---- consumers that come and go ----------------------------------------------------------------------------------


def test_force_takes_an_exclusive_subscription_over(client: ister.Client, topic: str) -> None:
    """The new consumer first gets what the old one held, and the old one is told."""
    fill(client, topic, 5)
    older = client.consumer(topic, "s", type="exclusive", start="earliest")
    assert taken(older, 3) == [0, 1, 2]
    with pytest.raises(RemoteError, match="consumer"):
        client.consumer(topic, "s", type="exclusive")
    with client.consumer(topic, "s", force=True) as newer:
        assert taken(newer, 5) == [0, 1, 2, 3, 4]
        with pytest.raises(RemoteError) as caught:
            older.receive(5)
        assert caught.value.code == "taken-over"
        fill(client, topic, 1)
        assert taken(newer, 1) == [5]
    older.close()


def test_keys_keep_their_order_while_consumers_come_and_go(client: ister.Client, topic: str) -> None:
    """A key is with one consumer at a time; sparse deliveries are acknowledged exactly."""
    total, keys = 6000, 23
    seen: list[tuple[int, int, int]] = []  # key, offset, consumer
    lock = threading.Lock()
    done = threading.Event()

    def consume(who: int, until: int) -> None:
        with client.consumer(topic, "s", type="key-shared", credit_messages=200) as consumer:
            got = 0
            while not done.is_set() and got < until:
                batch = consumer.receive_batch(50, timeout=0.1)
                if batch is None:
                    continue
                got += len(batch)
                with lock:
                    seen.extend((int(message.key or b"-1"), message.offset, who) for message in batch)
                consumer.ack(batch)
                consumer.flush(10)
                with lock:
                    if len({offset for _, offset, _ in seen}) == total:
                        done.set()

    client.create_subscription(topic, "s", type="key-shared", start="earliest")
    threads = [threading.Thread(target=consume, args=(who, [900, 1 << 60, 1 << 60][who])) for who in range(3)]
    for thread in threads:
        thread.start()
    for part in range(4):
        fill(client, topic, total // 4, keys=[b"%d" % ((part + n) % keys) for n in range(total // 4)])
    assert done.wait(30)
    for thread in threads:
        thread.join(10)
    for key in range(keys):
        offsets = [offset for each, offset, _ in seen if each == key]
        first_times = list(dict.fromkeys(offsets))
        assert first_times == sorted(first_times), key
    assert len({who for _, _, who in seen}) == 3
    assert client.subscription(topic, "s")["pending"] == []


def test_work_that_takes_longer_keeps_its_messages(client: ister.Client, topic: str) -> None:
    """With `extend` nothing is redelivered; without it messages are, and count as an attempt."""
    fill(client, topic, 1)
    with client.consumer(topic, "s", start="earliest", ack_timeout_ms=400) as consumer:
        message = consumer.receive(10)
        assert message is not None
        for _ in range(6):
            time.sleep(0.2)
            consumer.extend(message)
        assert consumer.receive(0) is None
        again = consumer.receive(10)
        assert again is not None
        assert (again.offset, again.attempt) == (0, 2)
        consumer.ack(again)
        consumer.flush(10)


# ---- time, failures ----------------------------------------------------------------------------------------------


def test_messages_wait_for_their_time(client: ister.Client, topic: str) -> None:
    """Also in a batch with others; later messages come first. A reader does not wait."""
    with client.producer(topic) as producer:
        began = time.monotonic()
        producer.send(b"0", delay=6)
        producer.send_batch(
            [b"1", b"2", b"3"], deliver_at=[None, datetime.now(UTC) + timedelta(seconds=4), None]
        )
        producer.flush(10)
    with client.consumer(topic, "s", type="shared", start="earliest") as consumer:
        assert taken(consumer, 2) == [1, 3]
        message = consumer.receive(10)
        assert message is not None
        assert (message.offset, message.attempt) == (2, 1)
        assert message.deliver_at is not None
        assert message.deliver_at <= time.time() * 1000
        assert taken(consumer, 1) == [0]
        assert time.monotonic() - began > 6
        consumer.ack(message)
        consumer.flush(10)
    with client.producer(topic) as producer:
        producer.send(b"4", delay=60)
        producer.send(b"5").result(10)
    with client.reader(topic, start="earliest") as reader:
        assert taken(reader, 6) == list(range(6))
    with client.consumer(topic, "ordered", type="exclusive", start="earliest") as consumer:
        assert taken(consumer, 5) == [0, 1, 2, 3, 5]
    assert [message.offset for message in client.peek(topic, "s", 4)] == [0, 1, 3, 4]


def test_poison_goes_to_the_dead_letters(client: ister.Client, topic: str) -> None:
    """With origin and reason; later messages are delivered."""
    fill(client, topic, 3, keys=[b"a", b"b", b"c"])
    with client.consumer(topic, "s", start="earliest", max_deliveries=2) as consumer:
        attempts: list[int] = []
        while len(attempts) < 2:
            message = consumer.receive(10)
            assert message is not None
            if message.offset == 1:
                attempts.append(message.attempt)
                consumer.nack(message, reason="cannot")
            else:
                consumer.ack(message)
        consumer.flush(10)
        assert attempts == [1, 2]
        wait_for(lambda: client.subscription(topic, "s")["dead_lettered"] == 1)
    with client.reader(f"{topic}.s.dlq", start="earliest") as reader:
        letter = reader.receive(10)
        assert letter is not None
        assert (letter.payload, letter.key) == (b"1", b"b")
        told = letter.attributes
        assert (told["ister.topic"], told["ister.subscription"], told["ister.offset"]) == (topic, "s", "1")
        assert (told["ister.attempts"], told["ister.reason"]) == ("2", "cannot")


def test_a_blocked_subscription_waits_for_a_word(client: ister.Client, topic: str) -> None:
    """It tells its consumer and everybody who asks, and continues when an operator decides."""
    fill(client, topic, 2)
    with client.consumer(topic, "s", start="earliest", max_deliveries=1, poison="block") as consumer:
        message = consumer.receive(10)
        assert message is not None
        consumer.nack(message)
        wait_for(lambda: client.subscription(topic, "s")["blocked"])
        assert not client.explain(topic, "s")["flowing"]
        assert client.unblock(topic, "s", "retry") == 1
        again = wait_for(lambda: consumer.receive(0.1))
        while again.offset != 0:
            again = wait_for(lambda: consumer.receive(0.1))
        consumer.ack(again)
        consumer.flush(10)
        assert "blocked" in [event.code for event in consumer.events]


def test_asyncio_has_all_of_it(broker: OwnBroker, topic: str) -> None:
    """The same calls, awaited."""

    async def program() -> None:
        async with ister.aio.connect(broker.endpoint, timeout=40) as client:
            async with client.producer(topic) as producer:
                await (await producer.send_batch([b"%d" % n for n in range(9)]))
            async with client.reader(topic, start=5) as reader:
                first = await reader.receive(10)
                assert first is not None
                assert first.offset == 5
            async with client.consumer(topic, "s", start="earliest", max_deliveries=5) as consumer:
                message = await consumer.receive(10)
                assert message is not None
                consumer.extend(message)
                assert await consumer.seek(7) == 7
                again = await consumer.receive(10)
                assert again is not None
                assert again.offset == 7
                assert [each.offset for each in await client.peek(topic, "s", 2)] == [7, 8]
                await client.pause(topic, "s")
                assert not (await client.explain(topic, "s"))["flowing"]

    asyncio.run(program())
