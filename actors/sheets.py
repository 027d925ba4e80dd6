"""Batches opened for single messages, and pieces of messages that were chosen one by one; pure.

Where single messages are chosen (Key-Shared, scattered redeliveries, delivery times), batches are opened as a `Sheet`:
one batch, or several that follow each other, since what is done for a sheet is worth more the more messages it has.
`gather` joins chosen messages of several sheets, `gather_chosen` those that are delivered for the first time. This is
the only place of the broker that looks at single messages; what it does for each of them is done in C.

Invariants
- the messages of a piece are in the order of their offsets, each byte for byte as published, each with its own time
- a sheet is a copy: it holds no file
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, filterfalse, repeat
from operator import add, itemgetter
from typing import Any, Final, TypeVar

from ister.actors.pieces import Batch, Piece, RelayedBatch, copied, join
from ister.bodies import (
    Buffer,
    lengths_of,
    pack_column,
    pack_lengths,
    split_column,
    split_payloads,
    split_times,
)
from ister.wire import Column

T = TypeVar("T")

# Payloads of a sheet that are no longer than this on average are cut out all at once, which takes a fifth of the time.
SHORT: Final = 1024


def together(batches: Sequence[Batch]) -> RelayedBatch:
    """Return a copy of batches that follow each other as one batch, with the time and the producer of the last one.

    They have the same columns, which are not delivery times.
    """
    if len(batches) == 1:
        return copied(batches[0])
    last = batches[-1]
    piece = join(batches)
    one = RelayedBatch.of_frames(piece.offset, piece.count, last.timestamp_ms, piece.columns, piece.frames)
    one.producer_id = last.producer_id
    return one


class Sheet:
    """A batch in memory, or several as one, opened for single messages; derived tables are computed once."""

    __slots__ = ("_columns", "_ends", "_lengths", "_origins", "_payloads", "_stops", "batch", "end", "first")

    def __init__(self, batch: Batch, of: Sequence[Batch] = ()) -> None:
        """`of`: the batches that `batch` has `together`."""
        self.batch = batch
        self.first = batch.first_offset
        self.end = batch.first_offset + batch.count
        self._origins = [(each.timestamp_ms, each.producer_id) for each in of or (batch,)]
        self._stops = list(accumulate(each.count for each in of)) if of else [batch.count]
        self._lengths: array[int] | None = None  # of each payload
        self._ends: list[int] | None = None  # where each payload ends
        self._payloads: list[bytes] | None = None
        self._columns: dict[int, list[bytes]] = {}

    @property
    def keys(self) -> list[bytes]:
        """The keys, empty where a message has none."""
        return self._column(Column.KEYS, self.batch.keys)

    @property
    def attributes(self) -> list[bytes]:
        """The attributes as they are on the wire, empty where a message has none."""
        return self._column(Column.ATTRIBUTES, self.batch.attributes)

    @property
    def deliver_at(self) -> array[int] | None:
        """When the messages are to be delivered (unix ms, 0: at once); None where none is to wait."""
        column = self.batch.deliver_at
        return None if column is None else split_times(column, self.batch.count)

    def _column(self, bit: int, column: Buffer | None) -> list[bytes]:
        found = self._columns.get(bit)
        if found is None:
            count = self.batch.count
            found = [b""] * count if column is None else split_column(column, count)
            self._columns[bit] = found
        return found

    @property
    def lengths(self) -> array[int]:
        """The bytes of each payload."""
        if self._lengths is None:
            self._lengths = lengths_of(self.batch.lengths)
        return self._lengths

    @property
    def ends(self) -> list[int]:
        """Where each payload ends, in bytes from the first."""
        if self._ends is None:
            self._ends = list(accumulate(self.lengths))
        return self._ends

    def size(self, index: int) -> int:
        """Return the bytes of one payload."""
        return self.lengths[index]

    def payload(self, low: int, high: int) -> memoryview:
        """Return the payloads of messages [low, high), end to end."""
        ends = self.ends
        return memoryview(self.batch.payload)[ends[low - 1] if low else 0 : ends[high - 1]]

    def payloads(self, indices: Sequence[int]) -> Sequence[bytes]:
        """Return the payloads of some messages."""
        if self._payloads is None:
            batch = self.batch
            if len(batch.payload) > SHORT * batch.count:
                return [bytes(self.payload(index, index + 1)) for index in indices]
            self._payloads = split_payloads(batch.lengths, batch.payload, checked=True)
        return picked(self._payloads, indices)

    def timestamp_ms(self, index: int) -> int:
        """Return when a message was published, in unix ms."""
        return self._origins[bisect_right(self._stops, index)][0]

    def producer_id(self, index: int) -> int:
        """Return the id of a message's producer."""
        return self._origins[bisect_right(self._stops, index)][1]

    def stop_of(self, index: int) -> int:
        """Return the index after the last message that was published with this one."""
        return self._stops[bisect_right(self._stops, index)]

    def timestamps(self, indices: Sequence[int]) -> list[int]:
        """Return when messages were published, their indices ascending: count, unix ms, count, unix ms, ..."""
        stops, count = self._stops, len(indices)
        if len(stops) == 1:
            return [count, self._origins[0][0]]
        flat: list[int] = []
        at = 0
        while at < count:
            number = bisect_right(stops, indices[at])
            behind = bisect_left(indices, stops[number], at)
            add_time(flat, behind - at, self._origins[number][0])
            at = behind
        return flat


