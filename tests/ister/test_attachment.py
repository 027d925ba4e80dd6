"""Tests of the frames a consumer exchanges with a worker, without a socket."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import bodies, wire
from ister.acknowledgments import ACK_DELAY_S, NO_RUN, joined, runs_of
from ister.attachment import TRANSITIONS, Attachment
from ister.errors import ConnectionLostError, RemoteError
from ister.message import Batch, Delivery, Event
from ister.wire import Key, Type

if TYPE_CHECKING:
    from tests.ister.conftest import Talk


def opened(talk: Talk, **given: object) -> Attachment:
    """Return an open consumer whose session has nothing left to send."""
    talk.welcome()
    attachment = talk.consumer(**given)
    talk.opened()
    return attachment


def taken(attachment: Attachment) -> Delivery:
    """Return the next delivery, which must be there."""
    delivery = attachment.handing.take()
    assert delivery is not None
    return delivery


def acked(talk: Talk) -> list[list[int]]:
    """Return the ranges acknowledged since the last look."""
    return [header[Key.RANGES] for header in talk.said() if header[Key.TYPE] == Type.ACK]


def test_opening_says_everything_there_is_to_say(talk: Talk) -> None:
    """Credit, start, priority and arguments are in the OPEN frame."""
    talk.welcome()
    talk.consumer(kind="failover", priority=3, arguments={"ack_timeout_ms": 5})
    [opening] = talk.said()
    assert opening[Key.SUBSCRIPTION_TYPE] == "failover"
    assert opening[Key.START] == "earliest"
    assert opening[Key.PRIORITY] == 3
    assert opening[Key.ARGUMENTS] == {"ack_timeout_ms": 5}
    assert (opening[Key.MESSAGES], opening[Key.BYTES]) == (100, 10_000)


def test_a_delivery_is_cut_into_messages(talk: Talk) -> None:
    """Offsets are consecutive, payloads are the bytes that were sent."""
    attachment = opened(talk)
    talk.deliver(40, b"a", b"", b"ccc")
    messages = list(taken(attachment).messages())
    assert [(message.offset, message.payload) for message in messages] == [
        (40, b"a"),
        (41, b""),
        (42, b"ccc"),
    ]
    assert messages[0].topic == "orders"


@pytest.mark.requirement("9.4-4")
def test_credit_goes_back_once_half_of_it_is_used(talk: Talk) -> None:
    """Not one frame per message; and never more than was used."""
    attachment = opened(talk, credit_messages=10)
    talk.deliver(0, *[b"x"] * 4)
    talk.deliver(4, *[b"x"] * 3)
    taken(attachment)
    assert talk.said() == []
    taken(attachment)
    [credit] = talk.said()
    assert (credit[Key.TYPE], credit[Key.MESSAGES], credit[Key.BYTES]) == (Type.CREDIT, 7, 7 * 5)


@pytest.mark.requirement("9.4-4")
def test_a_large_credit_goes_back_in_smaller_parts(talk: Talk) -> None:
    """On a non-reliable topic only credit shows that the consumer reads: it is returned when a sixteenth is used."""
    attachment = opened(talk, credit_messages=16_000)
    talk.deliver(0, *[b"x"] * 999)
    talk.deliver(999, b"x")
    taken(attachment)
    assert talk.said() == []
    taken(attachment)
    [credit] = talk.said()
    assert credit[Key.MESSAGES] == 1_000


def test_credit_and_what_was_taken_are_said_in_one_frame(talk: Talk) -> None:
    """A frame costs the worker more than its content: whichever of both is due takes the other along."""
    talk.welcome()
    handing = talk.consumer(credit_messages=16_000, credit_bytes=1 << 30).handing
    talk.opened(TAKEN=0)
    said = []
    for number in range(40):
        talk.deliver(600 * number, *[b"x"] * 600)
        handing.asked(0.0)  # so fast a program may have thousands of messages at a time
        while (messages := handing.hand_out()) is not None:
            assert list(messages)
            handing.asked(0.0)
        said += [(header.get(Key.TAKEN), header[Key.MESSAGES]) for header in talk.said()]
    later = [(taken, given) for taken, given in said if taken is None or taken > 12_000]
    assert later, said
    assert all(taken is not None and given >= 500 for taken, given in later), said


def test_half_of_a_due_credit_goes_with_the_word_of_what_was_taken(talk: Talk) -> None:
    """A smaller one waits: it would come in many small pieces."""
    talk.welcome()
    attachment = talk.consumer(credit_messages=16_000, credit_bytes=1 << 30)
    talk.opened(TAKEN=0)
    said = []
    for first, count in ((0, 600), (600, 300)):
        talk.deliver(first, *[b"x"] * count)
        taken(attachment)
        said += [(header[Key.TAKEN], header[Key.MESSAGES]) for header in talk.said()]
    assert said == [(600, 600), (900, 0)]


@pytest.mark.requirement("9.1-3")
def test_credit_starts_anew_after_opening_again(talk: Talk) -> None:
    """Messages handed out before belong to the credit of the earlier open, and return none now."""
    attachment = opened(talk, credit_messages=10)
    talk.deliver(0, *[b"x"] * 4)
    taken(attachment)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened()
    talk.deliver(0, *[b"x"] * 4)
    taken(attachment)
    assert talk.said() == []


def test_large_messages_use_the_credit_in_bytes(talk: Talk) -> None:
    """A consumer of large messages is limited by bytes."""
    attachment = opened(talk, credit_bytes=1000)
    talk.deliver(0, b"x" * 600)
    taken(attachment)
    [credit] = talk.said()
    assert (credit[Key.MESSAGES], credit[Key.BYTES]) == (1, 604)


def test_acknowledgments_gather_into_ranges(talk: Talk) -> None:
    """A million messages cost few numbers, in whatever order they are acknowledged."""
    attachment = opened(talk)
    talk.deliver(0, *[b"x"] * 10)
    delivery = taken(attachment)
    for offset in (0, 1, 2, 7, 5, 6, 9):
        attachment.acks.add(delivery, offset, offset + 1, talk.now)
    assert acked(talk) == []
    talk.later(ACK_DELAY_S)
    assert acked(talk) == [[0, 3, 5, 8, 9, 10]]


def test_the_fast_path_only_puts_down_the_offset(talk: Talk) -> None:
    """The state machine sees acknowledgments that `Consumer.ack` put down without the lock, in any order."""
    attachment = opened(talk)
    talk.deliver(0, *[b"x"] * 10)
    delivery = taken(attachment)
    attachment.acks.add(delivery, 0, 1, talk.now)
    assert attachment.acks.run.delivery is delivery
    attachment.acks.run.offsets += [1, 2, 4, 3, 5, 8]
    talk.later(ACK_DELAY_S)
    assert acked(talk) == [[0, 6, 8, 9]]
    assert attachment.acks.run is NO_RUN  # the next one sets the timer again


@pytest.mark.requirement("9.5-11")
def test_many_ranges_are_sent_in_frames_that_fit(talk: Talk) -> None:
    """A header stays under its limit, however scattered the acknowledgments are."""
    attachment = opened(talk, credit_messages=5000)
    talk.deliver(0, *[b""] * 2000)
    delivery = taken(attachment)
    for offset in range(0, 2000, 2):
        attachment.acks.add(delivery, offset, offset + 1, talk.now)
    attachment.acks.flush()
    ranges = acked(talk)
    assert all(len(each) <= 2 * wire.RANGES_MAX for each in ranges)
    assert sum(len(each) // 2 for each in ranges) == 1000


def test_flush_is_confirmed(talk: Talk) -> None:
    """It returns when the broker confirms that everything is written."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    attachment.acks.add(taken(attachment), 0, 2, talk.now)
    assert not attachment.acks.settled
    attachment.acks.flush(confirm=True)
    [ack] = talk.said()
    assert not attachment.acks.settled
    talk.hear({Key.TYPE: Type.DONE, Key.REF: ack[Key.REF]})
    assert attachment.acks.settled


