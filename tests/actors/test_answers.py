"""Tests that every question is answered exactly once: any valid frame with a REF, in any state, whatever fails.

A question is a frame with a REF that is not PING. Its answer is DONE, RESULT, OPENED, MOVED or ERROR with that REF. No
answer is due on a connection that was lost or for a session that ended; in no case may more than one come.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ister.actors.open_questions import ANSWER_WITHIN_S as REQUEST_WITHIN_S
from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.wire import RANGES_MAX, Key, Type
from tests.raw_client import Frame, batch
from tests.stage import Stage, StagedClient

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
ANSWERS = (Type.DONE, Type.RESULT, Type.OPENED, Type.MOVED, Type.ERROR)
ANSWERED_WITHIN_S = 60.0  # the longest time any answer may take, whatever process dies
TOPICS = {"orders": "reliable", "ticks": "non-reliable"}
TYPES = ("exclusive", "shared", "failover", "key-shared", "reader")


class Asker:
    """A client that counts the answers to its questions; `due` holds the REFs that still need one."""

    def __init__(self, stage: Stage, worker: int) -> None:
        self.stage, self.worker = stage, worker
        self.client = stage.client(worker)
        self.asked: dict[int, Any] = {}  # of this session
        self.due: set[int] = set()
        self.answers: Counter[int] = Counter()
        self.heard: list[Frame] = []

    def ask(self, header: dict[int, Any], *body: bytes) -> int:
        """Send a frame that must be answered."""
        ref = next(self.client._refs)
        self.asked[ref] = header
        if (
            self.client.routing not in self.client.router.full
        ):  # what it cannot be told is lost with the connection
            self.due.add(ref)
        self.client.say({**header, Key.REF: ref}, *body)
        return ref

    def listen(self) -> None:
        """Read the frames that have arrived."""
        waiting = self.client.router.out.get(self.client.routing)
        while waiting:
            parts = waiting.popleft()
            frame = Frame(cbor2.loads(parts[0]), parts[1:])
            self.heard.append(frame)
            if Key.REF in frame.header and frame.kind in ANSWERS:
                self.answers[frame.header[Key.REF]] += 1

    def lose(self) -> None:
        """Note that no answer is due on this connection any more."""
        self.listen()
        self.due.clear()

    def come_back(self, *, resume: bool) -> None:
        """Lose the connection and open another."""
        self.lose()
        if self.worker in self.stage.workers:
            self.client.disconnect()
            self.client.connect()
            self.say_hello(resume=resume)

    def say_hello(self, *, resume: bool) -> None:
        """Send HELLO and read the answer."""
        header: dict[int, Any] = {Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.CLIENT: "asker"}
        if resume and self.client.session is not None:
            header[Key.SESSION] = self.client.session
        else:
            self.lose()  # the session before it ends
        self.client.say(header)
        self.stage.settle()
        self.listen()
        welcome = [frame for frame in self.heard if frame.kind == Type.WELCOME]
        if welcome:
            self.client.session = welcome[-1].header[Key.SESSION]

    def check(self) -> None:
        """Check that every due answer came, and none came twice."""
        self.listen()
        missing = {ref: self.asked[ref] for ref in self.due if not self.answers[ref]}
        assert not missing, f"never answered: {missing}; heard {self.heard[-20:]}"
        twice = {ref: self.asked.get(ref) for ref, count in self.answers.items() if count > 1}
        assert not twice, f"answered more than once: {twice}; heard {self.heard[-20:]}"


def frame(kind: int, **keys: Any) -> dict[int, Any]:
    """Return a header: `frame(Type.CLOSE, handle=1)`."""
    return {Key.TYPE: kind} | {getattr(Key, name.upper()): value for name, value in keys.items()}


def open_consumer(handle: int, topic: str, subscription: str, type_: str, **keys: Any) -> dict[int, Any]:
    """Return the header of an OPEN_CONSUMER."""
    given = {"start": "earliest", "messages": 5, "bytes": 1 << 20} | keys
    return frame(
        Type.OPEN_CONSUMER,
        handle=handle,
        topic=topic,
        subscription=subscription,
        subscription_type=type_,
        **given,
    )


class Play:
    """A staged broker, some clients, and the faults that may happen to them."""

    def __init__(self, folder: Path) -> None:
        self.stage = stage = Stage(folder, 2)
        stage.expects_failures = True
        admin = stage.client()
        for topic, strategy in TOPICS.items():
            admin.request("topic.create", topic=topic, dispatch=strategy)
        producer = stage.at_topic("orders")
        producer.open_producer(1, "orders", 99)
        producer.publish(1, 0, *(b"%d" % number for number in range(20)))
        producer.receipts(1, 1)
        self.askers = [Asker(stage, worker) for worker in (0, 1, 0, 1)]
        self.sequence = 0
        self.broken = False

    # ---- what may be asked ---------------------------------------------------------------------------------------

    def do(self, step: tuple[Any, ...]) -> None:
        """Do one step of a story."""
        what, *given = step
        getattr(self, f"do_{what}")(*given)

    def _ask(self, who: int, header: dict[int, Any], *body: bytes) -> None:
        if who < len(self.askers) and self.askers[who].worker in self.stage.workers:
            self.askers[who].ask(header, *body)

    def do_open_producer(self, who: int, handle: int, topic: str, producer: int) -> None:
        self._ask(who, frame(Type.OPEN_PRODUCER, handle=handle, topic=topic, producer=producer, sequence=0))

    def do_open_consumer(self, who: int, handle: int, topic: str, name: str, type_: str, force: bool) -> None:
        more = {"force": True} if force else {}
        self._ask(who, open_consumer(handle, topic, f"{name}-{type_}", type_, **more))

    def do_close(self, who: int, handle: int) -> None:
        self._ask(who, frame(Type.CLOSE, handle=handle))

    def do_ack(self, who: int, handle: int, kind: int, first: int, count: int) -> None:
        if kind == Type.ACK_UNTIL:
            self._ask(who, frame(kind, handle=handle, offset=first))
        else:
            self._ask(who, frame(kind, handle=handle, ranges=[first, first + count]))

    def do_publish(self, who: int, handle: int) -> None:
        asker = self.askers[who]
        asker.client.say(frame(Type.PUBLISH, handle=handle, sequence=self.sequence), *batch([b"x", b"y"]))
        self.sequence += 2

    def do_credit(self, who: int, handle: int) -> None:
        self.askers[who].client.say(frame(Type.CREDIT, handle=handle, messages=5, bytes=1000))

    def do_request(self, who: int, operation: str, topic: str, name: str, type_: str) -> None:
        arguments: dict[str, Any] = {"topic": topic}
        if operation.startswith("subscription"):
            arguments["subscription"] = f"{name}-{type_}"
        if operation == "subscription.seek":
            arguments["to"] = "earliest"
        if operation == "subscription.create":
            arguments["type"] = type_ if type_ != "reader" else "shared"
        if operation == "topic.create":
            arguments["dispatch"] = TOPICS.get(topic, "reliable")
        if operation == "topic.update":
            arguments["message_ttl_ms"] = 1_000_000
        if operation == "topic.watch":
            arguments = {"pattern": ">", "wait_ms": 1000}
        if operation in ("status", "topic.list"):
            arguments = {}
        self._ask(who, frame(Type.REQUEST, operation=operation, arguments=arguments))

    # ---- what may happen -----------------------------------------------------------------------------------------

    def do_turn(self) -> None:
        self.stage.loop.once()

    def do_settle(self) -> None:
        self.stage.settle()

    def do_pass_time(self, seconds: float) -> None:
        self.stage.advance(seconds)

    def do_ping(self) -> None:
        """Send PING so that no session times out."""
        for asker in self.askers:
            asker.client.say(frame(Type.PING))

    def do_reconnect(self, who: int, resume: bool) -> None:
        self.askers[who].come_back(resume=resume)

    def do_bye(self, who: int) -> None:
        asker = self.askers[who]
        if asker.worker in self.stage.workers:
            asker.client.say(frame(Type.BYE))
            self.stage.settle()
            asker.come_back(resume=False)

    def do_kill(self, worker: int) -> None:
        if worker in self.stage.workers:
            for asker in self.askers:
                if asker.worker == worker:
                    asker.lose()
            self.stage.kill(worker)

    def do_start(self, worker: int) -> None:
        if worker not in self.stage.workers:
            self.stage.start(worker)
            for asker in self.askers:
                if asker.worker == worker:
                    asker.come_back(resume=True)

    def do_fail_actor(self, kind: str, which: int) -> None:
        actors = self.stage.actors(kind)
        if actors:
            actors[which % len(actors)].fail(RuntimeError("a mistake"))

    def do_break_disk(self, what: str) -> None:
        def fail(operation: str, path: str) -> None:
            if operation in ("write", "sync") and what in path:
                raise OSError(errno.EIO, "broken", path)

        self.stage.disk.on_operation = fail

    def do_fill_disk(self) -> None:
        self.stage.disk.room = 0

    def do_mend(self) -> None:
        self.stage.disk.on_operation = None
        self.stage.disk.room = None

    def do_fill_connection(self, who: int) -> None:
        self.askers[who].client.router.full.add(self.askers[who].client.routing)
        self.askers[who].lose()

    def do_fence(self) -> None:
        from ister.actors.messages import Fenced

        for topic in self.stage.actors("topic", "orders"):
            topic.ref.tell(Fenced("another broker has it", None))

    def do_hold_mail(self, sender: str, node: str) -> None:
        self.stage.hold(sender, node)

    def do_let_go(self) -> None:
        for sender, node in list(self.stage.held):
            self.stage.let_go(sender, node)

    # ---- the end -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Let every fault recover, wait as long as answers may take, and check them."""
        self.do_let_go()
        self.stage.settle()
        for _ in range(int(ANSWERED_WITHIN_S)):
            self.stage.advance(1.0)
            self.do_ping()
        self.stage.settle()
        for asker in self.askers:
            asker.check()


