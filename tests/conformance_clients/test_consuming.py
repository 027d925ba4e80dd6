"""Scenarios of consumers and readers, for the clients of all languages."""

from __future__ import annotations

import time

import pytest

from ister.ownbroker import OwnBroker
from tests.conformance_clients.conftest import Play
from tests.conformance_clients.drivers import AnsweredError
from tests.conformance_clients.player import ANSWER_MS, Player, payloads_of

pytestmark = pytest.mark.process

TYPES = ("exclusive", "shared", "failover", "key-shared")


@pytest.mark.parametrize("type", TYPES)
def test_every_type_delivers_once_and_remembers(play: Play, broker: OwnBroker, topic: str, type: str) -> None:
    """The next consumer of the subscription gets what was not acknowledged, and nothing else."""
    player = play()
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "all", type)
    player.stored(topic, *(b"%d" % number for number in range(10)))
    came = player.receive(consumer, 10)
    assert payloads_of(came) == [b"%d" % number for number in range(10)]
    player.ack(consumer, *came[:7])
    player.close(consumer=consumer)
    player.close(client="c")

    other = play()
    other.connect(broker.endpoint)
    consumer = other.consumer(topic, "all", type)
    assert payloads_of(other.receive(consumer, 3)) == [b"7", b"8", b"9"]
    assert other.nothing(consumer)


def test_an_exclusive_subscription_has_one_consumer(play: Play, broker: OwnBroker, topic: str) -> None:
    """The second is refused at once; when the first was killed, the second gets its place after the session's end."""
    first, second = play(), play()
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    first.consumer(topic, "only", "exclusive")
    refused = second.refused(lambda: second.consumer(topic, "only", "exclusive", timeout_ms=None))
    assert (refused.code, refused.action) == ("subscription-busy", "retry")
    first.stored(topic, b"left")
    first.driver.kill()
    until = time.monotonic() + 30
    while True:
        try:
            consumer = second.consumer(topic, "only", "exclusive", timeout_ms=None)
            break
        except AnsweredError as error:
            if error.code != "subscription-busy":
                raise
            assert time.monotonic() < until
            time.sleep(0.2)
    assert payloads_of(second.receive(consumer)) == [b"left"]


def test_force_takes_an_exclusive_subscription_over(play: Play, broker: OwnBroker, topic: str) -> None:
    """The former consumer is told `taken-over`, and the new one gets what it held."""
    first, second = play(), play()
    first.need("force")
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    losing = first.consumer(topic, "only", "exclusive")
    first.stored(topic, b"held")
    assert first.receive(losing)
    winning = second.consumer(topic, "only", "exclusive", force=True)
    assert payloads_of(second.receive(winning)) == [b"held"]
    refused = first.refused(lambda: first.receive(losing))
    assert (refused.code, refused.action) == ("taken-over", "stop")


def test_shared_consumers_share(play: Play, broker: OwnBroker, topic: str) -> None:
    """Each message goes to one of them, and both get some."""
    first, second = play(), play()
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    places = [(each, each.consumer(topic, "team", "shared")) for each in (first, second)]
    sent = [b"%d" % number for number in range(200)]
    for payload_group in range(0, 200, 20):
        first.stored(topic, *sent[payload_group : payload_group + 20])
    came: list[list[bytes]] = [[], []]
    until = time.monotonic() + 30
    while len(came[0]) + len(came[1]) < 200 and time.monotonic() < until:
        for number, (each, consumer) in enumerate(places):
            found = each.receive(consumer, 20, timeout_ms=100)
            if found:
                each.ack(consumer, *found)
            came[number] += payloads_of(found)
    assert sorted(came[0] + came[1], key=int) == sent
    assert all(came)


def test_a_failover_consumer_stands_by(play: Play, broker: OwnBroker, topic: str) -> None:
    """One gets everything; when it is killed, the other continues with what was not acknowledged."""
    first, second = play(), play()
    first.need("heartbeat")
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    active = first.consumer(topic, "pair", "failover")
    standby = second.consumer(topic, "pair", "failover")
    if second.can("events"):
        second.until_event("standby", consumer=standby)
    first.stored(topic, b"one", b"two", b"three")
    one, two, _ = first.receive(active, 3)
    first.ack(active, one, two)
    if first.can("confirm"):
        first.flush(active)
    assert second.nothing(standby)
    first.driver.kill()
    came: list[bytes] = []
    while b"three" not in came:
        found = payloads_of(second.receive(standby))
        assert found, "the standby was given nothing"
        came += found
    assert not first.can("confirm") or came == [b"three"]
    if second.can("events"):
        assert "active" in [event["code"] for event in second.events(consumer=standby)]


