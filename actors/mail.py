"""Mail: actor messages between the processes of one broker, over ZeroMQ ipc sockets in its run folder.

Every process binds one PULL socket at `<run folder>/<node>.<boot>` and connects one PUSH socket to each peer it was
told of (`meet`). `actors/envelope.py` encodes the messages, which are defined with `@message`. May touch: those
sockets, and the loop it is attached to.

Invariants:
- Mail from one process to another arrives in order, and at most once.
- A process receives no mail for its predecessor (the boot number is part of the socket's name), and none from a peer
  that it knows to be gone (the boot number is part of the envelope).
- Memory is bounded, by a number of mails in ZeroMQ's queues and of bytes waiting behind them. Mail above that is
  dropped, counted, and logged once per peer. Actors must expect lost mail.
- No mail can end the process: malformed mail is dropped, counted and logged.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from ister.actors.envelope import Frames, MalformedMailError, check_messages, message, open_mail, seal_mail
from ister.actors.runtime import Address, Scheduler
from ister.errors import UsageError

__all__ = ["Address", "Frames", "Mail", "MalformedMailError", "message"]

logger = logging.getLogger("ister.mail")

# Mails in ZeroMQ's queue on each side of a connection. They are small, or batches of which the sender's windows
# allow a few: a peer that is busy for 10 ms does not push mail back into this process.
QUEUED_MAILS_MAX: Final = 1000

# Bytes waiting behind that queue for one peer: a second of a loaded peer's control mail, or some hundred batches.
WAITING_BYTES_MAX: Final = 64 << 20

# An envelope's cost in memory besides its bytes, so that many tiny mails are counted fairly.
MAIL_OVERHEAD_BYTES: Final = 200

# How long waiting mail waits before it is tried again: emptying the queue takes a peer longer.
RETRY_S: Final = 0.002

# Mails read in one turn, so that a flood from one peer leaves the loop its timers and other sockets.
MAILS_PER_TURN: Final = 256

# From this size on, sending a frame without copying it (some 15 us of bookkeeping) is cheaper than the copy.
UNCOPIED_BYTES_MIN: Final = 128 << 10

# A received frame below this size is copied into bytes, which is cheaper than keeping ZeroMQ's message.
COPIED_BYTES_MAX: Final = 4 << 10

# The longest path of an ipc socket: 108 bytes on Linux, 104 on macOS, with the closing zero.
IPC_PATH_BYTES_MAX: Final = 103


class _Peer:
    __slots__ = ("boot", "dropped", "socket", "waiting", "waiting_bytes")

    def __init__(self, boot: int, socket: zmq.Socket[bytes]) -> None:
        self.boot = boot
        self.socket = socket
        self.waiting: deque[tuple[int, list[bytes | memoryview]]] = deque()
        self.waiting_bytes = 0
        self.dropped = 0


class Mail:
    """The mail of process number `boot` of `node`, with its socket in `folder`.

    Raises UsageError if the folder's path is too long for a socket, and zmq.ZMQError if it cannot be bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, node: str, boot: int) -> None:
        check_messages()
        self.node = node
        self.boot = boot
        self.sent = 0
        self.received = 0
        self.dropped = 0  # mail to peers that are unknown, gone, or too slow
        self.malformed = 0
        self.stale = 0  # mail from processes known to be gone
        self._context = context
        self._folder = folder
        self._peers: dict[str, _Peer] = {}
        self._oldest_boots: dict[str, int] = {}  # by node: mail from an older process is stale
        self._unknown_logged: set[str] = set()
        self._loop: Scheduler | None = None
        self._deliver: Callable[[str, object], None] = lambda _path, _message: None
        self._retrying = False
        endpoint = self._endpoint(node, boot)
        self._inbound = context.socket(zmq.PULL)
        self._inbound.set(zmq.RCVHWM, QUEUED_MAILS_MAX)
        self._inbound.set(zmq.LINGER, 0)
        try:
            self._inbound.bind(endpoint)
        except zmq.ZMQError:
            self._inbound.close()
            raise

    def _endpoint(self, node: str, boot: int) -> str:
        path = os.path.join(self._folder, f"{node}.{boot}")
        if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
            raise UsageError(
                f"run folder {self._folder} is too long: {path} is over {IPC_PATH_BYTES_MAX} bytes"
            )
        return f"ipc://{path}"

    def attach(self, loop: Scheduler, deliver: Callable[[str, object], None]) -> None:
        """Start receiving: call `deliver(path, message)` on `loop` for everything that arrives."""
        self._loop, self._deliver = loop, deliver
        loop.watch(self._inbound, self._receive)

    def meet(self, node: str, boot: int) -> None:
        """Note that process number `boot` of `node` is up: mail goes to it from now on; older news are ignored."""
        peer = self._peers.get(node)
        if boot < self._oldest_boots.get(node, 0) or (peer is not None and peer.boot == boot):
            return
        if peer is not None:
            self.forget(node)
        socket = self._context.socket(zmq.PUSH)
        socket.set(zmq.SNDHWM, QUEUED_MAILS_MAX)
        socket.set(zmq.LINGER, 0)
        socket.connect(self._endpoint(node, boot))
        self._peers[node] = _Peer(boot, socket)
        self._oldest_boots[node] = boot
        self._unknown_logged.discard(node)

    def forget(self, node: str, boot: int | None = None) -> None:
        """Note that a process is gone (`boot` None: whichever is known): drop its mail in both directions."""
        peer = self._peers.get(node)
        if peer is None or (boot is not None and boot != peer.boot):
            return
        del self._peers[node]
        self._oldest_boots[node] = peer.boot + 1
        self.dropped += len(peer.waiting)
        peer.socket.close(linger=0)

    def send(self, address: Address, message: object) -> None:
        """Send `message` to the actor at `address`, or drop it if nobody is there to take it.

        Raises TypeError if the message's class is not a `@message`.
        """
        peer = self._peers.get(address.node)
        if peer is None:
            self._drop_unknown(address, message)
            return
        envelope, frames = seal_mail(self.node, self.boot, address.path, message)
        if peer.waiting:
            self._wait(peer, address.node, [envelope, *frames])
            return
        try:
            if not frames:
                peer.socket.send(envelope, zmq.DONTWAIT)
            else:
                _send_parts(peer.socket, [envelope, *frames])
        except zmq.Again:
            self._wait(peer, address.node, [envelope, *frames])
        else:
            self.sent += 1

    def _drop_unknown(self, address: Address, message: object) -> None:
        self.dropped += 1
        if address.node not in self._unknown_logged:
            self._unknown_logged.add(address.node)
            logger.warning(
                "%s: no process %s to take %s for %s; mail for it is dropped until it is up",
                self.node,
                address.node,
                type(message).__qualname__,
                address.path,
            )

    def _wait(self, peer: _Peer, node: str, parts: list[bytes | memoryview]) -> None:
        size = sum(len(part) for part in parts) + MAIL_OVERHEAD_BYTES
        if peer.waiting_bytes + size > WAITING_BYTES_MAX:
            self.dropped += 1
            peer.dropped += 1
            if peer.dropped == 1:
                logger.error("%s: %s takes no mail; over %d bytes wait", self.node, node, WAITING_BYTES_MAX)
            return
        peer.waiting.append((size, parts))
        peer.waiting_bytes += size
        if not self._retrying and self._loop is not None:
            self._retrying = True
            self._loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        for peer in self._peers.values():
            waiting = peer.waiting
            try:
                while waiting:
                    _send_parts(peer.socket, waiting[0][1])
                    peer.waiting_bytes -= waiting.popleft()[0]
                    self.sent += 1
            except zmq.Again:
                pass
        if self._loop is not None and any(peer.waiting for peer in self._peers.values()):
            self._retrying = True
            self._loop.call_later(RETRY_S, self._retry)

    def _receive(self) -> None:
        inbound = self._inbound
        for _ in range(MAILS_PER_TURN):
            frames: list[bytes | memoryview] = []
            try:
                envelope = inbound.recv(zmq.DONTWAIT)
                while inbound.getsockopt(zmq.RCVMORE):
                    frame = inbound.recv(zmq.DONTWAIT, copy=False)
                    frames.append(frame.bytes if len(frame) <= COPIED_BYTES_MAX else frame.buffer)
            except zmq.Again:
                return
            try:
                opened = open_mail(envelope, frames)
            except MalformedMailError as error:
                self.malformed += 1
                logger.error("%s: dropped a malformed mail: %s", self.node, error)
                continue
            if opened.boot < self._oldest_boots.get(opened.node, 0):
                self.stale += 1
                continue
            self.received += 1
            self._deliver(opened.path, opened.message)

    def close(self, linger_s: float = 0.2) -> None:
        """Close the sockets; mail in transit has `linger_s` seconds to leave."""
        if self._loop is not None:
            self._loop.unwatch(self._inbound)
        self._inbound.close(linger=0)
        for peer in self._peers.values():
            peer.socket.close(linger=int(linger_s * 1000))
        self._peers.clear()


def _send_parts(socket: zmq.Socket[bytes], parts: list[bytes | memoryview]) -> None:
    # One copy flag for all parts: the envelope is small compared to a large frame.
    copy = max(map(len, parts)) < UNCOPIED_BYTES_MIN
    socket.send_multipart(parts, zmq.DONTWAIT, copy=copy)
