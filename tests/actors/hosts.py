"""Stand-ins for the tests of a subscription's parts: a host that records its calls, and a topic's log in memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from ister.actors.ledger import Held, Parcel
from ister.actors.loop import Call, Timer
from ister.actors.messages import AttachConsumer, Attached, Notice
from ister.actors.pieces import Piece, RelayedBatch
from ister.actors.runtime import Address, Ref, System
from ister.actors.selection import Member
from ister.actors.subscription.attaching import Attaching
from ister.actors.subscription.consumers import Consumers
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.log_parts import LogGiven
from ister.actors.subscription.parts import Delivery, Host, SubscriptionPart
from ister.actors.subscription.reading import MemoryJournal
from ister.errors import IsterError, RemoteError
from ister.settings import SubscriptionSettings
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.wholereader import TieredReader
from ister.wire import Column
from tests.raw_client import batch
from tests.stage import StagedClock, StagedLoop

ASKER = Address("worker-0", "asker")
T = TypeVar("T")


class Told(Ref):
    """An actor reference that records the messages sent to it."""

    def __init__(self, path: str = "told", node: str = "worker-0") -> None:
        self.address = Address(node, path)
        self.heard: list[Any] = []

    def tell(self, message: object) -> None:
        self.heard.append(message)

    def take(self, kind: type) -> list[Any]:
        """Return the messages of one type received so far, and forget them."""
        found = [each for each in self.heard if isinstance(each, kind)]
        self.heard = [each for each in self.heard if not isinstance(each, kind)]
        return found


class NotingConsumers(Consumers):
    """Consumers that record the messages sent to them; none of them exists."""

    def __init__(self, type_: str, name: str, wake: Callable[[], None]) -> None:
        super().__init__(type_, name, wake)
        self.notices: list[Notice] = []

    def notify(self, notice: Notice) -> None:
        self.notices.append(notice)
        super().notify(notice)


class StubHost:
    """A `Host` that decides nothing: it records what the parts ask of it."""

    def __init__(self, type_: str = "shared", *, start: str | int = "earliest", **topic: Any) -> None:
        self.time = StagedClock()
        self.clock: Any = self.time
        self.loop: Any = StagedLoop(self.time)
        self.system = System("worker-0", self.loop, None, self.clock, Random(1))
        self.path = "subscription/orders:s"
        self.topic = TopicMeta("orders", bytes(16), "reliable", "fsync", 1, topic)
        self.meta = SubscriptionMeta("orders", "s", type_, start, 1)
        self.me = Told(self.path)
        consumers = NotingConsumers(type_, "s", self.wake)
        self.consumers: Consumers = consumers
        self.notices = consumers.notices
        self.ack_timeout_ms = 30_000
        self.failure: IsterError | None = None
        self.is_ready = False
        self.may_deliver = True
        self.parts: list[SubscriptionPart] = []
        self.wakes = 0
        self.wake_times: list[float] = []
        self.delivered: list[Piece] = []
        self.evicted: list[str] = []
        self.answers: list[Any] = []
        self.ended = False
        self.delivery: Any = None

    @property
    def ref(self) -> Ref:
        return self.me

    @property
    def address(self) -> Address:
        return self.me.address

    def attach(self, key: int = 1, *, sparse: bool = True) -> Told:
        """Add a consumer with unlimited credit."""
        consumer = Told(f"consumer/{key}")
        member = self.consumers.attach(AttachConsumer(consumer, key, 0, 1 << 20, 1 << 30, sparse))
        self.consumers.elect()
        if self.delivery is not None:
            self.delivery.attached(member)
        return consumer

    def call_later(self, delay_s: float, call: Call) -> Timer:
        return cast(Timer, self.loop.call_later(delay_s, call))

    def call_soon(self, call: Call) -> None:
        self.loop.call_soon(call)

    def wake(self) -> None:
        self.wakes += 1

    def wake_at(self, due_s: float) -> None:
        self.wake_times.append(due_s)

    def take_turns(self) -> None:
        while (member := self.consumers.roster.choose()) is not None:
            piece = self.delivery.next_piece(member, member.messages)
            if piece is None:
                return
            self.deliver(member, piece)

    def deliver(self, member: Member, piece: Piece) -> None:
        self.consumers.roster.spend(member, piece.count, piece.bytes)
        self.delivered.append(piece)
        self.delivery.delivered(member, piece)

    def become_ready(self) -> None:
        self.is_ready, self.failure = True, None

    def become_unready(self) -> None:
        self.is_ready = False

    def become_failed(self, error: IsterError) -> None:
        self.failure = error

    def evict_all(self, code: str, text: str) -> None:
        self.evicted.append(code)
        self.become_failed(RemoteError(code, text))

    def opened(self) -> None:
        for part in self.parts:
            part.opened()

    def may_read(self) -> None:
        self.wake()
        for part in self.parts:
            part.may_read()

    def forget(self) -> None:
        for part in self.parts:
            part.forget()

    def stop_now(self) -> None:
        self.ended = True

    def answer(self, command: Any, body: Any) -> None:
        self.answers.append(body)

    def refuse(self, command: Any, error: IsterError) -> None:
        self.answers.append(error.code)


class StubQueue:
    """A `Queue` that queues nothing: it records what the parts tell it."""

    def __init__(self) -> None:
        self.settles: list[tuple[int, int]] = []
        self.back: list[tuple[Held, float]] = []
        self.holds: list[tuple[int, int]] = []
        self.first: list[tuple[int, int]] = []
        self.acknowledgments = 0
        self.due: Callable[[], None] = lambda: None

    def settled(self, first: int, end: int) -> None:
        self.settles.append((first, end))

    def settled_all(self, ranges: Sequence[tuple[int, int]], parcels: Sequence[Parcel] = ()) -> None:
        self.settles.extend(ranges)

    def acknowledged(self) -> None:
        self.acknowledgments += 1

    def again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        self.back.append((held, round(ready_at_s - now_s, 3)))

    def hold(self, first: int, end: int) -> None:
        self.holds.append((first, end))

    def first_time(self, first: int, end: int, now_s: float) -> None:
        self.first.append((first, end))

    def take_due(self) -> None:
        self.due()


class Stored(RelayedBatch):
    """A batch as a reader returns it."""

    @property
    def end_offset(self) -> int:
        return self.first_offset + self.count


class MemoryLog:
    """A topic's log in memory; reading an offset that is in `errors` raises that error."""

    def __init__(self, clock: StagedClock) -> None:
        self._clock = clock
        self.batches: list[Stored] = []
        self.end = 0
        self.errors: dict[int, Exception] = {}
        self.reads: list[int] = []
        self.maps = SimpleNamespace(copied_bytes=0, copied_too_much=False)

    def publish(
        self, *payloads: bytes, key: bytes = b"", deliver_at: Sequence[int] = (), at_ms: int | None = None
    ) -> None:
        """Append one batch."""
        columns, frames = 0, batch(payloads)
        if key:
            columns, frames = Column.KEYS, batch(payloads, [key] * len(payloads))
        if deliver_at:
            columns |= Column.DELIVER_AT
            frames = [*frames, struct.pack(f"<{len(payloads)}Q", *deliver_at)]
        when = self._clock.time_ms() if at_ms is None else at_ms
        made = RelayedBatch.of_frames(self.end, len(payloads), when, columns, frames)
        self.batches.append(Stored(*(getattr(made, name) for name in RelayedBatch.__slots__)))
        self.end += len(payloads)

    def reader(self, offset: int) -> TieredReader:
        """Return a reader that starts at an offset."""
        return cast(TieredReader, _Reader(self, offset))


