"""Tests of deletion from the store during takeovers, call by call, in every order with two switches between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from typing import Any, cast

import pytest

from ister.errors import StoreError
from ister.storage.claiming import check_fence, claim, list_history
from ister.storage.continuing import FencedError
from ister.storage.disk import Disk
from ister.storage.erase import NotOwnerError, erase, sweep_orphans
from ister.storage.folderstore import FolderStore
from ister.storage.layout import Layout
from ister.storage.meta import TopicMeta
from ister.storage.numbered_objects import put_settings
from ister.storage.simulated import SimulatedDisk
from ister.storage.topic_entry import list_topics
from ister.storage.upload import trim
from tests.faultystore import FaultyStore

TOPIC = TopicMeta("orders", bytes(range(16)), "reliable", "cloud", 1)
LAYOUT = Layout(TOPIC.name, TOPIC.incarnation)


class Runner:
    """A user of the store in a thread of its own, which makes as many calls as the test allows."""

    def __init__(self, store: FolderStore, work: Callable[[FaultyStore], Any]) -> None:
        self.store = FaultyStore(store)
        self.store.before = self._gate
        self.verdicts: SimpleQueue[str] = SimpleQueue()
        self.asked: SimpleQueue[str] = SimpleQueue()
        self.result: Any = None
        self.error: BaseException | None = None
        self.alive = True
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()
        self.asked.get(timeout=20)

    def _gate(self, operation: str, name: str) -> None:
        self.asked.put(operation)
        if self.verdicts.get() == "fail":
            raise StoreError(f"{operation} {name} failed")

    def _run(self, work: Callable[[FaultyStore], Any]) -> None:
        try:
            self.result = work(self.store)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error
        self.alive = False
        self.asked.put("end")

    def step(self, verdict: str = "go") -> None:
        """Let it make one call."""
        if self.alive:
            self.verdicts.put(verdict)
            self.asked.get(timeout=20)

    def steps(self, count: int) -> bool:
        """Let it make so many calls; return whether it has more to make."""
        for _ in range(count):
            self.step()
        return self.alive

    def end(self) -> None:
        """Let it run to its end."""
        while self.alive:
            self.step()


def stored(segments: int = 3) -> FolderStore:
    """Return a store with a topic of broker "a": an epoch, settings, segments and a trim."""
    store = FolderStore("/store", cast(Disk, SimulatedDisk()))
    ours = claim(store, TOPIC, "a1", broker="a")
    for base in range(0, 10 * segments, 10):
        about = {"next": str(base + 10), "first-timestamp": "1", "last-timestamp": "1", "id": "a1"}
        assert store.put_if_absent(LAYOUT.segment(base, ours.epoch), b"segment", metadata=about)
    put_settings(store, TOPIC, ours.epoch, 0)
    return store


def taking(store: FaultyStore) -> Any:
    """Take the topic over, as a broker does that found it in a listing."""
    return claim(cast(Any, store), TOPIC, "b1", None, broker="b", enter=False)


def erasing(run: str) -> Callable[[FaultyStore], int]:
    """Delete the topic, as its owner does."""
    return lambda store: erase(cast(Any, store), TOPIC, "a", run)


def names(store: FolderStore) -> list[str]:
    """Return the names of all objects."""
    return [info.name for info in store.list("v1/")]


def check(store: FolderStore, taker: Runner, before: list[str]) -> None:
    """Check that the topic was taken over and is complete, or was deleted and has no object left."""
    if taker.error is None:
        history = taker.result.history
        found = list_history(store, LAYOUT)
        assert found.history.pieces == history.pieces
        assert found.erasing == 0
        assert LAYOUT.catalogue in names(store)
        assert set(before) <= set(names(store))
        with pytest.raises(NotOwnerError):
            erase(store, TOPIC, "a", "a9")
    else:
        assert isinstance(taker.error, StoreError)
        assert names(store) == []
        assert list_topics(store, lambda _name, _error: None) == []


def calls_of(work: Callable[[FaultyStore], Any]) -> int:
    """Return how many calls something makes when it runs alone."""
    runner = Runner(stored(), work)
    runner.end()
    return len(runner.store.calls)


ERASE_CALLS = calls_of(erasing("a2"))
TAKE_CALLS = calls_of(taking)


@pytest.mark.parametrize("first", range(ERASE_CALLS + 1))
def test_a_topic_is_deleted_or_taken_over_never_both(first: int) -> None:
    """The owner deletes up to any call, another broker takes over up to any call, the owner ends, then the other."""
    for second in range(TAKE_CALLS + 1):
        store = stored()
        before = [name for name in names(store) if "/s/" in name]
        eraser = Runner(store, erasing("a2"))
        eraser.steps(first)
        taker = Runner(store, taking)
        taker.steps(second)
        eraser.end()
        taker.end()
        if eraser.error is None or not isinstance(eraser.error, NotOwnerError):
            again = Runner(store, erasing("a2"))
            again.end()  # a deletion is retried until it is done
        check(store, taker, before)


@pytest.mark.parametrize("first", range(TAKE_CALLS + 1))
def test_a_topic_is_taken_over_or_deleted_never_both(first: int) -> None:
    """The same, with the other broker first."""
    for second in range(ERASE_CALLS + 1):
        store = stored()
        before = [name for name in names(store) if "/s/" in name]
        taker = Runner(store, taking)
        taker.steps(first)
        eraser = Runner(store, erasing("a2"))
        eraser.steps(second)
        taker.end()
        eraser.end()
        check(store, taker, before)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_a_topic_is_deleted_or_taken_over(seed: int) -> None:
    """Both in any order, with failing calls, and a deletion that is continued in later runs of the owner's broker."""
    random = Random(seed)
    store = stored(random.randrange(1, 5))
    before = [name for name in names(store) if "/s/" in name]
    run = 2
    eraser, taker = Runner(store, erasing("a2")), Runner(store, taking)
    while eraser.alive or taker.alive:
        runner = random.choice((eraser, taker))
        runner.step("fail" if runner is eraser and random.random() < 0.1 else "go")
        if not eraser.alive and eraser.error is not None and not isinstance(eraser.error, NotOwnerError):
            run += 1
            eraser = Runner(store, erasing(f"a{run}"))
    if eraser.error is None and taker.error is not None:
        erase(store, TOPIC, "a", "a99")
    check(store, taker, before)


