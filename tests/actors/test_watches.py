"""Tests of watches, which tell clients of topics that come and go, and of topics that end with a session."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import cbor2
import pytest

from ister.actors import watches
from ister.actors.frontend import KEEP_S
from ister.actors.messages import Ask
from ister.actors.registry import EPHEMERALS_OF_SESSION_MAX
from ister.actors.runtime import Address
from ister.actors.watches import SETTLE_S, WAIT_MS_MAX, Watches
from ister.wire import Key, Type
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient


def say_watch(client: StagedClient, ref: int, pattern: str, version: int, **more: Any) -> None:
    """Send a watch, without waiting for the answer."""
    arguments = {"pattern": pattern, "version": version} | more
    header = {Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: "topic.watch", Key.ARGUMENTS: arguments}
    client.say(header)
    client.stage.settle()


def heard(client: StagedClient, ref: int) -> list[str]:
    """Return the topics of a watch's answer, which must be there."""
    return [each["topic"] for each in client.expect(Type.RESULT, ref=ref, timeout_s=0.0).result["topics"]]


def silent(client: StagedClient) -> bool:
    """Return whether there is no answer."""
    client.stage.settle()
    return not [frame for frame in _frames(client) if frame.kind in (Type.RESULT, Type.ERROR)]


def _frames(client: StagedClient) -> list[Frame]:
    while (frame := client.take(0.0)) is not None:
        client.unread.append(Frame(cbor2.loads(frame[0]), frame[1:]))
    return client.unread


def test_a_watch_is_told_of_what_comes_and_goes(stage: Stage) -> None:
    """The first answer lists the topics; the next one comes when the list changes."""
    client, other = stage.client(0), stage.client(1)
    client.request("topic.create", topic="orders/eu")
    client.request("topic.create", topic="bills/eu", dispatch="non-reliable")
    first = client.request("topic.watch", pattern="orders/*")
    created_ms = client.request("topic.show", topic="orders/eu")["created_ms"]
    told = {"topic": "orders/eu", "strategy": "reliable", "created_ms": created_ms}
    assert first["topics"] == [told]
    say_watch(client, 900, "orders/*", first["version"])
    other.request("topic.create", topic="bills/us")
    stage.advance(1.0)
    assert silent(client)
    other.request("topic.create", topic="orders/us", dispatch="non-reliable")
    stage.advance(SETTLE_S)
    assert heard(client, 900) == ["orders/eu", "orders/us"]
    second = client.request("topic.watch", pattern="orders/*")
    say_watch(client, 901, "orders/*", second["version"])
    other.request("topic.delete", topic="orders/eu")
    stage.advance(SETTLE_S)
    assert heard(client, 901) == ["orders/us"]


def test_a_watch_ends_by_itself(make_stage: Callable[..., Stage]) -> None:
    """Without changes it is answered after the time it gave, so that a client knows the broker is alive."""
    stage = make_stage(1, protocol__session_timeout_ms=60_000)
    client = stage.client()
    version = client.request("topic.watch", pattern=">")["version"]
    for ref, more, wait_s in ((900, {"wait_ms": 700}, 0.7), (901, {}, WAIT_MS_MAX / 1000)):
        say_watch(client, ref, ">", version, **more)
        stage.advance(wait_s - 0.01)
        assert silent(client)
        stage.advance(0.02)
        assert heard(client, ref) == []
    began = stage.clock.now_s
    assert client.request("topic.watch", pattern=">", version=version, wait_ms=0)["version"] == version
    assert stage.clock.now_s == began
    assert len(stage.actor("directory")._watches) == 0


def test_what_was_missed_is_told_at_once(stage: Stage) -> None:
    """A watch with an old version has missed changes; so has one with a version of an earlier broker."""
    client = stage.client()
    version = client.request("topic.watch", pattern=">")["version"]
    client.request("topic.create", topic="orders")
    say_watch(client, 900, ">", version)
    stage.advance(SETTLE_S)
    assert heard(client, 900) == ["orders"]
    version = client.request("topic.watch", pattern=">")["version"]
    stage.advance(0.002)
    stage.restart(2)
    client = stage.client()
    client.request("topic.create", topic="bills")  # as many changes as the one before has seen
    assert client.request("topic.watch", pattern=">")["version"] != version


