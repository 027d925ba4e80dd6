"""Tests of the Producer class, against a broker in memory."""

from __future__ import annotations

import threading

import pytest

import ister
from ister import testing
from ister.errors import ClosedError, RemoteError, TimeoutExpiredError, UsageError
from ister.opening import producer_id
from ister.wire import Limit, Type

MESSAGES = 3000


def send_until_refused(producer: ister.Producer, timeout: float | None = None) -> None:
    """Send message after message, reading each receipt unless there is a timeout for sending."""
    for _ in range(10_000):
        receipt = producer.send(b"x" * 90, timeout=timeout)
        if timeout is None:
            receipt.result(5)


def publishes(broker: testing.Broker) -> int:
    """Return how many batches the broker received."""
    return sum(kind == Type.PUBLISH for kind, _ in list(broker.heard))


def test_a_message_gets_an_offset(client: ister.Client) -> None:
    """The receipt has the message's offset."""
    with client.producer("orders") as producer:
        assert producer.send(b"hello", key=b"k", attributes={"a": "b"}).result(5) == ister.Published(
            "orders", 0
        )
        assert producer.send(b"").result(5).offset == 1


def test_many_messages_travel_in_few_batches(broker: testing.Broker, client: ister.Client) -> None:
    """One call per message is not one frame per message, and offsets are consecutive."""
    with client.producer("orders") as producer:
        receipts = [producer.send(b"%d" % number) for number in range(MESSAGES)]
        producer.flush(5)
        assert [receipt.result(0).offset for receipt in receipts] == list(range(MESSAGES))
    assert publishes(broker) < MESSAGES / 20


def test_what_is_gathered_goes_by_itself(client: ister.Client) -> None:
    """The background thread sends the messages after the linger, without a flush."""
    with client.producer("orders") as producer:
        done = threading.Event()
        for _ in range(3):
            receipt = producer.send(b"x")
        receipt.add_done_callback(lambda _: done.set())
        assert done.wait(5)


def test_a_batch_has_one_receipt(client: ister.Client) -> None:
    """Small lists join the gathered messages, large ones go alone; in both cases offsets are consecutive."""
    with client.producer("orders", batch_bytes=2000) as producer:
        small = producer.send_batch([b"a", b"b"])
        large = producer.send_batch([b"x" * 100] * 50)
        joined = [producer.send_batch([b"c"]) for _ in range(5)]
        assert small.result(5) == ister.Published("orders", 0, 2)
        assert large.result(5) == ister.Published("orders", 2, 50)
        assert [receipt.result(5).offset for receipt in joined] == [52, 53, 54, 55, 56]


