"""Tests of topic settings: they are as durable as the topic, and reach every process that uses them, whichever dies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ister.actors.broker import sweep_orphans
from ister.errors import DiskFullError
from ister.storage.catalogue_file import CatalogueFile
from ister.storage.claiming import list_history
from ister.storage.folderstore import FolderStore
from ister.storage.numbered_objects import read_settings
from ister.storage.store_folders import places
from ister.wire import Key, Type
from tests.actors.test_cloud import (
    SMALL,
    consumer,
    create,
    expect_messages,
    fill,
    layout,
    lose_disk,
    objects,
    producer,
    shown,
)
from tests.stage import Stage

MakeStage = Callable[..., Stage]
HOUR_MS = 3_600_000


@pytest.fixture
def cloud(make_stage: MakeStage) -> Stage:
    """Return a broker of two workers with its tier, small segments, and the smallest local log that is allowed."""
    stage = make_stage(**SMALL)
    stage.start_tier()
    return stage


def update(stage: Stage, **settings: int) -> bool:
    """Change the topic's settings; return whether the store has them."""
    client = stage.client()
    client.patience_s = 30
    told = client.request("topic.update", topic="orders", **settings)
    assert {name: told["settings"][name] for name in settings} == settings
    return bool(told["settings_stored"])


def stored(stage: Stage) -> tuple[int, int]:
    """Return the first offset and the end of the topic's history in the store."""
    assert stage.store is not None
    history = list_history(stage.store.store, layout(stage)).history
    return history.start, history.end


def test_a_topic_comes_back_with_the_settings_it_had_last(cloud: Stage) -> None:
    """If the disk is lost right after the answer, a retention that was removed deletes nothing."""
    fill(create(cloud, retention_ms=HOUR_MS), cloud, 0, 500)
    assert update(cloud, retention_ms=0, message_ttl_ms=0)
    lose_disk(cloud)
    cloud.restart(2)
    cloud.advance(1)
    assert shown(cloud)["settings"]["retention_ms"] == 0
    cloud.advance(3 * 3600)
    assert stored(cloud) == (0, 500)
    expect_messages(consumer(cloud), 0, 500)


@pytest.mark.parametrize("times", [1, 3])
def test_only_the_last_settings_are_kept_in_the_store(cloud: Stage, times: int) -> None:
    """Each change is an object of its own, because objects are written once; the earlier ones are deleted."""
    create(cloud)
    cloud.advance(2)
    for number in range(1, times + 1):
        assert update(cloud, retention_ms=number * HOUR_MS)
    assert len(objects(cloud, "/o/")) == 1
    cloud.restart(2)
    shown(cloud)
    cloud.advance(3)
    assert len(objects(cloud, "/o/")) == 1
    lose_disk(cloud)
    cloud.restart(2)
    cloud.advance(1)
    assert shown(cloud)["settings"]["retention_ms"] == times * HOUR_MS


def test_a_store_that_is_away_delays_the_answer_a_little_and_keeps_what_it_has(cloud: Stage) -> None:
    """The change takes effect here, and the answer says that the store lacks it; the store gets it when it is back."""
    assert cloud.store is not None
    fill(create(cloud), cloud, 0, 500)
    cloud.store.away()
    began_s = cloud.clock.now_s
    assert not update(cloud, retention_ms=HOUR_MS)
    assert cloud.clock.now_s - began_s < 3
    cloud.advance(7200)
    assert stored(cloud) == (0, 500)  # with settings that the store does not have, nothing is deleted there
    cloud.store.back()
    cloud.advance(120)
    meta = cloud.catalogue.get_topic("orders")
    assert (read_settings(cloud.store, meta) or {})["retention_ms"] == HOUR_MS
    assert stored(cloud)[0] > 0


def test_damaged_settings_keep_everything(cloud: Stage) -> None:
    """What is to be kept is unknown: so everything is, and a warning is logged."""
    fill(create(cloud, retention_ms=HOUR_MS), cloud, 0, 500)
    update(cloud, retention_ms=2 * HOUR_MS)
    (name,) = objects(cloud, "/o/")
    assert cloud.store is not None
    folder = cloud.store.store
    assert isinstance(folder, FolderStore)
    file = folder._disk.open(f"/store/{places(name)[0].path}")
    file.pwritev((b"\xff",), 0)
    file.close()
    lose_disk(cloud)
    cloud.restart(2)
    cloud.advance(1)
    assert "retention_ms" not in shown(cloud)["settings"]
    restored = cloud.actor("directory").restored
    assert "its settings are damaged" in restored[0]


