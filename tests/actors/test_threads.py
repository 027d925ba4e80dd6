"""Tests of the threads by purpose: slow work of one purpose delays no other."""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ister.actors.commits import Commits
from ister.actors.loop import Loop
from ister.actors.threads import SIZES, Purpose
from ister.clock import SystemClock

WAIT_S = 60


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Return a loop that is closed after the test."""
    made = Loop(SystemClock())
    yield made
    made.close()


class Held:
    """Calls of one purpose that do not return before they are released."""

    def __init__(self, loop: Loop, purpose: Purpose, count: int) -> None:
        self.loop = loop
        self.let_go = threading.Event()
        self.most = self._now = 0
        self.ended = 0
        self._lock = threading.Lock()
        for _ in range(count):
            loop.offload(self._work, self._done, purpose)

    def _work(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        assert self.let_go.wait(WAIT_S)
        with self._lock:
            self._now -= 1

    def _done(self, _result: None, error: BaseException | None) -> None:
        assert error is None
        self.ended += 1


def until(loop: Loop, so: object) -> None:
    """Run the loop until `so()` is true."""
    deadline = time.monotonic() + WAIT_S
    while not so():  # type: ignore[operator]
        assert time.monotonic() < deadline
        loop.run_once(0.05)


@pytest.mark.parametrize("long", list(Purpose))
def test_work_of_one_purpose_keeps_no_other_waiting(loop: Loop, long: Purpose) -> None:
    """While a hundred calls hang, those of every other purpose return."""
    held = Held(loop, long, 100)
    came: list[Purpose] = []
    for purpose in Purpose:
        if purpose is not long:
            loop.offload(lambda: None, lambda _, error, purpose=purpose: came.append(purpose), purpose)  # type: ignore[misc]
    until(loop, lambda: len(came) == len(Purpose) - 1 and held.most == SIZES[long])
    assert held.ended == 0
    held.let_go.set()
    until(loop, lambda: held.ended == 100)
    assert held.most == SIZES[long]


def test_a_commit_is_synced_while_logs_are_verified(loop: Loop) -> None:
    """Eight topics are being verified, and no receipt waits for them."""

    class Commit:
        path = "/"

        def run(self) -> None:
            pass

        def prepare(self) -> None:
            pass

    held = Held(loop, Purpose.CHECKS, 8)
    commits, ended = Commits(loop, None), [0]

    def done(_: None, error: BaseException | None) -> None:
        assert error is None
        ended[0] += 1

    for _ in range(50):
        commits.run(Commit(), done)
    until(loop, lambda: ended[0] == 50)
    assert held.ended == 0
    held.let_go.set()
    until(loop, lambda: held.ended == 8)


@pytest.mark.parametrize("size", [1, 6])
def test_a_pool_has_as_many_threads_as_it_is_told_to(loop: Loop, size: int) -> None:
    """More uploads at once than the default, or fewer."""
    loop.threads.resize(Purpose.UPLOADS, size)
    held = Held(loop, Purpose.UPLOADS, 20)
    until(loop, lambda: held.most == size)
    held.let_go.set()
    until(loop, lambda: held.ended == 20)
    assert held.most == size


def test_what_the_end_of_a_turn_hands_in_begins_when_the_loop_waits(loop: Loop) -> None:
    """The thread would only wait for the interpreter lock, which the rest of the turn needs."""
    began = threading.Event()
    early: list[bool] = []
    ended: list[BaseException | None] = []

    def hand_in() -> None:
        loop.offload(began.set, lambda _, error: ended.append(error), Purpose.COMMITS)
        early.append(began.wait(0.2))

    loop.at_turn_end(hand_in)
    loop.run_until_idle()
    assert (early, ended) == ([False], [None])


def test_what_is_handed_in_before_the_end_of_a_turn_begins_at_once(loop: Loop) -> None:
    """The next commit keeps the disk busy while the loop works."""
    began = threading.Event()
    early: list[bool] = []

    def hand_in() -> None:
        loop.offload(began.set, lambda _, __: None, Purpose.COMMITS)
        early.append(began.wait(WAIT_S))

    loop.call_soon(hand_in)
    loop.run_until_idle()
    assert early == [True]


@pytest.mark.parametrize("purpose", [Purpose.COMMITS, Purpose.TRIMS])
def test_a_loop_that_stops_begins_what_its_last_turn_handed_in(loop: Loop, purpose: Purpose) -> None:
    """The end of a turn may be the end of the loop."""
    began = threading.Event()

    def hand_in() -> None:
        loop.offload(began.set, lambda _, __: None, purpose)
        loop.stop()

    loop.at_turn_end(hand_in)
    loop.run()
    assert began.wait(WAIT_S)


def test_a_loop_that_fails_begins_what_its_last_turn_handed_in() -> None:
    """A call that raises ends the loop, and closing it begins what was held."""
    loop = Loop(SystemClock())
    began = threading.Event()

    def hand_in() -> None:
        loop.offload(began.set, lambda _, __: None, Purpose.COMMITS)
        raise ZeroDivisionError

    loop.at_turn_end(hand_in)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    loop.close()
    assert began.wait(WAIT_S)


@pytest.mark.parametrize("purpose", [Purpose.COMMITS, Purpose.STORE])
def test_each_call_is_made_once_whoever_is_woken(loop: Loop, purpose: Purpose) -> None:
    """Four threads share a thousand short calls that come in bursts."""
    made: list[int] = []

    def burst(first: int) -> None:
        for number in range(first, first + 100):
            loop.offload(lambda number=number: made.append(number), lambda _, __: None, purpose)  # type: ignore[misc]

    for first in range(0, 1000, 200):
        loop.at_turn_end(lambda first=first: burst(first))  # type: ignore[misc]
        loop.run_once(0.001)
        burst(first + 100)
    loop.run_until_idle()
    assert sorted(made) == list(range(1000))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads are woken without a descriptor")
def test_threads_that_have_ended_leave_no_descriptor() -> None:
    """A loop that is closed, and its threads, close what they were woken by."""

    def work_and_close() -> None:
        loop = Loop(SystemClock())
        held = Held(loop, Purpose.COMMITS, 8)
        until(loop, lambda: held.most == SIZES[Purpose.COMMITS])
        assert len(os.listdir("/proc/self/fd")) > before
        held.let_go.set()
        until(loop, lambda: held.ended == 8)
        loop.close()

    before = len(os.listdir("/proc/self/fd"))
    work_and_close()
    deadline = time.monotonic() + WAIT_S
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="an eventfd shows what was written to it")
@pytest.mark.parametrize("heard", [False, True])
def test_a_thread_that_ends_after_its_loop_wakes_nobody_else(
    monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """The numbers of descriptors are used again: what the thread writes to must not belong to others by then."""
    loop, write = Loop(SystemClock()), os.write
    about_to_write, closed, written = threading.Event(), threading.Event(), threading.Event()

    def late(fd: int, data: bytes) -> int:
        about_to_write.set()
        assert closed.wait(WAIT_S)
        try:
            return write(fd, data)
        finally:
            written.set()

    monkeypatch.setattr(os, "write", late)
    loop.offload(lambda: None, lambda _, __: None, Purpose.COMMITS)
    assert about_to_write.wait(WAIT_S)
    if heard:
        loop.run_once(0.0)
        assert not loop.threads.busy
    loop.close()
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]
    closed.set()
    assert written.wait(WAIT_S)
    assert not select.select(others, [], [], 0)[0]
    for fd in others:
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux alone")
def test_no_thread_has_a_lower_priority_than_the_loop(loop: Loop) -> None:
    """One that holds the interpreter lock and is not run, because others have priority, would keep the loop waiting."""
    found: dict[Purpose, int] = {}
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for purpose in Purpose:
        loop.offload(
            lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()),
            lambda result, _, purpose=purpose: found.update({purpose: result}),  # type: ignore[misc]
            purpose,
        )
    until(loop, lambda: len(found) == len(Purpose))
    assert found == dict.fromkeys(Purpose, own)
