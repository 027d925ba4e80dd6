"""Real processes and raw clients: what a broker does while its processes are killed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ister.actors.placement import subscription_key, topic_key, worker_of
from ister.ownbroker import OwnBroker
from ister.wire import OFFSET_UNKNOWN, Key, Type
from tests.broker.conftest import MakeBroker
from tests.raw_client import Frame, RawClient, follow

pytestmark = pytest.mark.process

_names = itertools.count()


@pytest.fixture
def client(broker: OwnBroker) -> Iterator[RawClient]:
    """Return a client of the first worker."""
    client = RawClient(broker.endpoint)
    yield client
    client.close()


def new_topic(client: RawClient, worker: int | None = None, workers: int = 2, **settings: str) -> str:
    """Create a topic, on a given worker if asked to."""
    while True:
        name = f"topic-{next(_names)}"
        if worker is None or worker_of(topic_key(name), workers) == worker:
            client.request("topic.create", topic=name, **settings)
            return name


def name_on(topic: str, worker: int, workers: int = 2) -> str:
    """Return the name of a subscription that runs on a worker."""
    return next(
        f"s{n}" for n in itertools.count() if worker_of(subscription_key(topic, f"s{n}"), workers) == worker
    )


def wait_for(so: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Return what `so()` returns once that is true."""
    until = time.monotonic() + within_s
    while not (found := so()):
        assert time.monotonic() < until, "it never is so"
        time.sleep(0.02)
    return found


def pids(client: RawClient) -> dict[str, int]:
    """Return the pid of each process that is up."""
    processes = client.request("status")["processes"]
    return {each["node"]: each["pid"] for each in processes}


def kill(pid: int) -> None:
    """Kill a process with SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Say whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Lasting:
    """A handle that is opened again, on a new connection, whenever it is lost."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client: RawClient | None = None
        self.reconnects = -1

    def open(self, client: RawClient) -> Frame:
        raise NotImplementedError

    def ready(self) -> RawClient:
        """Return a client on which the handle is open."""
        until = time.monotonic() + 20
        while self.client is None:
            assert time.monotonic() < until, "it never opens again"
            endpoint = self.endpoint
            for _ in range(3):
                client = RawClient(endpoint, hello=False)
                client.patience_s = 1.0
                try:
                    client.hello()
                    answer = self.open(client)
                except AssertionError:  # no answer: the worker is being restarted
                    client.close()
                    break
                if answer.kind == Type.OPENED:
                    self.client = client
                    self.reconnects += 1
                    self.opened(answer)
                    break
                client.close()
                if answer.kind == Type.ERROR:
                    assert answer.header[Key.ACTION] == "retry", answer
                    time.sleep(0.05)
                    break
                endpoint = answer.header[Key.ENDPOINT]
        return self.client

    def opened(self, answer: Frame) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        """Start over with another connection."""
        if self.client is not None:
            self.client.close()
        self.client = None

    def next_frame(self, timeout_s: float = 1.0) -> Frame | None:
        """Return the next frame for the handle; None when the connection counts as lost."""
        client = self.ready()
        frame = client.hear(timeout_s)
        if frame is None:
            client.say({Key.TYPE: Type.PING})
            frame = client.hear(timeout_s)
        if frame is None or frame.kind == Type.ERROR:
            assert frame is None or frame.header[Key.ACTION] == "retry" or frame.code == "unknown-handle", (
                frame
            )
            self.lost()
            return None
        return frame


class Stream(Lasting):
    """Publishes batches, and resends those without a receipt byte for byte."""

    WINDOW = 20

    def __init__(self, endpoint: str, topic: str) -> None:
        super().__init__(endpoint)
        self.topic = topic
        self.waiting: dict[int, list[bytes]] = {}
        self.receipts: dict[int, int] = {}
        self.next = 0

    def open(self, client: RawClient) -> Frame:
        return client.open_producer(1, self.topic, 42, min(self.waiting, default=self.next))

    def opened(self, answer: Frame) -> None:
        for sequence, payloads in self.waiting.items():
            self._send(sequence, payloads)

    def _send(self, sequence: int, payloads: list[bytes]) -> None:
        assert self.client is not None
        self.client.publish(1, sequence, *payloads)

    def publish(self, *payloads: bytes) -> None:
        """Publish a batch, waiting for room in the window."""
        while len(self.waiting) >= self.WINDOW:
            self.hear()
        self.ready()
        self.waiting[self.next] = list(payloads)
        self._send(self.next, list(payloads))
        self.next += len(payloads)

    def hear(self) -> None:
        """Handle a RECEIPT."""
        frame = self.next_frame()
        if frame is not None and frame.kind == Type.RECEIPT:
            flat = frame.header[Key.RECEIPTS]
            for sequence, offset in zip(flat[::2], flat[1::2], strict=True):
                self.waiting.pop(sequence, None)
                if offset != OFFSET_UNKNOWN:
                    assert self.receipts.setdefault(sequence, offset) == offset

    def finish(self) -> None:
        """Wait for all receipts."""
        while self.waiting:
            self.hear()


