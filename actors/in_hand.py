"""What of the messages that were delivered to a consumer its program has in hand, as far as its client tells; pure.

A client that tells says how many of the messages delivered since the handle was opened, in the order they were
delivered, the program has or may take without a further word. What it never said that of waits in the client.

A message that may fail no more (it is delivered SINGLY) is in hand only when the client has said so of it alone, and
was answered before it handed it out.

Invariants
- a message is told of once; what was taken back meanwhile is not told of any more
- memory is a few numbers a piece that waits in a client
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

Range = tuple[int, int]


class InHand:
    """One consumer's messages that wait in its client, in the order they were delivered."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int, int]] = deque()  # place of the first, its offset, the end
        self._singly: deque[tuple[int, int, int]] = deque()
        self._place = 0  # how many were delivered
        self._told = 0

    def deliver(self, parts: Sequence[Range], *, singly: bool) -> tuple[list[Range], list[Range]]:
        """Note a delivery; return what of it the program may have at once, and what waits."""
        if len(parts) == 1 and not singly:
            first, end = parts[0]
            if self._place + end - first <= self._told:  # as for a program that keeps up
                self._place += end - first
                return [(first, end)], []
        taken: list[Range] = []
        waiting: list[Range] = []
        for first, end in parts:
            place, self._place = self._place, self._place + end - first
            cut = end if singly else min(max(first + self._told - place, first), end)
            if singly:
                self._singly.append((place, first, end))
                waiting.append((first, end))
                continue
            if first < cut:
                taken.append((first, cut))
            if cut < end:
                self._waiting.append((place + cut - first, cut, end))
                waiting.append((cut, end))
        return taken, waiting

    def tell(self, count: int) -> list[Range]:
        """The program may have the first `count` messages; return those that waited until now."""
        self._told = max(self._told, count)
        return _take(self._waiting, count)

    def confirm(self, count: int) -> list[Range]:
        """The program is about to get message number `count`, alone; return it, and what else that says."""
        taken = self.tell(count)
        _take(self._singly, count - 1)  # handed out before, or never
        return taken + _take(self._singly, count)

    @property
    def waits(self) -> bool:
        """Whether there is anything that waits."""
        return bool(self._waiting or self._singly)

    def first(self) -> int | None:
        """Return the offset of the message that waits at the front, unless it is to be confirmed; None: none does."""
        waits = self._waiting and not (self._singly and self._singly[0][0] < self._waiting[0][0])
        return self._waiting[0][1] if waits else None

    def forget(self) -> None:
        """Everything was taken back; what is delivered from now on follows it."""
        self._waiting.clear()
        self._singly.clear()


def _take(queue: deque[tuple[int, int, int]], count: int) -> list[Range]:
    """Take out what is among the first `count` places."""
    taken: list[Range] = []
    while queue and queue[0][0] < count:
        place, first, end = queue.popleft()
        cut = min(end, first + count - place)
        taken.append((first, cut))
        if cut < end:
            queue.appendleft((place + cut - first, cut, end))
    return taken
