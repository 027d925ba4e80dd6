"""Tests of the subscription engine where two things happen at once: moves, times, poison, retention, lost places."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actors.lanes import Lanes
from actors.log_subscription import LogSubscription
from actors.messages import ConsumerFrame, Deliver, NotFetched, Seek, Sought, Trimmed, Yield, Yielded
from actors.selection import Member, Roster
from actors.source import Source
from ister.errors import DamagedError
from ister.wire import Key, Type
from storage.tiered import NotHereError
from tests.actors.scenes import Scene, events, heard, offsets
from tests.stage import Stage, StagedClient, held_up, inbox_holds


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that waits for silent clients for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


def subscription(scene: Scene) -> Any:
    """Return the actor of the scene's subscription."""
    return scene.stage.actor("subscription", "orders", "s")


def consumer_of(scene: Scene, number: int = 0) -> Any:
    """Return the actor of one of the consumers, the oldest first."""
    return scene.stage.actors("consumer")[number]


def say_seek(client: StagedClient, to: str | int) -> int:
    """Ask for the subscription to be moved, and wait for nothing; return the REF."""
    ref = next(client._refs)
    arguments = {"topic": "orders", "subscription": "s", "to": to}
    client.say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: ref,
            Key.OPERATION: "subscription.seek",
            Key.ARGUMENTS: arguments,
        }
    )
    return ref


# ---- moves ------------------------------------------------------------------------------------------------------


