"""Tests of upkeep: what retention deletes and reports, what damage stops, and what an operator can do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ister.actors.asking import AGAIN_S
from ister.actors.messages import Uploaded
from ister.actors.reliable_topic import ReliableTopic
from ister.storage.verify import VerifyProgress
from ister.wire import Key, Type
from tests.actors.test_subscription import name_on
from tests.stage import Stage, StagedClient

PAYLOAD = b"x" * 60_000
SMALL: dict[str, Any] = {
    "protocol__message_bytes_max": 65_536,
    "protocol__batch_bytes_max": 65_536,
    "log__segment_bytes_max": 1_200_000,
}


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a broker with segments of 19 messages of `PAYLOAD`."""
    return make_stage(2, **SMALL)


def fill(stage: Stage, messages: int, *, uploaded: bool = True, **settings: Any) -> StagedClient:
    """Create a topic, publish so many messages, and report them as uploaded."""
    stage.client().request("topic.create", topic="orders", **settings)
    producer = stage.at_topic("orders")
    producer.open_producer(1, "orders", 7)
    publish(producer, 0, messages)
    if uploaded:
        upload(stage)
    return producer


def publish(producer: StagedClient, first: int, messages: int) -> None:
    """Publish messages one by one, and wait for their receipts."""
    for sequence in range(first, first + messages):
        producer.publish(1, sequence, b"%d/" % sequence + PAYLOAD)
        producer.receipt(1)


def upload(stage: Stage) -> None:
    """Tell the topic that everything is in the store."""
    topic = stage.actor("topic", "orders")
    topic.ref.tell(Uploaded(0, topic.wal.durable_end))
    stage.advance(3)


def fill_here(stage: Stage, messages: int) -> None:
    """Create a topic, publish so many messages, and tell the topic that the store has none of them."""
    fill(stage, messages, uploaded=False)
    stage.actor("topic", "orders").ref.tell(Uploaded(0, 0))
    stage.settle()


def start_of(stage: Stage) -> int:
    """Return the topic's first offset."""
    start: int = stage.client().request("topic.show", topic="orders")["start_offset"]
    return start


# ---- retention -------------------------------------------------------------------------------------------------


def test_a_topic_keeps_everything_unless_told_otherwise(stage: Stage) -> None:
    """Without retention nothing is deleted, however much there is."""
    fill(stage, 100)
    assert start_of(stage) == 0


def test_retention_by_bytes_keeps_the_newest(stage: Stage) -> None:
    """Whole segments are deleted from the beginning until the topic is within the limit; offsets continue."""
    producer = fill(stage, 100, retention_bytes=2_500_000)
    start = start_of(stage)
    assert 40 < start <= 100 - 2 * 19
    producer.publish(1, 100, b"next")
    assert producer.receipt(1) == [(100, 100)]
    reader = stage.at_subscription("orders", "new")
    reader.open_consumer(2, "orders", "new", messages=1)
    assert reader.deliveries(2, 1)[0] == (start, b"%d/" % start + PAYLOAD)


def test_retention_by_age_follows_the_clock(stage: Stage) -> None:
    """A segment is deleted once its last message is older than the limit, and not before."""
    fill(stage, 50, retention_ms=60_000)
    assert start_of(stage) == 0
    stage.advance(62)
    assert start_of(stage) > 0


def test_nothing_goes_before_the_store_has_it(stage: Stage) -> None:
    """Until the upload the log is the only copy."""
    fill(stage, 100, uploaded=False, retention_bytes=1)
    stage.advance(10)
    assert start_of(stage) == 0
    upload(stage)
    assert start_of(stage) > 0


def test_what_every_subscription_has_acknowledged_goes(stage: Stage) -> None:
    """The slowest subscription decides, also one that was not opened since the broker started."""
    fill(stage, 60, retention_acknowledged=1)
    assert start_of(stage) == 0, "a topic without subscriptions waits for its first"
    for name in ("fast", "slow"):
        stage.client().request(
            "subscription.create", topic="orders", subscription=name, type="shared", start=0
        )
    fast = stage.at_subscription("orders", "fast")
    fast.open_consumer(2, "orders", "fast", "shared", bytes=1 << 26)
    fast.deliveries(2, 60)
    fast.ack(2, (0, 60))
    stage.advance(5)
    assert start_of(stage) == 0
    stage.restart(2)
    slow = stage.at_subscription("orders", "slow")
    slow.open_consumer(2, "orders", "slow", "shared", bytes=1 << 26)
    slow.deliveries(2, 60)
    slow.ack(2, (0, 30))
    stage.advance(5)
    assert start_of(stage) == 0, "the store has not said that it has anything since the restart"
    upload(stage)
    assert start_of(stage) == 19
    slow.ack(2, (30, 60))
    stage.advance(5)
    assert start_of(stage) > 19


