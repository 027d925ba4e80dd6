"""Operations on subscriptions: create, open, update, list, show, delete, seek, unblock, explain.

Part of the Directory, in the broker process. It owns no state: the registry knows which subscriptions exist. It uses
the catalogue and mail.

Invariants
- a subscription exists once it is in the catalogue; a reader's is in no catalogue
- opening an existing subscription returns it as it is, or says in which options the request differs
- nothing is created or changed before the worker that it runs on is known to be up
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from ister.actors.addresses import instance_of
from ister.actors.directory.arguments import Arguments, all_but, only, page, text
from ister.actors.directory.gathering import Answers, Finish, Gatherings, the_answer
from ister.actors.directory.homes import Homes
from ister.actors.directory.restoring import Restoring
from ister.actors.explain import explain
from ister.actors.messages import Ask, LocateSubscription, Subscribers, WhoSubscribes
from ister.actors.options import (
    SUBSCRIPTION_OPTIONS,
    UNBLOCK_ACTIONS,
    check_position,
    check_same_options,
    check_subscription_options,
    effective_options,
)
from ister.actors.registry import Registry
from ister.clock import Clock
from ister.errors import RemoteError, UsageError
from ister.names import check_subscription_name
from ister.settings import SubscriptionSettings
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.subscriptions import READER, SUBSCRIPTION_TYPES

_NAMES = ("topic", "subscription")


class Subscriptions:
    """The operations on subscriptions; `defaults` apply where one has no option of its own.

    `on_settings(subscription)` is called when settings were changed; `answer(ask, body)` sends a result to the client.
    """

    def __init__(
        self,
        registry: Registry,
        homes: Homes,
        gatherings: Gatherings,
        restoring: Restoring,
        *,
        clock: Clock,
        defaults: SubscriptionSettings,
        answer: Callable[[Ask, dict[str, Any]], None],
        on_settings: Callable[[SubscriptionMeta], None],
    ) -> None:
        self._registry = registry
        self._homes = homes
        self._gatherings = gatherings
        self._restoring = restoring
        self._clock = clock
        self._defaults = defaults
        self._answer = answer
        self._on_settings = on_settings

    def operations(self) -> dict[str, Callable[[Ask, Arguments], None]]:
        """Return the operations that clients may request, by name."""
        return {
            "subscription.create": self._create,
            "subscription.list": self._list,
            "subscription.show": self._show,
            "subscription.delete": self._delete,
            "subscription.update": self._update,
            "subscription.seek": self._seek,
            "subscription.unblock": self._unblock,
            "subscription.explain": self._explain,
        }

    # ---- coming -------------------------------------------------------------------------------------------------

    def opened(self, topic: TopicMeta, command: LocateSubscription) -> SubscriptionMeta:
        """Return the subscription that a consumer opens; a new one is created, except for a reader.

        Raises UsageError, RemoteError, StorageError.
        """
        name, options = command.subscription, dict(command.options)
        if command.type == READER:
            return self._new(topic, check_subscription_name(name), READER, command.start, options)
        check_subscription_name(name)
        _check_type(command.type)
        found = self._registry.subscription(topic.name, name)
        if found is None:
            return self._enter(topic, name, command.type, command.start, options)
        if found.type != command.type:
            raise RemoteError(
                "subscription-type",
                f"subscription {name!r} of topic {topic.name!r} is {found.type}, not {command.type}",
            )
        check_same_options(options, topic, found, self._defaults)
        return found

    def _create(self, ask: Ask, arguments: Arguments) -> None:
        topic = self._restoring.topic(text(arguments, "topic"))
        options = all_but(arguments, *_NAMES, "type", "start")
        name = check_subscription_name(text(arguments, "subscription"))
        node = self._homes.of_subscription(topic.name, name).node
        self._homes.need(node)
        type_, start = text(arguments, "type", "shared"), str(arguments.get("start", "latest"))
        _check_type(type_)
        subscription = self._enter(topic, name, type_, start, options)
        ticket = self._gatherings.ticket()
        self._gatherings.gather(ask.reply, ask.ticket, {ticket: node}, lambda _: self._map(subscription))
        self._homes.have_subscription_do("start", topic, subscription, ticket)

    def _enter(
        self, topic: TopicMeta, name: str, type_: str, start: str, options: Arguments
    ) -> SubscriptionMeta:
        new = self._new(topic, name, type_, start, options)
        self._registry.create_subscription(new)
        self._on_settings(new)
        return new

    def _new(
        self, topic: TopicMeta, name: str, type_: str, start: str, options: Arguments
    ) -> SubscriptionMeta:
        created_ms = self._registry.stamp(self._clock.time_ms())
        new = SubscriptionMeta(topic.name, name, type_, check_position(start, "start"), created_ms, options)
        check_subscription_options(options, replace(new, settings={}), topic.dispatch)
        return new

    def started(self, question: WhoSubscribes) -> None:
        """Tell a topic the names of its subscriptions, and start those that it does not know yet."""
        topic = self._registry.topic(question.topic)
        if topic is None:
            return
        subscriptions = self._registry.subscriptions(topic.name)
        for each in subscriptions:
            is_up = self._homes.is_up(self._homes.of_subscription(topic.name, each.name).node)
            if each.name not in question.known and is_up:
                self._homes.have_subscription_do("start", topic, each, self._gatherings.ticket())
        self._homes.at(question.reply).tell(Subscribers([each.name for each in subscriptions]))

    # ---- showing ------------------------------------------------------------------------------------------------

    def _map(self, subscription: SubscriptionMeta) -> dict[str, Any]:
        topic = self._registry.topic(subscription.topic)
        home = self._homes.of_subscription(subscription.topic, subscription.name)
        return {
            "topic": subscription.topic,
            "subscription": subscription.name,
            "type": subscription.type,
            "start": subscription.start,
            "settings": dict(subscription.settings),
            "options": {} if topic is None else effective_options(topic, subscription, self._defaults),
            "instance": "" if topic is None else instance_of(topic, subscription),
            "created_ms": subscription.created_ms,
            "node": home.node,
            "endpoint": home.endpoint,
        }

    def _list(self, ask: Ask, arguments: Arguments) -> None:
        topic = self._restoring.topic(text(arguments, "topic"))
        after, limit = page(arguments)
        found = [each for each in self._registry.subscriptions(topic.name) if each.name > after]
        body = {"subscriptions": [self._map(each) for each in found[:limit]], "more": len(found) > limit}
        self._answer(ask, body)

    def _show(self, ask: Ask, arguments: Arguments) -> None:
        topic, subscription = self._named(arguments)
        base = self._map(subscription)
        self._have_done(
            ask, "describe", topic, subscription, finish=lambda answers: base | the_answer(answers)
        )

    def _explain(self, ask: Ask, arguments: Arguments) -> None:
        """Answer why a subscription delivers nothing; if not all answer in time, with what the others say."""
        topic, subscription = self._named(arguments)
        only(arguments, *_NAMES)
        of_topic, of_subscription = self._gatherings.ticket(), self._gatherings.ticket()
        nodes = {
            of_topic: self._homes.of_topic(topic.name).node,
            of_subscription: self._homes.of_subscription(topic.name, subscription.name).node,
        }
        asked = {ticket: node for ticket, node in nodes.items() if self._homes.is_up(node)}

        def finish(answers: Answers) -> dict[str, Any]:
            of_both = answers.get(of_subscription), answers.get(of_topic)
            return explain(subscription.name, *of_both, self._clock.time_ms())

        self._gatherings.gather(ask.reply, ask.ticket, asked, finish, partial=True, takes_no=True)
        if of_topic in asked:
            self._homes.have_topic_do("describe", topic, of_topic)
        if of_subscription in asked:
            self._homes.have_subscription_do("explain", topic, subscription, of_subscription)

    def _update(self, ask: Ask, arguments: Arguments) -> None:
        """Change a subscription's own settings: the values given replace the old ones."""
        topic, subscription = self._named(arguments)
        options = all_but(arguments, *_NAMES)
        if not options:
            raise UsageError(f"nothing to change; a subscription has {', '.join(SUBSCRIPTION_OPTIONS)}")
        check_subscription_options(options, subscription, topic.dispatch)
        self._homes.need(self._homes.of_subscription(topic.name, subscription.name).node)
        changed = replace(subscription, settings=dict(subscription.settings) | options)
        self._registry.update_subscription(changed)
        self._on_settings(changed)
        self._have_done(ask, "update", topic, changed, finish=lambda _: self._map(changed))

    def _seek(self, ask: Ask, arguments: Arguments) -> None:
        """Move a subscription to another offset."""
        topic, subscription = self._named(arguments)
        only(arguments, *_NAMES, "to")
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: it stores nothing to go back to")
        position = str(check_position(arguments.get("to"), "to"))
        self._have_done(ask, "seek", topic, subscription, position)

    def _unblock(self, ask: Ask, arguments: Arguments) -> None:
        """Let a subscription continue after the message that blocks it."""
        topic, subscription = self._named(arguments)
        only(arguments, *_NAMES, "action")
        if topic.dispatch != "reliable":
            raise UsageError(f"topic {topic.name!r} is non-reliable: it has no blocking messages")
        action = text(arguments, "action")
        if action not in UNBLOCK_ACTIONS:
            raise UsageError(f"action {action!r:.40} is not one of {', '.join(UNBLOCK_ACTIONS)}")
        self._have_done(ask, "unblock", topic, subscription, action)

    # ---- going --------------------------------------------------------------------------------------------------

    def _delete(self, ask: Ask, arguments: Arguments) -> None:
        topic, subscription = self._named(arguments)
        node = self._homes.of_subscription(topic.name, subscription.name).node
        self._homes.need(node)
        self._registry.delete_subscription(topic.name, subscription.name)
        ticket = self._gatherings.ticket()
        body = {"deleted": subscription.name, "topic": topic.name}
        self._gatherings.gather(ask.reply, ask.ticket, {ticket: node}, lambda _: body, partial=True)
        self._homes.have_subscription_do("delete", topic, subscription, ticket)

    # ---- what they share ----------------------------------------------------------------------------------------

    def _named(self, arguments: Arguments) -> tuple[TopicMeta, SubscriptionMeta]:
        topic = self._restoring.topic(text(arguments, "topic"))
        return topic, self._registry.get_subscription(topic.name, text(arguments, "subscription"))

    def _have_done(
        self,
        ask: Ask,
        task: Literal["describe", "update", "seek", "unblock"],
        topic: TopicMeta,
        subscription: SubscriptionMeta,
        argument: str = "",
        *,
        finish: Finish = the_answer,
    ) -> None:
        """Send a subscription a task, and answer the client with its answer."""
        node = self._homes.of_subscription(topic.name, subscription.name).node
        self._homes.need(node)
        ticket = self._gatherings.ticket()
        self._gatherings.gather(ask.reply, ask.ticket, {ticket: node}, finish)
        self._homes.have_subscription_do(task, topic, subscription, ticket, argument)


def _check_type(type_: str) -> None:
    if type_ not in SUBSCRIPTION_TYPES:
        raise UsageError(f"subscription type {type_!r:.40} is not one of {', '.join(SUBSCRIPTION_TYPES)}")