class Reading(Lasting):
    """Consumes in order and acknowledges everything."""

    def __init__(self, endpoint: str, topic: str, subscription: str, type: str = "exclusive") -> None:
        super().__init__(endpoint)
        self.topic, self.subscription, self.type = topic, subscription, type
        self.messages: dict[int, bytes] = {}
        self.acknowledged = 0
        self.at = 0  # since the last attachment

    def open(self, client: RawClient) -> Frame:
        return client.open_consumer(1, self.topic, self.subscription, self.type, messages=200)

    def opened(self, answer: Frame) -> None:
        self.at = 0

    def read(self) -> None:
        """Handle a DELIVER."""
        frame = self.next_frame()
        if frame is None or frame.kind != Type.DELIVER:
            return
        assert self.client is not None
        for offset, payload in frame.messages():
            assert self.messages.setdefault(offset, payload) == payload, "one offset, two messages"
            assert offset <= max(self.at, self.acknowledged), (
                f"{offset} came before {max(self.at, self.acknowledged)}"
            )
            self.at = max(self.at, offset + 1)
        first, count = frame.header[Key.OFFSET], frame.header[Key.COUNT]
        self.client.ack(1, (first, first + count), confirm=False)
        self.acknowledged = max(self.acknowledged, first + count)
        self.client.credit(1, count)


# ---- the wire --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_messages_go_from_producer_to_consumers_on_every_worker(
    broker: OwnBroker, client: RawClient, dispatch: str
) -> None:
    """Keys, order and bytes arrive, wherever topic and subscriptions run."""
    for home in range(2):
        topic = new_topic(client, home, dispatch=dispatch)
        consumers = [
            follow(broker.endpoint, lambda c, t=topic, w=worker: c.open_consumer(2, t, name_on(t, w)))[0]
            for worker in range(2)
        ]
        assert len({consumer.endpoint for consumer in consumers}) == 2
        producer, opened = follow(broker.endpoint, lambda c, t=topic: c.open_producer(1, t, 7))
        assert opened.header[Key.STRATEGY] == dispatch
        sent = [os.urandom(number % 50) for number in range(500)]
        for at in range(0, 500, 5):
            producer.publish(1, at, *sent[at : at + 5])
        receipts = producer.receipts(1, 100)
        assert receipts == {at: at for at in range(0, 500, 5)}
        for consumer in consumers:
            assert consumer.deliveries(2, 500) == list(enumerate(sent))
            consumer.ack(2, (0, 500))
        for each in (producer, *consumers):
            each.close()


def test_processes_are_separate_and_named(client: RawClient) -> None:
    """`ps` shows the names of broker, workers and tier."""
    found = {
        node: Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") for node, pid in pids(client).items()
    }
    assert found == {node: f"ister: {node}".encode() for node in ("broker", "worker-0", "worker-1", "tier")}


def test_an_exclusive_subscription_is_free_after_close_and_after_silence(
    broker: OwnBroker, client: RawClient
) -> None:
    """A consumer that closes frees it at once, one that disappears when its session has timed out."""
    topic = new_topic(client)
    first, _ = follow(broker.endpoint, lambda c: c.open_consumer(2, topic, "s"))
    second, refused = follow(broker.endpoint, lambda c: c.open_consumer(2, topic, "s"))
    assert (refused.code, refused.header[Key.ACTION]) == ("subscription-busy", "retry")
    first.close_handle(2)
    assert second.open_consumer(2, topic, "s").kind == Type.OPENED
    second.close()  # without a goodbye
    assert first.open_consumer(2, topic, "s").code == "subscription-busy"

    def opens() -> bool:
        first.say({Key.TYPE: Type.PING})
        return first.open_consumer(2, topic, "s").kind == Type.OPENED

    wait_for(opens)
    first.close()


def test_sessions_are_bounded_and_silence_makes_room(make_broker: MakeBroker) -> None:
    """A worker full of sessions refuses more, and takes them when others have ended."""
    broker = make_broker(
        workers=1, settings={"protocol.sessions_max": 5, "protocol.session_timeout_ms": 2000}
    )
    clients = [RawClient(broker.endpoint) for _ in range(5)]
    late = RawClient(broker.endpoint, hello=False)
    refused = late.hello()
    assert (refused.code, refused.header[Key.ACTION]) == ("limit-exceeded", "retry")
    wait_for(lambda: late.hello().kind == Type.WELCOME)
    for each in (late, *clients):
        each.close()