def test_another_incarnation_and_another_topic_are_left_alone() -> None:
    """The deletion is for one incarnation of a name; the next one may exist already."""
    store = stored()
    other = TopicMeta("orders.old", bytes(16), "reliable", "fsync", 2)
    claim(store, other, "x", broker="a")
    kept = [name for name in names(store) if "orders.old" in name]
    erase(store, TOPIC, "a", "a2")
    assert names(store) == kept


def test_a_deletion_that_nobody_finishes_is_finished_by_the_sweep() -> None:
    """If a broker dies for good during a deletion, nobody can take the topic over; the rest goes after the grace."""
    store = stored()
    eraser = Runner(store, erasing("a2"))
    eraser.steps(6)
    assert eraser.alive
    taker = Runner(store, taking)
    taker.end()
    assert isinstance(taker.error, StoreError)
    assert sweep_orphans(store, 0) == 0
    assert names(store)
    assert sweep_orphans(store, 1 << 60) > 0
    assert names(store) == []


def test_a_trim_that_meets_a_takeover_is_taken_back() -> None:
    """At whichever call another broker takes over, what it found is still there, or it found it trimmed."""
    total = 0
    while True:
        store = stored()
        trimmer = Runner(store, lambda faulty: trim(cast(Any, faulty), TOPIC, 1, 20))
        if not trimmer.steps(total):
            break
        taken = claim(store, TOPIC, "b1", None, broker="b", enter=False)
        trimmer.end()
        found = list_history(store, LAYOUT).history
        if taken.history.start == 0:
            assert isinstance(trimmer.error, FencedError), f"after {total} calls"
            assert (found.start, found.pieces) == (0, taken.history.pieces)
        else:  # it found the note; if that is withdrawn, more is left than it needs
            assert (found.start in (0, 20), found.end, found.unjoined) == (True, 30, ())
        total += 1
    assert total > 4


@pytest.mark.parametrize("first", range(ERASE_CALLS + 1))
def test_who_was_fenced_by_a_broker_that_deletes_the_topic_stays_fenced(first: int) -> None:
    """At no step of a deletion, nor after it, does an older writer believe that its upload counts."""
    store = stored()
    claim(store, TOPIC, "b1", None, broker="b", enter=False)
    eraser = Runner(store, lambda faulty: erase(cast(Any, faulty), TOPIC, "b", "b2"))
    eraser.steps(first)
    with pytest.raises(FencedError):
        check_fence(store, TOPIC, 1)
    eraser.end()
    with pytest.raises(FencedError):
        check_fence(store, TOPIC, 1)
