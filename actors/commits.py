"""The commits of all topics of a worker: which run together, and how.

`Choice` decides, and is pure: it knows numbers and times, no thread and no disk. `Commits` carries the decisions out
in the threads of the loop.

There are two ways to make n commits durable: file by file in a few lanes (threads), or one sync of the whole file
system, which costs the disk one flush for all (`benchmarks/fsync.py`) but also waits for other programs' writes.

Invariants
- the end of a commit is reported only after it is durable, or has failed
- a commit is synced once; a failed sync is never repeated here
- when a file's sync fails, only its commit fails; when the sync of the file system fails, all commits that it covered
  fail
- a commit that finds everything idle starts at once, alone; commits that arrive while something runs are decided on a
  turn later
- commits start in the order of arrival; at most one sync of the file system and `lanes` lanes run
- other work (spare segments, milliseconds each) has at most one thread, however many topics need it
- when a sync of the file system takes longer than the files would have taken one by one, it is not used for a while,
  and later commits do not wait for it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from ister.actors.loop import Scheduler, Timer
from ister.actors.threads import Purpose
from ister.storage.disk import FileSystem

# With a sync of the file system these are the four threads for commits.
LANES: Final = 3
# A lane takes several commits at once where the disk is fast, since each hand-over to a thread and back costs about as
# much as a sync. So long may the first of them wait for its receipt because of the others.
LANE_S_MAX: Final = 0.002
LANE_COMMITS_MAX: Final = 16
# The estimate for a file's sync is the shortest seen, raised by this factor with each sync: longer ones include
# waiting for the interpreter and for other syncs, which says nothing about the disk.
ESTIMATE_RISE: Final = 1.05
# A sync that is faster than this is never slow: a turn of the loop may take as long.
SLOW_S_MIN: Final = 0.010
# How soon a running sync of the file system is checked for being slow.
LOOK_S_MIN: Final = 0.001
# After a sync of the file system that was too slow, none is tried for this many times the excess: another program
# that fills the disk delays our commits by a tenth of the time at most.
BAN_FACTOR: Final = 10.0
# Ends reported per turn: each sends receipts and notices, some 20 us, and sockets must be polled in between.
ENDS_PER_TURN: Final = 64


class Syncable(Protocol):
    """What `Commits` makes durable: a log's `Commit`."""

    @property
    def path(self) -> str:
        """One of its files, or its folder; all paths are in the same file system."""

    def run(self) -> None:
        """Sync its files. Raises OSError."""

    def prepare(self) -> None:
        """Do the part of `run` that is not a sync. Raises OSError."""


Done = Callable[[None, BaseException | None], None]


class Group(NamedTuple):
    """The oldest `commits` that wait, to be made durable by one sync of the file system (`together`) or in one lane."""

    together: bool
    commits: int


