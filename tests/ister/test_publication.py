"""Tests of the frames a producer exchanges with a worker, without a socket."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import bodies, wire
from ister import publication as under_test
from ister.errors import ClosedError, ConnectionLostError, RemoteError
from ister.gathering import AWAITING_USUAL, NOTHING, STRETCHED_S_MAX, stretched
from ister.publication import TRANSITIONS, Publication
from ister.receipts import Shipment
from ister.wire import Column, Key, Type

if TYPE_CHECKING:
    from tests.ister.conftest import Talk


def ship(publication: Publication, *payloads: bytes) -> Shipment:
    """Seal messages as a batch of their own."""
    publication.gathered.begin(0.0)
    shipment = publication.gathered.shipment
    for payload in payloads:
        publication.gathered.add(payload, b"", b"")
    publication.seal()
    return shipment


def opened(talk: Talk) -> Publication:
    """Return an open producer whose session has nothing left to send."""
    talk.welcome()
    publication = talk.producer()
    talk.opened()
    return publication


def receipts(talk: Talk, *pairs: int) -> None:
    """Answer batches with receipts."""
    talk.hear({Key.TYPE: Type.RECEIPT, Key.HANDLE: 1, Key.RECEIPTS: list(pairs)})


def sequences(talk: Talk) -> list[int]:
    """Return the sequences of the batches sent since the last call."""
    return [header[Key.SEQUENCE] for header in talk.said() if header[Key.TYPE] == Type.PUBLISH]


def test_a_lone_message_needs_no_length_table(talk: Talk) -> None:
    """The smallest PUBLISH is a header and a payload."""
    publication = opened(talk)
    ship(publication, b"hello")
    [(header, body)] = talk.frames()
    assert header == {Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0}
    assert body == [b"hello"]


@pytest.mark.requirement("8.2-1")
def test_sequences_count_messages(talk: Talk) -> None:
    """The next batch begins with the sequence after the last one."""
    publication = opened(talk)
    ship(publication, b"a", b"b", b"c")
    ship(publication, b"d")
    assert sequences(talk) == [0, 3]


def test_columns_are_filled_for_messages_that_have_none(talk: Talk) -> None:
    """A key on the third message leaves the first two without a key."""
    publication = opened(talk)
    publication.gathered.begin(0.0)
    publication.gathered.add(b"a", b"", b"")
    publication.gathered.add(b"b", b"", bodies.encode_attributes({"x": "y"}))
    publication.gathered.add(b"c", b"k", b"")
    publication.seal()
    [(header, body)] = talk.frames()
    assert header[Key.COLUMNS] == Column.KEYS | Column.ATTRIBUTES
    assert (
        bodies.check_batch(body, Column.KEYS | Column.ATTRIBUTES, message_bytes_max=100, batch_bytes_max=1000)
        == 3
    )
    assert bodies.split_column(body[2], 3) == [b"", b"", b"k"]
    assert bodies.split_column(body[3], 3) == [b"", bodies.encode_attributes({"x": "y"}), b""]


def test_the_room_left_is_exact(talk: Talk) -> None:
    """The bytes that `room` counts are those of the body frames, columns included."""
    publication = opened(talk)
    publication.gathered.begin(0.0)
    for key in (b"", b"", b"kk", b""):
        publication.gathered.add(b"1234567", key, b"")
    size = publication.gathered.size()
    publication.seal()
    [(_, body)] = talk.frames()
    assert size == sum(map(len, body))


@pytest.mark.parametrize(
    ("asked", "rooms"),
    [(None, [100, 100, 150, 300, 400, 100]), (100, [100] * 6)],
    ids=["by default", "of a size that was asked for"],
)
def test_batches_are_larger_while_receipts_lag(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, asked: int | None, rooms: list[int]
) -> None:
    """A quarter of what is on its way, within limits: the more waits before a batch, the less its own size matters."""
    monkeypatch.setattr(under_test, "BATCH_BYTES", 100)
    monkeypatch.setattr(under_test, "BATCH_BYTES_LAGGING", 400)
    talk.welcome()
    publication = talk.producer(batch_bytes=asked)
    talk.opened()
    found = []
    for size in (400, 200, 600, 1600):
        publication.begin(0.0)
        found.append(publication.gathered.room)
        publication.gathered.add(bytes(size), b"", b"")
        publication.seal()
    publication.begin(0.0)
    found.append(publication.gathered.room)
    publication.gathered.clear()
    receipts(talk, 0, 0, 1, 1, 2, 2, 3, 3)
    publication.begin(0.0)
    assert [*found, publication.gathered.room] == rooms


def test_batches_that_go_together_stay_within_the_limits_of_the_broker(talk: Talk) -> None:
    """However much is on its way, and whatever their size."""
    talk.welcome()
    talk.session.limits = replace(talk.session.limits, batch_bytes_max=300_000, message_bytes_max=1 << 20)
    publication = talk.producer(batch_bytes=None)
    talk.opened()
    assert publication.room_for(1000) == 0, "nothing is on its way"
    publication.gathered.begin(0.0, room=4 << 20)
    publication.gathered.add(bytes(4 << 20), b"", b"")
    publication.seal()
    assert publication.room_for(65_792) == 4 * 65_792, "nearer to 256 KiB than three are"
    assert publication.room_for(1000) == 262_000
    assert publication.room_for(170_000) == 0, "two are over the limit"
    assert publication.room_for(200_000) == 0
    assert publication.room_for(400_000) == 0
    publication.gathered.linger_s = 0.0
    assert publication.room_for(65_792) == 0, "nothing lingers"


def test_a_receipt_resolves_its_batch(talk: Talk) -> None:
    """A RECEIPT may answer many batches."""
    publication = opened(talk)
    first, second = ship(publication, b"a", b"b"), ship(publication, b"c")
    receipts(talk, 0, 40, 2, 50)
    assert (first.resolved, first.first) == (True, 40)
    assert (second.resolved, second.first) == (True, 50)
    assert publication.bytes == 0


@pytest.mark.requirement("8.2-2")
def test_the_window_bounds_what_has_no_receipt(talk: Talk) -> None:
    """Beyond the window nothing is sealed, except that one batch always may be."""
    talk.welcome()
    publication = talk.producer(window=50)
    talk.opened()
    assert publication.has_room(1000)
    ship(publication, b"x" * 40)
    assert publication.has_room(10)
    assert not publication.has_room(11)
    receipts(talk, 0, 0)
    assert publication.has_room(1000)


@pytest.mark.requirement("8.2-3")
def test_the_number_of_batches_in_flight_is_bounded_too(talk: Talk) -> None:
    """The broker's limit also holds for very small batches."""
    publication = opened(talk)
    for _ in range(4):
        assert publication.has_room(1)
        ship(publication, b"x")
    assert not publication.has_room(1)