WHO = st.integers(0, 3)
HANDLE = st.integers(1, 3)
TOPIC = st.sampled_from(["orders", "orders", "ticks", "nowhere"])
NAME = st.sampled_from(["a", "b"])
TYPE = st.sampled_from(TYPES)
NODES = ("broker", "worker-0", "worker-1")
OPERATIONS = (
    "topic.create",
    "topic.show",
    "topic.update",
    "topic.delete",
    "topic.list",
    "topic.verify",
    "topic.watch",
    "subscription.create",
    "subscription.show",
    "subscription.explain",
    "subscription.seek",
    "subscription.list",
    "subscription.delete",
    "status",
    "nonsense",
)


def always(what: str, *given: Any) -> st.SearchStrategy[Any]:
    """Return the strategy for steps of one kind."""
    return st.tuples(st.just(what), *given)


ASKED = st.one_of(
    always("open_producer", WHO, HANDLE, TOPIC, st.integers(1, 3)),
    always("open_consumer", WHO, HANDLE, TOPIC, NAME, TYPE, st.booleans()),
    always("open_consumer", WHO, HANDLE, st.just("orders"), NAME, TYPE, st.booleans()),
    always("close", WHO, HANDLE),
    always(
        "ack",
        WHO,
        HANDLE,
        st.sampled_from([Type.ACK, Type.NACK, Type.ACK_UNTIL, Type.EXTEND]),
        st.integers(0, 25),
        st.integers(0, 3),
    ),
    always("request", WHO, st.sampled_from(OPERATIONS), TOPIC, NAME, TYPE),
    always("publish", WHO, HANDLE),
    always("credit", WHO, HANDLE),
)
HAPPENS = st.one_of(
    always("turn"),
    always("settle"),
    always("settle"),
    always("ping"),
    always("pass_time", st.sampled_from([0.01, 0.3, 3.0, 20.0])),
    always("reconnect", WHO, st.booleans()),
    always("bye", WHO),
    always("kill", st.integers(0, 1)),
    always("start", st.integers(0, 1)),
    always("fail_actor", st.sampled_from(["topic", "subscription", "consumer"]), st.integers(0, 3)),
    always("break_disk", st.sampled_from(["orders", "cursor", "/"])),
    always("fill_disk"),
    always("mend"),
    always("fill_connection", WHO),
    always("fence"),
    always("hold_mail", st.sampled_from(NODES), st.sampled_from(NODES)),
    always("let_go"),
)
STORY = st.lists(st.one_of(ASKED, ASKED, HAPPENS), max_size=40)


