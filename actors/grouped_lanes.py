"""Key-Shared: messages that arrive together go together, as long as nothing is known against it; pure.

The lanes of `lanes.py` know each message. As long as a key is at the consumer that owns its slot, nothing of it came
back and nothing of it waits in a lane, its messages need none: they wait for their consumer in groups, each the
messages of one sheet, in the order of the log, and of those in flight only the keys are kept, as long as their whole
delivery is in flight. What happens to single messages turns groups into lanes again: a message comes back, a consumer
takes nothing, or so little at a time that its keys have to take turns. A key that goes to another consumer has a lane
until nothing of it is in flight at the old one.

Invariants
- a key does not wait in a group and in a lane at the same time; nor in a group while its lane is blocked
- a message in flight without a lane is at the consumer that owns the slot of its key
- the groups of a consumer are bounded; the messages of a key are in the order of the log in them
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import chain, islice, repeat, starmap
from typing import Final

from ister.actors import lanes as of_lanes
from ister.actors.lanes import Lane, Lanes, slot_of
from ister.actors.ledger import Held, messages_in
from ister.actors.selection import Member
from ister.actors.sheets import picked

GROUPED_MAX: Final = 10_000  # messages that wait for one consumer in groups; more are left to the lanes
# Where a consumer holds and may take fewer messages than this together, and one key has more than `HOT` times as many
# of those that are next as the quarter of the keys that has fewest, the keys take turns, in lanes.
WINDOW_MIN: Final = 256
HOT: Final = 8
LOOKED_AT: Final = 2_000  # of the messages that are next
CALM: Final = 256  # they are looked at again when so many were taken, or others came
# With more consumers all messages have lanes: what waits would have to be looked at for each that comes or goes.
CONSUMERS_MAX: Final = 256
KEYS_MAX: Final = (
    20_000  # keys whose consumer is known without a look at its slot, before others come; 100 bytes each
)


class Group:
    """Messages of one batch that wait for one consumer: their indices in it, ascending, and their keys."""

    __slots__ = ("first", "indices", "keys")

    def __init__(self, first: int, indices: Sequence[int], keys: Sequence[bytes]) -> None:
        self.first = first  # the offset of the batch
        self.indices = indices
        self.keys = keys


class _Waiting:
    """The groups of one consumer."""

    __slots__ = ("after_lanes", "calm", "count", "groups")

    def __init__(self) -> None:
        self.groups: deque[Group] = deque()
        self.count = 0  # messages in them
        self.after_lanes = False  # lanes had the last turn
        self.calm = 0  # until so many more are taken, no key has far more than others

    def has_hot_key(self) -> bool:
        """Return whether a key has so many of the messages that are next that others would wait long for their turn."""
        if self.calm > 0:
            return False
        keys = islice(chain.from_iterable(group.keys for group in self.groups), LOOKED_AT)
        counts = sorted(Counter(keys).values())
        self.calm = CALM
        return counts[-1] > HOT * counts[len(counts) // 4]


class GroupedLanes(Lanes):
    """The lanes of one subscription, and the groups of messages that need none."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting_groups: dict[Member, _Waiting] = {}  # of consumers that have any
        self._grouped = 0  # messages in them
        self._flying: dict[int, bytes] = {}  # by offset: the keys of messages in flight that have no lane
        # the same of whole deliveries, by their first message: their offsets and keys
        self._flights: dict[int, tuple[list[int], Sequence[bytes]]] = {}
        self._in_flights = 0  # messages
        self._owner_of: dict[
            bytes, Member
        ] = {}  # by key, as far as was looked up since a slot changed its consumer

    # ---- consumers ----------------------------------------------------------------------------------------------

    def attach(self, member: Member) -> None:
        """Give a consumer its share of the slots."""
        self.attach_all((member,))

    def attach_all(self, members: Iterable[Member]) -> None:
        """Give each of some consumers its share of the slots, and bring what waits to them once."""
        members = list(members)
        before = self._begin_change(len(members))
        for member in members:
            super().attach(member)
        self._end_change(before)

    def detach(self, member: Member) -> None:
        """Give a consumer's slots to others."""
        if member not in self._runnable:
            return
        before = self._begin_change()
        super().detach(member)
        self._end_change(before)

    def _begin_change(self, more: int = 1) -> list[Member | None]:
        """Forget who owns which key; return who owns the slots. At most so many `more` consumers come."""
        self._owner_of.clear()
        if len(self._runnable) + more > CONSUMERS_MAX:
            self._dissolve_all()
        return self._slots[:] if self._flying or self._flights or self._waiting_groups else []

    def _end_change(self, before: list[Member | None]) -> None:
        """Bring what waits to those who own the slots now; what is in flight elsewhere has lanes, which wait for it."""
        if not before:
            return
        slots, flying = self._slots, self._flying
        keys = set(flying.values())
        keys.update(*[flight[1] for flight in self._flights.values()])
        for waiting in self._waiting_groups.values():
            keys.update(*[group.keys for group in waiting.groups])
        moved = {key for key in keys if slots[slot := slot_of(key)] is not before[slot]}
        if not moved:
            return
        for flight in list(self._flights.values()):
            if not moved.isdisjoint(flight[1]):
                self._land(flight)
        for offset in [offset for offset, key in flying.items() if key in moved]:
            lane = self._put_in_lane(offset, before[slot_of(flying[offset])])
            if lane.queued_at is not None and lane.queued_at is not lane.owner:
                self._unqueue(lane)
                self._queue(lane)
        moving: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for member, waiting in list(self._waiting_groups.items()):
            stays: deque[Group] = deque()
            for group in waiting.groups:
                if moved.isdisjoint(group.keys):
                    stays.append(group)
                    continue
                rows = list(zip(group.indices, group.keys, strict=True))
                moving[group.first] += [row for row in rows if row[1] in moved]
                if stay := [row for row in rows if row[1] not in moved]:
                    stays.append(Group(group.first, [row[0] for row in stay], [row[1] for row in stay]))
            count = sum(len(group.indices) for group in stays)
            self.waiting -= waiting.count - count
            self._grouped -= waiting.count - count
            waiting.groups, waiting.count = stays, count
            if not stays:
                del self._waiting_groups[member]
        for first in sorted(moving):
            self._arrive_rows(first, sorted(moving[first]))

    def _arrive_rows(self, first: int, rows: list[tuple[int, bytes]]) -> None:
        """Let messages of the batch at `first`, by index and key, wait for those who own their keys now."""
        by_owner: dict[Member, tuple[list[int], list[bytes]]] = {}
        for index, key in rows:
            if (owner := self._owner_of.get(key) or self._look_up(key)) is None:
                super().arrive(first + index, key)
            else:
                indices, keys = by_owner.setdefault(owner, ([], []))
                indices.append(index)
                keys.append(key)
        for owner, (indices, keys) in by_owner.items():
            self._arrive_at(owner, first, indices, keys)

    # ---- messages come ------------------------------------------------------------------------------------------

    def arrive_together(self, first: int, keys: Sequence[bytes], parts: Sequence[tuple[int, int]]) -> None:
        """Add the messages of the batch at offset `first` with these keys; `parts`: the offsets of it that count.

        Otherwise as `arrive`, for messages without failures.
        """
        if len(parts) == 1 and parts[0] == (first, first + len(keys)):
            indices: Sequence[int] = range(len(keys))
            here = keys
        else:
            indices = [index for begin, stop in parts for index in range(begin - first, stop - first)]
            here = picked(keys, indices)
        owner_of = self._owner_of
        if len(owner_of) > KEYS_MAX:
            owner_of.clear()
        for key in dict.fromkeys(here).keys() - owner_of.keys():
            self._look_up(key)
        owners = list(map(owner_of.get, here))
        by_owner: dict[Member | None, list[int]] = {owner: [] for owner in dict.fromkeys(owners)}
        deque(map(list.append, map(by_owner.__getitem__, owners), indices), maxlen=0)  # a loop in C
        for index in by_owner.pop(None, ()):  # without a key, or without a consumer
            self.arrive(first + index, keys[index])
        for owner, some in by_owner.items():
            assert owner is not None
            self._arrive_at(owner, first, some, picked(keys, some))

    def _look_up(self, key: bytes) -> Member | None:
        """Return who owns a key; None for none, and for messages without a key."""
        owner = self._slots[slot_of(key)] if key else None
        if owner is not None:
            self._owner_of[key] = owner
        return owner

    def _arrive_at(self, owner: Member, first: int, indices: list[int], keys: Sequence[bytes]) -> None:
        """Let messages wait for a consumer in a group, those of keys with a lane in that."""
        waiting = self._waiting_groups.get(owner)
        count = len(indices)
        if (
            not owner.sparse
            or len(self._runnable) > CONSUMERS_MAX
            or self._over_of[owner]
            or (count if waiting is None else waiting.count + count) > GROUPED_MAX
            or self.waiting + count > of_lanes.WAITING_MAX
        ):
            self._dissolve(owner)
            for index, key in zip(indices, keys, strict=True):
                super().arrive(first + index, key)
            return
        lanes = self._lanes
        if lanes and not lanes.keys().isdisjoint(keys):
            busy = {key for key in lanes.keys() & set(keys) if self._is_busy(lanes[key], owner)}
            for index, key in zip(indices, keys, strict=True) if busy else ():
                if key in busy:
                    super().arrive(first + index, key)
            if busy:
                indices = [index for index, key in zip(indices, keys, strict=True) if key not in busy]
                keys = [key for key in keys if key not in busy]
        if not indices:
            return
        if waiting is None:
            waiting = self._waiting_groups[owner] = _Waiting()
        waiting.groups.append(Group(first, indices, keys))
        waiting.count += len(indices)
        waiting.calm = 0
        self.waiting += len(indices)
        self._grouped += len(indices)
        self.called[owner] = None

    @property
    def _lane_max(self) -> int:
        few = 2 * (self.waiting - self._grouped) < of_lanes.WAITING_MAX
        return of_lanes.LANE_MAX if few else min(of_lanes.LANE_MIN, of_lanes.LANE_MAX)

    def _is_busy(self, lane: Lane, owner: Member) -> bool:
        """Return whether messages of a key have to wait in its lane."""
        return bool(lane.waiting or lane.until or lane.held or (lane.in_flight and lane.owner is not owner))

    def arrive(
        self, offset: int, key: bytes, attempt: int = 1, failures: int = 0, until_s: float = 0.0
    ) -> None:
        """Add the next message of the log by itself."""
        self._dissolve_of(key)
        super().arrive(offset, key, attempt, failures, until_s)

    def arrive_due(
        self, offset: int, key: bytes, attempt: int = 1, failures: int = 0, until_s: float = 0.0
    ) -> None:
        """Add a message whose delivery time has come."""
        self._dissolve_of(key)
        super().arrive_due(offset, key, attempt, failures, until_s)

    def refill(
        self, offset: int, key: bytes, attempt: int = 1, failures: int = 0, until_s: float = 0.0
    ) -> None:
        """Add a message that may have been left in the log."""
        if self._waiting_groups and key and slot_of(key) in self._over:
            self._dissolve_of(key)
        super().refill(offset, key, attempt, failures, until_s)

    def _dissolve_of(self, key: bytes) -> None:
        if self._waiting_groups and key and (owner := self._slots[slot_of(key)]) is not None:
            self._dissolve(owner)

    def _dissolve(self, member: Member) -> None:
        """Let what waits for a consumer in groups wait in lanes."""
        if (waiting := self._waiting_groups.pop(member, None)) is not None:
            self.waiting -= waiting.count
            self._grouped -= waiting.count
            for group in waiting.groups:
                for index, key in zip(group.indices, group.keys, strict=True):
                    super().arrive(group.first + index, key)

    def _dissolve_all(self) -> None:
        for member in list(self._waiting_groups):
            self._dissolve(member)

    # ---- handing out --------------------------------------------------------------------------------------------

    def next_group(self, member: Member) -> Group | None:
        """Return the messages that are next for a consumer together; None when those of its lanes are next, if any."""
        waiting = self._waiting_groups.get(member)
        if waiting is None:
            return None
        if (
            member.messages < waiting.count
            and member.messages + member.outstanding < WINDOW_MIN
            and waiting.has_hot_key()
        ):
            self._dissolve(member)  # its keys take turns
            return None
        group = waiting.groups[0]
        if self._free and self._free[0].offset < group.first + group.indices[0]:
            return None  # a message without a key goes before younger batches
        waiting.after_lanes = not waiting.after_lanes
        return group if waiting.after_lanes or not self._runnable[member] else None

    def following_group(self, member: Member) -> Group | None:
        """Return the next messages for the same delivery."""
        waiting = self._waiting_groups.get(member)
        if waiting is None:
            return None
        group = waiting.groups[0]
        return None if self._free and self._free[0].offset < group.first + group.indices[0] else group

    def take_group(self, member: Member, count: int, offsets: Iterable[int]) -> None:
        """Take the first `count` messages of the first group: those of `offsets` are in flight, the others done, or
        are told of by `fly`.
        """
        waiting = self._waiting_groups[member]
        group = waiting.groups[0]
        self.waiting -= count
        self._grouped -= count
        waiting.count -= count
        waiting.calm -= count
        self._flying.update(zip(offsets, group.keys, strict=False))
        if count < len(group.indices):
            group.indices, group.keys = group.indices[count:], group.keys[count:]
            return
        waiting.groups.popleft()
        if not waiting.groups:
            del self._waiting_groups[member]

    def fly(self, offsets: list[int], keys: Sequence[bytes]) -> None:
        """Note that messages which were taken from groups are in flight, as one delivery."""
        self._flights[offsets[0]] = (offsets, keys)
        self._in_flights += len(offsets)

    def _land(self, flight: tuple[list[int], Sequence[bytes]]) -> None:
        """Know the messages of a delivery one by one, because something happens to single ones."""
        offsets, keys = flight
        del self._flights[offsets[0]]
        self._in_flights -= len(offsets)
        self._flying.update(zip(offsets, keys, strict=True))

    def _land_all(self) -> dict[int, bytes]:
        for flight in list(self._flights.values()):
            self._land(flight)
        return self._flying

    def has_work(self, member: Member) -> bool:
        """Say whether something waits for this consumer."""
        return member in self._waiting_groups or super().has_work(member)

    @property
    def in_flight(self) -> int:
        """How many messages are in flight."""
        return len(self._lane_of) + len(self._flying) + self._in_flights

    def is_in_flight(self, offset: int) -> bool:
        """Say whether a message is in flight."""
        return offset in self._land_all() or offset in self._lane_of

    # ---- what comes back ----------------------------------------------------------------------------------------

    def settle(self, first: int, end: int) -> None:
        """Take [first, end) out of what is in flight."""
        while first < end and (flight := self._flights.get(first)) is not None:
            last = flight[0][-1]
            if last >= end or last - first >= len(flight[0]):
                break
            self.settle_flight(flight[0])  # a whole delivery, of messages that follow each other
            first = last + 1
        if first >= end:
            return
        before = self.in_flight
        for offset in self._flying_of(first, end):
            del self._flying[offset]
        super().settle(first, end)
        if self._waiting_groups and before - self.in_flight < end - first:
            self._dissolve_all()

    def settle_flight(self, offsets: Sequence[int]) -> bool:
        """Take a whole delivery out of what is in flight; False, and nothing is done, if it is not known as such."""
        flight = self._flights.get(offsets[0])
        if flight is None or flight[0] is not offsets:
            return False
        del self._flights[offsets[0]]
        self._in_flights -= len(offsets)
        return True

    def settle_all(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Do so for many ranges."""
        if messages_in(ranges) > 2 * (len(ranges) + self.in_flight):
            for first, end in ranges:
                self.settle(first, end)
            return
        offsets = list(chain.from_iterable(starmap(range, ranges)))
        found = list(map(self._flying.pop, offsets, repeat(None)))
        if None not in found:
            return
        rest = [offset for offset, key in zip(offsets, found, strict=True) if key is None]
        strays = []
        for offset in rest:
            if offset in self._lane_of:
                super().settle(offset, offset + 1)
            else:
                strays.append(offset)
        if strays and self._flights:
            flying = self._land_all()
            strays = [offset for offset in strays if flying.pop(offset, None) is None]
        if strays:  # some of what is done may still wait, which is looked at message by message
            self._dissolve_all()

    def hold(self, first: int, end: int) -> None:
        """Block the keys of what is in flight of [first, end)."""
        self._come_back(first, end)
        super().hold(first, end)

    def give_back(self, held: Held, until_s: float = 0.0) -> None:
        """Return messages in flight to their lanes, in order."""
        self._come_back(held.first, held.end)
        super().give_back(held, until_s)

    def _come_back(self, first: int, end: int) -> None:
        """Let messages in flight have a lane, and what waits at their consumers wait behind them."""
        for offset in self._flying_of(first, end):
            lane = self._put_in_lane(offset, None)
            if lane.owner is not None:
                self._dissolve(lane.owner)
        if self._waiting_groups and self._lane_of:
            for offset in range(first, end):
                if (of := self._lane_of.get(offset)) is not None and (
                    owner := self._slots[of.slot]
                ) is not None:
                    self._dissolve(owner)

    def _flying_of(self, first: int, end: int) -> list[int]:
        flying = self._land_all()
        if end - first > len(flying):
            return [offset for offset in flying if first <= offset < end]
        return [offset for offset in range(first, end) if offset in flying]

    def _put_in_lane(self, offset: int, owner: Member | None) -> Lane:
        """Let a message in flight have a lane; `owner`: the consumer that holds it, if its slot has another by now."""
        key = self._flying.pop(offset)
        slot = slot_of(key)
        lane = self._lanes.get(key) or self._lane(key, slot)
        lane.in_flight += 1
        lane.owner = owner or self._slots[slot]
        self._lane_of[offset] = lane
        return lane
