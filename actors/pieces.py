"""Pieces: the content of one DELIVER, cut or joined from batches without looking at single messages; pure.

A batch that fits is sent as it is, the stored bytes unchanged. A batch larger than a consumer's credit is cut.
Consecutive small batches are joined up to `PIECE_BYTES`, so that a topic of single messages does not cost a frame per
message. Sums over length tables run in C.

Where single messages are chosen (Key-Shared, scattered redeliveries, delivery times), a batch is opened as a `Sheet`,
and `gather` joins the chosen messages of several batches. This is the only place that looks at single messages.

Invariants
- the messages of a piece are in the order of their offsets, each byte for byte as published
- they are consecutive, unless `ranges` lists them
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

from ister.bodies import (
    Buffer,
    lengths_of,
    pack_column,
    pack_lengths,
    split_column,
    split_times,
    sum_of_lengths,
)
from ister.wire import Column

PIECE_BYTES: Final = 64 << 10  # joining stops at this size, that of a producer's full batch


class Batch(Protocol):
    """A batch as stored or relayed; implemented by `ister.storage.record.Record` and `RelayedBatch`."""

    @property
    def first_offset(self) -> int:
        """The offset of its first message."""

    @property
    def count(self) -> int:
        """How many messages it has."""

    @property
    def timestamp_ms(self) -> int:
        """When it was published, in unix ms."""

    @property
    def columns(self) -> int:
        """The bits of `ister.wire.Column` that it has."""

    @property
    def producer_id(self) -> int:
        """The id of its producer."""

    @property
    def lengths(self) -> Buffer:
        """The length table."""

    @property
    def payload(self) -> Buffer:
        """The payloads, end to end."""

    @property
    def keys(self) -> Buffer | None:
        """The keys column."""

    @property
    def attributes(self) -> Buffer | None:
        """The attributes column."""

    @property
    def deliver_at(self) -> Buffer | None:
        """The column of delivery times."""


@dataclass(slots=True, eq=False)
class RelayedBatch:
    """A batch of a non-reliable topic, in memory."""

    first_offset: int
    count: int
    timestamp_ms: int
    columns: int
    lengths: Buffer
    payload: Buffer
    keys: Buffer | None = None
    attributes: Buffer | None = None
    deliver_at: Buffer | None = None
    producer_id: int = 0  # not used

    @classmethod
    def of_frames(
        cls, first_offset: int, count: int, timestamp_ms: int, columns: int, frames: Sequence[Buffer]
    ) -> RelayedBatch:
        """Return the batch made of the body frames of a PUBLISH."""
        rest = iter(frames[2:])
        keys, attributes, deliver_at = (
            next(rest) if columns & bit else None
            for bit in (Column.KEYS, Column.ATTRIBUTES, Column.DELIVER_AT)
        )
        return cls(
            first_offset, count, timestamp_ms, columns, frames[0], frames[1], keys, attributes, deliver_at
        )

    @property
    def frames(self) -> tuple[Buffer, ...]:
        """Return the body frames it was made of."""
        return _frames(self)


@dataclass(slots=True, frozen=True)
class Piece:
    """The content of one DELIVER: `count` messages from `offset` on, in the body frames of the wire."""

    offset: int
    count: int
    columns: int
    attempt: int
    timestamps: tuple[int, ...]  # count, unix ms, count, unix ms, ...
    frames: tuple[Buffer, ...]
    bytes: int
    failures: int = 0
    ranges: tuple[tuple[int, int], ...] = ()  # the offsets, if they are not consecutive
    scattered: list[int] | None = None  # each offset, if most of them are not consecutive

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """The offsets as half-open ranges."""
        return self.ranges or ((self.offset, self.offset + self.count),)

    @property
    def end(self) -> int:
        """The offset after the last one."""
        return self.ranges[-1][1] if self.ranges else self.offset + self.count


def whole(batch: Batch, attempt: int, failures: int = 0) -> Piece:
    """Return a batch as a piece, unchanged."""
    frames = _frames(batch)
    return Piece(
        batch.first_offset,
        batch.count,
        batch.columns,
        attempt,
        (batch.count, batch.timestamp_ms),
        frames,
        sum(map(len, frames)),
        failures,
    )


def cut(batch: Batch, first: int, end: int, attempt: int, failures: int = 0) -> Piece:
    """Return the messages of a batch from offset `first` up to, not including, `end`, both of which must be in it."""
    low, high = first - batch.first_offset, end - batch.first_offset
    if low == 0 and high == batch.count:
        return whole(batch, attempt, failures)
    assert 0 <= low < high <= batch.count, (batch.first_offset, batch.count, first, end)
    table = memoryview(batch.lengths)
    frames: list[Buffer] = [table[4 * low : 4 * high], _cut_items(table, batch.payload, low, high)]
    for bit, column in ((Column.KEYS, batch.keys), (Column.ATTRIBUTES, batch.attributes)):
        if batch.columns & bit and column is not None:
            view = memoryview(column)
            lengths, items = view[: 4 * batch.count], view[4 * batch.count :]
            frames.append(bytes(lengths[4 * low : 4 * high]) + bytes(_cut_items(lengths, items, low, high)))
    if batch.columns & Column.DELIVER_AT and batch.deliver_at is not None:
        frames.append(memoryview(batch.deliver_at)[8 * low : 8 * high])
    count = high - low
    return Piece(
        first,
        count,
        batch.columns,
        attempt,
        (count, batch.timestamp_ms),
        tuple(frames),
        sum(map(len, frames)),
        failures,
    )


def join(batches: Sequence[Batch]) -> Piece:
    """Return consecutive batches with the same columns as one piece, delivered for the first time."""
    if len(batches) == 1:
        return whole(batches[0], 1)
    first = batches[0]
    frames: list[Buffer] = [
        b"".join([batch.lengths for batch in batches]),
        b"".join([batch.payload for batch in batches]),
    ]
    if first.columns & Column.KEYS:
        frames.append(_join_columns(batches, [batch.keys for batch in batches]))
    if first.columns & Column.ATTRIBUTES:
        frames.append(_join_columns(batches, [batch.attributes for batch in batches]))
    if first.columns & Column.DELIVER_AT:
        frames.append(b"".join([batch.deliver_at or b"" for batch in batches]))
    timestamps: list[int] = []
    for batch in batches:
        timestamps += (batch.count, batch.timestamp_ms)
    return Piece(
        first.first_offset,
        sum(timestamps[::2]),
        first.columns,
        1,
        tuple(timestamps),
        tuple(frames),
        sum(map(len, frames)),
    )


def copied(batch: Batch) -> RelayedBatch:
    """Return a copy of a batch in memory, independent of the file it was read from."""
    keys, attributes, deliver_at = batch.keys, batch.attributes, batch.deliver_at
    return RelayedBatch(
        batch.first_offset,
        batch.count,
        batch.timestamp_ms,
        batch.columns,
        bytes(batch.lengths),
        bytes(batch.payload),
        None if keys is None else bytes(keys),
        None if attributes is None else bytes(attributes),
        None if deliver_at is None else bytes(deliver_at),
        batch.producer_id,
    )


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of a batch's body frames."""
    size = len(batch.lengths) + len(batch.payload)
    if not batch.columns:
        return size
    return size + len(batch.keys or b"") + len(batch.attributes or b"") + len(batch.deliver_at or b"")