def test_a_consumer_that_held_too_much_gets_messages_again_after_a_move(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gave back counts no more, so that nothing keeps it from being given more."""
    monkeypatch.setattr("actors.consumer.IN_FLIGHT_RANGES_MAX", 3)
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
    """It reaches the subscription behind the move, and is of what was delivered before it."""
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
    """Nobody need be there for it."""
    scene = Scene(stage)
    scene.consumer().close_handle(1)
    scene.publish(b"0", b"1", b"2")
    actor = subscription(scene)
    found: list[int] = []
    real = actor._source.batch_at

    def batch_at(offset: int) -> Any:
        if not found:
            found.append(offset)
            raise NotHereError(offset)
        return real(offset)

    actor._source.batch_at = batch_at
    asked = stage.client()
    ref = say_seek(asked, "time:0")
    stage.settle()
    assert actor._fetching == 1
    actor._source.history_start = 2
    actor.ref.tell(Trimmed(2))
    answer = asked.expect(Type.RESULT, Type.ERROR, ref=ref, timeout_s=1)
    assert answer.kind == Type.RESULT
    assert answer.result == {"position": 2}


def test_acknowledging_up_to_an_offset_means_nothing_of_before_a_move(stage: Stage) -> None:
    """Only what is delivered again since can be acknowledged, also where it is said with one number."""
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
    """What others hold below it stays theirs."""
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
    """What is behind comes once, and what is before does not come at all."""
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
    """Whoever moves a subscription has decided what becomes of the message that blocked it."""
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
    """Its message comes again because of the move; that it is buried of before does not acknowledge that."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1)
    node = scene.stage.actor("subscription", "orders", "s").system.node
    stage.hold(node, "broker")  # the dead-letter topic cannot be had
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
    """Nor for one that nobody is left beside; what it held comes with the rest."""
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


# ---- acknowledgment timeouts ------------------------------------------------------------------------------------


def test_a_shorter_acknowledgment_timeout_holds_for_what_comes_while_older_messages_are_held(
    stage: Stage,
) -> None:
    """The older ones keep theirs, and nobody waits for it."""
    scene = Scene(stage)
    client = scene.consumer(ack_timeout_ms=3_600_000)
    scene.publish(b"old")
    assert offsets(client) == [0]
    scene.update(ack_timeout_ms=1000)
    stage.advance(5)
    scene.publish(b"new")
    assert offsets(client) == [1]
    stage.advance(1.1)
    assert heard(client) == [(1, b"new", 2)]


def test_a_longer_acknowledgment_timeout_leaves_what_is_held_its_own(stage: Stage) -> None:
    """What was delivered under the old one comes again when that is over."""
    scene = Scene(stage)
    client = scene.consumer(ack_timeout_ms=1000)
    scene.publish(b"old")
    assert offsets(client) == [0]
    scene.update(ack_timeout_ms=3_600_000)
    stage.advance(1.1)
    assert heard(client) == [(0, b"old", 2)]


# ---- times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_what_waited_for_its_time_and_was_trimmed_is_in_nobodys_way(stage: Stage, type_: str) -> None:
    """Its time comes, and it is not looked for in a log that has it no more."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    now = scene.now_ms()
    scene.publish(b"0", b"1", key=b"k", deliver_at=[now + 60_000, now + 5_000])
    scene.publish(b"2", key=b"k")
    assert offsets(client) == [2]
    actor = subscription(scene)
    source = actor._source
    actor.ref.tell(Trimmed(2))
    stage.settle()
    reads: list[int] = []
    at = source.batch_at

    def batch_at(offset: int) -> Any:
        reads.append(offset)
        return at(offset)

    source.batch_at = batch_at
    source._forget_sheets()
    stage.advance(70)
    assert [offset for offset in reads if offset < 2] == []
    scene.publish(b"3", key=b"k")
    assert offsets(client) == [3]


def test_a_batch_is_sorted_by_its_times_once(stage: Stage) -> None:
    """Also if something that comes due in the middle of it cannot be read just then."""
    scene = Scene(stage, type="key-shared")
    client = scene.consumer()
    scene.publish(b"0", key=b"a", deliver_at=[scene.now_ms() + 1000])
    assert offsets(client) == []
    source = subscription(scene)._source
    keep, sheet = source.keep_sheet, source.sheet_at
    failed: list[int] = []

    def keep_sheet(batch: Any) -> Any:
        stage.clock.now_s += 1.5
        return keep(batch)

    def sheet_at(offset: int) -> Any:
        if not failed:
            failed.append(offset)
            raise NotHereError(offset)
        return sheet(offset)

    source.keep_sheet, source.sheet_at = keep_sheet, sheet_at
    scene.publish(b"1", b"2", key=b"b", deliver_at=[0, scene.now_ms() + 60_000])
    stage.settle()
    assert failed == [0]
    actor = subscription(scene)
    actor._fetching = None
    actor._go_on()
    assert sorted(offsets(client)) == [0, 1]
    stage.advance(61)
    assert offsets(client) == [2]
    client.ack(1, (0, 3))
    shown = scene.shown()
    assert (shown["cursor"], shown["delayed"], shown["in_flight"]) == (3, 0, 0)


@pytest.mark.parametrize("type_", ["shared", "key-shared"])
def test_of_a_wait_only_what_was_skipped_is_forgotten(stage: Stage, type_: str) -> None:
    """An operator skips one damaged batch of many that wait for the same time: the others come."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    when = scene.now_ms() + 60_000
    for number in range(3):
        scene.publish(b"%d" % number, key=b"k", deliver_at=[when])
    assert offsets(client) == []
    actor = subscription(scene)
    source, real = actor._source, actor._source.batch_at

    def batch_at(offset: int) -> Any:
        if offset == 0:
            source._on_skipped([(0, 1)])
            return None
        return real(offset)

    source.batch_at = batch_at
    source._forget_sheets()
    stage.advance(61)
    assert offsets(client) == [1, 2]


def test_messages_due_that_nobody_takes_do_not_keep_the_worker_busy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a consumer, not for the next turn."""
    monkeypatch.setattr("actors.lanes.WAITING_MAX", 20)
    monkeypatch.setattr("actors.lanes.WAITING_HARD_MAX", 40)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(messages=1)
    now = scene.now_ms()
    for number in range(100):
        scene.publish(b"%d" % number, key=b"%d" % number, deliver_at=[now + 5000 + 10 * number])
    stage.advance(10)
    assert len(offsets(client)) == 1
    client.credit(1, 1000)
    assert len(offsets(client)) == 99


def test_very_many_messages_that_come_due_together_take_no_time(stage: Stage) -> None:
    """Each waits for a time of its own, and nobody was there when it came."""
    scene = Scene(stage)
    client = scene.consumer(messages=1)
    actor = subscription(scene)
    actor._due.extend((offset, offset + 1) for offset in range(10, 200_010, 2))
    begin = time.perf_counter()
    actor._take_due()
    assert time.perf_counter() - begin < 1.0
    assert offsets(client) == []


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_one_back_off_after_the_other_ends(stage: Stage, type_: str) -> None:
    """Each at its time, with nothing else happening meanwhile."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    for number in range(3):
        scene.publish(b"%d" % number, key=b"%d" % number)
    assert sorted(offsets(client)) == [0, 1, 2]
    for offset, delay_ms in ((1, 5000), (0, 20_000), (2, 10_000)):
        client.nack(1, (offset, offset + 1), delay_ms=delay_ms)
    for offset, wait_s in ((1, 5.1), (2, 5), (0, 10)):
        stage.advance(wait_s - 0.2)
        assert offsets(client) == []
        stage.advance(0.2)
        assert offsets(client) == [offset]


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_what_is_acknowledged_while_it_waits_to_come_again_does_not(stage: Stage, type_: str) -> None:
    """Its time was over, but it was done after all."""
    scene = Scene(stage, type=type_)
    client = scene.consumer(messages=2, ack_timeout_ms=1000)
    scene.publish(b"0", b"1", key=b"k")
    assert offsets(client) == [0, 1]
    stage.advance(1.1)
    client.ack(1, (0, 1))
    client.credit(1, 10)
    assert offsets(client) == [1]
    client.ack(1, (1, 2))
    assert scene.shown()["cursor"] == 2


def test_what_waits_for_its_time_is_not_taken_out_of_what_was_left_in_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow consumer's messages are read again later; those that wait for their time come then, and once."""
    monkeypatch.setattr("actors.lanes.LANE_MAX", 8)
    monkeypatch.setattr("actors.lanes.LANE_MIN", 8)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(messages=1)
    when = scene.now_ms() + 60_000
    scene.publish(*[b"x"] * 20, key=b"k")
    scene.publish(*[b"x"] * 20, key=b"k", deliver_at=[when if n % 2 else 0 for n in range(20)])
    got = offsets(client)
    assert scene.shown()["left_in_log"] == 1
    client.credit(1, 1000)
    got += offsets(client)
    assert sorted(got) == [*range(20), *range(20, 40, 2)]
    client.ack(1, *((offset, offset + 1) for offset in got))
    stage.advance(61)
    assert sorted(offsets(client)) == list(range(21, 40, 2))


# ---- poison -----------------------------------------------------------------------------------------------------


def test_poison_that_was_trimmed_on_its_way_stops_nobody(stage: Stage) -> None:
    """It is asked for again while the dead-letter topic is away, and is not in the log any more."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"bad")
    scene.publish(b"good")
    assert offsets(client) == [0, 1]
    actor = subscription(scene)
    actor._undertaker = lambda: stage.systems[next(iter(stage.systems))].ref("broker", "nobody")
    client.nack(1, (0, 1))
    stage.settle()
    assert scene.shown()["burying"] == 1
    actor.ref.tell(Trimmed(1))
    stage.settle()
    actor._source._forget_sheets()
    at = actor._source.batch_at
    reads: list[int] = []

    def batch_at(offset: int) -> Any:
        reads.append(offset)
        return at(offset)

    actor._source.batch_at = batch_at
    stage.advance(25)
    assert reads == []
    assert scene.shown()["burying"] == 0
    client.ack(1, (1, 2))


def test_what_is_acknowledged_or_trimmed_blocks_no_more(stage: Stage) -> None:
    """A message that blocked and that retention took is no reason to wait for an operator."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"bad")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.settle()
    scene.publish(b"good")
    assert offsets(client) == []
    subscription(scene).ref.tell(Trimmed(1))
    assert offsets(client) == [1]
    assert scene.shown()["blocked"] is False


@pytest.mark.parametrize("how", ["trimmed", "expired", "acknowledged"])
def test_a_key_that_is_blocked_goes_on_when_what_blocks_it_is_done(stage: Stage, how: str) -> None:
    """However it comes to be done: nobody need decide about it any more."""
    scene = Scene(stage, type="key-shared", message_ttl_ms=60_000)
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"bad", key=b"k")
    assert offsets(client) == [0]
    client.nack(1, (0, 1))
    stage.settle()
    if how == "trimmed":
        subscription(scene).ref.tell(Trimmed(1))
    elif how == "acknowledged":
        client.ack(1, (0, 1))
    else:
        client.close_handle(1)
        stage.advance(75)
        assert scene.shown()["expired"] == 1
        client = scene.consumer()
    scene.publish(b"good", key=b"k")
    assert offsets(client) == [1]


