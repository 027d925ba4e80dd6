"""Tests of what a journal remembers of deliveries before a restart: failures and delays."""

from __future__ import annotations

from ister.actors.ledger import DELAY_MS_MAX
from ister.actors.subscription.remembered import Remembered
from tests.actors.hosts import Bench


class WithFailures(Bench):
    """A bench whose journal has failures and delays."""

    def __init__(self, failed: dict[int, tuple[int, int]], waits: dict[int, tuple[int, int]]) -> None:
        super().__init__()
        self.log.publish(*[b"x"] * 20)
        self.begin()
        self.journal.cursor.failed.update(failed)
        self.journal.cursor.waits.update(waits)
        self.remembered = Remembered(self.journal)
        self.remembered.begin(20)


def test_messages_that_failed_as_often_go_together() -> None:
    """And messages that never failed are cut off before those that did."""
    bench = WithFailures({3: (2, 1), 4: (2, 1), 5: (3, 2)}, {})
    alike = bench.remembered.alike
    assert alike(0, 20) == (3, 0, 0)
    assert alike(3, 20) == (5, 2, 1)
    assert alike(3, 4) == (4, 2, 1)
    assert alike(5, 20) == (6, 3, 2)
    assert alike(6, 20) == (20, 0, 0)


def test_behind_the_last_failure_nothing_is_known() -> None:
    """From there on messages need not be examined one by one."""
    bench = WithFailures({3: (2, 1)}, {})
    assert [bench.remembered.knows(offset) for offset in (0, 3, 4)] == [True, True, False]
    bench.remembered.forget()
    assert not bench.remembered.knows(0)


def test_what_waits_goes_on_waiting() -> None:
    """For the rest of the delay, and never longer than the delay itself: the clock may have been set back."""
    bench = WithFailures(dict.fromkeys(range(2, 8), (1, 1)), {})
    now_s, now_ms = bench.host.time.monotonic(), bench.host.time.time_ms()
    waits = bench.journal.cursor.waits
    waits[2] = (now_ms + 5_000, 10_000)
    waits[4] = (now_ms + 90_000, 10_000)
    waits[5] = (now_ms + 2 * DELAY_MS_MAX, 0)
    waits[7] = (now_ms - 1, 10_000)
    runs, at = [], 0
    while at < 20:
        end, deliveries, failures, ready_s = bench.remembered.run(at, 20, now_s, now_ms)
        runs.append((at, end, deliveries, failures, round(ready_s - now_s) if ready_s else 0))
        at = end
    assert runs == [
        (0, 2, 0, 0, 0),
        (2, 3, 1, 1, 5),
        (3, 4, 1, 1, 0),
        (4, 5, 1, 1, 10),
        (5, 6, 1, 1, DELAY_MS_MAX // 1000),
        (6, 8, 1, 1, 0),
        (8, 20, 0, 0, 0),
    ]
    assert bench.remembered.waiting(0, 20, now_ms) == [2, 4, 5]
    assert bench.remembered.waiting(3, 5, now_ms) == [4]


def test_failures_of_messages_that_the_log_has_lost_do_not_count() -> None:
    """Their offsets belong to other messages now."""
    bench = Bench()
    bench.log.publish(b"x")
    bench.begin()
    noted: list[int] = []
    bench.journal.cursor.failed.update({0: (1, 1), 1: (1, 1)})

    def note_failed(first: int, end: int, deliveries: int, failures: int) -> None:
        noted.append(first)
        assert (end, deliveries, failures) == (first + 1, 0, 0)
        del bench.journal.cursor.failed[first]

    bench.journal.note_failed = note_failed  # type: ignore[method-assign, assignment]
    remembered = Remembered(bench.journal)
    remembered.begin(1)
    assert noted == [1]
    assert remembered.alike(0, 2) == (1, 1, 1)
