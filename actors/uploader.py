"""Uploaders: one per reliable topic. Each uploads sealed segments and cursors to the store, and keeps a watermark.

Runs in the tier process. `storage/upload.py` has the protocol with the store, `ister.storage.tier.UploadPlan` the
order of uploads; this file adds threads, times and retries.

Invariants
- the watermark only grows over a contiguous prefix: everything below it is in the store, and counts
- a writer that is fenced uploads nothing more, and tells its topic whenever that asks
- nothing is claimed before the topic has said what it has, this fits what the store has, and the Directory has said
  that the topic exists
- retention trims the store by the settings the Directory has at that moment, and not before they are in the store
- a topic's objects are deleted once nothing is in transit to the store any more, so that nothing reappears, and only
  while the topic belongs to this broker there (`storage/erase.py`)
- an unavailable store delays uploads, and nothing else; retries have growing waits with jitter
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ister.actors.messages import (
    Answer,
    Consult,
    Describe,
    Erased,
    EraseStored,
    Fenced,
    ForgetCursor,
    Governs,
    KeepTopic,
    Retain,
    Sealed,
    StoreCursor,
    Survey,
    Surveyed,
    UploadDelayed,
    Uploaded,
    UploadsStopped,
)
from ister.actors.runtime import Address, LoopActor, Ref, System, Timer, receives
from ister.actors.threads import Purpose
from ister.errors import IsterError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.storage.erase import NotOwnerError, erase
from ister.storage.history import History, Piece, StoredSegment
from ister.storage.retention import Retention, retention_of, trim_point
from ister.storage.segment import SegmentInfo
from ister.storage.store import ObjectStore
from ister.storage.tier import Layout, UploadPlan
from ister.storage.upload import (
    AheadError,
    Claim,
    FencedError,
    check_joins,
    claim,
    drop_cursors,
    list_history,
    lost_below,
    own_settings,
    put_cursor,
    put_segment,
    put_settings,
    put_stored,
    stored_subscriptions,
    trim,
)
from ister.wire import encode_result
from ister.words import counted

log = logging.getLogger("ister.uploader")

T = TypeVar("T")

JITTER: Final = (
    0.25  # a quarter around each wait, so that a thousand topics do not return to a store together
)
GAPS_TOLD_MAX: Final = 1000  # ranges; more of them tell nobody more
TRIM_CHECK_S: Final = 5.0  # how late the store's history may be cut
TRIM_AGAIN_S: Final = 60.0  # between two cuts: each is an object, and paid for
CURSORS_GATHER_S: Final = 0.1  # what comes together is stored together
CONSULT_AGAIN_S: Final = 5.0  # mail can be lost: what the Directory has not answered is asked again
FAREWELL_S: Final = (
    3.0  # what all Uploaders together may take to store the last cursors when the broker stops
)


class Farewell:
    """The time that is left, once the process stops, to store what is not stored yet."""

    def __init__(self, budget_s: float = FAREWELL_S) -> None:
        self.left_s = budget_s


class Uploader(LoopActor):
    """Brings one topic to the store; `retry_ms` bounds the wait after a failure, which doubles.

    `directory` says what the catalogue has; `broker` is the name under which topics are this broker's in the store.
    """

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        store: ObjectStore,
        *,
        directory: Ref,
        broker: str,
        farewell: Farewell,
        parallel: int,
        retry_ms: tuple[int, int],
    ) -> None:
        super().__init__(system, path)
        self._topic = topic
        self._store = store
        self._directory = directory
        self._broker = broker
        self._farewell = farewell
        self._parallel = parallel
        self._retry_s = (retry_ms[0] / 1000, retry_ms[1] / 1000)
        self._wait_s = self._retry_s[0]
        self._identity = system.random.randbytes(16).hex()
        self._claim: Claim | None = None
        self._claiming = False
        self._plan: UploadPlan | None = None  # known once the store was listed
        self._pieces: list[Piece] = []  # what the store has, by offset
        self._begin = 0  # where the local log begins
        self._log_end: int | None = None  # up to where it is sealed, once the topic has said so
        self._under_way = 0  # calls to the store
        self._start = 0  # what is below was dropped from the store on purpose
        self._gaps: tuple[tuple[int, int], ...] = ()  # missing in the store above that, for good
        self._sealed: dict[int, SegmentInfo] = {}
        self._damaged: dict[
            int, SegmentInfo
        ] = {}  # of the local log: what is left of them is uploaded as well
        self._missing: tuple[tuple[int, int], ...] = ()  # in no segment of the local log, for good
        self._reply: Ref | None = None
        self._waiting = False
        self._stopped: IsterError | None = None  # why nothing is uploaded any more
        self._erase_for: Ref | None = None  # the topic is deleted: who is told when its objects are, too
        self._erasing = False
        self._not_ours = False  # whatever the store has of it
        self._governed = False  # the Directory has said what the catalogue has
        self._consulting: Timer | None = None
        self._stored_settings: dict[str, Any] | None = None  # what the store has, where that is known
        self._settings_number = 0
        self._storing_settings = False
        self._settings_asked: list[tuple[Address, int]] = []  # who is told once the store has them
        self._acknowledged: int | None = None
        self._trimming = False
        self._trimmed_once = False  # since then nobody else has objects there that are to go
        self._trim_again_s = 0.0
        self._trim_due = False  # once the Directory has said by which settings
        self._cursors: dict[str, tuple[SubscriptionMeta, bytes]] = {}  # to be stored with the next round
        self._forgotten: set[str] = set()  # and to be deleted before
        self._stored_cursors: dict[
            str, str
        ] = {}  # by subscription: the name of its only one, where that is known
        self._looked = False  # for cursors of subscriptions that no longer exist
        self._strangers: set[str] = set()  # have cursors in the store: does the catalogue have them?
        self._cursor_number = 0
        self._storing_cursors = False
        self._cursor_timer: Timer | None = None
        self.failure: str | None = None
        self.uploaded_segments = 0
        self.uploaded_bytes = 0

    def on_start(self) -> None:
        """Claim the topic's next epoch, and learn how far the store has it."""
        self.call_later(TRIM_CHECK_S, self._trim_round)

    # ---- claiming -----------------------------------------------------------------------------------------------

    def _claim_first(self) -> bool:
        """Say whether an epoch is ours; if not, begin to claim one."""
        end = self._log_end
        if self._claim is None and end is not None and not (self._claiming or self._waiting or self._ended):
            if not self._governed:
                self._consult()
                return False
            self._claiming = True
            begin = min(self._sealed, default=self._begin)
            log_segments = tuple(self._sealed.values())

            def check(history: History) -> None:
                check_joins(self._topic, history, log_segments, end)

            self._do(
                lambda: claim(self._store, self._topic, self._identity, begin, check, broker=self._broker),
                self._claimed,
                self._claim_failed,
            )
        return self._claim is not None

    @property
    def _ended(self) -> bool:
        return self._stopped is not None or self._erase_for is not None

    def _claimed(self, claimed: Claim) -> None:
        self._claiming = False
        history: History = claimed.history
        try:  # once more, with what the topic has said meanwhile
            check_joins(
                self._topic, history, tuple(self._sealed.values()), max(self._log_end or 0, history.end)
            )
        except FencedError as error:
            self._failed("the local log does not fit the store", error)
            return
        self._claim = claimed
        self._pieces = pieces_below(history, claimed.start)
        self._start = history.trimmed
        self._gaps = lost_below(history, claimed.start)
        self._plan = UploadPlan(claimed.start, self._parallel)
        self._pass_gaps()
        log.info(
            "topic %s: epoch %d is ours; the store has offsets %d to %d%s",
            self._topic.name,
            claimed.epoch,
            history.start,
            claimed.start,
            f" without {list(self._gaps)}" if self._gaps else "",
        )
        self._settled()
        self._store_settings()
        self._cursors_soon()
        self._look_for_strangers()
        self._go_on()

    def _claim_failed(self, error: BaseException) -> None:
        self._claiming = False
        self._failed("an epoch could not be claimed", error)

    @receives(KeepTopic)
    def on_keep_topic(self, command: KeepTopic) -> None:
        """Enter the topic, claim it, and say what the store has of it."""
        self._begin = command.start
        self._log_end = max(command.end, self._log_end or 0)
        if command.reply is not None:
            self._reply = self.system.at(command.reply)
        if self._stopped is not None:
            self._say_stopped()
        elif self._claim_first():
            self._settled()

    # ---- the catalogue's word -----------------------------------------------------------------------------------

    def _consult(self) -> None:
        """Ask the Directory what the catalogue has, until it answers."""
        if self._consulting is None:
            self._directory.tell(Consult(self._topic.name, self._topic.incarnation, self.address))
            self._consulting = self.call_later(CONSULT_AGAIN_S, self._consult_again)

    def _consult_again(self) -> None:
        self._consulting = None
        self._consult()

    @receives(Governs)
    def on_governs(self, command: Governs) -> None:
        """Go by what the catalogue has, and let the store have it too."""
        if self._consulting is not None:
            self._consulting.cancel()
            self._consulting = None
        if self._erase_for is not None:
            return
        if command.topic is None:  # deleted; whoever erases it starts another Uploader
            log.info("topic %s is no longer in the catalogue: it is not uploaded", self._topic.name)
            self._claim = None
            self.stop()
            return
        self._topic, self._governed = command.topic, True
        if command.reply is not None:
            self._settings_asked.append((command.reply, command.ticket))
        self._forgotten |= self._strangers - set(command.subscriptions)
        self._strangers.clear()
        self._cursors_soon()
        if self._stopped is None:
            self._store_settings()
            if self._trim_due:
                self._trim()
            self._go_on()

    def _store_settings(self) -> None:
        """Let the store have the topic's settings, if it has others; then say so to whoever waits for that."""
        if (
            self._claim is None
            or self._storing_settings
            or self._waiting
            or self._ended
            or not self._governed
        ):
            return
        topic, epoch, number = self._topic, self._claim.epoch, self._settings_number
        if self._stored_settings == own_settings(topic):
            asked, self._settings_asked = self._settings_asked, []
            for reply, ticket in asked:
                self.system.at(reply).tell(Answer(ticket, encode_result({})))
            return
        self._storing_settings = True
        self._settings_number += 1  # of a try that failed nobody knows whether it is there

        def stored(_: None) -> None:
            self._storing_settings = False
            self._stored_settings = own_settings(topic)
            self._store_settings()

        def failed(error: BaseException) -> None:
            self._storing_settings = False
            self._failed("its settings were not stored", error)

        self._do(lambda: put_settings(self._store, topic, epoch, number), stored, failed)

    def _look_for_strangers(self) -> None:
        """Find cursors of subscriptions that were deleted while nobody could tell us."""

        def found(names: set[str]) -> None:
            self._looked = True
            self._strangers = names - self._cursors.keys()
            if self._strangers:
                self._consult()

        self._do(
            lambda: stored_subscriptions(self._store, self._topic),
            found,
            lambda error: self._failed("its cursors were not listed", error),
        )

    # ---- segments -----------------------------------------------------------------------------------------------

    @receives(Sealed)
    def on_sealed(self, command: Sealed) -> None:
        """Note segments that can be uploaded."""
        self._reply = self.system.at(command.reply)
        if self._stopped is not None:
            self._say_stopped()
            return
        for segment in command.damaged:
            if self._plan is None or segment.end > self._plan.watermark:
                self._damaged[segment.base] = segment
            self._log_end = max(segment.end, self._log_end or 0)
        for segment in command.segments:
            if self._plan is None or segment.end > self._plan.watermark:
                self._sealed[segment.base] = segment
            self._log_end = max(segment.end, self._log_end or 0)
        if self._claim is not None:
            try:
                check_joins(self._topic, self._claim.history, command.segments, self._claim.history.end)
            except FencedError as error:
                self._failed("the local log does not fit the store", error)
                return
        self._missing = command.missing
        self._go_on()
        if self._plan is not None:
            self._pass_gaps()
            self._settled()

    def _go_on(self) -> None:
        if self._erase_for is not None:
            self._erase()
            return
        if self._waiting or self._stopped is not None or not self._claim_first():
            return
        assert self._plan is not None
        assert self._claim is not None
        sealed = sorted((self._damaged | self._sealed).values(), key=lambda segment: segment.base)
        while (segment := self._plan.next(sealed)) is not None:
            self._plan.begin(segment)
            self._upload(segment, self._claim.epoch)

    def _upload(self, segment: SegmentInfo, epoch: int) -> None:
        assert self._claim is not None
        damaged, history = segment.base in self._damaged, self._claim.history

        def work() -> bool:
            """Return whether the store has no more than what is left here."""
            if damaged and put_stored(self._store, self._topic, epoch, segment, self._identity, history):
                return False
            put_segment(self._store, self._topic, epoch, segment, self._identity, damaged=damaged)
            return damaged

        self._do(
            work,
            lambda partly: self._uploaded(segment, epoch, partly),
            lambda error: self._upload_failed(segment, error),
            Purpose.UPLOADS,
        )

    def _uploaded(self, segment: SegmentInfo, epoch: int, partly: bool) -> None:
        assert self._plan is not None
        self._wait_s, self.failure = self._retry_s[0], None
        self.uploaded_segments += 1
        self.uploaded_bytes += segment.bytes
        assert self._claim is not None
        first = max(segment.base, self._claim.start)
        name = Layout(self._topic.name, self._topic.incarnation).segment(segment.base, epoch)
        piece = piece_of(segment, name, first, epoch, damaged=partly)
        insort(self._pieces, piece, key=lambda each: each.start)
        self._plan.done(segment.base, segment.end)
        self._pass_gaps()
        self._settled()
        self._go_on()

    def _pass_gaps(self) -> None:
        """Continue behind what the log has lost: nothing will ever be uploaded of it."""
        assert self._plan is not None
        for first, end in self._missing:
            if first <= (watermark := self._plan.watermark) < end:
                log.error("topic %s: offsets %d to before %d are lost", self._topic.name, watermark, end)
                self._gaps = (*self._gaps, (watermark, end))
                self._plan.go_on_behind(end)

    def _upload_failed(self, segment: SegmentInfo, error: BaseException) -> None:
        assert self._plan is not None
        self._plan.failed(segment.base)
        self._failed(f"{segment.path} was not uploaded", error)

    def _say_stopped(self) -> None:
        if self._reply is None or self._stopped is None:
            return
        if isinstance(self._stopped, FencedError):
            self._reply.tell(Fenced(str(self._stopped), None))
        else:
            self._reply.tell(UploadsStopped(self.failure or str(self._stopped)))

    def _settled(self) -> None:
        assert self._plan is not None
        watermark = self._plan.watermark
        for base in [base for base, segment in self._sealed.items() if segment.end <= watermark]:
            del self._sealed[base]
        self._damaged = {base: each for base, each in self._damaged.items() if each.end > watermark}
        if self._reply is not None:
            partly = tuple((piece.start, piece.end) for piece in self._pieces if piece.segment.damaged)
            self._reply.tell(
                Uploaded(self._start, watermark, self._gaps[:GAPS_TOLD_MAX], partly[:GAPS_TOLD_MAX])
            )

    @receives(Survey)
    def on_survey(self, command: Survey) -> None:
        """Look what the store has now: objects may have been deleted by somebody else."""
        reply = self.system.at(command.reply)
        plan = self._plan
        if plan is None or self._ended:
            reply.tell(Surveyed(self.failure or "the store has not been listed yet"))
            return
        layout, end = Layout(self._topic.name, self._topic.incarnation), plan.watermark

        def listed(history: History) -> None:
            self._gaps = lost_below(history, end)
            self._start = max(self._start, history.trimmed)
            self._settled()
            reply.tell(Surveyed(""))

        def failed(error: BaseException) -> None:
            reply.tell(Surveyed(f"the store could not be listed: {error}"))

        self._do(lambda: list_history(self._store, layout).history, listed, failed)

    # ---- retention ----------------------------------------------------------------------------------------------

    @receives(Retain)
    def on_retain(self, command: Retain) -> None:
        """Note what all subscriptions are done with; of settings that are news the Directory is asked."""
        self._acknowledged = command.acknowledged
        if command.topic.settings != self._topic.settings:
            self._consult()

    def _trim_round(self) -> None:
        self.call_later(TRIM_CHECK_S, self._trim_round)
        if self.clock.monotonic() >= self._trim_again_s and self._trim_point() > self._start:
            self._trim_due = True
            self._consult()

    def _trim_point(self) -> int:
        """Return the offset below which the store's history may go, by the settings that the store has too."""
        retention: Retention = retention_of(self._topic)
        if self._plan is None or self._claim is None or self._trimming or self._ended or not retention:
            return 0
        if self._stored_settings != own_settings(self._topic):
            return 0
        stored = [
            SegmentInfo(
                piece.segment.name,
                piece.start,
                piece.end,
                piece.segment.bytes,
                piece.segment.first_timestamp_ms,
                piece.segment.last_timestamp_ms,
                piece.end - piece.start,
                0,
            )
            for piece in self._pieces
            if piece.end <= self._plan.watermark
        ]
        return trim_point(
            stored,
            retention,
            now_ms=self.clock.time_ms(),
            acknowledged=self._acknowledged,
            floor=self._plan.watermark,
        )

    def _trim(self) -> None:
        """Cut the store's history."""
        self._trim_due = False
        point = self._trim_point()
        if point <= self._start:
            return
        assert self._claim is not None
        self._trimming = True
        self._trim_again_s = self.clock.monotonic() + TRIM_AGAIN_S
        epoch, known = self._claim.epoch, None
        if self._trimmed_once:
            layout = Layout(self._topic.name, self._topic.incarnation)
            known = [piece.segment.name for piece in self._pieces if piece.segment.end <= point]
            known.append(layout.trimmed(self._start))

        def trimmed(dropped: int) -> None:
            self._trimming, self._trimmed_once = False, True
            log.info(
                "topic %s: the store's history now begins at %d (%s)",
                self._topic.name,
                point,
                counted(dropped, "object"),
            )
            self._start = point
            self._gaps = tuple((max(first, point), end) for first, end in self._gaps if end > point)
            self._pieces = [piece for piece in self._pieces if piece.end > point]
            self._settled()

        def failed(error: BaseException) -> None:
            self._trimming, self._trimmed_once = False, False  # what is left is found by a listing
            self._failed("its history was not cut", error)

        self._do(lambda: trim(self._store, self._topic, epoch, point, known), trimmed, failed)

    # ---- cursors ------------------------------------------------------------------------------------------------

    @receives(StoreCursor)
    def on_store_cursor(self, command: StoreCursor) -> None:
        """Keep a cursor for the next round."""
        journal = b"".join(bytes(frame) for frame in command.journal)
        self._cursors[command.subscription.name] = (command.subscription, journal)
        self._cursors_soon()

    @receives(ForgetCursor)
    def on_forget_cursor(self, command: ForgetCursor) -> None:
        """Delete what the store has of a subscription."""
        self._cursors.pop(command.subscription, None)
        self._stored_cursors.pop(command.subscription, None)
        self._forgotten.add(command.subscription)
        self._cursors_soon()

    def _cursors_soon(self) -> None:
        if self._cursor_timer is None and (self._cursors or self._forgotten):
            self._cursor_timer = self.call_later(CURSORS_GATHER_S, self._cursor_round)

    def _cursor_round(self) -> None:
        self._cursor_timer = None
        if not (self._cursors or self._forgotten) or self._storing_cursors or self._waiting or self._ended:
            return  # what ends looks again
        if not self._claim_first():
            return
        assert self._claim is not None
        self._storing_cursors = True
        cursors, self._cursors = self._cursors, {}
        forgotten, self._forgotten = self._forgotten, set()
        work = self._cursor_work(cursors, forgotten)

        def stored(names: dict[str, str]) -> None:
            self._storing_cursors = False
            self._cursors_soon()
            self._stored_cursors |= {
                name: stored for name, stored in names.items() if name not in self._forgotten
            }

        def failed(error: BaseException) -> None:
            self._storing_cursors = False
            for name in cursors:  # whether it is there nobody knows
                self._stored_cursors.pop(name, None)
            kept = {name: each for name, each in cursors.items() if name not in self._forgotten}
            self._cursors = kept | self._cursors
            self._forgotten |= forgotten
            self._failed("cursors were not stored", error)

        self._do(work, stored, failed)

    def _cursor_work(
        self, cursors: dict[str, tuple[SubscriptionMeta, bytes]], forgotten: set[str]
    ) -> Callable[[], dict[str, str]]:
        """Return what stores cursors, in any thread, and returns the names of their objects."""
        assert self._claim is not None
        topic, epoch, number = self._topic, self._claim.epoch, self._cursor_number
        before = dict(self._stored_cursors)
        self._cursor_number += 1

        def work() -> dict[str, str]:
            for name in forgotten:  # before a subscription of the same name that is newer
                drop_cursors(self._store, topic, name, epoch)
            return {
                name: put_cursor(self._store, topic, subscription, epoch, number, journal, before.get(name))
                for name, (subscription, journal) in cursors.items()
            }

        return work

    def on_stop(self) -> None:
        """Let the store have the last cursors, if it has answered lately: the broker stops in order."""
        if (
            not (self._cursors or self._forgotten)
            or self._claim is None
            or self._storing_cursors
            or self._waiting
            or self._ended
            or self.failure is not None
            or self._farewell.left_s <= 0
        ):
            return
        began_s = self.clock.monotonic()
        try:
            self._cursor_work(self._cursors, self._forgotten)()
        except IsterError as error:
            log.warning("topic %s: its last cursors were not stored: %s", self._topic.name, error)
        self._farewell.left_s -= self.clock.monotonic() - began_s

    # ---- the end of a topic -------------------------------------------------------------------------------------

    @receives(EraseStored)
    def on_erase(self, command: EraseStored) -> None:
        """Delete everything the store has of the topic, if it is ours there, and stop."""
        self._erase_for = self.system.at(command.reply)
        self._not_ours = command.fenced or isinstance(self._stopped, FencedError)
        self._erase()

    def _erase(self) -> None:
        if self._erasing or self._waiting or self._under_way:
            return
        self._erasing = True
        if self._not_ours:
            self._leave("another broker has it")
            return

        def erased(objects: int) -> None:
            log.info("topic %s: %s deleted from the store", self._topic.name, counted(objects, "object"))
            assert self._erase_for is not None
            self._erase_for.tell(Erased(self._topic))
            self.stop()

        def failed(error: BaseException) -> None:
            if isinstance(error, NotOwnerError):
                self._leave(str(error))
                return
            self._erasing = False
            self._failed("its objects were not deleted", error)

        self._do(lambda: erase(self._store, self._topic, self._broker, self._identity), erased, failed)

    def _leave(self, why: str) -> None:
        """The topic is deleted here alone."""
        log.warning("topic %s was deleted here, and kept in the store: %s", self._topic.name, why)
        assert self._erase_for is not None
        self._erase_for.tell(Erased(self._topic, kept=True))
        self.stop()

    # ---- patience -----------------------------------------------------------------------------------------------

    def _do(
        self,
        work: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
        purpose: Purpose = Purpose.STORE,
    ) -> None:
        def ended(result: T | None, error: BaseException | None) -> None:
            self._under_way -= 1
            if error is None:
                done(result)  # type: ignore[arg-type]
            else:
                failed(error)
            if self._erase_for is not None:
                self._erase()

        self._under_way += 1
        self.offload(work, ended, purpose)

    def _failed(self, what: str, error: BaseException) -> None:
        self.failure = f"{what}: {error}"
        if self._stopped is not None and self._erase_for is None:
            return
        if isinstance(error, AheadError) and self._erase_for is None:
            # Perhaps what the topic said is old, from before this process: it must say so itself.
            log.error("topic %s: %s", self._topic.name, error)
            self._log_end = None
            if self._reply is not None:
                self._reply.tell(Fenced(str(error), error.end))
            return
        if isinstance(error, IsterError) and error.action == "stop" and self._erase_for is None:
            # Fenced, or two truths about one thing: nobody may choose but a person.
            self._stopped = error
            log.critical("uploads of topic %s stop: %s", self._topic.name, self.failure)
            self._say_stopped()
            return
        if self._waiting:
            return
        wait_s = self._wait_s * (1 + JITTER * (2 * self.system.random.random() - 1))
        self._wait_s = min(self._wait_s * 2, self._retry_s[1])
        log.warning("topic %s: %s; trying again in %.1f s", self._topic.name, self.failure, wait_s)
        self._waiting = True
        if self._reply is not None:
            self._reply.tell(UploadDelayed(self.failure))

        def resume() -> None:
            self._waiting = False
            self._store_settings()
            self._cursors_soon()
            if self._claim is not None and not self._looked:
                self._look_for_strangers()
            self._go_on()

        self.call_later(wait_s, resume)

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        body = {
            "topic": self._topic.name,
            "epoch": 0 if self._claim is None else self._claim.epoch,
            "stored_start": self._start,
            "uploaded_end": 0 if self._plan is None else self._plan.watermark,
            "waiting_segments": len(self._sealed),
            "uploaded_segments": self.uploaded_segments,
            "uploaded_bytes": self.uploaded_bytes,
            "failure": self.failure,
        }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))


def pieces_below(history: History, start: int) -> list[Piece]:
    """Return what of a history counts for a writer that continues at `start`."""
    return [
        Piece(piece.segment, piece.start, min(piece.end, start))
        for piece in history.pieces
        if piece.start < start
    ]


def piece_of(segment: SegmentInfo, name: str, first: int, epoch: int, *, damaged: bool = False) -> Piece:
    """Return what a segment that was just uploaded adds to the history."""
    stored = StoredSegment(
        name,
        segment.base,
        segment.end,
        epoch,
        segment.bytes,
        segment.first_timestamp_ms,
        segment.last_timestamp_ms,
        damaged,
    )
    return Piece(stored, first, segment.end)
