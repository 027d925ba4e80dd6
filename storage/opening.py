"""Opening a log: from the files of a folder to the state from which a Wal continues.

- Nothing is changed before it is known that the log may be opened; after an error every byte is as it was.
- A damaged file is left as it is, whatever is found in it. If it is the newest, the log continues in a new segment
  behind everything that is known to be acknowledged; so it does if no file is left.
- What counts afterwards has been synced here, whatever happened before.

May touch: the Disk it is handed. Runs where the log's owner runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from ister.errors import GapError, LogFailedError
from ister.storage.begin import load_begin
from ister.storage.disk import Disk, File
from ister.storage.ending import load_end
from ister.storage.index import SparseIndex, index_bytes
from ister.storage.producers import ENTRY_BYTES, PRODUCERS_MAX, ProducerTable
from ister.storage.record import BATCH, HEADER_BYTES, PRODUCERS, Header, encode_header, salt_of
from ister.storage.recovery import (
    DamagedRange,
    RecoveryReport,
    Scan,
    broken_ranges,
    claimed_end,
    damaged,
    position_of,
    scan_segment,
    walk_headers,
    written_end,
)
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_HEADER_BYTES,
    Footer,
    SegmentHeader,
    SegmentInfo,
    base_of,
    encode_footer,
    encode_segment_header,
    footer_at_end,
    parse_segment_header,
    segment_info,
    segment_name,
    topic_crc,
)
from ister.storage.spare import SPARE_NAME

# Resends reach back some 64 batches of 64 KiB from each producer; this much of the log is read for their
# offsets.
PRODUCERS_BYTES_BACK: Final = 16 << 20


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
class Active:
    """The segment that is being written."""

    file: File
    base: int
    salt: int
    end: int  # the byte behind the last record
    zeroed: int  # blocks are written up to here
    index: SparseIndex
    records: int = 0
    first_timestamp_ms: int = 0
    last_timestamp_ms: int = 0
    cut: bool = False  # nothing is behind the last record but the room for an index and a footer


@dataclass(slots=True)
class OpenedLog:
    """What a log continues from."""

    report: RecoveryReport
    sealed: list[SegmentInfo]
    active: Active | None
    producers: ProducerTable
    set_aside: list[SegmentInfo]  # damaged segments: part of the log, and never uploaded
    log_time_ms: int  # the highest batch time so far
    retained: int  # below this everything went by retention, as the log's folder says


@dataclass(slots=True)
class _Tail:
    """One of the newest segments, scanned byte by byte."""

    path: str
    base: int
    salt: int
    data: bytes
    scan: Scan
    headed: bool  # its segment header is whole
    batches: list[Header]
    damaged: bool = False


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
    """Find, check, mend and sync the log in `folder`.

    Raises DamagedError, GapError, DiskFullError, LogFailedError.
    """
    if len(incarnation) != 16:
        raise ValueError(f"an incarnation has 16 bytes, not {len(incarnation)}")
    try:
        known_end = max(known_end, load_end(disk, folder, incarnation))
        return _Opening(disk, folder, topic, incarnation, settings, start_offset, known_end).run()
    except OSError as error:
        raise LogFailedError(f"the log of topic {topic!r} cannot be opened: {error}") from error


class _Opening:
    def __init__(
        self,
        disk: Disk,
        folder: str,
        topic: str,
        incarnation: bytes,
        settings: WalSettings,
        start_offset: int,
        known_end: int,
    ) -> None:
        self.disk, self.folder, self.topic = disk, folder, topic
        self.incarnation, self.settings, self.start_offset = incarnation, settings, start_offset
        self.known_end = known_end
        self.torn_bytes = self.rewritten_bytes = 0
        self.discarded: list[str] = []
        self.finished: list[str] = []
        self.damaged: list[DamagedRange] = []
        self.set_aside: list[SegmentInfo] = []
        self._tails: list[_Tail] = []
        self.go_on_at: int | None = None  # where a new segment begins, because the newest one is damaged
        self.log_time = 0

    def run(self) -> OpenedLog:
        self.disk.makedirs(self.folder)
        names = self.disk.listdir(self.folder)
        bases = [base for name in names if (base := base_of(name)) is not None]
        tails, older = self._scan_tail(bases)
        self._tails = tails
        self._oldest = bases[0] if bases else 0
        if (
            not tails
        ):  # all of it is gone, or nothing was there: what is known to have been is the store's to serve
            self.start_offset = max(self.start_offset, self.known_end)
        sealed: list[SegmentInfo] = []
        for base, following in zip(older, [*older, tails[0].base][1:] if tails else (), strict=True):
            info = self._read_ends(base, following)
            self.log_time = max(self.log_time, info.max_timestamp_ms)
            if not any(one.path == info.path for one in self.set_aside):
                sealed.append(info)
        kept, lost = self._judge(tails)
        if kept and kept[-1].damaged and lost:
            self.go_on_at = lost[0].base
        producers = self._producers(sealed, kept)

        # From here on the log is known to be good, or to be damaged where it says; and files are written.
        if SPARE_NAME in names:
            self.disk.unlink(f"{self.folder}/{SPARE_NAME}")
        for tail in reversed(lost):
            self.torn_bytes += written_end(tail.data)
            self.discarded.append(tail.path)
            self.disk.unlink(tail.path)
        proven = max((tail.scan.committed for tail in kept), default=0)
        active = None
        for tail in kept:
            if tail.damaged:
                self._set_aside(tail)
            else:
                active = self._mend(tail, proven, sealed, tail is kept[-1])
            self.log_time = max(self.log_time, tail.scan.max_timestamp_ms)
        if self.go_on_at is not None:
            active = self._go_on(self.go_on_at, producers)
        self.disk.sync_folder(self.folder)
        return OpenedLog(
            self._report(tails, kept, sealed, active),
            sealed,
            active,
            producers,
            self.set_aside,
            self.log_time,
            load_begin(self.disk, self.folder, self.incarnation),
        )

    def _report(
        self, tails: list[_Tail], kept: list[_Tail], sealed: list[SegmentInfo], active: Active | None
    ) -> RecoveryReport:
        infos = [*sealed, *self.set_aside]
        bases = [info.base for info in infos] + ([active.base] if active is not None else [])
        if self.go_on_at is not None:
            end = self.go_on_at
        elif kept:
            end = kept[-1].scan.next_offset
        else:  # nothing but a name may be left, and offsets below it are never used again
            end = max([self.start_offset, *(info.end for info in infos), *(tail.base for tail in tails[:1])])
        return RecoveryReport(
            topic=self.topic,
            start_offset=min(bases, default=end),
            next_offset=end,
            segments=len(bases),
            records_scanned=sum(tail.scan.records for tail in tails),
            bytes_scanned=sum(len(tail.data) for tail in tails),
            torn_bytes=self.torn_bytes,
            rewritten_bytes=self.rewritten_bytes,
            discarded=tuple(self.discarded),
            finished=tuple(self.finished),
            damaged=tuple(sorted(self.damaged, key=lambda one: (one.first, one.position))),
        )

    def _path(self, base: int) -> str:
        return f"{self.folder}/{segment_name(base)}"

    def _scan_tail(self, bases: list[int]) -> tuple[list[_Tail], list[int]]:
        """Scan from the newest segment back until those before it are known to have been sealed durably.

        A segment that ends at offset n was, if something behind it says that the log was durable beyond n: the
        commit that made it so covered the seal. Durable up to n alone may be from before the footer was written.
        """
        tails: list[_Tail] = []
        proven = -1
        older = list(bases)
        while older and (not tails or tails[0].base >= proven):
            base = older.pop()
            path, salt = self._path(base), salt_of(self.incarnation, base)
            data = self.disk.read(path)
            headed = self._check_header(path, base, data)
            batches: list[Header] = []
            scan = scan_segment(data, base, salt, batches.append)
            tail = _Tail(path, base, salt, data, scan, headed, batches)
            proven = max(proven, tail.scan.committed, tail.scan.promised)
            tails.insert(0, tail)
        return tails, older

    def _check_header(self, path: str, base: int, data: bytes) -> bool:
        """Return whether a segment's header is whole; raise if it is whole and not the one that belongs here."""
        header = parse_segment_header(data)
        if isinstance(header, str):
            if header.startswith("format version"):
                raise damaged(path, 0, header)
            return False
        if header.incarnation != self.incarnation or header.topic_crc != topic_crc(self.topic):
            raise damaged(
                path, 0, f"it belongs to another topic than {self.topic!r}, or to a deleted one of that name"
            )
        if header.base != base:
            raise damaged(path, 0, f"its header says that it begins at offset {header.base}")
        return True

    def _read_ends(self, base: int, following: int) -> SegmentInfo:
        """Return what header and footer of a segment say that was sealed, and is followed by one at `following`."""
        path, salt = self._path(base), salt_of(self.incarnation, base)
        file = self.disk.open(path)
        try:
            size = file.size()
            headed = self._check_header(path, base, file.pread(SEGMENT_HEADER_BYTES, 0))
            footer = footer_at_end(file.pread(FOOTER_BYTES, max(0, size - FOOTER_BYTES)), size, salt)
        finally:
            file.close()
        if footer is None or not headed:
            return self._examine(path, base, following)
        self._joins(path, footer.next_offset, following)
        return segment_info(path, base, footer)

    def _joins(self, path: str, end: int, following: int) -> None:
        """Check that a sealed segment ends where the next one begins, or note what is missing between them."""
        if end > following:
            raise GapError(f"{path} ends at offset {end}, and the next segment begins at {following}")
        if end < following:
            gone = f"no segment holds them; the one before ends at offset {end}"
            self.damaged.append(DamagedRange(end, following, path, 0, gone))

    def _examine(self, path: str, base: int, following: int) -> SegmentInfo:
        """Find out what of [base, following) a damaged segment holds, and set it aside."""
        data, times, records = self.disk.read(path), [self.log_time], 0

        def counted(header: Header) -> None:
            nonlocal records
            if header[1] == BATCH:
                times.append(header[8])
                records += 1

        self._note(
            broken_ranges(
                path,
                data,
                base,
                following,
                salt_of(self.incarnation, base),
                sealed=True,
                on_record=counted,
            )
        )
        info = SegmentInfo(
            path,
            base,
            following,
            len(data),
            times[1 % len(times)],
            times[-1],
            following - base,
            records,
            max(times),
        )
        self.set_aside.append(info)
        return info

    def _note(self, ranges: list[DamagedRange]) -> None:
        """Report ranges; those without a message only if there are no others in that file."""
        self.damaged += [one for one in ranges if one.end > one.first] or ranges[:1]

    def _judge(self, tails: list[_Tail]) -> tuple[list[_Tail], list[_Tail]]:
        """Return the tail's segments that hold the log, and those behind its end; note which are damaged."""
        for number, tail in enumerate(tails):
            scan, later = tail.scan, tails[number + 1 :]
            ended = scan.snapshot is not None and scan.footer is not None
            if (
                later
                and scan.snapshot is not None
                and scan.next_offset == later[0].base
                and scan.torn_bytes == 0
            ):
                continue
            if later and ended:
                self._joins(tail.path, scan.next_offset, later[0].base)
                continue
            # The log ends in this segment, at the first thing in it that is not valid, or this is damage.
            promised = max(
                self.known_end,
                scan.promised,
                *(max(one.scan.committed, one.scan.promised) for one in later),
                0,
            )
            in_store = scan.torn_bytes > 0 and self.disk.links(tail.path) > 1
            if promised > scan.next_offset or in_store:
                self._go_on_behind(tail, later, promised, in_store)
                continue
            if scan.snapshot is None:  # not even its head is there
                if self.start_offset < tail.base == self._oldest and scan.torn_bytes:
                    raise damaged(tail.path, scan.end, "nothing says how far the log went")
                return tails[:number], tails[number:]
            return tails[: number + 1], later
        return tails, []

    def _go_on_behind(self, tail: _Tail, later: list[_Tail], promised: int, in_store: bool) -> None:
        """Record that a segment of the tail is damaged, and where the log continues behind it."""
        scan = tail.scan
        if later:
            end = later[0].base
            if end < scan.next_offset:
                raise GapError(
                    f"{tail.path} holds offset {scan.next_offset - 1}, and {later[0].path} follows it"
                )
        elif promised <= scan.next_offset and in_store:
            raise damaged(tail.path, scan.end, "it is in the store too, so it was intact once")
        else:
            end = max(promised, claimed_end(tail.data, scan.end, tail.salt))
            self.go_on_at = end
        if scan.footer is None:
            tail.damaged = True
            tail.batches.clear()
            self._note(
                broken_ranges(
                    tail.path,
                    tail.data,
                    tail.base,
                    end,
                    tail.salt,
                    sealed=False,
                    on_record=tail.batches.append,
                )
            )
            times = [header[8] for header in tail.batches if header[1] == BATCH]
            scan.max_timestamp_ms = max([scan.max_timestamp_ms, *times])
            scan.last_timestamp_ms = times[-1] if times else scan.last_timestamp_ms
        else:
            self._joins(tail.path, scan.next_offset, end)

    def _set_aside(self, tail: _Tail) -> None:
        """Keep a damaged segment of the tail in the log, as it is; what is whole in it must outlast the machine."""
        scan = tail.scan
        file = self.disk.open(tail.path)
        try:
            file.datasync()
        finally:
            file.close()
        end = next(
            (one.base for one in self._tails if one.base > tail.base), self.go_on_at or scan.next_offset
        )
        times = (scan.first_timestamp_ms, scan.last_timestamp_ms)
        size, log_time = len(tail.data), max(self.log_time, scan.max_timestamp_ms)
        self.set_aside.append(
            SegmentInfo(tail.path, tail.base, end, size, *times, end - tail.base, scan.records, log_time)
        )

    def _go_on(self, base: int, producers: ProducerTable) -> Active:
        """Make the segment in which a log continues behind damage, durably."""
        salt, snapshot, path = salt_of(self.incarnation, base), producers.encode(), self._path(base)
        file = self.disk.create(path, self.settings.segment_bytes_max)
        header = SegmentHeader(self.incarnation, base, self.log_time, topic_crc(self.topic))
        end = SEGMENT_HEADER_BYTES + HEADER_BYTES + len(snapshot)
        try:
            record = encode_header(salt, PRODUCERS, (snapshot,), first_offset=base)
            file.pwritev((encode_segment_header(header), record, snapshot, bytes(FOOTER_BYTES)), 0)
            file.datasync()
        except BaseException:
            file.close()
            self.disk.unlink(path)
            raise
        return Active(file, base, salt, end, end + FOOTER_BYTES, SparseIndex(end))

    def _producers(self, sealed: list[SegmentInfo], kept: list[_Tail]) -> ProducerTable:
        """Return the producers as of the log's end, with what their last batches' offsets are."""
        room = PRODUCERS_BYTES_BACK - sum(tail.scan.end for tail in kept)
        older = sorted([*sealed, *self.set_aside], key=lambda info: info.base)
        back = len(older)
        while back > 0 and older[back - 1].bytes <= room:
            back -= 1
            room -= older[back].bytes
        if back == len(older) and not kept and older:
            back -= 1
        known: ProducerTable | None = None
        for info in older[back:]:
            headers: list[Header] = []
            snapshot: bytes | None = None
            data, salt = self.disk.read(info.path), salt_of(self.incarnation, info.base)
            try:
                snapshot = walk_headers(data, info.base, salt, headers.append)
            except ValueError:
                headers.clear()
                if info in sealed:
                    sealed.remove(info)
                    self._examine(info.path, info.base, info.end)
                broken_ranges(
                    info.path, data, info.base, info.end, salt, sealed=True, on_record=headers.append
                )
            known = self._learned(known, snapshot, headers)
        for tail in kept:
            known = self._learned(known, tail.scan.snapshot, tail.batches)
        return ProducerTable(self.settings.producers_max) if known is None else known

    def _learned(
        self, known: ProducerTable | None, snapshot: bytes | None, headers: list[Header]
    ) -> ProducerTable | None:
        """Add to what is known of producers what one more segment says."""
        if snapshot is not None and (known is None or self.damaged):
            # Behind damage the snapshot knows of batches that cannot be read any more.
            there = ProducerTable.decode(snapshot, self.settings.producers_max)
            known = there if known is None else known.joined(there)
        if known is not None:
            for header in headers:
                if header[1] == BATCH:
                    known.advance(header[9], header[10], header[5], header[7], header[8])
        return known

    def _mend(self, tail: _Tail, proven: int, sealed: list[SegmentInfo], last: bool) -> Active | None:
        """Cut, complete and sync one segment of the tail; return it if it is the one to continue writing."""
        scan = tail.scan
        scan.index.raise_times(self.log_time)
        file = self.disk.open(tail.path)
        keep = False
        try:
            if scan.footer is None and scan.torn_bytes:
                file.truncate(scan.end)  # what was behind it reads as zeros from now on
                self.torn_bytes += scan.torn_bytes
            start = position_of(tail.data, scan.end, proven, tail.salt) if proven > tail.base else 0
            if start < scan.end:
                file.pwritev((tail.data[start : scan.end],), start)
                self.rewritten_bytes += scan.end - start
            if not tail.headed:  # lost with a power failure, or damaged: all it says is known otherwise
                header = SegmentHeader(
                    self.incarnation, tail.base, scan.first_timestamp_ms, topic_crc(self.topic)
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
                    max(self.log_time, scan.max_timestamp_ms),
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
                sealed.append(segment_info(tail.path, tail.base, footer))
            else:
                file.truncate(max(scan.end, self.settings.segment_bytes_max))
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
