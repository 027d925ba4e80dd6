"""Request and reply in the event loop: the part of `Client` that asks and answers (see `ister.inbox`).

Invariants
- a client has one inbox; the thread that moves frames assigns replies, and the loop wakes the waiting task
"""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

from ister import arguments
from ister.aio.administration import Administration
from ister.aio.message import Message
from ister.aio.producer import Producer
from ister.client import Client as SyncClient
from ister.conversation import DIAGNOSIS_MAX, DIAGNOSIS_S
from ister.errors import IsterError, RemoteError, TimeoutExpiredError
from ister.inbox import GONE, Inbox, answered, asked, nobody
from ister.message import BaseMessage
from ister.opening import CREDIT_MESSAGES


class Conversation(Administration):
    """The requests that wait for a reply, and the replies to requests of others."""

    def __init__(self, client: SyncClient, timeout: float | None) -> None:
        """Wrap a synchronous client; it belongs to the running loop from now on."""
        super().__init__(client, timeout)
        self._inbox: Inbox | None = None
        self._inbox_opening: asyncio.Task[Inbox] | None = None
        client.opener.replier = self._reply

    async def request(
        self,
        topic: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a message and return the reply of a consumer; see `ister.Client.request`."""
        network, correspondence = self._client.network, self._client.correspondence
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        deadline = network.deadline(seconds)
        inbox = await self._open_inbox(seconds)
        waiting = correspondence.expect(inbox)
        try:
            producer = Producer(self, correspondence.outlets.producer(topic))
            receipt = await producer.send(
                payload,
                key=key,
                attributes=asked(attributes, inbox.topic, waiting.correlation_id),
                timeout=network.seconds_until(deadline),
            )
            over = correspondence.sent(receipt.shipment, inbox, waiting)
            await self.wait(inbox.reader.attachment, over, network.seconds_until(deadline), waiting)
        finally:
            correspondence.forget(inbox, waiting)
        if waiting.message is None and not inbox.closed:
            # raises if it was refused, or not even accepted
            receipt.shipment.outcome(receipt.index, 1, seconds)
            raise TimeoutExpiredError(nobody(topic, seconds, await self._consumers_of(topic)))
        return cast("Message", correspondence.reply(inbox, waiting, topic))

    async def _open_inbox(self, seconds: float | None) -> Inbox:
        """Return the inbox; a task of its own creates it, because the task that asked first may be cancelled."""
        inbox = self._inbox
        if inbox is not None and not inbox.closed:
            return inbox
        opening = self._inbox_opening
        if opening is None or opening.done():
            opening = self._inbox_opening = self._loop.create_task(self._make_inbox())
            opening.add_done_callback(_noted)
        await asyncio.wait([opening], timeout=seconds)
        if not opening.done():
            trouble = arguments.in_trouble(self._client.network.home.session.trouble)
            raise TimeoutExpiredError(f"no inbox for replies could be made within {seconds} s{trouble}")
        return opening.result()

    async def _make_inbox(self) -> Inbox:
        if self._inbox is not None:
            self._inbox.reader.end()
        request = self._client.correspondence.inbox_request()
        await self._ask(request, None)
        plan = self._client.opener.reader(
            request.arguments["topic"], start="latest", credit_messages=CREDIT_MESSAGES
        )
        reader = await self._opened(plan, None)
        self._inbox = self._client.correspondence.inbox(request, reader)
        return self._inbox

    async def _consumers_of(self, topic: str) -> int | None:
        try:
            names = [each["subscription"] for each in await self.subscriptions(topic, timeout=DIAGNOSIS_S)]
            shown = [
                await self.subscription(topic, name, timeout=DIAGNOSIS_S) for name in names[:DIAGNOSIS_MAX]
            ]
            return sum(int(each["consumers"]) for each in shown)
        except IsterError:
            return None

    async def _reply(
        self, message: BaseMessage, payload: bytes, key: bytes | None, attributes: Mapping[str, str] | None
    ) -> None:
        topic, told = answered(message, attributes)
        outlets = self._client.correspondence.outlets
        try:
            producer = Producer(self, outlets.producer(topic))
            await producer.send(payload, key=key, attributes=told, timeout=self._timeout)
        except RemoteError as error:
            if error.code not in GONE:
                raise
            outlets.discard(topic)


def _noted(task: asyncio.Task[Inbox]) -> None:
    """Retrieve the outcome of a task: the task that waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()
