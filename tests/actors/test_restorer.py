"""What a Restorer brings back, and what it clears away, from stores that are damaged in places."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from actors.restorer import sweep_orphans
from ister.errors import StoreError
from storage.catalogue import SubscriptionMeta, TopicMeta
from storage.disk import Disk
from storage.simulated import SimulatedDisk
from storage.store import FolderStore
from storage.tier import Layout
from storage.upload import claim, enter_topic, put_cursor
from tests.faultystore import FaultyStore
from tests.stage import Stage

GONE = TopicMeta("gone", bytes(16), "reliable", "fsync", 1)
KEPT = TopicMeta("kept", bytes(range(16)), "reliable", "fsync", 1)


def put(store: FolderStore, topic: TopicMeta, last_ms: int) -> None:
    """Upload a segment whose last message came at that time."""
    about = {"next": "10", "first-timestamp": "1", "last-timestamp": str(last_ms)}
    assert store.put_if_absent(Layout(topic.name, topic.incarnation).segment(0, 1), b"x", metadata=about)


def names(store: FolderStore) -> set[str]:
    """Return which topics have objects."""
    return {info.name.split("/")[3].split(".")[0] for info in store.list("v1/d/")}


@pytest.fixture
def store() -> FolderStore:
    """An empty store on a simulated disk."""
    return FolderStore("/store", cast(Disk, SimulatedDisk()))


def test_only_objects_of_no_topic_go_and_only_after_their_grace(store: FolderStore) -> None:
    """What was written lately may be of a topic that is just being entered; what has an entry stays for ever."""
    put(store, GONE, 1000)
    put(store, KEPT, 1000)
    enter_topic(store, KEPT)
    assert sweep_orphans(store, 1000) == 0
    assert names(store) == {"gone", "kept"}
    assert sweep_orphans(store, 1001) == 1
    assert names(store) == {"kept"}


def test_nothing_is_cleared_away_while_an_entry_cannot_be_read(store: FolderStore) -> None:
    """One damaged catalogue entry must not make a topic's whole history look like nobody's."""
    put(store, GONE, 1000)
    store.put_if_absent("v1/topics/gone", b"{ not what was written")
    with pytest.raises(StoreError):
        sweep_orphans(store, 1 << 50)
    assert names(store) == {"gone"}


def test_a_damaged_cursor_costs_a_repetition_not_the_topic(make_stage: Callable[..., Stage]) -> None:
    """A subscription whose cursor cannot be read comes back at the beginning, and that is said."""
    stage = make_stage()
    disk = SimulatedDisk()
    store = FolderStore("/store", cast(Disk, disk))
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
