"""Finding out what a log's files hold, before anything is changed: which segments are the log, and what is damaged.

- A damaged file is left as it is, whatever is found in it.
- Nothing is written here: after an error every byte is as it was. What follows from the findings is done in
  `mending.py`.

May touch: the Disk it is handed, for reading. Runs where the log's owner runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ister.errors import GapError
from ister.storage.disk import Disk
from ister.storage.known_producers import load_producers
from ister.storage.producers import ProducerTable
from ister.storage.record import BATCH, Header, salt_of
from ister.storage.recovery import (
    DamagedRange,
    Scan,
    broken_ranges,
    claimed_end,
    damaged,
    scan_segment,
    walk_headers,
)
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentInfo,
    base_of,
    footer_at_end,
    parse_segment_header,
    segment_info,
    segment_name,
    topic_crc,
)

# A producer resends up to some 64 batches of 64 KiB; this much of the log is read for the offsets of such batches.
PRODUCERS_BYTES_BACK: Final = 16 << 20


@dataclass(slots=True)
class Tail:
    """One of the newest segments, scanned byte by byte."""

    path: str
    base: int
    salt: int
    data: bytes
    scan: Scan
    headed: bool  # its segment header is intact
    batches: list[Header]
    damaged: bool = False


@dataclass(slots=True)
class Findings:
    """What the files of a log hold."""

    names: list[str]  # all files in the folder
    tails: list[Tail]  # the newest segments, oldest first: `kept`, then `lost`
    kept: list[Tail]  # those that hold the log
    lost: list[Tail]  # those after its end
    sealed: list[SegmentInfo]  # older segments that are whole
    set_aside: list[SegmentInfo]  # older segments that are damaged
    damaged: list[DamagedRange]
    go_on_at: int | None  # where a new segment has to begin, because the newest one is damaged
    start_offset: int  # where the log begins if nothing is left of it
    log_time_ms: int  # the highest batch time of the older segments
    producers: ProducerTable


class Examination:
    """Reads the log in `folder`, once; `known_end` is an offset up to which it is known to have been durable."""

    def __init__(
        self,
        disk: Disk,
        folder: str,
        topic: str,
        incarnation: bytes,
        *,
        producers_max: int,
        start_offset: int,
        known_end: int,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._topic = topic
        self._incarnation = incarnation
        self._producers_max = producers_max
        self._start_offset = start_offset
        self._known_end = known_end
        self._oldest = 0  # where the oldest segment begins
        self._damaged: list[DamagedRange] = []
        self._set_aside: list[SegmentInfo] = []
        self._go_on_at: int | None = None
        self._log_time_ms = 0

    def run(self) -> Findings:
        """Return what is there. Raises DamagedError if the log may not be opened, GapError, OSError."""
        names = self._disk.listdir(self._folder)
        bases = [base for name in names if (base := base_of(name)) is not None]
        tails, older = self._scan_tail(bases)
        self._oldest = bases[0] if bases else 0
        # All of it is gone, or nothing was there: what is known to have been there is for the store to serve.
        if not tails:
            self._start_offset = max(self._start_offset, self._known_end)
        sealed: list[SegmentInfo] = []
        for base, following in zip(older, [*older, tails[0].base][1:] if tails else (), strict=True):
            info = self._read_ends(base, following)
            self._log_time_ms = max(self._log_time_ms, info.max_timestamp_ms)
            if not any(one.path == info.path for one in self._set_aside):
                sealed.append(info)
        kept, lost = self._judge(tails)
        if kept and kept[-1].damaged and lost:
            self._go_on_at = lost[0].base
        producers = self._producers(sealed, kept)
        return Findings(
            names=names,
            tails=tails,
            kept=kept,
            lost=lost,
            sealed=sealed,
            set_aside=self._set_aside,
            damaged=self._damaged,
            go_on_at=self._go_on_at,
            start_offset=self._start_offset,
            log_time_ms=self._log_time_ms,
            producers=producers,
        )

    def _path(self, base: int) -> str:
        return f"{self._folder}/{segment_name(base)}"

    def _scan_tail(self, bases: list[int]) -> tuple[list[Tail], list[int]]:
        """Scan from the newest segment back until the earlier ones are known to have been sealed durably.

        A segment that ends at offset n was, if something after it says that the log was durable beyond n: the commit
        that made it so covered the seal. Durable up to n alone may be from before the footer was written.
        """
        tails: list[Tail] = []
        proven = -1
        older = list(bases)
        while older and (not tails or tails[0].base >= proven):
            base = older.pop()
            path, salt = self._path(base), salt_of(self._incarnation, base)
            data = self._disk.read(path)
            headed = self._check_header(path, base, data)
            batches: list[Header] = []
            scan = scan_segment(data, base, salt, batches.append)
            tail = Tail(path, base, salt, data, scan, headed, batches)
            proven = max(proven, tail.scan.committed, tail.scan.promised)
            tails.insert(0, tail)
        return tails, older

    def _check_header(self, path: str, base: int, data: bytes) -> bool:
        """Return whether a segment's header is whole. Raises DamagedError for a whole one that does not belong here."""
        header = parse_segment_header(data)
        if isinstance(header, str):
            if header.startswith("format version"):
                raise damaged(path, 0, header)
            return False
        if header.incarnation != self._incarnation or header.topic_crc != topic_crc(self._topic):
            raise damaged(
                path, 0, f"it belongs to another topic than {self._topic!r}, or to a deleted one of that name"
            )
        if header.base != base:
            raise damaged(path, 0, f"its header says that it begins at offset {header.base}")
        return True

    def _read_ends(self, base: int, following: int) -> SegmentInfo:
        """Return what header and footer of a sealed segment say; the next segment begins at `following`."""
        path, salt = self._path(base), salt_of(self._incarnation, base)
        file = self._disk.open(path)
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
            self._damaged.append(DamagedRange(end, following, path, 0, gone))

    def _examine(self, path: str, base: int, following: int) -> SegmentInfo:
        """Find out what a damaged segment holds of [base, following), and set it aside."""
        data, times, records = self._disk.read(path), [self._log_time_ms], 0

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
                salt_of(self._incarnation, base),
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
        self._set_aside.append(info)
        return info

    def _note(self, ranges: list[DamagedRange]) -> None:
        """Record damaged ranges; ranges without a message only if the file has no others."""
        self._damaged += [one for one in ranges if one.end > one.first] or ranges[:1]

    def _judge(self, tails: list[Tail]) -> tuple[list[Tail], list[Tail]]:
        """Return the tail's segments that hold the log, and those after its end; mark damaged ones."""
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
            # The log ends in this segment, at its first invalid bytes, or these are damage.
            promised = max(
                self._known_end,
                scan.promised,
                *(max(one.scan.committed, one.scan.promised) for one in later),
                0,
            )
            in_store = scan.torn_bytes > 0 and self._disk.links(tail.path) > 1
            if promised > scan.next_offset or in_store:
                self._go_on_behind(tail, later, promised, in_store)
                continue
            if scan.snapshot is None:  # not even the head is intact
                if self._start_offset < tail.base == self._oldest and scan.torn_bytes:
                    raise damaged(tail.path, scan.end, "nothing says how far the log went")
                return tails[:number], tails[number:]
            return tails[: number + 1], later
        return tails, []

    def _go_on_behind(self, tail: Tail, later: list[Tail], promised: int, in_store: bool) -> None:
        """Note that a segment of the tail is damaged, and where the log continues after it."""
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
            self._go_on_at = end
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

    def _producers(self, sealed: list[SegmentInfo], kept: list[Tail]) -> ProducerTable:
        """Return the producers as of the log's end, with the offsets of their last batches."""
        room = PRODUCERS_BYTES_BACK - sum(tail.scan.end for tail in kept)
        older = sorted([*sealed, *self._set_aside], key=lambda info: info.base)
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
            data, salt = self._disk.read(info.path), salt_of(self._incarnation, info.base)
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
        if known is None and not older and not kept:
            known = load_producers(
                self._disk, self._folder, self._incarnation, self._start_offset, self._producers_max
            )
        return ProducerTable(self._producers_max) if known is None else known

    def _learned(
        self, known: ProducerTable | None, snapshot: bytes | None, headers: list[Header]
    ) -> ProducerTable | None:
        """Add what one more segment says of producers to what is known."""
        if snapshot is not None and (known is None or self._damaged):
            # Behind damage the snapshot knows batches that cannot be read any more.
            there = ProducerTable.decode(snapshot, self._producers_max)
            known = there if known is None else known.joined(there)
        if known is not None:
            for header in headers:
                if header[1] == BATCH:
                    known.advance(header[9], header[10], header[5], header[7], header[8])
        return known
