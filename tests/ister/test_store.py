"""Tests of reading topics from a store without a broker: everything once, in order, checked; gaps are reported."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

import ister.store
from ister.errors import DamagedError, GapError, StoreError, TrimmedError, UsageError
from ister.storage.folderstore import FolderStore
from ister.storage.listing import read_history
from ister.storage.replay import Replay
from tests.storedtopic import FIRST_MS, StoredTopic, attributes, key, payload, store_a_topic


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the address of a store in a folder."""
    return f"file://{tmp_path}/store"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return that store."""
    return FolderStore(f"{tmp_path}/store")


@pytest.fixture
def topic(tmp_path: Path, store: FolderStore) -> Iterator[StoredTopic]:
    """Return a topic `orders` in it."""
    topic = store_a_topic(tmp_path, store)
    yield topic
    topic.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for gaps to be filled."""
    monkeypatch.setitem(Replay.__init__.__kwdefaults__ or {}, "gap_wait_s", 0)


def offsets(url: str, from_offset: int = 0, **given: int) -> list[int]:
    """Return the offsets that reading yields."""
    return [message.offset for message in ister.store.read(url, "orders", from_offset, **given)]  # type: ignore[arg-type]


def test_every_message_comes_once_in_order_with_all_that_belongs_to_it(topic: StoredTopic, url: str) -> None:
    """With the payload, key, attributes and time that were published."""
    messages = list(ister.store.read(url, "orders"))
    assert [message.offset for message in messages] == list(range(61))
    for message in messages:
        offset = message.offset
        assert (message.payload, message.key, message.attributes) == (
            payload(offset),
            key(offset),
            attributes(offset),
        )
        assert message.topic == "orders"
    times = [message.timestamp - FIRST_MS for message in messages]
    assert times == [0] + [1000] * 20 + [2000] * 15 + [3000] * 14 + [4000] + [5000] * 10


@pytest.mark.parametrize("start", [0, 1, 5, 35, 36, 37, 49, 50, 60, 61])
def test_reading_begins_anywhere(topic: StoredTopic, url: str, start: int) -> None:
    """Also inside a batch, and at the end."""
    assert offsets(url, start) == list(range(start, 61))


@pytest.mark.parametrize(
    ("time_s", "first"), [(-5, 0), (0, 0), (0.5, 1), (1, 1), (2, 21), (3, 36), (3.5, 50), (5, 51), (6, 61)]
)
def test_reading_begins_at_a_time(topic: StoredTopic, url: str, time_s: float, first: int) -> None:
    """The first message that arrived at that time or later is read first."""
    assert offsets(url, from_time_ms=FIRST_MS + round(1000 * time_s)) == list(range(first, 61))


def test_batches_are_those_that_were_published(topic: StoredTopic, url: str) -> None:
    """Except the first, which begins where reading begins."""
    found = [(batch.offsets[0], len(batch)) for batch in ister.store.read_batches(url, "orders", 5)]
    assert found == [(5, 16), (21, 15), (36, 14), (50, 1), (51, 10)]


def test_a_writer_that_was_superseded_is_not_read(tmp_path: Path, store: FolderStore, url: str) -> None:
    """Its late upload is in the store, but its messages come from the new owner's objects, cut differently."""
    old = StoredTopic(tmp_path / "old", store)
    new = StoredTopic(tmp_path / "new", store)
    old.begin(1, 0)
    old.upload(old.write([10, 10]))
    late = old.write([10])
    new.write([7])
    whole = new.write([20, 20])  # the same first 20, and the new owner's own
    new.begin(2, 20)
    new.upload(whole, 2)
    old.upload(late)
    assert offsets(url) == list(range(47))
    history = ister.store.history(url, "orders")
    assert [(piece.start, piece.end, piece.segment.epoch) for piece in history.pieces] == [
        (0, 20, 1),
        (20, 47, 2),
    ]
    assert history.unused == (old.layout.segment(20, 1),)
    old.close()
    new.close()


def test_a_gap_is_an_error_after_all_before_it(topic: StoredTopic, url: str, store: FolderStore) -> None:
    """Messages after missing offsets are never handed out."""
    store.delete(topic.layout.segment(36, 1))
    messages = ister.store.read(url, "orders")
    assert [message.offset for message in islice(messages, 36)] == list(range(36))
    with pytest.raises(GapError) as refused:
        next(messages)
    assert "36 to before 50" in refused.value.text
    assert not ister.store.verify(url, "orders").sound


