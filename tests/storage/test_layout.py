"""Tests of the plan of uploads, and of the names of objects."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.storage.layout import Layout, UploadPlan, decode_topic, encode_topic, joined_end, segment_metadata
from ister.storage.objectstore import check_name
from ister.storage.segment import SegmentInfo


def segments(*ends: int) -> list[SegmentInfo]:
    """Return joining segments, from offset 0."""
    return [
        SegmentInfo(f"/log/{base}", base, end, 100, 1, 2, end - base, 1)
        for base, end in zip((0, *ends), ends, strict=False)
    ]


def test_segments_are_handed_out_in_order_and_not_twice() -> None:
    """The oldest one not in the store comes first, and a limited number is under way."""
    plan = UploadPlan(0, in_flight_max=2)
    sealed = segments(10, 20, 30)
    first = plan.next(sealed)
    assert first == sealed[0]
    assert plan.next(sealed) == sealed[0]
    plan.begin(first)
    second = plan.next(sealed)
    assert second == sealed[1]
    plan.begin(second)
    assert plan.next(sealed) is None
    assert plan.in_flight == (0, 10)


def test_the_watermark_rises_only_over_a_joined_beginning() -> None:
    """A later segment that arrives first does not count before the earlier one."""
    plan = UploadPlan(0, in_flight_max=3)
    sealed = segments(10, 20, 30)
    for info in sealed:
        plan.begin(info)
    assert plan.done(20) == 0
    assert plan.done(10) == 0
    assert plan.done(0) == 30
    assert plan.next(sealed) is None


def test_a_failed_upload_is_handed_out_again() -> None:
    """No segment is forgotten, and those that arrived meanwhile are not sent twice."""
    plan = UploadPlan(0)
    sealed = segments(10, 20, 30)
    plan.begin(sealed[0])
    plan.begin(sealed[1])
    plan.done(10)
    plan.failed(0)
    assert plan.next(sealed) == sealed[0]
    plan.begin(sealed[0])
    assert plan.next(sealed) == sealed[2]
    assert plan.done(0) == 20


def test_a_plan_goes_on_where_the_store_ends() -> None:
    """Segments below the watermark are not uploaded again; one that crosses it is."""
    plan = UploadPlan(15)
    sealed = segments(10, 20, 30)
    info = plan.next(sealed)
    assert info == sealed[1]
    plan.begin(info)
    assert plan.done(10) == 20
    with pytest.raises(ValueError, match="no upload"):
        plan.done(99)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 2**32), st.integers(1, 4))
def test_in_whatever_order_uploads_end_all_arrive_once(lengths: list[int], seed: int, in_flight: int) -> None:
    """The watermark never passes a segment that is not in the store, and ends after the last."""
    random = Random(seed)
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    sealed = segments(*ends)
    plan = UploadPlan(0, in_flight)
    arrived: set[int] = set()
    for _ in range(1000):
        info = plan.next(sealed)
        if info is not None and random.random() < 0.6:
            plan.begin(info)
            continue
        if not plan.in_flight:
            if info is None:
                break
            continue
        base = random.choice(plan.in_flight)
        if random.random() < 0.3:
            plan.failed(base)
            continue
        assert base not in arrived
        arrived.add(base)
        watermark = plan.done(base)
        assert all(one.base in arrived for one in sealed if one.base < watermark)
    assert plan.watermark == ends[-1]
    assert arrived == {info.base for info in sealed}


@pytest.mark.parametrize("topic", ["orders", "orders/eu", "a/b/c", ".hidden", "a.b", "x" * 200, "a/.b"])
def test_names_come_back_and_are_valid(topic: str) -> None:
    """Stores accept every kind of name; it is below the topic's prefix, and can be parsed."""
    layout = Layout(topic, bytes(range(16)))
    assert decode_topic(encode_topic(topic)) == topic
    names = {
        "segment": layout.segment(12, 3),
        "epoch": layout.epoch(3),
        "begins": layout.begins(3, 12),
        "trimmed": layout.trimmed(12),
    }
    for name in (*names.values(), layout.catalogue):
        assert check_name(name) == name
    assert layout.parse_segment(names["segment"]) == (12, 3)
    assert layout.parse_epoch(names["epoch"]) == 3
    assert layout.parse_begins(names["begins"]) == (3, 12)
    assert layout.parse_trimmed(names["trimmed"]) == 12
    assert layout.segment(12, 3).startswith(layout.segments)
    for kind, parse in (
        ("segment", layout.parse_segment),
        ("epoch", layout.parse_epoch),
        ("begins", layout.parse_begins),
        ("trimmed", layout.parse_trimmed),
    ):
        for other, name in names.items():
            assert (parse(name) is None) == (kind != other)
    assert Layout("another", layout.incarnation).parse_segment(names["segment"]) is None


def test_no_object_is_a_folder_of_another() -> None:
    """If one topic's name begins with another's, the names of their objects do not contain each other."""
    topics = ("a", "a/b", "a/b/c", "a.b", "a-b")
    catalogues = [Layout(topic, bytes(16)).catalogue for topic in topics]
    assert len(set(catalogues)) == len(topics)
    for one in catalogues:
        assert not any(other.startswith(f"{one}/") for other in catalogues)


def test_segment_names_sort_by_offset_then_epoch() -> None:
    """A listing is in the order of the topic's offsets."""
    layout = Layout("orders", bytes(16))
    names = [layout.segment(base, epoch) for base in (0, 9, 10, 10**15) for epoch in (1, 2, 0x10)]
    assert names == sorted(names)


def test_metadata_says_what_a_listing_needs() -> None:
    """A segment's place is known from its metadata."""
    (info,) = segments(10)
    assert segment_metadata(info, "run-1") == {
        "base": "0",
        "next": "10",
        "count": "10",
        "first-timestamp": "1",
        "last-timestamp": "2",
        "id": "run-1",
    }


def test_the_joined_end_stops_at_the_first_hole() -> None:
    """Segments in any order, overlapping or not, cover up to the first offset that none contains."""
    assert joined_end([(10, 20), (0, 10), (30, 40)], 0) == 20
    assert joined_end([(0, 12), (10, 20)], 0) == 20
    assert joined_end([], 7) == 7
    assert joined_end([(8, 9)], 7) == 7
