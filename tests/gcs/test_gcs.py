"""The Google store: how it handles faults, and its errors."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from ister.errors import StoreError, UsageError
from ister.storage.addresses import open_store
from ister.storage.disk import LocalDisk
from ister.storage.gcs import GcsStore
from ister.storage.objectstore import ObjectInfo
from tests.faultproxy import TO_ANY, Fault, FaultProxy
from tests.gcs.conftest import BUCKET, MakeStore
from tests.gcs.emulator import Emulator

pytestmark = pytest.mark.gcs

BODY = Random(5).randbytes(200_000)


@pytest.fixture
def plain(emulator: Emulator, make_store: MakeStore) -> GcsStore:
    """Return a store without faults."""
    return make_store(emulator.url)


@pytest.fixture
def store(proxy: FaultProxy, make_store: MakeStore) -> GcsStore:
    """Return a store behind the proxy."""
    return make_store(proxy.url)


def test_a_second_creation_answers_412(emulator: Emulator, proxy: FaultProxy, store: GcsStore) -> None:
    """Everything here depends on the server refusing to create an existing object."""
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"1")
    put = [path for method, path in proxy.requests if method == "POST"]
    assert len(put) == 2
    assert all("ifGenerationMatch=0" in path and "uploadType=multipart" in path for path in put)


@pytest.mark.parametrize("kind", [*TO_ANY, "500", "502", "504", "408"])
def test_a_creation_survives(kind: str, proxy: FaultProxy, store: GcsStore, plain: GcsStore) -> None:
    """Whatever happens to the first two attempts, the creator gets True, and the object is there once."""
    proxy.script(*[Fault(kind, "POST")] * 2)
    assert store.put_if_absent("a", BODY, metadata={"next": "5"})
    assert not proxy.left or kind == "slow"  # a slow answer counts: there was no second attempt
    assert plain.get("a") == BODY
    assert list(plain.list("")) == [ObjectInfo("a", len(BODY), plain.head("a").crc32c, {"next": "5"})]  # type: ignore[union-attr]


def test_a_lost_answer_of_a_loser_stays_lost(proxy: FaultProxy, store: GcsStore, plain: GcsStore) -> None:
    """The same bytes and metadata of another creator do not count as one's own, also after a lost answer."""
    assert plain.put_if_absent("a", BODY, metadata={"x": "y"})
    proxy.script(Fault("lost", "POST"), Fault("lost", "GET"), Fault("503", "GET"))
    assert not store.put_if_absent("a", BODY, metadata={"x": "y"})
    assert not proxy.left


def test_lost_answers_while_many_race_have_one_winner(emulator: Emulator, make_store: MakeStore) -> None:
    """Ten creators, half of whose answers are lost: exactly one gets True."""
    for seed in range(3):
        with FaultProxy(emulator.url, probability=0.5, kinds=("lost", "503", "reset"), seed=seed) as proxy:
            stores = [make_store(proxy.url) for _ in range(10)]
            with ThreadPoolExecutor(10) as pool:
                won = list(pool.map(lambda store, seed=seed: store.put_if_absent(f"e/{seed}", b""), stores))
            assert won.count(True) == 1
            assert proxy.done["lost"]


@pytest.mark.parametrize("kind", [*TO_ANY, "cut", "corrupted", "500"])
def test_a_download_survives(kind: str, proxy: FaultProxy, store: GcsStore, plain: GcsStore) -> None:
    """The result is what was stored, whatever happened to the first two attempts."""
    plain.put_if_absent("a", BODY)
    proxy.script(*[Fault(kind, "GET", "alt=media")] * 2)
    assert store.get("a") == BODY
    assert proxy.done[kind] == (1 if kind == "slow" else 2)


@pytest.mark.parametrize("kind", ["cut", "corrupted"])
def test_a_download_that_never_checks_is_refused(
    kind: str, proxy: FaultProxy, store: GcsStore, plain: GcsStore
) -> None:
    """Bytes with another CRC32C than the store states are never returned."""
    plain.put_if_absent("a", BODY)
    proxy.script(*[Fault(kind, "GET", "alt=media")] * 9)
    with pytest.raises(StoreError) as refused:
        store.get("a")
    assert (refused.value.code, refused.value.action) == ("object-damaged", "stop")
    assert len(proxy.left) == 6


