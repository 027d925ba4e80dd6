"""Reliable subscriptions: who gets which message of a topic's log, and what becomes of those that come back.

Runs in a worker process. What is here serves Exclusive, Failover and Shared; Key-Shared and readers are built on it.

Invariants
- an offset is in one place: not looked at yet, set aside for its time, waiting to be delivered again, with one
  consumer, poison, or acknowledged
- the cursor moves only past what was acknowledged, buried, dropped by policy, expired, or trimmed
- what came back is delivered before anything new, lowest offset first
- memory is bounded: where too much is unacknowledged in pieces, nothing new is looked at
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from ister.actors.explain import Holder, State, Stop
from ister.actors.failing_subscription import FailingSubscription
from ister.actors.ledger import Held, Redelivery, back_off_ms
from ister.actors.messages import (
    Acknowledged,
    AcknowledgedUntil,
    AckRefused,
    Answer,
    Delete,
    Describe,
    Detach,
    Explain,
    ForgetCursor,
    Idle,
    Left,
    Recall,
    Refused,
    Returned,
    Seek,
    Sought,
    Stayed,
    StopBurying,
    TimeoutChanged,
    UpdateSubscription,
    Yield,
)
from ister.actors.pieces import PIECE_BYTES, Batch, Piece, Sheet, cut, gather
from ister.actors.poison import Poisoned
from ister.actors.runtime import Timer, receives
from ister.actors.selection import Member
from ister.actors.timed_subscription import LOOKED_AT_MAX
from ister.errors import DamagedError, IsterError, RemoteError, StorageError
from ister.storage.tiered import NotHereError
from ister.subscriptions import READER
from ister.wire import Column, encode_result

log = logging.getLogger("ister.subscription")

# What is kept in pieces: holes in the cursor (16 bytes each), what waits for its redelivery, and poison (some 200).
PIECES_BYTES_MAX: Final = 48 << 20
HOLE_BYTES: Final = 16
KEPT_BYTES: Final = 200
# Messages that do not follow each other in one piece: as many ranges and times fit a header.
SCATTERED_MAX: Final = 256
SHOWN_MAX: Final = 100  # ranges that are shown
HOLDERS_MAX: Final = 10  # consumers or keys that are named


class ReliableSubscription(FailingSubscription):
    """A subscription that delivers every message at least once."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._redelivery = Redelivery()
        self._redelivery_timer: Timer | None = None
        self._seeking: Seek | None = None
        self._target: int | None = None  # where it leads, once that is known; then all consumers give back
        self._full = False
        self._last_delivered_ms: int | None = None
        self._consumer_left_ms: int | None = None

    # ---- what to deliver ----------------------------------------------------------------------------------------

    def _position(self) -> int:
        return self._source.next

    def _backlog(self) -> int:
        return self._source.left + self._redelivery.due_messages

    def _is_held_up(self) -> bool:
        """Whether nothing may be delivered at the moment, whoever is there."""
        blocking = self._poison.blocking
        while blocking and not self._log.cursor.pending(blocking[0].held.first, blocking[0].held.end):
            del blocking[0]  # acknowledged late, or trimmed: nobody need decide any more
        return bool(blocking)

    def _dispatch(self) -> None:
        self._looked_at = 0
        self._dispatch_scheduled = False
        if self._seeking is not None:
            self._seek_on()
        if self._target is None and not self._is_held_up():
            self._hand_out()

    def _hand_out(self) -> None:
        """Deliver what can be delivered now."""
        super()._dispatch()

    def _next_piece(self, messages_max: int) -> Piece | None:
        return self._read(lambda: self._find_piece(messages_max))

    def _find_piece(self, messages_max: int) -> Piece | None:
        self._look_at_delays()
        if self._redelivery and (piece := self._piece_again(messages_max)) is not None:
            return piece
        self._full = self._is_full()
        if self._full:
            return None
        return self._piece_new(messages_max)

    def _is_full(self) -> bool:
        """Say whether so much is unacknowledged in pieces that nothing new is to be looked at."""
        if self._pieces_bytes() > PIECES_BYTES_MAX:
            return True
        return self._waits_full()

    def _pieces_bytes(self) -> int:
        pieces = self._redelivery.ranges + self._poison.ranges
        return HOLE_BYTES * self._log.holes() + KEPT_BYTES * pieces

    def _piece_again(self, messages_max: int) -> Piece | None:
        """Return the lowest of what came back; scattered messages together, for a consumer that understands that."""
        found = self._next_again(messages_max)
        if found is None:
            due = self._redelivery.next_ready_s()
            if due is not None:
                self._wake_at(due)
            return None
        sheet, held = found
        limit = min(messages_max, SCATTERED_MAX)
        if not self._takes_sparse or held.end - held.first >= limit:
            return cut(sheet.batch, *held)
        rows = [(sheet, offset - sheet.first) for offset in range(held.first, held.end)]
        size = sum(sheet.size(index) for _, index in rows)
        while len(rows) < limit and size < PIECE_BYTES:
            try:
                more = self._next_again(limit - len(rows))
            except StorageError:
                break  # what there is goes first
            if more is None:
                break
            other, part = more
            if part[2:] != held[2:] or other.batch.columns != sheet.batch.columns or part.first < held.end:
                now_s = self.clock.monotonic()
                self._redelivery.add(part, now_s, now_s)
                break
            rows += [(other, offset - other.first) for offset in range(part.first, part.end)]
            size += sum(other.size(offset - other.first) for offset in range(part.first, part.end))
            held = held._replace(end=part.end)
        return gather(rows, held.attempt, held.failures)

    def _next_again(self, messages_max: int) -> tuple[Sheet, Held] | None:
        """Take the lowest messages out that came back and are still to be delivered, of one batch, and that batch."""
        now_s = self.clock.monotonic()
        cursor = self._log.cursor
        while (held := self._redelivery.take(now_s, messages_max)) is not None:
            pending = cursor.pending(held.first, held.end)
            if not pending:
                continue  # acknowledged meanwhile, by who held it before
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
            if self._is_expired(sheet.batch):
                self._expire(first, stop)
                continue
            return sheet, held._replace(first=first, end=stop)
        return None

    def _wake_at(self, due_s: float) -> None:
        """Dispatch again at that time, if not before."""
        timer = self._redelivery_timer
        if timer is not None and timer.pending:
            if timer.due <= due_s + 0.001:
                return
            timer.cancel()
        delay_s = max(due_s - self.clock.monotonic(), 0.0) + 0.001
        self._redelivery_timer = self.call_later(delay_s, self._wake)

    def _piece_new(self, messages_max: int) -> Piece | None:
        source, cursor = self._source, self._log.cursor
        while (batch := source.read_ahead()) is not None:
            batch_end = batch.first_offset + batch.count
            if self._is_expired(batch):
                self._expire(max(batch.first_offset, source.next), batch_end)
                source.take_to(batch_end)
                continue
            if batch.columns & Column.DELIVER_AT and self.meta.type != READER:
                if self._looked_at >= LOOKED_AT_MAX:
                    self._wake()
                    return None
                first = max(batch.first_offset, source.next)
                source.take_to(batch_end)  # before anything else is read, which may fail
                self._set_aside(batch, first)
                if self._redelivery and (piece := self._piece_again(messages_max)) is not None:
                    return piece
                continue
            above = cursor.ranges.end
            clear = cursor.low <= source.next and (above is None or above <= source.next)
            if clear and not self._knows_failures():
                return source.take_piece(messages_max)
            # some of what follows is acknowledged already, or failed before: deliver what is between
            pending = self._fresh(max(batch.first_offset, source.next), batch_end)
            if pending:
                if len(pending) > 1 and self._takes_sparse and not self._knows_failures():
                    return self._piece_scattered(batch, pending, min(messages_max, SCATTERED_MAX))
                first, end = pending[0][0], min(pending[0][1], pending[0][0] + messages_max)
                end, deliveries, failures = self._alike(first, end)
                source.take_to(end)
                return cut(batch, first, end, deliveries + 1, failures)
            source.take_to(batch_end)
            if (behind := min(cursor.ranges.end_of(source.next), source.durable_end)) > source.next:
                source.jump_to(behind)
        return None

    def _piece_scattered(self, batch: Batch, pending: list[tuple[int, int]], limit: int) -> Piece:
        """Return the first messages of a batch read ahead that are not acknowledged, though others between them are."""
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

    def _deliver_to(self, member: Member, piece: Piece) -> None:
        if self._apart:
            for first, end in piece.parts:
                self._apart.subtract(first, end)
        self._last_delivered_ms = self.clock.time_ms()
        if not member.outstanding:
            member.holds_since_ms = self._last_delivered_ms
        super()._deliver_to(member, piece)

    # ---- what comes back ----------------------------------------------------------------------------------------

    @receives(Acknowledged)
    def on_acknowledged(self, command: Acknowledged) -> None:
        """Move the cursor; the journal is written within `cursor_flush_ms`, or at once when asked to confirm."""
        if not self._log.is_open:
            return  # of the actor before this one, which failed
        if self._comes_too_late(command, command.ranges):
            return
        for first, end in command.ranges:
            if self._log.note(first, end):
                self._settled(first, end)
        self._acknowledged(command)

    @receives(AcknowledgedUntil)
    def on_acknowledged_until(self, command: AcknowledgedUntil) -> None:
        """Move the cursor past everything below an offset."""
        if not self._log.is_open:
            return
        low = self._log.cursor.low
        if self._comes_too_late(command, ((low, command.end),)):
            return
        for first, end in self._apart.gaps(low, max(low, command.end)):  # nobody has seen what is between
            self._log.note(first, end)
            self._settled(first, end)
        self._acknowledged(command)

    def _comes_too_late(
        self, command: Acknowledged | AcknowledgedUntil, ranges: Sequence[tuple[int, int]]
    ) -> bool:
        """Refuse what a standby acknowledges: whoever is active has it, or gets it. To say it again is no harm."""
        active = self._active
        if self.meta.type != "failover" or active is None or active.key == command.key:
            return False
        pending = (part for first, end in ranges for part in self._log.cursor.pending(first, end))
        found = next(pending, None)
        if found is None:
            return False
        text = f"offset {found[0]} was acknowledged by a consumer on standby: whoever is active gets it again"
        if (consumer := self._consumers.get(command.key)) is not None:
            consumer.tell(AckRefused(command.ref, "not-active", text))
        return True

    def _acknowledged(self, command: Acknowledged | AcknowledgedUntil) -> None:
        self._settle(command.key, command.settled)
        if command.since_s is not None and (member := self._roster.get(command.key)) is not None:
            ago_ms = (self.clock.monotonic() - command.since_s) * 1000
            member.holds_since_ms = self.clock.time_ms() - round(ago_ms)
        if command.ref is not None:
            self._log.confirm(command.key, command.ref)
        if self._full:
            self._wake()

    @receives(Returned)
    def on_returned(self, command: Returned) -> None:
        """Queue what was refused, timed out, or was held by a client that came back."""
        self._settle(command.key, sum(held.end - held.first for held in command.held))
        if self._gave(command.key):
            self._take_back(command.held, command.delay_s, command.why, failed=command.failed)

    @receives(Idle)
    def on_idle(self, command: Idle) -> None:
        """Have others get what waits for a program that asks for nothing; alone, it may come for it when it likes."""
        consumer = self._consumers.get(command.key)
        others = self._hands_over if self.meta.type == "failover" else len(self._consumers) > 1
        if consumer is not None and others:
            consumer.tell(Recall())

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """Queue what a consumer held that is gone, for the next one."""
        if self._gave(command.key):
            self._take_back(command.waiting, 0.0, "its consumer was lost", failed=False)
            self._take_back(command.held, 0.0, "its consumer was lost", failed=command.failed)
        self._remove(command.key)
        if not self._consumers:
            self._consumer_left_ms = self.clock.time_ms()

    def _settle(self, key: int, messages: int) -> None:
        """Note that a consumer holds so many messages less; another may have waited for that."""
        self._roster.settle(key, messages)
        if self._hands_over:
            self._after_change()

    def _is_busy(self, member: Member | None) -> bool:
        return member is not None and member.key in self._consumers and member.outstanding > 0

    def _gave(self, key: int) -> bool:
        """Say whether it was this actor that delivered to a consumer, not the one before it, which failed."""
        return self._log.is_open and (not key or key in self._consumers or key in self._yielding)

    def _settled(self, first: int, end: int) -> None:  # noqa: ARG002
        if self._poison.blocking:  # perhaps by this
            self._wake()

    def _take_back(self, held: Sequence[Held], delay_s: float | None, why: str, *, failed: bool) -> None:
        now_s, policy = self.clock.monotonic(), self._policy
        for part in held:
            failures = part.failures + failed
            poison = failed and policy.is_poison(failures)
            wait_s = 0.0 if poison else delay_s
            if wait_s is None:
                wait_s = back_off_ms(failures, policy.backoff_ms_min, policy.backoff_ms_max) / 1000
            if failed:
                wait_ms = round(wait_s * 1000)
                until_ms = self.clock.time_ms() + wait_ms if wait_ms else 0
                self._log.note_failed(part.first, part.end, part.attempt, failures, until_ms, wait_ms)
            if poison:
                self._give_up(part._replace(failures=failures), why)
                continue
            again = part._replace(attempt=part.attempt + 1, failures=failures)
            self._again(again, now_s + wait_s if wait_s else now_s, now_s)
        self._wake()

    def _begun(self) -> None:
        """The journal is open: queue what waits since before that, in the log or not looked at yet."""
        super()._begun()
        self._wait_on()

    def _wait_on(self) -> None:
        """Let messages go on waiting that an actor before this one was given back."""
        now_s, waits = self.clock.monotonic(), self._log.cursor.waits
        for offset in sorted(waits):
            if (ready_s := self._ready_s(waits[offset], now_s)) > now_s:
                self._aside.add(offset, offset + 1)
                self._add_first(offset, offset + 1, now_s, ready_s)

    def _add_first(self, first: int, end: int, now_s: float, ready_s: float = 0.0) -> None:
        """Queue messages that this actor has delivered to nobody yet."""
        while first < end:
            stop, deliveries, failures = self._alike(first, end)
            self._redelivery.add(Held(first, stop, deliveries + 1, failures), ready_s or now_s, now_s)
            first = stop

    def _again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Have messages delivered again, not before `ready_at_s`."""
        self._redelivery.add(held, ready_at_s, now_s)
        if ready_at_s > now_s:
            self._wake_at(ready_at_s)

    # ---- moving -------------------------------------------------------------------------------------------------

    @receives(Seek)
    def on_seek(self, command: Seek) -> None:
        """Go on at another place, once every consumer has given back what it holds."""
        if not self._log.is_open or self._failure is not None:
            self._refuse(
                command, self._failure or RemoteError("unavailable", "the topic has not answered yet")
            )
        elif self._seeking is not None:
            self._refuse(command, RemoteError("busy", "the subscription is being moved already"))
        else:
            self._seeking = command
            self._seek_on()

    def _seek_on(self) -> None:
        """Find out where to, have the consumers give back what they hold, and move: whatever is next."""
        command = self._seeking
        if command is None or self._yielding:
            return
        if self._target is None:
            try:
                self._target = self._position_of(command.to)
            except NotHereError as error:
                if self._fetching is None:
                    self._fetch(error)
                return
            except IsterError as error:
                self._sought(command, error)
                return
            for key, consumer in self._consumers.items():
                self._yielding.add(key)
                consumer.tell(Yield(moving=True))
            if self._yielding:
                return
        offset = self._target
        self._yielding.add(0)  # nobody's: until the journal has it nothing is delivered
        self._log.move(offset, lambda error: self._moved(command, offset, error))

    def _moved(self, command: Seek, offset: int, error: StorageError | None) -> None:
        self._yielding.discard(0)
        if error is None:
            self._forget_all()
            self._source.begin(offset)
            log.info("subscription %s of %s goes on at offset %d", self.meta.name, self.topic.name, offset)
            for consumer in self._consumers.values():
                consumer.tell(Sought(offset))
            self._store_cursor()
        else:
            for consumer in self._consumers.values():
                consumer.tell(Stayed())
        self._sought(command, error)

    def _stall(self, error: DamagedError) -> None:
        """Where somebody wants to move and the way there cannot be read, it is told so, and nothing else changes."""
        if self._seeking is not None and self._target is None:
            self._sought(self._seeking, error)
        else:
            super()._stall(error)

    def _forget_all(self) -> None:
        super()._forget_all()
        self._redelivery = Redelivery()
        self._stalled = None
        self._fetching = None

    def _sought(self, command: Seek, error: IsterError | None) -> None:
        self._seeking = self._target = None
        if error is None:
            self._reply(command, {"position": self._source.next})
        else:
            self._refuse(command, error)
        self._wake()

    def _remove(self, key: int) -> None:
        super()._remove(key)
        self._seek_on()  # it may have been the one that was waited for

    def _go_on(self) -> None:
        super()._go_on()
        self._seek_on()
        self._bury()

    # ---- the rest -----------------------------------------------------------------------------------------------

    def _refuse(self, command: Seek, error: IsterError) -> None:
        self.system.at(command.reply).tell(Refused(command.ticket, error.code, error.text))

    @receives(UpdateSubscription)
    def on_update(self, command: UpdateSubscription) -> None:
        """Take new settings: a policy for what fails from now on, a timeout for what is delivered from now on."""
        self.meta = command.meta
        before = (self._ack_timeout_ms, self._failures_max())
        self._look_at_policy()
        self._ack_timeout_ms = int(self.meta.settings.get("ack_timeout_ms", self._ack_timeout_ms))
        if before != (self._ack_timeout_ms, self._failures_max()):
            for consumer in self._consumers.values():
                consumer.tell(TimeoutChanged(self._ack_timeout_ms, self._failures_max()))
        self._pause(bool(self.meta.settings.get("paused", 0)))
        self._store_cursor()
        self._reply(command, {})

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Send the consumers away, and leave nothing."""
        self._deleted = True
        self._evict_deleted(command)
        self._topic_ref.tell(Detach(self.address))
        self._uploader.tell(ForgetCursor(self.topic, self.meta.name))
        if self._poison.messages:
            self._undertaker().tell(StopBurying())
        self._log.close(write=False)
        try:
            self._erase()
        except OSError as error:
            log.warning("cursor of %s/%s is still there: %s", self.topic.name, self.meta.name, error)
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.stop_now()  # what waits behind this must not begin anything again

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is, once that is known."""
        self.on_arrival(command)

    def _description(self) -> dict[str, Any]:
        body = super()._description()
        body |= {
            "waiting_redelivery": self._redelivery.messages,
            "in_flight": self._roster.outstanding,
            "delayed": self._delayed(),
            "dead_lettered": self.dead_lettered,
            "dead_letter_topic": self._policy.dead_letter_topic,
            "burying": self._poison.messages,
            "dropped_poison": self.dropped,
            "expired": self.expired,
            "blocked": bool(self._poison.blocking),
        }
        if self._log.is_open:
            pending = self._log.pending(self._source.durable_end, SHOWN_MAX)
            body["pending"] = [list(part) for part in pending]
        return body

    @receives(Explain)
    def on_explain(self, command: Explain) -> None:
        """Say why nothing is delivered, as far as this actor knows."""
        self._reply(command, self._state())

    def _state(self) -> State:
        members = self._roster.members
        seeking = self._seeking
        now_ms, now_s = self.clock.time_ms(), self.clock.monotonic()
        source, redelivery = self._source, self._redelivery
        ready_s = redelivery.next_ready_s()
        holding = sorted((m for m in members if m.outstanding), key=lambda m: (m.holds_since_ms, m.age))
        state: State = self._common_state() | {
            "handing_over": len(self._yielding) or int(self._hands_over),
            "seeking": None if seeking is None else seeking.to,
            "ack_timeout_ms": self._ack_timeout_ms,
            "expired": self.expired,
            "trimmed": self.trimmed,
            "skipped": self.skipped,
            "missing": self.missing,
            "position": source.next,
            "durable_end": source.durable_end,
            "in_flight": self._roster.outstanding,
            "holders": [_holder(member) for member in holding[:HOLDERS_MAX]],
            "due": redelivery.due_messages,
            "backoff": redelivery.messages - redelivery.due_messages,
            "backoff_until_ms": None if ready_s is None else now_ms + max(0, round((ready_s - now_s) * 1000)),
            "delayed": self._delayed(),
            "delayed_until_ms": self._delays.soonest_ms(),
            "tracked_full": self._is_full() if self._log.is_open else False,
            "tracked": self._pieces_bytes(),
            "tracked_max": PIECES_BYTES_MAX,
            "poison": _stop(self._poison.blocking[0]) if self._poison.blocking else None,
            "burying": self._poison.messages,
            "dead_letter_topic": self._policy.dead_letter_topic,
            "bury_trouble": self._bury_trouble,
            "dead_lettered": self.dead_lettered,
            "given_up": None if self._given_up is None else _stop(self._given_up),
            "last_delivered_ms": self._last_delivered_ms,
            "consumer_left_ms": self._consumer_left_ms,
        }
        if self._stalled is not None:
            first = self._stalled.offset or 0
            state["damage"] = {"first": first, "end": first + self._stalled.count, "text": self._stalled.text}
        if self._fetching is not None:
            fetch: Stop = {
                "first": self._fetching.offset,
                "since_ms": self._fetching_since_ms,
                "text": self._fetch_trouble,
            }
            if self._fetching.damage is not None:
                fetch["here"] = self._fetching.damage.text
            state["fetch"] = fetch
        if self._log.is_open:
            state["cursor"] = self._log.cursor.low
            state["unacknowledged"] = self._log.cursor.unacknowledged(source.durable_end)
        return state


def _holder(member: Member) -> Holder:
    return {
        "consumer": member.key,
        "client": member.client,
        "messages": member.outstanding,
        "since_ms": member.holds_since_ms,
    }


def _stop(poisoned: Poisoned) -> Stop:
    return {
        "first": poisoned.held.first,
        "end": poisoned.held.end,
        "attempts": poisoned.held.attempt,
        "since_ms": poisoned.since_ms,
        "text": poisoned.reason,
    }
