"""The consumer of a pattern: one consumer per topic, presented as one.

Takes messages of the topics in turn, and gives acknowledgments to the consumer of their topic. Which topics there are,
and the consumers of each, are in `members.py`. May touch: the network (to send, and to wait).

Invariants
- topics take turns, one delivery each: none starves another
- an acknowledgment goes to the consumer that its message came from; for a deleted topic it is dropped
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from ister.attachment import Attachment
from ister.clientsession import Handle
from ister.consumer import Acknowledged, Consumer, Position, Seeking
from ister.errors import ClosedError, IsterError, UsageError
from ister.members import Members, OpenMember, about
from ister.message import BaseBatch, BaseMessage, Delivery, Event, Hand
from ister.names import topic_pattern
from ister.requests import Duration

if TYPE_CHECKING:
    from ister.network import Network

T = TypeVar("T")


class WildcardConsumer(Consumer):
    """Receives the messages of every topic that matches a pattern; made by `Client.consumer`."""

    def __init__(
        self,
        network: Network,
        pattern: str,
        subscription: str,
        open_member: OpenMember,
        *,
        credit_messages: int | None,
        credit_bytes: int,
        left_out: Iterable[str] = (),
    ) -> None:
        """`left_out` are topics that match, and are not wanted; raises `UsageError` for what is not a pattern.

        Without `credit_messages` the credit of each topic follows the program's pace.
        """
        self._matches = topic_pattern(pattern).fullmatch
        self._pattern = pattern
        self._subscription = subscription
        self._network = network
        self.current = Hand.of(iter(()))
        self.members = Members(
            network,
            pattern,
            subscription,
            open_member,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
            left_out=left_out,
        )
        self._turns = self.members.turns
        self._in_turn: Attachment | None = None  # the attachment whose delivery is being handed out
        self._over = False

    def __repr__(self) -> str:
        return (
            f"<Consumer topics={self._pattern!r} ({len(self.members)}) subscription={self._subscription!r}>"
        )

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        """What this is, for error texts."""
        return f"the consumer of subscription {self._subscription!r} of topics {self._pattern!r}"

    @property
    def topic(self) -> str:
        """The pattern."""
        return self._pattern

    @property
    def topics(self) -> list[str]:
        """The topics it receives from at present, by name."""
        return self.members.topics

    @property
    def subscription(self) -> str:
        """The subscription, of each of the topics."""
        return self._subscription

    @property
    def handle(self) -> Handle | None:
        """None: its topics use several connections."""
        return None

    @property
    def active(self) -> bool | None:
        """None: each topic has its own active consumer; see `events`."""
        return None

    @property
    def position(self) -> int:
        """A pattern has no position: raises `UsageError`."""
        raise UsageError("a consumer of many topics has no single offset: each message has its own")

    @property
    def dropped(self) -> int:
        """How many messages non-reliable topics have dropped here, because this program was too slow."""
        return self.members.dropped

    @property
    def events(self) -> deque[Event]:
        """Events of all topics, oldest first (the last 256); `event.topic` names the topic."""
        return self.members.events

    # ---- receiving -----------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        return self._network.waits.anywhere(condition, deadline)

    def _try(self, take: Callable[[Attachment], T | None]) -> T | None:
        """Take something of the topic whose turn it is, or raise the broker's error."""
        network = self._network
        looked = False
        while True:
            network.check()
            if self._over:
                raise ClosedError(f"{self.what} is closed")
            self.members.look()
            with network.lock:
                attachment, found = self._in_turn, None
                now = network.clock.monotonic()
                if attachment is not None:
                    attachment.handing.sharing = len(self._turns) + (attachment not in self._turns)
                    attachment.handing.asked(now)
                    if attachment.handing.has_in_hand:
                        found = self._take(attachment, take)
                if found is None:
                    if not self._turns and not looked:
                        looked = True
                        network.move_frames()  # a frame may have arrived already
                    attachment = self._turns.popitem(last=False)[0] if self._turns else None
                    if attachment is not None:
                        self._raise_complaint(attachment)
                        self._in_turn = attachment
                        attachment.handing.sharing = len(self._turns) + 1
                        attachment.handing.asked(now)
                        found = self._take(attachment, take)
                        if found is None:
                            self.raise_damage(attachment)
            network.settle()
            if found is not None or (attachment is None and not self.members.have_changed):
                return found
            member = self.members.by_attachment.get(attachment)
            if member is not None and member.attachment.phase == "closed":
                self.members.lost(member)

    def _raise_complaint(self, attachment: Attachment) -> None:
        """Raise the broker's error about a topic, and let the topic join the queue again (lock held)."""
        if attachment.complaint is not None:
            complaint, attachment.complaint = attachment.complaint, None
            if attachment.handing.queue:
                self._turns[attachment] = None
            raise about(attachment.topic, complaint)

    def _take(self, attachment: Attachment, take: Callable[[Attachment], T | None]) -> T | None:
        """Take messages of a topic, and let it join the queue again (lock held)."""
        found = take(attachment)
        handing = attachment.handing
        if (
            handing.queue or attachment.damage
        ) and not handing.asks:  # one that asks the broker joins when there is an answer
            self._turns.setdefault(attachment)
        if found is not None:
            attachment.tick(self._network.clock.monotonic())
            session = attachment.session
            if session is not None and session.outbox:
                self._network.connection_of(attachment).pump()
        return found

    def raise_damage(self, attachment: Attachment) -> None:
        """Raise that a topic's subscription waits at damage (lock held)."""
        try:
            super().raise_damage(attachment)
        except IsterError as damage:
            self._turns.pop(attachment, None)
            raise about(attachment.topic, damage) from None

    def forget_current(self) -> None:
        """Drop what is left of the present delivery."""
        super().forget_current()
        self._in_turn = None

    def has_news(self) -> bool:
        """Whether there is something to take, to raise or to do (lock held)."""
        in_hand = self._in_turn is not None and self._in_turn.handing.has_some
        return bool(self._turns) or in_hand or self._over or self.members.have_changed

    # ---- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, what: Acknowledged) -> None:
        """Acknowledge a message, a batch, or several messages, of whatever topics."""
        for member, part in self._parts(what):
            member.ack(part)

    def ack_until(self, message: BaseMessage) -> None:
        """Acknowledge everything of this message's topic up to and including this message."""
        for member, part in self._parts(message):
            assert isinstance(part, BaseMessage)
            member.ack_until(part)

    def nack(self, what: Acknowledged, delay: Duration | None = None, reason: str = "") -> None:
        """Refuse messages, to be redelivered after `delay`; see `Consumer.nack`."""
        for member, part in self._parts(what):
            member.nack(part, delay, reason)

    def extend(self, *what: Acknowledged) -> None:
        """Report that messages are still being worked on: their acknowledgment timeout starts again."""
        for one in what:
            for member, part in self._parts(one):
                member.extend(part)

    def _parts(self, what: Acknowledged) -> list[tuple[Consumer, Acknowledged]]:
        """Return which messages belong to which topic's consumer, without those of deleted topics."""
        self._network.check()
        if self._over:
            raise ClosedError(f"{self.what} is closed")
        if isinstance(what, BaseMessage | BaseBatch):
            member = self._member_of(what.delivery)
            return [] if member is None else [(member, what)]
        if not isinstance(what, Iterable):
            raise UsageError(f"only a message or a batch can be acknowledged, not {type(what).__name__}")
        parts: dict[str, tuple[Consumer, list[BaseMessage]]] = {}
        for message in what:
            if not isinstance(message, BaseMessage):
                raise UsageError(
                    f"only a message or a batch can be acknowledged, not {type(message).__name__}"
                )
            member = self._member_of(message.delivery)
            if member is not None:
                parts.setdefault(message.topic, (member, []))[1].append(message)
        return list(parts.values())

    def _member_of(self, delivery: Delivery) -> Consumer | None:
        member = self.members.by_attachment.get(delivery.owner)
        if member is not None:
            return None if member.attachment.phase == "closed" else member
        owner = delivery.owner
        gone = isinstance(owner, Attachment) and owner.subscription == self._subscription
        if not gone or self._matches(delivery.topic) is None:
            raise UsageError("this message came from another consumer: acknowledge it there")
        return None

    def written(self) -> bool:
        """Whether every acknowledgment is stored or was refused; sends what is gathered (lock held)."""
        while True:
            written = [member.written() for member in self.members.all()]
            if not self._network.move_frames():
                return all(written)

    def flushed(self, written: bool, timeout: float | None) -> None:
        """Raise unless every acknowledgment is stored."""
        for member in self.members.all():
            if member.attachment.phase != "closed":
                with self._network.lock:
                    settled = written or member.written()
                member.flushed(settled, timeout)

    def begin_seek(self, position: Position) -> Seeking:
        """Raise `UsageError`: each topic's subscription is moved separately, with `Client.seek`."""
        raise UsageError(
            f"a consumer of many topics cannot be moved to {position!r}: use client.seek for each"
        )

    # ---- the end -------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether there is nothing left to close."""
        return self._network.forked or self._network.closed or self._over

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand of all topics fail, if the exception is a failure."""
        for member in self.members.all():
            member.blame(error)

    def begin_close(self) -> None:
        """Send the acknowledgments made so far, then CLOSE, for every topic."""
        self._over = True
        with self._network.lock:
            for member in self.members.all():
                member.attachment.close()
            self._network.move_frames()

    def is_closed(self) -> bool:
        """Whether the broker has answered every CLOSE (lock held)."""
        self._network.move_frames()
        return all(member.attachment.phase == "closed" for member in self.members.all())

    def end(self) -> None:
        """Release everything, whatever the broker answered."""
        self._over = True
        with self._network.lock:
            self.members.withdraw()
            for connection in self._network.everywhere():
                connection.tell_all()  # other threads may be waiting here
        for member in self.members.all():
            member.end()
        self._turns.clear()

    def abandon(self) -> None:
        """Release a consumer that is not used."""
        self.begin_close()
        self.end()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: every call raises, because the network does."""
