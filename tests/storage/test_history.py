"""Tests of the history that a listing describes: examples, the rule offset by offset, and misbehaving writers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ister.storage.history import History, plan_history
from ister.storage.layout import Layout
from ister.storage.objectstore import ObjectInfo

LAYOUT = Layout("orders", bytes(range(16)))


def segment(base: int, end: int, epoch: int = 1) -> ObjectInfo:
    """Return a listed segment."""
    return ObjectInfo(LAYOUT.segment(base, epoch), 100, 0, {"next": str(end), "count": str(end - base)})


def begins(epoch: int, start: int) -> ObjectInfo:
    """Return a listed note of where an epoch begins."""
    return ObjectInfo(LAYOUT.begins(epoch, start), 0, 0)


def claim(epoch: int) -> ObjectInfo:
    """Return a listed claim."""
    return ObjectInfo(LAYOUT.epoch(epoch), 0, 0)


def trim(start: int) -> ObjectInfo:
    """Return a listed trim note."""
    return ObjectInfo(LAYOUT.trimmed(start), 0, 0)


def shown(history: History) -> list[tuple[int, int, int]]:
    """Return a history as (start, end, epoch) of its pieces."""
    return [(piece.start, piece.end, piece.segment.epoch) for piece in history.pieces]


def test_segments_that_join_are_the_history() -> None:
    """In whatever order they are listed."""
    history = plan_history(LAYOUT, [segment(10, 20), begins(1, 0), segment(0, 10), claim(1), segment(20, 25)])
    assert shown(history) == [(0, 10, 1), (10, 20, 1), (20, 25, 1)]
    assert (history.start, history.end, history.unjoined, history.unused, history.undecided) == (
        0,
        25,
        (),
        (),
        None,
    )


def test_segments_without_notes_are_read_as_they_are() -> None:
    """A store whose writer made no claim has a history too, which begins with its first segment."""
    assert shown(plan_history(LAYOUT, [segment(7, 9), segment(9, 12)])) == [(7, 9, 1), (9, 12, 1)]


def test_a_late_upload_of_a_superseded_writer_does_not_count() -> None:
    """Objects of epoch 1 after the beginning of epoch 2 are not part of the history, and are reported."""
    history = plan_history(
        LAYOUT,
        [
            begins(1, 0),
            begins(2, 20),
            segment(0, 20),
            segment(20, 40, 1),
            segment(20, 30, 2),
            segment(30, 45, 2),
        ],
    )
    assert shown(history) == [(0, 20, 1), (20, 30, 2), (30, 45, 2)]
    assert history.unused == (LAYOUT.segment(20, 1),)
    assert history.unjoined == ()


def test_a_new_writer_cuts_differently() -> None:
    """Its segment that begins before its own start counts from that start; the older one counts up to there."""
    history = plan_history(
        LAYOUT, [begins(1, 0), begins(2, 20), segment(0, 10), segment(10, 24, 1), segment(5, 40, 2)]
    )
    assert shown(history) == [(0, 10, 1), (10, 20, 1), (20, 40, 2)]


def test_a_gap_is_told_and_what_lies_before_and_behind_it_is_of_the_history() -> None:
    """Existing objects stay part of it in spite of the gap, and the two sides are not taken for joined."""
    history = plan_history(LAYOUT, [begins(1, 0), segment(0, 10), segment(20, 30), segment(35, 40)])
    assert shown(history) == [(0, 10, 1), (20, 30, 1), (35, 40, 1)]
    assert (history.end, history.joined_end, history.gaps) == (40, 10, ((10, 20), (30, 35)))
    assert [piece.start for piece in history.unjoined] == [20, 35]
    assert [history.gap_at(offset) for offset in (9, 10, 19, 20, 34, 40)] == [None, 20, 20, None, 35, None]


def test_only_a_trim_says_that_the_beginning_was_dropped() -> None:
    """Without such a note, offsets missing before the first object are a gap like any other."""
    listing = [begins(1, 0), segment(10, 20)]
    assert plan_history(LAYOUT, listing).gaps == ((0, 10),)
    assert plan_history(LAYOUT, [segment(10, 20)]).gaps == ((0, 10),)
    assert plan_history(LAYOUT, [*listing, trim(10)]).gaps == ()
    assert plan_history(LAYOUT, [*listing, trim(5)]).gaps == ((5, 10),)


def test_what_is_superseded_behind_a_gap_does_not_count() -> None:
    """The writer that continued after the gap owns everything from there on."""
    history = plan_history(LAYOUT, [begins(1, 0), segment(0, 10), segment(20, 30), begins(2, 10)])
    assert (shown(history), history.end, history.gaps) == ([(0, 10, 1)], 10, ())
    assert history.unused == (LAYOUT.segment(20, 1),)


def test_a_trim_begins_the_history_inside_a_segment() -> None:
    """The highest trim note counts; offsets below it are not part of the history."""
    listing = [trim(5), trim(15), begins(2, 12), segment(0, 10), segment(10, 20), segment(10, 20, 2)]
    history = plan_history(LAYOUT, listing)
    assert (history.start, shown(history)) == (15, [(15, 20, 2)])
    assert plan_history(LAYOUT, [trim(5)]) == History(5, 5, (), trimmed=5)


def test_a_claim_that_has_not_begun_is_told() -> None:
    """A reader knows that the newest segments may still be superseded."""
    assert plan_history(LAYOUT, [claim(1), begins(1, 0), claim(2), segment(0, 5)]).undecided == 2
    assert plan_history(LAYOUT, [claim(1), begins(1, 0), segment(0, 5)]).undecided is None


def test_objects_that_make_no_sense_are_left_out() -> None:
    """A segment without its end, an empty one, and names of other kinds."""
    broken = ObjectInfo(LAYOUT.segment(10, 1), 5, 0, {"next": "many"})
    other = ObjectInfo(f"{LAYOUT.prefix}c/cursor", 5, 0)
    history = plan_history(LAYOUT, [segment(0, 10), broken, other, segment(10, 10, 2)])
    assert history.end == 10
    assert history.unused == (broken.name, LAYOUT.segment(10, 2))


def test_reading_from_an_offset() -> None:
    """Earlier pieces are left out, and the one that contains the offset begins there."""
    history = plan_history(LAYOUT, [segment(0, 10), segment(10, 20)])
    assert [(piece.start, piece.end) for piece in history.from_offset(13)] == [(13, 20)]
    assert [(piece.start, piece.end) for piece in history.from_offset(10)] == [(10, 20)]
    assert [(piece.start, piece.end) for piece in history.from_offset(0)] == [(0, 10), (10, 20)]
    assert history.from_offset(20) == ()


# the rule, offset by offset


def superseded(epoch: int, position: int, starts: Sequence[tuple[int, int]]) -> bool:
    """Return whether a higher epoch begins at or below a position."""
    return any(other > epoch and start <= position for other, start in starts)


listings = st.tuples(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(1, 8), st.integers(0, 3)),
        max_size=14,
        unique_by=lambda s: (s[0], s[2]),
    ),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 18)), max_size=5, unique_by=lambda f: f[0]),
    st.lists(st.integers(0, 15), max_size=2),
)


@settings(max_examples=400)
@given(listings)
def test_any_listing_is_read_by_the_rule(
    listing: tuple[list[tuple[int, int, int]], list[tuple[int, int]], list[int]],
) -> None:
    """Pieces cover their offsets, are never superseded, belong to the owner; a gap is only where no object counts."""
    cuts, starts, trims = listing
    objects = [segment(base, base + length, epoch) for base, length, epoch in cuts]
    history = plan_history(LAYOUT, [*objects, *(begins(*one) for one in starts), *map(trim, trims)])
    if trims:
        assert history.start == max(trims)
    for before, after in pairwise(history.pieces):
        assert before.end <= after.start
    held = {offset for piece in history.pieces for offset in range(piece.start, piece.end)}
    for position in range(history.start, 40):
        counting = [
            epoch
            for base, length, epoch in cuts
            if base <= position < base + length and not superseded(epoch, position, starts)
        ]
        assert (position in held) == bool(counting)
    missing = {offset for first, end in history.gaps for offset in range(first, end)}
    assert missing == set(range(history.trimmed, history.end)) - held if held else not missing
    for piece in history.pieces:
        assert piece.segment.base <= piece.start < piece.end <= piece.segment.end
        for position in range(piece.start, piece.end):
            assert not superseded(piece.segment.epoch, position, starts)
            owner = max((epoch for epoch, start in starts if start <= position), default=-1)
            covering = {
                epoch for base, length, epoch in cuts if base <= position < base + length and epoch >= owner
            }
            assert piece.segment.epoch == min(covering)
    known = {piece.segment.name for piece in history.pieces}
    assert known | set(history.unused) == {one.name for one in objects}
    assert not known & set(history.unused)


# writers that follow the protocol, and writers that wrongly believe they still own the topic


class Writers:
    """A store, and each writer's log: offset -> writer."""

    def __init__(self) -> None:
        self.objects: dict[str, ObjectInfo] = {}
        self.logs: list[dict[int, int]] = []
        self.starts: list[int] = []
        self.confirmed = 0  # below it, everything was confirmed as uploaded

    def add(self, made: Iterable[ObjectInfo]) -> None:
        """Create objects; an existing one stays unchanged."""
        for one in made:
            self.objects.setdefault(one.name, one)

    def history(self) -> History:
        """Return the history of the current listing."""
        return plan_history(LAYOUT, self.objects.values())

    def take_over(self, diverged: bool, length: int) -> None:
        """Claim the next epoch, begin at the joined end, and write `length` messages.

        A `diverged` writer has an earlier log, whose older part differs from the store's.
        """
        epoch, start = len(self.logs), self.history().joined_end
        self.add([claim(epoch)])
        truth = {
            offset: self.logs[piece.segment.epoch][offset]
            for piece in self.history().pieces
            for offset in range(piece.start, piece.end)
            if offset < start
        }
        log = dict.fromkeys(truth, -1 - epoch) if diverged else truth
        log |= dict.fromkeys(range(start, start + length), epoch)
        self.add([begins(epoch, start)])
        self.logs.append(log)
        self.starts.append(start)

    def upload(self, epoch: int, base: int, end: int) -> None:
        """Upload a part of a writer's log, cut in any way; an owner's counts, a fenced writer's does not."""
        log = self.logs[epoch]
        end = min(end, self.starts[epoch] + sum(1 for offset in log if offset >= self.starts[epoch]))
        if base < end:
            self.add([segment(base, end, epoch)])


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take over"), st.booleans(), st.integers(0, 25)),
        st.tuples(st.just("upload"), st.integers(0, 3), st.integers(0, 60), st.integers(1, 20)),
    ),
    max_size=25,
)


