"""Topics: one owner of one order. `ReliableTopic` appends to its log; `NonReliableTopic` passes on from memory.

Runs in a worker process, one actor a topic.

Invariants
- offsets are assigned here and nowhere else, dense and in the order of arrival
- reliable: no receipt is sent and no subscription told of a message before the log says that it is durable
- reliable: a log that failed takes nothing more; it is opened again from what is really on disk, or not at all
- work is per batch; what can be shared by the batches of a turn (commit, receipts, notices) is
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from actors.messages import (
    Answer,
    Attach,
    Attached,
    CloseProducer,
    Delete,
    Describe,
    Detach,
    Durable,
    NodeStarted,
    NodeStopped,
    OpenProducer,
    Publish,
    Relayed,
    Sealed,
    StopUploads,
    TopicFailed,
    Uploaded,
)
from actors.runtime import Address, LoopActor, Ref, System, Timer, receives
from ister.errors import DiskFullError, IsterError, RemoteError, StorageError
from ister.wire import OFFSET_UNKNOWN, RECEIPTS_MAX, Key, Type, encode_result
from storage.catalogue import TopicMeta
from storage.producers import Duplicate, Fresh, Gap, ProducerTable
from storage.segment import SegmentInfo
from storage.wal import Commit, Wal
from transport.gateway import Gateway
from transport.session import Handle

log = logging.getLogger("ister.topic")

SEAL_CHECK_S: Final = 1.0  # how late a seal by age may be
BACKGROUND_COMMIT_S: Final = 1.0  # what durability "os" may lose with the machine, and how late files are sealed
REOPEN_DELAY_S: Final = 1.0  # a log that failed is opened again no sooner: the disk has just failed


class Publisher(NamedTuple):
    """What stands behind a producer's handle: its topic, and the producer id it opened with."""

    topic: Ref
    producer_id: int


class Topic(LoopActor):
    """What both kinds share: the producers that are open, and who watches."""

    def __init__(self, system: System, path: str, meta: TopicMeta, gateway: Gateway) -> None:
        super().__init__(system, path)
        self.meta = meta
        self._gateway = gateway
        self._publishers: dict[int, Handle] = {}  # by producer id: one handle each, the newest
        self._watchers: dict[Address, Ref] = {}
        self.messages_in = 0
        self.bytes_in = 0

    def _open(self, command: OpenProducer, expected: int) -> None:
        handle = command.handle
        if handle.generation != command.generation:
            return  # closed, or opened again, meanwhile
        older = self._publishers.get(command.producer_id)
        if older is not None and older is not handle and older.session.handles.get(older.number) is older:
            self._close_handle(older, RemoteError("producer-fenced", "a newer producer took this producer id"))
        self._publishers[command.producer_id] = handle
        handle.target = Publisher(self.ref, command.producer_id)
        if self._gateway.sessions.opened(handle, command.generation, "producer"):
            self._gateway.send(
                handle.session,
                {
                    Key.TYPE: Type.OPENED,
                    Key.REF: command.ref,
                    Key.HANDLE: handle.number,
                    Key.SEQUENCE: expected,
                    Key.BYTES: self._gateway.sessions.limits.producer_window_bytes,
                    Key.STRATEGY: self.meta.dispatch,
                },
            )

    def _refuse_open(self, command: OpenProducer, error: IsterError) -> None:
        handle = command.handle
        if handle.generation == command.generation:
            self._gateway.sessions.closed(handle)
            self._gateway.send_error(
                handle.session, error, {Key.REF: command.ref, Key.HANDLE: handle.number}
            )

    def _refuse(self, publish: Publish, error: IsterError) -> None:
        handle = publish.handle
        echo = {Key.HANDLE: handle.number, Key.SEQUENCE: publish.sequence}
        self._gateway.send_error(handle.session, error, echo)

    def _close_handle(self, handle: Handle, error: IsterError) -> None:
        self._gateway.send_error(handle.session, error, {Key.HANDLE: handle.number, Key.CLOSED: True})
        self._gateway.sessions.closed(handle)

    def _closed(self, command: CloseProducer) -> None:
        handle = command.handle
        if self._publishers.get(producer_of(handle)) is handle:
            del self._publishers[producer_of(handle)]
        self._gateway.sessions.closed(handle)
        if command.ref is not None:
            self._gateway.send(handle.session, {Key.TYPE: Type.DONE, Key.REF: command.ref})

    def _send_receipts(self, receipts: dict[Handle, list[int]]) -> None:
        for handle, pairs in receipts.items():
            for start in range(0, len(pairs), 2 * RECEIPTS_MAX):
                header = {
                    Key.TYPE: Type.RECEIPT,
                    Key.HANDLE: handle.number,
                    Key.RECEIPTS: pairs[start : start + 2 * RECEIPTS_MAX],
                }
                self._gateway.send(handle.session, header)

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Forget a watcher."""
        self._watchers.pop(command.watcher, None)

    @receives(NodeStopped)
    def on_node_stopped(self, stopped: NodeStopped) -> None:
        """Forget the watchers of a process that is gone; those of its next self attach again."""
        self._watchers = {a: ref for a, ref in self._watchers.items() if a.node != stopped.node}

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Nothing to tell a process that was started again."""

    def _leave(self, error: IsterError) -> None:
        for handle in list(self._publishers.values()):
            self._close_handle(handle, error)
        self._publishers.clear()

    def _description(self) -> dict[str, Any]:
        return {
            "topic": self.meta.name,
            "strategy": self.meta.dispatch,
            "producers": len(self._publishers),
            "messages_in": self.messages_in,
            "bytes_in": self.bytes_in,
        }


