"""Key-Shared subscriptions: each key in order, to one consumer at a time.

Runs in a worker process. What is next for whom is decided by `actors/lanes.py`; here the log is read for it, new
messages in order and what it left there again, and pieces are put together of what it hands out. This is the one kind
of subscription that looks at single messages.

Invariants
- what is in flight is in the lanes, however it comes back: acknowledged, returned, buried, dropped or expired
- a poisoned message keeps its key until it is acknowledged; other keys go on
- a message that waits for its time (`deliver_at`) takes its place in its key's order when that has come
"""

from __future__ import annotations

from typing import Any, Final

from ister.actors.explain import Holder, State
from ister.actors.lanes import Lanes
from ister.actors.ledger import Held
from ister.actors.messages import AddCredit, Block, SetCredit
from ister.actors.pieces import PIECE_BYTES, Sheet, gather
from ister.actors.reliable_subscription import (
    HOLDERS_MAX,
    HOLE_BYTES,
    KEPT_BYTES,
    SCATTERED_MAX,
    ReliableSubscription,
)
from ister.actors.runtime import receives
from ister.actors.selection import Member
from ister.actors.subscription import DISPATCH_BYTES_MAX
from ister.actors.timed_subscription import LOOKED_AT_MAX
from ister.errors import IsterError

# So far the log is read ahead of what is handed out, for keys that have nothing in the way; so often in one turn.
LOOK_AHEAD: Final = 5_000  # messages waiting
LOOK_AHEAD_BATCHES: Final = 16
REFILL_S: Final = 0.02  # what was left in the log has its turn so often, however busy the others are
IN_FLIGHT_MAX: Final = 300_000  # messages, some 100 bytes each; beyond it nothing new is handed out


