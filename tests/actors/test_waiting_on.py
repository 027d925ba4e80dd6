"""Tests of messages that wait to come again: they keep waiting when the broker, or only a worker, is restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ister.actors.subscription.cursor_log import CursorLog
from ister.storage.cursor_journal import CursorJournal
from ister.wire import Key, Type
from tests.actors.scenes import Scene, heard, offsets, part
from tests.stage import Stage, StagedClient

TYPES = ["exclusive", "failover", "shared", "key-shared"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Return a broker that keeps silent clients' sessions long."""
    stage = Stage(tmp_path, protocol__session_timeout_ms=3_600_000)
    yield stage
    stage.close()


def opened_again(scene: Scene, **options: Any) -> StagedClient:
    """Return a consumer after a restart, by a client that knows of no earlier session."""
    scene.stage.settle()
    scene.producer = scene.stage.at_topic("orders")
    return scene.consumer(**options)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("key", [b"", b"k"])
@pytest.mark.parametrize("way", ["broker", "in order", "worker"])
def test_what_was_refused_for_a_minute_waits_a_minute(stage: Stage, type_: str, key: bytes, way: str) -> None:
    """Also if the broker is restarted or killed meanwhile, or only the subscription's worker."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2", key=key)
    assert offsets(client) == [0, 1, 2]
    client.nack(1, (1, 3), delay_ms=60_000)
    client.ack(1, (0, 1))
    stage.advance(10)
    if way == "worker":
        stage.kill(client.worker)
        stage.start(client.worker)
    else:
        stage.restart(2, in_order=way == "in order")
    client = opened_again(scene)
    stage.advance(48)
    assert heard(client) == []
    stage.advance(3)
    assert heard(client) == [(1, b"1", 2), (2, b"2", 2)]
    client.ack(1, (1, 3))
    assert scene.shown()["cursor"] == 3


@pytest.mark.parametrize("type_", TYPES)
def test_a_back_off_is_kept_too_and_goes_on_doubling(stage: Stage, type_: str) -> None:
    """The back-off before the restart counts for the next one."""
    scene = Scene(stage, type=type_)
    client = scene.consumer(backoff_ms_min=20_000, backoff_ms_max=60_000)
    scene.publish(b"0", key=b"k")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.advance(5)
    stage.restart(2)
    client = opened_again(scene)
    stage.advance(14)
    assert heard(client) == []
    stage.advance(2)
    assert heard(client) == [(0, b"0", 2)]
    client.nack(1, (0, 1))
    stage.advance(0.1)
    stage.restart(2)
    client = opened_again(scene)
    stage.advance(39)
    assert heard(client) == []
    stage.advance(2)
    assert heard(client) == [(0, b"0", 3)]


@pytest.mark.parametrize("type_", TYPES)
def test_others_do_not_wait_for_it(stage: Stage, type_: str) -> None:
    """Messages before, between and after it come at once; one that is due before the log is read so far comes once."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    for number in range(6):
        scene.publish(b"%d" % number, key=b"%d" % number)
    assert sorted(offsets(client)) == [0, 1, 2, 3, 4, 5]
    client.nack(1, (1, 2), (3, 4), delay_ms=30_000)
    stage.advance(0.1)
    stage.restart(2)
    client = opened_again(scene, messages=1)
    got = offsets(client)
    stage.advance(31)
    client.credit(1, 100)
    stage.advance(1)
    got += offsets(client)
    assert sorted(got) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("type_", TYPES)
