"""Tests of failed messages: how long they wait, and what happens to them after too many failures."""

from __future__ import annotations

from typing import Any

import pytest

from ister.actors.ledger import Held
from ister.actors.messages import Buried, Bury, StopBurying, Unblock, Unburied
from ister.actors.subscription import failures as module
from ister.actors.subscription.failures import Failures
from ister.settings import SubscriptionSettings
from ister.storage.wholereader import NotHereError
from tests.actors.hosts import ASKER, Bench, Told


class Failing(Bench):
    """A bench with failures and ten messages."""

    def __init__(self, type_: str = "shared", **options: Any) -> None:
        super().__init__(type_)
        self.host.meta.settings.update({"backoff_ms_min": 1000, "backoff_ms_max": 8000} | options)
        self.undertaker = Told("deadletters")
        self.failures = Failures(
            self.host,
            self.queue,
            self.journal,
            self.access,
            undertaker=lambda: self.undertaker,
            defaults=SubscriptionSettings(),
        )
        self.host.parts.append(self.failures)
        self.log.publish(*[b"%d" % number for number in range(10)])
        self.begin()

    def fail(self, first: int, end: int, failures: int = 0) -> None:
        """Report messages as failed once more."""
        self.failures.take_back([Held(first, end, failures + 1, failures)], None, "no flour", failed=True)

    def letters(self) -> list[int]:
        """Return the offsets of the letters sent since the last call."""
        return [letter.offset for bury in self.undertaker.take(Bury) for letter in bury.letters]


def test_what_failed_waits_twice_as_long_each_time() -> None:
    """Within the limits of the policy; a message that came back without having failed waits for nothing."""
    bench = Failing(max_deliveries=0)
    for failures in range(5):
        bench.fail(0, 1, failures)
    bench.failures.take_back([Held(1, 2, 1, 3)], 0.0, "closed", failed=False)
    assert [wait_s for _, wait_s in bench.queue.back] == [1, 2, 4, 8, 8, 0]
    assert bench.queue.back[4][0] == Held(0, 1, 6, 5)
    assert bench.queue.back[5][0] == Held(1, 2, 2, 3)


def test_who_asks_for_a_delay_gets_that() -> None:
    """The requested delay replaces the back-off."""
    bench = Failing()
    bench.failures.take_back([Held(0, 1, 1)], 30.0, "later", failed=True)
    assert bench.queue.back == [(Held(0, 1, 2, 1), 30.0)]


def test_what_failed_too_often_becomes_a_letter_and_is_done_once_it_is_durable() -> None:
    """It is done when the letter is durable and not before: a broker that dies meanwhile delivers it again."""
    bench = Failing(max_deliveries=2)
    bench.fail(3, 5, 1)
    assert bench.queue.holds == [(3, 5)]
    (bury,) = bench.undertaker.take(Bury)
    assert [(letter.offset, letter.payload) for letter in bury.letters] == [(3, b"3"), (4, b"4")]
    assert bury.letters[0].attributes["ister.reason"] == "no flour"
    assert bench.journal.cursor.pending(3, 5) == [(3, 5)]
    bench.failures.on_buried(Buried((3,)))
    assert bench.journal.cursor.pending(3, 5) == [(4, 5)]
    assert bench.queue.settles == [(3, 4)]
    assert bench.failures.description()["dead_lettered"] == 1


def test_what_was_acknowledged_late_becomes_no_letter() -> None:
    """The message was processed after all."""
    bench = Failing(max_deliveries=1)
    bench.journal.note(0, 2)
    bench.fail(0, 3)
    assert bench.letters() == [2]


def test_letters_that_nobody_answers_for_are_sent_again() -> None:
    """The actor that was to store them may have failed."""
    bench = Failing(max_deliveries=1)
    bench.fail(0, 2)
    assert bench.letters() == [0, 1]
    bench.host.loop.advance(module.BURY_AGAIN_S)
    assert bench.letters() == [0, 1]
    bench.failures.on_buried(Buried((0, 1)))
    bench.host.loop.advance(3 * module.BURY_AGAIN_S)
    assert bench.letters() == []


