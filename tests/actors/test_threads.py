"""Tests of the threads by purpose: slow work of one purpose delays no other."""

from __future__ import annotations

import os
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