def test_what_is_gathered_goes_when_the_batch_before_it_is_answered(talk: Talk) -> None:
    """There is no linger while nothing is in flight."""
    publication = opened(talk)
    ship(publication, b"a")
    publication.gathered.begin(talk.now)
    publication.gathered.add(b"b", b"", b"")
    talk.said()
    receipts(talk, 0, 0)
    assert sequences(talk) == [1]


def test_what_lingers_goes_after_its_time(talk: Talk) -> None:
    """A slow receipt delays messages no longer than the linger."""
    publication = opened(talk)
    ship(publication, b"a")
    publication.gathered.begin(talk.now)
    publication.gathered.add(b"b", b"", b"")
    talk.said()
    assert talk.session.deadline() <= talk.now + 0.001
    talk.later(0.001)
    assert sequences(talk) == [1]


@pytest.mark.requirement("7.4-2", "8.3-6")
def test_after_a_lost_connection_everything_unresolved_is_resent_as_it_was(talk: Talk) -> None:
    """The same batches, bytes and order; OPEN has the first sequence."""
    publication = opened(talk)
    for payloads in ([b"a", b"b"], [b"c"], [b"d", b"e"]):
        ship(publication, *payloads)
    sent = talk.frames()
    receipts(talk, 0, 0)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    assert talk.session.outbox
    [opening] = [header for header, _ in talk.frames()]
    assert opening[Key.SEQUENCE] == 2
    talk.hear(
        {Key.TYPE: Type.OPENED, Key.REF: opening[Key.REF], Key.HANDLE: 1, Key.SEQUENCE: 5, Key.BYTES: 3000}
    )
    assert talk.frames() == sent[1:]


