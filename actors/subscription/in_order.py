"""Delivery in the order of the log, for Exclusive, Failover and Shared subscriptions.

Runs in a worker process, as the delivery of a Subscription. It owns the queue of messages to be redelivered.

Invariants
- an offset is in exactly one place: not looked at yet, set aside for its delivery time, queued for redelivery, held by
  one consumer, poison, or acknowledged
- the cursor moves only past messages that were acknowledged, buried, dropped by policy, expired or trimmed
- returned messages are delivered before new ones, lowest offset first; only what was looked at is queued, so that none
  goes before an older one that was not looked at yet
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ister.actors.explain_state import State
from ister.actors.ledger import Held, Parcel, Redelivery
from ister.actors.messages import Left
from ister.actors.pieces import PIECE_BYTES, Batch, Piece, cut
from ister.actors.selection import Member
from ister.actors.sheets import Sheet, gather
from ister.actors.subscription.log_parts import SCATTERED_MAX, LogGiven, LogParts
from ister.actors.subscription.parts import Delivery, Host
from ister.errors import StorageError
from ister.wire import Column


class InOrder(Delivery):
    """Delivers the messages of a log in order, each at least once."""

    in_catalogue: ClassVar[bool] = True  # false for a reader, whose subscription is in no catalogue
    waits: ClassVar[bool] = True  # whether delivery times are observed

    def __init__(self, subscription: Host, given: LogGiven) -> None:
        self._subscription = subscription
        self._log = log = LogParts(subscription, self, given, in_catalogue=self.in_catalogue)
        self._journal, self._source, self._schedule = log.journal, log.source, log.schedule
        self._remembered, self._failures = log.remembered, log.failures
        self._acknowledgments = log.acknowledgments
        self._redelivery = Redelivery()
        self._full = False
        self.parts = (*log.parts, self)

    # ---- what to deliver ----------------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Deliver what can be delivered now, unless an operator has to decide about a message first."""
        if self._log.begin_turn() and not self._failures.is_blocked():
            self._subscription.take_turns()

    def position(self) -> int:
        """Return the first offset that was not looked at yet."""
        return self._source.next

    def backlog(self) -> int:
        """Return how many messages were not looked at yet, or were returned."""
        return self._source.left + self._redelivery.due_messages

    def next_piece(self, member: Member, messages_max: int) -> Piece | None:
        """Take returned messages, else new ones; None also where the log cannot be read now."""
        access = self._log.access
        piece = access.read(lambda: self._find_piece(member, messages_max))
        return self._piece_here(member, messages_max) if piece is None and access.waits else piece

    def _piece_here(self, member: Member, messages_max: int) -> Piece | None:
        """Return messages from before the place where reading waits; None where they wait for the same."""
        try:
            self._schedule.look()
            return self._piece_again(member, messages_max) if self._redelivery else None
        except StorageError:
            return None

    def _find_piece(self, member: Member, messages_max: int) -> Piece | None:
        self._schedule.look()
        if self._redelivery and (piece := self._piece_again(member, messages_max)) is not None:
            return piece
        self._full = self._log.is_full(self._redelivery.ranges)
        if self._full:
            return None
        return self._piece_new(member, messages_max)

    def _piece_again(self, member: Member, messages_max: int) -> Piece | None:
        """Return the lowest returned messages; scattered ones are joined if the consumer understands that."""
        found = self._next_again(messages_max)
        if found is None:
            due = self._redelivery.next_ready_s()
            if due is not None:
                self._subscription.wake_at(due)
            return None
        sheet, held = found
        limit = min(messages_max, SCATTERED_MAX)
        if not member.sparse or held.end - held.first >= limit:
            return cut(sheet.batch, *held)
        rows = [(sheet, offset - sheet.first) for offset in range(held.first, held.end)]
        size = sum(sheet.size(index) for _, index in rows)
        while len(rows) < limit and size < PIECE_BYTES:
            try:
                more = self._next_again(limit - len(rows))
            except StorageError:
                break  # send what was collected first
            if more is None:
                break
            other, part = more
            if part[2:] != held[2:] or other.batch.columns != sheet.batch.columns or part.first < held.end:
                now_s = self._subscription.clock.monotonic()
                self._redelivery.add(part, now_s, now_s)
                break
            rows += [(other, offset - other.first) for offset in range(part.first, part.end)]
            size += sum(other.size(offset - other.first) for offset in range(part.first, part.end))
            held = held._replace(end=part.end)
        return gather(rows, held.attempt, held.failures)

    def _next_again(self, messages_max: int) -> tuple[Sheet, Held] | None:
        """Take the lowest queued messages that are in one batch and not done, and return them with that batch."""
        now_s = self._subscription.clock.monotonic()
        cursor = self._journal.cursor
        while (held := self._redelivery.take(now_s, messages_max)) is not None:
            pending = cursor.pending(held.first, held.end)
            if not pending:
                continue  # acknowledged meanwhile by the consumer that held it before
            first, end = pending[0]
            try:
                sheet = self._source.sheet_at(first)
            except StorageError:
                self._redelivery.add(held, now_s, now_s)
                raise
            if sheet is None:  # skipped, and noted as done
                self._redelivery.add(held, now_s, now_s)
                continue
            stop = min(end, sheet.end)
            if stop < held.end:
                self._redelivery.add(held._replace(first=stop), now_s, now_s)
            if self._schedule.is_expired(sheet.batch):
                self._schedule.expire(first, stop)
                continue
            return sheet, held._replace(first=first, end=stop)
        return None

    def _piece_new(self, member: Member, messages_max: int) -> Piece | None:
        source, cursor = self._source, self._journal.cursor
        schedule, remembered = self._schedule, self._remembered
        while (batch := source.read_ahead()) is not None:
            batch_end = batch.first_offset + batch.count
            if schedule.is_expired(batch):
                schedule.expire(max(batch.first_offset, source.next), batch_end)
                source.take_to(batch_end)
                continue
            if batch.columns & Column.DELIVER_AT and self.waits:
                if schedule.is_spent():
                    return None
                first = max(batch.first_offset, source.next)
                source.take_to(batch_end)  # before anything else is read, which may fail
                schedule.set_aside(batch, first)
                if self._redelivery and (piece := self._piece_again(member, messages_max)) is not None:
                    return piece
                continue
            if cursor.end <= source.next and not remembered.knows(source.next):
                return source.take_piece(messages_max, schedule.too_old_ms())
            # some of the following messages are acknowledged already or failed before: deliver those between them
            pending = cursor.pending(max(batch.first_offset, source.next), batch_end)
            if len(pending) > 1 and member.sparse and not remembered.knows(source.next):
                return self._piece_scattered(batch, pending, min(messages_max, SCATTERED_MAX))
            if (piece := self._piece_known(batch, pending, messages_max)) is not None:
                return piece
            if source.next < batch_end:
                source.take_to(batch_end)
            if (behind := min(cursor.end_of(source.next), source.durable_end)) > source.next:
                source.jump_to(behind)
        return None

    def _piece_known(self, batch: Batch, pending: list[tuple[int, int]], messages_max: int) -> Piece | None:
        """Return the first messages of a batch that may be delivered; those before them that wait are queued."""
        clock, source = self._subscription.clock, self._source
        now_s, now_ms = clock.monotonic(), clock.time_ms()
        for first, stop in pending:
            at = first
            while at < stop:
                end, deliveries, failures, ready_s = self._remembered.run(
                    at, min(stop, at + messages_max), now_s, now_ms
                )
                source.take_to(end)
                if not ready_s:
                    return cut(batch, at, end, deliveries + 1, failures)
                self.again(Held(at, end, deliveries + 1, failures), ready_s, now_s)
                at = end
        return None

    def _piece_scattered(self, batch: Batch, pending: list[tuple[int, int]], limit: int) -> Piece:
        """Return the first messages of a batch that are not acknowledged, leaving out acknowledged ones between."""
        sheet = self._source.keep_sheet(batch)
        rows: list[tuple[Sheet, int]] = []
        size, end = 0, sheet.first
        for first, stop in pending:
            for offset in range(first, stop):
                if len(rows) >= limit or size >= PIECE_BYTES:
                    break
                rows.append((sheet, offset - sheet.first))
                size += sheet.size(offset - sheet.first)
                end = offset + 1
        self._source.take_to(end)
        return gather(rows, 1, 0)

    def delivered(self, member: Member, piece: Piece) -> None:
        """Note which consumer holds the messages of a piece."""
        self._acknowledgments.delivered(member, piece)

    # ---- what comes back ----------------------------------------------------------------------------------------

    @property
    def failures_max(self) -> int:
        """Return how often a message may fail; 0: without a limit."""
        return self._failures.policy.max_deliveries

    def given_back(self, command: Left) -> None:
        """Queue what a consumer that is gone held."""
        self._acknowledgments.given_back(command)

    def settled(self, first: int, end: int) -> None:  # noqa: ARG002
        """Dispatch again, if this message blocked the subscription."""
        if self._failures.poison.blocking:
            self._subscription.wake()

    def settled_all(
        self,
        ranges: Sequence[tuple[int, int]],
        parcels: Sequence[Parcel] = (),  # noqa: ARG002
    ) -> None:
        """Do so for many ranges."""
        self.settled(*ranges[0])

    def acknowledged(self) -> None:
        """Look at new messages again, if there was no room for them before."""
        if self._full:
            self._subscription.wake()

    def take_due(self) -> None:
        """Queue the messages that are due."""
        now_s = self._subscription.clock.monotonic()
        for first, end in self._schedule.take_due():
            self.first_time(first, end, now_s)

    def first_time(self, first: int, end: int, now_s: float) -> None:
        """Queue messages that this actor has not delivered yet; those that an earlier one let wait go on waiting."""
        now_ms = self._subscription.clock.time_ms()
        while first < end:
            stop, deliveries, failures, ready_s = self._remembered.run(first, end, now_s, now_ms)
            self.again(Held(first, stop, deliveries + 1, failures), ready_s, now_s)
            first = stop

    def again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Queue messages, all before the first that was not looked at yet."""
        self._redelivery.add(held, ready_at_s, now_s)
        if ready_at_s > now_s:
            self._subscription.wake_at(ready_at_s)

    def hold(self, first: int, end: int) -> None:
        """Ignore it: there are no keys here, a message that blocks, blocks the whole subscription."""

    def forget(self) -> None:
        """Empty the queue of redeliveries."""
        self._redelivery = Redelivery()

    # ---- what it reports ----------------------------------------------------------------------------------------

    def description(self) -> Mapping[str, Any]:
        """Return how many messages are queued for redelivery."""
        return {"waiting_redelivery": self._redelivery.messages}

    def state(self) -> State:
        """Return the same, since when and until when they wait, and what is kept in memory."""
        clock, redelivery = self._subscription.clock, self._redelivery
        ready_s = redelivery.next_ready_s()
        wait_s = 0.0 if ready_s is None else ready_s - clock.monotonic()
        full = self._journal.is_open and self._log.is_full(self._redelivery.ranges)
        return self._log.state(redelivery.ranges, 0, full=full) | {
            "due": redelivery.due_messages,
            "backoff": redelivery.messages - redelivery.due_messages,
            "backoff_until_ms": None if ready_s is None else clock.time_ms() + max(0, round(wait_s * 1000)),
        }
