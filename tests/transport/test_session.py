"""Tests of the table of sessions: every frame has an entry in every state, and late answers change nothing."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.errors import CODES, RemoteError
from ister.transport.session import (
    HANDLE_FRAMES,
    HANDLE_TABLE,
    SESSION_FRAMES,
    Action,
    Session,
    SessionLimits,
    Sessions,
    State,
)
from ister.wire import REQUIRED, Header, Key, Limit, Type


def sessions_of(**changes: int) -> Sessions:
    """Return the sessions of a worker, with tokens 1, 2, ... and some limits changed."""
    limits = {
        "message_bytes_max": 1000,
        "batch_bytes_max": 4000,
        "batches_in_flight_max": 64,
        "producer_window_bytes": 10_000,
        "session_timeout_ms": 15_000,
        "handles_max": 4,
        "credit_messages_max": 100,
        "credit_bytes_max": 1000,
        "heartbeat_ms": 5000,
        "sessions_max": 3,
    }
    tokens = itertools.count(1)
    return Sessions(99, SessionLimits(**(limits | changes)), lambda: next(tokens).to_bytes(16))


def hello(sessions: Sessions, routing: bytes, *, token: bytes | None = None, now_s: float = 0.0) -> Session:
    """Send HELLO, and return the session."""
    header: Header = {Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.CLIENT: "test"}
    if token is not None:
        header[Key.SESSION] = token
    sessions.hello(routing, header, now_s)
    return sessions.of_routing(routing)


def frame(kind: int, handle: int = 1, topic: str = "t", subscription: str = "s") -> Header:
    """Return the header of a frame about a handle."""
    header: Header = {Key.TYPE: kind, Key.HANDLE: handle, Key.TOPIC: topic}
    if kind == Type.OPEN_CONSUMER:
        header[Key.SUBSCRIPTION] = subscription
    return header


# ---- the table -------------------------------------------------------------------------------------------------


def test_every_frame_about_a_handle_has_an_entry_in_every_state() -> None:
    """For every state and frame it is decided what happens."""
    about_handles = {kind for kind, keys in REQUIRED.items() if kind < 32 and Key.HANDLE in keys}
    assert about_handles == HANDLE_FRAMES
    assert set(HANDLE_TABLE) == set(itertools.product(get_args(State), HANDLE_FRAMES))
    assert set(HANDLE_TABLE.values()) <= set(get_args(Action))


def test_every_frame_of_a_client_is_known() -> None:
    """Clients' frames are those that the codec numbers below 32, and none of the broker's."""
    assert {kind for kind in REQUIRED if kind < 32} == SESSION_FRAMES


@pytest.mark.requirement("6.1-1")
@pytest.mark.parametrize(("state", "kind"), sorted(HANDLE_TABLE))
def test_each_entry_is_what_step_does(state: State, kind: int) -> None:
    """`step` returns the table's action, or raises the error in the table."""
    sessions = sessions_of()
    session = hello(sessions, b"a")
    if state != "absent":
        opener = (
            Type.OPEN_CONSUMER if state == "consumer" or kind == Type.OPEN_CONSUMER else Type.OPEN_PRODUCER
        )
        _, handle = sessions.step(session, frame(opener))
        if state == "producer":
            handle.state = "producer"
        elif state == "consumer":
            assert sessions.opened(handle, handle.generation, "consumer")
    action = HANDLE_TABLE[state, kind]
    errors = {"unknown": "unknown-handle", "in-use": "handle-in-use"}
    if action in errors:
        with pytest.raises(RemoteError) as raised:
            sessions.step(session, frame(kind))
        assert raised.value.code == errors[action]
    else:
        taken, handle = sessions.step(session, frame(kind))
        assert taken == action
        assert handle.state == ("opening" if action == "open" else state)


@pytest.mark.parametrize(
    ("state", "kind"), [entry for entry in sorted(HANDLE_TABLE) if HANDLE_TABLE[entry] == "ignore"]
)
def test_what_is_ignored_is_answered_where_it_is_a_question(state: State, kind: int) -> None:
    """With a REF, the answer is that the handle is not open."""
    sessions = sessions_of()
    session = hello(sessions, b"a")
    if state == "opening":
        sessions.step(session, frame(Type.OPEN_CONSUMER))
    with pytest.raises(RemoteError) as raised:
        sessions.step(session, frame(kind) | {Key.REF: 5})
    assert raised.value.code == "unknown-handle"


