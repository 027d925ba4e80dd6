"""The contents of a world, and how its programs behave: drawn from the seed, small, and different each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.sim.programs import ConsumerWays, ProducerWays

CLOUD_FLAGS: Final = {
    "log__local_bytes": 0,
    "log__cloud_linger_ms": 50,
    "tier__cursor_upload_ms": 300,
    "tier__upload_retry_ms_min": 50,
    "tier__upload_retry_ms_max": 1000,
}


FOLDER: Final = "orders"  # of the topics that match a pattern
RETENTIONS: Final = (
    ("retention_ms", (300, 4000, 8000)),
    ("retention_bytes", (3000, 20_000)),
)


@dataclass(slots=True)
class SubscriptionPlan:
    """A subscription and its consumers."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    consumers: list[ConsumerWays] = field(default_factory=list)


@dataclass(slots=True)
class TopicPlan:
    """A topic, its producers, and its subscriptions."""

    name: str
    strategy: str = "reliable"
    durability: str = "fsync"
    settings: dict[str, Any] = field(default_factory=dict)
    producers: list[tuple[ProducerWays, int]] = field(default_factory=list)
    subscriptions: list[SubscriptionPlan] = field(default_factory=list)
    readers: list[tuple[float, int]] = field(default_factory=list)  # the thinking time and the credit of each
    operator: list[str] = field(default_factory=list)  # what an operator does: seek, pause, unblock


@dataclass(slots=True)
class MadeLater:
    """A topic that is created during the history."""

    name: str
    at_s: float
    durability: str
    producers: list[tuple[ProducerWays, int]] = field(default_factory=list)
    early: bool = False  # its producers come before it exists


@dataclass(slots=True)
class PatternPlan:
    """A pattern, its subscription, its consumers, and the topics that match."""

    kind: str
    start: str
    consumers: list[ConsumerWays]
    topics: list[MadeLater]
    options: dict[str, Any] = field(default_factory=dict)
    comes_s: float = 0.0  # when the consumers come
    away_s: float = 0.0  # for how long they are away when the last topic is created

    @property
    def alone(self) -> bool:
        """Whether a single program consumes it."""
        return len(self.consumers) == 1


@dataclass(slots=True)
class RemadePlan:
    """A topic that is deleted and created again while its programs continue."""

    name: str
    kind: str
    durability: str
    options: dict[str, Any]
    producers: list[tuple[ProducerWays, int]]
    consumers: list[ConsumerWays]
    times: list[tuple[float, float]]  # how long it exists, and then does not


@dataclass(slots=True)
class Plan:
    """A world: its broker, its topics, its faults, and its duration."""

    workers: int = 2
    lasts_s: float = 6.0
    topics: list[TopicPlan] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)  # kind: weight
    fault_every: float = 0.15  # the probability of a fault in each step
    flags: dict[str, Any] = field(default_factory=dict)
    cloud: bool = False  # with a tier and a store
    takeover_after_s: float = 0.0  # when another broker takes over from the store; 0: never
    # the operator of the first broker then deletes there what belongs to the other one
    deletes_behind: bool = False
    steps_clocks: bool = False  # the brokers' clocks are set, by up to a year
    pattern: PatternPlan | None = None
    remade: RemadePlan | None = None
    rests_files: bool = False  # file descriptors are given up as soon as possible
    rest_at_s: float = 0.0  # when a pause begins, in which nothing is sent or requested
    rest_s: float = 0.0  # its length


def draw_plan(random: Random) -> Plan:
    """Draw a world."""
    plan = Plan(workers=random.choice((1, 2, 2, 3)), lasts_s=random.choice((2.0, 4.0, 8.0)))
    if random.random() < 0.25:
        plan.cloud = True
        plan.flags = CLOUD_FLAGS
        if random.random() < 0.4:
            plan.takeover_after_s = plan.lasts_s * random.choice((0.3, 0.6))
    plan.faults = draw_faults(random, plan)
    plan.fault_every = random.choice((0.0, 0.03, 0.1, 0.2))
    for number in range(random.choice((1, 1, 2))):
        plan.topics.append(draw_topic(random, number, plan))
    return plan


