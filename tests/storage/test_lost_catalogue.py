"""Tests of a lost, old or damaged catalogue: what it lacks is restored, or the start is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ister.actors.broker import sweep_orphans
from ister.errors import DamagedError, DiskFullError, StorageError
from ister.storage.about import ABOUT_SUFFIX, Abouts, change_of, decode_about, encode_about
from ister.storage.catalogue import Catalogue
from ister.storage.disk import LocalDisk
from ister.storage.folders import cursor_name, folder_of
from ister.storage.lost_catalogue import open_catalogue
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.simulated import SimulatedDisk

ORDERS = TopicMeta("orders/eu", bytes(range(16)), "reliable", "fsync", 17, {"retention_ms": 5000})
NEWS = TopicMeta("news", bytes(16), "non-reliable", "fsync", 18)
BILLING = SubscriptionMeta("orders/eu", "billing", "key-shared", "latest", 20, {"max_deliveries": 7})
AUDIT = SubscriptionMeta("orders/eu", "audit", "exclusive", 3, 21)


def opened(data: Path, *, rebuild: bool = False) -> tuple[Catalogue, list[str]]:
    """Open the catalogue of a data folder."""
    return open_catalogue(LocalDisk(), str(data), str(data / "catalogue.sqlite"), rebuild=rebuild)


def fill(data: Path) -> None:
    """Make a catalogue with two topics, and a log and cursors beside it."""
    catalogue, told = opened(data)
    assert told == []
    for topic in (ORDERS, NEWS):
        catalogue.create_topic(topic)
    for subscription in (BILLING, AUDIT):
        catalogue.create_subscription(subscription)
        (data / "cursors" / folder_of(ORDERS) / cursor_name(subscription)).write_bytes(b"a cursor")
    (data / "topics" / folder_of(ORDERS) / f"{0:020d}.seg").write_bytes(b"a segment")
    catalogue.update_topic("orders/eu", {"retention_ms": 6000})
    catalogue.update_subscription("orders/eu", "audit", {"paused": 1})
    catalogue.close()


def contents(catalogue: Catalogue) -> dict[str, Any]:
    """Return the contents of a catalogue."""
    found = {"topics": catalogue.topics(), "subscriptions": catalogue.subscriptions()}
    catalogue.close()
    return found


def remove(data: Path) -> None:
    """Delete the catalogue."""
    for path in data.glob("catalogue.sqlite*"):
        path.unlink()


def empty(data: Path) -> None:
    """Make the catalogue's file empty."""
    for path in data.glob("catalogue.sqlite*"):
        path.write_bytes(b"")


def renew(data: Path) -> None:
    """Put an empty catalogue in its place."""
    remove(data)
    Catalogue(str(data / "catalogue.sqlite")).close()


def set_back(data: Path) -> None:
    """Put an old copy in its place, from before most changes."""
    remove(data)
    catalogue = Catalogue(str(data / "catalogue.sqlite"))
    catalogue.create_topic(NEWS)
    catalogue.close()


