"""Which session uses which connection, so that a closed connection identifies its session; pure.

A connection is known by its descriptor in this process. The socket's monitor reports the descriptor when a connection
is accepted and when it is closed, and every message carries it. The monitor may be ahead of the messages: what a
client sent before its connection was closed may not have been read yet.

Invariants
- a descriptor that is used again never stands for its previous connection
- a session is found by the connection it used last, or not at all
"""

from __future__ import annotations

from typing import Generic, TypeVar

S = TypeVar("S")


class Connections(Generic[S]):
    """The connections that are open now, and who said hello over them."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[S, bytes] | None] = {}  # by descriptor: who, and its routing id

    def __len__(self) -> int:
        return len(self._open)

    def accepted(self, descriptor: int) -> None:
        """Record that there is a connection."""
        self._open[descriptor] = None

    def closed(self, descriptor: int) -> tuple[S, bytes] | None:
        """Record that a connection is gone; return who said hello over it."""
        return self._open.pop(descriptor, None)

    def greeted(self, descriptor: int, who: S, routing: bytes) -> list[tuple[S, bytes]]:
        """Note who said hello; return those whose connections are known by that to be gone."""
        if descriptor not in self._open:
            return [(who, routing)]  # it was closed before its hello was read
        before = self._open[descriptor]
        self._open[descriptor] = (who, routing)
        return [] if before is None or before[1] == routing else [before]