def test_a_preferred_failover_consumer_becomes_active(play: Play, broker: OwnBroker, topic: str) -> None:
    """The lower priority is preferred, once the active one holds nothing any more."""
    first, second = play(), play()
    first.need("priority", "events")
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    first.consumer(topic, "pair", "failover", priority=5)
    preferred = second.consumer(topic, "pair", "failover", priority=1)
    second.until_event("active", consumer=preferred)
    first.stored(topic, b"for the preferred")
    assert payloads_of(second.receive(preferred)) == [b"for the preferred"]


def test_a_key_keeps_its_order_and_its_consumer(play: Play, broker: OwnBroker, topic: str) -> None:
    """Messages of a key come in order, to one consumer at a time, also when the other leaves."""
    first, second = play(), play()
    first.need("keys", "pipeline")
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    places = {each: each.consumer(topic, "keys", "key-shared") for each in (first, second)}
    producer = first.producer(topic)
    for number in range(120):
        first.publish(producer, b"%d" % number, key=b"k%d".__mod__(number % 6).hex())
    first.driver.ask("flush", producer=producer)
    seen: dict[str, list[int]] = {}
    until = time.monotonic() + 30
    while sum(map(len, seen.values())) < 120 and time.monotonic() < until:
        for each in list(places):
            for message in each.receive(places[each], 5, timeout_ms=100):
                seen.setdefault(message["key"], []).append(int(bytes.fromhex(message["payload"])))
                each.ack(places[each], message)
        if second in places and sum(map(len, seen.values())) > 60:
            second.close(consumer=places.pop(second))
    assert {key: len(numbers) for key, numbers in seen.items()} == {
        b"k%d".__mod__(k).hex(): 20 for k in range(6)
    }
    assert all(numbers == sorted(numbers) for numbers in seen.values())


def test_what_is_given_back_comes_again(player: Player, broker: OwnBroker, topic: str) -> None:
    """A refused message is redelivered with the next attempt, and at once if the delay is 0."""
    player.need("nack", "attempts")
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "all", "shared")
    player.stored(topic, b"difficult")
    for attempt in (1, 2, 3):
        [message] = player.receive(consumer)
        assert (message["attempt"], payloads_of([message])) == (attempt, [b"difficult"])
        player.driver.ask(
            "nack", consumer=consumer, offsets=[message["offset"]], delay_ms=0, reason="not yet, naïve"
        )
    [message] = player.receive(consumer)
    player.ack(consumer, message)
    assert player.nothing(consumer)


def test_a_poison_message_becomes_a_dead_letter(player: Player, broker: OwnBroker, topic: str) -> None:
    """After `max_deliveries` it is in the dead-letter topic, with its payload and the reason."""
    player.need("nack", "options", "attributes", "keys")
    player.connect(broker.endpoint)
    player.topic(topic)
    letters = "dead-" + topic[:100]
    options = {"max_deliveries": 2, "dead_letter_topic": letters, "backoff_ms_min": 0}
    consumer = player.consumer(topic, "all", "shared", options=options)
    producer = player.producer(topic)
    player.receipt(player.publish(producer, b"poison", key=b"k".hex(), attributes={"from": "me"}))
    for _ in range(2):
        [message] = player.receive(consumer)
        player.driver.ask("nack", consumer=consumer, offsets=[message["offset"]], delay_ms=0, reason="bad")
    assert player.nothing(consumer)
    [letter] = player.receive(player.consumer(letters, "look", "shared"))
    assert (payloads_of([letter]), letter["key"]) == ([b"poison"], b"k".hex())
    told = letter["attributes"]
    assert (told["from"], told["ister.topic"], told["ister.offset"]) == ("me", topic, "0")
    assert told["ister.reason"] == "bad"


