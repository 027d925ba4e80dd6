"""Tests of what a consumer holds: what fails when it is lost, what may be acknowledged, and what it counts."""

from __future__ import annotations

import pytest

from ister.actors.consumer_holding import IN_FLIGHT_RANGES_MAX, SINCE_RANGES_MAX, Holding
from ister.actors.ledger import Held
from ister.actors.pieces import Piece
from ister.errors import RemoteError

TIMEOUT_S = 30.0


def piece(*parts: tuple[int, int], attempt: int = 1, failures: int = 0) -> Piece:
    """Return a piece of these offsets."""
    count = sum(end - first for first, end in parts)
    ranges = parts if len(parts) > 1 else ()
    return Piece(parts[0][0], count, 0, attempt, (count, 0), (b"", b""), 0, failures, ranges)


@pytest.fixture
def holding() -> Holding:
    """Return the holding of a consumer of a reliable subscription: empty."""
    made = Holding(acknowledges=True)
    made.go_by(int(TIMEOUT_S * 1000), 3)
    return made


def give(
    holding: Holding, first: int, end: int, *, tells: bool = True, singly: bool = False
) -> tuple[bool, bool]:
    """Deliver offsets, and mark them as sent."""
    delivered = piece((first, end))
    holding.deliver(delivered)
    return holding.sent(delivered, 100.0, tells=tells, singly=singly)


def test_where_nothing_is_acknowledged_nothing_is_held() -> None:
    """Only the last delivered offset is known."""
    holding = Holding(acknowledges=False)
    assert not holding.deliver(piece((3, 8)))
    assert (holding.delivered_end, holding.in_flight.messages) == (8, 0)


@pytest.mark.parametrize(
    ("tells", "singly", "told", "taken", "waits"),
    [
        (False, False, 0, True, False),  # an older client: all of it may be in hand
        (True, False, 0, False, True),
        (True, False, 3, True, True),
        (True, False, 5, True, False),
        (True, True, 5, False, True),  # each is told of by itself
    ],
)
def test_what_is_sent_has_a_deadline_where_the_program_may_have_it(
    holding: Holding, tells: bool, singly: bool, told: int, taken: bool, waits: bool
) -> None:
    """A message that waits in the client has no deadline."""
    holding.take(told, 100.0, alone=False)
    assert give(holding, 0, 5, tells=tells, singly=singly) == (taken, waits)
    assert holding.in_flight.next_deadline_s() == (100.0 + TIMEOUT_S if taken else None)
    assert holding.waits == waits


def test_what_is_taken_has_a_deadline_from_then_on(holding: Holding) -> None:
    """That holds for messages taken by the hundred and for one that is confirmed singly."""
    give(holding, 0, 5)
    give(holding, 5, 6, singly=True)
    assert holding.take(5, 110.0, alone=False)
    assert not holding.take(5, 111.0, alone=False)
    assert holding.take(6, 120.0, alone=True)
    assert holding.in_flight.expire(110.0 + TIMEOUT_S) == [Held(0, 5, 1)]
    assert holding.in_flight.next_deadline_s() == 120.0 + TIMEOUT_S


@pytest.mark.parametrize(
    ("failures_max", "failures", "last"), [(0, 9, False), (3, 1, False), (3, 2, True), (3, 5, True)]
)
def test_a_last_chance_is_one_failure_before_the_end(failures_max: int, failures: int, last: bool) -> None:
    """With 0 deliveries allowed there is no last one."""
    holding = Holding(acknowledges=True)
    holding.go_by(1000, failures_max)
    assert holding.is_last_chance(piece((0, 1), failures=failures)) == last


# ---- acknowledgments ---------------------------------------------------------------------------------------------


def test_an_acknowledgment_counts_each_message_once(holding: Holding) -> None:
    """However often it is named, and whether it is in flight here or not."""
    give(holding, 0, 10)
    assert holding.acknowledge(((0, 2), (1, 4), (1, 4))) == (((0, 4),), 4)
    assert holding.acknowledge(((0, 5),)) == (((0, 5),), 1)
    assert holding.acknowledge(((9, 10),)) == (((9, 10),), 1)


@pytest.mark.parametrize(
    ("flat", "code"),
    [((5, 5), "invalid-argument"), ((6, 5), "invalid-argument"), ((0, 1, 9, 11), "ack-unknown")],
)
def test_ranges_that_were_never_delivered_are_refused(
    holding: Holding, flat: tuple[int, ...], code: str
) -> None:
    """No part of the frame is applied."""
    give(holding, 0, 10)
    with pytest.raises(RemoteError) as refused:
        holding.ranges(flat)
    assert refused.value.code == code
    assert holding.ranges((0, 1, 9, 10)) == ((0, 1), (9, 10))


