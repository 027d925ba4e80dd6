"""Which of a consumer's delivered messages its program has in hand, as far as its client reports; pure.

A client that reports says how many of the messages delivered since the handle was opened, in the order of delivery, the
program has or may take without a further report. All others wait in the client.

A message that may not fail again (it is delivered SINGLY) is in hand only after the client has reported it alone and
was answered, before it hands the message out.

Invariants
- a message is reported once; messages that were taken back meanwhile are not reported any more
- memory is a few numbers for each piece that waits in a client
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

Range = tuple[int, int]
Part = Range | list[int]  # a half-open range, or offsets that lie apart: a list
_Waiting = tuple[int, int, int, list[int] | None]  # see `InHand._waiting`


class InHand:
    """One consumer's messages that wait in its client, in the order of delivery."""

    def __init__(self) -> None:
        # (place of the first message in the order of delivery, its offset, the end, None), or the same with the list of
        # the messages where they lie apart
        self._waiting: deque[_Waiting] = deque()
        self._singly: deque[_Waiting] = deque()
        self._place = 0  # how many messages were delivered
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
                self._singly.append((place, first, end, None))
                waiting.append((first, end))
                continue
            if first < cut:
                taken.append((first, cut))
            if cut < end:
                self._waiting.append((place + cut - first, cut, end, None))
                waiting.append((cut, end))
        return taken, waiting

    def deliver_scattered(self, offsets: list[int]) -> tuple[list[int], list[int]]:
        """Do so for a delivery of messages that lie apart, which the program may take together."""
        place = self._place
        self._place += len(offsets)
        known = min(max(self._told - place, 0), len(offsets))
        if not known:  # the list itself, by which what is in flight knows the whole delivery again
            self._waiting.append((place, offsets[0], offsets[-1] + 1, offsets))
            return [], offsets
        taken, waiting = (offsets[:known], offsets[known:]) if known < len(offsets) else (offsets, [])
        if waiting:
            self._waiting.append((place + known, waiting[0], waiting[-1] + 1, waiting))
        return taken, waiting

    def tell(self, count: int) -> list[Part]:
        """Note that the program may have the first `count` messages; return those that waited until now."""
        self._told = max(self._told, count)
        return _take(self._waiting, count)

    def confirm(self, count: int) -> list[Part]:
        """Note that the program is about to get message number `count` alone; return it and others reported."""
        taken = self.tell(count)
        _take(self._singly, count - 1)  # handed out before, or never
        return taken + _take(self._singly, count)

    @property
    def waits(self) -> bool:
        """Whether any message waits."""
        return bool(self._waiting or self._singly)

    def first(self) -> int | None:
        """Return the offset of the first message that waits, or None; also None if it has to be confirmed alone."""
        waits = self._waiting and not (self._singly and self._singly[0][0] < self._waiting[0][0])
        return self._waiting[0][1] if waits else None

    def forget(self) -> None:
        """Forget what waited: it was taken back, and later deliveries are counted after it."""
        self._waiting.clear()
        self._singly.clear()


def _take(queue: deque[_Waiting], count: int) -> list[Part]:
    """Take out what is among the first `count` messages."""
    taken: list[Part] = []
    while queue and queue[0][0] < count:
        place, first, end, offsets = queue.popleft()
        if offsets is not None:
            rest = offsets[count - place :]
            taken.append(offsets[: count - place] if rest else offsets)
            if rest:
                queue.appendleft((count, rest[0], end, rest))
            continue
        cut = min(end, first + count - place)
        taken.append((first, cut))
        if cut < end:
            queue.appendleft((place + cut - first, cut, end, None))
    return taken
