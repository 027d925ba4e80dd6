"""Tests of single consumers with a scripted subscription: what they send, hold and return."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from random import Random
from typing import Any

import cbor2
import pytest

from ister.actors.consumer import Consumer
from ister.actors.consumer_wire import FULL_RETRY_S, FULL_RETRY_S_MAX
from ister.actors.ledger import Held
from ister.actors.messages import (
    Acknowledged,
    AcknowledgedUntil,
    AddCredit,
    AttachConsumer,
    Block,
    CloseConsumer,
    Confirmed,
    ConsumerFrame,
    Deliver,
    Evicted,
    Granted,
    Idle,
    Left,
    Lost,
    Notice,
    Pause,
    Paused,
    Recall,
    Reopen,
    Returned,
    SetCredit,
    Yield,
    Yielded,
)
from ister.actors.pieces import Piece
from ister.actors.runtime import System
from ister.transport.session import Handle, SessionLimits
from ister.wire import Key, Type
from tests.raw_client import Frame, batch
from tests.stage import Recorder, StagedClock, StagedGateway, StagedLoop

ACK_TIMEOUT_S = 30.0


class Scene:
    """One consumer between a client, whose frames are recorded, and a subscription that the test plays."""

    def __init__(self, *, strategy: str = "reliable", type: str = "exclusive") -> None:
        self.clock = StagedClock()
        self.loop = StagedLoop(self.clock)
        self.system = System("worker-0", self.loop, None, self.clock, Random(1))
        limits = SessionLimits(1000, 1000, 10, 1000, 10_000, 10, 500, 5000, 1000, 10)
        self.gateway = StagedGateway(self.clock, limits)
        self.router = self.gateway.router
        self.out: deque[list[bytes]] = deque()
        self.router.out[b"client"] = self.out
        self.refs = itertools.count(1)
        self.gateway.sessions.hello(b"client", {Key.TYPE: Type.HELLO, Key.VERSION: 1}, self.clock.now_s)
        self.session = self.gateway.sessions.of_routing(b"client")
        self.system.spawn(Recorder, "subscription")
        recorder = self.system.find("subscription")
        assert isinstance(recorder, Recorder)
        self.subscription = recorder
        self.handle, header = self.open_frame()
        self.ref = self.handle.target = self.system.spawn(
            Consumer,
            "consumer/1",
            key=1,
            handle=self.handle,
            header=header,
            gateway=self.gateway,
            subscription=recorder.ref,
            subscription_type=type,
            strategy=strategy,
        )
        self.settle()
        consumer = self.system.find("consumer/1")
        assert isinstance(consumer, Consumer)
        self.consumer = consumer

    def settle(self) -> None:
        self.loop.settle()

    def open_frame(self, messages: int = 100, bytes: int = 1000) -> tuple[Handle, dict[int, Any]]:
        """Let the client open its handle, for the first time or again."""
        header: dict[int, Any] = {
            Key.TYPE: Type.OPEN_CONSUMER,
            Key.REF: next(self.refs),
            Key.HANDLE: 4,
            Key.TOPIC: "t",
            Key.SUBSCRIPTION: "s",
            Key.SUBSCRIPTION_TYPE: "exclusive",
            Key.MESSAGES: messages,
            Key.BYTES: bytes,
        }
        _, handle = self.gateway.sessions.step(self.session, header)
        return handle, header

    def tell(self, *messages: object) -> None:
        """Send a message to the consumer, and run it."""
        for message in messages:
            self.ref.tell(message)
        self.settle()

    def grant(self, position: int = 0) -> None:
        """Send the consumer its `Granted`."""
        self.tell(Granted(position, int(ACK_TIMEOUT_S * 1000)))
        assert self.heard(Type.OPENED)

    def reopen(self, **credit: int) -> int:
        """Let the client open its handle again; return the REF."""
        handle, header = self.open_frame(**credit)
        self.tell(Reopen(handle, handle.generation, header))
        return int(header[Key.REF])

    def deliver(self, first: int, count: int = 1, attempt: int = 1) -> None:
        """Deliver a piece to the consumer."""
        self.tell(Deliver(self.piece(first, count, attempt), self.subscription.ref))

    @staticmethod
    def piece(first: int, count: int = 1, attempt: int = 1) -> Piece:
        frames = batch([b"%d" % (first + n) for n in range(count)])
        return Piece(first, count, 0, attempt, (count, 5), tuple(frames), sum(map(len, frames)))

    def frame(self, kind: int, **keys: Any) -> None:
        """Let the client send a frame about its handle."""
        header = {Key.TYPE: kind, Key.HANDLE: 4} | {
            getattr(Key, name.upper()): value for name, value in keys.items()
        }
        self.tell(ConsumerFrame(header))

    def heard(self, *kinds: int) -> list[Frame]:
        """Return the frames of these types that the client received since the last call; forget all others."""
        frames = [Frame(cbor2.loads(parts[0]), parts[1:]) for parts in self.out]
        self.out.clear()
        return [frame for frame in frames if frame.kind in kinds]

    def told(self, kind: type[Any]) -> list[Any]:
        """Return the messages of one type that the subscription received, and forget them."""
        return self.subscription.take(kind)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Return a consumer of an Exclusive reliable subscription that was granted its place."""
    scene = Scene()
    scene.grant()
    scene.subscription.heard.clear()
    yield scene
    scene.system.stop_all()