def test_a_letter_that_is_not_taken_waits_apart() -> None:
    """Later letters are stored; the refused one is tried again a minute later."""
    bench = Failing(max_deliveries=1)
    bench.fail(0, 2)
    bench.letters()
    bench.failures.on_unburied(Unburied(0, "too large"))
    bench.failures.on_buried(Buried((1,)))
    assert bench.failures.state()["bury_trouble"] == "too large"
    bench.host.loop.advance(module.TAKE_UP_S - 1)
    assert bench.letters() == []
    bench.host.loop.advance(2 * module.BURY_AGAIN_S)
    assert set(bench.letters()) == {0}
    bench.failures.on_buried(Buried((0,)))
    assert bench.failures.state()["bury_trouble"] is None
    assert bench.journal.cursor.low == 2


def test_a_letter_that_cannot_be_read_now_is_sent_once_it_can() -> None:
    """It is in the store only, and requested from there."""
    bench = Failing(max_deliveries=1)
    bench.log.errors[0] = NotHereError(0, 10)
    bench.fail(0, 1)
    assert bench.letters() == []
    assert bench.access.fetches
    bench.log.errors.clear()
    bench.access.forget()
    bench.host.may_read()
    assert bench.letters() == [0]


def test_what_is_dropped_by_policy_is_done_and_counted() -> None:
    """No letter is sent."""
    bench = Failing(max_deliveries=1, poison="drop")
    bench.fail(0, 3)
    assert (bench.journal.cursor.low, bench.letters()) == (3, [])
    assert bench.failures.description()["dropped_poison"] == 3


@pytest.mark.parametrize(
    ("action", "back", "low", "letters"),
    [("retry", [Held(0, 2, 2)], 0, []), ("drop", [], 2, []), ("dead-letter", [], 0, [0, 1])],
)
def test_what_blocks_waits_for_an_operator(
    action: str, back: list[Held], low: int, letters: list[int]
) -> None:
    """An operator decides; the consumers get an event."""
    bench = Failing(max_deliveries=1, poison="block")
    bench.fail(0, 2)
    assert bench.failures.is_blocked()
    assert [notice.code for notice in bench.host.notices] == ["blocked"]
    bench.failures.on_unblock(Unblock(action, ASKER, 1))
    assert bench.host.answers == [{"messages": 2}]
    assert not bench.failures.is_blocked()
    assert [held for held, _ in bench.queue.back] == back
    assert (bench.journal.cursor.low, bench.letters()) == (low, letters)


def test_what_was_acknowledged_late_blocks_no_more() -> None:
    """No decision is needed any more."""
    bench = Failing(max_deliveries=1, poison="block")
    bench.fail(0, 2)
    bench.journal.note(0, 2)
    assert not bench.failures.is_blocked()


def test_another_policy_holds_for_what_fails_from_now_on() -> None:
    """An update of the subscription's settings brings the new policy."""
    bench = Failing(max_deliveries=1)
    bench.fail(0, 1)
    bench.host.meta.settings["max_deliveries"] = 3
    bench.failures.settings_updated()
    bench.fail(1, 2)
    assert bench.letters() == [0]
    assert [held.first for held, _ in bench.queue.back] == [1]


def test_a_subscription_that_is_deleted_sends_no_letters() -> None:
    """The dead-letter actor is told to end if there are letters; if there are none, no mail is sent."""
    bench = Failing(max_deliveries=1)
    bench.failures.erase()
    assert bench.undertaker.take(StopBurying) == []
    bench.fail(0, 1)
    bench.failures.erase()
    assert len(bench.undertaker.take(StopBurying)) == 1


def test_after_a_move_nothing_is_poison() -> None:
    """A letter that is stored after the seek marks no message as done."""
    bench = Failing(max_deliveries=1)
    bench.fail(0, 1)
    bench.failures.forget()
    bench.failures.on_buried(Buried((0,)))
    assert bench.journal.cursor.low == 0
    assert bench.failures.description()["burying"] == 0
