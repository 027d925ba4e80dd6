"""The intake of a reliable topic: batches of producers, dead letters, and their answers once they are durable.

Part of a ReliableTopic, in a worker process. It owns what waits for the log (`receipts.py`), and the sequence numbers
with which producers continue after the log failed. May touch the log, and the gateway through the publishers.

Invariants
- a batch is appended once: a duplicate only gets its receipt again
- no receipt is sent before the log is durable to that point at the topic's level
- when the log fails, everything that waits is refused, with an unknown outcome
"""

from __future__ import annotations

from collections.abc import Callable

from ister.actors.messages import CloseProducer, Deposit, Deposited, DepositRefused, OpenProducer, Publish
from ister.actors.publishers import Publisher, Publishers, expected_sequence, producer_of, sequence_error
from ister.actors.receipts import AWAITING_MAX, DEPOSITS_MAX, Receipts
from ister.actors.runtime import Address
from ister.actors.store_view import StoreView
from ister.actors.topic import Intake
from ister.actors.topic_log import TopicLog
from ister.bodies import Buffer, latest_time
from ister.clock import Clock
from ister.errors import IsterError, RemoteError, StorageError, StoreError
from ister.storage.meta import TopicMeta
from ister.storage.producers import Duplicate, Fresh, ProducerTable
from ister.storage.wal import Wal
from ister.wire import OFFSET_UNKNOWN, Column


