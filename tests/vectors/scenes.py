"""The recorded conversations: each scene is one transcript, in the frames of `tests.raw_client`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import cbor2

from ister.wire import Key, Type
from tests.raw_client import Frame
from tests.vectors.recording import RecordedClient, Scene


class Told(NamedTuple):
    """A scene: what it shows, and the broker it needs."""

    play: Callable[[Scene], None]
    about: str
    requirements: tuple[str, ...]  # of PROTOCOL.md
    workers: int
    settings: dict[str, Any]


SCENES: Final[dict[str, Told]] = {}


def scene(
    *requirements: str, workers: int = 1, **settings: Any
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register a scene under its function's name; its docstring says what it shows, `requirements` what it covers."""

    def register(play: Callable[[Scene], None]) -> Callable[[Scene], None]:
        name = play.__name__.replace("_", "-")
        SCENES[name] = Told(play, (play.__doc__ or "").strip(), requirements, workers, settings)
        return play

    return register


def _topic(client: RecordedClient, topic: str = "orders", dispatch: str = "reliable", **more: Any) -> None:
    client.request("topic.create", topic=topic, dispatch=dispatch, **more)


def _filled(scene: Scene, messages: int = 3) -> RecordedClient:
    """Return a client with a topic of some messages, one per batch, published over handle 1."""
    client = scene.client()
    _topic(client)
    client.open_producer(1, "orders", 77)
    for sequence in range(messages):
        client.publish(1, sequence, b"message %d" % sequence)
        client.receipt(1)
    return client


def _error(client: RecordedClient, code: str, **where: Any) -> Frame:
    frame = client.expect(Type.ERROR, **where)
    assert frame.code == code, frame
    return frame


def _about(client: RecordedClient, kind: int, ref: int, **keys: Any) -> Frame:
    """Send a frame with a REF, and return its answer."""
    header = {Key.TYPE: kind, Key.REF: ref} | {
        getattr(Key, name.upper()): value for name, value in keys.items()
    }
    client.say(header)
    return client.expect(Type.DONE, Type.ERROR, Type.RESULT, Type.OPENED, ref=ref)


@scene("2.1-2", "4.1-2", "5.1-2", "7.3-3", "7.5-1", "8.5-1", "9.5-3", "9.5-5", "9.5-6", "9.8-1")
def whole_conversation(scene: Scene) -> None:
    """From HELLO to BYE: a topic, batches with all columns, a consumer, each kind of acknowledgment, both CLOSEs."""
    client = scene.client()
    client.say({Key.TYPE: Type.PING, Key.REF: 900})
    client.expect(Type.PONG)
    client.say({Key.TYPE: Type.PING})
    client.expect(Type.PONG)
    _topic(client)
    client.open_producer(1, "orders", 0x1122334455667788)
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0}, b"one frame is enough")
    client.receipt(1)
    client.publish_keyed(
        1,
        1,
        (b"customer 1", b"paid"),
        (b"", b"sent"),
        (b"customer 2", b""),
        attributes=[cbor2.dumps({"trace": "4711", "größe": "ü"}), b"", b""],
        deliver_at=[0, 1, 0],
    )
    client.receipt(1)
    client.open_consumer(2, "orders", "billing", "shared", ack_timeout_ms=60_000)
    while client.hear(0.0) is not None:
        pass
    _about(client, Type.EXTEND, 901, handle=2, ranges=[0, 4])
    _about(client, Type.ACK, 902, handle=2, ranges=[0, 1, 2, 3])
    _about(client, Type.NACK, 903, handle=2, ranges=[1, 2], delay=0, reason="no such customer")
    client.expect(Type.DELIVER)
    _about(client, Type.CREDIT, 904, handle=2, messages=4, bytes=1000)
    _about(client, Type.ACK_UNTIL, 905, handle=2, offset=3)
    client.close_handle(2)
    client.close_handle(1)
    client.say({Key.TYPE: Type.BYE})
    client.say({Key.TYPE: Type.PING, Key.REF: 906})
    _error(client, "hello-required")


