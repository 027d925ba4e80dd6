"""Tests of homes: which process a topic or subscription lives on, and that no mail goes to a process that is down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from ister.actors.addresses import FETCHER_PATH, FRONTEND_PATH, TIER
from ister.actors.directory.homes import Homes
from ister.actors.messages import Describe, SubscriptionTask, TopicTask
from ister.actors.patience import NotYetError
from ister.actors.runtime import Address, System
from ister.storage.meta import SubscriptionMeta, TopicMeta

ME = Address("broker", "directory")
ORDERS = TopicMeta("orders", bytes(16), "reliable", "fsync", 0)
BILLING = SubscriptionMeta("orders", "billing", "shared", "latest", 1, {})


class Post:
    """A system that records which mail is sent to whom."""

    def __init__(self) -> None:
        self.told: list[tuple[Address, object]] = []

    def ref(self, node: str, path: str) -> Any:
        post, address = self, Address(node, path)

        class To:
            def tell(self, message: object) -> None:
                post.told.append((address, message))

        return To()


@pytest.fixture
def post() -> Post:
    """Return the system that records mail."""
    return Post()


@pytest.fixture
def homes(post: Post) -> Homes:
    """Return the homes of a broker with four workers, none of them up."""
    return Homes(cast(System, post), ME, [f"tcp://h:{number}" for number in range(4)])


def test_a_home_is_a_process_and_its_endpoint(homes: Homes) -> None:
    """Placement decides, and never changes for a given name."""
    assert homes.of_topic("orders") == ("worker-0", "tcp://h:0")
    assert homes.of_subscription("orders", "billing") == ("worker-3", "tcp://h:3")


def test_who_is_not_up_is_told_nothing(homes: Homes, post: Post) -> None:
    """The error names the missing process, and says to try again."""
    asks: list[Callable[[], None]] = [
        lambda: homes.have_topic_do("describe", ORDERS, 1),
        lambda: homes.have_subscription_do("start", ORDERS, BILLING, 1),
        lambda: homes.have_described("worker-1", 1),
    ]
    for ask in asks:
        with pytest.raises(NotYetError, match=r"worker-\d is being restarted; try again"):
            ask()
    assert (homes.uploader(ORDERS), homes.at_tier(FETCHER_PATH), post.told) == (None, None, [])


def test_tasks_go_where_things_live(homes: Homes, post: Post) -> None:
    """A subscription is told where its topic lives."""
    for node in ("worker-0", "worker-3", TIER):
        homes.came(node)
    homes.have_topic_do("verify", ORDERS, 5, 2)
    homes.have_subscription_do("seek", ORDERS, BILLING, 6, "earliest")
    homes.have_described("worker-3", 7)
    uploader = homes.uploader(ORDERS)
    assert uploader is not None
    uploader.tell("hello")
    assert post.told == [
        (("worker-0", FRONTEND_PATH), TopicTask("verify", ORDERS, ME, 5, 2)),
        (
            ("worker-3", FRONTEND_PATH),
            SubscriptionTask("seek", ORDERS, BILLING, "worker-0", ME, 6, "earliest"),
        ),
        (("worker-3", FRONTEND_PATH), Describe(ME, 7)),
        ((TIER, f"uploader/orders:{'00' * 16}"), "hello"),
    ]


def test_who_went_is_not_up(homes: Homes) -> None:
    """Until it comes up again."""
    homes.came("worker-2")
    homes.came("worker-1")
    assert homes.up() == ["worker-1", "worker-2"]
    assert homes.is_up("worker-1", "worker-2")
    homes.went("worker-1")
    homes.went("worker-1")
    assert not homes.is_up("worker-1", "worker-2")
    homes.need("worker-2")
    with pytest.raises(NotYetError):
        homes.need("worker-1")
