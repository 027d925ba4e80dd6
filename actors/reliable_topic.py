"""Reliable topics: a log, group commit, receipts once durable.

Runs in a worker process, one actor a topic. This file is the topic's conversation with producers, watchers, the tier
and operators; its parts own what there is:

    TopicLog    the log: opened, committed, sealed, failed, fenced, deleted
    Receipts    what waits until the log is durable so far
    StoreView   what the store has, and was told to take
    Upkeep      retention, verification, repair        Surveys   what waits for a listing of the store

Invariants
- no receipt is sent and no subscription told of a message before the log says that it is durable at the topic's level
- a log that failed takes nothing more; whatever waits for it is refused, and may be there or not
- one receipt frame a producer, one notice a watcher, follow a commit
- settings reach whoever acts on them: the parts, the watchers, the Uploader
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

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
    Deposited,
    DepositRefused,
    Describe,
    Durable,
    EraseStored,
    Fenced,
    FoundDamage,
    KeepTopic,
    NodeStarted,
    OpenProducer,
    Publish,
    Refused,
    Repair,
    Repaired,
    Retain,
    Sealed,
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
from ister.actors.receipts import AWAITING_MAX, Receipts
from ister.actors.runtime import Ref, System, Timer, receives
from ister.actors.store_view import News, StoreView, lost_by_log
from ister.actors.surveys import Surveys
from ister.actors.topic import Publisher, Topic, expected_sequence, producer_of, sequence_error
from ister.actors.topic_log import TopicLog
from ister.actors.upkeep import LOST, LogCare, Upkeep
from ister.errors import DamagedError, IsterError, RemoteError, StorageError, StoreError
from ister.storage.catalogue import TopicMeta
from ister.storage.producers import Duplicate, Fresh, ProducerTable
from ister.storage.wal import Wal
from ister.transport.gateway import Gateway
from ister.wire import OFFSET_UNKNOWN, Buffer, Column, Key, encode_result, latest_time

log = logging.getLogger("ister.topic")

SEAL_CHECK_S: Final = 1.0  # how late a seal by age may be


class ReliableTopic(Topic):
    """A topic whose messages are durable before anybody hears of them.

    `open_log(known_end)` opens its write-ahead log, which must reach `known_end`, and is called again after the log
    failed; `erase` deletes its folder; `uploader` is told of sealed segments, `directory` is
    asked who subscribes.
    """

    def __init__(
        self,
        system: System,
        path: str,
        meta: TopicMeta,
        gateway: Gateway,
        *,
        open_log: Callable[[int], Wal],
        erase: Callable[[], None],
        commits: Commits,
        uploader: Ref,
        directory: Ref,
        care: LogCare,
    ) -> None:
        super().__init__(system, path, meta, gateway)
        self._uploader = uploader
        self._directory = directory
        self._care = care
        self._upkeep = Upkeep(self, meta, care, on_trimmed=self._trimmed, on_skipped=self._skipped)
        self._log = TopicLog(
            self,
            self,
            meta,
            open_log=open_log,
            erase=erase,
            commits=commits,
            is_held=lambda wal: self._upkeep.trimming is wal,
        )
        self._receipts = Receipts()
        self._store = StoreView()
        self._surveys = Surveys(self, meta.name, uploader)
        # by producer, while there is no log: the sequence to go on with
        self._unresolved: dict[int, int] = {}
        self._told_end = 0  # what the watchers know to be durable
        self._acknowledged: int | None = None
        self._retain_told: dict[str, Any] = meta.settings  # settings that the Uploader was told of last
        self._linger_timer: Timer | None = None  # of durability "cloud"
        self._fenced_asked: list[AskFenced] = []  # who is told once it is known

    def on_start(self) -> None:
        """Open the log (in the worker's loop); a log that cannot be opened is said to whoever asks."""
        self._log.open()
        self.call_later(SEAL_CHECK_S, self._seal_check)

    def on_stop(self) -> None:
        """Write down what came in, and close the log."""
        self._log.stop()

    def on_failure(self, *error: object) -> None:
        """Let go of the log: the next actor finds what is really on disk."""
        super().on_failure(*error)
        self._answer_closes(None)
        self._refuse_opens(
            RemoteError("unavailable", f"topic {self.meta.name!r} failed and is started again")
        )
        self._log.end()

    # ---- what the log says --------------------------------------------------------------------------------------

    def log_opened(self, wal: Wal) -> None:
        """Go on where the log is."""
        producers = wal.producers
        producers.connected = self._publishers
        for producer_id, sequence in self._unresolved.items():
            if producer_id in self._publishers:
                producers.expect(producer_id, sequence)
        self._unresolved.clear()
        self.intake.last_ms = self.intake.last_ms or producers.heard_ms
        log.info("topic %s: %s", self.meta.name, wal.report)
        self._told_end = self._reached(wal)
        for watcher in self._watchers.values():
            self._tell_attached(watcher, wal)
        self._log.prepare_spare()
        self.log_committed(wal)  # first: what is sealed must fit the store before the topic is claimed there
        self._keep_topic()

    def log_failing(self, error: StorageError, wal: Wal | None) -> None:
        """Refuse whatever has no receipt yet: it may be there or not."""
        if wal is not None:
            self._unresolved = self._sequences(wal.producers)
        for _, handle, sequence, _ in self._receipts.give_up():
            echo = {Key.HANDLE: handle.number, Key.SEQUENCE: sequence}
            self._gateway.send_error(handle.session, error, echo)
        self._refuse_deposits(error)
        self._answer_closes(None)
        self._refuse_opens(error)

    def log_failed(self, error: StorageError) -> None:
        """Tell whoever watches."""
        for watcher in self._watchers.values():
            watcher.tell(TopicFailed(error.code, error.text))
        self._answer_fenced(self._log.state is LogState.FENCED)

    def log_reached(self, wal: Wal) -> None:
        """Send the receipts that are due, and tell the watchers how far they may read."""
        end = self._reached(wal)
        batches = self._receipts.batches
        if batches and batches[0][0] <= end:
            self._send_receipts(self._receipts.due(end))
        others = self._receipts.others
        if others:
            for deposit in self._receipts.due_deposits(end):
                self.system.at(deposit.reply).tell(Deposited(deposit.producer_id, deposit.sequence))
        if end > self._told_end:
            self._told_end = end
            durable = Durable(end)
            for watcher in self._watchers.values():
                watcher.tell(durable)
        if others:
            self._answer_closes(end)
            self._answer_opens(end)

    def _reached(self, wal: Wal) -> int:
        """Return the offset below which everything is durable at the topic's level."""
        if self.meta.durability == "os":
            return wal.next_offset
        if self.meta.durability == "cloud":
            return max(min(self._store.watermark, wal.durable_end), wal.start_offset)
        return wal.durable_end

    def _sequences(self, producers: ProducerTable) -> dict[int, int]:
        """Return by producer what it has to go on with, also if the log is opened again without its last batches."""
        lowest: dict[int, int] = {}
        for handle, sequence in self._receipts.unanswered().items():
            producer_id = producer_of(handle)
            lowest[producer_id] = min(sequence, lowest.get(producer_id, sequence))
        for producer_id in self._publishers.keys() - lowest.keys():
            lowest[producer_id] = producers.next_sequence(producer_id) or 0
        return lowest

    # ---- producers ----------------------------------------------------------------------------------------------

    @receives(OpenProducer)
    def on_open_producer(self, command: OpenProducer) -> None:
        """Let a handle publish, and say which sequence number is expected of it."""
        try:
            wal = self._log.ready()
            expected = expected_sequence(wal.producers, command, self.clock.time_ms())
        except (StorageError, RemoteError) as error:
            self._refuse_open(command, error)
            return
        if expected > command.sequence and self._reached(wal) < wal.next_offset:
            self._fence(command)  # where a producer stands is promised like a receipt
            self._receipts.open(wal.next_offset, command)
            self._log.schedule_commit()
            return
        self._open(command, expected)

    def _producer_closed(self, producer_id: int) -> None:
        if self._log.wal is not None:
            self._log.wal.producers.close(producer_id)

    def _answer_opens(self, end: int) -> None:
        for command in self._receipts.due_opens(end):
            try:
                expected = expected_sequence(self._log.ready().producers, command, self.clock.time_ms())
            except (StorageError, RemoteError) as error:
                self._refuse_open(command, error)
            else:
                self._open(command, expected)

    def _refuse_opens(self, error: IsterError) -> None:
        for command in self._receipts.due_opens():
            self._refuse_open(command, error)

    @receives(Publish)
    def on_publish(self, publish: Publish) -> None:
        """Append a batch, unless it is a duplicate; the receipt follows when it is durable."""
        handle, sequence = publish.handle, publish.sequence
        publisher = handle.target
        if not isinstance(publisher, Publisher):
            return  # closed meanwhile, which was answered
        batches = self._receipts.batches
        try:
            if len(batches) >= AWAITING_MAX:
                raise RemoteError("busy", "too many batches wait for this topic's disk; resend later")
            end, offset = self._take(publish, publisher.producer_id)
        except IsterError as error:
            if self._log.wal is not None:
                self._log.wal.producers.hold(publisher.producer_id, sequence)
            self._refuse(publish, error)
            self._check_failed(error)
            return
        batches.append((end, handle, sequence, offset))
        self._taken()

    @receives(Deposit)
    def on_deposit(self, deposit: Deposit) -> None:
        """Append a batch that comes from inside the broker, as a client's; it is answered when it is durable."""
        try:
            if self._receipts.full_of_deposits:
                raise RemoteError("busy", "too many batches wait for this topic's disk; resend later")
            self._log.ready().producers.expect(deposit.producer_id, deposit.sequence)
            end, _ = self._take(deposit, deposit.producer_id)
        except IsterError as error:
            self._refuse_deposit(deposit, error)
            self._check_failed(error)
            return
        self._receipts.deposit(end, deposit)
        self._taken()

    def _take(self, batch: Publish | Deposit, producer_id: int) -> tuple[int, int]:
        """Append a batch unless it is a duplicate; return what must be durable for it, and its offset.

        Raises StorageError, StoreError, RemoteError: then nothing was appended.
        """
        wal = self._log.ready()
        verdict = wal.producers.check(producer_id, batch.sequence, batch.count)
        if isinstance(verdict, Fresh):
            self._check_behind()
            if batch.columns & Column.DELIVER_AT:
                self._check_times(batch.frames[-1])
            intake = self.intake
            intake.last_ms = self.clock.time_ms()
            offset = wal.append(
                count=batch.count,
                producer_id=producer_id,
                sequence=batch.sequence,
                columns=batch.columns,
                frames=batch.frames,
                timestamp_ms=intake.last_ms,
            )
            intake.messages += batch.count
            intake.bytes += len(batch.frames[1])
        elif isinstance(verdict, Duplicate):
            offset = OFFSET_UNKNOWN if verdict.first_offset is None else verdict.first_offset
        else:
            raise sequence_error(verdict, batch)
        # A duplicate may be of what is not durable yet; one whose offset is forgotten, of anything here.
        return (wal.next_offset if offset == OFFSET_UNKNOWN else offset + batch.count), offset

    def _check_times(self, column: Buffer) -> None:
        """Raise RemoteError where a message would be older than the topic lets it be before its time comes."""
        ttl_ms = int(self.meta.settings.get("message_ttl_ms", 0))
        if not ttl_ms:
            return
        wait_ms = latest_time(column) - self.clock.time_ms()
        if wait_ms > ttl_ms:
            raise RemoteError(
                "invalid-argument",
                f"a message is to be delivered in {wait_ms} ms, and would be too old by then: message_ttl_ms "
                f"({ttl_ms} ms) of topic {self.meta.name!r} is less; send the batch with a shorter delay",
            )

    def _check_behind(self) -> None:
        """Refuse more while too much waits for a store that is away."""
        behind_bytes = self._store.behind_bytes
        if behind_bytes > self._care.behind_bytes_max:
            raise StoreError(
                f"topic {self.meta.name!r} has {behind_bytes} bytes that the store has not taken yet, "
                f"over behind_bytes_max ({self._care.behind_bytes_max}); it takes more when the store is back",
                code="store-behind",
            )

    def _check_failed(self, error: IsterError) -> None:
        """After a refusal: is it the log that failed, and not only this batch?"""
        if isinstance(error, StorageError):
            self._log.check(error)

    def _taken(self) -> None:
        self._log.schedule_commit()
        if self.meta.durability == "cloud" and self._linger_timer is None:
            self._linger_timer = self.call_later(self._care.cloud_linger_s, self._linger_over)

    def _linger_over(self) -> None:
        """Durability cloud: seal what came, so that it is uploaded, and its receipts can be sent."""
        self._linger_timer = None
        if not self._log.seal():
            self._linger_again()

    def _linger_again(self) -> None:
        """The disk is too full to seal: what waits for its receipts is sealed later."""
        if self.meta.durability == "cloud":
            self._linger_timer = self.call_later(SEAL_CHECK_S, self._linger_over)

    def _refuse_deposit(self, deposit: Deposit, error: IsterError) -> None:
        answer = DepositRefused(deposit.producer_id, deposit.sequence, error.code, error.text)
        self.system.at(deposit.reply).tell(answer)

    def _refuse_deposits(self, error: IsterError) -> None:
        """Whatever waits may be there or not: it is to be resent."""
        for deposit in self._receipts.due_deposits():
            self._refuse_deposit(deposit, error)

    @receives(CloseProducer)
    def on_close_producer(self, command: CloseProducer) -> None:
        """Let a handle go once everything it sent before has its receipt."""
        wal = self._log.wal
        if wal is None or command.ref is None:
            self._closed(command)
            return
        self._receipts.close(wal.next_offset, command)
        self._log.schedule_commit()

    def _answer_closes(self, end: int | None) -> None:
        for command in self._receipts.due_closes(end):
            self._closed(command)

    # ---- watchers -----------------------------------------------------------------------------------------------

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Tell a subscription how far it may read, now and from now on."""
        watcher = self._watchers[command.watcher] = self.system.at(command.watcher)
        if command.topic.settings != self.meta.settings:
            watcher.tell(TopicUpdated(self.meta))
        wal, failure = self._log.wal, self._log.failure
        if wal is not None:
            self._tell_attached(watcher, wal)
        elif failure is not None:
            watcher.tell(TopicFailed(failure.code, failure.text))

    def _tell_attached(self, watcher: Ref, wal: Wal) -> None:
        """Say how far may be read; with durability cloud nobody knows before the store has said what it has."""
        store = self._store
        if store.known or self.meta.durability != "cloud":
            begin = self._begins(wal) if wal.start_offset == 0 or store.answered else None
            stored = store.watermark if store.known else None
            watcher.tell(Attached(begin, self._reached(wal), stored, wal.durable_end))

    def _tell_start(self, wal: Wal) -> None:
        if wal.start_offset and not self._store.known:
            return
        trimmed = Trimmed(self._begins(wal))
        for watcher in self._watchers.values():
            watcher.tell(trimmed)

    def _begins(self, wal: Wal) -> int:
        """Return where the topic begins."""
        return self._store.begins(wal.start_offset, wal.retained)

    # ---- the tier -----------------------------------------------------------------------------------------------

    def log_committed(self, wal: Wal) -> None:
        """Tell the tier what is sealed for good."""
        sealed = wal.sealed()
        self._store.note_behind(sealed)
        news = self._store.news(sealed, wal.set_aside())
        if news is not None:
            self._tell_sealed(wal, news)

    def _tell_sealed(self, wal: Wal, news: News) -> None:
        missing = lost_by_log(wal.damaged, (*wal.sealed(), *wal.set_aside())) if wal.damaged else ()
        self._uploader.tell(Sealed(self.meta, news.sealed, self.address, news.damaged, missing))

    def _tell_again(self) -> None:
        """Tell the tier once more what it should have taken long ago: it may not have heard, or not been heard."""
        wal, now_s, store = self._log.wal, self.clock.monotonic(), self._store
        if wal is None:
            store.look_again(now_s)
        elif store.waits_too_long(now_s):
            if store.known:
                news = store.not_taken(wal.sealed(), wal.set_aside())
                if news is not None:
                    self._tell_sealed(wal, news)
            elif self.meta.durability == "cloud":  # else there may be no tier
                self._keep_topic()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell the tier again what is sealed: it was started again, and knows nothing."""
        if started.node == self._uploader.address.node:
            self._store.forget_told()
            if self._log.wal is None:
                self._store.note_behind(())
            else:
                self.log_committed(self._log.wal)
            self._keep_topic()

    def _keep_topic(self) -> None:
        """Have the topic claimed in the store, and learn what that has of it."""
        wal = self._log.wal
        if wal is not None:
            self._uploader.tell(KeepTopic(self.meta, wal.start_offset, wal.sealed_end, self.address))

    @receives(Uploaded)
    def on_uploaded(self, command: Uploaded) -> None:
        """Note how far the store has the log; with durability cloud, that is what receipts wait for."""
        wal, store = self._log.wal, self._store
        before = self._begins(wal) if wal is not None and store.known else None
        store.uploaded(command)
        self._answer_fenced(fenced=False)
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
            for watcher in self._watchers.values():
                self._tell_attached(watcher, wal)
        elif self._begins(wal) != before:
            self._tell_start(wal)

    def _miss_history(self, wal: Wal) -> None:
        """Know what of the topic is nowhere, though no retention took it, and say so."""
        stored, begins = self._store.stored(wal.damaged), self._begins(wal)
        lost = stored.gaps(begins, wal.start_offset) if begins < wal.start_offset else []
        for first, end in lost:
            if (first, end) not in self._upkeep.lost:
                log.error("topic %s: offsets %d to before %d: %s", self.meta.name, first, end, LOST)
        self._upkeep.store_has(stored, lost)

    @receives(UploadDelayed)
    def on_upload_delayed(self, delayed: UploadDelayed) -> None:
        """Note why the store is behind."""
        self._store.delayed(delayed.text)

    @receives(Fenced)
    def on_fenced(self, fenced: Fenced) -> None:
        """Take nothing more: another broker has the topic; what is here is kept."""
        wal = self._log.wal
        if fenced.end is not None and (wal is None or wal.sealed_end >= fenced.end):
            self._keep_topic()
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
        """Serve what is here, and what the Fetcher can bring; with durability cloud nothing more can be taken."""
        refuses = self.meta.durability == "cloud"
        self._store.stops(stopped.text, refuses=refuses)
        if refuses:
            self._log.fail(StorageError(stopped.text, code="store-failed", action="stop"))
        elif self._log.wal is not None and not self._store.known:
            for watcher in self._watchers.values():
                self._tell_attached(watcher, self._log.wal)

    @receives(AskFenced)
    def on_ask_fenced(self, command: AskFenced) -> None:
        """Say whether another broker has this topic, once the store has told; it is asked for within a few seconds."""
        self._fenced_asked.append(command)
        if self._log.failure is not None:
            self._answer_fenced(self._log.state is LogState.FENCED)
        elif self._store.known:
            self._answer_fenced(fenced=False)

    def _answer_fenced(self, fenced: bool) -> None:
        asked, self._fenced_asked = self._fenced_asked, []
        for command in asked:
            self.system.at(command.reply).tell(Answer(command.ticket, encode_result({"fenced": fenced})))

    # ---- upkeep -------------------------------------------------------------------------------------------------

    def _seal_check(self) -> None:
        self.call_later(SEAL_CHECK_S, self._seal_check)
        self._check_retention()
        self._tell_again()
        if not self._log.look_after():
            self._linger_again()

    def _check_retention(self) -> None:
        """Drop what retention allows; where acknowledgments count, ask first who is to acknowledge."""
        if self._upkeep.retention.acknowledged:
            known = sorted(self._upkeep.consumed)
            self._directory.tell(WhoSubscribes(self.meta.name, known, self.address))
        else:
            self._retain(None)
        if self._upkeep.retention or self.meta.settings != self._retain_told:
            self._retain_told = self.meta.settings
            self._uploader.tell(Retain(self.meta, self._acknowledged))

    def _retain(self, acknowledged: int | None) -> None:
        if self._log.wal is not None:
            self._upkeep.retain(self._log.wal, self._store.watermark, self._store.start, acknowledged)

    @receives(Subscribers)
    def on_subscribers(self, command: Subscribers) -> None:
        """Note which subscriptions there are, and drop what all of them are done with."""
        self._acknowledged = self._upkeep.done_by_all(set(command.names))
        self._retain(self._acknowledged)

    @receives(Consumed)
    def on_consumed(self, command: Consumed) -> None:
        """Note how far a subscription is done."""
        self._upkeep.consumed[command.subscription] = command.low

    def _trimmed(self, wal: Wal) -> None:
        if self._log.released(wal):
            self._tell_start(wal)

    @receives(FoundDamage)
    def on_found_damage(self, found: FoundDamage) -> None:
        """Note it, for whoever asks what there is; what the store lost must stay here, where it is here."""
        self._upkeep.note_damage(found)
        if found.asked:
            self._survey(lambda: None)

    def _survey(self, then: Callable[[], None]) -> None:
        """Have the store listed, where it has something, and do what is to be done after that."""
        if self._store.known and self._store.watermark:
            self._surveys.then(then)
        else:
            then()

    @receives(Surveyed)
    def on_surveyed(self, surveyed: Surveyed) -> None:
        """Go on with what waited for it."""
        self._surveys.surveyed(surveyed)

    def _skipped(self) -> None:
        for watcher in self._watchers.values():
            watcher.tell(Repaired())

    @receives(Verify, Repair)
    def on_care(self, command: Verify | Repair) -> None:
        """Verify the log, or let readers skip what is damaged, as an operator asks."""

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
            self._survey(care)

    # ---- the rest -----------------------------------------------------------------------------------------------

    @receives(Update)
    def on_update(self, command: Update) -> None:
        """Take new settings; the Uploader is told with the next look at retention."""
        self._take_settings(command.topic)
        self._upkeep.go_by(command.topic)
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
        """How many damaged places of the log are known."""
        return 0 if self._log.wal is None else len(self._upkeep.damaged(self._log.wal))

    @property
    def behind_bytes(self) -> int:
        """How many sealed bytes the store does not have yet."""
        return self._store.behind_bytes

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        store, failure, wal = self._store, self._log.failure, self._log.wal
        body = self._description()
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
        error = self._tell_deleted()
        self._leave(error)
        self._answer_closes(None)
        self._refuse_opens(error)
        self._refuse_deposits(error)
        fenced = self._log.state is LogState.FENCED
        self._log.delete(StorageError(error.text, code=error.code, action="stop"))
        self._uploader.tell(EraseStored(self.meta, self._directory.address, fenced))
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.system.stop_actor(self.path)