def test_it_asks_for_a_place_and_says_opened_when_it_has_it() -> None:
    """Credit is capped at the limits; OPENED has the position and the strategy."""
    scene = Scene()
    (asked,) = scene.told(AttachConsumer)
    assert (asked.key, asked.messages, asked.bytes, asked.priority) == (1, 100, 1000, 0)
    assert scene.heard(Type.OPENED) == []
    scene.tell(Granted(17, 1000))
    (opened,) = scene.heard(Type.OPENED)
    assert opened.header == {
        Key.TYPE: Type.OPENED,
        Key.REF: 1,
        Key.HANDLE: 4,
        Key.OFFSET: 17,
        Key.STRATEGY: "reliable",
    }
    assert scene.handle.state == "consumer"


def test_a_refused_consumer_says_so_and_goes() -> None:
    """The error answers the open, closes the handle, and the actor ends."""
    scene = Scene()
    scene.tell(Evicted("subscription-busy", "somebody has it"))
    (refused,) = scene.heard(Type.ERROR)
    assert (refused.code, refused.header[Key.REF], refused.header[Key.CLOSED]) == (
        "subscription-busy",
        1,
        True,
    )
    assert scene.handle.state == "absent"
    assert scene.system.find("consumer/1") is None
    assert scene.told(Left) == [Left(1, [])]


def test_what_was_sent_is_held_until_it_is_acknowledged(scene: Scene) -> None:
    """An acknowledgment may cover parts or all, repeatedly; a consumer that leaves returns the rest."""
    scene.deliver(0, 5)
    scene.deliver(5, 5, attempt=3)
    assert [frame.messages()[0] for frame in scene.heard(Type.DELIVER)] == [(0, b"0"), (5, b"5")]
    scene.frame(Type.ACK, ranges=[1, 3, 8, 10], ref=9)
    assert scene.told(Acknowledged) == [Acknowledged(1, ((1, 3), (8, 10)), 9, 4)]
    assert scene.heard(Type.DONE) == []
    scene.tell(Confirmed(9))
    (done,) = scene.heard(Type.DONE)
    assert done.header[Key.REF] == 9
    scene.frame(Type.ACK, ranges=[0, 4])
    scene.consumer.stop()
    scene.settle()
    assert scene.told(Left) == [Left(1, [Held(4, 5, 1), Held(5, 8, 3)])]


def test_ack_until_is_passed_on_as_what_it_means() -> None:
    """In an ordered subscription it covers all offsets below, in a shared one those that this consumer holds."""
    for kind, told in (
        ("failover", AcknowledgedUntil(1, 7, 3, 4)),
        ("shared", Acknowledged(1, ((2, 4), (5, 7)), 3, 4)),
    ):
        scene = Scene(type=kind)
        scene.grant()
        scene.deliver(2, 2)
        scene.deliver(5, 3)
        scene.frame(Type.ACK_UNTIL, offset=6, ref=3)
        assert told in scene.subscription.heard
        assert scene.consumer.in_flight.messages == 1
        scene.system.stop_all()