def test_what_is_asked_for_again_waits_no_more(stage: Stage, type_: str) -> None:
    """After a seek no earlier delay counts, and an acknowledged message does not come again."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    scene.publish(b"0", b"1", key=b"k")
    assert offsets(client) == [0, 1]
    client.nack(1, (0, 2), delay_ms=60_000)
    scene.request("seek", to="earliest")
    assert offsets(client) == [0, 1]
    client.nack(1, (0, 2), delay_ms=60_000)
    client.ack(1, (0, 1))
    stage.restart(2)
    client = opened_again(scene)
    assert offsets(client) == []
    stage.advance(61)
    assert offsets(client) == [1]


def test_a_second_refusal_at_once_ends_the_first(stage: Stage) -> None:
    """The last delay counts, also after a restart."""
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(b"0")
    assert offsets(client) == [0]
    client.nack(1, (0, 1), delay_ms=1_000)
    stage.advance(1.1)
    assert offsets(client) == [0]
    client.nack(1, (0, 1), delay_ms=0)
    stage.advance(0.1)
    stage.restart(2)
    assert offsets(opened_again(scene)) == [0]


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("delay_ms", [None, 30_000])
def test_nothing_waits_longer_than_it_was_to_though_the_clock_was_set_back(
    stage: Stage, type_: str, delay_ms: int | None
) -> None:
    """By a year, or on another machine that takes over: a delay of a minute takes a minute, and so does a back-off."""
    scene = Scene(stage, type=type_)
    client = scene.consumer(backoff_ms_min=30_000, backoff_ms_max=60_000)
    scene.publish(b"0", key=b"k")
    assert offsets(client) == [0]
    client.nack(1, (0, 1), delay_ms=delay_ms)
    stage.advance(0.1)
    wall = stage.clock.time_ms
    stage.restart(2)
    stage.clock.time_ms = lambda: wall() - 365 * 86_400_000  # type: ignore[method-assign]
    client = opened_again(scene)
    stage.advance(29)
    assert heard(client) == []
    stage.advance(2)
    assert heard(client) == [(0, b"0", 2)]


def test_what_an_older_journal_says_makes_nothing_wait_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a duration in the journal, the longest delay that can be asked for is a day."""
    note = CursorJournal.note_failed

    def note_as_before(self: CursorJournal, *failed: int) -> bool:
        return note(self, *failed[:5])

    monkeypatch.setattr(CursorJournal, "note_failed", note_as_before)
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(b"0")
    assert offsets(client) == [0]
    client.nack(1, (0, 1), delay_ms=60_000)
    stage.advance(0.1)
    wall = stage.clock.time_ms
    stage.restart(2)
    stage.clock.time_ms = lambda: wall() - 10 * 86_400_000  # type: ignore[method-assign]
    client = opened_again(scene)
    assert offsets(client) == []
    for _ in range(24 * 60):
        stage.advance(60)
        client.say({Key.TYPE: Type.PING})
    assert offsets(client) == [0]


def test_so_many_are_kept_and_not_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages over the limit come again earlier than they were to, and are not lost."""
    monkeypatch.setattr("ister.storage.cursor.FAILURES_MAX", 10)
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(*[b"x"] * 15)
    assert len(offsets(client)) == 15
    client.nack(1, *((offset, offset + 1) for offset in range(15)), delay_ms=60_000)
    stage.advance(0.1)
    cursor = part(scene, CursorLog).cursor
    assert (len(cursor.failed), len(cursor.waits)) == (10, 10)
    stage.restart(2)
    client = opened_again(scene)
    assert offsets(client) == [10, 11, 12, 13, 14]
    stage.advance(61)
    assert offsets(client) == list(range(10))


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_one_that_was_sent_for_later_and_refused_waits_as_it_was_told(stage: Stage, type_: str) -> None:
    """Its first time has passed, and does not count again."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    scene.publish(b"0", key=b"k", deliver_at=[scene.now_ms() + 5_000])
    stage.advance(5.1)
    assert offsets(client) == [0]
    client.nack(1, (0, 1), delay_ms=60_000)
    stage.advance(0.1)
    stage.restart(2)
    client = opened_again(scene)
    stage.advance(58)
    assert offsets(client) == []
    stage.advance(3)
    assert heard(client) == [(0, b"0", 2)]
