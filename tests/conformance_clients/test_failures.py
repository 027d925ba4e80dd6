"""Scenarios of failures, for the clients of all languages: workers, brokers, connections, stopped processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import ister
from ister.ownbroker import OwnBroker, free_ports
from tests.conformance_clients.conftest import SETTINGS, Play, long
from tests.conformance_clients.cut import Proxy
from tests.conformance_clients.drivers import AnsweredError
from tests.conformance_clients.player import ANSWER_MS, Player, payloads_of
from tests.crash.victim import Victim

pytestmark = pytest.mark.process

PATIENCE_MS = 40_000  # for a worker or broker that restarts on a busy machine


def at(victim: Victim) -> str:
    """Return the endpoint of a broker's first worker."""
    return f"tcp://127.0.0.1:{victim.port}"


def kill_the_worker(victim: Victim) -> None:
    """Kill the worker; the broker restarts it."""
    assert victim.kill("worker-0")


def restart_the_broker(victim: Victim) -> None:
    """Stop the broker in order, and start it again on the same port."""
    assert victim.stop() == 0
    victim.start(1)


def kill_everything(victim: Victim) -> None:
    """Kill every process of the broker at once, and start it again."""
    victim.kill_all()
    assert victim.gone() == {}
    victim.start(1)


def stop_the_worker(victim: Victim) -> None:
    """Have it stand still for longer than three heartbeats and a session's time, and go on."""
    assert victim.kill("worker-0", signal.SIGSTOP)
    time.sleep(3)
    victim.kill("worker-0", signal.SIGCONT)


BREAKS = [kill_the_worker, restart_the_broker, kill_everything, stop_the_worker]
Break = Callable[[Victim], None]


def numbers(first: int, end: int) -> list[bytes]:
    """Return numbered payloads with tails of different lengths."""
    return [b"%d " % number + bytes([number % 251]) * (number % 97) for number in range(first, end)]


def check_stored_once(player: Player, topic: str, sent: list[bytes]) -> None:
    """Check that a new consumer gets everything that was sent, in order, once."""
    consumer = player.consumer(topic, "check", "exclusive", timeout_ms=PATIENCE_MS)
    assert payloads_of(player.receive(consumer, len(sent), timeout_ms=PATIENCE_MS)) == sent
    assert player.nothing(consumer)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", BREAKS)
def test_what_has_no_receipt_is_sent_again_and_stored_once(
    player: Player, victim: Victim, topic: str, what: Break
) -> None:
    """Every receipt comes, also for what was in transit; each message is stored once, and in order."""
    player.need("reconnect", "pipeline")
    player.connect(at(victim))
    player.topic(topic)
    producer = player.producer(topic)
    sent = numbers(0, 300)
    receipts = player.publish_all(producer, sent[:100])
    flying = [
        player.driver.send(
            "publish",
            producer=producer,
            receipt=f"f{n}",
            message={"payload": payload.hex()},
            timeout_ms=PATIENCE_MS,
        )
        for n, payload in enumerate(sent[100:200])
    ]
    what(victim)
    for number in flying:
        player.driver.answer(number)
    receipts += [f"f{n}" for n in range(100)]
    receipts += player.publish_all(producer, sent[200:])
    offsets = [player.receipt(name, timeout_ms=PATIENCE_MS)["offset"] for name in receipts]
    assert offsets == list(range(300))
    check_stored_once(player, topic, sent)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", BREAKS)
