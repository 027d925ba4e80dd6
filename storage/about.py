"""Descriptions of topics and subscriptions beside their logs and cursors, from which a lost catalogue is restored.

- The catalogue decides. A description is a copy: durable before the catalogue has something new, and removed before
  the catalogue drops something. So a description that the catalogue does not know belongs to something it lost, or
  that was just being created.
- Each description has the number of the change that it records. If that is higher than the catalogue's last change,
  the catalogue is an old copy.
- A description with a wrong checksum is ignored, and reported.

May touch: the Disk it is handed; files called `about` and `*.about` below `topics` and `cursors` of the data folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ister.errors import StorageError
from ister.storage.checksum import crc32c
from ister.storage.disk import Disk
from ister.storage.folders import CURSORS_FOLDER, TOPICS_FOLDER, cursor_name, folder_of
from ister.storage.meta import SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.catalogue")

TOPIC_ABOUT: Final = "about"
ABOUT_SUFFIX: Final = ".about"


@dataclass(frozen=True, slots=True)
class Described:
    """The descriptions found beside logs and cursors; `unreadable` are the paths of damaged ones."""

    topics: tuple[dict[str, Any], ...]
    subscriptions: tuple[tuple[str, dict[str, Any]], ...]  # the folder it was found in, and its contents
    unreadable: tuple[str, ...]
    topic_changes: tuple[int, ...] = ()  # the number of the change that each description records
    subscription_changes: tuple[int, ...] = ()


def encode_about(fields: dict[str, Any], change: int = 0) -> bytes:
    """Return the contents of a description: JSON, with the CRC32C of its compact form."""
    told = {"about": fields, "crc32c": crc32c(_shortest(fields))}
    if change:
        told |= {"change": change, "change_crc32c": _change_checksum(fields, change)}
    return json.dumps(told, indent=1).encode() + b"\n"


def decode_about(contents: bytes) -> dict[str, Any] | None:
    """Return what a description says, or None if it is damaged."""
    try:
        told = json.loads(contents)
        fields = told["about"]
        return fields if isinstance(fields, dict) and told["crc32c"] == crc32c(_shortest(fields)) else None
    except (ValueError, KeyError, TypeError):
        return None


def change_of(contents: bytes) -> int:
    """Return the number of the change that a description records; 0 if it has none or is damaged."""
    try:
        told = json.loads(contents)
        change = told["change"]
        whole = type(change) is int and told["change_crc32c"] == _change_checksum(told["about"], change)
        return change if whole else 0
    except (ValueError, KeyError, TypeError):
        return 0


def _change_checksum(fields: dict[str, Any], change: int) -> int:
    return crc32c(_shortest({"about": fields, "change": change}))


def _shortest(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _topic_fields(topic: TopicMeta) -> dict[str, Any]:
    return asdict(topic) | {"incarnation": topic.incarnation.hex()}


class Abouts:
    """The descriptions in one data folder."""

    def __init__(self, disk: Disk, data: str) -> None:
        self._disk = disk
        self._data = data

    def _topic_path(self, topic: TopicMeta) -> str:
        return f"{self._data}/{TOPICS_FOLDER}/{folder_of(topic)}/{TOPIC_ABOUT}"

    def _subscription_path(self, topic: TopicMeta, subscription: SubscriptionMeta) -> str:
        return f"{self._data}/{CURSORS_FOLDER}/{folder_of(topic)}/{cursor_name(subscription)}{ABOUT_SUFFIX}"

    # ---- writing ------------------------------------------------------------------------------------------------

    def write_topic(self, topic: TopicMeta, change: int) -> None:
        """Write the description of a topic as of a change, durably. Raises DiskFullError, StorageError."""
        self._write(self._topic_path(topic), encode_about(_topic_fields(topic), change))

    def write_subscription(self, topic: TopicMeta, subscription: SubscriptionMeta, change: int) -> None:
        """Write the description of a subscription as of a change, durably. Raises DiskFullError, StorageError."""
        self._write(self._subscription_path(topic, subscription), encode_about(asdict(subscription), change))

    def _write(self, path: str, contents: bytes) -> None:
        disk, new = self._disk, f"{path}.new"
        try:
            folder = path.rpartition("/")[0]
            disk.makedirs(folder)
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(new)
            file = disk.create(new)
            try:
                file.pwritev((contents,), 0)
                file.datasync()
            finally:
                file.close()
            disk.rename(new, path)
            disk.sync_folder(folder)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error

    def says(self, topic: TopicMeta, subscription: SubscriptionMeta | None = None) -> bool:
        """Return whether an entry is described as it is."""
        if subscription is None:
            path, fields = self._topic_path(topic), _topic_fields(topic)
        else:
            path, fields = self._subscription_path(topic, subscription), asdict(subscription)
        try:
            return decode_about(self._disk.read(path)) == fields
        except OSError:
            return False

    def remove_topic(self, topic: TopicMeta) -> None:
        """Remove a topic's description, durably. Raises StorageError."""
        self._remove(self._topic_path(topic))

    def remove_subscription(self, topic: TopicMeta, subscription: SubscriptionMeta) -> None:
        """Remove a subscription's description, durably. Raises StorageError."""
        self._remove(self._subscription_path(topic, subscription))

    def _remove(self, path: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(path)
                self._disk.sync_folder(path.rpartition("/")[0])
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error}") from error

    def forget(self, topic: TopicMeta, subscriptions: Sequence[SubscriptionMeta]) -> None:
        """Remove the descriptions of a deleted topic; what cannot be removed now is removed at the next start."""
        with contextlib.suppress(OSError, StorageError):
            for subscription in subscriptions:
                self._disk.unlink(self._subscription_path(topic, subscription))
        for kind in (TOPICS_FOLDER, CURSORS_FOLDER):
            # the folder still has a log or a cursor, which its owner deletes
            with contextlib.suppress(OSError):
                self._disk.rmdir(f"{self._data}/{kind}/{folder_of(topic)}")

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self) -> Described:
        """Return all descriptions. Raises OSError."""
        topics: list[dict[str, Any]] = []
        subscriptions: list[tuple[str, dict[str, Any]]] = []
        unreadable: list[str] = []
        topic_changes: list[int] = []
        subscription_changes: list[int] = []
        for kind, folder, name in self._files():
            if name != TOPIC_ABOUT if kind == TOPICS_FOLDER else not name.endswith(ABOUT_SUFFIX):
                continue
            path = f"{self._data}/{kind}/{folder}/{name}"
            contents = self._disk.read(path)
            fields = decode_about(contents)
            if fields is None:
                unreadable.append(path)
            elif kind == TOPICS_FOLDER:
                topics.append(fields)
                topic_changes.append(change_of(contents))
            else:
                subscriptions.append((folder, fields))
                subscription_changes.append(change_of(contents))
        return Described(
            tuple(topics),
            tuple(subscriptions),
            tuple(unreadable),
            tuple(topic_changes),
            tuple(subscription_changes),
        )

    def logs_and_cursors(self) -> list[str]:
        """Return the paths of segments and cursors' journals, below the data folder. Raises OSError."""
        return [
            f"{kind}/{folder}/{name}"
            for kind, folder, name in self._files()
            if (name.endswith(".seg") if kind == TOPICS_FOLDER else name.rpartition(".")[2].isdecimal())
        ]

    def _files(self) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = []
        for kind in (TOPICS_FOLDER, CURSORS_FOLDER):
            root = f"{self._data}/{kind}"
            for folder in self._disk.listdir(root) if self._disk.exists(root) else ():
                if not self._disk.isfile(f"{root}/{folder}"):
                    found += [(kind, folder, name) for name in self._disk.listdir(f"{root}/{folder}")]
        return found
