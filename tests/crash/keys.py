"""Which consumer has a key: one at a time, as far as clients can know.

Pure. A client has a message until it acknowledges, refuses or closes; but a broker that lost the client's session has
taken it back without telling. So two consumers with one key are only a suspicion at first. It becomes a violation when
both turn out to have been attached all the time: in the same opening, the broker confirms acknowledgments that each of
them made afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

# A consumer opens again when its session or worker was lost: then it has nothing of before any more.
Opening = tuple[object, int]  # a consumer, and the number of its opening

SUSPICIONS_MAX: Final = 1000


class Holders:
    """The keys of one subscription, and which consumer has a message of each."""

    def __init__(self) -> None:
        self.found = 0  # the number of suspicions so far
        self._in_hand: defaultdict[bytes, dict[int, Opening]] = defaultdict(dict)
        self._keys: dict[int, bytes] = {}
        self._last: dict[bytes, object] = {}
        self._suspicions: dict[frozenset[Opening], _Suspicion] = {}

    def give(self, consumer: object, opening: int | None, key: bytes, offset: int) -> bool:
        """Note that a consumer has a message; return whether another one had the key before."""
        holding = self._in_hand[key]
        if opening is not None:
            who = (consumer, opening)
            for other, holder in holding.items():
                pair = frozenset((holder, who))
                new = holder[0] is not consumer and pair not in self._suspicions
                if new and len(self._suspicions) < SUSPICIONS_MAX:
                    text = f"{offset} of key {key!r} was given away while another had {other}"
                    self._suspicions[pair] = _Suspicion(self.found, text)
                    self.found += 1
            holding[offset] = who
            self._keys[offset] = key
        before = self._last.get(key)
        self._last[key] = consumer
        return before is not None and before is not consumer

    def release(self, consumer: object, offset: int) -> None:
        """Note that a consumer acknowledges or refuses a message."""
        key = self._keys.get(offset)
        if key is not None:
            holder = self._in_hand[key].get(offset)
            if holder is not None and holder[0] is consumer:
                del self._in_hand[key][offset]
                del self._keys[offset]

    def leave(self, consumer: object) -> None:
        """Note that a consumer closes: it has no messages any more."""
        for holding in self._in_hand.values():
            for offset in [offset for offset, holder in holding.items() if holder[0] is consumer]:
                del holding[offset]
                del self._keys[offset]
        for pair in [pair for pair in self._suspicions if any(who[0] is consumer for who in pair)]:
            del self._suspicions[pair]

    def alive(self, consumer: object, opening: int, mark: int) -> list[str]:
        """Note that a consumer was attached since `found` was `mark`; return the suspicions that are certain now."""
        certain = []
        for pair, suspicion in list(self._suspicions.items()):
            if (consumer, opening) in pair and suspicion.number < mark:
                suspicion.alive.add(consumer)
                if len(suspicion.alive) == len(pair):
                    certain.append(suspicion.text)
                    del self._suspicions[pair]
        return certain


class _Suspicion:
    __slots__ = ("alive", "number", "text")

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.alive: set[object] = set()