def test_what_is_not_acknowledged_in_time_comes_again(player: Player, broker: OwnBroker, topic: str) -> None:
    """The acknowledgment timeout brings it back, unless `extend` restarts it."""
    player.need("options", "extend", "attempts")
    player.connect(broker.endpoint)
    player.topic(topic)
    options = {"ack_timeout_ms": 1500, "backoff_ms_min": 0}
    consumer = player.consumer(topic, "all", "shared", options=options)
    player.stored(topic, b"slow")
    [message] = player.receive(consumer)
    for _ in range(6):  # twice the timeout
        time.sleep(0.5)
        player.driver.ask("extend", consumer=consumer, offsets=[message["offset"]])
    assert player.nothing(consumer)
    [again] = player.receive(consumer)
    assert (again["offset"], again["attempt"]) == (message["offset"], 2)


def test_what_a_killed_consumer_held_goes_to_another(play: Play, broker: OwnBroker, topic: str) -> None:
    """A killed program sends no goodbye: its session ends, and others get what it held."""
    first, second = play(), play()
    first.need("heartbeat")
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    dying = first.consumer(topic, "team", "shared")
    first.stored(topic, b"one", b"two")
    assert len(first.receive(dying, 2)) == 2
    first.driver.kill()
    came = second.receive(second.consumer(topic, "team", "shared"), 2)
    assert sorted(payloads_of(came)) == [b"one", b"two"]


def test_ack_until_acknowledges_everything_before(player: Player, broker: OwnBroker, topic: str) -> None:
    """Up to and including the message, and no later one."""
    player.need("ack-until", "confirm")
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "all", "exclusive")
    player.stored(topic, b"0", b"1", b"2", b"3")
    came = player.receive(consumer, 4)
    player.driver.ask("ack_until", consumer=consumer, offset=came[2]["offset"])
    player.flush(consumer)
    player.close(consumer=consumer)
    assert payloads_of(player.receive(player.consumer(topic, "all", "exclusive"))) == [b"3"]


def test_a_confirmed_acknowledgment_survives_a_kill(play: Play, broker: OwnBroker, topic: str) -> None:
    """When `flush` has returned, the cursor is stored, and the program may die."""
    first, second = play(), play()
    first.need("confirm")
    for each in (first, second):
        each.connect(broker.endpoint)
    first.topic(topic)
    consumer = first.consumer(topic, "team", "shared")
    first.stored(topic, *(b"%d" % number for number in range(50)))
    came = first.receive(consumer, 50)
    first.ack(consumer, *came[:25], *came[26:])
    first.flush(consumer)
    first.driver.kill()
    consumer = second.consumer(topic, "team", "shared")
    assert payloads_of(second.receive(consumer)) == [b"25"]
    assert second.nothing(consumer)


