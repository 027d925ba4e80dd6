"""Messages, batches and receipts: views that cost nothing until looked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import wire
from ister.errors import RemoteError, RemoteProtocolError, TimeoutExpiredError
from ister.message import Batch, BatchReceipt, Delivery, Message, Published, Receipt, Shipment
from ister.wire import Column, Key


def delivery_of(*payloads: bytes, first: int = 10, **header: object) -> Delivery:
    """Return a delivery as the broker sends it."""
    kept = {Key.OFFSET: first, Key.COUNT: len(payloads), Key.TIMESTAMPS: [len(payloads), 5]}
    return Delivery(None, "orders", 0, kept, [wire.pack_lengths(payloads), b"".join(payloads)])


def batch_of(*payloads: bytes) -> Batch:
    """Return a whole delivery as a batch."""
    return Batch(delivery_of(*payloads), 0, len(payloads))


def test_a_batch_is_a_sequence_of_messages() -> None:
    """Length, index, slice, iteration: what a list can do."""
    batch = batch_of(b"a", b"b", b"c", b"d")
    assert len(batch) == 4
    assert batch.payloads == [b"a", b"b", b"c", b"d"]
    assert batch.offsets == range(10, 14)
    assert [message.payload for message in batch] == batch.payloads
    assert batch[-1].payload == b"d"
    assert batch[1].offset == 11
    with pytest.raises(IndexError):
        batch[4]


def test_a_slice_of_a_batch_is_a_batch() -> None:
    """So that half of it can be acknowledged."""
    batch = batch_of(b"a", b"b", b"c", b"d")[1:3]
    assert isinstance(batch, Batch)
    assert batch.payloads == [b"b", b"c"]
    assert batch.offsets == range(11, 13)
    assert [message.offset for message in batch] == [11, 12]


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=8), st.slices(8))
def test_a_batch_slices_as_a_list_does(payloads: list[bytes], place: slice) -> None:
    """Any slice, with any step, gives the messages that a list would."""
    batch = batch_of(*payloads)
    assert [message.payload for message in batch[place]] == payloads[place]
    assert [message.offset for message in batch[place]] == list(range(10, 10 + len(payloads)))[place]


def test_keys_and_attributes_are_cut_when_asked_for() -> None:
    """Each message has its own; empty is none."""
    header = {
        Key.OFFSET: 0,
        Key.COUNT: 2,
        Key.TIMESTAMPS: [2, 5],
        Key.COLUMNS: Column.KEYS | Column.ATTRIBUTES,
        Key.ATTEMPT: 3,
    }
    payloads = [b"a", b"b"]
    frames = [
        wire.pack_lengths(payloads),
        b"".join(payloads),
        wire.pack_column([b"", b"k"]),
        wire.pack_column([wire.encode_attributes({"x": "y"}), b""]),
    ]
    first, second = Delivery(None, "orders", 0, header, frames).messages()
    assert (first.key, first.attributes) == (None, {"x": "y"})
    assert (second.key, second.attributes) == (b"k", {})
    assert second.attempt == 3


def test_timestamps_are_looked_up_by_run() -> None:
    """Each message has the time of its run."""
    header = {Key.OFFSET: 0, Key.COUNT: 4, Key.TIMESTAMPS: [1, 100, 3, 200]}
    payloads = [b""] * 4
    delivery = Delivery(None, "orders", 0, header, [wire.pack_lengths(payloads), b""])
    assert [message.timestamp for message in delivery.messages()] == [100, 200, 200, 200]


@pytest.mark.parametrize(
    "change",
    [
        {Key.COUNT: 3},
        {Key.COUNT: 0, Key.TIMESTAMPS: []},
        {Key.TIMESTAMPS: [1, 5]},
        {Key.COLUMNS: Column.KEYS},
        {Key.COLUMNS: 4},
    ],
)
def test_a_delivery_that_does_not_add_up_is_refused(change: dict[int, object]) -> None:
    """Before anything of it is believed."""
    header = {Key.OFFSET: 0, Key.COUNT: 2, Key.TIMESTAMPS: [2, 5]} | change
    with pytest.raises(RemoteProtocolError):
        Delivery(None, "orders", 0, header, [wire.pack_lengths([b"a", b"b"]), b"ab"])


def test_lengths_that_do_not_add_up_raise_where_they_are_looked_at() -> None:
    """A damaged payload frame is an error, not other messages."""
    header = {Key.OFFSET: 0, Key.COUNT: 2, Key.TIMESTAMPS: [2, 5]}
    delivery = Delivery(None, "orders", 0, header, [wire.pack_lengths([b"a", b"b"]), b"abc"])
    with pytest.raises(RemoteProtocolError):
        delivery.payloads  # noqa: B018


def test_a_receipt_counts_from_the_first_offset_of_its_shipment() -> None:
    """One answer serves all messages of a batch."""
    shipment = Shipment("orders", None)
    receipts = [Receipt(shipment, index) for index in range(3)]
    assert not receipts[0].done()
    shipment.first, shipment.resolved = 100, True
    assert [receipt.result().offset for receipt in receipts] == [100, 101, 102]
    assert BatchReceipt(shipment, 1, 2).result() == Published("orders", 101, 2)


def test_a_forgotten_offset_is_none() -> None:
    """An old duplicate is stored; where, nobody knows any more."""
    shipment = Shipment("orders", None)
    shipment.first, shipment.resolved = wire.OFFSET_UNKNOWN, True
    assert Receipt(shipment, 0).result().offset is None


def test_a_refused_message_raises_the_brokers_error() -> None:
    """With the code that programs compare."""
    shipment = Shipment("orders", None)
    shipment.error, shipment.resolved = RemoteError("topic-deleted", "gone"), True
    with pytest.raises(RemoteError, match="gone") as caught:
        Receipt(shipment, 0).result()
    assert caught.value.code == "topic-deleted"
    assert shipment.observed


def test_a_receipt_that_does_not_come_is_a_timeout() -> None:
    """It is both Ister's error and Python's own."""
    with pytest.raises(TimeoutExpiredError):
        Receipt(Shipment("orders", None), 0).result(timeout=0)
    with pytest.raises(TimeoutError):
        BatchReceipt(Shipment("orders", None), 0, 2).result(timeout=0)


def test_a_callback_for_what_is_done_is_called_at_once() -> None:
    """Coming too late is no reason to be forgotten."""
    shipment = Shipment("orders", None)
    shipment.resolved = True
    called: list[Receipt | BatchReceipt] = []
    receipt = Receipt(shipment, 0)
    receipt.add_done_callback(called.append)
    assert called == [receipt]


def test_a_message_says_what_it_is() -> None:
    """For the interactive prompt, without drowning it."""
    message = Message(delivery_of(b"x" * 1000), 10, b"x" * 1000)
    assert "offset=10" in repr(message)
    assert len(repr(message)) < 120
