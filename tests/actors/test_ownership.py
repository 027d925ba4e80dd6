"""Tests of who owns a topic in the store: deletion by a fenced broker, forgetting, takeover."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import cast

import pytest

from ister.storage.claiming import claim, list_history
from ister.storage.disk import Disk
from ister.wire import Key, Type
from tests.actors.test_cloud import (
    SMALL,
    consumer,
    create,
    expect_messages,
    layout,
    objects,
    payload,
    producer,
    publish,
    shown,
    two_brokers,
)
from tests.faultystore import FaultyStore
from tests.stage import Stage

MakeStage = Callable[..., Stage]


def fenced_pair(make_stage: MakeStage) -> tuple[Stage, Stage]:
    """Return a broker that is fenced and knows it, and the one that owns its topic now, with 15 messages."""
    first, second = two_brokers(make_stage)
    mine = producer(second, number=8)
    mine.patience_s = 60
    mine.publish(1, 0, *map(payload, range(10, 15)))
    assert mine.receipt(1) == [(0, 10)]
    old = producer(first, number=9)
    old.publish(1, 0, b"stale")
    assert old.expect(Type.ERROR, Type.RECEIPT, timeout_s=60).header[Key.CODE] == "fenced"
    return first, second


def left_of(stage: Stage, topic: str, folder: str = "/data") -> list[str]:
    """Return the files and folders of a topic on a broker's own disk."""
    found = []
    for name in stage.disk.listdir(folder):
        path = f"{folder}/{name}"
        if topic in name:
            found.append(path)
        if not stage.disk.isfile(path):
            found += left_of(stage, topic, path)
    return found


def whole(stage: Stage, count: int) -> None:
    """Check that an owner's topic is complete in the store, and that it still owns it."""
    assert stage.store is not None
    told = list_history(stage.store, layout(stage)).history
    assert (told.start, told.end, told.unjoined) == (0, count, ())
    more = producer(stage, number=1000 + count)
    more.patience_s = 60
    more.publish(1, 0, payload(count))
    assert more.receipt(1) == [(0, count)]
    expect_messages(consumer(stage, f"check{count}"), 0, count + 1)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_fenced_broker_deletes_what_is_here_and_nothing_in_the_store(
    make_stage: MakeStage, restarted: bool
) -> None:
    """The owner's objects, claims and entry stay; also if the fenced broker was restarted and has not been told."""
    first, second = fenced_pair(make_stage)
    if restarted:
        first.restart(2)
    before = objects(second)
    first.client().request("topic.delete", topic="orders")
    first.advance(60)
    assert objects(second) == before
    assert first.client().request("topic.list")["topics"] == []
    assert left_of(first, "orders") == []
    whole(second, 15)
    first.restart(2)  # and it does not take the topic back by itself
    first.advance(60)
    assert first.client().request("topic.list")["topics"] == []
    whole(second, 16)


def test_a_broker_that_was_away_when_it_was_fenced_deletes_nothing_either(make_stage: MakeStage) -> None:
    """A deletion that had to wait for the store finds that the topic is another broker's now."""
    first = make_stage(**SMALL)
    store = first.start_tier()
    publish(create(first, durability="cloud"), 0, 10)
    store.away()
    first.client().request("topic.delete", topic="orders")
    first.advance(1)
    second = make_stage(**SMALL, random=Random(2))  # two brokers share no secrets
    second.store = FaultyStore(store.store, cast(Disk, second.disk))
    second.start_tier()
    second.advance(1)
    store.back()
    first.advance(120)
    whole(second, 10)
    (row,) = first.catalogue.erasing()
    assert "forgotten" in row.settings


@pytest.mark.parametrize("at", range(12))
def test_a_deletion_cut_short_anywhere_is_finished_by_the_next_run(make_stage: MakeStage, at: int) -> None:
    """If the tier is killed before any of its calls, its successor finishes; no other broker takes the rest over."""
    first = make_stage(**SMALL)
    store = first.start_tier()
    publish(create(first, durability="cloud"), 0, 10)
    consumer(first).ack(1)
    first.advance(2)
    calls = 0

    def hook(operation: str, name: str) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            first.loop.call_soon(lambda: None)
            raise RuntimeError("killed")

    store.before = hook
    first.expects_failures = True
    first.client().request("topic.delete", topic="orders")
    first.settle()
    first.kill_tier()
    store.back()
    second = make_stage(**SMALL, random=Random(2))  # two brokers share no secrets
    second.store = FaultyStore(store.store, cast(Disk, second.disk))
    second.loop.holds_work = False
    second.start_tier()
    second.advance(5)
    first.start_tier()
    first.advance(60)
    has_it = [each["topic"] for each in second.client().request("topic.list")["topics"]]
    if has_it:  # it was taken over before anything was deleted
        whole(second, 10)
    else:
        second.advance(3600)
        assert objects(first) == []
    assert first.client().request("topic.list")["topics"] == []


