"""The types of subscriptions, in one place: client, command line and broker go by this table. Pure.

A new type is a name and a line here, and a line in the broker's `ister/actors/subscription/deliveries.py`, which says
what delivers its messages.

Invariants
- a test holds that every name has its line, and that PROTOCOL.md has the same names
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

SubscriptionType = Literal["exclusive", "shared", "failover", "key-shared"]
SUBSCRIPTION_TYPES: Final[tuple[str, ...]] = get_args(SubscriptionType)
READER: Final = "reader"  # the type of a subscription that is in no catalogue, and ends with its one consumer


class Traits(NamedTuple):
    """What sets a type apart for everybody but its delivery."""

    shares: bool = False  # its messages are shared among its consumers; else one of them gets all
    stands_by: bool = False  # other consumers stand by for the one that gets all; else they are refused
    by_key: bool = False  # each key has its order


TRAITS: Final[dict[str, Traits]] = {
    "exclusive": Traits(),
    "shared": Traits(shares=True),
    "failover": Traits(stands_by=True),
    "key-shared": Traits(shares=True, by_key=True),
    READER: Traits(),
}