class _Reader:
    def __init__(self, log: MemoryLog, offset: int) -> None:
        self._log, self.offset, self.maps = log, offset, log.maps
        self.start = self.stored_end = 0
        self.from_store = False

    def read(self, durable_end: int, size: int) -> list[Stored]:
        found: list[Stored] = []
        while self.offset < durable_end and len(found) < (1 if size == 1 else 100):
            error = self._log.errors.get(self.offset)
            if error is not None and not found:
                raise error
            if error is not None:
                break
            self._log.reads.append(self.offset)
            found.append(next(each for each in self._log.batches if self.offset < each.end_offset))
            self.offset = found[-1].end_offset
        return found

    def offset_at(
        self, timestamp_ms: int, start: int, durable_end: int, _headers_max: int | None = None
    ) -> int:
        for each in self._log.batches:
            if each.first_offset >= start and (error := self._log.errors.get(each.first_offset)) is not None:
                raise error
            if each.first_offset >= start and each.timestamp_ms >= timestamp_ms:
                return each.first_offset
        return durable_end

    def take_skipped(self) -> list[tuple[int, int]]:
        return []

    def seek(self, offset: int) -> None:
        self.offset = offset

    def brought(self, base: int) -> None:
        """Ignore it: messages brought back from the store are in this log at once."""

    def close(self) -> None:
        """Ignore it: there is no file to close."""


