"""Tests of failing messages: back-off, the number of attempts, and what happens after the last."""

from __future__ import annotations

from pathlib import Path

import pytest

from ister.actors.messages import Buried, Bury, Unburied
from ister.actors.subscription.failures import Failures
from ister.bodies import decode_attributes
from ister.wire import Key, Type
from tests.actors.scenes import Scene, events, heard, offsets, part, subscription
from tests.stage import Stage, StagedClient


@pytest.fixture
def scene(stage: Stage) -> Scene:
    """Return the scene of a shared subscription."""
    return Scene(stage)


def fail(client: StagedClient, offset: int, times: int = 1, reason: str = "") -> None:
    """Nack a message so often, each time as soon as it comes again."""
    for _ in range(times):
        client.nack(1, (offset, offset + 1), delay_ms=0, reason=reason)
        client.stage.settle()
        heard(client)


def letters(scene: Scene, topic: str = "orders.s.dlq") -> list[tuple[bytes, bytes, dict[str, str]]]:
    """Return (payload, key, attributes) of the messages that the dead-letter topic's redrive subscription gets."""
    scene.stage.advance(2)
    listed = scene.stage.client().request("subscription.list", topic=topic)["subscriptions"]
    (redrive,) = [each for each in listed if each["subscription"] == "redrive"]
    client = scene.stage.at_subscription(topic, "redrive")
    opened = client.open_consumer(1, topic, "redrive", redrive["type"], messages=10_000)
    assert opened.kind == Type.OPENED
    found = []
    scene.stage.settle()
    while (frame := client.hear(0)) is not None:
        if frame.kind == Type.DELIVER:
            count = frame.header[Key.COUNT]
            keys = frame.column(1) if frame.header[Key.COLUMNS] & 1 else [b""] * count
            attributes = [decode_attributes(each) for each in frame.column(2)]
            payloads = [payload for _, payload in frame.messages()]
            found += list(zip(payloads, keys, attributes, strict=True))
    client.say({Key.TYPE: Type.BYE})
    return found


def test_what_fails_waits_twice_as_long_each_time(scene: Scene) -> None:
    """Within the limits of the subscription; a delay given with the nack replaces the back-off."""
    client = scene.consumer(backoff_ms_min=1000, backoff_ms_max=3000)
    scene.publish(b"x")
    assert heard(client) == [(0, b"x", 1)]
    for attempt, wait_s in enumerate((1, 2, 3, 3), 2):
        client.nack(1, (0, 1))
        scene.stage.advance(wait_s - 0.1)
        assert heard(client) == []
        scene.stage.advance(0.2)
        assert heard(client) == [(0, b"x", attempt)]
    client.nack(1, (0, 1), delay_ms=0)
    scene.stage.settle()
    assert heard(client) == [(0, b"x", 6)]


def test_what_fails_waits_a_second_then_two_and_is_given_up_after_twenty(tmp_path: Path) -> None:
    """With default options a program that nacks everything does not run hot, and each message ends."""
    stage = Stage(tmp_path, protocol__session_timeout_ms=3_600_000)
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(b"x")
    assert heard(client) == [(0, b"x", 1)]
    begin = scene.stage.clock.now_s
    waits = [min(2**n, 60) for n in range(19)]
    for attempt, wait_s in enumerate(waits, 2):
        client.nack(1, (0, 1), reason="no")
        scene.stage.advance(wait_s - 0.2)
        assert heard(client) == []
        scene.stage.advance(0.3)
        assert heard(client) == [(0, b"x", attempt)]
    assert scene.stage.clock.now_s - begin > 600
    client.nack(1, (0, 1), reason="no")
    ((payload, _, attributes),) = letters(scene)
    assert (payload, attributes["ister.attempts"]) == (b"x", "20")
    stage.close()


