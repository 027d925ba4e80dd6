"""The protocol of the broker for tests, without a socket: frames come in, frames go out, time passes.

It decides which part handles a frame, and answers errors. The parts: `sessions.py` (who is connected), `handles.py`
(opening, publishing), `delivering.py` (consumers), `operations.py` (requests), `catalogue.py` (what exists). The socket
and the thread are in `__init__.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ister import wire
from ister.clock import Clock
from ister.errors import CODES, RemoteError, RemoteProtocolError
from ister.testing.catalogue import Catalogue
from ister.testing.delivering import Delivering
from ister.testing.handles import Handles
from ister.testing.model import Consumer, Producer, Session
from ister.testing.operations import Operations
from ister.testing.sessions import Send, Sessions
from ister.wire import Key, Type

HEARD_MAX: Final = 10_000

Moved = Callable[[str], str | None]


class Protocol:
    """The broker's side of the protocol."""

    def __init__(
        self, send: Send, moved: Moved, *, limits: dict[int, int], heartbeat_ms: int, clock: Clock
    ) -> None:
        """`send(routing id, header, *body frames)` sends a message; `limits` by key of `wire.Limit`.

        `moved(topic)` returns the endpoint at which a topic is said to be, `None` for this broker.
        """
        self.heard: deque[tuple[int, wire.Header]] = deque(maxlen=HEARD_MAX)
        self._moved = moved
        self._refusals: list[tuple[int, str]] = []
        self._sessions = Sessions(send, limits, heartbeat_ms)
        catalogue = Catalogue()
        self._handles = Handles(catalogue, self._sessions, clock, limits)
        self._delivering = Delivering(catalogue, self._sessions, clock)
        self._operations = Operations(catalogue, self._sessions, clock)

    # ---- failing on demand ---------------------------------------------------------------------------------------

    def refuse(self, kind: int, code: str, times: int) -> None:
        """Answer the next frames of a type with an error of that code."""
        self._refusals += [(kind, code)] * times

    def unplug(self) -> None:
        """All connections broke; sessions are kept."""
        self._sessions.unplug()

    def restart(self) -> None:
        """The broker was restarted: every session is forgotten, topics and acknowledgments are kept."""
        self._sessions.boot += 1
        self._sessions.end_all()

    def expire(self) -> None:
        """Forget every session."""
        self._sessions.end_all()

    def fail(self, topic: str, code: str) -> None:
        """Close every producer and consumer of a topic with an error of that code."""
        self._sessions.close_all_of(topic, RemoteError(code, f"{code}, as the test asked"))

    # ---- hearing -------------------------------------------------------------------------------------------------

    def hear(self, peer: bytes, frames: list[bytes], *, silent: bool) -> None:
        """Handle a message from a routing id and answer it; if `silent`, only record it."""
        try:
            header = wire.decode_header(frames[0] if frames else b"")
        except RemoteProtocolError as error:
            self._sessions.refuse(peer, _of_form(error), {})
            return
        kind = header[Key.TYPE]
        self.heard.append((kind, header))
        if silent:
            return
        try:
            if kind == Type.HELLO:
                self._sessions.hello(peer, header)
                return
            session = self._sessions.of(peer)
            self._refuse_on_demand(kind)
            self._serve(session, kind, header, frames[1:])
        except RemoteError as error:
            self._sessions.refuse(peer, error, header)
        except RemoteProtocolError as error:
            self._sessions.refuse(peer, _of_form(error), header)

    def tick(self) -> None:
        """Answer what has waited long enough, and deliver what can be delivered."""
        self._operations.answer_watches()
        self._delivering.dispatch()

    def _refuse_on_demand(self, kind: int) -> None:
        for refusal in self._refusals:
            if refusal[0] == kind:
                self._refusals.remove(refusal)
                code = refusal[1]
                raise RemoteError(code, f"{code}, as the test asked", CODES.get(code, "fix"))

    def _serve(self, session: Session, kind: int, header: wire.Header, body: list[bytes]) -> None:
        if kind == Type.BYE:
            self._sessions.end(session)
        elif kind == Type.PING:
            self._sessions.say(session, {Key.TYPE: Type.PONG, Key.BOOT: self._sessions.boot})
        elif kind == Type.REQUEST:
            self._operations.on_request(session, header)
        elif kind in (Type.OPEN_PRODUCER, Type.OPEN_CONSUMER):
            self._open(session, header)
        elif kind == Type.CLOSE:
            self._handles.on_close(session, header)
        else:
            handle = session.handles.get(header[Key.HANDLE])
            if isinstance(handle, Producer) and kind == Type.PUBLISH:
                self._handles.on_publish(handle, header, body)
            elif isinstance(handle, Consumer):
                self._delivering.on_frame(handle, kind, header)
            elif kind not in (Type.ACK, Type.CREDIT):
                raise RemoteError("unknown-handle", f"handle {header[Key.HANDLE]} is not open")

    def _open(self, session: Session, header: wire.Header) -> None:
        endpoint = self._moved(header[Key.TOPIC])
        if endpoint is None:
            self._handles.on_open(session, header)
            return
        self._sessions.leave(session, header[Key.HANDLE])
        moved = {key: header[key] for key in (Key.REF, Key.HANDLE)}
        self._sessions.say(session, {Key.TYPE: Type.MOVED, **moved, Key.ENDPOINT: endpoint})


def _of_form(error: RemoteProtocolError) -> RemoteError:
    return RemoteError(error.code, error.text, "fix")
