"""Tests of the Consumer class, against a broker in memory."""

from __future__ import annotations

import gc
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import ister
from ister import testing
from ister.acknowledgments import joined
from ister.attachment import Attachment
from ister.clientsession import Frame
from ister.errors import ClosedError, ConnectionLostError, RemoteError, UsageError
from ister.wire import Key, Type

if TYPE_CHECKING:
    from collections.abc import Iterable


def fill(client: ister.Client, count: int) -> list[bytes]:
    """Publish numbered messages."""
    payloads = [b"%d" % number for number in range(count)]
    with client.producer("orders") as producer:
        producer.send_batch(payloads).result(5)
    return payloads


def frames(broker: testing.Broker, kind: int) -> list[dict[int, Any]]:
    """Return the headers of a type that the broker has heard."""
    return [header for heard, header in list(broker.heard) if heard == kind]


def payloads_of(messages: Iterable[ister.Message]) -> list[bytes]:
    """Return the payloads."""
    return [message.payload for message in messages]


def received(consumer: ister.Consumer, count: int) -> list[ister.Message]:
    """Receive so many messages."""
    found = []
    for _ in range(count):
        message = consumer.receive(5)
        assert message is not None
        found.append(message)
    return found


def test_large_batches_come_as_bytes_with_all_their_columns(client: ister.Client) -> None:
    """Payloads, keys and attributes of a delivery whose frames are large."""
    payloads = [b"%03d" % number * 9000 for number in range(9)]
    keys = [b"%06d" % number * 2000 for number in range(9)]
    attributes = [{"x": f"{number:05}" * 3000} for number in range(9)]
    with client.producer("orders") as producer:
        producer.send_batch(payloads, keys=keys, attributes=attributes).result(10)
    with client.consumer("orders", "s", start="earliest") as consumer:
        messages: list[ister.Message] = []
        while len(messages) < 9:
            message = consumer.receive(5)
            assert message is not None
            consumer.ack(message)
            messages.append(message)
    assert [message.payload for message in messages] == payloads
    assert [message.key for message in messages] == keys
    assert [message.attributes for message in messages] == attributes
    assert (
        {type(message.payload) for message in messages}
        == {type(message.key) for message in messages}
        == {bytes}
    )


def test_a_loop_sees_every_message_in_order(client: ister.Client) -> None:
    """The simplest consumer program."""
    sent = fill(client, 3000)
    received = []
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        for message in consumer:
            received.append(message.payload)
            consumer.ack(message)
            if len(received) == len(sent):
                break
    assert received == sent


@pytest.mark.parametrize("pattern", [False, True])
def test_damage_is_raised_when_everything_from_before_it_was_handed_out(
    client: ister.Client, pattern: bool
) -> None:
    """By the call that asks for more; acknowledging and flushing what there was goes on."""
    fill(client, 20)
    damage = {Key.TYPE: Type.EVENT, Key.HANDLE: 0, Key.CODE: "log-damaged", Key.TEXT: "it is damaged"}
    topic = "*" if pattern else "orders"
    with client.consumer(topic, "s", start="earliest", credit_messages=20) as consumer:
        messages = received(consumer, 1)
        with client.network.lock:
            attachment = messages[0].delivery.owner
            assert isinstance(attachment, Attachment)
            attachment.on_frame(Frame(Type.EVENT, damage, [], 0.0))
        for _ in range(2):
            for message in messages:
                consumer.ack(message)
            consumer.flush(5)
            messages = received(consumer, 20 - len(messages)) if len(messages) == 1 else []
        with pytest.raises(RemoteError, match="it is damaged"):
            consumer.receive(5)
        assert consumer.receive(0.05) is None


def test_acknowledged_messages_do_not_come_again(client: ister.Client) -> None:
    """Messages not acknowledged go to the next consumer."""
    fill(client, 100)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        for message in consumer:
            if message.offset % 2:
                consumer.ack(message)
            if message.offset == 99:
                break
    with client.consumer("orders", subscription="s") as consumer:
        again = [consumer.receive(5) for _ in range(50)]
        assert [message.offset for message in again if message] == list(range(0, 100, 2))
        assert all(message.attempt == 2 for message in again if message)
        assert consumer.receive(0.05) is None


