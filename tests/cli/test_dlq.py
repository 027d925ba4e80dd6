"""Tests of `ister dlq`."""

from __future__ import annotations

import json
import time

import pytest

import ister as client_library
from ister.ownbroker import OwnBroker
from tests.cli.conftest import Ister

pytestmark = pytest.mark.process


def dead(broker: OwnBroker, topic: str, count: int) -> None:
    """Let subscription `billing` of a topic give up `count` messages."""
    with client_library.connect(broker.endpoint) as client:
        client.create_topic(topic)
        client.create_subscription(topic, "billing", type="shared", start="earliest", max_deliveries=1)
        with client.producer(topic) as producer:
            producer.send_batch([b"m%d" % number for number in range(count)]).result(5)
        with client.consumer(topic, "billing", type="shared") as consumer:
            for _ in range(count):
                message = consumer.receive(10)
                assert message is not None
                consumer.nack(message, reason="no flour")
        letters = client.dead_letters(topic, "billing")
        deadline = time.monotonic() + 10
        while letters.count() < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_dead_letters_are_listed_shown_and_redriven(broker: OwnBroker, ister: Ister) -> None:
    """A table for people and JSON for scripts; redriven letters are in their topic again."""
    dead(broker, "dlq/shown", 3)
    table = ister("dlq", "list", "dlq/shown", "billing")
    assert table.returncode == 0, table.stderr
    assert table.stdout.count(b"no flour") == 3
    listed = json.loads(ister("dlq", "list", "dlq/shown", "billing", "--limit", "2", "--json").stdout)
    rest_of_it = json.loads(ister("dlq", "list", "dlq/shown", "billing", "--after", "1", "--json").stdout)
    assert [letter["offset"] for letter in rest_of_it] == [2]
    assert [(letter["offset"], letter["payload"]) for letter in listed] == [(0, "m0"), (1, "m1")]
    shown = ister("dlq", "show", "dlq/shown", "billing", "1")
    assert b"no flour" in shown.stdout
    assert shown.stdout.endswith(b"m1\n")
    assert json.loads(ister("dlq", "show", "dlq/shown", "billing", "1", "--json").stdout)["attempts"] == 1
    one = ister("dlq", "redrive", "dlq/shown", "billing", "--offset", "1", "--json")
    assert json.loads(one.stdout) == {"redriven": 1, "to": "dlq/shown"}
    rest = ister("dlq", "redrive", "dlq/shown", "billing")
    assert b"2 dead letters" in rest.stdout
    again = ister("consume", "dlq/shown", "-s", "audit", "--start", "earliest")
    assert again.stdout.split() == [b"m0", b"m1", b"m2", b"m1", b"m0", b"m2"]
    assert b"no dead letters" in ister("dlq", "list", "dlq/shown", "billing").stdout


def test_an_offset_that_is_not_there_is_a_failure(broker: OwnBroker, ister: Ister) -> None:
    """A script that names an unknown letter gets an error."""
    dead(broker, "dlq/missing", 1)
    done = ister("dlq", "redrive", "dlq/missing", "billing", "--offset", "7", "--offset", "0")
    assert (done.returncode, b"1 of the offsets" in done.stderr) == (1, True)
    assert b"no letter" in ister("dlq", "show", "dlq/missing", "billing", "7").stderr


@pytest.mark.parametrize(
    "command",
    [
        "topic delete consent",
        "topic repair consent --skip-damaged",
        "topic forget consent",
        "topic takeover consent",
        "subscription delete consent s",
        "subscription seek consent s --to latest",
        "subscription unblock consent s drop",
        "dlq purge consent s",
    ],
)
def test_what_is_not_easily_undone_wants_consent(command: str, ister: Ister) -> None:
    """All such commands: without a terminal they need --yes, and send nothing without it."""
    refused = ister(*command.split())
    assert (refused.returncode, b"consent" in refused.stderr, b"--yes" in refused.stderr) == (2, True, True)


def test_a_purge_wants_consent(broker: OwnBroker, ister: Ister) -> None:
    """Without a terminal it needs --yes."""
    dead(broker, "dlq/purged", 2)
    refused = ister("dlq", "purge", "dlq/purged", "billing")
    assert (refused.returncode, b"--yes" in refused.stderr) == (2, True)
    purged = ister("dlq", "purge", "dlq/purged", "billing", "--yes", "--json")
    assert json.loads(purged.stdout) == {"purged": 2}
