"""Acknowledgments: what consumers report about the messages they hold (acknowledged, returned, idle).

Runs in a worker process, as a part of a Subscription. It moves the cursor by what is acknowledged, and hands returned
messages on to `actors/subscription/failures.py`.

Invariants
- of the consumers of a Failover subscription, only the active one acknowledges anything new
- acknowledgments of messages that an earlier, failed actor delivered count; messages that are returned of those are
  ignored, because they are delivered again from the log
"""

from __future__ import annotations

from collections.abc import Sequence

from ister.actors.explain_state import Holder, State
from ister.actors.messages import Acknowledged, AcknowledgedUntil, AckRefused, Idle, Left, Recall, Returned
from ister.actors.pieces import Piece
from ister.actors.runtime import receives
from ister.actors.selection import Member
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.failures import Failures
from ister.actors.subscription.parts import Host, Queue, SubscriptionPart
from ister.actors.subscription.schedule import Schedule
from ister.subscriptions import TRAITS

HOLDERS_MAX = 10  # consumers or keys that `explain` names
MANY_RANGES = 8  # in one frame; so many are noted and settled together
LOST = "its consumer was lost"


class Acknowledgments(SubscriptionPart):
    """Handles the acknowledgments and returns of one subscription's consumers."""

    def __init__(
        self, subscription: Host, queue: Queue, journal: CursorLog, schedule: Schedule, failures: Failures
    ) -> None:
        self._subscription = subscription
        self._queue = queue
        self._journal = journal
        self._schedule = schedule
        self._failures = failures
        self._stands_by = TRAITS[subscription.meta.type].stands_by
        self._last_delivered_ms: int | None = None
        self._left_ms: int | None = None  # when the last consumer left

    def delivered(self, member: Member, piece: Piece) -> None:
        """Note that a consumer holds the messages of a piece."""
        if self._schedule.unseen:
            self._schedule.delivered(piece.parts)
        self._last_delivered_ms = self._subscription.clock.time_ms()
        if member.outstanding == piece.count:  # it held nothing before this piece
            member.holds_since_ms = self._last_delivered_ms

    @receives(Acknowledged)
    def on_acknowledged(self, command: Acknowledged) -> None:
        """Move the cursor; the journal is written within `cursor_flush_ms`, or at once when asked to confirm."""
        journal = self._journal
        if not journal.is_open:
            return  # the acknowledgment is for an earlier actor of this subscription, which failed
        if self._stands_by and self._comes_too_late(command, command.ranges):
            return
        ranges = command.ranges
        if command.parcels or len(ranges) >= MANY_RANGES:
            if journal.note_all(ranges):
                self._queue.settled_all(ranges, command.parcels)
        else:
            for first, end in ranges:
                if journal.note(first, end):
                    self._queue.settled(first, end)
        self._settle(command)

    @receives(AcknowledgedUntil)
    def on_acknowledged_until(self, command: AcknowledgedUntil) -> None:
        """Move the cursor past everything below an offset."""
        if not self._journal.is_open:
            return
        low = self._journal.cursor.low
        if self._stands_by and self._comes_too_late(command, ((low, command.end),)):
            return
        for first, end in self._schedule.seen(low, max(low, command.end)):
            self._journal.finish(first, end)
        self._settle(command)

    def _comes_too_late(
        self, command: Acknowledged | AcknowledgedUntil, ranges: Sequence[tuple[int, int]]
    ) -> bool:
        """Refuse new acknowledgments of a standby, and say whether this was one: the active consumer gets the messages.

        Acknowledging again what is acknowledged already is allowed.
        """
        active = self._subscription.consumers.active
        if active is None or active.key == command.key:
            return False
        pending = (part for first, end in ranges for part in self._journal.cursor.pending(first, end))
        found = next(pending, None)
        if found is None:
            return False
        text = f"offset {found[0]} was acknowledged by a consumer on standby: whoever is active gets it again"
        if (consumer := self._subscription.consumers.refs.get(command.key)) is not None:
            consumer.tell(AckRefused(command.ref, "not-active", text))
        return True

    def _settle(self, command: Acknowledged | AcknowledgedUntil) -> None:
        subscription = self._subscription
        subscription.consumers.settle(command.key, command.settled)
        if (
            command.since_s is not None
            and (member := subscription.consumers.roster.get(command.key)) is not None
        ):
            ago_ms = (subscription.clock.monotonic() - command.since_s) * 1000
            member.holds_since_ms = subscription.clock.time_ms() - round(ago_ms)
        if command.ref is not None:
            self._journal.confirm(command.key, command.ref)
        self._queue.acknowledged()

    @receives(Returned)
    def on_returned(self, command: Returned) -> None:
        """Queue messages that were refused, timed out, or are unknown to a client that reconnected."""
        self._subscription.consumers.settle(command.key, sum(held.end - held.first for held in command.held))
        if self._delivered_to(command.key):
            self._failures.take_back(command.held, command.delay_s, command.why, failed=command.failed)

    @receives(Idle)
    def on_idle(self, command: Idle) -> None:
        """Recall messages that wait for a program that asks for nothing, if other consumers could take them."""
        subscription = self._subscription
        consumer = subscription.consumers.refs.get(command.key)
        others = subscription.consumers.hands_over if self._stands_by else len(subscription.consumers) > 1
        if consumer is not None and others:
            consumer.tell(Recall())

    def given_back(self, command: Left) -> None:
        """Queue what a consumer that is gone held, for the next one."""
        if self._delivered_to(command.key):
            self._failures.take_back(command.waiting, 0.0, LOST, failed=False)
            self._failures.take_back(command.held, 0.0, LOST, failed=command.failed)

    def _delivered_to(self, key: int) -> bool:
        """Say whether this actor delivered to a consumer, and not an earlier one that failed."""
        return self._journal.is_open and self._subscription.consumers.gave(key)

    def consumer_left(self) -> None:
        """Note the time at which the last consumer left."""
        if not self._subscription.consumers.refs:
            self._left_ms = self._subscription.clock.time_ms()

    def description(self) -> dict[str, int]:
        """Return how many messages consumers hold."""
        return {"in_flight": self._subscription.consumers.roster.outstanding}

    def state(self) -> State:
        """Return which consumers hold messages, and since when."""
        roster = self._subscription.consumers.roster
        holding = sorted(
            (member for member in roster.members if member.outstanding),
            key=lambda member: (member.holds_since_ms, member.age),
        )
        return {
            "in_flight": roster.outstanding,
            "holders": [_holder(member) for member in holding[:HOLDERS_MAX]],
            "last_delivered_ms": self._last_delivered_ms,
            "consumer_left_ms": self._left_ms,
        }


def _holder(member: Member) -> Holder:
    return {
        "consumer": member.key,
        "client": member.client,
        "messages": member.outstanding,
        "since_ms": member.holds_since_ms,
    }
