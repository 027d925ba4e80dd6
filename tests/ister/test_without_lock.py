"""Tests of what threads do without the client's lock: nothing is lost between two steps of the interpreter."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import ister
from ister.acknowledgments import NO_RUN

THREADS = 4


@pytest.fixture
def hasty() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# ---- acknowledging ---------------------------------------------------------------------------------------------------


class Held(list[int]):
    """The offsets of a run, between whose steps another thread comes."""

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def append(self, offset: int) -> None:
        """Put an offset down, with others before and after it."""
        self.before()
        super().append(offset)
        self.after()


@pytest.mark.parametrize("when", ["before", "after"])
def test_acknowledgments_that_are_sent_meanwhile_take_this_one_along_or_leave_it(
    client: ister.Client, when: str
) -> None:
    """A thread that puts an acknowledgment down while another one sends them has it sent, now or with the next."""
    with client.producer("orders") as producer:
        producer.send_batch([b"a", b"b", b"c"])
    with client.consumer("orders", "s", start="earliest") as consumer:
        first, second, third = (consumer.receive(10) for _ in range(3))
        assert first is not None
        assert second is not None
        assert third is not None
        consumer.ack(first)
        acks = consumer.attachment.acks
        calls = {"before": lambda: None, "after": lambda: None}
        calls[when] = acks.flush
        acks.run.offsets = Held(**calls)
        consumer.ack(second)
        assert acks.run is not NO_RUN  # it was given again, and begins the next run
        consumer.flush(10)
    with client.consumer("orders", "s") as consumer:
        left = consumer.receive(10)
        assert left is not None
        assert left.payload == b"c"


def test_threads_acknowledge_the_same_delivery(client: ister.Client, hasty: None) -> None:
    """In any order, and while others send what was acknowledged: just these messages count as done."""
    count, kept = 4000, range(17, 4000, 500)
    with client.producer("orders") as producer:
        producer.send_batch([b"x"] * count)
    with client.consumer("orders", "s", type="shared", start="earliest") as consumer:
        messages: list[ister.Message] = []
        while len(messages) < count:
            batch = consumer.receive_batch(timeout=10)
            assert batch is not None
            messages += batch
        over = threading.Event()

        def acknowledge(part: int) -> None:
            for message in messages[part::THREADS]:
                if message.offset not in kept:
                    consumer.ack(message)

        def send() -> None:
            while not over.is_set():
                consumer.flush(10)

        threads = [threading.Thread(target=acknowledge, args=(part,)) for part in range(THREADS)]
        sender = threading.Thread(target=send)
        for thread in (sender, *threads):
            thread.start()
        for thread in threads:
            thread.join(60)
        over.set()
        sender.join(60)
        consumer.flush(10)
    with client.consumer("orders", "s", type="shared") as consumer:
        left: list[int] = []
        while (again := consumer.receive(10 if len(left) < len(kept) else 0.1)) is not None:
            left.append(again.offset)
    assert left == list(kept)
