"""Tests of the event loop: order, fairness, bounds, and calls from threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from ister.actors.loop import MESSAGES_PER_INBOX_PER_TURN, MESSAGES_PER_TURN, Loop
from ister.actors.threads import Purpose
from ister.clock import SystemClock


class ManualClock:
    """Time that moves when the test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ms(self) -> int:
        return int(self.now * 1000)


class Chatter:
    """An inbox that always has another message."""

    def __init__(self, loop: Loop, on_message: Callable[[], None] = lambda: None) -> None:
        self.loop, self.on_message, self.handled = loop, on_message, 0
        loop.ready.append(self)

    def run(self, limit: int) -> int:
        for _ in range(limit):
            self.handled += 1
            self.on_message()
        self.loop.ready.append(self)
        return limit


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still until the test moves it."""
    return ManualClock()


@pytest.fixture
def loop(clock: ManualClock) -> Iterator[Loop]:
    """Return a loop with that clock."""
    loop = Loop(clock)
    yield loop
    loop.close()


def test_timers_run_in_the_order_of_their_deadlines(loop: Loop, clock: ManualClock) -> None:
    """The earlier deadline runs first; of equal deadlines the one set first."""
    ran: list[str] = []
    loop.call_later(3.0, lambda: ran.append("third"))
    loop.call_later(1.0, lambda: ran.append("first"))
    loop.call_later(1.0, lambda: ran.append("second"))
    loop.run_once(0)
    assert ran == []
    clock.now += 1.0
    loop.run_once(0)
    assert ran == ["first", "second"]
    clock.now += 2.0
    loop.run_once(0)
    assert ran == ["first", "second", "third"]


def test_a_cancelled_timer_never_runs(loop: Loop, clock: ManualClock) -> None:
    """Cancelling is final, may be repeated, and does nothing after the timer has run."""
    ran: list[str] = []
    cancelled = loop.call_later(1.0, lambda: ran.append("no"))
    kept = loop.call_later(1.0, lambda: ran.append("yes"))
    cancelled.cancel()
    cancelled.cancel()
    clock.now += 2.0
    loop.run_once(0)
    kept.cancel()
    assert ran == ["yes"]
    assert not kept.pending
    assert (loop.next_due(), loop.cancelled) == (None, 0)


def test_cancelled_timers_do_not_pile_up(loop: Loop, clock: ManualClock) -> None:
    """A timer set and cancelled for every message costs bounded memory."""
    survivor = loop.call_later(3600.0, lambda: None)
    for _ in range(20_000):
        loop.call_later(60.0, lambda: None).cancel()
    assert len(loop._timers) < 2_000
    assert loop.next_due() == survivor.due


def test_a_timer_that_sets_itself_again_leaves_the_turn(loop: Loop) -> None:
    """A timer without a delay runs once per turn, so that it cannot occupy the loop."""
    ran: list[int] = []

    def again() -> None:
        ran.append(loop.turns)
        loop.call_later(0.0, again)

    again()
    for _ in range(3):
        loop.run_once(0)
    assert ran == [0, 1, 2, 3]


def test_a_busy_inbox_lets_its_neighbours_run(loop: Loop) -> None:
    """Two inboxes that are never empty get the same share of a turn."""
    one, other = Chatter(loop), Chatter(loop)
    loop.run_once(0)
    assert one.handled == other.handled == MESSAGES_PER_TURN // 2
    assert one.handled > MESSAGES_PER_INBOX_PER_TURN  # in slices


def test_a_busy_inbox_starves_neither_timers_nor_sockets(loop: Loop, clock: ManualClock) -> None:
    """However many messages there are, every turn looks at the clock and at the sockets."""
    ran: list[str] = []
    read, write = os.pipe()
    loop.watch(read, lambda: ran.append("socket"))
    Chatter(loop)
    loop.call_later(1.0, lambda: ran.append("timer"))
    loop.run_once()
    clock.now += 1.0
    os.write(write, b"x")
    loop.run_once()
    assert ran == ["socket", "timer"]
    loop.unwatch(read)
    os.close(read)
    os.close(write)


def test_turn_end_calls_come_after_all_inboxes_and_once(loop: Loop) -> None:
    """A call registered while inboxes run is made once after them: one commit for a whole turn."""
    ran: list[str] = []

    class Once:
        def run(self, limit: int) -> int:
            loop.at_turn_end(lambda: ran.append("end"))
            loop.call_soon(lambda: ran.append("soon"))
            ran.append("message")
            return 1

    loop.ready.extend((Once(), Once()))
    loop.run_once(0)
    assert ran == ["message", "message", "end", "end"]
    loop.run_once(0)
    assert ran == ["message", "message", "end", "end", "soon", "soon"]
    assert loop.idle


def test_a_call_from_another_thread_wakes_the_poll() -> None:
    """A loop that waits without a timeout sees a thread's calls at once, in the thread's order."""
    loop = Loop(SystemClock())
    heard: list[int] = []
    on_thread: list[bool] = []

    def tell() -> None:
        time.sleep(0.02)
        on_thread.append(loop.on_loop_thread)
        for number in range(100):
            loop.call_threadsafe(lambda number=number: heard.append(number))  # type: ignore[misc]
        loop.call_threadsafe(loop.stop)

    thread = threading.Thread(target=tell)
    thread.start()
    loop.run()
    thread.join()
    assert heard == list(range(100))
    assert on_thread == [False]
    assert loop.on_loop_thread
    loop.close()


def test_offloaded_work_runs_elsewhere_and_comes_back(loop: Loop) -> None:
    """The work runs in a thread of the pool, and its result is handed over on the loop."""
    results: list[tuple[object, bool]] = []
    loop.offload(threading.get_ident, lambda result, error: results.append((result, loop.on_loop_thread)))
    loop.run_until_idle()
    [(worker, on_loop)] = results
    assert worker != threading.get_ident()
    assert on_loop


def test_an_error_of_offloaded_work_comes_back_as_an_error(loop: Loop) -> None:
    """No exception is lost in a thread, and the thread goes on."""
    errors: list[BaseException | None] = []

    def fail() -> int:
        raise OSError(28, "no space left")

    for _ in range(10):
        loop.offload(fail, lambda result, error: errors.append(error))
    loop.run_until_idle()
    assert len(errors) == 10
    assert all(isinstance(error, OSError) and error.errno == 28 for error in errors)


def test_the_pool_runs_no_more_than_its_threads_at_once() -> None:
    """A thousand blocking calls queue for two threads."""
    loop = Loop(SystemClock(), threads={Purpose.OTHER: 2})
    now, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.0005)
        with lock:
            now[0] -= 1

    done: list[object] = []
    for _ in range(100):
        loop.offload(work, lambda result, error: done.append(error))
    loop.run_until_idle()
    assert (most[0], done) == (2, [None] * 100)
    loop.close()


def test_sockets_are_read_as_long_as_they_have_something(loop: Loop) -> None:
    """A callback that reads one of many messages is called again in the next turn."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        pull.bind("inproc://loop")
        push.connect("inproc://loop")
        for number in range(3):
            push.send(b"%d" % number)
        got: list[bytes] = []
        loop.watch(pull, lambda: got.append(pull.recv()))
        for _ in range(3):
            loop.run_once(1.0)
        assert got == [b"0", b"1", b"2"]
        loop.unwatch(pull)
    context.term()


def test_a_callback_that_raises_ends_the_run(loop: Loop) -> None:
    """A bug in the composition ends the process instead of leaving it half alive."""
    loop.call_soon(lambda: 1 // 0)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_what_a_send_took_note_of_is_read_in_the_next_turn(loop: Loop) -> None:
    """A socket that sends looks at its news then, and its descriptor does not tell of them any more."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        here.bind("inproc://both")
        there.connect("inproc://both")
        got: list[bytes] = []
        loop.watch(here, lambda: got.append(here.recv()), sends=True)
        loop.run_once(0)
        there.send(b"question")
        here.send(b"answer")  # which takes note of the question
        assert int(here.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        loop.run_once(10.0)
        assert got == [b"question"]
        loop.unwatch(here)
    context.term()
