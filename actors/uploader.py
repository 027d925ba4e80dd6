"""Uploaders: one a reliable topic, each copies sealed segments to the store and keeps a watermark.

Runs in the tier process. The order of uploads is `storage.tier.UploadPlan`'s; this adds threads, time and the store.

Invariants
- the watermark moves only as a contiguous prefix: everything below it is in the store, byte for byte
- an object that is there already is compared with our own bytes before it is taken for ours
- a store that is away delays uploads, and nothing else
"""

from __future__ import annotations

import logging
from typing import Any, Final

from actors.messages import Answer, Describe, Sealed, StopUploads, Uploaded
from actors.runtime import LoopActor, Ref, System, receives
from ister.errors import IsterError, StoreError
from ister.wire import encode_result
from storage.catalogue import TopicMeta
from storage.segment import SegmentInfo
from storage.store import ObjectStore
from storage.tier import Layout, UploadPlan, joined_end, segment_metadata

log = logging.getLogger("ister.uploader")

EPOCH: Final = 1  # one writer only: the data folder's lock sees to it
JITTER: Final = (
    0.25  # a quarter around each wait, so that a thousand topics do not return to a store together
)


class Uploader(LoopActor):
    """Copies one topic's sealed segments; `retry_ms` bounds the wait after a failure, which doubles."""

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        store: ObjectStore,
        *,
        parallel: int,
        retry_ms: tuple[int, int],
    ) -> None:
        super().__init__(system, path)
        self._topic = topic
        self._store = store
        self._layout = Layout(topic.name, topic.incarnation)
        self._parallel = parallel
        self._retry_s = (retry_ms[0] / 1000, retry_ms[1] / 1000)
        self._wait_s = self._retry_s[0]
        self._waiting = False
        self._plan: UploadPlan | None = None  # known once the store was listed
        self._sealed: dict[int, SegmentInfo] = {}
        self._reply: Ref | None = None
        self._stopped = False
        self.failure: str | None = None
        self.uploaded_segments = 0
        self.uploaded_bytes = 0

    def on_start(self) -> None:
        """Ask the store how far it has the topic."""
        self._list()

    def _list(self) -> None:
        def work() -> list[tuple[int, int]]:
            found: list[tuple[int, int]] = []
            for info in self._store.list(self._layout.segments):
                place = self._layout.parse_segment(info.name)
                if place is not None:
                    found.append((place[0], int(info.metadata["next"])))
            return found

        self.offload(work, self._listed)

    def _listed(self, found: list[tuple[int, int]] | None, error: BaseException | None) -> None:
        if error is not None or found is None:
            self._failed(f"the store could not be listed: {error}", self._list)
            return
        self._plan = UploadPlan(joined_end(found, min(self._sealed, default=0)), self._parallel)
        self._settled(self._plan.watermark)
        self._go_on()

    @receives(Sealed)
    def on_sealed(self, command: Sealed) -> None:
        """Note segments that can be uploaded."""
        self._reply = self.system.at(command.reply)
        if self._plan is not None:
            self._reply.tell(Uploaded(self._plan.watermark))
        for segment in command.segments:
            if self._plan is None or segment.end > self._plan.watermark:
                self._sealed[segment.base] = segment
        self._go_on()

    @receives(StopUploads)
    def on_stop_uploads(self, _command: StopUploads) -> None:
        """The topic is deleted."""
        self._stopped = True
        self.stop()

    def _go_on(self) -> None:
        plan = self._plan
        if plan is None or self._waiting or self._stopped:
            return
        sealed = [self._sealed[base] for base in sorted(self._sealed)]
        while (segment := plan.next(sealed)) is not None:
            plan.begin(segment)
            self._upload(segment)

    def _upload(self, segment: SegmentInfo) -> None:
        name = self._layout.segment(segment.base, EPOCH)
        store, metadata = self._store, segment_metadata(segment, self._topic.incarnation.hex())

        def work() -> None:
            if not store.put_file_if_absent(name, segment.path, metadata=metadata):
                _compare(store, name, segment)

        self.offload(work, lambda _, error: self._uploaded(segment, error))

    def _uploaded(self, segment: SegmentInfo, error: BaseException | None) -> None:
        assert self._plan is not None
        if error is not None:
            self._plan.failed(segment.base)
            if isinstance(error, IsterError) and error.action == "stop":
                self._stopped = True  # two truths about one offset: nobody may choose but a person
                self.failure = str(error)
                log.critical("uploads of topic %s stop: %s", self._topic.name, error)
                return
            self._failed(f"{segment.path} was not uploaded: {error}", self._go_on)
            return
        self._wait_s, self.failure = self._retry_s[0], None
        self.uploaded_segments += 1
        self.uploaded_bytes += segment.bytes
        self._settled(self._plan.done(segment.base, segment.end))
        self._go_on()

    def _settled(self, watermark: int) -> None:
        for base in [base for base, segment in self._sealed.items() if segment.end <= watermark]:
            del self._sealed[base]
        if self._reply is not None:
            self._reply.tell(Uploaded(watermark))

    def _failed(self, text: str, again: Any) -> None:
        self.failure = text
        if self._waiting or self._stopped:
            return
        wait_s = self._wait_s * (1 + JITTER * (2 * self.system.random.random() - 1))
        self._wait_s = min(self._wait_s * 2, self._retry_s[1])
        log.warning("topic %s: %s; trying again in %.1f s", self._topic.name, text, wait_s)
        self._waiting = True

        def resume() -> None:
            self._waiting = False
            again()

        self.call_later(wait_s, resume)

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        body = {
            "topic": self._topic.name,
            "uploaded_end": 0 if self._plan is None else self._plan.watermark,
            "waiting_segments": len(self._sealed),
            "uploaded_segments": self.uploaded_segments,
            "uploaded_bytes": self.uploaded_bytes,
            "failure": self.failure,
        }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))


def _compare(store: ObjectStore, name: str, segment: SegmentInfo) -> None:
    """Return if the store's object is this segment; raises `StoreError` to stop when it is another."""
    info = store.head(name)
    if info is None:
        raise StoreError(f"object {name} was there, and is gone")
    if info.size != segment.bytes or info.metadata.get("next") != str(segment.end):
        raise StoreError(
            f"object {name} has {info.size} bytes up to offset {info.metadata.get('next')}, "
            f"our segment {segment.bytes} bytes up to {segment.end}",
            code="object-differs",
            action="stop",
        )
