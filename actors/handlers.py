"""Handlers: which method of an actor, or of a part of it, handles messages of a type. Pure.

Handlers are found when a class is defined, and once for each combination of an actor and its parts. Handling a message
is then one look-up by its type; a message of a part costs one call more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])
Handler = Callable[[Any, Any], Any]  # the actor or part, and the message

logger = logging.getLogger("ister.actors")


def receives(*message_types: type) -> Callable[[Method], Method]:
    """Mark a method as the handler of messages of exactly these types (subclasses need handlers of their own)."""

    def mark(method: Method) -> Method:
        method.__dict__["_receives"] = message_types
        return method

    return mark


class Handlers(dict[type, Handler]):
    """The handlers of an actor class by message type."""

    def __missing__(self, message_type: type) -> Handler:
        return _unexpected


def _unexpected(actor: Any, message: object) -> None:
    actor.system.unexpected += 1
    logger.error("%s has no handler for %s: %.200r", actor, type(message).__qualname__, message)


def handlers_of(cls: type) -> dict[type, Handler]:
    """Return the methods of a class that are marked with `@receives`, by message type."""
    names: dict[type, str] = {}
    for base in reversed(cls.__mro__):
        own: dict[type, str] = {}
        for name, method in vars(base).items():
            for message_type in getattr(method, "_receives", ()):
                if message_type in own:
                    both = f"{base.__qualname__}.{own[message_type]} and .{name}"
                    raise TypeError(f"{both} both receive {message_type.__qualname__}")
                own[message_type] = name
        names.update(own)
    # By name: a subclass that overrides a handler need not mark it again.
    return {message_type: getattr(cls, name) for message_type, name in names.items()}


class Part:
    """A part of an actor: it handles messages of its own types, which are sent to the actor.

    Handlers are methods marked with `@receives(MessageType)`, as in an actor; see `LoopActor.compose`.
    """

    handlers: ClassVar[Mapping[type, Handler]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.handlers = handlers_of(cls)


@cache
def composed(actor_class: Any, part_classes: tuple[type[Part], ...]) -> Handlers:
    """Return the handlers of an actor made of parts, one table for all actors made of the same parts."""
    table = Handlers(actor_class.handlers)
    receiver = dict.fromkeys(table, actor_class.__qualname__)
    for place, part_class in enumerate(part_classes):
        for message_type, handler in part_class.handlers.items():
            if message_type in table:
                both = f"{receiver[message_type]} and {part_class.__qualname__}"
                raise TypeError(f"{both} both receive {message_type.__qualname__}")
            table[message_type] = _to_part(place, handler)
            receiver[message_type] = part_class.__qualname__
    return table


def _to_part(place: int, handler: Handler) -> Handler:
    def handle(actor: Any, message: object) -> Any:
        return handler(actor.parts[place], message)

    return handle