def test_acknowledging_is_cheap_in_frames(broker: testing.Broker, client: ister.Client) -> None:
    """One call per message is not one frame per message."""
    fill(client, 3000)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        for message in consumer:
            consumer.ack(message)
            if message.offset == 2999:
                break
        consumer.flush(5)
    assert len(frames(broker, Type.ACK)) < 30


def test_acknowledgments_go_out_by_themselves(broker: testing.Broker, client: ister.Client) -> None:
    """Acknowledgments of a program that is busy for long are sent meanwhile."""
    fill(client, 10)
    with client.consumer("orders", subscription="s", type="exclusive", start="earliest") as consumer:
        batch = consumer.receive_batch(timeout=5)
        assert batch is not None
        consumer.ack(batch)
        waited = threading.Event()
        for _ in range(500):
            if frames(broker, Type.ACK):
                break
            waited.wait(0.01)
        [ack] = frames(broker, Type.ACK)
        assert ack[Key.RANGES] == [0, 10]


def test_receive_batch_returns_what_came_together(client: ister.Client) -> None:
    """Limited to the count asked for; the others come with the next call."""
    sent = fill(client, 1000)
    received: list[bytes] = []
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        while len(received) < 1000:
            batch = consumer.receive_batch(max_messages=70, timeout=5)
            assert batch is not None
            assert len(batch) <= 70
            assert batch.offsets[0] == len(received)
            received += batch.payloads
            consumer.ack(batch)
        assert consumer.receive_batch(timeout=0) is None
        consumer.flush(5)
    assert received == sent


def test_the_ways_to_receive_can_be_mixed(client: ister.Client) -> None:
    """Each continues where the one before stopped."""
    sent = fill(client, 300)
    received: list[bytes] = []
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        for message in consumer:
            received.append(message.payload)
            if len(received) == 10:
                break
        single = consumer.receive(5)
        assert single is not None
        received.append(single.payload)
        batch = consumer.receive_batch(5, timeout=5)
        assert batch is not None
        received += batch.payloads
        for message in consumer:
            received.append(message.payload)
            if len(received) == 40:
                rest = consumer.receive_batch(timeout=5)  # in the middle of a loop
                assert rest is not None
                received += rest.payloads
            if len(received) == 300:
                break
    assert received == sent


def test_any_collection_of_messages_is_acknowledged(broker: testing.Broker, client: ister.Client) -> None:
    """Also a generator, or a slice of a batch."""
    fill(client, 30)
    with client.consumer("orders", subscription="s", type="exclusive", start="earliest") as consumer:
        batch = consumer.receive_batch(timeout=5)
        assert batch is not None
        consumer.ack(batch[0:5])
        consumer.ack([batch[7], batch[6]])
        consumer.ack(message for message in batch if message.offset >= 20)
        consumer.ack([])
        consumer.flush(5)
    flat = [header[Key.RANGES] for header in frames(broker, Type.ACK)]  # a slow machine sends more than one
    ranges = [pair for each in flat for pair in zip(each[::2], each[1::2], strict=True)]
    assert joined(ranges) == [(0, 5), (6, 8), (20, 30)]


def test_ack_until_acknowledges_everything_before(client: ister.Client) -> None:
    """One call acknowledges a whole prefix."""
    fill(client, 50)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        for message in consumer:
            if message.offset == 39:
                consumer.ack_until(message)
                break
        consumer.flush(5)
    with client.consumer("orders", subscription="s") as consumer:
        first = consumer.receive(5)
        assert first is not None
        assert first.offset == 40


