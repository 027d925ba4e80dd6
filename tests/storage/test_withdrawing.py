"""Tests of withdrawing acknowledgments of messages that a log has lost."""

from __future__ import annotations

from ister.storage.cursor_journal import CursorJournal
from ister.storage.simulated import SimulatedDisk
from ister.storage.withdrawing import withdraw_from

INCARNATION = b"i" * 16


def acknowledged(disk: SimulatedDisk, name: str, *ranges: tuple[int, int]) -> None:
    """Make a journal that acknowledges these ranges."""
    journal = CursorJournal.open(disk, f"/cursors/{name}", INCARNATION, 0)
    for first, end in ranges:
        journal.note(first, end)
    journal.flush()
    journal.sync()
    journal.close()


def test_what_was_acknowledged_behind_the_end_of_a_log_is_withdrawn_and_nothing_else() -> None:
    """Also scattered acknowledgments; it is on the disk when it returns, and a second time changes nothing."""
    disk = SimulatedDisk()
    disk.makedirs("/cursors")
    acknowledged(disk, "far.1", (0, 480))
    acknowledged(disk, "scattered.1", (0, 10), (20, 300), (400, 410))
    acknowledged(disk, "near.1", (0, 100))
    assert sorted(withdraw_from(disk, "/cursors", INCARNATION, 250)) == ["far.1", "scattered.1"]
    found = {}
    for name in ("far.1", "scattered.1", "near.1"):
        journal = CursorJournal.open(disk, f"/cursors/{name}", INCARNATION, 0)
        found[name] = (journal.cursor.low, list(journal.cursor.ranges))
        journal.close()
    assert found == {"far.1": (250, []), "scattered.1": (10, [(20, 250)]), "near.1": (100, [])}
    assert withdraw_from(disk, "/cursors", INCARNATION, 250) == []
