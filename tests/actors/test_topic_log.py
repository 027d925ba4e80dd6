"""Tests of who owns a topic's log: it is opened again once, closed when nothing runs on it, and erased when deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from ister.actors.commits import Commits
from ister.actors.log_state import LogState
from ister.actors.runtime import LoopActor
from ister.actors.threads import Purpose
from ister.actors.topic_log import (
    BACKGROUND_COMMIT_S,
    ERASE_RETRY_S,
    ERASE_TRIES,
    REOPEN_DELAY_S,
    TopicLog,
)
from ister.errors import DamagedError, DiskFullError, StorageError
from ister.storage.meta import TopicMeta
from ister.storage.wal import Wal

FENCED = StorageError("another broker has it", code="fenced", action="stop")
GONE = StorageError("it was deleted", code="topic-deleted", action="stop")


class FakeWal:
    """A log that records what is done to it."""

    def __init__(self, known_end: int) -> None:
        self.known_end = known_end
        self.durable_end = known_end
        self.pending = False
        self.committing = False
        self.closed = False
        self.proven = False
        self.failed: StorageError | None = None
        self.full = False
        self.sealed = 0

    def begin_commit(self) -> object | None:
        self.committing = self.pending
        return object() if self.committing else None

    def end_commit(self, _commit: object, error: BaseException | None) -> None:
        self.committing = self.pending = False
        if error is None:
            self.durable_end += 1

    def commit(self) -> None:
        self.pending = False

    def prove_end(self) -> None:
        self.proven = True

    def prepare_spare(self) -> None:
        return None

    def seal(self) -> None:
        if self.full:
            raise DiskFullError("no room")
        self.sealed += 1

    def close(self) -> None:
        assert not self.committing
        self.closed = True


class Timer:
    """A call that may be cancelled."""

    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        self.due_s = due_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Owner:
    """A topic that owns a log, with a clock of its own; `heard` has the log's reports."""

    def __init__(self, durability: str = "fsync") -> None:
        self.now_s = 0.0
        self.timers: list[Timer] = []
        self.turn_end: list[Callable[[], None]] = []
        self.running: list[Callable[[None, BaseException | None], None]] = []  # commits
        self.wals: list[FakeWal] = []
        self.refuses: StorageError | None = None  # raised when the log is opened
        self.held = False
        self.erased = 0
        self.deletions: list[tuple[Callable[[], None], Any]] = []  # handed to a thread
        self.in_the_way = 0  # how many times the folder cannot be deleted
        self.heard: list[str] = []
        self.loop = self
        self.log = TopicLog(
            cast(LoopActor, self),
            self,
            TopicMeta("orders", bytes(16), "reliable", durability, 0),
            open_log=self.open_log,
            erase=self.erase,
            erased=lambda: self.heard.append("erased"),
            commits=cast(Commits, self),
            is_held=lambda _: self.held,
            on_committed=lambda _: self.heard.append("committed"),
        )

    # what the log is handed
    def open_log(self, known_end: int) -> Wal:
        if self.refuses is not None:
            raise self.refuses
        self.wals.append(FakeWal(known_end))
        return cast(Wal, self.wals[-1])

    def erase(self) -> Callable[[], None]:
        return self.delete_folder

    def delete_folder(self) -> None:
        if self.in_the_way:
            self.in_the_way -= 1
            raise OSError("not empty")
        self.erased += 1

    def offload(self, work: Callable[[], None], done: Any, purpose: Purpose) -> None:
        assert purpose is Purpose.TRIMS
        self.deletions.append((work, done))

    def delete_in_thread(self) -> None:
        """Let the thread do what was handed to it."""
        deletions, self.deletions = self.deletions, []
        for work, done in deletions:
            try:
                work()
            except OSError as error:
                done(None, error)
            else:
                done(None, None)

    def run(self, _commit: object, done: Callable[[None, BaseException | None], None]) -> None:
        self.running.append(done)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        self.timers.append(Timer(self.now_s + delay_s, call))
        return self.timers[-1]

    def at_turn_end(self, call: Callable[[], None]) -> None:
        self.turn_end.append(call)

    def fail(self, error: BaseException) -> None:
        raise error

    # the log's reports
    def log_opened(self, _wal: Wal) -> None:
        self.heard.append("opened")

    def log_failing(self, error: StorageError, wal: Wal | None) -> None:
        self.heard.append(f"failing {error.code}")

    def log_failed(self, error: StorageError) -> None:
        self.heard.append("failed")

    def log_reached(self, _wal: Wal) -> None:
        self.heard.append("reached")

    # what a test does
    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        due = [timer for timer in self.timers if timer.due_s <= self.now_s]
        self.timers = [timer for timer in self.timers if timer.due_s > self.now_s]
        for timer in due:
            if not timer.cancelled:
                timer.call()

    def waiting(self) -> int:
        """Return how many timers are set."""
        return sum(not timer.cancelled for timer in self.timers)

    def commit(self) -> None:
        """Append something, and let its commit begin."""
        self.wals[-1].pending = True
        self.log.schedule_commit()
        self.log.schedule_commit()
        calls, self.turn_end = self.turn_end, []
        for call in calls:
            call()

    def committed(self, error: BaseException | None = None) -> None:
        """Let the running commit end."""
        self.running.pop(0)(None, error)


