"""Reading topics straight from a store, without a broker.

import ister.store

for topic in ister.store.topics("gs://bucket/prefix"): print(topic.name) for message in
ister.store.read("gs://bucket/prefix", "orders"): print(message.offset, message.key, message.attributes,
message.timestamp, message.payload)

A store is `file:///folder` or `gs://bucket/prefix`, as for `ister serve --store`. Only the right to list and to get
objects is needed; nothing is written. A broker seals and uploads a segment when it is full or old enough, so the newest
messages may be in the broker's own log only.

The broker's storage package is imported when a function here is called, never by `import ister`. What it needs comes
with an extra: `ister[gcs]` for a bucket, `ister[broker]` for a folder.

Invariants
- messages come in the order of offsets, each exactly once: a missing offset is an error, and never skipped
- the checksums of a record are checked before its messages are handed out
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from ister import wire
from ister.errors import UsageError
from ister.extras import need_for_store
from ister.message import Batch, Delivery, Message

if TYPE_CHECKING:
    from ister.storage.history import History
    from ister.storage.objectstore import ObjectStore
    from ister.storage.replay import Part, Replay
    from ister.storage.stored_topics import StoredTopic
    from ister.storage.verify_store import StoreReport

PREFETCH: Final = 2


def topics(url: str) -> list[StoredTopic]:
    """Return the topics of a store, by name: `name`, `incarnation`, `dispatch`, `durability`, `created_ms`.

    Raises UsageError for an invalid address, StoreError.
    """
    need_for_store(url, "`ister.store`")
    from ister.storage.stored_topics import list_topics

    with _opened(url) as store:
        return list_topics(store)


def history(url: str, topic: str, *, incarnation: str | None = None) -> History:
    """Return which offsets of a topic a store has, and in which objects.

    `incarnation` (hexadecimal) chooses among topics of the same name. Raises UsageError, StoreError.
    """
    need_for_store(url, "`ister.store`")
    from ister.storage.listing import read_history

    with _opened(url) as store:
        return read_history(store, _find(store, topic, incarnation).layout)


class Reader:
    """A topic's history in a store, as it was when this was created; a context manager that closes the store."""

    def __init__(
        self, url: str, topic: str, *, incarnation: str | None = None, prefetch: int = PREFETCH
    ) -> None:
        """List the topic's objects. Raises UsageError `unknown-topic`, StoreError."""
        need_for_store(url, "`ister.store`")
        from ister.storage.addresses import open_store
        from ister.storage.replay import Replay

        self.topic = topic
        self._store = open_store(url, create=False)
        try:
            self._replay: Replay = Replay(
                self._store, _find(self._store, topic, incarnation).layout, prefetch=prefetch
            )
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; may be called again."""
        self._store.close()

    @property
    def history(self) -> History:
        """The offsets in the store ([`start`, `end`)), and the objects that have them."""
        return self._replay.history

    def seek(self, from_offset: int = 0, *, from_time_ms: int | None = None) -> int:
        """Return the first offset that reading from there yields; 0 is the beginning of what is kept.

        Raises TrimmedError, UsageError `offset-out-of-range`, StoreError.
        """
        if from_offset < 0:
            raise UsageError(f"offset {from_offset} is below 0", code="offset-out-of-range")
        start = self._replay.check(from_offset)
        return start if from_time_ms is None else max(start, self._replay.offset_at(from_time_ms))

    def batches(self, offset: int) -> Generator[Batch]:
        """Yield the batches from `offset` on, as they were published.

        Raises GapError, TrimmedError, DamagedError, StoreError.
        """
        parts = self._replay.read(offset)
        try:
            for part in parts:
                yield _batch(self.topic, part)
        finally:
            parts.close()


def read(
    url: str,
    topic: str,
    from_offset: int = 0,
    *,
    from_time_ms: int | None = None,
    incarnation: str | None = None,
    prefetch: int = PREFETCH,
) -> Generator[Message]:
    """Yield a topic's messages from a store, in order, up to the last one that was uploaded when it was listed.

    Messages have `payload`, `offset`, `key`, `attributes` and `timestamp` (unix milliseconds). `from_offset` 0 is the
    first offset that is kept. `from_time_ms` starts at the first message that the broker received at that time or
    later, if that is after `from_offset`. `prefetch` segments of up to 8 MiB are fetched ahead; with the one being
    read they bound the memory. The store is listed when the first message is requested. Close the generator, or read
    it to its end, to close the store.

    Raises UsageError `unknown-topic` or `offset-out-of-range`, TrimmedError for an offset below what is kept, GapError
    where offsets are missing, DamagedError for bytes with a wrong checksum, StoreError.
    """
    batches = read_batches(
        url, topic, from_offset, from_time_ms=from_time_ms, incarnation=incarnation, prefetch=prefetch
    )
    try:
        for batch in batches:
            yield from batch
    finally:
        batches.close()


def read_batches(
    url: str,
    topic: str,
    from_offset: int = 0,
    *,
    from_time_ms: int | None = None,
    incarnation: str | None = None,
    prefetch: int = PREFETCH,
) -> Generator[Batch]:
    """Like `read`, but yield the batches as they were published: `batch.payloads` is the fastest way to read."""
    with Reader(url, topic, incarnation=incarnation, prefetch=prefetch) as reader:
        batches = reader.batches(reader.seek(from_offset, from_time_ms=from_time_ms))
        try:
            yield from batches
        finally:
            batches.close()


def verify(
    url: str, topic: str, *, incarnation: str | None = None, progress: Callable[[int], object] | None = None
) -> StoreReport:
    """Check every byte of a topic's history in a store; `report.sound` says whether all is well.

    `progress` is called with the bytes checked so far. Raises UsageError, StoreError if the store fails.
    """
    need_for_store(url, "`ister.store`")
    from ister.storage.verify_store import verify_history

    with _opened(url) as store:
        return verify_history(store, _find(store, topic, incarnation).layout, progress=progress)


@contextmanager
def _opened(url: str) -> Iterator[ObjectStore]:
    from ister.storage.addresses import open_store

    store = open_store(url, create=False)
    try:
        yield store
    finally:
        store.close()


def _find(store: ObjectStore, topic: str, incarnation: str | None) -> StoredTopic:
    from ister.storage.stored_topics import find_topic

    try:
        chosen = None if incarnation is None else bytes.fromhex(incarnation)
    except ValueError:
        raise UsageError(f"{incarnation!r} is not the hexadecimal name of an incarnation") from None
    return find_topic(store, topic, chosen)


def _batch(topic: str, part: Part) -> Batch:
    record = part.record
    header = {
        wire.Key.OFFSET: record.first_offset,
        wire.Key.COUNT: record.count,
        wire.Key.COLUMNS: record.columns,
        wire.Key.TIMESTAMPS: [record.count, record.timestamp_ms],
    }
    delivery = Delivery(None, topic, 0, header, [bytes(frame) for frame in record.frames()])
    return Batch(delivery, part.first - record.first_offset, part.end - record.first_offset)
