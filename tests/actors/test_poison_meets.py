"""Tests of failed messages together with retention, time to live, lost letters, and messages of the same key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ister.actors.messages import Trimmed
from ister.actors.subscription.failures import Failures
from ister.actors.subscription.log_access import LogAccess
from tests.actors.scenes import Scene, heard, offsets, part, subscription
from tests.stage import Stage


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that keeps the session of a silent client for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


def test_poison_that_was_trimmed_on_its_way_stops_nobody(stage: Stage) -> None:
    """The letter is sent again while the dead-letter topic is away, and its message is no longer in the log."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"bad")
    scene.publish(b"good")
    assert offsets(client) == [0, 1]
    actor = subscription(scene)
    source, failures = part(scene, LogAccess).source, part(scene, Failures)
    failures._undertaker = lambda: stage.systems[next(iter(stage.systems))].ref("broker", "nobody")
    client.nack(1, (0, 1))
    stage.settle()
    assert scene.shown()["burying"] == 1
    actor.ref.tell(Trimmed(1))
    stage.settle()
    source._forget_sheets()
    at = source.batch_at
    reads: list[int] = []

    def batch_at(offset: int) -> Any:
        reads.append(offset)
        return at(offset)

    source.batch_at = batch_at
    stage.advance(25)
    assert reads == []
    assert scene.shown()["burying"] == 0
    client.ack(1, (1, 2))


def test_what_is_acknowledged_or_trimmed_blocks_no_more(stage: Stage) -> None:
    """A blocked message that retention deleted needs no operator."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"bad")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.settle()
    scene.publish(b"good")
    assert offsets(client) == []
    subscription(scene).ref.tell(Trimmed(1))
    assert offsets(client) == [1]
    assert scene.shown()["blocked"] is False


@pytest.mark.parametrize("how", ["trimmed", "expired", "acknowledged"])
def test_a_key_that_is_blocked_goes_on_when_what_blocks_it_is_done(stage: Stage, how: str) -> None:
    """Whatever ends the blocking message, no decision is needed any more."""
    scene = Scene(stage, type="key-shared", message_ttl_ms=60_000)
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"bad", key=b"k")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.settle()
    if how == "trimmed":
        subscription(scene).ref.tell(Trimmed(1))
    elif how == "acknowledged":
        client.ack(1, (0, 1))
    else:
        client.close_handle(1)
        stage.advance(75)
        assert scene.shown()["expired"] == 1
        client = scene.consumer()
    scene.publish(b"good", key=b"k")
    assert offsets(client) == [1]


def test_blocked_keys_leave_room_for_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many messages wait behind blocked ones, other keys go on."""
    monkeypatch.setattr("ister.actors.lanes.WAITING_MAX", 20)
    monkeypatch.setattr("ister.actors.lanes.WAITING_HARD_MAX", 40)
    monkeypatch.setattr("ister.actors.lanes.LANE_MAX", 8)
    monkeypatch.setattr("ister.actors.lanes.LANE_MIN", 2)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(max_deliveries=1, poison="block")
    for key in range(10):
        scene.publish(b"bad", key=b"bad-%d" % key)
    bad = offsets(client)
    client.nack(1, *((offset, offset + 1) for offset in bad))
    stage.settle()
    for key in range(10):
        scene.publish(*[b"behind"] * 20, key=b"bad-%d" % key)
    for number in range(30):
        scene.publish(b"%d" % number, key=b"good-%d" % number)
    assert [row[1] for row in heard(client)] == [b"%d" % number for number in range(30)]


def test_letters_that_were_lost_on_their_way_are_sent_again(stage: Stage) -> None:
    """The actor that was to store them may have failed."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"bad")
    assert offsets(client) == [0]
    actor = subscription(scene)
    failures = part(scene, Failures)
    undertaker = failures._undertaker
    failures._undertaker = lambda: actor.system.ref(actor.system.node, "nobody")
    client.nack(1, (0, 1))
    stage.settle()
    failures._undertaker = undertaker
    stage.advance(15)
    shown = scene.shown()
    assert (shown["cursor"], shown["dead_lettered"], shown["burying"]) == (1, 1, 0)


def test_a_key_goes_on_when_its_poison_is_buried(stage: Stage) -> None:
    """Not before, and without an operator."""
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"bad", key=b"k")
    assert offsets(client) == [0]
    scene.publish(b"good", key=b"k")
    assert offsets(client) == [1]
    client.nack(1, (0, 2))
    stage.settle()
    scene.publish(b"next", key=b"k")
    stage.advance(2)
    assert scene.shown()["dead_lettered"] == 2
    assert offsets(client) == [2]
