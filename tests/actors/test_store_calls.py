"""Tests of the number of calls to a store that charges for each: as many as README says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ister.storage.numbered_objects import read_cursors
from tests.actors.test_cloud import SMALL, consumer, create, lose_disk, payload, publish
from tests.stage import Stage, StagedClient

MakeStage = Callable[..., Stage]
ROOM: dict[str, Any] = {"messages": 1000, "bytes": 1 << 24}
PAID = ("put_if_absent", "put_file_if_absent", "list", "list_page")


def cloud_of(make_stage: MakeStage, **settings: object) -> Stage:
    """Return a broker with its tier and the default interval of cursor uploads."""
    kept = {name: value for name, value in SMALL.items() if name != "tier__cursor_upload_ms"}
    stage = make_stage(**kept | settings)
    stage.start_tier()
    return stage


def paid(stage: Stage, part: str = "") -> list[tuple[str, str]]:
    """Return the paid calls since the last time."""
    assert stage.store is not None
    calls, stage.store.calls[:] = list(stage.store.calls), []
    return [call for call in calls if call[0] in PAID and part in call[1]]


def stop(stage: Stage) -> None:
    """Stop the workers and then the tier, in order, as the Supervisor does."""
    for number in list(stage.workers):
        stage.systems[f"worker-{number}"].stop_all()
        stage.settle()  # deliver its last mail
        stage.kill(number)
    stage.systems["tier"].stop_all()


def acknowledge(client: StagedClient, stage: Stage, first: int, end: int) -> None:
    """Acknowledge a message each second."""
    for offset in range(first, end):
        client.ack(1, (offset, offset + 1), confirm=False)
        stage.advance(1)


def test_a_subscription_at_work_costs_an_upload_a_minute(make_stage: MakeStage) -> None:
    """None of them with a listing, a few more at the start, and an idle subscription costs nothing."""
    stage = cloud_of(make_stage)
    publish(create(stage), 0, 1000, each=10)
    stage.client().request("subscription.create", topic="orders", subscription="idle")
    busy = consumer(stage, "busy", **ROOM)
    busy.deliveries(1, 1000)
    stage.advance(100)
    paid(stage)
    acknowledge(busy, stage, 0, 900)
    calls = paid(stage)
    cursors = [name for kind, name in calls if "/c/busy/" in name and kind == "put_if_absent"]
    assert 14 <= len(cursors) <= 19
    assert [call for call in calls if "/c/" in call[1]] == [("put_if_absent", name) for name in cursors]
    assert not [name for _, name in calls if "idle" in name]
    stage.advance(120)
    paid(stage)
    stage.advance(3600)
    assert paid(stage) == []


def test_a_cursor_is_never_further_behind_than_the_setting_says(make_stage: MakeStage) -> None:
    """If the disk is lost at any time, messages acknowledged before that interval are not delivered again."""
    stage = cloud_of(make_stage, tier__cursor_upload_ms=30_000)
    publish(create(stage), 0, 400, each=10)
    client = consumer(stage, **ROOM)
    client.deliveries(1, 400)
    acknowledge(client, stage, 0, 300)
    lose_disk(stage)
    stage.restart(2)
    stage.advance(1)
    again = consumer(stage)
    assert 260 <= again.deliveries(1, 1)[0][0] <= 300


def test_a_broker_that_stops_in_order_leaves_its_cursors_in_the_store(make_stage: MakeStage) -> None:
    """If the disk is lost afterwards, no acknowledged message is delivered again."""
    stage = cloud_of(make_stage)
    publish(create(stage), 0, 100)
    stage.advance(5)
    client = consumer(stage)
    client.deliveries(1, 100)
    stage.advance(100)
    client.ack(1, (0, 70))
    stop(stage)
    assert stage.store is not None
    ((meta, journal),) = read_cursors(stage.store, stage.catalogue.get_topic("orders"))
    assert meta.name == "s"
    assert journal is not None
    lose_disk(stage)
    stage.restart(2)
    stage.advance(1)
    again = consumer(stage)
    assert again.deliveries(1, 1)[0] == (70, payload(70))


def test_a_store_that_is_away_does_not_hold_up_a_stop(make_stage: MakeStage) -> None:
    """An upload that fails while the broker stops is not retried, and not attempted for every other topic."""
    stage = cloud_of(make_stage)
    assert stage.store is not None
    for topic in ("a", "b", "c"):
        publish(create(stage, topic), 0, 10)
        client = consumer(stage, "s", topic)
        client.deliveries(1, 10)
        client.ack(1, (0, 5))
    stage.store.away()
    stage.advance(30)
    stage.store.calls.clear()
    stop(stage)
    assert stage.store.calls == []


def test_retention_at_work_cuts_the_store_once_a_minute(make_stage: MakeStage) -> None:
    """However many segments retention deletes, each cut is one write, and only the first needs a listing."""
    stage = cloud_of(make_stage, log__segment_bytes_max=1_200_000)
    client = create(stage, retention_bytes=2_000_000)
    for round_ in range(20):
        publish(client, round_ * 100, 100, each=10)
        stage.advance(15)
        if round_ == 5:
            paid(stage)
    calls = paid(stage)
    notes = [name for kind, name in calls if "/t/" in name and kind == "put_if_absent"]
    assert 2 <= len(notes) <= 5
    assert not [call for call in calls if call[0].startswith("list")]
