"""Tests of the upload protocol under faults: writers interleaved call by call, crashes, lost answers, late writes."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ister.errors import StoreError
from ister.storage.claiming import Claim, claim, list_history
from ister.storage.continuing import AheadError, FencedError, check_joins
from ister.storage.erase import erase
from ister.storage.folderstore import FolderStore
from ister.storage.history import History, plan_history
from ister.storage.layout import Layout
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.numbered_objects import drop_cursors, put_cursor, put_settings, read_cursors, read_settings
from ister.storage.objectstore import ObjectInfo, ObjectStore
from ister.storage.segment import SegmentInfo
from ister.storage.simulated import SimulatedDisk
from ister.storage.topic_entry import encode_topic_entry, enter_topic, list_topics
from ister.storage.upload import put_segment, trim
from tests.faultystore import FaultyStore

TOPIC = TopicMeta("orders", bytes(range(16)), "reliable", "cloud", 1)
LAYOUT = Layout(TOPIC.name, TOPIC.incarnation)

FAULTS = ("done",) * 24 + ("failed", "lost", "late", "late", "crash", "crash after")


class _Crash(BaseException):
    """The writer is killed."""


@dataclass
class Objects:
    """The objects in the store, and writes that arrive late though their writer was told that they failed."""

    there: dict[str, ObjectInfo] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)  # object -> the segment it was made of
    late: list[tuple[str, str, dict[str, str], int]] = field(default_factory=list)

    def put(self, name: str, path: str, metadata: dict[str, str], size: int) -> bool:
        """Create an object."""
        if name in self.there:
            return False
        self.there[name] = ObjectInfo(name, size, 0, metadata)
        self.holds[name] = path
        return True

    def land(self) -> None:
        """Let the oldest late write arrive."""
        if self.late:
            self.put(*self.late.pop(0))


class StepStore:
    """A writer's view of the store: every call waits for the test's verdict."""

    def __init__(self, objects: Objects, gate: Callable[[], str]) -> None:
        self.objects = objects
        self.gate = gate

    def _call(self, act: Callable[[], Any], write: tuple[str, str, dict[str, str], int] | None = None) -> Any:
        verdict = self.gate()
        if verdict == "crash":
            raise _Crash
        if verdict == "late" and write is not None:
            self.objects.late.append(write)
        if verdict in ("failed", "late"):
            raise StoreError("failed")
        answer = act()
        if verdict == "crash after":
            raise _Crash
        if verdict == "lost":
            raise StoreError("the answer is lost")
        return answer

    def put_if_absent(self, name: str, data: Any, *, metadata: Any = None, crc32c: Any = None) -> bool:
        write = (name, "", dict(metadata or {}), len(data))
        return bool(self._call(lambda: self.objects.put(*write), write))

    def put_file_if_absent(self, name: str, path: str, *, metadata: Any = None, crc32c: Any = None) -> bool:
        write = (name, path, dict(metadata or {}), len(path))
        return bool(self._call(lambda: self.objects.put(*write), write))

    def head(self, name: str) -> Any:
        return self._call(lambda: self.objects.there.get(name))

    def get(self, name: str) -> bytes:
        return encode_topic_entry(TOPIC)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        there = self.objects.there
        return iter(self._call(lambda: [there[name] for name in sorted(there) if name.startswith(prefix)]))


class Broker:
    """A broker with a log of its own, whose tier may crash and restart; run in a thread, call by call."""

    def __init__(self, play: Play, name: str) -> None:
        self.play = play
        self.name = name
        self.log: list[SegmentInfo] | None = None  # None: no local log yet, it begins where the store ends
        self.watermark = 0
        self.lives = 12
        self.arrived: set[str] = set()
        self.asked: SimpleQueue[str] = SimpleQueue()
        self.verdicts: SimpleQueue[str] = SimpleQueue()
        self.numbers = itertools.count()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.alive = True
        self.failure: BaseException | None = None

    def gate(self) -> str:
        self.asked.put("call")
        return self.verdicts.get()

    def run(self) -> None:
        self.verdicts.get()
        try:
            self.live_on()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self.failure = error
        self.alive = False
        self.asked.put("end")

    def live_on(self) -> None:
        while self.lives:
            self.lives -= 1
            try:
                self.live()
            except _Crash:
                continue
            except FencedError:
                if self.log is None:
                    continue
                break

    def live(self) -> None:
        """One life of its tier: claim, then upload, sometimes out of order."""
        store: Any = StepStore(self.play.objects, self.gate)
        identity = f"{self.name}-{next(self.numbers)}"
        self.arrived = set()  # what an earlier epoch uploaded ahead is superseded
        begin = None if self.log is None else self.log[0].base if self.log else self.watermark
        claimed = self.persist(lambda: claim(store, TOPIC, identity, begin, self.check))
        self.play.listed(claimed)
        if self.log is None:
            self.log, self.watermark = [], claimed.start
        self.watermark = max(self.watermark, claimed.start)
        while True:
            ahead = [segment for segment in self.log if segment.end > self.watermark]
            while len(ahead) < 2:
                ahead.append(self.seal())
            number = next(self.numbers)
            for segment in ahead[:2] if number % 3 else ahead[1::-1]:
                self.persist(lambda: put_segment(store, TOPIC, claimed.epoch, segment, identity))  # noqa: B023
                self.arrived.add(segment.path)
                self.count()

    def count(self) -> None:
        """Count segments that join."""
        assert self.log is not None
        for segment in self.log:
            if segment.base == self.watermark and segment.path in self.arrived:
                self.watermark = segment.end
                self.play.count(segment)

    def check(self, history: History) -> None:
        if self.log is not None:
            end = self.log[-1].end if self.log else self.watermark
            check_joins(TOPIC, history, self.log, end)

    def seal(self) -> SegmentInfo:
        assert self.log is not None
        base = self.log[-1].end if self.log else self.watermark
        number = next(self.numbers)
        path = f"{self.name}:{base}:{number}" + "x" * (number % 4)
        segment = SegmentInfo(path, base, base + 1 + number % 3, len(path), number, number, 1, 1)
        self.log.append(segment)
        return segment

    def persist(self, work: Callable[[], Any]) -> Any:
        """Retry what failed, as an Uploader does."""
        while True:
            try:
                return work()
            except FencedError:
                raise
            except StoreError as error:
                if error.action != "retry":
                    raise AssertionError(f"{self.name}: {error}") from error


class Play:
    """Some brokers that all believe they own one topic, and the invariants."""

    def __init__(self, brokers: int) -> None:
        self.objects = Objects()
        self.counted: dict[int, SegmentInfo] = {}
        self.promises: list[list[tuple[int, str]]] = []
        self.brokers = [Broker(self, f"b{number}") for number in range(brokers)]
        self.objects.put(LAYOUT.catalogue, "", {}, 0)
        for broker in self.brokers:
            broker.thread.start()
            broker.verdicts.put("begin")
            broker.asked.get(timeout=10)

    def step(self, number: int, verdict: str) -> None:
        """Give one broker's call its verdict, and run it up to its next call; or let a late write arrive."""
        if number >= len(self.brokers):
            self.objects.land()
            return
        broker = self.brokers[number]
        if broker.alive:
            broker.verdicts.put(verdict)
            broker.asked.get(timeout=10)
            if broker.failure is not None:
                raise broker.failure

    def offsets(self, history: History) -> list[tuple[int, str]]:
        """Return the segment that each offset is read from."""
        return [
            (offset, self.objects.holds[piece.segment.name])
            for piece in history.pieces
            for offset in range(piece.start, piece.end)
        ]

    def listed(self, claimed: Claim) -> None:
        """Note that a new owner continues from this history: below its end it must not change."""
        found = self.offsets(claimed.history)
        self.promises.append([(offset, path) for offset, path in found if offset < claimed.start])

    def count(self, segment: SegmentInfo) -> None:
        """Note that producers were told that this is in the store."""
        known = self.counted.setdefault(segment.base, segment)
        assert known.path == segment.path, f"{segment.path} was counted where {known.path} was before"

    def end(self) -> None:
        """Kill all brokers, let late writes arrive, and read the history."""
        for broker in self.brokers:
            broker.lives = 0
            while broker.alive:
                self.step(self.brokers.index(broker), "crash")
        while self.objects.late:
            self.check()
            self.objects.land()
        self.check()

    def check(self) -> None:
        store: Any = StepStore(self.objects, lambda: "done")
        found = dict(self.offsets(list_history(store, LAYOUT).history))
        for segment in self.counted.values():
            for offset in range(segment.base, segment.end):
                assert found.get(offset) == segment.path, (
                    f"{offset} is {found.get(offset)}, not {segment.path}"
                )
        for promise in self.promises:
            for offset, path in promise:
                assert found.get(offset) == path, f"{offset} is {found.get(offset)}, a new owner found {path}"


