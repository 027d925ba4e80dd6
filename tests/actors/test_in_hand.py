"""Tests of which messages a program has in hand, against a model with one entry per message."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ister.actors.in_hand import InHand, Part
from ister.wire import Key, Type
from tests.actors.scenes import Scene, events, heard, offsets
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient

SESSION_S = 16.0  # after which a silent session is over


def each(parts: Sequence[Part]) -> list[int]:
    """Return every offset."""
    return [offset for part in parts for offset in (part if isinstance(part, list) else range(*part))]


class Told(RuleBasedStateMachine):
    """A client that reports what it takes, and the broker's state for it."""

    def __init__(self) -> None:
        super().__init__()
        self.in_hand = InHand()
        self.delivered: list[tuple[int, bool]] = []  # offset, singly: in the order of delivery
        self.taken: set[int] = set()  # places
        self.gone: set[int] = set()  # places that were recalled
        self.told = 0
        self.offset = 0

    @rule(
        gaps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=4),
        singly=st.booleans(),
    )
    def deliver(self, gaps: list[tuple[int, int]], singly: bool) -> None:
        """Deliver a piece, perhaps of offsets that are not consecutive."""
        parts = []
        for gap, count in gaps:
            first = self.offset + gap
            parts.append((first, first + count))
            self.offset = first + count
        begin = len(self.delivered)
        self.delivered += [(offset, singly) for offset in each(parts)]
        at_once = [place for place in range(begin, len(self.delivered)) if not singly and place < self.told]
        taken, waiting = self.in_hand.deliver(parts, singly=singly)
        assert each(taken) == [self.delivered[place][0] for place in at_once]
        assert sorted(each(taken) + each(waiting)) == each(parts)
        self.taken.update(at_once)

    @rule(gaps=st.lists(st.integers(1, 4), min_size=1, max_size=8))
    def deliver_scattered(self, gaps: list[int]) -> None:
        """Deliver messages that lie apart together."""
        offsets = [self.offset + sum(gaps[: at + 1]) for at in range(len(gaps))]
        self.offset = offsets[-1] + 1
        begin = len(self.delivered)
        self.delivered += [(offset, False) for offset in offsets]
        at_once = [place for place in range(begin, len(self.delivered)) if place < self.told]
        taken, waiting = self.in_hand.deliver_scattered(offsets)
        assert taken == [self.delivered[place][0] for place in at_once]
        assert taken + waiting == offsets
        self.taken.update(at_once)

    @rule(ahead=st.integers(-3, 8))
    def tell(self, ahead: int) -> None:
        """Report that more is taken; the report may come late."""
        count = max(0, self.told + ahead)
        self._takes(count, self.in_hand.tell(count), alone=False)

    @rule(ahead=st.integers(0, 4))
    def confirm(self, ahead: int) -> None:
        """Confirm one message that is about to be handed out singly."""
        count = max(1, self.told + ahead)
        self._takes(count, self.in_hand.confirm(count), alone=True)

    def _takes(self, count: int, found: list[Part], *, alone: bool) -> None:
        plain = [
            place
            for place in range(min(count, len(self.delivered)))
            if place not in self.taken | self.gone and not self.delivered[place][1]
        ]
        last = count - 1
        single = alone and last < len(self.delivered) and self.delivered[last][1]
        if single and last not in self.taken | self.gone:
            plain.append(last)
        if alone:  # those before it were handed out, or never will be
            self.gone.update(
                place
                for place in range(min(last, len(self.delivered)))
                if self.delivered[place][1] and place not in self.taken
            )
        assert sorted(each(found)) == sorted(self.delivered[place][0] for place in plain)
        self.taken.update(plain)
        self.told = max(self.told, count)

    @rule()
    def forget(self) -> None:
        """Recall everything."""
        self.in_hand.forget()
        self.gone.update(set(range(len(self.delivered))) - self.taken)

    @invariant()
    def the_first_that_waits_is_known(self) -> None:
        """It is the one that fails when the client is lost and its program had nothing."""
        waiting = [place for place in range(len(self.delivered)) if place not in self.taken | self.gone]
        first = self.delivered[waiting[0]] if waiting else None
        assert self.in_hand.first() == (None if first is None or first[1] else first[0])


TestTold = Told.TestCase


@given(st.integers(1, 50), st.integers(0, 60))
def test_a_word_ahead_covers_what_comes_later(count: int, told: int) -> None:
    """A fast program therefore sends less than one report per message."""
    in_hand = InHand()
    assert in_hand.tell(told) == []
    taken, waiting = in_hand.deliver([(100, 100 + count)], singly=False)
    assert (len(each(taken)), len(each(waiting))) == (min(told, count), max(0, count - told))