def test_flush_confirms_what_was_sent_before(talk: Talk) -> None:
    """Acknowledgments already sent by the timer are confirmed too."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    talk.later(ACK_DELAY_S)
    talk.said()
    assert not attachment.acks.settled
    attachment.acks.flush(confirm=True)
    [ack] = talk.said()
    assert (ack[Key.RANGES], Key.REF in ack) == ([0, 1], True)


def test_ack_until_keeps_only_the_highest(talk: Talk) -> None:
    """Only the highest offset is sent."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c")
    delivery = taken(attachment)
    for offset in (1, 2, 0):
        attachment.acks.add_until(delivery, offset, talk.now)
    talk.later(ACK_DELAY_S)
    assert [(h[Key.TYPE], h[Key.OFFSET]) for h in talk.said()] == [(Type.ACK_UNTIL, 2)]


@pytest.mark.requirement("7.4-3", "9.1-3")
def test_what_was_not_handed_out_is_dropped_with_the_connection(talk: Talk) -> None:
    """It is delivered again; credit starts from zero."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    talk.session.lost(ConnectionLostError("gone"))
    assert attachment.handing.take() is None
    talk.welcome(resumed=True)
    [opening] = talk.said()
    assert (opening[Key.HANDLE], opening[Key.MESSAGES]) == (2, 100)


@pytest.mark.requirement("7.4-6")
def test_acknowledgments_survive_a_resumed_session(talk: Talk) -> None:
    """They are sent after the open; messages delivered before may still be acknowledged."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c")
    delivery = taken(attachment)
    attachment.acks.add(delivery, 0, 2, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened()
    assert acked(talk) == [[0, 2]]
    attachment.acks.add(delivery, 2, 3, talk.now)
    attachment.acks.flush()
    assert acked(talk) == [[2, 3]]


@pytest.mark.requirement("9.10-1", "9.10-2")
def test_acknowledgments_say_of_which_moves_the_client_has_heard(talk: Talk) -> None:
    """By the highest number of a seek that it was told; nothing before the first seek, or if the broker counts none."""
    talk.welcome()
    attachment = talk.consumer()
    talk.opened(SOUGHT=0)

    def said() -> int | None:
        """Acknowledge, nack and extend new messages; return the numbers of seeks in these frames."""
        talk.said()
        talk.deliver(0, b"a", b"b", b"c", b"d")
        delivery = taken(attachment)
        attachment.acks.add(delivery, 0, 1, talk.now)
        attachment.acks.add_until(delivery, 1, talk.now)
        attachment.acks.flush()
        attachment.nack(delivery, [(2, 3)], None, "")
        attachment.extend(delivery, [(3, 4)])
        kinds = (Type.ACK, Type.ACK_UNTIL, Type.NACK, Type.EXTEND)
        words = [header for header in talk.said() if header[Key.TYPE] in kinds]
        assert sorted(header[Key.TYPE] for header in words) == sorted(kinds)
        numbers = {header.get(Key.SOUGHT) for header in words}
        assert len(numbers) == 1
        return numbers.pop()

    def moved(number: int | None) -> None:
        event = {Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "sought", Key.OFFSET: 0}
        talk.hear(event if number is None else event | {Key.SOUGHT: number})

    assert said() is None
    moved(2)
    assert said() == 2
    moved(1)  # one that waited, and was overtaken by OPENED
    assert said() == 2
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    again = [
        header for header in talk.said() if header[Key.TYPE] in (Type.ACK, Type.ACK_UNTIL, Type.OPEN_CONSUMER)
    ]
    assert [header[Key.SOUGHT] for header in again] == [2, 0] or [header[Key.SOUGHT] for header in again] == [
        2,
        2,
        0,
    ]
    ref = again[-1][Key.REF]
    talk.hear({Key.TYPE: Type.OPENED, Key.REF: ref, Key.HANDLE: 2, Key.OFFSET: 0, Key.SOUGHT: 3})
    assert said() == 3
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened()
    moved(None)
    assert said() is None


@pytest.mark.requirement("9.3-2")
def test_acknowledgments_of_a_subscription_made_anew_are_not_sent(talk: Talk) -> None:
    """It was deleted while the client was away, and another has its name: its offsets are other messages."""
    talk.welcome()
    attachment = talk.consumer()
    talk.opened(INSTANCE="a.1")
    talk.deliver(0, b"a", b"b", b"c")
    delivery = taken(attachment)
    attachment.acks.add(delivery, 0, 2, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    [early, opening] = [
        header for header in talk.said() if header[Key.TYPE] in (Type.ACK, Type.OPEN_CONSUMER)
    ]
    assert (early[Key.RANGES], opening[Key.INSTANCE]) == ([0, 2], "a.1")
    ref = opening[Key.REF]
    talk.hear({Key.TYPE: Type.OPENED, Key.REF: ref, Key.HANDLE: 2, Key.OFFSET: 0, Key.INSTANCE: "b.2"})
    attachment.acks.add(delivery, 2, 3, talk.now)
    attachment.acks.flush()
    assert acked(talk) == []
    assert attachment.acks.forgotten
    talk.deliver(0, b"A")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    attachment.acks.flush()
    assert acked(talk) == [[0, 1]]


@pytest.mark.requirement("9.3-2")
def test_a_reader_hears_that_its_topic_was_made_anew(talk: Talk) -> None:
    """Its offset is of the old topic: to continue there in the new one would skip messages."""
    talk.welcome()
    attachment = talk.consumer(kind="reader")
    talk.opened(INSTANCE="a")
    talk.deliver(0, b"a", b"b", b"c")
    taken(attachment)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=False)
    talk.opened(INSTANCE="b")
    assert attachment.phase == "closed"
    assert isinstance(attachment.error, RemoteError)
    assert attachment.error.code == "topic-deleted"
    assert [header[Key.TYPE] for header in talk.said()] == [Type.CLOSE]


def test_a_broker_that_says_nothing_of_instances_is_taken_at_its_word(talk: Talk) -> None:
    """With an older broker, which sends no instance, the client goes on."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened()
    assert acked(talk) == [[0, 1]]


@pytest.mark.requirement("7.4-5")
def test_acknowledgments_of_a_forgotten_session_are_not_sent(talk: Talk) -> None:
    """They would make the broker refuse a frame with later ones; `flush` raises for them."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    old = taken(attachment)
    attachment.acks.add(old, 0, 1, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.boot = 2
    talk.welcome(resumed=False)
    talk.opened()
    attachment.acks.add(old, 1, 2, talk.now)
    talk.deliver(0, b"a", b"b", attempt=2)
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    attachment.acks.flush()
    assert acked(talk) == [[0, 1]]
    assert attachment.acks.forgotten


def test_a_session_of_another_worker_does_not_know_what_was_delivered(talk: Talk) -> None:
    """A consumer that moves into a resumed session there drops acknowledgments for the old worker."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.session.secret = b"x" * 16
    talk.session.connect(talk.now)
    attachment.on_ready(resumed=True)
    assert attachment.acks.forgotten


def test_nothing_is_acknowledged_on_a_non_reliable_topic(talk: Talk) -> None:
    """The broker would ignore acknowledgments; and the fast path stays fast."""
    talk.welcome()
    attachment = talk.consumer()
    talk.opened(STRATEGY="non-reliable")
    talk.deliver(0, b"a", b"b")
    delivery = taken(attachment)
    attachment.acks.add(delivery, 0, 1, talk.now)
    assert attachment.acks.run.delivery is delivery
    attachment.acks.run.offsets.append(1)
    attachment.nack(delivery, [(0, 1)], 0, "")
    attachment.acks.add_until(delivery, 1, talk.now)
    attachment.acks.flush(confirm=True)
    assert talk.said() == []
    assert attachment.acks.settled


def test_nack_says_when_and_why(talk: Talk) -> None:
    """Delay in milliseconds, and a reason."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    attachment.nack(taken(attachment), [(0, 2)], 1500, "later")
    [nack] = talk.said()
    assert (nack[Key.TYPE], nack[Key.RANGES]) == (Type.NACK, [0, 2])
    assert (nack[Key.DELAY], nack[Key.REASON]) == (1500, "later")


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 0), ({"backoff_ms_min": 0}, 0), ({"backoff_ms_min": 5000}, None)]
)
def test_zero_goes_before_the_brokers_back_off_and_not_before_one_that_was_asked_for(
    talk: Talk, options: dict[str, int], expected: int | None
) -> None:
    """0 overrides the broker's back-off, but not a back-off that the consumer was opened with."""
    attachment = opened(talk, arguments=options)
    talk.deliver(0, b"a", b"b")
    delivery = taken(attachment)
    attachment.nack(delivery, [(0, 1)], None, "")
    attachment.nack(delivery, [(1, 2)], 0, "")
    assert [said.get(Key.DELAY) for said in talk.said()] == [None, expected]


