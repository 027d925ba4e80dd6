"""Tests of readers, peeks and seeks, against a broker in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

import ister
import ister.aio
from ister import testing
from ister.errors import ClosedError, RemoteError, TimeoutExpiredError, UsageError
from ister.wire import Type


def fill(client: ister.Client, count: int) -> None:
    """Publish numbered messages."""
    with client.producer("orders") as producer:
        producer.send_batch([b"%d" % number for number in range(count)]).result(5)


def offsets_of(messages: Sequence[ister.BaseMessage]) -> list[int]:
    """Return the offsets."""
    return [message.offset for message in messages]


def taken(receiver: ister.Reader | ister.Consumer, count: int) -> list[int]:
    """Receive messages, and return their offsets."""
    found = []
    for _ in range(count):
        message = receiver.receive(5)
        assert message is not None
        found.append(message.offset)
    return found


# ---- readers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "first"), [("earliest", 0), (3, 3), (datetime(2020, 1, 1, tzinfo=UTC), 0)])
def test_a_reader_begins_where_it_is_told(
    client: ister.Client, start: ister.consumer.Position, first: int
) -> None:
    """The beginning, an offset, or a time."""
    fill(client, 6)
    with client.reader("orders", start=start) as reader:
        assert reader.position == first
        assert taken(reader, 6 - first) == list(range(first, 6))
        assert reader.receive(0) is None
    assert client.subscriptions("orders") == []


def test_the_latest_is_what_comes_from_now_on(client: ister.Client) -> None:
    """A time in the future also means from now on."""
    fill(client, 3)
    soon = datetime.now(UTC) + timedelta(days=1)
    with client.reader("orders", start="latest") as latest, client.reader("orders", start=soon) as later:
        fill(client, 2)
        assert taken(latest, 2) == taken(later, 2) == [3, 4]


def test_a_loop_over_a_reader_survives_lost_connections(broker: testing.Broker, client: ister.Client) -> None:
    """Every message once and in order, whether the broker kept the session or not."""
    fill(client, 5000)
    seen: list[int] = []
    with client.reader("orders", start="earliest", credit_messages=500) as reader:
        for message in reader:
            seen.append(message.offset)
            if len(seen) == 1000:
                broker.disconnect()
            if len(seen) == 2500:
                broker.restart()
            if len(seen) == 5000:
                break
    assert seen == list(range(5000))


def test_a_reader_and_a_consumer_do_not_know_of_each_other(client: ister.Client) -> None:
    """Reading takes nothing from a subscription."""
    fill(client, 4)
    with (
        client.consumer("orders", "s", start="earliest") as consumer,
        client.reader("orders", start="earliest") as reader,
        client.reader("orders", start="earliest") as other,
    ):
        assert taken(consumer, 4) == taken(reader, 4) == taken(other, 4) == [0, 1, 2, 3]


def test_a_closed_reader_says_so(client: ister.Client) -> None:
    """The error says that it is closed."""
    reader = client.reader("orders")
    reader.close()
    with pytest.raises(ClosedError, match="reader of topic 'orders'"):
        reader.receive(0)
    with pytest.raises(RemoteError, match="no topic"):
        client.reader("nothing")
    with pytest.raises(UsageError):
        client.reader("orders", start="soon")  # type: ignore[arg-type]


# ---- looking -----------------------------------------------------------------------------------------------------


def test_a_look_takes_nothing(client: ister.Client) -> None:
    """Acknowledged messages are left out, those in flight are included; the subscription is unchanged."""
    fill(client, 20)
    with client.consumer("orders", "s", start="earliest", type="exclusive") as consumer:
        batch = consumer.receive_batch(5, timeout=5)
        assert batch is not None
        consumer.ack([batch[0], batch[3]])
        consumer.flush(5)
    assert offsets_of(client.peek("orders", "s", 6)) == [1, 2, 4, 5, 6, 7]
    assert offsets_of(client.peek("orders", "s", 6)) == [1, 2, 4, 5, 6, 7]
    assert len(client.peek("orders", "s", 100)) == 18
    with client.consumer("orders", "s", type="exclusive") as consumer:
        assert taken(consumer, 3) == [1, 2, 4]


def test_a_look_at_nothing_is_empty(client: ister.Client) -> None:
    """Because everything is acknowledged, or the topic is empty."""
    client.create_subscription("orders", "s", start="earliest")
    assert client.peek("orders", "s") == []
    with pytest.raises(RemoteError):
        client.peek("orders", "nothing")


# ---- moving ------------------------------------------------------------------------------------------------------


def test_a_consumer_moves_its_subscription(client: ister.Client) -> None:
    """The next message is the one at the new position, and no earlier acknowledgment counts."""
    fill(client, 3000)
    with client.consumer("orders", "s", start="earliest") as consumer:
        old = consumer.receive(5)
        assert old is not None
        assert consumer.seek(2000) == 2000
        assert taken(consumer, 3) == [2000, 2001, 2002]
        assert consumer.seek("earliest") == 0
        consumer.ack(old)
        consumer.flush(5)
        assert taken(consumer, 3) == [0, 1, 2]
        assert consumer.seek("latest") == 3000
        assert consumer.receive(0.05) is None
        assert consumer.seek(datetime(2020, 1, 1, tzinfo=UTC)) == 0


def test_a_loop_goes_on_at_the_new_place(client: ister.Client) -> None:
    """Also in the middle of a batch."""
    fill(client, 10)
    seen = []
    with client.consumer("orders", "s", start="earliest") as consumer:
        for message in consumer:
            seen.append(message.offset)
            if seen == [0, 1, 2]:
                consumer.seek(8)
            if message.offset == 9:
                break
    assert seen == [0, 1, 2, 8, 9]


def test_what_comes_after_a_move_stays_with_the_thread_that_took_it_meanwhile(client: ister.Client) -> None:
    """The thread that asked for the move learns of it later: it drops nothing that was delivered since."""
    fill(client, 10)
    with client.consumer("orders", "s", start="earliest") as consumer:
        assert taken(consumer, 3) == [0, 1, 2]
        seeking = consumer.begin_seek("earliest")
        while taken(consumer, 1) != [0]:
            pass
        assert consumer.end_seek(seeking, 5) == 0
        assert taken(consumer, 9) == list(range(1, 10))


def test_somebody_else_moves_a_subscription(client: ister.Client) -> None:
    """Its consumer is told, and no credit is lost."""
    fill(client, 100)
    with client.consumer("orders", "s", start="earliest", credit_messages=10) as consumer:
        for _ in range(20):
            assert client.seek("orders", "s", 50) == 50
        until = time.monotonic() + 5
        while len(consumer.events) < 20 and time.monotonic() < until:
            consumer.receive(0.01)
        assert consumer.seek("earliest") == 0
        assert [event.code for event in consumer.events] == ["sought"] * 21
        assert taken(consumer, 100) == list(range(100))  # nothing from before, and ten at a time
    with pytest.raises(RemoteError):
        client.seek("orders", "nothing", 0)


def test_a_move_that_nobody_answers_has_its_timeout(broker: testing.Broker, client: ister.Client) -> None:
    """The error says what was waited for."""
    with client.consumer("orders", "s") as consumer:
        broker.silent = True
        with pytest.raises(TimeoutExpiredError, match="was not moved within"):
            consumer.seek(0, timeout=0.1)
        broker.silent = False


# ---- the rest of what a subscription can do ----------------------------------------------------------------------


def test_a_paused_subscription_delivers_nothing(client: ister.Client) -> None:
    """Until it is resumed; the request gives the reason."""
    fill(client, 3)
    client.create_subscription("orders", "s", start="earliest", max_deliveries=3)
    client.pause("orders", "s")
    with client.consumer("orders", "s") as consumer:
        assert consumer.receive(0.05) is None
        why = client.explain("orders", "s")
        assert (why["flowing"], [reason["code"] for reason in why["reasons"]]) == (False, ["paused"])
        client.resume("orders", "s")
        assert taken(consumer, 3) == [0, 1, 2]
        assert [event.code for event in consumer.events] == ["resumed"]
    assert client.subscription("orders", "s")["settings"] == {"max_deliveries": 3, "paused": 0}
    assert client.update_subscription("orders", "s", poison="drop")["settings"]["poison"] == "drop"
    assert client.unblock("orders", "s", "retry") == 0
    with pytest.raises(UsageError):
        client.unblock("orders", "s", "burn")  # type: ignore[arg-type]


def test_force_takes_an_exclusive_subscription_over(client: ister.Client) -> None:
    """The old consumer is told, and the new one gets what it held; the old one's unread messages are dropped."""
    fill(client, 3)
    with client.consumer("orders", "s", type="exclusive", start="earliest") as older:
        assert taken(older, 2) == [0, 1]
        with client.consumer("orders", "s", force=True) as newer:
            assert taken(newer, 3) == [0, 1, 2]
            with pytest.raises(RemoteError) as caught:
                older.receive(5)
            assert caught.value.code == "taken-over"


