"""Tests of the Frontend: every open and every request is answered once, whatever happens to the actors behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ister.actors.messages import Evicted, OpenProducer
from ister.actors.open_questions import PENDING_MAX, REQUESTS_MAX
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.wire import Key, Type
from tests.stage import Stage, StagedClient, held_up, inbox_holds


def opened_topic(stage: Stage, topic: str = "orders", **settings: str) -> StagedClient:
    """Create a topic, and return a client that has it open for publishing as handle 1."""
    stage.client().request("topic.create", topic=topic, **settings)
    producer = stage.at_topic(topic)
    assert producer.open_producer(1, topic, 7).kind == Type.OPENED
    return producer


# ---- opens whose actor goes away -------------------------------------------------------------------------------


def test_an_open_in_the_inbox_of_a_topic_that_fails_is_refused(stage: Stage) -> None:
    """A producer that opens while its topic fails is told to try again."""
    stage.expects_failures = True
    producer = opened_topic(stage)
    topic = stage.actor("topic", "orders")
    with held_up(topic):
        ref = producer.say_open_producer(2, "orders", 8)
        stage.settle()
        assert inbox_holds(topic, OpenProducer)
        topic.fail(RuntimeError("a mistake"))
    refused = producer.expect(Type.ERROR, Type.OPENED, ref=ref)
    assert (refused.code, refused.header[Key.CLOSED], refused.header[Key.HANDLE]) == ("unavailable", True, 2)
    assert producer.open_producer(2, "orders", 8).kind == Type.OPENED


def test_batches_in_the_inbox_of_a_topic_that_fails_are_refused_once(stage: Stage) -> None:
    """The publishers are told that the handle is closed, and can open it again."""
    stage.expects_failures = True
    producer = opened_topic(stage)
    for number in range(3):
        producer.publish(1, number, b"lost")
    stage.loop.sockets()
    stage.actor("topic", "orders").fail(RuntimeError("a mistake"))
    refused = producer.expect(Type.ERROR, handle=1)
    assert (refused.code, refused.header[Key.CLOSED]) == ("unavailable", True)
    assert producer.silent(0)
    assert producer.open_producer(1, "orders", 7).header[Key.SEQUENCE] == 0
    producer.publish(1, 0, b"kept")
    assert producer.receipt(1) == [(0, 0)]


def test_a_consumer_that_opens_while_its_subscription_fails_is_refused(stage: Stage) -> None:
    """Its open is refused when the subscription's actor ends, and it may open again."""
    stage.expects_failures = True
    opened_topic(stage)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s", "shared")
    subscription = stage.actor("subscription", "orders", "s")
    ref = consumer.say_open_consumer(2, "orders", "s", "shared")
    stage.loop.turns_until(
        lambda: len(stage.actors("consumer")) == 2 or consumer.router.out[consumer.routing]
    )
    if not consumer.router.out[consumer.routing]:
        subscription.fail(RuntimeError("a mistake"))
        assert consumer.expect(Type.ERROR, ref=ref).code in ("unavailable", "internal")
    else:  # its open was granted before: then its handle is closed
        subscription.fail(RuntimeError("a mistake"))
        assert consumer.expect(Type.OPENED, ref=ref)
        assert consumer.expect(Type.ERROR, handle=2).header[Key.CLOSED]
    assert consumer.open_consumer(2, "orders", "s", "shared").kind == Type.OPENED
    assert len(stage.actors("consumer")) == 1


def test_a_consumer_that_comes_back_as_its_actor_ends_gets_another(stage: Stage) -> None:
    """An open that arrives after its consumer was evicted is a new open, and is answered."""
    producer = opened_topic(stage)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    actor = stage.actor("consumer", "1")
    producer.publish(1, 0, b"x")
    stage.settle()
    actor.inbox.tell(Evicted("log-damaged", "the log is damaged"))
    ref = consumer.say_open_consumer(1, "orders", "s")
    stage.loop.sockets()
    assert consumer.expect(Type.OPENED, ref=ref)
    assert consumer.deliveries(1, 1) == [(0, b"x")]


