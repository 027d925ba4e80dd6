"""Tests of when a connection's background thread leaves the socket to the program's threads."""

from __future__ import annotations

import pytest

from ister.attendance import BUSY, RECALL_S_MAX, TICK_S, TOUCHES_MAX, Attendance


class Program:
    """A program that moves frames at a rate, and the background thread that looks now and then."""

    def __init__(self, look_s: float = TICK_S) -> None:
        self.attendance = Attendance()
        self.now_s = 1000.0
        self.processor_s = 50.0
        self.look_s = look_s

    def run(self, seconds: float, *, rate: float, busy: float, waits: bool = False) -> bool:
        """Run for so long; return whether the thread leaves the socket to others at the end."""
        away, touches = False, 0.0
        for _ in range(round(seconds / self.look_s)):
            self.now_s += self.look_s
            self.processor_s += busy * self.look_s
            touches += rate * self.look_s
            moved, touches = int(touches), touches - int(touches)
            away = self.attendance.leaves(moved, waits, self.now_s, self.processor_s)
        return away


@pytest.mark.parametrize("look_s", [TICK_S / 20, TICK_S])
@pytest.mark.parametrize("rate", [300, 1000, 5000])
def test_a_program_that_sends_and_rests_hears_of_its_receipts_at_once(rate: float, look_s: float) -> None:
    """However often it sends: it has time to spare, and would hear of them with its next message only."""
    program = Program(look_s)
    assert not program.run(1, rate=rate, busy=0.3)


@pytest.mark.parametrize("look_s", [TICK_S / 20, TICK_S])
def test_a_program_that_sends_all_the_time_is_left_alone(look_s: float) -> None:
    """It takes in what arrives with each batch that it sends, and a thread that wakes would hold it up."""
    program = Program(look_s)
    assert program.run(1, rate=1000, busy=0.95)


def test_a_program_that_waits_for_frames_itself_is_left_alone() -> None:
    """Its waiting thread moves them, however little else it does; when it has what it waited for that ends."""
    program = Program()
    assert program.run(TICK_S, rate=0, busy=0.1, waits=True)
    assert not program.run(TICK_S, rate=1000, busy=0.1)


def test_a_program_that_hardly_moves_frames_needs_the_thread() -> None:
    """It may be busy with something else all the time."""
    program = Program()
    assert not program.run(1, rate=TOUCHES_MAX / TICK_S / 2, busy=0.99)


def test_the_thread_comes_back_when_the_program_rests() -> None:
    """What counts is the last tick, not how it was before."""
    program = Program()
    assert program.run(1, rate=1000, busy=0.95)
    assert not program.run(4 * TICK_S, rate=1000, busy=0.3)
    assert program.run(4 * TICK_S, rate=1000, busy=0.95)
    assert not program.run(4 * TICK_S, rate=0, busy=0.0)


def test_a_short_burst_decides_nothing() -> None:
    """Within less than a tick the thread stays as it was."""
    program = Program(TICK_S / 100)
    assert not program.run(1, rate=100, busy=0.1)
    assert not program.run(TICK_S / 2, rate=10_000, busy=1.0)


def test_half_of_a_core_is_busy() -> None:
    """The limit is where a waking thread would more often wait for the interpreter than not."""
    assert not Program().run(1, rate=1000, busy=BUSY - 0.05)
    assert Program().run(1, rate=1000, busy=BUSY + 0.05)


def test_who_sends_and_does_not_wait_calls_the_thread_back() -> None:
    """It left for a thread that waited, and that has gone: a receipt is noticed when it comes."""
    program = Program()
    assert program.run(TICK_S, rate=0, busy=0.1, waits=True)
    for _ in range(100):
        assert program.attendance.recall(program.now_s)
        assert not program.attendance.recall(program.now_s)  # it is on its way
        assert not program.run(TICK_S, rate=1000, busy=0.1)


def test_calls_back_that_are_of_no_use_become_rare() -> None:
    """A program that waits for each receipt is disturbed five times a second, and helped again as soon as it rests."""
    program = Program(TICK_S / 10)
    recalls = 0
    for _ in range(1000):
        recalls += program.attendance.recall(program.now_s)
        assert program.run(TICK_S / 10, rate=2000, busy=0.4, waits=True)
    assert 4 <= recalls <= 10
    program.now_s += RECALL_S_MAX
    assert program.attendance.recall(program.now_s)
    assert not program.run(TICK_S / 10, rate=1000, busy=0.1)
    assert program.attendance.recall(program.now_s)
