"""Where published messages are, and who waits to learn it: what receipts need that cannot be compiled.

A compiled dataclass that is frozen cannot be pickled. Pure: no socket, clock or thread lives here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ister.compiling import Unchecked

S_contra = TypeVar("S_contra", contravariant=True)


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


class Waiter(Protocol[S_contra]):
    """Who can wait for a shipment (of that type): the producer that sent it."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """What guards the shipment while it is resolved."""

    def wait_for(self, shipment: S_contra, timeout: float | Unchecked | None) -> bool:
        """Wait until the shipment is resolved; False when the time (seconds) ran out first."""

    def why_waiting(self) -> str:
        """Say in words what the producer is waiting for."""
