"""Actors, references and the system of a process: an actor type built on Pykka's three hooks.

A `LoopActor` has no thread. Its inbox is a deque, run by the process's loop (see `actors/loop.py`), and a message
costs about a microsecond. A `Ref` is the same to use for an actor here and for one in another process.
The parts are modules: `handlers.py` (who handles which message), `mailbox.py` (what waits for an actor), `refs.py` (how
actors are told); this file has the actor and the system, and what is imported by whoever writes an actor.
May touch: the scheduler and the carrier of mail it is handed; no socket, file, clock or thread of its own.

Invariants:
- `tell`, `spawn` and everything an actor does happen on the loop's thread. Other threads use Pykka's own
  `actor_ref.ask(...)` and `.tell(...)`, which hand over to the loop.
- Messages from one sender to one actor arrive in the order they were told; at most once.
- A path names at most one living actor of its node. An actor handles nothing before `on_start`, and nothing after
  it stopped or failed: what is left in its inbox is unclaimed, and the process decides.
- Every inbox is bounded: `tell` raises `MailboxFullError` over `inbox_messages_max`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, ClassVar, TypeVar

import pykka
from pykka import ActorRegistry
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from ister.actors.clock_steps import ClockSteps
from ister.actors.handlers import Handlers, Part, composed, handlers_of, receives
from ister.actors.loop import Call, Loop, Scheduler, Timer
from ister.actors.mailbox import NOBODY, Inbox, LoopFuture, MailboxFullError, refuse
from ister.actors.refs import Address, Carrier, LocalRef, Ref, RemoteRef
from ister.actors.threads import Done, Purpose
from ister.clock import Clock
from ister.errors import UsageError

__all__ = [
    "Address",
    "Carrier",
    "Loop",
    "LoopActor",
    "MailboxFullError",
    "Part",
    "Ref",
    "Scheduler",
    "System",
    "Timer",
    "receives",
]

T = TypeVar("T")

logger = logging.getLogger("ister.actors")


class _Start:
    """The first message of every inbox."""


class LoopActor(pykka.Actor):
    """An actor run by its process's loop. Handlers are methods marked with `@receives(MessageType)`.

    A handler that raises stops the actor: the error is logged, `on_failure` is called, and the system's
    `on_actor_failure` decides what comes next. `on_start` comes before the first message, `on_stop` after the last.
    """

    # A message is a reference to a batch or less, some 200 bytes: 13 MB at worst. Its contents are bounded where they
    # enter the process (credit, producer windows, mail). Reaching this bound means that an actor is out of control, and
    # failing loudly is right.
    inbox_messages_max: ClassVar[int] = 65_536

    handlers: Handlers = Handlers()  # of the class, or of all actors that are made of the same parts
    parts: Sequence[Part] = ()

    def __init__(self, system: System, path: str) -> None:
        super().__init__()
        self.system = system
        self.path = path
        self.loop = system.loop
        self.clock = system.clock

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.handlers = Handlers(handlers_of(cls))

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.path}"

    def compose(self, parts: Sequence[Part]) -> None:
        """Add parts: messages that this class does not handle itself go to the part that does.

        Raises TypeError if two handle the same type.
        """
        self.parts = tuple(parts)
        self.handlers = composed(type(self), tuple(map(type, parts)))

    # The three hooks of Pykka.

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        return LoopFuture()

    def _start_actor_loop(self) -> None:
        inbox = self.inbox
        inbox.open(self, self.loop.ready)
        # The System has the register of actors; Pykka's own is a list, searched whenever one of thousands ends.
        ActorRegistry.unregister(self.actor_ref)
        self.system.register(self)
        inbox.tell(_Start())

    # The methods for actors.

    @property
    def inbox(self) -> Inbox:
        """This actor's inbox."""
        assert isinstance(self.actor_inbox, Inbox)
        return self.actor_inbox

    @property
    def address(self) -> Address:
        """This actor's address."""
        return Address(self.system.node, self.path)

    @property
    def ref(self) -> Ref:
        """A reference to this actor."""
        return self.system.ref(self.system.node, self.path)

    def call_later(self, delay_s: float, call: Call) -> Timer:
        """Make `call` in `delay_s` seconds, unless this actor has ended by then; if it raises, this actor fails."""
        return self.loop.call_later(delay_s, lambda: self._guarded(call))

    def call_soon(self, call: Call) -> None:
        """Make `call` in the loop's next turn, guarded like `call_later`."""
        self.loop.call_soon(lambda: self._guarded(call))

    def at_turn_end(self, call: Call) -> None:
        """Make `call` once all inboxes of this turn are drained, guarded like `call_later`."""
        self.loop.at_turn_end(lambda: self._guarded(call))

    def offload(self, work: Callable[[], T], done: Done[T], purpose: Purpose = Purpose.OTHER) -> None:
        """Run `work` in a thread for that purpose, then `done(result, error)` here, guarded like `call_later`.

        `work` must not touch this actor; it is given what it needs.
        """
        self.loop.offload(work, lambda result, error: self._guarded(lambda: done(result, error)), purpose)

    def _guarded(self, call: Call) -> None:
        if self.inbox.closed:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - as in Inbox.run
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Stop at once because of `error`: log it, call `on_failure`, tell the system."""
        if self.inbox.closed:  # it failed while it stopped: nothing is left to stop
            logger.error("%s failed after it had stopped", self, exc_info=error)
            return
        logger.error("%s failed", self, exc_info=error)
        left = self._end()
        try:
            self.on_failure(type(error), error, error.__traceback__)
        except Exception:
            logger.exception("%s failed again in on_failure", self)
        self._untie()
        self.system.on_actor_failure(self.path, error)
        self.system.leave_unclaimed(self.path, left)

    def _end(self) -> Iterator[object]:
        left = refuse(self.inbox.close())
        self.actor_stopped.set()
        self.system.unregister(self)
        return left

    def stop_now(self) -> None:
        """Stop at once, leaving what is in the inbox unclaimed; `stop` handles the messages told before."""
        if self.inbox.closed:
            return
        left = self._end()
        try:
            self.on_stop()
        except Exception as error:
            logger.exception("%s failed in on_stop", self)
            self.system.on_actor_failure(self.path, error)
        self._untie()
        self.system.leave_unclaimed(self.path, left)

    def _untie(self) -> None:
        """Break reference cycles: a collection over 10,000 objects pauses the loop."""
        self.inbox.let_go()
        self.__dict__.pop("actor_ref", None)

    def on_receive(self, message: Any) -> Any:
        """Handle a message from Pykka's own ActorRef; the handler's return value answers an `ask`."""
        return self.handlers[type(message)](self, message)

    @receives(_Start)
    def _started(self, _message: object) -> None:
        self.on_start()

    @receives(_ActorStop)
    def _stop(self, _message: object = None) -> None:
        self.stop_now()

    @receives(Envelope)
    def _envelope(self, envelope: Envelope[Any]) -> None:
        if envelope.reply_to is None:
            self._handle_receive(envelope.message)
            return
        try:
            answer = self._handle_receive(envelope.message)
        except Exception:
            logger.info("%s answers an ask with an error", self, exc_info=True)
            envelope.reply_to.set_exception(sys.exc_info())
        else:
            envelope.reply_to.set(answer)


class System:
    """The actors of one process, by path.

    `on_unclaimed(path, message)` is called for a message to a path without an actor: the composition may spawn an actor
    and tell it, or let the message count as a dead letter. `on_actor_failure(path, error)` is called after an actor
    failed. Both run on the loop; by default they log.
    """

    def __init__(
        self, node: str, loop: Scheduler, mail: Carrier | None, clock: Clock, random: Random
    ) -> None:
        self.node = node
        self.loop = loop
        self.clock_steps = ClockSteps(loop)  # for actors that wait for a time of day
        self.mail = mail
        self.clock = clock
        self.random = random
        self.dead_letters = 0  # messages to a path without an actor that nobody claimed
        self.unexpected = 0  # messages for which an actor had no handler
        self.on_unclaimed: Callable[[str, object], None] = self.dead_letter
        self.on_actor_failure: Callable[[str, Exception], None] = lambda _path, _error: None
        self._actors: dict[str, LoopActor] = {}
        if mail is not None:
            mail.attach(loop, self.deliver)

    def spawn(self, actor_class: type[LoopActor], path: str, *args: Any, **kwargs: Any) -> Ref:
        """Start `actor_class(system, path, *args, **kwargs)`, whose `on_start` runs in the loop, and return its ref.

        Raises UsageError if the path is taken, and whatever the constructor raises.
        """
        if path in self._actors:
            raise UsageError(f"{self.node} has an actor at {path!r} already")
        actor_class.start(self, path, *args, **kwargs)
        return self.ref(self.node, path)

    def ref(self, node: str, path: str) -> Ref:
        """Return a reference to the actor at `path` of `node`, whether it exists or not."""
        if node == self.node:
            return LocalRef(self, Address(node, path))
        if self.mail is None:
            raise UsageError(f"{self.node} has no mail to reach {node}:{path}")
        return RemoteRef(self.mail, Address(node, path))

    def at(self, address: Address) -> Ref:
        """Return a reference to the actor at `address`."""
        return self.ref(address.node, address.path)

    def find(self, path: str) -> LoopActor | None:
        """Return the living actor at `path` of this node, or None."""
        return self._actors.get(path)

    def paths(self) -> list[str]:
        """Return the paths of all living actors, oldest first."""
        return list(self._actors)

    def stop_actor(self, path: str) -> None:
        """Stop the actor at `path` after it has handled the messages told before; unknown paths are ignored."""
        if (actor := self._actors.get(path)) is not None:
            actor.inbox.tell(_ActorStop())

    def stop_all(self) -> None:
        """Stop every actor at once, the youngest first."""
        for path in reversed(self.paths()):
            if (actor := self._actors.get(path)) is not None:
                actor.stop_now()

    def deliver(self, path: str, message: object) -> None:
        """Deliver a message that came by mail; if the inbox is full it is dropped, counted and logged."""
        try:
            if self.inbox_at(path).tell(message):
                return
        except MailboxFullError as error:
            self.dead_letters += 1
            logger.error("%s: dropped %s: %s", self.node, type(message).__qualname__, error)
            return
        self.leave_unclaimed(path, (message,))

    def dead_letter(self, path: str, message: object) -> None:
        """Count and log a message that nobody claimed."""
        self.dead_letters += 1
        logger.warning("%s has no actor at %s for %.200r", self.node, path, message)

    def leave_unclaimed(self, path: str, messages: Iterable[object]) -> None:
        """Hand messages without an actor to the process."""
        for message in messages:
            self.on_unclaimed(path, message)

    def inbox_at(self, path: str) -> Inbox:
        """Return the inbox of the actor at `path`, or one that accepts nothing."""
        actor = self._actors.get(path)
        return NOBODY if actor is None else actor.inbox

    def register(self, actor: LoopActor) -> None:
        """Add an actor that starts."""
        self._actors[actor.path] = actor

    def unregister(self, actor: LoopActor) -> None:
        """Remove an actor that ended."""
        if self._actors.get(actor.path) is actor:
            del self._actors[actor.path]
