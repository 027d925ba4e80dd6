"""The types of subscriptions, in one table for client, command line and broker. Pure.

A new type is a name and a line here, and a line in the broker's `ister/actors/subscription/deliveries.py`, which says
what delivers its messages.

Invariants
- every name has its line, and PROTOCOL.md has the same names (held by a test)
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

SubscriptionType = Literal["exclusive", "shared", "failover", "key-shared"]
SUBSCRIPTION_TYPES: Final[tuple[str, ...]] = get_args(SubscriptionType)
# the type of a subscription that is in no catalogue, and ends with its single consumer
READER: Final = "reader"


class Traits(NamedTuple):
    """How a subscription type differs, for everything except its delivery."""

    shares: bool = False  # its messages are shared among its consumers; else one of them gets all
    stands_by: bool = False  # further consumers stand by; else they are refused
    by_key: bool = False  # each key is delivered in order


TRAITS: Final[dict[str, Traits]] = {
    "exclusive": Traits(),
    "shared": Traits(shares=True),
    "failover": Traits(stands_by=True),
    "key-shared": Traits(shares=True, by_key=True),
    READER: Traits(),
}
