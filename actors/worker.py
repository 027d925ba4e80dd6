"""A worker process: its composition root. Runs in: worker-0, worker-1, ...

Makes the disk, the maps, the gateway and the Frontend; starts Topics, Subscriptions and Relays when they are needed.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from ister.actors.addresses import BROKER, DIRECTORY_PATH, FETCHER_PATH, FRONTEND_PATH, TIER, actor_path
from ister.actors.allocator import FreedMemory, keep_freed_memory
from ister.actors.commits import Commits
from ister.actors.deadletters import dead_letters
from ister.actors.frontend import Frontend
from ister.actors.nonreliable_topic import NonReliableTopic
from ister.actors.process import EXIT_FAILED, ProcessContext, process_description
from ister.actors.relay import Relay
from ister.actors.reliable_topic import ReliableTopic
from ister.actors.runtime import Ref
from ister.actors.subscription import Subscription
from ister.actors.subscription.deliveries import from_log, from_memory
from ister.actors.subscription.from_memory import MemoryGiven
from ister.actors.subscription.log_parts import LogGiven
from ister.actors.subscription.parts import Delivery, Host
from ister.actors.subscription.reading import MemoryJournal
from ister.actors.upkeep import LogCare
from ister.errors import LogFailedError
from ister.settings import Settings
from ister.storage.apart import CheckRules, Kept, verify_aside
from ister.storage.cursor_files import highest_acknowledged
from ister.storage.cursor_journal import CursorJournal
from ister.storage.damage import skip_damaged
from ister.storage.disk import Disk, LocalDisk
from ister.storage.folders import cache_folder, cursor_path, cursors_folder, log_folder
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.openfiles import OpenFiles, descriptor_limit
from ister.storage.reserve import Reserve
from ister.storage.segment_maps import SegmentMaps
from ister.storage.trim import remove_log
from ister.storage.wal import Wal, WalSettings
from ister.storage.wholereader import TieredReader
from ister.storage.withdrawing import withdraw_from
from ister.subscriptions import READER
from ister.transport.gateway import Gateway
from ister.transport.session import SessionLimits, Sessions

log = logging.getLogger("ister.worker")

CHECK_TURN: Final = "check"  # the file in the folder of sockets that is held while a large log is checked
PROCESS_DESCRIPTORS: Final = 64  # mail, the loop, threads, connections without a session, the reserve
IDLE_FILES_EACH: Final = 4  # rounds of `keep_up`: a log that was not used for 20 to 40 s has no descriptor
KEEP_UP_S: Final = 5.0  # seconds; how long a deleted segment may occupy the disk because it was being read


def sessions_by_descriptors(files: OpenFiles) -> int:
    """Return how many sessions the file descriptors suffice for, beside those of logs and the process."""
    return descriptor_limit() - files.files_max - PROCESS_DESCRIPTORS


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is given: the broker's settings, the address it binds, and the one for clients."""

    settings: Settings
    data: str
    bind: str
    endpoint: str


def remove_cursor(disk: Disk, journal: str) -> None:
    """Delete a subscription's cursor with the files beside it, and the topic's folder if it is empty then.

    Raises OSError.
    """
    folder, _, name = journal.rpartition("/")
    try:
        names = disk.listdir(folder)
    except FileNotFoundError:
        return
    for each in names:
        if each == name or each.startswith(f"{name}."):  # damaged cursors, and unfinished replacements
            with suppress(FileNotFoundError):
                disk.unlink(f"{folder}/{each}")
    if len(names) == 1 or not disk.listdir(folder):
        with suppress(OSError):  # another worker was just creating or deleting a cursor there
            disk.rmdir(folder)


