"""Tests of times: messages with a delivery time, and messages that expire."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ister.actors.subscription.schedule import Schedule
from ister.wire import Key, Type
from tests.actors.scenes import Scene, events, heard, offsets, part
from tests.stage import Stage


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that keeps the session of a silent client for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


@pytest.fixture(params=["shared", "key-shared"])
def scene(request: pytest.FixtureRequest, stage: Stage) -> Scene:
    """Return a scene of each subscription type that delays."""
    return Scene(stage, type=request.param)


@pytest.mark.requirement("9.4-7")
def test_a_message_waits_for_its_time(scene: Scene) -> None:
    """To the millisecond, while others are delivered."""
    client = scene.consumer()
    now = scene.now_ms()
    scene.publish(b"0", b"1", b"2", b"3", key=b"k", deliver_at=[0, now + 2000, now + 1000, now])
    assert offsets(client) == [0, 3]
    scene.stage.advance(0.99)
    assert offsets(client) == []
    scene.stage.advance(0.02)
    assert heard(client) == [(2, b"2", 1)]
    assert scene.shown()["delayed"] == 1
    scene.stage.advance(1)
    assert heard(client) == [(1, b"1", 1)]
    client.ack(1, (0, 4))
    assert scene.shown()["cursor"] == 4


@pytest.mark.parametrize("delay_s", [30, 4000, 100_000, 40 * 86_400])
def test_a_long_wait_is_as_exact(scene: Scene, delay_s: int) -> None:
    """Seconds, hours or weeks: not before its time, and not a second after."""
    client = scene.consumer()
    when = scene.now_ms() + delay_s * 1000 + 345
    scene.publish(b"0", b"1", key=b"k", deliver_at=[when, 0])
    assert offsets(client) == [1]
    client.ack(1, (1, 2))
    for before_ms in (1_000_000, 60_000, 5000):
        if scene.now_ms() < when - before_ms:
            client.close_handle(1)
            scene.stage.clock.now_s += (
                when - before_ms - scene.now_ms()
            ) / 1000  # nothing else happens meanwhile
            client = scene.consumer()
            assert offsets(client) == []
    scene.stage.advance((when - scene.now_ms() - 1) / 1000)
    assert offsets(client) == []
    scene.stage.advance(0.05)
    assert offsets(client) == [0]


def test_what_waits_still_waits_after_a_restart(scene: Scene) -> None:
    """It is in the log, unacknowledged; acknowledged messages beside it are not delivered again."""
    client = scene.consumer()
    now = scene.now_ms()
    scene.publish(b"0", b"1", b"2", key=b"k", deliver_at=[now + 60_000, 0, now + 5000])
    assert offsets(client) == [1]
    client.ack(1, (1, 2))
    scene.stage.restart(2)
    client = scene.consumer()
    assert offsets(client) == []
    scene.stage.advance(5.1)
    assert offsets(client) == [2]
    scene.stage.restart(2)
    scene.stage.advance(60)
    assert sorted(offsets(scene.consumer())) == [0, 2]


def test_what_is_due_while_nobody_is_there_comes_with_the_next(scene: Scene) -> None:
    """A consumer that comes later gets it at once."""
    scene.consumer().close_handle(1)
    now = scene.now_ms()
    scene.publish(b"0", b"1", key=b"k", deliver_at=[now + 1000, now + 90_000])
    scene.stage.advance(30)
    assert offsets(scene.consumer()) == [0]


@pytest.mark.parametrize("type_", ["exclusive", "failover"])
def test_ordered_subscriptions_wait_too_and_the_others_do_not_wait_for_it(stage: Stage, type_: str) -> None:
    """Messages without a time come in order; one with a time comes at that time, and once."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    now = scene.now_ms()
    scene.publish(b"0", b"1", b"2", b"3", deliver_at=[now + 9_000, 0, now + 5_000, 0])
    assert offsets(client) == [1, 3]
    stage.advance(4.9)
    assert offsets(client) == []
    stage.advance(0.2)
    assert offsets(client) == [2]
    client.ack(1, (1, 2), (3, 4))
    stage.advance(4)
    assert offsets(client) == [0]
    client.ack(1, (0, 1), (2, 3))
    assert scene.shown()["cursor"] == 4


