"""Subscriptions that read a topic's log: where the topic stands, and what to do when something cannot be read.

Runs in a worker process; reads the topic's segment files itself, and is only told how far they are durable. Which
message goes to whom is decided above (`actors/reliable_subscription.py`).

Invariants
- nothing is read that is not durable at the topic's level
- what only the store has is asked for and waited for; what is damaged is waited at until an operator decides; what
  retention took is counted, and said to the consumers
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ister.actors.asking import Asking
from ister.actors.cadence import Cadence
from ister.actors.cursor_log import CursorLog, OpenJournal
from ister.actors.messages import (
    Ask,
    Attach,
    Attached,
    Confirmed,
    Consumed,
    Durable,
    Fetch,
    Fetched,
    FoundDamage,
    NodeStarted,
    NotFetched,
    Notice,
    Repaired,
    StoreCursor,
    TopicFailed,
    TopicUpdated,
    Trimmed,
)
from ister.actors.runtime import Address, Ref, System, Timer, receives
from ister.actors.source import Source
from ister.actors.subscription import Subscription
from ister.errors import DamagedError, IsterError, RemoteError, StorageError, TrimmedError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.storage.cursor import CursorJournal, encode_journal
from ister.storage.tiered import UNKNOWN, NotHereError, TieredReader
from ister.transport.session import SessionLimits
from ister.wire import encode_result

log = logging.getLogger("ister.subscription")

FETCH_AGAIN_S: Final = 30.0  # a segment that was asked for and has not come is asked for again
ATTACH_RETRY_S: Final = 1.0  # after the topic failed
STORE_FIRST_S: Final = 10.0  # a cursor that moves after a while of rest is in the store about so soon

ASKED: Final = 1 << 63  # above every offset

T = TypeVar("T")


class _StartUnknownError(Exception):
    """Nobody knows yet where the topic begins."""


class LogSubscription(Subscription):
    """A subscription with a cursor, on a topic's segments.

    `open_journal(start)` opens the cursor's journal, which begins at `start()` when it is new; `open_reader(offset)` a
    reader of the topic's segments; `erase` deletes the journal.
    """

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        meta: SubscriptionMeta,
        *,
        limits: SessionLimits,
        ack_timeout_ms: int,
        topic_ref: Ref,
        directory: Ref,
        fetcher: Ref,
        uploader: Ref,
        open_journal: OpenJournal,
        open_reader: Callable[[int], TieredReader],
        erase: Callable[[], None],
        flush_ms: int,
        sync_ms: int,
        store_ms: int,
    ) -> None:
        super().__init__(system, path, topic, meta, limits=limits, ack_timeout_ms=ack_timeout_ms)
        self._topic_ref = topic_ref
        self._directory = directory
        self._fetcher = fetcher
        self._uploader = uploader
        self._erase = erase
        self._log = CursorLog(
            self,
            f"{topic.name}/{meta.name}",
            open_journal,
            flush_ms=flush_ms,
            sync_ms=sync_ms,
            confirmed=self._confirmed,
            synced=self._synced,
        )
        self._source = Source(topic.name, open_reader, self._skip)
        self._attached_as: Attached | None = None
        self._asking = Asking()  # the topic
        self._attach_timer: Timer | None = None
        self._deleted = False
        self._cadence = Cadence(STORE_FIRST_S, store_ms / 1000)
        self._stored: tuple[SubscriptionMeta, bytes] | None = None  # what the store was sent last
        self._store_timer: Timer | None = None
        self._fetching: NotHereError | None = None  # what is being brought back
        self._fetching_since_ms = 0
        self._fetch_trouble = ""
        self._fetch_timer: Timer | None = None
        self._begun_behind = 0  # what was missing where the subscription was to begin ends here
        self._stalled: Notice | None = None  # at damage, until an operator decides
        self._stalled_at = ASKED  # the offset, if the store was not asked for it
        self._message_ttl_ms = int(topic.settings.get("message_ttl_ms", 0))
        self.trimmed = 0
        self.skipped = 0
        self.missing = 0

    def on_start(self) -> None:
        """Ask the topic how far it is durable."""
        self._attach()

    def _attach(self) -> None:
        """Attach to the topic, now and again: mail is no promise, neither this nor the last word of the topic."""
        self._topic_ref.tell(Attach(self.address, self.topic))
        self._source.rest()
        self._attach_in(self._asking.asked())

    def _attach_in(self, seconds: float) -> None:
        if self._attach_timer is not None:
            self._attach_timer.cancel()
        self._attach_timer = self.call_later(seconds, self._attach)

    def on_stop(self) -> None:
        """Write down what was acknowledged, and let go of the log's files."""
        if not self._deleted:
            self._store_cursor()
            self._log.close(write=True)
        self._source.release()

    def on_failure(self, *error: object) -> None:
        """Send the consumers away, and write down what they acknowledged: the next actor reads it."""
        super().on_failure(*error)
        self.on_stop()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell the topic's process, and the tier, once more what they were told: they know nothing."""
        if started.node == self._topic_ref.address.node:
            self._attach()
        if started.node == self._fetcher.address.node:  # it knows nothing of what was asked of it
            self._fetch_again()
            self._stored = None
            self._store_cursor()

    # ---- the topic ----------------------------------------------------------------------------------------------

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Fix the start when the subscription is new, and read on from the cursor."""
        self._attached_as = attached
        self._attach_in(self._asking.answered())
        self._source.stored(UNKNOWN if attached.stored_end is None else attached.stored_end)
        if self._stalled is not None and self._stalled_at < self._source.stored_end:
            self._read_again()  # the store was not asked for it
        if not self._log.is_open:
            self._source.durable_end = max(self._source.durable_end, attached.durable_end)
            try:
                self._log.open(
                    lambda: self._start(attached),
                    lambda journal: self._fit(journal, max(attached.durable_end, attached.log_end)),
                )
            except _StartUnknownError:
                return  # the topic tells it once the store has told the topic
            except NotHereError as error:  # sought by time: the store must be asked
                self._fetch(error)
                return
            except IsterError as error:
                self._become_failed(error)
                if error.code == "offset-out-of-range":
                    self._undo_creation()
                return
            self._source.begin(self._log.cursor.low)
            self._begun()
            self._store_timer = self.call_later(
                0.0, self._store_cursor
            )  # so that the store knows of it at once
        self._source.advance(attached.durable_end)
        self._become_ready()
        self._tell_consumed()  # to a topic that was started again
        if attached.start_offset is not None:
            self.on_trimmed(Trimmed(attached.start_offset))
        self._wake()

    def _start(self, attached: Attached) -> int:
        start = self.meta.start
        if start == "latest":
            return attached.durable_end
        if attached.start_offset is None:
            raise _StartUnknownError
        self._source.history_start = max(self._source.history_start, attached.start_offset)
        return self._position_of(str(start))

    def _position_of(self, place: str) -> int:
        """Return the offset that "earliest", "latest", digits or "time:<unix ms>" mean now.

        Raises RemoteError offset-out-of-range, and for a time what reading raises.
        """
        start, end = self._source.history_start, self._source.durable_end
        if place == "latest":
            return end
        if place == "earliest":
            return start
        kind, _, number = place.rpartition(":")
        if kind == "time":
            return self._source.offset_at(int(number), start)
        offset = int(place)
        if not start <= offset <= end:
            raise RemoteError(
                "offset-out-of-range",
                f"offset {offset} is not in topic {self.topic.name!r}, which has {start} to {end}",
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
        text = f"the log of topic {self.topic.name!r} ends at offset {end}, but {reached} was acknowledged"
        if self.topic.durability != "os":
            journal.close()
            raise DamagedError(text)
        log.warning("subscription %s: %s", self.meta.name, text)
        journal.seek(min(cursor.low, end))
        for first, stop in cursor.ranges:
            journal.note(first, min(stop, end))

    def _undo_creation(self) -> None:
        """A subscription that cannot begin where it was to was never there: its name is free for another start."""
        arguments = encode_result({"topic": self.topic.name, "subscription": self.meta.name})
        nobody = Address(self.system.node, "nobody")
        self._directory.tell(Ask("subscription.delete", arguments, nobody, 0))

    @receives(TopicUpdated)
    def on_topic_updated(self, command: TopicUpdated) -> None:
        """Go by the topic's new settings, which may be the first to ask what is acknowledged."""
        super().on_topic_updated(command)
        self._message_ttl_ms = int(self.topic.settings.get("message_ttl_ms", 0))
        self._tell_consumed()

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """Go on with what is durable; before that is known, say why nobody can be served."""
        error = RemoteError(failed.code, failed.text)
        if not self._ready:
            self._become_failed(error)
        if error.action == "retry":
            self._asking.answered()
            self._attach_in(ATTACH_RETRY_S)

    @receives(Trimmed)
    def on_trimmed(self, trimmed: Trimmed) -> None:
        """Go on behind what retention took; what was not acknowledged of it is said to the consumers, and counted."""
        if not self._log.is_open:
            return
        start = trimmed.start_offset
        if self._fetching is not None and self._fetching.offset < start:
            self._fetching = None
            self.call_soon(self._go_on)  # whatever waits for it looks again
        cursor = self._log.cursor
        low, lost = cursor.low, cursor.unacknowledged(start)
        self._source.trim(start)
        if start <= low:
            return
        self._log.note(low, start)
        self._settled(low, start)
        if lost:
            self.trimmed += lost
            text = (
                f"retention took {lost} messages that were not acknowledged, between offset {low} and {start}"
            )
            log.warning("subscription %s of %s: %s", self.meta.name, self.topic.name, text)
            self._notify(Notice("trimmed", lost, text, low))
        self._wake()

    @receives(Durable)
    def on_durable(self, durable: Durable) -> None:
        """More may be delivered."""
        if self._source.advance(durable.durable_end):
            self._wake()

    def _begun(self) -> None:
        """The cursor is there."""

    def _settled(self, first: int, end: int) -> None:
        """These were acknowledged, or need not be any more."""

    # ---- what cannot be read ------------------------------------------------------------------------------------

    def _read(self, step: Callable[[], T]) -> T | None:
        """Do what reads, and what is to be done where that fails; None where it is to be tried again later."""
        while self._stalled is None and self._fetching is None and self._failure is None:
            try:
                return step()
            except NotHereError as error:
                self._fetch(error)
            except TrimmedError as error:  # the topic is about to say so
                if error.end <= self._log.cursor.low:
                    self._halt(error)
                    return None
                self.on_trimmed(Trimmed(error.end))
            except DamagedError as error:
                self._stall(error)
            except StorageError as error:
                self._halt(error)
        return None

    def _fetch(self, missing: NotHereError) -> None:
        """Have a segment brought back from the store; meanwhile nothing is delivered."""
        if self._fetching is None or self._fetching.offset != missing.offset:
            self._fetching_since_ms, self._fetch_trouble = self.clock.time_ms(), ""
        self._fetching = missing
        self._fetcher.tell(Fetch(self.topic, missing.offset, self.address))
        if self._fetch_timer is not None:
            self._fetch_timer.cancel()
        self._fetch_timer = self.call_later(FETCH_AGAIN_S, self._fetch_again)

    def _fetch_again(self) -> None:
        """Mail is no promise: ask once more."""
        if self._fetching is not None:
            self._fetch(self._fetching)

    @receives(Fetched)
    def on_fetched(self, fetched: Fetched) -> None:
        """Read on."""
        self._source.brought(fetched.base)
        if self._fetching is not None and fetched.offset == self._fetching.offset:
            self._fetching = None
            self._go_on()

    @receives(NotFetched)
    def on_not_fetched(self, answer: NotFetched) -> None:
        """Go on behind what retention took in the store; wait for a store that is away; stop at what is nowhere."""
        missing = self._fetching
        if missing is None or answer.offset != missing.offset:
            return
        if answer.retry:
            self._fetch(missing)
            self._fetch_trouble = answer.text
            return
        self._fetching = None
        if answer.offset < answer.start:
            self._source.history_start = max(self._source.history_start, answer.start)
            self.on_trimmed(Trimmed(answer.start))
        else:
            error = _nowhere(missing, answer)
            if not self._log.is_open:  # the place where to begin cannot be found
                self._become_failed(error)
                return
            if missing.damage is None and self._begins_at(answer.offset):
                self._begin_behind(error)
            else:
                self._stall(error)
        self._go_on()

    def _begins_at(self, offset: int) -> bool:
        """Say whether this is where the subscription was to begin, at the earliest message there is."""
        if self.meta.start != "earliest" or not self._log.is_open:
            return False
        cursor = self._log.cursor
        return offset == cursor.low == max(cursor.start, self._begun_behind) and not cursor.ranges

    def _begin_behind(self, error: DamagedError) -> None:
        """Begin with the earliest message there is, and say what should have been there before it."""
        first, end = error.first or 0, error.end or 0
        self._topic_ref.tell(FoundDamage(first, end, error.text, True))
        self._begun_behind = end
        lost = self._log.note(first, end)
        self._settled(first, end)
        self.missing += lost
        if self._source.next < end:
            self._source.jump_to(end)
        text = f"{lost} messages from offset {first} on are lost, and the subscription begins behind them: {error.text}"
        log.error("subscription %s of %s: %s", self.meta.name, self.topic.name, text)
        self._notify(Notice("missing", lost, text, first))

    def _go_on(self) -> None:
        """What could not be read may be read now."""
        if not self._log.is_open and self._attached_as is not None:
            self.on_attached(self._attached_as)
        self._wake()

    def _halt(self, error: StorageError) -> None:
        """Serve nobody any more, and say why."""
        log.error("subscription %s of %s stops: %s", self.meta.name, self.topic.name, error.text)
        self._failure = error
        self._evict_all(error.code, error.text)

    def _stall(self, error: DamagedError) -> None:
        """Deliver nothing more until an operator decides; acknowledgments of what was delivered go on."""
        first, end = error.first or 0, error.end or 0
        self._stalled_at = ASKED if first < self._source.stored_end else first
        what = f"offsets {first} to before {end} of topic {self.topic.name!r} are damaged, nothing is skipped by itself"
        text = f"{what} ({error.text}); to go on behind them: ister topic repair {self.topic.name} --skip-damaged"
        log.error("subscription %s of %s waits: %s", self.meta.name, self.topic.name, text)
        self._topic_ref.tell(FoundDamage(first, end, error.text, self._stalled_at == ASKED))
        self._stalled = Notice("log-damaged", end - first, text, first)
        for consumer in self._consumers.values():
            consumer.tell(self._stalled)

    def _greet(self, consumer: Ref) -> None:
        """Tell a consumer that comes what those who are here were told."""
        super()._greet(consumer)
        if self._stalled is not None:
            consumer.tell(self._stalled)

    @receives(Repaired)
    def on_repaired(self, _repaired: Repaired) -> None:
        """Read again from where damage stopped it."""
        if self._log.is_open and self._stalled is not None:
            self._read_again()

    def _read_again(self) -> None:
        self._stalled = None
        self._source.reopen()
        self._go_on()

    def _skip(self, skipped: list[tuple[int, int]]) -> None:
        """Take what a reader jumped over as done, and say so: an operator decided it."""
        for first, end in skipped:
            lost = self._log.note(first, end)
            self._settled(first, end)
            if lost:
                self.skipped += lost
                text = f"{lost} damaged messages from offset {first} on were skipped, as an operator decided"
                log.warning("subscription %s of %s: %s", self.meta.name, self.topic.name, text)
                self._notify(Notice("skipped", lost, text, first))

    # ---- the cursor ---------------------------------------------------------------------------------------------

    def _confirmed(self, key: int, ref: int) -> None:
        if (consumer := self._consumers.get(key)) is not None:
            consumer.tell(Confirmed(ref))

    def _synced(self, _low: int) -> None:
        self._tell_consumed()
        if self._store_timer is None:
            wait_s = self._cadence.wait_s(self.clock.monotonic())
            self._store_timer = self.call_later(wait_s, self._store_cursor)

    def _store_cursor(self) -> None:
        """Let the store have the cursor, if it changed: with the disk lost, what it is behind comes again."""
        if self._store_timer is not None:
            self._store_timer.cancel()
            self._store_timer = None
        if self._log.is_open and not self._deleted:
            journal = encode_journal(self.topic.incarnation, self._log.cursor)
            if self._stored != (self.meta, journal):
                self._stored = (self.meta, journal)
                self._cadence.written(self.clock.monotonic())
                self._uploader.tell(StoreCursor(self.topic, self.meta, (journal,)))

    def _tell_consumed(self) -> None:
        if self.topic.settings.get("retention_acknowledged"):
            self._topic_ref.tell(Consumed(self.meta.name, self._log.synced_low))

    def _description(self) -> dict[str, Any]:
        source = self._source
        body = super()._description()
        body |= {
            "position": source.next,
            "durable_end": source.durable_end,
            "trimmed": self.trimmed,
            "skipped": self.skipped,
            "missing": self.missing,
            "from_store": source.from_store,
            "from_log": source.from_log,
            "from_live": source.from_live,
            "fetching": None if self._fetching is None else self._fetching.offset,
            "stalled": None if self._stalled is None else self._stalled.text,
            "ack_timeout_ms": self._ack_timeout_ms,
        }
        if self._log.is_open:
            cursor = self._log.cursor
            body |= {
                "cursor": cursor.low,
                "acknowledged_above": cursor.ranges.total,
                "unacknowledged": cursor.unacknowledged(source.durable_end),
            }
        return body


def _nowhere(missing: NotHereError, answer: NotFetched) -> DamagedError:
    """Return the error for what can be read neither here nor from the store."""
    here = "the local log does not have it" if missing.damage is None else missing.damage.text
    error = DamagedError(f"offset {answer.offset} can be read nowhere: {here}; {answer.text}")
    error.first = answer.offset
    error.end = min(missing.until, answer.end) if answer.end > answer.offset else missing.until
    return error
