"""The table of deliveries: which class delivers the messages of which subscription type.

A new type needs a line here and its name in `ister/subscriptions.py`. If no existing delivery fits, it also needs a
file with a class that implements `Delivery` of `actors/subscription/parts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ister.actors.subscription.by_key import ByKey
from ister.actors.subscription.from_memory import FromMemory, MemoryGiven
from ister.actors.subscription.in_order import InOrder
from ister.actors.subscription.log_parts import LogGiven
from ister.actors.subscription.parts import Delivery, Host
from ister.actors.subscription.reading import Reading
from ister.subscriptions import READER

# For reliable topics; subscriptions to non-reliable topics are all delivered from memory.
DELIVERIES: Final[dict[str, Callable[[Host, LogGiven], Delivery]]] = {
    "exclusive": InOrder,
    "failover": InOrder,
    "shared": InOrder,
    "key-shared": ByKey,
    READER: Reading,
}


def from_log(type_: str, given: LogGiven) -> Callable[[Host], Delivery]:
    """Return the factory of the delivery for a subscription to a reliable topic."""
    return lambda subscription: DELIVERIES[type_](subscription, given)


def from_memory(given: MemoryGiven) -> Callable[[Host], Delivery]:
    """Return the factory of the delivery for a subscription to a non-reliable topic."""
    return lambda subscription: FromMemory(subscription, given)
