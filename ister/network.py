"""The connections of one client: where each producer and consumer is, who is told of what, and the end.

Moves the frames of no connection itself (`connection.py` does), and has no thread wait (`waits.py` does).

May touch: threads, the zmq context; sockets only through `Connection`.

Invariants
- one lock guards everything of a client; user code never runs under it
- a client is never used in a forked child, and never keeps an interpreter from exiting
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq

from ister.clientsession import Handle
from ister.clock import Clock
from ister.connection import Connection
from ister.errors import ClosedError, ConnectionLostError, ForkedError
from ister.message import BrokerEvent
from ister.waits import Waits
from ister.waking import News

MOVES_MAX: Final = 8  # answers "moved" in a row before a back-off
MOVES_WITHIN_S: Final = 1.0  # seconds within which they count as in a row
EVENTS_MAX: Final = 256  # kept for a program that never reads them
GOODBYE_S: Final = (
    1.0  # seconds that a connection that was cut short may take to be made again when the client is closed
)


class User(Protocol):
    """A producer or consumer, which uses the lock directly."""

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: use this lock, and leave the fast path."""

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand fail if the exception is a failure."""

    def part(self) -> None:
        """Send what is still to be sent: the client is about to say BYE (lock held)."""


class Network:
    """The connections of one client, and where each of its producers and consumers is."""

    def __init__(
        self,
        endpoints: list[str],
        *,
        clock: Clock,
        jitter: Callable[[], float],
        client_text: str,
        on_event: Callable[[BrokerEvent], Any] | None = None,
        context: zmq.Context[Any] | None = None,
        connection_type: type[Connection] = Connection,
    ) -> None:
        """`jitter` returns random numbers from 0 to 1; `client_text` tells people who this is.

        `on_event` is told of every event, the first one included: the background thread may connect at once.
        `context` creates the sockets, and `connection_type` moves their frames: a simulation has its own.
        """
        self.lock = threading.Lock()
        self.clock = clock
        self.jitter = jitter
        self.client_text = client_text
        self.context: zmq.Context[Any] = zmq.Context() if context is None else context
        self._connection_type = connection_type
        self.callbacks: deque[Callable[[], Any]] = deque()
        # called without the lock when something has changed
        self.on_progress: Callable[[], Any] | None = None
        self.events: deque[BrokerEvent] = deque(maxlen=EVENTS_MAX)
        self._on_event = on_event
        self._news = News()  # since the last call of `take_news`
        self._progressed = False
        self.eager = False  # the background threads do all the waiting (asyncio)
        self.forked = False
        self.closed = False
        self._dropped: deque[Handle] = deque()  # of receivers that the program does not use any more
        self._handles = 0
        # handle: answers "moved" in a row, and when the last came
        self._moves: dict[int, tuple[int, float]] = {}
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._connections: list[Connection] = []
        self._left: dict[
            str, tuple[bytes, set[int]]
        ] = {}  # by endpoint: a session given up, and the handles that were open in it
        self.waits = Waits(self)
        with self.lock:
            self.home = self._connection(endpoints, first=True)
        _live.add(self)

    # ---- places --------------------------------------------------------------------------------------------------

    def _connection(self, endpoints: list[str], *, first: bool) -> Connection:
        for connection in self._connections:
            if not (connection.closed or connection.leaving) and connection.endpoint == endpoints[0]:
                return connection
        connection = self._connection_type(self, endpoints, first=first)
        left = self._left.pop(endpoints[0], None)
        if left is not None:
            connection.session.inherit(*left)
        self._connections.append(connection)
        connection.start()
        return connection

    def attach(self, handle: Handle, user: User) -> None:
        """Let a new producer or consumer begin at the first endpoint (lock held)."""
        self._users.add(user)
        self.home.session.attach(handle)
        self.home.touch()

    def close_with(self, receiver: object, handle: Handle) -> None:
        """Have a consumer or reader closed at the broker when the program drops its last reference to it."""
        weakref.finalize(receiver, self._let_go, handle).atexit = False

    def _let_go(self, handle: Handle) -> None:
        """Called by the garbage collection, in any thread, perhaps under the lock."""
        if handle.session is None or self.closed or self.forked:
            return
        self._dropped.append(handle)
        for connection in tuple(self._connections):
            connection.background.set()

    def close_dropped(self) -> None:
        """Close at the broker what the program dropped without closing it (lock held)."""
        while self._dropped:
            handle = self._dropped.popleft()
            session = handle.session
            handle.close()
            handle.fail(ClosedError("the program dropped it without closing it"))
            if session is not None:
                session.detach(handle)

    def next_handle(self) -> int:
        """Return a number that no other producer or consumer of this client has (lock held)."""
        self._handles += 1
        return self._handles

    def connection_of(self, handle: Handle | None) -> Connection:
        """Return the connection that a producer or consumer uses now (lock held)."""
        if handle is not None and handle.session is not None:
            for connection in self._connections:
                if connection.session is handle.session:
                    return connection
        return self.home

    def follow_moves(self, connection: Connection) -> None:
        """Move the handles that run elsewhere to their workers (lock held)."""
        moves, connection.session.moves = connection.session.moves, []
        now = self.clock.monotonic()
        for handle, endpoint in moves:
            hops, when = self._moves.get(handle.handle, (0, now))
            hops = hops + 1 if now - when < MOVES_WITHIN_S else 1
            self._moves[handle.handle] = (hops, now)
            if hops > MOVES_MAX:
                error = ConnectionLostError(f"moved {MOVES_MAX} times in a row, lastly to {endpoint}")
                handle.postpone(error, now + MOVES_WITHIN_S)
            else:
                self._take(handle, connection, self._connection([endpoint], first=False))

    def _take(self, handle: Handle, here: Connection, there: Connection) -> None:
        here.session.handles.pop(handle.handle, None)
        handle.on_lost(ConnectionLostError(f"moved to {there.endpoint}"))
        there.session.attach(handle)
        there.touch()
        there.background.set()

    def rehome(self, connection: Connection) -> None:
        """Ask the first endpoints where producers and consumers of an unreachable one run (lock held).

        If they name that endpoint again, its session is resumed; otherwise it would keep an Exclusive consumer's place.
        """
        session = connection.session
        if session.secret is not None:
            self._left[connection.endpoint] = (session.secret, set(session.handles))
        # an answer that is still read may send a handle there: over a new connection
        connection.leaving = True
        for handle in list(session.handles.values()):
            self._moves.pop(handle.handle, None)
            self._take(handle, connection, self.home)
        connection.close()

    def forget(self, connection: Connection) -> None:
        """A background thread has ended (lock held)."""
        if connection in self._connections:
            self._connections.remove(connection)
            connection.background.close()

    # ---- time, and telling -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if this client cannot be used here any more."""
        if self.forked:
            raise ForkedError("this client was made before a fork: connect again in the child process")
        if self.closed:
            raise ClosedError("the client is closed")

    def deadline(self, timeout: float | None) -> float:
        """Return the clock's time in `timeout` seconds; infinity for `None`."""
        return float("inf") if timeout is None else self.clock.monotonic() + timeout

    def seconds_until(self, deadline: float) -> float | None:
        """Return how many seconds are left until then, at least 0; `None` for ever."""
        return None if deadline == float("inf") else max(0.0, deadline - self.clock.monotonic())

    def wake_background(self) -> None:
        """Let every background thread check its connection at once (lock held)."""
        for connection in self._connections:
            connection.background.set()

    def everywhere(self) -> list[Connection]:
        """Return every connection (lock held)."""
        return list(self._connections)

    def move_frames(self) -> bool:
        """Send what is queued, and read what arrived, over all connections; return whether something had (lock held).

        A caller in a condition must check it again: no thread is woken for what arrived meanwhile.
        """
        return sum(connection.pump() for connection in list(self._connections)) > 0

    def settle(self) -> None:
        """Make the calls that users asked for, after the lock was released."""
        while self.callbacks:
            try:
                call = self.callbacks.popleft()
            except IndexError:
                break
            try:
                call()
            except Exception:
                logging.getLogger("ister").exception("a callback failed")
        if self._progressed:
            self._progressed = False
            if self.on_progress is not None:
                self.on_progress()

    def note(self, news: News) -> None:
        """Note that something has changed for a key (lock held)."""
        if self.on_progress is not None and news:
            self._progressed = True
            self._news.add(news)

    def take_news(self) -> News:
        """Return for which keys something has changed since the last call, if `on_progress` is set."""
        with self.lock:
            return self._news.take()

    def wake(self, key: object) -> None:
        """Let the threads that wait for this key check their conditions, on any connection (lock held)."""
        news = News()
        news.keys.add(key)
        for connection in self._connections:
            connection.wake(news)
        self.note(news)

    def tell(self, event: BrokerEvent, *, own_doing: bool = False) -> None:
        """Report to the program and its log that a broker has come or gone (lock held).

        A connection that this program broke itself (Ctrl-C while frames were moved) is not logged as a warning.
        """
        log = logging.getLogger("ister")
        if event.code == "lost":
            level = logging.INFO if own_doing else logging.WARNING
            log.log(level, "the connection to %s was lost, and is made again: %s", event.endpoint, event.text)
        elif self.events:
            log.info("connected to %s", event.endpoint)
        self.events.append(event)
        if self._on_event is not None:
            call = self._on_event
            self.callbacks.append(lambda: call(event))

    # ---- the end -------------------------------------------------------------------------------------------------

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand fail, if the exception that ends the program's work is a failure."""
        if not self.closed and not self.forked:
            for user in list(self._users):
                user.blame(error)

    def close(self) -> None:
        """Close every connection and wait for their threads."""
        if not self.closed and not self.forked:
            self._come_back_for_goodbye()
        with self.lock:
            if self.closed or self.forked:
                return
            for user in list(self._users):
                user.part()
            self.closed = True
            connections = list(self._connections)
            for connection in connections:
                connection.close()
        for connection in connections:
            connection.join()
        self.settle()
        self.context.term()
        self.waits.close()
        _live.discard(self)

    def _come_back_for_goodbye(self) -> None:
        """Reconnect where an exception (Ctrl-C) cut a connection short, only to say BYE.

        Otherwise the client's places at the broker would stay occupied until its session ends there.
        """

        def are_back() -> bool:
            return not any(
                each.cut_short and each.session.phase in ("idle", "greeting") for each in self._connections
            )

        if not are_back():
            self.waits.anywhere(are_back, self.clock.monotonic() + GOODBYE_S)

    def after_fork(self) -> None:
        """In the child of a fork: nothing here can be used, and trying it must not hang."""
        self.forked = True
        self.lock = threading.Lock()  # the old one may be held by a thread that does not exist here
        for user in self._users:
            user.after_fork(self.lock)


_live: weakref.WeakSet[Network] = weakref.WeakSet()


def _after_fork() -> None:
    for network in list(_live):
        network.after_fork()


def _at_exit() -> None:
    ended_by = (
        None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    )  # at a prompt it was long ago
    for network in list(_live):
        network.blame(ended_by)
        network.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
