"""Tests of the data folder's paths: they never change, and no two things share one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ister.storage.folders import cache_folder, cursor_path, cursors_folder, log_folder
from ister.storage.meta import SubscriptionMeta, TopicMeta

ORDERS = TopicMeta("Orders", bytes(15) + b"\x01", "reliable", "fsync", 0)
BILLING = SubscriptionMeta("Orders", "billing", "shared", "latest", 1_700_000_000_000, {})
NAMES = st.text("aAbB", min_size=1, max_size=4)


def test_the_paths_of_a_data_folder_never_change_over_versions() -> None:
    """The disks of stopped brokers have them."""
    incarnation = "0" * 31 + "1"
    assert log_folder("/data", ORDERS) == f"/data/topics/=4frders.{incarnation}"
    assert cursors_folder("/data", ORDERS) == f"/data/cursors/=4frders.{incarnation}"
    assert (
        cursor_path("/data", ORDERS, BILLING) == f"/data/cursors/=4frders.{incarnation}/billing.1700000000000"
    )
    assert cache_folder("/data", ORDERS) == f"/data/cache/=4frders.{incarnation}"


@given(st.tuples(NAMES, st.integers(0, 2)), st.tuples(NAMES, st.integers(0, 2)))
def test_a_topic_made_again_has_other_files(one: tuple[str, int], other: tuple[str, int]) -> None:
    """No file of its predecessor is taken for its own."""
    folders = [
        log_folder("/data", TopicMeta(name, number.to_bytes(16), "reliable", "fsync", 0))
        for name, number in (one, other)
    ]
    assert (folders[0] == folders[1]) == (one == other)
