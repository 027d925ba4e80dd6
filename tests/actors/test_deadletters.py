"""Tests of dead letters: each is stored in its topic once, whatever process dies or mail is lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from ister.actors.addresses import node_of
from ister.actors.deadletters import IDLE_S, LETTERS_MAX, REMEMBERED_S, DeadLetters, dead_letters
from ister.actors.messages import Buried, Bury, BuryDelayed, Deposited, Letter, StopBurying, Unburied
from ister.actors.options import dead_letter_topic
from ister.actors.placement import topic_key, worker_of
from ister.actors.runtime import Ref
from ister.bodies import decode_attributes, split_column
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.wire import Type
from tests.stage import Recorder, Stage

ORDERS = TopicMeta("orders", b"1" * 16, "reliable", "fsync", 17)
NAME = next(f"s{n}" for n in range(99) if worker_of(topic_key(f"orders.s{n}.dlq"), 2) == 1)
BILLING = SubscriptionMeta("orders", NAME, "shared", 0, 18)
DLQ = dead_letter_topic(BILLING)  # lives on worker 1, the subscription on worker 0


def letter(offset: int, payload: bytes = b"bad", key: bytes = b"") -> Letter:
    """Return a letter."""
    return Letter(offset, payload, key, {"ister.topic": "orders", "ister.offset": str(offset)})


class Scene:
    """A subscription that only records, and its DeadLetters actor."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        system = stage.systems[node_of(0)]
        subscription = system.spawn(Recorder, "subscription/orders:1")
        found = system.find("subscription/orders:1")
        assert isinstance(found, Recorder)
        self.subscription = found
        self.ref: Ref = dead_letters(system, ORDERS, BILLING, subscription)

    @property
    def actor(self) -> DeadLetters:
        """The DeadLetters actor."""
        found = self.stage.actor("deadletters", "orders")
        assert isinstance(found, DeadLetters)
        return found

    def bury(self, *offsets: int) -> None:
        """Send letters to be stored."""
        self.ref.tell(Bury([letter(offset) for offset in offsets]))

    def buried(self, seconds: float = 40.0) -> list[int]:
        """Return the offsets reported as stored, after a while."""
        self.stage.advance(seconds)
        return [offset for command in self.subscription.take(Buried) for offset in command.offsets]

    def stored(self) -> list[tuple[str, bytes]]:
        """Return original offset and payload of the messages in the dead-letter topic."""
        client = self.stage.at_subscription(DLQ, "redrive")
        assert client.open_consumer(1, DLQ, "redrive", "exclusive", bytes=1 << 26).kind == Type.OPENED
        found: list[tuple[str, bytes]] = []
        while (frame := client.hear(1.0)) is not None:
            if frame.kind == Type.DELIVER:
                payloads = [payload for _, payload in frame.messages()]
                column = split_column(frame.body[-1], len(payloads))
                origins = [decode_attributes(one)["ister.offset"] for one in column]
                found += zip(origins, payloads, strict=True)
        client.close_handle(1)
        self.stage.settle()
        return found


@pytest.fixture
def scene(make_stage: Callable[..., Stage]) -> Scene:
    """Return a broker of two workers: the subscription on the first, its dead-letter topic on the second."""
    small = {
        "protocol__message_bytes_max": 300_000,
        "protocol__batch_bytes_max": 6_000_000,
        "log__segment_bytes_max": 7_100_000,
    }
    return Scene(make_stage(2, protocol__session_timeout_ms=600_000, **small))


def origins(*offsets: int) -> list[tuple[str, bytes]]:
    """Return what `Scene.stored` returns for such letters."""
    return [(str(offset), b"bad") for offset in offsets]


def test_a_letter_is_buried(scene: Scene) -> None:
    """Topic and subscription are created when needed; the letter has the message's payload, key and attributes."""
    scene.ref.tell(Bury([letter(5, b"five", b"k"), letter(9, b"nine")]))
    assert scene.buried(0.0) == [5, 9]
    shown = scene.stage.client().request("topic.show", topic=DLQ)
    assert (shown["strategy"], shown["durability"]) == ("reliable", "fsync")
    assert shown["settings"] == {"retention_acknowledged": 1, "dead_letters": 1}
    assert scene.stored() == [("5", b"five"), ("9", b"nine")]
    assert scene.actor._bytes == 0


