"""Topics: one owner of one order. What both kinds share: who publishes, who watches, and what came in.

Runs in a worker process, one actor a topic.

Invariants
- offsets are assigned by the topic and nowhere else, dense and in the order of arrival
- work is per batch; what can be shared by the batches of a turn (commit, receipts, notices) is
- settings reach those who watch
"""

from __future__ import annotations

from typing import Any

from ister.actors.messages import Detach, NodeStarted, NodeStopped, TopicFailed, TopicUpdated
from ister.actors.publishers import Publishers
from ister.actors.runtime import Address, LoopActor, Ref, System, receives
from ister.errors import RemoteError
from ister.storage.catalogue import TopicMeta
from ister.transport.gateway import Gateway


class Intake:
    """What came in since a topic's actor started."""

    __slots__ = ("bytes", "last_ms", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.last_ms: int | None = None  # None: nothing came


class Watchers:
    """Who is told what becomes of a topic: subscriptions, or the relays of other workers."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.refs: dict[Address, Ref] = {}

    def add(self, address: Address) -> Ref:
        """Tell somebody, from now on."""
        watcher = self.refs[address] = self._system.at(address)
        return watcher

    def remove(self, address: Address) -> None:
        """Tell somebody nothing more."""
        self.refs.pop(address, None)

    def node_stopped(self, node: str) -> None:
        """Forget those of a process that is gone."""
        self.refs = {a: ref for a, ref in self.refs.items() if a.node != node}

    def tell(self, message: object) -> None:
        """Tell all of them."""
        for watcher in self.refs.values():
            watcher.tell(message)


class Topic(LoopActor):
    """What both kinds share: the producers that are open, and who watches."""

    def __init__(self, system: System, path: str, meta: TopicMeta, gateway: Gateway) -> None:
        super().__init__(system, path)
        self.meta = meta
        self.intake = Intake()
        self.publishers = Publishers(self.ref, meta, gateway, on_closed=self.producer_closed)
        self.watchers = Watchers(system)

    def producer_closed(self, producer_id: int) -> None:
        """A producer has all its receipts, and closed."""

    def take_settings(self, meta: TopicMeta) -> None:
        """Go by other settings, and let those who watch go by them too."""
        self.meta = meta
        self.watchers.tell(TopicUpdated(meta))

    def on_failure(self, *_error: object) -> None:
        """Send the producers away and tell the watchers: they open and attach again, and find a new actor."""
        text = f"topic {self.meta.name!r} failed and is started again"
        self.publishers.send_away(RemoteError("unavailable", f"{text}: open it again"))
        self.watchers.tell(TopicFailed("unavailable", text))

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Forget a watcher."""
        self.watchers.remove(command.watcher)

    @receives(NodeStopped)
    def on_node_stopped(self, stopped: NodeStopped) -> None:
        """Forget the watchers of a process that is gone; those of its next self attach again."""
        self.watchers.node_stopped(stopped.node)

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Nothing to tell a process that was started again."""

    def leave_deleted(self) -> RemoteError:
        """Say to whoever watches or publishes that there is nothing more to come; return the error."""
        error = RemoteError("topic-deleted", f"topic {self.meta.name!r} was deleted")
        self.watchers.tell(TopicFailed(error.code, error.text))
        self.publishers.send_away(error)
        return error

    def description(self) -> dict[str, Any]:
        """Return what both kinds say of themselves."""
        return {
            "topic": self.meta.name,
            "strategy": self.meta.dispatch,
            "producers": len(self.publishers.handles),
            "messages_in": self.intake.messages,
            "bytes_in": self.intake.bytes,
            "last_published_ms": self.intake.last_ms,
        }
