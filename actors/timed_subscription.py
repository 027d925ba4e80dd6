"""Subscriptions and time: messages that wait for theirs, and messages that outlive it.

Runs in a worker process. What waits is kept by `actors/delays.py`; here the log is read for it.

Invariants
- nothing that waits is delivered before its time; nothing that is older than the topic lets it be is delivered at all
- what waits or expires is looked at once, but for what is read again as its time comes near
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from ister.actors.delays import DELAYED_RANGES_MAX, Delays
from ister.actors.ledger import DELAY_MS_MAX
from ister.actors.log_subscription import LogSubscription
from ister.actors.messages import Notice
from ister.actors.pieces import Batch
from ister.actors.runtime import Timer
from ister.errors import StorageError
from ister.storage.ranges import RangeSet

LOOKED_AT_MAX: Final = 20_000  # messages set aside in one turn: some 10 ms
EXPIRE_S: Final = 10.0  # where nothing is delivered, what is too old is let go so often
EXPIRE_BATCHES: Final = 64  # at a time
EXPIRED_NOTICES_S: Final = 0.05  # for a hundred consumers: some 2 ms


class TimedSubscription(LogSubscription):
    """A subscription that knows when its messages are due, and when they are too old."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._delays = Delays()
        self._due: deque[tuple[int, int]] = deque()  # their time has come
        self._opening: deque[tuple[int, int]] = deque()  # will be due soon: read again when exactly
        self._delay_timer: Timer | None = None
        self._failed_end = 0  # behind the last message that had failed when the journal was opened
        # Of an Exclusive or Failover subscription: what was passed over, and is not meant by "everything up to here".
        self._apart = RangeSet()
        self._aside = RangeSet()  # of these, what waits: queued already, and passed over where the log has it
        self._looked_at = 0  # in this turn
        self.expired = 0
        self._expired_told = 0
        self._ahead_end = 0  # up to here the cursor's next messages are of a time that is still to come

    def on_start(self) -> None:
        """Attach to the topic, and let go of what is too old now and then."""
        super().on_start()
        self.call_later(EXPIRE_S, self._expire_unseen)

    def on_stop(self) -> None:
        """Wait for no time any more."""
        super().on_stop()
        self.system.clock_steps.unwatch(self.path)

    def _forget_all(self) -> None:
        """Forget what was known of single messages: none of it counts any more."""
        self._delays = Delays()
        self._due.clear()
        self._opening.clear()
        self._failed_end = self._ahead_end = 0
        self._aside = RangeSet()
        self._apart = RangeSet()

    def _delayed(self) -> int:
        return self._delays.messages + sum(end - first for first, end in self._opening)

    def _waits_full(self) -> bool:
        """Say whether so much waits that nothing new is to be looked at."""
        return self._delays.messages > DELAYED_RANGES_MAX and self._delays.ranges > DELAYED_RANGES_MAX

    # ---- what failed before this actor was there ----------------------------------------------------------------

    def _knows_failures(self) -> bool:
        """Whether the journal told of failures of messages that were not looked at yet: after a restart."""
        return self._failed_end > self._source.next and bool(self._log.cursor.failed or self._aside)

    def _alike(self, first: int, end: int) -> tuple[int, int, int]:
        """Say up to where messages from `first` on failed as often as that one, how often it was delivered, and failed.

        For messages that this actor has delivered to nobody yet.
        """
        failed, until = self._log.cursor.failed, min(end, self._failed_end)
        if first >= until:
            return end, 0, 0
        known = failed.get(first, (0, 0))
        stop = first + 1
        while stop < until and failed.get(stop, (0, 0)) == known:
            stop += 1
        if stop == until and known == (0, 0):
            stop = end
        return stop, *known

    def _begun(self) -> None:
        """The journal is open: note up to where it knows of failures.

        Of messages that a power failure took from the log nothing counts: others have their offsets.
        """
        cursor, end = self._log.cursor, self._source.durable_end
        for offset in [offset for offset in cursor.failed if offset >= end]:
            self._log.note_failed(offset, offset + 1, 0, 0)
        self._failed_end = max(cursor.failed, default=-1) + 1

    def _ready_s(self, wait: tuple[int, int], now_s: float) -> float:
        """Return when a message may be delivered that waits until a time and was to wait so long; 0 where that is over.

        The clock may have been set back since, or another machine's wrote it: nothing waits longer than it was to.
        Where nobody noted how long that is, no message can have been asked to wait longer than `DELAY_MS_MAX`.
        """
        until_ms, asked_ms = wait
        wait_ms = min(until_ms - self.clock.time_ms(), asked_ms or DELAY_MS_MAX)
        return now_s + wait_ms / 1000 if until_ms and wait_ms > 0 else 0.0

    def _fresh(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return what of [first, end) is neither acknowledged nor queued already since the journal was opened."""
        pending = self._log.cursor.pending(first, end)
        aside = self._aside
        if not aside:
            return pending
        if (aside.end or 0) <= first:
            self._aside = RangeSet()
            return pending
        return [part for begin, stop in pending for part in aside.gaps(begin, stop)]

    # ---- messages that wait for their time ----------------------------------------------------------------------

    def _set_aside(self, batch: Batch, first: int) -> None:
        """Sort the messages of a batch from `first` on into those that may go at once, and those that wait."""
        now_ms, now_s = self.clock.time_ms(), self.clock.monotonic()
        sheet = self._source.keep_sheet(batch)  # what may go at once is looked at again right after
        times = sheet.deliver_at
        assert times is not None
        self._looked_at += sheet.end - first
        for begin, end in self._fresh(first, sheet.end):
            at = begin
            while at < end:
                when, run = times[at - sheet.first], at
                while at < end and times[at - sheet.first] == when:
                    at += 1
                if when > batch.timestamp_ms:
                    self._delays.add(when, run, at, now_ms)
                    if self.meta.type != "shared":
                        self._apart.add(run, at)
                else:
                    self._add_first(run, at, now_s)
        self._look_at_delays()

    def _look_at_delays(self) -> None:
        """Take out what is due, look more closely at what soon will be, and come back when more is."""
        delays = self._delays
        if not (delays or self._due or self._opening):
            self.system.clock_steps.unwatch(self.path)
            return
        # The timer below knows a duration alone: who sets the clock would make messages late, or look in vain.
        self.system.clock_steps.watch(self.path, self._clock_stepped)
        now_ms = self.clock.time_ms()
        self._due.extend(delays.take_due(now_ms))
        self._take_due()
        while self._looked_at < LOOKED_AT_MAX:
            if not self._opening:
                self._opening.extend(delays.open_bucket(now_ms))
                if not self._opening:
                    break
            self._look_again(now_ms)
        if self._opening:
            self._wake()
        elif (next_ms := delays.next_ms()) is not None:
            due_s = self.clock.monotonic() + max(next_ms - now_ms, 0) / 1000 + 0.001
            timer = self._delay_timer
            if timer is None or not timer.pending or abs(timer.due - due_s) > 0.001:
                if timer is not None:
                    timer.cancel()
                self._delay_timer = self.call_later(due_s - self.clock.monotonic(), self._wake)

    def _clock_stepped(self) -> None:
        self.call_soon(self._wake)

    def _take_due(self) -> None:
        """Let what is due be delivered."""
        now_s = self.clock.monotonic()
        while self._due:
            self._add_first(*self._due.popleft(), now_s)

    def _add_first(self, first: int, end: int, now_s: float, ready_s: float = 0.0) -> None:
        """Queue messages that this actor has delivered to nobody yet."""
        raise NotImplementedError

    def _look_again(self, now_ms: int) -> None:
        """Read the first range that will be due soon, up to the end of its batch, and sort it by time."""
        if (first := self._first_of(self._opening)) is None:
            return
        end = self._opening[0][1]
        if (sheet := self._source.sheet_at(first)) is None:  # skipped, and noted as done
            return
        stop = min(end, sheet.end)
        times = sheet.deliver_at
        assert times is not None
        for begin, behind in self._log.cursor.pending(first, stop):
            for offset in range(begin, behind):
                self._delays.add(times[offset - sheet.first], offset, offset + 1, now_ms)
        self._looked_at += stop - first
        self._opening[0] = (stop, end)

    def _first_of(self, ranges: deque[tuple[int, int]]) -> int | None:
        """Return the first offset of the first range that is not done; None where that has none, and is taken out.

        What is done may be in the log no more.
        """
        cursor = self._log.cursor
        first, end = ranges[0]
        first = cursor.ranges.end_of(max(first, cursor.low))
        if first < end:
            return first
        ranges.popleft()
        return None

    # ---- messages that are too old ------------------------------------------------------------------------------

    def _is_expired(self, batch: Batch) -> bool:
        return (
            bool(self._message_ttl_ms) and batch.timestamp_ms + self._message_ttl_ms <= self.clock.time_ms()
        )

    def _expire(self, first: int, end: int) -> None:
        """Let messages go that outlived the topic's time to live; they are counted, and said to the consumers."""
        new = self._log.note(first, end)
        self._settled(first, end)
        if not new:
            return
        self.expired += new
        if (
            self.expired - new == self._expired_told
        ):  # the first since it was told last: all are told together

            def tell() -> None:
                count, self._expired_told = self.expired - self._expired_told, self.expired
                text = f"{count} messages were older than message_ttl_ms ({self._message_ttl_ms}) when their turn came"
                self._notify(Notice("expired", count, text, first))

            # With thousands of consumers not so often, or they would be told of nothing else.
            self.call_later(len(self._consumers) // 100 * EXPIRED_NOTICES_S, tell)

    def _expire_unseen(self) -> None:
        """Where nothing is delivered nothing is looked at: let go of what is too old here."""
        again_s = EXPIRE_S
        idle = not self._roster.outstanding  # what somebody holds may yet be acknowledged
        if self._message_ttl_ms and self._log.is_open and idle and self._failure is None:
            low = self._log.cursor.low
            at = max(low, self._ahead_end)
            for _ in range(EXPIRE_BATCHES):
                if at >= self._source.durable_end:
                    break
                try:
                    batch = self._source.batch_at(at)
                except StorageError:  # it is not here, or damaged: not worth more than waiting for a consumer
                    break
                if batch is None:
                    at = max(at + 1, self._log.cursor.low)
                    continue
                end = batch.first_offset + batch.count
                if self._is_expired(
                    batch
                ):  # and all before it, whatever a clock that was ahead made of their times
                    self._expire(self._log.cursor.low, end)
                elif batch.timestamp_ms <= self.clock.time_ms():
                    break
                at = end
            self._ahead_end = at
            if self._log.cursor.low > low:
                again_s = 0.0
        self.call_later(again_s, self._expire_unseen)
