"""Restoring: topics that the store has and the catalogue has not. Part of the Directory, in the broker process.

It owns what is known about the topics of the store, and which of them are being restored. It uses the catalogue and
mail; the Restorer in the tier process does the work (`actors/restorer.py`).

Invariants
- if the store may have topics that the catalogue lacks, no topic counts as unknown before the store was listed
- a topic that is being restored is neither created nor taken over meanwhile
- a topic that was deleted here is not restored, unless a client takes it over by name
- the Restorer is asked until it has reported the outcome; an outcome that is reported twice counts once
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from ister.actors.addresses import RESTORER_PATH, TIER
from ister.actors.asking import Asking
from ister.actors.directory.erasing import Erasing
from ister.actors.directory.gathering import Answers, Gatherings
from ister.actors.directory.homes import Homes
from ister.actors.messages import NotRestored, Restored, RestoreTopics, StoredTopics, TakeOver
from ister.actors.patience import NotYetError
from ister.actors.registry import Registry
from ister.actors.runtime import Address
from ister.errors import RemoteError, StorageError
from ister.storage.meta import SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.directory")

ENTER_AGAIN_S: Final = 5.0  # seconds; after a full disk, restored topics are entered in the catalogue again


class Restoring:
    """The topics that are restored from the store.

    `waits_for_store`: the store may have topics that the catalogue lacks. `on_entered(subscription)` is called for each
    restored subscription, `on_news()` when a topic was found or restored, `on_done()` whenever all are restored.
    """

    def __init__(
        self,
        registry: Registry,
        homes: Homes,
        gatherings: Gatherings,
        erasing: Erasing,
        address: Address,
        *,
        waits_for_store: bool,
        call_later: Callable[[float, Callable[[], None]], object],
        on_entered: Callable[[SubscriptionMeta], None],
        on_news: Callable[[], None],
        on_done: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._homes = homes
        self._gatherings = gatherings
        self._erasing = erasing
        self._address = address
        self._waits_for_store = waits_for_store
        self._call_later = call_later
        self._on_entered = on_entered
        self._on_news = on_news
        self._on_done = on_done
        self._store_known = False
        self._names: set[str] = set()  # topics that are being restored
        # What the Restorer was asked for and has not reported yet, by name
        self._coming: dict[str, TopicMeta] = {}
        self._taking: dict[str, int] = {}  # takeovers, with the ticket of the request
        self._asking = Asking()
        self._rounds = 0  # counts the timers for asking again: only the last one counts
        self.restored: list[str] = []  # a line for each restored topic, saying what may be missing

    def topic(self, name: str) -> TopicMeta:
        """Return a topic. One that may still be in the store raises NotYetError instead of `unknown-topic`.

        Raises NotYetError, RemoteError `unknown-topic`, StorageError.
        """
        found = self._registry.topic(name)
        if found is None and (name in self._names or self._may_be_stored()):
            raise NotYetError(f"topic {name!r} may be in the store, which is being read; try again")
        return self._registry.get_topic(name)

    def check_new(self, topic: TopicMeta) -> None:
        """Raise RemoteError `topic-exists` or NotYetError if the store may have a topic of this name."""
        if topic.name in self._names:
            raise RemoteError("topic-exists", f"topic {topic.name!r} is being brought back from the store")
        if topic.dispatch == "reliable" and self._may_be_stored():
            raise NotYetError(f"topic {topic.name!r} may be in the store, which is being read; try again")

    def _may_be_stored(self) -> bool:
        return self._waits_for_store and not self._store_known

    def stored(self, command: StoredTopics) -> None:
        """Have those topics of the store restored that are not in the catalogue."""
        self._erasing.store_has({topic.incarnation for topic in command.topics})
        unknown = []
        for topic in command.topics:
            known = self._registry.topic(topic.name)
            if self._erasing.was_deleted(topic):
                continue
            if known is None:
                unknown.append(topic)
            elif known.incarnation != topic.incarnation:
                text = (
                    "the store has another topic %s, of incarnation %s: nothing of this broker's is uploaded"
                )
                log.error(text, topic.name, topic.incarnation.hex())
        self._coming = {topic.name: topic for topic in unknown}
        self._names = {*self._coming, *self._taking}
        self._store_known = True
        self._on_news()
        self._homes.at(command.reply).tell(RestoreTopics(tuple(unknown)))
        self._asking.answered()
        self._ask_later()
        if not unknown:
            self._on_done()

    def _ask_later(self) -> None:
        """Ask the Restorer again until it has reported all outcomes: mail can be lost in both directions."""
        self._rounds += 1
        if self._coming or self._taking:
            this = self._rounds
            self._call_later(self._asking.asked(), lambda: self._ask_again(this))

    def _ask_again(self, this: int) -> None:
        if this != self._rounds:
            return  # an outcome was reported meanwhile
        restorer = self._homes.at_tier(RESTORER_PATH)
        if restorer is not None:
            if self._coming:
                restorer.tell(RestoreTopics(tuple(self._coming.values())))
            for name, ticket in self._taking.items():
                restorer.tell(TakeOver(name, self._address, ticket))
        self._ask_later()

    def _has_ended(self, name: str) -> None:
        self._names.discard(name)
        self._coming.pop(name, None)
        self._taking.pop(name, None)
        self._asking.answered()
        self._ask_later()

    def came(self, command: Restored) -> None:
        """Enter a restored topic with its subscriptions in the catalogue, unless that was done before."""
        topic = command.topic
        if topic.name not in self._names:
            return  # the topic may have been deleted since
        if self._registry.topic(topic.name) is None:
            try:
                self._registry.erased(topic.incarnation)
                self._registry.create_topic(topic, command.subscriptions)
            except StorageError as error:
                text = "topic %s is not back yet: %s; trying again in %g s"
                log.error(text, topic.name, error, ENTER_AGAIN_S)
                self._call_later(ENTER_AGAIN_S, lambda: self.came(command))
                return
            self._erasing.came_back(topic)
            for subscription in command.subscriptions:
                self._on_entered(subscription)
            self.restored.append(command.text)
        self._has_ended(topic.name)
        self._on_news()
        self._look_if_done()

    def does_not_come(self, command: NotRestored) -> None:
        """Note that a topic will not be restored."""
        self._has_ended(command.topic)
        self._look_if_done()

    def _look_if_done(self) -> None:
        if not self._names:
            self._on_done()

    def take_over(
        self, reply: Address, asked: int, name: str, describe: Callable[[TopicMeta], dict[str, Any]]
    ) -> None:
        """Claim a topic that the store has and this broker has not, and continue at the end of its history.

        `asked` is the ticket of the request at `reply`, which is answered with `describe(topic)`. Raises RemoteError
        `unavailable` or `topic-exists`, StorageError.
        """
        if name in self._names and name not in self._taking:
            raise RemoteError(
                "unavailable", f"topic {name!r} is being brought back from the store; try again"
            )
        if self._registry.topic(name) is not None:
            raise RemoteError(
                "topic-exists",
                f"this broker has a topic {name!r}: if another broker took it over, forget it first",
            )
        if self._erasing.is_at(name):
            raise RemoteError("unavailable", f"topic {name!r} is still being deleted; try again")
        restorer = self._homes.at_tier(RESTORER_PATH)
        if restorer is None:
            raise RemoteError("unavailable", "the tier is being restarted; try again")
        self._names.add(name)
        ticket = self._gatherings.ticket()

        def finish(_: Answers) -> dict[str, Any]:
            topic = self._registry.topic(name)
            if topic is None:
                raise RemoteError(
                    "unavailable", f"topic {name!r} was not restored from the store yet; try again"
                )
            return describe(topic)

        self._gatherings.gather(reply, asked, {ticket: TIER}, finish)
        restorer.tell(TakeOver(name, self._address, ticket))
        self._taking[name] = ticket
        self._ask_later()
