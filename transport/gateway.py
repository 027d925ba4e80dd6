"""The gateway: the only user of the ROUTER socket (`router.py`). It turns frames into calls on `GatewayEvents`, and
answers into frames.

Invariants
- it never looks at single messages of a batch: its cost is per frame
- whatever a client sends, the worst result is an error for that client, and nothing for others
- a client that does not read cannot make it wait: sends never block, and the caller is told when a message does not fit
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol

import zmq

from ister.bodies import Buffer, check_batch, pack_lengths
from ister.clock import Clock
from ister.errors import IsterError, LocalProtocolError, RemoteError, RemoteProtocolError
from ister.sockets import has_message, send
from ister.transport.connections import Connections
from ister.transport.frames import FrameReader, TooManyFramesError
from ister.transport.guard import IDLE_LOOK_S, Guard
from ister.transport.questions import Question
from ister.transport.router import Monitor, bind, open_router
from ister.transport.session import HANDLE_FRAMES, SESSION_FRAMES, Handle, Session, Sessions
from ister.wire import (
    RANGES_MAX,
    Header,
    Key,
    Type,
    decode_header,
    encode_header,
    readable_numbers,
)
from ister.words import counted

log = logging.getLogger("ister.gateway")

# A turn reads at most this many messages, so that timers, mail and commits get their turn: 64 batches of 64 KiB are
# 4 MiB, some 10 ms of work.
RECEIVE_MAX: Final = 64
# After this time an acknowledgment that is not stored, or a CLOSE whose batches have no receipts, is answered with an
# error: it is longer than anything takes that is not stuck.
ANSWER_WITHIN_S: Final = 30.0

_OPENS: Final = (Type.OPEN_PRODUCER, Type.OPEN_CONSUMER)
_NO_OPEN: Final = tuple(kind for kind in HANDLE_FRAMES if kind not in _OPENS)
_NOT_LEFT: Final = (Type.CLOSE,)
_SUPERSEDED: Final = RemoteError("closed", "the handle was opened again before this was answered")
_CLOSED: Final = RemoteError("closed", "the handle was closed before this was answered")
_OVERDUE: Final = RemoteError(
    "unavailable", f"it was not done within {ANSWER_WITHIN_S:g} s, and may be done later; try again"
)


class Sent(Enum):
    """The outcome of sending a message to a client."""

    OK = "ok"
    FULL = "full"  # its queue is full: try again later
    GONE = "gone"  # there is no connection: the client may come back and resume


class GatewayEvents(Protocol):
    """The calls of the gateway; each may raise an `IsterError`, which is sent to the client."""

    def open_producer(self, handle: Handle, header: Header) -> None:
        """A handle (now "opening") asks to publish to a topic."""

    def open_consumer(self, handle: Handle, header: Header) -> None:
        """A handle (now "opening") asks to consume a subscription."""

    def publish(
        self, handle: Handle, sequence: int, count: int, columns: int, frames: Sequence[Buffer], /
    ) -> None:
        """A checked batch arrived: `frames` is `[lengths, payloads, keys?, attributes?, times?]`."""

    def consumer_frame(self, handle: Handle, header: Header) -> None:
        """A CREDIT, ACK, ACK_UNTIL, NACK or EXTEND arrived."""

    def close(self, handle: Handle, ref: int | None) -> None:
        """A handle is to be closed, and DONE sent if there is a ref."""

    def request(self, session: Session, ref: int, operation: str, arguments: dict[str, object]) -> None:
        """An administrative request arrived."""

    def session_ended(self, session: Session) -> None:
        """A session said BYE, or was silent for too long; its handles are still listed."""


@dataclass(slots=True)
class GatewayCounts:
    """The gateway's counts since it started."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    errors_out: int = 0
    malformed: int = 0
    sessions_expired: int = 0
    by_code: dict[str, int] = field(default_factory=dict)