@pytest.mark.parametrize("away", [False, True])
def test_a_running_subscription_hears_of_the_topics_new_settings(stage: Stage, away: bool) -> None:
    """Earlier acknowledgments count from then on; also if the mail about the setting was lost."""
    fill(stage, 60)
    stage.client().request("subscription.create", topic="orders", subscription="s", type="shared", start=0)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(2, "orders", "s", "shared", bytes=1 << 26)
    consumer.deliveries(2, 60)
    consumer.ack(2, (0, 60))
    stage.advance(5)
    subscription = stage.actor("subscription", "orders", "s")
    topic = stage.actor("topic", "orders")
    if away:
        topic.watchers.refs.clear()  # as when the mail is lost
    stage.client().request("topic.update", topic="orders", retention_acknowledged=1)
    stage.advance(0.1)
    assert (subscription.topic == topic.meta) is not away
    stage.advance(15 if away else 4)
    assert subscription.topic == topic.meta
    assert start_of(stage) > 0


def test_retention_can_be_changed(stage: Stage) -> None:
    """A running topic uses new limits at once, and keeps them over a restart."""
    fill(stage, 100)
    changed = stage.client().request("topic.update", topic="orders", retention_bytes=2_500_000)
    assert changed["settings"] == {"retention_bytes": 2_500_000}
    stage.advance(3)
    assert start_of(stage) > 0
    stage.restart(1)
    assert stage.client().request("topic.show", topic="orders")["settings"] == {"retention_bytes": 2_500_000}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"retention_bytes": -1}, "retention_bytes is -1, which is not 0 to"),
        ({"retention_hours": 1}, "no setting 'retention_hours'"),
        ({}, "nothing to change"),
    ],
)
def test_a_retention_that_cannot_be_is_refused(stage: Stage, arguments: dict[str, int], says: str) -> None:
    """The error names the setting, the value and the allowed range."""
    stage.client().request("topic.create", topic="orders")
    answer = stage.client().ask("topic.update", topic="orders", **arguments)
    assert answer.code == "invalid-argument"
    assert says in answer.header[Key.TEXT]


def test_a_subscription_that_falls_off_retention_says_which_messages_it_lost(stage: Stage) -> None:
    """A connected consumer gets a coded event with the range, and then the remaining messages, in order."""
    producer = fill(stage, 20, uploaded=False, retention_bytes=2_500_000)
    consumer = stage.at_subscription("orders", "slow")
    consumer.open_consumer(2, "orders", "slow", messages=3)
    assert [offset for offset, _ in consumer.deliveries(2, 3)] == [0, 1, 2]
    consumer.ack(2, (0, 2))
    publish(producer, 20, 80)
    upload(stage)
    start = start_of(stage)
    event = consumer.expect(Type.EVENT, handle=2, code="trimmed")
    assert event.header[Key.OFFSET] == 2
    assert event.header[Key.COUNT] == start - 2
    consumer.credit(2, 1)
    assert consumer.deliveries(2, 1)[0][0] == start
    shown = stage.client().request("subscription.show", topic="orders", subscription="slow")
    assert shown["trimmed"] == start - 2
    assert shown["cursor"] == start


def test_a_consumer_that_was_away_hears_of_the_loss_when_it_comes(stage: Stage) -> None:
    """If no consumer was attached when retention deleted the messages, the next one is told."""
    producer = fill(stage, 20, uploaded=False, retention_bytes=2_500_000)
    consumer = stage.at_subscription("orders", "slow")
    consumer.open_consumer(2, "orders", "slow", messages=3)
    consumer.close_handle(2)
    publish(producer, 20, 80)
    upload(stage)
    start = start_of(stage)
    consumer.open_consumer(3, "orders", "slow", messages=1)
    assert consumer.expect(Type.EVENT, handle=3, code="trimmed").header[Key.COUNT] == start
    assert consumer.deliveries(3, 1)[0][0] == start