def test_events_are_kept_and_told(talk: Talk, happened: list[Event]) -> None:
    """The newest state is a property; the shell calls the callbacks."""
    attachment = opened(talk, kind="failover", on_event=happened.append)
    talk.hear({Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "active"})
    talk.hear({Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "dropped", Key.COUNT: 7})
    talk.hear({Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "something-new"})
    assert (attachment.active, attachment.dropped) == (True, 7)
    assert happened == []
    while talk.callbacks:
        talk.callbacks.popleft()()
    assert [event.code for event in happened] == ["active", "dropped", "something-new"]


@pytest.mark.requirement("9.1-4")
def test_a_busy_subscription_is_told_at_once(talk: Talk) -> None:
    """A client of an Exclusive subscription gets the error immediately."""
    talk.welcome()
    attachment = talk.consumer()
    [opening] = talk.said()
    talk.refuse("subscription-busy", "retry", REF=opening[Key.REF], HANDLE=2, CLOSED=True)
    assert attachment.phase == "closed"
    assert isinstance(attachment.error, RemoteError)


@pytest.mark.requirement("9.1-4")
def test_a_busy_subscription_is_waited_for_by_who_said_so(talk: Talk) -> None:
    """It asks again at least every half second until there is room; the timeout's text says what else to do."""
    talk.welcome()
    attachment = talk.consumer(patient=True)
    for _ in range(8):
        [opening] = [said for said in talk.said() if said[Key.TYPE] == Type.OPEN_CONSUMER]
        talk.refuse("subscription-busy", "retry", REF=opening[Key.REF], HANDLE=2, CLOSED=True)
        assert attachment.phase == "waiting"
        assert attachment.trouble is not None
        assert "force=True" in attachment.trouble.text
        talk.later(0.5)
    talk.opened()
    assert attachment.phase == "open"