def test_a_close_behind_an_eviction_is_answered(stage: Stage) -> None:
    """A client that closes a handle gets DONE, also if the broker has just closed it itself."""
    opened_topic(stage)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    stage.actor("consumer", "1").inbox.tell(Evicted("internal", "a mistake"))
    consumer.say({Key.TYPE: Type.CLOSE, Key.REF: 99, Key.HANDLE: 1})
    stage.loop.sockets()
    assert consumer.expect(Type.DONE, ref=99)


def test_a_close_in_the_inbox_of_a_topic_that_fails_is_answered(stage: Stage) -> None:
    """As for consumers."""
    stage.expects_failures = True
    producer = opened_topic(stage)
    producer.say({Key.TYPE: Type.CLOSE, Key.REF: 99, Key.HANDLE: 1})
    stage.loop.sockets()
    stage.actor("topic", "orders").fail(RuntimeError("a mistake"))
    assert producer.expect(Type.DONE, ref=99)


# ---- generations -----------------------------------------------------------------------------------------------


def test_a_late_close_does_not_close_what_was_opened_again(stage: Stage) -> None:
    """CLOSE waits for its receipts; a client that reconnects and opens again must keep the new handle."""
    producer = opened_topic(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"x")
    producer.say({Key.TYPE: Type.CLOSE, Key.REF: 50, Key.HANDLE: 1})
    stage.settle()
    producer.reconnect()
    ref = producer.say_open_producer(1, "orders", 7, 0)
    stage.loop.sockets()
    stage.loop.do_work()  # the commit ends: the close is due, while the Directory is being asked
    stage.loop.holds_work = False
    assert producer.expect(Type.OPENED, ref=ref).header[Key.SEQUENCE] == 1
    producer.publish(1, 0, b"x")
    producer.publish(1, 1, b"y")
    assert producer.receipts(1, 2) == {0: 0, 1: 1}


def test_the_last_of_several_opens_counts(stage: Stage) -> None:
    """Opens that overtake each other leave one open handle, which is answered for the last."""
    opened_topic(stage)
    producer = stage.at_topic("orders")
    refs = [producer.say_open_producer(1, "orders", 70 + number, number) for number in range(3)]
    opened = producer.expect(Type.OPENED, ref=refs[-1])
    assert opened.header[Key.SEQUENCE] == 2
    producer.publish(1, 2, b"x")
    assert producer.receipt(1) == [(2, 0)]
    assert stage.actor("topic", "orders").publishers.handles.keys() == {7, 72}


def test_a_session_that_ends_while_it_opens_leaves_nothing(stage: Stage) -> None:
    """A client that sends BYE before its opens are answered leaves neither a producer nor a consumer behind."""
    opened_topic(stage)
    home = worker_of(topic_key("orders"), 2)
    name = next(f"s{n}" for n in range(99) if worker_of(subscription_key("orders", f"s{n}"), 2) == home)
    for turns in range(12):  # say BYE at every stage of the opening
        client = stage.client(home)
        client.say_open_producer(1, "orders", 7)
        client.say_open_consumer(2, "orders", name)
        for _ in range(turns):
            stage.loop.once()
        client.say({Key.TYPE: Type.BYE})
        stage.settle()
        assert stage.actors("consumer") == []
        topic = stage.actor("topic", "orders")
        assert all(
            handle.session.handles.get(handle.number) is handle
            for handle in topic.publishers.handles.values()
        )
        last = stage.client(home)
        assert last.open_consumer(1, "orders", name).kind == Type.OPENED
        last.close_handle(1)


def test_an_open_that_reaches_the_topic_after_its_session_ended_is_void(stage: Stage) -> None:
    """It fences no producer with the same id, and leaves no handle."""
    producer = opened_topic(stage)
    topic = stage.actor("topic", "orders")
    late = stage.at_topic("orders")
    with held_up(topic):
        late.say_open_producer(1, "orders", 7)
        stage.settle()
        late.say({Key.TYPE: Type.BYE})
        stage.settle()
        assert inbox_holds(topic, OpenProducer)
    producer.publish(1, 0, b"x")
    assert producer.receipt(1) == [(0, 0)]
    assert list(topic.publishers.handles) == [7]