def test_blocked_keys_leave_room_for_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much waits behind poisoned messages, other keys go on."""
    monkeypatch.setattr("actors.lanes.WAITING_MAX", 20)
    monkeypatch.setattr("actors.lanes.WAITING_HARD_MAX", 40)
    monkeypatch.setattr("actors.lanes.LANE_MAX", 8)
    monkeypatch.setattr("actors.lanes.LANE_MIN", 2)
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(max_deliveries=1, poison="block")
    for key in range(10):
        scene.publish(b"bad", key=b"bad-%d" % key)
    bad = offsets(client)
    client.nack(1, *((offset, offset + 1) for offset in bad))
    stage.settle()
    for key in range(10):
        scene.publish(*[b"behind"] * 20, key=b"bad-%d" % key)
    for number in range(30):
        scene.publish(b"%d" % number, key=b"good-%d" % number)
    assert [row[1] for row in heard(client)] == [b"%d" % number for number in range(30)]


# ---- who is gone ------------------------------------------------------------------------------------------------


def test_exactly_what_a_lost_consumer_was_never_given_comes_again(stage: Stage) -> None:
    """Also where its messages do not follow each other."""
    scene = Scene(stage, type="key-shared")
    first, second = scene.consumer(), scene.consumer()
    for number in range(40):
        scene.producer.publish_keyed(1, scene.sent, (b"k%d" % number, b"0"), (b"k%d" % (number + 1), b"1"))
        scene.sent += 2
    scene.producer.receipts(1, 40)
    stage.settle()
    mine, others = offsets(first), offsets(second)
    assert mine
    assert others
    consumer = consumer_of(scene)
    first.ack(1, *((offset, offset + 1) for offset in mine))
    second.ack(1, *((offset, offset + 1) for offset in others))
    with held_up(consumer):
        messages = [(b"k%d" % number, b"x") for number in range(40)]
        scene.producer.publish_keyed(1, scene.sent, *messages)
        scene.producer.receipts(1, 1)
        assert inbox_holds(consumer, Deliver)
        (deliver,) = [each for each in consumer.inbox._queue if isinstance(each, Deliver)]
        assert deliver.piece.ranges
        consumer.fail(RuntimeError("on purpose"))
        stage.failures.clear()
    assert sorted(offsets(second)) == list(range(80, 120))


def test_acknowledgments_for_a_subscription_that_failed_do_not_hurt_the_next(stage: Stage) -> None:
    """What its consumers still say may meet the next actor before that knows where its topic stands."""
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2")
    assert offsets(client) == [0, 1, 2]
    actor, consumer = subscription(scene), consumer_of(scene)
    node = actor.system.node
    topic_node = scene.stage.actor("topic", "orders").system.node
    with held_up(consumer):
        client.ack(1, (0, 1), confirm=False)
        client.nack(1, (1, 2))
        stage.loop.turns_until(lambda: len(consumer.inbox) >= 2)
        actor.fail(RuntimeError("on purpose"))
        stage.failures.clear()
        stage.workers[int(node[-1])].subscription(actor.topic, actor.meta, topic_node)
    stage.settle()
    assert stage.failures == []
    again = scene.consumer()
    got = heard(again)
    assert sorted(row[0] for row in got) == sorted({row[0] for row in got}), "each is in one place"
    assert {row[0] for row in got} >= {1, 2}


# ---- readers ----------------------------------------------------------------------------------------------------


def reader(scene: Scene, name: str = "r-1", **options: Any) -> StagedClient:
    """Return a reader of the topic, open as handle 1."""
    client = scene.stage.at_subscription("orders", name)
    answer = client.open_consumer(1, "orders", name, "reader", **options)
    assert answer.kind == Type.OPENED, answer.header
    return client


def test_a_reader_whose_place_was_trimmed_goes_on_where_the_history_begins(stage: Stage) -> None:
    """It is told what it missed; what is still there behind that is not skipped."""
    scene = Scene(stage)
    scene.publish(*(b"%d" % n for n in range(4)))
    scene.publish(*(b"%d" % n for n in range(4, 8)))
    client = reader(scene)
    assert offsets(client) == list(range(8))
    client.disconnect()
    actor = scene.stage.actor("subscription", "orders", "r-1")
    actor.ref.tell(Trimmed(4))
    stage.settle()
    client.reconnect()
    assert client.open_consumer(1, "orders", "r-1", "reader", start=2).kind == Type.OPENED
    assert offsets(client) == [4, 5, 6, 7]
    (trimmed,) = [event for event in events(client) if event.code == "trimmed"]
    assert (trimmed.header[Key.OFFSET], trimmed.header[Key.COUNT]) == (2, 2)


# ---- ten thousand consumers -------------------------------------------------------------------------------------


def test_thousands_who_hold_much_cost_a_delivery_nothing() -> None:
    """Who is next is found among a few, however many would have to be passed over."""
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
    """A thousand consumers may go at once, and the rest go on."""
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
    """As long as they take nothing, it is known at once that nobody wants it."""
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


# ---- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["exclusive", "shared", "key-shared"])
def test_a_cursor_full_of_holes_takes_nothing_new_until_they_are_filled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, type_: str
) -> None:
    """And then goes on by itself."""
    monkeypatch.setattr("actors.reliable_subscription.PIECES_BYTES_MAX", 160)
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
    """Events pile up behind a full connection: the oldest of a kind are let go."""
    scene = Scene(stage)
    client = scene.consumer()
    client.router.full.add(client.routing)
    for _ in range(300):
        scene.request("seek", to=0)
    consumer = consumer_of(scene)
    assert len(consumer._backlog) < 100
    client.router.full.discard(client.routing)
    stage.advance(1)
    assert events(client)[-1].code == "sought"


# ---- more -------------------------------------------------------------------------------------------------------


def test_of_several_who_take_over_at_once_the_last_has_it(stage: Stage) -> None:
    """The others are told, and nothing is lost on the way from one to the next."""
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


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_a_reader_of_a_topic_that_is_deleted_is_told(stage: Stage, dispatch: str) -> None:
    """It would wait for ever."""
    scene = Scene(stage, dispatch=dispatch)
    client = reader(scene)
    scene.publish(b"0")
    assert len(offsets(client)) == 1
    stage.client().request("topic.delete", topic="orders")
    stage.advance(15)
    told = client.expect(Type.ERROR)
    assert (told.header[Key.CLOSED], told.header[Key.ACTION]) == (True, "stop")
    assert stage.actors("subscription") == []


def test_letters_that_were_lost_on_their_way_are_sent_again(stage: Stage) -> None:
    """Who was to bury them may have failed."""
    scene = Scene(stage)
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"bad")
    assert offsets(client) == [0]
    actor = subscription(scene)
    undertaker = actor._undertaker
    actor._undertaker = lambda: actor.system.ref(actor.system.node, "nobody")
    client.nack(1, (0, 1))
    stage.settle()
    actor._undertaker = undertaker
    stage.advance(15)
    shown = scene.shown()
    assert (shown["cursor"], shown["dead_lettered"], shown["burying"]) == (1, 1, 0)


def test_a_start_by_time_in_what_the_store_has_no_more_is_looked_for_behind_it(stage: Stage) -> None:
    """What the tier says counts, until the topic says it too."""
    scene = Scene(stage)
    for number in range(4):
        scene.publish(b"%d" % number)
        stage.advance(1)
    fetches: list[int] = []

    def fetch(self: Any, offset: int) -> None:
        fetches.append(offset)
        self._fetching = offset
        self.ref.tell(NotFetched(offset, "gone", False, 2))

    real = Source.batch_at

    def batch_at(self: Source, offset: int) -> Any:
        if offset < 2:
            raise NotHereError(offset)
        return real(self, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogSubscription, "_fetch", fetch)
        patch.setattr(Source, "batch_at", batch_at)
        client = scene.consumer(start="time:0")
    assert len(fetches) == 1
    assert client.opened.header[Key.OFFSET] == 2


def test_a_key_goes_on_when_its_poison_is_buried(stage: Stage) -> None:
    """Not before, and without anybody's help."""
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"bad", key=b"k")
    assert offsets(client) == [0]
    scene.publish(b"good", key=b"k")
    assert offsets(client) == [1]
    client.nack(1, (0, 2))
    stage.settle()
    scene.publish(b"next", key=b"k")
    stage.advance(2)
    assert scene.shown()["dead_lettered"] == 2
    assert offsets(client) == [2]


