"""Erasing: deleted topics, until nothing of them is left here or in the store.

Part of the Directory, in the broker process. It owns the list of topics that are being deleted, and of those of which
something may be left. It uses the catalogue and mail; files and objects are deleted by the actors that own them.

Invariants
- a deleted topic leaves the catalogue's list of topics to erase only when nothing of it is left here either
- a process that has not confirmed its deletion is asked again soon, or when it is up; the store is asked now and then
- a log whose process ended before all its files were deleted is deleted once more when that is up
- a topic that was deleted since the broker started is not restored from the store, whatever a listing says
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from ister.actors.addresses import FETCHER_PATH
from ister.actors.directory.gathering import Answers, Gatherings
from ister.actors.directory.homes import Homes
from ister.actors.messages import WITH_TOPIC, DropCache, Erased, EraseStored, LogErased
from ister.actors.registry import Registry
from ister.actors.runtime import Address
from ister.errors import RemoteError, StorageError
from ister.storage.meta import FORGOTTEN, SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.directory")

# after this, in seconds, those that have not confirmed a deletion are asked again
DELETE_AGAIN_S: Final = 1.0


class Erasing:
    """Deletes topics. `address` is the Directory's, which receives `Erased`."""

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
        self._deleted: set[bytes] = set()  # incarnations that must not be restored, whatever a listing says
        # topics that are being deleted here, each with the answer from the store if it came first
        self._leaving: dict[bytes, Erased | None] = {}
        # Deleted topics that may have left files behind, because a worker was not up: their subscriptions there, and
        # whether the log is among the files.
        self._left: dict[bytes, tuple[TopicMeta, list[SubscriptionMeta], bool]] = {}
        # Deleted topics whose log's files are being deleted in a thread of a worker, after the worker has confirmed the
        # deletion. `_interrupted` are those whose worker ended meanwhile, before the others had confirmed theirs.
        self._logs: dict[bytes, TopicMeta] = {}
        self._interrupted: set[bytes] = set()

    # ---- what is known ------------------------------------------------------------------------------------------

    def was_deleted(self, topic: TopicMeta) -> bool:
        """Say whether this topic was deleted and must not be restored."""
        return topic.incarnation in self._deleted

    def came_back(self, topic: TopicMeta) -> None:
        """Note that a deleted topic was restored on purpose."""
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
        """Delete a topic with its subscriptions, here and, if it belongs to this broker there, in the store.

        `asked` is the ticket of the request that is answered to `reply`. With `whole`, the request fails as long as
        something may be left here. Raises NotYetError, and deletes nothing, if a process that has a part of the topic
        is not up.
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
            self._logs[topic.incarnation] = topic
        log.info("topic %s deleted, with %d subscriptions", name, len(subscriptions))
        of_log = self._gatherings.ticket()
        tickets = {self._gatherings.ticket(): subscription for subscription in subscriptions}
        nodes = self._nodes(tickets) | {of_log: self._homes.of_topic(name).node}

        def finish(answers: Answers) -> dict[str, Any]:
            said = self._leaving.pop(topic.incarnation, None)
            with_log = self._is_log_left(topic, confirmed=of_log in answers)
            if len(answers) < len(nodes) or with_log:
                self._note_left(topic, tickets, with_log, answers)
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
        """Delete what is left of deleted topics, where the processes are up now."""
        for topic, subscriptions, with_log in list(self._left.values()):
            if topic.incarnation in self._leaving:
                continue  # a deletion is in progress
            nodes = {self._homes.of_subscription(each.topic, each.name).node for each in subscriptions}
            if with_log:
                nodes.add(self._homes.of_topic(topic.name).node)
            if self._homes.is_up(*nodes):
                self._delete_rest(topic, subscriptions, with_log)

    def _delete_rest(self, topic: TopicMeta, subscriptions: list[SubscriptionMeta], with_log: bool) -> None:
        self._leaving[topic.incarnation] = None
        if with_log:
            self._logs[topic.incarnation] = topic
        tickets = {self._gatherings.ticket(): subscription for subscription in subscriptions}
        of_log = self._gatherings.ticket()
        nodes = self._nodes(tickets)
        if with_log:
            nodes[of_log] = self._homes.of_topic(topic.name).node

        def finish(answers: Answers) -> None:
            self._leaving.pop(topic.incarnation, None)
            log_left = with_log and self._is_log_left(topic, confirmed=of_log in answers)
            if len(answers) < len(nodes) or log_left:
                self._note_left(topic, tickets, log_left, answers)
                return
            log.info("the remains of deleted topic %s were deleted here, too", topic.name)
            del self._left[topic.incarnation]
            self.erase_all()

        self._gatherings.gather(self._address, 0, nodes, finish, partial=True, takes_no=True)
        self._have_deleted(topic, tickets, of_log if with_log else None)

    def _is_log_left(self, topic: TopicMeta, *, confirmed: bool) -> bool:
        """Say whether the deletion of a log has to be requested again: it did not begin, or was interrupted."""
        interrupted = topic.incarnation in self._interrupted
        self._interrupted.discard(topic.incarnation)
        return interrupted or not confirmed

    def log_erased(self, command: LogErased) -> None:
        """Note that nothing of a deleted topic's log is left."""
        self._logs.pop(command.topic.incarnation, None)

    def node_gone(self, node: str) -> None:
        """Note that the logs which this process was deleting have to be deleted once more when it is up."""
        for incarnation, topic in list(self._logs.items()):
            if self._homes.of_topic(topic.name).node != node:
                continue
            del self._logs[incarnation]
            if incarnation in self._leaving:
                self._interrupted.add(incarnation)
            else:
                _, subscriptions, _ = self._left.get(incarnation, (topic, [], True))
                self._left[incarnation] = (topic, subscriptions, True)

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
        """Remember the parts whose deletion was not confirmed."""
        left = [subscription for ticket, subscription in tickets.items() if ticket not in answers]
        self._left[topic.incarnation] = (topic, left, with_log)
        # mail can be lost, and the clients of these parts must be told
        self._call_later(DELETE_AGAIN_S, self.delete_left)

    # ---- in the store -------------------------------------------------------------------------------------------

    def store_has(self, incarnations: Container[bytes]) -> None:
        """Use a listing of the store: forget what its owner deleted, and request the remaining deletions."""
        for gone in self._registry.erasing():
            self._deleted.add(gone.incarnation)
            if (
                FORGOTTEN in gone.settings and gone.incarnation not in incarnations
            ):  # its owner has deleted it
                self._note_erased(Erased(gone))
        self.erase_all()  # the tier may not have been up before

    def erase_all(self) -> None:
        """Request from the store all deletions that are neither done nor in progress here."""
        for gone in self._registry.erasing():
            if FORGOTTEN not in gone.settings and gone.incarnation not in self._leaving:
                uploader = self._homes.uploader(gone)
                if uploader is not None:
                    uploader.tell(EraseStored(gone, self._address))

    def erased(self, command: Erased) -> None:
        """Forget a deleted topic: the store has nothing of it any more, or it belongs to another broker there."""
        if command.topic.incarnation in self._leaving:
            self._leaving[command.topic.incarnation] = command
        else:
            self._note_erased(command)

    def _note_erased(self, command: Erased) -> None:
        if command.topic.incarnation in self._left:
            return  # not before nothing is left here either; then the store is asked again
        note = self._registry.forget if command.kept else self._registry.erased
        try:
            note(command.topic.incarnation)
        except StorageError as error:  # the store is asked again, and answers the same
            log.warning(
                "the deletion of topic %s in the store is not recorded yet: %s", command.topic.name, error
            )
