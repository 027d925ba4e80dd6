"""Tests of the store in a folder, beyond the conformance suite of stores."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from ister.errors import StoreError
from ister.storage.disk import LocalDisk
from ister.storage.folderstore import FolderStore
from ister.storage.simulated import SimulatedDisk


def test_a_sealed_segment_is_linked_not_copied(tmp_path: Path) -> None:
    """The object and the segment are one file with two names."""
    path = tmp_path / "segment"
    path.write_bytes(b"x")
    FolderStore(str(tmp_path / "store")).put_file_if_absent("s/1", str(path))
    assert path.stat().st_ino == (tmp_path / "store" / "s" / "1").stat().st_ino


def test_where_links_do_not_work_the_file_is_copied(tmp_path: Path) -> None:
    """On another file system, or one without links, it costs a copy and nothing else."""

    class NoLinks(LocalDisk):
        def link(self, source: str, target: str) -> None:
            raise OSError(errno.EXDEV, "no links here")

    path = tmp_path / "segment"
    path.write_bytes(b"x")
    store = FolderStore(str(tmp_path / "store"), NoLinks())
    assert store.put_file_if_absent("s/1", str(path))
    assert not store.put_file_if_absent("s/1", str(path))
    assert store.put_if_absent("s/2", b"y")
    assert (store.get("s/1"), store.get("s/2")) == (b"x", b"y")
    assert path.stat().st_ino != (tmp_path / "store" / "s" / "1").stat().st_ino


def test_bytes_that_rotted_are_not_returned(tmp_path: Path) -> None:
    """A flipped bit in an object or its metadata is an error."""
    store = FolderStore(str(tmp_path))
    store.put_if_absent("a", b"hello")
    (tmp_path / "a").write_bytes(b"hellp")
    with pytest.raises(StoreError) as refused:
        store.get("a")
    assert refused.value.code == "object-damaged"
    (tmp_path / ".meta" / "a").write_bytes(b"{")
    info = store.head("a")
    assert info is not None
    assert (info.size, info.crc32c, dict(info.metadata)) == (5, None, {})
    assert "cannot be read" in info.problem
    with pytest.raises(StoreError) as refused:
        store.get("a")
    assert refused.value.code == "object-damaged"


def test_any_flipped_byte_in_what_is_known_of_an_object_is_found(tmp_path: Path) -> None:
    """A changed digit is not believed; everything else is still listed, and the object with it."""
    store = FolderStore(str(tmp_path))
    store.put_if_absent("a", b"hello", metadata={"next": "20", "first-timestamp": "17"})
    store.put_if_absent("b", b"other", metadata={"next": "30"})
    path = tmp_path / ".meta" / "a"
    whole, known = path.read_bytes(), store.head("a")
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :])
        first, second = store.list("")
        assert first.problem or first == known
        assert (second.name, second.metadata) == ("b", {"next": "30"})


def test_nothing_temporary_is_left_or_listed(tmp_path: Path) -> None:
    """No listing has metadata or temporary files, and no temporary file stays."""
    store = FolderStore(str(tmp_path))
    store.put_if_absent("a/b", b"x")
    store.put_if_absent("a/b", b"y")
    assert [info.name for info in store.list("")] == ["a/b"]
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["lock"]


def test_an_object_cannot_be_a_folder(tmp_path: Path) -> None:
    """A name below an object's is refused, and both stay intact."""
    store = FolderStore(str(tmp_path))
    store.put_if_absent("a", b"x")
    with pytest.raises(StoreError):
        store.put_if_absent("a/b", b"y")
    assert store.get("a") == b"x"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """The error names the folder."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/store"):
        FolderStore(str(tmp_path / "file" / "store"))


def test_what_was_created_survives_power_loss_whole_or_not_at_all() -> None:
    """After a power failure an object whose put returned is there; one whose put failed cannot be read wrongly."""
    for seed in range(100):
        random = Random(seed)
        disk = SimulatedDisk()
        store = FolderStore("/store", disk)
        left = random.randint(1, 60)

        def stops(operation: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, "the power is gone")

        disk.on_operation = stops
        created = 0
        with contextlib.suppress(StoreError):
            for created in range(100):
                store.put_if_absent(f"a/{created}", b"%d" % created * 400, metadata={"n": str(created)})
        disk.on_operation = None
        after = FolderStore("/store", disk.power_loss(random))
        for number in range(created + 1):
            info = after.head(f"a/{number}")
            if number < created:
                assert info is not None
            if info is not None:
                assert info.metadata == {"n": str(number)}
                assert after.get(f"a/{number}") == b"%d" % number * 400
        after.put_if_absent(f"a/{created}", b"%d" % created * 400, metadata={"n": str(created)})
        assert after.get(f"a/{created}") == b"%d" % created * 400


def test_a_folder_in_which_nothing_is_left_goes_with_its_last_object(tmp_path: Path) -> None:
    """Deleted topics leave no folders behind; a concurrent put is not disturbed."""
    store = FolderStore(str(tmp_path / "store"))
    for name in ("v1/d/ab/t.1/s/1", "v1/d/ab/t.1/s/2", "v1/d/ab/t.1/e/1"):
        store.put_if_absent(name, b"x")
    store.delete("v1/d/ab/t.1/s/1")
    assert (tmp_path / "store/v1/d/ab/t.1/s/2").exists()
    store.delete("v1/d/ab/t.1/s/2")
    assert not (tmp_path / "store/v1/d/ab/t.1/s").exists()
    store.delete("v1/d/ab/t.1/e/1")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".tmp"]


def test_what_deletions_that_were_cut_short_left_goes_with_the_last_object(tmp_path: Path) -> None:
    """Folders without objects, and metadata of a deleted object, are removed; others stay."""
    store = FolderStore(str(tmp_path))
    for name in ("v1/d/t/e/1", "v1/d/t/c/b/2", "v1/d/t/s/3", "v1/d/other/e/1"):
        store.put_if_absent(name, b"x")
    (tmp_path / "v1/d/t/c/b/2").unlink()  # killed before the rest of a deletion
    (tmp_path / "v1/d/t/s/3").unlink()
    (tmp_path / "v1/d/t/s/.meta/3").unlink()
    assert store.delete("v1/d/t/e/1")
    assert [path.name for path in (tmp_path / "v1/d").iterdir()] == ["other"]
    assert store.get("v1/d/other/e/1") == b"x"


def test_puts_and_deletions_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    """If one thread empties a folder while another puts an object there, the folder is there for the object."""
    store = FolderStore(str(tmp_path / "store"))

    def live(who: int) -> int:
        done = 0
        for number in range(50):
            done += store.put_if_absent(f"v1/a/b/{who}-{number}", b"x")
            done += store.delete(f"v1/a/b/{who}-{number}")
        return done

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(live, range(4))) == [100] * 4


def test_an_object_that_is_said_to_be_there_outlasts_the_machine() -> None:
    """Also if its creator could not sync the name, and asks again."""
    for seed in range(20):
        disk = SimulatedDisk()
        disk.makedirs("/store")
        store = FolderStore("/store", disk)
        syncs = iter(range(100))

        def fails(operation: str, path: str, syncs: Iterator[int] = syncs) -> None:
            if operation == "sync_folder" and next(syncs) == 1:
                raise OSError(5, "Input/output error", path)

        disk.on_operation = fails
        with pytest.raises(StoreError):
            store.put_if_absent("a/b", b"contents")
        assert not store.put_if_absent("a/b", b"contents")
        after = FolderStore("/store", disk.power_loss(Random(seed)))
        assert after.get("a/b") == b"contents"
