"""The Restorer: restores topics that only the store knows, and deletes objects that belong to no topic.

Runs in the tier process, one actor. At the start of the broker it tells the Directory which topics the store has.
Those that the Directory does not know are restored: their next epoch is claimed first, which fences a broker that
still believes it owns them. Then their history is listed, and their cursors are written where subscriptions look for
them.

Invariants
- a topic's offsets continue where the store's history ends, never below
- what a producer resends is stored once, also if its first copy came by another broker
- what may be missing is reported, per topic
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ister.actors.asking import Asking
from ister.actors.messages import (
    Answer,
    NotRestored,
    Refused,
    Restored,
    RestoreTopics,
    StoredTopics,
    TakeOver,
)
from ister.actors.runtime import Address, LoopActor, Ref, System, Timer, receives
from ister.actors.threads import Purpose
from ister.backoff import BackOff
from ister.errors import DamagedError, IsterError, StoreError
from ister.storage.claiming import claim
from ister.storage.disk import Disk
from ister.storage.erase import sweep_orphans
from ister.storage.history import History
from ister.storage.known_producers import PRODUCERS_NAME, save_producers
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.numbered_objects import read_cursors, read_settings
from ister.storage.objectstore import ObjectStore
from ister.storage.stored_producers import stored_producers
from ister.storage.topic_entry import RESTORED_END, entered, list_topics, own_settings
from ister.wire import encode_result
from ister.words import counted

log = logging.getLogger("ister.restorer")

SWEEP_S: Final = 6 * 3600.0  # seconds between two searches for objects of no topic: each lists every object


class Restorer(LoopActor):
    """Restores topics, and deletes orphaned objects older than `orphan_grace_ms`."""

    def __init__(
        self,
        system: System,
        path: str,
        store: ObjectStore,
        disk: Disk,
        *,
        directory: Ref,
        broker: str,
        cursor_path: Callable[[TopicMeta, SubscriptionMeta], str],
        log_path: Callable[[TopicMeta], str],
        retry_ms: tuple[int, int],
        orphan_grace_ms: int,
    ) -> None:
        super().__init__(system, path)
        self._store = store
        self._disk = disk
        self._directory = directory
        self._broker = broker
        self._cursor_path = cursor_path
        self._log_path = log_path
        self._wait = BackOff(retry_ms[0] / 1000, retry_ms[1] / 1000)
        self._grace_ms = orphan_grace_ms
        self._sweep_timer: Timer | None = None
        self._stored: StoredTopics | None = None  # sent to the Directory until it has answered
        self._asking = Asking()  # the question to the Directory
        self._tell_timer: Timer | None = None
        self._under_way: set[bytes] = set()  # incarnations that are being restored
        # outcomes, by incarnation and by the request to take a topic over
        self._ended: dict[bytes | tuple[Address, int], Restored | NotRestored] = {}
        # requests that wait, by the name of the topic that is taken over
        self._taking: dict[str, dict[tuple[Address, int], None]] = {}

    def on_start(self) -> None:
        """Ask the store which topics it has."""
        self._list()
        self._sweep_timer = self.call_later(SWEEP_S, self._sweep)

    def _list(self) -> None:
        def damaged(name: str, error: StoreError) -> None:
            log.error("catalogue entry %s of the store is ignored: %s", name, error)

        self.offload(lambda: list_topics(self._store, damaged), self._listed, Purpose.STORE)

    def _listed(self, topics: list[TopicMeta] | None, error: BaseException | None) -> None:
        if error is not None or topics is None:
            wait_s = self._wait.failed()
            log.warning("the store could not be listed: %s; trying again in %.1f s", error, wait_s)
            self.call_later(wait_s, self._list)
            return
        self._wait.succeeded()
        self._stored = StoredTopics(tuple(topics), self.address)
        self._tell_stored()

    def _tell_stored(self) -> None:
        """Tell the Directory again until it answers: mail can be lost, and it waits for this."""
        if self._stored is not None:
            self._directory.tell(self._stored)
            self._tell_timer = self.call_later(self._asking.asked(), self._tell_stored)

    @receives(RestoreTopics)
    def on_restore(self, command: RestoreTopics) -> None:
        """Restore topics one after the other; outcomes that are known already are reported again."""
        self._stored = None
        if self._tell_timer is not None:
            self._tell_timer.cancel()
        for topic in command.topics:
            if (ended := self._ended.get(topic.incarnation)) is not None:
                self._directory.tell(ended)
            elif topic.incarnation not in self._under_way:
                self._under_way.add(topic.incarnation)
                self._restore(topic)

    def _has_ended(self, topic: TopicMeta, answer: Restored | NotRestored) -> None:
        self._under_way.discard(topic.incarnation)
        self._ended[topic.incarnation] = answer
        self._directory.tell(answer)

    def _restore(self, topic: TopicMeta) -> None:
        identity = self.system.random.randbytes(16).hex()  # of this attempt only

        def ended(restored: Restored | None, error: BaseException | None) -> None:
            if isinstance(error, IsterError) and error.code == "object-missing" and error.action == "stop":
                log.info("topic %s is not restored: %s", topic.name, error)
                self._has_ended(topic, NotRestored(topic.name))
                return
            if error is not None or restored is None:
                wait_s = self._wait.failed()
                log.error(
                    "topic %s is not restored yet: %s; trying again in %.1f s", topic.name, error, wait_s
                )
                self.call_later(wait_s, lambda: self._restore(topic))
                return
            log.warning("%s", restored.text)
            self._has_ended(topic, restored)

        self.offload(lambda: self._bring_back(topic, identity), ended, Purpose.STORE)

    @receives(TakeOver)
    def on_take_over(self, command: TakeOver) -> None:
        """Restore the topic that the store has under a name, whoever owns it; once, and report the outcome."""
        who = command.reply, command.ticket
        if (before := self._ended.get(who)) is not None:
            self._directory.tell(before)
            return
        if (waiting := self._taking.get(command.topic)) is not None:
            waiting[who] = None
            return
        self._taking[command.topic] = {who: None}
        identity = self.system.random.randbytes(16).hex()

        def answer(ended: Restored | NotRestored, make: Callable[[int], Answer | Refused]) -> None:
            self._directory.tell(ended)
            for reply, ticket in self._taking.pop(command.topic):
                self._ended[reply, ticket] = ended
                self.system.at(reply).tell(make(ticket))

        def work() -> Restored:
            topic = entered(self._store, command.topic)
            if topic is None:
                raise StoreError(
                    f"the store has no topic {command.topic!r}", code="unknown-topic", action="fix"
                )
            if self._has_log(path := self._log_path(topic)):
                raise StoreError(
                    f"this broker's former log of topic {command.topic!r} is still in {path}: restart the broker, "
                    "which deletes it, and try again"
                )
            return self._bring_back(topic, identity)

        def ended(restored: Restored | None, error: BaseException | None) -> None:
            if restored is not None:
                log.warning("%s", restored.text)
                body = encode_result({"text": restored.text})
                answer(restored, lambda ticket: Answer(ticket, body))
                return
            log.warning("topic %s was not taken over: %s", command.topic, error)
            code = (
                error.code
                if isinstance(error, IsterError) and error.code == "unknown-topic"
                else "unavailable"
            )
            text = f"topic {command.topic!r} was not taken over: {error}"
            answer(NotRestored(command.topic), lambda ticket: Refused(ticket, code, text))

        self.offload(work, ended, Purpose.STORE)

    def _has_log(self, path: str) -> bool:
        """Whether a folder has more of a log than what an earlier attempt to restore its topic wrote there."""
        names = self._disk.listdir(path) if self._disk.exists(path) else []
        return any(name.removesuffix(".new") != PRODUCERS_NAME for name in names)

    def _bring_back(self, topic: TopicMeta, identity: str) -> Restored:
        """Claim a topic, and write its cursors where subscriptions look (in a thread). Raises StoreError."""
        claimed = claim(self._store, topic, identity, None, broker=self._broker, enter=False)
        history = claimed.history
        again = ""
        try:
            settings = read_settings(self._store, topic)
        except StoreError as error:
            if error.code != "object-damaged":
                raise
            settings = {}  # unreadable settings: keeping too much is the safer error
            again += f"; its settings are damaged ({error}): it keeps everything until it is told otherwise"
        subscriptions = []
        troubles: list[str] = []
        for subscription, journal in read_cursors(self._store, topic, troubles.append):
            if journal is not None:
                self._write(self._cursor_path(topic, subscription), journal)
                subscriptions.append(subscription)
            else:
                subscriptions.append(replace(subscription, start="earliest"))
                again += f"; the cursor of subscription {subscription.name} is damaged: it begins anew"
        again += self._bring_producers(topic, history, claimed.start)
        kept = own_settings(topic) if settings is None else settings
        back = replace(topic, settings={**kept, RESTORED_END: claimed.start})
        text = (
            f"topic {topic.name}: offsets {history.start} to {history.end} and "
            f"{counted(len(subscriptions), 'subscription')} "
            f"are back from the store; what was acknowledged to producers above that and not uploaded is lost"
            f"{again}{''.join(f'; {each}' for each in troubles)}"
        )
        return Restored(back, tuple(subscriptions), text)

    def _bring_producers(self, topic: TopicMeta, history: History, start: int) -> str:
        """Write what the store knows of producers where the log begins with it; return what is wrong with that."""
        try:
            snapshot = stored_producers(self._store, history, topic.incarnation)
        except (DamagedError, StoreError) as error:
            if isinstance(error, StoreError) and error.code != "object-missing":
                raise
            return f"; what its producers resend may be stored twice ({error})"
        if snapshot:
            save_producers(self._disk, self._log_path(topic), topic.incarnation, start, snapshot)
        if history.gaps:
            return f"; what its producers resend may be stored twice (offset {history.gaps[0][0]} is missing)"
        return ""

    def _write(self, path: str, journal: bytes) -> None:
        self._disk.makedirs(path.rpartition("/")[0])
        part = f"{path}.part"
        if self._disk.exists(part):
            self._disk.unlink(part)
        file = self._disk.create(part)
        try:
            file.pwritev((journal,), 0)
            file.datasync()
        finally:
            file.close()
        self._disk.rename(part, path)
        self._disk.sync_folder(path.rpartition("/")[0])

    # ---- orphans ------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweep_timer = self.call_later(SWEEP_S, self._sweep)
        oldest_ms = self.clock.time_ms() - self._grace_ms
        self.offload(lambda: sweep_orphans(self._store, oldest_ms), self._swept, Purpose.STORE)

    def _swept(self, deleted: int | None, error: BaseException | None) -> None:
        if error is not None:
            log.warning("objects of deleted topics could not be removed yet: %s", error)
        elif deleted:
            log.info("%s of deleted topics removed from the store", counted(deleted, "object"))
