"""Tests of subscriptions: which consumer gets what, where a cursor stands after failures, what slow consumers lose."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ister.actors.addresses import node_of
from ister.actors.asking import AGAIN_S, Asking
from ister.actors.messages import Deliver, Uploaded
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.actors.subscription.in_order import InOrder
from ister.storage.record import HEADER_BYTES
from ister.wire import Column, Key, Type
from tests.raw_client import Frame, batch
from tests.stage import Stage, StagedClient, held_up, inbox_holds

FAR = "tcp://worker-1"


def topic_on(stage: Stage, worker: int, **settings: str) -> StagedClient:
    """Create topic "orders-N" that lives on a given worker, and return its producer, open as handle 1."""
    name = next(
        f"orders-{n}"
        for n in range(99)
        if worker_of(topic_key(f"orders-{n}"), len(stage.endpoints)) == worker
    )
    stage.client().request("topic.create", topic=name, **settings)
    producer = stage.client(worker)
    assert producer.open_producer(1, name, 7).kind == Type.OPENED
    producer.topic = name
    return producer


def name_on(stage: Stage, topic: str, worker: int, number: int = 0) -> str:
    """Return the name of a subscription that lives on a given worker."""
    names = (
        f"s{n}"
        for n in range(999)
        if worker_of(subscription_key(topic, f"s{n}"), len(stage.endpoints)) == worker
    )
    return [next(names) for _ in range(number + 1)][-1]


@pytest.fixture
def producer(stage: Stage) -> StagedClient:
    """Return a producer of a reliable topic on worker 0."""
    return topic_on(stage, 0)


def put(producer: StagedClient, *payloads: bytes) -> None:
    """Publish messages as batches of one, and wait for their receipts."""
    for payload in payloads:
        producer.publish(1, producer.sequence, payload)
        producer.sequence += 1
    producer.receipts(1, len(payloads))


def consumer_of(producer: StagedClient, name: str = "", *args: str, **options: object) -> StagedClient:
    """Return a consumer of the producer's topic, open as handle 1 on its subscription's worker."""
    stage = producer.stage
    name = name or name_on(stage, producer.topic, 1)
    consumer = stage.at_subscription(producer.topic, name)
    answer = consumer.open_consumer(1, producer.topic, name, *args, **options)
    assert answer.kind == Type.OPENED, answer.header
    consumer.opened = answer
    return consumer


def shown(producer: StagedClient, name: str = "") -> dict[str, object]:
    """Return the result of `subscription.show`."""
    name = name or name_on(producer.stage, producer.topic, 1)
    found: dict[str, object] = producer.stage.client().request(
        "subscription.show", topic=producer.topic, subscription=name
    )
    return found


def attempts(consumer: StagedClient, messages: int) -> list[tuple[int, int]]:
    """Return (offset, attempt) of the next so many messages, in order of arrival."""
    found: list[tuple[int, int]] = []
    while len(found) < messages:
        frame = consumer.expect(Type.DELIVER, handle=1)
        found += [(offset, frame.header[Key.ATTEMPT]) for offset, _ in frame.messages()]
    return found


def offsets(consumer: StagedClient, messages: int) -> list[int]:
    """Return the offsets of the next so many messages, in order of arrival."""
    return [offset for offset, _ in attempts(consumer, messages)]


# ---- where it begins -------------------------------------------------------------------------------------------


@pytest.mark.requirement("9.1-1", "9.1-6")
@pytest.mark.parametrize(
    ("start", "first"), [("earliest", 0), ("latest", 3), (None, 3), (0, 0), (2, 2), (3, 3)]
)
def test_a_subscription_begins_where_it_was_asked_to(
    producer: StagedClient, start: str | int | None, first: int
) -> None:
    """Earliest, latest (the default), or an offset up to the end."""
    put(producer, b"0", b"1", b"2")
    consumer = consumer_of(producer, start=start)
    assert consumer.opened.header[Key.OFFSET] == first
    put(producer, b"3")
    assert consumer.deliveries(1, 4 - first) == [(n, b"%d" % n) for n in range(first, 4)]


def test_a_start_outside_the_topic_leaves_nothing_behind(producer: StagedClient) -> None:
    """An offset that does not exist is refused, and the name can be used with another start."""
    put(producer, b"0")
    name = name_on(producer.stage, producer.topic, 1)
    consumer = producer.stage.client(1)
    refused = consumer.open_consumer(1, producer.topic, name, start=50)
    assert (refused.code, refused.header[Key.ACTION]) == ("offset-out-of-range", "fix")
    client = producer.stage.client()
    assert (
        client.ask("subscription.create", topic=producer.topic, subscription=name, start=51).code
        == refused.code
    )
    assert client.request("subscription.list", topic=producer.topic)["subscriptions"] == []
    assert consumer.open_consumer(1, producer.topic, name, start=0).kind == Type.OPENED
    assert consumer.deliveries(1, 1) == [(0, b"0")]


@pytest.mark.requirement("9.1-1")
def test_the_start_counts_once(producer: StagedClient) -> None:
    """A consumer that opens an existing subscription continues at its cursor."""
    put(producer, b"0", b"1")
    consumer = consumer_of(producer)
    consumer.deliveries(1, 2)
    consumer.ack(1, (0, 1))
    consumer.close_handle(1)
    assert offsets(consumer_of(producer, start="latest"), 1) == [1]


def test_what_is_published_after_opened_is_delivered(stage: Stage) -> None:
    """Latest means from OPENED on, wherever topic and subscription live, however slow their mail is."""
    for dispatch in ("reliable", "non-reliable"):
        producer = topic_on(stage, 0, dispatch=dispatch)
        name = name_on(stage, producer.topic, 1)
        stage.hold("worker-1", "worker-0")
        consumer = stage.client(1)
        ref = consumer.say_open_consumer(1, producer.topic, name, start=None)
        stage.settle()
        early = [frame for frame in [consumer.hear(0)] if frame is not None]
        put(producer, b"before")
        stage.let_go("worker-1", "worker-0")
        assert not early, "OPENED was said though the topic does not know of the subscription"
        consumer.expect(Type.OPENED, ref=ref)
        put(producer, b"after")
        assert consumer.deliveries(1, 1) == [(1, b"after")]
        stage.client().request("topic.delete", topic=producer.topic)


# ---- credit ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("9.4-1")
def test_nobody_gets_more_than_there_is_credit_for(producer: StagedClient) -> None:
    """Messages are counted exactly, batches are cut to fit, and credit adds up."""
    producer.publish(1, 0, *[b"%d" % n for n in range(10)])
    producer.receipt(1)
    consumer = consumer_of(producer, messages=3)
    assert offsets(consumer, 3) == [0, 1, 2]
    assert consumer.silent(1)
    consumer.credit(1, 2)
    consumer.credit(1, 2)
    assert offsets(consumer, 4) == [3, 4, 5, 6]
    assert consumer.silent(1)
    consumer.credit(1, 100)
    assert offsets(consumer, 3) == [7, 8, 9]


@pytest.mark.requirement("9.4-2")
def test_bytes_are_permission_to_begin(producer: StagedClient) -> None:
    """A DELIVER may exceed the credit in bytes; no further one follows before the debt is paid."""
    put(producer, bytes(1000), bytes(1000))
    consumer = consumer_of(producer, bytes=1)
    (delivered,) = [consumer.expect(Type.DELIVER)]
    size = sum(map(len, delivered.body))
    assert delivered.header[Key.COUNT] == 2  # one piece
    put(producer, b"next")
    consumer.credit(1, 0, size - 1)
    assert consumer.silent(1)
    consumer.credit(1, 0, 1)
    assert offsets(consumer, 1) == [2]


@pytest.mark.requirement("9.4-3")
def test_credit_is_capped_at_what_welcome_said(make_stage: Callable[..., Stage]) -> None:
    """Whatever credit a client grants, the broker counts at most its limit."""
    stage = make_stage(1, protocol__consumer_credit_messages_max=5)
    producer = topic_on(stage, 0)
    producer.publish(1, 0, *[b"x"] * 50)
    producer.receipt(1)
    consumer = consumer_of(producer, "s", messages=(1 << 64) - 1)
    assert offsets(consumer, 5) == [0, 1, 2, 3, 4]
    assert consumer.silent(1)
    consumer.credit(1, (1 << 64) - 1, (1 << 64) - 1)
    assert len(offsets(consumer, 5)) == 5
    assert consumer.silent(1)


def test_no_credit_no_messages(producer: StagedClient) -> None:
    """A consumer may open without credit, and gets messages once it grants some."""
    put(producer, b"x")
    consumer = consumer_of(producer, messages=0, bytes=0)
    assert consumer.silent(1)
    consumer.credit(1, 1, 0)
    assert consumer.silent(1)
    consumer.credit(1, 0, 1)
    assert offsets(consumer, 1) == [0]


@pytest.mark.requirement("5.3-1", "5.3-2")
def test_what_is_delivered_is_what_was_published(producer: StagedClient) -> None:
    """Keys, attributes, times and payloads arrive byte for byte, from whole, joined or cut batches."""
    payloads, keys = [b"a", b"", b"ccc", b"dd"], [b"k", b"", b"kk", b"q"]
    attributes = [b"", b"\xa1aaab", b"", b""]
    head = {Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.COLUMNS: Column.KEYS | Column.ATTRIBUTES}
    for number in range(3):
        producer.say(head | {Key.SEQUENCE: 4 * number}, *batch(payloads, keys, attributes))
    producer.receipts(1, 3)
    consumer = consumer_of(producer, messages=6)
    frames: list[Frame] = []
    for credit in (1, 1, 4):
        while sum(frame.header[Key.COUNT] for frame in frames) < (6, 7, 8, 12)[[1, 1, 4].index(credit)]:
            frames.append(consumer.expect(Type.DELIVER))
        consumer.credit(1, credit)
    while sum(frame.header[Key.COUNT] for frame in frames) < 12:
        frames.append(consumer.expect(Type.DELIVER))
    found = [
        (offset, payload, key, attribute)
        for frame in frames
        for (offset, payload), key, attribute in zip(
            frame.messages(), frame.column(Column.KEYS), frame.column(Column.ATTRIBUTES), strict=True
        )
    ]
    whole = list(zip(payloads * 3, keys * 3, attributes * 3, strict=True))
    assert found == [(offset, *rest) for offset, rest in enumerate(whole)]
    times = [frame.header[Key.TIMESTAMPS] for frame in frames]
    assert [sum(each[::2]) for each in times] == [frame.header[Key.COUNT] for frame in frames]
    assert all(ms == producer.stage.clock.time_ms() for each in times for ms in each[1::2])


# ---- Exclusive and Shared --------------------------------------------------------------------------------------


@pytest.mark.requirement("9.2-1")
def test_an_exclusive_subscription_has_one_consumer(producer: StagedClient) -> None:
    """A second is refused until the first has closed; then it gets what the first left."""
    put(producer, b"0", b"1")
    first = consumer_of(producer)
    first.deliveries(1, 2)
    first.ack(1, (0, 1))
    second = producer.stage.client(1)
    name = name_on(producer.stage, producer.topic, 1)
    refused = second.open_consumer(1, producer.topic, name)
    assert (refused.code, refused.header[Key.ACTION]) == ("subscription-busy", "retry")
    assert first.silent(0)
    assert first.close_handle(1).kind == Type.DONE
    assert second.open_consumer(1, producer.topic, name).kind == Type.OPENED
    assert attempts(second, 1) == [(1, 2)]


@pytest.mark.requirement("9.2-6")
def test_a_shared_subscription_gives_turns(producer: StagedClient) -> None:
    """Consumers with credit get deliveries in turn, one without credit gets none, and no message goes to two."""
    consumers = [consumer_of(producer, "", "shared", messages=n) for n in (100, 100, 0)]
    for number in range(12):
        put(producer, b"%d" % number)
    counts = []
    seen: list[int] = []
    for consumer in consumers:
        mine: list[int] = []
        while not consumer.silent(0):
            mine += [offset for offset, _ in consumer.expect(Type.DELIVER).messages()]
        counts.append(len(mine))
        seen += mine
    assert counts == [6, 6, 0]
    assert sorted(seen) == list(range(12))


def test_many_subscriptions_of_a_topic_do_not_know_each_other(make_stage: Callable[..., Stage]) -> None:
    """Each has its own cursor, on whichever worker it lives."""
    stage = make_stage(3)
    producer = topic_on(stage, 1)
    consumers = {f"s{n}": consumer_of(producer, f"s{n}", "shared") for n in range(12)}
    assert len({consumer.worker for consumer in consumers.values()}) == 3
    put(producer, *[b"%d" % n for n in range(5)])
    for number, (name, consumer) in enumerate(consumers.items()):
        assert offsets(consumer, 5) == [0, 1, 2, 3, 4]
        consumer.ack(1, (0, 1 + number % 5))
        assert shown(producer, name)["cursor"] == 1 + number % 5


# ---- redelivery ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("9.4-6", "9.5-7")
def test_what_a_consumer_leaves_comes_again_with_the_next_attempt(producer: StagedClient) -> None:
    """However a consumer leaves, its unacknowledged messages are returned, delivered lowest first, and counted."""
    put(producer, *[b"x"] * 6)
    consumer = consumer_of(producer)
    assert attempts(consumer, 6) == [(n, 1) for n in range(6)]
    consumer.ack(1, (0, 2), (3, 4))
    consumer.close_handle(1)
    consumer = consumer_of(producer)
    assert attempts(consumer, 3) == [(2, 2), (4, 2), (5, 2)]
    consumer.say({Key.TYPE: Type.BYE})
    consumer = consumer_of(producer)
    assert attempts(consumer, 3) == [(2, 3), (4, 3), (5, 3)]
    put(producer, b"new")
    assert attempts(consumer, 1) == [(6, 1)]


def test_what_is_held_too_long_comes_again(producer: StagedClient) -> None:
    """After the acknowledgment timeout a message is delivered again; a late acknowledgment still counts."""
    put(producer, b"0", b"1")
    consumer = consumer_of(producer, "", "exclusive", ack_timeout_ms=1000)
    offsets(consumer, 2)
    producer.stage.advance(0.9)
    assert consumer.silent(0)
    producer.stage.advance(0.2)
    assert attempts(consumer, 2) == [(0, 2), (1, 2)]
    consumer.ack(1, (0, 1))
    producer.stage.advance(1.1)
    assert attempts(consumer, 1) == [(1, 3)]
    consumer.ack(1, (1, 2))
    producer.stage.advance(5)
    assert consumer.silent(0)
    assert shown(producer)["cursor"] == 2


@pytest.mark.requirement("9.5-5")
def test_what_is_refused_comes_again_when_its_delay_is_over(producer: StagedClient) -> None:
    """A nack without a delay returns the message at once, one with a delay later; other messages go on meanwhile."""
    put(producer, b"0", b"1", b"2")
    consumer = consumer_of(producer)
    offsets(consumer, 3)
    consumer.nack(1, (1, 2))
    assert attempts(consumer, 1) == [(1, 2)]
    consumer.nack(1, (0, 1), delay_ms=2000)
    consumer.nack(1, (2, 3), delay_ms=1000)
    put(producer, b"3")
    assert attempts(consumer, 1) == [(3, 1)]
    producer.stage.advance(0.9)
    assert consumer.silent(0)
    producer.stage.advance(0.2)
    assert attempts(consumer, 1) == [(2, 2)]
    producer.stage.advance(1)
    assert attempts(consumer, 1) == [(0, 2)]


def test_a_delay_of_years_is_refused(producer: StagedClient) -> None:
    """The limit is a day, and the error says so."""
    put(producer, b"0")
    consumer = consumer_of(producer)
    offsets(consumer, 1)
    consumer.nack(1, (0, 1), delay_ms=(1 << 64) - 1)
    assert consumer.expect(Type.ERROR, handle=1).code == "invalid-argument"
    consumer.ack(1, (0, 1))


def test_a_delayed_message_waits_for_a_consumer_too(producer: StagedClient) -> None:
    """If the delay ends while no consumer is attached, the next consumer gets the message at once."""
    put(producer, b"0")
    consumer = consumer_of(producer)
    offsets(consumer, 1)
    consumer.nack(1, (0, 1), delay_ms=500)
    consumer.close_handle(1)
    producer.stage.advance(2)
    assert attempts(consumer_of(producer), 1) == [(0, 2)]


def test_a_message_that_was_acknowledged_after_all_does_not_come_again(producer: StagedClient) -> None:
    """Timed out and waiting, then acknowledged by the consumer that had it: it is done."""
    put(producer, b"0", b"1")
    consumer = consumer_of(producer, "", "shared", ack_timeout_ms=1000, messages=2)
    offsets(consumer, 2)
    producer.stage.advance(1.1)
    assert shown(producer)["waiting_redelivery"] == 2
    consumer.ack(1, (0, 1))
    consumer.credit(1, 10)
    assert attempts(consumer, 1) == [(1, 2)]
    assert consumer.silent(0.5)


# ---- acknowledging ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("9.5-2")
def test_acknowledging_what_was_never_delivered_changes_nothing(producer: StagedClient) -> None:
    """Also the delivered part of the frame is not acknowledged; the consumer stays open."""
    put(producer, b"0", b"1", b"2")
    consumer = consumer_of(producer, messages=2)
    offsets(consumer, 2)
    ranges = [[0, 3], [0, 1, 2, 3], [1, 1], [2, 1], [0, 1, 1 << 62, 1 << 63]]
    for number, each in enumerate(ranges):
        consumer.say({Key.TYPE: Type.ACK, Key.HANDLE: 1, Key.RANGES: each, Key.REF: 90 + number})
        refused = consumer.expect(Type.ERROR, ref=90 + number)
        assert refused.code == ("ack-unknown" if each[0] < each[1] else "invalid-argument")
        assert (refused.header[Key.HANDLE], Key.CLOSED in refused.header) == (1, False)
    assert consumer.ack_until(1, 2).code == "ack-unknown"
    assert shown(producer)["cursor"] == 0
    consumer.ack(1, (0, 2))
    consumer.ack(1, (0, 2))  # a repeated acknowledgment is fine
    assert shown(producer)["cursor"] == 2


@pytest.mark.requirement("9.5-4")
def test_ack_until_means_all_of_an_ordered_subscription(producer: StagedClient) -> None:
    """Everything up to and including the offset is done, whichever consumer held it."""
    put(producer, *[b"x"] * 4)
    consumer = consumer_of(producer)
    offsets(consumer, 4)
    assert consumer.ack_until(1, 2).kind == Type.DONE
    assert shown(producer)["cursor"] == 3
    assert consumer.ack_until(1, 0).kind == Type.DONE
    assert shown(producer)["cursor"] == 3


@pytest.mark.requirement("9.5-4")
def test_ack_until_means_its_own_of_a_shared_subscription(producer: StagedClient) -> None:
    """A consumer of a shared subscription cannot acknowledge by a later offset what another holds."""
    first = consumer_of(producer, "", "shared", messages=2)
    put(producer, b"0", b"1")
    offsets(first, 2)
    second = consumer_of(producer, "", "shared", messages=2)
    put(producer, b"2", b"3")
    offsets(second, 2)
    assert second.ack_until(1, 3).kind == Type.DONE
    state = shown(producer)
    assert (state["cursor"], state["acknowledged_above"]) == (0, 2)
    first.close_handle(1)
    second.credit(1, 10)
    assert attempts(second, 2) == [(0, 2), (1, 2)]


@pytest.mark.requirement("9.5-3")
def test_a_confirmed_acknowledgment_outlives_the_worker(producer: StagedClient) -> None:
    """DONE is sent once the journal has it: a worker killed right then still has it after its restart."""
    stage = producer.stage
    put(producer, *[b"x"] * 9)
    consumer = consumer_of(producer, "", "shared")
    offsets(consumer, 9)
    consumer.ack(1, (0, 1), (3, 4), (6, 8))
    stage.kill(1)
    stage.start(1)
    assert offsets(consumer_of(producer, "", "shared"), 5) == [1, 2, 4, 5, 8]


@pytest.mark.requirement("9.5-3")
def test_an_acknowledgment_is_not_confirmed_while_its_journal_fails(producer: StagedClient) -> None:
    """The confirmation waits until the journal can be written again, and is then true."""
    stage = producer.stage
    put(producer, b"0")
    consumer = consumer_of(producer)
    offsets(consumer, 1)

    def fails(operation: str, path: str) -> None:
        if operation == "write" and "/cursors/" in path:
            raise OSError(5, "Input/output error")

    stage.disk.on_operation = fails
    consumer.say({Key.TYPE: Type.ACK, Key.HANDLE: 1, Key.RANGES: [0, 1], Key.REF: 77})
    stage.advance(5)
    assert consumer.silent(0)
    stage.disk.on_operation = None
    stage.advance(2)
    assert consumer.expect(Type.DONE, ref=77)
    stage.kill(1)
    stage.start(1)
    consumer = consumer_of(producer)
    assert consumer.opened.header[Key.OFFSET] == 1


def test_an_orderly_stop_forgets_no_acknowledgment(producer: StagedClient) -> None:
    """An unconfirmed acknowledgment just before the stop is in the journal."""
    stage = producer.stage
    put(producer, b"0", b"1")
    consumer = consumer_of(producer)
    offsets(consumer, 2)
    consumer.ack(1, (0, 2), confirm=False)
    stage.settle()
    stage.stop(1)
    stage.start(1)
    assert shown(producer)["cursor"] == 2


def test_a_long_acknowledged_stretch_is_no_obstacle(
    producer: StagedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart the first hole is delivered, and then the messages after the stretch, however many reads away."""
    monkeypatch.setattr("ister.actors.source.READ_BYTES", 100)
    stage = producer.stage
    consumer = consumer_of(producer, "", "shared", messages=1_000_000, bytes=64 << 20)
    for _ in range(12):
        put(producer, *[bytes(150)] * 100)
    offsets(consumer, 1200)
    consumer.ack(1, (1, 1200))
    stage.kill(1)
    stage.start(1)
    consumer = consumer_of(producer, "", "shared")
    put(producer, b"next")
    assert offsets(consumer, 2) == [0, 1200]


