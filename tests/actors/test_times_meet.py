"""Tests of times together with retention, full lanes, changed timeouts and late acknowledgments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from ister.actors.messages import Fetched, Trimmed
from ister.actors.subscription.in_order import InOrder
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.schedule import Schedule
from ister.storage.wholereader import NotHereError
from tests.actors.scenes import Scene, heard, offsets, part, subscription
from tests.stage import Stage


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that keeps the session of a silent client for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


def test_a_shorter_acknowledgment_timeout_holds_for_what_comes_while_older_messages_are_held(
    stage: Stage,
) -> None:
    """The older ones keep their timeout, and the new ones do not wait for it."""
    scene = Scene(stage)
    client = scene.consumer(ack_timeout_ms=3_600_000, backoff_ms_min=0)
    scene.publish(b"old")
    assert offsets(client) == [0]
    scene.update(ack_timeout_ms=1000)
    stage.advance(5)
    scene.publish(b"new")
    assert offsets(client) == [1]
    stage.advance(1.1)
    assert heard(client) == [(1, b"new", 2)]


def test_a_longer_acknowledgment_timeout_leaves_what_is_held_its_own(stage: Stage) -> None:
    """Messages delivered under the old timeout come again when that ends."""
    scene = Scene(stage)
    client = scene.consumer(ack_timeout_ms=1000, backoff_ms_min=0)
    scene.publish(b"old")
    assert offsets(client) == [0]
    scene.update(ack_timeout_ms=3_600_000)
    stage.advance(1.1)
    assert heard(client) == [(0, b"old", 2)]


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_what_waited_for_its_time_and_was_trimmed_is_in_nobodys_way(stage: Stage, type_: str) -> None:
    """When its time comes, it is not looked for in a log that no longer has it."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    now = scene.now_ms()
    scene.publish(b"0", b"1", key=b"k", deliver_at=[now + 60_000, now + 5_000])
    scene.publish(b"2", key=b"k")
    assert offsets(client) == [2]
    actor = subscription(scene)
    source = part(scene, LogAccess).source
    actor.ref.tell(Trimmed(2))
    stage.settle()
    reads: list[int] = []
    at = source.batch_at

    def batch_at(offset: int) -> Any:
        reads.append(offset)
        return at(offset)

    source.batch_at = batch_at
    source._forget_sheets()
    stage.advance(70)
    assert [offset for offset in reads if offset < 2] == []
    scene.publish(b"3", key=b"k")
    assert offsets(client) == [3]


def test_a_batch_is_sorted_by_its_times_once(stage: Stage) -> None:
    """Also if a message that comes due in the middle of it cannot be read at that moment."""
    scene = Scene(stage, type="key-shared")
    client = scene.consumer()
    scene.publish(b"0", key=b"a", deliver_at=[scene.now_ms() + 1000])
    assert offsets(client) == []
    source = part(scene, LogAccess).source
    keep, sheet = source.keep_sheet, source.sheet_at
    failed: list[int] = []

    def keep_sheet(batch: Any) -> Any:
        stage.clock.now_s += 1.5
        return keep(batch)

    def sheet_at(offset: int) -> Any:
        if not failed:
            failed.append(offset)
            raise NotHereError(offset, offset + 1)
        return sheet(offset)

    source.keep_sheet, source.sheet_at = keep_sheet, sheet_at
    scene.publish(b"1", b"2", key=b"b", deliver_at=[0, scene.now_ms() + 60_000])
    stage.settle()
    assert failed == [0]
    part(scene, LogAccess).on_fetched(Fetched(0, 0))
    assert sorted(offsets(client)) == [0, 1]
    stage.advance(61)
    assert offsets(client) == [2]
    client.ack(1, (0, 3))
    shown = scene.shown()
    assert (shown["cursor"], shown["delayed"], shown["in_flight"]) == (3, 0, 0)


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_of_a_wait_only_what_was_skipped_is_forgotten(stage: Stage, type_: str) -> None:
    """An operator skips one damaged batch of many that wait for the same time: the others are delivered."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    when = scene.now_ms() + 60_000
    for number in range(3):
        scene.publish(b"%d" % number, key=b"k", deliver_at=[when])
    assert offsets(client) == []
    source = part(scene, LogAccess).source
    real = source.batch_at

    def batch_at(offset: int) -> Any:
        if offset == 0:
            source._on_skipped([(0, 1)])
            return None
        return real(offset)

    source.batch_at = batch_at
    source._forget_sheets()
    stage.advance(61)
    assert offsets(client) == [1, 2]


def test_messages_due_that_nobody_takes_do_not_keep_the_worker_busy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a consumer, not for the next turn."""
    monkeypatch.setattr("ister.actors.lanes.WAITING_MAX", 20)
    monkeypatch.setattr("ister.actors.lanes.WAITING_HARD_MAX", 40)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(messages=1)
    now = scene.now_ms()
    for number in range(100):
        scene.publish(b"%d" % number, key=b"%d" % number, deliver_at=[now + 5000 + 10 * number])
    stage.advance(10)
    assert len(offsets(client)) == 1
    client.credit(1, 1000)
    assert len(offsets(client)) == 99


