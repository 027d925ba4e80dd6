"""Tests of which topics a consumer of a pattern follows, and how these share credit and take turns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from ister.attachment import Attachment
from ister.following import Following, share
from ister.wire import Key, Type


def test_topics_that_come_and_go_are_told_apart() -> None:
    """New names are opened, missing ones closed; a name whose topic was replaced is closed and opened."""
    roster = Following([])
    assert roster.changes({"b": 1, "a": 1}, {}) == (["a", "b"], [])
    assert roster.changes({"b": 1, "c": 1}, {"a": 1, "b": 1}) == (["c"], ["a"])
    assert roster.changes({"b": 1, "c": 1}, {"b": 1, "c": 1}) == ([], [])
    assert roster.changes({"b": 1, "c": 2}, {"b": 1, "c": 1}) == (["c"], ["c"])


def test_dead_letters_are_not_followed() -> None:
    """A nacked message would come again from its dead-letter topic, without end."""
    roster = Following(["graves"])
    assert roster.changes({"a": 1, "a.billing.dlq": 1, "graves": 1}, {}) == (["a"], [])


def test_a_topic_that_refused_is_asked_again_once_it_was_gone() -> None:
    """Not at every change of another topic; a new topic of that name is tried, also if it came at once."""
    roster = Following([])
    roster.refuse("a", 1)
    assert roster.changes({"a": 1, "b": 1}, {}) == (["b"], [])
    assert roster.changes({"a": 2, "b": 1}, {"b": 1}) == (["a"], [])
    roster.refuse("a", 2)
    assert roster.changes({"b": 1}, {"b": 1}) == ([], [])
    assert roster.changes({"a": 2, "b": 1}, {"b": 1}) == (["a"], [])


@given(some.integers(1, 100_000), some.integers(1, 1 << 24), some.integers(0, 5000))
def test_shares_add_up_to_the_whole_at_most(messages: int, size: int, topics: int) -> None:
    """Except that each gets at least one message and a KiB."""
    each_messages, each_bytes = share(messages, size, topics)
    assert 1 <= each_messages <= messages
    assert 1 <= each_bytes <= size
    assert each_messages * topics <= max(messages, topics)
    assert each_bytes * topics <= max(size, 1024 * topics)


class Granted:
    """A consumer as the broker sees it: how much credit is outstanding."""

    def __init__(self, new_talk: Callable[[], Any]) -> None:
        self.talk = new_talk()
        self.attachment: Attachment = self.talk.consumer(credit_messages=100, credit_bytes=10_000)
        self.talk.welcome()
        self.talk.opened()
        self.out = [100, 10_000]
        self.next = 0

    def deliver(self, count: int) -> None:
        self.talk.deliver(self.next, *[b"x" * 10] * count)
        self.next += count
        self.out[0] -= count
        self.out[1] -= 14 * count

    def hear(self) -> None:
        for header in self.talk.said():
            if header[Key.TYPE] == Type.CREDIT:
                assert header[Key.MESSAGES] >= 0
                assert header[Key.BYTES] >= 0
                self.out[0] += header[Key.MESSAGES]
                self.out[1] += header[Key.BYTES]


def test_a_smaller_credit_comes_back_as_messages_are_handed_out(new_talk: Callable[[], Any]) -> None:
    """The broker's credit cannot be taken back; used credit is not renewed until the rest fits."""
    granted = Granted(new_talk)
    granted.attachment.handing.resize(10, 1000)
    for _ in range(9):
        granted.deliver(10)
        granted.attachment.handing.take()
        granted.hear()
    assert granted.out[0] == 10
    granted.deliver(10)
    granted.attachment.handing.take()
    granted.hear()
    assert granted.out[0] == 10


def test_a_larger_credit_is_given_at_once(new_talk: Callable[[], Any]) -> None:
    """Also after a smaller one, and never more than the limit."""
    granted = Granted(new_talk)
    granted.attachment.handing.resize(10, 1000)
    granted.attachment.handing.resize(60, 6000)
    granted.hear()
    assert granted.out == [100, 10_000]
    granted.attachment.handing.resize(150, 15_000)
    granted.hear()
    assert granted.out == [150, 15_000]


@given(some.lists(some.one_of(some.integers(1, 200), some.just("deliver"), some.just("take")), max_size=40))
def test_credit_never_exceeds_the_largest_that_was_said(
    new_talk: Callable[[], Any], steps: list[Any]
) -> None:
    """Whatever the order of resizing, delivering and taking: outstanding credit and queued messages are bounded."""
    granted = Granted(new_talk)
    most, present = 100, 100
    for step in steps:
        if step == "deliver":
            if granted.out[0] > 0 and granted.out[1] > 0:
                granted.deliver(1)
        elif step == "take":
            granted.attachment.handing.take()
        else:
            granted.attachment.handing.resize(step, step * 100)
            most, present = max(most, step), step
        granted.hear()
        queued = sum(delivery.count for delivery in granted.attachment.handing.queue)
        assert granted.out[0] + queued <= most
    for _ in range(1000):
        while granted.attachment.handing.take() is not None:
            pass
        granted.hear()
        if granted.out[0] <= present:
            break
        granted.deliver(1)
    assert 0 < granted.out[0] <= present


def test_consumers_line_up_when_there_is_something_and_once(new_talk: Callable[[], Any]) -> None:
    """For a delivery, an error, or the end; also if these came before."""
    turns: OrderedDict[Attachment, None] = OrderedDict()
    first, second, third = Granted(new_talk), Granted(new_talk), Granted(new_talk)
    first.deliver(1)
    for each in (first, second, third):
        each.attachment.take_turns(turns)
    assert list(turns) == [first.attachment]
    third.deliver(1)
    first.deliver(1)
    second.talk.refuse("log-damaged", "stop", HANDLE=2)
    assert list(turns) == [first.attachment, third.attachment, second.attachment]
    turns.clear()
    third.talk.refuse("topic-deleted", "stop", HANDLE=2, CLOSED=True)
    assert (list(turns), third.attachment.phase) == ([third.attachment], "closed")
