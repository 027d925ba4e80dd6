"""Administration: what workers and processes ask of the Directory, and what it has topics and subscriptions do.

client's request --Ask--> Directory --TopicTask, SubscriptionTask--> Frontend --Seek, Verify, ...--> the actor
                                    <--------------- Answer or Refused, by the ticket ---------------
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from ister.actors.mail import message
from ister.actors.runtime import Address
from ister.storage.catalogue import SubscriptionMeta, TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Locate:
    """Where does this topic live? (Frontend -> Directory; answered by `Located` or `Refused`)."""

    topic: str
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class LocateSubscription:
    """Where does this subscription live? It is created when it is new and `type` is given."""

    topic: str
    subscription: str
    type: str
    start: str
    options: dict[str, Any]  # as the client gave them: the Directory checks them
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class Located:
    """A topic, the node it lives on, and the node and endpoint of what was asked for: it, or a subscription of it."""

    ticket: int
    topic: TopicMeta
    topic_node: str
    endpoint: str
    node: str
    subscription: SubscriptionMeta | None = None


@message
@dataclass(frozen=True, slots=True)
class Refused:
    """No: with a code of `ister.errors.CODES`."""

    ticket: int
    code: str
    text: str


@message
@dataclass(frozen=True, slots=True)
class Ask:
    """An administrative request of a client (Frontend -> Directory; answered by `Answer` or `Refused`)."""

    operation: str
    arguments: bytes  # CBOR: a map
    reply: Address
    ticket: int
    session: int = 0  # of the client, as its worker numbers those that make ephemeral topics
    asked_s: float | None = None  # when, by the monotonic clock, which all processes of a machine share


@message
@dataclass(frozen=True, slots=True)
class KeptSessions:
    """Of the sessions here that made ephemeral topics these are there; the others are gone (Frontend -> Directory)."""

    node: str
    sessions: list[int]


@message
@dataclass(frozen=True, slots=True)
class Answer:
    """The result of an `Ask` or a `Describe`."""

    ticket: int
    body: bytes  # CBOR: the body of a RESULT


@message
@dataclass(frozen=True, slots=True)
class TopicTask:
    """Something to do to a topic (Directory -> its Frontend; answered by `Answer` or `Refused`)."""

    task: Literal["describe", "update", "verify", "repair", "ask-fenced", "delete"]
    topic: TopicMeta
    reply: Address
    ticket: int
    number: int | None = None  # of a verification, 0 for a new one


WITH_TOPIC: Final = "topic"  # the argument of a subscription's deletion: it goes with its topic


@message
@dataclass(frozen=True, slots=True)
class SubscriptionTask:
    """Something to do to a subscription (Directory -> the Frontend it lives with; answered likewise).

    `argument` says where to seek to, how to unblock, or whether a subscription is deleted with its topic.
    """

    task: Literal["start", "describe", "delete", "update", "seek", "unblock", "explain"]
    topic: TopicMeta
    subscription: SubscriptionMeta
    topic_node: str
    reply: Address
    ticket: int
    argument: str = ""


@message
@dataclass(frozen=True, slots=True)
class Describe:
    """Say what you know of yourself (-> any actor with something to say; answered by `Answer`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class StartSubscription:
    """Say when you are there, and have fixed where you begin (Frontend -> Subscription)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Update:
    """Your settings changed (Frontend -> Topic; answered by `Answer`)."""

    topic: TopicMeta
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class UpdateSubscription:
    """Your settings changed (Frontend -> Subscription; answered by `Answer`)."""

    meta: SubscriptionMeta
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Seek:
    """Continue at another place (Frontend -> Subscription; answered by `Answer`: a map with `position`, or `Refused`).

    `to` is "earliest", "latest", an offset in digits, or "time:<unix ms>".
    """

    to: str
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Unblock:
    """Continue behind the message that blocks you (Frontend -> Subscription; answered by a map with `messages`)."""

    action: str  # of `ister.actors.options.UNBLOCK_ACTIONS`
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Explain:
    """Say why you deliver nothing (Frontend -> Subscription; answered by the map `ister.actors.explain.State`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Verify every byte of your log, or say how far that is (Frontend -> Topic; answered by `Answer`).

    `number` is of the verification that is asked about, 0 for a new one; None: of whatever there is.
    """

    reply: Address
    ticket: int
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """Let readers continue behind what is damaged (Frontend -> Topic; answered by `Answer`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class AskFenced:
    """Has another broker taken you over? (Frontend -> Topic; answered by `Answer`: `fenced`, None if nobody knows)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Your topic, or your subscription, is deleted: tell your clients, and leave nothing (answered by `Answer`)."""

    reply: Address
    ticket: int
    with_topic: bool = False  # a subscription's: because its topic is


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A process is up, perhaps again: its next self knows nothing of what was said to the one before."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """A process is gone, with all actors in it."""

    node: str