def test_what_is_asked_for_again_is_buried_once(scene: Scene) -> None:
    """Waiting, sent or just stored, it is one letter. Asked for much later, as after a seek, it is another."""
    scene.bury(5)
    scene.bury(5, 6)
    assert scene.buried(0.0) == [5, 6]
    scene.bury(6)
    assert scene.buried(0.0) == [6]
    assert scene.stored() == origins(5, 6)
    scene.stage.advance(2 * REMEMBERED_S)
    scene.bury(6)
    assert scene.buried(0.0) == [6]
    assert scene.stored() == origins(5, 6, 6)


@pytest.mark.parametrize("lost", [("worker-0", "worker-1"), ("worker-1", "worker-0"), ("broker", "worker-0")])
def test_lost_mail_costs_time_and_no_letter(scene: Scene, lost: tuple[str, str]) -> None:
    """Whichever mail is lost is sent again, and each letter is stored once."""
    stage = scene.stage
    stage.hold(*lost)
    scene.bury(1, 2)
    stage.advance(3.0)
    assert not scene.subscription.take(Buried)
    stage.holding = []
    stage.let_go(*lost)
    assert scene.buried() == [1, 2]
    assert scene.stored() == origins(1, 2)


def test_a_lost_answer_stores_nothing_twice(scene: Scene) -> None:
    """The batch is stored and only the answer is lost: the resend is recognised by its sequence number."""
    scene.bury(1)
    assert scene.buried() == [1]
    scene.stage.hold("worker-1", "worker-0")
    scene.bury(2)
    scene.stage.advance(5.0)
    assert scene.subscription.take(Buried) == []
    assert scene.subscription.take(BuryDelayed)
    scene.stage.holding = []
    scene.stage.let_go("worker-1", "worker-0")
    assert scene.buried() == [2]
    assert scene.stored() == origins(1, 2)


def test_a_topic_that_is_killed_loses_and_doubles_nothing(scene: Scene) -> None:
    """Before or after the write: the resend finds what the log has, and the letter is stored once."""
    stage = scene.stage
    scene.bury(1)
    assert scene.buried() == [1]
    stage.hold("worker-1", "worker-0")
    scene.bury(2)  # written, and the answer never comes
    stage.settle()
    stage.kill(1)
    stage.let_go("worker-1", "worker-0")
    scene.bury(3)
    stage.advance(1.0)
    stage.start(1)
    assert scene.buried() == [2, 3]
    stage.kill(1)
    stage.start(1)
    assert scene.stored() == origins(1, 2, 3)


def test_an_answer_sent_before_the_kill_counts(scene: Scene) -> None:
    """A letter reported as durable is there after a power failure."""
    stage = scene.stage
    scene.bury(*range(50))
    assert scene.buried(0.0) == list(range(50))
    for worker in range(2):
        stage.kill(worker)
    stage.loop.work.clear()
    stage.disk = stage.disk.power_loss(Random(1))
    for worker in range(2):
        stage.start(worker)
    assert [int(origin) for origin, _ in Scene(stage).stored()] == list(range(50))


def test_the_directory_may_be_away(scene: Scene) -> None:
    """Without it the topic's worker is not known; the letters are stored once it is back."""
    stage = scene.stage
    stage.hold("worker-0", "broker")
    scene.bury(1)
    stage.advance(20.0)
    assert any("Directory" in delayed.text for delayed in scene.subscription.take(BuryDelayed))
    stage.let_go("worker-0", "broker")
    assert scene.buried() == [1]
    assert scene.stored() == origins(1)


def test_a_full_disk_is_said_and_waited_for(scene: Scene) -> None:
    """The subscription can say what is wrong; with room again the letters are stored."""
    stage = scene.stage
    scene.bury(0)
    assert scene.buried() == [0]
    stage.disk.room = 0
    offsets = list(range(1, 25))
    scene.ref.tell(Bury([letter(offset, b"x" * 200_000) for offset in offsets]))
    before = scene.buried()  # what the segments have room for that were made before
    assert before == offsets[: len(before)]
    assert len(before) < len(offsets)
    assert "takes nothing: no space left" in scene.subscription.take(BuryDelayed)[-1].text
    stage.disk.room = None
    assert scene.buried() == offsets[len(before) :]
    assert [int(origin) for origin, _ in scene.stored()] == [0, *offsets]


