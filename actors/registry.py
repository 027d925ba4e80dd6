"""All topics and subscriptions: those of the catalogue on disk, and ephemeral ones, which exist only in memory.

Part of the Directory, in the broker process.

Invariants
- a name belongs to one topic, ephemeral or not
- an ephemeral topic and its subscriptions are in no file, and are removed with the session that created it
- `version` changes with each creation and deletion of a topic in the catalogue, also across restarts, and when a
  topic becomes a dead-letter topic
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final, NamedTuple

from ister.actors.options import DEAD_LETTERS
from ister.errors import IsterError, RemoteError
from ister.storage.catalogue import Catalogue
from ister.storage.meta import SubscriptionMeta, TopicMeta

EPHEMERAL: Final = "ephemeral"  # the setting that such a topic has
EPHEMERALS_OF_SESSION_MAX: Final = 1_000  # some 500 bytes each
EPHEMERALS_MAX: Final = 100_000


class Owner(NamedTuple):
    """A client's session: its worker's process, and its number there."""

    node: str
    session: int


class Registry:
    """A broker's topics and subscriptions; `on_change(topic)` is called when a catalogued one comes or goes."""

    def __init__(
        self, catalogue: Catalogue, version: int, *, now_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._catalogue = catalogue
        self._now_s = now_s
        # when things were created, by topic and subscription; "": the topic itself
        self._made_s: dict[str, dict[str, float]] = {}
        self.deleted_s = -inf  # the monotonic time at which anything was deleted last
        self.on_change: Callable[[str], None] = lambda _topic: None
        self._topics: dict[str, TopicMeta] = {}  # the ephemeral topics
        self._subscriptions: dict[str, dict[str, SubscriptionMeta]] = {}  # their subscriptions
        self._owned: dict[Owner, set[str]] = {}
        self._owners: dict[str, Owner] = {}
        self.version = version
        topics = max((each.created_ms for each in catalogue.topics()), default=0)
        self._newest_ms = max([topics, *(each.created_ms for each in catalogue.subscriptions())])

    def close(self) -> None:
        """Close the catalogue."""
        self._catalogue.close()

    def _changed(self, topic: str) -> None:
        self.version += 1
        self.on_change(topic)

    def made_s(self, topic: str, subscription: str = "") -> float:
        """Return the monotonic time at which what has this name was created; -inf if before this Registry."""
        made = self._made_s.get(topic, {})
        return max(made.get("", -inf), made.get(subscription, -inf))

    # ---- topics -------------------------------------------------------------------------------------------------

    def topic(self, name: str) -> TopicMeta | None:
        """Return a topic, or None if there is none of that name. Raises StorageError."""
        return self._topics.get(name) or self._catalogue.topic(name)

    def get_topic(self, name: str) -> TopicMeta:
        """Return a topic. Raises IsterError `unknown-topic`, StorageError."""
        return self._topics.get(name) or self._catalogue.get_topic(name)

    def topics(self, *, ephemeral: bool = False) -> list[TopicMeta]:
        """Return all topics, by name; ephemeral ones where they are asked for. Raises StorageError."""
        found = self._catalogue.topics()
        return sorted([*found, *self._topics.values()], key=lambda topic: topic.name) if ephemeral else found

    def create_topic(self, topic: TopicMeta, subscriptions: Sequence[SubscriptionMeta] = ()) -> None:
        """Add a topic to the catalogue, with its subscriptions. Raises IsterError `topic-exists`, StorageError."""
        self._check_free(topic.name)
        self._catalogue.create_topic(topic, subscriptions)
        self._made_s[topic.name] = {"": self._now_s()}
        self._changed(topic.name)

    def create_ephemeral(self, topic: TopicMeta, owner: Owner) -> None:
        """Add a topic that ends with its owner. Raises IsterError `topic-exists`, `limit-exceeded`, StorageError."""
        self._check_free(topic.name)
        if self._catalogue.topic(topic.name) is not None:
            raise _exists(topic.name)
        owned = self._owned.get(owner, set())
        for there, most, whose in (
            (len(owned), EPHEMERALS_OF_SESSION_MAX, "this session"),
            (len(self._topics), EPHEMERALS_MAX, "this broker"),
        ):
            if there >= most:
                raise RemoteError(
                    "limit-exceeded", f"{whose} has {there} ephemeral topics, which is the limit"
                )
        self._topics[topic.name] = topic
        self._made_s[topic.name] = {"": self._now_s()}
        self._subscriptions[topic.name] = {}
        self._owned.setdefault(owner, owned).add(topic.name)
        self._owners[topic.name] = owner

    def _check_free(self, name: str) -> None:
        if name in self._topics:
            raise _exists(name)

    def update_topic(self, name: str, settings: dict[str, Any]) -> TopicMeta:
        """Replace the settings of a topic in the catalogue. Raises IsterError `unknown-topic`, StorageError."""
        before = self._catalogue.get_topic(name).settings.get(DEAD_LETTERS, 0)
        changed = self._catalogue.update_topic(name, settings)
        if changed.settings.get(DEAD_LETTERS, 0) != before:
            self._changed(name)  # for patterns it has appeared or disappeared
        return changed

    def stamp(self, now_ms: int) -> int:
        """Return the time of creation for something new, in unix ms: later than all before, whatever the clock says."""
        self._newest_ms = max(now_ms, self._newest_ms + 1)
        return self._newest_ms

    def subscribed(self, name: str) -> dict[str, int]:
        """Return by topic when a subscription of that name was created in the catalogue. Raises StorageError."""
        return {each.topic: each.created_ms for each in self._catalogue.subscriptions() if each.name == name}

    def named_for_letters(self) -> set[str]:
        """Return the topics that subscriptions name for their dead letters. Raises StorageError."""
        named = (each.settings.get("dead_letter_topic") for each in self._catalogue.subscriptions())
        return {str(name) for name in named if name}

    def delete_topic(self, name: str) -> tuple[TopicMeta, list[SubscriptionMeta]]:
        """Remove a topic and its subscriptions; return what was there. Raises IsterError `unknown-topic`."""
        topic = self._topics.pop(name, None)
        self.deleted_s = self._now_s()
        if topic is None:
            deleted = self._catalogue.delete_topic(name)
            self._made_s.pop(name, None)
            self._changed(name)
            return deleted
        self._made_s.pop(name, None)
        owner = self._owners.pop(name)
        self._owned[owner].discard(name)
        if not self._owned[owner]:
            del self._owned[owner]
        return topic, list(self._subscriptions.pop(name).values())

    def ephemerals_of(self, node: str, kept: Iterable[int] = ()) -> list[str]:
        """Return the ephemeral topics of a process's sessions, except those sessions that are kept."""
        still = {Owner(node, session) for session in kept}
        gone = [owner for owner in self._owned if owner.node == node and owner not in still]
        return sorted(name for owner in gone for name in self._owned[owner])

    def erasing(self) -> list[TopicMeta]:
        """Return deleted topics whose objects may still be in the store. Raises StorageError."""
        return self._catalogue.erasing()

    def forget(self, incarnation: bytes) -> None:
        """Record that a deleted topic belongs to another broker in the store. Raises StorageError."""
        self._catalogue.forget(incarnation)

    def erased(self, incarnation: bytes) -> None:
        """Record that nothing of a deleted topic is in the store any more. Raises StorageError."""
        self._catalogue.erased(incarnation)

    # ---- subscriptions ------------------------------------------------------------------------------------------

    def subscriptions(self, topic: str) -> list[SubscriptionMeta]:
        """Return the subscriptions of a topic, by name. Raises StorageError."""
        if topic in self._topics:
            return sorted(self._subscriptions[topic].values(), key=lambda one: one.name)
        return self._catalogue.subscriptions(topic)

    def subscription(self, topic: str, name: str) -> SubscriptionMeta | None:
        """Return a subscription, or None if there is none of that name. Raises StorageError."""
        if topic in self._topics:
            return self._subscriptions[topic].get(name)
        return self._catalogue.subscription(topic, name)

    def get_subscription(self, topic: str, name: str) -> SubscriptionMeta:
        """Return a subscription. Raises IsterError `unknown-topic` or `unknown-subscription`, StorageError."""
        if topic not in self._topics:
            return self._catalogue.get_subscription(topic, name)
        found = self._subscriptions[topic].get(name)
        if found is None:
            text = f"topic {topic!r} has no subscription {name!r}"
            raise IsterError(text, code="unknown-subscription", action="fix")
        return found

    def create_subscription(self, subscription: SubscriptionMeta) -> None:
        """Add a subscription. Raises IsterError `subscription-exists` or `unknown-topic`, StorageError."""
        known = self._subscriptions.get(subscription.topic)
        if known is None:
            self._catalogue.create_subscription(subscription)
        elif subscription.name in known:
            text = f"subscription {subscription.name!r} of topic {subscription.topic!r} exists already"
            raise IsterError(text, code="subscription-exists", action="fix")
        else:
            known[subscription.name] = subscription
        self._made_s.setdefault(subscription.topic, {})[subscription.name] = self._now_s()

    def update_subscription(self, meta: SubscriptionMeta) -> None:
        """Replace a subscription's settings by those of `meta`. Raises IsterError, StorageError."""
        if meta.topic in self._topics:
            self._subscriptions[meta.topic][meta.name] = meta
        else:
            self._catalogue.update_subscription(meta.topic, meta.name, meta.settings)

    def delete_subscription(self, topic: str, name: str) -> None:
        """Remove a subscription. Raises IsterError `unknown-topic`, `unknown-subscription`, StorageError."""
        if topic in self._topics:
            self.get_subscription(topic, name)
            del self._subscriptions[topic][name]
        else:
            self._catalogue.delete_subscription(topic, name)
        self._made_s.get(topic, {}).pop(name, None)
        self.deleted_s = self._now_s()


def _exists(name: str) -> IsterError:
    return IsterError(f"topic {name!r} exists already", code="topic-exists", action="fix")
