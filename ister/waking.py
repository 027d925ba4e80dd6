"""Which waiting threads or tasks are affected by a change, so that of a thousand only those are woken. Pure.

A key is what is waited for: a producer or consumer, a request, a shipment, a reply. A waiter for `None` is woken by
every change.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


class News:
    """What has changed since the last `take`: the keys affected, or possibly everything."""

    __slots__ = ("everything", "keys")

    def __init__(self) -> None:
        self.keys: set[object] = set()
        self.everything = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.keys)

    def add(self, other: News) -> None:
        """Add the changes of another one."""
        self.keys |= other.keys
        self.everything = self.everything or other.everything

    def take(self) -> News:
        """Return the changes, and start over."""
        taken = News()
        taken.keys, taken.everything = self.keys, self.everything
        self.keys, self.everything = set(), False
        return taken


class Waiters(Generic[W]):
    """The waiters, by what they wait for."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        # ordered sets: the first in the queue reads for the others
        self._by_key: dict[object, dict[W, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def add(self, key: object, waiter: W) -> None:
        """Add a waiter for a key."""
        self._by_key.setdefault(key, {})[waiter] = None

    def discard(self, key: object, waiter: W) -> None:
        """Remove a waiter for a key, if it is there."""
        waiting = self._by_key.get(key)
        if waiting is not None:
            waiting.pop(waiter, None)
            if not waiting:
                del self._by_key[key]

    def first(self) -> W | None:
        """Return one of the waiters, or None."""
        for waiting in self._by_key.values():
            return next(iter(waiting))
        return None

    def concerned(self, news: News) -> Iterable[W]:
        """Return the waiters that some changes affect."""
        if news.everything:
            return [waiter for waiting in self._by_key.values() for waiter in waiting]
        keys: list[object] = [None]
        if len(news.keys) <= len(self._by_key):
            keys += [key for key in news.keys if key in self._by_key]
        else:
            keys += [key for key in self._by_key if key in news.keys]
        return [waiter for key in keys for waiter in self._by_key.get(key, ())]
