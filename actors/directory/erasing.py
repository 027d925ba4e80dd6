"""Erasing: topics that are deleted, here and in the store, until nothing of them is left.

Part of the Directory, in the broker process. Owns which topics are being deleted, and of which something may be left.
May touch the catalogue and the mail; the files and the objects go by those who have them.

Invariants
- a deleted topic leaves the catalogue's list of what is to be erased only when nothing of it is left here either
- who did not say that its part is deleted is asked again soon, or once it is there; what the store has is asked for
  again now and again
- what was deleted since the broker started does not come back from the store, whatever a listing says
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from ister.actors.addresses import FETCHER_PATH
from ister.actors.directory.gathering import Answers, Gatherings
from ister.actors.directory.homes import Homes
from ister.actors.messages import WITH_TOPIC, DropCache, Erased, EraseStored
from ister.actors.registry import Registry
from ister.actors.runtime import Address
from ister.errors import RemoteError, StorageError
from ister.storage.catalogue import FORGOTTEN, SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.directory")

DELETE_AGAIN_S: Final = 1.0  # what nobody said to be deleted, once it was waited for


class Erasing:
    """The end of topics; `address` is the Directory's, which hears of what is erased."""

    def __init__(
        self,
        registry: Registry,
        homes: Homes,
        gatherings: Gatherings,
        address: Address,
        *,
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._registry = registry
        self._homes = homes
        self._gatherings = gatherings
        self._address = address
        self._call_later = call_later
        self._deleted: set[bytes] = set()  # incarnations that must not come back, whatever a listing says
        # being deleted here, and what the store's side of it said
        self._leaving: dict[bytes, Erased | None] = {}
        # Deleted topics of which a worker that was not there may have something left: the subscriptions there, and
        # whether it is the log as well.
        self._left: dict[bytes, tuple[TopicMeta, list[SubscriptionMeta], bool]] = {}

    # ---- what is known ------------------------------------------------------------------------------------------

    def was_deleted(self, topic: TopicMeta) -> bool:
        """Say whether this topic was deleted, and must not come back."""
        return topic.incarnation in self._deleted

    def came_back(self, topic: TopicMeta) -> None:
        """Note that a topic was brought back on purpose."""
        self._deleted.discard(topic.incarnation)

    def is_at(self, name: str) -> bool:
        """Say whether topics of this name are still being deleted, here or in the store."""
        return any(
            FORGOTTEN not in gone.settings
            or gone.incarnation in self._leaving
            or gone.incarnation in self._left
            for gone in self._registry.erasing()
            if gone.name == name
        )

    # ---- here ---------------------------------------------------------------------------------------------------

    def delete(self, reply: Address, asked: int, topic: TopicMeta, *, whole: bool = False) -> None:
        """Delete a topic with its subscriptions; what the store has of it goes if it is this broker's there.

        `asked` is the ticket of who waits at `reply`. `whole`: it is no success as long as something may be left here.
        Raises NotYetError where a process that has a part of it is not up: then nothing is deleted.
        """
        name, reliable = topic.name, topic.dispatch == "reliable"
        there = self._registry.subscriptions(name)
        for node in sorted({self._homes.of_subscription(name, each.name).node for each in there}):
            self._homes.need(node)
        self._homes.need(self._homes.of_topic(name).node)
        _, subscriptions = self._registry.delete_topic(name)
        if reliable:
            self._deleted.add(topic.incarnation)
            self._leaving[topic.incarnation] = None
        log.info("topic %s deleted, with %d subscriptions", name, len(subscriptions))
        of_log = self._gatherings.ticket()
        tickets = {self._gatherings.ticket(): subscription for subscription in subscriptions}
        nodes = self._nodes(tickets) | {of_log: self._homes.of_topic(name).node}

        def finish(answers: Answers) -> dict[str, Any]:
            said = self._leaving.pop(topic.incarnation, None)
            if len(answers) < len(nodes):
                self._note_left(topic, tickets, of_log not in answers, answers)
            if said is not None:
                self._note_erased(said)
            if whole and len(answers) < len(nodes):
                raise RemoteError(
                    "unavailable", f"a process that has a part of topic {name!r} did not answer: ask again"
                )
            return {"deleted": name, "subscriptions": len(subscriptions)}

        self._gatherings.gather(reply, asked, nodes, finish, partial=True)
        self._have_deleted(topic, tickets, of_log)
        if reliable and (fetcher := self._homes.at_tier(FETCHER_PATH)) is not None:
            fetcher.tell(DropCache(topic))

    def delete_left(self) -> None:
        """Have deleted what was left here of deleted topics, by those who are there now."""
        for topic, subscriptions, with_log in list(self._left.values()):
            if topic.incarnation in self._leaving:
                continue  # they are at it
            nodes = {self._homes.of_subscription(each.topic, each.name).node for each in subscriptions}
            if with_log:
                nodes.add(self._homes.of_topic(topic.name).node)
            if self._homes.is_up(*nodes):
                self._delete_rest(topic, subscriptions, with_log)

    def _delete_rest(self, topic: TopicMeta, subscriptions: list[SubscriptionMeta], with_log: bool) -> None:
        self._leaving[topic.incarnation] = None
        tickets = {self._gatherings.ticket(): subscription for subscription in subscriptions}
        of_log = self._gatherings.ticket()
        nodes = self._nodes(tickets)
        if with_log:
            nodes[of_log] = self._homes.of_topic(topic.name).node

        def finish(answers: Answers) -> None:
            self._leaving.pop(topic.incarnation, None)
            if len(answers) < len(nodes):
                self._note_left(topic, tickets, with_log and of_log not in answers, answers)
                return
            log.info("the remains of deleted topic %s were deleted here, too", topic.name)
            del self._left[topic.incarnation]
            self.erase_all()

        self._gatherings.gather(self._address, 0, nodes, finish, partial=True, takes_no=True)
        self._have_deleted(topic, tickets, of_log if with_log else None)

    def _nodes(self, tickets: Mapping[int, SubscriptionMeta]) -> dict[int, str]:
        return {
            ticket: self._homes.of_subscription(each.topic, each.name).node
            for ticket, each in tickets.items()
        }

    def _have_deleted(
        self, topic: TopicMeta, tickets: Mapping[int, SubscriptionMeta], of_log: int | None
    ) -> None:
        for ticket, subscription in tickets.items():
            self._homes.have_subscription_do("delete", topic, subscription, ticket, WITH_TOPIC)
        if of_log is not None:
            self._homes.have_topic_do("delete", topic, of_log)

    def _note_left(
        self, topic: TopicMeta, tickets: Mapping[int, SubscriptionMeta], with_log: bool, answers: Answers
    ) -> None:
        """Remember what nobody has said to be deleted."""
        left = [subscription for ticket, subscription in tickets.items() if ticket not in answers]
        self._left[topic.incarnation] = (topic, left, with_log)
        self._call_later(DELETE_AGAIN_S, self.delete_left)  # mail is no promise; its clients must hear of it

    # ---- in the store -------------------------------------------------------------------------------------------

    def store_has(self, incarnations: Container[bytes]) -> None:
        """Take note of a listing of the store, and have erased what is still to go."""
        for gone in self._registry.erasing():
            self._deleted.add(gone.incarnation)
            if (
                FORGOTTEN in gone.settings and gone.incarnation not in incarnations
            ):  # its owner has deleted it
                self._note_erased(Erased(gone))
        self.erase_all()  # a process was not there to do it

    def erase_all(self) -> None:
        """Have deleted from the store what was deleted here, where that is not done and not on its way."""
        for gone in self._registry.erasing():
            if FORGOTTEN not in gone.settings and gone.incarnation not in self._leaving:
                uploader = self._homes.uploader(gone)
                if uploader is not None:
                    uploader.tell(EraseStored(gone, self._address))

    def erased(self, command: Erased) -> None:
        """Forget a deleted topic, of which nothing is left in the store, or nothing that is ours."""
        if command.topic.incarnation in self._leaving:
            self._leaving[command.topic.incarnation] = command
        else:
            self._note_erased(command)

    def _note_erased(self, command: Erased) -> None:
        if command.topic.incarnation in self._left:
            return  # until nothing is left here either; then it is asked for again
        note = self._registry.forget if command.kept else self._registry.erased
        try:
            note(command.topic.incarnation)
        except StorageError as error:  # it is asked for again, and answered so again
            log.warning(
                "the deletion of topic %s in the store is not recorded yet: %s", command.topic.name, error
            )