# ---- hello -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("7.1-3")
def test_welcome_announces_the_limits() -> None:
    """WELCOME has every limit that a client must keep."""
    before, welcome = sessions_of().hello(b"a", {Key.TYPE: Type.HELLO, Key.VERSION: [3, 1]}, 0.0)
    assert before is None
    assert welcome[Key.TYPE] == Type.WELCOME
    assert (welcome[Key.VERSION], welcome[Key.BOOT], welcome[Key.RESUMED]) == (1, 99, False)
    assert welcome[Key.HEARTBEAT] == 5000
    assert welcome[Key.LIMITS] == {
        Limit.MESSAGE_BYTES_MAX: 1000,
        Limit.BATCH_BYTES_MAX: 4000,
        Limit.BATCHES_IN_FLIGHT_MAX: 64,
        Limit.PRODUCER_WINDOW_BYTES: 10_000,
        Limit.SESSION_TIMEOUT_MS: 15_000,
        Limit.HANDLES_MAX: 4,
        Limit.CREDIT_MESSAGES_MAX: 100,
        Limit.CREDIT_BYTES_MAX: 1000,
    }


@pytest.mark.requirement("12-4")
def test_every_welcome_has_every_limit() -> None:
    """Also that of a resumed session: a client goes by the last one, and need not remember."""
    sessions = sessions_of()
    asked: Header = {Key.TYPE: Type.HELLO, Key.VERSION: [1]}
    _, first = sessions.hello(b"a", asked, 0.0)
    _, again = sessions.hello(b"b", asked | {Key.SESSION: first[Key.SESSION]}, 1.0)
    assert again[Key.RESUMED]
    for welcome in (first, again):
        assert set(welcome[Key.LIMITS]) == set(range(1, 9))
        assert all(limit > 0 for limit in welcome[Key.LIMITS].values())


@pytest.mark.requirement("7.1-4", "15-1")
@pytest.mark.parametrize("versions", [[2], 2, [0, 7]])
def test_a_version_nobody_speaks_is_refused(versions: object) -> None:
    """The client gets an error, and no session is made."""
    sessions = sessions_of()
    with pytest.raises(RemoteError) as raised:
        sessions.hello(b"a", {Key.TYPE: Type.HELLO, Key.VERSION: versions}, 0.0)
    assert (raised.value.code, CODES[raised.value.code]) == ("unsupported-version", "stop")
    assert len(sessions) == 0


@pytest.mark.requirement("1.1-3")
def test_without_hello_there_is_no_session() -> None:
    """A socket's routing id identifies no session."""
    with pytest.raises(RemoteError) as raised:
        sessions_of().of_routing(b"a")
    assert (raised.value.code, raised.value.action) == ("hello-required", "retry")


@pytest.mark.requirement("7.2-1")
def test_a_session_moves_to_the_connection_that_names_it() -> None:
    """A resumed session keeps its handles; its former connection has none any more."""
    sessions = sessions_of()
    session = hello(sessions, b"a")
    _, handle = sessions.step(session, frame(Type.OPEN_PRODUCER))
    assert hello(sessions, b"b", token=session.token) is session
    assert session.routing == b"b"
    assert session.handles == {1: handle}
    with pytest.raises(RemoteError):
        sessions.of_routing(b"a")
    sessions.drop_routing(b"a")  # the end of the old connection is noticed late, and changes nothing
    assert session.routing == b"b"
    assert len(sessions) == 1


def test_a_connection_may_resume_its_own_session() -> None:
    """HELLO with the session that the connection already has changes nothing."""
    sessions = sessions_of()
    session = hello(sessions, b"a")
    again: Header = {Key.TYPE: Type.HELLO, Key.VERSION: 1, Key.SESSION: session.token}
    before, welcome = sessions.hello(b"a", again, 0.0)
    assert before is None
    assert welcome[Key.RESUMED] is True
    assert sessions.of_routing(b"a") is session


@pytest.mark.requirement("7.1-6")
def test_hello_for_another_session_ends_the_one_before() -> None:
    """A connection has one session: a client that repeats HELLO without it does not use up those of others."""
    sessions = sessions_of(sessions_max=1)
    session = hello(sessions, b"a")
    for _ in range(5):
        before, welcome = sessions.hello(b"a", {Key.TYPE: Type.HELLO, Key.VERSION: [1]}, 0.0)
        assert before is session
        assert before.routing is None
        sessions.end(before)
        session = sessions.of_routing(b"a")
        assert session.token == welcome[Key.SESSION]
    assert len(sessions) == 1


def test_an_unknown_session_is_a_new_one() -> None:
    """A token of an earlier run, or an invented one, is answered with a new session and token."""
    assert hello(sessions_of(), b"a", token=b"x" * 16).token != b"x" * 16


@pytest.mark.requirement("7.1-8")
def test_sessions_are_bounded() -> None:
    """A full worker answers "try again"; a client that resumes is let in."""
    sessions = sessions_of(sessions_max=2)
    first = hello(sessions, b"a")
    hello(sessions, b"b")
    with pytest.raises(RemoteError) as raised:
        hello(sessions, b"c")
    assert (raised.value.code, raised.value.action) == ("limit-exceeded", "retry")
    assert hello(sessions, b"c", token=first.token) is first
    sessions.end(first)
    assert hello(sessions, b"a") is not first


