"""Tests of messages, batches and receipts: views whose fields are computed on access."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import bodies, wire
from ister.errors import RemoteError, RemoteProtocolError, TimeoutExpiredError
from ister.message import Batch, Delivery, message_of
from ister.published import Published
from ister.receipts import BatchReceipt, Receipt, Shipment, receipt_of
from ister.wire import Column, Key


def delivery_of(*payloads: bytes, first: int = 10, **header: object) -> Delivery:
    """Return a delivery as the broker sends it."""
    kept = {Key.OFFSET: first, Key.COUNT: len(payloads), Key.TIMESTAMPS: [len(payloads), 5]}
    return Delivery(None, "orders", 0, kept, [bodies.pack_lengths(payloads), b"".join(payloads)])


def batch_of(*payloads: bytes) -> Batch:
    """Return a whole delivery as a batch."""
    return Batch(delivery_of(*payloads), 0, len(payloads))


def test_a_batch_is_a_sequence_of_messages() -> None:
    """It supports length, index, slice and iteration."""
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
    """So that half of a batch can be acknowledged."""
    batch = batch_of(b"a", b"b", b"c", b"d")[1:3]
    assert isinstance(batch, Batch)
    assert batch.payloads == [b"b", b"c"]
    assert batch.offsets == range(11, 13)
    assert [message.offset for message in batch] == [11, 12]


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=8), st.slices(8))
def test_a_batch_slices_as_a_list_does(payloads: list[bytes], place: slice) -> None:
    """Any slice, with any step, has the messages that a list's slice would have."""
    batch = batch_of(*payloads)
    assert [message.payload for message in batch[place]] == payloads[place]
    assert [message.offset for message in batch[place]] == list(range(10, 10 + len(payloads)))[place]


def test_keys_and_attributes_are_cut_when_asked_for() -> None:
    """Each message has its own; an empty one is None."""
    header = {
        Key.OFFSET: 0,
        Key.COUNT: 2,
        Key.TIMESTAMPS: [2, 5],
        Key.COLUMNS: Column.KEYS | Column.ATTRIBUTES,
        Key.ATTEMPT: 3,
    }
    payloads = [b"a", b"b"]
    frames = [
        bodies.pack_lengths(payloads),
        b"".join(payloads),
        bodies.pack_column([b"", b"k"]),
        bodies.pack_column([bodies.encode_attributes({"x": "y"}), b""]),
    ]
    first, second = Delivery(None, "orders", 0, header, frames).messages()
    assert (first.key, first.attributes) == (None, {"x": "y"})
    assert (second.key, second.attributes) == (b"k", {})
    assert second.attempt == 3


@pytest.mark.requirement("5.3-4")
def test_timestamps_are_looked_up_by_run() -> None:
    """Each message has the time of its run."""
    header = {Key.OFFSET: 0, Key.COUNT: 4, Key.TIMESTAMPS: [1, 100, 3, 200]}
    payloads = [b""] * 4
    delivery = Delivery(None, "orders", 0, header, [bodies.pack_lengths(payloads), b""])
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
    """Before any of it is used."""
    header = {Key.OFFSET: 0, Key.COUNT: 2, Key.TIMESTAMPS: [2, 5]} | change
    with pytest.raises(RemoteProtocolError):
        Delivery(None, "orders", 0, header, [bodies.pack_lengths([b"a", b"b"]), b"ab"])


TABLE = bodies.pack_lengths([b"a", b"b"])


@pytest.mark.requirement("5.3-5")
@pytest.mark.parametrize(
    ("columns", "frames"),
    [
        (0, [TABLE, b"abc"]),
        (0, [bodies.pack_lengths([b"a", b"bb"]), b"ab"]),
        (1, [TABLE, b"ab", TABLE + b"k"]),
        (1, [TABLE, b"ab", TABLE[:-1]]),
        (2, [TABLE, b"ab", bodies.pack_lengths([b"", b"bbb"]) + b"bb"]),
        (3, [TABLE, b"ab", TABLE + b"kk", TABLE + b"aaa"]),
        (4, [TABLE, b"ab", bytes(15)]),
    ],
)
def test_lengths_that_do_not_add_up_are_refused_when_they_come(columns: int, frames: list[bytes]) -> None:
    """Of payloads and of each column: a damaged frame is an error of the connection, not of the program that looks."""
    header = {Key.OFFSET: 0, Key.COUNT: 2, Key.TIMESTAMPS: [2, 5], Key.COLUMNS: columns}
    with pytest.raises(RemoteProtocolError):
        Delivery(None, "orders", 0, header, frames)


def test_a_receipt_counts_from_the_first_offset_of_its_shipment() -> None:
    """One answer has the offsets of all messages of a batch."""
    shipment = Shipment("orders", None)
    receipts = [receipt_of(shipment, index) for index in range(3)]
    assert not receipts[0].done()
    shipment.first, shipment.resolved = 100, True
    assert [receipt.result().offset for receipt in receipts] == [100, 101, 102]
    assert BatchReceipt(shipment, 1, 2).result() == Published("orders", 101, 2)


@pytest.mark.requirement("8.3-4")
def test_a_forgotten_offset_is_none() -> None:
    """An old duplicate is stored, but its offset is not known any more."""
    shipment = Shipment("orders", None)
    shipment.first, shipment.resolved = wire.OFFSET_UNKNOWN, True
    assert receipt_of(shipment, 0).result().offset is None