def test_messages_that_came_together_are_acknowledged_together(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """Batch calls return the same messages as single ones."""
    player.need("batch-receive", "batch", "confirm")
    player.connect(broker.endpoint)
    player.topic(topic)
    producer = player.producer(topic)
    sent = [{"payload": b"%d".__mod__(number).hex()} for number in range(100)]
    player.receipt(player.publish_batch(producer, sent))
    consumer = player.consumer(topic, "all", "exclusive")
    came: list[bytes] = []
    while len(came) < 100:
        batch = player.receive(consumer, 30, batch=True)
        assert 0 < len(batch) <= 30
        came += payloads_of(batch)
        player.ack(consumer, *batch)
    assert came == [b"%d" % number for number in range(100)]
    player.flush(consumer)
    player.close(consumer=consumer)
    assert player.nothing(player.consumer(topic, "all", "exclusive"))


def test_seeking_moves_the_subscription(player: Player, broker: OwnBroker, topic: str) -> None:
    """To an offset, to a time, to the beginning and to the end: the next message is the one there."""
    player.need("seek", "timestamps")
    player.connect(broker.endpoint)
    player.topic(topic)
    player.stored(topic, b"0", b"1", b"2")
    time.sleep(0.05)
    player.stored(topic, b"3")
    consumer = player.consumer(topic, "all", "exclusive")
    came = player.receive(consumer, 4)
    player.ack(consumer, *came)

    def moved(to: object) -> int:
        position: int = player.driver.ask("seek", consumer=consumer, to=to, timeout_ms=ANSWER_MS)["position"]
        return position

    assert moved(1) == 1
    assert payloads_of(player.receive(consumer, 3)) == [b"1", b"2", b"3"]
    assert moved("earliest") == 0
    assert payloads_of(player.receive(consumer, 1)) == [b"0"]
    assert moved(f"time:{came[3]['timestamp_ms']}") == 3
    assert payloads_of(player.receive(consumer, 1)) == [b"3"]
    assert moved("latest") == 4
    assert player.nothing(consumer)
    refused = player.refused(lambda: moved(1000))
    assert refused.code == "offset-out-of-range"


def test_a_reader_reads_and_leaves_nothing(player: Player, broker: OwnBroker, topic: str) -> None:
    """From any position, as often as wanted; it creates no subscription."""
    player.need("reader", "admin")
    player.connect(broker.endpoint)
    player.topic(topic)
    player.stored(topic, b"0", b"1", b"2")
    assert payloads_of(player.receive(player.reader(topic), 3)) == [b"0", b"1", b"2"]
    assert payloads_of(player.receive(player.reader(topic, start=1), 2)) == [b"1", b"2"]
    latest = player.reader(topic, start="latest")
    assert player.nothing(latest)
    player.stored(topic, b"3")
    assert payloads_of(player.receive(latest)) == [b"3"]
    player.close(consumer=latest)
    assert player.admin("subscription.list", topic=topic)["subscriptions"] == []


def test_a_consumer_takes_no_more_than_its_credit(play: Play, broker: OwnBroker, topic: str) -> None:
    """Messages beyond its credit go to others while its program sleeps."""
    sleepy, awake = play(), play()
    sleepy.need("credit")
    for each in (sleepy, awake):
        each.connect(broker.endpoint)
    sleepy.topic(topic)
    slow = sleepy.consumer(topic, "team", "shared", credit_messages=5)
    sleepy.stored(topic, *(b"%d" % number for number in range(100)))
    fast = awake.consumer(topic, "team", "shared")
    came: list[bytes] = []
    while found := awake.receive(fast, 100, timeout_ms=1000):
        awake.ack(fast, *found)
        came += payloads_of(found)
    held = payloads_of(sleepy.receive(slow, 5, timeout_ms=1000))
    assert len(held) <= 5
    assert sorted({*came, *held}, key=int) == [b"%d" % number for number in range(100)]
    assert len(came) >= 95


def test_a_non_reliable_topic_delivers_what_comes(player: Player, broker: OwnBroker, topic: str) -> None:
    """Receipts count from 0, connected consumers get everything, and nothing is kept."""
    player.connect(broker.endpoint)
    player.topic(topic, dispatch="non-reliable")
    consumer = player.consumer(topic, "live", "exclusive")
    assert player.stored(topic, b"one", b"two") == [0, 1]
    came = player.receive(consumer, 2)
    assert payloads_of(came) == [b"one", b"two"]
    player.ack(consumer, *came)
    player.close(consumer=consumer)
    assert player.nothing(player.consumer(topic, "another", "exclusive"))


def test_the_end_of_a_topic_is_told(player: Player, broker: OwnBroker, topic: str) -> None:
    """Its consumers and producers get `topic-deleted`, with action `stop`."""
    player.need("admin", "pipeline")
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer, producer = player.consumer(topic, "all", "shared"), player.producer(topic)
    player.admin("topic.delete", topic=topic)
    refused = player.refused(lambda: player.receive(consumer))
    assert (refused.code, refused.action) == ("topic-deleted", "stop")
    refused = player.refused(lambda: player.receipt(player.publish(producer, b"late")))
    assert refused.code in ("topic-deleted", "unknown-topic")


def test_waiting_ends_when_the_time_is_over(player: Player, broker: OwnBroker, topic: str) -> None:
    """No message within the time is no error, and the next call finds what arrived meanwhile."""
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "all", "exclusive")
    began = time.monotonic()
    assert player.receive(consumer, timeout_ms=300) == []
    assert time.monotonic() - began >= 0.25
    player.stored(topic, b"after")
    assert payloads_of(player.receive(consumer)) == [b"after"]


def test_a_call_that_is_cancelled_leaves_nothing_behind(
    player: Player, broker: OwnBroker, topic: str
) -> None:
    """A cancelled `receive` has taken no message, and a cancelled `receipt` can be waited for again."""
    player.need("cancel", "pipeline")
    player.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "all", "exclusive")
    began = time.monotonic()
    refused = player.refused(lambda: player.receive(consumer, timeout_ms=ANSWER_MS, cancel_after_ms=200))
    assert refused.code == "cancelled"
    assert time.monotonic() - began < ANSWER_MS / 1000
    player.stored(topic, b"one", b"two")
    came = player.receive(consumer, 2)
    assert payloads_of(came) == [b"one", b"two"]
    player.ack(consumer, *came)
    assert player.nothing(consumer)
