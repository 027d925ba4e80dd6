"""A consumer's place on the wire: its handle, and the backlog for its connection.

Part of a Consumer, in a worker process. It owns the backlog: pieces and events that were not sent yet. May touch the
gateway.

Invariants
- events keep their order among the deliveries
- nothing is sent while it is paused: the backlog is then taken back, or sent when it resumes
- of all consumers that wait for one connection, one checks for room, at growing intervals
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

# A full connection is tried again after this long, the time for half a megabyte of loopback traffic. The interval
# doubles, up to where ten thousand clients that do not read cost a fraction of a core.
FULL_RETRY_S: Final = 0.005
FULL_RETRY_S_MAX: Final = 0.32
NOTICES_MAX: Final = 64  # events in the backlog, and of each kind the last one; 200 bytes each


class WirePlace:
    """The handle of consumer number `key`, which is opened by `header`.

    `block(Block)` tells the subscription to stop or resume sending, `on_clear()` is called when the backlog was sent.
    `on_sent(piece, singly)` is called for each piece sent, if given, `on_lost(piece)` for one that finds no connection.
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
        self.header = header  # of the latest OPEN_CONSUMER
        # not sent yet: the connection is full or lost, or this is paused
        self.backlog: deque[Piece | Notice] = deque()
        self.paused = False
        self.tells = False  # the client reports what its program takes
        self._opened_over = b""  # the connection over which the client was last told that the handle is open
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
        """Whether the client has opened the handle again, by a frame that has not arrived here yet."""
        return self.handle.generation != self._generation

    @property
    def is_connected(self) -> bool:
        """Whether the client has a connection."""
        return self.handle.session.routing is not None

    @property
    def is_opened_here(self) -> bool:
        """Whether the client opened the handle over its present connection; otherwise it resumed its session."""
        return self.handle.session.routing == self._opened_over

    def reopen(self, generation: int, header: Header) -> None:
        """Note that the client opened the handle again."""
        self._generation, self.header = generation, header

    def credit(self) -> tuple[int, int]:
        """Return the messages and bytes that the client has room for, up to the limits."""
        limits = self._gateway.sessions.limits
        return (
            min(self.header[Key.MESSAGES], limits.credit_messages_max),
            min(self.header[Key.BYTES], limits.credit_bytes_max),
        )

    @property
    def counts_moves(self) -> bool:
        """Whether the client says with its acknowledgments of how many moves of the subscription it knows."""
        return Key.SOUGHT in self.header

    def open(
        self, position: int, strategy: str, instance: str, *, tells: bool, times_moved: int | None
    ) -> bool:
        """Tell the client that the handle is open, unless it was closed meanwhile; return whether it is open.

        `instance` tells this subscription from others of its name, for a client that asks. `times_moved` is None where
        nothing is acknowledged.
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
        if self.counts_moves and times_moved is not None:
            answer[Key.SOUGHT] = times_moved
        self._gateway.send(handle.session, answer)
        self._opened_over = handle.session.routing or b""
        return True

    def evict(self, error: IsterError) -> None:
        """Tell the client that the handle was closed, and why, unless it closed it itself."""
        handle = self.handle
        if handle.session.handles.get(handle.number) is handle and not self.is_asked_for_again:
            echo: Header = {Key.HANDLE: handle.number, Key.CLOSED: True}
            if handle.state == "opening":
                echo[Key.REF] = self.header[Key.REF]
            self._gateway.send_error(handle.session, error, echo)
            self._gateway.forget(handle, error)

    def forget(self) -> None:
        """Note that the client closed the handle."""
        self._gateway.forget(self.handle)

    def done(self, ref: int) -> None:
        """Tell the client that the request with this ref is done."""
        self._gateway.send(self.handle.session, {Key.TYPE: Type.DONE, Key.REF: ref})

    def refuse(self, error: IsterError, echo: Header) -> None:
        """Send the client an error."""
        self._gateway.send_error(self.handle.session, error, echo)

    def pause(self) -> bool:
        """Send nothing until `go_on`; return whether it was not paused before."""
        news, self.paused = not self.paused, True
        return news

    def go_on(self) -> None:
        """Resume sending with what comes next; `retry` sends the backlog."""
        self.paused = False

    # ---- sending ------------------------------------------------------------------------------------------------

    def send(self, what: Piece | Notice) -> None:
        """Send a piece or event, or add it to the backlog if there is one."""
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
        # the client may reconnect and resume: then what it holds is redelivered, and missed events are told
        else:
            self._block(Block(self._key, True, "lost"))
            if isinstance(what, Notice):
                self.backlog.append(what)
            else:
                self._on_lost(what)

    def send_now_or_never(self, notice: Notice) -> None:
        """Send an event ahead of the backlog, if the connection has room: it is told again otherwise."""
        self._gateway.send(self.handle.session, self._event(notice), may_wait=True)

    def _make_room(self, notice: Notice) -> None:
        """Drop the oldest event of this kind from a full backlog: the latest one counts."""
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
        if piece.flat is not None:
            header[Key.RANGES] = piece.flat
        elif piece.ranges:
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
        if notice.sought is not None and self.counts_moves:
            header[Key.SOUGHT] = notice.sought
        return header

    # ---- what waits ---------------------------------------------------------------------------------------------

    def unsent(self) -> list[Piece]:
        """Take the pieces out of the backlog; events stay."""
        pieces = [waiting for waiting in self.backlog if isinstance(waiting, Piece)]
        self.backlog = deque(waiting for waiting in self.backlog if isinstance(waiting, Notice))
        return pieces

    def drop_notices(self, code: str) -> None:
        """Drop the events of a kind from the backlog."""
        self.backlog = deque(
            each for each in self.backlog if not (isinstance(each, Notice) and each.code == code)
        )

    def retry(self) -> None:
        """Send the backlog as far as the connection has room."""
        if self.paused:
            return  # the backlog is taken back then, not sent
        backlog, self.backlog = self.backlog, deque()
        for waiting in backlog:
            self.send(waiting)
        if self.is_clear:
            self._on_clear()

    @property
    def is_clear(self) -> bool:
        """Whether the backlog is empty and the connection has room."""
        return not self.backlog and not self.paused and self.is_connected

    def room(self) -> None:
        """Note that the consumer before this one found room on the connection."""
        if self._key in self.handle.session.waiting:
            self._look_for_room(FULL_RETRY_S / 2)

    def _look_for_room(self, waited_s: float) -> None:
        """Send the backlog and let the next consumer try; or check later, for all that wait for the connection."""
        self.retry()
        if self.backlog and not self.paused and self.is_connected:
            wait_s = doubled(waited_s, FULL_RETRY_S_MAX, 1)
            self._call_later(wait_s, lambda: self._look_for_room(wait_s))
        else:
            self._wait_no_more()

    def leave(self) -> None:
        """Stop sending, and drop the references to the consumer: in a reference cycle it would be freed late."""
        self._wait_no_more()
        self._call_later = lambda _delay_s, _call: None
        self._on_lost, self._on_clear, self._on_sent = lambda _: None, lambda: None, None

    def _wait_no_more(self) -> None:
        """Let the next consumer that waits for this connection check for room."""
        waiting = self.handle.session.waiting
        first = next(iter(waiting), None)
        waiting.pop(self._key, None)
        if first == self._key and waiting:
            next(iter(waiting.values())).tell(Room())