# ---- Failover --------------------------------------------------------------------------------------------------


def event(consumer: StagedClient) -> str:
    """Return the code of the next EVENT."""
    return consumer.expect(Type.EVENT, handle=1).code


@pytest.mark.requirement("9.2-4")
def test_one_is_active_and_the_others_hear_that_they_stand_by(producer: StagedClient) -> None:
    """The one with the lowest priority is active, then the oldest; the successor gets what was left, in order."""
    first = consumer_of(producer, "", "failover", priority=2)
    assert event(first) == "active"
    second = consumer_of(producer, "", "failover", priority=2)
    third = consumer_of(producer, "", "failover", priority=3)
    assert [event(second), event(third)] == ["standby", "standby"]
    put(producer, *[b"x"] * 6)
    assert offsets(first, 6) == list(range(6))
    assert second.silent(0)
    first.ack(1, (0, 2), (4, 5))
    first.close_handle(1)
    assert event(second) == "active"
    assert attempts(second, 3) == [(2, 2), (3, 2), (5, 2)]
    second.say({Key.TYPE: Type.BYE})
    assert event(third) == "active"
    assert attempts(third, 3) == [(2, 3), (3, 3), (5, 3)]


@pytest.mark.requirement("9.2-4")
def test_a_preferred_consumer_waits_until_the_active_one_has_nothing_left(producer: StagedClient) -> None:
    """A hand-over delivers nothing twice or out of order; no new messages are delivered meanwhile."""
    old = consumer_of(producer, "", "failover", priority=5)
    put(producer, *[b"x"] * 4)
    offsets(old, 4)
    old.ack(1, (0, 1))
    new = consumer_of(producer, "", "failover", priority=1)
    assert [event(new), event(old)] == ["standby", "active"]
    put(producer, b"y")
    assert old.silent(0)
    assert new.silent(0)
    old.ack(1, (1, 3))
    assert new.silent(0)
    old.ack(1, (3, 4))
    assert [event(new), event(old)] == ["active", "standby"]
    assert attempts(new, 1) == [(4, 1)]
    assert old.silent(0)
    new.close_handle(1)
    assert event(old) == "active"
    assert attempts(old, 1) == [(4, 2)]