def test_many_changes_are_few_answers(stage: Stage) -> None:
    """A client that watches again at once is not answered once for each topic."""
    client, other = stage.client(0), stage.client(1)
    version = client.request("topic.watch", pattern=">")["version"]
    say_watch(client, 900, ">", version)
    for number in range(20):
        other.request("topic.create", topic=f"t{number:02d}")
    stage.advance(SETTLE_S)
    assert len(heard(client, 900)) == 20
    assert silent(client)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pattern": 7},
        {"pattern": "a*"},
        {"pattern": ">", "version": "new"},
        {"pattern": ">", "wait_ms": -1},
        {"pattern": ">", "wait_ms": 5001},
        {"pattern": ">", "colour": "red"},
    ],
)
def test_a_bad_watch_is_refused(stage: Stage, arguments: dict[str, Any]) -> None:
    """The error says what is wrong, and no watch waits."""
    client = stage.client()
    assert client.ask("topic.watch", **arguments).code in ("invalid-argument", "invalid-name")
    assert len(stage.actor("directory")._watches) == 0


def test_watchers_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number waits; a pattern that matches too many topics is refused, not cut short."""
    monkeypatch.setattr(watches, "WATCHERS_MAX", 2)
    monkeypatch.setattr(watches, "MATCHES_MAX", 3)
    client = stage.client()
    version = client.request("topic.watch", pattern=">")["version"]
    say_watch(client, 900, ">", version)
    say_watch(client, 901, ">", version)
    assert client.ask("topic.watch", pattern=">", version=version).code == "busy"
    for number in range(4):
        client.request("topic.create", topic=f"t{number}")
    assert client.ask("topic.watch", pattern=">").code == "limit-exceeded"
    assert len(client.request("topic.watch", pattern="t1")["topics"]) == 1


# ---- topics that go with a session -----------------------------------------------------------------------------------


def test_an_ephemeral_topic_goes_with_its_session(stage: Stage) -> None:
    """It works like any other topic, and is listed only on request; at the session's end its consumers are told."""
    client, other = stage.client(0), stage.client(1)
    client.request("topic.create", topic="answers/1", dispatch="non-reliable", ephemeral=1)
    assert other.request("topic.list") == {"topics": [], "more": False}
    assert [each["topic"] for each in other.request("topic.list", ephemeral=1)["topics"]] == ["answers/1"]
    assert other.request("topic.watch", pattern=">")["topics"] == []
    assert other.request("topic.show", topic="answers/1")["settings"] == {"ephemeral": 1}
    assert other.ask("topic.create", topic="answers/1").code == "topic-exists"
    consumer, producer = stage.at_subscription("answers/1", "s"), stage.at_topic("answers/1")
    assert consumer.open_consumer(1, "answers/1", "s").kind == Type.OPENED
    assert (
        consumer.ask("subscription.create", topic="answers/1", subscription="s").code == "subscription-exists"
    )
    changed = consumer.request("subscription.update", topic="answers/1", subscription="s", drop="newest")
    assert changed["settings"] == {"drop": "newest"}
    assert len(other.request("subscription.list", topic="answers/1")["subscriptions"]) == 1
    producer.open_producer(1, "answers/1", 7)
    producer.publish(1, 0, b"hello")
    assert consumer.deliveries(1, 1) == [(0, b"hello")]
    assert stage.catalogue.topics() == []
    client.say({Key.TYPE: Type.BYE})
    stage.settle()
    assert other.ask("topic.show", topic="answers/1").code == "unknown-topic"
    assert consumer.expect(Type.ERROR, handle=1).code == "topic-deleted"
    assert producer.expect(Type.ERROR, handle=1).code == "topic-deleted"
    assert stage.actors("topic") == []
    assert stage.actors("subscription") == []
    assert stage.actor("directory")._registry._owned == {}


def test_a_session_that_falls_silent_takes_its_topics_along(make_stage: Callable[..., Stage]) -> None:
    """So are those of all sessions of a worker that dies; those of other sessions stay."""
    stage = make_stage(2, protocol__session_timeout_ms=2_000, protocol__heartbeat_ms=500)
    lost, killed, stays = stage.client(0), stage.client(1), stage.client(0)
    for number, client in enumerate((lost, killed, stays)):
        client.request("topic.create", topic=f"a{number}", dispatch="non-reliable", ephemeral=1)
    lost.disconnect()
    for _ in range(12):
        stage.advance(0.25)
        for client in (killed, stays):
            client.say({Key.TYPE: Type.PING})
            client.hear(0.0)
    names = [each["topic"] for each in stays.request("topic.list", ephemeral=1)["topics"]]
    assert names == ["a1", "a2"]
    stage.kill(1)
    stage.settle()
    names = [each["topic"] for each in stays.request("topic.list", ephemeral=1)["topics"]]
    assert names == ["a2"]