@pytest.mark.parametrize("kind", TO_ANY)
def test_everything_else_survives(kind: str, proxy: FaultProxy, store: GcsStore, plain: GcsStore) -> None:
    """Listing, head, ranges and deleting return what they would without faults."""
    for name in ("x/1", "x/2"):
        plain.put_if_absent(name, BODY)
    fault = Fault(kind)
    proxy.script(fault)
    assert [info.name for info in store.list("x/")] == ["x/1", "x/2"]
    proxy.script(fault)
    assert store.head("x/1") == plain.head("x/1")
    proxy.script(fault)
    assert store.head("x/9") is None
    proxy.script(fault)
    assert store.get_range("x/1", 1000, 5000) == BODY[1000:6000]
    proxy.script(Fault(kind, "DELETE"))
    assert store.delete("x/1")
    assert not store.delete("x/1")
    assert [info.name for info in plain.list("")] == ["x/2"]
    assert proxy.done[kind] == 5


def test_a_store_that_stays_away_is_an_error_to_retry(make_store: MakeStore) -> None:
    """After the deadline the caller decides: no call waits for ever."""
    store = make_store("http://127.0.0.1:9", deadline_s=0.6)
    for call in (lambda: store.put_if_absent("a", b""), lambda: store.get("a"), lambda: store.head("a")):
        with pytest.raises(StoreError) as refused:
            call()
        assert (refused.value.code, refused.value.action) == ("store-unavailable", "retry")


def test_closing_ends_waits(proxy: FaultProxy, make_store: MakeStore) -> None:
    """A process that stops does not wait for an unreachable store."""
    store = make_store(proxy.url, deadline_s=60.0)
    proxy.script(*[Fault("503")] * 100)
    threading.Timer(0.2, store.close).start()
    with pytest.raises(StoreError) as refused:
        store.get("a")
    assert refused.value.code == "store-closed"


@pytest.mark.parametrize(
    ("status", "code", "action", "says"),
    [
        (401, "store-credentials", "fix", "refused the credentials"),
        (403, "store-permission", "fix", "storage.objects.create"),
        (400, "store-refused", "stop", "400"),
        (404, "store-missing", "fix", "there is no bucket"),
    ],
)
def test_a_refusal_says_what_to_do(
    status: int, code: str, action: str, says: str, proxy: FaultProxy, store: GcsStore
) -> None:
    """The error names what is missing, and whether trying again helps."""
    proxy.script(*[Fault(str(status), "POST")] * 3)
    with pytest.raises(StoreError) as refused:
        store.put_if_absent("a", b"")
    assert (refused.value.code, refused.value.action) == (code, action)
    assert says in refused.value.text
    assert proxy.url not in refused.value.text


def test_the_role_that_is_missing_is_named(proxy: FaultProxy, store: GcsStore) -> None:
    """Each operation names its own permission, and a role that has it."""
    calls: dict[str, Callable[[], object]] = {
        "storage.objects.get": lambda: store.get("a"),
        "storage.objects.list": lambda: list(store.list("")),
        "storage.objects.delete": lambda: store.delete("a"),
        "storage.objects.create": lambda: store.put_if_absent("a", b""),
    }
    for permission, call in calls.items():
        proxy.script(Fault("403"))
        with pytest.raises(StoreError) as refused:
            call()
        assert permission in refused.value.text
        assert "roles/storage.object" in refused.value.text


def test_a_missing_bucket_is_not_a_missing_object(emulator: Emulator, make_store: MakeStore) -> None:
    """Every call distinguishes them, although the server answers 404 to both."""
    for call in ("get", "head", "delete"):
        with pytest.raises(StoreError) as refused:
            getattr(make_store(emulator.url, bucket="no-such-bucket"), call)("a")
        assert (refused.value.code, refused.value.action) == ("store-missing", "fix")
    with pytest.raises(StoreError) as refused:
        list(make_store(emulator.url, bucket="no-such-bucket").list(""))
    assert refused.value.code == "store-missing"


def test_without_credentials_it_says_how_to_give_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error says where Google's client looks for them."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    store = GcsStore("some-bucket", deadline_s=0.5)
    with pytest.raises(StoreError) as refused:
        store.get("a")
    assert (refused.value.code, refused.value.action) == ("store-credentials", "fix")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in refused.value.text


def test_too_large_an_object_is_refused_here(store: GcsStore, proxy: FaultProxy) -> None:
    """What cannot be created in one request is not sent."""
    with pytest.raises(StoreError) as refused:
        store.put_if_absent("a", bytes((8 << 20) + 1))
    assert (refused.value.code, refused.value.action) == ("object-too-large", "fix")
    assert proxy.requests == []