def test_a_reader_that_comes_back_below_what_retention_took_is_told_what_it_missed(stage: Stage) -> None:
    """It continues at the new beginning of the topic, not after messages that were lost with its connection."""
    producer = fill(stage, 80, uploaded=False, retention_bytes=2_500_000)
    reader = stage.at_subscription("orders", "r")
    reader.open_consumer(2, "orders", "r", "reader", messages=75, bytes=1 << 24)
    assert len(reader.deliveries(2, 75)) == 75
    reader.disconnect()
    publish(producer, 80, 20)
    upload(stage)
    start = start_of(stage)
    assert 5 < start < 75
    reader.reconnect()
    assert (
        reader.open_consumer(2, "orders", "r", "reader", start=5, messages=100, bytes=1 << 24).kind
        == Type.OPENED
    )
    event = reader.expect(Type.EVENT, handle=2, code="trimmed")
    assert (event.header[Key.OFFSET], event.header[Key.COUNT]) == (5, start - 5)
    assert [offset for offset, _ in reader.deliveries(2, 100 - start)] == list(range(start, 100))


# ---- damage ----------------------------------------------------------------------------------------------------


def damage(stage: Stage, message: int) -> None:
    """Flip a byte in the payload of one message, in its segment file."""
    needle = b"%d/" % message + PAYLOAD[:100]
    topic = stage.actor("topic", "orders")
    folder = topic.wal.folder
    for name in stage.disk.listdir(folder):
        path = f"{folder}/{name}"
        at = stage.disk.read(path).find(needle) if name.endswith(".seg") else -1
        if at >= 0:
            file = stage.disk.open(path)
            file.pwritev((b"?",), at + 50)
            file.close()
            return
    raise AssertionError(f"message {message} is in no segment")


def test_damage_is_never_served_and_never_skipped_in_silence(stage: Stage) -> None:
    """Messages before it arrive, then an event with code, range and the command to decide with; acks go on."""
    fill_here(stage, 60)
    damage(stage, 10)
    consumer = stage.at_subscription("orders", "all")
    consumer.open_consumer(2, "orders", "all", bytes=1 << 26)
    assert [offset for offset, _ in consumer.deliveries(2, 10)] == list(range(10))
    event = consumer.expect(Type.EVENT, handle=2, code="log-damaged")
    assert (event.header[Key.OFFSET], event.header[Key.COUNT]) == (10, 1)
    assert "ister topic repair orders --skip-damaged" in event.header[Key.TEXT]
    consumer.ack(2, (0, 10))
    consumer.credit(2, 100)
    assert consumer.silent(5)
    consumer.close_handle(2)
    consumer.open_consumer(3, "orders", "all")
    assert consumer.expect(Type.EVENT, handle=3).code == "log-damaged"
    assert consumer.silent(5)


@pytest.mark.requirement("9.7-2")
def test_who_comes_back_hears_of_damage_again(stage: Stage) -> None:
    """The event may have been lost with the connection, and no other would come."""
    fill_here(stage, 60)
    damage(stage, 10)
    consumer = stage.at_subscription("orders", "all")
    consumer.open_consumer(2, "orders", "all", bytes=1 << 26)
    consumer.deliveries(2, 10)
    consumer.expect(Type.EVENT, handle=2, code="log-damaged")
    consumer.reconnect()
    consumer.open_consumer(2, "orders", "all", bytes=1 << 26)
    assert consumer.expect(Type.EVENT, handle=2).code == "log-damaged"


def test_damage_that_anybody_found_is_shown(stage: Stage) -> None:
    """`topic.show` lists the damage found by subscriptions and by verifications, each range once."""
    fill_here(stage, 60)
    damage(stage, 10)
    assert shown_damage(stage) == []
    consumer = stage.at_subscription("orders", "all")
    consumer.open_consumer(2, "orders", "all", bytes=1 << 26)
    consumer.expect(Type.EVENT, handle=2, code="log-damaged")
    assert shown_damage(stage) == [(10, 11)]
    damage(stage, 40)
    verified(stage)
    assert shown_damage(stage) == [(10, 11), (40, 41)]


