"""Tests of a topic's producers and watchers: one handle per producer id, and none is told anything after it left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ister.actors.messages import CloseProducer, OpenProducer
from ister.actors.publishers import Publisher, Publishers, producer_of
from ister.actors.runtime import Address, Ref, System
from ister.actors.topic import Watchers
from ister.errors import RemoteError
from ister.storage.meta import TopicMeta
from ister.transport.gateway import Gateway
from ister.transport.session import Handle
from ister.wire import RECEIPTS_MAX, Key, Type

TOPIC = cast(Ref, "topic")
META = TopicMeta("orders", bytes(16), "reliable", "fsync", 0)
GONE = RemoteError("topic-deleted", "it is gone")


class Asking(SimpleNamespace):
    """A handle of a test; no two are equal."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class Front:
    """A gateway that records what is sent; every handle that asks is opened."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.errors: list[tuple[int, str]] = []
        self.closed: list[int] = []  # producer ids
        self.sessions = SimpleNamespace(
            opened=self.opened, limits=SimpleNamespace(producer_window_bytes=1000)
        )
        self.session = SimpleNamespace(handles={})
        self.publishers = Publishers(TOPIC, META, cast(Gateway, self), on_closed=self.closed.append)

    def opened(self, handle: Any, generation: int, state: str) -> bool:
        handle.state = state
        return bool(handle.generation == generation)

    def send(self, _session: object, header: Any) -> None:
        self.sent.append((header[Key.TYPE], header.get(Key.HANDLE, header.get(Key.REF))))

    def send_error(self, _session: object, error: RemoteError, echo: Any) -> None:
        self.errors.append((echo[Key.HANDLE], error.code))

    def forget(self, handle: Any, _error: object = None) -> None:
        handle.state = "closed"
        self.session.handles.pop(handle.number, None)

    def handle(self, number: int) -> Handle:
        """Return a handle that asks to publish."""
        handle = Asking(number=number, generation=1, state="opening", target=None, session=self.session)
        self.session.handles[number] = handle
        return cast(Handle, handle)

    def open(self, handle: Handle, producer_id: int) -> None:
        """Let a handle publish under a producer id."""
        self.publishers.open(OpenProducer(handle, 1, 50, producer_id, 0), 4)


@pytest.fixture
def front() -> Front:
    """Return a gateway, and a topic's publishers."""
    return Front()


def test_an_id_belongs_to_the_handle_that_opened_last(front: Front) -> None:
    """The older handle is closed with a reason; one that was closed before is not."""
    handles = [front.handle(number) for number in range(3)]
    front.open(handles[0], 7)
    front.open(handles[1], 7)
    front.session.handles.pop(1)
    front.open(handles[2], 7)
    assert front.publishers.handles == {7: handles[2]}
    assert front.errors == [(0, "producer-fenced")]
    assert handles[2].target == Publisher(TOPIC, 7)
    assert [producer_of(handle) for handle in (handles[2], front.handle(9))] == [7, 0]


def test_a_handle_that_opens_for_another_producer_leaves_the_one_before(front: Front) -> None:
    """A client may use a handle's number again for another producer."""
    handle = front.handle(1)
    front.open(handle, 7)
    handle.state = "opening"
    front.open(handle, 8)
    assert front.publishers.handles == {8: handle}


@pytest.mark.parametrize(("generation", "state"), [(2, "opening"), (1, "closed"), (1, "producer")])
def test_what_was_closed_or_opened_again_meanwhile_is_left_alone(
    front: Front, generation: int, state: str
) -> None:
    """It is neither opened nor refused: the close has answered it."""
    handle = front.handle(1)
    handle.generation, handle.state = generation, state  # type: ignore[assignment]
    front.open(handle, 7)
    front.publishers.refuse_open(OpenProducer(handle, 1, 50, 7, 0), GONE)
    assert (front.publishers.handles, front.sent, front.errors) == ({}, [], [])


@pytest.mark.parametrize(
    ("generation", "ref", "here", "closed"),
    [
        (1, 5, False, [7]),
        (1, None, False, []),
        (2, 5, True, []),
    ],  # with its receipts; its session ended; opened again
)
def test_a_producer_that_closes_with_its_receipts_need_not_be_remembered(
    front: Front, generation: int, ref: int | None, here: bool, closed: list[int]
) -> None:
    """One whose session ended may come back; a handle that was opened again is kept."""
    handle = front.handle(1)
    front.open(handle, 7)
    handle.generation = generation
    front.publishers.closed(CloseProducer(handle, 1, ref))
    assert (7 in front.publishers.handles, front.closed) == (here, closed)
    assert ((Type.DONE, 5) in front.sent) == (ref is not None)


def test_receipts_are_sent_so_many_a_frame(front: Front) -> None:
    """A frame holds a limited number of receipts."""
    handle = front.handle(1)
    front.publishers.receipt({handle: [0] * (2 * RECEIPTS_MAX + 2)})
    assert front.sent == [(Type.RECEIPT, 1)] * 2


def test_all_are_sent_away(front: Front) -> None:
    """Each gets the error."""
    for number in range(3):
        front.open(front.handle(number), number + 1)
    front.publishers.send_away(GONE)
    assert (front.publishers.handles, front.errors) == ({}, [(n, "topic-deleted") for n in range(3)])


def test_who_watches_is_told() -> None:
    """Once each, however often it attached; not after it left, or its process went down."""
    told: list[tuple[Address, object]] = []
    system = SimpleNamespace(at=lambda to: SimpleNamespace(tell=lambda what: told.append((to, what))))
    watchers = Watchers(cast(System, system))
    here, there, gone = Address("worker-0", "a"), Address("worker-1", "b"), Address("worker-0", "c")
    for address in (here, there, gone, here):
        watchers.add(address)
    watchers.remove(gone)
    watchers.tell("news")
    assert told == [(here, "news"), (there, "news")]
    watchers.node_stopped("worker-0")
    watchers.tell("more")
    assert told[2:] == [(there, "more")]


def test_a_wider_window_is_granted_and_shared_by_many(front: Front) -> None:
    """The first eight have it whole; the more there are, the less a new one gets, and never less than is usual."""
    wide = Publishers(TOPIC, META, cast(Gateway, front), on_closed=front.closed.append, window_bytes_max=8000)
    granted: list[int] = []
    front.send = lambda _session, header: granted.append(header[Key.BYTES])  # type: ignore[method-assign]
    for number in range(1, 101):
        wide.open(OpenProducer(front.handle(number), 1, 50, number, 0), 0)
    assert granted[:8] == [8000] * 8
    assert granted[8:16] == [64_000 // number for number in range(9, 17)]
    assert granted[-1] == 1000
    assert granted == sorted(granted, reverse=True)
