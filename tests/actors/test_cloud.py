"""The cloud tier on the stage: a whole broker with its tier, a store that fails, and crashes between any two steps."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

import pytest

from ister.actors.messages import Fenced, KeepTopic
from ister.errors import StoreError
from ister.storage.claiming import claim, list_history
from ister.storage.disk import Disk
from ister.storage.folders import log_folder
from ister.storage.folderstore import FolderStore
from ister.storage.history import History
from ister.storage.layout import Layout
from ister.storage.numbered_objects import read_cursors
from ister.storage.simulated import SimulatedDisk
from ister.storage.store_folders import line_in, places
from ister.storage.topic_entry import list_topics
from ister.wire import OFFSET_UNKNOWN, Key, Type
from tests.faultystore import FaultyStore
from tests.stage import Stage, StagedClient

SMALL = {
    "protocol__message_bytes_max": 110_000,
    "protocol__batch_bytes_max": 110_000,
    "protocol__session_timeout_ms": 600_000,
    "log__segment_bytes_max": 1_200_000,
    "log__segment_age_ms_max": 1_000,
    "log__local_bytes": 0,
    "tier__cursor_upload_ms": 500,
}
MakeStage = Callable[..., Stage]


@pytest.fixture
def cloud(make_stage: MakeStage) -> Stage:
    """Return a broker of two workers with its tier, small segments, and the smallest local log that is allowed."""
    stage = make_stage(**SMALL)
    stage.start_tier()
    return stage


def create(stage: Stage, topic: str = "orders", **settings: Any) -> StagedClient:
    """Create a topic and open it, as handle 1 of producer 7."""
    stage.client().request("topic.create", topic=topic, **settings)
    return producer(stage, topic)


def producer(stage: Stage, topic: str = "orders", number: int = 7, sequence: int = 0) -> StagedClient:
    """Open a topic for publishing, as handle 1."""
    client = stage.at_topic(topic)
    opened = client.open_producer(1, topic, number, sequence)
    assert opened.kind == Type.OPENED, opened.header
    client.sequence = sequence
    return client


def payload(number: int) -> bytes:
    """Return the payload of message `number`."""
    return b"%06d" % number + b"x" * 9_994


def publish(client: StagedClient, first: int, count: int, *, each: int = 5) -> None:
    """Publish messages in batches, and wait for their receipts."""
    for start in range(first, first + count, each):
        client.publish(1, start, *map(payload, range(start, min(start + each, first + count))))
        assert client.receipt(1) == [(start, start)]


def fill(client: StagedClient, stage: Stage, first: int, count: int) -> None:
    """Publish messages, and run until they are sealed, uploaded and trimmed."""
    publish(client, first, count)
    stage.advance(4)


def shown(stage: Stage, topic: str = "orders") -> dict[str, Any]:
    """Return the result of `topic.show`."""
    body = stage.client().request("topic.show", topic=topic)
    assert isinstance(body, dict)
    return body


def consumer(stage: Stage, subscription: str = "s", topic: str = "orders", **options: Any) -> StagedClient:
    """Open a consumer, as handle 1."""
    client = stage.at_subscription(topic, subscription)
    opened = client.open_consumer(1, topic, subscription, **options)
    assert opened.kind == Type.OPENED, opened.header
    return client


def expect_messages(client: StagedClient, first: int, end: int, timeout_s: float = 30.0) -> None:
    """Read deliveries: exactly these messages in order, each once; acknowledge them."""
    at = first
    client.patience_s = timeout_s
    while at < end:
        for offset, found in client.deliveries(1, 1):
            assert (offset, found) == (at, payload(at))
            at += 1
        client.ack(1, (first, at), confirm=False)
        client.credit(1, 1000)
    assert at == end


def objects(stage: Stage, part: str = "") -> list[str]:
    """Return the names of the objects in the store."""
    assert stage.store is not None
    return [info.name for info in stage.store.store.list("v1/") if part in info.name]


# ---- where store and log meet ----------------------------------------------------------------------------------


def test_a_reader_goes_from_the_store_to_the_log_to_what_is_new(cloud: Stage) -> None:
    """Uploaded and trimmed, local, and live messages join without a gap; each is delivered and counted once."""
    client = create(cloud)
    fill(client, cloud, 0, 1500)
    publish(client, 1500, 100)
    told = shown(cloud)
    assert told["start_offset"] == 0 < told["local_start"] <= told["uploaded_end"]
    reader = consumer(cloud)
    expect_messages(reader, 0, 1600)
    publish(client, 1600, 20)
    expect_messages(reader, 1600, 1620)
    counts = cloud.client().request("subscription.show", topic="orders", subscription="s")
    assert counts["from_store"] == told["local_start"]
    assert counts["from_live"] == 20
    assert counts["from_store"] + counts["from_log"] + counts["from_live"] == 1620


def test_what_is_sealed_uploaded_and_trimmed_under_a_slow_reader_is_not_missed(cloud: Stage) -> None:
    """A reader that takes ten messages at a time gets each message once while the log is cut behind and ahead of it."""
    client = create(cloud)
    publish(client, 0, 100)
    reader = consumer(cloud, messages=10)
    taken = 0
    for round_ in range(12):
        publish(client, 100 + round_ * 100, 100)
        for _ in range(3):
            for offset, found in reader.deliveries(1, 10):
                assert (offset, found) == (taken, payload(taken))
                taken += 1
            reader.ack(1, (0, taken), confirm=False)
            reader.credit(1, 10)
        cloud.advance(1.5)
    assert shown(cloud)["local_start"] > taken
    reader.credit(1, 10_000, 1 << 24)
    while taken < 1300:
        for offset, found in reader.deliveries(1, 1, 30):
            assert (offset, found) == (taken, payload(taken))
            taken += 1


def test_a_reader_at_the_seam_does_not_wait_for_an_old_listing(cloud: Stage) -> None:
    """Messages uploaded and trimmed after the Fetcher listed the topic are fetched within a second or two."""
    client = create(cloud)
    fill(client, cloud, 0, 400)
    reader = consumer(cloud)
    expect_messages(reader, 0, shown(cloud)["local_start"])
    reader.disconnect()
    second = consumer(cloud, "slow", messages=10)
    begun = cloud.clock.now_s
    fill(client, cloud, 400, 600)
    assert shown(cloud)["local_start"] > 900
    second.deliveries(1, 10)
    second.credit(1, 2000, 1 << 24)
    at = 10
    while at < 1000:
        for offset, _ in second.deliveries(1, 1, 30):
            assert offset == at
            at += 1
    assert cloud.clock.now_s - begun < 4 + 3


# ---- durability cloud ------------------------------------------------------------------------------------------


def test_with_durability_cloud_nothing_is_said_before_it_is_in_the_store(cloud: Stage) -> None:
    """Receipt and dispatch follow the upload, within the linger; while the store is away there are none."""
    assert cloud.store is not None
    client = create(cloud, durability="cloud")
    reader = consumer(cloud)
    cloud.store.away()
    client.publish(1, 0, payload(0))
    client.patience_s = 0
    assert client.silent(5)
    assert reader.silent(5)
    cloud.store.back()
    client.patience_s = 60
    assert client.receipt(1) == [(0, 0)]
    expect_messages(reader, 0, 1)
    begun = cloud.clock.now_s
    client.publish(1, 1, payload(1))
    assert client.receipt(1) == [(1, 1)]
    assert cloud.clock.now_s - begun < 0.4
    assert list_history(cloud.store, layout(cloud)).history.end == 2


@pytest.mark.parametrize("to_tier", [True, False])
def test_what_the_tier_was_told_in_vain_is_told_again(cloud: Stage, to_tier: bool) -> None:
    """Mail that is lost between two processes that live on, there or back, delays receipts and does not end them."""
    client = create(cloud, durability="cloud")
    worker = f"worker-{client.worker}"
    pair = (worker, "tier") if to_tier else ("tier", worker)
    cloud.hold(*pair)
    client.publish(1, 0, payload(0))
    cloud.advance(3)
    cloud.holding.clear()
    cloud.let_go(*pair)
    client.patience_s = 30
    assert client.receipts(1, 1) == {0: 0}


def layout(stage: Stage, topic: str = "orders") -> Layout:
    """Return the names of a topic's objects."""
    meta = stage.catalogue.get_topic(topic)
    return Layout(meta.name, meta.incarnation)


