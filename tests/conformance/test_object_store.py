"""What every object store must do: one suite for all implementations."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ister.errors import StoreError
from ister.storage.checksum import crc32c
from ister.storage.objectstore import ObjectInfo, ObjectStore
from ister.storage.segment import SEGMENT_BYTES_MAX


def names(store: ObjectStore, prefix: str = "") -> list[str]:
    """Return the names in a store."""
    return [info.name for info in store.list(prefix)]


def test_an_object_comes_back_with_what_is_known_of_it(store: ObjectStore) -> None:
    """Bytes, size, checksum and metadata are as they were when it was created."""
    metadata = {"next": "17", "id": "æ \n"}
    assert store.put_if_absent("v1/d/ab/x", b"hello", metadata=metadata, crc32c=crc32c(b"hello"))
    assert store.get("v1/d/ab/x") == b"hello"
    assert store.head("v1/d/ab/x") == ObjectInfo("v1/d/ab/x", 5, crc32c(b"hello"), metadata)
    assert list(store.list("v1/")) == [store.head("v1/d/ab/x")]


@pytest.mark.parametrize("size", [0, 1, 100_000, SEGMENT_BYTES_MAX])
def test_any_size_is_stored_whole(store: ObjectStore, size: int) -> None:
    """Also an empty object."""
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert store.put_if_absent("a", memoryview(data))
    assert store.get("a") == data
    info = store.head("a")
    assert info is not None
    assert info.size == size


def test_an_object_is_created_once_and_never_replaced(store: ObjectStore) -> None:
    """The second creator gets False, and neither bytes nor metadata change."""
    assert store.put_if_absent("a/b", b"first", metadata={"who": "first"})
    assert not store.put_if_absent("a/b", b"second", metadata={"who": "second"})
    assert store.get("a/b") == b"first"
    info = store.head("a/b")
    assert info is not None
    assert info.metadata == {"who": "first"}


def test_of_racing_creators_exactly_one_wins(store: ObjectStore) -> None:
    """Ten at a time, many times over; bytes and metadata are the winner's, never a mixture."""
    for round_number in range(10):
        name = f"race/{round_number}"

        def create(who: int, name: str = name) -> bool:
            return store.put_if_absent(name, b"%d" % who * 1000, metadata={"who": str(who)})

        with ThreadPoolExecutor(10) as pool:
            won = list(pool.map(create, range(10)))
        assert won.count(True) == 1
        winner = won.index(True)
        assert store.get(name) == b"%d" % winner * 1000
        info = store.head(name)
        assert info is not None
        assert info.metadata == {"who": str(winner)}


def test_racing_creators_of_the_same_bytes_are_told_apart(store: ObjectStore) -> None:
    """A writer that claims something with an empty object knows whether the claim is its own."""
    for round_number in range(10):
        with ThreadPoolExecutor(10) as pool:
            won = list(pool.map(lambda _: store.put_if_absent(f"claim/{round_number}", b""), range(10)))  # noqa: B023
        assert won.count(True) == 1


def test_threads_use_one_store_at_a_time(store: ObjectStore) -> None:
    """Concurrent writing, reading, listing and deleting do not disturb each other."""

    def life(who: int) -> bool:
        mine = [f"t/{who:02d}/{number}" for number in range(5)]
        for name in mine:
            assert store.put_if_absent(name, name.encode() * 1000, metadata={"who": str(who)})
        found = [store.get(name) == name.encode() * 1000 for name in mine]
        listed = names(store, f"t/{who:02d}/") == mine
        return all(found) and listed and all(store.delete(name) for name in mine)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(life, range(16)))
    assert names(store) == []


def test_closing_twice_is_closing(store: ObjectStore) -> None:
    """The second call does nothing."""
    store.put_if_absent("a", b"")
    store.close()
    store.close()


def test_a_file_becomes_an_object_and_outlives_its_name(store: ObjectStore, tmp_path: Path) -> None:
    """An object created from a file stays when the file is deleted, and is created once like any other."""
    path = tmp_path / "segment"
    path.write_bytes(b"sealed" * 100)
    assert store.put_file_if_absent("s/1", str(path), metadata={"next": "5"}, crc32c=crc32c(b"sealed" * 100))
    assert not store.put_file_if_absent("s/1", str(path))
    path.unlink()
    assert store.get("s/1") == b"sealed" * 100
    info = store.head("s/1")
    assert info is not None
    assert info.metadata == {"next": "5"}
    with pytest.raises(StoreError):
        store.put_file_if_absent("s/2", str(path))
    assert store.head("s/2") is None


def test_bytes_with_another_checksum_are_refused(store: ObjectStore, tmp_path: Path) -> None:
    """Bytes without the CRC32C that their creator states are not stored."""
    path = tmp_path / "segment"
    path.write_bytes(b"abc")
    with pytest.raises(StoreError) as refused:
        store.put_if_absent("a", b"abc", crc32c=1)
    assert refused.value.code == "object-damaged"
    with pytest.raises(StoreError):
        store.put_file_if_absent("a", str(path), crc32c=1)
    assert store.head("a") is None
    assert store.put_if_absent("a", b"abc")


