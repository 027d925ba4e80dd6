"""Moving frames: the sockets of one client, who waits for them, and the thread that does when nobody else will.

The road of a frame has no thread hop. Whoever has something to send sends it, under the client's one lock, and takes in
what has come before letting go of it; whoever must wait polls the socket's file descriptor itself (it *leads* the
connection). A background thread per connection stays out of the way of both, because waking it costs the busy thread
its GIL; it takes over when nobody leads: receipts, heartbeats, lingering batches, reconnecting.

May touch: zmq, threads, file descriptors. What frames mean is in `session.py`.

Invariants
- a socket is used only under the lock, and ZMQ_EVENTS is read after its last use: its descriptor is edge-triggered
- at most one user thread leads a connection; every other thread that waits is woken when frames have come
- an exception (Ctrl-C) in the middle of moving frames costs the connection, never a message: it is made anew
- user code (callbacks) never runs under the lock
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq

from ister.clock import Clock
from ister.errors import ClosedError, ConnectionLostError, ForkedError, IsterError
from ister.session import Handle, Session, back_off_s

TICK_S: Final = 0.01  # how long the background thread looks away while others move frames
TICK_LAST_S: Final = 0.2  # the same, when one thread leads on and on
TOUCHES_MAX: Final = 2  # frames sent by others within a tick, beyond which the background thread looks away
MOVES_MAX: Final = 8  # answers "moved" in a row before a back-off
MOVES_WITHIN_S: Final = 1.0  # what counts as in a row
REHOME_FAILURES: Final = (
    3  # failed attempts at an endpoint learned by "moved" before the first endpoints are asked again
)
LINGER_MS: Final = 500  # for the last frames (BYE) when a client is closed
FAREWELL_S: Final = 1.0
MONITORED: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Wake:
    """A file descriptor that is readable after `set`: what wakes one thread from `poll`."""

    __slots__ = ("_write", "fd")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.fd = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # macOS
            self.fd, self._write = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write, False)

    def set(self) -> None:
        """Wake the thread, now or when it polls next."""
        try:
            os.write(self._write, b"\x01\0\0\0\0\0\0\0")
        except OSError:
            pass  # full: it wakes anyway

    def clear(self) -> None:
        """Forget earlier calls of `set`."""
        try:
            os.read(self.fd, 64)
        except OSError:
            pass  # nothing there

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)
        if self._write != self.fd:
            os.close(self._write)


class Connection:
    """One session's socket, its back-off, and its background thread. Every method wants the lock held."""

    def __init__(self, network: Network, endpoints: list[str], *, first: bool) -> None:
        self.network = network
        self.endpoints = endpoints
        self.first = first  # one of those the user named: it asks again for ever
        self.session = Session(network.client_text, network.jitter)
        self.leader: Wake | None = None
        self.followers: list[Wake] = []
        self.touches = 0
        self.background = Wake()
        self.background_until = 0.0  # when the background thread looks again by itself
        self.closed = False
        self.leaving = False  # its producers and consumers are being taken elsewhere; then it is closed
        self.fds: tuple[int, ...] = ()
        self._at = 0
        self._failures = 0
        self._due = 0.0
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"ister {endpoints[0]}", daemon=True)

    @property
    def endpoint(self) -> str:
        """The endpoint this connection is at now."""
        return self.endpoints[self._at]

    def start(self) -> None:
        """Connect, and start the background thread."""
        self.service()
        self._thread.start()

    # ---- moving frames -------------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Send everything queued and take in everything that has come; True when something had."""
        socket = self._socket
        if socket is None:
            return False
        session = self.session
        outbox = session.outbox
        heard = False
        now = self.network.clock.monotonic()
        if outbox:
            session.spoke(now)
        try:
            while True:
                while outbox:
                    try:
                        socket.send_multipart(outbox[0], zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    outbox.popleft()
                if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    break
                heard = True
                try:
                    while not session.idle:
                        session.receive(socket.recv_multipart(zmq.NOBLOCK), now)
                except zmq.Again:
                    pass
                if session.idle:
                    self._hang_up()
                    break
        except zmq.ZMQError as error:
            self._give_up(ConnectionLostError(f"socket to {self.endpoint}: {error}"))
        except BaseException as error:
            self.interrupted(error)
            raise
        if heard:
            self._spread()
        return heard

    def _spread(self) -> None:
        """Frames have come: let the other threads that wait look whether one was for them."""
        if self.leader is not None:
            self.leader.set()
        for wake in self.followers:
            wake.set()
        if self.session.moves:
            self.network.follow_moves(self)
        self.network.progressed = True

    def touch(self) -> None:
        """Move frames on behalf of a thread that does not wait."""
        self.touches += 1
        self.pump()

    def service(self) -> None:
        """Do everything that is due: frames, timers, reconnecting."""
        try:
            self._service()
        except BaseException as error:
            self.interrupted(error)
            raise

    def _service(self) -> None:
        self.pump()
        now = self.network.clock.monotonic()
        session = self.session
        if self._monitor is not None and self._socket is not None:
            self._read_monitor()
        if session.phase in ("greeting", "ready") and now >= session.deadline():
            session.tick(now)
            if session.idle:
                self._hang_up()
                self._spread()
            elif session.outbox:
                self.pump()
        if session.idle and not self.closed and now >= self._due:
            self._connect(now)
        if session.phase == "ready":
            self._failures = 0

    def deadline(self) -> float:
        """When `service` is wanted next, if nothing comes."""
        return self._due if self.session.idle else self.session.deadline()

    def interrupted(self, error: BaseException) -> None:
        """An exception came in the middle of something: make the connection anew, so that nothing is half done."""
        for handle in self.session.handles.values():
            mend = getattr(handle, "mend", None)
            if mend is not None:
                mend()
        self._give_up(ConnectionLostError(f"interrupted by {type(error).__name__}"))

    def _give_up(self, reason: IsterError) -> None:
        self.session.lost(reason)
        self._hang_up()
        self._spread()

    # ---- the socket ----------------------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        try:
            socket = self.network.context.socket(zmq.DEALER)
            socket.linger = 0
            # Producers' windows and consumers' credit bound what is queued; high-water marks count messages and
            # would only add a second, coarser bound that drops or blocks.
            socket.sndhwm = 0
            socket.rcvhwm = 0
            socket.reconnect_ivl = 50
            socket.reconnect_ivl_max = 1000
            socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
            socket.setsockopt(zmq.IPV6, 1)
            monitor = socket.get_monitor_socket(MONITORED)
            socket.connect(self.endpoint)
            self.fds = (socket.getsockopt(zmq.FD), monitor.getsockopt(zmq.FD))  # type: ignore[assignment]
        except zmq.ZMQError as error:
            self.session.trouble = ConnectionLostError(f"cannot connect to {self.endpoint!r}: {error}")
            self._hang_up()
            return
        self._socket, self._monitor = socket, monitor
        self.session.connect(now)
        self.pump()

    def _hang_up(self) -> None:
        """Close the socket and choose when, and where, to try again."""
        now = self.network.clock.monotonic()
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(0)
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket = self._monitor = None
        self.fds = ()
        self._due = now + back_off_s(self._failures, self.network.jitter())
        if self._failures and len(self.endpoints) > 1:
            self._at = (self._at + 1) % len(self.endpoints)
            self.session.forget()
        self._failures += 1
        if not self.first and self._failures > REHOME_FAILURES:
            self.network.rehome(self)

    def _read_monitor(self) -> None:
        monitor = self._monitor
        assert monitor is not None
        try:
            while int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                event = int.from_bytes(monitor.recv_multipart(zmq.NOBLOCK)[0][:2], sys.byteorder)
                if event == zmq.EVENT_CONNECT_RETRIED:
                    refused = ConnectionLostError(f"nobody listens at {self.endpoint}")
                    self.session.trouble = refused
                    if len(self.endpoints) > 1 or not self.first:
                        self._give_up(refused)
                        return
                else:
                    self._give_up(ConnectionLostError(f"the connection to {self.endpoint} broke"))
                    return
        except zmq.ZMQError:
            pass

    def close(self) -> None:
        """Say BYE, and give everything back (except the thread, see `join`)."""
        if self.closed:
            return
        self.closed = True
        greeted = self.session.phase == "ready"
        self.session.end(ClosedError("the client is closed"))
        socket = self._socket
        if socket is not None:
            try:
                while self.session.outbox:
                    socket.send_multipart(self.session.outbox.popleft(), zmq.NOBLOCK)
                socket.disable_monitor()
            except zmq.ZMQError:
                pass
            socket.close(LINGER_MS if greeted else 0)
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket = self._monitor = None
        self.fds = ()
        self._spread()
        self.background.set()

    def join(self) -> None:
        """Wait for the background thread to end (not under the lock)."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(FAREWELL_S)

    # ---- the background thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Run in the background thread until the connection is closed; an exception makes the connection anew."""
        network = self.network
        wake = self.background
        look_away = TICK_S
        fds: tuple[int, ...]
        while True:
            with network.lock:
                if self.closed:
                    break
                try:
                    self.service()
                except Exception:  # noqa: BLE001 (this thread must outlive any mistake)
                    _log().exception("the connection to %s failed and is made anew", self.endpoint)
                now = network.clock.monotonic()
                if not network.eager and (self.leader is not None or self.touches > TOUCHES_MAX):
                    look_away = min(look_away * 2, TICK_LAST_S) if self.touches <= TOUCHES_MAX else TICK_S
                    until, fds = now + look_away, ()
                else:
                    look_away = TICK_S
                    until, fds = self.deadline(), self.fds
                self.touches = 0
                self.background_until = until
            network.settle()
            poll(wake, fds, until - now)
        with network.lock:
            network.forget(self)

    def nudge(self, due: float) -> None:
        """Something is due that the background thread does not know of; wake it unless it looks soon enough."""
        patience = 0.0 if self.network.eager else TICK_S
        if self.background_until > due + patience and self.leader is None:
            self.background_until = due
            self.background.set()


def poll(wake: Wake, fds: tuple[int, ...], timeout_s: float) -> None:
    """Wait until the wake or one of the descriptors is readable, or the time has passed (without the lock)."""
    poller = select.poll()
    poller.register(wake.fd, select.POLLIN)
    for fd in fds:
        poller.register(fd, select.POLLIN)
    milliseconds = None if timeout_s > 3600 else max(0, int(timeout_s * 1000 + 0.999))
    for fd, event in poller.poll(milliseconds):
        if fd == wake.fd:
            wake.clear()
        elif event & select.POLLNVAL:
            return  # the socket was closed meanwhile


class User(Protocol):
    """What holds the lock for itself: a producer, a consumer."""

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: use this lock, and take no fast path any more."""


class Network:
    """The connections of one client: where each producer and consumer is, and how to wait for something."""

    def __init__(
        self, endpoints: list[str], *, clock: Clock, jitter: Callable[[], float], client_text: str
    ) -> None:
        """`jitter` returns random numbers from 0 to 1; `client_text` tells people who this is."""
        self.lock = threading.Lock()
        self.clock = clock
        self.jitter = jitter
        self.client_text = client_text
        self.context = zmq.Context()
        self.callbacks: deque[Callable[[], Any]] = deque()
        self.on_progress: Callable[[], Any] | None = (
            None  # told, without the lock, when anything may have changed
        )
        self.progressed = False
        self.eager = False  # the background threads do all the waiting (asyncio)
        self.forked = False
        self.closed = False
        self._handles = 0
        self._moves: dict[
            int, tuple[int, float]
        ] = {}  # handle: answers "moved" in a row, and when the last came
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._connections: list[Connection] = []
        self._wakes: list[Wake] = []
        with self.lock:
            self.home = self._connection(endpoints, first=True)
        _live.add(self)

    # ---- places --------------------------------------------------------------------------------------------------

    def _connection(self, endpoints: list[str], *, first: bool) -> Connection:
        for connection in self._connections:
            if not (connection.closed or connection.leaving) and connection.endpoint == endpoints[0]:
                return connection
        connection = Connection(self, endpoints, first=first)
        self._connections.append(connection)
        connection.start()
        return connection

    def attach(self, handle: Handle, user: User) -> None:
        """Let a new producer or consumer begin at the first endpoint (lock held)."""
        self._users.add(user)
        self.home.session.attach(handle)
        self.home.touch()

    def next_handle(self) -> int:
        """Return a number that no other producer or consumer of this client has (lock held)."""
        self._handles += 1
        return self._handles

    def connection_of(self, handle: Handle | None) -> Connection:
        """Return the connection that a producer or consumer is at now (lock held)."""
        if handle is not None and handle.session is not None:
            for connection in self._connections:
                if connection.session is handle.session:
                    return connection
        return self.home

    def follow_moves(self, connection: Connection) -> None:
        """Take the handles that live elsewhere there (lock held)."""
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
        """An endpoint does not come back: ask the first ones where its producers and consumers are (lock held)."""
        connection.leaving = True  # an answer read on the way may send a handle there: over a new connection
        for handle in list(connection.session.handles.values()):
            self._moves.pop(handle.handle, None)
            self._take(handle, connection, self.home)
        connection.close()

    def forget(self, connection: Connection) -> None:
        """A background thread has ended (lock held)."""
        if connection in self._connections:
            self._connections.remove(connection)
            connection.background.close()

    # ---- waiting -------------------------------------------------------------------------------------------------

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
        """Return how many seconds it is until then, at least 0; `None` for ever."""
        return None if deadline == float("inf") else max(0.0, deadline - self.clock.monotonic())

    def wake_background(self) -> None:
        """Have every background thread look at once (lock held)."""
        for connection in self._connections:
            connection.background.set()

    def wait(self, handle: Handle | None, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait until `condition()` (evaluated under the lock) holds; False when the deadline came first.

        The calling thread moves the frames of the connection the handle is at, wherever that is meanwhile.
        """
        self.check()
        wake = self._wakes.pop() if self._wakes else Wake()
        try:
            while True:
                with self.lock:
                    connection = self.connection_of(handle)
                    connection.service()
                    answer = condition()
                    while connection.session.outbox and connection.pump():
                        answer = condition()
                    if self.connection_of(handle) is not connection:
                        continue  # it has just moved
                    now = self.clock.monotonic()
                    done = answer or now >= deadline
                    if not done:
                        lead = connection.leader is None
                        if lead:
                            connection.leader = wake
                            connection.touches += 1
                        else:
                            connection.followers.append(wake)
                        fds = connection.fds if lead else ()
                        until = min(deadline, connection.deadline()) if lead else deadline
                self.settle()
                if done:
                    return answer
                try:
                    poll(wake, fds, until - now)
                finally:
                    with self.lock:
                        self._stop_waiting(connection, wake)
                self.check()
        finally:
            wake.clear()
            if self.closed:
                wake.close()
            else:
                self._wakes.append(wake)

    def _stop_waiting(self, connection: Connection, wake: Wake) -> None:
        if connection.leader is wake:
            connection.leader = None
            if connection.followers:
                connection.followers[0].set()  # it may lead now
        elif wake in connection.followers:
            connection.followers.remove(wake)

    def settle(self) -> None:
        """After the lock was let go: make the calls that users asked for."""
        while self.callbacks:
            try:
                call = self.callbacks.popleft()
            except IndexError:
                break
            try:
                call()
            except Exception:  # noqa: BLE001 (the mistake is in a user's callback)
                _log().exception("a callback failed")
        if self.progressed:
            self.progressed = False
            if self.on_progress is not None:
                self.on_progress()

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection and wait for their threads."""
        with self.lock:
            if self.closed or self.forked:
                return
            self.closed = True
            connections = list(self._connections)
            for connection in connections:
                connection.close()
        for connection in connections:
            connection.join()
        self.settle()
        self.context.term()
        for wake in self._wakes:
            wake.close()
        self._wakes.clear()
        _live.discard(self)

    def after_fork(self) -> None:
        """In the child: nothing of this can be used, and nothing may hang when it is tried."""
        self.forked = True
        self.lock = threading.Lock()  # the old one may be held by a thread that is not here
        for user in self._users:
            user.after_fork(self.lock)


def _log() -> logging.Logger:
    return logging.getLogger("ister")


_live: weakref.WeakSet[Network] = weakref.WeakSet()


def _after_fork() -> None:
    for network in list(_live):
        network.after_fork()


def _at_exit() -> None:
    for network in list(_live):
        network.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