def test_a_duplicate_of_what_is_uploaded_gets_its_receipt(cloud: Stage) -> None:
    """A batch that is sent again after its upload is answered, and seals nothing."""
    client = create(cloud, durability="cloud")
    publish(client, 0, 10)
    before = objects(cloud, "/s/")
    again = producer(cloud, sequence=0)
    again.publish(1, 0, *map(payload, range(5)))
    assert again.receipt(1) == [(0, 0)]
    cloud.advance(5)
    assert objects(cloud, "/s/") == before


# ---- a store that is away --------------------------------------------------------------------------------------


def test_producers_of_a_topic_on_disk_notice_nothing_of_a_store_that_is_away(cloud: Stage) -> None:
    """With durability fsync receipts go on, tries become rare, and all is uploaded soon after the store is back.

    A try is one upload, however many segments wait.
    """
    assert cloud.store is not None
    client = create(cloud)
    cloud.store.away()
    cloud.store.calls.clear()
    publish(client, 0, 500)
    cloud.advance(600)
    assert 5 < len(cloud.store.calls) < 50
    publish(client, 500, 500)
    cloud.advance(5)
    assert shown(cloud)["uploaded_end"] == 0
    cloud.store.back()
    cloud.advance(61)
    assert shown(cloud)["uploaded_end"] == 1000
    expect_messages(consumer(cloud), 0, 1000)


def test_a_log_too_far_ahead_of_the_store_refuses_and_comes_back(make_stage: MakeStage) -> None:
    """Beyond behind_bytes_max of bytes not uploaded a publish is refused with `store-behind`, and later taken."""
    stage = make_stage(**{**SMALL, "log__behind_bytes_max": 16 << 20})
    store = stage.start_tier()
    client = create(stage)
    store.away()
    body = [b"y" * 60_000]
    sequence, refused = 0, None
    while refused is None:
        client.publish(1, sequence, *body)
        frame = client.expect(Type.RECEIPT, Type.ERROR)
        refused = frame if frame.kind == Type.ERROR else None
        sequence += 1
        assert sequence < 400
    assert refused.header[Key.CODE] == "store-behind"
    assert (16 << 20) / 60_000 < sequence < (17.5 * (1 << 20)) / 60_000
    store.back()
    stage.advance(120)
    again = producer(stage, sequence=sequence - 1)
    again.publish(1, sequence - 1, *body)
    assert again.receipt(1) == [(sequence - 1, sequence - 1)]


def test_many_small_segments_are_not_taken_for_big_ones(make_stage: MakeStage) -> None:
    """The limit counts bytes: a slow topic is not refused after hours of outage because it has many segments."""
    stage = make_stage(**{**SMALL, "log__behind_bytes_max": 16 << 20})
    store = stage.start_tier()
    client = create(stage)
    publish(client, 0, 10)
    store.away()
    for number in range(100):
        publish(client, 10 + number, 1)
        stage.advance(2)
    assert shown(stage)["segments"] > 64


@pytest.mark.parametrize("operation", ["put_if_absent", "put_file_if_absent"])
@pytest.mark.parametrize("part", ["/e/", "/f/", "/s/", "topics/"])
def test_an_answer_that_was_lost_makes_no_second_message(cloud: Stage, operation: str, part: str) -> None:
    """If a write was done and its answer lost, the history still has each message once."""
    assert cloud.store is not None
    cloud.store.lose_answer(operation, part)
    client = create(cloud, durability="cloud")
    client.patience_s = 60
    publish(client, 0, 30)
    told = list_history(cloud.store, layout(cloud)).history
    assert (told.start, told.end, told.unjoined) == (0, 30, ())
    expect_messages(consumer(cloud), 0, 30)


# ---- crashes of the tier ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(12))
def test_a_tier_killed_at_any_step_loses_and_doubles_nothing(cloud: Stage, at: int, before: bool) -> None:
    """Killed before or after its nth call to the store, the next tier goes on: receipts come, each message once."""
    store = cloud.store
    assert store is not None
    client = create(cloud, durability="cloud")
    publish(client, 0, 10)
    cloud.kill_tier()
    calls = 0
    killed: list[str] = []

    def hook(operation: str, name: str) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            killed.append(f"{operation} {name}")
            raise StoreError("killed")

    if before:
        store.before = hook
    else:
        store.after = hook
    client.publish(1, 10, *map(payload, range(10, 20)))
    cloud.start_tier()
    for _ in range(100):
        if killed:
            break
        cloud.advance(0.05)
    assert killed
    cloud.kill_tier()
    store.back()
    cloud.start_tier()
    client.patience_s = 60
    assert client.receipt(1) == [(10, 10)]
    publish(client, 20, 10)
    told = list_history(store, layout(cloud)).history
    assert (told.start, told.end, told.unjoined) == (0, 30, ())
    expect_messages(consumer(cloud), 0, 30)


def test_a_reader_does_not_wait_half_a_minute_for_a_tier_that_was_killed(cloud: Stage) -> None:
    """A question to a tier that died is put to the next tier as soon as that is up."""
    client = create(cloud)
    fill(client, cloud, 0, 1000)
    cloud.loop.holds_work = True
    reader = cloud.at_subscription("orders", "s")
    reader.say_open_consumer(1, "orders", "s")
    cloud.settle()
    while cloud.loop.work and "get" not in {call[0] for call in cloud.store.calls}:  # type: ignore[union-attr]
        cloud.loop.do_work()
        cloud.settle()
    cloud.loop.holds_work = False
    cloud.kill_tier()
    cloud.loop.work.clear()
    cloud.start_tier()
    begun = cloud.clock.now_s
    expect_messages(reader, 0, 1000)
    assert cloud.clock.now_s - begun < 3


@pytest.mark.parametrize("to_tier", [True, False])
def test_a_reader_does_not_wait_half_a_minute_for_mail_that_was_lost(cloud: Stage, to_tier: bool) -> None:
    """Neither if the question was lost, nor if the answer was."""
    client = create(cloud)
    fill(client, cloud, 0, 1000)
    reader = cloud.at_subscription("orders", "s")
    worker = f"worker-{reader.worker}"
    pair = (worker, "tier") if to_tier else ("tier", worker)
    cloud.hold(*pair)
    reader.say_open_consumer(1, "orders", "s")
    cloud.advance(0.2)
    assert any((sender.node, node) == pair for sender, node, *_ in cloud.holding)
    cloud.holding.clear()
    cloud.let_go(*pair)
    begun = cloud.clock.now_s
    expect_messages(reader, 0, 1000)
    assert cloud.clock.now_s - begun < 3


# ---- two brokers -----------------------------------------------------------------------------------------------


