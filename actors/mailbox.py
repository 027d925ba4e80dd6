"""An actor's inbox: what it was told and has not handled, in order and bounded; and the answer to an `ask`.

- `tell` and `run` happen on the loop's thread. Other threads come through Pykka's ActorRef (`put`), which hands over to
  the loop.
- An inbox that was closed takes nothing: asks are answered with an error, other messages are left to the process.

When an actor starts, fails and stops is in `runtime.py`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, Protocol, TypeVar

import pykka
from pykka import ActorDeadError
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from ister.actors.handlers import Handlers
from ister.actors.loop import Scheduler
from ister.errors import IsterError, UsageError
from ister.words import counted

T = TypeVar("T")


class MailboxFullError(IsterError):
    """An actor's inbox is full; nothing was told."""

    code = "busy"
    action = "retry"


class Owner(Protocol):
    """What an inbox needs of its actor."""

    inbox_messages_max: ClassVar[int]
    handlers: Handlers
    loop: Scheduler

    def fail(self, error: Exception) -> None:
        """Stop at once because of `error`."""


class Inbox:
    """The messages for one actor that are not handled yet: a bounded deque that schedules itself to be run."""

    __slots__ = ("_actor", "_limit", "_queue", "_ready", "_scheduled", "closed")

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._ready: deque[Any] = deque()
        self._scheduled = False
        self._limit = 0
        self._actor: Owner | None = None
        self.closed = False

    def open(self, actor: Owner, ready: deque[Any]) -> None:
        """Accept messages for `actor`, and run among `ready`."""
        self._actor, self._ready, self._limit = actor, ready, actor.inbox_messages_max

    def tell(self, message: object) -> bool:
        """Add a message; return False if the actor is gone. Raises MailboxFullError."""
        if not self._scheduled:
            self._scheduled = True
            self._ready.append(self)
        elif len(self._queue) >= self._limit:
            if self.closed:
                return False
            raise MailboxFullError(f"inbox of {self._actor} is full ({counted(self._limit, 'message')})")
        self._queue.append(message)
        return True

    def run(self, limit: int) -> int:
        """Let the actor handle at most `limit` messages; return how many it did."""
        actor, queue = self._actor, self._queue
        if actor is None:  # the actor ended since the inbox was ready
            return 0
        take, handlers, handled = queue.popleft, actor.handlers, 0
        try:
            while queue and handled < limit:
                handled += 1
                message = take()
                handlers[type(message)](actor, message)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the actor, loudly
            actor.fail(error)
        if queue:
            self._ready.append(self)
        elif not self.closed:
            self._scheduled = False
        return handled

    def close(self) -> list[object]:
        """Accept nothing more; return what is left."""
        # A closed inbox looks full, so that `tell` needs no check for it.
        self.closed, self._limit, self._scheduled = True, -1, True
        left = list(self._queue)
        self._queue.clear()
        return left

    def let_go(self) -> None:
        """Drop the reference to the actor, which has ended."""
        self._actor = None

    def __len__(self) -> int:
        return len(self._queue)

    # Used by Pykka's ActorRef, from any thread.

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add an envelope from Pykka's ActorRef."""
        actor = self._actor
        if actor is None:  # the actor has ended
            refuse([envelope])
            return
        if isinstance(envelope.reply_to, LoopFuture):
            envelope.reply_to.loop = actor.loop
        if actor.loop.on_loop_thread:
            self._put_here(envelope)
        elif len(self._queue) >= self._limit >= 0:
            raise MailboxFullError(f"inbox of {actor} is full ({counted(self._limit, 'message')})")
        else:
            actor.loop.call_threadsafe(lambda: self._put_here(envelope))

    def _put_here(self, envelope: Envelope[Any]) -> None:
        try:
            if not self.tell(envelope):
                refuse([envelope])
        except MailboxFullError:
            if envelope.reply_to is None:
                raise
            envelope.reply_to.set_exception(sys.exc_info())

    def get(self) -> Envelope[Any]:
        """Not used: a LoopActor's inbox is run, not waited for."""
        raise NotImplementedError

    def empty(self) -> bool:
        """True if no message waits."""
        return not self._queue


class LoopFuture(pykka.ThreadingFuture[T]):
    """The answer to an `ask`: any thread may wait for it except the loop's, which would wait for itself."""

    loop: Scheduler | None = None

    def get(self, *, timeout: float | None = None) -> Any:
        """Wait for the answer. Raises UsageError on the loop's own thread if there is none yet."""
        if self.loop is not None and self._result is None and self.loop.on_loop_thread:
            raise UsageError("an actor can't wait for an answer on its own loop: tell, and handle the reply")
        return super().get(timeout=timeout)


def refuse(left: Iterable[object]) -> Iterator[object]:
    """Fail the asks among `left`, which nobody will answer; return the other messages."""
    others = []
    for message in left:
        if not isinstance(message, Envelope):
            others.append(message)
        elif message.reply_to is None:
            if not isinstance(message.message, _ActorStop):
                others.append(message.message)
        elif isinstance(message.message, _ActorStop):
            message.reply_to.set(None)
        else:
            error = ActorDeadError("the actor stopped before it handled the message")
            message.reply_to.set_exception((ActorDeadError, error, None))
    return iter(others)


def _closed_inbox() -> Inbox:
    inbox = Inbox()
    inbox.close()
    return inbox


NOBODY: Final = _closed_inbox()
