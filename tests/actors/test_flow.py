"""Tests of flow control: thousands of consumers, and some that stop reading, cost the broker and the others little."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest

from ister.actors.consumer_wire import FULL_RETRY_S_MAX
from ister.actors.lanes import Lanes
from ister.actors.ledger import Held
from ister.actors.loop import CANCELLED_TIMERS_KEPT
from ister.actors.selection import HOARD_SPARE, Member
from ister.actors.slots import SLOTS
from ister.actors.subscription.from_memory import DROP_NOTICE_S, DROP_NOTICES
from ister.wire import Key, Type
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient

CONNECTIONS = 8
BYTES = 1 << 20


class Crowd:
    """Consumers of one subscription over a few connections; `given` has the offsets each one got, by its number."""

    def __init__(self, stage: Stage, count: int, type: str, **topic: Any) -> None:
        self.stage, self.type = stage, type
        stage.client().request("topic.create", topic="orders", **topic)
        self.producer = stage.at_topic("orders")
        assert self.producer.open_producer(1, "orders", 7).kind == Type.OPENED
        self.sent = 0
        self.clients: list[StagedClient] = []
        self.given: dict[int, list[int]] = {}
        self.dropped: dict[int, int] = {}
        self.of: dict[int, StagedClient] = {}
        if count:
            self.open([self.connect() for _ in range(CONNECTIONS)], range(1, count + 1))

    def connect(self) -> StagedClient:
        client = self.stage.at_subscription("orders", "s")
        self.clients.append(client)
        return client

    def open(
        self, clients: list[StagedClient], numbers: range, messages: int = 100, bytes: int = BYTES
    ) -> None:
        """Open consumers with these numbers, and check that all are open."""
        for number in numbers:
            client = self.of[number] = clients[number % len(clients)]
            client.say_open_consumer(
                number, "orders", "s", self.type, messages=messages, bytes=bytes, sparse=True
            )
            self.given[number] = []
        self.stage.settle()
        opened = 0
        for client in clients:
            for frame in self.frames(client):
                opened += frame.kind == Type.OPENED
                if frame.kind == Type.DELIVER:
                    client.unread.append(frame)
        assert opened == len(numbers)

    def frames(self, client: StagedClient) -> list[Frame]:
        """Return the frames sent to a connection so far."""
        found, client.unread = client.unread, []
        while (frame := client.hear(0)) is not None:
            found.append(frame)
        return found

    def publish(self, count: int, *, keys: int = 0) -> None:
        """Publish a batch with so many different keys."""
        rows = [
            (b"k%d" % (n % keys) if keys else b"", b"%d" % n) for n in range(self.sent, self.sent + count)
        ]
        self.producer.publish_keyed(1, self.sent, *rows)
        self.sent += count
        self.stage.settle()

    def read(self, *but: StagedClient) -> dict[int, list[int]]:
        """Read from all connections except those; return the new offsets by consumer."""
        came: dict[int, list[int]] = {}
        for client in self.clients:
            for frame in [] if client in but else self.frames(client):
                number = frame.header.get(Key.HANDLE, 0)
                if frame.kind == Type.DELIVER:
                    came.setdefault(number, []).extend(frame.offsets())
                elif frame.code == "dropped":
                    self.dropped[number] = frame.header[Key.COUNT]
        for number, offsets in came.items():
            self.given[number] += offsets
        return came

    def acknowledge(self, came: dict[int, list[int]]) -> None:
        """Acknowledge these messages, and grant credit for as many."""
        for number, offsets in came.items():
            ranges = [(offset, offset + 1) for offset in offsets]
            for at in range(0, len(ranges), 200):
                self.of[number].ack(number, *ranges[at : at + 200], confirm=False)
            self.of[number].credit(number, len(offsets), BYTES // 4)
        self.stage.settle()

    @property
    def subscription(self) -> Any:
        """The subscription's actor."""
        return self.stage.actor("subscription", "orders", "s")

    def waits_nowhere(self) -> None:
        """Check that no inbox holds a message."""
        for system in self.stage.systems.values():
            for path in system.paths():
                actor = system.find(path)
                assert actor is not None
                assert not len(actor.inbox), path


@contextmanager
def calls() -> Iterator[list[int]]:
    """Count the calls of Python and C functions in a block: a measure of work that does not depend on time."""
    count = [0]

    def note(_frame: Any, event: str, _arg: Any) -> None:
        if event in ("call", "c_call"):
            count[0] += 1

    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(None)


