"""Tests of how many messages a consumer prefetches, for programs of any speed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.pace import AT_ONCE_MAX, GROWTH, HOLD_S, START_ALONE, START_SHARED, Pace

MOST = 65_536


class Program:
    """A program that takes `at_once` messages at a time, and a broker that always has more."""

    def __init__(self, pace: Pace, *, message_s: float, batch_s: float = 0.0, at_once: int = 1) -> None:
        self.pace = pace
        self.message_s, self.batch_s, self.at_once = message_s, batch_s, at_once
        self.now = 1000.0
        self.handed = 0

    def work(self, *, times: int = 0, seconds: float = 0.0) -> None:
        """Take so many times, or for so long."""
        until = self.now + seconds
        while times > 0 or self.now < until:
            times -= 1
            self.pace.asked(self.now)
            count = min(self.at_once, self.pace.window)
            self.pace.handed(count, self.now - 1.0, self.now, together=self.at_once > 1)
            self.handed += count
            self.now += self.batch_s + count * self.message_s
        self.pace.asked(self.now)


@pytest.mark.parametrize("message_s", [0.001, 0.02, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("start", [START_SHARED, START_ALONE])
def test_a_program_has_half_a_second_of_work_ready(message_s: float, start: int) -> None:
    """Or one message, if that takes longer."""
    program = Program(Pace(start, MOST), message_s=message_s)
    program.work(seconds=max(5.0, 3 * message_s))
    assert program.pace.window == pytest.approx(max(1, HOLD_S / message_s), rel=0.1, abs=1)


def test_a_fast_program_has_all_it_may_within_a_few_rounds() -> None:
    """It waits for the broker a few times, and then no more."""
    program = Program(Pace(START_SHARED, MOST), message_s=1e-6)
    rounds = 0
    while program.pace.window < MOST:
        program.work(times=program.pace.window)
        rounds += 1
    assert rounds <= 8


def test_a_program_that_becomes_slow_is_given_less_after_half_a_second() -> None:
    """Not only when it has processed what it prefetched while it was fast."""
    program = Program(Pace(START_SHARED, MOST), message_s=1e-6)
    program.work(times=300_000)
    assert program.pace.window == MOST
    program.message_s = 0.1
    program.work(seconds=1.2)
    assert program.pace.window <= 5


def test_waiting_for_messages_is_no_work() -> None:
    """A program that gets a message per second, and processes it in a millisecond, could take a thousand."""
    pace, now = Pace(START_SHARED, MOST), 100.0
    for _ in range(2000):
        pace.asked(now)
        now += 1.0  # until a message comes
        pace.handed(1, now, now)
        now += 0.001
    assert pace.window == pytest.approx(500, rel=0.1)


def test_waiting_for_its_turn_is_work() -> None:
    """A topic that takes turns with nine others gets a tenth of the program's pace."""
    pace, now = Pace(START_SHARED, MOST), 100.0
    for _ in range(500):
        pace.handed(1, now - 1.0, now)
        now += 0.01
        pace.asked(now)
        now += 0.09  # the nine other topics
    assert pace.window == pytest.approx(5, abs=1)


def test_who_pays_for_a_batch_and_not_for_a_message_keeps_large_batches() -> None:
    """The window does not shrink with every slow batch down to one message at a time."""
    program = Program(Pace(START_SHARED, MOST), message_s=1e-5, batch_s=1.0, at_once=MOST)
    program.work(seconds=200)
    assert program.handed / 200 > 500


def test_a_slow_program_that_takes_batches_holds_no_more_for_it() -> None:
    """If every message costs the same, a batch is what the program processes in half a second."""
    program = Program(Pace(START_SHARED, MOST), message_s=0.02, at_once=MOST)
    program.work(seconds=20)
    assert program.pace.window == pytest.approx(25, abs=2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("at_once", [None, 1, 5, 20, MOST])
def test_messages_that_are_not_equally_much_work_are_held_as_their_average_says(
    seed: int, at_once: int | None
) -> None:
    """A pace that varies by itself does not mean that larger batches pay off; None: with an iterator."""
    random, now = Random(seed), 1000.0
    pace, windows = Pace(START_SHARED, MOST), []
    while now < 1200.0:
        pace.asked(now)
        windows.append(pace.window)
        count = min(pace.window, pace.at_once if at_once is None else at_once)
        pace.handed(count, now - 1.0, now, together=at_once is not None)
        now += sum(random.choice([0.001, 0.005, 0.02, 0.1]) for _ in range(count))
    assert sum(windows) / len(windows) < 3 * HOLD_S / 0.0315
    assert max(windows) < 10 * HOLD_S / 0.0315


def test_what_is_handed_out_at_a_time_is_a_moment_of_work() -> None:
    """One message at a time for slow programs, thousands for fast ones, after a few calls."""
    program = Program(Pace(START_SHARED, MOST), message_s=0.05)
    program.work(times=50)
    assert program.pace.at_once == 1
    program = Program(Pace(START_ALONE, MOST), message_s=1e-7)
    for _ in range(10):
        program.pace.asked(program.now)
        program.pace.handed(program.pace.at_once, program.now, program.now)
        program.now += program.pace.at_once * 1e-7
    assert program.pace.at_once == AT_ONCE_MAX
    for at_once in (AT_ONCE_MAX, 1):  # a single call may be slow by chance
        program.pace.asked(program.now)
        program.pace.handed(100, program.now, program.now)
        program.now += 5.0
        program.pace.asked(program.now)
        assert program.pace.at_once == at_once


steps = st.lists(
    st.tuples(
        st.sampled_from(["asked", "handed"]),
        st.integers(1, 5000),
        st.floats(0, 100, allow_nan=False),
        st.floats(0, 100, allow_nan=False),
    ),
    max_size=60,
)


@given(st.integers(1, 200), st.integers(1, 100_000), steps)
def test_whatever_happens_the_window_is_within_its_bounds(
    start: int, most: int, taken: list[tuple[str, int, float, float]]
) -> None:
    """It grows by at most its factor at a time; threads may ask and take in any order."""
    pace, now = Pace(start, most), 0.0
    for what, count, passed, waited in taken:
        before, now = pace.window, now + passed
        if what == "asked":
            pace.asked(now)
        else:
            pace.handed(count, now - waited, now)
        assert 1 <= pace.window <= most
        assert pace.window <= GROWTH * before