def play(brokers: int, steps: Sequence[tuple[int, str]]) -> Play:
    """Play it, and check the invariants."""
    played = Play(brokers)
    try:
        for number, verdict in steps:
            played.step(number, verdict)
    finally:
        played.end()
    return played


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from((0, 0, 0, 1, 1, 1, 2, 2, 3)), st.sampled_from(FAULTS)),
        min_size=20,
        max_size=150,
    )
)
def test_what_was_counted_is_in_the_history_whatever_happens(steps: list[tuple[int, str]]) -> None:
    """Three writers, step by step, with any faults: none missing, none twice, none that its owner did not find."""
    play(3, steps)


@pytest.mark.parametrize("seed", range(int(os.environ.get("ISTER_TEST_SEEDS", "60"))))
def test_what_was_counted_is_in_the_history_over_long_runs(seed: int) -> None:
    """Writers run for a while, pause like stopped processes, and resume in the middle of a call."""
    random = Random(seed)
    steps: list[tuple[int, str]] = []
    faults = random.choice((FAULTS, ("done",) * 4 + ("crash", "late", "lost")))
    for _ in range(50):
        number = random.choice((0, 1, 2, 3))
        quiet = random.random() < 0.5
        steps += [
            (number, "done" if quiet else random.choice(faults))
            for _ in range(random.choice((1, 2, 5, 9, 20)))
        ]
    played = play(3, steps)
    assert played.promises


