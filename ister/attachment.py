"""A consumer's part of the protocol: opening, deliveries, credit, acknowledgments.

Pure: no socket, clock or thread. The caller holds the client's lock.

Invariants
- what is in `queue` never exceeds the credit given (bytes: by one delivery), so memory is bounded
- credit is returned only for messages that the program was given
- an acknowledgment from before the broker forgot the session is never sent: it would make its whole frame fail
- nor is one from before the subscription was moved: its message is to be delivered again
- nor is one for a topic or subscription that was deleted sent to its successor: the offsets are other messages there
- a reader continues at the first message that was not handed out, wherever it opens again
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

from ister import wire
from ister.clientsession import Frame, Session, back_off_s, remote_error
from ister.errors import IsterError, RemoteError, RemoteProtocolError
from ister.message import Batch, Delivery, Event, Message
from ister.pace import START_ALONE, START_SHARED, Pace
from ister.subscriptions import READER, TRAITS
from ister.wire import Key, Type

Phase = Literal["idle", "opening", "open", "waiting", "closing", "closed"]
What = Literal["ready", "opened", "refused", "due", "close", "lost", "done", "fail"]

# The state machine of a consumer. An event without an entry is ignored.
TRANSITIONS: Final[dict[tuple[Phase, What], Phase]] = {
    ("idle", "ready"): "opening",
    ("opening", "opened"): "open",
    ("opening", "refused"): "waiting",  # `retry`: again after a back-off
    ("open", "refused"): "waiting",
    ("waiting", "due"): "opening",
    ("open", "close"): "closing",
    ("closing", "done"): "closed",
    ("opening", "lost"): "idle",
    ("open", "lost"): "idle",
    ("waiting", "lost"): "idle",
    ("closing", "lost"): "closed",  # the broker is told with the next HELLO
    ("idle", "fail"): "closed",
    ("opening", "fail"): "closed",
    ("open", "fail"): "closed",
    ("waiting", "fail"): "closed",
    ("closing", "fail"): "closed",
}

ACK_DELAY_S: Final = (
    0.005  # seconds that acknowledgments gather: at a million messages a second, 5,000 per frame
)
ACK_AT_ONCE: Final = (
    # messages; a program that takes no more at a time has its acknowledgments sent before the report of what is next
    64
)
ACK_RANGES_MAX: Final = 256  # scattered acknowledgments that are sent without waiting longer
# Ranges that were sent and not confirmed, kept to be sent again when the connection is lost. A program that
# acknowledges in order needs one. Consumers that share a subscription have as many as there are gaps between their
# messages: at half of this the broker is asked to confirm. Above it messages are redelivered, and `flush` says so.
UNPROVEN_MAX: Final = 4096
UNPROVEN_ASK: Final = 1024
EVENTS_MAX: Final = 256  # kept for a program that never reads them
# Credit is returned once this much of it is used, and a sixteenth of all, or half of a small credit: often enough to
# show that the program reads, and rarely enough that a frame stands for many messages.
CREDIT_BACK_MESSAGES: Final = 256
CREDIT_MESSAGES_MAX: Final = 65_536  # of a consumer whose credit follows its program's pace
CREDIT_BACK_BYTES: Final = 256 << 10
BUSY_S: Final = 0.5  # seconds; a consumer that waits for an Exclusive place asks at least this often


class Attachment:
    """One consumer's state; its fast path uses `ack_delivery` and `ack_end`."""

    def __init__(
        self,
        handle: int,
        topic: str,
        subscription: str,
        kind: str,
        *,
        start: str | int | None,
        priority: int,
        arguments: dict[str, Any],
        credit_messages: int | None,
        credit_bytes: int,
        callbacks: deque[Callable[[], Any]],
        on_event: Callable[[Event], Any] | None,
        force: bool = False,
        patient: bool = False,
    ) -> None:
        """`patient`: wait while another consumer has an Exclusive subscription.

        Without `credit_messages` the credit follows the program's pace. `callbacks` collects the calls to the user's
        functions; they are made after the lock was released.
        """
        self.replier: Callable[..., Any] | None = None  # sends the reply to a message that arrived here
        # called when something has arrived, or the consumer is closed
        self.listener: Callable[[], None] | None = None
        self._turns: OrderedDict[Attachment, None] | None = None  # the queue it joins when there is something
        self.handle = handle
        self.topic = topic
        self.subscription = subscription
        self.kind = kind
        self.session: Session | None = None
        self.phase: Phase = "idle"
        self.error: IsterError | None = None  # why it is closed
        self.trouble: IsterError | None = None  # why it is being tried again
        self.complaint: IsterError | None = None  # the broker's error about an acknowledgment; raised once
        self.forgotten = False  # acknowledgments were lost because the broker forgot; `flush` says so once
        self.opened = False
        self.strategy = ""
        self.position = 0
        self.active: bool | None = None
        self.dropped = 0
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.queue: deque[Delivery] = deque()
        self._in_hand: Delivery | None = None  # the last one that was taken
        self._at = 0  # its messages up to this index were handed out, or are in the iterator that was
        # counts how often earlier deliveries became void, because the broker forgot them or was told to
        self.lineage = 0
        self._sought = 0  # the lineage since the subscription was last moved
        self._moves = 0  # of so many the broker has told, where it counts them
        self.begun = 0  # counts how often delivering started again: opened, or moved
        # acknowledgments: one run that grows, closed runs, and what was sent and may yet be lost
        self.ack_delivery: Delivery | None = None
        self.ack_first = 0
        self.ack_end = 0
        self._ranges: list[tuple[int, int]] = []
        self._until: int | None = None
        self._ack_due: float | None = None
        self._last_sent: tuple[int, int] | None = None  # since the broker last confirmed everything
        self._unproven: list[tuple[int, int]] = []  # sent since then: they may be lost with the connection
        self._unproven_until = False  # an ACK_UNTIL, or more than is kept, is among what may be lost
        self.confirming: dict[int, list[tuple[int, int]]] = {}
        self._start = start
        self._next: int | None = None  # of a reader: the first offset that was not handed out
        self._force = force
        self._patient = patient
        self._priority = priority
        self._arguments = arguments
        start = START_SHARED if TRAITS[kind].shares else START_ALONE
        self._pace = Pace(start, CREDIT_MESSAGES_MAX)
        self._paced = credit_messages is None
        self._most = CREDIT_MESSAGES_MAX
        self.sharing = 1  # how many attachments the program takes from in turn, when it is this one's turn
        self._credit_messages = start if credit_messages is None else credit_messages
        self._credit_bytes = credit_bytes
        self._now = 0.0  # when the program last asked for something
        # What the broker is told about messages that the program takes, counted since OPENED
        self._tells = False  # the broker wants to be told
        self._came = 0
        self._handed = 0  # these are the program's, or in the iterator that it takes from
        self._told = 0  # these may be handed out
        self._singly = 0  # deliveries in the queue that are handed out one by one
        self._asking: int | None = None  # the REF of the question whether the next one may be handed out
        self._leave = False  # it may
        # The last message was handed out alone, and its acknowledgment may be in transit: the next one waits for the
        # answer to a question after that acknowledgment; otherwise a program that is killed would seem to have died of
        # both.
        self._after_singly = False
        self._recalled = False  # the credit is withheld until the program asks for something
        self._used_messages = 0
        self._used_bytes = 0
        self._callbacks = callbacks
        self._on_event = on_event
        self._failures = 0
        self._due = 0.0
        self._delivered_in: bytes | None = None  # the session that knows what was delivered
        self._instance = ""  # the INSTANCE of the subscription, as the broker said last

    # ---- opening -------------------------------------------------------------------------------------------------

    def on_ready(self, *, resumed: bool) -> None:
        """Handle WELCOME; unless the session was resumed, the broker has forgotten its deliveries."""
        if not resumed or self.session is None or self.session.secret != self._delivered_in:
            self.lineage += 1
            self._drop_acks()
        if self._step("ready"):
            self._acknowledge_again()
            self._open()

    def _acknowledge_again(self) -> None:
        """Repeat acknowledgments in a resumed session before opening again, so that nothing is redelivered.

        All of them are kept, and sent again when the handle is open: only then is it certain that the broker accepts
        them.
        """
        session = self.session
        if session is None or not self._acknowledges:
            return
        if self._until is not None:
            session.emit(self._word(Type.ACK_UNTIL, {Key.OFFSET: self._until}))
        self._close_run()
        self._ranges = joined(self._ranges)
        for flat in _flat(self._ranges):
            session.emit(self._word(Type.ACK, {Key.RANGES: flat}))

    def _open(self) -> None:
        session = self.session
        assert session is not None
        self.queue.clear()
        self.begun += 1
        self._used_messages = self._used_bytes = 0
        self._came = self._handed = self._told = self._singly = 0
        self._tells = self._leave = self._recalled = self._after_singly = False
        self._asking = None
        self._credit_messages = min(self._credit_messages, session.limits.credit_messages_max)
        self._credit_bytes = min(self._credit_bytes, session.limits.credit_bytes_max)
        header: wire.Header = {
            Key.TYPE: Type.OPEN_CONSUMER,
            Key.REF: session.expect(self._on_open_answer),
            Key.HANDLE: self.handle,
            Key.TOPIC: self.topic,
            Key.SUBSCRIPTION: self.subscription,
            Key.SUBSCRIPTION_TYPE: self.kind,
            Key.MESSAGES: self._credit_messages,
            Key.BYTES: self._credit_bytes,
            Key.SPARSE: True,
            Key.TAKEN: 0,
            Key.INSTANCE: self._instance,
            Key.SOUGHT: 0,
        }
        start = self._start if self._next is None else self._next
        if start is not None:
            header[Key.START] = start
        if (
            self._force and not self.opened
        ):  # otherwise two clients that both want it would evict each other for ever
            header[Key.FORCE] = True
        if self._priority:
            header[Key.PRIORITY] = self._priority
        if self._arguments:
            header[Key.ARGUMENTS] = self._arguments
        session.emit(header)

    def _on_open_answer(self, frame: Frame) -> None:
        kind, header, _body, now = frame
        if kind == Type.MOVED:
            if self.session is not None:
                self.session.moves.append((self, header[Key.ENDPOINT]))
        elif kind == Type.ERROR:
            self._on_refusal(header, now)
        elif kind == Type.OPENED:
            if not self._is_the_same(header.get(Key.INSTANCE, "")):
                return
            if self._step("opened"):
                self.opened = True
                self._delivered_in = None if self.session is None else self.session.secret
                self._failures = 0
                self.trouble = None
                self.strategy = header.get(Key.STRATEGY, "")
                self.position = header.get(Key.OFFSET, 0)
                self._tells = Key.TAKEN in header
                self._moves = header.get(Key.SOUGHT, 0)
                if self.kind == READER and self.strategy == "reliable" and self._next is None:
                    self._next = self.position
                self.flush()
        else:
            raise RemoteProtocolError(f"a frame of type {kind} answered OPEN_CONSUMER")

    def _is_the_same(self, instance: str) -> bool:
        """Record which subscription is open; if it is another than before, acknowledgments of the old one are void."""
        before, self._instance = self._instance, instance or self._instance
        if not (before and instance and before != instance):
            return True
        if self.kind == READER and self._next is not None:  # its position belongs to the other topic
            if self.session is not None:
                ref = self.session.expect(self._on_closed)
                self.session.emit({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: self.handle})
            self.fail(
                RemoteError("topic-deleted", f"topic {self.topic!r} was deleted, and created again since")
            )
            return False
        self.lineage += 1
        self._drop_acks()
        return True

    def _on_refusal(self, header: wire.Header, now: float) -> None:
        error = remote_error(header)
        fatal = error.action != "retry" and error.code != "unknown-handle"
        if error.code == "subscription-options" and self.opened and self._arguments:
            self._arguments, fatal = (
                {},
                False,
            )  # they were changed since: it is the same subscription
        if error.code == "subscription-busy" and not self.opened:
            if not self._patient:
                self.fail(busy(error))
            else:
                self.postpone(busy(error), now + min(BUSY_S, self._back_off_s()))
        elif fatal:
            self.fail(error)
        else:
            self._again(error, now)

    def _again(self, error: IsterError, now: float) -> None:
        self.postpone(error, now + self._back_off_s())

    def _back_off_s(self) -> float:
        return back_off_s(self._failures, 0.5 if self.session is None else self.session.jitter())

    def postpone(self, error: IsterError, due: float) -> None:
        """Open again at that time."""
        self.trouble = error
        if self._step("refused"):
            self.lineage += 1  # the worker that answers then may not know what was delivered before
            self._drop_acks()
            self._drop_unseen()
            self._due = due
            self._failures += 1

    def on_frame(self, frame: Frame) -> None:
        """Handle a DELIVER, an EVENT or an ERROR."""
        kind, header, body, now = frame
        if kind == Type.DELIVER:
            if self.phase == "open":
                delivery = Delivery(self, self.topic, self.lineage, header, body, now)
                self._came += delivery.count
                self._singly += delivery.singly
                self.queue.append(delivery)
                self._line_up()
        elif kind == Type.EVENT:
            text, offset = header.get(Key.TEXT, ""), header.get(Key.OFFSET)
            self._moves = max(self._moves, header.get(Key.SOUGHT, 0))
            self._on_happening(Event(header[Key.CODE], header.get(Key.COUNT, 0), text, offset, self.topic))
        elif kind == Type.ERROR:
            error = remote_error(header)
            if error.code == "not-active":
                pass  # acknowledged too late: the consumer that is active now gets it again
            elif error.code == "unknown-handle" or error.action == "retry":
                self._again(error, now)
            elif header.get(Key.CLOSED):
                self.fail(error)
            else:
                self.complaint = error
                self._line_up()
        else:
            raise RemoteProtocolError(f"a frame of type {kind} came for a consumer")

    def _on_happening(self, event: Event) -> None:
        if event.code in ("active", "standby"):
            self.active = event.code == "active"
        elif event.code == "dropped":
            self.dropped = event.count
        elif (
            event.code == "log-damaged"
        ):  # nothing more comes until an operator decides: the program must be told
            self.complaint = RemoteError(event.code, event.text)
            self._line_up()
        elif event.code == "sought":
            self._on_sought()
        elif event.code == "recalled":
            self._drop_waiting()
            self._recalled = True  # and all credit with it
            self._used_messages, self._used_bytes = self._credit_messages, self._credit_bytes
            self._line_up()
        self.events.append(event)
        if self._on_event is not None:
            call = self._on_event
            self._callbacks.append(lambda: call(event))

    def _on_sought(self) -> None:
        """Handle the event of a move: what was delivered before is void, and so are acknowledgments of it."""
        self.begun += 1
        self.lineage += 1
        self._sought = self.lineage
        forgotten = self.forgotten
        self._drop_acks()
        self.forgotten = forgotten  # only what was meant to be redelivered is
        self._drop_waiting()
        self._give_credit()

    def _drop_waiting(self) -> None:
        """Drop what the program was not given: the broker has taken it back."""
        for delivery in self.queue:
            self._used_messages += delivery.count
            self._used_bytes += delivery.size
        if self._in_hand is not None:
            self._used_messages += self._in_hand.count - self._at
        self.queue.clear()
        self.withhold()
        self._singly, self._asking, self._leave = 0, None, False
        self._handed = self._came  # later messages come after it

    # ---- handing out ---------------------------------------------------------------------------------------------

    def asked(self, now: float) -> None:
        """Note that the program asks for more: it is done with what it had; adjust its credit."""
        self._now = now
        pace = self._pace
        if self._in_hand is None or not self._in_hand.unseen:
            pace.asked(now)
            if self._paced and (window := self._window()) != self._credit_messages:
                self._set_credit(window, self._credit_bytes)
        if self._recalled:
            self._recalled = False
            self._give_credit()

    def take(self) -> Delivery | None:
        """Return the next delivery as a whole."""
        delivery = self._begin()
        if delivery is not None:
            self._at = delivery.count
            self._hand_over(delivery.count, together=True)
        return delivery

    def _begin(self) -> Delivery | None:
        """Take the next delivery in hand."""
        if not self.queue:
            return None
        delivery = self._in_hand = self.queue.popleft()
        self._at = 0
        self._singly -= delivery.singly
        self._used_bytes += delivery.size
        if self._next is not None:
            self._next = delivery.end
        return delivery

    def _hand_over(self, count: int, *, together: bool) -> None:
        """Give messages to the program: report that first, and return credit once that is a good part of all."""
        assert self._in_hand is not None
        self._pace.handed(count, self._in_hand.came, self._now, together=together)
        self._used_messages += count
        self._handed += count
        messages = _part(self._credit_messages, CREDIT_BACK_MESSAGES)
        due = self._used_messages >= messages or self._used_bytes >= _part(
            self._credit_bytes, CREDIT_BACK_BYTES
        )
        if self._tells and (due or self._handed > self._told):
            self._told = max(self._told, self._handed)
            if not (self._singly or self._in_hand.singly):
                self._told = max(self._told, self._handed - count + self._pace.at_once)
            if self._pace.at_once <= ACK_AT_ONCE:
                self.flush()  # messages that are done are not in the program's hands any more
            # One frame for both: a frame costs the worker more than its content. A small credit waits until it is due.
            self._give_credit(taken=self._told, back=due or 2 * self._used_messages >= messages)
        elif due:
            self._give_credit()

    @property
    def has_in_hand(self) -> bool:
        """Whether something of the delivery that was taken last was not handed out."""
        delivery = self._in_hand
        return delivery is not None and (self._at < delivery.count or delivery.unseen > 0)

    @property
    def asks(self) -> bool:
        """Whether the broker still has to say that the next message may be handed out."""
        return self._asking is not None

    @property
    def has_some(self) -> bool:
        """Whether there is a message to hand out, or a question to ask the broker."""
        if self._recalled:
            return True
        if self.asks:
            return self._in_hand is not None and self._in_hand.unseen > 0
        return bool(self.queue) or self.has_in_hand

    def hand_out(self) -> Iterator[Message] | None:
        """Return an iterator over the next messages, shared by all who take from it; None if there are none.

        If the broker is told what is taken, they are no more than the program processes in a moment.
        """
        batch = self._cut(self._pace.at_once if self._tells else None, together=False)
        return None if batch is None else batch.hand_out()

    def grab(self, most: int | None) -> Batch | None:
        """Return the next messages, at most `most`; what an iterator has not yielded is taken from it."""
        if self._in_hand is not None and (unseen := self._in_hand.take_back()):
            self._at -= unseen
            self._handed -= unseen
            self._used_messages -= unseen
        return self._cut(most, together=True)

    def _cut(self, most: int | None, *, together: bool) -> Batch | None:
        delivery = self._in_hand
        if delivery is None or self._at >= delivery.count:
            delivery = self._begin()
            if delivery is None:
                return None
        first = self._at
        stop = delivery.count if most is None else min(delivery.count, first + most)
        if self._tells and (delivery.singly or self._after_singly):
            if not self._may_have_one():
                return None
            self._after_singly = delivery.singly
            stop = first + 1
        self._at = stop
        self._hand_over(stop - first, together=together)
        return Batch(delivery, first, stop)

    def _may_have_one(self) -> bool:
        """Return whether the broker knows that the program gets the next message, which may kill it; otherwise ask."""
        if self._leave:
            self._leave = False
            return True
        session = self.session
        if self._asking is None and self.phase == "open" and session is not None:
            self._asking = session.expect(self._on_leave)
            self.flush()
            self._give_credit(taken=self._handed + 1, ref=self._asking)
        return False

    def _on_leave(self, frame: Frame) -> None:
        if frame.header[Key.REF] == self._asking:
            self._asking = None
            if frame.kind == Type.DONE:
                self._leave = True
                self._told = max(self._told, self._handed + 1)
            self._line_up()

    def withhold(self) -> None:
        """Hand out nothing more of the present delivery."""
        if self._in_hand is not None:
            self._in_hand.withhold()
            self._in_hand = None

    def _give_credit(self, *, taken: int | None = None, ref: int | None = None, back: bool = True) -> None:
        """Return the credit of `back`, and report how many messages the program may have `taken`."""
        messages, size = (max(0, self._used_messages), max(0, self._used_bytes)) if back else (0, 0)
        if self.phase == "open" and self.session is not None and (messages or size or taken is not None):
            header: wire.Header = {Key.TYPE: Type.CREDIT, Key.HANDLE: self.handle}
            if taken is not None:
                header[Key.TAKEN] = taken
            if ref is not None:
                header[Key.REF] = ref
            self.session.emit(header | {Key.MESSAGES: messages, Key.BYTES: size})
            self._used_messages -= messages
            self._used_bytes -= size

    def resize(self, credit_messages: int, credit_bytes: int) -> None:
        """Set the credit, or its upper limit if it follows the program's pace."""
        if self._paced:
            self._most = credit_messages
            credit_messages = self._window()
        self._set_credit(credit_messages, credit_bytes)

    def _window(self) -> int:
        """Return how many messages the program should have ready, by its pace and what it is working on."""
        return max(1, min(self._pace.window // self.sharing, self._most))

    def _set_credit(self, credit_messages: int, credit_bytes: int) -> None:
        """Set the credit: a larger one is given at once, a smaller one is reached as deliveries are handed out."""
        self._used_messages += (
            credit_messages - self._credit_messages
        )  # below zero: more is given than should be
        self._used_bytes += credit_bytes - self._credit_bytes
        self._credit_messages, self._credit_bytes = credit_messages, credit_bytes
        if self._used_messages > 0 or self._used_bytes > 0:
            self._give_credit()

    def take_turns(self, turns: OrderedDict[Attachment, None]) -> None:
        """Join this queue whenever there is something to hand out or to raise."""
        self._turns = turns
        if self.queue or self.complaint is not None or self.phase == "closed":
            self._line_up()

    def _line_up(self) -> None:
        if self._turns is not None:
            self._turns[self] = None  # an attachment in the queue keeps its place
        if self.listener is not None:
            self.listener()

    # ---- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, delivery: Delivery, first: int, end: int, now: float) -> None:
        """Acknowledge the offsets from `first` up to `end`, soon."""
        if not self._acknowledges:
            self.ack_delivery, self.ack_end = delivery, end  # nothing is sent, and the next one is quick
            return
        if self._is_void(delivery):
            return
        if first != self.ack_end or self.ack_first == self.ack_end:
            self._close_run()
            self.ack_first = first
        self.ack_end = end
        self.ack_delivery = delivery
        if self._ack_due is None:
            self._ack_due = now + ACK_DELAY_S
        if len(self._ranges) >= ACK_RANGES_MAX:
            self.flush()

    def ack_until(self, delivery: Delivery, offset: int, now: float) -> None:
        """Acknowledge everything up to and including `offset`, soon."""
        if not self._acknowledges or self._is_void(delivery):
            return
        self._until = offset if self._until is None else max(self._until, offset)
        if self._ack_due is None:
            self._ack_due = now + ACK_DELAY_S

    def nack(
        self, delivery: Delivery, ranges: list[tuple[int, int]], delay_ms: int | None, reason: str
    ) -> None:
        """Refuse messages, to be redelivered after the delay, or after the back-off without one.

        A delay of 0 overrides the broker's default back-off, but not one that this consumer set itself: 0 used to be
        the default here, and a program that sets a back-off means it for refusals without a delay.
        """
        more: wire.Header = {}
        if delay_ms or (delay_ms == 0 and not self._arguments.get("backoff_ms_min")):
            more[Key.DELAY] = delay_ms
        if reason:
            more[Key.REASON] = reason
        self._say_of(Type.NACK, delivery, ranges, more)

    def extend(self, delivery: Delivery, ranges: list[tuple[int, int]]) -> None:
        """Say that these messages are still being worked on: their acknowledgment timeout starts again."""
        self._say_of(Type.EXTEND, delivery, ranges, {})

    def _say_of(
        self, kind: int, delivery: Delivery, ranges: list[tuple[int, int]], more: wire.Header
    ) -> None:
        session = self.session
        if not self._acknowledges or self._is_void(delivery):
            return
        if self.phase != "open" or session is None:
            return  # opening again releases everything that is not acknowledged
        for flat in _flat(ranges):
            session.emit(self._word(kind, {Key.RANGES: flat, **more}))

    def _word(self, kind: int, more: wire.Header) -> wire.Header:
        """Return the header of what is said about messages: with the moves of which the broker has told."""
        header: wire.Header = {Key.TYPE: kind, Key.HANDLE: self.handle, **more}
        if self._moves:
            header[Key.SOUGHT] = self._moves
        return header

    @property
    def _acknowledges(self) -> bool:
        return self.strategy != "non-reliable" and self.kind != READER  # for these the broker never asks

    def _is_void(self, delivery: Delivery) -> bool:
        if delivery.lineage == self.lineage:
            return False
        if delivery.lineage >= self._sought:
            self.forgotten = True  # and the broker redelivers what it forgot
        return True

    def _close_run(self) -> None:
        if self.ack_first < self.ack_end:
            self._ranges.append((self.ack_first, self.ack_end))
        self.ack_first = self.ack_end
        self.ack_delivery = None

    def _drop_acks(self) -> None:
        self.forgotten = self.forgotten or not self.settled
        self._close_run()
        self._ranges.clear()
        self.confirming.clear()
        self._unproven.clear()
        self._unproven_until = False
        self._until = self._ack_due = self._last_sent = None

    def flush(self, *, confirm: bool = False) -> None:
        """Send the acknowledgments gathered so far; with `confirm`, ask the broker to say when they are stored."""
        session = self.session
        if self.phase != "open" or session is None or not self._acknowledges:
            return
        self._close_run()
        ranges = joined(self._ranges)
        self._ranges = []
        confirm = confirm or (bool(ranges) and not self.confirming and len(self._unproven) >= UNPROVEN_ASK)
        self._ack_due = None
        if self._until is not None:
            session.emit(self._word(Type.ACK_UNTIL, {Key.OFFSET: self._until}))
            self._last_sent = (self._until, self._until + 1)
            self._unproven_until = True
            self._until = None
        if not ranges and confirm and self._last_sent is not None:
            # acknowledging again is harmless, and the answer covers the earlier ones
            ranges = [self._last_sent]
        for part in range(0, len(ranges), wire.RANGES_MAX):
            sent = ranges[part : part + wire.RANGES_MAX]
            header = self._word(Type.ACK, {Key.RANGES: [number for pair in sent for number in pair]})
            if confirm and part + wire.RANGES_MAX >= len(ranges):
                ref = session.expect(self._on_confirmed)
                header[Key.REF] = ref
                self.confirming[ref] = [*self._unproven, *ranges]
                self._unproven = []
            session.emit(header)
            self._last_sent = sent[-1]
        if confirm:
            self._last_sent = None
        else:
            self._keep(ranges)

    def _keep(self, ranges: list[tuple[int, int]]) -> None:
        """Keep what was sent, in case it is lost in transit."""
        self._unproven.extend(ranges)
        most = UNPROVEN_MAX - sum(map(len, self.confirming.values()))
        if len(self._unproven) > most:
            self._unproven = joined(self._unproven)
            if len(self._unproven) > most:
                self._unproven_until = True
                del self._unproven[: UNPROVEN_MAX // 2]

    def _on_confirmed(self, frame: Frame) -> None:
        if self.confirming.pop(frame.header[Key.REF], None) is None:
            return  # the consumer was closed or moved meanwhile: what was acknowledged is known to be void
        if not self.confirming and self._last_sent is None:
            self._unproven_until = False
        if frame.kind == Type.ERROR:
            self.complaint = remote_error(frame.header)
            self._line_up()

    @property
    def settled(self) -> bool:
        """Whether the broker has stored every acknowledgment made so far."""
        return not self._acknowledges or (
            not self._ranges
            and not self.confirming
            and self.ack_first == self.ack_end
            and self._until is None
            and self._last_sent is None
        )

    # ---- the end, and time ---------------------------------------------------------------------------------------

    def blame(self, reason: str) -> None:
        """Let everything in hand fail, for this reason; only the broker knows all of it."""
        if self.phase == "open" and self.session is not None and self._tells:
            self.flush()
            what: wire.Header = {Key.RANGES: [], Key.TAKEN: self._handed, Key.REASON: reason}
            self.session.emit(self._word(Type.NACK, what))

    def close(self) -> None:
        """Send the acknowledgments, then CLOSE; the phase becomes closed when the broker has answered."""
        self.flush()
        opening = self.phase == "opening"  # the broker is about to open it, and must be told to close it
        if (self._step("close") or opening) and self.session is not None:
            ref = self.session.expect(self._on_closed)
            self.session.emit({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: self.handle})
            if opening:
                self._step("fail")
        elif self.phase != "closing":
            self._step("fail")
        self.queue.clear()
        self.withhold()

    def _drop_unseen(self) -> None:
        """Drop what was not handed out: it is redelivered, if the broker keeps it."""
        self.queue.clear()
        if self._acknowledges:
            self.withhold()

    def _on_closed(self, _frame: Frame) -> None:
        self._step("done")

    def on_lost(self, reason: IsterError) -> None:
        """Handle a lost connection: drop what was not handed out, keep what was not confirmed to send it again."""
        self.trouble = reason
        self._drop_unseen()
        self._close_run()
        for ranges in self.confirming.values():
            self._ranges.extend(ranges)
        self.confirming.clear()
        self._ranges.extend(self._unproven)
        self._unproven = []
        self._last_sent = None
        if self._unproven_until:  # what it covered is not known here: it is redelivered
            self._unproven_until = False
            self.forgotten = True
        self._step("lost")

    def fail(self, error: IsterError) -> None:
        """Close it, for this reason."""
        if self._step("fail"):
            self.error = error
            self._drop_unseen()
            self._drop_acks()
            self._line_up()

    def tick(self, now: float) -> None:
        """Send acknowledgments that have waited long enough, and open again after a back-off."""
        if self.phase == "waiting" and now >= self._due:
            self._step("due")
            self._open()
        elif self._ack_due is not None and now >= self._ack_due:
            self.flush()

    def deadline(self) -> float:
        """When `tick` is to be called next."""
        if self.phase == "waiting":
            return self._due
        if self.phase == "open" and self._ack_due is not None:
            return self._ack_due
        return float("inf")

    def _step(self, what: What) -> bool:
        then = TRANSITIONS.get((self.phase, what))
        if then is None:
            return False
        self.phase = then
        return True


def busy(error: RemoteError) -> RemoteError:
    """Return the error for an occupied Exclusive subscription, with what this program can do."""
    hint = "force=True takes it over, timeout= waits for it"
    return RemoteError(error.code, f"{error.text} ({hint})", error.action)


def _part(credit: int, least: int) -> int:
    """Return how much of a credit is returned at once."""
    return max(credit // 16, min((credit + 1) // 2, least))


def _flat(ranges: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield the ranges as they travel, as many as fit a frame at a time."""
    for part in range(0, len(ranges), wire.RANGES_MAX):
        yield [number for pair in ranges[part : part + wire.RANGES_MAX] for number in pair]


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort half-open ranges and join those that touch or overlap."""
    if len(ranges) < 2:
        return ranges
    ranges.sort()
    whole = [ranges[0]]
    for first, end in ranges[1:]:
        if first <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((first, end))
    return whole
