"""The deletion of a topic's objects in the store. Part of an Uploader, in the tier process.

Owns who asked for the deletion, and whether it runs. May touch the store, through the writer.

Invariants
- objects are deleted once nothing is in transit to the store any more, so that nothing reappears
- and only while the topic belongs to this broker there (`storage/erase.py`); otherwise they are kept, which is
  reported
- the actor that asked is told once how it ended; then the Uploader stops
"""

from __future__ import annotations

import logging

from ister.actors.messages import Erased
from ister.actors.runtime import LoopActor, Ref
from ister.actors.store_writer import StoreWriter
from ister.storage.erase import NotOwnerError, erase
from ister.words import counted

log = logging.getLogger("ister.uploader")


class StoredErasure:
    """The deletion of what `writer`'s topic has in the store, under the name `broker`; `host` stops after it."""

    def __init__(self, host: LoopActor, writer: StoreWriter, broker: str) -> None:
        self._host = host
        self._writer = writer
        self._broker = broker
        self._reply: Ref | None = None  # who is told
        self._runs = False
        self._not_ours = False  # whatever the store has of it

    @property
    def asked(self) -> bool:
        """Whether the topic is deleted."""
        return self._reply is not None

    def ask(self, reply: Ref, *, not_ours: bool) -> None:
        """Delete the objects as soon as that may be done; none of them if they are `not_ours`."""
        self._reply = reply
        self._not_ours = not_ours
        self._writer.deletes = True
        self.go_on()

    def go_on(self) -> None:
        """Begin if nothing is in transit any more."""
        writer = self._writer
        if self._runs or writer.waits or writer.under_way:
            return
        self._runs = True
        if self._not_ours:
            self._leave("another broker has it")
            return
        topic, store, identity, broker = writer.topic, writer.store, writer.identity, self._broker

        def erased(objects: int) -> None:
            log.info("topic %s: %s deleted from the store", topic.name, counted(objects, "object"))
            self._ended(Erased(topic))

        def failed(error: BaseException) -> None:
            if isinstance(error, NotOwnerError):
                self._leave(str(error))
                return
            self._runs = False
            writer.failed("its objects were not deleted", error)

        writer.do(lambda: erase(store, topic, broker, identity), erased, failed)

    def _leave(self, why: str) -> None:
        """Keep the objects: the topic is deleted here alone."""
        topic = self._writer.topic
        log.warning("topic %s was deleted here, and kept in the store: %s", topic.name, why)
        self._ended(Erased(topic, kept=True))

    def _ended(self, how: Erased) -> None:
        assert self._reply is not None
        self._reply.tell(how)
        self._host.stop()
