"""A subscription's attachment to its topic: where it starts, and how far the topic is durable.

Runs in a worker process, as a part of a Subscription on a log. It owns the question to the topic and the topic's last
answer. It opens the cursor's journal once the start offset is known.

Invariants
- no consumer is served before the topic has answered and the start offset is fixed
- mail can be lost: a topic that does not answer is asked again, and one that answered is asked again now and then
- acknowledgments of messages that the topic's log has lost do not count for the messages that got their offsets later
"""

from __future__ import annotations

import logging
from typing import Final

from ister.actors.addresses import instance_of
from ister.actors.asking import Asking
from ister.actors.messages import Ask, Attach, Attached, Detach, NodeStarted, TopicFailed, Trimmed
from ister.actors.runtime import Address, Ref, Timer, receives
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.parts import Host, SubscriptionPart
from ister.errors import DamagedError, IsterError, RemoteError
from ister.storage.cursor_journal import CursorJournal
from ister.storage.log_search import SearchGoesOnError
from ister.storage.wholereader import UNKNOWN, NotHereError
from ister.storage.withdrawing import fit_to
from ister.wire import encode_result

log = logging.getLogger("ister.subscription")

ATTACH_RETRY_S: Final = 1.0  # after the topic failed
# A search for a time walks so many headers, some 5 ms, and then lets the worker's other actors have their turn: the
# segment that is being written has no index, and may be large.
SEARCH_HEADERS_MAX: Final = 2_000
SEARCH_PAUSE_S: Final = 0.0


class _StartUnknownError(Exception):
    """The topic cannot say yet where it begins."""


class Attaching(SubscriptionPart):
    """The attachment of one subscription to its topic.

    `in_catalogue`: the subscription is known to others, which forget it if it cannot start. For a reader this is false;
    then an offset that is in the log is also accepted as a start if the store has lost it.
    """

    def __init__(
        self,
        subscription: Host,
        journal: CursorLog,
        access: LogAccess,
        *,
        topic_ref: Ref,
        directory: Ref,
        in_catalogue: bool = True,
    ) -> None:
        self._subscription = subscription
        self._topic, self._name = subscription.topic.name, subscription.meta.name
        self._journal = journal
        self._access = access
        self._source = access.source
        self._topic_ref = topic_ref
        self._directory = directory
        self._in_catalogue = in_catalogue
        self._attached_as: Attached | None = None
        self._asking = Asking()  # the question to the topic
        self._timer: Timer | None = None

    def start(self) -> None:
        """Ask the topic how far it is durable."""
        self._attach()

    def _attach(self) -> None:
        """Attach to the topic, and repeat that now and then: mail can be lost."""
        self._topic_ref.tell(Attach(self._subscription.address, self._subscription.topic))
        self._source.rest()
        self._attach_in(self._asking.asked())

    def _attach_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._subscription.call_later(seconds, self._attach)

    def erase(self) -> None:
        """Detach from the topic."""
        self.detach()

    def detach(self) -> None:
        """Detach from the topic."""
        self._topic_ref.tell(Detach(self._subscription.address))

    def node_started(self, started: NodeStarted) -> None:
        """Attach again when the topic's process was restarted: it knows nothing of this subscription."""
        if started.node == self._topic_ref.address.node:
            self._attach()

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Fix the start offset when the subscription is new, and read on from the cursor."""
        self._attached_as = attached
        self._attach_in(self._asking.answered())
        self._access.stored(UNKNOWN if attached.stored_end is None else attached.stored_end)
        if not self._journal.is_open:
            self._source.reaches(attached.durable_end)
            try:
                self._journal.open(
                    lambda: self._start(attached),
                    lambda journal: self._fit(journal, max(attached.durable_end, attached.log_end)),
                )
            except _StartUnknownError:
                return  # the topic's process was restarted
            except SearchGoesOnError:
                self._subscription.call_later(SEARCH_PAUSE_S, self.may_read)
                return
            except NotHereError as error:  # a start by time that only the store can answer
                self._access.fetch(error)
                return
            except IsterError as error:
                self._subscription.become_failed(error)
                if error.code == "offset-out-of-range" and self._in_catalogue:
                    self._undo_creation()
                return
            self._source.begin(self._journal.cursor.low)
            self._subscription.opened()
        self._source.advance(attached.durable_end)
        self._subscription.become_ready()
        self._journal.tell_consumed()  # the topic may have been restarted
        self._access.repaired(attached.repairs)
        if attached.start_offset is not None:
            self._access.on_trimmed(Trimmed(attached.start_offset))
        self._subscription.wake()

    def _start(self, attached: Attached) -> int:
        start = self._subscription.meta.start
        if start == "latest":
            return attached.durable_end
        if attached.start_offset is None:
            raise _StartUnknownError
        self._source.begins(attached.start_offset)
        return self.position_of(str(start))

    def position_of(self, place: str, *, at_once: bool = False) -> int:
        """Return the offset that "earliest", "latest", digits or "time:<unix ms>" mean now.

        Raises RemoteError offset-out-of-range; for a time also what reading the log raises, and SearchGoesOnError
        unless `at_once`, which searches to the end however long that keeps the worker busy.
        """
        start, end = self._source.history_start, self._source.durable_end
        if place == "latest":
            return end
        if place == "earliest":
            return start
        kind, _, number = place.rpartition(":")
        if kind == "time":
            return self._source.offset_at(int(number), start, None if at_once else SEARCH_HEADERS_MAX)
        offset = int(place)
        known = self._attached_as
        if not self._in_catalogue and known is not None and end < offset <= known.log_end:
            return offset  # a consumer had it before: a reader waits there until the store has it again
        if not start <= offset <= end:
            raise RemoteError(
                "offset-out-of-range",
                f"offset {offset} is not in topic {self._topic!r}, which has {start} to {end}",
            )
        return offset

    def _fit(self, journal: CursorJournal, end: int) -> None:
        """Withdraw acknowledgments of messages that a power failure took from the topic's log.

        The offsets of those messages are assigned again, and the new messages must not count as acknowledged. Raises
        DamagedError where the topic's durability rules such a loss out.
        """
        cursor = journal.cursor
        # with durability cloud, the log may be ahead of what may be delivered if the store lost objects
        reached = cursor.end
        if reached <= end:
            return
        text = f"the log of topic {self._topic!r} ends at offset {end}, but {reached} was acknowledged"
        if self._subscription.topic.durability != "os":
            journal.close()
            raise DamagedError(text)
        log.warning("subscription %s: %s", self._name, text)
        fit_to(journal, end)

    def _undo_creation(self) -> None:
        """Delete a subscription that could not start where it was asked to, so that its name is free again."""
        # by then another subscription may have the name
        instance = instance_of(self._subscription.topic, self._subscription.meta)
        arguments = encode_result({"topic": self._topic, "subscription": self._name, "instance": instance})
        nobody = Address(self._subscription.system.node, "nobody")
        self._directory.tell(Ask("subscription.delete", arguments, nobody, 0))

    def topic_failed(self, failed: TopicFailed) -> None:
        """Continue with what is durable; if that is not known yet, tell the consumers why they are not served."""
        error = RemoteError(failed.code, failed.text)
        if not self._subscription.is_ready:
            self._subscription.become_failed(error)
        if error.action == "retry":
            self._asking.answered()
            self._attach_in(ATTACH_RETRY_S)

    def may_read(self) -> None:
        """Try again to find the start offset."""
        if not self._journal.is_open and self._attached_as is not None:
            self.on_attached(self._attached_as)
