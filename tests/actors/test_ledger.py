"""Tests of what is owed, against models with one entry a message."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.ledger import Held, InFlight, Redelivery

OFFSETS = 60


@dataclass
class NaiveInFlight:
    """One entry a message: its attempt, its deadline, and which delivery it came with."""

    held: dict[int, tuple[int, float]] = field(default_factory=dict)

    def take(self, offsets: list[int]) -> dict[int, int]:
        """Take offsets out; return their attempts."""
        return {offset: self.held.pop(offset)[0] for offset in offsets if offset in self.held}


def flat(held: list[Held]) -> dict[int, int]:
    """Return attempt by offset; no offset may be in it twice."""
    found: dict[int, int] = {}
    for part in held:
        assert part.first < part.end
        for offset in range(part.first, part.end):
            assert offset not in found
            found[offset] = part.attempt
    return found


class InFlightMachine(RuleBasedStateMachine):
    """Deliver, settle, expire and release, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = InFlight()
        self.model = NaiveInFlight()
        self.now_s = 0.0

    @rule(
        first=st.integers(0, OFFSETS),
        count=st.integers(1, 12),
        attempt=st.integers(1, 4),
        wait=st.integers(0, 9),
    )
    def deliver(self, first: int, count: int, attempt: int, wait: int) -> None:
        offsets = range(first, first + count)
        if any(offset in self.model.held for offset in offsets):
            return  # an offset is given to a consumer once at a time
        self.ledger.deliver(first, first + count, attempt, self.now_s + wait)
        for offset in offsets:
            self.model.held[offset] = (attempt, self.now_s + wait)

    @rule(first=st.integers(0, OFFSETS), count=st.integers(1, 40))
    def settle(self, first: int, count: int) -> None:
        settled = self.ledger.settle(first, first + count)
        assert flat(settled) == self.model.take(list(range(first, first + count)))
        assert settled == sorted(settled)

    @rule(seconds=st.integers(0, 5))
    def expire(self, seconds: int) -> None:
        self.now_s += seconds
        due = [offset for offset, (_, deadline) in self.model.held.items() if deadline <= self.now_s]
        assert flat(self.ledger.expire(self.now_s)) == self.model.take(due)
        next_s = self.ledger.next_deadline_s()
        deadlines = [deadline for _, deadline in self.model.held.values()]
        assert next_s == min(deadlines, default=None)

    @rule()
    def release(self) -> None:
        released = self.ledger.release()
        assert released == sorted(released)
        assert flat(released) == self.model.take(list(self.model.held))

    @invariant()
    def counts_agree(self) -> None:
        assert self.ledger.messages == len(self.model.held)
        next_s = self.ledger.next_deadline_s()
        deadlines = [deadline for _, deadline in self.model.held.values()]
        assert (next_s is None) == (not deadlines)
        assert next_s is None or next_s <= min(deadlines)
        assert len(self.ledger._queue) <= 2 * len(self.ledger) + 65  # bounded, whatever was settled


InFlightMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_what_is_in_flight_is_what_a_map_of_messages_would_say = InFlightMachine.TestCase


class RedeliveryMachine(RuleBasedStateMachine):
    """Ranges that come back, at once or later, and are taken again."""

    def __init__(self) -> None:
        super().__init__()
        self.redelivery = Redelivery()
        self.model: dict[int, tuple[float, int]] = {}  # offset -> (ready, attempt)
        self.now_s = 0.0

    @rule(
        first=st.integers(0, OFFSETS),
        count=st.integers(1, 10),
        attempt=st.integers(1, 3),
        delay=st.integers(0, 6),
    )
    def add(self, first: int, count: int, attempt: int, delay: int) -> None:
        if any(offset in self.model for offset in range(first, first + count)):
            return
        self.redelivery.add(Held(first, first + count, attempt), self.now_s + delay, self.now_s)
        self.model.update(dict.fromkeys(range(first, first + count), (self.now_s + delay, attempt)))

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(most=st.integers(1, 8))
    def take(self, most: int) -> None:
        due = {offset: attempt for offset, (ready, attempt) in self.model.items() if ready <= self.now_s}
        held = self.redelivery.take(self.now_s, most)
        if held is None:
            assert not due
            return
        assert held.first == min(due)
        assert held.end - held.first <= most
        for offset in range(held.first, held.end):
            assert due[offset] == held.attempt
            del self.model[offset]

    @invariant()
    def counts_agree(self) -> None:
        assert self.redelivery.messages == len(self.model)
        assert bool(self.redelivery) == bool(self.model)

    @precondition(lambda self: self.redelivery.next_ready_s() is not None)
    @rule()
    def wait_for_the_next(self) -> None:
        ready_s = self.redelivery.next_ready_s()
        assert ready_s is not None
        self.now_s = max(self.now_s, ready_s)
        assert any(ready <= self.now_s for ready, _ in self.model.values())


RedeliveryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_what_waits_is_what_a_map_of_messages_would_say = RedeliveryMachine.TestCase


@given(st.permutations(list(range(12))))
def test_what_came_back_in_any_order_is_taken_in_order(order: list[int]) -> None:
    """The lowest offset that is due is next, whatever the order of return."""
    redelivery = Redelivery()
    for number in order:
        redelivery.add(Held(10 * number, 10 * number + 10, 2), 0.0, 0.0)
    taken: list[int] = []
    while (held := redelivery.take(0.0, 7)) is not None:
        taken += range(held.first, held.end)
    assert taken == list(range(120))


def test_a_million_unacknowledged_messages_cost_kilobytes() -> None:
    """Bookkeeping is by delivery, not by message."""
    ledger = InFlight()
    for number in range(1000):
        ledger.deliver(1000 * number, 1000 * number + 1000, 1, float(number))
    assert ledger.messages == 1_000_000
    assert len(ledger) == 1000
    ledger.settle(0, 999_999)
    assert (ledger.messages, len(ledger)) == (1, 1)