@pytest.mark.requirement("9.1-4")
def test_a_busy_subscription_is_waited_for_after_a_reconnect(talk: Talk) -> None:
    """The subscription is still held by this consumer's previous session."""
    attachment = opened(talk)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome()
    [opening] = talk.said()
    talk.refuse("subscription-busy", "retry", REF=opening[Key.REF], HANDLE=2, CLOSED=True)
    assert attachment.error is None
    talk.later(0.1)
    talk.opened()
    assert attachment.phase == "open"


def test_a_consumer_closed_by_the_broker_has_its_error(talk: Talk) -> None:
    """The topic is deleted; messages not handed out yet are dropped."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    talk.refuse("topic-deleted", "stop", HANDLE=2, CLOSED=True)
    assert attachment.handing.take() is None
    assert attachment.error is not None
    assert attachment.error.code == "topic-deleted"


def test_a_refused_acknowledgment_is_a_complaint_not_the_end(talk: Talk) -> None:
    """The consumer continues; the program is told once."""
    attachment = opened(talk)
    talk.refuse("ack-unknown", "fix", HANDLE=2)
    assert attachment.phase == "open"
    assert attachment.complaint is not None
    attachment.complaint = None
    talk.refuse("not-active", "retry", HANDLE=2)
    assert attachment.complaint is None
    assert attachment.phase == "open"


def test_a_subscription_that_restarts_is_opened_again(talk: Talk) -> None:
    """What was delivered before may be unknown to the broker now, so the client drops it."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    delivery = taken(attachment)
    talk.refuse("unavailable", "retry", HANDLE=2, CLOSED=True)
    talk.later(0.1)
    talk.opened()
    attachment.acks.add(delivery, 0, 1, talk.now)
    attachment.acks.flush()
    assert acked(talk) == []