def draw_more(random: Random, plan: Plan) -> None:
    """Draw what was added later, from random numbers of its own: limits that change, and clocks that are set."""
    if random.random() < 0.2:
        plan.steps_clocks = True
        plan.faults["clock"] = 4
        plan.fault_every = max(plan.fault_every, 0.05)
    # a broker without topics restores those of the store again
    again = {"kill broker", "power"} & plan.faults.keys()
    if plan.takeover_after_s and not again and random.random() < 0.5:
        plan.deletes_behind = True
        _slow_down(plan)
    if plan.cloud and not plan.takeover_after_s and random.random() < 0.4:
        plan.faults["lose object"] = 20
        plan.fault_every = max(plan.fault_every, 0.1)
        _slow_down(plan)
    if "disk error" in plan.faults or random.random() < 0.15:
        plan.faults["folder error"] = 2
    for topic in plan.topics:
        if topic.strategy != "reliable":
            continue
        if random.random() < (0.5 if plan.cloud else 0.2):
            name, values = random.choice(RETENTIONS)
            topic.settings[name] = random.choice(values)
            topic.operator = [*topic.operator, random.choice(("lift", "limit"))]
        elif random.random() < 0.1:
            topic.operator = [*topic.operator, "limit", "lift"]
        moves = plan.steps_clocks and not plan.takeover_after_s and random.random() < 0.5
        if moves and "retention_acknowledged" not in topic.settings:
            topic.operator = [*topic.operator, "seek"]
    if any("seek" in topic.operator for topic in plan.topics) and random.random() < 0.5:
        plan.faults["folder error"] = 8
        plan.fault_every = max(plan.fault_every, 0.1)
        _slow_down(plan)


def draw_besides(random: Random, plan: Plan) -> None:
    """Draw what was added last: topics that are created during the history, and some that are created again."""
    if not plan.takeover_after_s and random.random() < 0.15:
        plan.pattern = draw_pattern(random, cloud=plan.cloud, lasts_s=plan.lasts_s)
    if not plan.takeover_after_s and random.random() < (0.4 if plan.cloud else 0.12):
        plan.remade = draw_remade(random, cloud=plan.cloud, lasts_s=plan.lasts_s)
        if plan.pattern is not None and random.random() < 0.5:
            plan.remade.name = f"{FOLDER}/again"  # it matches the pattern
    if "lose object" in plan.faults and random.random() < 0.5:  # before any consumer has its messages
        plan.lasts_s, plan.faults["kill worker"] = 8.0, 10
        for topic in plan.topics:
            for ways in [each for subscription in topic.subscriptions for each in subscription.consumers]:
                ways.credit = 1
    plan.rests_files = random.random() < 0.3
    if random.random() < 0.1:
        plan.rest_at_s = plan.lasts_s * random.choice((0.3, 0.6))
        plan.rest_s = random.choice((12.0, 25.0))


def _slow_down(plan: Plan) -> None:
    """Let consumers be slow, so that there is something that may be passed over."""
    for topic in plan.topics:
        for ways in [each for subscription in topic.subscriptions for each in subscription.consumers]:
            ways.think_s, ways.take, ways.credit = 0.5, 1, 5


def draw_faults(random: Random, plan: Plan) -> dict[str, int]:
    """Draw which kinds of faults there are: a few at a time find more than all at once."""
    kinds = {
        "cut": 6,
        "stall": 3,
        "leave": 6,
        "freeze": 3,
        "kill worker": 3,
        "kill broker": 1,
        "die at work": 3,
        "power": 2,
        "hold mail": 4,
        "disk error": 2,
        "full disk": 1,
        "slow disk": 2,
        "mistake": 1,
    }
    if plan.cloud:
        kinds |= {"kill tier": 4, "store away": 3, "store flaky": 4}
    names = list(kinds)
    chosen = random.sample(names, random.randint(1, 5)) if random.random() < 0.7 else names
    return {name: kinds[name] for name in names if name in chosen}


