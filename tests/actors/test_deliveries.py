"""Tests of the table of deliveries."""

from __future__ import annotations

import pytest

from ister.actors.subscription.by_key import ByKey
from ister.actors.subscription.deliveries import DELIVERIES
from ister.actors.subscription.from_memory import FromMemory
from ister.actors.subscription.in_order import InOrder
from ister.actors.subscription.reading import Reading
from ister.subscriptions import READER, SUBSCRIPTION_TYPES, TRAITS
from tests.actors.scenes import Scene, reader, subscription
from tests.stage import Stage


def test_every_type_has_its_delivery() -> None:
    """The error of a missing type says where else the type must be named."""
    assert set(DELIVERIES) == set(TRAITS)


@pytest.mark.parametrize("type_", SUBSCRIPTION_TYPES)
def test_the_strategy_and_the_type_decide_what_delivers(stage: Stage, type_: str) -> None:
    """From the log, or by key where keys are ordered; from memory where there is no log."""
    scene = Scene(stage, type=type_)
    scene.consumer()
    delivery = subscription(scene).delivery
    assert type(delivery) is (ByKey if TRAITS[type_].by_key else InOrder)
    stage.client().request("topic.create", topic="fleeting", dispatch="non-reliable")
    client = stage.at_subscription("fleeting", "s")
    client.open_consumer(1, "fleeting", "s", type_)
    assert type(stage.actor("subscription", "fleeting", "s").delivery) is FromMemory


def test_a_reader_has_a_delivery_of_its_own(stage: Stage) -> None:
    """It is a type like the others, though never in a catalogue."""
    scene = Scene(stage, type=READER)
    reader(scene)
    assert type(stage.actor("subscription", "orders", "r-1").delivery) is Reading
