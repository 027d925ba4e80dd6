"""The conversation of a reliable topic with its Uploader. Part of a ReliableTopic, in a worker process.

It owns the topic's view of the store (`store_view.py`), what waits for a listing of it (`surveys.py`), and the
questions whether another broker has the topic. May touch the mail.

Invariants
- the Uploader is told what is sealed before the topic is claimed, because that must fit what the store has
- what the tier should have uploaded long ago is sent again: the message or its answer may be lost
- settings that the Uploader does not know are sent with the next check of retention
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ister.actors.messages import AskFenced, KeepTopic, Retain, Sealed
from ister.actors.runtime import LoopActor, Ref
from ister.actors.store_view import News, StoreView, lost_by_log
from ister.actors.surveys import Surveys
from ister.storage.meta import TopicMeta
from ister.storage.wal import Wal


class StoreLink:
    """The link to the Uploader of `host`'s topic; `answer(command, fenced)` answers an AskFenced."""

    def __init__(
        self,
        host: LoopActor,
        meta: TopicMeta,
        uploader: Ref,
        *,
        answer: Callable[[AskFenced, bool], None],
    ) -> None:
        self.view = StoreView()
        self.surveys = Surveys(host, meta.name, uploader)
        self._host = host
        self._meta = meta
        self._uploader = uploader
        self._answer = answer
        self._retain_told: dict[str, Any] = meta.settings  # the settings last sent to the Uploader
        self._asked: list[AskFenced] = []  # questions to be answered once it is known

    def go_by(self, meta: TopicMeta) -> None:
        """Apply other settings."""
        self._meta = meta

    def keep(self, wal: Wal | None) -> None:
        """Have the topic claimed in the store, and be told what the store has of it."""
        if wal is not None:
            self._uploader.tell(KeepTopic(self._meta, wal.start_offset, wal.sealed_end, self._host.address))

    def committed(self, wal: Wal) -> None:
        """Tell the tier what is sealed."""
        sealed = wal.sealed()
        self.view.note_behind(sealed)
        news = self.view.news(sealed, wal.set_aside())
        if news is not None:
            self._tell_sealed(wal, news)

    def _tell_sealed(self, wal: Wal, news: News) -> None:
        missing = lost_by_log(wal.damaged, (*wal.sealed(), *wal.set_aside())) if wal.damaged else ()
        self._uploader.tell(Sealed(self._meta, news.sealed, self._host.address, news.damaged, missing))

    @property
    def settled(self) -> bool:
        """Whether the tier has answered to everything that it was told."""
        unknown = self._meta.durability == "cloud" and not self.view.known
        return not unknown and self.view.has_all_told and self._meta.settings == self._retain_told

    def tell_again(self, wal: Wal | None) -> None:
        """Tell the tier again what it should have uploaded long ago."""
        now_s, view = self._host.clock.monotonic(), self.view
        if wal is None:
            view.look_again(now_s)
        elif view.waits_too_long(now_s):
            if view.known:
                news = view.not_taken(wal.sealed(), wal.set_aside())
                if news is not None:
                    self._tell_sealed(wal, news)
            elif self._meta.durability == "cloud":  # with other durabilities there may be no tier
                self.keep(wal)

    def node_started(self, node: str, wal: Wal | None) -> None:
        """Tell a tier that was restarted what is sealed."""
        if node != self._uploader.address.node:
            return
        self.view.forget_told()
        if wal is None:
            self.view.note_behind(())
        else:
            self.committed(wal)
            self.keep(wal)

    def retain(self, acknowledged: int | None, *, always: bool) -> None:
        """Tell the Uploader what all subscriptions are done with: `always`, or only if settings changed."""
        if always or self._meta.settings != self._retain_told:
            self._retain_told = self._meta.settings
            self._uploader.tell(Retain(self._meta, acknowledged))

    def survey(self, then: Callable[[], None]) -> None:
        """Have the store listed, if it has anything, and call `then` after that."""
        if self.view.known and self.view.watermark:
            self.surveys.then(then)
        else:
            then()

    def ask_fenced(self, command: AskFenced) -> None:
        """Answer whether another broker has the topic, once that is known."""
        self._asked.append(command)

    def answer_fenced(self, fenced: bool) -> None:
        """Answer the questions that wait."""
        asked, self._asked = self._asked, []
        for command in asked:
            self._answer(command, fenced)