def test_nack_brings_a_message_back_later(client: ister.Client) -> None:
    """After the delay, in any notation, with the next attempt's number."""
    fill(client, 3)
    with client.consumer(
        "orders", subscription="s", type="shared", start="earliest", credit_messages=100
    ) as consumer:
        batch = consumer.receive_batch(timeout=5)
        assert batch is not None
        consumer.ack([batch[0], batch[2]])
        again, attempt = batch[1], 1
        for delay in (0.05, "50ms", timedelta(milliseconds=50)):
            consumer.nack(again, delay=delay, reason="not yet")
            found = consumer.receive(5)
            assert found is not None
            again, attempt = found, attempt + 1
            assert (again.offset, again.attempt) == (1, attempt)


@pytest.mark.parametrize("how", ["disconnect", "restart", "expire"])
def test_a_loop_survives_a_lost_connection(broker: testing.Broker, client: ister.Client, how: str) -> None:
    """No message is missing; only unacknowledged ones come twice."""
    sent = fill(client, 2000)
    seen: list[bytes] = []
    lose = [300, 900]
    with client.consumer("orders", subscription="s", start="earliest", credit_messages=100) as consumer:
        for message in consumer:
            if message.payload not in seen[-300:]:
                seen.append(message.payload)
            consumer.ack(message)
            if lose and message.offset >= lose[0]:
                lose.pop(0)
                getattr(broker, how)()
            if message.offset == 1999:
                break
    assert sorted(set(seen), key=int) == sent


def test_flush_says_when_a_restart_lost_acknowledgments(broker: testing.Broker, client: ister.Client) -> None:
    """The program takes them for done: `flush` raises for them, once."""
    fill(client, 10)
    with client.consumer("orders", subscription="s", type="exclusive", start="earliest") as consumer:
        batch = consumer.receive_batch(timeout=5)
        assert batch is not None
        broker.restart()
        consumer.ack(batch)
        again = None
        for _ in range(100):
            again = consumer.receive_batch(timeout=5)
            assert again is not None
            if again.attempt > 1 or again.delivery is not batch.delivery:
                break
        consumer.ack(batch)  # of the old delivery: it has no effect any more
        with pytest.raises(ConnectionLostError):
            consumer.flush(5)
        assert again is not None
        consumer.ack(again)
        consumer.flush(5)


def test_credit_bounds_what_is_on_its_way(broker: testing.Broker, client: ister.Client) -> None:
    """A program that takes nothing gets no more than its credit."""
    fill(client, 1000)
    with client.consumer("orders", subscription="s", start="earliest", credit_messages=64) as consumer:
        first = consumer.receive(5)
        assert first is not None
        waited = threading.Event()
        waited.wait(0.1)
        assert sum(delivery.count for delivery in consumer.attachment.handing.queue) < 2 * 64
        rest = [consumer.receive(5) for _ in range(999)]
        assert [message.offset for message in rest if message] == list(range(1, 1000))
    assert len(frames(broker, Type.CREDIT)) >= 10


def test_a_second_exclusive_consumer_is_refused(broker: testing.Broker, client: ister.Client) -> None:
    """At once, with the error code; it gets the subscription when the first has left."""
    with ister.connect(broker.endpoint, timeout=5) as other:
        with client.consumer("orders", subscription="s", type="exclusive"):
            for timeout in (None, 0.2):
                with pytest.raises(RemoteError, match="force=True") as caught:
                    other.consumer("orders", subscription="s", type="exclusive", timeout=timeout)
                assert caught.value.code == "subscription-busy"
        other.consumer("orders", subscription="s", type="exclusive").close()


def test_a_second_exclusive_consumer_waits_for_the_place(
    broker: testing.Broker, client: ister.Client
) -> None:
    """For as long as `timeout`."""
    with ister.connect(broker.endpoint, timeout=5) as other:
        first = client.consumer("orders", subscription="s", type="exclusive")
        timer = threading.Timer(0.3, first.close)
        timer.start()
        with other.consumer("orders", subscription="s", type="exclusive", timeout=20) as second:
            assert second.position == 0
        timer.join()


