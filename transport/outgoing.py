"""The bytes waiting in a worker's memory for clients that do not read, bounded for all of them together.

ZeroMQ's queue to a client is bounded by a number of messages, and a consumer's credit by what its client may hold. A
hundred clients that stop reading, each with the largest credit, would need gigabytes. This module counts what was given
to ZeroMQ for each connection, and checks from time to time how much of it the peer's kernel has received.

Invariants
- above `QUEUED_BYTES_MAX` clients with waiting bytes get no more; clients that read have none waiting, and continue
- above `QUEUED_BYTES_END` the connections with most bytes waiting and no progress for a while are closed; their
  sessions resume

Pure except for the clock and the functions it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from ister.clock import Clock

QUEUED_BYTES_MAX: Final = 48 << 20
QUEUED_BYTES_END: Final = 72 << 20
OWES_MIN: Final = 16 << 10  # bytes; less than this counts as nothing waiting
OWES_MOVING: Final = 512 << 10  # bytes; a client that reads at full speed has this much in transit
MOVED_S: Final = 0.1
STUCK_S: Final = 2.0
LOOK_S: Final = 0.01
# seconds per connection and check, so that checking takes a twentieth of the time at most
LOOK_EACH_S: Final = 0.00005


class Counted(Protocol):
    """The account of one connection."""

    sent: int
    acked: int
    moved_s: float


C = TypeVar("C", bound=Counted)


class Outgoing:
    """The bytes in transit to all connections.

    `acknowledged(c)` returns how many bytes the peer has, `end(c, why)` closes a connection.
    """

    def __init__(
        self, clock: Clock, acknowledged: Callable[[C], int | None], end: Callable[[C, str], None]
    ) -> None:
        self._clock = clock
        self._acknowledged: Callable[..., int | None] = acknowledged
        self._end: Callable[..., None] = end
        self._owing: dict[Counted, None] = {}
        self._look_at_s = 0.0
        self.queued = 0  # at most this many bytes

    def may_send(self, connection: Counted) -> bool:
        """Return whether there is room for a message that may wait."""
        if self.queued <= QUEUED_BYTES_MAX:
            return True
        if self._clock.monotonic() >= self._look_at_s:
            self._look()
            if self.queued <= QUEUED_BYTES_MAX:
                return True
        now = self._clock.monotonic()
        if _owes(connection) > OWES_MIN:
            self._settle(connection, now)
        owes = _owes(connection)
        return owes <= OWES_MIN or (owes <= OWES_MOVING and now - connection.moved_s < MOVED_S)

    def sent(self, connection: Counted, size: int) -> None:
        """Note what was given to ZeroMQ."""
        if connection.sent == connection.acked:
            connection.moved_s = self._clock.monotonic()
        connection.sent += size
        self.queued += size
        self._owing[connection] = None

    def forget(self, connection: Counted) -> None:
        """Note that a connection was closed, and its queue dropped."""
        if connection in self._owing:
            del self._owing[connection]
            self.queued -= connection.sent - connection.acked

    def _settle(self, connection: Counted, now: float) -> None:
        """Note what the peer has by now."""
        found = self._acknowledged(connection)
        if found is None or found >= connection.sent:
            found = connection.sent
        if found > connection.acked:
            self.queued -= found - connection.acked
            connection.acked, connection.moved_s = found, now
        if connection.acked == connection.sent:
            self._owing.pop(connection, None)

    def _look(self) -> None:
        now = self._clock.monotonic()
        for connection in list(self._owing):
            self._settle(connection, now)
        if self.queued > QUEUED_BYTES_END:
            stuck = [each for each in self._owing if now - each.moved_s >= STUCK_S]
            for each in sorted(stuck, key=_owes, reverse=True):
                if self.queued <= QUEUED_BYTES_MAX:
                    break
                self.forget(each)
                self._end(
                    each,
                    f"{_owes(each)} bytes wait for a client that does not read, and too much waits in all",
                )
        self._look_at_s = now + max(LOOK_S, LOOK_EACH_S * len(self._owing))


def _owes(connection: Counted) -> int:
    return connection.sent - connection.acked