def test_ranges_are_parts_of_an_object(store: ObjectStore) -> None:
    """A range ends at the object's end."""
    store.put_if_absent("a", b"0123456789")
    assert store.get_range("a", 0, 3) == b"012"
    assert store.get_range("a", 7, 100) == b"789"
    assert store.get_range("a", 2, 5) == b"23456"
    assert store.get_range("a", 10, 5) == b""
    assert store.get_range("a", 50, 5) == b""
    assert store.get_range("a", 3, 0) == b""
    store.put_if_absent("empty", b"")
    assert store.get_range("empty", 0, 10) == b""


def test_what_is_not_there_is_missing(store: ObjectStore) -> None:
    """Reading it is a coded error, `head` returns None, deleting it False."""
    store.put_if_absent("a/b", b"")
    for name in ("x", "a", "a/c", "x/y/z"):
        with pytest.raises(StoreError) as refused:
            store.get(name)
        assert (refused.value.code, refused.value.action) == ("object-missing", "stop")
        with pytest.raises(StoreError):
            store.get_range(name, 0, 1)
        assert store.head(name) is None
        assert not store.delete(name)


def test_deleting_makes_room_for_another(store: ObjectStore) -> None:
    """A deleted object is gone from reads and listings, and its name may be used again."""
    store.put_if_absent("a/b", b"first", metadata={"x": "1"})
    assert store.delete("a/b")
    assert not store.delete("a/b")
    assert names(store) == []
    assert store.put_if_absent("a/b", b"second")
    info = store.head("a/b")
    assert info is not None
    assert info.metadata == {}


def test_listings_are_in_order_of_names_and_by_prefix(store: ObjectStore) -> None:
    """A prefix may end anywhere in a name, and the order is that of the names' bytes."""
    all_names = ["a-b", "a.b", "a/b", "a/b2", "a/c/d", "a0", "ab/c", "b", "v1/d/0a/t~x.00/s/01.01"]
    for name in reversed(all_names):
        store.put_if_absent(name, name.encode())
    assert names(store) == sorted(all_names)
    for prefix in (
        "a",
        "a/",
        "a/b",
        "a/c/",
        "ab",
        "v1/d/0a/t~x.00/s/",
        "v1/d/0a/t~x",
        "nothing",
        "nothing/at",
    ):
        assert names(store, prefix) == [name for name in sorted(all_names) if name.startswith(prefix)]


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 100])
def test_pages_join_to_the_whole_listing(store: ObjectStore, page_size: int) -> None:
    """Following `next` gives each object once, whatever the page size."""
    expected = sorted(f"p/{part}/{number}" for part in ("x", "x-y", "y.z") for number in range(5))
    for name in expected:
        store.put_if_absent(name, b"")
    found: list[str] = []
    page = store.list_page("p/", page_size=page_size)
    found += [info.name for info in page.objects]
    while page.next is not None:
        assert len(page.objects) == page_size
        page = store.list_page("p/", page=page.next, page_size=page_size)
        found += [info.name for info in page.objects]
    assert found == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        ".meta/x",
        "a/.tmp",
        "a b",
        "a\0",
        "ä",
        "x" * 256,
        "a/" * 600 + "a",
    ],
)
def test_bad_names_are_refused(store: ObjectStore, name: str) -> None:
    """A name that would leave the store, or that some store cannot have, is refused with a code."""
    for call in (
        lambda: store.put_if_absent(name, b""),
        lambda: store.get(name),
        lambda: store.head(name),
        lambda: store.delete(name),
    ):
        with pytest.raises(StoreError) as refused:
            call()
        assert (refused.value.code, refused.value.action) == ("invalid-name", "fix")


def test_an_object_tells_when_it_was_created(store: ObjectStore, tmp_path: Path) -> None:
    """By the store's own clock, also when created from an old file; also in listings; and it does not change."""
    path = tmp_path / "segment"
    path.write_bytes(b"sealed")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    before_ms = time.time_ns() // 1_000_000 - 2_000  # the store may be another process
    assert store.put_if_absent("v1/a", b"x", metadata={"last-timestamp": "5"})
    assert store.put_file_if_absent("v1/b", str(path))
    assert not store.put_if_absent("v1/a", b"y")
    after_ms = time.time_ns() // 1_000_000 + 2_000
    for info in store.list("v1/"):
        assert info.created_ms is not None
        assert before_ms <= info.created_ms <= after_ms
        head = store.head(info.name)
        assert head is not None
        assert head.created_ms == info.created_ms


def test_whoever_deletes_all_leaves_no_names(store: ObjectStore) -> None:
    """No listing shows deleted objects, and their names are free again."""
    for name in ("v1/d/ab/t.1/s/1", "v1/d/ab/t.1/e/1", "v1/topics/t"):
        assert store.put_if_absent(name, b"x")
        assert store.delete(name)
    assert names(store) == []
    assert store.put_if_absent("v1/d/ab/t.1/s/1", b"y")
    assert names(store) == ["v1/d/ab/t.1/s/1"]
