"""Reliable topics: a log, group commit, receipts once durable.

Runs in a worker process, one actor a topic.

Invariants
- no receipt is sent and no subscription told of a message before the log says that it is durable at the topic's level
- a log that failed takes nothing more; it is opened again from what is really on disk, or not at all
- one commit covers everything appended before it began; one receipt frame a producer, one notice a watcher, follow it
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from ister.actors.commits import Commits
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
    Survey,
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
from ister.actors.runtime import Ref, System, Timer, receives
from ister.actors.topic import Publisher, Topic, expected_sequence, producer_of, sequence_error
from ister.actors.upkeep import LOST, LogCare, Upkeep
from ister.errors import (
    DamagedError,
    DiskFullError,
    IsterError,
    RemoteError,
    StorageError,
    StoreError,
)
from ister.storage.catalogue import TopicMeta
from ister.storage.producers import Duplicate, Fresh, ProducerTable
from ister.storage.ranges import RangeSet
from ister.storage.retention import retention_of
from ister.storage.segment import SegmentInfo
from ister.storage.wal import Commit, Wal
from ister.transport.gateway import Gateway
from ister.transport.session import Handle
from ister.wire import OFFSET_UNKNOWN, Buffer, Column, Key, encode_result, latest_time

log = logging.getLogger("ister.topic")

SEAL_CHECK_S: Final = 1.0  # how late a seal by age may be
REST_S: Final = 5.0  # after so long without a message a log gives back what it holds for the next ones
TELL_AGAIN_S: Final = (
    10.0  # what the tier was told, and has not taken for so long, is told again: mail is no promise
)
TOLD_AGAIN_MAX: Final = 64  # segments; the tier takes them in order
BACKGROUND_COMMIT_S: Final = (
    1.0  # what durability "os" may lose with the machine, and how late files are sealed
)
# Batches without a receipt: 512 producers with full windows. Beyond it somebody ignores what OPENED told them.
AWAITING_MAX: Final = 65_536
DEPOSITS_MAX: Final = 10_000  # one a subscription that sends its dead letters here
SURVEY_S: Final = 3.0  # less than whoever asked waits; a store that is away is not waited for
ERASE_TRIES: Final = 50
ERASE_RETRY_S: Final = 0.1  # making a spare segment takes less
REOPEN_DELAY_S: Final = 1.0  # a log that failed is opened again no sooner: the disk has just failed


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
        self._open_log = open_log
        self._erase = erase
        self._commits = commits
        self._uploader = uploader
        self._directory = directory
        self._upkeep = Upkeep(self, meta, care, on_trimmed=self._trimmed, on_skipped=self._skipped)
        self._log: Wal | None = None
        self._failure: StorageError | None = None
        # (end offset, handle, sequence, first offset) in the order of arrival, for receipts still to be sent
        self._awaiting: deque[tuple[int, Handle, int, int]] = deque()
        self._deposits: deque[tuple[int, Deposit]] = deque()  # by end offset, for answers still to be sent
        self._closing: list[tuple[int, CloseProducer]] = []  # closes that wait for receipts
        self._opening: deque[tuple[int, OpenProducer]] = (
            deque()
        )  # opens that wait until what they tell of is durable
        self._commit_scheduled = False
        self._waits_for_sync = meta.durability != "os"
        self._background_commit: Timer | None = None  # of durability "os"
        self._ended_log: Wal | None = None  # failed, and to be closed when its running commit has ended
        self._known_end = 0  # a log of this actor was durable up to here
        self._unresolved: dict[
            int, int
        ] = {}  # by producer, while there is no log: the sequence to go on with
        self._watermark = 0
        self._store_known = False  # the Uploader has said what the store has
        self._gaps: tuple[tuple[int, int], ...] = ()  # what the store has lost of that
        self._partly: tuple[
            tuple[int, int], ...
        ] = ()  # what the store has of damaged segments, as far as they are whole
        self._upload_trouble: str | None = None  # why the store is behind, where that is known
        self._uploads_stopped = False  # until a person has looked
        self._surveying: list[Callable[[], None]] = []  # what waits for a listing of the store
        self._survey_timer: Timer | None = None
        self._stored_start = (
            0  # the store has the topic from here to the watermark; what is below went by retention
        )
        self._behind_bytes = 0  # of sealed segments that the store has not taken yet
        self._told_end = 0  # what the watchers know to be durable
        self._acknowledged: int | None = None
        self._retain_told: dict[str, Any] = meta.settings  # settings that the Uploader was told of last
        self._linger_timer: Timer | None = None  # of durability "cloud"
        self._filling = (
            -1,
            0.0,
        )  # where the segment that is being written begins, and since when it holds something
        self._care = care
        self._deleted = False
        self._reopen: Timer | None = None  # of a log that failed, and may be opened again
        self._fenced_asked: list[AskFenced] = []  # who is told once it is known
        self._sealed_told = 0  # the uploader was told of segments up to here
        self._appended = (-1, 0.0)  # where the log ended when it was last looked at, and since when
        self._waiting_at = (0, 0.0)  # the watermark that was seen last, and since when
        self.commits = 0

    def on_start(self) -> None:
        """Open the log (in the worker's loop); a log that cannot be opened is said to whoever asks."""
        self._open_or_fail()
        self.call_later(SEAL_CHECK_S, self._seal_check)

    def on_stop(self) -> None:
        """Write down what came in, and close the log, so that the next start has nothing to recover."""
        wal = self._log
        if wal is not None and not wal.committing:
            with suppress(StorageError):
                wal.commit()
        if wal is not None and not self._deleted:
            wal.prove_end()
        self._end_log()

    def on_failure(self, *error: object) -> None:
        """Let go of the log: the next actor finds what is really on disk."""
        super().on_failure(*error)
        self._answer_closes(None)
        self._refuse_opens(
            RemoteError("unavailable", f"topic {self.meta.name!r} failed and is started again")
        )
        self._end_log()

    def _open_or_fail(self) -> None:
        self._reopen = None
        if self._ended_log is not None:
            self._open_later()
            return
        if self._log is not None or self._deleted:
            return
        try:
            self._log = self._open_log(self._known_end)
        except StorageError as error:
            self._fail(error)
            return
        self._failure = None
        self._log.producers.connected = self._publishers
        for producer_id, sequence in self._unresolved.items():
            if producer_id in self._publishers:
                self._log.producers.expect(producer_id, sequence)
        self._unresolved.clear()
        self.last_published_ms = self.last_published_ms or self._log.producers.heard_ms
        report = self._log.report
        log.info("topic %s: %s", self.meta.name, report)
        self._told_end = self._reached(self._log)
        for watcher in self._watchers.values():
            self._tell_attached(watcher, self._log)
        self._prepare_spare()
        self._tell_sealed()  # first: what is sealed must fit the store before the topic is claimed there
        self._keep_topic()

    def _fail(self, error: StorageError) -> None:
        """Take nothing more: whatever has no receipt yet gets the error, and may be there or not."""
        log.error("topic %s: %s", self.meta.name, error)
        self._failure = error
        self._commit_scheduled = False
        if self._log is not None:
            self._unresolved = self._sequences(self._log.producers)
        for _, handle, sequence, _ in self._awaiting:
            echo = {Key.HANDLE: handle.number, Key.SEQUENCE: sequence}
            self._gateway.send_error(handle.session, error, echo)
        self._awaiting.clear()
        self._refuse_deposits(error)
        self._answer_closes(None)
        self._refuse_opens(error)
        self._end_log()
        for watcher in self._watchers.values():
            watcher.tell(TopicFailed(error.code, error.text))
        if error.action == "retry":
            self._open_later()
        elif self._reopen is not None:  # what failed before could be tried again, this cannot
            self._reopen.cancel()
            self._reopen = None
        self._answer_fenced(error.code == "fenced")

    def _open_later(self) -> None:
        if self._reopen is None:
            self._reopen = self.call_later(REOPEN_DELAY_S, self._open_or_fail)

    def _sequences(self, producers: ProducerTable) -> dict[int, int]:
        """Return by producer what it has to go on with, also if the log is opened again without its last batches."""
        lowest: dict[int, int] = {}
        for _, handle, sequence, _ in self._awaiting:
            producer_id = producer_of(handle)
            lowest[producer_id] = min(sequence, lowest.get(producer_id, sequence))
        for producer_id in self._publishers.keys() - lowest.keys():
            lowest[producer_id] = producers.next_sequence(producer_id) or 0
        return lowest

    def _end_log(self) -> None:
        """Let go of the log, once nothing runs on it any more."""
        wal, self._log = self._log, None
        if wal is not None and self._waits_for_sync:
            self._known_end = max(self._known_end, wal.durable_end)
        if wal is not None:
            self._ended_log = wal
            self._close_ended_log()

    def _close_ended_log(self) -> None:
        """Close the log that ended, unless a commit or a trim still runs on it; each of those ends here again."""
        wal = self._ended_log
        if wal is not None and not wal.committing and self._upkeep.trimming is not wal:
            self._ended_log = None
            wal.close()
            if self._deleted:
                self._erase_log()

    def _ready_log(self) -> Wal:
        if self._log is None:
            raise self._failure or StorageError(f"the log of topic {self.meta.name!r} is not open")
        return self._log

    # ---- producers ----------------------------------------------------------------------------------------------

    @receives(OpenProducer)
    def on_open_producer(self, command: OpenProducer) -> None:
        """Let a handle publish, and say which sequence number is expected of it."""
        try:
            producers = self._ready_log().producers
            expected = expected_sequence(producers, command, self.clock.time_ms())
        except (StorageError, RemoteError) as error:
            self._refuse_open(command, error)
            return
        if expected > command.sequence and self._log is not None:
            end = self._log.next_offset
            if self._reached(self._log) < end:  # where a producer stands is promised like a receipt
                self._fence(command)
                self._opening.append((end, command))
                self._schedule_commit()
                return
        self._open(command, expected)

    def _producer_closed(self, producer_id: int) -> None:
        if self._log is not None:
            self._log.producers.close(producer_id)

    def _answer_opens(self, end: int) -> None:
        while self._opening and self._opening[0][0] <= end and self._log is not None:
            _, command = self._opening.popleft()
            try:
                expected = expected_sequence(self._log.producers, command, self.clock.time_ms())
            except RemoteError as error:
                self._refuse_open(command, error)
            else:
                self._open(command, expected)

    def _refuse_opens(self, error: IsterError) -> None:
        while self._opening:
            self._refuse_open(self._opening.popleft()[1], error)

    @receives(Publish)
    def on_publish(self, publish: Publish) -> None:
        """Append a batch, unless it is a duplicate; the receipt follows when it is durable."""
        handle, sequence = publish.handle, publish.sequence
        publisher = handle.target
        if not isinstance(publisher, Publisher):
            return  # closed meanwhile, which was answered
        try:
            if len(self._awaiting) >= AWAITING_MAX:
                raise RemoteError("busy", "too many batches wait for this topic's disk; resend later")
            end, offset = self._take(publish, publisher.producer_id)
        except IsterError as error:
            if self._log is not None:
                self._log.producers.hold(publisher.producer_id, sequence)
            self._refuse(publish, error)
            self._check_failed(error)
            return
        self._awaiting.append((end, handle, sequence, offset))
        self._taken()

    @receives(Deposit)
    def on_deposit(self, deposit: Deposit) -> None:
        """Append a batch that comes from inside the broker, as a client's; it is answered when it is durable."""
        try:
            if len(self._deposits) >= DEPOSITS_MAX:
                raise RemoteError("busy", "too many batches wait for this topic's disk; resend later")
            self._ready_log().producers.expect(deposit.producer_id, deposit.sequence)
            end, _ = self._take(deposit, deposit.producer_id)
        except IsterError as error:
            self._refuse_deposit(deposit, error)
            self._check_failed(error)
            return
        self._deposits.append((end, deposit))
        self._taken()

    def _take(self, batch: Publish | Deposit, producer_id: int) -> tuple[int, int]:
        """Append a batch unless it is a duplicate; return what must be durable for it, and its offset.

        Raises StorageError, StoreError, RemoteError: then nothing was appended.
        """
        wal = self._ready_log()
        verdict = wal.producers.check(producer_id, batch.sequence, batch.count)
        if isinstance(verdict, Fresh):
            self._check_behind()
            if batch.columns & Column.DELIVER_AT:
                self._check_times(batch.frames[-1])
            self.last_published_ms = self.clock.time_ms()
            offset = wal.append(
                count=batch.count,
                producer_id=producer_id,
                sequence=batch.sequence,
                columns=batch.columns,
                frames=batch.frames,
                timestamp_ms=self.last_published_ms,
            )
            self.messages_in += batch.count
            self.bytes_in += len(batch.frames[1])
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

    def _check_failed(self, error: IsterError) -> None:
        """After a refusal: is it the log that failed, and not only this batch?"""
        if isinstance(error, StorageError) and self._log is not None and self._log.failed is not None:
            self._fail(error)

    def _taken(self) -> None:
        self._schedule_commit()
        if self.meta.durability == "cloud" and self._linger_timer is None:
            self._linger_timer = self.call_later(self._care.cloud_linger_s, self._linger_over)

    def _refuse_deposit(self, deposit: Deposit, error: IsterError) -> None:
        answer = DepositRefused(deposit.producer_id, deposit.sequence, error.code, error.text)
        self.system.at(deposit.reply).tell(answer)

    def _refuse_deposits(self, error: IsterError) -> None:
        """Whatever waits may be there or not: it is to be resent."""
        deposits, self._deposits = self._deposits, deque()
        for _, deposit in deposits:
            self._refuse_deposit(deposit, error)

    @receives(CloseProducer)
    def on_close_producer(self, command: CloseProducer) -> None:
        """Let a handle go once everything it sent before has its receipt."""
        if self._log is None or command.ref is None:
            self._closed(command)
            return
        self._closing.append((self._log.next_offset, command))
        self._schedule_commit()

    # ---- group commit -------------------------------------------------------------------------------------------

    def _schedule_commit(self) -> None:
        """Commit once, at the end of this turn, for everything that the turn brought."""
        if not self._commit_scheduled:
            self._commit_scheduled = True
            self.at_turn_end(self._commit)

    def _commit(self) -> None:
        self._commit_scheduled = False
        wal = self._log
        if wal is None:
            return
        if self._waits_for_sync:
            self._begin_commit()
        elif self._background_commit is None:
            self._background_commit = self.call_later(BACKGROUND_COMMIT_S, self._commit_in_background)
        self._announce(wal)

    def _commit_in_background(self) -> None:
        self._background_commit = None
        self._begin_commit()

    def _begin_commit(self) -> None:
        wal = self._log
        commit = wal.begin_commit() if wal is not None else None
        if wal is not None and commit is not None:
            self.commits += 1

            def ended(_: None, error: BaseException | None) -> None:
                try:
                    self._committed(wal, commit, error)
                except Exception as failure:  # noqa: BLE001 - as `offload`, which does not call a topic that is gone
                    self.fail(failure)

            self._commits.run(commit, ended)

    def _committed(self, wal: Wal, commit: Commit, error: BaseException | None) -> None:
        wal.end_commit(commit, error)
        if wal is not self._log:  # the log failed, or the topic was deleted or failed, meanwhile
            self._close_ended_log()
            return
        if error is not None:
            failure = wal.failed or StorageError(f"a commit of topic {self.meta.name!r} failed: {error}")
            self._fail(failure)
            return
        self._announce(wal)
        if wal.pending and self._waits_for_sync:
            self._begin_commit()
        self._prepare_spare()
        self._tell_sealed()

    def _announce(self, wal: Wal) -> None:
        """Send the receipts that are due, and tell the watchers how far they may read."""
        end = self._reached(wal)
        awaiting = self._awaiting
        if awaiting and awaiting[0][0] <= end:
            receipts: dict[Handle, list[int]] = {}
            while awaiting and awaiting[0][0] <= end:
                _, handle, sequence, offset = awaiting.popleft()
                pairs = receipts.setdefault(handle, [])
                pairs.append(sequence)
                pairs.append(offset)
            self._send_receipts(receipts)
        deposits = self._deposits
        while deposits and deposits[0][0] <= end:
            _, deposit = deposits.popleft()
            self.system.at(deposit.reply).tell(Deposited(deposit.producer_id, deposit.sequence))
        if end > self._told_end:
            self._told_end = end
            durable = Durable(end)
            for watcher in self._watchers.values():
                watcher.tell(durable)
        if self._closing:
            self._answer_closes(end)
        if self._opening:
            self._answer_opens(end)

    def _reached(self, wal: Wal) -> int:
        """Return the offset below which everything is durable at the topic's level."""
        if self.meta.durability == "os":
            return wal.next_offset
        if self.meta.durability == "cloud":
            return max(min(self._watermark, wal.durable_end), wal.start_offset)
        return wal.durable_end

    def _answer_closes(self, end: int | None) -> None:
        due = [command for offset, command in self._closing if end is None or offset <= end]
        self._closing = [] if end is None else [entry for entry in self._closing if entry[0] > end]
        for command in due:
            self._closed(command)

    def _prepare_spare(self) -> None:
        work = self._log.prepare_spare() if self._log is not None else None
        if work is not None:
            self._commits.aside(
                work, lambda _, error: self._guarded(lambda: self._spare_prepared(None, error))
            )

    def _spare_prepared(self, _: None, error: BaseException | None) -> None:
        if error is not None:  # the next roll will meet the same trouble, and say so to producers
            log.warning("topic %s: no spare segment: %s", self.meta.name, error)

    def _seal_check(self) -> None:
        self.call_later(SEAL_CHECK_S, self._seal_check)
        self._check_retention()
        self._tell_again()
        wal = self._log
        if wal is not None and (self._filled_for_long(wal) or wal.seal_due(self.clock.time_ms())):
            self._seal()
        self._rest()

    def _rest(self) -> None:
        """Have the log give back the room that it holds, when nothing was appended for a while."""
        wal, now_s = self._log, self.clock.monotonic()
        if wal is None:
            return
        if wal.next_offset != self._appended[0]:
            self._appended = (wal.next_offset, now_s)
        elif now_s - self._appended[1] >= REST_S and wal.rest():
            self._schedule_commit()
        if wal.failed is not None:
            self._fail(wal.failed)

    def _filled_for_long(self, wal: Wal) -> bool:
        """Say whether the segment that is being written is old enough, whatever the wall clock was set to."""
        now_s, base = self.clock.monotonic(), wal.sealed_end
        if wal.next_offset == base or self._filling[0] != base:
            self._filling = (base if wal.next_offset > base else -1, now_s)
            return False
        return (now_s - self._filling[1]) * 1000 >= wal.settings.segment_age_ms_max

    def _seal(self) -> None:
        wal = self._log
        if wal is None:
            return
        try:
            wal.seal()
        except DiskFullError as error:
            log.warning("topic %s: cannot seal: %s", self.meta.name, error)
            if self.meta.durability == "cloud":
                self._linger_timer = self.call_later(SEAL_CHECK_S, self._linger_over)
            return
        except StorageError as error:
            self._fail(error)
            return
        self._schedule_commit()

    # ---- watchers -----------------------------------------------------------------------------------------------

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Tell a subscription how far it may read, now and from now on."""
        watcher = self.system.at(command.watcher)
        self._watchers[command.watcher] = watcher
        if command.topic.settings != self.meta.settings:
            watcher.tell(TopicUpdated(self.meta))
        if self._log is not None:
            self._tell_attached(watcher, self._log)
        elif self._failure is not None:
            watcher.tell(TopicFailed(self._failure.code, self._failure.text))

    # ---- the tier -----------------------------------------------------------------------------------------------

    def _tell_sealed(self) -> None:
        sealed = self._log.sealed() if self._log is not None else ()
        self._note_behind(sealed)
        news = tuple(segment for segment in sealed[bisect_left(sealed, self._sealed_told, key=_base) :])
        damaged = self._damaged_behind(self._sealed_told)
        if news or damaged:
            self._sealed_told = max(segment.end for segment in news + damaged)
            self._uploader.tell(Sealed(self.meta, news, self.address, damaged, self._log_gaps()))

    def _log_gaps(self) -> tuple[tuple[int, int], ...]:
        """Return what is in no segment of the log, which goes on behind it."""
        if self._log is None or not self._log.damaged:
            return ()
        held = RangeSet((one.base, one.end) for one in (*self._log.sealed(), *self._log.set_aside()))
        gaps = RangeSet()
        for one in self._log.damaged:
            for gap in held.gaps(one.first, one.end) if one.first < one.end else ():
                gaps.add(*gap)
        return tuple(gaps)[:TOLD_AGAIN_MAX]

    def _damaged_behind(self, told: int) -> tuple[SegmentInfo, ...]:
        known = () if self._log is None else self._log.set_aside()
        return tuple(segment for segment in known if segment.end > told)

    def _tell_again(self) -> None:
        """Tell the tier once more what it should have taken long ago: it may not have heard, or not been heard."""
        now_s = self.clock.monotonic()
        watermark, since_s = self._waiting_at
        if self._watermark != watermark or self._log is None:
            self._waiting_at = (self._watermark, now_s)
            return
        if now_s - since_s < TELL_AGAIN_S:
            return
        self._waiting_at = (watermark, now_s)
        if not self._store_known:
            if self.meta.durability == "cloud":  # else there may be no tier
                self._keep_topic()
        elif self._sealed_told > watermark:
            sealed = self._log.sealed()
            first = bisect_left(sealed, watermark, key=_base)
            news = tuple(sealed[first : first + TOLD_AGAIN_MAX])
            damaged = self._damaged_behind(watermark)[:TOLD_AGAIN_MAX]
            if news or damaged:
                self._uploader.tell(Sealed(self.meta, news, self.address, damaged, self._log_gaps()))

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell the tier again what is sealed: it was started again, and knows nothing."""
        if started.node == self._uploader.address.node:
            self._sealed_told = self._watermark
            self._tell_sealed()
            self._keep_topic()

    def _keep_topic(self) -> None:
        """Have the topic claimed in the store, and learn what that has of it."""
        if self._log is not None:
            self._uploader.tell(
                KeepTopic(self.meta, self._log.start_offset, self._log.sealed_end, self.address)
            )

    @receives(Uploaded)
    def on_uploaded(self, command: Uploaded) -> None:
        """Note how far the store has the log; with durability cloud, that is what receipts wait for."""
        before = self._begins(self._log) if self._log is not None and self._store_known else None
        self._store_known, self._upload_trouble, self._uploads_stopped = True, None, False
        self._answer_fenced(fenced=False)
        self._stored_start, self._gaps, self._partly = command.start, command.gaps, command.damaged
        self._watermark = max(self._watermark, command.watermark)
        wal = self._log
        if wal is None:
            return
        self._note_behind(wal.sealed())
        if command.watermark > wal.next_offset:
            self._fail(
                DamagedError(
                    f"the store has offsets of topic {self.meta.name!r} up to {command.watermark}, but its local log "
                    f"ends at {wal.next_offset}: the log has lost its end, or belongs to another broker"
                )
            )
            return
        self._announce(wal)
        self._miss_history(wal)
        if before is None:
            for watcher in self._watchers.values():
                self._tell_attached(watcher, wal)
        elif self._begins(wal) != before:
            self._tell_start(wal)

    def _miss_history(self, wal: Wal) -> None:
        """Know what of the topic is nowhere, though no retention took it, and say so."""
        stored = RangeSet(
            [(self._stored_start, self._watermark)] if self._stored_start < self._watermark else ()
        )
        for gap in self._gaps:
            stored.subtract(*gap)
        for first, end in self._partly:  # of that it has what the log has, and no more
            for one in wal.damaged:
                if first < one.end and one.first < end:
                    stored.subtract(max(first, one.first), min(end, one.end))
        lost = (
            stored.gaps(self._begins(wal), wal.start_offset) if self._begins(wal) < wal.start_offset else []
        )
        for first, end in lost:
            if (first, end) not in self._upkeep.lost:
                log.error("topic %s: offsets %d to before %d: %s", self.meta.name, first, end, LOST)
        self._upkeep.elsewhere, self._upkeep.lost = stored, lost

    @receives(UploadDelayed)
    def on_upload_delayed(self, delayed: UploadDelayed) -> None:
        """Note why the store is behind."""
        self._upload_trouble = delayed.text

    @receives(Fenced)
    def on_fenced(self, fenced: Fenced) -> None:
        """Take nothing more: another broker has the topic; what is here is kept."""
        if fenced.end is not None and (self._log is None or self._log.sealed_end >= fenced.end):
            self._keep_topic()
            return
        name = self.meta.name
        self._fail(
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
        self._upload_trouble = stopped.text
        if self.meta.durability == "cloud":
            self._fail(StorageError(stopped.text, code="store-failed", action="stop"))
            return
        self._uploads_stopped = True
        if self._log is not None and not self._store_known:
            for watcher in self._watchers.values():
                self._tell_attached(watcher, self._log)

    def _tell_attached(self, watcher: Ref, wal: Wal) -> None:
        """Say how far may be read; with durability cloud nobody knows before the store has said what it has."""
        if self._store_known or self.meta.durability != "cloud":
            known = wal.start_offset == 0 or self._store_known or self._uploads_stopped
            stored = self._watermark if self._store_known else None
            begin = self._begins(wal) if known else None
            watcher.tell(Attached(begin, self._reached(wal), stored, wal.durable_end))

    def _begins(self, wal: Wal) -> int:
        """Return where the topic begins: below it everything went by retention. What is missing above it is damage."""
        if not (self._store_known or self._uploads_stopped):
            return wal.start_offset
        return min(max(self._stored_start, wal.retained), wal.start_offset)

    def _missing_below(self, wal: Wal) -> int:
        """Return the offset below which the beginning is missing, which no retention took; 0: none of it is."""
        first, end = next(iter(self._upkeep.lost), (0, 0))[:2]
        return end if first <= self._begins(wal) else 0

    def _check_behind(self) -> None:
        """Refuse more while too much waits for a store that is away."""
        if self._behind_bytes > self._care.behind_bytes_max:
            raise StoreError(
                f"topic {self.meta.name!r} has {self._behind_bytes} bytes that the store has not taken yet, "
                f"over behind_bytes_max ({self._care.behind_bytes_max}); it takes more when the store is back",
                code="store-behind",
            )

    def _note_behind(self, sealed: Sequence[SegmentInfo]) -> None:
        first = bisect_left(sealed, self._watermark, key=_base)
        self._behind_bytes = sum(segment.bytes for segment in sealed[first:])

    def _linger_over(self) -> None:
        """Durability cloud: seal what came, so that it is uploaded, and its receipts can be sent."""
        self._linger_timer = None
        self._seal()

    # ---- upkeep -------------------------------------------------------------------------------------------------

    def _check_retention(self) -> None:
        """Drop what retention allows; where acknowledgments count, ask first who is to acknowledge."""
        if self._upkeep.retention.acknowledged:
            known = sorted(self._upkeep.consumed)
            self._directory.tell(WhoSubscribes(self.meta.name, known, self.address))
        elif self._log is not None:
            self._upkeep.retain(self._log, self._watermark, self._stored_start, None)
        if self._upkeep.retention or self.meta.settings != self._retain_told:
            self._retain_told = self.meta.settings
            self._uploader.tell(Retain(self.meta, self._acknowledged))

    @receives(Consumed)
    def on_consumed(self, command: Consumed) -> None:
        """Note how far a subscription is done."""
        self._upkeep.consumed[command.subscription] = command.low

    @receives(FoundDamage)
    def on_found_damage(self, found: FoundDamage) -> None:
        """Note it, for whoever asks what there is; what the store lost must stay here, where it is here."""
        self._upkeep.note_damage(found)
        if found.asked:
            self._survey(lambda: None)

    def _survey(self, then: Callable[[], None]) -> None:
        """Have the store listed, and do what is to be done after that; also if it does not answer."""
        if not self._store_known or not self._watermark:
            then()
            return
        self._surveying.append(then)
        if len(self._surveying) == 1:
            self._uploader.tell(Survey(self.address))
            self._survey_timer = self.call_later(
                SURVEY_S, lambda: self.on_surveyed(Surveyed("it does not answer"))
            )

    @receives(Surveyed)
    def on_surveyed(self, surveyed: Surveyed) -> None:
        """Go on with what waited for it."""
        if self._survey_timer is not None:
            self._survey_timer.cancel()
            self._survey_timer = None
        if surveyed.trouble:
            log.warning(
                "topic %s: what the store has is not known anew: %s", self.meta.name, surveyed.trouble
            )
        surveying, self._surveying = self._surveying, []
        for then in surveying:
            then()

    @receives(Subscribers)
    def on_subscribers(self, command: Subscribers) -> None:
        """Note which subscriptions there are, and drop what all of them are done with."""
        self._acknowledged = self._upkeep.done_by_all(set(command.names))
        if self._log is not None:
            self._upkeep.retain(self._log, self._watermark, self._stored_start, self._acknowledged)

    def _trimmed(self, wal: Wal) -> None:
        if wal is not self._log:
            self._close_ended_log()
            return
        self._tell_start(wal)

    def _tell_start(self, wal: Wal) -> None:
        if wal.start_offset and not self._store_known:
            return
        trimmed = Trimmed(self._begins(wal))
        for watcher in self._watchers.values():
            watcher.tell(trimmed)

    def _skipped(self) -> None:
        for watcher in self._watchers.values():
            watcher.tell(Repaired())

    @receives(Update)
    def on_update(self, command: Update) -> None:
        """Take new settings."""
        self.meta = command.topic
        self._upkeep.retention = retention_of(self.meta)
        for watcher in self._watchers.values():
            watcher.tell(TopicUpdated(self.meta))
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))

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
            if self._log is None:
                reply(self._failure or StorageError(f"the log of topic {self.meta.name!r} is not open"))
            elif isinstance(command, Verify):
                self._upkeep.verify(self._log.durable_end, reply, command.number)
            else:
                self._upkeep.repair(self._log.durable_end, reply)

        if isinstance(command, Verify) and self._upkeep.verifying(command.number):
            care()
        else:
            self._survey(care)

    # ---- the rest -----------------------------------------------------------------------------------------------

    @property
    def damaged_ranges(self) -> int:
        """How many damaged places of the log are known."""
        return 0 if self._log is None else len(self._upkeep.damaged(self._log))

    @property
    def behind_bytes(self) -> int:
        """How many sealed bytes the store does not have yet."""
        return self._behind_bytes

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        body = self._description()
        body["commits"] = self.commits
        failure = self._failure
        if failure is None and self._uploads_stopped:
            failure = StorageError(self._upload_trouble or "", code="store-failed", action="stop")
        body["failure"] = None if failure is None else failure.text
        body["failure_code"] = None if failure is None else failure.code
        if self._log is not None:
            sealed = self._log.sealed()
            body |= {
                "start_offset": self._begins(self._log),
                "local_start": self._log.start_offset,
                "stored_start": self._stored_start,
                "behind_bytes": self._behind_bytes,
                "upload_failure": self._upload_trouble,
                "uploads_stopped": self._uploads_stopped,
                "missing": [list(each) for each in self._upkeep.lost],
                "missing_below": self._missing_below(self._log),
                "next_offset": self._log.next_offset,
                "durable_end": self._log.durable_end,
                "uploaded_end": self._watermark,
                "segments": len(sealed) + 1,
                "sealed_bytes": sum(segment.bytes for segment in sealed),
                "damaged": self._upkeep.damaged(self._log),
                "damaged_here": self._upkeep.damaged_here(self._log),
                "recovery": asdict(self._log.report),
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
        self._deleted = True
        had_log = self._log is not None or self._ended_log is not None
        fenced = self._failure is not None and self._failure.code == "fenced"
        self._end_log()
        self._failure = StorageError(
            f"topic {self.meta.name!r} was deleted", code="topic-deleted", action="stop"
        )
        self._uploader.tell(EraseStored(self.meta, self._directory.address, fenced))
        if not had_log:
            self._erase_log()
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.system.stop_actor(self.path)

    def _erase_log(self, tries: int = ERASE_TRIES) -> None:
        """Delete the log's folder; what cannot be deleted goes when the broker is started next."""
        try:
            self._erase()
        except OSError as error:  # a spare segment was just being made there
            if tries > 1:
                self.loop.call_later(ERASE_RETRY_S, lambda: self._erase_log(tries - 1))
            else:
                log.warning("the log of deleted topic %s is still there: %s", self.meta.name, error)

    @receives(AskFenced)
    def on_ask_fenced(self, command: AskFenced) -> None:
        """Say whether another broker has this topic, once the store has told; it is asked for within a few seconds."""
        self._fenced_asked.append(command)
        if self._failure is not None:
            self._answer_fenced(self._failure.code == "fenced")
        elif self._store_known:
            self._answer_fenced(fenced=False)

    def _answer_fenced(self, fenced: bool) -> None:
        asked, self._fenced_asked = self._fenced_asked, []
        for command in asked:
            self.system.at(command.reply).tell(Answer(command.ticket, encode_result({"fenced": fenced})))


def _base(segment: SegmentInfo) -> int:
    return segment.base
