"""Tests of Key-Shared subscriptions: each key in order, at one consumer at a time, whichever consumers come and go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ister.wire import Key, Type
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient

KEYS = [b"key-%d" % number for number in range(40)]


class Scene:
    """A topic, a producer and consumers of one Key-Shared subscription."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.client().request("topic.create", topic="orders")
        self.producer = stage.at_topic("orders")
        assert self.producer.open_producer(1, "orders", 7).kind == Type.OPENED
        self.sent = 0

    def publish(self, *messages: tuple[bytes, bytes]) -> None:
        self.producer.publish_keyed(1, self.sent, *messages)
        self.sent += len(messages)
        self.producer.receipts(1, 1)

    def consumer(self, *, messages: int = 1000, sparse: bool = True, **options: object) -> StagedClient:
        client = self.stage.at_subscription("orders", "s")
        answer = client.open_consumer(
            1, "orders", "s", "key-shared", messages=messages, sparse=sparse, **options
        )
        assert answer.kind == Type.OPENED, answer.header
        return client

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.stage.client().request(
            "subscription.show", topic="orders", subscription="s"
        )
        return found


@pytest.fixture
def scene(stage: Stage) -> Scene:
    """Return a scene."""
    return Scene(stage)


def heard(client: StagedClient) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Yield (offset, key, payload, attempt) of the messages a consumer received so far."""
    while (frame := client.hear(0)) is not None:
        if frame.kind == Type.DELIVER:
            yield from rows(frame)


def rows(frame: Frame) -> list[tuple[int, bytes, bytes, int]]:
    """Return (offset, key, payload, attempt) of each message of a DELIVER frame."""
    keys = frame.column(1) if frame.header.get(Key.COLUMNS, 0) & 1 else [b""] * frame.header[Key.COUNT]
    attempt = frame.header[Key.ATTEMPT]
    return [
        (offset, key, payload, attempt) for (offset, payload), key in zip(frame.messages(), keys, strict=True)
    ]


@pytest.mark.requirement("9.2-7")
def test_every_key_goes_to_one_consumer_in_order(scene: Scene) -> None:
    """Each key goes to one consumer, and each message comes once, unchanged."""
    clients = [scene.consumer() for _ in range(3)]
    for turn in range(5):
        scene.publish(*((key, b"%d" % turn) for key in KEYS))
    seen: dict[bytes, list[tuple[int, bytes]]] = {}
    for number, client in enumerate(clients):
        mine = list(heard(client))
        assert mine
        for offset, key, payload, attempt in mine:
            assert attempt == 1
            assert KEYS[offset % len(KEYS)] == key
            seen.setdefault(key, []).append((number, payload))
    for key in KEYS:
        assert [payload for _, payload in seen[key]] == [b"%d" % turn for turn in range(5)]
        assert len({number for number, _ in seen[key]}) == 1


@pytest.mark.requirement("5.3-2", "9.1-5")
def test_a_consumer_that_understands_no_ranges_gets_offsets_that_follow_each_other(scene: Scene) -> None:
    """An old client can only acknowledge consecutive ranges."""
    old, new = scene.consumer(sparse=False), scene.consumer()
    scene.publish(*((key, b"x") for key in KEYS))
    frames = []
    while (frame := old.hear(0)) is not None:
        frames.append(frame)
    assert frames
    assert all(Key.RANGES not in frame.header for frame in frames)
    got = [row[0] for frame in frames for row in rows(frame)] + [row[0] for row in heard(new)]
    assert sorted(got) == list(range(len(KEYS)))


def test_a_key_changes_hands_when_everything_of_it_is_acknowledged(scene: Scene) -> None:
    """A new consumer takes keys over, but none of which another consumer still has a message in flight."""
    first = scene.consumer()
    scene.publish(*((key, b"1") for key in KEYS))
    mine = {key: offset for offset, key, _, _ in heard(first)}
    assert len(mine) == len(KEYS)
    second = scene.consumer()
    scene.publish(*((key, b"2") for key in KEYS))
    stay = {key for _, key, _, _ in heard(first)}
    assert 0 < len(stay) < len(KEYS), "some keys stay where they are"
    assert list(heard(second)) == [], "the others wait for what the first has of them"
    moved = next(key for key in KEYS if key not in stay)
    first.ack(1, (mine[moved], mine[moved] + 1))
    assert [(key, payload) for _, key, payload, _ in heard(second)] == [(moved, b"2")]


def test_what_a_lost_consumer_held_is_given_to_others_in_order(scene: Scene) -> None:
    """All messages of a key come again, lowest offset first, before newer ones."""
    first, second = scene.consumer(), scene.consumer()
    for turn in range(3):
        scene.publish(*((key, b"%d" % turn) for key in KEYS))
    lost = list(heard(first))
    kept = list(heard(second))
    first.say({Key.TYPE: Type.BYE})
    scene.stage.settle()
    scene.publish(*((key, b"3") for key in KEYS))
    again = list(heard(second))
    keys = {key for _, key, _, _ in lost}
    assert keys.isdisjoint(key for _, key, _, _ in kept)
    for key in KEYS:
        payloads = [payload for _, each, payload, _ in again if each == key]
        assert payloads == ([b"0", b"1", b"2", b"3"] if key in keys else [b"3"])


def test_a_slow_consumer_does_not_stop_the_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its waiting messages are bounded, the rest stays in the log; it gets all of them when it grants credit."""
    monkeypatch.setattr("ister.actors.lanes.WAITING_MAX", 20)
    monkeypatch.setattr("ister.actors.lanes.WAITING_HARD_MAX", 40)
    monkeypatch.setattr("ister.actors.lanes.LANE_MAX", 8)
    slow, fast = scene.consumer(messages=1), scene.consumer(messages=100_000)
    for turn in range(30):
        scene.publish(*((key, b"%d" % turn) for key in KEYS))
    quick = list(heard(fast))
    held = list(heard(slow))
    assert len(held) == 1
    theirs = {key for _, key, _, _ in quick}
    assert len(quick) == 30 * len(theirs)
    assert scene.shown()["waiting_for_key"] <= 40
    slow.credit(1, 100_000)
    scene.stage.settle()
    held += list(heard(slow))
    for key in KEYS:
        mine = held if key not in theirs else quick
        assert [payload for _, each, payload, _ in mine if each == key] == [b"%d" % n for n in range(30)]
    assert scene.shown()["left_in_log"] == 0