def test_a_file_is_read_when_its_transfer_may_begin(
    emulator: Emulator, make_store: MakeStore, tmp_path: Path
) -> None:
    """However many uploads wait for room, no more files are in memory than may be in transit."""
    path = tmp_path / "segment"
    path.write_bytes(BODY)
    held, most, lock = 0, 0, threading.Lock()

    class Counting(LocalDisk):
        def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
            nonlocal held, most
            with lock:
                held += 1
                most = max(most, held)
            return super().read(path, start, length)

    with FaultProxy(emulator.url, probability=1.0, kinds=("slow",), delay_s=0.02) as proxy:
        store = make_store(proxy.url, transfer_bytes_max=2 * len(BODY), disk=Counting())
        real = store._call

        def call(*given: object) -> object:
            nonlocal held
            try:
                return real(*given)  # type: ignore[arg-type]
            finally:
                with lock:
                    held -= 1

        store._call = call  # type: ignore[assignment, method-assign]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda number: store.put_file_if_absent(f"t/{number}", str(path)), range(8)))
    assert most == 2


def test_bytes_on_their_way_are_bounded(emulator: Emulator, make_store: MakeStore) -> None:
    """Sixteen threads with room for two transfers: all succeed, two at a time, and small requests pass them."""
    with FaultProxy(emulator.url, probability=1.0, kinds=("slow",), delay_s=0.02) as proxy:
        store = make_store(proxy.url, transfer_bytes_max=2 * len(BODY))
        under_way, most = 0, 0
        lock = threading.Lock()

        def put(number: int) -> bool:
            return store.put_if_absent(f"t/{number}", BODY)

        real = store._call

        def call(*given: object) -> object:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            try:
                return real(*given)  # type: ignore[arg-type]
            finally:
                with lock:
                    under_way -= 1

        store._call = call  # type: ignore[assignment, method-assign]
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(put, range(16)))
        assert most == 2


def test_the_emulators_address_is_taken_from_the_environment(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORAGE_EMULATOR_HOST works as for Google's own tools, with or without http://."""
    for value in (emulator.url, emulator.url.removeprefix("http://")):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", value)
        store = open_store(f"gs://{BUCKET}/env/{len(value)}")
        assert store.put_if_absent("a", b"x")
        assert store.get("a") == b"x"
        store.close()


def test_no_background_request_asks_for_the_bucket(proxy: FaultProxy, store: GcsStore) -> None:
    """`storage.buckets.get` is not among the permissions that a broker needs."""
    store.put_if_absent("a", b"x")
    store.get("a")
    list(store.list(""))
    assert os.environ["DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"] == "true"
    assert all("/o" in path.split("?")[0] for _, path in proxy.requests)


def test_a_spawned_process_makes_a_client_of_its_own(emulator: Emulator, make_store: MakeStore) -> None:
    """A store that was used before another process began works there too."""
    store = make_store(emulator.url)
    store.put_if_absent("a", b"parent")
    first = store._connected()
    store._process += 1  # as a forked child would see it
    assert store._connected() is not first
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_elsewhere, (emulator.url,)) == b"parent"


def read_elsewhere(endpoint: str) -> bytes:
    """Read an object in another process."""
    store = GcsStore(BUCKET, "p", endpoint=endpoint)
    try:
        return store.get("a")
    finally:
        store.close()


def test_prefixes_are_apart(emulator: Emulator, make_store: MakeStore) -> None:
    """Two stores in one bucket do not see each other, also if one's prefix begins the other's."""
    one, other, whole = (make_store(emulator.url, prefix=prefix) for prefix in ("a", "/ab/c/", ""))
    one.put_if_absent("x", b"1")
    other.put_if_absent("x", b"2")
    assert [info.name for info in one.list("")] == ["x"]
    assert [info.name for info in whole.list("")] == ["a/x", "ab/c/x"]
    assert other.get("x") == b"2"


def test_opening_a_folder_imports_nothing_of_google() -> None:
    """A store without gs:// does not load Google's client."""
    program = (
        "import sys; from ister.storage.addresses import open_store; import tempfile;"
        "open_store('file://' + tempfile.mkdtemp()); print([m for m in sys.modules if m.startswith('google.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert "google.cloud" not in done.stdout
    assert "google.auth" not in done.stdout


@pytest.mark.parametrize(
    "url", ["", "s3://bucket/x", "gs://", "gs://B/x", "file://host/x", "file:", "/a/folder", "http://x/y"]
)
def test_other_addresses_are_refused(url: str) -> None:
    """An invalid address is an error before anything is created."""
    with pytest.raises(UsageError):
        open_store(url)


def test_a_reader_makes_no_folder(tmp_path: Path) -> None:
    """A mistyped path is not created."""
    with pytest.raises(StoreError) as refused:
        open_store(f"file://{tmp_path}/missing", create=False)
    assert (refused.value.code, refused.value.action) == ("store-missing", "fix")
    assert not (tmp_path / "missing").exists()