@pytest.mark.requirement("7.3-5")
def test_silence_ends_a_session_and_speaking_keeps_it() -> None:
    """A session is silent when its timeout has passed since its last frame, and not earlier."""
    sessions = sessions_of(session_timeout_ms=1000)
    session = hello(sessions, b"a", now_s=10.0)
    assert sessions.lost(11.0) == []
    assert sessions.lost(11.01) == [session]
    session.heard_at_s = 11.0
    assert sessions.lost(11.5) == []


# ---- handles ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("12-3")
def test_handles_are_bounded() -> None:
    """A session has a limited number of handles; closing one makes room."""
    sessions = sessions_of(handles_max=2)
    session = hello(sessions, b"a")
    _, first = sessions.step(session, frame(Type.OPEN_PRODUCER, 1))
    sessions.step(session, frame(Type.OPEN_CONSUMER, 2))
    with pytest.raises(RemoteError) as raised:
        sessions.step(session, frame(Type.OPEN_PRODUCER, 3))
    assert raised.value.code == "limit-exceeded"
    assert set(session.handles) == {1, 2}
    sessions.closed(first)
    sessions.step(session, frame(Type.OPEN_PRODUCER, 3))


@pytest.mark.requirement("6.1-2")
@pytest.mark.parametrize(
    "again",
    [
        frame(Type.OPEN_CONSUMER, topic="u"),
        frame(Type.OPEN_CONSUMER, subscription="z"),
        frame(Type.OPEN_PRODUCER),
        frame(Type.OPEN_PRODUCER) | {Key.SUBSCRIPTION: "s"},
    ],
)
def test_a_handle_is_opened_again_only_for_what_it_was(again: Header) -> None:
    """A number in use for something else is refused, also while that is still opening.

    A producer in a consumer's place would have left the consumer there for ever, and its Exclusive subscription busy.
    """
    sessions = sessions_of()
    session = hello(sessions, b"a")
    sessions.step(session, frame(Type.OPEN_CONSUMER))
    with pytest.raises(RemoteError) as raised:
        sessions.step(session, again)
    assert raised.value.code == "handle-in-use"
    assert sessions.step(session, frame(Type.OPEN_CONSUMER))[0] == "open"


def test_a_late_answer_to_an_earlier_open_changes_nothing() -> None:
    """Only the answer to the last open opens a handle."""
    sessions = sessions_of()
    session = hello(sessions, b"a")
    _, handle = sessions.step(session, frame(Type.OPEN_PRODUCER))
    earlier = handle.generation
    sessions.step(session, frame(Type.OPEN_PRODUCER))
    assert not sessions.opened(handle, earlier, "producer")
    assert handle.state == "opening"
    assert sessions.opened(handle, handle.generation, "producer")
    assert not sessions.opened(handle, handle.generation, "producer")


def test_a_closed_handle_does_not_come_back() -> None:
    """The answer to an open that was closed meanwhile is dropped, also when the number is in use again."""
    sessions = sessions_of()
    session = hello(sessions, b"a")
    _, handle = sessions.step(session, frame(Type.OPEN_PRODUCER))
    sessions.closed(handle)
    _, another = sessions.step(session, frame(Type.OPEN_PRODUCER))
    assert not sessions.opened(handle, handle.generation, "producer")
    sessions.closed(handle)  # repeated, and late
    assert session.handles == {1: another}


_CALLS = st.lists(
    st.tuples(
        st.sampled_from(["hello", "resume", "lose", "end", "step"]),
        st.integers(0, 4),
        st.integers(0, 5),
        st.sampled_from(sorted(HANDLE_FRAMES)),
    ),
    max_size=40,
)


@given(_CALLS)
def test_connections_and_sessions_belong_together_whatever_happens(
    calls: list[tuple[str, int, int, int]],
) -> None:
    """A connection has at most one session, a session at most one connection, and the limits hold."""
    sessions = sessions_of()
    tokens: list[bytes] = []
    for what, connection, number, kind in calls:
        routing = b"%d" % connection
        header: Header = {Key.TYPE: Type.HELLO, Key.VERSION: 1}
        try:
            if what == "resume" and tokens:
                header[Key.SESSION] = tokens[number % len(tokens)]
            if what in ("hello", "resume"):
                before, welcome = sessions.hello(routing, header, 0.0)
                tokens.append(welcome[Key.SESSION])
                if before is not None:
                    sessions.end(before)
            elif what == "lose":
                sessions.drop_routing(routing)
            elif what == "end":
                sessions.end(sessions.of_routing(routing))
            else:
                sessions.step(sessions.of_routing(routing), frame(kind, number))
        except RemoteError:
            pass
        routings = [session.routing for session in sessions if session.routing is not None]
        assert len(routings) == len(set(routings))
        for each in (b"%d" % number for number in range(5)):
            if each in routings:
                assert sessions.of_routing(each).routing == each
            else:
                with pytest.raises(RemoteError):
                    sessions.of_routing(each)
        assert len(sessions) <= sessions.limits.sessions_max
        assert all(len(session.handles) <= sessions.limits.handles_max for session in sessions)