def test_at_once_goes_before_the_default_back_off(scene: Scene) -> None:
    """An explicit delay of 0 is obeyed; it counts as a failure all the same."""
    client = scene.consumer()
    scene.publish(b"x")
    assert heard(client) == [(0, b"x", 1)]
    for attempt in range(2, 21):
        client.nack(1, (0, 1), delay_ms=0)
        scene.stage.settle()
        assert heard(client) == [(0, b"x", attempt)]


def test_one_bound_that_is_given_is_kept_by_the_other(scene: Scene) -> None:
    """The default of the other one is adjusted."""
    client = scene.consumer(backoff_ms_max=100)
    scene.publish(b"x")
    assert heard(client) == [(0, b"x", 1)]
    client.nack(1, (0, 1))
    scene.stage.advance(0.2)
    assert heard(client) == [(0, b"x", 2)]
    scene.update(backoff_ms_max=7_200_000, backoff_ms_min=3_600_000)


def test_the_defaults_of_a_broker_are_its_settings(tmp_path: Path) -> None:
    """They hold for subscriptions without options of their own."""
    stage = Stage(
        tmp_path,
        subscription__backoff_ms_min=0,
        subscription__backoff_ms_max=0,
        subscription__max_deliveries=2,
    )
    scene = Scene(stage)
    client = scene.consumer()
    scene.publish(b"x")
    assert heard(client) == [(0, b"x", 1)]
    client.nack(1, (0, 1))
    scene.stage.settle()
    assert heard(client) == [(0, b"x", 2)]
    client.nack(1, (0, 1))
    assert [payload for payload, _, _ in letters(scene)] == [b"x"]
    stage.close()


def test_letters_of_letters_are_not_made_by_default(scene: Scene) -> None:
    """Consumers of dead letters may nack them any number of times."""
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"x")
    assert offsets(client) == [0]
    fail(client, 0)
    scene.stage.advance(2)
    taker = scene.stage.at_subscription("orders.s.dlq", "redrive")
    taker.open_consumer(1, "orders.s.dlq", "redrive", "exclusive")
    assert offsets(taker) == [0]
    for _ in range(30):
        taker.nack(1, (0, 1), delay_ms=0)
        assert offsets(taker) == [0]


@pytest.mark.requirement("9.5-9")
def test_a_message_that_failed_often_enough_is_a_dead_letter(scene: Scene) -> None:
    """The dead-letter topic has it with its key and its history, and it is acknowledged in its own topic."""
    client = scene.consumer(max_deliveries=3)
    scene.publish(b"good", b"bad", key=b"k")
    scene.publish(b"later")
    assert offsets(client) == [0, 1, 2]
    fail(client, 1, times=2, reason="first")
    client.ack(1, (0, 1), (2, 3))
    fail(client, 1, reason="it is bad")
    ((payload, key, attributes),) = letters(scene)
    assert (payload, key) == (b"bad", b"k")
    dead_lettered_at = int(attributes.pop("ister.dead_lettered_at"))
    assert abs(dead_lettered_at - scene.now_ms()) < 60_000
    assert int(attributes.pop("ister.timestamp")) <= dead_lettered_at
    assert attributes == {
        "ister.topic": "orders",
        "ister.subscription": "s",
        "ister.offset": "1",
        "ister.producer": f"{7:016x}",
        "ister.attempts": "3",
        "ister.reason": "it is bad",
    }
    shown = scene.shown()
    assert (shown["cursor"], shown["dead_lettered"], shown["burying"]) == (3, 1, 0)


@pytest.mark.requirement("9.5-10")
def test_a_closed_or_reconnected_consumer_is_no_failure(scene: Scene) -> None:
    """A consumer that is restarted now and then does not make dead letters of what it had fetched."""
    scene.consumer(max_deliveries=1).close_handle(1)
    scene.publish(b"x")
    for attempt in range(1, 5):
        client = scene.consumer()
        assert heard(client) == [(0, b"x", attempt)]
        client.close_handle(1)
    client = scene.consumer()
    client.reconnect()
    assert client.open_consumer(1, "orders", "s", "shared").kind == Type.OPENED
    assert [row[0] for row in heard(client)] == [0]
    assert scene.shown()["burying"] == 0


