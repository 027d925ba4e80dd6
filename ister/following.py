"""The topics of a consumer with a pattern: which to add and to remove, and each one's share of the credit. Pure.

Invariants
- dead-letter topics are not followed: a message that a consumer refuses would come to it again as the next topic's
  message
- a topic that refused is not tried again until it was deleted and created again
- shares add up to no more than the whole, except that every topic gets at least one message
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

DEAD_LETTER_SUFFIX: Final = ".dlq"  # the suffix of dead-letter topics that no option names
BYTES_LEAST: Final = 1024


class Following:
    """The topics that match a pattern now, except those that are left out."""

    def __init__(self, left_out: Collection[str]) -> None:
        self._left_out = frozenset(left_out)
        self._refused: dict[str, int] = {}

    def changes(self, listed: Mapping[str, int], present: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """Return which topics are to be added to the present ones, and which are to be removed.

        Both say when each topic was created: one that was created again is removed and added.
        """
        there = {topic: created for topic, created in listed.items() if self._is_followed(topic)}
        self._refused = {
            topic: created for topic, created in self._refused.items() if there.get(topic) == created
        }
        come = [topic for topic in there if topic not in self._refused and present.get(topic) != there[topic]]
        gone = [topic for topic, created in present.items() if there.get(topic) != created]
        return sorted(come), sorted(gone)

    def _is_followed(self, topic: str) -> bool:
        return not topic.endswith(DEAD_LETTER_SUFFIX) and topic not in self._left_out

    def refuse(self, topic: str, created: int) -> None:
        """Note that a topic cannot be consumed, until it is created again."""
        self._refused[topic] = created


def share(credit_messages: int, credit_bytes: int, topics: int) -> tuple[int, int]:
    """Return the credit of each of `topics` topics."""
    topics = max(1, topics)
    return max(1, credit_messages // topics), max(min(BYTES_LEAST, credit_bytes), credit_bytes // topics)
