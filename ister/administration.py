"""Single requests to a broker: topics, subscriptions, status. The part of `Client` that opens nothing.

Pure but for `_ask`, with which `Client` waits for an answer.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Literal, Unpack

from ister import arguments, requests
from ister.answers import (
    Explanation,
    Status,
    SubscriptionDetail,
    SubscriptionInfo,
    TopicDetail,
    TopicInfo,
    with_booleans,
)
from ister.backoff import doubled
from ister.consumer import Position
from ister.errors import RemoteError
from ister.outstanding import Request
from ister.requests import SubscriptionOptions, TopicOptions
from ister.subscriptions import SubscriptionType

VERIFY_POLL_S: Final = 0.2  # seconds between two questions for the progress of a verification
VERIFY_POLL_S_MAX: Final = 1.0  # while it waits for others


class Administration(ABC):
    """The administrative requests of `Client`; each raises `RemoteError` and `TimeoutExpiredError`."""

    @abstractmethod
    def _ask(self, request: Request, timeout: float | None) -> Any:
        """Send a request and return its answer within `timeout` seconds (`None`: the client's own), or raise."""

    # ---- topics --------------------------------------------------------------------------------------------------

    def create_topic(
        self,
        topic: str,
        *,
        dispatch: Literal["reliable", "non-reliable"] = "reliable",
        durability: Literal["fsync", "os", "cloud"] | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
        **options: Unpack[TopicOptions],
    ) -> TopicInfo:
        """Create a topic and return its description.

        `durability` says when a receipt of a reliable topic is sent: after an `fsync` (the broker's default), once the
        operating system has the bytes (`os`), or once the store has them (`cloud`). With `exist_ok`, an existing topic
        of that name and dispatch is returned instead. The options are limits of what a reliable topic keeps: see
        `update_topic`. Raises `RemoteError` (`topic-exists`, `invalid-name`, ...), `TimeoutExpiredError`.
        """
        request = requests.topic_request(topic, dispatch, durability, options)
        try:
            answer: TopicInfo = with_booleans(self._ask(request, timeout))
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = self.topic(topic, timeout=timeout)
            requests.check_same(answer, request)
        return answer

    def update_topic(
        self, topic: str, *, timeout: float | None = None, **options: Unpack[TopicOptions]
    ) -> TopicInfo:
        """Change what a reliable topic keeps, and return its description.

        `retention`: the longest time; `retention_bytes`: the most bytes, in whole segments; `retention_acknowledged`:
        only what some subscription has not acknowledged; `message_ttl`: older messages are not delivered. Durations are
        seconds, a `timedelta`, or text like "7d"; 0 removes a limit. Messages that are not in the store yet are kept in
        any case. Raises `RemoteError` (`unknown-topic`, `invalid-argument`).
        """
        answer: TopicInfo = with_booleans(
            self._ask(Request("topic.update", {"topic": topic, **requests.topic_settings(options)}), timeout)
        )
        return answer

    def verify_topic(
        self,
        topic: str,
        *,
        timeout: float | None = None,
        progress: Callable[[int, int], Any] | None = None,
        waiting: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Have the broker check every byte of a topic's log, and return its report.

        The report has `messages`, `bytes`, `segments`, and `damaged`: a list of ranges (`first`, `end`, `reason`, ...).
        `progress(bytes, bytes_total)` is called from time to time, `waiting()` in its place while the topic waits for
        the checks of others: a broker checks one large log at a time. Raises `RemoteError`.
        """
        asked = {"topic": topic, "verification": 0}
        waits = 0
        while True:
            answer = self._ask(Request("topic.verify", dict(asked)), timeout)
            asked["verification"] = answer.get("verification", 0)
            waits = waits + 1 if answer.get("waiting") else 0
            if waits:
                if waiting is not None:
                    waiting()
            elif progress is not None and "bytes_total" in answer:
                progress(answer["bytes"], answer["bytes_total"])
            if answer["done"]:
                report: dict[str, Any] = answer["report"]
                return report
            threading.Event().wait(doubled(VERIFY_POLL_S, VERIFY_POLL_S_MAX, max(0, waits - 1)))

    def repair_topic(self, topic: str, *, skip_damaged: bool, timeout: float | None = None) -> dict[str, Any]:
        """Let every subscription of a topic continue after damaged offsets; returns the ranges that are skipped now."""
        request = Request("topic.repair", {"topic": topic, "skip_damaged": skip_damaged})
        answer: dict[str, Any] = self._ask(request, timeout)
        return answer

    def topics(self, *, timeout: float | None = None) -> list[TopicInfo]:
        """Return every topic, by name."""
        return self._list(requests.Listing("topic.list", "topics", "topic", {}), timeout)

    def topic(self, topic: str, *, timeout: float | None = None) -> TopicDetail:
        """Return a topic's description; raises `RemoteError` (`unknown-topic`)."""
        answer: TopicDetail = with_booleans(self._ask(Request("topic.show", {"topic": topic}), timeout))
        return answer

    def delete_topic(self, topic: str, *, timeout: float | None = None) -> None:
        """Delete a topic, its messages and its subscriptions; raises `RemoteError` (`unknown-topic`)."""
        self._delete(Request("topic.delete", {"topic": topic}), timeout)

    def forget_topic(self, topic: str, *, timeout: float | None = None) -> None:
        """Delete this broker's part of a topic that another broker has taken over; the store is not changed.

        That is the topic's log here, which may have messages that the store has not, and its subscriptions. The topic
        is not restored by itself: use `takeover_topic`, or create a new topic of that name. Raises `RemoteError`
        (`unknown-topic`; `invalid-argument` if no other broker has it).
        """
        self._delete(Request("topic.forget", {"topic": topic}), timeout)

    def takeover_topic(self, topic: str, *, timeout: float | None = None) -> TopicInfo:
        """Claim a topic in the store for this broker, and continue at the end of its history there.

        This broker's own part of it is deleted first (see `forget_topic`); a broker that owns it now is fenced. Returns
        the topic's description. Raises `RemoteError` (`unknown-topic` if the store does not have it; `invalid-argument`
        if it is this broker's already).
        """
        try:
            self.forget_topic(topic, timeout=timeout)
        except RemoteError as error:
            if error.code != "unknown-topic":
                raise
        request = Request("topic.takeover", {"topic": topic})
        try:
            answer: TopicInfo = with_booleans(self._ask(request, timeout))
        except RemoteError as error:
            if not requests.is_taken_over_already(error, request):
                raise
            answer = self.topic(topic, timeout=timeout)
        return answer

    # ---- subscriptions -------------------------------------------------------------------------------------------

    def create_subscription(
        self,
        topic: str,
        subscription: str,
        *,
        type: SubscriptionType = "shared",
        start: Position = "latest",
        exist_ok: bool = False,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> SubscriptionInfo:
        """Create a subscription without consuming from it; `start` is where it begins to read.

        With `exist_ok`, an existing one of that name, type and options is returned instead. `update_subscription` lists
        the options. Raises `RemoteError` (`subscription-exists`, `unknown-topic`, ...), `UsageError`.
        """
        settings = requests.subscription_settings(options)
        request = requests.subscription_request(topic, subscription, type, start, settings)
        try:
            answer: SubscriptionInfo = with_booleans(self._ask(request, timeout))
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = self.subscription(topic, subscription, timeout=timeout)
            requests.check_same(answer, request)
        return answer

    def subscriptions(self, topic: str, *, timeout: float | None = None) -> list[SubscriptionInfo]:
        """Return every subscription of a topic, by name."""
        listing = requests.Listing("subscription.list", "subscriptions", "subscription", {"topic": topic})
        return self._list(listing, timeout)

    def subscription(
        self, topic: str, subscription: str, *, timeout: float | None = None
    ) -> SubscriptionDetail:
        """Return a subscription's description; raises `RemoteError` (`unknown-subscription`)."""
        answer: SubscriptionDetail = with_booleans(
            self._ask(requests.about("subscription.show", topic, subscription), timeout)
        )
        return answer

    def update_subscription(
        self,
        topic: str,
        subscription: str,
        *,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> SubscriptionInfo:
        """Change options of a subscription, also for its present consumers, and return its description.

        Defaults are in brackets. `ack_timeout` (5 minutes): a message that a consumer holds longer is redelivered.
        `backoff_min` and `backoff_max` (1 s, 1 minute): how long a failed message waits, doubling with each failure.
        `max_deliveries` (20; 0: no limit): a message with this many failures is poison, and `poison` says what happens
        to it: "dead-letter" (the default; to `dead_letter_topic`, by default `<topic>.<subscription>.dlq`), "drop" or
        "block". `paused`: nothing is delivered. For non-reliable topics: `buffer_messages_max` (100,000) and
        `buffer_bytes_max` (16 MiB) are buffered for slow consumers, and `drop` ("oldest" or "newest") says what is
        dropped from a full buffer. Durations are seconds, a `timedelta`, or text like "15m". Raises `RemoteError`
        (`unknown-subscription`, `invalid-argument`), `UsageError`.
        """
        settings = requests.subscription_settings(options)
        answer: SubscriptionInfo = with_booleans(
            self._ask(requests.about("subscription.update", topic, subscription, **settings), timeout)
        )
        return answer

    def pause(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Stop delivery from a subscription until `resume`; consumers stay attached."""
        self.update_subscription(topic, subscription, paused=True, timeout=timeout)

    def resume(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Resume delivery from a paused subscription."""
        self.update_subscription(topic, subscription, paused=False, timeout=timeout)

    def seek(self, topic: str, subscription: str, position: Position, *, timeout: float | None = None) -> int:
        """Move a subscription to "earliest", "latest", an offset or the first message of a time (`datetime`).

        Returns the offset of the next message. Everything below it counts as acknowledged, nothing from there on does;
        its consumers are told. Raises `RemoteError` (`unknown-subscription`, `offset-out-of-range`, ...).
        """
        place = arguments.start(position, "a position")
        answer = self._ask(requests.about("subscription.seek", topic, subscription, to=place), timeout)
        reached: int = answer["position"]
        return reached

    def unblock(
        self,
        topic: str,
        subscription: str,
        action: Literal["retry", "drop", "dead-letter"],
        *,
        timeout: float | None = None,
    ) -> int:
        """Decide what happens to the messages that block a subscription, and return how many there were.

        Raises `RemoteError` (`unknown-subscription`).
        """
        messages: int = self._ask(requests.unblock_request(topic, subscription, action), timeout)["messages"]
        return messages

    def explain(self, topic: str, subscription: str, *, timeout: float | None = None) -> Explanation:
        """Return why messages of a subscription flow or do not flow.

        `flowing` says which; `reasons` is a list of maps with a `code`, a `text` for people, and numbers; `numbers` is
        a map of the values it was concluded from. Raises `RemoteError` (`unknown-subscription`).
        """
        answer: Explanation = self._ask(requests.about("subscription.explain", topic, subscription), timeout)
        return answer

    def delete_subscription(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Delete a subscription and its cursor; its consumers are closed."""
        self._delete(requests.about("subscription.delete", topic, subscription), timeout)

    def status(self, *, timeout: float | None = None) -> Status:
        """Return the state of the broker's processes."""
        answer: Status = self._ask(Request("status", {}), timeout)
        return answer

    # ---- how it is asked -----------------------------------------------------------------------------------------

    def _delete(self, request: Request, timeout: float | None) -> None:
        try:
            self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_gone_already(error, request):
                raise

    def _list(self, listing: requests.Listing, timeout: float | None) -> list[Any]:
        for request in listing:
            self._ask(request, timeout)
        return listing.found