def live(story: Sequence[tuple[Any, ...]]) -> None:
    """Play a story to its end."""
    with tempfile.TemporaryDirectory() as folder:
        played = Play(Path(folder))
        for step in story:
            played.do(step)
        played.end()
        played.stage.disk.on_operation = played.stage.disk.room = None
        played.stage.close()


@pytest.mark.requirement("4.1-2")
@pytest.mark.timeout(1800)
@settings(max_examples=1500 if LONG else 60)
@given(STORY)
def test_every_question_is_answered_once(story: list[tuple[Any, ...]]) -> None:
    """Any request in any state is answered once, whatever process dies."""
    live(story)


# ---- regressions -----------------------------------------------------------------------------------------------


@pytest.fixture
def consumer(stage: Stage) -> StagedClient:
    """Return a client of a topic with ten messages that has not opened the subscription yet."""
    stage.client().request("topic.create", topic="orders")
    producer = stage.at_topic("orders")
    producer.open_producer(1, "orders", 7)
    producer.publish(1, 0, *(b"%d" % number for number in range(10)))
    producer.receipts(1, 1)
    return stage.at_subscription("orders", "s")


def say(client: StagedClient, kind: int, **keys: Any) -> int:
    """Send a frame that must be answered, and return its REF."""
    ref = next(client._refs)
    client.say(frame(kind, ref=ref, **keys))
    return ref