def test_a_gap_that_an_upload_fills_is_none(topic: StoredTopic, store: FolderStore) -> None:
    """A writer uploads several segments at a time: the middle one may come last."""
    name = topic.layout.segment(36, 1)
    segment, known = store.get(name), store.head(name)
    assert known is not None
    store.delete(name)
    replay = Replay(
        store,
        topic.layout,
        gap_wait_s=1,
        wait=lambda _: store.put_if_absent(name, segment, metadata=known.metadata),
    )
    assert [offset for part in replay.read(0) for offset in range(part.first, part.end)] == list(range(61))


def test_a_claim_that_has_not_begun_is_waited_for(topic: StoredTopic, store: FolderStore) -> None:
    """Which segments a claim supersedes is known once its writer has noted where it begins."""
    late = topic.write([5])
    store.put_if_absent(topic.layout.epoch(2), b"")
    topic.upload(late)
    replay = Replay(store, topic.layout, wait=lambda _: store.put_if_absent(topic.layout.begins(2, 61), b""))
    assert replay.history.end == 61


def test_trimming_under_a_reader_is_told(topic: StoredTopic, url: str, store: FolderStore) -> None:
    """If retention deleted the next segment, the error has the first offset of the log."""
    with ister.store.Reader(url, "orders", prefetch=1) as reader:
        batches = reader.batches(0)
        next(batches)
        store.put_if_absent(topic.layout.trimmed(50), b"")
        for base in (0, 36):
            store.delete(topic.layout.segment(base, 1))
        with pytest.raises(TrimmedError) as refused:
            list(batches)
    assert (refused.value.first, refused.value.end) == (36, 50)
    assert offsets(url) == list(range(50, 61))
    with pytest.raises(TrimmedError) as refused:
        offsets(url, 10)
    assert refused.value.end == 50


def test_a_replaced_segment_is_found_again(topic: StoredTopic, url: str, store: FolderStore) -> None:
    """If the next segment is gone, the reader gets the same offsets from another object."""
    with ister.store.Reader(url, "orders", prefetch=1) as reader:
        batches = reader.batches(0)
        next(batches)
        segment = topic.wal.sealed()[1]
        topic.begin(2, 36)
        topic.upload(segment, 2)
        topic.upload(topic.wal.sealed()[2], 2)
        store.delete(topic.layout.segment(36, 1))
        assert [batch.offsets[0] for batch in batches] == [1, 21, 36, 50, 51]


def flip(store: FolderStore, name: str, position: int) -> None:
    """Change one bit of an object, and its checksum with it: a change that no store would notice."""
    known = store.head(name)
    assert known is not None
    data = bytearray(store.get(name))
    data[position] ^= 4
    store.delete(name)
    store.put_if_absent(name, data, metadata=known.metadata)


def read_until_error(url: str) -> tuple[list[int], DamagedError | None]:
    """Return the offsets of intact messages, and the error that ended reading."""
    found = []
    try:
        for message in ister.store.read(url, "orders"):
            assert (message.payload, message.key) == (payload(message.offset), key(message.offset))
            found.append(message.offset)
    except DamagedError as error:
        return found, error
    return found, None


def test_no_changed_byte_goes_unnoticed(topic: StoredTopic, url: str, store: FolderStore) -> None:
    """`verify` finds a change of any byte of a segment, and a changed message is never returned."""
    name = topic.layout.segment(36, 1)
    size = len(store.get(name))
    for position in range(0, size, 7):
        flip(store, name, position)
        assert not ister.store.verify(url, "orders").sound, position
        found, error = read_until_error(url)
        assert found == (
            list(range(61)) if error is None else list(range(36))
        )  # no error: no message is affected
        assert error is None or (error.first, error.end) == (36, 50)
        flip(store, name, position)
    assert ister.store.verify(url, "orders").sound


def test_a_segment_in_another_ones_place_is_refused(topic: StoredTopic, url: str, store: FolderStore) -> None:
    """An intact segment with another one's name is not read."""
    name = topic.layout.segment(36, 1)
    known, other = store.head(name), store.get(topic.layout.segment(50, 1))
    assert known is not None
    store.delete(name)
    store.put_if_absent(name, other, metadata=known.metadata)
    with pytest.raises(DamagedError) as refused:
        offsets(url)
    assert "another place" in refused.value.text
    assert ister.store.verify(url, "orders").damaged


