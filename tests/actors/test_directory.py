"""Tests of the Directory: its answers to clients' requests, and that no request ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ister.actors.directory import ANSWER_WITHIN_S, Directory
from ister.actors.patience import WAIT_S
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.wire import Key, Type
from tests.stage import Stage


def test_a_topic_is_created_shown_listed_and_deleted(stage: Stage) -> None:
    """A created topic is visible to everybody, a deleted one to nobody."""
    client = stage.client()
    created = client.request("topic.create", topic="orders/eu", dispatch="non-reliable")
    assert (created["topic"], created["strategy"]) == ("orders/eu", "non-reliable")
    assert stage.client(1).request("topic.show", topic="orders/eu")["incarnation"] == created["incarnation"]
    assert [each["topic"] for each in client.request("topic.list")["topics"]] == ["orders/eu"]
    assert client.request("topic.delete", topic="orders/eu") == {"deleted": "orders/eu", "subscriptions": 0}
    assert client.ask("topic.show", topic="orders/eu").code == "unknown-topic"
    assert client.request("topic.list") == {"topics": [], "more": False}


@pytest.mark.requirement("10.2-1")
@pytest.mark.parametrize(
    ("operation", "arguments", "code"),
    [
        ("topic.create", {}, "invalid-argument"),
        ("topic.create", {"topic": 5}, "invalid-argument"),
        ("topic.create", {"topic": "a b"}, "invalid-name"),
        ("topic.create", {"topic": "../etc"}, "invalid-name"),
        ("topic.create", {"topic": "a//b"}, "invalid-name"),
        ("topic.create", {"topic": "a\n"}, "invalid-name"),
        ("topic.create", {"topic": "x" * 300}, "invalid-name"),
        ("topic.create", {"topic": ""}, "invalid-name"),
        ("topic.create", {"topic": "there"}, "topic-exists"),
        ("topic.create", {"topic": "new", "dispatch": "perhaps"}, "invalid-argument"),
        ("topic.create", {"topic": "new", "durability": "stone"}, "invalid-argument"),
        ("topic.create", {"topic": "new", "colour": "red"}, "invalid-argument"),
        ("topic.show", {"topic": "gone"}, "unknown-topic"),
        ("topic.delete", {"topic": "gone"}, "unknown-topic"),
        ("topic.list", {"limit": 0}, "invalid-argument"),
        ("topic.list", {"limit": 501}, "invalid-argument"),
        ("topic.list", {"limit": True}, "invalid-argument"),
        ("topic.list", {"after": 5}, "invalid-argument"),
        ("subscription.create", {"topic": "there"}, "invalid-argument"),
        ("subscription.create", {"topic": "there", "subscription": "a/b"}, "invalid-name"),
        ("subscription.create", {"topic": "gone", "subscription": "s"}, "unknown-topic"),
        ("subscription.create", {"topic": "there", "subscription": "s", "type": "odd"}, "invalid-argument"),
        ("subscription.create", {"topic": "there", "subscription": "s", "start": "noon"}, "invalid-argument"),
        ("subscription.create", {"topic": "there", "subscription": "s", "start": -1}, "invalid-argument"),
        ("subscription.create", {"topic": "there", "subscription": "s", "start": [1]}, "invalid-argument"),
        (
            "subscription.create",
            {"topic": "there", "subscription": "s", "start": 1 << 63},
            "offset-out-of-range",
        ),
        ("subscription.create", {"topic": "there", "subscription": "s", "drop": "all"}, "invalid-argument"),
        (
            "subscription.create",
            {"topic": "there", "subscription": "s", "ack_timeout_ms": 1},
            "invalid-argument",
        ),
        ("subscription.create", {"topic": "there", "subscription": "s", "speed": 1}, "invalid-argument"),
        ("subscription.show", {"topic": "there", "subscription": "gone"}, "unknown-subscription"),
        ("subscription.delete", {"topic": "there", "subscription": "gone"}, "unknown-subscription"),
        ("subscription.list", {"topic": "gone"}, "unknown-topic"),
        ("make.tea", {}, "unknown-operation"),
        ("", {}, "unknown-operation"),
    ],
)
def test_a_bad_request_gets_its_code(
    stage: Stage, operation: str, arguments: dict[str, Any], code: str
) -> None:
    """Whatever is wrong with a request, its answer is one coded error, at once."""
    client = stage.client()
    client.request("topic.create", topic="there")
    began = stage.clock.now_s
    answer = client.ask(operation, **arguments)
    assert (answer.kind, answer.code) == (Type.ERROR, code), answer.header
    assert stage.clock.now_s == began


def test_a_start_of_thousands_of_digits_ends_nothing(stage: Stage) -> None:
    """Python refuses to convert so long a number: the client gets an error, and the broker goes on."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    answer = client.ask("subscription.create", topic="orders", subscription="s", start="9" * 5000)
    assert answer.code == "invalid-argument"
    assert client.request("subscription.list", topic="orders")["subscriptions"] == []