@pytest.mark.requirement("7.5-2")
def test_closing_acknowledges_first(talk: Talk) -> None:
    """What the program has acknowledged is not delivered to the next consumer."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    attachment.close()
    said = talk.said()
    assert [header[Key.TYPE] for header in said] == [Type.ACK, Type.CLOSE]
    talk.hear({Key.TYPE: Type.DONE, Key.REF: said[1][Key.REF]})
    assert attachment.phase == "closed"


@pytest.mark.requirement("5.3-5")
def test_a_delivery_that_does_not_add_up_costs_the_connection(talk: Talk) -> None:
    """A delivery with inconsistent lengths closes the connection."""
    opened(talk)
    header = {Key.TYPE: Type.DELIVER, Key.HANDLE: 2, Key.OFFSET: 0, Key.COUNT: 2, Key.TIMESTAMPS: [2, 1]}
    talk.hear(header, bodies.pack_lengths([b"a"]), b"a")
    assert talk.session.idle
    talk.welcome(resumed=True)
    talk.opened()
    talk.hear(header, bodies.pack_lengths([b"a", b"b"]), b"abc")
    assert talk.session.idle


@pytest.mark.requirement("9.9-1")
def test_every_state_can_lose_its_connection_or_end() -> None:
    """No state leaves a consumer hanging."""
    states = {state for state, _ in TRANSITIONS} - {"idle"}
    assert all((state, "lost") in TRANSITIONS for state in states)
    assert all((state, "fail") in TRANSITIONS for state in [*states, "idle"])


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])))
)
def test_joined_ranges_hold_the_same_numbers(ranges: list[tuple[int, int]]) -> None:
    """Joining loses no number, adds none, and leaves ranges that do not touch."""
    before = {number for first, end in ranges for number in range(first, end)}
    whole = joined(list(ranges))
    assert {number for first, end in whole for number in range(first, end)} == before
    if len(ranges) > 1:
        assert all(left[1] < right[0] for left, right in pairwise(whole))


@given(offsets=st.lists(st.integers(0, 60), min_size=1))
def test_the_ranges_of_offsets_hold_just_these(offsets: list[int]) -> None:
    """Whatever their order, and however often each was acknowledged."""
    ranges = runs_of(list(offsets))
    assert [number for first, end in ranges for number in range(first, end)] == sorted(set(offsets))
    assert all(left[1] < right[0] for left, right in pairwise(ranges))


@given(order=st.permutations(range(30)), flushes=st.sets(st.integers(0, 29)))
def test_every_acknowledgment_is_sent_exactly_once(
    new_talk: type[Talk], order: list[int], flushes: set[int]
) -> None:
    """In any order, with any flushes in between: none is lost, and no other message is acknowledged."""
    talk = new_talk()
    attachment = opened(talk)
    talk.deliver(0, *[b"x"] * 40)
    delivery = taken(attachment)
    for place, offset in enumerate(order):
        run = attachment.acks.run
        if delivery is run.delivery:
            run.offsets.append(offset)
        else:
            attachment.acks.add(delivery, offset, offset + 1, talk.now)
        if place in flushes:
            attachment.acks.flush()
    attachment.acks.flush()
    numbers = [
        n
        for each in acked(talk)
        for first, end in zip(each[::2], each[1::2], strict=True)
        for n in range(first, end)
    ]
    assert sorted(numbers) == list(range(30))


def test_leaving_before_the_broker_has_answered_is_said_behind_the_open(talk: Talk) -> None:
    """Otherwise the broker would open the handle afterwards, and an Exclusive subscription would stay taken."""
    talk.welcome()
    attachment = talk.consumer()
    attachment.close()
    assert [header[Key.TYPE] for header in talk.said()] == [Type.OPEN_CONSUMER, Type.CLOSE]
    assert attachment.phase == "closed"


@pytest.mark.requirement("9.1-5")
def test_every_open_says_that_ranges_are_understood(talk: Talk) -> None:
    """So that a shared subscription does not cost a frame per run of offsets."""
    talk.welcome()
    talk.consumer(kind="key-shared")
    [opening] = talk.said()
    assert (opening[Key.SUBSCRIPTION_TYPE], opening[Key.SPARSE]) == ("key-shared", True)
    assert Key.FORCE not in opening


@pytest.mark.requirement("9.2-3")
def test_a_place_is_taken_by_force_once(talk: Talk) -> None:
    """Two programs with force do not take the subscription from each other for ever."""
    talk.welcome()
    attachment = talk.consumer(force=True)
    [opening] = talk.said()
    assert opening[Key.FORCE] is True
    talk.refuse("unavailable", "retry", REF=opening[Key.REF], HANDLE=2, CLOSED=True)
    talk.later(0.1)
    [opening] = talk.said()
    assert opening[Key.FORCE] is True
    answer = {Key.TYPE: Type.OPENED, Key.REF: opening[Key.REF], Key.HANDLE: 2, Key.OFFSET: 0}
    talk.hear(answer | {Key.STRATEGY: "reliable"})
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome()
    [opening] = talk.said()
    assert Key.FORCE not in opening
    talk.refuse("subscription-busy", "retry", REF=opening[Key.REF], HANDLE=2, CLOSED=True)
    assert attachment.error is None


def test_a_consumer_that_is_taken_over_ends(talk: Talk) -> None:
    """Its program is told why, and it does not try again."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    talk.refuse("taken-over", "stop", HANDLE=2, CLOSED=True)
    assert attachment.phase == "closed"
    assert attachment.error is not None
    assert attachment.error.code == "taken-over"
    assert attachment.handing.take() is None


