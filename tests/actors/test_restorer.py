"""Tests of what a Restorer brings back from a partly damaged store, and what it deletes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from ister.errors import StoreError
from ister.storage.claiming import claim
from ister.storage.disk import Disk
from ister.storage.erase import sweep_orphans
from ister.storage.folderstore import FolderStore
from ister.storage.layout import Layout
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.numbered_objects import put_cursor
from ister.storage.simulated import SimulatedDisk
from ister.storage.store_folders import line_of, places
from ister.storage.topic_entry import enter_topic
from tests.faultystore import FaultyStore
from tests.stage import Stage

GONE = TopicMeta("gone", bytes(16), "reliable", "fsync", 1)
KEPT = TopicMeta("kept", bytes(range(16)), "reliable", "fsync", 1)


class HandClock:
    """A clock that gives the store's objects their times."""

    def __init__(self) -> None:
        self.now_ms = 1000

    def monotonic(self) -> float:
        return self.now_ms / 1000

    def time_ms(self) -> int:
        return self.now_ms


CLOCK = HandClock()


def put(store: FolderStore, topic: TopicMeta, created_ms: int, base: int = 0) -> None:
    """Upload a segment at that time; its messages have another time."""
    about = {"next": str(base + 10), "first-timestamp": "1", "last-timestamp": "1"}
    CLOCK.now_ms = created_ms
    assert store.put_if_absent(Layout(topic.name, topic.incarnation).segment(base, 1), b"x", metadata=about)


def names(store: FolderStore) -> set[str]:
    """Return the topics that have objects."""
    return {info.name.split("/")[3].split(".")[0] for info in store.list("v1/d/")}


@pytest.fixture
def store() -> FolderStore:
    """Return an empty store on a simulated disk."""
    return FolderStore("/store", cast(Disk, SimulatedDisk()), CLOCK)


def test_only_objects_of_no_topic_go_and_only_after_their_grace(store: FolderStore) -> None:
    """Objects written lately may belong to a topic that is being entered; those of an entered topic always stay."""
    put(store, GONE, 1000)
    put(store, KEPT, 1000)
    enter_topic(store, KEPT)
    assert sweep_orphans(store, 1000) == 0
    assert names(store) == {"gone", "kept"}
    assert sweep_orphans(store, 1001) == 1
    assert names(store) == {"kept"}


def test_old_messages_in_new_objects_are_not_old_objects(store: FolderStore) -> None:
    """Whatever the times of the messages, the store's own time of an object counts; one new object keeps all."""
    put(store, GONE, 1000)
    put(store, GONE, 5000, 10)
    assert sweep_orphans(store, 5000) == 0
    assert sweep_orphans(store, 5001) == 2


def test_objects_whose_age_the_store_does_not_say_stay(store: FolderStore) -> None:
    """They may just have been written."""
    put(store, GONE, 1000)
    disk = store._disk
    (info,) = store.list("v1/d/")
    place = places(info.name)[0]
    disk.unlink(f"/store/{place.shared}")
    file = disk.create(f"/store/{place.shared}")
    file.pwritev((line_of(place.file, {"size": 1, "crc32c": info.crc32c, "metadata": {}}),), 0)
    file.close()
    assert sweep_orphans(store, 1 << 50) == 0


def test_a_topic_that_is_being_created_is_not_cleared_away(store: FolderStore) -> None:
    """Entered after the catalogue was listed, and with clocks that differ by any amount, its objects stay."""
    put(store, KEPT, 1000)
    faulty = FaultyStore(store)

    def between(operation: str, name: str) -> None:
        if (operation, name) == ("list", "v1/d/"):
            enter_topic(store, KEPT)

    faulty.before = between
    with pytest.raises(StoreError):
        sweep_orphans(faulty, 1 << 50)
    assert names(store) == {"kept"}


def test_nothing_is_cleared_away_while_an_entry_cannot_be_read(store: FolderStore) -> None:
    """One damaged catalogue entry must not make a topic's whole history look like leftovers."""
    put(store, GONE, 1000)
    store.put_if_absent("v1/topics/gone", b"{ not what was written")
    with pytest.raises(StoreError):
        sweep_orphans(store, 1 << 50)
    assert names(store) == {"gone"}


def test_a_damaged_cursor_costs_a_repetition_not_the_topic(make_stage: Callable[..., Stage]) -> None:
    """A subscription whose cursor cannot be read starts at the beginning, and that is reported."""
    stage = make_stage()
    disk = SimulatedDisk()
    store = FolderStore("/store", cast(Disk, disk), stage.clock)
    claim(store, KEPT, "x")
    put_cursor(store, KEPT, SubscriptionMeta("kept", "s", "shared", "latest", 5), 1, 0, b"journal")
    (name,) = [info.name for info in store.list("v1/d/") if "/c/" in info.name]
    file = disk.open(f"/store/{name}")
    file.pwritev((b"\xff",), 0)
    file.close()
    stage.store = FaultyStore(store, cast(Disk, stage.disk))
    stage.start_tier()
    assert [topic.name for topic in stage.catalogue.topics()] == ["kept"]
    assert stage.catalogue.get_subscription("kept", "s").start == "earliest"
