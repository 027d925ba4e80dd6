"""Model test of delayed messages, against one entry per message: never early, never lost, never twice.

HYPOTHESIS_PROFILE=long runs it for minutes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ister.actors import delays as module
from ister.actors.delays import NEAR_MAX, NEAR_MS, Delays

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
START_MS = 1_700_000_000_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
LATE_MS = SECOND  # where too much is due at once

# How far ahead messages are due: by milliseconds around every bound there is, and anywhere.
_AHEAD = st.one_of(
    st.integers(-2 * SECOND, 2 * NEAR_MS),
    st.sampled_from([NEAR_MS, MINUTE, HOUR, 24 * HOUR]).flatmap(lambda at: st.integers(at - 1500, at + 1500)),
    st.integers(0, 30 * HOUR),
)


@dataclass
class Waiting:
    """A message that waits for its time."""

    when_ms: int
    since_ms: int  # when it was added, the last time


class DelaysMachine(RuleBasedStateMachine):
    """Delays and a dictionary of messages; the caller looks at every `next_ms`, or sleeps past it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.delays = Delays()
        self.now_ms = START_MS
        self.end = 0
        self.waiting: dict[int, Waiting] = {}
        self.reading: dict[int, Waiting] = {}  # of opened buckets, on its way
        self.slept_until_ms = 0

    def teardown(self) -> None:
        try:
            self.readings_come()
            for _ in range(20 * (len(self.waiting) + 1)):
                if not self.waiting:
                    break
                self.to_the_next()
            assert not self.waiting, "something never comes out"
            assert not self.delays
            assert (self.delays.messages, self.delays.ranges, self.delays.next_ms()) == (0, 0, None)
        finally:
            self.patch.undo()

    @initialize(near_max=st.sampled_from([0, 3, NEAR_MAX]))
    def limit(self, near_max: int) -> None:
        self.patch.setattr(module, "NEAR_MAX", near_max)
        self.late_ms = 0 if near_max == NEAR_MAX else LATE_MS

    @rule(ahead=_AHEAD, count=st.integers(1, 5), spread=st.sampled_from([0, 0, 1, 300, 5000]))
    def add(self, ahead: int, count: int, spread: int) -> None:
        """Add messages that were published together, for one time or for consecutive times."""
        when_ms = self.now_ms + ahead
        if spread == 0:
            self.delays.add(when_ms, self.end, self.end + count, self.now_ms)
        for number in range(count):
            offset, each_ms = self.end + number, when_ms + number * spread
            if spread:
                self.delays.add(each_ms, offset, offset + 1, self.now_ms)
            self.waiting[offset] = Waiting(each_ms, self.now_ms)
        self.end += count

    def look(self, *, read_at_once: bool = True) -> None:
        """Do what is due now."""
        for _ in range(10 * (len(self.waiting) + 1)):
            for first, end in self.delays.take_due(self.now_ms):
                for offset in range(first, end):
                    self.came_out(self.waiting.pop(offset))
            opened = self.delays.open_bucket(self.now_ms)
            for first, end in opened:
                for offset in range(first, end):
                    self.reading[offset] = self.waiting.pop(offset)
            if read_at_once:
                self.readings_come()
            next_ms = self.delays.next_ms()
            if next_ms is None or next_ms > self.now_ms:
                return
        raise AssertionError("it asks to be looked at again and again")

    def came_out(self, message: Waiting) -> None:
        assert message.when_ms <= self.now_ms, "early"
        due_ms = max(message.when_ms, message.since_ms)
        assert self.now_ms <= max(due_ms + self.late_ms, self.slept_until_ms), "late"

    @precondition(lambda self: self.reading)
    @rule()
    def readings_come(self) -> None:
        for offset, message in sorted(self.reading.items()):
            self.delays.add(message.when_ms, offset, offset + 1, self.now_ms)
            message.since_ms = self.now_ms
            self.waiting[offset] = message
        self.reading.clear()

    @rule(read_at_once=st.booleans(), times=st.integers(1, 6))
    def go_on(self, read_at_once: bool, times: int) -> None:
        for _ in range(times):
            self.to_the_next(read_at_once=read_at_once)

    def to_the_next(self, *, read_at_once: bool = True) -> None:
        next_ms = self.delays.next_ms()
        if next_ms is not None:
            self.now_ms = max(self.now_ms, next_ms)
            self.look(read_at_once=read_at_once)

    @rule(ms=st.sampled_from([1, 400, SECOND, NEAR_MS, MINUTE, HOUR, 24 * HOUR]))
    def time_passes(self, ms: int) -> None:
        """Let time pass, and look at each time that `next_ms` names."""
        until_ms = self.now_ms + ms
        while (next_ms := self.delays.next_ms()) is not None and next_ms <= until_ms:
            self.to_the_next()
        self.now_ms = until_ms
        self.look()

    @rule(ms=st.sampled_from([1, 400, SECOND, NEAR_MS, MINUTE, HOUR, 24 * HOUR]))
    def sleep(self, ms: int) -> None:
        """Let time pass without looking before its end."""
        self.now_ms += ms
        self.slept_until_ms = self.now_ms
        self.look()
        assert all(message.when_ms + self.late_ms > self.now_ms for message in self.waiting.values())

    @invariant()
    def counts_agree(self) -> None:
        delays = self.delays
        assert delays.messages == len(self.waiting)
        assert bool(delays) == bool(self.waiting)
        assert len(delays._near) <= module.NEAR_MAX
        assert delays.ranges <= len(self.waiting)
        soonest_ms, next_ms = delays.soonest_ms(), delays.next_ms()
        assert (soonest_ms is None) == (next_ms is None) == (not self.waiting)
        if soonest_ms is not None and next_ms is not None:
            first_ms = min(message.when_ms for message in self.waiting.values())
            assert first_ms - HOUR < soonest_ms <= first_ms
            assert next_ms <= first_ms + LATE_MS


DelaysMachine.TestCase.settings = settings(max_examples=2000 if LONG else 150, stateful_step_count=40)
test_delays_are_what_one_entry_a_message_would_say = DelaysMachine.TestCase


def test_what_was_published_together_for_one_time_costs_one_range() -> None:
    """A million messages for one time tomorrow are one entry, however many batches they came in."""
    delays = Delays()
    for number in range(1_000):
        delays.add(START_MS + 25 * HOUR + number, 1_000 * number, 1_000 * number + 1_000, START_MS)
    assert (delays.messages, delays.ranges) == (1_000_000, 1)


def test_a_bucket_that_was_opened_is_not_filled_again() -> None:
    """Messages read again because they are due soon do not return to the bucket they came from."""
    delays = Delays()
    begin_ms = START_MS + MINUTE
    for number in range(SECOND):
        delays.add(begin_ms + number, number, number + 1, START_MS)
    now_ms = delays.next_ms()
    assert now_ms == begin_ms - NEAR_MS
    assert delays.open_bucket(now_ms) == [(0, SECOND)]
    for number in range(SECOND):
        delays.add(begin_ms + number, number, number + 1, now_ms)
    assert delays.open_bucket(now_ms) == []
    assert delays.next_ms() == begin_ms
