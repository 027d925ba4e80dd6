"""Tests of a reliable topic's parts: the table of its log's states, its receipts, its view of the store."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest

from ister.actors.log_state import TRANSITIONS, LogEvent, LogState, event_of
from ister.actors.messages import CloseProducer, Deposit, OpenProducer, Uploaded
from ister.actors.receipts import DEPOSITS_MAX, Receipts
from ister.actors.runtime import Address
from ister.actors.store_view import TELL_AGAIN_S, TOLD_AGAIN_MAX, News, StoreView, lost_by_log
from ister.errors import DamagedError, DiskFullError, StorageError
from ister.storage.meta import TopicMeta
from ister.storage.recovery import DamagedRange
from ister.storage.segment import SegmentInfo
from ister.transport.session import Handle

# ---- the states of a log -----------------------------------------------------------------------------------------

CLOSED, OPEN, FAILED, FENCED, DELETED = LogState
AGAIN, STAYS = True, False

# state, then the next state after opened, failed, stopped, fenced, deleted and ended; None: cannot happen
TABLE: list[tuple[LogState, list[tuple[LogState, bool] | None]]] = [
    (
        CLOSED,
        [(OPEN, STAYS), (FAILED, AGAIN), (FAILED, STAYS), (FENCED, STAYS), (DELETED, STAYS), (CLOSED, STAYS)],
    ),
    (OPEN, [None, (FAILED, AGAIN), (FAILED, STAYS), (FENCED, STAYS), (DELETED, STAYS), (CLOSED, STAYS)]),
    (
        FAILED,
        [(OPEN, STAYS), (FAILED, AGAIN), (FAILED, STAYS), (FENCED, STAYS), (DELETED, STAYS), (CLOSED, STAYS)],
    ),
    (FENCED, [None, (FENCED, STAYS), (FAILED, STAYS), (FENCED, STAYS), (DELETED, STAYS), (CLOSED, STAYS)]),
    (
        DELETED,
        [None, (DELETED, STAYS), (DELETED, STAYS), (DELETED, STAYS), (DELETED, STAYS), (DELETED, STAYS)],
    ),
]


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [(state, event, row[at]) for state, row in TABLE for at, event in enumerate(LogEvent)],
)
def test_what_an_event_makes_of_a_log(
    state: LogState, event: LogEvent, expected: tuple[LogState, bool] | None
) -> None:
    """Row by row: the next state, and whether the log is opened again."""
    found = TRANSITIONS.get((state, event))
    assert (None if found is None else (found.state, found.reopens)) == expected


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (DiskFullError("no room"), LogEvent.FAILED),
        (StorageError("an fsync failed"), LogEvent.FAILED),
        (DamagedError("a hole"), LogEvent.STOPPED),
        (StorageError("two truths", code="store-failed", action="stop"), LogEvent.STOPPED),
        (StorageError("another has it", code="fenced", action="stop"), LogEvent.FENCED),
    ],
)
def test_what_an_error_is_to_a_log(error: StorageError, event: LogEvent) -> None:
    """The error itself says whether it is worth another try."""
    assert event_of(error) is event


# ---- receipts ----------------------------------------------------------------------------------------------------

ONE, OTHER = cast(Handle, "one"), cast(Handle, "other")


def command(kind: type, number: int) -> Any:
    """Return a command that differs from all others."""
    if kind is CloseProducer:
        return CloseProducer(ONE, 0, number)
    if kind is OpenProducer:
        return OpenProducer(ONE, 0, number, 7, 0)
    return Deposit(
        TopicMeta("orders", bytes(16), "reliable", "fsync", 0),
        7,
        number,
        1,
        0,
        (),
        Address("worker-0", "letters"),
    )


def test_receipts_are_due_once_and_in_order() -> None:
    """One list for each handle; messages that are not durable yet wait."""
    receipts = Receipts()
    for end, handle, sequence in ((3, ONE, 0), (4, OTHER, 9), (6, ONE, 1), (7, ONE, 2)):
        receipts.batches.append((end, handle, sequence, end - 1))
    assert receipts.due(2) == {}
    assert receipts.due(6) == {ONE: [0, 2, 1, 5], OTHER: [9, 3]}
    assert receipts.due(6) == {}
    assert receipts.unanswered() == {ONE: 2}
    assert receipts.give_up() == [(7, ONE, 2, 6)]
    assert (receipts.give_up(), receipts.due(99), receipts.unanswered()) == ([], {}, {})


def test_what_is_unanswered_begins_with_the_lowest_number() -> None:
    """Also if a batch was sent again after another."""
    receipts = Receipts()
    for sequence in (5, 3, 4):
        receipts.batches.append((9, ONE, sequence, 0))
    assert receipts.unanswered() == {ONE: 3}


@pytest.mark.parametrize(
    ("kind", "wait", "due"),
    [
        (Deposit, "deposit", "due_deposits"),
        (CloseProducer, "close", "due_closes"),
        (OpenProducer, "open", "due_opens"),
    ],
)
def test_other_answers_are_due_like_receipts(kind: type, wait: str, due: str) -> None:
    """Letters, closes and opens wait for the log, each kind separately; or all are refused."""
    receipts = Receipts()
    commands = [command(kind, number) for number in range(4)]
    for end, each in zip((2, 2, 5, 6), commands, strict=True):
        getattr(receipts, wait)(end, each)
    assert receipts.others == 4
    assert getattr(receipts, due)(1) == []
    assert getattr(receipts, due)(4) == commands[:2]
    assert getattr(receipts, due)() == commands[2:]
    assert (getattr(receipts, due)(), receipts.others) == ([], 0)


def test_letters_are_bounded() -> None:
    """A limited number waits, whoever sends them."""
    receipts = Receipts()
    for number in range(DEPOSITS_MAX):
        assert not receipts.full_of_deposits
        receipts.deposit(number, command(Deposit, number))
    assert receipts.full_of_deposits


# ---- the store ---------------------------------------------------------------------------------------------------


def segments(*bounds: int) -> list[SegmentInfo]:
    """Return consecutive segments of ten bytes per message."""
    return [
        SegmentInfo(f"{first}.seg", first, end, 10 * (end - first), 0, 0, end - first, 0)
        for first, end in pairwise(bounds)
    ]


def damaged(*ranges: tuple[int, int]) -> list[DamagedRange]:
    """Return damaged places of a log."""
    return [DamagedRange(first, end, "x.seg", 0, "rotten") for first, end in ranges]


def test_nothing_is_known_before_the_store_has_spoken() -> None:
    """The topic begins where its log begins until the store says otherwise."""
    store = StoreView()
    assert (store.known, store.answered, store.begins(40, 0)) == (False, False, 40)
    store.stops("two truths", refuses=True)
    assert (store.answered, store.trouble) == (False, "two truths")
    store.stops("two truths", refuses=False)
    assert (store.answered, store.begins(40, 0), store.stopped) == (True, 0, True)
    store.uploaded(Uploaded(10, 40))
    assert (store.known, store.stopped, store.trouble, store.begins(40, 0)) == (True, False, None, 10)


@pytest.mark.parametrize(
    ("start", "log_start", "retained", "begins"),
    [(0, 0, 0, 0), (0, 40, 0, 0), (10, 40, 0, 10), (10, 40, 20, 20), (10, 40, 50, 40), (50, 40, 0, 40)],
)
def test_a_topic_begins_where_retention_ended(start: int, log_start: int, retained: int, begins: int) -> None:
    """In the store or here, whichever is further; never after the log's beginning."""
    store = StoreView()
    store.uploaded(Uploaded(start, 60))
    assert store.begins(log_start, retained) == begins


