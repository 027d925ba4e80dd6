"""Tests of the client: connecting, requests, MOVED, and the ways a client can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import zmq

import ister
from ister import testing, wire
from ister.errors import (
    ClosedError,
    ConnectionLostError,
    ForkedError,
    RemoteError,
    TimeoutExpiredError,
    UsageError,
)
from ister.opening import producer_id
from ister.wire import Key, Type

ROOT = Path(__file__).parents[2]


def run(program: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a Python program that can import Ister."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_topics_are_created_listed_shown_and_deleted(client: ister.Client) -> None:
    """From creation to deletion."""
    assert client.create_topic("events", dispatch="non-reliable")["strategy"] == "non-reliable"
    assert [topic["topic"] for topic in client.topics()] == ["events", "orders"]
    assert client.topic("orders")["strategy"] == "reliable"
    client.delete_topic("events")
    with pytest.raises(RemoteError) as caught:
        client.topic("events")
    assert caught.value.code == "unknown-topic"


def test_long_listings_are_asked_for_in_pages(client: ister.Client) -> None:
    """The caller gets one list, however many there are."""
    for number in range(250):
        client.create_topic(f"t{number:03}")
    assert [topic["topic"] for topic in client.topics()] == ["orders", *(f"t{n:03}" for n in range(250))]


def test_an_existing_topic_is_fine_when_that_is_said(client: ister.Client) -> None:
    """Only if it is the same kind of topic; otherwise the error says what differs."""
    with pytest.raises(RemoteError) as caught:
        client.create_topic("orders")
    assert caught.value.code == "topic-exists"
    client.create_topic("orders", exist_ok=True)
    with pytest.raises(RemoteError, match="dispatch is reliable, not non-reliable"):
        client.create_topic("orders", dispatch="non-reliable", exist_ok=True)
    with pytest.raises(RemoteError, match="durability is fsync, not os") as other:
        client.create_topic("orders", durability="os", exist_ok=True)
    assert other.value.code == "topic-exists"


def test_subscriptions_are_created_listed_shown_and_deleted(client: ister.Client) -> None:
    """From creation to deletion."""
    client.create_subscription("orders", "billing", type="shared", start="earliest")
    client.create_subscription("orders", "billing", type="shared", exist_ok=True)
    with pytest.raises(RemoteError, match="type is shared, not failover") as other:
        client.create_subscription("orders", "billing", type="failover", exist_ok=True)
    assert other.value.code == "subscription-exists"
    assert [each["subscription"] for each in client.subscriptions("orders")] == ["billing"]
    assert client.subscription("orders", "billing")["type"] == "shared"
    client.delete_subscription("orders", "billing")
    assert client.subscriptions("orders") == []
    with pytest.raises(RemoteError) as caught:
        client.consumer("nothing", subscription="s")
    assert caught.value.code == "unknown-topic"


def test_a_subscription_keeps_its_type(client: ister.Client) -> None:
    """Opening it with another type is refused."""
    client.create_subscription("orders", "s", type="shared")
    with pytest.raises(RemoteError) as caught:
        client.consumer("orders", subscription="s", type="failover")
    assert caught.value.code == "subscription-type"


def test_a_request_is_asked_again_until_it_is_answered(broker: testing.Broker, client: ister.Client) -> None:
    """The client retries after `retry` errors and lost connections."""
    broker.refuse(Type.REQUEST, "unavailable", times=2)
    assert client.status()["broker"] == {"boot": 1}
    broker.restart()
    assert client.status()["broker"] == {"boot": 2}


def test_a_request_has_a_timeout_that_says_why(broker: testing.Broker, client: ister.Client) -> None:
    """The text of the timeout has the last error."""
    broker.refuse(Type.REQUEST, "unavailable", times=10)
    with pytest.raises(TimeoutExpiredError, match="unavailable"):
        client.status(timeout=0.1)


def test_nobody_there_is_said_in_time() -> None:
    """The error has the endpoint, and the action "try again"."""
    with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1 ") as caught:
        ister.connect("tcp://127.0.0.1:1", timeout=0.2)
    assert caught.value.action == "retry"


def test_somebody_else_there_is_said_in_time() -> None:
    """A port where another protocol answers does not block a program."""
    with zmq.Context() as context, context.socket(zmq.REP) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(ConnectionLostError):
            ister.connect(f"tcp://127.0.0.1:{port}", timeout=0.2)


@pytest.mark.requirement("1.1-4", "7.1-9")
def test_any_of_several_endpoints_will_do(broker: testing.Broker) -> None:
    """The client soon tries the next endpoint."""
    with ister.connect(["tcp://127.0.0.1:1", broker.endpoint], timeout=5) as client:
        assert client.topics() == []


def test_a_version_that_is_not_spoken_is_said() -> None:
    """The error says that trying again does not help."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def refuse() -> None:
            peer, _hello = router.recv_multipart()
            error = {
                Key.TYPE: Type.ERROR,
                Key.CODE: "unsupported-version",
                Key.TEXT: "2 only",
                Key.ACTION: "stop",
            }
            router.send_multipart([peer, wire.encode_header(error)])

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(RemoteError) as caught:
            ister.connect(f"tcp://127.0.0.1:{port}", timeout=5)
        thread.join()
    assert caught.value.code == "unsupported-version"


