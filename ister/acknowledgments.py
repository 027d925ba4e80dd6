"""What one consumer has acknowledged: gathered into ranges, sent, and kept until the broker has stored it.

Knows which deliveries the broker has forgotten: nothing is sent about their messages. What is handed out is in
`handing.py`, the rest of the conversation in `attachment.py`. Pure: no socket, clock or thread. The caller holds the
client's lock.

Invariants
- an acknowledgment from before the broker forgot the session is never sent: it would make its whole frame fail
- nor is one from before the subscription was moved: its message is to be delivered again
- memory is bounded: of what was sent and is not confirmed, at most `UNPROVEN_MAX` ranges are kept
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import lt
from typing import Final, Protocol

from ister import wire
from ister.message import Delivery
from ister.wire import Key, Type

# seconds that acknowledgments gather: at a million messages a second, 5,000 per frame
ACK_DELAY_S: Final = 0.005
ACK_RANGES_MAX: Final = 256  # scattered acknowledgments that are sent without waiting longer
# Ranges that were sent and not confirmed, kept to be sent again when the connection is lost. A program that
# acknowledges in order needs one. Consumers that share a subscription have as many as there are gaps between their
# messages: at UNPROVEN_ASK the broker is asked to confirm. Above the limit messages are redelivered, and `flush` says
# so.
UNPROVEN_MAX: Final = 4096
UNPROVEN_ASK: Final = 1024

Ranges = list[tuple[int, int]]  # half-open


class Speaker(Protocol):
    """What acknowledging needs of the consumer it is part of."""

    @property
    def is_open(self) -> bool:
        """Whether frames about messages may be sent now."""

    def say_of_messages(self, kind: int, more: wire.Header) -> None:
        """Send a frame about messages; only while it is open, or is about to be opened again."""

    def expect_confirmation(self) -> int:
        """Return a REF whose answer is brought to `Acknowledgments.confirmed`."""


class Run:
    """Acknowledged messages of one delivery, put down by any thread without the lock.

    A thread appends an offset to `offsets`, and then looks whether the run is still the current one of the
    `Acknowledgments`. Whoever closes a run replaces it first, and copies the offsets then. So either the copy has the
    offset, or the thread sees that it came too late, and acknowledges under the lock; twice does no harm. Appending and
    copying must each be one step, which a list guarantees, with the interpreter's lock and without.
    """

    __slots__ = ("delivery", "offsets")

    def __init__(self, delivery: Delivery | None) -> None:
        self.delivery = delivery
        self.offsets: list[int] = []


NO_RUN: Final = Run(None)  # of no delivery: the next acknowledgment takes the path with all checks


class Acknowledgments:
    """One consumer's acknowledgments: the present run, closed ones, and what was sent and is not confirmed.

    A run is open only while `due` is set: what is put down there is sent in time. (Unless nothing is sent at all.)
    """

    def __init__(self, speaker: Speaker) -> None:
        self.run = NO_RUN
        self.silent = False  # the broker wants none, of a reader or on a non-reliable topic
        # counts how often earlier deliveries became void, because the broker forgot them or was told to
        self.lineage = 0
        self.forgotten = False  # some were lost because the broker forgot; `Consumer.flush` says so once
        self.due: float | None = None  # when those gathered are to be sent, in the clock's seconds
        self.confirming: dict[int, Ranges] = {}  # by REF: what the broker was asked to confirm
        self._speaker = speaker
        self._sought = 0  # the lineage since the subscription was last moved
        self._ranges: Ranges = []
        self._until: int | None = None
        self._last_sent: tuple[int, int] | None = None  # since the broker last confirmed everything
        self._unproven: Ranges = []  # sent since then: they may be lost with the connection
        self._unproven_until = False  # an ACK_UNTIL, or more than is kept, is among what may be lost

    # ---- gathering -----------------------------------------------------------------------------------------------

    def add(self, delivery: Delivery, first: int, end: int, now: float) -> None:
        """Acknowledge the offsets from `first` up to `end`, soon."""
        if self.silent:
            self.run = Run(delivery)  # nothing is sent, and the next one is quick
            return
        if self.is_void(delivery):
            return
        if self.run.delivery is not delivery:
            self._close_run()
            self.run = Run(delivery)
        ranges = self._ranges
        if ranges and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((first, end))
        if self.due is None:
            self.due = now + ACK_DELAY_S
        if len(self._ranges) >= ACK_RANGES_MAX:
            self.flush()

    def add_runs(self, delivery: Delivery, runs: Ranges, now: float) -> None:
        """Acknowledge half-open ranges of offsets of one delivery, ascending; at least one.

        They travel in one frame if they fit: the broker settles a delivery as a whole in a fraction of the time.
        """
        if not self.silent and not self.is_void(delivery):
            if len(self._ranges) + len(runs) > wire.RANGES_MAX:
                self.flush()
            self._ranges += runs[:-1]
        self.add(delivery, *runs[-1], now)

    def add_until(self, delivery: Delivery, offset: int, now: float) -> None:
        """Acknowledge everything up to and including `offset`, soon."""
        if self.silent or self.is_void(delivery):
            return
        self._until = offset if self._until is None else max(self._until, offset)
        if self.due is None:
            self.due = now + ACK_DELAY_S

    def is_void(self, delivery: Delivery) -> bool:
        """Whether the broker has forgotten a delivery: nothing is to be said about its messages."""
        if delivery.lineage == self.lineage:
            return False
        if delivery.lineage >= self._sought:
            self.forgotten = True  # and the broker redelivers what it forgot
        return True

    @property
    def settled(self) -> bool:
        """Whether the broker has stored every acknowledgment made so far."""
        return self.silent or (
            not self._ranges and not self.confirming and self._until is None and self._last_sent is None
        )

    def _close_run(self) -> None:
        run, self.run = self.run, NO_RUN  # before the copy: see `Run`
        offsets = run.offsets[:]
        if offsets and not self.silent:
            self._ranges.extend(runs_of(offsets))

    # ---- sending -------------------------------------------------------------------------------------------------

    def flush(self, *, confirm: bool = False) -> None:
        """Send those gathered so far; with `confirm`, ask the broker to say when they are stored."""
        speaker = self._speaker
        if self.silent or not speaker.is_open:
            return
        self._close_run()
        ranges = joined(self._ranges)
        self._ranges = []
        confirm = confirm or (bool(ranges) and not self.confirming and len(self._unproven) >= UNPROVEN_ASK)
        self.due = None
        if self._until is not None:
            speaker.say_of_messages(Type.ACK_UNTIL, {Key.OFFSET: self._until})
            self._last_sent = (self._until, self._until + 1)
            self._unproven_until = True
            self._until = None
        if not ranges and confirm and self._last_sent is not None:
            # acknowledging again is harmless, and the answer covers the earlier ones
            ranges = [self._last_sent]
        for part in range(0, len(ranges), wire.RANGES_MAX):
            sent = ranges[part : part + wire.RANGES_MAX]
            more: wire.Header = {Key.RANGES: list(chain.from_iterable(sent))}
            if confirm and part + wire.RANGES_MAX >= len(ranges):
                ref = more[Key.REF] = speaker.expect_confirmation()
                self.confirming[ref] = [*self._unproven, *ranges]
                self._unproven = []
            speaker.say_of_messages(Type.ACK, more)
            self._last_sent = sent[-1]
        if confirm:
            self._last_sent = None
        else:
            self._keep(ranges)

    def repeat(self) -> None:
        """Repeat acknowledgments in a resumed session before opening again, so that nothing is redelivered.

        All of them are kept, and sent again when the handle is open: only then is it certain that the broker accepts
        them.
        """
        if self.silent:
            return
        if self._until is not None:
            self._speaker.say_of_messages(Type.ACK_UNTIL, {Key.OFFSET: self._until})
        self._close_run()
        self._ranges = joined(self._ranges)
        for flat in flattened(self._ranges):
            self._speaker.say_of_messages(Type.ACK, {Key.RANGES: flat})

    def _keep(self, ranges: Ranges) -> None:
        """Keep what was sent, in case it is lost in transit."""
        self._unproven.extend(ranges)
        most = UNPROVEN_MAX - sum(map(len, self.confirming.values()))
        if len(self._unproven) > most:
            self._unproven = joined(self._unproven)
            if len(self._unproven) > most:
                self._unproven_until = True
                del self._unproven[: UNPROVEN_MAX // 2]

    def confirmed(self, ref: int) -> bool:
        """Record the answer to a confirmation; False where what it covered was void before it came."""
        if self.confirming.pop(ref, None) is None:
            return False  # the consumer was closed or moved meanwhile
        if not self.confirming and self._last_sent is None:
            self._unproven_until = False
        return True

    # ---- losing --------------------------------------------------------------------------------------------------

    def on_lost(self) -> None:
        """The connection is gone: what was sent and not confirmed is to be sent again."""
        self._close_run()
        for ranges in self.confirming.values():
            self._ranges.extend(ranges)
        self.confirming.clear()
        self._ranges.extend(self._unproven)
        self._unproven = []
        self._last_sent = None
        if self._unproven_until:  # what it covered is not known here: it is redelivered
            self._unproven_until = False
            self.forgotten = True

    def forget(self) -> None:
        """The broker has forgotten what it had delivered: deliveries and acknowledgments from before are void."""
        self.lineage += 1
        self.drop()

    def on_sought(self) -> None:
        """The subscription was moved: deliveries and acknowledgments from before are void, as was asked for."""
        self.lineage += 1
        self._sought = self.lineage
        forgotten = self.forgotten
        self.drop()
        self.forgotten = forgotten  # only what was meant to be redelivered is

    def drop(self) -> None:
        """Drop all that the broker has not written."""
        self.forgotten = self.forgotten or not self.settled
        self._close_run()
        self._ranges.clear()
        self.confirming.clear()
        self._unproven.clear()
        self._unproven_until = False
        self._until = self.due = self._last_sent = None


def flattened(ranges: Ranges) -> Iterator[list[int]]:
    """Yield the ranges as they travel, as many as fit a frame at a time."""
    for part in range(0, len(ranges), wire.RANGES_MAX):
        yield list(chain.from_iterable(ranges[part : part + wire.RANGES_MAX]))


def runs_of(offsets: list[int]) -> Ranges:
    """Return the ranges of some offsets, at least one, which are usually consecutive; sorts them if they are not."""
    first, count = offsets[0], len(offsets)
    if offsets == list(range(first, first + count)):
        return [(first, first + count)]
    offsets.sort()
    found = []
    end = first = offsets[0]
    for offset in offsets:
        if offset > end:
            found.append((first, end))
            first = offset
        end = offset + 1
    return [*found, (first, end)]


def joined(ranges: Ranges) -> Ranges:
    """Sort half-open ranges and join those that touch or overlap."""
    if len(ranges) < 2:
        return ranges
    ranges.sort()
    flat = list(chain.from_iterable(ranges))
    if all(map(lt, flat, flat[1:])):
        return ranges
    whole = [ranges[0]]
    for first, end in ranges[1:]:
        if first <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((first, end))
    return whole
