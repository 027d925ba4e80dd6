"""Tests of access to a topic's log: where a subscription begins, what it requests, and what it waits for."""

from __future__ import annotations

from typing import Any

import pytest

from ister.actors.asking import AGAIN_S, UNANSWERED_S
from ister.actors.messages import (
    Ask,
    Attach,
    Attached,
    Detach,
    Durable,
    Fetch,
    Fetched,
    FoundDamage,
    NodeStarted,
    NotFetched,
    Repaired,
    TopicFailed,
    Trimmed,
)
from ister.actors.subscription.reading import MemoryJournal
from ister.errors import DamagedError, StorageError
from ister.storage.wholereader import NotHereError
from tests.actors.hosts import Bench


def damage(first: int, end: int) -> DamagedError:
    """Return the errors of damage in these ranges."""
    error = DamagedError(f"offset {first} is damaged")
    error.first, error.end = first, end
    return error


def attached(bench: Bench, start: int | None = 0, **more: Any) -> None:
    """Let the topic answer."""
    bench.attaching.on_attached(Attached(start, bench.log.end, **more))


def bench_of(messages: int = 10, **given: Any) -> Bench:
    """Return a bench with so many messages, one per batch."""
    bench = Bench(**given)
    for number in range(messages):
        bench.log.publish(b"%d" % number)
        bench.host.time.now_s += 1
    return bench


@pytest.mark.parametrize(
    ("start", "position"), [("earliest", 3), ("latest", 10), (7, 7), ("time:1700001005000", 5)]
)
def test_a_new_subscription_begins_where_it_was_to(start: str | int, position: int) -> None:
    """And is served from then on."""
    bench = bench_of(start=start)
    attached(bench, 3)
    assert bench.host.is_ready
    assert (bench.journal.cursor.low, bench.access.source.next) == (position, position)


def test_an_offset_that_the_topic_does_not_have_undoes_the_subscription() -> None:
    """Its name can be used again with another start; a reader, which has no name, only gets the error."""
    bench = bench_of(start=11)
    attached(bench)
    assert bench.host.failure is not None
    assert bench.host.failure.code == "offset-out-of-range"
    assert [ask.operation for ask in bench.directory.take(Ask)] == ["subscription.delete"]


def test_where_the_topic_begins_may_not_be_known_yet() -> None:
    """The store knows; the topic asks it and tells the subscription."""
    bench = bench_of(start="earliest")
    attached(bench, None)
    assert (bench.host.is_ready, bench.host.failure) == (False, None)
    attached(bench, 2)
    assert bench.journal.cursor.low == 2


def test_a_topic_is_asked_again_until_it_answers() -> None:
    """The mail may be lost; after the answer the subscription asks again now and then."""
    bench = bench_of()
    bench.attaching.start()
    bench.host.loop.advance(4)
    assert len(bench.topic.take(Attach)) == 3
    attached(bench)
    bench.host.loop.advance(AGAIN_S - 1)
    assert bench.topic.take(Attach) == []
    bench.host.loop.advance(1)
    assert len(bench.topic.take(Attach)) == 1
    bench.attaching.node_started(NodeStarted("worker-0"))
    assert len(bench.topic.take(Attach)) == 1


def test_a_topic_that_failed_before_it_answered_is_why_nobody_is_served() -> None:
    """The topic is asked again; once it answers, its failure is no longer a reason."""
    bench = bench_of()
    bench.attaching.topic_failed(TopicFailed("log-failed", "its disk is gone"))
    assert bench.host.failure is not None
    attached(bench)
    assert bench.host.failure is None
    bench.attaching.topic_failed(TopicFailed("log-failed", "again"))
    assert bench.host.failure is None


def test_more_that_is_durable_wakes_the_subscription_once() -> None:
    """An offset that is not new does not wake it."""
    bench = bench_of()
    attached(bench)
    wakes = bench.host.wakes
    for end in (11, 11, 9):
        bench.access.on_durable(Durable(end))
    assert bench.host.wakes == wakes + 1