def test_batches_go_together_while_receipts_lag(broker: testing.Broker, client: ister.Client) -> None:
    """A quarter of what is on its way is sent at once, in the order of the calls, and each call has its own receipt."""
    with client.producer("orders", batch_bytes=5000, linger_ms=60_000) as producer:
        broker.silent = True
        receipts = [producer.send_batch([b"%03d" % number * 30] * 10) for number in range(30)]
        sent = [batch.count for batch in producer.publication.batches]
        assert sent[:5] == [10] * 5, "nothing is on its way yet"
        assert 40 <= max(sent) <= 50, "as many as come nearest to the size of a batch"
        producer.send_batch([b"k"] * 10, keys=[b"k"] * 10)
        assert sum(batch.count for batch in producer.publication.batches) == 310, "one with keys goes alone"
        broker.silent = False
        broker.disconnect()
        producer.flush(10)
        assert [receipt.result(5) for receipt in receipts] == [
            ister.Published("orders", 10 * number, 10) for number in range(30)
        ]
    with client.reader("orders", start="earliest") as reader:
        messages = [reader.receive(5) for _ in range(300)]
    assert [message and message.payload[:3] for message in messages] == [
        b"%03d" % (n // 10) for n in range(300)
    ]


def test_a_batch_is_what_its_list_was_when_it_was_given(broker: testing.Broker, client: ister.Client) -> None:
    """Also if it is sent later, together with others: a program may use its list, and its buffers, again."""
    with client.producer("orders", batch_bytes=5000, linger_ms=60_000) as producer:
        broker.silent = True
        payloads: list[bytes] = [b"x" * 90] * 9
        buffer = bytearray(b"x" * 90)
        for number in range(20):
            buffer[:2] = b"%02d" % number
            payloads[0] = b"%02d" % number
            producer.send_batch([*payloads, buffer])  # type: ignore[list-item]
            payloads[0] = b"changed"
        buffer[:] = bytes(90)
        broker.silent = False
        broker.disconnect()
        producer.flush(10)
    with client.reader("orders", start="earliest") as reader:
        messages = [reader.receive(5) for _ in range(200)]
    found = [message.payload for message in messages if message is not None]
    assert found[::10] == [b"%02d" % number for number in range(20)]
    assert [payload[:2] for payload in found[9::10]] == [b"%02d" % number for number in range(20)]


def test_a_batch_may_have_columns(client: ister.Client) -> None:
    """Keys and attributes, one per message."""
    with client.producer("orders") as producer:
        producer.send_batch([b"a", b"b"], keys=[b"k", None], attributes=[None, {"x": "y"}]).result(5)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        first, second = consumer.receive(5), consumer.receive(5)
    assert first is not None
    assert second is not None
    assert (first.key, first.attributes) == (b"k", {})
    assert (second.key, second.attributes) == (None, {"x": "y"})


def test_order_is_kept_between_kinds_of_calls(client: ister.Client) -> None:
    """The broker gets send, send with columns and send_batch of one thread in the order of the calls."""
    with client.producer("orders", batch_bytes=300) as producer:
        sent = []
        for number in range(200):
            payload = b"%d" % number
            if number % 7 == 3:
                producer.send(payload, key=b"k")
            elif number % 7 == 5:
                producer.send_batch([payload])
            elif number % 31 == 1:
                payload = payload.ljust(400)
                producer.send_batch([payload])
            else:
                producer.send(payload)
            sent.append(payload)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        received = [message.payload for _, message in zip(sent, consumer, strict=False)]
    assert received == sent


def test_threads_may_share_a_producer(client: ister.Client) -> None:
    """Every message has an offset of its own, in the order of its thread."""
    offsets: dict[int, list[int | None]] = {}
    with client.producer("orders", batch_bytes=500) as producer:

        def send(number: int) -> None:
            receipts = [producer.send(b"%d" % number) for _ in range(500)]
            offsets[number] = [receipt.result(10).offset for receipt in receipts]

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    everything = [offset for each in offsets.values() for offset in each if offset is not None]
    assert sorted(everything) == list(range(2000))
    for each in offsets.values():
        assert each == sorted(each, key=lambda offset: offset or 0)


def test_a_full_window_holds_the_program_up(broker: testing.Broker, client: ister.Client) -> None:
    """Memory is bounded: `send` waits, and raises when it may not wait longer."""
    with client.producer("orders", batch_bytes=1000, window_bytes=3000) as producer:
        broker.silent = True
        with pytest.raises(TimeoutExpiredError, match="window"):
            send_until_refused(producer, timeout=0.05)
        with pytest.raises(TimeoutExpiredError):
            producer.send_batch([b"x" * 900] * 3, timeout=0.05)
        assert producer.publication.bytes <= 3000
        broker.silent = False
        broker.disconnect()
        producer.flush(10)


def test_a_refused_message_raises_from_its_receipt(broker: testing.Broker, client: ister.Client) -> None:
    """If a program has read the error from its receipt, nothing else raises it; later messages are stored."""
    with client.producer("orders") as producer:
        broker.refuse(Type.PUBLISH, "invalid-argument")
        with pytest.raises(RemoteError) as caught:
            producer.send(b"x").result(5)
        assert caught.value.code == "invalid-argument"
        assert producer.send(b"y").result(5).offset == 0


def test_a_refused_message_nobody_asked_about_raises_from_flush(
    broker: testing.Broker, client: ister.Client
) -> None:
    """A program that ignores receipts still gets the error."""
    with client.producer("orders") as producer:
        broker.refuse(Type.PUBLISH, "invalid-argument")
        producer.send(b"x")
        with pytest.raises(RemoteError):
            producer.flush(5)
        producer.flush(5)


def test_a_full_disk_is_waited_out(broker: testing.Broker, client: ister.Client) -> None:
    """The client retries after `retry` errors."""
    with client.producer("orders") as producer:
        broker.refuse(Type.PUBLISH, "disk-full", times=2)
        assert producer.send(b"x").result(5).offset == 0


def test_a_timeout_says_what_stands_in_the_way(broker: testing.Broker, client: ister.Client) -> None:
    """The text has the last error."""
    with client.producer("orders") as producer:
        broker.refuse(Type.PUBLISH, "disk-full", times=3)
        receipt = producer.send(b"x")
        with pytest.raises(TimeoutExpiredError, match="disk-full"):
            receipt.result(0.05)
        receipt.result(5)


@pytest.mark.parametrize("how", ["disconnect", "restart", "expire"])
def test_what_is_on_its_way_survives_a_lost_connection(
    broker: testing.Broker, client: ister.Client, how: str
) -> None:
    """Every message is stored once, whatever happens to the connection."""
    with client.producer("orders", batch_bytes=200) as producer:
        receipts = []
        for number in range(1000):
            receipts.append(producer.send(b"%d" % number))
            if number % 300 == 150:
                getattr(broker, how)()
        assert [receipt.result(10).offset for receipt in receipts] == list(range(1000))


def test_an_older_producer_of_the_same_name_is_fenced(broker: testing.Broker, client: ister.Client) -> None:
    """Only one program at a time can be a named producer."""
    with ister.connect(broker.endpoint, timeout=5) as other:
        old = client.producer("orders", name="me")
        old.send(b"a").result(5)
        with other.producer("orders", name="me") as new:
            assert new.send(b"b").result(5).offset == 1
            with pytest.raises(RemoteError) as caught:
                send_until_refused(old)
            assert caught.value.code == "producer-fenced"


def test_a_deleted_topic_fails_its_producers(client: ister.Client) -> None:
    """The topic's error is raised by the receipt and by every later send."""
    producer = client.producer("orders")
    client.delete_topic("orders")
    with pytest.raises(RemoteError) as caught:
        send_until_refused(producer)
    assert caught.value.code == "topic-deleted"
    producer.close()


def test_wrong_arguments_are_refused_before_anything_is_sent(
    broker: testing.Broker, client: ister.Client
) -> None:
    """Each with an error that says what is right."""
    with client.producer("orders") as producer:
        with pytest.raises(UsageError, match="encode"):
            producer.send("text")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="encode"):
            producer.send_batch(["text"])  # type: ignore[list-item]
        with pytest.raises(UsageError, match="text to text"):
            producer.send(b"x", attributes={"a": 1})  # type: ignore[dict-item]
        with pytest.raises(UsageError, match="key"):
            producer.send(b"x", key=5)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            producer.send_batch([])
        with pytest.raises(UsageError, match="2 payloads"):
            producer.send_batch([b"a", b"b"], keys=[b"k"])
        with pytest.raises(UsageError, match="timeout"):
            producer.flush("soon")  # type: ignore[arg-type]
        for call in (
            lambda: producer.send(bytes((1 << 20) + 1)),
            lambda: producer.send_batch([b"x", bytes((1 << 20) + 1)]),
        ):
            with pytest.raises(UsageError, match=r"message_bytes_max.*'orders'") as caught:
                call()
            assert caught.value.code == "message-too-large"
        with pytest.raises(UsageError) as caught:
            producer.send_batch([bytes(1 << 20)] * 5)
        assert caught.value.code == "batch-too-large"
    assert publishes(broker) == 0