def answers(client: StagedClient, ref: int) -> list[Frame]:
    """Return the answers to a question so far."""
    found: list[Frame] = []
    others: list[Frame] = []
    while (each := client.hear(0)) is not None:
        (found if each.header.get(Key.REF) == ref else others).append(each)
    client.unread[:0] = others
    return found


ABOUT_DELIVERIES = (
    frame(Type.ACK, ranges=[0, 1]),
    frame(Type.NACK, ranges=[0, 1]),
    frame(Type.EXTEND, ranges=[0, 1]),
    frame(Type.ACK_UNTIL, offset=0),
)


@pytest.mark.requirement("4.1-3")
@pytest.mark.parametrize("header", ABOUT_DELIVERIES)
def test_an_acknowledgment_of_a_handle_that_is_not_open_is_answered(
    consumer: StagedClient, header: dict[int, Any]
) -> None:
    """With a REF it is a question; without one it may have crossed the CLOSE, and is ignored."""
    ref = next(consumer._refs)
    consumer.say({**header, Key.HANDLE: 1, Key.REF: ref})
    refused = consumer.expect(Type.ERROR, ref=ref)
    assert (refused.code, refused.header[Key.HANDLE]) == ("unknown-handle", 1)
    assert "absent" not in refused.header[Key.TEXT]
    consumer.say({**header, Key.HANDLE: 1})
    assert consumer.silent(0)


@pytest.mark.requirement("4.1-4")
def test_an_open_that_is_closed_before_it_was_answered_is_answered_and_so_is_the_close(
    consumer: StagedClient,
) -> None:
    """With OPEN and CLOSE sent together, the OPEN is answered that it was closed, and the CLOSE with DONE."""
    opened = consumer.say_open_consumer(1, "orders", "s", "shared")
    closed = say(consumer, Type.CLOSE, handle=1)
    assert consumer.expect(Type.ERROR, ref=opened).code == "closed"
    consumer.expect(Type.DONE, ref=closed)
    assert consumer.stage.actors("consumer") == []


