"""A consumer's place on the wire: its handle, and what waits for its connection.

Part of a Consumer, in a worker process. Owns the backlog: pieces and events that were not sent. May touch the gateway.

Invariants
- what is told stands in its place among what is delivered
- nothing is sent while it is paused: what waits then is given back, or sent when it goes on
- of all that wait for one connection, one looks for room, ever less often
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ister.actors.messages import Block, Notice, Room
from ister.actors.pieces import Piece
from ister.actors.runtime import Ref
from ister.backoff import doubled
from ister.errors import IsterError
from ister.transport.gateway import Gateway, Sent
from ister.transport.session import Handle
from ister.wire import Header, Key, Type

# A full connection is tried again after so long: half a megabyte of loopback traffic; twice as long each time, up to
# where ten thousand clients that do not read cost a fraction of a core.
FULL_RETRY_S: Final = 0.005
FULL_RETRY_S_MAX: Final = 0.32
NOTICES_MAX: Final = 64  # events that wait for a connection, and of each kind the last; 200 bytes each


class WirePlace:
    """The handle of consumer number `key`, which is opened by `header`.

    `block(Block)` tells the subscription that nothing more may come, `on_clear()` is called when what waited is sent.
    `on_sent(piece, singly)` is called for what went out, where anybody wants to know, `on_lost(piece)` for what finds
    no connection.
    """

    def __init__(
        self,
        gateway: Gateway,
        handle: Handle,
        header: Header,
        key: int,
        consumer: Ref,
        *,
        call_later: Callable[[float, Callable[[], None]], object],
        block: Callable[[Block], None],
        is_last_chance: Callable[[Piece], bool],
        on_sent: Callable[[Piece, bool], None] | None,
        on_lost: Callable[[Piece], None],
        on_clear: Callable[[], None],
    ) -> None:
        self.handle = handle
        self.header = header  # of the OPEN_CONSUMER that counts
        self.backlog: deque[Piece | Notice] = deque()  # the connection is full or gone, or we pause
        self.paused = False
        self.tells = False  # the client tells what its program takes
        self._opened_over = b""  # the connection over which it was last told that the handle is open
        self._gateway = gateway
        self._generation = handle.generation
        self._key = key
        self._consumer = consumer
        self._call_later = call_later
        self._block = block
        self._is_last_chance = is_last_chance
        self._on_sent = on_sent
        self._on_lost = on_lost
        self._on_clear = on_clear

    # ---- the handle ---------------------------------------------------------------------------------------------

    @property
    def is_asked_for_again(self) -> bool:
        """Whether the client has opened the handle again, which is on its way here."""
        return self.handle.generation != self._generation

    @property
    def is_connected(self) -> bool:
        """Whether its client has a connection."""
        return self.handle.session.routing is not None

    @property
    def is_opened_here(self) -> bool:
        """Whether the client opened the handle over the connection that it has now; else it resumed its session."""
        return self.handle.session.routing == self._opened_over

    def reopen(self, generation: int, header: Header) -> None:
        """The client opened the handle again."""
        self._generation, self.header = generation, header

    def credit(self) -> tuple[int, int]:
        """Return the messages and bytes that the client has room for, as far as that is allowed."""
        limits = self._gateway.sessions.limits
        return (
            min(self.header[Key.MESSAGES], limits.credit_messages_max),
            min(self.header[Key.BYTES], limits.credit_bytes_max),
        )

    def open(self, position: int, strategy: str, instance: str, *, tells: bool) -> bool:
        """Tell the client that the handle is open, unless it is not waited for any more; return whether it is.

        `instance` names which subscription of its name this is, for a client that asks.
        """
        header, handle = self.header, self.handle
        if not self._gateway.sessions.opened(handle, self._generation, "consumer"):
            return False
        self.tells = tells
        answer: Header = {
            Key.TYPE: Type.OPENED,
            Key.REF: header[Key.REF],
            Key.HANDLE: handle.number,
            Key.OFFSET: position,
            Key.STRATEGY: strategy,
        }
        if tells:
            answer[Key.TAKEN] = 0
        if Key.INSTANCE in header:
            answer[Key.INSTANCE] = instance
        self._gateway.send(handle.session, answer)
        self._opened_over = handle.session.routing or b""
        return True

    def evict(self, error: IsterError) -> None:
        """Tell the client that the handle is closed, and why, unless it has it no more."""
        handle = self.handle
        if handle.session.handles.get(handle.number) is handle and not self.is_asked_for_again:
            echo: Header = {Key.HANDLE: handle.number, Key.CLOSED: True}
            if handle.state == "opening":
                echo[Key.REF] = self.header[Key.REF]
            self._gateway.send_error(handle.session, error, echo)
            self._gateway.forget(handle, error)

    def forget(self) -> None:
        """The client closed the handle."""
        self._gateway.forget(self.handle)

    def done(self, ref: int) -> None:
        """Tell the client that what it asked with this ref is done."""
        self._gateway.send(self.handle.session, {Key.TYPE: Type.DONE, Key.REF: ref})

    def refuse(self, error: IsterError, echo: Header) -> None:
        """Tell the client of an error."""
        self._gateway.send_error(self.handle.session, error, echo)

    def pause(self) -> bool:
        """Send nothing more until it goes on; return whether that is news."""
        news, self.paused = not self.paused, True
        return news

    def go_on(self) -> None:
        """Send again, from what comes next on; `retry` sends what waits."""
        self.paused = False

    # ---- sending ------------------------------------------------------------------------------------------------

    def send(self, what: Piece | Notice) -> None:
        """Send it, or let it wait behind what waits already."""
        if self.backlog or self.paused:
            if isinstance(what, Notice):
                self._make_room(what)
            self.backlog.append(what)
            return
        session, singly = self.handle.session, False
        if isinstance(what, Piece):
            singly = self.tells and self._is_last_chance(what)
            sent = self._gateway.send(session, self._delivery(what, singly), what.frames, may_wait=True)
        else:
            sent = self._gateway.send(session, self._event(what), may_wait=True)
        if sent is Sent.OK:
            if isinstance(what, Piece) and self._on_sent is not None:
                self._on_sent(what, singly)
        elif sent is Sent.FULL:
            self._block(Block(self._key, True, "full"))
            if self._key not in session.waiting:
                if not session.waiting:
                    self._call_later(FULL_RETRY_S, lambda: self._look_for_room(FULL_RETRY_S))
                session.waiting[self._key] = self._consumer
            self.backlog.append(what)
        else:  # the client may come back and resume: what it holds is delivered again then, and what it missed told
            self._block(Block(self._key, True, "lost"))
            if isinstance(what, Notice):
                self.backlog.append(what)
            else:
                self._on_lost(what)

    def send_now_or_never(self, notice: Notice) -> None:
        """Tell of an event out of turn, if the connection takes it: it is told of again."""
        self._gateway.send(self.handle.session, self._event(notice), may_wait=True)

    def _make_room(self, notice: Notice) -> None:
        """Where many events wait to be told, let the oldest of this kind go: the last word is what counts."""
        notices = [waiting for waiting in self.backlog if isinstance(waiting, Notice)]
        if len(notices) >= NOTICES_MAX and (
            older := next((each for each in notices if each.code == notice.code), None)
        ):
            self.backlog.remove(older)

    def _delivery(self, piece: Piece, singly: bool) -> Header:
        header: Header = {
            Key.TYPE: Type.DELIVER,
            Key.HANDLE: self.handle.number,
            Key.OFFSET: piece.offset,
            Key.COUNT: piece.count,
            Key.TIMESTAMPS: piece.timestamps,
            Key.ATTEMPT: piece.attempt,
        }
        if piece.columns:
            header[Key.COLUMNS] = piece.columns
        if singly:
            header[Key.SINGLY] = True
        if piece.ranges:
            header[Key.RANGES] = [number for pair in piece.ranges for number in pair]
        return header

    def _event(self, notice: Notice) -> Header:
        header: Header = {
            Key.TYPE: Type.EVENT,
            Key.HANDLE: self.handle.number,
            Key.CODE: notice.code,
            Key.COUNT: notice.count,
            Key.TEXT: notice.text,
        }
        if notice.offset is not None:
            header[Key.OFFSET] = notice.offset
        return header

    # ---- what waits ---------------------------------------------------------------------------------------------

    def unsent(self) -> list[Piece]:
        """Take out the pieces that wait; events stay."""
        pieces = [waiting for waiting in self.backlog if isinstance(waiting, Piece)]
        self.backlog = deque(waiting for waiting in self.backlog if isinstance(waiting, Notice))
        return pieces

    def drop_notices(self, code: str) -> None:
        """Let the events of a kind go."""
        self.backlog = deque(
            each for each in self.backlog if not (isinstance(each, Notice) and each.code == code)
        )

    def retry(self) -> None:
        """Send what waits, as far as the connection takes it."""
        if self.paused:
            return  # it is given back then, not sent
        backlog, self.backlog = self.backlog, deque()
        for waiting in backlog:
            self.send(waiting)
        if self.is_clear:
            self._on_clear()

    @property
    def is_clear(self) -> bool:
        """Whether nothing waits, and more could be sent at once."""
        return not self.backlog and not self.paused and self.is_connected

    def room(self) -> None:
        """Who waited before us for the connection had room."""
        if self._key in self.handle.session.waiting:
            self._look_for_room(FULL_RETRY_S / 2)

    def _look_for_room(self, waited_s: float) -> None:
        """Send what waits here, and let the next one; or look again later, for all that wait for this connection."""
        self.retry()
        if self.backlog and not self.paused and self.is_connected:
            wait_s = doubled(waited_s, FULL_RETRY_S_MAX, 1)
            self._call_later(wait_s, lambda: self._look_for_room(wait_s))
        else:
            self._wait_no_more()

    def leave(self) -> None:
        """Send nothing more, and let go of the consumer: in a cycle with it, it would be freed late."""
        self._wait_no_more()
        self._call_later = lambda _delay_s, _call: None
        self._on_lost, self._on_clear, self._on_sent = lambda _: None, lambda: None, None

    def _wait_no_more(self) -> None:
        """Let the next one that waits for this connection look for room."""
        waiting = self.handle.session.waiting
        first = next(iter(waiting), None)
        waiting.pop(self._key, None)
        if first == self._key and waiting:
            next(iter(waiting.values())).tell(Room())
