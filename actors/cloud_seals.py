"""Has the segments of a topic with durability cloud sealed in time. Part of a ReliableTopic, in a worker process.

`sealing.py` decides; this file owns the timer, and looks at the log and at what the store has. While nothing waits to
be sealed there is no timer.
"""

from __future__ import annotations

from typing import Final

from ister.actors.runtime import LoopActor, Timer
from ister.actors.sealing import Sealing
from ister.actors.store_view import StoreView
from ister.actors.topic_log import TopicLog

SEAL_AGAIN_S: Final = 1.0  # seconds; a segment that could not be sealed (the disk is full) is tried again


class CloudSeals:
    """Seals the log of `host`'s topic; `view` says what the store has."""

    def __init__(self, host: LoopActor, log: TopicLog, view: StoreView, sealing: Sealing) -> None:
        self._host = host
        self._log = log
        self._view = view
        self._sealing = sealing
        self._timer: Timer | None = None

    def taken(self) -> None:
        """Note that the log may have something to be sealed: after each batch."""
        if self._timer is not None:
            return
        wal = self._log.wal
        if wal is not None and (base := wal.sealed_end) < wal.next_offset:
            self._sealing.began(base, wal.next_offset, self._host.clock.monotonic())
            self._timer = self._host.call_later(self._sealing.look_s, self._look)

    def stored(self) -> None:
        """Note that the store has more."""
        self._sealing.stored(self._view.watermark, self._host.clock.monotonic())

    def closed(self) -> None:
        """Note that the log was closed after a failure."""
        self._sealing.forget()

    def _look(self) -> None:
        self._timer = None
        wal, sealing, now = self._log.wal, self._sealing, self._host.clock.monotonic()
        if wal is None or (base := wal.sealed_end) >= (end := wal.next_offset):
            return
        size = wal.unsealed_bytes
        again_s = sealing.look(base, end, size, self._view.behind_segments + wal.sealing, now)
        if not again_s:
            if self._log.seal():
                sealing.seal(end, size, now)
                return
            again_s = SEAL_AGAIN_S
        self._timer = self._host.call_later(again_s, self._look)