@pytest.mark.requirement("4.1-4")
def test_an_open_that_is_repeated_before_it_was_answered_is_answered_too(consumer: StagedClient) -> None:
    """The second OPEN gets the handle."""
    first = consumer.say_open_consumer(1, "orders", "s", "shared")
    second = consumer.say_open_consumer(1, "orders", "s", "shared")
    assert consumer.expect(Type.ERROR, ref=first).code == "closed"
    assert consumer.expect(Type.OPENED, ref=second).header[Key.HANDLE] == 1
    assert len(consumer.deliveries(1, 10)) == 10


@pytest.mark.requirement("4.1-6")
def test_acknowledgments_that_cannot_be_written_are_answered(consumer: StagedClient) -> None:
    """With a disk that fails every write, an error comes within the allowed time, and no second answer."""
    consumer.open_consumer(1, "orders", "s", "shared")
    consumer.deliveries(1, 10)

    def fail(operation: str, path: str) -> None:
        if "cursor" in path:
            raise OSError(errno.EIO, "broken", path)

    consumer.stage.disk.on_operation = fail
    ref = say(consumer, Type.ACK, handle=1, ranges=[0, 5])
    for _ in range(int(ANSWERED_WITHIN_S)):
        consumer.stage.advance(1.0)
        consumer.say(frame(Type.PING))
    (answer,) = answers(consumer, ref)
    assert answer.code in ("log-failed", "unavailable")  # at once, or when it has been tried for long
    assert answer.header[Key.ACTION] == "retry"
    consumer.stage.disk.on_operation = None
    consumer.stage.advance(5.0)
    assert not answers(consumer, ref)  # it is written now, but was answered
    consumer.ack(1, (0, 5))


@pytest.mark.requirement("4.1-5")
@pytest.mark.parametrize("what", ["close", "delete", "force"])
def test_acknowledgments_that_are_not_written_are_answered_when_the_handle_goes(
    consumer: StagedClient, what: str
) -> None:
    """A client that waits for the answer is told that the messages may be delivered again."""
    consumer.open_consumer(1, "orders", "s", "exclusive")
    consumer.deliveries(1, 10)

    def fail(operation: str, path: str) -> None:
        if "cursor" in path:
            raise OSError(errno.EIO, "broken", path)

    consumer.stage.disk.on_operation = fail
    ref = say(consumer, Type.ACK, handle=1, ranges=[0, 5])
    consumer.stage.settle()
    match what:
        case "close":
            closed = say(consumer, Type.CLOSE, handle=1)
            code = "closed"
            consumer.expect(Type.DONE, ref=closed)
        case "delete":
            consumer.stage.client().request("subscription.delete", topic="orders", subscription="s")
            code = "subscription-deleted"
        case _:
            other = consumer.stage.at_subscription("orders", "s")
            other.open_consumer(1, "orders", "s", "exclusive", force=True)
            code = "taken-over"
    assert consumer.expect(Type.ERROR, ref=ref).code == code
    assert not answers(consumer, ref)


def test_an_open_of_a_subscription_whose_topic_never_answers_is_refused_in_time(
    make_stage: Callable[..., Stage],
) -> None:
    """The error names what is missing, the handle is free again, and opening works once the topic exists."""
    stage = make_stage(2)
    number = 0
    while True:  # a topic and a subscription of it on different workers
        topic = f"t{number}"
        if stage.at_subscription(topic, "s").worker == 0 and worker_of(topic_key(topic), 2) == 1:
            break
        number += 1
    stage.client().request("topic.create", topic=topic)
    consumer = stage.at_subscription(topic, "s")
    stage.hold("worker-1", "worker-0")
    ref = consumer.say_open_consumer(1, topic, "s", "shared")
    for _ in range(40):
        stage.advance(1.0)
        consumer.say(frame(Type.PING))
    (refused,) = answers(consumer, ref)
    assert (refused.code, refused.header[Key.ACTION]) == ("unavailable", "retry")
    assert refused.header[Key.CLOSED]
    assert stage.actors("consumer") == []
    stage.let_go("worker-1", "worker-0")
    assert consumer.open_consumer(1, topic, "s", "shared").kind == Type.OPENED


