"""The catalogue: all topics and subscriptions, in SQLite.

- One process has it open. Every change is on disk before the call returns.
- The caller has checked names; here they are only keys.
- A topic's incarnation is never used again: a new topic of an old name has another one.
- A full disk refuses additions, never deletions and changed settings such as a shorter retention.
- Everything here is also described beside logs and cursors (`about.py`), in case this file is lost.

The file, its digest and its reserve are in `catalogue_file.py`.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from ister.errors import IsterError, StorageError
from ister.storage.about import Abouts
from ister.storage.catalogue_file import SUBSCRIPTION, TOPIC, CatalogueFile, Row
from ister.storage.folders import cursor_name
from ister.storage.meta import FORGOTTEN, SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.catalogue")

_NEW_SUBSCRIPTION: Final = f"INSERT INTO subscriptions ({SUBSCRIPTION}) VALUES (?, ?, ?, ?, ?, ?)"


def _topic(row: Row) -> TopicMeta:
    name, incarnation, dispatch, durability, created_ms, settings = row
    return TopicMeta(name, incarnation, dispatch, durability, created_ms, json.loads(settings))


def _subscription(row: Row) -> SubscriptionMeta:
    topic, name, kind, start, created_ms, settings = row
    return SubscriptionMeta(topic, name, kind, json.loads(start), created_ms, json.loads(settings))


def _subscription_row(one: SubscriptionMeta) -> Row:
    return (one.topic, one.name, one.type, json.dumps(one.start), one.created_ms, json.dumps(one.settings))


class Catalogue:
    """The topics and subscriptions of a broker."""

    def __init__(self, path: str, abouts: Abouts | None = None) -> None:
        """Open the database at `path`, or create it; its folder must exist. Raises DamagedError, StorageError.

        Everything that is created, changed or deleted is described in `abouts` as well.
        """
        self.path = path
        self._abouts = abouts
        self._file = CatalogueFile(path)

    def change(self) -> int:
        """Return the number of the last change. Raises StorageError."""
        return self._file.change()

    def go_on_from(self, change: int) -> None:
        """Continue with change numbers above this one. Raises StorageError."""
        self._file.go_on_from(change)

    def _delete(self, statement: str, values: tuple[str, ...], gone: dict[str, list[Row]]) -> None:
        """Delete the rows in `gone`, also on a full disk."""

        def delete() -> None:
            with self._file.changing() as database:
                for table, rows in gone.items():
                    self._file.note(table, (), rows)
                database.execute(statement, values)
                stored = [row for row in gone.get("topics", ()) if row[2] == "reliable"]
                for row in stored:
                    database.execute(f"INSERT INTO erasing ({TOPIC}) VALUES (?, ?, ?, ?, ?, ?)", row)
                self._file.note("erasing", stored, ())

        self._file.with_reserve(delete)

    def create_topic(self, topic: TopicMeta, subscriptions: Sequence[SubscriptionMeta] = ()) -> None:
        """Add a topic with its subscriptions, or nothing. Raises IsterError `topic-exists`, StorageError."""
        row = (
            topic.name,
            topic.incarnation,
            topic.dispatch,
            topic.durability,
            topic.created_ms,
            json.dumps(topic.settings),
        )
        if self.topic(topic.name) is None and self._abouts is not None:
            number = self.change() + 1
            self._abouts.write_topic(topic, number)
            for subscription in subscriptions:
                self._abouts.write_subscription(topic, subscription, number)
        below = [_subscription_row(subscription) for subscription in subscriptions]
        try:
            with self._file.changing() as database:
                database.execute(f"INSERT INTO topics ({TOPIC}) VALUES (?, ?, ?, ?, ?, ?)", row)
                self._file.note("topics", [row], ())
                database.executemany(_NEW_SUBSCRIPTION, below)
                self._file.note("subscriptions", below, ())
        except sqlite3.IntegrityError as error:
            if self.topic(topic.name) is not None:
                raise IsterError(
                    f"topic {topic.name!r} exists already", code="topic-exists", action="fix"
                ) from None
            raise StorageError(f"topic {topic.name!r} cannot be stored: {error}") from error

    def topic(self, name: str) -> TopicMeta | None:
        """Return a topic, or None if there is none of that name. Raises StorageError."""
        with self._file.reading() as database:
            row = database.execute(f"SELECT {TOPIC} FROM topics WHERE name = ?", (name,)).fetchone()
        return None if row is None else _topic(row)

    def get_topic(self, name: str) -> TopicMeta:
        """Return a topic. Raises IsterError `unknown-topic`, StorageError."""
        found = self.topic(name)
        if found is None:
            raise IsterError(f"there is no topic {name!r}", code="unknown-topic", action="fix")
        return found

    def topics(self) -> list[TopicMeta]:
        """Return all topics, by name. Raises StorageError."""
        with self._file.reading() as database:
            return [_topic(row) for row in database.execute(f"SELECT {TOPIC} FROM topics ORDER BY name")]

    def update_topic(self, name: str, settings: dict[str, Any]) -> TopicMeta:
        """Replace a topic's settings, and return the new entry.

        Raises IsterError `unknown-topic`, StorageError.
        """

        def change() -> None:
            with self._file.changing() as database:
                before = self._file.rows("topics", TOPIC, "name", name)
                database.execute(
                    "UPDATE topics SET settings = ? WHERE name = ?", (json.dumps(settings), name)
                )
                self._file.note("topics", self._file.rows("topics", TOPIC, "name", name), before)

        self._file.with_reserve(change)
        changed = self.get_topic(name)
        self._describe(changed)
        return changed

    def _describe(self, topic: TopicMeta, subscription: SubscriptionMeta | None = None) -> None:
        """Describe what has changed; what cannot be written now is written at the next start."""
        if self._abouts is None:
            return
        try:
            if subscription is None:
                self._abouts.write_topic(topic, self.change())
            else:
                self._abouts.write_subscription(topic, subscription, self.change())
        except StorageError as error:
            log.warning("the settings of topic %s are in the catalogue only: %s", topic.name, error)

    def describe_all(self) -> None:
        """Update all descriptions that differ from the catalogue; on a full disk that has to wait."""
        subscriptions: dict[str, list[SubscriptionMeta]] = {}
        for each in self.subscriptions():
            subscriptions.setdefault(each.topic, []).append(each)
        for topic in self.topics():
            for one in (None, *subscriptions.get(topic.name, ())):
                if self._abouts is not None and not self._abouts.says(topic, one):
                    self._describe(topic, one)

    def cursor_names(self, topic: TopicMeta) -> list[str]:
        """Return the file names of the cursors of a topic's subscriptions. Raises StorageError."""
        return [cursor_name(each) for each in self.subscriptions(topic.name)]

    def delete_topic(self, name: str) -> tuple[TopicMeta, list[SubscriptionMeta]]:
        """Remove a topic and its subscriptions; return what was there.

        Raises IsterError `unknown-topic`, StorageError.
        """
        topic, subscriptions = self.get_topic(name), self.subscriptions(name)
        with self._file.reading():
            gone = {
                "topics": self._file.rows("topics", TOPIC, "name", name),
                "subscriptions": self._file.rows("subscriptions", SUBSCRIPTION, "topic", name),
            }
        if self._abouts is not None:
            self._abouts.remove_topic(topic)
        self._delete("DELETE FROM topics WHERE name = ?", (name,), gone)
        if self._abouts is not None:
            self._abouts.forget(topic, subscriptions)
        return topic, subscriptions

    def erasing(self) -> list[TopicMeta]:
        """Return deleted topics whose objects may still be in the store. Raises StorageError."""
        with self._file.reading() as database:
            return [_topic(row) for row in database.execute(f"SELECT {TOPIC} FROM erasing ORDER BY name")]

    def forget(self, incarnation: bytes) -> None:
        """Record that the store's copy of a deleted topic is another broker's, and stays. Raises StorageError."""
        query = f"SELECT {TOPIC} FROM erasing WHERE incarnation = ?"
        with self._file.changing() as database:
            before = database.execute(query, (incarnation,)).fetchall()
            database.execute(
                "UPDATE erasing SET settings = ? WHERE incarnation = ?",
                (json.dumps({FORGOTTEN: 1}), incarnation),
            )
            self._file.note("erasing", database.execute(query, (incarnation,)).fetchall(), before)

    def erased(self, incarnation: bytes) -> None:
        """Record that nothing of a deleted topic is in the store any more. Raises StorageError."""
        with self._file.changing() as database:
            query = f"SELECT {TOPIC} FROM erasing WHERE incarnation = ?"
            self._file.note("erasing", (), database.execute(query, (incarnation,)).fetchall())
            database.execute("DELETE FROM erasing WHERE incarnation = ?", (incarnation,))

    def create_subscription(self, subscription: SubscriptionMeta) -> None:
        """Add a subscription. Raises IsterError `subscription-exists` or `unknown-topic`, StorageError."""
        one, row = subscription, _subscription_row(subscription)
        topic = self.topic(one.topic)
        if self._abouts is not None and topic is not None and self.subscription(one.topic, one.name) is None:
            self._abouts.write_subscription(topic, one, self.change() + 1)
        try:
            with self._file.changing() as database:
                database.execute(_NEW_SUBSCRIPTION, row)
                self._file.note("subscriptions", [row], ())
        except sqlite3.IntegrityError:
            self.get_topic(one.topic)
            raise IsterError(
                f"subscription {one.name!r} of topic {one.topic!r} exists already",
                code="subscription-exists",
                action="fix",
            ) from None

    def subscription(self, topic: str, name: str) -> SubscriptionMeta | None:
        """Return a subscription, or None if there is none of that name. Raises StorageError."""
        with self._file.reading() as database:
            row = database.execute(
                f"SELECT {SUBSCRIPTION} FROM subscriptions WHERE topic = ? AND name = ?", (topic, name)
            ).fetchone()
        return None if row is None else _subscription(row)

    def get_subscription(self, topic: str, name: str) -> SubscriptionMeta:
        """Return a subscription.

        Raises IsterError `unknown-topic` or `unknown-subscription`, StorageError.
        """
        found = self.subscription(topic, name)
        if found is None:
            self.get_topic(topic)
            raise IsterError(
                f"topic {topic!r} has no subscription {name!r}", code="unknown-subscription", action="fix"
            )
        return found

    def subscriptions(self, topic: str | None = None) -> list[SubscriptionMeta]:
        """Return the subscriptions of a topic, or of all, by topic and name. Raises StorageError."""
        where, values = ("", ()) if topic is None else ("WHERE topic = ?", (topic,))
        query = f"SELECT {SUBSCRIPTION} FROM subscriptions {where} ORDER BY topic, name"
        with self._file.reading() as database:
            return [_subscription(row) for row in database.execute(query, values)]

    def update_subscription(self, topic: str, name: str, settings: dict[str, Any]) -> SubscriptionMeta:
        """Replace a subscription's settings, and return the new entry.

        Raises IsterError `unknown-topic` or `unknown-subscription`, StorageError.
        """
        query = f"SELECT {SUBSCRIPTION} FROM subscriptions WHERE topic = ? AND name = ?"

        def change() -> None:
            with self._file.changing() as database:
                before = database.execute(query, (topic, name)).fetchall()
                database.execute(
                    "UPDATE subscriptions SET settings = ? WHERE topic = ? AND name = ?",
                    (json.dumps(settings), topic, name),
                )
                self._file.note("subscriptions", database.execute(query, (topic, name)).fetchall(), before)

        self._file.with_reserve(change)
        changed = self.get_subscription(topic, name)
        self._describe(self.get_topic(topic), changed)
        return changed

    def delete_subscription(self, topic: str, name: str) -> SubscriptionMeta:
        """Remove a subscription and return what it was.

        Raises IsterError `unknown-topic`, `unknown-subscription`.
        """
        found = self.get_subscription(topic, name)
        with self._file.reading():
            of_topic = self._file.rows("subscriptions", SUBSCRIPTION, "topic", topic)
        gone = {"subscriptions": [row for row in of_topic if row[1] == name]}
        if self._abouts is not None:
            self._abouts.remove_subscription(self.get_topic(topic), found)
        self._delete("DELETE FROM subscriptions WHERE topic = ? AND name = ?", (topic, name), gone)
        return found

    def close(self) -> None:
        """Close the file; may be called again."""
        self._file.close()
