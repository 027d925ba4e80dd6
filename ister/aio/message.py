"""Messages and batches with types for asyncio: their reply is awaited, which a type checker knows.

They are objects of the synchronous client; only their types differ, so that a type checker reports a forgotten `await`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ister import message
from ister.message import BaseBatch, BaseMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    class Message(BaseMessage):
        """One message as it was delivered."""

        async def reply(
            self, payload: bytes, *, key: bytes | None = None, attributes: Mapping[str, str] | None = None
        ) -> None:
            """Answer a message that came from `Client.request`; see `ister.Message.reply`."""

    class Batch(BaseBatch[Message]):
        """Messages that were delivered together, in the order of their offsets."""

else:
    Message = message.Message
    Batch = message.Batch