@pytest.mark.parametrize("how", ["refuse", "close", "time", "seek"])
def test_what_the_active_one_gives_back_goes_to_the_preferred_one_first(
    producer: StagedClient, how: str
) -> None:
    """Before anything new, lowest offset first; likewise what it does not acknowledge in time."""
    stage = producer.stage
    old = consumer_of(producer, "", "failover", priority=5, ack_timeout_ms=1000, backoff_ms_min=0)
    put(producer, *[b"x"] * 2)
    offsets(old, 2)
    new = consumer_of(producer, "", "failover", priority=1)
    put(producer, b"y")
    assert event(new) == "standby"
    if how == "refuse":
        old.nack(1, (0, 2))
    elif how == "close":
        old.close_handle(1)
    elif how == "time":
        stage.advance(1.1)
    else:
        name = name_on(stage, producer.topic, 1)
        stage.client().request("subscription.seek", topic=producer.topic, subscription=name, to=0)
    assert event(new) == "active"
    assert offsets(new, 3) == [0, 1, 2]


def test_one_that_was_preferred_and_left_changes_nothing(producer: StagedClient) -> None:
    """The active one continues, and is told nothing."""
    old = consumer_of(producer, "", "failover", priority=5)
    assert event(old) == "active"
    put(producer, b"0")
    offsets(old, 1)
    new = consumer_of(producer, "", "failover", priority=1)
    put(producer, b"1")
    assert old.silent(0)
    new.close_handle(1)
    assert attempts(old, 1) == [(1, 1)]
    old.ack(1, (0, 2))
    assert old.silent(0)