def test_a_topic_of_the_wrong_kind_takes_no_letters(scene: Scene) -> None:
    """A non-reliable topic would lose them: that is reported, until the name is a reliable topic's."""
    client = scene.stage.client()
    client.request("topic.create", topic=DLQ, dispatch="non-reliable")
    scene.bury(1)
    assert scene.buried() == []
    assert "non-reliable" in scene.subscription.take(BuryDelayed)[-1].text
    client.request("topic.delete", topic=DLQ)
    assert scene.buried() == [1]
    assert scene.stored() == origins(1)


def test_a_deleted_topic_is_created_again(scene: Scene) -> None:
    """Also when its name is another topic's meanwhile."""
    client = scene.stage.client()
    scene.bury(1)
    assert scene.buried() == [1]
    client.request("topic.delete", topic=DLQ)
    scene.bury(2)
    assert scene.buried() == [2]
    assert scene.stored() == origins(2)


def test_what_is_in_hand_is_bounded(scene: Scene) -> None:
    """Letters over the limit are ignored, and taken when the subscription asks again."""
    scene.stage.hold("worker-0", "broker")
    scene.ref.tell(Bury([letter(offset) for offset in range(LETTERS_MAX + 50)]))
    scene.ref.tell(Bury([letter(5000, b"x" * (20 << 20))]))
    scene.stage.settle()
    assert len(scene.actor._letters) == LETTERS_MAX
    scene.stage.let_go("worker-0", "broker")
    assert scene.buried() == list(range(LETTERS_MAX))
    assert scene.actor._bytes == 0


