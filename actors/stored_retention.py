"""Retention of a topic's history in the store. Part of an Uploader, in the tier process.

Owns the time of the next trim. May touch the store, through its writer.

Invariants
- retention trims the store by the settings the Directory has at that moment, and not before they are in the store
- one trim runs at a time, and at most one a minute starts: each writes an object, which costs money
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ister.actors.runtime import LoopActor, Timer
from ister.actors.store_writer import StoreWriter
from ister.actors.stored_history import StoredHistory
from ister.actors.stored_settings import StoredSettings
from ister.storage.layout import Layout
from ister.storage.retention import Retention, retention_of, trim_point
from ister.storage.upload import trim
from ister.words import counted

log = logging.getLogger("ister.uploader")

TRIM_CHECK_S: Final = 5.0  # seconds; how late the store's history may be trimmed
LOOK_S_MAX: Final = 60.0  # seconds; how often a topic without retention is looked at all the same
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
        self._look: Timer | None = None
        self._rests = False  # nothing is ever trimmed
        self._due = False  # a trim is due once the Directory has answered with the settings

    def begin(self) -> None:
        """Check periodically what may be trimmed."""
        self._look = self._host.call_later(TRIM_CHECK_S, self._round)

    def look_soon(self) -> None:
        """Check soon: the settings may have changed."""
        if self._rests and self._look is not None:
            self._rests = False
            self._look.cancel()
            self._look = self._host.call_later(TRIM_CHECK_S, self._round)

    def claimed(self, history: StoredHistory) -> None:
        """Use the history of a claimed topic."""
        self._history = history

    def _round(self) -> None:
        self._rests = not retention_of(self._writer.topic)
        self._look = self._host.call_later(LOOK_S_MAX if self._rests else TRIM_CHECK_S, self._round)
        history = self._history
        if history is None or self._host.clock.monotonic() < self._again_s:
            return
        if self._point(history) > history.start:
            self._due = True
            self._consult()

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

        def failed(error: BaseException) -> None:
            self._trimming, self._trimmed_once = False, False  # objects that were left are found by a listing
            self._writer.failed("its history was not cut", error)

        self._writer.do(lambda: trim(store, topic, epoch, point, known), trimmed, failed)
