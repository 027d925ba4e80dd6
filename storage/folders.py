"""Where things are in the data folder: logs, cursors, what was brought back from the store; pure.

`FORMAT.md` has the tree. Paths are strings: the Disk decides what they mean.

Invariants
- a topic or subscription created again under the same name has other files than the one before
"""

from __future__ import annotations

from typing import Final

from ister.names import topic_folder
from ister.storage.meta import SubscriptionMeta, TopicMeta

TOPICS_FOLDER: Final = "topics"
CURSORS_FOLDER: Final = "cursors"
CACHE_FOLDER: Final = "cache"


def folder_of(topic: TopicMeta) -> str:
    """Return the name of the folders that a topic's log and its cursors have; made again it has others."""
    return f"{topic_folder(topic.name)}.{topic.incarnation.hex()}"


def cursor_name(subscription: SubscriptionMeta) -> str:
    """Return the name of a subscription's cursor in its topic's folder."""
    return f"{topic_folder(subscription.name)}.{subscription.created_ms}"


def log_folder(data: str, topic: TopicMeta) -> str:
    """Return the folder of a topic's log."""
    return f"{data}/{TOPICS_FOLDER}/{folder_of(topic)}"


def cursors_folder(data: str, topic: TopicMeta) -> str:
    """Return the folder of the cursors of a topic's subscriptions."""
    return f"{data}/{CURSORS_FOLDER}/{folder_of(topic)}"


def cursor_path(data: str, topic: TopicMeta, subscription: SubscriptionMeta) -> str:
    """Return the file of a subscription's cursor."""
    return f"{cursors_folder(data, topic)}/{cursor_name(subscription)}"


def cache_folder(data: str, topic: TopicMeta) -> str:
    """Return the folder of a topic's segments that were brought back from the store."""
    return f"{data}/{CACHE_FOLDER}/{folder_of(topic)}"