def test_work_that_takes_longer_is_said(talk: Talk) -> None:
    """EXTEND names the messages still in work, and none that the broker no longer counts as in flight."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c")
    delivery = taken(attachment)
    attachment.extend(delivery, [(0, 1), (2, 3)])
    [said] = talk.said()
    assert (said[Key.TYPE], said[Key.HANDLE], said[Key.RANGES]) == (Type.EXTEND, 2, [0, 1, 2, 3])
    talk.session.lost(ConnectionLostError("gone"))
    talk.boot = 2
    talk.welcome()
    talk.opened()
    attachment.extend(delivery, [(0, 1)])
    assert talk.said() == []


def test_many_scattered_messages_are_extended_in_frames_of_legal_size(talk: Talk) -> None:
    """A header may have 400 ranges."""
    attachment = opened(talk)
    talk.deliver(0, b"a")
    attachment.extend(taken(attachment), [(offset, offset + 1) for offset in range(0, 1000, 2)])
    assert [len(header[Key.RANGES]) for header in talk.said()] == [800, 200]


def sought(talk: Talk, position: int) -> None:
    """Tell the consumer that its subscription was moved by a seek."""
    talk.hear({Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "sought", Key.OFFSET: position})


@pytest.mark.requirement("9.7-3")
def test_a_moved_subscription_drops_what_was_not_handed_out(talk: Talk) -> None:
    """Their credit is returned at once, together with that of the messages handed out before."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    talk.deliver(2, b"c", b"d", b"e")
    taken(attachment)
    sought(talk, 1)
    assert attachment.handing.take() is None
    [credit] = talk.said()
    assert (credit[Key.TYPE], credit[Key.MESSAGES]) == (Type.CREDIT, 5)
    talk.deliver(1, b"b", b"c")
    assert (taken(attachment).first, [event.code for event in attachment.events]) == (1, ["sought"])


