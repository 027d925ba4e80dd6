"""How the program's threads wait for what comes over the connections of one client.

A thread that waits at one connection *leads* it, and moves its frames, or follows the thread that does. Where each
producer and consumer is, is in `network.py`. May touch: threads, file descriptors.

Invariants
- a waiting thread moves the frames itself, or is woken by the one that does: no thread depends on the background
  thread
- a thread that stops leading lets another one lead
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ister.clientsession import Handle
from ister.clock import Clock
from ister.polling import Wake, poll

if TYPE_CHECKING:
    from ister.connection import Connection


class Places(Protocol):
    """What waiting needs of the client's `ister.network.Network`."""

    lock: threading.Lock
    clock: Clock
    closed: bool

    def check(self) -> None:
        """Raise if the client cannot be used here any more."""

    def connection_of(self, handle: Handle | None) -> Connection:
        """Return the connection that a producer or consumer is at now (lock held)."""

    def everywhere(self) -> list[Connection]:
        """Return every connection (lock held)."""

    def settle(self) -> None:
        """After the lock was let go: make the calls that users asked for."""


class Waits:
    """The waiting threads of one client."""

    def __init__(self, network: Places) -> None:
        self._network = network
        self._wakes: list[Wake] = []  # of threads that wait no more, for the next ones

    def close(self) -> None:
        """Give back what was kept for threads to come."""
        for wake in self._wakes:
            wake.close()
        self._wakes.clear()

    def wait(
        self,
        handle: Handle | None,
        condition: Callable[[], bool],
        deadline: float,
        awaited: object = None,
    ) -> bool:
        """Wait until `condition()` (evaluated under the lock) holds; return False if the deadline came first.

        The calling thread moves the frames of the handle's connection, whichever that is meanwhile. It checks the
        condition when there is news for `awaited`, by default the handle.
        """
        network = self._network
        network.check()
        wake = self._wakes.pop() if self._wakes else Wake()
        key = handle if awaited is None else awaited
        at: Connection | None = None  # the connection that it leads, or follows
        try:
            while True:
                with network.lock:
                    led = self._look_up(at, key, wake)
                    at = connection = network.connection_of(handle)
                    try:
                        connection.service()
                        answer = condition()
                        while connection.session.outbox and connection.pump():
                            answer = condition()
                        if network.connection_of(handle) is not connection:
                            continue  # the handle has just moved
                        now = network.clock.monotonic()
                        done = answer or now >= deadline
                        lead = not done and connection.leader is None
                        if lead:
                            connection.leader = wake
                            connection.touches += 1
                        elif not done:
                            connection.followers.add(key, wake)
                        fds = connection.fds if lead else ()
                        until = min(deadline, connection.deadline()) if lead else deadline
                    finally:
                        if led is not None and led.leader is None:
                            _let_lead(led)
                network.settle()
                if done:
                    return answer
                poll(wake, fds, until - now)
                network.check()
        finally:
            with network.lock:
                led = self._look_up(at, key, wake)
                if led is not None:
                    _let_lead(led)
            wake.clear()
            if network.closed:
                wake.close()
            else:
                self._wakes.append(wake)

    @staticmethod
    def _look_up(at: Connection | None, key: object, wake: Wake) -> Connection | None:
        """Stop waiting for a moment; return the connection that has no leader now (lock held)."""
        if at is None:
            return None
        at.followers.discard(key, wake)
        if at.leader is not wake:
            return None
        at.leader = None
        return at

    def anywhere(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Like `wait`, for something that may come over any connection; other threads move the frames."""
        network = self._network
        network.check()
        wake = self._wakes.pop() if self._wakes else Wake()
        try:
            while True:
                with network.lock:
                    answer = condition()
                    now = network.clock.monotonic()
                    done = answer or now >= deadline
                    followed = [] if done else network.everywhere()
                    for connection in followed:
                        connection.follow(wake)
                network.settle()
                if done:
                    return answer
                try:
                    poll(wake, (), deadline - now)
                finally:
                    with network.lock:
                        for connection in followed:
                            connection.followers.discard(None, wake)
                network.check()
        finally:
            wake.clear()
            if network.closed:
                wake.close()
            else:
                self._wakes.append(wake)


def _let_lead(connection: Connection) -> None:
    """Let a waiting thread take over a connection that has no leader any more (lock held)."""
    follower = connection.followers.first()
    if follower is not None:
        follower.set()
    else:
        connection.recall()
