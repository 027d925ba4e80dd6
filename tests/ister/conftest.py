"""Fixtures for the client's tests: a session without a socket, and a broker in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ister
from ister import bodies, testing, wire
from ister.attachment import Attachment
from ister.clientsession import Session
from ister.message import Event
from ister.publication import Publication
from ister.wire import Key, Limit, Type

LIMITS = {
    Limit.MESSAGE_BYTES_MAX: 1000,
    Limit.BATCH_BYTES_MAX: 4000,
    Limit.BATCHES_IN_FLIGHT_MAX: 4,
    Limit.PRODUCER_WINDOW_BYTES: 3000,
}


class Talk:
    """The broker's side of a session without a socket: read the client's frames, and answer them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.session = Session("test", lambda: 0.0)
        self.callbacks: deque[Callable[[], Any]] = deque()
        self.boot = 1

    def said(self) -> list[wire.Header]:
        """Return the headers of the frames sent since the last call."""
        return [header for header, _ in self.frames()]

    def frames(self) -> list[tuple[wire.Header, list[bytes]]]:
        """Return the frames sent since the last call, with their bodies."""
        outbox = list(self.session.outbox)
        self.session.outbox.clear()
        return [(wire.decode_header(frames[0]), list(frames[1:])) for frames in outbox]

    def hear(self, header: wire.Header, *body: bytes) -> None:
        """Send the client a frame."""
        self.session.receive([wire.encode_header(header), *body], self.now)

    def welcome(self, *, resumed: bool = False, heartbeat: int = 1000) -> None:
        """Connect, and send WELCOME."""
        self.session.connect(self.now)
        self.said()
        self.hear(
            {
                Key.TYPE: Type.WELCOME,
                Key.VERSION: 1,
                Key.SESSION: bytes(16),
                Key.BOOT: self.boot,
                Key.LIMITS: LIMITS,
                Key.HEARTBEAT: heartbeat,
                Key.RESUMED: resumed,
            }
        )

    def refuse(self, code: str, action: str, **echo: int | bool) -> None:
        """Send an ERROR; `echo` has header fields by key name."""
        header: wire.Header = {Key.TYPE: Type.ERROR, Key.CODE: code, Key.TEXT: code, Key.ACTION: action}
        self.hear(header | {getattr(Key, name): value for name, value in echo.items()})

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.session.tick(self.now)

    def producer(
        self, *, batch_bytes: int | None = 100, linger_s: float = 0.001, window: int | None = None
    ) -> Publication:
        """Open a producer, handle 1."""
        publication = Publication(
            1,
            "orders",
            77,
            batch_bytes=batch_bytes,
            linger_s=linger_s,
            window_bytes=window,
            callbacks=self.callbacks,
        )
        self.session.attach(publication)
        return publication

    def consumer(self, **given: Any) -> Attachment:
        """Open a consumer, handle 2."""
        kept: dict[str, Any] = {
            "start": "earliest",
            "priority": 0,
            "arguments": {},
            "credit_messages": 100,
            "credit_bytes": 10_000,
            "on_event": None,
        }
        attachment = Attachment(
            2, "orders", "billing", given.pop("kind", "exclusive"), callbacks=self.callbacks, **(kept | given)
        )
        self.session.attach(attachment)
        return attachment

    def opened(self, **more: Any) -> None:
        """Answer the newest OPEN_*."""
        asked = [
            header for header in self.said() if header[Key.TYPE] in (Type.OPEN_PRODUCER, Type.OPEN_CONSUMER)
        ][-1]
        answer: wire.Header = {Key.TYPE: Type.OPENED, Key.REF: asked[Key.REF], Key.HANDLE: asked[Key.HANDLE]}
        if asked[Key.TYPE] == Type.OPEN_PRODUCER:
            answer |= {Key.SEQUENCE: asked.get(Key.SEQUENCE, 0), Key.BYTES: 3000, Key.STRATEGY: "reliable"}
        else:
            answer |= {Key.OFFSET: 0, Key.STRATEGY: "reliable"}
        self.hear(answer | {getattr(Key, name): value for name, value in more.items()})

    def deliver(self, first: int, *payloads: bytes, attempt: int = 1, singly: bool = False) -> None:
        """Deliver messages to handle 2; `singly`: on their last attempt, to be handed out one at a time."""
        header = {
            Key.TYPE: Type.DELIVER,
            Key.HANDLE: 2,
            Key.OFFSET: first,
            Key.COUNT: len(payloads),
            Key.TIMESTAMPS: [len(payloads), 1000],
            Key.ATTEMPT: attempt,
        }
        if singly:
            header[Key.SINGLY] = True
        self.hear(header, bodies.pack_lengths(payloads), b"".join(payloads))


@pytest.fixture
def talk() -> Talk:
    """Return a session without a socket."""
    return Talk()


@pytest.fixture(scope="session")
def new_talk() -> type[Talk]:
    """Return a function that makes sessions without a socket, for tests that need one per example."""
    return Talk


@pytest.fixture
def broker() -> Iterator[testing.Broker]:
    """Return a broker in memory; its heartbeat is so long that a lost wake-up shows as a timeout."""
    with testing.Broker(heartbeat_ms=30_000) as running:
        yield running


@pytest.fixture
def client(broker: testing.Broker) -> Iterator[ister.Client]:
    """Return a client of it, with the topic `orders`."""
    with ister.connect(broker.endpoint, timeout=5) as connected:
        connected.create_topic("orders")
        yield connected


@pytest.fixture
def happened() -> list[Event]:
    """Return a list to record events in."""
    return []
