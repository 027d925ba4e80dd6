"""Topics: what both kinds share, which is their producers, their watchers, and counts of what was published.

Runs in a worker process, one actor per topic.

Invariants
- offsets are assigned only by the topic, without gaps and in the order of arrival
- work is per batch; commits, receipts and notices are shared by the batches of a turn where possible
- changed settings reach the watchers
"""

from __future__ import annotations

from typing import Any

from ister.actors.messages import Detach, NodeStarted, NodeStopped, TopicFailed, TopicUpdated
from ister.actors.publishers import Publishers
from ister.actors.runtime import Address, LoopActor, Ref, System, receives
from ister.errors import RemoteError
from ister.storage.meta import TopicMeta
from ister.transport.gateway import Gateway


class Intake:
    """What was published since a topic's actor started."""

    __slots__ = ("bytes", "last_ms", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.last_ms: int | None = None  # unix ms; None: nothing was published


class Watchers:
    """The watchers of a topic: its subscriptions, or the relays of workers."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.refs: dict[Address, Ref] = {}

    def add(self, address: Address) -> Ref:
        """Add a watcher."""
        watcher = self.refs[address] = self._system.at(address)
        return watcher

    def remove(self, address: Address) -> None:
        """Remove a watcher."""
        self.refs.pop(address, None)

    def node_stopped(self, node: str) -> None:
        """Remove the watchers of a process that is gone."""
        self.refs = {a: ref for a, ref in self.refs.items() if a.node != node}

    def tell(self, message: object) -> None:
        """Send a message to all watchers."""
        for watcher in self.refs.values():
            watcher.tell(message)


class Topic(LoopActor):
    """What both kinds of topics share: open producers and watchers."""

    def __init__(
        self, system: System, path: str, meta: TopicMeta, gateway: Gateway, *, window_bytes_max: int = 0
    ) -> None:
        super().__init__(system, path)
        self.meta = meta
        self.intake = Intake()
        self.publishers = Publishers(
            self.ref, meta, gateway, on_closed=self.producer_closed, window_bytes_max=window_bytes_max
        )
        self.watchers = Watchers(system)

    def producer_closed(self, producer_id: int) -> None:
        """Forget a producer that has all its receipts and closed."""

    def take_settings(self, meta: TopicMeta) -> None:
        """Apply other settings, and tell the watchers."""
        self.meta = meta
        self.watchers.tell(TopicUpdated(meta))

    def on_failure(self, *_error: object) -> None:
        """Send the producers away and tell the watchers: they open and attach again, and find a new actor."""
        text = f"topic {self.meta.name!r} failed and is started again"
        self.publishers.send_away(RemoteError("unavailable", f"{text}: open it again"))
        self.watchers.tell(TopicFailed("unavailable", text))

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Remove a watcher."""
        self.watchers.remove(command.watcher)

    @receives(NodeStopped)
    def on_node_stopped(self, stopped: NodeStopped) -> None:
        """Remove the watchers of a process that is gone; after a restart they attach again."""
        self.watchers.node_stopped(stopped.node)

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Do nothing: a restarted process needs nothing from this kind of topic."""

    def leave_deleted(self) -> RemoteError:
        """Tell watchers and producers that the topic was deleted; return the error they get."""
        error = RemoteError("topic-deleted", f"topic {self.meta.name!r} was deleted")
        self.watchers.tell(TopicFailed(error.code, error.text))
        self.publishers.send_away(error)
        return error

    def description(self) -> dict[str, Any]:
        """Return the entries of `show` that both kinds have."""
        return {
            "topic": self.meta.name,
            "strategy": self.meta.dispatch,
            "producers": len(self.publishers.handles),
            "messages_in": self.intake.messages,
            "bytes_in": self.intake.bytes,
            "last_published_ms": self.intake.last_ms,
        }