def test_a_note_that_comes_late_does_not_change_what_others_went_on_from() -> None:
    """A claim that was paused before it noted its beginning is void once a newer one has begun without it."""
    store = FolderStore("/store", SimulatedDisk())
    old = claim(store, TOPIC, "old")
    assert store.put_if_absent(LAYOUT.epoch(2), b"", metadata={"id": "paused"})
    put(store, 0, 10, old.epoch)  # it came after that claim: its writer does not count it
    new = claim(store, TOPIC, "new")
    assert (new.epoch, new.history.end) == (3, 10)
    put(store, 10, 20, new.epoch)
    store.put_if_absent(LAYOUT.begins(2, 0), b"", metadata={"id": "paused"})
    put(store, 0, 5, 2)
    told = list_history(store, LAYOUT)
    assert [(piece.start, piece.end, piece.segment.epoch) for piece in told.history.pieces] == [
        (0, 10, 1),
        (10, 20, 3),
    ]
    assert claim(store, TOPIC, "newest").history.end == 20


def put(store: ObjectStore, base: int, end: int, epoch: int) -> None:
    """Upload a segment without looking for newer claims."""
    about = {"next": str(end), "first-timestamp": "1", "last-timestamp": str(end), "id": "x"}
    assert store.put_if_absent(LAYOUT.segment(base, epoch), b"segment", metadata=about)


def test_of_two_that_claim_at_once_one_is_told() -> None:
    """A writer that finds a newer claim than its own gives up before it notes its beginning."""
    store = FaultyStore(FolderStore("/store", SimulatedDisk()))
    claim(store, TOPIC, "first")
    begun: list[int] = []

    def between(operation: str, name: str) -> None:
        if operation == "put_if_absent" and name == LAYOUT.epoch(2):
            store.after = lambda _operation, _name: None
            begun.append(claim(store, TOPIC, "faster").epoch)

    store.after = between
    with pytest.raises(FencedError):
        claim(store, TOPIC, "slower")
    assert begun == [3]