def test_who_holds_far_more_than_others_is_passed_over() -> None:
    """As long as one of the others can take something."""
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
    """At low rates nobody is given all of a batch."""
    scene = Scene(stage)
    clients = [scene.consumer() for _ in range(4)]
    scene.publish(*[b"x"] * 40)
    stage.settle()
    assert [len(offsets(each)) for each in clients] == [10, 10, 10, 10]


def test_who_comes_to_a_damaged_log_is_told(stage: Stage) -> None:
    """As those were who were there when it was found."""
    scene = Scene(stage)
    client = scene.consumer()
    error = DamagedError("broken")
    error.first, error.end = 0, 1
    subscription(scene)._stall(error)
    assert [event.code for event in events(client)] == ["log-damaged"]
    assert [event.code for event in events(scene.consumer())] == ["log-damaged"]


def test_what_is_to_be_brought_back_is_asked_for_again(stage: Stage) -> None:
    """Mail is no promise."""
    scene = Scene(stage)
    scene.consumer()
    actor = subscription(scene)
    asked: list[object] = []
    actor._fetcher = SimpleNamespace(tell=asked.append, address=actor._fetcher.address)
    actor._fetch(0)
    stage.advance(31)
    assert len(asked) == 2


def test_what_is_in_flight_of_single_messages_is_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing new is handed out beyond it, and it goes on with acknowledgments."""
    monkeypatch.setattr("actors.key_shared_subscription.IN_FLIGHT_MAX", 10)
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
    """Where single messages are looked at, others have their turn in between."""
    monkeypatch.setattr("actors.reliable_subscription.LOOKED_AT_MAX", 10)
    monkeypatch.setattr("actors.key_shared_subscription.LOOKED_AT_MAX", 10)
    scene = Scene(stage, type=type_)
    client = scene.consumer(messages=0)
    actor = subscription(scene)
    looked: list[int] = []
    hand_out = actor._hand_out

    def counted() -> None:
        hand_out()
        looked.append(actor._looked_at)

    actor._hand_out = counted
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
