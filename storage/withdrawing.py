"""Withdrawing acknowledgments of messages that a log has lost, as durability `os` allows.

The offsets of those messages are assigned again. That must not happen before the cursors know: a subscription that is
opened later could not tell the new messages from the lost ones, and would take them for acknowledged.

May touch: the Disk it is handed; journals in a topic's folder of cursors, which nobody else has open.
"""

from __future__ import annotations

from ister.errors import DamagedError
from ister.storage.cursor_files import acknowledged_by_journal
from ister.storage.cursor_journal import CursorJournal
from ister.storage.disk import Disk


def fit_to(journal: CursorJournal, end: int) -> None:
    """Let nothing from `end` on count as acknowledged. Raises what `CursorJournal.seek` raises."""
    cursor = journal.cursor
    journal.seek(min(cursor.low, end))
    for first, stop in cursor.ranges:
        if first < end:
            journal.note(first, min(stop, end))


def withdraw_from(disk: Disk, folder: str, incarnation: bytes, end: int) -> list[str]:
    """Do so in all journals of a topic, durably; return the names of those that were changed.

    Raises OSError, DiskFullError, LogFailedError.
    """
    changed = []
    for name, reached in acknowledged_by_journal(disk, folder, incarnation).items():
        if reached <= end:
            continue
        try:
            journal = CursorJournal.open(disk, f"{folder}/{name}", incarnation, 0)
        except DamagedError:
            continue  # its subscription reports it
        try:
            fit_to(journal, end)
            journal.flush()
            journal.sync()
        finally:
            journal.close()
        changed.append(name)
    return changed