@pytest.fixture
def owner() -> Owner:
    """Return a topic whose log is open."""
    made = Owner()
    made.log.open()
    return made


def test_one_commit_covers_a_turn_and_what_comes_in_shares_the_next(owner: Owner) -> None:
    """The second begins when the first has ended."""
    owner.commit()
    assert (len(owner.running), owner.log.commits) == (1, 1)
    owner.committed()
    assert owner.heard == ["opened", "reached", "reached", "committed"]


def test_durability_os_commits_in_the_background() -> None:
    """Appended messages are reported at once, and committed a while later."""
    owner = Owner("os")
    owner.log.open()
    owner.commit()
    assert (owner.running, owner.heard) == ([], ["opened", "reached"])
    owner.passes(BACKGROUND_COMMIT_S)
    assert len(owner.running) == 1


def test_a_log_that_failed_is_opened_again_behind_its_receipts(owner: Owner) -> None:
    """Once, after a delay, and it must reach what was durable before."""
    owner.commit()
    owner.committed()
    owner.commit()
    owner.committed(OSError("EIO"))
    assert (owner.log.state, owner.log.wal, owner.wals[0].closed) == (LogState.FAILED, None, True)
    with pytest.raises(StorageError, match="a commit of topic 'orders' failed"):
        owner.log.ready()
    owner.passes(REOPEN_DELAY_S)
    assert (owner.log.state, owner.log.failure, owner.waiting()) == (LogState.OPEN, None, 0)
    assert owner.wals[1].known_end == 1


def test_a_log_that_cannot_be_opened_is_tried_for_as_long_as_it_may_pass() -> None:
    """With one timer; an error that does not pass by itself ends that."""
    owner = Owner()
    owner.refuses = StorageError("EIO")
    owner.log.open()
    for _ in range(3):
        assert owner.waiting() == 1
        owner.passes(REOPEN_DELAY_S)
    owner.refuses = DamagedError("a hole")
    owner.passes(REOPEN_DELAY_S)
    assert (owner.log.state, owner.waiting(), owner.wals) == (LogState.FAILED, 0, [])
    assert owner.log.failure is owner.refuses


