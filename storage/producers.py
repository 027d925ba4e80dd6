"""The producers of a topic, and their last batches, so that a resent batch is stored once. Pure.

- Sequences count messages: a batch at `sequence` of `count` messages is followed by one at `sequence + count`.
- Producer id 0 means: no deduplication.
- Memory is bounded by the number of producers and of batches remembered of each. Above `producers_max`, producers that
  closed are forgotten first, in that order, then the one silent for longest. One that is connected is never forgotten,
  nor one that stored something within HELD_MS and did not close: it may be about to reconnect and resend. If all are of
  these kinds, new producers are refused. A disconnected producer that was silent for PRODUCER_AGE_MS is forgotten when
  the next segment begins. A forgotten producer starts again with the next sequence it sends, so an old resend is then
  stored again.
- A resend of a remembered batch must have the same messages. A batch from before the remembered ones is taken for a
  duplicate: all its messages are stored, though in which batches is unknown.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

# A producer has at most some 64 batches without receipt; with four times as many remembered, each resend is answered
# with its own offset.
RECENT_BATCHES_MAX: Final = 256
# 36 bytes each at the head of every segment: 4,096 of them are 1.8 % of one of 8 MiB.
PRODUCERS_MAX: Final = 4096
# No client resends after a week; one that returns then opens its producer again.
PRODUCER_AGE_MS: Final = 7 * 86_400_000
# A client that lost its broker returns within seconds, or when its machine has restarted. With a longer time, a few
# thousand programs a day that are killed before they close would keep others out.
HELD_MS: Final = 3_600_000

_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QQQQI")
ENTRY_BYTES: Final = _ENTRY.size


@dataclass(frozen=True, slots=True)
class Fresh:
    """A new batch, and the next in order: store it."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A batch that was stored before, at `first_offset` if that is still known."""

    first_offset: int | None


@dataclass(frozen=True, slots=True)
class Gap:
    """A batch before this one is missing: the producer has to resend from `expected`."""

    expected: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """The batch, or a part of it, was sent before in other batches: the resend was cut differently."""

    expected: int


Verdict = Fresh | Duplicate | Gap | Overlap
_FRESH = Fresh()
_UNKNOWN = Duplicate(None)


class _Producer:
    __slots__ = ("held", "next_sequence", "recent", "timestamp_ms")

    def __init__(self, next_sequence: int) -> None:
        self.next_sequence = next_sequence
        self.timestamp_ms = 0
        self.held = False  # it stored something since the log was opened, and did not close
        self.recent: deque[tuple[int, int, int]] = deque(maxlen=RECENT_BATCHES_MAX)


