"""Opening a log: from the files of a folder to the state from which a Wal continues.

    examining.py: what do the files hold? --> mending.py: make them so --> OpenedLog

- Nothing is changed before it is known that the log may be opened; after an error every byte is as it was.
- What counts afterwards has been synced here, whatever happened before.

May touch: the Disk it is handed. Runs where the log's owner runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ister.errors import LogFailedError
from ister.storage.active import Active
from ister.storage.begin import load_begin
from ister.storage.disk import Disk
from ister.storage.ending import load_end
from ister.storage.examining import Examination, Findings
from ister.storage.mending import Mending
from ister.storage.producers import ENTRY_BYTES, PRODUCERS_MAX, ProducerTable
from ister.storage.record import HEADER_BYTES
from ister.storage.recovery import RecoveryReport
from ister.storage.segment import FOOTER_BYTES, SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentInfo


@dataclass(frozen=True, slots=True)
class WalSettings:
    """How a log is cut into segments."""

    segment_bytes_max: int = SEGMENT_BYTES_MAX
    segment_age_ms_max: int = 60_000
    producers_max: int = PRODUCERS_MAX

    def __post_init__(self) -> None:
        if not 4096 <= self.segment_bytes_max <= SEGMENT_BYTES_MAX:
            raise ValueError(
                f"segment_bytes_max {self.segment_bytes_max} is not in 4096..{SEGMENT_BYTES_MAX}"
            )

    @property
    def batch_bytes_max(self) -> int:
        """Return how many bytes of frames one batch may have, whatever else its segment must hold."""
        snapshot = HEADER_BYTES + 4 + ENTRY_BYTES * self.producers_max
        return self.segment_bytes_max - SEGMENT_HEADER_BYTES - snapshot - HEADER_BYTES - FOOTER_BYTES


@dataclass(slots=True)
class OpenedLog:
    """The state in which a log continues."""

    report: RecoveryReport
    sealed: list[SegmentInfo]
    active: Active | None
    producers: ProducerTable
    # damaged segments: part of the log, and uploaded only as far as they are intact
    set_aside: list[SegmentInfo]
    log_time_ms: int  # the highest batch time so far
    retained: int  # retention deleted everything below, as recorded in the log's folder


def open_log(
    disk: Disk,
    folder: str,
    *,
    topic: str,
    incarnation: bytes,
    settings: WalSettings,
    start_offset: int,
    known_end: int,
) -> OpenedLog:
    """Find, check, repair and sync the log in `folder`."""
    if len(incarnation) != 16:
        raise ValueError(f"an incarnation has 16 bytes, not {len(incarnation)}")
    try:
        known_end = max(known_end, load_end(disk, folder, incarnation))
        disk.makedirs(folder)
        examination = Examination(
            disk,
            folder,
            topic,
            incarnation,
            producers_max=settings.producers_max,
            start_offset=start_offset,
            known_end=known_end,
        )
        found = examination.run()
        # From here on the log is known to be intact, or damaged only in known places; and files are written.
        mending = Mending(disk, folder, topic, incarnation, settings.segment_bytes_max, found)
        active = mending.run()
        return OpenedLog(
            _report(topic, found, mending, active),
            mending.sealed,
            active,
            found.producers,
            mending.set_aside,
            mending.log_time_ms,
            load_begin(disk, folder, incarnation),
        )
    except OSError as error:
        raise LogFailedError(f"the log of topic {topic!r} cannot be opened: {error}") from error


def _report(topic: str, found: Findings, mending: Mending, active: Active | None) -> RecoveryReport:
    infos = [*mending.sealed, *mending.set_aside]
    bases = [info.base for info in infos] + ([active.base] if active is not None else [])
    if found.go_on_at is not None:
        end = found.go_on_at
    elif found.kept:
        end = found.kept[-1].scan.next_offset
    else:  # perhaps only a name is left, and offsets below it are never used again
        end = max(
            [found.start_offset, *(info.end for info in infos), *(tail.base for tail in found.tails[:1])]
        )
    return RecoveryReport(
        topic=topic,
        start_offset=min(bases, default=end),
        next_offset=end,
        segments=len(bases),
        records_scanned=sum(tail.scan.records for tail in found.tails),
        bytes_scanned=sum(len(tail.data) for tail in found.tails),
        torn_bytes=mending.torn_bytes,
        rewritten_bytes=mending.rewritten_bytes,
        discarded=tuple(mending.discarded),
        finished=tuple(mending.finished),
        damaged=tuple(sorted(found.damaged, key=lambda one: (one.first, one.position))),
    )