def draw_topic(random: Random, number: int, plan: Plan) -> TopicPlan:
    """Draw a topic."""
    reliable = plan.takeover_after_s > 0 or random.random() < 0.85
    durability = random.choice(("fsync", "fsync", "os")) if "power" not in plan.faults else "fsync"
    if plan.cloud and (plan.takeover_after_s or random.random() < 0.6):
        durability = "cloud"
    topic = TopicPlan(f"topic{number}", "reliable" if reliable else "non-reliable", durability)
    if reliable:
        topic.settings["durability"] = durability
    kinds = ["exclusive", "shared", "failover"]
    if reliable:
        kinds += ["key-shared", "key-shared"]
    keys = random.choice((0, 1, 3, 10))
    delays = random.choice(((), (), (100, 1000), (500, 3000, 12_000)))
    for _ in range(random.choice((1, 1, 2, 3))):
        topic.producers.append((draw_producer(random, keys, delays), random.choice((5, 15, 40, 100))))
    if reliable and random.random() < 0.15:
        topic.settings["message_ttl_ms"] = random.choice((500, 2000))
    if reliable and not plan.takeover_after_s and random.random() < 0.15:
        topic.settings["retention_acknowledged"] = 1
    elif reliable and random.random() < 0.2:
        topic.readers.append((random.choice((0.01, 0.3)), random.choice((1, 20, 1000))))
    moves = reliable and not plan.takeover_after_s and "retention_acknowledged" not in topic.settings
    if moves and random.random() < 0.3:
        topic.operator = random.choice((["seek"], ["pause"], ["seek", "pause", "unblock"]))
    for at in range(random.choice((1, 1, 2))):
        topic.subscriptions.append(
            draw_subscription(
                random,
                f"s{at}",
                random.choice(kinds),
                reliable=reliable,
                poison=reliable and not plan.takeover_after_s,
            )
        )
    return topic


def draw_producer(random: Random, keys: int, delays: tuple[int, ...]) -> ProducerWays:
    """Draw how a producer sends."""
    return ProducerWays(
        every_s=random.choice((0.01, 0.05, 0.2)),
        burst=random.choice((1, 3, 10)),
        keys=keys,
        attributes=random.random() < 0.2,
        batches=random.random() < 0.4,
        linger_ms=random.choice((0.0, 1.0, 5.0)),
        sizes=random.choice(((0, 3), (3, 200), (10, 3000))),
        delays_ms=delays,
    )


def draw_subscription(
    random: Random, name: str, kind: str, *, reliable: bool, poison: bool
) -> SubscriptionPlan:
    """Draw a subscription and its consumers."""
    plan = SubscriptionPlan(name, kind)
    if random.random() < 0.5:
        timeout_ms = random.choice((300, 1000, 3000))
        if reliable:  # other topics have no acknowledgments
            plan.options["ack_timeout_ms"] = timeout_ms
    if reliable and random.random() < 0.2:
        plan.options["backoff_ms_min"] = random.choice((50, 500))
        plan.options["backoff_ms_max"] = 2000
    if poison and random.random() < 0.2:
        plan.options["max_deliveries"] = random.choice((1, 2, 3))
        plan.options["poison"] = random.choice(("dead-letter", "dead-letter", "drop", "block"))
    elif reliable:
        plan.options["max_deliveries"] = 0  # otherwise messages that failed twenty times would be given up
    for _ in range(random.choice((1, 2)) if kind == "exclusive" else random.choice((1, 2, 3, 4))):
        plan.consumers.append(draw_consumer(random, kind))
    return plan