@pytest.mark.requirement("7.6-1", "7.6-2")
def test_moved_is_followed(broker: testing.Broker) -> None:
    """A producer and a consumer go to their topic's worker, whatever endpoint the client connected to."""
    with testing.Broker(heartbeat_ms=30_000, moved={"orders": broker.endpoint}) as first:
        with ister.connect(broker.endpoint) as there:
            there.create_topic("orders")
        with ister.connect(first.endpoint, timeout=5) as client:
            for number in range(20):
                with client.producer("orders") as producer:
                    assert producer.send(b"%d" % number).result(5).offset == number
            with client.consumer("orders", subscription="s", start="earliest") as consumer:
                received = [consumer.receive(5) for _ in range(20)]
                assert [message.offset for message in received if message] == list(range(20))
    assert sum(kind == Type.HELLO for kind, _ in broker.heard) == 2  # one session for all of them


@pytest.mark.requirement("7.6-3")
def test_moving_in_circles_ends(broker: testing.Broker) -> None:
    """Workers that send a client to each other cost a timeout with that reason, not an endless loop."""
    broker.moved["orders"] = "tcp://127.0.0.1:1"
    with testing.Broker() as other:
        broker.moved["orders"], other.moved["orders"] = other.endpoint, broker.endpoint
        with ister.connect(broker.endpoint) as client:
            with pytest.raises(TimeoutExpiredError, match="moved"):
                client.producer("orders", timeout=0.5)
    assert sum(kind == Type.OPEN_PRODUCER for kind, _ in broker.heard) < 10


@pytest.mark.requirement("7.4-8")
def test_a_place_that_does_not_come_back_is_asked_for_again(broker: testing.Broker) -> None:
    """If a worker is gone for good, the configured endpoints are asked where its topics are."""
    with testing.Broker() as gone:
        broker.moved["orders"] = gone.endpoint
        with ister.connect(gone.endpoint) as there:
            there.create_topic("orders")
        with ister.connect(broker.endpoint) as client:
            client.create_topic("orders")
            producer = client.producer("orders", timeout=5)
            producer.send(b"a").result(5)
            gone.close()
            del broker.moved["orders"]
            assert producer.send(b"b").result(10).offset == 0
            producer.close()


def test_a_closed_client_says_so(client: ister.Client) -> None:
    """Every call raises, and so does every receipt that is still open."""
    producer = client.producer("orders")
    client.close()
    client.close()
    for call in (client.topics, lambda: producer.send(b"x"), lambda: client.producer("orders")):
        with pytest.raises(ClosedError):
            call()
    producer.close()


def test_closing_a_client_wakes_whoever_waits(client: ister.Client) -> None:
    """A thread in `receive` gets the error at once."""
    consumer = client.consumer("orders", subscription="s")
    threading.Timer(0.05, client.close).start()
    with pytest.raises(ClosedError):
        consumer.receive(10)


def test_an_unused_client_leaves_no_threads(broker: testing.Broker) -> None:
    """Closing ends every thread."""
    before = set(threading.enumerate())  # of which some may end meanwhile: those of tests before
    for _ in range(3):
        with ister.connect(broker.endpoint):
            pass
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    "wrong", [{"topic": 5}, {"subscription": None}, {"type": "any"}, {"start": -1}, {"priority": -1}]
)
def test_wrong_consumers_are_refused_before_anything_is_sent(
    client: ister.Client, wrong: dict[str, object]
) -> None:
    """Each with an error that says what is right."""
    arguments: dict[str, object] = {"topic": "orders", "subscription": "s"} | wrong
    with pytest.raises(UsageError):
        client.consumer(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"batch_bytes": 0}, {"linger_ms": -1}, {"window_bytes": 0}, {"topic": b"orders"}]
)
def test_wrong_producers_are_refused_before_anything_is_sent(
    client: ister.Client, wrong: dict[str, object]
) -> None:
    """Each with an error that says what is right."""
    arguments: dict[str, object] = {"topic": "orders"} | wrong
    with pytest.raises(UsageError):
        client.producer(**arguments)  # type: ignore[arg-type]


