"""Access to a topic's log: what can be read here, and what to do when something cannot.

Runs in a worker process, as a part of a Subscription. It reads the topic's segment files itself (`actors/source.py`);
the topic only tells it how far they are durable. It owns the requests to the Fetcher, the place where reading waits,
and the account of what was lost. It does not decide which message goes to which consumer.

Invariants
- nothing is read that is not durable at the topic's level
- what only the store has is requested and waited for; at damage, reading waits until an operator decides; what
  retention took is counted and reported to the consumers
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from ister.actors.asking import Asking
from ister.actors.explain_state import State, Stop
from ister.actors.messages import (
    Attach,
    Durable,
    Fetch,
    Fetched,
    FoundDamage,
    NodeStarted,
    NotFetched,
    Notice,
    Repaired,
    TopicFailed,
    Trimmed,
)
from ister.actors.runtime import Ref, Timer, receives
from ister.actors.source import Source
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.parts import Host, SubscriptionPart
from ister.errors import DamagedError, StorageError, TrimmedError
from ister.storage.wholereader import NotHereError, TieredReader
from ister.words import counted

log = logging.getLogger("ister.subscription")

ATTACH_RETRY_S: Final = 1.0  # after the topic failed
SHOWN_MAX: Final = 100  # ranges that are shown

ASKED: Final = 1 << 63  # above every offset

T = TypeVar("T")


class LogAccess(SubscriptionPart):
    """The log of one topic, as one subscription reads it.

    `open_reader(offset)` opens a reader of the topic's segments. `refuses(error)` says whether damage was met only by a
    requested move; then it handles the error.
    """

    def __init__(
        self,
        subscription: Host,
        journal: CursorLog,
        *,
        topic_ref: Ref,
        fetcher: Ref,
        open_reader: Callable[[int], TieredReader],
    ) -> None:
        self._subscription = subscription
        self._topic, self._name = subscription.topic.name, subscription.meta.name
        self._journal = journal
        self._topic_ref = topic_ref
        self._fetcher = fetcher
        self.source = Source(self._topic, open_reader, self._skip)
        self.refuses: Callable[[DamagedError], bool] = lambda _error: False
        self._fetching: NotHereError | None = None  # what is being fetched from the store
        self._fetching_since_ms = 0
        self._fetch_trouble = ""
        self._fetch_timer: Timer | None = None
        self._fetch_asking = Asking()  # the question to the Fetcher
        self._fetched = (-1, 0)  # the offset fetched last, and the number of its download
        self._begun_behind = 0  # the end of what was missing where the subscription was to begin
        self._stalled: Notice | None = None  # reading waits at damage until an operator decides
        self._stalled_at = ASKED  # the offset it waits at, if the store was not asked for it
        # The topic was asked how far the store has it, because of damage here that the store may have whole by now.
        self._inquires = False
        self._inquired_at = -1  # the offset of the damage for which it was asked last
        self._repairs = 0  # how many of the topic's are known here
        self._trimmed = 0
        self._skipped = 0
        self._missing = 0

    def stop(self) -> None:
        """Close the log's files."""
        self.source.release()

    def node_started(self, started: NodeStarted) -> None:
        """Ask again when the tier was restarted: it has lost the request."""
        if started.node == self._fetcher.address.node:
            self._fetch_again()

    def stored(self, end: int) -> None:
        """Note up to where the store has the topic, and ask it for a damaged segment if it has that now."""
        self.source.stored(end)
        if self._inquires:
            self._end_inquiry()
        elif self._stalled is not None and self._stalled_at < self.source.stored_end:
            self._read_again()

    def topic_failed(self, _failed: TopicFailed) -> None:
        """Go by what is known of the store: the topic cannot say more."""
        if self._inquires:
            self._end_inquiry()

    def _end_inquiry(self) -> None:
        self._inquires = False
        self._subscription.may_read()

    @receives(Durable)
    def on_durable(self, durable: Durable) -> None:
        """Note how far the topic is durable: more may be delivered."""
        if self.source.advance(durable.durable_end):
            self._subscription.wake()

    # ---- what cannot be read ------------------------------------------------------------------------------------

    @receives(Trimmed)
    def on_trimmed(self, trimmed: Trimmed) -> None:
        """Continue after what retention took; unacknowledged messages of it are counted and reported."""
        if not self._journal.is_open:
            return
        start = trimmed.start_offset
        if self._fetching is not None and self._fetching.offset < start:
            self._fetching = None
            # everything that waits for a read tries again
            self._subscription.call_soon(self._subscription.may_read)
        cursor = self._journal.cursor
        low, lost = cursor.low, cursor.unacknowledged(start)
        self.source.trim(start)
        if start <= low:
            return
        self._journal.finish(low, start)
        if lost:
            text = (
                f"retention took {counted(lost, 'message that was', 'messages that were')} not acknowledged, "
                f"between offset {low} and {start}"
            )
            log.warning("subscription %s of topic %s: %s", self._name, self._topic, text)
            self.count_trimmed(lost, text, low)
        self._subscription.wake()

    def read(self, step: Callable[[], T]) -> T | None:
        """Run `call`, which reads, and handle its failure; return None where it is to be tried again later."""
        while not self.waits and self._subscription.failure is None:
            try:
                return step()
            except NotHereError as error:
                self.fetch(error)
            except TrimmedError as error:  # the topic is about to tell so
                if error.end <= self._journal.cursor.low:
                    self._halt(error)
                    return None
                self.on_trimmed(Trimmed(error.end))
            except DamagedError as error:
                self._stall(error)
            except StorageError as error:
                self._halt(error)
        return None

    @property
    def waits(self) -> bool:
        """Whether reading on waits for the store, the topic or an operator."""
        return self._stalled is not None or self._fetching is not None or self._inquires

    def fetch(self, missing: NotHereError) -> None:
        """Fetch a segment from the store; meanwhile nothing is delivered."""
        if self._fetching is None or self._fetching.offset != missing.offset:
            self._fetching_since_ms, self._fetch_trouble = self._subscription.clock.time_ms(), ""
            self._fetch_asking = Asking()
        self._fetching = missing
        offset, download = self._fetched
        seen = download if offset == missing.offset else 0
        topic, me = self._subscription.topic, self._subscription.address
        self._fetcher.tell(Fetch(topic, missing.offset, me, seen))
        if self._fetch_timer is not None:
            self._fetch_timer.cancel()
        wait_s = self._fetch_asking.asked()
        self._fetch_timer = self._subscription.call_later(wait_s, self._fetch_again)

    def _fetch_again(self) -> None:
        """Ask the Fetcher again: mail can be lost."""
        if self._fetching is not None:
            self.fetch(self._fetching)

    @receives(Fetched)
    def on_fetched(self, fetched: Fetched) -> None:
        """Read on: the segment is in the cache."""
        self.source.brought(fetched.base)
        if self._fetching is not None and fetched.offset == self._fetching.offset:
            self._fetching = None
            self._fetched = (fetched.offset, fetched.copy)
            self._subscription.may_read()

    @receives(NotFetched)
    def on_not_fetched(self, answer: NotFetched) -> None:
        """Continue after what retention took; wait for an unreachable store; stall at what is nowhere."""
        missing = self._fetching
        if missing is None or answer.offset != missing.offset:
            return
        if answer.retry:
            self.fetch(missing)
            self._fetch_trouble = answer.text
            return
        self._fetching = None
        if answer.offset < answer.start:
            self.source.begins(answer.start)
            self.on_trimmed(Trimmed(answer.start))
        else:
            error = _nowhere(missing, answer)
            if not self._journal.is_open:  # the start offset cannot be found
                self._subscription.become_failed(error)
                return
            if missing.damage is None and self._begins_at(answer.offset):
                self._begin_behind(error)
            else:
                self._stall(error)
        self._subscription.may_read()

    def _begins_at(self, offset: int) -> bool:
        """Say whether this is where the subscription starts, as a new one from "earliest"."""
        if self._subscription.meta.start != "earliest" or not self._journal.is_open:
            return False
        cursor = self._journal.cursor
        return offset == cursor.low == max(cursor.start, self._begun_behind) and not cursor.ranges

    def _begin_behind(self, error: DamagedError) -> None:
        """Start at the earliest message there is, and report what should have been before it."""
        first, end = error.first or 0, error.end or 0
        self._topic_ref.tell(FoundDamage(first, end, error.text, True))
        self._begun_behind = end
        lost = self._journal.finish(first, end)
        self._missing += lost
        if self.source.next < end:
            self.source.jump_to(end)
        text = (
            f"{counted(lost, 'message is', 'messages are')} lost from offset {first} on, "
            f"and the subscription begins at offset {end}: {error.text}"
        )
        log.error("subscription %s of topic %s: %s", self._name, self._topic, text)
        self._subscription.consumers.notify(Notice("missing", lost, text, first))

    def forget(self) -> None:
        """Forget what was waited for at the old place."""
        self._stalled = None
        self._fetching = None
        self._inquires = False

    def _halt(self, error: StorageError) -> None:
        """Serve no consumer any more, and say why."""
        log.error("subscription %s of topic %s stops: %s", self._name, self._topic, error.text)
        self._subscription.evict_all(error.code, error.text)

    def _stall(self, error: DamagedError) -> None:
        """Deliver nothing more until an operator decides; delivered messages can still be acknowledged."""
        if self.refuses(error):
            return
        first, end = error.first or 0, error.end or 0
        if first >= self.source.stored_end and first != self._inquired_at:
            # what is known here of the store is some seconds old: it may have these offsets by now
            self._inquires, self._inquired_at = True, first
            self._topic_ref.tell(Attach(self._subscription.address, self._subscription.topic))
            return
        self._stalled_at = ASKED if first < self.source.stored_end else first
        what = f"offsets {first} to before {end} of topic {self._topic!r} are damaged, nothing is skipped by itself"
        text = f"{what} ({error.text}); to skip them: ister topic repair {self._topic} --skip-damaged"
        log.error("subscription %s of topic %s waits: %s", self._name, self._topic, text)
        self._topic_ref.tell(FoundDamage(first, end, error.text, self._stalled_at == ASKED))
        self._stalled = Notice("log-damaged", end - first, text, first)
        self._subscription.consumers.tell_all(self._stalled)

    def greet(self, consumer: Ref) -> None:
        """Tell a new consumer the notice of a stall, as the others were told."""
        if self._stalled is not None:
            consumer.tell(self._stalled)

    @receives(Repaired)
    def on_repaired(self, repaired: Repaired) -> None:
        """Read again from where damage stopped the subscription."""
        self._repairs = repaired.repairs
        if self._journal.is_open and self._stalled is not None:
            self._read_again()

    def repaired(self, repairs: int) -> None:
        """Read again if the topic says that there were more repairs than are known here: the mail of one was lost."""
        if repairs != self._repairs:  # less: the topic was started again
            self.on_repaired(Repaired(repairs))

    def _read_again(self) -> None:
        self._stalled = None
        self.source.reopen()
        self._subscription.may_read()

    def _skip(self, skipped: list[tuple[int, int]]) -> None:
        """Mark as done what a reader skipped by an operator's decision, and report it."""
        for first, end in skipped:
            lost = self._journal.finish(first, end)
            if lost:
                self._skipped += lost
                text = (
                    f"an operator decided to skip {counted(lost, 'damaged message')} from offset {first} on"
                )
                log.warning("subscription %s of topic %s: %s", self._name, self._topic, text)
                self._subscription.consumers.notify(Notice("skipped", lost, text, first))

    @property
    def fetches(self) -> bool:
        """Whether a segment is being fetched from the store."""
        return self._fetching is not None

    def count_trimmed(self, messages: int, text: str, first: int) -> None:
        """Report to the consumers that retention took messages before they were delivered."""
        self._trimmed += messages
        self._subscription.consumers.notify(Notice("trimmed", messages, text, first))

    # ---- what it reports ----------------------------------------------------------------------------------------

    def description(self) -> Mapping[str, Any]:
        """Return where the subscription stands in the log, and what could not be read."""
        source = self.source
        body: dict[str, Any] = {
            "position": source.next,
            "durable_end": source.durable_end,
            "trimmed": self._trimmed,
            "skipped": self._skipped,
            "missing": self._missing,
            "from_store": source.from_store,
            "from_log": source.from_log,
            "from_live": source.from_live,
            "fetching": None if self._fetching is None else self._fetching.offset,
            "stalled": None if self._stalled is None else self._stalled.text,
            "ack_timeout_ms": self._subscription.ack_timeout_ms,
        }
        if self._journal.is_open:
            cursor = self._journal.cursor
            body |= {
                "cursor": cursor.low,
                "acknowledged_above": cursor.ranges.total,
                "unacknowledged": cursor.unacknowledged(source.durable_end),
                "pending": [list(part) for part in self._journal.pending(source.durable_end, SHOWN_MAX)],
            }
        return body

    def state(self) -> State:
        """Return where the subscription stands, and what it waits for."""
        source = self.source
        state: State = {
            "ack_timeout_ms": self._subscription.ack_timeout_ms,
            "trimmed": self._trimmed,
            "skipped": self._skipped,
            "missing": self._missing,
            "position": source.next,
            "durable_end": source.durable_end,
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
        if self._journal.is_open:
            state["cursor"] = self._journal.cursor.low
            state["unacknowledged"] = self._journal.cursor.unacknowledged(source.durable_end)
        return state


def _nowhere(missing: NotHereError, answer: NotFetched) -> DamagedError:
    """Return the error for messages that can be read neither here nor from the store."""
    here = "the local log does not have it" if missing.damage is None else missing.damage.text
    error = DamagedError(f"offset {answer.offset} can be read nowhere: {here}; {answer.text}")
    error.first = answer.offset
    error.end = min(missing.until, answer.end) if answer.end > answer.offset else missing.until
    return error
