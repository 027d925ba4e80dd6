"""Scenarios of administration, and of request and reply, for the clients of all languages."""

from __future__ import annotations

import pytest

from ister.ownbroker import OwnBroker
from tests.conformance_clients.conftest import Play, long
from tests.conformance_clients.player import ANSWER_MS, Player, payloads_of

pytestmark = pytest.mark.process

PAGE = 500  # the most entries in one answer


def test_topics_are_made_changed_listed_and_deleted(player: Player, broker: OwnBroker, topic: str) -> None:
    """The answers show what was requested, and a deleted topic is gone."""
    player.need("admin")
    player.connect(broker.endpoint)
    made = player.admin(
        "topic.create", topic=topic, dispatch="reliable", durability="os", retention_ms=3_600_000
    )
    assert (made["topic"], made["strategy"], made["durability"]) == (topic, "reliable", "os")
    assert player.admin("topic.show", topic=topic)["durability"] == "os"
    assert player.admin("topic.update", topic=topic, retention_ms=7_200_000)["topic"] == topic
    assert topic in [each["topic"] for each in player.admin("topic.list")["topics"]]
    player.admin("topic.delete", topic=topic)
    assert player.refused(lambda: player.admin("topic.show", topic=topic)).code == "unknown-topic"
    assert topic not in [each["topic"] for each in player.admin("topic.list")["topics"]]


@long
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_listing_has_every_page(player: Player, broker: OwnBroker, topic: str) -> None:
    """More topics than fit one answer: each is listed once, by name."""
    player.need("admin")
    player.connect(broker.endpoint)
    names = [f"{topic[:80]}/{number:04}" for number in range(PAGE + 20)]
    asked = {"client": "c", "operation": "topic.create", "timeout_ms": 3 * ANSWER_MS}
    ways = [
        player.driver.send("admin", arguments={"topic": name, "dispatch": "non-reliable"}, **asked)
        for name in names
    ]
    for way in ways:
        player.driver.answer(way)
    listed = [each["topic"] for each in player.admin("topic.list")["topics"]]
    assert [name for name in listed if name.startswith(f"{topic[:80]}/")] == names
    assert listed == sorted(listed)
    for name in names:
        player.admin("topic.delete", topic=name)


def test_subscriptions_are_made_changed_explained_and_deleted(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """Create, list, show, seek, pause, explain, delete: each answer has what a program needs."""
    player.need("admin")
    player.connect(broker.endpoint)
    player.topic(topic)
    player.stored(topic, b"0", b"1", b"2")
    about = {"topic": topic, "subscription": "billing"}
    made = player.admin("subscription.create", **about, type="shared", start="earliest", max_deliveries=7)
    assert (made["topic"], made["subscription"], made["type"]) == (topic, "billing", "shared")
    refused = player.refused(lambda: player.admin("subscription.create", **about, type="shared"))
    assert refused.code == "subscription-exists"
    assert [
        each["subscription"] for each in player.admin("subscription.list", topic=topic)["subscriptions"]
    ] == ["billing"]
    assert player.admin("subscription.seek", **about, to=2)["position"] == 2
    player.admin("subscription.update", **about, paused=1)
    explained = player.admin("subscription.explain", **about)
    assert (explained["flowing"], explained["state"]) == (False, "stopped")
    player.admin("subscription.update", **about, paused=0)
    assert player.admin("subscription.show", **about)["type"] == "shared"
    assert payloads_of(player.receive(player.consumer(topic, "billing", "shared"))) == [b"2"]
    assert player.admin("subscription.unblock", **about, action="retry")["messages"] == 0
    player.admin("subscription.delete", **about)
    refused = player.refused(lambda: player.admin("subscription.show", **about))
    assert refused.code == "unknown-subscription"


def test_a_wrong_type_and_wrong_options_are_refused(player: Player, broker: OwnBroker, topic: str) -> None:
    """The type of a subscription never changes, and neither do the options of an existing one."""
    player.need("admin", "options")
    player.connect(broker.endpoint)
    player.topic(topic)
    player.admin("subscription.create", topic=topic, subscription="s", type="shared")
    refused = player.refused(lambda: player.consumer(topic, "s", "exclusive", timeout_ms=None))
    assert (refused.code, refused.action) == ("subscription-type", "fix")
    refused = player.refused(lambda: player.consumer(topic, "s", "shared", options={"max_deliveries": 3}))
    assert (refused.code, refused.action) == ("subscription-options", "fix")


def test_the_status_names_the_processes(player: Player, broker: OwnBroker) -> None:
    """Broker and workers are listed, each with its kind."""
    player.need("admin")
    player.connect(broker.endpoint)
    roles = [each["role"] for each in player.admin("status")["processes"]]
    assert roles.count("worker") == 2


def test_a_request_is_answered(play: Play, broker: OwnBroker, topic: str) -> None:
    """Each client gets its own reply, with the reply's attributes, however many ask."""
    asking, answering = play(), play()
    asking.need("request-reply")
    for each in (asking, answering):
        each.connect(broker.endpoint)
    asking.topic(topic, dispatch="non-reliable")
    consumer = answering.consumer(topic, "service", "shared")
    for number in range(3):
        question = asking.driver.send(
            "request",
            client="c",
            topic=topic,
            payload=b"%d".__mod__(number).hex(),
            attributes={"for": "you"},
            timeout_ms=ANSWER_MS,
        )
        [asked] = answering.receive(consumer)
        assert (payloads_of([asked]), asked["attributes"]["for"]) == ([b"%d" % number], "you")
        answering.driver.ask(
            "reply", consumer=consumer, offset=asked["offset"], payload=(b"re: %d" % number).hex()
        )
        answering.ack(consumer, asked)
        reply = asking.driver.answer(question)["message"]
        assert payloads_of([reply]) == [b"re: %d" % number]


def test_a_request_that_nobody_answers_ends_in_time(player: Player, broker: OwnBroker, topic: str) -> None:
    """The error is `timeout`, and the client can ask again."""
    player.need("request-reply")
    player.connect(broker.endpoint)
    player.topic(topic, dispatch="non-reliable")
    for _ in range(2):
        refused = player.refused(
            lambda: player.driver.ask("request", client="c", topic=topic, payload="", timeout_ms=300)
        )
        assert refused.code == "timeout"


def test_a_broker_that_is_not_there_is_told(player: Player) -> None:
    """With no broker at the endpoint: `connection-lost` or `timeout`, action `retry`, and no endless wait."""
    refused = player.refused(
        lambda: player.driver.ask("connect", client="c", endpoints=["tcp://127.0.0.1:9"], timeout_ms=500)
    )
    assert refused.code in ("connection-lost", "timeout")
    assert refused.action == "retry"
