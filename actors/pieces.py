"""Pieces: what one DELIVER carries, cut or joined from batches without looking at single messages; pure.

A batch that fits is sent as it is, the stored bytes untouched. A batch larger than a consumer's credit is cut; small
batches that follow each other are joined end to end up to `PIECE_BYTES`, so that a topic fed with single messages does
not cost a frame a message. Sums over length tables run in C.

Invariants
- the messages of a piece are consecutive offsets, in order, each byte for byte what was published
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ister.wire import Buffer, Column, lengths_of

PIECE_BYTES: Final = 64 << 10  # joining stops here: the size of a producer's full batch


class Batch(Protocol):
    """A batch as stored or as relayed; `storage.record.Record` and `RelayedBatch` are ones."""

    @property
    def first_offset(self) -> int:
        """Return the offset of its first message."""

    @property
    def count(self) -> int:
        """Return how many messages it has."""

    @property
    def timestamp_ms(self) -> int:
        """Return when it was taken in, as unix milliseconds."""

    @property
    def columns(self) -> int:
        """Return the bits of `ister.wire.Column` it has."""

    @property
    def lengths(self) -> Buffer:
        """Return the length table."""

    @property
    def payload(self) -> Buffer:
        """Return the payloads, end to end."""

    @property
    def keys(self) -> Buffer | None:
        """Return the keys column."""

    @property
    def attributes(self) -> Buffer | None:
        """Return the attributes column."""


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

    @classmethod
    def of_frames(
        cls, first_offset: int, count: int, timestamp_ms: int, columns: int, frames: Sequence[Buffer]
    ) -> RelayedBatch:
        """Return the batch made of the body frames of a PUBLISH."""
        keys = frames[2] if columns & Column.KEYS else None
        attributes = frames[-1] if columns & Column.ATTRIBUTES else None
        return cls(first_offset, count, timestamp_ms, columns, frames[0], frames[1], keys, attributes)

    @property
    def frames(self) -> tuple[Buffer, ...]:
        """Return the body frames it was made of."""
        return _frames(self)


@dataclass(slots=True, frozen=True)
class Piece:
    """What one DELIVER carries: `count` messages from `offset` on, in the body frames of the wire."""

    offset: int
    count: int
    columns: int
    attempt: int
    timestamps: tuple[int, ...]  # count, unix ms, count, unix ms, ...
    frames: tuple[Buffer, ...]
    bytes: int


def whole(batch: Batch, attempt: int) -> Piece:
    """Return a batch as it is."""
    frames = _frames(batch)
    return Piece(
        batch.first_offset,
        batch.count,
        batch.columns,
        attempt,
        (batch.count, batch.timestamp_ms),
        frames,
        sum(map(len, frames)),
    )


def cut(batch: Batch, first: int, end: int, attempt: int) -> Piece:
    """Return the messages of a batch from offset `first` to before `end`, which must be in it."""
    low, high = first - batch.first_offset, end - batch.first_offset
    if low == 0 and high == batch.count:
        return whole(batch, attempt)
    assert 0 <= low < high <= batch.count, (batch.first_offset, batch.count, first, end)
    table = memoryview(batch.lengths)
    frames: list[Buffer] = [table[4 * low : 4 * high], _cut_items(table, batch.payload, low, high)]
    for bit, column in ((Column.KEYS, batch.keys), (Column.ATTRIBUTES, batch.attributes)):
        if batch.columns & bit and column is not None:
            view = memoryview(column)
            lengths, items = view[: 4 * batch.count], view[4 * batch.count :]
            frames.append(bytes(lengths[4 * low : 4 * high]) + bytes(_cut_items(lengths, items, low, high)))
    count = high - low
    return Piece(
        first,
        count,
        batch.columns,
        attempt,
        (count, batch.timestamp_ms),
        tuple(frames),
        sum(map(len, frames)),
    )


def join(batches: Sequence[Batch]) -> Piece:
    """Return batches that follow each other, of the same columns, as one piece of first-time deliveries."""
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


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of a batch's body frames."""
    size = len(batch.lengths) + len(batch.payload)
    return size + len(batch.keys or b"") + len(batch.attributes or b"") if batch.columns else size


def _frames(batch: Batch) -> tuple[Buffer, ...]:
    if not batch.columns:
        return (batch.lengths, batch.payload)
    columns = (batch.keys, batch.attributes)
    return (batch.lengths, batch.payload, *[column for column in columns if column is not None])


def _cut_items(table: memoryview, items: Buffer, low: int, high: int) -> memoryview:
    start = sum(lengths_of(table[: 4 * low]))
    return memoryview(items)[start : start + sum(lengths_of(table[4 * low : 4 * high]))]


def _join_columns(batches: Sequence[Batch], columns: Sequence[Buffer | None]) -> bytes:
    views = [memoryview(column or b"") for column in columns]
    tables = [view[: 4 * batch.count] for batch, view in zip(batches, views, strict=True)]
    items = [view[4 * batch.count :] for batch, view in zip(batches, views, strict=True)]
    return b"".join(tables) + b"".join(items)
