"""Tests of the broker for tests with requests that have only what PROTOCOL.md requires, as other clients send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from ister import testing, wire
from ister.wire import Key, Type

Ask = Callable[..., tuple[wire.Header, list[bytes]]]


@pytest.fixture
def ask(broker: testing.Broker) -> Iterator[Ask]:
    """Return a function that sends a request to a broker for tests, and returns the answer."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.connect(broker.endpoint)

    def heard(header: wire.Header) -> tuple[wire.Header, list[bytes]]:
        socket.send(wire.encode_header(header))
        answer, *body = socket.recv_multipart()
        return wire.decode_header(answer), body

    heard({Key.TYPE: Type.HELLO, Key.VERSION: [1]})
    refs = iter(range(1, 100))

    def asked(operation: str, **arguments: Any) -> tuple[wire.Header, list[bytes]]:
        header: wire.Header = {Key.TYPE: Type.REQUEST, Key.REF: next(refs), Key.OPERATION: operation}
        return heard(header | {Key.ARGUMENTS: arguments})

    yield asked
    socket.close()
    context.term()


def test_arguments_that_may_be_left_out_have_the_defaults_of_the_document(ask: Ask) -> None:
    """Without further arguments a topic is reliable, and a subscription shared."""
    _, [topic] = ask("topic.create", topic="orders")
    assert wire.decode_result(topic)["strategy"] == "reliable"
    _, [subscription] = ask("subscription.create", topic="orders", subscription="all")
    assert wire.decode_result(subscription)["type"] == "shared"


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("topic.create", {}),
        ("topic.watch", {}),
        ("subscription.create", {"topic": "orders"}),
        ("subscription.seek", {"topic": "orders", "subscription": "all"}),
    ],
)
def test_an_argument_that_is_missing_is_an_error_and_not_the_end(
    ask: Ask, operation: str, arguments: dict[str, Any]
) -> None:
    """The error names it, and the next request is answered."""
    ask("topic.create", topic="orders")
    ask("subscription.create", topic="orders", subscription="all")
    header, _ = ask(operation, **arguments)
    assert header[Key.CODE] == "invalid-argument"
    header, _ = ask("topic.show", topic="orders")
    assert header[Key.TYPE] == Type.RESULT


@pytest.mark.parametrize("pattern", ["orders/a*", "orders/>/a", "orders//*", "", 5])
def test_a_watch_of_what_is_no_pattern_is_refused_and_not_the_end(ask: Ask, pattern: object) -> None:
    """The answer to the watch says so, and the next request is answered."""
    header, _ = ask("topic.watch", pattern=pattern)
    assert (header[Key.CODE], header[Key.ACTION]) == ("invalid-name", "fix")
    header, _ = ask("topic.create", topic="orders")
    assert header[Key.TYPE] == Type.RESULT