def _frames(batch: Batch) -> tuple[Buffer, ...]:
    if not batch.columns:
        return (batch.lengths, batch.payload)
    columns = (batch.keys, batch.attributes, batch.deliver_at)
    return (batch.lengths, batch.payload, *[column for column in columns if column is not None])


def _cut_items(table: memoryview, items: Buffer, low: int, high: int) -> memoryview:
    start = sum_of_lengths(table[: 4 * low])
    return memoryview(items)[start : start + sum_of_lengths(table[4 * low : 4 * high])]


def _join_columns(batches: Sequence[Batch], columns: Sequence[Buffer | None]) -> bytes:
    views = [memoryview(column or b"") for column in columns]
    tables = [view[: 4 * batch.count] for batch, view in zip(batches, views, strict=True)]
    items = [view[4 * batch.count :] for batch, view in zip(batches, views, strict=True)]
    return b"".join(tables) + b"".join(items)


# ---- single messages --------------------------------------------------------------------------------------------


class Sheet:
    """A batch opened for single messages; derived tables are computed once."""

    __slots__ = ("_columns", "_ends", "_lengths", "batch", "end", "first")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.first = batch.first_offset
        self.end = batch.first_offset + batch.count
        self._lengths: array[int] | None = None  # of each payload
        self._ends: list[int] | None = None  # where each payload ends
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
        ends = self.ends
        return ends[index] - (ends[index - 1] if index else 0)

    def payload(self, low: int, high: int) -> memoryview:
        """Return the payloads of messages [low, high), end to end."""
        ends = self.ends
        return memoryview(self.batch.payload)[ends[low - 1] if low else 0 : ends[high - 1]]


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
    ranges: list[tuple[int, int]] = []
    for sheet, low, high in runs:
        if len(timestamps) > 1 and timestamps[-1] == sheet.batch.timestamp_ms:
            timestamps[-2] += high - low
        else:
            timestamps += (high - low, sheet.batch.timestamp_ms)
        if ranges and ranges[-1][1] == sheet.first + low:
            ranges[-1] = (ranges[-1][0], sheet.first + high)
        else:
            ranges.append((sheet.first + low, sheet.first + high))
    return Piece(
        ranges[0][0],
        len(rows),
        columns,
        attempt,
        tuple(timestamps),
        tuple(frames),
        sum(map(len, frames)),
        failures,
        tuple(ranges) if len(ranges) > 1 else (),
    )