class Bench:
    """A host, a log, its journal and its log access: the setting of most tests of parts."""

    def __init__(self, type_: str = "shared", *, start: str | int = "earliest", **topic: Any) -> None:
        self.host = StubHost(type_, start=start, **topic)
        self.queue = StubQueue()
        self.log = MemoryLog(self.host.time)
        self.topic, self.directory = Told("topic/orders"), Told("directory", "broker")
        self.fetcher, self.uploader = Told("fetcher", "tier"), Told("uploader/orders", "tier")
        self.journal = CursorLog(
            self.host,
            self.queue,
            open_journal=lambda begin: MemoryJournal(begin()),
            erase=lambda: None,
            topic_ref=self.topic,
            uploader=self.uploader,
            flush_ms=100,
            sync_ms=1000,
            store_ms=60_000,
        )
        self.access = LogAccess(
            self.host,
            self.journal,
            topic_ref=self.topic,
            fetcher=self.fetcher,
            open_reader=self.log.reader,
        )
        self.attaching = Attaching(
            self.host, self.journal, self.access, topic_ref=self.topic, directory=self.directory
        )
        self.host.parts = [self.journal, self.access, self.attaching]

    def begin(self) -> None:
        """Open the journal at the first offset of the log, with the whole log durable."""
        self.journal.open(lambda: 0, lambda _journal: None)
        self.access.source.begin(0)
        self.access.source.advance(self.log.end)
        self.host.is_ready = True
        self.host.opened()


class Delivering(Bench):
    """A host, a log and a whole delivery with parts of its own."""

    def __init__(
        self, make: Callable[[Host, LogGiven], Delivery], type_: str = "shared", **given: Any
    ) -> None:
        super().__init__(type_, **given)
        parts = LogGiven(
            topic_ref=self.topic,
            directory=self.directory,
            fetcher=self.fetcher,
            uploader=self.uploader,
            open_journal=lambda begin: MemoryJournal(begin()),
            open_reader=self.log.reader,
            erase=lambda: None,
            flush_ms=100,
            sync_ms=1000,
            store_ms=60_000,
            undertaker=Told,
            defaults=SubscriptionSettings(),
        )
        self.host.delivery = self.delivery = make(self.host, parts)
        self.host.parts = list(self.delivery.parts)

    def part(self, kind: type[T]) -> T:
        """Return the delivery's part of one class."""
        return next(each for each in self.host.parts if isinstance(each, kind))

    def publish(self, *payloads: bytes, **given: Any) -> None:
        """Append one batch and make it durable."""
        self.log.publish(*payloads, **given)
        self.part(Attaching).on_attached(Attached(0, self.log.end))

    def hand_out(self) -> list[tuple[tuple[int, int], ...]]:
        """Dispatch once, and return the offset ranges that were delivered."""
        self.host.delivered.clear()
        self.delivery.hand_out()
        return [piece.parts for piece in self.host.delivered]
