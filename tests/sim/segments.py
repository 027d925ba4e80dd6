"""The first offsets of the segments of logs, from the file names on brokers' disks: retention takes whole segments.

Every durable offset is in one segment permanently. What a power failure or a recovery took from a log's end is
forgotten; what retention took from its beginning is not.
"""

from __future__ import annotations

from bisect import bisect_right, insort

from ister.storage.segment import base_of


class SegmentNames:
    """The names on all disks; `named`, `unnamed` and `lost` are told of one machine's."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, str], list[int]] = {}  # machine, folder: ascending
        self._live: dict[tuple[str, str], set[int]] = {}

    def named(self, machine: str, path: str) -> None:
        """A file was given this name."""
        if (found := _parsed(path)) is None:
            return
        folder, base = found
        live = self._live.setdefault((machine, folder), set())
        live.add(base)
        bases = self._bases.setdefault((machine, folder), [])
        if base not in bases:
            insort(bases, base)

    def unnamed(self, machine: str, path: str) -> None:
        """A file's name was removed: at the beginning by retention; elsewhere the segment never counted."""
        if (found := _parsed(path)) is None:
            return
        folder, base = found
        live = self._live.get((machine, folder), set())
        if base in live:
            if base != min(live):
                self._bases[machine, folder].remove(base)
            live.discard(base)

    def lost(self, machine: str, names: list[str]) -> None:
        """The power failed; these names are left."""
        left: dict[tuple[str, str], set[int]] = {}
        for path in names:
            if (found := _parsed(path)) is not None:
                left.setdefault((machine, found[0]), set()).add(found[1])
        for place, bases in self._bases.items():
            if place[0] != machine:
                continue
            now = left.get(place, set())
            gone = {base for base in self._live[place] - now if not now or base > min(now)}
            self._bases[place] = sorted({*bases, *now} - gone)
            self._live[place] = now

    def of(self, topic: str, offset: int) -> tuple[int, int]:
        """Return where the segment with this offset begins, and how many segments there are from it on.

        If the disks do not agree: the lowest offset, and the highest number.
        """
        begins, numbers = [0], [1]
        for (_, folder), bases in self._bases.items():
            if folder.rpartition(".")[0] == topic and (at := bisect_right(bases, offset)):
                begins.append(bases[at - 1])
                numbers.append(len(bases) - at + 1)
        return min(begins[1:], default=0), max(numbers)


def _parsed(path: str) -> tuple[str, int] | None:
    """Return the folder's name of a segment, and its first offset."""
    folder, _, name = path.rpartition("/")
    above, _, topic = folder.rpartition("/")
    base = base_of(name) if above.endswith("/topics") else None
    return None if base is None else (topic, base)