def test_a_message_larger_than_a_batch_goes_alone(client: ister.Client) -> None:
    """batch_bytes says when to send a batch, not how large a message may be."""
    with client.producer("orders", batch_bytes=100) as producer:
        receipts = [producer.send(payload) for payload in (b"a", b"b", bytes(5000), b"c")]
        assert [receipt.result(5).offset for receipt in receipts] == [0, 1, 2, 3]


@pytest.mark.requirement("12-1")
def test_limits_of_the_broker_bound_the_batch() -> None:
    """If the broker's limit is lower than batch_bytes, it counts."""
    limits = {Limit.MESSAGE_BYTES_MAX: 500, Limit.BATCH_BYTES_MAX: 1000}
    with testing.Broker(limits=limits) as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.producer("orders", batch_bytes=1 << 20) as producer:
            receipts = [producer.send(b"x" * 90) for _ in range(200)]
            producer.flush(5)
            assert receipts[-1].result(0).offset == 199


def test_a_closed_producer_says_so(client: ister.Client) -> None:
    """Closing again does nothing."""
    producer = client.producer("orders")
    producer.send(b"x")
    producer.close()
    producer.close()
    with pytest.raises(ClosedError):
        producer.send(b"x")
    with pytest.raises(ClosedError):
        producer.send_batch([b"x"])


