"""Model test of the whole log against a list, on a disk that fills up, fails and loses unsynced writes.

HYPOTHESIS_PROFILE=long runs it for minutes.
"""

from __future__ import annotations

import errno
import os
from array import array
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ister.errors import DiskFullError, LogFailedError, StorageError
from ister.storage.commit import Commit
from ister.storage.producers import Duplicate, Fresh
from ister.storage.reader import Reader
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.storage.trim import Trim
from ister.storage.verify import VerifyReport, verify_log
from ister.storage.wal import Wal, WalSettings

INCARNATION = bytes(range(16))
FOLDER = "/data/log"
PRODUCER = 5


class StillClock:
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 0.0

    def time_ms(self) -> int:
        return 1_700_000_000_000


class LogMachine(RuleBasedStateMachine):
    """A log, and the list of what was appended to it; `acknowledged` has the batches with a receipt."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.written: list[tuple[int, int, bytes]] = []  # first offset, count, payload
        self.acknowledged = 0
        self.next_offset = 0
        self.start = 0
        self.commit: Commit | None = None
        self.trim: Trim | None = None

    @initialize()
    def begin(self) -> None:
        """Open a new log."""
        self.open()

    def open(self) -> None:
        """Open the log; nothing was damaged, so it must open with everything promised."""
        self.disk.on_operation = None
        self.disk.room = None
        self.wal = Wal.open(
            self.disk,
            FOLDER,
            topic="orders",
            incarnation=INCARNATION,
            settings=WalSettings(segment_bytes_max=4096, producers_max=8),
            clock=StillClock(),
            known_end=self.acknowledged,
        )
        report = self.wal.report
        assert report.damaged == ()
        assert self.acknowledged <= report.next_offset <= self.next_offset
        assert report.start_offset <= self.start or report.next_offset == report.start_offset
        self.written = [one for one in self.written if one[0] + one[1] <= report.next_offset]
        self.next_offset = self.acknowledged = report.next_offset
        self.start = self.wal.start_offset
        assert self.next_offset == (self.written[-1][0] + self.written[-1][1] if self.written else 0)

    def abandon(self) -> None:
        """Drop a log as a process does that goes on after a failure."""
        self.disk.on_operation = None
        if self.trim is not None:
            self.wal.end_trim(self.trim)
        if self.commit is not None:
            self.wal.end_commit(self.commit, OSError("it never ran"))
        self.trim = self.commit = None
        self.wal.close()

    def failed(self, random: Random) -> None:
        """Open again after a failure of the process or of the machine."""
        self.abandon()
        if random.random() < 0.5:
            self.disk = self.disk.power_loss(random)
        self.open()

    # what its owner does

    @rule(
        size=st.sampled_from([0, 1, 30, 500, 1500, 3300]),
        count=st.integers(1, 3),
        random=st.randoms(use_true_random=False),
    )
    def append(self, size: int, count: int, random: Random) -> None:
        """Append a batch; after a refusal by a full disk the log is as before."""
        payload = bytes([len(self.written) % 251]) * size
        try:
            first = self.wal.append(
                count=count,
                producer_id=PRODUCER,
                sequence=self.next_offset,
                columns=0,
                frames=[array("I", [size, *[0] * (count - 1)]).tobytes(), payload],
                timestamp_ms=self.next_offset,
            )
        except DiskFullError:
            assert self.wal.next_offset == self.next_offset
            assert self.wal.failed is None
        except LogFailedError:
            self.failed(random)
        else:
            assert first == self.next_offset
            self.written.append((first, count, payload))
            self.next_offset += count

    @precondition(lambda self: self.commit is None)
    @rule()
    def begin_commit(self) -> None:
        """Begin a commit, which ends later."""
        self.commit = self.wal.begin_commit()

    @precondition(lambda self: self.commit is not None)
    @rule(random=st.randoms(use_true_random=False))
    def end_commit(self, random: Random) -> None:
        """Run the commit, and note its outcome."""
        commit, self.commit = self.commit, None
        assert commit is not None
        try:
            commit.run()
        except (OSError, StorageError) as error:
            self.wal.end_commit(commit, error)
            self.failed(random)
            return
        self.acknowledged = self.wal.end_commit(commit, None)
        assert self.acknowledged == commit.end_offset

    @rule(random=st.randoms(use_true_random=False))
    def seal(self, random: Random) -> None:
        """Seal the active segment."""
        try:
            self.wal.seal()
        except DiskFullError:
            assert self.wal.failed is None
        except LogFailedError:
            self.failed(random)

    @precondition(lambda self: self.trim is None)
    @rule(part=st.floats(0, 1.5))
    def begin_trim(self, part: float) -> None:
        """Begin to delete the beginning of the log."""
        self.trim = self.wal.begin_trim(int(self.next_offset * part))
        if self.trim is not None:
            self.asked = int(self.next_offset * part)

    @precondition(lambda self: self.trim is not None)
    @rule()
    def end_trim(self) -> None:
        """Delete it; a failure in the middle leaves the rest."""
        trim, self.trim = self.trim, None
        assert trim is not None
        try:
            trim.run()
        except OSError as error:
            gone = self.wal.end_trim(trim, error)
        else:
            gone = self.wal.end_trim(trim)
        assert all(info.end <= min(self.asked, self.acknowledged) for info in gone)
        if gone:
            self.start = gone[
                -1
            ].end  # nothing is damaged, so the log goes on there, whatever is being sealed
        assert self.wal.start_offset == self.start

    @rule()
    def make_spare(self) -> None:
        """Make the next segment ahead of time."""
        work = self.wal.prepare_spare()
        if work is not None:
            work()

    @rule(random=st.randoms(use_true_random=False))
    def rest(self, random: Random) -> None:
        """Return the space that a log without appends does not need."""
        self.wal.rest()
        if self.wal.failed is not None:
            self.failed(random)

    # what happens to it

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        """End the process, in order or not, and start again."""
        if clean and self.commit is None and self.disk.on_operation is None:
            self.wal.commit()
        self.abandon()
        self.open()

    @rule(random=st.randoms(use_true_random=False))
    def lose_power(self, random: Random) -> None:
        """Lose any part of what was not synced."""
        self.disk = self.disk.power_loss(random)
        self.trim = self.commit = None
        self.open()

    @rule(room=st.integers(0, 6000))
    def fill_up(self, room: int) -> None:
        """Leave little room on the disk."""
        self.disk.room = room

    @rule()
    def make_room(self) -> None:
        """Make room again: the log must recover by itself."""
        self.disk.room = None

    @rule(
        after=st.integers(0, 6),
        kind=st.sampled_from(["write", "sync", "sync_folder", "create", "rename", "unlink", "truncate"]),
    )
    def fail_soon(self, after: int, kind: str) -> None:
        """Let one operation of a kind fail."""
        left = after

        def fails(operation: str, path: str) -> None:
            nonlocal left
            if operation == kind:
                left -= 1
                if left < 0:
                    self.disk.on_operation = None
                    raise OSError(errno.EIO, "not now")

        self.disk.on_operation = fails

    # what must always hold

    @invariant()
    def all_that_was_promised_is_there(self) -> None:
        """Everything from the start to the durable end is read, in order, with the appended bytes."""
        wal = self.wal
        assert wal.durable_end == self.acknowledged
        assert wal.next_offset == self.next_offset
        assert wal.start_offset == self.start
        reader = Reader(SegmentMaps(self.disk), FOLDER, INCARNATION, wal.start_offset)
        found = []
        while records := reader.read(wal.durable_end, 1 << 20):
            found += [(record.first_offset, record.count, bytes(record.payload)) for record in records]
        assert found == [
            one for one in self.written if wal.start_offset <= one[0] and one[0] + one[1] <= wal.durable_end
        ]
        assert sum(one[1] for one in found) == wal.durable_end - wal.start_offset

    @invariant()
    def producers_are_known(self) -> None:
        """The last batch is recognised as a duplicate, and the next one is expected."""
        if self.written:
            first, count, _ = self.written[-1]
            assert self.wal.producers.check(PRODUCER, first, count) == Duplicate(first)
            assert self.wal.producers.check(PRODUCER, self.next_offset, 1) == Fresh()

    @invariant()
    def segments_join(self) -> None:
        """Sealed segments follow each other without a gap from the start on, each with the length it says."""
        at = self.wal.start_offset
        for info in self.wal.sealed():
            assert info.base == at
            assert self.disk.size(info.path) == info.bytes
            at = info.end

    @invariant()
    def times_are_found(self) -> None:
        """A batch's time equals its offset here, so searching a time gives the batch at or after it."""
        wal, middle = self.wal, (self.start + self.acknowledged) // 2
        reader = Reader(SegmentMaps(self.disk), FOLDER, INCARNATION, wal.start_offset)
        wanted = next((one[0] for one in self.written if one[0] >= middle), self.acknowledged)
        assert reader.offset_at(middle, self.acknowledged) == min(wanted, self.acknowledged)

    def teardown(self) -> None:
        """What is left verifies without damage, and no file stays open."""
        self.disk.on_operation = None
        *_, report = verify_log(self.disk, FOLDER, INCARNATION, durable_end=self.acknowledged)
        assert isinstance(report, VerifyReport)
        assert report.damaged == ()
        self.abandon()
        assert self.disk.open_files == 0


LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=2000 if LONG else 40, stateful_step_count=60 if LONG else 30)
