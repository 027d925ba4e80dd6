"""The topics and subscriptions of the broker for tests, and their dead-letter topics.

Knows names, numbers and settings. `sessions.py` knows who is connected, `model.py` who gets what next. Pure: no socket,
clock or thread; times are parameters. Errors are raised as the `RemoteError` that a broker answers.
"""

from __future__ import annotations

from typing import Any, Final

from ister.errors import RemoteError
from ister.names import topic_pattern
from ister.subscriptions import READER, SUBSCRIPTION_TYPES
from ister.testing import failures
from ister.testing.model import Subscription, Topic

_NO_SETTINGS: Final = frozenset({"topic", "dispatch", "durability", "ephemeral"})
_NO_OPTIONS: Final = frozenset({"topic", "subscription", "type", "start"})


class Catalogue:
    """All topics with their subscriptions, and the readers of each topic."""

    def __init__(self) -> None:
        self.changes = 0  # how often a topic was created or deleted: the version that watches compare
        self._topics: dict[str, Topic] = {}
        self._subscribed = 0
        self._named_for_letters: set[str] = set()  # names of topics, whether or not these exist

    # ---- topics --------------------------------------------------------------------------------------------------

    def topic(self, name: str) -> Topic:
        """Return the topic of that name; raises `RemoteError` (`unknown-topic`)."""
        topic = self._topics.get(name)
        if topic is None:
            raise RemoteError("unknown-topic", f"there is no topic {name!r}")
        return topic

    def create(self, asked: dict[str, Any]) -> Topic:
        """Create a topic from the arguments of `topic.create`; raises `RemoteError` (`topic-exists`)."""
        if asked["topic"] in self._topics:
            raise RemoteError("topic-exists", f"topic {asked['topic']!r} exists")
        topic = Topic(asked["topic"], asked.get("dispatch", "reliable"), asked.get("durability", "fsync"))
        topic.settings = {key: asked[key] for key in asked if key not in _NO_SETTINGS}
        if topic.name in self._named_for_letters:
            topic.settings.setdefault("dead_letters", 1)
        self._topics[topic.name] = topic
        self._number(topic)
        return topic

    def delete(self, topic: Topic) -> None:
        """Delete a topic, its messages and its subscriptions."""
        del self._topics[topic.name]
        self.changes += 1

    def page(self, after: str, limit: int) -> tuple[list[Topic], bool]:
        """Return at most `limit` topics whose names come after `after`, and whether there are more."""
        names = sorted(name for name in self._topics if name > after)
        return [self._topics[name] for name in names[:limit]], len(names) > limit

    def matching(self, pattern: str, subscription: str) -> list[dict[str, Any]]:
        """Return the answer to a watch about the topics that match a pattern; dead-letter topics are left out.

        `later` marks a topic that is newer than the first subscription of that name on any of them.
        """
        matches = topic_pattern(pattern).fullmatch
        there = [
            topic
            for name, topic in sorted(self._topics.items())
            if matches(name) and not topic.settings.get("dead_letters")
        ]
        known = [topic.subscriptions.get(subscription) for topic in there]
        first = min((each.number for each in known if each is not None), default=self.changes)
        return [
            topic.shown() | {"created_ms": topic.number, "later": one is None and topic.number > first}
            for topic, one in zip(there, known, strict=True)
        ]

    def everything_read(self) -> list[Subscription]:
        """Return every subscription, then every reader."""
        topics = self._topics.values()
        subscriptions = [each for topic in topics for each in topic.subscriptions.values()]
        return subscriptions + [each for topic in topics for each in topic.readers]

    def _number(self, topic: Topic) -> None:
        self.changes += 1
        topic.number = self.changes

    # ---- subscriptions -------------------------------------------------------------------------------------------

    def subscription(self, topic: Topic, name: str) -> Subscription:
        """Return the subscription of that name; raises `RemoteError` (`unknown-subscription`)."""
        if name not in topic.subscriptions:
            raise RemoteError("unknown-subscription", f"there is no subscription {name!r}")
        return topic.subscriptions[name]

    def subscribe(
        self, topic: Topic, name: str, kind: str, start: Any, options: dict[str, Any]
    ) -> Subscription:
        """Create a subscription; raises `RemoteError` (`subscription-exists`, `invalid-argument`)."""
        if name in topic.subscriptions:
            raise RemoteError("subscription-exists", f"subscription {name!r} exists")
        if kind not in SUBSCRIPTION_TYPES:
            text = f"subscription type {kind!r:.40} is not one of {', '.join(SUBSCRIPTION_TYPES)}"
            raise RemoteError("invalid-argument", text)
        subscription = topic.subscriptions[name] = Subscription(topic, name, kind, topic.place(start))
        subscription.number = self.changes
        self._subscribed += 1
        subscription.made = self._subscribed
        self.change(subscription, options)
        return subscription

    def read(self, topic: Topic, name: str, start: Any) -> Subscription:
        """Create the position of one reader, which ends with it."""
        place = Subscription(topic, name, READER, topic.place(start))
        topic.readers.append(place)
        return place

    def change(self, subscription: Subscription, options: dict[str, Any]) -> None:
        """Set options of a subscription. The topic it names for its dead letters is marked: patterns leave it out."""
        subscription.settings |= {key: options[key] for key in options if key not in _NO_OPTIONS}
        name = subscription.settings.get("dead_letter_topic")
        if name:
            self._named_for_letters.add(name)
            if name in self._topics and "dead_letters" not in self._topics[name].settings:
                self._topics[name].settings["dead_letters"] = 1
                self.changes += 1

    # ---- dead letters --------------------------------------------------------------------------------------------

    def bury(self, subscription: Subscription, offset: int, reason: str, now_ms: int) -> None:
        """Put a message that is given up into the subscription's dead-letter topic, which is created as needed."""
        name = failures.options_of(subscription)["dead_letter_topic"]
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name, "reliable", "fsync")
            self._number(topic)
        failures.make_ready(topic)
        producer_id = failures.producer_of(subscription.topic, offset)
        topic.records.append(failures.letter_of(subscription, offset, producer_id, reason, now_ms))
        subscription.dead_lettered += 1
