"""Who has a key: one consumer at a time, as far as its clients can know.

Pure. A client that was given a message has it until it acknowledges, gives it back or closes; but a broker that lost
the client's session has taken it back without saying so. Two who have one key are therefore a suspicion at first, and
a violation only when both turn out to have been attached all the time: the broker confirms, in the same opening,
acknowledgments that each of them made afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

# A consumer opens again whenever its session or its worker was lost: then nothing it had is its own any more.
Opening = tuple[object, int]  # a consumer, and its how many-th opening

SUSPICIONS_MAX: Final = 1000


class Holders:
    """The keys of one subscription, and who has a message of them in hand."""

    def __init__(self) -> None:
        self.found = 0  # suspicions so far
        self._in_hand: defaultdict[bytes, dict[int, Opening]] = defaultdict(dict)
        self._keys: dict[int, bytes] = {}
        self._last: dict[bytes, object] = {}
        self._suspicions: dict[frozenset[Opening], _Suspicion] = {}

    def give(self, consumer: object, opening: int | None, key: bytes, offset: int) -> bool:
        """A consumer has a message now; return whether the key was with another before."""
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
        """A consumer acknowledges a message, or gives it back."""
        key = self._keys.get(offset)
        if key is not None:
            holder = self._in_hand[key].get(offset)
            if holder is not None and holder[0] is consumer:
                del self._in_hand[key][offset]
                del self._keys[offset]

    def leave(self, consumer: object) -> None:
        """A consumer closes: nothing is in its hands any more."""
        for holding in self._in_hand.values():
            for offset in [offset for offset, holder in holding.items() if holder[0] is consumer]:
                del holding[offset]
                del self._keys[offset]
        for pair in [pair for pair in self._suspicions if any(who[0] is consumer for who in pair)]:
            del self._suspicions[pair]

    def alive(self, consumer: object, opening: int, mark: int) -> list[str]:
        """A consumer was attached all the time since `found` was `mark`; return what is certain now."""
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
