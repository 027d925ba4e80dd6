"""Tests of seeks together with late acknowledgments, waiting messages, blocked ones, dead letters, retention and lost
consumers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ister.actors.messages import ConsumerFrame, NotFetched, Seek, Sought, Trimmed, Yield, Yielded
from ister.actors.source import Source
from ister.actors.subscription.log_access import LogAccess
from ister.storage.wholereader import NotHereError
from ister.wire import Key, Type
from tests.actors.scenes import Scene, consumer_of, offsets, part, say_seek, subscription
from tests.stage import Stage, held_up, inbox_holds


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that keeps the session of a silent client for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


def test_a_consumer_that_held_too_much_gets_messages_again_after_a_move(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages it returned no longer count against its limit."""
    monkeypatch.setattr("ister.actors.consumer_holding.IN_FLIGHT_RANGES_MAX", 3)
    scene = Scene(stage)
    client = scene.consumer()
    for _ in range(10):
        scene.publish(b"x")
        stage.settle()
    assert len(offsets(client)) < 10
    scene.request("seek", to="latest")
    scene.publish(b"y")
    assert offsets(client) == [10]


def test_an_acknowledgment_between_giving_back_and_moving_counts_for_nothing(stage: Stage) -> None:
    """It reaches the subscription after the seek, and is for an earlier delivery."""
    scene = Scene(stage, type="exclusive")
    client = scene.consumer(messages=4)
    scene.publish(b"0", b"1", b"2", b"3")
    assert offsets(client) == [0, 1, 2, 3]
    actor, consumer = subscription(scene), consumer_of(scene)
    asked = stage.client()
    say_seek(asked, 0)
    with held_up(consumer):
        stage.loop.turns_until(lambda: inbox_holds(consumer, Yield))
    with held_up(actor):
        stage.loop.turns_until(lambda: inbox_holds(actor, Yielded))
    with held_up(consumer):
        client.ack(1, (0, 4), confirm=False)
        stage.loop.sockets()
        stage.loop.turns_until(lambda: inbox_holds(consumer, Sought))
        queue = [type(message) for message in consumer.inbox._queue]
        assert queue.index(ConsumerFrame) < queue.index(Sought)
    stage.settle()
    assert scene.shown()["cursor"] == 0
    client.credit(1, 10)
    assert offsets(client) == [0, 1, 2, 3]


def test_a_move_that_waits_for_the_store_ends_when_retention_takes_what_it_waits_for(stage: Stage) -> None:
    """No further request is needed."""
    scene = Scene(stage)
    scene.consumer().close_handle(1)
    scene.publish(b"0", b"1", b"2")
    actor = subscription(scene)
    source = part(scene, LogAccess).source
    found: list[int] = []
    real = source.offset_at

    def offset_at(timestamp_ms: int, start: int, headers_max: int | None = None) -> int:
        if not found:
            found.append(1)
            raise NotHereError(1, 2)
        return int(real(timestamp_ms, start, headers_max))

    source.offset_at = offset_at
    asked = stage.client()
    ref = say_seek(asked, "time:0")
    stage.settle()
    assert scene.shown()["fetching"] == 1
    source.history_start = 2
    actor.ref.tell(Trimmed(2))
    answer = asked.expect(Type.RESULT, Type.ERROR, ref=ref, timeout_s=1)
    assert answer.kind == Type.RESULT
    assert answer.result == {"position": 2}


def test_acknowledging_up_to_an_offset_means_nothing_of_before_a_move(stage: Stage) -> None:
    """Only messages delivered since can be acknowledged, also if all below one offset are named."""
    scene = Scene(stage, type="exclusive")
    client = scene.consumer(messages=4)
    scene.publish(b"0", b"1", b"2", b"3")
    assert offsets(client) == [0, 1, 2, 3]
    scene.request("seek", to=0)
    assert client.ack_until(1, 3).kind == Type.DONE
    assert scene.shown()["cursor"] == 0
    client.credit(1, 2)
    assert offsets(client) == [0, 1]
    assert client.ack_until(1, 3).kind == Type.DONE
    assert scene.shown()["cursor"] == 2


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_who_shares_acknowledges_up_to_an_offset_only_what_is_his(stage: Stage, type_: str) -> None:
    """Messages below it that others hold are not acknowledged."""
    scene = Scene(stage, type=type_)
    clients = [scene.consumer(), scene.consumer()]
    for number in range(20):
        scene.publish(b"x", key=b"%d" % number)
        stage.settle()
    mine, others = map(offsets, clients)
    assert mine
    assert others
    assert clients[0].ack_until(1, 19 if 19 in mine else max(mine)).kind == Type.DONE
    clients[0].close_handle(1)
    assert offsets(clients[1]) == []
    clients[1].close_handle(1)
    assert sorted(offsets(scene.consumer())) == others


