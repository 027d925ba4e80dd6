"""Moving a subscription: find the offset, let every consumer give back what it holds, replace the journal, continue.

Runs in a worker process, as a part of a Subscription. It owns the move (`move.py`) and carries out its steps.

Invariants
- nothing is delivered from when the target offset is known until the journal has it
- acknowledgments of messages that were delivered before a move do not count after it
- a move that fails leaves everything as it was
"""

from __future__ import annotations

import logging
from typing import Final

from ister.actors.explain_state import State
from ister.actors.messages import Seek, Sought, Stayed, Yield
from ister.actors.runtime import receives
from ister.actors.subscription.attaching import SEARCH_PAUSE_S, Attaching
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.move import Move
from ister.actors.subscription.parts import Host, SubscriptionPart
from ister.errors import DamagedError, IsterError, RemoteError, StorageError
from ister.storage.log_search import SearchGoesOnError
from ister.storage.wholereader import NotHereError

log = logging.getLogger("ister.subscription")

JOURNAL: Final = 0  # stands for a consumer's key: nothing is delivered until the journal has the new offset


class Moving(SubscriptionPart):
    """The moves of one subscription."""

    def __init__(
        self, subscription: Host, journal: CursorLog, access: LogAccess, attaching: Attaching
    ) -> None:
        self._subscription = subscription
        self._journal = journal
        self._access = access
        self._attaching = attaching
        self.move = Move()
        access.refuses = self._refuses

    @receives(Seek)
    def on_seek(self, command: Seek) -> None:
        """Move to another offset, once every consumer has given back what it holds."""
        subscription = self._subscription
        if not self._journal.is_open or subscription.failure is not None:
            unknown = RemoteError("unavailable", "the topic has not answered yet")
            subscription.refuse(command, subscription.failure or unknown)
        elif self.move.state != "idle":
            subscription.refuse(command, RemoteError("busy", "the subscription is being moved already"))
        else:
            self.move.ask(command)
            self.go_on()

    def go_on(self) -> None:
        """Take the next step of the move, if possible."""
        move, subscription = self.move, self._subscription
        if move.command is None or subscription.consumers.held:
            return
        if move.state == "finding":
            try:
                move.found(self._attaching.position_of(move.command.to))
            except SearchGoesOnError:
                subscription.call_later(SEARCH_PAUSE_S, self.go_on)
                return
            except NotHereError as error:
                if not self._access.fetches:
                    self._access.fetch(error)
                return
            except IsterError as error:
                self._stay(error)
                return
            for key, consumer in subscription.consumers.refs.items():
                subscription.consumers.hold(key)
                consumer.tell(Yield(moving=True))
            if subscription.consumers.refs:
                return
        move.yielded()
        assert move.target is not None
        offset = move.target
        subscription.consumers.hold(JOURNAL)
        self._journal.move(offset, lambda error: self._moved(offset, error))

    def _moved(self, offset: int, error: StorageError | None) -> None:
        subscription = self._subscription
        subscription.consumers.release(JOURNAL)
        if error is not None:
            subscription.consumers.tell_all(Stayed())
            self._stay(error)
            return
        subscription.forget()
        self._access.source.begin(offset)
        log.info(
            "subscription %s of topic %s was moved to offset %d",
            subscription.meta.name,
            subscription.topic.name,
            offset,
        )
        subscription.consumers.tell_all(Sought(offset))
        self._journal.store()
        subscription.answer(self.move.end(moved=True), {"position": offset})
        subscription.wake()

    def _stay(self, error: IsterError) -> None:
        self._subscription.refuse(self.move.end(moved=False), error)
        self._subscription.wake()

    def _refuses(self, error: DamagedError) -> bool:
        """If damage was met while the target offset was looked up, refuse the move and change nothing else."""
        if self.move.state != "finding":
            return False
        self._stay(error)
        return True

    def consumer_left(self) -> None:
        """Go on: the move may have waited for this consumer."""
        self.go_on()

    def may_read(self) -> None:
        """Try again to find the target offset."""
        self.go_on()

    def state(self) -> State:
        """Return where the subscription is being moved to, as it was asked for."""
        return {"seeking": None if self.move.command is None else self.move.command.to}