def test_a_segment_of_that_name_that_is_not_ours_stops_us() -> None:
    """A segment that somebody else uploaded under our epoch is never taken for our own."""
    store = FolderStore("/store", SimulatedDisk())
    ours = claim(store, TOPIC, "ours")
    put(store, 0, 10, ours.epoch)
    disk = store._disk
    disk.makedirs("/log")
    file = disk.create("/log/segment")
    file.pwritev((b"segment",), 0)
    file.close()
    with pytest.raises(StoreError) as raised:
        put_segment(store, TOPIC, ours.epoch, SegmentInfo("/log/segment", 0, 10, 7, 1, 10, 10, 1), "ours")
    assert raised.value.code == "object-differs"


def test_a_trim_that_was_cut_short_is_finished_by_the_next() -> None:
    """The boundary is written before anything is deleted; objects left below it go with the next trim."""
    store = FaultyStore(FolderStore("/store", SimulatedDisk()))
    ours = claim(store, TOPIC, "ours")
    for base in range(0, 50, 10):
        put(store, base, base + 10, ours.epoch)
    left = 2

    def fail(operation: str, name: str) -> None:
        nonlocal left
        if operation == "delete":
            left -= 1
            if left < 0:
                raise StoreError("away")

    store.before = fail
    with pytest.raises(StoreError):
        trim(store, TOPIC, ours.epoch, 30)
    store.back()
    told = list_history(store, LAYOUT).history
    assert (told.start, told.end) == (30, 50)
    assert trim(store, TOPIC, ours.epoch, 40) == 2
    assert [info.name for info in store.list(LAYOUT.segments)] == [LAYOUT.segment(40, ours.epoch)]
    assert [info.name for info in store.list(f"{LAYOUT.prefix}t/")] == [LAYOUT.trimmed(40)]


def test_a_fenced_writer_trims_nothing() -> None:
    """A broker that lost the topic does not delete what another broker's subscriptions may still need."""
    store = FolderStore("/store", SimulatedDisk())
    ours = claim(store, TOPIC, "ours")
    put(store, 0, 10, ours.epoch)
    claim(store, TOPIC, "theirs")
    with pytest.raises(FencedError):
        trim(store, TOPIC, ours.epoch, 10)
    assert list_history(store, LAYOUT).history.start == 0


def test_the_newest_cursor_of_each_subscription_comes_back() -> None:
    """By epoch, then by number; later cursors of a fenced writer count less; a deleted subscription has none."""
    store = FolderStore("/store", SimulatedDisk())
    one = SubscriptionMeta("orders", "one", "shared", "earliest", 5, {"ack_timeout_ms": 9})
    two = SubscriptionMeta("orders", ".two", "exclusive", 17, 6)
    assert [claim(store, TOPIC, "a").epoch, claim(store, TOPIC, "b").epoch] == [1, 2]
    put_cursor(store, TOPIC, one, 2, 0, b"new")
    with pytest.raises(FencedError):
        put_cursor(store, TOPIC, one, 1, 9, b"stale", "older")
    put_cursor(store, TOPIC, two, 2, 0, b"two")
    assert sorted(journal or b"" for _, journal in read_cursors(store, TOPIC)) == [b"new", b"two"]
    assert {meta.name: meta for meta, _ in read_cursors(store, TOPIC)} == {"one": one, ".two": two}
    with pytest.raises(FencedError):
        drop_cursors(store, TOPIC, "one", 1)
    drop_cursors(store, TOPIC, "one", 2)
    assert [meta for meta, _ in read_cursors(store, TOPIC)] == [two]


