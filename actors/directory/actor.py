"""The Directory: it knows every topic and subscription, their settings, and where they run.

Runs in the broker process, as one actor; it owns the catalogue (SQLite). This file says which part handles which
message:

    Topics, Subscriptions   requests of clients               Gatherings   waiting for answers of other processes
    Erasing, Restoring      deleted and restored topics       Homes        which processes are up, what runs where
    Registry, Watches, Patience: what exists, clients that follow patterns, requests that came too early

Invariants
- a topic or subscription exists once it is in the catalogue, and not before
- every request is answered exactly once, with a result or, within `ANSWER_WITHIN_S`, with a coded error
- no request ends the Directory: without it there is no broker
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from ister.actors.directory.aim import check_repeated, take_aim
from ister.actors.directory.arguments import Arguments
from ister.actors.directory.erasing import Erasing
from ister.actors.directory.gathering import Gatherings
from ister.actors.directory.homes import Homes
from ister.actors.directory.restoring import Restoring
from ister.actors.directory.subscriptions import Subscriptions
from ister.actors.directory.topics import Topics
from ister.actors.messages import (
    Answer,
    Ask,
    Consult,
    Erased,
    KeptSessions,
    Locate,
    Located,
    LocateSubscription,
    LogErased,
    NotRestored,
    Refused,
    Restored,
    StoredTopics,
    WhoSubscribes,
)
from ister.actors.patience import Patience
from ister.actors.process import NodeDown, NodeUp
from ister.actors.registry import Registry
from ister.actors.runtime import Address, LoopActor, System, receives
from ister.actors.watches import Watches
from ister.errors import IsterError, RemoteError, RemoteProtocolError, UsageError
from ister.settings import SubscriptionSettings
from ister.storage.catalogue import Catalogue
from ister.storage.meta import SubscriptionMeta
from ister.wire import decode_result, encode_result

log = logging.getLogger("ister.directory")

# mail can be lost: the deletion of topics in the store is requested again this often, in seconds
ERASE_AGAIN_S: Final = 30.0
_DEFAULTS: Final = SubscriptionSettings()


class Directory(LoopActor):
    """The catalogue, placement and administration. `endpoints` are the workers' addresses as clients are told them.

    `waits_for_store`: the store may have topics that are not in the catalogue, so no topic counts as unknown before the
    store was listed. `on_restored` is called whenever all topics are back from the store. `defaults` apply to
    subscriptions that have no option of their own.
    """

    def __init__(
        self,
        system: System,
        path: str,
        catalogue: Catalogue,
        *,
        endpoints: Sequence[str],
        describe_broker: Callable[[], dict[str, Any]],
        on_restored: Callable[[], None] = lambda: None,
        waits_for_store: bool = False,
        defaults: SubscriptionSettings = _DEFAULTS,
    ) -> None:
        super().__init__(system, path)
        # A later Directory begins with a higher number: no broker creates and deletes a thousand topics per
        # millisecond.
        registry = self._registry = Registry(
            catalogue, self.clock.time_ms() << 10, now_s=self.clock.monotonic
        )
        watches = self._watches = Watches(
            topics=registry.topics,
            version=lambda: registry.version,
            subscribed=registry.subscribed,
            call_later=self.call_later,
            answer=self._answer,
            refuse=lambda ask, error: self._refuse(ask.reply, ask.ticket, error),
        )
        registry.on_change = watches.changed
        self._describe_broker = describe_broker
        self._patience: Patience[Ask | Locate | LocateSubscription] = Patience(
            self._carry_out,
            lambda question, error: self._refuse(question.reply, question.ticket, error),
            now_s=self.clock.monotonic,
            call_later=self.call_later,
        )
        homes = self._homes = Homes(system, self.address, endpoints)
        gatherings = self._gatherings = Gatherings(
            call_later=self.call_later, tell=lambda reply, answer: system.at(reply).tell(answer)
        )
        erasing = self._erasing = Erasing(
            registry, homes, gatherings, self.address, call_later=self.call_later
        )
        restoring = self._restoring = Restoring(
            registry,
            homes,
            gatherings,
            erasing,
            self.address,
            waits_for_store=waits_for_store,
            call_later=self.call_later,
            on_entered=self._name_for_letters,
            on_news=self._patience.changed,
            on_done=on_restored,
        )
        self._topics = Topics(
            registry,
            homes,
            gatherings,
            erasing,
            restoring,
            watches,
            self.address,
            clock=self.clock,
            random=system.random,
            answer=self._answer,
        )
        self._subscriptions = Subscriptions(
            registry,
            homes,
            gatherings,
            restoring,
            clock=self.clock,
            defaults=defaults,
            answer=self._answer,
            on_settings=self._name_for_letters,
        )
        self._operations: dict[str, Callable[[Ask, Arguments], None]] = {
            **self._topics.operations(),
            **self._subscriptions.operations(),
            "status": self._status,
        }

    def _name_for_letters(self, subscription: SubscriptionMeta) -> None:
        self._topics.name_for_letters(subscription)  # which know what comes back, and are made after that

    @property
    def restored(self) -> list[str]:
        """A line for each topic that was restored from the store, saying what may be missing."""
        return self._restoring.restored

    def on_start(self) -> None:
        """Mark dead-letter topics that were named by an older version without marks; repeat requests for deletions."""
        self._topics.mark_for_letters()
        self.call_later(ERASE_AGAIN_S, self._erase_again)

    def on_stop(self) -> None:
        """Close the catalogue."""
        self._registry.close()

    def _erase_again(self) -> None:
        self.call_later(ERASE_AGAIN_S, self._erase_again)
        self._erasing.delete_left()
        self._erasing.erase_all()

    # ---- the other processes ------------------------------------------------------------------------------------

    @receives(NodeUp, NodeDown)
    def on_node_changed(self, change: NodeUp | NodeDown) -> None:
        """Note which processes are up."""
        if isinstance(change, NodeUp):
            self._homes.came(change.node)
            self._patience.changed()
            self._erasing.delete_left()
        else:
            self._homes.went(change.node)
            self._erasing.node_gone(change.node)
            self._gatherings.node_gone(change.node)
            self._topics.forget_ephemerals(change.node)

    @receives(Answer)
    def on_answer(self, answer: Answer) -> None:
        """Note an answer that a request waits for."""
        self._gatherings.answered(answer)

    @receives(Refused)
    def on_refused(self, refused: Refused) -> None:
        """Note a refusal that a request waits for."""
        self._gatherings.refused(refused)

    @receives(KeptSessions)
    def on_kept_sessions(self, command: KeptSessions) -> None:
        """Delete the ephemeral topics of sessions that have ended."""
        self._topics.forget_ephemerals(command.node, command.sessions)

    @receives(WhoSubscribes)
    def on_who_subscribes(self, question: WhoSubscribes) -> None:
        """Tell a topic the names of its subscriptions, and start those that it does not know yet."""
        self._subscriptions.started(question)

    # ---- the tier -----------------------------------------------------------------------------------------------

    @receives(Consult)
    def on_consult(self, question: Consult) -> None:
        """Tell an Uploader what the catalogue has about its topic."""
        self._topics.consulted(question)

    @receives(StoredTopics)
    def on_stored_topics(self, command: StoredTopics) -> None:
        """Have those topics of the store restored that are not in the catalogue."""
        self._restoring.stored(command)

    @receives(Restored)
    def on_restored(self, command: Restored) -> None:
        """Enter a restored topic and its subscriptions in the catalogue."""
        self._restoring.came(command)

    @receives(NotRestored)
    def on_not_restored(self, command: NotRestored) -> None:
        """Note that a topic that was to be restored will not be."""
        self._restoring.does_not_come(command)

    @receives(Erased)
    def on_erased(self, command: Erased) -> None:
        """Forget a deleted topic: the store has nothing of it any more, or it belongs to another broker there."""
        self._erasing.erased(command)

    @receives(LogErased)
    def on_log_erased(self, command: LogErased) -> None:
        """Note that a worker has deleted all files of a deleted topic's log."""
        self._erasing.log_erased(command)

    # ---- questions ----------------------------------------------------------------------------------------------

    @receives(Ask, Locate, LocateSubscription)
    def on_question(self, question: Ask | Locate | LocateSubscription) -> None:
        """Answer a question of a worker or a client, at once or when what it is about is available."""
        self._patience.take(question)

    def _carry_out(self, question: Ask | Locate | LocateSubscription) -> None:
        if isinstance(question, Ask):
            self._answer_ask(question)
        elif isinstance(question, Locate):
            self._locate(question)
        else:
            self._locate_subscription(question)

    def _locate(self, command: Locate) -> None:
        """Answer where a topic runs."""
        topic = self._restoring.topic(command.topic)
        node, endpoint = self._homes.of_topic(topic.name)
        self.system.at(command.reply).tell(Located(command.ticket, topic, node, endpoint, node))

    def _locate_subscription(self, command: LocateSubscription) -> None:
        """Answer where a subscription runs; a new one is created."""
        topic = self._restoring.topic(command.topic)
        if command.asked_s is not None:
            check_repeated(self._registry, topic.name, command.subscription, command.asked_s)
        subscription = self._subscriptions.opened(topic, command)
        node, endpoint = self._homes.of_subscription(topic.name, subscription.name)
        topic_node = self._homes.of_topic(topic.name).node
        located = Located(command.ticket, topic, topic_node, endpoint, node, subscription)
        self.system.at(command.reply).tell(located)

    def _answer_ask(self, ask: Ask) -> None:
        """Carry out an administrative request of a client."""
        operation = self._operations.get(ask.operation)
        try:
            if operation is None:
                known = ", ".join(sorted(self._operations))
                raise RemoteError(
                    "unknown-operation", f"unknown operation {ask.operation!r:.60}; known are {known}"
                )
            arguments = decode_result(ask.arguments)
            arguments = take_aim(self._registry, ask.operation, arguments, ask.asked_s)
            operation(ask, arguments)
        except RemoteProtocolError as error:
            raise UsageError(error.text) from None
        except IsterError:
            raise
        except Exception:  # without the Directory there is no broker: no request may end it
            log.exception("operation %.60r failed", ask.operation)
            raise RemoteError("internal", "the broker failed to serve this request; see its log") from None

    def _refuse(self, reply: Address, ticket: int, error: IsterError) -> None:
        self.system.at(reply).tell(Refused(ticket, error.code, error.text))

    def _answer(self, ask: Ask, body: dict[str, Any]) -> None:
        self.system.at(ask.reply).tell(Answer(ask.ticket, encode_result(body)))

    def _status(self, ask: Ask, _arguments: Arguments) -> None:
        nodes = {self._gatherings.ticket(): node for node in self._homes.up()}
        broker = self._describe_broker()
        self._gatherings.gather(
            ask.reply,
            ask.ticket,
            nodes,
            lambda answers: {"broker": broker, "processes": [broker, *answers.values()]},
            partial=True,
        )
        for ticket, node in nodes.items():
            self._homes.have_described(node, ticket)