# ---- a setting that changed reaches whoever acts on it ------------------------------------------------------------


def test_lifting_a_retention_stops_the_trimming_of_the_store(cloud: Stage) -> None:
    """Messages that were kept for an hour are kept for good from then on."""
    fill(create(cloud, retention_ms=HOUR_MS), cloud, 0, 500)
    cloud.advance(1800)
    update(cloud, retention_ms=0)
    cloud.advance(3 * 3600)
    assert stored(cloud) == (0, 500)


def test_a_worker_that_dies_before_it_hears_of_a_change_does_not_keep_the_old(cloud: Stage) -> None:
    """Killed between the catalogue's change and the mail about it: the store is not trimmed by the old setting."""
    fill(create(cloud, retention_ms=HOUR_MS), cloud, 0, 500)
    number = cloud.worker_at(shown(cloud)["endpoint"])
    asker = cloud.client(1 - number)
    cloud.hold("broker", f"worker-{number}")
    cloud.hold("broker", "tier")
    asker.say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: 77,
            Key.OPERATION: "topic.update",
            Key.ARGUMENTS: {"topic": "orders", "retention_ms": 0},
        }
    )
    cloud.settle()
    cloud.kill(number)
    cloud.holding.clear()
    cloud.let_go("broker", f"worker-{number}")
    cloud.let_go("broker", "tier")
    assert cloud.catalogue.get_topic("orders").settings["retention_ms"] == 0
    cloud.advance(3 * 3600)
    assert stored(cloud) == (0, 500)
    cloud.start(number)
    expect_messages(consumer(cloud), 0, 500)


@pytest.mark.parametrize("who", ["tier", "worker", "all"])
def test_a_lifted_retention_stays_lifted_over_restarts(cloud: Stage, who: str) -> None:
    """A restarted process reads the settings from the catalogue."""
    fill(create(cloud, retention_ms=HOUR_MS), cloud, 0, 500)
    if who == "tier":
        cloud.kill_tier()
        update(cloud, retention_ms=0)
        cloud.start_tier()
    else:
        update(cloud, retention_ms=0)
        if who == "all":
            cloud.restart(2)
        else:
            number = cloud.worker_at(shown(cloud)["endpoint"])
            cloud.kill(number)
            cloud.start(number)
    producer(cloud, number=8)
    cloud.advance(3 * 3600)
    assert stored(cloud) == (0, 500)


def test_an_uploader_that_an_old_subscription_started_does_not_go_by_its_word(cloud: Stage) -> None:
    """A new tier that first gets a cursor, from a process with the old settings, deletes nothing."""
    client = create(cloud, retention_ms=HOUR_MS)
    fill(client, cloud, 0, 500)
    consumer(cloud, start="latest")
    subscription = cloud.actor("subscription", "orders", "s")
    old = subscription.topic
    update(cloud, retention_ms=0)
    cloud.kill_tier()
    subscription.topic = old
    cloud.start_tier()
    subscription.delivery._journal.store()
    cloud.advance(3 * 3600)
    assert stored(cloud) == (0, 500)


# ---- what is left when things are deleted --------------------------------------------------------------------------


def test_a_subscription_deleted_while_no_tier_is_there_does_not_come_back(cloud: Stage) -> None:
    """Its cursors in the store are deleted once a tier is up, and it is not restored after the loss of a disk."""
    fill(create(cloud), cloud, 0, 100)
    for name in ("s", "other"):
        reader = consumer(cloud, name)
        reader.deliveries(1, 100)
        reader.ack(1, (0, 50))
    cloud.advance(130)
    assert objects(cloud, "/c/s/")
    cloud.kill_tier()
    cloud.client().request("subscription.delete", topic="orders", subscription="s")
    cloud.start_tier()
    cloud.advance(130)
    assert objects(cloud, "/c/s/") == []
    assert objects(cloud, "/c/other/")
    lose_disk(cloud)
    cloud.restart(2)
    cloud.advance(1)
    listed = cloud.client().request("subscription.list", topic="orders")["subscriptions"]
    assert [each["subscription"] for each in listed] == ["other"]


