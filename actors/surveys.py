"""Surveys: what waits until the store was listed anew. Part of a ReliableTopic; pure but for its timer.

Invariants
- what waits is done once, whether the store answers or not: within `SURVEY_S`
- one listing is under way at a time, and serves all that wait
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ister.actors.messages import Survey, Surveyed
from ister.actors.runtime import LoopActor, Ref, Timer

log = logging.getLogger("ister.topic")

SURVEY_S: Final = 3.0  # less than whoever asked waits; a store that is away is not waited for


class Surveys:
    """The listings that `host`, which hears of their end, asks its Uploader for."""

    def __init__(self, host: LoopActor, topic: str, uploader: Ref) -> None:
        self._host = host
        self._topic = topic
        self._uploader = uploader
        self._waiting: list[Callable[[], None]] = []
        self._timer: Timer | None = None

    def then(self, call: Callable[[], None]) -> None:
        """Have the store listed, and make `call` after that; also if it does not answer."""
        self._waiting.append(call)
        if len(self._waiting) == 1:
            self._uploader.tell(Survey(self._host.address))
            self._timer = self._host.call_later(
                SURVEY_S, lambda: self.surveyed(Surveyed("it does not answer"))
            )

    def surveyed(self, surveyed: Surveyed) -> None:
        """Go on with what waited for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if surveyed.trouble:
            text = "topic %s: what the store has is not known anew: %s"
            log.warning(text, self._topic, surveyed.trouble)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
