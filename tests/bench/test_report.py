"""Tests of the report of a measurement."""

from __future__ import annotations

from array import array

import pytest

from ister.bench.clients import Received, Sent
from ister.bench.load import Load
from ister.bench.report import describe, entry, lines_of, percentile
from ister.bench.run import Measured


@pytest.mark.parametrize(("part", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_percentiles_are_by_nearest_rank(part: float, value: int) -> None:
    """A percentile is a latency that was measured, never a value between two."""
    assert percentile(range(1, 101), part) == value
    assert percentile([7], part) == 7


def measured(load: Load, **changes: object) -> Measured:
    """Return a run of two seconds: produced in the first, received in the second."""
    received = Received(1000, 1_024_000, 1_000_000_000, 2_000_000_000, 0.5, array("q", range(1000, 2000)))
    values: dict[str, object] = {
        "load": load,
        "sent": Sent(1000, 0, 1_000_000_000, 0.25),
        "received": (received,),
        "cpu_seconds": {"producer": 0.25, "consumer-1": 0.5, "worker-0": 1.0},
        "dropped": 0,
        "redelivered": 0,
        "workers": 1,
        "file_system": "ext4",
    }
    return Measured(**(values | changes))  # type: ignore[arg-type]


def test_the_rate_is_from_the_first_send_to_the_last_message() -> None:
    """The end-to-end rate is the lowest; the rates of producer and consumer are beside it."""
    report = describe(measured(Load(messages=1000)))
    assert report["messages_per_second"] == 500
    assert report["megabytes_per_second"] == 0.5
    assert report["produced_per_second"] == 1000
    assert report["consumed_per_second"] == 1000
    assert report["latency_us"]["p50"] == 1.5
    assert report["cpu_seconds"]["worker-0"] == 1.0
    assert report["durability"] == "fsync"


def test_people_read_what_was_measured_and_what_went_wrong() -> None:
    """Drops, redeliveries and a file system that does not sync are never hidden."""
    text = "\n".join(lines_of(describe(measured(Load(messages=1000), dropped=5, file_system="tmpfs"))))
    assert "500 messages/s" in text
    assert "dropped" in text
    assert "tmpfs" in text
    assert "redelivered" not in text


def test_without_stamps_latency_is_said_to_be_missing() -> None:
    """No latency is invented for messages that are too small for a time stamp."""
    received = Received(1000, 0, 1, 2_000_000_000)
    report = describe(measured(Load(messages=1000, message_bytes=0), received=(received,)))
    assert report["latency_us"]["p50"] is None
    assert "not measured" in "\n".join(lines_of(report))


def test_a_paced_run_tells_of_receipts_and_of_a_generator_that_was_late() -> None:
    """Latency from when a message was due is only worth something if the generator kept up, so that is shown."""
    sent = Sent(3, 0, 1_000_000_000, 0.25, array("q", [1000, 2000, 3000]), array("q", [10, 20, 9000]))
    report = describe(measured(Load(messages=3, rate=1000.0), sent=sent))
    assert report["receipt_us"]["p50"] == 2.0
    assert report["late_us"]["max"] == 9.0
    text = "\n".join(lines_of(report))
    assert "receipts     p50 2 us" in text
    assert "sent late" in text


def test_rounds_become_one_entry_of_a_file_of_results() -> None:
    """Each figure has its rounds; CPU time is added up by role, for a message."""
    rounds = [
        measured(Load(messages=1000)),
        measured(Load(messages=1000), cpu_seconds={"worker-0": 1.0, "worker-1": 2.0, "producer": 1.0}),
    ]
    made = entry([rounds[0], rounds[0]])
    assert made["figures"]["messages_per_second"]["rounds"] == [500, 500]
    assert made["figures"]["cpu_worker_us"]["rounds"] == [1000.0, 1000.0]
    assert entry(rounds[1:])["figures"]["cpu_worker_us"]["rounds"] == [3000.0]
    assert made["durability"] == "fsync"
    paced = entry([measured(Load(messages=1000, rate=1000.0))])
    assert paced["group"] == "latency"
    assert paced["figures"]["delivered_p50_us"]["rounds"] == [1.5]
    assert paced["curves"]["delivered"][-1] == [100, 2.0]


def test_two_loads_that_differ_have_two_names() -> None:
    """Files of results are compared by name: what is not the same load must not have the same one."""
    loads = [
        Load(messages=1000),
        Load(messages=1000, rate=1000.0),
        Load(messages=1000, api="batch"),
        Load(messages=1000, message_bytes=100),
        Load(messages=1000, durability="os"),
        Load(messages=1000, strategy="non-reliable"),
        Load(messages=1000, subscriptions=8),
        Load(messages=1000, type="shared"),
        Load(messages=1000, batch_bytes=1024),
        Load(messages=1000, linger_ms=5.0),
    ]
    assert len({entry([measured(load)])["name"] for load in loads}) == len(loads)