def producer_of(handle: Handle) -> int:
    """Return the producer id behind a handle, 0 when it has none."""
    return handle.target.producer_id if isinstance(handle.target, Publisher) else 0


class ReliableTopic(Topic):
    """A topic whose messages are durable before anybody hears of them.

    `open_log` opens its write-ahead log, and is called again after the log failed; `erase` deletes its folder; `uploader`
    is told of sealed segments.
    """

    def __init__(
        self,
        system: System,
        path: str,
        meta: TopicMeta,
        gateway: Gateway,
        *,
        open_log: Callable[[], Wal],
        erase: Callable[[], None],
        uploader: Ref,
    ) -> None:
        super().__init__(system, path, meta, gateway)
        self._open_log = open_log
        self._erase = erase
        self._uploader = uploader
        self._log: Wal | None = None
        self._failure: StorageError | None = None
        # (end offset, handle, sequence, first offset) in the order of arrival, for receipts still to be sent
        self._awaiting: deque[tuple[int, Handle, int, int]] = deque()
        self._closing: list[tuple[int, CloseProducer]] = []  # closes that wait for receipts
        self._commit_scheduled = False
        self._waits_for_sync = meta.durability != "os"
        self._background_commit: Timer | None = None  # of durability "os"
        self._ended_log: Wal | None = None  # failed, and to be closed when its running commit has ended
        self._watermark = 0
        self._deleted = False
        self._sealed_told = 0  # the uploader was told of segments up to here
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
            wal.close()

    def _open_or_fail(self) -> None:
        if self._ended_log is not None:
            self.call_later(REOPEN_DELAY_S, self._open_or_fail)
            return
        if self._log is not None or self._deleted:
            return
        try:
            self._log = self._open_log()
        except StorageError as error:
            self._fail(error)
            return
        self._failure = None
        report = self._log.report
        log.info("topic %s: %s", self.meta.name, report)
        attached = Attached(self._log.start_offset, self._log.durable_end)
        for watcher in self._watchers.values():
            watcher.tell(attached)
        self._prepare_spare()
        self._tell_sealed()

    def _fail(self, error: StorageError) -> None:
        """Take nothing more: whatever has no receipt yet gets the error, and may be there or not."""
        log.error("topic %s: %s", self.meta.name, error)
        self._failure = error
        self._commit_scheduled = False
        for _, handle, sequence, _ in self._awaiting:
            echo = {Key.HANDLE: handle.number, Key.SEQUENCE: sequence}
            self._gateway.send_error(handle.session, error, echo)
        self._awaiting.clear()
        self._answer_closes(None)
        self._end_log()
        for watcher in self._watchers.values():
            watcher.tell(TopicFailed(error.code, error.text))
        if error.action == "retry":
            self.call_later(REOPEN_DELAY_S, self._open_or_fail)

    def _end_log(self) -> None:
        """Let go of the log, once nothing runs on it any more."""
        wal, self._log = self._log, None
        if wal is not None and wal.committing:
            self._ended_log = wal
        elif wal is not None:
            wal.close()

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
        except StorageError as error:
            self._refuse_open(command, error)
            return
        self._open(command, _expected(producers, command))

    @receives(Publish)
    def on_publish(self, publish: Publish) -> None:
        """Append a batch, unless it is a duplicate; the receipt follows when it is durable."""
        handle, sequence, count = publish.handle, publish.sequence, publish.count
        publisher = handle.target
        if not isinstance(publisher, Publisher):
            return  # closed meanwhile, which was answered
        try:
            wal = self._ready_log()
            verdict = wal.producers.check(publisher.producer_id, sequence, count)
            if isinstance(verdict, Fresh):
                offset = wal.append(
                    count=count,
                    producer_id=publisher.producer_id,
                    sequence=sequence,
                    columns=publish.columns,
                    frames=publish.frames,
                    timestamp_ms=self.clock.time_ms(),
                )
                self.messages_in += count
                self.bytes_in += len(publish.frames[1])
            elif isinstance(verdict, Duplicate):
                offset = OFFSET_UNKNOWN if verdict.first_offset is None else verdict.first_offset
            else:
                self._refuse(publish, _sequence_error(verdict, publish))
                return
        except DiskFullError as error:
            self._refuse(publish, error)
            return
        except StorageError as error:
            self._refuse(publish, error)
            if self._log is not None and self._log.failed is not None:
                self._fail(error)
            return
        end = 0 if offset == OFFSET_UNKNOWN else offset + count
        self._awaiting.append((end, handle, sequence, offset))
        self._schedule_commit()

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
            self.offload(commit.run, lambda _, error: self._committed(wal, commit, error))

    def _committed(self, wal: Wal, commit: Commit, error: BaseException | None) -> None:
        wal.end_commit(commit, error)
        if wal is not self._log:  # it failed, or was deleted, meanwhile
            wal.close()
            self._ended_log = None
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
        end = wal.durable_end if self._waits_for_sync else wal.next_offset
        awaiting = self._awaiting
        if awaiting and awaiting[0][0] <= end:
            receipts: dict[Handle, list[int]] = {}
            while awaiting and awaiting[0][0] <= end:
                _, handle, sequence, offset = awaiting.popleft()
                pairs = receipts.setdefault(handle, [])
                pairs.append(sequence)
                pairs.append(offset)
            self._send_receipts(receipts)
            durable = Durable(end)
            for watcher in self._watchers.values():
                watcher.tell(durable)
        if self._closing:
            self._answer_closes(end)

    def _answer_closes(self, end: int | None) -> None:
        due = [command for offset, command in self._closing if end is None or offset <= end]
        self._closing = [] if end is None else [entry for entry in self._closing if entry[0] > end]
        for command in due:
            self._closed(command)

    def _prepare_spare(self) -> None:
        work = self._log.prepare_spare() if self._log is not None else None
        if work is not None:
            self.offload(work, self._spare_prepared)

    def _spare_prepared(self, _: None, error: BaseException | None) -> None:
        if error is not None:  # the next roll will meet the same trouble, and say so to producers
            log.warning("topic %s: no spare segment: %s", self.meta.name, error)

    def _seal_check(self) -> None:
        self.call_later(SEAL_CHECK_S, self._seal_check)
        wal = self._log
        if wal is not None and wal.seal_due(self.clock.time_ms()):
            try:
                wal.seal()
            except DiskFullError as error:
                log.warning("topic %s: cannot seal: %s", self.meta.name, error)
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
        if self._log is not None:
            end = self._log.durable_end if self._waits_for_sync else self._log.next_offset
            watcher.tell(Attached(self._log.start_offset, end))
        elif self._failure is not None:
            watcher.tell(TopicFailed(self._failure.code, self._failure.text))

    # ---- the tier -----------------------------------------------------------------------------------------------

    def _tell_sealed(self) -> None:
        sealed = self._log.sealed() if self._log is not None else ()
        news = tuple(segment for segment in sealed[bisect_left(sealed, self._sealed_told, key=_base) :])
        if news:
            self._sealed_told = news[-1].end
            self._uploader.tell(Sealed(self.meta, news, self.address))

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell the tier again what is sealed: it was started again, and knows nothing."""
        if started.node == self._uploader.address.node:
            self._sealed_told = self._watermark
            self._tell_sealed()

    @receives(Uploaded)
    def on_uploaded(self, command: Uploaded) -> None:
        """Note how far the store has the log."""
        self._watermark = max(self._watermark, command.watermark)

    # ---- the rest -----------------------------------------------------------------------------------------------

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        body = self._description()
        body["commits"] = self.commits
        body["failure"] = None if self._failure is None else self._failure.text
        if self._log is not None:
            sealed = self._log.sealed()
            body |= {
                "start_offset": self._log.start_offset,
                "next_offset": self._log.next_offset,
                "durable_end": self._log.durable_end,
                "uploaded_end": self._watermark,
                "segments": len(sealed) + 1,
                "sealed_bytes": sum(segment.bytes for segment in sealed),
                "recovery": str(self._log.report),
            }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Refuse everything from now on, and delete the log."""
        self._leave(RemoteError("topic-deleted", f"topic {self.meta.name!r} was deleted"))
        self._deleted = True
        self._end_log()
        self._failure = StorageError(f"topic {self.meta.name!r} was deleted", code="topic-deleted", action="stop")
        self._erase()
        self._uploader.tell(StopUploads())
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.system.stop_actor(self.path)