@pytest.mark.requirement("9.5-9", "9.6-8")
def test_a_consumer_that_falls_silent_fails_what_it_held(scene: Scene) -> None:
    """A message that kills its consumers becomes a dead letter in the end."""
    scene.consumer(max_deliveries=2).close_handle(1)
    scene.publish(b"killer")
    for _ in range(2):
        client = scene.consumer()
        assert offsets(client) == [0]
        client.disconnect()
        scene.stage.advance(120)
    ((payload, _, attributes),) = letters(scene)
    assert payload == b"killer"
    assert "lost" in attributes["ister.reason"]


@pytest.mark.requirement("9.5-9")
def test_an_acknowledgment_timeout_is_a_failure(scene: Scene) -> None:
    """A consumer that neither acknowledges nor extends the timeout has failed."""
    client = scene.consumer(max_deliveries=2, ack_timeout_ms=1000, backoff_ms_min=0)
    scene.publish(b"slow")
    assert heard(client) == [(0, b"slow", 1)]
    scene.stage.advance(1.1)
    assert heard(client) == [(0, b"slow", 2)]
    scene.stage.advance(1.1)
    assert heard(client) == []
    ((payload, _, attributes),) = letters(scene)
    assert (payload, attributes["ister.reason"]) == (b"slow", "not acknowledged within 1 s")


@pytest.mark.requirement("9.5-6")
def test_who_is_still_working_is_left_alone(scene: Scene) -> None:
    """Extending restarts the timeout of the messages it names."""
    client = scene.consumer(ack_timeout_ms=1000)
    scene.publish(b"a", b"b")
    assert offsets(client) == [0, 1]
    for _ in range(5):
        scene.stage.advance(0.6)
        client.extend(1, (0, 1))
        scene.stage.settle()
    assert heard(client)[-1][:2] == (1, b"b")
    assert all(offset == 1 for offset in offsets(client))
    client.ack(1, (0, 2))
    assert scene.shown()["cursor"] == 2


def test_poison_may_be_dropped(scene: Scene) -> None:
    """A dropped message is counted and done."""
    client = scene.consumer(max_deliveries=1, poison="drop")
    scene.publish(b"a", b"b")
    heard(client)
    fail(client, 0)
    client.ack(1, (1, 2))
    shown = scene.shown()
    assert (shown["cursor"], shown["dropped_poison"]) == (2, 1)


@pytest.mark.parametrize("action", ["retry", "drop", "dead-letter"])
def test_poison_may_block_until_somebody_decides(scene: Scene, action: str) -> None:
    """Nothing is delivered meanwhile, the consumers are told, and the operator's decision is carried out."""
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"a")
    heard(client)
    fail(client, 0, reason="no")
    (blocked,) = events(client)
    assert (blocked.code, blocked.header[Key.OFFSET]) == ("blocked", 0)
    scene.publish(b"b")
    assert heard(client) == []
    assert scene.shown()["blocked"] is True
    assert scene.request("unblock", action=action) == {"messages": 1}
    scene.stage.settle()
    assert [row[1] for row in heard(client)] == ([b"a", b"b"] if action == "retry" else [b"b"])
    if action == "dead-letter":
        assert [payload for payload, _, _ in letters(scene)] == [b"a"]
    client.ack(1, (0, 2))
    assert scene.shown()["cursor"] == 2


