"""Paths in the data folder: logs, cursors, and downloads from the store; pure.

`FORMAT.md` has the tree. Paths are strings that the Disk interprets.

Invariants
- a topic or subscription that is created again under the same name has different files
"""

from __future__ import annotations

from typing import Final

from ister.names import topic_folder
from ister.storage.meta import SubscriptionMeta, TopicMeta

TOPICS_FOLDER: Final = "topics"
CURSORS_FOLDER: Final = "cursors"
CACHE_FOLDER: Final = "cache"


def folder_of(topic: TopicMeta) -> str:
    """Return the folder name of a topic's log and cursors; a topic that is created again has another."""
    return f"{topic_folder(topic.name)}.{topic.incarnation.hex()}"


def cursor_name(subscription: SubscriptionMeta) -> str:
    """Return the file name of a subscription's cursor in its topic's folder."""
    return f"{topic_folder(subscription.name)}.{subscription.created_ms}"


def log_folder(data: str, topic: TopicMeta) -> str:
    """Return the path of a topic's log folder."""
    return f"{data}/{TOPICS_FOLDER}/{folder_of(topic)}"


def cursors_folder(data: str, topic: TopicMeta) -> str:
    """Return the path of the folder with the cursors of a topic's subscriptions."""
    return f"{data}/{CURSORS_FOLDER}/{folder_of(topic)}"


def cursor_path(data: str, topic: TopicMeta, subscription: SubscriptionMeta) -> str:
    """Return the path of a subscription's cursor file."""
    return f"{cursors_folder(data, topic)}/{cursor_name(subscription)}"


def cache_folder(data: str, topic: TopicMeta) -> str:
    """Return the path of the folder with a topic's downloaded segments."""
    return f"{data}/{CACHE_FOLDER}/{folder_of(topic)}"
