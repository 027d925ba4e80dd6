"""The sessions of the broker for tests, their handles, and messages to their clients.

It knows headers, and no socket: frames leave through the `send` it is given. `handles.py` and `delivering.py` know what
a handle may do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ister import wire
from ister.errors import RemoteError
from ister.testing.model import Consumer, Producer, Session, Subscription
from ister.wire import Key, Type

Send = Callable[..., None]  # (routing id, header, *body frames)


class Sessions:
    """All sessions; each is answered at the routing id of its last frame."""

    def __init__(self, send: Send, limits: dict[int, int], heartbeat_ms: int) -> None:
        self.boot = 1  # the number of this start of the broker, counted by the caller
        self._send = send
        self._limits = limits
        self._heartbeat_ms = heartbeat_ms
        self._count = 0
        self._sessions: dict[bytes, Session] = {}  # by secret
        self._peers: dict[bytes, Session] = {}  # by routing id

    # ---- coming and going ----------------------------------------------------------------------------------------

    def hello(self, peer: bytes, header: wire.Header) -> None:
        """Begin a session, or resume the one that HELLO names; raises `RemoteError` (`unsupported-version`)."""
        if wire.PROTOCOL_VERSION not in header[Key.VERSION]:
            raise RemoteError("unsupported-version", f"this broker speaks version {wire.PROTOCOL_VERSION}")
        session = self._sessions.get(header.get(Key.SESSION, b""))
        resumed = session is not None
        if session is None:
            self._count += 1
            session = Session(self._count.to_bytes(16), peer)
            self._sessions[session.secret] = session
        self._peers.pop(session.peer, None)
        session.peer = peer
        self._peers[peer] = session
        welcome: wire.Header = {
            Key.TYPE: Type.WELCOME,
            Key.VERSION: wire.PROTOCOL_VERSION,
            Key.SESSION: session.secret,
            Key.BOOT: self.boot,
            Key.LIMITS: self._limits,
            Key.HEARTBEAT: self._heartbeat_ms,
            Key.RESUMED: resumed,
        }
        self._send(peer, welcome)

    def of(self, peer: bytes) -> Session:
        """Return the session of a routing id; raises `RemoteError` (`hello-required`)."""
        session = self._peers.get(peer)
        if session is None:
            raise RemoteError("hello-required", "there is no session here: say hello")
        return session

    def is_known(self, session: Session) -> bool:
        """Whether a session has not ended."""
        return session.secret in self._sessions

    def end(self, session: Session) -> None:
        """Forget a session: its consumers leave, and what they hold is redelivered."""
        for number in list(session.handles):
            self.leave(session, number)
        self._sessions.pop(session.secret, None)
        self._peers.pop(session.peer, None)

    def end_all(self) -> None:
        """Forget every session."""
        for session in list(self._sessions.values()):
            self.end(session)

    def unplug(self) -> None:
        """All connections broke: sessions stay, and are resumed from other routing ids."""
        self._peers.clear()

    # ---- handles -------------------------------------------------------------------------------------------------

    def leave(self, session: Session, number: int) -> None:
        """Forget a handle, if there is one of that number."""
        handle = session.handles.pop(number, None)
        if isinstance(handle, Consumer):
            handle.subscription.detach(handle)

    def close(self, handle: Producer | Consumer, error: RemoteError) -> None:
        """Forget a handle, and tell its client why."""
        self.leave(handle.session, handle.handle)
        self.refuse(handle.session.peer, error, {Key.HANDLE: handle.handle}, closed=True)

    def close_all_of(self, topic: str, error: RemoteError) -> None:
        """Forget every handle of a topic, and tell the clients why."""
        for session in self._sessions.values():
            for handle in list(session.handles.values()):
                if handle.topic.name == topic:
                    self.close(handle, error)

    # ---- telling -------------------------------------------------------------------------------------------------

    def say(self, session: Session, header: wire.Header, *body: bytes) -> None:
        """Send a frame to the client of a session."""
        self._send(session.peer, header, *body)

    def result(self, session: Session, ref: int, value: Any) -> None:
        """Answer a REQUEST."""
        self.say(session, {Key.TYPE: Type.RESULT, Key.REF: ref}, wire.encode_result(value))

    def event(self, consumer: Consumer, code: str, offset: int | None = None) -> None:
        """Send an EVENT to one consumer."""
        news: wire.Header = {Key.TYPE: Type.EVENT, Key.HANDLE: consumer.handle, Key.CODE: code}
        if offset is not None:
            news[Key.OFFSET] = offset
        if code == "sought" and consumer.counts_moves:
            news[Key.SOUGHT] = consumer.subscription.moves
        self.say(consumer.session, news)

    def tell(self, subscription: Subscription, code: str, offset: int | None = None) -> None:
        """Send an EVENT to all consumers of a subscription."""
        for consumer in subscription.consumers:
            self.event(consumer, code, offset)

    def refuse(self, peer: bytes, error: RemoteError, cause: wire.Header, *, closed: bool = False) -> None:
        """Answer the frame with the header `cause` with an error; `closed`: its handle is closed by it."""
        header: wire.Header = {
            Key.TYPE: Type.ERROR,
            Key.CODE: error.code,
            Key.TEXT: error.text,
            Key.ACTION: error.action,
        }
        header |= {key: cause[key] for key in (Key.REF, Key.HANDLE, Key.SEQUENCE) if key in cause}
        if closed:
            header[Key.CLOSED] = True
        self._send(peer, header)