class NonReliableTopic(Topic):
    """A topic in memory: what comes in goes out to one relay a worker, in the same turn, and is forgotten.

    Offsets are running numbers since the actor started, so that a consumer can see a gap; they are kept nowhere.
    """

    def __init__(self, system: System, path: str, meta: TopicMeta, gateway: Gateway) -> None:
        super().__init__(system, path, meta, gateway)
        self._next_offset = 0
        self._producers = ProducerTable()
        self._receipts: dict[Handle, list[int]] = {}
        self._heads: list[int] = []
        self._frames: list[Any] = []
        self._scheduled = False

    @receives(OpenProducer)
    def on_open_producer(self, command: OpenProducer) -> None:
        """Let a handle publish."""
        self._open(command, _expected(self._producers, command))

    @receives(Publish)
    def on_publish(self, publish: Publish) -> None:
        """Queue a batch for the end of this turn, with all others that came in it."""
        handle, sequence, count = publish.handle, publish.sequence, publish.count
        publisher = handle.target
        if not isinstance(publisher, Publisher):
            return
        verdict = self._producers.check(publisher.producer_id, sequence, count)
        if isinstance(verdict, Duplicate):
            offset = OFFSET_UNKNOWN if verdict.first_offset is None else verdict.first_offset
        elif isinstance(verdict, Fresh | Gap):  # a batch that was lost on the way is lost: go on
            offset = self._next_offset
            self._producers.advance(publisher.producer_id, sequence, count, offset, self.clock.time_ms())
            self._next_offset += count
            self._heads += (offset, count, self.clock.time_ms(), publish.columns)
            self._frames += publish.frames
            self.messages_in += count
            self.bytes_in += len(publish.frames[1])
        else:
            self._refuse(publish, _sequence_error(verdict, publish))
            return
        pairs = self._receipts.setdefault(handle, [])
        pairs.append(sequence)
        pairs.append(offset)
        if not self._scheduled:
            self._scheduled = True
            self.at_turn_end(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._heads:
            relayed = Relayed(self._heads, tuple(self._frames))
            self._heads, self._frames = [], []
            for watcher in self._watchers.values():
                watcher.tell(relayed)
        receipts, self._receipts = self._receipts, {}
        self._send_receipts(receipts)

    @receives(CloseProducer)
    def on_close_producer(self, command: CloseProducer) -> None:
        """Let a handle go, after the receipts of what it sent."""
        self._flush()
        self._closed(command)

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Send a relay everything from now on."""
        self._watchers[command.watcher] = self.system.at(command.watcher)
        self._watchers[command.watcher].tell(Attached(self._next_offset, self._next_offset))

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        body = self._description() | {"next_offset": self._next_offset, "relays": len(self._watchers)}
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Refuse everything from now on."""
        self._leave(RemoteError("topic-deleted", f"topic {self.meta.name!r} was deleted"))
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.system.stop_actor(self.path)


def _base(segment: SegmentInfo) -> int:
    return segment.base


def _expected(producers: ProducerTable, command: OpenProducer) -> int:
    """Return the sequence number a producer that opens has to go on with."""
    producers.expect(command.producer_id, command.sequence)
    known = producers.next_sequence(command.producer_id)
    return command.sequence if known is None else known


def _sequence_error(verdict: object, publish: Publish) -> RemoteError:
    expected = getattr(verdict, "expected", None)
    if isinstance(verdict, Gap):
        text = f"sequence {publish.sequence} is not the next one ({expected}): resend from there"
        return RemoteError("sequence-gap", text)
    text = f"sequence {publish.sequence} with {publish.count} messages is cut differently than before (expected {expected})"
    return RemoteError("sequence-overlap", text)