def test_a_lost_end_is_said_again(make_stage: Callable[..., Stage]) -> None:
    """The mail may be lost: a topic whose session has ended must not stay for ever."""
    stage = make_stage(2, protocol__session_timeout_ms=600_000)
    client, other = stage.client(0), stage.client(1)
    client.request("topic.create", topic="a", dispatch="non-reliable", ephemeral=1)
    stage.hold("worker-0", "broker")
    client.say({Key.TYPE: Type.BYE})
    stage.settle()
    stage.holding = []
    stage.let_go("worker-0", "broker")
    assert len(other.request("topic.list", ephemeral=1)["topics"]) == 1
    stage.advance(KEEP_S)
    assert other.request("topic.list", ephemeral=1)["topics"] == []


def test_only_what_keeps_nothing_is_ephemeral(stage: Stage) -> None:
    """A reliable topic has a log; and a session may create a limited number."""
    client = stage.client()
    assert client.ask("topic.create", topic="a", ephemeral=1).code == "invalid-argument"
    for value in (2, "1"):
        refused = client.ask("topic.create", topic="a", dispatch="non-reliable", ephemeral=value)
        assert refused.code == "invalid-argument"
    assert client.request("topic.create", topic="a", dispatch="non-reliable", ephemeral=0)["settings"] == {}
    assert client.ask("topic.create", topic="a", dispatch="non-reliable", ephemeral=1).code == "topic-exists"
    for number in range(EPHEMERALS_OF_SESSION_MAX):
        client.request("topic.create", topic=f"a/{number}", dispatch="non-reliable", ephemeral=1)
    refused = client.ask("topic.create", topic="b", dispatch="non-reliable", ephemeral=1)
    assert refused.code == "limit-exceeded"
    client.request("topic.delete", topic="a/7")
    client.request("topic.create", topic="b", dispatch="non-reliable", ephemeral=1)


@pytest.mark.parametrize(
    "order",
    ["created by itself", "named before", "named when it is there", "named later", "by hand"],
)
def test_a_watch_is_not_told_of_dead_letter_topics(stage: Stage, order: str) -> None:
    """Whatever they are called, whoever created them, and whether a subscription names them before or after."""
    client = stage.client()
    client.request("topic.create", topic="orders/a")
    watched = client.request("topic.watch", pattern="orders/*")
    say_watch(client, 900, "orders/*", watched["version"])
    named = {"topic": "orders/a", "subscription": "s", "dead_letter_topic": "orders/dead"}
    other = stage.client(1)
    if order == "created by itself":
        other.request("subscription.create", **named, type="shared", start="earliest", max_deliveries=1)
        producer = stage.at_topic("orders/a")
        producer.open_producer(1, "orders/a", 7)
        producer.publish(1, 0, b"x")
        producer.receipts(1, 1)
        consumer = stage.at_subscription("orders/a", "s")
        consumer.open_consumer(1, "orders/a", "s", "shared")
        consumer.deliveries(1, 1)
        consumer.nack(1, (0, 1))
        stage.advance(2.0)
    elif order == "named before":
        other.request("subscription.create", **named)
        other.request("topic.create", topic="orders/dead")
    elif order == "named when it is there":
        other.request("topic.create", topic="orders/dead")
        other.request("subscription.create", **named)
    elif order == "named later":
        other.request("topic.create", topic="orders/dead")
        other.request("subscription.create", topic="orders/a", subscription="s")
        stage.advance(1.0)
        heard(client, 900)
        other.request("subscription.update", **named)
        say_watch(client, 901, "orders/*", client.request("topic.watch", pattern="orders/*")["version"])
    else:
        other.request("topic.create", topic="orders/dead", dead_letters=1)
    stage.advance(1.0)
    assert [each["topic"] for each in client.request("topic.watch", pattern="orders/*")["topics"]] == [
        "orders/a"
    ]
    shown = client.request("topic.show", topic="orders/dead")
    assert shown["settings"]["dead_letters"] == 1
    stage.restart(2)
    told = stage.client().request("topic.watch", pattern="orders/*")["topics"]
    assert [each["topic"] for each in told] == ["orders/a"]


