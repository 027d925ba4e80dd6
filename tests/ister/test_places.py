"""Tests of impossible endpoints: an error at once that says what is wrong."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import ister
import ister.aio
from ister import places, testing
from ister.connection import Connection
from ister.errors import ConnectionLostError, UsageError

WRONG: list[tuple[Any, str]] = [
    ("127.0.0.1:5555", "looks like tcp://"),
    ("", "looks like tcp://"),
    ([], "at least one"),
    ([5], "looks like tcp://"),
    (["tcp://a:1", ""], "looks like tcp://"),
    ("http://127.0.0.1:5555", "not by http"),
    ("amqp://broker", "not by amqp"),
    ("ipc:///tmp/x", "not by ipc"),
    ("tcp://127.0.0.1", "looks like tcp://"),
    ("tcp://127.0.0.1:0", "port"),
    ("tcp://127.0.0.1:65536", "port"),
    ("tcp://:5555", "looks like tcp://"),
    ("tcp://*:5555", "where a broker listens"),
    ("tcp://0.0.0.0:5555", "where a broker listens"),
    ("tcp://there is no such host:5555", "looks like tcp://"),
]


@pytest.mark.parametrize(("value", "told"), WRONG)
def test_endpoints_look_like_endpoints(value: Any, told: str) -> None:
    """The error has an example, in both clients, and comes long before any time-out."""
    with pytest.raises(UsageError, match=told):
        ister.connect(value, timeout=600)

    async def connecting() -> None:
        await ister.aio.connect(value, timeout=600)

    with pytest.raises(UsageError, match=told):
        asyncio.run(connecting())


@pytest.mark.parametrize(
    "value", ["tcp://127.0.0.1:1", "tcp://[::1]:65535", "tcp://a-b.c_d:5555", ["tcp://x:1"]]
)
def test_what_is_an_endpoint_is_taken(value: Any) -> None:
    """Names, IPv4 and IPv6 addresses, one endpoint or several."""
    assert places.endpoints(value) == ([value] if isinstance(value, str) else value)


def test_a_host_that_does_not_exist_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless another endpoint may work, or the resolver cannot tell at the moment."""

    def resolve(host: str, *_: object, **__: object) -> list[object]:
        if host == "perhaps":
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError, match="no host 'nowhere'") as caught:
        ister.connect("tcp://nowhere:5555", timeout=600)
    assert caught.value.code == "unknown-host"
    with pytest.raises(UsageError, match="'nowhere' or 'neither'"):
        places.check_hosts(["tcp://nowhere:5555", "tcp://neither:5555"])
    places.check_hosts(["tcp://nowhere:5555", "tcp://perhaps:5555"])
    places.check_hosts(["tcp://nowhere:5555", "tcp://127.0.0.1:5555"])

    async def connecting() -> None:
        await ister.aio.connect("tcp://nowhere:5555", timeout=600)

    with pytest.raises(UsageError, match="no host"):
        asyncio.run(connecting())


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:5555", "tcp://no..host:5555"])
def test_the_command_line_says_so_too(endpoint: str) -> None:
    """A usage error without a traceback, and without waiting for the time-out.

    The name needs no resolver: those of some machines answer late, or that they cannot tell.
    """
    command = [sys.executable, "-m", "ister", "status", "--endpoint", endpoint, "--timeout", "600"]
    done = subprocess.run(command, capture_output=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.requirement("1.2-3")
def test_a_program_is_told_when_its_broker_goes_and_comes(
    broker: testing.Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """By a callback, by `events`, and in its log."""
    told: list[ister.BrokerEvent] = []
    with ister.connect(broker.endpoint, timeout=20, on_event=told.append) as client:
        assert [(event.code, event.endpoint) for event in client.events] == [("connected", broker.endpoint)]
        broker.disconnect()
        client.status(timeout=20)
        client.network.waits.wait(None, lambda: len(client.events) == 3, client.network.deadline(20))
        assert [event.code for event in client.events] == ["connected", "lost", "connected"]
        client.status(timeout=20)
        until(lambda: len(told) == 3)  # by the thread that moved the frames, after it released the lock
        assert told == list(client.events)
    assert told[1].text
    assert f"the connection to {broker.endpoint} was lost" in caplog.text
    assert len(told) == 3  # closing is no loss


def until(so: Callable[[], bool]) -> None:
    """Wait until another thread has done something."""
    deadline = time.monotonic() + 60
    while not so():
        assert time.monotonic() < deadline, "it never is so"
        time.sleep(0.01)


def test_a_program_is_told_of_a_connection_that_is_there_at_once(
    broker: testing.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread may have connected before `connect` goes on."""
    start = Connection.start

    def connected(self: Connection) -> None:
        start(self)
        while self.session.phase != "ready":  # the caller holds the lock
            self.service()
            time.sleep(0.01)

    monkeypatch.setattr(Connection, "start", connected)
    told: list[ister.BrokerEvent] = []
    with ister.connect(broker.endpoint, timeout=20, on_event=told.append):
        until(lambda: [event.code for event in told] == ["connected"])


def test_a_program_in_a_loop_is_told_there(broker: testing.Broker) -> None:
    """Callbacks run in the loop's thread."""

    async def scene() -> None:
        told: asyncio.Queue[ister.BrokerEvent] = asyncio.Queue()
        async with ister.aio.connect(broker.endpoint, timeout=20, on_event=told.put_nowait) as client:
            assert (await told.get()).code == "connected"
            broker.disconnect()
            assert (await told.get()).code == "lost"
            assert (await told.get()).code == "connected"
            assert len(list(client.events)) == 3

    asyncio.run(scene())


def test_a_broker_that_never_was_there_is_no_loss() -> None:
    """`connect` raises its error instead."""
    told: list[ister.BrokerEvent] = []
    with pytest.raises(ConnectionLostError):
        ister.connect("tcp://127.0.0.1:1", timeout=0.2, on_event=told.append)
    assert told == []


def test_ctrl_c_while_frames_are_moved_is_no_warning(
    broker: testing.Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The program itself interrupted the connection: an event is told, and nothing is printed."""
    with ister.connect(broker.endpoint, timeout=20) as client:
        with client.network.lock:
            client.network.home.interrupted(KeyboardInterrupt())
        client.status(timeout=20)
        assert [event.code for event in client.events] == ["connected", "lost", "connected"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
