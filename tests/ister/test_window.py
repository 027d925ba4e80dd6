"""Tests of a producer's window: the usual one for everybody, a larger one as far as it is good for something."""

from __future__ import annotations

import pytest

from ister.window import Window
from ister.wire import Limits

MIB = 1 << 20
LIMITS = Limits(batches_in_flight_max=128, producer_window_bytes=8 * MIB)


def run(window: Window, rate: float, seconds: float, *, pressed: bool = True, start: float = 0.0) -> None:
    """Let receipts arrive at that rate in bytes a second."""
    for number in range(int(seconds * 100) + 1):
        window.pressed = pressed
        window.answered(int(rate / 100), start + number / 100)


def test_what_is_granted_as_usual_is_used_whole() -> None:
    """Whatever the rate of the receipts."""
    window = Window(None)
    assert not window.bytes
    window.grant(8 * MIB, LIMITS)
    run(window, 1000, 3)
    assert (window.bytes, window.batches) == (8 * MIB, 128)


@pytest.mark.requirement("8.2-3")
def test_a_larger_window_begins_as_the_usual_one_and_grows_with_the_rate() -> None:
    """As far as it is answered within a second, in bytes and in batches."""
    window = Window(None)
    window.grant(64 * MIB, LIMITS)
    assert (window.bytes, window.batches) == (8 * MIB, 128)
    run(window, 200 * MIB, 1)
    assert (window.bytes, window.batches) == (64 * MIB, 1024)


@pytest.mark.requirement("8.2-4")
def test_a_slow_store_gets_no_larger_window() -> None:
    """Messages would only wait longer."""
    window = Window(None)
    window.grant(64 * MIB, LIMITS)
    run(window, 5 * MIB, 3)
    assert window.bytes == 8 * MIB
    run(window, 20 * MIB, 3, start=10)
    assert 19 * MIB < window.bytes < 22 * MIB


def test_a_window_shrinks_step_by_step_when_the_store_slows_down() -> None:
    """One slow moment halves it at most, several make it the usual one again."""
    window = Window(None)
    window.grant(64 * MIB, LIMITS)
    run(window, 200 * MIB, 1)
    at = 1.0
    while window.bytes == 64 * MIB:
        at += 0.01
        run(window, MIB, 0, start=at)
    assert window.bytes == 32 * MIB
    run(window, MIB, 2, start=at)
    assert (window.bytes, window.batches) == (8 * MIB, 128)


def test_a_producer_that_never_waits_for_room_keeps_its_window() -> None:
    """Its rate is its program's, and says nothing about the store."""
    window = Window(None)
    window.grant(64 * MIB, LIMITS)
    run(window, 200 * MIB, 1)
    run(window, 1000, 5, pressed=False, start=10)
    assert window.bytes == 64 * MIB


@pytest.mark.parametrize(
    ("own", "most"), [(1000, 1000), (8 * MIB, 8 * MIB), (16 * MIB, 16 * MIB), (1 << 40, 64 * MIB)]
)
def test_the_programs_own_bound_always_holds(own: int, most: int) -> None:
    """However fast the store is."""
    window = Window(own)
    window.grant(64 * MIB, LIMITS)
    run(window, 500 * MIB, 2)
    assert window.bytes == most


def test_what_is_granted_again_after_a_reconnect_keeps_what_was_found() -> None:
    """The same grant changes nothing, a smaller one holds at once."""
    window = Window(None)
    window.grant(64 * MIB, LIMITS)
    run(window, 200 * MIB, 1)
    window.grant(64 * MIB, LIMITS)
    assert window.bytes == 64 * MIB
    window.grant(8 * MIB, LIMITS)
    assert (window.bytes, window.batches) == (8 * MIB, 128)