def test_a_fenced_topic_refuses_and_says_why_as_often_as_it_is_asked(cloud: Stage) -> None:
    """Once another writer owns the topic, publishing fails with `fenced`, also after the worker has restarted."""
    store = cloud.store
    assert store is not None
    client = create(cloud, durability="cloud")
    publish(client, 0, 10)
    meta = cloud.catalogue.get_topic("orders")
    claim(store, meta, "somebody else")
    client.publish(1, 10, payload(10))
    refused = client.expect(Type.ERROR, Type.RECEIPT)
    assert (refused.kind, refused.header[Key.CODE]) == (Type.ERROR, "fenced")
    told = list_history(store, layout(cloud)).history
    assert (told.start, told.end) == (0, 10)
    number = cloud.worker_at(shown(cloud)["endpoint"])
    cloud.kill(number)
    cloud.start(number)
    cloud.settle()
    cloud.client(number).open_producer(1, "orders", 7, 0)
    cloud.settle()
    assert shown(cloud)["failure"] is not None


def two_brokers(make_stage: MakeStage) -> tuple[Stage, Stage]:
    """Return a broker with ten messages in the store, and another that took the topic over from the store."""
    first = make_stage(**SMALL)
    store = first.start_tier()
    publish(create(first, durability="cloud"), 0, 10)
    second = make_stage(**SMALL, random=Random(2))  # two brokers share no secrets
    second.store = FaultyStore(store.store, cast(Disk, second.disk))
    second.start_tier()
    return first, second


@pytest.mark.requirement("8.3-3")
def test_what_a_producer_resends_to_the_next_owner_is_stored_once(make_stage: MakeStage) -> None:
    """The store has the batch, its receipt was lost with the old broker: the new one answers it, and stores nothing."""
    _first, second = two_brokers(make_stage)
    again = second.at_topic("orders")
    opened = again.open_producer(1, "orders", 7, 0)  # which has heard of nothing
    assert opened.header[Key.SEQUENCE] == 10
    again.patience_s = 60
    for first in (0, 5):
        again.publish(1, first, *map(payload, range(first, first + 5)))
    receipts = again.receipts(1, 2)
    assert receipts[5] == 5
    assert receipts[0] in (0, OFFSET_UNKNOWN)
    again.publish(1, 10, b"new")
    assert again.receipt(1) == [(10, 10)]
    assert shown(second)["next_offset"] == 11
    second.restart(2)  # and the first segment of its own log knows it too
    back = second.at_topic("orders")
    assert back.open_producer(1, "orders", 7, 0).header[Key.SEQUENCE] == 11


def test_a_producer_of_a_topic_that_is_back_goes_on_where_it_stood(cloud: Stage) -> None:
    """Also if the topic is opened late, or the broker stops between."""
    fill(create(cloud), cloud, 0, 100)
    lose_disk(cloud)
    cloud.kill_tier()
    cloud.restart(2)
    cloud.start_tier()
    assert shown(cloud)["next_offset"] == 100
    cloud.restart(2)
    back = cloud.at_topic("orders")
    assert back.open_producer(1, "orders", 7, 0).header[Key.SEQUENCE] == 100
    assert back.open_producer(2, "orders", 8, 0).header[Key.SEQUENCE] == 0


