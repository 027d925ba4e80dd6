"""A topic's catalogue entry in the store: which incarnation the topic of a name is, and how it was created.

May touch: the ObjectStore it is handed. Nothing here asks who may write the topic (`claiming.py`); settings that were
set after its creation are in `numbered_objects.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from ister.errors import StoreError
from ister.storage.layout import Layout
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import UNCHECKED, ObjectStore

CATALOGUE_FORMAT: Final = 1
ENTRY_BYTES_MAX: Final = 1 << 20  # far more than a catalogue entry has
RESTORED_END: Final = "restored_end"  # a setting of a topic that came back: where its local log begins


def enter_topic(store: ObjectStore, topic: TopicMeta) -> None:
    """Write a topic's catalogue entry. Raises StoreError `topic-exists` if another topic of that name has one."""
    layout = Layout(topic.name, topic.incarnation)
    if store.put_if_absent(layout.catalogue, encode_topic_entry(topic)):
        return
    try:
        found = decode_topic_entry(store.get(layout.catalogue))
    except StoreError as error:
        if error.code not in UNCHECKED or not _is_ours(store, topic):
            raise
        return  # the damage is not in what says whose it is
    if found.incarnation != topic.incarnation:
        raise StoreError(
            f"the store has another topic {topic.name!r}, of incarnation {found.incarnation.hex()}",
            code="topic-exists",
            action="retry",  # perhaps it is being deleted at the moment
        )


def _is_ours(store: ObjectStore, topic: TopicMeta) -> bool:
    """Return whether a catalogue entry that fails its checksum can be read, and names this topic."""
    name = Layout(topic.name, topic.incarnation).catalogue
    try:
        found = decode_topic_entry(store.get_range(name, 0, ENTRY_BYTES_MAX))
    except StoreError:
        return False
    return (found.name, found.incarnation) == (topic.name, topic.incarnation)


def entered(store: ObjectStore, name: str) -> TopicMeta | None:
    """Return the topic that the store's catalogue has of that name. Raises StoreError."""
    place = Layout(name, b"").catalogue
    if store.head(place) is None:
        return None
    try:
        return decode_topic_entry(store.get(place))
    except StoreError as error:
        if error.code != "object-missing":
            raise
        return None


def is_entered(store: ObjectStore, topic: TopicMeta) -> bool:
    """Return whether the store's catalogue has this very topic. Raises StoreError."""
    found = entered(store, topic.name)
    return found is not None and found.incarnation == topic.incarnation


def check_entered(store: ObjectStore, topic: TopicMeta) -> None:
    """Raise StoreError `object-missing` unless the store's catalogue has this very topic."""
    if not is_entered(store, topic):
        raise StoreError(
            f"topic {topic.name!r} is no longer in the store: it was deleted",
            code="object-missing",
            action="stop",
        )


def list_topics(store: ObjectStore, damaged: Callable[[str, StoreError], None]) -> list[TopicMeta]:
    """Return the topics that have a catalogue entry; `damaged` is called for each entry that cannot be read."""
    topics = []
    for info in store.list("v1/topics/"):
        try:
            topics.append(decode_topic_entry(store.get(info.name)))
        except StoreError as error:
            if error.action == "retry":
                raise
            damaged(info.name, error)
    return topics


def own_settings(topic: TopicMeta) -> dict[str, Any]:
    """Return a topic's settings without those that describe one broker's disk."""
    return {name: value for name, value in topic.settings.items() if name != RESTORED_END}


def encode_topic_entry(topic: TopicMeta) -> bytes:
    """Return the contents of a topic's catalogue entry: JSON, as storage/FORMAT.md says."""
    entry = {
        "format": CATALOGUE_FORMAT,
        "name": topic.name,
        "incarnation": topic.incarnation.hex(),
        "dispatch": topic.dispatch,
        "durability": topic.durability,
        "settings": own_settings(topic),
        "created_ms": topic.created_ms,
    }
    return json.dumps(entry, sort_keys=True).encode()


def decode_topic_entry(data: bytes) -> TopicMeta:
    """Return the topic of a catalogue entry. Raises StoreError `object-damaged`."""
    try:
        entry: dict[str, Any] = json.loads(data)
        return TopicMeta(
            entry["name"],
            bytes.fromhex(entry["incarnation"]),
            entry["dispatch"],
            entry["durability"],
            entry["created_ms"],
            entry["settings"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"a catalogue entry of the store cannot be read: {error}", code="object-damaged", action="stop"
        ) from error
