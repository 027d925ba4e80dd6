"""Relays: one a worker and non-reliable topic, so that a batch crosses to each worker once.

Runs in every worker with such a subscription, the topic's own included.

Invariants
- a batch reaches every subscription attached here once; nothing is kept
- a subscription is told `Attached` once the topic sends to this relay: from that offset on it gets everything
"""

from __future__ import annotations

from typing import Final

from actors.messages import Attach, Attached, Batches, Detach, NodeStarted, Relayed, TopicFailed
from actors.pieces import Batch, RelayedBatch
from actors.runtime import Address, LoopActor, Ref, System, receives
from ister.errors import CODES
from storage.catalogue import TopicMeta

ATTACH_RETRY_S: Final = 1.0  # after the topic failed


class Relay(LoopActor):
    """Passes on what its topic sends; stops when its last subscription has left."""

    def __init__(self, system: System, path: str, meta: TopicMeta, topic: Ref) -> None:
        super().__init__(system, path)
        self._meta = meta
        self._topic = topic
        self._subscriptions: dict[Address, Ref] = {}
        self._next: int | None = None  # the offset that comes next; None while the topic has not answered

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Pass on to a subscription of this worker, from now on."""
        subscription = self._subscriptions[command.watcher] = self.system.at(command.watcher)
        if self._next is not None:
            subscription.tell(Attached(self._next, self._next))
        elif len(self._subscriptions) == 1:
            self._attach()

    def _attach(self) -> None:
        self._next = None
        if self._subscriptions:
            self._topic.tell(Attach(self.address, self._meta))

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Pass nothing on to this one any more."""
        if self._subscriptions.pop(command.watcher, None) is None or self._subscriptions:
            return
        self._next = None
        self._topic.tell(Detach(self.address))
        if not len(self.inbox):  # nobody has asked for it again meanwhile
            self.stop_now()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Attach again where it was the topic's process: it knows of no watcher."""
        if started.node == self._topic.address.node:
            self._attach()

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """Attach again to a topic that is started again; pass on that it was deleted."""
        if failed.code == "topic-deleted":
            for subscription in self._subscriptions.values():
                subscription.tell(failed)
        elif CODES.get(failed.code) == "retry":
            self._next = None
            self.call_later(ATTACH_RETRY_S, self._attach)

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """The topic sends to us from here on, perhaps anew."""
        self._next = attached.durable_end
        for subscription in self._subscriptions.values():
            subscription.tell(attached)

    @receives(Relayed)
    def on_relayed(self, relayed: Relayed) -> None:
        """Pass batches on."""
        batches: list[Batch] = []
        heads, frames, at = relayed.heads, relayed.frames, 0
        for first, count, timestamp_ms, columns in zip(*(iter(heads),) * 4, strict=True):
            width = 2 + columns.bit_count()
            batches.append(
                RelayedBatch.of_frames(first, count, timestamp_ms, columns, frames[at : at + width])
            )
            at += width
            self._next = first + count
        command = Batches(batches)
        for subscription in self._subscriptions.values():
            subscription.tell(command)
