"""What a producer says to a worker: seal what is gathered into batches, send, resend, and resolve receipts.

Messages are gathered in `gathering.py`; receipts are in `receipts.py`; `producer.py` waits. Pure: no socket, clock or
thread lives here. The caller holds the client's lock.

Invariants
- batches do not change: what is resent is byte for byte what was sent, in order, with the same sequence
- every shipment is resolved once: by a receipt, by a refusal, or by the end of the producer
- sealed bytes without a receipt never exceed the window (one batch may, when it is alone)
- after a refusal no later batch is sent before the broker was told to skip the refused one; the same holds for numbers
  that the program left out
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

from ister import bodies, wire
from ister.clientsession import Frame, Session, back_off_s, remote_error
from ister.errors import IsterError, RemoteError, RemoteProtocolError
from ister.gathering import AWAITING_USUAL, NOTHING, Gathering, stretched
from ister.lane import NO_LANE
from ister.receipts import Shipment
from ister.window import Window
from ister.wire import Key, Type
from ister.words import counted

Phase = Literal["idle", "opening", "open", "waiting", "closing", "closed"]
What = Literal["ready", "opened", "refused", "due", "reopen", "close", "lost", "done", "fail"]

# The state machine of a producer. An event without an entry is ignored.
TRANSITIONS: Final[dict[tuple[Phase, What], Phase]] = {
    ("idle", "ready"): "opening",
    ("opening", "opened"): "open",
    ("opening", "refused"): "waiting",  # `retry`: again after a back-off
    ("open", "refused"): "waiting",
    ("waiting", "due"): "opening",
    ("open", "reopen"): "opening",  # a hole: the sequences of a batch that was refused for good are skipped
    ("open", "close"): "closing",
    ("closing", "done"): "closed",
    ("opening", "lost"): "idle",
    ("open", "lost"): "idle",
    ("waiting", "lost"): "idle",
    (
        "closing",
        "lost",
    ): "closed",  # what has no receipt now fails; the broker is told with the next HELLO
    ("idle", "fail"): "closed",
    ("opening", "fail"): "closed",
    ("open", "fail"): "closed",
    ("waiting", "fail"): "closed",
    ("closing", "fail"): "closed",
}

BATCH_BYTES: Final = 64 * 1024  # the broker's cost is per batch; above this size, batches only add latency
BATCH_BYTES_LAGGING: Final = 256 * 1024  # but not while receipts lag: what is sent waits then in any case
IN_FLIGHT: Final = 4  # batches without a receipt above which they grow, and that there are at least then
REFUSED_MAX: Final = 64  # refused batches whose numbers are remembered, for a program that gives them again


class Outgoing:
    """A sealed batch on its way: the frames as they are sent, and sent again, until it is resolved."""

    __slots__ = ("count", "frames", "refused", "sequence", "shipment", "size")

    def __init__(self, sequence: int, count: int, frames: list[bytes], shipment: Shipment) -> None:
        self.sequence = sequence
        self.count = count
        self.frames = frames
        self.shipment = shipment
        self.size = sum(map(len, frames)) - len(frames[0])
        self.refused = False


class Publication:
    """One producer's state, apart from what it gathers, which is in `gathered`."""

    def __init__(
        self,
        handle: int,
        topic: str,
        producer_id: int,
        *,
        batch_bytes: int | None,
        linger_s: float,
        window_bytes: int | None,
        callbacks: deque[Callable[[], Any]],
    ) -> None:
        """`callbacks` collects the calls to users' functions; they are made after the lock was released.

        Without `batch_bytes` batches grow while receipts lag behind what is sent.
        """
        self.handle = handle
        self.topic = topic
        self.producer_id = producer_id
        self.session: Session | None = None
        self.phase: Phase = "idle"
        self.error: IsterError | None = None  # why it is closed
        self.trouble: IsterError | None = None  # why it is being tried again
        self.strategy = ""
        self.opened = False
        self.gathered = Gathering(topic, linger_s)
        # sealed, and not resolved
        self.batches: deque[Outgoing] = deque()
        self.refused: Shipment | None = None  # one that failed, to be raised if its receipt is not used
        self.bytes = 0
        self._window = Window(window_bytes)
        self._sent = 0  # how many of `batches` were sent over this connection
        self._next = 0
        self._expected = 0  # what the broker expects next on this connection
        self._numbers_refused: deque[tuple[int, int, IsterError]] = deque(maxlen=REFUSED_MAX)
        self._gap = False  # a refused batch was dropped, and the broker still expects its sequence
        self._least = self._most = 0  # the same, within the broker's limits
        self._limit = 0  # no batch of several messages may be larger
        self._sizes = (
            (BATCH_BYTES, BATCH_BYTES_LAGGING) if batch_bytes is None else (batch_bytes, batch_bytes)
        )
        self._callbacks = callbacks
        self._failures = 0
        self._due = 0.0

    # ---- numbers -------------------------------------------------------------------------------------------------

    @property
    def next_sequence(self) -> int:
        """The number of the next message; all below it have been taken, in this run or before."""
        return self._next + self.gathered.count

    def skip_to(self, sequence: int) -> None:
        """Leave numbers out, while nothing is gathered: the next message has this one."""
        self._next = sequence

    def taken_before(self, sequence: int) -> tuple[Shipment, int]:
        """Return where a message with a used number is; raises the error with which it was refused."""
        if sequence >= self._next:
            return self.gathered.shipment, self.gathered.shipment.index_of(sequence - self._next)
        for first, end, error in self._numbers_refused:
            if first <= sequence < end:
                raise error
        for batch in self.batches:
            if batch.sequence <= sequence < batch.sequence + batch.count:
                return batch.shipment, batch.shipment.index_of(sequence - batch.sequence)
        stored = Shipment(self.topic, None)
        stored.first, stored.resolved = wire.OFFSET_UNKNOWN, True
        return stored, 0

    def has_room(self, size: int) -> bool:
        """Whether a batch of `size` body bytes may be sealed now."""
        if not self.opened or self.phase == "closed":
            return False
        window = self._window
        if (not self.bytes or self.bytes + size <= window.bytes) and len(self.batches) < window.batches:
            return True
        window.pressed = True
        return False

    def begin(self, now: float) -> None:
        """Begin to gather a batch: a larger one the more there is on its way.

        What is sent now waits behind that in any case. So a quarter of it, gathered first, adds little to the wait, and
        saves the broker and its consumers work for each batch.
        """
        gathered, lagging = self.gathered, self.bytes // IN_FLIGHT
        gathered.batch_bytes = self._least if lagging <= self._least else min(lagging, self._most)
        gathered.begin(now, self.linger_s())

    def seal(self) -> None:
        """Make a batch of what is gathered and send it as soon as may be."""
        gathered = self.gathered
        if gathered.opened is not NO_LANE:
            gathered.close_lane()
        if gathered.payloads:
            self.seal_frames(len(gathered.payloads), *gathered.frames())

    def seal_if_room(self) -> bool:
        """Do so if the window has room for it, and return whether nothing is gathered any more."""
        gathered = self.gathered
        gathered.close_lane()
        if gathered.payloads and self.has_room(gathered.size()):
            self.seal()
        gathered.open_lane()  # if something is left
        return not gathered.payloads

    def seal_frames(self, count: int, columns: int, body: list[bytes]) -> None:
        """Accept body frames as a batch of their own; its receipts are those of `shipment`."""
        header: wire.Header = {Key.TYPE: Type.PUBLISH, Key.HANDLE: self.handle, Key.SEQUENCE: self._next}
        if columns:
            header[Key.COLUMNS] = columns
        batch = Outgoing(self._next, count, [wire.encode_header(header), *body], self.gathered.shipment)
        self.batches.append(batch)  # from here on it is on its way: `mend` counts on this order
        self.gathered.clear()
        self._next += count
        self.bytes += batch.size
        self._send()
        self._advance()

    def mend(self) -> None:
        """Complete what `seal_frames` left undone when an exception (Ctrl-C) interrupted it."""
        if self.batches:
            last = self.batches[-1]
            if last.shipment is self.gathered.shipment:
                self.gathered.clear()
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
                break  # later batches wait until the broker has been told to skip the refused one or the hole
            session.outbox.append(batch.frames)
            self._expected = batch.sequence + batch.count
            self._sent += 1
            session.awaiting.add(self.handle)

    def on_ready(self, *, resumed: bool) -> None:  # noqa: ARG002 (sequences make it all the same)
        """Handle WELCOME."""
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
            self._on_refusal(header, None, now)  # its SEQUENCE is that of the open, not of a batch
        elif kind == Type.OPENED:
            self._on_opened(header)
        else:
            raise RemoteProtocolError(f"a frame of type {kind} answered OPEN_PRODUCER")

    def _on_opened(self, header: wire.Header) -> None:
        if not self._step("opened") or self.session is None:
            return
        limits = self.session.limits
        self._window.grant(header.get(Key.BYTES, limits.producer_window_bytes), limits)
        self._limit = most = min(limits.batch_bytes_max, limits.message_bytes_max)
        self._least, self._most = min(self._sizes[0], most), min(self._sizes[1], most)
        self.gathered.batch_bytes = self._least
        self.strategy = header.get(Key.STRATEGY, "")
        if not self.opened:
            self.opened = True
            self._next = self._expected = header.get(Key.SEQUENCE, 0)
        self._refuse_too_large(limits.batch_bytes_max)
        self._advance()
        self._send()
        self._settle()

    def on_frame(self, frame: Frame) -> None:
        """Handle a RECEIPT or an ERROR."""
        kind, header, _body, now = frame
        if kind == Type.RECEIPT:
            self._on_receipts(header[Key.RECEIPTS], now)
        elif kind == Type.ERROR:
            self._on_refusal(header, header.get(Key.SEQUENCE), now)
        else:
            raise RemoteProtocolError(f"a frame of type {kind} came for a producer")

    def _on_receipts(self, pairs: list[int], now: float) -> None:
        self._failures = 0
        self.trouble = None
        unanswered = self.bytes
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
        self._window.answered(unanswered - self.bytes, now)
        if not self.batches and self.session is not None:
            self.session.awaiting.discard(self.handle)
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
        """Resolve a batch that was refused for good; if it was resolved before, do nothing."""
        refused = next((b for b in self.batches if b.sequence == sequence and not b.refused), None)
        if refused is not None:
            self._give_up(refused, error)
            self._advance()
            self._settle()

    def _refuse_too_large(self, batch_bytes_max: int) -> None:
        """Resolve batches for which the broker's limit is too low now: instead of an answer it would hang up.

        They were sent, or gathered, before its limits were lowered.
        """
        most = bodies.body_bytes_max(batch_bytes_max)
        for batch in self.batches:
            if batch.size > most and not batch.refused:
                what = counted(batch.count, "message")
                text = (
                    f"a batch of {batch.size} bytes of topic {self.topic!r} ({what}) is over batch_bytes_max, which "
                    f"the broker has lowered to {batch_bytes_max} since it was sent: send smaller batches"
                )
                self._give_up(batch, RemoteError("batch-too-large", text))

    def _give_up(self, batch: Outgoing, error: IsterError) -> None:
        batch.refused = True
        self.bytes -= batch.size
        batch.shipment.error = error
        self._numbers_refused.append((batch.sequence, batch.sequence + batch.count, error))
        self._resolve(batch.shipment)

    def postpone(self, error: IsterError, due: float) -> None:
        """Open again at that time, and resend everything without a receipt."""
        if error.code != "sequence-gap" or self.trouble is None:  # those follow from the first refusal
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
        if not self.batches and self.gathered.payloads:
            self.seal()

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send what another thread gathered meanwhile, then CLOSE, which the broker answers behind the receipts.

        The phase becomes closed with that answer. Call `fail` then: what the window had no room for has no receipt.
        """
        gathered = self.gathered
        gathered.close_lane()
        if gathered.payloads and self.phase == "open" and self.has_room(gathered.size()):
            self.seal()
        gathered.room = NOTHING
        opening = self.phase == "opening"  # the broker is about to open it, and must be told to close it
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
        """Handle a lost connection: no unresolved batch counts as sent."""
        self.trouble = reason
        self._sent = 0
        if self.session is not None:
            self.session.awaiting.discard(self.handle)
        self._step("lost")

    def fail(self, error: IsterError) -> None:
        """Close it: whatever waits for a receipt gets the error, also if it was closed already."""
        self.gathered.close_lane()
        if self._step("fail"):
            self.error = error
        elif not self.batches and not self.gathered.payloads:
            return
        for batch in self.batches:
            if not batch.refused:
                batch.shipment.error = error
                self._resolve(batch.shipment)
        self.batches.clear()
        if self.session is not None:
            self.session.awaiting.discard(self.handle)
        self.bytes = 0
        if self.gathered.payloads:
            self.gathered.shipment.error = error
            self._resolve(self.gathered.shipment)
        self.gathered.clear()

    # ---- time ----------------------------------------------------------------------------------------------------

    def linger_s(self) -> float:
        """How long a batch that begins now may wait for more messages."""
        linger_s, session = self.gathered.linger_s, self.session
        return linger_s if session is None else stretched(linger_s, len(session.awaiting))

    def joins(self, size: int) -> bool:
        """Whether a batch of this size that a program gave joins what is gathered: it is short, or receipts lag."""
        room = self.gathered.room
        return 2 * size < room or (size <= room and self.bytes // IN_FLIGHT >= size)

    def room_for(self, size: int) -> int:
        """Return how many bytes are to be gathered with a batch of this size that a program gave; 0: it goes alone.

        Others may follow while receipts lag behind, as messages do (`begin`), or while many producers wait and it is
        small.
        """
        gathered, session = self.gathered, self.session
        if not (self.batches and gathered.linger_s) or session is None:
            return 0
        lagging = min(self.bytes // IN_FLIGHT, self._most)
        times = min((lagging + size // 2) // size, self._limit // size)  # as many of its size, about
        if times > 1:
            return size * times
        many = len(session.awaiting) > AWAITING_USUAL
        return gathered.batch_bytes if many and 2 * size < gathered.batch_bytes else 0

    def tick(self, now: float) -> None:
        """Send what has lingered, and open again after a back-off."""
        if self.phase == "waiting" and now >= self._due:
            self._step("due")
            self._open()
        elif self.gathered.payloads and now >= self.gathered.linger_at:
            self.seal_if_room()

    def deadline(self) -> float:
        """When `tick` is to be called next."""
        if self.phase == "waiting":
            return self._due
        if self.gathered.payloads and self.has_room(self.gathered.size()):
            return self.gathered.linger_at
        return float("inf")

    def _step(self, what: What) -> bool:
        then = TRANSITIONS.get((self.phase, what))
        if then is None:
            return False
        self.phase = then
        return True
