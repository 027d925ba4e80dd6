"""What a producer says to a worker: gather messages, seal them into batches, send, resend, and resolve receipts.

Pure: no socket, clock or thread lives here. The caller holds the client's lock.

Invariants
- a batch is cut once: what is resent is byte for byte what was sent, in order, with the same sequence
- every shipment is resolved once: by a receipt, by a refusal, or by the end of the producer
- sealed bytes without a receipt never exceed the window (one batch may, when it is alone)
- after a refusal nothing behind the refused batch is sent before the broker was told to skip it; the same holds where
  the program left numbers out
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

from ister import bodies, wire
from ister.clientsession import Frame, Session, back_off_s, remote_error
from ister.errors import IsterError, RemoteProtocolError
from ister.message import Outgoing, Shipment, Waiter
from ister.wire import Key, Type

Phase = Literal["idle", "opening", "open", "waiting", "closing", "closed"]
What = Literal["ready", "opened", "refused", "due", "reopen", "close", "lost", "done", "fail"]

# The whole state machine of a producer. An event that has no line here is ignored.
TRANSITIONS: Final[dict[tuple[Phase, What], Phase]] = {
    ("idle", "ready"): "opening",
    ("opening", "opened"): "open",
    ("opening", "refused"): "waiting",  # `retry`: again after a back-off
    ("open", "refused"): "waiting",
    ("waiting", "due"): "opening",
    ("open", "reopen"): "opening",  # a hole: the sequences of a batch refused permanently are skipped
    ("open", "close"): "closing",
    ("closing", "done"): "closed",
    ("opening", "lost"): "idle",
    ("open", "lost"): "idle",
    ("waiting", "lost"): "idle",
    (
        "closing",
        "lost",
    ): "closed",  # everything was receipted before; the broker hears of it with the next hello
    ("idle", "fail"): "closed",
    ("opening", "fail"): "closed",
    ("open", "fail"): "closed",
    ("waiting", "fail"): "closed",
    ("closing", "fail"): "closed",
}

MESSAGE_ENTRY_BYTES: Final = 4  # a message's place in the length table
REFUSED_MAX: Final = 64  # refused batches whose numbers are remembered, for a program that gives them again
TIME_BYTES: Final = 8  # a message's time of delivery, where any message of the batch has one
NOTHING: Final = -1  # room for nothing: the next message takes the careful road


class Publication:
    """One producer's state; `room`, `payloads` and `shipment` are what its fast path touches."""

    def __init__(
        self,
        handle: int,
        topic: str,
        producer_id: int,
        *,
        batch_bytes: int,
        linger_s: float,
        window_bytes: int | None,
        callbacks: deque[Callable[[], Any]],
    ) -> None:
        """`callbacks` takes what users asked to be called; the shell calls it after letting go of the lock."""
        self.handle = handle
        self.topic = topic
        self.producer_id = producer_id
        self.session: Session | None = None
        self.phase: Phase = "idle"
        self.error: IsterError | None = None  # why it is closed
        self.trouble: IsterError | None = None  # why it is being tried again
        self.strategy = ""
        self.opened = False
        # gathering
        self.room = NOTHING
        self.payloads: list[bytes] = []
        self.plain = (
            True  # no message of the batch has anything but a payload: none of the columns below is begun
        )
        self.keys: list[bytes] | None = None
        self.attributes: list[bytes] | None = None
        self.times: list[int] | None = None
        self.shipment = Shipment(topic, None)
        self.linger_at = 0.0
        # sealed, and not resolved
        self.batches: deque[Outgoing] = deque()
        self.refused: Shipment | None = None  # one that failed, to be raised if nobody looks at its receipt
        self.bytes = 0
        self._window = 0
        self._in_flight_max = 1
        self._sent = 0  # how many of `batches` are on the wire of this connection
        self._next = 0
        self._expected = 0  # what the broker expects next on this connection
        self._numbers_refused: deque[tuple[int, int, IsterError]] = deque(maxlen=REFUSED_MAX)
        self._gap = False  # a refused batch was dropped, and the broker still expects its sequence
        self._batch_bytes = batch_bytes
        self._begun_with = 0
        self._batch_bytes_now = 0  # what the broker's limits leave of it
        self._linger_s = linger_s
        self._window_bytes = window_bytes
        self._waiter: Waiter | None = None
        self._callbacks = callbacks
        self._failures = 0
        self._due = 0.0

    def wait_with(self, waiter: Waiter) -> None:
        """Receipts ask this one to wait for them; called once, before anything is sent."""
        self._waiter = waiter
        self.shipment = Shipment(self.topic, waiter)

    # ---- gathering -----------------------------------------------------------------------------------------------

    @property
    def lone(self) -> bool:
        """Whether a message that comes now goes at once: there is nothing whose receipt it could wait for."""
        return not self.batches or not self._linger_s

    def begin(self, now: float) -> None:
        """The first message is about to be put into an empty batch."""
        self.linger_at = now + self._linger_s
        self.room = self._begun_with = self._batch_bytes_now

    def add(self, payload: bytes, key: bytes, attributes: bytes, deliver_at: int = 0) -> int:
        """Put a message into the batch and return its index there; empty columns (and the time 0) are absent."""
        index = len(self.payloads)
        if key or self.keys is not None:
            if self.keys is None:
                self.keys = [b""] * index
                self.room -= MESSAGE_ENTRY_BYTES * index
            self.keys.append(key)
            self.room -= len(key) + MESSAGE_ENTRY_BYTES
        if attributes or self.attributes is not None:
            if self.attributes is None:
                self.attributes = [b""] * index
                self.room -= MESSAGE_ENTRY_BYTES * index
            self.attributes.append(attributes)
            self.room -= len(attributes) + MESSAGE_ENTRY_BYTES
        if deliver_at or self.times is not None:
            if self.times is None:
                self.times = [0] * index
                self.room -= TIME_BYTES * index
            self.times.append(deliver_at)
            self.room -= TIME_BYTES
        self.plain = self.keys is None and self.attributes is None and self.times is None
        self.payloads.append(payload)
        self.room -= len(payload) + MESSAGE_ENTRY_BYTES
        return index

    def _fresh(self) -> None:
        self.room = NOTHING
        self.payloads = []
        self.plain = True
        self.keys = self.attributes = self.times = None
        self.shipment = Shipment(self.topic, self._waiter)

    # ---- numbers -------------------------------------------------------------------------------------------------

    @property
    def next_sequence(self) -> int:
        """The number of the next message; all below it have been taken, in this run or before."""
        return self._next + len(self.payloads)

    def skip_to(self, sequence: int) -> None:
        """Leave numbers out, while nothing is gathered: the next message has this one."""
        self._next = sequence

    def taken_before(self, sequence: int) -> tuple[Shipment, int]:
        """Return where a message with a number below the next one is; raises why it was refused."""
        if sequence >= self._next:
            return self.shipment, sequence - self._next
        for first, end, error in self._numbers_refused:
            if first <= sequence < end:
                raise error
        for batch in self.batches:
            if batch.sequence <= sequence < batch.sequence + batch.count:
                return batch.shipment, sequence - batch.sequence
        stored = Shipment(self.topic, None)
        stored.first, stored.resolved = wire.OFFSET_UNKNOWN, True
        return stored, 0

    def gathered_bytes(self) -> int:
        """The body bytes of what is gathered."""
        return self._begun_with - self.room if self.payloads else 0

    def has_room(self, size: int) -> bool:
        """Whether a batch of `size` body bytes may be sealed now."""
        if not self.opened or self.phase == "closed":
            return False
        return (not self.bytes or self.bytes + size <= self._window) and len(
            self.batches
        ) < self._in_flight_max

    def seal(self) -> None:
        """Make a batch of what is gathered and send it as soon as may be."""
        payloads = self.payloads
        if not payloads:
            return
        columns = 0
        if self.keys is not None:
            columns |= wire.Column.KEYS
        if self.attributes is not None:
            columns |= wire.Column.ATTRIBUTES
        if self.times is not None:
            columns |= wire.Column.DELIVER_AT
        if len(payloads) == 1 and not columns:
            body = payloads
        else:
            body = [bodies.pack_lengths(payloads), b"".join(payloads)]
            for column in (self.keys, self.attributes):
                if column is not None:
                    body.append(bodies.pack_column(column))
            if self.times is not None:
                body.append(bodies.pack_times(self.times))
        self.seal_frames(len(payloads), columns, body)

    def seal_frames(self, count: int, columns: int, body: list[bytes]) -> None:
        """Take body frames as a batch of their own; its receipts are those of `shipment`."""
        header: wire.Header = {Key.TYPE: Type.PUBLISH, Key.HANDLE: self.handle, Key.SEQUENCE: self._next}
        if columns:
            header[Key.COLUMNS] = columns
        batch = Outgoing(self._next, count, [wire.encode_header(header), *body], self.shipment)
        self.batches.append(batch)  # from here on it is on its way: `mend` counts on this order
        self._fresh()
        self._next += count
        self.bytes += batch.size
        self._send()
        self._advance()

    def mend(self) -> None:
        """An exception (Ctrl-C) came in between: put right what `seal_frames` may have left undone."""
        if self.batches:
            last = self.batches[-1]
            if last.shipment is self.shipment:
                self._fresh()
            self._next = last.sequence + last.count
        self.bytes = sum(batch.size for batch in self.batches if not batch.refused)

    # ---- on the wire ---------------------------------------------------------------------------------------------

    def _send(self) -> None:
        session = self.session
        if self.phase != "open" or session is None:
            return
        batches = self.batches
        while self._sent < len(batches):
            batch = batches[self._sent]
            if batch.refused or batch.sequence != self._expected:
                break  # what is behind it, or behind a hole, waits until the broker has been told to skip it
            session.outbox.append(batch.frames)
            self._expected = batch.sequence + batch.count
            self._sent += 1

    def on_ready(self, *, resumed: bool) -> None:  # noqa: ARG002 (sequences make it all the same)
        """WELCOME came."""
        if self._step("ready"):
            self._open()

    def _open(self) -> None:
        assert self.session is not None
        self._sent = 0
        self._gap = False
        lowest = self._expected = self.batches[0].sequence if self.batches else self._next
        self.session.emit(
            {
                Key.TYPE: Type.OPEN_PRODUCER,
                Key.REF: self.session.expect(self._on_open_answer),
                Key.HANDLE: self.handle,
                Key.TOPIC: self.topic,
                Key.PRODUCER: self.producer_id,
                Key.SEQUENCE: lowest,
            }
        )

    def _on_open_answer(self, frame: Frame) -> None:
        kind, header, _body, now = frame
        if kind == Type.MOVED:
            if self.session is not None:
                self.session.moves.append((self, header[Key.ENDPOINT]))
        elif kind == Type.ERROR:
            self._on_refusal(header, None, now)  # a SEQUENCE in it is that of the open: it is about no batch
        elif kind == Type.OPENED:
            self._on_opened(header)
        else:
            raise RemoteProtocolError(f"a frame of type {kind} answered OPEN_PRODUCER")

    def _on_opened(self, header: wire.Header) -> None:
        if not self._step("opened") or self.session is None:
            return
        limits = self.session.limits
        granted = header.get(Key.BYTES, limits.producer_window_bytes)
        self._window = granted if self._window_bytes is None else min(granted, self._window_bytes)
        self._in_flight_max = limits.batches_in_flight_max
        self._batch_bytes_now = min(self._batch_bytes, limits.batch_bytes_max, limits.message_bytes_max)
        self.strategy = header.get(Key.STRATEGY, "")
        if not self.opened:
            self.opened = True
            self._next = self._expected = header.get(Key.SEQUENCE, 0)
        self._advance()
        self._send()
        self._settle()

    def on_frame(self, frame: Frame) -> None:
        """A RECEIPT or an ERROR."""
        kind, header, _body, now = frame
        if kind == Type.RECEIPT:
            self._on_receipts(header[Key.RECEIPTS])
        elif kind == Type.ERROR:
            self._on_refusal(header, header.get(Key.SEQUENCE), now)
        else:
            raise RemoteProtocolError(f"a frame of type {kind} came for a producer")

    def _on_receipts(self, pairs: list[int]) -> None:
        self._failures = 0
        self.trouble = None
        for at in range(0, len(pairs), 2):
            sequence, first = pairs[at], pairs[at + 1]
            batches = self.batches
            if batches and batches[0].sequence == sequence and not batches[0].refused:
                batch = batches.popleft()
                self._sent = max(0, self._sent - 1)
            else:
                found = next((b for b in batches if b.sequence == sequence and not b.refused), None)
                if found is None:
                    continue  # a second receipt after a resend
                self._sent = max(0, self._sent - (batches.index(found) < self._sent))
                batches.remove(found)
                batch = found
            self.bytes -= batch.size
            batch.shipment.first = first
            self._resolve(batch.shipment)
        self._advance()
        self._settle()

    def _resolve(self, shipment: Shipment) -> None:
        shipment.resolved = True
        if self.session is not None:
            self.session.news.keys.add(shipment)
        if shipment.error is not None and (self.refused is None or self.refused.observed):
            self.refused = shipment
        if shipment.callbacks:
            shipment.observed = True
            self._callbacks.extend(shipment.callbacks)
            shipment.callbacks = None

    def _on_refusal(self, header: wire.Header, sequence: int | None, now: float) -> None:
        error = remote_error(header)
        if error.action != "retry" and error.code != "unknown-handle":
            if sequence is None or header.get(Key.CLOSED):
                self.fail(error)
            else:
                self._refuse(sequence, error)
            return
        jitter = 0.5 if self.session is None else self.session.jitter()
        self.postpone(error, now + back_off_s(self._failures, jitter))

    def _refuse(self, sequence: int, error: IsterError) -> None:
        """One batch failed permanently; if it was resolved already, this is old news."""
        refused = next((b for b in self.batches if b.sequence == sequence and not b.refused), None)
        if refused is not None:
            refused.refused = True
            self.bytes -= refused.size
            refused.shipment.error = error
            self._numbers_refused.append((refused.sequence, refused.sequence + refused.count, error))
            self._resolve(refused.shipment)
            self._advance()
            self._settle()

    def postpone(self, error: IsterError, due: float) -> None:
        """Open again at that time, and resend everything without a receipt."""
        self.trouble = error
        if self._step("refused"):
            self._due = due
            self._failures += 1

    def _advance(self) -> None:
        """Drop refused batches from the front; the broker must be told to skip their sequences, and holes."""
        while self.batches and self.batches[0].refused:
            self.batches.popleft()
            self._sent = max(0, self._sent - 1)
            self._gap = True
        if self.batches and not self._sent and self.batches[0].sequence > self._expected:
            self._gap = True
        if self._gap and self._step("reopen"):
            self._open()

    def _settle(self) -> None:
        """Nothing may be in flight any more: what is gathered need not wait, and a lone message goes at once."""
        if not self.batches and self.payloads:
            self.seal()

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Say CLOSE (everything is receipted); the phase becomes closed when the broker has answered."""
        opening = self.phase == "opening"  # the broker is about to have it: it must hear that nobody wants it
        if (self._step("close") or opening) and self.session is not None:
            ref = self.session.expect(self._on_closed)
            self.session.emit({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: self.handle})
            if opening:
                self._step("fail")
        elif self.phase != "closing":
            self._step("fail")

    def _on_closed(self, _frame: Frame) -> None:
        self._step("done")

    def on_lost(self, reason: IsterError) -> None:
        """The connection is gone: nothing of what is unresolved counts as sent."""
        self.trouble = reason
        self._sent = 0
        self._step("lost")

    def fail(self, error: IsterError) -> None:
        """It is over: whatever waits for a receipt gets the error."""
        if not self._step("fail"):
            return
        self.error = error
        for batch in self.batches:
            if not batch.refused:
                batch.shipment.error = error
                self._resolve(batch.shipment)
        self.batches.clear()
        self.bytes = 0
        if self.payloads:
            self.shipment.error = error
            self._resolve(self.shipment)
        self._fresh()

    # ---- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Send what has lingered, and open again after a back-off."""
        if self.phase == "waiting" and now >= self._due:
            self._step("due")
            self._open()
        elif self.payloads and now >= self.linger_at and self.has_room(self.gathered_bytes()):
            self.seal()

    def deadline(self) -> float:
        """When `tick` is wanted next."""
        if self.phase == "waiting":
            return self._due
        if self.payloads and self.has_room(self.gathered_bytes()):
            return self.linger_at
        return float("inf")

    def _step(self, what: What) -> bool:
        then = TRANSITIONS.get((self.phase, what))
        if then is None:
            return False
        self.phase = then
        return True
