"""Tests of the Fetcher alone: its answers when the store is away, has less, or lost an object after a listing."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from ister.actors.addresses import FETCHER_PATH
from ister.actors.fetcher import LISTING_S, RETRY_S, Fetcher
from ister.actors.messages import Fetch, Fetched, NotFetched
from ister.storage.claiming import claim
from ister.storage.disk import Disk
from ister.storage.folders import cache_folder
from ister.storage.folderstore import FolderStore
from ister.storage.layout import Layout
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectStore
from ister.storage.simulated import SimulatedDisk
from ister.storage.store_folders import places
from ister.storage.upload import trim
from tests.faultystore import FaultyStore
from tests.stage import Recorder, Stage

TOPIC = TopicMeta("orders", bytes(16), "reliable", "fsync", 1)
LAYOUT = Layout(TOPIC.name, TOPIC.incarnation)


class Scene:
    """A Fetcher, a store with some segments of ten messages, and a topic that asks."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.store = FaultyStore(FolderStore("/store", cast(Disk, SimulatedDisk())))
        system = next(iter(stage.systems.values()))
        store, disk = cast(ObjectStore, self.store), cast(Disk, stage.disk)
        system.spawn(Fetcher, FETCHER_PATH, store, disk, "/data", parallel=2, cache_bytes_max=2500)
        self.fetcher = system.ref(system.node, FETCHER_PATH)
        system.spawn(Recorder, "reader")
        self.reader = cast(Recorder, system.find("reader"))
        self.copies: list[int] = []  # the numbers of the downloads it was told of
        self.epoch = claim(self.store, TOPIC, "writer").epoch

    def add(self, base: int) -> None:
        """Upload a segment of a thousand bytes."""
        about = {"next": str(base + 10)}
        assert self.store.put_if_absent(LAYOUT.segment(base, self.epoch), bytes(1000), metadata=about)

    def ask(self, offset: int, seconds: float = 0.0, *, looked: bool = False) -> list[object]:
        """Ask for an offset; return the answer that comes within so many seconds. `looked`: the last download used."""
        self.fetcher.tell(Fetch(TOPIC, offset, self.reader.address, self.copies[-1] if looked else 0))
        self.stage.advance(seconds)
        heard, self.reader.heard = self.reader.heard, []
        self.copies += [answer.copy for answer in heard if isinstance(answer, Fetched)]
        return [replace(each, copy=0) if isinstance(each, Fetched) else each for each in heard]

    def downloads(self) -> int:
        """Return how many segments were downloaded."""
        return len([call for call in self.store.calls if call[0] == "get" and "/s/" in call[1]])

    def cached(self) -> list[str]:
        """Return the segments in the cache."""
        folder = cache_folder("/data", TOPIC)
        return self.stage.disk.listdir(folder) if self.stage.disk.exists(folder) else []


@pytest.fixture
def scene(stage: Stage) -> Scene:
    """Return a scene whose store has three segments."""
    made = Scene(stage)
    for base in (0, 10, 20):
        made.add(base)
    return made


def test_what_is_asked_for_comes_and_what_follows_is_made_ready(scene: Scene) -> None:
    """One question fetches a segment and the next ones; the cache exceeds its limit by one segment at most."""
    assert scene.ask(3) == [Fetched(3, 0)]
    assert 1 <= len(scene.cached()) <= 3
    scene.stage.advance(1)
    assert len(scene.cached()) == 2


def test_a_store_that_is_away_is_a_reason_to_ask_again(scene: Scene) -> None:
    """A listing or download that fails is not taken for a gap, and the answer comes after a delay."""
    scene.store.away()
    assert scene.ask(3) == []
    scene.stage.advance(RETRY_S)
    (answer,) = scene.reader.take(NotFetched)
    assert answer.retry
    scene.store.back()
    assert scene.ask(3) == [Fetched(3, 0)]


def test_what_is_uploaded_after_a_listing_is_found(scene: Scene) -> None:
    """An offset after the end of the listing is looked up again, in a listing of limited age."""
    assert scene.ask(25) == [Fetched(25, 20)]
    scene.add(30)
    scene.stage.advance(LISTING_S + 0.01)
    assert scene.ask(35) == [Fetched(35, 30)]


def test_what_was_trimmed_after_a_listing_is_not_taken_for_damage(scene: Scene) -> None:
    """If an object of the listing is gone, a new listing says where the history begins."""
    assert scene.ask(25) == [Fetched(25, 20)]
    trim(scene.store, TOPIC, scene.epoch, 20)
    (first,) = scene.ask(3, RETRY_S)
    assert isinstance(first, NotFetched)
    assert first.retry
    (second,) = scene.ask(3, RETRY_S)
    assert (cast(NotFetched, second).retry, cast(NotFetched, second).start) == (False, 20)


