"""Tests of delivery in log order, for subscriptions and readers."""

from __future__ import annotations

from typing import Any

import pytest

from ister.actors.ledger import Held
from ister.actors.messages import Acknowledged, Attached, Fetched, ReadFrom, Returned, Seek, TopicFailed
from ister.actors.subscription import log_parts
from ister.actors.subscription.acknowledgments import Acknowledgments
from ister.actors.subscription.attaching import Attaching
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.failures import Failures
from ister.actors.subscription.in_order import InOrder
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.moving import Moving
from ister.actors.subscription.reading import Reading
from ister.errors import DamagedError
from ister.storage.wholereader import NotHereError
from ister.subscriptions import READER
from tests.actors.hosts import ASKER, Delivering


def ordered(type_: str = "exclusive", *, consumers: int = 1, sparse: bool = True, **given: Any) -> Delivering:
    """Return a delivery in log order, with consumers."""
    bench = Delivering(InOrder, type_, **given)
    for key in range(1, consumers + 1):
        bench.host.attach(key, sparse=sparse)
    return bench


def give_back(bench: Delivering, first: int, end: int, delay_s: float = 0.0) -> None:
    """Let a consumer return messages."""
    bench.part(Acknowledgments).on_returned(Returned(1, (Held(first, end, 1),), delay_s, "no"))


def acknowledge(bench: Delivering, *ranges: tuple[int, int]) -> None:
    """Let a consumer acknowledge messages."""
    settled = sum(end - first for first, end in ranges)
    bench.part(Acknowledgments).on_acknowledged(Acknowledged(1, ranges, None, settled))


def test_batches_that_follow_each_other_go_together() -> None:
    """Each is delivered once, in order."""
    bench = ordered()
    for _ in range(3):
        bench.publish(b"a", b"b")
    assert bench.hand_out() == [((0, 6),)]
    assert bench.hand_out() == []
    assert bench.delivery.position() == 6


def test_what_came_back_goes_before_anything_new() -> None:
    """The lowest offset first, with its attempt."""
    bench = ordered(sparse=False)
    bench.publish(*[b"x"] * 4)
    assert bench.hand_out() == [((0, 4),)]
    give_back(bench, 2, 3)
    give_back(bench, 0, 1)
    bench.publish(b"new")
    assert bench.delivery.backlog() == 3
    assert bench.hand_out() == [((0, 1),), ((2, 3),), ((4, 5),)]
    assert [piece.attempt for piece in bench.host.delivered] == [2, 2, 1]


def test_scattered_messages_go_together_to_who_understands_that() -> None:
    """They are sent with their ranges."""
    bench = ordered()
    bench.publish(*[b"x"] * 6)
    bench.hand_out()
    for first in (0, 2, 5):
        give_back(bench, first, first + 1)
    assert bench.hand_out() == [((0, 1), (2, 3), (5, 6))]


def test_what_waits_for_its_back_off_comes_when_that_is_over() -> None:
    """`next_ms` says when the subscription has to run."""
    bench = ordered()
    bench.publish(b"x")
    bench.hand_out()
    give_back(bench, 0, 1, 5.0)
    assert bench.host.wake_times == [bench.host.time.monotonic() + 5.0]
    assert bench.hand_out() == []
    assert bench.delivery.state()["backoff"] == 1
    bench.host.time.now_s += 5
    assert bench.hand_out() == [((0, 1),)]


def test_what_was_acknowledged_meanwhile_does_not_come_again() -> None:
    """Acknowledged by the consumer that held them before."""
    bench = ordered()
    bench.publish(*[b"x"] * 3)
    bench.hand_out()
    give_back(bench, 0, 3)
    acknowledge(bench, (1, 2))
    assert bench.hand_out() == [((0, 1), (2, 3))]


def test_after_a_restart_only_what_is_not_acknowledged_comes() -> None:
    """With the attempts that the journal has."""
    bench = ordered()
    bench.log.publish(*[b"x"] * 6)
    journal = bench.part(CursorLog)
    journal.open(lambda: 0, lambda _journal: None)
    journal.note(0, 1)
    journal.note(3, 4)
    journal.cursor.failed[4] = (2, 1)
    bench.part(LogAccess).source.begin(1)
    bench.host.opened()
    bench.part(LogAccess).source.advance(6)
    assert bench.hand_out() == [((1, 3),), ((4, 5),), ((5, 6),)]
    assert [(piece.attempt, piece.failures) for piece in bench.host.delivered] == [(1, 0), (3, 1), (1, 0)]