def test_messages_sent_without_a_connection_go_out_later(talk: Talk) -> None:
    """Messages sent while the broker is away for a moment are sent when it is back."""
    publication = opened(talk)
    talk.session.lost(ConnectionLostError("gone"))
    shipment = ship(publication, b"a")
    assert not talk.session.outbox
    talk.welcome(resumed=True)
    talk.opened()
    assert sequences(talk) == [0]
    receipts(talk, 0, 9)
    assert shipment.first == 9


@pytest.mark.requirement("8.3-5")
@pytest.mark.requirement("5.2-2")
def test_what_a_broker_with_lower_limits_would_hang_up_at_is_refused_here(talk: Talk) -> None:
    """It was sent to a broker that took it, and came back with another limit; what fits is sent again."""
    publication = opened(talk)
    sizes = (10, 9_000, 20, 9_000, 9_000, 30)
    shipments = [ship(publication, bytes(size)) for size in sizes]
    talk.said()
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome()
    talk.session.limits = replace(talk.session.limits, batch_bytes_max=1_000, message_bytes_max=1_000)
    talk.opened()
    assert [each.resolved for each in shipments] == [False, True, False, True, True, False]
    for shipment in shipments:
        if shipment.resolved:
            assert isinstance(shipment.error, RemoteError)
            assert (shipment.error.code, shipment.error.action) == ("batch-too-large", "fix")
    assert publication.bytes == sum(size for size in sizes if size < 9_000)
    sent: list[int] = []
    for _ in range(3):  # each hole is told by an open
        sent += sequences(talk)
        receipts(talk, *(number for each in sent[-1:] for number in (each, each)))
        if publication.phase == "opening":
            talk.opened()
    assert (sent, publication.phase, publication.batches) == ([0, 2, 5], "open", type(publication.batches)())


def test_what_a_producer_waits_for_is_what_was_refused_first(talk: Talk) -> None:
    """The batches behind it are refused because it is missing, which explains nothing."""
    publication = opened(talk)
    for payload in (b"a", b"b"):
        ship(publication, payload)
    refusal = {Key.TYPE: Type.ERROR, Key.HANDLE: 1, Key.ACTION: "retry", Key.TEXT: "no room"}
    talk.hear(refusal | {Key.CODE: "disk-full", Key.SEQUENCE: 0})
    talk.hear(refusal | {Key.CODE: "sequence-gap", Key.SEQUENCE: 1, Key.TEXT: "0 is next"})
    assert publication.trouble is not None
    assert publication.trouble.code == "disk-full"


def test_a_second_receipt_after_a_resend_is_ignored(talk: Talk) -> None:
    """Both the original and the resend may be answered."""
    publication = opened(talk)
    shipment = ship(publication, b"a")
    receipts(talk, 0, 3)
    receipts(talk, 0, 3, 77, 5)
    assert shipment.first == 3
    assert not talk.session.idle


@pytest.mark.requirement("8.4-1")
def test_a_retry_error_is_followed_by_everything_unresolved_in_order(talk: Talk) -> None:
    """A full disk delays messages; it loses and reorders none."""
    publication = opened(talk)
    shipments = [ship(publication, b"a"), ship(publication, b"b")]
    talk.said()
    talk.refuse("disk-full", "retry", HANDLE=1, SEQUENCE=0)
    talk.refuse("sequence-gap", "retry", HANDLE=1, SEQUENCE=1)
    assert talk.said() == []
    assert publication.trouble is not None
    talk.later(0.1)
    talk.opened()
    assert sequences(talk) == [0, 1]
    receipts(talk, 0, 0, 1, 1)
    assert all(shipment.resolved and shipment.error is None for shipment in shipments)