def test_a_session_that_falls_silent_while_it_opens_leaves_nothing(make_stage: Callable[..., Stage]) -> None:
    """If the session ends while the topic's worker is down, an Exclusive subscription becomes free."""
    stage = make_stage(2, protocol__session_timeout_ms=300, protocol__heartbeat_ms=100)
    away = next(f"t{n}" for n in range(99) if worker_of(topic_key(f"t{n}"), 2) == 1)
    name = next(f"s{n}" for n in range(99) if worker_of(subscription_key(away, f"s{n}"), 2) == 0)
    stage.client(0).request("topic.create", topic=away)
    stage.kill(1)
    lost = stage.client(0)
    lost.say_open_consumer(1, away, name)
    lost.silent(2)
    stage.start(1)
    client = stage.client(0)
    assert client.open_consumer(1, away, name).kind == Type.OPENED
    assert len(stage.actors("consumer")) == 1


# ---- names that are used again ---------------------------------------------------------------------------------


def test_a_deleted_topic_is_not_brought_back_by_who_still_asks_for_it(stage: Stage) -> None:
    """A subscription that attaches after the deletion must not start the topic again.

    The topic would serve its old incarnation to clients that create the name again, and at its next start the broker
    would delete their acknowledged messages as belonging to no topic.
    """
    client = stage.client()
    client.request("topic.create", topic="orders")
    home = worker_of(topic_key("orders"), 2)
    away = next(f"s{n}" for n in range(99) if worker_of(subscription_key("orders", f"s{n}"), 2) != home)
    client.request("subscription.create", topic="orders", subscription=away, type="exclusive")
    stage.restart(2)
    client = stage.client()
    nodes = (f"worker-{1 - home}", f"worker-{home}")
    stage.hold(*nodes)  # the deletion starts the subscription, whose message to the topic is slow
    client.request("topic.delete", topic="orders")
    stage.let_go(*nodes)
    stage.settle()
    assert stage.actors("topic", "orders") == []
    client.request("topic.create", topic="orders")
    producer = stage.client(home)
    producer.open_producer(1, "orders", 7)
    producer.publish(1, 0, b"new")
    assert producer.receipt(1) == [(0, 0)]
    stage.restart(2)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    assert consumer.deliveries(1, 1) == [(0, b"new")]


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_a_topic_created_again_starts_empty_and_works(stage: Stage, dispatch: str) -> None:
    """Nothing of a deleted topic reaches its successor, and its consumers are told that it is gone."""
    consumers: list[StagedClient] = []
    for life in range(3):
        stage.client().request("topic.create", topic="orders", dispatch=dispatch)
        producer = stage.at_topic("orders")
        assert producer.open_producer(1, "orders", 7).header[Key.SEQUENCE] == 0
        consumer = stage.at_subscription("orders", "s")
        assert consumer.open_consumer(1, "orders", "s").kind == Type.OPENED
        producer.publish(1, 0, b"life %d" % life)
        assert producer.receipt(1) == [(0, 0)]
        assert consumer.deliveries(1, 1) == [(0, b"life %d" % life)]
        consumers.append(consumer)
        stage.client().request("topic.delete", topic="orders")
        for each, code in ((producer, "topic-deleted"), (consumer, "topic-deleted")):
            gone = each.expect(Type.ERROR, handle=1)
            assert (gone.code, gone.header[Key.ACTION], gone.header[Key.CLOSED]) == (code, "stop", True)
        producer.publish(1, 1, b"too late")
        assert producer.expect(Type.ERROR, handle=1).code == "unknown-handle"
        assert producer.open_producer(1, "orders", 7).code == "unknown-topic"
        assert stage.actors("topic") == stage.actors("subscription") == stage.actors("consumer") == []


def test_a_topic_may_be_created_again_while_its_last_commit_still_runs(stage: Stage) -> None:
    """The old log is deleted when its sync ends; the new topic does not wait for that."""
    producer = opened_topic(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"old")
    stage.settle()
    client = stage.client()
    client.request("topic.delete", topic="orders")
    client.request("topic.create", topic="orders")
    assert producer.open_producer(2, "orders", 8).kind == Type.OPENED
    producer.publish(2, 0, b"new")
    stage.settle()
    stage.loop.holds_work = False
    assert producer.receipt(2) == [(0, 0)]
    assert len({name.rsplit("/", 1)[0] for name in stage.disk._names if "/topics/" in name}) == 1


