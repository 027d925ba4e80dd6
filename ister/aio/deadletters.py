"""Dead letters in the event loop: the work of `ister.deadletters`, done in a thread.

Invariants
- work that is cancelled here ends in the thread after its present batch
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from ister.deadletters import LIST_MAX, DeadLetter
from ister.deadletters import DeadLetters as SyncDeadLetters
from ister.settling import Progress


class DeadLetters:
    """The dead letters of one subscription; made by `Client.dead_letters`. Its work is done in a thread."""

    def __init__(
        self, letters: SyncDeadLetters, stop: threading.Event, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._letters = letters
        self._stop = stop
        self._loop = loop

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        self._stop.clear()
        try:
            return await self._loop.run_in_executor(None, work)
        except asyncio.CancelledError:
            self._stop.set()
            raise

    def _told(self, on_progress: Progress | None) -> Progress | None:
        if on_progress is None:
            return None
        return lambda done, total: self._loop.call_soon_threadsafe(on_progress, done, total)

    async def dead_letter_topic(self) -> str:
        """Return the name of the dead-letter topic."""
        return str(await self._in_thread(self._letters.dead_letter_topic))

    async def count(self) -> int:
        """Return how many letters wait, of every subscription that shares the dead-letter topic."""
        return int(await self._in_thread(self._letters.count))

    async def list(self, limit: int = LIST_MAX, *, after: int | None = None) -> Sequence[DeadLetter]:
        """Return the letters that wait, oldest first; see `ister.DeadLetters.list`."""
        found: Sequence[DeadLetter] = await self._in_thread(lambda: self._letters.list(limit, after=after))
        return found

    async def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Iterate over all letters that wait, oldest first; none is removed."""
        after: int | None = None
        while page := await self.list(after=after):
            for letter in page:
                yield letter
            after = page[-1].offset

    async def show(self, offset: int) -> DeadLetter:
        """Return the letter at this offset of the dead-letter topic; see `ister.DeadLetters.show`."""
        letter: DeadLetter = await self._in_thread(lambda: self._letters.show(offset))
        return letter

    async def redrive(
        self,
        limit: int | None = None,
        *,
        offsets: Iterable[int] | None = None,
        to: str | None = None,
        on_progress: Progress | None = None,
    ) -> int:
        """Send letters back; see `ister.DeadLetters.redrive`. When cancelled, it ends after its present batch."""
        told = self._told(on_progress)
        return int(
            await self._in_thread(
                lambda: self._letters.redrive(limit, offsets=offsets, to=to, on_progress=told)
            )
        )

    async def purge(self, limit: int | None = None, *, on_progress: Progress | None = None) -> int:
        """Delete letters; see `ister.DeadLetters.purge`. When cancelled, it ends after its present batch."""
        told = self._told(on_progress)
        return int(await self._in_thread(lambda: self._letters.purge(limit, on_progress=told)))