@pytest.mark.requirement("8.4-2")
def test_a_refused_batch_fails_alone(talk: Talk) -> None:
    """Its error is reported, and the batches after it are sent again."""
    publication = opened(talk)
    bad, good = ship(publication, b"a", b"b"), ship(publication, b"c")
    talk.said()
    talk.refuse("message-too-large", "fix", HANDLE=1, SEQUENCE=0)
    assert isinstance(bad.error, RemoteError)
    [opening] = talk.said()
    assert (opening[Key.TYPE], opening[Key.SEQUENCE]) == (Type.OPEN_PRODUCER, 2)
    talk.refuse("sequence-gap", "retry", HANDLE=1, SEQUENCE=2)  # it was sent before the broker was told
    talk.later(0.1)
    talk.opened()
    assert sequences(talk) == [2]
    receipts(talk, 2, 7)
    assert good.first == 7


@pytest.mark.requirement("8.4-2")
def test_nothing_is_skipped_before_what_precedes_it_is_resolved(talk: Talk) -> None:
    """To skip a batch that was refused for a moment would lose it as a duplicate."""
    publication = opened(talk)
    first, bad, last = ship(publication, b"a"), ship(publication, b"b"), ship(publication, b"c")
    talk.said()
    talk.refuse("message-too-large", "fix", HANDLE=1, SEQUENCE=1)
    talk.refuse("busy", "retry", HANDLE=1, SEQUENCE=0)
    assert bad.resolved
    talk.later(0.1)
    [opening] = [header for header in talk.said() if header[Key.TYPE] == Type.OPEN_PRODUCER]
    assert opening[Key.SEQUENCE] == 0
    talk.hear(
        {Key.TYPE: Type.OPENED, Key.REF: opening[Key.REF], Key.HANDLE: 1, Key.SEQUENCE: 0, Key.BYTES: 3000}
    )
    assert sequences(talk) == [0]  # not what comes after the hole
    receipts(talk, 0, 0)
    assert first.resolved
    talk.opened()
    assert sequences(talk) == [2]
    receipts(talk, 2, 1)
    assert last.first == 1


@pytest.mark.requirement("8.4-3")
def test_a_fenced_producer_fails_everything(talk: Talk) -> None:
    """Another producer has the id now; to open again would close that one."""
    publication = opened(talk)
    shipment = ship(publication, b"a")
    talk.refuse("producer-fenced", "stop", HANDLE=1, CLOSED=True)
    assert publication.phase == "closed"
    assert shipment.error is publication.error
    assert publication.gathered.room == NOTHING


@pytest.mark.requirement("8.4-3")
def test_a_topic_that_restarts_is_opened_again(talk: Talk) -> None:
    """CLOSED with `retry` means that the topic is there, but not on this worker now."""
    publication = opened(talk)
    shipment = ship(publication, b"a")
    talk.said()
    talk.refuse("unavailable", "retry", HANDLE=1, CLOSED=True)
    talk.later(0.1)
    talk.opened()
    assert sequences(talk) == [0]
    receipts(talk, 0, 0)
    assert shipment.error is None


@pytest.mark.requirement("8.4-4")
def test_a_handle_the_broker_does_not_know_is_opened_again(talk: Talk) -> None:
    """The client opens the handle again after `unknown-handle`."""
    publication = opened(talk)
    ship(publication, b"a")
    talk.said()
    talk.refuse("unknown-handle", "fix", HANDLE=1, SEQUENCE=0)
    talk.later(0.1)
    talk.opened()
    assert sequences(talk) == [0]