class ProducerTable:
    """The producers of one topic: what comes next from each, and the offsets of its last batches.

    `connected` are the connected producers; the topic updates it once it accepts batches.
    """

    __slots__ = ("_closed", "_producers", "_producers_max", "_time_ms", "connected")

    def __init__(self, producers_max: int = PRODUCERS_MAX) -> None:
        self._producers_max = producers_max
        self._time_ms = 0  # the time of the last batch of any producer
        self._producers: OrderedDict[int, _Producer] = OrderedDict()
        self._closed: OrderedDict[int, None] = OrderedDict()  # producers that closed, in that order
        self.connected: Collection[int] | None = None

    def __len__(self) -> int:
        return len(self._producers)

    @property
    def heard_ms(self) -> int | None:
        """When the last batch of any producer was stored, as unix ms, where that is known."""
        return self._time_ms or None

    def next_sequence(self, producer_id: int) -> int | None:
        """Return the sequence that a producer's next batch must have, None for an unknown producer."""
        known = self._producers.get(producer_id)
        return None if known is None else known.next_sequence

    def check(self, producer_id: int, sequence: int, count: int) -> Verdict:
        """Decide on a batch; nothing changes until `advance`."""
        if producer_id == 0:
            return _FRESH
        known = self._producers.get(producer_id)
        if known is None or sequence == known.next_sequence:
            return _FRESH
        expected = known.next_sequence
        if sequence > expected:
            return Gap(expected)
        if sequence + count > expected:
            return Overlap(expected)
        for at, length, first_offset in reversed(known.recent):
            if at == sequence and length == count:
                return Duplicate(first_offset)
            if at + length <= sequence:  # the batches before are older still
                break
            if at < sequence + count:
                return Overlap(expected)
        return _UNKNOWN

    def advance(
        self, producer_id: int, sequence: int, count: int, first_offset: int, timestamp_ms: int
    ) -> None:
        """Note that a batch was stored."""
        if producer_id == 0:
            return
        known = self._producers.get(producer_id)
        if known is None:
            known = self._learn(producer_id, sequence)
        else:
            self._producers.move_to_end(producer_id)
            self._closed.pop(producer_id, None)
        if self.connected is not None:
            known.held = True
        # the first batch of all: producers that opened before it count as young as it is
        if not self._time_ms:
            for opened in self._producers.values():
                opened.timestamp_ms = timestamp_ms
        known.next_sequence = sequence + count
        known.timestamp_ms = self._time_ms = timestamp_ms
        known.recent.append((sequence, count, first_offset))

    def expect(self, producer_id: int, sequence: int) -> None:
        """Raise the sequence expected of a producer that opens and has nothing unresolved below `sequence`."""
        if producer_id == 0:
            return
        known = self._producers.get(producer_id)
        self._closed.pop(producer_id, None)
        if known is None:
            self._learn(producer_id, sequence)
        elif sequence > known.next_sequence:
            known.next_sequence = sequence

    def close(self, producer_id: int) -> None:
        """Note that a producer closed with all its receipts: it resends nothing, and is forgotten first."""
        known = self._producers.get(producer_id)
        if known is not None:
            known.held = False
            self._closed[producer_id] = None
            self._closed.move_to_end(producer_id)

    def has_room(self, producer_id: int, now_ms: int) -> bool:
        """Return whether a producer that opens can be remembered without forgetting one that may resend."""
        if producer_id == 0 or producer_id in self._producers or len(self._producers) < self._producers_max:
            return True
        return self._forgettable(now_ms) is not None

    def _forgettable(self, now_ms: int) -> int | None:
        connected = self.connected or ()
        for producer_id in self._closed:
            if producer_id not in connected:
                return producer_id
        for producer_id, known in self._producers.items():
            if producer_id not in connected and not (known.held and now_ms - known.timestamp_ms <= HELD_MS):
                return producer_id
        return None

    def hold(self, producer_id: int, sequence: int) -> None:
        """Note that a batch was refused: no later batch of its producer may be stored before it.

        Of an unknown producer everything would count as new: later batches would be stored, and the refused batch, when
        it is resent, would count as a duplicate.
        """
        if producer_id and producer_id not in self._producers:
            self._learn(producer_id, sequence)

    def forget(self, producer_id: int) -> None:
        """Drop what is known of one producer."""
        self._producers.pop(producer_id, None)
        self._closed.pop(producer_id, None)

    def _learn(self, producer_id: int, sequence: int) -> _Producer:
        if len(self._producers) >= self._producers_max:
            found = self._forgettable(self._time_ms)
            if found is None:  # the caller did not check for room
                strangers = (one for one in self._producers if one not in (self.connected or ()))
                found = next(strangers, next(iter(self._producers)))
            self.forget(found)
        known = self._producers[producer_id] = _Producer(sequence)
        known.timestamp_ms = self._time_ms
        return known

    def joined(self, later: ProducerTable) -> ProducerTable:
        """Return `later`, a table of the same topic, joined with the batches remembered here."""
        for producer_id, known in later._producers.items():
            before = self._producers.get(producer_id)
            if before is not None:
                batches = sorted({*before.recent, *known.recent})
                known.recent = deque(batches, maxlen=RECENT_BATCHES_MAX)
                known.next_sequence = max(known.next_sequence, before.next_sequence)
        return later

    def encode(self) -> bytes:
        """Return the snapshot at the head of a segment: each producer's last batch, in the order of forgetting."""
        oldest_ms, connected = self._time_ms - PRODUCER_AGE_MS, self.connected or ()
        for producer_id in [one for one, known in self._producers.items() if known.timestamp_ms < oldest_ms]:
            if producer_id not in connected:
                self.forget(producer_id)
        parts = [_COUNT.pack(len(self._producers))]
        held = [one for one, known in self._producers.items() if known.held]
        others = [one for one, known in self._producers.items() if not known.held and one not in self._closed]
        for producer_id in (*self._closed, *others, *held):
            known = self._producers[producer_id]
            sequence, count, first_offset = known.recent[-1] if known.recent else (known.next_sequence, 0, 0)
            if sequence + count != known.next_sequence:  # `expect` has raised it since
                sequence, count, first_offset = known.next_sequence, 0, 0
            parts.append(_ENTRY.pack(producer_id, sequence, first_offset, known.timestamp_ms, count))
        return b"".join(parts)

    @classmethod
    def decode(cls, snapshot: bytes, producers_max: int = PRODUCERS_MAX) -> ProducerTable:
        """Return the table a snapshot was made of. Raises ValueError for bytes that are not one."""
        if len(snapshot) < _COUNT.size:
            raise ValueError("a producers snapshot is cut short")
        (entries,) = _COUNT.unpack_from(snapshot)
        if len(snapshot) != _COUNT.size + entries * ENTRY_BYTES:
            raise ValueError(f"a producers snapshot of {entries} entries has {len(snapshot)} bytes")
        table = cls(producers_max)
        for producer_id, sequence, first_offset, timestamp_ms, count in _ENTRY.iter_unpack(
            snapshot[_COUNT.size :]
        ):
            known = table._learn(producer_id, sequence + count)
            known.timestamp_ms = timestamp_ms
            table._time_ms = max(table._time_ms, timestamp_ms)
            if count:
                known.recent.append((sequence, count, first_offset))
        return table
