"""Homes: where topics and subscriptions live, which processes are up, and how these are spoken to.

Part of the Directory, in the broker process. Owns the list of the processes that are up. May touch the mail.

Invariants
- where something lives follows from its name and the number of workers alone (`actors/placement.py`)
- a process that is not up is told nothing: what needs it raises NotYetError, and waits (`actors/patience.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ister.actors.addresses import FRONTEND_PATH, TIER, actor_path, node_of
from ister.actors.messages import Describe, SubscriptionTask, TopicTask
from ister.actors.patience import NotYetError
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.actors.runtime import Address, Ref, System
from ister.storage.catalogue import SubscriptionMeta, TopicMeta


class Home(NamedTuple):
    """Where something lives: the worker's process, and the endpoint that clients are told."""

    node: str
    endpoint: str


class Homes:
    """The workers and the tier, as the Directory at `address` sees them; `endpoints` are the workers' addresses."""

    def __init__(self, system: System, address: Address, endpoints: Sequence[str]) -> None:
        self._system = system
        self._address = address
        self._homes = [Home(node_of(number), endpoint) for number, endpoint in enumerate(endpoints)]
        self._up: set[str] = set()

    # ---- who is there -------------------------------------------------------------------------------------------

    def came(self, node: str) -> None:
        """Note that a process is up."""
        self._up.add(node)

    def went(self, node: str) -> None:
        """Note that a process is gone."""
        self._up.discard(node)

    def is_up(self, *nodes: str) -> bool:
        """Say whether all these processes are up."""
        return self._up.issuperset(nodes)

    def up(self) -> list[str]:
        """Return the processes that are up, by name."""
        return sorted(self._up)

    def need(self, node: str) -> None:
        """Raise NotYetError where a process is not up: before anything is changed that needs it."""
        if node not in self._up:
            raise NotYetError(f"{node} is being restarted; try again")

    # ---- who lives where ----------------------------------------------------------------------------------------

    def of_topic(self, topic: str) -> Home:
        """Return where a topic lives."""
        return self._homes[worker_of(topic_key(topic), len(self._homes))]

    def of_subscription(self, topic: str, subscription: str) -> Home:
        """Return where a subscription lives."""
        return self._homes[worker_of(subscription_key(topic, subscription), len(self._homes))]

    # ---- what they are told -------------------------------------------------------------------------------------

    def have_topic_do(
        self,
        task: Literal["describe", "update", "verify", "repair", "ask-fenced", "delete"],
        topic: TopicMeta,
        ticket: int,
        number: int | None = None,
    ) -> None:
        """Hand a task to a topic, which answers with the ticket. Raises NotYetError."""
        frontend = self._frontend(self.of_topic(topic.name).node)
        frontend.tell(TopicTask(task, topic, self._address, ticket, number))

    def have_subscription_do(
        self,
        task: Literal["start", "describe", "delete", "update", "seek", "unblock", "explain"],
        topic: TopicMeta,
        subscription: SubscriptionMeta,
        ticket: int,
        argument: str = "",
    ) -> None:
        """Hand a task to a subscription, which answers with the ticket. Raises NotYetError."""
        frontend = self._frontend(self.of_subscription(topic.name, subscription.name).node)
        topic_node = self.of_topic(topic.name).node
        frontend.tell(
            SubscriptionTask(task, topic, subscription, topic_node, self._address, ticket, argument)
        )

    def have_described(self, node: str, ticket: int) -> None:
        """Have a process describe itself. Raises NotYetError."""
        self._frontend(node).tell(Describe(self._address, ticket))

    def at(self, address: Address) -> Ref:
        """Return the actor at an address."""
        return self._system.at(address)

    def at_tier(self, path: str) -> Ref | None:
        """Return an actor of the tier, None while that is not up."""
        return self._system.ref(TIER, path) if TIER in self._up else None

    def uploader(self, topic: TopicMeta) -> Ref | None:
        """Return a topic's Uploader, None while the tier is not up."""
        return self.at_tier(actor_path("uploader", topic))

    def _frontend(self, node: str) -> Ref:
        self.need(node)
        return self._system.ref(node, FRONTEND_PATH)
