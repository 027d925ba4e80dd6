"""Tests of commits: which share a sync, who is told what, and that no topic waits for another's slow disk."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from ister.actors.commits import (
    BAN_FACTOR,
    ENDS_PER_TURN,
    LANE_COMMITS_MAX,
    SLOW_S_MIN,
    Choice,
    Commits,
    Group,
)
from ister.actors.loop import Loop
from ister.clock import SystemClock
from ister.storage.disk import LocalDisk
from ister.storage.simulated import SimulatedDisk
from ister.storage.wal import Wal, WalSettings
from tests.stage import StagedClock, StagedLoop

FILE_S = 0.001
DISK_FAILED = OSError(errno.EIO, "Input/output error")


def learned(lanes: int = 3, file_s: float = FILE_S) -> Choice:
    """Return a choice that knows what syncing one file costs."""
    choice = Choice(lanes)
    choice.lane_ended(1, file_s)
    return choice


# ---- the choice


def test_a_lone_commit_takes_a_lane_at_once() -> None:
    """One message costs one fdatasync, and waits for nothing."""
    assert learned().next_group(1, 0, None, 0.0) == Group(False, 1)


def test_more_commits_than_lanes_run_together() -> None:
    """A thousand topics cost one sync of the whole file system instead of a thousand fdatasyncs."""
    assert learned().next_group(3, 0, None, 0.0) == Group(False, 1)
    assert learned().next_group(4, 0, None, 0.0) == Group(True, 4)
    assert learned().next_group(1000, 3, None, 0.0) == Group(True, 1000)


def test_nothing_runs_together_before_the_cost_of_a_file_is_known() -> None:
    """Without that cost it cannot be decided whether a sync of the file system is slow."""
    assert Choice(3).next_group(1000, 0, None, 0.0) == Group(False, LANE_COMMITS_MAX)


def test_many_that_come_during_a_sync_together_wait_for_the_next_one() -> None:
    """Group commit: commits that come during a sync share the next one."""
    assert learned().next_group(100, 0, 0.05, 0.0) is None


def test_few_that_come_during_a_sync_together_take_a_lane() -> None:
    """A single topic does not wait for a flood of other topics."""
    assert learned().next_group(1, 0, 0.001, 0.0) == Group(False, 1)


def test_many_take_lanes_when_a_sync_together_takes_longer_than_their_own_would() -> None:
    """When others have written gigabytes, only the commits that share that sync wait for it, not later ones."""
    choice = learned()
    assert choice.next_group(100, 0, choice.patience_s(100), 0.0) == Group(False, 2)


def test_no_more_lanes_run_than_there_are() -> None:
    """A flood of commits uses only the threads it was given."""
    assert learned().next_group(2, 3, None, 0.0) is None
    assert Choice(3).next_group(100, 3, None, 0.0) is None


def test_a_lane_takes_several_where_the_disk_is_fast_and_one_where_it_is_slow() -> None:
    """Several commits share one hand-over to a thread as long as none of them waits for it."""
    for file_s, commits in ((0.0001, LANE_COMMITS_MAX), (0.0005, 4), (0.008, 1)):
        choice = learned(file_s=file_s)
        choice.together_ended(1, 1.0, 0.0)  # slow: files it is
        assert choice.next_group(1000, 0, None, 1.0) == Group(False, commits)


def test_a_slow_sync_together_is_not_tried_again_for_ten_times_its_slowness() -> None:
    """If others fill the disk, trying costs at most a tenth of the time."""
    choice = learned()
    choice.together_ended(100, 0.3, now=10.0)
    until = 10.0 + BAN_FACTOR * (0.3 - 100 * FILE_S)
    group = choice.next_group(1000, 0, None, until - 0.001)
    assert group is not None
    assert not group.together
    assert choice.next_group(1000, 0, None, until) == Group(True, 1000)


def test_a_sync_together_that_is_quicker_than_the_files_is_tried_again_at_once() -> None:
    """Syncing together stays in use as long as it is cheaper."""
    choice = learned()
    choice.together_ended(100, 100 * FILE_S, now=10.0)
    assert choice.next_group(100, 0, None, 10.0) == Group(True, 100)


def test_the_cost_of_a_file_falls_at_once_and_rises_slowly() -> None:
    """A measurement that waited for the interpreter lock looks slow although the disk is not."""
    choice = learned(file_s=0.001)
    choice.lane_ended(10, 0.001)
    assert choice.file_s == pytest.approx(0.0001)
    choice.lane_ended(1, 0.5)
    assert choice.file_s == pytest.approx(0.000105)
    assert choice.patience_s(1) == SLOW_S_MIN


# ---- the commits; the first of many finds everything idle, and begins alone


class Topics:
    """Logs on one disk, and the results of each one's commits."""

    def __init__(self, count: int, disk: SimulatedDisk, *, segment_bytes: int = 1 << 20) -> None:
        self.disk = disk
        self.clock = StagedClock()
        self.loop = StagedLoop(self.clock)
        self.settings = WalSettings(segment_bytes_max=segment_bytes, segment_age_ms_max=60_000)
        self.choice = learned()
        disk.makedirs("/data")
        self.commits = Commits(self.loop, disk.file_system("/data"), choice=self.choice)
        self.wals = [self.open(number) for number in range(count)]
        self.heard: list[tuple[int, BaseException | None]] = []

    def open(self, number: int, disk: SimulatedDisk | None = None, known_end: int = 0) -> Wal:
        return Wal.open(
            disk or self.disk,
            f"/data/{number}",
            topic=str(number),
            incarnation=bytes([number]) * 16,
            settings=self.settings,
            clock=self.clock,
            known_end=known_end,
        )

    def append(self, number: int, payload: bytes = b"hello") -> None:
        self.wals[number].append(
            count=1,
            producer_id=1,
            sequence=self.wals[number].next_offset,
            columns=0,
            frames=(len(payload).to_bytes(4, "little"), payload),
            timestamp_ms=0,
        )

    def commit(self, number: int) -> None:
        wal = self.wals[number]
        commit = wal.begin_commit()
        assert commit is not None

        def done(_: None, error: BaseException | None) -> None:
            self.heard.append((number, error))
            wal.end_commit(commit, error)

        self.commits.run(commit, done)

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.append(number)
            self.commit(number)

    @property
    def failed(self) -> list[int]:
        return sorted(number for number, error in self.heard if error is not None)


