"""Scenarios of what a program takes: the broker is told first, and a dangerous message is handed out alone."""

from __future__ import annotations

from functools import partial

import pytest

from ister.ownbroker import OwnBroker
from tests.conformance_clients.conftest import Play
from tests.conformance_clients.player import Player, payloads_of
from tests.conformance_clients.router import ACK, CREDIT, EVENT, OPEN_CONSUMER, Router

pytestmark = pytest.mark.process

SINGLY = {"keys": {39: True}}


def opened(player: Player, router: Router, credit_messages: int | None = None) -> str:
    """Connect, and return a consumer."""
    player.need("taken")
    player.connect(router.endpoint)
    player.topic("orders")
    return player.consumer("orders", "all", "exclusive", credit_messages=credit_messages)


def test_what_the_program_takes_is_said(player: Player) -> None:
    """At least what it took, and not all that waits for it (ISTER-9.6-2)."""
    with Router(takes=True) as router:
        consumer = opened(player, router, credit_messages=100)
        assert router.of(OPEN_CONSUMER)[0].header[38] == 0
        router.deliver(0, *(b"%d" % number for number in range(50)))
        assert payloads_of(player.receive(consumer)) == [b"0"]
        router.wait(lambda: router.taken, "TAKEN")
        assert router.taken == 1, "a program whose pace is not known was said to have more than it took"
        assert len(player.receive(consumer, 49)) == 49
        router.wait(lambda: (router.taken or 0) >= 50, "TAKEN of all")


def test_a_broker_that_does_not_ask_is_not_told(player: Player) -> None:
    """Without TAKEN in OPENED there is none later (ISTER-9.6-1)."""
    with Router() as router:
        consumer = opened(player, router, credit_messages=10)
        router.deliver(0, *(b"%d" % number for number in range(10)))
        assert len(player.receive(consumer, 10)) == 10
        router.wait(lambda: router.of(CREDIT), "CREDIT")
        assert router.taken is None


def test_a_message_that_comes_singly_waits_until_the_broker_knows(player: Player) -> None:
    """TAKEN with a REF, DONE, and only then the message; so each of them, and the first behind (9.6-5, 9.6-9)."""
    with Router(takes=True) as router:
        consumer = opened(player, router)
        router.confirms = False
        router.deliver(0, b"first", b"second", **SINGLY)
        router.deliver(2, b"third", b"fourth")
        for number, payload in enumerate((b"first", b"second", b"third"), 1):
            assert player.nothing(consumer), "handed out before the broker knew"
            router.wait(partial(said, router, number), f"TAKEN {number}")
            asked = router.of(CREDIT)[-1].header
            assert 1 in asked, "no REF"
            router.say({0: 40, 1: asked[1]})
            [came] = player.receive(consumer)
            assert payloads_of([came]) == [payload]
            player.ack(consumer, came)
            router.wait(partial(acked, router, number), "ACK")
        assert payloads_of(player.receive(consumer)) == [b"fourth"]


def told(player: Player, consumer: str, code: str) -> bool:
    """Whether an event has come; nothing is received meanwhile."""
    return code in [event["code"] for event in player.events(consumer=consumer)]


def said(router: Router, taken: int) -> bool:
    """Whether the client has said that its program has taken so many."""
    return router.taken == taken


def acked(router: Router, end: int) -> bool:
    """Whether everything up to an offset was acknowledged."""
    return any(each.header[13][-1] >= end for each in router.of(ACK))


def test_what_was_recalled_is_not_handed_out(player: Player) -> None:
    """What waits is dropped and counts as delivered; all credit is given anew when the program asks (ISTER-9.6-6)."""
    player.need("events")
    with Router(takes=True) as router:
        consumer = opened(player, router, credit_messages=20)
        router.deliver(0, b"in hand", *(b"waits" for _ in range(9)))
        [held] = player.receive(consumer)
        router.wait(lambda: router.taken == 1, "TAKEN")
        granted = len(router.of(CREDIT))
        router.say({0: EVENT, 2: router.handle(OPEN_CONSUMER), 16: "recalled"})
        router.wait(partial(told, player, consumer, "recalled"), "the event")
        assert player.nothing(consumer), "handed out though it was recalled"
        router.wait(lambda: len(router.of(CREDIT)) > granted, "CREDIT")
        router.wait(lambda: sum(each.header[11] for each in router.of(CREDIT)[granted:]) >= 20, "all credit")
        router.deliver(10, b"after")
        assert payloads_of(player.receive(consumer)) == [b"after"]
        router.wait(lambda: (router.taken or 0) >= 11, "TAKEN, counted behind what was recalled")
        player.ack(consumer, held)  # it is still this program's
        router.wait(lambda: router.of(ACK), "ACK")


def test_what_waits_in_a_slow_program_goes_to_another(play: Play, broker: OwnBroker, topic: str) -> None:
    """The acknowledgment timeout of one message takes the others back too, and they have not failed."""
    slow, other = play(), play()
    slow.need("taken", "options", "attempts", "credit")
    for each in (slow, other):
        each.connect(broker.endpoint)
    slow.topic(topic)
    options = {
        "ack_timeout_ms": 3_000,
        "backoff_ms_min": 0,
    }  # the other one acknowledges in time on a slow machine too
    held = slow.consumer(topic, "team", "shared", options=options, credit_messages=10)
    slow.stored(topic, *(b"%d" % number for number in range(10)))
    assert payloads_of(slow.receive(held)) == [b"0"]
    team = other.consumer(topic, "team", "shared", credit_messages=10)
    came = other.receive(team, 10)
    assert {payload: each["attempt"] for each in came for payload in payloads_of([each])} == {
        b"%d" % number: 2 for number in range(10)
    }
    other.ack(team, *came)
    assert slow.nothing(held)


def test_a_killed_program_has_failed_at_what_it_had_and_not_at_what_waited(
    play: Play, broker: OwnBroker, topic: str
) -> None:
    """With `max_deliveries` 2 the message in hand is given up at the second kill, the others are not."""
    first = play()
    first.need("taken", "options", "heartbeat", "credit")
    options = {"max_deliveries": 2, "backoff_ms_min": 0, "poison": "drop"}
    first.connect(broker.endpoint)
    first.topic(topic)
    first.stored(topic, *(b"%d" % number for number in range(5)))
    dying = first
    for _ in range(2):
        consumer = dying.consumer(topic, "team", "shared", options=options, credit_messages=5)
        assert payloads_of(dying.receive(consumer)) == [b"0"]
        dying.driver.kill()
        dying = play()
        dying.connect(broker.endpoint)
    consumer = dying.consumer(topic, "team", "shared", options=options, credit_messages=5)
    assert sorted(payloads_of(dying.receive(consumer, 4))) == [b"1", b"2", b"3", b"4"]
    assert dying.nothing(consumer)
