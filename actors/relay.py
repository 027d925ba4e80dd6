"""Relays: one per worker and non-reliable topic, so that a batch is sent to each worker once.

Runs in every worker with such a subscription, the topic's own included.

Invariants
- a batch reaches every subscription attached here once; nothing is kept
- a subscription is told `Attached` once the topic sends to this relay: it gets everything from that offset on
"""

from __future__ import annotations

from typing import Final

from ister.actors.asking import Asking
from ister.actors.messages import Attach, Attached, Batches, Detach, NodeStarted, Relayed, TopicFailed
from ister.actors.pieces import Batch, RelayedBatch
from ister.actors.runtime import Address, LoopActor, Ref, System, Timer, receives
from ister.errors import CODES
from ister.storage.meta import TopicMeta

ATTACH_RETRY_S: Final = 1.0  # seconds; after the topic failed


class Relay(LoopActor):
    """Passes on the batches of its topic; stops when its last subscription has left."""

    def __init__(self, system: System, path: str, meta: TopicMeta, topic: Ref) -> None:
        super().__init__(system, path)
        self._meta = meta
        self._topic = topic
        self._subscriptions: dict[Address, Ref] = {}
        self._next: int | None = None  # the next offset; None while the topic has not answered
        self._asking = Asking()  # the question to the topic
        self._attach_timer: Timer | None = None

    @receives(Attach)
    def on_attach(self, command: Attach) -> None:
        """Pass batches on to a subscription of this worker from now on."""
        subscription = self._subscriptions[command.watcher] = self.system.at(command.watcher)
        if self._next is not None:
            subscription.tell(Attached(self._next, self._next))
        elif len(self._subscriptions) == 1:
            self._attach_anew()

    def _attach(self) -> None:
        """Attach to the topic, periodically: mail can be lost, and no other message would tell."""
        if self._subscriptions:
            self._topic.tell(Attach(self.address, self._meta))
            self._attach_in(self._asking.asked())

    def _attach_in(self, seconds: float) -> None:
        if self._attach_timer is not None:
            self._attach_timer.cancel()
        self._attach_timer = self.call_later(seconds, self._attach)

    def _attach_anew(self) -> None:
        self._next = None
        self._attach()

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Pass nothing on to a subscription any more."""
        if self._subscriptions.pop(command.watcher, None) is None or self._subscriptions:
            return
        self._next = None
        self._topic.tell(Detach(self.address))
        if not len(self.inbox):  # no subscription has attached again meanwhile
            self.stop_now()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Attach again if the topic's process was restarted: it does not know this relay."""
        if started.node == self._topic.address.node:
            self._attach_anew()

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """Attach again to a topic that is restarted; pass on that it was deleted."""
        if failed.code == "topic-deleted":
            for subscription in self._subscriptions.values():
                subscription.tell(failed)
        elif CODES.get(failed.code) == "retry":
            self._next = None
            self._asking.answered()
            self._attach_in(ATTACH_RETRY_S)

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Note from which offset the topic sends; what was lost before shows in the next batch."""
        self._attach_in(self._asking.answered())
        if self._next is None or attached.durable_end < self._next:
            self._begin(attached.durable_end)

    def _begin(self, offset: int) -> None:
        self._next = offset
        for subscription in self._subscriptions.values():
            subscription.tell(Attached(offset, offset))

    @receives(Relayed)
    def on_relayed(self, relayed: Relayed) -> None:
        """Pass batches on to the subscriptions."""
        batches: list[Batch] = []
        heads, frames, at = relayed.heads, relayed.frames, 0
        if self._next is None:  # the answer to the attachment was lost
            self._begin(heads[0])
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