@pytest.mark.requirement("9.4-7")
@pytest.mark.parametrize("type_", ["exclusive", "failover"])
@pytest.mark.parametrize("restarts", [False, True])
def test_everything_up_to_here_is_not_what_nobody_has_seen(stage: Stage, type_: str, restarts: bool) -> None:
    """An acknowledgment up to an offset covers no message that was not delivered yet because of its time."""
    scene = Scene(stage, type=type_)
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2", deliver_at=[0, scene.now_ms() + 8_000, 0])
    assert offsets(client) == [0, 2]
    client.say({Key.TYPE: Type.ACK_UNTIL, Key.HANDLE: 1, Key.OFFSET: 2, Key.REF: 900})
    assert client.expect(Type.DONE, ref=900)
    assert scene.shown()["pending"] == [[1, 2]]
    if restarts:
        stage.restart(2)
        client = scene.consumer()
    stage.advance(8.1)
    assert offsets(client) == [1]
    client.say({Key.TYPE: Type.ACK_UNTIL, Key.HANDLE: 1, Key.OFFSET: 1, Key.REF: 901})
    assert client.expect(Type.DONE, ref=901)
    assert scene.shown()["cursor"] == 3


@pytest.mark.requirement("9.4-7")
def test_a_reader_does_not_wait(stage: Stage) -> None:
    """It gets all messages in order, whatever their times."""
    scene = Scene(stage)
    scene.publish(b"0", b"1", deliver_at=[scene.now_ms() + 60_000, 0])
    client = stage.at_subscription("orders", "r")
    client.open_consumer(1, "orders", "r", "reader", start="earliest")
    assert offsets(client) == [0, 1]


@pytest.mark.requirement("9.4-8")
@pytest.mark.parametrize("type_", ["exclusive", "shared"])
def test_what_would_be_too_old_by_then_is_refused(stage: Stage, type_: str) -> None:
    """With a delay beyond the time to live it would never be delivered; the error has both values."""
    scene = Scene(stage, type=type_, message_ttl_ms=60_000)
    client = scene.consumer()
    now = scene.now_ms()
    scene.producer.publish_keyed(1, 0, (b"", b"x"), (b"", b"y"), deliver_at=[0, now + 60_001])
    refused = scene.producer.expect(Type.ERROR, handle=1)
    assert (refused.code, refused.header[Key.ACTION]) == ("invalid-argument", "fix")
    assert "60001 ms" in refused.header[Key.TEXT]
    assert "message_ttl_ms (60000 ms) of topic 'orders'" in refused.header[Key.TEXT]
    assert scene.producer.open_producer(1, "orders", 7, 0).kind == Type.OPENED
    scene.publish(b"z", deliver_at=[now + 50_000])
    stage.client().request("topic.update", topic="orders", message_ttl_ms=0)
    scene.publish(b"z", deliver_at=[now + 600_000])
    assert offsets(client) == []


def test_very_many_may_wait(scene: Scene) -> None:
    """Messages that wait for the same second cost a range, not an entry each."""
    client = scene.consumer(messages=100_000)
    now = scene.now_ms()
    for _ in range(10):
        scene.publish(*[b""] * 5000, deliver_at=[now + 3_600_000] * 5000)
    scene.stage.advance(1)
    assert offsets(client) == []
    assert scene.shown()["delayed"] == 50_000
    assert part(scene, Schedule)._delays.ranges < 20


# ---- time to live -----------------------------------------------------------------------------------------------


def test_what_is_too_old_is_not_delivered(stage: Stage) -> None:
    """Expired messages are counted, reported to the consumers, and block nothing; the others are delivered."""
    scene = Scene(stage, message_ttl_ms=60_000)
    scene.consumer().close_handle(1)
    scene.publish(b"0", b"1")
    stage.advance(50)
    scene.publish(b"2")
    stage.advance(11)
    client = scene.consumer()
    assert offsets(client) == [2]
    shown = scene.shown()
    assert (shown["expired"], shown["cursor"]) == (2, 2)
    client.close_handle(1)
    stage.advance(51)
    client = scene.consumer()
    assert offsets(client) == []
    assert scene.shown()["cursor"] == 3


def test_consumers_hear_of_what_expired(stage: Stage) -> None:
    """Once, with their number and the first offset."""
    scene = Scene(stage, message_ttl_ms=60_000)
    client = scene.consumer(messages=1)
    scene.publish(b"0", b"1", b"2")
    assert offsets(client) == [0]
    stage.advance(61)
    client.credit(1, 10)
    (expired,) = [event for event in events(client) if event.code == "expired"]
    assert (expired.header[Key.COUNT], expired.header[Key.OFFSET]) == (2, 1)
    client.ack(1, (0, 1))
    assert scene.shown()["cursor"] == 3


