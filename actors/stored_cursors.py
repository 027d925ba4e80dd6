"""Cursors in transit to the store, a round at a time. Part of an Uploader, in the tier process.

Owns the cursors that are to be stored or deleted, and what is known of those that are stored. May touch the store,
through its writer.

Invariants
- what is deleted is deleted before a subscription of the same name, which is newer, is stored
- whether a failed write reached the store is unknown: the cursor is stored again, and no object is assumed to be its
  predecessor
- cursors of subscriptions that the catalogue does not have are deleted, once the Directory has said so
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from ister.actors.runtime import LoopActor, Timer
from ister.actors.store_writer import StoreWriter
from ister.errors import IsterError
from ister.storage.meta import SubscriptionMeta
from ister.storage.numbered_objects import drop_cursors, put_cursor, stored_subscriptions

log = logging.getLogger("ister.uploader")

CURSORS_GATHER_S: Final = 0.1  # cursors that change within this time are stored together
FAREWELL_S: Final = 3.0  # seconds; for the last cursors of all Uploaders when the broker stops


class Farewell:
    """The time left for storing cursors once the process stops."""

    def __init__(self, budget_s: float = FAREWELL_S) -> None:
        self.left_s = budget_s


class StoredCursors:
    """The cursors of one topic. `claim_first()` returns whether an epoch was claimed, and starts a claim if not.

    `consult()` asks the Directory what the catalogue has.
    """

    def __init__(
        self,
        host: LoopActor,
        writer: StoreWriter,
        *,
        claim_first: Callable[[], bool],
        consult: Callable[[], None],
    ) -> None:
        self._host = host
        self._writer = writer
        self._claim_first = claim_first
        self._consult = consult
        self._cursors: dict[str, tuple[SubscriptionMeta, bytes]] = {}  # to be stored in the next round
        self._forgotten: set[str] = set()  # to be deleted before that
        self._stored: dict[str, str] = {}  # by subscription: the name of its only object, if known
        self._looked = False  # whether cursors of deleted subscriptions were searched for
        # subscriptions that have cursors in the store, and perhaps no entry in the catalogue
        self._strangers: set[str] = set()
        self._number = 0
        self._storing = False
        self._timer: Timer | None = None

    def keep(self, subscription: SubscriptionMeta, journal: bytes) -> None:
        """Store a cursor in the next round."""
        self._cursors[subscription.name] = (subscription, journal)
        self.soon()

    def forget(self, subscription: str) -> None:
        """Delete a subscription's cursor from the store in the next round."""
        self._cursors.pop(subscription, None)
        self._stored.pop(subscription, None)
        self._forgotten.add(subscription)
        self.soon()

    # ---- deleted subscriptions ----------------------------------------------------------------------------------

    def look_for_strangers(self) -> None:
        """Find cursors of subscriptions that were deleted while the tier was down."""
        if self._looked:
            return

        def found(names: set[str]) -> None:
            self._looked = True
            self._strangers = names - self._cursors.keys()
            if self._strangers:
                self._consult()

        topic, store = self._writer.topic, self._writer.store
        self._writer.do(
            lambda: stored_subscriptions(store, topic),
            found,
            lambda error: self._writer.failed("its cursors were not listed", error),
        )

    def catalogue_has(self, subscriptions: Iterable[str]) -> None:
        """Delete the cursors of subscriptions that the catalogue does not have."""
        self._forgotten |= self._strangers - set(subscriptions)
        self._strangers.clear()
        self.soon()

    # ---- rounds -------------------------------------------------------------------------------------------------

    @property
    def _due(self) -> bool:
        return bool(self._cursors or self._forgotten)

    def soon(self) -> None:
        """Start a round soon, if there is anything to do."""
        if self._timer is None and self._due:
            self._timer = self._host.call_later(CURSORS_GATHER_S, self._round)

    def _round(self) -> None:
        self._timer = None
        if not self._due or self._storing or self._writer.waits or self._writer.ended:
            return  # the end of the running call starts it
        if not self._claim_first():
            return
        self._storing = True
        cursors, self._cursors = self._cursors, {}
        forgotten, self._forgotten = self._forgotten, set()
        work = self._work(cursors, forgotten)

        def stored(names: dict[str, str]) -> None:
            self._storing = False
            self.soon()
            self._stored |= {name: stored for name, stored in names.items() if name not in self._forgotten}

        def failed(error: BaseException) -> None:
            self._storing = False
            for name in cursors:  # whether it is in the store is unknown
                self._stored.pop(name, None)
            kept = {name: each for name, each in cursors.items() if name not in self._forgotten}
            self._cursors = kept | self._cursors
            self._forgotten |= forgotten
            self._writer.failed("cursors were not stored", error)

        self._writer.do(work, stored, failed)

    def _work(
        self, cursors: dict[str, tuple[SubscriptionMeta, bytes]], forgotten: set[str]
    ) -> Callable[[], dict[str, str]]:
        """Return a function that stores cursors, in any thread, and returns the names of their objects."""
        topic, store, epoch, number = self._writer.topic, self._writer.store, self._writer.epoch, self._number
        assert epoch is not None
        before = dict(self._stored)
        self._number += 1

        def work() -> dict[str, str]:
            for name in forgotten:  # before a newer subscription of the same name
                drop_cursors(store, topic, name, epoch)
            return {
                name: put_cursor(store, topic, subscription, epoch, number, journal, before.get(name))
                for name, (subscription, journal) in cursors.items()
            }

        return work

    def store_last(self, farewell: Farewell) -> None:
        """Store the last cursors now, if the store has answered lately: the broker stops."""
        writer = self._writer
        ready = writer.may_begin and writer.failure is None and not self._storing
        if not self._due or not ready or farewell.left_s <= 0:
            return
        began_s = self._host.clock.monotonic()
        try:
            self._work(self._cursors, self._forgotten)()
        except IsterError as error:
            log.warning("topic %s: its last cursors were not stored: %s", writer.topic.name, error)
        farewell.left_s -= self._host.clock.monotonic() - began_s