@pytest.mark.requirement("9.2-5")
def test_a_standby_acknowledges_nothing(producer: StagedClient) -> None:
    """The standby gets an error, and the active one the messages; repeating what is acknowledged does no harm."""
    stage = producer.stage
    active = consumer_of(producer, "", "failover", priority=1)
    put(producer, *[b"x"] * 3)
    offsets(active, 3)
    standby = consumer_of(producer, "", "failover", priority=2)
    assert event(standby) == "standby"
    active.ack(1, (0, 1))
    for ref, header in (
        (77, {Key.TYPE: Type.ACK, Key.RANGES: [0, 2]}),
        (78, {Key.TYPE: Type.ACK_UNTIL, Key.OFFSET: 2}),
    ):
        standby.say({**header, Key.HANDLE: 1, Key.REF: ref})
        refused = standby.expect(Type.ERROR)
        assert (refused.code, refused.header[Key.REF]) == ("not-active", ref)
        assert refused.header[Key.ACTION] == "retry"
    standby.ack(1, (0, 1))
    name = name_on(stage, producer.topic, 1)
    shown = stage.client().request("subscription.show", topic=producer.topic, subscription=name)
    assert shown["cursor"] == 1
    active.close_handle(1)
    assert event(standby) == "active"
    assert attempts(standby, 2) == [(1, 2), (2, 2)]


def test_what_is_on_its_way_to_the_active_one_is_its_own(producer: StagedClient) -> None:
    """It counts as held from the moment it is sent."""
    stage = producer.stage
    old = consumer_of(producer, "", "failover", priority=5, messages=100)
    with held_up(stage.actor("consumer", "1")):
        put(producer, b"on its way")
        new = consumer_of(producer, "", "failover", priority=1)
        put(producer, b"new")
        assert event(new) == "standby"
        assert new.silent(1)
    assert offsets(old, 1) == [0]
    old.ack(1, (0, 1))
    assert event(new) == "active"
    assert attempts(new, 1) == [(1, 1)]


