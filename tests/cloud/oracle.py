"""Compares what producers were told with what the store has, and with what a consumer gets from the beginning."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ister
import ister.store
from ister.errors import IsterError


class Publisher(threading.Thread):
    """Publishes numbered messages of one name until told to stop, and keeps the answers."""

    def __init__(self, endpoint: str, topic: str, name: str, *, size: int = 2_000, window: int = 20) -> None:
        super().__init__(name=name, daemon=True)
        self.endpoint, self.topic, self.size, self.window = endpoint, topic, size, window
        self.receipts: dict[bytes, int] = {}
        self.errors: list[str] = []
        self.running = threading.Event()
        self.running.set()

    def run(self) -> None:
        number = 0
        while self.running.is_set():
            try:
                with (
                    ister.connect(self.endpoint, timeout=20) as client,
                    client.producer(self.topic) as producer,
                ):
                    while self.running.is_set():
                        sent = []
                        for _ in range(self.window):
                            payload = f"{self.name}-{number:08d}-".encode().ljust(self.size, b"x")
                            number += 1
                            sent.append((payload, producer.send(payload)))
                        for payload, receipt in sent:
                            self.note(payload, receipt.result(30))
            except (IsterError, TimeoutError) as error:
                self.errors.append(getattr(error, "code", type(error).__name__))
                time.sleep(0.2)

    def note(self, payload: bytes, offset: object) -> None:
        """Keep a receipt; one without an offset is of a batch that was resent."""
        found = offset if isinstance(offset, int) else getattr(offset, "offset", None)
        self.receipts[payload] = -1 if found is None else int(found)

    def end(self) -> None:
        """Stop publishing."""
        self.running.clear()
        self.join(40)
        assert not self.is_alive()


def wait_for(what: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not so within {seconds} s"
        time.sleep(0.02)


def read_store(url: str, topic: str) -> dict[int, bytes]:
    """Return everything that the store has of a topic, read without a broker."""
    found: dict[int, bytes] = {}
    for message in ister.store.read(url, topic):
        assert message.offset == len(found), "offsets of the store are not dense"
        found[message.offset] = bytes(message.payload)
    return found


def read_broker(endpoint: str, topic: str, end: int) -> dict[int, bytes]:
    """Return what a consumer gets from the earliest message on, up to `end`."""
    found: dict[int, bytes] = {}
    with (
        ister.connect(endpoint, timeout=30) as client,
        client.consumer(topic, subscription="oracle", type="exclusive", start="earliest") as consumer,
    ):
        while len(found) < end:
            message = consumer.receive(timeout=20)
            assert message is not None, f"nothing comes behind offset {len(found)} of {end}"
            assert message.offset == len(found), "offsets of the consumer are not dense"
            found[message.offset] = bytes(message.payload)
    return found


def compare(stored: dict[int, bytes], given: dict[int, bytes], *publishers: Publisher) -> None:
    """Check that every acknowledged message is there once, at its offset, and that both readings agree."""
    assert given == {offset: stored[offset] for offset in given}
    assert len(stored) == len(given)
    places: dict[bytes, int] = {}
    for offset, payload in stored.items():
        assert places.setdefault(payload, offset) == offset, f"{payload[:20]!r} is there twice"
    for publisher in publishers:
        for payload, offset in publisher.receipts.items():
            assert payload in places, f"{payload[:20]!r} was acknowledged for {offset} and is missing"
            assert offset in (-1, places[payload]), f"{payload[:20]!r} is at {places[payload]}, not {offset}"