def test_without_consumers_the_cursor_goes_on_over_what_is_too_old(stage: Stage) -> None:
    """So that retention may delete the messages."""
    scene = Scene(stage, message_ttl_ms=5000)
    scene.consumer().close_handle(1)
    scene.publish(b"0", b"1")
    stage.advance(30)
    assert scene.shown()["cursor"] == 2


def test_the_cursor_goes_on_over_what_is_too_old_beside_a_consumer_that_takes_nothing(stage: Stage) -> None:
    """Also a subscription that is paused, or whose consumers have no credit, keeps no message for ever."""
    scene = Scene(stage, message_ttl_ms=5000)
    scene.consumer(paused=1)
    scene.publish(b"0", b"1")
    stage.advance(30)
    assert scene.shown()["cursor"] == 2


def test_the_time_to_live_can_be_changed(stage: Stage) -> None:
    """Existing subscriptions use the new value from then on."""
    scene = Scene(stage)
    scene.consumer().close_handle(1)
    scene.publish(b"0")
    stage.advance(10)
    stage.client().request("topic.update", topic="orders", message_ttl_ms=5000)
    stage.advance(11)
    assert scene.shown()["cursor"] == 1


def test_what_came_back_too_old_is_let_go(stage: Stage) -> None:
    """A message that expires while it fails is not tried again."""
    scene = Scene(stage, message_ttl_ms=5000)
    client = scene.consumer()
    scene.publish(b"0")
    assert offsets(client) == [0]
    client.nack(1, (0, 1), delay_ms=6000)
    stage.advance(7)
    assert offsets(client) == []
    assert scene.shown()["cursor"] == 1


@pytest.mark.parametrize("wait_s", [30, 7200])
def test_a_message_is_not_late_where_the_clock_is_set_forward(scene: Scene, wait_s: int) -> None:
    """Its time is one of the wall clock, while a timer measures durations only."""
    client = scene.consumer()
    scene.publish(b"0", b"1", key=b"k", deliver_at=[scene.now_ms() + wait_s * 1000, 0])
    assert offsets(client) == [1]
    scene.stage.advance(1)
    scene.stage.clock.stepped_ms += wait_s * 1000
    scene.stage.advance(0.6)
    assert offsets(client) == [0]


def test_what_a_clock_that_was_ahead_wrote_lets_expire_what_is_behind_it(
    make_stage: Callable[..., Stage],
) -> None:
    """A message is at least as old as those written after it, whatever its timestamp."""
    stage = make_stage(protocol__session_timeout_ms=3_600_000)
    scene = Scene(stage, message_ttl_ms=60_000)
    scene.consumer().close_handle(1)
    stage.clock.stepped_ms += 365 * 86_400_000
    for _ in range(100):
        scene.publish(b"ahead")
    stage.clock.stepped_ms -= 365 * 86_400_000
    scene.publish(b"behind")
    stage.advance(50)
    scene.publish(b"young")
    stage.advance(25)
    assert (scene.shown()["expired"], scene.shown()["cursor"]) == (101, 101)


def test_what_is_too_old_does_not_come_with_what_a_clock_that_was_ahead_wrote(stage: Stage) -> None:
    """Small batches are joined for a consumer; one of them may be older than the one before it."""
    scene = Scene(stage, message_ttl_ms=5000)
    scene.consumer().close_handle(1)
    stage.clock.stepped_ms += 3_600_000
    scene.publish(b"0")
    stage.clock.stepped_ms -= 3_600_000
    scene.publish(b"1")
    stage.advance(7)
    scene.publish(b"2")
    client = scene.consumer()
    assert offsets(client) == [0, 2]
    assert scene.shown()["expired"] == 1


def test_a_segment_is_sealed_in_time_though_the_clock_stepped_back(make_stage: Callable[..., Stage]) -> None:
    """The age of the open segment is a duration."""
    stage = make_stage(log__segment_age_ms_max=10_000)
    scene = Scene(stage)
    scene.publish(b"0")
    stage.clock.stepped_ms -= 3_600_000
    stage.advance(13)
    assert stage.client().request("topic.show", topic="orders")["segments"] == 2