def test_an_old_active_one_that_fails_holds_up_nobody(producer: StagedClient) -> None:
    """A failed consumer holds nothing any more."""
    stage = producer.stage
    stage.expects_failures = True
    old = consumer_of(producer, "", "failover", priority=5)
    put(producer, b"0")
    offsets(old, 1)
    actor = stage.actor("consumer", "1")
    with held_up(actor):
        new = consumer_of(producer, "", "failover", priority=1)
        assert event(new) == "standby"
        actor.fail(RuntimeError("a mistake"))
    assert event(new) == "active"
    assert offsets(new, 1) == [0]


# ---- coming back -----------------------------------------------------------------------------------------------


def test_a_consumer_that_opens_again_gets_everything_again_in_order(producer: StagedClient) -> None:
    """After a lost connection: first what it held, then new messages, within the credit it grants now."""
    put(producer, *[b"x"] * 4)
    consumer = consumer_of(producer, messages=4)
    offsets(consumer, 4)
    consumer.ack(1, (1, 2))
    assert consumer.reconnect().header[Key.RESUMED] is True
    name = name_on(producer.stage, producer.topic, 1)
    opened = consumer.open_consumer(1, producer.topic, name, messages=2)
    assert opened.header[Key.OFFSET] == 4
    assert attempts(consumer, 2) == [(0, 2), (2, 2)]
    assert consumer.silent(0.5)
    put(producer, b"new")
    consumer.credit(1, 5)
    assert attempts(consumer, 2) == [(3, 2), (4, 1)]


def test_what_is_on_its_way_to_who_opens_again_comes_in_its_place(producer: StagedClient) -> None:
    """A delivery behind the open in the consumer's inbox must not overtake what the consumer held."""
    stage = producer.stage
    put(producer, b"0", b"1")
    consumer = consumer_of(producer)
    offsets(consumer, 2)
    consumer.reconnect()
    with held_up(stage.actor("consumer", "1")):
        ref = consumer.say_open_consumer(1, producer.topic, name_on(stage, producer.topic, 1))
        stage.settle()
        put(producer, b"2")
        assert consumer.silent(0)
    opened = consumer.hear()
    assert opened is not None
    assert (opened.kind, opened.header[Key.REF]) == (Type.OPENED, ref)
    assert attempts(consumer, 3) == [(0, 2), (1, 2), (2, 1)]


def test_what_is_on_its_way_to_who_closes_is_not_lost(producer: StagedClient) -> None:
    """A delivery behind a CLOSE in the consumer's inbox goes to the next consumer."""
    stage = producer.stage
    put(producer, b"0", b"1")
    consumer = consumer_of(producer)
    offsets(consumer, 2)
    with held_up(stage.actor("consumer", "1")):
        consumer.say({Key.TYPE: Type.CLOSE, Key.REF: 60, Key.HANDLE: 1})
        stage.settle()
        put(producer, b"2")
    assert consumer.expect(Type.DONE, ref=60)
    assert attempts(consumer_of(producer), 3) == [(0, 2), (1, 2), (2, 1)]


def test_a_flood_of_acknowledgments_and_a_close_lose_nothing(producer: StagedClient) -> None:
    """The same from outside: more frames than a turn handles, with deliveries between them."""
    consumer = consumer_of(producer, "", "shared", messages=100_000, bytes=64 << 20)
    for number in range(300):
        producer.publish(1, number, bytes(60_000))
    offsets(consumer, 1)
    for _ in range(200):
        consumer.ack(1, (0, 1), confirm=False)
    consumer.close_handle(1)
    consumer = consumer_of(producer, "", "shared", messages=100_000, bytes=64 << 20)
    assert sorted(offsets(consumer, 299)) == list(range(1, 300))


def test_a_consumer_that_fails_loses_nothing(producer: StagedClient) -> None:
    """A bug in one consumer closes its client's handle; what it held, and deliveries to it, are delivered again."""
    stage = producer.stage
    stage.expects_failures = True
    put(producer, b"0")
    consumer = consumer_of(producer)
    offsets(consumer, 1)
    actor = stage.actor("consumer", "1")
    with held_up(actor):
        put(producer, b"1")
        assert inbox_holds(actor, Deliver)
        actor.fail(RuntimeError("a mistake"))
    gone = consumer.expect(Type.ERROR, handle=1)
    assert (gone.code, gone.header[Key.CLOSED], gone.header[Key.ACTION]) == ("internal", True, "retry")
    assert attempts(consumer_of(producer), 2) == [(0, 2), (1, 1)]


def test_a_subscription_that_fails_loses_nothing(producer: StagedClient) -> None:
    """A bug in a subscription closes its consumers' handles; acknowledgments are in the journal."""
    stage = producer.stage
    stage.expects_failures = True
    put(producer, b"0", b"1")
    consumer = consumer_of(producer)
    offsets(consumer, 2)
    consumer.ack(1, (0, 1), confirm=False)
    stage.settle()
    files = stage.disk.open_files
    stage.actor("subscription", producer.topic).fail(RuntimeError("a mistake"))
    gone = consumer.expect(Type.ERROR, handle=1)
    assert (gone.code, gone.header[Key.CLOSED]) == ("internal", True)
    assert stage.disk.open_files == files - 1
    assert offsets(consumer_of(producer), 1) == [1]


# ---- a client that takes nothing -------------------------------------------------------------------------------


def test_a_full_connection_waits_and_loses_nothing(producer: StagedClient) -> None:
    """Pieces that do not fit into a client's queue are sent when there is room, in order, once."""
    stage = producer.stage
    consumer = consumer_of(producer)
    consumer.router.full.add(consumer.routing)
    put(producer, b"0", b"1", b"2")
    stage.advance(1)
    assert consumer.silent(0)
    consumer.router.full.discard(consumer.routing)
    stage.advance(0.1)
    assert attempts(consumer, 3) == [(0, 1), (1, 1), (2, 1)]
    put(producer, b"3")
    assert attempts(consumer, 1) == [(3, 1)]


def test_a_full_connection_holds_up_nobody_else(producer: StagedClient) -> None:
    """Others of a Shared subscription get what a full one cannot take; what it was given returns when it leaves."""
    full = consumer_of(producer, "", "shared")
    full.router.full.add(full.routing)
    put(producer, b"0")
    other = consumer_of(producer, "", "shared")
    put(producer, b"1", b"2", b"3")
    assert offsets(other, 3) == [1, 2, 3]
    full.router.full.discard(full.routing)
    full.disconnect()
    full.connect()
    full.hello(session=full.session)
    full.say({Key.TYPE: Type.BYE})
    assert attempts(other, 1) == [(0, 1)]  # it was never sent


