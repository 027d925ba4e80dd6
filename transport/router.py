"""The ROUTER socket of a worker: its options, each with its reason, and its monitor.

The socket is used by `gateway.py` alone; here it is made, bound, and watched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import zmq

from ister.bodies import body_bytes_max
from ister.errors import UsageError
from ister.sockets import has_message, receive
from ister.wire import HEADER_BYTES_MAX

# ZeroMQ counts messages, not bytes. A consumer's bytes are limited by its credit; this limits the small answers (some
# 200 bytes each) to a client that asks and never reads to a few megabytes.
SEND_HWM: Final = 10_000
# What one connection may have waiting to be read, in messages of the largest batch; smaller ones are less.
RECEIVE_BYTES_MAX: Final = 64 << 20
RECEIVE_HWM_MIN: Final = 16  # with fewer, the I/O thread and the loop would wait for each other
RECEIVE_HWM_MAX: Final = 1_000
HANDSHAKE_MS: Final = 5_000
ZMTP_HEARTBEAT_MS: Final = 5_000


def open_router(context: zmq.Context[zmq.Socket[bytes]], batch_bytes_max: int) -> zmq.Socket[bytes]:
    """Return a ROUTER for clients that send batches of up to so many bytes."""
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ROUTER_HANDOVER, 0)
    router.setsockopt(zmq.SNDHWM, SEND_HWM)
    fit = RECEIVE_BYTES_MAX // batch_bytes_max
    router.setsockopt(zmq.RCVHWM, max(RECEIVE_HWM_MIN, min(fit, RECEIVE_HWM_MAX)))
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    router.setsockopt(zmq.HEARTBEAT_IVL, ZMTP_HEARTBEAT_MS)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * ZMTP_HEARTBEAT_MS)
    # One frame: the largest batch or header, and room to answer somewhat larger ones with an error.
    router.setsockopt(zmq.MAXMSGSIZE, 2 * max(body_bytes_max(batch_bytes_max), HEADER_BYTES_MAX))
    return router


def bind(router: zmq.Socket[bytes], endpoint: str) -> None:
    """Listen on an endpoint. Raises UsageError `address-in-use` if it is in use, or not of this machine."""
    if "[" in endpoint:
        router.setsockopt(zmq.IPV6, 1)
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        raise UsageError(
            f"cannot listen on {endpoint}: {error.strerror} (is another broker running there?)",
            code="address-in-use",
        ) from error


class Monitor:
    """Tells which connections of a ROUTER were accepted and closed; `socket` becomes readable when there is news."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        self._router = router
        address = f"inproc://gateway-{id(self)}"
        router.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        # ZeroMQ's I/O thread waits when this queue is full, which must not happen while the loop does something else.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def news(self) -> Iterator[tuple[bool, int]]:
        """Yield the descriptors of connections, and of each whether it was accepted (or closed), in order."""
        while has_message(self.socket):
            told = receive(self.socket)[0]
            event = int.from_bytes(told[:2], sys.byteorder)
            if event in (zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED):
                yield event == zmq.EVENT_ACCEPTED, int.from_bytes(told[2:6], sys.byteorder)

    def close(self) -> None:
        """End the watch."""
        self._router.disable_monitor()
        self.socket.close(linger=0)
