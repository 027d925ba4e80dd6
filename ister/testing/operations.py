"""The answers of the broker for tests to REQUEST: topics, subscriptions, status, and watches of patterns.

It reads arguments and makes results. `catalogue.py` has the topics; `sessions.py` sends to clients. An unknown
operation is refused with `unknown-operation`.
"""

from __future__ import annotations

from typing import Any, Final

from ister import wire
from ister.clock import Clock
from ister.errors import RemoteError, UsageError
from ister.names import topic_pattern
from ister.testing import failures
from ister.testing.catalogue import Catalogue
from ister.testing.model import Session, Subscription, Topic
from ister.testing.sessions import Sessions
from ister.wire import Key

WATCH_MS: Final = 5000  # how long a watch waits for a change, by default
_PAGE: Final = 100


class Operations:
    """The requests of clients, answered one by one; watches wait for a change."""

    def __init__(self, catalogue: Catalogue, sessions: Sessions, clock: Clock) -> None:
        self._catalogue = catalogue
        self._sessions = sessions
        self._clock = clock
        self._watches: list[tuple[Session, int, dict[str, Any], float]] = []  # REF, arguments, until when

    def on_request(self, session: Session, header: wire.Header) -> None:
        """Answer a REQUEST, at once or (`topic.watch`) later; raises `RemoteError`."""
        operation, asked, ref = header[Key.OPERATION], header.get(Key.ARGUMENTS, {}), header[Key.REF]
        try:
            if operation == "topic.watch":
                until = self._clock.monotonic() + asked.get("wait_ms", WATCH_MS) / 1000
                topic_pattern(asked["pattern"])  # missing or wrong now, and not when the answer is due
                self._watches.append((session, ref, asked, until))
            else:
                self._sessions.result(session, ref, self._answer(operation, asked))
        except KeyError as missing:
            raise RemoteError("invalid-argument", f"{operation} needs the argument {missing}") from None
        except UsageError as wrong:
            raise RemoteError(wrong.code, wrong.text) from None

    def answer_watches(self) -> None:
        """Answer every watch that has waited long enough, or that is affected by a change."""
        version, now = self._catalogue.changes, self._clock.monotonic()
        watches, self._watches = self._watches, []
        for watch in watches:
            session, ref, asked, until = watch
            if asked.get("version") == version and now < until:
                self._watches.append(watch)
            elif self._sessions.is_known(session):
                found = self._catalogue.matching(asked["pattern"], asked.get("subscription", ""))
                self._sessions.result(session, ref, {"version": version, "topics": found})

    def _answer(self, operation: str, asked: dict[str, Any]) -> Any:
        if operation == "status":
            return {"broker": {"boot": self._sessions.boot}, "processes": []}
        if operation == "topic.list":
            topics, more = self._catalogue.page(asked.get("after", ""), asked.get("limit", _PAGE))
            return {"topics": [topic.shown() for topic in topics], "more": more}
        if operation == "topic.create":
            return self._catalogue.create(asked).shown()
        topic = self._catalogue.topic(asked["topic"])
        if operation == "topic.show":
            return topic.shown()
        if operation == "topic.delete":
            deleted = RemoteError("topic-deleted", f"topic {topic.name!r} was deleted")
            self._sessions.close_all_of(topic.name, deleted)
            self._catalogue.delete(topic)
            return {}
        if not operation.startswith("subscription."):
            raise _unknown(operation)
        if operation == "subscription.list":
            shown = [_shown(each) for _, each in sorted(topic.subscriptions.items())]
            return {"subscriptions": shown, "more": False}
        if operation == "subscription.create":
            kind, start = asked.get("type", "shared"), asked.get("start", "latest")
            return _shown(self._catalogue.subscribe(topic, asked["subscription"], kind, start, asked))
        return self._answer_about(
            self._catalogue.subscription(topic, asked["subscription"]), operation, asked
        )

    def _answer_about(self, subscription: Subscription, operation: str, asked: dict[str, Any]) -> Any:
        if operation == "subscription.show":
            return _shown(subscription)
        if operation == "subscription.update":
            return self._update(subscription, asked)
        if operation == "subscription.seek":
            position = subscription.topic.place(asked["to"])
            subscription.seek(position)
            self._sessions.tell(subscription, "sought", position)
            return {"position": position}
        if operation == "subscription.unblock":
            return {"messages": self._unblock(subscription, asked["action"])}
        if operation == "subscription.explain":
            return subscription.explain()
        if operation == "subscription.delete":
            self._delete(subscription.topic, subscription.name)
            return {}
        raise _unknown(operation)

    def _update(self, subscription: Subscription, asked: dict[str, Any]) -> dict[str, Any]:
        before = subscription.settings.get("paused", 0)
        self._catalogue.change(subscription, asked)
        if subscription.settings.get("paused", 0) != before:
            self._sessions.tell(subscription, "resumed" if before else "paused")
        return _shown(subscription)

    def _unblock(self, subscription: Subscription, action: str) -> int:
        blocking, subscription.blocking = subscription.blocking, []
        for offset, reason in blocking:
            subscription.failures.pop(offset, None)
            if action == "retry":
                subscription.attempts[offset] = subscription.attempts.get(offset, 1) + 1
                subscription.again = sorted({*subscription.again, offset})
                continue
            if action == "dead-letter":
                self._catalogue.bury(subscription, offset, reason, self._clock.time_ms())
            subscription.acked.add(offset)
        return len(blocking)

    def _delete(self, topic: Topic, name: str) -> None:
        deleted = RemoteError("subscription-deleted", f"subscription {name!r} was deleted")
        for consumer in list(topic.subscriptions.pop(name).consumers):
            self._sessions.close(consumer, deleted)


def _unknown(operation: str) -> RemoteError:
    return RemoteError("unknown-operation", f"the broker for tests has no operation {operation!r}")


def _shown(subscription: Subscription) -> dict[str, Any]:
    options = failures.options_of(subscription)
    return subscription.shown() | {
        "options": options,
        "dead_letter_topic": options.get("dead_letter_topic"),
    }
