"""A consumer's part of the protocol: opening, opening again, deliveries and events, closing.

It has two parts: `handing.py` has what is on its way to the program, and gives credit; `acknowledgments.py` has what
the program says of it. `receiver.py` and `consumer.py` are what programs hold, and wait. Pure: no socket, clock or
thread. The caller holds the client's lock.

Invariants
- whatever the broker forgets, or is told to forget, is void here before anything more is said about it
- no acknowledgment for a topic or subscription that was deleted is sent to its successor: the offsets are other
  messages there
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, Literal

from ister import wire
from ister.acknowledgments import Acknowledgments, Ranges, flattened
from ister.clientsession import Frame, Session, back_off_s, remote_error
from ister.errors import IsterError, RemoteError, RemoteProtocolError
from ister.handing import Handing
from ister.message import Delivery, Event
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

EVENTS_MAX: Final = 256  # kept for a program that never reads them
BUSY_S: Final = 0.5  # seconds; a consumer that waits for an Exclusive place asks at least this often


class Attachment:
    """One consumer's side of the conversation."""

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
        # damage that the subscription has come upon; raised once, when nothing from before it is left
        self.damage: IsterError | None = None
        self.opened = False
        self.strategy = ""
        self.position = 0
        self.active: bool | None = None
        self.dropped = 0
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._moves = 0  # of so many the broker has told, where it counts them
        self.begun = 0  # counts how often delivering started again: opened, or moved
        self._start = start
        self._force = force
        self._patient = patient
        self._priority = priority
        self._arguments = arguments
        self._callbacks = callbacks
        self._on_event = on_event
        self._failures = 0
        self._due = 0.0
        self._delivered_in: bytes | None = None  # the session that knows what was delivered
        self.acks = Acknowledgments(self)
        self.acks.silent = kind == READER
        self.handing = Handing(
            self,
            self.acks.flush,
            shares=TRAITS[kind].shares,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
        )
        self._instance = ""  # the INSTANCE of the subscription, as the broker said last

    # ---- opening -------------------------------------------------------------------------------------------------

    def on_ready(self, *, resumed: bool) -> None:
        """Handle WELCOME; unless the session was resumed, the broker has forgotten its deliveries."""
        if not resumed or self.session is None or self.session.secret != self._delivered_in:
            self.acks.forget()
        if self._step("ready"):
            self.acks.repeat()
            self._open()

    def _open(self) -> None:
        session = self.session
        assert session is not None
        self.begun += 1
        handing = self.handing
        handing.restart(session.limits)
        header: wire.Header = {
            Key.TYPE: Type.OPEN_CONSUMER,
            Key.REF: session.expect(self._on_open_answer),
            Key.HANDLE: self.handle,
            Key.TOPIC: self.topic,
            Key.SUBSCRIPTION: self.subscription,
            Key.SUBSCRIPTION_TYPE: self.kind,
            Key.MESSAGES: handing.credit_messages,
            Key.BYTES: handing.credit_bytes,
            Key.SPARSE: True,
            Key.TAKEN: 0,
            Key.INSTANCE: self._instance,
            Key.SOUGHT: 0,
        }
        start = self._start if handing.next is None else handing.next
        if start is not None:
            header[Key.START] = start
        if self._force and not self.opened:  # otherwise two clients would evict each other for ever
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
                self.acks.silent = self.kind == READER or self.strategy == "non-reliable"
                self.handing.tells = Key.TAKEN in header
                self._moves = header.get(Key.SOUGHT, 0)
                if self.kind == READER and self.strategy == "reliable" and self.handing.next is None:
                    self.handing.next = self.position
                self.acks.flush()
        else:
            raise RemoteProtocolError(f"a frame of type {kind} answered OPEN_CONSUMER")

    def _is_the_same(self, instance: str) -> bool:
        """Record which subscription is open; if it is another than before, acknowledgments of the old one are void."""
        before, self._instance = self._instance, instance or self._instance
        if not (before and instance and before != instance):
            return True
        if self.kind == READER and self.handing.next is not None:  # its position belongs to the other topic
            if self.session is not None:
                ref = self.session.expect(self._on_closed)
                self.session.emit({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: self.handle})
            self.fail(
                RemoteError("topic-deleted", f"topic {self.topic!r} was deleted, and created again since")
            )
            return False
        self.acks.forget()
        return True

    def _on_refusal(self, header: wire.Header, now: float) -> None:
        error = remote_error(header)
        fatal = error.action != "retry" and error.code != "unknown-handle"
        if error.code == "subscription-options" and self.opened and self._arguments:
            self._arguments, fatal = {}, False  # they were changed since: it is the same subscription
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
            self.acks.forget()  # the worker that answers then may not know what was delivered before
            self._drop_unseen()
            self._due = due
            self._failures += 1

    def on_frame(self, frame: Frame) -> None:
        """Handle a DELIVER, an EVENT or an ERROR."""
        kind, header, body, now = frame
        if kind == Type.DELIVER:
            if self.phase == "open":
                self.handing.on_delivery(Delivery(self, self.topic, self.acks.lineage, header, body, now))
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
        elif event.code == "log-damaged":  # nothing comes until an operator decides: the program must be told
            self.damage = RemoteError(event.code, event.text)
            self._line_up()
        elif event.code == "sought":
            self.begun += 1
            self.damage = None
            self.acks.on_sought()
            self.handing.on_sought()
        elif event.code == "recalled":
            self.handing.on_recalled()
            self._line_up()
        self.events.append(event)
        if self._on_event is not None:
            call = self._on_event
            self._callbacks.append(lambda: call(event))

    def take_turns(self, turns: OrderedDict[Attachment, None]) -> None:
        """Join this queue whenever there is something to hand out or to raise."""
        self._turns = turns
        if self.handing.queue or self.complaint or self.damage or self.phase == "closed":
            self._line_up()

    def _line_up(self) -> None:
        if self._turns is not None:
            self._turns[self] = None  # an attachment in the queue keeps its place
        if self.listener is not None:
            self.listener()

    # ---- speaking for its parts, and about messages --------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether frames about this consumer and its messages may be sent now."""
        return self.phase == "open" and self.session is not None

    def say(self, kind: int, more: wire.Header) -> bool:
        """Send a frame about this consumer; False where it is not open, and nothing was sent."""
        session = self.session
        if self.phase != "open" or session is None:
            return False
        session.emit({Key.TYPE: kind, Key.HANDLE: self.handle, **more})
        return True

    def say_of_messages(self, kind: int, more: wire.Header) -> None:
        """Send a frame about messages, with the number of the last seek the broker told of, if there is a session."""
        if self.session is not None:
            header: wire.Header = {Key.TYPE: kind, Key.HANDLE: self.handle, **more}
            if self._moves:
                header[Key.SOUGHT] = self._moves
            self.session.emit(header)

    def expect_leave(self) -> int | None:
        """Return a REF for the question whether the next message may be handed out; `None` where it is not open."""
        if self.phase != "open" or self.session is None:
            return None
        return self.session.expect(self._on_leave)

    def _on_leave(self, frame: Frame) -> None:
        if self.handing.on_leave(frame.header[Key.REF], given=frame.kind == Type.DONE):
            self._line_up()

    def expect_confirmation(self) -> int:
        """Return a REF for the confirmation that acknowledgments are stored."""
        assert self.session is not None
        return self.session.expect(self._on_confirmed)

    def _on_confirmed(self, frame: Frame) -> None:
        if self.acks.confirmed(frame.header[Key.REF]) and frame.kind == Type.ERROR:
            self.complaint = remote_error(frame.header)
            self._line_up()

    def nack(self, delivery: Delivery, ranges: Ranges, delay_ms: int | None, reason: str) -> None:
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

    def extend(self, delivery: Delivery, ranges: Ranges) -> None:
        """Say that these messages are still being worked on: their acknowledgment timeout starts again."""
        self._say_of(Type.EXTEND, delivery, ranges, {})

    def _say_of(self, kind: int, delivery: Delivery, ranges: Ranges, more: wire.Header) -> None:
        if self.acks.silent or self.acks.is_void(delivery):
            return
        if not self.is_open:
            return  # opening again releases everything that is not acknowledged
        for flat in flattened(ranges):
            self.say_of_messages(kind, {Key.RANGES: flat, **more})

    # ---- the end, and time ---------------------------------------------------------------------------------------

    def blame(self, reason: str) -> None:
        """Let everything in hand fail, for this reason; only the broker knows all of it."""
        if self.is_open and self.handing.tells:
            self.acks.flush()
            more: wire.Header = {Key.RANGES: [], Key.TAKEN: self.handing.handed, Key.REASON: reason}
            self.say_of_messages(Type.NACK, more)

    def close(self) -> None:
        """Send the acknowledgments, then CLOSE; the phase becomes closed when the broker has answered."""
        self.acks.flush()
        opening = self.phase == "opening"  # the broker is about to open it, and must be told to close it
        if (self._step("close") or opening) and self.session is not None:
            ref = self.session.expect(self._on_closed)
            self.session.emit({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: self.handle})
            if opening:
                self._step("fail")
        elif self.phase != "closing":
            self._step("fail")
        self.handing.queue.clear()
        self.handing.withhold()

    def _drop_unseen(self) -> None:
        """Drop what was not handed out: it is redelivered, if the broker keeps it."""
        self.handing.queue.clear()
        if not self.acks.silent:
            self.handing.withhold()

    def _on_closed(self, _frame: Frame) -> None:
        self._step("done")

    def on_lost(self, reason: IsterError) -> None:
        """Handle a lost connection: drop what was not handed out, keep what was not confirmed to send it again."""
        self.trouble = reason
        self._drop_unseen()
        self.acks.on_lost()
        self._step("lost")

    def fail(self, error: IsterError) -> None:
        """Close it, for this reason."""
        if self._step("fail"):
            self.error = error
            self._drop_unseen()
            self.acks.drop()
            self._line_up()

    def tick(self, now: float) -> None:
        """Send acknowledgments that have waited long enough, and open again after a back-off."""
        if self.phase == "waiting" and now >= self._due:
            self._step("due")
            self._open()
        elif self.acks.due is not None and now >= self.acks.due:
            self.acks.flush()

    def deadline(self) -> float:
        """When `tick` is to be called next."""
        if self.phase == "waiting":
            return self._due
        if self.phase == "open" and self.acks.due is not None:
            return self.acks.due
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
