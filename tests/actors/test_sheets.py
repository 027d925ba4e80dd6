"""Tests of sheets of several batches: what is chosen from them is what the single batches have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ister.actors.pieces import RelayedBatch, cut
from ister.actors.sheets import Sheet, choose, gather, gather_chosen, ranges_of, together
from ister.wire import Column
from tests.actors.test_pieces import Message, batch_of, messages_of, visible

_MESSAGE = st.tuples(
    st.sampled_from([b"", b"a", b"bcd", bytes(3000)]),
    st.sampled_from([b"", b"k", b"key"]),
    st.sampled_from([b"", b"at"]),
    st.just(0),
)
_BATCHES = st.lists(st.lists(_MESSAGE, min_size=1, max_size=4), min_size=1, max_size=3)
_COLUMNS = st.integers(0, Column.KEYS | Column.ATTRIBUTES)


def sheet_of(
    parts: list[list[Message]], columns: int, first: int, *, views: bool = False
) -> tuple[Sheet, list[RelayedBatch]]:
    """Return messages as batches that follow each other, and these opened together."""
    batches = []
    for part in parts:
        batches.append(batch_of(part, columns, first, views=views))
        batches[-1].producer_id = first
        first = batches[-1].first_offset + len(part)
    return Sheet(together(batches), batches), batches


@given(_BATCHES, _COLUMNS, st.booleans())
def test_a_sheet_of_several_batches_tells_single_messages(
    parts: list[list[Message]], columns: int, views: bool
) -> None:
    """Each one's payload, key and attributes, and when, by whom and with which others it was published."""
    sheet, batches = sheet_of(parts, columns, 7, views=views)
    seen = visible([message for part in parts for message in part], columns)
    assert (sheet.first, sheet.end) == (7, 7 + len(seen))
    index = 0
    for batch in batches:
        for _ in range(batch.count):
            payload, key, attributes, _when = seen[index]
            assert sheet.payloads([index]) == [payload] == [bytes(sheet.payload(index, index + 1))]
            assert (sheet.keys[index], sheet.attributes[index]) == (key, attributes)
            assert (sheet.timestamp_ms(index), sheet.producer_id(index)) == (
                batch.timestamp_ms,
                batch.producer_id,
            )
            assert sheet.stop_of(index) == batch.first_offset + batch.count - 7
            index += 1


@given(st.lists(_BATCHES, min_size=1, max_size=3), _COLUMNS, st.integers(1, 4000), st.data())
def test_what_is_chosen_from_sheets_is_what_their_batches_have(
    sheets: list[list[list[Message]]], columns: int, room: int, data: st.DataObject
) -> None:
    """Each message with its own bytes and time, in one piece, up to the one that fills it."""
    chosen, rows, expected = [], [], []
    at = 7
    for parts in sheets:
        sheet, batches = sheet_of(parts, columns, at)
        at = sheet.end + data.draw(st.integers(0, 2))
        indices = [index for index in range(sheet.end - sheet.first) if data.draw(st.booleans())]
        if not indices:
            continue
        some = choose(sheet, indices, [sheet.keys[index] for index in indices], room)
        sizes = [sheet.size(index) for index in some.indices]
        assert sum(sizes) == some.bytes
        assert sum(sizes) <= room or sum(sizes[:-1]) < room
        assert len(sizes) == len(indices) or sum(sizes) >= room
        chosen.append(some)
        rows += [(sheet, index) for index in some.indices]
        for offset in some.offsets:
            batch = next(each for each in batches if offset < each.first_offset + each.count)
            expected.append((cut(batch, offset, offset + 1, 1), batch.timestamp_ms))
    if not chosen:
        return
    piece, offsets, keys = gather_chosen(chosen)
    for found in (piece, gather(rows, 1, 0)):
        assert messages_of(found) == [message for each, _ in expected for message in messages_of(each)]
        times = zip(found.timestamps[::2], found.timestamps[1::2], strict=True)
        assert [time for count, time in times for _ in range(count)] == [time for _, time in expected]
        assert found.ranges == piece.ranges
        assert found.flat == ([number for part in found.ranges for number in part] or None)
        assert found.scattered == piece.scattered
    assert offsets == [each.offset for each, _ in expected]
    assert [key for key in keys if columns & Column.KEYS] == [
        message[1][1] for message in messages_of(piece) if columns & Column.KEYS
    ]
    if piece.scattered is not None:
        assert piece.scattered == offsets


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_begin_and_end_where_offsets_do(some: set[int]) -> None:
    """They are apart, and have these offsets and no others."""
    firsts, ends = ranges_of(sorted(some))
    assert [
        offset for first, end in zip(firsts, ends, strict=True) for offset in range(first, end)
    ] == sorted(some)
    assert all(end < first for end, first in zip(ends, firsts[1:], strict=False))
