"""Topics that are deleted and created again under the same name, while their producers and consumers continue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ister.outstanding import Request
from ister.storage.layout import encode_topic
from tests.sim.broker import Machine
from tests.sim.model import PatternModel, TopicModel
from tests.sim.plans import FOLDER, RemadePlan
from tests.sim.programs import Consuming, Producing, Program

if TYPE_CHECKING:
    from tests.sim.world import World

# seconds within which a deleted topic must be gone from the store: its deletion is requested again every 30 s
ERASED_S = 120.0
DONE = {
    "topic.create": "topic-exists",
    "topic.delete": "unknown-topic",
}  # what a request that is sent twice may be answered


def set_up(world: World, plan: RemadePlan, pattern: PatternModel | None) -> None:
    """Let the topic be created, deleted and created again at its times, with its programs; `pattern` may match it."""
    remaking = Remaking(world, "a", plan, pattern if plan.name.startswith(FOLDER) else None)
    world.operators.append(remaking)
    for ways, messages in plan.producers:
        world.programs.append(Producing(world, "a", remaking.topic, ways, messages))
    subscription = world.oracle.subscriptions["a", plan.name, "s"]
    for consumer_ways in plan.consumers:
        world.programs.append(Consuming(world, "a", subscription, consumer_ways, settings=plan.options))


class Remaking(Program):
    """Creates a topic, deletes it, and creates it again."""

    def __init__(self, world: World, machine: str, plan: RemadePlan, pattern: PatternModel | None) -> None:
        self.plan, self.pattern = plan, pattern
        self.left = list(plan.times)
        self.asked: Request | None = None
        self.generation = -1
        self.done = False
        self.machine = machine
        self.world = world
        self._announce()
        self.topic = world.oracle.topics[plan.name]
        super().__init__(world, machine)

    def _announce(self) -> None:
        """Tell the oracle that there will be a topic, another one than before."""
        self.generation += 1
        plan, oracle = self.plan, self.world.oracle
        topic = TopicModel(plan.name, "reliable", plan.durability, generation=self.generation)
        topic.created_s = self.world.clock.now_s
        oracle.make_anew(topic)
        if self.pattern is not None:
            oracle.follow(self.machine, self.pattern, topic)
        oracle.add_subscription(self.machine, plan.name, "s", plan.kind, plan.options).by_consumers = True

    def open(self) -> None:
        self.later(0.0, self.create)

    def create(self) -> None:
        """Create the topic."""
        plan = self.plan
        self.ask(
            Request(
                "topic.create", {"topic": plan.name, "dispatch": "reliable", "durability": plan.durability}
            )
        )

    def delete(self) -> None:
        """Delete it."""
        self.ask(Request("topic.delete", {"topic": self.plan.name}))

    def ask(self, request: Request) -> None:
        """Send one request."""
        assert self.client is not None
        self.asked = request
        self.world.counts[f"operator {request.operation}"] += 1
        self.client.send_request(request)

    def on_progress(self) -> None:
        asked = self.asked
        if asked is None or not asked.done:
            return
        self.asked = None
        if asked.error is not None and asked.error.code != DONE[asked.operation]:
            self.world.counts[f"operator {asked.error.code}"] += 1
            self.later(0.2, self.create if asked.operation == "topic.create" else self.delete)
        elif asked.operation == "topic.create":
            self._made()
        else:
            self.world.oracle.deleted(self.plan.name)
            self.later(self.left.pop(0)[1], self._again)

    def _made(self) -> None:
        if self.left and not self.world.quiet:
            self.later(self.left[0][0], self._end)
        else:
            self.done = True

    def _end(self) -> None:
        if self.world.quiet:
            self.done = True
        else:
            self.delete()

    def _again(self) -> None:
        self._announce()
        self.create()


def left_behind(world: World, machine: Machine, topic: str) -> list[str]:
    """Return what the store and the disk have of topics of that name, if it is of more than one."""
    begin = f"{encode_topic(topic)}."
    found = [path for path in machine.disk.folders if path.startswith(("/data/topics/", "/data/cursors/"))]
    found += [f"/store/{info.name.split('/')[3]}" for info in world.store.list("v1/d/")]
    ours = {path for path in found if path.rpartition("/")[2].startswith(begin)}
    return sorted(ours) if len({path.rpartition(".")[2] for path in ours}) > 1 else []


def check_nothing_left(world: World, machine: Machine, topic: str) -> None:
    """Wait until nothing is left of the topics that had this name before."""
    end_s = world.clock.now_s + ERASED_S
    while (left := left_behind(world, machine, topic)) and world.clock.now_s < end_s:
        world.loop.advance(2.0)
    if left:
        world.oracle.violated(f"{topic} was deleted, and of it, and of its successor, there are {left}")