def test_metadata_that_promises_more_is_found(tmp_path: Path, store: FolderStore, url: str) -> None:
    """If the metadata and the footer have different ends, the segment is damaged."""
    topic = StoredTopic(tmp_path, store)
    topic.begin(1, 0)
    topic.upload(topic.write([10]), next=12)
    with pytest.raises(DamagedError) as refused:
        offsets(url)
    assert (refused.value.first, refused.value.end) == (10, 12)
    assert not ister.store.verify(url, "orders").sound
    topic.close()


def test_topics_are_listed_with_and_without_a_catalogue(tmp_path: Path, store: FolderStore, url: str) -> None:
    """A store without a catalogue lists the topics of its objects."""
    assert ister.store.topics(url) == []
    bare = StoredTopic(tmp_path / "bare", store, "a/.b")
    bare.upload(bare.write([3]))
    assert [(found.name, found.dispatch) for found in ister.store.topics(url)] == [("a/.b", "")]
    assert [message.offset for message in ister.store.read(url, "a/.b")] == [0, 1, 2]
    full = store_a_topic(tmp_path / "full", store, name="orders")
    assert [(found.name, found.dispatch, found.durability) for found in ister.store.topics(url)] == [
        ("orders", "reliable", "fsync")
    ]
    bare.close()
    full.close()


def test_topics_of_one_name_are_told_apart(tmp_path: Path, store: FolderStore, url: str) -> None:
    """The topics have different incarnations: the catalogue, or the caller, says which one is read."""
    old = StoredTopic(tmp_path / "old", store, incarnation=b"o" * 16)
    old.upload(old.write([3]))
    new = StoredTopic(tmp_path / "new", store, incarnation=b"n" * 16)
    new.upload(new.write([5]))
    with pytest.raises(UsageError) as refused:
        offsets(url)
    assert refused.value.code == "unknown-topic"
    assert (b"o" * 16).hex() in refused.value.text
    assert len(list(ister.store.read(url, "orders", incarnation=(b"o" * 16).hex()))) == 3
    new.enter()
    assert offsets(url) == [0, 1, 2, 3, 4]
    old.close()
    new.close()


def test_what_is_not_there_is_said(topic: StoredTopic, url: str, tmp_path: Path) -> None:
    """Each case has a code, and reading creates no folder."""
    for wrong in (62, -1):
        with pytest.raises(UsageError) as refused:
            offsets(url, wrong)
        assert refused.value.code == "offset-out-of-range"
    with pytest.raises(UsageError) as refused:
        list(ister.store.read(url, "other"))
    assert refused.value.code == "unknown-topic"
    with pytest.raises(StoreError) as missing:
        ister.store.topics(f"file://{tmp_path}/nowhere")
    assert missing.value.code == "store-missing"
    assert not (tmp_path / "nowhere").exists()


def test_memory_and_threads_are_given_back(topic: StoredTopic, url: str) -> None:
    """A reader that stops early leaves no thread behind."""
    before = set(threading.enumerate())
    messages = ister.store.read(url, "orders")
    assert next(messages).offset == 0
    messages.close()
    assert set(threading.enumerate()) <= before


def test_only_so_many_segments_are_fetched_ahead(tmp_path: Path, store: FolderStore) -> None:
    """Memory is bounded by `prefetch`, however slow the reader is."""
    topic = StoredTopic(tmp_path, store)
    topic.begin(1, 0)
    for _ in range(12):
        topic.upload(topic.write([2]))
    fetched = []
    get = store.get
    store.get = lambda name: (fetched.append(name), get(name))[1]  # type: ignore[method-assign, func-returns-value]
    replay = Replay(store, topic.layout, prefetch=3)
    for number, _ in enumerate(replay.read(0)):
        assert len(fetched) <= number + 4
    assert len(fetched) == 12
    topic.close()


def test_segments_are_listed_before_what_supersedes_them(topic: StoredTopic, store: FolderStore) -> None:
    """If a takeover happens between the two parts of a listing, it is seen completely."""
    listed = []
    real = store.list
    store.list = lambda prefix: (listed.append(prefix.removeprefix(topic.layout.prefix)), real(prefix))[1]  # type: ignore[method-assign, func-returns-value]
    read_history(store, topic.layout)
    assert listed[0] == "s/"
    assert set(listed[1:]) == {"e/", "f/", "t/"}


def test_importing_it_imports_no_storage() -> None:
    """The broker's packages are imported at the first call."""
    program = "import sys, ister.store; print('storage' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "False"