@pytest.mark.parametrize(
    ("what", "state"),
    [
        (lambda log: log.fail(FENCED), LogState.FENCED),
        (lambda log: log.fail(DamagedError("a hole")), LogState.FAILED),
        (lambda log: log.delete(GONE), LogState.DELETED),
        (lambda log: log.end(), LogState.CLOSED),
        (lambda log: log.stop(), LogState.CLOSED),
    ],
)
def test_every_transition_cancels_the_timer(
    owner: Owner, what: Callable[[TopicLog], None], state: LogState
) -> None:
    """A reopening that was planned does not happen in another state."""
    owner.log.fail(StorageError("EIO"))
    assert owner.waiting() == 1
    what(owner.log)
    assert (owner.log.state, owner.waiting()) == (state, 0)
    owner.passes(10 * REOPEN_DELAY_S)
    assert len(owner.wals) == 1


def test_what_runs_on_a_log_keeps_it_from_being_closed_and_opened(owner: Owner) -> None:
    """A commit, then a trim: the next log is opened when both have ended."""
    owner.commit()
    owner.held = True
    owner.log.fail(StorageError("EIO"))
    owner.passes(REOPEN_DELAY_S)
    assert (owner.wals[0].closed, len(owner.wals), owner.waiting()) == (False, 1, 1)
    owner.committed()
    assert not owner.wals[0].closed
    owner.held = False
    assert not owner.log.released(cast(Wal, owner.wals[0]))
    assert owner.wals[0].closed
    owner.passes(REOPEN_DELAY_S)
    assert owner.log.state is LogState.OPEN
    assert owner.log.released(cast(Wal, owner.wals[1]))


def test_a_deleted_log_is_erased_when_nothing_runs_on_it(owner: Owner) -> None:
    """And that does not change what was reported about it."""
    owner.commit()
    owner.log.delete(GONE)
    assert (owner.erased, owner.log.failure) == (0, GONE)
    owner.committed()
    assert (owner.wals[0].closed, owner.erased) == (True, 0)  # files of gigabytes: not on the loop
    owner.delete_in_thread()
    assert owner.erased == 1
    heard = list(owner.heard)
    owner.log.fail(FENCED)
    owner.log.stop()
    owner.log.open()
    assert (owner.log.state, owner.log.failure, owner.heard) == (LogState.DELETED, GONE, heard)


@pytest.mark.parametrize(("times", "erased"), [(0, 1), (3, 1), (ERASE_TRIES, 0)])
def test_a_folder_that_is_not_empty_yet_is_deleted_a_little_later(times: int, erased: int) -> None:
    """A spare segment was just being made there; what remains is deleted at the next start."""
    owner = Owner()
    owner.in_the_way = times
    owner.log.delete(GONE)
    for _ in range(ERASE_TRIES):
        owner.delete_in_thread()
        owner.passes(ERASE_RETRY_S)
    assert (owner.erased, owner.heard.count("erased"), owner.waiting()) == (erased, erased, 0)


def test_a_log_that_is_stopped_has_nothing_to_recover(owner: Owner) -> None:
    """Everything appended is written, and its end is proven."""
    wal = owner.wals[0]
    wal.pending = True
    owner.log.stop()
    assert (wal.pending, wal.proven, wal.closed) == (False, True, True)


@pytest.mark.parametrize("durability", ["fsync", "cloud"])
def test_a_disk_too_full_to_seal_is_no_failure(durability: str) -> None:
    """It says that it was not sealed, and is sealed when there is room."""
    owner = Owner(durability)
    owner.log.open()
    owner.wals[0].full = True
    assert not owner.log.seal()
    assert (owner.log.state, owner.waiting()) == (LogState.OPEN, 0)
    owner.wals[0].full = False
    assert owner.log.seal()
    assert owner.wals[0].sealed == 1


def test_a_batch_that_is_refused_is_no_failure_of_the_log(owner: Owner) -> None:
    """Unless the log reports that it has failed."""
    owner.log.check(StorageError("too large"))
    assert owner.log.state is LogState.OPEN
    owner.wals[0].failed = StorageError("EIO")
    owner.log.check()
    assert (owner.log.state, owner.log.failure) == (LogState.FAILED, owner.wals[0].failed)
