"""Tests of the ledgers of messages in flight and waiting, against models with one entry per message."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.actors.ledger import Held, InFlight, Redelivery


def flat(held: list[Held]) -> dict[int, int]:
    """Return the attempt of each offset; the parts must be in order, not empty and disjoint."""
    found: dict[int, int] = {}
    end = -1
    for part in held:
        assert end <= part.first < part.end
        end = part.end
        found.update(dict.fromkeys(range(part.first, part.end), part.attempt))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_what_is_in_flight_is_what_a_map_of_messages_would_say(seed: int) -> None:
    """Deliver, settle, expire and release in any order."""
    random = Random(seed)
    ledger = InFlight()
    model: dict[int, tuple[int, float]] = {}  # offset -> attempt, deadline
    now_s, end = 0.0, 0

    def take(offsets: Iterable[int]) -> dict[int, int]:
        return {offset: model.pop(offset)[0] for offset in sorted(offsets) if offset in model}

    for _ in range(400):
        what = random.random()
        if what < 0.45:
            first = end if random.random() < 0.7 else random.randrange(end + 1)
            free = next((n for n in range(first, first + 8) if n in model), first + 8)
            count = random.randint(0, free - first)
            if count:
                attempt, deadline_s = random.randint(1, 3), now_s + random.choice([2, 2, 2, 5])
                ledger.deliver(first, first + count, attempt, deadline_s)
                model.update(dict.fromkeys(range(first, first + count), (attempt, deadline_s)))
                end = max(end, first + count)
        elif what < 0.85:
            first = random.choice(list(model) or [0]) - random.choice([0, 0, 1, 3])
            last = first + random.choice([1, 1, 2, 5, 30])
            assert flat(ledger.settle(max(0, first), last)) == take(range(max(0, first), last))
        elif what < 0.99:
            now_s += random.choice([0, 0.5, 1, 3])
            due = [offset for offset, (_, deadline_s) in model.items() if deadline_s <= now_s]
            expired = ledger.expire(now_s)
            assert flat(sorted(expired)) == take(due)
            assert ledger.next_deadline_s() == min((each for _, each in model.values()), default=None)
        else:
            assert flat(ledger.release()) == take(list(model))
        assert ledger.messages == len(model)
        next_s = ledger.next_deadline_s()
        assert (next_s is None) == (not model)
        assert next_s is None or next_s <= min(each for _, each in model.values())
        assert len(ledger._queue) <= 2 * len(ledger) + 65  # bounded, however many were settled


@pytest.mark.parametrize("seed", range(40))
def test_what_waits_is_what_a_map_of_messages_would_say(seed: int) -> None:
    """Ranges come back, with or without a delay, and are taken again: the lowest that is due first, up to a count."""
    random = Random(seed)
    redelivery = Redelivery()
    model: dict[int, tuple[float, int]] = {}  # offset -> ready, attempt
    now_s = 0.0
    for _ in range(400):
        what = random.random()
        if what < 0.5:
            first, count = random.randrange(60), random.randint(1, 8)
            if not any(offset in model for offset in range(first, first + count)):
                attempt, ready_s = random.randint(1, 3), now_s + random.choice([0, 0, 1, 4])
                redelivery.add(Held(first, first + count, attempt), ready_s, now_s)
                model.update(dict.fromkeys(range(first, first + count), (ready_s, attempt)))
        elif what < 0.6:
            now_s += random.choice([0.5, 1, 2])
        elif what < 0.65 and (ready := redelivery.next_ready_s()) is not None:
            now_s = max(now_s, ready)
            assert any(ready_s <= now_s for ready_s, _ in model.values())
        else:
            due = {offset: attempt for offset, (ready_s, attempt) in model.items() if ready_s <= now_s}
            most = random.randint(1, 8)
            held = redelivery.take(now_s, most)
            if held is None:
                assert not due
                continue
            assert held.first == min(due)
            assert 0 < held.end - held.first <= most
            for offset in range(held.first, held.end):
                assert due[offset] == held.attempt
                del model[offset]
        assert redelivery.messages == len(model)
        assert bool(redelivery) == bool(model)


@given(st.permutations(list(range(12))))
def test_what_came_back_in_any_order_is_taken_in_order(order: list[int]) -> None:
    """The lowest due offset is next."""
    redelivery = Redelivery()
    for number in order:
        redelivery.add(Held(10 * number, 10 * number + 10, 2), 0.0, 0.0)
    taken: list[int] = []
    while (held := redelivery.take(0.0, 7)) is not None:
        taken += range(held.first, held.end)
    assert taken == list(range(120))


def test_a_million_unacknowledged_messages_cost_kilobytes() -> None:
    """The ledger has an entry per delivery, not per message."""
    ledger = InFlight()
    for number in range(1000):
        ledger.deliver(1000 * number, 1000 * number + 1000, 1, float(number))
    assert ledger.messages == 1_000_000
    assert len(ledger) == 1000
    ledger.settle(0, 999_999)
    assert (ledger.messages, len(ledger)) == (1, 1)


def test_acknowledging_one_by_one_costs_no_memory() -> None:
    """Neither many small deliveries nor a large one leave entries behind when acknowledged message by message."""
    ledger = InFlight()
    for number in range(2000):
        ledger.deliver(number, number + 1, 1, 1.0)
        ledger.settle(number, number + 1)
    assert len(ledger._queue) < 100
    ledger.deliver(5000, 9000, 1, 1.0)
    for number in range(5000, 8999):
        ledger.settle(number, number + 1)
        assert len(ledger._queue) < 100
    assert ledger.expire(1.0) == [Held(8999, 9000, 1)]


def test_what_expires_together_leaves_no_deadline_behind() -> None:
    """Also if the queue of deadlines is rebuilt during it: the next deadline is that of what is left."""
    ledger = InFlight()
    for number in range(210):
        ledger.deliver(number, number + 1, 1, 1.0 if number < 100 else 5.0)
    ledger.settle(110, 210)
    assert len(ledger.expire(1.0)) == 100
    assert (ledger.messages, ledger.next_deadline_s()) == (10, 5.0)


def test_an_empty_range_settles_nothing() -> None:
    """It also does not split a range in flight."""
    ledger = InFlight()
    ledger.deliver(0, 10, 1, 1.0)
    assert ledger.settle(5, 5) == []
    assert (len(ledger), ledger.messages) == (1, 10)