def test_a_request_that_fails_inside_ends_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the Directory fails the request that met it, not the broker."""
    client = stage.client()
    directory = stage.actor("directory")
    assert isinstance(directory, Directory)
    monkeypatch.setitem(directory._operations, "status", lambda *_: 1 / 0)
    answer = client.ask("status")
    assert (answer.code, answer.header[Key.ACTION]) == ("internal", "retry")
    assert client.request("topic.list") == {"topics": [], "more": False}


@pytest.mark.parametrize("value", [[1], None, 1.5, {"a": 1}, b"oldest", True, "none"])
def test_a_consumers_options_of_any_kind_are_answered(stage: Stage, value: object) -> None:
    """The Directory checks the values of options, so options of any type must reach it."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    began = stage.clock.now_s
    answer = client.open_consumer(1, "orders", "s", drop=value)
    assert (answer.kind, answer.code) == (Type.ERROR, "invalid-argument")
    assert stage.clock.now_s == began
    assert client.open_consumer(1, "orders", "s").kind in (Type.OPENED, Type.MOVED)


@pytest.mark.requirement("10.2-4")
def test_listings_come_in_pages(stage: Stage) -> None:
    """Each page says whether more follows, and the next begins after its last name."""
    client = stage.client()
    names = [f"topic-{number:02d}" for number in range(7)]
    for name in reversed(names):
        client.request("topic.create", topic=name)
    seen: list[str] = []
    more = True
    while more:
        page = client.request("topic.list", limit=3, after=seen[-1] if seen else "")
        seen += [each["topic"] for each in page["topics"]]
        more = page["more"]
    assert seen == names


