"""Pieces: the content of one DELIVER, cut or joined from batches without looking at single messages; pure.

A batch that fits is sent as it is, the stored bytes unchanged. A batch larger than a consumer's credit is cut.
Consecutive small batches are joined up to `PIECE_BYTES`, so that a topic of single messages does not cost a frame per
message. Sums over length tables run in C.

Single messages are chosen in `sheets.py`.

Invariants
- the messages of a piece are in the order of their offsets, each byte for byte as published
- they are consecutive, unless `ranges` lists them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ister.bodies import Buffer, sum_of_lengths
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
    flat: list[int] | None = None  # `ranges` as one list, if it is at hand

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