def faults(disk: SimulatedDisk, operation: str, part: str = "") -> list[str]:
    """Let an operation on paths that contain `part` fail; return the list that failed operations are added to."""
    seen: list[str] = []

    def happens(name: str, path: str) -> None:
        seen.append(name)
        if name == operation and part in path:
            raise DISK_FAILED

    disk.on_operation = happens
    return seen


def test_a_round_of_many_topics_is_one_sync() -> None:
    """The first of 50 topics begins at once; what the others append in the same turn is one sync of the file system."""
    topics = Topics(50, SimulatedDisk())
    seen = faults(topics.disk, "none")
    topics.publish(*range(50))
    topics.loop.settle()
    assert seen.count("sync_all") == 1
    assert seen.count("sync") == 1
    assert topics.heard == [(number, None) for number in range(50)]
    assert [wal.durable_end for wal in topics.wals] == [1] * 50


@pytest.mark.parametrize("seed", range(10))
def test_what_was_committed_together_outlasts_power(seed: int) -> None:
    """Contents, length and names are on the disk, also where a segment was sealed and the next begun."""
    topics = Topics(9, SimulatedDisk(), segment_bytes=4096)
    for number in range(9):
        for _ in range(3):  # the second and third of 1,500 bytes each begin a segment
            topics.append(number, bytes(1500))
        topics.commit(number)
    topics.loop.settle()
    assert topics.commits.syncs_together == 1
    assert all(len(wal.sealed()) >= 1 for wal in topics.wals)
    assert topics.commits.commits_together == 8
    after = topics.disk.power_loss(Random(seed))
    for number in range(9):
        found = topics.open(number, after, known_end=3)
        assert found.next_offset == 3
        assert found.report.torn_bytes == 0


def test_one_file_that_fails_in_a_lane_fails_alone() -> None:
    """The other logs of its lane get their receipts."""
    topics = Topics(6, SimulatedDisk())
    topics.choice.together_ended(1, 1000.0, 0.0)
    topics.clock.now_s = 0.0
    faults(topics.disk, "sync", "/data/2/")
    topics.publish(*range(6))
    topics.loop.settle()
    assert len(topics.heard) == 6
    assert topics.failed == [2]
    assert topics.wals[2].failed is not None
    assert topics.wals[2].durable_end == 0


def test_a_seal_that_fails_before_a_sync_together_fails_alone() -> None:
    """Only the topic whose sealed segment cannot be cut fails."""
    topics = Topics(6, SimulatedDisk(), segment_bytes=4096)
    faults(topics.disk, "truncate", "/data/4/")
    for number in range(6):
        topics.append(number, bytes(3000))
        topics.append(number, bytes(3000))
        topics.commit(number)
    topics.loop.settle()
    assert topics.commits.commits_together == 5
    assert topics.failed == [4]


def test_a_sync_together_that_fails_fails_all_that_it_covered() -> None:
    """Which write failed is unknown: all logs are opened again, and the sync is not repeated for them."""
    topics = Topics(6, SimulatedDisk())
    seen = faults(topics.disk, "sync_all")
    topics.publish(*range(6))
    topics.loop.settle()
    assert topics.failed == [1, 2, 3, 4, 5]
    assert seen.count("sync_all") == 1
    assert seen.count("sync") == 1  # the first one's own, which had begun before the others came
    assert [wal.durable_end for wal in topics.wals] == [1, 0, 0, 0, 0, 0]


def test_a_log_on_another_file_system_is_never_covered_by_a_sync_together() -> None:
    """A folder may be a mount or a link to another disk: its files are synced one by one."""
    topics = Topics(10, SimulatedDisk())
    whole = topics.disk.file_system("/data")

    class Part:
        sync = staticmethod(whole.sync)

        def covers(self, path: str) -> bool:
            return not path.startswith("/data/7/")

    topics.commits = Commits(topics.loop, Part(), choice=topics.choice)
    seen = faults(topics.disk, "sync_all")
    topics.publish(*range(10))
    topics.loop.settle()
    assert topics.failed == [1, 2, 3, 4, 5, 6, 8, 9]
    assert seen.count("sync") == 2


