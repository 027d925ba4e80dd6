"""Tests of what PROTOCOL.md requires of every client, as far as no other test shows it."""

from __future__ import annotations

import dataclasses
import logging

import cbor2
import pytest
import zmq

import ister
from ister import testing, wire
from ister.errors import CODES, RemoteProtocolError
from ister.outstanding import Request
from ister.wire import Key, Limit, Type
from tests.ister.conftest import Talk


@pytest.fixture
def talk() -> Talk:
    """Return a session that got WELCOME, with a heartbeat of a second."""
    talk = Talk()
    talk.welcome()
    talk.said()
    return talk


@pytest.mark.requirement("4.1-1", "7.4-4")
def test_a_number_of_a_question_is_never_used_again(talk: Talk) -> None:
    """A repeated request has a new REF, over all connections of a session."""
    talk.consumer()
    talk.session.request(Request("topic.list", {}), talk.now)
    refs = [header[Key.REF] for header in talk.said() if Key.REF in header]
    for _ in range(3):
        talk.session.lost(ister.ConnectionLostError("a test"))
        talk.welcome(resumed=True)
        refs += [header[Key.REF] for header in talk.said() if Key.REF in header]
    assert len(refs) == len(set(refs)) == 8


@pytest.mark.requirement("4.1-8")
@pytest.mark.parametrize("kind", [Type.DONE, Type.RESULT, Type.OPENED, Type.MOVED, Type.ERROR])
def test_an_answer_that_nobody_waits_for_changes_nothing(talk: Talk, kind: int) -> None:
    """An answer with an unknown REF is ignored, and the session goes on."""
    request = Request("topic.list", {})
    talk.session.request(request, talk.now)
    (asked,) = talk.said()
    talk.hear(
        {
            Key.TYPE: kind,
            Key.REF: asked[Key.REF] + 1000,
            Key.HANDLE: 99,
            Key.ENDPOINT: "tcp://127.0.0.1:1",
            Key.CODE: "unknown-topic",
            Key.TEXT: "none of yours",
            Key.ACTION: "fix",
        }
    )
    assert (talk.session.phase, request.done, talk.said()) == ("ready", False, [])


@pytest.mark.requirement("7.3-2", "7.3-1")
def test_one_ping_in_a_heartbeat_however_often_it_looks(talk: Talk) -> None:
    """One silence is the reason for one PING; after the answer, the next comes a heartbeat later."""
    pings = 0
    for _ in range(100):  # ten heartbeats of a second
        talk.later(0.1)
        said = talk.said()
        pings += len(said)
        if said:
            talk.later(0.35)
            assert talk.said() == []
            talk.hear({Key.TYPE: Type.PONG, Key.BOOT: 1})
    assert talk.session.phase == "ready"
    assert 5 <= pings <= 14


@pytest.mark.requirement("9.7-1", "15-2")
def test_an_event_of_a_later_version_changes_nothing(talk: Talk) -> None:
    """The program can read the unknown event, and the consumer goes on."""
    attachment = talk.consumer()
    talk.opened()
    talk.hear({Key.TYPE: Type.EVENT, Key.HANDLE: 2, Key.CODE: "of-tomorrow", Key.COUNT: 3, 4000: "x"})
    talk.hear({Key.TYPE: Type.DONE, Key.REF: 1 << 40})
    assert talk.session.phase == "ready"
    assert attachment.session is talk.session


@pytest.mark.requirement("11.1-3", "11.1-2")
@pytest.mark.parametrize("action", ["retry", "fix", "stop"])
def test_a_code_of_a_later_version_goes_by_its_action(talk: Talk, action: str) -> None:
    """`retry` is retried; any other action makes it the answer."""
    code = "made-up-tomorrow"
    assert code not in CODES
    request = Request("topic.list", {})
    talk.session.request(request, talk.now)
    (asked,) = talk.said()
    talk.refuse(code, action, REF=asked[Key.REF])
    assert request.done is (action != "retry")
    talk.later(0.9)
    assert len(talk.said()) == (1 if action == "retry" else 0)


@pytest.mark.requirement("12-1")
def test_the_last_welcome_has_the_limits_that_count(talk: Talk) -> None:
    """Limits may change with the worker or its restart; an unknown limit is ignored."""
    before = talk.session.limits.message_bytes_max
    talk.session.lost(ister.ConnectionLostError("a test"))
    talk.session.connect(talk.now)
    talk.hear(
        {
            Key.TYPE: Type.WELCOME,
            Key.VERSION: 1,
            Key.SESSION: bytes(16),
            Key.BOOT: 2,
            Key.LIMITS: {Limit.MESSAGE_BYTES_MAX: before + 1, 4000: 1},
            Key.HEARTBEAT: 1000,
        }
    )
    assert talk.session.limits.message_bytes_max == before + 1


@pytest.mark.requirement("12-5")
def test_a_limit_that_a_welcome_leaves_out_is_not_taken_for_none(talk: Talk) -> None:
    """Nor for the one of the WELCOME before: the client has a limit of its own, and keeps to it."""
    talk.welcome()
    talk.session.lost(ister.ConnectionLostError("a test"))
    talk.session.connect(talk.now)
    welcome = {
        Key.TYPE: Type.WELCOME,
        Key.VERSION: 1,
        Key.SESSION: bytes(16),
        Key.BOOT: 2,
        Key.HEARTBEAT: 1000,
    }
    talk.hear(welcome | {Key.LIMITS: {}})
    assert talk.session.phase == "ready"
    assert talk.session.limits == wire.Limits()
    assert all(0 < limit < 1 << 32 for limit in dataclasses.astuple(talk.session.limits))


@pytest.mark.requirement("12-4")
def test_a_welcome_without_limits_is_none() -> None:
    """LIMITS is a required key: the frame costs the connection."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_header(cbor2.dumps({0: 33, 22: 1, 20: bytes(16), 21: 2, 33: 1000}))


@pytest.mark.requirement("1.2-1", "1.2-2", "1.2-3")
def test_the_clients_socket_queues_nothing_by_count_and_keeps_nothing_of_a_broken_connection() -> None:
    """No high-water marks, no linger while it runs, and a monitor that reports the end of a connection."""
    with testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        connection = client.network.home
        found = connection._socket
        assert found is not None
        assert found.getsockopt(zmq.TYPE) == zmq.DEALER
        assert (found.sndhwm, found.rcvhwm, found.linger) == (0, 0, 0)
        assert connection._monitor is not None


@pytest.mark.requirement("16-1")
def test_the_secret_of_a_session_is_in_no_log_and_in_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A reader of a client's log cannot resume its session."""
    with caplog.at_level(logging.DEBUG), testing.Broker() as broker:
        with ister.connect(broker.endpoint) as client:
            connection = client.network.home
            secret = connection.session.secret
            assert secret is not None
            assert len(secret) == 16
            with pytest.raises(ister.IsterError) as raised:
                client.delete_topic("nowhere")
        written = caplog.text + repr(raised.value) + repr(connection) + repr(client)
    assert secret.hex() not in written
    assert repr(secret)[2:-1] not in written


@pytest.mark.requirement("15-5")
def test_the_documents_keys_are_below_1024() -> None:
    """Keys from 1024 on are for private extensions, and ignored here."""
    assert all(value < 1024 for name, value in vars(Key).items() if name.isupper())
