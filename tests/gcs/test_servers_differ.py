"""What servers leave out: the store relies on nothing that one of them lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ister.errors import StoreError
from ister.storage.claiming import claim
from ister.storage.erase import erase, sweep_orphans
from ister.storage.gcs import GcsStore
from ister.storage.layout import Layout
from ister.storage.listing import read_history
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.numbered_objects import drop_cursors, put_cursor, put_settings, read_cursors
from ister.storage.segment import SegmentInfo
from ister.storage.upload import put_segment, trim
from ister.storage.verify_store import verify_history
from tests.faultproxy import FaultProxy
from tests.gcs.conftest import MakeStore

pytestmark = pytest.mark.gcs

TOPIC = TopicMeta("orders", bytes(range(16)), "reliable", "fsync", 1)
LAYOUT = Layout(TOPIC.name, TOPIC.incarnation)


@pytest.fixture
def store(proxy: FaultProxy, make_store: MakeStore) -> GcsStore:
    """Return a store behind the proxy."""
    return make_store(proxy.url)


def live(store: GcsStore, path: Path) -> None:
    """Do everything to a store that a broker does, from a topic's first claim to its last object."""
    path.write_bytes(b"segment" * 1000)
    first = claim(store, TOPIC, "one", broker="us")
    put_settings(store, TOPIC, first.epoch, 0)
    for base in (0, 10, 20):
        put_segment(
            store, TOPIC, first.epoch, SegmentInfo(str(path), base, base + 10, 7000, 1, 2, 10, 1), "one"
        )
        put_segment(
            store, TOPIC, first.epoch, SegmentInfo(str(path), base, base + 10, 7000, 1, 2, 10, 1), "one"
        )
    subscription = SubscriptionMeta(TOPIC.name, "s", "shared", 0, 1, {})
    for number in range(3):
        put_cursor(store, TOPIC, subscription, first.epoch, number, b"journal")
    assert [meta.name for meta, _ in read_cursors(store, TOPIC)] == ["s"]
    trim(store, TOPIC, first.epoch, 10)
    second = claim(store, TOPIC, "two", broker="us")
    assert (second.epoch, second.start, second.history.start) == (first.epoch + 1, 30, 10)
    assert store.get_range(LAYOUT.segment(10, first.epoch), 0, 7) == b"segment"
    drop_cursors(store, TOPIC, "s", second.epoch)
    sweep_orphans(store, 1 << 60)
    assert erase(store, TOPIC, "us", "three") > 0
    assert list(store.list("")) == []


def test_every_upload_is_create_only_and_multipart_and_nothing_else_has_a_condition(
    proxy: FaultProxy, store: GcsStore, tmp_path: Path
) -> None:
    """Some servers check conditions for this kind of upload only, and none for deleting, composing or copying."""
    live(store, tmp_path / "segment")
    writes = [(method, path) for method, path in proxy.requests if method != "GET"]
    uploads = [path for method, path in writes if method == "POST"]
    assert uploads
    for path in uploads:
        assert path.startswith("/upload/storage/v1/b/")
        assert "uploadType=multipart" in path
        assert "ifGenerationMatch=0" in path
    rest = [(method, path) for method, path in writes if method != "POST"]
    assert {method for method, _ in rest} == {"DELETE"}
    for _, path in [*rest, *(each for each in proxy.requests if each[0] == "GET")]:
        assert "Match=" not in path
    for _, path in proxy.requests:
        assert not any(part in path for part in ("/compose", "/copyTo", "/rewriteTo", "uploadType=resumable"))


def without(key: str, when: Callable[[dict[str, Any]], bool]) -> Callable[[bytes], bytes]:
    """Return a function that removes a key from each matching object of an answer."""

    def strip(told: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in told.items() if name != key or not when(told)}

    def edit(answer: bytes) -> bytes:
        if not answer:
            return answer
        told = json.loads(answer)
        if isinstance(told, dict):
            told = strip(told)
            if "items" in told:
                told["items"] = [strip(item) for item in told["items"]]
        return json.dumps(told).encode()

    return edit


def test_an_absent_size_counts_as_nothing(proxy: FaultProxy, store: GcsStore, tmp_path: Path) -> None:
    """Some servers omit the size of an empty object, such as claims and notes."""
    proxy.edit = without("size", lambda told: told.get("size") in ("0", 0))
    live(store, tmp_path / "segment")
    assert store.put_if_absent("empty", b"")
    info = store.head("empty")
    assert info is not None
    assert (info.size, store.get("empty")) == (0, b"")
    claimed = claim(store, TOPIC, "three")
    assert claimed.epoch == 1
    assert verify_history(store, LAYOUT).objects == 0


def test_a_missing_checksum_is_said_as_such(proxy: FaultProxy, store: GcsStore) -> None:
    """Bytes without a checksum are neither called damaged nor returned as checked."""
    assert store.put_if_absent("a", b"hello")
    proxy.edit = without("crc32c", lambda _told: True)
    info = store.head("a")
    assert info is not None
    assert info.crc32c is None
    assert read_history(store, LAYOUT).pieces == ()
    with pytest.raises(StoreError, match="no CRC32C") as refused:
        store.put_if_absent("b", b"hello")
    assert (refused.value.code, refused.value.action) == ("checksum-missing", "stop")
