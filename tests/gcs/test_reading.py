"""A history in Google's store, read while requests fail."""

from __future__ import annotations

from pathlib import Path

import pytest

import ister.store
from ister.storage.replay import Replay
from ister.storage.stored_topics import find_topic
from ister.storage.verify_store import verify_history
from tests.faultproxy import Fault, FaultProxy
from tests.gcs.conftest import BUCKET, MakeStore
from tests.gcs.emulator import Emulator
from tests.storedtopic import payload, store_a_topic

pytestmark = pytest.mark.gcs


@pytest.mark.parametrize("seed", range(3))
def test_every_message_comes_once_through_any_fault(
    seed: int, emulator: Emulator, make_store: MakeStore, tmp_path: Path
) -> None:
    """A third of all requests fails in some way, uploads and downloads: nothing is missing, doubled or changed."""
    with FaultProxy(emulator.url, probability=0.33, seed=seed) as proxy:
        store = make_store(proxy.url)
        topic = store_a_topic(tmp_path, store)
        for _ in range(5):
            topic.upload(topic.write([3, 4]))
        found = find_topic(store, "orders")
        parts = list(Replay(store, found.layout).read(0))
        assert [offset for part in parts for offset in range(part.first, part.end)] == list(range(96))
        assert verify_history(store, found.layout).sound
        assert len(proxy.done) >= 4
        topic.close()


def test_a_gs_address_is_read_as_any_other(
    emulator: Emulator,
    proxy: FaultProxy,
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From Python, with a download damaged in transit, and only with a viewer's permissions."""
    store_a_topic(tmp_path, make_store(emulator.url, prefix="here")).close()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.script(Fault("corrupted", "GET", "/s/"))
    url = f"gs://{BUCKET}/here"
    assert [topic.name for topic in ister.store.topics(url)] == ["orders"]
    assert [message.payload for message in ister.store.read(url, "orders", 7)] == [
        payload(n) for n in range(7, 61)
    ]
    assert proxy.done["corrupted"] == 1
    assert {method for method, _ in proxy.requests} == {"GET"}