def test_who_asks_for_the_same_again_and_again_is_told_that_it_is_damaged(scene: Scene) -> None:
    """A segment is downloaded again once; a reader that still cannot use it is told that it is damaged."""
    assert scene.ask(3) == [Fetched(3, 0)]
    assert scene.ask(3, looked=True) == [Fetched(3, 0)]
    (answer,) = scene.ask(3, RETRY_S, looked=True)
    assert isinstance(answer, NotFetched)
    assert not answer.retry
    assert "damaged" in answer.text
    assert scene.downloads() <= 5


def test_who_asks_again_because_it_has_heard_nothing_costs_nothing(scene: Scene) -> None:
    """If the answer is late or lost, it is repeated: no new download, and no report of damage."""
    assert scene.ask(3, 0.1) == [Fetched(3, 0)]
    brought = scene.downloads()
    for _ in range(5):
        assert scene.ask(3, 0.1) == [Fetched(3, 0)]
    assert (len(set(scene.copies)), scene.downloads()) == (1, brought)
    assert scene.ask(3, looked=True) == [Fetched(3, 0)]
    assert len(set(scene.copies)) == 2


def test_who_asks_again_meanwhile_is_answered_once(scene: Scene) -> None:
    """However long a listing, a download or an answer takes: otherwise each answer would lead to two questions."""
    loop = scene.stage.loop
    loop.holds_work = True
    for _ in range(2):  # a listing, then the download
        for _ in range(3):
            assert scene.ask(3) == []
        loop.do_work()
        scene.stage.settle()
    assert len(scene.reader.take(Fetched)) == 1
    loop.holds_work = False
    scene.stage.advance(1)
    scene.ask(3)
    scene.store.away()
    scene.stage.advance(LISTING_S + 0.1)
    for _ in range(5):
        assert scene.ask(95) == []
    scene.stage.advance(3 * RETRY_S)
    (answer,) = scene.reader.take(NotFetched)
    assert answer.retry


def test_a_segment_that_made_room_before_it_was_looked_at_is_not_taken_for_damaged(scene: Scene) -> None:
    """However often it is evicted, also if others have it downloaded meanwhile."""
    scene.ask(3)
    system = next(iter(scene.stage.systems.values()))
    system.spawn(Recorder, "other")
    other = cast(Recorder, system.find("other")).address
    for _ in range(5):
        for offset in (13, 23, 3):
            scene.fetcher.tell(Fetch(TOPIC, offset, other))
            scene.stage.advance(0.1)
        assert scene.ask(3, 1.0, looked=True) == [Fetched(3, 0)]


def test_what_the_store_has_lost_is_said_with_its_range(scene: Scene) -> None:
    """Nobody will upload a gap, so waiting is of no use; the messages before and after it are fetched."""
    scene.store.store.delete(LAYOUT.segment(10, scene.epoch))
    (answer,) = scene.ask(13, RETRY_S)
    assert (cast(NotFetched, answer).retry, cast(NotFetched, answer).end) == (False, 20)
    assert "lost offsets 13 to before 20" in cast(NotFetched, answer).text
    assert scene.ask(3) == [Fetched(3, 0)]
    assert scene.ask(23) == [Fetched(23, 20)]


def test_an_offset_behind_a_history_is_final_by_a_listing_made_after_it_was_asked_for(scene: Scene) -> None:
    """A segment missing in an earlier listing may have been uploaded since; one missing in a later listing was not."""
    assert scene.ask(25) == [Fetched(25, 20)]
    (answer,) = scene.ask(35, RETRY_S)
    assert cast(NotFetched, answer).retry
    (answer,) = scene.ask(35, RETRY_S)
    assert (cast(NotFetched, answer).retry, cast(NotFetched, answer).end) == (False, 0)


def test_while_a_writer_has_not_said_where_it_begins_nothing_is_final(scene: Scene) -> None:
    """Its note may decide which segments count."""
    scene.store.put_if_absent(LAYOUT.epoch(scene.epoch + 1), b"")
    (answer,) = scene.ask(35, RETRY_S)
    assert cast(NotFetched, answer).retry


def test_an_object_that_fails_its_checksum_is_brought_for_the_records_in_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Each record has a checksum of its own: one flipped byte costs only its record."""
    place = places(LAYOUT.segment(0, scene.epoch))[0]
    path = f"{scene.store.store.path}/{place.path}"  # type: ignore[attr-defined]
    file = scene.store.store._disk.open(path)  # type: ignore[attr-defined]
    file.pwritev((b"?",), 500)
    file.close()
    assert scene.ask(3) == [Fetched(3, 0)]
    assert f"{LAYOUT.segment(0, scene.epoch)} is read unchecked" in caplog.text
