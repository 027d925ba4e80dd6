"""How the event loop waits for the background threads: for a condition, an answer, a shipment.

Invariants
- background threads only report that something has changed, and at most one such call is in transit to the loop
- a task registers before it checks its condition, so that no change is missed
- a cancelled task gets its cancellation, whatever arrived at the same moment, and takes nothing: what it waited for is
  left for the next one
"""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ister import arguments
from ister.aio.closing import Closing
from ister.client import Client as SyncClient
from ister.clientsession import Handle
from ister.opening import Plan
from ister.outstanding import Request
from ister.receipts import Shipment
from ister.waking import Waiters

T = TypeVar("T")


class Waiting(Closing):
    """The waiting of `Client`, used by everything else here."""

    def __init__(self, client: SyncClient, timeout: float | None) -> None:
        """Wrap a synchronous client; it belongs to the running loop from now on."""
        self._client = client
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiters: Waiters[asyncio.Future[None]] = Waiters()
        self._waking = False
        network = client.network
        with network.lock:
            network.eager = True
            network.on_progress = self._progressed
            network.wake_background()

    def _progressed(self) -> None:
        """Let the loop check its tasks; called in any thread, and at most one such call is in transit at a time."""
        if self._waking:
            return
        self._waking = True
        self._from_thread(self._wake)

    def _from_thread(self, call: Callable[..., Any], *given: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *given)
        except RuntimeError:
            pass  # the loop is closed: no task waits

    def _wake(self) -> None:
        self._waking = False
        for future in self._waiters.concerned(self._client.network.take_news()):
            fulfil(future)

    async def wait(
        self,
        handle: Handle | None,
        condition: Callable[[], bool],
        timeout: float | None,
        awaited: object = None,
    ) -> bool:
        """Wait until `condition()` (evaluated under the lock) holds; return False if the time (seconds) ran out first.

        The condition is checked when there is news for `awaited`, by default the handle.
        """
        network = self._client.network
        key = handle if awaited is None else awaited
        network.check()
        deadline = network.deadline(arguments.timeout(timeout))
        while True:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(key, future)
            try:
                with network.lock:
                    answer = condition()
                    while (
                        network.connection_of(handle).session.outbox and network.connection_of(handle).pump()
                    ):
                        answer = condition()
                network.settle()
                left = deadline - network.clock.monotonic()
                if answer or left <= 0:
                    return answer
                await self._until(future, left)
            finally:
                self._waiters.discard(key, future)
            network.check()

    async def _until(self, future: asyncio.Future[None], seconds: float) -> None:
        """Wait for a future or a time; unlike in `asyncio.wait_for` before Python 3.12, a cancellation takes effect."""
        if seconds == float("inf"):
            await future
            return
        timer = self._loop.call_later(seconds, fulfil, future)
        try:
            await future
        finally:
            timer.cancel()

    async def wait_for_shipment(self, shipment: Shipment, timeout: float | None) -> None:
        """Wait until a shipment is resolved, or the time (seconds) has run out."""
        clock = self._client.network.clock
        deadline = self._client.network.deadline(arguments.timeout(timeout))
        while True:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(shipment, future)
            try:
                left = deadline - clock.monotonic()
                if shipment.resolved or left <= 0:
                    return
                await self._until(future, left)
            finally:
                self._waiters.discard(shipment, future)

    async def _ask(self, request: Request, timeout: float | None) -> Any:
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        self._client.send_request(request)
        try:
            await self.wait(None, lambda: request.done, seconds, request)
        finally:
            if not request.done:
                self._client.withdraw(request)
        return self._client.answer(request, seconds)

    async def _drive(self, steps: Iterator[Request], timeout: float | None) -> None:
        """Answer every request that a generator of the synchronous client yields."""
        for request in steps:
            await self._ask(request, timeout)

    async def _opened(self, plan: Plan[T], timeout: float | None) -> T:
        """Wait until something is opened, and return it."""
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        try:
            answered = await self.wait(plan.handle, plan.ready, seconds)
            plan.finish(answered, seconds)
        except BaseException:
            self._client.opener.abandon(plan)
            raise
        return plan.made


def fulfil(future: asyncio.Future[None]) -> None:
    """Resolve a future, unless it is resolved already."""
    if not future.done():
        future.set_result(None)
