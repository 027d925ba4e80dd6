"""Tests of `explain`: the reasons why a subscription does not deliver."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.actors.explain import STOPPING, explain
from ister.actors.explain_state import State, TopicState
from ister.actors.messages import Refused
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.wire import Key, Type, encode_result
from tests.stage import Stage

NOW = 1_700_000_000_000

# A subscription that delivers: its consumer has credit, and messages are there.
RUNNING: State = {
    "type": "shared",
    "consumers": 1,
    "ready": 1,
    "cursor": 10,
    "position": 20,
    "durable_end": 100,
    "unacknowledged": 90,
    "in_flight": 10,
    "due": 0,
}
TOPIC: TopicState = {
    "producers": 1,
    "next_offset": 100,
    "durable_end": 100,
    "last_published_ms": NOW - 60_000,
}
DONE: State = {**RUNNING, "cursor": 100, "position": 100, "unacknowledged": 0, "in_flight": 0}


def codes(state: State | None, topic: TopicState | None = TOPIC) -> list[str]:
    """Return the codes of the reasons, in order."""
    return [reason["code"] for reason in explain("s", state, topic, NOW)["reasons"]]


def text(state: State | None, code: str, topic: TopicState | None = TOPIC) -> str:
    """Return the text of one reason."""
    (found,) = [r["text"] for r in explain("s", state, topic, NOW)["reasons"] if r["code"] == code]
    return str(found)


def test_what_flows_needs_no_reason() -> None:
    """A consumer has credit and messages are there: no reason is given."""
    answer = explain("s", RUNNING, TOPIC, NOW)
    assert (answer["flowing"], answer["reasons"]) == (True, [])
    assert answer["numbers"]["subscription"] == RUNNING
    assert answer["numbers"]["topic"]["next_offset"] == 100


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"starting": True}, "starting", "ask again"),
        ({"failure": "offset 5 is not there"}, "topic-failed", "offset 5 is not there"),
        ({"paused": True}, "paused", "until somebody resumes it"),
        (
            {"poison": {"first": 7, "attempts": 3, "text": "no such customer", "since_ms": NOW - 180_000}},
            "poison-block",
            (
                "offset 7 failed 3 times and blocks the subscription, since 3 min ago (2023-11-14 22:10:20 UTC) "
                "(no such customer); unblock it: retry, drop or dead-letter"
            ),
        ),
        (
            {"damage": {"first": 7, "end": 9, "text": "CRC"}},
            "damage",
            "offsets 7 to before 9 are damaged (CRC)",
        ),
        (
            {"consumers": 0, "ready": 0},
            "no-consumer",
            "no consumer is connected: start one of subscription 's'",
        ),
        (
            {"consumers": 0, "ready": 0, "consumer_left_ms": NOW - 5_000},
            "no-consumer",
            "the last one left 5.0 s ago",
        ),
        ({"handing_over": 1}, "handing-over", "give back, what it holds"),
        ({"ready": 0, "connection_full": 1}, "connection-full", "1 of 1 consumer accept nothing"),
        ({"ready": 0, "no_credit": 1}, "no-credit", "10 messages are with consumers"),
        ({"ready": 0, "standby": 1}, "standby-only", "none is active"),
        (
            {"tracked_full": True, "tracked": 9, "tracked_max": 9},
            "too-many-unacknowledged",
            "acknowledge the oldest, from offset 10 on",
        ),
        (
            {"fetch": {"first": 10, "end": 50, "since_ms": NOW - 1_000, "text": "no network"}},
            "cloud-fetch",
            "being brought back, since 1.0 s ago (2023-11-14 22:13:19 UTC) (no network)",
        ),
    ],
)
def test_what_stops_everything_is_said(change: State, code: str, words: str) -> None:
    """Each of them has a reason of its own, and nothing is delivered meanwhile."""
    state: State = {**RUNNING, **change}
    assert codes(state) == [code]
    assert words in text(state, code)
    assert not explain("s", state, TOPIC, NOW)["flowing"]


def test_a_silent_process_is_a_reason() -> None:
    """If one of the two actors does not answer, that is said beside the other's answer."""
    assert codes(None) == ["starting"]
    assert codes(RUNNING, None) == ["topic-failed"]
    assert codes(None, None) == ["topic-failed", "starting"]
    assert codes({}, TOPIC)[0] == "no-consumer"