@pytest.mark.requirement("8.1-4")
def test_a_named_producer_goes_on_where_it_was(talk: Talk) -> None:
    """Numbering continues after the sequence that the broker has stored."""
    talk.welcome()
    publication = talk.producer()
    talk.opened(SEQUENCE=500)
    ship(publication, b"a")
    assert sequences(talk) == [500]


def test_an_opening_that_is_refused_for_good_closes(talk: Talk) -> None:
    """If the topic does not exist, the error is reported, and the open not retried."""
    talk.welcome()
    publication = talk.producer()
    [opening] = talk.said()
    talk.refuse("unknown-topic", "fix", REF=opening[Key.REF], HANDLE=1, SEQUENCE=0)
    assert publication.phase == "closed"
    assert publication.error is not None
    assert publication.error.code == "unknown-topic"


def test_moved_is_the_shells_to_follow(talk: Talk) -> None:
    """The producer is handed out with the endpoint, and opens again wherever it is attached."""
    talk.welcome()
    publication = talk.producer()
    [opening] = talk.said()
    talk.hear({Key.TYPE: Type.MOVED, Key.REF: opening[Key.REF], Key.HANDLE: 1, Key.ENDPOINT: "tcp://there:1"})
    assert talk.session.moves == [(publication, "tcp://there:1")]


def test_callbacks_are_called_by_the_shell(talk: Talk) -> None:
    """User code does not run inside the state machine."""
    publication = opened(talk)
    shipment = ship(publication, b"a")
    called: list[str] = []
    shipment.callbacks = [lambda: called.append("now")]
    receipts(talk, 0, 0)
    assert called == []
    talk.callbacks.popleft()()
    assert called == ["now"]


def test_an_end_fails_what_has_no_receipt(talk: Talk) -> None:
    """Sealed or gathered, every message gets an error, so that nothing waits for ever."""
    publication = opened(talk)
    sealed = ship(publication, b"a")
    publication.gathered.begin(0.0)
    gathered = publication.gathered.shipment
    publication.gathered.add(b"b", b"", b"")
    publication.fail(ClosedError("closed"))
    assert isinstance(sealed.error, ClosedError)
    assert isinstance(gathered.error, ClosedError)


def test_mending_after_an_interruption_seals_nothing_twice(talk: Talk) -> None:
    """Ctrl-C between taking a batch and beginning the next leaves one batch, not two."""
    publication = opened(talk)
    publication.gathered.begin(0.0)
    publication.gathered.add(b"a", b"", b"")
    payloads, shipment = publication.gathered.payloads, publication.gathered.shipment
    publication.seal()
    publication.gathered.payloads, publication.gathered.shipment = (
        payloads,
        shipment,
    )  # as if the interruption came before `clear`
    publication._next = 0
    publication.mend()
    assert publication.gathered.payloads == []
    ship(publication, b"b")
    assert [batch.sequence for batch in publication.batches] == [0, 1]


@pytest.mark.requirement("8.6-1")
def test_every_state_can_lose_its_connection_or_end() -> None:
    """No state leaves a producer hanging."""
    states = {state for state, _ in TRANSITIONS} - {"idle"}
    assert all((state, "lost") in TRANSITIONS for state in states)
    assert all((state, "fail") in TRANSITIONS for state in [*states, "idle"])


actions = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 3)),
        st.tuples(st.just("take"), st.integers(0, 9)),
        st.tuples(st.just("retry"), st.integers(0, 9)),
        st.tuples(st.just("refuse"), st.integers(0, 9)),
        st.tuples(st.just("lose"), st.booleans()),
    ),
    max_size=30,
)


