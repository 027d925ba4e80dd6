"""Sessions: the broker's side of the conversation, as a table; pure.

A session is one client's conversation with one worker. It is named by a secret token, never by the routing id of its
socket, so that it survives a reconnect. It owns handles: the producers and consumers that the client opened under
numbers of its own.

Invariants
- there is no socket, clock, thread or randomness here: routing ids, times and tokens are parameters
- what a frame may do is decided by `HANDLE_TABLE` and by nothing else
- a routing id belongs to at most one session, a session to at most one routing id
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ister.errors import RemoteError
from ister.transport.questions import Questions
from ister.wire import PROTOCOL_VERSION, Header, Key, Limit, Type
from ister.words import counted

State = Literal["absent", "opening", "producer", "consumer"]
Action = Literal["open", "publish", "close", "credit", "ack", "ignore", "unknown", "in-use"]

# (state of the handle, frame type) -> action. "opening" lasts until the broker has answered the open.
HANDLE_TABLE: Final[dict[tuple[State, int], Action]] = {
    ("absent", Type.OPEN_PRODUCER): "open",
    ("absent", Type.OPEN_CONSUMER): "open",
    ("absent", Type.PUBLISH): "unknown",
    ("absent", Type.CLOSE): "unknown",
    (
        "absent",
        Type.CREDIT,
    ): "ignore",  # in transit while the handle was being closed; with a REF it is "unknown"
    ("absent", Type.ACK): "ignore",
    ("absent", Type.ACK_UNTIL): "ignore",
    ("absent", Type.NACK): "ignore",
    ("absent", Type.EXTEND): "ignore",
    ("opening", Type.OPEN_PRODUCER): "open",  # again, after a reconnect: the earlier answer is void
    ("opening", Type.OPEN_CONSUMER): "open",
    ("opening", Type.PUBLISH): "unknown",
    ("opening", Type.CLOSE): "close",
    ("opening", Type.CREDIT): "ignore",
    ("opening", Type.ACK): "ignore",
    ("opening", Type.ACK_UNTIL): "ignore",
    ("opening", Type.NACK): "ignore",
    ("opening", Type.EXTEND): "ignore",
    ("producer", Type.OPEN_PRODUCER): "open",  # again, after a reconnect or a refused batch
    ("producer", Type.OPEN_CONSUMER): "in-use",
    ("producer", Type.PUBLISH): "publish",
    ("producer", Type.CLOSE): "close",
    ("producer", Type.CREDIT): "unknown",
    ("producer", Type.ACK): "unknown",
    ("producer", Type.ACK_UNTIL): "unknown",
    ("producer", Type.NACK): "unknown",
    ("producer", Type.EXTEND): "unknown",
    ("consumer", Type.OPEN_PRODUCER): "in-use",
    ("consumer", Type.OPEN_CONSUMER): "open",
    ("consumer", Type.PUBLISH): "unknown",
    ("consumer", Type.CLOSE): "close",
    ("consumer", Type.CREDIT): "credit",
    ("consumer", Type.ACK): "ack",
    ("consumer", Type.ACK_UNTIL): "ack",
    ("consumer", Type.NACK): "ack",
    ("consumer", Type.EXTEND): "ack",
}

_WORDS: Final[dict[State, str]] = {
    "absent": "not open at all",
    "opening": "being opened",
    "producer": "a producer's",
    "consumer": "a consumer's",
}
HANDLE_FRAMES: Final = frozenset(kind for _, kind in HANDLE_TABLE)
SESSION_FRAMES: Final = frozenset({Type.HELLO, Type.BYE, Type.PING, Type.REQUEST}) | HANDLE_FRAMES


@dataclass(slots=True, eq=False)
class Handle:
    """A producer or consumer of a session.

    `generation` grows with every open, so that a late answer to an earlier open is recognized. `target` belongs to the
    Frontend: the actor behind the handle.
    """

    session: Session
    number: int
    state: State = "absent"
    generation: int = 0
    opener: int = 0  # the type of the frame that opened it
    topic: str = ""
    subscription: str = ""
    target: Any = None


@dataclass(slots=True, eq=False)
class Session:
    """One client's conversation; `routing` is None while nothing can be sent to it.

    `heard_over` is the routing id of the connection on which it last began or resumed: frames sent there before the
    connection was closed may be read after that.
    """

    token: bytes
    routing: bytes | None
    client: str
    heard_at_s: float
    orphaned_at_s: float | None = None  # when its connection was found closed
    heard_over: bytes = b""
    lost: bool = False  # it ended without a goodbye: what its consumers held has failed
    handles: dict[int, Handle] = field(default_factory=dict)
    waiting: dict[int, Any] = field(default_factory=dict)  # used by the Consumer: who waits for room to send
    questions: Questions = field(default_factory=Questions)  # open requests about handles
    connection: Any = None  # used by the gateway: its present connection, if known


@dataclass(slots=True, frozen=True)
class SessionLimits:
    """The limits that WELCOME announces; the units are in the names."""

    message_bytes_max: int
    batch_bytes_max: int
    batches_in_flight_max: int
    producer_window_bytes: int
    session_timeout_ms: int
    handles_max: int
    credit_messages_max: int
    credit_bytes_max: int
    heartbeat_ms: int
    sessions_max: int
    resume_within_ms: int = 3_000

    def as_map(self) -> dict[int, int]:
        """Return the map of LIMITS in WELCOME."""
        return {
            Limit.MESSAGE_BYTES_MAX: self.message_bytes_max,
            Limit.BATCH_BYTES_MAX: self.batch_bytes_max,
            Limit.BATCHES_IN_FLIGHT_MAX: self.batches_in_flight_max,
            Limit.PRODUCER_WINDOW_BYTES: self.producer_window_bytes,
            Limit.SESSION_TIMEOUT_MS: self.session_timeout_ms,
            Limit.HANDLES_MAX: self.handles_max,
            Limit.CREDIT_MESSAGES_MAX: self.credit_messages_max,
            Limit.CREDIT_BYTES_MAX: self.credit_bytes_max,
        }


class Sessions:
    """All sessions of one worker."""

    def __init__(self, boot: int, limits: SessionLimits, new_token: Callable[[], bytes]) -> None:
        self.limits = limits
        self.boot = boot
        self._new_token = new_token
        self._by_routing: dict[bytes, Session] = {}
        self._by_token: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Any:
        return iter(list(self._by_token.values()))

    def hello(self, routing: bytes, header: Header, now_s: float) -> tuple[Session | None, Header]:
        """Begin or resume a session on this routing id.

        Return the WELCOME to send, and the session that the connection had before, if it was another: that one is over.

        Raises `RemoteError`: `unsupported-version`, or `limit-exceeded` if the worker has as many sessions as it may.
        """
        offered = header[Key.VERSION]
        if PROTOCOL_VERSION not in (offered if isinstance(offered, list) else [offered]):
            raise RemoteError(
                "unsupported-version",
                f"this broker speaks version {PROTOCOL_VERSION}, the client offers {offered}",
            )
        session = self._by_token.get(header.get(Key.SESSION, b""))
        resumed = session is not None
        before = self._by_routing.get(routing)
        if session is None:
            if len(self._by_token) - (before is not None) >= self.limits.sessions_max:
                raise RemoteError(
                    "limit-exceeded",
                    f"this worker has {counted(self.limits.sessions_max, 'session')}, its limit "
                    "(setting protocol.sessions_max)",
                    "retry",
                )
            session = Session(self._new_token(), None, header.get(Key.CLIENT, "")[:200], now_s)
            self._by_token[session.token] = session
        if session.routing != routing:  # requests of a lost connection are sent again by the client
            session.questions.forget()
        self.drop_routing(routing)
        if self._by_routing.get(session.heard_over) is session:
            del self._by_routing[session.heard_over]
        session.routing = session.heard_over = routing
        session.heard_at_s = now_s
        session.orphaned_at_s = None
        self._by_routing[routing] = session
        return None if before is session else before, {
            Key.TYPE: Type.WELCOME,
            Key.VERSION: PROTOCOL_VERSION,
            Key.SESSION: session.token,
            Key.BOOT: self.boot,
            Key.LIMITS: self.limits.as_map(),
            Key.HEARTBEAT: self.limits.heartbeat_ms,
            Key.RESUMED: resumed,
        }

    def at(self, routing: bytes) -> Session | None:
        """Return the session of this routing id, if there is one."""
        return self._by_routing.get(routing)

    def of_routing(self, routing: bytes) -> Session:
        """Return the session of this routing id, or raise `RemoteError` hello-required."""
        session = self._by_routing.get(routing)
        if session is None:
            raise RemoteError(
                "hello-required", "no session on this connection: say hello, open again, resend"
            )
        return session

    def step(self, session: Session, header: Header) -> tuple[Action, Handle]:
        """Return what to do with a frame about a handle, from `HANDLE_TABLE`.

        Raises `RemoteError`: `unknown-handle`, `handle-in-use`, or `limit-exceeded`.
        """
        number, kind = header[Key.HANDLE], header[Key.TYPE]
        handle = session.handles.get(number)
        if handle is None:
            handle = Handle(session, number)
        action = HANDLE_TABLE[handle.state, kind]
        if action == "unknown" or (action == "ignore" and Key.REF in header):
            raise RemoteError(
                "unknown-handle", f"handle {number} is not open for this (it is {_WORDS[handle.state]})"
            )
        if action == "in-use":
            raise RemoteError(
                "handle-in-use", f"handle {number} is in use already (it is {_WORDS[handle.state]})"
            )
        if action == "open":
            self._check_open(session, handle, header)
        return action, handle

    def _check_open(self, session: Session, handle: Handle, header: Header) -> None:
        topic, subscription = header[Key.TOPIC], header.get(Key.SUBSCRIPTION, "")
        if handle.state == "absent":
            if len(session.handles) >= self.limits.handles_max:
                raise RemoteError(
                    "limit-exceeded",
                    f"this session has {self.limits.handles_max} open handles, its limit (setting "
                    "protocol.handles_per_session_max): close some, or use another client",
                )
            session.handles[handle.number] = handle
        elif (header[Key.TYPE], topic, subscription) != (handle.opener, handle.topic, handle.subscription):
            raise RemoteError("handle-in-use", f"handle {handle.number} is open for topic {handle.topic!r}")
        handle.opener, handle.topic, handle.subscription = header[Key.TYPE], topic, subscription
        handle.state = "opening"
        handle.generation += 1

    def opened(self, handle: Handle, generation: int, state: Literal["producer", "consumer"]) -> bool:
        """Note that an open succeeded; return False if the handle was closed or opened again meanwhile."""
        if handle.state != "opening" or handle.generation != generation:
            return False
        handle.state = state
        return True

    def closed(self, handle: Handle) -> None:
        """Forget a handle: it was closed, refused, or moved."""
        handle.state = "absent"
        handle.target = None
        if handle.session.handles.get(handle.number) is handle:
            del handle.session.handles[handle.number]

    def drop_routing(self, routing: bytes) -> None:
        """Note that nothing can be sent to this routing id any more; its session waits to be resumed."""
        session = self._by_routing.pop(routing, None)
        if session is not None:
            session.routing = None

    def unreachable(self, routing: bytes) -> None:
        """Note that the connection of this routing id is gone; frames that came over it still count."""
        session = self._by_routing.get(routing)
        if session is not None:
            session.routing = None

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._by_token.pop(session.token, None)
        session.questions.forget()
        if self._by_routing.get(session.heard_over) is session:
            del self._by_routing[session.heard_over]
        session.routing = None

    def orphan(self, session: Session, routing: bytes, now_s: float) -> None:
        """Note that a session's connection was closed, unless it was resumed over another.

        Frames from before that may still be read, and do not prolong the session.
        """
        if session.heard_over == routing and session.orphaned_at_s is None:
            session.orphaned_at_s = now_s

    def lost(self, now_s: float) -> list[Session]:
        """Return the sessions that were silent, or without a connection, for too long."""
        silent_since = now_s - self.limits.session_timeout_ms / 1000
        orphaned_since = now_s - self.limits.resume_within_ms / 1000
        return [
            session
            for session in self._by_token.values()
            if session.heard_at_s < silent_since
            or (session.orphaned_at_s is not None and session.orphaned_at_s < orphaned_since)
        ]
