"""Where published messages are, and who waits to learn it: what receipts need that cannot be compiled.

A compiled dataclass that is frozen cannot be pickled. Pure: no socket, clock or thread lives here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ister.compiling import Unchecked

if TYPE_CHECKING:
    from ister.receipts import Shipment


@dataclass(frozen=True, slots=True)
class Published:
    """Where published messages are: the first one's `offset`, and how many follow it without a gap.

    `duplicate` means that nothing new was stored, because the message had been stored before. `offset` is `None` for a
    duplicate so old that the broker no longer knows the offset of the original.
    """

    topic: str
    offset: int | None
    count: int = 1
    duplicate: bool = False


class Waiter(Protocol):
    """Who can wait for a shipment: the producer that sent it."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """What guards the shipment while it is resolved."""

    def wait_for(self, shipment: Shipment, timeout: float | Unchecked | None) -> bool:
        """Wait until the shipment is resolved; False when the time (seconds) ran out first."""

    def why_waiting(self) -> str:
        """Say in words what the producer is waiting for."""