def test_a_refused_message_raises_the_brokers_error() -> None:
    """With the code that programs compare."""
    shipment = Shipment("orders", None)
    shipment.error, shipment.resolved = RemoteError("topic-deleted", "gone"), True
    with pytest.raises(RemoteError, match="gone") as caught:
        receipt_of(shipment, 0).result()
    assert caught.value.code == "topic-deleted"
    assert shipment.observed


def test_a_receipt_that_does_not_come_is_a_timeout() -> None:
    """The error is both Ister's and Python's TimeoutError."""
    with pytest.raises(TimeoutExpiredError):
        receipt_of(Shipment("orders", None), 0).result(timeout=0)
    with pytest.raises(TimeoutError):
        BatchReceipt(Shipment("orders", None), 0, 2).result(timeout=0)


def test_a_callback_for_what_is_done_is_called_at_once() -> None:
    """A callback added after the receipt came is called too."""
    shipment = Shipment("orders", None)
    shipment.resolved = True
    called: list[Receipt | BatchReceipt] = []
    receipt = receipt_of(shipment, 0)
    receipt.add_done_callback(called.append)
    assert called == [receipt]


def test_a_message_says_what_it_is() -> None:
    """The repr is readable at a prompt, and short."""
    message = message_of(delivery_of(b"x" * 1000), 10, b"x" * 1000)
    assert "offset=10" in repr(message)
    assert len(repr(message)) < 120


# ---- deliveries whose offsets are not consecutive ----------------------------------------------------------------


def sparse(offsets: list[int]) -> Delivery:
    """Return a delivery of these offsets, each with its offset as payload, key and time of delivery."""
    flat: list[int] = []
    for offset in offsets:
        if flat and flat[-1] == offset:
            flat[-1] += 1
        else:
            flat += (offset, offset + 1)
    payloads = [b"%d" % offset for offset in offsets]
    header = {
        Key.OFFSET: offsets[0],
        Key.COUNT: len(offsets),
        Key.TIMESTAMPS: [len(offsets), 5],
        Key.COLUMNS: Column.ALL,
        Key.RANGES: flat,
    }
    frames = [
        bodies.pack_lengths(payloads),
        b"".join(payloads),
        bodies.pack_column(payloads),
        bodies.pack_column([bodies.encode_attributes({"n": str(offset)}) for offset in offsets]),
        bodies.pack_times(offsets),
    ]
    return Delivery(None, "orders", 0, header, frames)


@given(st.sets(st.integers(0, 60), min_size=1, max_size=20).map(sorted), st.slices(20))
def test_offsets_that_are_not_consecutive_change_nothing_else(offsets: list[int], place: slice) -> None:
    """Every message has its own offset, key, attributes and time, in any part of the batch, and `ranges` agree."""
    batch = Batch(sparse(offsets), 0, len(offsets))
    assert [message.offset for message in batch] == list(batch.offsets) == offsets
    part = batch[place]
    assert [message.offset for message in part] == offsets[place]
    for message in part:
        assert message.payload == message.key == b"%d" % message.offset
        assert message.attributes == {"n": str(message.offset)}
        assert message.deliver_at == (message.offset or None)
    if isinstance(part, Batch):
        assert [offset for first, end in part.ranges for offset in range(first, end)] == offsets[place]
        assert [message.offset for message in part] == list(part.offsets)


def test_consecutive_offsets_cost_no_list() -> None:
    """Without ranges, or with one range, offsets are a `range` object."""
    assert Batch(sparse([7, 8, 9]), 1, 3).offsets == range(8, 10)
    assert batch_of(b"a", b"b").ranges == [(10, 12)]
    assert Batch(sparse([7]), 1, 1).ranges == []


@pytest.mark.parametrize(
    "ranges",
    [[], [10, 11], [9, 11], [10, 11, 11, 12], [12, 13, 10, 11], [10, 10, 11, 13], [10, 13, 14, 13]],
    ids=["none", "too-few", "elsewhere", "touching", "falling", "empty", "backwards"],
)
def test_ranges_that_do_not_hold_the_messages_are_refused(ranges: list[int]) -> None:
    """With impossible offsets, wrong messages would be acknowledged."""
    header = {Key.OFFSET: 10, Key.COUNT: 2, Key.TIMESTAMPS: [2, 5], Key.RANGES: ranges}
    with pytest.raises(RemoteProtocolError):
        Delivery(None, "orders", 0, header, [bodies.pack_lengths([b"a", b"b"]), b"ab"])


def test_a_message_that_did_not_wait_has_no_time_of_delivery() -> None:
    """0 in the column, and no column, both mean "at once"."""
    header = {Key.OFFSET: 0, Key.COUNT: 2, Key.TIMESTAMPS: [2, 5], Key.COLUMNS: Column.DELIVER_AT}
    frames = [bodies.pack_lengths([b"a", b"b"]), b"ab", bodies.pack_times([0, 77])]
    assert [message.deliver_at for message in Delivery(None, "orders", 0, header, frames).messages()] == [
        None,
        77,
    ]
    assert batch_of(b"a")[0].deliver_at is None