class Model:
    """A broker's log for one producer; it refuses batches when told to."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.log: list[bytes] = []
        self.refused: set[bytes] = set()
        self.upset: dict[str, int] = {"retry": 0, "refuse": 0}
        self._expected = 0
        self._placed: dict[int, int] = {}

    def serve(self, most: int) -> None:
        """Read frames from the wire, and answer them."""
        for _ in range(min(most, len(self.talk.session.outbox))):
            frames = self.talk.session.outbox.popleft()
            header = wire.decode_header(frames[0])
            if header[Key.TYPE] == Type.OPEN_PRODUCER:
                self._expected = max(self._expected, header[Key.SEQUENCE])
                opened = {Key.TYPE: Type.OPENED, Key.REF: header[Key.REF], Key.HANDLE: 1}
                self.talk.hear(opened | {Key.SEQUENCE: self._expected, Key.BYTES: 3000})
            elif header[Key.TYPE] == Type.PUBLISH:
                body = frames[1:]
                messages = list(body) if len(body) == 1 else bodies.split_payloads(body[0], body[1])
                self._publish(header[Key.SEQUENCE], messages)

    def _publish(self, sequence: int, messages: list[bytes]) -> None:
        if sequence > self._expected:
            self.talk.refuse("sequence-gap", "retry", HANDLE=1, SEQUENCE=sequence)
        elif sequence < self._expected:
            if sequence in self._placed:
                receipts(self.talk, sequence, self._placed[sequence])
        elif self.upset["retry"]:
            self.upset["retry"] = 0
            self.talk.refuse("busy", "retry", HANDLE=1, SEQUENCE=sequence)
        elif self.upset["refuse"]:
            self.upset["refuse"] = 0
            self.refused.update(messages)
            self.talk.refuse("message-too-large", "fix", HANDLE=1, SEQUENCE=sequence)
        else:
            self._placed[sequence] = len(self.log)
            self.log.extend(messages)
            self._expected += len(messages)
            receipts(self.talk, sequence, self._placed[sequence])


@pytest.mark.requirement("4.2-1", "8.4-1")
@given(actions=actions)
def test_whatever_happens_messages_are_stored_once_and_in_order(
    new_talk: type[Talk], actions: list[tuple[str, int]]
) -> None:
    """Against a model broker that refuses, forgets and loses: receipts are true, and the order is kept."""
    talk = new_talk()
    talk.welcome()
    publication = talk.producer()
    model = Model(talk)
    shipments: list[tuple[list[bytes], Shipment]] = []
    counter = iter(range(10_000))
    model.serve(5)
    for what, number in actions:
        if what == "send" and publication.has_room(60):
            messages = [b"%d" % next(counter) for _ in range(number)]
            shipments.append((messages, ship(publication, *messages)))
        elif what == "take":
            model.serve(number)
        elif what == "lose":
            talk.session.lost(ConnectionLostError("gone"))
            talk.welcome(resumed=bool(number))
        elif what in model.upset:
            model.upset[what] = 1
        talk.later(0.3)
    model.upset = {"retry": 0, "refuse": 0}
    for _ in range(60):
        model.serve(100)
        talk.later(0.2)
        talk.hear({Key.TYPE: Type.PONG})
    assert model.log == sorted(model.log, key=int)
    assert len(set(model.log)) == len(model.log)
    for messages, shipment in shipments:
        assert shipment.resolved
        if shipment.error is None:
            assert model.log[shipment.first : shipment.first + len(messages)] == messages
        else:
            assert model.refused.issuperset(messages)
            assert not set(messages) & set(model.log)


def test_leaving_before_the_broker_has_answered_is_said_behind_the_open(talk: Talk) -> None:
    """Otherwise the broker would open the handle afterwards."""
    talk.welcome()
    publication = talk.producer()
    publication.close()
    assert [header[Key.TYPE] for header in talk.said()] == [Type.OPEN_PRODUCER, Type.CLOSE]
    assert publication.phase == "closed"


@pytest.mark.requirement("5.1-5")
def test_times_of_delivery_are_a_column(talk: Talk) -> None:
    """A time on the second message leaves the others without; the column's bytes are counted."""
    publication = opened(talk)
    publication.gathered.begin(0.0)
    before = publication.gathered.room
    assert publication.gathered.plain
    publication.gathered.add(b"a", b"", b"")
    assert publication.gathered.plain
    publication.gathered.add(b"b", b"", b"", 1_767_225_600_000)
    assert not publication.gathered.plain
    publication.gathered.add(b"c", b"", b"")
    size = before - publication.gathered.room
    publication.seal()
    [(header, body)] = talk.frames()
    assert header[Key.COLUMNS] == Column.DELIVER_AT
    assert bodies.split_times(body[-1], 3).tolist() == [0, 1_767_225_600_000, 0]
    assert size == sum(map(len, body))
    assert publication.gathered.plain