def test_a_nack_gives_back_what_is_held_and_nothing_else(scene: Scene) -> None:
    """They return with delay and reason; acknowledged messages do not come again."""
    scene.deliver(0, 4)
    scene.frame(Type.ACK, ranges=[0, 2])
    scene.frame(Type.NACK, ranges=[0, 4], delay=250, reason="not now", ref=8)
    assert scene.told(Returned) == [Returned(1, [Held(2, 4, 1)], 0.25, "not now", failed=True)]
    assert [frame.header[Key.REF] for frame in scene.heard(Type.DONE)] == [8]
    scene.frame(Type.NACK, ranges=[0, 4])
    assert scene.told(Returned) == []


def tells(scene: Scene) -> None:
    """Let the client open again with the flag that it reports what its program takes."""
    handle, header = scene.open_frame()
    header[Key.TAKEN] = 0
    scene.tell(Reopen(handle, handle.generation, header), Paused())
    scene.subscription.heard.clear()


@pytest.mark.requirement("9.6-7")
def test_a_program_that_failed_gives_back_what_it_has_in_hand(scene: Scene) -> None:
    """Without knowing which failed: acknowledged messages are done, and those waiting in the client did not fail."""
    tells(scene)
    scene.deliver(0, 10)
    scene.frame(Type.CREDIT, messages=0, bytes=0, taken=4)
    scene.frame(Type.ACK, ranges=[0, 3])
    scene.frame(Type.NACK, ranges=[], taken=4, reason="ValueError: no")
    assert scene.told(Returned) == [Returned(1, [Held(3, 4, 1)], None, "ValueError: no", failed=True)]
    scene.frame(Type.NACK, ranges=[])
    assert scene.told(Returned) == []


def test_what_waits_for_a_program_that_asks_for_nothing_goes_to_others(scene: Scene) -> None:
    """If there are others: the program acknowledged all it had, and took nothing within the acknowledgment timeout."""
    tells(scene)
    scene.deliver(0, 10)
    scene.loop.advance(ACK_TIMEOUT_S - 1)
    scene.frame(Type.CREDIT, messages=0, bytes=0, taken=4)
    scene.loop.advance(ACK_TIMEOUT_S - 1)
    scene.frame(Type.ACK, ranges=[0, 4])
    scene.loop.advance(ACK_TIMEOUT_S - 1)
    assert scene.told(Idle) == []
    scene.tell(Recall())  # a late Recall, about an earlier delivery
    assert scene.told(Returned) == []
    scene.loop.advance(2)
    assert scene.told(Idle) == [Idle(1)]
    scene.tell(Recall())
    (returned,) = scene.told(Returned)
    assert (returned.held, returned.failed) == ([Held(4, 10, 1)], False)
    assert [frame.header[Key.CODE] for frame in scene.heard(Type.EVENT)] == ["recalled"]
    scene.loop.advance(10 * ACK_TIMEOUT_S)
    assert scene.told(Returned) == []
    assert scene.loop.next_due() is None


@pytest.mark.requirement("9.6-6")
def test_what_crosses_a_recall_is_given_back_and_not_sent(scene: Scene) -> None:
    """All credit is void then; a piece that was dispatched before the subscription heard that was never delivered."""
    tells(scene)
    scene.deliver(0, 10)
    scene.loop.advance(2 * ACK_TIMEOUT_S)
    scene.heard()
    scene.subscription.heard.clear()
    scene.tell(Recall(), Deliver(scene.piece(10, 2, attempt=3), scene.subscription.ref))
    assert [frame.kind for frame in scene.heard(Type.EVENT, Type.DELIVER)] == [Type.EVENT]
    recalled, crossed = scene.told(Returned)
    assert (recalled.held, crossed.held) == ([Held(0, 10, 1)], [Held(10, 12, 2)])
    assert not crossed.failed
    scene.frame(Type.CREDIT, messages=5, bytes=500)
    scene.deliver(0, 2, attempt=2)
    assert [frame.kind for frame in scene.heard(Type.EVENT, Type.DELIVER)] == [Type.DELIVER]
    assert scene.told(Returned) == []


@pytest.mark.requirement("9.6-6")
def test_who_opens_again_after_a_recall_is_sent_what_comes(scene: Scene) -> None:
    """Its credit is that of the new open."""
    tells(scene)
    scene.deliver(0, 10)
    scene.loop.advance(2 * ACK_TIMEOUT_S)
    scene.tell(Recall())
    scene.reopen()
    scene.tell(Paused())
    scene.heard()
    scene.deliver(0, 2, attempt=2)
    assert [frame.kind for frame in scene.heard(Type.EVENT, Type.DELIVER)] == [Type.DELIVER]