def test_a_letter_over_the_bound_goes_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is on letters waiting together: no message is too large to be stored."""
    monkeypatch.setattr("ister.actors.deadletters.LETTERS_BYTES_MAX", 1 << 20)
    scene.ref.tell(Bury([letter(1, b"x" * (5 << 20)), letter(2)]))
    assert scene.buried() == [1]
    scene.ref.tell(Bury([letter(2)]))
    assert scene.buried() == [2]


def test_the_topic_may_change(scene: Scene) -> None:
    """The subscription says where the next letters go; letters already waiting go where they were to go."""
    scene.stage.hold("worker-0", "broker")
    scene.bury(1)
    scene.ref.tell(Bury([letter(2)], "orders/bad"))
    scene.stage.let_go("worker-0", "broker")
    assert scene.buried() == [1]
    scene.ref.tell(Bury([letter(2)], "orders/bad"))
    assert scene.buried() == [2]
    assert scene.stored() == origins(1)
    assert scene.stage.client().request("topic.show", topic="orders/bad")["next_offset"] == 1


def test_it_ends_when_there_is_nothing_to_do(scene: Scene) -> None:
    """Ten thousand subscriptions have dead letters now and then: actors without work end."""
    scene.bury(1)
    assert scene.buried(IDLE_S - 1) == [1]
    assert len(scene.stage.actors("deadletters")) == 1
    scene.bury(2)
    assert scene.buried(IDLE_S - 1) == [2]
    assert len(scene.stage.actors("deadletters")) == 1
    scene.stage.advance(2.0)
    assert scene.stage.actors("deadletters") == []
    dead_letters(scene.stage.systems["worker-0"], ORDERS, BILLING, scene.subscription.ref).tell(
        Bury([letter(3)])
    )
    assert scene.buried() == [3]
    assert scene.stored() == origins(1, 2, 3)


def test_it_ends_when_it_is_told_to(scene: Scene) -> None:
    """Nothing is left of it, and a late answer finds no actor."""
    scene.stage.hold("worker-1", "worker-0")
    scene.bury(1)
    scene.stage.settle()
    scene.ref.tell(StopBurying())
    scene.stage.let_go("worker-1", "worker-0")
    scene.stage.advance(40.0)
    assert scene.stage.actors("deadletters") == []
    assert not scene.subscription.take(Deposited)


def test_nothing_is_buried_before_it_is_durable(scene: Scene) -> None:
    """While the disk still syncs, a power failure may take the letter: it is not reported as stored."""
    scene.bury(1)
    assert scene.buried() == [1]
    scene.stage.loop.holds_work = True
    scene.bury(2)
    assert scene.buried(5.0) == []
    scene.stage.loop.holds_work = False
    assert scene.buried() == [2]
    assert scene.stored() == origins(1, 2)


def test_a_topic_that_lost_its_end_goes_on_with_what_comes(scene: Scene) -> None:
    """A topic of durability os may forget answered batches: the next batch is no gap in its sequence."""
    scene.bury(1)
    assert scene.buried() == [1]
    scene.actor._sequence += 7  # as after seven letters that the topic's log has lost
    scene.bury(2)
    assert scene.buried(0.0) == [2]
    assert scene.subscription.take(BuryDelayed) == []


class Trouble:
    """What happens to a scene under a seed."""

    links = (
        ("worker-0", "worker-1"),
        ("worker-1", "worker-0"),
        ("worker-0", "broker"),
        ("broker", "worker-0"),
    )

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene, self.stage, self.random = scene, scene.stage, Random(seed)
        self.wanted: set[int] = set()
        self.buried: list[int] = []
        self.down = False
        self.kinds = (
            self.bury,
            self.bury,
            self.again,
            self.hold,
            self.let_go,
            self.kill,
            self.fill,
            self.mistake,
        )

    def bury(self) -> None:
        size = self.random.choice([3, 3, 3, 20_000])
        new = range(len(self.wanted), len(self.wanted) + self.random.choice([1, 5, 40]))
        self.wanted.update(new)
        self.scene.ref.tell(Bury([letter(offset, b"x" * size) for offset in new]))

    def again(self) -> None:
        waiting = sorted(self.wanted - set(self.buried))
        chosen = self.random.sample(waiting, len(waiting) // 2)
        self.scene.ref.tell(Bury([letter(offset) for offset in chosen]))

    def hold(self) -> None:
        self.stage.hold(*self.random.choice(self.links))

    def let_go(self) -> None:
        if self.random.random() < 0.5:
            self.stage.holding = []  # lost, not late
        for link in list(self.stage.held):
            self.stage.let_go(*link)

    def kill(self) -> None:
        if self.down:
            self.stage.start(1)
        else:
            self.stage.kill(1)
        self.down = not self.down

    def fill(self) -> None:
        self.stage.disk.room = None if self.stage.disk.room is not None else self.random.choice([0, 100_000])

    def mistake(self) -> None:
        for actor in self.stage.actors("topic")[:1]:
            actor.fail(RuntimeError("a mistake"))

    def happen(self) -> None:
        system = self.stage.systems["worker-0"]  # as the subscription does: it is started again if it ended
        self.scene.ref = dead_letters(system, ORDERS, BILLING, self.scene.subscription.ref)
        self.random.choice(self.kinds)()
        self.buried += self.scene.buried(self.random.choice([0.0, 0.01, 1.0, 5.0]))

    def end(self) -> None:
        for link in list(self.stage.held):
            self.stage.let_go(*link)
        self.stage.disk.room = None
        if self.down:
            self.kill()
        for _ in range(20):
            waiting = sorted(self.wanted - set(self.buried))
            if waiting:
                self.scene.ref.tell(Bury([letter(offset) for offset in waiting]))
            self.buried += self.scene.buried()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_letter_is_there_once(make_stage: Callable[..., Stage], seed: int) -> None:
    """Lost and late mail, killed and failing topics, full disks: each letter is stored once."""
    small = {
        "protocol__message_bytes_max": 65_536,
        "protocol__batch_bytes_max": 262_144,
        "log__segment_bytes_max": (1 << 20) + 262_144,
    }
    stage = make_stage(2, protocol__session_timeout_ms=3_600_000, **small)
    stage.expects_failures = True
    trouble = Trouble(Scene(stage), seed)
    for _ in range(120):
        trouble.happen()
    trouble.end()
    assert set(trouble.buried) == trouble.wanted
    stored = [int(origin) for origin, _ in trouble.scene.stored()]
    assert sorted(stored) == sorted(trouble.wanted)
    assert stage.actors("deadletters") == []


def test_a_letter_that_its_topic_does_not_take_stops_no_other(scene: Scene) -> None:
    """The letter is larger than a segment; those before and after it, in its batch or later, are stored."""
    huge = letter(2, bytes(8_000_000))
    scene.ref.tell(Bury([letter(1), huge, letter(3)]))
    scene.bury(4)
    assert sorted(scene.buried()) == [1, 3, 4]
    (unburied,) = scene.subscription.take(Unburied)
    assert unburied.offset == 2
    assert "does not take the letter of offset 2" in unburied.text
    assert scene.stored() == origins(1, 3, 4)
    scene.bury(5)
    assert scene.buried() == [5]