@scene("7.1-1", "7.1-3", "7.1-4", "7.1-5", "7.1-6", "2.2-12", "15-1")
def greetings(scene: Scene) -> None:
    """Nothing but HELLO without a session; no version in common; a second HELLO begins another session."""
    client = scene.client(hello=False)
    client.say({Key.TYPE: Type.PING, Key.REF: 1})
    _error(client, "hello-required")
    client.say({Key.TYPE: Type.HELLO, Key.VERSION: [2, 3]})
    _error(client, "unsupported-version")
    client.say({Key.TYPE: Type.HELLO, Key.VERSION: [3, 1], Key.SESSION: bytes(16)})
    assert client.expect(Type.WELCOME).header[Key.RESUMED] is False
    client.hello()
    client.say({Key.TYPE: Type.HELLO, Key.VERSION: [1], 4000: "a key of a later version", 4001: {"x": [1]}})
    client.expect(Type.WELCOME)


@scene("7.4-2", "7.2-1", "8.3-3", "8.1-3")
def resume_and_resend(scene: Scene) -> None:
    """A lost connection: HELLO with SESSION, the producer opened again, and batches resent: none is stored twice."""
    client = _filled(scene, 1)
    client.publish(1, 1, b"its receipt", b"is lost")
    scene.wait(0.1)
    assert client.again().header[Key.RESUMED] is True
    client.open_producer(1, "orders", 77, 1)
    client.publish(1, 1, b"its receipt", b"is lost")
    client.publish(1, 3, b"and one more")
    client.receipts(1, 2)
    client.open_consumer(2, "orders", "all")
    client.deliveries(2, 4)


@scene("7.2-2", "7.1-5", "8.1-3")
def session_forgotten(scene: Scene) -> None:
    """The worker was killed: another BOOT, RESUMED false; the producer goes on with the same id, nothing twice."""
    client = _filled(scene, 2)
    scene.restart_worker()
    client.break_connection()
    assert client.hello(session=client.session).header[Key.RESUMED] is False
    client.open_producer(1, "orders", 77, 1)
    client.publish(1, 1, b"message 1")
    client.receipt(1)
    client.publish(1, 2, b"message 2")
    client.receipt(1)


@scene("7.3-5")
def silence_ends_a_session(scene: Scene) -> None:
    """After SESSION_TIMEOUT_MS of silence the session is over; the next frame is answered hello-required."""
    client = scene.client()
    scene.wait(60.0)
    client.say({Key.TYPE: Type.PING, Key.REF: 1})
    _error(client, "hello-required")
    assert client.hello(session=client.session).header[Key.RESUMED] is False


@scene("8.3-6")
def resend_cut_differently(scene: Scene) -> None:
    """Two messages were one batch, and are resent as two: sequence-overlap, which is final."""
    client = scene.client()
    _topic(client)
    client.open_producer(1, "orders", 77)
    client.publish(1, 0, b"first", b"second")
    client.receipt(1)
    client.again()
    client.open_producer(1, "orders", 77, 0)
    client.publish(1, 0, b"first")
    _error(client, "sequence-overlap", handle=1)


@scene("8.2-1", "8.4-2", "5.1-4")
def gap_and_reopen(scene: Scene) -> None:
    """A batch is refused, what follows is answered sequence-gap; OPEN_PRODUCER behind it, and the later ones again."""
    client = _filled(scene, 1)
    client.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 1}, b"\x05\0\0\0", b"four")
    client.publish(1, 2, b"behind it")
    _error(client, "lengths-mismatch", handle=1, sequence=1)
    _error(client, "sequence-gap", handle=1, sequence=2)
    client.open_producer(1, "orders", 77, 2)
    client.publish(1, 2, b"behind it")
    client.receipt(1)


@scene("6.1-3")
def publish_before_opened(scene: Scene) -> None:
    """PUBLISH on a handle that is still being opened is refused, unknown-handle; the open goes on."""
    client = scene.client()
    _topic(client)
    ref = client.say_open_producer(1, "orders", 77)
    client.publish(1, 0, b"too early")
    _error(client, "unknown-handle", handle=1, sequence=0)
    client.expect(Type.OPENED, ref=ref)
    client.publish(1, 0, b"in time")
    client.receipt(1)


@scene("9.5-11", "12-2")
def limits(scene: Scene) -> None:
    """A payload and a batch over their limits; 401 ranges: refused as a whole; the handle stays open."""
    client = _filled(scene, 1)
    client.open_consumer(2, "orders", "s")
    client.deliveries(2, 1)
    flat = [number for each in range(401) for number in (2 * each, 2 * each + 1)]
    client.say({Key.TYPE: Type.ACK, Key.HANDLE: 2, Key.RANGES: flat, Key.REF: 900})
    _error(client, "limit-exceeded", ref=900)
    client.ack(2, (0, 1))


