"""Delivery by key: the messages of each key in order, to one consumer at a time.

Runs in a worker process, as the delivery of a Subscription. `actors/lanes.py`, which it owns, decides what is next for
which consumer. This module reads the log for the lanes, new messages in order as well as messages that were left there
for later, and builds pieces of what the lanes hand out. It is the only delivery that looks at single messages.

Invariants
- every message in flight is in the lanes until it is acknowledged, returned, buried, dropped or expired
- a poison message blocks its key until it is acknowledged; other keys continue
- a message with a delivery time (`deliver_at`) takes its place in its key's order when that time has come
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ister.actors.explain_state import Holder, State
from ister.actors.grouped_lanes import Group, GroupedLanes
from ister.actors.ledger import Held, Parcel
from ister.actors.messages import Left
from ister.actors.pieces import PIECE_BYTES, Piece
from ister.actors.selection import Member
from ister.actors.sheets import Chosen, Sheet, choose, gather, gather_chosen
from ister.actors.subscription.acknowledgments import HOLDERS_MAX
from ister.actors.subscription.log_parts import SCATTERED_MAX, LogGiven, LogParts
from ister.actors.subscription.parts import DISPATCH_BYTES_MAX, Delivery, Host
from ister.errors import IsterError

# How far the log is read ahead of what is handed out, for keys that are not blocked, and how often in one turn.
LOOK_AHEAD: Final = 5_000  # waiting messages
LOOK_AHEAD_EACH: Final = 200  # for each consumer: what is sent together is worth its frame
LOOK_AHEAD_MAX: Final = 25_000  # however many consumers there are
LOOK_AHEAD_BATCHES: Final = 16
# Messages of batches that follow each other which are looked at as if they were one batch: for each consumer, in all.
TOGETHER_EACH: Final = 128
TOGETHER_MAX: Final = 10_000
# messages that were left in the log are read again this often, even while there are new ones
REFILL_S: Final = 0.02
IN_FLIGHT_MAX: Final = 300_000  # messages, some 100 bytes each; above this, nothing new is handed out


class ByKey(Delivery):
    """Delivers the messages of a log, with the keys divided among the consumers."""

    def __init__(self, subscription: Host, given: LogGiven) -> None:
        self._subscription = subscription
        self._log = log = LogParts(subscription, self, given)
        self._journal, self._source, self._schedule = log.journal, log.source, log.schedule
        self._remembered, self._failures = log.remembered, log.failures
        self._acknowledgments = log.acknowledgments
        self._all_lanes = GroupedLanes()
        self._arrived: list[Member] = []
        self._refill_s = 0.0
        self._full = False
        self.parts = (*log.parts, self)

    # ---- consumers ----------------------------------------------------------------------------------------------

    @property
    def _lanes(self) -> GroupedLanes:
        """The lanes; consumers that have arrived since they were last used get their shares, all at once."""
        lanes = self._all_lanes
        if self._arrived:
            members, self._arrived = self._arrived, []
            lanes.attach_all(members)
            lanes.called.update(dict.fromkeys(members))
        return lanes

    def attached(self, member: Member) -> None:
        """Give a consumer its share of the keys, when that is next of importance."""
        self._arrived.append(member)

    def detached(self, member: Member) -> None:
        """Give a consumer's keys to the others."""
        self._lanes.detach(member)

    def credited(self, key: int, messages: int | None) -> None:  # noqa: ARG002
        """Look for messages of the consumer's keys."""
        member = self._subscription.consumers.roster.get(key)
        if member is not None and member.ready:
            self._lanes.called[member] = None

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Deliver what can be delivered now; a poison message blocks its key alone."""
        if self._log.begin_turn() and self._subscription.may_deliver:
            access = self._log.access
            if access.read(self._hand_out_lanes) is None and access.waits:
                self._hand_out_here()

    def position(self) -> int:
        """Return the first offset that was not looked at yet."""
        return self._source.next

    def backlog(self) -> int:
        """Return how many messages were not looked at yet, or wait in lanes."""
        return self._source.left + self._lanes.waiting

    def _hand_out_lanes(self) -> bool:
        """Send what the lanes have, and read on while a consumer could take more; return False when done."""
        lanes, subscription = self._lanes, self._subscription
        lanes.wake(subscription.clock.monotonic())
        if (wake_s := lanes.next_wake_s()) is not None:
            subscription.wake_at(wake_s)
        self._schedule.look()
        self._look_ahead()
        budget = DISPATCH_BYTES_MAX
        while budget > 0:
            self._full = self._log.is_full(0)
            if self._full:
                return False
            if (sent := self._serve()) is not None:
                budget -= sent
            elif subscription.consumers.roster.choose() is None or not self._look_further():
                return False
            else:
                self._look_ahead()
        subscription.wake()
        return True

    def _hand_out_here(self) -> None:
        """Send what the lanes have from before the place where reading waits; what waits for the same stays."""
        lanes, subscription = self._lanes, self._subscription
        lanes.wake(subscription.clock.monotonic())
        if (wake_s := lanes.next_wake_s()) is not None:
            subscription.wake_at(wake_s)
        budget, tries = DISPATCH_BYTES_MAX, len(lanes.called) + 1
        while budget > 0 and tries:
            try:
                if (sent := self._serve()) is None:
                    return
                budget -= sent
            except IsterError:
                tries -= 1  # the next consumer's messages may be here
        if budget <= 0:
            subscription.wake()

    def _serve(self) -> int | None:
        """Send one piece to the next consumer that has messages waiting; return its bytes."""
        lanes = self._lanes
        while lanes.called:
            member = next(iter(lanes.called))
            del lanes.called[member]
            if member.ready and lanes.has_work(member):
                try:
                    sent = self._send_piece(member)
                finally:
                    lanes.called[member] = None  # its next turn, if any, comes after all others
                if sent:
                    return sent
        if lanes.has_free and (someone := self._subscription.consumers.roster.choose()) is not None:
            return self._send_piece(someone)
        return None

    def _send_piece(self, member: Member) -> int:
        """Send a consumer what its lanes have for it, about one piece; return its bytes."""
        lanes, source, cursor = self._lanes, self._source, self._journal.cursor
        if lanes.next_group(member) is not None:
            return self._send_groups(member)
        limit = min(member.messages, SCATTERED_MAX)
        rows: list[tuple[Sheet, int]] = []
        kind: tuple[int, int, int] | None = None
        size = 0
        while len(rows) < limit and size < PIECE_BYTES and (entry := lanes.next(member)) is not None:
            offset = entry.offset
            if cursor.is_acknowledged(offset):
                lanes.take(member, entry, deliver=False)
                continue
            try:
                sheet = source.sheet_at(offset)
            except IsterError:
                if not rows:
                    raise
                break  # send what was collected first
            if sheet is None or self._schedule.is_too_old(sheet.timestamp_ms(offset - sheet.first)):
                lanes.take(member, entry, deliver=False)
                self._schedule.expire(offset, offset + 1)
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
        self._subscription.deliver(member, piece)
        return piece.bytes

    def _send_groups(self, member: Member) -> int:
        """Send a consumer what waits for it in groups, about one piece; return its bytes."""
        lanes, source = self._lanes, self._source
        left, room = min(member.messages, SCATTERED_MAX), PIECE_BYTES
        chosen: list[Chosen] = []
        while left > 0 and room > 0 and (group := lanes.following_group(member)) is not None:
            first = group.first + group.indices[0]
            try:
                sheet = source.sheet_at(first)
            except IsterError:
                if not chosen:
                    raise
                break  # send what was collected first
            if sheet is None or self._schedule.is_too_old(sheet.timestamp_ms(first - sheet.first)):
                lanes.take_group(member, 1, ())
                self._schedule.expire(first, first + 1)
                continue
            if chosen and (
                sheet.batch.columns != chosen[0].sheet.batch.columns or first < chosen[-1].offsets[-1]
            ):
                break
            some = choose(sheet, self._here(sheet, group, left), group.keys, room)
            lanes.take_group(member, len(some.offsets), ())
            chosen.append(some)
            left -= len(some.offsets)
            room -= some.bytes
        if not chosen:
            return 0
        piece, offsets, keys = gather_chosen(chosen)
        lanes.fly(offsets, keys)
        self._subscription.deliver(member, piece)
        return piece.bytes

    def _here(self, sheet: Sheet, group: Group, limit: int) -> Sequence[int]:
        """Return the indices in a sheet of those messages of a group that it has, at most `limit` of them.

        The sheet in which they came may have been dropped meanwhile. Messages that expire go with those of their time.
        """
        indices, moved = group.indices[:limit], group.first - sheet.first
        if moved:
            indices = [index + moved for index in indices]
        stop = sheet.stop_of(indices[0]) if self._schedule.expires else sheet.end - sheet.first
        return indices if indices[-1] < stop else indices[: bisect_left(indices, stop)]

    # ---- reading ------------------------------------------------------------------------------------------------

    def _look_ahead(self) -> None:
        """Read further ahead than this turn needs, so that a hot key or a slow consumer does not hold up the others."""
        if self._subscription.consumers.roster.choose() is None or self._log.is_full(0):
            return
        now_s = self._subscription.clock.monotonic()
        if self._lanes.overflowed and now_s >= self._refill_s and not self._lanes.full:
            self._refill_s = now_s + REFILL_S
            if (at := self._lanes.refill_from()) is not None:
                self._look_at_left(at)
        each = LOOK_AHEAD_EACH * len(self._subscription.consumers)
        enough = max(LOOK_AHEAD, min(each, LOOK_AHEAD_MAX))
        for _ in range(LOOK_AHEAD_BATCHES):
            if self._lanes.waiting >= enough or not self._look_further():
                return

    def _look_further(self) -> bool:
        """Let the lanes see more of the log, messages left there before new ones; say whether there were any."""
        if self._schedule.is_spent():
            return False
        if self._lanes.full or self._lanes.in_flight >= IN_FLIGHT_MAX:
            return False
        if self._schedule.due:
            self.take_due()
            return True
        at = self._lanes.refill_from()
        return self._look_at_new() if at is None else self._look_at_left(at)

    def _look_at_left(self, at: int) -> bool:
        """Read a batch again in which the lanes may have left messages."""
        source, cursor = self._source, self._journal.cursor
        end = source.next
        at = max(at, cursor.low, source.history_start)
        if at < end:
            sheet = source.sheet_at(at)
            stop = min(end, at + 1 if sheet is None else sheet.end)
            if sheet is not None:
                keys, times, knows = sheet.keys, sheet.deliver_at, self._remembered.knows(at)
                for first, behind in cursor.pending(at, stop):
                    for index in range(first - sheet.first, behind - sheet.first):
                        if times is None or times[index] <= sheet.batch.timestamp_ms:
                            offset = sheet.first + index
                            self._lanes.refill(offset, keys[index], *(self._counts(offset) if knows else ()))
            self._schedule.look_at(stop - at)
            at = stop
        self._lanes.refilled(at, end)
        return True

    def _look_at_new(self) -> bool:
        """Let the lanes see the next batch of the log."""
        source, cursor = self._source, self._journal.cursor
        batch = source.read_ahead()
        if batch is None:
            return False
        first, end = max(batch.first_offset, source.next), batch.first_offset + batch.count
        times = None
        if self._schedule.is_expired(batch):
            self._schedule.expire(first, end)
        elif not (pending := cursor.pending(first, end)):
            if (behind := min(cursor.end_of(end), source.durable_end)) > end:
                source.take_to(end)
                source.jump_to(behind)
                return True
        else:
            knows = self._remembered.knows(source.next)
            if batch.deliver_at is None and not knows:
                return self._look_together(first)
            sheet = source.keep_sheet(batch)
            keys, times = sheet.keys, sheet.deliver_at
            now_ms = self._subscription.clock.time_ms()
            arrive = self._lanes.arrive
            for begin, stop in pending:
                for index in range(begin - sheet.first, stop - sheet.first):
                    if times is not None and times[index] > batch.timestamp_ms:
                        offset = sheet.first + index
                        self._schedule.wait(times[index], offset, now_ms)
                    elif knows:
                        arrive(sheet.first + index, keys[index], *self._counts(sheet.first + index))
                    else:
                        arrive(sheet.first + index, keys[index])
        self._schedule.look_at(end - first)
        source.take_to(end)  # before anything else is read, which may fail
        if times is not None:
            self._schedule.look()
        return True

    def _look_together(self, first: int) -> bool:
        """Let the lanes see the next batches from `first` on, whose messages need not be told apart."""
        source = self._source
        consumers = len(self._subscription.consumers)
        sheet = source.open_ahead(min(TOGETHER_EACH * consumers, TOGETHER_MAX), self._schedule.too_old_ms())
        self._lanes.arrive_together(sheet.first, sheet.keys, self._journal.cursor.pending(first, sheet.end))
        self._schedule.look_at(sheet.end - first)
        source.take_through(sheet.end)
        return True

    def take_due(self) -> None:
        """Hand messages that are due to the lanes, as long as they have room."""
        while not self._lanes.full and (due := self._schedule.first_due()) is not None:
            first, end = due
            if (sheet := self._source.sheet_at(first)) is None:  # skipped, and noted as done
                continue
            stop = min(end, sheet.end)
            for begin, behind in self._journal.cursor.pending(first, stop):
                for offset in range(begin, behind):
                    self._lanes.arrive_due(offset, sheet.keys[offset - sheet.first], *self._counts(offset))
            self._schedule.taken_due(stop)

    def first_time(self, first: int, end: int, now_s: float) -> None:
        """Nothing is set aside batch by batch here: each message is looked at."""

    def _counts(self, offset: int) -> tuple[int, int, float]:
        """Return the attempt, the failures and the earliest time of a message that this actor has not delivered yet."""
        deliveries, failures = self._remembered.alike(offset, offset + 1)[1:]
        clock = self._subscription.clock
        return deliveries + 1, failures, self._remembered.ready_s(offset, clock.monotonic(), clock.time_ms())

    # ---- what comes back ----------------------------------------------------------------------------------------

    @property
    def failures_max(self) -> int:
        """Return how often a message may fail; 0: without a limit."""
        return self._failures.policy.max_deliveries

    def delivered(self, member: Member, piece: Piece) -> None:
        """Note which consumer holds the messages of a piece."""
        self._acknowledgments.delivered(member, piece)

    def given_back(self, command: Left) -> None:
        """Queue what a consumer that is gone held."""
        self._acknowledgments.given_back(command)

    def settled(self, first: int, end: int) -> None:
        """Let the keys of these messages continue."""
        self._lanes.settle(first, end)
        self._subscription.wake()

    def settled_all(self, ranges: Sequence[tuple[int, int]], parcels: Sequence[Parcel] = ()) -> None:
        """Let the keys of all these messages continue."""
        lanes = self._lanes
        if not parcels:
            lanes.settle_all(ranges)
        for parcel in parcels:
            if not lanes.settle_flight(parcel.offsets):
                lanes.settle_all(parcel.ranges)
        self._subscription.wake()

    def acknowledged(self) -> None:
        """Do nothing: acknowledged messages were settled one by one."""

    def again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Return messages to their lanes."""
        self._lanes.give_back(held, ready_at_s if ready_at_s > now_s else 0.0)
        if ready_at_s > now_s:
            self._subscription.wake_at(ready_at_s)

    def hold(self, first: int, end: int) -> None:
        """Block the keys of these messages."""
        self._lanes.hold(first, end)

    def forget(self) -> None:
        """Start with empty lanes for the present consumers."""
        self._all_lanes = GroupedLanes()
        self._arrived = self._subscription.consumers.roster.members

    # ---- what it reports ----------------------------------------------------------------------------------------

    def description(self) -> Mapping[str, Any]:
        """Return how many messages wait in lanes, and in how many slots messages were left in the log."""
        return {
            "waiting_redelivery": 0,
            "waiting_for_key": self._lanes.waiting,
            "left_in_log": self._lanes.overflowed,
        }

    def state(self) -> State:
        """Return the same, and which keys wait for which consumer."""
        lanes, clock = self._lanes, self._subscription.clock
        wake_s = lanes.next_wake_s()
        wait_s = 0.0 if wake_s is None else wake_s - clock.monotonic()
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
        full = self._full or lanes.full or lanes.in_flight >= IN_FLIGHT_MAX
        return self._log.state(0, lanes.in_flight + lanes.waiting, full=full) | {
            "due": max(0, lanes.waiting - keyed - backoff),
            "backoff": backoff + lanes.asleep,
            "backoff_until_ms": None if wake_s is None else clock.time_ms() + max(0, round(wait_s * 1000)),
            "keyed": keyed,
            "keys": keys,
        }


def _offset(row: tuple[Sheet, int]) -> int:
    return row[0].first + row[1]