class KeySharedSubscription(ReliableSubscription):
    """A subscription whose keys are shared out among its consumers."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._lanes = Lanes()
        self._refill_s = 0.0

    # ---- consumers ----------------------------------------------------------------------------------------------

    def _attached(self, member: Member) -> None:
        self._lanes.attach(member)
        self._lanes.called[member] = None

    def _detached(self, member: Member) -> None:
        self._lanes.detach(member)

    @receives(AddCredit)
    def on_credit(self, command: AddCredit) -> None:
        """A consumer has room for more."""
        super().on_credit(command)
        self._call(command.key)

    @receives(SetCredit)
    def on_set_credit(self, command: SetCredit) -> None:
        """A consumer came back: what it was told may have been lost with its connection."""
        super().on_set_credit(command)
        self._call(command.key)

    @receives(Block)
    def on_block(self, command: Block) -> None:
        """A consumer's connection is full, or takes again."""
        super().on_block(command)
        self._call(command.key)

    def _call(self, key: int) -> None:
        member = self._roster.get(key)
        if member is not None and member.ready:
            self._lanes.called[member] = None

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def _is_held_up(self) -> bool:
        return False  # poison holds its key up, and no other

    def _backlog(self) -> int:
        return self._source.left + self._lanes.waiting

    def _hand_out(self) -> None:
        if not self._yielding and not self._paused:
            self._read(self._hand_out_lanes)

    def _hand_out_lanes(self) -> bool:
        """Hand out what is there, and read on while somebody could take more; False once nothing more can be done."""
        lanes = self._lanes
        lanes.wake(self.clock.monotonic())
        if (wake_s := lanes.next_wake_s()) is not None:
            self._wake_at(wake_s)
        self._look_at_delays()
        self._look_ahead()
        budget = DISPATCH_BYTES_MAX
        while budget > 0:
            self._full = self._is_full()
            if self._full:
                return False
            if (sent := self._serve()) is not None:
                budget -= sent
            elif self._roster.choose() is None or not self._look_further():
                return False
        self._wake()
        return True

    def _serve(self) -> int | None:
        """Send one piece to the next consumer for which there is one; return its bytes."""
        lanes = self._lanes
        while lanes.called:
            member = next(iter(lanes.called))
            del lanes.called[member]
            if member.ready and lanes.has_work(member):
                try:
                    sent = self._send_piece(member)
                finally:
                    lanes.called[member] = None  # its next turn, if there is one, is behind everybody else's
                if sent:
                    return sent
        if lanes.has_free and (someone := self._roster.choose()) is not None:
            return self._send_piece(someone)
        return None

    def _send_piece(self, member: Member) -> int:
        """Send a consumer what its lanes have for it, about a piece of it; return its bytes."""
        lanes, source = self._lanes, self._source
        limit = min(member.messages, SCATTERED_MAX)
        rows: list[tuple[Sheet, int]] = []
        kind: tuple[int, int, int] | None = None
        size = 0
        while len(rows) < limit and size < PIECE_BYTES and (entry := lanes.next(member)) is not None:
            offset = entry.offset
            if self._is_done(offset):
                lanes.take(member, entry, deliver=False)
                continue
            try:
                sheet = source.sheet_at(offset)
            except IsterError:
                if not rows:
                    raise
                break  # what there is goes first
            if sheet is None or self._is_expired(sheet.batch):
                lanes.take(member, entry, deliver=False)
                self._expire(offset, offset + 1)
                continue
            this = (entry.attempt, entry.failures, sheet.batch.columns)
            if rows and (
                this != kind or (not member.sparse and offset != rows[-1][0].first + rows[-1][1] + 1)
            ):
                break
            lanes.take(member, entry)
            index = offset - sheet.first
            rows.append((sheet, index))
            size += sheet.size(index)
            kind = this
        if kind is None:
            return 0
        rows.sort(key=_offset)
        piece = gather(rows, kind[0], kind[1])
        self._deliver_to(member, piece)
        return piece.bytes

    # ---- reading ------------------------------------------------------------------------------------------------

    def _look_ahead(self) -> None:
        """Let the lanes know more than one turn needs, so that nobody waits behind a hot key or a slow consumer."""
        if self._roster.choose() is None or self._is_full():
            return
        now_s = self.clock.monotonic()
        if self._lanes.overflowed and now_s >= self._refill_s and not self._lanes.full:
            self._refill_s = now_s + REFILL_S
            if (at := self._lanes.refill_from()) is not None:
                self._look_at_left(at)
        for _ in range(LOOK_AHEAD_BATCHES):
            if self._lanes.waiting >= LOOK_AHEAD or not self._look_further():
                return

    def _look_further(self) -> bool:
        """Let the lanes have more of the log: what they left there, else what is new; say whether there was any."""
        if self._looked_at >= LOOKED_AT_MAX:
            self._wake()
            return False
        if self._lanes.full or self._lanes.in_flight >= IN_FLIGHT_MAX:
            return False
        if self._due:
            self._take_due()
            return True
        at = self._lanes.refill_from()
        return self._look_at_new() if at is None else self._look_at_left(at)

    def _look_at_left(self, at: int) -> bool:
        """Read a batch again of which the lanes may have left messages in the log."""
        source, cursor = self._source, self._log.cursor
        end = source.next
        at = max(at, cursor.low, source.history_start)
        if at < end:
            sheet = source.sheet_at(at)
            stop = min(end, at + 1 if sheet is None else sheet.end)
            if sheet is not None:
                keys, times = sheet.keys, sheet.deliver_at
                for first, behind in cursor.pending(at, stop):
                    for index in range(first - sheet.first, behind - sheet.first):
                        if times is None or times[index] <= sheet.batch.timestamp_ms:
                            offset = sheet.first + index
                            self._lanes.refill(offset, keys[index], *self._counts(offset))
            self._looked_at += stop - at
            at = stop
        self._lanes.refilled(at, end)
        return True

    def _look_at_new(self) -> bool:
        """Let the lanes have the next batch of the log."""
        source, cursor = self._source, self._log.cursor
        batch = source.read_ahead()
        if batch is None:
            return False
        first, end = max(batch.first_offset, source.next), batch.first_offset + batch.count
        times = None
        if self._is_expired(batch):
            self._expire(first, end)
        elif not (pending := cursor.pending(first, end)):
            if (behind := min(cursor.ranges.end_of(end), source.durable_end)) > end:
                source.take_to(end)
                source.jump_to(behind)
                return True
        else:
            sheet = source.keep_sheet(batch)
            keys, times = sheet.keys, sheet.deliver_at
            now_ms = self.clock.time_ms()
            arrive, knows = self._lanes.arrive, self._knows_failures()
            for begin, stop in pending:
                for index in range(begin - sheet.first, stop - sheet.first):
                    if times is not None and times[index] > batch.timestamp_ms:
                        offset = sheet.first + index
                        self._delays.add(times[index], offset, offset + 1, now_ms)
                    elif knows:
                        arrive(sheet.first + index, keys[index], *self._counts(sheet.first + index))
                    else:
                        arrive(sheet.first + index, keys[index])
        self._looked_at += end - first
        source.take_to(end)  # before anything else is read, which may fail
        if times is not None:
            self._look_at_delays()
        return True

    def _wait_on(self) -> None:
        """What waits does so in its lane, once the log is read up to it."""

    def _counts(self, offset: int) -> tuple[int, int, float]:
        """Return attempt, failures, and when it may go, of a message that this actor has delivered to nobody yet."""
        deliveries, failures = self._alike(offset, offset + 1)[1:]
        wait = self._log.cursor.waits.get(offset, (0, 0))
        return deliveries + 1, failures, self._ready_s(wait, self.clock.monotonic())

    def _take_due(self) -> None:
        while self._due and not self._lanes.full:
            if (first := self._first_of(self._due)) is None:
                continue
            end = self._due[0][1]
            if (sheet := self._source.sheet_at(first)) is None:  # skipped, and noted as done
                continue
            stop = min(end, sheet.end)
            for begin, behind in self._log.cursor.pending(first, stop):
                for offset in range(begin, behind):
                    self._lanes.arrive_due(offset, sheet.keys[offset - sheet.first], *self._counts(offset))
            self._due[0] = (stop, end)

    # ---- what comes back ----------------------------------------------------------------------------------------

    def _settled(self, first: int, end: int) -> None:
        super()._settled(first, end)
        self._lanes.settle(first, end)
        self._wake()

    def _again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        self._lanes.give_back(held, ready_at_s if ready_at_s > now_s else 0.0)
        if ready_at_s > now_s:
            self._wake_at(ready_at_s)

    def _give_up(self, part: Held, why: str) -> None:
        self._lanes.hold(part.first, part.end)
        super()._give_up(part, why)

    def _pieces_bytes(self) -> int:
        return HOLE_BYTES * self._log.holes() + KEPT_BYTES * self._poison.ranges

    def _forget_all(self) -> None:
        super()._forget_all()
        self._lanes = Lanes()
        for member in self._roster.members:
            self._attached(member)

    # ---- the rest -----------------------------------------------------------------------------------------------

    def _description(self) -> dict[str, Any]:
        lanes = self._lanes
        return super()._description() | {
            "waiting_redelivery": 0,
            "waiting_for_key": lanes.waiting,
            "left_in_log": lanes.overflowed,
        }

    def _state(self) -> State:
        lanes = self._lanes
        state = super()._state()
        state["tracked_full"] = self._full or lanes.full or lanes.in_flight >= IN_FLIGHT_MAX
        state["tracked"] += KEPT_BYTES * (lanes.in_flight + lanes.waiting)
        now_s, now_ms = self.clock.monotonic(), self.clock.time_ms()
        if (wake_s := lanes.next_wake_s()) is not None:
            state["backoff_until_ms"] = now_ms + max(0, round((wake_s - now_s) * 1000))
        keys: list[Holder] = []
        keyed = backoff = 0
        for lane in lanes.blocked():
            if lane.until:
                backoff += len(lane.waiting)
                continue
            keyed += len(lane.waiting)
            owner = lane.owner
            if owner is not None and len(keys) < HOLDERS_MAX:
                keys.append(
                    {
                        "key": lane.key.decode("utf-8", "backslashreplace")[:100],
                        "consumer": owner.key,
                        "client": owner.client,
                        "messages": lane.in_flight,
                        "since_ms": owner.holds_since_ms,
                    }
                )
        state["keyed"], state["keys"], state["backoff"] = keyed, keys, backoff + lanes.asleep
        state["due"] = max(0, lanes.waiting - keyed - backoff)
        return state


def _offset(row: tuple[Sheet, int]) -> int:
    return row[0].first + row[1]