@pytest.mark.parametrize("kind", [Type.ACK, Type.NACK])
@pytest.mark.parametrize("ranges", [[0, 6], [5, 6], [3, 3], [4, 2], [0, 1, 9, 10], [0, (1 << 64) - 1]])
def test_ranges_that_were_never_delivered_change_nothing(scene: Scene, kind: int, ranges: list[int]) -> None:
    """The whole frame is refused with its REF; messages in flight stay in flight."""
    scene.deliver(0, 5)
    scene.heard()
    scene.frame(kind, ranges=ranges, ref=5)
    (refused,) = scene.heard(Type.ERROR)
    assert refused.code in ("ack-unknown", "invalid-argument")
    assert (refused.header[Key.REF], refused.header[Key.HANDLE]) == (5, 4)
    assert scene.subscription.heard == []
    assert scene.consumer.in_flight.messages == 5


def test_everything_below_its_position_may_be_acknowledged() -> None:
    """A consumer that succeeds another may acknowledge what the other was delivered."""
    scene = Scene()
    scene.grant(position=50)
    scene.frame(Type.ACK, ranges=[10, 50])
    assert scene.told(Acknowledged)
    scene.frame(Type.ACK, ranges=[50, 51])
    assert scene.told(Acknowledged) == []


def test_what_is_held_too_long_is_given_back_once(scene: Scene) -> None:
    """Each delivery has its own timeout, which does not count messages acknowledged in time."""
    scene.deliver(0, 3)
    scene.loop.advance(ACK_TIMEOUT_S - 1)
    scene.deliver(3, 2)
    scene.frame(Type.ACK, ranges=[1, 2])
    scene.loop.advance(1.5)
    (returned,) = scene.told(Returned)
    assert (returned.held, returned.delay_s, returned.failed) == ([Held(0, 1, 1), Held(2, 3, 1)], None, True)
    scene.loop.advance(ACK_TIMEOUT_S)
    (returned,) = scene.told(Returned)
    assert returned.held == [Held(3, 5, 1)]
    assert scene.loop.next_due() is None


def test_a_full_connection_is_tried_again_and_keeps_its_order(scene: Scene) -> None:
    """The subscription is told to wait; queued pieces stay here, and go out in order when there is room."""
    scene.router.full.add(b"client")
    for number in range(4):
        scene.deliver(number)
    assert scene.told(Block) == [Block(1, True, "full")]
    scene.loop.advance(1.0)
    assert (
        scene.told(Block) == [Block(1, True, "full")] * 8
    )  # each try says so again, and waits twice as long as the one before
    scene.router.full.clear()
    scene.loop.advance(FULL_RETRY_S_MAX)
    assert [frame.header[Key.OFFSET] for frame in scene.heard(Type.DELIVER)] == [0, 1, 2, 3]
    assert scene.told(Block) == [Block(1, False)]


@pytest.mark.requirement("9.7-2")
def test_an_event_keeps_its_place_behind_what_waits(scene: Scene) -> None:
    """A client that hears of damage has the messages before it; a full connection does not lose the event."""
    scene.router.full.add(b"client")
    scene.deliver(0)
    scene.tell(Notice("log-damaged", 1, "one is damaged", 1))
    scene.deliver(2)
    scene.router.full.clear()
    scene.loop.advance(2 * FULL_RETRY_S)
    heard = scene.heard(Type.DELIVER, Type.EVENT)
    assert [(frame.kind, frame.header[Key.OFFSET]) for frame in heard] == [
        (Type.DELIVER, 0),
        (Type.EVENT, 1),
        (Type.DELIVER, 2),
    ]


def test_an_event_waits_for_room_by_itself(scene: Scene) -> None:
    """It is sent once the connection has room, and the session stays."""
    scene.router.full.add(b"client")
    scene.tell(Notice("trimmed", 3, "three are gone", 0))
    assert scene.session.routing is not None
    scene.router.full.clear()
    scene.loop.advance(2 * FULL_RETRY_S)
    assert [frame.code for frame in scene.heard(Type.EVENT)] == ["trimmed"]
    assert scene.told(Block) == [Block(1, True, "full"), Block(1, False)]


