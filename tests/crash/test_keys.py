"""Which consumer has a key: when there is a suspicion, and when it is certain."""

from __future__ import annotations

import pytest

from tests.crash.keys import Holders


@pytest.fixture
def holders() -> Holders:
    """Return a subscription in which the first consumer has message 5 of a key."""
    holders = Holders()
    assert not holders.give("first", 1, b"k", 5)
    return holders


def certain(holders: Holders, *openings: tuple[str, int]) -> list[str]:
    """Let consumers acknowledge something, and return what is certain then."""
    return [text for who, opening in openings for text in holders.alive(who, opening, holders.found)]


def test_two_who_have_a_key_and_were_never_away_are_certain(holders: Holders) -> None:
    """Acknowledgments of both were confirmed afterwards: the broker has lost neither."""
    assert holders.give("second", 1, b"k", 7)
    assert certain(holders, ("first", 1)) == []
    [text] = certain(holders, ("second", 1))
    assert text == "7 of key b'k' was given away while another had 5"
    assert certain(holders, ("first", 1), ("second", 1)) == []


def test_who_opened_again_had_lost_its_keys(holders: Holders) -> None:
    """The broker took them back before it gave them to another consumer."""
    holders.give("second", 1, b"k", 5)
    assert certain(holders, ("second", 1), ("first", 2)) == []


def test_a_confirmation_from_before_proves_nothing(holders: Holders) -> None:
    """It was requested when no other consumer had the key yet."""
    mark = holders.found
    holders.give("second", 1, b"k", 5)
    assert holders.alive("first", 1, mark) == []
    assert certain(holders, ("second", 1)) == []


def test_a_key_that_was_let_go_may_go_to_anybody(holders: Holders) -> None:
    """By acknowledging everything of it, or by closing."""
    holders.release("first", 5)
    holders.give("second", 1, b"k", 6)
    holders.leave("second")
    holders.give("first", 1, b"k", 6)
    assert certain(holders, ("first", 1), ("second", 1)) == []


def test_keys_do_not_know_each_other(holders: Holders) -> None:
    """Another key may be with another consumer."""
    assert not holders.give("second", 1, b"l", 6)
    assert certain(holders, ("first", 1), ("second", 1)) == []


def test_what_is_of_no_known_opening_is_no_evidence(holders: Holders) -> None:
    """It may have been delivered before its consumer opened again."""
    assert holders.give("second", None, b"k", 5)
    assert certain(holders, ("first", 1), ("second", 1)) == []
