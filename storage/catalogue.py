"""The catalogue: all topics and subscriptions, in SQLite.

- One process has it open. Every change is on disk before the call returns (journal in WAL mode, synchronous=FULL).
- The caller has checked names; here they are only keys.
- A topic's incarnation is never used again: a new topic of an old name has another one.
- SQLite does not notice a changed byte in a row. A digest of all rows changes with each of them, in the same
  transaction. Opening reads every row, and refuses a file with a different digest.
- A full disk refuses additions, never deletions and changed settings such as a shorter retention: for these a small
  reserve beside the file is given up.
- Everything here is also described beside logs and cursors (`about.py`), in case this file is lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os.path
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ister.errors import DamagedError, DiskFullError, IsterError, StorageError
from ister.storage.about import Abouts
from ister.storage.checksum import crc32c
from ister.storage.disk import LocalDisk
from ister.storage.folders import cursor_name

log = logging.getLogger("ister.catalogue")

SCHEMA_VERSION: Final = 2
# No database is shorter; SQLite takes a shorter file for an empty one, and would start again.
SQLITE_BYTES_MIN: Final = 512
# What SQLite needs to write down a deletion, or to open its file, with nothing left on the disk: a few pages of 4 KiB.
RESERVE_BYTES: Final = 256 << 10

Dispatch = Literal["reliable", "non-reliable"]
Durability = Literal["fsync", "os", "cloud"]

_SCHEMA = """
CREATE TABLE topics (
    name TEXT PRIMARY KEY,
    incarnation BLOB NOT NULL UNIQUE CHECK (length(incarnation) = 16),
    dispatch TEXT NOT NULL,
    durability TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE subscriptions (
    topic TEXT NOT NULL REFERENCES topics (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    start TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (topic, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE digest (
    rows INTEGER NOT NULL,
    total INTEGER NOT NULL
) STRICT;
INSERT INTO digest VALUES (0, 0);
"""


# Topics that were deleted, until nothing of them is in the store; without it, they would come back from there.
_ERASING: Final = """
CREATE TABLE IF NOT EXISTS erasing (
    name TEXT NOT NULL,
    incarnation BLOB PRIMARY KEY,
    dispatch TEXT NOT NULL,
    durability TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    settings TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

# How many changes there were: a description beside a log that tells of a later one is newer than this file.
_CHANGES: Final = "CREATE TABLE IF NOT EXISTS changes (number INTEGER NOT NULL) STRICT"


@dataclass(frozen=True, slots=True)
class TopicMeta:
    """What a topic was created with; `settings` holds plain JSON values."""

    name: str
    incarnation: bytes
    dispatch: str
    durability: str
    created_ms: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubscriptionMeta:
    """What a subscription was created with; `start` is "earliest", "latest", an offset or "time:<unix ms>"."""

    topic: str
    name: str
    type: str
    start: str | int
    created_ms: int
    settings: dict[str, Any] = field(default_factory=dict)


FORGOTTEN: Final = "forgotten"  # a setting of a deleted topic whose objects are another broker's

_TOPIC = "name, incarnation, dispatch, durability, created_ms, settings"
_SUBSCRIPTION = "topic, name, type, start, created_ms, settings"
_NEW_SUBSCRIPTION: Final = f"INSERT INTO subscriptions ({_SUBSCRIPTION}) VALUES (?, ?, ?, ?, ?, ?)"


def _topic(row: tuple[Any, ...]) -> TopicMeta:
    name, incarnation, dispatch, durability, created_ms, settings = row
    return TopicMeta(name, incarnation, dispatch, durability, created_ms, json.loads(settings))


def _subscription(row: tuple[Any, ...]) -> SubscriptionMeta:
    topic, name, kind, start, created_ms, settings = row
    return SubscriptionMeta(topic, name, kind, json.loads(start), created_ms, json.loads(settings))


def _subscription_row(one: SubscriptionMeta) -> tuple[Any, ...]:
    return (one.topic, one.name, one.type, json.dumps(one.start), one.created_ms, json.dumps(one.settings))


def _digest(table: str, row: Sequence[object]) -> int:
    """Return what one row adds to the digest: the CRC32C of its table's name and its values."""
    return crc32c(repr((table, *row)).encode())


class Catalogue:
    """The topics and subscriptions of a broker."""

    def __init__(self, path: str, abouts: Abouts | None = None) -> None:
        """Open the file at `path`, or create it; its folder must exist. Raises DamagedError, StorageError.

        What is created, changed and deleted is described in `abouts` as well.
        """
        self.path = path
        self._abouts = abouts
        self._disk = LocalDisk()
        self._reserve = f"{path}.reserve"
        try:
            self._connect()
        except DiskFullError:
            if not self._give_up_reserve():
                raise
            self._connect()
        self._keep_reserve()

    def _connect(self) -> None:
        path = self.path
        if os.path.exists(path) and 0 < os.path.getsize(path) < SQLITE_BYTES_MIN:
            raise DamagedError(f"the catalogue {path} is damaged: it has only {os.path.getsize(path)} bytes")
        try:
            # Autocommit; each change below is one statement or one explicit transaction.
            self._database = sqlite3.connect(self.path, isolation_level=None)
            self._prepare()
        except BaseException as error:
            if hasattr(self, "_database"):
                self._database.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise self._error(error) from error
            if isinstance(error, UnicodeDecodeError):  # in SQLite's own words for what is wrong
                raise DamagedError(f"the catalogue {path} is damaged: {error}") from error
            raise

    def _keep_reserve(self) -> None:
        """Make the reserve if it is not there; on a full disk that has to wait."""
        if self._disk.exists(self._reserve):
            return
        try:
            file = self._disk.create(self._reserve)
            try:
                file.pwritev((b"\xff" * RESERVE_BYTES,), 0)
                file.datasync()
            except (OSError, DiskFullError):
                self._disk.unlink(self._reserve)
            finally:
                file.close()
        except (OSError, DiskFullError):
            return

    def _give_up_reserve(self) -> bool:
        try:
            self._disk.unlink(self._reserve)
        except OSError:
            return False
        return True

    def _delete(
        self, statement: str, values: tuple[str, ...], gone: dict[str, list[tuple[Any, ...]]]
    ) -> None:
        """Carry out a deletion of the rows in `gone`, also on a full disk."""

        def delete() -> None:
            with self._changing() as database:
                for table, rows in gone.items():
                    self._note(table, (), rows)
                database.execute(statement, values)
                stored = [row for row in gone.get("topics", ()) if row[2] == "reliable"]
                for row in stored:
                    database.execute(f"INSERT INTO erasing ({_TOPIC}) VALUES (?, ?, ?, ?, ?, ?)", row)
                self._note("erasing", stored, ())

        self._with_reserve(delete)

    def _with_reserve(self, change: Callable[[], None]) -> None:
        """Make a change that is to succeed on a full disk too."""
        self._keep_reserve()
        try:
            change()
        except DiskFullError:
            if not self._give_up_reserve():
                raise
            change()

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        (version,) = execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.executescript(
                f"BEGIN; {_ERASING}; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise StorageError(
                f"the catalogue {self.path} has schema version {version}; this broker knows version {SCHEMA_VERSION}",
                code="unsupported-version",
                action="stop",
            )
        execute(_ERASING)  # an older broker's file has none
        execute(_CHANGES)
        execute("INSERT INTO changes SELECT 0 WHERE NOT EXISTS (SELECT * FROM changes)")
        self._verify()

    def _verify(self) -> None:
        """Read everything once, and compare it with what was written. Raises DamagedError."""
        (found, *_) = self._database.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise DamagedError(f"the catalogue {self.path} is damaged: {found}")
        rows = total = 0
        try:
            for table, columns in (("topics", _TOPIC), ("subscriptions", _SUBSCRIPTION), ("erasing", _TOPIC)):
                for row in self._database.execute(f"SELECT {columns} FROM {table}"):
                    rows, total = rows + 1, total + _digest(table, row)
        except (UnicodeDecodeError, OverflowError) as error:
            raise DamagedError(f"the catalogue {self.path} is damaged: {error}") from None
        if self._database.execute("SELECT rows, total FROM digest").fetchall() != [(rows, total)]:
            raise DamagedError(f"the catalogue {self.path} is damaged: its rows do not match their checksum")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Make a change of rows and digest one transaction."""
        with self._guarded() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("UPDATE changes SET number = number + 1")
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a failed commit may have rolled back already
                    database.execute("ROLLBACK")
                raise

    def change(self) -> int:
        """Return the number of the last change. Raises StorageError."""
        with self._guarded() as database:
            (number,) = database.execute("SELECT max(number) FROM changes").fetchone()
        return int(number)

    def go_on_from(self, change: int) -> None:
        """Give the changes to come higher numbers than that one. Raises StorageError."""
        with self._guarded() as database:
            database.execute("UPDATE changes SET number = ? WHERE number < ?", (change, change))

    def _note(
        self, table: str, added: Iterable[Sequence[object]], removed: Iterable[Sequence[object]]
    ) -> None:
        """Take a change of rows into the digest."""
        plus = [_digest(table, row) for row in added]
        minus = [_digest(table, row) for row in removed]
        self._database.execute(
            "UPDATE digest SET rows = rows + ?, total = total + ?",
            (len(plus) - len(minus), sum(plus) - sum(minus)),
        )

    def _rows(self, table: str, columns: str, where: str, name: str) -> list[tuple[Any, ...]]:
        return self._database.execute(f"SELECT {columns} FROM {table} WHERE {where} = ?", (name,)).fetchall()

    def _error(self, error: sqlite3.DatabaseError) -> StorageError:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            return DiskFullError(f"no space left for the catalogue {self.path}")
        if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            return DamagedError(f"the catalogue {self.path} is damaged: {error}")
        folder = os.path.dirname(self.path)
        return StorageError(f"the catalogue {self.path} failed: {error} (is {folder} there, and writable?)")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

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
            with self._changing() as database:
                database.execute(f"INSERT INTO topics ({_TOPIC}) VALUES (?, ?, ?, ?, ?, ?)", row)
                self._note("topics", [row], ())
                database.executemany(_NEW_SUBSCRIPTION, below)
                self._note("subscriptions", below, ())
        except sqlite3.IntegrityError as error:
            if self.topic(topic.name) is not None:
                raise IsterError(
                    f"topic {topic.name!r} exists already", code="topic-exists", action="fix"
                ) from None
            raise StorageError(f"topic {topic.name!r} cannot be stored: {error}") from error

    def topic(self, name: str) -> TopicMeta | None:
        """Return a topic, or None if there is none of that name. Raises StorageError."""
        with self._guarded() as database:
            row = database.execute(f"SELECT {_TOPIC} FROM topics WHERE name = ?", (name,)).fetchone()
        return None if row is None else _topic(row)

    def get_topic(self, name: str) -> TopicMeta:
        """Return a topic. Raises IsterError `unknown-topic`, StorageError."""
        found = self.topic(name)
        if found is None:
            raise IsterError(f"there is no topic {name!r}", code="unknown-topic", action="fix")
        return found

    def topics(self) -> list[TopicMeta]:
        """Return all topics, by name. Raises StorageError."""
        with self._guarded() as database:
            return [_topic(row) for row in database.execute(f"SELECT {_TOPIC} FROM topics ORDER BY name")]

    def update_topic(self, name: str, settings: dict[str, Any]) -> TopicMeta:
        """Replace a topic's settings, and return it as it is then.

        Raises IsterError `unknown-topic`, StorageError.
        """

        def change() -> None:
            with self._changing() as database:
                before = self._rows("topics", _TOPIC, "name", name)
                database.execute(
                    "UPDATE topics SET settings = ? WHERE name = ?", (json.dumps(settings), name)
                )
                self._note("topics", self._rows("topics", _TOPIC, "name", name), before)

        self._with_reserve(change)
        changed = self.get_topic(name)
        self._describe(changed)
        return changed

    def _describe(self, topic: TopicMeta, subscription: SubscriptionMeta | None = None) -> None:
        """Describe what has changed; what cannot be written now is at the next start."""
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
        """Describe everything that is not described as it is; a full disk has to wait."""
        subscriptions: dict[str, list[SubscriptionMeta]] = {}
        for each in self.subscriptions():
            subscriptions.setdefault(each.topic, []).append(each)
        for topic in self.topics():
            for one in (None, *subscriptions.get(topic.name, ())):
                if self._abouts is not None and not self._abouts.says(topic, one):
                    self._describe(topic, one)

    def cursor_names(self, topic: TopicMeta) -> list[str]:
        """Return what the cursors of a topic's subscriptions are called. Raises StorageError."""
        return [cursor_name(each) for each in self.subscriptions(topic.name)]

    def delete_topic(self, name: str) -> tuple[TopicMeta, list[SubscriptionMeta]]:
        """Remove a topic and its subscriptions; return what was there.

        Raises IsterError `unknown-topic`, StorageError.
        """
        topic, subscriptions = self.get_topic(name), self.subscriptions(name)
        with self._guarded():
            gone = {
                "topics": self._rows("topics", _TOPIC, "name", name),
                "subscriptions": self._rows("subscriptions", _SUBSCRIPTION, "topic", name),
            }
        if self._abouts is not None:
            self._abouts.remove_topic(topic)
        self._delete("DELETE FROM topics WHERE name = ?", (name,), gone)
        if self._abouts is not None:
            self._abouts.forget(topic, subscriptions)
        return topic, subscriptions

    def erasing(self) -> list[TopicMeta]:
        """Return deleted topics whose objects may still be in the store. Raises StorageError."""
        with self._guarded() as database:
            return [_topic(row) for row in database.execute(f"SELECT {_TOPIC} FROM erasing ORDER BY name")]

    def forget(self, incarnation: bytes) -> None:
        """Note of a deleted topic that the store's is another broker's, and is left alone. Raises StorageError."""
        query = f"SELECT {_TOPIC} FROM erasing WHERE incarnation = ?"
        with self._changing() as database:
            before = database.execute(query, (incarnation,)).fetchall()
            database.execute(
                "UPDATE erasing SET settings = ? WHERE incarnation = ?",
                (json.dumps({FORGOTTEN: 1}), incarnation),
            )
            self._note("erasing", database.execute(query, (incarnation,)).fetchall(), before)

    def erased(self, incarnation: bytes) -> None:
        """Record that nothing of a deleted topic is in the store any more. Raises StorageError."""
        with self._changing() as database:
            query = f"SELECT {_TOPIC} FROM erasing WHERE incarnation = ?"
            self._note("erasing", (), database.execute(query, (incarnation,)).fetchall())
            database.execute("DELETE FROM erasing WHERE incarnation = ?", (incarnation,))

    def create_subscription(self, subscription: SubscriptionMeta) -> None:
        """Add a subscription. Raises IsterError `subscription-exists` or `unknown-topic`, StorageError."""
        one, row = subscription, _subscription_row(subscription)
        topic = self.topic(one.topic)
        if self._abouts is not None and topic is not None and self.subscription(one.topic, one.name) is None:
            self._abouts.write_subscription(topic, one, self.change() + 1)
        try:
            with self._changing() as database:
                database.execute(_NEW_SUBSCRIPTION, row)
                self._note("subscriptions", [row], ())
        except sqlite3.IntegrityError:
            self.get_topic(one.topic)
            raise IsterError(
                f"subscription {one.name!r} of topic {one.topic!r} exists already",
                code="subscription-exists",
                action="fix",
            ) from None

    def subscription(self, topic: str, name: str) -> SubscriptionMeta | None:
        """Return a subscription, or None if there is none of that name. Raises StorageError."""
        with self._guarded() as database:
            row = database.execute(
                f"SELECT {_SUBSCRIPTION} FROM subscriptions WHERE topic = ? AND name = ?", (topic, name)
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
        query = f"SELECT {_SUBSCRIPTION} FROM subscriptions {where} ORDER BY topic, name"
        with self._guarded() as database:
            return [_subscription(row) for row in database.execute(query, values)]

    def update_subscription(self, topic: str, name: str, settings: dict[str, Any]) -> SubscriptionMeta:
        """Replace a subscription's settings, and return it as it is then.

        Raises IsterError `unknown-topic` or `unknown-subscription`, StorageError.
        """
        query = f"SELECT {_SUBSCRIPTION} FROM subscriptions WHERE topic = ? AND name = ?"

        def change() -> None:
            with self._changing() as database:
                before = database.execute(query, (topic, name)).fetchall()
                database.execute(
                    "UPDATE subscriptions SET settings = ? WHERE topic = ? AND name = ?",
                    (json.dumps(settings), topic, name),
                )
                self._note("subscriptions", database.execute(query, (topic, name)).fetchall(), before)

        self._with_reserve(change)
        changed = self.get_subscription(topic, name)
        self._describe(self.get_topic(topic), changed)
        return changed

    def delete_subscription(self, topic: str, name: str) -> SubscriptionMeta:
        """Remove a subscription and return what it was.

        Raises IsterError `unknown-topic`, `unknown-subscription`.
        """
        found = self.get_subscription(topic, name)
        with self._guarded():
            of_topic = self._rows("subscriptions", _SUBSCRIPTION, "topic", topic)
        gone = {"subscriptions": [row for row in of_topic if row[1] == name]}
        if self._abouts is not None:
            self._abouts.remove_subscription(self.get_topic(topic), found)
        self._delete("DELETE FROM subscriptions WHERE topic = ? AND name = ?", (topic, name), gone)
        return found

    def close(self) -> None:
        """Close the file; may be called again."""
        self._database.close()
