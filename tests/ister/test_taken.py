"""Tests of what a consumer reports about its program's taking of messages, and of its credit, without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ister import wire
from ister.attachment import Attachment
from ister.errors import ConnectionLostError
from ister.handing import CREDIT_MESSAGES_MAX
from ister.pace import START_ALONE, START_SHARED
from ister.wire import Key, Type

if TYPE_CHECKING:
    from tests.ister.conftest import Talk


def telling(talk: Talk, **given: object) -> Attachment:
    """Return an open consumer whose broker asks for reports of what is taken."""
    talk.welcome()
    attachment = talk.consumer(**given)
    talk.opened(TAKEN=0)
    return attachment


def offsets(attachment: Attachment, now: float) -> list[int]:
    """Take the messages that can be handed out at once."""
    attachment.handing.asked(now)
    return [message.offset for message in attachment.handing.hand_out() or ()]


def words(talk: Talk) -> list[int]:
    """Return the reports sent since the last call."""
    return [header[Key.TAKEN] for header in talk.said() if Key.TAKEN in header]


def recall(talk: Talk, count: int) -> None:
    """Recall the messages that wait in the client, because others got them."""
    event: wire.Header = {Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "recalled", Key.COUNT: count}
    talk.hear(event | {Key.TEXT: "stuck"})


@pytest.mark.requirement("9.6-2")
def test_a_slow_program_has_one_message_in_hand_and_the_broker_knows_before(talk: Talk) -> None:
    """The report is sent before the message is handed out."""
    attachment = telling(talk)
    talk.deliver(0, *[b"x"] * 10)
    for number in range(10):
        assert offsets(attachment, talk.now) == [number]
        assert words(talk) == [number + 1]
        talk.now += 0.1


@pytest.mark.requirement("9.6-2")
def test_acknowledgments_go_before_the_word_of_what_is_taken(talk: Talk) -> None:
    """Otherwise messages that a dying program was done with would count as in hand."""
    attachment = telling(talk)
    talk.deliver(0, b"a", b"b")
    offsets(attachment, talk.now)
    assert attachment.handing._in_hand is not None
    attachment.acks.add(attachment.handing._in_hand, 0, 1, talk.now)
    talk.said()
    offsets(attachment, talk.now + 0.1)
    acknowledged, word = talk.said()
    assert (acknowledged[Key.TYPE], acknowledged[Key.RANGES]) == (Type.ACK, [0, 1])
    assert (word[Key.TYPE], word[Key.TAKEN]) == (Type.CREDIT, 2)


def test_a_fast_program_costs_few_words(talk: Talk) -> None:
    """A report covers what it takes in some milliseconds, also messages that have not come yet."""
    attachment = telling(talk, credit_messages=100_000, credit_bytes=1 << 30)
    taken = told = 0
    for number in range(400):
        talk.deliver(number * 100, *[b"x"] * 100)
        while found := offsets(attachment, talk.now):
            taken += len(found)
            talk.now += 1e-6 * len(found)
        told += len(words(talk))
    assert taken == 40_000
    assert told < 500


def test_a_batch_is_told_of_as_a_whole(talk: Talk) -> None:
    """The program has all of it in hand."""
    attachment = telling(talk)
    talk.deliver(0, *[b"x"] * 10)
    attachment.handing.asked(talk.now)
    assert attachment.handing.grab(7) is not None
    assert words(talk) == [7]


@pytest.mark.requirement("9.6-5")
def test_what_may_fail_no_more_is_handed_out_one_by_one_once_the_broker_has_answered(talk: Talk) -> None:
    """With whichever method it is taken."""
    attachment = telling(talk)
    talk.deliver(0, b"plain")
    talk.deliver(1, b"a", b"b", singly=True)
    assert offsets(attachment, talk.now) == [0]
    talk.said()
    for number in (1, 2):
        attachment.handing.asked(talk.now)
        assert attachment.handing.grab(10) is None
        [word] = [header for header in talk.said() if Key.TAKEN in header]
        assert word[Key.TAKEN] == number + 1
        assert not attachment.handing.has_some
        assert attachment.handing.grab(10) is None
        assert talk.said() == []
        talk.hear({Key.TYPE: Type.DONE, Key.REF: word[Key.REF]})
        assert attachment.handing.has_some
        batch = attachment.handing.grab(10)
        assert batch is not None
        assert list(batch.offsets) == [number]
        assert words(talk) == []


@pytest.mark.requirement("9.6-9")
def test_what_follows_such_a_message_waits_until_the_broker_has_heard_of_it(talk: Talk) -> None:
    """Its acknowledgment is sent before the next question; after that everything is as usual."""
    attachment = telling(talk)
    talk.deliver(0, b"a", singly=True)
    talk.deliver(1, b"b", b"c")
    assert offsets(attachment, talk.now) == []
    [word] = [header for header in talk.said() if Key.TAKEN in header]
    talk.hear({Key.TYPE: Type.DONE, Key.REF: word[Key.REF]})
    assert offsets(attachment, talk.now) == [0]
    assert attachment.handing._in_hand is not None
    attachment.acks.add(attachment.handing._in_hand, 0, 1, talk.now)
    talk.said()
    assert offsets(attachment, talk.now) == []
    acknowledged, word = talk.said()
    assert (acknowledged[Key.TYPE], acknowledged[Key.RANGES]) == (Type.ACK, [0, 1])
    assert (word[Key.TYPE], word[Key.TAKEN], Key.REF in word) == (Type.CREDIT, 2, True)
    assert not attachment.handing.has_some
    talk.hear({Key.TYPE: Type.DONE, Key.REF: word[Key.REF]})
    assert offsets(attachment, talk.now) == [1]
    talk.said()
    assert offsets(attachment, talk.now + 0.1) == [2]
    assert not any(Key.REF in header for header in talk.said())


def test_a_leave_that_comes_after_the_connection_was_lost_lets_nothing_out(talk: Talk) -> None:
    """The question is asked again in the next session."""
    attachment = telling(talk)
    talk.deliver(0, b"a", singly=True)
    assert offsets(attachment, talk.now) == []
    talk.said()
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened(TAKEN=0)
    talk.deliver(0, b"a", attempt=2, singly=True)
    assert offsets(attachment, talk.now) == []
    assert words(talk) == [1]


@pytest.mark.requirement("9.6-6")
def test_what_is_recalled_is_dropped_and_its_credit_given_back_when_the_program_comes_again(
    talk: Talk,
) -> None:
    """A program that has stopped taking gets nothing until it asks again."""
    attachment = telling(talk)
    talk.deliver(0, *[b"x"] * 5)
    talk.deliver(5, *[b"x"] * 5)
    assert offsets(attachment, talk.now) == [0]
    talk.said()
    recall(talk, 9)
    assert attachment.handing.grab(None) is None
    assert talk.said() == []
    assert attachment.handing.has_some  # a call that waits for a message must grant credit
    talk.now += 1.0
    attachment.handing.asked(talk.now)
    assert not attachment.handing.has_some
    [credit] = talk.said()
    assert credit[Key.MESSAGES] == 100
    talk.deliver(10, b"x")
    assert offsets(attachment, talk.now) == [10]
    assert words(talk) == [11]


@pytest.mark.requirement("9.6-1", "15-3")
def test_an_older_broker_is_told_nothing(talk: Talk) -> None:
    """And everything is handed out as it comes."""
    talk.welcome()
    attachment = talk.consumer()
    talk.opened()
    talk.deliver(0, *[b"x"] * 10)
    assert offsets(attachment, talk.now) == list(range(10))
    assert words(talk) == []


@pytest.mark.requirement("9.4-5")
@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("shared", START_SHARED),
        ("key-shared", START_SHARED),
        ("exclusive", START_ALONE),
        ("failover", START_ALONE),
        ("reader", START_ALONE),
    ],
)
def test_credit_begins_small_and_grows_with_the_program(talk: Talk, kind: str, start: int) -> None:
    """It is lowest where other consumers are attached."""
    talk.welcome()
    attachment = talk.consumer(kind=kind, credit_messages=None, credit_bytes=1 << 30)
    [asked] = talk.said()
    assert asked[Key.MESSAGES] == start
    talk.hear(
        {
            Key.TYPE: Type.OPENED,
            Key.REF: asked[Key.REF],
            Key.HANDLE: 2,
            Key.OFFSET: 0,
            Key.STRATEGY: "reliable",
        }
    )
    credit, offset = start, 0
    for _ in range(3000):
        if credit:
            count = min(credit, 500)
            talk.deliver(offset, *[b"x"] * count)
            offset, credit = offset + count, credit - count
        offsets(attachment, talk.now)
        talk.now += 1e-5
        credit += sum(header[Key.MESSAGES] for header in talk.said() if header[Key.TYPE] == Type.CREDIT)
    assert credit == pytest.approx(CREDIT_MESSAGES_MAX, rel=0.1)


@pytest.mark.parametrize(
    ("sharing", "most", "work_s", "expected"),
    [
        (1, 65_536, 0.02, 25),
        (5, 13_107, 0.02, 5),
        (60, 1000, 0.02, 1),
        (5, 3, 0.02, 3),
        (5, 1000, 1e-6, 1000),
    ],
)
def test_topics_that_a_program_works_on_in_turn_share_its_pace(
    talk: Talk, sharing: int, most: int, work_s: float, expected: int
) -> None:
    """Each prefetches its part of half a second of work, at least a message, and at most its share of credit."""
    attachment = telling(talk, kind="shared", credit_messages=None, credit_bytes=1 << 30)
    attachment.handing.sharing = sharing
    attachment.handing.resize(most, 1 << 30)
    out, offset, most_out = START_SHARED, 0, 0
    for number in range(4000):
        out += sum(header[Key.MESSAGES] for header in talk.said() if header[Key.TYPE] == Type.CREDIT)
        if out > 0:
            talk.deliver(offset, *[b"x"] * out)
            offset, out = offset + out, 0
        waiting = sum(delivery.count for delivery in attachment.handing.queue)
        most_out = max(most_out, waiting if number > 2000 else 0)
        talk.now += work_s * len(offsets(attachment, talk.now))
    assert most_out == pytest.approx(expected, rel=0.2, abs=1)


def test_credit_that_is_given_is_kept_to(talk: Talk) -> None:
    """The program's pace does not change it."""
    talk.welcome()
    attachment = talk.consumer(credit_messages=7)
    talk.opened()
    out, offset = 7, 0
    for _ in range(200):
        if out:
            talk.deliver(offset, b"x")
            offset, out = offset + 1, out - 1
        offsets(attachment, talk.now)
        talk.now += 1e-5
        out += sum(header[Key.MESSAGES] for header in talk.said() if header[Key.TYPE] == Type.CREDIT)
        assert out <= 7
