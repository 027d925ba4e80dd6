"""Making a log's files what they were found to hold: cut, completed, synced, and continued after damage.

- A damaged file is left as it is. If it is the newest, the log continues in a new segment after everything that is
  known to be acknowledged.
- What counts afterwards has been synced here, whatever happened before.

What the files hold was found out in `examining.py`, and is not decided again here. May touch: the Disk it is handed.
"""

from __future__ import annotations

import contextlib

from ister.storage.active import Active, beginning, begun
from ister.storage.disk import Disk
from ister.storage.examining import Findings, Tail
from ister.storage.index import index_bytes
from ister.storage.recovery import position_of, written_end
from ister.storage.segment import (
    FOOTER_BYTES,
    Footer,
    SegmentHeader,
    SegmentInfo,
    encode_footer,
    encode_segment_header,
    segment_info,
    segment_name,
    topic_crc,
)
from ister.storage.spare import SPARE_NAME


class Mending:
    """Mends the log in `folder`, once; its attributes say what was done."""

    def __init__(
        self, disk: Disk, folder: str, topic: str, incarnation: bytes, segment_bytes_max: int, found: Findings
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._topic = topic
        self._incarnation = incarnation
        self._segment_bytes_max = segment_bytes_max
        self._found = found
        self.sealed = list(found.sealed)
        self.set_aside = list(found.set_aside)
        self.log_time_ms = found.log_time_ms  # the highest batch time so far
        self.torn_bytes = 0
        self.rewritten_bytes = 0
        self.discarded: list[str] = []
        self.finished: list[str] = []

    def run(self) -> Active | None:
        """Return the segment to continue writing, None if there is none. Raises OSError, DiskFullError."""
        found = self._found
        if SPARE_NAME in found.names:
            self._disk.unlink(f"{self._folder}/{SPARE_NAME}")
        for tail in reversed(found.lost):
            self.torn_bytes += written_end(tail.data)
            self.discarded.append(tail.path)
            self._disk.unlink(tail.path)
        proven = max((tail.scan.committed for tail in found.kept), default=0)
        active = None
        for tail in found.kept:
            if tail.damaged:
                self._keep_damaged(tail)
            else:
                active = self._mend(tail, proven, last=tail is found.kept[-1])
            self.log_time_ms = max(self.log_time_ms, tail.scan.max_timestamp_ms)
        if found.go_on_at is not None:
            active = self._go_on(found.go_on_at)
        self._disk.sync_folder(self._folder)
        return active

    def _keep_damaged(self, tail: Tail) -> None:
        """Keep a damaged segment of the tail in the log as it is; sync it, because whole records in it count."""
        scan = tail.scan
        file = self._disk.open(tail.path)
        try:
            file.datasync()
        finally:
            file.close()
        end = next(
            (one.base for one in self._found.tails if one.base > tail.base),
            self._found.go_on_at or scan.next_offset,
        )
        times = (scan.first_timestamp_ms, scan.last_timestamp_ms)
        size, log_time = len(tail.data), max(self.log_time_ms, scan.max_timestamp_ms)
        self.set_aside.append(
            SegmentInfo(tail.path, tail.base, end, size, *times, end - tail.base, scan.records, log_time)
        )

    def _go_on(self, base: int) -> Active:
        """Create the segment in which a log continues after damage, durably."""
        snapshot, path = self._found.producers.encode(), f"{self._folder}/{segment_name(base)}"
        file = self._disk.create(path, self._segment_bytes_max)
        try:
            begin = beginning(self._incarnation, self._topic, base, self.log_time_ms, snapshot)
            file.pwritev((*begin, bytes(FOOTER_BYTES)), 0)
            file.datasync()
        except BaseException:
            file.close()
            self._disk.unlink(path)
            raise
        return begun(file, self._incarnation, base, len(snapshot), 0)

    def _mend(self, tail: Tail, proven: int, *, last: bool) -> Active | None:
        """Cut, complete and sync one segment of the tail; return it if it is the one in which writing continues."""
        scan = tail.scan
        scan.index.raise_times(self.log_time_ms)
        file = self._disk.open(tail.path)
        keep = False
        try:
            if scan.footer is None and scan.torn_bytes:
                file.truncate(scan.end)  # what was after it reads as zeros from now on
                self.torn_bytes += scan.torn_bytes
            start = position_of(tail.data, scan.end, proven, tail.salt) if proven > tail.base else 0
            if start < scan.end:
                file.pwritev((tail.data[start : scan.end],), start)
                self.rewritten_bytes += scan.end - start
            if not tail.headed:  # lost in a power failure, or damaged: its content is known
                header = SegmentHeader(
                    self._incarnation, tail.base, scan.first_timestamp_ms, topic_crc(self._topic)
                )
                file.pwritev((encode_segment_header(header),), 0)
            footer = scan.footer
            if footer is None and not last:
                footer = Footer(
                    scan.next_offset,
                    scan.next_offset - tail.base,
                    scan.records,
                    scan.first_timestamp_ms,
                    scan.last_timestamp_ms,
                    scan.end + index_bytes(len(scan.index)) + FOOTER_BYTES,
                    max(self.log_time_ms, scan.max_timestamp_ms),
                    index_bytes(len(scan.index)),
                )
                self.finished.append(tail.path)
                uncommitted = max(0, scan.next_offset - proven)
                index = scan.index.encode(tail.salt, scan.next_offset, uncommitted)
                file.pwritev((index, encode_footer(tail.salt, footer, uncommitted)), scan.end)
            elif footer is not None:
                file.pwritev((tail.data[scan.end : footer.bytes],), scan.end)
            if footer is not None:
                file.truncate(footer.bytes)
                self.sealed.append(segment_info(tail.path, tail.base, footer))
            else:
                file.truncate(max(scan.end, self._segment_bytes_max))
                keep = True
            file.datasync()
            if not keep:
                return None
            return Active(
                file=file,
                base=tail.base,
                salt=tail.salt,
                end=scan.end,
                zeroed=scan.end,
                index=scan.index,
                records=scan.records,
                first_timestamp_ms=scan.first_timestamp_ms,
                last_timestamp_ms=scan.last_timestamp_ms,
            )
        finally:
            if not keep:
                with contextlib.suppress(OSError):
                    file.close()
