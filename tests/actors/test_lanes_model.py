"""Model test of lanes, against one entry per message: a log, a state for each offset, and limits so small that they are
always reached.

HYPOTHESIS_PROFILE=long runs it for minutes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ister.actors import lanes as module
from ister.actors import slots
from ister.actors.lanes import Lanes
from ister.actors.ledger import Held
from ister.actors.selection import Member

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
SLOTS = 8
WAITING_MAX = 10
WAITING_HARD_MAX = 16
LANE_MAX = 4
KEYS = [b"", b"0", b"10", b"3", b"8", b"2", b"9", b"1", b"7"]  # 0 and 10 share a slot, 3 and 8, and 2 and 9


@dataclass
class Message:
    """One message and its state."""

    key: bytes
    delayed: bool
    place: str = "unread"  # -> left or delayed -> waiting -> flight -> gone, or asleep or waiting again
    holder: int = 0  # in flight: at which consumer
    attempt: int = 1
    failures: int = 0
    acknowledged: bool = False
    held: bool = False  # in flight, and later messages of its key wait for that

    @property
    def slot(self) -> int:
        return crc32(self.key) & (SLOTS - 1)


class LanesMachine(RuleBasedStateMachine):
    """The lanes of a subscription, used as a subscription uses them, and a list of messages."""

    def __init__(self, lanes: type[Lanes] = Lanes) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for name, value in globals().items():
            if name in ("SLOTS", "WAITING_MAX", "WAITING_HARD_MAX", "LANE_MAX"):
                self.patch.setattr(module, name, value)
        self.patch.setattr(slots, "SLOTS", SLOTS)
        self.lanes = lanes()
        self.log: list[Message] = []
        self.read = 0  # where new messages begin
        self.members: dict[int, Member] = {}
        self.ages = 0
        self.asleep: dict[bytes, float] = {}  # keys
        self.naps: dict[int, float] = {}  # messages without one
        self.now_s = 100.0
        self.chunk: tuple[int, int] | None = None  # of the log, on its way
        self.passed_by: dict[
            tuple[int, bytes], set[bytes]
        ] = {}  # who had a turn while this one waited for it

    def teardown(self) -> None:
        try:
            self.everything_drains()
        finally:
            self.patch.undo()

    # ---- what the model says --------------------------------------------------------------------------------

    def at(self, place: str) -> list[int]:
        return [offset for offset, message in enumerate(self.log) if message.place == place]

    def owner(self, key: bytes) -> Member | None:
        return self.lanes._slots[crc32(key) & (SLOTS - 1)]

    def heads(self, member: Member) -> dict[bytes, int]:
        """Return what this consumer may get next: the lowest waiting offset of each key."""
        found: dict[bytes, int] = {}
        holders: dict[bytes, set[int]] = {}
        for offset, message in enumerate(self.log):
            if message.place == "waiting":
                found.setdefault(message.key, offset)
            elif message.place == "flight":
                holders.setdefault(message.key, set()).add(0 if message.held else message.holder)
        return {
            key: offset
            for key, offset in found.items()
            if not key
            or (
                self.owner(key) is member
                and key not in self.asleep
                and holders.get(key, {member.key}) == {member.key}
            )
        }

    def forget_naps(self) -> None:
        """Forget the back-off of keys that have no messages here."""
        here = {message.key for message in self.log if message.place in ("waiting", "flight")}
        self.asleep = {key: until for key, until in self.asleep.items() if key in here}

    def forget_turns(self) -> None:
        can = {(each, key) for each, member in self.members.items() for key in self.heads(member)}
        self.passed_by = {lane: passed for lane, passed in self.passed_by.items() if lane in can}

    # ---- consumers ------------------------------------------------------------------------------------------

    @rule(messages=st.integers(0, 12))
    def come(self, messages: int) -> None:
        before = list(self.lanes._slots)
        self.ages += 1
        member = self.members[self.ages] = Member(self.ages, 0, self.ages, messages, 1 << 20)
        self.lanes.attach(member)
        self.lanes.called[member] = None
        changed = [slot for slot in range(SLOTS) if self.lanes._slots[slot] is not before[slot]]
        assert len(changed) == SLOTS // len(self.members), "most keys stay where they are"
        assert all(self.lanes._slots[slot] is member for slot in changed)

    @precondition(lambda self: self.members)
    @rule(which=st.sampled_from([-1, -1, 0, 1, 2]), at_once=st.booleans())
    def go(self, which: int, at_once: bool) -> None:
        key = sorted(self.members)[which % len(self.members)]
        before = list(self.lanes._slots)
        member = self.members.pop(key)
        self.lanes.detach(member)
        self.lanes.detach(member)  # a second time is nothing
        for slot in range(SLOTS):
            assert self.lanes._slots[slot] is not member
            assert before[slot] in (member, self.lanes._slots[slot]), "who stays keeps his keys"
        if at_once:
            self.lost_comes_back()

    @rule()
    def lost_comes_back(self) -> None:
        for offset in self.at("flight"):
            if self.log[offset].holder not in self.members:
                self.give_back(offset, offset + 1, self.log[offset].attempt + 1, 0, 0.0)

    @precondition(lambda self: self.members)
    @rule(which=st.integers(0, 9), messages=st.sampled_from([0, 0, 1, 3, 12]), blocked=st.booleans())
    def credit(self, which: int, messages: int, blocked: bool) -> None:
        member = self.members[sorted(self.members)[which % len(self.members)]]
        member.messages, member.blocked = messages, blocked and messages % 2 == 0
        self.lanes.called[member] = None

    # ---- messages come --------------------------------------------------------------------------------------

    @rule(
        messages=st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 9)), min_size=1, max_size=12),
        read=st.sampled_from([20, 20, 5, 0]),
    )
    def publish(self, messages: list[tuple[bytes, int]], read: int) -> None:
        self.log += [Message(key, chance == 0) for key, chance in messages]
        self.read_on(read)

    @rule(messages=st.integers(1, 30), key=st.sampled_from(KEYS[:4]))
    def publish_hot(self, messages: int, key: bytes) -> None:
        self.log += [Message(key, False) for _ in range(messages)]
        self.read_on(messages)

    @rule(count=st.integers(1, 20))
    def read_on(self, count: int) -> None:
        lanes = self.lanes
        for _ in range(count):
            if self.read == len(self.log) or lanes.full:
                return
            assert lanes.waiting + lanes.asleep < WAITING_HARD_MAX
            offset, self.read = self.read, self.read + 1
            message = self.log[offset]
            if message.delayed:
                message.place = "delayed"
                continue
            left_before = message.slot in lanes._over
            in_lane = sum(self.log[each].key == message.key for each in self.at("waiting"))
            waiting, owner = lanes.waiting, self.owner(message.key)
            lanes.arrive(offset, message.key)
            if not message.key:
                room = True
            elif owner is not None and owner.ready:
                room = in_lane < LANE_MAX and waiting < WAITING_HARD_MAX and not left_before
            else:
                room = in_lane < LANE_MAX and waiting < WAITING_MAX and not left_before
            assert lanes.waiting - waiting == room
            message.place = "waiting" if room else "left"

    @precondition(lambda self: self.at("delayed"))
    @rule(which=st.integers(0, 9))
    def due(self, which: int) -> None:
        delayed = self.at("delayed")
        offset = delayed[which % len(delayed)]
        self.lanes.arrive_due(offset, self.log[offset].key)
        self.log[offset].place = "waiting"

    @rule(count=st.integers(1, 25), at_once=st.booleans())
    @precondition(lambda self: self.chunk is None)
    def ask_the_log(self, count: int, at_once: bool) -> None:
        begun = self.lanes._pass_from is not None
        at = self.lanes.refill_from()
        if at is not None and not begun:
            wanting = [
                slot for slot in self.lanes._over if (owner := self.lanes._slots[slot]) and owner.ready
            ]
            assert at == min(self.lanes._over[slot] for slot in wanting if self.has_taken(slot))
        if at is None:
            for offset in self.at("left"):
                message = self.log[offset]
                owner = self.owner(message.key)
                assert owner is None or not owner.ready or not self.has_taken(message.slot)
            return
        self.chunk = at, min(at + count, self.read)
        if at_once:
            self.log_answers()

    @rule()
    @precondition(lambda self: self.chunk is not None)
    def log_answers(self) -> None:
        assert self.chunk is not None
        (first, end), self.chunk = self.chunk, None
        for offset in range(first, end):
            message = self.log[offset]
            if message.acknowledged or message.delayed:
                continue
            waiting = self.lanes.waiting
            self.lanes.refill(offset, message.key)
            if self.lanes.waiting == waiting:
                continue
            assert message.place == "left", "taken twice"
            owner = self.owner(message.key)
            assert owner is not None
            assert owner.ready
            assert waiting < WAITING_HARD_MAX
            message.place = "waiting"
        self.lanes.refilled(end, self.read)

    # ---- handing out ----------------------------------------------------------------------------------------

    @precondition(lambda self: any(member.ready for member in self.members.values()))
    @rule(which=st.integers(0, 9), times=st.integers(1, 12))
    def deliver(self, which: int, times: int) -> None:
        ready = [member for member in self.members.values() if member.ready]
        member = ready[which % len(ready)]
        for _ in range(times):
            if not member.ready or not self.deliver_one(member):
                self.lanes.called.pop(member, None)
                return

    @rule()
    def deliver_all(self) -> None:
        for member in list(self.members.values()):
            while member.ready and self.deliver_one(member):
                pass
        self.lanes.called.clear()

    def deliver_one(self, member: Member) -> bool:
        lanes = self.lanes
        heads = self.heads(member)
        assert lanes.has_work(member) == bool(heads)
        entry = lanes.next(member)
        assert entry == lanes.next(member), "asking changes nothing"
        if entry is None:
            assert not heads
            return False
        offset, message = entry.offset, self.log[entry.offset]
        assert message.place == "waiting"
        assert heads[message.key] == offset
        assert (entry.attempt, entry.failures) == (message.attempt, message.failures)
        if message.key:
            assert b"" not in heads or offset < heads[b""], "one without a key was first"
            self.turn(member, message.key)
        else:
            keyed = [head for key, head in heads.items() if key]
            assert not keyed or offset < max(keyed), "all that have a key were first"
        lanes.take(member, entry, deliver=not message.acknowledged)
        if message.acknowledged:
            message.place = "gone"
        else:
            self.check_order(offset)
            message.place, message.holder, message.held = "flight", member.key, False
            member.messages -= 1
        self.forget_naps()
        self.forget_turns()
        return True

    def has_taken(self, slot: int) -> bool:
        """Return whether most of what waited in a slot is gone, so that reading the log again is worth it."""
        waiting = [message for message in self.log if message.place == "waiting" and message.key]
        return sum(message.slot == slot for message in waiting) * 4 <= LANE_MAX

    def queue(self, member: Member) -> list[bytes]:
        return [lane.key for lane in self.lanes._runnable[member]]

    def check_order(self, offset: int) -> None:
        """Check that no earlier message of the key is still here or in the log, unless its delivery time came later."""
        message = self.log[offset]
        for before in self.log[:offset]:
            if message.key and before.key == message.key and not before.acknowledged:
                assert before.place == "flight" or before.delayed or message.delayed
                assert before.place != "waiting"

    def turn(self, member: Member, key: bytes) -> None:
        """Check that a key has no second turn while another one of the same consumer waits for its first."""
        for other in self.heads(member):
            if other and other != key:
                passed = self.passed_by.setdefault((member.key, other), set())
                assert key not in passed, "a second turn before another one's first"
                passed.add(key)
        self.passed_by.pop((member.key, key), None)

    # ---- what comes back ------------------------------------------------------------------------------------

    @precondition(lambda self: self.read)
    @rule(which=st.integers(0, 30), length=st.sampled_from([1, 1, 2, 3, 12]), anywhere=st.booleans())
    def settle(self, which: int, length: int, anywhere: bool) -> None:
        some = range(self.read) if anywhere else self.at("flight") or [0]
        first = some[which % len(some)]
        end = min(first + length, self.read)
        self.lanes.settle(first, end)
        for message in self.log[first:end]:
            message.acknowledged = True
            if message.place not in ("waiting", "asleep"):
                message.place = "gone"
        self.forget_naps()

    @precondition(lambda self: self.at("flight"))
    @rule(
        which=st.integers(0, 30),
        length=st.sampled_from([1, 2, 5, 20]),
        failures=st.integers(0, 3),
        delay=st.sampled_from([0, 1, 2, 5]),
    )
    def refuse(self, which: int, length: int, failures: int, delay: int) -> None:
        flight = self.at("flight")
        first = flight[which % len(flight)]
        holder, end = self.log[first].holder, first
        while end < min(first + length, self.read) and (
            self.log[end].place != "flight" or self.log[end].holder == holder
        ):
            end += 1
        self.give_back(first, end, 2 + failures, failures, self.now_s + delay if delay else 0.0)

    @precondition(lambda self: self.at("flight"))
    @rule(which=st.integers(0, 30), delays=st.lists(st.sampled_from([0.5, 1, 3]), min_size=2, max_size=4))
    def refuse_one_by_one(self, which: int, delays: list[float]) -> None:
        """Return messages of one key with different delays: none of the key may go before the longest has passed."""
        flight = self.at("flight")
        key = self.log[flight[which % len(flight)]].key
        same = [offset for offset in flight if self.log[offset].key == key]
        for offset, delay in zip(same, delays, strict=False):
            self.give_back(offset, offset + 1, 2, 1, self.now_s + delay)

    @precondition(lambda self: self.at("flight"))
    @rule(which=st.integers(0, 30), length=st.sampled_from([1, 2, 20]))
    def hold(self, which: int, length: int) -> None:
        flight = self.at("flight")
        first = flight[which % len(flight)]
        self.lanes.hold(first, first + length)
        for message in self.log[first : first + length]:
            message.held = message.place == "flight"

    def give_back(self, first: int, end: int, attempt: int, failures: int, until_s: float) -> None:
        """Return those messages of a range that one consumer holds."""
        self.lanes.give_back(Held(first, end, attempt, failures), until_s)
        for offset in range(first, end):
            message = self.log[offset]
            if message.place != "flight":
                continue
            message.place, message.attempt, message.failures = "waiting", attempt, failures
            if until_s and not message.key:
                message.place, self.naps[offset] = "asleep", until_s
            elif until_s:
                self.asleep[message.key] = max(until_s, self.asleep.get(message.key, 0))

    @rule(seconds=st.sampled_from([0.5, 1, 2, 6]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.lanes.wake(self.now_s)
        self.asleep = {key: until for key, until in self.asleep.items() if until > self.now_s}
        for offset, until in list(self.naps.items()):
            if until <= self.now_s:
                self.log[offset].place = "waiting"
                del self.naps[offset]

    # ---- always ---------------------------------------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        lanes = self.lanes
        waiting = [self.log[offset] for offset in self.at("waiting")]
        assert lanes.waiting == len(waiting)
        by_slot = [0] * SLOTS
        for message in waiting:
            by_slot[message.slot] += bool(message.key)
        assert list(lanes._waiting_in) == by_slot
        flying = self.at("flight")
        assert lanes.in_flight == len(flying)
        assert all(lanes.is_in_flight(offset) for offset in flying)
        assert lanes.asleep == len(self.at("asleep"))
        assert lanes.has_free == any(not message.key for message in waiting)
        here = {message.key for message in self.log if message.place in ("waiting", "flight")} - {b""}
        assert set(lanes._lanes) == here, "nothing stays of a key that is done"
        assert {message.slot for message in map(self.log.__getitem__, self.at("left"))} <= set(lanes._over)
        assert lanes.overflowed == len(lanes._over)

    @invariant()
    def slots_are_shared_out(self) -> None:
        counts = {key: len(self.lanes._table.of[member]) for key, member in self.members.items()}
        assert sum(counts.values()) == (SLOTS if counts else 0)
        assert not counts or max(counts.values()) - min(counts.values()) <= 1
        for member in self.members.values():
            assert all(self.lanes._slots[slot] is member for slot in self.lanes._table.of[member])

    @invariant()
    def a_key_is_at_one_consumer(self) -> None:
        holders: dict[bytes, int] = {}
        for offset in self.at("flight"):
            message = self.log[offset]
            if message.key:
                assert holders.setdefault(message.key, message.holder) == message.holder

    @invariant()
    def what_stands_still_has_a_reason(self) -> None:
        can = {key for member in self.members.values() for key in self.heads(member)}
        cannot = {self.log[offset].key for offset in self.at("waiting")} - can - {b""}
        assert {lane.key for lane in self.lanes.blocked()} == cannot
        for key, member in self.members.items():
            queue = self.queue(member)
            assert sorted(queue) == sorted(each for each in self.heads(member) if each), key
            assert not queue or not member.ready or member in self.lanes.called, "nobody would look"
        assert self.lanes.next_wake_s() == min([*self.asleep.values(), *self.naps.values()], default=None)
        self.forget_turns()

    # ---- in the end -----------------------------------------------------------------------------------------

    def everything_drains(self) -> None:
        """With credit for all consumers and enough time, every published message is delivered and done."""
        if not self.members:
            self.come(1)
        self.lost_comes_back()
        self.time_passes(1000)
        for offset in self.at("flight"):
            self.lanes.settle(offset, offset + 1)
            self.log[offset].place, self.log[offset].acknowledged = "gone", True
        self.forget_naps()
        self.forget_turns()
        for _ in range(len(self.log) + 10):
            if self.chunk is not None:
                self.log_answers()
            for member in self.members.values():
                member.messages, member.blocked = 1000, False
                while self.deliver_one(member):
                    for offset in self.at("flight"):
                        self.lanes.settle(offset, offset + 1)
                        self.log[offset].place, self.log[offset].acknowledged = "gone", True
                    self.forget_naps()
                    self.forget_turns()
            self.counts_agree()
            self.read_on(1000)
            for offset in self.at("delayed"):
                self.lanes.arrive_due(offset, self.log[offset].key)
                self.log[offset].place = "waiting"
            self.ask_the_log(50, at_once=True)
            if len(self.at("gone")) == len(self.log):
                break
        assert len(self.at("gone")) == len(self.log), "something is never delivered"


LanesMachine.TestCase.settings = settings(max_examples=2000 if LONG else 80, stateful_step_count=50)
test_lanes_are_what_one_entry_a_message_would_say = LanesMachine.TestCase
