"""Tests of the bookkeeping of requests and replies, without a socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

import ister
from ister import bodies, testing, wire
from ister import inbox as under_test
from ister.errors import UsageError
from ister.inbox import CORRELATION_ID, REPLY_TO, Inbox, Outlets, Waiting
from ister.message import Delivery, message_of
from ister.wire import Column, Key, Type


def delivery(payload: bytes, attributes: bytes, owner: object = None) -> Delivery:
    """Return one message as a broker delivers it."""
    header: wire.Header = {
        Key.TYPE: Type.DELIVER,
        Key.OFFSET: 7,
        Key.COUNT: 1,
        Key.TIMESTAMPS: [1, 1000],
        Key.COLUMNS: int(Column.ATTRIBUTES),
    }
    body = [bodies.pack_lengths([payload]), payload, bodies.pack_column([attributes])]
    return Delivery(owner, "_inbox/x", 0, header, body)


def reply(correlation_id: str, payload: bytes = b"reply") -> Delivery:
    """Return a reply."""
    return delivery(payload, bodies.encode_attributes({CORRELATION_ID: correlation_id}))


class Desk:
    """An inbox that reads from a list."""

    def __init__(self) -> None:
        self.come: list[Delivery] = []
        self.told: list[object] = []
        handing = SimpleNamespace(take=lambda: self.come.pop(0) if self.come else None)
        attachment = SimpleNamespace(phase="open", error=None, handing=handing)
        self.inbox = Inbox("_inbox/x", cast(Any, SimpleNamespace(attachment=attachment)), self.told.append)

    def waiting(self, correlation_id: str) -> Waiting:
        one = Waiting(correlation_id)
        self.inbox.expect(one)
        return one


def test_a_reply_reaches_the_request_it_answers() -> None:
    """In whatever order the replies come."""
    desk = Desk()
    first, second = desk.waiting("1"), desk.waiting("2")
    desk.come = [reply("2", b"two"), reply("1", b"one")]
    desk.inbox.sort()
    assert first.message is not None
    assert second.message is not None
    assert (first.message.payload, second.message.payload) == (b"one", b"two")
    assert (first.message.offset, len(desk.inbox)) == (7, 0)


@pytest.mark.requirement("10.6-4")
def test_late_double_and_strange_replies_are_dropped() -> None:
    """Only the first reply to a request counts; other replies are not kept, and unreadable ones do no harm."""
    desk = Desk()
    gone, there = desk.waiting("gone"), desk.waiting("there")
    desk.inbox.forget(gone)
    desk.come = [
        delivery(b"?", b"\xff\xff\xff"),
        delivery(b"?", b""),
        reply("gone"),
        reply("there"),
        reply("there", b"again"),
    ]
    desk.inbox.sort()
    assert gone.message is None
    assert there.message is not None
    assert there.message.payload == b"reply"
    assert (desk.come, len(desk.inbox)) == ([], 0)


def test_who_waits_is_told_once_and_nobody_else() -> None:
    """A reply wakes the request it is for; closing the inbox wakes all."""
    desk = Desk()
    first, second, third = (desk.waiting(name) for name in "123")
    desk.come = [reply("1"), reply("1"), reply("4")]
    desk.inbox.sort()
    assert desk.told == [first]
    cast(Any, desk.inbox.reader).attachment.phase = "closed"
    desk.inbox.sort()
    assert desk.told == [first, second, third]


def test_a_reply_goes_where_the_request_says() -> None:
    """With the id of the request; a message that asks for no reply has none."""
    asked = under_test.asked({"a": "b", REPLY_TO: "elsewhere"}, "_inbox/x", "17")
    assert asked == {"a": "b", REPLY_TO: "_inbox/x", CORRELATION_ID: "17"}
    request = next(delivery(b"", bodies.encode_attributes(asked)).messages())
    assert under_test.answered(request, {"c": "d", CORRELATION_ID: "9"}) == (
        "_inbox/x",
        {"c": "d", CORRELATION_ID: "17"},
    )
    with pytest.raises(UsageError, match="does not ask for a reply"):
        under_test.answered(next(delivery(b"", b"").messages()), None)


def test_a_message_made_by_hand_cannot_be_answered() -> None:
    """There is no client to answer through."""
    message = message_of(reply("1"), 7, b"")
    with pytest.raises(UsageError, match="consumer"):
        message.reply(b"")


class _Producer:
    """The attributes of a producer that the inbox uses."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.publication = SimpleNamespace(phase="open")
        self.idle = True
        self.ended = False

    def is_idle(self) -> bool:
        return self.idle

    def begin_close(self) -> None:
        self.publication.phase = "closing"

    def end(self) -> None:
        self.ended = True


def test_producers_are_kept_but_not_without_bound() -> None:
    """The least recently used one is closed, unless it has messages without a receipt."""
    opened: list[_Producer] = []

    def open_producer(topic: str) -> Any:
        opened.append(_Producer(topic))
        return opened[-1]

    outlets = Outlets(open_producer)
    for number in range(under_test.OUTLETS_MAX):
        outlets.producer(str(number))
    assert cast(Any, outlets.producer("0")) is opened[0]
    opened[1].idle = False
    outlets.producer("new")
    assert not opened[1].ended
    opened[1].idle = True
    outlets.producer("newer")
    assert (opened[0].ended, opened[1].ended) == (False, True)
    opened[0].publication.phase = "closed"
    assert cast(Any, outlets.producer("0")) is opened[-1]


@pytest.mark.parametrize(
    ("consumers", "words"),
    [(0, "no consumer of any subscription"), (1, "1 consumer is"), (2, "2 consumers are")],
)
def test_why_nobody_answers_is_said_if_it_is_known(consumers: int, words: str) -> None:
    """Whether no server is there, or one that does not answer."""
    assert words in under_test.nobody("sums", 1, consumers)
    assert under_test.nobody("sums", 1, None) == "nobody answered a request to topic 'sums' within 1 s"


def test_programs_can_test_their_servers_against_the_broker_in_memory(broker: testing.Broker) -> None:
    """Request and reply work there as with a real broker."""
    with ister.connect(broker.endpoint) as client, ister.connect(broker.endpoint) as asker:
        client.create_topic("sums", dispatch="non-reliable")
        with client.consumer("sums", "servers", type="shared") as consumer, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(asker.request, "sums", b"12", timeout=10)
            message = consumer.receive(10)
            assert message is not None
            message.reply(message.payload * 2)
            assert asked.result(10).payload == b"1212"