@pytest.mark.parametrize(
    ("moved", "shared", "end", "counts"),
    [
        (False, False, 8, None),  # everything below it, whichever consumer holds it
        (False, True, 8, ((0, 8),)),
        (True, False, 8, ((0, 8),)),  # delivered before the move, given back meanwhile
        (True, False, 25, None),  # delivered since
    ],
)
def test_what_counts_of_everything_up_to_here(
    holding: Holding, moved: bool, shared: bool, end: int, counts: tuple[tuple[int, int], ...] | None
) -> None:
    """Where other consumers hold messages too, it covers only those that were in flight here."""
    give(holding, 0, 10)
    if moved:
        holding.moved(20)
        give(holding, 20, 30)
    assert holding.acknowledge_until(end, shared=shared)[0] == counts


def test_an_acknowledgment_from_before_a_move_changes_nothing_and_is_none(holding: Holding) -> None:
    """Messages returned meanwhile are not done by it; those delivered since are."""
    give(holding, 0, 10)
    holding.moves()
    holding.release([])
    holding.moved(4)
    assert holding.ranges((0, 50)) == ((0, 50),)
    assert holding.acknowledge(((0, 10),)) == ((), 0)
    give(holding, 4, 8)
    assert holding.acknowledge(((0, 10),)) == (((4, 8),), 4)


def test_a_move_that_failed_changes_nothing(holding: Holding) -> None:
    """Acknowledgments count as before the seek."""
    give(holding, 0, 10)
    holding.moves()
    assert holding.acknowledge(((0, 2),)) == (((0, 2),), 2)  # it is still in flight
    holding.release([])
    holding.stayed()
    assert holding.acknowledge(((2, 10),)) == (((2, 10),), 0)


def test_what_was_delivered_since_a_move_is_bounded(holding: Holding) -> None:
    """What is forgotten because of the limit can be acknowledged as long as it is in flight."""
    holding.moved(0)
    for number in range(SINCE_RANGES_MAX + 2):
        give(holding, 2 * number, 2 * number + 1)
    assert holding.acknowledge(((0, 1),)) == (((0, 1),), 1)
    assert holding.acknowledge(((0, 1),)) == ((), 0)


# ---- what comes back ---------------------------------------------------------------------------------------------


def test_what_was_never_sent_was_no_attempt(holding: Holding) -> None:
    """Messages that waited in the client are told apart from those its program had."""
    holding.take(3, 100.0, alone=False)
    give(holding, 0, 5)
    unsent = piece((5, 7), attempt=2)
    holding.deliver(unsent)
    assert holding.release([unsent]) == ([Held(0, 3, 1)], [Held(3, 5, 1), Held(5, 7, 1)])
    assert holding.in_flight.messages == 0


@pytest.mark.parametrize(
    ("told", "failed", "not_failed"),
    [
        (2, [Held(0, 2, 1)], [Held(2, 5, 1)]),
        (0, [Held(0, 1, 1)], [Held(1, 5, 1)]),  # its report of the first may have been lost with it
        (5, [Held(0, 5, 1)], []),
    ],
)
def test_who_is_lost_is_blamed_for_what_it_had_in_hand(
    holding: Holding, told: int, failed: list[Held], not_failed: list[Held]
) -> None:
    """Or for the message that it was about to take."""
    holding.take(told, 100.0, alone=False)
    give(holding, 0, 5)
    assert holding.blame(*holding.release([])) == (failed, not_failed)


def test_who_holds_nothing_is_blamed_for_nothing(holding: Holding) -> None:
    """A consumer that dies while its program has nothing fails no message."""
    assert holding.blame(*holding.release([])) == ([], [])


def test_a_program_that_failed_gives_back_all_it_had(holding: Holding) -> None:
    """The program does not know which failed; it never had those that wait in the client."""
    holding.take(4, 100.0, alone=False)
    give(holding, 0, 6)
    assert holding.refuse(((0, 1),), taken_too=False) == [Held(0, 1, 1)]
    assert holding.refuse((), taken_too=True) == [Held(1, 4, 1)]
    assert holding.recall() == [Held(4, 6, 1)]
    assert (holding.recall(), holding.waits, holding.in_flight.messages) == ([], False, 0)


def test_who_holds_too_much_in_pieces_gets_nothing_until_half_of_it_is_done(holding: Holding) -> None:
    """The subscription is told when that begins and when it ends, once each."""
    said = [holding.deliver(piece((2 * n, 2 * n + 1))) for n in range(IN_FLIGHT_RANGES_MAX + 2)]
    assert said == [False] * IN_FLIGHT_RANGES_MAX + [True, False]
    assert not holding.relieved()
    holding.acknowledge(((0, IN_FLIGHT_RANGES_MAX),))
    assert not holding.relieved()
    holding.acknowledge(((0, IN_FLIGHT_RANGES_MAX + 20),))
    assert holding.relieved()
    assert not holding.relieved()
