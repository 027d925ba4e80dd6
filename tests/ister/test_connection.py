"""Tests of moving frames: which thread waits, which is woken, and what the background thread does."""

from __future__ import annotations

import threading
from functools import partial

import pytest

import ister
from ister import testing
from ister.clock import SystemClock
from ister.connection import Connection
from ister.polling import Wake, poll
from ister.wire import Type


def _set(event: threading.Event, _receipt: object) -> None:
    event.set()


def test_a_wake_wakes_once() -> None:
    """A wake before the wait counts, and several count once."""
    wake = Wake()
    clock = SystemClock()
    for _ in range(1000):
        wake.set()
    began = clock.monotonic()
    poll(wake, (), 5)
    assert clock.monotonic() - began < 1
    poll(wake, (), 0.02)
    assert clock.monotonic() - began >= 0.015
    wake.close()


def test_a_closed_descriptor_does_not_hold_a_wait_up() -> None:
    """Another thread may close the socket during the wait."""
    wake, other = Wake(), Wake()
    fd = other.fd
    other.close()
    poll(wake, (fd,), 5)
    wake.close()


def test_two_waiting_threads_of_one_client_both_get_theirs(client: ister.Client) -> None:
    """One of them moves the frames, and wakes the other."""
    received: dict[str, bytes] = {}
    with (
        client.consumer("orders", subscription="a") as a,
        client.consumer("orders", subscription="b") as b,
        client.producer("orders") as producer,
    ):
        for number in range(20):

            def receive(name: str, consumer: ister.Consumer) -> None:
                message = consumer.receive(5)
                assert message is not None
                received[name] = message.payload

            threads = [threading.Thread(target=receive, args=pair) for pair in (("a", a), ("b", b))]
            for thread in threads:
                thread.start()
            producer.send(b"%d" % number).result(5)
            for thread in threads:
                thread.join()
            assert received == {"a": b"%d" % number, "b": b"%d" % number}


def test_an_answer_that_is_taken_in_while_asking_is_seen_at_once(
    client: ister.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender also reads what has come: if that has its answer, it must not start to wait."""
    pump = Connection.pump

    def slow(connection: Connection) -> bool:
        asked = bool(connection.session.outbox)
        heard = pump(connection)
        for _ in range(20 * asked):
            if heard:
                break
            poll(Wake(), connection.fds, 0.01)
            heard = pump(connection)
        return heard

    with client.producer("orders") as producer:
        producer.send_batch([b"x"] * 10).result(5)
    with client.consumer("orders", subscription="s", start="earliest") as consumer:
        monkeypatch.setattr(Connection, "pump", slow)
        for message in consumer:
            consumer.ack(message)
            consumer.flush(2)
            if message.offset == 9:
                break
        assert client.status(timeout=2)


def test_receipts_come_while_nobody_waits(client: ister.Client) -> None:
    """The background thread reads them soon."""
    with client.producer("orders") as producer:
        for _ in range(20):
            done = threading.Event()
            producer.send(b"x").add_done_callback(partial(_set, done))
            assert done.wait(2)


def test_an_idle_client_is_kept_alive_by_heartbeats() -> None:
    """The session stays although the program calls nothing."""
    with testing.Broker(heartbeat_ms=50) as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.consumer("orders", subscription="s"):
            threading.Event().wait(0.4)
        kinds = [kind for kind, _ in broker.heard]
    assert kinds.count(Type.PING) >= 4
    assert kinds.count(Type.HELLO) == 1


def test_an_idle_client_notices_a_broker_that_falls_silent() -> None:
    """And reconnects when the broker is back."""
    with testing.Broker(heartbeat_ms=50) as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        producer = client.producer("orders")
        broker.silent = True
        waited = threading.Event()
        for _ in range(200):
            if sum(kind == Type.HELLO for kind, _ in list(broker.heard)) == 2:
                break
            waited.wait(0.02)
        broker.silent = False
        broker.disconnect()  # otherwise the unanswered HELLO is waited for
        assert producer.send(b"x").result(10).offset == 0
        producer.close()


def test_an_idle_consumer_comes_back_by_itself(broker: testing.Broker, client: ister.Client) -> None:
    """A lost connection is made again although the program calls nothing."""
    with client.consumer("orders", subscription="s"):
        broker.restart()
        opened = threading.Event()
        for _ in range(200):
            if sum(kind == Type.OPEN_CONSUMER for kind, _ in list(broker.heard)) == 2:
                break
            opened.wait(0.02)
        assert sum(kind == Type.OPEN_CONSUMER for kind, _ in list(broker.heard)) == 2


def test_a_failing_callback_hurts_nobody(client: ister.Client, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, and the next callback is called."""
    with client.producer("orders") as producer:
        done = threading.Event()
        receipt = producer.send(b"x")
        receipt.add_done_callback(lambda _: 1 / 0)
        receipt.add_done_callback(lambda _: done.set())
        receipt.result(5)
        assert done.wait(5)
    assert "a callback failed" in caplog.text


def test_callbacks_may_use_the_client(client: ister.Client) -> None:
    """They are called without the lock."""
    with client.producer("orders") as producer:
        answered: list[int | None] = []
        done = threading.Event()

        def again(receipt: ister.Receipt | ister.BatchReceipt) -> None:
            answered.append(receipt.result(0).offset)
            if len(answered) < 20:
                producer.send(b"x").add_done_callback(again)
            else:
                done.set()

        producer.send(b"x").add_done_callback(again)
        assert done.wait(10)
    assert answered == list(range(20))
