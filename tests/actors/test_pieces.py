"""Tests of pieces: whatever is cut or joined, each message is byte for byte what was published."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.pieces import Piece, RelayedBatch, batch_bytes, cut, join, whole
from ister.wire import Column
from tests.raw_client import batch, split

Message = tuple[bytes, bytes, bytes]  # payload, key, attributes

_MESSAGE = st.tuples(st.binary(max_size=20), st.binary(max_size=6), st.binary(max_size=6))
_MESSAGES = st.lists(_MESSAGE, min_size=1, max_size=20)
_COLUMNS = st.sampled_from([0, Column.KEYS, Column.ATTRIBUTES, Column.KEYS | Column.ATTRIBUTES])


def batch_of(
    messages: Sequence[Message], columns: int, first: int = 0, *, views: bool = False
) -> RelayedBatch:
    """Return messages as a batch that begins at an offset, its frames bytes or views of a map."""
    payloads, keys, attributes = zip(*messages, strict=True)
    wanted = [keys] * bool(columns & Column.KEYS) + [attributes] * bool(columns & Column.ATTRIBUTES)
    frames: list[Any] = batch(payloads, *wanted)
    if views:
        frames = [memoryview(b"before" + frame + b"behind")[6:-6] for frame in frames]
    return RelayedBatch.of_frames(first, len(messages), 1000 + first, columns, frames)


def messages_of(piece: Piece) -> list[tuple[int, Message]]:
    """Return (offset, message) of a piece, read as a client reads a DELIVER."""
    frames = [bytes(frame) for frame in piece.frames]
    payloads = split(frames[0], frames[1])
    count, rest = piece.count, frames[2:]
    assert len(payloads) == count
    columns = []
    for bit in (Column.KEYS, Column.ATTRIBUTES):
        column = rest.pop(0) if piece.columns & bit else struct.pack(f"<{count}I", *[0] * count)
        columns.append(split(column[: 4 * count], column[4 * count :]))
    assert not rest
    assert piece.bytes == sum(map(len, frames))
    assert sum(piece.timestamps[::2]) == count
    return list(enumerate(zip(payloads, *columns, strict=True), piece.offset))


def visible(messages: Sequence[Message], columns: int) -> list[Message]:
    """Return messages without what their columns do not carry."""
    return [
        (payload, key if columns & Column.KEYS else b"", attributes if columns & Column.ATTRIBUTES else b"")
        for payload, key, attributes in messages
    ]


@given(_MESSAGES, _COLUMNS, st.booleans(), st.integers(0, 1000))
def test_a_whole_batch_is_sent_as_it_is(
    messages: list[Message], columns: int, views: bool, first: int
) -> None:
    """The very frames, not copies of them."""
    source = batch_of(messages, columns, first, views=views)
    piece = whole(source, 3)
    assert messages_of(piece) == list(enumerate(visible(messages, columns), first))
    assert all(frame is part for frame, part in zip(piece.frames, source.frames, strict=True))
    assert (piece.attempt, piece.timestamps, piece.bytes) == (
        3,
        (len(messages), 1000 + first),
        batch_bytes(source),
    )


@given(_MESSAGES, _COLUMNS, st.booleans(), st.data())
def test_a_cut_is_those_messages_and_no_others(
    messages: list[Message], columns: int, views: bool, data: st.DataObject
) -> None:
    """Any range of a batch can be cut out, with its columns."""
    first = data.draw(st.integers(0, 1000))
    low = data.draw(st.integers(0, len(messages) - 1))
    high = data.draw(st.integers(low + 1, len(messages)))
    piece = cut(batch_of(messages, columns, first, views=views), first + low, first + high, 2)
    assert messages_of(piece) == list(enumerate(visible(messages, columns)[low:high], first + low))
    assert (piece.attempt, piece.timestamps) == (2, (high - low, 1000 + first))


@given(_MESSAGES, _COLUMNS, st.data())
def test_cuts_that_follow_each_other_are_the_batch(
    messages: list[Message], columns: int, data: st.DataObject
) -> None:
    """However credit cuts a batch up, the pieces together are it."""
    source = batch_of(messages, columns, 50)
    found, at = [], 50
    while at < 50 + len(messages):
        end = data.draw(st.integers(at + 1, 50 + len(messages)))
        found += messages_of(cut(source, at, end, 1))
        at = end
    assert found == list(enumerate(visible(messages, columns), 50))


@given(st.lists(_MESSAGES, min_size=1, max_size=6), _COLUMNS, st.booleans())
def test_joined_batches_are_their_messages_in_order(
    parts: list[list[Message]], columns: int, views: bool
) -> None:
    """Each batch keeps its time, each message its bytes."""
    batches, at = [], 7
    for part in parts:
        batches.append(batch_of(part, columns, at, views=views))
        at += len(part)
    piece = join(batches)
    together = [message for part in parts for message in part]
    assert messages_of(piece) == list(enumerate(visible(together, columns), 7))
    assert piece.attempt == 1
    times = [(len(each), 1000 + source.first_offset) for each, source in zip(parts, batches, strict=True)]
    assert list(zip(piece.timestamps[::2], piece.timestamps[1::2], strict=True)) == times