def restarted(
    bench: Delivering, *sizes: int, waits_s: dict[int, float], deliver_at: tuple[int, ...] = ()
) -> None:
    """Open the subscription anew on a log with batches of these sizes; some messages failed and wait."""
    for size in sizes:
        bench.log.publish(*[b"x"] * size, deliver_at=deliver_at)
    journal = bench.part(CursorLog)
    journal.open(lambda: 0, lambda _journal: None)
    for offset, wait_s in waits_s.items():
        journal.cursor.failed[offset] = (1, 1)
        journal.cursor.waits[offset] = (bench.host.time.time_ms() + round(wait_s * 1000), 100_000)
    bench.part(LogAccess).source.begin(0)
    bench.host.opened()
    bench.part(LogAccess).source.advance(sum(sizes))


@pytest.mark.parametrize("sparse", [True, False])
def test_after_a_restart_what_has_waited_does_not_overtake_older_messages(sparse: bool) -> None:
    """A consumer that is slow gets them in order: a back-off that ends meanwhile puts nothing in front."""
    bench = Delivering(InOrder, "exclusive")
    restarted(bench, 3, 3, 3, waits_s={3: 5.0, 4: 1.0, 7: 2.0})
    bench.host.attach(sparse=sparse)
    bench.host.consumers.roster.set_credit(1, 1, 1 << 20)
    assert bench.hand_out() == [((0, 1),)]
    bench.host.time.now_s += 3
    bench.host.consumers.roster.set_credit(1, 20, 1 << 20)
    assert bench.hand_out() == [((1, 3),), ((4, 5),), ((5, 6),), ((6, 7),), ((7, 8),), ((8, 9),)]
    assert [piece.attempt for piece in bench.host.delivered] == [1, 2, 1, 1, 2, 1]
    assert bench.host.wake_times[-1] == bench.host.time.monotonic() + 2.0
    bench.host.time.now_s += 2
    assert bench.hand_out() == [((3, 4),)]
    assert bench.hand_out() == []


def test_after_a_restart_what_has_a_delivery_time_too_waits_for_its_back_off() -> None:
    """Its delivery time has passed; it is delivered once."""
    bench = ordered()
    restarted(bench, 3, waits_s={1: 5.0}, deliver_at=(0, bench.host.time.time_ms() - 1, 0))
    assert bench.hand_out() == [((0, 1), (2, 3))]
    bench.host.time.now_s += 4.9
    assert bench.hand_out() == []
    bench.host.time.now_s += 0.2
    assert bench.hand_out() == [((1, 2),)]
    assert bench.host.delivered[0].attempt == 2
    bench.host.time.now_s += 10
    assert bench.hand_out() == []


def test_after_a_restart_what_has_waited_does_not_pass_damage() -> None:
    """Nothing behind the place where reading waits is delivered until an operator decides."""
    bench = ordered()
    restarted(bench, 1, 1, 1, waits_s={2: 1.0})
    error = DamagedError("torn")
    error.first, error.end = 1, 2
    bench.log.errors[1] = error
    bench.host.time.now_s += 2
    assert bench.hand_out() == [((0, 1),)]
    assert bench.part(LogAccess).description()["stalled"]
    assert bench.hand_out() == []


def test_nothing_is_delivered_while_it_is_moved_or_somebody_must_decide() -> None:
    """Although a consumer has credit."""
    bench = ordered()
    bench.host.meta.settings.update({"poison": "block", "max_deliveries": 1})
    bench.part(Failures).settings_updated()
    bench.publish(b"0", b"1")
    bench.part(Moving).on_seek(Seek("1", ASKER, 1))
    assert bench.hand_out() == []
    bench.host.consumers.release(1)
    assert bench.hand_out() == [((1, 2),)]
    bench.part(Acknowledgments).on_returned(Returned(1, (Held(1, 2, 1),), None, "no", True))
    bench.publish(b"2")
    assert bench.hand_out() == []
    acknowledge(bench, (1, 2))
    assert bench.hand_out() == [((2, 3),)]


