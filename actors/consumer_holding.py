"""The messages a consumer holds: those in flight, those its program has in hand, those it may acknowledge; pure.

Invariants
- a message that was delivered and neither acknowledged nor returned is in flight, and in no other place
- messages that the program has or may have, have a deadline; messages that wait in its client have none
- an acknowledgment of a message that was never delivered is an error; one of a message that was delivered before the
  subscription was moved is ignored
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import lt
from typing import TYPE_CHECKING, Final

from ister.actors.in_hand import InHand
from ister.actors.ledger import NEVER, Held, InFlight, Parcel
from ister.errors import RemoteError
from ister.storage.ranges import RangeSet

if TYPE_CHECKING:
    from ister.actors.pieces import Piece

Range = tuple[int, int]

# A consumer with this many unacknowledged ranges gets nothing until it has fewer: some 4 MB. Messages that were
# delivered together are one range, however many they are.
IN_FLIGHT_RANGES_MAX: Final = 20_000
SINCE_RANGES_MAX: Final = 500  # ranges of what was delivered since the subscription was moved: 8 KB


class Holding:
    """The messages one consumer holds. Where nothing is acknowledged, only how far it was delivered is kept."""

    def __init__(self, *, acknowledges: bool) -> None:
        self.in_flight = InFlight()
        self.delivered_end = 0
        self.ack_timeout_s = 0.0
        self.crowded = False  # holds so many ranges that it gets nothing more
        self.times_moved = 0
        self.moved_since_opened = False  # its client may not know of the move
        self._acknowledges = acknowledges
        self._failures_max = 0
        self._in_hand = InHand()
        # what was delivered here since the subscription was moved; None: never moved
        self._since: RangeSet | None = None
        self._since_before: RangeSet | None = None  # `_since` before the present move, in case that fails

    def go_by(self, ack_timeout_ms: int, failures_max: int) -> None:
        """Apply other settings to later deliveries."""
        self.ack_timeout_s = ack_timeout_ms / 1000
        self._failures_max = failures_max

    def begin(self, position: int) -> None:
        """Note that everything below `position` was delivered before, to some consumer."""
        self.delivered_end = max(self.delivered_end, position)

    def begin_anew(self) -> None:
        """Start counting deliveries at zero: the client opened the handle again, and counts from there."""
        self._in_hand = InHand()
        self.moved_since_opened = False

    # ---- delivering ---------------------------------------------------------------------------------------------

    def deliver(self, piece: Piece) -> bool:
        """Note a piece as in flight; return whether this consumer now holds too much to get more."""
        if piece.end > self.delivered_end:
            self.delivered_end = piece.end
        if not self._acknowledges:
            return False
        in_flight = self.in_flight
        if piece.scattered is not None:
            in_flight.deliver_scattered(
                piece.scattered, piece.attempt, piece.failures, piece.ranges, piece.flat
            )
        else:
            for first, end in piece.parts:
                in_flight.deliver(first, end, piece.attempt, NEVER, piece.failures)
        if self._since is not None:
            self._note_since(piece)
        if self.crowded or len(in_flight) <= IN_FLIGHT_RANGES_MAX:
            return False
        self.crowded = True
        return True

    def is_last_chance(self, piece: Piece) -> bool:
        """Return whether one more failure of a piece is the last allowed: then what is in hand must be known."""
        return 0 < self._failures_max <= piece.failures + 1

    def sent(self, piece: Piece, now_s: float, *, tells: bool, singly: bool) -> tuple[bool, bool]:
        """Note that a piece was sent; return whether the program may have some of it, and whether some of it waits.

        What the program may have gets a deadline. A client that `tells` reports what its program takes; where it hands
        out `singly`, for each message.
        """
        deadline_s = now_s + self.ack_timeout_s
        if piece.scattered is not None and not singly:
            apart, rest = self._in_hand.deliver_scattered(piece.scattered) if tells else (piece.scattered, [])
            if apart:
                self.in_flight.extend_scattered(apart, deadline_s)
            return bool(apart), bool(rest)
        taken: Sequence[Range] = piece.parts
        waiting: Sequence[Range] = ()
        if tells:
            taken, waiting = self._in_hand.deliver(piece.parts, singly=singly)
        for first, end in taken:
            self.in_flight.extend(first, end, deadline_s)
        return bool(taken), bool(waiting)

    def take(self, count: int, now_s: float, *, alone: bool) -> bool:
        """Note that the program took the first `count` messages; return whether any of them waited until now.

        They get a deadline. `alone`: the program is about to get message number `count` by itself.
        """
        taken = self._in_hand.confirm(count) if alone else self._in_hand.tell(count)
        deadline_s = now_s + self.ack_timeout_s
        for part in taken:
            if type(part) is list:
                self.in_flight.extend_scattered(part, deadline_s)
            else:
                first, end = part
                self.in_flight.extend(first, end, deadline_s)
        return bool(taken)

    def relieved(self) -> bool:
        """Return whether a consumer that held too much may get more again."""
        if self.crowded and len(self.in_flight) * 2 < IN_FLIGHT_RANGES_MAX:
            self.crowded = False
            return True
        return False

    # ---- what the client says -----------------------------------------------------------------------------------

    def ranges(self, flat: Sequence[int]) -> tuple[Range, ...]:
        """Return the ranges of a frame. Raises RemoteError `invalid-argument` or `ack-unknown`."""
        ranges = tuple(zip(flat[::2], flat[1::2], strict=True))
        if flat and flat[-1] <= self.delivered_end and all(map(lt, flat, flat[1:])):
            return ranges  # ascending and apart, the usual case
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

    def acknowledge_parcels(self, flat: list[int]) -> list[Parcel] | None:
        """Settle whole deliveries, whose ranges a frame has; None if it says something else, and nothing is done."""
        return self.in_flight.settle_parcels(flat) if flat and self._since is None else None

    def acknowledge(self, ranges: tuple[Range, ...]) -> tuple[tuple[Range, ...], int]:
        """Settle acknowledged ranges; return those that count, and how many messages were in flight here."""
        if self._since is None and len(ranges) > 1 and _are_apart(ranges):
            return ranges, self.in_flight.settle_all(ranges)
        settled: list[Held] = []
        for first, end in ranges:
            settled += self.in_flight.settle(first, end)
        if len(ranges) > 1:  # each once, however often it is named: each message may cost work later
            ranges = tuple(RangeSet(ranges))
        if self._since is not None:
            since = RangeSet((held.first, held.end) for held in settled)
            for first, end in ranges:
                for part in self._since.within(first, end):
                    since.add(*part)
            ranges = tuple(since)
        return ranges, messages_of(settled)

    def acknowledge_until(self, end: int, *, shared: bool) -> tuple[tuple[Range, ...] | None, int]:
        """Settle everything below `end`; return the ranges that count (None: all), and how many were in flight.

        Everything counts, whoever holds it, unless the subscription is `shared` or was moved since. Raises RemoteError
        `ack-unknown`.
        """
        self._check_delivered(end)
        settled = self.in_flight.settle(0, end)
        moved = self._since is not None and end - 1 not in self._since
        counts = tuple((held.first, held.end) for held in settled) if moved or shared else None
        return counts, messages_of(settled)

    def extend(self, ranges: Sequence[Range], deadline_s: float) -> None:
        """Give ranges another deadline, in seconds of the monotonic clock."""
        for first, end in ranges:
            self.in_flight.extend(first, end, deadline_s)

    def refuse(self, ranges: Sequence[Range], *, taken_too: bool) -> list[Held]:
        """Settle refused ranges and return them; `taken_too`: also everything else that the program has in hand."""
        held: list[Held] = []
        for first, end in ranges:
            held += self.in_flight.settle(first, end)
        if taken_too:  # the program failed, and does not know at which message
            held += self.in_flight.release_taken()
        return held

    def holds_since_s(self) -> float | None:
        """Return since when the consumer has held its oldest message, in monotonic seconds; None if it holds none."""
        deadline_s = self.in_flight.oldest_deadline_s()
        return None if deadline_s is None else deadline_s - self.ack_timeout_s

    # ---- what comes back ----------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether any message waits in the client."""
        return self._in_hand.waits

    def release(self, unsent: Sequence[Piece]) -> tuple[list[Held], list[Held]]:
        """Take back all messages: those the program may have, and those it never had.

        Pieces in `unsent` do not count as an attempt.
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
        """Forget what waited in the client: it was taken back, and later deliveries are counted after it."""
        self._in_hand.forget()

    def recall(self) -> list[Held]:
        """Take back what waits in the client."""
        waiting = self.in_flight.release_waiting()
        if waiting:
            self._in_hand.forget()
        return waiting

    def blame(self, held: list[Held], waiting: list[Held]) -> tuple[list[Held], list[Held]]:
        """Divide what was released from a lost client into what has failed, and what has not.

        What its program had in hand has failed. If it had nothing in hand, it may have died before the client could
        report the message it took next; then that message has failed, so that a message that kills every program is
        found.
        """
        first = None if held else self._in_hand.first()
        if first is None:
            return held, waiting
        blamed = [part._replace(end=first + 1) for part in waiting if part.first == first]
        rest = [part._replace(first=first + 1) if part.first == first else part for part in waiting]
        return blamed, [part for part in rest if part.first < part.end]

    # ---- a subscription that is moved ---------------------------------------------------------------------------

    def moves(self) -> None:
        """The subscription is being moved: what was returned cannot be acknowledged any more."""
        self._since_before, self._since = self._since, RangeSet()

    def moved(self, offset: int) -> None:
        """The subscription was moved to `offset`: acknowledgments of earlier deliveries do not count."""
        self._since = RangeSet()
        self.delivered_end = offset
        self.times_moved += 1
        self.moved_since_opened = True

    def stayed(self) -> None:
        """The subscription was not moved: acknowledgments count as before."""
        self._since = self._since_before

    def _note_since(self, piece: Piece) -> None:
        """Record what is delivered since the subscription was moved; start over when it is too many ranges.

        Messages that are forgotten by that can be acknowledged as long as they are in flight.
        """
        assert self._since is not None
        if len(self._since) > SINCE_RANGES_MAX:
            self._since = RangeSet()
        for first, end in piece.parts:
            self._since.add(first, end)


def _are_apart(ranges: Sequence[Range]) -> bool:
    """Return whether ranges ascend and do not touch."""
    flat = list(chain.from_iterable(ranges))
    return all(map(lt, flat, flat[1:]))


def messages_of(held: Sequence[Held]) -> int:
    """Return the number of messages in the ranges."""
    return sum(part.end - part.first for part in held)