def test_an_event_that_went_nowhere_is_told_to_who_comes_back(scene: Scene) -> None:
    """It is sent after OPENED; what was delivered to this consumer meanwhile goes back."""
    del scene.router.out[b"client"]
    scene.tell(Notice("skipped", 1, "one was skipped", 0))
    scene.deliver(1)
    token = scene.session.token
    scene.router.out[b"again"] = scene.out
    scene.gateway.sessions.hello(
        b"again", {Key.TYPE: Type.HELLO, Key.VERSION: 1, Key.SESSION: token}, scene.clock.now_s
    )
    scene.reopen()
    scene.tell(Paused())
    assert [frame.kind for frame in scene.heard(Type.OPENED, Type.EVENT, Type.DELIVER)] == [
        Type.OPENED,
        Type.EVENT,
    ]
    assert [each.held for each in scene.told(Returned)] == [[Held(1, 2, 0)]]


def test_a_lost_connection_holds_what_it_may_have_sent(scene: Scene) -> None:
    """Pieces that could not be sent are held, blocked, and returned when the client opens again."""
    scene.deliver(0)
    del scene.router.out[b"client"]
    scene.deliver(1)
    assert scene.told(Block) == [Block(1, True, "lost")]
    assert scene.consumer.in_flight.messages == 2
    token = scene.session.token
    scene.router.out[b"again"] = scene.out
    scene.gateway.sessions.hello(
        b"again", {Key.TYPE: Type.HELLO, Key.VERSION: 1, Key.SESSION: token}, scene.clock.now_s
    )
    ref = scene.reopen(messages=7, bytes=70)
    assert scene.told(Pause) == [Pause(scene.ref, 1)]
    scene.heard()
    scene.deliver(2)  # it was on its way
    assert scene.heard(Type.OPENED, Type.DELIVER) == []
    scene.tell(Paused())
    (returned,) = scene.told(Returned)
    assert sorted(returned.held) == [Held(0, 1, 1), Held(1, 2, 1), Held(2, 3, 0)]  # the last was never sent
    assert scene.told(SetCredit) == [SetCredit(1, 7, 70)]
    (opened,) = scene.heard(Type.OPENED, Type.DELIVER)
    assert (opened.header[Key.REF], opened.header[Key.OFFSET]) == (ref, 3)


def test_opening_again_and_again_is_answered_for_the_last_time(scene: Scene) -> None:
    """One pause of the subscription serves all the opens."""
    scene.reopen(messages=1)
    ref = scene.reopen(messages=2)
    assert len(scene.told(Pause)) == 1
    scene.tell(Paused())
    assert [frame.header[Key.REF] for frame in scene.heard(Type.OPENED)] == [ref]
    assert scene.told(SetCredit) == [SetCredit(1, 2, 1000)]


def test_a_client_that_comes_back_before_it_had_its_place_says_its_credit_again() -> None:
    """The first request had its credit of that time; the subscription is told once what it is now."""
    scene = Scene()
    ref = scene.reopen(messages=3)
    scene.tell(Paused())
    assert scene.heard(Type.OPENED) == []
    assert scene.told(SetCredit) == [SetCredit(1, 3, 1000)]
    scene.tell(Granted(0, 1000))
    assert scene.told(SetCredit) == [], "what was delivered in between has used some of it"
    assert [frame.header[Key.REF] for frame in scene.heard(Type.OPENED)] == [ref]


def test_close_waits_for_what_is_on_its_way(scene: Scene) -> None:
    """Everything the subscription ever delivered goes back with Left; then the client gets DONE."""
    scene.deliver(0, 2)
    scene.heard()
    scene.frame(Type.ACK, ranges=[0, 1])
    scene.tell(CloseConsumer(scene.handle, 12))
    assert scene.told(Pause)
    scene.deliver(2)
    assert scene.heard(Type.DONE, Type.DELIVER) == []
    scene.tell(Paused())
    (left,) = scene.told(Left)
    assert sorted(left.held) == [Held(1, 2, 1), Held(2, 3, 0)]
    assert [frame.header[Key.REF] for frame in scene.heard(Type.DONE)] == [12]
    assert scene.handle.state == "absent"
    assert scene.system.find("consumer/1") is None