def shown_damage(stage: Stage) -> list[tuple[int, int]]:
    """Return the ranges that `topic.show` lists as damaged."""
    shown = stage.client().request("topic.show", topic="orders")
    return [(first, end) for first, end, _reason in shown["damaged"]]


def test_verification_finds_every_damaged_place(stage: Stage) -> None:
    """`topic.verify` reads every byte, and reports ranges of offsets."""
    fill_here(stage, 60)
    clean = verified(stage)
    assert clean["messages"] == 60
    assert clean["damaged"] == []
    damage(stage, 10)
    damage(stage, 40)
    assert [(one["first"], one["end"]) for one in verified(stage)["damaged"]] == [(10, 11), (40, 41)]


def verified(stage: Stage) -> dict[str, Any]:
    """Verify the topic, and return the report."""
    client = stage.client()
    for _ in range(10):
        answer = client.request("topic.verify", topic="orders")
        if answer["done"]:
            report: dict[str, Any] = answer["report"]
            return report
        stage.advance(0.1)
    raise AssertionError("it never ends")


def test_an_operator_lets_subscriptions_go_on_behind_damage(stage: Stage) -> None:
    """After the repair exactly the damaged messages are missing, and the consumer is told which."""
    fill_here(stage, 60)
    damage(stage, 10)
    consumer = stage.at_subscription("orders", "all")
    consumer.open_consumer(2, "orders", "all", bytes=1 << 26)
    consumer.deliveries(2, 10)
    consumer.ack(2, (0, 10))
    consumer.expect(Type.EVENT, handle=2, code="log-damaged")
    repaired = stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    assert repaired["skipped"] == [[10, 11]]
    assert [offset for offset, _ in consumer.deliveries(2, 49)] == list(range(11, 60))
    event = consumer.expect(Type.EVENT, handle=2, code="skipped")
    assert (event.header[Key.OFFSET], event.header[Key.COUNT]) == (10, 1)
    shown = stage.client().request("subscription.show", topic="orders", subscription="all")
    assert shown["skipped"] == 1
    assert shown["cursor"] == 11


def test_a_repair_that_a_subscription_did_not_hear_of_is_heard_of_soon(stage: Stage) -> None:
    """The mail about it was lost between their workers; the operator need not repeat the repair."""
    fill_here(stage, 60)
    damage(stage, 10)
    worker = int(stage.actor("topic", "orders").address.node.removeprefix("worker-"))
    name = name_on(stage, "orders", 1 - worker)
    consumer = stage.at_subscription("orders", name)
    consumer.open_consumer(2, "orders", name, bytes=1 << 26)
    consumer.deliveries(2, 10)
    consumer.expect(Type.EVENT, handle=2, code="log-damaged")
    lost = f"worker-{worker}", f"worker-{1 - worker}"
    stage.hold(*lost)
    stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    stage.holding[:] = [each for each in stage.holding if (each[0].node, each[1]) != lost]
    stage.let_go(*lost)
    stage.advance(AGAIN_S + 1)
    assert [offset for offset, _ in consumer.deliveries(2, 49)] == list(range(11, 60))


def test_damage_under_a_message_that_comes_back_loses_no_other(stage: Stage) -> None:
    """A message that is nacked and then damaged stops its subscription; after a repair the others arrive."""
    fill_here(stage, 60)
    consumer = stage.at_subscription("orders", "all")
    consumer.open_consumer(2, "orders", "all", messages=30, bytes=1 << 26)
    consumer.deliveries(2, 30)
    damage(stage, 10)
    consumer.nack(2, (5, 20), delay_ms=0)
    consumer.credit(2, 100, 1 << 26)
    again = [offset for offset, _ in consumer.deliveries(2, 5)]
    assert again[:5] == [5, 6, 7, 8, 9]
    assert consumer.expect(Type.EVENT, handle=2).code == "log-damaged"
    stage.client().request("topic.repair", topic="orders", skip_damaged=True)
    assert [offset for offset, _ in consumer.deliveries(2, 39)] == [*range(11, 20), *range(30, 60)]


def test_repair_says_what_it_wants_to_hear(stage: Stage) -> None:
    """Nothing is skipped by accident: the request must say so, and the topic must have a log."""
    stage.client().request("topic.create", topic="orders")
    assert stage.client().ask("topic.repair", topic="orders").code == "invalid-argument"
    stage.client().request("topic.create", topic="quick", dispatch="non-reliable")
    assert stage.client().ask("topic.verify", topic="quick").code == "invalid-argument"


