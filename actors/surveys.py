"""Surveys: calls that wait until the store was listed again. Part of a ReliableTopic; pure except for its timer.

Invariants
- each call is made once, within `SURVEY_S`, whether the store answers or not
- one listing runs at a time, and serves all calls that wait
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ister.actors.messages import Survey, Surveyed
from ister.actors.runtime import LoopActor, Ref, Timer

log = logging.getLogger("ister.topic")

# seconds; shorter than the clients of these calls wait, and an unreachable store is not waited for
SURVEY_S: Final = 3.0


class Surveys:
    """The listings that `host`, which is told of their end, requests from its Uploader."""

    def __init__(self, host: LoopActor, topic: str, uploader: Ref) -> None:
        self._host = host
        self._topic = topic
        self._uploader = uploader
        self._waiting: list[Callable[[], None]] = []
        self._timer: Timer | None = None

    def then(self, call: Callable[[], None]) -> None:
        """Have the store listed, and make `call` after that, also if the store does not answer."""
        self._waiting.append(call)
        if len(self._waiting) == 1:
            self._uploader.tell(Survey(self._host.address))
            self._timer = self._host.call_later(
                SURVEY_S, lambda: self.surveyed(Surveyed("it does not answer"))
            )

    def surveyed(self, surveyed: Surveyed) -> None:
        """Make the calls that wait: a listing has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if surveyed.trouble:
            text = "topic %s: what the store has is not known anew: %s"
            log.warning(text, self._topic, surveyed.trouble)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