@scene("5.2-1", "5.2-2", protocol__message_bytes_max=1024, protocol__batch_bytes_max=2048)
def sizes(scene: Scene) -> None:
    """A payload of the limit goes, one byte more is message-too-large, too many together are batch-too-large."""
    client = scene.client()
    _topic(client)
    client.open_producer(1, "orders", 77)
    client.publish(1, 0, bytes(1024))
    client.receipt(1)
    client.publish(1, 1, bytes(1025))
    _error(client, "message-too-large", handle=1, sequence=1)
    client.publish(1, 1, bytes(1000), bytes(1000), bytes(100))
    _error(client, "batch-too-large", handle=1, sequence=1)
    client.publish(1, 1, bytes(1000), bytes(1000))
    client.receipt(1)


@scene("6.1-1", "6.1-2", "4.1-3", "4.1-4")
def handles(scene: Scene) -> None:
    """Frames about handles that are not open, or open as something else; an open that is followed by its CLOSE."""
    client = scene.client()
    _topic(client)
    _error_of(_about(client, Type.CLOSE, 900, handle=9), "unknown-handle")
    client.ack(9, (0, 1), confirm=False)
    _error_of(_about(client, Type.ACK, 901, handle=9, ranges=[0, 1]), "unknown-handle")
    _error_of(_about(client, Type.CREDIT, 902, handle=9, messages=1, bytes=1), "unknown-handle")
    client.publish(9, 0, b"nowhere")
    _error(client, "unknown-handle", handle=9, sequence=0)
    client.open_producer(1, "orders", 77)
    _error_of(client.open_consumer(1, "orders", "s"), "handle-in-use")
    _error_of(_about(client, Type.ACK, 903, handle=1, ranges=[0, 1]), "unknown-handle")
    ref = client.say_open_producer(2, "orders", 78)
    client.say({Key.TYPE: Type.CLOSE, Key.REF: 904, Key.HANDLE: 2})
    client.expect(Type.ERROR, Type.OPENED, ref=ref)
    client.expect(Type.DONE, ref=904)


def _error_of(frame: Frame, code: str) -> None:
    assert (frame.kind, frame.code) == (Type.ERROR, code), frame


@scene("8.1-6", "16-5", "11.1-4", "8.4-4", "6.1-4")
def producers_of_one_id(scene: Scene) -> None:
    """A second session opens the same producer id: the first is fenced."""
    first = _filled(scene, 1)
    second = scene.client()
    assert second.open_producer(1, "orders", 77).header[Key.SEQUENCE] == 1
    frame = _error(first, "producer-fenced", handle=1)
    assert frame.header[Key.CLOSED] is True
    second.publish(1, 1, b"mine now")
    second.receipt(1)
    first.publish(1, 1, b"mine still?")
    _error(first, "unknown-handle", handle=1)


@scene("9.2-1", "9.2-2", "9.2-10")
def exclusive_and_forced(scene: Scene) -> None:
    """A second Exclusive consumer is refused; with FORCE it takes the subscription over, and what was held."""
    first = _filled(scene)
    first.open_consumer(2, "orders", "s")
    first.deliveries(2, 3)
    first.ack(2, (0, 1))
    second = scene.client()
    _error_of(second.open_consumer(1, "orders", "s"), "subscription-busy")
    second.open_consumer(1, "orders", "s", force=True)
    _error(first, "taken-over", handle=2)
    second.deliveries(1, 2)
    _error_of(second.open_consumer(3, "orders", "s", "shared"), "subscription-type")


@scene("9.2-4", "9.2-5")
def failover(scene: Scene) -> None:
    """The preferred consumer is active, the other stands by and acknowledges nothing; it takes over."""
    first = _filled(scene)
    first.open_consumer(2, "orders", "s", "failover", priority=1)
    first.deliveries(2, 3)
    second = scene.client()
    second.open_consumer(1, "orders", "s", "failover", priority=2)
    second.expect(Type.EVENT)
    _error_of(_about(second, Type.ACK, 900, handle=1, ranges=[1, 2]), "not-active")
    first.ack(2, (0, 1))
    first.close_handle(2)
    second.deliveries(1, 2)
    second.ack(1, (1, 3))


