"""The consumer of a pattern: one consumer per topic, presented as one, with topics that are created and deleted.

May touch: the network (to send, and to wait). `following.py` decides which topics it has.

Invariants
- topics take turns, one delivery each: none starves another
- the topics share the credit, so that memory is bounded however many they are
- an acknowledgment goes to the consumer that its message came from; for a deleted topic it is dropped
- the threads that receive also follow topics, one at a time: there is no background thread
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ister.attachment import CREDIT_MESSAGES_MAX, EVENTS_MAX, Attachment
from ister.clientsession import Handle, Request
from ister.consumer import Acknowledged, Consumer, Position, Seeking
from ister.errors import ClosedError, IsterError, RemoteError, TimeoutExpiredError, UsageError
from ister.following import Following, share
from ister.inbox import GONE
from ister.message import BaseBatch, BaseMessage, Delivery, Event
from ister.names import topic_pattern
from ister.requests import Duration
from ister.words import counted

if TYPE_CHECKING:
    from ister.network import Network

T = TypeVar("T")


class OpenMember(Protocol):
    """Begins to open the consumer of one topic, which has come `later` or was there at first."""

    def __call__(
        self, topic: str, *, later: bool, credit_messages: int | None, credit_bytes: int
    ) -> Consumer:
        """Return it; does not wait. Without `credit_messages` its credit follows the program's pace."""


