"""The source of a reliable subscription's messages: the topic's segments, read ahead in order, or read again.

Runs in the subscription's worker; may touch the readers it is given. It cuts and joins pieces of the log, and does not
decide which consumer gets them.

Invariants
- `next` is the first offset that was never looked at; what is read ahead begins there, or in the batch that holds it
- nothing is skipped by itself: what cannot be read is raised, and what was skipped by an operator's decision is
  reported (`on_skipped`)
- what is kept for long is copied from the memory maps, within limits per subscription and per process, so that no
  deleted segment stays on the disk or in memory
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ister.actors.pieces import PIECE_BYTES, Batch, Piece, batch_bytes, cut, join
from ister.actors.sheets import Sheet, together
from ister.errors import StorageError
from ister.storage.wholereader import UNKNOWN, TieredReader
from ister.wire import DELIVER_RECORDS_MAX

READ_BYTES: Final = 256 << 10  # read ahead of dispatch: a few pieces
# Copies of batches whose single messages are looked at: as many messages as may wait for the consumers of a Key-Shared
# subscription. Their tables take up to 20 MB, and the bytes are enough where consumers keep up.
SHEETS_MESSAGES_MAX: Final = 100_000
SHEETS_BYTES_MAX: Final = 16 << 20
TOGETHER_BYTES: Final = 1 << 20  # of batches that are opened as one
# When the limit of the process is reached, each subscription may still have this much, or one batch.
SHEETS_BYTES_MIN: Final = 256 << 10


class Source:
    """The messages of one topic, as one subscription reads them.

    `open_reader(offset)` opens a reader. `on_skipped(ranges)` is called with what a reader skipped.
    """

    def __init__(
        self,
        topic: str,
        open_reader: Callable[[int], TieredReader],
        on_skipped: Callable[[list[tuple[int, int]]], None],
    ) -> None:
        self._topic = topic
        self._open = open_reader
        self._on_skipped = on_skipped
        self._reader: TieredReader | None = None  # new messages, in order
        self._again: TieredReader | None = None  # for any other place
        self._sheets: dict[int, Sheet] = {}  # by first offset, the oldest first
        self._firsts: list[int] = []  # their first offsets, ascending
        self._sheets_messages = 0
        self._sheets_bytes = 0
        self._seen_at = (-1, -1)  # the positions of both readers when `rest` was last called
        # batches that were read and not looked at; the first one may be partly
        self.ahead: deque[Batch] = deque()
        self.next = 0
        self.durable_end = 0
        self.history_start = 0
        self.stored_end = UNKNOWN
        # from this offset on, messages arrived when everything before had been looked at
        self._caught_up_at = 0
        self.from_store = 0
        self.from_log = 0
        self.from_live = 0

    def begin(self, offset: int) -> None:
        """Read on from an offset."""
        self.next = offset
        self._caught_up_at = max(self.durable_end, offset)
        self.reopen()

    def reopen(self) -> None:
        """Read again what was read ahead, because it may have changed."""
        self.ahead.clear()
        self._forget_sheets()
        self._reader, self._again = self._reader_at(self.next), None

    def release(self) -> None:
        """Release everything that was read and the files, so that no deleted log stays on the disk or in memory."""
        self.ahead.clear()
        self._forget_sheets()
        for reader in (self._reader, self._again):
            if reader is not None:
                reader.close()

    def rest(self) -> None:
        """Release what was read and the files if nothing was read since the last call; it will be read again."""
        again = -1 if self._again is None else self._again.offset
        at = (self.next, again)
        if at != self._seen_at:
            self._seen_at = at
            return
        if self.ahead and self._reader is not None:
            self.ahead.clear()
            self._reader.seek(self.next)
        self._forget_sheets()
        for reader in (self._reader, self._again):
            if reader is not None:
                reader.close()

    def _reader_at(self, offset: int) -> TieredReader:
        reader = self._open(offset)
        reader.start, reader.stored_end = self.history_start, self.stored_end
        return reader

    def stored(self, end: int) -> None:
        """Note up to where the store has the topic."""
        self.stored_end = end
        for reader in (self._reader, self._again):
            if reader is not None:
                reader.stored_end = end

    def brought(self, base: int) -> None:
        """Note that the segment at `base` was downloaded."""
        for reader in (self._reader, self._again):
            if reader is not None:
                reader.brought(base)

    @property
    def left(self) -> int:
        """How many messages were not looked at; never negative, though a cursor may be ahead of the durable end."""
        return max(0, self.durable_end - self.next)

    def advance(self, durable_end: int) -> bool:
        """Note how far the log is durable; return whether that is further than before."""
        if durable_end <= self.durable_end:
            return False
        if self.next < self.durable_end:  # not caught up: what arrives now is read from the log later
            self._caught_up_at = durable_end
        self.durable_end = durable_end
        return True

    def reaches(self, durable_end: int) -> None:
        """Note how far the log is durable, before `begin`."""
        self.durable_end = max(self.durable_end, durable_end)

    def begins(self, start: int) -> None:
        """Note that there is nothing before an offset."""
        self.history_start = max(self.history_start, start)

    def trim(self, start: int) -> None:
        """Note where the topic's history begins after a trim."""
        self.history_start = start
        for reader in (self._reader, self._again):
            if reader is not None:
                reader.start = start
        if self.next < start:
            self.next = start
            self.ahead.clear()
            self._reader = self._reader_at(start)

    # ---- in order -----------------------------------------------------------------------------------------------

    def read_ahead(self) -> Batch | None:
        """Return the batch that contains `next`, reading it if necessary; None when there is nothing new.

        Raises what `TieredReader.read` raises.
        """
        if not self.ahead and self.next < self.durable_end:
            self._read_on()
        return self.ahead[0] if self.ahead else None

    def _read_on(self) -> bool:
        """Read what follows what was read ahead; return whether there was anything."""
        assert self._reader is not None
        records = self._reader.read(self.durable_end, READ_BYTES)
        self.ahead.extend(records)
        self._tell_skipped(self._reader)
        if records:
            self._count(records, self._reader.from_store)
        return bool(records)

    def open_ahead(self, messages: int, too_old_ms: int = 0) -> Sheet:
        """Open what was read ahead for single messages: the first batch, and those that follow it without a gap.

        As many as have this many `messages` together and the same columns, and were published after `too_old_ms`. More
        is read for that if necessary; what cannot be read is left to `read_ahead`.
        """
        ahead = self.ahead
        batches = [ahead[0]]
        count, size = batches[0].count, batch_bytes(batches[0])
        most = SHEETS_BYTES_MIN if self._copied_too_much else TOGETHER_BYTES
        while count < messages and size < most:
            if len(batches) == len(ahead) and not self._may_read_on():
                break
            batch = ahead[len(batches)]
            gap = batch.first_offset != batches[-1].first_offset + batches[-1].count
            if gap or batch.columns != batches[0].columns or batch.timestamp_ms <= too_old_ms:
                break
            batches.append(batch)
            count += batch.count
            size += batch_bytes(batch)
        return self._keep(batches)

    def _may_read_on(self) -> bool:
        assert self._reader is not None
        try:
            return self._reader.offset < self.durable_end and self._read_on()
        except StorageError:  # raised again when everything before it was taken
            return False

    def _tell_skipped(self, reader: TieredReader) -> None:
        skipped = reader.take_skipped()
        for first, end in skipped:
            if first <= self.next < end:
                self.next = end
        if skipped:
            self._on_skipped(skipped)

    def _count(self, records: Sequence[Batch], from_store: bool) -> None:
        """Count where messages came from: the store, the log, or its live end."""
        count = sum(record.count for record in records)
        if from_store:
            self.from_store += count
        elif records[0].first_offset >= self._caught_up_at:
            self.from_live += count
        else:
            self.from_log += count

    def take_to(self, end: int) -> None:
        """Note that the first batch read ahead was looked at up to `end`."""
        batch = self.ahead[0]
        self.next = end
        if end >= batch.first_offset + batch.count:
            self.ahead.popleft()

    def take_through(self, end: int) -> None:
        """Note that the batches read ahead were looked at up to `end`, where one of them ends."""
        while self.ahead and self.next < end:
            self.take_to(min(end, self.ahead[0].first_offset + self.ahead[0].count))

    def jump_to(self, offset: int) -> None:
        """Continue at an offset, without what is before."""
        while self.ahead and self.ahead[0].first_offset + self.ahead[0].count <= offset:
            self.ahead.popleft()
        self.next = offset
        if not self.ahead:
            assert self._reader is not None
            self._reader.seek(offset)

    def take_piece(self, messages_max: int, too_old_ms: int = 0) -> Piece:
        """Return the first batch read ahead, cut to the credit, or joined with following batches of the same columns.

        Batches published at or before `too_old_ms` are not joined: after a clock was set back, an older batch may
        follow a newer one.
        """
        ahead, first = self.ahead, self.next
        batch = ahead[0]
        batch_end = batch.first_offset + batch.count
        if batch.first_offset < first or batch.count > messages_max:
            end = min(batch_end, first + messages_max)
            self.take_to(end)
            return cut(batch, first, end, 1)
        together = [batch]
        size, count = batch_bytes(batch), batch.count
        self.take_to(batch_end)
        while ahead and size < PIECE_BYTES and len(together) < DELIVER_RECORDS_MAX:
            batch = ahead[0]
            size += batch_bytes(batch)
            count += batch.count
            if size > PIECE_BYTES or count > messages_max or batch.columns != together[0].columns:
                break
            if batch.timestamp_ms <= too_old_ms:
                break
            together.append(batch)
            self.take_to(self.next + batch.count)
        return join(together)

    # ---- any place ----------------------------------------------------------------------------------------------

    def batch_at(self, offset: int) -> Batch | None:
        """Return the batch that contains an offset; None if an operator had it skipped (which was reported).

        Raises what `TieredReader.read` raises, and StorageError if there is no such offset.
        """
        if self._again is None:
            self._again = self._reader_at(offset)
        elif self._again.offset != offset:
            self._again.seek(offset)
        records = self._again.read(self.durable_end, 1)
        skipped = self._again.take_skipped()
        if skipped:
            self._on_skipped(skipped)
            if any(first <= offset < end for first, end in skipped):
                return None
        if not records or not records[0].first_offset <= offset < records[0].end_offset:
            raise StorageError(
                f"offset {offset} of topic {self._topic!r} is not there", code="log-damaged", action="stop"
            )
        return records[0]

    def sheet_at(self, offset: int) -> Sheet | None:
        """Return the batch that contains an offset, opened for single messages; otherwise as `batch_at`."""
        at = bisect_right(self._firsts, offset) - 1
        if at >= 0:
            sheet = self._sheets[self._firsts[at]]
            if offset < sheet.end:
                return sheet
        batch = self.batch_at(offset)
        return None if batch is None else self.keep_sheet(batch)

    def keep_sheet(self, batch: Batch) -> Sheet:
        """Return a batch opened for single messages, and keep it for a while: it is used again soon."""
        return self._keep([batch])

    def _keep(self, batches: Sequence[Batch]) -> Sheet:
        first = batches[0].first_offset
        sheet = self._sheets.get(first)
        if sheet is None or sheet.end < batches[-1].first_offset + batches[-1].count:
            if sheet is not None:
                self._drop_sheet(first)
            one = together(batches)
            sheet = self._sheets[first] = Sheet(one, batches if len(batches) > 1 else ())
            insort(self._firsts, first)
            self._note_sheet(one, 1)
            while len(self._sheets) > 1 and self._keeps_too_much():
                self._drop_sheet(next(iter(self._sheets)))
        return sheet

    def _drop_sheet(self, first: int) -> None:
        self._note_sheet(self._sheets.pop(first).batch, -1)
        del self._firsts[bisect_right(self._firsts, first) - 1]

    def _note_sheet(self, batch: Batch, sign: int) -> None:
        size = sign * batch_bytes(batch)
        self._sheets_messages += sign * batch.count
        self._sheets_bytes += size
        if self._reader is not None:
            self._reader.maps.copied_bytes += size

    def _keeps_too_much(self) -> bool:
        size = self._sheets_bytes
        if self._sheets_messages > SHEETS_MESSAGES_MAX or size > SHEETS_BYTES_MAX:
            return True
        return size > SHEETS_BYTES_MIN and self._copied_too_much

    @property
    def _copied_too_much(self) -> bool:
        return self._reader is not None and self._reader.maps.copied_too_much

    def _forget_sheets(self) -> None:
        if self._reader is not None:
            self._reader.maps.copied_bytes -= self._sheets_bytes
        self._sheets.clear()
        self._firsts.clear()
        self._sheets_messages = self._sheets_bytes = 0

    # ---- by time ------------------------------------------------------------------------------------------------

    def offset_at(self, timestamp_ms: int, start: int, headers_max: int | None = None) -> int:
        """Return the first offset from `start` on whose log time is `timestamp_ms` or later, else the end.

        That is the first message published then or later; a clock that was set back counts as standing still. Raises
        what `TieredReader.offset_at` raises.
        """
        if self._again is None:
            self._again = self._reader_at(start)
        return self._again.offset_at(
            timestamp_ms, max(start, self.history_start), self.durable_end, headers_max
        )
