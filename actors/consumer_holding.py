"""What a consumer holds: what is in flight, what its program has in hand, and what may be acknowledged; pure.

Invariants
- what was delivered and neither acknowledged nor given back is in flight, and nowhere else
- what the program has, or may have, has a deadline; what waits in its client has none
- an acknowledgment of what was never delivered changes nothing and is an error; of what was delivered before the
  subscription was moved, it changes nothing and is none
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ister.actors.in_hand import InHand
from ister.actors.ledger import NEVER, Held, InFlight
from ister.errors import RemoteError
from ister.storage.ranges import RangeSet

if TYPE_CHECKING:
    from ister.actors.pieces import Piece

Range = tuple[int, int]

# A consumer that holds so many ranges unacknowledged gets nothing until it has fewer: some 4 MB. Messages that were
# delivered together are one range, however many they are.
IN_FLIGHT_RANGES_MAX: Final = 20_000
SINCE_RANGES_MAX: Final = 500  # of what was delivered since the subscription was moved: 8 KB


class Holding:
    """What one consumer holds; where it does not acknowledge, nothing is held, and only how far it got is known."""

    def __init__(self, *, acknowledges: bool) -> None:
        self.in_flight = InFlight()
        self.delivered_end = 0
        self.ack_timeout_s = 0.0
        self.crowded = False  # holds so much in pieces that it is given nothing more
        self.times_moved = 0
        self.moved_since_opened = False  # its client may not have heard of it
        self._acknowledges = acknowledges
        self._failures_max = 0
        self._in_hand = InHand()
        self._since: RangeSet | None = None  # the subscription was moved: what was delivered here since then
        self._since_before: RangeSet | None = None  # the same of the move before, should this one fail

    def go_by(self, ack_timeout_ms: int, failures_max: int) -> None:
        """Take other settings for what is delivered from now on."""
        self.ack_timeout_s = ack_timeout_ms / 1000
        self._failures_max = failures_max

    def begin(self, position: int) -> None:
        """Everything below a position was delivered before, to somebody."""
        self.delivered_end = max(self.delivered_end, position)

    def begin_anew(self) -> None:
        """The handle is open, perhaps again: its client counts from here what it tells of."""
        self._in_hand = InHand()
        self.moved_since_opened = False

    # ---- delivering ---------------------------------------------------------------------------------------------

    def deliver(self, piece: Piece) -> bool:
        """Note a piece as in flight; return whether from now on this holds too much to be given more."""
        if piece.end > self.delivered_end:
            self.delivered_end = piece.end
        if not self._acknowledges:
            return False
        in_flight = self.in_flight
        for first, end in piece.parts:
            in_flight.deliver(first, end, piece.attempt, NEVER, piece.failures)
        if self._since is not None:
            self._note_since(piece)
        if self.crowded or len(in_flight) <= IN_FLIGHT_RANGES_MAX:
            return False
        self.crowded = True
        return True

    def is_last_chance(self, piece: Piece) -> bool:
        """Return whether one more failure is the last: then it must be known who had what in hand."""
        return 0 < self._failures_max <= piece.failures + 1

    def sent(self, piece: Piece, now_s: float, *, tells: bool, singly: bool) -> tuple[bool, bool]:
        """The client has a piece; return whether its program may have some of it, and whether some of it waits.

        What its program may have is to be acknowledged in time. A client that `tells` says itself what that is; what it
        hands out `singly`, of each message.
        """
        taken: Sequence[Range] = piece.parts
        waiting: Sequence[Range] = ()
        if tells:
            taken, waiting = self._in_hand.deliver(piece.parts, singly=singly)
        for first, end in taken:
            self.in_flight.extend(first, end, now_s + self.ack_timeout_s)
        return bool(taken), bool(waiting)

    def take(self, count: int, now_s: float, *, alone: bool) -> bool:
        """The program takes what waited in the client; return whether that is anything.

        From now on it is to be acknowledged in time. `alone`: it is about to get message number `count`, by itself.
        """
        taken = self._in_hand.confirm(count) if alone else self._in_hand.tell(count)
        for first, end in taken:
            self.in_flight.extend(first, end, now_s + self.ack_timeout_s)
        return bool(taken)

    def relieved(self) -> bool:
        """Return whether what held too much may be given more again."""
        if self.crowded and len(self.in_flight) * 2 < IN_FLIGHT_RANGES_MAX:
            self.crowded = False
            return True
        return False

    # ---- what the client says -----------------------------------------------------------------------------------

    def ranges(self, flat: Sequence[int]) -> tuple[Range, ...]:
        """Return the ranges of a frame. Raises RemoteError `invalid-argument`, `ack-unknown`."""
        ranges = tuple(zip(flat[::2], flat[1::2], strict=True))
        for first, end in ranges:
            if first >= end:
                raise RemoteError("invalid-argument", f"the range from {first} to before {end} is empty")
            if end > self.delivered_end:
                self._check_delivered(end)
        return ranges

    def _check_delivered(self, end: int) -> None:
        if end > self.delivered_end and self._since is None:
            raise RemoteError(
                "ack-unknown",
                f"offset {end - 1} was never delivered here (delivered: below {self.delivered_end})",
            )

    def acknowledge(self, ranges: tuple[Range, ...]) -> tuple[tuple[Range, ...], int]:
        """Take out what is done; return what of it counts, and how many messages were in flight."""
        settled: list[Held] = []
        for first, end in ranges:
            settled += self.in_flight.settle(first, end)
        if (
            len(ranges) > 1
        ):  # each once, however often they are named: there may be work for each message of them
            ranges = tuple(RangeSet(ranges))
        if self._since is not None:
            since = RangeSet((held.first, held.end) for held in settled)
            for first, end in ranges:
                for part in self._since.within(first, end):
                    since.add(*part)
            ranges = tuple(since)
        return ranges, messages_of(settled)

    def acknowledge_until(self, end: int, *, shared: bool) -> tuple[tuple[Range, ...] | None, int]:
        """Take out everything below `end`; return what of it counts, None where it is all of it, and how many messages.

        All of it counts, whoever holds it, unless the subscription is `shared`, or was moved since. Raises RemoteError
        `ack-unknown`.
        """
        self._check_delivered(end)
        settled = self.in_flight.settle(0, end)
        moved = self._since is not None and end - 1 not in self._since
        counts = tuple((held.first, held.end) for held in settled) if moved or shared else None
        return counts, messages_of(settled)

    def extend(self, ranges: Sequence[Range], deadline_s: float) -> None:
        """Give ranges another deadline."""
        for first, end in ranges:
            self.in_flight.extend(first, end, deadline_s)

    def refuse(self, ranges: Sequence[Range], *, taken_too: bool) -> list[Held]:
        """Take out what is refused, and return it; `taken_too`: with everything that the program has in hand."""
        held: list[Held] = []
        for first, end in ranges:
            held += self.in_flight.settle(first, end)
        if taken_too:  # the program failed, and does not know at what
            held += self.in_flight.release_taken()
        return held

    def holds_since_s(self) -> float | None:
        """Return since when it holds what it holds for longest."""
        deadline_s = self.in_flight.oldest_deadline_s()
        return None if deadline_s is None else deadline_s - self.ack_timeout_s

    # ---- what comes back ----------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether anything waits in the client."""
        return self._in_hand.waits

    def release(self, unsent: Sequence[Piece]) -> tuple[list[Held], list[Held]]:
        """Take back everything: what the program may have, and what it never had.

        What was never sent was no attempt.
        """
        never = [
            held._replace(attempt=held.attempt - 1)
            for piece in unsent
            for first, end in piece.parts
            for held in self.in_flight.settle(first, end)
        ]
        waiting = self.in_flight.release_waiting()
        return self.in_flight.release(), waiting + never

    def forget_hand(self) -> None:
        """Everything that waited was taken back; what is delivered from now on follows it."""
        self._in_hand.forget()

    def recall(self) -> list[Held]:
        """Take back what waits in the client."""
        waiting = self.in_flight.release_waiting()
        if waiting:
            self._in_hand.forget()
        return waiting

    def blame(self, held: list[Held], waiting: list[Held]) -> tuple[list[Held], list[Held]]:
        """Return what fails because the client was lost, and what does not, of what was released.

        What its program had in hand does. Had it nothing, it may have died before its word of the next message was on
        its way: that message fails then, so that one that kills whoever takes it is found out.
        """
        first = None if held else self._in_hand.first()
        if first is None:
            return held, waiting
        blamed = [part._replace(end=first + 1) for part in waiting if part.first == first]
        rest = [part._replace(first=first + 1) if part.first == first else part for part in waiting]
        return blamed, [part for part in rest if part.first < part.end]

    # ---- a subscription that is moved ---------------------------------------------------------------------------

    def moves(self) -> None:
        """The subscription is being moved: nobody acknowledges any more what was given back."""
        self._since_before, self._since = self._since, RangeSet()

    def moved(self, offset: int) -> None:
        """It goes on at another offset: acknowledgments of what was delivered before count no more."""
        self._since = RangeSet()
        self.delivered_end = offset
        self.times_moved += 1
        self.moved_since_opened = True

    def stayed(self) -> None:
        """It could not be moved: acknowledgments count as before."""
        self._since = self._since_before

    def _note_since(self, piece: Piece) -> None:
        """Record what is delivered since the subscription was moved; where that is in too many pieces, begin anew.

        What is forgotten by that can be acknowledged as long as it is in flight.
        """
        assert self._since is not None
        if len(self._since) > SINCE_RANGES_MAX:
            self._since = RangeSet()
        for first, end in piece.parts:
            self._since.add(first, end)


def messages_of(held: Sequence[Held]) -> int:
    """Return how many messages these are."""
    return sum(part.end - part.first for part in held)
