"""Tests of times: messages that wait for theirs, and messages that outlive it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ister.actors.subscription.schedule import Schedule
from ister.wire import Key, Type
from tests.actors.scenes import Scene, events, heard, offsets, part
from tests.stage import Stage


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker that waits for silent clients for hours."""
    return make_stage(protocol__session_timeout_ms=3_600_000)


@pytest.fixture(params=["shared", "key-shared"])
def scene(request: pytest.FixtureRequest, stage: Stage) -> Scene:
    """Return a scene of each type that delays."""
    return Scene(stage, type=request.param)


@pytest.mark.requirement("9.4-7")
def test_a_message_waits_for_its_time(scene: Scene) -> None:
    """To the millisecond, while others go by."""
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
    """It is in the log, unacknowledged; what was acknowledged beside it is not delivered again."""
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
    """A consumer that comes late gets it at once."""
    scene.consumer().close_handle(1)
    now = scene.now_ms()
    scene.publish(b"0", b"1", key=b"k", deliver_at=[now + 1000, now + 90_000])
    scene.stage.advance(30)
    assert offsets(scene.consumer()) == [0]


@pytest.mark.parametrize("type_", ["exclusive", "failover"])
def test_ordered_subscriptions_wait_too_and_the_others_do_not_wait_for_it(stage: Stage, type_: str) -> None:
    """What has no time comes in order; what has one comes when that is there, and not twice."""
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
    """A message that waits for its time is acknowledged by nobody who was not given it."""
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
    """It looks at what there is, in order."""
    scene = Scene(stage)
    scene.publish(b"0", b"1", deliver_at=[scene.now_ms() + 60_000, 0])
    client = stage.at_subscription("orders", "r")
    client.open_consumer(1, "orders", "r", "reader", start="earliest")
    assert offsets(client) == [0, 1]


@pytest.mark.requirement("9.4-8")
@pytest.mark.parametrize("type_", ["exclusive", "shared"])
def test_what_would_be_too_old_by_then_is_refused(stage: Stage, type_: str) -> None:
    """A delay beyond the time to live: nobody would ever get it, and the error says both."""
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
    """What waits for the same second costs a range, not an entry a message."""
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
    """It is counted, said to the consumers, and in nobody's way; what is young enough comes."""
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
    """Once, with how many and from where on."""
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
    """So that retention may take it."""
    scene = Scene(stage, message_ttl_ms=5000)
    scene.consumer().close_handle(1)
    scene.publish(b"0", b"1")
    stage.advance(30)
    assert scene.shown()["cursor"] == 2


def test_the_cursor_goes_on_over_what_is_too_old_beside_a_consumer_that_takes_nothing(stage: Stage) -> None:
    """A paused subscription, or one whose consumers have no credit, keeps nothing for ever either."""
    scene = Scene(stage, message_ttl_ms=5000)
    scene.consumer(paused=1)
    scene.publish(b"0", b"1")
    stage.advance(30)
    assert scene.shown()["cursor"] == 2


def test_the_time_to_live_can_be_changed(stage: Stage) -> None:
    """Subscriptions that are there take it from then on."""
    scene = Scene(stage)
    scene.consumer().close_handle(1)
    scene.publish(b"0")
    stage.advance(10)
    stage.client().request("topic.update", topic="orders", message_ttl_ms=5000)
    stage.advance(11)
    assert scene.shown()["cursor"] == 1


def test_what_came_back_too_old_is_let_go(stage: Stage) -> None:
    """A message that failed until it expired is not tried again."""
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
    """Its time is one of the wall clock, and a timer knows durations alone."""
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
    """It is older than what was written after it, whatever its time says."""
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
    """Small batches are joined for a consumer; one among them may be older than the one before it."""
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
    """How long it has been filling is a duration."""
    stage = make_stage(log__segment_age_ms_max=10_000)
    scene = Scene(stage)
    scene.publish(b"0")
    stage.clock.stepped_ms -= 3_600_000
    stage.advance(13)
    assert stage.client().request("topic.show", topic="orders")["segments"] == 2
