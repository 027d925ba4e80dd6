"""Upkeep: retention, verification and repair of a topic's log.

Runs in a worker process, as a part of its ReliableTopic; long disk work runs in threads.

Invariants
- the beginning of the log is dropped only by the topic's retention, and only what the store has (`storage/retention.py`
  decides)
- damage is skipped only at an operator's request, and then exactly where it is
- at most one trim and one repair run at a time, and a few verifications
- a report is of a verification that began after it was requested
- a verification ends when no client asks for it any more
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from ister.actors.messages import FoundDamage
from ister.actors.runtime import LoopActor, Timer
from ister.actors.threads import Purpose
from ister.errors import IsterError, RemoteError
from ister.storage.meta import TopicMeta
from ister.storage.ranges import RangeSet
from ister.storage.recovery import DamagedRange
from ister.storage.retention import Retention, due_in_ms, retention_of, trim_point
from ister.storage.trim import Trim
from ister.storage.verify import VerifyProgress, VerifyReport
from ister.storage.wal import Wal

log = logging.getLogger("ister.topic")

Reply = Callable[[dict[str, Any] | IsterError], None]

LOST: Final = "they are in the local log no more, and in the store neither, and no retention took them"
# a client that waits for a report asks several times a second; one that does not has gone
ASKED_WITHIN_S: Final = 15.0
VERIFICATIONS_MAX: Final = 4  # of one topic at a time: each is a thread that reads the whole log
UNNUMBERED: Final = -1  # stands for the verification of clients that send no numbers
DAMAGES_MAX: Final = 1000  # places found since the start that are shown: more would tell nothing more


@dataclass(frozen=True, slots=True)
class LogCare:
    """What a worker can do with a topic's log, in any thread, up to a durable end; and the limits."""

    verify: Callable[[int], Iterator[VerifyProgress | VerifyReport]]
    # up to a durable end; what the store has of damaged ranges is kept, what is lost there as well is skipped
    skip_damaged: Callable[[int, RangeSet, list[tuple[int, int]]], RangeSet]
    local_bytes: int  # bytes of what the store has that are kept here too
    behind_bytes_max: int  # bytes that may wait for the store
    segment_bytes: int
    cloud_linger_s: float
    cloud_window_bytes: int  # bytes of a producer of durability cloud without a receipt
    uploads: int  # segments of one topic that are on their way to the store at once


class _Verification:
    """A verification that runs in a thread: `progress` and `report` are set there, one assignment each."""

    def __init__(self) -> None:
        self.progress: VerifyProgress | None = None
        self.report: VerifyReport | None = None
        self.error: BaseException | None = None
        self.asked_s = 0.0
        self.abandoned = False

    def run(self, steps: Iterator[VerifyProgress | VerifyReport]) -> None:
        while not self.abandoned and (step := next(steps, None)) is not None:
            if isinstance(step, VerifyReport):
                self.report = step
            else:
                self.progress = step