@pytest.mark.parametrize("type", ["exclusive", "failover", "shared", "key-shared"])
def test_what_an_operator_has_tried_again_begins_to_count_anew_over_restarts_too(
    stage: Stage, type: str
) -> None:
    """After `unblock retry` a message may fail as often as a new one, also if the broker is restarted meanwhile."""
    scene = Scene(stage, type=type)
    client = scene.consumer(max_deliveries=2, poison="block")
    scene.publish(b"a", key=b"k")
    heard(client)
    fail(client, 0, times=2)
    assert scene.shown()["blocked"] is True
    client.close_handle(1)
    stage.advance(2)
    assert scene.request("unblock", action="retry") == {"messages": 1}
    stage.restart(2)
    client = scene.consumer()
    assert [row[2] for row in heard(client)] == [3]
    client.nack(1, (0, 1), delay_ms=0)
    stage.settle()
    assert scene.shown()["blocked"] is False
    assert [row[2] for row in heard(client)] == [4]
    fail(client, 0)
    assert scene.shown()["blocked"] is True


def test_a_poisoned_key_waits_and_others_go_on(stage: Stage) -> None:
    """In a Key-Shared subscription only the message's key is blocked."""
    scene = Scene(stage, type="key-shared")
    client = scene.consumer(max_deliveries=1, poison="block")
    scene.publish(b"1", key=b"a")
    heard(client)
    fail(client, 0)
    scene.publish(b"2", key=b"a")
    scene.publish(b"1", key=b"b")
    assert offsets(client) == [2]
    scene.request("unblock", action="drop")
    scene.stage.settle()
    assert offsets(client) == [1]


def test_many_dead_letters_arrive_once_each(scene: Scene) -> None:
    """More letters than may be on their way at once are stored in the order in which their messages failed."""
    client = scene.consumer(max_deliveries=1, messages=10_000)
    scene.publish(*(b"%d" % n for n in range(1200)))
    heard(client)
    client.nack(1, (0, 1200), reason="all bad")
    found = letters(scene)
    assert [payload for payload, _, _ in found] == [b"%d" % n for n in range(1200)]
    assert scene.shown()["cursor"] == 1200


def test_the_policy_can_be_changed(scene: Scene) -> None:
    """The new policy holds from then on; messages delivered already get the new timeout too."""
    client = scene.consumer()
    scene.publish(b"a")
    heard(client)
    scene.update(max_deliveries=1, poison="drop", ack_timeout_ms=500)
    fail(client, 0)
    assert scene.shown()["dropped_poison"] == 1
    scene.publish(b"b")
    heard(client)
    scene.stage.advance(0.6)
    assert scene.shown()["dropped_poison"] == 2


@pytest.mark.parametrize("type", ["exclusive", "failover", "shared", "key-shared"])
def test_failures_are_counted_over_restarts(stage: Stage, type: str) -> None:
    """A failing message has the configured number of attempts, however often the broker is restarted."""
    scene = Scene(stage, type=type)
    scene.consumer(max_deliveries=3).close_handle(1)
    scene.publish(*(b"%d" % n for n in range(6)), key=b"k")
    for attempt in (1, 2, 3):
        client = scene.consumer()
        got = {offset: each for offset, _, each in heard(client)}
        assert got[2] == attempt
        client.nack(1, (2, 3), delay_ms=10_000, reason=f"failure {attempt}")
        client.ack(1, (0, 1))
        client.close_handle(1)
        stage.restart(2)
        stage.advance(11)
    ((payload, _, attributes),) = letters(scene)
    assert (payload, attributes["ister.attempts"], attributes["ister.reason"]) == (b"2", "3", "failure 3")


@pytest.mark.parametrize("type", ["shared", "key-shared"])
def test_failures_of_messages_that_wait_for_their_time_are_counted_too(stage: Stage, type: str) -> None:
    """They are read again by another path, and counted the same."""
    scene = Scene(stage, type=type)
    client = scene.consumer(max_deliveries=2)
    scene.publish(b"x", b"y", key=b"k", deliver_at=[scene.now_ms() + 1000, 0])
    stage.advance(1.1)
    assert heard(client) == [(1, b"y", 1), (0, b"x", 1)]
    client.nack(1, (0, 1), delay_ms=10_000)
    stage.advance(0.1)
    stage.restart(2)
    stage.advance(11)
    assert sorted(heard(scene.consumer())) == [(0, b"x", 2), (1, b"y", 1)]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("type", ["exclusive", "shared"])