def test_a_subscription_is_created_once(stage: Stage) -> None:
    """A second creation is refused; opening an existing one must name its type, and keeps its start."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    made = client.request(
        "subscription.create", topic="orders", subscription="s", type="failover", start="earliest"
    )
    assert (made["type"], made["start"]) == ("failover", "earliest")
    again = client.ask("subscription.create", topic="orders", subscription="s", type="failover")
    assert again.code == "subscription-exists"
    assert client.open_consumer(1, "orders", "s", "shared").code == "subscription-type"
    shown = client.request("subscription.show", topic="orders", subscription="s")
    assert (shown["start"], shown["consumers"], shown["strategy"]) == ("earliest", 0, "reliable")


def test_nothing_is_created_while_its_worker_is_away(stage: Stage) -> None:
    """A request answered "try again" must leave nothing behind that makes the next try fail."""
    client = stage.client(0)
    client.request("topic.create", topic="orders")
    name = next(f"s{n}" for n in range(99) if worker_of(subscription_key("orders", f"s{n}"), 2) == 1)
    stage.kill(1)
    refused = client.ask("subscription.create", topic="orders", subscription=name)
    assert (refused.code, refused.header[Key.ACTION]) == ("unavailable", "retry")
    stage.start(1)
    assert client.request("subscription.create", topic="orders", subscription=name)["subscription"] == name


@pytest.mark.requirement("10.2-5")
@pytest.mark.parametrize("operation", ["topic.show", "topic.delete"])
def test_a_topic_whose_worker_is_away_is_unavailable(stage: Stage, operation: str) -> None:
    """The request waits for the worker for a while, is answered once, and changes nothing."""
    name = next(f"t{n}" for n in range(99) if worker_of(topic_key(f"t{n}"), 2) == 1)
    client = stage.client(0)
    client.request("topic.create", topic=name)
    stage.kill(1)
    assert client.ask(operation, topic=name).code == "unavailable"
    stage.advance(2 * ANSWER_WITHIN_S)
    client.say({Key.TYPE: Type.PING})
    assert client.expect(Type.PONG)
    assert not [frame for frame in client.unread if frame.kind in (Type.ERROR, Type.RESULT)]
    stage.start(1)
    assert client.request("topic.show", topic=name)["topic"] == name


def test_a_worker_that_does_not_answer_is_given_up(make_stage: Callable[..., Stage]) -> None:
    """If the worker hangs, the client is told so after some seconds."""
    stage = make_stage(2, protocol__session_timeout_ms=60_000)
    name = next(f"t{n}" for n in range(99) if worker_of(topic_key(f"t{n}"), 2) == 1)
    client = stage.client(0)
    client.patience_s = 10
    client.request("topic.create", topic=name)
    stage.hold("worker-1", "broker")
    assert client.ask("topic.show", topic=name).code == "unavailable"
    status = client.request("status")
    assert [each["node"] for each in status["processes"]] == ["broker", "worker-0"]
    stage.let_go("worker-1", "broker")
    status = client.request("status")
    assert [each["node"] for each in status["processes"]] == ["broker", "worker-0", "worker-1"]


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_a_deletion_that_a_worker_never_heard_of_is_told_again(
    make_stage: Callable[..., Stage], dispatch: str
) -> None:
    """Producers and consumers are told within seconds that the topic is gone, and nothing of it is left."""
    stage = make_stage(2, protocol__session_timeout_ms=60_000)
    name = next(f"t{n}" for n in range(99) if worker_of(topic_key(f"t{n}"), 2) == 1)
    client = stage.client(0)
    client.patience_s = 10
    client.request("topic.create", topic=name, dispatch=dispatch)
    producer = stage.at_topic(name)
    assert producer.open_producer(1, name, 7).kind == Type.OPENED
    consumer = stage.at_subscription(name, "s")
    assert consumer.open_consumer(1, name, "s", "shared").kind == Type.OPENED
    stage.hold("broker", "worker-1")
    stage.hold("broker", "worker-0")
    client.say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: 99,
            Key.OPERATION: "topic.delete",
            Key.ARGUMENTS: {"topic": name},
        }
    )
    stage.settle()
    stage.holding.clear()
    stage.let_go("broker", "worker-1")
    stage.let_go("broker", "worker-0")
    assert client.expect(Type.RESULT, ref=99, timeout_s=6).result["deleted"] == name
    assert producer.expect(Type.ERROR, handle=1, timeout_s=3).code == "topic-deleted"
    assert consumer.expect(Type.ERROR, handle=1, timeout_s=3).code == "topic-deleted"
    stage.advance(7)
    assert stage.actors("topic") == []
    assert stage.actors("subscription") == []


def test_who_dies_is_not_waited_for(make_stage: Callable[..., Stage]) -> None:
    """The request is answered as soon as the process is known to be gone, with the answers there are."""
    stage = make_stage(2)
    name = next(f"t{n}" for n in range(99) if worker_of(topic_key(f"t{n}"), 2) == 1)
    client = stage.client(0)
    client.request("topic.create", topic=name)
    client.request("subscription.create", topic=name, subscription="s")
    began = stage.clock.now_s
    for operation, arguments, answer in (
        ("status", {}, Type.RESULT),
        ("topic.show", {"topic": name}, Type.ERROR),
        ("topic.delete", {"topic": name}, Type.RESULT),
    ):
        stage.hold("broker", "worker-1")
        ref = 10**6 + len(operation)
        client.say({Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: operation, Key.ARGUMENTS: arguments})
        stage.settle()
        stage.kill(1)
        stage.let_go("broker", "worker-1")
        assert client.expect(Type.RESULT, Type.ERROR, ref=ref).kind == answer
        stage.start(1)
        stage.settle()
    assert stage.clock.now_s == began
    assert client.ask("topic.show", topic=name).code == "unknown-topic"


def test_status_describes_every_process(stage: Stage) -> None:
    """Each process reports its name and its counters."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    stage.at_topic("orders").open_producer(1, "orders", 7)
    workers = client.request("status")["processes"][1:]
    assert sum(each["actors"].get("topic", 0) for each in workers) == 1
    assert all(each["role"] == "worker" and each["frames_in"] >= 0 for each in workers)


