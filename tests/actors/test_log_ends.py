"""Tests of how the end of a log is proven: a missing end is damage, and no offset is given twice."""

from __future__ import annotations

import pytest

from ister.storage.folders import log_folder
from ister.storage.segment import base_of
from ister.wire import Type
from tests.actors.scenes import Scene, events, offsets
from tests.stage import Stage


def newest_segment(stage: Stage) -> str:
    """Return the path of the topic's last segment."""
    folder = log_folder("/data", stage.catalogue.get_topic("orders"))
    return f"{folder}/{max(name for name in stage.disk.listdir(folder) if base_of(name) is not None)}"


def cut_short(stage: Stage, keep: int) -> None:
    """Cut the last segment short, as an aborted copy or a full disk would."""
    file = stage.disk.open(newest_segment(stage))
    file.truncate(keep)
    file.close()


def reopen(scene: Scene) -> None:
    """Open the topic for publishing again."""
    scene.producer = scene.stage.at_topic("orders")
    assert scene.producer.open_producer(1, "orders", scene.stage.boots).kind == Type.OPENED
    scene.sent = 0


@pytest.mark.parametrize("keep", [0, 64, 400, 700])
@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_a_log_cut_short_after_a_clean_stop_is_damaged(stage: Stage, keep: int, durability: str) -> None:
    """Messages with receipts are missing and reported, and their offsets are never given again."""
    stage.start_tier()
    scene = Scene(stage, durability=durability)
    scene.consumer()
    for number in range(10):
        scene.publish(b"%d" % number)
    stage.restart(2, in_order=True)
    cut_short(stage, keep)
    reopen(scene)
    body = stage.client().request("topic.show", topic="orders")
    assert body["next_offset"] == 10
    [(first, end)] = [
        (one["first"], one["end"]) for one in body["recovery"]["damaged"] if one["end"] > one["first"]
    ]
    assert end == 10
    scene.publish(b"10")
    client = scene.consumer()
    assert offsets(client) == list(range(first))
    stage.advance(5)  # the store is asked first
    assert [event.code for event in events(client)] == ["log-damaged"]
    assert [one[:2] for one in stage.client().request("topic.show", topic="orders")["damaged"]] == [
        [first, 10]
    ]
    stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    stage.advance(5)
    assert offsets(client) == [10]


def test_a_log_that_is_whole_after_a_clean_stop_is_as_it_was(stage: Stage) -> None:
    """However often the broker is stopped."""
    scene = Scene(stage)
    for number in range(3):
        scene.publish(b"%d" % number)
        stage.restart(2, in_order=True)
        reopen(scene)
        body = stage.client().request("topic.show", topic="orders")
        assert (body["next_offset"], body["damaged"]) == (number + 1, [])


def test_a_cursor_proves_where_a_log_ended_that_was_not_stopped(stage: Stage) -> None:
    """Acknowledged messages had been durable, whatever the log contains now."""
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(*(b"%d" % number for number in range(5)))
    client.ack(1, (2, 4))
    stage.advance(5)
    stage.restart(2)
    cut_short(stage, 64)
    reopen(scene)
    body = stage.client().request("topic.show", topic="orders")
    assert body["next_offset"] >= 4
    assert body["damaged"][0][0] == 0


@pytest.mark.parametrize("verified", [True, False])
def test_what_was_cut_off_is_skipped_by_a_repair_whoever_came_upon_it(stage: Stage, verified: bool) -> None:
    """Also once the rest of the segment is in the store, and a verification has run."""
    stage.start_tier()
    scene = Scene(stage)
    for number in range(10):
        scene.publish(b"%d" % number)
    stage.restart(2, in_order=True)
    cut_short(stage, 700)
    reopen(scene)
    scene.publish(b"10")
    stage.advance(100)  # what is left is uploaded
    if verified:
        admin = stage.client()
        number = 0
        while not (told := admin.request("topic.verify", topic="orders", verification=number))["done"]:
            number = told["verification"]
            stage.advance(0.2)
    [damaged] = stage.client().request("topic.show", topic="orders")["damaged"]
    stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    client = scene.consumer()
    stage.advance(10)
    assert offsets(client) == [*range(damaged[0]), 10]


def test_a_log_whose_files_are_all_gone_is_served_from_the_store(stage: Stage) -> None:
    """It goes on at the end that the clean stop noted: stored messages are delivered, no offset is given twice."""
    stage.start_tier()
    scene = Scene(stage)
    for number in range(10):
        scene.publish(b"%d" % number)
    stage.advance(100)  # all of it is in the store
    stage.restart(2, in_order=True)
    remove_segments(stage)
    reopen(scene)
    scene.publish(b"10")
    body = stage.client().request("topic.show", topic="orders")
    assert (body["next_offset"], body["damaged"]) == (11, [])
    client = scene.consumer()
    stage.advance(10)
    assert offsets(client) == list(range(11))


def test_a_log_whose_files_are_all_gone_everywhere_is_damage_that_an_operator_decides_on(
    stage: Stage,
) -> None:
    """The range is reported; later messages are accepted and delivered."""
    scene = Scene(stage)
    for number in range(10):
        scene.publish(b"%d" % number)
    stage.restart(2, in_order=True)
    remove_segments(stage)
    stage.start_tier()
    reopen(scene)
    scene.publish(b"10")
    stage.advance(10)
    body = stage.client().request("topic.show", topic="orders")
    assert [one[:2] for one in body["damaged"]] == [[0, 10]]
    client = scene.consumer()
    stage.advance(10)
    assert offsets(client) == [10]
    assert "missing" in [event.code for event in events(client)]


def remove_segments(stage: Stage) -> None:
    """Remove every segment file."""
    folder = log_folder("/data", stage.catalogue.get_topic("orders"))
    for name in stage.disk.listdir(folder):
        if base_of(name) is not None:
            stage.disk.unlink(f"{folder}/{name}")
