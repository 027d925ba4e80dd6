"""Tests of who is next, against naive models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from actors.selection import SUBSCRIPTION_TYPES, Roster
from ister.errors import RemoteError


def attached(type: str, *ranks: int) -> Roster:
    """Return a roster of consumers 0, 1, ... with these priorities, and room for anything."""
    roster = Roster(type, "s")
    for key, priority in enumerate(ranks):
        roster.attach(key, priority=priority, messages=1 << 30, bytes=1 << 30)
    return roster


def chosen(roster: Roster, times: int) -> list[int | None]:
    """Deliver a message of one byte so often, and return to whom."""
    found: list[int | None] = []
    for _ in range(times):
        member = roster.choose()
        found.append(None if member is None else member.key)
        if member is not None:
            roster.spend(member, 1, 1)
    return found


def test_a_second_exclusive_consumer_is_busy_until_the_first_has_left() -> None:
    """One at a time, and the refused one leaves no trace."""
    roster = attached("exclusive", 0)
    with pytest.raises(RemoteError) as raised:
        roster.attach(1, priority=0, messages=1, bytes=1)
    assert (raised.value.code, raised.value.action) == ("subscription-busy", "retry")
    assert len(roster) == 1
    roster.detach(1)
    assert 0 in roster
    roster.detach(0)
    roster.attach(1, priority=0, messages=1, bytes=1)
    assert chosen(roster, 2) == [1, None]


def test_failover_prefers_the_lowest_priority_then_the_oldest() -> None:
    """Whoever leaves, the next in that order is active."""
    roster = attached("failover", 3, 1, 2, 1)
    order = []
    while roster.active is not None:
        order.append(roster.active.key)
        roster.detach(roster.active.key)
    assert order == [1, 3, 2, 0]


def test_failover_waits_for_its_active_consumer() -> None:
    """One without credit is still the active one: nobody else gets its messages."""
    roster = attached("failover", 0, 0)
    roster.set_credit(0, 0, 0)
    assert chosen(roster, 1) == [None]
    roster.add_credit(0, 1, 1, messages_max=10, bytes_max=10)
    assert chosen(roster, 2) == [0, None]


def test_shared_goes_round() -> None:
    """Everybody with credit has a turn before anybody has a second one."""
    assert chosen(attached("shared", 0, 0, 0), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_asking_is_no_turn() -> None:
    """Where there was nothing to deliver, the same consumer is still next."""
    roster = attached("shared", 0, 0)
    turns = []
    for _ in range(6):
        roster.choose()
        roster.choose()
        turns += chosen(roster, 1)
    assert turns == [0, 1, 0, 1, 0, 1]


def test_a_blocked_consumer_is_not_asked_until_it_takes_again() -> None:
    """A full connection loses its turns; coming back with new credit ends the block."""
    roster = attached("shared", 0, 0)
    roster.block(0, True)
    assert chosen(roster, 2) == [1, 1]
    roster.block(0, False)
    assert set(chosen(roster, 2)) == {0, 1}
    roster.block(0, True)
    roster.set_credit(0, 1, 1)
    assert 0 in chosen(roster, 2)


def test_credit_is_capped() -> None:
    """What a consumer adds counts up to what welcome announced."""
    roster = Roster("shared", "s")
    member = roster.attach(0, priority=0, messages=5, bytes=5)
    roster.add_credit(0, 1 << 64, 1 << 64, messages_max=7, bytes_max=9)
    assert (member.messages, member.bytes) == (7, 9)


def test_nobody_knows_a_stranger() -> None:
    """Credit, blocks and goodbyes of a consumer that has left change nothing."""
    roster = attached("shared", 0)
    roster.add_credit(9, 1, 1, messages_max=9, bytes_max=9)
    roster.set_credit(9, 1, 1)
    roster.block(9, True)
    roster.detach(9)
    assert chosen(roster, 1) == [0]


class RosterMachine(RuleBasedStateMachine):
    """A roster under anything, against plain dictionaries."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.rosters = {kind: Roster(kind, "s") for kind in SUBSCRIPTION_TYPES}
        self.model: dict[str, dict[int, dict[str, int]]] = {kind: {} for kind in SUBSCRIPTION_TYPES}
        self.ages = 0

    @rule(target=keys, priority=st.integers(0, 3), messages=st.integers(0, 3), bytes=st.integers(0, 3))
    def attach(self, priority: int, messages: int, bytes: int) -> int:
        self.ages += 1
        for kind, roster in self.rosters.items():
            model = self.model[kind]
            busy = kind == "exclusive" and bool(model)
            try:
                roster.attach(self.ages, priority=priority, messages=messages, bytes=bytes)
                assert not busy
                model[self.ages] = {"rank": priority, "messages": messages, "bytes": bytes, "blocked": 0}
            except RemoteError:
                assert busy
        return self.ages

    @rule(key=keys)
    def detach(self, key: int) -> None:
        for kind, roster in self.rosters.items():
            roster.detach(key)
            self.model[kind].pop(key, None)

    @rule(key=keys, messages=st.integers(0, 4), bytes=st.integers(0, 4))
    def add(self, key: int, messages: int, bytes: int) -> None:
        for kind, roster in self.rosters.items():
            roster.add_credit(key, messages, bytes, messages_max=6, bytes_max=6)
            if (member := self.model[kind].get(key)) is not None:
                member["messages"] = min(6, member["messages"] + messages)
                member["bytes"] = min(6, member["bytes"] + bytes)

    @rule(key=keys, messages=st.integers(0, 4))
    def set(self, key: int, messages: int) -> None:
        for kind, roster in self.rosters.items():
            roster.set_credit(key, messages, 5)
            if key in self.model[kind]:
                self.model[kind][key] |= {"messages": messages, "bytes": 5, "blocked": 0}

    @rule(key=keys, blocked=st.booleans())
    def block(self, key: int, blocked: bool) -> None:
        for kind, roster in self.rosters.items():
            roster.block(key, blocked)
            if key in self.model[kind]:
                self.model[kind][key]["blocked"] = blocked

    def _ready(self, kind: str) -> list[int]:
        return [
            key
            for key, member in self.model[kind].items()
            if member["messages"] > 0 and member["bytes"] > 0 and not member["blocked"]
        ]

    @rule(times=st.integers(1, 6), bytes=st.integers(1, 9))
    def deliver(self, times: int, bytes: int) -> None:
        for kind, roster in self.rosters.items():
            model = self.model[kind]
            round_: list[int] = []
            for _ in range(times):
                ready = self._ready(kind)
                member = roster.choose()
                if kind in ("shared", "key-shared"):
                    assert (member is None) == (not ready)
                else:
                    active = min(model, key=lambda key: (model[key]["rank"], key), default=None)
                    assert (None if member is None else member.key) == (active if active in ready else None)
                if member is None:
                    break
                assert member.key in ready
                if kind in ("shared", "key-shared"):
                    waiting = [key for key in ready if key not in round_]
                    assert member.key in waiting or not waiting, "a second turn before everybody had one"
                    round_ = [member.key] if not waiting else [*round_, member.key]
                roster.spend(member, 1, bytes)
                model[member.key]["messages"] -= 1
                model[member.key]["bytes"] -= bytes

    @invariant()
    def the_same_are_there(self) -> None:
        for kind, roster in self.rosters.items():
            assert len(roster) == len(self.model[kind])
            assert all(key in roster for key in self.model[kind])
            assert len(roster._turns) <= self.ages


RosterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_a_roster_is_what_dictionaries_would_say = RosterMachine.TestCase


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_shared_is_fair_to_whoever_has_credit(credits: list[int]) -> None:
    """After any number of turns, of two consumers with credit left none is more than one turn ahead."""
    roster = Roster("shared", "s")
    for key, messages in enumerate(credits):
        roster.attach(key, priority=0, messages=messages, bytes=1 << 30)
    turns = [0] * len(credits)
    for turn in chosen(roster, sum(credits) + 1)[:-1]:
        assert turn is not None
        turns[turn] += 1
        going = [turns[each] for each in range(len(credits)) if turns[each] < credits[each]]
        assert not going or max(going) - min(going) <= 1
    assert turns == credits
    assert roster.choose() is None
