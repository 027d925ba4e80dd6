"""The oracle finds each planted bug within a few histories."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.campaign import live
from tests.sim.plans import CLOUD_FLAGS, Plan, SubscriptionPlan, TopicPlan
from tests.sim.planted import PLANTED
from tests.sim.programs import ConsumerWays, ProducerWays

# The seed at which the search begins, so that a bug is found at once as long as plans are drawn as now.
FIRST = {
    "skipped-fsync": 12,
    "cursor-past-a-hole": 0,
    "forgotten-redelivery": 2,
    "key-too-early": 35,
    "fenced-writer-counted": 27,
    "dedup-forgotten": 14,
    "settings-of-creation": 264,
    "lifted-retention-unheard": 79,
    "raw-times": 115,
    "takers-lose": 5,
    "anybody-deletes": 59,
    "pattern-at-latest": 2,
    "made-meanwhile-unheard": 2,
    "waits-forgotten": 35,
    "deletion-untold": 14,
    "name-before-rename": 29,
    "deleted-stays-stored": 1,
}

SEEDS = 150  # how many seeds are searched


def failed_moves() -> Plan:
    """Return a world with moves over messages that a slow consumer has not got, in which folders cannot be synced."""
    plan = Plan(1, faults={"folder error": 1}, fault_every=0.3)
    ways = ConsumerWays(think_s=0.5, take=1, credit=5)
    topic = TopicPlan("topic0", settings={"durability": "fsync"}, operator=["seek"])
    topic.producers.append((ProducerWays(every_s=0.05, burst=3, keys=0), 200))
    topic.subscriptions.append(SubscriptionPlan("s0", "exclusive", {"max_deliveries": 0}, [ways]))
    plan.topics.append(topic)
    return plan


def lost_objects() -> Plan:
    """Return a world in which objects are deleted from the store before a slow consumer has their messages."""
    plan = Plan(1, faults={"lose object": 1, "kill worker": 1}, fault_every=0.1, lasts_s=8.0)
    plan.flags, plan.cloud = CLOUD_FLAGS, True
    ways = ConsumerWays(think_s=0.5, take=1, credit=1)
    topic = TopicPlan("topic0", durability="cloud", settings={"durability": "cloud"})
    topic.producers.append((ProducerWays(every_s=0.1, burst=3, keys=0), 100))
    topic.subscriptions.append(SubscriptionPlan("s0", "exclusive", {"max_deliveries": 0}, [ways]))
    plan.topics.append(topic)
    return plan


def lifted_limits() -> Plan:
    """Return a world in which a limit is removed long before another broker takes over what was sent since."""
    plan = Plan(2, faults={}, lasts_s=14.0, takeover_after_s=9.0)
    plan.flags, plan.cloud = CLOUD_FLAGS, True
    settings = {"durability": "cloud", "retention_bytes": 3000}
    topic = TopicPlan("topic0", durability="cloud", settings=settings, operator=["lift"])
    topic.producers.append((ProducerWays(every_s=0.1, burst=1, keys=0, sizes=(1000,)), 300))
    topic.subscriptions.append(SubscriptionPlan("s0", "exclusive", {"max_deliveries": 0}, [ConsumerWays()]))
    plan.topics.append(topic)
    return plan


def moves_beside_closes() -> Plan:
    """Return a world of moves over what consumers get that acknowledge, close and come back all the time."""
    plan = Plan(1, faults={}, lasts_s=8.0)
    ways = ConsumerWays(think_s=0.02, take=1, credit=200, ack="batch", close=0.5)
    for number in range(3):
        topic = TopicPlan(f"topic{number}", settings={"durability": "fsync"}, operator=["seek"])
        topic.producers.append((ProducerWays(every_s=0.1, burst=1, keys=0), 60))
        topic.subscriptions.append(SubscriptionPlan("s0", "exclusive", {"max_deliveries": 0}, [ways]))
        plan.topics.append(topic)
    return plan


# What is drawn seldom: worlds made for it, and from which seed on.
WRITTEN = {
    "failed-seek-in-force": (failed_moves, 3),
    "gaps-called-retention": (lost_objects, 0),
    "settings-of-creation": (lifted_limits, 0),
    "lifted-retention-unheard": (lifted_limits, 0),
    "old-acknowledgments": (moves_beside_closes, 9),
}


@pytest.fixture(autouse=True)
def _what_fails_on_purpose_is_not_told() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(FIRST))
def test_a_planted_bug_is_found(name: str) -> None:
    """A broker broken on purpose breaks a promise, and the oracle reports it."""
    assert any(live(seed, name).violations for seed in range(FIRST[name], FIRST[name] + SEEDS))


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_a_planted_bug_is_found_where_it_matters(name: str) -> None:
    """In a world made for it, a broker broken on purpose breaks a promise, and an intact one does not."""
    plan, first = WRITTEN[name]
    assert not live(first, plan=plan()).violations
    assert any(live(seed, name, plan()).violations for seed in range(first, first + 10))


def test_every_planted_bug_is_looked_for() -> None:
    """Every planted bug has a test that finds it."""
    assert FIRST.keys() | WRITTEN.keys() == PLANTED.keys()
