"""Tests of addresses: no two actors share one, and an address can be made without importing the actor."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from ister.actors import addresses
from ister.actors.addresses import actor_path, node_of
from ister.storage.meta import SubscriptionMeta, TopicMeta

KINDS = st.sampled_from(("topic", "subscription", "relay", "deadletters", "uploader"))
NAMES = st.text("ab.-_", min_size=1, max_size=4)


def topic(name: str, number: int = 0) -> TopicMeta:
    """Return the topic of a name in its n-th incarnation."""
    return TopicMeta(name, number.to_bytes(16), "reliable", "fsync", 0)


def subscription(of: TopicMeta, name: str, created_ms: int) -> SubscriptionMeta:
    """Return a subscription of a topic."""
    return SubscriptionMeta(of.name, name, "shared", "latest", created_ms, {})


def test_every_path_and_process_has_a_name_of_its_own() -> None:
    """Two actors at one path of one process would receive each other's mail."""
    paths = [value for name, value in vars(addresses).items() if name.endswith("_PATH")]
    nodes = [addresses.BROKER, addresses.TIER, *(node_of(number) for number in range(12))]
    assert len(paths) == len(set(paths)) == 6
    assert len(nodes) == len(set(nodes))


def test_the_names_that_operators_see_stay() -> None:
    """`status`, `ps` and the logs show these names."""
    assert (addresses.BROKER, addresses.TIER, node_of(0)) == ("broker", "tier", "worker-0")


@given(st.tuples(KINDS, NAMES, st.integers(0, 2)), st.tuples(KINDS, NAMES, st.integers(0, 2)))
def test_a_topic_made_again_has_other_paths(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    """Mail for the deleted topic finds no actor instead of reaching the new topic."""
    paths = [actor_path(kind, topic(name, number)) for kind, name, number in (one, other)]
    assert (paths[0] == paths[1]) == (one == other)


@given(st.tuples(NAMES, st.integers(1, 3)), st.tuples(NAMES, st.integers(1, 3)))
def test_a_subscription_made_again_has_another_path(one: tuple[str, int], other: tuple[str, int]) -> None:
    """The time of creation distinguishes it from the subscription before."""
    of = topic("orders")
    paths = [actor_path("subscription", of, subscription(of, name, ms)) for name, ms in (one, other)]
    assert (paths[0] == paths[1]) == (one == other)


def test_an_address_needs_nobodys_code() -> None:
    """Importing the addresses imports no actor and no database."""
    program = (
        "import sys, ister.actors.addresses\n"
        "print(*sorted(name for name in sys.modules if name.startswith('ister.actors.') or name == 'sqlite3'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ister.actors.addresses"]
