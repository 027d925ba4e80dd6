"""Tests of limits: memory, the length of one turn, and what ten thousand consumers cost each other."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ister.actors.lanes import Lanes
from ister.actors.selection import Member, Roster
from ister.actors.subscription.by_key import ByKey
from ister.actors.subscription.schedule import Schedule
from tests.actors.scenes import Scene, consumer_of, events, offsets, part, subscription
from tests.stage import Stage


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that keeps the session of a silent client for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


def test_thousands_who_hold_much_cost_a_delivery_nothing() -> None:
    """The consumer for the next delivery is found without looking at the many that hold too much."""
    roster = Roster("shared", "s")
    members = [
        roster.attach(key, priority=0, messages=100 if key < 3000 else 0, bytes=1000) for key in range(10_000)
    ]
    for member in members[:3000]:
        member.outstanding = 300
        roster.outstanding += 300
    chosen = set()
    begin = time.perf_counter()
    for _ in range(3000):
        next_one = roster.choose()
        assert next_one is not None
        chosen.add(next_one.key)
        roster.spend(next_one, 1, 1)
    assert time.perf_counter() - begin < 1.5
    assert len(chosen) > 2500, "and all have their turns"


def test_who_leaves_costs_nothing_of_what_others_have_in_flight() -> None:
    """A thousand consumers may leave at once without disturbing what the others hold."""
    lanes = Lanes()
    members = [Member(key, 0, key, 1000, 1000) for key in range(1000)]
    for member in members:
        lanes.attach(member)
    for offset in range(90_000):
        lanes.arrive(offset, b"%d" % offset)
    for member in members:
        while (entry := lanes.next(member)) is not None:
            lanes.take(member, entry)
    assert lanes.in_flight == 90_000
    begin = time.perf_counter()
    for member in members[:100]:
        lanes.detach(member)
    assert time.perf_counter() - begin < 2.0


def test_what_slow_consumers_left_in_the_log_is_not_looked_through_for_the_others() -> None:
    """While the slow consumers take nothing, the dispatcher knows that nobody wants those messages."""
    lanes = Lanes()
    slow, fast = Member(1, 0, 1, 0, 0), Member(2, 0, 2, 1000, 1000)
    lanes.attach(slow)
    lanes.attach(fast)
    offset = 0
    while lanes.overflowed < 5000:
        lanes.arrive(offset, b"%d" % offset)
        while (entry := lanes.next(fast)) is not None:
            lanes.take(fast, entry, deliver=False)
        offset += 1
    begin = time.perf_counter()
    for _ in range(3000):
        assert lanes.refill_from() is None
    assert time.perf_counter() - begin < 1.0
    slow.messages = slow.bytes = 1000
    while (entry := lanes.next(slow)) is not None:
        lanes.take(slow, entry, deliver=False)
    assert lanes.refill_from() is not None


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_a_cursor_full_of_holes_takes_nothing_new_until_they_are_filled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, type_: str
) -> None:
    """Delivery resumes by itself once enough holes are acknowledged."""
    monkeypatch.setattr("ister.actors.subscription.log_parts.PIECES_BYTES_MAX", 160)
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    for number in range(40):
        scene.publish(b"x", key=b"%d" % number)
    assert sorted(offsets(client)) == list(range(40))
    client.ack(1, *((offset, offset + 1) for offset in range(1, 40, 2)))
    for number in range(5):
        scene.publish(b"y", key=b"%d" % number)
    assert offsets(client) == []
    client.ack(1, *((offset, offset + 1) for offset in range(0, 40, 2)), confirm=False)
    assert sorted(offsets(client)) == [40, 41, 42, 43, 44]


def test_what_is_told_to_a_client_that_does_not_listen_is_bounded(stage: Stage) -> None:
    """When the connection is full, only the newest events of each kind are kept."""
    scene = Scene(stage)
    client = scene.consumer()
    client.router.full.add(client.routing)
    for _ in range(300):
        scene.request("seek", to=0)
    consumer = consumer_of(scene)
    assert len(consumer.wire.backlog) < 100
    client.router.full.discard(client.routing)
    stage.advance(1)
    assert events(client)[-1].code == "sought"


@pytest.mark.requirement("9.4-4")
def test_who_holds_far_more_than_others_is_passed_over() -> None:
    """It gets no messages while another consumer has room."""
    roster = Roster("shared", "s")
    hoarder, other = (roster.attach(key, priority=0, messages=10_000, bytes=1 << 30) for key in range(2))
    for _ in range(50):
        member = roster.choose()
        assert member is not None
        roster.spend(member, 10, 1)
        if member is other:
            roster.settle(other.key, 10)
    assert hoarder.outstanding < 100
    roster.block(other.key, True)
    assert roster.choose() is hoarder


def test_few_messages_are_shared_among_all_who_wait(stage: Stage) -> None:
    """At low rates no consumer is given all of a batch."""
    scene = Scene(stage)
    clients = [scene.consumer() for _ in range(4)]
    scene.publish(*[b"x"] * 40)
    stage.settle()
    assert [len(offsets(each)) for each in clients] == [10, 10, 10, 10]


def test_what_is_in_flight_of_single_messages_is_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit no further batches are looked at; acknowledgments make room."""
    monkeypatch.setattr("ister.actors.subscription.by_key.IN_FLIGHT_MAX", 10)
    monkeypatch.setattr("ister.actors.subscription.by_key.TOGETHER_EACH", 1)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(messages=0)
    for number in range(40):
        scene.publish(b"x", key=b"%d" % number)
    client.credit(1, 1000)
    got = offsets(client)
    assert len(got) < 40
    while len(got) < 40:
        client.ack(1, *((offset, offset + 1) for offset in got))
        more = offsets(client)
        assert more
        got += more


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_one_turn_looks_at_so_many_messages_and_no_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, type_: str
) -> None:
    """Where messages are examined one by one, a turn ends after a bounded number of them."""
    monkeypatch.setattr("ister.actors.subscription.schedule.LOOKED_AT_MAX", 10)
    scene = Scene(stage, type=type_)
    client = scene.consumer(messages=0)
    actor = subscription(scene)
    looked: list[int] = []
    hand_out = actor.delivery.hand_out

    def counted() -> None:
        hand_out()
        looked.append(part(scene, Schedule)._looked_at)

    actor.delivery.hand_out = counted
    when = scene.now_ms() + 60_000
    for number in range(30):
        scene.publish(*[b"x"] * 5, key=b"%d" % number, deliver_at=[when] * 5)
    client.credit(1, 1000)
    stage.settle()
    assert scene.shown()["delayed"] == 150
    assert max(looked) < 20
    stage.advance(61)
    assert len(offsets(client)) == 150
    assert max(looked) < 20


def test_acknowledging_the_same_again_and_again_is_no_work(stage: Stage) -> None:
    """That holds however often one frame names the message, and however many are in flight."""
    scene = Scene(stage, type="key-shared")
    client = scene.consumer()
    scene.publish(*[b"x"] * 50, key=b"k")
    assert len(offsets(client)) == 50
    lanes, settled = part(scene, ByKey)._lanes, []
    settle = lanes.settle

    def counted(first: int, end: int) -> None:
        settled.append((first, end))
        settle(first, end)

    lanes.settle = counted
    for _ in range(3):
        client.ack(1, *((0, end) for end in range(1, 50)))
    assert settled == [(0, 49)]
    assert scene.shown()["cursor"] == 49