@scene("9.5-1", "9.5-2", "9.5-4", "9.4-6")
def acknowledgments(scene: Scene) -> None:
    """Again is fine; of what was never delivered, ack-unknown, and nothing of the frame is applied; ack-until."""
    client = _filled(scene, 4)
    client.open_consumer(2, "orders", "s")
    client.deliveries(2, 4)
    client.ack(2, (0, 1))
    client.ack(2, (0, 1))
    _error_of(_about(client, Type.ACK, 900, handle=2, ranges=[1, 2, 9, 10]), "ack-unknown")
    client.nack(2, (1, 2), delay_ms=0)
    client.expect(Type.DELIVER)
    client.ack_until(2, 3)


@scene("9.7-2", "9.8-2")
def sought(scene: Scene) -> None:
    """Somebody moves the subscription: EVENT sought, in its place, and the messages again."""
    client = _filled(scene)
    client.open_consumer(2, "orders", "s")
    client.deliveries(2, 3)
    client.ack(2, (0, 3))
    client.request("subscription.seek", topic="orders", subscription="s", to=1)
    assert client.expect(Type.EVENT).code == "sought"
    client.credit(2, 3)
    client.deliveries(2, 2)
    client.request("subscription.update", topic="orders", subscription="s", paused=1)
    assert client.expect(Type.EVENT).code == "paused"
    client.request("subscription.delete", topic="orders", subscription="s")
    _error(client, "subscription-deleted", handle=2)
    client.request("topic.delete", topic="orders")
    _error(client, "topic-deleted", handle=1)


@scene("9.4-1", "9.4-3")
def credit(scene: Scene) -> None:
    """Never more messages than credit; credit adds."""
    client = _filled(scene, 3)
    client.open_consumer(2, "orders", "s", messages=1)
    client.deliveries(2, 1)
    assert client.hear(1.0) is None
    client.credit(2, 1)
    client.deliveries(2, 1)
    assert client.hear(1.0) is None


@scene("5.3-3", "9.1-5", "9.5-7")
def sparse_ranges(scene: Scene) -> None:
    """A consumer that said SPARSE gets what is left between the messages of others in one DELIVER with RANGES."""
    client = _filled(scene, 5)
    client.open_consumer(2, "orders", "s", sparse=True)
    client.deliveries(2, 5)
    client.ack(2, (1, 2), (3, 4))
    client.close_handle(2)
    client.open_consumer(3, "orders", "s", sparse=True)
    assert client.expect(Type.DELIVER).header[Key.RANGES] == [0, 1, 2, 3, 4, 5]


@scene("9.6-1", "9.6-5")
def taken_and_singly(scene: Scene) -> None:
    """A client that says what its program takes; a message that may fail no more comes SINGLY."""
    client = _filled(scene, 1)
    client.open_consumer(2, "orders", "s", tells=True, max_deliveries=2)
    client.deliveries(2, 1)
    client.taken(2, 1)
    client.nack(2, (0, 1), delay_ms=0, reason="bad")
    assert client.expect(Type.DELIVER).header[Key.SINGLY] is True
    client.taken(2, 2, alone=True)
    client.ack(2, (0, 1))


@scene("9.2-8", "8.3-2", "9.5-8")
def reader_and_non_reliable(scene: Scene) -> None:
    """A reader acknowledges nothing; a non-reliable topic's receipts are running numbers."""
    client = _filled(scene, 2)
    client.open_consumer(2, "orders", "r-1", "reader", start=1)
    client.deliveries(2, 1)
    client.ack(2, (1, 2))
    _topic(client, "prices", "non-reliable")
    client.open_producer(3, "prices", 79)
    client.open_consumer(4, "prices", "s", start=None)
    client.publish(3, 0, b"100.5")
    client.receipt(3)
    client.deliveries(4, 1)


@scene("7.6-1", "7.6-2", "6.1-4", workers=2)
def moved(scene: Scene) -> None:
    """A subscription has a place of its own: the topic is here, its consumer is sent elsewhere."""
    from ister.actors.placement import subscription_key, topic_key, worker_of

    client = scene.client(0)
    names = [f"t-{number}" for number in range(20)]
    topic = next(name for name in names if worker_of(topic_key(name), 2) == 0)
    subs = [f"s-{number}" for number in range(20)]
    away = next(name for name in subs if worker_of(subscription_key(topic, name), 2) == 1)
    _topic(client, topic)
    client.open_producer(1, topic, 77)
    client.publish(1, 0, b"here")
    client.receipt(1)
    assert client.open_consumer(2, topic, away).kind == Type.MOVED
    there = scene.client(1)
    assert there.open_consumer(2, topic, away).kind == Type.OPENED
    there.deliveries(2, 1)
    assert there.open_producer(3, topic, 78).kind == Type.MOVED