def test_one_message_with_a_time_has_a_length_table(talk: Talk) -> None:
    """Only a message without columns may be sent without a length table."""
    publication = opened(talk)
    publication.gathered.begin(0.0)
    publication.gathered.add(b"a", b"k", b"", 5)
    publication.seal()
    [(header, body)] = talk.frames()
    assert header[Key.COLUMNS] == Column.KEYS | Column.DELIVER_AT
    assert bodies.check_batch(body, header[Key.COLUMNS], message_bytes_max=100, batch_bytes_max=1000) == 1


@pytest.mark.requirement("8.1-5")
def test_numbers_that_are_left_out_are_told_to_the_broker_first(talk: Talk) -> None:
    """Messages after a hole wait until everything before it is answered, and the broker is told of the hole."""
    publication = opened(talk)
    ship(publication, b"a", b"b")
    publication.skip_to(10)
    behind = ship(publication, b"c")
    after = ship(publication, b"d")
    assert sequences(talk) == [0]
    assert publication.next_sequence == 12
    receipts(talk, 0, 40)
    [opening] = talk.said()
    assert (opening[Key.TYPE], opening[Key.SEQUENCE]) == (Type.OPEN_PRODUCER, 10)
    talk.hear(
        {Key.TYPE: Type.OPENED, Key.REF: opening[Key.REF], Key.HANDLE: 1, Key.SEQUENCE: 10, Key.BYTES: 3000}
    )
    assert sequences(talk) == [10, 11]
    receipts(talk, 10, 42, 11, 43)
    assert (behind.first, after.first) == (42, 43)


def test_a_hole_at_the_beginning_and_a_lost_connection_are_no_trouble(talk: Talk) -> None:
    """The next open has the sequence after the hole, and resends begin there."""
    publication = opened(talk)
    publication.skip_to(5)
    shipment = ship(publication, b"a")
    [opening] = talk.said()
    assert opening[Key.SEQUENCE] == 5
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome()
    talk.opened()
    assert sequences(talk) == [5]
    receipts(talk, 5, 9)
    assert shipment.first == 9


def test_a_number_that_was_taken_leads_to_the_message_it_is(talk: Talk) -> None:
    """Whether that is gathered, in flight, refused, or was answered long ago."""
    publication = opened(talk)
    answered, under_way = ship(publication, b"a"), ship(publication, b"b", b"c")
    refused = ship(publication, b"d")
    receipts(talk, 0, 40)
    publication.gathered.begin(0.0)
    publication.gathered.add(b"e", b"", b"")
    assert answered.resolved
    stored, _ = publication.taken_before(0)
    assert stored.outcome(0, 1, None).duplicate
    assert publication.taken_before(2) == (under_way, 1)
    assert publication.taken_before(4) == (publication.gathered.shipment, 0)
    talk.refuse("message-too-large", "fix", HANDLE=1, SEQUENCE=3)
    assert refused.error is not None
    with pytest.raises(RemoteError, match="too-large"):
        publication.taken_before(3)


def test_where_few_producers_wait_for_receipts_a_batch_lingers_as_it_was_told(talk: Talk) -> None:
    """Up to AWAITING_USUAL of them; a linger of 0 always stays 0, and a long one never gets shorter."""
    publication = opened(talk)
    linger_s = publication.gathered.linger_s
    talk.session.awaiting.update(range(100, 100 + AWAITING_USUAL))
    assert publication.linger_s() == linger_s
    assert stretched(0.0, 10_000) == 0.0
    assert stretched(1.0, 10_000) == 1.0