class Choice:
    """Decides which commits run together, and how; times are seconds of one clock."""

    def __init__(self, lanes: int = LANES) -> None:
        self.lanes = lanes
        self.file_s: float | None = None  # how long a single commit takes; None until one was measured
        self._banned_until = 0.0

    def next_group(self, waiting: int, lanes_busy: int, together_s: float | None, now: float) -> Group | None:
        """Return the group to start now, or None to wait until something ends.

        `together_s` is how long a sync of the file system has been running, None if none is.
        """
        if waiting == 0:
            return None
        if self.file_s is not None and waiting > self.lanes and now >= self._banned_until:
            if together_s is None:
                return Group(True, waiting)
            if together_s < self.patience_s(waiting):
                return None  # the next sync of the file system covers them, at less cost than lanes
        if lanes_busy >= self.lanes:
            return None
        fit = LANE_COMMITS_MAX if not self.file_s else int(LANE_S_MAX / self.file_s)
        return Group(False, max(1, min(fit, LANE_COMMITS_MAX, waiting // self.lanes)))

    def patience_s(self, commits: int) -> float:
        """Return how long a sync of the file system may take for this many: as long as their files one by one."""
        return max(SLOW_S_MIN, commits * (self.file_s or 0.0))

    def lane_ended(self, commits: int, took_s: float) -> None:
        """Record how long commits took in a lane."""
        each = took_s / commits
        self.file_s = each if self.file_s is None else min(each, self.file_s * ESTIMATE_RISE)

    def together_ended(self, commits: int, took_s: float, now: float) -> None:
        """Record how long a sync of the file system for this many commits took."""
        too_slow_s = took_s - self.patience_s(commits)
        if too_slow_s > 0:
            self._banned_until = now + BAN_FACTOR * too_slow_s


class Commits:
    """Runs the commits of a worker's topics; everything but their syncs is on the loop.

    `file_system` is the folder whose file system can be synced as a whole; None if that is not possible here.
    """

    def __init__(
        self, loop: Scheduler, file_system: FileSystem | None, *, choice: Choice | None = None
    ) -> None:
        self._loop = loop
        self._clock = loop.clock
        self._file_system = file_system
        self._choice = choice or Choice()
        self._waiting: deque[tuple[Syncable, Done]] = deque()  # may be synced together
        self._apart: deque[tuple[Syncable, Done]] = deque()  # may not
        self._lanes_busy = 0
        self._together_since: float | None = None
        self._begin_scheduled = False
        self._again: Timer | None = None
        self._ended: deque[tuple[Done, BaseException | None]] = deque()
        self._aside: deque[tuple[Callable[[], None], Done]] = deque()
        self._aside_busy = False
        self.commits = 0
        self.syncs_together = 0
        self.commits_together = 0

    def run(self, commit: Syncable, done: Done) -> None:
        """Make `commit` durable, then call `done(None, error or None)` on the loop.

        `done` must not raise, because an exception here would not reach the topic that caused it.
        """
        self.commits += 1
        if self._lanes_busy == 0 and self._together_since is None and not self._waiting:
            self._begin_lane(((commit, done),))  # a single commit does not wait; others of this turn follow
            return
        (self._waiting if self._covered(commit) else self._apart).append((commit, done))
        if not self._begin_scheduled:  # all commits of this turn are decided on together
            self._begin_scheduled = True
            self._loop.call_soon(self._begin_scheduled_now)

    def aside(self, work: Callable[[], None], done: Done) -> None:
        """Run `work` in a thread after the work handed in before, then `done(None, error or None)` on the loop."""
        self._aside.append((work, done))
        self._begin_aside()

    def _begin_aside(self) -> None:
        if self._aside_busy or not self._aside:
            return
        self._aside_busy = True
        work, done = self._aside.popleft()

        def ended(_: None, error: BaseException | None) -> None:
            self._aside_busy = False
            self._begin_aside()
            done(None, error)

        self._loop.offload(work, ended, Purpose.SPARES)

    def _covered(self, commit: Syncable) -> bool:
        if self._file_system is None:
            return False
        try:
            return self._file_system.covers(commit.path)
        except OSError:  # its folder is gone: its own sync will report that
            return False

    def _begin_scheduled_now(self) -> None:
        self._begin_scheduled = False
        self._begin()

    def _begin(self) -> None:
        """Start all groups that can start."""
        now = self._clock.monotonic()
        while self._apart and self._lanes_busy < self._choice.lanes:
            self._begin_lane([self._apart.popleft()])
        together_s = None if self._together_since is None else now - self._together_since
        while group := self._choice.next_group(len(self._waiting), self._lanes_busy, together_s, now):
            members = [self._waiting.popleft() for _ in range(group.commits)]
            if group.together:
                self._begin_together(members, now)
                together_s = 0.0
            else:
                self._begin_lane(members)
        if self._waiting and together_s is not None and self._lanes_busy < self._choice.lanes:
            self._look_again(max(LOOK_S_MIN, self._choice.patience_s(len(self._waiting)) - together_s))

    def _look_again(self, delay_s: float) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = self._loop.call_later(delay_s, self._begin)

    def _begin_lane(self, members: Sequence[tuple[Syncable, Done]]) -> None:
        self._lanes_busy += 1
        clock = self._clock

        def work() -> tuple[list[BaseException | None], float]:
            began = clock.monotonic()
            errors = [_error_of(commit.run) for commit, _ in members]
            return errors, clock.monotonic() - began

        def done(
            outcome: tuple[list[BaseException | None], float] | None, error: BaseException | None
        ) -> None:
            self._lanes_busy -= 1
            if outcome is not None:
                self._choice.lane_ended(len(members), outcome[1])
            self._end(members, None if outcome is None else outcome[0], error)

        self._loop.offload(work, done, Purpose.COMMITS)

    def _begin_together(self, members: Sequence[tuple[Syncable, Done]], now: float) -> None:
        self._together_since = now
        self.syncs_together += 1
        self.commits_together += len(members)
        clock, file_system = self._clock, self._file_system
        assert file_system is not None

        def work() -> tuple[list[BaseException | None], float]:
            began = clock.monotonic()
            errors = [_error_of(commit.prepare) for commit, _ in members]
            failure = _error_of(file_system.sync)
            return [error or failure for error in errors], clock.monotonic() - began

        def done(
            outcome: tuple[list[BaseException | None], float] | None, error: BaseException | None
        ) -> None:
            self._together_since = None
            if self._again is not None:
                self._again.cancel()
            if outcome is not None:
                self._choice.together_ended(len(members), outcome[1], clock.monotonic())
            self._end(members, None if outcome is None else outcome[0], error)

        self._loop.offload(work, done, Purpose.COMMITS)

    def _end(
        self,
        members: Sequence[tuple[Syncable, Done]],
        errors: Sequence[BaseException | None] | None,
        failure: BaseException | None,
    ) -> None:
        """Start the next groups first, to keep the disk busy, then report the ends."""
        if self._waiting or self._apart:
            self._begin()
        telling = bool(self._ended)
        outcomes = errors if errors is not None else [failure] * len(members)
        self._ended.extend((done, error) for (_, done), error in zip(members, outcomes, strict=True))
        if not telling:
            self._tell()

    def _tell(self) -> None:
        for _ in range(min(len(self._ended), ENDS_PER_TURN)):
            done, error = self._ended.popleft()
            done(None, error)
        if self._ended:
            self._loop.call_soon(self._tell)


def _error_of(call: Callable[[], None]) -> BaseException | None:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - it is handed on, whatever it is
        return error
    return None
