"""One topic's writer at the store: its epoch, the calls in progress, and retries.

Part of an Uploader, in the tier process. Owns the topic as the Directory knows it, the epoch, and the calls to the
store in progress. May touch the store, from threads, and timers.

Invariants
- a writer that met an error that a person must resolve starts nothing more, except the deletion of its own objects
- retries have growing waits with jitter, one wait at a time
- the end of each call is reported once, on the loop
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from ister.actors.runtime import LoopActor
from ister.actors.threads import Purpose
from ister.backoff import BackOff, jittered
from ister.errors import IsterError
from ister.storage.continuing import AheadError
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectStore

log = logging.getLogger("ister.uploader")

T = TypeVar("T")


class WriterEvents(Protocol):
    """What an Uploader is told by its writer."""

    def writer_is_behind(self, error: AheadError) -> None:
        """The store has more than the topic has reported of its log."""

    def writer_stopped(self) -> None:
        """Nothing more is written until an operator has acted."""

    def writer_waits(self, why: str) -> None:
        """The store refuses or does not answer: it is tried again later."""

    def writer_goes_on(self) -> None:
        """The wait is over: start again what is to be done."""

    def call_ended(self) -> None:
        """A call to the store has ended."""


class StoreWriter:
    """The writer of `host`, which is told of its events; `retry_ms` bounds the wait after a failure."""

    def __init__(
        self,
        host: LoopActor,
        events: WriterEvents,
        topic: TopicMeta,
        store: ObjectStore,
        *,
        retry_ms: tuple[int, int],
    ) -> None:
        self.topic = topic  # as last reported by the Directory
        self.store = store
        self.identity = host.system.random.randbytes(16).hex()
        self.epoch: int | None = None  # once one was claimed
        self.failure: str | None = None  # the last failure, unless a call succeeded since
        self.stopped: IsterError | None = None  # why nothing is written any more
        self.deletes = False  # the topic is deleted: nothing else is done, and no failure stops that
        self.waits = False
        self.under_way = 0
        self._host = host
        self._events = events
        self._back_off = BackOff(retry_ms[0] / 1000, retry_ms[1] / 1000)

    @property
    def ended(self) -> bool:
        """Whether nothing more is written, permanently."""
        return self.stopped is not None or self.deletes

    @property
    def may_begin(self) -> bool:
        """Whether a call may be started now."""
        return self.epoch is not None and not self.waits and not self.ended

    def do(
        self,
        work: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
        purpose: Purpose = Purpose.STORE,
    ) -> None:
        """Run `work` in a thread, then `done(result)` or `failed(error)` here."""

        def ended(result: T | None, error: BaseException | None) -> None:
            self.under_way -= 1
            if error is None:
                done(result)  # type: ignore[arg-type]
            else:
                failed(error)
            self._events.call_ended()

        self.under_way += 1
        self._host.offload(work, ended, purpose)

    def worked(self) -> None:
        """Note a success: the next failure starts with a short wait again."""
        self._back_off.succeeded()
        self.failure = None

    def failed(self, what: str, error: BaseException) -> None:
        """Note a failure: wait, or stop."""
        self.failure = f"{what}: {error}"
        if not self.deletes:
            if self.stopped is not None:
                return
            if isinstance(error, AheadError):
                # Perhaps what the topic reported is old, from before this process: it must report again.
                log.error("topic %s: %s", self.topic.name, error)
                self._events.writer_is_behind(error)
                return
            if isinstance(error, IsterError) and error.action == "stop":
                # Fenced, or contradicting objects: only an operator may choose.
                self.stopped = error
                log.critical("uploads of topic %s stop: %s", self.topic.name, self.failure)
                self._events.writer_stopped()
                return
        if not self.waits:
            self._wait()

    def _wait(self) -> None:
        # A thousand topics must not return to a store together.
        wait_s = jittered(self._back_off.failed(), self._host.system.random.random())
        log.warning("topic %s: %s; trying again in %.1f s", self.topic.name, self.failure, wait_s)
        self.waits = True
        self._events.writer_waits(self.failure or "")
        self._host.call_later(wait_s, self._resume)

    def _resume(self) -> None:
        self.waits = False
        self._events.writer_goes_on()
