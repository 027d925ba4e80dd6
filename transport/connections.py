"""The session of each connection, so that the end of a connection ends or suspends the right session; pure.

A connection is known by its descriptor in this process. The socket's monitor reports the descriptor when a connection
is accepted and when it is closed, and every message carries it. The monitor may be ahead of the messages: what a client
sent before its connection was closed may not have been read yet.

Invariants
- a descriptor that is used again is never mistaken for its previous connection
- a session is found by the connection it used last, or not at all
"""

from __future__ import annotations

from typing import Generic, TypeVar

S = TypeVar("S")


class Connections(Generic[S]):
    """The open connections, and the sessions that said HELLO over them."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[S, bytes] | None] = {}  # by descriptor: the session, and its routing id

    def __len__(self) -> int:
        return len(self._open)

    def accepted(self, descriptor: int) -> None:
        """Note that a connection was accepted."""
        self._open[descriptor] = None

    def closed(self, descriptor: int) -> tuple[S, bytes] | None:
        """Note that a connection was closed; return the session that said HELLO over it."""
        return self._open.pop(descriptor, None)

    def greeted(self, descriptor: int, who: S, routing: bytes) -> list[tuple[S, bytes]]:
        """Note that a session said HELLO; return the sessions whose connections are therefore known to be closed."""
        if descriptor not in self._open:
            return [(who, routing)]  # the connection was closed before its HELLO was read
        before = self._open[descriptor]
        self._open[descriptor] = (who, routing)
        return [] if before is None or before[1] == routing else [before]