def test_opened_again_after_a_close_it_stays(scene: Scene) -> None:
    """The close is answered, and has no effect."""
    scene.tell(CloseConsumer(scene.handle, 12))
    ref = scene.reopen()
    scene.tell(Paused())
    assert [(frame.kind, frame.header[Key.REF]) for frame in scene.heard(Type.DONE, Type.OPENED)] == [
        (Type.DONE, 12),
        (Type.OPENED, ref),
    ]
    assert scene.told(Left) == []


def test_a_backlog_is_not_sent_to_a_client_that_begins_anew(scene: Scene) -> None:
    """A retry that runs between the open and the pause sends nothing."""
    scene.router.full.add(b"client")
    scene.deliver(0)
    scene.reopen()
    scene.router.full.clear()
    scene.loop.advance(5 * FULL_RETRY_S)
    assert scene.heard(Type.DELIVER) == []
    scene.tell(Paused())
    (returned,) = scene.told(Returned)
    assert returned.held == [Held(0, 1, 0)]
    scene.deliver(0)
    assert [frame.header[Key.OFFSET] for frame in scene.heard(Type.DELIVER)] == [0]


def test_who_yields_gives_everything_back_and_stays(scene: Scene) -> None:
    """A Failover consumer that is no longer active keeps its handle, and may still acknowledge."""
    scene.deliver(0, 3)
    scene.tell(Yield())
    assert [type(message) for message in scene.subscription.heard] == [Returned, Yielded]
    assert scene.told(Returned)[0].held == [Held(0, 3, 1)]
    scene.frame(Type.ACK, ranges=[0, 3])
    assert scene.told(Acknowledged) == [Acknowledged(1, ((0, 3),), None, 0)]
    assert scene.handle.state == "consumer"


def test_credit_and_events_pass_through(scene: Scene) -> None:
    """Credit goes from the client to the subscription, events go from the subscription to the client."""
    scene.frame(Type.CREDIT, messages=5, bytes=6)
    assert scene.told(AddCredit) == [AddCredit(1, 5, 6)]
    scene.tell(Notice("active", 0, "you are"))
    (event,) = scene.heard(Type.EVENT)
    assert (event.code, event.header[Key.HANDLE], event.header[Key.TEXT]) == ("active", 4, "you are")


def test_a_consumer_that_fails_gives_back_and_says_so(scene: Scene) -> None:
    """The client is told that its handle is closed; nothing it held is lost."""
    scene.deliver(0, 3)
    scene.heard()
    scene.consumer.fail(RuntimeError("a mistake"))
    scene.settle()
    assert scene.told(Left) == [Left(1, [Held(0, 3, 1)])]
    (gone,) = scene.heard(Type.ERROR)
    assert (gone.code, gone.header[Key.CLOSED]) == ("internal", True)


def test_without_a_log_nothing_is_held_and_losses_are_told() -> None:
    """A non-reliable consumer acknowledges nothing; messages its connection did not take are counted."""
    scene = Scene(strategy="non-reliable")
    scene.grant()
    scene.deliver(0, 3)
    assert scene.consumer.in_flight.messages == 0
    for kind, keys in (
        (Type.ACK, {"ranges": [0, 99]}),
        (Type.NACK, {"ranges": [7, 9]}),
        (Type.ACK_UNTIL, {"offset": 5}),
    ):
        scene.heard()
        scene.frame(kind, ref=kind, **keys)
        assert [frame.header[Key.REF] for frame in scene.heard(Type.DONE, Type.ERROR)] == [kind]
    scene.subscription.heard.clear()
    scene.router.full.add(b"client")
    scene.deliver(3, 2)
    scene.deliver(5, 1)
    scene.tell(CloseConsumer(scene.handle, None))
    scene.tell(Paused())
    kinds = [message for message in scene.subscription.heard if isinstance(message, Lost | Left)]
    assert kinds == [Lost(3), Left(1, [])]


@pytest.mark.parametrize(
    ("strategy", "type", "told"), [("non-reliable", "exclusive", [Lost(2)]), ("reliable", "reader", [])]
)
def test_what_finds_no_connection_is_lost_unless_it_is_read_again(
    strategy: str, type: str, told: list[Lost]
) -> None:
    """A reader's client continues from its own place, and nobody counts what it missed on the way."""
    scene = Scene(strategy=strategy, type=type)
    scene.grant()
    scene.subscription.heard.clear()
    scene.router.out.clear()
    scene.deliver(0, 2)
    assert [message for message in scene.subscription.heard if isinstance(message, Lost)] == told
