"""The calls of ZeroMQ made for every message, in the form that costs least.

A lone message is sent and received in some 100 us on either side. Of that, with pyzmq 27.3 on CPython 3.11, a
`send_multipart` of two frames costs 3.5 us (it checks every part), a read that finds nothing 5 to 9 us (it raises), and
an option 1.5 to 2.5 us (it looks the option up in two enumerations). The calls here cost 0.5, 1.2 and 1.2 us. They do
the same, and take anything else that behaves like a socket too.

May touch: the socket that is given. Sockets are not safe to share between threads, here either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import zmq
import zmq.backend

_DO_NOT_WAIT: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_READABLE: Final = int(zmq.POLLIN)
# Frames of this size and more are not copied where they need not be: a view of one costs a microsecond.
UNCOPIED_BYTES_MIN: Final = 48 << 10
_send = zmq.backend.Socket.send
_receive = zmq.backend.Socket.recv


def has_message(socket: Any) -> bool:
    """Return whether `receive` has something to tell: a message, or that the socket is closed."""
    if type(socket) is zmq.Socket:
        # pyzmq would poll standard input in place of a closed socket.
        return socket.closed or bool(zmq.zmq_poll([(socket, _READABLE)], 0))
    return bool(int(socket.getsockopt(zmq.EVENTS)) & _READABLE)


def send(socket: Any, parts: Sequence[Any]) -> None:
    """Send a message without waiting.

    Raises zmq.Again if its queue is full, and zmq.ZMQError; then no part of it is sent.
    """
    if type(socket) is zmq.Socket:
        last = len(parts) - 1
        for number, part in enumerate(parts):
            flags = _MORE if number < last else _DO_NOT_WAIT
            frame: Any = part.obj if type(part) is memoryview else None
            if type(frame) is zmq.Frame and len(part) == len(frame):
                _send(socket, frame, flags, False)  # the frame that it came in, as it is
            else:
                _send(socket, part, flags)
    else:
        socket.send_multipart(parts, zmq.NOBLOCK)


def uncopied(frame: Any) -> Any:
    """Return the content of a frame that was received: bytes, or of a large one a view of ZeroMQ's memory."""
    if type(frame) is zmq.Frame and len(frame) >= UNCOPIED_BYTES_MIN:
        return frame.buffer
    return frame.bytes


def receive(socket: Any) -> list[Any]:
    """Read a message, which must be there: ask `has_message` first. Large frames but the first are as `uncopied` says.

    Raises zmq.Again if none is, and zmq.ZMQError.
    """
    if type(socket) is not zmq.Socket:
        return list(socket.recv_multipart(zmq.NOBLOCK))
    frame = _receive(socket, _DO_NOT_WAIT, False)
    parts = [frame.bytes]
    while frame.more:
        frame = _receive(socket, _DO_NOT_WAIT, False)
        parts.append(uncopied(frame))
    return parts
