"""Tests of limits: payloads, batches, keys and attributes at the limit, and one byte over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ister
import ister.testing
from ister import bodies
from ister.errors import RemoteProtocolError, UsageError
from ister.wire import Column, Limit

MOST = 1 << 18
AROUND = bodies.around_bytes_max(MOST)
ENTRY = 4  # bytes of a length in a column


@pytest.fixture
def producer() -> Iterator[ister.Producer]:
    """Return a producer whose broker allows as many bytes in a message as in a batch."""
    limits = {
        Limit.MESSAGE_BYTES_MAX: MOST,
        Limit.BATCH_BYTES_MAX: MOST,
        Limit.PRODUCER_WINDOW_BYTES: 2 * MOST,
    }
    with ister.testing.Broker(limits=limits) as broker, ister.connect(broker.endpoint) as client:
        client.create_topic("orders")
        with client.producer("orders") as producer:
            yield producer


def attribute(size: int, name: str = "n") -> dict[str, str]:
    """Return attributes of so many encoded bytes."""
    filled = {name: "x" * (size - len(bodies.encode_attributes({name: "x" * (size - 20)})) + size - 20)}
    assert len(bodies.encode_attributes(filled)) == size
    return filled


# By name: what is sent, at the limit and one byte over it.
BOUNDS: dict[str, Callable[[ister.Producer, int], Any]] = {
    "payload": lambda p, over: p.send(bytes(MOST + over)),
    "payload with a key": lambda p, over: p.send(bytes(MOST + over), key=b"k"),
    "lone batch": lambda p, over: p.send_batch([bytes(MOST + over)]),
    "batch": lambda p, over: p.send_batch([bytes(MOST // 2 - ENTRY), bytes(MOST // 2 - ENTRY + over)]),
    "key": lambda p, over: p.send(bytes(MOST), key=bytes(AROUND - 2 * ENTRY + over)),
    "attributes": lambda p, over: p.send(bytes(MOST), attributes=attribute(AROUND - 2 * ENTRY + over)),
    "key alone": lambda p, over: p.send(b"", key=bytes(MOST - 2 * ENTRY + over)),
    "attributes alone": lambda p, over: p.send_batch([b""], attributes=[attribute(MOST - 2 * ENTRY + over)]),
    "time": lambda p, over: p.send(bytes(MOST), key=bytes(AROUND - 2 * ENTRY - 8 + over), deliver_at=1),
}


@pytest.mark.requirement("5.2-1", "5.2-2", "5.2-3")
@pytest.mark.parametrize("what", BOUNDS)
def test_what_is_exactly_at_a_limit_goes_and_what_is_over_it_does_not(
    producer: ister.Producer, what: str
) -> None:
    """The client and the broker count the same."""
    assert BOUNDS[what](producer, 0).result(10).offset == 0
    with pytest.raises(UsageError, match=r"is over (message|batch)_bytes_max"):
        BOUNDS[what](producer, 1)
    assert producer.send(b"next").result(10).offset == (2 if what == "batch" else 1)


@pytest.mark.requirement("5.2-4")
def test_what_was_not_sent_by_its_producer_is_not_counted(producer: ister.Producer) -> None:
    """Dead letters and redriven messages may be of any size, and carry where they come from."""
    own = attribute(AROUND - 2 * ENTRY)
    added = {f"ister.{number}": "x" * 200 for number in range(15)}
    assert len(bodies.encode_attributes(added)) < bodies.MARKED_BYTES_MAX
    assert producer.send_batch([bytes(MOST)], attributes=[own | added]).result(10).offset == 0
    with pytest.raises(UsageError, match="batch_bytes_max"):
        producer.send(bytes(MOST), attributes=own | {"ister.much": "x" * (bodies.MARKED_BYTES_MAX + 1)})
    with pytest.raises(UsageError, match="batch_bytes_max"):
        producer.send(bytes(MOST), attributes=own | {"mine": "x"})


@pytest.mark.requirement("5.2-1", "5.2-2")
@pytest.mark.parametrize("over", [0, 1])
def test_the_broker_refuses_what_a_client_of_another_kind_sends_over_a_limit(over: int) -> None:
    """Whatever that client counts; attributes that cannot be decoded count by their bytes."""
    for columns, frames in (
        (Column.KEYS, [bodies.pack_column([bytes(AROUND - 8 + over)])]),
        (Column.ATTRIBUTES, [bodies.pack_column([b"\xff" * (AROUND - 8 + over)])]),
        (Column.DELIVER_AT | Column.KEYS, [bodies.pack_column([bytes(AROUND - 16 + over)]), bytes(8)]),
    ):
        body = [bodies.pack_lengths([bytes(MOST)]), bytes(MOST), *frames]
        if not over:
            assert bodies.check_batch(body, columns, message_bytes_max=MOST, batch_bytes_max=MOST) == 1
            continue
        with pytest.raises(RemoteProtocolError, match="batch_bytes_max") as caught:
            bodies.check_batch(body, columns, message_bytes_max=MOST, batch_bytes_max=MOST)
        assert caught.value.code == "batch-too-large"