def test_beyond_the_bound_nothing_new_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until something is acknowledged."""
    bench = ordered()
    bench.publish(*[b"x"] * 6)
    bench.hand_out()
    acknowledge(bench, (1, 2), (3, 4))
    monkeypatch.setattr(log_parts, "PIECES_BYTES_MAX", log_parts.HOLE_BYTES)
    bench.publish(b"new")
    assert bench.hand_out() == []
    assert bench.delivery.state()["tracked_full"] is True
    wakes = bench.host.wakes
    acknowledge(bench, (0, 1), (2, 3))
    assert bench.host.wakes > wakes
    assert bench.hand_out() == [((6, 7),)]


def test_what_cannot_be_read_now_waits() -> None:
    """And no returned message is lost."""
    bench = ordered()
    bench.publish(b"x")
    bench.hand_out()
    give_back(bench, 0, 1)
    bench.part(LogAccess).source.reopen()
    bench.log.errors[0] = NotHereError(0, 1)
    assert bench.hand_out() == []
    bench.log.errors.clear()
    bench.part(LogAccess).on_fetched(Fetched(0, 0))
    assert bench.hand_out() == [((0, 1),)]


def reading(start: str | int = "earliest", **given: Any) -> Delivering:
    """Return a reader's delivery, with its consumer."""
    bench = Delivering(Reading, READER, start=start, **given)
    bench.host.attach()
    return bench


def test_a_reader_is_given_everything_and_holds_nothing() -> None:
    """What was sent is done; a reader has no stored cursor."""
    bench = reading()
    bench.host.topic.settings["retention_acknowledged"] = 1
    bench.publish(*[b"x"] * 4, deliver_at=[0, 0, 1 << 60, 0])
    assert bench.hand_out() == [((0, 4),)]
    assert bench.host.consumers.roster.outstanding == 0
    assert bench.part(CursorLog).cursor.low == 4
    bench.host.loop.advance(120)
    bench.delivery.parts[0].stop()
    assert bench.uploader.heard == []
    assert [type(message).__name__ for message in bench.topic.heard].count("Consumed") == 0


def test_a_reader_goes_on_where_it_says() -> None:
    """Messages lost with its connection are sent again; what retention deleted of them is reported."""
    bench = reading()
    bench.publish(*[b"x"] * 4)
    bench.hand_out()
    bench.delivery.on_read_from(ReadFrom("2"))  # type: ignore[attr-defined]
    assert bench.hand_out() == [((2, 4),)]
    bench.part(LogAccess).source.trim(3)
    bench.delivery.on_read_from(ReadFrom("1"))  # type: ignore[attr-defined]
    assert [(notice.code, notice.count) for notice in bench.host.notices] == [("trimmed", 2)]
    assert bench.hand_out() == [((3, 4),)]


def test_a_reader_waits_at_what_the_log_has_and_the_store_lost() -> None:
    """They were delivered once; another subscription cannot begin there."""
    bench = reading(start=6)
    bench.log.publish(*[b"x"] * 4)
    bench.part(Attaching).on_attached(Attached(0, 4, log_end=8))
    assert (bench.host.failure, bench.delivery.position()) == (None, 6)
    other = ordered(start=6)
    other.part(Attaching).on_attached(Attached(0, 4, log_end=8))
    assert other.host.failure is not None


def test_a_reader_ends_with_its_consumer_and_with_its_topic() -> None:
    """No catalogue lists it, so these end it."""
    bench = reading()
    bench.publish(b"x")
    bench.delivery.topic_failed(TopicFailed("log-failed", "for now"))
    assert bench.host.evicted == []
    bench.delivery.topic_failed(TopicFailed("unknown-topic", "gone"))
    assert bench.host.evicted == ["topic-deleted"]
    bench.delivery.abandoned()
    assert bench.host.ended


def test_where_nothing_is_readers_and_others_wait_for_an_operator() -> None:
    """Both use the same delivery, and the same things stop it."""
    for bench in (ordered(), reading()):
        bench.publish(b"x")
        error = DamagedError("torn")
        error.first, error.end = 0, 1
        bench.log.errors[0] = error
        assert bench.hand_out() == []
        assert bench.part(LogAccess).description()["stalled"]
