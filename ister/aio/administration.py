"""The administrative requests of `ister.administration`, to be awaited."""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Unpack

from ister import arguments, requests
from ister.administration import VERIFY_POLL_S, VERIFY_POLL_S_MAX
from ister.aio.waiting import Waiting
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


class Administration(Waiting):
    """The administrative requests of `Client`; each raises `RemoteError` and `TimeoutExpiredError`."""

    # ---- topics --------------------------------------------------------------------------------------------------

    async def create_topic(
        self,
        topic: str,
        *,
        dispatch: Literal["reliable", "non-reliable"] = "reliable",
        durability: Literal["fsync", "os", "cloud"] | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
        **options: Unpack[TopicOptions],
    ) -> TopicInfo:
        """Create a topic; see `ister.Client.create_topic`."""
        request = requests.topic_request(topic, dispatch, durability, options)
        try:
            answer: TopicInfo = with_booleans(await self._ask(request, timeout))
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = await self.topic(topic, timeout=timeout)
            requests.check_same(answer, request)
        return answer

    async def update_topic(
        self, topic: str, *, timeout: float | None = None, **options: Unpack[TopicOptions]
    ) -> TopicInfo:
        """Change what a topic keeps; see `ister.Client.update_topic`."""
        answer: TopicInfo = with_booleans(
            await self._ask(
                Request("topic.update", {"topic": topic, **requests.topic_settings(options)}), timeout
            )
        )
        return answer

    async def verify_topic(
        self,
        topic: str,
        *,
        timeout: float | None = None,
        progress: Callable[[int, int], Any] | None = None,
        waiting: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Have the broker check every byte of a topic's log; see `ister.Client.verify_topic`."""
        asked = {"topic": topic, "verification": 0}
        waits = 0
        while True:
            answer = await self._ask(Request("topic.verify", dict(asked)), timeout)
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
            await asyncio.sleep(doubled(VERIFY_POLL_S, VERIFY_POLL_S_MAX, max(0, waits - 1)))

    async def repair_topic(
        self, topic: str, *, skip_damaged: bool, timeout: float | None = None
    ) -> dict[str, Any]:
        """Let subscriptions continue after damaged offsets; see `ister.Client.repair_topic`."""
        request = Request("topic.repair", {"topic": topic, "skip_damaged": skip_damaged})
        answer: dict[str, Any] = await self._ask(request, timeout)
        return answer

    async def topics(self, *, timeout: float | None = None) -> list[TopicInfo]:
        """Return every topic, by name."""
        listing = requests.Listing("topic.list", "topics", "topic", {})
        await self._drive(iter(listing), timeout)
        return listing.found

    async def topic(self, topic: str, *, timeout: float | None = None) -> TopicDetail:
        """Return a topic's description; raises `RemoteError` (`unknown-topic`)."""
        answer: TopicDetail = with_booleans(await self._ask(Request("topic.show", {"topic": topic}), timeout))
        return answer

    async def delete_topic(self, topic: str, *, timeout: float | None = None) -> None:
        """Delete a topic, its messages and its subscriptions."""
        await self._delete(Request("topic.delete", {"topic": topic}), timeout)

    async def forget_topic(self, topic: str, *, timeout: float | None = None) -> None:
        """Delete this broker's part of a topic that another one owns; see `ister.Client.forget_topic`."""
        await self._delete(Request("topic.forget", {"topic": topic}), timeout)

    async def takeover_topic(self, topic: str, *, timeout: float | None = None) -> TopicInfo:
        """Claim a topic in the store for this broker; see `ister.Client.takeover_topic`."""
        try:
            await self.forget_topic(topic, timeout=timeout)
        except RemoteError as error:
            if error.code != "unknown-topic":
                raise
        request = Request("topic.takeover", {"topic": topic})
        try:
            answer: TopicInfo = with_booleans(await self._ask(request, timeout))
        except RemoteError as error:
            if not requests.is_taken_over_already(error, request):
                raise
            answer = await self.topic(topic, timeout=timeout)
        return answer

    # ---- subscriptions -------------------------------------------------------------------------------------------

    async def create_subscription(
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
        """Create a subscription without attaching to it; see `ister.Client.create_subscription`."""
        settings = requests.subscription_settings(options)
        request = requests.subscription_request(topic, subscription, type, start, settings)
        try:
            answer: SubscriptionInfo = with_booleans(await self._ask(request, timeout))
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = await self.subscription(topic, subscription, timeout=timeout)
            requests.check_same(answer, request)
        return answer

    async def subscriptions(self, topic: str, *, timeout: float | None = None) -> list[SubscriptionInfo]:
        """Return every subscription of a topic, by name."""
        listing = requests.Listing("subscription.list", "subscriptions", "subscription", {"topic": topic})
        await self._drive(iter(listing), timeout)
        return listing.found

    async def subscription(
        self, topic: str, subscription: str, *, timeout: float | None = None
    ) -> SubscriptionDetail:
        """Return a subscription's description; raises `RemoteError` (`unknown-subscription`)."""
        request = requests.about("subscription.show", topic, subscription)
        answer: SubscriptionDetail = with_booleans(await self._ask(request, timeout))
        return answer

    async def update_subscription(
        self,
        topic: str,
        subscription: str,
        *,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> SubscriptionInfo:
        """Change options of a subscription; see `ister.Client.update_subscription`."""
        settings = requests.subscription_settings(options)
        request = requests.about("subscription.update", topic, subscription, **settings)
        answer: SubscriptionInfo = with_booleans(await self._ask(request, timeout))
        return answer

    async def pause(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Stop delivery from a subscription until `resume`; consumers stay attached."""
        await self.update_subscription(topic, subscription, paused=True, timeout=timeout)

    async def resume(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Resume delivery from a paused subscription."""
        await self.update_subscription(topic, subscription, paused=False, timeout=timeout)

    async def seek(
        self, topic: str, subscription: str, position: Position, *, timeout: float | None = None
    ) -> int:
        """Move a subscription; see `ister.Client.seek`."""
        place = arguments.start(position, "a position")
        answer = await self._ask(requests.about("subscription.seek", topic, subscription, to=place), timeout)
        reached: int = answer["position"]
        return reached

    async def unblock(
        self,
        topic: str,
        subscription: str,
        action: Literal["retry", "drop", "dead-letter"],
        *,
        timeout: float | None = None,
    ) -> int:
        """Decide what happens to the messages that block a subscription; see `ister.Client.unblock`."""
        request = requests.unblock_request(topic, subscription, action)
        messages: int = (await self._ask(request, timeout))["messages"]
        return messages

    async def explain(self, topic: str, subscription: str, *, timeout: float | None = None) -> Explanation:
        """Return why messages of a subscription flow or do not flow; see `ister.Client.explain`."""
        request = requests.about("subscription.explain", topic, subscription)
        answer: Explanation = await self._ask(request, timeout)
        return answer

    async def delete_subscription(
        self, topic: str, subscription: str, *, timeout: float | None = None
    ) -> None:
        """Delete a subscription and its cursor; its consumers are closed."""
        request = requests.about("subscription.delete", topic, subscription)
        await self._delete(request, timeout)

    async def _delete(self, request: Request, timeout: float | None) -> None:
        try:
            await self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_gone_already(error, request):
                raise

    # ---- the broker ----------------------------------------------------------------------------------------------

    async def status(self, *, timeout: float | None = None) -> Status:
        """Return the state of the broker's processes."""
        answer: Status = await self._ask(Request("status", {}), timeout)
        return answer
