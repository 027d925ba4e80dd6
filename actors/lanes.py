"""Key-Shared: which consumer gets which key, and when; pure.

The waiting messages of a key form a lane. Every key belongs to one of `SLOTS` slots (by the CRC32 of its bytes), and
every slot to one consumer (`slots.py`). A consumer's lanes take turns, one message each, so that a hot key never
starves others. A message without a key goes to any consumer, before younger messages of any key.

Messages for which there is no room here are left in the log: their slot remembers from which offset on (`overflow`),
and is filled again from there (`refill`) once its consumer takes more. So memory is bounded, and a slow consumer or a
hot key never stops the others.

Invariants
- a lane's messages are handed out in the order of their offsets, returned ones first
- a lane has messages in flight at one consumer at a time; it changes its consumer only when none is in flight
- a lane with a message that waits for its back-off, or is held as poison, hands out nothing
- an offset is in one place: waiting in a lane, in flight, or above its slot's overflow
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from zlib import crc32

from ister.actors.ledger import Held
from ister.actors.selection import Member
from ister.actors.slots import SLOTS, Slots

WAITING_MAX: Final = (
    # waiting messages, some 150 bytes each; above this, slots of consumers that take nothing overflow
    100_000
)
WAITING_HARD_MAX: Final = 2 * WAITING_MAX  # and above this, any slot
LANE_MAX: Final = 2_000  # messages of one key: far more than a consumer takes at once
LANE_MIN: Final = 50  # messages of one key when many wait, so that blocked keys cannot use all the room


def slot_of(key: bytes) -> int:
    """Return the slot of a key."""
    return crc32(key) & (SLOTS - 1)


class Entry(NamedTuple):
    """One message: its offset, and its attempts and failures before."""

    offset: int
    attempt: int
    failures: int


class Lane:
    """The messages of one key that wait or are in flight."""

    __slots__ = ("held", "in_flight", "key", "owner", "queued_at", "slot", "until", "waiting")

    def __init__(self, key: bytes, slot: int) -> None:
        self.key = key
        self.slot = slot
        self.waiting: list[Entry] = []  # a heap
        self.in_flight = 0
        self.owner: Member | None = None  # the consumer that has its messages in flight
        self.queued_at: Member | None = None  # the consumer in whose queue of runnable lanes it is
        self.until = 0.0  # hands out nothing before this monotonic time, in seconds
        self.held = 0  # hands out nothing until everything in flight below this offset is settled


class Lanes:
    """The lanes of one subscription."""

    def __init__(self) -> None:
        self._table = Slots()
        self._slots = self._table.owners  # the same list, which is looked up for each message
        self._runnable: dict[Member, deque[Lane]] = {}
        self._lanes: dict[bytes, Lane] = {}
        # by offset: the lane of each message in flight; None: it has no key
        self._lane_of: dict[int, Lane | None] = {}
        self._held: set[int] = set()  # those of them that block their key
        self._free: list[Entry] = []  # a heap: messages without a key, for any consumer
        # a heap by time: messages without a key that wait for their back-off
        self._free_asleep: list[tuple[float, Entry]] = []
        self._asleep: list[tuple[float, int, Lane]] = []  # a heap by time: lanes that wait for a back-off
        self._waiting_in = array("L", bytes(array("L").itemsize * SLOTS))  # waiting messages by slot
        self._over: dict[int, int] = {}  # slot -> the offset from which on its messages are left in the log
        self._over_of: dict[Member, int] = {}  # how many such slots a consumer has
        self._astray: dict[
            int, dict[Lane, None]
        ] = {}  # slot -> lanes that wait for messages in flight at another consumer
        self._pass_from: int | None = None  # the offset from which on a refill is in progress
        self._pass_at = 0
        self._closed: set[int] = set()  # slots that had no room in it
        self._ticket = 0
        self.called: dict[
            Member, None
        ] = {}  # consumers for which something arrived; emptied by the one that hands out
        self.waiting = 0

    # ---- consumers ----------------------------------------------------------------------------------------------

    def attach(self, member: Member) -> None:
        """Give a consumer its share of the slots, and queue the lanes in them with it."""
        mine, given = self._table.attach(member)
        over = self._over
        for donor, slots in given.items() if over else ():
            self._over_of[donor] -= sum(slot in over for slot in slots)
        self._runnable[member] = deque()
        self._over_of[member] = sum(slot in over for slot in mine) if over else 0
        if len(self._runnable) == 1:
            self._route(self._lanes.values())
        else:
            for donor in given:
                self._reroute(donor)

    def detach(self, member: Member) -> None:
        """Give a consumer's slots to others; what it has in flight is returned separately."""
        lanes = self._runnable.pop(member, None)
        if lanes is None:
            return
        mine, got = self._table.detach(member)
        self.called.pop(member, None)
        del self._over_of[member]
        over = self._over
        for heir, slots in got.items() if over else ():
            self._over_of[heir] += sum(slot in over for slot in slots)
        for lane in lanes:
            lane.queued_at = None
        self._route(lanes)
        if self._astray:  # lanes that were to move to it may stay with the consumer that has their messages
            for slot in mine:
                self._route(self._astray.pop(slot, ()))

    def _reroute(self, donor: Member) -> None:
        lanes = self._runnable[donor]
        self._runnable[donor] = deque(lane for lane in lanes if self._slots[lane.slot] is donor)
        for lane in lanes:
            if self._slots[lane.slot] is not donor:
                lane.queued_at = None
                self._queue(lane)

    def _route(self, lanes: Iterable[Lane]) -> None:
        for lane in list(lanes):
            self._queue(lane)

    def _queue(self, lane: Lane) -> None:
        """Queue a lane with its consumer, if it may hand anything out."""
        if lane.queued_at is not None or not lane.waiting or lane.until or lane.held:
            return
        owner = self._slots[lane.slot]
        if owner is None:
            return
        if lane.in_flight and lane.owner is not owner:  # the other consumer must settle first
            self._astray.setdefault(lane.slot, {})[lane] = None
            return
        if self._astray and (astray := self._astray.get(lane.slot)):
            astray.pop(lane, None)
            if not astray:
                del self._astray[lane.slot]
        lane.queued_at = owner
        self._runnable[owner].append(lane)
        self.called[owner] = None

    # ---- messages come ------------------------------------------------------------------------------------------

    def arrive(
        self, offset: int, key: bytes, attempt: int = 1, failures: int = 0, until_s: float = 0.0
    ) -> None:
        """Add the next message of the log, or leave it there if there is no room.

        It waits until `until_s`, and its key with it, if it was given back with a delay to an earlier actor.
        """
        if not key:
            self._give_back_free(Entry(offset, attempt, failures), until_s)
            return
        slot = slot_of(key)
        if slot in self._over:
            return
        lane = self._lanes.get(key)
        if not self._has_room(slot, lane):
            self._over[slot] = offset
            if (owner := self._slots[slot]) is not None:
                self._over_of[owner] += 1
            return
        self._wait(
            self._asleep_until(lane or self._lane(key, slot), until_s), Entry(offset, attempt, failures)
        )

    def arrive_due(
        self, offset: int, key: bytes, attempt: int = 1, failures: int = 0, until_s: float = 0.0
    ) -> None:
        """Add a message whose delivery time has come, at its place in the order of its key."""
        if not key:
            self._give_back_free(Entry(offset, attempt, failures), until_s)
        else:
            slot = slot_of(key)
            lane = self._lanes.get(key) or self._lane(key, slot)
            self._wait(self._asleep_until(lane, until_s), Entry(offset, attempt, failures))

    @property
    def full(self) -> bool:
        """Whether no more messages are to be added, because no consumer could take them."""
        return self.waiting + len(self._free_asleep) >= WAITING_HARD_MAX

    @property
    def in_flight(self) -> int:
        """How many messages are in flight."""
        return len(self._lane_of)

    @property
    def asleep(self) -> int:
        """How many messages without a key wait for their back-off."""
        return len(self._free_asleep)

    @property
    def overflowed(self) -> int:
        """How many slots have left messages in the log."""
        return len(self._over)

    def _has_room(self, slot: int, lane: Lane | None) -> bool:
        if lane is not None and len(lane.waiting) >= self._lane_max:
            return False
        if self.waiting < WAITING_MAX:
            return True
        owner = self._slots[slot]
        return owner is not None and owner.ready and self.waiting < WAITING_HARD_MAX

    @property
    def _lane_max(self) -> int:
        return LANE_MAX if self.waiting * 2 < WAITING_MAX else min(LANE_MIN, LANE_MAX)

    def _lane(self, key: bytes, slot: int) -> Lane:
        lane = self._lanes[key] = Lane(key, slot)
        return lane

    def _wait(self, lane: Lane, entry: Entry) -> None:
        heapq.heappush(lane.waiting, entry)
        self.waiting += 1
        self._waiting_in[lane.slot] += 1
        if lane.queued_at is None:
            self._queue(lane)

    def _wait_free(self, entry: Entry) -> None:
        heapq.heappush(self._free, entry)
        self.waiting += 1

    # ---- what was left in the log -------------------------------------------------------------------------------

    def refill_from(self) -> int | None:
        """Return the offset from which to read the log again; None if no consumer could take what was left there."""
        if self._pass_from is not None:
            return self._pass_at
        if not any(member.ready for member, slots in self._over_of.items() if slots):
            return None  # while these few are slow, their backlog in the log is not read
        wanted = [at for slot, at in self._over.items() if self._wants(slot)]
        if not wanted:
            return None
        self._pass_from = self._pass_at = min(wanted)
        self._closed.clear()
        return self._pass_at

    def _wants(self, slot: int) -> bool:
        owner = self._slots[slot]
        return owner is not None and owner.ready and self._waiting_in[slot] * 4 <= self._lane_max

    def refill(
        self, offset: int, key: bytes, attempt: int = 1, failures: int = 0, until_s: float = 0.0
    ) -> None:
        """Add a message that may have been left in the log; offsets ascend from `refill_from()`."""
        slot = slot_of(key)
        over = self._over.get(slot)
        if over is None or offset < over or slot in self._closed or not key:
            return
        if self._pass_from is None or over < self._pass_from:
            return  # its earlier messages are not read in this pass: nothing later may come before them
        lane = self._lanes.get(key)
        owner = self._slots[slot]
        if owner is None or not owner.ready or not self._has_room(slot, lane):
            self._closed.add(slot)
            self._over[slot] = offset
            return
        self._over[slot] = offset + 1
        self._wait(
            self._asleep_until(lane or self._lane(key, slot), until_s), Entry(offset, attempt, failures)
        )

    def refilled(self, at: int, end: int) -> None:
        """Note that the log was read again up to `at`; at `end`, where new messages begin, everything is here.

        The pass also ends when no slot that it came across has room for more.
        """
        begin = self._pass_from
        if begin is None:
            return
        self._pass_at = at
        going = [
            (slot, over) for slot, over in self._over.items() if over >= begin and slot not in self._closed
        ]
        if at >= end:
            for slot, _ in going:
                del self._over[slot]
                if (owner := self._slots[slot]) is not None:
                    self._over_of[owner] -= 1
        elif any(over <= at for _, over in going):
            return
        self._pass_from = None

    # ---- handing out --------------------------------------------------------------------------------------------

    def next(self, member: Member) -> Entry | None:
        """Return the next message for a consumer, to be passed to `take`; None if there is none for it."""
        lane = self._turn(member)
        if lane is not None:
            return lane.waiting[0]
        return self._free[0] if self._free else None

    def _turn(self, member: Member) -> Lane | None:
        """Return the lane whose turn it is; None for messages without a key, when the next one is older."""
        runnable = self._runnable.get(member)
        if not runnable:
            return None
        lane = runnable[0]
        return None if self._free and self._free[0] < lane.waiting[0] else lane

    def take(self, member: Member, entry: Entry, *, deliver: bool = True) -> None:
        """Take the message that `next` returned: it is in flight at that consumer, or (no `deliver`) done."""
        self.waiting -= 1
        if self._free and self._free[0] is entry:
            heapq.heappop(self._free)
            if deliver:
                self._lane_of[entry.offset] = None
            return
        lane = self._runnable[member].popleft()
        lane.queued_at = None
        heapq.heappop(lane.waiting)
        self._waiting_in[lane.slot] -= 1
        if deliver:
            lane.in_flight += 1
            lane.owner = member
            self._lane_of[entry.offset] = lane
        self._rest(lane)

    def _rest(self, lane: Lane) -> None:
        """Queue a lane again after a change, or forget it when it is empty."""
        if lane.waiting:
            self._queue(lane)
        elif not lane.in_flight:
            if lane.until:
                lane.until = 0.0
            del self._lanes[lane.key]

    def has_work(self, member: Member) -> bool:
        """Say whether `next` has something for this consumer."""
        return bool(self._free) or bool(self._runnable.get(member))

    @property
    def has_free(self) -> bool:
        """Whether messages without a key wait, which any consumer may have."""
        return bool(self._free)

    # ---- what comes back ----------------------------------------------------------------------------------------

    def settle(self, first: int, end: int) -> None:
        """Take [first, end) out of what is in flight: it is acknowledged, or handled elsewhere."""
        lane_of = self._lane_of
        if end - first > len(lane_of):
            offsets = [offset for offset in lane_of if first <= offset < end]
        else:
            offsets = [offset for offset in range(first, end) if offset in lane_of]
        for offset in offsets:
            lane = lane_of.pop(offset)
            if lane is not None:
                self._let_go(lane, offset)
                lane.in_flight -= 1
                if not lane.in_flight:
                    lane.owner = None
                self._rest(lane)

    def hold(self, first: int, end: int) -> None:
        """Block the keys of what is in flight of [first, end) until that is settled or given back."""
        for offset in range(first, end):
            lane = self._lane_of.get(offset)
            if lane is not None and offset not in self._held:
                self._held.add(offset)
                lane.held += 1
                self._unqueue(lane)

    def _let_go(self, lane: Lane, offset: int) -> None:
        if lane.held and offset in self._held:
            self._held.remove(offset)
            lane.held -= 1

    def is_in_flight(self, offset: int) -> bool:
        """Say whether a message is in flight."""
        return offset in self._lane_of

    def give_back(self, held: Held, until_s: float = 0.0) -> None:
        """Return messages in flight to their lanes, in order; neither they nor their keys go before `until_s`.

        Messages that are not in flight any more, because they were acknowledged meanwhile, are dropped.
        """
        for offset in range(held.first, held.end):
            if offset not in self._lane_of:
                continue
            lane = self._lane_of.pop(offset)
            if lane is None:
                self._give_back_free(Entry(offset, held.attempt, held.failures), until_s)
                continue
            self._let_go(lane, offset)
            lane.in_flight -= 1
            if not lane.in_flight:
                lane.owner = None
            self._wait(self._asleep_until(lane, until_s), Entry(offset, held.attempt, held.failures))

    def _asleep_until(self, lane: Lane, until_s: float) -> Lane:
        """Let a lane hand out nothing before a monotonic time, and return it."""
        if until_s > lane.until:
            lane.until = until_s
            self._ticket += 1
            heapq.heappush(self._asleep, (until_s, self._ticket, lane))
            self._unqueue(lane)
        return lane

    def _give_back_free(self, entry: Entry, until_s: float) -> None:
        if until_s:
            heapq.heappush(self._free_asleep, (until_s, entry))
        else:
            self._wait_free(entry)

    def _unqueue(self, lane: Lane) -> None:
        if lane.queued_at is not None:
            self._runnable[lane.queued_at].remove(lane)
            lane.queued_at = None

    def wake(self, now_s: float) -> None:
        """Let lanes continue whose back-off is over."""
        while self._asleep and self._asleep[0][0] <= now_s:
            until, _, lane = heapq.heappop(self._asleep)
            if lane.until == until:
                lane.until = 0.0
                self._queue(lane)
        while self._free_asleep and self._free_asleep[0][0] <= now_s:
            self._wait_free(heapq.heappop(self._free_asleep)[1])

    def next_wake_s(self) -> float | None:
        """Return when `wake` may next release something, in monotonic seconds, or None."""
        while self._asleep and self._asleep[0][2].until != self._asleep[0][0]:
            heapq.heappop(self._asleep)
        times = [heap[0][0] for heap in (self._asleep, self._free_asleep) if heap]
        return min(times, default=None)

    # ---- the rest -----------------------------------------------------------------------------------------------

    def blocked(self) -> Iterator[Lane]:
        """Yield the lanes that have waiting messages and may hand out nothing at present."""
        for lane in self._lanes.values():
            if lane.waiting and lane.queued_at is None:
                yield lane
