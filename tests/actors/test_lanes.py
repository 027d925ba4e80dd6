"""Tests of lanes: sequences that the state machine of test_lanes_model.py generates too rarely."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from zlib import crc32

import pytest

from ister.actors import lanes as module
from ister.actors.lanes import Entry, Lanes
from ister.actors.ledger import Held
from ister.actors.selection import Member
from ister.actors.slots import SLOTS


def member(number: int, messages: int = 1000) -> Member:
    """Return a consumer with credit."""
    return Member(number, 0, number, messages, 1 << 20)


def taken(lanes: Lanes, by: Member, most: int = 1000) -> list[int]:
    """Deliver to a consumer, and return the offsets."""
    found: list[int] = []
    while len(found) < most and (entry := lanes.next(by)) is not None:
        lanes.take(by, entry)
        found.append(entry.offset)
    return found


def keys_of(lanes: Lanes, owner: Member) -> Iterator[bytes]:
    """Yield keys that belong to a consumer."""
    return (
        key for key in map(b"%d".__mod__, range(100_000)) if lanes._slots[crc32(key) & (SLOTS - 1)] is owner
    )


def arrive(lanes: Lanes, keys: Iterable[bytes]) -> None:
    """Let messages arrive, from offset 0 on."""
    for offset, key in enumerate(keys):
        lanes.arrive(offset, key)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return lanes with room for four messages of a key, and eight in all that wait for consumers without credit."""
    monkeypatch.setattr(module, "LANE_MAX", 4)
    monkeypatch.setattr(module, "WAITING_MAX", 8)
    monkeypatch.setattr(module, "WAITING_HARD_MAX", 16)


def test_a_key_that_was_to_go_over_stays_when_the_newcomer_leaves_first() -> None:
    """What is in flight at the old consumer delays the key only as long as a new consumer waits for it."""
    lanes, old, new = Lanes(), member(1), member(2)
    lanes.attach(old)
    arrive(lanes, (b"%d" % (number % 100) for number in range(200)))
    assert len(taken(lanes, old, 100)) == 100  # one of each key
    lanes.attach(new)
    assert lanes.next(new) is None
    stayed = len(taken(lanes, old))
    assert 0 < stayed < 100
    lanes.detach(new)
    assert len(taken(lanes, old)) == 100 - stayed


def test_a_key_goes_over_once_nothing_of_it_is_in_flight() -> None:
    """Not at the first of two acknowledgments but at the second, and then in order."""
    lanes, old, new = Lanes(), member(1), member(2)
    lanes.attach(old)
    lanes.attach(new)
    key = next(keys_of(lanes, new))
    lanes.detach(new)
    arrive(lanes, [key] * 4)
    assert taken(lanes, old, 2) == [0, 1]
    lanes.attach(new)
    lanes.settle(0, 1)
    assert lanes.next(old) is lanes.next(new) is None
    lanes.give_back(Held(1, 2, 2))
    assert lanes.next(old) is None
    assert taken(lanes, new) == [1, 2, 3]


def test_a_key_waits_for_the_longest_back_off_of_its_messages() -> None:
    """Two messages come back, for one second and for three: nothing is delivered before three have passed."""
    for delays in ((1.0, 3.0), (3.0, 1.0)):
        lanes, one = Lanes(), member(1)
        lanes.attach(one)
        arrive(lanes, [b"k"] * 3)
        assert taken(lanes, one, 2) == [0, 1]
        for offset, until_s in enumerate(delays):
            lanes.give_back(Held(offset, offset + 1, 2, 1), until_s)
        for now_s in (0.5, 1.0, 2.9):
            lanes.wake(now_s)
            assert lanes.next(one) is None
        assert lanes.next_wake_s() == 3.0
        lanes.wake(3.0)
        assert lanes.next(one) == Entry(0, 2, 1)
        assert taken(lanes, one) == [0, 1, 2]


def test_what_was_acknowledged_meanwhile_does_not_come_back() -> None:
    """A range that comes back may have holes."""
    lanes, one = Lanes(), member(1)
    lanes.attach(one)
    arrive(lanes, [b"a", b"", b"b", b"", b"c"])
    assert taken(lanes, one) == [0, 1, 2, 3, 4]
    lanes.settle(1, 3)
    lanes.give_back(Held(0, 5, 2))
    assert sorted(taken(lanes, one)) == [0, 3, 4]


def test_a_message_without_a_key_is_not_starved_by_keys() -> None:
    """It goes to any consumer with credit, before newer messages."""
    lanes, one, two = Lanes(), member(1), member(2)
    lanes.attach(one)
    lanes.attach(two)
    arrive(lanes, [*[next(keys_of(lanes, one))] * 3, b"", *[next(keys_of(lanes, one))] * 3])
    assert taken(lanes, one) == list(range(7))
    lanes.give_back(Held(3, 4, 2))
    assert taken(lanes, two) == [3]


@pytest.mark.usefixtures("small")
def test_a_pass_over_the_log_leaves_alone_what_left_messages_before_it() -> None:
    """If a consumer gets credit during a pass that began for another, a new pass must begin before its messages."""
    lanes, slow, fast = Lanes(), member(1, messages=0), member(2)
    lanes.attach(slow)
    lanes.attach(fast)
    s, f = next(keys_of(lanes, slow)), next(keys_of(lanes, fast))
    log = [s] * 8 + [f] * 8 + [s, f, s]
    arrive(lanes, log)
    assert taken(lanes, fast) == [8, 9, 10, 11]
    lanes.settle(8, 12)
    assert lanes.refill_from() == 12
    slow.messages = 1000
    assert taken(lanes, slow) == [0, 1, 2, 3]
    for offset in range(12, len(log)):
        lanes.refill(offset, log[offset])
    lanes.refilled(len(log), len(log))
    assert lanes.next(slow) is None
    assert lanes.refill_from() == 4