def test_a_subscription_created_again_starts_anew(stage: Stage) -> None:
    """Its cursor is another file, and the consumers of the deleted one were closed."""
    producer = opened_topic(stage)
    producer.publish(1, 0, b"a", b"b")
    producer.receipt(1)
    for _ in range(3):
        consumer = stage.at_subscription("orders", "s")
        assert consumer.open_consumer(1, "orders", "s").kind == Type.OPENED
        assert consumer.deliveries(1, 2) == [(0, b"a"), (1, b"b")]
        consumer.ack(1, (0, 2))
        stage.advance(0.002)
        stage.client().request("subscription.delete", topic="orders", subscription="s")
        assert consumer.expect(Type.ERROR, handle=1).code == "subscription-deleted"
    assert [name for name in stage.disk._names if "/cursors/" in name] == []


@pytest.mark.parametrize("what", ["producer", "consumer"])
@pytest.mark.parametrize("lost", [("worker-0", "broker"), ("broker", "worker-0")])
def test_an_open_whose_question_gets_lost_is_answered_soon(
    stage: Stage, lost: tuple[str, str], what: str
) -> None:
    """The question is repeated, and the effect of the first one is not repeated."""
    stage.client().request("topic.create", topic="orders")
    client = stage.client(0)
    stage.hold(*lost)
    if what == "producer":
        ref = client.say_open_producer(1, "orders", 7)
    else:
        ref = client.say_open_consumer(1, "orders", "s")
    stage.settle()
    stage.holding.clear()
    stage.let_go(*lost)
    assert client.expect(Type.OPENED, Type.MOVED, ref=ref, timeout_s=2)
    names = ["s"] if what == "consumer" else []
    listed = stage.client().request("subscription.list", topic="orders")["subscriptions"]
    assert [each["subscription"] for each in listed] == names


def test_a_question_that_is_repeated_brings_no_deleted_subscription_back(stage: Stage) -> None:
    """The first question may have created it, and it was deleted since: the consumer is told to try again."""
    stage.client().request("topic.create", topic="orders")
    name = next(f"s{n}" for n in range(99) if worker_of(subscription_key("orders", f"s{n}"), 2) == 1)
    client = stage.client(0)
    stage.hold("broker", "worker-0")
    ref = client.say_open_consumer(1, "orders", name)
    stage.settle()
    stage.client(1).request("subscription.delete", topic="orders", subscription=name)
    stage.holding.clear()
    stage.let_go("broker", "worker-0")
    refused = client.expect(Type.ERROR, ref=ref, timeout_s=2)
    assert (refused.code, refused.header[Key.ACTION]) == ("unavailable", "retry")
    assert stage.client().request("subscription.list", topic="orders")["subscriptions"] == []


# ---- bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("10.2-6", "16-3")
def test_requests_beyond_what_may_wait_are_refused_at_once(stage: Stage) -> None:
    """A client that floods the broker with requests gets "busy", and no other client does."""
    flooder, other = stage.client(0), stage.client(0)
    stage.hold("worker-0", "broker")
    frontend = stage.workers[0].frontend
    for number in range(3 * REQUESTS_MAX):
        flooder.say({Key.TYPE: Type.REQUEST, Key.REF: 10**6 + number, Key.OPERATION: "topic.list"})
    stage.settle()
    assert len(frontend.questions) == REQUESTS_MAX
    refused = flooder.expect(Type.ERROR, ref=10**6 + REQUESTS_MAX)
    assert (refused.code, refused.header[Key.ACTION]) == ("busy", "retry")
    other.say({Key.TYPE: Type.REQUEST, Key.REF: 1, Key.OPERATION: "topic.list"})
    stage.let_go("worker-0", "broker")
    assert other.expect(Type.RESULT, Type.ERROR).kind == Type.RESULT
    assert flooder.expect(Type.RESULT, ref=10**6)
    stage.settle()
    questions = frontend.questions
    assert [len(each) for each in (questions, questions._due_s, questions._requests)] == [0, 0, 0]