def draw_consumer(random: Random, kind: str) -> ConsumerWays:
    """Draw how a consumer works."""
    ways = ConsumerWays(
        think_s=random.choice((0.0, 0.01, 0.1, 0.5)),
        take=random.choice((1, 3, 100)),
        credit=random.choice((1, 5, 50, 500, None)),
        credit_bytes=random.choice((1, 5000, 1 << 20)),
        ack=random.choice(("each", "batch", "scattered", "until")),
        confirm=random.choice((0.0, 0.2, 1.0)),
        priority=random.randrange(3) if kind == "failover" else 0,
        force=kind == "exclusive" and random.random() < 0.3,
        extend=random.choice((0.0, 0.5)),
        close=random.choice((0.0, 0.0, 0.05)),
    )
    if random.random() < 0.4:
        ways.nack = random.choice((0.05, 0.3))
        ways.nack_delay_s = random.choice(((0.0,), (0.02, 0.5), (2.0,)))
    if random.random() < 0.2:
        ways.forget = random.choice((0.02, 0.2))
    ways.takers = random.choice((("batch",), ("batch",), ("one",), ("batch", "few", "one")))
    return ways


def draw_pattern(random: Random, *, cloud: bool, lasts_s: float) -> PatternPlan:
    """Draw a pattern."""
    kind = random.choice(("exclusive", "shared", "failover", "key-shared"))
    ways = [
        draw_consumer(random, kind) for _ in range(1 if kind == "exclusive" else random.choice((1, 1, 2)))
    ]
    for each in ways:
        each.force, each.credit_bytes = False, 1 << 20
        each.ack = random.choice(("each", "batch", "scattered"))
    plan = PatternPlan(kind, random.choice(("earliest", "latest", "latest")), ways, [])
    plan.options["max_deliveries"] = 0
    if random.random() < 0.4:
        plan.options["ack_timeout_ms"] = random.choice((300, 1000, 3000))
    if random.random() < 0.3:
        plan.comes_s = lasts_s * random.choice((0.1, 0.3))
    keys, at_s = random.choice((0, 3)), 0.0
    for number in range(random.choice((1, 2, 3))):
        if number or random.random() < 0.5:
            at_s += lasts_s * random.choice((0.05, 0.15, 0.3))
        durability = "cloud" if cloud and random.random() < 0.5 else "fsync"
        topic = MadeLater(f"{FOLDER}/{number}", at_s, durability, early=random.random() < 0.5)
        for _ in range(random.choice((1, 1, 2))):
            topic.producers.append((draw_producer(random, keys, ()), random.choice((5, 15, 40))))
        plan.topics.append(topic)
    if len(plan.topics) > 1 and random.random() < 0.5:
        plan.away_s = lasts_s * random.choice((0.1, 0.3))
        plan.topics[-1].at_s += lasts_s * 0.2  # so that they existed before
    return plan


def draw_remade(random: Random, *, cloud: bool, lasts_s: float) -> RemadePlan:
    """Draw a topic that is deleted and created again."""
    kind = random.choice(("exclusive", "shared", "failover", "key-shared"))
    durability = "cloud" if cloud and random.random() < 0.5 else "fsync"
    plan = RemadePlan("again", kind, durability, {"max_deliveries": 0}, [], [], [])
    if random.random() < 0.4:
        plan.options["ack_timeout_ms"] = random.choice((300, 1000, 3000))
    keys = random.choice((0, 3))
    for _ in range(random.choice((1, 2))):
        plan.producers.append((draw_producer(random, keys, ()), random.choice((15, 40, 100))))
    for _ in range(random.choice((1, 2))):
        plan.consumers.append(draw_consumer(random, kind))
    for _ in range(random.choice((1, 1, 2, 3))):
        gone_s = random.choice((0.0, 0.0, 0.05, 1.0))
        plan.times.append((lasts_s * random.choice((0.1, 0.2, 0.4)), gone_s))
    return plan