def test_a_moved_subscription_gives_bytes_back_where_more_messages_are_out_than_should_be(talk: Talk) -> None:
    """If a smaller window uses up the returned messages, the bytes must be returned all the same."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    attachment.handing.resize(attachment.handing.credit_messages - 2, attachment.handing.credit_bytes)
    talk.said()
    sought(talk, 0)
    [credit] = talk.said()
    assert (credit[Key.TYPE], credit[Key.MESSAGES]) == (Type.CREDIT, 0)
    assert credit[Key.BYTES] > 0


def test_what_is_left_of_a_delivery_in_hand_is_withheld_when_the_subscription_moves(talk: Talk) -> None:
    """An iterator stops yielding it; batches that the program has stay as they are."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c")
    delivery = taken(attachment)
    messages, batch = delivery.hand_out(), Batch(delivery, 0, 3)
    assert next(messages).payload == b"a"
    each = iter(batch)
    sought(talk, 0)
    assert list(messages) == list(delivery.hand_out()) == []
    assert batch.payloads == [message.payload for message in each] == [b"a", b"b", b"c"]


@pytest.mark.requirement("9.7-3")
def test_nothing_from_before_the_move_is_acknowledged(talk: Talk) -> None:
    """Neither gathered acknowledgments nor later ones count; no error is reported for them."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c")
    old = taken(attachment)
    attachment.acks.add(old, 0, 1, talk.now)
    attachment.acks.add_until(old, 1, talk.now)
    sought(talk, 0)
    attachment.acks.add(old, 1, 2, talk.now)
    attachment.acks.add_until(old, 2, talk.now)
    attachment.nack(old, [(2, 3)], 0, "")
    attachment.extend(old, [(2, 3)])
    talk.later(2 * ACK_DELAY_S)
    attachment.acks.flush(confirm=True)
    assert [header for header in talk.said() if header[Key.TYPE] != Type.CREDIT] == []
    assert attachment.acks.settled
    assert not attachment.acks.forgotten
    talk.deliver(0, b"a")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    attachment.acks.flush()
    assert acked(talk) == [[0, 1]]


def test_acknowledgments_a_broker_forgot_after_the_move_are_still_told(talk: Talk) -> None:
    """A seek explains the loss of earlier acknowledgments only."""
    attachment = opened(talk)
    sought(talk, 0)
    talk.deliver(0, b"a")
    delivery = taken(attachment)
    talk.session.lost(ConnectionLostError("gone"))
    talk.boot = 2
    talk.welcome()
    talk.opened()
    attachment.acks.add(delivery, 0, 1, talk.now)
    assert attachment.acks.forgotten


def reopened(talk: Talk) -> wire.Header:
    """Lose connection and session; return the header of the consumer's next open."""
    talk.session.lost(ConnectionLostError("gone"))
    talk.boot += 1
    talk.welcome()
    [opening] = talk.said()
    assert opening[Key.TYPE] == Type.OPEN_CONSUMER
    talk.hear({Key.TYPE: Type.OPENED, Key.REF: opening[Key.REF], Key.HANDLE: 2, Key.OFFSET: 0} | RELIABLE)
    return opening


RELIABLE = {Key.STRATEGY: "reliable"}


@pytest.mark.requirement("9.2-9")
def test_a_reader_goes_on_behind_what_it_handed_out(talk: Talk) -> None:
    """Messages in its queue are delivered again; those that the program has are not."""
    talk.welcome()
    attachment = talk.consumer(kind="reader", start="latest")
    talk.opened(OFFSET=40)
    assert reopened(talk)[Key.START] == 40  # nothing was handed out: not the latest of that time
    assert reopened(talk)[Key.START] == 40
    talk.deliver(40, b"a", b"b")
    talk.deliver(42, b"c")
    taken(attachment)
    assert reopened(talk)[Key.START] == 42
    assert reopened(talk)[Key.START] == 42


def test_a_reader_of_a_non_reliable_topic_begins_as_it_began(talk: Talk) -> None:
    """There is no offset to continue from."""
    talk.welcome()
    talk.consumer(kind="reader", start="latest")
    talk.opened(OFFSET=40, STRATEGY="non-reliable")
    assert reopened(talk)[Key.START] == "latest"


def test_a_reader_acknowledges_nothing(talk: Talk) -> None:
    """The broker would ignore it."""
    attachment = opened(talk, kind="reader")
    talk.deliver(0, b"a")
    attachment.acks.add(taken(attachment), 0, 1, talk.now)
    attachment.acks.flush(confirm=True)
    assert talk.said() == []
    assert attachment.acks.settled


# ---- several who take, and what is in hand when the connection goes ------------------------------------------------


