"""Tests of messages that go to their consumer together, with the model of the lanes: the same log, the same order.

HYPOTHESIS_PROFILE=long runs it for minutes.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from ister.actors import grouped_lanes as module
from ister.actors import lanes
from ister.actors.grouped_lanes import GroupedLanes
from ister.actors.lanes import slot_of
from ister.actors.ledger import Held
from ister.actors.selection import Member
from tests.actors import test_lanes_model as model
from tests.actors.test_lanes_model import LONG, LanesMachine

KEYS = [b"%d" % number for number in range(100)]


class GroupedMachine(LanesMachine):
    """The same, with messages that arrive together; what is handed out of them is checked message by message."""

    lanes: GroupedLanes

    def __init__(self) -> None:
        super().__init__(GroupedLanes)
        self.flies = False
        self.flights: list[list[int]] = []
        self.patch.setattr(module, "GROUPED_MAX", 12)
        self.patch.setattr(module, "WINDOW_MIN", 2)
        self.patch.setattr(module, "HOT", 2)
        for name, value in (("WAITING_MAX", 40), ("WAITING_HARD_MAX", 60)):  # room for groups beside lanes
            self.patch.setattr(model, name, value)
            self.patch.setattr(lanes, name, value)
        self.patch.setattr(module, "KEYS_MAX", 5)

    @rule(messages=st.integers(0, 12), sparse=st.sampled_from([True, True, True, False]))
    def come(self, messages: int, sparse: bool = True) -> None:
        self.ages += 1
        member = self.members[self.ages] = Member(self.ages, 0, self.ages, messages, 1 << 20, sparse=sparse)
        self.lanes.attach(member)
        self.lanes.called[member] = None

    @rule(count=st.integers(1, 20))
    def read_on(self, count: int) -> None:
        mine = self.lanes
        first, end = self.read, min(len(self.log), self.read + count)
        if first == end or mine.full:
            return
        self.read = end
        parts: list[tuple[int, int]] = []
        for offset in range(first, end):
            message = self.log[offset]
            if message.delayed:
                message.place = "delayed"
            elif not message.acknowledged:
                message.place = "waiting"
                parts.append((offset, offset + 1))
        mine.arrive_together(first, [message.key for message in self.log[first:end]], parts)
        self.note_what_was_left()

    def note_what_was_left(self) -> None:
        """Groups that turn into lanes may find no room there: what waits nowhere was left in the log."""
        mine = self.lanes
        here = {entry.offset for lane in mine._lanes.values() for entry in lane.waiting}
        here |= {entry.offset for entry in mine._free}
        for waiting in mine._waiting_groups.values():
            here |= {group.first + index for group in waiting.groups for index in group.indices}
        for offset in self.at("waiting"):
            if offset not in here:
                message = self.log[offset]
                assert mine._over[message.slot] <= offset
                message.place = "gone" if message.acknowledged else "left"

    def deliver_one(self, member: Member) -> bool:
        mine = self.lanes
        group = mine.next_group(member)
        self.note_what_was_left()
        if group is None:
            return super().deliver_one(member)
        assert group is mine.following_group(member)
        offsets = [group.first + index for index in group.indices[: max(1, member.messages // 2)]]
        keys = group.keys[: len(offsets)]
        for offset in offsets:
            message = self.log[offset]
            assert message.place == "waiting"
            assert not message.acknowledged
            assert self.heads(member)[message.key] == offset
            self.check_order(offset)
            message.place, message.holder, message.held = "flight", member.key, False
            member.messages -= 1
        if self.flies:
            mine.take_group(member, len(offsets), ())
            mine.fly(offsets, keys)
            self.flights = [*self.flights[-3:], offsets]
        else:
            mine.take_group(member, len(offsets), offsets)
        self.flies = not self.flies
        return True

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 3))
    def settle_flight(self, which: int) -> None:
        """Settle a whole delivery: it is known as such until something happened to one of its messages."""
        offsets = self.flights[which % len(self.flights)]
        if self.lanes.settle_flight(offsets):
            for offset in offsets:
                assert self.log[offset].place == "flight"
                self.log[offset].acknowledged, self.log[offset].place = True, "gone"
            assert not self.lanes.settle_flight(offsets)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 3))
    def settle_its_ranges(self, which: int) -> None:
        """Settle the messages of a delivery, which may have come back meanwhile, by their ranges."""
        offsets = self.flights[which % len(self.flights)]
        self.lanes.settle_all([(offset, offset + 1) for offset in offsets])
        for message in [self.log[offset] for offset in offsets]:
            message.acknowledged = True
            if message.place not in ("waiting", "asleep"):
                message.place = "gone"
        self.forget_naps()

    @rule(count=st.integers(2, 3), messages=st.integers(0, 12))
    def come_together(self, count: int, messages: int) -> None:
        members = []
        for _ in range(count):
            self.ages += 1
            member = Member(self.ages, 0, self.ages, messages, 1 << 20, sparse=True)
            self.members[self.ages] = member
            members.append(member)
        self.lanes.attach_all(members)
        self.lanes.called.update(dict.fromkeys(members))

    def turn(self, member: Member, key: bytes) -> None:
        """Groups go before the next turn of a lane."""

    @invariant()
    def counts_agree(self) -> None:
        self.note_what_was_left()
        mine = self.lanes
        assert mine.waiting == len(self.at("waiting"))
        assert mine._grouped == sum(waiting.count for waiting in mine._waiting_groups.values())
        flying = self.at("flight")
        assert mine.in_flight == len(flying)
        assert all(mine.is_in_flight(offset) for offset in flying)
        assert mine.asleep == len(self.at("asleep"))
        assert {self.log[offset].slot for offset in self.at("left")} <= set(mine._over)
        for member, waiting in mine._waiting_groups.items():
            assert self.members[member.key] is member
            assert waiting.count == sum(len(group.indices) for group in waiting.groups) > 0
            assert not member.ready or member in mine.called, "nobody would look"
            keys = {key for group in waiting.groups for key in group.keys}
            assert all(mine._slots[slot_of(key)] is member for key in keys)
            assert not any(mine._lanes[key].waiting for key in keys & mine._lanes.keys())
        flying_of = dict(mine._flying)
        for offsets, its_keys in mine._flights.values():
            flying_of.update(zip(offsets, its_keys, strict=True))
        for offset, key in flying_of.items():
            owner = mine._slots[slot_of(key)]
            assert owner is not None
            assert owner.key == self.log[offset].holder

    @invariant()
    def what_stands_still_has_a_reason(self) -> None:
        can = {key for member in self.members.values() for key in self.heads(member)}
        cannot = {self.log[offset].key for offset in self.at("waiting")} - can - {b""}
        assert {lane.key for lane in self.lanes.blocked()} == cannot
        for member in self.members.values():
            assert self.lanes.has_work(member) == bool(self.heads(member))


GroupedMachine.TestCase.settings = settings(max_examples=2000 if LONG else 40, stateful_step_count=40)
test_messages_that_go_together_keep_what_lanes_promise = GroupedMachine.TestCase


def taken(lanes: GroupedLanes, member: Member) -> list[int]:
    """Take all groups of a consumer; return the offsets."""
    found: list[int] = []
    while (group := lanes.following_group(member)) is not None:
        offsets = [group.first + index for index in group.indices]
        lanes.take_group(member, len(offsets), offsets)
        found += offsets
    return found


def grouped(*members: Member) -> GroupedLanes:
    """Return lanes with these consumers, and messages of a hundred keys that wait."""
    lanes = GroupedLanes()
    for member in members:
        lanes.attach(member)
    lanes.arrive_together(0, KEYS, [(0, len(KEYS))])
    return lanes


def test_messages_that_arrive_together_go_together() -> None:
    """Each consumer has those of its keys in one group, in the order of the log; no lane is made for any of them."""
    one, two = (Member(age, 0, age, 1000, 1 << 20, sparse=True) for age in (1, 2))
    lanes = grouped(one, two)
    assert not lanes._lanes
    first, second = taken(lanes, one), taken(lanes, two)
    assert sorted(first + second) == list(range(100))
    assert (first, second) == (sorted(first), sorted(second))
    assert {lanes._slots[slot_of(KEYS[offset])] for offset in first} == {one}
    lanes.settle_all([(offset, offset + 1) for offset in range(100)])
    assert (lanes.in_flight, lanes.waiting) == (0, 0)


def test_with_thousands_of_consumers_nothing_waits_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one that comes costs does not grow with what waits for the others."""
    monkeypatch.setattr(module, "CONSUMERS_MAX", 3)
    members = [Member(age, 0, age, 1000, 1 << 20, sparse=True) for age in range(1, 5)]
    lanes = grouped(*members[:3])
    assert lanes._waiting_groups
    lanes.attach(members[3])
    lanes.arrive_together(100, KEYS, [(100, 200)])
    assert not lanes._waiting_groups
    assert lanes.waiting == 200


def test_what_comes_back_goes_before_what_waits_in_a_group() -> None:
    """A message that is returned is delivered before later ones of its key."""
    one = Member(1, 0, 1, 1000, 1 << 20, sparse=True)
    lanes = grouped(one)
    taken(lanes, one)
    lanes.arrive_together(100, KEYS, [(100, 200)])
    lanes.give_back(Held(7, 8, 2, 1))
    order: list[int] = []
    while lanes.has_work(one):
        if lanes.next_group(one) is not None:
            order += taken(lanes, one)
        else:
            entry = lanes.next(one)
            assert entry is not None
            lanes.take(one, entry)
            order.append(entry.offset)
    assert order.index(7) < order.index(107)
    assert sorted(order) == [7, *range(100, 200)]
