"""Tests of who has the segments of durability cloud sealed: one timer while something waits, none otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from ister.actors.cloud_seals import SEAL_AGAIN_S, CloudSeals
from ister.actors.runtime import LoopActor
from ister.actors.sealing import LOOK_S_FIRST, Sealing
from ister.actors.store_view import StoreView
from ister.actors.topic_log import TopicLog


class Scene:
    """A topic's actor and log, with a clock that tests move."""

    def __init__(self) -> None:
        self.now = 50.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.clock = self
        self.wal: Any = self  # its own log, while it is open
        self.sealed_end = self.next_offset = self.unsealed_bytes = self.sealing = 0
        self.full = False
        self.seals = 0
        self.view = StoreView()
        self.part = CloudSeals(
            cast(LoopActor, self), cast(TopicLog, self), self.view, Sealing(linger_s=0.25, slots=1)
        )

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object:
        self.timers.append((self.now + delay_s, call))
        return object()

    def seal(self) -> bool:
        if not self.full:
            self.seals += 1
            self.sealed_end, self.unsealed_bytes = self.next_offset, 0
        return not self.full

    def publish(self) -> None:
        self.next_offset += 1
        self.unsealed_bytes += 100
        self.part.taken()

    def passes(self, time_s: float) -> None:
        until = self.now + time_s
        while self.timers and (due := min(self.timers, key=lambda timer: timer[0]))[0] <= until:
            self.timers.remove(due)
            self.now = due[0]
            due[1]()
        self.now = until


@pytest.fixture
def scene() -> Scene:
    """Return a topic with an empty log."""
    return Scene()


def test_there_is_one_timer_while_something_waits_and_none_after_it(scene: Scene) -> None:
    """However many batches come; an idle topic costs nothing."""
    for _ in range(5):
        scene.publish()
    assert len(scene.timers) == 1
    scene.passes(3 * LOOK_S_FIRST)
    assert (scene.seals, scene.timers) == (1, [])


def test_a_segment_that_cannot_be_sealed_is_tried_again(scene: Scene) -> None:
    """The disk may be full: receipts wait until it has room."""
    scene.full = True
    scene.publish()
    scene.passes(0.5)
    scene.full = False
    scene.passes(SEAL_AGAIN_S)
    assert (scene.seals, scene.timers) == (1, [])


def test_a_log_that_was_closed_is_not_looked_at(scene: Scene) -> None:
    """The timer ends; what the log has when it is open again is sealed like new messages."""
    scene.publish()
    scene.wal = None
    scene.part.closed()
    scene.passes(1.0)
    assert (scene.seals, scene.timers) == (0, [])
    scene.wal = scene
    scene.part.taken()
    scene.passes(1.0)
    assert scene.seals == 1


def test_what_is_being_sealed_and_what_the_store_lacks_takes_the_slot(scene: Scene) -> None:
    """While an upload is under way the next segment gathers messages, for as long as the linger allows."""
    for behind, sealing in ((1, 0), (0, 1)):
        scene.view.behind_segments, scene.sealing = behind, sealing
        seals = scene.seals
        scene.publish()
        scene.passes(0.2)
        assert scene.seals == seals
        scene.passes(0.06)
        assert scene.seals == seals + 1


def test_a_segment_that_something_else_sealed_needs_nothing(scene: Scene) -> None:
    """It was old enough, or full."""
    scene.publish()
    scene.seal()
    scene.passes(1.0)
    assert (scene.seals, scene.timers) == (1, [])
