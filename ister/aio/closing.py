"""Objects that are opened by `await` or `async with`, and closed at the end of the block.

Invariants
- an exception from inside an `async with` block is never replaced by an `IsterError` of closing
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ister.errors import IsterError

T = TypeVar("T", bound="Closing")


class Closing:
    """An object that an `async with` block closes."""

    async def close(self) -> None:
        """Close it."""

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand count as failed, if the exception that ends the block is a failure."""

    async def hurry(self) -> None:
        """Close it while an exception leaves the block."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        self.blame(error)
        try:
            await self.hurry()
        except IsterError:
            pass  # the exception that leaves the block matters more


class Opening(Generic[T]):
    """An object that is being opened: `await` it, or use it in `async with`."""

    __slots__ = ("_open", "_opened")

    def __init__(self, open_it: Callable[[], Awaitable[T]]) -> None:
        self._open = open_it
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._open().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, trace)
