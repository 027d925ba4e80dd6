"""Tests of which consumer is next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.actors.selection import HOARD_SPARE, Roster
from ister.errors import RemoteError


def attached(type: str, *ranks: int) -> Roster:
    """Return a roster of consumers 0, 1, ... with these priorities and unlimited credit."""
    roster = Roster(type, "s")
    for key, priority in enumerate(ranks):
        roster.attach(key, priority=priority, messages=1 << 30, bytes=1 << 30)
    return roster


def chosen(roster: Roster, times: int) -> list[int | None]:
    """Deliver a message of one byte so often, and return the consumers chosen."""
    found: list[int | None] = []
    for _ in range(times):
        member = roster.choose()
        found.append(None if member is None else member.key)
        if member is not None:
            roster.spend(member, 1, 1)
    return found


def test_a_second_exclusive_consumer_is_busy_until_the_first_has_left() -> None:
    """One at a time; the refused one leaves nothing behind."""
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
    """When the active one leaves, the next in that order becomes active."""
    roster = attached("failover", 3, 1, 2, 1)
    order = []
    while roster.active is not None:
        order.append(roster.active.key)
        roster.detach(roster.active.key)
    assert order == [1, 3, 2, 0]


def test_failover_waits_for_its_active_consumer() -> None:
    """A consumer without credit stays active: no other gets its messages."""
    roster = attached("failover", 0, 0)
    roster.set_credit(0, 0, 0)
    assert chosen(roster, 1) == [None]
    roster.add_credit(0, 1, 1, messages_max=10, bytes_max=10)
    assert chosen(roster, 2) == [0, None]


def test_shared_goes_round() -> None:
    """Each consumer with credit has a turn before any has a second one."""
    assert chosen(attached("shared", 0, 0, 0), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_asking_is_no_turn() -> None:
    """If there was nothing to deliver, the same consumer is still next."""
    roster = attached("shared", 0, 0)
    turns = []
    for _ in range(6):
        roster.choose()
        roster.choose()
        turns += chosen(roster, 1)
    assert turns == [0, 1, 0, 1, 0, 1]


def test_a_blocked_consumer_is_not_asked_until_it_takes_again() -> None:
    """A full connection loses its turns; new credit ends the block."""
    roster = attached("shared", 0, 0)
    roster.block(0, True)
    assert chosen(roster, 2) == [1, 1]
    roster.block(0, False)
    assert set(chosen(roster, 2)) == {0, 1}
    roster.block(0, True)
    roster.set_credit(0, 1, 1)
    assert 0 in chosen(roster, 2)


def test_credit_is_capped() -> None:
    """A consumer's credit is at most the limit that WELCOME names."""
    roster = Roster("shared", "s")
    member = roster.attach(0, priority=0, messages=5, bytes=5)
    roster.add_credit(0, 1 << 64, 1 << 64, messages_max=7, bytes_max=9)
    assert (member.messages, member.bytes) == (7, 9)


def test_nobody_knows_a_stranger() -> None:
    """Credit, blocks and detachments of a consumer that has left change nothing."""
    roster = attached("shared", 0)
    roster.add_credit(9, 1, 1, messages_max=9, bytes_max=9)
    roster.set_credit(9, 1, 1)
    roster.block(9, True)
    roster.detach(9)
    assert chosen(roster, 1) == [0]


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_shared_is_fair_to_whoever_has_credit(credits: list[int]) -> None:
    """After any number of turns, two consumers that still have credit differ by one turn at most."""
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


def test_who_hoards_is_passed_over_until_it_has_settled() -> None:
    """A consumer that acknowledges nothing leaves further messages to the others."""
    roster = attached("shared", 0, 0, 0)
    for number in (0, 1, 2):
        roster.spend(roster.get(number), HOARD_SPARE + 20 if number == 1 else 0, 0)  # type: ignore[arg-type]
    assert chosen(roster, 4) == [0, 2, 0, 2]
    roster.settle(1, HOARD_SPARE)
    assert sorted(chosen(roster, 3), key=str) == [0, 1, 2]


def test_where_all_hoard_that_could_take_they_take_turns() -> None:
    """A consumer that holds little and has no credit does not count, and asking does not change the turn."""
    roster = attached("shared", 0, 0, 0, 0)
    roster.set_credit(3, 0, 0)
    for number in (0, 1, 2):
        roster.spend(roster.get(number), 1000, 0)  # type: ignore[arg-type]
    roster.attach(4, priority=0, messages=0, bytes=0)
    roster.attach(5, priority=0, messages=0, bytes=0)
    turns = []
    for _ in range(6):
        roster.choose()
        turns += chosen(roster, 1)
    assert turns in ([0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0], [2, 0, 1, 2, 0, 1])


def test_who_comes_and_goes_leaves_nothing_in_the_queue() -> None:
    """Also if none is chosen because there is nothing to deliver."""
    roster = attached("shared", 0)
    for key in range(1, 1000):
        roster.attach(key, priority=0, messages=1, bytes=1)
        roster.detach(key)
    assert len(roster._turns) == 1


def test_work_is_shared_among_those_who_can_take_it() -> None:
    """At low rates one message each, at high rates the whole batch; consumers without credit do not count."""
    roster = attached("shared", 0, 0, 0)
    assert [roster.share(backlog) for backlog in (0, 1, 3, 4, 300)] == [1, 1, 1, 2, 100]
    roster.set_credit(0, 1, 1)
    assert chosen(roster, 1) == [0]
    assert roster.share(300) == 150