def test_opens_are_sent_to_where_things_live(stage: Stage) -> None:
    """A producer belongs on its topic's worker, a consumer on its subscription's: on others the answer is MOVED."""
    stage.client().request("topic.create", topic="orders")
    home = worker_of(topic_key("orders"), 2)
    for worker in range(2):
        answer = stage.client(worker).open_producer(1, "orders", 7)
        assert answer.kind == (Type.OPENED if worker == home else Type.MOVED)
        if worker != home:
            assert answer.header[Key.ENDPOINT] == stage.endpoints[home]
    for number in range(6):
        home = worker_of(subscription_key("orders", f"s{number}"), 2)
        answer = stage.client(1 - home).open_consumer(1, "orders", f"s{number}")
        assert (answer.kind, answer.header[Key.ENDPOINT]) == (Type.MOVED, stage.endpoints[home])
        assert stage.client(home).open_consumer(1, "orders", f"s{number}").kind == Type.OPENED


def test_a_moved_handle_is_free_again(stage: Stage) -> None:
    """After MOVED the handle's number may be used for another open."""
    client = stage.client(0)
    client.request("topic.create", topic="orders")
    away = next(f"s{n}" for n in range(99) if worker_of(subscription_key("orders", f"s{n}"), 2) == 1)
    here = next(f"s{n}" for n in range(99) if worker_of(subscription_key("orders", f"s{n}"), 2) == 0)
    assert client.open_consumer(1, "orders", away).kind == Type.MOVED
    assert client.open_consumer(1, "orders", here).kind == Type.OPENED


def test_an_open_the_directory_does_not_answer_is_given_up(make_stage: Callable[..., Stage]) -> None:
    """Without the Directory an open is refused after some seconds, with a code that says to try again."""
    stage = make_stage(1, protocol__session_timeout_ms=60_000)
    client = stage.client()
    client.patience_s = 15
    client.request("topic.create", topic="orders")
    stage.hold("worker-0", "broker")
    refused = client.open_producer(1, "orders", 7)
    assert (refused.code, refused.header[Key.ACTION], refused.header[Key.CLOSED]) == (
        "unavailable",
        "retry",
        True,
    )
    assert client.ask("topic.list").code == "unavailable"
    stage.let_go("worker-0", "broker")
    assert client.open_producer(1, "orders", 7).kind == Type.OPENED


def test_a_subscription_is_updated(stage: Stage) -> None:
    """Given settings replace the old ones, the others stay; a refused update changes nothing."""
    client = stage.client()
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    client.request(
        "subscription.create", topic="quotes", subscription="s", drop="newest", buffer_messages_max=7
    )
    changed = client.request("subscription.update", topic="quotes", subscription="s", buffer_messages_max=9)
    assert changed["settings"] == {"drop": "newest", "buffer_messages_max": 9}
    refused = client.ask("subscription.update", topic="quotes", subscription="s", drop="all")
    assert refused.code == "invalid-argument"
    shown = client.request("subscription.show", topic="quotes", subscription="s")
    assert (shown["buffer_messages_max"], shown["drop"]) == (9, "newest")
    assert shown["settings"] == {"drop": "newest", "buffer_messages_max": 9}