def test_erasing_takes_one_incarnation_alone() -> None:
    """Deleting a topic leaves another of the same name intact, also its place in the catalogue."""
    store = FolderStore("/store", SimulatedDisk())
    other = TopicMeta("orders", bytes(16), "reliable", "fsync", 2)
    put(store, 0, 10, claim(store, TOPIC, "ours", broker="us").epoch)
    with pytest.raises(StoreError) as raised:
        enter_topic(store, other)
    assert (raised.value.code, raised.value.action) == ("topic-exists", "retry")
    assert erase(store, TOPIC, "us", "1") == 5
    enter_topic(store, other)
    erase(store, TOPIC, "us", "2")
    assert list_topics(store, lambda name, error: None) == [other]


def test_what_another_broker_wrote_and_retention_dropped_is_not_gone_on_with() -> None:
    """No object is left that would differ; the claim shows that another broker wrote."""
    store = FolderStore("/store", SimulatedDisk())

    def logs(begin: int, end: int) -> Callable[[History], None]:
        return lambda history: check_joins(TOPIC, history, (), end, begin)

    first = claim(store, TOPIC, "one", 0, logs(0, 10), broker="ours")
    put = {"next": "10", "id": "one"}
    store.put_if_absent(LAYOUT.segment(0, first.epoch), b"x", metadata=put)
    second = claim(store, TOPIC, "two", None, broker="theirs", enter=False)
    assert second.start == 10
    store.put_if_absent(LAYOUT.segment(10, second.epoch), b"x", metadata={"next": "20", "id": "two"})
    trim(store, TOPIC, second.epoch, 20)
    for begin, end in ((0, 30), (5, 21), (10, 30), (19, 20)):
        with pytest.raises(FencedError, match=f"offsets {max(begin, 10)} to 20 "):
            claim(store, TOPIC, "three", begin, logs(begin, max(end, 20)), broker="ours")
    again = claim(store, TOPIC, "four", 10, logs(10, 30), broker="theirs")
    assert again.start == 20
    theirs = claim(store, TOPIC, "five", 20, logs(20, 30), broker="ours")
    assert theirs.start == 20
    assert claim(store, TOPIC, "six", 10, logs(10, 30), broker="ours").start == 20


def test_a_log_that_ends_below_what_the_store_has_trimmed_is_not_gone_on_with() -> None:
    """A trim note may be all that is left of what another broker has written since."""
    history = plan_history(LAYOUT, [ObjectInfo(LAYOUT.trimmed(90), 0, 0)])
    with pytest.raises(AheadError) as refused:
        check_joins(TOPIC, history, (), 45)
    assert refused.value.end == 90
    check_joins(TOPIC, history, (), 90)


# ---- settings ----------------------------------------------------------------------------------------------------


def stored_settings(store: ObjectStore) -> list[str]:
    """Return the names of the settings that were stored beside the catalogue entry."""
    return [info.name for info in store.list(LAYOUT.all_settings)]


def test_settings_that_the_catalogue_entry_has_are_not_stored_again(tmp_path: Path) -> None:
    """Most topics never change theirs; once others were stored, the last ones count, whatever they are."""
    store = FolderStore(str(tmp_path))
    other = replace(TOPIC, settings={"retention_ms": 1})
    epoch = claim(store, TOPIC, "ours").epoch
    put_settings(store, TOPIC, epoch, 0)
    assert stored_settings(store) == []
    assert read_settings(store, TOPIC) is None
    put_settings(store, other, epoch, 1)
    assert read_settings(store, TOPIC) == other.settings
    epoch = claim(store, TOPIC, "ours again").epoch
    put_settings(store, TOPIC, epoch, 0)
    assert stored_settings(store) == [LAYOUT.settings(epoch, 0)]
    assert read_settings(store, TOPIC) == TOPIC.settings


def test_settings_of_a_damaged_catalogue_entry_are_stored(tmp_path: Path) -> None:
    """What the entry says then cannot be relied on."""
    store = FolderStore(str(tmp_path))
    epoch = claim(store, TOPIC, "ours").epoch
    (tmp_path / LAYOUT.catalogue).write_bytes(
        encode_topic_entry(replace(TOPIC, settings={"retention_ms": 2}))
    )
    put_settings(store, TOPIC, epoch, 0)
    assert read_settings(store, TOPIC) == TOPIC.settings
