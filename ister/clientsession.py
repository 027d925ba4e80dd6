"""The client's side of a session with one worker: HELLO, heartbeats, requests, and matching answers.

Pure: frames in, frames out (`outbox`), with times as parameters; no socket, clock or thread. `connection.py` moves the
frames; `publication.py` and `attachment.py` have the parts of producers and consumers.

Invariants
- nothing but HELLO is sent before WELCOME
- when the connection is lost, every handle and request is told once, and once of the next WELCOME
- whatever bytes arrive, at worst the connection is closed and opened again
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

from ister import bodies, wire
from ister.backoff import doubled, jittered
from ister.errors import CODES, ConnectionLostError, IsterError, RemoteError, RemoteProtocolError
from ister.outstanding import Outstanding, Request
from ister.waking import News
from ister.wire import Key, Limits, Type

Phase = Literal["idle", "greeting", "ready", "ended"]
What = Literal["connect", "welcome", "lost", "refused", "end"]

# The state machine of a session. An event without an entry is ignored.
TRANSITIONS: Final[dict[tuple[Phase, What], Phase]] = {
    ("idle", "connect"): "greeting",
    ("idle", "end"): "ended",
    ("greeting", "welcome"): "ready",
    ("greeting", "lost"): "idle",
    ("greeting", "refused"): "ended",
    ("greeting", "end"): "ended",
    ("ready", "lost"): "idle",
    ("ready", "end"): "ended",
}

# seconds; after this long without an answer to HELLO: another socket, and the next endpoint
GREETING_S: Final = 3.0
# seconds; a second error without REF and HANDLE within this time is caused by what was sent again
UNCLEAR_AGAIN_S: Final = 60.0
BACK_OFF_FIRST_S: Final = 0.05
BACK_OFF_LAST_S: Final = 2.0


def back_off_s(failures: int, jitter: float) -> float:
    """Return how long to wait after the n-th failure in a row; `jitter` is a random number from 0 to 1."""
    return jittered(doubled(BACK_OFF_FIRST_S, BACK_OFF_LAST_S, failures), jitter)


class Frame(NamedTuple):
    """A decoded message from the broker, and when it arrived."""

    kind: int
    header: wire.Header
    body: Sequence[bodies.Buffer]
    now: float


Answer = Callable[[Frame], None]


class Handle(Protocol):
    """A producer's or consumer's part of the protocol."""

    handle: int
    session: Session | None

    @property
    def phase(self) -> str:
        """The state of the handle; "closed" is the last one."""

    def on_ready(self, *, resumed: bool) -> None:
        """WELCOME came: open (again)."""

    def on_lost(self, reason: IsterError) -> None:
        """The connection is lost, and everything in transit with it."""

    def on_frame(self, frame: Frame) -> None:
        """A frame for this handle that answers no REF."""

    def close(self) -> None:
        """Send CLOSE."""

    def fail(self, error: IsterError) -> None:
        """It is closed, for this reason."""

    def postpone(self, error: IsterError, due: float) -> None:
        """Open again at that time, for this reason."""

    def tick(self, now: float) -> None:
        """Do what is due."""

    def deadline(self) -> float:
        """When `tick` is to be called next, in the clock's seconds; infinity: not at all."""


