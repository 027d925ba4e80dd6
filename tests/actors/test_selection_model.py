"""Model test of a roster, against a dictionary of consumers and the messages each of them holds.

HYPOTHESIS_PROFILE=long runs it for minutes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ister.actors import selection as module
from ister.actors.selection import Member, Roster
from ister.errors import RemoteError
from ister.subscriptions import READER

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
HOARD_SPARE = 2
CREDIT_MAX = 12


@dataclass
class Consumer:
    """What is known of one consumer."""

    rank: tuple[int, int]
    messages: int
    bytes: int
    blocked: bool = False
    holds: set[int] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        return self.messages > 0 and self.bytes > 0 and not self.blocked


class RosterMachine(RuleBasedStateMachine):
    """One roster, and plain dictionaries."""

    kind: str

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "HOARD_SPARE", HOARD_SPARE)
        self.ordered = self.kind not in ("shared", "key-shared")
        self.roster = Roster(self.kind, "s")
        self.consumers: dict[int, Consumer] = {}
        self.gone: list[int] = []
        self.ages = 0
        self.offsets = 0
        self.passed_by: dict[int, set[int]] = {}  # which had a turn while this one waited for it

    def teardown(self) -> None:
        self.patch.undo()

    def one(self, which: int) -> int:
        """Return a consumer that is attached, or one that has left or never was."""
        keys = [*self.consumers, *self.gone[-1:], 999]
        return keys[which % len(keys)]

    # ---- what the model says --------------------------------------------------------------------------------

    def hoards(self, key: int) -> bool:
        """Return whether it holds some messages, and more than twice the average of the others."""
        others = [len(one.holds) for each, one in self.consumers.items() if each != key]
        if not others:
            return False
        mine = len(self.consumers[key].holds)
        return mine > 2 * sum(others) / len(others) + HOARD_SPARE

    def candidates(self) -> list[int]:
        """Return who may be next: those with credit that do not hoard, else all with credit."""
        ready = [key for key, one in self.consumers.items() if one.ready]
        return [key for key in ready if not self.hoards(key)] or ready

    def active(self) -> int | None:
        return min(self.consumers, key=lambda key: self.consumers[key].rank, default=None)

    # ---- what happens ---------------------------------------------------------------------------------------

    @rule(
        credits=st.lists(st.sampled_from([0, 1, 6, CREDIT_MAX]), min_size=1, max_size=4),
        priority=st.integers(0, 2),
    )
    def come(self, credits: list[int], priority: int) -> None:
        for credit in credits:
            self.attach(priority, credit, 2 * credit)

    def attach(self, priority: int, messages: int, bytes: int) -> None:
        self.ages += 1
        busy = self.kind in ("exclusive", READER) and bool(self.consumers)
        if busy:
            with pytest.raises(RemoteError, match="is exclusive"):
                self.attached(priority, messages, bytes)
        else:
            assert self.attached(priority, messages, bytes).key == self.ages
            self.consumers[self.ages] = Consumer((priority, self.ages), messages, bytes)

    def attached(self, priority: int, messages: int, bytes: int) -> Member:
        return self.roster.attach(self.ages, priority=priority, messages=messages, bytes=bytes)

    @rule(which=st.integers(0, 9))
    def detach(self, which: int) -> None:
        key = self.one(which)
        self.roster.detach(key)
        if self.consumers.pop(key, None) is not None:
            self.gone.append(key)

    @rule(which=st.integers(0, 9), messages=st.sampled_from([0, 1, 9]), bytes=st.sampled_from([0, 9]))
    def add_credit(self, which: int, messages: int, bytes: int) -> None:
        key = self.one(which)
        self.roster.add_credit(key, messages, bytes, messages_max=CREDIT_MAX, bytes_max=CREDIT_MAX)
        if (one := self.consumers.get(key)) is not None:
            one.messages = min(CREDIT_MAX, one.messages + messages)
            one.bytes = min(CREDIT_MAX, one.bytes + bytes)

    @rule(which=st.integers(0, 9), messages=st.sampled_from([0, CREDIT_MAX]))
    def set_credit(self, which: int, messages: int) -> None:
        key = self.one(which)
        self.roster.set_credit(key, messages, CREDIT_MAX)
        if (one := self.consumers.get(key)) is not None:
            one.messages, one.bytes, one.blocked = messages, CREDIT_MAX, False

    @rule(which=st.integers(0, 9), blocked=st.booleans())
    def block(self, which: int, blocked: bool) -> None:
        key = self.one(which)
        self.roster.block(key, blocked)
        if (one := self.consumers.get(key)) is not None:
            one.blocked = blocked

    @rule(which=st.integers(0, 9), most=st.sampled_from([1, 3, 30]))
    def settle(self, which: int, most: int) -> None:
        key = self.one(which)
        self.roster.settle(key, most)
        if (one := self.consumers.get(key)) is not None:
            one.holds = set(sorted(one.holds)[most:])

    @rule(
        times=st.sampled_from([1, 3, 12]),
        messages=st.sampled_from([1, 1, 3, 9]),
        bytes=st.sampled_from([0, 1, 9]),
    )
    def deliver(self, times: int, messages: int, bytes: int) -> None:
        for _ in range(times):
            member = self.roster.choose()
            assert member is self.roster.choose(), "asking is no turn"
            if self.ordered:
                active = self.active()
                expected = active if active is not None and self.consumers[active].ready else None
                assert (None if member is None else member.key) == expected
            else:
                candidates = self.candidates()
                assert (member is None) == (not candidates)
                if member is not None:
                    assert member.key in candidates
                    self.turn(member.key, candidates)
            if member is None:
                return
            self.spend(member.key, min(messages, member.messages), bytes)

    def turn(self, key: int, candidates: list[int]) -> None:
        """No consumer has a second turn before each that was eligible all the time has had one."""
        self.passed_by = {each: passed for each, passed in self.passed_by.items() if each in candidates}
        for other in candidates:
            if other != key:
                passed = self.passed_by.setdefault(other, set())
                assert key not in passed, "a second turn before another one's first"
                passed.add(key)
        self.passed_by.pop(key, None)

    def spend(self, key: int, messages: int, bytes: int) -> None:
        member, one = self.roster.get(key), self.consumers[key]
        assert member is not None
        self.roster.spend(member, messages, bytes)
        one.messages -= messages
        one.bytes -= bytes
        one.holds.update(range(self.offsets, self.offsets + messages))
        self.offsets += messages

    # ---- always ---------------------------------------------------------------------------------------------

    @invariant()
    def the_same_are_there(self) -> None:
        roster = self.roster
        assert len(roster) == len(self.consumers)
        assert [member.key for member in roster.members] == list(self.consumers)
        for key, one in self.consumers.items():
            member = roster.get(key)
            assert member is not None
            assert key in roster
            assert (member.messages, member.bytes, member.blocked) == (one.messages, one.bytes, one.blocked)
            assert member.ready == one.ready
            assert member.outstanding == len(one.holds)
        assert roster.outstanding == sum(len(one.holds) for one in self.consumers.values())
        assert (None if roster.active is None else roster.active.key) == (
            self.active() if self.ordered else None
        )
        assert all(roster.get(key) is None and key not in roster for key in self.gone)

    @invariant()
    def who_is_ready_has_one_place_in_the_queue(self) -> None:
        queue = [member.key for member in self.roster._turns]
        assert len(queue) == len(set(queue))
        assert set(queue) <= set(self.consumers)
        ready = {key for key, one in self.consumers.items() if one.ready}
        assert self.ordered or ready <= set(queue)
        assert all(member.queued == (member.key in queue) for member in self.roster.members)
        for backlog in (0, 1, 7, 1000):
            share = self.roster.share(backlog)
            assert share >= 1
            if self.ordered:
                assert share >= backlog
            else:
                assert share * len(self.consumers) >= backlog or not self.consumers
                assert not ready or (share - 1) * len(ready) < max(backlog, 1)


class Exclusive(RosterMachine):
    kind = "exclusive"


class Reader(RosterMachine):
    kind = READER


class Failover(RosterMachine):
    kind = "failover"


class Shared(RosterMachine):
    kind = "shared"


class KeyShared(RosterMachine):
    """In a Key-Shared subscription the key decides, not the turn."""

    kind = "key-shared"

    @precondition(lambda self: any(one.ready for one in self.consumers.values()))
    @rule(which=st.integers(0, 9), bytes=st.integers(0, 3))
    def deliver_out_of_turn(self, which: int, bytes: int) -> None:
        ready = [key for key, one in self.consumers.items() if one.ready]
        key = ready[which % len(ready)]
        self.spend(key, 1, bytes)
        self.passed_by.pop(key, None)


Exclusive.TestCase.settings = settings(max_examples=2000 if LONG else 20, stateful_step_count=30)
Reader.TestCase.settings = settings(max_examples=2000 if LONG else 10, stateful_step_count=30)
Failover.TestCase.settings = settings(max_examples=2000 if LONG else 40, stateful_step_count=40)
Shared.TestCase.settings = settings(max_examples=2000 if LONG else 120, stateful_step_count=50)
KeyShared.TestCase.settings = settings(max_examples=2000 if LONG else 40, stateful_step_count=40)

test_exclusive_has_one_consumer = Exclusive.TestCase
test_a_reader_has_one_consumer = Reader.TestCase
test_failover_has_the_first_in_rank_then_in_age = Failover.TestCase
test_shared_gives_turns_to_whoever_can_take_and_does_not_hoard = Shared.TestCase
test_key_shared_is_not_bound_to_turns = KeyShared.TestCase
