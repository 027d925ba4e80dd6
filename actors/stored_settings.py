"""A topic's settings on their way to the store. Part of an Uploader, in the tier process.

It owns the settings that the store has, if known, and the requests that wait for them. May touch the store, through its
writer.

Invariants
- a request is answered once the store has the latest settings of the Directory, and not before
- each write has a number of its own: whether a failed one reached the store is unknown
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ister.actors.runtime import Address
from ister.actors.store_writer import StoreWriter
from ister.storage.numbered_objects import put_settings
from ister.storage.topic_entry import own_settings


class StoredSettings:
    """The settings of one topic; `answer(address, ticket)` answers a request that waits."""

    def __init__(self, writer: StoreWriter, *, answer: Callable[[Address, int], None]) -> None:
        self._writer = writer
        self._answer = answer
        self._stored: dict[str, Any] | None = None
        self._number = 0
        self._storing = False
        self._asked: list[tuple[Address, int]] = []

    @property
    def are_stored(self) -> bool:
        """Whether the store has the latest settings of the Directory."""
        return self._stored == own_settings(self._writer.topic)

    def ask(self, reply: Address, ticket: int) -> None:
        """Answer a request once the store has the settings."""
        self._asked.append((reply, ticket))

    def store(self) -> None:
        """Write the settings to the store if it has others; then answer the requests that wait."""
        if self._storing or not self._writer.may_begin:
            return
        if self.are_stored:
            asked, self._asked = self._asked, []
            for reply, ticket in asked:
                self._answer(reply, ticket)
            return
        topic, store, epoch, number = self._writer.topic, self._writer.store, self._writer.epoch, self._number
        assert epoch is not None
        self._storing = True
        self._number += 1

        def stored(_: None) -> None:
            self._storing = False
            self._stored = own_settings(topic)
            self.store()

        def failed(error: BaseException) -> None:
            self._storing = False
            self._writer.failed("its settings were not stored", error)

        self._writer.do(lambda: put_settings(store, topic, epoch, number), stored, failed)
