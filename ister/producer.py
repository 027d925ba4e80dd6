"""The producer of programs: `send`, `send_batch`, receipts, back-pressure.

May touch: the network (to send, and to wait). Messages are gathered in `gathering.py`, batches that a program gives are
packed in `packing.py`, and what is said to the broker is in `publication.py`.

Invariants
- `send` returns at once, except when the window is full: then it waits, or raises, and the message is not accepted
- any number of threads may send; messages of one thread keep their order
- the error of a refused message is raised: by its receipt, or by `flush` or `close` if the receipt was not used
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ister import arguments
from ister.closing import Closing
from ister.compiling import Unchecked
from ister.errors import ClosedError, TimeoutExpiredError, UsageError
from ister.gathering import MESSAGE_ENTRY_BYTES, TIME_BYTES
from ister.lane import NO_LANE
from ister.packing import Packed, check_size, pack
from ister.publication import Publication
from ister.receipts import BatchReceipt, Receipt, Shipment, receipt_of
from ister.requests import Duration
from ister.sender import Sender, When
from ister.words import counted

if TYPE_CHECKING:
    from ister.network import Network

CLOSE_S = 10.0  # how long `close` waits for receipts by default
HURRY_S = 1.0  # the same, when an exception leaves the block


class Producer(Sender, Closing):
    """Sends messages to one topic; made by `Client.producer`, closed by `close` or a `with` block."""

    def __init__(self, network: Network, publication: Publication) -> None:
        Closing.__init__(self, network, publication)
        Sender.__init__(self, network.lock, publication.gathered)
        self.publication = publication

    def __repr__(self) -> str:
        return f"<Producer topic={self.topic!r} {self.publication.phase}>"

    @property
    def what(self) -> str:
        """What this is, for error texts."""
        return f"the producer for topic {self.topic!r}"

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
        """The number of the last message sent, -1 for none; at first, of the last one stored under its name.

        A program that was killed continues after it: messages are numbered from 0.
        """
        with self._lock:
            return self.publication.next_sequence - 1

    @property
    def lock(self) -> threading.Lock:
        """The lock that guards receipts; for `Shipment` only."""
        return self._lock

    # ---- sending -------------------------------------------------------------------------------------------------

    def send_carefully(
        self,
        payload: bytes | Unchecked,
        key: bytes | Unchecked | None,
        attributes: Mapping[str, str] | None,
        due: int,
        sequence: int | Unchecked | None,
        timeout: float | Unchecked | None,
    ) -> Receipt:
        """Send a message that begins or ends a batch, or has columns or a number."""
        deadline: float | None = None
        while True:
            receipt = self.try_send(payload, key, attributes, due, sequence)
            if receipt is not None:
                return receipt
            if deadline is None:
                deadline = self._network.deadline(arguments.timeout(timeout))
            self._wait_for_room(self._gathered.size, deadline, timeout)

    def due(self, deliver_at: When | None, delay: Duration | None) -> int:
        """Return when a message is to be delivered, in unix milliseconds; 0: at once."""
        due = arguments.due(deliver_at, delay, self._network.clock.time_ms)
        if due and self.publication.strategy == "non-reliable":
            raise UsageError(
                f"topic {self.topic!r} is non-reliable: it stores no messages, so it cannot delay them"
            )
        return due

    def try_send(
        self,
        payload: bytes | Unchecked,
        key: bytes | Unchecked | None,
        attributes: Mapping[str, str] | None,
        due: int = 0,
        sequence: int | Unchecked | None = None,
    ) -> Receipt | None:
        """Do what `send` does, or return `None` when the window is full; never waits. `due` is in unix ms."""
        publication, gathered, network = self.publication, self._gathered, self._network
        network.check()
        payload = arguments.data(payload, "payload")
        columns = (arguments.data(key, "key") if key else b"", arguments.attributes(attributes))
        size = len(payload) + MESSAGE_ENTRY_BYTES
        size += sum(len(column) + MESSAGE_ENTRY_BYTES for column in columns if column) + (due and TIME_BYTES)
        if publication.session is not None:
            limits = publication.session.limits
            alone = [attributes] if attributes else None
            check_size(publication.topic, 1, len(payload), len(payload), size, alone, limits)
        if sequence is not None:
            sequence = arguments.number(sequence, "a sequence")
        receipt = None
        with self._lock:
            self._check_open()
            try:
                if gathered.opened is not NO_LANE:
                    gathered.close_lane()
                if sequence is not None:
                    if sequence < publication.next_sequence:
                        return receipt_of(*publication.taken_before(sequence))
                    if sequence > publication.next_sequence:
                        if gathered.payloads:
                            self._seal()
                        if gathered.payloads:
                            return None
                        publication.skip_to(sequence)
                if gathered.payloads and gathered.room < size:
                    self._seal()
                if not gathered.payloads or gathered.room >= size:
                    receipt = self._add(payload, *columns, due)
                if gathered.payloads and gathered.plain:
                    gathered.open_lane()
            except BaseException as error:
                network.connection_of(publication).interrupted(error)
                raise
        network.settle()
        return receipt

    def _add(self, payload: bytes, key: bytes, attributes: bytes, due: int) -> Receipt:
        publication, gathered, network = self.publication, self._gathered, self._network
        begins = not gathered.payloads
        if begins:
            publication.begin(network.clock.monotonic())
        shipment = gathered.shipment
        receipt = receipt_of(shipment, gathered.add(payload, key, attributes, due))
        # A message with nothing before it on its way, whose receipt it could wait for, goes at once.
        lone = begins and (not publication.batches or not gathered.linger_s)
        if lone or gathered.room <= 0:
            self._seal()
        elif begins:
            network.connection_of(publication).nudge(gathered.linger_at)
        return receipt

    def _seal(self) -> None:
        """Send what is gathered, if the window allows it (lock held, and the lane closed)."""
        publication = self.publication
        if publication.has_room(self._gathered.size()):
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
        all. A short list joins the batch being gathered, or begins one while many producers of the connection wait for
        receipts; a longer one is a batch of its own, or is sent together with others while receipts lag behind. Raises
        as `send` does; then none of the messages was sent.
        """
        batch = self.pack(payloads, keys, attributes, deliver_at, delay)
        deadline: float | None = None
        while True:
            receipt = self.try_batch(batch)
            if receipt is not None:
                return receipt
            if deadline is None:
                deadline = self._network.deadline(arguments.timeout(timeout))
            self._wait_for_room(lambda: self._gathered.size() or batch.size, deadline, timeout)

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
        times: Sequence[int] | None = None
        if deliver_at is not None or delay is not None:
            times = self._times(len(payloads), deliver_at, delay)
        publication = self.publication
        limits = None if publication.session is None else publication.session.limits
        return pack(publication.topic, payloads, keys, attributes, times, limits)

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
        publication, gathered, network = self.publication, self._gathered, self._network
        receipt = None
        with self._lock:
            self._check_open()
            try:
                gathered.close_lane()
                plain = not batch.columns and gathered.plain
                if plain and gathered.payloads and publication.joins(batch.size):
                    receipt = self._gather(batch)
                elif gathered.payloads:
                    self._seal()
                if receipt is not None or gathered.payloads:
                    pass  # it joined, or the window has no room for what is gathered
                elif plain and (room := publication.room_for(batch.size)):
                    gathered.begin(network.clock.monotonic(), publication.linger_s(), room)
                    receipt = self._gather(batch)
                    network.connection_of(publication).nudge(gathered.linger_at)
                elif publication.has_room(batch.size):
                    receipt = BatchReceipt(gathered.shipment, 0, len(batch.payloads))
                    publication.seal_frames(len(batch.payloads), batch.columns, batch.frames())
                    network.connection_of(publication).touch()
            except BaseException as error:
                network.connection_of(publication).interrupted(error)
                raise
        network.settle()
        return receipt

    def _gather(self, batch: Packed) -> BatchReceipt:
        """Put a batch into the one that is gathered, and send that if no other of the size fits (lock held)."""
        gathered = self._gathered
        index = gathered.extend(batch.payloads, batch.lengths, batch.size)
        receipt = BatchReceipt(gathered.shipment, index, len(batch.payloads))
        if gathered.room < batch.size:
            self._seal()
        return receipt

    # ---- checks and waits ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        publication = self.publication
        if publication.error is not None:
            raise publication.error
        if publication.phase in ("closing", "closed"):
            raise ClosedError(f"{self.what} is closed")

    def _wait_for_room(
        self, size: Callable[[], int], deadline: float, timeout: float | Unchecked | None
    ) -> None:
        if not self._network.waits.wait(self.publication, lambda: self.has_room(size()), deadline):
            raise self.window_full(timeout)

    def has_room(self, size: int) -> bool:
        """Whether a batch of that size can be sent, or never will (lock held)."""
        return self.publication.phase == "closed" or self.publication.has_room(size)

    def window_full(self, timeout: float | Unchecked | None) -> TimeoutExpiredError:
        """Return the error for a message that was not accepted in time."""
        return TimeoutExpiredError(
            f"the window of {self.what} stayed full for {timeout} s{self.why_waiting()}"
        )

    def wait_for(self, shipment: Shipment, timeout: float | Unchecked | None) -> bool:
        """Wait until a shipment is resolved; return False if the time (seconds) ran out first."""
        deadline = self._network.deadline(arguments.timeout(timeout))
        return self._network.waits.wait(self.publication, lambda: shipment.resolved, deadline, shipment)

    def why_waiting(self) -> str:
        """Return what it is waiting for, for the text of an error."""
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
        publication, gathered = self.publication, self._gathered
        if gathered.payloads:
            publication.seal_if_room()
        return not gathered.payloads and not publication.batches

    def flushed(self, answered: bool, timeout: float | None) -> None:
        """Raise if something has no receipt, or was refused without its receipt being used."""
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
        """Flush, and close this producer at the broker; closing again does nothing.

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
            return not self._gathered.payloads and not self.publication.batches

    def blame(self, error: BaseException | None) -> None:
        """Do nothing: a producer has no messages in hand."""

    def part(self) -> None:
        """Do nothing: at BYE, messages without a receipt are lost, as `Client.close` says."""

    def end(self) -> None:
        """Release everything, whatever the broker answered; open receipts fail."""
        publication = self.publication
        with self._lock:
            if publication.phase == "open":  # it is given up before everything was answered
                publication.close()
                self._network.connection_of(publication).touch()
            publication.fail(ClosedError(f"{self.what} was closed before a receipt"))
            if publication.session is not None:
                publication.session.detach(publication)
            self._network.wake(publication)
            self._network.connection_of(publication).spread()
        self._network.settle()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: let every `send` raise."""
        self._lock = lock
        self._gathered.shut()