@pytest.mark.requirement("4.1-7")
def test_questions_of_a_connection_that_is_lost_are_not_answered_on_the_next_one(
    consumer: StagedClient,
) -> None:
    """The client asks again on the new connection; an error for an old REF could be taken for another's answer."""
    opened = consumer.say_open_consumer(1, "orders", "s", "shared")
    consumer.stage.loop.sockets()
    consumer.reconnect()
    again = consumer.say_open_consumer(1, "orders", "s", "shared")
    assert consumer.expect(Type.OPENED, ref=again)
    assert all(each.kind != Type.ERROR for each in answers(consumer, opened))


@pytest.mark.requirement("9.5-11")
@pytest.mark.parametrize("kind", [Type.ACK, Type.NACK, Type.EXTEND])
def test_more_ranges_than_a_frame_may_have_are_refused_as_too_many(consumer: StagedClient, kind: int) -> None:
    """The error gives the number of ranges and the limit; no part of the frame is applied."""
    consumer.open_consumer(1, "orders", "s", "shared")
    consumer.deliveries(1, 10)
    ranges = [number for _ in range(RANGES_MAX + 101) for number in (0, 1)]
    refused = consumer.expect(Type.ERROR, ref=say(consumer, kind, handle=1, ranges=ranges))
    assert (refused.code, refused.header[Key.ACTION], refused.header[Key.HANDLE]) == (
        "limit-exceeded",
        "fix",
        1,
    )
    assert "501 ranges" in refused.header[Key.TEXT]
    assert "400" in refused.header[Key.TEXT]
    shown = consumer.request("subscription.show", topic="orders", subscription="s")
    assert (shown["unacknowledged"], shown["in_flight"]) == (10, 10)
    consumer.expect(Type.DONE, ref=say(consumer, kind, handle=1, ranges=ranges[: 2 * RANGES_MAX]))


# ---- requests, when processes die ------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "asked", "never heard"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_is_answered_once_and_in_time_when_a_worker_dies(
    make_stage: Callable[..., Stage], operation: str, moment: str
) -> None:
    """That holds for requests to a worker that is dead, stopping, or receives no mail."""
    stage = make_stage(2)
    topic = next(f"t{number}" for number in range(99) if worker_of(topic_key(f"t{number}"), 2) == 1)
    name = next(
        f"s{number}" for number in range(99) if worker_of(subscription_key(topic, f"s{number}"), 2) == 1
    )
    client = stage.client(0)
    if operation not in ("topic.create",):
        client.request("topic.create", topic=topic)
        if operation != "subscription.create":
            client.request("subscription.create", topic=topic, subscription=name)
    arguments: dict[str, Any] = {"topic": topic}
    if operation.startswith("subscription") and operation != "subscription.list":
        arguments["subscription"] = name
    if operation == "subscription.seek":
        arguments["to"] = "earliest"
    if operation == "topic.update":
        arguments["retention_ms"] = 5
    if operation == "topic.watch":
        arguments = {"pattern": ">", "wait_ms": 1000}
    if operation in ("status", "topic.list"):
        arguments = {}
    if moment == "before":
        stage.kill(1)
    else:
        stage.hold("broker", "worker-1")
    ref = next(client._refs)
    client.say(frame(Type.REQUEST, ref=ref, operation=operation, arguments=arguments))
    stage.settle()
    if moment == "asked":
        stage.kill(1)
    for _ in range(int(REQUEST_WITHIN_S) + 1):
        stage.advance(1.0)
        client.say(frame(Type.PING))
    stage.settle()
    (answer,) = answers(client, ref)
    assert answer.kind in (Type.RESULT, Type.ERROR)
    if answer.kind == Type.ERROR and operation != "nonsense":
        assert (answer.code, answer.header[Key.ACTION]) == ("unavailable", "retry")
