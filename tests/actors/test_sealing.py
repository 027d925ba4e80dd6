"""Tests of when durability cloud seals a segment: as soon as that helps, and few small objects."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from ister.actors.sealing import BURST, LOOK_S_FIRST, SMALL_BYTES, Sealing

LINGER_S = 0.25
SLOTS = 2


class Topic:
    """A topic that is looked at as often as `Sealing` asks for, and a store that takes `upload_s` for each segment."""

    def __init__(self, upload_s: float = 0.01, slots: int = SLOTS) -> None:
        self.sealing = Sealing(LINGER_S, slots)
        self.upload_s = upload_s
        self.now = 100.0
        self.base = self.end = self.size = 0
        self.began = 0.0
        self.seals: list[tuple[float, int]] = []  # when, and how large
        self.delays: list[float] = []  # from the first message to the seal
        self.look_at: float | None = None
        self.uploads: list[tuple[float, int]] = []

    def publish(self, size: int = 100) -> None:
        """Append one message."""
        if self.end == self.base:
            self.began = self.now
        self.end += 1
        self.size += size
        if self.look_at is None:
            self.sealing.began(self.base, self.end, self.now)
            self.look_at = self.now + self.sealing.look_s

    def passes(self, time_s: float) -> None:
        """Let time pass."""
        until = self.now + time_s
        while True:
            looks = [] if self.look_at is None else [self.look_at]
            due = min([*looks, *(at for at, _ in self.uploads)], default=inf)
            if due > until:
                break
            self.now = due
            for at, end in list(self.uploads):
                if at <= due:
                    self.uploads.remove((at, end))
                    self.sealing.stored(end, due)
            if self.look_at is not None and self.look_at <= due:
                self._look()
        self.now = until

    def _look(self) -> None:
        again_s = self.sealing.look(self.base, self.end, self.size, len(self.uploads), self.now)
        if again_s:
            self.look_at = self.now + again_s
            return
        self.sealing.seal(self.end, self.size, self.now)
        self.seals.append((self.now, self.size))
        self.delays.append(self.now - self.began)
        self.uploads.append((self.now + self.upload_s, self.end))
        self.base, self.size, self.look_at = self.end, 0, None


def test_a_lone_message_does_not_wait_for_the_linger() -> None:
    """Nothing follows it within a moment, and the store can take a segment."""
    topic = Topic()
    for _ in range(20):
        topic.publish()
        topic.passes(1.0)
    assert len(topic.seals) == 20
    assert max(topic.delays) <= LOOK_S_FIRST + 1e-9


def test_a_producer_whose_window_is_full_does_not_wait_for_the_linger() -> None:
    """Nothing can arrive before its receipts: the segment is large, and no budget counts."""
    topic = Topic()
    for _ in range(100):
        topic.publish(8 << 20)
        topic.passes(0.03)
    assert len(topic.seals) == 100
    assert max(topic.delays) < 0.01


def test_without_a_free_slot_a_segment_waits_for_the_linger() -> None:
    """A store that is slow, or away, gets no more segments than before."""
    topic = Topic(upload_s=1000.0)
    for _ in range(100):
        topic.publish(SMALL_BYTES)
        topic.passes(0.05)
    assert len(topic.seals) <= SLOTS + 5.0 / LINGER_S + 1
    assert max(topic.delays) == pytest.approx(LINGER_S)


def test_messages_that_keep_coming_wait_as_long_as_uploads_take() -> None:
    """With two producers, one of which is never still, the other does not wait for the linger."""
    topic = Topic(upload_s=0.01)
    for _ in range(2000):
        topic.publish(200_000)
        topic.passes(0.001)
    assert max(topic.delays[10:]) < 0.05
    assert len(topic.seals) < 200


@pytest.mark.parametrize("gap_s", [0.003, 0.05, 0.2, 0.24, 0.26])
def test_a_trickle_makes_no_more_objects_than_one_for_each_linger(gap_s: float) -> None:
    """An hour of small messages: the store is charged for no more than it was when each waited for the linger."""
    topic = Topic(upload_s=0.02)
    while topic.now < 100.0 + 600:
        topic.publish()
        topic.passes(gap_s)
    assert len(topic.seals) <= 600 / LINGER_S + BURST + 1
    assert max(topic.delays) <= LINGER_S + 1e-9


def test_no_message_waits_longer_than_the_linger_whatever_comes() -> None:
    """Random messages, sizes, pauses and uploads: sealed within the linger, small ones within the budget."""
    for seed in range(50):
        random = Random(seed)
        topic = Topic(upload_s=random.choice([0.001, 0.02, 0.3, 5.0]), slots=random.choice([1, 2, 8]))
        begun = topic.now
        for _ in range(300):
            for _ in range(random.choice([1, 1, 5])):
                topic.publish(random.choice([100, 10_000, 1 << 20, 3 << 20]))
            topic.passes(random.choice([0.0, 0.001, 0.01, 0.1, 1.0]) * random.random())
        topic.passes(1.0)
        small = sum(size < SMALL_BYTES for _, size in topic.seals)
        assert max(topic.delays) <= LINGER_S + 1e-9
        assert small <= (topic.now - begun) / LINGER_S + BURST + 1
        assert topic.base == topic.end


def test_a_store_that_was_away_is_trusted_again_soon() -> None:
    """An upload of minutes counts as one of the linger, so a few later ones make the average good again."""
    topic = Topic(upload_s=120.0)
    topic.publish()
    topic.passes(130.0)
    topic.upload_s = 0.01
    for _ in range(16):
        topic.publish()
        topic.passes(1.0)
    assert topic.sealing.upload_s is not None
    assert topic.sealing.upload_s < 0.02


def test_what_was_on_its_way_when_the_log_was_closed_measures_nothing() -> None:
    """The time until the log is open again is none of the store's."""
    topic = Topic(upload_s=3.0)
    topic.publish()
    topic.passes(1.0)
    topic.sealing.forget()
    topic.passes(10.0)
    assert topic.sealing.upload_s is None
