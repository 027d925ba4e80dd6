"""Subscriptions: they decide which consumer gets which messages of a topic.

`actor.py` is the Subscription actor. It owns the consumers and their credit (`consumers.py`), and takes turns among
them. `parts.py` has the interfaces of its parts. `deliveries.py` maps each subscription type to its delivery:
`in_order.py`, `by_key.py`, `reading.py`, `from_memory.py`. `log_parts.py` puts together the parts that every
subscription to a log needs.
"""

from __future__ import annotations

from ister.actors.subscription.actor import Subscription

__all__ = ["Subscription"]
