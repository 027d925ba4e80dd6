"""Watches: clients that wait for topics to be created or deleted. Part of the Directory; pure but for its timers.

Invariants
- a client waits at most as long as it asked, and never longer than `WAIT_MS_MAX`
- each waiting client is answered once; the number of waiting clients is bounded
- changes that come together share one answer, `SETTLE_S` after the first
- dead-letter topics are not reported: a message that a consumer refuses would come to it again as the next topic's
  message
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ister.actors.messages import Ask
from ister.actors.options import DEAD_LETTERS
from ister.actors.runtime import Timer
from ister.errors import RemoteError
from ister.storage.meta import TopicMeta
from ister.words import counted

WAIT_MS_MAX: Final = 5_000  # a lost answer delays the client by no more than this
WATCHERS_MAX: Final = 1_000
# Names of 200 characters, and what else is said of a topic, are far below RESULT_BYTES_MAX
MATCHES_MAX: Final = 4_000
SETTLE_S: Final = 0.05
REMEMBERED_MAX: Final = 64  # patterns whose topics are cached until something changes


@dataclass(slots=True, eq=False)
class _Watcher:
    ask: Ask
    pattern: re.Pattern[str]
    subscription: str = ""
    timer: Timer | None = None
    changed: bool = False


class Watches:
    """The clients that wait. `topics()` returns all topics; `answer` and `refuse` send to the client.

    `subscribed(name)` returns by topic when a subscription of that name was created.
    """

    def __init__(
        self,
        *,
        topics: Callable[[], list[TopicMeta]],
        version: Callable[[], int],
        subscribed: Callable[[str], dict[str, int]],
        call_later: Callable[[float, Callable[[], None]], Timer],
        answer: Callable[[Ask, dict[str, Any]], None],
        refuse: Callable[[Ask, RemoteError], None],
    ) -> None:
        self._topics, self._version = topics, version
        self._subscribed = subscribed
        self._call_later = call_later
        self._answer, self._refuse = answer, refuse
        self._watchers: dict[_Watcher, None] = {}  # in the order of arrival
        self._flush_timer: Timer | None = None
        self._matching: OrderedDict[str, tuple[int, list[dict[str, Any]]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(
        self, ask: Ask, pattern: re.Pattern[str], version: int | None, wait_ms: int, subscription: str = ""
    ) -> None:
        """Answer at once if the client's version is outdated, else once something changes; raises RemoteError `busy`.

        With a subscription, the answer says of each topic whether it was created after that subscription.
        """
        watcher = _Watcher(ask, pattern, subscription)
        if version is None or not wait_ms:
            self._tell(watcher)
            return
        if len(self._watchers) >= WATCHERS_MAX:
            raise RemoteError("busy", f"{WATCHERS_MAX} clients watch for topics already; try again")
        self._watchers[watcher] = None
        if version != self._version():
            self._change(watcher)
        else:
            watcher.timer = self._call_later(wait_ms / 1000, lambda: self._over(watcher))

    def changed(self, topic: str) -> None:
        """Note that a topic of that name was created or deleted."""
        for watcher in self._watchers:
            if not watcher.changed and watcher.pattern.fullmatch(topic):
                self._change(watcher)

    def _change(self, watcher: _Watcher) -> None:
        watcher.changed = True
        if self._flush_timer is None:
            self._flush_timer = self._call_later(SETTLE_S, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        for watcher in [watcher for watcher in self._watchers if watcher.changed]:
            self._over(watcher)

    def _over(self, watcher: _Watcher) -> None:
        self._watchers.pop(watcher, None)
        if watcher.timer is not None:
            watcher.timer.cancel()
        self._tell(watcher)

    def _tell(self, watcher: _Watcher) -> None:
        pattern = watcher.pattern.pattern
        version = self._version()
        known = self._matching.get(pattern)
        if known is None or known[0] != version:
            matches = watcher.pattern.fullmatch
            found = [
                {"topic": topic.name, "strategy": topic.dispatch, "created_ms": topic.created_ms}
                for topic in self._topics()
                if matches(topic.name) and not topic.settings.get(DEAD_LETTERS)
            ]
            known = self._matching[pattern] = (version, found)
            if len(self._matching) > REMEMBERED_MAX:
                self._matching.popitem(last=False)
        if len(known[1]) > MATCHES_MAX:
            text = (
                f"{counted(len(known[1]), 'topic matches', 'topics match')}, and a watch tells of at most "
                f"{MATCHES_MAX}: take a narrower pattern"
            )
            self._refuse(watcher.ask, RemoteError("limit-exceeded", text))
        else:
            found = known[1]
            if watcher.subscription:
                there = self._subscribed(watcher.subscription)
                found = [
                    each | {"later": later}
                    for each, later in zip(found, came_later(found, there), strict=True)
                ]
            self._answer(watcher.ask, {"version": version, "topics": found})


def came_later(topics: Sequence[Mapping[str, Any]], subscribed: Mapping[str, int]) -> list[bool]:
    """Return for each topic whether it was created after its pattern was first consumed and is not consumed yet; pure.

    `subscribed` says by topic when the consumer's subscription was created there. The first of these among the topics
    that match is when the pattern was first consumed. Times of creation are never equal.
    """
    first = min((subscribed[each["topic"]] for each in topics if each["topic"] in subscribed), default=None)
    return [
        first is not None and each["topic"] not in subscribed and each["created_ms"] > first
        for each in topics
    ]
