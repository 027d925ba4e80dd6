"""Administrative requests, and the meaning of their answers: topics, subscriptions, lists. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Generic, Literal, TypedDict, TypeVar

from ister import arguments
from ister.answers import as_flags, with_booleans
from ister.errors import RemoteError, UsageError
from ister.message import BaseBatch, BaseMessage
from ister.outstanding import Request
from ister.subscriptions import SUBSCRIPTION_TYPES, SubscriptionType

PEEK_GAP = 1000  # messages between two that are wanted: reading them costs less than another reader


# Seconds, or text with a unit ("500ms", "15m", "2h", "7d"): the same as on the command line.
Duration = float | str | timedelta


class TopicOptions(TypedDict, total=False):
    """The limits of what a reliable topic keeps; 0 removes a limit, `None` leaves it as it is."""

    retention: Duration | None  # the longest time
    retention_ms: int | None  # the same in milliseconds
    retention_bytes: int | None  # the most bytes, in whole segments
    retention_acknowledged: bool | int | None  # only what some subscription has not acknowledged
    message_ttl: Duration | None  # older messages are not delivered
    message_ttl_ms: int | None  # the same in milliseconds


class SubscriptionOptions(TypedDict, total=False):
    """How a subscription treats its messages; PROTOCOL.md, section 10, has the values, and what `None` stands for."""

    ack_timeout: Duration | None  # a message that a consumer holds longer is redelivered
    ack_timeout_ms: int | None  # the same in milliseconds
    backoff_min: Duration | None  # how long a message waits after its first failure, doubling with each
    backoff_ms_min: int | None  # the same in milliseconds
    backoff_max: Duration | None  # the longest of these waits
    backoff_ms_max: int | None  # the same in milliseconds
    max_deliveries: int | None  # a message with this many failures is poison; 0: no limit
    poison: Literal["dead-letter", "drop", "block"] | None  # what happens to poison
    dead_letter_topic: str | None
    paused: int | None  # True: nothing is delivered
    drop: Literal["oldest", "newest"] | None  # non-reliable: what is dropped from a full buffer
    buffer_messages_max: int | None  # non-reliable
    buffer_bytes_max: int | None  # non-reliable


_NO_OPTIONS = frozenset({"topic", "subscription", "dispatch", "durability", "ephemeral", "type", "start"})
_OPTIONS = frozenset(SubscriptionOptions.__annotations__)
_TOPIC_OPTIONS = frozenset(TopicOptions.__annotations__)
_DURATIONS = {
    "ack_timeout": "ack_timeout_ms",
    "backoff_min": "backoff_ms_min",
    "backoff_max": "backoff_ms_max",
    "retention": "retention_ms",
    "message_ttl": "message_ttl_ms",
}


def topic_request(topic: str, dispatch: str, durability: str | None, options: Mapping[str, Any]) -> Request:
    """Return the request that creates a topic. Raises `UsageError`."""
    asked: dict[str, Any] = {"topic": topic, "dispatch": dispatch, **topic_settings(options)}
    if durability is not None:
        asked["durability"] = durability
    return Request("topic.create", asked)


def subscription_request(
    topic: str, subscription: str, kind: str, start: Any, settings: dict[str, Any]
) -> Request:
    """Return the request that creates a subscription."""
    arguments.choice(kind, "a subscription's type", SUBSCRIPTION_TYPES)
    return about(
        "subscription.create", topic, subscription, type=kind, start=arguments.start(start), **settings
    )


def consumer_type(given: SubscriptionType | None, *, force: bool) -> SubscriptionType:
    """Return the type of a consumer that names none: Shared, or Exclusive if it takes the subscription over."""
    return given or ("exclusive" if force else "shared")


def unblock_request(topic: str, subscription: str, action: str) -> Request:
    """Return the request that decides what happens to the messages that block a subscription."""
    arguments.choice(action, "an action", ("retry", "drop", "dead-letter"))
    return about("subscription.unblock", topic, subscription, action=action)


def about(operation: str, topic: str, subscription: str, **more: Any) -> Request:
    """Return a request about one subscription."""
    return Request(operation, {"topic": topic, "subscription": subscription, **more})


def is_there_already(error: RemoteError, request: Request, *, exist_ok: bool) -> bool:
    """Whether creating failed only because the thing exists; a request that was sent twice may have created it."""
    return error.code in ("topic-exists", "subscription-exists") and (exist_ok or request.resent)


def check_same(answer: Mapping[str, Any], request: Request) -> None:
    """Raise if an existing thing differs from the request; options that the request leaves out may differ.

    Raises `RemoteError` topic-exists, subscription-exists, topic-options, subscription-options.
    """
    what = "subscription" if "subscription" in request.arguments else "topic"
    place = f"{what} {request.arguments[what]!r}"
    for name, shown in (("dispatch", "strategy"), ("durability", "durability"), ("type", "type")):
        asked, has_it = request.arguments.get(name), answer.get(shown)
        if asked in (None, has_it) or (name == "durability" and answer.get("strategy") != "reliable"):
            continue
        raise RemoteError(
            f"{what}-exists",
            f"{place} already exists, and its {name} is {has_it}, not {asked}; it cannot be changed: leave it out, or "
            "use another name",
        ) from None
    has = answer.get("options") if what == "subscription" else answer.get("settings")
    if has is None:  # an older broker does not say
        return
    for name, value in request.arguments.items():
        if name in _NO_OPTIONS or has.get(name, 0) == value:
            continue
        raise RemoteError(
            f"{what}-options",
            f"{place} already exists with {name} {has.get(name, 0)!r}, not {value!r:.100}: "
            f"leave the option out, or change it (`update_{what}`, `ister {what} update`)",
        ) from None


def is_gone_already(error: RemoteError, request: Request) -> bool:
    """Whether deleting failed only because an earlier attempt of the same request has done it."""
    return error.code in ("unknown-topic", "unknown-subscription") and request.resent


def is_taken_over_already(error: RemoteError, request: Request) -> bool:
    """Whether a takeover failed only because an earlier attempt of the same request has done it."""
    return error.code == "topic-exists" and (request.resent or request.failures > 0)


class Listing:
    """A list of any length, requested in pages: iterate over its requests, and have each answered."""

    def __init__(self, operation: str, many: str, one: str, asked: dict[str, Any]) -> None:
        """`many` is the list's key in an answer, `one` the name's key in each entry."""
        self.found: list[Any] = []  # entries as `ister.answers` has them
        self._operation = operation
        self._many = many
        self._one = one
        self._asked = asked

    def __iter__(self) -> Iterator[Request]:
        """Yield requests; each is answered before the next is taken."""
        asked = self._asked
        while True:
            request = Request(self._operation, asked)
            yield request
            page = request.result[self._many]
            self.found.extend(map(with_booleans, page))
            if not request.result.get("more") or not page:
                return
            asked = {**self._asked, "after": page[-1][self._one]}


def topic_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a topic's limits as they travel; raises `UsageError`."""
    settings: dict[str, Any] = {}
    for name, value in _given(as_flags(options), _TOPIC_OPTIONS, "topic"):
        if name in _DURATIONS:
            settings[_DURATIONS[name]] = arguments.milliseconds(value, name)
        else:
            settings[name] = arguments.number(value, name)
    return settings