def test_what_is_left_of_a_delivery_in_hand_is_withheld_when_the_connection_is_lost(talk: Talk) -> None:
    """It is delivered again: an iterator yields the rest once, after the reconnect."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c", b"d")
    messages = attachment.handing.hand_out()
    assert messages is not None
    assert next(messages).payload == b"a"
    talk.session.lost(ConnectionLostError("gone"))
    assert list(messages) == []
    assert not attachment.handing.has_some
    assert attachment.handing.hand_out() is None
    assert attachment.handing.grab(2) is None


def test_a_refused_consumer_hands_out_nothing_more_of_what_it_has(talk: Talk) -> None:
    """The subscription's new owner is delivered it."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    messages = attachment.handing.hand_out()
    assert messages is not None
    talk.refuse("taken-over", "stop", HANDLE=2, CLOSED=True)
    assert list(messages) == []


@pytest.mark.parametrize(
    "what", [{"kind": "reader"}, {"strategy": "non-reliable"}], ids=["a reader", "a non-reliable topic"]
)
def test_what_does_not_come_again_is_handed_out_after_a_lost_connection(
    talk: Talk, what: dict[str, str]
) -> None:
    """A reader continues after the delivery in hand, and a non-reliable topic stores nothing."""
    attachment = talk.consumer(kind=what.get("kind", "shared"))
    talk.welcome()
    talk.opened(STRATEGY=what.get("strategy", "reliable"))
    talk.deliver(0, b"a", b"b", b"c")
    messages = attachment.handing.hand_out()
    assert messages is not None
    next(messages)
    talk.session.lost(ConnectionLostError("gone"))
    assert [message.payload for message in messages] == [b"b", b"c"]


@pytest.mark.requirement("7.4-6")
def test_a_session_that_goes_on_hears_acknowledgments_before_it_opens_again(talk: Talk) -> None:
    """Otherwise the broker would deliver acknowledged messages again; they are repeated once the handle is open."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b", b"c", b"d")
    delivery = taken(attachment)
    attachment.acks.add(delivery, 0, 2, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    acknowledged, asked = talk.said()
    assert (acknowledged[Key.TYPE], acknowledged[Key.RANGES]) == (Type.ACK, [0, 2])
    assert asked[Key.TYPE] == Type.OPEN_CONSUMER
    talk.hear(
        {
            Key.TYPE: Type.OPENED,
            Key.REF: asked[Key.REF],
            Key.HANDLE: 2,
            Key.OFFSET: 4,
            Key.STRATEGY: "reliable",
        }
    )
    [again] = talk.said()
    assert (again[Key.TYPE], again[Key.RANGES]) == (Type.ACK, [0, 2])


@pytest.mark.requirement("7.4-5")
def test_a_session_that_was_forgotten_hears_of_no_acknowledgment(talk: Talk) -> None:
    """The broker would refuse the frame."""
    attachment = opened(talk)
    talk.deliver(0, b"a", b"b")
    attachment.acks.add(taken(attachment), 0, 2, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=False)
    [asked] = talk.said()
    assert asked[Key.TYPE] == Type.OPEN_CONSUMER


def test_iterators_and_batches_share_a_delivery(talk: Talk) -> None:
    """A batch takes what an iterator has not yielded yet, and leaves the rest to the next one."""
    attachment = opened(talk)
    talk.deliver(0, *(b"%d" % number for number in range(10)))
    first = attachment.handing.hand_out()
    assert first is not None
    assert [next(first).offset for _ in range(2)] == [0, 1]
    batch = attachment.handing.grab(3)
    assert batch is not None
    assert list(batch.offsets) == [2, 3, 4]
    assert list(first) == []
    second = attachment.handing.hand_out()
    assert second is not None
    assert [message.offset for message in second] == [5, 6, 7, 8, 9]
    assert not attachment.handing.has_some


@pytest.mark.requirement("9.4-9")
def test_a_reader_gives_no_credit_back_for_what_came_before_it_opened_again(talk: Talk) -> None:
    """Its program goes on with the delivery in hand, whose credit the new open has voided."""
    attachment = opened(talk, kind="reader", credit_messages=10)
    talk.deliver(0, *[b"x"] * 8)
    first = attachment.handing.grab(3)
    assert first is not None
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    talk.opened()
    rest = attachment.handing.grab(None)
    assert rest is not None
    assert (len(first), len(rest)) == (3, 5)
    assert [header for header in talk.said() if header[Key.TYPE] == Type.CREDIT] == []
    talk.deliver(8, *[b"x"] * 8)
    taken(attachment)
    assert sum(header[Key.MESSAGES] for header in talk.said() if header[Key.TYPE] == Type.CREDIT) == 8
