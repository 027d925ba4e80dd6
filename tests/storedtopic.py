"""Topics in a store for tests, made of real segments: a log is written, sealed, and uploaded as its writer would."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ister.bodies import encode_attributes
from ister.clock import SystemClock
from ister.storage.disk import LocalDisk
from ister.storage.layout import Layout, segment_metadata
from ister.storage.objectstore import ObjectStore
from ister.storage.segment import SegmentInfo
from ister.storage.wal import Wal, WalSettings

INCARNATION = bytes(range(16))
FIRST_MS = 1_772_000_000_000


def column(items: list[bytes]) -> bytes:
    """Return keys or attributes as a column of the wire."""
    return array("I", map(len, items)).tobytes() + b"".join(items)


def payload(offset: int) -> bytes:
    """Return the payload of the message at an offset."""
    return b"message %d" % offset + b"." * (offset % 50)


def key(offset: int) -> bytes | None:
    """Return its key: every third message has one."""
    return b"k%d" % offset if offset % 3 == 0 else None


def attributes(offset: int) -> dict[str, str]:
    """Return its attributes: every fifth message has some."""
    return {"n": str(offset)} if offset % 5 == 0 else {}


class StoredTopic:
    """A topic's log on disk, and its objects in a store. Batch n is published at FIRST_MS + n s."""

    def __init__(
        self, path: Path, store: ObjectStore, name: str = "orders", incarnation: bytes = INCARNATION
    ) -> None:
        self.store, self.layout = store, Layout(name, incarnation)
        self.batches = 0
        self.wal = Wal.open(
            LocalDisk(),
            str(path / "log"),
            topic=name,
            incarnation=incarnation,
            settings=WalSettings(segment_bytes_max=1 << 20),
            clock=SystemClock(),
        )

    def write(self, counts: Iterable[int]) -> SegmentInfo:
        """Append batches of these sizes and seal them into a segment."""
        for count in counts:
            first = self.wal.next_offset
            offsets = range(first, first + count)
            payloads = [payload(offset) for offset in offsets]
            keys = column([key(offset) or b"" for offset in offsets])
            extra = column([encode_attributes(attributes(o)) if attributes(o) else b"" for o in offsets])
            self.wal.append(
                count=count,
                producer_id=7,
                sequence=first,
                columns=3,
                frames=[array("I", map(len, payloads)).tobytes(), b"".join(payloads), keys, extra],
                timestamp_ms=FIRST_MS + 1000 * self.batches,
            )
            self.batches += 1
        self.wal.seal()
        self.wal.commit()
        return self.wal.sealed()[-1]

    def upload(self, segment: SegmentInfo, epoch: int = 1, **changed: Any) -> str:
        """Upload a segment; `changed` metadata replaces the correct one. Returns the object's name."""
        name = self.layout.segment(segment.base, epoch)
        known = segment_metadata(segment, "test") | {each: str(value) for each, value in changed.items()}
        assert self.store.put_file_if_absent(name, segment.path, metadata=known)
        return name

    def begin(self, epoch: int, start: int) -> None:
        """Claim an epoch and record where it begins."""
        assert self.store.put_if_absent(self.layout.epoch(epoch), b"")
        assert self.store.put_if_absent(self.layout.begins(epoch, start), b"")

    def enter(self) -> None:
        """Enter the topic in the store's catalogue."""
        told: dict[str, Any] = {
            "name": self.layout.topic,
            "incarnation": self.layout.incarnation.hex(),
            "dispatch": "reliable",
            "durability": "fsync",
            "settings": {},
            "created_ms": FIRST_MS,
            "format": 1,
        }
        assert self.store.put_if_absent(self.layout.catalogue, json.dumps(told).encode())

    def close(self) -> None:
        """Close the log."""
        self.wal.close()


def store_a_topic(path: Path, store: ObjectStore, **given: Any) -> StoredTopic:
    """Return a topic of three segments, offsets 0 to 36, 36 to 50 and 50 to 61, all uploaded."""
    topic = StoredTopic(path, store, **given)
    topic.enter()
    topic.begin(1, 0)
    for counts in ((1, 20, 15), (14,), (1, 10)):
        topic.upload(topic.write(counts))
    return topic