def test_failover_tells_who_is_active(broker: testing.Broker, client: ister.Client) -> None:
    """The next one takes over with all unacknowledged messages."""
    fill(client, 10)
    news: list[str] = []
    with ister.connect(broker.endpoint, timeout=5) as other:
        first = client.consumer("orders", subscription="s", type="failover", start="earliest")
        assert first.receive(5) is not None
        second = other.consumer(
            "orders", subscription="s", type="failover", on_event=lambda event: news.append(event.code)
        )
        assert second.receive(0.2) is None
        assert (first.active, second.active) == (True, False)
        first.close()
        batch = second.receive_batch(timeout=5)
        assert batch is not None
        assert payloads_of(batch)[0] == b"0"
        assert second.active
        assert news == ["standby", "active"]
        assert [event.code for event in second.events] == news
        second.close()


def test_a_deleted_subscription_ends_the_loop_with_its_error(client: ister.Client) -> None:
    """The iterator raises the broker's error."""
    with client.consumer("orders", subscription="s") as consumer:
        deleting = threading.Timer(0.05, client.delete_subscription, ("orders", "s"))
        deleting.start()
        with pytest.raises(RemoteError) as caught:
            for _ in consumer:
                pass
        assert caught.value.code == "subscription-deleted"
        with pytest.raises(RemoteError):
            consumer.receive(0)
        deleting.join()


def test_closing_ends_the_loop_quietly(client: ister.Client) -> None:
    """Another thread may end a loop by closing its consumer."""
    consumer = client.consumer("orders", subscription="s")
    closing = threading.Timer(0.05, consumer.close)
    closing.start()
    assert list(consumer) == []
    closing.join()
    with pytest.raises(ClosedError):
        consumer.receive(0)
    consumer.close()


def test_messages_of_another_consumer_are_not_acknowledged_here(client: ister.Client) -> None:
    """The same offsets are other messages there."""
    fill(client, 1)
    with (
        client.consumer("orders", subscription="a", start="earliest") as one,
        client.consumer("orders", subscription="b", start="earliest") as two,
    ):
        message = one.receive(5)
        assert message is not None
        with pytest.raises(UsageError, match="another consumer"):
            two.ack(message)


def test_wrong_arguments_are_refused(client: ister.Client) -> None:
    """Each with an error that says what is right."""
    with client.consumer("orders", subscription="s") as consumer:
        for wrong in (5, [5], "text"):
            with pytest.raises(UsageError, match="message or a batch"):
                consumer.ack(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="max_messages"):
            consumer.receive_batch(0)
        with pytest.raises(UsageError, match="timeout"):
            consumer.receive(-1)
        with pytest.raises(UsageError, match="delay"):
            consumer.nack([], delay=-1)
        with pytest.raises(UsageError, match="a day"):
            consumer.nack([], delay="25h")
        with pytest.raises(UsageError, match="reason"):
            consumer.nack([], reason="x" * 1000)


def test_acknowledging_in_other_threads_loses_nothing(client: ister.Client) -> None:
    """Threads of a pool may acknowledge what one thread receives."""
    fill(client, 2000)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        messages = [message for _, message in zip(range(2000), consumer, strict=False)]

        def acknowledge(part: list[ister.Message]) -> None:
            for message in part:
                consumer.ack(message)

        threads = [threading.Thread(target=acknowledge, args=(messages[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        consumer.flush(5)
    with client.consumer("orders", subscription="s") as consumer:
        assert consumer.receive(0.1) is None


def test_a_consumer_that_nobody_holds_any_more_leaves_its_place(
    broker: testing.Broker, client: ister.Client
) -> None:
    """If a program drops its consumer without closing it, another gets the subscription before the program ends."""
    fill(client, 3)
    consumer = client.consumer("orders", "s", type="exclusive", start="earliest")
    message = consumer.receive(5)
    assert message is not None
    with ister.connect(broker.endpoint, timeout=5) as other:
        with pytest.raises(RemoteError):
            other.consumer("orders", "s", type="exclusive")
        del consumer
        gc.collect()
        with other.consumer("orders", "s", type="exclusive", timeout=20) as second:
            again = second.receive(20)
            assert again is not None
            assert again.offset == message.offset
    # the loop keeps a reference to it
    for message in client.consumer("orders", "t", type="exclusive", start="earliest"):
        gc.collect()
        if message.offset == 2:
            break
