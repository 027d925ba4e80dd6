"""Consumers: each represents one connected consumer, the messages it holds, and its place on the wire.

Runs in the worker process of its subscription, one actor per open handle. This file is the conversation between client
and subscription; `consumer_holding.py` keeps the messages held, `consumer_wire.py` the handle and what waits for its
connection.

Invariants
- no message is lost when a consumer ends: `on_stop` and `on_failure` return what it held
- it ends, or starts again, only after the subscription has confirmed that nothing more is in transit to it: a later
  piece would be lost, or be delivered before earlier ones
- messages that the program has in hand, or that wait while the program asks for nothing, are returned at their timeout
"""

from __future__ import annotations

from typing import Final

from ister.actors.consumer_holding import Holding, messages_of
from ister.actors.consumer_wire import WirePlace
from ister.actors.ledger import DELAY_MS_MAX, Held, InFlight
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
from ister.subscriptions import READER, TRAITS
from ister.transport.gateway import Gateway
from ister.transport.session import Handle
from ister.wire import Header, Key, Type

REASON_LENGTH_MAX: Final = 200  # characters, as in PROTOCOL.md
# A consumer that is not attached by then is refused: the client tries again, and can tell its program why it waits.
OPEN_WITHIN_S: Final = 20.0

# the code of the event about messages taken back from a stuck program, and its credit
RECALLED: Final = "recalled"


