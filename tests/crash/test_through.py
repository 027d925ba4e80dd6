"""The campaign sees the same of a client behind a driver as of the Python client."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import ister
from ister import testing
from ister.errors import ClosedError, ConnectionLostError, IsterError, RemoteError, TimeoutExpiredError
from tests.conformance_clients.drivers import AnsweredError, DriverBrokenError, named
from tests.crash.through import ThroughClient, error_of

pytestmark = pytest.mark.process


@pytest.fixture
def broker() -> Iterator[testing.Broker]:
    """Return a broker in memory, with a topic."""
    with testing.Broker() as running:
        with ister.connect(running.endpoint) as client:
            client.create_topic("orders")
        yield running


@pytest.fixture
def client(broker: testing.Broker) -> Iterator[ThroughClient]:
    """Return the Python client behind its driver."""
    made = ThroughClient(named("python"), [broker.endpoint])
    yield made
    made.close()


def test_messages_go_and_come_with_all_they_have(client: ThroughClient) -> None:
    """Key and attributes come back; receipts call back, at the latest in `flush`."""
    producer = client.producer("orders", name="loader", timeout=10)
    told: list[int | None] = []
    for number in range(3):
        receipt = producer.send(b"%d" % number, key=b"k", attributes={"a": "b"}, timeout=10)
        receipt.add_done_callback(lambda done: told.append(done.result(0).offset))
    producer.flush(10)
    assert told == [0, 1, 2]
    assert producer.send(b"3", timeout=10).result(10).offset == 3
    producer.close(10)
    consumer = client.consumer(
        "orders", "all", type="shared", start="earliest", priority=0, credit_messages=10, timeout=10
    )
    first = consumer.receive(10)
    assert first is not None
    assert (first.offset, first.payload, first.key, first.attributes) == (0, b"0", b"k", {"a": "b"})
    consumer.ack(first)
    second = consumer.receive(10)
    assert second is not None
    consumer.nack(second, delay=0.0, reason="again")
    consumer.flush(10)
    seen = {message.offset for message in iter(lambda: consumer.receive(0.3), None)}
    assert seen == {1, 2, 3}
    consumer.close()


def test_in_which_opening_something_came_is_not_known(client: ThroughClient) -> None:
    """No two answers agree, so that the campaign never takes two deliveries for the same opening."""
    reader = client.reader("orders", start="earliest", timeout=10)
    assert reader.attachment.begun != reader.attachment.begun
    assert reader.receive(0.0) is None


def test_each_thread_has_a_driver_of_its_own(client: ThroughClient) -> None:
    """A thread that waits for a message holds up no other."""
    reader = client.reader("orders", start="latest", timeout=10)
    told: list[bool] = []

    def send() -> None:
        producer = client.producer("orders", name="other", timeout=10)
        told.append(producer.send(b"hello", timeout=10).result(10).offset == 0)

    thread = threading.Thread(target=send)
    thread.start()
    message = reader.receive(20)
    thread.join(10)
    assert told == [True]
    assert message is not None
    assert message.payload == b"hello"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("timeout", TimeoutExpiredError),
        ("connection-lost", ConnectionLostError),
        ("closed", ClosedError),
        ("subscription-busy", RemoteError),
    ],
)
def test_an_error_is_what_the_python_client_would_raise(code: str, kind: type[IsterError]) -> None:
    """The campaign uses type, code and action."""
    error = error_of(AnsweredError("any", {"code": code, "action": "retry", "text": "why"}))
    assert type(error) is kind
    assert (error.code, error.text) == (code, "why")


def test_an_unknown_topic_is_the_brokers_error(client: ThroughClient) -> None:
    """Its code and action are passed on."""
    with pytest.raises(RemoteError) as caught:
        client.producer("nowhere", name="x", timeout=10)
    assert (caught.value.code, caught.value.action) == ("unknown-topic", "fix")


def test_a_client_that_lacks_something_is_refused(broker: testing.Broker) -> None:
    """The campaign needs clients that reconnect by themselves, and names what is missing."""
    client = ThroughClient(named("python-minimal"), [broker.endpoint])
    with pytest.raises(DriverBrokenError, match="lacks: ack-until"):
        client.producer("orders", name="x", timeout=10)
    client.close()