def verify_until_done(stage: Stage, **first: int) -> dict[str, Any]:
    """Ask for a verification until its report is there."""
    answer = stage.client().request("topic.verify", topic="orders", **first)
    while not answer["done"]:
        stage.settle()
        more = {"verification": answer["verification"]} if "verification" in answer else {}
        answer = stage.client().request("topic.verify", topic="orders", **more)
    report: dict[str, Any] = answer["report"]
    return report


@pytest.mark.parametrize("wait_s", [0, 1])
def test_a_report_that_nobody_collected_is_not_the_next_ones(stage: Stage, wait_s: float) -> None:
    """A client gets the report of a verification that began after its request, though an earlier one lies ready."""
    fill(stage, 60)
    stage.client().request("topic.verify", topic="orders", verification=0)  # and its client is gone
    stage.advance(wait_s)
    damage(stage, 30)
    assert verify_until_done(stage, verification=0)["damaged"]


def test_a_report_that_nobody_collected_is_not_an_older_clients_for_ever(stage: Stage) -> None:
    """A client that sends no verification number gets no report that was begun for a client long gone."""
    fill(stage, 60)
    stage.client().request("topic.verify", topic="orders")
    stage.advance(60)
    damage(stage, 30)
    assert verify_until_done(stage)["damaged"]


def test_verifications_are_bounded_and_each_gets_its_own(stage: Stage) -> None:
    """A few at a time, each with a number; further ones are told to try again."""
    fill(stage, 60)
    stage.loop.holds_work = True
    numbers = [
        stage.client().request("topic.verify", topic="orders", verification=0)["verification"]
        for _ in range(4)
    ]
    assert len(set(numbers)) == 4
    assert stage.client().ask("topic.verify", topic="orders", verification=0).code == "busy"
    stage.loop.holds_work = False
    stage.settle()
    for number in numbers:
        answer = stage.client().request("topic.verify", topic="orders", verification=number)
        assert answer["report"]["damaged"] == []
    assert (
        stage.client().request("topic.verify", topic="orders", verification=0)["verification"] not in numbers
    )


@pytest.mark.parametrize("why", ["nobody-asks", "topic-deleted", "topic-failed"])
def test_a_check_that_nobody_waits_for_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """If the client is gone, or the topic is deleted, the disk is not read on, and the next one need not wait."""
    read: list[int] = []

    def check(*_: object, **__: object) -> Iterator[VerifyProgress]:
        for number in range(10):
            read.append(number)
            yield VerifyProgress(number, 10, number, 10)

    monkeypatch.setattr("ister.actors.worker.verify_aside", check)
    fill(stage, 60)
    stage.loop.holds_work = True
    stage.client().request("topic.verify", topic="orders", verification=0)
    _, work, _ = held = next(one for one in stage.loop.work if "verify" in one[1].__qualname__)
    stage.loop.work.remove(held)
    stage.loop.holds_work = False
    if why == "nobody-asks":
        stage.advance(60)
    elif why == "topic-deleted":
        stage.client().request("topic.delete", topic="orders")
    else:
        stage.actor("topic", "orders").on_failure()
    work()
    assert read == []


def test_a_check_that_somebody_waits_for_goes_on(stage: Stage) -> None:
    """However long it takes, and whichever other client has gone."""
    fill(stage, 60)
    stage.loop.holds_work = True
    number = stage.client().request("topic.verify", topic="orders", verification=0)["verification"]
    stage.client().request("topic.verify", topic="orders", verification=0)  # and its client is gone
    for _ in range(20):
        stage.advance(5)
        assert not stage.client().request("topic.verify", topic="orders", verification=number)["done"]
    stage.loop.holds_work = False
    stage.settle()
    answer = stage.client().request("topic.verify", topic="orders", verification=number)
    assert (answer["verification"], answer["done"]) == (number, True)


def test_a_verification_that_has_not_begun_says_so(stage: Stage) -> None:
    """It waits for its thread, or for the checks of other workers; its client shows that, and no progress."""
    fill(stage, 30)
    first = stage.client().request("topic.verify", topic="orders", verification=0)
    assert (first["done"], first["waiting"], "bytes_total" in first) == (False, True, False)
    assert verify_until_done(stage, verification=0)["bytes"]