# ---- through the broker -------------------------------------------------------------------------------------------


@pytest.fixture
def scene(stage: Stage) -> Scene:
    """Return a shared subscription's scene."""
    return Scene(stage)


def delivered(client: StagedClient) -> list[Frame]:
    """Return the DELIVER frames so far."""
    client.stage.settle()
    frames = []
    while (frame := client.hear(0)) is not None:
        if frame.kind == Type.DELIVER:
            frames.append(frame)
    return frames


def lose(scene: Scene, client: StagedClient) -> None:
    """Let a client send nothing until its session has ended."""
    client.die()
    scene.stage.advance(SESSION_S)


def dead(scene: Scene) -> int:
    """Return the number of dead letters."""
    scene.stage.advance(2)
    return int(scene.shown()["dead_lettered"])


@pytest.mark.requirement("9.6-4")
def test_only_what_was_in_hand_fails_with_its_consumer(scene: Scene) -> None:
    """Messages that waited in the client come again with a higher attempt, and that never makes them dead letters."""
    scene.publish(*[b"%d" % number for number in range(20)])
    for attempt in range(1, 4):
        client = scene.consumer(tells=True, max_deliveries=3)
        assert client.opened.header[Key.TAKEN] == 0
        assert heard(client)[0] == (0, b"0", attempt)
        client.taken(1, 1, alone=attempt == 3)
        lose(scene, client)
    assert dead(scene) == 1
    client = scene.consumer(tells=True)
    assert offsets(client) == list(range(1, 20))


@pytest.mark.requirement("9.6-5")
def test_the_last_chance_comes_singly(scene: Scene) -> None:
    """Only a message that was confirmed singly can have its last failure when its consumer is lost."""
    scene.publish(b"a", b"b", b"c")
    client = scene.consumer(tells=True, max_deliveries=2)
    (frame,) = delivered(client)
    assert Key.SINGLY not in frame.header
    client.taken(1, 3)
    lose(scene, client)
    client = scene.consumer(tells=True)
    (frame,) = delivered(client)
    assert frame.header[Key.SINGLY] is True
    client.taken(1, 3)  # no report of one of them singly
    lose(scene, client)
    assert dead(scene) == 0
    client = scene.consumer(tells=True)
    delivered(client)
    client.taken(1, 1, alone=True)
    client.ack(1, (0, 1))
    client.taken(1, 2, alone=True)
    lose(scene, client)
    assert dead(scene) == 1
    assert offsets(scene.consumer(tells=True)) == [2]


@pytest.mark.requirement("9.6-4")
def test_who_dies_before_it_can_say_what_it_took_is_found_out(scene: Scene) -> None:
    """The first message that waited fails, and no other; but this is never its last failure."""
    scene.publish(b"poison", b"good", b"good")
    for _ in range(5):
        client = scene.consumer(tells=True, max_deliveries=3)
        heard(client)
        lose(scene, client)
    assert dead(scene) == 0
    client = scene.consumer(tells=True)
    found = {tuple(frame.offsets()): frame.header.get(Key.SINGLY, False) for frame in delivered(client)}
    assert found == {(0,): True, (1, 2): False}


@pytest.mark.requirement("9.6-8")
def test_of_a_client_that_tells_nothing_everything_is_in_hand(scene: Scene) -> None:
    """A client without the feature behaves as before."""
    scene.publish(b"a", b"b")
    client = scene.consumer(max_deliveries=1)
    assert Key.TAKEN not in client.opened.header
    heard(client)
    lose(scene, client)
    assert dead(scene) == 2


@pytest.mark.requirement("9.6-3")
def test_what_waits_in_a_client_does_not_time_out(scene: Scene) -> None:
    """The acknowledgment timeout begins when the program takes the message."""
    scene.publish(b"a", b"b", b"c")
    client = scene.consumer(tells=True, ack_timeout_ms=1000)
    assert offsets(client) == [0, 1, 2]
    scene.stage.advance(5)
    assert offsets(client) == []
    client.taken(1, 1)
    scene.stage.advance(0.5)
    client.ack(1, (0, 1))
    scene.stage.advance(5)
    assert (offsets(client), events(client)) == ([], [])
    assert scene.shown()["in_flight"] == 2