@pytest.mark.requirement("4.2-1", "7.3-7")
def test_a_full_connection_that_is_lost_and_resumed_gets_it_in_order(producer: StagedClient) -> None:
    """Queued pieces are returned when the client opens again, and do not count as attempts."""
    consumer = consumer_of(producer)
    put(producer, b"0")
    offsets(consumer, 1)
    consumer.router.full.add(consumer.routing)
    put(producer, b"1", b"2")
    producer.stage.advance(0.02)
    consumer.reconnect()
    consumer.open_consumer(1, producer.topic, name_on(producer.stage, producer.topic, 1))
    assert attempts(consumer, 3) == [(0, 2), (1, 1), (2, 1)]
    put(producer, b"3")
    assert attempts(consumer, 1) == [(3, 1)]
    assert consumer.silent(1)


def test_deliveries_to_a_lost_connection_wait_for_its_resume(producer: StagedClient) -> None:
    """Within the session timeout the consumer keeps its place; afterwards its messages go to others."""
    consumer = consumer_of(producer)
    consumer.disconnect()
    put(producer, b"0", b"1")
    consumer.connect()
    consumer.hello(session=consumer.session)
    consumer.open_consumer(1, producer.topic, name_on(producer.stage, producer.topic, 1))
    assert offsets(consumer, 2) == [0, 1]


# ---- the topic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False])
def test_a_topic_that_is_started_again_goes_on(producer: StagedClient, in_order: bool) -> None:
    """Its subscriptions on other workers keep their consumers, and attach again by themselves."""
    stage = producer.stage
    put(producer, b"0")
    consumer = consumer_of(producer)
    offsets(consumer, 1)
    (stage.stop if in_order else stage.kill)(0)
    stage.advance(0.2)
    stage.start(0)
    stage.settle()
    again = stage.client(0)
    assert again.open_producer(1, producer.topic, 7, 1).header[Key.SEQUENCE] == 1
    again.publish(1, 1, b"1")
    again.receipt(1)
    assert consumer.deliveries(1, 1) == [(1, b"1")]
    assert consumer.unread == []


def test_a_topic_that_fails_is_attached_to_again(producer: StagedClient) -> None:
    """A bug in a topic does not leave its subscriptions without news."""
    stage = producer.stage
    stage.expects_failures = True
    for worker in range(2):
        consumer = consumer_of(producer, name_on(stage, producer.topic, worker))
        stage.actor("topic", producer.topic).fail(RuntimeError("a mistake"))
        assert producer.expect(Type.ERROR, handle=1).code == "unavailable"
        assert producer.open_producer(1, producer.topic, 7, worker).kind == Type.OPENED
        producer.publish(1, worker, b"%d" % worker)
        producer.receipt(1)
        assert offsets(consumer, worker + 1)[-1] == worker


def test_a_word_of_the_topic_that_gets_lost_is_made_up_for(producer: StagedClient) -> None:
    """The mail may be lost: the subscription asks for the durable end again after some seconds."""
    stage = producer.stage
    consumer = consumer_of(producer)
    stage.hold("worker-0", "worker-1")
    put(producer, b"lost")
    stage.holding.clear()
    stage.let_go("worker-0", "worker-1")
    stage.advance(AGAIN_S + 1)
    assert offsets(consumer, 1) == [0]


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
@pytest.mark.parametrize("lost", [("worker-1", "worker-0"), ("worker-0", "worker-1")])
def test_a_question_to_the_topic_that_gets_lost_is_asked_again_soon(
    stage: Stage, dispatch: str, lost: tuple[str, str]
) -> None:
    """So is one whose answer was lost: an open, or a request about the subscription, is answered in a moment."""
    producer = topic_on(stage, 0, dispatch=dispatch)
    name = name_on(stage, producer.topic, 1)
    stage.hold(*lost)
    consumer = stage.client(1)
    ref = consumer.say_open_consumer(1, producer.topic, name)
    stage.settle()
    stage.holding.clear()
    stage.let_go(*lost)
    assert consumer.expect(Type.OPENED, ref=ref, timeout_s=2)
    put(producer, b"0")
    assert offsets(consumer, 1) == [0]


def test_a_topic_that_never_answers_is_asked_more_and_more_rarely() -> None:
    """Ten thousand subscriptions may wait for a store that is away; after an answer the interval is short again."""
    asking = Asking()
    assert [asking.asked() for _ in range(7)] == [1, 2, 4, 8, 10, 10, 10]
    assert (asking.answered(), asking.asked(), asking.asked()) == (10, 1, 2)


def test_a_topic_that_cannot_be_opened_is_an_error_until_it_can(producer: StagedClient) -> None:
    """A consumer is told what is wrong with the log; once that is mended, it is attached."""
    stage = producer.stage
    put(producer, b"0")
    stage.kill(0)

    def fails(operation: str, path: str) -> None:
        if operation == "sync" and "/topics/" in path:
            raise OSError(5, "Input/output error")

    stage.disk.on_operation = fails
    stage.start(0)
    consumer = stage.client(1)
    name = name_on(stage, producer.topic, 1)
    refused = consumer.open_consumer(1, producer.topic, name)
    assert (refused.code, refused.header[Key.ACTION], refused.header[Key.CLOSED]) == (
        "log-failed",
        "retry",
        True,
    )
    stage.disk.on_operation = None
    stage.advance(3)
    assert consumer.open_consumer(1, producer.topic, name).kind == Type.OPENED
    assert offsets(consumer, 1) == [0]


def test_damage_is_never_delivered(producer: StagedClient) -> None:
    """A record whose bytes changed is reported to the consumer, not delivered; messages before it were delivered."""
    stage = producer.stage
    put(producer, b"good")
    put(producer, b"twisted")
    put(producer, b"behind it")
    stage.actor("topic", producer.topic).ref.tell(Uploaded(0, 0))  # the store has nothing of it
    (path,) = [name for name in stage.disk._names if "/topics/" in name]
    live = stage.disk._names[path].live
    live[live.index(b"twisted")] ^= 1
    consumer = consumer_of(producer, messages=1)
    assert consumer.deliveries(1, 1) == [(0, b"good")]
    consumer.credit(1, 10)
    said = consumer.expect(Type.EVENT, handle=1)
    assert (said.code, said.header[Key.OFFSET], said.header[Key.COUNT]) == ("log-damaged", 1, 1)
    stage.advance(30)
    assert [frame for frame in consumer.unread if frame.kind == Type.DELIVER] == []


def lose_the_log(stage: Stage, keep: int) -> None:
    """Kill everything, cut the log back to so many records, and start again."""
    for worker in range(2):
        stage.kill(worker)
    (path,) = [name for name in stage.disk._names if "/topics/" in name and name.endswith(".seg")]
    live = stage.disk._names[path].live
    at = live.index(b"message %d" % keep)
    live[at - HEADER_BYTES - 4 :] = bytes(len(live) - at + HEADER_BYTES + 4)
    for worker in range(2):
        stage.start(worker)


