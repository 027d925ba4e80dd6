"""One socket: sending and receiving frames, its back-off, and a background thread for when no other thread waits.

Frames are moved without a thread hop. A thread with something to send sends it, under the client's one lock, and takes
in what has arrived before it releases the lock. A thread that must wait polls the socket's file descriptor itself (it
*leads* the connection). A background thread per connection leaves the socket to busy threads, because waking it costs
them the interpreter lock (`attendance.py`). It takes over when no thread leads, or they have time to spare: receipts,
heartbeats, lingering batches, reconnecting.

May touch: zmq, threads, file descriptors. `clientsession.py` interprets the frames.

Invariants
- a socket is used only under the lock, and ZMQ_EVENTS is read after its last use: its descriptor is edge-triggered
- at most one user thread leads a connection; every other waiting thread is woken when something has arrived for it
- an exception (Ctrl-C) while frames are moved costs the connection, never a message: the client reconnects
- user code (callbacks) never runs under the lock
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq

from ister.attendance import TICK_S, TOUCHES_MAX, Attendance
from ister.backoff import doubled
from ister.clientsession import Session, back_off_s
from ister.clock import Clock, processor_s
from ister.errors import ClosedError, ConnectionLostError, IsterError
from ister.message import BrokerEvent
from ister.polling import Wake, poll
from ister.sockets import has_message, receive, send
from ister.waking import News, Waiters

# seconds for which the background thread leaves the socket alone, at most, when one thread leads all the time
TICK_LAST_S: Final = 0.2
REHOME_FAILURES: Final = 3  # at an endpoint learned by "moved", before the first endpoints are asked again
LINGER_MS: Final = 500  # for the last frames (BYE) when a client is closed
FAREWELL_S: Final = 1.0
MONITORED: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Owner(Protocol):
    """What a connection uses of its client: `ister.network.Network`."""

    lock: threading.Lock
    clock: Clock
    jitter: Callable[[], float]
    client_text: str
    context: zmq.Context[Any]
    eager: bool

    def follow_moves(self, connection: Connection) -> None:
        """Move the handles that run elsewhere to their workers (lock held)."""

    def rehome(self, connection: Connection) -> None:
        """Ask the first endpoints where producers and consumers of an unreachable one run (lock held)."""

    def forget(self, connection: Connection) -> None:
        """A background thread has ended (lock held)."""

    def note(self, news: News) -> None:
        """Note that something has changed for a key (lock held)."""

    def tell(self, event: BrokerEvent, *, own_doing: bool = False) -> None:
        """Report that a broker came or went, perhaps because an exception here broke the connection (lock held)."""

    def close_dropped(self) -> None:
        """Close at the broker what the program dropped without closing it (lock held)."""

    def settle(self) -> None:
        """Make the calls that users asked for, after the lock was released."""


class Connection:
    """One session's socket, its back-off, and its background thread. Every method needs the lock."""

    def __init__(self, network: Owner, endpoints: list[str], *, first: bool) -> None:
        self.network = network
        self.endpoints = endpoints
        self.first = first  # one of those that the user named: it reconnects for ever
        self.session = Session(network.client_text, network.jitter)
        self.leader: Wake | None = None
        self.followers: Waiters[Wake] = Waiters()
        self.touches = 0  # how often others moved frames since the background thread looked
        self.attendance = Attendance()
        self.background = Wake()
        self.away = False  # the background thread leaves the socket to others for a moment
        self.background_until = 0.0  # when the background thread looks again by itself
        self.due = 0.0  # when `service` is to be called next, as of its last end
        self.closed = False
        self.cut_short = False  # by an exception on this side; the broker still knows its session
        self.leaving = False  # its producers and consumers are being moved elsewhere; then it is closed
        self.fds: tuple[int, ...] = ()
        self._up = False  # the program was told that there is a session
        self._at = 0
        self._failures = 0
        self._due = 0.0
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"ister {endpoints[0]}", daemon=True)

    @property
    def endpoint(self) -> str:
        """The endpoint this connection uses now."""
        return self.endpoints[self._at]

    def start(self) -> None:
        """Connect, and start the background thread."""
        self.service()
        self._thread.start()

    # ---- moving frames -------------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Send everything queued and read everything that has arrived; return True if something had."""
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
                        send(socket, outbox[0])
                    except zmq.Again:
                        break
                    outbox.popleft()
                if not has_message(socket):
                    break
                heard = True
                while not session.idle:
                    session.receive(receive(socket), now)
                    if not has_message(socket):
                        break
                if session.idle:
                    self._hang_up()
                    break
                if not outbox:
                    break
        except zmq.ZMQError as error:
            self._give_up(ConnectionLostError(f"socket to {self.endpoint}: {error}"))
        except BaseException as error:
            self.interrupted(error)
            raise
        if heard:
            if session.phase == "ready" and not self._up:
                self._up = True
                self.network.tell(BrokerEvent("connected", self.endpoint))
            self.spread()
        return heard

    def tell_all(self) -> None:
        """Let all waiting threads check: something has changed that no frame told of."""
        self.session.news.everything = True
        self.spread()

    def spread(self) -> None:
        """Let those threads check that the session's news concern."""
        news = self.session.news.take()
        self.wake(news)
        if self.session.moves:
            self.network.follow_moves(self)
        self.network.note(news)

    def wake(self, news: News) -> None:
        """Wake the threads that wait here and are concerned; the leader checks in any case."""
        if self.leader is not None:
            self.leader.set()
        if self.followers:
            for wake in self.followers.concerned(news):
                wake.set()

    def touch(self) -> None:
        """Move frames for a thread that does not wait."""
        self.touches += 1
        self.pump()
        if self.away:
            self.recall()

    def service(self) -> None:
        """Do everything that is due: frames, timers, reconnecting."""
        try:
            self._service()
        except BaseException as error:
            self.interrupted(error)
            raise

    def _service(self) -> None:
        self.network.close_dropped()
        self.pump()
        now = self.network.clock.monotonic()
        session = self.session
        if self._monitor is not None and self._socket is not None:
            self._read_monitor()
        self.due = session.deadline()
        if session.phase in ("greeting", "ready") and now >= self.due:
            session.tick(now)
            if session.idle:
                self._hang_up()
                self.spread()
            elif session.outbox:
                self.pump()
            self.due = session.deadline()
        if session.idle:
            if not self.closed and now >= self._due:
                self._connect(now)
            self.due = self.deadline()
        if session.phase == "ready":
            self._failures = 0
            self.cut_short = False

    def deadline(self) -> float:
        """When `service` is to be called next, if nothing arrives."""
        return self._due if self.session.idle else self.session.deadline()

    def interrupted(self, error: BaseException) -> None:
        """Make the connection anew after an exception in the middle of something, so that nothing is half done."""
        for handle in self.session.handles.values():
            mend = getattr(handle, "mend", None)
            if mend is not None:
                mend()
        self.cut_short = True
        self.due = 0.0
        self._give_up(ConnectionLostError(f"interrupted by {type(error).__name__}"))

    def _give_up(self, reason: IsterError) -> None:
        self.session.lost(reason)
        self._hang_up()
        self.spread()

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
            self.fds = (socket.getsockopt(zmq.FD), monitor.getsockopt(zmq.FD))
        except zmq.ZMQError as error:
            self.session.trouble = ConnectionLostError(f"cannot connect to {self.endpoint!r}: {error}")
            self._hang_up()
            return
        self._socket, self._monitor = socket, monitor
        self.session.connect(now)
        self.pump()

    def _hang_up(self) -> None:
        """Close the socket and choose when and where to try again."""
        if self._up:
            self._up = False
            why = self.session.trouble
            event = BrokerEvent("lost", self.endpoint, "" if why is None else why.text)
            self.network.tell(event, own_doing=self.cut_short)
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
            while has_message(monitor):
                event = int.from_bytes(receive(monitor)[0][:2], sys.byteorder)
                if event == zmq.EVENT_CONNECT_RETRIED:
                    if self.session.phase == "ready":
                        continue  # of an earlier attempt than the one that succeeded
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
        """Say BYE, and close everything (except the thread, see `join`)."""
        if self.closed:
            return
        self.closed = True
        greeted = self.session.phase == "ready"
        self.session.end(ClosedError("the client is closed"))
        socket = self._socket
        if socket is not None:
            try:
                while self.session.outbox:
                    send(socket, self.session.outbox.popleft())
                socket.disable_monitor()
            except zmq.ZMQError:
                pass
            socket.close(LINGER_MS if greeted else 0)
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket = self._monitor = None
        self.fds = ()
        self.spread()
        self.background.set()

    def join(self) -> None:
        """Wait for the background thread to end (not under the lock)."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(FAREWELL_S)

    # ---- the background thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Run in the background thread until the connection is closed; after an exception, make the connection anew."""
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
                except Exception:
                    logging.getLogger("ister").exception(
                        "the connection to %s failed and is made anew", self.endpoint
                    )
                now = network.clock.monotonic()
                led = self.leader is not None
                leaves = self.attendance.leaves(self.touches, led, now, processor_s())
                self.away = not network.eager and leaves and (led or not self.followers)
                if self.away:
                    look_away = doubled(look_away, TICK_LAST_S, 1) if self.touches <= TOUCHES_MAX else TICK_S
                    until, fds = now + look_away, ()
                else:
                    look_away = TICK_S
                    until, fds = self.due, self.fds
                self.touches = 0
                self.background_until = until
            network.settle()
            poll(wake, fds, until - now)
        with network.lock:
            network.forget(self)

    def recall(self) -> None:
        """Call the background thread back, if nobody else would notice the receipts that are to come."""
        unread = self.away and self.leader is None and self.session.awaiting
        if unread and self.attendance.recall(self.network.clock.monotonic()):
            self.background.set()

    def follow(self, wake: Wake) -> None:
        """Wake a thread whenever something has arrived; others move the frames."""
        self.followers.add(None, wake)
        if self.away and self.leader is None:
            self.background.set()

    def nudge(self, due: float) -> None:
        """Wake the background thread for something that is due, unless it looks soon enough."""
        patience = 0.0 if self.network.eager else TICK_S
        if self.background_until > due + patience and self.leader is None:
            self.background_until = due
            self.background.set()
