"""Times of delivery and time to live: which messages of a subscription wait for theirs, and which outlived it.

Runs in a worker process, as a part of a Subscription. What waits is kept by `actors/delays.py`; here the log is read
for it. It owns what was set aside, how many single messages were looked at in this turn, and what expired.

Invariants
- nothing that waits is delivered before its time; nothing that is older than the topic lets it be is delivered at all
- what waits or expires is looked at once, but for what is read again as its time comes near
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ister.actors.delays import DELAYED_RANGES_MAX, Delays
from ister.actors.explain import State
from ister.actors.messages import Notice
from ister.actors.pieces import Batch
from ister.actors.runtime import Timer
from ister.actors.source import Source
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.parts import Host, Queue, SubscriptionPart
from ister.actors.subscription.remembered import Remembered
from ister.errors import StorageError
from ister.storage.ranges import RangeSet
from ister.words import counted

LOOKED_AT_MAX: Final = 20_000  # single messages looked at in one turn: some 10 ms
EXPIRE_S: Final = 10.0  # where nothing is delivered, what is too old is let go so often
EXPIRE_BATCHES: Final = 64  # at a time
EXPIRED_NOTICES_S: Final = 0.05  # for a hundred consumers: some 2 ms


class Schedule(SubscriptionPart):
    """When the messages of one subscription are due, and when they are too old."""

    def __init__(
        self, subscription: Host, queue: Queue, journal: CursorLog, source: Source, remembered: Remembered
    ) -> None:
        self._subscription = subscription
        self._queue = queue
        self._journal = journal
        self._source = source
        self._remembered = remembered
        self._ttl_ms = int(subscription.topic.settings.get("message_ttl_ms", 0))
        self._delays = Delays()
        self.due: deque[tuple[int, int]] = deque()  # their time has come
        self._opening: deque[tuple[int, int]] = deque()  # will be due soon: read again when exactly
        self._timer: Timer | None = None
        # What nobody has seen though others behind it were delivered; not meant by "everything up to here".
        self.unseen = RangeSet()
        self._looked_at = 0  # in this turn
        self._expired = 0
        self._expired_told = 0
        self._ahead_end = 0  # up to here the cursor's next messages are of a time that is still to come

    def start(self) -> None:
        """Let go of what is too old now and then."""
        self._subscription.call_later(EXPIRE_S, self._expire_unseen)

    def opened(self) -> None:
        """The journal is open: go by what it remembers."""
        self._remembered.begin(self._source.durable_end)

    def stop(self) -> None:
        """Wait for no time any more."""
        self._subscription.system.clock_steps.unwatch(self._subscription.path)

    def forget(self) -> None:
        """Nothing waits any more."""
        self._remembered.forget()
        self._delays = Delays()
        self.due.clear()
        self._opening.clear()
        self._ahead_end = 0
        self.unseen = RangeSet()

    def topic_updated(self) -> None:
        """Go by another time to live."""
        self._ttl_ms = int(self._subscription.topic.settings.get("message_ttl_ms", 0))

    # ---- how much is looked at ----------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Single messages may be looked at again."""
        self._looked_at = 0

    def look_at(self, messages: int) -> None:
        """Note that so many single messages are looked at."""
        self._looked_at += messages

    def is_spent(self) -> bool:
        """Say whether no more single messages are to be looked at in this turn; there will be another."""
        if self._looked_at < LOOKED_AT_MAX:
            return False
        self._subscription.wake()
        return True

    def is_full(self) -> bool:
        """Say whether so much waits that nothing new is to be looked at."""
        return self._delays.messages > DELAYED_RANGES_MAX and self._delays.ranges > DELAYED_RANGES_MAX

    # ---- messages that wait for their time ----------------------------------------------------------------------

    def set_aside(self, batch: Batch, first: int) -> None:
        """Sort the messages of a batch from `first` on into those that may go at once, and those that wait."""
        clock = self._subscription.clock
        now_ms, now_s = clock.time_ms(), clock.monotonic()
        sheet = self._source.keep_sheet(batch)  # what may go at once is looked at again right after
        times = sheet.deliver_at
        assert times is not None
        self._looked_at += sheet.end - first
        shares = self._subscription.consumers.roster.shares
        for begin, end in self._remembered.fresh(first, sheet.end):
            at = begin
            while at < end:
                when, run = times[at - sheet.first], at
                while at < end and times[at - sheet.first] == when:
                    at += 1
                if when > batch.timestamp_ms:
                    self._delays.add(when, run, at, now_ms)
                    if not shares:
                        self.unseen.add(run, at)
                else:
                    self._queue.first_time(run, at, now_s)
        self.look()

    def wait(self, when_ms: int, offset: int, now_ms: int) -> None:
        """Let one message wait for its time."""
        self._delays.add(when_ms, offset, offset + 1, now_ms)

    def look(self) -> None:
        """Take out what is due, look more closely at what soon will be, and come back when more is."""
        delays = self._delays
        steps = self._subscription.system.clock_steps
        if not (delays or self.due or self._opening):
            steps.unwatch(self._subscription.path)
            return
        # The timer below knows a duration alone: who sets the clock would make messages late, or look in vain.
        steps.watch(self._subscription.path, self._clock_stepped)
        now_ms = self._subscription.clock.time_ms()
        self.due.extend(delays.take_due(now_ms))
        self._queue.take_due()
        while self._looked_at < LOOKED_AT_MAX:
            if not self._opening:
                self._opening.extend(delays.open_bucket(now_ms))
                if not self._opening:
                    break
            self._look_again(now_ms)
        if self._opening:
            self._subscription.wake()
        elif (next_ms := delays.next_ms()) is not None:
            now_s = self._subscription.clock.monotonic()
            due_s = now_s + max(next_ms - now_ms, 0) / 1000 + 0.001
            timer = self._timer
            if timer is None or not timer.pending or abs(timer.due - due_s) > 0.001:
                if timer is not None:
                    timer.cancel()
                self._timer = self._subscription.call_later(due_s - now_s, self._subscription.wake)

    def _clock_stepped(self) -> None:
        self._subscription.call_soon(self._subscription.wake)

    def take_due(self) -> Iterator[tuple[int, int]]:
        """Take out what is due."""
        while self.due:
            yield self.due.popleft()

    def first_due(self) -> tuple[int, int] | None:
        """Return the first that is due and not done, and the end of its range; None where nothing is.

        It stays until it is `taken_due`.
        """
        while self.due:
            if (first := self._first_of(self.due)) is not None:
                return first, self.due[0][1]
        return None

    def taken_due(self, end: int) -> None:
        """Take out what `first_due` returned, up to an offset."""
        self.due[0] = (end, self.due[0][1])

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
        for begin, behind in self._journal.cursor.pending(first, stop):
            for offset in range(begin, behind):
                self._delays.add(times[offset - sheet.first], offset, offset + 1, now_ms)
        self._looked_at += stop - first
        self._opening[0] = (stop, end)

    def _first_of(self, ranges: deque[tuple[int, int]]) -> int | None:
        """Return the first offset of the first range that is not done; None where that has none, and is taken out.

        What is done may be in the log no more.
        """
        cursor = self._journal.cursor
        first, end = ranges[0]
        first = cursor.ranges.end_of(max(first, cursor.low))
        if first < end:
            return first
        ranges.popleft()
        return None

    # ---- what was passed over -----------------------------------------------------------------------------------

    def delivered(self, parts: tuple[tuple[int, int], ...]) -> None:
        """Note that somebody has these now."""
        for first, end in parts:
            self.unseen.subtract(first, end)

    def seen(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return what of [first, end) was not passed over: what "everything up to here" means."""
        return self.unseen.gaps(first, end)

    # ---- messages that are too old ------------------------------------------------------------------------------

    def too_old_ms(self) -> int:
        """Return when what is too old by now was taken in, at the latest; 0 where nothing is ever too old."""
        return self._subscription.clock.time_ms() - self._ttl_ms if self._ttl_ms else 0

    def is_expired(self, batch: Batch) -> bool:
        """Say whether the messages of a batch outlived their time to live."""
        return bool(self._ttl_ms) and batch.timestamp_ms <= self.too_old_ms()

    def expire(self, first: int, end: int) -> None:
        """Let messages go that outlived the topic's time to live; they are counted, and said to the consumers."""
        new = self._journal.finish(first, end)
        if not new:
            return
        is_first = self._expired == self._expired_told  # since it was told last: all are told together
        self._expired += new
        if is_first:

            def tell() -> None:
                count, self._expired_told = self._expired - self._expired_told, self._expired
                text = f"{counted(count, 'message')} outlived message_ttl_ms ({self._ttl_ms}) before delivery"
                self._subscription.consumers.notify(Notice("expired", count, text, first))

            # With thousands of consumers not so often, or they would be told of nothing else.
            wait_s = len(self._subscription.consumers) // 100 * EXPIRED_NOTICES_S
            self._subscription.call_later(wait_s, tell)

    def _expire_unseen(self) -> None:
        """Where nothing is delivered nothing is looked at: let go of what is too old here."""
        again_s = EXPIRE_S
        subscription, journal = self._subscription, self._journal
        idle = not subscription.consumers.roster.outstanding  # what somebody holds may yet be acknowledged
        if self._ttl_ms and journal.is_open and idle and subscription.failure is None:
            low = journal.cursor.low
            at = max(low, self._ahead_end)
            for _ in range(EXPIRE_BATCHES):
                if at >= self._source.durable_end:
                    break
                try:
                    batch = self._source.batch_at(at)
                except StorageError:  # it is not here, or damaged: not worth more than waiting for a consumer
                    break
                if batch is None:
                    at = max(at + 1, journal.cursor.low)
                    continue
                end = batch.first_offset + batch.count
                if self.is_expired(
                    batch
                ):  # and all before it, whatever a clock that was ahead made of their times
                    self.expire(journal.cursor.low, end)
                elif batch.timestamp_ms <= subscription.clock.time_ms():
                    break
                at = end
            self._ahead_end = at
            if journal.cursor.low > low:
                again_s = 0.0
        subscription.call_later(again_s, self._expire_unseen)

    # ---- what is said of it -------------------------------------------------------------------------------------

    def _waiting(self) -> int:
        return self._delays.messages + sum(end - first for first, end in self._opening)

    def description(self) -> Mapping[str, Any]:
        """Say how many messages wait for their time, and how many outlived theirs."""
        return {"delayed": self._waiting(), "expired": self._expired}

    def state(self) -> State:
        """Say the same, and when the next is due."""
        return {
            "delayed": self._waiting(),
            "delayed_until_ms": self._delays.soonest_ms(),
            "expired": self._expired,
        }