@pytest.mark.parametrize("code", ["object-missing", "unavailable"])
def test_a_topic_comes_back_also_if_nobody_can_tell_its_producers(
    cloud: Stage, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The segment that knows them is lost: it is said what that means. The store is away: it is tried again."""
    fill(create(cloud), cloud, 0, 100)
    lose_disk(cloud)
    cloud.kill_tier()
    cloud.restart(2)
    store = cloud.store
    assert store is not None
    (topic,) = list_topics(store, lambda _name, _error: None)
    segments = {
        piece.segment.name
        for piece in list_history(store, Layout("orders", topic.incarnation)).for_broker("").pieces
    }
    failed: list[str] = []

    def fail(operation: str, name: str) -> None:
        if operation == "get" and name in segments and not failed:
            failed.append(name)
            raise StoreError(
                f"object {name} is lost", code=code, action="stop" if code == "object-missing" else "retry"
            )

    store.before = fail
    cloud.start_tier()
    cloud.advance(5)
    assert failed
    assert shown(cloud)["next_offset"] == 100
    back = cloud.at_topic("orders")
    known = 100 if code == "unavailable" else 0
    assert back.open_producer(1, "orders", 7, 0).header[Key.SEQUENCE] == known
    assert ("may be stored twice" in caplog.text) is (code == "object-missing")


def test_a_broker_that_comes_back_does_not_take_a_topic_that_went_on_elsewhere(make_stage: MakeStage) -> None:
    """Restarted with a log that has diverged, it claims nothing, refuses publishes, and leaves the owner alone."""
    first, second = two_brokers(make_stage)
    mine = second.at_topic("orders")
    mine.open_producer(1, "orders", 8)
    mine.publish(1, 0, *[b"second"] * 5)
    mine.patience_s = 60
    assert mine.receipt(1) == [(0, 10)]
    old = producer(first, number=9)
    old.publish(1, 0, *[b"stale"] * 5)
    assert old.expect(Type.ERROR, Type.RECEIPT).kind == Type.ERROR
    for _ in range(2):
        first.restart(2)
        back = first.at_topic("orders")
        first.advance(5)
        back.open_producer(1, "orders", 9, 0)
        back.publish(1, 0, *[b"stale"] * 5)
        first.advance(5)
        refused = back.expect(Type.ERROR, Type.RECEIPT)
        assert refused.kind == Type.ERROR, refused.header
    mine.publish(1, 5, *[b"second"] * 5)
    assert mine.receipt(1) == [(5, 15)]
    reader = consumer(second)
    assert [found for _, found in reader.deliveries(1, 20)] == [payload(n) for n in range(10)] + [
        b"second"
    ] * 10


# ---- cursors and recovery --------------------------------------------------------------------------------------


def lose_disk(stage: Stage) -> None:
    """Delete everything local, and start again from the store."""
    assert stage.store is not None
    old = stage.store.store
    assert isinstance(old, FolderStore)
    copied = SimulatedDisk()
    copied.makedirs("/data")
    stage.store = FaultyStore(old, cast(Disk, copied))  # the store's own disk is still there
    stage.disk = copied
    stage.catalogue.close()
    (stage.folder / "catalogue.sqlite").unlink()
    for name in ("catalogue.sqlite-wal", "catalogue.sqlite-shm"):
        (stage.folder / name).unlink(missing_ok=True)
    stage.waits_for_store = True


def test_all_comes_back_from_the_store_alone(cloud: Stage) -> None:
    """With the disk gone, topics, cursors and messages are back, and offsets go on where the store ends."""
    client = create(cloud)
    fill(client, cloud, 0, 500)
    half = consumer(cloud, "half")
    taken = half.deliveries(1, 100)
    half.ack(1, (0, 100))
    assert taken[0][0] == 0
    cloud.advance(3)
    lose_disk(cloud)
    cloud.restart(2)
    shown(cloud)
    cloud.advance(1)
    told = shown(cloud)
    assert (told["start_offset"], told["next_offset"]) == (0, 500)
    expect_messages(consumer(cloud, "half"), 100, 500)
    again = producer(cloud, number=8)
    again.publish(1, 0, payload(500))
    assert again.receipt(1) == [(0, 500)]
    expect_messages(consumer(cloud, "new"), 0, 501)


def test_a_new_reader_of_a_restored_topic_does_not_begin_at_the_local_log(cloud: Stage) -> None:
    """While the store is slow, `earliest` waits for it: what is in the store alone is not skipped."""
    fill(create(cloud), cloud, 0, 500)
    lose_disk(cloud)
    cloud.restart(2)
    cloud.kill_tier()
    cloud.restart(2)
    reader = cloud.at_subscription("orders", "new")
    reader.say_open_consumer(1, "orders", "new")
    cloud.advance(3)
    cloud.start_tier()
    expect_messages(reader, 0, 500)


def lose_first(stage: Stage, kind: str) -> list[bytes]:
    """Lose the first mail of a kind from now on; return the list that records the loss."""
    post, lost = stage.post, list[bytes]()

    def losing(sender: Any, node: str, sealed: bytes, frames: list[bytes]) -> None:
        if not lost and kind.encode() in sealed:
            lost.append(sealed)
        else:
            post(sender, node, sealed, frames)

    stage.post = losing  # type: ignore[method-assign]
    return lost


@pytest.mark.parametrize("kind", ["StoredTopics", "RestoreTopics", "Restored"])
def test_all_comes_back_from_the_store_though_mail_is_lost(cloud: Stage, kind: str) -> None:
    """Whichever mail is lost, neither process waits for ever for an answer that the other has already sent."""
    fill(create(cloud), cloud, 0, 100)
    cloud.advance(3)
    lose_disk(cloud)
    cloud.kill_tier()
    cloud.restart(2)
    lost = lose_first(cloud, kind)
    cloud.start_tier()
    cloud.advance(2)
    assert lost
    assert shown(cloud)["next_offset"] == 100
    expect_messages(consumer(cloud), 0, 100)


@pytest.mark.parametrize("kind", ["TakeOver", "Restored"])
def test_a_takeover_whose_mail_was_lost_goes_on(make_stage: MakeStage, kind: str) -> None:
    """The client may be told to try again; the name is not blocked for ever by a takeover that nobody runs."""
    first, second = two_brokers(make_stage)
    second.advance(1)
    assert shown(second)["next_offset"] == 10
    back = producer(first, number=9)
    back.publish(1, 0, b"stale")
    assert back.expect(Type.ERROR).kind == Type.ERROR
    first.client().request("topic.forget", topic="orders")
    lost = lose_first(first, kind)
    begun = first.clock.now_s
    while (answer := first.client().ask("topic.takeover", topic="orders")).kind != Type.RESULT:
        assert answer.code in ("unavailable", "topic-exists")
        if answer.code == "topic-exists":
            break
        assert first.clock.now_s - begun < 20
        first.advance(0.5)
    assert lost
    assert shown(first)["next_offset"] == 10


def test_no_topic_is_created_before_the_store_has_said_what_it_has(cloud: Stage) -> None:
    """On a new disk a topic that the store may have is not created: that would hide the old topic for good."""
    fill(create(cloud), cloud, 0, 100)
    lose_disk(cloud)
    cloud.kill_tier()
    cloud.restart(2)
    answer = cloud.client().ask("topic.create", topic="orders")
    assert answer.header[Key.CODE] == "unavailable"
    cloud.start_tier()
    assert shown(cloud)["next_offset"] == 100


# ---- the end of topics and subscriptions -----------------------------------------------------------------------


def test_a_deleted_topic_leaves_nothing_and_stays_deleted(cloud: Stage) -> None:
    """Its objects are deleted, and neither another tier nor another broker brings it back."""
    fill(create(cloud), cloud, 0, 300)
    consumer(cloud).ack(1, (0, 10))
    cloud.advance(2)
    assert objects(cloud)
    cloud.client().request("topic.delete", topic="orders")
    cloud.advance(2)
    assert objects(cloud) == []
    cloud.restart(2)
    assert cloud.client().request("topic.list")["topics"] == []


def test_a_topic_deleted_while_no_tier_is_there_does_not_come_back(cloud: Stage) -> None:
    """The deletion is remembered until the store has carried it out, also over a restart."""
    fill(create(cloud), cloud, 0, 300)
    cloud.kill_tier()
    cloud.client().request("topic.delete", topic="orders")
    cloud.advance(2)
    cloud.restart(2)
    assert objects(cloud)
    cloud.start_tier()
    cloud.advance(2)
    assert cloud.client().request("topic.list")["topics"] == []
    assert objects(cloud) == []
    assert cloud.catalogue.erasing() == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_topic_deleted_while_a_worker_dies_leaves_nothing_either(cloud: Stage, number: int) -> None:
    """What the worker had not deleted is deleted once it is back; until then the deletion is not forgotten."""
    fill(create(cloud), cloud, 0, 300)
    for name in "abcd":
        expect_messages(consumer(cloud, name), 0, 100)
    cloud.advance(2)
    node = f"worker-{number}"
    cloud.hold("broker", node)
    admin = cloud.client(1 - number)
    asked = {Key.TYPE: Type.REQUEST, Key.REF: 999, Key.OPERATION: "topic.delete"}
    admin.say(asked | {Key.ARGUMENTS: {"topic": "orders"}})
    cloud.advance(0.1)
    cloud.kill(number)
    cloud.let_go("broker", node)
    cloud.advance(60)
    if local_files(cloud):  # the worker had some of it
        assert [gone.name for gone in cloud.catalogue.erasing()] == ["orders"]
    cloud.start(number)
    cloud.advance(40)
    assert local_files(cloud) == []
    assert (objects(cloud), cloud.catalogue.erasing()) == ([], [])
    fill(create(cloud), cloud, 0, 10)
    expect_messages(consumer(cloud, "a"), 0, 10)


def local_files(stage: Stage) -> list[str]:
    """Return the files of topics and cursors in the data folder."""
    folders = ("/data/topics", "/data/cursors")
    return [
        f"{each}/{name}" for each in folders if stage.disk.exists(each) for name in stage.disk.listdir(each)
    ]


def test_a_topic_deleted_while_it_is_claimed_leaves_nothing(cloud: Stage) -> None:
    """Uploads that are running when a topic is deleted leave nothing in the store."""
    cloud.loop.holds_work = True
    cloud.client().request("topic.create", topic="orders")
    cloud.settle()
    cloud.client().say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: 99,
            Key.OPERATION: "topic.delete",
            Key.ARGUMENTS: {"topic": "orders"},
        }
    )
    cloud.settle()
    while len(cloud.loop.work) > 1:  # what was begun last is done first
        cloud.loop.work.rotate(1)
        cloud.loop.do_work()
        cloud.settle()
    cloud.loop.holds_work = False
    cloud.advance(5)
    assert objects(cloud) == []


def test_deletion_outlasts_a_store_that_is_away(cloud: Stage) -> None:
    """A failed erasure is retried, and nothing of the topic is uploaded meanwhile."""
    assert cloud.store is not None
    client = create(cloud)
    fill(client, cloud, 0, 300)
    publish(client, 300, 10)
    cloud.store.away()
    cloud.advance(3)
    cloud.client().request("topic.delete", topic="orders")
    cloud.advance(30)
    cloud.store.back()
    cloud.advance(120)
    assert objects(cloud) == []


def test_a_topic_made_anew_never_mixes_with_the_old_one(cloud: Stage) -> None:
    """Deleted and created again at once under the same name, it has only its own messages, and these are uploaded."""
    fill(create(cloud), cloud, 0, 300)
    cloud.loop.holds_work = True
    asked = cloud.client()
    asked.say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: 98,
            Key.OPERATION: "topic.delete",
            Key.ARGUMENTS: {"topic": "orders"},
        }
    )
    cloud.settle()
    asked.say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: 99,
            Key.OPERATION: "topic.create",
            Key.ARGUMENTS: {"topic": "orders"},
        }
    )
    cloud.settle()
    while cloud.loop.work:
        cloud.loop.work.rotate(1)
        cloud.loop.do_work()
        cloud.settle()
    cloud.loop.holds_work = False
    cloud.advance(2)
    client = producer(cloud)
    for number in range(3):
        client.publish(1, number, b"new")
        assert client.receipt(1) == [(number, number)]
    cloud.advance(60)
    assert shown(cloud)["uploaded_end"] == 3
    assert [found for _, found in consumer(cloud).deliveries(1, 3)] == [b"new"] * 3


def test_a_subscription_made_anew_keeps_its_own_cursor_in_the_store(cloud: Stage) -> None:
    """Forgetting the deleted one comes before storing the cursor of the new one, and is retried until it succeeds."""
    assert cloud.store is not None
    client = create(cloud)
    fill(client, cloud, 0, 100)
    consumer(cloud).ack(1, (0, 100))
    cloud.advance(3)
    assert objects(cloud, "/c/")
    cloud.store.away()
    cloud.client().request("subscription.delete", topic="orders", subscription="s")
    cloud.advance(3)
    cloud.store.back()
    cloud.advance(60)
    assert objects(cloud, "/c/") == []
    consumer(cloud).ack(1, (0, 50))
    cloud.advance(3)
    ((meta, _),) = read_cursors(cloud.store, cloud.catalogue.get_topic("orders"))
    assert meta == cloud.catalogue.get_subscription("orders", "s")


# ---- retention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(1, 6))
def test_retention_cuts_the_store_and_a_crash_in_between_leaves_nothing(cloud: Stage, at: int) -> None:
    """The boundary is written before anything is deleted; killed at any deletion, the next tier deletes the rest."""
    assert cloud.store is not None
    client = create(cloud, retention_ms=60_000)
    fill(client, cloud, 0, 300)
    fill(client, cloud, 300, 300)
    deletions: list[str] = []

    def hook(operation: str, name: str) -> None:
        if operation == "delete" and "/s/" in name:
            assert objects(cloud, "/t/")
            deletions.append(name)
            if len(deletions) >= at:
                raise StoreError("killed")

    cloud.store.before = hook
    publish(client, 600, 10)
    for _ in range(100):
        cloud.advance(1)
        if len(deletions) >= at:
            break
    cloud.kill_tier()
    cloud.store.back()
    cloud.start_tier()
    fill(client, cloud, 610, 10)
    cloud.advance(70)
    told = list_history(cloud.store, layout(cloud)).history
    assert told.start >= 600
    assert [name for name in objects(cloud, "/s/") if name not in {p.segment.name for p in told.pieces}] == []
    assert len(objects(cloud, "/t/")) == 1


def test_a_reader_below_what_retention_took_goes_on_behind_it(cloud: Stage) -> None:
    """A slow reader whose messages retention deleted from the store is told, and goes on after them."""
    client = create(cloud, retention_ms=20_000)
    fill(client, cloud, 0, 300)
    reader = consumer(cloud, messages=10)
    reader.deliveries(1, 10)
    cloud.advance(60)
    publish(client, 300, 10)
    cloud.advance(30)
    reader.credit(1, 1000)
    offsets = [offset for offset, _ in reader.deliveries(1, 10)]
    start = shown(cloud)["start_offset"]
    assert start > 10
    assert offsets[-1] < 310


# ---- the cache -------------------------------------------------------------------------------------------------


def test_the_cache_is_bounded_and_a_reader_survives_eviction(make_stage: MakeStage) -> None:
    """With room for two segments, readers at different places still get everything, and the limit holds."""
    stage = make_stage(**{**SMALL, "tier__cache_bytes_max": 16 << 20})
    stage.start_tier()
    client = create(stage)
    fill(client, stage, 0, 3000)
    readers = [consumer(stage, f"s{number}", messages=50) for number in range(3)]
    at = [0, 0, 0]
    while min(at) < 2900:
        for number, reader in enumerate(readers):
            for _ in range(number + 1):
                if at[number] >= 2900:
                    continue
                for offset, found in reader.deliveries(1, 1, 60):
                    assert (offset, found) == (at[number], payload(at[number]))
                    at[number] += 1
                reader.credit(1, 50)
        size = sum(
            stage.disk.size(f"/data/cache/{folder}/{name}")
            for folder in stage.disk.listdir("/data/cache")
            for name in stage.disk.listdir(f"/data/cache/{folder}")
        )
        assert size <= (16 << 20) + 1_200_000


@pytest.mark.parametrize("damage", ["bytes", "frames"])
def test_a_damaged_object_stops_its_readers_and_says_so(cloud: Stage, damage: str) -> None:
    """An object that is damaged in the store is fetched a few times, not for ever; the reader is told, and waits."""
    assert cloud.store is not None
    client = create(cloud)
    fill(client, cloud, 0, 600)
    name = objects(cloud, "/s/")[0]
    path = f"/store/{places(name)[0].path}"
    whole = bytearray(cloud.disk.read(path))
    whole[len(whole) // 2] ^= 0x10
    info = cloud.store.head(name)
    cloud.store.store.delete(name)
    cloud.store.store.put_if_absent(name, bytes(whole), metadata=info.metadata)
    if damage == "bytes":
        inode = cloud.disk.open(path)
        inode.pwritev((b"\xff",), 1000)
        inode.close()
    cloud.store.calls.clear()
    reader = consumer(cloud)
    cloud.advance(30)
    notice = reader.expect(Type.EVENT)
    assert notice.header[Key.CODE] == "log-damaged"
    cloud.advance(60)
    assert len([call for call in cloud.store.calls if call[0] == "get"]) < 10


def test_claims_that_a_person_deleted_fence_nobody(cloud: Stage) -> None:
    """The topic goes on uploading, and the next writer's epoch is above that of every upload before it."""
    assert cloud.store is not None
    client = create(cloud)
    fill(client, cloud, 0, 120)
    for name in [*objects(cloud, "/e/"), *objects(cloud, "/f/")]:
        cloud.store.store.delete(name)
    fill(client, cloud, 120, 120)
    assert (shown(cloud)["failure"], shown(cloud)["uploaded_end"]) == (None, 240)
    cloud.restart(2)
    client = producer(cloud, sequence=240)
    fill(client, cloud, 240, 120)
    assert shown(cloud)["uploaded_end"] == 360
    epochs = [int(name.rpartition(".")[2], 16) for name in sorted(objects(cloud, "/s/"))]
    assert epochs == sorted(epochs)
    assert epochs[0] < epochs[-1]


def test_old_mail_to_a_new_tier_fences_nobody(cloud: Stage) -> None:
    """A tier told that the log is shorter than the store asks once more; only if that is still so does it stop."""
    client = create(cloud, durability="cloud")
    publish(client, 0, 10)
    topic = cloud.actor("topic", "orders")
    cloud.kill_tier()
    cloud.hold(topic.system.node, "tier")
    cloud.start_tier()
    old = KeepTopic(topic.meta, 0, 1, topic.address)
    cloud.systems["broker"].ref("tier", f"uploader/orders:{topic.meta.incarnation.hex()}").tell(old)
    cloud.advance(1)
    cloud.let_go(topic.system.node, "tier")
    cloud.advance(3)
    assert shown(cloud)["failure"] is None
    publish(client, 10, 10)
    topic.ref.tell(Fenced("the store has more", 100))
    cloud.settle()
    assert shown(cloud)["failure"].startswith("the store has more; ")


def test_a_subscription_waits_for_what_the_store_has(cloud: Stage) -> None:
    """With durability cloud, a restarted topic has no watermark before the store answers: no cursor is refused."""
    publish(create(cloud, durability="cloud"), 0, 10)
    reader = consumer(cloud)
    reader.deliveries(1, 10)
    reader.ack(1, (0, 10))
    assert cloud.store is not None
    cloud.store.away()
    cloud.restart(2)
    again = cloud.at_subscription("orders", "s")
    again.say_open_consumer(1, "orders", "s")
    again.patience_s = 0
    cloud.advance(3)
    assert all(frame.kind != Type.ERROR for frame in again.unread)
    cloud.store.back()
    again.patience_s = 100
    assert again.expect(Type.OPENED, Type.ERROR).kind == Type.OPENED


# ---- what is missing -------------------------------------------------------------------------------------------


def lose(stage: Stage, *bases: int, topic: str = "orders") -> None:
    """Let the store lose the segments that begin at these offsets."""
    assert stage.store is not None
    found = layout(stage, topic)
    for info in list(stage.store.store.list(found.segments)):
        place = found.parse_segment(info.name)
        assert place is not None
        if place[0] in bases:
            stage.store.store.delete(info.name)


@pytest.mark.parametrize("type_", ["shared", "exclusive", "key-shared"])
def test_what_the_store_lost_and_the_log_has_is_no_damage_of_a_cursor(
    make_stage: MakeStage, type_: str
) -> None:
    """A cursor or reader is ahead of what the store has until the log is uploaded again; that is no damage."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    store = stage.start_tier()
    client = create(stage, durability="cloud")
    taker = consumer(stage, type=type_)
    publish(client, 0, 10)
    expect_messages(taker, 0, 10)
    stage.advance(2)
    stage.restart(2)
    stage.kill_tier()
    lose(stage, *stored_bases(stage))
    assert stored_bases(stage) == []
    store.before = lambda operation, name: fail_put(operation, name)
    stage.start_tier()
    reader = stage.at_subscription("orders", "r-1")
    opened = reader.open_consumer(1, "orders", "r-1", "reader", start=10)
    assert (opened.kind, opened.header[Key.OFFSET]) == (Type.OPENED, 10)
    taker = consumer(stage, type=type_)
    assert shown(stage)["uploaded_end"] == 0
    store.back()
    client = producer(stage, sequence=10)
    publish(client, 10, 10)
    expect_messages(taker, 10, 20)
    expect_messages(reader, 10, 20)
    asked = stage.client().request("subscription.show", topic="orders", subscription="s")
    assert (asked["cursor"], shown(stage)["uploaded_end"]) == (20, 20)


def fail_put(operation: str, name: str) -> None:
    """Let the upload of every segment fail."""
    if operation.startswith("put") and "/s/" in name:
        raise StoreError(f"{operation} {name} failed")


def stored_bases(stage: Stage) -> list[int]:
    """Return the first offsets of the segments in the store."""
    return [piece.start for piece in history(stage).pieces]


def history(stage: Stage) -> History:
    """Return the topic's history in the store."""
    assert stage.store is not None
    return list_history(stage.store, layout(stage)).history


def heard(client: StagedClient, code: str) -> tuple[int, int]:
    """Return offset and count of the next event with this code."""
    event = client.expect(Type.EVENT, handle=1, code=code, timeout_s=60)
    return event.header[Key.OFFSET], event.header[Key.COUNT]


def test_a_gap_in_the_store_is_damage_with_its_range_and_an_operator_decides(cloud: Stage) -> None:
    """Messages before it arrive, then an event with its range, which is not called retention; a repair is permanent."""
    fill(create(cloud), cloud, 0, 600)
    bases = stored_bases(cloud)
    gap = (bases[1], bases[2])
    lose(cloud, bases[1])
    reader = consumer(cloud)
    expect_messages(reader, 0, gap[0])
    assert heard(reader, "log-damaged") == (gap[0], gap[1] - gap[0])
    assert [(first, end) for first, end, _ in shown(cloud)["damaged"]] == [gap]
    explained = cloud.client().request("subscription.explain", topic="orders", subscription="s")
    assert explained["reasons"][0]["code"] == "damage"
    assert "retention" not in explained["reasons"][0]["text"]
    assert reader.silent(30)
    repaired = cloud.client().request("topic.repair", topic="orders", skip_damaged=True)
    assert repaired["skipped"] == [list(gap)]
    expect_messages(reader, gap[1], 600)
    assert heard(reader, "skipped") == (gap[0], gap[1] - gap[0])
    cloud.advance(3)
    cloud.restart(2)
    again = consumer(cloud, "later")
    expect_messages(again, 0, gap[0])
    expect_messages(again, gap[1], 600)


def test_the_beginning_that_is_nowhere_is_said_and_what_is_there_delivered(cloud: Stage) -> None:
    """A new subscription begins at the earliest message there is; an existing one waits for a decision."""
    fill(create(cloud), cloud, 0, 600)
    cloud.client().request(
        "subscription.create", topic="orders", subscription="old", type="exclusive", start=0
    )
    end = stored_bases(cloud)[1]
    lose(cloud, 0)
    fresh = consumer(cloud, "fresh", start="earliest")
    expect_messages(fresh, end, 600)
    assert heard(fresh, "missing") == (0, end)
    old = consumer(cloud, "old")
    assert heard(old, "log-damaged") == (0, end)
    assert [(first, stop) for first, stop, _ in shown(cloud)["damaged"]] == [(0, end)]
    cloud.client().request("topic.repair", topic="orders", skip_damaged=True)
    expect_messages(old, end, 600)


def test_a_verification_finds_what_the_store_has_lost_before_anybody_reads_it(cloud: Stage) -> None:
    """Its report has the range, and a repair right after it covers the range: both list the store."""
    fill(create(cloud), cloud, 0, 600)
    bases = stored_bases(cloud)
    gap = (bases[1], bases[2])
    lose(cloud, bases[1])
    client = cloud.client()
    while not (answer := client.request("topic.verify", topic="orders"))["done"]:
        cloud.advance(0.1)
    assert [(one["first"], one["end"]) for one in answer["report"]["damaged"]] == [gap]
    assert [(first, end) for first, end, _ in shown(cloud)["damaged"]] == [gap]
    assert client.request("topic.repair", topic="orders", skip_damaged=True)["skipped"] == [list(gap)]
    reader = consumer(cloud)
    expect_messages(reader, 0, gap[0])
    expect_messages(reader, gap[1], 600)


def test_what_the_store_is_known_to_have_lost_stays_in_the_log(make_stage: MakeStage) -> None:
    """Local segments are deleted by what the store has now, not by what it had."""
    stage = make_stage(**SMALL | {"log__local_bytes": 3_000_000})
    stage.start_tier()
    client = create(stage)
    fill(client, stage, 0, 600)
    local = shown(stage)["local_start"]
    assert local > 0
    lose(stage, local)
    lose(stage, 0)
    reader = consumer(stage)  # finds the beginning missing, so that the store is listed
    reader.expect(Type.EVENT, handle=1, timeout_s=60)
    fill(client, stage, 600, 300)
    assert shown(stage)["local_start"] == local
    expect_messages(reader, stored_bases(stage)[0], 900)


def test_what_the_store_lost_and_the_log_has_is_delivered(make_stage: MakeStage) -> None:
    """All objects are gone, also those that say where the history begins: the local log is still served."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    fill(create(stage), stage, 0, 300)
    lose_disk(stage)
    stage.restart(2)
    client = producer(stage, number=8)
    for number in range(30):
        client.publish(1, number * 10, *map(payload, range(300 + number * 10, 310 + number * 10)))
        client.receipt(1)
    stage.advance(4)
    assert (shown(stage)["local_start"], shown(stage)["uploaded_end"]) == (300, 600)
    for name in objects(stage, "/d/"):
        stage.store.store.delete(name)  # type: ignore[union-attr]
    client.publish(1, 300, payload(600))
    client.receipt(1)
    reader = consumer(stage, start="earliest")
    expect_messages(reader, 300, 601)
    assert heard(reader, "missing") == (0, 300)


def test_a_gap_that_the_log_can_fill_is_filled_by_the_next_writer(cloud: Stage) -> None:
    """After a restart, what the store lost and the log has is uploaded again, and the watermark advances."""
    client = create(cloud)
    cloud.advance(1)
    for number in range(4):
        publish(client, number * 60, 60)
        cloud.advance(0.5)
    cloud.advance(5)
    kept = shown(cloud)["local_start"]
    bases = stored_bases(cloud)
    lose(cloud, bases[-1])
    assert kept <= bases[-1]
    cloud.restart(2)
    shown(cloud)
    cloud.advance(5)
    told = history(cloud)
    assert (told.start, told.end, told.gaps) == (0, 240, ())


def test_behind_a_gap_that_nobody_can_fill_uploads_go_on(cloud: Stage) -> None:
    """The history before and after it is unchanged, and new segments are appended after it."""
    fill(create(cloud), cloud, 0, 600)
    bases = stored_bases(cloud)
    lose(cloud, bases[1])
    cloud.restart(2)
    client = producer(cloud, number=8)
    fill(client, cloud, 600, 0)
    client.publish(1, 0, payload(600))
    assert client.receipt(1) == [(0, 600)]
    cloud.advance(5)
    told = history(cloud)
    assert (told.start, told.end, told.gaps) == (0, 601, ((bases[1], bases[2]),))
    assert shown(cloud)["uploaded_end"] == 601
    assert shown(cloud)["missing"] == [[bases[1], bases[2]]]


@pytest.mark.parametrize("restarts", [0, 1])
def test_what_the_end_of_the_log_and_of_the_store_lost_is_skipped_and_uploads_go_on(
    make_stage: MakeStage, restarts: int
) -> None:
    """Exactly the range that is nowhere is damage, also to a verification and a repair; later messages are uploaded."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    client = create(stage)
    for first in range(0, 60, 10):
        fill(client, stage, first, 10)
    stage.restart(2, in_order=True)
    folder = log_folder("/data", stage.catalogue.get_topic("orders"))
    for name in sorted(name for name in stage.disk.listdir(folder) if name.endswith(".seg"))[-2:]:
        stage.disk.unlink(f"{folder}/{name}")
    lose(stage, stored_bases(stage)[-1])
    for _ in range(restarts):
        shown(stage)
        stage.restart(2)
    shown(stage)
    stage.advance(5)
    assert [one[:2] for one in shown(stage)["damaged"]] == [[50, 60]]
    reader = consumer(stage, start="earliest")
    expect_messages(reader, 0, 50)
    assert heard(reader, "log-damaged") == (50, 10)
    assert stage.client().request("topic.repair", topic="orders", skip_damaged=True)["skipped"] == [[50, 60]]
    again = producer(stage, number=8)
    again.publish(1, 0, *map(payload, range(60, 65)))
    assert again.receipt(1) == [(0, 60)]
    stage.advance(5)
    expect_messages(reader, 60, 65)
    assert shown(stage)["uploaded_end"] == 65
    assert [one[:2] for one in shown(stage)["damaged"]] == [[50, 60]]


def test_a_topic_that_comes_back_from_a_store_with_a_gap_keeps_what_is_there(cloud: Stage) -> None:
    """New offsets come after everything the store has; the gap is damage, not the end of the history."""
    fill(create(cloud), cloud, 0, 600)
    bases, end = stored_bases(cloud), history(cloud).end
    lose(cloud, bases[1])
    lose_disk(cloud)
    cloud.restart(2)
    reader = consumer(cloud)
    expect_messages(reader, 0, bases[1])
    assert heard(reader, "log-damaged") == (bases[1], bases[2] - bases[1])
    cloud.client().request("topic.repair", topic="orders", skip_damaged=True)
    expect_messages(reader, bases[2], end)
    client = producer(cloud, number=9)
    client.publish(1, 0, payload(end))
    assert client.receipt(1) == [(0, end)]


@pytest.mark.parametrize("place", ["first", "middle"])
@pytest.mark.parametrize("how", ["removed", "flipped"])
def test_what_is_damaged_or_missing_locally_is_read_from_the_store(
    make_stage: MakeStage, place: str, how: str
) -> None:
    """A local segment that is missing or has a flipped byte is read from the store if that has it whole."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    fill(create(stage), stage, 0, 600)
    hurt(stage, place, how)
    stage.restart(2)
    stage.advance(5)
    reader = consumer(stage, start="earliest")
    expect_messages(reader, 0, 600)
    assert shown(stage)["damaged"] == []
    assert reader.silent(1)
    repaired = stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    assert repaired["skipped"] == []


@pytest.mark.parametrize("how", ["removed", "flipped"])
def test_a_subscription_does_not_go_by_what_the_store_had_some_seconds_ago(
    make_stage: MakeStage, how: str
) -> None:
    """Uploads since its last word from the topic count: damage in what they have is read from the store."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    publisher = create(stage)
    client = consumer(stage, start="earliest", messages=1)
    fill(publisher, stage, 0, 600)
    hurt(stage, "middle", how)
    client.credit(1, 1000)
    expect_messages(client, 0, 600)
    assert [frame.code for frame in client.unread if frame.kind == Type.EVENT] == []
    assert shown(stage)["damaged"] == []


@pytest.mark.parametrize("how", ["removed", "flipped"])
def test_what_is_damaged_here_and_lost_there_is_damage(make_stage: MakeStage, how: str) -> None:
    """The range is exact, a verification and `topic.show` have it, and a repair goes on behind it."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    fill(create(stage), stage, 0, 600)
    base = hurt(stage, "middle", how)
    lose(stage, base)
    reader = consumer(stage, start="earliest")
    expect_messages(reader, 0, base)
    first, count = heard(reader, "log-damaged")
    expect_messages(reader, base, first)
    assert [(one, end) for one, end, _ in shown(stage)["damaged"]] == [(first, first + count)]
    assert stage.client().request("topic.repair", topic="orders", skip_damaged=True)["skipped"] == [
        [first, first + count]
    ]
    expect_messages(reader, first + count, 600)


def test_new_messages_do_not_count_as_those_that_a_power_failure_took(make_stage: MakeStage) -> None:
    """Their offsets are the same; a subscription that is opened later is delivered them all the same."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    publish(create(stage, durability="os"), 0, 50)
    expect_messages(consumer(stage, start="earliest"), 0, 50)
    stage.advance(3)
    folder = stage.actor("topic", "orders").wal.folder
    for number in range(2):
        stage.kill(number)
    [name] = [name for name in stage.disk.listdir(folder) if name.endswith(".seg")]
    data = stage.disk.read(f"{folder}/{name}")
    stage.disk.unlink(f"{folder}/{name}")
    file = stage.disk.create(f"{folder}/{name}")
    file.pwritev((data[:220_000],), 0)
    file.datasync()
    file.close()
    stage.restart(2)
    end = shown(stage)["next_offset"]
    assert end < 50
    client = producer(stage, number=8)
    client.publish(1, 0, *map(payload, range(end, end + 5)))
    assert client.receipt(1) == [(0, end)]
    expect_messages(consumer(stage), end, end + 5)


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_what_lies_before_damage_is_delivered_and_redelivered(make_stage: MakeStage, type_: str) -> None:
    """Also where a subscription that reads ahead comes upon the damage first; only what lies behind it waits."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    fill(create(stage), stage, 0, 200)
    lose(stage, hurt(stage, "middle", "removed"))
    client = consumer(stage, start="earliest", type=type_, messages=1)
    for attempt in (1, 2):
        found: list[int] = []
        while (frame := client.hear(20)) is not None:
            if frame.kind == Type.DELIVER:
                assert frame.header[Key.ATTEMPT] == attempt
                found += frame.offsets()
                client.credit(1, frame.header[Key.COUNT])
        [(first, _, _)] = shown(stage)["damaged"]
        assert found == list(range(first))
        client.nack(1, (0, first), delay_ms=0)


def hurt(stage: Stage, place: str, how: str) -> int:
    """Remove a local segment, or flip a byte in it; return its first offset."""
    folder = stage.actor("topic", "orders").wal.folder
    names = sorted(name for name in stage.disk.listdir(folder) if name.endswith(".seg"))
    name = names[0] if place == "first" else names[len(names) // 2]
    if how == "removed":
        stage.disk.unlink(f"{folder}/{name}")
        return int(name.partition(".")[0])
    data = stage.disk.read(
        f"{folder}/{name}"
    )  # written anew, so that an object that is the same file stays whole
    at = len(data) // 2
    stage.disk.unlink(f"{folder}/{name}")
    file = stage.disk.create(f"{folder}/{name}")
    flipped = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
    if how == "flipped twice":  # in the footer too, so that opening the log comes upon it
        flipped = flipped[:-10] + bytes((flipped[-10] ^ 1,)) + flipped[-9:]
    file.pwritev((flipped,), 0)
    file.datasync()
    file.close()
    return int(name.partition(".")[0])


# ---- what the store knows is damaged ---------------------------------------------------------------------------


def flip_meta(stage: Stage, part: str, value: bytes = b"\xff") -> int:
    """Flip a byte in the metadata objects whose name contains `part`; return how many there were."""
    assert stage.store is not None
    store = cast(FolderStore, stage.store.store)
    prefix = part if part.startswith("v1/") else layout(stage).prefix + part[1:]
    found = [name for name in objects(stage) if name.startswith(prefix)]
    for name in found:
        place = places(name)[0]
        file = store._disk.open(f"{store.path}/{place.shared}")
        contents = file.pread(1 << 20, 0)
        line = line_in(contents, place.file)
        assert line is not None
        file.pwritev((value,), contents.index(line) + 3)
        file.datasync()
        file.close()
    return len(found)


@pytest.mark.parametrize("part", ["/s/", "/e/", "/f/", "/t/", "/c/", "v1/topics/", "v1/"])
def test_a_flipped_byte_in_what_the_store_knows_stops_nobody(cloud: Stage, part: str) -> None:
    """After a restart a consumer is answered at once, all messages are delivered, and uploads go on."""
    client = create(cloud, retention_bytes=4_000_000)
    fill(client, cloud, 0, 600)
    cloud.advance(10)
    begin = shown(cloud)["start_offset"]
    assert begin > 0
    cloud.client().request("subscription.create", topic="orders", subscription="s", type="exclusive")
    cloud.advance(2)
    assert flip_meta(cloud, part)
    cloud.restart(2)
    begun = cloud.clock.now_s
    reader = consumer(cloud, "new", start="earliest")
    assert cloud.clock.now_s - begun < 2
    expect_messages(reader, begin, 600)
    again = producer(cloud, number=8)
    again.publish(1, 0, payload(600))
    assert again.receipt(1) == [(0, 600)]
    cloud.advance(5)
    assert shown(cloud)["uploaded_end"] == 601
    assert shown(cloud)["damaged"] == []


@pytest.mark.parametrize("part", ["/s/", "/c/", "/f/"])
def test_what_the_store_knows_of_cursors_and_segments_may_be_damaged_when_a_topic_comes_back(
    cloud: Stage, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is restored except a subscription of which no object says what it was; that is reported."""
    fill(create(cloud), cloud, 0, 600)
    expect_messages(consumer(cloud), 0, 100)
    cloud.advance(3)
    end = history(cloud).end
    assert flip_meta(cloud, part)
    lose_disk(cloud)
    cloud.restart(2)
    shown(cloud)
    cloud.advance(1)
    assert (shown(cloud)["start_offset"], shown(cloud)["next_offset"]) == (0, end)
    if part == "/c/":
        assert "subscription s is not back" in caplog.text
        expect_messages(consumer(cloud, "new", start="earliest"), 0, end)
    else:
        expect_messages(consumer(cloud), 100, end)


def test_a_catalogue_entry_that_says_nothing_any_more_is_said_and_stops_uploads_alone(cloud: Stage) -> None:
    """Only a person can decide; the messages here and in the store are delivered meanwhile."""
    fill(create(cloud), cloud, 0, 600)
    store = cast(FolderStore, cloud.store.store)  # type: ignore[union-attr]
    file = store._disk.open(f"{store.path}/{layout(cloud).catalogue}")
    file.pwritev((b"\xff",), 0)
    file.close()
    cloud.restart(2)
    reader = consumer(cloud, start="earliest")
    expect_messages(reader, 0, 600)
    told = shown(cloud)
    assert told["uploads_stopped"]
    assert "catalogue entry" in told["failure"] or "CRC32C" in told["failure"]
    explained = cloud.client().request("subscription.explain", topic="orders", subscription="s")
    assert "uploads-stopped" in [reason["code"] for reason in explained["reasons"]]
    assert "starting" not in [reason["code"] for reason in explained["reasons"]]


def test_with_durability_cloud_a_store_that_cannot_be_used_is_a_coded_error(cloud: Stage) -> None:
    """No receipt can be given: producers are told why, and that trying again does not help."""
    publish(create(cloud, durability="cloud"), 0, 10)
    store = cast(FolderStore, cloud.store.store)  # type: ignore[union-attr]
    file = store._disk.open(f"{store.path}/{layout(cloud).catalogue}")
    file.pwritev((b"\xff",), 0)
    file.close()
    cloud.restart(2)
    client = cloud.at_topic("orders")
    cloud.advance(2)
    answer = client.open_producer(1, "orders", 8, 0)
    assert (answer.kind, answer.header[Key.CODE]) == (Type.ERROR, "store-failed")


def test_a_damaged_segment_that_the_store_does_not_have_stops_no_uploads(make_stage: MakeStage) -> None:
    """Its whole records go to the store in the file as it is; later segments join, and the watermark passes it."""
    stage = make_stage(**SMALL | {"log__local_bytes": 1 << 30})
    stage.start_tier()
    assert stage.store is not None
    client = create(stage)
    stage.store.away()
    fill(client, stage, 0, 600)
    base = hurt(stage, "middle", "flipped twice")
    stage.restart(2)
    shown(stage)
    stage.store.back()
    stage.advance(60)
    told = shown(stage)
    assert told["uploaded_end"] == 600
    reader = consumer(stage, start="earliest")
    expect_messages(reader, 0, base)
    first, count = heard(reader, "log-damaged")
    assert base < first
    expect_messages(reader, base, first)
    stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    expect_messages(reader, first + count, 600)
    lose_disk(stage)
    stage.restart(2)
    reader = consumer(stage, "new", start="earliest")
    expect_messages(reader, 0, base)
    assert heard(reader, "log-damaged") == (first, count)
    expect_messages(reader, base, first)
    stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    expect_messages(reader, first + count, 600)
