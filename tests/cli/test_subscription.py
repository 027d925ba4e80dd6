"""Tests of the commands about subscriptions: moving, pausing, options, peeking, explaining."""

from __future__ import annotations

import json
import time

import pytest

import ister as client_library
from ister.ownbroker import OwnBroker
from tests.cli.conftest import Ister

pytestmark = pytest.mark.process


def filled(ister: Ister, topic: str, count: int = 5) -> None:
    """Create a topic with messages 0, 1, ..."""
    lines = b"".join(b"%d\n" % number for number in range(count))
    assert ister("produce", topic, "--create", stdin=lines).returncode == 0


def test_a_subscription_is_moved_while_it_lives(ister: Ister) -> None:
    """To an offset, to the earliest, to a time; the next consumer continues there."""
    filled(ister, "moved")
    assert ister("consume", "moved", "-s", "s", "--start", "earliest").stdout.split() == [
        *b"0 1 2 3 4".split()
    ]
    moved = ister("subscription", "seek", "moved", "s", "--yes", "--to", "3", "--json")
    assert json.loads(moved.stdout)["position"] == 3
    assert ister("consume", "moved", "-s", "s").stdout.split() == [b"3", b"4"]
    assert b"offset 0" in ister("subscription", "seek", "moved", "s", "--yes", "--to", "-1h").stdout
    assert ister("consume", "moved", "-s", "s", "--count", "1").stdout == b"0\n"
    assert b"offset 5" in ister("subscription", "seek", "moved", "s", "--yes", "--to", "latest").stdout
    wrong = ister("subscription", "seek", "moved", "s", "--yes", "--to", "yesterday")
    assert (wrong.returncode, b"yesterday" in wrong.stderr) == (2, True)


def test_a_paused_subscription_says_so_and_goes_on_when_resumed(ister: Ister) -> None:
    """`consume` does not wait for ever for a paused subscription: it says why, and what to do."""
    filled(ister, "still")
    ister("subscription", "create", "still", "s", "--start", "earliest", "--paused")
    waiting = ister("consume", "still", "-s", "s")
    assert (waiting.returncode, waiting.stdout) == (75, b"")
    assert b"(paused)" in waiting.stderr
    assert b"ister subscription resume" in waiting.stderr
    explained = ister("explain", "still", "s")
    assert b"not flowing" in explained.stdout
    assert b"ister subscription resume still s" in explained.stdout
    assert ister("subscription", "resume", "still", "s").returncode == 0
    assert len(ister("consume", "still", "-s", "s").stdout.split()) == 5
    assert b"is paused" in ister("subscription", "pause", "still", "s").stdout


def test_explain_is_for_people_and_for_scripts(ister: Ister) -> None:
    """Reasons in words with their codes, and numbers; with --json the broker's answer."""
    filled(ister, "why", 3)
    ister("subscription", "create", "why", "s", "--start", "earliest")
    told = ister("explain", "why", "s").stdout.decode()
    assert "(no-consumer)" in told
    assert "ister consume why --subscription s" in told
    found = json.loads(ister("explain", "why", "s", "--json").stdout)
    assert found["flowing"] is False
    assert found["numbers"]["subscription"]["unacknowledged"] == 3


def test_what_was_only_fetched_has_not_failed(ister: Ister) -> None:
    """A consumer that takes one message and closes returns the others: `explain` does not call them failed."""
    filled(ister, "fetched", 3)
    ister("consume", "fetched", "-s", "s", "--start", "earliest", "--count", "1")
    told = ister("explain", "fetched", "s").stdout.decode()
    assert "to be delivered now" in told
    assert "failed" not in told


def test_options_of_a_subscription_can_be_changed(ister: Ister) -> None:
    """What was given is set, in the broker's units, and everything else is unchanged."""
    filled(ister, "options", 1)
    ister("subscription", "create", "options", "s", "--max-deliveries", "3", "--type", "key-shared")
    command = ["subscription", "update", "options", "s", "--ack-timeout", "2m", "--backoff-min", "500ms"]
    changed = json.loads(ister(*command, "--poison", "block", "--json").stdout)
    assert changed["settings"] == {
        "max_deliveries": 3,
        "ack_timeout_ms": 120_000,
        "backoff_ms_min": 500,
        "poison": "block",
    }
    assert ister("subscription", "update", "options", "s").returncode == 2
    assert ister("subscription", "show", "options", "s").returncode == 0


