"""The event loop: one thread that runs all actors, timers and sockets of a process in turns.

`Scheduler` is the pure part: ready inboxes, timers and calls, in an order that depends only on the `Clock` it is handed
(the simulation runs it under virtual time). `Loop` adds a poll, threads for blocking work, and calls from other
threads.

Invariants:
- Everything runs on one thread, the one that called `run`, except the `work` given to `offload`.
- A turn is: poll, sockets, calls, timers due, inboxes, turn-end calls. Every part of it is bounded, so that none
  starves another; a turn with work left polls without waiting.
- Timers run in the order of their deadlines; equal ones in the order in which they were set.
- A call that raises ends `run` with that exception: the process fails, and its supervisor decides. Actors guard their
  own calls (see `actors/runtime.py`), so only the composition's own callbacks can do that.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Final, Protocol, TypeVar

import zmq

from ister.actors.threads import Done, Purpose, Threads
from ister.clock import Clock
from ister.sockets import has_message

T = TypeVar("T")

Call = Callable[[], None]

# An inbox handles at most this many messages before the next one: at some 10 us per message, no actor waits longer
# than half a millisecond for one busy actor.
MESSAGES_PER_INBOX_PER_TURN: Final = 64

# A turn handles at most this many messages before it looks at sockets and timers again: some 10 ms at worst, and
# long enough that the cost of the poll (2 us) does not matter.
MESSAGES_PER_TURN: Final = 1024

# With fewer cancelled timers than this, the heap is not rebuilt.
CANCELLED_TIMERS_KEPT: Final = 512


class Runnable(Protocol):
    """Something that can be ready: an inbox."""

    def run(self, limit: int) -> int:
        """Handle at most `limit` messages and return how many; put itself back into `ready` if some are left."""


class Timer:
    """A call that will be made at `due` (seconds of the clock's `monotonic`), unless it is cancelled."""

    __slots__ = ("_call", "_scheduler", "due")

    def __init__(self, scheduler: Scheduler, due: float, call: Call) -> None:
        self._scheduler = scheduler
        self._call: Call | None = call
        self.due = due

    @property
    def pending(self) -> bool:
        """True until it was called or cancelled."""
        return self._call is not None

    def cancel(self) -> None:
        """Make sure that the call is not made; cancelling twice, or too late, does nothing."""
        if self._call is not None:
            self._call = None
            self._scheduler.cancelled += 1

    def fire(self) -> None:
        """Make the call, once."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Scheduler(ABC):
    """Runs ready inboxes, timers and calls in turns; waiting and blocking calls are left to subclasses."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ready: deque[Runnable] = (
            deque()
        )  # inboxes with messages, each at most once; they append themselves
        self.turns = 0
        self.messages_handled = 0
        self.cancelled = 0  # cancelled timers that are still in the heap
        self._timers: list[tuple[float, int, Timer]] = []
        self._timers_made = 0
        self._soon: deque[Call] = deque()
        self._turn_end: list[Call] = []

    @abstractmethod
    def watch(self, source: zmq.Socket[bytes] | int, ready: Call, *, sends: bool = False) -> None:
        """Call `ready` in every turn in which `source` (a zmq socket or a file descriptor) can be read.

        It may also be called when nothing can be read. `sends` says that the socket is used for sending too.
        """

    @abstractmethod
    def unwatch(self, source: zmq.Socket[bytes] | int) -> None:
        """Forget `source`; unknown sources are ignored."""

    @abstractmethod
    def offload(self, work: Callable[[], T], done: Done[T], purpose: Purpose = Purpose.OTHER) -> None:
        """Run `work` in a thread for that purpose, then `done(result, None)` or `done(None, error)` on the loop."""

    @abstractmethod
    def call_threadsafe(self, call: Call) -> None:
        """Make `call` on the loop; may be called from any thread."""

    def call_later(self, delay_s: float, call: Call) -> Timer:
        """Make `call` once, `delay_s` seconds from now; with 0 or less, in the next turn."""
        if self.cancelled > CANCELLED_TIMERS_KEPT and self.cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].pending]
            heapify(self._timers)
            self.cancelled = 0
        timer = Timer(self, self.clock.monotonic() + delay_s, call)
        self._timers_made += 1
        heappush(self._timers, (timer.due, self._timers_made, timer))
        return timer

    def call_soon(self, call: Call) -> None:
        """Make `call` in the next turn, before the timers and inboxes of that turn."""
        self._soon.append(call)

    def at_turn_end(self, call: Call) -> None:
        """Make `call` once, after the inboxes of this turn and before the next poll.

        For work that is cheaper together: one commit for all appends of a turn, one send for all output. A call
        registered by another turn-end call is made at the end of the next turn, which follows at once.
        """
        self._turn_end.append(call)

    @property
    def on_loop_thread(self) -> bool:
        """True on the thread that runs the turns."""
        return True

    @property
    def idle(self) -> bool:
        """True when nothing is left to run but timers that are not due."""
        return not (self.ready or self._soon or self._turn_end)

    def next_due(self) -> float | None:
        """Return when the next timer is due (seconds of `monotonic`), or None if there is none."""
        timers = self._timers
        while timers and not timers[0][2].pending:
            heappop(timers)
            self.cancelled -= 1
        return timers[0][0] if timers else None

    def run_turn(self, now: float) -> None:
        """Run one turn's calls, timers due at `now`, inboxes and turn-end calls."""
        self.turns += 1
        if soon := self._soon:
            for _ in range(len(soon)):  # calls that these add are for the next turn
                soon.popleft()()
        if self._timers and self._timers[0][0] <= now:
            self._run_timers(now)
        if ready := self.ready:
            left = MESSAGES_PER_TURN
            while ready and left > 0:
                left -= ready.popleft().run(MESSAGES_PER_INBOX_PER_TURN)
            self.messages_handled += MESSAGES_PER_TURN - left
        if self._turn_end:
            self._end_turn()

    def _end_turn(self) -> None:
        calls, self._turn_end = self._turn_end, []
        for call in calls:
            call()

    def _run_timers(self, now: float) -> None:
        timers, last_made = self._timers, self._timers_made
        # timers that are set by the timers of this turn run in the next
        late: list[tuple[float, int, Timer]] = []
        while timers and timers[0][0] <= now:
            entry = heappop(timers)
            if not entry[2].pending:
                self.cancelled -= 1
            elif entry[1] > last_made:
                late.append(entry)
            else:
                entry[2].fire()
                timers = self._timers  # a rebuild may have replaced the list
        for entry in late:
            heappush(self._timers, entry)


