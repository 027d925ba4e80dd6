"""Consumers of patterns, and topics that are created while they are there, or not: drawn, and checked.

All messages of a topic that was created later are due, whatever `start` says, if the broker or the client can know that
it came later: because the subscription existed on another matching topic, or the consumer had looked before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ister.consumer import Consumer
from ister.opening import ConsumerArguments
from ister.outstanding import Request
from ister.wildcard import WildcardConsumer
from tests.sim.model import PatternModel, SubscriptionModel, TopicModel
from tests.sim.plans import FOLDER, MadeLater, PatternPlan
from tests.sim.programs import ConsumerWays, Consuming, Producing, Program

if TYPE_CHECKING:
    from tests.sim.world import World


def set_up(world: World, plan: PatternPlan) -> PatternModel:
    """Let the topics be created in time, and their consumers come."""
    pattern = world.oracle.add_pattern(f"{FOLDER}/*", "p", plan.kind, plan.start, plan.options)
    pattern.alone = plan.alone
    world.operators.extend(Making(world, "a", pattern, each) for each in plan.topics)
    for ways in plan.consumers:
        if plan.comes_s:
            world.after(plan.comes_s, lambda ways=ways: _come(world, pattern, ways))  # type: ignore[misc]
        else:
            _come(world, pattern, ways)
    if plan.away_s:
        world.after(plan.topics[-1].at_s - 0.02, lambda: _go(world, plan))
    return pattern


def _go(world: World, plan: PatternPlan) -> None:
    for program in world.programs:
        if isinstance(program, Following):
            program.leave("killed")
            world.after(plan.away_s, program.come_back)


def _come(world: World, pattern: PatternModel, ways: ConsumerWays) -> None:
    world.programs.append(Following(world, "a", pattern, ways))


class Making(Program):
    """Creates a topic at its time."""

    def __init__(self, world: World, machine: str, pattern: PatternModel, plan: MadeLater) -> None:
        self.pattern, self.plan = pattern, plan
        self.asked: Request | None = None
        self.made = False
        self.topic = TopicModel(plan.name, "reliable", plan.durability)
        super().__init__(world, machine)

    def open(self) -> None:
        self.later(self.plan.at_s, self.begin)

    def begin(self) -> None:
        """Tell the oracle, and ask."""
        world = self.world
        self.topic.created_s = world.clock.now_s
        world.oracle.add_topic(self.topic)
        world.oracle.follow(self.machine, self.pattern, self.topic)
        if self.plan.early:
            self._produce()
        self.ask()

    def ask(self) -> None:
        """Ask until it is created."""
        assert self.client is not None
        plan = self.plan
        self.asked = Request(
            "topic.create", {"topic": plan.name, "dispatch": "reliable", "durability": plan.durability}
        )
        self.world.counts["operator topic.create"] += 1
        self.client.send_request(self.asked)

    def on_progress(self) -> None:
        asked = self.asked
        if asked is None or not asked.done:
            return
        self.asked = None
        if asked.error is not None and asked.error.code != "topic-exists":
            self.world.counts[f"operator {asked.error.code}"] += 1
            self.later(0.2, self.ask)
            return
        self.made = True
        if not self.plan.early:
            self._produce()

    def _produce(self) -> None:
        for ways, messages in self.plan.producers:
            self.world.programs.append(Producing(self.world, self.machine, self.topic, ways, messages))

    @property
    def done(self) -> bool:
        """Whether it is created."""
        return self.made


class Following(Consuming):
    """A program that consumes every topic that matches."""

    def __init__(self, world: World, machine: str, pattern: PatternModel, ways: ConsumerWays) -> None:
        self.pattern = pattern
        self.asked: Request | None = None
        super().__init__(world, machine, cast(SubscriptionModel, None), ways)

    def open(self) -> None:
        assert self.client is not None
        ways, pattern = self.ways, self.pattern
        pattern.looked_s = float("inf")
        self.hands.clear()
        self.working = self.forgot = False
        asked = ConsumerArguments(
            subscription=pattern.subscription,
            type=pattern.kind,  # type: ignore[arg-type]
            start=pattern.start,  # type: ignore[arg-type]
            priority=ways.priority,
            credit_messages=ways.credit,
            credit_bytes=ways.credit_bytes,
            settings=pattern.options,
        )
        wildcard = self.client.opener.wildcard(pattern.pattern, asked)
        self.consumer = wildcard
        self.asked = wildcard.members.first_look()
        self.client.send_request(self.asked)

    def work(self) -> None:
        asked, wildcard = self.asked, self.consumer
        if asked is not None:
            assert isinstance(wildcard, WildcardConsumer)
            if not asked.done:
                self.working = False
                return
            self.asked = None
            if asked.error is not None:
                self.world.counts[f"consumer {asked.error.code}"] += 1
                self.again()
                return
            wildcard.members.follow(asked.result, later=False)
            if self.pattern.alone:
                self.pattern.looked_s = self.world.clock.now_s
        super().work()

    def _confirm(self, consumer: Consumer) -> None:
        assert isinstance(consumer, WildcardConsumer)
        consumer.written()
        for member in consumer.members.all():
            member._soon()