@pytest.mark.parametrize("lose", [remove, empty, renew, set_back])
def test_what_a_catalogue_lacks_is_back_as_it_was_changed_last(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    """Topics, subscriptions, their types, starts and settings return; that is logged."""
    fill(tmp_path)
    catalogue, told = opened(tmp_path)
    assert told == []
    before = contents(catalogue)
    lose(tmp_path)
    catalogue, told = opened(tmp_path)
    assert contents(catalogue) == before
    assert any("orders/eu" in line and "2" in line for line in told)
    catalogue, told = opened(tmp_path)
    assert told == []
    catalogue.close()


def test_a_damaged_catalogue_is_refused_and_made_anew_when_told(tmp_path: Path) -> None:
    """The error says how to rebuild it; the damaged file is kept."""
    fill(tmp_path)
    before = contents(opened(tmp_path)[0])
    (tmp_path / "catalogue.sqlite").write_bytes(b"\1" * 5000)
    with pytest.raises(DamagedError, match="--rebuild-catalogue"):
        opened(tmp_path)
    catalogue, told = opened(tmp_path, rebuild=True)
    assert contents(catalogue) == before
    assert "catalogue.sqlite.damaged-0" in told[0]
    assert (tmp_path / "catalogue.sqlite.damaged-0").read_bytes() == b"\1" * 5000


def test_what_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    """Also if a worker was down and had not deleted the log before the catalogue was lost."""
    fill(tmp_path)
    catalogue, _ = opened(tmp_path)
    catalogue.delete_subscription("orders/eu", "audit")
    catalogue.delete_topic("news")
    catalogue.close()
    (tmp_path / "cursors" / folder_of(ORDERS) / cursor_name(AUDIT)).unlink()
    assert not (tmp_path / "topics" / folder_of(NEWS)).exists()
    remove(tmp_path)
    catalogue, _ = opened(tmp_path)
    assert [one.name for one in catalogue.topics()] == ["orders/eu"]
    assert [one.name for one in catalogue.subscriptions()] == ["billing"]
    catalogue.delete_topic("orders/eu")
    catalogue.close()
    opened(tmp_path)[0].close()  # though its log is still there: the catalogue knows that it was deleted
    assert Abouts(LocalDisk(), str(tmp_path)).read().topics == ()


@pytest.mark.parametrize("what", ["no descriptions", "a damaged one", "no topics' descriptions"])
def test_what_nothing_describes_stops_the_start_until_somebody_says_so(tmp_path: Path, what: str) -> None:
    """They are damaged, or from a broker older than descriptions: nothing is created over them without a decision."""
    fill(tmp_path)
    for path in [*tmp_path.glob("*/*/about"), *tmp_path.glob("*/*/*.about")]:
        if what == "a damaged one":
            path.write_bytes(path.read_bytes()[:-20])
        elif what == "no descriptions" or path.name == "about":
            path.unlink()
    remove(tmp_path)
    with pytest.raises(StorageError, match="--rebuild-catalogue") as refused:
        opened(tmp_path)
    assert refused.value.code == "catalogue-lost"
    catalogue, told = opened(tmp_path, rebuild=True)
    assert catalogue.topics() == []
    catalogue.close()
    assert len(told) == 3
    kept = {path.read_bytes() for path in (tmp_path / "set-aside-0").glob("*/*/*")}
    assert kept == {b"a segment", b"a cursor"}


def test_what_a_deletion_left_of_the_last_topic_stops_no_start(tmp_path: Path) -> None:
    """The catalogue is empty and knows that this is right; no description says that the leftovers are a topic's."""
    fill(tmp_path)
    catalogue, _ = opened(tmp_path)
    for topic in (ORDERS, NEWS):
        catalogue.delete_topic(topic.name)
        catalogue.erased(topic.incarnation)
    catalogue.close()
    left = tmp_path / "topics" / folder_of(ORDERS)
    assert left.exists()
    catalogue, told = opened(tmp_path)
    assert (catalogue.topics(), told) == ([], [])
    sweep_orphans(LocalDisk(), str(tmp_path), catalogue)
    assert not left.exists()
    catalogue.close()


def test_an_older_brokers_data_is_described_at_the_first_start(tmp_path: Path) -> None:
    """After that its catalogue may be lost."""
    catalogue = Catalogue(str(tmp_path / "catalogue.sqlite"))
    catalogue.create_topic(ORDERS)
    catalogue.create_subscription(BILLING)
    catalogue.close()
    opened(tmp_path)[0].close()
    remove(tmp_path)
    assert contents(opened(tmp_path)[0]) == {"topics": [ORDERS], "subscriptions": [BILLING]}


def test_a_topic_made_again_is_not_mistaken_for_the_one_before(tmp_path: Path) -> None:
    """The catalogue counts; descriptions beside another incarnation's log are ignored."""
    fill(tmp_path)
    remove(tmp_path)
    again = TopicMeta("orders/eu", b"\7" * 16, "reliable", "fsync", 99)
    catalogue = Catalogue(str(tmp_path / "catalogue.sqlite"))
    catalogue.create_topic(again)
    catalogue.close()
    catalogue, _ = opened(tmp_path)
    assert catalogue.get_topic("orders/eu") == again
    assert catalogue.subscriptions("orders/eu") == []
    catalogue.close()
    assert (tmp_path / "topics" / folder_of(ORDERS) / "about").exists()


def test_an_old_copy_of_the_catalogue_brings_no_old_settings_and_hides_no_log(tmp_path: Path) -> None:
    """Later changes and later topics are as they were last: a retention that was removed deletes nothing."""
    fill(tmp_path)
    copy = (tmp_path / "catalogue.sqlite").read_bytes()
    catalogue, _ = opened(tmp_path)
    catalogue.update_topic("orders/eu", {"retention_ms": 0})
    catalogue.update_subscription("orders/eu", "audit", {"paused": 0})
    catalogue.delete_subscription("orders/eu", "billing")
    later = SubscriptionMeta("orders/eu", "billing", "shared", "earliest", 30, {"max_deliveries": 2})
    catalogue.create_subscription(later)
    catalogue.delete_topic("news")
    again = TopicMeta("news", b"\7" * 16, "reliable", "fsync", 40)
    catalogue.create_topic(again)
    before = contents(catalogue)
    for _ in range(2):
        remove(tmp_path)
        (tmp_path / "catalogue.sqlite").write_bytes(copy)
        catalogue, told = opened(tmp_path)
        assert contents(catalogue) == before
        assert any("orders/eu" in line and "settings" in line for line in told)
    catalogue, told = opened(tmp_path)
    assert told == []
    catalogue.update_topic("orders/eu", {"retention_ms": 9})
    catalogue.close()
    catalogue, _ = opened(tmp_path)
    assert catalogue.get_topic("orders/eu").settings == {"retention_ms": 9}
    catalogue.close()


def test_a_change_that_could_not_be_described_is_not_taken_back(tmp_path: Path) -> None:
    """An older description counts less than the catalogue if that is no copy."""
    disk = SimulatedDisk()
    disk.makedirs("/data")
    path = str(tmp_path / "catalogue.sqlite")
    catalogue, _ = open_catalogue(disk, "/data", path)
    catalogue.create_topic(ORDERS)
    disk.room = 0
    catalogue.update_topic("orders/eu", {"retention_ms": 1})
    catalogue.close()
    disk.room = None
    catalogue, told = open_catalogue(disk, "/data", path)
    assert (catalogue.get_topic("orders/eu").settings, told) == ({"retention_ms": 1}, [])
    catalogue.close()


def test_a_description_says_nothing_once_a_byte_of_it_is_another() -> None:
    """Unchanged, it gives all its fields."""
    fields = {"topic": "orders", "name": "s", "start": 3, "settings": {"a": 1}}
    whole = encode_about(fields, 77)
    assert (decode_about(whole), change_of(whole)) == (fields, 77)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        assert decode_about(bytes(flipped)) in (None, fields)  # spaces between fields have no meaning
        assert change_of(bytes(flipped)) in (0, 77)
    for length in range(len(whole) - 2):
        assert decode_about(whole[:length]) is None


def test_a_description_that_cannot_be_written_refuses_what_is_new(tmp_path: Path) -> None:
    """On a full disk nothing is created that a lost catalogue would not know; changes are described later."""
    disk = SimulatedDisk()
    disk.makedirs("/data")
    catalogue = Catalogue(str(tmp_path / "catalogue.sqlite"), Abouts(disk, "/data"))
    catalogue.create_topic(ORDERS)
    disk.room = 0
    with pytest.raises(DiskFullError):
        catalogue.create_subscription(BILLING)
    assert catalogue.subscriptions() == []
    catalogue.update_topic("orders/eu", {"retention_ms": 1})
    disk.room = None
    catalogue.create_subscription(BILLING)
    catalogue.describe_all()
    catalogue.close()
    told = Abouts(disk, "/data").read()
    assert told.topics[0]["settings"] == {"retention_ms": 1}
    assert [fields["name"] for _, fields in told.subscriptions] == ["billing"]
    assert ABOUT_SUFFIX in "".join(disk.listdir(f"/data/cursors/{folder_of(ORDERS)}"))