class Worker:
    """The actors of one worker, and what they share."""

    def __init__(self, context: ProcessContext, given: WorkerSettings) -> None:
        self._context = context
        self._given = given
        settings = given.settings
        self._disk = LocalDisk()
        self._maps = SegmentMaps(self._disk)
        # all workers of this broker take turns
        self._check_rules = CheckRules(
            settings.log.check_core_percent, f"{context.folder}/{CHECK_TURN}", Kept()
        )
        self._was_short = False
        self._kept_up = 0
        self._freed = FreedMemory()
        self._logs: dict[str, Wal] = {}  # by folder, the log opened last
        self._limits = SessionLimits(
            message_bytes_max=settings.protocol.message_bytes_max,
            batch_bytes_max=settings.protocol.batch_bytes_max,
            batches_in_flight_max=settings.protocol.batches_in_flight_max,
            producer_window_bytes=settings.protocol.producer_window_bytes,
            session_timeout_ms=settings.protocol.session_timeout_ms,
            handles_max=settings.protocol.handles_per_session_max,
            credit_messages_max=settings.protocol.consumer_credit_messages_max,
            credit_bytes_max=settings.protocol.consumer_credit_bytes_max,
            heartbeat_ms=settings.protocol.heartbeat_ms,
            sessions_max=max(
                1, min(settings.protocol.sessions_max, sessions_by_descriptors(self._disk.files))
            ),
            resume_within_ms=settings.protocol.resume_within_ms,
        )
        sessions = Sessions(context.boot, self._limits, lambda: secrets.token_bytes(16))
        self.gateway = Gateway(context.zmq, context.clock, sessions)
        self._uploader_node = TIER
        context.system.spawn(Frontend, FRONTEND_PATH, self.gateway, self, self.describe)
        frontend = context.system.find(FRONTEND_PATH)
        assert isinstance(frontend, Frontend)
        self.frontend = frontend
        context.system.on_unclaimed = frontend.unclaimed
        context.system.on_actor_failure = self._actor_failed
        context.listen(frontend.ref)

    def _actor_failed(self, path: str, error: Exception) -> None:
        """End the worker, which is then restarted, if its Frontend failed: without it no client is served."""
        if path == FRONTEND_PATH:
            log.critical("the Frontend failed: %s", error)
            self._context.stop(EXIT_FAILED)

    def look_after_connections(self) -> None:
        """Close the connections that must go, now and periodically."""
        self._context.loop.call_later(self.gateway.look_after_connections(), self.look_after_connections)

    def is_short(self) -> bool:
        """Return whether file descriptors are nearly used up."""
        short = self._disk.files.is_short()
        if short and not self._was_short:
            log.warning(
                "file descriptors are nearly used up (limit %d): connections without a session are closed; raise the "
                "limit (ulimit -n)",
                descriptor_limit(),
            )
        self._was_short = short
        return short

    def describe(self) -> dict[str, Any]:
        """Return what `status` shows about this worker."""
        counts = self.gateway.counts
        system = self._context.system
        topics = [each for path in system.paths() if isinstance(each := system.find(path), ReliableTopic)]
        return process_description(self._context, "worker", self._given.endpoint) | {
            "sessions": len(self.gateway.sessions),
            "frames_in": counts.frames_in,
            "frames_out": counts.frames_out,
            "bytes_in": counts.bytes_in,
            "bytes_out": counts.bytes_out,
            "errors_out": counts.errors_out,
            "damaged_ranges": sum(topic.damaged_ranges for topic in topics),
            "behind_bytes": sum(topic.behind_bytes for topic in topics),
            "malformed": counts.malformed,
            "commits": self.commits.commits,
            "commits_together": self.commits.commits_together,
            "syncs_together": self.commits.syncs_together,
        }

    def keep_up(self) -> None:
        """Free what is not needed any more, periodically."""
        self._context.loop.call_later(KEEP_UP_S, self.keep_up)
        self._maps.drop_deleted()
        self._maps.rest()
        self._freed.look(self.gateway.counts.bytes_in + self.gateway.counts.bytes_out)
        self._kept_up += 1
        if self._kept_up % IDLE_FILES_EACH == 0:
            self._disk.files.rest_idle()

    @cached_property
    def reserve(self) -> Reserve:
        """The disk space reserved for writing this worker's cursors on a full disk."""
        reserve = Reserve(self._disk, f"{self._given.data}/{self._context.node}.reserve", self._context.clock)
        reserve.keep()
        return reserve

    @cached_property
    def commits(self) -> Commits:
        """The commits of this worker's topics."""
        return Commits(self._context.loop, self._disk.file_system(self._given.data))

    def topic(self, meta: TopicMeta) -> Ref:
        """Return the Topic of this worker; it is started if necessary."""
        system, path = self._context.system, actor_path("topic", meta)
        if system.find(path) is not None:
            return system.ref(system.node, path)
        if meta.dispatch == "non-reliable":
            return system.spawn(NonReliableTopic, path, meta, self.gateway)
        folder = log_folder(self._given.data, meta)
        settings = self._given.settings.log
        wal_settings = WalSettings(
            segment_bytes_max=settings.segment_bytes_max, segment_age_ms_max=settings.segment_age_ms_max
        )

        def open_log(known_end: int) -> Wal:
            before = self._logs.get(folder)
            if (
                before is not None and not before.closed
            ):  # of an earlier actor of the topic, which failed: a commit that seals may still cut its file
                raise LogFailedError(
                    f"a task still uses the log of topic {meta.name!r}; it is opened when that has ended"
                )
            restored_end = int(meta.settings.get("restored_end", 0))
            # everything that was acknowledged had been durable
            if meta.durability != "os" and not restored_end:
                cursors = cursors_folder(self._given.data, meta)
                known_end = max(known_end, highest_acknowledged(self._disk, cursors, meta.incarnation))
            wal = self._logs[folder] = Wal.open(
                self._disk,
                folder,
                topic=meta.name,
                incarnation=meta.incarnation,
                settings=wal_settings,
                clock=self._context.clock,
                known_end=known_end,
                start_offset=restored_end,
            )
            if meta.durability == "os" and before is None:
                cursors = cursors_folder(self._given.data, meta)
                for name in withdraw_from(self._disk, cursors, meta.incarnation, wal.next_offset):
                    log.warning(
                        "topic %s: cursor %s acknowledged messages that the log has lost: withdrawn from offset %d on",
                        meta.name,
                        name,
                        wal.next_offset,
                    )
            return wal

        def erase() -> Callable[[], None]:
            self._logs.pop(folder, None)
            self._maps.forget(folder)
            return lambda: remove_log(self._disk, folder)

        uploader = system.ref(self._uploader_node, actor_path("uploader", meta))
        return system.spawn(
            ReliableTopic,
            path,
            meta,
            self.gateway,
            open_log=open_log,
            erase=erase,
            commits=self.commits,
            uploader=uploader,
            directory=system.ref(BROKER, DIRECTORY_PATH),
            care=LogCare(
                verify=lambda end: verify_aside(
                    self._disk, folder, meta.incarnation, durable_end=end, rules=self._check_rules
                ),
                skip_damaged=lambda end, elsewhere, lost: skip_damaged(
                    self._disk,
                    folder,
                    meta.incarnation,
                    durable_end=end,
                    elsewhere=elsewhere,
                    lost=lost,
                    rules=self._check_rules,
                ),
                local_bytes=settings.local_bytes,
                behind_bytes_max=settings.behind_bytes_max,
                segment_bytes=settings.segment_bytes_max,
                cloud_linger_s=settings.cloud_linger_ms / 1000,
                cloud_window_bytes=self._given.settings.protocol.cloud_window_bytes,
                uploads=self._given.settings.tier.upload_parallel,
            ),
        )

    def subscription(self, topic: TopicMeta, meta: SubscriptionMeta, topic_node: str) -> Ref:
        """Return the Subscription of this worker; it is started if necessary."""
        system = self._context.system
        path = actor_path("subscription", topic, meta)
        if system.find(path) is not None:
            return system.ref(system.node, path)
        settings = self._given.settings
        topic_ref = system.ref(topic_node, actor_path("topic", topic))

        def spawn(deliver_by: Callable[[Host], Delivery]) -> Ref:
            return system.spawn(
                Subscription,
                path,
                topic,
                meta,
                limits=self._limits,
                ack_timeout_ms=settings.subscription.ack_timeout_ms,
                deliver_by=deliver_by,
            )

        if topic.dispatch == "non-reliable":

            def relay() -> Ref:
                relay_path = actor_path("relay", topic)
                if system.find(relay_path) is None:
                    system.spawn(Relay, relay_path, topic, topic_ref)
                return system.ref(system.node, relay_path)

            memory = MemoryGiven(
                relay=relay,
                buffer_messages_max=settings.subscription.buffer_messages_max,
                buffer_bytes_max=settings.subscription.buffer_bytes_max,
                drop=settings.subscription.drop,
            )
            return spawn(from_memory(memory))
        folder = log_folder(self._given.data, topic)
        journal = cursor_path(self._given.data, topic, meta)
        cached = cache_folder(self._given.data, topic)

        def open_journal(start: Callable[[], int]) -> CursorJournal:
            if meta.type == READER:
                return MemoryJournal(start())
            begin = 0 if self._disk.exists(journal) else start()
            opened = CursorJournal.open(self._disk, journal, topic.incarnation, begin)
            opened.reserve = self.reserve
            return opened

        def erase() -> None:
            self._maps.forget(
                folder
            )  # if the topic is deleted as well and runs elsewhere, no other process does
            remove_cursor(self._disk, journal)

        given = LogGiven(
            topic_ref=topic_ref,
            directory=system.ref(BROKER, DIRECTORY_PATH),
            fetcher=system.ref(TIER, FETCHER_PATH),
            uploader=system.ref(TIER, actor_path("uploader", topic)),
            open_journal=open_journal,
            open_reader=lambda offset: TieredReader(self._maps, folder, cached, topic.incarnation, offset),
            erase=erase,
            flush_ms=settings.log.cursor_flush_ms,
            sync_ms=settings.log.cursor_sync_ms,
            store_ms=settings.tier.cursor_upload_ms,
            undertaker=lambda: dead_letters(system, topic, meta, system.ref(system.node, path)),
            defaults=settings.subscription,
        )
        return spawn(from_log(meta.type, given))


def run_worker(context: ProcessContext) -> None:
    """Compose a worker: the target of its process. Raises `UsageError` if its address is in use."""
    given: WorkerSettings = context.settings
    keep_freed_memory()
    worker = Worker(context, given)
    worker.gateway.bind(given.bind, worker.frontend)
    context.loop.watch(worker.gateway.socket, worker.gateway.receive, sends=True)
    context.loop.watch(worker.gateway.watch_connections(worker.is_short), worker.gateway.read_connections)
    worker.look_after_connections()
    worker.keep_up()
    context.ready(given.endpoint)