def everything(stage: Stage, folder: str) -> list[str]:
    """Return all files and folders below a folder of the disk whose path contains a topic's name."""
    found = []
    for name in stage.disk.listdir(folder):
        path = f"{folder}/{name}"
        found.append(path)
        if not stage.disk.isfile(path):
            found += everything(stage, path)
    return [path for path in found if "orders" in path]


@pytest.mark.parametrize("killed", ["nobody", "tier", "worker 0", "worker 1"])
def test_a_deleted_topic_leaves_no_file_and_no_folder(cloud: Stage, killed: str) -> None:
    """Log, cursors, damaged copies, cache and a local store's folders are deleted, whichever process dies."""
    fill(create(cloud), cloud, 0, 1000)
    create(cloud, "kept")
    for name in ("a", "b", "c", "d"):
        reader = consumer(cloud, name)
        reader.deliveries(1, 100)
        reader.ack(1, (0, 50))
    cloud.advance(130)
    journals = [path for path in everything(cloud, "/data/cursors") if cloud.disk.isfile(path)]
    assert len(journals) == 4
    file = cloud.disk.create(f"{journals[0]}.damaged-0")
    file.close()
    assert everything(cloud, "/data/cache")
    assert everything(cloud, "/store")
    if killed == "tier":
        cloud.kill_tier()
    elif killed != "nobody":
        cloud.hold("broker", f"worker-{killed[-1]}")
    client = cloud.client(1 - int(killed[-1]) if "worker" in killed else 0)
    client.patience_s = 30
    client.request("topic.delete", topic="orders")
    if killed == "tier":
        cloud.start_tier()
    elif killed != "nobody":
        cloud.holding.clear()
        cloud.let_go("broker", f"worker-{killed[-1]}")
        cloud.kill(int(killed[-1]))
        cloud.start(int(killed[-1]))
        cloud.advance(60)
        sweep(cloud)
    cloud.advance(130)
    assert everything(cloud, "/store") == []
    assert everything(cloud, "/data") == []
    assert cloud.catalogue.erasing() == []


def sweep(stage: Stage) -> None:
    """Do what a broker does at its next start."""
    stage.restart(2)
    sweep_orphans(stage.disk, "/data", stage.catalogue)  # type: ignore[arg-type]


def subscriptions(stage: Stage) -> list[str]:
    """Return the names of the topic's subscriptions."""
    listed = stage.client().request("subscription.list", topic="orders")
    return [each["subscription"] for each in listed["subscriptions"]]


def test_a_disk_that_is_full_while_a_topic_comes_back_ends_nothing(
    cloud: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topic waits until it can be entered with all its subscriptions, never without some of them."""
    fill(create(cloud), cloud, 0, 100)
    for name in ("a", "b", "c"):
        consumer(cloud, name)
    cloud.advance(3)
    lose_disk(cloud)
    room = [2]
    changing = CatalogueFile.changing

    def full(catalogue: CatalogueFile) -> Any:
        if not room[0]:
            raise DiskFullError("no space left for the catalogue")
        room[0] -= 1
        return changing(catalogue)

    monkeypatch.setattr(CatalogueFile, "changing", full)
    cloud.restart(2)
    cloud.advance(20)
    assert cloud.actors("directory")
    assert cloud.catalogue.topic("orders") is None or len(cloud.catalogue.subscriptions("orders")) == 3
    room[0] = 1_000
    cloud.advance(60)
    assert subscriptions(cloud) == ["a", "b", "c"]
    expect_messages(consumer(cloud, "a"), 0, 100)


def test_a_disk_that_is_full_while_a_deletion_ends_ends_nothing_else(
    cloud: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the store has no objects of the topic left is noted later; until then the store is listed again."""
    fill(create(cloud), cloud, 0, 100)
    assert cloud.store is not None
    cloud.store.away()
    cloud.client().request("topic.delete", topic="orders")

    def full(_: CatalogueFile) -> Any:
        raise DiskFullError("no space left for the catalogue")

    with monkeypatch.context() as patched:
        patched.setattr(CatalogueFile, "changing", full)
        cloud.store.back()
        cloud.advance(90)
        assert cloud.actors("directory")
        assert objects(cloud) == []
        assert [gone.name for gone in cloud.catalogue.erasing()] == ["orders"]
    cloud.advance(90)
    assert cloud.catalogue.erasing() == []
