"""Tests of uploaders: a store that fails or is slow delays the watermark, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ister.actors.messages import Consult, Governs, Sealed, UploadDelayed, Uploaded
from ister.actors.runtime import Address, LoopActor, System, receives
from ister.actors.stored_cursors import Farewell
from ister.actors.uploader import Uploader
from ister.clock import SystemClock
from ister.errors import StoreError
from ister.storage.disk import LocalDisk
from ister.storage.folderstore import FolderStore
from ister.storage.meta import TopicMeta
from ister.storage.segment import SegmentInfo
from ister.storage.wal import Wal, WalSettings
from tests.raw_client import batch
from tests.stage import Recorder, StagedClock, StagedLoop

TOPIC = TopicMeta("orders", bytes(range(16)), "reliable", "fsync", 1)


class Librarian(LoopActor):
    """A Directory that knows one topic, with these settings and subscriptions."""

    def __init__(self, system: System, path: str) -> None:
        super().__init__(system, path)
        self.topic: TopicMeta | None = TOPIC
        self.subscriptions: list[str] = []

    @receives(Consult)
    def on_consult(self, question: Consult) -> None:
        """Answer."""
        self.system.at(question.reply).tell(Governs(self.topic, self.subscriptions))


class Scene:
    """An uploader with a store in a folder, and a topic that the test plays."""

    def __init__(self, folder: Path) -> None:
        self.loop = StagedLoop(StagedClock())
        self.system = System("tier", self.loop, None, self.loop.clock, Random(1))
        self.folder = folder
        self.store = FolderStore(str(folder / "store"))
        self.fails: list[Exception] = []
        self.puts: list[str] = []
        self._watch("put_file_if_absent")
        self._watch("put_if_absent")
        self.wal = Wal.open(
            LocalDisk(),
            str(folder / "log"),
            topic=TOPIC.name,
            incarnation=TOPIC.incarnation,
            settings=WalSettings(segment_bytes_max=1 << 20),
            clock=SystemClock(),
        )
        self.system.spawn(Recorder, "topic")
        topic = self.system.find("topic")
        assert isinstance(topic, Recorder)
        self.topic = topic
        self.system.spawn(Librarian, "directory")
        self.start()

    def _watch(self, name: str) -> None:
        put = getattr(self.store, name)

        def watched(object_name: str, *args: Any, **options: Any) -> Any:
            if "/s/" in object_name:
                if self.fails:
                    raise self.fails.pop(0)
                self.puts.append(object_name)
            return put(object_name, *args, **options)

        setattr(self.store, name, watched)

    def start(self) -> None:
        """Start an uploader without state."""
        self.uploader = self.system.spawn(
            Uploader,
            "uploader",
            TOPIC,
            self.store,
            directory=self.system.ref("tier", "directory"),
            broker="us",
            farewell=Farewell(),
            parallel=2,
            retry_ms=(100, 1000),
        )
        self.loop.settle()

    def seal(self, segments: int) -> tuple[SegmentInfo, ...]:
        """Write and seal so many segments of ten messages, and return all segments."""
        for _ in range(segments):
            frames = batch([b"%d" % n for n in range(10)])
            self.wal.append(count=10, producer_id=0, sequence=0, columns=0, frames=frames, timestamp_ms=1)
            self.wal.seal()
            self.wal.commit()
        return self.wal.sealed()

    def tell(self, segments: tuple[SegmentInfo, ...]) -> None:
        """Tell the uploader of segments."""
        self.uploader.tell(Sealed(TOPIC, segments, Address("tier", "topic")))
        self.loop.settle()

    def watermarks(self) -> list[int]:
        """Return the watermarks that the topic was told, and forget them."""
        return [each.watermark for each in self.topic.take(Uploaded)]

    def stored(self) -> dict[int, bytes]:
        """Return the objects in the store by first offset."""
        found = {}
        for info in self.store.list("v1/d/"):
            part = info.name.rsplit("/s/", 1)
            if len(part) == 2:
                found[int(part[1][:20])] = self.store.get(info.name)
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Return an uploader, its store and its topic."""
    scene = Scene(tmp_path)
    yield scene
    scene.system.stop_all()
    scene.wal.close()


def test_sealed_segments_reach_the_store_as_they_are(scene: Scene) -> None:
    """Byte for byte, in order, and the topic is told the watermark."""
    sealed = scene.seal(3)
    scene.tell(sealed[:1])
    scene.tell(sealed[1:])
    assert scene.watermarks()[-1] == 30
    assert scene.stored() == {each.base: Path(each.path).read_bytes() for each in sealed}
    assert scene.puts == sorted(scene.puts)


def test_the_watermark_waits_for_what_is_before_it(scene: Scene) -> None:
    """A later segment that is already in the store does not count before the earlier one is there too."""
    sealed = scene.seal(2)
    scene.fails = [StoreError("the store is away")]
    scene.tell(sealed)
    assert scene.stored().keys() == {10}
    assert set(scene.watermarks()) <= {0}
    assert scene.topic.take(UploadDelayed)
    scene.loop.advance(1)
    assert scene.watermarks()[-1] == 20


def test_a_store_that_is_away_is_tried_again_with_growing_patience(scene: Scene) -> None:
    """Each wait is longer than the one before, up to the maximum; a success makes the waits short again."""
    sealed = scene.seal(1)
    scene.fails = [StoreError("the store is away") for _ in range(8)]
    scene.tell(sealed)
    waits, left = [], len(scene.fails)
    began = scene.loop.time.now_s
    while scene.fails:
        scene.loop.advance(0.01)
        if len(scene.fails) < left:
            left = len(scene.fails)
            waits.append(scene.loop.time.now_s - began)
            began = scene.loop.time.now_s
    assert 0.07 <= waits[0] <= 0.14
    assert waits[3] > 3 * waits[0]
    assert max(waits) <= 1.3
    scene.loop.advance(2)
    assert scene.watermarks()[-1] == 10


def test_an_uploader_that_is_started_again_uploads_nothing_twice(scene: Scene) -> None:
    """It lists the store, and continues from there."""
    sealed = scene.seal(2)
    scene.tell(sealed)
    before = scene.stored()
    scene.system.stop_actor("uploader")
    scene.loop.settle()
    scene.puts.clear()
    scene.start()
    scene.tell(sealed)
    assert scene.watermarks()[-1] == 20
    assert scene.puts == []
    sealed = scene.seal(1)
    scene.tell(sealed[2:])
    assert scene.watermarks()[-1] == 30
    assert len(scene.puts) == 1
    assert {base: scene.stored()[base] for base in before} == before
