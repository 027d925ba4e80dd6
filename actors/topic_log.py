"""The owner of a topic's log: it opens, commits and seals it, closes it after a failure, and deletes it.

Part of a ReliableTopic, in a worker process. It owns the write-ahead log and its state (`actors/log_state.py`). May
touch the log, the worker's commits, and timers.

Invariants
- a log that failed accepts nothing; it is opened again from what is really on disk, or not at all
- a log is closed once nothing runs on it any more, and the next one is not opened before that
- one commit runs at a time, and covers everything appended before it started
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from ister.actors.commits import Commits
from ister.actors.log_state import TRANSITIONS, LogEvent, LogState, event_of
from ister.actors.runtime import LoopActor, Timer
from ister.actors.threads import Purpose
from ister.errors import DiskFullError, StorageError
from ister.storage.commit import Commit
from ister.storage.meta import TopicMeta
from ister.storage.wal import Wal

log = logging.getLogger("ister.topic")

SEAL_CHECK_S: Final = 1.0  # seconds; how late a segment may be sealed by age
REST_S: Final = 5.0  # seconds; after this long without a message, a log frees what it holds for the next ones
BACKGROUND_COMMIT_S: Final = (
    1.0  # seconds; what durability "os" may lose with the machine, and how late files are sealed
)
ERASE_TRIES: Final = 50
ERASE_RETRY_S: Final = 0.1  # seconds; creating a spare segment takes less
REOPEN_DELAY_S: Final = 1.0  # seconds; a log that failed is not opened again sooner: the disk has just failed


class LogEvents(Protocol):
    """What a topic is told by its log."""

    def log_opened(self, wal: Wal) -> None:
        """The log accepts batches."""

    def log_failing(self, error: StorageError, wal: Wal | None) -> None:
        """The log accepts nothing more and is about to be closed: refuse what waits for it."""

    def log_failed(self, error: StorageError) -> None:
        """The log was closed after a failure."""

    def log_reached(self, wal: Wal) -> None:
        """More of the log may be durable."""


class TopicLog:
    """The log of `host`'s topic, which is told of its events.

    `open_log(known_end)` opens it; it must reach `known_end`. `erase` forgets it, and returns the deletion of its
    folder, which may run in any thread and raises OSError; `erased` is called when nothing of it is left.
    `is_held(wal)` says whether something else runs on a log; that calls `released(wal)` when it ends.
    `on_committed(wal)` is called when a commit has ended, after which segments may be sealed permanently.
    """

    def __init__(
        self,
        host: LoopActor,
        events: LogEvents,
        meta: TopicMeta,
        *,
        open_log: Callable[[int], Wal],
        erase: Callable[[], Callable[[], None]],
        erased: Callable[[], None],
        commits: Commits,
        is_held: Callable[[Wal], bool],
        on_committed: Callable[[Wal], None],
    ) -> None:
        self._host = host
        self._events = events
        self._topic = meta.name
        self._waits_for_sync = meta.durability != "os"
        self._open_log = open_log
        self._erase = erase
        self._erased = erased
        self._commits = commits
        self._is_held = is_held
        self._on_committed = on_committed
        self.wal: Wal | None = None  # while it is open
        self.state = LogState.CLOSED
        self.failure: StorageError | None = None  # why it is not open
        self.commits = 0
        self._ended: Wal | None = None  # a failed log, to be closed when what runs on it has ended
        self._known_end = 0  # a log of this topic was durable up to here
        self._reopen: Timer | None = None
        self._commit_scheduled = False
        self._background_commit: Timer | None = None  # for durability "os"
        # Where the segment that is being written begins, and since when it has records
        self._filling = (-1, 0.0)
        self._appended = (-1, 0.0)  # where it ended when last looked at, and since when

    # ---- its states ---------------------------------------------------------------------------------------------

    def _become(self, event: LogEvent) -> None:
        self.state, reopens = TRANSITIONS[self.state, event]
        if self._reopen is not None:
            self._reopen.cancel()
        self._reopen = self._host.call_later(REOPEN_DELAY_S, self.open) if reopens else None

    def open(self) -> None:
        """Open the log, unless it is open or deleted; if that fails with an error that may pass, it is tried again."""
        if self._ended is not None:
            self._become(LogEvent.FAILED)
            return
        if self.state not in (LogState.CLOSED, LogState.FAILED):
            return
        try:
            wal = self._open_log(self._known_end)
        except StorageError as error:
            self.fail(error)
            return
        self._become(LogEvent.OPENED)
        self.wal, self.failure = wal, None
        self._events.log_opened(wal)

    def ready(self) -> Wal:
        """Return the open log. Raises StorageError with the reason if it is not open."""
        if self.wal is None:
            raise self.failure or StorageError(f"the log of topic {self._topic!r} is not open")
        return self.wal

    def check(self, error: StorageError | None = None) -> None:
        """Close the log if it has failed, and not only refused one batch with `error`."""
        if self.wal is not None and self.wal.failed is not None:
            self.fail(error or self.wal.failed)

    def fail(self, error: StorageError) -> None:
        """Accept nothing more."""
        if self.state is LogState.DELETED:
            return
        log.error("topic %s: %s", self._topic, error)
        self.failure = error
        self._commit_scheduled = False
        self._events.log_failing(error, self.wal)
        self._become(event_of(error))
        self._let_go()
        self._events.log_failed(error)

    def delete(self, error: StorageError) -> None:
        """Accept nothing more, and delete the log's folder once nothing runs on it any more."""
        had_log = self.wal is not None or self._ended is not None
        self._become(LogEvent.DELETED)
        self.failure = error
        self._let_go()
        if not had_log:
            self._erase_folder()

    def end(self) -> None:
        """Close the log: its actor failed."""
        self._become(LogEvent.ENDED)
        self._let_go()

    def stop(self) -> None:
        """Write out what was appended and close the log, so that the next start has nothing to recover."""
        wal = self.wal
        if wal is not None and not wal.committing:
            with suppress(StorageError):
                wal.commit()
        if wal is not None:
            wal.prove_end()
        self.end()

    def _let_go(self) -> None:
        wal, self.wal = self.wal, None
        if wal is not None and self._waits_for_sync:
            self._known_end = max(self._known_end, wal.durable_end)
        if wal is not None:
            self._ended = wal
            self._close_ended()

    def released(self, wal: Wal) -> bool:
        """Note that something that ran on a log has ended; return whether that log is the open one."""
        if wal is self.wal:
            return True
        self._close_ended()
        return False

    def _close_ended(self) -> None:
        """Close the log that ended, unless something still runs on it; that calls this again when it ends."""
        wal = self._ended
        if wal is not None and not wal.committing and not self._is_held(wal):
            self._ended = None
            wal.close()
            if self.state is LogState.DELETED:
                self._erase_folder()

    def _erase_folder(self, tries: int = ERASE_TRIES) -> None:
        """Delete the log's folder in a thread; what cannot be deleted now, the next start of the broker deletes."""
        loop = self._host.loop  # the actor may have ended before the folder is deleted

        def deleted(_: None, error: BaseException | None) -> None:
            if error is None:
                self._erased()
            elif isinstance(error, OSError) and tries > 1:  # a spare segment was just being created there
                loop.call_later(ERASE_RETRY_S, lambda: self._erase_folder(tries - 1))
            else:
                log.warning("the log of deleted topic %s is still there: %s", self._topic, error)

        loop.offload(self._erase(), deleted, Purpose.TRIMS)

    # ---- group commit -------------------------------------------------------------------------------------------

    def schedule_commit(self) -> None:
        """Schedule one commit at the end of this turn for everything that the turn brings."""
        if not self._commit_scheduled:
            self._commit_scheduled = True
            self._host.at_turn_end(self._commit)

    def _commit(self) -> None:
        self._commit_scheduled = False
        wal = self.wal
        if wal is None:
            return
        if self._waits_for_sync:
            self._begin_commit()
        elif self._background_commit is None:
            self._background_commit = self._host.call_later(BACKGROUND_COMMIT_S, self._commit_in_background)
        self._events.log_reached(wal)

    def _commit_in_background(self) -> None:
        self._background_commit = None
        self._begin_commit()

    def _begin_commit(self) -> None:
        wal = self.wal
        commit = wal.begin_commit() if wal is not None else None
        if wal is not None and commit is not None:
            self.commits += 1

            def ended(_: None, error: BaseException | None) -> None:
                try:
                    self._committed(wal, commit, error)
                except Exception as failure:  # noqa: BLE001 - as `offload`, which does not call an actor that is gone
                    self._host.fail(failure)

            self._commits.run(commit, ended)

    def _committed(self, wal: Wal, commit: Commit, error: BaseException | None) -> None:
        wal.end_commit(commit, error)
        if wal is not self.wal:  # the log failed meanwhile, or its topic failed or was deleted
            self._close_ended()
            return
        if error is not None:
            self.fail(wal.failed or StorageError(f"a commit of topic {self._topic!r} failed: {error}"))
            return
        self._events.log_reached(wal)
        if wal.pending and self._waits_for_sync:
            self._begin_commit()
        self.prepare_spare()
        self._on_committed(wal)

    def prepare_spare(self) -> None:
        """Create the next segment's file in a thread, if that is due."""
        work = self.wal.prepare_spare() if self.wal is not None else None
        if work is not None:
            self._commits.aside(work, lambda _, error: self._spare_prepared(error))

    def _spare_prepared(self, error: BaseException | None) -> None:
        if error is not None and self.state not in (LogState.CLOSED, LogState.DELETED):
            # the next roll will have the same problem, and tell producers
            log.warning(
                "topic %s: the next segment could not be created ahead of time: %s", self._topic, error
            )

    # ---- sealing and resting ------------------------------------------------------------------------------------

    def look_after(self) -> float:
        """Seal a segment that is old enough, and free resources if nothing arrived.

        Return in how many seconds there may be something to do again, if nothing is appended until then.
        """
        wal = self.wal
        if wal is not None and (
            self._filled_for_long(wal) or wal.seal_due_in_ms(self._host.clock.time_ms()) <= 0
        ):
            self.seal()
            return 0.0
        self._rest()
        if (wal := self.wal) is None:
            return math.inf  # it is opened again, or never
        now_s = self._host.clock.monotonic()
        rests_in = math.inf if wal.at_rest else max(0.0, self._appended[1] + REST_S - now_s)
        return min(rests_in, self._seals_in(wal))

    def _seals_in(self, wal: Wal) -> float:
        """Return in how many seconds the segment that is being written is to be sealed; without one never."""
        if wal.next_offset == wal.sealed_end:
            return math.inf
        clock = self._host.clock
        filled_s = self._filling[1] + wal.settings.segment_age_ms_max / 1000 - clock.monotonic()
        return min(filled_s, wal.seal_due_in_ms(clock.time_ms()) / 1000)

    def _filled_for_long(self, wal: Wal) -> bool:
        """Return whether the segment that is being written is old enough, even if the wall clock was set."""
        now_s, base = self._host.clock.monotonic(), wal.sealed_end
        if wal.next_offset == base or self._filling[0] != base:
            self._filling = (base if wal.next_offset > base else -1, now_s)
            return False
        return (now_s - self._filling[1]) * 1000 >= wal.settings.segment_age_ms_max

    def seal(self) -> bool:
        """Seal what was written so far; return False if that is to be tried again later, because the disk is full."""
        wal = self.wal
        if wal is None:
            return True
        try:
            wal.seal()
        except DiskFullError as error:
            log.warning("topic %s: its segment could not be sealed: %s", self._topic, error)
            return False
        except StorageError as error:
            self.fail(error)
            return True
        self.schedule_commit()
        return True

    def _rest(self) -> None:
        """Free the disk space that the log holds in reserve, when nothing was appended for a while."""
        wal, now_s = self.wal, self._host.clock.monotonic()
        if wal is None:
            return
        if wal.next_offset != self._appended[0]:
            self._appended = (wal.next_offset, now_s)
        elif now_s - self._appended[1] >= REST_S and wal.rest():
            self.schedule_commit()
        self.check()