def test_where_many_producers_wait_for_receipts_a_batch_may_wait_for_its_own(talk: Talk) -> None:
    """Longer the more they are, up to a bound; it still goes when the batch before it is answered."""
    publication = opened(talk)
    linger_s = publication.gathered.linger_s
    assert stretched(linger_s, 1_000_000) == STRETCHED_S_MAX
    talk.session.awaiting.update(range(100, 100 + 4 * AWAITING_USUAL))
    assert publication.linger_s() == pytest.approx(4 * linger_s)
    ship(publication, b"a")
    publication.gathered.begin(talk.now, publication.linger_s())
    publication.gathered.add(b"b", b"", b"")
    talk.said()
    talk.later(3 * linger_s)
    assert sequences(talk) == []
    receipts(talk, 0, 0)
    assert sequences(talk) == [1]


def test_a_producer_counts_as_waiting_while_it_has_a_batch_on_its_way(talk: Talk) -> None:
    """Not before it is sent, nor after its receipt, a lost connection or the end of the producer."""
    publication = opened(talk)
    awaiting = talk.session.awaiting
    assert not awaiting
    ship(publication, b"a")
    ship(publication, b"b")
    receipts(talk, 0, 0)
    assert awaiting == {1}
    receipts(talk, 1, 1)
    assert not awaiting
    ship(publication, b"c")
    talk.session.lost(ConnectionLostError("gone"))
    assert not awaiting
    talk.welcome()
    talk.opened()
    assert awaiting == {1}
    publication.fail(ClosedError("over"))
    assert not awaiting


def test_a_batch_of_the_program_waits_for_others_only_among_many(talk: Talk) -> None:
    """And only where it is small, and one of its producer's is on its way."""
    publication = opened(talk)
    talk.session.awaiting.update(range(100, 200))
    small = publication.gathered.batch_bytes // 2 - 1
    assert not publication.room_for(small)
    ship(publication, b"a")
    assert publication.room_for(small)
    assert not publication.room_for(small + 1)
    talk.session.awaiting.clear()
    assert not publication.room_for(small)


@pytest.mark.parametrize("linger_ms", [0, 5])
def test_what_another_thread_sent_before_the_close_goes_before_it(talk: Talk, linger_ms: int) -> None:
    """It was accepted, so it gets its receipt: the broker confirms a CLOSE behind the receipts before it."""
    publication = opened(talk)
    publication.gathered.linger_s = linger_ms / 1000
    publication.begin(0.0)
    shipment = publication.gathered.shipment
    publication.gathered.add(b"a", b"", b"")
    publication.gathered.open_lane()
    publication.close()
    assert [header[Key.TYPE] for header in talk.said()] == [Type.PUBLISH, Type.CLOSE]
    receipts(talk, 0, 7)
    assert (shipment.resolved, shipment.first, shipment.error) == (True, 7, None)
    assert publication.gathered.room == NOTHING
    assert publication.gathered.lane.longest < 0


@pytest.mark.parametrize("lost", [False, True])
def test_what_a_close_leaves_without_a_receipt_fails(talk: Talk, lost: bool) -> None:
    """Nobody waits for ever: neither for what the window had no room for, nor for what was on its way."""
    publication = opened(talk)
    on_its_way = ship(publication, bytes(talk.session.limits.producer_window_bytes))
    publication.begin(0.0)
    gathered = publication.gathered.shipment
    publication.gathered.add(b"no room", b"", b"")
    publication.close()
    publication.gathered.open_lane()
    assert publication.gathered.room == NOTHING
    if lost:
        publication.on_lost(ConnectionLostError("gone"))
    else:
        publication._step("done")
    assert publication.phase == "closed"
    publication.fail(ClosedError("closed before a receipt"))
    for shipment in (on_its_way, gathered):
        assert shipment.resolved
        assert isinstance(shipment.error, ClosedError)
