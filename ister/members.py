"""The topics of a pattern's consumer: asking which there are, opening a consumer for each, and leaving those that go.

Decides when to ask and what a deleted topic means; `following.py` decides which of the topics that match are wanted.
Receiving and acknowledging are in `wildcard.py`. May touch: the network (to send), and never waits.

Invariants
- the topics share the credit, so that memory is bounded however many they are
- the threads that receive also follow topics, one at a time: there is no background thread
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from ister.attachment import EVENTS_MAX, Attachment
from ister.consumer import Consumer
from ister.errors import IsterError, RemoteError, TimeoutExpiredError
from ister.following import Following, share
from ister.handing import CREDIT_MESSAGES_MAX
from ister.inbox import GONE
from ister.message import Event
from ister.outstanding import Request
from ister.words import counted

if TYPE_CHECKING:
    from ister.network import Network


class OpenMember(Protocol):
    """Starts to open the consumer of one topic, which was created `later` or existed at first."""

    def __call__(
        self, topic: str, *, later: bool, credit_messages: int | None, credit_bytes: int
    ) -> Consumer:
        """Return it; does not wait. Without `credit_messages` its credit follows the program's pace."""


class Members:
    """One consumer for each topic that a pattern stands for now."""

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
        """`left_out` are topics that match, and are not wanted. For the others see `WildcardConsumer`."""
        self.turns: OrderedDict[Attachment, None] = (
            OrderedDict()
        )  # those that have something, in order (lock held)
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)  # of all of them
        self.by_attachment: dict[object, Consumer] = {}  # others only read it
        self._network = network
        self._pattern = pattern
        self._subscription = subscription
        self._open_member = open_member
        self._paced = credit_messages is None
        self._credit = (CREDIT_MESSAGES_MAX if credit_messages is None else credit_messages, credit_bytes)
        self._following = (
            threading.RLock()
        )  # who changes the rest; taken before the network's lock, never after it
        self._followed = Following(list(left_out))
        self._members: dict[str, Consumer] = {}  # by topic
        # by topic: its creation time, which tells it from others of that name
        self._created: dict[str, int] = {}
        self._dropped = 0  # by topics that are gone
        self._watch: Request | None = None
        # topics of which the broker deleted the subscription, perhaps with the topic: when created, and the error
        self._suspected: dict[str, tuple[int, IsterError]] = {}
        self._plain = False  # the broker does not say which topics were created meanwhile

    def __len__(self) -> int:
        return len(self._members)

    def all(self) -> list[Consumer]:
        """Return the consumers there are now."""
        return list(self._members.values())

    @property
    def topics(self) -> list[str]:
        """The topics, by name."""
        return sorted(self._members)

    @property
    def dropped(self) -> int:
        """How many messages of non-reliable topics were dropped, also by topics that are gone."""
        return self._dropped + sum(member.dropped for member in self.all())

    # ---- which topics there are ----------------------------------------------------------------------------------

    def first_look(self) -> Request:
        """Return the request for the matching topics, and which were created while no consumer was connected."""
        asked = {"pattern": self._pattern}
        return Request("topic.watch", asked if self._plain else {**asked, "subscription": self._subscription})

    def asked_too_much(self, error: BaseException) -> bool:
        """Note whether the broker is too old to say which topics were created meanwhile, and is not asked for it."""
        if self._plain or not isinstance(error, RemoteError) or error.code != "invalid-argument":
            return False
        self._plain = True
        return True

    def follow(self, answer: dict[str, Any], *, later: bool = True) -> None:
        """Consume the topics that match now, and ask to be told of changes."""
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
                    member.attachment.handing.resize(messages, size)
                network.move_frames()
        for topic in come:
            member = self._open_member(
                topic,
                later=later or topic in meanwhile,
                credit_messages=None if self._paced else messages,
                credit_bytes=size,
            )
            self._members[topic] = self.by_attachment[member.attachment] = member
            self._created[topic] = listed[topic]
            with network.lock:
                member.attachment.events = self.events
                member.attachment.take_turns(self.turns)
                if self._paced:
                    member.attachment.handing.resize(messages, size)
        self._ask(Request("topic.watch", {"pattern": self._pattern, "version": answer["version"]}))
        for topic, error in deleted.items():
            raise about(topic, error)

    def _ask(self, request: Request) -> None:
        network = self._network
        with network.lock:
            if self._watch is not None:
                network.home.session.withdraw(self._watch)
            self._watch = request
            network.home.session.request(request, network.clock.monotonic())
            network.home.touch()

    @property
    def have_changed(self) -> bool:
        """Whether the broker has told of other topics, and `look` has something to do."""
        return self._watch is not None and self._watch.done

    def withdraw(self) -> None:
        """Follow no more topics (lock held)."""
        if self._watch is not None:
            self._network.home.session.withdraw(self._watch)

    def look(self) -> None:
        """Handle the broker's report of a change."""
        watch = self._watch
        if watch is None or not watch.done:
            return
        with self._following:
            watch = self._watch
            if watch is None or not watch.done:
                return  # another thread has done it
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
        """Stop consuming a topic."""
        self._members.pop(member.topic, None)
        self._created.pop(member.topic, None)
        self.by_attachment.pop(member.attachment, None)
        self.turns.pop(member.attachment, None)
        self._dropped += member.dropped
        member.begin_close()
        member.end()

    def lost(self, member: Consumer) -> None:
        """Handle the closing of a topic's consumer by the broker: raise its error, unless the topic is gone."""
        with self._following:
            if self._members.get(member.topic) is member:
                self._leave_lost(member)

    def _leave_lost(self, member: Consumer) -> None:
        error, created = member.attachment.error, self._created[member.topic]
        self._leave(member)
        if error is None or error.code in (*GONE, "subscription-deleted"):
            if error is not None and error.code == "subscription-deleted":
                self._suspected[member.topic] = created, error  # was it closed by itself, or with its topic?
            self._ask(self.first_look())
            return
        self._followed.refuse(member.topic, created)
        raise about(member.topic, error)

    def is_open(self) -> bool:
        """Whether the broker has answered for every topic (lock held)."""
        self._network.move_frames()
        return all(member.attachment.opened or member.attachment.phase == "closed" for member in self.all())

    def check_open(self, seconds: float | None) -> None:
        """Raise if some topic could not be opened."""
        waiting = 0
        for topic, member in list(self._members.items()):
            attachment = member.attachment
            if attachment.error is not None:
                if attachment.error.code not in GONE:
                    raise about(topic, attachment.error)
            elif not attachment.opened:
                if attachment.trouble is not None and attachment.trouble.code == "subscription-busy":
                    raise about(topic, attachment.trouble)
                waiting += 1
        if waiting:
            raise TimeoutExpiredError(
                f"{waiting} of "
                f"{counted(len(self._members), 'topic that matches', 'topics that match')} "
                f"{self._pattern!r} were not opened within "
                f"{seconds} s"
            )


def about(topic: str, error: IsterError) -> IsterError:
    """Return an error that names its topic."""
    if not isinstance(error, RemoteError):
        return error
    return RemoteError(error.code, f"topic {topic!r}: {error.text}", error.action)
