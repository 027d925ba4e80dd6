"""Reliable topics: a log, group commit, receipts once durable.

Runs in a worker process, one actor per topic. This file is the topic's conversation with watchers, the tier and
operators; its parts own the state:

    TopicLog     the log: opened, committed, sealed, failed, fenced, deleted
    TopicIntake  batches of producers, and what waits until the log is durable
    CloudSeals   when segments are sealed whose upload receipts wait for
    StoreLink    what the store has, and the conversation with the Uploader
    Upkeep       retention, verification, repair

Invariants
- no receipt is sent, and no subscription told of a message, before the log is durable to that point at the topic's
  level
- a log that failed accepts nothing; what waits for it is refused, with an unknown outcome
- a commit is followed by one receipt frame per producer and one notice per watcher
- changed settings reach the parts, the watchers and the Uploader
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from ister.actors.cloud_seals import CloudSeals
from ister.actors.commits import Commits
from ister.actors.log_state import LogState
from ister.actors.messages import (
    Answer,
    AskFenced,
    Attach,
    Attached,
    CloseProducer,
    Consumed,
    Delete,
    Deposit,
    Describe,
    Detach,
    Durable,
    EraseStored,
    Fenced,
    FoundDamage,
    LogErased,
    NodeStarted,
    OpenProducer,
    Publish,
    Refused,
    Repair,
    Repaired,
    Subscribers,
    Surveyed,
    TopicFailed,
    TopicUpdated,
    Trimmed,
    Update,
    UploadDelayed,
    Uploaded,
    UploadsStopped,
    Verify,
    WhoSubscribes,
)
from ister.actors.next_look import NextLook
from ister.actors.runtime import Ref, System, receives
from ister.actors.sealing import Sealing
from ister.actors.store_link import StoreLink
from ister.actors.store_view import TELL_AGAIN_S
from ister.actors.topic import Topic
from ister.actors.topic_intake import TopicIntake
from ister.actors.topic_log import REST_S, SEAL_CHECK_S, TopicLog
from ister.actors.upkeep import LOST, LogCare, Upkeep
from ister.backoff import BackOff
from ister.errors import DamagedError, IsterError, RemoteError, StorageError
from ister.storage.meta import TopicMeta
from ister.storage.wal import Wal
from ister.transport.gateway import Gateway
from ister.wire import encode_result

log = logging.getLogger("ister.topic")

# How often the Directory is asked for the subscriptions of a topic that is kept until it is acknowledged, while their
# answers change nothing: between these two, doubled each time.
ASK_S_MIN: Final = SEAL_CHECK_S
ASK_S_MAX: Final = 30.0


class ReliableTopic(Topic):
    """A topic whose messages are durable before they are confirmed or delivered.

    `open_log(known_end)` opens its write-ahead log, which must reach `known_end`, and is called again after the log
    failed. `erase` deletes its folder; `uploader` is told of sealed segments, `directory` is asked which subscriptions
    it has.
    """

    def __init__(
        self,
        system: System,
        path: str,
        meta: TopicMeta,
        gateway: Gateway,
        *,
        open_log: Callable[[int], Wal],
        erase: Callable[[], Callable[[], None]],
        commits: Commits,
        uploader: Ref,
        directory: Ref,
        care: LogCare,
    ) -> None:
        cloud = meta.durability == "cloud"
        super().__init__(
            system, path, meta, gateway, window_bytes_max=care.cloud_window_bytes if cloud else 0
        )
        self._uploader = uploader
        self._directory = directory
        self._upkeep = Upkeep(self, meta, care, on_trimmed=self._trimmed, on_skipped=self._skipped)
        self._link = StoreLink(self, meta, uploader, answer=self._answer_fenced)
        self._log = TopicLog(
            self,
            self,
            meta,
            open_log=open_log,
            erase=erase,
            erased=lambda: directory.tell(LogErased(meta)),
            commits=commits,
            is_held=lambda wal: self._upkeep.trimming is wal,
            on_committed=self._committed,
        )
        self._seals: CloudSeals | None = None
        if cloud:  # everything is sealed soon, so that it is uploaded and its receipts can be sent
            self._seals = CloudSeals(
                self, self._log, self._link.view, Sealing(care.cloud_linger_s, care.uploads)
            )
        self._intake = TopicIntake(
            meta,
            self.publishers,
            self._log,
            self._link.view,
            self.intake,
            clock=self.clock,
            behind_bytes_max=care.behind_bytes_max,
            reached=self._reached,
            answer=lambda reply, message: self.system.at(reply).tell(message),
            on_taken=None if self._seals is None else self._seals.taken,
        )
        self._receipts = self._intake.receipts
        self._told_end = 0  # up to where the watchers know the log to be durable
        self._repairs = 0  # how often operators decided to skip damage
        self._acknowledged: int | None = None  # the offset below which all subscriptions are done
        self._look = NextLook(self, self._look_after)
        self._asking = BackOff(ASK_S_MIN, ASK_S_MAX)
        self._sealed_end = 0  # up to where the log was sealed when last looked at

    def on_start(self) -> None:
        """Open the log (in the worker's loop); if it cannot be opened, those that ask are told."""
        self._log.open()
        self._look.after(SEAL_CHECK_S)

    def on_stop(self) -> None:
        """Write out what was appended, and close the log."""
        self._look.end()
        self._upkeep.stop()
        self._log.stop()

    def on_failure(self, *error: object) -> None:
        """Close the log: the next actor finds what is really on disk."""
        super().on_failure(*error)
        self._look.end()
        self._upkeep.stop()
        self._intake.end(RemoteError("unavailable", f"topic {self.meta.name!r} failed and is started again"))
        self._log.end()

    # ---- what the log says --------------------------------------------------------------------------------------

    def log_opened(self, wal: Wal) -> None:
        """Continue with the log that was opened."""
        self._intake.log_opened(wal.producers)
        log.info("topic %s: %s", self.meta.name, wal.report.in_words())
        self._told_end = self._reached(wal)
        for watcher in self.watchers.refs.values():
            self._tell_attached(watcher, wal)
        self._look_soon()
        self._log.prepare_spare()
        self._link.committed(
            wal
        )  # first: sealed segments must fit the store before the topic is claimed there
        self._link.keep(wal)
        if self._seals is not None:
            self._seals.taken()

    def log_failing(self, error: StorageError, wal: Wal | None) -> None:
        """Refuse everything that has no receipt yet."""
        self._intake.log_failing(error, wal)
        if self._seals is not None:
            self._seals.closed()

    def log_failed(self, error: StorageError) -> None:
        """Tell the watchers."""
        self.watchers.tell(TopicFailed(error.code, error.text))
        self._link.answer_fenced(self._log.state is LogState.FENCED)

    def log_reached(self, wal: Wal) -> None:
        """Send the receipts that are due, and tell the watchers how far they may read."""
        end, receipts = self._reached(wal), self._receipts
        others = receipts.others
        if others or (receipts.batches and receipts.batches[0][0] <= end):
            self._intake.reached(end)
        if end > self._told_end:
            self._told_end = end
            durable = Durable(end)
            for watcher in self.watchers.refs.values():
                watcher.tell(durable)
        if others:
            self._intake.reached_and_told(end)

    def _reached(self, wal: Wal) -> int:
        """Return the offset below which everything is durable at the topic's level."""
        if self.meta.durability == "os":
            return wal.next_offset
        if self.meta.durability == "cloud":
            return max(min(self._link.view.watermark, wal.durable_end), wal.start_offset)
        return wal.durable_end

    # ---- producers ----------------------------------------------------------------------------------------------

    @receives(OpenProducer)
    def on_open_producer(self, command: OpenProducer) -> None:
        """Let a handle publish."""
        self._intake.open(command)

    @receives(Publish)
    def on_publish(self, publish: Publish) -> None:
        """Append a client's batch."""
        self._intake.publish(publish)

    @receives(Deposit)
    def on_deposit(self, deposit: Deposit) -> None:
        """Append a batch from inside the broker."""
        self._intake.deposit(deposit)

    @receives(CloseProducer)
    def on_close_producer(self, command: CloseProducer) -> None:
        """Close a handle once everything it sent before has its receipt."""
        self._intake.close(command)

    def producer_closed(self, producer_id: int) -> None:
        """Forget a producer that has all its receipts and closed."""
        self._intake.closed(producer_id)

    # ---- watchers -----------------------------------------------------------------------------------------------

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Tell a subscription how far it may read, now and from now on."""
        watcher = self.watchers.add(command.watcher)
        if command.topic.settings != self.meta.settings:
            watcher.tell(TopicUpdated(self.meta))
        wal, failure = self._log.wal, self._log.failure
        if wal is not None:
            self._tell_attached(watcher, wal)
        elif failure is not None:
            watcher.tell(TopicFailed(failure.code, failure.text))

    def _tell_attached(self, watcher: Ref, wal: Wal) -> None:
        """Tell a watcher how far it may read; with durability cloud that is unknown before the store was listed."""
        store = self._link.view
        if store.known or self.meta.durability != "cloud":
            begin = self._begins(wal) if wal.start_offset == 0 or store.answered else None
            stored = store.watermark if store.known else None
            watcher.tell(Attached(begin, self._reached(wal), stored, wal.durable_end, self._repairs))

    def _tell_start(self, wal: Wal) -> None:
        if wal.start_offset and not self._link.view.known:
            return
        self.watchers.tell(Trimmed(self._begins(wal)))

    def _begins(self, wal: Wal) -> int:
        """Return where the topic begins."""
        return self._link.view.begins(wal.start_offset, wal.retained)

    # ---- the tier -----------------------------------------------------------------------------------------------

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell a tier that was restarted what is sealed."""
        self._link.node_started(started.node, self._log.wal)
        self._look_soon()

    @receives(Uploaded)
    def on_uploaded(self, command: Uploaded) -> None:
        """Note how far the store has the log; with durability cloud, receipts wait for that."""
        wal, store = self._log.wal, self._link.view
        before = self._begins(wal) if wal is not None and store.known else None
        store.uploaded(command)
        self._look_soon()
        if self._seals is not None:
            self._seals.stored()
        self._link.answer_fenced(fenced=False)
        if wal is None:
            return
        store.note_behind(wal.sealed())
        if command.watermark > wal.next_offset:
            self._log.fail(
                DamagedError(
                    f"the store has offsets of topic {self.meta.name!r} up to {command.watermark}, but its local log "
                    f"ends at {wal.next_offset}: the log has lost its end, or belongs to another broker"
                )
            )
            return
        self.log_reached(wal)
        self._miss_history(wal)
        if before is None:
            for watcher in self.watchers.refs.values():
                self._tell_attached(watcher, wal)
        elif self._begins(wal) != before:
            self._tell_start(wal)

    def _miss_history(self, wal: Wal) -> None:
        """Note which messages of the topic are nowhere, though no retention dropped them, and log it."""
        stored, begins = self._link.view.stored(wal.damaged), self._begins(wal)
        lost = stored.gaps(begins, wal.start_offset) if begins < wal.start_offset else []
        for first, end in lost:
            if (first, end) not in self._upkeep.lost:
                log.error("topic %s: offsets %d to before %d: %s", self.meta.name, first, end, LOST)
        self._upkeep.store_has(stored, lost)

    @receives(UploadDelayed)
    def on_upload_delayed(self, delayed: UploadDelayed) -> None:
        """Note why the store is behind."""
        self._link.view.delayed(delayed.text)

    @receives(Fenced)
    def on_fenced(self, fenced: Fenced) -> None:
        """Accept nothing more: another broker has the topic; the local log is kept."""
        wal = self._log.wal
        if fenced.end is not None and (wal is None or wal.sealed_end >= fenced.end):
            self._link.keep(wal)
            return
        name = self.meta.name
        self._log.fail(
            StorageError(
                f"{fenced.text}; to go on with it here: ister topic takeover {name}; to drop what is here and "
                f"leave the store alone: ister topic forget {name}",
                code="fenced",
                action="stop",
            )
        )

    @receives(UploadsStopped)
    def on_uploads_stopped(self, stopped: UploadsStopped) -> None:
        """Serve what is here, and what the Fetcher can fetch; with durability cloud nothing more can be accepted."""
        refuses = self.meta.durability == "cloud"
        self._link.view.stops(stopped.text, refuses=refuses)
        if refuses:
            self._log.fail(StorageError(stopped.text, code="store-failed", action="stop"))
        elif self._log.wal is not None and not self._link.view.known:
            for watcher in self.watchers.refs.values():
                self._tell_attached(watcher, self._log.wal)

    @receives(AskFenced)
    def on_ask_fenced(self, command: AskFenced) -> None:
        """Answer whether another broker has this topic, once the store has told, or after some seconds."""
        self._link.ask_fenced(command)
        if self._log.failure is not None:
            self._link.answer_fenced(self._log.state is LogState.FENCED)
        elif self._link.view.known:
            self._link.answer_fenced(fenced=False)

    def _answer_fenced(self, command: AskFenced, fenced: bool) -> None:
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({"fenced": fenced})))

    # ---- upkeep -------------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Do what is due, and come back when something else may be: of thousands of topics most have nothing to do."""
        self._check_retention()
        self._link.tell_again(self._log.wal)
        wait_s, by_wall_clock = self._log.look_after(), False
        if (wal := self._log.wal) is not None:
            drops_s = self._upkeep.due_in(wal, self._acknowledged)
            by_wall_clock = 0 < drops_s < math.inf
            if drops_s == 0:  # that is for subscriptions to say
                drops_s = self._asking.failed()
            wait_s = min(wait_s, drops_s)
        if not self._link.settled:
            wait_s = min(wait_s, TELL_AGAIN_S)
        self._look.after(max(wait_s, SEAL_CHECK_S), by_wall_clock=by_wall_clock)

    def _look_soon(self) -> None:
        """Come back soon: something has changed."""
        self._asking.succeeded()
        self._look.within(SEAL_CHECK_S)

    def _committed(self, wal: Wal) -> None:
        self._link.committed(wal)
        if wal.sealed_end != self._sealed_end:
            self._sealed_end = wal.sealed_end
            self._look_soon()
        else:
            self._look.within(min(REST_S, wal.settings.segment_age_ms_max / 1000))

    def _check_retention(self) -> None:
        """Drop what retention allows; if acknowledgments count, first ask which subscriptions there are."""
        retention = self._upkeep.retention
        if retention.acknowledged:
            known = sorted(self._upkeep.consumed)
            self._directory.tell(WhoSubscribes(self.meta.name, known, self.address))
        else:
            self._retain(None)
        self._link.retain(self._acknowledged, always=bool(retention))

    def _retain(self, acknowledged: int | None) -> None:
        view = self._link.view
        if self._log.wal is not None:
            self._upkeep.retain(self._log.wal, view.watermark, view.start, acknowledged)

    @receives(Subscribers)
    def on_subscribers(self, command: Subscribers) -> None:
        """Note which subscriptions there are, and drop what all of them are done with."""
        acknowledged = self._upkeep.done_by_all(set(command.names))
        if acknowledged != self._acknowledged:
            self._acknowledged = acknowledged
            self._link.retain(acknowledged, always=True)
        self._retain(self._acknowledged)

    @receives(Consumed)
    def on_consumed(self, command: Consumed) -> None:
        """Note how far a subscription is done."""
        consumed, name = self._upkeep.consumed, command.subscription
        if consumed.get(name) != command.low:
            consumed[name] = command.low
            if self._upkeep.retention.acknowledged:
                self._look_soon()

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Remove a watcher: if its subscription was deleted, what only that needed may go."""
        super().on_detach(command)
        if self._upkeep.retention.acknowledged:
            self._look_soon()

    def _trimmed(self, wal: Wal) -> None:
        if self._log.released(wal):
            self._tell_start(wal)
            self._look_soon()  # more may be due

    @receives(FoundDamage)
    def on_found_damage(self, found: FoundDamage) -> None:
        """Note damage that a reader found; what the store has lost must stay here, if it is here."""
        self._upkeep.note_damage(found)
        if found.asked:
            self._link.survey(lambda: None)

    @receives(Surveyed)
    def on_surveyed(self, surveyed: Surveyed) -> None:
        """Make the calls that waited for a listing."""
        self._link.surveys.surveyed(surveyed)

    def _skipped(self) -> None:
        self._repairs += 1
        self.watchers.tell(Repaired(self._repairs))

    @receives(Verify, Repair)
    def on_care(self, command: Verify | Repair) -> None:
        """Verify the log, or let readers skip damage, as an operator asks."""

        def reply(body: dict[str, Any] | IsterError) -> None:
            answer = (
                Refused(command.ticket, body.code, body.text)
                if isinstance(body, IsterError)
                else Answer(command.ticket, encode_result(body))
            )
            self.system.at(command.reply).tell(answer)

        def care() -> None:
            try:
                end = self._log.ready().durable_end
            except StorageError as error:
                reply(error)
                return
            if isinstance(command, Verify):
                self._upkeep.verify(end, reply, command.number)
            else:
                self._upkeep.repair(end, reply)

        if isinstance(command, Verify) and self._upkeep.verifying(command.number):
            care()
        else:
            self._link.survey(care)

    # ---- the rest -----------------------------------------------------------------------------------------------

    @receives(Update)
    def on_update(self, command: Update) -> None:
        """Apply new settings; the Uploader is told with the next check of retention."""
        self.take_settings(command.topic)
        for part in (self._upkeep, self._intake, self._link):
            part.go_by(command.topic)
        self._look_soon()
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))

    @property
    def wal(self) -> Wal | None:
        """The log, while it is open."""
        return self._log.wal

    @property
    def failure(self) -> StorageError | None:
        """Why the log is not open."""
        return self._log.failure

    @property
    def damaged_ranges(self) -> int:
        """How many damaged ranges of the log are known."""
        return 0 if self._log.wal is None else len(self._upkeep.damaged(self._log.wal))

    @property
    def behind_bytes(self) -> int:
        """How many sealed bytes the store does not have yet."""
        return self._link.view.behind_bytes

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe the topic."""
        store, failure, wal = self._link.view, self._log.failure, self._log.wal
        body = self.description()
        body["commits"] = self._log.commits
        if failure is None and store.stopped:
            failure = StorageError(store.trouble or "", code="store-failed", action="stop")
        body["failure"] = None if failure is None else failure.text
        body["failure_code"] = None if failure is None else failure.code
        if wal is not None:
            sealed, begins = wal.sealed(), self._begins(wal)
            body |= {
                "start_offset": begins,
                "local_start": wal.start_offset,
                "stored_start": store.start,
                "behind_bytes": store.behind_bytes,
                "upload_failure": store.trouble,
                "uploads_stopped": store.stopped,
                "missing": [list(each) for each in self._upkeep.lost],
                "missing_below": self._upkeep.missing_below(begins),
                "next_offset": wal.next_offset,
                "durable_end": wal.durable_end,
                "uploaded_end": store.watermark,
                "segments": len(sealed) + 1,
                "sealed_bytes": sum(segment.bytes for segment in sealed),
                "damaged": self._upkeep.damaged(wal),
                "damaged_here": self._upkeep.damaged_here(wal),
                "recovery": asdict(wal.report),
            }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Refuse everything from now on, and delete the log."""
        error = self.leave_deleted()
        self._intake.delete(error)
        fenced = self._log.state is LogState.FENCED
        self._log.delete(StorageError(error.text, code=error.code, action="stop"))
        self._uploader.tell(EraseStored(self.meta, self._directory.address, fenced))
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.system.stop_actor(self.path)