@pytest.mark.requirement("9.6-6")
@pytest.mark.parametrize("type", ["shared", "key-shared", "failover"])
def test_what_waits_for_a_program_that_forgot_it_goes_to_others(scene: Scene, type: str) -> None:
    """The program has acknowledged all it had, and takes nothing; when it does again, it gets more."""
    scene.type = type
    scene.publish(b"a", b"b", b"c")
    idle = scene.consumer(tells=True, ack_timeout_ms=1000, max_deliveries=1, priority=2)
    assert offsets(idle) == [0, 1, 2]
    idle.taken(1, 1)
    idle.ack(1, (0, 1))
    scene.stage.advance(5)  # without other consumers it may
    assert (offsets(idle), scene.shown()["in_flight"]) == ([], 2)
    other = scene.consumer(tells=True)
    scene.stage.advance(3)
    assert heard(other) == [(1, b"b", 2), (2, b"c", 2)]
    assert scene.shown()["dead_lettered"] == 0
    assert "recalled" in [event.code for event in events(idle)]


@pytest.mark.requirement("9.6-6")
def test_what_waits_for_a_stuck_program_goes_to_others_and_did_not_fail(scene: Scene) -> None:
    """The client is told, and hands none of it out."""
    scene.publish(b"a", b"b", b"c")
    stuck = scene.consumer(
        tells=True, ack_timeout_ms=1000, max_deliveries=2, backoff_ms_min=50_000, messages=30
    )
    assert offsets(stuck) == [0, 1, 2]
    stuck.taken(1, 1)
    scene.stage.advance(0.5)
    other = scene.consumer(tells=True)
    scene.stage.advance(1)
    assert heard(other) == [(1, b"b", 2), (2, b"c", 2)]
    (event,) = events(stuck)
    assert (event.code, event.header[Key.COUNT]) == ("recalled", 2)
    scene.publish(b"d")
    assert offsets(stuck) == []  # its credit was dropped with what was recalled
    stuck.credit(1, 10)
    other.ack(1, (1, 2))
    for _ in range(2):  # they never failed
        lose(scene, other)
        other = scene.consumer(tells=True)
    scene.stage.settle()
    assert scene.shown()["dead_lettered"] == 0


@pytest.mark.requirement("9.6-10")
def test_a_client_that_does_not_say_what_is_taken_is_recalled_what_it_does_not_read(scene: Scene) -> None:
    """What was sent to it is in its hands; what could not be sent goes elsewhere, and its credit is void."""
    scene.publish(b"a")
    deaf = scene.consumer(ack_timeout_ms=1000, backoff_ms_min=0, max_deliveries=9, messages=30)
    assert offsets(deaf) == [0]
    deaf.router.full.add(deaf.routing)
    scene.publish(b"b")
    scene.stage.advance(0.2)
    other = scene.consumer()
    scene.stage.advance(1)
    assert sorted(heard(other)) == [(0, b"a", 2), (1, b"b", 2)]
    other.ack(1, (0, 2))
    deaf.router.full.clear()
    scene.stage.advance(0.4)
    assert [event.code for event in events(deaf)] == ["recalled"]
    other.close_handle(1)
    scene.publish(b"c")
    scene.stage.advance(3)
    assert offsets(deaf) == []
    deaf.credit(1, 10)
    scene.stage.settle()
    assert offsets(deaf) == [2]


def test_a_reader_is_asked_for_nothing(scene: Scene) -> None:
    """Its messages cannot fail."""
    client = scene.stage.at_subscription("orders", "r-1")
    assert Key.TAKEN not in client.open_consumer(1, "orders", "r-1", "reader", tells=True).header


def test_what_has_not_left_the_broker_does_not_time_out(scene: Scene) -> None:
    """A client whose connection is full has not received it, whatever it said it would take."""
    client = scene.consumer(tells=True, ack_timeout_ms=500, backoff_ms_min=0)
    client.taken(1, 100)
    scene.stage.settle()
    client.router.full.add(client.routing)
    scene.publish(b"a", b"b")
    scene.stage.advance(2)
    client.router.full.clear()
    scene.stage.advance(0.4)
    assert heard(client) == [(0, b"a", 1), (1, b"b", 1)]
    scene.stage.advance(0.6)  # now it has it
    assert heard(client) == [(0, b"a", 2), (1, b"b", 2)]


def test_who_opens_again_hears_nothing_of_what_was_recalled_before(scene: Scene) -> None:
    """The credit is what the new open granted."""
    client = scene.consumer(tells=True, ack_timeout_ms=500, backoff_ms_min=60_000, messages=2)
    scene.publish(b"a", b"b")
    assert offsets(client) == [0, 1]
    client.taken(1, 1)
    scene.stage.settle()
    client.router.full.add(client.routing)
    scene.stage.advance(1)
    client.router.full.clear()
    client.open_consumer(1, "orders", "s", "shared", sparse=True, tells=True)
    assert (offsets(client), events(client)) == ([1], [])
