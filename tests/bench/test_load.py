"""Tests of the parameters of a measurement."""

from __future__ import annotations

import pytest

from ister.bench.load import Load, messages_by_default
from ister.errors import UsageError


def test_one_message_a_batch_is_stamped_and_with_a_rate_every_one() -> None:
    """Stamps must not become the load when throughput is measured, and every message has one when latency is."""
    assert Load(message_bytes=1024, batch_bytes=65536).stamp_every == 64
    assert Load(message_bytes=1024, rate=1000.0).stamp_every == 1
    assert Load(message_bytes=100_000).stamp_every == 1


def test_messages_too_small_for_a_stamp_are_measured_without_latency() -> None:
    """The throughput of empty messages can be measured; their latency cannot, and asking for it is refused."""
    assert Load(message_bytes=0).stamp_every == 0
    with pytest.raises(UsageError):
        Load(message_bytes=7, rate=10.0)


def test_a_run_of_default_length_is_neither_too_short_nor_too_long() -> None:
    """The number of messages follows from their size, within bounds."""
    assert messages_by_default(1024, None) == 195_312
    assert messages_by_default(1, None) == 2_000_000
    assert messages_by_default(4 << 20, None) == 20_000
    assert messages_by_default(1024, 2000.0) == 10_000