def add_time(flat: list[int], count: int, timestamp_ms: int) -> None:
    """Add so many messages of one time to counts and times."""
    if flat and flat[-1] == timestamp_ms:
        flat[-2] += count
    else:
        flat += (count, timestamp_ms)


def picked(items: Sequence[T], indices: Sequence[int]) -> Sequence[T]:
    """Return the items with these indices, in C."""
    if len(indices) < 2:
        return [items[index] for index in indices]
    found: Any = itemgetter(*indices)(items)
    return found  # type: ignore[no-any-return]


def gather(rows: Sequence[tuple[Sheet, int]], attempt: int, failures: int) -> Piece:
    """Return chosen messages, in ascending order of offsets and with the same columns, as one piece."""
    runs: list[tuple[Sheet, int, int]] = []
    for sheet, index in rows:
        if runs and runs[-1][0] is sheet and runs[-1][2] == index:
            runs[-1] = (sheet, runs[-1][1], index + 1)
        else:
            runs.append((sheet, index, index + 1))
    columns = runs[0][0].batch.columns
    frames: list[Buffer] = [
        b"".join([memoryview(sheet.batch.lengths)[4 * low : 4 * high] for sheet, low, high in runs]),
        b"".join([sheet.payload(low, high) for sheet, low, high in runs]),
    ]
    if columns & Column.KEYS:
        frames.append(pack_column([key for sheet, low, high in runs for key in sheet.keys[low:high]]))
    if columns & Column.ATTRIBUTES:
        items = [item for sheet, low, high in runs for item in sheet.attributes[low:high]]
        frames.append(pack_column(items))
    if columns & Column.DELIVER_AT:
        tables = [memoryview(sheet.batch.deliver_at or b"")[8 * low : 8 * high] for sheet, low, high in runs]
        frames.append(b"".join(tables))
    timestamps: list[int] = []
    for sheet, low, high in runs:
        times = sheet.timestamps(range(low, high))
        for count, timestamp_ms in zip(times[::2], times[1::2], strict=True):
            add_time(timestamps, count, timestamp_ms)
    offsets = [sheet.first + index for sheet, index in rows]
    return _piece(offsets, columns, attempt, timestamps, frames, failures)


def _piece(
    offsets: list[int],
    columns: int,
    attempt: int,
    timestamps: Sequence[int],
    frames: Sequence[Buffer],
    failures: int,
) -> Piece:
    firsts, ends = ranges_of(offsets)
    flat = [0] * (2 * len(firsts))
    flat[::2], flat[1::2] = firsts, ends
    return Piece(
        offsets[0],
        len(offsets),
        columns,
        attempt,
        tuple(timestamps),
        tuple(frames),
        sum(map(len, frames)),
        failures,
        tuple(zip(firsts, ends, strict=True)) if len(firsts) > 1 else (),
        offsets if 2 * len(firsts) > len(offsets) > 1 else None,
        flat if len(firsts) > 1 else None,
    )


@dataclass(slots=True)
class Chosen:
    """Messages of one sheet that were chosen one by one, ascending, with their payloads and keys."""

    sheet: Sheet
    indices: Sequence[int]
    offsets: list[int]
    payloads: Sequence[bytes]
    keys: Sequence[bytes]
    bytes: int


def choose(sheet: Sheet, indices: Sequence[int], keys: Sequence[bytes], room: int) -> Chosen:
    """Return the first messages of those with these indices, up to the one that fills `room` bytes; at least one.

    `keys` are theirs, and may go on.
    """
    sizes = picked(sheet.lengths, indices)
    size = sum(sizes)
    if size > room:
        count = bisect_left(list(accumulate(sizes)), room) + 1
        indices = indices[:count]
        size = sum(sizes[:count])
    offsets = list(map(add, indices, repeat(sheet.first)))
    return Chosen(sheet, indices, offsets, sheet.payloads(indices), keys[: len(indices)], size)


def gather_chosen(chosen: Sequence[Chosen]) -> tuple[Piece, list[int], Sequence[bytes]]:
    """Return messages chosen from several sheets with the same columns as one piece, delivered for the first time.

    Also all their offsets, and their keys.
    """
    columns = chosen[0].sheet.batch.columns
    offsets, payloads, keys = chosen[0].offsets, chosen[0].payloads, chosen[0].keys
    timestamps = chosen[0].sheet.timestamps(chosen[0].indices)
    if len(chosen) > 1:
        offsets, payloads, keys = offsets[:], [*payloads], [*keys]
        for each in chosen[1:]:
            offsets += each.offsets
            payloads += each.payloads
            keys += each.keys
            times = each.sheet.timestamps(each.indices)
            for count, timestamp_ms in zip(times[::2], times[1::2], strict=True):
                add_time(timestamps, count, timestamp_ms)
    frames: list[Buffer] = [pack_lengths(payloads), b"".join(payloads)]
    if columns & Column.KEYS:
        frames.append(pack_column(keys))
    if columns & Column.ATTRIBUTES:
        items = [item for each in chosen for item in picked(each.sheet.attributes, each.indices)]
        frames.append(pack_column(items))
    return _piece(offsets, columns, 1, timestamps, frames, 0), offsets, keys


def ranges_of(offsets: list[int]) -> tuple[list[int], list[int]]:
    """Return where the ranges of some offsets, which ascend, begin and end."""
    behind = list(map(add, offsets, repeat(1)))
    firsts = list(filterfalse(set(behind).__contains__, offsets))
    if len(firsts) == len(offsets):
        return firsts, behind
    return firsts, list(filterfalse(set(offsets).__contains__, behind))
