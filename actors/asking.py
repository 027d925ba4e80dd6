"""How often a topic is asked for what it tells its watchers. Pure: no clock, no mail.

Mail is no promise, neither a question nor the last answer. Who was not answered asks again soon, then more and more
rarely; who was answered asks again now and then, for the topic may have forgotten him.

Invariants
- an answer that was lost, or a question, is asked for again before who waits for it gives up (`actors/patience.py`)
- who asks in vain for long asks no more often than who was answered
"""

from __future__ import annotations

from typing import Final

from ister.backoff import BackOff

AGAIN_S: Final = 10.0  # a mail each: ten thousand subscriptions cost a hundredth of a core
UNANSWERED_S: Final = 1.0  # the first time; doubled each time


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
