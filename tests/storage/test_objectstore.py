"""Tests of the store in a folder, beyond the conformance suite of stores."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from ister.errors import StoreError
from ister.storage.checksum import crc32c
from ister.storage.disk import LocalDisk
from ister.storage.folderstore import READ_BYTES, FolderStore
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


def test_a_copy_of_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    """An object of bytes that are not those of its checksum would never be readable."""
    path = tmp_path / "segment"
    path.write_bytes(b"x")

    class Changing(LocalDisk):
        def link(self, source: str, target: str) -> None:
            path.write_bytes(b"y")
            raise OSError(errno.EXDEV, "no links here")

    store = FolderStore(str(tmp_path / "store"), Changing())
    with pytest.raises(StoreError) as refused:
        store.put_file_if_absent("s/1", str(path))
    assert refused.value.code == "object-damaged"
    assert store.head("s/1") is None


def test_a_segment_is_read_in_pieces(tmp_path: Path) -> None:
    """Many uploads at once hold no segment in memory; the checksum is that of the whole."""
    path, asked = tmp_path / "segment", []
    path.write_bytes(Random(7).randbytes(2 * READ_BYTES + 5))

    class Noting(LocalDisk):
        def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
            asked.append(length)
            return super().read(path, start, length)

    store = FolderStore(str(tmp_path / "store"), Noting())
    assert store.put_file_if_absent("s/1", str(path))
    assert asked == [READ_BYTES] * 3
    assert store.get("s/1") == path.read_bytes()


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


@pytest.mark.parametrize("folder", ["a", "v1/d/ab/t.1/s", "v1/topics"])
def test_what_was_created_survives_power_loss_whole_or_not_at_all(folder: str) -> None:
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
                store.put_if_absent(
                    f"{folder}/{created}", b"%d" % created * 400, metadata={"n": str(created)}
                )
        disk.on_operation = None
        after = FolderStore("/store", disk.power_loss(random))
        for number in range(created + 1):
            info = after.head(f"{folder}/{number}")
            if number < created:
                assert info is not None
            if info is not None:
                assert info.metadata == {"n": str(number)}
                assert after.get(f"{folder}/{number}") == b"%d" % number * 400
        after.put_if_absent(f"{folder}/{created}", b"%d" % created * 400, metadata={"n": str(created)})
        assert after.get(f"{folder}/{created}") == b"%d" % created * 400


def test_a_folder_in_which_nothing_is_left_goes_with_its_last_object(tmp_path: Path) -> None:
    """Deleted topics leave no folders behind; a concurrent put is not disturbed."""
    store = FolderStore(str(tmp_path / "store"))
    for name in ("v1/d/ab/t.1/s/1", "v1/d/ab/t.1/s/2", "v1/d/ab/t.1/e/1"):
        store.put_if_absent(name, b"x")
    store.delete("v1/d/ab/t.1/s/1")
    assert (tmp_path / "store/v1/d/ab/t.1/s/2").exists()
    store.delete("v1/d/ab/t.1/s/2")
    assert sorted(path.name for path in (tmp_path / "store/v1/d/ab/t.1").iterdir()) == [".known", "e=1"]
    store.delete("v1/d/ab/t.1/e/1")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".tmp"]


def test_what_deletions_that_were_cut_short_left_goes_with_the_last_object(tmp_path: Path) -> None:
    """Folders without objects, and metadata of a deleted object, are removed; others stay."""
    store = FolderStore(str(tmp_path))
    for name in ("v1/d/ab/t/e/1", "v1/d/ab/t/c/b/2", "v1/d/ab/t/s/3", "v1/d/ab/other/e/1"):
        store.put_if_absent(name, b"x")
    (tmp_path / "v1/d/ab/t/c/b/2").unlink()  # killed before the rest of a deletion
    (tmp_path / "v1/d/ab/t/s/3").unlink()
    assert store.delete("v1/d/ab/t/e/1")
    assert [path.name for path in (tmp_path / "v1/d/ab").iterdir()] == ["other"]
    assert store.get("v1/d/ab/other/e/1") == b"x"


@pytest.mark.parametrize("folder", ["v1/a/b", "v1/d/ab/t/s", "v1/topics"])
def test_puts_and_deletions_in_one_folder_do_not_meet(tmp_path: Path, folder: str) -> None:
    """If one thread empties a folder while another puts an object there, the folder is there for the object."""
    store = FolderStore(str(tmp_path / "store"))

    def live(who: int) -> int:
        done = 0
        for number in range(50):
            done += store.put_if_absent(f"{folder}/{who}-{number}", b"x")
            done += store.delete(f"{folder}/{who}-{number}")
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


# ---- how little a topic takes ------------------------------------------------------------------------------------

TOPIC_OBJECTS = ("v1/topics/t", "v1/d/ab/t.1/e/01", "v1/d/ab/t.1/f/01-0", "v1/d/ab/t.1/s/00.01")


def test_a_topic_with_one_segment_is_two_folders_and_few_files(tmp_path: Path) -> None:
    """A folder or file takes a block of the disk: ten thousand topics at rest would take a gigabyte."""
    store = FolderStore(str(tmp_path))
    for name in TOPIC_OBJECTS:
        store.put_if_absent(name, b"", metadata={"id": "0" * 32})
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    at = found.pop(next(number for number, name in enumerate(found) if name.startswith("v1/topics/.known-")))
    assert len(at) == len("v1/topics/.known-00")
    assert found == [
        ".tmp/lock",
        "v1/d/ab/t.1/.known",
        "v1/d/ab/t.1/e=01",
        "v1/d/ab/t.1/f=01-0",
        "v1/d/ab/t.1/s/00.01",
        "v1/topics/t",
    ]
    assert [info.name for info in store.list("")] == sorted(TOPIC_OBJECTS)
    assert all(info.metadata == {"id": "0" * 32} for info in store.list(""))


def test_any_flipped_byte_in_a_shared_file_is_found(tmp_path: Path) -> None:
    """What is known of the other objects is still known, except where two lines became one."""
    store = FolderStore(str(tmp_path))
    names = [f"v1/d/ab/t.1/s/{number}" for number in range(3)]
    for name in names:
        store.put_if_absent(name, b"x", metadata={"next": name[-1]})
    path = tmp_path / "v1/d/ab/t.1/.known"
    whole, known = path.read_bytes(), list(store.list(""))
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :])
        found = list(store.list(""))
        assert [info.name for info in found] == names
        assert all(info.problem or info == before for info, before in zip(found, known, strict=True))
        assert sum(bool(info.problem) for info in found) <= (2 if whole[at : at + 1] == b"\n" else 1)


def test_what_a_shared_file_has_no_room_for_has_a_file_of_its_own(tmp_path: Path) -> None:
    """A topic of thousands of segments reads and writes no large file for each; room that is free again is used."""
    store = FolderStore(str(tmp_path))
    names = [f"v1/d/ab/t.1/s/{number:03d}" for number in range(200)]
    for name in names:
        store.put_if_absent(name, b"x", metadata={"next": name[-3:]})
    shared, own = tmp_path / "v1/d/ab/t.1/.known", tmp_path / "v1/d/ab/t.1/s/.meta"
    assert shared.stat().st_size <= 16 << 10
    some = len(list(own.iterdir()))
    assert 50 < some < 150
    assert [(info.name, info.metadata["next"]) for info in store.list("")] == [
        (each, each[-3:]) for each in names
    ]
    for name in names[:20]:
        assert store.delete(name)
    store.put_if_absent("v1/d/ab/t.1/s/200", b"x")
    assert len(list(own.iterdir())) == some
    for name in [*names[20:], "v1/d/ab/t.1/s/200"]:
        assert store.delete(name)
    store.put_if_absent("v1/d/ab/t.1/e/1", b"")
    store.delete("v1/d/ab/t.1/e/1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp"]


def test_a_line_of_an_object_that_was_never_created_gives_way(tmp_path: Path) -> None:
    """A creator that was killed leaves one behind; it takes room only while there is room."""
    store = FolderStore(str(tmp_path))
    for number in range(90):
        store.put_if_absent(f"v1/d/ab/t.1/s/{number:02d}", b"x", metadata={"next": "1" * 100})
    assert (tmp_path / "v1/d/ab/t.1/s/.meta").exists()
    for path in (tmp_path / "v1/d/ab/t.1/s").glob("[0-3]*"):
        path.unlink()
    store.put_if_absent("v1/d/ab/t.1/e/1", b"", metadata={"id": "later" * 90})
    assert not (tmp_path / "v1/d/ab/t.1/.meta/e=1").exists()
    assert (tmp_path / "v1/d/ab/t.1/.known").stat().st_size < 12 << 10
    info = store.head("v1/d/ab/t.1/e/1")
    assert info is not None
    assert info.metadata == {"id": "later" * 90}


# ---- stores of earlier versions ----------------------------------------------------------------------------------


def put_as_before(root: Path, name: str, data: bytes, **metadata: str) -> None:
    """Create an object as versions did that gave each kind a folder, and each object a file of what is known of it."""
    path = root / name
    (path.parent / ".meta").mkdir(parents=True, exist_ok=True)
    about = {"size": len(data), "crc32c": crc32c(data), "metadata": metadata, "created_ms": 7}
    check = crc32c(json.dumps(about, sort_keys=True).encode())
    (path.parent / ".meta" / path.name).write_text(json.dumps({**about, "check": check}))
    path.write_bytes(data)


def test_a_store_of_an_earlier_version_is_read_and_continued(tmp_path: Path) -> None:
    """Its objects are found under their names, in order with new ones, are not created twice, and can be deleted."""
    before = ["v1/topics/t", *(f"v1/d/ab/t.1/s/{number}" for number in (1, 3, 5)), "v1/d/ab/t.1/e/1"]
    for name in before:
        put_as_before(tmp_path, name, name.encode(), where=name)
    store = FolderStore(str(tmp_path))
    for name in before:
        assert not store.put_if_absent(name, b"another")
        assert store.get(name) == name.encode()
        assert store.get_range(name, 1, 2) == name.encode()[1:3]
    new = ["v1/topics/u", *(f"v1/d/ab/t.1/s/{number}" for number in (0, 2, 4, 6)), "v1/d/ab/t.1/f/1"]
    for name in new:
        assert store.put_if_absent(name, name.encode(), metadata={"where": name})
    everything = sorted([*before, *new])
    for prefix in ("", "v1/d/ab/t.1/", "v1/d/ab/t.1/s/", "v1/d/ab/t.1/s/1", "v1/topics/", "v1/d/ab/t.1/e/"):
        wanted = [name for name in everything if name.startswith(prefix)]
        assert [(each.name, each.metadata["where"]) for each in store.list(prefix)] == [
            (n, n) for n in wanted
        ]
        paged: list[str] = []
        page = store.list_page(prefix, page_size=2)
        while True:
            paged += [each.name for each in page.objects]
            if page.next is None:
                break
            page = store.list_page(prefix, page=page.next, page_size=2)
        assert paged == wanted
    for name in everything:
        assert store.delete(name)
        assert store.head(name) is None
        assert store.put_if_absent(name, b"again")
        assert store.get(name) == b"again"
        assert store.delete(name)
        assert not store.delete(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp"]


def test_no_object_has_the_name_of_anothers_file(tmp_path: Path) -> None:
    """It would be taken for that object."""
    store = FolderStore(str(tmp_path))
    with pytest.raises(StoreError) as refused:
        store.put_if_absent("v1/d/ab/t.1/e=1", b"")
    assert refused.value.code == "invalid-name"