def test_a_blocked_subscription_is_unblocked(broker: OwnBroker, ister: Ister) -> None:
    """A poison message that blocks is dropped, and the rest is delivered."""
    filled(ister, "stuck", 2)
    command = ["subscription", "create", "stuck", "s", "--type", "exclusive", "--start", "earliest"]
    ister(*command, "--max-deliveries", "1", "--poison", "block")
    with client_library.connect(broker.endpoint) as client:
        with client.consumer("stuck", "s", type="exclusive", credit_messages=1) as consumer:
            message = consumer.receive(10)
            assert message is not None
            consumer.nack(message, reason="no flour")
            deadline = time.monotonic() + 10
            while not client.subscription("stuck", "s")["blocked"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    blocked = ister("consume", "stuck", "-s", "s", "--type", "exclusive")
    assert (blocked.returncode, b"(blocked)" in blocked.stderr) == (75, True)
    assert b"no flour" in ister("explain", "stuck", "s").stdout
    assert (
        json.loads(ister("subscription", "unblock", "stuck", "s", "drop", "--yes", "--json").stdout)[
            "messages"
        ]
        == 1
    )
    assert ister("consume", "stuck", "-s", "s", "--type", "exclusive").stdout == b"1\n"
    assert b"was not blocked" in ister("subscription", "unblock", "stuck", "s", "retry").stdout


def test_peek_shows_and_takes_nothing(ister: Ister) -> None:
    """The newest messages of a topic, those from an offset on, or the next ones of a subscription."""
    filled(ister, "looked", 20)
    assert ister("peek", "looked", "-n", "3").stdout.split() == [b"17", b"18", b"19"]
    assert ister("peek", "looked", "--start", "5", "-n", "2").stdout.split() == [b"5", b"6"]
    assert len(ister("peek", "looked", "--start", "-1h", "-n", "100").stdout.split()) == 20
    ister("subscription", "create", "looked", "s", "--start", "4")
    for _ in range(2):
        seen = [
            json.loads(line) for line in ister("peek", "looked", "s", "-n", "2", "--json").stdout.splitlines()
        ]
        assert [message["offset"] for message in seen] == [4, 5]
    ister("topic", "create", "kept/not", "--dispatch", "non-reliable")
    assert b"stores nothing" in ister("peek", "kept/not").stderr
    ister("topic", "create", "empty")
    assert ister("peek", "empty").stdout == b""


def test_consume_without_a_subscription_reads_and_acknowledges_nothing(ister: Ister) -> None:
    """Everything in the topic, each time; from an offset or a time; options of subscriptions are refused."""
    filled(ister, "read", 4)
    for _ in range(2):
        assert ister("consume", "read").stdout.split() == [b"0", b"1", b"2", b"3"]
    assert ister("consume", "read", "--start", "2", "--count", "1").stdout == b"2\n"
    assert ister("consume", "read", "--start", "-1h").stdout.split() == [b"0", b"1", b"2", b"3"]
    assert ister("consume", "read", "--start", "latest").stdout == b""
    assert json.loads(ister("subscription", "list", "read", "--json").stdout) == []
    assert ister("consume", "read", "--force").returncode == 2


def test_an_exclusive_subscription_is_taken_with_force(broker: OwnBroker, ister: Ister) -> None:
    """The former consumer is told; what it held is delivered to the new one."""
    filled(ister, "taken", 3)
    with client_library.connect(broker.endpoint) as client:
        consumer = client.consumer("taken", "s", type="exclusive", start="earliest")
        assert consumer.receive_batch(timeout=10) is not None
        busy = ister("consume", "taken", "-s", "s", "--type", "exclusive")
        assert (busy.returncode, b"--force" in busy.stderr) == (75, True)
        assert ister("consume", "taken", "-s", "s", "--force").stdout.split() == [b"0", b"1", b"2"]
        with pytest.raises(client_library.RemoteError, match="took subscription 's' over"):
            consumer.receive_batch(timeout=10)


def test_messages_are_produced_for_later(ister: Ister) -> None:
    """A Shared subscription does not deliver them before their time, and `explain` says so."""
    ister("topic", "create", "later")
    ister("subscription", "create", "later", "s", "--start", "earliest")
    ister("produce", "later", "--delay", "10s", stdin=b"second\n")
    ister("produce", "later", stdin=b"first\n")
    early = ister("consume", "later", "-s", "s")
    assert (early.stdout, b"1 message waits" in early.stderr) == (b"first\n", True)
    assert b"(waiting-for-delay)" in ister("explain", "later", "s").stdout
    assert ister("consume", "later", "-s", "s", "--follow", "--count", "1").stdout == b"second\n"
    ister("produce", "later", "--deliver-at", "+1h", stdin=b"third\n")
    wrong = ister("produce", "later", "--deliver-at", "+1h", "--delay", "1s", stdin=b"x\n")
    assert wrong.returncode == 2
    peeked = ister("peek", "later", "s")
    assert peeked.stdout == b"third\n"


def test_a_topic_has_a_time_to_live(ister: Ister) -> None:
    """Given as text, kept in milliseconds, removed by 0."""
    made = json.loads(ister("topic", "create", "mortal", "--message-ttl", "15m", "--json").stdout)
    assert made["settings"]["message_ttl_ms"] == 900_000
    ister("topic", "update", "mortal", "--message-ttl", "0")
    shown = json.loads(ister("topic", "show", "mortal", "--json").stdout)
    assert not shown["settings"].get("message_ttl_ms")
