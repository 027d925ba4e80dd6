"""The short forms of ZeroMQ's calls do what pyzmq's own do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from ister.sockets import UNCOPIED_BYTES_MIN, has_message, receive, send, uncopied

Pair = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two sockets that are connected; their queues hold four messages."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.set(zmq.SNDHWM, 2)
        other.set(zmq.RCVHWM, 2)
        other.bind("inproc://pair")
        one.connect("inproc://pair")
        yield one, other


def test_a_message_arrives_with_its_frames(pair: Pair) -> None:
    """Whatever buffers the parts are, empty ones too."""
    one, other = pair
    assert not has_message(other)
    for parts in ([b"alone"], [b"", b"x" * 100_000, memoryview(b"third"), bytearray(b"last")]):
        send(one, parts)
        assert has_message(other)
        assert receive(other) == [bytes(part) for part in parts]
        assert not has_message(other)


def test_a_large_frame_goes_on_as_it_came_to_as_many_as_there_are(pair: Pair) -> None:
    """It is not copied, and lasts as long as somebody has a view of it; a part of it is copied."""
    one, other = pair
    content = os.urandom(UNCOPIED_BYTES_MIN)
    one.send(content)
    frame: Any = other.recv(copy=False)
    view = uncopied(frame)
    assert type(view) is memoryview
    assert view.obj is frame
    del frame
    for _ in range(2):
        send(other, [b"head", view, view[1:]])
        arrived = receive(one)
        assert arrived == [b"head", content, content[1:]]
    assert bytes(view) == content
    one.send(content[1:])
    small = uncopied(other.recv(copy=False))
    assert small == content[1:]
    assert type(small) is bytes


def test_they_understand_pyzmq_and_the_other_way_round(pair: Pair) -> None:
    """Nothing is left over in either direction."""
    one, other = pair
    one.send_multipart([b"a", b"b"])
    assert receive(other) == [b"a", b"b"]
    send(other, [b"c", b"d", b"e"])
    assert one.recv_multipart() == [b"c", b"d", b"e"]


def test_nothing_waits(pair: Pair) -> None:
    """A full queue and an empty one are errors at once, and a message that was refused has sent none of its frames."""
    one, other = pair
    with pytest.raises(zmq.Again):
        receive(other)
    sent = 0
    try:
        while True:
            send(one, [b"%d" % sent, b"end"])
            sent += 1
    except zmq.Again:
        pass
    got: list[Any] = []
    while has_message(other):
        got.append(receive(other))
    assert got == [[b"%d" % number, b"end"] for number in range(sent)]
    assert sent > 0


def test_a_closed_socket_is_an_error(pair: Pair) -> None:
    """It is never taken for a silent one, nor for standard input, which pyzmq polls in its place."""
    one, _ = pair
    one.close()
    silent, end = os.pipe()
    kept = os.dup(0)
    os.dup2(silent, 0)
    try:
        assert has_message(one)
    finally:
        os.dup2(kept, 0)
        for each in (silent, end, kept):
            os.close(each)
    with pytest.raises(zmq.ZMQError):
        receive(one)
    with pytest.raises(zmq.ZMQError):
        send(one, [b""])