def test_a_consumer_goes_on_and_forgets_nothing(
    player: Player, victim: Victim, topic: str, what: Break
) -> None:
    """Confirmed acknowledgments hold, everything else comes again, and acknowledgments work as before."""
    player.need("reconnect", "confirm")
    player.connect(at(victim))
    player.topic(topic)
    sent = numbers(0, 60)
    player.stored(topic, *sent)
    consumer = player.consumer(topic, "all", "exclusive")
    came = player.receive(consumer, 30)
    player.ack(consumer, *came[:20])
    player.flush(consumer)
    what(victim)
    more = [b"late 1", b"late 2"]
    producer = player.producer(topic, timeout_ms=PATIENCE_MS)
    for payload in more:
        player.receipt(player.publish(producer, payload, timeout_ms=PATIENCE_MS), timeout_ms=PATIENCE_MS)
    left = {*sent[20:], *more}
    seen: list[bytes] = []
    until = time.monotonic() + 60
    while left - set(seen) and time.monotonic() < until:
        try:
            for message in player.receive(consumer, timeout_ms=1_000):
                seen += payloads_of([message])
                player.ack(consumer, message)
        except AnsweredError as error:  # a client may report that acknowledgments were lost
            if error.action != "retry":
                raise
    assert not left - set(seen), f"never came: {sorted(left - set(seen))[:5]}"
    assert not set(seen) & set(sent[:20]), "confirmed, and came again"


@pytest.mark.parametrize("by", ["proxy", "drop"])
def test_a_connection_that_is_cut_is_made_again(play: Play, victim: Victim, topic: str, by: str) -> None:
    """The session is resumed: nothing is lost or stored twice, and an Exclusive subscription keeps its consumer."""
    player, other = play(), play()
    player.need("reconnect", "pipeline", "confirm", *(["drop"] if by == "drop" else []))
    with Proxy(victim.port) as proxy:
        player.connect(proxy.endpoint)
        other.connect(at(victim))
        player.topic(topic)
        producer = player.producer(topic)
        consumer = player.consumer(topic, "only", "exclusive")
        sent = numbers(0, 150)
        seen: list[bytes] = []
        for turn in range(3):
            receipts = player.publish_all(producer, sent[50 * turn : 50 * turn + 50])
            if by == "proxy":
                proxy.cut()
            else:
                player.driver.ask("drop", client="c")
            refused = other.refused(lambda: other.consumer(topic, "only", "exclusive", timeout_ms=None))
            assert refused.code == "subscription-busy"
            offsets = [player.receipt(name, timeout_ms=PATIENCE_MS)["offset"] for name in receipts]
            assert offsets == list(range(50 * turn, 50 * turn + 50))
            while len(set(seen)) < 50 * turn + 50:
                came = player.receive(consumer)
                assert came, f"after {len(set(seen))} messages"
                seen += payloads_of(came)
                player.ack(consumer, *came)
        assert list(dict.fromkeys(seen)) == sent
        player.flush(consumer)
        assert proxy.accepted >= 4
    check_stored_once(other, topic, sent)


@pytest.mark.timeout(120)
def test_a_reader_goes_on_where_it_was(player: Player, victim: Victim, topic: str) -> None:
    """Although its worker is killed, it returns every message once, in order."""
    player.need("reconnect", "reader")
    player.connect(at(victim))
    player.topic(topic)
    sent = numbers(0, 40)
    player.stored(topic, *sent[:30])
    reader = player.reader(topic)
    came = payloads_of(player.receive(reader, 20))
    kill_the_worker(victim)
    producer = player.producer(topic, timeout_ms=PATIENCE_MS)
    for payload in sent[30:]:
        player.receipt(player.publish(producer, payload, timeout_ms=PATIENCE_MS), timeout_ms=PATIENCE_MS)
    came += payloads_of(player.receive(reader, 20, timeout_ms=PATIENCE_MS))
    assert came == sent


@pytest.mark.timeout(120)
def test_a_program_is_told_that_its_broker_comes_and_goes(player: Player, victim: Victim) -> None:
    """`connected`, `lost`, `connected`, in that order."""
    player.need("reconnect", "events", "admin")
    player.connect(at(victim))
    restart_the_broker(victim)
    until = time.monotonic() + 60
    told: list[str] = []
    while told[:1] + told[-1:] != ["connected", "connected"] or "lost" not in told:
        assert time.monotonic() < until, told
        told += [event["code"] for event in player.events(client="c")]
        time.sleep(0.05)
    assert all(one != two for one, two in pairwise(told)), told
    asked = {"client": "c", "operation": "status", "arguments": {}, "timeout_ms": PATIENCE_MS}
    assert player.driver.ask("admin", **asked)["result"]["processes"]


