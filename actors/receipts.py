"""What waits until a topic's log is durable to some point: receipts, answers to dead letters, closes, opens; pure.

Invariants
- each kind is due in the order of arrival, once the log is durable to where it was accepted, and not before
- what is taken out is due once: the caller answers or refuses it
- work is per batch: one list of numbers per handle, whatever came in between
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ister.actors.messages import CloseProducer, Deposit, OpenProducer
    from ister.transport.session import Handle

# Batches without a receipt: 512 producers with full windows; more than that ignores the windows they were told. With
# durability cloud eight have windows of 1,024 batches, and those that follow share as much again, or have the usual.
AWAITING_MAX: Final = 131_072
DEPOSITS_MAX: Final = 10_000  # one for each subscription that sends its dead letters here


class Receipts:
    """The waiting receipts and answers, each kind in the order of arrival.

    The topic's intake appends to `batches`: what must be durable for the batch, its handle, its sequence number, and
    the offset of its first message. `others` counts the other kinds. Both are public because they are used for every
    batch.
    """

    def __init__(self) -> None:
        self.batches: deque[tuple[int, Handle, int, int]] = deque()
        self.others = 0
        self._deposits: deque[tuple[int, Deposit]] = deque()
        self._closes: deque[tuple[int, CloseProducer]] = deque()
        self._opens: deque[tuple[int, OpenProducer]] = deque()

    # ---- what begins to wait ------------------------------------------------------------------------------------

    @property
    def full_of_deposits(self) -> bool:
        """Whether as many batches from inside the broker wait as may."""
        return len(self._deposits) >= DEPOSITS_MAX

    def deposit(self, end: int, deposit: Deposit) -> None:
        """Let a batch from inside the broker wait for its answer."""
        self._deposits.append((end, deposit))
        self.others += 1

    def close(self, end: int, command: CloseProducer) -> None:
        """Let a producer that closes wait for the receipts of what it sent before."""
        self._closes.append((end, command))
        self.others += 1

    def open(self, end: int, command: OpenProducer) -> None:
        """Let a producer that opens wait until what it is told is durable: it is promised like a receipt."""
        self._opens.append((end, command))
        self.others += 1

    # ---- what is due --------------------------------------------------------------------------------------------

    def due(self, end: int) -> dict[Handle, list[int]]:
        """Take out the receipts that are due, by handle: sequence and offset of each batch."""
        receipts: dict[Handle, list[int]] = {}
        batches = self.batches
        while batches and batches[0][0] <= end:
            _, handle, sequence, offset = batches.popleft()
            pairs = receipts.setdefault(handle, [])
            pairs.append(sequence)
            pairs.append(offset)
        return receipts

    def due_deposits(self, end: int | None = None) -> list[Deposit]:
        """Take out the batches from inside the broker that are due; without an end, all of them."""
        return self._due(self._deposits, end)

    def due_opens(self, end: int | None = None) -> list[OpenProducer]:
        """Take out the opens that are due; without an end, all of them."""
        return self._due(self._opens, end)

    def due_closes(self, end: int | None = None) -> list[CloseProducer]:
        """Take out the closes that are due; without an end, all of them."""
        return self._due(self._closes, end)

    def give_up(self) -> list[tuple[int, Handle, int, int]]:
        """Take out all batches: the outcome of those without a receipt is unknown."""
        given_up = list(self.batches)
        self.batches.clear()
        return given_up

    def unanswered(self) -> dict[Handle, int]:
        """Return by handle the first sequence number that has no receipt yet."""
        first: dict[Handle, int] = {}
        for _, handle, sequence, _ in self.batches:
            first[handle] = min(sequence, first.get(handle, sequence))
        return first

    def _due(self, queue: deque[tuple[int, Any]], end: int | None) -> list[Any]:
        due = []
        while queue and (end is None or queue[0][0] <= end):
            due.append(queue.popleft()[1])
        self.others -= len(due)
        return due
