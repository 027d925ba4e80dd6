"""Uploaders: one per reliable topic. Each uploads sealed segments and cursors to the store, and keeps a watermark.

Runs in the tier process. `storage/claiming.py` and `storage/upload.py` have the protocol with the store,
`ister.storage.layout.UploadPlan` the order of uploads. This file claims the topic and uploads its
segments; its parts own the rest:

    StoreWriter      epoch, calls in progress, retries      StoredHistory    what the store has
    StoredSettings   the topic's settings there             StoredRetention  when its history is trimmed
    StoredCursors    cursors in transit                     StoredErasure    the deletion of its objects

Invariants
- a writer that is fenced uploads nothing more, and tells its topic whenever that asks
- nothing is claimed before the topic has said what it has, this fits what the store has, and the Directory has said
  that the topic exists
- an unavailable store delays uploads, and nothing else
"""

from __future__ import annotations

import logging
from typing import Final

from ister.actors.messages import (
    Answer,
    Consult,
    Describe,
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
from ister.actors.store_writer import StoreWriter
from ister.actors.stored_cursors import Farewell, StoredCursors
from ister.actors.stored_erasure import StoredErasure
from ister.actors.stored_history import StoredHistory, piece_of
from ister.actors.stored_retention import StoredRetention
from ister.actors.stored_settings import StoredSettings
from ister.actors.threads import Purpose
from ister.storage.claiming import Claim, claim, list_history
from ister.storage.continuing import AheadError, FencedError, check_joins
from ister.storage.history import History
from ister.storage.layout import Layout
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectStore
from ister.storage.segment import SegmentInfo
from ister.storage.upload import put_segment, put_stored
from ister.wire import encode_result

log = logging.getLogger("ister.uploader")

CONSULT_AGAIN_S: Final = 5.0  # seconds; mail can be lost: what the Directory has not answered is asked again


class Uploader(LoopActor):
    """Uploads one topic to the store; `retry_ms` bounds the wait after a failure, which doubles.

    `directory` knows what the catalogue has; `broker` is the name under which this broker owns topics in the store.
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
        self._directory = directory
        self._broker = broker
        self._farewell = farewell
        self._parallel = parallel
        writer = self.writer = StoreWriter(self, self, topic, store, retry_ms=retry_ms)
        self._settings = StoredSettings(writer, answer=self._answer)
        self._retention = StoredRetention(
            self, writer, self._settings, consult=self._consult, on_cut=self._settled
        )
        self._erasure = StoredErasure(self, writer, broker)
        self._cursors = StoredCursors(self, writer, claim_first=self._claim_first, consult=self._consult)
        self._history: StoredHistory | None = None  # once the topic is claimed
        self._claiming = False
        self._begin = 0  # where the local log begins
        self._log_end: int | None = None  # up to where it is sealed, once the topic has reported it
        self._sealed: dict[int, SegmentInfo] = {}
        # damaged segments of the local log: what is left of them is uploaded as well
        self._damaged: dict[int, SegmentInfo] = {}
        self._missing: tuple[tuple[int, int], ...] = ()  # in no segment of the local log, permanently
        self._reply: Ref | None = None
        self._governed = False  # the Directory has said what the catalogue has
        self._consulting: Timer | None = None
        self.uploaded_segments = 0
        self.uploaded_bytes = 0

    @property
    def failure(self) -> str | None:
        """The last failure, unless a call succeeded since."""
        return self.writer.failure

    def on_stop(self) -> None:
        """Store the last cursors, if the store has answered lately: the broker stops."""
        self._retention.end()
        self._cursors.store_last(self._farewell)

    # ---- what the writer says -----------------------------------------------------------------------------------

    def writer_is_behind(self, error: AheadError) -> None:
        """Ask the topic to report its log."""
        self._log_end = None
        if self._reply is not None:
            self._reply.tell(Fenced(str(error), error.end))

    def writer_stopped(self) -> None:
        """Tell the topic that nothing more is uploaded."""
        stopped = self.writer.stopped
        if self._reply is None or stopped is None:
            return
        if isinstance(stopped, FencedError):
            self._reply.tell(Fenced(str(stopped), None))
        else:
            self._reply.tell(UploadsStopped(self.writer.failure or str(stopped)))

    def writer_waits(self, why: str) -> None:
        """Tell the topic why the store is behind."""
        if self._reply is not None:
            self._reply.tell(UploadDelayed(why))

    def writer_goes_on(self) -> None:
        """Start again what is to be done."""
        self._settings.store()
        self._retention.look_soon()
        self._cursors.soon()
        if self._history is not None:
            self._cursors.look_for_strangers()
        self._go_on()

    def call_ended(self) -> None:
        """Continue with a deletion that waits for running calls."""
        if self._erasure.asked:
            self._erasure.go_on()

    # ---- claiming -----------------------------------------------------------------------------------------------

    def _claim_first(self) -> bool:
        """Return whether an epoch is claimed; if not, start to claim one."""
        writer, end = self.writer, self._log_end
        if self._history is None and end is not None and not (self._claiming or writer.waits or writer.ended):
            if not self._governed:
                self._consult()
                return False
            self._claiming = True
            begin = min(self._sealed, default=self._begin)
            log_segments = tuple(self._sealed.values())
            topic, store, identity, broker = writer.topic, writer.store, writer.identity, self._broker

            def check(history: History) -> None:
                check_joins(topic, history, log_segments, end, begin)

            writer.do(
                lambda: claim(store, topic, identity, begin, check, broker=broker),
                self._claimed,
                self._claim_failed,
            )
        return self._history is not None

    def _claimed(self, claimed: Claim) -> None:
        self._claiming = False
        writer, listed = self.writer, claimed.history
        try:  # once more, with what the topic has reported meanwhile
            begin, end = min(self._sealed, default=self._begin), max(self._log_end or 0, listed.end)
            check_joins(writer.topic, listed, tuple(self._sealed.values()), end, begin)
        except FencedError as error:
            writer.failed("the local log does not fit the store", error)
            return
        writer.epoch = claimed.epoch
        history = self._history = StoredHistory(writer.topic.name, listed, claimed.start, self._parallel)
        self._retention.claimed(history)
        history.pass_gaps(self._missing)
        log.info(
            "topic %s: claimed epoch %d in the store, which has offsets %d to before %d%s",
            writer.topic.name,
            claimed.epoch,
            listed.start,
            claimed.start,
            f" without {list(history.gaps)}" if history.gaps else "",
        )
        self._settled()
        self._settings.store()
        self._cursors.soon()
        self._cursors.look_for_strangers()
        self._go_on()

    def _claim_failed(self, error: BaseException) -> None:
        self._claiming = False
        self.writer.failed("an epoch could not be claimed", error)

    @receives(KeepTopic)
    def on_keep_topic(self, command: KeepTopic) -> None:
        """Enter the topic in the store, claim it, and report what the store has of it."""
        self._begin = command.start
        self._log_end = max(command.end, self._log_end or 0)
        if command.reply is not None:
            self._reply = self.system.at(command.reply)
        if self.writer.stopped is not None:
            self.writer_stopped()
        elif self._claim_first():
            self._settled()

    # ---- what the catalogue decides -----------------------------------------------------------------------------

    def _consult(self) -> None:
        """Ask the Directory what the catalogue has, until it answers."""
        if self._consulting is None:
            topic = self.writer.topic
            self._directory.tell(Consult(topic.name, topic.incarnation, self.address))
            self._consulting = self.call_later(CONSULT_AGAIN_S, self._consult_again)

    def _consult_again(self) -> None:
        self._consulting = None
        self._consult()

    @receives(Governs)
    def on_governs(self, command: Governs) -> None:
        """Use what the catalogue has, and store it as well."""
        if self._consulting is not None:
            self._consulting.cancel()
            self._consulting = None
        if self._erasure.asked:
            return
        if command.topic is None:  # deleted; whoever erases it starts another Uploader
            log.info("topic %s is no longer in the catalogue: it is not uploaded", self.writer.topic.name)
            self.writer.epoch = self._history = None
            self.stop()
            return
        self.writer.topic, self._governed = command.topic, True
        self._retention.look_soon()
        if command.reply is not None:
            self._settings.ask(command.reply, command.ticket)
        self._cursors.catalogue_has(command.subscriptions)
        if self.writer.stopped is None:
            self._settings.store()
            self._retention.heard()
            self._go_on()

    @receives(Retain)
    def on_retain(self, command: Retain) -> None:
        """Note what all subscriptions are done with; if settings changed, ask the Directory."""
        self._retention.acknowledged = command.acknowledged
        self._retention.look_soon()
        if command.topic.settings != self.writer.topic.settings:
            self._consult()

    # ---- segments -----------------------------------------------------------------------------------------------

    @receives(Sealed)
    def on_sealed(self, command: Sealed) -> None:
        """Note segments that can be uploaded."""
        self._reply = self.system.at(command.reply)
        writer, history = self.writer, self._history
        if writer.stopped is not None:
            self.writer_stopped()
            return
        for known, segments in ((self._damaged, command.damaged), (self._sealed, command.segments)):
            for segment in segments:
                if history is None or segment.end > history.watermark:
                    known[segment.base] = segment
                self._log_end = max(segment.end, self._log_end or 0)
        if history is not None:
            try:
                listed, news = history.listed, command.segments
                begin = min((each.base for each in news), default=None)
                check_joins(writer.topic, listed, news, listed.end, begin)
            except FencedError as error:
                writer.failed("the local log does not fit the store", error)
                return
        self._missing = command.missing
        self._go_on()
        if history is not None:
            history.pass_gaps(self._missing)
            self._settled()

    def _go_on(self) -> None:
        if self._erasure.asked:
            self._erasure.go_on()
            return
        if self.writer.waits or self.writer.stopped is not None or not self._claim_first():
            return
        assert self._history is not None
        plan = self._history.plan
        sealed = sorted((self._damaged | self._sealed).values(), key=lambda segment: segment.base)
        while (segment := plan.next(sealed)) is not None:
            # After a failure one upload tries whether the store is back.
            if self.writer.failure is not None and plan.in_flight:
                return
            plan.begin(segment)
            self._upload(segment, self._history)

    def _upload(self, segment: SegmentInfo, history: StoredHistory) -> None:
        writer, listed = self.writer, history.listed
        topic, store, epoch, identity = writer.topic, writer.store, writer.epoch, writer.identity
        assert epoch is not None
        damaged = segment.base in self._damaged

        def work() -> bool:
            """Return whether the store has no more than what is left here."""
            if damaged and put_stored(store, topic, epoch, segment, identity, listed):
                return False
            put_segment(store, topic, epoch, segment, identity, damaged=damaged)
            return damaged

        def uploaded(partly: bool) -> None:
            writer.worked()
            self.uploaded_segments += 1
            self.uploaded_bytes += segment.bytes
            name = Layout(topic.name, topic.incarnation).segment(segment.base, epoch)
            first = max(segment.base, history.claimed)
            history.uploaded(piece_of(segment, name, first, epoch, damaged=partly))
            history.pass_gaps(self._missing)
            self._settled()
            self._go_on()

        def failed(error: BaseException) -> None:
            history.plan.failed(segment.base)
            writer.failed(f"{segment.path} was not uploaded", error)

        writer.do(work, uploaded, failed, Purpose.UPLOADS)

    def _settled(self) -> None:
        """Forget what the store has, and tell the topic."""
        assert self._history is not None
        watermark = self._history.watermark
        for base in [base for base, segment in self._sealed.items() if segment.end <= watermark]:
            del self._sealed[base]
        self._damaged = {base: each for base, each in self._damaged.items() if each.end > watermark}
        self._retention.look_soon()
        if self._reply is not None:
            self._reply.tell(Uploaded(*self._history.told()))

    @receives(Survey)
    def on_survey(self, command: Survey) -> None:
        """List the store: objects may have been deleted by others."""
        reply = self.system.at(command.reply)
        writer, history = self.writer, self._history
        if history is None or writer.ended:
            reply.tell(Surveyed(writer.failure or "the store has not been listed yet"))
            return
        layout, store = Layout(writer.topic.name, writer.topic.incarnation), writer.store
        end = history.watermark

        def listed(found: History) -> None:
            history.surveyed(found, end)
            self._settled()
            reply.tell(Surveyed(""))

        def failed(error: BaseException) -> None:
            reply.tell(Surveyed(f"the store could not be listed: {error}"))

        writer.do(lambda: list_history(store, layout).history, listed, failed)

    # ---- cursors ------------------------------------------------------------------------------------------------

    @receives(StoreCursor)
    def on_store_cursor(self, command: StoreCursor) -> None:
        """Store a cursor in the next round."""
        self._cursors.keep(command.subscription, b"".join(bytes(frame) for frame in command.journal))

    @receives(ForgetCursor)
    def on_forget_cursor(self, command: ForgetCursor) -> None:
        """Delete a subscription's cursor from the store."""
        self._cursors.forget(command.subscription)

    # ---- the end of a topic -------------------------------------------------------------------------------------

    @receives(EraseStored)
    def on_erase(self, command: EraseStored) -> None:
        """Delete everything the store has of the topic, if it belongs to this broker, and stop."""
        not_ours = command.fenced or isinstance(self.writer.stopped, FencedError)
        self._erasure.ask(self.system.at(command.reply), not_ours=not_ours)

    # ---- the rest -----------------------------------------------------------------------------------------------

    def _answer(self, reply: Address, ticket: int) -> None:
        self.system.at(reply).tell(Answer(ticket, encode_result({})))

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe the Uploader."""
        history = self._history
        body = {
            "topic": self.writer.topic.name,
            "epoch": self.writer.epoch or 0,
            "stored_start": 0 if history is None else history.start,
            "uploaded_end": 0 if history is None else history.watermark,
            "waiting_segments": len(self._sealed),
            "uploaded_segments": self.uploaded_segments,
            "uploaded_bytes": self.uploaded_bytes,
            "failure": self.writer.failure,
        }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))
