"""Relays: one a worker and non-reliable topic, so that a batch crosses to each worker once.

Runs in every worker with such a subscription, the topic's own included.

Invariants
- a batch reaches every subscription attached here once; nothing is kept
"""

from __future__ import annotations

from actors.messages import Attach, Attached, Batches, Detach, NodeStarted, Relayed
from actors.pieces import Batch, RelayedBatch
from actors.runtime import Address, LoopActor, Ref, System, receives
from storage.catalogue import TopicMeta


class Relay(LoopActor):
    """Passes on what its topic sends; stops when its last subscription has left."""

    def __init__(self, system: System, path: str, meta: TopicMeta, topic: Ref) -> None:
        super().__init__(system, path)
        self._meta = meta
        self._topic = topic
        self._subscriptions: dict[Address, Ref] = {}

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Pass on to a subscription of this worker, from now on."""
        if not self._subscriptions:
            self._topic.tell(Attach(self.address, self._meta))
        self._subscriptions[command.watcher] = self.system.at(command.watcher)

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Pass nothing on to this one any more."""
        if self._subscriptions.pop(command.watcher, None) is not None and not self._subscriptions:
            self._topic.tell(Detach(self.address))

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Attach again where it was the topic's process: it knows of no watcher."""
        if started.node == self._topic.address.node and self._subscriptions:
            self._topic.tell(Attach(self.address, self._meta))

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """The topic began anew."""
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
        command = Batches(batches)
        for subscription in self._subscriptions.values():
            subscription.tell(command)