class Session:
    """One session with one worker."""

    def __init__(self, client: str, jitter: Callable[[], float]) -> None:
        """`client` is a text for people (name and version); `jitter` returns random numbers from 0 to 1."""
        self.phase: Phase = "idle"
        self.outbox: deque[list[bytes]] = deque()
        self.handles: dict[int, Handle] = {}
        self.limits = Limits()
        self.boot: int | None = None
        self.trouble: IsterError | None = None  # why the connection was last lost or refused
        self.awaiting: set[int] = set()  # producers with batches on their way
        self.moves: list[tuple[Handle, str]] = []  # handles that run elsewhere; the network moves them
        self.news = News()  # the keys for which something has changed, since the connection last took it
        self.jitter = jitter
        self._client = client
        self.secret: bytes | None = None  # of the session, from WELCOME; the next HELLO has it
        self._answers: dict[int, Answer] = {}
        self._outstanding = Outstanding()
        self._departed: set[int] = set()  # handles that were closed while there was no connection
        self._ref = 0
        self._heartbeat_s = 5.0
        self._greeted = 0.0
        self._spoke = 0.0
        self._heard = 0.0
        self._pinged: float | None = None
        self._unclear_s = float("-inf")  # when the last error without REF and HANDLE came

    @property
    def idle(self) -> bool:
        """Whether there is no connection."""
        return self.phase == "idle"

    # ---- the connection ------------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Start with a new socket: say HELLO."""
        if not self._step("connect"):
            return
        self.outbox.clear()
        self._greeted = self._spoke = self._heard = now
        self._pinged = None
        hello: wire.Header = {
            Key.TYPE: Type.HELLO,
            Key.VERSION: [wire.PROTOCOL_VERSION],
            Key.CLIENT: self._client,
        }
        if self.secret is not None:
            hello[Key.SESSION] = self.secret
        self.emit(hello)

    def lost(self, reason: IsterError) -> None:
        """Handle a socket that is lost, or counts as lost."""
        if not self._step("lost"):
            return
        self.trouble = reason
        self.outbox.clear()
        self._answers.clear()
        self._outstanding.on_lost(reason)
        for handle in list(self.handles.values()):
            handle.on_lost(reason)

    def forget(self) -> None:
        """Forget the session: the next HELLO goes to another worker, which does not know it."""
        self.secret = None
        self.boot = None

    def inherit(self, secret: bytes, handles: set[int]) -> None:
        """Continue the session that another connection to this worker had; those handles are open there."""
        self.secret = secret
        self._departed |= handles

    def end(self, reason: IsterError) -> None:
        """Say BYE; whatever still waits fails with `reason`."""
        speaking = self.phase == "ready"
        if not self._step("end"):
            return
        if speaking:
            self.emit({Key.TYPE: Type.BYE})
        self._fail_all(reason)

    def _fail_all(self, reason: IsterError) -> None:
        self._answers.clear()
        self._outstanding.fail(reason)
        for handle in list(self.handles.values()):
            handle.fail(reason)

    def _step(self, what: What) -> bool:
        then = TRANSITIONS.get((self.phase, what))
        if then is None:
            return False
        self.phase = then
        self.news.everything = True
        return True

    # ---- sending frames ------------------------------------------------------------------------------------------

    def emit(self, header: wire.Header, *body: bytes) -> None:
        """Queue one frame."""
        self.outbox.append([wire.encode_header(header), *body])

    def expect(self, answer: Answer) -> int:
        """Return a new REF whose answer goes to `answer(frame)`; a lost connection drops it.

        `answer` is a method of the object that is waited for: those that wait for it are woken.
        """
        self._ref += 1
        self._answers[self._ref] = answer
        return self._ref

    def attach(self, handle: Handle) -> None:
        """Add a producer or consumer; it opens at once, or when WELCOME comes."""
        handle.session = self
        self.handles[handle.handle] = handle
        self._departed.discard(handle.handle)
        if self.phase == "ready":
            handle.on_ready(resumed=False)
        elif self.phase == "ended":
            handle.fail(self.trouble or ConnectionLostError("the session is over"))

    def detach(self, handle: Handle) -> None:
        """Remove a producer or consumer; if the broker cannot be told of its close now, it is told later."""
        self.awaiting.discard(handle.handle)
        if self.handles.pop(handle.handle, None) is not None and self.phase != "ready":
            self._departed.add(handle.handle)

    def request(self, request: Request, now: float) -> None:
        """Send a REQUEST, now or as soon as there is a session."""
        self._outstanding.add(request)
        self._send_requests(now)
        if self.phase == "ended":
            self._fail_all(self.trouble or ConnectionLostError("the session is over"))

    def withdraw(self, request: Request) -> None:
        """Stop waiting for the answer to a request."""
        for ref in self._outstanding.withdraw(request):
            self._answers.pop(ref, None)

    def _send_requests(self, now: float) -> None:
        if self.phase != "ready":
            return
        for request in self._outstanding.due(now):
            ref = self.expect(self._on_result)
            self._outstanding.sent(ref, request)
            header: wire.Header = {Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: request.operation}
            if request.arguments:
                header[Key.ARGUMENTS] = request.arguments
            self.emit(header)

    # ---- listening -----------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Any], now: float) -> None:
        """Handle one message from the socket; a broken one closes the connection."""
        self._heard = now
        self._pinged = None
        try:
            header = wire.decode_header(frames[0])
            self._dispatch(Frame(header[Key.TYPE], header, frames[1:], now))
        except RemoteProtocolError as error:
            self.lost(error)

    def _dispatch(self, frame: Frame) -> None:
        kind, header = frame.kind, frame.header
        if kind == Type.WELCOME:
            self._on_welcome(header, frame.now)
            return
        if kind < Type.WELCOME:
            raise RemoteProtocolError(f"a broker does not send frames of type {kind}")
        if self.phase == "greeting":
            if kind == Type.ERROR:
                self._on_refused(header)
            return  # an answer to something sent over an earlier socket
        if self.phase != "ready":
            return
        if Key.REF in header:
            answer = self._answers.pop(header[Key.REF], None)
            if answer is not None:
                if kind == Type.ERROR and header[Key.CODE] in ("hello-required", "session-expired"):
                    self._lost_session(header)
                else:
                    answer(frame)
                    self.news.keys.add(getattr(answer, "__self__", None))
                return
            if kind != Type.ERROR:
                return
        if kind == Type.ERROR and header[Key.CODE] in ("hello-required", "session-expired"):
            self._lost_session(header)
            return
        if Key.HANDLE in header:
            handle = self.handles.get(header[Key.HANDLE])
            if handle is not None:
                handle.on_frame(frame)
                self.news.keys.add(handle)
        elif kind == Type.ERROR and Key.REF not in header:
            self._on_unclear(remote_error(header), frame.now)

    def _on_unclear(self, error: RemoteError, now: float) -> None:
        """Handle an error that does not say what it answers: something of this client will never be answered.

        At the first one the connection counts as lost, so that everything is asked and sent again. If that brings
        another one, everything that waits fails with it: sending it once more would never end.
        """
        again = now - self._unclear_s < UNCLEAR_AGAIN_S
        self._unclear_s = now
        if not again:
            self.lost(error)
            return
        self.trouble = error
        self._fail_all(error)
        for number in self.handles:  # the broker has them open still
            self.emit({Key.TYPE: Type.CLOSE, Key.REF: self.expect(_ignore), Key.HANDLE: number})
        self.news.everything = True

    def _on_welcome(self, header: wire.Header, now: float) -> None:
        if header[Key.VERSION] != wire.PROTOCOL_VERSION:
            raise RemoteProtocolError("the broker chose a protocol version that was not offered")
        resumed = bool(header.get(Key.RESUMED, False))
        if not self._step("welcome"):
            return
        if not resumed:
            self._departed.clear()
        self.secret = header[Key.SESSION]
        self.boot = header[Key.BOOT]
        self._heartbeat_s = max(0.05, header[Key.HEARTBEAT] / 1000)
        given = header[Key.LIMITS]
        self.limits = wire.limits_of(given)
        self.trouble = None
        for number in self._departed:
            self.emit({Key.TYPE: Type.CLOSE, Key.REF: self.expect(_ignore), Key.HANDLE: number})
        self._departed.clear()
        for handle in list(self.handles.values()):
            handle.on_ready(resumed=resumed)
        self._send_requests(now)

    def _on_refused(self, header: wire.Header) -> None:
        error = remote_error(header)
        if error.action == "retry":
            self.forget()
            self.lost(error)
            return
        self.trouble = error
        self._step("refused")
        self._fail_all(error)

    def _lost_session(self, header: wire.Header) -> None:
        if header[Key.CODE] == "session-expired":
            self.forget()
        self.lost(remote_error(header))

    def _on_result(self, frame: Frame) -> None:
        kind, header, body, now = frame
        request = self._outstanding.answered(header[Key.REF])
        if request is None:
            return
        if kind == Type.ERROR:
            error = remote_error(header)
            if error.action == "retry":
                self._outstanding.again(request, error, now + back_off_s(request.failures, self.jitter()))
                return
            request.error = error
        elif kind != Type.RESULT or len(body) > 1:
            request.error = RemoteProtocolError(f"a frame of type {kind} answered a request")
        elif body:
            try:
                request.result = wire.decode_result(bytes(body[0]))
            except RemoteProtocolError as error:
                request.error = error
        request.done = True
        self.news.keys.add(request)

    # ---- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due: heartbeats, retries, and what producers and consumers have gathered."""
        if self.phase == "greeting":
            if now - self._greeted >= GREETING_S:
                self.lost(ConnectionLostError(f"no welcome within {GREETING_S:g} s"))
            return
        if self.phase != "ready":
            return
        if self._pinged is not None:
            if now - self._pinged >= 2 * self._heartbeat_s:
                silence = now - self._heard
                self.lost(ConnectionLostError(f"the broker has been silent for {silence:.1f} s"))
                return
        elif now - min(self._spoke, self._heard) >= self._heartbeat_s:
            self.emit({Key.TYPE: Type.PING})
            self._pinged = self._spoke = now
        if self._outstanding:
            self._send_requests(now)
        for handle in list(self.handles.values()):
            handle.tick(now)

    def spoke(self, now: float) -> None:
        """Note that something was sent: no heartbeat is needed for a while."""
        self._spoke = now

    def deadline(self) -> float:
        """When `tick` is to be called next."""
        if self.phase == "greeting":
            return self._greeted + GREETING_S
        if self.phase != "ready":
            return float("inf")
        if self._pinged is not None:
            due = self._pinged + 2 * self._heartbeat_s
        else:
            due = min(self._spoke, self._heard) + self._heartbeat_s
        if self._outstanding:
            due = min(due, self._outstanding.next_due())
        # There may be a thousand handles, and this runs at every turn of the background thread.
        for handle in self.handles.values():
            wanted = handle.deadline()
            if wanted < due:
                due = wanted
        return due


def remote_error(header: wire.Header) -> RemoteError:
    """Return the exception for an ERROR frame."""
    code, action = header[Key.CODE], header[Key.ACTION]
    if action not in ("retry", "fix", "stop"):
        action = CODES.get(code, "stop")
    return RemoteError(code, header[Key.TEXT], action)


def _ignore(_frame: Frame) -> None:
    """Ignore an answer that changes nothing."""