@settings(max_examples=400)
@given(steps)
def test_no_order_of_uploads_and_takeovers_changes_what_counted(
    plan: list[tuple[str, int, int] | tuple[str, int, int, int]],
) -> None:
    """What a writer had joined when the next one listed stays; nothing of a fenced writer is added after it."""
    writers = Writers()
    writers.take_over(False, 20)
    truth: dict[int, int] = {}
    for step in plan:
        if step[0] == "take over":
            writers.take_over(bool(step[1]), step[2])
        else:
            epoch = max(0, len(writers.logs) - 1 - step[1])
            base = min(step[2], writers.starts[epoch] + 10) if step[1] else step[2]
            writers.upload(epoch, base, base + step[3])  # type: ignore[misc]
        history = writers.history()
        newest = len(writers.logs) - 1
        told = {
            offset: writers.logs[piece.segment.epoch][offset]
            for piece in history.pieces
            for offset in range(piece.start, piece.end)
            if offset < history.joined_end
        }
        assert list(told) == list(range(history.joined_end))
        assert told | truth == told  # nothing that counted is lost or replaced
        owners = {
            offset: max(epoch for epoch, start in enumerate(writers.starts) if start <= offset)
            for offset in told
        }
        assert all(told[offset] == owners[offset] for offset in told)
        assert newest >= max(owners.values(), default=0)
        truth = told
