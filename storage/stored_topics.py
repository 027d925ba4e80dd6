"""Which topics a store has, as somebody without a broker finds them: from the catalogue, or from objects alone.

Nothing is written. Damaged catalogue entries are worked around: a topic's objects say which topic it is. What a broker
writes into an entry is in `topic_entry.py`. May touch: the ObjectStore it is handed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from ister.errors import StoreError, UsageError
from ister.storage.layout import Layout, decode_topic, encode_topic
from ister.storage.objectstore import UNCHECKED, ObjectStore

_TOPICS: Final = "v1/topics/"
_DATA: Final = "v1/d/"


@dataclass(frozen=True, slots=True)
class StoredTopic:
    """A topic as a store knows it; dispatch and durability are empty if the store has no catalogue entry for it."""

    name: str
    incarnation: bytes
    dispatch: str = ""
    durability: str = ""
    created_ms: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Return the names of its objects."""
        return Layout(self.name, self.incarnation)


def list_topics(store: ObjectStore) -> list[StoredTopic]:
    """Return the topics of a store's catalogue, by name; if it has no catalogue, those that have objects.

    Raises StoreError.
    """
    found, damaged = [], []
    for info in store.list(_TOPICS):
        try:
            found.append(_entry(store, info.name))
        except StoreError as error:
            if error.code not in UNCHECKED:
                raise
            damaged.append(decode_topic(info.name[len(_TOPICS) :]))
    for name in damaged:  # its objects say which topic it is
        prefix = Layout(name, b"").prefix[:-1]
        keys = {key for info in store.list(prefix) if (key := _key_of(info.name)) is not None}
        found += [StoredTopic(*key) for key in keys if key[0] == name]
    if not found:
        known: dict[tuple[str, bytes], StoredTopic] = {}
        for info in store.list(_DATA):
            topic = _topic_of(info.name)
            if topic is not None:
                known.setdefault((topic.name, topic.incarnation), topic)
        found = list(known.values())
    return sorted(found, key=lambda topic: (topic.name, topic.incarnation))


def find_topic(store: ObjectStore, name: str, incarnation: bytes | None = None) -> StoredTopic:
    """Return a topic by its name. Raises UsageError `unknown-topic` if there is none, or several; StoreError."""
    catalogue = _TOPICS + encode_topic(name)
    if incarnation is None and store.head(catalogue) is not None:
        try:
            return _entry(store, catalogue)
        except StoreError as error:
            if error.code not in UNCHECKED:
                raise
    prefix = Layout(name, b"").prefix[:-1]  # ends with the "." before the incarnation
    found: dict[bytes, StoredTopic] = {}
    for info in store.list(prefix):
        topic = _topic_of(info.name)
        if topic is not None and topic.name == name:
            found.setdefault(topic.incarnation, topic)
    if incarnation is not None:
        found = {key: topic for key, topic in found.items() if key == incarnation}
    if not found:
        raise UsageError(f"the store has no topic {name!r}", code="unknown-topic")
    if len(found) > 1:
        several = ", ".join(sorted(key.hex() for key in found))
        raise UsageError(
            f"the store has several topics that were called {name!r}: name an incarnation, one of {several}",
            code="unknown-topic",
        )
    return next(iter(found.values()))


def _entry(store: ObjectStore, name: str) -> StoredTopic:
    try:
        told = json.loads(store.get(name))
        return StoredTopic(
            str(told["name"]),
            bytes.fromhex(told["incarnation"]),
            str(told.get("dispatch", "")),
            str(told.get("durability", "")),
            int(told.get("created_ms", 0)),
            dict(told.get("settings") or {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the catalogue entry {name} cannot be read: {error}", code="object-damaged", action="stop"
        ) from error


def _key_of(name: str) -> tuple[str, bytes] | None:
    topic = _topic_of(name)
    return None if topic is None else (topic.name, topic.incarnation)


def _topic_of(name: str) -> StoredTopic | None:
    """Return the topic that an object `v1/d/<hh>/<topic>.<incarnation>/...` belongs to."""
    parts = name.split("/")
    if len(parts) < 5 or not name.startswith(_DATA):
        return None
    encoded, _, incarnation = parts[3].rpartition(".")
    try:
        topic = StoredTopic(decode_topic(encoded), bytes.fromhex(incarnation))
    except ValueError:
        return None
    return topic if len(topic.incarnation) == 16 and name.startswith(topic.layout.prefix) else None
