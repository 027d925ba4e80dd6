"""Tests of the pace of long work."""

from __future__ import annotations

import pytest

from ister.storage.pacing import (
    AFTER_DELETION_S,
    AFTER_DELETION_S_MAX,
    BURST_S,
    SLOWEST,
    WORKED_S_MAX,
    Pacing,
    rest_after_deletion,
    unpaced,
)


class Time:
    """A clock that work and sleep move, and a machine on which others may want the core."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s = 0.0
        self.interrupted = 0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds

    def interruptions(self) -> int:
        return self.interrupted

    def share(self, rest: Pacing, bursts: int, *, busy: bool = False) -> float:
        """Return which part of the time was work."""
        began, slept_s = self.now_s, self.slept_s
        for _ in range(bursts):
            for _ in range(7):
                self.now_s += BURST_S / 6.9
                self.interrupted += busy
                rest()
        took_s = self.now_s - began
        return (took_s - self.slept_s + slept_s) / took_s


@pytest.mark.parametrize("percent", [1, 25, 50, 99])
def test_work_takes_its_share_of_a_core(percent: int) -> None:
    """Over many small steps, so much of the time is work."""
    time = Time()
    rest = Pacing(percent, time.monotonic, time.sleep)
    assert time.share(rest, 1000) == pytest.approx(percent / 100, rel=0.05)


def test_all_of_a_core_is_work_without_a_rest() -> None:
    """With 100 percent nothing is slept, whoever interrupts it."""
    time = Time()
    rest = Pacing(100, time.monotonic, time.sleep, time.interruptions)
    time.share(rest, 1000, busy=True)
    unpaced()
    assert time.slept_s == 0


@pytest.mark.parametrize("percent", [1, 25, 99])
def test_work_that_is_interrupted_gives_way(percent: int) -> None:
    """While others need the core in every burst, a tenth of its share is left, with which it ends some time."""
    time = Time()
    rest = Pacing(percent, time.monotonic, time.sleep, time.interruptions)
    time.share(rest, 10, busy=True)
    assert time.share(rest, 1000, busy=True) == pytest.approx(SLOWEST * percent / 100, rel=0.05)


def test_work_has_its_share_again_when_nobody_interrupts_it() -> None:
    """It comes back in steps, within some tens of bursts."""
    time = Time()
    rest = Pacing(25, time.monotonic, time.sleep, time.interruptions)
    time.share(rest, 10, busy=True)
    shares = [time.share(rest, 5) for _ in range(8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == pytest.approx(0.25, rel=0.05)


def test_now_and_then_an_interruption_costs_little() -> None:
    """A machine that is hardly used interrupts a burst in a hundred."""
    time = Time()
    rest = Pacing(25, time.monotonic, time.sleep, time.interruptions)
    began, slept_s = time.now_s, time.slept_s
    for _ in range(20):
        time.share(rest, 1, busy=True)
        time.share(rest, 99)
    worked = 1 - (time.slept_s - slept_s) / (time.now_s - began)
    assert worked > 0.2


def test_who_was_interrupted_does_not_rest_for_it() -> None:
    """A step that took a second, because others had the core, is followed by a short rest."""
    time = Time()
    rest = Pacing(10, time.monotonic, time.sleep)
    time.now_s += 1
    rest()
    assert time.slept_s == pytest.approx(9 * WORKED_S_MAX)


def test_a_deletion_that_took_long_is_followed_by_a_longer_rest() -> None:
    """The disk is left to others for several times as long, between five milliseconds and a tenth of a second."""
    assert rest_after_deletion(0.0001) == AFTER_DELETION_S
    assert rest_after_deletion(0.01) == pytest.approx(0.04)
    assert rest_after_deletion(10) == AFTER_DELETION_S_MAX