@pytest.mark.parametrize("to", ["earliest", "latest"])
@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_what_waits_for_its_time_or_its_back_off_is_forgotten_by_a_move(
    stage: Stage, type_: str, to: str
) -> None:
    """Messages after the new position come once, and those before it do not come."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2", key=b"k", deliver_at=[scene.now_ms() + 5000, scene.now_ms() + 80_000, 0])
    assert offsets(client) == [2]
    client.nack(1, (2, 3), delay_ms=10_000)
    stage.settle()
    scene.request("seek", to=to)
    got = offsets(client)
    stage.advance(100)
    got += offsets(client)
    assert sorted(got) == ([0, 1, 2] if to == "earliest" else [])
    if got:
        client.ack(1, (0, 3))
    shown = scene.shown()
    assert (shown["cursor"], shown["delayed"], shown["in_flight"], shown["waiting_redelivery"]) == (
        3,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_a_move_lifts_a_block(stage: Stage, type_: str) -> None:
    """The operator has decided about the message that blocked."""
    scene = Scene(stage, type=type_)
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"bad", key=b"k")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.settle()
    scene.publish(b"good", key=b"k")
    assert offsets(client) == []
    assert scene.request("seek", to=1) == {"position": 1}
    assert offsets(client) == [1]
    assert scene.shown()["blocked"] is False


def test_a_letter_on_its_way_is_one_letter_after_a_move_too(stage: Stage) -> None:
    """Its message is delivered again because of the seek; that its letter was stored does not acknowledge it."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1)
    node = scene.stage.actor("subscription", "orders", "s").system.node
    stage.hold(node, "broker")  # the dead-letter topic's worker is away
    scene.publish(b"bad")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.settle()
    subscription(scene).ref.tell(Seek("0", stage.actor("directory").address, 1 << 60))
    assert offsets(client) == [0]
    stage.let_go(node, "broker")
    stage.advance(15)
    shown = scene.shown()
    assert (shown["cursor"], shown["in_flight"], shown["burying"]) == (0, 1, 0)
    client.ack(1, (0, 1))
    assert scene.shown()["cursor"] == 1


@pytest.mark.parametrize("others", [0, 1])
def test_a_move_does_not_wait_for_a_consumer_that_dies_in_the_middle(stage: Stage, others: int) -> None:
    """Nor for the last one; what it held is delivered with the rest."""
    scene = Scene(stage)
    clients = [scene.consumer() for _ in range(1 + others)]
    scene.publish(b"0")
    stage.settle()
    consumer = consumer_of(scene)
    ref = say_seek(asked := stage.client(), 0)
    with held_up(consumer):
        stage.loop.turns_until(lambda: inbox_holds(consumer, Yield))
        consumer.fail(RuntimeError("on purpose"))
        stage.failures.clear()
    assert asked.expect(Type.RESULT, Type.ERROR, ref=ref).result == {"position": 0}
    assert offsets(clients[1] if others else scene.consumer())[-1:] == [0]


def test_of_several_who_take_over_at_once_the_last_has_it(stage: Stage) -> None:
    """The others are told, and nothing is lost from one to the next."""
    scene = Scene(stage, type="exclusive")
    first = scene.consumer()
    scene.publish(b"0", b"1", b"2")
    assert offsets(first) == [0, 1, 2]
    others = [stage.at_subscription("orders", "s") for _ in range(3)]
    for each in others:
        each.say_open_consumer(1, "orders", "s", force=True)
    stage.settle()
    got, told = [], []
    for client in (first, *others):
        while (frame := client.hear(0)) is not None:
            if frame.kind == Type.DELIVER:
                got += frame.offsets()
            elif frame.kind == Type.ERROR:
                told.append(frame.code)
    assert got == [0, 1, 2]
    assert told == ["taken-over"] * 3
    assert scene.shown()["consumers"] == 1


def test_a_start_by_time_in_what_the_store_has_no_more_is_looked_for_behind_it(stage: Stage) -> None:
    """The store's answer counts until the topic has given its own."""
    scene = Scene(stage)
    for number in range(4):
        scene.publish(b"%d" % number)
        stage.advance(1)
    fetches: list[int] = []

    def fetch(self: Any, missing: NotHereError) -> None:
        fetches.append(missing.offset)
        self._fetching = missing
        self._subscription.ref.tell(NotFetched(missing.offset, "gone", False, 2))

    real = Source.offset_at

    def offset_at(self: Source, timestamp_ms: int, start: int, headers_max: int | None = None) -> int:
        if max(start, self.history_start) < 2:
            raise NotHereError(start, start + 1)
        return real(self, timestamp_ms, start, headers_max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogAccess, "fetch", fetch)
        patch.setattr(Source, "offset_at", offset_at)
        client = scene.consumer(start="time:0")
    assert len(fetches) == 1
    assert client.opened.header[Key.OFFSET] == 2
