"""Histories with written plans: those that found something once, and some that are drawn too rarely."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.plans import CLOUD_FLAGS, Plan, SubscriptionPlan, TopicPlan
from tests.sim.programs import ConsumerWays, ProducerWays
from tests.sim.world import World


@pytest.fixture(autouse=True)
def _what_fails_on_purpose_is_not_told() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def one_topic(durability: str, kind: str, *ways: ConsumerWays, **options: int) -> TopicPlan:
    """Return a topic with one producer and one subscription."""
    return TopicPlan(
        "topic0",
        durability=durability,
        settings={"durability": durability},
        producers=[(ProducerWays(every_s=0.05, burst=1, keys=3, batches=True), 60)],
        subscriptions=[SubscriptionPlan("s0", kind, dict(options), list(ways))],
    )


@pytest.mark.parametrize("seed", [3, 11, 16])
def test_mail_lost_between_a_topic_and_the_tier(seed: int) -> None:
    """A segment whose notice was lost was never uploaded: producers of durability cloud waited for ever."""
    plan = Plan(1, faults={"hold mail": 1}, fault_every=0.5, flags=CLOUD_FLAGS, cloud=True, lasts_s=4.0)
    plan.topics.append(one_topic("cloud", "shared", ConsumerWays()))
    World(seed, plan).run()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_crowd_that_takes_an_exclusive_subscription_from_each_other(seed: int) -> None:
    """A consumer that is evicted is told, holds nothing, and may take the subscription back: the order is kept."""
    plan = Plan(faults={"cut": 1, "freeze": 1}, fault_every=0.1, lasts_s=4.0)
    crowd = [ConsumerWays(force=True, think_s=0.05, credit=credit) for credit in (1, 5, 50)]
    plan.topics.append(one_topic("fsync", "exclusive", *crowd, ack_timeout_ms=1000))
    World(seed, plan).run()


@pytest.mark.parametrize("seed", [0, 1])
def test_poison_under_faults_ends_in_the_dead_letter_topic(seed: int) -> None:
    """Every message is acknowledged or becomes a dead letter, whatever dies in between."""
    plan = Plan(faults={"kill worker": 1, "kill broker": 1, "power": 1}, fault_every=0.08, lasts_s=4.0)
    ways = ConsumerWays(nack=0.5, nack_delay_s=(0.0, 0.1), think_s=0.01)
    topic = one_topic("fsync", "key-shared", ways, ways, max_deliveries=2)
    topic.subscriptions[0].options["poison"] = "dead-letter"
    plan.topics.append(topic)
    World(seed, plan).run()