def test_closing_in_vain_fails_the_receipts(broker: testing.Broker, client: ister.Client) -> None:
    """A program does not wait for ever for a broker that does not answer."""
    producer = client.producer("orders")
    broker.silent = True
    receipt = producer.send(b"x")
    with pytest.raises(TimeoutExpiredError):
        producer.close(timeout=0.1)
    with pytest.raises(ClosedError):
        receipt.result(0)
    broker.silent = False


def test_an_exception_in_the_block_is_not_hidden(broker: testing.Broker, client: ister.Client) -> None:
    """The producer is closed, and an error of that does not replace the block's exception."""
    with pytest.raises(ZeroDivisionError), client.producer("orders") as producer:
        producer.send(b"%d" % (1 // len(producer.send(b"x").result(5).topic[:0])))
    assert publishes(broker) == 1


@pytest.mark.requirement("8.1-4")
def test_a_named_producer_is_told_where_it_stood(broker: testing.Broker, client: ister.Client) -> None:
    """Its last stored sequence: -1 at first, and kept over program runs, connections and broker restarts."""
    with client.producer("orders", name="loader") as producer:
        assert producer.last_sequence == -1
        producer.send_batch([b"0", b"1", b"2"])
        assert producer.last_sequence == 2
    broker.restart()
    with ister.connect(broker.endpoint, timeout=5) as again:
        with again.producer("orders", name="loader") as producer:
            assert producer.last_sequence == 2
            assert producer.send(b"3").result(5).offset == 3
        with again.producer("orders", name="another") as producer:
            assert producer.last_sequence == -1


def test_a_number_that_was_stored_before_is_answered_as_a_duplicate(client: ister.Client) -> None:
    """A program may send everything again with its own sequences, and nothing is stored twice."""
    with client.producer("orders", name="loader") as producer:
        for number in range(0, 20, 2):
            assert not producer.send(b"%d" % number, sequence=number).result(5).duplicate
        assert producer.last_sequence == 18
    with client.producer("orders", name="loader") as producer:
        receipts = [producer.send(b"%d" % number, sequence=number) for number in range(0, 30, 2)]
        assert [receipt.result(5).duplicate for receipt in receipts] == [True] * 10 + [False] * 5
        twice = producer.send(b"28", sequence=28)
        assert twice.result(5).duplicate
        with pytest.raises(UsageError):
            producer.send(b"x", sequence=-1)
    with client.reader("orders", start="earliest") as reader:
        found = [reader.receive(5) for _ in range(15)]
        assert [each.payload for each in found if each] == [b"%d" % number for number in range(0, 30, 2)]
        assert reader.receive(0.05) is None


def test_names_are_the_same_producers_in_every_language() -> None:
    """With the example of PROTOCOL.md."""
    assert producer_id("orders", "loader") == 70_219_652_783_341_418


def test_small_batches_to_many_topics_are_sent_together(broker: testing.Broker, client: ister.Client) -> None:
    """While many producers of the connection wait for receipts; offsets stay in order, and a flush sends the rest."""
    with client.producer("orders", linger_ms=60_000) as producer:
        producer.send_batch([b"first"]).result(5)
        broker.silent = True
        receipts = [producer.send_batch([b"a", b"b"])]
        session = producer.publication.session
        assert session is not None
        session.awaiting.update(range(1000, 1100))
        receipts += [producer.send_batch([b"%d" % number] * 3) for number in range(20)]
        receipts.append(producer.send_batch([b"x"], keys=[b"k"]))
        assert len(producer.publication.batches) == 3
        broker.silent = False
        broker.disconnect()
        producer.flush(10)
        assert [receipt.result(0).offset for receipt in receipts] == [1, *range(3, 63, 3), 63]


def test_a_small_batch_that_waits_for_others_goes_after_the_linger(client: ister.Client) -> None:
    """Nobody has to flush, or to send more."""
    with client.producer("orders", linger_ms=5) as producer:
        producer.send_batch([b"first"]).result(5)
        session = producer.publication.session
        assert session is not None
        session.awaiting.update(range(1000, 1100))
        receipts = [producer.send_batch([b"a", b"b"]) for _ in range(20)]
        assert [receipt.result(5).offset for receipt in receipts] == list(range(1, 41, 2))