MANY = 2_000


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_thousands_that_share_get_the_same(stage: Stage, dispatch: str) -> None:
    """Consumers with credit differ by two messages at most, however the batches are cut."""
    crowd = Crowd(stage, MANY, "shared", dispatch=dispatch)
    for count in (MANY, 300, MANY // 2, 3 * MANY, 1):
        crowd.publish(count)
        crowd.acknowledge(crowd.read())
        got = [len(offsets) for offsets in crowd.given.values()]
        assert sum(got) == crowd.sent
        assert max(got) - min(got) <= 2
    crowd.waits_nowhere()


def test_thousands_that_share_keys_get_their_keys(stage: Stage) -> None:
    """Each key goes to one consumer, in order, and every consumer with keys gets their messages."""
    crowd = Crowd(stage, MANY, "key-shared")
    for _ in range(3):
        crowd.publish(4_000, keys=4_000)
        crowd.acknowledge(crowd.read())
    assert sum(map(len, crowd.given.values())) == crowd.sent
    owner: dict[int, int] = {}
    for number, offsets in crowd.given.items():
        assert len(offsets) <= 3 * 40  # of 4,000 keys, two for each consumer
        for offset in offsets:
            assert owner.setdefault(offset % 4_000, number) == number
    lanes = crowd.subscription.delivery._lanes
    assert (lanes.waiting, lanes.in_flight, len(lanes._lanes), len(lanes._astray)) == (0, 0, 0, 0)
    crowd.waits_nowhere()


@pytest.mark.parametrize("type", ["shared", "key-shared"])
def test_what_thousands_hold_is_bounded_and_comes_back(
    stage: Stage, type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without acknowledgments they hold at most their credit; once they have left, no memory is kept for them."""
    monkeypatch.setattr("ister.actors.lanes.WAITING_MAX", 2_000)
    monkeypatch.setattr("ister.actors.lanes.WAITING_HARD_MAX", 4_000)
    crowd = Crowd(stage, 0, type)
    crowd.open([crowd.connect() for _ in range(CONNECTIONS)], range(1, MANY + 1), messages=3)
    for _ in range(8):
        crowd.publish(2_000, keys=2_000)
    came = crowd.read()
    assert max(map(len, came.values())) <= 3
    subscription = crowd.subscription
    held = subscription.consumers.roster.outstanding
    assert held == sum(map(len, came.values())) <= 3 * MANY
    if type == "key-shared":
        lanes = subscription.delivery._lanes
        assert lanes.waiting <= 4_000 + 2_000  # plus a batch
        assert lanes.overflowed
        assert lanes.in_flight == held
    else:
        assert held == 3 * MANY
    for consumer in stage.actors("consumer"):
        assert not consumer.wire.backlog  # type: ignore[attr-defined]
    for client in crowd.clients:
        client.say({Key.TYPE: Type.BYE})
    stage.settle()
    assert stage.actors("consumer") == []
    assert (subscription.consumers.roster.outstanding, len(subscription.consumers.roster)) == (0, 0)
    assert not subscription.consumers.roster._turns
    stage.advance(1.0)
    assert len(stage.loop._timers) <= 2 * CANCELLED_TIMERS_KEPT
    if type == "shared":
        assert subscription.delivery._redelivery.messages == held
        assert subscription.delivery._redelivery.ranges <= held
    last = crowd.connect()
    crowd.given.clear()
    crowd.open([last], range(MANY + 1, MANY + 2), messages=100_000, bytes=64 << 20)
    for _ in range(100):
        if not (came := crowd.read()):
            break
        crowd.acknowledge(came)
    assert sorted(crowd.given[MANY + 1]) == list(range(crowd.sent))
    crowd.waits_nowhere()


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_who_stops_reading_gets_little_and_the_others_the_rest(stage: Stage, dispatch: str) -> None:
    """A consumer opens late, grants a million and stops reading: it gets a few messages, and the others do not wait."""
    crowd = Crowd(stage, 8, "shared", dispatch=dispatch)
    for _ in range(50):
        crowd.publish(40)
        crowd.acknowledge(crowd.read())
    stopped = crowd.connect()
    crowd.open([stopped], range(9, 10), messages=1_000_000, bytes=64 << 20)
    for _ in range(100):
        crowd.publish(40)
        came = crowd.read(stopped)
        assert sum(map(len, came.values())) >= 30 or len(stopped.router.out[stopped.routing]) <= 20
        crowd.acknowledge(came)
    theirs = crowd.subscription.consumers.roster.get(9)
    if theirs is None:  # by its key
        theirs = max(crowd.subscription.consumers.roster.members, key=lambda member: member.age)
    assert theirs.outstanding <= HOARD_SPARE + 2 * 40 + 40
    assert sum(map(len, crowd.given.values())) == crowd.sent - theirs.outstanding


@pytest.mark.parametrize("type", ["shared", "key-shared"])
def test_a_full_connection_of_hundreds_is_looked_at_once_for_all(stage: Stage, type: str) -> None:
    """One of its consumers retries now and then for all of them; then everything goes out in order."""
    crowd = Crowd(stage, 500, type)
    full = crowd.clients[0]
    full.router.full.add(full.routing)
    tries = 0
    before = full.router.send_multipart

    def counted(parts: Any, *args: Any, **more: Any) -> None:
        nonlocal tries
        tries += bytes(parts[0]) == full.routing
        before(parts, *args, **more)

    full.router.send_multipart = counted  # type: ignore[method-assign]
    crowd.publish(2_000, keys=2_000)
    crowd.acknowledge(crowd.read(full))
    first, tries = tries, 0
    assert first <= 70  # each of some 63 consumers found it full once
    stage.advance(10.0)
    assert tries <= 10 + 10 / FULL_RETRY_S_MAX
    for _ in range(20):
        crowd.publish(100, keys=2_000)
        came = crowd.read(full)
        assert came
        crowd.acknowledge(came)
    full.router.full.clear()
    stage.advance(FULL_RETRY_S_MAX)
    for _ in range(50):
        if not (came := crowd.read()):
            break
        crowd.acknowledge(came)
    assert sum(map(len, crowd.given.values())) == crowd.sent
    for offsets in crowd.given.values():
        assert offsets == sorted(offsets)
    for consumer in stage.actors("consumer"):
        assert not consumer.wire.backlog  # type: ignore[attr-defined]
        assert not consumer.wire.handle.session.waiting  # type: ignore[attr-defined]


def test_who_waits_for_room_and_leaves_lets_the_next_one_look(stage: Stage) -> None:
    """When the consumer that retried for all of them leaves, another one takes over."""
    crowd = Crowd(stage, 0, "shared")
    full = crowd.connect()
    crowd.open([full], range(1, 4))
    full.router.full.add(full.routing)
    crowd.publish(3)
    session = stage.actors("consumer")[0].wire.handle.session  # type: ignore[attr-defined]
    assert len(session.waiting) == 3
    stage.actor("consumer", str(next(iter(session.waiting)))).stop_now()
    full.router.full.clear()
    stage.advance(FULL_RETRY_S_MAX)
    assert sum(map(len, crowd.read().values())) == 3
    assert session.waiting == {}


@pytest.mark.parametrize("dispatch", ["reliable", "non-reliable"])
def test_a_window_of_one_message_moves_on(stage: Stage, dispatch: str) -> None:
    """Credit for one message at a time brings all messages one by one, and delays no other consumer."""
    crowd = Crowd(stage, 0, "shared", dispatch=dispatch)
    crowd.open([crowd.connect()], range(1, 2), messages=1)
    crowd.open([crowd.connect()], range(2, 3), messages=1_000)
    for _ in range(20):
        crowd.publish(50)
        first = True
        while came := crowd.read():
            assert len(came.get(1, ())) <= 1
            assert not first or len(came[2]) >= 24
            first = False
            crowd.acknowledge(came)
    assert sum(map(len, crowd.given.values())) == crowd.sent
    assert crowd.given[1]


def test_thousands_are_told_of_losses_a_few_at_a_time(stage: Stage) -> None:
    """Without credit and with a full buffer, each is told the latest count, a few of them per turn."""
    crowd = Crowd(stage, 0, "shared", dispatch="non-reliable")
    crowd.open([crowd.connect() for _ in range(CONNECTIONS)], range(1, 1_001), messages=1)
    stage.client().request("subscription.update", topic="orders", subscription="s", buffer_messages_max=10)
    for _ in range(30):
        crowd.publish(100)
        frames = [frame for client in crowd.clients for frame in crowd.frames(client)]
        assert sum(frame.code == "dropped" for frame in frames) <= DROP_NOTICES
        stage.advance(DROP_NOTICE_S / 2)
    stage.advance(20 * DROP_NOTICE_S)
    crowd.read()
    assert set(crowd.dropped) == set(range(1, 1_001))
    assert set(crowd.dropped.values()) == {crowd.subscription.delivery._dropped}
    assert crowd.subscription.delivery._dropped > 1_000
    stage.advance(5.0)
    assert not any(crowd.frames(client) for client in crowd.clients)  # a count is sent once


@pytest.mark.parametrize("type", ["shared", "key-shared", "failover"])
def test_the_last_of_thousands_comes_and_goes_as_cheaply_as_the_first(stage: Stage, type: str) -> None:
    """Opening and closing cost the same however many consumers there are."""
    crowd = Crowd(stage, 0, type)
    clients = [crowd.connect() for _ in range(CONNECTIONS)]
    crowd.open(clients, range(1, 101))
    costs = []
    for first in range(101, 2_101, 500):
        with calls() as count:
            crowd.open(clients, range(first, first + 500))
        costs.append(count[0] / 500)
    assert max(costs[1:]) < 1.3 * costs[0], costs
    costs = []
    for client in clients[:4]:
        with calls() as count:
            client.say({Key.TYPE: Type.BYE})
            stage.settle()
        costs.append(count[0] / (2_100 / CONNECTIONS))
    assert max(costs) < 1.5 * min(costs), costs
    assert 1_045 < len(crowd.subscription.consumers.roster) < 1_055


def test_keys_are_shared_out_among_thousands_evenly() -> None:
    """Each has its share of the slots, plus or minus one, as others come and go; the cost stays the same."""
    lanes = Lanes()
    members = [Member(key, 0, key, 100, BYTES) for key in range(5_000)]
    costs = []
    for first in range(0, 5_000, 1_000):
        with calls() as count:
            for member in members[first : first + 1_000]:
                lanes.attach(member)
        costs.append(count[0])
    assert max(costs[1:]) < costs[0]
    sizes = [len(slots) for slots in lanes._table.of.values()]
    assert sum(sizes) == SLOTS
    assert max(sizes) - min(sizes) <= 1
    for offset in range(5_000):
        lanes.arrive(offset, b"key-%d" % offset)
    for member in members:
        while (entry := lanes.next(member)) is not None:
            lanes.take(member, entry)
    with calls() as count:
        for member in members[:4_000]:
            lanes.detach(member)
    assert count[0] < 200 * 4_000
    sizes = [len(slots) for slots in lanes._table.of.values()]
    assert sum(sizes) == SLOTS
    assert max(sizes) - min(sizes) <= 1
    assert len(lanes._table._most) + len(lanes._table._least) < 10 * 5_000


def test_a_key_on_its_way_to_who_leaves_may_stay_where_it_is() -> None:
    """Its messages wait for those in flight elsewhere; if the consumer they were to go to leaves, the wait ends."""
    lanes = Lanes()
    first, second = (Member(key, 0, key, 100, BYTES) for key in (1, 2))
    lanes.attach(first)
    keys = [b"key-%d" % number for number in range(50)]
    for offset, key in enumerate(keys):
        lanes.arrive(offset, key)
    while (entry := lanes.next(first)) is not None:
        lanes.take(first, entry)
    lanes.attach(second)
    for offset, key in enumerate(keys):
        lanes.arrive(100 + offset, key)
    assert lanes.next(second) is None
    assert lanes._astray
    lanes.detach(second)
    assert not lanes._astray
    found = []
    while (entry := lanes.next(first)) is not None:
        lanes.take(first, entry)
        found.append(entry.offset)
    assert sorted(found) == list(range(100, 150))
    for offset in range(150):
        lanes.give_back(Held(offset, offset + 1, 2)) if offset % 2 else lanes.settle(offset, offset + 1)
    assert not lanes._astray


@pytest.mark.parametrize("type", ["shared", "key-shared"])
def test_a_deleted_topic_stays_mapped_nowhere(stage: Stage, type: str) -> None:
    """Mapped files would keep their space on the disk, and their pages in memory."""
    crowd = Crowd(stage, 10, type)
    crowd.publish(100, keys=10)
    source = crowd.subscription.delivery._source
    assert source._reader._log._segment is not None
    assert any(len(worker._maps) for worker in stage.workers.values())
    stage.client().request("topic.delete", topic="orders")
    stage.settle()
    assert source._reader._log._segment is None
    assert not any(len(worker._maps) for worker in stage.workers.values())


def test_consumers_that_ended_are_freed_at_once(stage: Stage) -> None:
    """They are no reference cycles that wait for the garbage collector, whose run pauses the whole process."""
    crowd = Crowd(stage, 50, "shared")
    crowd.publish(100)
    consumers = [ref(actor) for actor in stage.actors("consumer")]
    assert len(consumers) == 50
    gc.collect()
    gc.disable()
    try:
        for client in crowd.clients:
            client.say({Key.TYPE: Type.BYE})
        stage.settle()
        assert not any(consumer() for consumer in consumers)
    finally:
        gc.enable()
