"""Scenarios on the wire: a broker controlled by the test checks every frame, and sends what no broker should."""

from __future__ import annotations

import time

import cbor2
import pytest

from tests.conformance_clients.drivers import AnsweredError
from tests.conformance_clients.player import ANSWER_MS, Player, payloads_of
from tests.conformance_clients.router import (
    CREDIT,
    DELIVER,
    DONE,
    ERROR,
    EVENT,
    HELLO,
    OPEN_CONSUMER,
    OPEN_PRODUCER,
    OPENED,
    PING,
    PONG,
    PUBLISH,
    RECEIPT,
    RESULT,
    Router,
)

pytestmark = pytest.mark.process

FORGOTTEN = (1 << 64) - 1
LATER = 4_000_000_000  # a handle, or a REF, that no client has used yet


def works(player: Player, router: Router, producer: str, consumer: str, first: int) -> None:
    """Check that publishing is answered, and a delivery arrives."""
    assert player.receipt(player.publish(producer, b"after"))["offset"] == first
    router.deliver(first, b"right")
    [message] = player.receive(consumer)
    assert (message["offset"], payloads_of([message])) == (first, [b"right"])


# Violations of the protocol: the client closes the connection or ignores the frame; the program never sees it.
GARBAGE: dict[str, list[bytes | dict[int, object]]] = {
    "no-frame-worth-the-name": [b""],
    "no-cbor": [b"\xff\xff\xff"],
    "half-a-header": [cbor2.dumps({0: PONG, 1: 7})[:-1]],
    "something-behind-the-header": [cbor2.dumps({0: PONG}) + b"\x00"],
    "indefinite-length": [b"\xbf\x00\x18\x29\xff"],
    "text-keys": [cbor2.dumps({"0": PONG})],
    "no-map": [cbor2.dumps([0, PONG])],
    "an-unknown-frame": [{0: 63, 1: 1}],
    "a-frame-that-only-clients-send": [{0: PING, 1: 1}],
    "no-type": [cbor2.dumps({1: 7})],
    "a-tag": [b"\xc0\xa1\x00\x18\x29"],
    "a-key-twice": [b"\xa2\x00\x18\x29\x00\x18\x29"],
    "a-float": [cbor2.dumps({0: float(PONG)}, canonical=False)],
    "a-negative-offset": [{0: DELIVER, 2: 0, 6: -1, 7: 1, 9: [1, 1]}, b"\x05\x00\x00\x00", b"wrong"],
    "lengths-that-do-not-add-up": [{0: DELIVER, 2: 0, 6: 0, 7: 1, 9: [1, 1]}, b"\x04\x00\x00\x00", b"wrong"],
    "no-lengths": [{0: DELIVER, 2: 0, 6: 0, 7: 1, 9: [1, 1]}, b"wrong"],
    "more-lengths-than-messages": [{0: DELIVER, 2: 0, 6: 0, 7: 2, 9: [2, 1]}, b"\x05\x00\x00\x00", b"wrong"],
    "times-of-too-few": [{0: DELIVER, 2: 0, 6: 0, 7: 1, 9: []}, b"\x05\x00\x00\x00", b"wrong"],
    "a-column-that-is-not-there": [
        {0: DELIVER, 2: 0, 6: 0, 7: 1, 8: 1, 9: [1, 1]},
        b"\x05\x00\x00\x00",
        b"wrong",
    ],
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_from_the_broker_costs_a_connection_at_most(player: Player, name: str) -> None:
    """The program sees nothing of it, and producer and consumer continue, over a new connection if necessary."""
    player.need("reconnect")
    with Router() as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer, consumer = player.producer("orders"), player.consumer("orders", "all", "exclusive")
        header, *body = GARBAGE[name]
        if isinstance(header, dict) and 2 in header:
            header = header | {2: router.handle(OPEN_CONSUMER)}
        router.say(header, *body)
        opened = len(router.of(OPEN_CONSUMER))
        try:
            assert player.nothing(consumer), "the program was shown a message that nobody sent"
        except AnsweredError as error:  # a client may report it to its program, once
            if error.code not in ("malformed", "lengths-mismatch"):
                raise
        if len(router.of(HELLO)) > 1:
            router.wait(lambda: len(router.of(OPEN_CONSUMER)) > opened or opened > 1, "OPEN_CONSUMER, again")
        works(player, router, producer, consumer, 0)


# What a later version of the protocol, or a resend, may bring: it is ignored, and the connection stays.
HARMLESS: dict[str, list[bytes | dict[int, object]]] = {
    "an-unknown-key": [{0: PONG, 21: 7, 200: {1: [b"x", None, "y", -5]}}],
    "an-answer-that-nobody-asked-for": [{0: DONE, 1: LATER}],
    "a-result-that-nobody-asked-for": [{0: RESULT, 1: LATER}, cbor2.dumps({})],
    "a-receipt-of-an-unknown-handle": [{0: RECEIPT, 2: LATER, 27: [0, 0]}],
    "opened-of-an-unknown-handle": [{0: OPENED, 1: LATER, 2: LATER, 6: 0, 35: "reliable"}],
    "a-delivery-of-an-unknown-handle": [
        {0: DELIVER, 2: LATER, 6: 0, 7: 1, 9: [1, 1]},
        b"\x05\x00\x00\x00",
        b"wrong",
    ],
    "an-event-of-an-unknown-kind": [{0: EVENT, 2: 0, 16: "sunrise", 17: "over the sea"}],
    "integers-in-more-bytes-than-needed": [b"\xa1\x1b\x00\x00\x00\x00\x00\x00\x00\x00\x19\x00\x29"],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_client_need_not_know_is_passed_over(player: Player, name: str) -> None:
    """Unknown keys, codes, references and handles have no effect, and the connection stays."""
    player.need("heartbeat", "pipeline")
    with Router() as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer, consumer = player.producer("orders"), player.consumer("orders", "all", "exclusive")
        header, *body = HARMLESS[name]
        if isinstance(header, dict) and header[0] == EVENT:
            header = header | {2: router.handle(OPEN_CONSUMER)}
        router.say(header, *body)
        works(player, router, producer, consumer, 0)
        assert len(router.of(HELLO)) == 1


def test_a_second_receipt_is_ignored(player: Player) -> None:
    """What is resolved does not change, whatever the second receipt says."""
    player.need("pipeline")
    with Router() as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer = player.producer("orders")
        first = player.publish(producer, b"one")
        assert player.receipt(first)["offset"] == 0
        [published] = router.of(PUBLISH)
        for offset in (0, 5, FORGOTTEN):
            router.say({0: RECEIPT, 2: published.header[2], 27: [published.header[5], offset]})
        assert player.receipt(player.publish(producer, b"two"))["offset"] == 1
        assert len(router.of(PUBLISH)) == 2
        assert len(router.of(HELLO)) == 1


def test_a_duplicate_whose_place_is_forgotten_has_no_offset(player: Player) -> None:
    """The offset 2^64-1 is not a message's: the program is told that there is none."""
    player.need("pipeline")
    with Router(receipts=False) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        receipt = player.publish(player.producer("orders"), b"one")
        router.wait(lambda: router.of(PUBLISH), "PUBLISH")
        [published] = router.of(PUBLISH)
        router.say({0: RECEIPT, 2: published.header[2], 27: [published.header[5], FORGOTTEN]})
        answered = player.receipt(receipt)
        assert answered["offset"] is None
        assert answered["duplicate"] in (True, None)


def test_no_more_bytes_are_out_than_the_window_allows(player: Player) -> None:
    """OPENED's BYTES limits what has no receipt; then `publish` waits, times out, and continues when receipts come."""
    player.need("pipeline", "window")
    window, payload = 2_000, bytes(100)
    with Router(receipts=False, window_bytes=window) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer = player.producer("orders")
        receipts = []
        while True:
            try:
                receipts.append(player.publish(producer, payload, timeout_ms=300))
            except AnsweredError as error:
                if error.code != "timeout":
                    raise
                break
            assert len(receipts) < 1_000, "the window is never full"
            assert sum(each.size for each in router.outstanding) <= window
        assert sum(each.size for each in router.outstanding) <= window
        router.answer_publishes()
        receipts.append(player.publish(producer, payload))
        assert player.offsets(receipts) == list(range(len(receipts)))


def test_no_more_batches_are_out_than_the_limits_allow(player: Player) -> None:
    """BATCHES_IN_FLIGHT_MAX limits PUBLISH frames without a receipt, however small they are."""
    player.need("pipeline", "window", "batch")
    with Router(receipts=False, batches_in_flight_max=3) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer = player.producer("orders")
        flying = [
            player.driver.send(
                "publish_batch",
                producer=producer,
                receipt=f"b{number}",
                messages=[{"payload": "00"}, {"payload": "01"}],
                timeout_ms=ANSWER_MS,
            )
            for number in range(12)
        ]
        router.wait(lambda: len(router.outstanding) >= 3, "PUBLISH")
        for _ in range(12):
            time.sleep(0.05)
            waiting = len(router.outstanding)
            assert waiting <= 3
            if waiting:
                router.answer_publishes(1)
        router.answer_publishes()
        for number in flying:
            player.driver.answer(number)
        offsets = [player.receipt(f"b{number}")["offset"] for number in range(12)]
        assert offsets == list(range(0, 24, 2))


def test_what_has_no_receipt_is_sent_again_as_it_was_cut(player: Player) -> None:
    """After a lost connection: the same session, OPEN_PRODUCER with the lowest open number, the same bytes in order."""
    player.need("reconnect", "pipeline")
    with Router(receipts=False) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer = player.producer("orders")
        receipts = [player.publish(producer, b"%d" % number) for number in range(20)]
        router.wait(lambda: sum(each.count for each in router.of(PUBLISH)) == 20, "twenty messages")
        before = router.of(PUBLISH)
        router.answer_publishes(1)
        assert player.receipt(receipts[0])["offset"] == 0
        router.disconnect()
        router.wait(lambda: len(router.of(OPEN_PRODUCER)) > 1, "OPEN_PRODUCER, again")
        first, again = router.of(OPEN_PRODUCER)[:2]
        assert {key: again.header[key] for key in (2, 3, 25)} == {
            key: first.header[key] for key in (2, 3, 25)
        }
        assert again.header[5] == before[1].header[5]
        assert router.of(HELLO)[1].header[20] == bytes(range(16))
        rest = before[1:]
        router.wait(lambda: len(router.of(PUBLISH)) >= len(before) + len(rest), "PUBLISH, again")
        sent_again = router.of(PUBLISH)[len(before) :]
        assert [(each.header[5], each.body) for each in sent_again] == [
            (each.header[5], each.body) for each in rest
        ]
        router.answer_publishes()
        assert player.offsets(receipts[1:]) == list(range(1, 20))


def test_a_producer_that_the_worker_does_not_know_is_opened_again(player: Player) -> None:
    """`unknown-handle` at a PUBLISH is ACTION `fix`, and no failure of the batch: it is sent again (ISTER-8.4-4)."""
    player.need("reconnect", "pipeline")
    with Router(receipts=False) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        receipt = player.publish(player.producer("orders"), b"one")
        router.wait(lambda: router.of(PUBLISH), "PUBLISH")
        [published] = router.of(PUBLISH)
        about = {2: published.header[2], 5: published.header[5]}
        router.say({0: ERROR, **about, 16: "unknown-handle", 17: "no such producer here", 18: "fix"})
        router.wait(lambda: len(router.of(OPEN_PRODUCER)) > 1, "OPEN_PRODUCER, again")
        router.wait(lambda: len(router.of(PUBLISH)) > 1, "PUBLISH, again")
        assert [each.body for each in router.of(PUBLISH)] == [published.body] * 2
        router.answer_publishes()
        assert player.receipt(receipt)["offset"] == 0


def test_an_acknowledgment_that_comes_too_late_costs_a_standby_nothing(player: Player) -> None:
    """`not-active` is ACTION `retry`, and about the acknowledgment: the consumer stays open (ISTER-9.2-5)."""
    with Router() as router:
        player.connect(router.endpoint)
        player.topic("orders")
        consumer = player.consumer("orders", "pair", "failover")
        router.deliver(0, b"first")
        player.ack(consumer, *player.receive(consumer))
        about = {2: router.handle(OPEN_CONSUMER)}
        router.say({0: ERROR, **about, 16: "not-active", 17: "another one is active now", 18: "retry"})
        router.deliver(1, b"second")
        try:
            came = player.receive(consumer)
        except AnsweredError as error:  # a client may tell its program, once
            if error.code != "not-active":
                raise
            came = player.receive(consumer)
        assert payloads_of(came) == [b"second"]
        assert len(router.of(OPEN_CONSUMER)) == 1


def test_a_close_that_runs_out_of_time_leaves_nobody_waiting_in_vain(player: Player) -> None:
    """What was not answered by then has failed, or is answered when the broker answers; the client goes on."""
    player.need("pipeline", "orderly-close")
    with Router(receipts=False) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer = player.producer("orders")
        receipt = player.publish(producer, b"unanswered")
        asked = {"producer": producer, "timeout_ms": 300}
        refused = player.refused(lambda: player.driver.ask("close", **asked))
        assert (refused.code, refused.action) == ("timeout", "retry")
        router.receipts = True
        router.answer_publishes()
        try:
            assert player.receipt(receipt)["offset"] == 0
        except AnsweredError as error:
            if error.code != "closed":
                raise
        assert player.offsets([player.publish(player.producer("orders"), b"after")]) == [1]


def test_credit_never_exceeds_what_the_program_allows(player: Player) -> None:
    """With `credit_messages` a client asks for no more than the program takes and may hold, and returns credit."""
    player.need("credit")
    with Router() as router:
        player.connect(router.endpoint)
        player.topic("orders")
        consumer = player.consumer("orders", "all", "exclusive", credit_messages=10)
        router.wait(lambda: router.credit[0] > 0, "credit")
        taken = sent = 0
        until = time.monotonic() + 30
        while taken < 50:
            assert time.monotonic() < until, "no credit comes back"
            assert router.granted <= taken + 10
            while router.credit[0] > 0:
                router.deliver(sent, b"%d" % sent)
                sent += 1
            taken += len(player.receive(consumer, 3, timeout_ms=50))
        assert len(router.of(HELLO)) == 1


def test_credit_does_not_grow_while_the_program_takes_nothing(player: Player) -> None:
    """A program that never asks for a message gets the first credit only."""
    player.need("credit", "heartbeat")
    with Router(heartbeat_ms=200) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        player.consumer("orders", "all", "exclusive", credit_messages=5)
        router.wait(lambda: router.credit[0] > 0, "credit")
        for number in range(router.credit[0]):
            router.deliver(number, b"%d" % number)
        pings = len(router.of(PING))
        router.wait(lambda: len(router.of(PING)) > pings + 2, "three heartbeats")
        assert router.granted <= 5
        assert [each.header.get(11) for each in router.of(CREDIT) if each.header.get(11)] == []


def test_an_idle_client_sends_a_ping_a_heartbeat(player: Player) -> None:
    """Never two heartbeats of silence, and no flood of PINGs either."""
    player.need("heartbeat")
    with Router(heartbeat_ms=200) as router:
        player.connect(router.endpoint)
        router.wait(lambda: len(router.of(PING)) >= 8, "eight PINGs")
        pings = router.of(PING)[:8]
        assert pings[-1].at - pings[0].at >= 0.6 * 7 * 0.2
        assert len(router.of(HELLO)) == 1


def test_a_broker_that_falls_silent_is_left_and_asked_again(player: Player) -> None:
    """After three heartbeats without a word the client connects anew, with its session, and asks again what waits."""
    player.need("heartbeat", "reconnect", "pipeline")
    with Router(heartbeat_ms=200) as router:
        player.connect(router.endpoint)
        player.topic("orders")
        producer = player.producer("orders")
        router.silent, router.receipts = True, False
        began = time.monotonic()
        receipt = player.publish(producer, b"into silence")
        router.wait(lambda: len(router.of(HELLO)) > 1, "HELLO, again")
        assert time.monotonic() - began >= 0.5
        pings = [each for each in router.of(PING) if each.at >= began]
        assert len(pings) <= 5 + (time.monotonic() - began) / 0.2
        assert router.of(HELLO)[1].header[20] == bytes(range(16))
        router.silent = False
        router.wait(lambda: len(router.of(OPEN_PRODUCER)) > 1, "OPEN_PRODUCER, again")
        router.answer_publishes()
        assert player.receipt(receipt)["offset"] == 0


def test_the_first_frames_are_what_the_document_says(player: Player) -> None:
    """HELLO with the versions; numbers without gaps; producer ids of at most 63 bits, and not 0."""
    with Router() as router:
        player.connect(router.endpoint)
        player.topic("orders")
        player.stored("orders", b"one", b"two")
        assert router.heard[0].kind == HELLO
        assert 1 in router.heard[0].header[22]
        sequences = [each.header[5] for each in router.of(PUBLISH)]
        assert sequences == sorted(sequences)
        assert sum(each.count for each in router.of(PUBLISH)) == 2
        assert all(0 < each.header[25] < 1 << 63 for each in router.of(OPEN_PRODUCER))