@pytest.mark.requirement("8.1-2")
def test_a_named_producer_has_an_id_that_lasts() -> None:
    """Topic and name give the same id in every process: never 0, and of 63 bits."""
    assert producer_id("orders", "me") == 0x63CDAD2E46943454
    assert producer_id("orders", "me") != producer_id("orders", "you")
    assert producer_id("orders", "me") != producer_id("order", "sme")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_to_connect_again(broker: testing.Broker, client: ister.Client) -> None:
    """Every call raises and none hangs; the parent goes on."""
    producer = client.producer("orders")
    consumer = client.consumer("orders", subscription="s", start="earliest")
    broker.silent = True
    producer.send(b"a")
    producer.send(b"b")  # a batch is begun: the next send would take the fast path
    child = os.fork()
    if not child:
        signal.alarm(10)  # end a child that hangs
        told = 0
        calls = (
            lambda: producer.send(b"x"),
            lambda: producer.flush(1),
            lambda: consumer.receive(1),
            lambda: consumer.flush(1),
            client.topics,
        )
        for call in calls:
            try:
                call()
            except ForkedError:
                told += 1
        producer.close()
        consumer.close()
        client.close()
        os._exit(told)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 5
    broker.silent = False
    broker.disconnect()
    assert producer.send(b"c").result(5).offset == 2
    producer.close()
    consumer.close()


def test_a_program_that_forgets_to_close_still_ends(broker: testing.Broker) -> None:
    """No thread or socket keeps the interpreter alive; what had time to be sent is sent."""
    program = """
import sys, ister
client = ister.connect(sys.argv[1])
client.create_topic("forgotten")
producer = client.producer("forgotten")
print(producer.send(b"x").result(5).offset)
consumer = client.consumer("forgotten", subscription="s")
"""
    done = run(program, broker.endpoint)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")


def test_a_forked_child_of_a_program_ends(broker: testing.Broker) -> None:
    """The interpreter of a child exits cleanly with a client that the child did not use."""
    program = """
import os, sys, warnings, ister
warnings.simplefilter("ignore")
client = ister.connect(sys.argv[1])
child = os.fork()
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.topics())
"""
    done = run(program, broker.endpoint)
    assert (done.returncode, done.stdout.strip()) == (0, "0 []")


def test_ctrl_c_leaves_a_usable_client(broker: testing.Broker) -> None:
    """Interrupted again and again while sending and waiting, it loses no message and does not hang."""
    program = """
import itertools, os, signal, sys, threading, time, ister
client = ister.connect(sys.argv[1])
client.create_topic("orders")
producer = client.producer("orders", batch_bytes=2000)
consumer = client.consumer("orders", subscription="s", start="earliest")
over = threading.Event()
def interrupt():
    while not over.wait(0.02):
        os.kill(os.getpid(), signal.SIGINT)
interrupted = 0
receipts = []
threading.Thread(target=interrupt, daemon=True).start()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        while time.monotonic() < end:
            receipts.append(producer.send(b"x" * 50))
            if len(receipts) % 500 == 0:
                producer.flush()
    except KeyboardInterrupt:
        interrupted += 1
while True:
    try:
        over.set()
        time.sleep(0.1)
        break
    except KeyboardInterrupt:
        pass
producer.flush(10)
offsets = [receipt.result(0).offset for receipt in receipts]
assert offsets == sorted(set(offsets)), "order"
assert interrupted > 5, interrupted
seen = set()
while len(seen) <= offsets[-1]:
    batch = consumer.receive_batch(timeout=10)
    assert batch is not None, (len(seen), offsets[-1])
    seen.update(batch.offsets)
    consumer.ack(batch)
consumer.flush(5)
client.close()
print("ok")
"""
    done = run(program, broker.endpoint)
    assert (done.stdout.strip(), done.returncode) == ("ok", 0), done.stderr[-2000:]


def test_ctrl_c_while_waiting_ends_a_program(broker: testing.Broker) -> None:
    """One Ctrl-C ends a consumer that waits without a timeout, at once."""
    program = """
import sys, ister
with ister.connect(sys.argv[1]) as client:
    client.create_topic("orders", exist_ok=True)
    with client.consumer("orders", subscription="s") as consumer:
        print("ready", flush=True)
        for message in consumer:
            pass
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program, broker.endpoint],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=5)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


def test_importing_ister_is_cheap() -> None:
    """The command line and the broker's packages are not imported for a client."""
    program = """
import sys, ister
heavy = {"actors", "storage", "transport", "click", "rich", "pykka", "asyncio", "google.cloud"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(program).stdout.strip() == "[]"


def test_a_client_can_be_closed_by_contextlib(broker: testing.Broker) -> None:
    """`contextlib.closing` calls its `close`."""
    with closing(ister.connect(broker.endpoint)) as client:
        assert client.topics() == []