# ---- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["topic", "subscription", "both"])
def test_a_killed_worker_costs_no_message_and_no_order(
    broker: OwnBroker, client: RawClient, victim: str
) -> None:
    """kill -9 in the middle of a stream: receipts hold, offsets are dense, order has no gap, nothing is missing."""
    topic = new_topic(client, 0)
    name = name_on(topic, 0 if victim == "both" else 1)
    stream, reading = Stream(broker.endpoint, topic), Reading(broker.endpoint, topic, name)
    sent: list[bytes] = []
    for number in range(300):
        payloads = [b"%d.%d " % (number, n) + bytes(number % 300) for n in range(1 + number % 4)]
        sent += payloads
        stream.publish(*payloads)
        if number % 5 == 0:
            reading.read()
        if number in (100, 200):
            node = "worker-1" if victim == "subscription" else "worker-0"
            kill(pids(RawClient(broker.ready["endpoints"][1 if node == "worker-0" else 0]))[node])
    stream.finish()
    until = time.monotonic() + 20
    while len(reading.messages) < len(sent) and time.monotonic() < until:
        reading.read()
    assert [reading.messages.get(offset) for offset in range(len(sent))] == sent
    assert max(stream.reconnects, reading.reconnects) >= 2
    shown = wait_for(lambda: RawClient(broker.endpoint).ask("topic.show", topic=topic).body)
    assert shown
    stream.lost()
    reading.lost()


def test_a_killed_tier_is_started_again_and_uploads_go_on(broker: OwnBroker, client: RawClient) -> None:
    """Sealed segments reach the store byte for byte, and the topic says how far."""
    topic = new_topic(client)
    producer, _ = follow(broker.endpoint, lambda c: c.open_producer(1, topic, 7))
    store = Path(broker.ready["store"].removeprefix("file://"))

    def uploaded_up_to(end: int) -> bool:
        producer.say({Key.TYPE: Type.PING})
        shown = client.request("topic.show", topic=topic)
        return bool(shown["uploaded_end"] == end)

    for life in range(2):
        for number in range(10):
            producer.publish(1, 10 * life + number, os.urandom(150_000))
            producer.receipt(1)
        wait_for(lambda end=10 * life + 10: uploaded_up_to(end))  # type: ignore[misc]
        if life == 0:
            tier = pids(client)["tier"]
            kill(tier)
            wait_for(lambda: pids(client).get("tier", tier) != tier)  # noqa: B023
    folder = next(Path(broker.ready["data"]).glob(f"topics/{topic}.*"))
    segments = [path for path in folder.iterdir() if path.suffix == ".seg" and path.stat().st_nlink > 1]
    objects = {path.stat().st_ino for path in store.rglob("*") if path.is_file()}
    assert len(segments) >= 2
    assert all(path.stat().st_ino in objects for path in segments)
    producer.close()


def test_a_killed_broker_leaves_no_process_and_no_loss(make_broker: MakeBroker, tmp_path: Path) -> None:
    """Its children end with it; the next one, with more or fewer workers, has all messages and cursors."""
    sent: list[bytes] = []
    acknowledged = 0
    for life, workers in enumerate((2, 3, 1)):
        broker = make_broker(tmp_path, workers)
        client = RawClient(broker.endpoint)
        if life == 0:
            client.request("topic.create", topic="orders")
        producer, opened = follow(broker.endpoint, lambda c: c.open_producer(1, "orders", 7))
        assert opened.header[Key.SEQUENCE] == len(sent)
        consumer, opened = follow(
            broker.endpoint, lambda c: c.open_consumer(2, "orders", "s", messages=10_000)
        )
        assert opened.header[Key.OFFSET] == acknowledged
        fresh = [b"%d/%d" % (life, number) for number in range(100)]
        for number, payload in enumerate(fresh, len(sent)):
            producer.publish(1, number, payload)
        producer.receipts(1, 100)
        sent += fresh
        assert consumer.deliveries(2, len(sent) - acknowledged) == list(enumerate(sent))[acknowledged:]
        acknowledged = len(sent) - 30
        consumer.ack(2, (0, acknowledged))
        processes = pids(client)
        for each in (client, producer, consumer):
            each.close()
        kill(processes["broker"])
        wait_for(lambda: not any(map(is_running, processes.values())))  # noqa: B023
    broker = make_broker(tmp_path, 2)
    consumer, _ = follow(broker.endpoint, lambda c: c.open_consumer(2, "orders", "all", messages=10_000))
    assert consumer.deliveries(2, 300) == list(enumerate(sent))
    consumer.close()


def test_a_worker_that_stood_still_keeps_its_clients(broker: OwnBroker, client: RawClient) -> None:
    """After SIGSTOP for longer than the session timeout, clients that sent something keep their sessions."""
    topic = new_topic(client, 1)
    producer, _ = follow(broker.endpoint, lambda c: c.open_producer(1, topic, 7))
    worker = pids(client)["worker-1"]
    os.kill(worker, signal.SIGSTOP)
    try:
        for number in range(4):
            time.sleep(0.7)
            producer.publish(1, number, b"x")
            client.say({Key.TYPE: Type.PING})
    finally:
        os.kill(worker, signal.SIGCONT)
    assert producer.receipts(1, 4) == {n: n for n in range(4)}
    producer.close()