def test_what_waits_for_the_directory_is_bounded(make_stage: Callable[..., Stage]) -> None:
    """However many sessions ask and open: over the limit the answer is "busy", at once."""
    stage = make_stage(1, protocol__session_timeout_ms=60_000)
    stage.hold("worker-0", "broker")
    clients = [stage.client(0) for _ in range(4)]
    for number in range(PENDING_MAX + 20):
        clients[number % 4].say_open_producer(number, "orders", 7)
    stage.settle()
    assert len(stage.workers[0].frontend.questions) == PENDING_MAX
    assert clients[0].expect(Type.ERROR).code in ("busy", "limit-exceeded")


# ---- sessions --------------------------------------------------------------------------------------------------


def test_a_silent_session_ends_and_its_place_is_free(make_stage: Callable[..., Stage]) -> None:
    """The messages of a consumer that vanished go to the next one when its session has timed out, and not before."""
    stage = make_stage(2, protocol__session_timeout_ms=2000, protocol__heartbeat_ms=500)
    producer = opened_topic(stage)
    producer.publish(1, 0, b"x")
    lost = stage.at_subscription("orders", "s")
    lost.open_consumer(1, "orders", "s")
    assert lost.deliveries(1, 1)
    lost.disconnect()
    stage.advance(1.0)
    other = stage.at_subscription("orders", "s")
    busy = other.open_consumer(1, "orders", "s")
    assert (busy.code, busy.header[Key.ACTION]) == ("subscription-busy", "retry")
    stage.advance(1.6)
    other = stage.at_subscription("orders", "s")
    assert other.open_consumer(1, "orders", "s").kind == Type.OPENED
    delivered = other.expect(Type.DELIVER, handle=1)
    assert (delivered.messages(), delivered.header[Key.ATTEMPT]) == ([(0, b"x")], 2)
    assert lost.reconnect().header[Key.RESUMED] is False


def test_whoever_speaks_keeps_its_session(make_stage: Callable[..., Stage]) -> None:
    """Any frame keeps the session, also one that is refused."""
    stage = make_stage(1, protocol__session_timeout_ms=2000, protocol__heartbeat_ms=500)
    client = stage.client(0)
    for number in range(8):
        stage.advance(1.5)
        client.say({Key.TYPE: Type.PING} if number % 2 else {Key.TYPE: Type.CLOSE, Key.REF: 1, Key.HANDLE: 1})
    assert len(stage.workers[0].gateway.sessions) == 1
    stage.advance(3)
    assert len(stage.workers[0].gateway.sessions) == 0


def test_a_worker_that_stood_still_does_not_blame_its_clients(make_stage: Callable[..., Stage]) -> None:
    """After a pause of the process, frames that wait in its sockets are read before sessions are timed out."""
    stage = make_stage(1, protocol__session_timeout_ms=2000, protocol__heartbeat_ms=500)
    talker, quiet = stage.client(0), stage.client(0)
    stage.settle()
    stage.clock.now_s += 60
    for _ in range(300):  # more than one turn reads, ahead of the other client's frame
        talker.say({Key.TYPE: Type.PING})
    quiet.say({Key.TYPE: Type.PING})
    stage.settle()
    assert [quiet.expect(Type.PONG).kind, quiet.silent(0)] == [Type.PONG, True]
    assert len(stage.workers[0].gateway.sessions) == 2
    stage.advance(5)
    assert len(stage.workers[0].gateway.sessions) == 0


def test_a_receipt_that_finds_no_room_is_given_after_a_resume(stage: Stage) -> None:
    """A producer that does not read is disconnected instead of waiting for a receipt that was dropped."""
    producer = opened_topic(stage)
    producer.router.full.add(producer.routing)
    producer.publish(1, 0, b"x")
    stage.settle()
    producer.router.full.discard(producer.routing)
    producer.say({Key.TYPE: Type.PING})
    assert producer.expect(Type.ERROR).code == "hello-required"
    assert producer.reconnect().header[Key.RESUMED] is True
    producer.open_producer(1, "orders", 7, 0)
    producer.publish(1, 0, b"x")
    assert producer.receipt(1) == [(0, 0)]
