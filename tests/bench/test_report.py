"""Tests of the report of a measurement."""

from __future__ import annotations

from array import array

import pytest

from ister.bench.clients import Received, Sent
from ister.bench.load import Load
from ister.bench.report import describe, lines_of, percentile
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