def test_a_hot_key_does_not_starve_cold_ones(scene: Scene) -> None:
    """A consumer's keys take turns, however many messages one of them has."""
    client = scene.consumer(messages=1)
    scene.publish(*((b"hot", b"%d" % n) for n in range(500)))
    scene.publish((b"cold", b"!"))
    got = list(heard(client))
    while not any(key == b"cold" for _, key, _, _ in got):
        assert len(got) < 10, "the cold key waits for the hot one"
        client.credit(1, 1)
        scene.stage.settle()
        got += list(heard(client))


def test_a_key_waits_while_one_of_its_messages_backs_off(scene: Scene) -> None:
    """A nacked message comes again before newer ones of its key; other keys go on."""
    client = scene.consumer()
    scene.publish((b"a", b"1"))
    assert [row[2] for row in heard(client)] == [b"1"]
    client.nack(1, (0, 1), delay_ms=5000)
    scene.stage.settle()
    scene.publish((b"a", b"2"), (b"b", b"1"))
    assert [(key, payload) for _, key, payload, _ in heard(client)] == [(b"b", b"1")]
    scene.stage.advance(5.1)
    assert [(payload, attempt) for _, _, payload, attempt in heard(client)] == [(b"1", 2), (b"2", 1)]


@pytest.mark.requirement("9.2-7")
def test_messages_without_a_key_go_to_anybody_and_come_again(scene: Scene) -> None:
    """They have no order, and nacked ones are delivered again."""
    clients = [scene.consumer(messages=10) for _ in range(2)]
    scene.publish(*((b"", b"%d" % n) for n in range(20)))
    got = [list(heard(client)) for client in clients]
    assert [len(each) for each in got] == [10, 10]
    clients[0].nack(1, (got[0][0][0], got[0][0][0] + 1), delay_ms=0)
    clients[0].credit(1, 1)
    scene.stage.settle()
    again = list(heard(clients[0]))
    assert [(row[0], row[3]) for row in again] == [(got[0][0][0], 2)]


def test_a_restart_goes_on_with_what_was_not_acknowledged(scene: Scene) -> None:
    """Exactly the acknowledged messages, of whatever keys, do not come again; the others do, in order."""
    client = scene.consumer()
    scene.publish(*((KEYS[n % 4], b"%d" % n) for n in range(40)))
    got = list(heard(client))
    done = {offset for offset, key, _, _ in got if key != KEYS[2]}
    client.ack(1, *((offset, offset + 1) for offset in sorted(done)))
    scene.stage.restart(2)
    again = list(heard(scene.consumer()))
    assert [(key, payload) for _, key, payload, _ in again] == [(KEYS[2], b"%d" % n) for n in range(2, 40, 4)]
