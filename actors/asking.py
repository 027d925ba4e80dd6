"""How often a topic is asked for what it tells its watchers. Pure: no clock, no mail.

Mail can be lost, both the question and the answer. A watcher without an answer asks again soon, then at growing
intervals. A watcher with an answer still asks from time to time, because the topic may have forgotten it.

Invariants
- a lost question or answer is repeated before the one waiting for it gives up (`actors/patience.py`)
- after many attempts in vain, a watcher asks no more often than one that was answered
"""

from __future__ import annotations

from typing import Final

from ister.backoff import BackOff

# seconds; each question is one mail: ten thousand subscriptions cost a hundredth of a core
AGAIN_S: Final = 10.0
UNANSWERED_S: Final = 1.0  # seconds, the first time; doubled each time


class Asking:
    """When to ask again: `asked` and `answered` return after how many seconds."""

    __slots__ = ("_unanswered",)

    def __init__(self) -> None:
        self._unanswered = BackOff(UNANSWERED_S, AGAIN_S)

    def asked(self) -> float:
        """Note a question."""
        return self._unanswered.failed()

    def answered(self) -> float:
        """Note an answer."""
        self._unanswered.succeeded()
        return AGAIN_S
