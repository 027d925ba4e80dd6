"""Tests of a topic's table of producers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.storage.producers import (
    HELD_MS,
    PRODUCER_AGE_MS,
    RECENT_BATCHES_MAX,
    Duplicate,
    Fresh,
    Gap,
    Overlap,
    ProducerTable,
)


def test_each_batch_is_taken_once_and_in_order() -> None:
    """The next sequence is fresh, an earlier one a duplicate with its offset, a later one a gap."""
    table = ProducerTable()
    assert table.check(1, 0, 3) == Fresh()
    table.advance(1, 0, 3, 100, 1)
    assert table.check(1, 0, 3) == Duplicate(100)
    assert table.check(1, 3, 1) == Fresh()
    assert table.check(1, 4, 1) == Gap(3)
    assert table.check(1, 2, 2) == Overlap(3)
    assert table.check(2, 9, 1) == Fresh()


def test_checking_changes_nothing() -> None:
    """A verdict can be asked for any number of times; only `advance` changes the table."""
    table = ProducerTable()
    table.check(1, 5, 1)
    assert table.next_sequence(1) is None
    assert len(table) == 0


def test_offsets_of_long_gone_batches_are_forgotten_but_they_stay_duplicates() -> None:
    """Memory per producer is bounded; older batches are still recognised as duplicates."""
    table = ProducerTable()
    for sequence in range(RECENT_BATCHES_MAX + 10):
        table.advance(1, sequence, 1, sequence, 1)
    assert table.check(1, 9, 1) == Duplicate(None)
    assert table.check(1, 10, 1) == Duplicate(10)


def test_producer_zero_is_nobody() -> None:
    """Nothing is remembered for id 0."""
    table = ProducerTable()
    table.advance(0, 0, 1, 0, 1)
    table.expect(0, 5)
    assert table.check(0, 0, 1) == Fresh()
    assert len(table) == 0


@pytest.mark.parametrize(
    ("sequence", "count"), [(10, 5), (12, 3), (15, 5), (8, 4), (5, 15), (0, 20), (18, 1), (9, 2)]
)
def test_a_resend_that_is_cut_differently_is_told_from_a_duplicate(sequence: int, count: int) -> None:
    """Not only of the last batch: of any that is remembered, whichever part of it is sent again."""
    table = ProducerTable()
    table.expect(1, 0)
    table.advance(1, 0, 10, 100, 1)
    table.advance(1, 10, 10, 110, 1)
    table.advance(1, 20, 10, 120, 1)
    assert table.check(1, sequence, count) == Overlap(30)
    assert table.check(1, 10, 10) == Duplicate(110)
    assert table.check(1, 0, 10) == Duplicate(100)


def test_what_is_older_than_all_that_is_remembered_is_a_duplicate() -> None:
    """It is stored, though how it was cut is not known; one that reaches into remembered batches is cut differently."""
    table = ProducerTable()
    for number in range(RECENT_BATCHES_MAX + 2):
        table.advance(1, 10 * number, 10, 10 * number, 1)
    assert table.check(1, 0, 10) == Duplicate(None)
    assert table.check(1, 3, 4) == Duplicate(None)
    assert table.check(1, 10, 20) == Overlap(10 * (RECENT_BATCHES_MAX + 2))
    assert table.check(1, 20, 10) == Duplicate(20)


def test_what_was_given_up_and_never_stored_overlaps_nothing() -> None:
    """A producer continued after batches that were refused for good: these are not in the table."""
    table = ProducerTable()
    table.advance(1, 0, 10, 0, 1)
    table.expect(1, 30)
    table.advance(1, 30, 10, 10, 1)
    assert table.check(1, 12, 5) == Duplicate(None)
    assert table.check(1, 0, 10) == Duplicate(0)


def test_opening_raises_what_is_expected_and_never_lowers_it() -> None:
    """A producer that gave up on batches continues after them; if it opens with a lower one, it gets duplicates."""
    table = ProducerTable()
    table.expect(1, 5)
    assert table.check(1, 6, 1) == Gap(5)
    table.expect(1, 8)
    assert table.check(1, 8, 1) == Fresh()
    table.expect(1, 2)
    assert table.next_sequence(1) == 8
    table.forget(1)
    assert table.next_sequence(1) is None


def test_the_producer_not_heard_of_for_longest_is_forgotten_first() -> None:
    """The number of producers is bounded."""
    table = ProducerTable(producers_max=2)
    table.advance(1, 0, 1, 0, 1)
    table.advance(2, 0, 1, 1, 1)
    table.advance(1, 1, 1, 2, 1)
    table.advance(3, 0, 1, 3, 1)
    assert [table.next_sequence(producer) for producer in (1, 2, 3)] == [2, None, 1]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), max_size=40))
def test_a_snapshot_knows_what_comes_next_and_the_last_batch(batches: list[tuple[int, int]]) -> None:
    """Decoding a snapshot gives the same verdict for the next and the last batch of each producer."""
    table = ProducerTable()
    offset = 0
    last = {}
    for producer, count in batches:
        sequence = table.next_sequence(producer) or 0
        table.advance(producer, sequence, count, offset, 7)
        last[producer] = (sequence, count, offset)
        offset += count
    again = ProducerTable.decode(table.encode())
    assert again.encode() == table.encode()
    for producer, (sequence, count, first) in last.items():
        assert again.next_sequence(producer) == sequence + count
        assert again.check(producer, sequence, count) == Duplicate(first)


def test_a_snapshot_of_a_raised_expectation_keeps_it() -> None:
    """The snapshot has the raised sequence too."""
    table = ProducerTable()
    table.advance(1, 0, 1, 0, 1)
    table.expect(1, 10)
    assert ProducerTable.decode(table.encode()).next_sequence(1) == 10


def test_bytes_that_are_no_snapshot_are_refused() -> None:
    """A snapshot of the wrong length is refused as a whole."""
    snapshot = ProducerTable().encode()
    with pytest.raises(ValueError, match="cut short"):
        ProducerTable.decode(snapshot[:-1])
    with pytest.raises(ValueError, match="entries"):
        ProducerTable.decode(snapshot + b"x")


def test_a_producer_not_heard_of_for_a_week_is_forgotten_when_a_segment_begins() -> None:
    """The time of batches counts, expiry comes with a snapshot, and spares a producer that has just opened."""
    table = ProducerTable()
    table.advance(1, 0, 1, 0, 1000)
    table.advance(2, 0, 1, 1, 1000 + PRODUCER_AGE_MS)
    table.expect(3, 17)
    table.encode()
    assert len(table) == 3
    table.advance(4, 0, 1, 2, 1001 + PRODUCER_AGE_MS)
    assert table.next_sequence(1) == 1
    again = ProducerTable.decode(table.encode())
    assert [again.next_sequence(producer) for producer in (1, 2, 3, 4)] == [None, 1, 17, 1]
    assert table.next_sequence(1) is None


def test_a_producer_that_opened_before_there_was_any_batch_is_not_a_week_old() -> None:
    """The end of the first segment does not remove it: any of its batches would then be taken for the next one."""
    table = ProducerTable()
    table.expect(1, 0)
    table.advance(2, 0, 1, 0, PRODUCER_AGE_MS * 3)
    table.encode()
    assert table.check(1, 1, 1) == Gap(0)


def test_behind_a_refused_batch_nothing_is_fresh() -> None:
    """Also for a producer that is no longer known."""
    table = ProducerTable()
    assert table.check(7, 5, 1) == Fresh()
    table.hold(7, 5)
    assert table.check(7, 6, 1) == Gap(5)
    assert table.check(7, 5, 1) == Fresh()
    table.hold(7, 9)
    assert table.check(7, 6, 1) == Gap(5)


def live(producers_max: int, *connected: int) -> ProducerTable:
    """Return a table of a topic in use, with these producers connected."""
    table = ProducerTable(producers_max)
    table.connected = set(connected)
    return table


def test_who_is_connected_is_never_forgotten() -> None:
    """However many others come, and however long it is idle: its resend is still a duplicate."""
    table = live(10, 1)
    table.advance(1, 0, 1, 0, 1000)
    for producer in range(2, 5000):
        table.advance(producer, 0, 1, producer, 1000 + PRODUCER_AGE_MS)
        if producer % 1000 == 0:
            table.encode()
    assert len(table) == 10
    assert table.check(1, 0, 1) == Duplicate(0)


def test_who_stored_something_not_long_ago_and_did_not_close_is_not_forgotten() -> None:
    """It may come back: others are refused meanwhile, and accepted later."""
    table = live(3)
    table.advance(1, 0, 1, 0, 1000)
    table.advance(2, 0, 1, 1, 1000)
    table.advance(3, 0, 1, 2, 2000)
    assert table.has_room(3, 1000 + HELD_MS)
    assert not table.has_room(4, 1000 + HELD_MS)
    table.close(3)
    assert table.has_room(4, 1000 + HELD_MS)
    table.advance(4, 0, 1, 3, 2000)
    assert [table.next_sequence(producer) for producer in (1, 2, 3)] == [1, 1, None]
    assert not table.has_room(5, 1000 + HELD_MS)
    assert table.has_room(5, 1001 + HELD_MS)


def test_who_closed_is_forgotten_first_and_one_that_stored_nothing_is_no_hindrance() -> None:
    """Programs that publish once and close push no other out, however many they are."""
    table = live(5)
    table.advance(1, 0, 1, 0, 1000)
    for producer in range(10, 3000):
        assert table.has_room(producer, 1000)
        table.expect(producer, 0)
        if producer % 2:
            table.advance(producer, 0, 1, producer, 1000)
            table.close(producer)
    assert table.check(1, 0, 1) == Duplicate(0)
    again = ProducerTable.decode(table.encode(), 5)
    for producer in range(4):  # in the snapshot too, closed ones are removed first
        again.advance(5000 + producer, 0, 1, 0, 1000)
    assert again.check(1, 0, 1) == Duplicate(0)


def test_a_producer_that_comes_back_is_not_taken_for_closed() -> None:
    """A named one that opens again after closing counts as open."""
    table = live(2)
    table.advance(1, 0, 1, 0, 1000)
    table.close(1)
    table.expect(1, 1)
    table.advance(1, 1, 1, 1, 1000)
    table.advance(2, 0, 1, 2, 1000)
    assert not table.has_room(3, 1000)
