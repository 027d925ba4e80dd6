"""Operations on topics: create, update, list, show, verify, delete, forget, take over, watch.

Part of the Directory, in the broker process. It owns the names of the topics that are to take dead letters. It uses the
catalogue and mail.

Invariants
- a topic exists once it is in the catalogue; an ephemeral one exists in memory only
- nothing is changed before the processes that must be told are known to be up
- a topic that a subscription names for its dead letters is marked as such, now or when it is created
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Final, Literal

from ister.actors.addresses import TIER
from ister.actors.directory.arguments import Arguments, all_but, number, only, page, text
from ister.actors.directory.erasing import Erasing
from ister.actors.directory.gathering import Answers, Gatherings, the_answer
from ister.actors.directory.homes import Home, Homes
from ister.actors.directory.restoring import Restoring
from ister.actors.messages import WITH_TOPIC, Ask, Consult, Governs, KeepTopic
from ister.actors.options import DEAD_LETTERS, TOPIC_OPTIONS, check_flag, check_options
from ister.actors.registry import EPHEMERAL, Owner, Registry
from ister.actors.runtime import Address
from ister.actors.watches import WAIT_MS_MAX, Watches
from ister.clock import Clock
from ister.errors import RemoteError, StorageError, UsageError
from ister.names import check_subscription_name, check_topic_name, topic_pattern
from ister.storage.meta import SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.directory")

STRATEGIES: Final = ("reliable", "non-reliable")
DURABILITIES: Final = ("fsync", "os", "cloud")
_TOPIC_ARGUMENTS: Final = ("topic", "dispatch", "durability", EPHEMERAL)

Operation = Callable[[Ask, Arguments], None]


def topic_map(topic: TopicMeta, home: Home) -> dict[str, Any]:
    """Return the map that clients get as the description of a topic."""
    return {
        "topic": topic.name,
        "strategy": topic.dispatch,
        "durability": topic.durability if topic.dispatch == "reliable" else "none",
        "settings": dict(topic.settings),
        "incarnation": topic.incarnation.hex(),
        "created_ms": topic.created_ms,
        "node": home.node,
        "endpoint": home.endpoint,
    }


class Topics:
    """The operations on topics. `address` is the Directory's; `answer(ask, body)` sends a result to the client."""

    def __init__(
        self,
        registry: Registry,
        homes: Homes,
        gatherings: Gatherings,
        erasing: Erasing,
        restoring: Restoring,
        watches: Watches,
        address: Address,
        *,
        clock: Clock,
        random: Random,
        answer: Callable[[Ask, dict[str, Any]], None],
    ) -> None:
        self._registry = registry
        self._homes = homes
        self._gatherings = gatherings
        self._erasing = erasing
        self._restoring = restoring
        self._watches = watches
        self._address = address
        self._clock = clock
        self._random = random
        self._answer = answer
        # Topics that subscriptions name for their dead letters, whether these topics exist or not.
        self._named_for_letters = registry.named_for_letters()

    def operations(self) -> dict[str, Operation]:
        """Return the operations that clients may request, by name."""
        return {
            "topic.create": self._create,
            "topic.update": self._update,
            "topic.verify": self._care,
            "topic.repair": self._care,
            "topic.list": self._list,
            "topic.show": self._show,
            "topic.delete": self._delete,
            "topic.forget": self._forget,
            "topic.takeover": self._take_over,
            "topic.watch": self._watch,
        }

    def _map(self, topic: TopicMeta) -> dict[str, Any]:
        return topic_map(topic, self._homes.of_topic(topic.name))

    # ---- coming -------------------------------------------------------------------------------------------------

    def _create(self, ask: Ask, arguments: Arguments) -> None:
        topic, ephemeral = self._new(arguments)
        self._restoring.check_new(topic)
        if ephemeral:
            self._create_ephemeral(ask, replace(topic, settings={EPHEMERAL: 1}))
            return
        self._registry.create_topic(topic)
        if topic.dispatch == "reliable" and (uploader := self._homes.uploader(topic)) is not None:
            uploader.tell(KeepTopic(topic, 0, 0, None))
        log.info("topic %s created, %s", topic.name, topic.dispatch)
        self._answer(ask, self._map(topic))

    def _new(self, arguments: Arguments) -> tuple[TopicMeta, bool]:
        """Return the topic to be created, and whether it is ephemeral. Raises UsageError, RemoteError."""
        name = check_topic_name(text(arguments, "topic"))
        dispatch = text(arguments, "dispatch", "reliable")
        durability = text(arguments, "durability", "fsync")
        if dispatch not in STRATEGIES:
            raise UsageError(f"dispatch {dispatch!r:.40} is not one of {', '.join(STRATEGIES)}")
        if durability not in DURABILITIES:
            raise UsageError(f"durability {durability!r:.40} is not one of {', '.join(DURABILITIES)}")
        options = all_but(arguments, *_TOPIC_ARGUMENTS)
        ephemeral = check_flag(arguments.get(EPHEMERAL, 0), EPHEMERAL)
        check_options(options, TOPIC_OPTIONS, "topic")
        if dispatch != "reliable" and "durability" in arguments:
            raise UsageError("durability is for reliable topics: a non-reliable one stores nothing")
        _check_keeps(dispatch, options)
        if name in self._named_for_letters and dispatch == "reliable":
            options.setdefault(DEAD_LETTERS, 1)
        incarnation = self._random.randbytes(16)
        created_ms = self._registry.stamp(self._clock.time_ms())
        return TopicMeta(name, incarnation, dispatch, durability, created_ms, options), ephemeral

    def _create_ephemeral(self, ask: Ask, topic: TopicMeta) -> None:
        if topic.dispatch != "non-reliable":
            raise UsageError("ephemeral is for non-reliable topics: a reliable one stores its messages")
        if not ask.session:
            raise UsageError("an ephemeral topic belongs to a session, and this request has no session")
        self._registry.create_ephemeral(topic, Owner(ask.reply.node, ask.session))
        self._answer(ask, self._map(topic))

    def _take_over(self, ask: Ask, arguments: Arguments) -> None:
        """Claim a topic that the store has and this broker has not."""
        only(arguments, "topic")
        name = check_topic_name(text(arguments, "topic"))
        self._restoring.take_over(ask.reply, ask.ticket, name, self._map)

    # ---- showing ------------------------------------------------------------------------------------------------

    def _list(self, ask: Ask, arguments: Arguments) -> None:
        after, limit = page(arguments)
        ephemeral = check_flag(arguments.get(EPHEMERAL, 0), EPHEMERAL)
        topics = [topic for topic in self._registry.topics(ephemeral=ephemeral) if topic.name > after]
        self._answer(
            ask, {"topics": [self._map(topic) for topic in topics[:limit]], "more": len(topics) > limit}
        )

    def _show(self, ask: Ask, arguments: Arguments) -> None:
        topic = self._restoring.topic(text(arguments, "topic"))
        node = self._homes.of_topic(topic.name).node
        self._homes.need(node)
        base = self._map(topic) | {"subscriptions": len(self._registry.subscriptions(topic.name))}
        ticket = self._gatherings.ticket()
        self._gatherings.gather(
            ask.reply, ask.ticket, {ticket: node}, lambda answers: base | the_answer(answers)
        )
        self._homes.have_topic_do("describe", topic, ticket)

    def _care(self, ask: Ask, arguments: Arguments) -> None:
        """Verify or repair a topic's log."""
        topic = self._restoring.topic(text(arguments, "topic"))
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: it has no log")
        if ask.operation == "topic.repair" and arguments.get("skip_damaged") not in (True, 1):
            raise UsageError("say what is to be done: skip_damaged (readers continue after the damage)")
        verification = number(
            arguments, "verification", "verification {} is none that a request was answered with, nor 0"
        )
        node = self._homes.of_topic(topic.name).node
        self._homes.need(node)
        ticket = self._gatherings.ticket()
        self._gatherings.gather(ask.reply, ask.ticket, {ticket: node}, the_answer)
        task: Literal["verify", "repair"] = "verify" if ask.operation == "topic.verify" else "repair"
        self._homes.have_topic_do(task, topic, ticket, verification)

    def _watch(self, ask: Ask, arguments: Arguments) -> None:
        """Answer which topics match a pattern, when that differs from what the client knows."""
        only(arguments, "pattern", "version", "wait_ms", "subscription")
        subscription = arguments.get("subscription", "")
        if subscription:
            check_subscription_name(subscription)
        pattern = topic_pattern(arguments.get("pattern"))
        version, wait_ms = arguments.get("version"), arguments.get("wait_ms", WAIT_MS_MAX)
        if version is not None and type(version) is not int:
            raise UsageError(f"version {version!r:.40} is not a version that a watch returned")
        if type(wait_ms) is not int or not 0 <= wait_ms <= WAIT_MS_MAX:
            raise UsageError(f"wait_ms {wait_ms!r:.40} is not 0 to {WAIT_MS_MAX}")
        self._watches.watch(ask, pattern, version, wait_ms, subscription)

    # ---- settings -----------------------------------------------------------------------------------------------

    def _update(self, ask: Ask, arguments: Arguments) -> None:
        """Change a topic's own settings: the values given replace the old ones."""
        topic = self._restoring.topic(text(arguments, "topic"))
        options = all_but(arguments, "topic")
        check_options(options, TOPIC_OPTIONS, "topic")
        if not options:
            raise UsageError(f"nothing to change; a topic has {', '.join(TOPIC_OPTIONS)}")
        _check_keeps(topic.dispatch, options)
        node = self._homes.of_topic(topic.name).node
        self._homes.need(node)
        changed = self._registry.update_topic(topic.name, dict(topic.settings) | options)
        ticket, stored = self._gatherings.ticket(), self._gatherings.ticket()
        nodes, tier = {ticket: node}, self._homes.is_up(TIER)
        if tier:
            nodes[stored] = TIER

        def finish(answers: Answers) -> dict[str, Any]:
            return self._map(changed) | {"settings_stored": stored in answers}

        self._gatherings.gather(ask.reply, ask.ticket, nodes, finish, optional=frozenset((stored,)))
        self._homes.have_topic_do("update", changed, ticket)
        self._tell_uploader(changed, stored)

    def consulted(self, question: Consult) -> None:
        """Tell an Uploader what the catalogue has about its topic."""
        topic = self._registry.topic(question.topic)
        if topic is None or topic.incarnation != question.incarnation:
            self._homes.at(question.reply).tell(Governs(None, []))
        else:
            self._homes.at(question.reply).tell(Governs(topic, self._subscriptions_of(topic)))

    def _tell_uploader(self, topic: TopicMeta, ticket: int = 0) -> None:
        """Tell a topic's Uploader what the catalogue has; with a ticket, it answers when the store has it too."""
        uploader = self._homes.uploader(topic)
        if uploader is not None:
            reply = self._address if ticket else None
            uploader.tell(Governs(topic, self._subscriptions_of(topic), reply, ticket))

    def _subscriptions_of(self, topic: TopicMeta) -> list[str]:
        return [each.name for each in self._registry.subscriptions(topic.name)]

    def mark_for_letters(self) -> None:
        """Mark dead-letter topics that were named by an older version without marks."""
        for name in sorted(self._named_for_letters):
            self._mark_for_letters(name)

    def name_for_letters(self, subscription: SubscriptionMeta) -> None:
        """Note the topic that a subscription names for its dead letters, so that patterns do not follow it."""
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
        except StorageError as error:  # tried again when a subscription names it, and at the next start
            log.warning("topic %s cannot be marked as a dead-letter topic: %s", name, error)
            return
        if self._homes.is_up(self._homes.of_topic(name).node):
            self._homes.have_topic_do("update", changed, self._gatherings.ticket())
        self._tell_uploader(changed)

    # ---- going --------------------------------------------------------------------------------------------------

    def _delete(self, ask: Ask, arguments: Arguments) -> None:
        topic = self._registry.get_topic(text(arguments, "topic"))
        self._erasing.delete(ask.reply, ask.ticket, topic)

    def _forget(self, ask: Ask, arguments: Arguments) -> None:
        """Delete the local part of a topic that another broker has taken over."""
        only(arguments, "topic")
        topic = self._restoring.topic(text(arguments, "topic"))
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: no other broker can own it")
        node = self._homes.of_topic(topic.name).node
        self._homes.need(node)

        def answered(answers: Answers) -> None:
            if not the_answer(answers)["fenced"]:
                raise RemoteError(
                    "invalid-argument",
                    f"topic {topic.name!r} is this broker's own in the store: there is nothing to take over or to "
                    f"forget. To delete it: ister topic delete {topic.name}",
                )
            known = self._registry.topic(topic.name)
            if known is None or known.incarnation != topic.incarnation:
                raise RemoteError("unknown-topic", f"there is no topic {topic.name!r}")
            self._erasing.delete(ask.reply, ask.ticket, topic, whole=True)

        ticket = self._gatherings.ticket()
        self._gatherings.gather(ask.reply, ask.ticket, {ticket: node}, answered)
        self._homes.have_topic_do("ask-fenced", topic, ticket)

    def forget_ephemerals(self, node: str, kept: Sequence[int] = ()) -> None:
        """Delete the ephemeral topics of a process's sessions, except of those that are kept."""
        for name in self._registry.ephemerals_of(node, kept):
            topic, subscriptions = self._registry.delete_topic(name)
            for each in subscriptions:
                if self._homes.is_up(self._homes.of_subscription(name, each.name).node):
                    ticket = self._gatherings.ticket()
                    self._homes.have_subscription_do("delete", topic, each, ticket, WITH_TOPIC)
            if self._homes.is_up(self._homes.of_topic(name).node):
                self._homes.have_topic_do("delete", topic, self._gatherings.ticket())


def _check_keeps(dispatch: str, options: Arguments) -> None:
    """Raise UsageError for options that a topic without a log cannot have."""
    if options and dispatch != "reliable":
        raise UsageError(f"{next(iter(options))} is for reliable topics: a non-reliable one stores nothing")