class Upkeep:
    """The upkeep of `host`'s log; `on_trimmed` and `on_skipped` are called on its loop to tell the readers."""

    def __init__(
        self,
        host: LoopActor,
        meta: TopicMeta,
        care: LogCare,
        *,
        on_trimmed: Callable[[Wal], None],
        on_skipped: Callable[[], None],
    ) -> None:
        self._host = host
        self._topic = meta.name
        self._care = care
        self._on_trimmed = on_trimmed
        self._on_skipped = on_skipped
        self.retained_from = 0  # everything below is to be dropped by retention
        self.elsewhere = RangeSet()  # what the store has
        self.lost: list[tuple[int, int]] = []  # what neither the local log nor the store has
        self.retention = retention_of(meta)
        self.consumed: dict[str, int] = {}  # by subscription: it needs nothing below
        self.trimming: Wal | None = None  # the log that a trim runs on, which must not be closed meanwhile
        self._verifications: dict[int, _Verification] = {}  # by number
        self._verifications_begun = 0
        self._look_again: Timer | None = None  # checks for verifications that no client asks for any more
        self._repairing = False
        # ranges that readers found unreadable both here and in the store
        self._found: dict[tuple[int, int], str] = {}
        self._local: dict[tuple[int, int], str] = {}  # ranges that are damaged in the local log

    # ---- retention ----------------------------------------------------------------------------------------------

    def retain(self, wal: Wal, watermark: int, stored_start: int, acknowledged: int | None) -> None:
        """Drop what the topic's retention allows, and what the store has beyond `local_bytes`.

        The store has offsets from `stored_start` up to `watermark`; below that, retention dropped them there. What
        retention drops is lost to readers; what is dropped because the store has it is fetched from there when needed.
        """
        if self.trimming is not None:
            return
        now_ms, sealed = self._host.clock.time_ms(), wal.sealed()
        if self.retention:
            self.retained_from = max(
                self.retained_from,
                trim_point(sealed, self.retention, now_ms=now_ms, acknowledged=acknowledged, floor=watermark),
            )
        local = Retention(bytes=max(self._care.local_bytes, 1))
        stored = min(watermark, self.elsewhere.end_of(wal.start_offset))  # what the store has lost stays here
        point = trim_point(sealed, local, now_ms=now_ms, acknowledged=None, floor=stored)
        retained = max(self.retained_from, min(stored_start, watermark))
        point = max(point, retained)
        trim = wal.begin_trim(point, retained) if point > wal.start_offset else None
        if trim is not None:
            self.trimming = wal
            self._host.loop.offload(trim.run, lambda _, error: self._trimmed(wal, trim, error), Purpose.TRIMS)

    def due_in(self, wal: Wal, acknowledged: int | None) -> float:
        """Return in how many seconds retention may drop something, if nothing changes until then that is told.

        It is 0 if that depends on subscriptions. All of them are done with what is below `acknowledged`.
        """
        if self.trimming is not None:
            return math.inf  # its end is told
        if self.retention.acknowledged and acknowledged is not None and acknowledged >= wal.sealed_end:
            return math.inf  # nothing is left for them
        newest = len(wal.sealed()) == 1 and not wal.set_aside() and wal.next_offset == wal.sealed_end
        if newest and not self.retention.acknowledged:
            return math.inf  # it stays until something after it is durable
        return due_in_ms(wal.sealed(), self.retention, self._host.clock.time_ms()) / 1000

    def _trimmed(self, wal: Wal, trim: Trim, error: BaseException | None) -> None:
        self.trimming = None
        if error is not None:
            log.warning("topic %s: old segments could not be deleted: %s", self._topic, error)
        dropped = wal.end_trim(trim, error)
        if dropped:
            log.info("topic %s now begins at offset %d", self._topic, wal.start_offset)
        self._on_trimmed(wal)

    def go_by(self, meta: TopicMeta) -> None:
        """Apply other settings."""
        self.retention = retention_of(meta)

    def store_has(self, stored: RangeSet, lost: list[tuple[int, int]]) -> None:
        """Note what the store has, and what neither the store nor the local log has."""
        self.elsewhere, self.lost = stored, lost

    def missing_below(self, begins: int) -> int:
        """Return the offset below which the topic's beginning is missing though not by retention; 0: nothing is."""
        first, end = next(iter(self.lost), (0, 0))
        return end if first <= begins else 0

    def done_by_all(self, names: set[str]) -> int | None:
        """Return the offset below which all these subscriptions are done, None if that is unknown for one."""
        self.consumed = {name: low for name, low in self.consumed.items() if name in names}
        return min(self.consumed.values()) if names and names == self.consumed.keys() else None

    # ---- verification and repair --------------------------------------------------------------------------------

    def verify(self, durable_end: int, reply: Reply, number: int | None = None) -> None:
        """Start a verification of every byte, or return its progress; the answer with the report ends it.

        `number` is that of the previous answer, 0 to start: nobody is told of a verification that started before the
        request. An older client sends none, and continues with one that was started that way, if it was asked for
        lately.
        """
        self._abandon_unasked()
        key = UNNUMBERED if number is None else number
        running = self._verifications.get(key)
        if running is None:
            if len(self._verifications) >= VERIFICATIONS_MAX:
                reply(
                    RemoteError("busy", f"topic {self._topic!r} is being verified {VERIFICATIONS_MAX} times")
                )
                return
            if number is not None:
                key = self._verifications_begun = self._verifications_begun + 1
            running = self._verifications[key] = _Verification()
            steps = self._care.verify(durable_end)
            verification = running
            if self._look_again is None or not self._look_again.pending:
                self._look_again = self._host.call_later(ASKED_WITHIN_S, self._look_for_unasked)
            self._host.offload(
                lambda: verification.run(steps),
                lambda _, error: self._verified(verification, error),
                Purpose.CHECKS,
            )
        running.asked_s = self._host.clock.monotonic()
        if running.error is not None:
            del self._verifications[key]
            reply(RemoteError("log-failed", f"the log could not be verified: {running.error}"))
            return
        body: dict[str, Any] = {"topic": self._topic, "done": running.report is not None}
        if running.report is None and (running.progress is None or not running.progress.segments_total):
            body["waiting"] = True
        if number is not None:
            body["verification"] = key
        if running.progress is not None:
            body |= asdict(running.progress)
        if running.report is not None:
            body["report"] = asdict(running.report)
            body["report"]["damaged"] += tuple(
                asdict(DamagedRange(first, end, "", 0, reason)) for first, end, reason in self._nowhere()
            )
            del self._verifications[key]
        reply(body)

    def stop(self) -> None:
        """Stop reading: no client can ask for the result any more."""
        for verification in self._verifications.values():
            verification.abandoned = True

    def _abandon_unasked(self) -> None:
        """End the verifications that no client asks for any more: others wait for the thread and the disk."""
        now_s = self._host.clock.monotonic()
        for number, old in list(self._verifications.items()):
            if now_s - old.asked_s > ASKED_WITHIN_S:
                old.abandoned = True
                del self._verifications[number]

    def _look_for_unasked(self) -> None:
        self._abandon_unasked()
        if self._verifications:
            self._look_again = self._host.call_later(ASKED_WITHIN_S, self._look_for_unasked)

    def _verified(self, verification: _Verification, error: BaseException | None) -> None:
        verification.error = error
        if verification.abandoned:
            return
        if (report := verification.report) is not None:
            self._local = {(one.first, one.end): one.reason for one in report.damaged[:DAMAGES_MAX]}
            damaged = RangeSet(place for place in self._local if place[0] < place[1])
            self._found = {
                (first, end): reason
                for (first, end), reason in self._found.items()
                if not report.start_offset <= first < end <= report.end_offset
                or damaged.overlap(first, end)  # the verification has read it whole
            }

    def note_damage(self, found: FoundDamage) -> None:
        """Note a range that a reader could not read, until a verification reads it whole."""
        known = self._found if found.asked else self._local
        if len(known) < DAMAGES_MAX:
            known[found.first, found.end] = found.reason

    def damaged(self, wal: Wal) -> list[tuple[int, int, str]]:
        """Return what is known to be unreadable, each range once: first offset, offset after the last, reason.

        What is damaged here and whole in the store can be read.
        """
        found = dict.fromkeys(self.lost, LOST)
        there = self.elsewhere.copy()
        for first, end in self._found:
            if first < end:
                there.subtract(first, end)
        for (first, end), reason in self._here(wal).items():
            for part in there.gaps(first, end) if first < end else [(first, end)]:
                found.setdefault(part, reason)
        for (first, end), reason in self._found.items():
            if end > max(wal.retained, self.retained_from):
                found.setdefault((first, end), reason)
        return sorted((first, end, reason) for (first, end), reason in found.items())

    def damaged_here(self, wal: Wal) -> list[tuple[int, int, str]]:
        """Return the ranges that are damaged in the local log and read from the store instead."""
        return sorted((*place, reason) for place, reason in self._here(wal).items() if self._served(place))

    def _here(self, wal: Wal) -> dict[tuple[int, int], str]:
        local = {place: reason for place, reason in self._local.items() if place[1] > wal.start_offset}
        return local | {(one.first, one.end): one.reason for one in wal.damaged}

    def _served(self, place: tuple[int, int]) -> bool:
        first, end = place
        return (
            first < end
            and self.elsewhere.covers(first, end)
            and not any(lost < end and first < behind for lost, behind in self._found)
        )

    def repair(self, durable_end: int, reply: Reply) -> None:
        """Let readers skip damaged ranges from now on."""
        if self._repairing:
            reply(RemoteError("busy", f"topic {self._topic!r} is being repaired already"))
            return
        self._repairing = True

        def ended(skipped: RangeSet | None, error: BaseException | None) -> None:
            self._repairing = False
            if error is not None or skipped is None:
                reply(RemoteError("log-failed", f"topic {self._topic!r} could not be repaired: {error}"))
                return
            if skipped:
                log.warning("topic %s: an operator lets readers skip %s", self._topic, list(skipped))
            self._on_skipped()
            reply(
                {"topic": self._topic, "skipped": [list(each) for each in skipped], "messages": skipped.total}
            )

        elsewhere, lost = self.elsewhere.copy(), [*self.lost, *self._found_in_store()]
        self._host.offload(
            lambda: self._care.skip_damaged(durable_end, elsewhere, lost), ended, Purpose.CHECKS
        )

    def _nowhere(self) -> list[tuple[int, int, str]]:
        """Return the ranges that neither the local log nor the store has, as far as known."""
        found = [(first, end, LOST) for first, end in self.lost]
        lost = RangeSet(self.lost)
        for first, end in self._found_in_store():
            if not lost.overlap(first, end):
                found.append((first, end, self._found[first, end]))
        return sorted(found)

    def verifying(self, number: int | None) -> bool:
        """Whether verification `number` runs, or its report waits to be fetched."""
        return (UNNUMBERED if number is None else number) in self._verifications

    def _found_in_store(self) -> list[tuple[int, int]]:
        """Return ranges that the store should have had, and that readers found damaged or missing there."""
        return [
            (first, end)
            for first, end in self._found
            if end > first and self.elsewhere.overlap(first, end) > 0
        ]