def test_a_log_whose_folder_cannot_be_looked_at_is_synced_by_itself() -> None:
    """An error while its device is looked up is no error of the commit."""

    class Blind:
        def covers(self, path: str) -> bool:
            raise FileNotFoundError(path)

        def sync(self) -> None:
            raise AssertionError("nothing was covered")

    topics = Topics(6, SimulatedDisk())
    topics.commits = Commits(topics.loop, Blind(), choice=topics.choice)
    topics.publish(*range(6))
    topics.loop.settle()
    assert topics.failed == []
    assert len(topics.heard) == 6


def test_where_nothing_can_be_synced_together_every_file_is() -> None:
    """Commits then use the pool of lanes."""
    topics = Topics(40, SimulatedDisk())
    topics.commits = Commits(topics.loop, None, choice=topics.choice)
    seen = faults(topics.disk, "sync_all")
    topics.publish(*range(40))
    topics.loop.settle()
    assert "sync_all" not in seen
    assert sorted(topics.heard) == [(number, None) for number in range(40)]


def test_what_comes_during_a_slow_sync_together_gets_its_receipt_before_it_ends() -> None:
    """If the disk is busy with other programs' writes, the worker's topics do not wait for the whole sync."""
    topics = Topics(20, SimulatedDisk())
    topics.loop.holds_work = True
    topics.publish(*range(10))
    topics.loop.settle()
    topics.loop.do_work()
    slow = topics.loop.work.popleft()  # the sync together is still running
    topics.publish(*range(10, 20))
    topics.loop.settle()
    assert not topics.loop.work
    topics.loop.advance(1.0)
    topics.loop.holds_work = False
    topics.loop.settle()
    assert sorted(number for number, _ in topics.heard) == [0, *range(10, 20)]
    _, work, done = slow
    done(work(), None)
    topics.loop.settle()
    assert sorted(topics.heard) == [(number, None) for number in range(20)]


def test_the_disk_is_kept_busy_and_sockets_are_looked_at_while_a_flood_is_told() -> None:
    """The next sync begins before all receipts of the last one are sent; a turn sends only some of them."""
    topics = Topics(200, SimulatedDisk())
    topics.loop.holds_work = True
    topics.publish(*range(150))
    topics.loop.settle()
    topics.loop.do_work()
    topics.heard.clear()
    _, work, done = topics.loop.work.popleft()
    topics.publish(*range(150, 200))
    topics.loop.settle()
    done(work(), None)
    assert len(topics.loop.work) == 1
    assert len(topics.heard) == ENDS_PER_TURN
    topics.loop.settle()
    assert [number for number, _ in topics.heard] == list(range(1, 150))


def test_work_aside_takes_one_thread_in_the_order_of_asking() -> None:
    """A thousand topics that want a spare segment at once leave the other threads to the commits."""
    topics = Topics(1, SimulatedDisk())
    topics.loop.holds_work = True
    heard: list[tuple[int, BaseException | None]] = []

    def work() -> None:
        raise DISK_FAILED

    for number in range(3):
        topics.commits.aside(work, lambda _, error, number=number: heard.append((number, error)))  # type: ignore[misc]
    for done in range(3):
        assert len(topics.loop.work) == 1
        assert len(heard) == done
        topics.loop.do_work()
    assert heard == [(number, DISK_FAILED) for number in range(3)]
    assert not topics.loop.work


def test_threads_and_a_real_disk_do_the_same(tmp_path: Path) -> None:
    """Many logs and many rounds, on this machine's file system."""
    disk = LocalDisk()
    loop = Loop(SystemClock())
    commits = Commits(loop, disk.file_system(str(tmp_path)))
    settings = WalSettings(segment_bytes_max=1 << 20, segment_age_ms_max=60_000)
    wals = [
        Wal.open(
            disk,
            f"{tmp_path}/{number}",
            topic=str(number),
            incarnation=bytes([number]) * 16,
            settings=settings,
            clock=SystemClock(),
        )
        for number in range(20)
    ]
    heard: list[BaseException | None] = []

    def publish(wal: Wal) -> None:
        frames = (b"\5\0\0\0", b"hello")
        wal.append(count=1, producer_id=1, sequence=wal.next_offset, columns=0, frames=frames, timestamp_ms=0)
        commit = wal.begin_commit()
        assert commit is not None

        def done(_: None, error: BaseException | None) -> None:
            heard.append(error)
            wal.end_commit(commit, error)
            if wal.next_offset < 5:
                publish(wal)

        commits.run(commit, done)

    for wal in wals:
        publish(wal)
    loop.run_until_idle()
    loop.close()
    assert heard == [None] * 100
    assert [wal.durable_end for wal in wals] == [5] * 20
    for wal in wals:
        wal.close()
