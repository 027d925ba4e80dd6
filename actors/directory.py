"""The Directory: knows every topic and subscription, its settings, and where it lives.

Runs in the broker process; the catalogue (SQLite) is its own. Where something lives follows from its name and the
number of workers alone (`actors/placement.py`), so that a restart with another number of workers needs no migration.

Invariants
- a topic or subscription exists once the catalogue has it, and never otherwise
- every request is answered, once: by a result, or by a coded error within `ANSWER_WITHIN_S`
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from ister.actors.addresses import FETCHER_PATH, FRONTEND_PATH, RESTORER_PATH, TIER, actor_path, node_of
from ister.actors.explain import explain
from ister.actors.messages import (
    WITH_TOPIC,
    Answer,
    Ask,
    Consult,
    Describe,
    DropCache,
    Erased,
    EraseStored,
    Governs,
    KeepTopic,
    KeptSessions,
    Locate,
    Located,
    LocateSubscription,
    NotRestored,
    Refused,
    Restored,
    RestoreTopics,
    StoredTopics,
    Subscribers,
    SubscriptionTask,
    TakeOver,
    TopicTask,
    WhoSubscribes,
)
from ister.actors.options import (
    DEAD_LETTERS,
    SUBSCRIPTION_OPTIONS,
    TOPIC_OPTIONS,
    UNBLOCK_ACTIONS,
    check_flag,
    check_options,
    check_position,
    check_same_options,
    check_subscription_options,
    effective_options,
)
from ister.actors.patience import NotYetError, Patience
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.actors.process import NodeDown, NodeUp
from ister.actors.registry import EPHEMERAL, Owner, Registry
from ister.actors.runtime import Address, LoopActor, System, receives
from ister.actors.watches import WAIT_MS_MAX, Watches
from ister.errors import IsterError, RemoteError, RemoteProtocolError, StorageError, UsageError
from ister.names import check_subscription_name, check_topic_name, topic_pattern
from ister.settings import SubscriptionSettings
from ister.storage.catalogue import FORGOTTEN, Catalogue, SubscriptionMeta, TopicMeta
from ister.subscriptions import READER, SUBSCRIPTION_TYPES
from ister.wire import RESULT_BYTES_MAX, decode_result, encode_result

log = logging.getLogger("ister.directory")

ANSWER_WITHIN_S: Final = 5.0  # a worker that is being restarted is back sooner, one that hangs is not
STORE_WITHIN_S: Final = 1.5  # what only the store has to say is waited for so long
ERASE_AGAIN_S: Final = 30.0  # mail is no promise: what is to be deleted from the store is asked for again
DELETE_AGAIN_S: Final = 1.0  # what nobody said to be deleted, once it was waited for
ENTER_AGAIN_S: Final = 5.0  # what came back from the store is entered on a disk that has room again
PAGE_MAX: Final = 500  # entries of one listing: some 200 bytes each, far below RESULT_BYTES_MAX
STRATEGIES: Final = ("reliable", "non-reliable")
_DEFAULTS: Final = SubscriptionSettings()
_TOPIC_ARGUMENTS: Final = ("topic", "dispatch", "durability", EPHEMERAL)
DURABILITIES: Final = ("fsync", "os", "cloud")

# What an answer is made of; None where another gathering is to answer. Raises IsterError for a refusal.
Finish = Callable[[list[dict[str, Any]]], dict[str, Any] | None]


@dataclass(slots=True, eq=False)
class _Gathering:
    """A request that waits for the answers of others."""

    reply: Address
    ticket: int
    finish: Finish
    waiting: dict[int, str]  # ticket -> the node that is to answer
    partial: bool  # better what there is than no answer
    takes_no: bool = False  # a refusal is as good as no answer
    optional: frozenset[int] = frozenset()  # tickets that are waited for only so long
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)


class Directory(LoopActor):
    """The catalogue, placement, and administration; `endpoints` are the workers' addresses as clients are told them.

    `waits_for_store`: the store may have topics that the catalogue knows nothing of, so that no topic is unknown before
    the store has said so. `on_restored` is called whenever nothing is left to be brought back from there. `defaults`:
    what counts for subscriptions that have no option of their own.
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
        # A later Directory begins higher: no broker creates and deletes a thousand topics a millisecond.
        self._registry = Registry(catalogue, self.clock.time_ms() << 10)
        self._watches = Watches(
            topics=self._registry.topics,
            version=lambda: self._registry.version,
            subscribed=self._registry.subscribed,
            call_later=self.call_later,
            answer=self._answer,
            refuse=lambda ask, error: self._refuse(ask.reply, ask.ticket, error),
        )
        self._registry.on_change = self._watches.changed
        self._endpoints = list(endpoints)
        self._defaults = defaults
        self._describe_broker = describe_broker
        self._patience: Patience[Ask | Locate | LocateSubscription] = Patience(
            self._carry_out,
            lambda question, error: self._refuse(question.reply, question.ticket, error),
            now_s=self.clock.monotonic,
            call_later=self.call_later,
        )
        self._up: dict[str, NodeUp] = {}
        self._waits_for_store = waits_for_store
        self._store_known = False
        self._restoring: set[str] = set()
        self._deleted: set[bytes] = set()  # incarnations that must not come back, whatever a listing says
        self._leaving: dict[
            bytes, Erased | None
        ] = {}  # being deleted here, and what the store's side of it said
        # Deleted topics of which a worker that was not there may have something left: the subscriptions there, and
        # whether it is the log as well.
        self._left: dict[bytes, tuple[TopicMeta, list[SubscriptionMeta], bool]] = {}
        self._on_restored = on_restored
        self.restored: list[str] = []  # what came back from the store, and what may be missing
        self._tickets = 0
        self._gatherings: dict[int, _Gathering] = {}  # by each ticket it waits for
        # Topics that are to take dead letters, if they are there or not: of subscriptions that name one.
        self._named_for_letters = self._registry.named_for_letters()
        self._operations: dict[str, Callable[[Ask, dict[str, Any]], None]] = {
            "topic.create": self._create_topic,
            "topic.update": self._update_topic,
            "topic.verify": self._care_for_topic,
            "topic.repair": self._care_for_topic,
            "topic.list": self._list_topics,
            "topic.show": self._show_topic,
            "topic.delete": self._delete_topic,
            "topic.forget": self._forget_topic,
            "topic.takeover": self._take_over,
            "topic.watch": self._watch_topics,
            "subscription.create": self._create_subscription,
            "subscription.list": self._list_subscriptions,
            "subscription.show": self._show_subscription,
            "subscription.delete": self._delete_subscription,
            "subscription.update": self._update_subscription,
            "subscription.seek": self._seek,
            "subscription.unblock": self._unblock,
            "subscription.explain": self._explain,
            "status": self._status,
        }

    def on_start(self) -> None:
        """Mark the dead-letter topics that were named before there were marks; see to deletions now and again."""
        for name in sorted(self._named_for_letters):
            self._mark_for_letters(name)
        self.call_later(ERASE_AGAIN_S, self._erase_again)

    def on_stop(self) -> None:
        """Close the catalogue."""
        self._registry.close()

    @receives(NodeUp, NodeDown)
    def on_node_changed(self, change: NodeUp | NodeDown) -> None:
        """Note which processes are up."""
        if isinstance(change, NodeUp):
            self._up[change.node] = change
            self._patience.changed()
            self._delete_left()
        else:
            self._up.pop(change.node, None)
            self._answer_without(change.node)
            self._forget_ephemerals(change.node, ())

    def _answer_without(self, node: str) -> None:
        """Nobody there will answer any more: not what is asked now, and who is there next knows of nothing."""
        for ticket, gathering in list(self._gatherings.items()):
            if gathering.waiting.get(ticket) != node:
                continue
            if gathering.partial or ticket in gathering.optional:
                self._do_without(ticket, gathering)
            else:
                self._give_up(gathering)

    def _do_without(self, ticket: int, gathering: _Gathering) -> None:
        del self._gatherings[ticket]
        del gathering.waiting[ticket]
        if not gathering.waiting:
            self._finish(gathering)

    # ---- placement ----------------------------------------------------------------------------------------------

    def _worker_of_topic(self, topic: str) -> int:
        return worker_of(topic_key(topic), len(self._endpoints))

    def _worker_of_subscription(self, topic: str, subscription: str) -> int:
        return worker_of(subscription_key(topic, subscription), len(self._endpoints))

    def _node_of_topic(self, topic: TopicMeta) -> str:
        return node_of(self._worker_of_topic(topic.name))

    def _node_of_subscription(self, subscription: SubscriptionMeta) -> str:
        return node_of(self._worker_of_subscription(subscription.topic, subscription.name))

    @receives(Ask, Locate, LocateSubscription)
    def on_question(self, question: Ask | Locate | LocateSubscription) -> None:
        """Answer a worker's or a client's question, at once or as soon as what it is about is there."""
        self._patience.take(question)

    def _carry_out(self, question: Ask | Locate | LocateSubscription) -> None:
        if isinstance(question, Ask):
            self._answer_ask(question)
        elif isinstance(question, Locate):
            self._locate(question)
        else:
            self._locate_subscription(question)

    def _locate(self, command: Locate) -> None:
        """Say where a topic lives."""
        topic = self._get_topic(command.topic)
        worker = self._worker_of_topic(topic.name)
        located = Located(command.ticket, topic, node_of(worker), self._endpoints[worker], node_of(worker))
        self.system.at(command.reply).tell(located)

    def _locate_subscription(self, command: LocateSubscription) -> None:
        """Say where a subscription lives, and create it when it is new."""
        topic = self._get_topic(command.topic)
        subscription = self._opened_subscription(topic, command)
        worker = self._worker_of_subscription(topic.name, subscription.name)
        topic_node = node_of(self._worker_of_topic(topic.name))
        located = Located(
            command.ticket, topic, topic_node, self._endpoints[worker], node_of(worker), subscription
        )
        self.system.at(command.reply).tell(located)

    def _opened_subscription(self, topic: TopicMeta, command: LocateSubscription) -> SubscriptionMeta:
        """Return what a consumer opens; a reader's is in no catalogue, and ends with its consumer."""
        name, options = command.subscription, dict(command.options)
        if command.type == READER:
            return self._new_subscription(
                topic, check_subscription_name(name), READER, command.start, options
            )
        return self._subscription(topic, name, command.type, command.start, options)

    def _subscription(
        self,
        topic: TopicMeta,
        name: str,
        type_: str,
        start: str,
        options: dict[str, Any],
        *,
        new: bool = False,
    ) -> SubscriptionMeta:
        check_subscription_name(name)
        if type_ not in SUBSCRIPTION_TYPES:
            raise UsageError(f"subscription type {type_!r:.40} is none of {', '.join(SUBSCRIPTION_TYPES)}")
        found = None if new else self._registry.subscription(topic.name, name)
        if found is None:
            found = self._new_subscription(topic, name, type_, start, options)
            self._registry.create_subscription(found)
            self._name_for_letters(found)
            return found
        if found.type != type_:
            raise RemoteError(
                "subscription-type",
                f"subscription {name!r} of topic {topic.name!r} is {found.type}, not {type_}",
            )
        check_same_options(options, topic, found, self._defaults)
        return found

    def _new_subscription(
        self, topic: TopicMeta, name: str, type_: str, start: str, options: dict[str, Any]
    ) -> SubscriptionMeta:
        created_ms = self._registry.stamp(self.clock.time_ms())
        new = SubscriptionMeta(topic.name, name, type_, check_position(start, "start"), created_ms, options)
        check_subscription_options(options, replace(new, settings={}), topic.dispatch)
        return new

    # ---- administration -----------------------------------------------------------------------------------------

    def _answer_ask(self, ask: Ask) -> None:
        """Carry out a client's request."""
        operation = self._operations.get(ask.operation)
        try:
            if operation is None:
                known = ", ".join(sorted(self._operations))
                raise RemoteError(
                    "unknown-operation", f"unknown operation {ask.operation!r:.60}; known are {known}"
                )
            arguments = decode_result(ask.arguments)
            operation(ask, arguments)
        except RemoteProtocolError as error:
            raise UsageError(error.text) from None
        except IsterError:
            raise
        except Exception:  # without the Directory there is no broker: no request may end it
            log.exception("request %.60r failed", ask.operation)
            raise RemoteError("internal", "the broker failed at this request; its log says how") from None

    def _refuse(self, reply: Address, ticket: int, error: IsterError) -> None:
        self.system.at(reply).tell(Refused(ticket, error.code, error.text))

    def _answer(self, ask: Ask, body: dict[str, Any]) -> None:
        self.system.at(ask.reply).tell(Answer(ask.ticket, encode_result(body)))

    def _create_topic(self, ask: Ask, arguments: dict[str, Any]) -> None:
        name = check_topic_name(_text(arguments, "topic"))
        dispatch = _text(arguments, "dispatch", "reliable")
        durability = _text(arguments, "durability", "fsync")
        if dispatch not in STRATEGIES:
            raise UsageError(f"dispatch {dispatch!r:.40} is none of {', '.join(STRATEGIES)}")
        if durability not in DURABILITIES:
            raise UsageError(f"durability {durability!r:.40} is none of {', '.join(DURABILITIES)}")
        options = {key: value for key, value in arguments.items() if key not in _TOPIC_ARGUMENTS}
        ephemeral = check_flag(arguments.get(EPHEMERAL, 0), EPHEMERAL)
        check_options(options, TOPIC_OPTIONS, "topic")
        if dispatch != "reliable" and "durability" in arguments:
            raise UsageError("durability is for reliable topics: a non-reliable one keeps nothing")
        if options and dispatch != "reliable":
            raise UsageError(
                f"{next(iter(options))} is for reliable topics: a non-reliable one keeps nothing"
            )
        if name in self._named_for_letters and dispatch == "reliable":
            options.setdefault(DEAD_LETTERS, 1)
        incarnation = self.system.random.randbytes(16)
        topic = TopicMeta(
            name, incarnation, dispatch, durability, self._registry.stamp(self.clock.time_ms()), options
        )
        if topic.name in self._restoring:
            raise RemoteError("topic-exists", f"topic {topic.name!r} is being brought back from the store")
        if dispatch == "reliable" and self._waits_for_store and not self._store_known:
            raise NotYetError(f"topic {name!r} may be in the store, which is being read; try again")
        if ephemeral:
            self._create_ephemeral(ask, replace(topic, settings={EPHEMERAL: 1}))
            return
        self._registry.create_topic(topic)
        if dispatch == "reliable" and TIER in self._up:
            self.system.ref(TIER, actor_path("uploader", topic)).tell(KeepTopic(topic, 0, 0, None))
        log.info("topic %s created, %s", name, dispatch)
        self._answer(ask, self._topic_map(topic))

    def _name_for_letters(self, subscription: SubscriptionMeta) -> None:
        """Note the topic that a subscription names for its dead letters: patterns must not follow it."""
        name = subscription.settings.get("dead_letter_topic")
        if name:
            self._named_for_letters.add(name)
            self._mark_for_letters(name)

    def _mark_for_letters(self, name: str) -> None:
        topic = self._registry.topic(name)
        if topic is None or topic.dispatch != "reliable" or DEAD_LETTERS in topic.settings:
            return
        try:
            changed = self._registry.update_topic(name, dict(topic.settings) | {DEAD_LETTERS: 1})
        except StorageError as error:  # it is tried again when somebody names it, and at the next start
            log.warning("topic %s cannot be marked as a dead-letter topic: %s", name, error)
            return
        worker = self._worker_of_topic(name)
        if node_of(worker) in self._up:
            self._frontend(worker).tell(TopicTask("update", changed, self.address, self._ticket()))
        if TIER in self._up:
            self._tell_catalogue(changed)

    def _create_ephemeral(self, ask: Ask, topic: TopicMeta) -> None:
        if topic.dispatch != "non-reliable":
            raise UsageError("ephemeral is for non-reliable topics: a reliable one keeps its messages")
        if not ask.session:
            raise UsageError("an ephemeral topic belongs to a session, and this request comes from none")
        self._registry.create_ephemeral(topic, Owner(ask.reply.node, ask.session))
        self._answer(ask, self._topic_map(topic))

    @receives(KeptSessions)
    def on_kept_sessions(self, command: KeptSessions) -> None:
        """Delete the ephemeral topics of sessions that are gone."""
        self._forget_ephemerals(command.node, command.sessions)

    def _forget_ephemerals(self, node: str, kept: Sequence[int]) -> None:
        for name in self._registry.ephemerals_of(node, kept):
            topic, subscriptions = self._registry.delete_topic(name)
            for subscription in subscriptions:
                if self._node_of_subscription(subscription) in self._up:
                    self._tell_subscription("delete", topic, subscription, self._ticket(), WITH_TOPIC)
            if self._node_of_topic(topic) in self._up:
                frontend = self._frontend(self._worker_of_topic(name))
                frontend.tell(TopicTask("delete", topic, self.address, self._ticket()))

    def _watch_topics(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Say which topics match a pattern, once that is news to the client."""
        _only(arguments, "pattern", "version", "wait_ms", "subscription")
        subscription = arguments.get("subscription", "")
        if subscription:
            check_subscription_name(subscription)
        pattern = topic_pattern(arguments.get("pattern"))
        version, wait_ms = arguments.get("version"), arguments.get("wait_ms", WAIT_MS_MAX)
        if version is not None and type(version) is not int:
            raise UsageError(f"version {version!r:.40} is none that a watch was answered with")
        if type(wait_ms) is not int or not 0 <= wait_ms <= WAIT_MS_MAX:
            raise UsageError(f"wait_ms {wait_ms!r:.40} is not 0 to {WAIT_MS_MAX}")
        self._watches.watch(ask, pattern, version, wait_ms, subscription)

    def _topic_map(self, topic: TopicMeta) -> dict[str, Any]:
        worker = self._worker_of_topic(topic.name)
        return {
            "topic": topic.name,
            "strategy": topic.dispatch,
            "durability": topic.durability if topic.dispatch == "reliable" else "none",
            "settings": dict(topic.settings),
            "incarnation": topic.incarnation.hex(),
            "created_ms": topic.created_ms,
            "node": node_of(worker),
            "endpoint": self._endpoints[worker],
        }

    def _update_topic(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Change a topic's own settings: what is given replaces what was."""
        topic = self._get_topic(_text(arguments, "topic"))
        options = {key: value for key, value in arguments.items() if key != "topic"}
        check_options(options, TOPIC_OPTIONS, "topic")
        if not options:
            raise UsageError(f"nothing to change; a topic has {', '.join(TOPIC_OPTIONS)}")
        if topic.dispatch != "reliable":
            raise UsageError(
                f"{next(iter(options))} is for reliable topics: a non-reliable one keeps nothing"
            )
        frontend = self._frontend(self._worker_of_topic(topic.name))
        changed = self._registry.update_topic(topic.name, dict(topic.settings) | options)
        ticket, stored = self._ticket(), self._ticket()
        nodes, tier = {ticket: self._node_of_topic(topic)}, TIER in self._up
        if tier:
            nodes[stored] = TIER

        def finish(_: list[dict[str, Any]]) -> dict[str, Any]:
            return self._topic_map(changed) | {"settings_stored": stored in gathering.answers}

        gathering = _Gathering(ask.reply, ask.ticket, finish, nodes, False, optional=frozenset((stored,)))
        self._await(gathering)
        self.call_later(STORE_WITHIN_S, lambda: self._give_up_optional(gathering))
        frontend.tell(TopicTask("update", changed, self.address, ticket))
        if tier:
            self._tell_catalogue(changed, stored)

    def _tell_catalogue(self, topic: TopicMeta, ticket: int = 0) -> None:
        """Tell a topic's Uploader what the catalogue has."""
        names = [each.name for each in self._registry.subscriptions(topic.name)]
        reply = self.address if ticket else None
        self.system.ref(TIER, actor_path("uploader", topic)).tell(Governs(topic, names, reply, ticket))

    @receives(Consult)
    def on_consult(self, question: Consult) -> None:
        """Say what the catalogue has of a topic."""
        topic = self._registry.topic(question.topic)
        if topic is not None and topic.incarnation == question.incarnation:
            self._tell_catalogue(topic)
        else:
            self.system.at(question.reply).tell(Governs(None, []))

    def _care_for_topic(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Verify or repair a topic's log."""
        topic = self._get_topic(_text(arguments, "topic"))
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: it has no log")
        if ask.operation == "topic.repair" and arguments.get("skip_damaged") not in (True, 1):
            raise UsageError("say what is to be done: skip_damaged (readers go on behind what is damaged)")
        number = arguments.get("verification")
        if number is not None and (type(number) is not int or number < 0):
            raise UsageError(f"verification {number!r:.40} is none that a request was answered with, nor 0")
        frontend = self._frontend(self._worker_of_topic(topic.name))
        ticket = self._ticket()
        self._gather(ask, {ticket: self._node_of_topic(topic)}, lambda answers: answers[0])
        task: Literal["verify", "repair"] = "verify" if ask.operation == "topic.verify" else "repair"
        frontend.tell(TopicTask(task, topic, self.address, ticket, number))

    # ---- what the store has ------------------------------------------------------------------------------------

    @receives(StoredTopics)
    def on_stored_topics(self, command: StoredTopics) -> None:
        """Have those topics brought back that the catalogue knows nothing of."""
        there = {topic.incarnation for topic in command.topics}
        for gone in self._registry.erasing():
            self._deleted.add(gone.incarnation)
            if FORGOTTEN in gone.settings and gone.incarnation not in there:  # whoever had it has deleted it
                self._note_erased(Erased(gone))
        self._erase_all()  # a process was not there to do it
        unknown = []
        for topic in command.topics:
            known = self._registry.topic(topic.name)
            if topic.incarnation in self._deleted:
                continue
            if known is None:
                unknown.append(topic)
            elif known.incarnation != topic.incarnation:
                text = (
                    "the store has another topic %s, of incarnation %s: nothing of this broker's is uploaded"
                )
                log.error(text, topic.name, topic.incarnation.hex())
        self._restoring = {topic.name for topic in unknown}
        self._store_known = True
        self._patience.changed()
        if unknown:
            self.system.at(command.reply).tell(RestoreTopics(tuple(unknown)))
        else:
            self._on_restored()

    def _erase_again(self) -> None:
        self.call_later(ERASE_AGAIN_S, self._erase_again)
        self._delete_left()
        self._erase_all()

    def _erase_all(self) -> None:
        """Have deleted from the store what was deleted here, where that is not done and not on its way."""
        if TIER not in self._up:
            return
        for gone in self._registry.erasing():
            if FORGOTTEN not in gone.settings and gone.incarnation not in self._leaving:
                self.system.ref(TIER, actor_path("uploader", gone)).tell(EraseStored(gone, self.address))

    @receives(Erased)
    def on_erased(self, command: Erased) -> None:
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
                "that topic %s is deleted in the store is not noted yet: %s", command.topic.name, error
            )

    @receives(NotRestored)
    def on_not_restored(self, command: NotRestored) -> None:
        """A topic that was to come back does not."""
        self._restoring.discard(command.topic)
        if not self._restoring:
            self._on_restored()

    @receives(Restored)
    def on_restored(self, command: Restored) -> None:
        """Enter a topic that came back, with its subscriptions."""
        if self._registry.topic(command.topic.name) is None:
            try:
                self._registry.erased(command.topic.incarnation)
                self._registry.create_topic(command.topic, command.subscriptions)
            except StorageError as error:
                log.error(
                    "topic %s is not back yet: %s; trying again in %g s",
                    command.topic.name,
                    error,
                    ENTER_AGAIN_S,
                )
                self.call_later(ENTER_AGAIN_S, lambda: self.on_restored(command))
                return
            self._deleted.discard(command.topic.incarnation)
            for subscription in command.subscriptions:
                self._name_for_letters(subscription)
            self.restored.append(command.text)
        self._restoring.discard(command.topic.name)
        self._patience.changed()
        if not self._restoring:
            self._on_restored()

    def _get_topic(self, name: str) -> TopicMeta:
        """Return a topic; one that may be about to come back is not unknown yet."""
        found = self._registry.topic(name)
        if found is None and (name in self._restoring or (not self._store_known and self._waits_for_store)):
            raise NotYetError(f"topic {name!r} may be in the store, which is being read; try again")
        return self._registry.get_topic(name)

    @receives(WhoSubscribes)
    def on_who_subscribes(self, question: WhoSubscribes) -> None:
        """Name a topic's subscriptions, and start those it has not heard of."""
        topic = self._registry.topic(question.topic)
        if topic is None:
            return
        subscriptions = self._registry.subscriptions(topic.name)
        for subscription in subscriptions:
            worker = self._worker_of_subscription(topic.name, subscription.name)
            if subscription.name not in question.known and node_of(worker) in self._up:
                self._tell_subscription("start", topic, subscription, self._ticket())
        self.system.at(question.reply).tell(Subscribers([each.name for each in subscriptions]))

    def _list_topics(self, ask: Ask, arguments: dict[str, Any]) -> None:
        after, limit = _page(arguments)
        ephemeral = check_flag(arguments.get(EPHEMERAL, 0), EPHEMERAL)
        topics = [topic for topic in self._registry.topics(ephemeral=ephemeral) if topic.name > after]
        body = {"topics": [self._topic_map(topic) for topic in topics[:limit]], "more": len(topics) > limit}
        self._answer(ask, body)

    def _show_topic(self, ask: Ask, arguments: dict[str, Any]) -> None:
        topic = self._get_topic(_text(arguments, "topic"))
        ticket = self._ticket()
        frontend = self._frontend(self._worker_of_topic(topic.name))
        task = TopicTask("describe", topic, self.address, ticket)
        count = len(self._registry.subscriptions(topic.name))
        base = self._topic_map(topic) | {"subscriptions": count}
        self._gather(ask, {ticket: self._node_of_topic(topic)}, lambda answers: base | answers[0])
        frontend.tell(task)

    def _delete_topic(self, ask: Ask, arguments: dict[str, Any]) -> None:
        topic = self._registry.get_topic(_text(arguments, "topic"))
        self._delete_here(ask, topic)

    def _delete_here(self, ask: Ask, topic: TopicMeta, *, whole: bool = False) -> None:
        """Delete a topic with its subscriptions; what the store has of it goes if it is this broker's there.

        `whole`: it is no success as long as something may be left here.
        """
        name = topic.name
        for worker in {
            self._worker_of_subscription(name, each.name) for each in self._registry.subscriptions(name)
        }:
            self._frontend(worker)  # all must be there to delete their part, or nothing is deleted
        frontend = self._frontend(self._worker_of_topic(name))
        _, subscriptions = self._registry.delete_topic(name)
        if topic.dispatch == "reliable":
            self._deleted.add(topic.incarnation)
            self._leaving[topic.incarnation] = None
        log.info("topic %s deleted, with %d subscriptions", name, len(subscriptions))
        ticket = self._ticket()
        tickets = {self._ticket(): subscription for subscription in subscriptions}
        nodes = {each: self._node_of_subscription(subscription) for each, subscription in tickets.items()}
        nodes[ticket] = self._node_of_topic(topic)

        def finish(answers: list[dict[str, Any]]) -> dict[str, Any]:
            said = self._leaving.pop(topic.incarnation, None)
            if len(answers) < len(nodes):
                self._note_left(topic, tickets, ticket, gathering.answers)
            if said is not None:
                self._note_erased(said)
            if whole and len(answers) < len(nodes):
                raise RemoteError(
                    "unavailable", f"a process that has a part of topic {name!r} did not answer: look again"
                )
            return {"deleted": name, "subscriptions": len(subscriptions)}

        gathering = _Gathering(ask.reply, ask.ticket, finish, dict(nodes), partial=True)
        self._await(gathering)
        for each, subscription in tickets.items():
            self._tell_subscription("delete", topic, subscription, each, WITH_TOPIC)
        frontend.tell(TopicTask("delete", topic, self.address, ticket))
        if topic.dispatch == "reliable" and TIER in self._up:
            self.system.ref(TIER, FETCHER_PATH).tell(DropCache(topic))

    def _note_left(
        self,
        topic: TopicMeta,
        tickets: dict[int, SubscriptionMeta],
        of_log: int,
        answers: dict[int, dict[str, Any]],
    ) -> None:
        """Remember what nobody has said to be deleted."""
        left = [subscription for each, subscription in tickets.items() if each not in answers]
        self._left[topic.incarnation] = (topic, left, of_log not in answers)
        self.call_later(DELETE_AGAIN_S, self._delete_left)  # mail is no promise; its clients must hear of it

    def _delete_left(self) -> None:
        """Have deleted what was left here of deleted topics, by those who are there now."""
        for topic, subscriptions, with_log in list(self._left.values()):
            if topic.incarnation in self._leaving:
                continue  # they are at it
            nodes = {self._node_of_subscription(each) for each in subscriptions}
            if with_log:
                nodes.add(self._node_of_topic(topic))
            if nodes <= self._up.keys():
                self._delete_rest(topic, subscriptions, with_log)

    def _delete_rest(self, topic: TopicMeta, subscriptions: list[SubscriptionMeta], with_log: bool) -> None:
        self._leaving[topic.incarnation] = None
        tickets = {self._ticket(): subscription for subscription in subscriptions}
        of_log = self._ticket()
        nodes = {each: self._node_of_subscription(subscription) for each, subscription in tickets.items()}
        if with_log:
            nodes[of_log] = self._node_of_topic(topic)

        def finish(answers: list[dict[str, Any]]) -> None:
            self._leaving.pop(topic.incarnation, None)
            if len(answers) < len(nodes):
                told = gathering.answers if with_log else gathering.answers | {of_log: {}}
                self._note_left(topic, tickets, of_log, told)
                return
            log.info("what was left here of deleted topic %s is deleted too", topic.name)
            del self._left[topic.incarnation]
            self._erase_all()

        gathering = _Gathering(self.address, 0, finish, dict(nodes), partial=True, takes_no=True)
        self._await(gathering)
        for each, subscription in tickets.items():
            self._tell_subscription("delete", topic, subscription, each, WITH_TOPIC)
        if with_log:
            frontend = self._frontend(self._worker_of_topic(topic.name))
            frontend.tell(TopicTask("delete", topic, self.address, of_log))

    # ---- topics that another broker has ---------------------------------------------------------------------------

    def _forget_topic(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Drop what is here of a topic that another broker has taken over."""
        _only(arguments, "topic")
        topic = self._get_topic(_text(arguments, "topic"))
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: no other broker can have it")
        frontend = self._frontend(self._worker_of_topic(topic.name))

        def answered(answers: list[dict[str, Any]]) -> dict[str, Any] | None:
            if not answers[0]["fenced"]:
                raise RemoteError(
                    "invalid-argument",
                    f"topic {topic.name!r} is this broker's own in the store: there is nothing to take over or to "
                    "forget. What is not wanted any more is deleted",
                )
            known = self._registry.topic(topic.name)
            if known is None or known.incarnation != topic.incarnation:
                raise RemoteError("unknown-topic", f"there is no topic {topic.name!r}")
            self._delete_here(ask, topic, whole=True)
            return None

        ticket = self._ticket()
        gathering = _Gathering(
            ask.reply, ask.ticket, answered, {ticket: self._node_of_topic(topic)}, partial=False
        )
        self._await(gathering)
        frontend.tell(TopicTask("ask-fenced", topic, self.address, ticket))

    def _take_over(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Claim a topic that the store has and this broker has not, and go on where its history ends there."""
        _only(arguments, "topic")
        name = check_topic_name(_text(arguments, "topic"))
        if name in self._restoring:
            raise RemoteError(
                "unavailable", f"topic {name!r} is being brought back from the store; try again"
            )
        if self._registry.topic(name) is not None:
            raise RemoteError(
                "topic-exists",
                f"this broker has a topic {name!r}: if another broker took it over, forget it first",
            )
        rows = [gone for gone in self._registry.erasing() if gone.name == name]
        if any(
            FORGOTTEN not in gone.settings or gone.incarnation in self._leaving.keys() | self._left.keys()
            for gone in rows
        ):
            raise RemoteError("unavailable", f"topic {name!r} is still being deleted; try again")
        if TIER not in self._up:
            raise RemoteError("unavailable", "the tier is being restarted; try again")
        self._restoring.add(name)
        ticket = self._ticket()

        def finish(_: list[dict[str, Any]]) -> dict[str, Any]:
            topic = self._registry.topic(name)
            if topic is None:
                raise RemoteError("unavailable", f"topic {name!r} did not come back; try again")
            return self._topic_map(topic)

        self._gather(ask, {ticket: TIER}, finish)
        self.system.ref(TIER, RESTORER_PATH).tell(TakeOver(name, self.address, ticket))

    def _subscription_map(self, subscription: SubscriptionMeta) -> dict[str, Any]:
        topic = self._registry.topic(subscription.topic)
        worker = self._worker_of_subscription(subscription.topic, subscription.name)
        return {
            "topic": subscription.topic,
            "subscription": subscription.name,
            "type": subscription.type,
            "start": subscription.start,
            "settings": dict(subscription.settings),
            "options": {} if topic is None else effective_options(topic, subscription, self._defaults),
            "created_ms": subscription.created_ms,
            "node": node_of(worker),
            "endpoint": self._endpoints[worker],
        }

    def _create_subscription(self, ask: Ask, arguments: dict[str, Any]) -> None:
        topic = self._get_topic(_text(arguments, "topic"))
        options = {
            key: value
            for key, value in arguments.items()
            if key not in ("topic", "subscription", "type", "start")
        }
        name = check_subscription_name(_text(arguments, "subscription"))
        self._frontend(self._worker_of_subscription(topic.name, name))  # must be there, or nothing is created
        subscription = self._subscription(
            topic,
            name,
            _text(arguments, "type", "shared"),
            str(arguments.get("start", "latest")),
            options,
            new=True,
        )
        ticket = self._ticket()
        node = self._node_of_subscription(subscription)
        self._gather(ask, {ticket: node}, lambda _: self._subscription_map(subscription))
        self._tell_subscription("start", topic, subscription, ticket)

    def _list_subscriptions(self, ask: Ask, arguments: dict[str, Any]) -> None:
        topic = self._get_topic(_text(arguments, "topic"))
        after, limit = _page(arguments)
        found = [each for each in self._registry.subscriptions(topic.name) if each.name > after]
        body = {
            "subscriptions": [self._subscription_map(subscription) for subscription in found[:limit]],
            "more": len(found) > limit,
        }
        self._answer(ask, body)

    def _show_subscription(self, ask: Ask, arguments: dict[str, Any]) -> None:
        topic, subscription = self._named_subscription(arguments)
        base = self._subscription_map(subscription)
        self._have_done(ask, "describe", topic, subscription, finish=lambda answers: base | answers[0])

    def _delete_subscription(self, ask: Ask, arguments: dict[str, Any]) -> None:
        topic, subscription = self._named_subscription(arguments)
        self._frontend(self._worker_of_subscription(topic.name, subscription.name))
        self._registry.delete_subscription(topic.name, subscription.name)
        ticket = self._ticket()
        body = {"deleted": subscription.name, "topic": topic.name}
        node = self._node_of_subscription(subscription)
        self._gather(ask, {ticket: node}, lambda _: body, partial=True)
        self._tell_subscription("delete", topic, subscription, ticket)

    def _update_subscription(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Change a subscription's own settings: what is given replaces what was."""
        topic, subscription = self._named_subscription(arguments)
        options = {key: value for key, value in arguments.items() if key not in ("topic", "subscription")}
        if not options:
            raise UsageError(f"nothing to change; a subscription has {', '.join(SUBSCRIPTION_OPTIONS)}")
        check_subscription_options(options, subscription, topic.dispatch)
        self._frontend(self._worker_of_subscription(topic.name, subscription.name))
        changed = replace(subscription, settings=dict(subscription.settings) | options)
        self._registry.update_subscription(changed)
        self._name_for_letters(changed)
        self._have_done(ask, "update", topic, changed, finish=lambda _: self._subscription_map(changed))

    def _seek(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Move a subscription to another place."""
        topic, subscription = self._named_subscription(arguments)
        _only(arguments, "topic", "subscription", "to")
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: it keeps nothing to go back to")
        position = str(check_position(arguments.get("to"), "to"))
        self._have_done(ask, "seek", topic, subscription, position)

    def _unblock(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Let a subscription go on behind the message that blocks it."""
        topic, subscription = self._named_subscription(arguments)
        _only(arguments, "topic", "subscription", "action")
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: no message of it blocks")
        action = _text(arguments, "action")
        if action not in UNBLOCK_ACTIONS:
            raise UsageError(f"action {action!r:.40} is none of {', '.join(UNBLOCK_ACTIONS)}")
        self._have_done(ask, "unblock", topic, subscription, action)

    def _explain(self, ask: Ask, arguments: dict[str, Any]) -> None:
        """Say why a subscription delivers nothing; with half of the answers, what these tell."""
        topic, subscription = self._named_subscription(arguments)
        _only(arguments, "topic", "subscription")
        of_topic, of_subscription = self._ticket(), self._ticket()
        nodes = {
            of_topic: self._node_of_topic(topic),
            of_subscription: self._node_of_subscription(subscription),
        }
        asked = {ticket: node for ticket, node in nodes.items() if node in self._up}

        def finish(_: list[dict[str, Any]]) -> dict[str, Any]:
            answers = gathering.answers
            return explain(
                subscription.name, answers.get(of_subscription), answers.get(of_topic), self.clock.time_ms()
            )

        gathering = _Gathering(ask.reply, ask.ticket, finish, dict(asked), partial=True, takes_no=True)
        self._await(gathering)
        if of_topic in asked:
            frontend = self._frontend(self._worker_of_topic(topic.name))
            frontend.tell(TopicTask("describe", topic, self.address, of_topic))
        if of_subscription in asked:
            self._tell_subscription("explain", topic, subscription, of_subscription)

    def _have_done(
        self,
        ask: Ask,
        task: str,
        topic: TopicMeta,
        subscription: SubscriptionMeta,
        argument: str = "",
        *,
        finish: Finish = lambda answers: answers[0],
    ) -> None:
        """Hand a task to a subscription, and answer with what it says."""
        self._frontend(self._worker_of_subscription(topic.name, subscription.name))
        ticket = self._ticket()
        self._gather(ask, {ticket: self._node_of_subscription(subscription)}, finish)
        self._tell_subscription(task, topic, subscription, ticket, argument)

    def _named_subscription(self, arguments: dict[str, Any]) -> tuple[TopicMeta, SubscriptionMeta]:
        topic = self._get_topic(_text(arguments, "topic"))
        return topic, self._registry.get_subscription(topic.name, _text(arguments, "subscription"))

    def _status(self, ask: Ask, _arguments: dict[str, Any]) -> None:
        tickets = {}
        for node in sorted(self._up):
            tickets[self._ticket()] = node
        broker = self._describe_broker()

        def finish(answers: list[dict[str, Any]]) -> dict[str, Any]:
            return {"broker": broker, "processes": [broker, *answers]}

        self._gather(ask, tickets, finish, partial=True)
        for ticket, node in tickets.items():
            self.system.ref(node, FRONTEND_PATH).tell(Describe(self.address, ticket))

    # ---- asking others ------------------------------------------------------------------------------------------

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _frontend(self, worker: int) -> Any:
        node = node_of(worker)
        if node not in self._up:
            raise NotYetError(f"{node} is being restarted; try again")
        return self.system.ref(node, FRONTEND_PATH)

    def _tell_subscription(
        self, task: Any, topic: TopicMeta, subscription: SubscriptionMeta, ticket: int, argument: str = ""
    ) -> None:
        topic_node = node_of(self._worker_of_topic(topic.name))
        worker = self._worker_of_subscription(topic.name, subscription.name)
        self._frontend(worker).tell(
            SubscriptionTask(task, topic, subscription, topic_node, self.address, ticket, argument)
        )

    def _gather(self, ask: Ask, tickets: dict[int, str], finish: Finish, *, partial: bool = False) -> None:
        """Answer `ask` with `finish(answers)` once the nodes of all tickets have answered."""
        self._await(_Gathering(ask.reply, ask.ticket, finish, dict(tickets), partial))

    def _await(self, gathering: _Gathering) -> None:
        for ticket in gathering.waiting:
            self._gatherings[ticket] = gathering
        if gathering.waiting:
            self.call_later(ANSWER_WITHIN_S, lambda: self._give_up(gathering))
        else:
            self._finish(gathering)

    @receives(Answer)
    def on_answer(self, answer: Answer) -> None:
        """One of those asked has answered."""
        gathering = self._gatherings.pop(answer.ticket, None)
        if gathering is not None:
            del gathering.waiting[answer.ticket]
            try:
                gathering.answers[answer.ticket] = decode_result(answer.body)
            except RemoteProtocolError as error:
                self._forget(gathering)
                self._refuse(gathering.reply, gathering.ticket, RemoteError("limit-exceeded", error.text))
                return
            if not gathering.waiting:
                self._finish(gathering)

    def _finish(self, gathering: _Gathering) -> None:
        """Answer with what the others said; no answer may end the Directory, for without it there is no broker."""
        answers = [gathering.answers[ticket] for ticket in sorted(gathering.answers)]
        try:
            found = gathering.finish(answers)
            body = b"" if found is None else encode_result(found)
        except IsterError as error:
            self._refuse(gathering.reply, gathering.ticket, error)
            return
        except Exception:
            log.exception("an answer could not be made")
            failure = RemoteError("internal", "the broker failed at this request; its log says how")
            self._refuse(gathering.reply, gathering.ticket, failure)
            return
        if len(body) > RESULT_BYTES_MAX:
            text = f"the answer has {len(body)} bytes, over the limit of {RESULT_BYTES_MAX}"
            self._refuse(gathering.reply, gathering.ticket, RemoteError("limit-exceeded", text))
            return
        if found is not None:
            self.system.at(gathering.reply).tell(Answer(gathering.ticket, body))

    @receives(Refused)
    def on_refused(self, refused: Refused) -> None:
        """One of those asked says no: so does this answer."""
        gathering = self._gatherings.get(refused.ticket)
        if gathering is not None and gathering.takes_no:
            self._do_without(refused.ticket, gathering)
        elif gathering is not None:
            self._forget(gathering)
            self.system.at(gathering.reply).tell(Refused(gathering.ticket, refused.code, refused.text))

    def _give_up(self, gathering: _Gathering) -> None:
        if gathering.waiting and gathering.partial:
            self._forget(gathering)
            self._finish(gathering)
        elif gathering.waiting:
            self._forget(gathering)
            text = "a worker did not answer in time; it may be restarting: try again"
            self.system.at(gathering.reply).tell(Refused(gathering.ticket, "unavailable", text))

    def _give_up_optional(self, gathering: _Gathering) -> None:
        for ticket in gathering.optional & gathering.waiting.keys():
            self._do_without(ticket, gathering)

    def _forget(self, gathering: _Gathering) -> None:
        for ticket in gathering.waiting:
            self._gatherings.pop(ticket, None)
        gathering.waiting.clear()


def _text(arguments: dict[str, Any], name: str, default: str | None = None) -> str:
    value = arguments.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"the argument {name!r} is missing, or is no text")
    return value


def _only(arguments: dict[str, Any], *known: str) -> None:
    for name in arguments:
        if name not in known:
            raise UsageError(f"there is no argument {name!r:.40} here; known are {', '.join(known)}")


def _page(arguments: dict[str, Any]) -> tuple[str, int]:
    limit = arguments.get("limit", PAGE_MAX)
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise UsageError(f"limit {limit!r:.40} is not 1 to {PAGE_MAX}")
    return _text(arguments, "after", ""), limit