def test_what_is_in_the_store_alone_is_asked_for_and_waited_for() -> None:
    """Nothing is read meanwhile; when it is here, all waiting parts look again."""
    bench = bench_of()
    attached(bench)
    bench.log.errors[0] = NotHereError(0, 5)
    assert bench.access.read(bench.access.source.read_ahead) is None
    assert [fetch.offset for fetch in bench.fetcher.take(Fetch)] == [0]
    assert bench.access.read(bench.access.source.read_ahead) is None
    bench.host.loop.advance(UNANSWERED_S)
    assert [fetch.offset for fetch in bench.fetcher.take(Fetch)] == [0]
    bench.log.errors.clear()
    wakes = bench.host.wakes
    bench.access.on_fetched(Fetched(0, 0))
    assert bench.host.wakes == wakes + 1
    assert bench.access.read(bench.access.source.read_ahead) is not None


def test_the_fetcher_is_asked_soon_again_and_then_more_rarely() -> None:
    """Mail may be lost in both directions; once a download came, the question names the one that did not help."""
    bench = bench_of()
    attached(bench)
    bench.access.fetch(NotHereError(3, 5))
    asked_at = []
    for second in range(40):
        asked_at += [second for _ in bench.fetcher.take(Fetch)]
        bench.host.loop.advance(1)
    assert asked_at == [0, 1, 3, 7, 15, 25, 35]
    bench.access.on_fetched(Fetched(3, 0, 77))
    bench.access.fetch(NotHereError(3, 5))
    assert [(fetch.offset, fetch.seen) for fetch in bench.fetcher.take(Fetch)] == [(3, 77)]
    bench.host.loop.advance(1)
    assert [fetch.seen for fetch in bench.fetcher.take(Fetch)] == [77]
    bench.access.on_fetched(Fetched(3, 0, 78))
    bench.access.fetch(NotHereError(9, 12))
    assert [(fetch.offset, fetch.seen) for fetch in bench.fetcher.take(Fetch)] == [(9, 0)]


def test_a_store_that_is_away_is_asked_again() -> None:
    """And the last answer is shown."""
    bench = bench_of()
    attached(bench)
    bench.access.fetch(NotHereError(0, 5))
    bench.access.on_not_fetched(NotFetched(0, "no route", True, 0))
    assert len(bench.fetcher.take(Fetch)) == 2
    fetch = bench.access.state()["fetch"]
    assert fetch is not None
    assert fetch["text"] == "no route"


def test_damage_is_waited_at_until_an_operator_decides() -> None:
    """The topic is told, and every consumer, also one that opens later."""
    bench = bench_of()
    attached(bench)
    consumer = bench.host.attach()
    bench.log.errors[0] = damage(0, 2)
    assert bench.access.read(bench.access.source.read_ahead) is None
    assert [(found.first, found.end) for found in bench.topic.take(FoundDamage)] == [(0, 2)]
    assert [notice.code for notice in consumer.heard] == ["log-damaged"]
    late = bench.host.attach(2)
    bench.access.greet(late)
    assert late.heard == consumer.heard
    assert bench.access.description()["stalled"]
    bench.log.errors.clear()
    bench.access.on_repaired(Repaired(1))
    assert bench.access.read(bench.access.source.read_ahead) is not None


def test_before_damage_is_told_the_topic_is_asked_whether_the_store_has_it_by_now() -> None:
    """What is known of the store is some seconds old; an answer that is no better, or none, makes it damage."""
    bench = bench_of()
    attached(bench, stored_end=0)
    consumer = bench.host.attach()
    bench.topic.take(Attach)
    bench.log.errors[0] = damage(0, 2)
    for _ in range(2):
        assert bench.access.read(bench.access.source.read_ahead) is None
        assert (consumer.heard, bench.topic.take(FoundDamage)) == ([], [])
    assert len(bench.topic.take(Attach)) == 1
    attached(bench, stored_end=2)
    bench.log.errors[0] = NotHereError(0, 2)
    assert bench.access.read(bench.access.source.read_ahead) is None
    assert [fetch.offset for fetch in bench.fetcher.take(Fetch)] == [0]
    bench.access.forget()
    bench.log.errors[0] = damage(5, 6)
    assert bench.access.read(bench.access.source.read_ahead) is None
    assert len(bench.topic.take(Attach)) == 1
    bench.access.topic_failed(TopicFailed("log-failed", "its disk is gone"))
    assert bench.access.read(bench.access.source.read_ahead) is None
    assert [notice.code for notice in consumer.heard] == ["log-damaged"]