@scene("2.1-1", "2.1-2", "2.2-14", "11.1-1", "11.1-5", "11.1-6")
def malformed(scene: Scene) -> None:
    """What cannot be read is answered malformed, with what can be read of its numbers; the session goes on."""
    client = scene.client()
    client.raw(b"")
    client.raw(b"\xff")
    client.raw(cbor2.dumps([1, 2]))
    client.raw(cbor2.dumps({0: Type.PING}), b"a body that PING has not")
    client.raw(cbor2.dumps({0: Type.CLOSE, 1: 7}))
    client.raw(cbor2.dumps({0: 99, 1: 8}))
    client.raw(cbor2.dumps({0: Type.WELCOME, 1: 9, 22: 1, 20: bytes(16), 21: 1, 23: {}, 33: 1}))
    client.raw(b"", cbor2.dumps({0: Type.PING}))
    client.say({Key.TYPE: Type.PING, Key.REF: 10})
    client.expect(Type.PONG)


@scene("10.2-1", "10.3-1")
def requests(scene: Scene) -> None:
    """Answers and refusals of requests."""
    client = scene.client()
    _topic(client)
    _error_of(client.ask("topic.create", topic="orders", dispatch="reliable"), "topic-exists")
    _error_of(client.ask("topic.create", topic="a//b", dispatch="reliable"), "invalid-name")
    _error_of(client.ask("topic.create", topic="t", dispatch="perhaps"), "invalid-argument")
    _error_of(client.ask("topic.show", topic="nowhere"), "unknown-topic")
    _error_of(client.ask("topic.frobnicate", topic="orders"), "unknown-operation")
    _error_of(client.ask("topic.update", topic="orders", frobnicate=1), "invalid-argument")
    _error_of(client.ask("topic.create", dispatch="reliable"), "invalid-argument")
    client.request("subscription.create", topic="orders", subscription="s", type="shared")
    _error_of(
        client.ask("subscription.create", topic="orders", subscription="s", type="shared"),
        "subscription-exists",
    )
    _error_of(client.ask("subscription.show", topic="orders", subscription="t"), "unknown-subscription")
    client.request("topic.delete", topic="orders")


@scene("10.3-1", "9.1-3", "9.1-6", "9.5-7")
def asked_twice(scene: Scene) -> None:
    """What a client that lost an answer asks again: what the second time does."""
    client = scene.client()
    _topic(client)
    _error_of(client.ask("topic.create", topic="orders", dispatch="reliable"), "topic-exists")
    client.open_producer(1, "orders", 77)
    client.open_producer(1, "orders", 77)
    client.publish(1, 0, b"once", b"and for all")
    client.receipt(1)
    client.publish(1, 0, b"once", b"and for all")
    client.receipt(1)
    client.open_consumer(2, "orders", "s")
    client.deliveries(2, 2)
    client.open_consumer(2, "orders", "s")
    client.deliveries(2, 2)
    client.ack(2, (0, 1))
    client.ack(2, (0, 1))
    client.ack_until(2, 1)
    client.ack_until(2, 1)
    for _ in range(2):
        client.request("subscription.seek", topic="orders", subscription="s", to=1)
        assert client.expect(Type.EVENT).code == "sought"
    for _ in range(2):
        client.request("subscription.unblock", topic="orders", subscription="s", action="retry")
        client.request("topic.repair", topic="orders", skip_damaged=True)
    _error_of(client.ask("topic.takeover", topic="orders"), "topic-exists")
    client.close_handle(2)
    _error_of(client.close_handle(2), "unknown-handle")
    client.request("subscription.delete", topic="orders", subscription="s")
    _error_of(client.ask("subscription.delete", topic="orders", subscription="s"), "unknown-subscription")
    client.close_handle(1)
    client.request("topic.delete", topic="orders")
    _error_of(client.ask("topic.delete", topic="orders"), "unknown-topic")


__all__ = ["SCENES", "Told"]
