"""Delivery times and time to live: which messages of a subscription wait for their time, and which have expired.

Runs in a worker process, as a part of a Subscription. `actors/delays.py` keeps what waits; this module reads the log
for it. It owns what was set aside, how many single messages were looked at in this turn, and the count of expired
messages.

Invariants
- no message is delivered before its delivery time, or after its time to live
- a message that waits or expires is looked at once, except that it is read again shortly before its time
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ister.actors.delays import DELAYED_RANGES_MAX, Delays
from ister.actors.explain_state import State
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

LOOKED_AT_MAX: Final = 20_000  # single messages looked at in one turn: some 10 ms of work
IDLE_S: Final = 60.0  # how often a subscription to a topic without a time to live looks whether it has one
EXPIRE_S: Final = 10.0  # how often expired messages are searched for where nothing is delivered
EXPIRE_BATCHES: Final = 64  # batches looked at in one such search
# the delay of a notice per hundred consumers: sending it to them takes some 2 ms
EXPIRED_NOTICES_S: Final = 0.05


class Schedule(SubscriptionPart):
    """The delivery times and the time to live of one subscription's messages."""

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
        self._opening: deque[tuple[int, int]] = deque()  # due soon: to be read again for the exact times
        self._timer: Timer | None = None
        # Messages that were set aside while others after them were delivered; "everything up to here" does not
        # include them.
        self.unseen = RangeSet()
        self._looked_at = 0  # messages, in this turn
        self._look: Timer | None = None  # for expired messages
        self._expired = 0
        self._expired_told = 0
        # up to here, the messages after the cursor have times that are still in the future
        self._ahead_end = 0

    def start(self) -> None:
        """Search for expired messages now and then."""
        self._look = self._subscription.call_later(EXPIRE_S, self._expire_unseen)

    def opened(self) -> None:
        """Use what the journal remembers."""
        self._remembered.begin(self._source.durable_end)

    def stop(self) -> None:
        """Stop watching for clock steps."""
        self._subscription.system.clock_steps.unwatch(self._subscription.path)

    def forget(self) -> None:
        """Forget all messages that wait."""
        self._remembered.forget()
        self._delays = Delays()
        self.due.clear()
        self._opening.clear()
        self._ahead_end = 0
        self.unseen = RangeSet()

    def topic_updated(self) -> None:
        """Apply the topic's new time to live."""
        had = self._ttl_ms
        self._ttl_ms = int(self._subscription.topic.settings.get("message_ttl_ms", 0))
        if self._ttl_ms and not had and self._look is not None:
            self._look.cancel()
            self._look = self._subscription.call_later(EXPIRE_S, self._expire_unseen)

    # ---- how much is looked at ----------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Reset the count of messages looked at."""
        self._looked_at = 0

    def look_at(self, messages: int) -> None:
        """Count single messages that are looked at."""
        self._looked_at += messages

    def is_spent(self) -> bool:
        """Say whether this turn's limit of single messages is reached; then another turn is scheduled."""
        if self._looked_at < LOOKED_AT_MAX:
            return False
        self._subscription.wake()
        return True

    def is_full(self) -> bool:
        """Say whether so many messages wait that nothing new is to be looked at."""
        return self._delays.messages > DELAYED_RANGES_MAX and self._delays.ranges > DELAYED_RANGES_MAX

    # ---- messages that wait for their time ----------------------------------------------------------------------

    def set_aside(self, batch: Batch, first: int) -> None:
        """Divide the messages of a batch from `first` on into those that may be delivered now and those that wait."""
        clock = self._subscription.clock
        now_ms, now_s = clock.time_ms(), clock.monotonic()
        # the messages that may be delivered now are looked at again right after this
        sheet = self._source.keep_sheet(batch)
        times = sheet.deliver_at
        assert times is not None
        self._looked_at += sheet.end - first
        shares = self._subscription.consumers.roster.shares
        for begin, end in self._journal.cursor.pending(first, sheet.end):
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
        if self.unseen:
            for offset in self._remembered.waiting(first, sheet.end, now_ms):
                self.unseen.subtract(offset, offset + 1)  # a consumer was given it before
        self.look()

    def wait(self, when_ms: int, offset: int, now_ms: int) -> None:
        """Let one message wait for its time, in unix ms."""
        self._delays.add(when_ms, offset, offset + 1, now_ms)

    def look(self) -> None:
        """Take out what is due, read what is due soon for its exact times, and schedule the next look."""
        delays = self._delays
        steps = self._subscription.system.clock_steps
        if not (delays or self.due or self._opening):
            steps.unwatch(self._subscription.path)
            return
        # The timer below waits for a duration. If the clock is set meanwhile it would fire too late or too early.
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
        """Take out the ranges that are due."""
        while self.due:
            yield self.due.popleft()

    def first_due(self) -> tuple[int, int] | None:
        """Return the first offset that is due and not done, and the end of its range; None if there is none.

        It stays until `taken_due`.
        """
        while self.due:
            if (first := self._first_of(self.due)) is not None:
                return first, self.due[0][1]
        return None

    def taken_due(self, end: int) -> None:
        """Take out what `first_due` returned, up to an offset."""
        self.due[0] = (end, self.due[0][1])

    def _look_again(self, now_ms: int) -> None:
        """Read the first range that is due soon, up to the end of its batch, and sort its messages by time."""
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
        """Return the first offset of the first range that is not done; drop a range without one and return None.

        The messages that are done may not be in the log any more.
        """
        cursor = self._journal.cursor
        first, end = ranges[0]
        first = cursor.end_of(max(first, cursor.low))
        if first < end:
            return first
        ranges.popleft()
        return None

    # ---- what was passed over -----------------------------------------------------------------------------------

    def delivered(self, parts: tuple[tuple[int, int], ...]) -> None:
        """Note that a consumer holds these ranges now."""
        for first, end in parts:
            self.unseen.subtract(first, end)

    def seen(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [first, end) that were not set aside: what "everything up to here" means."""
        return self.unseen.gaps(first, end)

    # ---- messages that are too old ------------------------------------------------------------------------------

    def too_old_ms(self) -> int:
        """Return the unix ms up to which published messages are expired now; 0 without a time to live."""
        return self._subscription.clock.time_ms() - self._ttl_ms if self._ttl_ms else 0

    def is_expired(self, batch: Batch) -> bool:
        """Say whether the messages of a batch have expired."""
        return self.is_too_old(batch.timestamp_ms)

    def is_too_old(self, timestamp_ms: int) -> bool:
        """Say whether messages that were published then have expired."""
        return bool(self._ttl_ms) and timestamp_ms <= self.too_old_ms()

    @property
    def expires(self) -> bool:
        """Whether messages expire at all."""
        return bool(self._ttl_ms)

    def expire(self, first: int, end: int) -> None:
        """Mark expired messages as done; they are counted and reported to the consumers."""
        new = self._journal.finish(first, end)
        if not new:
            return
        # the first since the last notice: later ones are reported with it
        is_first = self._expired == self._expired_told
        self._expired += new
        if is_first:

            def tell() -> None:
                count, self._expired_told = self._expired - self._expired_told, self._expired
                text = f"{counted(count, 'message')} outlived message_ttl_ms ({self._ttl_ms}) before delivery"
                self._subscription.consumers.notify(Notice("expired", count, text, first))

            # With thousands of consumers less often; the notices alone would fill their connections.
            wait_s = len(self._subscription.consumers) // 100 * EXPIRED_NOTICES_S
            self._subscription.call_later(wait_s, tell)

    def _expire_unseen(self) -> None:
        """Expire messages where nothing is delivered, since otherwise nobody looks at them."""
        again_s = EXPIRE_S if self._ttl_ms else IDLE_S
        subscription, journal = self._subscription, self._journal
        idle = not subscription.consumers.roster.outstanding  # what consumers hold may still be acknowledged
        if self._ttl_ms and journal.is_open and idle and subscription.failure is None:
            low = journal.cursor.low
            at = max(low, self._ahead_end)
            for _ in range(EXPIRE_BATCHES):
                if at >= self._source.durable_end:
                    break
                try:
                    batch = self._source.batch_at(at)
                except StorageError:  # not here, or damaged: wait until a consumer needs it
                    break
                if batch is None:
                    at = max(at + 1, journal.cursor.low)
                    continue
                end = batch.first_offset + batch.count
                if self.is_expired(
                    batch
                ):  # and all before it, even if a clock that ran ahead gave them later times
                    self.expire(journal.cursor.low, end)
                elif batch.timestamp_ms <= subscription.clock.time_ms():
                    break
                at = end
            self._ahead_end = at
            if journal.cursor.low > low:
                again_s = 0.0
        self._look = subscription.call_later(again_s, self._expire_unseen)

    # ---- what it reports ----------------------------------------------------------------------------------------

    def _waiting(self) -> int:
        return self._delays.messages + sum(end - first for first, end in self._opening)

    def description(self) -> Mapping[str, Any]:
        """Return how many messages wait for their time, and how many expired."""
        return {"delayed": self._waiting(), "expired": self._expired}

    def state(self) -> State:
        """Return the same, and when the next is due."""
        return {
            "delayed": self._waiting(),
            "delayed_until_ms": self._delays.soonest_ms(),
            "expired": self._expired,
        }
