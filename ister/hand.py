"""The iterator over messages that a program is handed, and that several threads may share.

It has a module of its own because it inherits from one of the interpreter's own iterators, which a compiled class
cannot. Pure: no socket, clock or thread lives here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import starmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ister.message import Delivery, Message, Parts

    _Messages = starmap[Message]
else:
    _Messages = starmap


class Hand(_Messages):
    """An iterator over messages that are handed out; who takes many takes their `parts`, and makes the messages itself.

    Several threads may share both: one message's parts are taken in one step, all of whose iterators are the
    interpreter's own.
    """

    parts: Iterator[Parts]

    @classmethod
    def of(cls, make: Callable[[Delivery, int, bytes], Message], parts: Iterator[Parts]) -> Hand:
        """Return one whose messages `make` makes of these parts."""
        hand = cls(make, parts)  # type: ignore[arg-type] # of a subclass of a generic class
        hand.parts = parts
        return hand