@dataclass(slots=True)
class Chosen:
    """Messages of one batch that were chosen one by one, ascending, with their payloads and keys."""

    sheet: Sheet
    indices: list[int]
    offsets: list[int]
    payloads: list[bytes]
    keys: Sequence[bytes]
    bytes: int


def choose(sheet: Sheet, indices: list[int], keys: Sequence[bytes], room: int) -> Chosen:
    """Return the first messages of those with these indices, up to the one that fills `room` bytes; at least one."""
    payload, ends, lengths = sheet.batch.payload, sheet.ends, sheet.lengths
    sizes = [lengths[index] for index in indices]
    size = sum(sizes)
    if size > room:
        count = bisect_left(list(accumulate(sizes)), room) + 1
        indices, sizes = indices[:count], sizes[:count]
        size = sum(sizes)
    stops = [ends[index] for index in indices]
    payloads = [bytes(payload[stop - length : stop]) for stop, length in zip(stops, sizes, strict=True)]
    first = sheet.first
    return Chosen(sheet, indices, [first + index for index in indices], payloads, keys[: len(indices)], size)


def gather_chosen(chosen: Sequence[Chosen]) -> Piece:
    """Return messages chosen from several batches with the same columns as one piece, delivered for the first time."""
    columns = chosen[0].sheet.batch.columns
    if len(chosen) == 1:
        offsets, payloads, keys = chosen[0].offsets, chosen[0].payloads, chosen[0].keys
    else:
        offsets = [offset for each in chosen for offset in each.offsets]
        payloads = [payload for each in chosen for payload in each.payloads]
        keys = [key for each in chosen for key in each.keys]
    frames: list[Buffer] = [pack_lengths(payloads), b"".join(payloads)]
    if columns & Column.KEYS:
        frames.append(pack_column(keys))
    if columns & Column.ATTRIBUTES:
        frames.append(
            pack_column([each.sheet.attributes[index] for each in chosen for index in each.indices])
        )
    timestamps: list[int] = []
    for each in chosen:
        if timestamps and timestamps[-1] == each.sheet.batch.timestamp_ms:
            timestamps[-2] += len(each.offsets)
        else:
            timestamps += (len(each.offsets), each.sheet.batch.timestamp_ms)
    here = set(offsets)
    ranges = tuple(
        zip(
            [offset for offset in offsets if offset - 1 not in here],
            [offset + 1 for offset in offsets if offset + 1 not in here],
            strict=True,
        )
    )
    return Piece(
        offsets[0],
        len(offsets),
        columns,
        1,
        tuple(timestamps),
        tuple(frames),
        sum(map(len, frames)),
        0,
        ranges if len(ranges) > 1 else (),
        offsets if 2 * len(ranges) > len(offsets) > 1 else None,
    )
