"""The oracle's knowledge of segments: if it were inexact, retention could take too much unnoticed."""

from __future__ import annotations

from tests.sim.segments import SegmentNames


def path(base: int, topic: str = "topic0") -> str:
    """Return a segment's name."""
    return f"/data/topics/{topic}.{'0' * 32}/{base:020}.seg"


def names_of(*bases: int) -> SegmentNames:
    """Return what is known of a machine that created these files."""
    names = SegmentNames()
    for base in bases:
        names.named("a", path(base))
    return names


def begins(names: SegmentNames, *offsets: int) -> list[int]:
    """Return where the segments of these offsets begin."""
    return [names.of("topic0", offset)[0] for offset in offsets]


def test_an_offset_is_in_the_segment_that_begins_last_before_it() -> None:
    """In its own topic, whatever other files there are."""
    names = names_of(0, 54, 100)
    names.named("a", path(60, "topic1"))
    names.named("a", "/data/topics/topic0.1/begin")
    names.named("a", f"/data/cache/topic0.1/{70:020}.seg")
    assert begins(names, 0, 53, 54, 99, 100, 1000) == [0, 0, 54, 54, 100, 100]
    assert names.of("topic2", 7) == (0, 1)
    assert [names.of("topic0", offset)[1] for offset in (53, 54, 1000)] == [3, 2, 1]


def test_what_retention_took_from_the_beginning_was_there() -> None:
    """Its segments are asked about when they are gone."""
    names = names_of(0, 54, 100)
    names.unnamed("a", path(0))
    names.unnamed("a", path(54))
    assert begins(names, 53, 99, 100) == [0, 54, 100]


def test_what_a_recovery_cut_off_at_the_end_never_was() -> None:
    """The segment before it continues, with other messages."""
    names = names_of(0, 54, 100)
    names.unnamed("a", path(100))
    names.named("a", path(80))
    assert begins(names, 79, 80, 100) == [54, 80, 80]


def test_a_power_failure_takes_names_and_brings_some_back() -> None:
    """What was created last may be gone, and what was deleted last may be there again."""
    names = names_of(0, 54, 100)
    names.unnamed("a", path(0))
    names.lost("a", [path(0), path(54), path(70, "topic1")])
    assert begins(names, 53, 54, 100) == [0, 54, 54]
    names.unnamed("a", path(0))
    assert begins(names, 53, 54) == [0, 54]


def test_where_two_brokers_had_a_topic_the_lower_answer_counts() -> None:
    """It is not decided here which of them is right."""
    names = names_of(0, 54)
    names.named("b", path(60))
    assert begins(names, 53, 59, 61) == [0, 54, 54]
