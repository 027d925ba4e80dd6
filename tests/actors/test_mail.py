"""Tests of mail between two processes' post offices, here in one process, over real ipc sockets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import zmq

from ister.actors import mail as mail_module
from ister.actors.mail import Address, Frames, Mail, message
from ister.actors.process import run_folder
from ister.actors.runtime import Loop
from ister.clock import SystemClock
from ister.errors import UsageError

THERE = Address("there", "sink")

KIBIBYTE = bytes(1024)  # so that the kernel's own buffers hold few notes


@message
@dataclass(frozen=True, slots=True)
class Note:
    number: int
    frames: Frames = ()


class Office:
    """A post office with a loop of its own, which records everything that arrives."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, node: str, boot: int) -> None:
        self.loop = Loop(SystemClock())
        self.mail = Mail(context, folder, node, boot)
        self.got: list[tuple[str, Any]] = []
        self.mail.attach(self.loop, lambda path, note: self.got.append((path, note)))

    def receive(self, count: int, sender: Office | None = None, patience_s: float = 1.0) -> list[int]:
        """Run until `count` notes arrived, or none comes for `patience_s`; return their numbers."""
        idle = 0
        while len(self.got) < count and idle * 0.01 < patience_s:
            before = len(self.got)
            if sender is not None:
                sender.loop.run_once(0)
            self.loop.run_once(0.01)
            idle = idle + 1 if len(self.got) == before else 0
        numbers = [note.number for _, note in self.got]
        self.got.clear()
        return numbers

    def close(self) -> None:
        self.mail.close(0)
        self.loop.close()


class Street:
    """Opens offices in one run folder and closes them all."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.offices: list[Office] = []

    def open(self, node: str, boot: int = 1) -> Office:
        office = Office(self.context, self.folder, node, boot)
        self.offices.append(office)
        return office


@pytest.fixture
def street() -> Iterator[Street]:
    """Return a run folder without post offices."""
    with run_folder() as folder:
        street = Street(folder)
        yield street
        for office in street.offices:
            office.close()
        street.context.destroy(linger=0)


def test_mail_arrives_in_order_with_its_frames(street: Street) -> None:
    """Small frames arrive as bytes, large ones as a view of ZeroMQ's memory, all equal."""
    here, there = street.open("here"), street.open("there")
    here.mail.meet("there", 1)
    sent = [Note(0), Note(1, (b"", b"small")), Note(2, (memoryview(b"x" * 300_000), b"y" * 70_000))]
    for note in sent:
        here.mail.send(THERE, note)
    while len(there.got) < 3:
        there.loop.run_once(1.0)
    assert there.got == [("sink", note) for note in sent]
    assert type(there.got[1][1].frames[1]) is bytes
    assert type(there.got[2][1].frames[0]) is memoryview
    assert (here.mail.sent, there.mail.received) == (3, 3)


def test_mail_for_a_process_nobody_knows_is_dropped_and_said_once(
    street: Street, caplog: pytest.LogCaptureFixture
) -> None:
    """Not an error: it is counted, and logged once however much there is."""
    here = street.open("here")
    for number in range(100):
        here.mail.send(THERE, Note(number))
    assert here.mail.dropped == 100
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_mail_for_a_dead_process_never_reaches_the_next(street: Street) -> None:
    """Mail for boot 1 is not delivered to boot 2 of the same node."""
    here, first = street.open("here"), street.open("there", boot=1)
    here.mail.meet("there", 1)
    here.mail.send(THERE, Note(1))
    assert first.receive(1) == [1]
    first.close()
    street.offices.remove(first)
    for number in range(2, 6):
        here.mail.send(THERE, Note(number))
    here.mail.forget("there", 1)
    second = street.open("there", boot=2)
    here.mail.send(THERE, Note(6))
    here.mail.meet("there", 2)
    here.mail.send(THERE, Note(7))
    assert second.receive(2, patience_s=0.1) == [7]
    assert here.mail.dropped == 1


def test_mail_from_a_process_known_to_be_gone_is_stale(street: Street) -> None:
    """After NodeDown no mail of the dead process is accepted; mail of its successor is."""
    here, old, new = street.open("here"), street.open("there", boot=5), street.open("there", boot=6)
    me = Address("here", "sink")
    here.mail.meet("there", 5)
    old.mail.meet("here", 1)
    new.mail.meet("here", 1)
    old.mail.send(me, Note(1))
    assert here.receive(1) == [1]
    here.mail.forget("there", 5)
    old.mail.send(me, Note(2))
    new.mail.send(me, Note(3))
    assert here.receive(2, patience_s=0.1) == [3]
    assert here.mail.stale == 1


def test_news_of_an_older_boot_are_ignored(street: Street) -> None:
    """NodeUp and NodeDown that come late do not undo later news."""
    here, there = street.open("here"), street.open("there", boot=2)
    here.mail.meet("there", 2)
    here.mail.meet("there", 1)
    here.mail.forget("there", 1)
    here.mail.send(THERE, Note(1))
    assert there.receive(1) == [1]


def test_a_slow_peer_gets_everything_later_and_in_order(street: Street) -> None:
    """Mail that does not fit into the queues waits here, and none overtakes another."""
    here, there = street.open("here"), street.open("there")
    here.mail.meet("there", 1)
    count = 3 * mail_module.QUEUED_MAILS_MAX + 1000
    for number in range(count):
        here.mail.send(THERE, Note(number, (KIBIBYTE,)))
    assert here.mail.sent < count
    assert there.receive(count, sender=here) == list(range(count))
    assert here.mail.dropped == 0


def test_mail_for_a_peer_that_takes_nothing_is_bounded(
    street: Street, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over the limit mail is dropped, counted, and logged once; memory is bounded."""
    monkeypatch.setattr(mail_module, "WAITING_BYTES_MAX", 100_000)
    here, _there = street.open("here"), street.open("there")
    here.mail.meet("there", 1)
    for number in range(6000):
        here.mail.send(THERE, Note(number, (KIBIBYTE,)))
    peer = here.mail._peers["there"]
    assert 0 < peer.waiting_bytes <= 100_000
    assert here.mail.dropped + len(peer.waiting) + here.mail.sent == 6000
    assert here.mail.dropped > 2000
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_malformed_mail_is_dropped_and_the_next_is_read(
    street: Street, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever arrives, the process goes on and reads the next mail."""
    there = street.open("there")
    with street.context.socket(zmq.PUSH) as stranger:
        stranger.connect(f"ipc://{street.folder}/there.1")
        stranger.send(b"\xff\x00nonsense")
        stranger.send_multipart([b"", b"frame", b"frame"])
        here = street.open("here")
        here.mail.meet("there", 1)
        here.mail.send(THERE, Note(1))
        assert there.receive(1) == [1]
        while there.mail.malformed < 2:
            there.loop.run_once(1.0)
    assert "dropped a malformed mail" in caplog.text


def test_a_run_folder_too_long_for_a_socket_is_refused() -> None:
    """The operating system would cut the path, or refuse it without a reason."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with pytest.raises(UsageError, match=r"run folder .* is too long"):
        Mail(context, "/tmp/" + "x" * 100, "here", 1)
    context.destroy(linger=0)
