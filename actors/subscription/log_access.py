"""Access to a topic's log: where the topic stands, and what to do when something cannot be read.

Runs in a worker process, as a part of a Subscription; reads the topic's segment files itself (`actors/source.py`), and
is only told how far they are durable. It owns what is asked of the topic and of the Fetcher, and opens the journal once
it is known where to begin. Which message goes to whom is not decided here.

Invariants
- nothing is read that is not durable at the topic's level
- what only the store has is asked for and waited for; what is damaged is waited at until an operator decides; what
  retention took is counted, and said to the consumers
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from ister.actors.addresses import instance_of
from ister.actors.asking import Asking
from ister.actors.explain import State, Stop
from ister.actors.messages import (
    Ask,
    Attach,
    Attached,
    Detach,
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
from ister.actors.runtime import Address, Ref, Timer, receives
from ister.actors.source import Source
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.parts import Host, SubscriptionPart
from ister.errors import DamagedError, IsterError, RemoteError, StorageError, TrimmedError
from ister.storage.cursor import CursorJournal
from ister.storage.tiered import UNKNOWN, NotHereError, TieredReader
from ister.wire import encode_result
from ister.words import counted

log = logging.getLogger("ister.subscription")

ATTACH_RETRY_S: Final = 1.0  # after the topic failed
SHOWN_MAX: Final = 100  # ranges that are shown

ASKED: Final = 1 << 63  # above every offset

T = TypeVar("T")


class _StartUnknownError(Exception):
    """Nobody knows yet where the topic begins."""


class LogAccess(SubscriptionPart):
    """The log of one topic, as one subscription reads it.

    `open_reader(offset)` opens a reader of the topic's segments. `in_catalogue`: others know of the subscription, and
    forget it where it cannot begin; else (a reader) a place that the log has counts also where the store has lost it.
    `refuses(error)` says whether damage only concerns somebody who wanted to go there.
    """

    def __init__(
        self,
        subscription: Host,
        journal: CursorLog,
        *,
        topic_ref: Ref,
        directory: Ref,
        fetcher: Ref,
        open_reader: Callable[[int], TieredReader],
        in_catalogue: bool = True,
    ) -> None:
        self._subscription = subscription
        self._topic, self._name = subscription.topic.name, subscription.meta.name
        self._journal = journal
        self._topic_ref = topic_ref
        self._directory = directory
        self._fetcher = fetcher
        self._in_catalogue = in_catalogue
        self.source = Source(self._topic, open_reader, self._skip)
        self.refuses: Callable[[DamagedError], bool] = lambda _error: False
        self._attached_as: Attached | None = None
        self._asking = Asking()  # the topic
        self._attach_timer: Timer | None = None
        self._fetching: NotHereError | None = None  # what is being brought back
        self._fetching_since_ms = 0
        self._fetch_trouble = ""
        self._fetch_timer: Timer | None = None
        self._fetch_asking = Asking()  # the Fetcher, for that
        self._fetched = (-1, 0)  # the offset that was brought last, and the download that it came in
        self._begun_behind = 0  # what was missing where the subscription was to begin ends here
        self._stalled: Notice | None = None  # at damage, until an operator decides
        self._stalled_at = ASKED  # the offset, if the store was not asked for it
        self._trimmed = 0
        self._skipped = 0
        self._missing = 0

    # ---- the topic ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask the topic how far it is durable."""
        self._attach()

    def _attach(self) -> None:
        """Attach to the topic, now and again: mail is no promise, neither this nor the last word of the topic."""
        self._topic_ref.tell(Attach(self._subscription.address, self._subscription.topic))
        self.source.rest()
        self._attach_in(self._asking.asked())

    def _attach_in(self, seconds: float) -> None:
        if self._attach_timer is not None:
            self._attach_timer.cancel()
        self._attach_timer = self._subscription.call_later(seconds, self._attach)

    def stop(self) -> None:
        """Let go of the log's files."""
        self.source.release()

    def erase(self) -> None:
        """Be told nothing more by the topic."""
        self.detach()

    def detach(self) -> None:
        """Be told nothing more by the topic."""
        self._topic_ref.tell(Detach(self._subscription.address))

    def node_started(self, started: NodeStarted) -> None:
        """Ask the topic's process, and the tier, once more: they know nothing."""
        if started.node == self._topic_ref.address.node:
            self._attach()
        if started.node == self._fetcher.address.node:
            self._fetch_again()

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Fix the start when the subscription is new, and read on from the cursor."""
        self._attached_as = attached
        self._attach_in(self._asking.answered())
        self.source.stored(UNKNOWN if attached.stored_end is None else attached.stored_end)
        if self._stalled is not None and self._stalled_at < self.source.stored_end:
            self._read_again()  # the store was not asked for it
        if not self._journal.is_open:
            self.source.reaches(attached.durable_end)
            try:
                self._journal.open(
                    lambda: self._start(attached),
                    lambda journal: self._fit(journal, max(attached.durable_end, attached.log_end)),
                )
            except _StartUnknownError:
                return  # the topic tells it once the store has told the topic
            except NotHereError as error:  # sought by time: the store must be asked
                self.fetch(error)
                return
            except IsterError as error:
                self._subscription.become_failed(error)
                if error.code == "offset-out-of-range" and self._in_catalogue:
                    self._undo_creation()
                return
            self.source.begin(self._journal.cursor.low)
            self._subscription.opened()
        self.source.advance(attached.durable_end)
        self._subscription.become_ready()
        self._journal.tell_consumed()  # to a topic that was started again
        if attached.start_offset is not None:
            self.on_trimmed(Trimmed(attached.start_offset))
        self._subscription.wake()

    def _start(self, attached: Attached) -> int:
        start = self._subscription.meta.start
        if start == "latest":
            return attached.durable_end
        if attached.start_offset is None:
            raise _StartUnknownError
        self.source.begins(attached.start_offset)
        return self.position_of(str(start))

    def position_of(self, place: str) -> int:
        """Return the offset that "earliest", "latest", digits or "time:<unix ms>" mean now.

        Raises RemoteError offset-out-of-range, and for a time what reading raises.
        """
        start, end = self.source.history_start, self.source.durable_end
        if place == "latest":
            return end
        if place == "earliest":
            return start
        kind, _, number = place.rpartition(":")
        if kind == "time":
            return self.source.offset_at(int(number), start)
        offset = int(place)
        known = self._attached_as
        if not self._in_catalogue and known is not None and end < offset <= known.log_end:
            return offset  # it was delivered once; there a reader waits until the store has it again
        if not start <= offset <= end:
            raise RemoteError(
                "offset-out-of-range",
                f"offset {offset} is not in topic {self._topic!r}, which has {start} to {end}",
            )
        return offset

    def _fit(self, journal: CursorJournal, end: int) -> None:
        """Take back what was acknowledged of messages that a power failure took from the topic's log.

        Their offsets are given out again, and who gets them must not be taken for acknowledged. Raises DamagedError
        where the topic promised that nothing of the kind can happen.
        """
        cursor = (
            journal.cursor
        )  # with durability cloud ahead of what may be delivered, if the store lost objects
        reached = max(cursor.low, cursor.ranges.end or 0)
        if reached <= end:
            return
        text = f"the log of topic {self._topic!r} ends at offset {end}, but {reached} was acknowledged"
        if self._subscription.topic.durability != "os":
            journal.close()
            raise DamagedError(text)
        log.warning("subscription %s: %s", self._name, text)
        journal.seek(min(cursor.low, end))
        for first, stop in cursor.ranges:
            journal.note(first, min(stop, end))

    def _undo_creation(self) -> None:
        """A subscription that cannot begin where it was to was never there: its name is free for another start."""
        # by then another may have the name
        instance = instance_of(self._subscription.topic, self._subscription.meta)
        arguments = encode_result({"topic": self._topic, "subscription": self._name, "instance": instance})
        nobody = Address(self._subscription.system.node, "nobody")
        self._directory.tell(Ask("subscription.delete", arguments, nobody, 0))

    def topic_failed(self, failed: TopicFailed) -> None:
        """Go on with what is durable; before that is known, say why nobody can be served."""
        error = RemoteError(failed.code, failed.text)
        if not self._subscription.is_ready:
            self._subscription.become_failed(error)
        if error.action == "retry":
            self._asking.answered()
            self._attach_in(ATTACH_RETRY_S)

    @receives(Trimmed)
    def on_trimmed(self, trimmed: Trimmed) -> None:
        """Go on behind what retention took; what was not acknowledged of it is said to the consumers, and counted."""
        if not self._journal.is_open:
            return
        start = trimmed.start_offset
        if self._fetching is not None and self._fetching.offset < start:
            self._fetching = None
            self._subscription.call_soon(self._subscription.may_read)  # whatever waits for it looks again
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
            log.warning("subscription %s of %s: %s", self._name, self._topic, text)
            self.count_trimmed(lost, text, low)
        self._subscription.wake()

    @receives(Durable)
    def on_durable(self, durable: Durable) -> None:
        """More may be delivered."""
        if self.source.advance(durable.durable_end):
            self._subscription.wake()

    # ---- what cannot be read ------------------------------------------------------------------------------------

    def read(self, step: Callable[[], T]) -> T | None:
        """Do what reads, and what is to be done where that fails; None where it is to be tried again later."""
        while self._stalled is None and self._fetching is None and self._subscription.failure is None:
            try:
                return step()
            except NotHereError as error:
                self.fetch(error)
            except TrimmedError as error:  # the topic is about to say so
                if error.end <= self._journal.cursor.low:
                    self._halt(error)
                    return None
                self.on_trimmed(Trimmed(error.end))
            except DamagedError as error:
                self._stall(error)
            except StorageError as error:
                self._halt(error)
        return None

    def fetch(self, missing: NotHereError) -> None:
        """Have a segment brought back from the store; meanwhile nothing is delivered."""
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
        """Mail is no promise: ask once more."""
        if self._fetching is not None:
            self.fetch(self._fetching)

    @receives(Fetched)
    def on_fetched(self, fetched: Fetched) -> None:
        """Read on."""
        self.source.brought(fetched.base)
        if self._fetching is not None and fetched.offset == self._fetching.offset:
            self._fetching = None
            self._fetched = (fetched.offset, fetched.copy)
            self._subscription.may_read()

    @receives(NotFetched)
    def on_not_fetched(self, answer: NotFetched) -> None:
        """Go on behind what retention took in the store; wait for a store that is away; stop at what is nowhere."""
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
            if not self._journal.is_open:  # the place where to begin cannot be found
                self._subscription.become_failed(error)
                return
            if missing.damage is None and self._begins_at(answer.offset):
                self._begin_behind(error)
            else:
                self._stall(error)
        self._subscription.may_read()

    def _begins_at(self, offset: int) -> bool:
        """Say whether this is where the subscription was to begin, at the earliest message there is."""
        if self._subscription.meta.start != "earliest" or not self._journal.is_open:
            return False
        cursor = self._journal.cursor
        return offset == cursor.low == max(cursor.start, self._begun_behind) and not cursor.ranges

    def _begin_behind(self, error: DamagedError) -> None:
        """Begin with the earliest message there is, and say what should have been there before it."""
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
        log.error("subscription %s of %s: %s", self._name, self._topic, text)
        self._subscription.notify(Notice("missing", lost, text, first))

    def may_read(self) -> None:
        """Find out where to begin, if that could not be read."""
        if not self._journal.is_open and self._attached_as is not None:
            self.on_attached(self._attached_as)

    def forget(self) -> None:
        """Wait for nothing of where the subscription was."""
        self._stalled = None
        self._fetching = None

    def _halt(self, error: StorageError) -> None:
        """Serve nobody any more, and say why."""
        log.error("subscription %s of %s stops: %s", self._name, self._topic, error.text)
        self._subscription.evict_all(error.code, error.text)

    def _stall(self, error: DamagedError) -> None:
        """Deliver nothing more until an operator decides; acknowledgments of what was delivered go on."""
        if self.refuses(error):
            return
        first, end = error.first or 0, error.end or 0
        self._stalled_at = ASKED if first < self.source.stored_end else first
        what = f"offsets {first} to before {end} of topic {self._topic!r} are damaged, nothing is skipped by itself"
        text = f"{what} ({error.text}); to go on behind them: ister topic repair {self._topic} --skip-damaged"
        log.error("subscription %s of %s waits: %s", self._name, self._topic, text)
        self._topic_ref.tell(FoundDamage(first, end, error.text, self._stalled_at == ASKED))
        self._stalled = Notice("log-damaged", end - first, text, first)
        self._subscription.tell_all(self._stalled)

    def greet(self, consumer: Ref) -> None:
        """Tell a consumer that comes what those who are here were told."""
        if self._stalled is not None:
            consumer.tell(self._stalled)

    @receives(Repaired)
    def on_repaired(self, _repaired: Repaired) -> None:
        """Read again from where damage stopped it."""
        if self._journal.is_open and self._stalled is not None:
            self._read_again()

    def _read_again(self) -> None:
        self._stalled = None
        self.source.reopen()
        self._subscription.may_read()

    def _skip(self, skipped: list[tuple[int, int]]) -> None:
        """Take what a reader jumped over as done, and say so: an operator decided it."""
        for first, end in skipped:
            lost = self._journal.finish(first, end)
            if lost:
                self._skipped += lost
                text = (
                    f"an operator decided to skip {counted(lost, 'damaged message')} from offset {first} on"
                )
                log.warning("subscription %s of %s: %s", self._name, self._topic, text)
                self._subscription.notify(Notice("skipped", lost, text, first))

    @property
    def fetches(self) -> bool:
        """Whether something is being brought back from the store."""
        return self._fetching is not None

    def count_trimmed(self, messages: int, text: str, first: int) -> None:
        """Say to the consumers that retention took messages which they were to get."""
        self._trimmed += messages
        self._subscription.notify(Notice("trimmed", messages, text, first))

    # ---- what is said of it -------------------------------------------------------------------------------------

    def description(self) -> Mapping[str, Any]:
        """Say where the subscription stands in the log, and what was not to be had of it."""
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
        """Say where the subscription stands, and what it waits for."""
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
    """Return the error for what can be read neither here nor from the store."""
    here = "the local log does not have it" if missing.damage is None else missing.damage.text
    error = DamagedError(f"offset {answer.offset} can be read nowhere: {here}; {answer.text}")
    error.first = answer.offset
    error.end = min(missing.until, answer.end) if answer.end > answer.offset else missing.until
    return error
