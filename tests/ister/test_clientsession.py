"""Tests of the client's session, without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import wire
from ister.clientsession import GREETING_S, TRANSITIONS, UNCLEAR_AGAIN_S, Session, back_off_s
from ister.errors import ClosedError, ConnectionLostError, RemoteError
from ister.outstanding import Request
from ister.wire import Key, Type

if TYPE_CHECKING:
    from tests.ister.conftest import Talk


@pytest.mark.requirement("7.1-1", "7.1-2")
def test_every_connection_begins_with_hello(talk: Talk) -> None:
    """No other frame is sent before there is a session."""
    talk.session.request(Request("status", {}), talk.now)
    talk.producer()
    talk.session.connect(talk.now)
    [hello] = talk.said()
    assert hello[Key.TYPE] == Type.HELLO
    assert hello[Key.VERSION] == [wire.PROTOCOL_VERSION]
    assert Key.SESSION not in hello


@pytest.mark.requirement("7.1-2")
def test_what_waited_is_said_after_welcome(talk: Talk) -> None:
    """Producers are opened and requests sent as soon as there is a session."""
    talk.session.request(Request("status", {}), talk.now)
    talk.producer()
    talk.welcome()
    assert [header[Key.TYPE] for header in talk.said()] == [Type.OPEN_PRODUCER, Type.REQUEST]


@pytest.mark.requirement("7.4-1", "7.1-5")
def test_the_next_hello_resumes_the_session(talk: Talk) -> None:
    """After a lost connection HELLO has the secret of the session."""
    talk.welcome()
    talk.session.lost(ConnectionLostError("gone"))
    talk.session.connect(talk.now)
    [hello] = talk.said()
    assert hello[Key.SESSION] == bytes(16)


@pytest.mark.parametrize("code", ["hello-required", "session-expired"])
def test_a_forgotten_session_is_a_lost_connection(talk: Talk, code: str) -> None:
    """The broker may forget a session at any time; the client does not present it again."""
    talk.welcome()
    talk.refuse(code, "retry")
    assert talk.session.idle
    talk.session.connect(talk.now)
    [hello] = talk.said()
    assert (Key.SESSION in hello) == (code == "hello-required")


@pytest.mark.requirement("7.1-4")
def test_no_common_version_ends_everything(talk: Talk) -> None:
    """Trying again would not help: every waiting call gets the error."""
    request = Request("status", {})
    talk.session.request(request, talk.now)
    publication = talk.producer()
    talk.session.connect(talk.now)
    talk.refuse("unsupported-version", "stop")
    assert talk.session.phase == "ended"
    assert isinstance(request.error, RemoteError)
    assert request.error.code == "unsupported-version"
    assert publication.phase == "closed"


@pytest.mark.requirement("7.3-1", "7.3-4")
def test_silence_is_answered_with_a_ping_and_then_given_up(talk: Talk) -> None:
    """A dead connection is noticed after three heartbeats, a living one is kept."""
    talk.welcome(heartbeat=1000)
    assert talk.session.deadline() == talk.now + 1
    talk.later(1.0)
    assert [header[Key.TYPE] for header in talk.said()] == [Type.PING]
    talk.hear({Key.TYPE: Type.PONG})
    talk.later(1.0)
    assert [header[Key.TYPE] for header in talk.said()] == [Type.PING]
    talk.later(1.9)
    assert talk.session.phase == "ready"
    talk.later(0.1)
    assert talk.session.idle


@pytest.mark.requirement("7.1-9")
def test_an_unanswered_hello_is_given_up(talk: Talk) -> None:
    """A port where another protocol answers does not hold a client for ever."""
    talk.session.connect(talk.now)
    talk.later(GREETING_S)
    assert talk.session.idle


def test_a_request_is_answered(talk: Talk) -> None:
    """The result is the decoded body."""
    request = Request("topic.show", {"topic": "orders"})
    talk.welcome()
    talk.session.request(request, talk.now)
    [asked] = talk.said()
    assert asked[Key.ARGUMENTS] == {"topic": "orders"}
    talk.hear({Key.TYPE: Type.RESULT, Key.REF: asked[Key.REF]}, wire.encode_result({"topic": "orders"}))
    assert request.done
    assert request.result == {"topic": "orders"}


@pytest.mark.requirement("10.2-5", "11.1-2", "14-2")
def test_a_request_is_asked_again_after_a_retry_error(talk: Talk) -> None:
    """The client retries, not the program."""
    request = Request("status", {})
    talk.welcome()
    talk.session.request(request, talk.now)
    [asked] = talk.said()
    talk.refuse("busy", "retry", REF=asked[Key.REF])
    assert not request.done
    assert talk.session.deadline() < talk.now + 0.1
    talk.later(0.1)
    [again] = talk.said()
    talk.refuse("unknown-operation", "fix", REF=again[Key.REF])
    assert request.done
    assert isinstance(request.error, RemoteError)


@pytest.mark.requirement("7.4-4", "10.3-1")
def test_a_request_survives_a_lost_connection_and_says_that_it_was_sent_twice(talk: Talk) -> None:
    """The caller may have to check whether the first request was carried out."""
    request = Request("topic.create", {"topic": "orders"})
    talk.welcome()
    talk.session.request(request, talk.now)
    talk.session.lost(ConnectionLostError("gone"))
    talk.welcome(resumed=True)
    [asked] = talk.said()
    assert asked[Key.OPERATION] == "topic.create"
    assert request.resent


def test_a_withdrawn_request_is_not_sent_again(talk: Talk) -> None:
    """A request that its caller gave up is not carried out later."""
    request = Request("topic.delete", {"topic": "orders"})
    talk.session.request(request, talk.now)
    talk.session.withdraw(request)
    talk.welcome()
    assert talk.said() == []


@pytest.mark.requirement("7.4-7")
def test_a_handle_closed_without_a_connection_is_closed_when_the_session_is_resumed(talk: Talk) -> None:
    """Otherwise the resumed session would keep the place of a closed consumer."""
    talk.welcome()
    attachment = talk.consumer()
    talk.opened()
    talk.session.lost(ConnectionLostError("gone"))
    talk.session.detach(attachment)
    talk.welcome(resumed=True)
    [close] = talk.said()
    assert (close[Key.TYPE], close[Key.HANDLE]) == (Type.CLOSE, 2)


def test_a_session_can_be_gone_on_with_over_another_connection(talk: Talk) -> None:
    """Handles that the other connection left open, and that nobody opens here, are closed."""
    talk.session.inherit(b"s" * 16, {2, 9})
    attachment = talk.consumer()
    talk.session.connect(talk.now)
    [hello] = talk.said()
    assert hello[Key.SESSION] == b"s" * 16
    talk.welcome(resumed=True)
    said = talk.said()
    assert [(header[Key.TYPE], header[Key.HANDLE]) for header in said] == [
        (Type.CLOSE, 9),
        (Type.OPEN_CONSUMER, 2),
    ]
    assert attachment.phase == "opening"


@pytest.mark.requirement("7.5-1")
def test_the_end_says_bye_and_fails_what_waits(talk: Talk) -> None:
    """No call waits for a closed client."""
    talk.welcome()
    request = Request("status", {})
    talk.session.request(request, talk.now)
    talk.said()
    talk.session.end(ClosedError("closed"))
    assert [header[Key.TYPE] for header in talk.said()] == [Type.BYE]
    assert isinstance(request.error, ClosedError)


@pytest.mark.requirement("2.2-15", "5.3-5")
def test_a_broken_frame_costs_the_connection_and_nothing_else(talk: Talk) -> None:
    """The other side broke the protocol: the client reconnects."""
    talk.welcome()
    talk.session.receive([b"\xff"], talk.now)
    assert talk.session.idle
    assert talk.session.trouble is not None
    talk.welcome(resumed=True)
    assert talk.session.phase == "ready"


@pytest.mark.requirement("11.1-5")
def test_an_error_that_does_not_say_what_it_is_about_leaves_nothing_waiting(talk: Talk) -> None:
    """All is asked and sent again over another connection; if that brings another one, all that waits fails with it."""
    talk.welcome()
    producer, consumer = talk.producer(), talk.consumer()
    request = Request("topic.list", {})
    talk.session.request(request, talk.now)
    said = talk.said()
    unclear = {Key.TYPE: Type.ERROR, Key.CODE: "malformed", Key.TEXT: "not CBOR", Key.ACTION: "fix"}
    talk.hear(unclear | {Key.REF: 10**6})  # of a question that nobody waits for any more
    assert talk.session.phase == "ready"
    talk.hear(unclear)
    assert talk.session.idle
    assert not request.done
    talk.welcome(resumed=True)
    again = talk.said()
    assert sorted(header[Key.TYPE] for header in again) == sorted(header[Key.TYPE] for header in said)
    talk.now += 1
    talk.hear(unclear)
    assert talk.session.phase == "ready"
    errors = [request.error, producer.error, consumer.error]
    assert [error.code for error in errors if isinstance(error, RemoteError)] == ["malformed"] * 3
    closed = {header[Key.HANDLE] for header in talk.said() if header[Key.TYPE] == Type.CLOSE}
    assert closed == {producer.handle, consumer.handle}
    later = Request("topic.list", {})
    talk.session.request(later, talk.now)
    (asked,) = talk.said()
    talk.hear({Key.TYPE: Type.RESULT, Key.REF: asked[Key.REF]}, wire.encode_result({"topics": []}))
    assert later.result == {"topics": []}
    talk.now += UNCLEAR_AGAIN_S + 1
    talk.hear(unclear)
    assert talk.session.idle


@pytest.mark.requirement("7.4-1", "11.1-7")
def test_back_off_grows_and_is_bounded() -> None:
    """A broker that is down is asked at growing intervals, up to a maximum."""
    waits = [back_off_s(failures, 1.0) for failures in range(100)]
    assert waits == sorted(waits)
    assert waits[0] == 0.05
    assert waits[-1] == 2.0
    assert back_off_s(0, 0.0) == 0.025


@pytest.mark.requirement("7.7-1")
def test_no_state_is_a_trap() -> None:
    """Every state but the last can be left."""
    states = {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values())
    assert all((state, "end") in TRANSITIONS for state in states - {"ended"})


@given(st.lists(st.lists(st.binary(max_size=30), min_size=1, max_size=3), max_size=6))
def test_any_frames_leave_a_usable_session(messages: list[list[bytes]]) -> None:
    """Whatever was received, the next connection works."""
    session = Session("test", lambda: 0.0)
    session.connect(0.0)
    for frames in messages:
        session.receive(frames, 0.0)
    session.lost(ConnectionLostError("gone"))
    session.connect(1.0)
    assert session.phase == "greeting"


frame_bodies = st.lists(st.binary(max_size=12), max_size=3)
numbers = st.integers(0, 5)
headers = st.fixed_dictionaries(
    {Key.TYPE: st.sampled_from([33, 34, 35, 36, 37, 38, 39, 40, 41, 42])},
    optional={
        Key.REF: numbers,
        Key.HANDLE: numbers,
        Key.SEQUENCE: numbers,
        Key.OFFSET: numbers,
        Key.COUNT: numbers,
        Key.COLUMNS: numbers,
        Key.TIMESTAMPS: st.lists(numbers, max_size=4),
        Key.BYTES: numbers,
        Key.CODE: st.sampled_from(["unknown-handle", "busy", "hello-required", "topic-deleted", "odd"]),
        Key.TEXT: st.text(max_size=3),
        Key.ACTION: st.sampled_from(["retry", "fix", "stop", "odd"]),
        Key.ENDPOINT: st.just("tcp://127.0.0.1:1"),
        Key.SESSION: st.binary(min_size=16, max_size=16),
        Key.BOOT: numbers,
        Key.VERSION: numbers,
        Key.LIMITS: st.dictionaries(numbers, numbers, max_size=3),
        Key.RECEIPTS: st.lists(numbers, max_size=4),
        Key.HEARTBEAT: numbers,
        Key.CLOSED: st.booleans(),
        Key.STRATEGY: st.just("reliable"),
    },
)


@given(said=st.lists(st.tuples(headers, frame_bodies), max_size=12))
def test_any_conversation_leaves_a_usable_session(
    new_talk: type[Talk], said: list[tuple[wire.Header, list[bytes]]]
) -> None:
    """Well-formed frames in any order do not break a client."""
    talk = new_talk()
    talk.welcome()
    publication = talk.producer()
    talk.consumer()
    publication.gathered.begin(talk.now)
    publication.gathered.add(b"x", b"", b"")
    publication.seal()
    for header, body in said:
        talk.hear(header, *body)
        talk.later(0.5)
        if talk.session.idle:
            talk.welcome(resumed=True)
    assert talk.session.phase in ("ready", "greeting", "ended", "idle")
