"""The parts that every subscription to a log needs, put together.

They are the journal, access to the log, the attachment to the topic, the schedule, moves, failures and acknowledgments.
Runs in a worker process; the delivery owns it. Each part is given the parts before it that it needs, and no others.

Invariants
- the journal is the first of the parts, so that in each hook it acts before the others
- memory is bounded: where too many scattered ranges are unacknowledged, nothing new is looked at
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ister.actors.explain_state import State
from ister.actors.runtime import Ref
from ister.actors.subscription.acknowledgments import Acknowledgments
from ister.actors.subscription.attaching import Attaching
from ister.actors.subscription.cursor_log import CursorLog, OpenJournal
from ister.actors.subscription.failures import Failures
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.moving import Moving
from ister.actors.subscription.parts import Host, Queue, SubscriptionPart
from ister.actors.subscription.remembered import Remembered
from ister.actors.subscription.schedule import Schedule
from ister.settings import SubscriptionSettings
from ister.storage.wholereader import TieredReader

# The limit of what is kept per range: holes in the cursor (16 bytes each), redeliveries and poison (some 200 each).
PIECES_BYTES_MAX: Final = 48 << 20
HOLE_BYTES: Final = 16
KEPT_BYTES: Final = 200
# The most ranges in one sparse delivery: so many ranges and times fit a header.
SCATTERED_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGiven:
    """What a worker hands to a subscription to a log; each value is described where it is used."""

    topic_ref: Ref
    directory: Ref
    fetcher: Ref
    uploader: Ref
    open_journal: OpenJournal
    open_reader: Callable[[int], TieredReader]
    erase: Callable[[], None]
    flush_ms: int
    sync_ms: int
    store_ms: int
    undertaker: Callable[[], Ref]
    defaults: SubscriptionSettings


class LogParts:
    """The parts of one subscription that its delivery builds on. `in_catalogue` is false for a reader."""

    def __init__(
        self, subscription: Host, queue: Queue, given: LogGiven, *, in_catalogue: bool = True
    ) -> None:
        self.journal = CursorLog(
            subscription,
            queue,
            open_journal=given.open_journal,
            erase=given.erase,
            topic_ref=given.topic_ref,
            uploader=given.uploader,
            flush_ms=given.flush_ms,
            sync_ms=given.sync_ms,
            store_ms=given.store_ms,
            told=in_catalogue,
        )
        self.access = LogAccess(
            subscription,
            self.journal,
            topic_ref=given.topic_ref,
            fetcher=given.fetcher,
            open_reader=given.open_reader,
        )
        self.attaching = Attaching(
            subscription,
            self.journal,
            self.access,
            topic_ref=given.topic_ref,
            directory=given.directory,
            in_catalogue=in_catalogue,
        )
        self.source = self.access.source
        self.remembered = Remembered(self.journal)
        self.schedule = Schedule(subscription, queue, self.journal, self.source, self.remembered)
        self.moving = Moving(subscription, self.journal, self.access, self.attaching)
        self.failures = Failures(
            subscription,
            queue,
            self.journal,
            self.access,
            undertaker=given.undertaker,
            defaults=given.defaults,
        )
        self.acknowledgments = Acknowledgments(
            subscription, queue, self.journal, self.schedule, self.failures
        )
        self.parts: tuple[SubscriptionPart, ...] = (
            self.journal,
            self.access,
            self.attaching,
            self.schedule,
            self.moving,
            self.failures,
            self.acknowledgments,
        )

    def begin_turn(self) -> bool:
        """Begin a dispatch; say whether the subscription is neither being moved nor about to be."""
        self.schedule.begin_turn()
        move = self.moving.move
        if move.command is not None:
            self.moving.go_on()
        return move.target is None

    def is_full(self, waiting: int) -> bool:
        """Say whether the limit of scattered ranges is reached, so that nothing new is to be looked at.

        `waiting` is how many ranges wait for redelivery.
        """
        kept = HOLE_BYTES * self.journal.holes() + KEPT_BYTES * (waiting + self.failures.poison.ranges)
        return kept > PIECES_BYTES_MAX or self.schedule.is_full()

    def state(self, waiting: int, single: int, *, full: bool) -> State:
        """Return how many ranges are kept, and for how many single messages."""
        kept = waiting + self.failures.poison.ranges + single
        return {
            "tracked_full": full,
            "tracked": HOLE_BYTES * self.journal.holes() + KEPT_BYTES * kept,
            "tracked_max": PIECES_BYTES_MAX,
        }