class Consumer(LoopActor):
    """One open consumer of a subscription. It acknowledges only if the topic is reliable.

    It asks the subscription to attach it when it starts, and answers the client's OPEN_CONSUMER.
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
        self._subscription = subscription
        self._type = subscription_type
        self._strategy = strategy
        self._instance = instance
        self._acknowledges = strategy == "reliable" and subscription_type != READER
        self.holding = Holding(acknowledges=self._acknowledges)
        self.wire = WirePlace(
            gateway,
            handle,
            header,
            key,
            self.ref,
            call_later=self.call_later,
            block=subscription.tell,
            is_last_chance=self.holding.is_last_chance,
            on_sent=self._sent if self._acknowledges else None,
            on_lost=self._lost,
            on_clear=self._cleared,
        )
        self._heard_s = 0.0  # when its program last said something, or was first given something
        self._timer: Timer | None = None  # for the acknowledgment timeout
        self._recalled = False  # all credit is void, and none was given since
        self._granted = False
        self._closing: list[CloseConsumer] = []
        self._gone = False

    # ---- coming and going ---------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Ask the subscription to attach this consumer."""
        self._open_timer = self.call_later(OPEN_WITHIN_S, self._give_up)
        header, session = self.wire.header, self.wire.handle.session
        messages, bytes_ = self.wire.credit()
        self._subscription.tell(
            AttachConsumer(
                self.ref,
                self._key,
                header.get(Key.PRIORITY, 0),
                messages,
                bytes_,
                header.get(Key.SPARSE, False),
                header.get(Key.FORCE, False),
                session.client,
                session,
            )
        )

    def _give_up(self) -> None:
        """Refuse the open: the subscription has not attached the consumer in time."""
        if self.wire.is_asked_for_again:
            self._open_timer = self.call_later(OPEN_WITHIN_S, self._give_up)
            return
        text = (
            f"the subscription had no place within {OPEN_WITHIN_S:g} s: its topic does not answer, or is being read "
            "from the store; 'ister explain' says which; try again"
        )
        self._pause()  # once that is answered, nothing is in transit to this consumer
        self.wire.evict(RemoteError("unavailable", text))
        self._closing.append(CloseConsumer(self.wire.handle, None))

    def on_stop(self) -> None:
        """Return what is held."""
        self._leave()

    def on_failure(self, *_error: object) -> None:
        """Return what is held, and tell the client that the handle is closed."""
        self._leave()
        self.wire.evict(RemoteError("internal", "the broker failed for this consumer; see its log"))

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._open_timer.cancel()
            # a pending timer would keep all of this in memory for as long as the acknowledgment timeout
            if self._timer is not None:
                self._timer.cancel()
            self.wire.leave()
            lost = self.wire.handle.session.lost  # the session fell silent, without a close or goodbye
            held, waiting = self._release()  # first, because lost messages are reported before
            if lost:
                held, waiting = self.holding.blame(held, waiting)
                self._subscription.tell(Left(self._key, held, lost, waiting))
            else:
                self._subscription.tell(Left(self._key, sorted(held + waiting)))

    def _release(self) -> tuple[list[Held], list[Held]]:
        """Take back all messages: those the program may have, and those it never had."""
        unsent = self.wire.unsent()
        if self._acknowledges:
            return self.holding.release(unsent)
        self._count_lost(sum(piece.count for piece in unsent))
        return [], []

    @receives(Granted)
    def on_granted(self, granted: Granted) -> None:
        """Tell the client that the handle is open."""
        self._granted = True
        self._open_timer.cancel()
        self.holding.begin(granted.position)
        self.holding.go_by(granted.ack_timeout_ms, granted.failures_max)
        if not self.wire.paused:
            self._say_opened(granted.position)

    def _say_opened(self, position: int) -> None:
        tells = self._acknowledges and Key.TAKEN in self.wire.header
        instance, moved = self._instance, self.holding.times_moved if self._acknowledges else None
        if (
            moved
        ):  # the client reconnected and may not know that the subscription was moved: its acks are void
            instance = f"{instance}.{moved}"
        if self.wire.open(position, self._strategy, instance, tells=tells, times_moved=moved):
            self.holding.begin_anew()

    @receives(TimeoutChanged)
    def on_timeout_changed(self, change: TimeoutChanged) -> None:
        """Apply another acknowledgment timeout to later deliveries."""
        self.holding.go_by(change.ack_timeout_ms, change.failures_max)

    @receives(Evicted)
    def on_evicted(self, evicted: Evicted) -> None:
        """Tell the client that it was refused or removed, and stop."""
        self.wire.evict(RemoteError(evicted.code, evicted.text))
        self._answer_closes()
        self.stop_now()

    @receives(Reopen)
    def on_reopen(self, command: Reopen) -> None:
        """Start again for a client that reconnected: what it held is redelivered, in order."""
        self.wire.reopen(command.generation, command.header)
        self._answer_closes()  # the handle was opened again since: it stays open
        self._pause()

    @receives(CloseConsumer)
    def on_close(self, command: CloseConsumer) -> None:
        """Close, because the client asked for it or its session ended."""
        self._closing.append(command)
        self._pause()

    def _answer_closes(self) -> None:
        closing, self._closing = self._closing, []
        for command in closing:
            if command.ref is not None:
                self.wire.done(command.ref)

    def _pause(self) -> None:
        if self.wire.pause():
            self._subscription.tell(Pause(self.ref, self._key))

    @receives(Paused)
    def on_paused(self, _paused: Paused) -> None:
        """Stop, or start again: nothing is in transit to this consumer any more."""
        self.wire.go_on()
        if self._closing:
            self._leave()
            self.wire.forget()
            self._answer_closes()
            self.stop_now()
        else:
            self._give_all_back("reconnected")
            self.wire.drop_notices(RECALLED)  # its credit is new
            if self._type == READER and Key.START in self.wire.header:
                self._subscription.tell(ReadFrom(str(self.wire.header[Key.START])))
            self._recalled = False
            self._subscription.tell(SetCredit(self._key, *self.wire.credit()))
            if self._granted:
                self._say_opened(self.holding.delivered_end)
                self.wire.retry()

    def _give_all_back(self, why: str) -> None:
        held, waiting = self._release()
        self.holding.forget_hand()
        if held or waiting:
            self._subscription.tell(Returned(self._key, sorted(held + waiting), 0.0, why))
            self._settled()

    @receives(Yield)
    def on_yield(self, command: Yield) -> None:
        """Return all messages: another consumer becomes active, or the subscription is moved."""
        if command.moving:
            self.holding.moves()
        if self._acknowledges:
            self._give_all_back("another consumer is active")
        self._subscription.tell(Yielded(self._key))

    @receives(Sought)
    def on_sought(self, sought: Sought) -> None:
        """Continue at another offset: acknowledgments of earlier deliveries do not count."""
        self.holding.moved(sought.offset)
        text = f"the subscription goes on at offset {sought.offset}"
        moved = self.holding.times_moved if self._acknowledges else None
        self.wire.send(Notice("sought", 0, text, sought.offset, moved))

    @receives(Stayed)
    def on_stayed(self, _stayed: Stayed) -> None:
        """Accept acknowledgments as before: the subscription was not moved."""
        self.holding.stayed()

    # ---- delivering ---------------------------------------------------------------------------------------------

    @receives(Deliver)
    def on_deliver(self, command: Deliver) -> None:
        """Send a piece, and keep it as in flight until it is acknowledged."""
        piece = command.piece
        if self._recalled:  # it was dispatched before the subscription heard that the credit is void
            held = [Held(first, end, piece.attempt - 1, piece.failures) for first, end in piece.parts]
            self._subscription.tell(Returned(self._key, held, 0.0, "its consumer is stuck"))
            return
        if self.holding.deliver(piece):
            self._subscription.tell(Block(self._key, True, "crowded"))
        self.wire.send(piece)

    def _sent(self, piece: Piece, singly: bool) -> None:
        """Start the acknowledgment timeout of the messages of a sent piece that the program may have."""
        now_s = self.clock.monotonic()
        taken, waits = self.holding.sent(piece, now_s, tells=self.wire.tells, singly=singly)
        first = waits and self._timer is None
        if first:
            self._heard_s = now_s
        if taken or first:
            self._look_by(now_s + self.holding.ack_timeout_s)

    def _lost(self, piece: Piece) -> None:
        """Handle a piece that finds no connection: it stays in flight, or is lost."""
        self._count_lost(piece.count)

    def _count_lost(self, count: int) -> None:
        """Report messages that nobody gets; a reader reads from its own place again."""
        if count and not self._acknowledges and self._type != READER:
            self._subscription.tell(Lost(count))

    def _cleared(self) -> None:
        """Accept pieces again after the backlog was sent, unless too much is held."""
        if not self.holding.crowded:
            self._subscription.tell(Block(self._key, False))

    def _settled(self) -> None:
        """Accept pieces again if too much was held before."""
        if self.holding.relieved() and self.wire.is_clear:
            self._subscription.tell(Block(self._key, False))

    @receives(Room)
    def on_room(self, _room: Room) -> None:
        """Send the backlog: the consumer that waited for the connection before this one found room."""
        self.wire.room()

    @receives(Notice)
    def on_notice(self, notice: Notice) -> None:
        """Tell the client of an event, after what was delivered before it."""
        if notice.code == "dropped":  # it will be told again with later drops: no reason to wait
            self.wire.send_now_or_never(notice)
        else:
            self.wire.send(notice)

    # ---- what the client says -----------------------------------------------------------------------------------

    @receives(ConsumerFrame)
    def on_frame(self, frame: ConsumerFrame) -> None:
        """Handle a CREDIT, ACK, ACK_UNTIL, NACK or EXTEND frame."""
        header = frame.header
        kind = header[Key.TYPE]
        self._heard_s = now_s = self.clock.monotonic()
        if kind == Type.CREDIT:
            if (
                self.wire.tells
                and Key.TAKEN in header
                and self.holding.take(header[Key.TAKEN], now_s, alone=Key.REF in header)
            ):
                self._look_by(now_s + self.holding.ack_timeout_s)
            if header[Key.MESSAGES] or header[Key.BYTES]:
                self._recalled = False
                self._subscription.tell(AddCredit(self._key, header[Key.MESSAGES], header[Key.BYTES]))
            if Key.REF in header:
                self.wire.done(header[Key.REF])
            return
        if not self._acknowledges or self._is_outdated(header):
            if Key.REF in header:
                self.wire.done(header[Key.REF])
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
            if self.holding.crowded:
                self._settled()
        except IsterError as error:
            self.wire.refuse(error, {key: header[key] for key in (Key.REF, Key.HANDLE) if key in header})

    def _is_outdated(self, header: Header) -> bool:
        """Return whether a frame is about deliveries from before a move that its client did not know of.

        When a client resumes its session it repeats its last words about deliveries over the old connection. One that
        does not count moves may not know of a move since: all of it is redelivered.
        """
        if self.wire.counts_moves:
            known: int = header.get(Key.SOUGHT, 0)
            return known < self.holding.times_moved
        return self.holding.moved_since_opened and not self.wire.is_opened_here

    def _acknowledge(self, header: Header) -> None:
        holding, flat, ref = self.holding, header[Key.RANGES], header.get(Key.REF)
        if (parcels := holding.acknowledge_parcels(flat)) is not None:
            ranges = parcels[0].ranges
            for parcel in parcels[1:]:
                ranges += parcel.ranges
            settled = sum(len(parcel.offsets) for parcel in parcels)
            since_s = holding.holds_since_s()
            self._subscription.tell(
                Acknowledged(self._key, ranges, ref, settled, since_s, parcels=tuple(parcels))
            )
            return
        ranges, settled = holding.acknowledge(holding.ranges(flat))
        self._subscription.tell(Acknowledged(self._key, ranges, ref, settled, holding.holds_since_s()))

    def _acknowledge_until(self, header: Header) -> None:
        end, ref, holding = header[Key.OFFSET] + 1, header.get(Key.REF), self.holding
        ranges, settled = holding.acknowledge_until(end, shared=TRAITS[self._type].shares)
        since_s = holding.holds_since_s()
        if ranges is None:
            self._subscription.tell(AcknowledgedUntil(self._key, end, ref, settled, since_s))
        else:
            self._subscription.tell(Acknowledged(self._key, ranges, ref, settled, since_s))

    def _extend(self, header: Header) -> None:
        """Start the acknowledgment timeout of messages again: the client is still working on them."""
        deadline_s = self.clock.monotonic() + self.holding.ack_timeout_s
        self.holding.extend(self.holding.ranges(header[Key.RANGES]), deadline_s)
        self._look_by(deadline_s)  # the timeout may have been longer before
        if Key.REF in header:
            self.wire.done(header[Key.REF])

    def _give_back(self, header: Header) -> None:
        delay_ms = header.get(Key.DELAY)
        if delay_ms is not None and delay_ms > DELAY_MS_MAX:
            raise RemoteError("invalid-argument", f"a delay of {delay_ms} ms is over {DELAY_MS_MAX} ms")
        held = self.holding.refuse(self.holding.ranges(header[Key.RANGES]), taken_too=Key.TAKEN in header)
        if held:
            why = header.get(Key.REASON, "refused")[:REASON_LENGTH_MAX]
            delay_s = None if delay_ms is None else delay_ms / 1000
            self._subscription.tell(Returned(self._key, held, delay_s, why, failed=True))
        if Key.REF in header:
            self.wire.done(header[Key.REF])

    @receives(Confirmed)
    def on_confirmed(self, confirmed: Confirmed) -> None:
        """Tell the client that its acknowledgment is in the journal."""
        self.wire.done(confirmed.ref)

    @receives(AckRefused)
    def on_ack_refused(self, refused: AckRefused) -> None:
        """Tell the client that its acknowledgment was refused."""
        echo: Header = {Key.HANDLE: self.wire.handle.number}
        if refused.ref is not None:
            echo[Key.REF] = refused.ref
        self.wire.refuse(RemoteError(refused.code, refused.text), echo)

    # ---- what is not acknowledged in time -----------------------------------------------------------------------

    def _expire(self) -> None:
        now_s, timeout_s = self.clock.monotonic(), self.holding.ack_timeout_s
        self._timer = None
        expired = self.in_flight.expire(now_s)
        if expired:
            text = f"not acknowledged within {timeout_s:g} s"
            self._subscription.tell(Returned(self._key, expired, None, text, failed=True))
            self._recall("acknowledge")
            self._settled()
        due = self.in_flight.next_deadline_s()
        # the program has nothing in hand, and may never ask for what waits
        if due is None and self.holding.waits:
            due = self._heard_s + timeout_s
            if due <= now_s:
                self._subscription.tell(Idle(self._key))
                due = now_s + timeout_s
        if due is not None:
            self._look_at(due)

    @receives(Recall)
    def on_recall(self, _recall: Recall) -> None:
        """Take back what waits for a program that asks for nothing, unless it has just asked again."""
        silent = self._heard_s + self.holding.ack_timeout_s <= self.clock.monotonic()
        if self.in_flight.next_deadline_s() is None and silent:
            self._recall("ask for anything")

    def _recall(self, what: str) -> None:
        """Return what waits for a stuck program to the subscription, without a failure."""
        self.wire.unsent()  # pieces in the backlog wait as well
        if waiting := self.holding.recall():
            self._recalled = True
            self._subscription.tell(SetCredit(self._key, 0, 0))  # it gets nothing until it asks
            self._subscription.tell(Returned(self._key, waiting, 0.0, "its consumer is stuck"))
            text = f"the program does not {what} within {self.holding.ack_timeout_s:g} s"
            self.wire.send(Notice(RECALLED, messages_of(waiting), text))

    def _look_by(self, deadline_s: float) -> None:
        if self._timer is None or self._timer.due > deadline_s:
            self._look_at(deadline_s)

    def _look_at(self, deadline_s: float) -> None:
        """Check for timed out messages at that time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.call_later(max(deadline_s - self.clock.monotonic(), 0.001), self._expire)

    @property
    def in_flight(self) -> InFlight:
        """The messages that were delivered and neither acknowledged nor returned."""
        return self.holding.in_flight
