"""Tests that `ister.answers` declares what a broker answers: every key, with its type."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from ister.actors.addresses import BROKER
from ister.answers import (
    FLAGS,
    Explanation,
    Process,
    Reason,
    Status,
    SubscriptionDetail,
    SubscriptionInfo,
    SubscriptionSettings,
    TopicDetail,
    TopicInfo,
    TopicSettings,
    as_flags,
    with_booleans,
)
from ister.wire import Key, decode_result, encode_result
from tests.actors.scenes import Scene
from tests.stage import Stage


def faults(value: Any, kind: Any, where: str) -> list[str]:
    """Return how a value differs from its type."""
    origin = get_origin(kind)
    if kind is Any:
        return []
    if origin is NotRequired:
        return faults(value, get_args(kind)[0], where)
    if origin is Literal:
        return [] if value in get_args(kind) else [f"{where} is {value!r}, not one of {get_args(kind)}"]
    if origin in (Union, types.UnionType):
        each_way = [faults(value, each, where) for each in get_args(kind)]
        return [] if any(not found for found in each_way) else each_way[0]
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        more = kind is Reason  # its numbers are keys of their own
        found = (
            []
            if more
            else [
                f"{where} has {key!r}, which {kind.__name__} in ister/answers.py lacks"
                for key in value.keys() - hints.keys()
            ]
        )
        found += [f"{where} has no {key!r}" for key in kind.__required_keys__ - value.keys()]
        for key in value.keys() & hints.keys():
            found += faults(value[key], hints[key], f"{where}[{key!r}]")
        return found
    if origin is list:
        return [fault for each in value for fault in faults(each, get_args(kind)[0], f"{where}[]")]
    if origin is dict:
        return [
            fault
            for key, each in value.items()
            for fault in faults(each, get_args(kind)[1], f"{where}[{key!r}]")
        ]
    good = type(value) is kind or (kind is float and type(value) is int)
    return [] if good else [f"{where} is {value!r}, not of type {kind}"]


def check(value: Any, kind: Any) -> None:
    """Check an answer against its type."""
    assert not faults(value, kind, kind.__name__)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Return a broker of two workers."""
    stage = Stage(tmp_path, 2)
    yield stage
    stage.close()


@pytest.fixture
def scene(stage: Stage) -> Scene:
    """Return a topic with every setting, and a consumer that has acknowledged some messages."""
    scene = Scene(
        stage,
        retention_ms=10**9,
        retention_bytes=10**9,
        retention_acknowledged=1,
        message_ttl_ms=10**9,
    )
    scene.publish(b"a", b"b", b"c")
    client = scene.consumer(
        max_deliveries=3, poison="drop", backoff_ms_min=1, backoff_ms_max=2, ack_timeout_ms=1000
    )
    client.deliveries(1, 3)
    client.ack(1, (1, 2))
    stage.start_tier()
    return scene


@pytest.mark.requirement("10.2-3")
def test_a_reliable_topic_is_answered_as_declared(scene: Scene) -> None:
    """In lists and in detail; also after its log has failed."""
    client = scene.stage.client()
    check(with_booleans(client.request("topic.show", topic="orders")), TopicDetail)
    check(with_booleans(client.request("topic.list")["topics"][0]), TopicInfo)
    check(with_booleans(client.request("topic.update", topic="orders", retention_ms=5)), TopicInfo)
    detail: TopicDetail = with_booleans(client.request("topic.show", topic="orders"))
    assert detail["settings"]["retention_acknowledged"] is True
    assert detail["durable_end"] == 3


def test_a_non_reliable_topic_is_answered_as_declared(stage: Stage) -> None:
    """It has no fields about a log."""
    client = stage.client()
    check(client.request("topic.create", topic="quotes", dispatch="non-reliable"), TopicInfo)
    check(client.request("topic.show", topic="quotes"), TopicDetail)
    made = client.request("topic.create", topic="inbox", dispatch="non-reliable", ephemeral=True)
    check(with_booleans(made), TopicInfo)
    assert made["settings"] == {"ephemeral": True}


