"""Subscriptions: who gets what of a topic.

`actor.py` is the Subscription, which has its `consumers.py`: credit, whose turn it is. `parts.py` says what it is made
of, `deliveries.py` which delivery is whose: `in_order.py`, `by_key.py`, `reading.py`, `from_memory.py`. What
subscriptions on a log have in common is put together in `log_parts.py`.
"""

from __future__ import annotations

from ister.actors.subscription.actor import Subscription

__all__ = ["Subscription"]
