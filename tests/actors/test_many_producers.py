"""Tests of a topic with more producers than it remembers: none that may still resend is forgotten."""

from __future__ import annotations

from functools import partial

import pytest

from ister.storage.producers import HELD_MS
from ister.storage.wal import WalSettings
from ister.wire import Key, Type
from tests.stage import Stage, StagedClient


@pytest.fixture
def topic(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> StagedClient:
    """Return a client of a topic that remembers eight producers."""
    monkeypatch.setattr("ister.actors.worker.WalSettings", partial(WalSettings, producers_max=8))
    stage.client().request("topic.create", topic="orders")
    return stage.at_topic("orders")


def flood(stage: Stage, first: int, producers: int, *, close: bool) -> list[int]:
    """Publish a message with each of so many new producers, which then close or vanish; return the answers' types."""
    kinds = []
    for producer in range(first, first + producers):
        client = stage.at_topic("orders")
        answer = client.open_producer(1, "orders", producer)
        kinds.append(answer.kind)
        if answer.kind == Type.OPENED:
            client.publish(1, 0, b"x")
            client.receipt(1)
            if close:
                client.close_handle(1)
        else:
            assert answer.code == "busy"
            assert "8 producers" in answer.header[Key.TEXT]
        client.disconnect()
    return kinds


@pytest.mark.requirement("8.1-7")
@pytest.mark.parametrize("close", [True, False])
def test_a_flood_of_producers_does_not_make_a_resend_stored_twice(
    stage: Stage, topic: StagedClient, close: bool
) -> None:
    """Whether they close or vanish; a new producer may be refused for a while, and is told why."""
    topic.open_producer(1, "orders", 7)
    topic.publish(1, 0, b"once")
    [(_, offset)] = topic.receipt(1)
    stage.clock.now_s += 1
    kinds = flood(stage, 100, 30, close=close)
    assert (Type.ERROR in kinds) is not close
    topic.publish(1, 0, b"once")  # its receipt is lost
    assert topic.receipt(1) == [(0, offset)]
    before = stage.client().request("topic.show", topic="orders")["next_offset"]
    assert before == 1 + kinds.count(Type.OPENED)
    if not close:
        stage.advance(60)  # sessions end
        stage.clock.now_s += HELD_MS / 1000
        assert flood(stage, 500, 3, close=True) == [Type.OPENED] * 3
