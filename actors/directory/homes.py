"""Homes: where topics and subscriptions run, which processes are up, and how they are reached.

Part of the Directory, in the broker process. It owns the list of processes that are up, and sends mail.

Invariants
- where something runs follows from its name and the number of workers alone (`actors/placement.py`)
- no mail is sent to a process that is down: what needs it raises NotYetError, and waits (`actors/patience.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ister.actors.addresses import FRONTEND_PATH, TIER, actor_path, node_of
from ister.actors.messages import Describe, SubscriptionTask, TopicTask
from ister.actors.patience import NotYetError
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.actors.runtime import Address, Ref, System
from ister.storage.meta import SubscriptionMeta, TopicMeta


class Home(NamedTuple):
    """Where something runs: the worker's node name, and the endpoint that clients are told."""

    node: str
    endpoint: str


class Homes:
    """The workers and the tier. `address` is the Directory's; `endpoints` are the workers' addresses for clients."""

    def __init__(self, system: System, address: Address, endpoints: Sequence[str]) -> None:
        self._system = system
        self._address = address
        self._homes = [Home(node_of(number), endpoint) for number, endpoint in enumerate(endpoints)]
        self._up: set[str] = set()

    # ---- which processes are up ---------------------------------------------------------------------------------

    def came(self, node: str) -> None:
        """Note that a process is up."""
        self._up.add(node)

    def went(self, node: str) -> None:
        """Note that a process is down."""
        self._up.discard(node)

    def is_up(self, *nodes: str) -> bool:
        """Say whether all these processes are up."""
        return self._up.issuperset(nodes)

    def up(self) -> list[str]:
        """Return the processes that are up, by name."""
        return sorted(self._up)

    def need(self, node: str) -> None:
        """Raise NotYetError if a process is down; called before anything is changed that needs it."""
        if node not in self._up:
            raise NotYetError(f"{node} is being restarted; try again")

    # ---- which worker a name lives on ---------------------------------------------------------------------------

    def of_topic(self, topic: str) -> Home:
        """Return where a topic runs."""
        return self._homes[worker_of(topic_key(topic), len(self._homes))]

    def of_subscription(self, topic: str, subscription: str) -> Home:
        """Return where a subscription runs."""
        return self._homes[worker_of(subscription_key(topic, subscription), len(self._homes))]

    # ---- mail to them -------------------------------------------------------------------------------------------

    def have_topic_do(
        self,
        task: Literal["describe", "update", "verify", "repair", "ask-fenced", "delete"],
        topic: TopicMeta,
        ticket: int,
        number: int | None = None,
    ) -> None:
        """Send a topic a task, which it answers with the ticket. Raises NotYetError."""
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
        """Send a subscription a task, which it answers with the ticket. Raises NotYetError."""
        frontend = self._frontend(self.of_subscription(topic.name, subscription.name).node)
        topic_node = self.of_topic(topic.name).node
        frontend.tell(
            SubscriptionTask(task, topic, subscription, topic_node, self._address, ticket, argument)
        )

    def have_described(self, node: str, ticket: int) -> None:
        """Ask an actor of a process to describe itself. Raises NotYetError."""
        self._frontend(node).tell(Describe(self._address, ticket))

    def at(self, address: Address) -> Ref:
        """Return a reference to the actor at an address."""
        return self._system.at(address)

    def at_tier(self, path: str) -> Ref | None:
        """Return a reference to an actor of the tier, or None while the tier is down."""
        return self._system.ref(TIER, path) if TIER in self._up else None

    def uploader(self, topic: TopicMeta) -> Ref | None:
        """Return a reference to a topic's Uploader, or None while the tier is down."""
        return self.at_tier(actor_path("uploader", topic))

    def _frontend(self, node: str) -> Ref:
        self.need(node)
        return self._system.ref(node, FRONTEND_PATH)
