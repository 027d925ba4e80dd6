"""Tests of acknowledgments that were not confirmed when the connection was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ister.acknowledgments import ACK_DELAY_S, UNPROVEN_ASK, UNPROVEN_MAX
from ister.attachment import Attachment
from ister.errors import ConnectionLostError
from ister.wire import Key, Type

if TYPE_CHECKING:
    from tests.ister.conftest import Talk


def given(talk: Talk, count: int) -> Attachment:
    """Return a consumer with delivered messages."""
    talk.welcome()
    attachment = talk.consumer(credit_messages=100_000, credit_bytes=1_000_000)
    talk.opened()
    talk.deliver(0, *[b"x"] * count)
    return attachment


def acknowledge(talk: Talk, attachment: Attachment, delivery: object, *offsets: int) -> None:
    """Acknowledge, and send that without asking for a confirmation."""
    for offset in offsets:
        attachment.acks.add(delivery, offset, offset + 1, talk.now)  # type: ignore[arg-type]
    talk.now += 2 * ACK_DELAY_S
    attachment.tick(talk.now)


def test_the_acknowledgments_of_a_delivery_travel_in_one_frame(talk: Talk) -> None:
    """What was gathered before goes first where both do not fit a frame: the broker settles whole deliveries."""
    attachment = given(talk, 1000)
    (delivery,) = attachment.handing.queue
    talk.said()
    first = [(offset, offset + 1) for offset in range(0, 500, 2)]
    second = [(offset, offset + 1) for offset in range(500, 1100, 2)]
    attachment.acks.add_runs(delivery, first[:200], talk.now)
    attachment.acks.add_runs(delivery, second, talk.now)
    sent = [header[Key.RANGES] for header in talk.said() if header[Key.TYPE] == Type.ACK]
    assert sent == [[number for part in runs for number in part] for runs in (first[:200], second)]


def break_and_resume(talk: Talk) -> list[int]:
    """Lose the connection, resume the session, and return the offsets acknowledged again."""
    talk.said()
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened()
    ranges = [header[Key.RANGES] for header in talk.said() if header[Key.TYPE] == Type.ACK]
    return [
        offset for flat in ranges for at in range(0, len(flat), 2) for offset in range(*flat[at : at + 2])
    ]


def test_every_acknowledgment_that_may_be_lost_is_sent_again(talk: Talk) -> None:
    """Not only the last one: the broker may have got none, and `flush` is to confirm all of them."""
    attachment = given(talk, 10)
    delivery = attachment.handing.take()
    acknowledge(talk, attachment, delivery, 0, 1)
    acknowledge(talk, attachment, delivery, 4)
    acknowledge(talk, attachment, delivery, 7)
    assert break_and_resume(talk) == [0, 1, 4, 7]


def test_a_confirmation_on_its_way_covers_all_that_went_before(talk: Talk) -> None:
    """The confirmation is lost with the connection, and the acknowledgments may be lost too."""
    attachment = given(talk, 10)
    delivery = attachment.handing.take()
    acknowledge(talk, attachment, delivery, 0, 1)
    acknowledge(talk, attachment, delivery, 4)
    attachment.acks.flush(confirm=True)
    assert break_and_resume(talk) == [0, 1, 4]


def test_what_was_confirmed_is_not_sent_again(talk: Talk) -> None:
    """The broker has them in its journal."""
    attachment = given(talk, 10)
    acknowledge(talk, attachment, attachment.handing.take(), 0, 1, 4)
    talk.said()
    attachment.acks.flush(confirm=True)
    [asked] = talk.said()
    talk.hear({Key.TYPE: Type.DONE, Key.REF: asked[Key.REF]})
    assert attachment.acks.settled
    assert break_and_resume(talk) == []
    assert not attachment.acks.forgotten


def test_an_acknowledgment_until_that_may_be_lost_is_said_to_whoever_flushes(talk: Talk) -> None:
    """Only the broker knows which messages it covered: they come again."""
    attachment = given(talk, 10)
    delivery = attachment.handing.take()
    assert delivery is not None
    attachment.acks.add_until(delivery, 5, talk.now)
    acknowledge(talk, attachment, delivery)
    break_and_resume(talk)
    assert attachment.acks.forgotten


def test_what_is_kept_is_bounded(talk: Talk) -> None:
    """With every second of very many messages unconfirmed, some come again, and `flush` raises."""
    attachment = given(talk, 3 * UNPROVEN_MAX)
    delivery = attachment.handing.take()
    for offset in range(0, 3 * UNPROVEN_MAX, 2):
        acknowledge(talk, attachment, delivery, offset)
        talk.session.outbox.clear()
    assert len(break_and_resume(talk)) <= UNPROVEN_MAX
    assert attachment.acks.forgotten


def test_a_broker_that_says_what_is_written_keeps_it_short(talk: Talk) -> None:
    """With every second of very many messages, as in a shared subscription, none comes again."""
    attachment = given(talk, 3 * UNPROVEN_MAX)
    delivery = attachment.handing.take()
    talk.said()
    asked = 0
    for offset in range(0, 3 * UNPROVEN_MAX, 2):
        acknowledge(talk, attachment, delivery, offset)
        for header in talk.said():
            if Key.REF in header:
                asked += 1
                talk.hear({Key.TYPE: Type.DONE, Key.REF: header[Key.REF]})
    assert 0 < asked <= 3 * UNPROVEN_MAX // 2 // UNPROVEN_ASK
    assert len(break_and_resume(talk)) <= UNPROVEN_ASK
    assert not attachment.acks.forgotten
