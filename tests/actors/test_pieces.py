"""Tests of pieces: however batches are cut or joined, each message is byte for byte what was published."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ister.actors.pieces import Piece, RelayedBatch, batch_bytes, cut, join, whole
from ister.actors.sheets import Sheet, gather
from ister.wire import Column
from tests.raw_client import batch, split

Message = tuple[bytes, bytes, bytes, int]  # payload, key, attributes, when to deliver

_MESSAGE = st.tuples(
    st.binary(max_size=20), st.binary(max_size=6), st.binary(max_size=6), st.sampled_from([0, 1, 1 << 63])
)
_MESSAGES = st.lists(_MESSAGE, min_size=1, max_size=20)
_COLUMNS = st.integers(0, Column.KEYS | Column.ATTRIBUTES | Column.DELIVER_AT)


def batch_of(
    messages: Sequence[Message], columns: int, first: int = 0, *, views: bool = False
) -> RelayedBatch:
    """Return messages as a batch that begins at an offset; its frames are bytes or views of a mapped file."""
    payloads, keys, attributes, times = zip(*messages, strict=True)
    wanted = [keys] * bool(columns & Column.KEYS) + [attributes] * bool(columns & Column.ATTRIBUTES)
    frames: list[Any] = batch(payloads, *wanted)
    if columns & Column.DELIVER_AT:
        frames.append(struct.pack(f"<{len(times)}Q", *times))
    if views:
        frames = [memoryview(b"before" + frame + b"behind")[6:-6] for frame in frames]
    return RelayedBatch.of_frames(first, len(messages), 1000 + first, columns, frames)


def messages_of(piece: Piece) -> list[tuple[int, Message]]:
    """Return (offset, message) of a piece, read as a client reads a DELIVER."""
    assert piece.offset == piece.parts[0][0]
    assert piece.end == piece.parts[-1][1]
    assert all(first < end for first, end in piece.parts)
    assert all(end < first for (_, end), (first, _) in pairwise(piece.parts)), (
        "ranges ascend, and never touch"
    )
    offsets = [offset for first, end in piece.parts for offset in range(first, end)]
    frames = [bytes(frame) for frame in piece.frames]
    payloads = split(frames[0], frames[1])
    count, rest = piece.count, frames[2:]
    assert len(payloads) == count
    columns: list[Any] = []
    for bit in (Column.KEYS, Column.ATTRIBUTES):
        column = rest.pop(0) if piece.columns & bit else struct.pack(f"<{count}I", *[0] * count)
        columns.append(split(column[: 4 * count], column[4 * count :]))
    times = rest.pop(0) if piece.columns & Column.DELIVER_AT else bytes(8 * count)
    columns.append(struct.unpack(f"<{count}Q", times))
    assert not rest
    assert piece.bytes == sum(map(len, frames))
    assert sum(piece.timestamps[::2]) == count
    return list(zip(offsets, zip(payloads, *columns, strict=True), strict=True))


def visible(messages: Sequence[Message], columns: int) -> list[Message]:
    """Return messages without the fields that their columns do not carry."""
    bits = (Column.KEYS, Column.ATTRIBUTES, Column.DELIVER_AT)
    return [
        (
            payload,
            key if columns & bits[0] else b"",
            attributes if columns & bits[1] else b"",
            when if columns & bits[2] else 0,
        )
        for payload, key, attributes, when in messages
    ]


@given(_MESSAGES, _COLUMNS, st.booleans(), st.integers(0, 1000))
def test_a_whole_batch_is_sent_as_it_is(
    messages: list[Message], columns: int, views: bool, first: int
) -> None:
    """The same frames, not copies."""
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
    """However credit cuts a batch, its pieces together have all its messages."""
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


@given(_MESSAGES, _COLUMNS, st.booleans())
def test_a_relayed_batch_knows_its_columns_by_their_bits(
    messages: list[Message], columns: int, views: bool
) -> None:
    """With any combination of columns, each frame is identified by its bit, and all are passed on unchanged."""
    source = batch_of(messages, columns, views=views)
    assert RelayedBatch.of_frames(0, len(messages), 1000, columns, source.frames).frames == source.frames
    assert len(source.frames) == 2 + columns.bit_count()
    present = (source.keys, source.attributes, source.deliver_at)
    assert [column is not None for column in present] == [bool(columns & bit) for bit in (1, 2, 4)]
    assert batch_bytes(source) == sum(map(len, source.frames))


@given(_MESSAGES, _COLUMNS, st.booleans(), st.data())
def test_a_sheet_tells_single_messages(
    messages: list[Message], columns: int, views: bool, data: st.DataObject
) -> None:
    """Each one's key, attributes, time and size, asked for in any order."""
    sheet = Sheet(batch_of(messages, columns, 7, views=views))
    seen = visible(messages, columns)
    assert (sheet.first, sheet.end) == (7, 7 + len(messages))
    for index in data.draw(st.permutations(range(len(messages)))):
        payload, key, attributes, when = seen[index]
        assert sheet.size(index) == len(payload)
        assert sheet.payload(index, index + 1) == payload
        assert (sheet.keys[index], sheet.attributes[index]) == (key, attributes)
        times = sheet.deliver_at
        assert (times is None) == (not columns & Column.DELIVER_AT)
        assert (0 if times is None else times[index]) == when
    low = data.draw(st.integers(0, len(messages) - 1))
    high = data.draw(st.integers(low + 1, len(messages)))
    assert sheet.payload(low, high) == b"".join(message[0] for message in messages[low:high])


@given(
    st.lists(st.tuples(_MESSAGES, st.integers(0, 3), st.booleans()), min_size=1, max_size=5),
    _COLUMNS,
    st.data(),
)
def test_gathered_messages_are_those_that_were_chosen(
    parts: list[tuple[list[Message], int, bool]], columns: int, data: st.DataObject
) -> None:
    """Messages chosen from several batches, with or without gaps, equal those cut out one by one, in one piece."""
    rows: list[tuple[Sheet, int]] = []
    at = 7
    for messages, gap, views in parts:
        sheet = Sheet(batch_of(messages, columns, at, views=views))
        at = sheet.end + gap
        rows += [(sheet, index) for index in range(len(messages)) if data.draw(st.booleans())]
    if not rows:
        return
    piece = gather(rows, 3, 2)
    alone = [cut(sheet.batch, sheet.first + index, sheet.first + index + 1, 3, 2) for sheet, index in rows]
    assert messages_of(piece) == [message for each in alone for message in messages_of(each)]
    assert (piece.count, piece.columns, piece.attempt, piece.failures) == (len(rows), columns, 3, 2)
    times = zip(piece.timestamps[::2], piece.timestamps[1::2], strict=True)
    assert [time for count, time in times for _ in range(count)] == [each.timestamps[1] for each in alone]
    assert (piece.ranges == ()) == (piece.end - piece.offset == piece.count)