def test_a_topic_that_is_to_take_dead_letters_no_more_is_told_of_again(stage: Stage) -> None:
    """An operator decides, and that holds over restarts."""
    client = stage.client()
    client.request("topic.create", topic="orders/a")
    client.request("topic.create", topic="orders/dead", dead_letters=1)
    version = client.request("topic.watch", pattern="orders/*")["version"]
    say_watch(client, 900, "orders/*", version)
    stage.client(1).request("topic.update", topic="orders/dead", dead_letters=0)
    stage.advance(SETTLE_S)
    assert heard(client, 900) == ["orders/a", "orders/dead"]
    stage.restart(2)
    told = stage.client().request("topic.watch", pattern="orders/*")["topics"]
    assert [each["topic"] for each in told] == ["orders/a", "orders/dead"]


def test_dead_letter_topics_of_before_there_were_marks_are_known_by_their_subscriptions(stage: Stage) -> None:
    """At the next start."""
    client = stage.client()
    for topic in ("orders/a", "orders/dead"):
        client.request("topic.create", topic=topic)
    client.request("subscription.create", topic="orders/a", subscription="s", dead_letter_topic="orders/dead")
    stage.catalogue.update_topic("orders/dead", {})
    stage.restart(2)
    told = stage.client().request("topic.watch", pattern="orders/*")["topics"]
    assert [each["topic"] for each in told] == ["orders/a"]


def test_a_watch_says_which_topics_came_while_nobody_consumed_the_pattern(stage: Stage) -> None:
    """After its subscription was first created on one of them; not those that have it, nor those from before."""
    client = stage.client()

    def later(subscription: str = "s", pattern: str = "orders/*") -> list[str]:
        told = stage.client().request("topic.watch", pattern=pattern, subscription=subscription)["topics"]
        return [each["topic"] for each in told if each["later"]]

    for topic in ("orders/a", "orders/b", "bills/a"):
        client.request("topic.create", topic=topic)
    assert later() == []
    client.request("subscription.create", topic="bills/a", subscription="s")
    client.request("topic.create", topic="orders/c")
    assert later() == []
    client.request("subscription.create", topic="orders/a", subscription="s")
    client.request("topic.create", topic="orders/d")
    client.request("topic.create", topic="orders/e")
    client.request("subscription.create", topic="orders/e", subscription="s")
    assert later() == ["orders/d"]
    stage.restart(2)
    assert later() == ["orders/d"]
    assert later("other") == []
    assert later(pattern=">") == ["orders/c", "orders/d"]
    told = stage.client().request("topic.watch", pattern="orders/*")["topics"]
    assert "later" not in told[0]
    assert stage.client().ask("topic.watch", pattern="orders/*", subscription="a b").code == "invalid-name"


def test_what_is_created_later_says_so_also_when_the_clock_steps_back(stage: Stage) -> None:
    """Otherwise a topic created since would be taken for an older one."""
    client = stage.client()
    client.request("topic.create", topic="orders/a")
    client.request("subscription.create", topic="orders/a", subscription="s")
    wall = stage.clock.time_ms
    stage.clock.time_ms = lambda: wall() - 3_600_000  # type: ignore[method-assign]
    stage.restart(2)
    client = stage.client()
    client.request("topic.create", topic="orders/b")
    told = client.request("topic.watch", pattern="orders/*", subscription="s")["topics"]
    assert [each["topic"] for each in told if each["later"]] == ["orders/b"]


def test_who_waits_is_answered_in_the_order_of_asking() -> None:
    """So that the same history has the same outcome in another process."""
    calls: list[Callable[[], None]] = []
    answered: list[int] = []
    waiting = Watches(
        topics=list,
        version=lambda: 1,
        subscribed=lambda _: {},
        call_later=lambda _, call: calls.append(call),  # type: ignore[arg-type, return-value]
        answer=lambda ask, _: answered.append(ask.ticket),
        refuse=lambda ask, error: answered.append(-ask.ticket),
    )
    for ticket in range(200):
        waiting.watch(Ask("topic.watch", b"", Address("w", "f"), ticket), re.compile(".*"), 0, 1000)
    waiting.changed("orders")
    for call in calls:
        call()
    assert answered == list(range(200))
