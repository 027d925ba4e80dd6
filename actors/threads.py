"""Threads by purpose: blocking calls of each kind have their own pool, so that long work never delays short work.

A pool has a maximum number of threads, started when they are first needed. Further calls wait in order. All threads
have the priority of the process: one with a lower priority that is not run while it holds the interpreter lock would
keep the loop waiting. Long work that keeps a core busy runs in a process of its own (`storage/apart.py`).

A lone message waits for a thread to be woken, to sync, and to wake the loop. A thread that is woken while the loop
holds the interpreter lock goes to sleep again at once, and is woken a second and often a third time. So commits are
handed over by an eventfd, whose writer and reader hold no lock, and at the end of a turn only when the loop is about to
wait.

Invariants
- a call waits only for calls of the same purpose, and for the end of the turn in which it is handed in
- `done` is called on the loop, once for each call, whatever its outcome

May touch: threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
Call = Callable[[], Any]
Done = Callable[[T | None, BaseException | None], None]


class Purpose(Enum):
    """What a thread is for."""

    COMMITS = "commits"  # a worker's syncs, for which producers wait
    CURSORS = "cursors"  # writing down acknowledgments
    SPARES = "spares"  # creating the next segment's file ahead of time
    TRIMS = "trims"  # deleting files for retention
    CHECKS = "checks"  # reading every byte of a log, for verification and repair
    UPLOADS = "uploads"  # segments in transit to the store
    FETCHES = "fetches"  # segments in transit from the store
    STORE = "store"  # all other calls to the store: short, but a store may take its time
    OTHER = "other"


# A worker's commits use three lanes and one sync of the file system (`commits.py`); the tier's uploads and fetches
# use as many threads as its settings say (`Threads.resize`).
SIZES: Final[Mapping[Purpose, int]] = {
    Purpose.COMMITS: 4,
    Purpose.CURSORS: 2,
    Purpose.SPARES: 1,
    Purpose.TRIMS: 1,
    Purpose.CHECKS: 1,
    Purpose.UPLOADS: 2,
    Purpose.FETCHES: 2,
    Purpose.STORE: 4,
    Purpose.OTHER: 2,
}


# Whose threads are woken without the interpreter lock. It costs a descriptor each, and pays where the work is as short
# as the hand-over.
_WOKEN_UNLOCKED: Final = frozenset((Purpose.COMMITS,)) if hasattr(os, "EFD_SEMAPHORE") else frozenset()


class _Queue(Protocol):
    """Calls on their way to the threads of a pool; any thread."""

    def put(self, call: Call | None, /) -> None:
        """Hand over a call; never waits."""

    def get(self) -> Call | None:
        """Wait for a call and return it."""


class _UnlockedQueue:
    """A queue in which neither who wakes nor who is woken holds the interpreter lock meanwhile.

    The eventfd counts the calls, and each read takes one. It is closed with the last reference to the queue, which may
    be that of a thread that still waits.
    """

    def __init__(self) -> None:
        self._calls: deque[Call | None] = deque()
        self._count = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    def put(self, call: Call | None, /) -> None:
        """Hand over a call; never waits."""
        self._calls.append(call)
        os.eventfd_write(self._count, 1)

    def get(self) -> Call | None:
        """Wait for a call and return it."""
        os.eventfd_read(self._count)
        return self._calls.popleft()

    def __del__(self) -> None:
        os.close(self._count)


class _Pool:
    """Some threads, and the calls that wait for one of them."""

    def __init__(self, purpose: Purpose, size: int) -> None:
        self.size = size
        self.handed_in = 0  # calls that are not done
        self._name = purpose.value
        self._threads = 0
        self._work: _Queue = _UnlockedQueue() if purpose in _WOKEN_UNLOCKED else SimpleQueue()

    def run(self, call: Call) -> None:
        if self.handed_in >= self._threads and self._threads < self.size:
            self._threads += 1
            name = f"{self._name}-{self._threads}"
            threading.Thread(target=_forever, args=(self._work,), name=name, daemon=True).start()
        self.handed_in += 1
        self._work.put(call)

    def end(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)
        self._threads = 0


def _forever(work: _Queue) -> None:
    while (call := work.get()) is not None:
        call()
        del call  # no reference to a finished call's buffers while waiting for the next call


class Threads:
    """The pools of one loop; `call_threadsafe` has a call made on it."""

    def __init__(
        self, call_threadsafe: Callable[[Call], None], sizes: Mapping[Purpose, int] | None = None
    ) -> None:
        self._call_threadsafe = call_threadsafe
        given = {**SIZES, **(sizes or {})}
        self._pools = {purpose: _Pool(purpose, given[purpose]) for purpose in Purpose}
        self._holding = False
        self._held: deque[tuple[_Pool, Call]] = deque()

    @property
    def busy(self) -> int:
        """How many calls are not done."""
        return sum(pool.handed_in for pool in self._pools.values()) + len(self._held)

    def resize(self, purpose: Purpose, size: int) -> None:
        """Limit the threads for a purpose; existing threads stay."""
        self._pools[purpose].size = size

    def run(self, work: Callable[[], T], done: Done[T], purpose: Purpose) -> None:
        """Run `work` in a thread, then `done(result, None)` or `done(None, error)` on the loop."""
        pool = self._pools[purpose]

        def run() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001 - the loop's side decides what an error means, whatever it is
                error = raised

            def ended() -> None:
                pool.handed_in -= 1
                done(result, error)

            self._call_threadsafe(ended)

        if self._holding:
            self._held.append((pool, run))
        else:
            pool.run(run)

    def hold(self) -> None:
        """Begin no call until `release`: what is left of a turn holds the interpreter lock, which the call needs."""
        self._holding = True

    def release(self) -> None:
        """Begin the calls that were held, in their order, and hold no more."""
        self._holding = False
        while self._held:
            pool, call = self._held.popleft()
            pool.run(call)

    def end(self) -> None:
        """Let every thread end after the calls that were handed in so far."""
        self.release()
        for pool in self._pools.values():
            pool.end()
