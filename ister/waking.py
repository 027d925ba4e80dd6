"""Which thread or task waits for what, so that of a thousand only those concerned are woken. Pure.

A key is what is waited for: a producer or consumer, a request, a shipment, a reply. A waiter for `None` hears of
everything.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


class News:
    """What has changed since it was last taken: the keys concerned, or possibly everything."""

    __slots__ = ("everything", "keys")

    def __init__(self) -> None:
        self.keys: set[object] = set()
        self.everything = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.keys)

    def add(self, other: News) -> None:
        """Take in what another has."""
        self.keys |= other.keys
        self.everything = self.everything or other.everything

    def take(self) -> News:
        """Return what there is, and start again."""
        taken = News()
        taken.keys, taken.everything = self.keys, self.everything
        self.keys, self.everything = set(), False
        return taken


class Waiters(Generic[W]):
    """Those who wait, by what they wait for."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[object, dict[W, None]] = {}  # an ordered set each: whoever came first leads first

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def add(self, key: object, waiter: W) -> None:
        """Let somebody wait for a key."""
        self._by_key.setdefault(key, {})[waiter] = None

    def discard(self, key: object, waiter: W) -> None:
        """Let somebody wait for a key no more; whoever does not, is not an error."""
        waiting = self._by_key.get(key)
        if waiting is not None:
            waiting.pop(waiter, None)
            if not waiting:
                del self._by_key[key]

    def first(self) -> W | None:
        """Return one of them, if there is any."""
        for waiting in self._by_key.values():
            return next(iter(waiting))
        return None

    def concerned(self, news: News) -> Iterable[W]:
        """Return those whom some news concern."""
        if news.everything:
            return [waiter for waiting in self._by_key.values() for waiter in waiting]
        keys: list[object] = [None]
        if len(news.keys) <= len(self._by_key):
            keys += [key for key in news.keys if key in self._by_key]
        else:
            keys += [key for key in self._by_key if key in news.keys]
        return [waiter for key in keys for waiter in self._by_key.get(key, ())]