def test_the_watermark_never_falls() -> None:
    """Mail may be old."""
    store = StoreView()
    for said, watermark in ((20, 20), (10, 20), (30, 30)):
        store.uploaded(Uploaded(0, said))
        assert store.watermark == watermark


def test_what_the_store_has_is_told_without_its_gaps() -> None:
    """Of damaged segments in the store, only what the log still has counts."""
    store = StoreView()
    assert list(store.stored([])) == []
    store.uploaded(Uploaded(10, 100, ((20, 30),), ((40, 60),)))
    assert list(store.stored([])) == [(10, 20), (30, 100)]
    assert list(store.stored(damaged((50, 55), (58, 70), (80, 90)))) == [
        (10, 20),
        (30, 50),
        (55, 58),
        (60, 100),
    ]


def test_what_the_store_has_not_taken_is_counted() -> None:
    """By sealed segments: one that the store has in part has reached it."""
    store = StoreView()
    store.note_behind(segments(0, 10, 20, 40))
    assert store.behind_bytes == 400
    store.uploaded(Uploaded(0, 20))
    store.note_behind(segments(0, 10, 20, 40))
    assert store.behind_bytes == 200


def test_a_segment_is_told_once() -> None:
    """Until the Uploader is restarted; then all segments that the store has not taken are told again."""
    store = StoreView()
    sealed, broken = segments(0, 10, 20), segments(20, 25)
    assert store.news([], []) is None
    assert store.news(sealed[:1], []) == News((sealed[0],), ())
    assert store.news(sealed, broken) == News((sealed[1],), (broken[0],))
    assert store.news(sealed, broken) is None
    store.uploaded(Uploaded(0, 10))
    store.forget_told()
    assert store.news(sealed, broken) == News((sealed[1],), (broken[0],))


def test_what_is_not_taken_is_told_again_in_time() -> None:
    """Only while the watermark stands still, and no more than the tier takes at once."""
    store = StoreView()
    sealed = segments(*range(0, 2000, 10))
    store.news(sealed, [])
    store.uploaded(Uploaded(0, 10))
    assert not store.waits_too_long(0.0)  # it has moved
    assert not store.waits_too_long(TELL_AGAIN_S - 0.1)
    assert store.waits_too_long(TELL_AGAIN_S)
    assert not store.waits_too_long(TELL_AGAIN_S + 1)  # it was told just now
    assert store.waits_too_long(2 * TELL_AGAIN_S)
    assert store.not_taken(sealed, []) == News(tuple(sealed[1 : 1 + TOLD_AGAIN_MAX]), ())
    store.look_again(2 * TELL_AGAIN_S + 5)
    assert not store.waits_too_long(3 * TELL_AGAIN_S)
    store.uploaded(Uploaded(0, 1990))
    assert store.not_taken(sealed, []) is None


def test_what_is_in_no_segment_is_lost_by_the_log() -> None:
    """Damage inside a segment may be readable in part; offsets in no segment are lost."""
    found = lost_by_log(damaged((5, 15), (18, 26), (30, 30)), [*segments(0, 10), *segments(20, 25)])
    assert found == ((10, 15), (18, 20), (25, 26))