# ---- how often a topic is looked after ---------------------------------------------------------------------------


def count_looks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets the time of each look at a topic."""
    looks: list[float] = []
    real = ReliableTopic._look_after

    def look(self: ReliableTopic) -> None:
        looks.append(stage.clock.monotonic())
        real(self)

    monkeypatch.setattr(ReliableTopic, "_look_after", look)
    return looks


def test_a_topic_without_anything_to_do_is_not_looked_after(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand of them would keep a worker busy; one that gets a message is looked after soon again."""
    looks = count_looks(stage, monkeypatch)
    fill(stage, 3)
    stage.advance(70)
    assert stage.actor("topic", "orders").wal.sealed(), "it is sealed at its age all the same"
    upload(stage)
    stage.advance(30)
    del looks[:]
    stage.advance(600)
    assert looks == []
    sealed = len(stage.actor("topic", "orders").wal.sealed())
    producer = stage.at_topic("orders")
    producer.open_producer(1, "orders", 8)
    publish(producer, 0, 1)
    del looks[:]
    stage.advance(61)
    assert 2 <= len(looks) <= 15
    stage.advance(2)
    assert len(stage.actor("topic", "orders").wal.sealed()) == sealed + 1


def test_new_settings_are_applied_soon_to_a_topic_at_rest(stage: Stage) -> None:
    """Retention that is set after hours without a message drops what it drops within seconds."""
    fill(stage, 100)
    stage.advance(70)
    upload(stage)
    stage.advance(3600)
    assert start_of(stage) == 0
    stage.client().request("topic.update", topic="orders", retention_bytes=2_500_000)
    stage.advance(3)
    assert start_of(stage) > 40


@pytest.mark.parametrize(
    "settings", [{"retention_ms": 3_600_000}, {"retention_bytes": 1 << 30}], ids=["by age", "by bytes"]
)
def test_retention_that_is_not_due_costs_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Age drops a segment at its time, and bytes only when another one is sealed."""
    looks = count_looks(stage, monkeypatch)
    fill(stage, 50, **settings)
    stage.advance(100)
    upload(stage)
    stage.advance(30)
    del looks[:]
    stage.advance(600)
    assert looks == []
    assert start_of(stage) == 0
    stage.advance(3000)
    assert (start_of(stage) > 0) == ("retention_ms" in settings)


def test_the_last_segment_is_not_looked_at_again_and_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays beyond its age, because the log continues after it; what follows lets it go."""
    looks = count_looks(stage, monkeypatch)
    fill(stage, 50, retention_ms=60_000)
    stage.advance(100)
    upload(stage)
    stage.advance(300)
    (last,) = stage.actor("topic", "orders").wal.sealed()
    del looks[:]
    stage.advance(600)
    assert looks == []
    producer = stage.at_topic("orders")
    producer.open_producer(1, "orders", 8)
    publish(producer, 0, 1)
    stage.advance(10)
    assert last not in stage.actor("topic", "orders").wal.sealed()


def test_a_clock_that_was_set_makes_due_what_is_old_then(stage: Stage) -> None:
    """A topic that waits for a time of day looks at it again within seconds."""
    fill(stage, 50, retention_ms=7 * 86_400_000)
    stage.advance(100)
    upload(stage)
    stage.advance(600)
    assert start_of(stage) == 0
    stage.clock.stepped_ms += 8 * 86_400_000
    stage.advance(20)
    assert start_of(stage) > 0


def test_a_topic_kept_until_it_is_acknowledged_asks_seldom_while_nothing_changes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks which subscriptions there are soon after one of them moved or went, and else every half minute."""
    looks = count_looks(stage, monkeypatch)
    fill(stage, 50, retention_acknowledged=True)
    stage.client().request("subscription.create", topic="orders", subscription="slow", start="earliest")
    stage.advance(100)
    upload(stage)
    stage.advance(120)
    del looks[:]
    stage.advance(600)
    assert 1 <= len(looks) <= 600 / 25
    assert start_of(stage) == 0
    del looks[:]
    stage.client().request("subscription.seek", topic="orders", subscription="slow", to="latest")
    stage.advance(5)
    assert start_of(stage) > 0