class TopicIntake:
    """Accepts batches; `answer(address, message)` answers the senders of dead letters.

    While more than `behind_bytes_max` are not in the store yet, nothing is accepted. `reached(wal)` returns up to where
    a log is durable at the topic's level; `on_taken()` is called for each accepted batch.
    """

    def __init__(
        self,
        meta: TopicMeta,
        publishers: Publishers,
        log: TopicLog,
        store: StoreView,
        intake: Intake,
        *,
        clock: Clock,
        behind_bytes_max: int,
        reached: Callable[[Wal], int],
        answer: Callable[[Address, Deposited | DepositRefused], None],
        on_taken: Callable[[], None] | None,
    ) -> None:
        self._publishers = publishers
        self._log = log
        self._store = store
        self._intake = intake
        self._clock = clock
        self._behind_bytes_max = behind_bytes_max
        self._reached = reached
        self._answer = answer
        self._on_taken = on_taken
        self.receipts = Receipts()
        # by producer, while the log is not open: the sequence to continue with
        self._unresolved: dict[int, int] = {}
        self.go_by(meta)

    def go_by(self, meta: TopicMeta) -> None:
        """Apply other settings."""
        self._topic = meta.name
        self._ttl_ms = int(meta.settings.get("message_ttl_ms", 0))

    # ---- producers ----------------------------------------------------------------------------------------------

    def open(self, command: OpenProducer) -> None:
        """Let a handle publish, and tell it which sequence number is expected."""
        try:
            wal = self._log.ready()
            expected = expected_sequence(wal.producers, command, self._clock.time_ms())
        except (StorageError, RemoteError) as error:
            self._publishers.refuse_open(command, error)
            return
        if expected > command.sequence and self._reached(wal) < wal.next_offset:
            self._publishers.fence(command)  # the sequence number is promised like a receipt
            self.receipts.open(wal.next_offset, command)
            self._log.schedule_commit()
            return
        self._publishers.open(command, expected)

    def publish(self, publish: Publish) -> None:
        """Append a batch, unless it is a duplicate; its receipt is sent when it is durable."""
        handle, sequence = publish.handle, publish.sequence
        publisher = handle.target
        if not isinstance(publisher, Publisher):
            return  # the handle was closed meanwhile, and that was answered
        batches = self.receipts.batches
        try:
            if len(batches) >= AWAITING_MAX:
                text = f"{AWAITING_MAX} batches of topic {self._topic!r} wait for its disk, the limit; resend later"
                raise RemoteError("busy", text)
            end, offset = self._take(publish, publisher.producer_id)
        except IsterError as error:
            if self._log.wal is not None:
                self._log.wal.producers.hold(publisher.producer_id, sequence)
            self._publishers.refuse(handle, sequence, error)
            self._check_failed(error)
            return
        batches.append((end, handle, sequence, offset))
        self._log.schedule_commit()
        if self._on_taken is not None:
            self._on_taken()

    def deposit(self, deposit: Deposit) -> None:
        """Append a batch from inside the broker like a client's; it is answered when it is durable."""
        try:
            if self.receipts.full_of_deposits:
                text = f"{DEPOSITS_MAX} letters for topic {self._topic!r} wait for its disk, the limit; resend later"
                raise RemoteError("busy", text)
            self._log.ready().producers.expect(deposit.producer_id, deposit.sequence)
            end, _ = self._take(deposit, deposit.producer_id)
        except IsterError as error:
            self._refuse_deposit(deposit, error)
            self._check_failed(error)
            return
        self.receipts.deposit(end, deposit)
        self._log.schedule_commit()
        if self._on_taken is not None:
            self._on_taken()

    def close(self, command: CloseProducer) -> None:
        """Close a handle once everything it sent before has its receipt."""
        wal = self._log.wal
        if wal is None or command.ref is None:
            self._publishers.closed(command)
            return
        self.receipts.close(wal.next_offset, command)
        self._log.schedule_commit()

    def closed(self, producer_id: int) -> None:
        """Note that a producer has all its receipts and closed: it need not be remembered for long."""
        if self._log.wal is not None:
            self._log.wal.producers.close(producer_id)

    def _take(self, batch: Publish | Deposit, producer_id: int) -> tuple[int, int]:
        """Append a batch unless it is a duplicate; return what must be durable for it, and its offset.

        Raises StorageError, StoreError, RemoteError; then nothing was appended.
        """
        wal = self._log.ready()
        verdict = wal.producers.check(producer_id, batch.sequence, batch.count)
        if isinstance(verdict, Fresh):
            if self._store.behind_bytes > self._behind_bytes_max:
                raise self._is_behind()
            if batch.columns & Column.DELIVER_AT:
                self._check_times(batch.frames[-1])
            intake = self._intake
            intake.last_ms = self._clock.time_ms()
            offset = wal.append(
                count=batch.count,
                producer_id=producer_id,
                sequence=batch.sequence,
                columns=batch.columns,
                frames=batch.frames,
                timestamp_ms=intake.last_ms,
            )
            intake.messages += batch.count
            intake.bytes += len(batch.frames[1])
        elif isinstance(verdict, Duplicate):
            offset = OFFSET_UNKNOWN if verdict.first_offset is None else verdict.first_offset
        else:
            raise sequence_error(verdict, batch)
        # The original of a duplicate may not be durable yet; if its offset is forgotten, wait for the whole log.
        return (wal.next_offset if offset == OFFSET_UNKNOWN else offset + batch.count), offset

    def _check_times(self, column: Buffer) -> None:
        """Raise RemoteError if a message would outlive the topic's time to live before its delivery time."""
        ttl_ms = self._ttl_ms
        if not ttl_ms:
            return
        wait_ms = latest_time(column) - self._clock.time_ms()
        if wait_ms > ttl_ms:
            raise RemoteError(
                "invalid-argument",
                f"a message is to be delivered in {wait_ms} ms, and would be too old by then: message_ttl_ms "
                f"({ttl_ms} ms) of topic {self._topic!r} is less; send the batch with a shorter delay",
            )

    def _is_behind(self) -> StoreError:
        """Return why nothing is accepted while too much waits for an unreachable store, or None."""
        behind_bytes = self._store.behind_bytes
        return StoreError(
            f"topic {self._topic!r} has {behind_bytes} bytes that the store has not taken yet, "
            f"over behind_bytes_max ({self._behind_bytes_max}); it takes more when the store is back",
            code="store-behind",
        )

    def _check_failed(self, error: IsterError) -> None:
        """Find out after a refusal whether the log failed, or only this batch."""
        if isinstance(error, StorageError):
            self._log.check(error)

    # ---- what becomes of the log --------------------------------------------------------------------------------

    def reached(self, end: int) -> None:
        """Send the receipts that are due."""
        batches = self.receipts.batches
        if batches and batches[0][0] <= end:
            self._publishers.receipt(self.receipts.due(end))
        if self.receipts.others:
            for deposit in self.receipts.due_deposits(end):
                self._answer(deposit.reply, Deposited(deposit.producer_id, deposit.sequence))

    def reached_and_told(self, end: int) -> None:
        """Answer the closes and opens that are due, after the watchers were told."""
        if self.receipts.others:
            for command in self.receipts.due_closes(end):
                self._publishers.closed(command)
            for opening in self.receipts.due_opens(end):
                self._open_now(opening)

    def _open_now(self, command: OpenProducer) -> None:
        try:
            expected = expected_sequence(self._log.ready().producers, command, self._clock.time_ms())
        except (StorageError, RemoteError) as error:
            self._publishers.refuse_open(command, error)
        else:
            self._publishers.open(command, expected)

    def log_opened(self, producers: ProducerTable) -> None:
        """Continue with the log that was opened: producers continue where they are."""
        handles = self._publishers.handles
        producers.connected = handles
        for producer_id, sequence in self._unresolved.items():
            if producer_id in handles:
                producers.expect(producer_id, sequence)
        self._unresolved.clear()
        self._intake.last_ms = self._intake.last_ms or producers.heard_ms

    def log_failing(self, error: IsterError, wal: Wal | None) -> None:
        """Refuse everything that has no receipt yet: its outcome is unknown."""
        if wal is not None:
            self._unresolved = self._sequences(wal.producers)
        for _, handle, sequence, _ in self.receipts.give_up():
            self._publishers.refuse(handle, sequence, error)
        self._refuse_deposits(error)
        self.end(error)

    def end(self, error: IsterError) -> None:
        """Answer the handles that close, and refuse those that open."""
        for command in self.receipts.due_closes():
            self._publishers.closed(command)
        for opening in self.receipts.due_opens():
            self._publishers.refuse_open(opening, error)

    def delete(self, error: IsterError) -> None:
        """Refuse everything: the topic was deleted."""
        self.end(error)
        self._refuse_deposits(error)

    def _refuse_deposits(self, error: IsterError) -> None:
        """Ask for dead letters that wait to be sent again: their outcome is unknown."""
        for deposit in self.receipts.due_deposits():
            self._refuse_deposit(deposit, error)

    def _refuse_deposit(self, deposit: Deposit, error: IsterError) -> None:
        answer = DepositRefused(deposit.producer_id, deposit.sequence, error.code, error.text)
        self._answer(deposit.reply, answer)

    def _sequences(self, producers: ProducerTable) -> dict[int, int]:
        """Return by producer the sequence number to continue with, also if the log reopens without its last batches."""
        lowest: dict[int, int] = {}
        for handle, sequence in self.receipts.unanswered().items():
            producer_id = producer_of(handle)
            lowest[producer_id] = min(sequence, lowest.get(producer_id, sequence))
        for producer_id in self._publishers.handles.keys() - lowest.keys():
            lowest[producer_id] = producers.next_sequence(producer_id) or 0
        return lowest