@pytest.mark.parametrize("type_", ["exclusive", "shared", "failover", "key-shared"])
def test_a_subscription_is_answered_as_declared(scene: Scene, type_: str) -> None:
    """Of every type, of reliable and non-reliable topics."""
    client = scene.stage.client()
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    for topic in ("orders", "quotes"):
        asked = {"topic": topic, "subscription": f"other-{type_}"}
        check(with_booleans(client.request("subscription.create", type=type_, **asked)), SubscriptionInfo)
        check(with_booleans(client.request("subscription.show", **asked)), SubscriptionDetail)
        check(client.request("subscription.explain", **asked), Explanation)
    check(with_booleans(scene.shown()), SubscriptionDetail)
    for listed in client.request("subscription.list", topic="orders")["subscriptions"]:
        check(with_booleans(listed), SubscriptionInfo)
    check(scene.request("explain"), Explanation)


def test_the_status_is_answered_as_declared(scene: Scene) -> None:
    """Of every kind of process."""
    scene.stage.systems[BROKER].ref(BROKER, "directory")
    status = scene.stage.client().request("status")
    check(status, Status)
    assert {process["role"] for process in status["processes"]} == {"broker", "worker"}


def test_every_setting_is_declared() -> None:
    """Every option of a topic or subscription is a key of its settings."""
    from ister.actors.options import SUBSCRIPTION_OPTIONS, TOPIC_OPTIONS

    assert TopicSettings.__annotations__.keys() == {*TOPIC_OPTIONS, "ephemeral"}
    assert SubscriptionSettings.__annotations__.keys() == SUBSCRIPTION_OPTIONS.keys()
    yes_or_no = {
        name for name, allowed in {**TOPIC_OPTIONS, **SUBSCRIPTION_OPTIONS}.items() if allowed == (0, 1)
    }
    assert {*FLAGS} == yes_or_no | {"ephemeral"}
    assert Process.__optional_keys__


# ---- flags -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("10.2-2")
@pytest.mark.parametrize("yes", [True, 1])
def test_a_flag_may_be_true_or_one(stage: Stage, yes: object) -> None:
    """In whichever form it is given, it is stored and answered as 1."""
    client = stage.client()
    made = client.request("topic.create", topic="orders", retention_acknowledged=yes)
    assert made["settings"] == {"retention_acknowledged": 1}
    assert type(made["settings"]["retention_acknowledged"]) is int
    off = client.request("topic.update", topic="orders", retention_acknowledged=False)
    assert off["settings"] == {"retention_acknowledged": 0}
    paused = client.request("subscription.create", topic="orders", subscription="s", paused=yes)
    assert type(paused["settings"]["paused"]) is int
    opened = client.request("subscription.update", topic="orders", subscription="s", paused=False)
    assert opened["settings"] == {"paused": 0}
    client.request("topic.create", topic="inbox", dispatch="non-reliable", ephemeral=yes)
    assert len(client.request("topic.list", ephemeral=yes)["topics"]) == 2
    assert len(client.request("topic.list", ephemeral=False)["topics"]) == 1


@pytest.mark.requirement("10.2-2")
@pytest.mark.parametrize("wrong", [2, -1, "yes", None, 1.0])
def test_a_flag_is_nothing_else(stage: Stage, wrong: object) -> None:
    """The error names the setting, its value and the allowed values; another number is no flag."""
    client = stage.client()
    refused = client.ask("topic.create", topic="orders", retention_acknowledged=wrong)
    assert refused.code == "invalid-argument"
    assert "retention_acknowledged is" in refused.header[Key.TEXT]
    assert client.ask("topic.create", topic="orders", retention_ms=True).code == "invalid-argument"


def test_flags_travel_as_numbers_and_are_shown_as_booleans() -> None:
    """An older broker understands the client's number; the program sees the boolean it gave."""
    sent = as_flags({"retention_acknowledged": True, "retention_ms": 5, "paused": False})
    assert sent == {"retention_acknowledged": 1, "retention_ms": 5, "paused": 0}
    assert {type(value) for value in sent.values()} == {int}
    answer = with_booleans({"settings": decode_result(encode_result(sent))})
    assert answer["settings"] == {"retention_acknowledged": True, "retention_ms": 5, "paused": False}
    assert type(answer["settings"]["paused"]) is bool
    assert with_booleans({"deleted": "orders"}) == {"deleted": "orders"}