def test_settings_that_do_not_fit_together_are_refused(stage: Stage) -> None:
    """Each setting may be valid by itself, but not both together."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    client.request("subscription.create", topic="orders", subscription="s", backoff_ms_min=5_000)
    for given in (
        {"backoff_ms_max": 4_999},
        {"dead_letter_topic": "orders"},
        {"dead_letter_topic": "a b"},
        {},
    ):
        refused = client.ask("subscription.update", topic="orders", subscription="s", **given)
        assert refused.code == "invalid-argument", given
    refused = client.ask("subscription.create", topic="orders", subscription="n" * 190, max_deliveries=3)
    assert refused.code == "invalid-argument"
    client.request(
        "subscription.create",
        topic="orders",
        subscription="n" * 190,
        max_deliveries=3,
        dead_letter_topic="orders/bad",
    )


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("subscription.seek", {"to": "earliest"}),
        ("subscription.unblock", {"action": "retry"}),
        ("subscription.update", {"max_deliveries": 3}),
    ],
)
def test_what_keeps_nothing_cannot_go_back(stage: Stage, operation: str, arguments: dict[str, Any]) -> None:
    """A subscription of a non-reliable topic refuses what needs stored messages."""
    client = stage.client()
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    client.request("subscription.create", topic="quotes", subscription="s")
    began = stage.clock.now_s
    refused = client.ask(operation, topic="quotes", subscription="s", **arguments)
    assert refused.code == "invalid-argument"
    assert stage.clock.now_s == began


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("subscription.seek", {}),
        ("subscription.seek", {"to": "noon"}),
        ("subscription.seek", {"to": -1}),
        ("subscription.seek", {"to": True}),
        ("subscription.seek", {"to": "time:"}),
        ("subscription.seek", {"to": "time:-5"}),
        ("subscription.seek", {"to": "time:" + "9" * 5000}),
        ("subscription.seek", {"to": 5, "speed": 1}),
        ("subscription.unblock", {}),
        ("subscription.unblock", {"action": "pray"}),
        ("subscription.unblock", {"action": "retry", "to": 1}),
    ],
)
def test_a_bad_task_for_a_subscription_is_refused_at_once(
    stage: Stage, operation: str, arguments: dict[str, Any]
) -> None:
    """The request is checked before it is sent to the subscription."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    client.request("subscription.create", topic="orders", subscription="s")
    assert client.ask(operation, topic="orders", subscription="s", **arguments).code == "invalid-argument"
    assert client.ask(operation, topic="orders", subscription="t", **arguments).code == "unknown-subscription"


def test_a_reader_is_in_no_catalogue(stage: Stage) -> None:
    """It exists as long as its consumer, receives what is published meanwhile, and leaves nothing behind."""
    client = stage.client()
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    reader = stage.at_subscription("quotes", "r-1")
    assert reader.open_consumer(1, "quotes", "r-1", "reader").kind == Type.OPENED
    producer = stage.at_topic("quotes")
    producer.open_producer(1, "quotes", 7)
    producer.publish(1, 0, b"a", b"b")
    assert reader.deliveries(1, 2) == [(0, b"a"), (1, b"b")]
    assert client.request("subscription.list", topic="quotes")["subscriptions"] == []
    assert client.ask("subscription.show", topic="quotes", subscription="r-1").code == "unknown-subscription"
    assert len(stage.actors("subscription", "quotes")) == 1
    assert reader.close_handle(1).kind == Type.DONE
    stage.settle()
    assert stage.actors("subscription", "quotes") == []
    assert stage.actors("relay", "quotes") == []


def test_a_reader_cannot_be_created(stage: Stage) -> None:
    """A reader is only opened: creating one would leave something that nobody ends."""
    client = stage.client()
    client.request("topic.create", topic="quotes", dispatch="non-reliable")
    refused = client.ask("subscription.create", topic="quotes", subscription="s", type="reader")
    assert refused.code == "invalid-argument"
    here = stage.at_subscription("quotes", "s")
    assert here.open_consumer(1, "quotes", "s", "reader", drop="newest").kind == Type.OPENED
    assert here.open_consumer(2, "quotes", "s", "reader", ack_timeout_ms=500).code == "invalid-argument"


# ---- just after a start ----------------------------------------------------------------------------------------


