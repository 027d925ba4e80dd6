"""What is known of a topic and of a subscription: the values that the catalogue, descriptions and the store keep.

Plain values, without any file or format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

Dispatch = Literal["reliable", "non-reliable"]
Durability = Literal["fsync", "os", "cloud"]
FORGOTTEN: Final = "forgotten"  # the setting of a deleted topic whose objects belong to another broker


@dataclass(frozen=True, slots=True)
class TopicMeta:
    """What a topic was created with; `settings` holds plain JSON values."""

    name: str
    incarnation: bytes
    dispatch: str
    durability: str
    created_ms: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubscriptionMeta:
    """What a subscription was created with; `start` is "earliest", "latest", an offset or "time:<unix ms>"."""

    topic: str
    name: str
    type: str
    start: str | int
    created_ms: int
    settings: dict[str, Any] = field(default_factory=dict)