class _Watched:
    """A source, and what to call when it can be read."""

    __slots__ = ("descriptor", "ready", "sends", "socket")

    def __init__(self, source: zmq.Socket[bytes] | int, ready: Call, sends: bool) -> None:
        self.socket = None if isinstance(source, int) else source
        self.descriptor = source if isinstance(source, int) else source.fileno()
        self.ready = ready
        self.sends = sends

    def has_news(self) -> bool:
        """Return whether a zmq socket has a message to read."""
        return self.socket is not None and has_message(self.socket)


def _nothing() -> None:
    """Do nothing."""


class Loop(Scheduler):
    """The loop of a process: a poll, threads for blocking calls, and a wake-up for other threads.

    `threads` overrides the numbers of threads per purpose in `threads.SIZES`; further calls wait in order.
    """

    def __init__(self, clock: Clock, *, threads: Mapping[Purpose, int] | None = None) -> None:
        super().__init__(clock)
        self.poll_s = 0.0  # seconds spent in the poll: 1 - poll_s / lifetime is how busy the process is
        self._thread = threading.get_ident()
        self._watched: dict[zmq.Socket[bytes] | int, _Watched] = {}
        self._by_descriptor: dict[int, _Watched] = {}
        # The descriptor of a zmq socket becomes readable for news that the socket has not looked at. Sending and
        # reading look at them, so before each wait those sockets are asked that send, or were just read.
        self._senders: list[_Watched] = []
        self._just_read: list[_Watched] = []
        self._poll = select.poll()
        self._stopped = False
        self.threads = Threads(self.call_threadsafe, threads)
        self._from_threads: deque[Call] = deque()
        self._wake_pending = False
        self._wake: _Wake | None = _Wake()
        self.watch(self._wake.fd, self._woken)

    def watch(self, source: zmq.Socket[bytes] | int, ready: Call, *, sends: bool = False) -> None:
        """Call `ready` in every turn in which `source` can be read, until nothing is left to read.

        `sends` says that the socket is used for sending too.
        """
        self.unwatch(source)
        watched = self._watched[source] = _Watched(source, ready, sends)
        self._by_descriptor[watched.descriptor] = watched
        self._poll.register(watched.descriptor, select.POLLIN)
        if sends:
            self._senders.append(watched)
        elif watched.socket is not None:
            self._just_read.append(watched)  # what came before need not show on the descriptor

    def unwatch(self, source: zmq.Socket[bytes] | int) -> None:
        """Forget `source`: to be called before it is closed."""
        watched = self._watched.pop(source, None)
        if watched is None:
            return
        watched.ready = _nothing
        del self._by_descriptor[watched.descriptor]
        self._poll.unregister(watched.descriptor)
        self._senders = [each for each in self._senders if each is not watched]
        self._just_read = [each for each in self._just_read if each is not watched]

    def offload(self, work: Callable[[], T], done: Done[T], purpose: Purpose = Purpose.OTHER) -> None:
        """Run `work` in a thread for that purpose, then `done(result, None)` or `done(None, error)` on the loop."""
        self.threads.run(work, done, purpose)

    @property
    def on_loop_thread(self) -> bool:
        """True on the thread inside `run`, and before that on the one that made the loop."""
        return threading.get_ident() == self._thread

    def call_threadsafe(self, call: Call) -> None:
        """Make `call` on the loop, in its next turn; may be called from any thread."""
        self._from_threads.append(call)
        # The flag is set before the write and cleared before the queue is drained, so no call waits unseen:
        # at worst the loop wakes up once in vain.
        if not self._wake_pending:
            self._wake_pending = True
            wake = self._wake
            if wake is not None:  # otherwise the loop is closed, and the call is not made
                wake.set()

    def _woken(self) -> None:
        if self._wake is not None:
            self._wake.clear()
        self._wake_pending = False

    def run(self) -> None:
        """Run turns until `stop`; an exception of a callback ends it and is raised here."""
        self._thread = threading.get_ident()
        while not self._stopped:
            self.run_once()
        self.threads.release()

    def _end_turn(self) -> None:
        self.threads.hold()
        super()._end_turn()

    def run_once(self, wait_s_max: float | None = None) -> None:
        """Run one turn, waiting at most `wait_s_max` seconds for something to do (None: until there is)."""
        monotonic = self.clock.monotonic
        began = monotonic()
        if self.ready or self._soon or self._turn_end or self._from_threads:
            wait_ms = 0
        else:
            due = self.next_due()
            wait_s = wait_s_max
            if due is not None and (wait_s is None or due - began < wait_s):
                wait_s = due - began
            # Rounded up: a poll that ends too early would spin until the timer is due.
            wait_ms = -1 if wait_s is None else max(0, ceil(wait_s * 1000))
        readable = [each for each in self._senders if each.has_news()]
        if self._just_read:
            just_read, self._just_read = self._just_read, []
            readable += [each for each in just_read if each.has_news()]
        if readable:
            wait_ms = 0
        self.threads.release()
        events = self._poll.poll(wait_ms)
        now = monotonic()
        self.poll_s += now - began
        for descriptor, _ in events:
            each = self._by_descriptor[descriptor]
            if each not in readable:
                readable.append(each)
        for each in readable:
            each.ready()  # which does nothing if one of those before has unwatched it
            if each.socket is not None and not each.sends:
                self._just_read.append(each)
        if calls := self._from_threads:
            for _ in range(len(calls)):
                calls.popleft()()
        self.run_turn(now)

    def run_until_idle(self, *, turns_max: int = 10_000) -> None:
        """Run turns until only timers that are not due are left: for tests and tools, not for a process.

        Waits for offloaded work. Raises RuntimeError after `turns_max` turns.
        """
        for _ in range(turns_max):
            busy = self.threads.busy
            self.run_once(1.0 if busy else 0.0)
            if self.idle and not self.threads.busy and not self._from_threads:
                return
        raise RuntimeError(f"not idle after {turns_max} turns")

    def stop(self) -> None:
        """End `run` after this turn; from another thread call `call_threadsafe(loop.stop)`."""
        self._stopped = True

    def close(self) -> None:
        """Close the threads and the wake-up; the loop cannot run again."""
        self.threads.end()
        self._watched.clear()
        self._wake = None


class _Wake:
    """What other threads wake a poll with: an eventfd, or a pipe (macOS has none).

    It is closed with the last reference. A thread that is about to write has one, so that what it writes to is never a
    descriptor that got the same number meanwhile.
    """

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.fd = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.fd, self._write = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write, False)

    def set(self) -> None:
        """Wake the poll, now or when it begins."""
        with contextlib.suppress(BlockingIOError):  # a pipe that is full wakes it anyway
            os.write(self._write, b"\x01\0\0\0\0\0\0\0")

    def clear(self) -> None:
        """Forget earlier calls of `set`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def __del__(self) -> None:
        os.close(self.fd)
        if self._write != self.fd:
            os.close(self._write)
