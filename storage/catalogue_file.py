"""The catalogue's file: an SQLite database with a digest of its rows, and a reserve for a full disk.

- Every change is on disk before the call returns (journal in WAL mode, synchronous=FULL).
- SQLite does not notice a changed byte in a row. A digest of all rows changes with each of them, in the same
  transaction. Opening reads every row, and refuses a file with a different digest.
- A change that must succeed on a full disk is made `with_reserve`: a small file beside the database is given up.

Which topics and subscriptions there are is for `catalogue.py`; here they are rows.
"""

from __future__ import annotations

import contextlib
import os.path
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from ister.errors import DamagedError, DiskFullError, StorageError
from ister.storage.checksum import crc32c
from ister.storage.disk import LocalDisk

Row = tuple[Any, ...]

SCHEMA_VERSION: Final = 2
# No database is shorter; SQLite takes a shorter file for an empty one, and would start again.
SQLITE_BYTES_MIN: Final = 512
# What SQLite needs to write a deletion, or to open its file, on a full disk: a few pages of 4 KiB.
RESERVE_BYTES: Final = 256 << 10

# The columns of a row, in the order in which the digest has them.
TOPIC: Final = "name, incarnation, dispatch, durability, created_ms, settings"
SUBSCRIPTION: Final = "topic, name, type, start, created_ms, settings"

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


# Deleted topics, until the store has nothing of them; without this list they would be restored from there.
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

# The number of changes: a description beside a log with a higher number is newer than this file.
_CHANGES: Final = "CREATE TABLE IF NOT EXISTS changes (number INTEGER NOT NULL) STRICT"


def _digest(table: str, row: Sequence[object]) -> int:
    """Return what a row adds to the digest: the CRC32C of its table's name and its values."""
    return crc32c(repr((table, *row)).encode())


class CatalogueFile:
    """The database at `path`, open for changes by this process alone."""

    def __init__(self, path: str) -> None:
        """Open the file, or create it; its folder must exist. Raises DamagedError, StorageError."""
        self.path = path
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
            if isinstance(error, UnicodeDecodeError):  # in SQLite's description of the error
                raise DamagedError(f"the catalogue {path} is damaged: {error}") from error
            raise

    def _keep_reserve(self) -> None:
        """Make the reserve if it is missing; on a full disk that has to wait."""
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

    def with_reserve(self, change: Callable[[], None]) -> None:
        """Make a change that must succeed on a full disk too."""
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
        execute(_ERASING)  # files of older versions do not have it
        execute(_CHANGES)
        execute("INSERT INTO changes SELECT 0 WHERE NOT EXISTS (SELECT * FROM changes)")
        self._verify()

    def _verify(self) -> None:
        """Read everything once, and compare the digest. Raises DamagedError."""
        (found, *_) = self._database.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise DamagedError(f"the catalogue {self.path} is damaged: {found}")
        rows = total = 0
        try:
            for table, columns in (("topics", TOPIC), ("subscriptions", SUBSCRIPTION), ("erasing", TOPIC)):
                for row in self._database.execute(f"SELECT {columns} FROM {table}"):
                    rows, total = rows + 1, total + _digest(table, row)
        except (UnicodeDecodeError, OverflowError) as error:
            raise DamagedError(f"the catalogue {self.path} is damaged: {error}") from None
        if self._database.execute("SELECT rows, total FROM digest").fetchall() != [(rows, total)]:
            raise DamagedError(f"the catalogue {self.path} is damaged: its rows do not match their checksum")

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Make a change of rows and digest a single transaction."""
        with self.reading() as database:
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
        with self.reading() as database:
            (number,) = database.execute("SELECT max(number) FROM changes").fetchone()
        return int(number)

    def go_on_from(self, change: int) -> None:
        """Give the changes to come higher numbers than that one. Raises StorageError."""
        with self.reading() as database:
            database.execute("UPDATE changes SET number = ? WHERE number < ?", (change, change))

    def note(
        self, table: str, added: Iterable[Sequence[object]], removed: Iterable[Sequence[object]]
    ) -> None:
        """Update the digest for rows that were added and removed."""
        plus = [_digest(table, row) for row in added]
        minus = [_digest(table, row) for row in removed]
        self._database.execute(
            "UPDATE digest SET rows = rows + ?, total = total + ?",
            (len(plus) - len(minus), sum(plus) - sum(minus)),
        )

    def rows(self, table: str, columns: str, where: str, name: str) -> list[Row]:
        """Return rows of a table by one column."""
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the database; its errors become StorageErrors, but for a broken constraint."""
        try:
            yield self._database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Close the file; may be called again."""
        self._database.close()
