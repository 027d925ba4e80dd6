"""Random frames in any order against a staged broker: no actor fails, and nothing is left over."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from ister.wire import Type
from tests.broker.frames import mutated, valid_frame
from tests.stage import Stage

FRAMES = 1200
SESSION_TIMEOUT_S = 6


@pytest.mark.parametrize("seed", range(8))
def test_whatever_clients_send_no_actor_fails_and_nothing_stays_behind(seed: int, tmp_path: Path) -> None:
    """When all sessions have ended there is no consumer, no open producer, no pending request of theirs."""
    random = Random(seed)
    stage = Stage(
        tmp_path,
        2,
        protocol__session_timeout_ms=1000 * SESSION_TIMEOUT_S,
        protocol__heartbeat_ms=1000,
        protocol__message_bytes_max=10_000,
        protocol__batch_bytes_max=40_000,
        log__segment_bytes_max=(1 << 20) + 100_000,
    )
    stage.loop.chaos = random if seed % 2 else None
    topics = ["fuzz-a", "fuzz-b"]
    for topic, dispatch in zip(topics, ["reliable", "non-reliable"], strict=True):
        stage.client().request("topic.create", topic=topic, dispatch=dispatch)
    clients = [stage.client(random.randrange(2)) for _ in range(4)]
    for _ in range(FRAMES):
        client = random.choice(clients)
        frames = valid_frame(random, random.choice([*topics, "fuzz-none"]))
        client.put(mutated(random, frames) if random.random() < 0.35 else frames)
        what = random.random()
        if what < 0.30:
            stage.loop.once()
        elif what < 0.40:
            stage.settle()
        elif what < 0.42:
            stage.advance(random.choice([0.1, 1, SESSION_TIMEOUT_S + 1]))
        elif what < 0.44:
            client.disconnect()
            client.connect()
        elif what < 0.46:
            client.reconnect(resume=random.random() < 0.7)
        elif what < 0.50:
            client.hello()
        client.unread.clear()
    stage.advance(3 * SESSION_TIMEOUT_S)
    assert stage.actors("consumer") == []
    assert [topic.publishers.handles for topic in stage.actors("topic") if topic.publishers.handles] == []  # type: ignore[attr-defined]
    for worker in stage.workers.values():
        assert len(worker.gateway.sessions) == 0
        assert len(worker.frontend.questions) == 0
    assert stage.client().ask("topic.list").kind == Type.RESULT
    stage.close()
