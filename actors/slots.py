"""Which consumer of a Key-Shared subscription owns which slot of keys; pure.

A new consumer takes slots from those that have most; one that leaves hands its slots to those that have least. So most
keys stay where they are, and a change costs a logarithm of the number of consumers for each slot that moves.

Which messages wait in a slot is for `lanes.py`.
"""

from __future__ import annotations

import heapq
from typing import Final

from ister.actors.selection import Member

SLOTS: Final = 1 << 14  # additional consumers would get no slot; 128 KB


class Slots:
    """The slots, each with its owner; `owners` stays the same list."""

    __slots__ = ("_least", "_most", "of", "owners")

    def __init__(self) -> None:
        self.owners: list[Member | None] = [None] * SLOTS
        self.of: dict[Member, list[int]] = {}  # by consumer, in the order of their age
        # Heaps of (count, age, consumer) for the consumers with most and least slots; some entries are outdated.
        self._most: list[tuple[int, int, Member]] = []
        self._least: list[tuple[int, int, Member]] = []

    def attach(self, member: Member) -> tuple[list[int], dict[Member, list[int]]]:
        """Give a consumer its share; return it, and what each other consumer gave of it."""
        mine: list[int] = []
        given: dict[Member, list[int]] = {}  # in an order that is the same in every run
        if not self.of:
            mine = list(range(SLOTS))
        else:
            share, count = SLOTS // (len(self.of) + 1), len(self.of)
            if share >= count:  # each gives some: all at once
                left, more = divmod(SLOTS - share, count)
                donors = sorted(self.of, key=lambda each: (-len(self.of[each]), each.age))
                for at, donor in enumerate(donors):
                    slots = self.of[donor]
                    keeps = left + (at >= count - more)
                    if part := slots[keeps:]:
                        given[donor] = part
                        mine += part
                        del slots[keeps:]
                self._count_all()
            else:
                for _ in range(share):
                    donor = self._first_of(self._most, -1)
                    mine.append(slot := self.of[donor].pop())
                    given.setdefault(donor, []).append(slot)
                    self._count(donor)
        self.of[member] = mine
        self._count(member)
        for slot in mine:
            self.owners[slot] = member
        return mine, given

    def detach(self, member: Member) -> tuple[list[int], dict[Member, list[int]]]:
        """Take a consumer's slots; return them, and what each other consumer got, nothing if there is no other."""
        mine = self.of.pop(member)
        got: dict[Member, list[int]] = {}
        if self.of and len(mine) >= len(self.of):  # each gets some: all at once
            least, more = divmod(SLOTS, len(self.of))
            at = 0
            for number, heir in enumerate(sorted(self.of, key=lambda each: (-len(self.of[each]), each.age))):
                slots = self.of[heir]
                if part := mine[at : (at := at + least + (number < more) - len(slots))]:
                    got[heir] = part
                    slots += part
                    for slot in part:
                        self.owners[slot] = heir
            self._count_all()
            return mine, got
        for slot in mine:
            if not self.of:
                self.owners[slot] = None
                continue
            heir = self._first_of(self._least, 1)
            self.owners[slot] = heir
            self.of[heir].append(slot)
            got.setdefault(heir, []).append(slot)
            self._count(heir)
        return mine, got

    def _count(self, member: Member) -> None:
        """Note that a consumer's number of slots has changed."""
        count, bound = len(self.of[member]), 4 * len(self.of) + 64
        for heap, sign in ((self._most, -1), (self._least, 1)):
            if len(heap) < bound:
                heapq.heappush(heap, (sign * count, member.age, member))
            else:  # most of the heap is outdated
                self._count_anew(heap, sign)

    def _count_all(self) -> None:
        """Note that the number of slots of all consumers has changed."""
        self._count_anew(self._most, -1)
        self._count_anew(self._least, 1)

    def _count_anew(self, heap: list[tuple[int, int, Member]], sign: int) -> None:
        heap[:] = [(sign * len(slots), each.age, each) for each, slots in self.of.items()]
        heapq.heapify(heap)

    def _first_of(self, heap: list[tuple[int, int, Member]], sign: int) -> Member:
        """Return the first consumer of `_most` or `_least`, which must not be empty."""
        while True:
            count, _, member = heap[0]
            if member in self.of and len(self.of[member]) == sign * count:
                return member
            heapq.heappop(heap)