def test_a_failed_topic_is_said_with_its_words() -> None:
    """Messages that were durable before are still delivered, so both reasons can hold."""
    failed: TopicState = {**TOPIC, "failure": "no space left"}
    assert codes(RUNNING, failed) == ["topic-failed"]
    assert "no space left" in text(RUNNING, "topic-failed", failed)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (
            {
                "keyed": 80,
                "keys": [{"key": "k1", "consumer": 4, "client": "billing", "since_ms": NOW - 42_000}],
            },
            "waiting-for-key",
            (
                "80 messages wait for an earlier one of their key to be acknowledged: 'k1' with consumer 4 (billing) "
                "since 42 s ago"
            ),
        ),
        (
            {"backoff": 80, "backoff_until_ms": NOW + 4_000},
            "waiting-for-backoff",
            "the first is due in 4.0 s (2023-11-14 22:13:24 UTC)",
        ),
        ({"delayed": 80, "delayed_until_ms": NOW + 86_400_000 * 3}, "waiting-for-delay", "due in 3 days"),
        ({"delayed": 80, "delayed_until_ms": 1 << 62}, "waiting-for-delay", "unix ms 4611686018427387904"),
        (
            {"burying": 80, "bury_trouble": "disk full", "dead_letter_topic": "t.s.dlq"},
            "dead-letter-delayed",
            "'t.s.dlq': disk full",
        ),
    ],
)
def test_what_makes_some_wait_is_said(change: State, code: str, words: str) -> None:
    """It is listed among other reasons; alone it does not say that delivery has stopped."""
    state: State = {**RUNNING, **change}
    assert words in text(state, code)
    assert codes(state) == [code, "unacknowledged"]
    assert not explain("s", state, TOPIC, NOW)["flowing"]
    state["unacknowledged"] += 1000
    state["durable_end"] += 1000
    assert codes(state) == [code]
    assert explain("s", state, TOPIC, NOW)["flowing"]


def test_everything_delivered_waits_for_acknowledgments() -> None:
    """The reason says who holds how much since when, which is what an operator looks for."""
    state: State = {
        **RUNNING,
        "position": 100,
        "unacknowledged": 10,
        "holders": [{"consumer": 3, "client": "ister/1", "messages": 10, "since_ms": NOW - 120_000}],
    }
    assert codes(state) == ["unacknowledged", "producer-not-publishing"]
    words = "10 messages wait to be acknowledged, with consumer 3 (ister/1), 10 messages, since 2 min ago"
    assert words in text(state, "unacknowledged")


def test_nothing_left_is_said_with_who_sends_nothing() -> None:
    """A subscription without messages says so, and how many producers there are."""
    assert codes(DONE) == ["caught-up", "producer-not-publishing"]
    assert "1 producer is connected, and sends nothing; the last message came 60 s ago" in text(
        DONE, "producer-not-publishing"
    )
    assert "no producer is connected" in text(DONE, "producer-not-publishing", {**TOPIC, "producers": 0})
    assert codes(DONE, {**TOPIC, "last_published_ms": NOW - 100}) == ["caught-up"]
    assert codes({**DONE, "ready": 0, "no_credit": 1}) == ["caught-up", "producer-not-publishing"]
    assert explain("s", {**DONE, "last_delivered_ms": NOW - 100}, TOPIC, NOW)["flowing"]


def test_what_is_not_durable_is_not_nothing() -> None:
    """With durability cloud and the store away, messages arrive and none may be delivered."""
    topic: TopicState = {**TOPIC, "next_offset": 130, "upload_failure": "no network"}
    assert codes(DONE, topic) == ["waiting-for-durability"]
    assert "30 messages arrived and cannot be delivered before they are durable" in text(
        DONE, "waiting-for-durability", topic
    )
    assert "no network" in text(DONE, "waiting-for-durability", topic)


def test_the_first_reason_is_the_first_to_look_at() -> None:
    """An operator who reads only one line reads the cause."""
    everything: State = {
        **RUNNING,
        "starting": True,
        "paused": True,
        "poison": {"first": 7},
        "damage": {"first": 7, "end": 8},
        "consumers": 0,
        "tracked_full": True,
        "fetch": {"first": 10},
        "keyed": 1,
        "backoff": 1,
        "delayed": 1,
    }
    found = codes(everything, {**TOPIC, "failure": "gone"})
    stopping = [code for code in found if code in STOPPING]
    assert found[: len(stopping)] == stopping
    assert found[:5] == ["topic-failed", "starting", "paused", "poison-block", "damage"]