@pytest.mark.requirement("10.2-5")
def test_what_is_asked_while_a_worker_starts_is_answered_once_it_is_up(stage: Stage) -> None:
    """A request that came too early is not answered "try again"."""
    client = stage.client(0)
    name = next(f"t{n}" for n in range(99) if worker_of(topic_key(f"t{n}"), 2) == 1)
    client.request("topic.create", topic=name)
    stage.kill(1)
    ref = next(client._refs)
    client.say(
        {Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: "topic.show", Key.ARGUMENTS: {"topic": name}}
    )
    stage.advance(2.0)
    assert client.silent(0)
    stage.start(1)
    assert client.expect(Type.RESULT, Type.ERROR, ref=ref).kind == Type.RESULT


def test_what_is_asked_before_the_store_was_read_waits_for_that(make_stage: Callable[..., Stage]) -> None:
    """`topic.create` and opens straight after a start are carried out once the store's topics are known."""
    stage = make_stage(2, waits_for_store=True)
    client = stage.at_subscription("orders", "s")
    refs = [next(client._refs) for _ in range(2)]
    for ref, topic in zip(refs, ("orders", "more"), strict=True):
        client.say(
            {
                Key.TYPE: Type.REQUEST,
                Key.REF: ref,
                Key.OPERATION: "topic.create",
                Key.ARGUMENTS: {"topic": topic},
            }
        )
    opened = client.say_open_consumer(1, "orders", "s", "shared")
    stage.advance(2.0)
    assert client.silent(0)
    stage.start_tier()
    assert client.expect(Type.RESULT, Type.ERROR, ref=refs[0]).kind == Type.RESULT
    assert client.expect(Type.RESULT, Type.ERROR, ref=refs[1]).kind == Type.RESULT
    assert client.expect(Type.OPENED, Type.ERROR, ref=opened).kind == Type.OPENED


def test_what_waits_for_a_store_that_never_answers_is_refused_in_the_end(
    make_stage: Callable[..., Stage],
) -> None:
    """The error says what it waited for, for how long, and to try again."""
    stage = make_stage(1, waits_for_store=True)
    client = stage.client()
    ref = client.say_open_producer(1, "orders", 7)
    refused = client.expect(Type.ERROR, ref=ref)
    assert (refused.code, refused.header[Key.ACTION]) == ("unavailable", "retry")
    assert "in the store" in refused.header[Key.TEXT]
    assert f"{WAIT_S:g} s" in refused.header[Key.TEXT]


@pytest.mark.requirement("2.3-1")
def test_an_answer_that_is_too_large_is_refused_and_ends_nothing(stage: Stage) -> None:
    """A request whose answer would be too large is refused, and the Directory goes on."""
    client = stage.client()
    client.request("topic.create", topic="orders")
    topic = stage.actor("topic", "orders") if stage.actors("topic", "orders") else None
    if topic is None:
        client.request("topic.show", topic="orders")
        topic = stage.actor("topic", "orders")
    topic.description = lambda: {"much": "x" * (2 << 20)}
    assert client.ask("topic.show", topic="orders").code == "limit-exceeded"
    del topic.description
    assert client.request("topic.show", topic="orders")["topic"] == "orders"


@pytest.mark.requirement("7.6-4")
def test_any_worker_answers_a_request_about_what_lives_elsewhere(stage: Stage) -> None:
    """A REQUEST never gets MOVED, whatever it is about."""
    for number in range(4):
        stage.client(number % 2).request("topic.create", topic=f"t-{number}", dispatch="reliable")
    for worker in range(2):
        client = stage.client(worker)
        for number in range(4):
            assert client.ask("topic.show", topic=f"t-{number}").kind == Type.RESULT
            answer = client.ask(
                "subscription.create", topic=f"t-{number}", subscription=f"s-{worker}", type="shared"
            )
            assert answer.kind == Type.RESULT


@pytest.mark.requirement("8.1-1")
def test_zero_is_no_producer_id(stage: Stage) -> None:
    """Zero is refused; the largest number is accepted."""
    stage.client().request("topic.create", topic="orders", dispatch="reliable")
    client = stage.at_topic("orders")
    assert client.open_producer(1, "orders", 0).code == "invalid-argument"
    assert client.open_producer(1, "orders", (1 << 64) - 1).kind == Type.OPENED