def test_a_repair_is_heard_of_also_if_its_mail_was_lost() -> None:
    """Each of the topic's answers has the number of repairs; an unchanged number is no news."""
    bench = bench_of()
    attached(bench)
    bench.log.errors[0] = damage(0, 2)
    assert bench.access.read(bench.access.source.read_ahead) is None
    attached(bench, repairs=0)
    assert bench.access.description()["stalled"]
    attached(bench, repairs=1)
    assert not bench.access.description()["stalled"]
    assert bench.access.read(bench.access.source.read_ahead) is None  # not of this
    attached(bench, repairs=1)
    assert bench.access.description()["stalled"]
    attached(bench, repairs=0)  # the topic was started again, and may have been asked before
    assert not bench.access.description()["stalled"]


def test_damage_may_concern_only_who_wanted_to_go_there() -> None:
    """The subscription itself does not wait then."""
    bench = bench_of()
    attached(bench)
    bench.log.errors[0] = damage(0, 2)

    said: list[DamagedError] = []

    def refuses(error: DamagedError) -> bool:
        said.append(error)
        bench.log.errors.clear()
        return True

    bench.access.refuses = refuses
    assert bench.access.read(bench.access.source.read_ahead) is not None
    assert len(said) == 1
    assert bench.access.description()["stalled"] is None


def test_what_retention_took_is_done_counted_and_said() -> None:
    """Only messages that were not acknowledged are counted as lost."""
    bench = bench_of()
    attached(bench)
    bench.journal.note(1, 3)
    bench.access.on_trimmed(Trimmed(4))
    assert bench.journal.cursor.low == 4
    assert bench.queue.settles == [(0, 4)]
    assert [(notice.code, notice.count) for notice in bench.host.notices] == [("trimmed", 2)]
    assert bench.access.source.next == 4
    assert bench.access.description()["trimmed"] == 2


def test_what_retention_took_is_waited_for_no_more() -> None:
    """All parts that waited for it look again."""
    bench = bench_of()
    attached(bench)
    bench.access.fetch(NotHereError(0, 5))
    bench.access.on_trimmed(Trimmed(5))
    assert not bench.access.fetches
    wakes = bench.host.wakes
    bench.host.loop.settle()
    assert bench.host.wakes > wakes


def test_a_subscription_from_the_earliest_on_begins_behind_what_is_nowhere() -> None:
    """The topic's first messages were lost before the subscription existed: that is reported and counted."""
    bench = bench_of(start="earliest")
    attached(bench)
    bench.access.fetch(NotHereError(0, 5))
    bench.access.on_not_fetched(NotFetched(0, "no object", False, 0, 3))
    assert bench.journal.cursor.low == 3
    assert [(notice.code, notice.count) for notice in bench.host.notices] == [("missing", 3)]
    assert bench.host.notices[0].text.startswith("3 messages are lost from offset 0 on")


def test_what_is_nowhere_behind_that_is_damage() -> None:
    """Nothing is skipped without a decision."""
    bench = bench_of(start="earliest")
    attached(bench)
    bench.journal.note(0, 2)
    bench.access.fetch(NotHereError(2, 5))
    bench.access.on_not_fetched(NotFetched(2, "no object", False, 0, 3))
    assert bench.journal.cursor.low == 2
    assert "can be read nowhere" in bench.access.description()["stalled"]


def test_an_error_that_nobody_can_mend_ends_the_service() -> None:
    """Every consumer is closed with the error's code."""
    bench = bench_of()
    attached(bench)
    bench.log.errors[0] = StorageError("no", code="log-damaged", action="stop")
    assert bench.access.read(bench.access.source.read_ahead) is None
    assert bench.host.evicted == ["log-damaged"]


def test_acknowledged_messages_that_the_log_has_lost_are_given_out_again() -> None:
    """Durability `os` does not promise that a log keeps them; with any other it is damage."""
    bench = bench_of(messages=2)
    attached(bench, log_end=2)
    assert bench.host.failure is None
    for durability, low in (("fsync", None), ("os", 2)):
        lost = bench_of(messages=2)
        object.__setattr__(lost.host.topic, "durability", durability)
        lost.journal._open = lambda _start: MemoryJournal(5)
        attached(lost, log_end=2)
        if low is None:
            assert isinstance(lost.host.failure, DamagedError)
        else:
            assert lost.journal.cursor.low == low


def test_a_subscription_that_is_deleted_is_told_nothing_more() -> None:
    """The topic removes it from its list."""
    bench = bench_of()
    bench.attaching.erase()
    assert len(bench.topic.take(Detach)) == 1