counts = st.integers(0, 5)
states = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            (
                "consumers",
                "ready",
                "no_credit",
                "connection_full",
                "standby",
                "handing_over",
                "position",
                "durable_end",
                "unacknowledged",
                "in_flight",
                "due",
                "backoff",
                "delayed",
                "keyed",
                "burying",
            ),
            counts,
        ),
        **dict.fromkeys(("starting", "paused", "tracked_full"), st.booleans()),
        **dict.fromkeys(("failure", "bury_trouble"), st.none() | st.text(max_size=3)),
        **dict.fromkeys(
            ("backoff_until_ms", "delayed_until_ms", "last_delivered_ms", "consumer_left_ms"),
            st.none() | st.integers(0, 1 << 63),
        ),
        **dict.fromkeys(("poison", "damage", "fetch"), st.none() | st.just({"first": 1})),
    },
)


@given(
    states,
    st.fixed_dictionaries({}, optional={"producers": counts, "next_offset": counts, "failure": st.none()}),
)
def test_whatever_is_said_is_explained(state: Any, topic: Any) -> None:
    """Any numbers give an answer that can be sent, and a subscription that does not deliver has a reason."""
    answer = explain("s", state, topic, NOW)
    encode_result(answer)
    assert answer["flowing"] or answer["reasons"]
    assert all(reason["text"] and reason["code"] for reason in answer["reasons"])


def test_a_client_is_told_why_nothing_comes(stage: Stage) -> None:
    """From both actors' numbers, wherever they run, to the text the client gets."""
    client = stage.client()
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    client.request("subscription.create", topic="quotes", subscription="s")
    answer = client.request("subscription.explain", topic="quotes", subscription="s")
    assert not answer["flowing"]
    assert "every message is delivered: nothing is left" in [reason["text"] for reason in answer["reasons"]]
    assert [reason["code"] for reason in answer["reasons"]] == [
        "no-consumer",
        "caught-up",
        "producer-not-publishing",
    ]
    consumer = stage.at_subscription("quotes", "s")
    assert consumer.open_consumer(1, "quotes", "s", "shared", messages=1).kind == Type.OPENED
    producer = stage.at_topic("quotes")
    producer.open_producer(1, "quotes", 7)
    producer.publish(1, 0, b"a", b"b")
    stage.settle()
    answer = client.request("subscription.explain", topic="quotes", subscription="s")
    assert [reason["code"] for reason in answer["reasons"]] == ["no-credit"]
    assert answer["numbers"]["topic"]["producers"] == 1
    assert client.ask("subscription.explain", topic="quotes", subscription="t").code == "unknown-subscription"


def test_half_an_answer_is_given(stage: Stage) -> None:
    """While a process is down, the other's answer is given, with the name of the missing process."""
    client = stage.client(0)
    name = next(
        f"t{n}"
        for n in range(99)
        if client.request("topic.create", topic=f"t{n}", dispatch="non-reliable")["node"] == "worker-1"
    )
    made = [client.request("subscription.create", topic=name, subscription=f"s{n}") for n in range(9)]
    here = next(one["subscription"] for one in made if one["node"] == "worker-0")
    there = next(one["subscription"] for one in made if one["node"] == "worker-1")
    stage.kill(1)
    for subscription, missing in ((here, ["topic-failed"]), (there, ["topic-failed", "starting"])):
        answer = client.request("subscription.explain", topic=name, subscription=subscription)
        found = [reason["code"] for reason in answer["reasons"]]
        assert found[: len(missing)] == missing


def test_an_actor_that_refuses_is_done_without(stage: Stage) -> None:
    """The topic's actor may be ending at that moment: the subscription's reasons are given all the same."""
    client = stage.client(0)
    home = {f"t{n}": worker_of(topic_key(f"t{n}"), 2) for n in range(99)}
    name = next(name for name, worker in home.items() if worker == 1)
    subscription = next(f"s{n}" for n in range(99) if worker_of(subscription_key(name, f"s{n}"), 2) == 0)
    client.request("topic.create", topic=name, dispatch="non-reliable")
    client.request("subscription.create", topic=name, subscription=subscription)
    stage.hold("broker", "worker-1")
    arguments = {"topic": name, "subscription": subscription}
    header = {Key.TYPE: Type.REQUEST, Key.REF: 10**6, Key.OPERATION: "subscription.explain"}
    client.say(header | {Key.ARGUMENTS: arguments})
    stage.settle()
    directory = stage.actor("directory")
    (ticket,) = directory._gatherings.tickets()
    directory.ref.tell(Refused(ticket, "unavailable", "it ends"))
    codes = [reason["code"] for reason in client.expect(Type.RESULT, ref=10**6).result["reasons"]]
    assert codes[:2] == ["topic-failed", "no-consumer"]
