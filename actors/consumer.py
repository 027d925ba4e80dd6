"""Consumers: each stands for one connected consumer, what it holds unacknowledged, and its place on the wire.

Runs in the worker process of its subscription, one actor an open handle.

Invariants
- what was sent to the client and neither acknowledged nor given back is in `in_flight`, and nowhere else
- nothing of this consumer is lost when it goes, whatever the reason: `on_stop` and `on_failure` give back what it held
- it goes, or begins anew, only when the subscription has said that nothing more is on its way to it: what came
  behind would be lost, or be delivered before what came earlier
- what happens to the subscription is told in its place among what is delivered
- an acknowledgment of what was never delivered changes nothing and is answered with an error; of what was delivered
  before the subscription was moved, it changes nothing and is answered as any other
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from ister.actors.in_hand import InHand
from ister.actors.ledger import DELAY_MS_MAX, NEVER, Held, InFlight
from ister.actors.messages import (
    Acknowledged,
    AcknowledgedUntil,
    AckRefused,
    AddCredit,
    AttachConsumer,
    Block,
    CloseConsumer,
    Confirmed,
    ConsumerFrame,
    Deliver,
    Evicted,
    Granted,
    Idle,
    Left,
    Lost,
    Notice,
    Pause,
    Paused,
    ReadFrom,
    Recall,
    Reopen,
    Returned,
    Room,
    SetCredit,
    Sought,
    Stayed,
    TimeoutChanged,
    Yield,
    Yielded,
)
from ister.actors.pieces import Piece
from ister.actors.runtime import LoopActor, Ref, System, Timer, receives
from ister.errors import IsterError, RemoteError
from ister.storage.ranges import RangeSet
from ister.subscriptions import READER, TRAITS
from ister.transport.gateway import Gateway, Sent
from ister.transport.session import Handle
from ister.wire import Header, Key, Type

REASON_LENGTH_MAX: Final = 200  # characters, as the protocol says
# A full connection is tried again after so long: half a megabyte of loopback traffic; twice as long each time, up to
# where ten thousand clients that do not read cost a fraction of a core.
FULL_RETRY_S: Final = 0.005
FULL_RETRY_S_MAX: Final = 0.32

# A consumer that holds so many ranges unacknowledged gets nothing until it has fewer: some 4 MB. Messages that were
# delivered together are one range, however many they are.
IN_FLIGHT_RANGES_MAX: Final = 20_000
# A place that is not there by then is refused: the client tries again, and its program can be told why it waits.
OPEN_WITHIN_S: Final = 20.0
NOTICES_MAX: Final = 64  # events that wait for a connection, and of each kind the last; 200 bytes each

RECALLED: Final = "recalled"  # the event of what a stuck program was not given, and of its credit

SINCE_RANGES_MAX: Final = 500  # of what was delivered since the subscription was moved: 8 KB


class Consumer(LoopActor):
    """One open consumer of a reliable or non-reliable subscription (`acknowledges` says which).

    It asks the subscription for a place when it starts, and answers the client's OPEN_CONSUMER.
    """

    def __init__(
        self,
        system: System,
        path: str,
        *,
        key: int,
        handle: Handle,
        header: Header,
        gateway: Gateway,
        subscription: Ref,
        subscription_type: str,
        strategy: str,
        instance: str = "",
    ) -> None:
        super().__init__(system, path)
        self._key = key
        self._handle = handle
        self._generation = handle.generation
        self._open_header = header
        self._gateway = gateway
        self._subscription = subscription
        self._type = subscription_type
        self._strategy = strategy
        self._instance = instance
        self._acknowledges = strategy == "reliable" and subscription_type != READER
        self.in_flight = InFlight()
        self._delivered_end = 0
        self._ack_timeout_s = 0.0
        self._failures_max = 0
        self._tells = False  # the client tells what its program takes
        self._heard_s = 0.0  # when its program last had something to say, or was first given something
        self._in_hand = InHand()
        self._timer: Timer | None = None
        self._backlog: deque[Piece | Notice] = (
            deque()
        )  # not sent: the connection is full or gone, or we pause
        self._granted = False
        self._crowded = False  # holds so much in pieces that it is given nothing more
        self._since: RangeSet | None = None  # the subscription was moved: what was delivered here since then
        self._since_before: RangeSet | None = None  # the same of the move before, should this one fail
        self._pausing = False
        self._closing: list[CloseConsumer] = []
        self._gone = False

    # ---- coming and going ---------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Ask the subscription for a place."""
        self._open_timer = self.call_later(OPEN_WITHIN_S, self._give_up)
        header = self._open_header
        messages, bytes_ = self._credit(header)
        self._subscription.tell(
            AttachConsumer(
                self.ref,
                self._key,
                header.get(Key.PRIORITY, 0),
                messages,
                bytes_,
                header.get(Key.SPARSE, False),
                header.get(Key.FORCE, False),
                self._handle.session.client,
                self._handle.session,
            )
        )

    def _give_up(self) -> None:
        """The subscription has given no place: better a clear word than none."""
        if self._handle.generation != self._generation:  # asked for again, which is on its way here
            self._open_timer = self.call_later(OPEN_WITHIN_S, self._give_up)
            return
        text = (
            f"the subscription had no place within {OPEN_WITHIN_S:g} s: its topic does not answer, or is being read "
            "from the store; 'ister explain' says which; try again"
        )
        self._pause()  # nothing is on its way here once that is answered
        self._evict(RemoteError("unavailable", text))
        self._closing.append(CloseConsumer(self._handle, None))

    def on_stop(self) -> None:
        """Give back what is held."""
        self._leave()

    def on_failure(
        self,
        *_error: object,
    ) -> None:
        """Give back what is held, and tell the client that the handle is closed."""
        self._leave()
        self._evict(RemoteError("internal", "the broker failed for this consumer; see its log"))

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._open_timer.cancel()
            if self._timer is not None:  # it would keep all this for as long as an acknowledgment may take
                self._timer.cancel()
            self._wait_no_more()
            lost = self._is_lost()
            held, waiting = self._release()  # first, for losses are told before
            if lost:
                held, waiting = self._blame(held, waiting)
                self._subscription.tell(Left(self._key, held, lost, waiting))
            else:
                self._subscription.tell(Left(self._key, sorted(held + waiting)))

    def _is_lost(self) -> bool:
        """Say whether the client fell silent, rather than close the consumer or say goodbye."""
        return self._handle.session.lost

    def _credit(self, header: Header) -> tuple[int, int]:
        limits = self._gateway.sessions.limits
        return (
            min(header[Key.MESSAGES], limits.credit_messages_max),
            min(header[Key.BYTES], limits.credit_bytes_max),
        )

    def _blame(self, held: list[Held], waiting: list[Held]) -> tuple[list[Held], list[Held]]:
        """Return what fails because the client was lost, and what does not.

        What its program had in hand does. Had it nothing, it may have died before its word of the next message was on
        its way: that message fails then, so that one that kills whoever takes it is found out.
        """
        first = None if held else self._in_hand.first()
        if first is None:
            return held, waiting
        blamed = [part._replace(end=first + 1) for part in waiting if part.first == first]
        rest = [part._replace(first=first + 1) if part.first == first else part for part in waiting]
        return blamed, [part for part in rest if part.first < part.end]

    def _release(self) -> tuple[list[Held], list[Held]]:
        """Take back everything but what is to be told: what the program may have, and what it never had.

        What was never sent was no attempt.
        """
        backlog = [waiting for waiting in self._backlog if isinstance(waiting, Piece)]
        self._backlog = deque(waiting for waiting in self._backlog if isinstance(waiting, Notice))
        if not self._acknowledges:
            if (lost := sum(piece.count for piece in backlog)) and self._type != READER:
                self._subscription.tell(Lost(lost))
            return [], []
        unsent = [
            held._replace(attempt=held.attempt - 1)
            for piece in backlog
            for first, end in piece.parts
            for held in self.in_flight.settle(first, end)
        ]
        waiting = self.in_flight.release_waiting()
        return self.in_flight.release(), waiting + unsent

    @receives(Granted)
    def on_granted(self, granted: Granted) -> None:
        """Tell the client that the handle is open."""
        self._granted = True
        self._open_timer.cancel()
        self._delivered_end = max(self._delivered_end, granted.position)
        self._ack_timeout_s = granted.ack_timeout_ms / 1000
        self._failures_max = granted.failures_max
        if not self._pausing:
            self._say_opened(granted.position)

    def _say_opened(self, position: int) -> None:
        header, handle = self._open_header, self._handle
        if self._gateway.sessions.opened(handle, self._generation, "consumer"):
            self._tells = self._acknowledges and Key.TAKEN in header
            self._in_hand = InHand()
            answer: Header = {
                Key.TYPE: Type.OPENED,
                Key.REF: header[Key.REF],
                Key.HANDLE: handle.number,
                Key.OFFSET: position,
                Key.STRATEGY: self._strategy,
            }
            if self._tells:
                answer[Key.TAKEN] = 0
            if Key.INSTANCE in header:
                answer[Key.INSTANCE] = self._instance
            self._gateway.send(handle.session, answer)

    @receives(TimeoutChanged)
    def on_timeout_changed(self, change: TimeoutChanged) -> None:
        """Take another acknowledgment timeout for what is delivered from now on."""
        self._ack_timeout_s = change.ack_timeout_ms / 1000
        self._failures_max = change.failures_max

    @receives(Evicted)
    def on_evicted(self, evicted: Evicted) -> None:
        """Tell the client that it has no place, or none any more, and go."""
        self._evict(RemoteError(evicted.code, evicted.text))
        self._answer_closes()
        self.stop_now()

    def _evict(self, error: IsterError) -> None:
        handle = self._handle
        if handle.session.handles.get(handle.number) is handle and handle.generation == self._generation:
            echo: Header = {Key.HANDLE: handle.number, Key.CLOSED: True}
            if handle.state == "opening":
                echo[Key.REF] = self._open_header[Key.REF]
            self._gateway.send_error(handle.session, error, echo)
            self._gateway.forget(handle, error)

    @receives(Reopen)
    def on_reopen(self, command: Reopen) -> None:
        """Begin again for a client that came back: what it held is delivered again, in order."""
        self._generation, self._open_header = command.generation, command.header
        self._answer_closes()  # opened again since, it stays
        self._pause()

    @receives(CloseConsumer)
    def on_close(self, command: CloseConsumer) -> None:
        """Go, at the client's wish or because its session ended."""
        self._closing.append(command)
        self._pause()

    def _answer_closes(self) -> None:
        closing, self._closing = self._closing, []
        for command in closing:
            if command.ref is not None:
                self._done(command.ref)

    def _pause(self) -> None:
        if not self._pausing:
            self._pausing = True
            self._subscription.tell(Pause(self.ref, self._key))

    @receives(Paused)
    def on_paused(self, _paused: Paused) -> None:
        """Go, or begin anew: nothing is on its way here any more."""
        self._pausing = False
        if self._closing:
            self._leave()
            self._gateway.forget(self._handle)
            self._answer_closes()
            self.stop_now()
        else:
            self._give_all_back("reconnected")
            self._backlog = deque(
                each for each in self._backlog if isinstance(each, Notice) and each.code != RECALLED
            )  # its credit is new
            if self._type == READER and Key.START in self._open_header:
                self._subscription.tell(ReadFrom(str(self._open_header[Key.START])))
            self._set_credit()
            if self._granted:
                self._say_opened(self._delivered_end)
                self._retry()

    def _give_all_back(self, why: str) -> None:
        held, waiting = self._release()
        self._in_hand.forget()
        if held or waiting:
            self._subscription.tell(Returned(self._key, sorted(held + waiting), 0.0, why))
            self._settled()

    def _set_credit(self) -> None:
        messages, bytes_ = self._credit(self._open_header)
        self._subscription.tell(SetCredit(self._key, messages, bytes_))

    @receives(Yield)
    def on_yield(self, command: Yield) -> None:
        """Give back everything: the consumer that is active now gets it first, or the subscription is moved."""
        if command.moving:  # nobody acknowledges any more what was given back
            self._since_before, self._since = self._since, RangeSet()
        if self._acknowledges:
            self._give_all_back("another consumer is active")
        self._subscription.tell(Yielded(self._key))

    @receives(Sought)
    def on_sought(self, sought: Sought) -> None:
        """Begin anew at another offset: acknowledgments of what was delivered before count no more."""
        self._since = RangeSet()
        self._delivered_end = sought.offset
        self._send_in_turn(
            Notice("sought", 0, f"the subscription goes on at offset {sought.offset}", sought.offset)
        )

    @receives(Stayed)
    def on_stayed(self, _stayed: Stayed) -> None:
        """Take acknowledgments as before: the subscription is where it was."""
        self._since = self._since_before

    # ---- delivering ---------------------------------------------------------------------------------------------

    @receives(Deliver)
    def on_deliver(self, command: Deliver) -> None:
        """Send a piece, and remember it until it is acknowledged."""
        piece = command.piece
        if self._acknowledges:
            for first, end in piece.parts:
                self.in_flight.deliver(first, end, piece.attempt, NEVER, piece.failures)
            if self._since is not None:
                self._note_since(piece)
            if len(self.in_flight) > IN_FLIGHT_RANGES_MAX and not self._crowded:
                self._crowded = True
                self._subscription.tell(Block(self._key, True, "crowded"))
        if piece.end > self._delivered_end:
            self._delivered_end = piece.end
        self._send_in_turn(piece)

    def _sent(self, piece: Piece) -> None:
        """The client has it: what its program may have is to be acknowledged in time from now on."""
        taken: Sequence[tuple[int, int]] = piece.parts
        if self._tells:
            taken, waiting = self._in_hand.deliver(piece.parts, singly=self._is_last_chance(piece))
            if waiting and self._timer is None:
                self._heard_s = self.clock.monotonic()
                self._look_by(self._heard_s + self._ack_timeout_s)
        if taken:
            deadline_s = self.clock.monotonic() + self._ack_timeout_s
            for first, end in taken:
                self.in_flight.extend(first, end, deadline_s)
            self._look_by(deadline_s)

    def _is_last_chance(self, piece: Piece) -> bool:
        """Say whether one more failure is the last: then it must be known who had what in hand."""
        return 0 < self._failures_max <= piece.failures + 1

    def _note_since(self, piece: Piece) -> None:
        """Note what is delivered since the subscription was moved; where that is in too many pieces, begin anew.

        What is forgotten by that can be acknowledged as long as it is in flight.
        """
        assert self._since is not None
        if len(self._since) > SINCE_RANGES_MAX:
            self._since = RangeSet()
        for first, end in piece.parts:
            self._since.add(first, end)

    def _settled(self) -> None:
        """Something was settled: a consumer that held too much may be given more."""
        if self._crowded and len(self.in_flight) * 2 < IN_FLIGHT_RANGES_MAX:
            self._crowded = False
            if not self._backlog and not self._pausing and self._handle.session.routing is not None:
                self._subscription.tell(Block(self._key, False))

    def _send_in_turn(self, what: Piece | Notice) -> None:
        if self._backlog or self._pausing:
            if isinstance(what, Notice):
                self._make_room(what)
            self._backlog.append(what)
        else:
            self._send(what)

    def _make_room(self, notice: Notice) -> None:
        """Where many events wait to be told, let the oldest of this kind go: the last word is what counts."""
        notices = [waiting for waiting in self._backlog if isinstance(waiting, Notice)]
        if len(notices) >= NOTICES_MAX and (
            older := next((each for each in notices if each.code == notice.code), None)
        ):
            self._backlog.remove(older)

    def _send(self, what: Piece | Notice) -> None:
        session = self._handle.session
        if isinstance(what, Piece):
            sent = self._gateway.send(session, self._delivery(what), what.frames, may_wait=True)
        else:
            sent = self._gateway.send(session, self._event(what), may_wait=True)
        if sent is Sent.OK:
            if isinstance(what, Piece) and self._acknowledges:
                self._sent(what)
        elif sent is Sent.FULL:
            if not self._backlog:
                self._subscription.tell(Block(self._key, True, "full"))
            if self._key not in session.waiting:
                if not session.waiting:
                    self.call_later(FULL_RETRY_S, lambda: self._look_for_room(FULL_RETRY_S))
                session.waiting[self._key] = self.ref
            self._backlog.append(what)
        else:  # the client may come back and resume: what it holds is delivered again then, and what it missed told
            self._subscription.tell(Block(self._key, True, "lost"))
            if isinstance(what, Notice):
                self._backlog.append(what)
            elif not self._acknowledges:
                self._subscription.tell(Lost(what.count))

    def _delivery(self, piece: Piece) -> Header:
        header: Header = {
            Key.TYPE: Type.DELIVER,
            Key.HANDLE: self._handle.number,
            Key.OFFSET: piece.offset,
            Key.COUNT: piece.count,
            Key.TIMESTAMPS: piece.timestamps,
            Key.ATTEMPT: piece.attempt,
        }
        if piece.columns:
            header[Key.COLUMNS] = piece.columns
        if self._tells and self._is_last_chance(piece):
            header[Key.SINGLY] = True
        if piece.ranges:
            header[Key.RANGES] = [number for pair in piece.ranges for number in pair]
        return header

    def _event(self, notice: Notice) -> Header:
        header: Header = {
            Key.TYPE: Type.EVENT,
            Key.HANDLE: self._handle.number,
            Key.CODE: notice.code,
            Key.COUNT: notice.count,
            Key.TEXT: notice.text,
        }
        if notice.offset is not None:
            header[Key.OFFSET] = notice.offset
        return header

    @receives(Room)
    def on_room(self, _room: Room) -> None:
        """Send what waits here: who waited before us had room."""
        if self._key in self._handle.session.waiting:
            self._look_for_room(FULL_RETRY_S / 2)

    def _look_for_room(self, waited_s: float) -> None:
        """Send what waits here, and let the next one; or look again later, for all that wait for this connection."""
        self._retry()
        if self._backlog and not self._pausing and self._handle.session.routing is not None:
            wait_s = min(2 * waited_s, FULL_RETRY_S_MAX)
            self.call_later(wait_s, lambda: self._look_for_room(wait_s))
        else:
            self._wait_no_more()

    def _wait_no_more(self) -> None:
        waiting = self._handle.session.waiting
        first = next(iter(waiting), None)
        waiting.pop(self._key, None)
        if first == self._key and waiting:
            next(iter(waiting.values())).tell(Room())

    def _retry(self) -> None:
        if self._pausing:
            return  # it is given back then, not sent
        backlog, self._backlog = self._backlog, deque()
        for waiting in backlog:
            self._send_in_turn(waiting)
        if not self._backlog and not self._crowded and self._handle.session.routing is not None:
            self._subscription.tell(Block(self._key, False))

    @receives(Notice)
    def on_notice(self, notice: Notice) -> None:
        """Tell the client of an event, behind what was delivered before it."""
        if notice.code == "dropped":  # told of again, with what is lost until then: no reason to wait
            self._gateway.send(self._handle.session, self._event(notice), may_wait=True)
        else:
            self._send_in_turn(notice)

    # ---- what the client says -----------------------------------------------------------------------------------

    @receives(ConsumerFrame)
    def on_frame(self, frame: ConsumerFrame) -> None:
        """Take a CREDIT, ACK, ACK_UNTIL, NACK or EXTEND."""
        header = frame.header
        kind = header[Key.TYPE]
        self._heard_s = self.clock.monotonic()
        if kind == Type.CREDIT:
            if self._tells and Key.TAKEN in header:
                self._take(header[Key.TAKEN], alone=Key.REF in header)
            if header[Key.MESSAGES] or header[Key.BYTES]:
                self._subscription.tell(AddCredit(self._key, header[Key.MESSAGES], header[Key.BYTES]))
            if Key.REF in header:
                self._done(header[Key.REF])
            return
        if not self._acknowledges:
            if Key.REF in header:
                self._done(header[Key.REF])
            return
        try:
            if kind == Type.ACK:
                self._acknowledge(header)
            elif kind == Type.ACK_UNTIL:
                self._acknowledge_until(header)
            elif kind == Type.EXTEND:
                self._extend(header)
            else:
                self._give_back(header)
            self._settled()
        except IsterError as error:
            echo: Header = {key: header[key] for key in (Key.REF, Key.HANDLE) if key in header}
            self._gateway.send_error(self._handle.session, error, echo)

    def _take(self, count: int, *, alone: bool) -> None:
        """The program takes what waited in the client: from now on it is to be acknowledged in time."""
        deadline_s = self.clock.monotonic() + self._ack_timeout_s
        taken = self._in_hand.confirm(count) if alone else self._in_hand.tell(count)
        for first, end in taken:
            self.in_flight.extend(first, end, deadline_s)
        if taken:
            self._look_by(deadline_s)

    def _ranges(self, header: Header) -> tuple[tuple[int, int], ...]:
        flat = header[Key.RANGES]
        ranges = tuple(zip(flat[::2], flat[1::2], strict=True))
        for first, end in ranges:
            if first >= end:
                raise RemoteError("invalid-argument", f"the range from {first} to before {end} is empty")
            self._check_delivered(end)
        return ranges

    def _check_delivered(self, end: int) -> None:
        if end > self._delivered_end and self._since is None:
            raise RemoteError(
                "ack-unknown",
                f"offset {end - 1} was never delivered here (delivered: below {self._delivered_end})",
            )

    def _acknowledge(self, header: Header) -> None:
        ranges = self._ranges(header)
        settled: list[Held] = []
        for first, end in ranges:
            settled += self.in_flight.settle(first, end)
        if (
            len(ranges) > 1
        ):  # each once, however often they are named: there may be work for each message of them
            ranges = tuple(RangeSet(ranges))
        if self._since is not None:
            since = RangeSet((held.first, held.end) for held in settled)
            for first, end in ranges:
                for part in self._since.within(first, end):
                    since.add(*part)
            ranges = tuple(since)
        self._subscription.tell(
            Acknowledged(self._key, ranges, header.get(Key.REF), _messages(settled), self._holds_since_s())
        )

    def _acknowledge_until(self, header: Header) -> None:
        end = header[Key.OFFSET] + 1
        self._check_delivered(end)
        settled = self.in_flight.settle(0, end)
        count, ref = _messages(settled), header.get(Key.REF)
        moved = self._since is not None and end - 1 not in self._since
        if moved or TRAITS[self._type].shares:
            ranges = tuple((held.first, held.end) for held in settled)
            self._subscription.tell(Acknowledged(self._key, ranges, ref, count, self._holds_since_s()))
        else:
            self._subscription.tell(AcknowledgedUntil(self._key, end, ref, count, self._holds_since_s()))

    def _holds_since_s(self) -> float | None:
        deadline_s = self.in_flight.oldest_deadline_s()
        return None if deadline_s is None else deadline_s - self._ack_timeout_s

    def _extend(self, header: Header) -> None:
        """Let the acknowledgment timeout begin anew: the client is still working on it."""
        deadline_s = self.clock.monotonic() + self._ack_timeout_s
        for first, end in self._ranges(header):
            self.in_flight.extend(first, end, deadline_s)
        self._look_by(deadline_s)  # the timeout may have been longer before
        if Key.REF in header:
            self._done(header[Key.REF])

    def _give_back(self, header: Header) -> None:
        delay_ms = header.get(Key.DELAY)
        if delay_ms is not None and delay_ms > DELAY_MS_MAX:
            raise RemoteError("invalid-argument", f"a delay of {delay_ms} ms is over {DELAY_MS_MAX} ms")
        held: list[Held] = []
        for first, end in self._ranges(header):
            held += self.in_flight.settle(first, end)
        if Key.TAKEN in header:  # the program failed, and does not know at what
            held += self.in_flight.release_taken()
        if held:
            why = header.get(Key.REASON, "refused")[:REASON_LENGTH_MAX]
            delay_s = None if delay_ms is None else delay_ms / 1000
            self._subscription.tell(Returned(self._key, held, delay_s, why, failed=True))
        if Key.REF in header:
            self._done(header[Key.REF])

    @receives(Confirmed)
    def on_confirmed(self, confirmed: Confirmed) -> None:
        """Tell the client that an acknowledgment is in the journal."""
        self._done(confirmed.ref)

    @receives(AckRefused)
    def on_ack_refused(self, refused: AckRefused) -> None:
        """Tell the client that an acknowledgment came too late."""
        echo: Header = {Key.HANDLE: self._handle.number}
        if refused.ref is not None:
            echo[Key.REF] = refused.ref
        self._gateway.send_error(self._handle.session, RemoteError(refused.code, refused.text), echo)

    def _done(self, ref: int) -> None:
        self._gateway.send(self._handle.session, {Key.TYPE: Type.DONE, Key.REF: ref})

    def _expire(self) -> None:
        now_s = self.clock.monotonic()
        self._timer = None
        expired = self.in_flight.expire(now_s)
        if expired:
            text = f"not acknowledged within {self._ack_timeout_s:g} s"
            self._subscription.tell(Returned(self._key, expired, None, text, failed=True))
            self._recall("acknowledge")
            self._settled()
        due = self.in_flight.next_deadline_s()
        if due is None and self._in_hand.waits:  # it has nothing in hand, and perhaps forgot about this
            due = self._heard_s + self._ack_timeout_s
            if due <= now_s:
                self._subscription.tell(Idle(self._key))
                due = now_s + self._ack_timeout_s
        if due is not None:
            self._look_at(due)

    @receives(Recall)
    def on_recall(self, _recall: Recall) -> None:
        """Let others have what waits for a program that asks for nothing, unless it has come back just now."""
        if self.in_flight.next_deadline_s() is None and self._is_silent():
            self._recall("ask for anything")

    def _is_silent(self) -> bool:
        return self._heard_s + self._ack_timeout_s <= self.clock.monotonic()

    def _recall(self, what: str) -> None:
        """The program is stuck, or takes nothing: what waits for it goes to others, and did not fail."""
        self._backlog = deque(waiting for waiting in self._backlog if isinstance(waiting, Notice))
        if waiting := self.in_flight.release_waiting():
            self._in_hand.forget()
            self._subscription.tell(SetCredit(self._key, 0, 0))  # nothing comes until it asks
            self._subscription.tell(Returned(self._key, waiting, 0.0, "its consumer is stuck"))
            text = f"the program does not {what} within {self._ack_timeout_s:g} s"
            self._send_in_turn(Notice(RECALLED, _messages(waiting), text))

    def _look_by(self, deadline_s: float) -> None:
        if self._timer is None or self._timer.due > deadline_s:
            self._look_at(deadline_s)

    def _look_at(self, deadline_s: float) -> None:
        """Look then, and not later, for what was not acknowledged in time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.call_later(max(deadline_s - self.clock.monotonic(), 0.001), self._expire)


def _messages(held: Sequence[Held]) -> int:
    return sum(part.end - part.first for part in held)
