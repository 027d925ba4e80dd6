"""Non-reliable topics: a batch is sent on in the turn in which it arrives, and not kept.

Runs in a worker process, one actor per topic.

Invariants
- nothing is written to disk, and nothing is kept beyond the turn in which it arrived
- a batch is sent once to each worker that has a subscription, whatever happens there
"""

from __future__ import annotations

from typing import Any

from ister.actors.messages import (
    Answer,
    Attach,
    Attached,
    CloseProducer,
    Delete,
    Describe,
    OpenProducer,
    Publish,
    Relayed,
)
from ister.actors.publishers import Publisher, expected_sequence, sequence_error
from ister.actors.runtime import System, receives
from ister.actors.topic import Topic
from ister.errors import RemoteError
from ister.storage.meta import TopicMeta
from ister.storage.producers import Duplicate, Fresh, Gap, ProducerTable
from ister.transport.gateway import Gateway
from ister.transport.session import Handle
from ister.wire import OFFSET_UNKNOWN, encode_result


class NonReliableTopic(Topic):
    """A topic in memory: batches go to one relay per worker, in the turn in which they arrive, and are not kept.

    Offsets are running numbers since the actor started, so that a consumer can see a gap; they are not stored.
    """

    def __init__(self, system: System, path: str, meta: TopicMeta, gateway: Gateway) -> None:
        super().__init__(system, path, meta, gateway)
        self._next_offset = 0
        self._producers = ProducerTable()
        self._producers.connected = self.publishers.handles
        self._receipts: dict[Handle, list[int]] = {}
        self._heads: list[int] = []
        self._frames: list[Any] = []
        self._scheduled = False

    @receives(OpenProducer)
    def on_open_producer(self, command: OpenProducer) -> None:
        """Let a handle publish."""
        try:
            expected = expected_sequence(self._producers, command, self.clock.time_ms())
        except RemoteError as error:
            self.publishers.refuse_open(command, error)
            return
        self.publishers.open(command, expected)

    def producer_closed(self, producer_id: int) -> None:
        """Forget a producer that has all its receipts and closed."""
        self._producers.close(producer_id)

    @receives(Publish)
    def on_publish(self, publish: Publish) -> None:
        """Queue a batch for the end of this turn, together with all others of the turn."""
        handle, sequence, count = publish.handle, publish.sequence, publish.count
        publisher = handle.target
        if not isinstance(publisher, Publisher):
            return
        verdict = self._producers.check(publisher.producer_id, sequence, count)
        if isinstance(verdict, Duplicate):
            offset = OFFSET_UNKNOWN if verdict.first_offset is None else verdict.first_offset
        elif isinstance(verdict, Fresh | Gap):  # a batch that was lost is not waited for
            offset = self._next_offset
            now_ms = self.intake.last_ms = self.clock.time_ms()
            self._producers.advance(publisher.producer_id, sequence, count, offset, now_ms)
            self._next_offset += count
            self._heads += (offset, count, now_ms, publish.columns)
            self._frames += publish.frames
            self.intake.messages += count
            self.intake.bytes += len(publish.frames[1])
        else:
            self.publishers.refuse(handle, sequence, sequence_error(verdict, publish))
            return
        pairs = self._receipts.setdefault(handle, [])
        pairs.append(sequence)
        pairs.append(offset)
        if not self._scheduled:
            self._scheduled = True
            self.at_turn_end(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._heads:
            relayed = Relayed(self._heads, tuple(self._frames))
            self._heads, self._frames = [], []
            self.watchers.tell(relayed)
        receipts, self._receipts = self._receipts, {}
        self.publishers.receipt(receipts)

    @receives(CloseProducer)
    def on_close_producer(self, command: CloseProducer) -> None:
        """Close a handle after the receipts of what it sent."""
        self._flush()
        self.publishers.closed(command)

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Send a relay all later batches; one that attaches again was sent the earlier ones already."""
        self._flush()
        self.watchers.add(command.watcher).tell(Attached(self._next_offset, self._next_offset))

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe the topic."""
        body = self.description() | {"next_offset": self._next_offset, "relays": len(self.watchers.refs)}
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Refuse everything from now on."""
        self.leave_deleted()
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.system.stop_actor(self.path)