def test_what_a_power_cut_took_from_the_page_cache_is_not_taken_for_acknowledged(stage: Stage) -> None:
    """With durability "os" a cursor may be ahead of the log; the next messages at those offsets must be delivered."""
    producer = topic_on(stage, 0, durability="os")
    put(producer, *[b"message %d" % n for n in range(5)])
    consumer = consumer_of(producer, "", "shared")
    offsets(consumer, 5)
    consumer.ack(1, (0, 2), (3, 5))
    lose_the_log(stage, 4)
    again = stage.client(0)
    opened = again.open_producer(1, producer.topic, 9)
    assert opened.kind == Type.OPENED
    consumer = consumer_of(producer, "", "shared")
    assert offsets(consumer, 1) == [2]
    again.publish(1, 0, b"in the place of message 4")
    assert again.receipt(1) == [(0, 4)]
    assert consumer.deliveries(1, 1) == [(4, b"in the place of message 4")]


# ---- deletion --------------------------------------------------------------------------------------------------


def test_a_deleted_subscription_leaves_no_file(producer: StagedClient) -> None:
    """Also if the topic's answer comes after the deletion."""
    stage = producer.stage
    put(producer, b"0")
    name = name_on(stage, producer.topic, 1)
    stage.hold("worker-0", "worker-1")
    waiting = stage.client(1)
    ref = waiting.say_open_consumer(1, producer.topic, name)
    stage.settle()
    stage.client().request("subscription.delete", topic=producer.topic, subscription=name)
    stage.let_go("worker-0", "worker-1")
    assert waiting.expect(Type.ERROR, ref=ref).header[Key.CLOSED] is True
    stage.settle()
    assert stage.actors("subscription") == []
    assert [name for name in stage.disk._names if "/cursors/" in name] == []


# ---- non-reliable ----------------------------------------------------------------------------------------------


@pytest.fixture
def fleeting(stage: Stage) -> StagedClient:
    """Return a producer of a non-reliable topic on worker 0."""
    return topic_on(stage, 0, dispatch="non-reliable")


def test_everybody_gets_a_message_once(fleeting: StagedClient) -> None:
    """Once per subscription, on the topic's worker or elsewhere, whether acknowledged or not."""
    stage = fleeting.stage
    consumers = [
        consumer_of(fleeting, name_on(stage, fleeting.topic, worker, number), "shared")
        for worker in range(2)
        for number in range(3)
    ]
    put(fleeting, b"0", b"1")
    for consumer in consumers:
        assert consumer.deliveries(1, 2) == [(0, b"0"), (1, b"1")]
        consumer.ack(1, (0, 2))
        consumer.nack(1, (0, 1))
        assert consumer.ack_until(1, 1).kind == Type.DONE
        assert consumer.silent(0.1)
    assert len(stage.actors("relay")) == 2


def test_a_relay_that_its_topic_forgot_is_sent_to_again(fleeting: StagedClient) -> None:
    """Its consumers get nothing meanwhile, and what they missed is counted."""
    stage = fleeting.stage
    consumer = consumer_of(fleeting, "", "shared")
    put(fleeting, b"0")
    assert consumer.deliveries(1, 1) == [(0, b"0")]
    stage.actor("topic", fleeting.topic).watchers.refs.clear()
    put(fleeting, b"nobody's")
    stage.advance(AGAIN_S + 1)
    put(fleeting, b"2")
    assert consumer.deliveries(1, 1) == [(2, b"2")]
    assert shown(fleeting)["dropped"] == 1


def test_a_relay_whose_topic_heard_it_and_was_not_heard_passes_on_what_comes(fleeting: StagedClient) -> None:
    """A batch stands for the answer that was lost."""
    stage = fleeting.stage
    put(fleeting, b"before")
    name = name_on(stage, fleeting.topic, 1)
    stage.hold("worker-0", "worker-1")
    consumer = stage.client(1)
    ref = consumer.say_open_consumer(1, fleeting.topic, name, "shared")
    stage.settle()
    stage.holding.clear()
    stage.let_go("worker-0", "worker-1")
    put(fleeting, b"1")
    assert consumer.expect(Type.OPENED, ref=ref, timeout_s=0.1).header[Key.OFFSET] == 1
    assert consumer.deliveries(1, 1) == [(1, b"1")]
    stage.advance(2)
    put(fleeting, b"2")
    assert consumer.deliveries(1, 1) == [(2, b"2")]
    assert shown(fleeting)["dropped"] == 0


def test_without_a_consumer_nothing_is_kept(fleeting: StagedClient) -> None:
    """Messages published while no consumer is attached are not kept; the relay ends with the last consumer."""
    consumer = consumer_of(fleeting, "", "shared")
    put(fleeting, b"0")
    consumer.deliveries(1, 1)
    consumer.close_handle(1)
    assert fleeting.stage.actors("relay") == []
    put(fleeting, b"nobody's")
    consumer = consumer_of(fleeting, "", "shared")
    assert consumer.opened.header[Key.OFFSET] == 2
    put(fleeting, b"2")
    assert consumer.deliveries(1, 1) == [(2, b"2")]
    assert shown(fleeting)["dropped"] == 0
    assert len(fleeting.stage.actors("relay")) == 1


@pytest.mark.parametrize(("drop", "kept"), [("oldest", [7, 8, 9]), ("newest", [2, 3, 4])])
def test_beyond_the_buffer_the_policy_says_what_is_lost(
    fleeting: StagedClient, drop: str, kept: list[int]
) -> None:
    """A consumer without credit loses the oldest or the newest, and is told exactly how many."""
    consumer = consumer_of(fleeting, "", "shared", messages=2, drop=drop, buffer_messages_max=3)
    for number in range(10):
        put(fleeting, b"%d" % number)
    assert offsets(consumer, 2) == [0, 1]
    fleeting.stage.advance(1)
    dropped = consumer.expect(Type.EVENT, handle=1)
    assert (dropped.code, dropped.header[Key.COUNT]) == ("dropped", 5)
    state = shown(fleeting)
    assert (state["dropped"], state["buffered"], state["delivered"]) == (5, 3, 2)
    consumer.credit(1, 100)
    assert offsets(consumer, 3) == kept
    assert consumer.silent(0.5)


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_nothing_is_dropped_while_there_is_credit(fleeting: StagedClient, drop: str) -> None:
    """A consumer with enough credit gets more in one turn than the buffer holds; nothing is dropped."""
    consumer = consumer_of(
        fleeting, "", "shared", messages=10_000, bytes=64 << 20, drop=drop, buffer_messages_max=5
    )
    for number in range(60):
        fleeting.publish(1, number, bytes(100_000))
    assert offsets(consumer, 60) == list(range(60))
    assert shown(fleeting)["dropped"] == 0


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_delivered_and_dropped_are_all_there_was(fleeting: StagedClient, drop: str) -> None:
    """Whatever the batches and the credit, every message is delivered once, or dropped and counted, or buffered."""
    consumer = consumer_of(fleeting, "", "shared", messages=7, drop=drop, buffer_messages_max=10)
    sequence = 0
    for size in (3, 1, 8, 2, 25, 1, 1, 4, 40, 6, 1, 9):
        fleeting.publish(1, sequence, *[b"%d" % n for n in range(sequence, sequence + size)])
        sequence += size
        if size % 2:
            fleeting.stage.settle()
            consumer.credit(1, 3)
    fleeting.stage.settle()
    consumer.credit(1, 2)
    seen: list[int] = []
    while not consumer.silent(0.2):
        frame = consumer.expect(Type.DELIVER, Type.EVENT)
        seen += [offset for offset, _ in frame.messages()] if frame.kind == Type.DELIVER else []
    state = shown(fleeting)
    assert seen == sorted(set(seen))
    assert len(seen) + int(str(state["dropped"])) + int(str(state["buffered"])) == sequence
    assert int(str(state["buffered"])) <= 40  # at most the limit, or one batch


