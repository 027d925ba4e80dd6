"""Tests of the pace of long work."""

from __future__ import annotations

import pytest

from ister.storage.pacing import BURST_S, REST_S_MAX, Pacing, unpaced


class Time:
    """A clock that work and sleep move."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


@pytest.mark.parametrize("percent", [1, 25, 50, 99])
def test_work_takes_its_share_of_a_core(percent: int) -> None:
    """Over many small steps, so much of the time is work."""
    time = Time()
    rest = Pacing(percent, time.monotonic, time.sleep)
    began = time.now_s
    for _ in range(10_000):
        time.now_s += BURST_S / 7
        rest()
    worked = time.now_s - began - time.slept_s
    expected = max(percent / 100, BURST_S / (BURST_S + REST_S_MAX) if percent == 1 else 0)
    assert worked / (time.now_s - began) == pytest.approx(expected, rel=0.2)


def test_all_of_a_core_is_work_without_a_rest() -> None:
    """With 100 percent nothing is slept."""
    time = Time()
    rest = Pacing(100, time.monotonic, time.sleep)
    for _ in range(1000):
        time.now_s += 1
        rest()
        unpaced()
    assert time.slept_s == 0


def test_who_was_interrupted_does_not_rest_for_it() -> None:
    """A step that took a second, because others had the core, is followed by a short rest."""
    time = Time()
    rest = Pacing(10, time.monotonic, time.sleep)
    time.now_s += 1
    rest()
    assert time.slept_s == REST_S_MAX
