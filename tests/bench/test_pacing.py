"""Tests of the load generator, under a clock of their own: nothing here waits."""

from __future__ import annotations

from ister.bench.pacing import WATCH_NS, Schedule, send_on_time

MS = 1_000_000


class Time:
    """A clock that moves when somebody sleeps, looks at it, or works."""

    def __init__(self, oversleep: int = 0) -> None:
        self.ns = 0
        self.oversleep = oversleep

    def now(self) -> int:
        self.ns += 100
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9) + self.oversleep


def run(
    rate: float, messages: int, cost: dict[int, int], at_once: bool = False
) -> tuple[list[int], list[int], Time]:
    """Send messages of which some take long; return their latencies, how late each call was, and the clock."""
    time = Time()
    took: list[int] = []

    def send(dues: list[int]) -> None:
        time.ns += cost.get(len(took), 0)
        took.extend(time.ns - due for due in dues)

    late = send_on_time(Schedule(0, rate), messages, send, now=time.now, sleep=time.sleep, at_once=at_once)
    return took, late, time


def test_a_message_that_is_held_up_counts_for_all_that_were_due_meanwhile() -> None:
    """One call that takes 10 ms at a message a millisecond is seen by the ten messages behind it, not by one."""
    took, _, _ = run(1000, 30, {5: 10 * MS})
    assert [round(each / MS) for each in took[4:18]] == [0, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]


def test_the_schedule_does_not_move_with_a_late_message() -> None:
    """After a delay the generator catches up, and the last message is sent when it was due from the beginning."""
    took, late, time = run(1000, 100, {5: 10 * MS})
    assert len(took) == 100
    assert time.ns - 99 * MS < MS
    assert max(late) < 10 * MS


def test_no_message_is_sent_before_it_is_due() -> None:
    """A negative latency would be an invention."""
    for rate in (3.0, 7.0, 999.9, 1_000_000.0):
        took, late, _ = run(rate, 50, {})
        assert min(took) >= 0
        assert min(late) >= 0


def test_batches_take_all_that_is_due_and_nothing_else() -> None:
    """With one call for all that is due, a held up batch is followed by one with everything that waited."""
    sizes: list[int] = []
    time = Time()

    def send(dues: list[int]) -> None:
        assert max(dues) <= time.ns
        sizes.append(len(dues))
        if len(sizes) == 3:
            time.ns += 10 * MS

    send_on_time(Schedule(0, 1000), 40, send, now=time.now, sleep=time.sleep, at_once=True)
    assert sum(sizes) == 40
    assert sizes[:4] == [1, 1, 1, 10]


def test_a_timer_that_wakes_late_is_watched_for_instead() -> None:
    """An oversleep of less than the time that is watched delays no message."""
    time = Time(oversleep=WATCH_NS // 2)
    late = send_on_time(Schedule(0, 1000), 20, lambda _dues: None, now=time.now, sleep=time.sleep)
    assert max(late) <= 200


def test_what_is_ready_is_counted_exactly_at_the_edges() -> None:
    """A message is ready at the nanosecond at which it is due, and never twice."""
    schedule = Schedule(1000, 3.0)
    for number in range(1, 50):
        due = schedule.due(number)
        assert schedule.ready(due, number, 1000) == 1
        assert schedule.ready(due - 1, number, 1000) == 0
    assert schedule.ready(0, 0, 1000) == 0
    assert schedule.ready(1 << 62, 7, 10) == 3
