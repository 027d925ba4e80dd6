"""Tests of what threads do without the client's lock: nothing is lost between two steps of the interpreter."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from operator import length_hint
from typing import TYPE_CHECKING, Any

import pytest

import ister
from ister.acknowledgments import NO_RUN
from ister.compiling import is_compiled

if TYPE_CHECKING:
    from ister.publication import Publication

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


# ---- sending ---------------------------------------------------------------------------------------------------------


class Tickets:
    """The tickets of a lane; another thread comes after one was drawn, or just before a lane that is closed is read."""

    def __init__(
        self,
        tickets: Iterator[int],
        drawn: Callable[[], None] | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.tickets = tickets
        self.drawn = drawn or _nothing
        self.closing = closing or _nothing

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        index = next(self.tickets)
        drawn, self.drawn = self.drawn, _nothing
        drawn()
        return index

    def __length_hint__(self) -> int:
        closing, self.closing = self.closing, _nothing
        closing()
        return length_hint(self.tickets)


class Places(list[bytes | None]):
    """The places of a lane; another thread comes after a message is put into one."""

    def __init__(self, places: list[bytes | None], after: Callable[[], None]) -> None:
        super().__init__(places)
        self.after = after

    def __setitem__(self, index: Any, payload: Any) -> None:
        super().__setitem__(index, payload)
        after, self.after = self.after, _nothing
        after()


def _nothing() -> None:
    pass


def _publication(client: ister.Client, **given: Any) -> tuple[ister.Producer, Publication]:
    """Return a producer with a batch begun: a message on its way holds it back from going at once."""
    producer = client.producer("orders", linger_ms=60_000, **given)
    return producer, producer.publication


def _stored(client: ister.Client, count: int) -> list[bytes]:
    with client.reader("orders", start="earliest") as reader:
        found = [reader.receive(10) for _ in range(count)]
        assert reader.receive(0.05) is None
    return [message.payload for message in found if message is not None]


def _begun(publication: Publication) -> None:
    """Begin a batch as a message does that has another one before it on its way."""
    gathered = publication.gathered
    gathered.begin(0.0)
    gathered.linger_at = float("inf")
    gathered.add(b"first", b"", b"")
    gathered.open_lane()


between = pytest.mark.skipif(
    is_compiled(), reason="compiled: no thread comes between a place and the look after it"
)


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=between)])
@pytest.mark.parametrize("what", ["send it", "take it in"])
@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("way", ["send", "send_fast"])
def test_a_message_that_is_put_down_while_its_batch_is_closed_is_sent_once(
    client: ister.Client, when: str, what: str, others: int, way: str
) -> None:
    """Whichever comes first, and whoever put down others meanwhile: its receipt says where it is."""
    producer, publication = _publication(client)
    receipts: list[ister.Receipt] = []

    def meanwhile() -> None:
        receipts.extend(producer.send(b"%d" % number) for number in range(others))
        with producer.lock:
            if what == "send it":
                publication.seal()
            else:
                publication.gathered.close_lane()
                publication.gathered.open_lane()
        receipts.append(producer.send(b"late"))

    with producer:
        _begun(publication)
        lane = publication.gathered.lane
        if when == "before":
            lane.tickets = Tickets(lane.tickets, drawn=meanwhile)
        else:
            lane.places = Places(lane.places, meanwhile)
        one = producer.send(b"mine") if way == "send" else producer.send_fast(b"mine")
        if one is None:  # as `ister.aio` does
            one = producer.try_send(b"mine", None, None)
        assert one is not None
        receipts.append(one)
        producer.flush(10)
        stored = _stored(client, 3 + others)
        sent = [*(b"%d" % number for number in range(others)), b"late", b"mine"]
        assert sorted(stored) == sorted([b"first", *sent])
        assert [stored[receipt.result(10).offset or 0] for receipt in receipts] == sent


def test_ctrl_c_while_a_lane_is_taken_in_loses_nothing(client: ister.Client) -> None:
    """The messages that were put down are taken in when the connection is mended."""
    producer, publication = _publication(client)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with producer:
        _begun(publication)
        receipts = [producer.send(b"%d" % number) for number in range(3)]
        lane = publication.gathered.lane
        lane.tickets = Tickets(lane.tickets, closing=interrupt)
        with pytest.raises(KeyboardInterrupt):
            producer.send(b"large" * 200)
        producer.flush(10)
        stored = _stored(client, 4)
        assert stored == [b"first", b"0", b"1", b"2"]
        assert [receipt.result(10).offset for receipt in receipts] == [1, 2, 3]


@pytest.mark.parametrize("lanes", [True, False], ids=["lanes", "no lanes"])
@pytest.mark.parametrize("same", [True, False], ids=["one object", "many objects"])
def test_threads_share_a_producer(client: ister.Client, hasty: None, lanes: bool, same: bool) -> None:
    """Each thread's messages are stored in its order, none is lost or doubled, and each receipt says where it is."""
    count = 1500
    receipts: list[list[ister.Receipt]] = [[] for _ in range(THREADS)]
    over = threading.Event()
    constant = b"constant"

    def payload(part: int, number: int) -> bytes:
        if same and number % 3:
            return constant
        return b"%d %d%s" % (part, number, b"." * (number % 7))

    with client.producer("orders", batch_bytes=700, linger_ms=0.2) as producer:
        producer.publication.gathered.lanes = lanes

        def send(part: int) -> None:
            for number in range(count):
                receipts[part].append(producer.send(payload(part, number)))
                if not number % 50:
                    producer.send_batch([b"batch"] * 2)

        def flush() -> None:
            while not over.is_set():
                producer.flush(10)

        threads = [threading.Thread(target=send, args=(part,)) for part in range(THREADS)]
        flusher = threading.Thread(target=flush)
        for thread in (flusher, *threads):
            thread.start()
        for thread in threads:
            thread.join(120)
        over.set()
        flusher.join(60)
        producer.flush(10)
        batches = 2 * THREADS * (count // 50)
        assert producer.last_sequence == THREADS * count + batches - 1
    stored = _stored(client, THREADS * count + batches)
    offsets = [[receipt.result(10).offset or 0 for receipt in each] for each in receipts]
    for part, each in enumerate(offsets):
        assert each == sorted(each)
        assert [stored[offset] for offset in each] == [payload(part, number) for number in range(count)]
    assert len({offset for each in offsets for offset in each}) == THREADS * count
    assert stored.count(b"batch") == batches