class Gateway:
    """The ROUTER of one worker."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], clock: Clock, sessions: Sessions) -> None:
        self.sessions = sessions
        self.counts = GatewayCounts()
        self._clock = clock
        self._events: GatewayEvents | None = None
        self._context = context
        self._connections: Connections[Session] = Connections()
        self._monitor: Monitor | None = None
        self.guard: Guard | None = None  # if there is a monitor
        self.socket = open_router(context, sessions.limits.batch_bytes_max)
        self._frames = FrameReader(self.socket)

    def bind(self, endpoint: str, events: GatewayEvents) -> None:
        """Listen on an endpoint; raises `UsageError` if it is in use or not of this machine."""
        self._events = events
        bind(self.socket, endpoint)

    def close(self) -> None:
        """Close the socket at once."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self.socket.close(linger=0)

    # ---- connections that are closed ----------------------------------------------------------------------------

    def watch_connections(self, is_short: Callable[[], bool] = lambda: False) -> zmq.Socket[bytes]:
        """Watch for closed connections; return the socket to watch, for which `read_connections` is to be called.

        `is_short()` says whether file descriptors are nearly used up.
        """
        self.guard = Guard(self._clock, is_short)
        self._monitor = Monitor(self._context, self.socket)
        return self._monitor.socket

    def read_connections(self) -> None:
        """Read the monitor's events."""
        if self._monitor is None:
            return
        for accepted, descriptor in self._monitor.news():
            if accepted:
                self._connections.accepted(descriptor)
                if self.guard is not None:
                    self.guard.accepted(descriptor)
                continue
            if self.guard is not None:
                self.guard.closed(descriptor)
            gone = self._connections.closed(descriptor)
            if gone is not None:
                self._connection_closed(*gone)

    def _connection_closed(self, session: Session, routing: bytes) -> None:
        """Note that a session has no connection: it has some time to resume."""
        self.sessions.orphan(session, routing, self._clock.monotonic())

    def connection_closed(self, routing: bytes) -> None:
        """Note that the connection with this routing id is closed, where there is no monitor."""
        session = self.sessions.at(routing)
        if session is not None:
            self._connection_closed(session, routing)

    # ---- in -----------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Read what has arrived, at most `RECEIVE_MAX` messages."""
        take = self._frames.take
        now_s = self._clock.monotonic()
        for _ in range(RECEIVE_MAX):
            try:
                parts = take()
            except TooManyFramesError as error:
                self._refuse_frames(error)
                return
            if parts is None:
                return
            self.counts.frames_in += 1
            self._take(parts, now_s)

    def _refuse_frames(self, error: TooManyFramesError) -> None:
        """End the connection that such a message came over: no client sends one, and each costs all others time.

        Its client is told why, once.
        """
        self.counts.frames_in += 1
        self.counts.malformed += 1
        self.read_connections()
        if self.guard is None or self.guard.end_behind_answer(error.fd, str(error)):
            self._answer_error(error.routing, {}, RemoteProtocolError(str(error)))

    def look_after_connections(self) -> float:
        """Close the connections that must go; return how soon to call this again, in seconds."""
        assert self.guard is not None, "watch_connections() was not called"
        if self.guard.is_quiet():
            return IDLE_LOOK_S
        self.read_connections()
        counts = self.counts
        passed = counts.frames_in + counts.frames_out, counts.bytes_in + counts.bytes_out
        return self.guard.look(*passed, drained=not has_message(self.socket))

    def _take(self, parts: list[Any], now_s: float) -> None:
        routing, body = parts[0], parts[2:]
        header: Header = {}
        try:
            if len(parts) < 2:
                raise RemoteProtocolError("a message without a header frame")
            header = decode_header(parts[1])
            self._handle(routing, header, body, now_s)
        except IsterError as error:
            if isinstance(error, RemoteProtocolError | LocalProtocolError):
                self.counts.malformed += 1
                if not header and len(parts) > 1:
                    header = readable_numbers(parts[1])
            self._answer_error(routing, header, error)
        except Exception:
            log.exception("a frame of type %s could not be handled", header.get(Key.TYPE))
            self._answer_error(routing, header, RemoteError("internal", "the broker failed; see its log"))

    def _handle(self, routing: bytes, header: Header, body: list[Buffer], now_s: float) -> None:
        events = self._events
        assert events is not None, "bind() was not called"
        kind = header[Key.TYPE]
        if kind not in SESSION_FRAMES:
            raise RemoteProtocolError(f"frames of type {kind} are sent by brokers, not by clients")
        if kind == Type.HELLO:
            self._hello(routing, header, now_s)
            return
        session = self.sessions.of_routing(routing)
        session.heard_at_s = now_s
        if kind == Type.PUBLISH:
            _, handle = self.sessions.step(session, header)
            frames: list[Buffer] = body if len(body) != 1 else [pack_lengths(body), body[0]]
            columns = header.get(Key.COLUMNS, 0)
            limits = self.sessions.limits
            count = check_batch(
                frames,
                columns,
                message_bytes_max=limits.message_bytes_max,
                batch_bytes_max=limits.batch_bytes_max,
            )
            self.counts.bytes_in += len(frames[1])
            events.publish(handle, header[Key.SEQUENCE], count, columns, frames)
            return
        if body:
            raise RemoteProtocolError(f"a frame of type {kind} has no body")
        if kind == Type.PING:
            pong: Header = {Key.TYPE: Type.PONG, Key.BOOT: self.sessions.boot}
            if Key.REF in header:
                pong[Key.REF] = header[Key.REF]
            # if there is no room for it, the client has enough other frames to read
            self.send(session, pong, may_wait=True)
        elif kind == Type.REQUEST:
            events.request(session, header[Key.REF], header[Key.OPERATION], header.get(Key.ARGUMENTS, {}))
        elif kind == Type.BYE:
            self._end(session)
        else:
            self._handle_frame(session, header)

    def _hello(self, routing: bytes, header: Header, now_s: float) -> None:
        self.read_connections()  # first, because the descriptor of a closed connection may be used again
        before, welcome = self.sessions.hello(routing, header, now_s)
        if before is not None:  # otherwise a client that says nothing but HELLO would use up all sessions
            self._end(before)
        if self.guard is not None:
            session, descriptor = self.sessions.of_routing(routing), self._frames.source
            earlier, session.connection = session.connection, self.guard.introduced(descriptor, session)
            if earlier is not session.connection:
                self.guard.left(earlier)
            # The connection of a peer with a protocol older than ZMTP 3 is unknown.
            for gone in self._connections.greeted(descriptor, session, routing) if descriptor >= 0 else ():
                self._connection_closed(*gone)
        self._send_to(routing, welcome)

    def _handle_frame(self, session: Session, header: Header) -> None:
        ranges = len(header.get(Key.RANGES, ())) // 2
        if ranges > RANGES_MAX:
            raise RemoteError(
                "limit-exceeded",
                f"a frame with {counted(ranges, 'range')}, over the limit of {RANGES_MAX}: send them in several frames",
            )
        events = self._events
        assert events is not None, "bind() was not called"
        action, handle = self.sessions.step(session, header)
        if action == "open":  # an earlier open that still waits will not be answered by any actor
            self._answer_left(handle, _SUPERSEDED, but=_NO_OPEN)
        if Key.REF in header:
            session.questions.ask(header[Key.REF], handle, header[Key.TYPE], session.heard_at_s)
        if action in ("ack", "credit"):
            events.consumer_frame(handle, header)
        elif action == "close":
            events.close(handle, header[Key.REF])
        elif action == "open":
            self._open(handle, header)

    def _open(self, handle: Handle, header: Header) -> None:
        events = self._events
        assert events is not None, "bind() was not called"
        try:
            if header[Key.TYPE] == Type.OPEN_PRODUCER:
                events.open_producer(handle, header)
            else:
                events.open_consumer(handle, header)
        except Exception as error:
            if not isinstance(error, IsterError):
                log.exception("a frame of type %s failed", header[Key.TYPE])
                error = RemoteError("internal", "the broker failed; see its log")
            self.send_error(handle.session, error, header)
            if handle.target is None:
                self.forget(handle)
            else:  # it was opened again: what it stands for must be released
                events.close(handle, None)

    def forget(self, handle: Handle, why: IsterError | None = None) -> None:
        """Release a handle that was closed, refused or moved, and answer the open requests about it.

        `why` says what happened to it, if its client did not close it.
        """
        self.sessions.closed(handle)
        self._answer_left(handle, why or _CLOSED, but=_NOT_LEFT)

    def _answer_left(self, handle: Handle, error: IsterError, *, but: Sequence[int]) -> None:
        """Answer the requests that no actor will answer; a CLOSE is answered by who closes."""
        for question in handle.session.questions.left(handle, but=but):
            self._answer_for(handle.session, question, error)

    def _answer_for(self, session: Session, question: Question, error: IsterError) -> None:
        session.questions.give_up(question)
        if session.routing is not None:
            echo: Header = {Key.REF: question.ref}
            if isinstance(question.handle, Handle):
                echo[Key.HANDLE] = question.handle.number
            for _ in range(question.times):
                self._send_error(session.routing, error, echo)

    def sweep(self) -> None:
        """End the sessions that were silent for too long, or not resumed in time.

        Also answer requests that were open for too long.
        """
        now_s = self._clock.monotonic()
        limits = self.sessions.limits
        for session in self.sessions.lost(now_s):
            self.counts.sessions_expired += 1
            who = session.client or "a client"
            if session.orphaned_at_s is None:
                log.info("session of %s ended: it was silent for %d ms", who, limits.session_timeout_ms)
            else:
                log.info(
                    "session of %s ended: its connection was closed, and it was not resumed within %d ms",
                    who,
                    limits.resume_within_ms,
                )
            session.lost = True
            self._end(session)
        for session in self.sessions:
            for question in session.questions.overdue(now_s - ANSWER_WITHIN_S):
                self._answer_for(session, question, _OVERDUE)

    def _end(self, session: Session) -> None:
        assert self._events is not None, "bind() was not called"
        session.questions.forget()
        self._events.session_ended(session)
        self.sessions.end(session)
        if self.guard is not None:
            self.guard.left(session.connection)

    # ---- out ----------------------------------------------------------------------------------------------------

    def send(
        self, session: Session, header: Header, frames: Sequence[Buffer] = (), *, may_wait: bool = False
    ) -> Sent:
        """Send one message to a session's client, without waiting.

        A message that may wait is sent only if there is room, and the caller tries again. If there is no room for any
        other message (a receipt, the answer to an open), which the client must not miss, the connection counts as lost:
        the client is told with its next frame, and resumes.
        """
        ref = header.get(Key.REF)
        if ref is not None and not session.questions.answered(ref):
            return Sent.OK  # it was answered before
        if session.routing is None:
            return Sent.GONE
        if not frames:
            return self._send_to(session.routing, header, may_wait=may_wait)
        guard, connection = self.guard, session.connection
        if (
            may_wait
            and guard is not None
            and connection is not None
            and not guard.outgoing.may_send(connection)
        ):
            return Sent.FULL
        sent = self._send_to(session.routing, header, frames, may_wait=may_wait)
        if sent is Sent.OK:
            size = sum(map(len, frames))
            self.counts.bytes_out += size
            if guard is not None and connection is not None:
                guard.outgoing.sent(connection, size)
        return sent

    def _send_to(
        self, routing: bytes, header: Header, frames: Sequence[Buffer] = (), *, may_wait: bool = False
    ) -> Sent:
        try:
            send(self.socket, (routing, encode_header(header), *frames))
        except zmq.Again:
            if may_wait:
                return Sent.FULL
            self.sessions.drop_routing(routing)
            return Sent.GONE
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.sessions.unreachable(routing)
            return Sent.GONE
        self.counts.frames_out += 1
        return Sent.OK

    def send_error(self, session: Session, error: IsterError, echo: Header) -> Sent:
        """Answer with an error; `echo` has the values of REF, HANDLE, SEQUENCE and CLOSED to be repeated."""
        ref = echo.get(Key.REF)
        if ref is not None and not session.questions.answered(ref):
            return Sent.OK  # it was answered before
        if session.routing is None:
            return Sent.GONE
        return self._send_error(session.routing, error, echo)

    def _answer_error(self, routing: bytes, cause: Header, error: IsterError) -> Sent:
        session = self.sessions.at(routing)
        if session is not None:
            return self.send_error(session, error, cause)
        return self._send_error(routing, error, cause)

    def _send_error(self, routing: bytes, error: IsterError, cause: Header) -> Sent:
        self.counts.errors_out += 1
        self.counts.by_code[error.code] = self.counts.by_code.get(error.code, 0) + 1
        header = {
            Key.TYPE: Type.ERROR,
            Key.CODE: error.code,
            Key.TEXT: error.text[:2000],
            Key.ACTION: error.action if isinstance(error, RemoteError) else _action_for_client(error),
        }
        for key in (Key.REF, Key.HANDLE, Key.SEQUENCE, Key.CLOSED):
            if key in cause:
                header[key] = cause[key]
        return self._send_to(routing, header)


def _action_for_client(error: IsterError) -> str:
    """Return the action for the client: a protocol error that is raised here is the client's to fix."""
    return "fix" if isinstance(error, RemoteProtocolError) else error.action
