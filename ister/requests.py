"""What is asked of a broker once, and what its answer means: topics, subscriptions, listings. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ister import arguments
from ister.errors import RemoteError
from ister.session import Request


def topic_request(topic: str, dispatch: str, durability: str | None, retention: dict[str, int]) -> Request:
    """Return the request that creates a topic."""
    asked: dict[str, Any] = {"topic": topic, "dispatch": dispatch, **retention}
    if durability is not None:
        asked["durability"] = durability
    return Request("topic.create", asked)


def subscription_request(
    topic: str, subscription: str, kind: str, start: str | int, settings: dict[str, Any]
) -> Request:
    """Return the request that creates a subscription."""
    asked = {"topic": topic, "subscription": subscription, "type": kind, "start": start, **settings}
    return Request("subscription.create", asked)


def is_there_already(error: RemoteError, request: Request, *, exist_ok: bool) -> bool:
    """Whether creating failed only because it is there; a request that was sent twice may have made it itself."""
    return error.code in ("topic-exists", "subscription-exists") and (exist_ok or request.resent)


def differs(answer: dict[str, Any], request: Request) -> bool:
    """Whether what is there is not what the request asked for."""
    asked = request.arguments
    if asked.get("dispatch", answer.get("strategy")) != answer.get("strategy"):
        return True
    if answer.get("strategy") == "reliable" and asked.get(
        "durability", answer.get("durability")
    ) != answer.get("durability"):
        return True
    return bool(asked.get("type", answer.get("type")) != answer.get("type"))


def is_gone_already(error: RemoteError, request: Request) -> bool:
    """Whether deleting failed only because an earlier try of the same request had done it."""
    return error.code in ("unknown-topic", "unknown-subscription") and request.resent


class Listing:
    """A listing of any length, asked for a page at a time: iterate over its requests, having each answered."""

    def __init__(self, operation: str, many: str, one: str, asked: dict[str, Any]) -> None:
        """`many` is the list's key in an answer, `one` the name's key in each entry."""
        self.found: list[dict[str, Any]] = []
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
            self.found.extend(page)
            if not request.result.get("more") or not page:
                return
            asked = {**self._asked, "after": page[-1][self._one]}


def subscription_settings(
    drop: str | None, ack_timeout: float | None, buffer_messages_max: int | None
) -> dict[str, Any]:
    """Return the settings that count when a subscription is made; `ack_timeout` in seconds."""
    settings: dict[str, Any] = {}
    if drop is not None:
        settings["drop"] = arguments.choice(drop, "drop", ("oldest", "newest"))
    if ack_timeout is not None:
        settings["ack_timeout_ms"] = max(1, round(arguments.seconds(ack_timeout, "ack_timeout") * 1000))
    if buffer_messages_max is not None:
        settings["buffer_messages_max"] = arguments.number(buffer_messages_max, "buffer_messages_max", 1)
    return settings
