"""Which topics a consumer of a pattern has, which it is to have, and what share of the credit each gets. Pure.

Invariants
- dead-letter topics are not followed: what a consumer refuses would come to it again as the next topic's message
- a topic that refused is not asked again until it has gone and come back
- shares add up to no more than the whole, except that everyone gets at least one message
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

DEAD_LETTER_SUFFIX: Final = ".dlq"  # how the broker calls dead-letter topics that were not given a name
BYTES_LEAST: Final = 1024


class Roster:
    """The topics that a pattern stands for now, but for those that are left out."""

    def __init__(self, left_out: Collection[str]) -> None:
        self._left_out = frozenset(left_out)
        self._refused: set[str] = set()

    def changes(self, listed: Iterable[str], present: Collection[str]) -> tuple[list[str], list[str]]:
        """Return which topics are to be added to those that are present, and which are to go."""
        there = {topic for topic in listed if self._is_followed(topic)}
        self._refused &= there
        return sorted(there - self._refused - set(present)), sorted(set(present) - there)

    def _is_followed(self, topic: str) -> bool:
        return not topic.endswith(DEAD_LETTER_SUFFIX) and topic not in self._left_out

    def refuse(self, topic: str) -> None:
        """Note that a topic cannot be consumed, as long as it is there."""
        self._refused.add(topic)


def share(credit_messages: int, credit_bytes: int, topics: int) -> tuple[int, int]:
    """Return how much credit each of so many topics has."""
    topics = max(1, topics)
    return max(1, credit_messages // topics), max(min(BYTES_LEAST, credit_bytes), credit_bytes // topics)
