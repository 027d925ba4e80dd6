"""Tests of a subscription's cursor on a disk that fails: it only reports what the disk has."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from random import Random

import pytest

from ister.actors.subscription.cursor_log import CursorLog
from ister.storage.cursor_journal import COMPACT_BYTES_MIN
from tests.actors.scenes import Scene, offsets, part
from tests.stage import Stage


@pytest.fixture
def scene(stage: Stage) -> Scene:
    """Return the scene of a shared subscription."""
    return Scene(stage, retention_acknowledged=1)


def failing(stage: Stage, operation: str, which: Callable[[int], bool]) -> list[str]:
    """Let some of an operation's calls on cursors fail, by number; return the paths of those that failed."""
    count: Iterator[int] = iter(range(1 << 30))
    failed: list[str] = []

    def fails(happening: str, path: str) -> None:
        if happening == operation and "/cursors" in path and which(next(count)):
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error", path)

    stage.disk.on_operation = fails
    return failed


@pytest.mark.parametrize("number", [0, 1])
def test_a_move_forward_that_failed_skips_nothing_ever(scene: Scene, number: int) -> None:
    """The seek is refused: after a restart, too, every message comes that was not acknowledged."""
    client = scene.consumer()
    scene.publish(*(b"%d" % n for n in range(10)))
    client.ack(1, (0, 2))
    scene.stage.advance(5.0)
    failed = failing(scene.stage, "sync_folder", lambda each: each == number)
    assert scene.ask("seek", to=8).code == "log-failed"
    assert failed
    client.close_handle(1)
    scene.stage.restart(2)
    assert offsets(scene.consumer()) == list(range(2, 10))


def test_a_move_forward_that_failed_is_not_in_force_after_an_acknowledgment(scene: Scene) -> None:
    """The journal is written again from the acknowledgments, whatever the failed file shows."""
    client = scene.consumer()
    scene.publish(*(b"%d" % n for n in range(10)))
    client.ack(1, (0, 2))
    failing(scene.stage, "sync_folder", lambda each: each > 0)
    assert scene.ask("seek", to=8).code == "log-failed"
    assert scene.shown()["cursor"] == 2
    scene.stage.disk.on_operation = None
    client.close_handle(1)
    scene.stage.advance(3.0)
    again = scene.consumer()
    assert offsets(again) == list(range(2, 10))
    again.ack(1, (2, 3))
    assert scene.shown()["cursor"] == 3


def test_what_is_told_as_synced_is_on_the_disk(scene: Scene) -> None:
    """After a failed sync everything is written once more, so that a power failure takes none of it."""
    client = scene.consumer()
    scene.publish(*(b"%d" % n for n in range(10)))
    journal = part(scene, CursorLog)
    failed = failing(scene.stage, "sync", lambda each: each == 0)
    client.ack(1, (0, 5))
    while not failed:
        scene.stage.advance(0.1)
    for _ in range(1000):
        if journal.synced_low == 5:
            break
        scene.stage.advance(0.1)
    assert journal.synced_low == 5
    scene.stage.disk = scene.stage.disk.power_loss(Random(1))
    scene.stage.disk.locked.clear()
    scene.stage.kill(0)
    scene.stage.kill(1)
    scene.stage.restart(2)
    assert offsets(scene.consumer()) == [5, 6, 7, 8, 9]


def test_no_compaction_begins_while_a_sync_runs(scene: Scene) -> None:
    """Compaction would close the file that is being synced."""
    client = scene.consumer()
    scene.publish(*(b"" for _ in range(10)))
    log = part(scene, CursorLog)
    scene.stage.loop.holds_work = True
    client.ack(1, (0, 1))
    while not scene.stage.loop.work:
        scene.stage.advance(0.1)
    journal = log._journal
    for first in range(1, COMPACT_BYTES_MIN // 7, 2):
        log.note(first + 20, first + 21)
        if first % 100 == 1:
            log.flush()
    log.note(0, COMPACT_BYTES_MIN)
    log.flush()
    assert journal.size > COMPACT_BYTES_MIN
    assert len(scene.stage.loop.work) == 1
    scene.stage.loop.holds_work = False
    scene.stage.settle()
    log.flush()
    scene.stage.settle()
    assert journal.size < COMPACT_BYTES_MIN


def test_acknowledgments_are_answered_on_a_full_disk(scene: Scene) -> None:
    """Each one answered is in the journal: after a restart none of the messages comes again."""
    client = scene.consumer()
    scene.publish(*(b"" for _ in range(600)))
    scene.stage.disk.room = 0
    for offset in range(500):
        client.ack(1, (offset, offset + 1))
    client.close_handle(1)
    scene.stage.restart(2)
    scene.stage.disk.room = None
    assert offsets(scene.consumer())[0] == 500