def test_a_fenced_topic_is_forgotten_and_then_taken_over(make_stage: MakeStage) -> None:
    """Forgotten, it is not here and not restored; taken over, it continues at the owner's end, which is fenced."""
    first, second = fenced_pair(make_stage)
    assert "takeover" in shown(first)["failure"]
    assert "forget" in shown(first)["failure"]
    first.client().request("topic.forget", topic="orders")
    assert first.client().ask("topic.show", topic="orders").header[Key.CODE] == "unknown-topic"
    first.advance(5)
    whole(second, 15)
    taken = first.client().request("topic.takeover", topic="orders")
    assert taken["topic"] == "orders"
    assert first.catalogue.erasing() == []
    expect_messages(consumer(first), 0, 16)
    again = producer(first, number=11)
    again.patience_s = 60
    again.publish(1, 0, payload(16))
    assert again.receipt(1) == [(0, 16)]
    late = producer(second, number=12)
    late.publish(1, 0, b"late")
    assert late.expect(Type.ERROR, Type.RECEIPT, timeout_s=60).header[Key.CODE] == "fenced"
    first.restart(2)
    first.advance(5)
    assert shown(first)["failure"] is None
    whole(first, 17)


def test_who_was_fenced_stays_so_when_retention_has_dropped_what_shows_it(make_stage: MakeStage) -> None:
    """Its log has other messages at the owner's offsets; restarted, it finds none in the store, and serves none."""
    first = make_stage(**SMALL)
    store = first.start_tier()
    client = create(first)
    publish(client, 0, 10)
    first.advance(3)
    first.kill_tier()
    for number in range(4):
        client.publish(1, 10 + 5 * number, *[b"ours"] * 5)
        first.advance(2)
    assert client.receipts(1, 4)
    second = make_stage(**SMALL, random=Random(2))  # two brokers share no secrets
    second.store = FaultyStore(store.store, cast(Disk, second.disk))
    second.start_tier()
    mine = producer(second, number=8)
    mine.patience_s = 60
    mine.publish(1, 0, *map(payload, range(10, 15)))
    assert mine.receipt(1) == [(0, 10)]
    second.advance(5)
    second.client().request("topic.update", topic="orders", retention_ms=1000)
    second.advance(100)
    assert list_history(second.store, layout(second)).history.start == 15
    for _ in range(2):
        first.restart(2)
        first.start_tier()
        first.advance(5)
        refused = first.at_topic("orders").open_producer(1, "orders", 11)
        assert refused.header.get(Key.CODE) == "fenced"
    mine.publish(1, 5, payload(15))
    assert mine.receipt(1) == [(5, 15)]
    second.advance(5)
    assert shown(second)["failure"] is None


def test_an_owner_forgets_nothing(make_stage: MakeStage) -> None:
    """A broker's own topic is deleted, not forgotten; a name that is in use is not taken over."""
    first = make_stage(**SMALL)
    first.start_tier()
    publish(create(first), 0, 10)
    first.advance(2)
    refused = first.client().ask("topic.forget", topic="orders").header
    assert refused[Key.CODE] == "invalid-argument"
    assert "nothing to take over or to forget" in refused[Key.TEXT]
    assert first.client().ask("topic.takeover", topic="orders").header[Key.CODE] == "topic-exists"
    assert first.client().ask("topic.takeover", topic="nowhere").header[Key.CODE] == "unknown-topic"
    assert first.client().ask("topic.forget", topic="nowhere").header[Key.CODE] == "unknown-topic"
    publish(producer(first, sequence=10), 10, 5)


def test_a_fenced_topic_is_not_opened_again_by_a_timer(make_stage: MakeStage) -> None:
    """A failed log that was to be opened again stays closed once another broker owns the topic."""
    stage = make_stage(**SMALL)
    stage.start_tier()
    publish(create(stage), 0, 10)
    topic = stage.actor("topic", "orders")
    from ister.actors.messages import Fenced
    from ister.errors import StorageError

    topic._log.fail(StorageError("an fsync failed"))
    topic.ref.tell(Fenced("another broker has it", None))
    stage.advance(10)
    assert topic.wal is None
    assert shown(stage)["failure"].startswith("another broker has it")


def test_a_subscription_deleted_by_a_stale_broker_stays_the_owners(make_stage: MakeStage) -> None:
    """A broker that does not know yet that it is fenced deletes no cursors that the owner stored."""
    first = make_stage(**SMALL)
    store = first.start_tier()
    publish(create(first, durability="cloud"), 0, 10)
    reader = consumer(first)
    reader.deliveries(1, 10)
    reader.ack(1, (0, 5))
    first.advance(5)
    assert objects(first, "/c/s/")
    claim(store, first.catalogue.get_topic("orders"), "somebody else", broker="them")
    first.client().request("subscription.delete", topic="orders", subscription="s")
    first.advance(5)
    assert objects(first, "/c/s/")
