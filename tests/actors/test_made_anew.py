"""Tests of names that are used again: mail for a topic or subscription never reaches the next one of its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ister.wire import Key, Type
from tests.stage import Stage, StagedClient

TOPIC, NAME = "orders", "s"


def make(client: StagedClient, start: str = "earliest") -> None:
    """Create the topic and its subscription."""
    client.request("topic.create", topic=TOPIC)
    client.request("subscription.create", topic=TOPIC, subscription=NAME, start=start)


def made_anew(client: StagedClient) -> None:
    """Delete the topic, and create another with another subscription."""
    client.request("topic.delete", topic=TOPIC)
    make(client)


def subscription_made_anew(client: StagedClient) -> None:
    """Delete the subscription, and create another."""
    client.request("subscription.delete", topic=TOPIC, subscription=NAME)
    client.request("subscription.create", topic=TOPIC, subscription=NAME, start="latest")


def shown(client: StagedClient) -> tuple[Any, ...]:
    """Return the result of `show` for that name."""
    topics = client.request("topic.list")["topics"]
    subscriptions = client.request("subscription.list", topic=TOPIC)["subscriptions"]
    return [topic["incarnation"] for topic in topics], subscriptions


OF_TOPIC: list[tuple[str, dict[str, Any]]] = [
    ("topic.delete", {}),
    ("topic.update", {"retention_ms": 1000}),
    ("topic.repair", {"skip_damaged": 1}),
]
OF_SUBSCRIPTION: list[tuple[str, dict[str, Any]]] = [
    ("subscription.delete", {"subscription": NAME}),
    ("subscription.update", {"subscription": NAME, "paused": 1}),
    ("subscription.seek", {"subscription": NAME, "to": "latest"}),
    ("subscription.unblock", {"subscription": NAME, "action": "retry"}),
]


def held_back(stage: Stage, ways: list[tuple[str, str]], say: Callable[[], int]) -> tuple[int, list[Any]]:
    """Send a request and hold back the mail it causes on these ways; return its REF, and the mail."""
    for way in ways:
        stage.hold(*way)
    ref = say()
    stage.settle()
    late, stage.holding = stage.holding, []
    for way in ways:
        stage.let_go(*way)
    return ref, late


@pytest.mark.requirement("10.3-2")
@pytest.mark.parametrize(
    ("anew", "operation", "more"),
    [(made_anew, *each) for each in OF_TOPIC + OF_SUBSCRIPTION]
    + [(subscription_made_anew, *each) for each in OF_SUBSCRIPTION],
)
def test_a_request_that_comes_late_does_not_change_what_was_made_since(
    stage: Stage, anew: Callable[[StagedClient], None], operation: str, more: dict[str, Any]
) -> None:
    """It was meant for another topic or subscription of that name: mail may take any time."""
    asking, other = stage.client(0), stage.client(1)
    make(other)
    ref, late = held_back(
        stage, [("worker-0", "broker")], lambda: asking.say_request(operation, topic=TOPIC, **more)
    )
    stage.advance(0.1)
    anew(other)
    before = shown(other)
    (ask,) = late
    stage._arrive(ask)
    answer = asking.expect(Type.ERROR, Type.RESULT, ref=ref)
    assert (answer.kind, answer.code) == (Type.ERROR, "unknown-" + operation.partition(".")[0])
    assert shown(other) == before


def test_a_request_that_comes_late_is_carried_out_where_nothing_was_made_since(stage: Stage) -> None:
    """The topic or subscription is still the same one."""
    make(stage.client(1))
    stage.hold("worker-0", "broker")
    asking = stage.client(0)
    ref = asking.say_request("topic.delete", topic=TOPIC)
    stage.advance(2)
    stage.let_go("worker-0", "broker")
    assert asking.expect(Type.ERROR, Type.RESULT, ref=ref).kind == Type.RESULT


@pytest.mark.parametrize("task", ["topic.delete", "subscription.delete"])
def test_a_deletion_that_comes_late_to_who_carries_it_out_leaves_the_next_of_that_name(
    stage: Stage, task: str
) -> None:
    """The Directory has deleted it; its worker is told when the name is in use again."""
    client = stage.client(0)
    make(client)
    arguments = {"topic": TOPIC} if task == "topic.delete" else {"topic": TOPIC, "subscription": NAME}
    ways = [("broker", "worker-0"), ("broker", "worker-1")]
    _, late = held_back(stage, ways, lambda: client.say_request(task, **arguments))
    assert late
    if task == "topic.delete":
        make(stage.client(1))
    else:
        stage.client(1).request("subscription.create", topic=TOPIC, subscription=NAME)
    producer = stage.at_topic(TOPIC)
    assert producer.open_producer(1, TOPIC, 7).kind == Type.OPENED
    producer.publish(1, 0, b"a")
    assert producer.receipt(1) == [(0, 0)]
    for entry in late:
        stage._arrive(entry)
    stage.advance(3)
    consumer = stage.at_subscription(TOPIC, NAME)
    assert consumer.open_consumer(1, TOPIC, NAME, "shared").kind == Type.OPENED
    producer.publish(1, 1, b"b")
    assert producer.receipt(1) == [(1, 1)]
    assert consumer.deliveries(1, 1)[-1][1] in (b"a", b"b")


def test_a_creation_that_is_undone_late_leaves_the_next_of_that_name(stage: Stage) -> None:
    """It could not begin at its start; before that is known everywhere, a client creates it with another start."""
    client = stage.client()
    client.request("topic.create", topic=TOPIC)
    stage.at_topic(TOPIC).open_producer(1, TOPIC, 7)  # it runs
    home = stage.at_subscription(TOPIC, NAME).worker
    names = {"topic": TOPIC, "subscription": NAME}
    stage.hold(f"worker-{home}", "broker")
    stage.client(1 - home).say_request("subscription.create", **names, start="70")
    stage.settle()
    undone = [entry for entry in stage.holding if b"subscription.delete" in entry[2]]
    assert undone
    stage.holding = [entry for entry in stage.holding if entry not in undone]
    stage.let_go(f"worker-{home}", "broker")
    client.request("subscription.delete", **names)
    client.request("subscription.create", **names, start="earliest")
    stage._arrive(undone[0])
    stage.settle()
    assert [each["start"] for each in shown(client)[1]] == ["earliest"]


@pytest.mark.requirement("10.3-2")
@pytest.mark.parametrize("operation", ["topic.delete", "topic.forget"])
def test_a_deletion_may_name_the_topic_it_is_about(stage: Stage, operation: str) -> None:
    """A client that repeats the request because the answer was lost deletes no other topic."""
    client = stage.client()
    make(client)
    old = client.request("topic.show", topic=TOPIC)["incarnation"]
    made_anew(client)
    answer = client.ask(operation, topic=TOPIC, incarnation=old)
    assert (answer.kind, answer.code) == (Type.ERROR, "unknown-topic")
    new = client.request("topic.show", topic=TOPIC)["incarnation"]
    answer = client.ask(operation, topic=TOPIC, incarnation=new)
    assert answer.code == "" if operation == "topic.delete" else answer.code != "unknown-topic"


@pytest.mark.requirement("10.3-2")
def test_a_deletion_may_name_the_subscription_it_is_about(stage: Stage) -> None:
    """By the instance that consumers and listings are given."""
    client = stage.client()
    make(client)
    (old,) = client.request("subscription.list", topic=TOPIC)["subscriptions"]
    subscription_made_anew(client)
    names = {"topic": TOPIC, "subscription": NAME}
    answer = client.ask("subscription.delete", **names, instance=old["instance"])
    assert (answer.kind, answer.code) == (Type.ERROR, "unknown-subscription")
    new = client.request("subscription.show", **names)["instance"]
    assert client.ask("subscription.delete", **names, instance=new).kind == Type.RESULT


@pytest.mark.parametrize("value", [7, b"x", ["x"], True])
def test_an_incarnation_is_text(stage: Stage, value: object) -> None:
    """Any other type is refused, and nothing is deleted."""
    client = stage.client()
    make(client)
    answer = client.ask("topic.delete", topic=TOPIC, incarnation=value)
    assert (answer.kind, answer.code) == (Type.ERROR, "invalid-argument")
    assert shown(client)[0]


@pytest.mark.requirement("9.3-1", "15-3")
@pytest.mark.parametrize("anew", [made_anew, subscription_made_anew])
def test_a_consumer_is_told_which_of_that_name_it_has(
    stage: Stage, anew: Callable[[StagedClient], None]
) -> None:
    """The instance stays the same as long as the subscription exists, whichever worker it runs on."""
    client = stage.client()
    make(client)

    def instance(kind: str = "shared") -> str:
        consumer = stage.at_subscription(TOPIC, NAME if kind == "shared" else "r")
        opened = consumer.open_consumer(1, TOPIC, NAME if kind == "shared" else "r", kind, instance="")
        assert opened.kind == Type.OPENED
        consumer.close_handle(1)
        return str(opened.header[Key.INSTANCE])

    first, reads = instance(), instance("reader")
    assert instance() == first
    stage.restart(3)
    assert (instance(), instance("reader")) == (first, reads)
    anew(stage.client())
    assert instance() != first
    assert (instance("reader") == reads) is (anew is subscription_made_anew)


@pytest.mark.requirement("9.3-1", "15-3")
def test_a_consumer_that_does_not_ask_is_not_told(stage: Stage) -> None:
    """An older client gets the same answer as before."""
    make(stage.client())
    consumer = stage.at_subscription(TOPIC, NAME)
    assert Key.INSTANCE not in consumer.open_consumer(1, TOPIC, NAME, "shared").header
