"""Tests of what a reliable topic tells its Uploader: once, and again where the mail was lost."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ister.actors.addresses import TIER
from ister.actors.messages import AskFenced, KeepTopic, Retain, Sealed, Survey, Surveyed, Uploaded
from ister.actors.runtime import Address, LoopActor, Ref
from ister.actors.store_link import StoreLink
from ister.actors.store_view import TELL_AGAIN_S
from ister.actors.surveys import SURVEY_S
from ister.storage.meta import TopicMeta
from ister.storage.segment import SegmentInfo
from ister.storage.wal import Wal

META = TopicMeta("orders", bytes(16), "reliable", "fsync", 0)
ME = Address("worker-0", "topic/orders")


def segment(first: int, end: int) -> SegmentInfo:
    """Return a segment of a log."""
    return SegmentInfo(f"{first}.seg", first, end, end - first, 0, 0, end - first, 0)


class Topic:
    """A topic with a log that a test fills, and an Uploader that records its mail."""

    def __init__(self, durability: str = "fsync") -> None:
        self.address = ME
        self.now_s = 0.0
        self.clock = SimpleNamespace(monotonic=lambda: self.now_s)
        self.told: list[Any] = []
        self.timers: list[Any] = []
        self.answered: list[tuple[int, bool]] = []
        self.sealed: list[SegmentInfo] = []
        uploader = SimpleNamespace(tell=self.told.append, address=Address(TIER, "uploader/orders"))
        self.meta = replace(META, durability=durability)
        self.link = StoreLink(
            cast(LoopActor, self),
            self.meta,
            cast(Ref, uploader),
            answer=lambda command, fenced: self.answered.append((command.ticket, fenced)),
        )
        self.wal = cast(
            Wal,
            SimpleNamespace(
                sealed=lambda: self.sealed, set_aside=list, damaged=(), start_offset=0, sealed_end=20
            ),
        )

    def call_later(self, _delay_s: float, call: Any) -> Any:
        self.timers.append(call)
        return SimpleNamespace(cancel=lambda: self.timers.remove(call))

    def take(self) -> list[Any]:
        """Return the mail to the Uploader, and forget it."""
        told = list(self.told)
        self.told.clear()
        return told


def test_what_is_sealed_is_told_once() -> None:
    """And again when the tier was restarted, or has not taken the segment for long."""
    topic = Topic()
    topic.sealed = [segment(0, 10), segment(10, 20)]
    topic.link.committed(topic.wal)
    topic.link.committed(topic.wal)
    news = Sealed(META, tuple(topic.sealed), ME, (), ())
    assert topic.take() == [news]
    topic.link.node_started("worker-3", topic.wal)
    assert topic.take() == []
    topic.link.node_started(TIER, topic.wal)
    assert topic.take() == [news, KeepTopic(META, 0, 20, ME)]
    topic.link.view.uploaded(Uploaded(0, 10))
    topic.link.tell_again(topic.wal)  # its watermark has moved
    topic.now_s = TELL_AGAIN_S
    topic.link.tell_again(topic.wal)
    assert topic.take() == [Sealed(META, (topic.sealed[1],), ME, (), ())]


@pytest.mark.parametrize(("durability", "told"), [("fsync", []), ("cloud", [KeepTopic])])
def test_a_store_that_has_not_spoken_is_asked_again_where_receipts_wait_for_it(
    durability: str, told: list[type]
) -> None:
    """Without waiting receipts there may be no tier."""
    topic = Topic(durability)
    topic.now_s = TELL_AGAIN_S
    topic.link.tell_again(topic.wal)
    assert [type(each) for each in topic.take()] == told


def test_without_a_log_there_is_nothing_to_tell() -> None:
    """It is told once the log is open."""
    topic = Topic()
    topic.now_s = 5 * TELL_AGAIN_S
    for told in (topic.link.keep, topic.link.tell_again):
        told(None)
    topic.link.node_started(TIER, None)
    assert topic.take() == []


def test_settings_that_are_news_are_told() -> None:
    """Once; with retention, each time with the offset that all subscriptions are done with."""
    topic = Topic()
    topic.link.retain(None, always=False)
    assert topic.take() == []
    changed = replace(META, settings={"retention_ms": 5})
    topic.link.go_by(changed)
    topic.link.retain(None, always=False)
    topic.link.retain(None, always=False)
    topic.link.retain(7, always=True)
    assert topic.take() == [Retain(changed, None), Retain(changed, 7)]


def test_whether_another_broker_has_it_is_answered_once() -> None:
    """The answer goes to all who asked."""
    topic = Topic()
    for ticket in (1, 2):
        topic.link.ask_fenced(AskFenced(ME, ticket))
    topic.link.answer_fenced(fenced=True)
    topic.link.answer_fenced(fenced=False)
    assert topic.answered == [(1, True), (2, True)]


def test_one_listing_serves_all_that_wait_for_it() -> None:
    """Also if the store does not answer; if it has nothing, nothing is asked."""
    topic = Topic()
    done: list[int] = []
    topic.link.survey(lambda: done.append(0))
    assert (done, topic.take()) == ([0], [])
    topic.link.view.uploaded(Uploaded(0, 10))
    for number in (1, 2):
        topic.link.survey(lambda number=number: done.append(number))  # type: ignore[misc]
    assert topic.take() == [Survey(ME)]
    topic.link.surveys.surveyed(Surveyed(""))
    assert (done, topic.timers) == ([0, 1, 2], [])
    topic.link.survey(lambda: done.append(3))
    topic.timers[0]()
    assert (done, SURVEY_S > 0) == ([0, 1, 2, 3], True)