class WildcardConsumer(Consumer):
    """Receives the messages of every topic that a pattern stands for; made by `Client.consumer`."""

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
        """`left_out` are topics that match, and are not wanted; raises `UsageError` for what is not a pattern."""
        self._matches = topic_pattern(pattern).fullmatch
        self._pattern = pattern
        self._subscription = subscription
        self._open_member = open_member
        self._paced = credit_messages is None
        self._credit = (CREDIT_MESSAGES_MAX if credit_messages is None else credit_messages, credit_bytes)
        self._network = network
        self.current = iter(())
        self._following = (
            threading.RLock()
        )  # which topics there are; taken before the network's lock, never after it
        self._in_turn: Attachment | None = None  # whose delivery is being handed out
        self._followed = Following(list(left_out))
        self._members: dict[str, Consumer] = {}  # by topic
        self._created: dict[str, int] = {}  # by topic: when, which tells it from others of that name
        self._by_attachment: dict[object, Consumer] = {}
        self._turns: OrderedDict[Attachment, None] = OrderedDict()
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._dropped = 0  # by topics that are gone
        self._watch: Request | None = None
        self._suspected: dict[
            str, tuple[int, IsterError]
        ] = {}  # topics, or only their subscriptions, that were deleted
        self._plain = False  # the broker does not say which topics came meanwhile
        self._over = False

    def __repr__(self) -> str:
        return (
            f"<Consumer topics={self._pattern!r} ({len(self._members)}) subscription={self._subscription!r}>"
        )

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        """What it is, in words."""
        return f"the consumer of subscription {self._subscription!r} of topics {self._pattern!r}"

    @property
    def topic(self) -> str:
        """The pattern."""
        return self._pattern

    @property
    def topics(self) -> list[str]:
        """The topics it receives from at present, by name."""
        return sorted(self._members)

    @property
    def subscription(self) -> str:
        """The subscription, of each of the topics."""
        return self._subscription

    @property
    def handle(self) -> Handle | None:
        """None: its topics may be anywhere."""
        return None

    @property
    def active(self) -> bool | None:
        """None: each topic has its own active consumer; `events` tells."""
        return None

    @property
    def position(self) -> int:
        """A pattern has no position: raises `UsageError`."""
        raise UsageError("a consumer of many topics has no single offset: each message has its own")

    @property
    def dropped(self) -> int:
        """How many messages non-reliable topics have dropped here, because this program was too slow."""
        return self._dropped + sum(member.dropped for member in list(self._members.values()))

    @property
    def events(self) -> deque[Event]:
        """What the broker told besides messages, oldest first (the last 256); `event.topic` says of which topic."""
        return self._events

    # ---- topics that come and go ---------------------------------------------------------------------------------

    def first_look(self) -> Request:
        """Return the request that asks which topics there are, and which of them came while nobody was here."""
        asked = {"pattern": self._pattern}
        return Request("topic.watch", asked if self._plain else {**asked, "subscription": self._subscription})

    def asked_too_much(self, error: BaseException) -> bool:
        """Whether the broker is too old to say which topics came meanwhile: it is asked without that from now on."""
        if self._plain or not isinstance(error, RemoteError) or error.code != "invalid-argument":
            return False
        self._plain = True
        return True

    def follow(self, answer: dict[str, Any], *, later: bool = True) -> None:
        """Have the topics that there are now, and ask to be told when they are others."""
        with self._following:
            self._follow(answer, later=later)

    def _follow(self, answer: dict[str, Any], *, later: bool) -> None:
        listed = {each["topic"]: each["created_ms"] for each in answer["topics"]}
        meanwhile = {each["topic"] for each in answer["topics"] if each.get("later")}
        suspected, self._suspected = self._suspected, {}
        deleted = {
            topic: error for topic, (created, error) in suspected.items() if listed.get(topic) == created
        }
        for topic in deleted:
            self._followed.refuse(topic, listed[topic])
        come, gone = self._followed.changes(listed, self._created)
        for topic in gone:
            self._leave(self._members[topic])
        messages, size = share(*self._credit, len(self._members) + len(come))
        network = self._network
        if come or gone:
            with network.lock:
                for member in self._members.values():
                    member.attachment.resize(messages, size)
                network.move_frames()
        for topic in come:
            member = self._open_member(
                topic,
                later=later or topic in meanwhile,
                credit_messages=None if self._paced else messages,
                credit_bytes=size,
            )
            self._members[topic] = self._by_attachment[member.attachment] = member
            self._created[topic] = listed[topic]
            with network.lock:
                member.attachment.events = self._events
                member.attachment.take_turns(self._turns)
                if self._paced:
                    member.attachment.resize(messages, size)
        self._ask(Request("topic.watch", {"pattern": self._pattern, "version": answer["version"]}))
        for topic, error in deleted.items():
            raise _about(topic, error)

    def _ask(self, request: Request) -> None:
        network = self._network
        with network.lock:
            if self._watch is not None:
                network.home.session.withdraw(self._watch)
            self._watch = request
            network.home.session.request(request, network.clock.monotonic())
            network.home.touch()

    def _look(self) -> None:
        """See whether the broker has told of other topics."""
        watch = self._watch
        if watch is None or not watch.done:
            return
        with self._following:
            watch = self._watch
            if watch is None or not watch.done:
                return  # another thread has seen to it
            if watch.error is not None:
                self._watch = None
                self._network.check()
                known = self.asked_too_much(watch.error)
                self._ask(self.first_look())
                if known:
                    return
                raise watch.error
            self.follow(watch.result)

    def _leave(self, member: Consumer) -> None:
        """Have nothing to do with a topic any more."""
        self._members.pop(member.topic, None)
        self._created.pop(member.topic, None)
        self._by_attachment.pop(member.attachment, None)
        self._turns.pop(member.attachment, None)
        self._dropped += member.dropped
        member.begin_close()
        member.end()

    def _lost(self, member: Consumer) -> None:
        """The broker has closed a topic's consumer: raise why, unless the topic is gone."""
        with self._following:
            if self._members.get(member.topic) is member:
                self._leave_lost(member)

    def _leave_lost(self, member: Consumer) -> None:
        error, created = member.attachment.error, self._created[member.topic]
        self._leave(member)
        if error is None or error.code in (*GONE, "subscription-deleted"):
            if error is not None and error.code == "subscription-deleted":
                self._suspected[member.topic] = created, error  # by itself, or with its topic?
            self._ask(self.first_look())
            return
        self._followed.refuse(member.topic, created)
        raise _about(member.topic, error)

    def is_open(self) -> bool:
        """Whether the broker has answered for every topic (lock held)."""
        self._network.move_frames()
        return all(
            member.attachment.opened or member.attachment.phase == "closed"
            for member in list(self._members.values())
        )

    def check_open(self, seconds: float | None) -> None:
        """Raise if some topic could not be opened."""
        waiting = 0
        for topic, member in list(self._members.items()):
            attachment = member.attachment
            if attachment.error is not None:
                if attachment.error.code not in GONE:
                    raise _about(topic, attachment.error)
            elif not attachment.opened:
                if attachment.trouble is not None and attachment.trouble.code == "subscription-busy":
                    raise _about(topic, attachment.trouble)
                waiting += 1
        if waiting:
            raise TimeoutExpiredError(
                f"{waiting} of "
                f"{counted(len(self._members), 'topic that matches', 'topics that match')} "
                f"{self._pattern!r} were not opened within "
                f"{seconds} s"
            )

    # ---- receiving -----------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        return self._network.wait_anywhere(condition, deadline)

    def _try(self, take: Callable[[Attachment], T | None]) -> T | None:
        """Take something of the topic whose turn it is, or raise what the broker said instead."""
        network = self._network
        looked = False
        while True:
            network.check()
            if self._over:
                raise ClosedError(f"{self.what} is closed")
            self._look()
            with network.lock:
                attachment, found = self._in_turn, None
                now = network.clock.monotonic()
                if attachment is not None:
                    attachment.sharing = len(self._turns) + (attachment not in self._turns)
                    attachment.asked(now)
                    if attachment.has_in_hand:
                        found = self._take(attachment, take)
                if found is None:
                    if not self._turns and not looked:
                        looked = True
                        network.move_frames()  # perhaps it has come already
                    attachment = self._turns.popitem(last=False)[0] if self._turns else None
                    if attachment is not None:
                        self._raise_complaint(attachment)
                        self._in_turn = attachment
                        attachment.sharing = len(self._turns) + 1
                        attachment.asked(now)
                        found = self._take(attachment, take)
            network.settle()
            if found is not None or (attachment is None and (self._watch is None or not self._watch.done)):
                return found
            member = self._by_attachment.get(attachment)
            if member is not None and member.attachment.phase == "closed":
                self._lost(member)

    def _raise_complaint(self, attachment: Attachment) -> None:
        """Raise what the broker has said against a topic, and let it line up again (lock held)."""
        if attachment.complaint is not None:
            complaint, attachment.complaint = attachment.complaint, None
            if attachment.queue:
                self._turns[attachment] = None
            raise _about(attachment.topic, complaint)

    def _take(self, attachment: Attachment, take: Callable[[Attachment], T | None]) -> T | None:
        """Take of a topic, and let it line up again behind the others (lock held)."""
        found = take(attachment)
        if attachment.queue and not attachment.asks:  # who asks lines up when there is an answer
            self._turns.setdefault(attachment)
        if found is not None:
            attachment.tick(self._network.clock.monotonic())
            session = attachment.session
            if session is not None and session.outbox:
                self._network.connection_of(attachment).pump()
        return found

    def forget_current(self) -> None:
        """Let nobody see what is left of the delivery in hand."""
        super().forget_current()
        self._in_turn = None

    def has_news(self) -> bool:
        """Whether there is something to take, to raise or to do (lock held)."""
        in_hand = self._in_turn is not None and self._in_turn.has_some
        return bool(self._turns) or in_hand or self._over or (self._watch is not None and self._watch.done)

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
        """Give messages back, to be delivered again after `delay`; see `Consumer.nack`."""
        for member, part in self._parts(what):
            member.nack(part, delay, reason)

    def extend(self, *what: Acknowledged) -> None:
        """Say that messages are still being worked on: their acknowledgment timeout starts again."""
        for one in what:
            for member, part in self._parts(one):
                member.extend(part)

    def _parts(self, what: Acknowledged) -> list[tuple[Consumer, Acknowledged]]:
        """Return what belongs to which topic's consumer; what is of a topic that is gone is left out."""
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
        member = self._by_attachment.get(delivery.owner)
        if member is not None:
            return None if member.attachment.phase == "closed" else member
        owner = delivery.owner
        gone = isinstance(owner, Attachment) and owner.subscription == self._subscription
        if not gone or self._matches(delivery.topic) is None:
            raise UsageError("this message came from another consumer: acknowledge it there")
        return None

    def written(self) -> bool:
        """Whether every acknowledgment is written, or never will be; sends what is gathered (lock held)."""
        while True:
            written = [member.written() for member in list(self._members.values())]
            if not self._network.move_frames():
                return all(written)

    def flushed(self, written: bool, timeout: float | None) -> None:
        """Raise if not every acknowledgment is written."""
        for member in list(self._members.values()):
            if member.attachment.phase != "closed":
                with self._network.lock:
                    settled = written or member.written()
                member.flushed(settled, timeout)

    def begin_seek(self, position: Position) -> Seeking:
        """Raise `UsageError`: each topic's subscription is moved by itself, with `Client.seek`."""
        raise UsageError(
            f"a consumer of many topics cannot be moved to {position!r}: use client.seek for each"
        )

    # ---- the end -------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether there is nothing to close any more."""
        return self._network.forked or self._network.closed or self._over

    def blame(self, error: BaseException | None) -> None:
        """An exception ends the program's work: what it has in hand of any topic has failed."""
        for member in list(self._members.values()):
            member.blame(error)

    def begin_close(self) -> None:
        """Send what is acknowledged and say CLOSE, for every topic."""
        self._over = True
        with self._network.lock:
            for member in list(self._members.values()):
                member.attachment.close()
            self._network.move_frames()

    def is_closed(self) -> bool:
        """Whether the broker has answered every CLOSE (lock held)."""
        self._network.move_frames()
        return all(member.attachment.phase == "closed" for member in list(self._members.values()))

    def end(self) -> None:
        """Release everything, whatever the broker says."""
        self._over = True
        with self._network.lock:
            if self._watch is not None:
                self._network.home.session.withdraw(self._watch)
            for connection in self._network.everywhere():
                connection.tell_all()  # other threads may be waiting here
        for member in list(self._members.values()):
            member.end()
        self._turns.clear()

    def abandon(self) -> None:
        """Release what nobody will have."""
        self.begin_close()
        self.end()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: every call raises, by the network's own word."""


def _about(topic: str, error: IsterError) -> IsterError:
    """Say of which topic an error is."""
    if not isinstance(error, RemoteError):
        return error
    return RemoteError(error.code, f"topic {topic!r}: {error.text}", error.action)