def _given(options: Mapping[str, Any], known: frozenset[str], what: str) -> Iterator[tuple[str, Any]]:
    """Yield the options that are given; raises `UsageError` for an unknown one, or one given in two units."""
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"a {what} has no option {name!r}; it has {', '.join(sorted(known))}")
        if value is None:
            continue
        if options.get(_DURATIONS.get(name, "")) is not None:
            raise UsageError(f"give either {name} or {_DURATIONS[name]}, not both")
        yield name, value


def subscription_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a subscription as they travel; raises `UsageError`."""
    settings: dict[str, Any] = {}
    for name, value in _given(options, _OPTIONS, "subscription"):
        if name in _DURATIONS:
            least = 1 if name == "ack_timeout" else 0
            settings[_DURATIONS[name]] = max(least, arguments.milliseconds(value, name))
        elif name == "drop":
            settings[name] = arguments.choice(value, name, ("oldest", "newest"))
        elif name == "poison":
            settings[name] = arguments.choice(value, name, ("dead-letter", "drop", "block"))
        elif name == "dead_letter_topic":
            settings[name] = arguments.text(value, name)
        elif name == "paused":
            settings[name] = int(arguments.number(int(value), name))
        else:
            settings[name] = arguments.number(value, name)
    return settings


P = TypeVar("P", bound=BaseMessage)


class Peek(Generic[P]):
    """The next messages of a subscription, found by reading its topic, without touching the subscription.

    Unacknowledged messages may lie far apart: each of `places` (first, end) is read by a reader of its own.
    """

    def __init__(self, shown: Mapping[str, Any], count: int, start: int = 0) -> None:
        """`shown` is the answer of `subscription.show`; only messages from the offset `start` on are looked for."""
        if "pending" not in shown:
            raise UsageError(
                f"subscription {shown.get('subscription')!r} keeps no messages: there is nothing to peek at"
            )
        self.found: list[P] = []
        self.places: list[tuple[int, int]] = []
        self._count = count
        self._wanted: list[tuple[int, int]] = []
        left = count
        for begin, end in shown["pending"]:
            if left <= 0:
                break
            first = max(begin, start)
            if first >= end:
                continue
            until = min(end, first + left)
            left -= until - first
            self._wanted.append((first, until))
            if self.places and first - self.places[-1][1] <= PEEK_GAP:
                self.places[-1] = (self.places[-1][0], until)
            else:
                self.places.append((first, until))

    def take(self, batch: BaseBatch[P], end: int) -> bool:
        """Keep the wanted messages of a batch; return False once none before `end` can follow."""
        for first, until in self._wanted:
            self.found += [message for message in batch if first <= message.offset < until]
        return not len(batch) or batch[-1].offset + 1 < end
