"""The consumer of programs: a receiver (`receiver.py`) with acknowledgments.

`attachment.py` has its part of the protocol.

Invariants
- messages may be taken and acknowledged from any thread
- acknowledgments gather for a few milliseconds, so that a million of them cost a few hundred frames
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from ister import arguments
from ister.acknowledgments import joined
from ister.attachment import Attachment
from ister.blame import REASON_MAX
from ister.errors import ConnectionLostError, TimeoutExpiredError, UsageError
from ister.message import BaseBatch, BaseMessage, Delivery, Message
from ister.outstanding import Request
from ister.receiver import Receiver
from ister.requests import Duration

if TYPE_CHECKING:
    from ister.network import Network

NACK_DELAY_S_MAX: Final = 86_400  # the broker refuses longer delays
SEEK_S: Final = 10.0  # how long `seek` waits by default

Position = Literal["earliest", "latest"] | int | datetime  # where a subscription or a reader begins

Acknowledged = BaseMessage | Iterable[BaseMessage]  # a message, a batch, or several messages


class Consumer(Receiver):
    """Receives the messages of one subscription; made by `Client.consumer`, closed by `close` or a `with` block."""

    def __init__(self, network: Network, attachment: Attachment) -> None:
        super().__init__(network, attachment)
        self._acks = attachment.acks

    def __repr__(self) -> str:
        return f"<Consumer topic={self.topic!r} subscription={self.subscription!r} {self.attachment.phase}>"

    @property
    def subscription(self) -> str:
        """The subscription it belongs to."""
        return self.attachment.subscription

    @property
    def topics(self) -> list[str]:
        """The topics it currently receives from, by name: one, unless it was opened with a pattern."""
        return [self.topic]

    @property
    def active(self) -> bool | None:
        """Whether a Failover consumer is the active one; `None` when the broker has not said."""
        return self.attachment.active

    # ---- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, what: Acknowledged) -> None:
        """Acknowledge a message, a batch, or several messages: they are not delivered to this subscription again.

        Acknowledgments are sent within a few milliseconds; `flush` waits until the broker has stored them. Raises
        `UsageError` for messages of another consumer, `ClosedError`.
        """
        if type(what) is Message:
            acks = self._acks
            run = acks.run
            if what.delivery is run.delivery:
                run.offsets.append(what.offset)
                if acks.run is run:  # otherwise it may have come too late
                    return
        elif isinstance(what, BaseBatch) and what.delivery.owner is self.attachment and what:
            self._ack_runs(what.delivery, what.ranges)
            return
        self._ack_ranges(self._ranges_of(what))

    def _ack_runs(self, delivery: Delivery, runs: list[tuple[int, int]]) -> None:
        with self._lock:
            self._check()
            self.attachment.acks.add_runs(delivery, runs, self._network.clock.monotonic())
            self._soon()

    def _ack_ranges(self, ranges: list[tuple[Delivery, int, int]]) -> None:
        attachment, network = self.attachment, self._network
        with self._lock:
            self._check()
            now = network.clock.monotonic()
            for delivery, first, end in ranges:
                attachment.acks.add(delivery, first, end, now)
            self._soon()

    def ack_until(self, message: BaseMessage) -> None:
        """Acknowledge everything up to and including this message.

        Exclusive and Failover: everything of the subscription; Shared: everything that this consumer received.
        """
        [(delivery, _first, end)] = self._ranges_of(message)
        with self._lock:
            self._check()
            self.attachment.acks.add_until(delivery, end - 1, self._network.clock.monotonic())
            self._soon()

    def nack(self, what: Acknowledged, delay: Duration | None = None, reason: str = "") -> None:
        """Refuse messages: they are redelivered after `delay` (30, "15m", a `timedelta`); `reason` is for people.

        Without a delay they wait for the subscription's back-off: 1 s after the first failure, doubling up to a
        minute, unless it has other options. 0 means at once, except for a consumer that was opened with its own
        back-off (`backoff_min`), which then applies to every refusal without a delay. At most a day.
        """
        wait_ms = None if delay is None else arguments.milliseconds(delay, "a delay")
        if wait_ms is not None and wait_ms > NACK_DELAY_S_MAX * 1000:
            raise UsageError(
                f"a delay of {wait_ms / 1000:g} s is over {NACK_DELAY_S_MAX} s, a day: publish the message again, with "
                "that delay"
            )
        if len(arguments.text(reason, "a reason")) > REASON_MAX:
            raise UsageError(f"a reason has at most {REASON_MAX} characters")
        ranges = self._ranges_of(what)
        with self._lock:
            self._check()
            self.attachment.acks.flush()
            for delivery, pairs in _by_lineage(ranges):
                self.attachment.nack(delivery, pairs, wait_ms, reason)
            self._network.connection_of(self.attachment).touch()
        self._network.settle()

    def extend(self, *what: Acknowledged) -> None:
        """Report that messages are still being worked on: their acknowledgment timeout starts again.

        Messages that were given to another consumer meanwhile stay there. Raises `UsageError`, `ClosedError`.
        """
        ranges = [each for one in what for each in self._ranges_of(one)]
        with self._lock:
            self._check()
            for delivery, pairs in _by_lineage(ranges):
                self.attachment.extend(delivery, pairs)
            self._network.connection_of(self.attachment).touch()
        self._network.settle()

    def _ranges_of(self, what: Acknowledged) -> list[tuple[Delivery, int, int]]:
        if isinstance(what, BaseMessage):
            ranges = [(what.delivery, what.offset, what.offset + 1)]
        elif isinstance(what, BaseBatch):
            ranges = [(what.delivery, first, end) for first, end in what.ranges]
        elif isinstance(what, Iterable):
            ranges = []
            for message in what:
                if not isinstance(message, BaseMessage):
                    raise UsageError(
                        f"only a message or a batch can be acknowledged, not {type(message).__name__}"
                    )
                if ranges and ranges[-1][0] is message.delivery and ranges[-1][2] == message.offset:
                    ranges[-1] = (message.delivery, ranges[-1][1], message.offset + 1)
                else:
                    ranges.append((message.delivery, message.offset, message.offset + 1))
        else:
            raise UsageError(f"only a message or a batch can be acknowledged, not {type(what).__name__}")
        for delivery, _first, _end in ranges:
            if delivery.owner is not self.attachment:
                raise UsageError("this message came from another consumer: acknowledge it there")
        return ranges

    def _soon(self) -> None:
        attachment, network = self.attachment, self._network
        session = attachment.session
        if session is not None and session.outbox:
            network.connection_of(attachment).touch()
        else:
            network.connection_of(attachment).nudge(attachment.deadline())

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has stored every acknowledgment made so far, at most `timeout` seconds.

        Raises `TimeoutExpiredError`, `RemoteError` (an acknowledgment was refused), or `ConnectionLostError` when the
        broker restarted and forgot what it had delivered: then those messages are delivered again.
        """
        deadline = self._network.deadline(arguments.timeout(timeout))
        self.flushed(self._wait(self.written, deadline), timeout)

    def written(self) -> bool:
        """Whether every acknowledgment is stored or was refused; sends what is gathered (lock held)."""
        attachment = self.attachment
        if attachment.error is not None or attachment.complaint is not None or attachment.phase == "closed":
            return True
        if not attachment.acks.settled and not attachment.acks.confirming:
            attachment.acks.flush(confirm=True)
        return attachment.acks.settled

    def flushed(self, written: bool, timeout: float | None) -> None:
        """Raise unless every acknowledgment is stored."""
        attachment = self.attachment
        if not written:
            session = attachment.session
            trouble = arguments.in_trouble(
                attachment.trouble or (None if session is None else session.trouble)
            )
            raise TimeoutExpiredError(f"acknowledgments were not confirmed within {timeout} s{trouble}")
        with self._lock:
            self._check()
            if attachment.acks.forgotten:
                attachment.acks.forgotten = False
                raise ConnectionLostError(
                    "the broker restarted before some acknowledgments were written; it delivers those messages again"
                )

    # ---- seeking -------------------------------------------------------------------------------------------------

    def seek(self, position: Position, timeout: float | None = SEEK_S) -> int:
        """Move the whole subscription to "earliest", "latest", an offset or the first message of a time (`datetime`).

        Returns the offset of the next message. Everything below it then counts as acknowledged, and nothing from there
        on. Messages received before must not be acknowledged any more. Waits at most `timeout` seconds. Raises
        `RemoteError` (`offset-out-of-range`, ...), `TimeoutExpiredError`, `ClosedError`.
        """
        seeking = self.begin_seek(position)
        deadline = self._network.deadline(arguments.timeout(timeout))
        try:
            self._network.waits.wait(None, seeking.answered, deadline)
            self._network.waits.wait(self.attachment, seeking.arrived, deadline)
        finally:
            self.withdraw_seek(seeking)
        return self.end_seek(seeking, timeout)

    def begin_seek(self, position: Position) -> Seeking:
        """Ask the broker to move the subscription."""
        attachment, network = self.attachment, self._network
        asked = {"topic": self.topic, "subscription": self.subscription}
        request = Request("subscription.seek", {**asked, "to": arguments.start(position, "a position")})
        with self._lock:
            self._check()
            seeking = Seeking(
                attachment, request
            )  # before it is sent: using the socket may bring the answer at once
            attachment.acks.flush()
            network.home.session.request(request, network.clock.monotonic())
            network.home.touch()
            network.connection_of(attachment).touch()
        return seeking

    def withdraw_seek(self, seeking: Seeking) -> None:
        """Withdraw a move that was not answered: sent again over the next connection it would come unexpectedly."""
        with self._lock:
            if not seeking.request.done:
                self._network.home.session.withdraw(seeking.request)

    def end_seek(self, seeking: Seeking, timeout: float | None) -> int:
        """Return where the subscription stands, or raise the reason why it may be elsewhere."""
        request = seeking.request
        with self._lock:
            arrived = seeking.arrived()
            if arrived and request.done and request.error is None and not seeking.has_begun():
                self.forget_current()  # otherwise it is gone, and what another thread has now came after the move
        if request.error is not None:
            raise request.error
        if not request.done or not arrived:
            trouble = arguments.in_trouble(request.trouble or self.attachment.trouble)
            raise TimeoutExpiredError(f"the subscription was not moved within {timeout} s{trouble}")
        position: int = request.result["position"]
        return position


class Seeking:
    """A move in progress: done when the broker has answered and this consumer was told."""

    __slots__ = ("_attachment", "_begun", "request")

    def __init__(self, attachment: Attachment, request: Request) -> None:
        self.request = request
        self._attachment = attachment
        self._begun = attachment.begun

    def answered(self) -> bool:
        """Whether the broker has answered (lock held)."""
        return self.request.done

    def arrived(self) -> bool:
        """Whether no message from before the move can arrive any more (lock held)."""
        attachment = self._attachment
        untold = (
            attachment.phase != "open" or attachment.active is False
        )  # nothing arrives, or the consumer is about to be opened again
        return self.request.error is not None or untold or self.has_begun()

    def has_begun(self) -> bool:
        """Whether delivering began anew since, and dropped what came before (lock held)."""
        return self._attachment.begun != self._begun


def _by_lineage(
    ranges: Iterable[tuple[Delivery, int, int]],
) -> list[tuple[Delivery, list[tuple[int, int]]]]:
    found: dict[int, tuple[Delivery, list[tuple[int, int]]]] = {}
    for delivery, first, end in ranges:
        found.setdefault(delivery.lineage, (delivery, []))[1].append((first, end))
    return [(delivery, joined(pairs)) for delivery, pairs in found.values()]
