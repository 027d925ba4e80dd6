"""Tests of the catalogue of topics and subscriptions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ister.errors import DamagedError, IsterError, StorageError
from ister.storage.catalogue import Catalogue
from ister.storage.meta import SubscriptionMeta, TopicMeta

ORDERS = TopicMeta("orders/eu", b"1" * 16, "reliable", "fsync", 17, {"retention_ms": 5})
BILLING = SubscriptionMeta("orders/eu", "billing", "shared", 44, 18, {"max_deliveries": 3})


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """Return an empty catalogue."""
    found = Catalogue(str(tmp_path / "catalogue.db"))
    yield found
    found.close()


def test_what_is_created_is_there_after_opening_again(catalogue: Catalogue) -> None:
    """Topics and subscriptions come back as they were created."""
    catalogue.create_topic(ORDERS)
    catalogue.create_subscription(BILLING)
    catalogue.close()
    again = Catalogue(catalogue.path)
    assert again.get_topic("orders/eu") == ORDERS
    assert again.topics() == [ORDERS]
    assert again.get_subscription("orders/eu", "billing") == BILLING
    assert again.subscriptions() == again.subscriptions("orders/eu") == [BILLING]
    assert again.subscriptions("other") == []
    again.close()


def test_a_topic_that_comes_back_is_entered_with_its_subscriptions_or_not_at_all(
    catalogue: Catalogue,
) -> None:
    """If it were entered alone, after a crash or on a full disk, it would look like a topic without subscriptions."""
    twice = (BILLING, BILLING)
    with pytest.raises(IsterError):
        catalogue.create_topic(ORDERS, twice)
    assert (catalogue.topics(), catalogue.subscriptions()) == ([], [])
    catalogue.create_topic(ORDERS, (BILLING,))
    catalogue.close()
    again = Catalogue(catalogue.path)
    assert (again.topics(), again.subscriptions()) == ([ORDERS], [BILLING])
    again.close()


@pytest.mark.parametrize("start", ["earliest", "latest", 0, 2**62])
def test_a_start_keeps_its_kind(catalogue: Catalogue, start: str | int) -> None:
    """A name is read as a name, and an offset as a number."""
    catalogue.create_topic(ORDERS)
    catalogue.create_subscription(SubscriptionMeta("orders/eu", "s", "exclusive", start, 1))
    assert catalogue.get_subscription("orders/eu", "s").start == start


def test_a_subscriptions_settings_are_replaced(catalogue: Catalogue) -> None:
    """They are as given, also after opening again; the other fields stay."""
    catalogue.create_topic(ORDERS)
    catalogue.create_subscription(BILLING)
    other = SubscriptionMeta("orders/eu", "other", "shared", "latest", 19, {"paused": 0})
    catalogue.create_subscription(other)
    changed = catalogue.update_subscription("orders/eu", "billing", {"paused": 1})
    assert changed == SubscriptionMeta("orders/eu", "billing", "shared", 44, 18, {"paused": 1})
    catalogue.close()
    again = Catalogue(catalogue.path)
    assert again.subscriptions() == [changed, other]
    again.close()


def test_mistakes_have_codes(catalogue: Catalogue) -> None:
    """A missing or existing name is an error with a code, and changes nothing."""
    catalogue.create_topic(ORDERS)
    catalogue.create_subscription(BILLING)
    mistakes: dict[str, Callable[[], object]] = {
        "topic-exists": lambda: catalogue.create_topic(ORDERS),
        "unknown-topic": lambda: catalogue.get_topic("x"),
        "subscription-exists": lambda: catalogue.create_subscription(BILLING),
        "unknown-subscription": lambda: catalogue.delete_subscription("orders/eu", "x"),
    }
    for code, mistake in mistakes.items():
        with pytest.raises(IsterError) as refused:
            mistake()
        assert (refused.value.code, refused.value.action) == (code, "fix")
    unknown: list[Callable[[], object]] = [
        lambda: catalogue.delete_topic("x"),
        lambda: catalogue.update_topic("x", {}),
        lambda: catalogue.get_subscription("x", "billing"),
        lambda: catalogue.create_subscription(SubscriptionMeta("x", "s", "shared", "latest", 1)),
    ]
    for mistake in unknown:
        with pytest.raises(IsterError) as refused:
            mistake()
        assert refused.value.code == "unknown-topic"
    assert (catalogue.topics(), catalogue.subscriptions()) == ([ORDERS], [BILLING])


def test_deleting_a_topic_deletes_its_subscriptions_and_returns_them(catalogue: Catalogue) -> None:
    """The call returns what was deleted; other topics stay."""
    other = TopicMeta("other", b"2" * 16, "non-reliable", "fsync", 1)
    catalogue.create_topic(ORDERS)
    catalogue.create_topic(other)
    catalogue.create_subscription(BILLING)
    kept = SubscriptionMeta("other", "billing", "shared", "latest", 1)
    catalogue.create_subscription(kept)
    assert catalogue.delete_topic("orders/eu") == (ORDERS, [BILLING])
    assert (catalogue.topics(), catalogue.subscriptions()) == ([other], [kept])
    assert catalogue.delete_subscription("other", "billing") == kept
    assert catalogue.subscriptions() == []


def test_an_incarnation_is_never_used_by_two_topics(catalogue: Catalogue) -> None:
    """The catalogue refuses a second topic of one incarnation."""
    catalogue.create_topic(ORDERS)
    with pytest.raises(StorageError):
        catalogue.create_topic(TopicMeta("twin", ORDERS.incarnation, "reliable", "os", 1))


def test_settings_can_be_replaced(catalogue: Catalogue) -> None:
    """An update returns the topic with its new settings."""
    catalogue.create_topic(ORDERS)
    assert catalogue.update_topic("orders/eu", {"a": [1, None]}).settings == {"a": [1, None]}
    assert catalogue.get_topic("orders/eu").created_ms == ORDERS.created_ms


def test_metadata_can_be_mailed() -> None:
    """Both can be converted to msgspec's builtins and back."""
    for one in (ORDERS, BILLING):
        assert msgspec.convert(msgspec.to_builtins(one), type(one)) == one


def test_a_damaged_or_foreign_file_is_refused_with_a_code(tmp_path: Path) -> None:
    """A file that is no database, of another version, or that cannot be created gives a clear error."""
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database" * 1000)
    with pytest.raises(DamagedError, match=r"garbage\.db"):
        Catalogue(str(garbage))
    later = tmp_path / "later.db"
    database = sqlite3.connect(later)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="schema version 99"):
        Catalogue(str(later))
    with pytest.raises(StorageError, match="writable"):
        Catalogue(str(tmp_path / "missing" / "catalogue.db"))