@pytest.mark.usefixtures("small")
def test_a_pass_over_the_log_takes_nothing_for_a_consumer_that_went_out_of_credit() -> None:
    """The next pass begins at the message that was not taken."""
    lanes, one = Lanes(), member(1)
    lanes.attach(one)
    arrive(lanes, [b"k"] * 8)
    assert taken(lanes, one) == [0, 1, 2, 3]
    assert lanes.refill_from() == 4
    lanes.refill(4, b"k")
    lanes.refilled(5, 8)
    one.messages = 0
    assert lanes.refill_from() == 5
    lanes.refill(5, b"k")
    assert lanes.waiting == 1
    lanes.refilled(6, 8)
    assert lanes.refill_from() is None
    one.messages = 1000
    assert lanes.refill_from() == 5


@pytest.mark.usefixtures("small")
def test_a_pass_over_the_log_ends_where_there_is_room_for_nothing() -> None:
    """The log of a hot key is not read in full each time its consumer has taken a little."""
    lanes, one = Lanes(), member(1)
    lanes.attach(one)
    arrive(lanes, [b"k"] * 1000)
    looked_at, done = 0, 0
    while done < 1000:
        done += len(taken(lanes, one))
        lanes.settle(0, done)
        while lanes.waiting < module.LANE_MAX and (at := lanes.refill_from()) is not None:
            for offset in range(at, min(at + 10, 1000)):
                lanes.refill(offset, b"k")
            looked_at += 10
            lanes.refilled(min(at + 10, 1000), 1000)
    assert looked_at <= 3000


def test_most_keys_stay_where_they_are() -> None:
    """When one of ten consumers comes or goes, a tenth of the slots moves."""
    lanes = Lanes()
    members = [member(number) for number in range(10)]
    for each in members[:9]:
        lanes.attach(each)
    for change, who in ((lanes.attach, members[9]), (lanes.detach, members[0])):
        before = list(lanes._slots)
        change(who)
        moved = sum(a is not b for a, b in zip(before, lanes._slots, strict=True))
        assert moved <= SLOTS // 9 + 1
    assert {len(slots) * 9 // SLOTS for slots in lanes._table.of.values()} <= {0, 1}


@pytest.mark.usefixtures("small")
def test_what_is_put_off_without_a_key_takes_room() -> None:
    """If a consumer returns everything for later, the broker stops reading the log."""
    lanes, one = Lanes(), member(1)
    lanes.attach(one)
    for offset in range(module.WAITING_HARD_MAX):
        assert not lanes.full
        lanes.arrive(offset, b"")
        assert taken(lanes, one) == [offset]
        lanes.give_back(Held(offset, offset + 1, 2), 60.0)
    assert lanes.full
    lanes.wake(60.0)
    assert len(taken(lanes, one, module.WAITING_HARD_MAX)) == module.WAITING_HARD_MAX
    assert not lanes.full


def test_ten_consumers_of_one_key_in_turn_keep_its_order() -> None:
    """However often the key moves, each message is delivered once, in order."""
    lanes = Lanes()
    arrive(lanes, [b"k"] * 100)
    order: list[int] = []
    for number in range(10):
        one = member(number)
        lanes.attach(one)
        order += taken(lanes, one, 10)
        lanes.detach(one)
        lanes.settle(0, 10 * number + 10)
    assert order == list(range(100))


def test_a_key_that_is_held_goes_on_when_what_held_it_is_done() -> None:
    """The key is held for one of two messages in flight: only the end of that one lets it go on."""
    for back in (False, True):
        lanes, one = Lanes(), member(1)
        lanes.attach(one)
        arrive(lanes, [b"k"] * 4)
        assert taken(lanes, one, 2) == [0, 1]
        lanes.hold(1, 2)
        assert lanes.next(one) is None
        lanes.settle(0, 1)
        assert lanes.next(one) is None
        if back:
            lanes.give_back(Held(1, 2, 2))
        else:
            lanes.settle(1, 2)
        assert taken(lanes, one) == ([1, 2, 3] if back else [2, 3])


def test_keys_that_hand_out_nothing_do_not_fill_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hot keys back off, there is room for other keys."""
    monkeypatch.setattr("ister.actors.lanes.WAITING_MAX", 400)
    monkeypatch.setattr("ister.actors.lanes.WAITING_HARD_MAX", 800)
    monkeypatch.setattr("ister.actors.lanes.LANE_MAX", 100)
    monkeypatch.setattr("ister.actors.lanes.LANE_MIN", 5)
    lanes, mine = Lanes(), member(1)
    lanes.attach(mine)
    offset = 0
    for number in range(50):
        lanes.arrive(offset, b"hot-%d" % number)
        entry = lanes.next(mine)
        assert entry is not None
        lanes.take(mine, entry)
        lanes.give_back(Held(offset, offset + 1, 2, 1), until_s=99.0)
        offset += 1
    for _ in range(100):
        for number in range(50):
            lanes.arrive(offset, b"hot-%d" % number)
            offset += 1
    assert not lanes.full
    lanes.arrive(offset, b"cold")
    assert lanes.next(mine) == Entry(offset, 1, 0)