def test_very_many_messages_that_come_due_together_cost_a_few_calls_each(stage: Stage) -> None:
    """Each has a time of its own, and no consumer was attached when it came."""
    scene = Scene(stage)
    client = scene.consumer(messages=1)
    part(scene, Schedule).due.extend((offset, offset + 1) for offset in range(10, 200_010, 2))
    calls = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        part(scene, InOrder).take_due()
    finally:
        sys.setprofile(None)
    assert calls < 20 * 100_000
    assert offsets(client) == []


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_one_back_off_after_the_other_ends(stage: Stage, type_: str) -> None:
    """Each at its time, with nothing else happening meanwhile."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    for number in range(3):
        scene.publish(b"%d" % number, key=b"%d" % number)
    assert sorted(offsets(client)) == [0, 1, 2]
    for offset, delay_ms in ((1, 3000), (0, 8000), (2, 5000)):
        client.nack(1, (offset, offset + 1), delay_ms=delay_ms)
    for offset, wait_s in ((1, 3.1), (2, 2), (0, 3)):
        stage.advance(wait_s - 0.2)
        assert offsets(client) == []
        stage.advance(0.2)
        assert offsets(client) == [offset]


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_what_is_acknowledged_while_it_waits_to_come_again_does_not(stage: Stage, type_: str) -> None:
    """Its acknowledgment timeout had ended, but it was processed after all."""
    scene = Scene(stage, type=type_)
    client = scene.consumer(messages=2, ack_timeout_ms=1000, backoff_ms_min=0)
    scene.publish(b"0", b"1", key=b"k")
    assert offsets(client) == [0, 1]
    stage.advance(1.1)
    client.ack(1, (0, 1))
    client.credit(1, 10)
    assert offsets(client) == [1]
    client.ack(1, (1, 2))
    assert scene.shown()["cursor"] == 2


def test_what_waits_for_its_time_is_not_taken_out_of_what_was_left_in_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow consumer's messages are read again later; those with a delivery time come at that time, and once."""
    monkeypatch.setattr("ister.actors.grouped_lanes.GROUPED_MAX", 8)
    monkeypatch.setattr("ister.actors.lanes.LANE_MAX", 8)
    monkeypatch.setattr("ister.actors.lanes.LANE_MIN", 8)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(messages=1)
    when = scene.now_ms() + 60_000
    scene.publish(*[b"x"] * 20, key=b"k")
    scene.publish(*[b"x"] * 20, key=b"k", deliver_at=[when if n % 2 else 0 for n in range(20)])
    got = offsets(client)
    assert scene.shown()["left_in_log"] == 1
    client.credit(1, 1000)
    got += offsets(client)
    assert sorted(got) == [*range(20), *range(20, 40, 2)]
    client.ack(1, *((offset, offset + 1) for offset in got))
    stage.advance(61)
    assert sorted(offsets(client)) == list(range(21, 40, 2))
