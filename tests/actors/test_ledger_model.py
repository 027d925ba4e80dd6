"""Model tests of the ledgers, against dictionaries with one entry per message.

HYPOTHESIS_PROFILE=long runs it for minutes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ister.actors.ledger import NEVER, Held, InFlight, Redelivery, back_off_ms
from ister.storage.ranges import RangeSet

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


class Owed(NamedTuple):
    """What is known of one message."""

    attempt: int
    failures: int


class Deadline(NamedTuple):
    """When a message in flight is due, and what else is known of it."""

    at_s: float
    owed: Owed


def single(parts: Iterable[Held]) -> dict[int, Owed]:
    """Return the messages of the ranges, one entry each; the ranges must be disjoint and not empty."""
    found: dict[int, Owed] = {}
    for part in parts:
        assert part.first < part.end
        for offset in range(part.first, part.end):
            assert offset not in found, "twice"
            found[offset] = Owed(part.attempt, part.failures)
    return found


def flat_of(offsets: list[int]) -> list[int]:
    """Return single messages as ranges, in one list."""
    return [number for offset in offsets for number in (offset, offset + 1)]


class InFlightMachine(RuleBasedStateMachine):
    """What one consumer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = InFlight()
        self.model: dict[int, Deadline] = {}
        self.now_s = 0.0
        self.end = 0

        self.delivered: list[int] = []  # together, and apart, the last time
        self.last: list[list[int]] = []  # the last three times

    def next_s(self) -> float | None:
        """Return the first deadline there is."""
        return min((one.at_s for one in self.model.values() if one.at_s < NEVER), default=None)

    def removed(self, offsets: Iterable[int]) -> dict[int, Owed]:
        return {offset: self.model.pop(offset).owed for offset in offsets}

    def within(self, first: int, end: int) -> list[int]:
        return sorted(offset for offset in self.model if first <= offset < end)

    def deliver_one(self, first: int, end: int, attempt: int, failures: int, at_s: float) -> None:
        self.ledger.deliver(first, end, attempt, at_s, failures)
        self.model.update(dict.fromkeys(range(first, end), Deadline(at_s, Owed(attempt, failures))))
        self.end = max(self.end, end)

    @rule(counts=st.lists(st.integers(1, 12), min_size=1, max_size=30), timeout_s=st.sampled_from([1, 2, 5]))
    def deliver(self, counts: list[int], timeout_s: float) -> None:
        for number, count in enumerate(counts):
            self.deliver_one(
                self.end + number % 2, self.end + number % 2 + count, 1, 0, self.now_s + timeout_s
            )

    @rule(
        back=st.integers(1, 60),
        count=st.integers(1, 12),
        attempt=st.integers(2, 4),
        failures=st.integers(0, 2),
        timeout_s=st.sampled_from([1, 2, 5]),
    )
    def deliver_again(self, back: int, count: int, attempt: int, failures: int, timeout_s: float) -> None:
        """Deliver the free offsets between those in flight."""
        first = max(0, self.end - back)
        end = next((offset for offset in range(first, first + count) if offset in self.model), first + count)
        if first < end:
            self.deliver_one(first, end, attempt, failures, self.now_s + timeout_s)

    @rule(back=st.integers(0, 80), count=st.sampled_from([0, 1, 1, 2, 5, 30, 200]))
    def settle(self, back: int, count: int) -> None:
        first = max(0, self.end - back)
        settled = self.ledger.settle(first, first + count)
        assert settled == sorted(settled)
        assert single(settled) == self.removed(self.within(first, first + count))

    @rule(back=st.integers(1, 80), count=st.integers(1, 60))
    def settle_every_other(self, back: int, count: int) -> None:
        for offset in range(max(0, self.end - back), max(0, self.end - back) + count, 2):
            assert single(self.ledger.settle(offset, offset + 1)) == self.removed(
                self.within(offset, offset + 1)
            )

    @rule(
        back=st.integers(0, 80), count=st.sampled_from([1, 2, 30, 200]), timeout_s=st.sampled_from([1, 2, 5])
    )
    def extend(self, back: int, count: int, timeout_s: float) -> None:
        first, at_s = max(0, self.end - back), self.now_s + timeout_s
        offsets = self.within(first, first + count)
        assert self.ledger.extend(first, first + count, at_s) == len(offsets)
        for offset in offsets:
            self.model[offset] = Deadline(at_s, self.model[offset].owed)

    @rule(back=st.integers(0, 60), apart=st.sets(st.integers(0, 60), min_size=1), failures=st.integers(0, 2))
    def deliver_scattered(self, back: int, apart: set[int], failures: int) -> None:
        """Deliver messages that lie apart, among others; they wait in the client."""
        first = max(0, self.end - back)
        offsets = [first + each for each in sorted(apart) if first + each not in self.model]
        if offsets:
            ranges = tuple((offset, offset + 1) for offset in offsets)
            self.ledger.deliver_scattered(offsets, failures + 1, failures, ranges, flat_of(offsets))
            self.last = [*self.last[-2:], offsets]
            self.model.update(dict.fromkeys(offsets, Deadline(NEVER, Owed(failures + 1, failures))))
            self.end = max(self.end, offsets[-1] + 1)
            self.delivered = offsets

    @rule(share=st.sampled_from([1.0, 1.0, 0.5]), timeout_s=st.sampled_from([1, 2, 5]))
    def take_scattered(self, share: float, timeout_s: float) -> None:
        """Let the program take what was delivered last, or a part of it, some of which may be settled already."""
        offsets = self.delivered if share == 1.0 else self.delivered[: len(self.delivered) // 2]
        if offsets:
            self.ledger.extend_scattered(offsets, self.now_s + timeout_s)
            for offset in offsets:
                if offset in self.model:
                    self.model[offset] = Deadline(self.now_s + timeout_s, self.model[offset].owed)

    @rule(back=st.integers(0, 80), apart=st.sets(st.integers(0, 60), min_size=1), long=st.booleans())
    def settle_all(self, back: int, apart: set[int], long: bool) -> None:
        first = max(0, self.end - back)
        ranges = list(RangeSet((first + each, first + each + 1) for each in sorted(apart)))
        if long:
            ranges.append((ranges[-1][1] + 1, ranges[-1][1] + 200))
        gone = [offset for part in ranges for offset in self.within(*part)]
        assert self.ledger.settle_all(ranges) == len(self.removed(gone))

    @rule(which=st.permutations([0, 1, 2]), count=st.integers(1, 3), other=st.booleans())
    def settle_parcels(self, which: list[int], count: int, other: bool) -> None:
        """Settle whole deliveries, as they are or one message short; what is not whole any more stays as it is."""
        if len(self.last) < 3:
            return
        some = sorted(self.last[number] for number in which[:count])
        flat = [number for offsets in some for number in flat_of(offsets)][: -2 if other else None]
        found = self.ledger.settle_parcels(flat)
        if found is not None:
            assert [parcel.offsets for parcel in found] == [each for each in some if each[0] in flat[::2]]
            assert [number for parcel in found for part in parcel.ranges for number in part] == flat
            assert flat == sorted(flat)
            assert len(self.removed(flat[::2])) == len(flat) // 2

    @rule(taken=st.booleans())
    def release_some(self, taken: bool) -> None:
        ledger = self.ledger
        released = ledger.release_taken() if taken else ledger.release_waiting()
        assert released == sorted(released)
        offsets = [offset for offset, one in self.model.items() if (one.at_s < NEVER) == taken]
        assert single(released) == self.removed(offsets)

    @rule(seconds=st.sampled_from([0.5, 1, 3]))
    def expire(self, seconds: float) -> None:
        self.now_s += seconds
        due = [offset for offset, deadline in self.model.items() if deadline.at_s <= self.now_s]
        assert single(self.ledger.expire(self.now_s)) == self.removed(due)
        assert self.ledger.next_deadline_s() == self.next_s()

    @rule()
    def release(self) -> None:
        released = self.ledger.release()
        assert released == sorted(released)
        assert single(released) == self.removed(list(self.model))

    @invariant()
    def counts_agree(self) -> None:
        ledger = self.ledger
        assert ledger.messages == len(self.model)
        assert len(ledger) <= len(self.model)
        next_s, expected_s = ledger.next_deadline_s(), self.next_s()
        assert (next_s is None and expected_s is None) or (
            next_s is not None and (expected_s is None or next_s <= expected_s)
        )
        assert (ledger.oldest_deadline_s() is None) == (expected_s is None)
        assert len(ledger._queue) <= 2 * len(ledger) + 65, "bounded, whatever was settled"

    @invariant()
    def parcels_know_how_many_are_left(self) -> None:
        scattered = self.ledger._scattered
        of = dict(scattered._of)
        for parcel in scattered._whole.values():
            assert of.keys().isdisjoint(parcel.offsets)
            of.update(dict.fromkeys(parcel.offsets, parcel))
        assert len(scattered) == len(of)
        for parcel, count in Counter(of.values()).items():
            assert parcel.left == count
        for _, _, parcel in self.ledger._scattered._queue:
            assert parcel.left == sum(of.get(offset) is parcel for offset in parcel.offsets)


InFlightMachine.TestCase.settings = settings(max_examples=2000 if LONG else 60, stateful_step_count=40)
test_what_is_in_flight_is_what_one_entry_a_message_would_say = InFlightMachine.TestCase


class RedeliveryMachine(RuleBasedStateMachine):
    """Messages that come back and are taken again."""

    def __init__(self) -> None:
        super().__init__()
        self.redelivery = Redelivery()
        self.model: dict[int, Deadline] = {}  # when it is ready
        self.now_s = 0.0
        self.looked_s = 0.0  # the last time messages were taken

    @rule(
        first=st.integers(0, 60),
        count=st.integers(1, 8),
        attempt=st.integers(1, 4),
        failures=st.integers(0, 3),
        delay_s=st.sampled_from([-1, 0, 0, 1, 1, 4]),
    )
    def add(self, first: int, count: int, attempt: int, failures: int, delay_s: float) -> None:
        end = next((offset for offset in range(first, first + count) if offset in self.model), first + count)
        if first < end:
            ready_s = self.now_s + delay_s
            self.redelivery.add(Held(first, end, attempt, failures), ready_s, self.now_s)
            self.model.update(dict.fromkeys(range(first, end), Deadline(ready_s, Owed(attempt, failures))))

    @rule(seconds=st.sampled_from([0.5, 1, 2]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.redelivery.next_ready_s() is not None)
    @rule()
    def time_passes_to_the_next(self) -> None:
        next_s = self.redelivery.next_ready_s()
        assert next_s is not None
        self.now_s = max(self.now_s, next_s)
        assert any(one.at_s <= self.now_s for one in self.model.values())

    @rule(most=st.integers(1, 8), times=st.integers(1, 6))
    def take(self, most: int, times: int) -> None:
        for _ in range(times):
            due = [offset for offset, one in self.model.items() if one.at_s <= self.now_s]
            held = self.redelivery.take(self.now_s, most)
            self.looked_s = self.now_s
            assert (held is None) == (not due)
            if held is None:
                return
            assert held.first == min(due), "the lowest is next"
            assert held.end - held.first <= most
            for offset, owed in single([held]).items():
                assert offset in due
                assert self.model.pop(offset).owed == owed
            assert self.redelivery.due_messages == len(due) - (held.end - held.first)

    @invariant()
    def counts_agree(self) -> None:
        redelivery = self.redelivery
        assert redelivery.messages == len(self.model)
        assert bool(redelivery) == bool(self.model)
        assert bool(redelivery.ranges) == bool(self.model)
        assert redelivery.ranges <= len(self.model)
        assert 0 <= redelivery.due_messages <= sum(one.at_s <= self.now_s for one in self.model.values())
        next_s = redelivery.next_ready_s()
        later = [one.at_s for one in self.model.values() if one.at_s > self.now_s]
        assert next_s is None or next_s in [one.at_s for one in self.model.values()]
        assert not later or (next_s is not None and next_s <= min(later))


RedeliveryMachine.TestCase.settings = settings(max_examples=2000 if LONG else 80, stateful_step_count=40)
test_what_waits_is_what_one_entry_a_message_would_say = RedeliveryMachine.TestCase


@given(st.integers(0, 3) | st.integers(0, 10_000), st.integers(0, 100_000), st.integers(0, 1_000_000))
def test_back_off_doubles_within_its_bounds(failures: int, ms_min: int, more: int) -> None:
    """It is zero without a failure or a back-off; otherwise it doubles each time, up to the maximum."""
    ms_max = ms_min + more
    wait_ms = back_off_ms(failures, ms_min, ms_max)
    if not failures or not ms_min:
        assert wait_ms == 0
    else:
        assert ms_min <= wait_ms <= ms_max
        before_ms = back_off_ms(failures - 1, ms_min, ms_max)
        assert wait_ms in (2 * before_ms, ms_max) or failures == 1
        assert failures > 1 or wait_ms == ms_min