def test_only_what_is_missing_inside_a_batch_comes_again(stage: Stage, type: str, sparse: bool) -> None:
    """In few deliveries for clients that understand ranges, each message once and unchanged, also after a restart."""
    scene = Scene(stage, type=type)
    client = scene.consumer()
    scene.publish(*(b"%d" % n for n in range(300)))
    scene.publish(*(b"%d" % n for n in range(300, 400)))
    assert len(offsets(client)) == 400
    client.ack(1, *((n, n + 1) for n in range(0, 400, 2)))
    missing = [(n, b"%d" % n) for n in range(1, 400, 2)]
    for restarts in (False, True):
        if restarts:
            stage.restart(2)
        else:
            client.close_handle(1)
        client = scene.consumer(sparse=sparse)
        frames = []
        while (frame := client.hear(0)) is not None:
            frames.append(frame)
        assert [message for frame in frames for message in frame.messages()] == missing
        assert len(frames) <= 4 if sparse else len(frames) == 200
        assert scene.shown()["in_flight"] == 200
    client.ack(1, *((n, n + 1) for n, _ in missing))
    assert scene.shown()["cursor"] == 400


def test_what_is_held_for_longest_is_known(scene: Scene) -> None:
    """The time of a consumer's oldest message moves on with its acknowledgments."""
    client = scene.consumer()
    for number in range(5):
        scene.publish(b"%d" % number)
        heard(client)
        if number:
            client.ack(1, (0, number))
        scene.stage.advance(1)
    (holder,) = scene.request("explain")["numbers"]["subscription"]["holders"]
    assert (holder["messages"], scene.now_ms() - holder["since_ms"]) == (1, 1000)


def test_a_letter_that_is_refused_waits_apart_and_is_tried_again(scene: Scene) -> None:
    """It occupies no room of other letters; `explain` tells why it waits, and what happened to the others."""
    client = scene.consumer(max_deliveries=1)
    scene.publish(b"0", b"1", b"2")
    assert offsets(client) == [0, 1, 2]
    actor = subscription(scene)
    actor.ref.tell(Unburied(0, "too large"))  # about a letter that is not on its way
    failures = part(scene, Failures)
    take = failures._undertaker
    told: list[list[int]] = []

    class Refuses:
        def tell(self, command: Bury) -> None:
            told.append([letter.offset for letter in command.letters])
            for letter in command.letters:
                actor.ref.tell(
                    Unburied(letter.offset, "too large") if letter.offset == 1 else Buried([letter.offset])
                )

    failures._undertaker = Refuses
    fail(client, 0)
    fail(client, 1)
    fail(client, 2)
    scene.stage.settle()
    assert told == [[0], [1], [2]]
    assert (scene.shown()["burying"], scene.shown()["dead_lettered"]) == (1, 2)
    reasons = {each["code"]: each["text"] for each in scene.request("explain")["reasons"]}
    assert "too large" in reasons["dead-letter-delayed"]
    assert "2 messages failed too often" in reasons["dead-letters"]
    assert "ister dlq list" in reasons["dead-letters"]
    failures._undertaker = take
    scene.stage.advance(80)
    assert (scene.shown()["burying"], scene.shown()["dead_lettered"]) == (0, 3)


def test_a_dead_letter_is_explained(scene: Scene) -> None:
    """Which message was the last one, why it failed, and where its letter is."""
    client = scene.consumer(max_deliveries=2)
    scene.publish(b"x")
    assert offsets(client) == [0]
    fail(client, 0, times=2, reason="no such customer")
    scene.stage.advance(3)
    found = {each["code"]: each for each in scene.request("explain")["reasons"]}
    assert found["dead-letters"]["messages"] == 1
    assert found["dead-letters"]["dead_letter_topic"] == "orders.s.dlq"
    assert "the last one, offset 0, after 2 attempts (no such customer)" in found["dead-letters"]["text"]
