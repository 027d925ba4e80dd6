"""The names of objects in the store, and the order of uploads. Pure: no store, clock or disk.

    v1/topics/<topic>                          catalogue entry
    v1/d/<hh>/<topic>.<incarnation>/
        e/<epoch:08x>                          claim of a writer's epoch
        f/<epoch:08x>-<start:020d>             where that epoch's data begins
        s/<base:020d>.<epoch:08x>              a segment
        t/<log start:020d>                     trim boundary
        o/<epoch:08x>-<number:010d>            the topic's settings

- The watermark rises only over contiguous segments: everything below it is in the store.
- `hh` is two digits of a hash of the topic's name, so that objects written at the same time are spread over the key
  space.
- A topic's "/" is written "~", which no topic name contains, so that no object is a folder of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ister.storage.checksum import crc32c
from ister.storage.segment import SegmentInfo

# Four uploads of 8 MiB took 162 MB of memory with Google's client.
IN_FLIGHT_MAX: Final = 4

_SEGMENT = re.compile(r"s/([0-9]{20})\.([0-9a-f]{8})")
_EPOCH = re.compile(r"e/([0-9a-f]{8})")
_FROM = re.compile(r"f/([0-9a-f]{8})-([0-9]{20})")
_TRIM = re.compile(r"t/([0-9]{20})")


def encode_topic(topic: str) -> str:
    """Return a topic's name as one part of an object's name."""
    encoded = topic.replace("/", "~")
    return f"~{encoded}" if encoded.startswith(".") else encoded


def decode_topic(encoded: str) -> str:
    """Return the topic's name that `encode_topic` was given."""
    return (encoded[1:] if encoded.startswith("~.") else encoded).replace("~", "/")


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of one topic's objects."""

    topic: str
    incarnation: bytes

    @property
    def catalogue(self) -> str:
        """Return the name of the topic's catalogue entry."""
        return f"v1/topics/{encode_topic(self.topic)}"

    @property
    def prefix(self) -> str:
        """Return the prefix of all of the topic's data, with a "/" at its end."""
        hashed = crc32c(self.topic.encode()) & 0xFF
        return f"v1/d/{hashed:02x}/{encode_topic(self.topic)}.{self.incarnation.hex()}/"

    def segment(self, base: int, epoch: int) -> str:
        """Return the name of the segment at `base`, as the writer of `epoch` uploads it."""
        return f"{self.prefix}s/{base:020d}.{epoch:08x}"

    @property
    def segments(self) -> str:
        """Return the prefix of all segments."""
        return f"{self.prefix}s/"

    def epoch(self, epoch: int) -> str:
        """Return the name of the claim of an epoch."""
        return f"{self.prefix}e/{epoch:08x}"

    def begins(self, epoch: int, start: int) -> str:
        """Return the name of the object that says that an epoch's data begins at `start`."""
        return f"{self.prefix}f/{epoch:08x}-{start:020d}"

    def trimmed(self, log_start: int) -> str:
        """Return the name of the object that says that nothing below `log_start` is kept."""
        return f"{self.prefix}t/{log_start:020d}"

    def settings(self, epoch: int, number: int) -> str:
        """Return the name of the `number`-th version of the settings stored by the writer of an epoch."""
        return f"{self.prefix}o/{epoch:08x}-{number:010d}"

    @property
    def all_settings(self) -> str:
        """Return the prefix of all settings."""
        return f"{self.prefix}o/"

    def parse_segment(self, name: str) -> tuple[int, int] | None:
        """Return base and epoch of a segment's name, None for any other name."""
        found = self._match(_SEGMENT, name)
        return None if found is None else (int(found[1]), int(found[2], 16))

    def parse_epoch(self, name: str) -> int | None:
        """Return the epoch of a claim's name, None for any other name."""
        found = self._match(_EPOCH, name)
        return None if found is None else int(found[1], 16)

    def parse_begins(self, name: str) -> tuple[int, int] | None:
        """Return epoch and start in the name of an object that says where an epoch begins, None for other names."""
        found = self._match(_FROM, name)
        return None if found is None else (int(found[1], 16), int(found[2]))

    def parse_trimmed(self, name: str) -> int | None:
        """Return the log start in a trim object's name, None for any other name."""
        found = self._match(_TRIM, name)
        return None if found is None else int(found[1])

    def _match(self, pattern: re.Pattern[str], name: str) -> re.Match[str] | None:
        if not name.startswith(self.prefix):
            return None
        return pattern.fullmatch(name[len(self.prefix) :])


DAMAGED: Final = "damaged"  # in a segment's metadata


def segment_metadata(info: SegmentInfo, writer: str, *, damaged: bool = False) -> dict[str, str]:
    """Return the metadata of a segment's object; `writer` identifies the run of the uploader.

    `damaged`: the object is what is left of a damaged file.
    """
    marked = {DAMAGED: "1"} if damaged else {}
    return marked | {
        "base": str(info.base),
        "next": str(info.end),
        "count": str(info.messages),
        "first-timestamp": str(info.first_timestamp_ms),
        "last-timestamp": str(info.last_timestamp_ms),
        "id": writer,
    }


class UploadPlan:
    """Which segment to upload next, and up to where the store has everything.

    Segments are handed out in order, several at a time; their uploads may end in any order.
    """

    __slots__ = ("_arrived", "_in_flight", "in_flight_max", "watermark")

    def __init__(self, watermark: int, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        """Begin where the store's contents end: it has everything below `watermark`."""
        self.watermark = watermark
        self.in_flight_max = in_flight_max
        self._in_flight: dict[int, int] = {}  # base -> end
        self._arrived: dict[int, int] = {}

    def next(self, sealed: Sequence[SegmentInfo]) -> SegmentInfo | None:
        """Return the segment to upload next, None if there is none or enough are in progress. Follow with `begin`."""
        if len(self._in_flight) >= self.in_flight_max:
            return None
        for info in sealed:
            if (
                info.end > self.watermark
                and info.base not in self._in_flight
                and info.base not in self._arrived
            ):
                return info
        return None

    def begin(self, info: SegmentInfo) -> None:
        """Note that a segment's upload has started."""
        self._in_flight[info.base] = info.end

    def done(self, base: int, end: int | None = None) -> int:
        """Note that the segment at `base` is in the store, up to `end`; return the watermark."""
        known = self._in_flight.pop(base, None)
        if end is None:
            end = known
        if end is None:
            raise ValueError(f"no upload of a segment at {base} is under way")
        self._arrived[base] = end
        return self._join()

    def go_on_behind(self, gap_end: int) -> int:
        """Note that nothing will be uploaded between the watermark and an offset; return the watermark."""
        self.watermark = max(self.watermark, gap_end)
        return self._join()

    def _join(self) -> int:
        for first in sorted(self._arrived):
            if first > self.watermark:
                break
            self.watermark = max(self.watermark, self._arrived.pop(first))
        return self.watermark

    def failed(self, base: int) -> None:
        """Note that an upload failed: the segment will be handed out again."""
        self._in_flight.pop(base, None)

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Return the bases of the uploads in progress."""
        return tuple(self._in_flight)


def joined_end(segments: Iterable[tuple[int, int]], start: int) -> int:
    """Return up to where (base, next offset) pairs, in any order, cover everything from `start`."""
    end = start
    for base, following in sorted(segments):
        if base > end:
            break
        end = max(end, following)
    return end