def test_keys_stay_with_one_consumer(client: ister.Client) -> None:
    """Deliveries with gaps between their offsets are acknowledged exactly."""
    with client.producer("orders") as producer:
        producer.send_batch([b"x"] * 200, keys=[b"k%d" % (n % 7) for n in range(200)]).result(5)
    seen: dict[int, list[tuple[bytes | None, int]]] = {0: [], 1: []}

    def consume(number: int, consumer: ister.Consumer) -> None:
        while sum(map(len, seen.values())) < 200:
            batch = consumer.receive_batch(timeout=0.05)
            if batch is not None:
                seen[number] += [(message.key, message.offset) for message in batch]
                consumer.ack(batch)
        consumer.flush(5)

    client.create_subscription("orders", "s", type="key-shared", start="earliest")
    client.pause("orders", "s")
    with (
        client.consumer("orders", "s", type="key-shared") as first,
        client.consumer("orders", "s", type="key-shared") as second,
    ):
        client.resume("orders", "s")
        threads = [threading.Thread(target=consume, args=each) for each in ((0, first), (1, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert sorted(offset for each in seen.values() for _, offset in each) == list(range(200))
    assert not {key for key, _ in seen[0]} & {key for key, _ in seen[1]}
    assert client.subscription("orders", "s")["pending"] == []


def test_work_that_takes_longer_is_said_to_the_broker(broker: testing.Broker, client: ister.Client) -> None:
    """A message, a batch, or several of them can be extended."""
    fill(client, 10)
    with client.consumer("orders", "s", start="earliest") as consumer:
        message, batch = consumer.receive(5), consumer.receive_batch(3, timeout=5)
        assert message is not None
        assert batch is not None
        consumer.extend(message, batch)
        consumer.extend([message])
        consumer.extend()
        consumer.flush(5)
        client.status()
        assert len([kind for kind, _ in broker.heard if kind == Type.EXTEND]) == 2
        with pytest.raises(UsageError):
            consumer.extend(b"x")  # type: ignore[arg-type]


def test_messages_wait_for_their_time(client: ister.Client) -> None:
    """Messages after them do not wait; a reader gets all in order at once."""
    with client.producer("orders") as producer:
        producer.send(b"later", delay=0.2)
        producer.send(b"now")
        at = datetime.now(UTC) + timedelta(seconds=0.1)
        producer.send_batch([b"a", b"b"], deliver_at=[at, None]).result(5)
    with client.consumer("orders", "s", type="shared", start="earliest") as consumer:
        received = [consumer.receive(5) for _ in range(4)]
    assert [message.payload for message in received if message] == [b"now", b"b", b"a", b"later"]
    assert received[0] is not None
    assert received[0].deliver_at is None
    with client.reader("orders", start="earliest") as reader:
        batch = reader.receive_batch(timeout=5)
        assert batch is not None
        assert batch.payloads == [b"later", b"now", b"a", b"b"]
        assert batch[2].deliver_at == round(at.timestamp() * 1000)


def test_a_non_reliable_topic_cannot_delay(client: ister.Client) -> None:
    """It stores nothing that could wait: the client gets an error."""
    client.create_topic("news", dispatch="non-reliable")
    with client.producer("news") as producer:
        producer.send(b"x", delay=0).result(5)
        for times in ({"delay": 1}, {"deliver_at": 5}):
            with pytest.raises(UsageError, match="non-reliable"):
                producer.send(b"x", **times)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="non-reliable"):
                producer.send_batch([b"x"], **times)  # type: ignore[arg-type]


def test_times_that_do_not_fit_their_batch_are_refused(client: ister.Client) -> None:
    """One for each message, or one for all."""
    with client.producer("orders") as producer:
        with pytest.raises(UsageError, match="2 times of delivery were given for 1 payload"):
            producer.send_batch([b"x"], deliver_at=[1, 2])
        with pytest.raises(UsageError, match="not both"):
            producer.send(b"x", deliver_at=5, delay=1)


def test_asyncio_has_all_of_it(broker: testing.Broker) -> None:
    """The same calls with `await`."""

    async def program() -> None:
        async with ister.aio.connect(broker.endpoint, timeout=5) as client:
            await client.create_topic("orders")
            async with client.producer("orders") as producer:
                await (await producer.send_batch([b"%d" % n for n in range(9)]))
                await (await producer.send(b"9", delay=0.05))
            seen = []
            async with client.reader("orders", start=5) as reader:
                assert reader.position == 5
                async for message in reader:
                    seen.append(message.offset)
                    if message.offset == 9:
                        break
            assert seen == [5, 6, 7, 8, 9]
            async with client.consumer("orders", "s", start="earliest", max_deliveries=5) as consumer:
                first = await consumer.receive(5)
                assert first is not None
                consumer.extend(first)
                assert await consumer.seek(7) == 7
                again = await consumer.receive(5)
                assert again is not None
                assert again.offset == 7
                assert await client.seek("orders", "s", "earliest") == 0
                assert offsets_of(await client.peek("orders", "s", 2)) == [0, 1]
                await client.pause("orders", "s")
                assert not (await client.explain("orders", "s"))["flowing"]
                await client.resume("orders", "s")
                await client.update_subscription("orders", "s", max_deliveries=6)
                assert (await client.subscription("orders", "s"))["settings"]["max_deliveries"] == 6
                assert await client.unblock("orders", "s", "drop") == 0

    asyncio.run(program())