def test_what_is_left_of_a_batch_may_be_dropped_too(fleeting: StagedClient) -> None:
    """Of a batch that was delivered in part, only the rest is dropped."""
    consumer = consumer_of(fleeting, "", "shared", messages=2, drop="oldest", buffer_messages_max=4)
    fleeting.publish(1, 0, b"0", b"1", b"2", b"3", b"4")
    fleeting.receipt(1)
    assert offsets(consumer, 2) == [0, 1]
    fleeting.publish(1, 5, b"5", b"6")
    fleeting.receipt(1)
    state = shown(fleeting)
    assert (state["dropped"], state["buffered"]) == (3, 2)
    consumer.credit(1, 10)
    assert offsets(consumer, 2) == [5, 6]


def test_a_slow_consumer_is_its_own_problem(fleeting: StagedClient) -> None:
    """It slows neither the producer nor other consumers, and memory is bounded."""
    stage = fleeting.stage
    slow = consumer_of(fleeting, name_on(stage, fleeting.topic, 1, 0), "shared", buffer_messages_max=5)
    slow.router.full.add(slow.routing)
    quick = consumer_of(fleeting, name_on(stage, fleeting.topic, 1, 1), "shared")
    for number in range(50):
        put(fleeting, b"%d" % number)
    assert offsets(quick, 50) == list(range(50))
    stage.advance(1)
    state = shown(fleeting, name_on(stage, fleeting.topic, 1, 0))
    assert int(str(state["dropped"])) + int(str(state["buffered"])) + int(str(state["delivered"])) == 50
    assert int(str(state["buffered"])) <= 5


def test_what_a_lost_connection_did_not_take_is_counted(fleeting: StagedClient) -> None:
    """Messages for a client whose connection is gone are counted like other losses."""
    consumer = consumer_of(fleeting, "", "shared")
    consumer.router.full.add(consumer.routing)
    for payload in (b"0", b"1", b"2"):  # one in the backlog, two in the buffer
        put(fleeting, payload)
    fleeting.stage.advance(0.1)
    assert shown(fleeting)["dropped"] == 0
    consumer.reconnect()
    consumer.open_consumer(1, fleeting.topic, name_on(fleeting.stage, fleeting.topic, 1), "shared")
    got = len(offsets(consumer, 2))
    fleeting.stage.advance(1)
    assert int(str(shown(fleeting)["dropped"])) == 3 - got
    consumer.disconnect()
    put(fleeting, b"3")
    assert int(str(shown(fleeting)["dropped"])) == 4 - got


def test_a_non_reliable_topic_that_is_started_again_goes_on(fleeting: StagedClient) -> None:
    """Relays attach again to a restarted worker, and to a topic that failed; offsets start from 0."""
    stage = fleeting.stage
    stage.expects_failures = True
    consumer = consumer_of(fleeting, "", "shared")
    put(fleeting, b"0", b"1")
    offsets(consumer, 2)
    stage.kill(0)
    stage.start(0)
    stage.settle()
    again = stage.client(0)
    again.open_producer(1, fleeting.topic, 7, 2)
    again.publish(1, 2, b"anew")
    assert consumer.deliveries(1, 1) == [(0, b"anew")]
    stage.actor("topic", fleeting.topic).fail(RuntimeError("a mistake"))
    stage.advance(2)
    again.open_producer(1, fleeting.topic, 7, 3)
    again.publish(1, 3, b"and again")
    assert consumer.deliveries(1, 1) == [(0, b"and again")]
    assert shown(fleeting)["dropped"] == 0


def test_a_non_reliable_subscription_that_fails_is_there_again(fleeting: StagedClient) -> None:
    """Its consumers are closed, open again, and get what is published from then on; nothing stays attached."""
    stage = fleeting.stage
    stage.expects_failures = True
    consumer = consumer_of(fleeting, "", "shared")
    put(fleeting, b"0")
    offsets(consumer, 1)
    stage.actor("subscription", fleeting.topic).fail(RuntimeError("a mistake"))
    stage.settle()
    gone = consumer.expect(Type.ERROR, handle=1)
    assert (gone.code, gone.header[Key.CLOSED]) == ("internal", True)
    assert stage.actors("relay") == []
    consumer = consumer_of(fleeting, "", "shared")
    put(fleeting, b"1")
    assert consumer.deliveries(1, 1) == [(1, b"1")]


def test_what_is_lost_between_workers_is_counted(fleeting: StagedClient) -> None:
    """A gap in the offsets that reach a subscription is a loss, and is shown."""
    stage = fleeting.stage
    consumer = consumer_of(fleeting, "", "shared")
    put(fleeting, b"0")
    stage.hold("worker-0", "worker-1")
    put(fleeting, b"1", b"2")
    stage.holding.clear()
    stage.let_go("worker-0", "worker-1")
    put(fleeting, b"3")
    assert offsets(consumer, 2) == [0, 3]
    assert shown(fleeting)["dropped"] == 2


def test_a_reliable_subscription_is_one(producer: StagedClient) -> None:
    """The topic's strategy decides which actor runs its subscriptions."""
    consumer_of(producer)
    assert isinstance(producer.stage.actor("subscription", producer.topic).delivery, InOrder)


def test_credit_given_again_before_a_place_was_found_replaces_what_was_given_first(stage: Stage) -> None:
    """A consumer that opens again while its subscription waits for the topic has the credit of its last open."""
    stage.client().request("topic.create", topic="orders")
    names = [f"s{number}" for number in range(20)]
    topic_node = stage.client().request("topic.show", topic="orders")["node"]
    workers = {name: worker_of(subscription_key("orders", name), 2) for name in names}
    name = next(name for name in names if node_of(workers[name]) != topic_node)
    node = node_of(workers[name])
    producer = stage.at_topic("orders")
    producer.open_producer(1, "orders", 7)
    producer.publish(1, 0, *[b"x"] * 60)
    producer.receipt(1)
    consumer = stage.client(workers[name])
    stage.hold(node, topic_node)
    consumer.say_open_consumer(2, "orders", name, messages=50)
    stage.settle()
    consumer.reconnect()
    ref = consumer.say_open_consumer(2, "orders", name, messages=3)
    stage.settle()
    stage.let_go(node, topic_node)
    stage.settle()
    assert consumer.expect(Type.OPENED, ref=ref).header[Key.HANDLE] == 2
    assert len(consumer.deliveries(2, 3)) == 3
    assert consumer.silent(1)