def test_what_lives_elsewhere_is_gone_to(player: Player, broker: OwnBroker, topic: str) -> None:
    """Topics and subscriptions of both workers are reached through either: MOVED says where."""
    player.need("moved")
    with ister.connect(broker.endpoint) as client:
        places = {
            name: client.create_topic(name)["endpoint"] for name in (f"{topic[:100]}-{n}" for n in range(12))
        }
    assert len(set(places.values())) == 2, "all topics are at one worker"
    player.connect(broker.endpoint)
    for name in places:
        assert player.stored(name, name.encode()) == [0]
        for each in ("exclusive", "shared"):
            assert payloads_of(player.receive(player.consumer(name, each, each))) == [name.encode()]


@pytest.mark.timeout(120)
def test_what_lives_elsewhere_is_found_again(player: Player, tmp_path: Path, topic: str) -> None:
    """A worker that a client was sent to is killed: producer and consumer continue when it is back."""
    player.need("moved", "reconnect")
    victim = Victim(tmp_path / "data", tmp_path / "log", free_ports(2), SETTINGS)
    try:
        victim.start(2)
        with ister.connect(at(victim)) as client:
            names = (f"{topic[:100]}-{n}" for n in range(50))
            name = next(each for each in names if client.create_topic(each)["endpoint"] != at(victim))
        player.connect(at(victim))
        producer, consumer = player.producer(name), player.consumer(name, "all", "exclusive")
        sent = numbers(0, 20)
        receipts = [player.publish(producer, payload) for payload in sent[:10]]
        assert victim.kill("worker-1")
        receipts += [player.publish(producer, payload, timeout_ms=PATIENCE_MS) for payload in sent[10:]]
        offsets = [player.receipt(each, timeout_ms=PATIENCE_MS)["offset"] for each in receipts]
        assert offsets == list(range(20))
        came = player.receive(consumer, 20, timeout_ms=PATIENCE_MS)
        assert list(dict.fromkeys(payloads_of(came))) == sent
    finally:
        victim.end()


def test_an_idle_client_keeps_its_session(play: Play, broker: OwnBroker, topic: str) -> None:
    """For twice the session timeout it sends only heartbeats, and keeps what it holds."""
    player, other = play(), play()
    player.need("heartbeat")
    for each in (player, other):
        each.connect(broker.endpoint)
    player.topic(topic)
    consumer = player.consumer(topic, "only", "exclusive")
    player.stored(topic, b"held")
    [message] = player.receive(consumer)
    time.sleep(4.5)
    refused = other.refused(lambda: other.consumer(topic, "only", "exclusive", timeout_ms=None))
    assert refused.code == "subscription-busy"
    player.ack(consumer, message)
    assert player.nothing(consumer)


@long
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_broker_that_stands_still_for_twenty_seconds_comes_back(
    player: Player, tmp_path: Path, topic: str
) -> None:
    """With the default heartbeat: longer than three of them, and than the session timeout."""
    player.need("reconnect", "heartbeat", "pipeline")
    victim = Victim(tmp_path / "data", tmp_path / "log", free_ports(1), {})
    try:
        victim.start(1)
        player.connect(at(victim))
        player.topic(topic)
        producer, consumer = player.producer(topic), player.consumer(topic, "all", "exclusive")
        sent = numbers(0, 100)
        receipts = player.publish_all(producer, sent[:50])
        for name in victim.processes():
            victim.kill(name, signal.SIGSTOP)
        receipts += player.publish_all(producer, sent[50:])
        refused = player.refused(lambda: player.receipt(receipts[-1], timeout_ms=20_000))
        assert refused.code == "timeout"
        for name in victim.processes():
            victim.kill(name, signal.SIGCONT)
        offsets = [player.receipt(name, timeout_ms=2 * PATIENCE_MS)["offset"] for name in receipts]
        assert offsets == list(range(100))
        came: list[bytes] = []
        while len(set(came)) < 100:
            found = payloads_of(player.receive(consumer, timeout_ms=ANSWER_MS))
            assert found
            came += found
        assert list(dict.fromkeys(came)) == sent
    finally:
        victim.end()
