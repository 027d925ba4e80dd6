"""Retention of a topic's history in the store. Part of an Uploader, in the tier process.

Owns the time of the next trim. May touch the store, through its writer.

Invariants
- retention trims the store by the settings the Directory has at that moment, and not before they are in the store
- one trim runs at a time, and at most one a minute starts: each writes an object, which costs money
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

from ister.actors.next_look import NextLook
from ister.actors.runtime import LoopActor
from ister.actors.store_writer import StoreWriter
from ister.actors.stored_history import StoredHistory
from ister.actors.stored_settings import StoredSettings
from ister.storage.layout import Layout
from ister.storage.retention import Retention, due_in_ms, retention_of, trim_point
from ister.storage.upload import trim
from ister.words import counted

log = logging.getLogger("ister.uploader")

TRIM_CHECK_S: Final = 5.0  # seconds; how late the store's history may be trimmed
TRIM_AGAIN_S: Final = 60.0  # seconds between two trims


class StoredRetention:
    """The retention of one topic. `consult()` asks the Directory for settings; `on_cut()` is called after a trim."""

    def __init__(
        self,
        host: LoopActor,
        writer: StoreWriter,
        settings: StoredSettings,
        *,
        consult: Callable[[], None],
        on_cut: Callable[[], None],
    ) -> None:
        self._host = host
        self._writer = writer
        self._settings = settings
        self._consult = consult
        self._on_cut = on_cut
        self._history: StoredHistory | None = None  # once the topic is claimed
        self.acknowledged: int | None = None  # the offset below which all subscriptions are done
        self._trimming = False
        self._trimmed_once = False  # whether a trim has removed what earlier writers left
        self._again_s = 0.0
        self._look = NextLook(host, self._round)
        self._due = False  # a trim is due once the Directory has answered with the settings

    def look_soon(self) -> None:
        """Check soon what may be trimmed: something has changed."""
        if retention_of(self._writer.topic):
            self._look.within(TRIM_CHECK_S)

    def end(self) -> None:
        """Check no more: the Uploader has ended."""
        self._look.end()

    def claimed(self, history: StoredHistory) -> None:
        """Use the history of a claimed topic."""
        self._history = history
        self.look_soon()

    def _round(self) -> None:
        """Trim what is due, and come back when time alone makes something due; every change is told."""
        history, retention = self._history, retention_of(self._writer.topic)
        if history is None or not retention:
            self._look.after(math.inf)
            return
        now_s, again_s = self._host.clock.monotonic(), 0.0
        if not self._settings.are_stored or self._trimming:
            pass  # soon they are
        elif self._point(history) <= history.start:
            if retention.ms:
                by_age = Retention(retention.ms)
                wait_ms = due_in_ms(list(history.segments()), by_age, self._host.clock.time_ms())
                again_s = wait_ms / 1000
            else:
                again_s = math.inf
        elif now_s < self._again_s:
            again_s = self._again_s - now_s
        else:
            self._due = True
            self._consult()
        by_wall_clock = 0 < again_s < math.inf
        self._look.after(max(again_s, TRIM_CHECK_S), by_wall_clock=by_wall_clock)

    def _point(self, history: StoredHistory) -> int:
        """Return the offset below which the history may be trimmed, by settings that are also in the store."""
        retention: Retention = retention_of(self._writer.topic)
        if self._writer.epoch is None or self._trimming or self._writer.ended or not retention:
            return 0
        if not self._settings.are_stored:
            return 0
        return trim_point(
            list(history.segments()),
            retention,
            now_ms=self._host.clock.time_ms(),
            acknowledged=self.acknowledged,
            floor=history.watermark,
        )

    def heard(self) -> None:
        """Trim, if that is due: the Directory has answered."""
        if not self._due or self._history is None:
            return
        self._due = False
        history = self._history
        point = self._point(history)
        if point <= history.start:
            return
        topic, store, epoch = self._writer.topic, self._writer.store, self._writer.epoch
        assert epoch is not None
        self._trimming = True
        self._again_s = self._host.clock.monotonic() + TRIM_AGAIN_S
        known = None
        if self._trimmed_once:
            layout = Layout(topic.name, topic.incarnation)
            known = [*history.objects_below(point), layout.trimmed(history.start)]

        def trimmed(dropped: int) -> None:
            self._trimming, self._trimmed_once = False, True
            text = "topic %s: the store's history now begins at %d (%s)"
            log.info(text, topic.name, point, counted(dropped, "object"))
            history.cut(point)
            self._on_cut()
            self.look_soon()

        def failed(error: BaseException) -> None:
            self._trimming, self._trimmed_once = False, False  # objects that were left are found by a listing
            self.look_soon()
            self._writer.failed("its history was not cut", error)

        self._writer.do(lambda: trim(store, topic, epoch, point, known), trimmed, failed)
