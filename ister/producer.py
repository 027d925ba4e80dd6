"""The producer that programs hold: `send`, `send_batch`, receipts, back-pressure.

May touch: the network (to send, and to wait). What is said to the broker is in `publication.py`.

Invariants
- `send` returns at once, except when the window is full: then it waits, or raises, and the message is not taken
- any number of threads may send; messages of one thread keep their order
- a message that was refused raises somewhere: from its receipt, or from `flush` or `close` if nobody looked at that
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ister import arguments, bodies, wire
from ister.errors import ClosedError, IsterError, TimeoutExpiredError, UsageError
from ister.message import BatchReceipt, Receipt, Shipment
from ister.publication import MESSAGE_ENTRY_BYTES, NOTHING, TIME_BYTES, Publication
from ister.requests import Duration
from ister.words import counted

if TYPE_CHECKING:
    from ister.network import Network

When = int | datetime  # unix milliseconds, or a datetime (one without a time zone is local time)
CLOSE_S = 10.0  # how long `close` waits for receipts by default
HURRY_S = 1.0  # the same, when an exception is on its way out


class Producer:
    """Sends messages to one topic; made by `Client.producer`, closed by `close` or a `with` block."""

    def __init__(self, network: Network, publication: Publication) -> None:
        self._network = network
        self._lock = network.lock
        self.publication = publication

    def __repr__(self) -> str:
        return f"<Producer topic={self.topic!r} {self.publication.phase}>"

    @property
    def topic(self) -> str:
        """The topic it sends to."""
        return self.publication.topic

    @property
    def strategy(self) -> str:
        """The dispatch strategy of the topic, "reliable" or "non-reliable"."""
        return self.publication.strategy

    @property
    def last_sequence(self) -> int:
        """The sequence number of the last message that was sent, -1 for none; at first, of the last one stored under
        its name.

        A program that was killed continues behind it: messages are numbered from 0.
        """
        with self._lock:
            return self.publication.next_sequence - 1

    @property
    def lock(self) -> threading.Lock:
        """What guards receipts while they are resolved; for `Shipment` only."""
        return self._lock

    # ---- sending -------------------------------------------------------------------------------------------------

    def send(
        self,
        payload: bytes,
        *,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
        deliver_at: When | None = None,
        delay: Duration | None = None,
        sequence: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Send one message and return its receipt, which is answered later.

        Subscriptions deliver it at `deliver_at` (unix milliseconds or a `datetime`) or after `delay` (30, "15m", a
        `timedelta`); other messages do not wait for it. A `datetime` without a time zone is local time. Readers do not
        wait, and a non-reliable topic cannot delay. `sequence` is its number, for a named producer: a number that was
        stored before, by this run of the program or an earlier one, is not stored again, and its receipt says
        `duplicate`. Numbers may be left out, at the cost of a round trip each time. Without `sequence`, messages are
        numbered consecutively. Waits only while the producer's window is full, at most `timeout` seconds (`None`: as
        long as it takes). Raises `TimeoutExpiredError` (the message was not sent), `UsageError` (its type or size),
        `ClosedError`, or the error with which the broker closed this producer.
        """
        if (
            key is None
            and attributes is None
            and deliver_at is None
            and delay is None
            and sequence is None
            and type(payload) is bytes
        ):
            publication = self.publication
            with self._lock:
                room = publication.room - len(payload) - MESSAGE_ENTRY_BYTES
                if room >= 0 and publication.plain:
                    publication.room = room
                    payloads = publication.payloads
                    receipt = Receipt(publication.shipment, len(payloads))
                    payloads.append(payload)
                    return receipt
        due = self.due(deliver_at, delay)
        return self._send_carefully(payload, key, attributes, due, sequence, timeout)

    def send_fast(self, payload: bytes) -> Receipt | None:
        """Put a message into a batch that has been begun and has room, else return `None`."""
        if type(payload) is bytes:
            publication = self.publication
            with self._lock:
                room = publication.room - len(payload) - MESSAGE_ENTRY_BYTES
                if room >= 0 and publication.plain:
                    publication.room = room
                    publication.payloads.append(payload)
                    return Receipt(publication.shipment, len(publication.payloads) - 1)
        return None

    def _send_carefully(
        self,
        payload: bytes,
        key: bytes | None,
        attributes: Mapping[str, str] | None,
        due: int,
        sequence: int | None,
        timeout: float | None,
    ) -> Receipt:
        """The road of a message that begins or ends a batch, or has columns or a number."""
        deadline: float | None = None
        while True:
            receipt = self.try_send(payload, key, attributes, due, sequence)
            if receipt is not None:
                return receipt
            if deadline is None:
                deadline = self._network.deadline(arguments.timeout(timeout))
            self._wait_for_room(self.publication.gathered_bytes, deadline, timeout)

    def due(self, deliver_at: When | None, delay: Duration | None) -> int:
        """Return when a message is to be delivered, in unix milliseconds; 0 for at once."""
        due = arguments.due(deliver_at, delay, self._network.clock.time_ms)
        if due and self.publication.strategy == "non-reliable":
            raise UsageError(
                f"topic {self.topic!r} is non-reliable: it stores no messages, so it cannot delay them"
            )
        return due

    def try_send(
        self,
        payload: bytes,
        key: bytes | None,
        attributes: Mapping[str, str] | None,
        due: int = 0,
        sequence: int | None = None,
    ) -> Receipt | None:
        """Do what `send` does, or return `None` when the window is full; never waits. `due` is in unix ms."""
        publication, network = self.publication, self._network
        network.check()
        payload = arguments.data(payload, "payload")
        columns = (arguments.data(key, "key") if key else b"", arguments.attributes(attributes))
        size = len(payload) + MESSAGE_ENTRY_BYTES
        size += sum(len(column) + MESSAGE_ENTRY_BYTES for column in columns if column) + (due and TIME_BYTES)
        self._check_size(len(payload), len(payload), size, 1, [attributes] if attributes else None)
        if sequence is not None:
            arguments.number(sequence, "a sequence")
        receipt = None
        with self._lock:
            self._check_open()
            try:
                if sequence is not None:
                    if sequence < publication.next_sequence:
                        return Receipt(*publication.taken_before(sequence))
                    if sequence > publication.next_sequence:
                        if publication.payloads:
                            self._seal()
                        if publication.payloads:
                            return None
                        publication.skip_to(sequence)
                if publication.payloads and publication.room < size:
                    self._seal()
                if not publication.payloads or publication.room >= size:
                    receipt = self._add(payload, *columns, due)
            except BaseException as error:
                network.connection_of(publication).interrupted(error)
                raise
        network.settle()
        return receipt

    def _add(self, payload: bytes, key: bytes, attributes: bytes, due: int) -> Receipt:
        publication, network = self.publication, self._network
        begins = not publication.payloads
        if begins:
            publication.begin(network.clock.monotonic())
        shipment = publication.shipment
        receipt = Receipt(shipment, publication.add(payload, key, attributes, due))
        if publication.room <= 0 or (begins and publication.lone):
            self._seal()
        elif begins:
            network.connection_of(publication).nudge(publication.linger_at)
        return receipt

    def _seal(self) -> None:
        """Send what is gathered, if the window allows it (lock held)."""
        publication = self.publication
        if publication.has_room(publication.gathered_bytes()):
            publication.seal()
            self._network.connection_of(publication).touch()

    def send_batch(
        self,
        payloads: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        attributes: Sequence[Mapping[str, str] | None] | None = None,
        deliver_at: When | Sequence[When | None] | None = None,
        delay: Duration | None = None,
        timeout: float | None = None,
    ) -> BatchReceipt:
        """Send many messages at once: one receipt, consecutive offsets.

        `deliver_at` applies to all of them, or is a list with one entry each; `delay` (seconds from now) applies to
        all. A short list joins the batch being gathered, a longer one is a batch of its own. Raises as `send` does;
        then none of the messages was sent.
        """
        batch = self.pack(payloads, keys, attributes, deliver_at, delay)
        deadline: float | None = None
        while True:
            receipt = self.try_batch(batch)
            if receipt is not None:
                return receipt
            if deadline is None:
                deadline = self._network.deadline(arguments.timeout(timeout))
            self._wait_for_room(lambda: self.publication.gathered_bytes() or batch.size, deadline, timeout)

    def pack(
        self,
        payloads: Sequence[bytes],
        keys: Sequence[bytes | None] | None,
        attributes: Sequence[Mapping[str, str] | None] | None,
        deliver_at: When | Sequence[When | None] | None = None,
        delay: Duration | None = None,
    ) -> Packed:
        """Make the frames of a batch; raises `UsageError`."""
        self._network.check()
        if not isinstance(payloads, list | tuple):
            payloads = list(payloads)
        if not payloads:
            raise UsageError("a batch holds at least one message")
        try:
            joined = b"".join(payloads)
            table = bodies.pack_lengths(payloads)
        except TypeError:
            wrong = next((p for p in payloads if not isinstance(p, bytes | bytearray | memoryview)), None)
            arguments.data(wrong, "payload")
            raise
        if bodies.sum_of_lengths(table) != len(joined):
            raise UsageError("payloads are bytes; a memoryview of larger items is not")
        times: Sequence[int] | None = None
        if deliver_at is not None or delay is not None:
            times = self._times(len(payloads), deliver_at, delay)
        columns, body = _columns_of(len(payloads), keys, attributes, times)
        packed = Packed(payloads, columns, [table, joined, *body])
        session = self.publication.session
        if session is not None and len(joined) > session.limits.message_bytes_max:
            self._check_size(max(bodies.lengths_of(table)))
        self._check_size(0, len(joined), packed.size, len(payloads), attributes)
        return packed

    def _times(
        self, count: int, deliver_at: When | Sequence[When | None] | None, delay: Duration | None
    ) -> Sequence[int] | None:
        if deliver_at is None or isinstance(deliver_at, int | datetime):
            due = self.due(deliver_at, delay)
            return [due] * count if due else None
        if len(deliver_at) != count:
            raise UsageError(
                f"{counted(len(deliver_at), 'time of delivery was', 'times of delivery were')} given "
                f"for {counted(count, 'payload')}"
            )
        return [self.due(each, delay) for each in deliver_at]

    def try_batch(self, batch: Packed) -> BatchReceipt | None:
        """Do what `send_batch` does, or return `None` when the window is full; never waits."""
        publication, network = self.publication, self._network
        receipt = None
        with self._lock:
            self._check_open()
            try:
                if not batch.columns and 2 * batch.size < publication.room and publication.plain:
                    index = len(publication.payloads)
                    publication.payloads.extend(map(bytes, batch.payloads))
                    publication.room -= batch.size
                    return BatchReceipt(publication.shipment, index, len(batch.payloads))
                if publication.payloads:
                    self._seal()
                if not publication.payloads and publication.has_room(batch.size):
                    receipt = BatchReceipt(publication.shipment, 0, len(batch.payloads))
                    publication.seal_frames(len(batch.payloads), batch.columns, batch.body)
                    network.connection_of(publication).touch()
            except BaseException as error:
                network.connection_of(publication).interrupted(error)
                raise
        network.settle()
        return receipt

    # ---- checks and waits ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        publication = self.publication
        if publication.error is not None:
            raise publication.error
        if publication.phase in ("closing", "closed"):
            raise ClosedError(f"the producer for topic {publication.topic!r} is closed")

    def _check_size(
        self,
        payload_bytes: int,
        payloads_bytes: int = 0,
        size: int = 0,
        count: int = 1,
        attributes: Sequence[Mapping[str, str] | None] | None = None,
    ) -> None:
        """Raise if one payload, all of a batch, or these with all that goes with them is too large.

        What a dead letter or a redrive has more, beside what its producer sent, is not counted.
        """
        session = self.publication.session
        if session is None:
            return
        limits = session.limits
        if payload_bytes > limits.message_bytes_max:
            raise UsageError(
                f"message of {arguments.in_words(payload_bytes)} is over message_bytes_max "
                f"({arguments.in_words(limits.message_bytes_max)}) of topic {self.topic!r}",
                code="message-too-large",
            )
        most, around = limits.batch_bytes_max, size - payloads_bytes
        if bodies.batch_fits(count, payloads_bytes, around, most):
            return
        if attributes is not None and count == 1:
            around -= bodies.marked_bytes(arguments.attributes(attributes[0]))
        if not bodies.batch_fits(count, payloads_bytes, around, most):
            beside = arguments.in_words(bodies.around_bytes_max(most))
            raise UsageError(
                f"batch of {arguments.in_words(payloads_bytes + around)} is over batch_bytes_max "
                f"({arguments.in_words(most)}) of topic {self.topic!r}: {arguments.in_words(around)} of it are "
                f"lengths, keys and attributes; a lone message may have {beside} of these beside a large payload",
                code="batch-too-large",
            )

    def _wait_for_room(self, size: Callable[[], int], deadline: float, timeout: float | None) -> None:
        if not self._network.waits.wait(self.publication, lambda: self.has_room(size()), deadline):
            raise self.window_full(timeout)

    def has_room(self, size: int) -> bool:
        """Whether a batch of that size can go out, or never will (lock held)."""
        return self.publication.phase == "closed" or self.publication.has_room(size)

    def deadline(self, timeout: float | None) -> float:
        """Return the clock's time in `timeout` seconds."""
        return self._network.deadline(arguments.timeout(timeout))

    def seconds_until(self, deadline: float) -> float | None:
        """Return how long it is until then; `None` forever."""
        return self._network.seconds_until(deadline)

    def window_full(self, timeout: float | None) -> TimeoutExpiredError:
        """Return the error for a message that found no room in time."""
        return TimeoutExpiredError(
            f"the window of the producer for topic {self.topic!r} stayed full for {timeout} s{self.why_waiting()}"
        )

    def wait_for(self, shipment: Shipment, timeout: float | None) -> bool:
        """Wait until a shipment is resolved; False when the time (seconds) ran out first."""
        deadline = self._network.deadline(arguments.timeout(timeout))
        return self._network.waits.wait(self.publication, lambda: shipment.resolved, deadline, shipment)

    def why_waiting(self) -> str:
        """Say in words what it is waiting for, for the text of an error."""
        session = self.publication.session
        return arguments.in_trouble(
            self.publication.trouble or (None if session is None else session.trouble)
        )

    # ---- the end -------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Send gathered messages and wait until everything has been answered, at most `timeout` seconds.

        Raises `TimeoutExpiredError`, or the error of a refused message whose receipt was never checked.
        """
        deadline = self._network.deadline(arguments.timeout(timeout))
        self.flushed(self._network.waits.wait(self.publication, self.answered, deadline), timeout)

    def answered(self) -> bool:
        """Whether nothing waits for a receipt; sends what is gathered (lock held)."""
        publication = self.publication
        if publication.payloads and publication.has_room(publication.gathered_bytes()):
            publication.seal()
        return not publication.payloads and not publication.batches

    def flushed(self, answered: bool, timeout: float | None) -> None:
        """Raise if not everything is answered, or if something was refused and nobody looked."""
        publication = self.publication
        if not answered:
            raise TimeoutExpiredError(
                f"{counted(len(publication.batches), 'batch', 'batches')} for topic {self.topic!r} "
                f"without a receipt after {timeout} s"
                f"{self.why_waiting()}"
            )
        refused, publication.refused = publication.refused, None
        if refused is not None and refused.error is not None and not refused.observed:
            raise refused.error

    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Flush, and tell the broker that this producer is done; closing again does nothing.

        Raises as `flush` does. The producer is closed even then, and open receipts fail.
        """
        publication, network = self.publication, self._network
        deadline = network.deadline(arguments.timeout(timeout))
        if self.is_over():
            return
        try:
            if publication.phase != "closing":
                self.flush(timeout)
            self.begin_close()
            self.closed(network.waits.wait(publication, self.is_closed, deadline))
        finally:
            self.end()

    def is_idle(self) -> bool:
        """Whether nothing is gathered, and everything sent is answered."""
        with self._lock:
            return not self.publication.payloads and not self.publication.batches

    def is_over(self) -> bool:
        """Whether there is nothing to close any more."""
        return self._network.forked or self._network.closed or self.publication.phase == "closed"

    def blame(self, error: BaseException | None) -> None:
        """An exception ends the program's work: a producer has no messages in hand."""

    def part(self) -> None:
        """The client is about to say BYE: what has no receipt is lost, as `Client.close` says."""

    def begin_close(self) -> None:
        """Say CLOSE."""
        with self._lock:
            self.publication.close()
            self._network.connection_of(self.publication).touch()

    def is_closed(self) -> bool:
        """Whether the broker has answered the CLOSE (lock held)."""
        return self.publication.phase == "closed"

    def closed(self, answered: bool) -> None:
        """Raise if the broker did not answer the CLOSE."""
        if not answered:
            raise TimeoutExpiredError(
                f"the broker did not confirm the close of a producer for {self.topic!r}"
            )

    def end(self) -> None:
        """Release everything, whatever the broker says; open receipts fail."""
        publication = self.publication
        with self._lock:
            if publication.phase == "open":  # it is given up before everything was answered
                publication.close()
                self._network.connection_of(publication).touch()
            publication.fail(
                ClosedError(f"the producer for topic {self.topic!r} was closed before a receipt")
            )
            if publication.session is not None:
                publication.session.detach(publication)
            self._network.wake(publication)
            self._network.connection_of(publication).spread()
        self._network.settle()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: every `send` takes the road that raises."""
        self._lock = lock
        self.publication.room = NOTHING

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(HURRY_S)
        except IsterError:
            pass  # the exception on its way out matters more


class Packed:
    """The frames of a batch that has no sequence yet."""

    __slots__ = ("body", "columns", "payloads", "size")

    def __init__(self, payloads: Sequence[bytes], columns: int, body: list[bytes]) -> None:
        self.payloads = payloads
        self.columns = columns
        self.body = body
        self.size = sum(map(len, body))


def _columns_of(
    count: int,
    keys: Sequence[bytes | None] | None,
    attributes: Sequence[Mapping[str, str] | None] | None,
    times: Sequence[int] | None,
) -> tuple[int, list[bytes]]:
    columns = 0
    body: list[bytes] = []
    if keys is not None:
        if len(keys) != count:
            raise UsageError(
                f"{counted(len(keys), 'key was', 'keys were')} given for {counted(count, 'payload')}"
            )
        columns |= wire.Column.KEYS
        body.append(bodies.pack_column([arguments.data(key, "key") if key else b"" for key in keys]))
    if attributes is not None:
        if len(attributes) != count:
            raise UsageError(
                f"attributes were given {counted(len(attributes), 'time')} for {counted(count, 'payload')}"
            )
        columns |= wire.Column.ATTRIBUTES
        body.append(bodies.pack_column([arguments.attributes(each) for each in attributes]))
    if times is not None and any(times):
        columns |= wire.Column.DELIVER_AT
        body.append(bodies.pack_times(times))
    return columns, body
