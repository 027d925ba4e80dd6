"""Administration: what processes ask the Directory, and the tasks that the Directory gives topics and subscriptions.

client's request --Ask--> Directory --TopicTask, SubscriptionTask--> Frontend --Seek, Verify, ...--> the actor
<--------------- Answer or Refused, by the ticket ---------------
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from ister.actors.mail import message
from ister.actors.runtime import Address
from ister.storage.meta import SubscriptionMeta, TopicMeta


@message
@dataclass(frozen=True, slots=True)
class Locate:
    """Where does this topic run? (Frontend -> Directory; answered by `Located` or `Refused`)."""

    topic: str
    reply: Address
    ticket: int


@message
@dataclass(frozen=True, slots=True)
class LocateSubscription:
    """Where does this subscription run? It is created when it is new and `type` is given."""

    topic: str
    subscription: str
    type: str
    start: str
    options: dict[str, Any]  # as the client sent them: the Directory checks them
    reply: Address
    ticket: int
    asked_s: float | None = None  # monotonic; when it was asked first, if this repeats it


@message
@dataclass(frozen=True, slots=True)
class Located:
    """A topic and the node it runs on, and the node and endpoint of what was asked for: the topic or a subscription."""

    ticket: int
    topic: TopicMeta
    topic_node: str
    endpoint: str
    node: str
    subscription: SubscriptionMeta | None = None


@message
@dataclass(frozen=True, slots=True)
class Refused:
    """The refusal of a request, with a code of `ister.errors.CODES`."""

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
    session: int = 0  # the client's session, by the number its worker gives those that make ephemeral topics
    # when it was asked, in seconds of the monotonic clock, which all processes of a machine share
    asked_s: float | None = None


@message
@dataclass(frozen=True, slots=True)
class KeptSessions:
    """The sessions that made ephemeral topics and still exist; all others have ended (Frontend -> Directory)."""

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
    """A task for a topic (Directory -> its Frontend; answered by `Answer` or `Refused`)."""

    task: Literal["describe", "update", "verify", "repair", "ask-fenced", "delete"]
    topic: TopicMeta
    reply: Address
    ticket: int
    number: int | None = None  # of a verification; 0: start one


WITH_TOPIC: Final = "topic"  # the argument with which a subscription is deleted together with its topic


@message
@dataclass(frozen=True, slots=True)
class SubscriptionTask:
    """A task for a subscription (Directory -> the Frontend of its worker; answered by `Answer` or `Refused`).

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
    """A request to an actor to describe itself (answered by `Answer`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class StartSubscription:
    """Answer when you are ready and your start offset is fixed (Frontend -> Subscription)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Update:
    """The topic's settings changed (Frontend -> Topic; answered by `Answer`)."""

    topic: TopicMeta
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class UpdateSubscription:
    """The subscription's settings changed (Frontend -> Subscription; answered by `Answer`)."""

    meta: SubscriptionMeta
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Seek:
    """Continue at another offset (Frontend -> Subscription; answered by `Answer`: a map with `position`, or `Refused`).

    `to` is "earliest", "latest", an offset in digits, or "time:<unix ms>".
    """

    to: str
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Unblock:
    """Continue after the message that blocks (Frontend -> Subscription; answered by a map with `messages`)."""

    action: str  # one of `ister.actors.options.UNBLOCK_ACTIONS`
    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Explain:
    """Why is nothing delivered? (Frontend -> Subscription; answered by the map `ister.actors.explain.State`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Verify every byte of the log, or report the progress (Frontend -> Topic; answered by `Answer`).

    `number` is the verification that is asked about; 0: start one; None: report on any.
    """

    reply: Address
    ticket: int
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """Let readers continue after damaged offsets (Frontend -> Topic; answered by `Answer`)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class AskFenced:
    """Did another broker take the topic over? (Frontend -> Topic; answered by `Answer`: `fenced`, None if unknown)."""

    reply: Address
    ticket: int


@dataclass(frozen=True, slots=True)
class Delete:
    """The topic or subscription is deleted: tell the clients, and delete the files (answered by `Answer`)."""

    reply: Address
    ticket: int
    with_topic: bool = False  # of a subscription: its topic is deleted too


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A process is up, perhaps after a restart: then it has lost what its predecessor was told."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """A process is down, with all its actors."""

    node: str
