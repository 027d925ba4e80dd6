"""Real brokers on a store that fails: kills, pauses and two owners at once, compared with what producers were told."""

from __future__ import annotations

import os
import signal
import sys
import time
from random import Random

import pytest

import ister
from tests.cloud.conftest import URL, MakeBroker
from tests.cloud.oracle import Publisher, compare, read_broker, read_store, wait_for
from tests.crash.victim import Victim, group_members
from tests.faultproxy import FaultProxy
from tests.gcs.emulator import Emulator

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.timeout(120 + 4 * int(os.environ.get("ISTER_CLOUD_KILLS", "5"))),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the broker's processes in /proc"),
]
KILLS = int(os.environ.get("ISTER_CLOUD_KILLS", "5"))
SEED = int(os.environ.get("ISTER_CLOUD_SEED", "3"))


def create(endpoint: str) -> None:
    """Create a topic whose receipts promise that the store has the message."""
    with ister.connect(endpoint, timeout=30) as client:
        client.create_topic("orders", durability="cloud")


def signal_all(victim: Victim, number: int) -> None:
    """Send a signal to every process of a broker."""
    for pid in group_members(victim.group):
        os.kill(pid, number)


def check(endpoint: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, *publishers: Publisher) -> int:
    """Read everything both ways and compare it with every receipt; return the number of messages."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    stored = read_store(URL, "orders")
    compare(stored, read_broker(endpoint, "orders", len(stored)), *publishers)
    return len(stored)


def test_kills_and_a_failing_store_lose_nothing(
    make_broker: MakeBroker, proxy: FaultProxy, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tier, worker and broker are killed while a tenth of requests fails: every message with a receipt is there."""
    victim, endpoint = make_broker("a")
    create(endpoint)
    publisher = Publisher(endpoint, "orders", "one")
    publisher.start()
    wait_for(lambda: publisher.receipts, 20)
    proxy.probability = 0.1
    random = Random(SEED)
    for number in range(KILLS):
        time.sleep(random.uniform(0.1, 0.8))
        what = ("tier", "worker", "everything")[number % 3]
        if what == "everything":
            victim.kill_all()
            victim.gone()
            victim.start(2)
        else:
            victim.kill("tier" if what == "tier" else f"worker-{random.randrange(2)}")
        known = len(publisher.receipts)
        wait_for(lambda: len(publisher.receipts) > known, 40)  # noqa: B023
    proxy.probability = 0.0
    publisher.end()
    time.sleep(1.5)
    assert check(endpoint, emulator, monkeypatch, publisher) >= len(publisher.receipts) > 20 * KILLS
    assert sum(proxy.done.values()) > 5


def test_a_broker_that_was_stopped_past_a_takeover_spoils_nothing(
    make_broker: MakeBroker, proxy: FaultProxy, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first broker is stopped, another takes its topic, the first continues: it refuses, also after a restart."""
    first, endpoint = make_broker("a")
    create(endpoint)
    one = Publisher(endpoint, "orders", "one")
    one.start()
    wait_for(lambda: len(one.receipts) > 60, 20)
    proxy.probability = 0.05
    signal_all(first, signal.SIGSTOP)
    _, other = make_broker("b")
    two = Publisher(other, "orders", "two")
    two.start()
    wait_for(lambda: len(two.receipts) > 60, 30)
    signal_all(first, signal.SIGCONT)
    wait_for(lambda: "fenced" in one.errors, 30)
    known = len(two.receipts)
    wait_for(lambda: len(two.receipts) > known + 40, 20)
    first.kill_all()
    first.gone()
    first.start(2)
    kept, before = len(one.receipts), len(one.errors)
    wait_for(lambda: "fenced" in one.errors[before:], 30)
    assert len(one.receipts) == kept
    known = len(two.receipts)
    wait_for(lambda: len(two.receipts) > known + 40, 20)
    proxy.probability = 0.0
    one.end()
    two.end()
    time.sleep(1.5)
    assert check(other, emulator, monkeypatch, one, two) > 150
